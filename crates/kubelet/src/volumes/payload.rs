//! A payload volume on the node: one revision of its files in a folder of its own, and the link `..data` that is moved to
//! it in one step, so a reader sees all of the old or all of the new.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

use jiff::Timestamp;
use rustix::mount::MountFlags;

use super::mounts::{is_mount, tmpfs};

/// The files, by their path in the volume.
pub(super) type Payload = BTreeMap<String, File>;

/// A file of a volume.
pub(super) struct File {
    pub(super) content: Vec<u8>,
    pub(super) mode: u32,
    /// Who owns it; root where nobody is named.
    pub(super) owner: Option<u32>,
}

impl File {
    pub(super) fn of_root(content: Vec<u8>, mode: u32) -> Self {
        Self { content, mode, owner: None }
    }
}

const DATA: &str = "..data";

/// Writes a payload as a new revision and moves `..data` to it; nothing happens where it is the same.
pub(super) fn write(dir: &Path, payload: &Payload, group: Option<i64>) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))?;
    let mut clean = BTreeMap::new();
    for (name, file) in payload {
        let refused = || io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no relative path"));
        clean.insert(plain(name).ok_or_else(refused)?, file);
    }
    let payload = clean;
    let current = std::fs::read_link(dir.join(DATA)).ok();
    if let Some(current) = &current
        && same(&dir.join(current), &payload)
    {
        return Ok(());
    }
    let revision = format!(
        "..{}.{:09}",
        Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S"),
        rand::random_range(0..1_000_000_000)
    );
    let fresh = dir.join(&revision);
    std::fs::DirBuilder::new().mode(0o755).create(&fresh)?;
    for (name, File { content, mode, owner }) in &payload {
        let path = fresh.join(name);
        if let Some(parent) = path.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        }
        std::fs::write(&path, content)?;
        let mut mode = *mode;
        if let Some(group) = group {
            std::os::unix::fs::chown(&path, None, u32::try_from(group).ok())?;
            mode |= 0o440;
        }
        if owner.is_some() {
            std::os::unix::fs::chown(&path, *owner, None)?;
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
    }
    let aside = dir.join("..data_tmp");
    let _ = std::fs::remove_file(&aside);
    std::os::unix::fs::symlink(&revision, &aside)?;
    std::fs::rename(&aside, dir.join(DATA))?;
    // names that users see: links into `..data`, by first path component
    let firsts: std::collections::BTreeSet<&str> =
        payload.keys().filter_map(|n| n.split('/').next()).collect();
    for first in &firsts {
        let link = dir.join(first);
        if std::fs::symlink_metadata(&link).is_err() {
            std::os::unix::fs::symlink(Path::new(DATA).join(first), &link)?;
        }
    }
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("..") {
            if name != DATA && name != revision && entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(entry.path())?;
            }
        } else if !firsts.contains(name.as_str()) && entry.file_type()?.is_symlink() {
            // what else is there was made for a sub-path that named no key
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The path without what stands for the folder itself; nothing where it leads out, or to a name that is not for users.
fn plain(name: &str) -> Option<String> {
    use std::path::Component;
    let mut parts = Vec::new();
    for part in Path::new(name).components() {
        match part {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    let clean = parts.join("/");
    (!clean.is_empty() && !clean.starts_with("..")).then_some(clean)
}

fn same(revision: &Path, payload: &BTreeMap<String, &File>) -> bool {
    fn count(dir: &Path) -> usize {
        std::fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| if e.file_type().is_ok_and(|t| t.is_dir()) { count(&e.path()) } else { 1 })
            .sum()
    }
    revision.is_dir()
        && count(revision) == payload.len()
        && payload
            .iter()
            .all(|(name, file)| std::fs::read(revision.join(name)).is_ok_and(|found| found == file.content))
}

/// Makes the folder a filesystem in memory, once.
pub(super) fn memory_backed(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path)?;
    const TMPFS: i64 = 0x0102_1994;
    if rustix::fs::statfs(path)?.f_type == TMPFS && is_mount(path)? {
        return Ok(());
    }
    // scripts in secrets may be run
    tmpfs(path, MountFlags::NOSUID | MountFlags::NODEV, "mode=0755")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(entries: &[(&str, &str)]) -> Payload {
        entries.iter().map(|(k, v)| ((*k).to_owned(), File::of_root(v.as_bytes().to_vec(), 0o644))).collect()
    }

    #[test]
    fn a_payload_changes_in_one_step_and_removed_keys_go() {
        let dir = std::env::temp_dir().join(format!("navarch-volume-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        write(&dir, &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap();
        let first = std::fs::read_link(dir.join(DATA)).unwrap();
        assert_eq!(std::fs::read_to_string(dir.join("a")).unwrap(), "1");
        assert_eq!(std::fs::read_to_string(dir.join("sub/b")).unwrap(), "2");
        write(&dir, &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap();
        assert_eq!(std::fs::read_link(dir.join(DATA)).unwrap(), first, "nothing changed, nothing is written");
        std::fs::create_dir(dir.join("made")).unwrap();
        write(&dir, &payload(&[("a", "3")]), None).unwrap();
        assert!(dir.join("made").is_dir(), "a container has it");
        assert_eq!(std::fs::read_to_string(dir.join("a")).unwrap(), "3");
        assert!(std::fs::symlink_metadata(dir.join("sub")).is_err());
        assert!(!dir.join(first).exists());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn secrets_reach_no_swap_where_the_kernel_can_hold_them() {
        let dir = tempfile::tempdir().unwrap();
        memory_backed(dir.path()).unwrap();
        memory_backed(dir.path()).unwrap();
        let table = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let mounted: Vec<&str> =
            table.lines().filter(|line| line.contains(dir.path().to_str().unwrap())).collect();
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let mut numbers = release.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        let able = (numbers.next(), numbers.next()) >= (Some(6), Some(4));
        assert!(matches!(mounted[..], [line] if line.contains("noswap") == able), "{release}: {mounted:?}");
        super::super::unmount_below(dir.path()).unwrap();
    }

    #[test]
    fn a_path_may_say_that_it_begins_here() {
        assert_eq!(plain("./a//b/./c/").as_deref(), Some("a/b/c"));
        assert_eq!(["../a", "a/../b", "/a", ".", "./..data"].map(plain), [const { None }; 5]);
    }

    #[test]
    fn a_path_out_of_the_volume_is_refused() {
        let dir = std::env::temp_dir().join(format!("navarch-volume-bad-{}", std::process::id()));
        for bad in ["../x", "/etc/x", "a/../../x", ""] {
            assert!(write(&dir, &payload(&[(bad, "1")]), None).is_err(), "{bad}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
