//! Whom it hits first when something is short: pure.
//!
//! Rule: Kubernetes documentation, "Node-pressure Eviction", "Pod selection for kubelet eviction".

use std::cmp::Reverse;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::threshold::{LAYERS, Signal};
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

/// Which of the node's files share a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Images, writable layers, logs and volumes.
    One,
    /// Images and writable layers have their own.
    ImagesAndLayersApart,
    /// Images have their own; layers lie where logs and volumes do.
    ImagesApart,
}

/// The signal that says of writable layers what this one says of the file system they lie on.
pub fn of_layers(signal: Signal, layout: Layout) -> Option<&'static str> {
    let with_images = layout == Layout::ImagesAndLayersApart;
    match signal {
        Signal::NodeFs if !with_images => Some(LAYERS[0]),
        Signal::ImageFs if with_images => Some(LAYERS[0]),
        Signal::NodeFsInodes if !with_images => Some(LAYERS[1]),
        Signal::ImageFsInodes if with_images => Some(LAYERS[1]),
        _ => None,
    }
}

/// What is removed before pods are ended: containers that are over, images that nobody uses.
pub fn reclaimed(signal: Signal, layout: Layout) -> (bool, bool) {
    match (layout, signal) {
        (_, Signal::Memory | Signal::AllocatableMemory | Signal::Pid) => (false, false),
        (Layout::One, _) => (true, true),
        (Layout::ImagesAndLayersApart, Signal::ImageFs | Signal::ImageFsInodes) => (true, true),
        (Layout::ImagesAndLayersApart, _) => (false, false),
        (Layout::ImagesApart, Signal::ImageFs | Signal::ImageFsInodes) => (false, true),
        (Layout::ImagesApart, _) => (true, false),
    }
}

/// What of a pod lies on the file system that the signal is about: writable layers; logs and volumes.
fn parts(signal: Signal, layout: Layout) -> (bool, bool) {
    match (layout, signal) {
        (Layout::One, _) => (true, true),
        (Layout::ImagesAndLayersApart, Signal::ImageFs | Signal::ImageFsInodes) => (true, false),
        (Layout::ImagesAndLayersApart, _) => (false, true),
        (Layout::ImagesApart, Signal::ImageFs | Signal::ImageFsInodes) => (false, false),
        (Layout::ImagesApart, _) => (true, true),
    }
}

/// What the pod uses of what the signal is about, and what it asked for of it, in its unit; the last is what its use is
/// compared with: where inodes are short, the reference takes off the bytes that the pod asked for.
fn amounts(pod: &Pod, usage: &PodUsage, signal: Signal, layout: Layout) -> (u64, u64, u64) {
    let disk = |inodes: bool| {
        let (layers, rest) = parts(signal, layout);
        let of = |size: (u64, u64)| if inodes { size.1 } else { size.0 };
        (if layers { of(usage.layers()) } else { 0 }) + (if rest { of(usage.logs_and_volumes()) } else { 0 })
    };
    let asked = |name: &str| crate::resources::requested(pod, name);
    match signal {
        Signal::Memory | Signal::AllocatableMemory => {
            let asked = asked("memory");
            (usage.memory(), asked, asked)
        }
        Signal::NodeFs | Signal::ImageFs => {
            let asked = asked("ephemeral-storage");
            (disk(false), asked, asked)
        }
        Signal::NodeFsInodes | Signal::ImageFsInodes => (disk(true), 0, asked("ephemeral-storage")),
        // for process ids only priority and number count
        Signal::Pid => (usage.pids, u64::MAX, 0),
    }
}

/// The pods, best victim first: those of which nothing is known, those that use more than they asked for, then by
/// priority, then by how much more.
pub fn order(signal: Signal, layout: Layout, pods: &mut [(Arc<Pod>, PodUsage)]) {
    pods.sort_by_cached_key(|(pod, usage)| {
        let (used, request, less) = amounts(pod, usage, signal, layout);
        let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
        let more = i128::from(used) - i128::from(less);
        let unknown = !usage.measured && signal != Signal::Pid;
        (Reverse(unknown), Reverse(used > request), priority, Reverse(!usage.measured), Reverse(more))
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
        let containers = [("c".to_owned(), container)].into();
        let usage = PodUsage { measured: true, containers, pids: used, ..PodUsage::default() };
        (Arc::new(serde_json::from_value(pod).unwrap()), usage)
    }

    fn names(signal: Signal, layout: Layout, mut pods: Vec<(Arc<Pod>, PodUsage)>) -> Vec<String> {
        order(signal, layout, &mut pods);
        pods.iter().map(|(pod, _)| pod.metadata.name.clone().unwrap()).collect()
    }

    #[test]
    fn writable_layers_are_where_the_pods_folders_are_or_the_images() {
        let signals =
            [Signal::NodeFs, Signal::ImageFs, Signal::NodeFsInodes, Signal::ImageFsInodes, Signal::Memory];
        let of = |layout| signals.map(|signal| of_layers(signal, layout).is_some());
        assert_eq!(of(Layout::One), [true, false, true, false, false]);
        assert_eq!(of(Layout::ImagesApart), of(Layout::One));
        assert_eq!(of(Layout::ImagesAndLayersApart), [false, true, false, true, false]);
    }

    #[test]
    fn who_takes_more_than_he_asked_for_goes_first_then_the_least_important_then_the_greediest() {
        let pods = || {
            let mut unknown = pod("unknown", 5, "0", 0);
            unknown.1 = PodUsage::default();
            vec![
                pod("modest", 0, "100", 90),
                pod("modest-low", -5, "100", 20),
                pod("greedy-important", 10, "10", 500),
                pod("greedy", 0, "10", 300),
                pod("greedier", 0, "0", 400),
                unknown,
            ]
        };
        let expected = ["unknown", "greedier", "greedy", "greedy-important", "modest-low", "modest"];
        assert_eq!(names(Signal::Memory, Layout::One, pods()), expected);
        assert_eq!(names(Signal::AllocatableMemory, Layout::One, pods()), expected);
        let expected = ["modest-low", "greedier", "greedy", "modest", "unknown", "greedy-important"];
        assert_eq!(names(Signal::Pid, Layout::One, pods()), expected);
    }

    #[test]
    fn on_a_full_disk_only_counts_what_lies_on_it() {
        let with = |name: &str, layer: u64, logs: u64| {
            let (pod, mut usage) = pod(name, 0, "0", 0);
            let container = ContainerUsage { layer, logs, ..ContainerUsage::default() };
            usage.containers = [("c".to_owned(), container)].into();
            (usage.layer_inodes, usage.inodes) = (layer, logs);
            (pod, usage)
        };
        let pods = || vec![with("writer", 50, 1), with("talker", 10, 40), with("both", 45, 35)];
        let apart = Layout::ImagesAndLayersApart;
        for [node, image] in
            [[Signal::NodeFs, Signal::ImageFs], [Signal::NodeFsInodes, Signal::ImageFsInodes]]
        {
            assert_eq!(names(node, Layout::One, pods()), ["both", "writer", "talker"]);
            assert_eq!(names(image, Layout::One, pods()), ["both", "writer", "talker"]);
            assert_eq!(names(node, apart, pods()), ["talker", "both", "writer"]);
            assert_eq!(names(image, apart, pods()), ["writer", "both", "talker"]);
            assert_eq!(names(node, Layout::ImagesApart, pods()), ["both", "writer", "talker"]);
            assert_eq!(reclaimed(node, apart), (false, false), "images are elsewhere");
            assert_eq!(reclaimed(image, Layout::ImagesApart), (false, true));
            assert_eq!(reclaimed(node, Layout::ImagesApart), (true, false));
        }
    }

    #[test]
    fn pods_of_the_system_and_static_ones_are_spared() {
        let critical = |pod: serde_json::Value| is_critical(&serde_json::from_value(pod).unwrap());
        assert!(critical(json!({"spec": {"priority": 2_000_001_000, "containers": []}})));
        assert!(critical(json!({"metadata": {"annotations": {"kubernetes.io/config.source": "file"}}})));
        assert!(!critical(json!({"spec": {"priority": 1_000_000_000, "containers": []}})));
    }
}
