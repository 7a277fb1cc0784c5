//! `subPath`: a file or folder inside a volume, that a container of the pod may be changing at this very moment.
//!
//! The path is walked by descriptors (openat2, no link may lead out of the volume), and what was found is bound to a
//! place that only the kubelet can reach. The runtime is given that place: swapping a folder for a link after the
//! walk changes nothing (CVE-2017-1002101, CVE-2021-25741).

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind, unmount};

/// Opens `sub` below `root`; folders that are missing are made.
fn open(root: &Path, sub: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut here = openat(CWD, root, flags, Mode::empty())?;
    for part in Path::new(sub).components() {
        let name = part.as_os_str();
        here = match openat2(&here, name, flags, Mode::empty(), inside) {
            Err(Errno::NOENT) => {
                mkdirat(&here, name, Mode::from_raw_mode(0o755))?;
                openat2(&here, name, flags | OFlags::NOFOLLOW, Mode::empty(), inside)?
            }
            other => other?,
        };
    }
    Ok(here)
}

/// Binds `sub` of the volume at `root` to `place`, and returns `place`. An earlier run's binding is replaced.
pub fn pin(root: &Path, sub: &str, place: &Path) -> Result<PathBuf, String> {
    let wanted = Path::new(sub);
    if wanted.is_absolute() || wanted.components().any(|c| !matches!(c, Component::Normal(_))) {
        return Err(format!("subPath {sub:?} must be a relative path without '..'"));
    }
    let shown = |e: io::Error| format!("failed to prepare subPath {sub:?}: {e}");
    let found = open(root, sub).map_err(|e| shown(e.into()))?;
    let folder = FileType::from_raw_mode(fstat(&found).map_err(|e| shown(e.into()))?.st_mode).is_dir();
    bind(&found, folder, place).map_err(shown)?;
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

        fn pin(&self, sub: &str) -> Result<PathBuf, String> {
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
        assert_eq!(std::fs::read_to_string(volume.pin("app.conf").unwrap()).unwrap(), "newer");
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
