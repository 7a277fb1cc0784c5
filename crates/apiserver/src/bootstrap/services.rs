//! One `APIService` for each built-in group and version: all are served here.

use api::kinds::KindTable;
use jiff::Timestamp;
use serde_json::{Value, json};

/// The order of groups in discovery: the priority each group asks for.
const PRIORITIES: &[(&str, i32)] = &[
    ("", 18000),
    ("apps", 17800),
    ("events.k8s.io", 17750),
    ("authentication.k8s.io", 17700),
    ("authorization.k8s.io", 17600),
    ("autoscaling", 17500),
    ("batch", 17400),
    ("certificates.k8s.io", 17300),
    ("networking.k8s.io", 17200),
    ("policy", 17100),
    ("rbac.authorization.k8s.io", 17000),
    ("storage.k8s.io", 16800),
    ("admissionregistration.k8s.io", 16700),
    ("apiextensions.k8s.io", 16700),
    ("scheduling.k8s.io", 16600),
    ("coordination.k8s.io", 16500),
    ("node.k8s.io", 16300),
    ("discovery.k8s.io", 16200),
    ("resource.k8s.io", 16200),
    ("flowcontrol.apiserver.k8s.io", 16100),
    ("storagemigration.k8s.io", 15800),
];

/// The objects, said to be available since `now`. The API service group itself has none.
pub fn objects(table: &KindTable, now: Timestamp) -> Vec<Value> {
    let mut list = Vec::new();
    for group in table.groups() {
        let Some((_, priority)) = PRIORITIES.iter().find(|(name, _)| *name == group.name) else { continue };
        for version in &group.versions {
            let version_priority = match (group.name.as_str(), version.as_str()) {
                ("", _) => 1,
                ("autoscaling", "v2") => 30,
                ("scheduling.k8s.io", "v1alpha2") | ("storagemigration.k8s.io", _) => 9,
                ("resource.k8s.io", "v1beta2") => 15,
                ("flowcontrol.apiserver.k8s.io" | "resource.k8s.io", _) => 21,
                _ => 15,
            };
            let mut spec = json!({"version": version, "groupPriorityMinimum": priority,
                "versionPriority": version_priority});
            if !group.name.is_empty() {
                spec["group"] = json!(group.name);
            }
            list.push(object(&format!("{version}.{}", group.name), spec, "onstart", now));
        }
    }
    list
}

/// What says how an object that is served here is kept: `onstart` is made at start only, `true` at all times.
pub const AUTOMANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";

/// The object of a version that is served here, available since `now`.
pub(super) fn object(name: &str, spec: Value, automanaged: &str, now: Timestamp) -> Value {
    json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": name, "labels": {AUTOMANAGED: automanaged}},
        "spec": spec,
        "status": {"conditions": [{"type": "Available", "status": "True", "reason": "Local",
            "lastTransitionTime": api::meta::format_time(now),
            "message": "Local APIServices are always available"}]}})
}
