//! The whole content of a store at one revision, on its way to another store or into a backup.

use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::Revision;

/// One key of a [`Snapshot`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Arc<str>,
    /// The stored bytes.
    pub value: Bytes,
    /// The revision that wrote the value.
    pub mod_revision: Revision,
    /// The revision that created the key.
    pub create_revision: Revision,
    /// When the key is to be deleted, in milliseconds since the Unix epoch; `None`: never.
    pub expires_at: Option<u64>,
}

/// All keys of a store at one revision.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The revision.
    pub revision: Revision,
    /// The keys in byte order.
    pub entries: Vec<Entry>,
}

impl Snapshot {
    /// SHA-256 over keys and values in their order, in hexadecimal. Revisions do not count: they differ between engines.
    pub fn checksum(&self) -> String {
        let mut hasher = Sha256::new();
        for entry in &self.entries {
            hasher.update((entry.key.len() as u64).to_le_bytes());
            hasher.update(entry.key.as_bytes());
            hasher.update((entry.value.len() as u64).to_le_bytes());
            hasher.update(&entry.value);
        }
        hex(&hasher.finalize())
    }

    /// Bytes of all values.
    pub fn bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.value.len() as u64).sum()
    }
}

/// How far above the newest revision of a backup its restored store begins: above everything that was written after the
/// backup was made, so that no resource version is used for two contents and every watch from before is told to list again.
pub const RESTORE_GAP: Revision = 1_000_000_000;

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
