//! `fsGroup`: a volume's files belong to the pod's group.
//!
//! Rule: Kubernetes documentation, "Configure volume permission and ownership change policy for Pods".

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, chownat, fstat, openat, openat2, statat,
};
use rustix::io::Errno;

/// What the group may do with files, with those that are only read, and with folders besides.
const WRITE: u32 = 0o660;
const READ: u32 = 0o440;
const FOLDERS: u32 = 0o2110;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const WITHIN: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// After so long the pod is told what keeps it, and how far it is each time after that.
const SLOW: Duration = Duration::from_secs(30);
const PROGRESS: Duration = Duration::from_secs(60);
/// Reason of the Events that tell it.
pub const IN_PROGRESS: &str = "VolumePermissionChangeInProgress";

/// Gives all below `root` to `group`, and counts it in `walked`. With `on_mismatch` nothing is done where the root itself is
/// right already. Blocks on the disk. Links are changed, not followed; what the file system refuses stays as it is.
pub fn give(
    root: &Path,
    group: u32,
    read_only: bool,
    on_mismatch: bool,
    walked: &AtomicU64,
) -> io::Result<()> {
    let files = if read_only { READ } else { WRITE };
    if on_mismatch && let Ok(metadata) = std::fs::metadata(root) {
        let wanted = files | FOLDERS;
        if metadata.gid() == group && metadata.mode() & wanted == wanted {
            return Ok(());
        }
    }
    // Pods may have the volume while its files are walked: what is looked at is held open, and no link in it is followed.
    let root = openat(CWD, root, FOLDER, Mode::empty())?;
    let mut folders = vec![PathBuf::from(".")];
    let mut next = 0;
    while next < folders.len() {
        let Some(folder) = present(openat2(&root, &folders[next], FOLDER, Mode::empty(), WITHIN))? else {
            next += 1;
            continue;
        };
        let mut entries = Dir::new(folder)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let name = entry.file_name();
            if [c".", c".."].contains(&name) {
                continue;
            }
            let path = folders[next].join(OsStr::from_bytes(name.to_bytes()));
            let kind = match entry.file_type() {
                // not every file system says it here
                FileType::Unknown => statat(entries.fd()?, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode)),
                kind => kind,
            };
            if kind == FileType::Directory {
                folders.push(path);
            } else {
                change(&root, &path, group, files);
                walked.fetch_add(1, Ordering::Relaxed);
            }
        }
        next += 1;
    }
    // the root last: once it is right, all is
    for folder in folders.iter().rev() {
        change(&root, folder, group, files | FOLDERS);
        walked.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Nothing where it was removed meanwhile, something else is in its place, or it lies deeper than the kernel's paths lead.
fn present<T>(opened: rustix::io::Result<T>) -> io::Result<Option<T>> {
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn change(root: &OwnedFd, path: &Path, group: u32, more: u32) {
    let file = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let changed = present(openat2(root, path, file, Mode::empty(), WITHIN)).and_then(|file| {
        let Some(file) = file else { return Ok(()) };
        let before = fstat(&file)?;
        chownat(&file, "", None, Some(Gid::from_raw(group)), AtFlags::EMPTY_PATH)?;
        if FileType::from_raw_mode(before.st_mode) == FileType::Symlink {
            return Ok(());
        }
        // as it was before: another group takes the bits of a program's user and group away
        let mode = std::fs::Permissions::from_mode(before.st_mode & 0o7777 | more);
        std::fs::set_permissions(format!("/proc/self/fd/{}", file.as_raw_fd()), mode)
    });
    if let Err(error) = changed {
        tracing::debug!(%error, path = %path.display(), "not given to the pod's group");
    }
}

/// Waits for the end of `work`, and tells the pod, whose `uid` is in the volume's folder, when that takes long.
pub async fn followed<T>(
    work: impl Future<Output = T>,
    (folder, uid): (&Path, &str),
    walked: &AtomicU64,
    tell: impl Fn(String),
) -> T {
    let mut work = pin!(work);
    let whole = folder.display().to_string();
    // the node's own folders are nobody's business
    let shown = whole.find(uid).map_or(whole.as_str(), |at| &whole[at..]);
    if let Ok(done) = tokio::time::timeout(SLOW, &mut work).await {
        return done;
    }
    tell(format!(
        "Setting volume ownership for {shown} is taking longer than expected, consider using OnRootMismatch - \
         https://kubernetes.io/docs/tasks/configure-pod-container/security-context/\
         #configure-volume-permission-and-ownership-change-policy-for-pods"
    ));
    loop {
        match tokio::time::timeout(PROGRESS, &mut work).await {
            Ok(done) => return done,
            Err(_) => tell(format!(
                "Setting volume ownership for {shown}, processed {} files.",
                walked.load(Ordering::Relaxed)
            )),
        }
    }
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
        let give = |careful| super::give(dir.path(), 4242, false, careful, &AtomicU64::new(0)).unwrap();
        give(true);
        for (path, mode) in [(dir.path(), 0o2770), (&sub, 0o2770), (&file, 0o660)] {
            let metadata = std::fs::metadata(path).unwrap();
            assert_eq!((metadata.gid(), metadata.mode() & mode), (4242, mode), "{path:?}");
        }
        assert_eq!(std::fs::metadata("/etc/passwd").unwrap().gid(), outside);
        std::os::unix::fs::chown(&file, None, Some(0)).unwrap();
        give(true);
        assert_eq!(std::fs::metadata(&file).unwrap().gid(), 0, "the root is right");
        give(false);
        assert_eq!(std::fs::metadata(&file).unwrap().gid(), 4242);
    }

    #[test]
    fn a_program_that_runs_as_its_owner_still_does_and_a_read_only_volume_is_only_read() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        std::fs::write(&program, "1").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o7777;
        for (path, mode) in [(dir.path(), 0o700), (program.as_path(), 0o4711)] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let walked = AtomicU64::new(0);
        give(dir.path(), 4242, true, false, &walked).unwrap();
        assert_eq!((mode(&program), mode(dir.path()), walked.into_inner()), (0o4751, 0o2750, 2));
    }

    #[test]
    fn folders_deeper_than_any_path_leads_keep_no_pod_from_its_volume() {
        let dir = tempfile::tempdir().unwrap();
        let name = "x".repeat(250);
        let mut at = openat(CWD, dir.path(), FOLDER, Mode::empty()).unwrap();
        for _ in 0..20 {
            rustix::fs::mkdirat(&at, &name, Mode::from_raw_mode(0o755)).unwrap();
            at = openat(&at, &name, FOLDER, Mode::empty()).unwrap();
        }
        give(dir.path(), 4242, false, false, &AtomicU64::new(0)).unwrap();
        let group = |path: &Path| std::fs::metadata(path).unwrap().gid();
        assert_eq!((group(dir.path()), group(&dir.path().join(name))), (4242, 4242));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_is_told_that_its_volume_takes_long_and_how_far_it_is() {
        let told = parking_lot::Mutex::new(Vec::new());
        let walked = AtomicU64::new(7);
        let follow = |seconds: u64| {
            let work = tokio::time::sleep(Duration::from_secs(seconds));
            let folder = Path::new("/kubelet/pods/u1/volumes/v");
            followed(work, (folder, "u1"), &walked, |text| told.lock().push(text))
        };
        follow(29).await;
        assert!(told.lock().is_empty());
        follow(100).await;
        let begin = "Setting volume ownership for u1/volumes/v is taking longer than expected, consider using \
                     OnRootMismatch - https://";
        let told = told.into_inner();
        assert!(told[0].starts_with(begin), "{told:?}");
        assert_eq!(told[1..], ["Setting volume ownership for u1/volumes/v, processed 7 files."]);
    }
}
