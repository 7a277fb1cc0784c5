//! Metrics in Prometheus' text form: the kubelet's own ([`own`]), and what containers, pods and the node use, by the names
//! that metrics-server ([`resource`]) and dashboards ([`cadvisor`]) look for.

mod cadvisor;
mod own;
mod resource;

use client::metrics::Families;
use client::metrics::Kind::{Counter, Gauge};
use cri::v1::{ContainerStats, MetricDescriptor, PodSandboxMetrics, PodSandboxStats, UInt64Value};

use crate::eviction::threshold::Signal;
use crate::probes::counts;
use crate::usage::meminfo;
pub(super) use cadvisor::cadvisor;
pub(super) use own::{Own, own};
pub(super) use resource::resource;

/// What the runtime measured.
pub(super) struct Measured {
    /// Containers that run.
    pub(super) containers: Vec<ContainerStats>,
    /// Their sandboxes.
    pub(super) sandboxes: Vec<PodSandboxStats>,
}

/// What the runtime has in cAdvisor's words; nothing where it has none.
#[derive(Default)]
pub(super) struct Described {
    /// Its metrics.
    pub(super) descriptors: Vec<MetricDescriptor>,
    /// What they are now.
    pub(super) pods: Vec<PodSandboxMetrics>,
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

/// Bytes of swap in use.
fn node_swap() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    Some(meminfo(&text, "SwapTotal")?.saturating_sub(meminfo(&text, "SwapFree")?))
}

/// `/metrics/probes`.
pub(super) fn probes() -> String {
    let mut text = Families::default();
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
        text.value(Counter, "prober_probe_total", help, &labels, float(count), None);
    }
    let help = "[ALPHA] Duration in seconds for a probe response.";
    for ([namespace, pod, container, kind], took) in counts::times() {
        let labels = [
            ("container", container.as_str()),
            ("namespace", namespace.as_str()),
            ("pod", pod.as_str()),
            ("probe_type", kind.as_str()),
        ];
        text.distribution("prober_probe_duration_seconds", help, &labels, &took);
    }
    text.text()
}

/// `/metrics/slis`: how checks of health ended.
pub(super) fn slis() -> String {
    let mut text = Families::default();
    let checked = super::health::checked();
    if checked > 0 {
        // whoever can ask gets an answer: there is no other end
        let (name, kind) = (("name", "ping"), ("type", "healthz"));
        let help = "[STABLE] This metric records the result of a single healthcheck.";
        text.value(Gauge, "kubernetes_healthcheck", help, &[name, kind], 1.0, None);
        let help = "[STABLE] This metric records the results of all healthcheck.";
        let labels = [name, ("status", "success"), kind];
        text.value(Counter, "kubernetes_healthchecks_total", help, &labels, float(checked), None);
    }
    text.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::{CONTAINER_NAME, POD_NAME, POD_NAMESPACE};
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
                ..v1::CpuUsage::default()
            }),
            memory: Some(v1::MemoryUsage {
                timestamp: 5_000_000_000,
                working_set_bytes: value(4096),
                ..v1::MemoryUsage::default()
            }),
            swap: Some(v1::SwapUsage {
                timestamp: 5_000_000_000,
                swap_available_bytes: value(512),
                swap_usage_bytes: value(512),
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
        assert!(text.contains("node_swap_usage_bytes "), "{text}");
        assert!(text.contains("pod_swap_usage_bytes{namespace=\"d\\\"q\",pod=\"p\"} 512\n"), "{text}");
        assert!(
            text.contains(
                "container_swap_limit_bytes{container=\"web\",namespace=\"d\\\"q\",pod=\"p\"} 1024 5000\n"
            ),
            "{text}"
        );
        assert!(text.contains("\nresource_scrape_error 0\n"), "{text}");
        let line = "container_cpu_usage_seconds_total{container=\"web\",cpu=\"total\",id=\"c1\",image=\"\"";
        assert!(cadvisor(&[], &measured, &Described::default(), None).contains(line));
    }

    #[test]
    fn what_the_runtime_says_in_cadvisors_words_has_the_pods_names() {
        let metric = |name: &str, labels: &[&str], value| v1::Metric {
            name: name.to_owned(),
            timestamp: 5_000_000_000,
            metric_type: v1::MetricType::Counter as i32,
            label_values: labels.iter().map(|&label| label.to_owned()).collect(),
            value: Some(UInt64Value { value }),
        };
        let descriptor = |name: &str, keys: &[&str]| MetricDescriptor {
            name: name.to_owned(),
            help: "Help.".to_owned(),
            label_keys: keys.iter().map(|&key| key.to_owned()).collect(),
        };
        let (reads, packets) = ("container_fs_reads_total", "container_network_receive_packets_total");
        let attributes = v1::ContainerAttributes {
            id: "c1".to_owned(),
            labels: [(CONTAINER_NAME, "web"), (POD_NAME, "p"), (POD_NAMESPACE, "d")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            ..v1::ContainerAttributes::default()
        };
        let pod = v1::PodSandboxMetadata {
            name: "p".to_owned(),
            namespace: "d".to_owned(),
            ..v1::PodSandboxMetadata::default()
        };
        let pod = v1::PodSandboxAttributes {
            id: "s1".to_owned(),
            metadata: Some(pod),
            ..v1::PodSandboxAttributes::default()
        };
        let measured = Measured {
            containers: vec![ContainerStats {
                attributes: Some(attributes),
                memory: Some(v1::MemoryUsage {
                    rss_bytes: Some(UInt64Value { value: 1 }),
                    ..v1::MemoryUsage::default()
                }),
                ..ContainerStats::default()
            }],
            sandboxes: vec![PodSandboxStats { attributes: Some(pod), ..PodSandboxStats::default() }],
        };
        let container = v1::ContainerMetrics {
            container_id: "c1".to_owned(),
            metrics: vec![
                metric(reads, &["c1", "/dev/sda"], 7),
                // better known by the statistics, and not described at all
                metric("container_memory_rss", &["c1"], 9),
                metric("unknown", &["c1"], 9),
            ],
        };
        let described = Described {
            descriptors: vec![
                descriptor(reads, &["id", "device"]),
                descriptor(packets, &["id", "interface"]),
                descriptor("container_memory_rss", &["id"]),
            ],
            pods: vec![PodSandboxMetrics {
                pod_sandbox_id: "s1".to_owned(),
                metrics: vec![metric(packets, &["s1", "eth0"], 3)],
                container_metrics: vec![container],
            }],
        };
        let text = cadvisor(&[], &measured, &described, None);
        for line in [
            "# HELP container_fs_reads_total Help.\n# TYPE container_fs_reads_total counter\n",
            "{container=\"web\",device=\"/dev/sda\",id=\"c1\",namespace=\"d\",pod=\"p\"} 7 5000\n",
            "{container=\"\",id=\"s1\",interface=\"eth0\",namespace=\"d\",pod=\"p\"} 3 5000\n",
            "machine_memory_bytes ",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert!(!text.contains(" 9 5000\n"), "{text}");
    }

    #[test]
    fn probes_that_succeed_say_how_long_they_took_of_the_pod_that_has_the_name() {
        let add = |uid: &str, result| {
            let [container, namespace, pod] = ["c", "times", "p"].map(str::to_owned);
            let counted =
                counts::Counted { uid: uid.to_owned(), container, kind: "Liveness", result, namespace, pod };
            counts::add(counted, std::time::Duration::from_millis(30));
        };
        let shown = || -> Vec<String> {
            let name = "prober_probe_duration_seconds_";
            let ours = |line: &&str| line.starts_with(name) && line.contains("namespace=\"times\"");
            let text = probes();
            let lines =
                text.lines().filter(ours).filter(|line| line.contains("_count") || line.contains("le=\"0.0"));
            lines.map(|line| line.strip_prefix(name).unwrap_or_default().to_owned()).collect()
        };
        let labels = "container=\"c\",namespace=\"times\",pod=\"p\",probe_type=\"Liveness\"";
        let expected = |count: u64| {
            let mut lines: Vec<String> = [("0.005", 0), ("0.01", 0), ("0.025", 0), ("0.05", count)]
                .iter()
                .map(|(bound, count)| format!("bucket{{{labels},le=\"{bound}\"}} {count}"))
                .collect();
            lines.push(format!("count{{{labels}}} {count}"));
            lines
        };
        add("times-1", counts::SUCCESSFUL);
        add("times-1", counts::SUCCESSFUL);
        add("times-1", "failed");
        assert_eq!(shown(), expected(2));
        add("times-2", counts::SUCCESSFUL);
        assert_eq!(shown(), expected(1));
        counts::forget("times-1");
        assert_eq!(shown(), expected(1));
        counts::forget("times-2");
        assert!(shown().is_empty());
    }
}
