//! Use of resources, from the control groups and the writable layers.

use std::{
    fs,
    time::{Duration, Instant},
};

use cri::v1;

use crate::{
    cgroup::Usage,
    error::RuntimeError,
    pressure,
    state::{Container, Runtime, Sandbox, now},
};

/// How long a measured writable layer counts as current: walking it costs.
const DISK_AGE: Duration = Duration::from_secs(30);

/// Measurements that rates and caches are made from.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    /// When and how much CPU time was used, in nanoseconds.
    cpu: Option<(i64, u64)>,
    rate: Option<u64>,
    /// When, bytes, inodes.
    disk: Option<(Instant, u64, u64)>,
}

impl Samples {
    /// CPU use since the measurement before, in billionths of a core; none at first.
    fn cpu_rate(&mut self, at: i64, nanos: u64) -> Option<u64> {
        if let Some((before, used)) = self.cpu {
            let passed = u64::try_from(at - before).unwrap_or(0);
            // Two callers at once should not make a rate out of noise.
            if passed < 100_000_000 {
                return self.rate;
            }
            self.rate =
                Some((u128::from(nanos.saturating_sub(used)) * 1_000_000_000 / u128::from(passed)) as u64);
        }
        self.cpu = Some((at, nanos));
        self.rate
    }
}

fn value(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

/// Waiting of a group's tasks for processor, memory and disk.
type Waits = [Option<v1::PsiStats>; 3];

fn cpu(usage: &Usage, waits: &Waits, samples: &mut Samples, at: i64) -> v1::CpuUsage {
    v1::CpuUsage {
        psi: waits[0],
        timestamp: at,
        usage_core_nano_seconds: value(usage.cpu_nanos),
        usage_nano_cores: samples.cpu_rate(at, usage.cpu_nanos).and_then(value),
    }
}

fn io(waits: &Waits, at: i64) -> Option<v1::IoUsage> {
    waits[2].map(|psi| v1::IoUsage { timestamp: at, psi: Some(psi) })
}

fn memory(usage: &Usage, waits: &Waits, at: i64) -> v1::MemoryUsage {
    v1::MemoryUsage {
        psi: waits[1],
        timestamp: at,
        working_set_bytes: value(usage.working_set),
        available_bytes: usage.memory_limit.and_then(|limit| value(limit.saturating_sub(usage.working_set))),
        usage_bytes: value(usage.memory),
        rss_bytes: value(usage.rss),
        page_faults: value(usage.page_faults),
        major_page_faults: value(usage.major_page_faults),
    }
}

/// A line of `/proc/PID/net/dev`.
fn interface(line: &str) -> Option<v1::NetworkInterfaceUsage> {
    let (name, numbers) = line.split_once(':')?;
    let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    let at = |at: usize| numbers.get(at).copied().and_then(value);
    (name.trim() != "lo").then(|| v1::NetworkInterfaceUsage {
        name: name.trim().to_owned(),
        rx_bytes: at(0),
        rx_errors: at(2),
        tx_bytes: at(8),
        tx_errors: at(10),
    })
}

impl Runtime {
    /// One container's use. Blocks on the disk.
    pub(crate) fn container_stats(&self, container: &Container) -> v1::ContainerStats {
        let at = now();
        let record = &container.record;
        let attributes = v1::ContainerAttributes {
            id: record.id.clone(),
            metadata: record.config.metadata.clone(),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
        };
        let usage = self.cgroups.usage(&record.cgroup).ok();
        let waits = self.waits(&record.cgroup);
        let (bytes, inodes) = self.writable_layer(container);
        let mut samples = container.samples.lock();
        v1::ContainerStats {
            attributes: Some(attributes),
            cpu: usage.as_ref().map(|usage| cpu(usage, &waits, &mut samples, at)),
            memory: usage.as_ref().map(|usage| memory(usage, &waits, at)),
            io: io(&waits, at),
            writable_layer: Some(v1::FilesystemUsage {
                timestamp: at,
                fs_id: Some(self.filesystem()),
                used_bytes: value(bytes),
                inodes_used: value(inodes),
            }),
            swap: usage.as_ref().map(|usage| v1::SwapUsage {
                timestamp: at,
                swap_available_bytes: usage
                    .swap_limit
                    .and_then(|limit| value(limit.saturating_sub(usage.swap))),
                swap_usage_bytes: value(usage.swap),
            }),
        }
    }

    /// A sandbox's use, and that of its containers. Blocks on the disk.
    pub(crate) fn sandbox_stats(&self, sandbox: &Sandbox) -> Result<v1::PodSandboxStats, RuntimeError> {
        let at = now();
        let record = sandbox.record.read().clone();
        let usage = self.cgroups.usage(&record.cgroup_parent).unwrap_or_default();
        let waits = self.waits(&record.cgroup_parent);
        let containers: Vec<_> = self
            .containers_of(&record.id)
            .iter()
            .filter(|container| container.phase() == crate::record::ContainerPhase::Running)
            .map(|container| self.container_stats(container))
            .collect();
        Ok(v1::PodSandboxStats {
            attributes: Some(v1::PodSandboxAttributes {
                id: record.id.clone(),
                metadata: record.config.metadata,
                labels: record.config.labels,
                annotations: record.config.annotations,
            }),
            linux: Some(v1::LinuxPodSandboxStats {
                cpu: Some(cpu(&usage, &waits, &mut sandbox.samples.lock(), at)),
                memory: Some(memory(&usage, &waits, at)),
                io: io(&waits, at),
                network: self.network_use(&record.id, record.netns.is_some(), at),
                process: Some(v1::ProcessUsage { timestamp: at, process_count: value(usage.pids) }),
                containers,
            }),
            windows: None,
        })
    }

    pub(crate) fn waits(&self, group: &str) -> Waits {
        let folder = self.cgroups.unified(group);
        ["cpu", "memory", "io"].map(|resource| pressure::of(folder.as_deref()?, resource))
    }

    /// Bytes and inodes of a container's writable layer, with the volumes that its image asks for. Blocks on the disk.
    pub(crate) fn writable_layer(&self, container: &Container) -> (u64, u64) {
        let mut samples = container.samples.lock();
        match samples.disk {
            Some((when, bytes, inodes)) if when.elapsed() < DISK_AGE => (bytes, inodes),
            _ => {
                let id = &container.record.id;
                let (bytes, inodes) = tree::size(&self.config.container_dir(id).join("upper"));
                let (more_bytes, more_inodes) = tree::size(&self.config.volumes_dir(id));
                let (bytes, inodes) = (bytes + more_bytes, inodes + more_inodes);
                samples.disk = Some((Instant::now(), bytes, inodes));
                (bytes, inodes)
            }
        }
    }

    /// What the pod's own interfaces carried; it is read through one of its processes.
    fn network_use(&self, sandbox: &str, own: bool, at: i64) -> Option<v1::NetworkUsage> {
        if !own {
            return None;
        }
        let lives = |pid: i32| fs::read_to_string(format!("/proc/{pid}/net/dev")).ok();
        let text = self.containers_of(sandbox).iter().find_map(|container| {
            match container.state.borrow().clone() {
                state if state.phase == crate::record::ContainerPhase::Running => lives(state.pid),
                _ => None,
            }
        })?;
        let mut all: Vec<_> = text.lines().skip(2).filter_map(interface).collect();
        let default = all.iter().position(|interface| interface.name == "eth0").map(|at| all.remove(at));
        Some(v1::NetworkUsage { timestamp: at, default_interface: default, interfaces: all })
    }

    /// The file system of images and containers.
    pub(crate) fn filesystem(&self) -> v1::FilesystemIdentifier {
        v1::FilesystemIdentifier { mountpoint: self.config.root.display().to_string() }
    }

    /// Use of the disk by images and containers. Blocks on the disk.
    pub(crate) fn disk(&self) -> (v1::FilesystemUsage, v1::FilesystemUsage) {
        let usage = |parts: &[(u64, u64)]| v1::FilesystemUsage {
            timestamp: now(),
            fs_id: Some(self.filesystem()),
            used_bytes: value(parts.iter().map(|(bytes, _)| bytes).sum()),
            inodes_used: value(parts.iter().map(|(_, inodes)| inodes).sum()),
        };
        let containers: Vec<_> = self.containers.read().values().cloned().collect();
        let written: Vec<_> = containers.iter().map(|container| self.writable_layer(container)).collect();
        (usage(&[tree::size(&self.config.root.join("blobs")), self.layers()]), usage(&written))
    }

    /// Bytes and inodes of images' layers. Each is measured once: nothing changes in it, and all have a great many files.
    fn layers(&self) -> (u64, u64) {
        let mut known = self.layer_sizes.lock();
        let before = std::mem::take(&mut *known);
        for layer in fs::read_dir(self.config.root.join("layers")).into_iter().flatten().flatten() {
            let path = layer.path();
            let size = before.get(&path).copied().unwrap_or_else(|| tree::size(&path));
            known.insert(path, size);
        }
        known.values().fold((0, 0), |sum, size| (sum.0 + size.0, sum.1 + size.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_rate_is_use_over_time() {
        let mut samples = Samples::default();
        assert_eq!(samples.cpu_rate(0, 1_000), None);
        assert_eq!(samples.cpu_rate(2_000_000_000, 1_000 + 500_000_000), Some(250_000_000));
        assert_eq!(samples.cpu_rate(2_000_000_001, 9_000_000_000), Some(250_000_000));
    }
}
