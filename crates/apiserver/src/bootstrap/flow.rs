//! The default priority levels and flow schemas.
//!
//! Rule: Kubernetes documentation, "API Priority and Fairness". [`crate::fairness`] keeps these objects and
//! puts them into force.

use jiff::Timestamp;
use serde_json::{Value, json};

/// Name, shares, lendable percent, and of a queue: queues and hand size.
type Level = (&'static str, u32, u32, Option<(u32, u32)>);

const LEVELS: &[Level] = &[
    ("catch-all", 5, 0, None),
    ("global-default", 20, 50, Some((128, 6))),
    ("leader-election", 10, 0, Some((16, 4))),
    ("node-high", 40, 25, Some((64, 6))),
    ("system", 30, 33, Some((64, 6))),
    ("workload-high", 40, 50, Some((128, 6))),
    ("workload-low", 100, 90, Some((128, 6))),
];

/// The longest a queue may get.
const QUEUE_LENGTH: u32 = 50;

fn meta(name: &str) -> Value {
    json!({"name": name, "annotations": {"apf.kubernetes.io/autoupdate-spec": "true"}})
}

/// The priority levels.
pub fn levels() -> Vec<Value> {
    let exempt = json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}});
    let limited = LEVELS.iter().map(|(name, shares, lendable, queue)| {
        let response = match queue {
            Some((queues, hand)) => json!({"type": "Queue",
                "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": QUEUE_LENGTH}}),
            None => json!({"type": "Reject"}),
        };
        let spec = json!({"type": "Limited", "limited": {"nominalConcurrencyShares": shares,
            "limitResponse": response, "lendablePercent": lendable}});
        (*name, spec)
    });
    std::iter::once(("exempt", exempt))
        .chain(limited)
        .map(|(name, spec)| {
            json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "PriorityLevelConfiguration",
                "metadata": meta(name), "spec": spec, "status": {}})
        })
        .collect()
}

fn group(name: &str) -> Value {
    json!({"kind": "Group", "group": {"name": name}})
}

fn user(name: &str) -> Value {
    json!({"kind": "User", "user": {"name": name}})
}

fn everything() -> Value {
    json!({"resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true,
            "namespaces": ["*"]}],
        "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]})
}

/// The flow schemas, said to have found their levels at `now`.
pub fn schemas(now: Timestamp) -> Vec<Value> {
    let all = || json!([group("system:unauthenticated"), group("system:authenticated")]);
    let system_accounts =
        || json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": "kube-system", "name": "*"}});
    let leases = json!({"resourceRules": [{"verbs": ["get", "create", "update"],
        "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "namespaces": ["*"]}]});
    let node_state = json!({"resourceRules": [
        {"verbs": ["*"], "apiGroups": [""], "resources": ["nodes", "nodes/status"], "clusterScope": true,
            "namespaces": ["*"]},
        {"verbs": ["*"], "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "namespaces": ["*"]}]});
    let probes = json!({"nonResourceRules": [
        {"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}]});
    let (manager, scheduler) = (user("system:kube-controller-manager"), user("system:kube-scheduler"));
    let nodes = || json!([group("system:nodes")]);
    [
        ("exempt", "exempt", 1, "", json!([group("system:masters")]), everything()),
        ("probes", "exempt", 2, "", all(), probes),
        (
            "system-leader-election",
            "leader-election",
            100,
            "ByUser",
            json!([manager, scheduler, system_accounts()]),
            leases,
        ),
        ("system-node-high", "node-high", 400, "ByUser", nodes(), node_state),
        ("system-nodes", "system", 500, "ByUser", nodes(), everything()),
        ("kube-controller-manager", "workload-high", 800, "ByNamespace", json!([manager]), everything()),
        ("kube-scheduler", "workload-high", 800, "ByNamespace", json!([scheduler]), everything()),
        (
            "kube-system-service-accounts",
            "workload-high",
            900,
            "ByNamespace",
            json!([system_accounts()]),
            everything(),
        ),
        (
            "service-accounts",
            "workload-low",
            9000,
            "ByUser",
            json!([group("system:serviceaccounts")]),
            everything(),
        ),
        ("global-default", "global-default", 9900, "ByUser", all(), everything()),
        ("catch-all", "catch-all", 10000, "ByUser", all(), everything()),
    ]
    .into_iter()
    .map(|(name, level, precedence, by, subjects, mut rule)| {
        rule["subjects"] = subjects;
        let mut spec = json!({"priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence,
            "rules": [rule]});
        if !by.is_empty() {
            spec["distinguisherMethod"] = json!({"type": by});
        }
        let found = format!(
            "This FlowSchema references the PriorityLevelConfiguration object named {level:?} and it exists"
        );
        json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": meta(name),
            "spec": spec, "status": {"conditions": [{"type": "Dangling", "status": "False", "reason": "Found",
                "lastTransitionTime": api::meta::format_time(now), "message": found}]}})
    })
    .collect()
}
