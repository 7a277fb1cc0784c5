//! The watch cache: every stored object as one `Arc<Object>`, the newest changes, and the watchers.
//!
//! One task follows the store's single ordered event stream and applies it to all kinds, so one number, the
//! progress, says how far reads are: a read that must see all acknowledged writes asks the store for its
//! revision and waits until progress has reached it (no write ever waits for a reader).
//!
//! A watcher has a bounded queue; one that does not keep up is cut off and begins anew, the others do not
//! notice it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use api::kinds::{Kind, KindTable};
use api::object::Object;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::StreamExt;
use parking_lot::{Mutex, RwLock};
use store::{Event, EventKind, Store};
use tokio::sync::{mpsc, watch};

use crate::encryption::sealed;
use crate::fields;
use crate::status::{ApiError, ApiResult};

/// Changes kept per kind for watches that begin in the past.
const HISTORY: usize = 4096;
/// Batches that may wait for one watcher.
const WATCHER_QUEUE: usize = 256;
/// Objects per page when the cache is filled.
const PAGE: usize = 2000;
/// Objects by which the size of a kind's objects is estimated.
const SAMPLE: usize = 32;
/// Longest wait for a revision that is not there yet.
pub const FUTURE_WAIT: Duration = Duration::from_secs(3);

/// One change of one object.
#[derive(Debug, Clone)]
pub struct Changed {
    /// The revision of the change.
    pub revision: u64,
    /// The state after it; `None` for a deletion.
    pub new: Option<Arc<Object>>,
    /// The state before it; for a deletion the last state, with the deletion's revision.
    pub old: Option<Arc<Object>>,
}

/// What a watcher gets.
pub type Batch = Arc<[Changed]>;

/// Fields by whose values objects are found without a walk over all of them; by storage prefix.
const INDEXED: &[(&str, &str)] = &[("/registry/core/pods/", "spec.nodeName")];

/// Keys of objects by the value of one field. Whoever changes it holds the lock of the objects.
struct ByField {
    label: &'static str,
    keys: RwLock<HashMap<Box<str>, BTreeSet<Arc<str>>>>,
}

struct KindState {
    /// The revision of the last change.
    changed: AtomicU64,
    objects: RwLock<BTreeMap<Arc<str>, Arc<Object>>>,
    by_field: Option<ByField>,
    recent: Mutex<Recent>,
}

struct Recent {
    changes: VecDeque<Changed>,
    /// Changes after this revision are complete in `changes`.
    complete_after: u64,
    watchers: Vec<mpsc::Sender<Batch>>,
}

/// All kinds' caches.
pub struct WatchCache {
    /// By storage prefix.
    kinds: RwLock<HashMap<String, Arc<KindState>>>,
    progress: watch::Sender<u64>,
    store: Arc<dyn Store>,
    kind_table: KindTable,
    /// Stored values that cannot be read, by key: why.
    damaged: RwLock<BTreeMap<Arc<str>, Arc<str>>>,
    /// The server ends, and with it the store.
    ending: AtomicBool,
}

/// A list at one revision.
pub struct Listed {
    /// In key order.
    pub items: Vec<Arc<Object>>,
    /// The revision of the list.
    pub revision: u64,
}

impl WatchCache {
    /// From now on the end of the store's events is expected.
    pub fn expect_end(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }

    /// Fills the cache from the store and begins to follow it.
    pub async fn start(store: Arc<dyn Store>, kind_table: KindTable) -> Result<Arc<Self>, store::StoreError> {
        let cache = Arc::new(Self {
            kinds: RwLock::default(),
            progress: watch::Sender::new(0),
            store: store.clone(),
            kind_table,
            damaged: RwLock::default(),
            ending: AtomicBool::new(false),
        });
        let revision = cache.fill().await?;
        let stream = store.watch("/registry/", revision).await?;
        tokio::spawn(follow(Arc::downgrade(&cache), store, stream));
        Ok(cache)
    }

    async fn fill(&self) -> Result<u64, store::StoreError> {
        let mut fresh: HashMap<String, BTreeMap<Arc<str>, Arc<Object>>> = HashMap::new();
        let mut damaged = BTreeMap::new();
        let (mut after, mut at): (Option<Arc<str>>, Option<u64>) = (None, None);
        loop {
            let page = self.store.range("/registry/", after.as_deref(), at, PAGE).await?;
            at = Some(at.unwrap_or(page.revision));
            after = page.items.last().map(|kv| kv.key.clone());
            for kv in page.items {
                match object_of(&kv.key, &kv.value, kv.mod_revision) {
                    Ok(object) => {
                        fresh.entry(prefix_of(&kv.key).to_owned()).or_default().insert(kv.key, object);
                    }
                    Err(why) => {
                        damaged.insert(kv.key, why);
                    }
                }
            }
            if !page.more || after.is_none() {
                break;
            }
        }
        let revision = at.unwrap_or_default();
        let mut kinds = self.kinds.write();
        // a refill (the follower lagged) starts history and watchers anew
        kinds.clear();
        for kind in self.kind_table.all().iter().filter(|k| k.is_stored()) {
            fresh.entry(kind.storage_prefix.clone()).or_default();
        }
        for (prefix, objects) in fresh {
            let state = KindState::new(&prefix, revision, objects);
            kinds.insert(prefix, Arc::new(state));
        }
        drop(kinds);
        *self.damaged.write() = damaged;
        self.progress.send_replace(revision);
        Ok(revision)
    }

    fn kind(&self, prefix: &str) -> Arc<KindState> {
        if let Some(known) = self.kinds.read().get(prefix) {
            return known.clone();
        }
        let revision = *self.progress.borrow();
        let state = KindState::new(prefix, revision, BTreeMap::new());
        self.kinds.write().entry(prefix.to_owned()).or_insert_with(|| Arc::new(state)).clone()
    }

    fn apply(&self, batch: Vec<Event>) {
        let mut by_kind: HashMap<String, Vec<Event>> = HashMap::new();
        let Some(revision) = batch.last().map(|e| e.kv.mod_revision) else { return };
        for event in batch {
            by_kind.entry(prefix_of(&event.kv.key).to_owned()).or_default().push(event);
        }
        for (prefix, events) in by_kind {
            self.kind(&prefix).apply(events, &self.damaged);
        }
        self.progress.send_replace(revision);
    }

    /// The newest revision that reads see.
    pub fn progress(&self) -> u64 {
        *self.progress.borrow()
    }

    /// Follows the progress, for bookmarks.
    pub fn watch_progress(&self) -> watch::Receiver<u64> {
        self.progress.subscribe()
    }

    /// Waits until every write acknowledged so far is visible; the revision then.
    pub async fn fresh(&self) -> ApiResult<u64> {
        let target = self.store.sync().await.map_err(|e| ApiError::unavailable(e.to_string()))?;
        self.reach(target).await;
        Ok(target.max(self.progress()))
    }

    /// Waits for `revision`; 504 where it does not come.
    pub async fn at_least(&self, revision: u64) -> ApiResult<()> {
        if self.progress() >= revision {
            return Ok(());
        }
        match tokio::time::timeout(FUTURE_WAIT, self.reach(revision)).await {
            Ok(()) => Ok(()),
            Err(_) => Err(ApiError::future_revision(revision, self.progress())),
        }
    }

    async fn reach(&self, revision: u64) {
        // the sender lives in self: waiting cannot fail
        let _ = self.progress.subscribe().wait_for(|p| *p >= revision).await;
    }

    /// Why nothing is shown at `key`: nothing is stored there, or it cannot be read.
    pub fn absent(&self, kind: &Kind, name: &str, key: &str) -> ApiError {
        match self.damaged.read().get(key) {
            Some(why) => ApiError::internal(format!("unable to transform key {key:?}: {why}")),
            None => ApiError::not_found(kind, name),
        }
    }

    /// The keys under `prefix` whose values cannot be read.
    pub fn damaged(&self, prefix: &str) -> Vec<Arc<str>> {
        let damaged = self.damaged.read();
        let from = (Bound::Included(prefix), Bound::Unbounded);
        damaged.range::<str, _>(from).map(|(k, _)| k.clone()).take_while(|k| k.starts_with(prefix)).collect()
    }

    /// One object as the cache has it now.
    pub fn get(&self, kind: &Kind, key: &str) -> Option<Arc<Object>> {
        self.kind(&kind.storage_prefix).objects.read().get(key).cloned()
    }

    /// The revision of the last change of an object of this kind: what was derived from its objects still holds
    /// while this stays.
    pub fn changed(&self, kind: &Kind) -> u64 {
        self.kind(&kind.storage_prefix).changed.load(Ordering::Acquire)
    }

    /// How many objects of a kind there are, and how many bytes one has, by the first few.
    pub fn size_of(&self, kind: &Kind) -> (usize, usize) {
        let state = self.kind(&kind.storage_prefix);
        let objects = state.objects.read();
        let sample: Vec<usize> = objects.values().take(SAMPLE).map(|o| o.json().len()).collect();
        (objects.len(), sample.iter().sum::<usize>() / sample.len().max(1))
    }

    /// How many objects of a kind there are.
    pub fn count(&self, kind: &Kind) -> usize {
        self.kinds.read().get(&kind.storage_prefix).map_or(0, |state| state.objects.read().len())
    }

    /// How many watches see a change of an object of this kind.
    pub fn watches_of(&self, kind: &Kind) -> usize {
        self.kind(&kind.storage_prefix).recent.lock().watchers.len()
    }

    /// All objects whose key begins with `prefix` and comes after `after`, and the revision they stand for.
    pub fn list(&self, kind: &Kind, prefix: &str, after: Option<&str>) -> Listed {
        let state = self.kind(&kind.storage_prefix);
        let objects = state.objects.read();
        // progress may be ahead of what other kinds had at that moment, never ahead of this kind's own events:
        // it is published after they are applied, and the lock is held while reading it
        let revision = self.progress();
        let start = after.filter(|a| *a >= prefix).map_or(Bound::Included(prefix), Bound::Excluded);
        let items = objects
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(|(k, _)| k.starts_with(prefix))
            .map(|(_, o)| o.clone())
            .collect();
        Listed { items, revision }
    }

    /// The same of objects whose field `label` has this value; none where the field is not indexed.
    pub fn list_by(&self, kind: &Kind, prefix: &str, label: &str, value: &str) -> Option<Listed> {
        let state = self.kind(&kind.storage_prefix);
        let by_field = state.by_field.as_ref().filter(|index| index.label == label)?;
        let objects = state.objects.read();
        let revision = self.progress();
        let keys = by_field.keys.read();
        let found = keys.get(value).into_iter().flat_map(|keys| {
            keys.range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
                .take_while(|k| k.starts_with(prefix))
        });
        let items = found.filter_map(|key| objects.get(key).cloned()).collect();
        Some(Listed { items, revision })
    }

    /// Everything after `from` (`None`: the current state as if just created, then everything after it).
    ///
    /// Returns the changes that happened already, and the queue of those to come.
    pub fn watch(
        &self,
        kind: &Kind,
        from: Option<u64>,
    ) -> ApiResult<(Vec<Changed>, u64, mpsc::Receiver<Batch>)> {
        let state = self.kind(&kind.storage_prefix);
        let (sender, receiver) = mpsc::channel(WATCHER_QUEUE);
        // both locks: no event may slip between the state and the queue
        let objects = state.objects.read();
        let mut recent = state.recent.lock();
        let now = self.progress();
        let past = match from {
            None => objects
                .values()
                .map(|o| Changed { revision: o.revision(), new: Some(o.clone()), old: None })
                .collect(),
            Some(from) if from < recent.complete_after => {
                return Err(ApiError::expired(format!(
                    "too old resource version: {from} ({})",
                    recent.complete_after
                )));
            }
            Some(from) => {
                let start = recent.changes.partition_point(|c| c.revision <= from);
                recent.changes.range(start..).cloned().collect()
            }
        };
        recent.watchers.push(sender);
        Ok((past, now, receiver))
    }
}

impl ByField {
    fn change(&self, key: &Arc<str>, old: Option<&Object>, new: Option<&Object>) {
        let of = |object: &Object| object.field(self.label).unwrap_or_default().into();
        let (old, new): (Option<Box<str>>, Option<Box<str>>) = (old.map(of), new.map(of));
        if old == new {
            return;
        }
        let mut keys = self.keys.write();
        if let Some(value) = old
            && let Some(known) = keys.get_mut(&value)
        {
            known.remove(key);
            if known.is_empty() {
                keys.remove(&value);
            }
        }
        if let Some(value) = new {
            keys.entry(value).or_default().insert(key.clone());
        }
    }
}

impl KindState {
    fn new(prefix: &str, revision: u64, objects: BTreeMap<Arc<str>, Arc<Object>>) -> Self {
        let label = INDEXED.iter().find(|(of, _)| *of == prefix).map(|(_, label)| *label);
        let by_field = label.map(|label| ByField { label, keys: RwLock::default() });
        for (key, object) in &objects {
            by_field.iter().for_each(|index| index.change(key, None, Some(object)));
        }
        Self {
            changed: AtomicU64::new(revision),
            objects: RwLock::new(objects),
            by_field,
            recent: Mutex::new(Recent {
                changes: VecDeque::new(),
                complete_after: revision,
                watchers: Vec::new(),
            }),
        }
    }

    fn note(&self, key: &Arc<str>, old: Option<&Arc<Object>>, new: Option<&Arc<Object>>) {
        if let Some(index) = &self.by_field {
            index.change(key, old.map(Arc::as_ref), new.map(Arc::as_ref));
        }
    }

    fn apply(&self, events: Vec<Event>, damaged: &RwLock<BTreeMap<Arc<str>, Arc<str>>>) {
        let mut objects = self.objects.write();
        let mut changes = Vec::with_capacity(events.len());
        let last = events.last().map(|event| event.kv.mod_revision);
        for event in events {
            let revision = event.kv.mod_revision;
            if !damaged.read().is_empty() {
                damaged.write().remove(&event.kv.key);
            }
            match event.kind {
                EventKind::Put => {
                    let object = match object_of(&event.kv.key, &event.kv.value, revision) {
                        Ok(object) => object,
                        // to watchers it is gone; reads say why
                        Err(why) => {
                            damaged.write().insert(event.kv.key.clone(), why);
                            if let Some(old) = objects.remove(&event.kv.key) {
                                self.note(&event.kv.key, Some(&old), None);
                                changes.push(Changed { revision, new: None, old: Some(old) });
                            }
                            continue;
                        }
                    };
                    let old = objects.insert(event.kv.key.clone(), object.clone());
                    old.iter().for_each(|old| old.forget_views());
                    self.note(&event.kv.key, old.as_ref(), Some(&object));
                    changes.push(Changed { revision, new: Some(object), old });
                }
                EventKind::Delete => {
                    let removed = objects.remove(&event.kv.key);
                    self.note(&event.kv.key, removed.as_ref(), None);
                    let last = object_of(&event.kv.key, &event.kv.value, revision).ok().or(removed);
                    changes.push(Changed { revision, new: None, old: last });
                }
            }
        }
        // after the objects have changed: who sees the new number sees the new objects
        last.into_iter().for_each(|revision| self.changed.store(revision, Ordering::Release));
        let mut recent = self.recent.lock();
        recent.changes.extend(changes.iter().cloned());
        while recent.changes.len() > HISTORY {
            if let Some(dropped) = recent.changes.pop_front() {
                recent.complete_after = dropped.revision;
            }
        }
        let batch: Batch = changes.into();
        // a full queue means that the watcher is too slow: dropping the sender ends its watch
        recent.watchers.retain(|w| w.try_send(batch.clone()).is_ok());
    }
}

async fn follow(cache: std::sync::Weak<WatchCache>, store: Arc<dyn Store>, mut stream: store::WatchStream) {
    loop {
        match stream.next().await {
            Some(Ok(batch)) => {
                let Some(cache) = cache.upgrade() else { return };
                cache.apply(batch);
            }
            lagged => {
                let Some(cache) = cache.upgrade() else { return };
                if cache.ending.load(Ordering::Relaxed) {
                    return;
                }
                if let Some(Err(error)) = lagged {
                    tracing::warn!(error = &error as &dyn std::error::Error, "watch cache fills anew");
                }
                let again = async {
                    let revision = cache.fill().await?;
                    store.watch("/registry/", revision).await
                };
                match again.await {
                    Ok(fresh) => stream = fresh,
                    Err(error) => {
                        tracing::error!(error = &error as &dyn std::error::Error, "the store cannot be read");
                        drop(cache);
                        tokio::time::sleep(Duration::from_millis(500)).await;
                    }
                }
            }
        }
    }
}

/// `/registry/<group>/<plural>/` of a key.
fn prefix_of(key: &str) -> &str {
    match key.match_indices('/').nth(3) {
        Some((at, _)) => &key[..=at],
        None => key,
    }
}

/// The object, or why it cannot be read.
fn object_of(key: &str, value: &Bytes, revision: u64) -> Result<Arc<Object>, Arc<str>> {
    if let Some(why) = sealed::unreadable(value) {
        return Err(why.into());
    }
    match Object::from_json(with_revision(value, revision), revision) {
        Ok(object) => {
            fields::index(&object);
            Ok(Arc::new(object))
        }
        Err(error) => {
            tracing::error!(key, error = &error as &dyn std::error::Error, "stored object cannot be read");
            Err(error.to_string().into())
        }
    }
}

const METADATA: &[u8] = b"\"metadata\":{";

/// Where the members of `metadata` begin in stored JSON (`encode_stored` writes `apiVersion` and `kind`, two plain
/// texts, before it, so the first match is the right one).
pub fn metadata_at(stored: &[u8]) -> Option<usize> {
    stored.windows(METADATA.len()).position(|w| w == METADATA)
}

/// Stored JSON with `metadata.resourceVersion` put in.
pub fn with_revision(stored: &[u8], revision: u64) -> Bytes {
    let Some(at) = metadata_at(stored) else { return Bytes::copy_from_slice(stored) };
    let at = at + METADATA.len();
    let mut out = BytesMut::with_capacity(stored.len() + 40);
    out.put_slice(&stored[..at]);
    out.put_slice(format!("\"resourceVersion\":\"{revision}\"").as_bytes());
    if stored.get(at) != Some(&b'}') {
        out.put_u8(b',');
    }
    out.put_slice(&stored[at..]);
    out.freeze()
}

/// The stored form of an object: JSON that begins with `apiVersion`, `kind` and `metadata`, without
/// `metadata.resourceVersion` (the revision of the key is the truth).
pub fn encode_stored(object: &serde_json::Value) -> Bytes {
    let mut out = Vec::with_capacity(1024);
    member(&mut out, "apiVersion", &object["apiVersion"]);
    member(&mut out, "kind", &object["kind"]);
    match object["metadata"].as_object() {
        Some(metadata) => {
            out.push(b',');
            out.extend_from_slice(METADATA);
            for (name, value) in metadata.iter().filter(|(name, _)| *name != "resourceVersion") {
                member(&mut out, name, value);
            }
            out.push(b'}');
        }
        None => member(&mut out, "metadata", &object["metadata"]),
    }
    for (name, value) in object.as_object().into_iter().flatten() {
        if !matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
            member(&mut out, name, value);
        }
    }
    out.push(b'}');
    // it stays as long as the object
    out.shrink_to_fit();
    Bytes::from(out)
}

fn member(out: &mut Vec<u8>, name: &str, value: &serde_json::Value) {
    match out.last() {
        None => out.push(b'{'),
        Some(b'{') => {}
        Some(_) => out.push(b','),
    }
    // writing JSON to memory cannot fail
    let _ = serde_json::to_writer(&mut *out, name);
    out.push(b':');
    let _ = serde_json::to_writer(&mut *out, value);
}

/// Whether two states of an object are stored as the same bytes.
pub fn is_stored_alike(a: &serde_json::Value, b: &serde_json::Value) -> bool {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else { return a == b };
    let others_alike = |a: &Members, b: &Members, but: &str| {
        let count = |m: &Members| m.len() - usize::from(m.contains_key(but));
        count(a) == count(b) && a.iter().all(|(name, value)| name == but || b.get(name) == Some(value))
    };
    let metadata_alike = match (a.get("metadata"), b.get("metadata")) {
        (Some(serde_json::Value::Object(a)), Some(serde_json::Value::Object(b))) => {
            others_alike(a, b, "resourceVersion")
        }
        (a, b) => a == b,
    };
    metadata_alike && others_alike(a, b, "metadata")
}

type Members = serde_json::Map<String, serde_json::Value>;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn stored_json_carries_no_revision_and_gets_it_back() {
        let object = json!({"kind": "ConfigMap", "apiVersion": "v1", "data": {"metadata": "{"},
            "metadata": {"name": "a", "resourceVersion": "7"}});
        let stored = encode_stored(&object);
        assert_eq!(
            String::from_utf8_lossy(&stored),
            r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"metadata":"{"}}"#
        );
        let back: serde_json::Value = serde_json::from_slice(&with_revision(&stored, 7)).unwrap();
        assert_eq!(back, object);
    }
}
