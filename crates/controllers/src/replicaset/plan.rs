//! Pure decisions of the replica set controller: which pods go first, and the status.
use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::ownership::{annotations, labels, uid};
use crate::pods;

/// Pods with a lower cost go first.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const REPLICA_FAILURE: &str = "ReplicaFailure";

/// The number of pods asked for.
pub(super) fn wanted(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

/// The `count` pods whose loss hurts least: not scheduled, pending, not ready, cheap, crowded on a node, young.
pub(super) fn victims(
    active: &[Arc<Pod>],
    count: usize,
    crowd: &HashMap<String, usize>,
    now: Timestamp,
) -> Vec<Arc<Pod>> {
    let mut order: Vec<&Arc<Pod>> = active.iter().collect();
    order.sort_by(|a, b| hurts_less(a, b, crowd, now));
    order.into_iter().take(count).cloned().collect()
}

/// Less: goes first. Rule: pod deletion order of a ReplicaSet in the Kubernetes documentation; ages are compared by
/// order of magnitude, so that pods of about the same age fall in no particular order (LogarithmicScaleDown).
fn hurts_less(a: &Pod, b: &Pod, crowd: &HashMap<String, usize>, now: Timestamp) -> Ordering {
    let bound = |p: &Pod| !pods::node_name(p).is_empty();
    let phase = |p: &Pod| match pods::phase(p) {
        "Pending" | "" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let cost = |p: &Pod| -> i32 {
        annotations(&p.metadata).get(DELETION_COST).and_then(|v| v.parse().ok()).unwrap_or(0)
    };
    let rank = |p: &Pod| crowd.get(pods::node_name(p)).copied().unwrap_or(0);
    let magnitude = |t: Option<Timestamp>| t.map(|t| now.duration_since(t).as_nanos().max(1).ilog2());
    let created = |p: &Pod| p.metadata.creation_timestamp.as_ref().map(|t| t.0);
    bound(a)
        .cmp(&bound(b))
        .then_with(|| phase(a).cmp(&phase(b)))
        .then_with(|| pods::is_ready(a).cmp(&pods::is_ready(b)))
        .then_with(|| cost(a).cmp(&cost(b)))
        .then_with(|| rank(b).cmp(&rank(a)))
        .then_with(|| magnitude(pods::ready_since(a)).cmp(&magnitude(pods::ready_since(b))))
        .then_with(|| pods::restarts(b).cmp(&pods::restarts(a)))
        .then_with(|| magnitude(created(a)).cmp(&magnitude(created(b))))
        .then_with(|| uid(&a.metadata).cmp(uid(&b.metadata)))
}

/// What the pass's writes of pods mean for the ReplicaFailure condition.
pub(super) enum Failed {
    /// Nothing was tried.
    Unknown,
    /// All went well.
    No,
    /// Reason and message.
    Yes(&'static str, String),
}

impl From<Option<(&'static str, String)>> for Failed {
    fn from(failure: Option<(&'static str, String)>) -> Self {
        failure.map_or(Failed::No, |(reason, message)| Failed::Yes(reason, message))
    }
}

/// The status, and the time until the next pod becomes available by age.
pub(super) fn status(
    set: &ReplicaSet,
    active: &[Arc<Pod>],
    terminating: usize,
    failed: Failed,
    now: Timestamp,
) -> (ReplicaSetStatus, Option<Duration>) {
    let spec = set.spec.as_ref();
    let min_ready = spec.and_then(|s| s.min_ready_seconds).unwrap_or(0);
    let template = spec.and_then(|s| s.template.as_ref()).and_then(|t| t.metadata.as_ref()).map(labels);
    let labeled = active
        .iter()
        .filter(|p| template.is_none_or(|t| t.iter().all(|(k, v)| labels(&p.metadata).get(k) == Some(v))))
        .count();
    let ready = active.iter().filter(|p| pods::is_ready(p)).count();
    let waits: Vec<_> = active.iter().filter_map(|p| pods::until_available(p, min_ready, now)).collect();
    let available = waits.iter().filter(|w| w.is_zero()).count();
    let next = waits.iter().filter(|w| !w.is_zero()).min().map(|w| w.unsigned_abs());
    let mut conditions = set.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    match failed {
        Failed::Unknown => {}
        Failed::No => conditions.retain(|c| c.type_ != REPLICA_FAILURE),
        // An earlier failure stays as it is: its message must not change with every retry.
        Failed::Yes(..) if conditions.iter().any(|c| c.type_ == REPLICA_FAILURE) => {}
        Failed::Yes(reason, message) => conditions.push(ReplicaSetCondition {
            type_: REPLICA_FAILURE.to_owned(),
            status: "True".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: Some(Time(now)),
        }),
    }
    let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    let some = |n: usize| (n > 0).then(|| count(n));
    let status = ReplicaSetStatus {
        replicas: count(active.len()),
        fully_labeled_replicas: some(labeled),
        ready_replicas: some(ready),
        available_replicas: some(available),
        terminating_replicas: Some(count(terminating)),
        observed_generation: set.metadata.generation,
        conditions: (!conditions.is_empty()).then_some(conditions),
    };
    (status, next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: &str = "2026-01-01T01:00:00Z";

    fn pod(name: &str, patch: Value) -> Arc<Pod> {
        let mut value = json!({
            "metadata": {"name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"app": "web"}},
            "spec": {"containers": [], "nodeName": "n1"},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
        });
        merge(&mut value, patch);
        Arc::new(serde_json::from_value(value).expect("pod"))
    }

    fn merge(into: &mut Value, patch: Value) {
        match (into, patch) {
            (Value::Object(into), Value::Object(patch)) => {
                for (key, value) in patch {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
            (into, patch) => *into = patch,
        }
    }

    #[test]
    fn pods_whose_loss_hurts_least_go_first() {
        let restarted = |container: &str, list: &str| {
            let spec = json!({"initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]});
            let status =
                json!([{"name": container, "image": "", "imageID": "", "ready": true, "restartCount": 3}]);
            json!({"spec": spec, "status": {list: status}})
        };
        let not_ready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
        let pods = [
            pod("old", json!({})),
            pod(
                "young",
                json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:59:50Z"}]}}),
            ),
            pod("crowded", json!({"spec": {"nodeName": "n2"}})),
            pod("restarted", restarted("c", "containerStatuses")),
            pod("sidecar", restarted("s", "initContainerStatuses")),
            pod("a-init", restarted("i", "initContainerStatuses")),
            pod("cheap", json!({"metadata": {"annotations": {DELETION_COST: "-5"}}})),
            pod("unready", not_ready),
            pod("pending", json!({"status": {"phase": "Pending"}})),
            pod("unbound", json!({"spec": {"nodeName": ""}, "status": {"phase": "Pending"}})),
            pod("dear", json!({"metadata": {"annotations": {DELETION_COST: "5"}}})),
        ];
        let crowd = HashMap::from([("n1".to_owned(), 1), ("n2".to_owned(), 3)]);
        let order = victims(&pods, pods.len(), &crowd, NOW.parse().expect("time"));
        let names: Vec<_> = order.iter().map(|p| uid(&p.metadata)).collect();
        let first = ["unbound", "pending", "unready", "cheap", "crowded", "young"];
        let then = ["restarted", "sidecar", "a-init", "old", "dear"];
        assert_eq!(names, [&first[..], &then[..]].concat());
    }

    fn set(min_ready: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": "s", "generation": 4},
            "spec": {"replicas": 3, "minReadySeconds": min_ready, "selector": {}, "template": {"metadata": {"labels": {"app": "web"}}}},
        }))
        .expect("set")
    }

    #[test]
    fn a_pod_becomes_available_after_min_ready_seconds() {
        let pods = [
            pod("a", json!({})),
            pod(
                "b",
                json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:59:55Z"}]}}),
            ),
            pod("c", json!({"metadata": {"labels": {"app": "db"}}, "status": {"conditions": []}})),
        ];
        let (status, next) = status(&set(30), &pods, 2, Failed::No, NOW.parse().expect("time"));
        assert_eq!(
            serde_json::to_value(status).expect("json"),
            json!({"replicas": 3, "fullyLabeledReplicas": 2, "readyReplicas": 2, "availableReplicas": 1,
                   "terminatingReplicas": 2, "observedGeneration": 4})
        );
        assert_eq!(next, Some(Duration::from_secs(25)));
    }

    #[test]
    fn a_failure_shows_once_and_goes_with_the_next_success() {
        let now = NOW.parse().expect("time");
        let mut s = set(0);
        let (failed, _) = status(&s, &[], 0, Failed::Yes("FailedCreate", "quota".into()), now);
        s.status = Some(failed.clone());
        let (again, _) = status(&s, &[], 0, Failed::Yes("FailedCreate", "quota, differently".into()), now);
        assert_eq!(again, failed);
        assert_eq!(status(&s, &[], 0, Failed::Unknown, now).0, failed);
        assert_eq!(status(&s, &[], 0, Failed::No, now).0.conditions, None);
    }
}
