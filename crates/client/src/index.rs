//! Objects of a cache by one of their properties, where a walk over all of them would cost too much.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::RwLock;

use crate::cache::Key;

/// Reads the property; empty: the object is in no list.
pub type Property<V> = fn(&V) -> &str;

/// The keys of a cache's objects by one property. Whoever changes it holds the lock of the cache's objects.
pub(crate) struct Index<V> {
    pub(crate) of: Property<V>,
    keys: RwLock<HashMap<Box<str>, BTreeSet<Key>>>,
}

impl<V> Index<V> {
    pub(crate) fn new(of: Property<V>) -> Self {
        Self { of, keys: RwLock::default() }
    }

    /// Takes over that the object at `key` came, changed or went.
    pub(crate) fn change(&self, key: &Key, old: Option<&V>, new: Option<&V>) {
        let (old, new) = (old.map_or("", self.of), new.map_or("", self.of));
        if old == new {
            return;
        }
        let mut keys = self.keys.write();
        if let Some(list) = keys.get_mut(old) {
            list.remove(key);
            if list.is_empty() {
                keys.remove(old);
            }
        }
        if !new.is_empty() {
            keys.entry(new.into()).or_default().insert(key.clone());
        }
    }

    /// The keys of those that have this value, by namespace and name.
    pub(crate) fn keys_of(&self, value: &str) -> Vec<Key> {
        self.keys.read().get(value).into_iter().flatten().cloned().collect()
    }
}

/// The indexes of a cache: few, and made at the start.
pub(crate) struct Indexes<V>(RwLock<Vec<Arc<Index<V>>>>);

impl<V> Default for Indexes<V> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<V> Indexes<V> {
    pub(crate) fn change(&self, key: &Key, old: Option<&V>, new: Option<&V>) {
        self.0.read().iter().for_each(|index| index.change(key, old, new));
    }

    /// The index of this property; made by `make` where it is not there.
    pub(crate) fn of(&self, property: Property<V>, make: impl FnOnce() -> Index<V>) -> Arc<Index<V>> {
        let mut all = self.0.write();
        if let Some(known) = all.iter().find(|index| std::ptr::fn_addr_eq(index.of, property)) {
            return known.clone();
        }
        let index = Arc::new(make());
        all.push(index.clone());
        index
    }
}
