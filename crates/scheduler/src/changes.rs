//! What the watches tell, brought into snapshot and queue.
use std::sync::Arc;

use client::Change;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, PodSpec};

use crate::devices::{self, feeds::DeviceChange};
use crate::engine::{Engine, notify};
use crate::hints::{DeviceEvent, Event, Storage};
use crate::pod_info::PodInfo;
use crate::volumes::feeds::StorageChange;

fn is_terminal(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

fn nominated_node(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.nominated_node_name.as_deref().filter(|n| !n.is_empty())
}

fn is_gated(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|s| s.scheduling_gates.as_ref()).is_some_and(|g| !g.is_empty())
}

/// Whether a bound pod is to the scheduler what it was before.
fn same(a: &Pod, b: &Pod) -> bool {
    let resources = |s: &PodSpec| -> Vec<_> { s.containers.iter().map(|c| c.resources.clone()).collect() };
    node_of(a) == node_of(b)
        && a.metadata.labels == b.metadata.labels
        && a.metadata.deletion_timestamp.is_some() == b.metadata.deletion_timestamp.is_some()
        && (a.metadata.generation == b.metadata.generation
            || a.spec.as_ref().map(resources) == b.spec.as_ref().map(resources)
                && a.spec.as_ref().map(|s| &s.resources) == b.spec.as_ref().map(|s| &s.resources))
}

/// Whether anything changed that a filter looks at; heartbeats and the like do not.
fn differs(a: &Node, b: &Node) -> bool {
    let (spec_a, spec_b) = (a.spec.as_ref(), b.spec.as_ref());
    let (status_a, status_b) = (a.status.as_ref(), b.status.as_ref());
    a.metadata.labels != b.metadata.labels
        || spec_a.map(|s| &s.taints) != spec_b.map(|s| &s.taints)
        || spec_a.map(|s| s.unschedulable) != spec_b.map(|s| s.unschedulable)
        || status_a.map(|s| &s.allocatable) != status_b.map(|s| &s.allocatable)
        || status_a.map(|s| &s.declared_features) != status_b.map(|s| &s.declared_features)
}

/// Whether the node may count no longer in a domain that it counted in: the emptiest one may then be another.
fn leaves_domains(a: &Node, b: &Node) -> bool {
    a.metadata.labels != b.metadata.labels
        || a.spec.as_ref().map(|s| &s.taints) != b.spec.as_ref().map(|s| &s.taints)
}

impl Engine {
    pub(crate) fn namespace_changed(&mut self, change: &Change<Namespace>) {
        let namespace = change.object();
        let name = namespace.metadata.name.as_deref().unwrap_or_default();
        let labels = match change {
            Change::Deleted(_) => None,
            _ => Some(namespace.metadata.labels.clone().unwrap_or_default()),
        };
        self.snapshot.set_namespace(name, labels);
    }

    pub(crate) fn node_changed(&mut self, change: &Change<Node>) {
        match change {
            Change::Added(node) => self.node_is(node),
            Change::Modified { old, new } if differs(old, new) => {
                if leaves_domains(old, new) {
                    self.node_goes(old);
                }
                self.node_is(new);
            }
            Change::Modified { old, new } => {
                let images = |n: &Node| n.status.as_ref().map(|s| s.images.as_ref().map(Vec::len));
                if images(old) != images(new) {
                    // A score's matter: nobody waits for it.
                    self.snapshot.set_node(new);
                }
            }
            Change::Deleted(node) => {
                self.node_goes(node);
                self.snapshot.remove_node(node.metadata.name.as_deref().unwrap_or_default());
            }
        }
    }

    /// The node is no longer what it is known as.
    fn node_goes(&mut self, node: &Node) {
        if let Some(slot) = self.snapshot.find(node.metadata.name.as_deref().unwrap_or_default()) {
            let event = Event::NodeGone(self.snapshot.node(slot));
            notify(&mut self.queue, &self.workers, &self.snapshot, &event);
        }
    }

    fn node_is(&mut self, node: &Arc<Node>) {
        let slot = self.snapshot.set_node(node);
        let event = Event::Node(self.snapshot.node(slot));
        notify(&mut self.queue, &self.workers, &self.snapshot, &event);
    }

    pub(crate) fn storage_changed(&mut self, change: &StorageChange) {
        change.apply(self.snapshot.volumes_mut());
        let key;
        let event = match change {
            StorageChange::Claim(change) => {
                let meta = &change.object().metadata;
                let part = |text: &Option<String>| text.clone().unwrap_or_default();
                key = format!("{}/{}", part(&meta.namespace), part(&meta.name));
                Storage::Claim(&key)
            }
            StorageChange::Volume(_) => Storage::Volume,
            StorageChange::Class(_) => Storage::Class,
            StorageChange::Driver(_) => Storage::Driver,
            StorageChange::CsiNode(_) => Storage::CsiNode,
            StorageChange::Capacity(_) => Storage::Capacity,
            StorageChange::Attachment(Change::Deleted(_)) => Storage::Attachment,
            StorageChange::Attachment(_) => return,
        };
        self.notify(&Event::Storage(event));
    }

    pub(crate) fn device_changed(&mut self, change: &DeviceChange) {
        let (key, resources);
        let event = match change {
            DeviceChange::Claim(change) => {
                let meta = &change.object().metadata;
                let part = |text: &Option<String>| text.clone().unwrap_or_default();
                key = format!("{}/{}", part(&meta.namespace), part(&meta.name));
                let freed = self.snapshot.devices_mut().claim_changed(change);
                let made_for = devices::extended::made_for(change.object()).unwrap_or_default();
                DeviceEvent::Claim { key: &key, freed, made_for }
            }
            DeviceChange::Class(change) => {
                resources = self.snapshot.class_changed(change);
                DeviceEvent::Class(&resources)
            }
            DeviceChange::Slice(change) => {
                self.snapshot.devices_mut().slice_changed(change);
                DeviceEvent::Slice
            }
            // How an eviction is going is said in the status.
            DeviceChange::TaintRule(Change::Modified { old, new }) if old.spec == new.spec => return,
            DeviceChange::TaintRule(change) => {
                self.snapshot.devices_mut().taint_rule_changed(change);
                DeviceEvent::Slice
            }
        };
        self.notify(&Event::Devices(event));
    }

    pub(crate) fn pod_changed(&mut self, change: &Change<Pod>) {
        match change {
            Change::Added(pod) => self.pod_is(pod, None),
            Change::Modified { old, new } => self.pod_is(new, Some(old)),
            Change::Deleted(pod) => self.pod_gone(pod),
        }
    }

    fn pod_gone(&mut self, pod: &Pod) {
        self.gated.remove(uid(pod));
        if let Some(waiting) = self.queue.get(uid(pod)).cloned() {
            self.snapshot.nominate(&waiting, None);
            self.queue.remove(uid(pod));
        }
        if let Some((_, freed)) = self.snapshot.remove(uid(pod)) {
            self.notify(&Event::Freed(&freed));
        }
        self.leaves_group(pod);
    }

    fn pod_is(&mut self, pod: &Arc<Pod>, old: Option<&Arc<Pod>>) {
        if is_terminal(pod) {
            return self.pod_gone(pod);
        }
        if !node_of(pod).is_empty() {
            return self.pod_is_bound(pod, old);
        }
        let scheduler = pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref());
        let ours = self.profile_of(scheduler.unwrap_or("default-scheduler"));
        let held = ours.is_some_and(|w| self.workers[w].evaluator.profile().gates) && is_gated(pod);
        if held && pod.metadata.deletion_timestamp.is_none() {
            self.gated.insert(uid(pod).to_owned());
        } else {
            self.gated.remove(uid(pod));
        }
        if ours.is_none() || held || pod.metadata.deletion_timestamp.is_some() {
            self.leaves_group(pod);
            return self.pod_leaves_queue(uid(pod));
        }
        let info = self.demands.info(pod);
        let nominated = nominated_node(pod);
        // Our own promise is ahead of the API's word, until that changes.
        if nominated != old.and_then(|o| nominated_node(o)) && !self.snapshot.is_placed(uid(pod)) {
            self.snapshot.nominate(&info, nominated);
        }
        let known = self.queue.get(uid(pod)).map(|p| (p.demand.id, p.relations.id, p.spread.id, p.priority));
        let claims = |p: &Pod| p.status.as_ref().and_then(|s| s.resource_claim_statuses.clone());
        let same_claims = old.is_none_or(|o| claims(o) == claims(pod));
        if same_claims && known == Some((info.demand.id, info.relations.id, info.spread.id, info.priority)) {
            // Our own condition, most of the time.
            self.queue.refresh(info.clone());
        } else if !self.snapshot.is_placed(uid(pod)) || known.is_some() {
            self.queue.add(info.clone());
        }
        self.joins_group(&info);
    }

    fn pod_leaves_queue(&mut self, uid: &str) {
        if let Some(waiting) = self.queue.get(uid).cloned() {
            self.snapshot.nominate(&waiting, None);
            self.queue.remove(uid);
        }
    }

    fn pod_is_bound(&mut self, pod: &Arc<Pod>, old: Option<&Arc<Pod>>) {
        self.pod_leaves_queue(uid(pod));
        self.gated.remove(uid(pod));
        let unchanged = old.is_some_and(|o| same(o, pod));
        if unchanged && self.snapshot.is_placed(uid(pod)) {
            return;
        }
        let info: PodInfo = self.demands.info(pod);
        let before = self.snapshot.remove_if_different(&info, node_of(pod));
        let known = self.snapshot.is_placed(uid(pod));
        self.snapshot.place(&info, node_of(pod));
        if let Some(before) = before {
            self.notify(&Event::Freed(&before));
        }
        if !known {
            self.notify(&Event::Placed(&info));
        }
        self.joins_group(&info);
    }
}
