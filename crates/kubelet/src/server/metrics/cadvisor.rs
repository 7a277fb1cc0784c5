//! `/metrics/cadvisor`: what containers use, by the names of cAdvisor.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cri::v1::{ContainerAttributes, Metric, MetricDescriptor, MetricType, UInt64Value};
use k8s_openapi::api::core::v1::Pod;

use super::{Described, Measured, NANOS, float, millis, number};
use crate::observed::{CONTAINER_NAME, POD_NAME, POD_NAMESPACE, POD_UID};
use crate::usage::{FileSystem, meminfo};
use client::metrics::Families;
use client::metrics::Kind::{Counter, Gauge};

/// `disk`: the file system that containers write to, bytes and inodes.
pub(in crate::server) fn cadvisor(
    pods: &[Arc<Pod>],
    measured: &Measured,
    described: &Described,
    disk: Option<&FileSystem>,
) -> String {
    let mut text = Families::default();
    machine(&mut text);
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
                text.value(Gauge, metric, help, &labels, value, millis(at));
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
            let (bytes, inodes) = disk.copied().unwrap_or_default();
            let some = |value: Option<u64>| value.map(|value| UInt64Value { value });
            let help = "Number of bytes that can be consumed by the container on this filesystem.";
            let limit = some(bytes.map(|bytes| bytes.capacity));
            gauge("container_fs_limit_bytes", help, limit.as_ref(), layer.timestamp);
            let all = some(inodes.map(|inodes| inodes.capacity));
            gauge("container_fs_inodes_total", "Number of Inodes", all.as_ref(), layer.timestamp);
            let free = some(inodes.map(|inodes| inodes.available));
            gauge("container_fs_inodes_free", "Number of available Inodes", free.as_ref(), layer.timestamp);
        }
        if let Some(cpu) = &stats.cpu
            && let Some(used) = number(cpu.usage_core_nano_seconds.as_ref())
        {
            let mut labels = labels.to_vec();
            labels.insert(1, ("cpu", "total"));
            let (metric, help) =
                ("container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.");
            text.value(Counter, metric, help, &labels, used / NANOS, millis(cpu.timestamp));
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
                    text.value(Counter, &name, help, &labels, value, millis(network.timestamp));
                }
            }
        }
    }
    others(&mut text, measured, described);
    let help = "1 if there was an error while getting container metrics, 0 otherwise";
    text.value(Gauge, "container_scrape_error", help, &[], 0.0, None);
    text.text()
}

/// What the machine is made of.
fn machine(text: &mut Families) {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    text.value(Gauge, "machine_cpu_cores", "Number of logical CPU cores.", &[], float(cores), None);
    // a core is a pair of socket and number within it
    let processors = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let (mut sockets, mut physical) = (BTreeSet::new(), BTreeSet::new());
    let mut socket = "";
    for (key, value) in processors.lines().filter_map(|line| line.split_once(':')) {
        match key.trim() {
            "physical id" => {
                socket = value.trim();
                sockets.insert(socket);
            }
            "core id" => drop(physical.insert((socket, value.trim()))),
            _ => {}
        }
    }
    for (name, help, count) in [
        ("machine_cpu_physical_cores", "Number of physical CPU cores.", physical.len()),
        ("machine_cpu_sockets", "Number of CPU sockets.", sockets.len()),
    ] {
        if count > 0 {
            text.value(Gauge, name, help, &[], float(count as u64), None);
        }
    }
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    for (name, help, key) in [
        ("machine_memory_bytes", "Amount of memory installed on the machine.", "MemTotal"),
        ("machine_swap_bytes", "Amount of swap memory available on the machine.", "SwapTotal"),
    ] {
        if let Some(bytes) = meminfo(&memory, key) {
            text.value(Gauge, name, help, &[], float(bytes), None);
        }
    }
    let help = "1 if there was an error while getting machine metrics, 0 otherwise.";
    text.value(Gauge, "machine_scrape_error", help, &[], 0.0, None);
}

/// What the runtime says in these words itself, but for what its statistics said better.
fn others(text: &mut Families, measured: &Measured, described: &Described) {
    let descriptors: BTreeMap<&str, &MetricDescriptor> =
        described.descriptors.iter().map(|one| (one.name.as_str(), one)).collect();
    let known: BTreeSet<&str> = descriptors.keys().copied().filter(|name| text.has(name)).collect();
    let mut add = |metric: &Metric, owner: [&str; 3]| {
        let Some(descriptor) = descriptors.get(metric.name.as_str()) else { return };
        let Some(value) = number(metric.value.as_ref()).filter(|_| !known.contains(metric.name.as_str()))
        else {
            return;
        };
        let own = descriptor.label_keys.iter().map(String::as_str);
        let mut labels: BTreeMap<&str, &str> =
            own.zip(metric.label_values.iter().map(String::as_str)).collect();
        // as the kubelet knows them, whatever the runtime calls its own
        labels.extend(["container", "namespace", "pod"].into_iter().zip(owner));
        let labels: Vec<(&str, &str)> = labels.into_iter().collect();
        let kind = if metric.metric_type() == MetricType::Counter { Counter } else { Gauge };
        text.value(kind, &metric.name, &descriptor.help, &labels, value, millis(metric.timestamp));
    };
    let names: BTreeMap<&str, &ContainerAttributes> = measured
        .containers
        .iter()
        .filter_map(|stats| stats.attributes.as_ref())
        .map(|attributes| (attributes.id.as_str(), attributes))
        .collect();
    for pod in &described.pods {
        let sandbox = measured.sandboxes.iter().filter_map(|stats| stats.attributes.as_ref());
        let sandbox = sandbox.filter(|attributes| attributes.id == pod.pod_sandbox_id);
        if let Some(metadata) = sandbox.filter_map(|attributes| attributes.metadata.as_ref()).next() {
            let owner = ["", metadata.namespace.as_str(), metadata.name.as_str()];
            pod.metrics.iter().for_each(|metric| add(metric, owner));
        }
        for container in &pod.container_metrics {
            let Some(attributes) = names.get(container.container_id.as_str()) else { continue };
            let label = |name: &str| attributes.labels.get(name).map_or("", String::as_str);
            let owner = [label(CONTAINER_NAME), label(POD_NAMESPACE), label(POD_NAME)];
            container.metrics.iter().for_each(|metric| add(metric, owner));
        }
    }
}
