//! Pure decisions about nodes: what silence makes of the conditions, and which taints conditions mean.
use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::ownership::labels;

pub(super) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(super) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Condition, status, taint key: while the condition has the status, the node has the taint with NoSchedule.
const CONDITION_TAINTS: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];

/// Conditions only the kubelet can know.
const KUBELETS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

/// Status of the Ready condition.
pub(super) fn ready(node: &Node) -> Option<&str> {
    condition(node, "Ready").map(|c| c.status.as_str())
}

/// The kubelet's last report in the node's own status.
pub(super) fn heartbeat(node: &Node) -> Option<Timestamp> {
    condition(node, "Ready")?.last_heartbeat_time.as_ref().map(|t| t.0)
}

/// The node as it looks after its kubelet fell silent; `None` when it looks so already.
pub(super) fn lost(node: &Node, now: Timestamp) -> Option<Node> {
    let mut next = node.clone();
    let list = next.status.get_or_insert_default().conditions.get_or_insert_default();
    let mut changed = false;
    for kind in KUBELETS {
        match list.iter_mut().find(|c| c.type_ == kind) {
            Some(c) if c.status == "Unknown" => {}
            Some(c) => {
                c.status = "Unknown".to_owned();
                c.reason = Some("NodeStatusUnknown".to_owned());
                c.message = Some("Kubelet stopped posting node status.".to_owned());
                c.last_transition_time = Some(Time(now));
                changed = true;
            }
            None => {
                list.push(NodeCondition {
                    type_: kind.to_owned(),
                    status: "Unknown".to_owned(),
                    reason: Some("NodeStatusNeverUpdated".to_owned()),
                    message: Some("Kubelet never posted node status.".to_owned()),
                    last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                    last_transition_time: Some(Time(now)),
                });
                changed = true;
            }
        }
    }
    changed.then_some(next)
}

/// Whether the node has a taint that drives pods away because it is lost.
pub(super) fn is_given_up(node: &Node) -> bool {
    let mut taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    taints.any(|t| t.effect == "NoExecute" && (t.key == NOT_READY || t.key == UNREACHABLE))
}

/// The node's labels with the older names of those that kubelets set; `None` when it has them.
pub(super) fn older_labels(node: &Node) -> Option<BTreeMap<String, String>> {
    const OLDER: [(&str, &str); 2] =
        [("kubernetes.io/os", "beta.kubernetes.io/os"), ("kubernetes.io/arch", "beta.kubernetes.io/arch")];
    let current = labels(&node.metadata);
    let mut next = current.clone();
    for (key, older) in OLDER {
        if let Some(value) = current.get(key) {
            next.insert(older.to_owned(), value.clone());
        }
    }
    (next != *current).then_some(next)
}

/// The taints the node shall have; `None` when it has them. Taints of others stay.
pub(super) fn taints(node: &Node, evict: bool, now: Timestamp) -> Option<Vec<Taint>> {
    let empty = Vec::new();
    let current = node.spec.as_ref().and_then(|s| s.taints.as_ref()).unwrap_or(&empty);
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for (kind, status, key) in CONDITION_TAINTS {
        if condition(node, kind).is_some_and(|c| c.status == status) {
            wanted.push((key, "NoSchedule"));
        }
    }
    if node.spec.as_ref().is_some_and(|s| s.unschedulable == Some(true)) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    match ready(node) {
        Some("False") if evict => wanted.push((NOT_READY, "NoExecute")),
        Some("Unknown") if evict => wanted.push((UNREACHABLE, "NoExecute")),
        // New: until the kubelet has said something, the taint it was created with holds.
        None if current.iter().any(|t| t.key == NOT_READY && t.effect == "NoSchedule") => {
            wanted.push((NOT_READY, "NoSchedule"));
        }
        _ => {}
    }
    let ours = |t: &Taint| match t.effect.as_str() {
        "NoSchedule" => t.key == UNSCHEDULABLE || CONDITION_TAINTS.iter().any(|(_, _, key)| *key == t.key),
        "NoExecute" => t.key == NOT_READY || t.key == UNREACHABLE,
        _ => false,
    };
    let is = |t: &Taint, (key, effect): (&str, &str)| t.key == key && t.effect == effect;
    let mut next: Vec<Taint> =
        current.iter().filter(|t| !ours(t) || wanted.iter().any(|w| is(t, *w))).cloned().collect();
    for (key, effect) in wanted {
        if !next.iter().any(|t| is(t, (key, effect))) {
            next.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                time_added: Some(Time(now)),
                value: None,
            });
        }
    }
    (next != *current).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(ready: &str, spec: Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": spec, "status": {"conditions": [
            {"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": ready}]}}))
        .expect("node")
    }

    fn show(taints: Option<Vec<Taint>>) -> Vec<String> {
        taints.into_iter().flatten().map(|t| format!("{}:{}", t.key, t.effect)).collect()
    }

    #[test]
    fn conditions_become_taints_and_others_taints_stay() {
        let now = Timestamp::UNIX_EPOCH;
        let own = json!({"taints": [{"key": "gpu", "effect": "NoSchedule"}, {"key": UNREACHABLE, "effect": "NoExecute"}]});
        assert_eq!(
            show(taints(&node("False", own.clone()), true, now)),
            [
                "gpu:NoSchedule",
                "node.kubernetes.io/not-ready:NoSchedule",
                "node.kubernetes.io/not-ready:NoExecute"
            ]
        );
        assert_eq!(show(taints(&node("True", own), true, now)), ["gpu:NoSchedule"]);
        assert_eq!(
            show(taints(&node("True", json!({"unschedulable": true})), true, now)),
            ["node.kubernetes.io/unschedulable:NoSchedule"]
        );
        assert_eq!(taints(&node("True", json!({})), true, now), None);
    }

    #[test]
    fn a_node_that_has_not_reported_keeps_its_first_taint() {
        let new: Node = serde_json::from_value(json!({"metadata": {"name": "n"},
            "spec": {"taints": [{"key": NOT_READY, "effect": "NoSchedule"}]}}))
        .expect("node");
        assert_eq!(taints(&new, true, Timestamp::UNIX_EPOCH), None);
    }

    #[test]
    fn with_no_ready_node_nothing_is_evicted() {
        let taints = taints(&node("Unknown", json!({})), false, Timestamp::UNIX_EPOCH);
        assert_eq!(show(taints), ["node.kubernetes.io/unreachable:NoSchedule"]);
    }

    #[test]
    fn silence_makes_every_kubelet_condition_unknown_once() {
        let now = Timestamp::UNIX_EPOCH;
        let lost_node = lost(&node("True", json!({})), now).expect("changed");
        let list = lost_node.status.as_ref().and_then(|s| s.conditions.clone()).expect("conditions");
        let text: Vec<_> = list
            .iter()
            .map(|c| format!("{} {} {}", c.type_, c.status, c.reason.as_deref().unwrap_or("")))
            .collect();
        assert_eq!(
            text,
            [
                "MemoryPressure Unknown NodeStatusUnknown",
                "Ready Unknown NodeStatusUnknown",
                "DiskPressure Unknown NodeStatusNeverUpdated",
                "PIDPressure Unknown NodeStatusNeverUpdated"
            ]
        );
        assert!(lost(&lost_node, now).is_none());
    }
}
