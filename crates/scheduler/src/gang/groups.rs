//! The groups there are, and the pods of each that wait or have a node.
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use client::Change;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::scheduling::v1alpha2::PodGroup;

/// The group of a pod, by `namespace/name`.
pub fn key_of(pod: &Pod) -> Option<String> {
    let group = pod.spec.as_ref()?.scheduling_group.as_ref()?.pod_group_name.as_deref()?;
    Some(format!("{}/{group}", pod.metadata.namespace.as_deref().unwrap_or_default()))
}

/// All groups.
#[derive(Debug, Default)]
pub struct Groups {
    /// Whether gangs are kept together.
    gangs: bool,
    known: HashMap<String, Arc<PodGroup>>,
    members: HashMap<String, HashSet<Arc<str>>>,
}

impl Groups {
    /// No groups yet. `gangs`: all or nothing for those that ask for it.
    pub fn new(gangs: bool) -> Self {
        Self { gangs, ..Self::default() }
    }

    /// A group came, changed or went; which.
    pub fn apply(&mut self, change: &Change<PodGroup>) -> String {
        let meta = &change.object().metadata;
        let part = |text: &Option<String>| text.clone().unwrap_or_default();
        let key = format!("{}/{}", part(&meta.namespace), part(&meta.name));
        match change {
            Change::Deleted(_) => drop(self.known.remove(&key)),
            _ => drop(self.known.insert(key.clone(), change.object().clone())),
        }
        key
    }

    /// A pod waits or has a node; whether that is news.
    pub fn join(&mut self, key: &str, uid: &Arc<str>) -> bool {
        if !self.members.contains_key(key) {
            self.members.insert(key.to_owned(), HashSet::new());
        }
        self.members.get_mut(key).is_some_and(|members| members.insert(uid.clone()))
    }

    /// A pod neither waits nor has a node.
    pub fn leave(&mut self, key: &str, uid: &str) {
        if let Some(members) = self.members.get_mut(key) {
            members.remove(uid);
            if members.is_empty() {
                self.members.remove(key);
            }
        }
    }

    /// The object.
    pub fn get(&self, key: &str) -> Option<&Arc<PodGroup>> {
        self.known.get(key)
    }

    /// The uids of its pods.
    pub fn members(&self, key: &str) -> impl Iterator<Item = &Arc<str>> {
        self.members.get(key).into_iter().flatten()
    }

    /// So many of its pods have to have a node at a time, or none; 0 for a group that is no gang.
    pub fn least(&self, key: &str) -> usize {
        let group = self.known.get(key).filter(|_| self.gangs);
        let gang = group.and_then(|g| g.spec.scheduling_policy.gang.as_ref());
        gang.map_or(0, |gang| usize::try_from(gang.min_count).unwrap_or(0))
    }

    /// Whether its pods may be tried: the group is there, and so many pods as it needs.
    pub fn is_ready(&self, key: &str) -> bool {
        let count = self.members.get(key).map_or(0, HashSet::len);
        !self.gangs || (self.known.contains_key(key) && count >= self.least(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_gang_is_ready_when_it_is_there_with_enough_pods() {
        let group = |policy| -> Change<PodGroup> {
            let value =
                json!({"metadata": {"namespace": "d", "name": "g"}, "spec": {"schedulingPolicy": policy}});
            Change::Added(Arc::new(serde_json::from_value(value).expect("group")))
        };
        let mut groups = Groups::new(true);
        assert!(groups.join("d/g", &"a".into()) && !groups.join("d/g", &"a".into()));
        assert!(!groups.is_ready("d/g"), "no object");
        groups.apply(&group(json!({"gang": {"minCount": 2}})));
        assert!(!groups.is_ready("d/g"), "one pod of two");
        groups.join("d/g", &"b".into());
        assert!(groups.is_ready("d/g"));
        groups.leave("d/g", "a");
        assert!(!groups.is_ready("d/g"));
        groups.apply(&group(json!({"basic": {}})));
        assert!(groups.is_ready("d/g") && groups.least("d/g") == 0);
        assert!(Groups::default().is_ready("d/none"), "the gate is closed");
    }
}
