//! Requests and limits as the kernel's numbers: QoS classes, cgroup parents, shares, quotas, out-of-memory scores.
//!
//! Rule: Kubernetes documentation, "Pod Quality of Service Classes", "Node-pressure Eviction" (oom_score_adj).

use api::resources::{Side, of_pod};
use cri::v1::{HugepageLimit, LinuxContainerResources};
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::json;

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
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    // resources of the pod as a whole decide alone
    let all: Vec<Option<&ResourceRequirements>> = match &spec.resources {
        Some(whole) => vec![Some(whole)],
        None => containers.map(|container| container.resources.as_ref()).collect(),
    };
    let (mut any, mut guaranteed) = (false, true);
    let empty = ResourceRequirements::default();
    for resources in all {
        let resources = resources.unwrap_or(&empty);
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

/// The kernel's period of processor limits, in microseconds.
pub const PERIOD: i64 = 100_000;

/// What the pod as a whole asks for of a resource, in units.
pub fn requested(pod: &Pod, name: &str) -> u64 {
    let amounts = of_pod(&json!(pod), Side::Requests);
    amounts.get(name).map_or(0, |amount| u64::try_from(amount.value()).unwrap_or(0))
}

/// What it asks for of the processors, in thousandths.
pub fn requested_milli(pod: &Pod) -> i64 {
    of_pod(&json!(pod), Side::Requests).get("cpu").map_or(0, |amount| amount.millis())
}

/// What it may have of a resource at most, in units, where there is a limit.
pub fn limited(pod: &Pod, name: &str) -> Option<u64> {
    let amounts = of_pod(&json!(pod), Side::Limits);
    amounts.get(name).and_then(|amount| u64::try_from(amount.value()).ok())
}

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
    let pages = limits.into_iter().flatten().filter_map(|(name, amount)| {
        let page_size = page_size(name.strip_prefix("hugepages-")?);
        Some(HugepageLimit { page_size, limit: u64::try_from(units(&amount.0)).unwrap_or(0) })
    });
    LinuxContainerResources {
        hugepage_limits: pages.collect(),
        cpu_shares: (cpu_request * 1024 / 1000).max(2),
        cpu_period: if cpu_limit > 0 { PERIOD } else { 0 },
        cpu_quota: if cpu_limit > 0 { (cpu_limit * PERIOD / 1000).max(1000) } else { 0 },
        memory_limit_in_bytes: memory_limit,
        oom_score_adj,
        ..LinuxContainerResources::default()
    }
}

/// The size of a huge page as the kernel's groups write it: `2MB` for `2Mi`.
fn page_size(text: &str) -> String {
    let mut size = units(text);
    let mut unit = 0;
    while size >= 1024 && size % 1024 == 0 && unit < 3 {
        size /= 1024;
        unit += 1;
    }
    format!("{size}{}", ["B", "KB", "MB", "GB"][unit])
}
