//! Takes back memory, disk and process ids before the node runs out: reports the pressure, removes what nobody uses,
//! then ends pods one at a time; and ends pods that use more disk than they may.
//!
//! Rule: Kubernetes documentation, "Node-pressure Eviction", "Local ephemeral storage".

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use client::events::EventType;
use cri::v1;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::image_gc;
use crate::manager::{Manager, Shared};
use crate::usage::{self, PodUsage};
use message::message;
use rank::Layout;
use threshold::{Observation, Signal, Threshold};

mod limits;
mod message;
pub mod rank;
pub mod threshold;

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(10);
/// Longest wait for an evicted pod's containers to be gone before another one is chosen.
const CLEANUP: Duration = Duration::from_secs(30);
/// Seconds that pods have when there is no time to lose.
const AT_ONCE: i64 = 1;

/// The reason of pods that the node ended for its own sake.
pub const EVICTED: &str = "Evicted";

/// Conditions of the node that say what is short.
pub type Pressure = BTreeSet<&'static str>;

/// Why the node ends a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eviction {
    /// The pod's reason.
    pub reason: String,
    /// The pod's message.
    pub message: String,
    /// Seconds that its containers have at most.
    pub grace: i64,
    /// Whose doing it is.
    pub cause: Cause,
    /// Annotations of its Event.
    pub annotations: BTreeMap<String, String>,
}

/// Whose doing the end of a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It was never let in.
    Refusal,
    /// It used more than it may have.
    OwnFault,
    /// Others need what it has: its controller is told by `DisruptionTarget` that it was not the pod's own failure.
    Disruption,
}

/// What was seen of thresholds so far.
#[derive(Debug, Default)]
struct Memory {
    /// Thresholds that were passed at the last look, and for long enough.
    acted: Vec<Threshold>,
    /// Since when.
    since: HashMap<(Signal, bool), Instant>,
    /// When a condition was last true.
    conditions: HashMap<&'static str, Instant>,
}

impl Memory {
    /// Takes in a look: what is short, and the threshold to act on.
    fn update(
        &mut self,
        thresholds: &[Threshold],
        seen: &HashMap<Signal, Observation>,
        transition: Duration,
        now: Instant,
    ) -> (Pressure, Option<Threshold>) {
        let key = |threshold: &Threshold| (threshold.signal, threshold.grace.is_some());
        let met: Vec<Threshold> = thresholds
            .iter()
            .filter(|threshold| {
                // what was not acted on has nothing to be freed beyond it
                let held = self.acted.contains(threshold);
                seen.get(&threshold.signal).is_some_and(|seen| threshold.is_met(*seen, held))
            })
            .copied()
            .collect();
        self.since.retain(|known, _| met.iter().any(|threshold| key(threshold) == *known));
        for threshold in &met {
            self.since.entry(key(threshold)).or_insert(now);
            self.conditions.insert(threshold.signal.condition(), now);
        }
        self.conditions.retain(|_, last| now.saturating_duration_since(*last) < transition || *last == now);
        let since = |threshold: &Threshold| {
            let begun = self.since.get(&key(threshold)).copied().unwrap_or(now);
            now.saturating_duration_since(begun)
        };
        let is_due = |threshold: &Threshold| threshold.grace.is_none_or(|grace| since(threshold) >= grace);
        let due: Vec<Threshold> = met.into_iter().filter(is_due).collect();
        let first = due.iter().min_by_key(|threshold| (threshold.signal, threshold.grace.is_some())).copied();
        self.acted = due;
        (self.conditions.keys().copied().collect(), first)
    }
}

/// Watches what is left.
pub struct EvictionManager {
    shared: Arc<Shared>,
    manager: Arc<Manager>,
    node: ObjectReference,
    thresholds: Vec<Threshold>,
    transition: Duration,
    /// Seconds that pods have after a soft threshold.
    max_grace: i64,
    pressure: watch::Sender<Pressure>,
    disks: Option<Disks>,
    memory: Memory,
}

/// Where images lie, and what that means for whose use of a disk counts.
#[derive(Debug, Clone)]
struct Disks {
    images: Option<PathBuf>,
    layout: Layout,
}

impl Disks {
    /// Beside the pods' folders in `root`. A folder that cannot be looked at is taken for one of the same file system.
    fn new(root: &Path, images: Option<PathBuf>, containers: Option<&Path>) -> Self {
        let device = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.dev()).ok();
        let differ = |one: Option<u64>, other: Option<u64>| one.zip(other).is_some_and(|(a, b)| a != b);
        let of_images = images.as_deref().and_then(device);
        let layout = match () {
            () if !differ(of_images, device(root)) => Layout::One,
            () if differ(of_images, containers.and_then(device)) => Layout::ImagesApart,
            () => Layout::ImagesAndLayersApart,
        };
        Self { images, layout }
    }
}

impl EvictionManager {
    /// For the node of that name; what is short goes to `pressure`.
    pub fn new(
        shared: Arc<Shared>,
        manager: Arc<Manager>,
        node: ObjectReference,
        (thresholds, transition, max_grace): (Vec<Threshold>, Duration, i64),
        pressure: watch::Sender<Pressure>,
    ) -> Self {
        let memory = Memory::default();
        Self { shared, manager, node, thresholds, transition, max_grace, pressure, disks: None, memory }
    }

    /// Looks every ten seconds until `stop`: the kernel tells of no file system that fills up, and the reference looks as often.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.pass() => {}
            }
        }
    }

    /// Where the disks are; asked until the runtime answers.
    async fn disks(&mut self) -> Disks {
        if self.disks.is_none() {
            let places = image_gc::places(&self.shared.images).await.ok();
            self.disks = places
                .map(|(images, containers)| Disks::new(&self.shared.root, images, containers.as_deref()));
        }
        self.disks.clone().unwrap_or(Disks { images: None, layout: Layout::One })
    }

    fn observe(&self, disks: &Disks) -> HashMap<Signal, Observation> {
        let mut seen = usage::of_node(&self.shared.root, disks.images.as_deref());
        seen.extend(self.shared.cgroups.memory_left().map(|left| (Signal::AllocatableMemory, left)));
        seen
    }

    async fn pass(&mut self) {
        let disks = self.disks().await;
        let pods = self.manager.active();
        let looked = Instant::now();
        let seen = self.observe(&disks);
        let (pressure, first) = self.memory.update(&self.thresholds, &seen, self.transition, Instant::now());
        self.pressure.send_if_modified(|known| {
            let changed = *known != pressure;
            *known = pressure;
            changed
        });
        // that may have been enough
        if self.over_their_limits(&pods, disks.layout).await {
            return;
        }
        let Some(threshold) = first else { return };
        let resource = threshold.signal.resource();
        tracing::warn!(resource, signal = threshold.signal.name(), "an eviction threshold is passed");
        let text = format!("Attempting to reclaim {resource}");
        self.shared.recorder.event(&self.node, EventType::Warning, "EvictionThresholdMet", text);
        if self.reclaim(threshold.signal, &disks).await {
            return;
        }
        let mut usages = usage::of_pods(&self.shared, &pods, threshold.signal.is_disk()).await;
        let mut ranked: Vec<(Arc<Pod>, PodUsage)> = pods
            .into_iter()
            .map(|pod| {
                let usage = pod.metadata.uid.as_ref().and_then(|uid| usages.remove(uid));
                (pod, usage.unwrap_or_default())
            })
            .collect();
        rank::order(threshold.signal, disks.layout, &mut ranked);
        for signal in self.memory.acted.iter().map(|due| due.signal) {
            for name in [Some(signal.name()), rank::of_layers(signal, disks.layout)].into_iter().flatten() {
                crate::metrics::EVICTION_AGE.time(&[name], looked.elapsed());
            }
        }
        for (pod, usage) in ranked.iter().filter(|(pod, _)| !rank::is_critical(pod)) {
            let (message, annotations) = message(pod, usage, threshold, seen.get(&threshold.signal).copied());
            let grace = self.grace(threshold, pod);
            let eviction = Eviction {
                reason: EVICTED.to_owned(),
                message,
                grace,
                cause: Cause::Disruption,
                annotations,
            };
            if self.evict(pod, threshold.signal.name(), eviction).await {
                return;
            }
        }
        tracing::warn!(resource, "no pod is left that could be evicted");
    }

    /// Seconds that a pod has: none to lose behind a hard threshold, else its own, as far as the node allows.
    fn grace(&self, threshold: Threshold, pod: &Pod) -> i64 {
        let own = crate::plan::grace(pod);
        match threshold.grace {
            None => AT_ONCE,
            Some(_) if self.max_grace == 0 => own.max(AT_ONCE),
            Some(_) => own.min(self.max_grace).max(AT_ONCE),
        }
    }

    async fn evict(&self, pod: &Pod, signal: &str, eviction: Eviction) -> bool {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        tracing::warn!(pod = name, why = eviction.message, "evicting a pod");
        let evicted = self.manager.evict(uid, eviction, CLEANUP).await;
        if evicted {
            crate::metrics::EVICTIONS.add(&[signal]);
        }
        evicted
    }

    /// Removes what nobody uses of what lies on the full disk; whether nothing at all is short after that.
    async fn reclaim(&self, signal: Signal, disks: &Disks) -> bool {
        let (containers, images) = rank::reclaimed(signal, disks.layout);
        if !containers && !images {
            return false;
        }
        if containers {
            self.remove_ended().await;
        }
        if images && let Err(why) = image_gc::remove_unused(&self.shared.cri, &self.shared.images).await {
            tracing::warn!(why, "unused images not removed");
        }
        let seen = self.observe(disks);
        let is_short = |threshold: &Threshold| {
            seen.get(&threshold.signal).is_some_and(|seen| threshold.is_met(*seen, true))
        };
        !self.thresholds.iter().any(is_short)
    }

    /// Containers that have ended and whose pods are not here any more, or are over.
    async fn remove_ended(&self) {
        let active: BTreeSet<String> =
            self.manager.active().iter().filter_map(|pod| pod.metadata.uid.clone()).collect();
        let mut runtime = self.shared.cri.clone();
        let exited = v1::ContainerStateValue { state: v1::ContainerState::ContainerExited as i32 };
        let filter = v1::ContainerFilter { state: Some(exited), ..v1::ContainerFilter::default() };
        let Ok(listed) = runtime.list_containers(v1::ListContainersRequest { filter: Some(filter) }).await
        else {
            return;
        };
        for container in listed.into_inner().containers {
            let uid = container.labels.get(crate::observed::POD_UID);
            if uid.is_some_and(|uid| active.contains(uid)) {
                continue;
            }
            let request = v1::RemoveContainerRequest { container_id: container.id };
            if let Err(error) = runtime.remove_container(request).await {
                tracing::debug!(error = error.message(), "not removed");
            }
        }
    }

    /// Ends pods whose disk use is beyond a limit of their own; whether there was one.
    async fn over_their_limits(&self, pods: &[Arc<Pod>], layout: Layout) -> bool {
        let limited: Vec<Arc<Pod>> = pods.iter().filter(|pod| limits::has_any(pod)).cloned().collect();
        if limited.is_empty() {
            return false;
        }
        let usages = usage::of_pods(&self.shared, &limited, true).await;
        let mut any = false;
        for pod in limited.iter().filter(|pod| !rank::is_critical(pod)) {
            let usage = pod.metadata.uid.as_ref().and_then(|uid| usages.get(uid));
            let Some((limit, message)) = usage.and_then(|usage| limits::passed(pod, usage, layout)) else {
                continue;
            };
            let eviction = Eviction {
                reason: EVICTED.to_owned(),
                message,
                grace: AT_ONCE,
                cause: Cause::OwnFault,
                annotations: BTreeMap::new(),
            };
            any |= self.evict(pod, limit, eviction).await;
        }
        any
    }
}

#[cfg(test)]
mod tests {
    use threshold::Value;

    use super::*;

    fn threshold(signal: Signal, amount: u64, grace: Option<u64>) -> Threshold {
        let grace = grace.map(Duration::from_secs);
        Threshold { signal, value: Value::Amount(amount), grace, reclaim: None }
    }

    fn seen(memory: u64, disk: u64) -> HashMap<Signal, Observation> {
        let observation = |available| Observation { available, capacity: 1000 };
        [(Signal::Memory, observation(memory)), (Signal::NodeFs, observation(disk))].into()
    }

    #[tokio::test(start_paused = true)]
    async fn soft_thresholds_wait_memory_comes_first_and_pressure_lasts() {
        let all = [threshold(Signal::NodeFs, 100, None), threshold(Signal::Memory, 200, Some(60))];
        let (start, transition) = (Instant::now(), Duration::from_secs(300));
        let mut memory = Memory::default();
        let mut look = |at: u64, free: u64, disk: u64| {
            let now = start + Duration::from_secs(at);
            let (pressure, first) = memory.update(&all, &seen(free, disk), transition, now);
            (pressure.into_iter().collect::<Vec<_>>().join(" "), first.map(|first| first.signal))
        };
        assert_eq!(look(0, 500, 500), (String::new(), None));
        assert_eq!(look(10, 150, 500), ("MemoryPressure".to_owned(), None));
        assert_eq!(look(60, 150, 50), ("DiskPressure MemoryPressure".to_owned(), Some(Signal::NodeFs)));
        assert_eq!(look(70, 150, 50), ("DiskPressure MemoryPressure".to_owned(), Some(Signal::Memory)));
        assert_eq!(look(80, 500, 500), ("DiskPressure MemoryPressure".to_owned(), None));
        assert_eq!(look(369, 500, 500), ("DiskPressure MemoryPressure".to_owned(), None));
        assert_eq!(look(370, 150, 500), ("MemoryPressure".to_owned(), None), "its time begins anew");
    }

    #[tokio::test(start_paused = true)]
    async fn more_than_the_threshold_is_to_be_freed_only_once_it_was_acted_on() {
        let reclaim = Some(Value::Amount(100));
        let soft = Threshold { reclaim, ..threshold(Signal::Memory, 200, Some(60)) };
        let (start, mut memory) = (Instant::now(), Memory::default());
        let mut look = |at: u64, free: u64| {
            let now = start + Duration::from_secs(at);
            memory.update(&[soft], &seen(free, 500), Duration::from_secs(1), now).1.is_some()
        };
        let looks = [(0, 150), (30, 250), (60, 150), (120, 150), (130, 250), (140, 300)];
        assert_eq!(looks.map(|(at, free)| look(at, free)), [false, false, false, true, true, false]);
    }
}
