//! `/metrics`: the kubelet's own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use client::metrics::Families;
use client::metrics::Kind::Gauge;
use k8s_openapi::api::core::v1::Pod;

use super::float;
use crate::managers::Sample;
use crate::metrics::{COUNTERS, GAUGES, HISTOGRAMS};
use crate::server::Counts;
use crate::static_pods::is_static;
use crate::storage::claim;
use crate::storage::usage::Measured as Volumes;
use crate::volumes::plugin;

/// What it is made of, beside the counters.
pub(in crate::server) struct Own<'a> {
    /// The node's name.
    pub(in crate::server) node: &'a str,
    /// The kubelet's version.
    pub(in crate::server) version: &'a str,
    /// The node's pods.
    pub(in crate::server) pods: &'a [Arc<Pod>],
    /// Sandboxes and containers.
    pub(in crate::server) counts: Counts,
    /// Of the resource managers.
    pub(in crate::server) samples: Vec<Sample>,
    /// How full volumes are.
    pub(in crate::server) volumes: &'a Volumes,
    /// Seconds for which the serving certificate is good.
    pub(in crate::server) certificate: Option<f64>,
}

/// The text.
pub(in crate::server) fn own(own: Own<'_>) -> String {
    let Own { node, version, pods, counts, samples, volumes, certificate } = own;
    let mut text = Families::default();
    for Sample { kind, name, help, labels, value } in samples {
        let labels: Vec<(&str, &str)> = labels.iter().map(|(name, value)| (*name, value.as_str())).collect();
        text.value(kind, name, help, &labels, float(value), None);
    }
    text.collect([COUNTERS, GAUGES, HISTOGRAMS].into_iter().flatten().copied());
    let help = "[ALPHA] The node's name. The count is always 1.";
    text.value(Gauge, "kubelet_node_name", help, &[("node", node)], 1.0, None);
    let help = "[STABLE] A metric with a constant '1' value labeled by git version.";
    text.value(Gauge, "kubernetes_build_info", help, &[("git_version", version)], 1.0, None);
    let help = "[ALPHA] Number of pods that have a running pod sandbox";
    text.value(Gauge, "kubelet_running_pods", help, &[], float(counts.pods), None);
    let help = "[ALPHA] Number of containers currently running";
    for (state, count) in counts.containers {
        let state = [("container_state", state)];
        text.value(Gauge, "kubelet_running_containers", help, &state, float(count), None);
    }
    of_pods(&mut text, pods);
    total_volumes(&mut text, pods, &counts.ready);
    claims(&mut text, pods, volumes);
    let unified = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let version = if unified { 2.0 } else { 1.0 };
    text.value(Gauge, "kubelet_cgroup_version", "[ALPHA] cgroup version on the hosts.", &[], version, None);
    if let Some(seconds) = certificate {
        let help = "[ALPHA] Gauge of the shortest TTL (time-to-live) of the Kubelet's serving certificate. The value is in seconds until certificate expiry (negative if already expired).";
        text.value(Gauge, "kubelet_certificate_manager_server_ttl_seconds", help, &[], seconds, None);
    }
    text.collect(client::https::METRICS.iter().copied());
    client::process::collect(&mut text);
    text.text()
}

/// What the kubelet is told to run.
fn of_pods(text: &mut Families, pods: &[Arc<Pod>]) {
    let over = |pod: &Pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    };
    for (label, of_files) in [("false", false), ("true", true)] {
        let those = || pods.iter().filter(|pod| is_static(pod) == of_files);
        let labels = [("static", label)];
        let help = "[ALPHA] The number of pods the kubelet is being instructed to run. static is true if the pod is not from the apiserver.";
        text.value(Gauge, "kubelet_desired_pods", help, &labels, float(those().count() as u64), None);
        let help = "[ALPHA] The number of pods the kubelet considers active and which are being considered when admitting new pods. static is true if the pod is not from the apiserver.";
        let active = those().filter(|pod| !over(pod)).count();
        text.value(Gauge, "kubelet_active_pods", help, &labels, float(active as u64), None);
    }
    let help =
        "[ALPHA] The number of mirror pods the kubelet will try to create (one per admitted static pod)";
    let mirrors = pods.iter().filter(|pod| is_static(pod)).count();
    text.value(Gauge, "kubelet_mirror_pods", help, &[], float(mirrors as u64), None);
    let help = "[ALPHA] Current number of ephemeral containers in pods managed by this kubelet.";
    let specs = pods.iter().filter_map(|pod| pod.spec.as_ref());
    let ephemeral: usize = specs.filter_map(|spec| spec.ephemeral_containers.as_ref()).map(Vec::len).sum();
    text.value(Gauge, "kubelet_managed_ephemeral_containers", help, &[], float(ephemeral as u64), None);
}

/// Volumes by plugin: those that pods want, and those that are made, of pods whose sandbox is `ready`.
fn total_volumes(text: &mut Families, pods: &[Arc<Pod>], ready: &BTreeSet<String>) {
    let mut found: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for pod in pods {
        let made = pod.metadata.uid.as_ref().is_some_and(|uid| ready.contains(uid));
        let all = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
        for volume in all {
            *found.entry((plugin(volume), "desired_state_of_world")).or_default() += 1;
            *found.entry((plugin(volume), "actual_state_of_world")).or_default() += u64::from(made);
        }
    }
    let help = "[ALPHA] Number of volumes in Volume Manager";
    for ((plugin, state), count) in found {
        let labels = [("plugin_name", plugin), ("state", state)];
        text.value(Gauge, "volume_manager_total_volumes", help, &labels, float(count), None);
    }
}

/// How full claims are; one that several pods use is shown once.
fn claims(text: &mut Families, pods: &[Arc<Pod>], usage: &Volumes) {
    let mut shown = BTreeSet::new();
    for pod in pods {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let all = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
        for volume in all {
            let Some((_, found)) = usage.get(&(uid.clone(), volume.name.clone())) else { continue };
            let Some(name) = claim::name_of(pod, volume) else { continue };
            if !shown.insert((namespace, name.clone())) {
                continue;
            }
            let labels = [("namespace", namespace), ("persistentvolumeclaim", name.as_str())];
            let values = [
                ("capacity_bytes", "[ALPHA] Capacity in bytes of the volume", found.capacity),
                ("available_bytes", "[ALPHA] Number of available bytes in the volume", found.available),
                ("used_bytes", "[ALPHA] Number of used bytes in the volume", found.used),
                ("inodes", "[ALPHA] Maximum number of inodes in the volume", found.inodes),
                ("inodes_free", "[ALPHA] Number of free inodes in the volume", found.inodes_free),
                ("inodes_used", "[ALPHA] Number of used inodes in the volume", found.inodes_used),
            ];
            for (name, help, value) in values {
                let name = format!("kubelet_volume_stats_{name}");
                text.value(Gauge, &name, help, &labels, float(value), None);
            }
        }
    }
}
