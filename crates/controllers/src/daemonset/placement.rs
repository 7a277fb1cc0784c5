//! On which nodes a daemon set has a pod, and how the pod is tied to its node.
//!
//! The scheduler binds the pods; the controller only decides for which nodes it makes them, and names the node in a required
//! node affinity. Source: <https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/#how-daemon-pods-are-scheduled>.
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Taint, Toleration,
};

use crate::ownership::{labels, name};
use crate::pods;
use crate::taints::tolerates;

const NODE_NAME: &str = "metadata.name";
const NO_EXECUTE: &str = "NoExecute";
const NO_SCHEDULE: &str = "NoSchedule";

/// Taints that daemon pods tolerate by themselves, with the effect.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", NO_EXECUTE),
    ("node.kubernetes.io/unreachable", NO_EXECUTE),
    ("node.kubernetes.io/disk-pressure", NO_SCHEDULE),
    ("node.kubernetes.io/memory-pressure", NO_SCHEDULE),
    ("node.kubernetes.io/pid-pressure", NO_SCHEDULE),
    ("node.kubernetes.io/unschedulable", NO_SCHEDULE),
];

/// And one more where the pod uses the node's network.
const NETWORK_UNAVAILABLE: (&str, &str) = ("node.kubernetes.io/network-unavailable", NO_SCHEDULE);

/// What a node is for a daemon set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// A pod shall run there.
    Run,
    /// A pod that is there may stay; none is made.
    Stay,
    /// No pod may be there.
    Leave,
}

/// What the node is for pods of this (prepared) template.
pub(super) fn place(pod: &PodSpec, node: &Node) -> Place {
    let node_name = name(&node.metadata);
    let named = pod.node_name.as_deref().filter(|n| !n.is_empty());
    if named.is_some_and(|n| n != node_name) || !selects(pod, node) {
        return Place::Leave;
    }
    let tolerations = pod.tolerations.as_deref().unwrap_or_default();
    let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    let untolerated = |t: &&Taint| !tolerations.iter().any(|tolerated| tolerates(tolerated, t));
    let mut place = Place::Run;
    for taint in taints.filter(untolerated) {
        match taint.effect.as_str() {
            NO_EXECUTE => return Place::Leave,
            NO_SCHEDULE => place = Place::Stay,
            _ => {}
        }
    }
    place
}

/// Node selector and required node affinity.
fn selects(pod: &PodSpec, node: &Node) -> bool {
    let node_labels = labels(&node.metadata);
    let selected = pod.node_selector.iter().flatten().all(|(k, v)| node_labels.get(k) == Some(v));
    let required = pod
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|r| r.node_selector_terms.iter().any(|t| term_matches(t, node)))
}

/// A term without requirements matches nothing.
fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let fields = BTreeMap::from([(NODE_NAME.to_owned(), name(&node.metadata).to_owned())]);
    let by_label = term.match_expressions.as_deref().unwrap_or_default();
    let by_field = term.match_fields.as_deref().unwrap_or_default();
    (!by_label.is_empty() || !by_field.is_empty())
        && by_label.iter().all(|r| requirement_holds(r, labels(&node.metadata)))
        && by_field.iter().all(|r| requirement_holds(r, &fields))
}

fn requirement_holds(requirement: &NodeSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let value = labels.get(&requirement.key);
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|v| values.contains(v));
    let numbers = || Some((value?.parse::<i64>().ok()?, values.first()?.parse::<i64>().ok()?));
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(value, limit)| value > limit),
        "Lt" => numbers().is_some_and(|(value, limit)| value < limit),
        _ => false,
    }
}

/// Adds the tolerations that every daemon pod has.
pub(super) fn tolerate(pod: &mut PodSpec) {
    let on_host = pod.host_network == Some(true);
    let tolerations = pod.tolerations.get_or_insert_default();
    for (key, effect) in TOLERATED.into_iter().chain(on_host.then_some(NETWORK_UNAVAILABLE)) {
        let toleration = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        let is_same = |t: &Toleration| {
            (&t.key, &t.operator, &t.effect) == (&toleration.key, &toleration.operator, &toleration.effect)
                && t.value.as_deref().unwrap_or_default().is_empty()
        };
        match tolerations.iter_mut().find(|t| is_same(t)) {
            // Without an end: whatever time the template gave.
            Some(there) => *there = toleration,
            None => tolerations.push(toleration),
        }
    }
}

/// Ties the pod to the node. The node met the template's own required terms when it was chosen; they give way.
pub(super) fn tie(pod: &mut PodSpec, node: &str) {
    let term = NodeSelectorTerm {
        match_expressions: None,
        match_fields: Some(vec![NodeSelectorRequirement {
            key: NODE_NAME.to_owned(),
            operator: "In".to_owned(),
            values: Some(vec![node.to_owned()]),
        }]),
    };
    let affinity: &mut Affinity = pod.affinity.get_or_insert_default();
    let affinity = affinity.node_affinity.get_or_insert_default();
    affinity.required_during_scheduling_ignored_during_execution =
        Some(NodeSelector { node_selector_terms: vec![term] });
}

/// The node that a daemon pod is for: the one it is bound or tied to.
pub(super) fn node_of(pod: &Pod) -> Option<&str> {
    let bound = pods::node_name(pod);
    if !bound.is_empty() {
        return Some(bound);
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let fields = required.node_selector_terms.iter().flat_map(|t| t.match_fields.iter().flatten());
    let mut names =
        fields.filter(|r| r.key == NODE_NAME && r.operator == "In").filter_map(|r| r.values.as_deref());
    names.find_map(|values| match values {
        [node] => Some(node.as_str()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check(pod: Value, node: Value, want: Place) {
        let mut pod: PodSpec = serde_json::from_value(pod).expect("pod");
        pod.containers = Vec::new();
        tolerate(&mut pod);
        let mut full = json!({"metadata": {"name": "n1", "labels": {"disk": "ssd", "gen": "4"}}});
        full["spec"] = json!({"taints": node});
        let node: Node = serde_json::from_value(full).expect("node");
        assert_eq!(place(&pod, &node), want, "{pod:?} {node:?}");
    }

    fn affinity(term: Value) -> Value {
        json!({"containers": [], "affinity": {"nodeAffinity":
            {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}})
    }

    #[test]
    fn pods_run_where_the_template_selects_the_node() {
        let none = json!([]);
        check(json!({"containers": []}), none.clone(), Place::Run);
        check(json!({"containers": [], "nodeSelector": {"disk": "ssd"}}), none.clone(), Place::Run);
        check(json!({"containers": [], "nodeSelector": {"disk": "hdd"}}), none.clone(), Place::Leave);
        check(json!({"containers": [], "nodeName": "n2"}), none.clone(), Place::Leave);
        let expression = |operator: &str, values: Value| {
            affinity(json!({"matchExpressions": [{"key": "gen", "operator": operator, "values": values}]}))
        };
        check(expression("Gt", json!(["3"])), none.clone(), Place::Run);
        check(expression("NotIn", json!(["4"])), none.clone(), Place::Leave);
        let field = |node: &str| {
            affinity(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}))
        };
        check(field("n1"), none.clone(), Place::Run);
        check(field("n2"), none.clone(), Place::Leave);
        check(affinity(json!({})), none, Place::Leave);
    }

    #[test]
    fn taints_keep_new_pods_away_and_drive_pods_out() {
        let pod = json!({"containers": []});
        let taint = |key: &str, effect: &str| json!([{"key": key, "effect": effect}]);
        check(pod.clone(), taint("mine", "PreferNoSchedule"), Place::Run);
        check(pod.clone(), taint("mine", "NoSchedule"), Place::Stay);
        check(pod.clone(), taint("mine", "NoExecute"), Place::Leave);
        check(pod.clone(), taint("node.kubernetes.io/unschedulable", "NoSchedule"), Place::Run);
        check(pod.clone(), taint("node.kubernetes.io/unreachable", "NoExecute"), Place::Run);
        check(pod, taint("node.kubernetes.io/network-unavailable", "NoSchedule"), Place::Stay);
        let host = json!({"containers": [], "hostNetwork": true});
        check(host, taint("node.kubernetes.io/network-unavailable", "NoSchedule"), Place::Run);
    }

    #[test]
    fn a_tied_pod_knows_its_node() {
        let mut pod = Pod::default();
        assert_eq!(node_of(&pod), None);
        let mut spec = PodSpec::default();
        tie(&mut spec, "n7");
        pod.spec = Some(spec);
        assert_eq!(node_of(&pod), Some("n7"));
    }
}
