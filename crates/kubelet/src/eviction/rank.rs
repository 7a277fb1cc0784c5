//! Whom it hits first when something is short: pure.
//!
//! Rule: Kubernetes documentation, "Node-pressure Eviction", "Pod selection for kubelet eviction".

use std::cmp::Reverse;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::threshold::Signal;
use crate::usage::PodUsage;

/// Pods with this priority or a higher one are of the system: nothing of the node's doing ends them.
const SYSTEM_CRITICAL: i32 = 2_000_000_000;

/// Whether the node must not end the pod: static pods, and those of the system.
pub fn is_critical(pod: &Pod) -> bool {
    crate::static_pods::is_static(pod)
        || pod
            .spec
            .as_ref()
            .and_then(|spec| spec.priority)
            .is_some_and(|priority| priority >= SYSTEM_CRITICAL)
}

/// What the pod asks for of what the signal is about, in its unit.
pub fn request(pod: &Pod, signal: Signal) -> u64 {
    let name = match signal {
        Signal::Memory => "memory",
        Signal::NodeFs | Signal::ImageFs => "ephemeral-storage",
        Signal::NodeFsInodes | Signal::ImageFsInodes | Signal::Pid => return 0,
    };
    crate::resources::requested(pod, name)
}

/// What the pod uses of it.
pub fn used(usage: &PodUsage, signal: Signal) -> u64 {
    match signal {
        Signal::Memory => usage.memory(),
        Signal::NodeFs | Signal::ImageFs => usage.storage(),
        Signal::NodeFsInodes | Signal::ImageFsInodes => usage.inodes,
        Signal::Pid => usage.pids,
    }
}

/// The pods, best victim first: those that use more than they asked for, then by priority, then by how much more.
/// For process ids only priority and number count.
pub fn order(signal: Signal, pods: &mut [(Arc<Pod>, PodUsage)]) {
    pods.sort_by_cached_key(|(pod, usage)| {
        let (used, request) = (used(usage, signal), request(pod, signal));
        let exceeds = signal != Signal::Pid && used > request;
        let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
        (Reverse(exceeds), priority, Reverse(i128::from(used) - i128::from(request)))
    });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::usage::ContainerUsage;

    fn pod(name: &str, priority: i32, request: &str, used: u64) -> (Arc<Pod>, PodUsage) {
        let pod = json!({"metadata": {"name": name}, "spec": {"priority": priority, "containers": [
            {"name": "c", "resources": {"requests": {"memory": request}}}]}});
        let container = ContainerUsage { memory: used, ..ContainerUsage::default() };
        let usage =
            PodUsage { containers: [("c".to_owned(), container)].into(), pids: used, ..PodUsage::default() };
        (Arc::new(serde_json::from_value(pod).unwrap()), usage)
    }

    fn names(signal: Signal, mut pods: Vec<(Arc<Pod>, PodUsage)>) -> Vec<String> {
        order(signal, &mut pods);
        pods.iter().map(|(pod, _)| pod.metadata.name.clone().unwrap()).collect()
    }

    #[test]
    fn who_takes_more_than_he_asked_for_goes_first_then_the_least_important_then_the_greediest() {
        let pods = || {
            vec![
                pod("modest", 0, "100", 90),
                pod("modest-low", -5, "100", 20),
                pod("greedy-important", 10, "10", 500),
                pod("greedy", 0, "10", 300),
                pod("greedier", 0, "0", 400),
            ]
        };
        let expected = ["greedier", "greedy", "greedy-important", "modest-low", "modest"];
        assert_eq!(names(Signal::Memory, pods()), expected);
        let expected = ["modest-low", "greedier", "greedy", "modest", "greedy-important"];
        assert_eq!(names(Signal::Pid, pods()), expected);
    }

    #[test]
    fn pods_of_the_system_and_static_ones_are_spared() {
        let critical = |pod: serde_json::Value| is_critical(&serde_json::from_value(pod).unwrap());
        assert!(critical(json!({"spec": {"priority": 2_000_001_000, "containers": []}})));
        assert!(critical(json!({"metadata": {"annotations": {"kubernetes.io/config.source": "file"}}})));
        assert!(!critical(json!({"spec": {"priority": 1_000_000_000, "containers": []}})));
    }
}
