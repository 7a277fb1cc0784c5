//! What containers and pods use, in cAdvisor's words: the CRI's metrics, for what its statistics have no field for.
//!
//! Rule: CRI v1, `ListMetricDescriptors` and `ListPodSandboxMetrics`; cAdvisor, "Monitoring cAdvisor with Prometheus", for names,
//! labels and meaning. Times in seconds are whole ones, since the CRI's numbers are.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use cri::v1::{
    self,
    MetricType::{self, Counter, Gauge},
};

use crate::{
    cgroup::{Cgroups, keyed, number},
    record::ContainerPhase,
    state::{Container, Runtime, Sandbox, now},
};

const SECOND: u64 = 1_000_000_000;

/// A metric: name, kind, help, and the labels beside those that all have.
struct Known(&'static str, MetricType, &'static str, &'static [&'static str]);

/// The labels that all have.
const LABELS: [&str; 3] = ["id", "name", "image"];

/// Those of containers; then those of pods.
const KNOWN: [Known; 30] = [
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
    Known("container_memory_cache", Gauge, "Number of bytes of page cache memory.", &[]),
    Known("container_memory_mapped_file", Gauge, "Size of memory mapped files in bytes.", &[]),
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
    Known("container_fs_reads_total", Counter, "Cumulative count of reads completed", &["device"]),
    Known("container_fs_reads_bytes_total", Counter, "Cumulative count of bytes read", &["device"]),
    Known("container_fs_writes_total", Counter, "Cumulative count of writes completed", &["device"]),
    Known("container_fs_writes_bytes_total", Counter, "Cumulative count of bytes written", &["device"]),
    Known("container_processes", Gauge, "Number of processes running inside the container.", &[]),
    Known("container_threads", Gauge, "Number of threads running inside the container", &[]),
    Known(
        "container_threads_max",
        Gauge,
        "Maximum number of threads allowed inside the container, infinity if value is zero",
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

/// What a control group counts.
#[derive(Debug, Default, PartialEq, Eq)]
struct Details {
    user_nanos: u64,
    system_nanos: u64,
    periods: u64,
    throttled: u64,
    throttled_nanos: u64,
    cache: u64,
    mapped: u64,
    at_limit: u64,
    most_memory: u64,
    faults: u64,
    major_faults: u64,
    oom_kills: u64,
    /// By device: reads, bytes read, writes, bytes written.
    io: BTreeMap<String, [u64; 4]>,
    processes: u64,
    threads: u64,
    /// 0: as many as it likes.
    most_threads: u64,
}

impl Details {
    fn of(cgroups: &Cgroups, group: &str) -> Details {
        let read = |controller: &str, file: &str| {
            let folder = cgroups.folder(controller, group);
            folder.and_then(|folder| fs::read_to_string(folder.join(file)).ok()).unwrap_or_default()
        };
        let one = |controller: &str, file: &str| {
            cgroups.folder(controller, group).map_or(0, |folder| number(&folder.join(file)))
        };
        let (cpu, memory) = (read("cpu", "cpu.stat"), read("memory", "memory.stat"));
        let count = |text: &str| text.lines().count() as u64;
        let mut this = Details {
            periods: keyed(&cpu, "nr_periods"),
            throttled: keyed(&cpu, "nr_throttled"),
            threads: one("pids", "pids.current"),
            most_threads: one("pids", "pids.max"),
            ..Details::default()
        };
        if cgroups.is_v2() {
            let events = read("memory", "memory.events");
            this.user_nanos = keyed(&cpu, "user_usec") * 1000;
            this.system_nanos = keyed(&cpu, "system_usec") * 1000;
            this.throttled_nanos = keyed(&cpu, "throttled_usec") * 1000;
            this.cache = keyed(&memory, "file");
            this.mapped = keyed(&memory, "file_mapped");
            this.at_limit = keyed(&events, "max");
            this.oom_kills = keyed(&events, "oom_kill");
            this.most_memory = one("memory", "memory.peak");
            this.faults = keyed(&memory, "pgfault");
            this.major_faults = keyed(&memory, "pgmajfault");
            this.processes = count(&read("pids", "cgroup.procs"));
            this.io = io_of_v2(&read("io", "io.stat"));
        } else {
            let ticks = read("cpuacct", "cpuacct.stat");
            let per_tick = SECOND / rustix::param::clock_ticks_per_second().max(1);
            this.user_nanos = keyed(&ticks, "user") * per_tick;
            this.system_nanos = keyed(&ticks, "system") * per_tick;
            this.throttled_nanos = keyed(&cpu, "throttled_time");
            this.cache = keyed(&memory, "total_cache");
            this.mapped = keyed(&memory, "total_mapped_file");
            this.at_limit = one("memory", "memory.failcnt");
            this.oom_kills = keyed(&read("memory", "memory.oom_control"), "oom_kill");
            this.most_memory = one("memory", "memory.max_usage_in_bytes");
            this.faults = keyed(&memory, "total_pgfault");
            this.major_faults = keyed(&memory, "total_pgmajfault");
            this.processes = count(&read("cpuacct", "cgroup.procs"));
            this.io = io_of_v1(
                &read("blkio", "blkio.throttle.io_serviced"),
                &read("blkio", "blkio.throttle.io_service_bytes"),
            );
        }
        this
    }
}

/// A line for each device: `8:0 rbytes=1 wbytes=2 rios=3 wios=4 …`.
fn io_of_v2(text: &str) -> BTreeMap<String, [u64; 4]> {
    let of_line = |line: &str| {
        let (device, fields) = line.split_once(' ')?;
        let of = |name: &str| {
            let mut pairs = fields.split(' ').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == name).and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
        };
        Some((device.to_owned(), [of("rios"), of("rbytes"), of("wios"), of("wbytes")]))
    };
    text.lines().filter_map(of_line).collect()
}

/// A line for each device and kind: `8:0 Read 4096`; the sum of all has no device.
fn io_of_v1(counts: &str, bytes: &str) -> BTreeMap<String, [u64; 4]> {
    let mut found: BTreeMap<String, [u64; 4]> = BTreeMap::new();
    for (text, [read, written]) in [(counts, [0, 2]), (bytes, [1, 3])] {
        for line in text.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            let [device, kind, value] = fields[..] else { continue };
            let at = match kind {
                "Read" => read,
                "Write" => written,
                _ => continue,
            };
            found.entry(device.to_owned()).or_default()[at] = value.parse().unwrap_or(0);
        }
    }
    found
}

/// A device's file, by its numbers as control groups write them.
fn device(numbers: &str) -> String {
    let link =
        fs::read_link(Path::new("/sys/dev/block").join(numbers)).unwrap_or_else(|_| PathBuf::from(numbers));
    link.file_name().map_or_else(|| numbers.to_owned(), |name| format!("/dev/{}", name.to_string_lossy()))
}

/// Metrics of one thing, under construction.
struct List {
    base: [String; 3],
    at: i64,
    found: Vec<v1::Metric>,
}

impl List {
    fn add(&mut self, name: &str, more: &[&str], value: u64) {
        let kind = KNOWN.iter().find(|known| known.0 == name).map_or(Gauge, |known| known.1);
        let label_values = self.base.iter().cloned().chain(more.iter().map(|&value| value.to_owned()));
        self.found.push(v1::Metric {
            name: name.to_owned(),
            timestamp: self.at,
            metric_type: kind as i32,
            label_values: label_values.collect(),
            value: Some(v1::UInt64Value { value }),
        });
    }
}

impl Runtime {
    /// The metrics of a sandbox and of its containers that run. Blocks on the disk.
    pub(crate) fn sandbox_metrics(&self, sandbox: &Sandbox) -> v1::PodSandboxMetrics {
        let record = sandbox.record.read().clone();
        let running: Vec<_> = self
            .containers_of(&record.id)
            .into_iter()
            .filter(|container| container.phase() == ContainerPhase::Running)
            .collect();
        let base = [record.id.clone(), String::new(), String::new()];
        let mut list = List { base, at: now(), found: Vec::new() };
        if record.netns.is_some() {
            // read through one of the pod's processes
            let pids = running.iter().map(|container| container.state.borrow().pid);
            let text = pids.filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()).next();
            for line in text.iter().flat_map(|text| text.lines().skip(2)) {
                packets(&mut list, line);
            }
        }
        v1::PodSandboxMetrics {
            pod_sandbox_id: record.id,
            metrics: list.found,
            container_metrics: running.iter().map(|container| self.container_metrics(container)).collect(),
        }
    }

    fn container_metrics(&self, container: &Container) -> v1::ContainerMetrics {
        let record = &container.record;
        let name = record.config.metadata.clone().unwrap_or_default().name;
        let base = [record.id.clone(), name, record.image_ref.clone()];
        let mut list = List { base, at: now(), found: Vec::new() };
        let used = Details::of(&self.cgroups, &record.cgroup);
        let seconds = |nanos: u64| nanos / SECOND;
        let simple = [
            ("container_cpu_user_seconds_total", seconds(used.user_nanos)),
            ("container_cpu_system_seconds_total", seconds(used.system_nanos)),
            ("container_cpu_cfs_periods_total", used.periods),
            ("container_cpu_cfs_throttled_periods_total", used.throttled),
            ("container_cpu_cfs_throttled_seconds_total", seconds(used.throttled_nanos)),
            ("container_memory_cache", used.cache),
            ("container_memory_mapped_file", used.mapped),
            ("container_memory_failcnt", used.at_limit),
            ("container_memory_max_usage_bytes", used.most_memory),
            ("container_oom_events_total", used.oom_kills),
            ("container_processes", used.processes),
            ("container_threads", used.threads),
            ("container_threads_max", used.most_threads),
            ("container_last_seen", u64::try_from(list.at).unwrap_or(0) / SECOND),
        ];
        for (name, value) in simple {
            list.add(name, &[], value);
        }
        list.add("container_memory_failures_total", &["pgfault", "container"], used.faults);
        list.add("container_memory_failures_total", &["pgmajfault", "container"], used.major_faults);
        for (numbers, [reads, read, writes, written]) in used.io {
            let device = device(&numbers);
            list.add("container_fs_reads_total", &[&device], reads);
            list.add("container_fs_reads_bytes_total", &[&device], read);
            list.add("container_fs_writes_total", &[&device], writes);
            list.add("container_fs_writes_bytes_total", &[&device], written);
        }
        let started = u64::try_from(container.state.borrow().started_at).unwrap_or(0);
        list.add("container_start_time_seconds", &[], started / SECOND);
        let limits = container.resources.read().clone().unwrap_or_default();
        let given = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
        list.add("container_spec_cpu_period", &[], given(limits.cpu_period).unwrap_or(100_000));
        if let Some(quota) = given(limits.cpu_quota) {
            list.add("container_spec_cpu_quota", &[], quota);
        }
        if let Some(shares) = given(limits.cpu_shares) {
            list.add("container_spec_cpu_shares", &[], shares);
        }
        let memory = given(limits.memory_limit_in_bytes).unwrap_or(0);
        list.add("container_spec_memory_limit_bytes", &[], memory);
        let swap = given(limits.memory_swap_limit_in_bytes).unwrap_or(0);
        list.add("container_spec_memory_swap_limit_bytes", &[], swap);
        list.add("container_spec_memory_reservation_limit_bytes", &[], 0);
        v1::ContainerMetrics { container_id: record.id.clone(), metrics: list.found }
    }
}

/// A line of `/proc/PID/net/dev`: packets, and those that were dropped.
fn packets(list: &mut List, line: &str) {
    let Some((name, numbers)) = line.split_once(':') else { return };
    let name = name.trim();
    let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    if name == "lo" {
        return;
    }
    for (metric, at) in [
        ("container_network_receive_packets_total", 1),
        ("container_network_receive_packets_dropped_total", 3),
        ("container_network_transmit_packets_total", 9),
        ("container_network_transmit_packets_dropped_total", 11),
    ] {
        if let Some(value) = numbers.get(at) {
            list.add(metric, &[name], *value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_is_read_from_both_versions_files() {
        let expected = BTreeMap::from([("8:0".to_owned(), [3, 1, 4, 2])]);
        assert_eq!(io_of_v2("8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0\nbroken\n"), expected);
        let counts = "8:0 Read 3\n8:0 Write 4\n8:0 Sync 7\nTotal 7\n";
        assert_eq!(io_of_v1(counts, "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\nTotal 3\n"), expected);
    }

    #[test]
    fn packets_of_each_interface_count() {
        let base = ["s".to_owned(), String::new(), String::new()];
        let mut list = List { base, at: 1, found: Vec::new() };
        packets(&mut list, "  lo: 9 1 0 0 0 0 0 0 9 1 0 0");
        packets(&mut list, "  eth0: 10 2 0 1 0 0 0 0 30 4 0 3 0 0 0 0");
        let shown: Vec<(String, u64)> = list
            .found
            .iter()
            .map(|metric| (metric.label_values.join(","), metric.value.unwrap().value))
            .collect();
        assert_eq!(shown.iter().map(|(_, value)| *value).collect::<Vec<_>>(), [2, 1, 4, 3]);
        assert_eq!(shown[0].0, "s,,,eth0");
    }

    #[test]
    fn every_metric_has_as_many_labels_as_its_descriptor() {
        let known = descriptors();
        let names: std::collections::BTreeSet<&str> = known.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names.len(), KNOWN.len());
        assert!(known.iter().all(|one| one.label_keys.starts_with(&LABELS.map(str::to_owned))));
    }
}
