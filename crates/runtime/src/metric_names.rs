//! The metrics there are: cAdvisor's names, kinds, words and labels.

use cri::v1::{
    self,
    MetricType::{self, Counter, Gauge},
};

/// A metric: name, kind, help, and the labels beside those that all have.
struct Known(&'static str, MetricType, &'static str, &'static [&'static str]);

/// The labels that all have.
const LABELS: [&str; 3] = ["id", "name", "image"];

/// Those of containers; then those of pods.
const KNOWN: [Known; 56] = [
    Known("container_cpu_usage_seconds_total", Counter, "Cumulative cpu time consumed in seconds.", &["cpu"]),
    Known("container_cpu_user_seconds_total", Counter, "Cumulative user cpu time consumed in seconds.", &[]),
    Known(
        "container_cpu_system_seconds_total",
        Counter,
        "Cumulative system cpu time consumed in seconds.",
        &[],
    ),
    Known("container_cpu_cfs_periods_total", Counter, "Number of elapsed enforcement period intervals.", &[]),
    Known("container_cpu_cfs_throttled_periods_total", Counter, "Number of throttled period intervals.", &[]),
    Known(
        "container_cpu_cfs_throttled_seconds_total",
        Counter,
        "Total time duration the container has been throttled.",
        &[],
    ),
    Known(
        "container_memory_usage_bytes",
        Gauge,
        "Current memory usage in bytes, including all memory regardless of when it was accessed",
        &[],
    ),
    Known("container_memory_working_set_bytes", Gauge, "Current working set in bytes.", &[]),
    Known("container_memory_rss", Gauge, "Size of RSS in bytes.", &[]),
    Known("container_memory_swap", Gauge, "Container swap usage in bytes.", &[]),
    Known("container_memory_cache", Gauge, "Number of bytes of page cache memory.", &[]),
    Known("container_memory_mapped_file", Gauge, "Size of memory mapped files in bytes.", &[]),
    Known("container_memory_kernel_usage", Gauge, "Size of kernel memory allocated in bytes.", &[]),
    Known("container_memory_failcnt", Counter, "Number of memory usage hits limits", &[]),
    Known("container_memory_max_usage_bytes", Gauge, "Maximum memory usage recorded in bytes", &[]),
    Known(
        "container_memory_failures_total",
        Counter,
        "Cumulative count of memory allocation failures.",
        &["failure_type", "scope"],
    ),
    Known(
        "container_oom_events_total",
        Counter,
        "Count of out of memory events observed for the container",
        &[],
    ),
    Known("container_hugetlb_usage_bytes", Gauge, "Current hugepage usage in bytes", &["pagesize"]),
    Known(
        "container_hugetlb_max_usage_bytes",
        Gauge,
        "Maximum hugepage usage recorded in bytes",
        &["pagesize"],
    ),
    Known(
        "container_blkio_device_usage_total",
        Counter,
        "Blkio device bytes usage",
        &["device", "major", "minor", "operation"],
    ),
    Known("container_fs_reads_total", Counter, "Cumulative count of reads completed", &["device"]),
    Known("container_fs_reads_bytes_total", Counter, "Cumulative count of bytes read", &["device"]),
    Known("container_fs_writes_total", Counter, "Cumulative count of writes completed", &["device"]),
    Known("container_fs_writes_bytes_total", Counter, "Cumulative count of bytes written", &["device"]),
    Known(
        "container_fs_usage_bytes",
        Gauge,
        "Number of bytes that are consumed by the container on this filesystem.",
        &["device"],
    ),
    Known(
        "container_fs_limit_bytes",
        Gauge,
        "Number of bytes that can be consumed by the container on this filesystem.",
        &["device"],
    ),
    Known("container_fs_inodes_total", Gauge, "Number of Inodes", &["device"]),
    Known("container_fs_inodes_free", Gauge, "Number of available Inodes", &["device"]),
    Known("container_processes", Gauge, "Number of processes running inside the container.", &[]),
    Known("container_threads", Gauge, "Number of threads running inside the container", &[]),
    Known(
        "container_threads_max",
        Gauge,
        "Maximum number of threads allowed inside the container, infinity if value is zero",
        &[],
    ),
    Known("container_file_descriptors", Gauge, "Number of open file descriptors for the container.", &[]),
    Known("container_sockets", Gauge, "Number of open sockets for the container.", &[]),
    Known(
        "container_ulimits_soft",
        Gauge,
        "Soft ulimit values for the container root process. Unlimited if the largest number, except priority and nice",
        &["ulimit"],
    ),
    Known(
        "container_pressure_cpu_waiting_seconds_total",
        Counter,
        "Total time duration tasks in the container have waited due to CPU congestion.",
        &[],
    ),
    Known(
        "container_pressure_cpu_stalled_seconds_total",
        Counter,
        "Total time duration no tasks in the container could make progress due to CPU congestion.",
        &[],
    ),
    Known(
        "container_pressure_memory_waiting_seconds_total",
        Counter,
        "Total time duration tasks in the container have waited due to memory congestion.",
        &[],
    ),
    Known(
        "container_pressure_memory_stalled_seconds_total",
        Counter,
        "Total time duration no tasks in the container could make progress due to memory congestion.",
        &[],
    ),
    Known(
        "container_pressure_io_waiting_seconds_total",
        Counter,
        "Total time duration tasks in the container have waited due to IO congestion.",
        &[],
    ),
    Known(
        "container_pressure_io_stalled_seconds_total",
        Counter,
        "Total time duration no tasks in the container could make progress due to IO congestion.",
        &[],
    ),
    Known("container_last_seen", Gauge, "Last time a container was seen by the exporter", &[]),
    Known(
        "container_start_time_seconds",
        Gauge,
        "Start time of the container since unix epoch in seconds.",
        &[],
    ),
    Known("container_spec_cpu_period", Gauge, "CPU period of the container.", &[]),
    Known("container_spec_cpu_quota", Gauge, "CPU quota of the container.", &[]),
    Known("container_spec_cpu_shares", Gauge, "CPU share of the container.", &[]),
    Known("container_spec_memory_limit_bytes", Gauge, "Memory limit for the container.", &[]),
    Known("container_spec_memory_swap_limit_bytes", Gauge, "Memory swap limit for the container.", &[]),
    Known(
        "container_spec_memory_reservation_limit_bytes",
        Gauge,
        "Memory reservation limit for the container.",
        &[],
    ),
    Known(
        "container_network_receive_bytes_total",
        Counter,
        "Cumulative count of bytes received",
        &["interface"],
    ),
    Known(
        "container_network_receive_errors_total",
        Counter,
        "Cumulative count of errors encountered while receiving",
        &["interface"],
    ),
    Known(
        "container_network_receive_packets_total",
        Counter,
        "Cumulative count of packets received",
        &["interface"],
    ),
    Known(
        "container_network_receive_packets_dropped_total",
        Counter,
        "Cumulative count of packets dropped while receiving",
        &["interface"],
    ),
    Known(
        "container_network_transmit_bytes_total",
        Counter,
        "Cumulative count of bytes transmitted",
        &["interface"],
    ),
    Known(
        "container_network_transmit_errors_total",
        Counter,
        "Cumulative count of errors encountered while transmitting",
        &["interface"],
    ),
    Known(
        "container_network_transmit_packets_total",
        Counter,
        "Cumulative count of packets transmitted",
        &["interface"],
    ),
    Known(
        "container_network_transmit_packets_dropped_total",
        Counter,
        "Cumulative count of packets dropped while transmitting",
        &["interface"],
    ),
];

/// All metrics there are.
pub(crate) fn descriptors() -> Vec<v1::MetricDescriptor> {
    let of = |Known(name, _, help, more): &Known| v1::MetricDescriptor {
        name: (*name).to_owned(),
        help: (*help).to_owned(),
        label_keys: LABELS.iter().chain(*more).map(|label| (*label).to_owned()).collect(),
    };
    KNOWN.iter().map(of).collect()
}

/// A metric's kind.
pub(crate) fn kind(name: &str) -> MetricType {
    KNOWN.iter().find(|known| known.0 == name).map_or(Gauge, |known| known.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_described_once_and_has_the_common_labels() {
        let known = descriptors();
        let names: std::collections::BTreeSet<&str> = known.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names.len(), KNOWN.len());
        assert!(known.iter().all(|one| one.label_keys.starts_with(&LABELS.map(str::to_owned))));
    }
}
