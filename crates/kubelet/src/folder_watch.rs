//! A folder under watch: whatever happens to its files wakes who waits.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, WatchFlags};
use tokio::io::unix::AsyncFd;

/// Watches one folder, not those below it.
pub struct FolderWatch(AsyncFd<OwnedFd>);

impl FolderWatch {
    /// From now on.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        let what = WatchFlags::MODIFY
            | WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF;
        inotify::add_watch(&fd, folder, what)?;
        #[allow(unsafe_code, reason = "AsyncFd has no safe constructor that is not deprecated")]
        // SAFETY: an OwnedFd names one open file until it is dropped, and AsyncFd drops it
        let fd = unsafe { AsyncFd::register_with_interest(fd, tokio::io::Interest::READABLE) };
        Ok(Self(fd.map_err(io::Error::from)?))
    }

    /// Waits for a change; many at once count as one.
    pub async fn changed(&self) -> io::Result<()> {
        let mut guard = self.0.readable().await?;
        let mut buffer = [0; 4096];
        // the events say nothing that a look at the files does not
        loop {
            match rustix::io::read(self.0.get_ref(), &mut buffer) {
                Ok(_) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        guard.clear_ready();
        Ok(())
    }
}
