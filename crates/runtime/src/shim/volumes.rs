//! Volumes that an image asks for (`VOLUME`): folders of the container's own beside its layers, writable also where the root
//! is not. Each begins with what the image has in its place.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat,
        chownat, fstat, lsetxattr, mkdirat, mknodat, openat, readlinkat, statat, symlinkat, utimensat,
    },
    io::Errno,
};

use super::{mounts::while_doing, user_namespace::Users};
use crate::{
    in_root,
    spec::{ContainerSpec, MountSource},
};

/// Opens a folder to read what is in it; no link.
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Fills the volumes of a container whose root file system is `root`; nothing is mounted in that yet.
pub(super) fn fill(spec: &ContainerSpec, root: BorrowedFd<'_>, users: Option<&Users>) -> Result<(), String> {
    for mount in spec.mounts.iter().filter(|mount| mount.filled) {
        let MountSource::Bind(path) = &mount.source else { continue };
        let target = Path::new(&mount.target);
        fill_one(root, target, path, users, spec.rootfs.label.as_deref())
            .map_err(while_doing(format_args!("volume {} of the image", mount.target)))?;
    }
    Ok(())
}

fn fill_one(
    root: BorrowedFd<'_>,
    target: &Path,
    volume: &Path,
    users: Option<&Users>,
    label: Option<&str>,
) -> io::Result<()> {
    let (Some(folder), Some(name)) = (volume.parent(), volume.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let folder = openat(CWD, folder, FOLDER, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    match in_root::open(root, target, flags, Mode::empty()) {
        Ok(from) => {
            let to = openat(&folder, name, FOLDER, Mode::empty())?;
            copy(from.as_fd(), to.as_fd(), label)?;
            Ok(attributes(folder.as_fd(), name, &fstat(&from)?, label)?)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let (uid, gid) = users.map_or((0, 0), Users::root);
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            chownat(&folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            Ok(relabel(folder.as_fd(), name, label)?)
        }
        Err(error) => Err(error),
    }
}

/// Copies what is in a folder, with owners, modes and times. Extended attributes stay behind.
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>, label: Option<&str>) -> io::Result<()> {
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                mkdirat(to, name, Mode::RWXU)?;
                let (inner, made) =
                    (openat(from, name, FOLDER, Mode::empty())?, openat(to, name, FOLDER, Mode::empty())?);
                copy(inner.as_fd(), made.as_fd(), label)?;
            }
            FileType::RegularFile => {
                let itself = OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let new = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                let source = openat(from, name, OFlags::RDONLY | itself, Mode::empty())?;
                let target = openat(to, name, new | itself, Mode::RUSR | Mode::WUSR)?;
                io::copy(&mut File::from(source), &mut File::from(target))?;
            }
            FileType::Symlink => symlinkat(readlinkat(from, name, Vec::new())?, to, name)?,
            kind => mknodat(to, name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev)?,
        }
        attributes(to, name, &stat, label)?;
    }
    Ok(())
}

/// Gives a copy the attributes of what it is a copy of. Nobody else has the volume yet.
fn attributes(dir: BorrowedFd<'_>, name: &OsStr, stat: &Stat, label: Option<&str>) -> rustix::io::Result<()> {
    let itself = AtFlags::SYMLINK_NOFOLLOW;
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(dir, name, Some(uid), Some(gid), itself)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        // after the owner, whose change takes set-id bits away
        chmodat(dir, name, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())?;
    }
    relabel(dir, name, label)?;
    let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as i64 };
    utimensat(dir, name, &Timestamps { last_access: time, last_modification: time }, itself)
}

/// Gives the container's SELinux label, where the file system keeps any.
fn relabel(dir: BorrowedFd<'_>, name: &OsStr, label: Option<&str>) -> rustix::io::Result<()> {
    let Some(label) = label else { return Ok(()) };
    let path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
    match lsetxattr(path, "security.selinux", label.as_bytes(), XattrFlags::empty()) {
        Err(Errno::OPNOTSUPP) => Ok(()),
        set => set,
    }
}
