//! Requests and limits as the kernel's numbers: QoS classes, cgroup parents, shares, quotas, out-of-memory scores.
//!
//! Rule: Kubernetes documentation, "Pod Quality of Service Classes", "Node-pressure Eviction" (oom_score_adj).

use cri::v1::LinuxContainerResources;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// A quantity in thousandths, rounded up; what cannot be read counts as 0 (the API server lets none through).
pub fn milli(text: &str) -> i64 {
    text.parse::<api::quantity::Quantity>().map_or(0, |q| q.millis())
}

/// A quantity in units, rounded up.
pub fn units(text: &str) -> i64 {
    text.parse::<api::quantity::Quantity>().map_or(0, |q| q.value())
}

fn get<'a>(list: Option<&'a std::collections::BTreeMap<String, Quantity>>, name: &str) -> Option<&'a str> {
    list.and_then(|l| l.get(name)).map(|q| q.0.as_str())
}

/// Guaranteed, Burstable or BestEffort.
pub fn qos_class(pod: &Pod) -> &'static str {
    let Some(spec) = &pod.spec else { return "BestEffort" };
    let all: Vec<&Container> = spec.containers.iter().chain(spec.init_containers.iter().flatten()).collect();
    let (mut any, mut guaranteed) = (false, true);
    let empty = ResourceRequirements::default();
    for container in all {
        let resources = container.resources.as_ref().unwrap_or(&empty);
        for name in ["cpu", "memory"] {
            let request = get(resources.requests.as_ref(), name).map(milli).unwrap_or(0);
            let limit = get(resources.limits.as_ref(), name).map(milli).unwrap_or(0);
            any |= request > 0 || limit > 0;
            guaranteed &= limit > 0 && (request == limit || request == 0);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// The cgroup that holds a pod's containers.
pub fn cgroup_parent(root: &str, pod: &Pod) -> String {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let root = root.trim_end_matches('/');
    match qos_class(pod) {
        "Guaranteed" => format!("{root}/pod{uid}"),
        "Burstable" => format!("{root}/burstable/pod{uid}"),
        _ => format!("{root}/besteffort/pod{uid}"),
    }
}

const PERIOD: i64 = 100_000;

/// The kernel's numbers for a container; `memory` is the node's, in bytes.
pub fn linux(container: &Container, pod: &Pod, memory: i64) -> LinuxContainerResources {
    let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
    let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    let cpu_limit = get(limits, "cpu").map(milli).unwrap_or(0);
    let cpu_request = get(requests, "cpu").map(milli).unwrap_or(cpu_limit);
    let memory_limit = get(limits, "memory").map(units).unwrap_or(0);
    let memory_request = get(requests, "memory").map(units).unwrap_or(0);
    let oom_score_adj = match qos_class(pod) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => (1000 - (1000 * memory_request) / memory.max(1)).clamp(3, 999),
    };
    LinuxContainerResources {
        cpu_shares: (cpu_request * 1024 / 1000).max(2),
        cpu_period: if cpu_limit > 0 { PERIOD } else { 0 },
        cpu_quota: if cpu_limit > 0 { (cpu_limit * PERIOD / 1000).max(1000) } else { 0 },
        memory_limit_in_bytes: memory_limit,
        oom_score_adj,
        ..LinuxContainerResources::default()
    }
}
