//! `/metrics/cadvisor`: what containers use, by the names of cAdvisor.

use std::sync::Arc;

use cri::v1::UInt64Value;
use k8s_openapi::api::core::v1::Pod;

use super::{Measured, NANOS, Text, float, millis, number};
use crate::observed::{CONTAINER_NAME, POD_NAME, POD_NAMESPACE, POD_UID};

/// `/metrics/cadvisor`: what containers use, by the names of cAdvisor.
pub(in crate::server) fn cadvisor(pods: &[Arc<Pod>], measured: &Measured) -> String {
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
