//! `/metrics/resource`: what metrics-server reads.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::{Measured, NANOS, float, millis, node_swap, node_usage, number};
use crate::observed::{CONTAINER_NAME, POD_NAME, POD_NAMESPACE};
use client::metrics::Families;
use client::metrics::Kind::{Counter, Gauge};

/// `/metrics/resource`.
pub(in crate::server) fn resource(pods: &[Arc<Pod>], measured: &Measured) -> String {
    let mut text = Families::default();
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
            text.value(Counter, name, help, &labels, used / NANOS, millis(cpu.timestamp));
        }
        if let Some(memory) = &stats.memory
            && let Some(used) = number(memory.working_set_bytes.as_ref())
        {
            let help = "[STABLE] Current working set of the container in bytes";
            let name = "container_memory_working_set_bytes";
            text.value(Gauge, name, help, &labels, used, millis(memory.timestamp));
        }
        if let Some(swap) = &stats.swap
            && let Some(used) = number(swap.swap_usage_bytes.as_ref())
        {
            let help = "[ALPHA] Current amount of the container swap usage in bytes. Reported only on non-windows systems";
            text.value(Gauge, "container_swap_usage_bytes", help, &labels, used, millis(swap.timestamp));
            if let Some(free) = number(swap.swap_available_bytes.as_ref()) {
                let help = "[ALPHA] Current amount of the container swap limit in bytes. Reported only on non-windows systems";
                let name = "container_swap_limit_bytes";
                text.value(Gauge, name, help, &labels, used + free, millis(swap.timestamp));
            }
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
            #[allow(clippy::cast_precision_loss, reason = "microseconds since 1970 fit")]
            let seconds = since.0.as_nanosecond() as f64 / NANOS;
            text.value(Gauge, "container_start_time_seconds", help, &labels, seconds, None);
        }
    }
    let (cpu, memory) = node_usage();
    if let Some(cpu) = cpu {
        let help = "[STABLE] Cumulative cpu time consumed by the node in core-seconds";
        text.value(Counter, "node_cpu_usage_seconds_total", help, &[], cpu, None);
    }
    if let Some(memory) = memory {
        let help = "[STABLE] Current working set of the node in bytes";
        text.value(Gauge, "node_memory_working_set_bytes", help, &[], float(memory), None);
    }
    if let Some(swap) = node_swap() {
        let help = "[ALPHA] Current swap usage of the node in bytes. Reported only on non-windows systems";
        text.value(Gauge, "node_swap_usage_bytes", help, &[], float(swap), None);
    }
    let mut swaps: BTreeMap<(&str, &str), f64> = BTreeMap::new();
    for stats in &measured.containers {
        let used = stats.swap.as_ref().and_then(|swap| number(swap.swap_usage_bytes.as_ref()));
        let labels = stats.attributes.as_ref().map(|attributes| &attributes.labels);
        if let Some((used, labels)) = used.zip(labels) {
            let label = |name: &str| labels.get(name).map_or("", String::as_str);
            *swaps.entry((label(POD_NAMESPACE), label(POD_NAME))).or_default() += used;
        }
    }
    for ((namespace, pod), used) in swaps {
        let help =
            "[ALPHA] Current amount of the pod swap usage in bytes. Reported only on non-windows systems";
        let labels = [("namespace", namespace), ("pod", pod)];
        text.value(Gauge, "pod_swap_usage_bytes", help, &labels, used, None);
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
            text.value(
                Counter,
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
            text.value(Gauge, "pod_memory_working_set_bytes", help, &labels, used, millis(memory.timestamp));
        }
    }
    let help = "[ALPHA] (Deprecated since 1.29.0) 1 if there was an error while getting container metrics, 0 otherwise";
    text.value(Gauge, "scrape_error", help, &[], 0.0, None);
    let help = "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise";
    text.value(Gauge, "resource_scrape_error", help, &[], 0.0, None);
    text.text()
}
