//! The cluster as the scheduler sees it: nodes in an array, each with what is on offer and what is taken. It is changed
//! in place, event by event; every change of a node raises its place in a log, by which evaluations learn what they have
//! to look at again.
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use client::Change;
use k8s_openapi::api::core::v1::{Node, Taint};
use k8s_openapi::api::resource::v1::DeviceClass;

use crate::devices::Devices;
use crate::devices::extended::ExtendedResources;
use crate::pod_info::{HostPort, PodInfo};
use crate::relations::{Labels, Namespaces, Relations};
use crate::resources::Resources;
use crate::volumes::Volumes;

/// Pods of one node that relate to others alike.
#[derive(Debug, Clone)]
pub struct Group {
    /// How they relate.
    pub relations: Arc<Relations>,
    /// How many there are.
    pub total: u32,
    /// How many of them are not on their way out.
    pub alive: u32,
}

/// One node.
#[derive(Debug, Default, Clone)]
pub struct NodeInfo {
    /// Its name.
    pub name: Arc<str>,
    /// The object; `None` while only pods speak of it.
    pub node: Option<Arc<Node>>,
    /// On offer.
    pub allocatable: Resources,
    /// What devices stand for where the node offers none.
    pub extended: Arc<ExtendedResources>,
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
    /// Images it has, with their sizes in bytes.
    pub images: HashMap<Arc<str>, i64>,
    pods: HashMap<Arc<str>, PodInfo>,
    groups: Vec<Group>,
}

impl NodeInfo {
    /// An empty node.
    pub fn of(node: &Arc<Node>) -> Self {
        let name = node.metadata.name.as_deref().unwrap_or_default().into();
        let mut info = Self { name, ..Self::default() };
        info.describe(node);
        info
    }

    /// How many pods it has.
    pub fn pod_count(&self) -> i64 {
        i64::try_from(self.pods.len()).unwrap_or(i64::MAX)
    }

    /// Its pods, in no order.
    pub fn pods(&self) -> impl Iterator<Item = &PodInfo> {
        self.pods.values()
    }

    /// One of its pods.
    pub fn pod(&self, uid: &str) -> Option<&PodInfo> {
        self.pods.get(uid)
    }

    /// Its pods by how they relate to others.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// A label's value.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.node.as_ref()?.metadata.labels.as_ref()?.get(key).map(String::as_str)
    }

    fn describe(&mut self, node: &Arc<Node>) {
        let status = node.status.as_ref();
        let allocatable = status.and_then(|s| s.allocatable.as_ref());
        self.allocatable = Resources::from_list(allocatable);
        let pods =
            allocatable.and_then(|a| a.get("pods")).and_then(|q| q.0.parse::<api::quantity::Quantity>().ok());
        self.allowed_pods = pods.map_or(0, |q| q.value());
        self.taints = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
        self.unschedulable = node.spec.as_ref().is_some_and(|s| s.unschedulable == Some(true));
        self.images.clear();
        for image in status.and_then(|s| s.images.as_ref()).into_iter().flatten() {
            for name in image.names.iter().flatten() {
                self.images.insert(name.as_str().into(), image.size_bytes.unwrap_or(0));
            }
        }
        self.node = Some(node.clone());
    }

    /// Puts a pod on the node.
    pub fn add(&mut self, pod: &PodInfo) {
        if let Some(known) = self.pods.get_mut(&pod.uid) {
            known.pod = pod.pod.clone();
            return;
        }
        self.requested.add(&pod.demand.requests);
        self.scored.add(&pod.demand.scored);
        for port in &pod.demand.host_ports {
            *self.ports.entry(port.clone()).or_default() += 1;
        }
        let alive = u32::from(!pod.terminating);
        match self.groups.iter_mut().find(|g| Arc::ptr_eq(&g.relations, &pod.relations)) {
            Some(group) => (group.total, group.alive) = (group.total + 1, group.alive + alive),
            None => self.groups.push(Group { relations: pod.relations.clone(), total: 1, alive }),
        }
        self.pods.insert(pod.uid.clone(), pod.clone());
    }

    /// Takes a pod off the node.
    pub fn remove(&mut self, uid: &str) -> Option<PodInfo> {
        let pod = self.pods.remove(uid)?;
        self.requested.sub(&pod.demand.requests);
        self.scored.sub(&pod.demand.scored);
        for port in &pod.demand.host_ports {
            if let Some(count) = self.ports.get_mut(port) {
                *count -= 1;
                if *count == 0 {
                    self.ports.remove(port);
                }
            }
        }
        if let Some(at) = self.groups.iter().position(|g| Arc::ptr_eq(&g.relations, &pod.relations)) {
            let group = &mut self.groups[at];
            group.total -= 1;
            group.alive -= u32::from(!pod.terminating);
            if group.total == 0 {
                self.groups.swap_remove(at);
            }
        }
        Some(pod)
    }
}

/// Region and zone of a node, by the new labels or the old; empty where it has none.
fn zone_of(node: &Node) -> String {
    let label = |keys: [&str; 2]| {
        let labels = node.metadata.labels.as_ref();
        keys.iter().find_map(|key| labels?.get(*key)).map_or("", String::as_str)
    };
    let region = label(["topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"]);
    let zone = label(["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"]);
    if region.is_empty() && zone.is_empty() { String::new() } else { format!("{region}:{zone}") }
}

/// Whether two views of a pod hold the same on a node and relate to others alike.
fn same(a: &PodInfo, b: &PodInfo) -> bool {
    let ports = Arc::ptr_eq(&a.demand, &b.demand)
        || (a.demand.requests == b.demand.requests && a.demand.host_ports == b.demand.host_ports);
    ports && Arc::ptr_eq(&a.relations, &b.relations) && a.terminating == b.terminating
}

/// All nodes, which pod is where, and what else decisions look at.
#[derive(Debug, Default)]
pub struct Snapshot {
    slots: Vec<NodeInfo>,
    by_name: HashMap<Arc<str>, usize>,
    free: Vec<usize>,
    /// Slots of nodes that exist, by zone, in the order they came.
    zones: Vec<(String, Vec<usize>)>,
    /// The same, from each zone in turn: a search that ends early has seen all of them.
    order: Vec<usize>,
    placed: HashMap<Arc<str>, usize>,
    log: VecDeque<usize>,
    log_start: u64,
    namespaces: Namespaces,
    epoch: u64,
    /// Placed pods with terms of their own.
    with_terms: usize,
    /// How many nodes have an image.
    images: HashMap<Arc<str>, usize>,
    volumes: Volumes,
    devices: Devices,
    /// How many placed pods use a claim.
    claim_users: HashMap<String, usize>,
    /// Pods that wait for room on a node that was promised to them.
    nominated: HashMap<Arc<str>, Vec<PodInfo>>,
    nominees: HashMap<Arc<str>, Arc<str>>,
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

    /// Rises when namespaces change: what was counted by them holds no longer.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Labels of the namespaces.
    pub fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    /// Whether any placed pod has affinity or anti-affinity terms.
    pub fn has_terms(&self) -> bool {
        self.with_terms > 0
    }

    /// How many nodes have the image.
    pub fn nodes_with(&self, image: &str) -> usize {
        self.images.get(image).copied().unwrap_or(0)
    }

    /// Whether nodes report images at all.
    pub fn has_images(&self) -> bool {
        !self.images.is_empty()
    }

    /// What is known of volumes.
    pub fn volumes(&self) -> &Volumes {
        &self.volumes
    }

    /// The same, to bring changes in.
    pub fn volumes_mut(&mut self) -> &mut Volumes {
        &mut self.volumes
    }

    /// What is known of devices.
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// The same, to bring changes in.
    pub fn devices_mut(&mut self) -> &mut Devices {
        &mut self.devices
    }

    /// A class of devices came, changed or went; extended resources for which it, or another in its place, stands from now on.
    pub fn class_changed(&mut self, change: &Change<DeviceClass>) -> Vec<String> {
        let Some(names) = self.devices.class_changed(change) else { return Vec::new() };
        for slot in 0..self.slots.len() {
            self.slots[slot].extended = self.devices.extended().clone();
            self.touch(slot);
        }
        names
    }

    /// How many placed pods use the claim.
    pub fn users_of(&self, claim: &str) -> usize {
        self.claim_users.get(claim).copied().unwrap_or(0)
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
        let extended = self.devices.extended().clone();
        let info = NodeInfo { name: name.clone(), extended, ..NodeInfo::default() };
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

    fn count_images(&mut self, slot: usize, came: bool) {
        for name in self.slots[slot].images.keys() {
            let count = self.images.entry(name.clone()).or_default();
            *count = if came { *count + 1 } else { count.saturating_sub(1) };
            if *count == 0 {
                self.images.remove(name);
            }
        }
    }

    /// A node came or changed; its slot.
    pub fn set_node(&mut self, node: &Arc<Node>) -> usize {
        let slot = self.slot(node.metadata.name.as_deref().unwrap_or_default());
        let (before, now) = (self.slots[slot].node.as_deref().map(zone_of), zone_of(node));
        if before.as_ref() != Some(&now) {
            self.leave_zone(slot);
            match self.zones.iter_mut().find(|(zone, _)| *zone == now) {
                Some((_, slots)) => slots.push(slot),
                None => self.zones.push((now, vec![slot])),
            }
            self.interleave();
        }
        self.count_images(slot, false);
        self.slots[slot].describe(node);
        self.count_images(slot, true);
        self.touch(slot);
        slot
    }

    fn leave_zone(&mut self, slot: usize) {
        self.zones.iter_mut().for_each(|(_, slots)| slots.retain(|s| *s != slot));
        self.zones.retain(|(_, slots)| !slots.is_empty());
    }

    fn interleave(&mut self) {
        self.order.clear();
        let longest = self.zones.iter().map(|(_, slots)| slots.len()).max().unwrap_or(0);
        for i in 0..longest {
            self.order.extend(self.zones.iter().filter_map(|(_, slots)| slots.get(i)));
        }
    }

    /// A node is gone; its pods stay until they are gone too.
    pub fn remove_node(&mut self, name: &str) {
        let Some(slot) = self.by_name.get(name).copied() else { return };
        self.count_images(slot, false);
        self.slots[slot].images.clear();
        self.slots[slot].node = None;
        self.leave_zone(slot);
        self.interleave();
        self.touch(slot);
        self.release(slot);
    }

    /// A namespace came, changed or (`None`) went.
    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        let same = match &labels {
            Some(labels) => self.namespaces.get(name) == Some(labels),
            None => !self.namespaces.contains_key(name),
        };
        if same {
            return;
        }
        match labels {
            Some(labels) => drop(self.namespaces.insert(name.to_owned(), labels)),
            None => drop(self.namespaces.remove(name)),
        }
        self.epoch += 1;
    }

    /// A pod takes its place on a node: bound, or assumed to be soon. A pod that moved or changed is taken over.
    pub fn place(&mut self, pod: &PodInfo, node: &str) {
        let slot = self.slot(node);
        if let Some(old) = self.placed.get(&pod.uid).copied() {
            if old == slot && self.slots[old].pods.get(&pod.uid).is_some_and(|p| same(p, pod)) {
                // Nothing that counts changed, but victims are deleted by what the newest object says.
                self.slots[slot].add(pod);
                return;
            }
            self.remove(&pod.uid);
        }
        // `remove` may have freed the slot.
        let slot = self.slot(node);
        self.slots[slot].add(pod);
        self.with_terms += usize::from(pod.relations.has_terms());
        for claim in pod.claims.iter() {
            *self.claim_users.entry(claim.key.clone()).or_default() += 1;
        }
        self.placed.insert(pod.uid.clone(), slot);
        self.touch(slot);
    }

    /// A pod left its node; what it held there.
    pub fn remove(&mut self, uid: &str) -> Option<(usize, PodInfo)> {
        let slot = self.placed.remove(uid)?;
        let pod = self.slots[slot].remove(uid)?;
        self.with_terms -= usize::from(pod.relations.has_terms());
        for claim in pod.claims.iter() {
            if let Some(users) = self.claim_users.get_mut(&claim.key) {
                *users -= 1;
                if *users == 0 {
                    self.claim_users.remove(&claim.key);
                }
            }
        }
        self.touch(slot);
        self.release(slot);
        Some((slot, pod))
    }

    /// Takes the pod off its node when it is there in another way or is now elsewhere; what it was.
    pub fn remove_if_different(&mut self, pod: &PodInfo, node: &str) -> Option<PodInfo> {
        let slot = *self.placed.get(&pod.uid)?;
        let held = self.slots[slot].pods.get(&pod.uid)?;
        let unchanged = *self.slots[slot].name == *node && same(held, pod);
        if unchanged { None } else { self.remove(&pod.uid).map(|(_, pod)| pod) }
    }

    /// Whether the pod has a place.
    pub fn is_placed(&self, uid: &str) -> bool {
        self.placed.contains_key(uid)
    }

    /// The slot of the pod's node.
    pub fn place_of(&self, uid: &str) -> Option<usize> {
        self.placed.get(uid).copied()
    }

    /// Promises room on a node to a pod, or (`None`) takes the promise back.
    pub fn nominate(&mut self, pod: &PodInfo, node: Option<&str>) {
        if let Some(old) = self.nominees.remove(&pod.uid)
            && let Some(list) = self.nominated.get_mut(&old)
        {
            list.retain(|p| p.uid != pod.uid);
            if list.is_empty() {
                self.nominated.remove(&old);
            }
        }
        if let Some(node) = node {
            let node: Arc<str> = node.into();
            self.nominees.insert(pod.uid.clone(), node.clone());
            self.nominated.entry(node).or_default().push(pod.clone());
        }
    }

    /// The node that was promised to the pod.
    pub fn nomination(&self, uid: &str) -> Option<&Arc<str>> {
        self.nominees.get(uid)
    }

    /// Pods to which room on the node was promised.
    pub fn nominated(&self, node: &str) -> &[PodInfo] {
        self.nominated.get(node).map_or(&[], Vec::as_slice)
    }

    /// Whether room is promised anywhere.
    pub fn has_nominated(&self) -> bool {
        !self.nominated.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nodes_are_looked_at_from_each_zone_in_turn() {
        let mut snapshot = Snapshot::default();
        let node = |name: &str, zone: &str| {
            let labels =
                if zone.is_empty() { json!({}) } else { json!({"topology.kubernetes.io/zone": zone}) };
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}})).expect("node"),
            )
        };
        let order =
            |s: &Snapshot| s.order().iter().map(|slot| s.node(*slot).name.to_string()).collect::<Vec<_>>();
        for (name, zone) in [("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("n1", ""), ("b2", "b")] {
            snapshot.set_node(&node(name, zone));
        }
        assert_eq!(order(&snapshot), ["a1", "b1", "n1", "a2", "b2", "a3"]);
        snapshot.set_node(&node("a1", "c"));
        snapshot.set_node(&node("a2", "a"));
        snapshot.remove_node("n1");
        assert_eq!(order(&snapshot), ["a2", "b1", "a1", "a3", "b2"]);
    }
}
