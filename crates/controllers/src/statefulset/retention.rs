//! Who owns a claim made from a template: nobody, the set (it goes with the set), or a pod that is scaled away (it goes with
//! that pod). Garbage collection does the rest.
//! Source: <https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/#persistentvolumeclaim-retention>.
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::identity::{ordinal, ordinals};
use crate::ownership::{controller_ref, name, uid};

/// `(whenScaled, whenDeleted)`: whether claims are deleted.
fn policy(set: &StatefulSet) -> (bool, bool) {
    let policy = set.spec.as_ref().and_then(|s| s.persistent_volume_claim_retention_policy.as_ref());
    let deletes = |value: Option<&String>| value.map(String::as_str) == Some("Delete");
    (
        deletes(policy.and_then(|p| p.when_scaled.as_ref())),
        deletes(policy.and_then(|p| p.when_deleted.as_ref())),
    )
}

/// Whether claims go with the pods that are scaled away.
pub(super) fn deletes_when_scaled(set: &StatefulSet) -> bool {
    policy(set).0
}

/// What to do about a claim's owners.
#[derive(Debug, PartialEq)]
pub(super) struct Owners {
    /// The owner references to write; `None` when they are right, or not ours to touch.
    pub(super) write: Option<Vec<OwnerReference>>,
    /// Another controller manages the claim, so that the policy is ignored for it.
    pub(super) conflict: bool,
}

fn is_ref(r: &OwnerReference, api_version: &str, kind: &str, owner: &ObjectMeta) -> bool {
    r.api_version == api_version && r.kind == kind && r.name == name(owner)
}

/// Compares the owners `refs` of a claim of `pod` with the set's policy.
pub(super) fn owners(refs: &[OwnerReference], set: &StatefulSet, pod: &ObjectMeta) -> Owners {
    let (scaled, deleted) = policy(set);
    let of_set = |r: &OwnerReference| is_ref(r, "apps/v1", "StatefulSet", &set.metadata);
    let of_pod = |r: &OwnerReference| is_ref(r, "v1", "Pod", pod);
    // An earlier set or pod of that name: what it left behind is for the garbage collector to judge.
    let stale =
        |r: &OwnerReference| of_set(r) && r.uid != uid(&set.metadata) || of_pod(r) && r.uid != uid(pod);
    let foreign = |r: &OwnerReference| r.controller == Some(true) && !of_set(r) && !of_pod(r);
    let conflict = (scaled || deleted) && refs.iter().any(foreign);
    if refs.iter().any(stale) {
        return Owners { write: None, conflict };
    }
    let (ours, mut wanted): (Vec<_>, Vec<_>) = refs.iter().cloned().partition(|r| of_set(r) || of_pod(r));
    if !conflict {
        let leaving = scaled && !ordinals(set).contains(&ordinal(pod));
        if leaving {
            wanted.push(controller_ref("v1", "Pod", pod));
        } else if deleted {
            wanted.push(controller_ref("apps/v1", "StatefulSet", &set.metadata));
        }
    }
    let mine = |r: &&OwnerReference| of_set(r) || of_pod(r);
    let key = |r: &OwnerReference| (r.uid.clone(), r.controller == Some(true));
    let same = ours.iter().map(key).eq(wanted.iter().filter(mine).map(key));
    Owners { write: (!same).then_some(wanted), conflict }
}

/// Whether a claim still belongs to an earlier pod of this name that was scaled away: it is about to be deleted, and a
/// new pod must not use it.
pub(super) fn is_stale(refs: &[OwnerReference], set: &StatefulSet, pod: &ObjectMeta) -> bool {
    deletes_when_scaled(set) && refs.iter().any(|r| is_ref(r, "v1", "Pod", pod) && r.uid != uid(pod))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check(scaled: &str, deleted: &str, pod: &str, refs: Value, want: Value) {
        let set: StatefulSet =
            serde_json::from_value(json!({"metadata": {"name": "web", "uid": "s"}, "spec": {
            "replicas": 2, "selector": {}, "template": {},
            "persistentVolumeClaimRetentionPolicy": {"whenScaled": scaled, "whenDeleted": deleted}}}))
            .expect("set");
        let pod = ObjectMeta { name: Some(pod.to_owned()), uid: Some("p".to_owned()), ..Default::default() };
        let refs: Vec<OwnerReference> = serde_json::from_value(refs).expect("references");
        let Owners { write, conflict } = owners(&refs, &set, &pod);
        let write = write.map(|l| l.iter().map(|r| format!("{}/{}", r.kind, r.uid)).collect::<Vec<_>>());
        assert_eq!(json!([write, conflict]), want, "{scaled} {deleted} {refs:?}");
    }

    #[test]
    fn owners_follow_the_policy() {
        let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "s", "controller": true});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "name": "web-5", "uid": "p", "controller": true});
        check("Retain", "Retain", "web-0", json!([]), json!([null, false]));
        check("Retain", "Retain", "web-0", json!([set]), json!([[], false]));
        check("Retain", "Delete", "web-0", json!([]), json!([["StatefulSet/s"], false]));
        check("Retain", "Delete", "web-5", json!([set]), json!([null, false]));
        check("Delete", "Retain", "web-0", json!([]), json!([null, false]));
        check("Delete", "Retain", "web-5", json!([]), json!([["Pod/p"], false]));
        check("Delete", "Delete", "web-5", json!([set]), json!([["Pod/p"], false]));
        check("Delete", "Delete", "web-5", json!([pod]), json!([null, false]));
        let mut weak = set.clone();
        weak["controller"] = json!(false);
        check("Retain", "Delete", "web-0", json!([weak]), json!([["StatefulSet/s"], false]));
    }

    #[test]
    fn a_claim_of_others_is_left_alone() {
        let other =
            json!({"apiVersion": "x/v1", "kind": "Manager", "name": "m", "uid": "m", "controller": true});
        let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "s", "controller": true});
        check("Retain", "Delete", "web-0", json!([other]), json!([null, true]));
        check("Retain", "Delete", "web-0", json!([other, set]), json!([["Manager/m"], true]));
        let mut gone = set.clone();
        gone["uid"] = json!("earlier");
        check("Retain", "Delete", "web-0", json!([gone]), json!([null, false]));
    }
}
