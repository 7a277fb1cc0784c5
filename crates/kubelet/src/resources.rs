//! Requests and limits as the kernel's numbers: QoS classes, cgroup parents, shares, quotas, out-of-memory scores.
//!
//! Rule: Kubernetes documentation, "Pod Quality of Service Classes", "Node-pressure Eviction" (oom_score_adj).

use std::collections::BTreeMap;

use api::resources::{Side, of_pod};
use cri::v1::{HugepageLimit, LinuxContainerResources};
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::json;

use crate::eviction::rank::is_critical;
use crate::plan::is_sidecar;

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

const CLASSES: [&str; 3] = ["Guaranteed", "Burstable", "BestEffort"];

/// Guaranteed, Burstable or BestEffort.
pub fn qos_class(pod: &Pod) -> &'static str {
    // what the API server said holds: a resize changes nothing of it
    let said = pod.status.as_ref().and_then(|status| status.qos_class.as_deref());
    if let Some(class) = said.and_then(|said| CLASSES.into_iter().find(|class| *class == said)) {
        return class;
    }
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
            let request = get(resources.requests.as_ref(), name).map(milli);
            let limit = get(resources.limits.as_ref(), name).map(milli).unwrap_or(0);
            any |= request.is_some_and(|request| request > 0) || limit > 0;
            // what is not asked for is what is allowed; nothing is nothing
            guaranteed &= limit > 0 && request.is_none_or(|request| request == limit);
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

/// The kernel's shares for thousandths of processors.
pub fn shares(milli: i64) -> i64 {
    (milli.saturating_mul(1024) / 1000).clamp(2, 262_144)
}

/// What the pod as a whole asks for of a resource, in units.
pub fn requested(pod: &Pod, name: &str) -> u64 {
    let amounts = of_pod(&json!(pod), Side::Requests);
    amounts.get(name).map_or(0, |amount| u64::try_from(amount.value()).unwrap_or(0))
}

/// What it asks for of the processors, in thousandths.
pub fn requested_milli(pod: &Pod) -> i64 {
    of_pod(&json!(pod), Side::Requests).get("cpu").map_or(0, |amount| amount.millis())
}

/// What it asks for of processors (in thousandths) and memory (bytes), whatever its status says of earlier answers.
pub fn asked(pod: &Pod) -> [i64; 2] {
    let pod = &Pod { spec: pod.spec.clone(), ..Pod::default() };
    [requested_milli(pod), i64::try_from(requested(pod, "memory")).unwrap_or(i64::MAX)]
}

/// What it asks for as a whole, whatever its status says of earlier answers, as its status is to say it.
pub fn all_requests(pod: &Pod) -> BTreeMap<String, Quantity> {
    let pod = &Pod { spec: pod.spec.clone(), ..Pod::default() };
    let amounts = of_pod(&json!(pod), Side::Requests).into_iter();
    amounts.map(|(name, amount)| (name, Quantity(amount.to_string()))).collect()
}

/// What it may have of a resource at most, in units, where there is a limit.
pub fn limited(pod: &Pod, name: &str) -> Option<u64> {
    let amounts = of_pod(&json!(pod), Side::Limits);
    amounts.get(name).and_then(|amount| u64::try_from(amount.value()).ok())
}

/// What of the node the kernel's numbers depend on.
#[derive(Debug, Clone, Default)]
pub struct Node {
    /// Memory, in bytes.
    pub memory: i64,
    /// Control groups are of version 2.
    pub v2: bool,
    /// Limits of processor time hold.
    pub cpu_quota: bool,
    /// When memory is short, all processes of a container end together.
    pub oom_group: bool,
    /// What containers get of the node's swap.
    pub swap: Swap,
    /// Sizes of huge pages that the node has and that its groups can be kept from, as they write them: who asks for none has none.
    pub pages: Vec<String>,
}

/// What containers get of the node's swap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Swap {
    /// What the kernel gives: it does not count swap.
    #[default]
    Unknown,
    /// Nothing.
    No,
    /// Of so many bytes, as much as of the node's memory they ask for.
    Limited(u64),
}

/// The kernel's numbers for a container.
pub fn linux(container: &Container, pod: &Pod, node: &Node) -> LinuxContainerResources {
    let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
    let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    let cpu_limit = get(limits, "cpu").map(milli).unwrap_or(0);
    let cpu_request = get(requests, "cpu").map(milli).unwrap_or(cpu_limit);
    let memory_limit = get(limits, "memory").map(units).unwrap_or(0);
    let mut pages: BTreeMap<String, u64> = node.pages.iter().map(|size| (size.clone(), 0)).collect();
    let own = limits.into_iter().flatten();
    pages.extend(
        own.filter_map(|(name, amount)| {
            Some((page_size(name)?, u64::try_from(units(&amount.0)).unwrap_or(0)))
        }),
    );
    let bounded = node.cpu_quota && cpu_limit > 0;
    let mut numbers = LinuxContainerResources {
        hugepage_limits: pages
            .into_iter()
            .map(|(page_size, limit)| HugepageLimit { page_size, limit })
            .collect(),
        cpu_shares: shares(cpu_request),
        cpu_period: if bounded { PERIOD } else { 0 },
        cpu_quota: if bounded { (cpu_limit * PERIOD / 1000).max(1000) } else { 0 },
        memory_limit_in_bytes: memory_limit,
        oom_score_adj: oom_score_adj(container, pod, node.memory),
        ..LinuxContainerResources::default()
    };
    if node.v2 && node.oom_group {
        numbers.unified.insert("memory.oom.group".to_owned(), "1".to_owned());
    }
    match node.swap {
        Swap::Unknown => {}
        Swap::No | Swap::Limited(_) if !node.v2 => numbers.memory_swap_limit_in_bytes = memory_limit,
        swap => {
            let most = swap_limit(container, pod, node.memory, swap);
            numbers.unified.insert("memory.swap.max".to_owned(), most.to_string());
        }
    }
    numbers
}

/// The kernel's numbers for the containers of a pod together, for runtimes that make a machine for each pod.
pub fn sandbox(pod: &Pod, node: &Node) -> LinuxContainerResources {
    let mut bare = pod.clone();
    if let Some(spec) = &mut bare.spec {
        spec.overhead = None;
    }
    let object = json!(bare);
    let (requests, limits) = (of_pod(&object, Side::Requests), of_pod(&object, Side::Limits));
    let cpu = |amounts: &BTreeMap<String, _>| amounts.get("cpu").map_or(0, api::quantity::Quantity::millis);
    let memory = limits.get("memory").map_or(0, api::quantity::Quantity::value);
    together(cpu(&requests), cpu(&limits), memory, node)
}

/// The same for what the machine itself takes.
pub fn overhead(amounts: &BTreeMap<String, Quantity>, node: &Node) -> LinuxContainerResources {
    let cpu = amounts.get("cpu").map_or(0, |amount| milli(&amount.0));
    together(cpu, cpu, amounts.get("memory").map_or(0, |amount| units(&amount.0)), node)
}

fn together(cpu: i64, limit: i64, memory: i64, node: &Node) -> LinuxContainerResources {
    let bounded = node.cpu_quota && limit > 0;
    LinuxContainerResources {
        cpu_shares: shares(if cpu > 0 { cpu } else { limit }),
        cpu_period: if bounded { PERIOD } else { 0 },
        cpu_quota: if bounded { (limit * PERIOD / 1000).max(1000) } else { 0 },
        memory_limit_in_bytes: memory,
        ..LinuxContainerResources::default()
    }
}

/// Bytes of swap that a container may use.
fn swap_limit(container: &Container, pod: &Pod, memory: i64, swap: Swap) -> i64 {
    let Swap::Limited(all) = swap else { return 0 };
    let resources = container.resources.as_ref();
    let request = get(resources.and_then(|r| r.requests.as_ref()), "memory").map_or(0, units);
    let limit = get(resources.and_then(|r| r.limits.as_ref()), "memory").map_or(0, units);
    if qos_class(pod) != "Burstable" || request == 0 || request == limit || is_critical(pod) {
        return 0;
    }
    let share = i128::from(request) * i128::from(all) / i128::from(memory.max(1));
    i64::try_from(share).unwrap_or(i64::MAX)
}

/// Who ends first when the node's memory is short: 1000 first, -1000 never.
fn oom_score_adj(container: &Container, pod: &Pod, memory: i64) -> i64 {
    const SURE: i64 = -997;
    let class = pod.spec.as_ref().and_then(|spec| spec.priority_class_name.as_deref());
    if is_critical(pod) && class == Some("system-node-critical") {
        return SURE;
    }
    match qos_class(pod) {
        "Guaranteed" => return SURE,
        "BestEffort" => return 1000,
        _ => {}
    }
    let requested = |container: &Container| {
        let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
        get(requests, "memory").map_or(0, units)
    };
    let Some(spec) = &pod.spec else { return 999 };
    let init = spec.init_containers.as_deref().unwrap_or_default();
    // what the pod as a whole asks for beyond its containers is for each of them alike
    let whole = get(spec.resources.as_ref().and_then(|r| r.requests.as_ref()), "memory").map(units);
    let rest = whole.map_or(0, |whole| {
        let all = i64::try_from(init.len() + spec.containers.len()).unwrap_or(i64::MAX).max(1);
        let own: i64 = spec.containers.iter().map(requested).sum();
        let sidecars: i64 = init.iter().filter(|c| is_sidecar(c)).map(requested).sum();
        (whole - own - sidecars).max(0) / all
    });
    let score = |bytes: i64| 1000 - 1000_i64.saturating_mul(bytes + rest) / memory.max(1);
    let mut found = score(requested(container));
    if is_sidecar(container) {
        // it does not end before those that it is there for
        found = found.min(score(spec.containers.iter().map(requested).min().unwrap_or(0)));
    }
    found.clamp(1000 + SURE, 999)
}

/// The size of the huge pages that a resource stands for, as the kernel's groups write it: `2MB` for `hugepages-2Mi`.
pub fn page_size(resource: &str) -> Option<String> {
    let mut size = units(resource.strip_prefix("hugepages-")?);
    let mut unit = 0;
    while size >= 1024 && size % 1024 == 0 && unit < 3 {
        size /= 1024;
        unit += 1;
    }
    Some(format!("{size}{}", ["B", "KB", "MB", "GB"][unit]))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const GIB: i64 = 1 << 30;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn container(name: &str, request: &str) -> Value {
        json!({"name": name, "resources": {"requests": {"memory": request}}})
    }

    #[test]
    fn who_asked_for_much_ends_late_a_sidecar_not_before_its_pod_and_the_nodes_own_last() {
        let score = |pod: &Pod, name: &str| {
            let (container, _) = crate::plan::find(pod, name).unwrap();
            oom_score_adj(&container, pod, 10 * GIB)
        };
        let mut side = container("side", "0");
        side["restartPolicy"] = json!("Always");
        let spec = json!({"initContainers": [side, container("init", "0")],
            "containers": [container("a", "1Gi"), container("b", "5Gi")]});
        let burstable = pod(spec.clone());
        let scores = ["a", "b", "side", "init"].map(|name| score(&burstable, name));
        assert_eq!(scores, [900, 500, 900, 999]);
        let mut critical = spec.clone();
        critical["priority"] = json!(2_000_001_000);
        critical["priorityClassName"] = json!("system-node-critical");
        assert_eq!(score(&pod(critical), "a"), -997);
        assert_eq!(score(&pod(json!({"containers": [{"name": "a"}]})), "a"), 1000);
        let whole = json!({"resources": {"requests": {"memory": "4Gi"}},
            "containers": [{"name": "a"}, container("b", "2Gi")]});
        let whole = pod(whole);
        assert_eq!(["a", "b"].map(|name| score(&whole, name)), [900, 700]);
    }

    #[test]
    fn the_class_is_what_the_api_server_said_or_what_requests_and_limits_say() {
        let full = json!({"cpu": "1", "memory": "1Gi"});
        let of = |requests: Value| {
            let resources = json!({"limits": full, "requests": requests});
            pod(json!({"containers": [{"name": "c", "resources": resources}]}))
        };
        let classes = [of(full.clone()), of(Value::Null), of(json!({"cpu": "0", "memory": "1Gi"}))];
        assert_eq!(classes.each_ref().map(qos_class), ["Guaranteed", "Guaranteed", "Burstable"]);
        let mut said = classes[0].clone();
        said.status.get_or_insert_default().qos_class = Some("Burstable".to_owned());
        assert_eq!(qos_class(&said), "Burstable");
    }

    #[test]
    fn huge_pages_are_for_those_who_ask_for_them() {
        let node = Node {
            pages: ["hugepages-1Gi", "hugepages-2Mi"].iter().filter_map(|name| page_size(name)).collect(),
            ..Node::default()
        };
        let has = |limits: Value| {
            let pod = pod(json!({"containers": [{"name": "a", "resources": {"limits": limits}}]}));
            let numbers = linux(&pod.spec.as_ref().unwrap().containers[0], &pod, &node);
            let pages = numbers.hugepage_limits.into_iter();
            pages.map(|one| format!("{}={}", one.page_size, one.limit)).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(has(json!({"cpu": "1"})), "1GB=0 2MB=0");
        assert_eq!(has(json!({"hugepages-2Mi": "4Mi"})), "1GB=0 2MB=4194304");
    }

    #[test]
    fn swap_is_shared_as_memory_is_and_one_killed_process_takes_the_container_with_it() {
        let node = |v2: bool, swap: Swap| Node {
            memory: 8 * GIB,
            v2,
            cpu_quota: true,
            oom_group: true,
            swap,
            pages: Vec::new(),
        };
        let check = |pod: &Pod, node: &Node, expected: Option<&str>, both: i64| {
            let numbers = linux(&pod.spec.as_ref().unwrap().containers[0], pod, node);
            let swap = numbers.unified.get("memory.swap.max").map(String::as_str);
            assert_eq!((swap, numbers.memory_swap_limit_in_bytes), (expected, both));
            assert_eq!(numbers.unified.contains_key("memory.oom.group"), node.v2);
        };
        let limited = Swap::Limited(4 << 30);
        let burstable = pod(json!({"containers": [container("a", "2Gi")]}));
        check(&burstable, &node(true, limited), Some("1073741824"), 0);
        check(&burstable, &node(true, Swap::No), Some("0"), 0);
        check(&burstable, &node(true, Swap::Unknown), None, 0);
        check(&pod(json!({"containers": [{"name": "a"}]})), &node(true, limited), Some("0"), 0);
        let amounts = json!({"memory": "1Gi"});
        let full = json!({"name": "a", "resources": {"limits": amounts, "requests": amounts}});
        let full = pod(json!({"containers": [full]}));
        check(&full, &node(true, limited), Some("0"), 0);
        check(&full, &node(false, limited), None, GIB);
        let amounts = json!({"limits": {"cpu": "500m"}});
        let slow = pod(json!({"containers": [{"name": "a", "resources": amounts}]}));
        let quota = |node: &Node| linux(&slow.spec.as_ref().unwrap().containers[0], &slow, node).cpu_quota;
        assert_eq!(quota(&node(true, Swap::No)), 50_000);
        assert_eq!(quota(&Node { cpu_quota: false, ..node(true, Swap::No) }), 0);
    }
}
