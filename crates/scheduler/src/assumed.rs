//! What a pod takes in the snapshot from the moment its node is chosen: room, volumes and devices; and how that is undone.
use std::sync::Arc;

use jiff::Timestamp;

use crate::devices::{self, Given};
use crate::pod_info::PodInfo;
use crate::snapshot::Snapshot;
use crate::volumes::Decisions;
use crate::volumes::needs::Needs;

/// A pod's place that is not bound yet.
#[derive(Debug, Clone)]
pub struct Assumed {
    /// The node.
    pub node: Arc<str>,
    /// What is to be done about its volumes.
    pub decisions: Decisions,
    /// What its claims of devices get.
    pub given: Given,
    /// The node that was promised to the pod before.
    promised: Option<Arc<str>>,
}

impl Assumed {
    /// The pod takes its place on the slot's node.
    pub fn take(snapshot: &mut Snapshot, pod: &PodInfo, slot: usize) -> Self {
        let node = snapshot.node(slot).name.clone();
        let decisions = match Needs::of(pod, snapshot.volumes()) {
            Ok(Some(needs)) => needs.decide(snapshot.node(slot), snapshot.volumes()).unwrap_or_default(),
            _ => Decisions::default(),
        };
        snapshot.volumes_mut().promise(&decisions, &node);
        let given = match devices::needs::Needs::of(pod, snapshot.devices(), Timestamp::MIN) {
            Ok(Some(needs)) => needs.decide(snapshot.node(slot), snapshot.devices()).unwrap_or_default(),
            _ => Given::default(),
        };
        snapshot.devices_mut().promise(&given);
        let promised = snapshot.nomination(&pod.uid).cloned();
        snapshot.nominate(pod, None);
        snapshot.place(pod, &node);
        Self { node, decisions, given, promised }
    }

    /// All is as before.
    pub fn undo(&self, snapshot: &mut Snapshot, pod: &PodInfo) {
        snapshot.remove(&pod.uid);
        snapshot.devices_mut().take_back(&self.given);
        snapshot.volumes_mut().settle(&self.decisions);
        snapshot.nominate(pod, self.promised.as_deref());
    }
}
