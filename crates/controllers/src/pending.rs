//! Our own writes that the cache may not show yet. A pass that counts objects must not act on a view older than what
//! it did itself; it waits until the cache has caught up.
//!
//! This is an optimisation, not truth: after a restart the caches start from a list that has every earlier write.
use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use client::{Cache, Client, Kind};
use parking_lot::Mutex;

use crate::ownership::uid;
use crate::runner::{Failure, ObjectKey};

/// A created object that never appears was deleted before the watch told of it; after this long the API is asked.
const ASK_AFTER: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
struct Write {
    object: ObjectKey,
    uid: String,
    created: bool,
    at: Instant,
}

/// Writes by the key of the controller that made them.
pub(crate) struct Pending<K> {
    writes: Mutex<HashMap<K, Vec<Write>>>,
}

impl<K: Clone + Eq + Hash> Pending<K> {
    pub(crate) fn new() -> Self {
        Self { writes: Mutex::default() }
    }

    /// `object` was created.
    pub(crate) fn created<V: Kind>(&self, key: &K, object: &V) {
        self.note(key, object, true);
    }

    /// The API accepted the deletion of `object`.
    pub(crate) fn deleted<V: Kind>(&self, key: &K, object: &V) {
        self.note(key, object, false);
    }

    fn note<V: Kind>(&self, key: &K, object: &V, created: bool) {
        let meta = object.metadata();
        let write =
            Write { object: ObjectKey::of(meta), uid: uid(meta).to_owned(), created, at: Instant::now() };
        self.writes.lock().entry(key.clone()).or_default().push(write);
    }

    /// Forgets a key whose object is gone.
    pub(crate) fn forget(&self, key: &K) {
        self.writes.lock().remove(key);
    }

    /// Whether the cache shows all writes made for `key`. When not, an event of the missing object will come, or the
    /// caller looks again after the returned time.
    pub(crate) async fn wait<V: Kind>(
        &self,
        key: &K,
        cache: &Cache<V>,
        client: &Client,
    ) -> Result<Option<Duration>, Failure> {
        let Some(writes) = self.writes.lock().get(key).cloned() else { return Ok(None) };
        let mut open = Vec::new();
        for write in writes {
            let (ns, name) = (write.object.namespace.as_str(), write.object.name.as_str());
            let cached = cache.get(ns, name);
            let same = cached.as_ref().filter(|o| uid(o.metadata()) == write.uid);
            let shown = match (write.created, same) {
                (true, Some(_)) => true,
                (true, None) if write.at.elapsed() < ASK_AFTER => false,
                (true, None) => match client.get::<V>(ns, name).await {
                    Ok(live) => uid(live.metadata()) != write.uid,
                    Err(error) if error.is_not_found() => true,
                    Err(error) => return Err(error.into()),
                },
                (false, Some(object)) => object.metadata().deletion_timestamp.is_some(),
                (false, None) => true,
            };
            if !shown {
                open.push(write);
            }
        }
        let mut all = self.writes.lock();
        if open.is_empty() {
            all.remove(key);
            return Ok(None);
        }
        all.insert(key.clone(), open);
        Ok(Some(ASK_AFTER))
    }
}
