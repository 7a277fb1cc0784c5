//! What containers and pods use, in cAdvisor's words: the CRI's metrics, for what its statistics have no field for.
//!
//! Rule: CRI v1, `ListMetricDescriptors` and `ListPodSandboxMetrics`; cAdvisor, "Monitoring cAdvisor with Prometheus", for names,
//! labels and meaning. Times in seconds are whole ones, since the CRI's numbers are.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use cri::v1;

use crate::{
    cgroup::{Cgroups, keyed, number},
    metric_names::kind,
    record::ContainerPhase,
    state::{Container, Runtime, Sandbox, now},
};

const SECOND: u64 = 1_000_000_000;

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
    kernel: u64,
    at_limit: u64,
    most_memory: u64,
    faults: u64,
    major_faults: u64,
    oom_kills: u64,
    /// By device: reads, bytes read, writes, bytes written.
    io: BTreeMap<String, [u64; 4]>,
    /// By page size: bytes used now, and the most there were where that is known.
    hugepages: Vec<(String, u64, Option<u64>)>,
    /// Of the node's process ids.
    pids: Vec<String>,
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
        let pids = |text: String| text.lines().map(str::to_owned).collect::<Vec<_>>();
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
            this.kernel = keyed(&memory, "kernel");
            this.pids = pids(read("pids", "cgroup.procs"));
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
            this.kernel = one("memory", "memory.kmem.usage_in_bytes");
            this.pids = pids(read("cpuacct", "cgroup.procs"));
            this.io = io_of_v1(
                &read("blkio", "blkio.throttle.io_serviced"),
                &read("blkio", "blkio.throttle.io_service_bytes"),
            );
        }
        this.hugepages = cgroups.folder("hugetlb", group).map_or_else(Vec::new, |folder| huge_pages(&folder));
        this
    }
}

/// What is used of the huge pages of each size: `hugetlb.2MB.current`, in version 1 `hugetlb.2MB.usage_in_bytes`.
fn huge_pages(folder: &Path) -> Vec<(String, u64, Option<u64>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((size, file)) = name.strip_prefix("hugetlb.").and_then(|rest| rest.split_once('.')) else {
            continue;
        };
        if matches!(file, "current" | "usage_in_bytes") {
            let most = folder.join(format!("hugetlb.{size}.max_usage_in_bytes"));
            let most = most.exists().then(|| number(&most));
            found.push((size.to_owned(), number(&entry.path()), most));
        }
    }
    found
}

/// Open files of processes, and how many of them are sockets. Those of processes that end meanwhile are left out.
fn open_files(pids: &[String]) -> (u64, u64) {
    let (mut files, mut sockets) = (0, 0);
    for pid in pids {
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            files += 1;
            let target = fs::read_link(entry.path());
            sockets += u64::from(target.is_ok_and(|target| target.to_string_lossy().starts_with("socket:")));
        }
    }
    (files, sockets)
}

/// How many files a process may open: `Max open files            1024                 4096                 files`.
fn most_open_files(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        soft => soft.parse().ok(),
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
        let label_values = self.base.iter().cloned().chain(more.iter().map(|&value| value.to_owned()));
        self.found.push(v1::Metric {
            name: name.to_owned(),
            timestamp: self.at,
            metric_type: kind(name) as i32,
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
                carried(&mut list, line);
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
        let usage = self.cgroups.usage(&record.cgroup).unwrap_or_default();
        let (files, sockets) = open_files(&used.pids);
        let seconds = |nanos: u64| nanos / SECOND;
        list.add("container_cpu_usage_seconds_total", &["total"], seconds(usage.cpu_nanos));
        let simple = [
            ("container_memory_usage_bytes", usage.memory),
            ("container_memory_working_set_bytes", usage.working_set),
            ("container_memory_rss", usage.rss),
            ("container_memory_swap", usage.swap),
            ("container_memory_kernel_usage", used.kernel),
            ("container_file_descriptors", files),
            ("container_sockets", sockets),
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
            ("container_processes", used.pids.len() as u64),
            ("container_threads", used.threads),
            ("container_threads_max", used.most_threads),
            ("container_last_seen", u64::try_from(list.at).unwrap_or(0) / SECOND),
        ];
        for (name, value) in simple {
            list.add(name, &[], value);
        }
        list.add("container_memory_failures_total", &["pgfault", "container"], used.faults);
        list.add("container_memory_failures_total", &["pgmajfault", "container"], used.major_faults);
        for (size, now, most) in &used.hugepages {
            list.add("container_hugetlb_usage_bytes", &[size], *now);
            if let Some(most) = most {
                list.add("container_hugetlb_max_usage_bytes", &[size], *most);
            }
        }
        for (resource, waits) in ["cpu", "memory", "io"].into_iter().zip(self.waits(&record.cgroup)) {
            for (what, data) in
                [("waiting", waits.and_then(|w| w.some)), ("stalled", waits.and_then(|w| w.full))]
            {
                if let Some(data) = data {
                    let name = format!("container_pressure_{resource}_{what}_seconds_total");
                    list.add(&name, &[], seconds(data.total));
                }
            }
        }
        let first = container.state.borrow().pid;
        let limits = fs::read_to_string(format!("/proc/{first}/limits")).unwrap_or_default();
        if let Some(most) = most_open_files(&limits) {
            list.add("container_ulimits_soft", &["max_open_files"], most);
        }
        self.file_system(container, &mut list);
        for (numbers, [reads, read, writes, written]) in used.io {
            let device = device(&numbers);
            let (major, minor) = numbers.split_once(':').unwrap_or((&numbers, ""));
            for (operation, bytes) in [("Read", read), ("Write", written)] {
                let labels = [device.as_str(), major, minor, operation];
                list.add("container_blkio_device_usage_total", &labels, bytes);
            }
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

    /// What a container may take and has taken of the file system that its writable layer is on.
    fn file_system(&self, container: &Container, list: &mut List) {
        let root = &self.config.root;
        let (Ok(all), Ok(metadata)) = (rustix::fs::statvfs(root), fs::metadata(root)) else { return };
        let numbers = metadata.dev();
        let numbers = format!("{}:{}", rustix::fs::major(numbers), rustix::fs::minor(numbers));
        let (used, _) = self.writable_layer(container);
        for (name, value) in [
            ("container_fs_usage_bytes", used),
            ("container_fs_limit_bytes", all.f_blocks.saturating_mul(all.f_frsize)),
            ("container_fs_inodes_total", all.f_files),
            ("container_fs_inodes_free", all.f_ffree),
        ] {
            list.add(name, &[&device(&numbers)], value);
        }
    }
}

/// A line of `/proc/PID/net/dev`: bytes, packets, errors, and what was dropped.
fn carried(list: &mut List, line: &str) {
    let Some((name, numbers)) = line.split_once(':') else { return };
    let name = name.trim();
    let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    if name == "lo" {
        return;
    }
    for (metric, at) in [
        ("container_network_receive_bytes_total", 0),
        ("container_network_receive_packets_total", 1),
        ("container_network_receive_errors_total", 2),
        ("container_network_receive_packets_dropped_total", 3),
        ("container_network_transmit_bytes_total", 8),
        ("container_network_transmit_packets_total", 9),
        ("container_network_transmit_errors_total", 10),
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
    fn what_each_interface_carried_counts() {
        let base = ["s".to_owned(), String::new(), String::new()];
        let mut list = List { base, at: 1, found: Vec::new() };
        carried(&mut list, "  lo: 9 1 0 0 0 0 0 0 9 1 0 0");
        carried(&mut list, "  eth0: 10 2 0 1 0 0 0 0 30 4 0 3 0 0 0 0");
        let shown: Vec<(String, u64)> = list
            .found
            .iter()
            .map(|metric| (metric.label_values.join(","), metric.value.unwrap().value))
            .collect();
        assert_eq!(shown.iter().map(|(_, value)| *value).collect::<Vec<_>>(), [10, 2, 0, 1, 30, 4, 0, 3]);
        assert_eq!(shown[0].0, "s,,,eth0");
    }

    #[test]
    fn the_soft_limit_of_open_files_is_read() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max open files            1024                 4096                 files     \n";
        assert_eq!(most_open_files(text), Some(1024));
        assert_eq!(most_open_files("Max open files   unlimited   unlimited   files"), Some(u64::MAX));
        assert_eq!(most_open_files(""), None);
    }

    #[test]
    fn huge_pages_are_found_by_size_in_both_versions() {
        let dir = tempfile::tempdir().unwrap();
        for (file, value) in [
            ("hugetlb.2MB.usage_in_bytes", "4096"),
            ("hugetlb.2MB.max_usage_in_bytes", "8192"),
            ("hugetlb.2MB.limit_in_bytes", "1"),
            ("hugetlb.1GB.current", "7"),
        ] {
            fs::write(dir.path().join(file), value).unwrap();
        }
        let mut found = huge_pages(dir.path());
        found.sort();
        assert_eq!(found, [("1GB".to_owned(), 7, None), ("2MB".to_owned(), 4096, Some(8192))]);
    }
}
