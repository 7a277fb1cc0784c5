//! The etcd engine: the store of several servers, an etcd v3 cluster spoken to over gRPC.
//!
//! Parts: `connection` (members, failover, deadlines), `layout` (keys and revisions), `feed` over `source` (one watch of etcd
//! for the whole process), `leases` (times to live), `compactor` (the history window). Tasks: the feed's follower, the
//! compactor, and one reader of the newest revision while somebody asks for it.
//!
//! Every write is one transaction on the key's `mod_revision`. Reads are linearizable. [`Durability`](crate::Durability) is
//! always etcd's own: a majority has it on the disk. Keys whose time to live is over go several in one revision.
//!
//! Rejected: the `etcd-client` crate (needs protoc to build); manual progress requests to know how far a watch is (members
//! before 3.4.25 and 3.5.8 answer them ahead of events).

mod compactor;
mod connection;
mod feed;
mod layout;
mod leases;
#[allow(missing_docs, dead_code, clippy::all, reason = "derived")]
mod pb;
mod presence;
mod source;
mod transfer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tonic::Status;

use crate::{Delete, Expect, KeyValue, MAX_KEY_BYTES, Put, Range, Revision, Store, StoreError, WatchStream};
use connection::{Answer, Connection, Member, Repeat, request};
use feed::Feed;
use layout::Layout;
use leases::Leases;
use pb::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, RangeRequest, RangeResponse, RequestOp, ResponseHeader,
    TxnRequest, TxnResponse, request_op, response_op,
};
pub use transfer::create;

/// Keys in the first page of a range.
const PAGE: usize = 500;
/// Pages grow up to this number of keys...
const LARGEST_PAGE: usize = 10_000;
/// ... as long as they stay below these bytes, and shrink above.
const PAGE_BYTES: usize = 2 << 20;

/// The etcd engine's settings.
#[derive(Debug, Clone)]
pub struct Options {
    /// The members: `https://host:2379` or `http://host:2379`.
    pub endpoints: Vec<String>,
    /// The certificate authority of the members, PEM. Default: the system's.
    pub ca_file: Option<PathBuf>,
    /// Our certificate, PEM, where etcd asks for one.
    pub cert_file: Option<PathBuf>,
    /// Its key, PEM.
    pub key_file: Option<PathBuf>,
    /// What all keys of this cluster begin with. Default `/registry`, as Kubernetes; another one for each cluster when
    /// several share one etcd.
    pub prefix: String,
    /// The longest time for one request, tries on other members included. Default ten seconds.
    pub timeout: Duration,
    /// How long history is kept; zero leaves compaction to somebody else. Default five minutes, as Kubernetes.
    pub history: Duration,
    /// The largest key and value together, in bytes. Default 1.5 MiB, as etcd.
    pub entry_limit: usize,
    /// Changes kept in memory for watches that begin in the past: so many...
    pub ring_events: usize,
    /// ... and so many bytes. Older ones are read from etcd.
    pub ring_bytes: usize,
    /// How many events may wait in the queue of one watcher. Default 16 384.
    pub watch_queue_events: usize,
    /// How many bytes of events may wait in the queue of one watcher. Default 64 MiB.
    pub watch_queue_bytes: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            endpoints: Vec::new(),
            ca_file: None,
            cert_file: None,
            key_file: None,
            prefix: "/registry".to_owned(),
            timeout: Duration::from_secs(10),
            history: Duration::from_secs(300),
            entry_limit: 3 * 1024 * 1024 / 2,
            ring_events: 8_192,
            ring_bytes: 16 * 1024 * 1024,
            watch_queue_events: 16_384,
            watch_queue_bytes: 64 * 1024 * 1024,
        }
    }
}

/// What the engine's tasks and callers share.
struct Shared {
    options: Options,
    layout: Layout,
    connection: Connection,
    leases: Leases,
    feed: Feed,
    /// The newest revision that was acknowledged to this process.
    revision: AtomicU64,
    closed: AtomicBool,
    /// Who waits for the newest revision; `None`: nobody asks etcd at the moment.
    asking: Mutex<Option<Vec<oneshot::Sender<Result<Revision, Status>>>>>,
}

/// The etcd engine. Dropping it (or [`close`](Etcd::close)) ends all its watches.
pub struct Etcd {
    shared: Arc<Shared>,
    compactor: Option<tokio::task::AbortHandle>,
    /// Our lease among the servers, and who keeps it.
    presence: Mutex<Option<(i64, tokio::task::AbortHandle)>>,
}

impl Etcd {
    /// Connects to the cluster. Errors: [`StoreError::Unavailable`] when no member answers or the settings are not usable.
    pub async fn open(options: Options) -> Result<Arc<Etcd>, StoreError> {
        let mut shared = Shared::new(options)?;
        shared.layout.offset = shared.offset().await?;
        let newest = shared.newest().await.map_err(|status| layout::error(&status))?;
        tracing::debug!(members = shared.connection.addresses(), revision = newest, "etcd opened");
        let shared = Arc::new(shared);
        let compacts = !shared.options.history.is_zero();
        let compactor =
            compacts.then(|| tokio::spawn(compactor::run(Arc::downgrade(&shared))).abort_handle());
        Ok(Arc::new(Etcd { shared, compactor, presence: Mutex::default() }))
    }

    /// Makes this server known to others on the same etcd, until [`close`](Etcd::close) or the end of the process.
    pub async fn announce(&self, name: &str) -> Result<(), StoreError> {
        let lease = presence::announce(&self.shared, name).await.map_err(|status| layout::error(&status))?;
        let keeping = tokio::spawn(presence::keep(Arc::downgrade(&self.shared), name.to_owned(), lease));
        *self.presence.lock() = Some((lease, keeping.abort_handle()));
        Ok(())
    }

    /// Ends all watches and takes back what [`announce`](Etcd::announce) made known; later calls fail with `Unavailable`.
    pub async fn close(&self) {
        self.end();
        let presence = self.presence.lock().take();
        if let Some((lease, _)) = presence {
            presence::leave(&self.shared, lease).await;
        }
    }

    fn end(&self) {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.feed.close(closed());
        if let Some(compactor) = &self.compactor {
            compactor.abort();
        }
        if let Some((_, keeping)) = &*self.presence.lock() {
            keeping.abort();
        }
    }

    /// Open watches of this process, all fed by one watch of etcd.
    pub fn watchers(&self) -> usize {
        self.shared.feed.watchers()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.end();
    }
}

fn closed() -> StoreError {
    StoreError::Unavailable("the store is closed".to_owned())
}

fn check_key(key: &str) -> Result<(), StoreError> {
    match key.len() {
        1..=MAX_KEY_BYTES => Ok(()),
        length => Err(StoreError::InvalidKey { length }),
    }
}

impl Shared {
    /// The stored offset of revisions. Refuses data that is only half there.
    async fn offset(&self) -> Result<u64, StoreError> {
        let txn = TxnRequest {
            success: [transfer::IMPORT, transfer::OFFSET]
                .map(|name| layout::get_op(self.layout.own_key(name)))
                .to_vec(),
            ..TxnRequest::default()
        };
        let answer = self.transact(Repeat::Yes, txn).await.map_err(|status| layout::error(&status))?.value;
        let mut found = answer.responses.into_iter().map(|response| match response.response {
            Some(response_op::Response::ResponseRange(range)) => range.kvs.into_iter().next(),
            _ => None,
        });
        if let Some(mark) = found.next().flatten() {
            let source = String::from_utf8_lossy(&mark.value).into_owned();
            return Err(StoreError::Unavailable(format!(
                "the data from {source} was not wholly brought into this etcd; run the migration again"
            )));
        }
        let Some(offset) = found.next().flatten() else { return Ok(0) };
        let text = String::from_utf8_lossy(&offset.value).into_owned();
        text.parse().map_err(|_| StoreError::Corrupt {
            file: String::from_utf8_lossy(&offset.key).into_owned().into(),
            reason: format!("{text:?} is no offset of revisions"),
        })
    }

    fn check_open(&self) -> Result<(), StoreError> {
        if self.closed.load(Ordering::Acquire) { Err(closed()) } else { Ok(()) }
    }

    fn acknowledged(&self, revision: Revision) {
        self.revision.fetch_max(revision, Ordering::AcqRel);
    }

    fn header(&self, header: Option<&ResponseHeader>) -> Revision {
        let revision = header.map_or(0, |header| self.layout.revision(header.revision));
        self.acknowledged(revision);
        revision
    }

    async fn read(&self, range: RangeRequest) -> Result<RangeResponse, Status> {
        let send = |member: Member| {
            let range = range.clone();
            async move { member.kv().range(request(range)).await }
        };
        Ok(self.connection.call(Repeat::Yes, send).await?.value)
    }

    async fn transact(&self, repeat: Repeat, txn: TxnRequest) -> Result<Answer<TxnResponse>, Status> {
        let send = |member: Member| {
            let txn = txn.clone();
            async move { member.kv().txn(request(txn)).await }
        };
        self.connection.call(repeat, send).await
    }

    /// The newest revision: a linearizable read of nothing.
    async fn newest(&self) -> Result<Revision, Status> {
        let nothing = RangeRequest { count_only: true, ..layout::get(self.layout.own_key("nothing")) };
        let answer = self.read(nothing).await?;
        Ok(self.header(answer.header.as_ref()))
    }

    /// Adds the figures that etcd's errors lack.
    async fn explain(&self, status: Status) -> StoreError {
        if layout::is_compacted(&status) {
            let oldest = source::oldest(self).await.unwrap_or_else(|| self.revision.load(Ordering::Acquire));
            return StoreError::Compacted { oldest };
        }
        if layout::is_future(&status) {
            let current = self.newest().await.unwrap_or_else(|_| self.revision.load(Ordering::Acquire));
            return StoreError::Future { current };
        }
        layout::error(&status)
    }

    /// [`newest`](Shared::newest), one request for all who ask while the one before is under way.
    async fn newest_shared(self: &Arc<Self>) -> Result<Revision, Status> {
        let (sender, answer) = oneshot::channel();
        let first = {
            let mut asking = self.asking.lock();
            let first = asking.is_none();
            asking.get_or_insert_default().push(sender);
            first
        };
        if first {
            let shared = self.clone();
            tokio::spawn(async move {
                loop {
                    // Who comes later than this line may not get an answer that was under way before.
                    let waiting = {
                        let mut asking = shared.asking.lock();
                        match asking.as_mut().map(std::mem::take) {
                            Some(waiting) if !waiting.is_empty() => waiting,
                            _ => {
                                *asking = None;
                                return;
                            }
                        }
                    };
                    let newest = shared.newest().await;
                    for waiter in waiting {
                        let _ = waiter.send(newest.clone());
                    }
                }
            });
        }
        answer.await.unwrap_or_else(|_| Err(Status::cancelled("the store is closed")))
    }

    /// A write under a condition. The failure branch has to be a read of the key.
    async fn write(&self, put: &Put, lease: i64) -> Result<Written, Status> {
        let key = self.layout.key(&put.key);
        let compare = match put.expect {
            Expect::Any => vec![],
            Expect::Absent => vec![layout::exists(key.clone(), false)],
            Expect::Revision(revision) => vec![layout::written_at(key.clone(), self.layout.raw(revision))],
        };
        // A condition that names a revision can hold only once; a key that came to be with this very value is ours.
        let repeat = if put.expect == Expect::Any { Repeat::No } else { Repeat::Yes };
        let txn = TxnRequest {
            compare,
            success: vec![layout::put_op(key.clone(), put.value.clone(), lease)],
            failure: vec![layout::get_op(key)],
        };
        let answer = self.transact(repeat, txn).await?;
        let revision = self.header(answer.value.header.as_ref());
        if answer.value.succeeded {
            return Ok(Ok(revision));
        }
        let current = self.found(answer.value.responses);
        match current {
            Some(kv) if answer.repeated && kv.value == put.value => Ok(Ok(kv.mod_revision)),
            current => Ok(Err(current)),
        }
    }

    /// The key-value of the transaction's first answer, be it a read or a delete.
    fn found(&self, responses: Vec<pb::etcdserverpb::ResponseOp>) -> Option<KeyValue> {
        let kv = match responses.into_iter().next()?.response? {
            response_op::Response::ResponseRange(range) => range.kvs.into_iter().next(),
            response_op::Response::ResponseDeleteRange(deleted) => deleted.prev_kvs.into_iter().next(),
            _ => None,
        };
        self.layout.key_value(kv?)
    }
}

/// The write's revision, or what stood in its way.
type Written = Result<Revision, Option<KeyValue>>;

#[async_trait::async_trait]
impl Store for Etcd {
    fn revision(&self) -> Revision {
        self.shared.revision.load(Ordering::Acquire)
    }

    async fn sync(&self) -> Result<Revision, StoreError> {
        self.shared.check_open()?;
        let newest = self.shared.newest_shared().await.map_err(|status| layout::error(&status))?;
        // Revisions of other people's keys are never told to watchers: nobody may wait for them.
        self.shared.feed.reached(newest, self.shared.options.timeout).await
    }

    async fn get(&self, key: &str, at: Option<Revision>) -> Result<(Option<KeyValue>, Revision), StoreError> {
        self.shared.check_open()?;
        let revision = at.map(|at| self.shared.layout.readable(at)).transpose()?.unwrap_or(0);
        let request = RangeRequest { revision, ..layout::get(self.shared.layout.key(key)) };
        match self.shared.read(request).await {
            Ok(answer) => {
                let newest = self.shared.header(answer.header.as_ref());
                let kv = answer.kvs.into_iter().next().and_then(|kv| self.shared.layout.key_value(kv));
                Ok((kv, at.unwrap_or(newest)))
            }
            Err(status) => Err(self.shared.explain(status).await),
        }
    }

    async fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        at: Option<Revision>,
        limit: usize,
    ) -> Result<Range, StoreError> {
        self.shared.check_open()?;
        let layout = &self.shared.layout;
        let mut revision = at.map(|at| layout.readable(at)).transpose()?.unwrap_or(0);
        let mut shown = at;
        let first = layout.key(prefix);
        let range_end = layout::prefix_end(&first);
        let mut key = first;
        if let Some(after) = after {
            let mut successor = layout.key(after);
            successor.push(0);
            key = key.max(successor);
        }
        let wanted = if limit == 0 { usize::MAX } else { limit };
        let mut page = PAGE;
        let mut items = Vec::new();
        loop {
            let ask = page.min(wanted - items.len());
            let request = RangeRequest {
                key: key.clone(),
                range_end: range_end.clone(),
                limit: i64::try_from(ask).unwrap_or(i64::MAX),
                revision,
                ..RangeRequest::default()
            };
            if key >= range_end && range_end != [0] {
                // `after` lies behind the prefix.
                let shown = match shown {
                    Some(shown) => shown,
                    None => self.shared.newest().await.map_err(|status| layout::error(&status))?,
                };
                return Ok(Range { items, revision: shown, more: false, remaining: 0 });
            }
            let answer = match self.shared.read(request).await {
                Ok(answer) => answer,
                Err(status) => return Err(self.shared.explain(status).await),
            };
            let newest = self.shared.header(answer.header.as_ref());
            let shown = *shown.get_or_insert(newest);
            revision = layout.raw(shown);
            let remaining = u64::try_from(answer.count).unwrap_or(0).saturating_sub(answer.kvs.len() as u64);
            let bytes: usize = answer.kvs.iter().map(|kv| kv.value.len() + kv.key.len()).sum();
            page = if bytes > PAGE_BYTES { page / 2 } else { page * 2 }.clamp(1, LARGEST_PAGE);
            if let Some(last) = answer.kvs.last() {
                key = last.key.to_vec();
                key.push(0);
            }
            let empty = answer.kvs.is_empty();
            items.extend(answer.kvs.into_iter().filter_map(|kv| layout.key_value(kv)));
            if remaining == 0 || empty || items.len() >= wanted {
                return Ok(Range { items, revision: shown, more: remaining > 0, remaining });
            }
        }
    }

    async fn put(&self, put: Put) -> Result<Revision, StoreError> {
        self.shared.check_open()?;
        check_key(&put.key)?;
        let (size, limit) = (put.key.len() + put.value.len(), self.shared.options.entry_limit);
        if size > limit {
            return Err(StoreError::TooLarge { size, limit });
        }
        if put.expect == Expect::Revision(0) {
            // In a transaction this would mean "does not exist".
            return Err(StoreError::Conflict { current: self.get(&put.key, None).await?.0 });
        }
        let mut lost_leases = 0;
        loop {
            let lease = match put.ttl {
                None => Ok(0),
                Some(ttl) => self.shared.leases.of(&self.shared.connection, ttl).await,
            };
            let lease = lease.map_err(|status| layout::error(&status))?;
            return match self.shared.write(&put, lease).await {
                Ok(Ok(revision)) => Ok(revision),
                Ok(Err(current)) => Err(StoreError::Conflict { current }),
                Err(status) if layout::is_lost_lease(&status) && lost_leases < 3 => {
                    lost_leases += 1;
                    self.shared.leases.forget(lease).await;
                    continue;
                }
                Err(status) if layout::is_too_large(&status) => {
                    Err(StoreError::TooLarge { size, limit: size.saturating_sub(1) })
                }
                Err(status) => Err(layout::error(&status)),
            };
        }
    }

    async fn delete(&self, delete: Delete) -> Result<(Revision, KeyValue), StoreError> {
        self.shared.check_open()?;
        check_key(&delete.key)?;
        let key = self.shared.layout.key(&delete.key);
        let compare = match delete.expect {
            Expect::Any => layout::exists(key.clone(), true),
            Expect::Revision(revision) if revision > 0 => {
                layout::written_at(key.clone(), self.shared.layout.raw(revision))
            }
            Expect::Absent | Expect::Revision(_) => {
                return Err(StoreError::Conflict { current: self.get(&delete.key, None).await?.0 });
            }
        };
        let remove = DeleteRangeRequest { key: key.clone(), prev_kv: true, ..DeleteRangeRequest::default() };
        let txn = TxnRequest {
            compare: vec![compare],
            success: vec![RequestOp { request: Some(request_op::Request::RequestDeleteRange(remove)) }],
            failure: vec![layout::get_op(key)],
        };
        let answer =
            self.shared.transact(Repeat::No, txn).await.map_err(|status| layout::error(&status))?.value;
        let revision = self.shared.header(answer.header.as_ref());
        match (answer.succeeded, self.shared.found(answer.responses)) {
            (true, Some(old)) => Ok((revision, old)),
            (_, current) => Err(StoreError::Conflict { current }),
        }
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream, StoreError> {
        self.shared.check_open()?;
        feed::watch(self.shared.clone(), prefix, from).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.shared.check_open()?;
        let raw = self.shared.layout.readable(revision)?;
        let compaction = CompactionRequest { revision: raw, physical: false };
        let send = |member: Member| async move { member.kv().compact(request(compaction)).await };
        match self.shared.connection.call(Repeat::Yes, send).await {
            Ok(_) => Ok(()),
            Err(status) => Err(self.shared.explain(status).await),
        }
    }
}
