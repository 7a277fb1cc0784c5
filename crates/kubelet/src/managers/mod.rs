//! The node's resource managers: processors and memory that containers have for themselves, near to each other and to
//! their devices.
//!
//! - [`machine`]: what the machine is made of; [`cpu_set`]: sets of processors.
//! - [`options`]: what KubeletConfiguration says.
//! - [`cpu`], [`assignment`]: the static policy of processors; [`memory`]: that of memory.
//! - [`topology`]: which NUMA nodes suit all that a container wants.
//! - [`checkpoint`]: the files that remember, in the kubelet's folder.
//!
//! Decisions are pure functions of the machine and of what is given already. What they come to is told to the runtime when
//! a container is made, and by a worker when the shared processors change ([`Managers::changed`]).
//!
//! Rule: Kubernetes documentation, "Node Resource Managers".

mod assignment;
pub(crate) mod checkpoint;
pub mod cpu;
pub mod cpu_set;
pub mod machine;
pub mod memory;
pub mod options;
pub mod topology;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::quantity::Quantity;
use client::metrics::Kind::{self, Counter, Gauge};
use cri::v1::LinuxContainerResources;
use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::admission::Rejection;
use crate::configuration::KubeletConfiguration;
use crate::devices::{Allocation, Devices};
use crate::plan::is_sidecar;
use cpu::Processors;
use cpu_set::CpuSet;
use machine::{Level, Machine};
use memory::{Block, Memory};
use options::TopologyOptions;
use topology::{Hint, Policy, decide};

/// Why a container gets nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// Whole cores are not to be had.
    Threads(String),
    /// No place suits all that is wanted.
    Affinity,
    /// Anything else.
    Other(String),
}

impl From<Refused> for Rejection {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Threads(why) => Self::of("SMTAlignmentError", why),
            Refused::Affinity => {
                Self::of("TopologyAffinityError", "Resources cannot be allocated with Topology locality")
            }
            Refused::Other(why) => Self::of(
                "UnexpectedAdmissionError",
                format!("Allocate failed due to {why}, which is unexpected"),
            ),
        }
    }
}

/// The containers that are given resources, in the order in which they begin.
pub(crate) fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.iter();
    spec.flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers))
}

/// Whether a container has ended when others begin, and leaves them what it had.
pub(crate) fn passes_on(pod: &Pod, container: &Container) -> bool {
    let mut init = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    init.any(|one| one.name == container.name && !is_sidecar(one))
}

/// How often something happened, for `/metrics`: how often at all, and how often in vain.
#[derive(Debug, Clone, Default)]
struct Counts {
    cpu: (u64, u64),
    memory: (u64, u64),
    topology: (u64, u64),
    /// Promises that all is near: kept, and broken; by scope and boundary.
    aligned: BTreeMap<(&'static str, &'static str), (u64, u64)>,
}

impl Counts {
    /// None yet; what may come is there from the start.
    fn new(topology: bool, cores: bool) -> Self {
        let mut this = Self::default();
        if topology {
            this.aligned.extend(["container", "pod"].map(|scope| ((scope, NODE), (0, 0))));
        }
        if cores {
            this.aligned.extend([CORE, CACHE].map(|boundary| (("container", boundary), (0, 0))));
        }
        this
    }

    fn align(&mut self, scope: &'static str, boundary: &'static str, kept: bool) {
        let count = self.aligned.entry((scope, boundary)).or_default();
        count.0 += u64::from(kept);
        count.1 += u64::from(!kept);
    }
}

/// What containers are promised not to cross.
const NODE: &str = "numa_node";
const CORE: &str = "physical_cpu";
/// Nobody is promised that: it is counted where it came so.
const CACHE: &str = "uncore_cache";

#[derive(Default)]
struct State {
    cpus: Option<Processors>,
    memory: Option<Memory>,
    counts: Counts,
}

/// Processors and memory of the node, and who has which.
pub struct Managers {
    machine: Arc<Machine>,
    folder: PathBuf,
    policy: Policy,
    /// One decision for all containers of a pod.
    whole_pods: bool,
    options: TopologyOptions,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

/// A number of [`Managers::measure`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: &'static str,
    /// What it counts.
    pub help: &'static str,
    /// Labels, in order.
    pub labels: Vec<(&'static str, String)>,
    /// The number.
    pub value: u64,
}

impl Managers {
    /// As `settings` say, with what an earlier kubelet gave away by the files in `folder`. The error is what the kubelet does
    /// not start for.
    pub fn open(
        folder: &Path,
        machine: Arc<Machine>,
        settings: &KubeletConfiguration,
    ) -> Result<Self, String> {
        options::fits(settings, &machine)?;
        let (policy, whole_pods, options) = options::topology(settings)?;
        // an earlier policy's decisions stand until their file is removed
        let kept = checkpoint::read_cpus(folder, &settings.cpu_manager_policy)?;
        let mut cpus = None;
        if settings.cpu_manager_policy == "static" {
            let named = CpuSet::parse(&settings.reserved_system_cpus)?;
            let reserved = usize::try_from(settings.reserved("cpu").max(0)).unwrap_or(0).div_ceil(1000);
            cpus = Some(Processors::new(machine.clone(), options::cpu(settings)?, (reserved, named), kept)?);
        }
        let kept = checkpoint::read_memory(folder, &settings.memory_manager_policy)?;
        let mut memory = None;
        if settings.memory_manager_policy == "Static" {
            let sum: i64 = machine.nodes.values().map(|node| i64::try_from(node.memory).unwrap_or(0)).sum();
            let whole: BTreeMap<String, Quantity> = settings.kept_back(u64::try_from(sum).unwrap_or(0));
            memory = Some(Memory::new(&machine, &settings.reserved_memory, &whole, kept)?);
        }
        let counts = Counts::new(policy != Policy::None, cpus.is_some());
        let state = Mutex::new(State { cpus, memory, counts });
        let this = Self {
            machine,
            folder: folder.to_owned(),
            policy,
            whole_pods,
            options,
            state,
            changed: watch::Sender::new(0),
        };
        this.save()?;
        Ok(this)
    }

    /// Changes whenever somebody's processors do.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn pool(&self) -> Option<CpuSet> {
        self.state.lock().cpus.as_ref().map(|cpus| cpus.pool.clone())
    }

    fn save(&self) -> Result<(), String> {
        let state = self.state.lock();
        let failed = |file: &str, error: std::io::Error| format!("{file}: {error}");
        if let Some(cpus) = &state.cpus {
            checkpoint::write_cpus(&self.folder, "static", &cpus.pool, &cpus.given)
                .map_err(|error| failed(checkpoint::CPU, error))?;
        }
        if let Some(memory) = &state.memory {
            checkpoint::write_memory(&self.folder, "Static", &memory.nodes, &memory.given)
                .map_err(|error| failed(checkpoint::MEMORY, error))?;
        }
        Ok(())
    }

    /// Gives the containers of a pod what they ask for, devices included, once; what pods have that are not in `alive` is
    /// free again. A pod that is refused has nothing, unless it had begun before.
    pub async fn admit(
        &self,
        (pod, begun): (&Pod, bool),
        alive: &HashSet<String>,
        devices: &Devices,
    ) -> Result<(), Rejection> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        self.keep(|other| other == uid || alive.contains(other));
        self.state.lock().counts.topology.0 += 1;
        let begin = std::time::Instant::now();
        let before = self.pool();
        let given = self.give(pod, alive, devices).await;
        if given.is_err() {
            if self.policy != Policy::None {
                self.state.lock().counts.topology.1 += 1;
            }
            if !begun {
                self.release(uid);
            }
        }
        crate::metrics::TOPOLOGY_DURATION.observe(&[], begin.elapsed().as_millis() as f64);
        let saved = self.save().map_err(Refused::Other);
        if self.pool() != before {
            self.changed.send_modify(|count| *count += 1);
        }
        given.and(saved).map_err(Rejection::from)
    }

    async fn give(&self, pod: &Pod, alive: &HashSet<String>, devices: &Devices) -> Result<(), Refused> {
        let mut allocation = devices.begin(pod, alive);
        let one = self.policy != Policy::None && self.whole_pods;
        let whole = if one { Some(self.noted("pod", self.of_pod(pod, devices))?) } else { None };
        for container in containers(pod) {
            let hint = match whole {
                Some(hint) => hint,
                None => self.noted("container", self.of_container(pod, container, devices, &allocation))?,
            };
            let given = devices.give(pod, container, hint, &mut allocation).await;
            given.map_err(Refused::Other)?;
            self.give_own(pod, container, hint)?;
            if whole.is_none() {
                self.kept_near("container");
            }
        }
        if whole.is_some() {
            self.kept_near("pod");
        }
        devices.finish(allocation).map_err(Refused::Other)
    }

    /// Counts a refusal where nearness is promised.
    fn noted(&self, scope: &'static str, decided: Result<Hint, Refused>) -> Result<Hint, Refused> {
        if self.policy == Policy::SingleNumaNode && decided.is_err() {
            self.state.lock().counts.align(scope, NODE, false);
        }
        decided
    }

    /// Counts a promise that was kept.
    fn kept_near(&self, scope: &'static str) {
        if self.policy == Policy::SingleNumaNode {
            self.state.lock().counts.align(scope, NODE, true);
        }
    }

    fn give_own(&self, pod: &Pod, container: &Container, hint: Hint) -> Result<(), Refused> {
        let mut state = self.state.lock();
        let State { cpus, memory, counts } = &mut *state;
        if let Some(cpus) = cpus {
            let uid = pod.metadata.uid.as_deref().unwrap_or_default();
            let had = cpus.of(uid, &container.name).is_some();
            let given = cpus.give(pod, container, hint);
            let own = cpus.of(uid, &container.name).filter(|_| !had);
            if own.is_some_and(|own| self.machine.groups(own, Level::Cache).len() == 1) {
                counts.align("container", CACHE, true);
            }
            counts.cpu.0 += u64::from(!matches!(given, Ok(false)));
            counts.cpu.1 += u64::from(given.is_err());
            if cpus.gives_whole_cores() && !matches!(given, Ok(false)) {
                counts.align("container", CORE, given.is_ok());
            }
            given?;
        }
        if let Some(memory) = memory {
            let given = memory.give(pod, container, hint);
            counts.memory.0 += u64::from(!matches!(given, Ok(false)));
            counts.memory.1 += u64::from(given.is_err());
            given.map_err(Refused::Other)?;
        }
        Ok(())
    }

    fn of_container(
        &self,
        pod: &Pod,
        container: &Container,
        devices: &Devices,
        allocation: &Allocation,
    ) -> Result<Hint, Refused> {
        if self.policy == Policy::None {
            return Ok(Hint::default());
        }
        let mut wishes = devices.wishes(&self.machine, pod, container, allocation);
        let state = self.state.lock();
        wishes.extend(state.cpus.as_ref().map(|cpus| cpus.wishes(pod, container)));
        wishes.extend(state.memory.iter().flat_map(|memory| memory.wishes(pod, container)));
        self.decide(wishes)
    }

    fn of_pod(&self, pod: &Pod, devices: &Devices) -> Result<Hint, Refused> {
        let mut wishes = devices.pod_wishes(&self.machine, pod);
        let state = self.state.lock();
        wishes.extend(state.cpus.as_ref().map(|cpus| cpus.pod_wishes(pod)));
        wishes.extend(state.memory.iter().flat_map(|memory| memory.pod_wishes(pod)));
        self.decide(wishes)
    }

    fn decide(&self, wishes: Vec<topology::Wishes>) -> Result<Hint, Refused> {
        let (hint, admitted) = decide(&self.machine, self.policy, &self.options, wishes);
        if admitted { Ok(hint) } else { Err(Refused::Affinity) }
    }

    /// Takes back what pods have that are not to be kept.
    pub fn keep(&self, kept: impl Fn(&str) -> bool) {
        let mut state = self.state.lock();
        let State { cpus, memory, .. } = &mut *state;
        let some = cpus.as_mut().is_some_and(|cpus| cpus.keep(&kept));
        let more = memory.as_mut().is_some_and(|memory| memory.keep(&kept));
        drop(state);
        if !some && !more {
            return;
        }
        if let Err(why) = self.save() {
            tracing::warn!(why, "what is free again is not written down");
        }
        if some {
            self.changed.send_modify(|count| *count += 1);
        }
    }

    /// The pods that have any of their own.
    pub fn holders(&self) -> Vec<String> {
        let state = self.state.lock();
        let cpus = state.cpus.iter().flat_map(|cpus| cpus.given.keys());
        cpus.chain(state.memory.iter().flat_map(|memory| memory.given.keys())).cloned().collect()
    }

    /// A pod is over: what it had is free.
    pub fn release(&self, uid: &str) {
        self.keep(|other| other != uid);
    }

    /// Writes into a container's numbers where it may run. With processors of its own it needs no share of time.
    pub fn pin(&self, uid: &str, container: &str, numbers: &mut LinuxContainerResources) {
        let state = self.state.lock();
        if let Some(cpus) = &state.cpus {
            let own = cpus.of(uid, container);
            numbers.cpuset_cpus = own.unwrap_or(&cpus.pool).to_string();
            if own.is_some() && numbers.cpu_quota > 0 {
                numbers.cpu_quota = -1;
            }
        }
        if let Some(blocks) = state.memory.as_ref().and_then(|memory| memory.of(uid, container)) {
            let nodes: CpuSet = blocks.iter().flat_map(|block| block.numa_affinity.iter().copied()).collect();
            numbers.cpuset_mems = nodes.to_string();
        }
    }

    /// Whether a container of the pod has processors for itself.
    pub fn has_own(&self, uid: &str) -> bool {
        self.state.lock().cpus.as_ref().is_some_and(|cpus| cpus.given.contains_key(uid))
    }

    /// Processors and memory that pods may have for themselves.
    pub fn allocatable(&self) -> (CpuSet, Vec<Block>) {
        let state = self.state.lock();
        let cpus = state.cpus.as_ref().map(Processors::allocatable).unwrap_or_default();
        (cpus, state.memory.as_ref().map(Memory::allocatable).unwrap_or_default())
    }

    /// What a container has for itself.
    pub fn of(&self, uid: &str, container: &str) -> (CpuSet, Vec<Block>) {
        let state = self.state.lock();
        let cpus = state.cpus.as_ref().and_then(|cpus| cpus.of(uid, container)).cloned();
        let memory = state.memory.as_ref().and_then(|memory| memory.of(uid, container)).cloned();
        (cpus.unwrap_or_default(), memory.unwrap_or_default())
    }

    /// Why the pod's own request cannot be changed while it runs.
    pub fn fixed(&self, pod: &Pod, resource: &str) -> Option<String> {
        if crate::resources::qos_class(pod) != "Guaranteed" {
            return None;
        }
        let state = self.state.lock();
        let (kind, policy) = match resource {
            "cpu" if state.cpus.is_some() => ("CPU", "static"),
            "memory" if state.memory.is_some() => ("Memory", "Static"),
            _ => return None,
        };
        Some(format!("Resize is infeasible for Guaranteed Pods alongside {kind} Manager policy {policy:?}"))
    }

    /// For `/metrics`, by the reference's names.
    pub fn measure(&self) -> Vec<Sample> {
        let state = self.state.lock();
        let Counts { cpu, memory, topology, aligned } = &state.counts;
        let mut found = Vec::new();
        let mut add = |kind, name, help, labels: &[(&'static str, &str)], value| {
            let labels = labels.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
            found.push(Sample { kind, name, help, labels, value });
        };
        add(
            Counter,
            "kubelet_topology_manager_admission_requests_total",
            "[ALPHA] The number of admission requests where resources have to be aligned.",
            &[],
            topology.0,
        );
        add(
            Counter,
            "kubelet_topology_manager_admission_errors_total",
            "[ALPHA] The number of admission request failures where resources could not be aligned.",
            &[],
            topology.1,
        );
        add(
            Counter,
            "kubelet_cpu_manager_pinning_requests_total",
            "[ALPHA] The number of cpu core allocations which required pinning.",
            &[],
            cpu.0,
        );
        add(
            Counter,
            "kubelet_cpu_manager_pinning_errors_total",
            "[ALPHA] The number of cpu core allocations which required pinning failed.",
            &[],
            cpu.1,
        );
        add(
            Counter,
            "kubelet_memory_manager_pinning_requests_total",
            "[ALPHA] The number of memory pages allocations which required pinning.",
            &[],
            memory.0,
        );
        add(
            Counter,
            "kubelet_memory_manager_pinning_errors_total",
            "[ALPHA] The number of memory pages allocations which required pinning that failed.",
            &[],
            memory.1,
        );
        for ((scope, boundary), (kept, broken)) in aligned {
            let labels = [("boundary", *boundary), ("scope", *scope)];
            add(
                Counter,
                "kubelet_container_aligned_compute_resources_count",
                "[ALPHA] Cumulative number of aligned compute resources allocated to containers by alignment type.",
                &labels,
                *kept,
            );
            if *boundary == CACHE {
                continue;
            }
            add(
                Counter,
                "kubelet_container_aligned_compute_resources_failure_count",
                "[ALPHA] Cumulative number of failures to allocate aligned compute resources to containers by alignment type.",
                &labels,
                *broken,
            );
        }
        if let Some(cpus) = &state.cpus {
            let own = cpus
                .given
                .values()
                .flat_map(BTreeMap::values)
                .fold(CpuSet::default(), |sum, own| sum.union(own));
            add(
                Gauge,
                "kubelet_cpu_manager_shared_pool_size_millicores",
                "[ALPHA] The size of the shared CPU pool for non-guaranteed QoS pods, in millicores.",
                &[],
                cpus.free().len() as u64 * 1000,
            );
            add(
                Gauge,
                "kubelet_cpu_manager_exclusive_cpu_allocation_count",
                "[ALPHA] The total number of CPUs exclusively allocated to containers running on this node",
                &[],
                own.len() as u64,
            );
            for node in self.machine.nodes.keys() {
                let here = self.machine.of_nodes(topology::Mask::of([*node])).and(&own);
                add(
                    Gauge,
                    "kubelet_cpu_manager_allocation_per_numa",
                    "[ALPHA] Number of CPUs allocated per NUMA node",
                    &[("numa_node", &node.to_string())],
                    here.len() as u64,
                );
            }
        }
        found
    }
}

#[cfg(test)]
mod tests;
