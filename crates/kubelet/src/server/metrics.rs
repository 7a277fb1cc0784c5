//! Metrics in Prometheus' text form: the kubelet's own, and what containers, pods and the node use, by the names that
//! metrics-server and dashboards look for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use cri::v1::{ContainerStats, PodSandboxStats, UInt64Value};
use k8s_openapi::api::core::v1::Pod;

use super::Counts;
use crate::eviction::threshold::Signal;
use crate::managers::Sample;
use crate::observed::{CONTAINER_NAME, POD_NAME, POD_NAMESPACE, POD_UID};
use crate::probes::counts;
use crate::storage::claim;
use crate::storage::usage::Measured as Volumes;

/// What the runtime measured.
pub(super) struct Measured {
    /// Containers that run.
    pub(super) containers: Vec<ContainerStats>,
    /// Their sandboxes.
    pub(super) sandboxes: Vec<PodSandboxStats>,
}

/// A text under construction: the lines of one metric stand together under its head.
#[derive(Default)]
struct Text {
    order: Vec<String>,
    metrics: BTreeMap<String, String>,
}

impl Text {
    fn add(
        &mut self,
        kind: &str,
        name: &str,
        help: &str,
        labels: &[(&str, &str)],
        value: f64,
        millis: Option<i64>,
    ) {
        let lines = self.metrics.entry(name.to_owned()).or_insert_with(|| {
            self.order.push(name.to_owned());
            format!("# HELP {name} {help}\n# TYPE {name} {kind}\n")
        });
        lines.push_str(name);
        for (at, (label, value)) in labels.iter().enumerate() {
            let begin = if at == 0 { '{' } else { ',' };
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            // writing to a String cannot fail
            let _ = write!(lines, "{begin}{label}=\"{value}\"");
        }
        lines.push_str(if labels.is_empty() { "" } else { "}" });
        let _ = write!(lines, " {value}");
        if let Some(millis) = millis {
            let _ = write!(lines, " {millis}");
        }
        lines.push('\n');
    }

    fn end(mut self) -> String {
        self.order.iter().filter_map(|name| self.metrics.remove(name)).collect()
    }
}

#[allow(clippy::cast_precision_loss, reason = "measurements need no more digits than a float has")]
fn number(value: Option<&UInt64Value>) -> Option<f64> {
    value.map(|value| value.value as f64)
}

#[allow(clippy::cast_precision_loss, reason = "measurements need no more digits than a float has")]
fn float(value: u64) -> f64 {
    value as f64
}

fn millis(nanoseconds: i64) -> Option<i64> {
    Some(nanoseconds / 1_000_000).filter(|millis| *millis > 0)
}

const NANOS: f64 = 1e9;

/// Seconds of processor time that the whole node has used, and its working set in bytes.
pub(super) fn node_usage() -> (Option<f64>, Option<u64>) {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks = stat.lines().next().map(|line| {
        let fields: Vec<u64> =
            line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
        // user, nice, system, interrupts and what the host took; not idle, not waiting for disks
        [0, 1, 2, 5, 6, 7].iter().filter_map(|at| fields.get(*at)).sum::<u64>()
    });
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    let memory = crate::usage::of_node(std::path::Path::new("/"), None).get(&Signal::Memory).copied();
    let used = memory.map(|memory| memory.capacity.saturating_sub(memory.available));
    (ticks.map(|ticks| float(ticks) / float(per_second)), used)
}

/// `/metrics/resource`.
pub(super) fn resource(pods: &[Arc<Pod>], measured: &Measured) -> String {
    let mut text = Text::default();
    for stats in &measured.containers {
        let Some(attributes) = &stats.attributes else { continue };
        let label = |name: &str| attributes.labels.get(name).map_or("", String::as_str);
        let labels = [
            ("container", label(CONTAINER_NAME)),
            ("namespace", label(POD_NAMESPACE)),
            ("pod", label(POD_NAME)),
        ];
        if let Some(cpu) = &stats.cpu
            && let Some(used) = number(cpu.usage_core_nano_seconds.as_ref())
        {
            let help = "[STABLE] Cumulative cpu time consumed by the container in core-seconds";
            let name = "container_cpu_usage_seconds_total";
            text.add("counter", name, help, &labels, used / NANOS, millis(cpu.timestamp));
        }
        if let Some(memory) = &stats.memory
            && let Some(used) = number(memory.working_set_bytes.as_ref())
        {
            let help = "[STABLE] Current working set of the container in bytes";
            let name = "container_memory_working_set_bytes";
            text.add("gauge", name, help, &labels, used, millis(memory.timestamp));
        }
        if let Some(swap) = &stats.swap
            && let Some(used) = number(swap.swap_usage_bytes.as_ref())
        {
            let help = "[ALPHA] Current amount of the container swap usage in bytes. Reported only on non-windows systems";
            text.add("gauge", "container_swap_usage_bytes", help, &labels, used, millis(swap.timestamp));
        }
    }
    for pod in pods {
        let [Some(namespace), Some(name)] = [&pod.metadata.namespace, &pod.metadata.name] else { continue };
        let Some(status) = &pod.status else { continue };
        let lists = [&status.init_container_statuses, &status.container_statuses];
        for status in lists.into_iter().flatten().flatten() {
            let running = status.state.as_ref().and_then(|state| state.running.as_ref());
            let Some(since) = running.and_then(|running| running.started_at.as_ref()) else { continue };
            let labels = [
                ("container", status.name.as_str()),
                ("namespace", namespace.as_str()),
                ("pod", name.as_str()),
            ];
            let help = "[STABLE] Start time of the container since unix epoch in seconds";
            #[allow(clippy::cast_precision_loss, reason = "seconds since 1970 fit")]
            let seconds = since.0.as_second() as f64;
            text.add("gauge", "container_start_time_seconds", help, &labels, seconds, None);
        }
    }
    let (cpu, memory) = node_usage();
    if let Some(cpu) = cpu {
        let help = "[STABLE] Cumulative cpu time consumed by the node in core-seconds";
        text.add("counter", "node_cpu_usage_seconds_total", help, &[], cpu, None);
    }
    if let Some(memory) = memory {
        let help = "[STABLE] Current working set of the node in bytes";
        text.add("gauge", "node_memory_working_set_bytes", help, &[], float(memory), None);
    }
    for stats in &measured.sandboxes {
        let Some(metadata) = stats.attributes.as_ref().and_then(|attributes| attributes.metadata.as_ref())
        else {
            continue;
        };
        let labels = [("namespace", metadata.namespace.as_str()), ("pod", metadata.name.as_str())];
        let linux = stats.linux.as_ref();
        if let Some(cpu) = linux.and_then(|linux| linux.cpu.as_ref())
            && let Some(used) = number(cpu.usage_core_nano_seconds.as_ref())
        {
            let help = "[STABLE] Cumulative cpu time consumed by the pod in core-seconds";
            text.add(
                "counter",
                "pod_cpu_usage_seconds_total",
                help,
                &labels,
                used / NANOS,
                millis(cpu.timestamp),
            );
        }
        if let Some(memory) = linux.and_then(|linux| linux.memory.as_ref())
            && let Some(used) = number(memory.working_set_bytes.as_ref())
        {
            let help = "[STABLE] Current working set of the pod in bytes";
            text.add("gauge", "pod_memory_working_set_bytes", help, &labels, used, millis(memory.timestamp));
        }
    }
    let help = "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise";
    text.add("gauge", "resource_scrape_error", help, &[], 0.0, None);
    text.end()
}

/// `/metrics/cadvisor`: what containers use, by the names of cAdvisor.
pub(super) fn cadvisor(pods: &[Arc<Pod>], measured: &Measured) -> String {
    let mut text = Text::default();
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    text.add("gauge", "machine_cpu_cores", "Number of logical CPU cores.", &[], float(cores), None);
    for stats in &measured.containers {
        let Some(attributes) = &stats.attributes else { continue };
        let label = |name: &str| attributes.labels.get(name).map_or("", String::as_str);
        let (uid, name) = (label(POD_UID), label(CONTAINER_NAME));
        let pod = pods.iter().find(|pod| pod.metadata.uid.as_deref() == Some(uid));
        let spec = pod.and_then(|pod| pod.spec.as_ref()).and_then(|spec| {
            spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|spec| spec.name == name)
        });
        let image = spec.and_then(|spec| spec.image.as_deref()).unwrap_or_default();
        let labels = [
            ("container", name),
            ("id", attributes.id.as_str()),
            ("image", image),
            ("name", attributes.id.as_str()),
            ("namespace", label(POD_NAMESPACE)),
            ("pod", label(POD_NAME)),
        ];
        let mut gauge = |metric: &str, help: &str, value: Option<&UInt64Value>, at: i64| {
            if let Some(value) = number(value) {
                text.add("gauge", metric, help, &labels, value, millis(at));
            }
        };
        if let Some(memory) = &stats.memory {
            let at = memory.timestamp;
            let help = "Current working set in bytes.";
            gauge("container_memory_working_set_bytes", help, memory.working_set_bytes.as_ref(), at);
            let help =
                "Current memory usage in bytes, including all memory regardless of when it was accessed";
            gauge("container_memory_usage_bytes", help, memory.usage_bytes.as_ref(), at);
            gauge("container_memory_rss", "Size of RSS in bytes.", memory.rss_bytes.as_ref(), at);
        }
        if let Some(swap) = &stats.swap {
            let help = "Container swap usage in bytes.";
            gauge("container_memory_swap", help, swap.swap_usage_bytes.as_ref(), swap.timestamp);
        }
        if let Some(layer) = &stats.writable_layer {
            let help = "Number of bytes that are consumed by the container on this filesystem.";
            gauge("container_fs_usage_bytes", help, layer.used_bytes.as_ref(), layer.timestamp);
            gauge(
                "container_fs_inodes_total",
                "Number of Inodes",
                layer.inodes_used.as_ref(),
                layer.timestamp,
            );
        }
        if let Some(cpu) = &stats.cpu
            && let Some(used) = number(cpu.usage_core_nano_seconds.as_ref())
        {
            let mut labels = labels.to_vec();
            labels.insert(1, ("cpu", "total"));
            let (metric, help) =
                ("container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.");
            text.add("counter", metric, help, &labels, used / NANOS, millis(cpu.timestamp));
        }
    }
    for stats in &measured.sandboxes {
        let Some(metadata) = stats.attributes.as_ref().and_then(|attributes| attributes.metadata.as_ref())
        else {
            continue;
        };
        let id = stats.attributes.as_ref().map_or("", |attributes| attributes.id.as_str());
        let Some(network) = stats.linux.as_ref().and_then(|linux| linux.network.as_ref()) else { continue };
        for interface in network.default_interface.iter().chain(&network.interfaces) {
            let labels = [
                ("container", ""),
                ("id", id),
                ("image", ""),
                ("interface", interface.name.as_str()),
                ("name", ""),
                ("namespace", metadata.namespace.as_str()),
                ("pod", metadata.name.as_str()),
            ];
            let counters = [
                ("receive_bytes", "Cumulative count of bytes received", &interface.rx_bytes),
                (
                    "receive_errors",
                    "Cumulative count of errors encountered while receiving",
                    &interface.rx_errors,
                ),
                ("transmit_bytes", "Cumulative count of bytes transmitted", &interface.tx_bytes),
                (
                    "transmit_errors",
                    "Cumulative count of errors encountered while transmitting",
                    &interface.tx_errors,
                ),
            ];
            for (counter, help, value) in counters {
                if let Some(value) = number(value.as_ref()) {
                    let name = format!("container_network_{counter}_total");
                    text.add("counter", &name, help, &labels, value, millis(network.timestamp));
                }
            }
        }
    }
    text.end()
}

/// `/metrics/probes`.
pub(super) fn probes() -> String {
    let mut text = Text::default();
    let help =
        "[BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.";
    for (probe, count) in counts::all() {
        let labels = [
            ("container", probe.container.as_str()),
            ("namespace", probe.namespace.as_str()),
            ("pod", probe.pod.as_str()),
            ("pod_uid", probe.uid.as_str()),
            ("probe_type", probe.kind),
            ("result", probe.result),
        ];
        text.add("counter", "prober_probe_total", help, &labels, float(count), None);
    }
    text.end()
}

/// `/metrics`: the kubelet's own.
pub(super) fn own(
    node: &str,
    version: &str,
    pods: &[Arc<Pod>],
    (counts, samples, usage): (Counts, Vec<Sample>, &Volumes),
) -> String {
    let mut text = Text::default();
    for (kind, name, help, value) in samples {
        text.add(kind, name, help, &[], float(value), None);
    }
    let help = "[ALPHA] The node's name. The count is always 1.";
    text.add("gauge", "kubelet_node_name", help, &[("node", node)], 1.0, None);
    let help = "[STABLE] A metric with a constant '1' value labeled by git version.";
    text.add("gauge", "kubernetes_build_info", help, &[("git_version", version)], 1.0, None);
    let help = "[ALPHA] Number of pods that have a running pod sandbox";
    text.add("gauge", "kubelet_running_pods", help, &[], float(counts.pods), None);
    let help = "[ALPHA] Number of containers currently running";
    for (state, count) in counts.containers {
        let state = [("container_state", state)];
        text.add("gauge", "kubelet_running_containers", help, &state, float(count), None);
    }
    volumes(&mut text, pods, usage);
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut fields = status.split_whitespace().filter_map(|field| field.parse::<u64>().ok());
    let page = rustix::param::page_size() as u64;
    if let (Some(all), Some(resident)) = (fields.next(), fields.next()) {
        let help = "Resident memory size in bytes.";
        text.add("gauge", "process_resident_memory_bytes", help, &[], float(resident * page), None);
        let help = "Virtual memory size in bytes.";
        text.add("gauge", "process_virtual_memory_bytes", help, &[], float(all * page), None);
    }
    text.end()
}

/// How full claims are; one that several pods use is shown once.
fn volumes(text: &mut Text, pods: &[Arc<Pod>], usage: &Volumes) {
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
                text.add("gauge", &name, help, &labels, float(value), None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cri::v1;

    #[test]
    fn metrics_server_finds_its_names_with_times() {
        let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let attributes = v1::ContainerAttributes {
            id: "c1".to_owned(),
            labels: [label(CONTAINER_NAME, "web"), label(POD_NAME, "p"), label(POD_NAMESPACE, "d\"q")].into(),
            ..v1::ContainerAttributes::default()
        };
        let value = |value| Some(UInt64Value { value });
        let stats = ContainerStats {
            attributes: Some(attributes),
            cpu: Some(v1::CpuUsage {
                timestamp: 5_000_000_000,
                usage_core_nano_seconds: value(1_500_000_000),
                usage_nano_cores: None,
            }),
            memory: Some(v1::MemoryUsage {
                timestamp: 5_000_000_000,
                working_set_bytes: value(4096),
                ..v1::MemoryUsage::default()
            }),
            ..ContainerStats::default()
        };
        let measured = Measured { containers: vec![stats], sandboxes: Vec::new() };
        let text = resource(&[], &measured);
        let line =
            "container_cpu_usage_seconds_total{container=\"web\",namespace=\"d\\\"q\",pod=\"p\"} 1.5 5000\n";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("# TYPE container_memory_working_set_bytes gauge\n"), "{text}");
        assert!(text.contains("node_cpu_usage_seconds_total "), "{text}");
        assert!(text.ends_with("resource_scrape_error 0\n"), "{text}");
        let line = "container_cpu_usage_seconds_total{container=\"web\",cpu=\"total\",id=\"c1\",image=\"\"";
        assert!(cadvisor(&[], &measured).contains(line));
    }
}
