//! The annotations by which `kubectl rollout` finds its way: revision, its history, and the sizes of the last scaling.
use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::ownership::annotations;

pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
pub(super) const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(super) const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
/// The revision that the deployment is to go back to.
pub(super) const ROLLBACK_TO: &str = "deprecated.deployment.rollback.to";

/// The history annotation is cut to its newest entries at this many characters.
const HISTORY_CHARS: usize = 2000;

/// The deployment's annotations that are its own and not copied to replica sets.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    ROLLBACK_TO,
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
];

/// The revision, 0 when there is none.
pub(super) fn revision(meta: &ObjectMeta) -> i64 {
    annotations(meta).get(REVISION).and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// Copies the deployment's annotations (such as `kubernetes.io/change-cause`) to its replica set; back with a rollback.
pub(super) fn copied_annotations(from: &ObjectMeta, to: &mut ObjectMeta) {
    for (key, value) in annotations(from) {
        if !NOT_COPIED.contains(&key.as_str()) && annotations(to).get(key) != Some(value) {
            to.annotations.get_or_insert_with(BTreeMap::new).insert(key.clone(), value.clone());
        }
    }
}

/// Takes away what is copied between a deployment and its replica sets.
pub(super) fn take_copied(meta: &mut ObjectMeta) {
    meta.annotations.iter_mut().for_each(|map| map.retain(|key, _| NOT_COPIED.contains(&key.as_str())));
}

/// Raises the revision to `next`; a revision the set had before (a rollback) goes to its history.
pub(super) fn set_revision(meta: &mut ObjectMeta, next: i64) {
    let old = revision(meta);
    if old >= next {
        return;
    }
    let map = meta.annotations.get_or_insert_with(BTreeMap::new);
    if let Some(previous) = map.insert(REVISION.to_owned(), next.to_string())
        && old > 0
    {
        let mut entries: Vec<String> = map
            .get(REVISION_HISTORY)
            .map(|h| h.split(',').filter(|e| !e.is_empty()).map(str::to_owned).collect())
            .unwrap_or_default();
        entries.push(previous);
        // The last comma is not written.
        while entries.len() > 1 && entries.iter().map(|e| e.len() + 1).sum::<usize>() > HISTORY_CHARS + 1 {
            entries.remove(0);
        }
        map.insert(REVISION_HISTORY.to_owned(), entries.join(","));
    }
}

/// Notes the sizes this scaling was made for.
pub(super) fn set_replica_annotations(meta: &mut ObjectMeta, desired: i32, max: i32) {
    let map = meta.annotations.get_or_insert_with(BTreeMap::new);
    map.insert(DESIRED_REPLICAS.to_owned(), desired.to_string());
    map.insert(MAX_REPLICAS.to_owned(), max.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollback_keeps_the_former_revision_in_history() {
        let mut meta = ObjectMeta::default();
        set_revision(&mut meta, 1);
        set_revision(&mut meta, 3);
        set_revision(&mut meta, 5);
        set_revision(&mut meta, 4);
        assert_eq!(revision(&meta), 5);
        assert_eq!(annotations(&meta)[REVISION_HISTORY], "1,3");
    }

    #[test]
    fn last_applied_stays_with_the_deployment() {
        let from = ObjectMeta {
            annotations: Some(BTreeMap::from([
                ("kubectl.kubernetes.io/last-applied-configuration".to_owned(), "{}".to_owned()),
                ("kubernetes.io/change-cause".to_owned(), "why".to_owned()),
            ])),
            ..Default::default()
        };
        let mut to = ObjectMeta::default();
        copied_annotations(&from, &mut to);
        assert_eq!(annotations(&to).keys().collect::<Vec<_>>(), ["kubernetes.io/change-cause"]);
    }
}
