//! The program that is executed as shim, in a form that no container can write to through `/proc/<pid>/exe`
//! (CVE-2019-5736).

use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, memfd_create},
    io::Errno,
    mount::{OpenTreeFlags, open_tree},
};

use crate::sys::{self, MountAttr};

/// What is executed; it lasts as long as this handle and the shims do.
pub(crate) struct ShimProgram(OwnedFd);

impl ShimProgram {
    /// `embedded`, or the file `exe` where there is none or the node allows no programs in memory (`vm.memfd_noexec`).
    pub(crate) fn open(embedded: Option<&[u8]>, exe: &Path) -> io::Result<ShimProgram> {
        if let Some(program) = embedded {
            match sealed(program) {
                Ok(program) => return Ok(ShimProgram(program)),
                Err(error) => {
                    tracing::info!(%error, "the whole program serves as shim, which takes more memory")
                }
            }
        }
        readonly_view(exe).map(ShimProgram)
    }

    /// A path by which this process and its children execute it.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

/// A file in memory that nobody can change any more.
fn sealed(program: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = match memfd_create(c"navarch-shim", flags | MemfdFlags::EXEC) {
        // Linux before 6.3 knows no such flag and allows it always
        Err(Errno::INVAL) => memfd_create(c"navarch-shim", flags),
        other => other,
    }?;
    let mut file = File::from(file);
    file.write_all(program)?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    // What is open for writing cannot be executed.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// A detached read-only mount of the file `path`.
fn readonly_view(path: &Path) -> io::Result<OwnedFd> {
    let view = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    sys::mount_setattr(view.as_fd(), MountAttr { set: sys::ATTR_RDONLY, ..MountAttr::default() }, false)?;
    Ok(view)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn an_embedded_program_is_executed_and_cannot_be_changed() {
        let program =
            ShimProgram::open(Some(&std::fs::read("/bin/true").unwrap()), Path::new("/bin/false")).unwrap();
        assert!(Command::new(program.path()).status().unwrap().success());
        let writing = File::options().write(true).open(program.path());
        let written = writing.and_then(|mut file| file.write_all(b"#!/bin/sh"));
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
