//! Folders that containers wrote, which may lie in each other as deeply as they like: neither the stack, nor open files, nor
//! the longest path of the kernel bounds what is walked here (the standard library's removal ends the process at some ten
//! thousand). No link is followed.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, openat, renameat, statat, unlinkat};
use rustix::io::Errno;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// So often a folder is read again that is not empty though all in it was removed: some file systems pass over names then.
const TRIES: usize = 16;

/// Bytes on disk and inodes below a folder.
pub type Size = (u64, u64);

/// Bytes on disk and inodes below `dir`. What vanishes, or is moved elsewhere, meanwhile is left out.
pub fn size(dir: &Path) -> Size {
    let mut sum = (0, 0);
    let Ok(mut here) = open(CWD, dir) else { return sum };
    let Ok(mut level) = look(&here, &mut sum) else { return sum };
    let mut above = Vec::new();
    loop {
        if let Some(name) = level.folders.pop() {
            let Ok(below) = open(&here, name.as_c_str()) else { continue };
            let Ok(next) = look(&below, &mut sum) else { continue };
            above.push(std::mem::replace(&mut level, next));
            here = below;
        } else {
            let Some(parent) = above.pop() else { return sum };
            match open(&here, c"..") {
                Ok(up) if id(&up).is_ok_and(|id| id == parent.id) => (here, level) = (up, parent),
                _ => return sum,
            }
        }
    }
}

/// A folder on the way.
struct Level {
    id: (u64, u64),
    /// Those in it that are to be walked yet.
    folders: Vec<CString>,
}

/// Counts what is in a folder.
fn look(folder: &OwnedFd, sum: &mut Size) -> rustix::io::Result<Level> {
    let mut folders = Vec::new();
    for entry in Dir::read_from(folder)? {
        let name = entry?.file_name().to_owned();
        if is_dots(&name) {
            continue;
        }
        let Ok(stat) = statat(folder, &name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let is_folder = FileType::from_raw_mode(stat.st_mode).is_dir();
        let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
        // a file of several names is counted once in all
        sum.0 += blocks * 512 / if is_folder { 1 } else { wide(stat.st_nlink).max(1) };
        sum.1 += 1;
        if is_folder {
            folders.push(name);
        }
    }
    Ok(Level { id: id(folder)?, folders })
}

/// Removes a folder and all below it, or the file or link in its place; nothing where there is none. A folder that is not
/// empty is taken to the top before it is emptied.
pub fn remove(dir: &Path) -> io::Result<()> {
    let root = match open(CWD, dir) {
        Ok(root) => root,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => return std::fs::remove_file(dir),
        Err(error) => return Err(error.into()),
    };
    let mut full = Vec::new();
    clear(&root, None, &mut full)?;
    while let Some(name) = full.pop() {
        let folder = open(&root, name.as_c_str())?;
        let mut tries = 0..TRIES;
        loop {
            clear(&folder, Some(&root), &mut full)?;
            match unlinkat(&root, &name, AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY | Errno::EXIST) if tries.next().is_some() => {}
                removed => break removed?,
            }
        }
    }
    std::fs::remove_dir(dir)
}

/// Removes what is in a folder. Folders in it that are not empty go to `full`, by their names at the `top`; without one they
/// are there already.
fn clear(folder: &OwnedFd, top: Option<&OwnedFd>, full: &mut Vec<CString>) -> io::Result<()> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if is_dots(name) {
            continue;
        }
        match unlinkat(folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR) => {}
            // what some file systems say of folders
            Err(Errno::PERM) if is_folder(folder, name) => {}
            Err(error) => return Err(error.into()),
        }
        match unlinkat(folder, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let Some(top) = top else {
            full.push(name.to_owned());
            continue;
        };
        let aside = CString::new(format!(".{:016x}", rand::random::<u64>())).map_err(io::Error::other)?;
        renameat(folder, name, top, &aside)?;
        full.push(aside);
    }
    Ok(())
}

fn open(at: impl AsFd, path: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    openat(at, path, FOLDER, Mode::empty())
}

fn id(folder: &OwnedFd) -> rustix::io::Result<(u64, u64)> {
    fstat(folder).map(|stat| (stat.st_dev, stat.st_ino))
}

/// A number whose type is not the same on every machine.
fn wide(number: impl Into<u64>) -> u64 {
    number.into()
}

fn is_dots(name: &std::ffi::CStr) -> bool {
    name == c"." || name == c".."
}

fn is_folder(folder: &OwnedFd, name: &std::ffi::CStr) -> bool {
    let stat = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW);
    stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir())
}

#[cfg(test)]
mod tests {
    use rustix::fs::mkdirat;

    use super::*;

    #[test]
    fn a_folder_counts_with_all_below_it_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("sub/file"), vec![7; 100_000]).unwrap();
        std::os::unix::fs::symlink("/usr", dir.path().join("link")).unwrap();
        let (bytes, inodes) = size(dir.path());
        assert!((100_000..200_000).contains(&bytes), "{bytes}");
        assert_eq!(inodes, 3);
        assert_eq!(size(&dir.path().join("link")), (0, 0));
    }

    #[test]
    fn folders_in_folders_without_end_are_counted_and_removed() {
        const DEPTH: u64 = 20_000;
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("beside/full")).unwrap();
        std::fs::write(root.join("beside/full/file"), "1").unwrap();
        let mut here = open(CWD, &root).unwrap();
        for _ in 0..DEPTH {
            mkdirat(&here, c"d", Mode::RWXU).unwrap();
            here = open(&here, c"d").unwrap();
        }
        let file = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        drop(openat(&here, c"file", file, Mode::RWXU).unwrap());
        assert_eq!(size(&root).1, DEPTH + 1 + 3);
        remove(&root).unwrap();
        assert!(!root.exists());
        remove(&root).unwrap();
    }

    #[test]
    fn a_link_is_removed_and_not_what_it_names() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("kept")).unwrap();
        std::fs::write(at("kept/file"), "1").unwrap();
        std::fs::create_dir_all(at("gone/below")).unwrap();
        std::os::unix::fs::symlink(at("kept"), at("gone/below/link")).unwrap();
        std::os::unix::fs::symlink(at("kept"), at("link")).unwrap();
        remove(&at("gone")).unwrap();
        remove(&at("link")).unwrap();
        assert!(
            at("kept/file").exists()
                && !at("gone").exists()
                && std::fs::symlink_metadata(at("link")).is_err()
        );
    }
}
