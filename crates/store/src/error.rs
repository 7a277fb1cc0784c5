//! What can go wrong in a store.

use std::path::PathBuf;

use crate::{KeyValue, Revision};

/// Why a store call failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The write's condition does not hold.
    #[error("the key is not in the expected state")]
    Conflict {
        /// What is there now; `None`: the key does not exist.
        current: Option<KeyValue>,
    },
    /// The revision lies before what the store keeps.
    #[error("revision is compacted; the oldest that can be read is {oldest}")]
    Compacted {
        /// The oldest revision that can still be read (or watched from).
        oldest: Revision,
    },
    /// The revision is yet to come.
    #[error("revision is in the future; the newest is {current}")]
    Future {
        /// The newest revision.
        current: Revision,
    },
    /// The quota or the disk is full. Deletes are still accepted while the quota is the limit.
    #[error("no space left in the store: {reason}")]
    NoSpace {
        /// Which limit, with figures.
        reason: String,
    },
    /// Key and value together are over the limit for one entry.
    #[error("the entry of {size} bytes is over the store's limit of {limit} bytes")]
    TooLarge {
        /// Bytes of key and value.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The key is empty or over [`MAX_KEY_BYTES`](crate::MAX_KEY_BYTES).
    #[error("a key of {length} bytes is not allowed")]
    InvalidKey {
        /// Bytes of the key.
        length: usize,
    },
    /// The watcher did not read its events in time; it has to list and watch again.
    #[error("the watcher fell behind its queue of {queued} events")]
    Lagged {
        /// How many events were waiting.
        queued: usize,
    },
    /// Another process has the store open.
    #[error("{} is in use by another process{holder}", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// ` (pid N)`, or nothing when unknown.
        holder: String,
    },
    /// The data on the disk is damaged. Restore a backup, or move the file away to start empty.
    #[error("{} is damaged: {reason}", file.display())]
    Corrupt {
        /// The damaged file.
        file: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The store can't answer now (I/O error, closed, lost its peer). A write may or may not have happened.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
}
