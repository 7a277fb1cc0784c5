//! Caches fed by watches: one per selection and view, shared by all who ask.
//!
//! A subscriber that is slow never holds up the feed and never costs unbounded memory: changes of one object
//! that it has not taken yet are folded into one, so at most a few entries per object wait. It always ends
//! with the newest state, which is all a level-triggered consumer needs.

use std::any::Any;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Weak};

use api::object::{Object, ObjectError};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Deserializer};
use tokio::sync::Notify;
use tokio::sync::watch;

use crate::index::{Index, Indexes, Property};
use crate::{Kind, Selection, Transport, WatchEvent, reflector};

/// What a cache hands out for an object.
pub trait Cached: Clone + Send + Sync + 'static {
    /// The view of a stored revision.
    fn view(object: &Arc<Object>) -> Result<Arc<Self>, ObjectError>;
}

impl<K: Kind> Cached for K {
    fn view(object: &Arc<Object>) -> Result<Arc<Self>, ObjectError> {
        object.typed::<K>()
    }
}

/// An object of any kind of which only its type is read, and of its metadata what tells it from others and ties it to them:
/// there is one of each object in a cluster. Labels, annotations and who owns its fields are left out.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PartialObject {
    /// For example `apps/v1`.
    #[serde(default)]
    pub api_version: String,
    /// For example `Deployment`.
    #[serde(default)]
    pub kind: String,
    /// The metadata.
    #[serde(default, deserialize_with = "identity_and_ties")]
    pub metadata: ObjectMeta,
}

fn identity_and_ties<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    /// What is read; anything else is passed over without being built.
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Slim {
        creation_timestamp: Option<Time>,
        deletion_grace_period_seconds: Option<i64>,
        deletion_timestamp: Option<Time>,
        finalizers: Option<Vec<String>>,
        generation: Option<i64>,
        name: Option<String>,
        namespace: Option<String>,
        owner_references: Option<Vec<OwnerReference>>,
        resource_version: Option<String>,
        uid: Option<String>,
    }
    let slim = Slim::deserialize(deserializer)?;
    Ok(ObjectMeta {
        creation_timestamp: slim.creation_timestamp,
        deletion_grace_period_seconds: slim.deletion_grace_period_seconds,
        deletion_timestamp: slim.deletion_timestamp,
        finalizers: slim.finalizers,
        generation: slim.generation,
        name: slim.name,
        namespace: slim.namespace,
        owner_references: slim.owner_references,
        resource_version: slim.resource_version,
        uid: slim.uid,
        ..ObjectMeta::default()
    })
}

impl Cached for PartialObject {
    fn view(object: &Arc<Object>) -> Result<Arc<Self>, ObjectError> {
        serde_json::from_slice(object.json()).map(Arc::new).map_err(ObjectError::Syntax)
    }
}

/// A change of one object.
#[derive(Debug, Clone)]
pub enum Change<V> {
    /// New in the cache.
    Added(Arc<V>),
    /// Changed.
    Modified {
        /// The state the subscriber knew.
        old: Arc<V>,
        /// The state now.
        new: Arc<V>,
    },
    /// Gone; this was the last state.
    Deleted(Arc<V>),
}

impl<V> Change<V> {
    /// The newest state that the change tells of.
    pub fn object(&self) -> &Arc<V> {
        match self {
            Change::Added(object) | Change::Deleted(object) | Change::Modified { new: object, .. } => object,
        }
    }
}

/// Namespace and name, with a zero byte between them: so they sort by namespace, then by name.
pub(crate) type Key = Arc<str>;

fn key(ns: &str, name: &str) -> Key {
    format!("{ns}\0{name}").into()
}

struct Entry<V> {
    uid: Box<str>,
    revision: u64,
    view: Arc<V>,
}

/// The state behind all handles of one cache.
pub(crate) struct Inner<V> {
    entries: RwLock<BTreeMap<Key, Entry<V>>>,
    indexes: Indexes<V>,
    subscribers: Mutex<Vec<Weak<Subscriber<V>>>>,
    synced: watch::Sender<bool>,
}

impl<V: Cached> Inner<V> {
    /// Brings the cache to the state of a full list.
    pub(crate) fn replace(&self, items: Vec<Arc<Object>>) {
        let mut list = self.list();
        for item in &items {
            list.put(item);
        }
        list.complete();
    }

    /// A full list begins, which is taken over as it comes.
    pub(crate) fn list(&self) -> Listing<'_, V> {
        Listing { unseen: self.entries.read().keys().cloned().collect(), inner: self }
    }

    /// Takes over one watch event.
    pub(crate) fn event(&self, event: &WatchEvent) {
        match event {
            WatchEvent::Applied(object) => self.put(object),
            WatchEvent::Deleted(object) => self.remove(&key_of(object)),
            WatchEvent::Bookmark(_) => {}
        }
    }

    fn put(&self, object: &Arc<Object>) {
        let view = match V::view(object) {
            Ok(view) => view,
            Err(error) => {
                tracing::error!(
                    ?object,
                    error = &error as &dyn std::error::Error,
                    "object left out of the cache"
                );
                return;
            }
        };
        let mut entries = self.entries.write();
        let key = key_of(object);
        if entries.get(&key).is_some_and(|e| e.revision == object.revision() && *e.uid == *object.uid()) {
            return;
        }
        let entry = Entry { uid: object.uid().into(), revision: object.revision(), view: view.clone() };
        let old = entries.insert(key.clone(), entry);
        self.indexes.change(&key, old.as_ref().map(|old| &*old.view), Some(&view));
        match old {
            Some(old) if *old.uid == *object.uid() => {
                self.tell(&key, Change::Modified { old: old.view, new: view }, true);
            }
            // the same name, but another object: whoever holds state by uid must see both halves
            Some(old) => {
                self.tell(&key, Change::Deleted(old.view), true);
                self.tell(&key, Change::Added(view), false);
            }
            None => self.tell(&key, Change::Added(view), false),
        }
    }

    fn remove(&self, key: &Key) {
        let mut entries = self.entries.write();
        if let Some(old) = entries.remove(key) {
            self.indexes.change(key, Some(&old.view), None);
            self.tell(key, Change::Deleted(old.view), true);
        }
    }

    /// Called under the write lock of `entries`, so that all subscribers see one order.
    fn tell(&self, key: &Key, change: Change<V>, fold: bool) {
        self.subscribers.lock().retain(|subscriber| {
            let Some(subscriber) = subscriber.upgrade() else { return false };
            subscriber.push(key, change.clone(), fold);
            true
        });
    }
}

fn key_of(object: &Object) -> Key {
    key(object.namespace().unwrap_or_default(), object.name())
}

/// A list that is being taken over.
pub(crate) struct Listing<'a, V> {
    inner: &'a Inner<V>,
    /// What the cache held before and the list has not named yet.
    unseen: HashSet<Key>,
}

impl<V: Cached> Listing<'_, V> {
    /// Takes over an object of the list.
    pub(crate) fn put(&mut self, object: &Arc<Object>) {
        self.unseen.remove(&key_of(object));
        self.inner.put(object);
    }

    /// What the list did not name is gone.
    pub(crate) fn complete(self) {
        for key in &self.unseen {
            self.inner.remove(key);
        }
        self.inner.synced.send_replace(true);
    }
}

/// Room for so many changes is kept; the replay at the beginning takes much more, once.
const SPARE: usize = 64;

struct Subscriber<V> {
    /// Coming, changes and going of an object are not folded into one.
    closely: bool,
    waiting: Mutex<Waiting<V>>,
    wake: Notify,
}

struct Waiting<V> {
    order: VecDeque<Key>,
    changes: HashMap<Key, VecDeque<Change<V>>>,
}

impl<V> Subscriber<V> {
    fn push(&self, key: &Key, change: Change<V>, fold: bool) {
        let mut waiting = self.waiting.lock();
        let Waiting { order, changes } = &mut *waiting;
        let list = changes.entry(key.clone()).or_default();
        if list.is_empty() {
            order.push_back(key.clone());
        }
        let loosely = fold && !self.closely;
        match (list.pop_back(), change) {
            (Some(Change::Added(_)), Change::Modified { new, .. }) if loosely => {
                list.push_back(Change::Added(new))
            }
            (Some(Change::Modified { old, .. }), Change::Modified { new, .. }) if fold => {
                list.push_back(Change::Modified { old, new });
            }
            (Some(Change::Modified { .. }), Change::Deleted(last)) if loosely => {
                list.push_back(Change::Deleted(last));
            }
            // came and went unseen: nothing to tell
            (Some(Change::Added(_)), Change::Deleted(_)) if loosely => {}
            (earlier, change) => {
                list.extend(earlier);
                list.push_back(change);
            }
        }
        drop(waiting);
        self.wake.notify_one();
    }

    fn pop(&self) -> Option<Change<V>> {
        let mut waiting = self.waiting.lock();
        let Waiting { order, changes } = &mut *waiting;
        if order.is_empty() && changes.capacity() > SPARE {
            *order = VecDeque::new();
            *changes = HashMap::new();
        }
        while let Some(key) = order.pop_front() {
            let Some(list) = changes.get_mut(&key) else { continue };
            let change = list.pop_front();
            if list.is_empty() {
                changes.remove(&key);
            } else {
                order.push_front(key);
            }
            if change.is_some() {
                return change;
            }
        }
        None
    }
}

/// The changes of a cache from the moment of subscribing, after a replay of what it held then.
pub struct Changes<V> {
    subscriber: Arc<Subscriber<V>>,
    /// Keeps the cache, and with it the feed, alive.
    _cache: Cache<V>,
}

impl<V> Changes<V> {
    /// The next change; waits for one. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Change<V>> {
        loop {
            if let Some(change) = self.subscriber.pop() {
                return Some(change);
            }
            self.subscriber.wake.notified().await;
        }
    }

    /// A change that waits already.
    pub fn try_next(&mut self) -> Option<Change<V>> {
        self.subscriber.pop()
    }
}

/// A handle of a cache; clone it freely. The watch ends with the last handle.
pub struct Cache<V> {
    inner: Arc<Inner<V>>,
    _feed: Arc<Feed>,
}

impl<V> Clone for Cache<V> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), _feed: self._feed.clone() }
    }
}

/// A cache's objects by one of their properties.
pub struct By<V> {
    cache: Cache<V>,
    index: Arc<Index<V>>,
}

impl<V> By<V> {
    /// Those that have this value, by namespace and name; none for an empty one.
    pub fn list(&self, value: &str) -> Vec<Arc<V>> {
        let entries = self.cache.inner.entries.read();
        let keys = self.index.keys_of(value);
        keys.iter().filter_map(|key| entries.get(key).map(|e| e.view.clone())).collect()
    }
}

struct Feed(tokio::task::AbortHandle);

impl Drop for Feed {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<V: Cached> Cache<V> {
    /// Waits until the cache holds a full list.
    pub async fn synced(&self) {
        // the sender lives as long as `inner`, so waiting cannot fail
        let _ = self.inner.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// Whether the cache holds a full list by now.
    pub fn is_synced(&self) -> bool {
        *self.inner.synced.borrow()
    }

    /// One object; `ns` is empty for cluster-scoped kinds.
    pub fn get(&self, ns: &str, name: &str) -> Option<Arc<V>> {
        self.inner.entries.read().get(&key(ns, name)).map(|e| e.view.clone())
    }

    /// All objects, by namespace and name.
    pub fn list(&self) -> Vec<Arc<V>> {
        self.inner.entries.read().values().map(|e| e.view.clone()).collect()
    }

    /// All objects of a namespace, by name.
    pub fn list_ns(&self, ns: &str) -> Vec<Arc<V>> {
        let entries = self.inner.entries.read();
        let from = key(ns, "");
        let of_ns = entries.range(from.clone()..).take_while(|(k, _)| k.starts_with(&*from));
        of_ns.map(|(_, e)| e.view.clone()).collect()
    }

    /// Lists by a property of the objects, such as the node of pods, from now on without a walk over all of them. Who asks for the
    /// same property shares one index.
    pub fn by(&self, property: Property<V>) -> By<V> {
        // nothing may change between the first look and the entry among the indexes
        let entries = self.inner.entries.write();
        let index = self.inner.indexes.of(property, || {
            let index = Index::new(property);
            entries.iter().for_each(|(key, entry)| index.change(key, None, Some(&entry.view)));
            index
        });
        By { cache: self.clone(), index }
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.inner.entries.read().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All that is in the cache as `Added`, then every change.
    pub fn subscribe(&self) -> Changes<V> {
        self.subscribe_as(false)
    }

    /// The same for those who look into the cache beside listening: what they saw there is told of when it changes or goes,
    /// also where they had not taken the change that brought it.
    pub fn subscribe_closely(&self) -> Changes<V> {
        self.subscribe_as(true)
    }

    fn subscribe_as(&self, closely: bool) -> Changes<V> {
        let entries = self.inner.entries.read();
        let mut order = VecDeque::with_capacity(entries.len());
        let mut changes = HashMap::with_capacity(entries.len());
        for (key, entry) in entries.iter() {
            order.push_back(key.clone());
            changes.insert(key.clone(), VecDeque::from([Change::Added(entry.view.clone())]));
        }
        let subscriber = Arc::new(Subscriber {
            closely,
            waiting: Mutex::new(Waiting { order, changes }),
            wake: Notify::new(),
        });
        self.inner.subscribers.lock().push(Arc::downgrade(&subscriber));
        Changes { subscriber, _cache: self.clone() }
    }
}

/// One cache per selection and view; made at first use, shared afterwards.
pub struct Caches {
    transport: Arc<dyn Transport>,
    known: Mutex<HashMap<(Selection, std::any::TypeId), Box<dyn Any + Send + Sync>>>,
}

impl Caches {
    pub(crate) fn new(transport: Arc<dyn Transport>) -> Self {
        Self { transport, known: Mutex::default() }
    }

    /// The cache of a kind, all namespaces. Must be called within a tokio runtime.
    pub fn of<K: Kind>(&self) -> Cache<K> {
        self.of_selected("")
    }

    /// The cache of those objects of a kind that a field selector selects.
    pub fn of_selected<K: Kind>(&self, field_selector: &str) -> Cache<K> {
        self.of_view::<K, K>(field_selector)
    }

    /// The cache of what `V` reads of those objects of a kind.
    pub(crate) fn of_view<K: Kind, V: Cached>(&self, field_selector: &str) -> Cache<V> {
        self.select(Selection {
            group: K::GROUP.to_owned(),
            version: K::VERSION.to_owned(),
            plural: K::URL_PATH_SEGMENT.to_owned(),
            namespace: String::new(),
            field_selector: field_selector.to_owned(),
            label_selector: String::new(),
        })
    }

    /// The cache of type and metadata of any kind.
    pub fn metadata(&self, group: &str, version: &str, plural: &str) -> Cache<PartialObject> {
        self.select(Selection {
            group: group.to_owned(),
            version: version.to_owned(),
            plural: plural.to_owned(),
            namespace: String::new(),
            field_selector: String::new(),
            label_selector: String::new(),
        })
    }

    /// The cache of an arbitrary selection.
    pub fn select<V: Cached>(&self, selection: Selection) -> Cache<V> {
        let id = (selection.clone(), std::any::TypeId::of::<V>());
        let mut known = self.known.lock();
        if let Some(slot) = known.get(&id).and_then(|c| c.downcast_ref::<(Weak<Inner<V>>, Weak<Feed>)>())
            && let (Some(inner), Some(feed)) = (slot.0.upgrade(), slot.1.upgrade())
        {
            return Cache { inner, _feed: feed };
        }
        let inner = Arc::new(Inner {
            entries: RwLock::default(),
            indexes: Indexes::default(),
            subscribers: Mutex::default(),
            synced: watch::Sender::new(false),
        });
        let task = tokio::spawn(reflector::run(self.transport.clone(), selection, inner.clone()));
        let feed = Arc::new(Feed(task.abort_handle()));
        known.insert(id, Box::new((Arc::downgrade(&inner), Arc::downgrade(&feed))));
        Cache { inner, _feed: feed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;

    fn object(name: &str, uid: &str, revision: u64) -> Arc<Object> {
        let json = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": "d", "uid": uid, "resourceVersion": revision.to_string()}});
        Arc::new(Object::from_json(json.to_string().into(), revision).unwrap())
    }

    fn cache() -> Cache<ConfigMap> {
        let inner = Arc::new(Inner {
            entries: RwLock::default(),
            indexes: Indexes::default(),
            subscribers: Mutex::default(),
            synced: watch::Sender::new(false),
        });
        Cache { inner, _feed: Arc::new(Feed(tokio::spawn(async {}).abort_handle())) }
    }

    #[test]
    fn a_partial_object_keeps_who_it_is_and_what_it_is_tied_to() {
        let json = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"k": "v"}, "metadata": {
            "creationTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 3,
            "deletionTimestamp": "2026-01-01T00:00:01Z", "finalizers": ["f"], "generation": 7,
            "name": "n", "namespace": "d", "resourceVersion": "5", "uid": "u",
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "o", "uid": "x"}]}});
        let mut whole = json.clone();
        whole["metadata"]["managedFields"] =
            serde_json::json!([{"manager": "m", "fieldsV1": {"f:data": {}}}]);
        whole["metadata"]["labels"] = serde_json::json!({"l": "2"});
        whole["metadata"]["annotations"] = serde_json::json!({"a": "1"});
        let object = Arc::new(Object::from_json(whole.to_string().into(), 5).unwrap());
        let partial = PartialObject::view(&object).unwrap();
        assert_eq!(serde_json::to_value(&partial.metadata).unwrap(), json["metadata"]);
        assert_eq!((partial.api_version.as_str(), partial.kind.as_str()), ("v1", "ConfigMap"));
    }

    fn drain(changes: &mut Changes<ConfigMap>) -> Vec<String> {
        std::iter::from_fn(|| changes.try_next())
            .map(|c| {
                let what = match &c {
                    Change::Added(_) => "added",
                    Change::Modified { .. } => "modified",
                    Change::Deleted(_) => "deleted",
                };
                let meta = &c.object().metadata;
                format!("{what} {} {}", meta.name.as_deref().unwrap(), meta.uid.as_deref().unwrap())
            })
            .collect()
    }

    #[tokio::test]
    async fn a_slow_subscriber_sees_folded_changes_and_the_newest_state() {
        let cache = cache();
        cache.inner.replace(vec![object("a", "1", 1)]);
        let mut changes = cache.subscribe();
        cache.inner.event(&WatchEvent::Applied(object("a", "1", 2)));
        cache.inner.event(&WatchEvent::Applied(object("b", "2", 3)));
        cache.inner.event(&WatchEvent::Deleted(object("b", "2", 4)));
        assert_eq!(drain(&mut changes), ["added a 1"]);
        cache.inner.event(&WatchEvent::Applied(object("a", "1", 5)));
        cache.inner.event(&WatchEvent::Deleted(object("a", "1", 6)));
        assert_eq!(drain(&mut changes), ["deleted a 1"]);
    }

    #[tokio::test]
    async fn who_looks_into_the_cache_is_told_of_all_that_was_there() {
        let cache = cache();
        cache.inner.replace(vec![object("a", "1", 1), object("b", "2", 1)]);
        let mut changes = cache.subscribe_closely();
        for revision in 2..4 {
            cache.inner.event(&WatchEvent::Applied(object("a", "1", revision)));
        }
        for (name, uid) in [("a", "1"), ("b", "2")] {
            cache.inner.event(&WatchEvent::Deleted(object(name, uid, 5)));
        }
        let mut told = drain(&mut changes);
        told.sort();
        assert_eq!(told, ["added a 1", "added b 2", "deleted a 1", "deleted b 2", "modified a 1"]);
    }

    #[tokio::test]
    async fn a_namespace_is_listed_without_those_whose_names_begin_alike() {
        let cache = cache();
        cache.inner.replace(vec![object("b", "1", 1), object("a", "2", 2)]);
        let names =
            |ns: &str| cache.list_ns(ns).iter().filter_map(|o| o.metadata.name.clone()).collect::<Vec<_>>();
        assert_eq!(
            (names("d"), names(""), names("d-")),
            (vec!["a".to_owned(), "b".to_owned()], vec![], vec![])
        );
        assert!(cache.get("d", "a").is_some() && cache.get("", "a").is_none());
    }

    #[tokio::test]
    async fn a_recreated_object_is_told_as_deleted_and_added() {
        let cache = cache();
        cache.inner.replace(vec![object("a", "1", 1)]);
        let mut changes = cache.subscribe();
        assert_eq!(drain(&mut changes), ["added a 1"]);
        cache.inner.replace(vec![object("a", "2", 2)]);
        assert_eq!(drain(&mut changes), ["deleted a 1", "added a 2"]);
        cache.inner.replace(vec![]);
        assert_eq!(drain(&mut changes), ["deleted a 2"]);
    }
    #[tokio::test]
    async fn lists_by_a_property_follow_every_change() {
        let cache = cache();
        cache.inner.replace(vec![object("a", "1", 1), object("b", "1", 2)]);
        let by_uid = |c: &Cache<ConfigMap>| c.by(|o| o.metadata.uid.as_deref().unwrap_or_default());
        let by = by_uid(&cache);
        let names = |value: &str| -> Vec<String> {
            by.list(value).iter().filter_map(|o| o.metadata.name.clone()).collect()
        };
        assert_eq!((names("1"), names("2")), (vec!["a".to_owned(), "b".to_owned()], vec![]));
        cache.inner.event(&WatchEvent::Applied(object("a", "2", 3)));
        cache.inner.event(&WatchEvent::Applied(object("c", "2", 4)));
        assert_eq!((names("1"), names("2")), (vec!["b".to_owned()], vec!["a".to_owned(), "c".to_owned()]));
        cache.inner.event(&WatchEvent::Deleted(object("c", "2", 5)));
        cache.inner.replace(vec![object("b", "", 6)]);
        assert_eq!((names("1"), names("2"), names("")), (vec![], vec![], vec![]));
    }
}
