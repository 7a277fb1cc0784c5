//! Groups of pods: pods that name a PodGroup are tried together, in one go on one snapshot; those of a gang are bound when
//! at least `minCount` of them have a node, or none of them is.
//!
//! Nothing is held while a group waits: what was tried and is not enough is undone before the next pod is looked at, so
//! that two gangs can never block each other with halves of themselves. Pods whose group is not there, or has too few
//! pods, are held back without an attempt. Victims are asked to go when all that the group needs can be had with them
//! gone, never for a part of it.
//!
//! Rule: KEP-4671, v1.36: gates `GenericWorkload` and `GangScheduling`.
mod groups;
mod schedule;

use std::sync::Arc;

use k8s_openapi::api::policy::v1::PodDisruptionBudget;

pub use groups::{Groups, key_of};

use crate::assumed::Assumed;
use crate::evaluate::{Evaluator, Placement};
use crate::pod_info::PodInfo;
use crate::preemption::{self, Preemption, Victims};
use crate::snapshot::Snapshot;

/// What was found for one pod of a group.
#[derive(Debug)]
pub enum Fate {
    /// A node takes it.
    Placed(Assumed),
    /// A node takes it when others have left.
    AfterVictims {
        /// Its place.
        assumed: Assumed,
        /// Who has to go.
        victims: Vec<PodInfo>,
        /// Why no node takes it now.
        said: String,
        /// By which filters.
        rejected_by: u32,
    },
    /// None does.
    Failed(Failed),
}

/// Why a pod of a group has no node.
#[derive(Debug, Default)]
pub struct Failed {
    /// In words; `None`: nothing is said.
    pub said: Option<String>,
    /// By which filters.
    pub rejected_by: u32,
    /// The node that was promised to it helps no longer.
    pub forget_promise: bool,
}

/// What becomes of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Pods that have a node are bound.
    Bind,
    /// The victims have to leave first; then the group is tried again.
    WaitForVictims,
    /// Too few of its pods can run.
    Unschedulable,
}

/// One attempt at a group. What it takes in the snapshot is real for the pods that follow, until it is undone.
#[derive(Debug, Default)]
pub struct Cycle {
    /// The pods in the order they were tried.
    pub tried: Vec<(PodInfo, Fate)>,
    /// Victims that are out of the snapshot, with their nodes.
    lifted: Vec<(PodInfo, Arc<str>)>,
}

impl Cycle {
    /// The order in which the pods of a group are tried: the most important first, then the oldest.
    pub fn sort(pods: &mut [PodInfo]) {
        pods.sort_by(|a, b| (b.priority, a.created, &a.uid).cmp(&(a.priority, b.created, &b.uid)));
    }

    /// The pod takes the slot's node.
    pub fn place(&mut self, snapshot: &mut Snapshot, pod: PodInfo, slot: usize) {
        let assumed = Assumed::take(snapshot, &pod, slot);
        self.tried.push((pod, Fate::Placed(assumed)));
    }

    /// The victims leave the node, and the pod takes it.
    pub fn make_room(
        &mut self,
        snapshot: &mut Snapshot,
        pod: PodInfo,
        victims: Victims,
        said: String,
        rejected_by: u32,
    ) {
        let node = snapshot.node(victims.slot).name.clone();
        for victim in &victims.pods {
            snapshot.remove(&victim.uid);
            self.lifted.push((victim.clone(), node.clone()));
        }
        let assumed = Assumed::take(snapshot, &pod, victims.slot);
        self.tried.push((pod, Fate::AfterVictims { assumed, victims: victims.pods, said, rejected_by }));
    }

    /// No node takes the pod.
    pub fn fail(&mut self, pod: PodInfo, failed: Failed) {
        self.tried.push((pod, Fate::Failed(failed)));
    }

    /// What becomes of the group, of which `least` pods must have a node, and `before` had one before this attempt.
    pub fn verdict(&self, before: usize, least: usize) -> Verdict {
        let placed = self.tried.iter().filter(|(_, fate)| !matches!(fate, Fate::Failed(_))).count();
        let waits = self.tried.iter().any(|(_, fate)| matches!(fate, Fate::AfterVictims { .. }));
        match (placed > 0 && before + placed >= least, waits) {
            (true, false) => Verdict::Bind,
            (true, true) => Verdict::WaitForVictims,
            (false, _) => Verdict::Unschedulable,
        }
    }

    /// The snapshot is as it was before.
    pub fn undo(&mut self, snapshot: &mut Snapshot) {
        for (pod, fate) in self.tried.iter().rev() {
            if let Fate::Placed(assumed) | Fate::AfterVictims { assumed, .. } = fate {
                assumed.undo(snapshot, pod);
            }
        }
        for (victim, node) in self.lifted.drain(..).rev() {
            snapshot.place(&victim, &node);
        }
    }

    /// All pods' filters that said no.
    fn rejected_by(&self) -> u32 {
        self.tried.iter().fold(0, |bits, (_, fate)| match fate {
            Fate::Failed(failed) => bits | failed.rejected_by,
            Fate::AfterVictims { rejected_by, .. } => bits | rejected_by,
            Fate::Placed(_) => bits,
        })
    }
}

/// The whole decision about a group, extenders left out. The snapshot keeps what is bound, and nothing else.
pub fn run(
    evaluator: &mut Evaluator,
    snapshot: &mut Snapshot,
    mut pods: Vec<PodInfo>,
    (before, least): (usize, usize),
    budgets: &[Arc<PodDisruptionBudget>],
) -> (Verdict, Cycle) {
    let mut cycle = Cycle::default();
    Cycle::sort(&mut pods);
    for pod in pods {
        match evaluator.place(&pod, snapshot) {
            Placement::Node(slot) => cycle.place(snapshot, pod, slot),
            Placement::Nowhere(why) => match preemption::run(evaluator, &pod, snapshot, &why, budgets, 0) {
                Preemption::Found(victims) => cycle.make_room(snapshot, pod, victims, String::new(), 0),
                _ => cycle.fail(pod, Failed::default()),
            },
            Placement::NoNodes | Placement::Refused(_) => cycle.fail(pod, Failed::default()),
        }
    }
    let verdict = cycle.verdict(before, least);
    if verdict != Verdict::Bind {
        cycle.undo(snapshot);
    }
    (verdict, cycle)
}
