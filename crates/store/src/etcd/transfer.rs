//! The whole content of an etcd store, out of it and into an empty one.
//!
//! An import begins by writing a mark and ends by removing it; in between [`Etcd::open`] refuses, and the same import may be begun
//! again. Revisions continue above the source's: the offset is stored beside the data.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tonic::Status;

use super::connection::{Connection, Member, Repeat, request};
use super::feed::Feed;
use super::layout::{self, Layout};
use super::leases::Leases;
use super::pb::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, LeaseTimeToLiveRequest, RangeRequest, RequestOp, TxnRequest,
    request_op,
};
use super::pb::mvccpb;
use super::{Etcd, Options, Shared};
use crate::transfer::{Entry, Snapshot};
use crate::{Revision, StoreError};

/// Where the offset of revisions is kept.
pub(super) const OFFSET: &str = "revision-offset";
/// The mark of an unfinished import: its source.
pub(super) const IMPORT: &str = "import";
/// Writes at the same time.
const PARALLEL: usize = 64;
/// Writes that are prepared together.
const CHUNK: usize = 4096;
/// Keys per page.
const PAGE: i64 = 500;

impl Etcd {
    /// All keys at one revision, while reads and writes go on.
    pub async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        let shared = &self.shared;
        let mut revision = 0;
        let mut entries = Vec::new();
        for tree in shared.layout.trees() {
            entries.extend(export(shared, tree, &mut revision).await?);
        }
        entries.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(Snapshot { revision: shared.layout.revision(revision), entries })
    }

    /// The servers that stand on this data now.
    pub async fn servers(&self) -> Result<Vec<String>, StoreError> {
        super::presence::servers(&self.shared).await
    }
}

/// The keys of one tree at `revision` (0: now, and it is set).
async fn export(shared: &Shared, tree: Vec<u8>, revision: &mut i64) -> Result<Vec<Entry>, StoreError> {
    let range_end = layout::prefix_end(&tree);
    let mut key = tree;
    let mut leases: HashMap<i64, Option<u64>> = HashMap::new();
    let mut entries = Vec::new();
    loop {
        let page = RangeRequest {
            range_end: range_end.clone(),
            limit: PAGE,
            revision: *revision,
            ..layout::get(key.clone())
        };
        let answer = match shared.read(page).await {
            Ok(answer) => answer,
            Err(status) => return Err(shared.explain(status).await),
        };
        if *revision == 0 {
            *revision = answer.header.map_or(0, |header| header.revision);
        }
        let Some(last) = answer.kvs.last() else { break };
        key = last.key.to_vec();
        key.push(0);
        for kv in answer.kvs {
            let expires_at = match leases.get(&kv.lease) {
                Some(known) => *known,
                None => {
                    let end = lease_end(shared, kv.lease).await.map_err(|status| layout::error(&status))?;
                    leases.insert(kv.lease, end);
                    end
                }
            };
            entries.extend(entry(&shared.layout, kv, expires_at));
        }
        if !answer.more {
            break;
        }
    }
    Ok(entries)
}

fn entry(layout: &Layout, kv: mvccpb::KeyValue, expires_at: Option<u64>) -> Option<Entry> {
    let kv = layout.key_value(kv)?;
    Some(Entry {
        key: kv.key,
        value: kv.value,
        mod_revision: kv.mod_revision,
        create_revision: kv.create_revision,
        expires_at,
    })
}

/// When a lease ends, in milliseconds since the epoch.
async fn lease_end(shared: &Shared, id: i64) -> Result<Option<u64>, Status> {
    if id == 0 {
        return Ok(None);
    }
    let ask = LeaseTimeToLiveRequest { id, keys: false };
    let send = |member: Member| async move { member.lease().lease_time_to_live(request(ask)).await };
    let left = shared.connection.call(Repeat::Yes, send).await?.value.ttl.max(0);
    Ok(Some(now_millis() + left as u64 * 1000))
}

fn now_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Fills an empty etcd with this content and checks it. `source` names where it comes from; an import of the same source that
/// was cut off is begun again. Nothing at or below `above` can be read or watched from afterwards. Returns the new revision.
///
/// Errors: [`StoreError::Unavailable`] when there is other data, servers run on it, or what was written is not what is read.
pub async fn create(
    options: Options,
    snapshot: &Snapshot,
    above: Revision,
    source: &str,
) -> Result<Revision, StoreError> {
    let refuse = |why: String| Err(StoreError::Unavailable(why));
    let mut shared = Shared::new(options)?;
    let found = shared.read(layout::get(shared.layout.own_key(IMPORT))).await;
    let found = found.map_err(|status| layout::error(&status))?.kvs;
    if let Some(mark) = found.first() {
        let begun = String::from_utf8_lossy(&mark.value).into_owned();
        if begun != source {
            return refuse(format!(
                "an import from {begun} was begun here and not finished; finish that, or remove its keys"
            ));
        }
        tracing::info!(source, "an import that was cut off begins again");
    } else {
        let servers = super::presence::servers(&shared).await?;
        if !servers.is_empty() {
            return refuse(format!("servers run on this etcd: {}", servers.join(", ")));
        }
        for tree in shared.layout.trees() {
            let range_end = layout::prefix_end(&tree);
            let count = RangeRequest { range_end, count_only: true, ..layout::get(tree) };
            let count = shared.read(count).await.map_err(|status| layout::error(&status))?.count;
            if count > 0 {
                return refuse(format!(
                    "this etcd holds {count} keys of a cluster already; another --datastore-prefix keeps them apart"
                ));
            }
        }
    }
    let now = shared.newest().await.map_err(|status| layout::error(&status))?;
    // Every new revision lies above the source's.
    let offset = snapshot.revision.max(above).saturating_sub(now);
    let begin = TxnRequest {
        success: std::iter::once(layout::put_op(shared.layout.own_key(IMPORT), source.to_owned().into(), 0))
            .chain([layout::put_op(shared.layout.own_key(OFFSET), offset.to_string().into(), 0)])
            .chain(shared.layout.trees().map(|tree| {
                let range_end = layout::prefix_end(&tree);
                let all = DeleteRangeRequest { key: tree, range_end, ..DeleteRangeRequest::default() };
                RequestOp { request: Some(request_op::Request::RequestDeleteRange(all)) }
            }))
            .collect(),
        ..TxnRequest::default()
    };
    shared.transact(Repeat::Yes, begin).await.map_err(|status| layout::error(&status))?;
    shared.layout.offset = offset;
    for chunk in snapshot.entries.chunks(CHUNK) {
        let writes: Vec<_> = chunk.iter().map(|entry| write(&shared, entry)).collect();
        let written = stream::iter(writes).buffer_unordered(PARALLEL).try_collect::<()>().await;
        written.map_err(|status| layout::error(&status))?;
    }

    let mut revision = 0;
    let mut written = Snapshot::default();
    for tree in shared.layout.trees() {
        written.entries.extend(export(&shared, tree, &mut revision).await?);
    }
    written.entries.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    // What expires meanwhile may be gone.
    let mut expected = snapshot.clone();
    let there: std::collections::HashSet<_> = written.entries.iter().map(|entry| entry.key.clone()).collect();
    expected.entries.retain(|entry| entry.expires_at.is_none() || there.contains(&entry.key));
    if written.entries.len() != expected.entries.len() || written.checksum() != expected.checksum() {
        return refuse(format!(
            "{} keys were to be written, {} are there, and they differ; run it again",
            expected.entries.len(),
            written.entries.len()
        ));
    }
    // Nobody may be told the import as a history.
    let compaction = CompactionRequest { revision, physical: false };
    let send = |member: Member| async move { member.kv().compact(request(compaction)).await };
    match shared.connection.call(Repeat::Yes, send).await {
        Ok(_) => {}
        Err(status) if layout::is_compacted(&status) => {}
        Err(status) => return Err(layout::error(&status)),
    }
    let key = shared.layout.own_key(IMPORT);
    let end = DeleteRangeRequest { key, ..DeleteRangeRequest::default() };
    let end = TxnRequest {
        success: vec![RequestOp { request: Some(request_op::Request::RequestDeleteRange(end)) }],
        ..TxnRequest::default()
    };
    shared.transact(Repeat::Yes, end).await.map_err(|status| layout::error(&status))?;
    shared.newest().await.map_err(|status| layout::error(&status))
}

async fn write(shared: &Shared, entry: &Entry) -> Result<(), Status> {
    let mut lease = 0;
    if let Some(end) = entry.expires_at {
        let left = Duration::from_millis(end.saturating_sub(now_millis()));
        // The whole minute above, so that many share one.
        let minutes = left.as_secs() / 60 + 1;
        lease = shared.leases.of(&shared.connection, Duration::from_secs(minutes * 60)).await?;
    }
    let put = layout::put_op(shared.layout.key(&entry.key), entry.value.clone(), lease);
    // Twice the same value is the same.
    shared.transact(Repeat::Yes, TxnRequest { success: vec![put], ..TxnRequest::default() }).await.map(drop)
}

impl Shared {
    pub(super) fn new(options: Options) -> Result<Shared, StoreError> {
        Ok(Shared {
            layout: Layout::new(&options.prefix),
            connection: Connection::new(&options)?,
            leases: Leases::default(),
            feed: Feed::new(),
            revision: Default::default(),
            closed: Default::default(),
            asking: Default::default(),
            options,
        })
    }
}
