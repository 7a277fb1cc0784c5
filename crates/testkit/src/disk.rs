//! A file as a disk.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use tempfile::NamedTempFile;

use crate::run;

/// A loop device over a file that takes as much of the real disk as was written to it.
pub struct Disk {
    file: NamedTempFile,
    device: PathBuf,
}

impl Disk {
    /// A blank one of `bytes`.
    pub fn new(bytes: u64) -> anyhow::Result<Self> {
        let file = tempfile::Builder::new().prefix("navarch-disk-").tempfile()?;
        file.as_file().set_len(bytes)?;
        let device = run(Command::new("losetup").args(["--find", "--show"]).arg(file.path()))?;
        Ok(Self { file, device: device.trim().into() })
    }

    /// Its device file.
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// Makes an ext4 file system on it, of which nothing is kept back for root.
    pub fn format(&self) -> anyhow::Result<()> {
        run(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&self.device)).map(drop)
    }

    /// Mounts it until the result is dropped.
    pub fn mount(&self, folder: &Path) -> anyhow::Result<Mounted> {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        run(Command::new("mount").arg(&self.device).arg(folder))?;
        Ok(Mounted(folder.to_owned()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let detached = run(Command::new("losetup").arg("--detach").arg(&self.device));
        if let Err(error) = detached {
            eprintln!("{} over {}: {error:#}", self.device.display(), self.file.path().display());
        }
    }
}

/// A mounted disk.
pub struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg(&self.0)) {
            eprintln!("{}: {error:#}", self.0.display());
        }
    }
}
