//! What is mounted where on the node, and how it is undone.

use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

/// Whether the folder lies on another file system than the one above it.
pub(super) fn is_mount(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let above = path.parent().map(std::fs::metadata).transpose()?;
    Ok(above.is_none_or(|a| a.dev() != std::fs::metadata(path).map_or(0, |m| m.dev())))
}

/// Mounts a file system in memory. What is in it is never swapped out, where the kernel can do that (Linux 6.4).
pub(super) fn tmpfs(path: &Path, flags: MountFlags, options: &str) -> io::Result<()> {
    let mount = |options: String| {
        let options = CString::new(options).map_err(|_| Errno::INVAL)?;
        rustix::mount::mount("tmpfs", path, "tmpfs", flags, Some(options.as_c_str()))
    };
    let more = if options.is_empty() { "" } else { "," };
    match mount(format!("{options}{more}noswap")) {
        // an older one, or a namespace of users that may not ask for it
        Err(Errno::INVAL) => Ok(mount(options.to_owned())?),
        mounted => Ok(mounted?),
    }
}

/// Whether something is mounted right there. The folder itself is not touched: its server may not answer.
pub(crate) fn is_mounted(path: &Path) -> io::Result<bool> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { return Ok(false) };
    // the table holds real paths
    let real = match above.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?.join(name),
    };
    Ok(mounts_below(&real)?.contains(&real))
}

/// Mount points at or below `dir`, the deepest first.
fn mounts_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let table = std::fs::read("/proc/self/mounts")?;
    let points = table.split(|b| *b == b'\n').filter_map(|line| line.split(|b| *b == b' ').nth(1));
    let mut below: Vec<PathBuf> = points.map(unescaped).filter(|m| m.starts_with(dir)).collect();
    below.sort_by_key(|m| std::cmp::Reverse(m.components().count()));
    Ok(below)
}

/// Undoes the octal escapes of spaces and the like (proc(5)).
pub(crate) fn unescaped(field: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStringExt as _;
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..3).filter(|_| *first == b'\\').and_then(|d| std::str::from_utf8(d).ok());
        match code.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    std::ffi::OsString::from_vec(out).into()
}

/// Removes everything below the pod's folder; mounts below it first. Nothing is removed while one is left: behind a
/// mount may be the node's own files.
pub fn unmount_all(pod_dir: &Path) -> io::Result<()> {
    unmount_below(pod_dir)?;
    let real = match pod_dir.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    if let Some(left) = mounts_below(&real)?.first() {
        return Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            format!("{} is still mounted", left.display()),
        ));
    }
    tree::remove(&real)
}

/// The same beside other tasks: there may be millions of files.
pub(crate) async fn remove(pod_dir: PathBuf) -> io::Result<()> {
    tokio::task::spawn_blocking(move || unmount_all(&pod_dir)).await.map_err(io::Error::other)?
}

/// Undoes all mounts at and below a folder, which need not be there.
pub fn unmount_below(dir: &Path) -> io::Result<()> {
    // the table holds real paths
    let real = match dir.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for mount in mounts_below(&real)? {
        match rustix::mount::unmount(&mount, UnmountFlags::DETACH) {
            // gone with the one it was in
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleaning_up_spares_what_is_mounted_below_whatever_the_folders_name() {
        let dir = tempfile::Builder::new().prefix("with space ").tempdir().unwrap();
        let host = dir.path().join("host");
        std::fs::create_dir(&host).unwrap();
        std::fs::write(host.join("precious"), "1").unwrap();
        let pod = dir.path().join("pods/uid");
        let pinned = crate::sub_path::pin(dir.path(), "host", &pod.join("volume-subpaths/v/c/0")).unwrap();
        assert!(pinned.join("precious").exists());
        unmount_all(&pod).unwrap();
        assert!(!pod.exists());
        assert!(host.join("precious").exists());
    }
}
