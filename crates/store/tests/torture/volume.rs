//! A small ext4 file system of the test's own, in a file on a loop device.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// `FS_IOC_SHUTDOWN` of linux/fs.h: `_IOR('X', 125, __u32)`.
const FS_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587d;
/// At once, without bringing the journal to the disk.
static NOLOGFLUSH: u32 = 2;

/// A mounted file system; dropping it unmounts it and removes its file.
pub struct Volume {
    folder: TempDir,
    mounted: bool,
}

impl Volume {
    /// A file system of so many megabytes.
    pub fn new(megabytes: u64) -> Volume {
        let folder = tempfile::Builder::new().prefix("navarch-volume-").tempdir().unwrap();
        let image = File::create(folder.path().join("image")).unwrap();
        image.set_len(megabytes << 20).unwrap();
        std::fs::create_dir(folder.path().join("mnt")).unwrap();
        let mut volume = Volume { folder, mounted: false };
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(volume.image()));
        volume.mount();
        volume
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    /// Mounts it; the journal is replayed as after a power cut.
    pub fn mount(&mut self) {
        run(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(self.image()).arg(self.path()));
        self.mounted = true;
    }

    /// Unmounts it. Whoever used it has ended.
    pub fn unmount(&mut self) {
        run(Command::new("umount").arg(self.path()));
        self.mounted = false;
    }

    /// From now on nothing more reaches the disk, and every call fails.
    #[allow(unsafe_code, reason = "this ioctl has no safe wrapper")]
    pub fn cut_power(&self) {
        let mount = File::open(self.path()).unwrap();
        // SAFETY: the call reads one u32 that lives as long as the call.
        let outcome = unsafe { libc::ioctl(mount.as_raw_fd(), FS_IOC_SHUTDOWN, &raw const NOLOGFLUSH) };
        assert_eq!(outcome, 0, "{}", std::io::Error::last_os_error());
    }

    /// Writes a file until the file system has no more than this left, in bytes.
    pub fn fill(&self, left: u64) -> PathBuf {
        let path = self.path().join("filler");
        let file = File::create(&path).unwrap();
        let free = free(&self.path()).saturating_sub(left);
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, free).unwrap();
        path
    }
}

/// Free bytes of the file system there.
pub fn free(path: &Path) -> u64 {
    let stat = rustix::fs::statvfs(path).unwrap();
    stat.f_bavail * stat.f_frsize
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.mounted {
            // A failed test may have left somebody there: the mount goes when they do.
            let lazy = if std::thread::panicking() { "--lazy" } else { "--verbose" };
            let _ = Command::new("umount").arg(lazy).arg(self.path()).output();
        }
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
