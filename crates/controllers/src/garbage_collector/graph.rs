//! The graph of owners and dependents over all kinds, and what it says to do about one object.
//!
//! Rules: <https://kubernetes.io/docs/concepts/architecture/garbage-collection/>. An owner reference is valid only to a cluster-scoped
//! owner or one in the dependent's own namespace.
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::discovery::Served;
use crate::ownership::{name, namespace, uid};

pub(super) const FOREGROUND: &str = "foregroundDeletion";
pub(super) const ORPHAN: &str = "orphan";

pub(super) type Uid = Arc<str>;

/// One object: its place in the API and the metadata that decisions need.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) kind: Arc<Served>,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: Uid,
    pub(super) resource_version: Option<String>,
    pub(super) owners: Vec<OwnerReference>,
    pub(super) finalizers: Vec<String>,
    pub(super) deleting: bool,
}

impl Item {
    pub(super) fn new(kind: &Arc<Served>, meta: &ObjectMeta) -> Self {
        Self {
            kind: kind.clone(),
            namespace: namespace(meta).to_owned(),
            name: name(meta).to_owned(),
            uid: uid(meta).into(),
            resource_version: meta.resource_version.clone(),
            owners: meta.owner_references.clone().unwrap_or_default(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
        }
    }

    pub(super) fn path(&self) -> String {
        self.kind.path(&self.namespace, &self.name)
    }

    pub(super) fn has(&self, finalizer: &str) -> bool {
        self.finalizers.iter().any(|f| f == finalizer)
    }

    /// It waits for its dependents to go.
    fn waits(&self) -> bool {
        self.deleting && self.has(FOREGROUND)
    }

    /// It is deleted, and its dependents shall stay.
    fn orphans(&self) -> bool {
        self.deleting && self.has(ORPHAN)
    }
}

/// All objects by uid, and for each owner's uid (known or not) those that name it.
#[derive(Debug, Default)]
pub(super) struct Graph {
    items: HashMap<Uid, Item>,
    dependents: HashMap<Uid, BTreeSet<Uid>>,
}

/// How one owner reference stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// It exists and stays.
    Solid,
    /// It exists and waits for this object's end.
    Waiting,
    /// It does not exist (asked live).
    Absent,
    /// The graph does not know it: ask live.
    Unknown,
}

/// What to do about one object.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Decision {
    Nothing,
    /// Ask the API whether these owners exist, then decide again.
    Verify(Vec<OwnerReference>),
    /// Take these owners (uids) off: others keep the object alive.
    RemoveOwners(Vec<String>),
    /// Delete with this propagation policy.
    Delete(&'static str),
    /// Dependents wait in a circle: first let the owners' deletion no longer wait, then delete.
    UnblockAndDelete,
    /// Take this object off its dependents as owner, then remove its orphan finalizer.
    Orphan(Vec<Uid>),
    /// Look at these dependents: the object waits for them.
    Descend(Vec<Uid>),
    /// The last blocking dependent is gone: remove the foreground finalizer.
    Release,
}

impl Graph {
    pub(super) fn item(&self, uid: &str) -> Option<&Item> {
        self.items.get(uid)
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    fn dependents_of(&self, uid: &str) -> impl Iterator<Item = &Item> {
        self.dependents.get(uid).into_iter().flatten().filter_map(|d| self.items.get(d))
    }

    /// Takes over an object's state; the objects that have to be looked at now.
    pub(super) fn observe(&mut self, item: Item) -> Vec<Uid> {
        let mut look = Vec::new();
        let own = item.uid.clone();
        let old = self.items.get(&own);
        let old_owners: Vec<OwnerReference> = old.map(|o| o.owners.clone()).unwrap_or_default();
        let was_waiting = old.is_some_and(Item::waits);
        if (!item.owners.is_empty() && !item.deleting && old.is_none_or(|o| o.owners != item.owners))
            || item.waits()
            || item.orphans()
        {
            look.push(own.clone());
        }
        if item.waits() && !was_waiting {
            look.extend(self.dependents.get(&own).into_iter().flatten().cloned());
        }
        for owner in &old_owners {
            let now = item.owners.iter().find(|o| o.uid == owner.uid);
            if now.is_none() {
                self.unlink(&owner.uid, &own);
            }
            // It stopped blocking: whoever waited may be free.
            let blocks = now.is_some_and(|o| o.block_owner_deletion == Some(true));
            if owner.block_owner_deletion == Some(true) && !blocks {
                look.extend(self.items.get(owner.uid.as_str()).filter(|o| o.waits()).map(|o| o.uid.clone()));
            }
        }
        for owner in &item.owners {
            self.dependents.entry(owner.uid.as_str().into()).or_default().insert(own.clone());
        }
        self.items.insert(own, item);
        look
    }

    /// An object is gone; the objects that have to be looked at now.
    pub(super) fn forget(&mut self, uid: &str) -> Vec<Uid> {
        let Some(item) = self.items.remove(uid) else { return Vec::new() };
        let mut look: Vec<Uid> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        for owner in &item.owners {
            self.unlink(&owner.uid, uid);
            look.extend(self.items.get(owner.uid.as_str()).filter(|o| o.waits()).map(|o| o.uid.clone()));
        }
        look
    }

    /// The kind is no longer served: its objects are gone. The objects that have to be looked at now.
    pub(super) fn forget_kind(&mut self, kind: &Served) -> Vec<Uid> {
        let gone: Vec<Uid> =
            self.items.values().filter(|i| *i.kind == *kind).map(|i| i.uid.clone()).collect();
        gone.iter().flat_map(|uid| self.forget(uid)).collect()
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(set) = self.dependents.get_mut(owner) {
            set.remove(dependent);
            if set.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    /// How the graph sees one owner reference of `item`.
    pub(super) fn owner(&self, item: &Item, reference: &OwnerReference) -> Owner {
        let Some(owner) = self.items.get(reference.uid.as_str()) else { return Owner::Unknown };
        let group = reference.api_version.split_once('/').map_or("", |(group, _)| group);
        let same_place = !owner.kind.namespaced || owner.namespace == item.namespace;
        let as_named =
            owner.kind.kind == reference.kind && owner.kind.group == group && owner.name == reference.name;
        match (same_place && as_named, owner.waits()) {
            // The uid exists elsewhere: only the API can say what the reference's own coordinates hold.
            (false, _) => Owner::Unknown,
            (true, true) => Owner::Waiting,
            (true, false) => Owner::Solid,
        }
    }

    /// Whether the owner's uid is that of an object that is not in the dependent's namespace: no object there has it.
    pub(super) fn is_elsewhere(&self, item: &Item, reference: &OwnerReference) -> bool {
        let owner = self.items.get(reference.uid.as_str());
        owner.is_some_and(|owner| owner.kind.namespaced && owner.namespace != item.namespace)
    }

    /// Decides about `uid`; `verified` holds what the API said about owners that the graph does not know.
    pub(super) fn decide(&self, uid: &str, verified: &HashMap<String, Owner>) -> Decision {
        let Some(item) = self.items.get(uid) else { return Decision::Nothing };
        if item.orphans() {
            return Decision::Orphan(self.dependents_of(uid).map(|d| d.uid.clone()).collect());
        }
        if item.waits() {
            let blocks =
                |d: &Item| d.owners.iter().any(|o| *o.uid == *uid && o.block_owner_deletion == Some(true));
            if !self.dependents_of(uid).any(blocks) {
                return Decision::Release;
            }
            let open = self.dependents_of(uid).filter(|d| !d.deleting).map(|d| d.uid.clone()).collect();
            return Decision::Descend(open);
        }
        if item.deleting || item.owners.is_empty() {
            return Decision::Nothing;
        }
        let mut open = Vec::new();
        let (mut solid, mut absent, mut waiting) = (0, Vec::new(), Vec::new());
        for owner in &item.owners {
            let state = match self.owner(item, owner) {
                Owner::Unknown => verified.get(&owner.uid).copied().unwrap_or(Owner::Unknown),
                known => known,
            };
            match state {
                Owner::Solid => solid += 1,
                Owner::Absent => absent.push(owner.uid.clone()),
                Owner::Waiting => waiting.push(owner.uid.clone()),
                Owner::Unknown => open.push(owner.clone()),
            }
        }
        if !open.is_empty() {
            return Decision::Verify(open);
        }
        if solid > 0 {
            let gone: Vec<String> = absent.into_iter().chain(waiting).collect();
            return if gone.is_empty() { Decision::Nothing } else { Decision::RemoveOwners(gone) };
        }
        if !waiting.is_empty() && self.dependents_of(uid).next().is_some() {
            return if self.dependents_of(uid).any(Item::waits) {
                Decision::UnblockAndDelete
            } else {
                Decision::Delete("Foreground")
            };
        }
        Decision::Delete(if item.has(ORPHAN) {
            "Orphan"
        } else if item.has(FOREGROUND) {
            "Foreground"
        } else {
            "Background"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(kind: &str, namespaced: bool) -> Arc<Served> {
        Arc::new(Served {
            group: String::new(),
            version: "v1".into(),
            plural: format!("{}s", kind.to_lowercase()),
            kind: kind.into(),
            namespaced,
            verbs: Vec::new(),
        })
    }

    /// `a`, owned by each of `owners` (a `!` blocks the owner's deletion).
    fn item(uid: &str, owners: &[&str]) -> Item {
        let reference = |text: &&str| {
            let owner = text.trim_end_matches('!');
            OwnerReference {
                api_version: "v1".into(),
                kind: "Thing".into(),
                name: owner.into(),
                uid: owner.into(),
                block_owner_deletion: Some(text.ends_with('!')),
                controller: None,
            }
        };
        Item {
            kind: kind("Thing", true),
            namespace: "d".into(),
            name: uid.into(),
            uid: uid.into(),
            resource_version: None,
            owners: owners.iter().map(reference).collect(),
            finalizers: Vec::new(),
            deleting: false,
        }
    }

    fn deleting(mut item: Item, finalizer: &str) -> Item {
        item.deleting = true;
        item.finalizers.push(finalizer.into());
        item
    }

    fn graph(items: impl IntoIterator<Item = Item>) -> Graph {
        let mut graph = Graph::default();
        items.into_iter().for_each(|i| drop(graph.observe(i)));
        graph
    }

    fn decide(graph: &Graph, uid: &str) -> Decision {
        graph.decide(uid, &HashMap::new())
    }

    #[test]
    fn a_dependent_of_a_living_owner_stays() {
        let g = graph([item("a", &[]), item("b", &["a!"])]);
        assert_eq!(decide(&g, "b"), Decision::Nothing);
    }

    #[test]
    fn an_unknown_owner_is_verified_before_anything_is_deleted() {
        let mut g = graph([item("a", &[]), item("b", &["a"])]);
        assert_eq!(g.forget("a"), ["b".into()]);
        assert!(matches!(decide(&g, "b"), Decision::Verify(list) if list.len() == 1));
        let said = |state| HashMap::from([("a".to_owned(), state)]);
        assert_eq!(g.decide("b", &said(Owner::Absent)), Decision::Delete("Background"));
        assert_eq!(g.decide("b", &said(Owner::Solid)), Decision::Nothing);
    }

    #[test]
    fn one_living_owner_keeps_the_object_and_absent_ones_are_removed() {
        let g = graph([item("a", &[]), item("b", &["a", "gone"])]);
        let said = HashMap::from([("gone".to_owned(), Owner::Absent)]);
        assert_eq!(g.decide("b", &said), Decision::RemoveOwners(vec!["gone".into()]));
    }

    #[test]
    fn foreground_deletion_waits_for_blocking_dependents_only() {
        let mut g = graph([item("a", &[]), item("b", &["a!"]), item("c", &["a"])]);
        let look = g.observe(deleting(item("a", &[]), FOREGROUND));
        assert_eq!(look, ["a".into(), "b".into(), "c".into()]);
        assert_eq!(decide(&g, "a"), Decision::Descend(vec!["b".into(), "c".into()]));
        assert_eq!(decide(&g, "b"), Decision::Delete("Background"));
        assert!(g.forget("b").contains(&"a".into()));
        assert_eq!(decide(&g, "a"), Decision::Release);
    }

    #[test]
    fn foreground_deletion_descends_through_dependents_of_dependents() {
        let g = graph([deleting(item("a", &[]), FOREGROUND), item("b", &["a!"]), item("c", &["b!"])]);
        assert_eq!(decide(&g, "b"), Decision::Delete("Foreground"));
    }

    #[test]
    fn a_circle_is_broken() {
        let g = graph([deleting(item("a", &["b!"]), FOREGROUND), item("b", &["a!"])]);
        assert_eq!(decide(&g, "b"), Decision::UnblockAndDelete);
    }

    #[test]
    fn orphaning_names_the_dependents() {
        let g = graph([deleting(item("a", &[]), ORPHAN), item("b", &["a!"])]);
        assert_eq!(decide(&g, "a"), Decision::Orphan(vec!["b".into()]));
    }

    #[test]
    fn an_owner_in_another_namespace_does_not_count() {
        let mut other = item("a", &[]);
        other.namespace = "elsewhere".into();
        let g = graph([other, item("b", &["a"])]);
        assert!(matches!(decide(&g, "b"), Decision::Verify(_)));
        let elsewhere = |g: &Graph| {
            let b = g.item("b").expect("b");
            g.is_elsewhere(b, &b.owners[0])
        };
        assert!(elsewhere(&g));
        let mut cluster = item("a", &[]);
        (cluster.kind, cluster.namespace) = (kind("Thing", false), String::new());
        let g = graph([cluster, item("b", &["a"])]);
        assert_eq!((decide(&g, "b"), elsewhere(&g)), (Decision::Nothing, false));
    }
}
