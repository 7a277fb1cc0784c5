//! The cluster's data: the [`Store`] trait, the embedded engine, the etcd engine and the conformance suite.
//!
//! A store knows keys, bytes and revisions; it knows no Kubernetes kind. Everything the API server
//! promises about resource versions (consistent reads, optimistic concurrency, ordered watches, paging over a
//! snapshot, 410 Gone) rests on what [`Store`] promises here.
//!
//! - [`Store`]: the contract; its doc comment is the manual.
//! - [`embedded::Embedded`]: the default engine, one folder on the local disk.
//! - [`etcd::Etcd`]: an etcd v3 cluster, for several servers.
//! - [`transfer`] and [`backup`]: the whole content at one revision, to another engine or into a file.
//! - [`suite`]: the checks that every engine has to pass.

pub mod backup;
pub mod embedded;
mod error;
pub mod etcd;
mod hub;
pub mod suite;
pub mod transfer;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;

pub use error::StoreError;

/// A point in the store's history. Every successful write makes exactly one; they only grow, and no number is
/// ever used for two different contents, crashes included. Numbers may be skipped (never inside a running
/// process). 0 is the empty store before its first write.
pub type Revision = u64;

/// One key with its value at some revision. Cloning is cheap: key and value are shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The full key, `/registry/<group-or-core>/<plural>/[<namespace>/]<name>` by convention.
    pub key: Arc<str>,
    /// The stored bytes, untouched.
    pub value: Bytes,
    /// The revision that wrote this value; in a delete event the revision of the delete.
    pub mod_revision: Revision,
    /// The revision that created the key (since its last delete).
    pub create_revision: Revision,
}

/// What a write demands of the key's present state; checked in the same step as the write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// No demand. A delete still needs the key to exist.
    Any,
    /// The key must not exist (create).
    Absent,
    /// The key's `mod_revision` must be this one (update, guarded delete).
    Revision(Revision),
}

/// When a write is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// After it is on the disk: it survives `kill -9` and power loss.
    Disk,
    /// After it is ordered and visible. It reaches the disk with the next durable write or within about a
    /// second; a crash in between loses it. For Leases and Events. An engine may give more than was asked for.
    Memory,
}

/// A write of one key: create, update or both, as `expect` says.
#[derive(Debug, Clone)]
pub struct Put {
    /// The key; not empty, at most [`MAX_KEY_BYTES`] long.
    pub key: Arc<str>,
    /// The new value.
    pub value: Bytes,
    /// What must be true of the key now.
    pub expect: Expect,
    /// When to acknowledge.
    pub durability: Durability,
    /// Delete the key when so much time has passed since this write. A later put replaces it (`None`: the key
    /// stays). The delete is an ordinary one: it has a revision and an event. At least that long; the delay after it is small but not bounded.
    pub ttl: Option<Duration>,
}

impl Put {
    /// A durable create: fails with [`StoreError::Conflict`] when the key exists.
    pub fn create(key: impl Into<Arc<str>>, value: impl Into<Bytes>) -> Put {
        Put {
            key: key.into(),
            value: value.into(),
            expect: Expect::Absent,
            durability: Durability::Disk,
            ttl: None,
        }
    }

    /// A durable update of exactly the given revision: fails with [`StoreError::Conflict`] otherwise.
    pub fn update(key: impl Into<Arc<str>>, value: impl Into<Bytes>, revision: Revision) -> Put {
        Put { expect: Expect::Revision(revision), ..Put::create(key, value) }
    }

    /// A durable write of the key, whatever its state.
    pub fn set(key: impl Into<Arc<str>>, value: impl Into<Bytes>) -> Put {
        Put { expect: Expect::Any, ..Put::create(key, value) }
    }
}

/// A delete of one key.
#[derive(Debug, Clone)]
pub struct Delete {
    /// The key.
    pub key: Arc<str>,
    /// What must be true of the key now. [`Expect::Absent`] can't hold and always conflicts.
    pub expect: Expect,
    /// When to acknowledge.
    pub durability: Durability,
}

impl Delete {
    /// A durable delete under the given condition.
    pub fn new(key: impl Into<Arc<str>>, expect: Expect) -> Delete {
        Delete { key: key.into(), expect, durability: Durability::Disk }
    }
}

/// The answer of [`Store::range`].
#[derive(Debug, Clone)]
pub struct Range {
    /// The keys in byte order.
    pub items: Vec<KeyValue>,
    /// The revision whose state this is. Pass it as `at` to read the next page of the same snapshot.
    pub revision: Revision,
    /// There are more keys after the last item.
    pub more: bool,
    /// How many.
    pub remaining: u64,
}

/// What happened to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// Created (`create_revision == mod_revision`) or updated.
    Put,
    /// Deleted, by a client or because its time to live was over.
    Delete,
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The key after the change. For a delete: the last value, with the delete's revision as `mod_revision`.
    pub kv: KeyValue,
    /// The key before the change; `None` for a create.
    pub prev: Option<KeyValue>,
}

impl Event {
    /// The revision of the change.
    pub fn revision(&self) -> Revision {
        self.kv.mod_revision
    }
}

/// The events of a watch, in batches that are never empty. Within and across batches revisions only grow and
/// none that matches is left out. An error item is the last one: the watcher has to list again and
/// watch from that list's revision. Dropping the stream ends the watch.
pub type WatchStream = BoxStream<'static, Result<Vec<Event>, StoreError>>;

/// The longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 4096;

/// An ordered map of keys to bytes with one history: etcd's semantics in the shape the API server needs.
///
/// # Revisions
/// Every successful put or delete moves the store by one [`Revision`]. Writes are applied one after the other; a
/// write's condition ([`Expect`]) is checked against the state that all earlier writes left, so of two writers that
/// expect the same revision one wins and the other gets [`StoreError::Conflict`] with what is there now.
///
/// # Reads
/// [`get`](Store::get) and [`range`](Store::range) without `at` see every write that was acknowledged before they were
/// called. With `at` they see the state right after that revision: [`StoreError::Compacted`] when it is no longer kept,
/// [`StoreError::Future`] when it is yet to come. Pages of one list stay consistent by passing the
/// first page's revision as `at` and the last key as `after`.
///
/// # Watches
/// A watch delivers every change under its prefix with a revision greater than `from`, in order, without gaps or repeats, first
/// from the history, then live. `range` at revision R followed by `watch` from R misses nothing. `from` may lie in the
/// future: earlier changes are left out. A watcher that stops reading never delays writers or other watchers; when its bounded
/// queue is full it gets what was queued, then [`StoreError::Lagged`]. In process, an event is in the queues of its watchers
/// before its writer's call returns and before [`revision`](Store::revision) shows it (etcd can't promise this: use [`sync`](Store::sync)).
///
/// # Durability
/// See [`Durability`]. After a crash, everything acknowledged with [`Durability::Disk`] is there.
/// A write that ended in [`StoreError::Unavailable`], or whose future was dropped, may or may not have happened: read to know.
///
/// # History
/// Old revisions stay readable for a window of time, then they are compacted on their own; [`compact`](Store::compact) does it sooner.
#[async_trait::async_trait]
pub trait Store: Send + Sync + 'static {
    /// The newest revision this process knows to be acknowledged. Never goes backwards.
    fn revision(&self) -> Revision;

    /// The newest revision of the whole store: a linearizable read. Embedded: the same as [`revision`](Store::revision).
    async fn sync(&self) -> Result<Revision, StoreError>;

    /// One key, and the revision the answer belongs to.
    async fn get(&self, key: &str, at: Option<Revision>) -> Result<(Option<KeyValue>, Revision), StoreError>;

    /// The keys that start with `prefix` and are greater than `after`, in byte order, at most `limit` (0: all).
    async fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        at: Option<Revision>,
        limit: usize,
    ) -> Result<Range, StoreError>;

    /// Writes one key and returns the write's revision. Errors: `Conflict`, `TooLarge`, `InvalidKey`, `NoSpace`, `Unavailable`.
    async fn put(&self, put: Put) -> Result<Revision, StoreError>;

    /// Deletes one key; returns the delete's revision and what was deleted. A missing key is `Conflict { current: None }`.
    async fn delete(&self, delete: Delete) -> Result<(Revision, KeyValue), StoreError>;

    /// The changes under `prefix` after revision `from` (exclusive). `Compacted` when they are no longer all kept.
    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream, StoreError>;

    /// Forgets the history before `revision`: the state at `revision` stays readable, older ones don't.
    /// `Future` when it is yet to come, `Compacted` when it is already gone.
    async fn compact(&self, revision: Revision) -> Result<(), StoreError>;
}
