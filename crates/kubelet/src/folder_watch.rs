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
        let what = WatchFlags::MODIFY
            | WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF;
        Self::of(folder, what)
    }

    /// From now on, of names that come; what is in the files wakes nobody. Until `folder` is there, of the nearest one above it.
    pub fn for_names(folder: &Path) -> io::Result<Self> {
        let what =
            WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
        loop {
            for place in folder.ancestors() {
                match Self::of(place, what) {
                    // it came before the one above it was watched
                    Ok(_)
                        if place != folder
                            && folder.ancestors().take_while(|below| *below != place).any(Path::exists) =>
                    {
                        break;
                    }
                    Ok(watch) => return Ok(watch),
                    Err(error) if error.kind() == io::ErrorKind::NotFound && place.parent().is_some() => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }

    fn of(folder: &Path, what: WatchFlags) -> io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_folder_that_is_not_there_is_watched_for_by_those_above_it() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("disk/by-path");
        let (named, waited_for) = (folder.join("ip-192.0.2.1"), folder.clone());
        let waiting = tokio::spawn(async move {
            loop {
                let watch = FolderWatch::for_names(&waited_for).unwrap();
                if named.exists() {
                    return;
                }
                watch.changed().await.unwrap();
            }
        });
        for path in [folder.parent().unwrap(), &folder, &folder.join("ip-192.0.2.1")] {
            tokio::task::yield_now().await;
            std::fs::create_dir(path).unwrap();
        }
        tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap().unwrap();
        let watch = FolderWatch::for_names(&folder).unwrap();
        std::fs::remove_dir_all(dir.path().join("disk")).unwrap();
        watch.changed().await.unwrap();
    }
}
