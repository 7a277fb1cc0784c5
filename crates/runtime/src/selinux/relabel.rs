//! Labels of what a container mounts.

use std::{
    ffi::OsStr,
    fmt::Display,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Dir, FileType, Mode, OFlags, XattrFlags, fstat, getxattr, lsetxattr, openat, setxattr},
    io::Errno,
};
use tokio_util::sync::CancellationToken;

const NAME: &str = "security.selinux";
/// Folders may nest so deep; each level keeps one open.
const DEPTH: u32 = 1000;
/// Folders of the node itself: with another label on them it would no longer run.
const SYSTEM: [&str; 24] = [
    "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/media", "/mnt", "/opt", "/proc",
    "/root", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var", "/var/lib", "/var/log", "/var/run",
    "/var/tmp",
];

/// Gives `path` and all below it the label `label`, the path itself last: when it has it, all below has it, too. No link is
/// followed but one that `path` is; what is on a file system that keeps no labels stays as it is. `stop` ends it early, as an error.
pub(crate) fn relabel(path: &Path, label: &str, stop: &CancellationToken) -> Result<(), String> {
    let failed = |path: &Path, why: &dyn Display| {
        format!("giving {} the SELinux label {label:?}: {why}", path.display())
    };
    let real = path.canonicalize().map_err(|error| failed(path, &error))?;
    if of_node(&real) {
        return Err(failed(path, &"it belongs to the node"));
    }
    let top = openat(CWD, &real, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| failed(path, &error))?;
    let itself = by_number(&top);
    let mut before = [0; 512];
    let had = getxattr(&itself, NAME, &mut before).map_or(&[][..], |length| &before[..length]);
    if had.strip_suffix(b"\0").unwrap_or(had) == label.as_bytes() {
        return Ok(());
    }
    let stat = fstat(&top).map_err(|error| failed(path, &error))?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        let open = openat(&top, ".", FOLDER, Mode::empty()).map_err(|error| failed(path, &error))?;
        below(open, &real, label, 0, stop).map_err(|(path, error)| failed(&path, &error))?;
    }
    kept(setxattr(&itself, NAME, label.as_bytes(), XattrFlags::empty())).map_err(|error| failed(path, &error))
}

/// Whether a path is the node's own: one of its folders, or in those of programs and settings.
fn of_node(path: &Path) -> bool {
    SYSTEM.iter().any(|system| path == Path::new(system))
        || ["/usr", "/etc"].iter().any(|system| path.starts_with(system))
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What is in a folder. An error comes with where it was.
fn below(
    folder: OwnedFd,
    path: &Path,
    label: &str,
    depth: u32,
    stop: &CancellationToken,
) -> Result<(), (PathBuf, Errno)> {
    let here = |error| (path.to_owned(), error);
    if depth == DEPTH {
        return Err(here(Errno::NAMETOOLONG));
    }
    let mut names = Dir::new(folder).map_err(here)?;
    while let Some(entry) = names.read() {
        let entry = entry.map_err(here)?;
        if stop.is_cancelled() {
            return Err(here(Errno::CANCELED));
        }
        let name = entry.file_name();
        if [c".", c".."].contains(&name) {
            continue;
        }
        let open = names.fd().map_err(here)?;
        let (own, path) = (OsStr::from_bytes(name.to_bytes()), path.join(OsStr::from_bytes(name.to_bytes())));
        match openat(open, name, FOLDER, Mode::empty()) {
            Ok(inner) => below(inner, &path, label, depth + 1, stop)?,
            // no folder, or gone meanwhile
            Err(Errno::NOTDIR | Errno::LOOP | Errno::NOENT) => {}
            Err(error) => return Err((path, error)),
        }
        let at = by_number(&open).join(own);
        kept(lsetxattr(&at, NAME, label.as_bytes(), XattrFlags::empty())).map_err(|error| (path, error))?;
    }
    Ok(())
}

/// An open file by its number: attributes are only reached by a path, and this one means the same file whatever takes its place.
fn by_number(file: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// That a file is gone, or its file system keeps no labels, is no error.
fn kept(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::OPNOTSUPP | Errno::NOENT) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_own_folders_keep_their_labels() {
        for path in ["/", "/usr", "/usr/lib/x", "/etc/passwd", "/var/lib", "/home"] {
            assert!(of_node(Path::new(path)), "{path}");
        }
        for path in ["/var/lib/kubelet/pods/u/volumes/v", "/srv/data", "/home/me/data", "/usrs", "/tmp/x"] {
            assert!(!of_node(Path::new(path)), "{path}");
        }
        let link = tempfile::tempdir().unwrap();
        let link = link.path().join("link");
        std::os::unix::fs::symlink("/usr", &link).unwrap();
        let stop = CancellationToken::new();
        let error = relabel(&link, "a:b:c", &stop).unwrap_err();
        assert!(error.ends_with("it belongs to the node"), "{error}");
        assert!(relabel(Path::new("/nowhere"), "a:b:c", &stop).unwrap_err().contains("No such file"));
    }

    #[test]
    fn a_walk_that_is_stopped_leaves_the_top_without_the_label() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let stop = CancellationToken::new();
        stop.cancel();
        let error = relabel(dir.path(), "a:b:c", &stop).unwrap_err();
        assert!(error.contains("canceled"), "{error}");
        for path in [dir.path().to_owned(), dir.path().join("file")] {
            assert_eq!(getxattr(&path, NAME, &mut [0; 16]), Err(Errno::NODATA), "{}", path.display());
        }
    }
}
