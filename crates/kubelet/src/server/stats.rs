//! `/stats/summary`: what containers use, as the runtime measures it, grouped by pod, and what the node has left.
//!
//! Only what was measured is reported; a field without a measurement is absent, not zero.

mod node;

use std::collections::BTreeMap;
use std::sync::Arc;

use cri::v1::{
    ContainerStats, CpuUsage, FilesystemUsage, ImageFsInfoResponse, IoUsage, MemoryUsage,
    NetworkInterfaceUsage, NetworkUsage, PodSandboxStats, PsiData, PsiStats, SwapUsage, UInt64Value,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value, json};

use super::metrics::Measured;
use super::{About, query};
use crate::eviction::threshold::Signal;
use crate::observed::{CONTAINER_NAME, POD_NAME, POD_NAMESPACE, POD_UID};
use crate::storage::claim;
use crate::storage::usage::Measured as Volumes;
use crate::usage::{FileSystem, FolderVolume, Size, Storage};

/// How much of it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    All,
    /// Processors, memory and swap.
    CpuAndMemory,
}

impl Extent {
    /// By the query's parameter `only_cpu_and_memory`.
    pub(super) fn of(query: &str) -> Self {
        let only =
            query::pairs(query).iter().any(|(name, value)| name == "only_cpu_and_memory" && value == "true");
        if only { Self::CpuAndMemory } else { Self::All }
    }
}

/// The answer's JSON (kubelet `stats/v1alpha1` Summary). `volumes` are those of claims and drivers; `storage` walks a
/// pod's folders. Blocks on the disk.
pub(super) fn summary(
    about: &About,
    pods: &[Arc<Pod>],
    measured: &Measured,
    (images, volumes): (&ImageFsInfoResponse, &Volumes),
    storage: &dyn Fn(&Pod) -> Storage,
    extent: Extent,
) -> Value {
    let whole = |uid: &str| {
        let of_pod = |stats: &&PodSandboxStats| {
            let metadata = stats.attributes.as_ref().and_then(|attributes| attributes.metadata.as_ref());
            metadata.is_some_and(|metadata| metadata.uid == uid)
        };
        measured.sandboxes.iter().find(of_pod).and_then(|stats| stats.linux.as_ref())
    };
    let mut by_pod: BTreeMap<[&str; 3], Vec<&ContainerStats>> = BTreeMap::new();
    for stat in &measured.containers {
        let Some(attributes) = &stat.attributes else { continue };
        let label = |name: &str| attributes.labels.get(name).map_or("", String::as_str);
        by_pod.entry([label(POD_NAMESPACE), label(POD_NAME), label(POD_UID)]).or_default().push(stat);
    }
    let disk = file_system(about);
    let item = |([namespace, name, uid], stats): ([&str; 3], Vec<&ContainerStats>)| {
        let mut item = json!({"podRef": {"name": name, "namespace": namespace, "uid": uid}});
        if let Some(whole) = whole(uid) {
            let parts = [
                ("cpu", whole.cpu.as_ref().map(cpu)),
                ("memory", whole.memory.as_ref().map(memory)),
                ("io", whole.io.as_ref().filter(|_| extent == Extent::All).map(io)),
                ("network", whole.network.as_ref().filter(|_| extent == Extent::All).map(network)),
            ];
            for (part, value) in parts {
                if let Some(value) = value {
                    item[part] = value;
                }
            }
            let count = whole.process.as_ref().and_then(|process| process.process_count.as_ref());
            if let Some(count) = count.filter(|_| extent == Extent::All) {
                item["process_stats"] = json!({"process_count": count.value});
            }
        }
        let known = pods.iter().find(|p| p.metadata.uid.as_deref() == Some(uid));
        if let Some(start) = known.and_then(|p| p.status.as_ref()?.start_time.as_ref()) {
            item["startTime"] = json!(start);
        }
        let swaps = stats.iter().filter_map(|stats| stats.swap);
        if let Some(all) = swaps.reduce(|a, b| together(&a, &b)) {
            item["swap"] = swap(&all);
        }
        if extent == Extent::CpuAndMemory {
            item["containers"] = stats.iter().map(|stats| container(stats, known, None)).collect();
            return item;
        }
        let kept = known.map(|pod| storage(pod)).unwrap_or_default();
        let layer = |stats: &&ContainerStats| -> Size {
            let of = |layer: &FilesystemUsage| {
                (value_of(layer.used_bytes.as_ref()), value_of(layer.inodes_used.as_ref()))
            };
            stats.writable_layer.as_ref().map_or((0, 0), of)
        };
        let local = kept.volumes.values().filter(|volume| volume.is_local).map(|volume| volume.size);
        let all = stats.iter().map(layer).chain(kept.logs.values().copied()).chain(local);
        let sum = all.fold((0, 0), |sum: Size, one| (sum.0 + one.0, sum.1 + one.1));
        item["ephemeral-storage"] = used_of(&disk, sum);
        let folder = |(name, FolderVolume { size, of, .. }): (&String, &FolderVolume)| {
            let mut volume = used_of(of, *size);
            volume["name"] = json!(name);
            volume
        };
        let mut shown: Vec<Value> = kept.volumes.iter().map(folder).collect();
        shown.extend(known.iter().flat_map(|pod| persistent(pod, volumes)));
        if !shown.is_empty() {
            item["volume"] = json!(shown);
        }
        let containers = stats.iter().map(|stats| container(stats, known, Some((&kept, &disk))));
        item["containers"] = containers.collect();
        item
    };
    let items: Vec<Value> = by_pod.into_iter().map(item).collect();
    json!({"node": node::node(about, images, &disk, extent), "pods": items})
}

/// The pod's volumes that are claims or a driver's, with the claim's name.
fn persistent(pod: &Pod, volumes: &Volumes) -> Vec<Value> {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let one = |volume: &Volume| {
        let (time, usage) = volumes.get(&(uid.clone(), volume.name.clone()))?;
        let time = Timestamp::from_second(time.as_second()).unwrap_or_default().to_string();
        let mut shown = json!({"name": volume.name, "time": time, "availableBytes": usage.available,
            "capacityBytes": usage.capacity, "usedBytes": usage.used, "inodesFree": usage.inodes_free,
            "inodes": usage.inodes, "inodesUsed": usage.inodes_used});
        if let Some(name) = claim::name_of(pod, volume) {
            shown["pvcRef"] = json!({"name": name, "namespace": pod.metadata.namespace});
        }
        Some(shown)
    };
    let all = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    all.iter().filter_map(one).collect()
}

/// A pod for each uid among these containers, with what the runtime knows of it.
pub(super) fn running(containers: &[cri::v1::Container]) -> Vec<Pod> {
    let mut pods: BTreeMap<&str, Pod> = BTreeMap::new();
    for container in containers {
        let label = |name: &str| container.labels.get(name).map_or("", String::as_str);
        let pod = pods.entry(label(POD_UID)).or_insert_with(|| Pod {
            metadata: ObjectMeta {
                name: Some(label(POD_NAME).to_owned()),
                namespace: Some(label(POD_NAMESPACE).to_owned()),
                uid: Some(label(POD_UID).to_owned()),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec::default()),
            ..Pod::default()
        });
        let image = container.image.as_ref().map(|image| image.image.clone());
        let shown = Container {
            name: label(CONTAINER_NAME).to_owned(),
            image,
            resources: None,
            ..Container::default()
        };
        pod.spec.get_or_insert_default().containers.push(shown);
    }
    pods.into_values().collect()
}

/// The node's own file system, bytes and inodes.
pub(super) fn file_system(about: &About) -> FileSystem {
    let left = crate::usage::of_node(&about.root, None);
    (left.get(&Signal::NodeFs).copied(), left.get(&Signal::NodeFsInodes).copied())
}

pub(super) fn now() -> String {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default().to_string()
}

/// A part of a file system that something uses.
fn used_of((bytes, inodes): &FileSystem, used: Size) -> Value {
    let mut out = json!({"time": now(), "usedBytes": used.0, "inodesUsed": used.1});
    if let Some(bytes) = bytes {
        out["availableBytes"] = json!(bytes.available);
        out["capacityBytes"] = json!(bytes.capacity);
    }
    if let Some(inodes) = inodes {
        out["inodes"] = json!(inodes.capacity);
        out["inodesFree"] = json!(inodes.available);
    }
    out
}

/// A number, zero where there is none.
fn value_of(value: Option<&UInt64Value>) -> u64 {
    value.map_or(0, |value| value.value)
}

fn cpu(cpu: &CpuUsage) -> Value {
    let values =
        [("usageNanoCores", &cpu.usage_nano_cores), ("usageCoreNanoSeconds", &cpu.usage_core_nano_seconds)];
    with_waits(measured(cpu.timestamp, &values), cpu.psi)
}

fn memory(memory: &MemoryUsage) -> Value {
    let values = [
        ("availableBytes", &memory.available_bytes),
        ("usageBytes", &memory.usage_bytes),
        ("workingSetBytes", &memory.working_set_bytes),
        ("rssBytes", &memory.rss_bytes),
        ("pageFaults", &memory.page_faults),
        ("majorPageFaults", &memory.major_page_faults),
    ];
    with_waits(measured(memory.timestamp, &values), memory.psi)
}

fn io(io: &IoUsage) -> Value {
    with_waits(measured(io.timestamp, &[]), io.psi)
}

/// How long tasks waited, where the runtime says it.
fn with_waits(mut of: Value, waits: Option<PsiStats>) -> Value {
    let shown = |data: Option<PsiData>| {
        let PsiData { total, avg10, avg60, avg300 } = data.unwrap_or_default();
        json!({"total": total, "avg10": avg10, "avg60": avg60, "avg300": avg300})
    };
    if let Some(PsiStats { full, some }) = waits {
        of["psi"] = json!({"full": shown(full), "some": shown(some)});
    }
    of
}

fn swap(swap: &SwapUsage) -> Value {
    let values =
        [("swapAvailableBytes", &swap.swap_available_bytes), ("swapUsageBytes", &swap.swap_usage_bytes)];
    measured(swap.timestamp, &values)
}

/// The swap of two containers, as of the earlier one's time.
fn together(a: &SwapUsage, b: &SwapUsage) -> SwapUsage {
    let sum = |a: Option<UInt64Value>, b: Option<UInt64Value>| match (a, b) {
        (Some(a), Some(b)) => Some(UInt64Value { value: a.value.saturating_add(b.value) }),
        (a, b) => a.or(b),
    };
    SwapUsage {
        timestamp: a.timestamp.min(b.timestamp),
        swap_available_bytes: sum(a.swap_available_bytes, b.swap_available_bytes),
        swap_usage_bytes: sum(a.swap_usage_bytes, b.swap_usage_bytes),
    }
}

fn network(network: &NetworkUsage) -> Value {
    let interface = |interface: &NetworkInterfaceUsage| {
        let values = [
            ("rxBytes", &interface.rx_bytes),
            ("rxErrors", &interface.rx_errors),
            ("txBytes", &interface.tx_bytes),
            ("txErrors", &interface.tx_errors),
        ];
        let mut out = Map::from_iter([("name".to_owned(), json!(interface.name))]);
        fill(&mut out, &values);
        out
    };
    let mut out = network.default_interface.as_ref().map(interface).unwrap_or_default();
    let all = network.default_interface.iter().chain(&network.interfaces);
    out.insert("interfaces".to_owned(), all.map(|one| Value::Object(interface(one))).collect());
    if let Value::Object(time) = measured(network.timestamp, &[]) {
        out.extend(time);
    }
    Value::Object(out)
}

/// With `storage`, what the container keeps on which disk is shown, too.
fn container(
    stats: &ContainerStats,
    pod: Option<&Arc<Pod>>,
    storage: Option<(&Storage, &FileSystem)>,
) -> Value {
    let label = stats.attributes.as_ref().and_then(|a| a.labels.get(CONTAINER_NAME));
    let name = label.map_or("", String::as_str);
    let mut out = json!({"name": name});
    let status = pod.and_then(|pod| pod.status.as_ref());
    let lists = status.map(|s| [&s.container_statuses, &s.init_container_statuses]).into_iter().flatten();
    let status = lists.flatten().flatten().find(|status| status.name == name);
    let state = status.and_then(|status| status.state.as_ref()?.running.as_ref());
    if let Some(start) = state.and_then(|running| running.started_at.as_ref()) {
        out["startTime"] = json!(start);
    }
    if let Some(usage) = &stats.cpu {
        out["cpu"] = cpu(usage);
    }
    if let Some(usage) = &stats.memory {
        out["memory"] = memory(usage);
    }
    if let Some(usage) = &stats.swap {
        out["swap"] = swap(usage);
    }
    let Some((kept, disk)) = storage else { return out };
    if let Some(usage) = &stats.io {
        out["io"] = io(usage);
    }
    if let Some(layer) = &stats.writable_layer {
        let used = (value_of(layer.used_bytes.as_ref()), value_of(layer.inodes_used.as_ref()));
        out["rootfs"] = used_of(disk, used);
    }
    if let Some(size) = kept.logs.get(name) {
        out["logs"] = used_of(disk, *size);
    }
    out
}

fn measured(nanoseconds: i64, values: &[(&str, &Option<UInt64Value>)]) -> Value {
    let mut out = Map::new();
    if let Ok(time) = Timestamp::from_nanosecond(i128::from(nanoseconds)) {
        let seconds = Timestamp::from_second(time.as_second()).unwrap_or(time);
        out.insert("time".to_owned(), json!(seconds.to_string()));
    }
    fill(&mut out, values);
    Value::Object(out)
}

fn fill(out: &mut Map<String, Value>, values: &[(&str, &Option<UInt64Value>)]) {
    for (name, value) in values {
        if let Some(value) = value {
            out.insert((*name).to_owned(), json!(value.value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_stand_with_what_was_waited_for() {
        let some = Some(PsiData { total: 7, avg10: 0.5, avg60: 0.25, avg300: 0.0 });
        let stats = ContainerStats {
            cpu: Some(CpuUsage { psi: Some(PsiStats { full: None, some }), ..CpuUsage::default() }),
            io: Some(IoUsage { timestamp: 0, psi: Some(PsiStats { full: some, some }) }),
            memory: Some(MemoryUsage::default()),
            ..ContainerStats::default()
        };
        let shown = container(&stats, None, Some((&Storage::default(), &(None, None))));
        let waited = json!({"total": 7, "avg10": 0.5, "avg60": 0.25, "avg300": 0.0});
        assert_eq!((&shown["cpu"]["psi"]["some"], &shown["io"]["psi"]["full"]), (&waited, &waited));
        assert_eq!(shown["cpu"]["psi"]["full"]["total"], 0);
        assert!(shown["memory"].get("psi").is_none(), "it was not measured");
        assert!(container(&stats, None, None).get("io").is_none(), "processors and memory only");
    }
}
