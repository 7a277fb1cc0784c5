//! `hostPath`: a path of the node, which is checked or made as its type says.
//!
//! Rule: Kubernetes documentation, "Volumes" (`hostPath`).

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// The path, once it is what `kind` says.
pub(crate) fn host_path(path: &Path, kind: &str) -> Result<PathBuf, String> {
    let found = std::fs::metadata(path).ok();
    let wrong = |what: &str| Err(format!("hostPath type check failed: {} is not a {what}", path.display()));
    let io = |e: io::Error| format!("{}: {e}", path.display());
    match (kind, found) {
        ("" | "DirectoryOrCreate", None) => {
            std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(io)?;
        }
        ("FileOrCreate", None) => {
            std::fs::OpenOptions::new().create(true).append(true).mode(0o644).open(path).map_err(io)?;
        }
        ("Directory" | "DirectoryOrCreate", found) if !found.as_ref().is_some_and(|m| m.is_dir()) => {
            return wrong("directory");
        }
        ("File" | "FileOrCreate", found) if !found.as_ref().is_some_and(|m| m.is_file()) => {
            return wrong("file");
        }
        ("Socket", found) if !found.as_ref().is_some_and(|m| m.file_type().is_socket()) => {
            return wrong("socket file");
        }
        ("CharDevice", found) if !found.as_ref().is_some_and(|m| m.file_type().is_char_device()) => {
            return wrong("character device");
        }
        ("BlockDevice", found) if !found.as_ref().is_some_and(|m| m.file_type().is_block_device()) => {
            return wrong("block device");
        }
        _ => {}
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_path_of_the_node_is_made_or_checked_as_its_type_says() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let check = |name: &str, kind: &str, wrong: Option<&str>| {
            let shown = |what| format!("hostPath type check failed: {} is not a {what}", at(name).display());
            assert_eq!(host_path(&at(name), kind).err(), wrong.map(shown), "{name} {kind}");
        };
        for (kind, what) in [
            ("Directory", "directory"),
            ("File", "file"),
            ("Socket", "socket file"),
            ("CharDevice", "character device"),
            ("BlockDevice", "block device"),
        ] {
            check("missing", kind, Some(what));
        }
        check("a/b", "DirectoryOrCreate", None);
        check("file", "FileOrCreate", None);
        check("a/b", "File", Some("file"));
        check("a/b", "FileOrCreate", Some("file"));
        check("file", "DirectoryOrCreate", Some("directory"));
        let mode = |name: &str| std::fs::metadata(at(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("a/b") & !0o755, mode("file") & !0o644), (0, 0), "nobody else writes");
    }
}
