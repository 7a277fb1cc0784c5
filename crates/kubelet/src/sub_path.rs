//! `subPath`: a file or folder inside a volume, that a container of the pod may be changing at this very moment.
//!
//! The path is walked by descriptors (openat2, no link may lead out of the volume), and what was found is bound to a
//! place that only the kubelet can reach. The runtime is given that place: swapping a folder for a link after the
//! walk changes nothing (CVE-2017-1002101, CVE-2021-25741).

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fchmod, fstat, mkdirat, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind, unmount};

/// Opens `sub` below `root`; folders that are missing are made. Who may write to the volume may write to the last of them.
fn open(root: &Path, sub: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut here = openat(CWD, root, flags, Mode::empty())?;
    // a link to elsewhere in the volume leads out of its own folder
    match openat2(&here, sub, flags, Mode::empty(), inside) {
        Err(Errno::NOENT) => {}
        found => return found,
    }
    let mode = Mode::from_raw_mode(fstat(&here)?.st_mode & 0o2777);
    let mut parts = Path::new(sub).components().peekable();
    while let Some(part) = parts.next() {
        let name = part.as_os_str();
        here = match openat2(&here, name, flags, Mode::empty(), inside) {
            Err(Errno::NOENT) => {
                mkdirat(&here, name, mode)?;
                if parts.peek().is_none() {
                    // as it is, whatever the node takes off new files
                    let real = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    fchmod(openat2(&here, name, real, Mode::empty(), inside)?, mode)?;
                }
                openat2(&here, name, flags | OFlags::NOFOLLOW, Mode::empty(), inside)?
            }
            other => other?,
        };
    }
    Ok(here)
}

/// Why there is no such path. The reasons say something of the node, which is not for the pod.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// It is not there and could not be made.
    #[error("failed to create subPath directory")]
    Make(#[source] io::Error),
    /// It leads out of the volume, or could not be bound.
    #[error("failed to prepare subPath")]
    Prepare(#[source] io::Error),
}

/// Binds `sub` of the volume at `root` to `place`, and returns `place`. An earlier run's binding is replaced.
pub fn pin(root: &Path, sub: &str, place: &Path) -> Result<PathBuf, PinError> {
    let wanted = Path::new(sub);
    let within = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if !wanted.components().all(within) {
        return Err(PinError::Prepare(io::ErrorKind::InvalidInput.into()));
    }
    let found = open(root, sub).map_err(|error| PinError::Make(error.into()))?;
    let mode = fstat(&found).map_err(|error| PinError::Prepare(error.into()))?.st_mode;
    bind(&found, FileType::from_raw_mode(mode).is_dir(), place).map_err(PinError::Prepare)?;
    Ok(place.to_owned())
}

fn bind(found: &OwnedFd, folder: bool, place: &Path) -> io::Result<()> {
    if let Some(parent) = place.parent() {
        std::fs::create_dir_all(parent)?;
    }
    loop {
        match unmount(place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // not a mount, or not there: nothing of an earlier run is left
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(error) => return Err(error.into()),
        }
    }
    if let Ok(left) = std::fs::symlink_metadata(place) {
        if left.is_dir() { std::fs::remove_dir(place)? } else { std::fs::remove_file(place)? }
    }
    if folder {
        std::fs::create_dir(place)?;
    } else {
        std::fs::File::create_new(place)?;
    }
    Ok(mount_bind(format!("/proc/self/fd/{}", found.as_raw_fd()), place)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A volume, and a place for pins that is unmounted at the end.
    struct Volume(tempfile::TempDir);

    impl Volume {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            std::fs::create_dir(folder.path().join("volume")).unwrap();
            Self(folder)
        }

        fn root(&self) -> PathBuf {
            self.0.path().join("volume")
        }

        fn pin(&self, sub: &str) -> Result<PathBuf, PinError> {
            pin(&self.root(), sub, &self.0.path().join("pins/v/c/0"))
        }
    }

    impl Drop for Volume {
        fn drop(&mut self) {
            while unmount(self.0.path().join("pins/v/c/0"), UnmountFlags::DETACH).is_ok() {}
        }
    }

    #[test]
    fn a_file_is_found_through_links_that_stay_inside() {
        let volume = Volume::new();
        std::fs::create_dir(volume.root().join("..1")).unwrap();
        std::fs::write(volume.root().join("..1/app.conf"), "text").unwrap();
        std::os::unix::fs::symlink("..1", volume.root().join("..data")).unwrap();
        std::os::unix::fs::symlink("..data/app.conf", volume.root().join("app.conf")).unwrap();
        assert_eq!(std::fs::read_to_string(volume.pin("app.conf").unwrap()).unwrap(), "text");
        // the next run of the container takes the newest content
        std::fs::write(volume.root().join("..1/app.conf"), "newer").unwrap();
        assert_eq!(std::fs::read_to_string(volume.pin("./app.conf").unwrap()).unwrap(), "newer");
        std::fs::create_dir(volume.root().join("below")).unwrap();
        std::os::unix::fs::symlink("../app.conf", volume.root().join("below/link")).unwrap();
        assert_eq!(std::fs::read_to_string(volume.pin("below/link").unwrap()).unwrap(), "newer");
        assert!(volume.pin(".").unwrap().join("below").is_dir(), "all of the volume");
    }

    #[test]
    fn a_folder_that_is_made_is_for_those_whom_the_volume_is_for() {
        use std::os::unix::fs::PermissionsExt as _;
        let volume = Volume::new();
        for (sub, mode) in [("a/b", 0o777), ("shared/c", 0o2770), ("own", 0o700)] {
            std::fs::set_permissions(volume.root(), std::fs::Permissions::from_mode(mode)).unwrap();
            let made = std::fs::metadata(volume.pin(sub).unwrap()).unwrap();
            assert_eq!(made.permissions().mode() & 0o7777, mode, "{sub}");
        }
    }

    #[test]
    fn no_link_and_no_dots_lead_out() {
        let volume = Volume::new();
        std::os::unix::fs::symlink("/etc", volume.root().join("out")).unwrap();
        std::os::unix::fs::symlink("../..", volume.root().join("up")).unwrap();
        for bad in ["out", "out/hostname", "up", "up/etc", "../x", "/etc", "a/../../x"] {
            assert!(volume.pin(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_was_found_stays_when_the_path_is_swapped_for_a_link() {
        let volume = Volume::new();
        let place = volume.pin("data/deep").unwrap();
        std::fs::write(volume.root().join("data/deep/mine"), "1").unwrap();
        std::fs::rename(volume.root().join("data"), volume.root().join("aside")).unwrap();
        std::os::unix::fs::symlink("/etc", volume.root().join("data")).unwrap();
        let names: Vec<_> = std::fs::read_dir(place).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["mine"]);
    }
}
