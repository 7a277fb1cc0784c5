//! One layer's archive becomes one folder that overlayfs can use as a lower layer.
//!
//! The archive is hostile: every path is walked one component at a time from an open folder, symbolic links
//! are followed by hand and never out of the layer, and what is written is counted against a limit.
//! A folder that the archive leaves out, but that a lower layer has, is made with that folder's owner and
//! mode, and a link there is followed, so that the result is what applying the layers in turn would give.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
        chownat, fchmod, fchown, fsetxattr, linkat, lsetxattr, makedev, mkdirat, mknodat, openat, openat2,
        readlinkat, statat, symlinkat, unlinkat, utimensat,
    },
    io::Errno,
};

use super::tar::{Entry, Kind, Reader};

/// Most symbolic links on the way to one entry, as in the kernel.
const MAX_LINKS: usize = 40;
/// Deepest path.
const MAX_DEPTH: usize = 256;

/// Limits of one unpacking.
#[derive(Debug, Clone, Copy)]
pub struct Caps {
    /// Bytes of file content.
    pub bytes: u64,
    /// Entries.
    pub entries: u64,
    /// Bytes of folders' paths, which are remembered to the end.
    pub paths: usize,
}

/// Unpacks `archive` (plain tar) into the empty folder `target`. `lower` are the layers below, topmost first.
pub fn unpack(archive: impl Read, target: &Path, lower: &[PathBuf], caps: Caps) -> io::Result<u64> {
    let open = |path: &Path| -> io::Result<OwnedFd> {
        Ok(openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
    };
    let mut layer = Layer {
        root: open(target)?,
        lower: lower.iter().map(|path| open(path)).collect::<io::Result<_>>()?,
        written: 0,
        dir_times: Vec::new(),
        paths: 0,
        last: None,
    };
    let mut reader = Reader::new(archive);
    let mut entries = 0;
    while let Some(entry) = reader.next_entry()? {
        entries += 1;
        if entries > caps.entries {
            return Err(refused("the layer has too many entries"));
        }
        if layer.written.saturating_add(entry.size) > caps.bytes {
            return Err(refused("the layer is too large"));
        }
        if layer.paths > caps.paths {
            return Err(refused("the layer has too many folders of too long names"));
        }
        layer.apply(&entry, &mut reader).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", String::from_utf8_lossy(&entry.path)))
        })?;
    }
    layer.finish()?;
    Ok(layer.written)
}

fn refused(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

struct Layer {
    root: OwnedFd,
    lower: Vec<OwnedFd>,
    written: u64,
    /// Folders' times are set last, since filling a folder changes them.
    dir_times: Vec<(PathBuf, (i64, u32))>,
    /// Bytes of their paths.
    paths: usize,
    /// The folder of the entry before: archives come folder by folder.
    last: Option<(PathBuf, PathBuf, OwnedFd)>,
}

impl Layer {
    fn apply(&mut self, entry: &Entry, content: &mut impl Read) -> io::Result<()> {
        let path = clean(&entry.path)?;
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            // The root folder itself: only its attributes.
            let root = self.reopen_root()?;
            return set_dir_attributes(root.as_fd(), entry);
        };
        let (parent, dir) = self.folder(path.parent().unwrap_or(Path::new("")))?;
        let logical = parent.join(&name);
        if let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") {
            return self.whiteout(dir.as_fd(), hidden);
        }
        let (existing, hides) = match statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => (Some(FileType::from_raw_mode(stat.st_mode)), is_whiteout(&stat)),
            Err(Errno::NOENT) => (None, false),
            Err(error) => return Err(error.into()),
        };
        match (existing, entry.kind) {
            (Some(FileType::Directory), Kind::Dir) | (None, _) => {}
            // A later entry replaces an earlier one; a folder with content does not silently vanish.
            (Some(FileType::Directory), _) => unlinkat(&dir, &name, AtFlags::REMOVEDIR)?,
            (Some(_), _) => unlinkat(&dir, &name, AtFlags::empty())?,
        }
        match entry.kind {
            Kind::Dir => {
                if existing != Some(FileType::Directory) {
                    mkdirat(&dir, &name, Mode::from_raw_mode(0o700))?;
                }
                let made = open_dir(dir.as_fd(), &name)?;
                set_dir_attributes(made.as_fd(), entry)?;
                if hides {
                    make_opaque(made.as_fd())?;
                }
                self.paths += logical.as_os_str().len();
                self.dir_times.push((logical, entry.mtime));
                return Ok(());
            }
            Kind::File => self.file(dir.as_fd(), &name, entry, content)?,
            Kind::HardLink => return self.hard_link(dir.as_fd(), &name, &entry.link),
            Kind::Symlink => {
                symlinkat(OsStr::from_bytes(&entry.link), &dir, &name)?;
            }
            Kind::Char | Kind::Block | Kind::Fifo => {
                let kind = match entry.kind {
                    Kind::Char => FileType::CharacterDevice,
                    Kind::Block => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                let number = makedev(entry.device.0, entry.device.1);
                // Device 0/0 would be a whiteout to overlayfs; as a device it is of no use.
                if kind == FileType::CharacterDevice && entry.device == (0, 0) {
                    return Ok(());
                }
                mknodat(&dir, &name, kind, Mode::from_raw_mode(0o600), number)?;
            }
        }
        if entry.kind != Kind::File {
            let (uid, gid) = owner(entry);
            chownat(&dir, &name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            if entry.kind != Kind::Symlink {
                let node = beneath(dir.as_fd(), &name, OFlags::PATH | OFlags::NOFOLLOW)?;
                chmod_path(node.as_fd(), entry.mode)?;
            }
            let path = proc_path(dir.as_fd()).join(&name);
            set_xattrs(entry, |key, value| lsetxattr(&path, key, value, XattrFlags::empty()))?;
        }
        utimensat(&dir, &name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }

    fn file(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        entry: &Entry,
        content: &mut impl Read,
    ) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = std::fs::File::from(openat(dir, name, flags, Mode::from_raw_mode(0o600))?);
        let mut buffer = vec![0; usize::try_from(entry.size.clamp(1, 128 * 1024)).unwrap_or(1)];
        loop {
            match content.read(&mut buffer)? {
                0 => break,
                count => {
                    file.write_all(&buffer[..count])?;
                    self.written += count as u64;
                }
            }
        }
        let (uid, gid) = owner(entry);
        fchown(&file, Some(uid), Some(gid))?;
        // After the owner: changing it clears set-id bits and capabilities.
        fchmod(&file, Mode::from_raw_mode(entry.mode))?;
        set_xattrs(entry, |key, value| fsetxattr(&file, key, value, XattrFlags::empty()))
    }

    fn hard_link(&mut self, dir: BorrowedFd<'_>, name: &OsStr, target: &[u8]) -> io::Result<()> {
        let target = clean(target)?;
        let target_name =
            target.file_name().ok_or_else(|| refused("hard link to the root folder"))?.to_owned();
        // Making the target's folder may replace the remembered one.
        let dir = dir.try_clone_to_owned()?;
        let (parent, target_dir) = self.folder(target.parent().unwrap_or(Path::new("")))?;
        match linkat(&target_dir, &target_name, &dir, name, AtFlags::empty()) {
            Err(Errno::NOENT) => {
                self.copy_up(&parent.join(&target_name), target_dir.as_fd(), &target_name)?;
                Ok(linkat(&target_dir, &target_name, &dir, name, AtFlags::empty())?)
            }
            result => Ok(result?),
        }
    }

    /// Brings a regular file of a lower layer into this one, to link to it.
    fn copy_up(&mut self, logical: &Path, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        for lower in &self.lower {
            let source =
                match beneath(lower.as_fd(), logical, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK) {
                    Ok(source) => source,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                };
            let stat = rustix::fs::fstat(&source)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Err(refused("hard link to something else than a file"));
            }
            let entry = Entry {
                kind: Kind::File,
                path: Vec::new(),
                link: Vec::new(),
                mode: stat.st_mode & 0o7777,
                uid: stat.st_uid,
                gid: stat.st_gid,
                size: u64::try_from(stat.st_size).unwrap_or(0),
                mtime: (0, 0),
                device: (0, 0),
                xattrs: Vec::new(),
            };
            return self.file(dir, name, &entry, &mut std::fs::File::from(source));
        }
        Err(refused("hard link to a file that is not in the image"))
    }

    /// `.wh.<name>` hides `name` of lower layers; `.wh..wh..opq` hides all that lower layers have in the folder.
    fn whiteout(&mut self, dir: BorrowedFd<'_>, hidden: &[u8]) -> io::Result<()> {
        if hidden == b".wh..opq" {
            return make_opaque(dir);
        }
        if hidden.starts_with(b".wh.") {
            // Other names with two marks are aufs's own bookkeeping.
            return Ok(());
        }
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            return Err(refused("a whiteout without a name"));
        }
        let hidden = OsStr::from_bytes(hidden);
        match mknodat(dir, hidden, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => Ok(()),
            // The layer itself has an entry of that name, which is above what is hidden; a folder would show that, too.
            Err(Errno::EXIST) => match open_dir(dir, hidden) {
                Ok(folder) => make_opaque(folder.as_fd()),
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTDIR | libc::ELOOP)) => Ok(()),
                Err(error) => Err(error),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// The folder `path` of the image, as it is in this layer: its path without links, and a handle.
    fn folder(&mut self, path: &Path) -> io::Result<(PathBuf, OwnedFd)> {
        if let Some((asked, real, dir)) = &self.last
            && asked == path
        {
            return Ok((real.clone(), dir.try_clone()?));
        }
        let mut todo: VecDeque<OsString> = path.iter().map(OsStr::to_owned).collect();
        let mut real = PathBuf::new();
        let mut links = 0;
        let mut dir = self.reopen_root()?;
        while let Some(name) = todo.pop_front() {
            if name == ".." {
                real.pop();
                dir = self.at(&real)?;
                continue;
            }
            if real.components().count() >= MAX_DEPTH {
                return Err(refused("folders are nested too deep"));
            }
            let kind = match statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if is_whiteout(&stat) => {
                    // Of this layer, and now something below it: only what comes now is there.
                    unlinkat(&dir, &name, AtFlags::empty())?;
                    mkdirat(&dir, &name, Mode::from_raw_mode(0o755))?;
                    make_opaque(open_dir(dir.as_fd(), &name)?.as_fd())?;
                    FileType::Directory
                }
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(Errno::NOENT) => {
                    self.like_lower(dir.as_fd(), &real.join(&name), &name, &mut todo, &mut links)?
                }
                Err(error) => return Err(error.into()),
            };
            match kind {
                FileType::Directory => {
                    dir = open_dir(dir.as_fd(), &name)?;
                    real.push(&name);
                }
                FileType::Symlink => {
                    let target = match readlinkat(&dir, &name, Vec::new()) {
                        Ok(target) => target.into_bytes(),
                        // It is a lower layer's, and `like_lower` has put its target in front.
                        Err(Errno::NOENT) => {
                            if todo.front().is_some_and(|first| first == "/") {
                                todo.pop_front();
                                real.clear();
                                dir = self.reopen_root()?;
                            }
                            continue;
                        }
                        Err(error) => return Err(error.into()),
                    };
                    if push_link(&target, &mut todo, &mut links)? {
                        todo.pop_front();
                        real.clear();
                        dir = self.reopen_root()?;
                    }
                }
                _ => return Err(refused("a folder on the way is something else")),
            }
        }
        self.last = Some((path.to_owned(), real.clone(), dir.try_clone()?));
        Ok((real, dir))
    }

    /// Makes `name` in `dir` as the lower layers have it at `logical`; a folder if they have nothing.
    fn like_lower(
        &self,
        dir: BorrowedFd<'_>,
        logical: &Path,
        name: &OsStr,
        todo: &mut VecDeque<OsString>,
        links: &mut usize,
    ) -> io::Result<FileType> {
        let make = |mode: u32| mkdirat(dir, name, Mode::from_raw_mode(mode));
        for lower in &self.lower {
            let found = match beneath(lower.as_fd(), logical, OFlags::PATH | OFlags::NOFOLLOW) {
                Ok(found) => found,
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT)) => continue,
                // On the way there is something else than a folder: it hides what is below.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTDIR | libc::ELOOP)) => break,
                Err(error) => return Err(error),
            };
            let stat = rustix::fs::fstat(&found)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    make(0o700)?;
                    let made = reopen(open_dir(dir, name)?.as_fd())?;
                    fchown(&made, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
                    fchmod(&made, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
                    return Ok(FileType::Directory);
                }
                FileType::Symlink => {
                    let target = readlinkat(&found, "", Vec::new())?.into_bytes();
                    push_link(&target, todo, links)?;
                    return Ok(FileType::Symlink);
                }
                _ => break,
            }
        }
        make(0o755)?;
        Ok(FileType::Directory)
    }

    fn at(&self, path: &Path) -> io::Result<OwnedFd> {
        if path.as_os_str().is_empty() {
            return self.reopen_root();
        }
        beneath(self.root.as_fd(), path, OFlags::PATH | OFlags::DIRECTORY)
    }

    fn reopen_root(&self) -> io::Result<OwnedFd> {
        self.root.try_clone()
    }

    fn finish(&mut self) -> io::Result<()> {
        for (path, mtime) in std::mem::take(&mut self.dir_times).into_iter().rev() {
            // Replaced by a later entry perhaps; then its own time was set.
            if let Ok(dir) = self.at(&path) {
                utimensat(&dir, "", &times(mtime), AtFlags::EMPTY_PATH)
                    .or_else(|_| utimensat(CWD, proc_path(dir.as_fd()), &times(mtime), AtFlags::empty()))?;
            }
        }
        Ok(())
    }
}

/// Puts a link's target in front of what is left to walk; true when it starts at the root (then the first
/// component is `/`).
fn push_link(target: &[u8], todo: &mut VecDeque<OsString>, links: &mut usize) -> io::Result<bool> {
    *links += 1;
    if *links > MAX_LINKS {
        return Err(refused("too many symbolic links"));
    }
    let target = Path::new(OsStr::from_bytes(target));
    for component in target.components().rev() {
        match component {
            Component::Normal(name) => todo.push_front(name.to_owned()),
            Component::ParentDir => todo.push_front("..".into()),
            _ => {}
        }
    }
    if target.is_absolute() {
        todo.push_front("/".into());
    }
    Ok(target.is_absolute())
}

/// An entry's path without `/`, `.` and `..`, which cannot lead above the root.
fn clean(path: &[u8]) -> io::Result<PathBuf> {
    if path.is_empty() {
        return Err(refused("an entry without a name"));
    }
    let mut clean = PathBuf::new();
    for component in Path::new(&OsString::from_vec(path.to_vec())).components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    Ok(clean)
}

fn beneath(dir: BorrowedFd<'_>, path: impl AsRef<Path>, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    // With NO_SYMLINKS a final link is refused unless it is what is asked for.
    let resolve = if flags.contains(OFlags::NOFOLLOW) && flags.contains(OFlags::PATH) {
        ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS
    } else {
        resolve
    };
    Ok(openat2(dir, path.as_ref(), flags | OFlags::CLOEXEC, Mode::empty(), resolve)?)
}

fn open_dir(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    Ok(openat(
        dir,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// What overlayfs takes for "nothing is here, whatever is below".
fn is_whiteout(stat: &rustix::fs::Stat) -> bool {
    stat.st_rdev == 0 && FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
}

/// Hides what lower layers have in a folder.
fn make_opaque(dir: BorrowedFd<'_>) -> io::Result<()> {
    Ok(fsetxattr(&reopen(dir)?, "trusted.overlay.opaque", b"y", XattrFlags::empty())?)
}

/// A handle by path only becomes one that attributes can be set on.
fn reopen(dir: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(openat(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

fn proc_path(file: BorrowedFd<'_>) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn chmod_path(node: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    Ok(rustix::fs::chmod(proc_path(node), Mode::from_raw_mode(mode))?)
}

fn set_dir_attributes(dir: BorrowedFd<'_>, entry: &Entry) -> io::Result<()> {
    let dir = reopen(dir)?;
    let (uid, gid) = owner(entry);
    fchown(&dir, Some(uid), Some(gid))?;
    fchmod(&dir, Mode::from_raw_mode(entry.mode))?;
    set_xattrs(entry, |key, value| fsetxattr(&dir, key, value, XattrFlags::empty()))
}

fn owner(entry: &Entry) -> (Uid, Gid) {
    (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid))
}

fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: i64::from(nanos) };
    Timestamps { last_access: time, last_modification: time }
}

/// Sets an entry's attributes. A file system that keeps none of their kind (tmpfs has users' since Linux 6.6) does without, as containerd
/// has it: most programs do, too.
fn set_xattrs(entry: &Entry, set: impl Fn(&str, &[u8]) -> rustix::io::Result<()>) -> io::Result<()> {
    for (key, value) in allowed_xattrs(entry) {
        match set(key, value) {
            Err(Errno::OPNOTSUPP) => {
                tracing::warn!(
                    attribute = key,
                    path = %String::from_utf8_lossy(&entry.path),
                    "the file system does not keep an attribute of an image's file"
                );
            }
            outcome => outcome?,
        }
    }
    Ok(())
}

/// Attributes an image may set. Overlayfs's own ones would let it redirect folders and files of the node.
fn allowed_xattrs(entry: &Entry) -> impl Iterator<Item = (&str, &[u8])> {
    entry
        .xattrs
        .iter()
        .filter(|(key, _)| {
            key == "security.capability" || (key.starts_with("user.") && !key.starts_with("user.overlay."))
        })
        .map(|(key, value)| (key.as_str(), value.as_slice()))
}
