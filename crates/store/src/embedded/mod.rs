//! The embedded engine: one folder on the local disk, one process.
//!
//! Threads and locks: callers put writes into `inbox`; one thread (`writer`) evaluates them, commits them
//! to `disk` (redb) and publishes them to `state` (all current values and the recent history in memory) and
//! `hub` (watch queues). Reads take the state's read lock for a few thousand keys at a time and go to the disk only for
//! old values that are no longer in memory. Lock order: hub, then state.
//!
//! After a crash the numbering goes on behind a reserved number, because revisions of writes acknowledged from
//! memory may have been seen and lost; whoever asks for the changes since such a revision gets `Compacted` and lists again.
//!
//! Why redb, and the figures: `docs/decisions/0001-embedded-engine.md`. Why all current values are in memory: the API
//! server's watch cache needs them there anyway and shares these very bytes.

mod disk;
mod inbox;
mod options;
mod record;
mod state;
mod stream;
mod transfer;
mod writer;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;

pub use options::{Clock, Options, SystemClock};
pub use transfer::create;

use crate::hub::{Hub, QueueLimit};
use crate::{Delete, KeyValue, MAX_KEY_BYTES, Put, Range, Revision, Store, StoreError, WatchStream};
use disk::{Disk, OpenBackend};
use inbox::{Inbox, Operation, Reply, Request, Write, closed};
use state::{Slot, State};
use writer::Writer;

/// Keys looked at under one read lock: bounds how long a reader holds up the writer.
const CHUNK: usize = 4096;

/// What the engine's threads and callers share.
struct Shared {
    options: Options,
    disk: Disk,
    state: RwLock<State>,
    hub: Mutex<Hub>,
    /// The newest revision whose events are in all queues.
    revision: AtomicU64,
    inbox: Inbox,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    writes: AtomicU64,
    commits: AtomicU64,
}

impl Shared {
    fn queue_limit(&self) -> QueueLimit {
        QueueLimit { events: self.options.watch_queue_events, bytes: self.options.watch_queue_bytes }
    }

    fn compacted_error(&self) -> StoreError {
        StoreError::Compacted { oldest: self.state.read().compacted() }
    }
}

/// Figures about an open store, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Keys that exist.
    pub keys: usize,
    /// Changes that can still be told to watchers.
    pub history: usize,
    /// The oldest revision that can be read.
    pub compacted: Revision,
    /// Bytes of all records, the quota's measure.
    pub stored_bytes: u64,
    /// Length of the data file in bytes.
    pub file_bytes: u64,
    /// Open watches.
    pub watchers: usize,
    /// Successful writes since opening.
    pub writes: u64,
    /// Commits to the disk since opening.
    pub commits: u64,
}

/// The embedded engine. Dropping it (or [`close`](Embedded::close)) brings everything to the disk and ends all watches.
pub struct Embedded {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Embedded {
    /// Opens the store in the folder `path`, creating both as needed, and takes its lock. Blocks while loading.
    ///
    /// Errors: [`StoreError::Locked`] when it is open elsewhere, [`StoreError::Corrupt`] when the file is damaged,
    /// [`StoreError::Unavailable`] for I/O errors.
    pub fn open(path: &Path, options: Options) -> Result<Arc<Embedded>, StoreError> {
        Embedded::open_on(path, options, None)
    }

    fn open_on(
        path: &Path,
        options: Options,
        backend: Option<OpenBackend>,
    ) -> Result<Arc<Embedded>, StoreError> {
        let (disk, mut state, reserved) = Disk::open(path, options.cache_bytes, backend)?;
        let durable = state.revision();
        state.skip_to(reserved);
        state.trim_values(options.history_memory, durable);
        tracing::debug!(path = %path.display(), keys = state.keys(), revision = state.revision(), "store opened");
        let shared = Arc::new(Shared {
            revision: AtomicU64::new(state.revision()),
            options,
            disk,
            state: RwLock::new(state),
            hub: Mutex::default(),
            inbox: Inbox::new(),
            counters: Counters::default(),
        });
        let writer = Writer::new(shared.clone(), durable, reserved)?;
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| StoreError::Unavailable(format!("can't start the writer thread: {error}")))?;
        Ok(Arc::new(Embedded { shared, writer: Mutex::new(Some(thread)) }))
    }

    /// Finishes what was begun, brings it to the disk and lets go of the file and its lock. Later calls fail with `Unavailable`.
    pub async fn close(&self) -> Result<(), StoreError> {
        self.shared.inbox.stop();
        let Some(thread) = self.writer.lock().take() else { return Ok(()) };
        let joined = tokio::task::spawn_blocking(move || thread.join()).await;
        match joined {
            Ok(Ok(())) => Ok(()),
            _ => Err(StoreError::Unavailable("the writer thread panicked".to_owned())),
        }
    }

    /// Brings everything that is acknowledged to the disk, whatever its durability.
    pub async fn flush(&self) -> Result<(), StoreError> {
        self.request(Request::Flush).await
    }

    /// Writes a copy of the store, consistent at one revision not older than this call, into the new folder `path`, while
    /// reads and writes go on. The copy is a store of its own: restoring is opening it, or putting it in the other's place.
    pub async fn backup(&self, path: &Path) -> Result<(), StoreError> {
        self.flush().await?;
        let path = path.to_owned();
        self.blocking(move |shared| shared.disk.backup(&path)).await
    }

    /// Gives the data file's free pages back to the file system; writers wait until it is done.
    pub async fn defragment(&self) -> Result<(), StoreError> {
        self.request(Request::Defragment).await
    }

    /// Figures for metrics.
    pub fn stats(&self) -> Stats {
        let watchers = self.shared.hub.lock().len();
        let state = self.shared.state.read();
        Stats {
            keys: state.keys(),
            history: state.history_len(),
            compacted: state.compacted(),
            stored_bytes: state.stored_bytes(),
            file_bytes: self.shared.disk.file_bytes(),
            watchers,
            writes: self.shared.counters.writes.load(Ordering::Relaxed),
            commits: self.shared.counters.commits.load(Ordering::Relaxed),
        }
    }

    /// Looks at the clock again. Only needed after moving an injected [`Clock`].
    pub fn wake(&self) {
        self.shared.inbox.wake();
    }

    async fn request<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Request,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.shared.inbox.push(request(reply))?;
        answer.await.map_err(|_| closed())?
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = self.shared.clone();
        tokio::task::spawn_blocking(move || work(&shared)).await.unwrap_or_else(|_| Err(closed()))
    }

    /// Fetches what is not in memory.
    async fn resolve(&self, slots: Vec<Slot>) -> Result<Vec<KeyValue>, StoreError> {
        if slots.iter().all(|slot| matches!(slot, Slot::Ready(_))) {
            return Ok(slots.into_iter().filter_map(ready).collect());
        }
        self.blocking(move |shared| stream::fetch(shared, slots)).await
    }

    async fn range_at(
        &self,
        prefix: &str,
        after: Option<&str>,
        at: Revision,
        limit: usize,
    ) -> Result<Range, StoreError> {
        let wanted = if limit == 0 { usize::MAX } else { limit };
        let mut slots = Vec::new();
        let mut after: Option<Arc<str>> = after.map(Arc::from);
        loop {
            let chunk = {
                let state = self.shared.state.read();
                state.readable(Some(at))?;
                state.range(prefix, after.as_deref(), at, wanted - slots.len(), CHUNK)
            };
            slots.extend(chunk.items);
            after = chunk.last_key.or(after);
            if chunk.complete || slots.len() >= wanted {
                break;
            }
        }
        let mut remaining = 0;
        let mut next = (slots.len() >= wanted).then_some(after).flatten();
        while let Some(key) = next {
            let state = self.shared.state.read();
            state.readable(Some(at))?;
            let (count, last) = state.count(prefix, Some(&key), at, CHUNK);
            remaining += count;
            next = last;
        }
        let items = self.resolve(slots).await?;
        Ok(Range { items, revision: at, more: remaining > 0, remaining })
    }
}

fn ready(slot: Slot) -> Option<KeyValue> {
    match slot {
        Slot::Ready(kv) => Some(kv),
        Slot::OnDisk(_) => None,
    }
}

fn check_key(key: &str) -> Result<(), StoreError> {
    match key.len() {
        1..=MAX_KEY_BYTES => Ok(()),
        length => Err(StoreError::InvalidKey { length }),
    }
}

#[async_trait::async_trait]
impl Store for Embedded {
    fn revision(&self) -> Revision {
        self.shared.revision.load(Ordering::Acquire)
    }

    async fn sync(&self) -> Result<Revision, StoreError> {
        Ok(self.revision())
    }

    async fn get(&self, key: &str, at: Option<Revision>) -> Result<(Option<KeyValue>, Revision), StoreError> {
        let (slot, revision) = {
            let state = self.shared.state.read();
            let revision = state.readable(at)?;
            (state.lookup(key, revision), revision)
        };
        let kv = self.resolve(slot.into_iter().collect()).await?.pop();
        Ok((kv, revision))
    }

    async fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        at: Option<Revision>,
        limit: usize,
    ) -> Result<Range, StoreError> {
        if let Some(at) = at {
            return self.range_at(prefix, after, at, limit).await;
        }
        // A very long list may be overtaken by compaction under extreme load: then a newer state is as good.
        for _ in 0..3 {
            let newest = self.shared.state.read().revision();
            match self.range_at(prefix, after, newest, limit).await {
                Err(StoreError::Compacted { .. }) => {}
                answer => return answer,
            }
        }
        Err(StoreError::Unavailable("the list was overtaken by compaction three times".to_owned()))
    }

    async fn put(&self, put: Put) -> Result<Revision, StoreError> {
        check_key(&put.key)?;
        let (size, limit) = (put.key.len() + put.value.len(), self.shared.options.entry_limit);
        if size > limit {
            return Err(StoreError::TooLarge { size, limit });
        }
        let permit = Some(self.shared.inbox.room(size).await?);
        self.request(|reply| {
            Request::Write(Write { operation: Operation::Put(put), reply: Reply::Put(reply), permit })
        })
        .await
    }

    async fn delete(&self, delete: Delete) -> Result<(Revision, KeyValue), StoreError> {
        check_key(&delete.key)?;
        let permit = Some(self.shared.inbox.room(delete.key.len()).await?);
        self.request(|reply| {
            Request::Write(Write {
                operation: Operation::Delete(delete),
                reply: Reply::Delete(reply),
                permit,
            })
        })
        .await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream, StoreError> {
        stream::watch(self.shared.clone(), prefix, from)
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.request(|reply| Request::Compact(revision, reply)).await
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.shared.inbox.stop();
        if let Some(thread) = self.writer.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the store's writer thread panicked");
        }
    }
}
