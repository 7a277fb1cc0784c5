//! `fsGroup`: a volume's files belong to the pod's group.
//!
//! Rule: Kubernetes documentation, "Configure volume permission and ownership change policy for Pods".

use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

/// What the group may do with files, with those that are only read, and with folders besides.
const WRITE: u32 = 0o660;
const READ: u32 = 0o440;
const FOLDER: u32 = 0o2110;

/// Gives all below `root` to `group`. With `on_mismatch` nothing is done where the root itself is right already.
/// Blocks on the disk. Links are changed, not followed.
pub fn give(root: &Path, group: u32, read_only: bool, on_mismatch: bool) -> io::Result<()> {
    let files = if read_only { READ } else { WRITE };
    if on_mismatch {
        let metadata = std::fs::metadata(root)?;
        let wanted = files | FOLDER;
        if metadata.gid() == group && metadata.mode() & wanted == wanted {
            return Ok(());
        }
    }
    let mut folders = vec![root.to_owned()];
    let mut walked = 0;
    while walked < folders.len() {
        let entries = std::fs::read_dir(&folders[walked])?;
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else {
                change(&entry.path(), group, (!kind.is_symlink()).then_some(files))?;
            }
        }
        walked += 1;
    }
    // the root last: once it is right, all is
    for folder in folders.iter().rev() {
        change(folder, group, Some(files | FOLDER))?;
    }
    Ok(())
}

fn change(path: &Path, group: u32, more: Option<u32>) -> io::Result<()> {
    match std::os::unix::fs::lchown(path, None, Some(group)) {
        // removed meanwhile
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    }
    if let Some(more) = more {
        let mode = std::fs::symlink_metadata(path)?.mode();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode & 0o7777 | more))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_given_to_the_group_and_left_alone_once_it_is_right() {
        let dir = tempfile::tempdir().unwrap();
        let (sub, file) = (dir.path().join("sub"), dir.path().join("sub/file"));
        std::fs::create_dir(&sub).unwrap();
        std::fs::write(&file, "1").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
        let outside = std::fs::metadata("/etc/passwd").unwrap().gid();
        give(dir.path(), 4242, false, true).unwrap();
        for (path, mode) in [(dir.path(), 0o2770), (&sub, 0o2770), (&file, 0o660)] {
            let metadata = std::fs::metadata(path).unwrap();
            assert_eq!((metadata.gid(), metadata.mode() & mode), (4242, mode), "{path:?}");
        }
        assert_eq!(std::fs::metadata("/etc/passwd").unwrap().gid(), outside);
        std::os::unix::fs::chown(&file, None, Some(0)).unwrap();
        give(dir.path(), 4242, false, true).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().gid(), 0, "the root is right");
        give(dir.path(), 4242, false, false).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().gid(), 4242);
    }
}
