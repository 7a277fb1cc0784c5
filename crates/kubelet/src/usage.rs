//! What pods use of the node: memory and writable layers as the runtime measures them, logs and emptyDir volumes as
//! their folders show, and what the node as a whole has left.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cri::v1;
use k8s_openapi::api::core::v1::{Pod, Volume};

use crate::cri_config;
use crate::eviction::threshold::{Observation, Signal};
use crate::manager::Shared;
use crate::observed::{CONTAINER_NAME, POD_UID};
pub use tree::Size;

/// What one container uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ContainerUsage {
    /// Working set, bytes.
    pub memory: u64,
    /// Writable layer, bytes.
    pub layer: u64,
    /// Logs, bytes.
    pub logs: u64,
}

/// What a pod uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodUsage {
    /// The runtime says something of its containers.
    pub measured: bool,
    /// By name; those that run.
    pub containers: BTreeMap<String, ContainerUsage>,
    /// Working set of the pod's control group, bytes, where the runtime says it.
    pub whole: Option<u64>,
    /// Bytes in emptyDir volumes on the disk and in ConfigMaps, by volume.
    pub disk_volumes: BTreeMap<String, u64>,
    /// Bytes in emptyDir volumes in memory, by volume.
    pub memory_volumes: BTreeMap<String, u64>,
    /// Inodes of writable layers.
    pub layer_inodes: u64,
    /// Inodes of logs and volumes on the disk.
    pub inodes: u64,
    /// Processes and threads.
    pub pids: u64,
}

impl PodUsage {
    /// Working set, bytes.
    pub fn memory(&self) -> u64 {
        self.whole.unwrap_or_else(|| self.containers.values().map(|container| container.memory).sum())
    }

    /// Writable layers.
    pub fn layers(&self) -> Size {
        (self.containers.values().map(|container| container.layer).sum(), self.layer_inodes)
    }

    /// Logs, and volumes on the disk.
    pub fn logs_and_volumes(&self) -> Size {
        let logs = self.containers.values().map(|container| container.logs);
        (logs.chain(self.disk_volumes.values().copied()).sum(), self.inodes)
    }

    /// Layers, logs and volumes on the disk, bytes.
    pub fn storage(&self) -> u64 {
        self.layers().0 + self.logs_and_volumes().0
    }
}

/// Measures these pods; by uid. `folders`: walk their logs and volumes too, which costs.
pub async fn of_pods(shared: &Shared, pods: &[Arc<Pod>], folders: bool) -> HashMap<String, PodUsage> {
    let mut found: HashMap<String, PodUsage> = HashMap::new();
    let uid = |pod: &Pod| pod.metadata.uid.clone().unwrap_or_default();
    let (mut one, mut two) = (shared.cri.clone(), shared.cri.clone());
    let (containers, sandboxes) = tokio::join!(
        one.list_container_stats(v1::ListContainerStatsRequest::default()),
        two.list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest::default()),
    );
    // a runtime that measures nothing leaves only what the node itself can see
    let containers = containers.map(|answer| answer.into_inner().stats).unwrap_or_default();
    let sandboxes = sandboxes.map(|answer| answer.into_inner().stats).unwrap_or_default();
    let value = |value: Option<v1::UInt64Value>| value.map_or(0, |value| value.value);
    for stats in containers {
        let Some(attributes) = stats.attributes else { continue };
        let label = |name: &str| attributes.labels.get(name).cloned().unwrap_or_default();
        let pod = found.entry(label(POD_UID)).or_default();
        pod.measured = true;
        let container = pod.containers.entry(label(CONTAINER_NAME)).or_default();
        container.memory += value(stats.memory.and_then(|memory| memory.working_set_bytes));
        if let Some(layer) = stats.writable_layer {
            container.layer += value(layer.used_bytes);
            pod.layer_inodes += value(layer.inodes_used);
        }
    }
    for stats in sandboxes {
        let uid = stats.attributes.and_then(|a| a.metadata).map(|m| m.uid).unwrap_or_default();
        let Some(linux) = stats.linux else { continue };
        let pod = found.entry(uid).or_default();
        pod.pids += value(linux.process.and_then(|process| process.process_count));
        let memory = linux.memory.and_then(|memory| memory.working_set_bytes);
        pod.whole = memory.map(|bytes| bytes.value).filter(|bytes| *bytes > 0).or(pod.whole);
    }
    let work: Vec<(String, Vec<Folder>)> = match folders {
        true => {
            let local = |folder: &Folder| matches!(folder.what, What::Payload(_, true));
            let all =
                |pod| of_pod(shared, pod).into_iter().chain(payloads(shared, pod).into_iter().filter(local));
            pods.iter().map(|pod| (uid(pod), all(pod).collect())).collect()
        }
        false => Vec::new(),
    };
    let walked = tokio::task::spawn_blocking(move || {
        let walk = |(uid, folders): (String, Vec<Folder>)| {
            let sizes = folders.into_iter().map(|folder| {
                let size = tree::size(&folder.path);
                (folder, size)
            });
            (uid, sizes.collect::<Vec<_>>())
        };
        work.into_iter().map(walk).collect::<Vec<_>>()
    });
    for (uid, folders) in walked.await.unwrap_or_default() {
        let pod = found.entry(uid).or_default();
        for (folder, (bytes, inodes)) in folders {
            match folder.what {
                What::Logs(container) => pod.containers.entry(container).or_default().logs += bytes,
                What::Volume(name, true) => {
                    pod.memory_volumes.insert(name, bytes);
                    continue;
                }
                What::Volume(name, false) | What::Payload(name, _) => {
                    pod.disk_volumes.insert(name, bytes);
                }
            }
            pod.inodes += inodes;
        }
    }
    found.retain(|known, _| pods.iter().any(|pod| pod.metadata.uid.as_deref() == Some(known)));
    found
}

/// What a file system has: bytes, and inodes where it counts them.
pub type FileSystem = (Option<Observation>, Option<Observation>);

/// A volume that is a folder of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FolderVolume {
    /// What is in it.
    pub size: Size,
    /// It counts as local storage of the pod: emptyDir on the disk, and ConfigMaps.
    pub is_local: bool,
    /// The file system that it is on.
    pub of: FileSystem,
}

/// What a pod keeps in folders of the node.
#[derive(Debug, Clone, Default)]
pub struct Storage {
    /// Logs, by container.
    pub logs: BTreeMap<String, Size>,
    /// Volumes that the kubelet makes, by name.
    pub volumes: BTreeMap<String, FolderVolume>,
}

/// Walks the pod's folders. Blocks on the disk.
pub(crate) fn storage(shared: &Shared, pod: &Pod) -> Storage {
    let mut found = Storage::default();
    for folder in of_pod(shared, pod).into_iter().chain(payloads(shared, pod)) {
        let size = tree::size(&folder.path);
        let (name, is_local) = match folder.what {
            What::Logs(container) => {
                found.logs.insert(container, size);
                continue;
            }
            What::Volume(name, in_memory) => (name, !in_memory),
            What::Payload(name, is_local) => (name, is_local),
        };
        // not made yet
        let Some((bytes, inodes)) = file_system(&folder.path) else { continue };
        found.volumes.insert(name, FolderVolume { size, is_local, of: (Some(bytes), inodes) });
    }
    found
}

enum What {
    Logs(String),
    /// An emptyDir: name, and whether it is in memory.
    Volume(String, bool),
    /// Content from the API: name, and whether it counts as local storage.
    Payload(String, bool),
}

struct Folder {
    path: PathBuf,
    what: What,
}

fn of_pod(shared: &Shared, pod: &Pod) -> Vec<Folder> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let logs = cri_config::log_dir(&shared.settings, pod);
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let mut found: Vec<Folder> = containers
        .map(|container| Folder {
            path: logs.join(&container.name),
            what: What::Logs(container.name.clone()),
        })
        .collect();
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let volumes = shared.root.join("pods").join(uid).join("volumes/kubernetes.io~empty-dir");
    for volume in spec.volumes.iter().flatten() {
        if let Some(source) = &volume.empty_dir {
            let memory = source.medium.as_deref() == Some("Memory");
            found.push(Folder {
                path: volumes.join(&volume.name),
                what: What::Volume(volume.name.clone(), memory),
            });
        }
    }
    found
}

/// Volumes with content from the API.
fn payloads(shared: &Shared, pod: &Pod) -> Vec<Folder> {
    let volumes =
        shared.root.join("pods").join(pod.metadata.uid.as_deref().unwrap_or_default()).join("volumes");
    let of = |volume: &Volume| {
        let kind = match () {
            () if volume.config_map.is_some() => "configmap",
            () if volume.secret.is_some() => "secret",
            () if volume.downward_api.is_some() => "downward-api",
            () if volume.projected.is_some() => "projected",
            () => return None,
        };
        let path = volumes.join(format!("kubernetes.io~{kind}")).join(&volume.name);
        Some(Folder { path, what: What::Payload(volume.name.clone(), volume.config_map.is_some()) })
    };
    let all = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    all.iter().filter_map(of).collect()
}

/// What the node has left: its folder for pods, and the one of images where it is known.
pub fn of_node(root: &Path, images: Option<&Path>) -> HashMap<Signal, Observation> {
    let mut found = HashMap::new();
    if let Some(memory) = memory(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default()) {
        found.insert(Signal::Memory, memory);
    }
    if let Some((bytes, inodes)) = file_system(root) {
        found.insert(Signal::NodeFs, bytes);
        found.extend(inodes.map(|inodes| (Signal::NodeFsInodes, inodes)));
    }
    if let Some((bytes, inodes)) = images.and_then(file_system) {
        found.insert(Signal::ImageFs, bytes);
        found.extend(inodes.map(|inodes| (Signal::ImageFsInodes, inodes)));
    }
    let running = std::fs::read_to_string("/proc/loadavg").ok().and_then(|text| {
        let field = text.split_whitespace().nth(3)?.to_owned();
        field.split_once('/')?.1.parse::<u64>().ok()
    });
    if let (Some(capacity), Some(running)) = (most_pids(), running) {
        found.insert(Signal::Pid, Observation { available: capacity.saturating_sub(running), capacity });
    }
    found
}

/// How many processes and threads the machine can have.
pub fn most_pids() -> Option<u64> {
    let limit = |name: &str| {
        let text = std::fs::read_to_string(Path::new("/proc/sys/kernel").join(name)).ok()?;
        text.trim().parse::<u64>().ok()
    };
    [limit("pid_max"), limit("threads-max")].into_iter().flatten().min()
}

/// Name, and bytes and errors received and sent, of each interface in `/proc/PID/net/dev`.
pub fn interfaces(text: &str) -> impl Iterator<Item = (&str, [u64; 4])> {
    text.lines().skip(2).filter_map(|line| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        let at = |at: usize| numbers.get(at).copied();
        Some((name.trim(), [at(0)?, at(2)?, at(8)?, at(10)?])).filter(|(name, _)| *name != "lo")
    })
}

/// Bytes of a field of `/proc/meminfo`.
pub fn meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.split(':').next() == Some(name))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Free is what nobody uses and what only keeps copies of files that were not read for long.
fn memory(text: &str) -> Option<Observation> {
    let capacity = meminfo(text, "MemTotal")?;
    let free = meminfo(text, "MemFree")?.saturating_add(meminfo(text, "Inactive(file)")?);
    Some(Observation { available: free.min(capacity), capacity })
}

/// Bytes and inodes; some file systems have no fixed number of inodes.
fn file_system(path: &Path) -> Option<(Observation, Option<Observation>)> {
    let stat = rustix::fs::statvfs(path).ok()?;
    let bytes = Observation {
        available: stat.f_bavail.saturating_mul(stat.f_frsize),
        capacity: stat.f_blocks.saturating_mul(stat.f_frsize),
    };
    let inodes =
        (stat.f_files > 0).then_some(Observation { available: stat.f_ffree, capacity: stat.f_files });
    Some((bytes, inodes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_copies_of_files_count_as_free_memory() {
        let text = "MemTotal:    1000 kB\nMemFree:     100 kB\nMemAvailable: 1 kB\nInactive(file): 50 kB\n";
        assert_eq!(memory(text), Some(Observation { available: 150 * 1024, capacity: 1000 * 1024 }));
        assert_eq!(memory("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn interfaces_tell_what_they_carried() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets errs\n\
                    \u{20}   lo: 9 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n  eth0: 10 2 1 0 0 0 0 0 30 4 3 0 0 0 0 0\n";
        assert_eq!(interfaces(text).collect::<Vec<_>>(), [("eth0", [10, 1, 30, 3])]);
    }

    #[test]
    fn the_machine_has_something_left_of_everything() {
        let found = of_node(Path::new("/"), Some(Path::new("/")));
        for signal in [Signal::Memory, Signal::NodeFs, Signal::ImageFs, Signal::Pid] {
            let seen = found[&signal];
            assert!(seen.available > 0 && seen.available <= seen.capacity, "{signal:?}: {seen:?}");
        }
    }
}
