//! Path resolution inside a folder that holds foreign content (an image's files): symbolic links lead to
//! where they would lead after `chroot`, never outside, and `/proc`-style magic links are refused.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags, mkdirat, openat2},
    io::Errno,
};

/// Opens `path` as it would be found from inside `root`. `..` cannot leave `root`.
pub fn open(root: BorrowedFd<'_>, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    let relative = relative(path);
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        match openat2(root, &relative, flags | OFlags::CLOEXEC, mode, resolve) {
            // The kernel asks to try again when a rename raced with the walk.
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

/// Opens the folder `path` inside `root`, making what is missing (mode 0755).
pub fn make_dir(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    match open(root, path, flags, Mode::empty()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        result => return result,
    }
    let mut so_far = PathBuf::new();
    let mut dir = open(root, Path::new("."), flags, Mode::empty())?;
    for component in relative(path).components() {
        so_far.push(component);
        dir = match open(root, &so_far, flags, Mode::empty()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match mkdirat(&dir, component.as_os_str(), Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                open(root, &so_far, flags, Mode::empty())?
            }
            result => result?,
        };
    }
    Ok(dir)
}

/// Opens the file `path` inside `root` by path only, making an empty one (and its folders) when missing.
pub fn make_file(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    match open(root, path, OFlags::PATH, Mode::empty()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        result => return result,
    }
    let path = relative(path);
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let dir = make_dir(root, path.parent().unwrap_or(Path::new(".")))?;
    openat2(
        dir.as_fd(),
        name,
        OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::from_raw_mode(0o644),
        ResolveFlags::BENEATH,
    )?;
    Ok(openat2(
        dir,
        name,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH,
    )?)
}

/// `path` without its leading `/` and without `.`; `.` when nothing is left. `..` stays for the kernel.
pub fn relative(path: &Path) -> PathBuf {
    let relative: PathBuf = path
        .components()
        .filter(|component| matches!(component, Component::Normal(_) | Component::ParentDir))
        .collect();
    if relative.as_os_str().is_empty() { PathBuf::from(".") } else { relative }
}
