//! What the node as a whole uses, as the kernel says it.

use std::sync::LazyLock;
use std::time::Instant;

use cri::v1::{FilesystemUsage, ImageFsInfoResponse};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{Extent, now, used_of, value_of};
use crate::eviction::threshold::{Observation, Signal};
use crate::server::About;
use crate::server::metrics::node_usage;
use crate::usage::{FileSystem, interfaces, of_node};

/// The interface that counts as the node's own.
const DEFAULT_INTERFACE: &str = "eth0";
/// A rate of processor time is measured over at least so long, in seconds.
const WINDOW: f64 = 0.1;

/// The part `node` of the summary. Blocks on the disk.
pub(super) fn node(about: &About, images: &ImageFsInfoResponse, disk: &FileSystem, extent: Extent) -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let now = now();
    let mut out = json!({"nodeName": about.node});
    if let Some(booted) = booted(&read("/proc/stat")) {
        out["startTime"] = json!(booted.to_string());
    }
    let (cpu, used) = node_usage();
    if let Some(seconds) = cpu {
        // whole nanoseconds of some years fit
        let mut cpu = json!({"time": now, "usageCoreNanoSeconds": (seconds * 1e9) as u64});
        if let Some(cores) = RATE.lock().cores(Instant::now(), seconds) {
            cpu["usageNanoCores"] = json!((cores * 1e9) as u64);
        }
        cpu["psi"] = pressure(&read("/proc/pressure/cpu"));
        out["cpu"] = cpu;
    }
    let left = of_node(&about.root, None);
    let (meminfo, vmstat) = (read("/proc/meminfo"), read("/proc/vmstat"));
    let bytes = |name: &str| crate::usage::meminfo(&meminfo, name);
    if let (Some(used), Some(memory)) = (used, left.get(&Signal::Memory)) {
        let all = bytes("MemTotal").zip(bytes("MemFree")).map(|(total, free)| total.saturating_sub(free));
        out["memory"] = json!({"time": now, "availableBytes": memory.available, "workingSetBytes": used,
            "usageBytes": all, "rssBytes": bytes("AnonPages"), "pageFaults": field(&vmstat, "pgfault"),
            "majorPageFaults": field(&vmstat, "pgmajfault"), "psi": pressure(&read("/proc/pressure/memory"))});
    }
    if let Some((total, free)) = bytes("SwapTotal").zip(bytes("SwapFree")) {
        out["swap"] =
            json!({"time": now, "swapAvailableBytes": free, "swapUsageBytes": total.saturating_sub(free)});
    }
    if extent == Extent::All {
        let io = pressure(&read("/proc/pressure/io"));
        if !io.is_null() {
            out["io"] = json!({"time": now, "psi": io});
        }
        let taken = |of: &Option<Observation>| of.map_or(0, |of| of.capacity.saturating_sub(of.available));
        out["fs"] = used_of(disk, (taken(&disk.0), taken(&disk.1)));
        if let Some(pids) = left.get(&Signal::Pid) {
            let running = pids.capacity.saturating_sub(pids.available);
            out["rlimit"] = json!({"time": now, "maxpid": pids.capacity, "curproc": running});
        }
        out["network"] = network(&read("/proc/net/dev"), &now);
        let of_runtime = |list: &[FilesystemUsage]| {
            let usage = list.first()?;
            Some(used_of(disk, (value_of(usage.used_bytes.as_ref()), value_of(usage.inodes_used.as_ref()))))
        };
        let image_fs = of_runtime(&images.image_filesystems);
        let container_fs = of_runtime(&images.container_filesystems);
        if image_fs.is_some() || container_fs.is_some() {
            out["runtime"] = json!({"imageFs": image_fs, "containerFs": container_fs});
        }
    }
    without_null(&mut out);
    out
}

/// What was not measured is absent.
fn without_null(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.retain(|_, value| !value.is_null());
        fields.values_mut().for_each(without_null);
    }
}

/// When the machine started, by `/proc/stat`.
fn booted(stat: &str) -> Option<Timestamp> {
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())?;
    Timestamp::from_second(seconds).ok()
}

/// The number behind the name of a counter.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// How long tasks waited (kernel documentation, "PSI"); null where the kernel does not say. Totals are in microseconds.
fn pressure(text: &str) -> Value {
    let line = |kind: &str| {
        let fields = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '));
        let of = |name: &str| {
            let mut pairs = fields?.split(' ').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == name)?.1.parse::<f64>().ok()
        };
        let total = of("total").map_or(0, |total| total as u64);
        let average = |name: &str| of(name).unwrap_or(0.0);
        json!({"total": total, "avg10": average("avg10"), "avg60": average("avg60"), "avg300": average("avg300")})
    };
    if text.is_empty() { Value::Null } else { json!({"full": line("full"), "some": line("some")}) }
}

fn network(devices: &str, now: &str) -> Value {
    let shown = |(name, [rx, rx_errors, tx, tx_errors]): (&str, [u64; 4])| json!({"name": name, "rxBytes": rx, "rxErrors": rx_errors, "txBytes": tx, "txErrors": tx_errors});
    let mut out = interfaces(devices)
        .find(|(name, _)| *name == DEFAULT_INTERFACE)
        .map_or_else(|| json!({"name": ""}), shown);
    out["time"] = json!(now);
    out["interfaces"] = interfaces(devices).map(shown).collect();
    out
}

/// Of the whole node.
static RATE: LazyLock<Mutex<Rate>> = LazyLock::new(Mutex::default);

/// A total that rates are made from.
#[derive(Debug, Default)]
struct Rate {
    last: Option<(Instant, f64)>,
    cores: Option<f64>,
}

impl Rate {
    /// Processors in use since the time before; none at first.
    fn cores(&mut self, at: Instant, seconds: f64) -> Option<f64> {
        if let Some((before, used)) = self.last {
            let passed = at.saturating_duration_since(before).as_secs_f64();
            // two callers at once should not make a rate out of noise
            if passed < WINDOW {
                return self.cores;
            }
            self.cores = Some((seconds - used).max(0.0) / passed);
        }
        self.last = Some((at, seconds));
        self.cores
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_machine_says_since_when_it_runs_and_what_it_uses() {
        let about = About { node: "n".to_owned(), root: "/".into(), ..About::default() };
        let disk = crate::server::stats::file_system(&about);
        let shown = node(&about, &ImageFsInfoResponse::default(), &disk, Extent::All);
        for pointer in [
            "/startTime",
            "/cpu/usageCoreNanoSeconds",
            "/memory/rssBytes",
            "/swap/swapUsageBytes",
            "/rlimit/maxpid",
        ] {
            assert!(shown.pointer(pointer).is_some(), "{pointer} in {shown}");
        }
        let brief = node(&about, &ImageFsInfoResponse::default(), &disk, Extent::CpuAndMemory);
        let parts: Vec<&str> = brief.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(parts, ["cpu", "memory", "nodeName", "startTime", "swap"]);
    }

    #[test]
    fn pressure_has_both_lines() {
        let text = "some avg10=0.12 avg60=1.00 avg300=2.50 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n";
        let shown = pressure(text);
        assert_eq!(shown["some"], json!({"total": 77, "avg10": 0.12, "avg60": 1.0, "avg300": 2.5}));
        assert_eq!(shown["full"]["total"], 5);
        assert!(pressure("").is_null());
    }

    #[test]
    fn processors_in_use_are_time_used_over_time_passed() {
        let (mut rate, begin) = (Rate::default(), Instant::now());
        assert_eq!(rate.cores(begin, 10.0), None);
        assert_eq!(rate.cores(begin + Duration::from_secs(2), 13.0), Some(1.5));
        assert_eq!(rate.cores(begin + Duration::from_millis(2001), 99.0), Some(1.5));
    }

    #[test]
    fn the_default_interface_stands_before_all() {
        let text = "Inter-| Receive\n face |bytes\n  eth0: 10 2 1 0 0 0 0 0 30 4 3 0 0 0 0 0\n  br0: 1 0 0 0 0 0 0 0 2 0 0 0 0 0 0 0\n";
        let shown = network(text, "t");
        assert_eq!((&shown["name"], &shown["rxBytes"]), (&json!("eth0"), &json!(10)));
        assert_eq!(shown["interfaces"][1]["txBytes"], 2);
        assert_eq!(network("", "t")["name"], "");
    }
}
