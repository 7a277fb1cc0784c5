//! The cluster as the scheduler sees it: nodes in an array, each with what is on offer and what is taken. It is changed
//! in place, event by event; every change of a node raises its place in a log, by which evaluations learn what they have
//! to look at again.
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Taint};

use crate::pod_info::{Demand, HostPort, PodInfo};
use crate::resources::Resources;

/// One node.
#[derive(Debug, Default)]
pub struct NodeInfo {
    /// Its name.
    pub name: Arc<str>,
    /// The object; `None` while only pods speak of it.
    pub node: Option<Arc<Node>>,
    /// On offer.
    pub allocatable: Resources,
    /// Pods it takes.
    pub allowed_pods: i64,
    /// Taken by its pods.
    pub requested: Resources,
    /// Taken as scores count it.
    pub scored: Resources,
    /// Its taints.
    pub taints: Vec<Taint>,
    /// Cordoned.
    pub unschedulable: bool,
    /// Ports in use, with the number of pods that use them.
    pub ports: HashMap<HostPort, usize>,
    pods: HashMap<Arc<str>, Arc<Demand>>,
}

impl NodeInfo {
    /// How many pods it has.
    pub fn pod_count(&self) -> i64 {
        i64::try_from(self.pods.len()).unwrap_or(i64::MAX)
    }

    /// A label's value.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.node.as_ref()?.metadata.labels.as_ref()?.get(key).map(String::as_str)
    }

    fn describe(&mut self, node: &Arc<Node>) {
        let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
        self.allocatable = Resources::from_list(allocatable);
        let pods =
            allocatable.and_then(|a| a.get("pods")).and_then(|q| q.0.parse::<api::quantity::Quantity>().ok());
        self.allowed_pods = pods.map_or(0, |q| q.value());
        self.taints = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
        self.unschedulable = node.spec.as_ref().is_some_and(|s| s.unschedulable == Some(true));
        self.node = Some(node.clone());
    }

    fn add(&mut self, uid: &Arc<str>, demand: &Arc<Demand>) {
        if self.pods.insert(uid.clone(), demand.clone()).is_none() {
            self.requested.add(&demand.requests);
            self.scored.add(&demand.scored);
            for port in &demand.host_ports {
                *self.ports.entry(port.clone()).or_default() += 1;
            }
        }
    }

    fn remove(&mut self, uid: &str) -> Option<Arc<Demand>> {
        let demand = self.pods.remove(uid)?;
        self.requested.sub(&demand.requests);
        self.scored.sub(&demand.scored);
        for port in &demand.host_ports {
            if let Some(count) = self.ports.get_mut(port) {
                *count -= 1;
                if *count == 0 {
                    self.ports.remove(port);
                }
            }
        }
        Some(demand)
    }
}

/// All nodes, and which pod is where.
#[derive(Debug, Default)]
pub struct Snapshot {
    slots: Vec<NodeInfo>,
    by_name: HashMap<Arc<str>, usize>,
    free: Vec<usize>,
    /// Slots of nodes that exist, in the order they came.
    order: Vec<usize>,
    placed: HashMap<Arc<str>, usize>,
    log: VecDeque<usize>,
    log_start: u64,
}

impl Snapshot {
    /// Slots of the nodes that exist.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// A slot's node.
    pub fn node(&self, slot: usize) -> &NodeInfo {
        &self.slots[slot]
    }

    /// The node of that name, if it exists.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied().filter(|s| self.slots[*s].node.is_some())
    }

    /// Slots in use and not.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The log's end: give it to [`Self::changed_since`] later.
    pub fn version(&self) -> u64 {
        self.log_start + self.log.len() as u64
    }

    /// Slots changed after `version`; `None`: too many, look at all again.
    pub fn changed_since(&self, version: u64) -> Option<impl Iterator<Item = usize>> {
        let skip = usize::try_from(version.checked_sub(self.log_start)?).ok()?;
        Some(self.log.iter().skip(skip).copied())
    }

    fn touch(&mut self, slot: usize) {
        self.log.push_back(slot);
        // A reader farther behind than this is quicker to look at all nodes again.
        while self.log.len() > self.slots.len().max(64) {
            self.log.pop_front();
            self.log_start += 1;
        }
    }

    fn slot(&mut self, name: &str) -> usize {
        if let Some(slot) = self.by_name.get(name) {
            return *slot;
        }
        let name: Arc<str> = name.into();
        let info = NodeInfo { name: name.clone(), ..NodeInfo::default() };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = info;
                slot
            }
            None => {
                self.slots.push(info);
                self.slots.len() - 1
            }
        };
        self.by_name.insert(name, slot);
        slot
    }

    /// Frees the slot when neither node nor pods are left.
    fn release(&mut self, slot: usize) {
        let info = &self.slots[slot];
        if info.node.is_none() && info.pods.is_empty() {
            self.by_name.remove(&info.name);
            self.free.push(slot);
        }
    }

    /// A node came or changed; its slot.
    pub fn set_node(&mut self, node: &Arc<Node>) -> usize {
        let slot = self.slot(node.metadata.name.as_deref().unwrap_or_default());
        if self.slots[slot].node.is_none() {
            self.order.push(slot);
        }
        self.slots[slot].describe(node);
        self.touch(slot);
        slot
    }

    /// A node is gone; its pods stay until they are gone too.
    pub fn remove_node(&mut self, name: &str) {
        let Some(slot) = self.by_name.get(name).copied() else { return };
        self.slots[slot].node = None;
        self.order.retain(|s| *s != slot);
        self.touch(slot);
        self.release(slot);
    }

    /// A pod takes its place on a node: bound, or assumed to be soon. A pod that moved or changed is taken over.
    pub fn place(&mut self, pod: &PodInfo, node: &str) {
        let slot = self.slot(node);
        if let Some(old) = self.placed.get(&pod.uid).copied() {
            let same = old == slot
                && self.slots[old].pods.get(&pod.uid).is_some_and(|d| {
                    d.requests == pod.demand.requests && d.host_ports == pod.demand.host_ports
                });
            if same {
                return;
            }
            self.remove(&pod.uid);
        }
        // `remove` may have freed the slot.
        let slot = self.slot(node);
        self.slots[slot].add(&pod.uid, &pod.demand);
        self.placed.insert(pod.uid.clone(), slot);
        self.touch(slot);
    }

    /// A pod left its node; what it held there.
    pub fn remove(&mut self, uid: &str) -> Option<(usize, Arc<Demand>)> {
        let slot = self.placed.remove(uid)?;
        let demand = self.slots[slot].remove(uid)?;
        self.touch(slot);
        self.release(slot);
        Some((slot, demand))
    }

    /// Takes the pod off its node when it is there with another demand or is now elsewhere; what it held.
    pub fn remove_if_different(&mut self, pod: &PodInfo, node: &str) -> Option<Arc<Demand>> {
        let slot = *self.placed.get(&pod.uid)?;
        let held = self.slots[slot].pods.get(&pod.uid)?;
        let same = *self.slots[slot].name == *node
            && held.requests == pod.demand.requests
            && held.host_ports == pod.demand.host_ports;
        if same { None } else { self.remove(&pod.uid).map(|(_, demand)| demand) }
    }

    /// Whether the pod has a place.
    pub fn is_placed(&self, uid: &str) -> bool {
        self.placed.contains_key(uid)
    }
}
