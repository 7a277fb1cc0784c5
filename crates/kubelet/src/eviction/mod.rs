//! Takes back memory, disk and process ids before the node runs out: reports the pressure, removes what nobody uses,
//! then ends pods one at a time; and ends pods that use more disk than they may.
//!
//! Rule: Kubernetes documentation, "Node-pressure Eviction", "Local ephemeral storage".

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
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
use threshold::{Observation, Signal, Threshold};

pub mod rank;
pub mod threshold;

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(10);
/// Longest wait for an evicted pod's containers to be gone before another one is chosen.
const CLEANUP: Duration = Duration::from_secs(30);

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
    /// The pod's controller is told by `DisruptionTarget` that it was not the pod's own failure.
    pub disruption: bool,
}

impl Eviction {
    /// For the lack of something.
    pub fn for_shortage(message: String, grace: i64) -> Self {
        Self { reason: EVICTED.to_owned(), message, grace, disruption: true }
    }
}

/// What was seen of thresholds so far.
#[derive(Debug, Default)]
struct Memory {
    /// Thresholds that were passed at the last look.
    met: Vec<Threshold>,
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
                let held = self.met.contains(threshold);
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
        let due =
            met.iter().filter(|threshold| threshold.grace.is_none_or(|grace| since(threshold) >= grace));
        let first = due.min_by_key(|threshold| (threshold.signal, threshold.grace.is_some())).copied();
        self.met = met;
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
    images: Option<PathBuf>,
    memory: Memory,
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
        Self { shared, manager, node, thresholds, transition, max_grace, pressure, images: None, memory }
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

    async fn pass(&mut self) {
        if self.images.is_none() {
            self.images = image_gc::place(&self.shared.images).await.ok().flatten();
        }
        let pods = self.manager.active();
        self.over_their_limits(&pods).await;
        let seen = usage::of_node(&self.shared.root, self.images.as_deref());
        let (pressure, first) = self.memory.update(&self.thresholds, &seen, self.transition, Instant::now());
        self.pressure.send_if_modified(|known| {
            let changed = *known != pressure;
            *known = pressure;
            changed
        });
        let Some(threshold) = first else { return };
        let resource = threshold.signal.resource();
        tracing::warn!(resource, signal = threshold.signal.name(), "an eviction threshold is passed");
        let text = format!("Attempting to reclaim {resource}");
        self.shared.recorder.event(&self.node, EventType::Warning, "EvictionThresholdMet", text);
        if threshold.signal.is_disk() && self.reclaim(threshold).await {
            return;
        }
        let pods: Vec<Arc<Pod>> = pods.into_iter().filter(|pod| !rank::is_critical(pod)).collect();
        let mut usages = usage::of_pods(&self.shared, &pods, threshold.signal.is_disk()).await;
        let used =
            |pod: &Arc<Pod>| pod.metadata.uid.as_ref().and_then(|uid| usages.remove(uid)).unwrap_or_default();
        let mut ranked: Vec<(Arc<Pod>, PodUsage)> = {
            let mut used = used;
            pods.into_iter().map(|pod| (pod.clone(), used(&pod))).collect()
        };
        rank::order(threshold.signal, &mut ranked);
        let grace = if threshold.grace.is_some() { self.max_grace } else { 0 };
        for (pod, usage) in ranked {
            let message = message(&pod, &usage, threshold, seen.get(&threshold.signal).copied());
            if self.evict(&pod, threshold.signal.name(), Eviction::for_shortage(message, grace)).await {
                return;
            }
        }
        tracing::warn!(resource, "no pod is left that could be evicted");
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

    /// Removes ended containers and unused images; whether that was enough.
    async fn reclaim(&self, threshold: Threshold) -> bool {
        self.remove_ended().await;
        if let Err(why) = image_gc::remove_unused(&self.shared.cri, &self.shared.images).await {
            tracing::warn!(why, "unused images not removed");
        }
        let seen = usage::of_node(&self.shared.root, self.images.as_deref());
        seen.get(&threshold.signal).is_some_and(|seen| !threshold.is_met(*seen, true))
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

    /// Ends pods whose disk use is beyond a limit of their own.
    async fn over_their_limits(&self, pods: &[Arc<Pod>]) {
        let limited: Vec<Arc<Pod>> = pods.iter().filter(|pod| has_storage_limit(pod)).cloned().collect();
        if limited.is_empty() {
            return;
        }
        let usages = usage::of_pods(&self.shared, &limited, true).await;
        for pod in limited {
            let usage = pod.metadata.uid.as_ref().and_then(|uid| usages.get(uid));
            if let Some((limit, message)) = usage.and_then(|usage| over_limit(&pod, usage))
                && !rank::is_critical(&pod)
            {
                self.evict(&pod, limit, Eviction::for_shortage(message, 0)).await;
            }
        }
    }
}

const STORAGE: &str = "ephemeral-storage";

fn limit_of(container: &k8s_openapi::api::core::v1::Container) -> Option<u64> {
    let limits = container.resources.as_ref()?.limits.as_ref()?;
    u64::try_from(crate::resources::units(&limits.get(STORAGE)?.0)).ok()
}

fn has_storage_limit(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    spec.containers.iter().chain(spec.init_containers.iter().flatten()).any(|c| limit_of(c).is_some())
        || spec.volumes.iter().flatten().any(|v| v.empty_dir.as_ref().is_some_and(|e| e.size_limit.is_some()))
}

/// Which limit of its own the pod has passed, as metrics name it and in the words of its end.
fn over_limit(pod: &Pod, usage: &PodUsage) -> Option<(&'static str, String)> {
    let spec = pod.spec.as_ref()?;
    for volume in spec.volumes.iter().flatten() {
        let Some(limit) = volume.empty_dir.as_ref().and_then(|source| source.size_limit.as_ref()) else {
            continue;
        };
        let bytes = usage.disk_volumes.get(&volume.name).or_else(|| usage.memory_volumes.get(&volume.name));
        let most = u64::try_from(crate::resources::units(&limit.0)).unwrap_or(0);
        if bytes.is_some_and(|bytes| most > 0 && *bytes > most) {
            let why = format!("Usage of EmptyDir volume {:?} exceeds the limit {:?}. ", volume.name, limit.0);
            return Some(("emptydirfs.limit", why));
        }
    }
    let whole = crate::resources::limited(pod, STORAGE);
    if let Some(whole) = whole.filter(|whole| usage.storage() > *whole) {
        let shown = api::quantity::Quantity::from_value(
            i64::try_from(whole).unwrap_or(i64::MAX),
            api::quantity::Format::BinarySi,
        );
        let why =
            format!("Pod ephemeral local storage usage exceeds the total limit of containers {shown}. ");
        return Some(("ephemeralpodfs.limit", why));
    }
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        let used = usage.containers.get(&container.name).map_or(0, |container| container.storage);
        if limit_of(container).is_some_and(|limit| used > limit) {
            let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
            let text =
                limits.and_then(|limits| limits.get(STORAGE)).map_or("", |quantity| quantity.0.as_str());
            let why =
                format!("Container {} exceeded its local ephemeral storage limit {text:?}. ", container.name);
            return Some(("ephemeralcontainerfs.limit", why));
        }
    }
    None
}

/// The words of an eviction.
fn message(pod: &Pod, usage: &PodUsage, threshold: Threshold, seen: Option<Observation>) -> String {
    let resource = threshold.signal.resource();
    let mut text = format!("The node was low on resource: {resource}. ");
    let quantity = |value: u64| {
        let format = match threshold.signal {
            Signal::Memory | Signal::NodeFs | Signal::ImageFs => api::quantity::Format::BinarySi,
            _ => api::quantity::Format::DecimalSi,
        };
        // bytes are told in kibibytes, as the reference measures them
        let value = if format == api::quantity::Format::BinarySi { value / 1024 * 1024 } else { value };
        api::quantity::Quantity::from_value(i64::try_from(value).unwrap_or(i64::MAX), format).to_string()
    };
    if let Some(seen) = seen {
        let (wanted, available) = (threshold.value.of(seen.capacity), seen.available);
        text.push_str(&format!(
            "Threshold quantity: {}, available: {}. ",
            quantity(wanted),
            quantity(available)
        ));
    }
    let per_container = |name: &str| usage.containers.get(name).copied().unwrap_or_default();
    for container in pod.spec.iter().flat_map(|spec| &spec.containers) {
        let used = per_container(&container.name);
        let (used, name) = match threshold.signal {
            Signal::Memory => (used.memory, "memory"),
            Signal::NodeFs | Signal::ImageFs => (used.storage, STORAGE),
            _ => continue,
        };
        let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        let request =
            requests.and_then(|requests| requests.get(name)).map_or("0", |quantity| quantity.0.as_str());
        if i128::from(used) > i128::from(crate::resources::units(request)) {
            text.push_str(&format!(
                "Container {} was using {}, request is {request}, has larger consumption of {resource}. ",
                container.name,
                quantity(used)
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use threshold::Value;

    use super::*;
    use crate::usage::ContainerUsage;

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

    fn pod() -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {
            "volumes": [{"name": "data", "emptyDir": {"sizeLimit": "1Mi"}}, {"name": "free", "emptyDir": {}}],
            "containers": [
                {"name": "a", "resources": {"limits": {"ephemeral-storage": "2Mi"}, "requests": {"memory": "1Mi"}}},
                {"name": "b", "resources": {"limits": {"ephemeral-storage": "4Mi"}}}]}}))
        .unwrap()
    }

    fn usage(volume: u64, a: u64, b: u64) -> PodUsage {
        let container = |storage| ContainerUsage { memory: 3 << 20, storage };
        PodUsage {
            containers: [("a".to_owned(), container(a)), ("b".to_owned(), container(b))].into(),
            disk_volumes: [("data".to_owned(), volume), ("free".to_owned(), 0)].into(),
            ..PodUsage::default()
        }
    }

    #[test]
    fn each_limit_of_local_storage_has_its_words() {
        let check = |usage: PodUsage, text: Option<&str>| {
            assert_eq!(over_limit(&pod(), &usage).map(|(_, why)| why).as_deref(), text)
        };
        check(usage(1 << 20, 1 << 20, 1 << 20), None);
        check(
            usage((1 << 20) + 1, 0, 0),
            Some("Usage of EmptyDir volume \"data\" exceeds the limit \"1Mi\". "),
        );
        check(
            usage(1 << 20, 3 << 20, 3 << 20),
            Some("Pod ephemeral local storage usage exceeds the total limit of containers 6Mi. "),
        );
        check(usage(0, 3 << 20, 0), Some("Container a exceeded its local ephemeral storage limit \"2Mi\". "));
    }

    #[test]
    fn an_eviction_says_what_was_short_and_who_took_more_than_he_asked_for() {
        let met = threshold(Signal::Memory, 100 << 20, None);
        let seen = Observation { available: 50 << 20, capacity: 1 << 30 };
        assert_eq!(
            message(&pod(), &usage(0, 0, 0), met, Some(seen)),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. Container a was using \
             3Mi, request is 1Mi, has larger consumption of memory. Container b was using 3Mi, request is 0, has \
             larger consumption of memory. "
        );
    }
}
