//! Who may touch the files and links of a network: one at a time, among all processes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::ipam::IpamError;

/// The file whose lock is the turn.
const LOCK: &str = "lock";

/// Gives turns.
pub(crate) struct Turns {
    path: PathBuf,
    /// Of this process; waiting for a file's lock takes a thread.
    own: Arc<Mutex<()>>,
}

/// A turn, until it is dropped.
pub(crate) struct Turn {
    _file: File,
    _own: OwnedMutexGuard<()>,
}

impl Turns {
    /// Turns on the state folder, which exists.
    pub(crate) fn open(dir: &Path) -> Self {
        Self { path: dir.join(LOCK), own: Arc::default() }
    }

    /// Waits for the turn.
    pub(crate) async fn take(&self) -> Result<Turn, IpamError> {
        let own = self.own.clone().lock_owned().await;
        let path = self.path.clone();
        let locked = tokio::task::spawn_blocking(move || {
            let file = File::options().create(true).append(true).open(path)?;
            flock(&file, FlockOperation::LockExclusive)?;
            Ok(file)
        });
        let failed = |source| IpamError::Io { what: "cannot lock", path: self.path.clone(), source };
        let file = locked.await.unwrap_or_else(|error| Err(std::io::Error::other(error))).map_err(failed)?;
        Ok(Turn { _file: file, _own: own })
    }
}
