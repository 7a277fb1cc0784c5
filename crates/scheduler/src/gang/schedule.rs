//! The engine's part: which pods are tried with which, and what is done about the verdict.
use std::sync::Arc;

use client::Change;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::scheduling::v1alpha2::PodGroup;
use tokio::sync::OwnedSemaphorePermit;

use super::{Cycle, Failed, Fate, Verdict, key_of};
use crate::engine::{Engine, Outcome};
use crate::evaluate::Filtered;
use crate::extender::ExtenderError;
use crate::filter::{EXTENDER, GANG};
use crate::message;
use crate::metrics::Ended;
use crate::pod_info::PodInfo;
use crate::report::Nomination;

/// Of a pod that has to wait for the rest of its gang.
const WAITING: &str = "waiting for minCount pods from a gang to be scheduled";
/// Of a group that would fit, once others are gone.
const PREEMPTING: &str = "pod group is waiting for preemption to complete";
/// What goes before either.
const UNSCHEDULABLE: &str = "pod group is unschedulable";

impl Engine {
    pub(crate) fn group_changed(&mut self, change: &Change<PodGroup>) {
        let Some(groups) = &mut self.groups else { return };
        let key = groups.apply(change);
        // Our own condition helps nobody.
        let is_news = match change {
            Change::Modified { old, new } => old.spec != new.spec,
            Change::Added(_) | Change::Deleted(_) => true,
        };
        if is_news && groups.is_ready(&key) {
            groups.members(&key).for_each(|uid| self.queue.release(uid));
        }
    }

    /// A pod waits or has a node: it counts in its group, which may be complete now.
    pub(crate) fn joins_group(&mut self, pod: &PodInfo) {
        let (Some(groups), Some(key)) = (&mut self.groups, key_of(&pod.pod)) else { return };
        let is_new = groups.join(&key, &pod.uid);
        if !groups.is_ready(&key) {
            self.queue.hold(&pod.uid);
        } else if is_new {
            groups.members(&key).for_each(|uid| self.queue.release(uid));
        }
    }

    /// A pod neither waits nor has a node any longer.
    pub(crate) fn leaves_group(&mut self, pod: &Pod) {
        if let (Some(groups), Some(key)) = (&mut self.groups, key_of(pod)) {
            groups.leave(&key, pod.metadata.uid.as_deref().unwrap_or_default());
        }
    }

    /// The group with which a pod is tried.
    pub(crate) fn group_of(&self, pod: &PodInfo) -> Option<String> {
        self.groups.as_ref().and_then(|_| key_of(&pod.pod))
    }

    /// Tries all pods of a group that wait.
    pub(crate) async fn try_group(
        &mut self,
        worker: usize,
        key: &str,
        first: PodInfo,
        permit: OwnedSemaphorePermit,
    ) {
        // What is written about each pod has a permit of its own.
        drop(permit);
        let Some(groups) = self.groups.as_ref() else { return };
        if !groups.is_ready(key) {
            return self.queue.came_too_early(&first.uid);
        }
        let (least, group) = (groups.least(key), groups.get(key).cloned());
        let members: Vec<Arc<str>> = groups.members(key).cloned().collect();
        let before = members.iter().filter(|uid| self.snapshot.is_placed(uid)).count();
        let mut pods = vec![first];
        pods.extend(members.iter().filter_map(|uid| self.queue.take(uid)));
        Cycle::sort(&mut pods);
        if let Some(error) = two_schedulers(&pods) {
            let pods = pods.into_iter().map(|pod| (pod, error.clone())).collect();
            return self.group_failed(worker, pods, group, &error);
        }
        let mut cycle = Cycle::default();
        let mut waiting = pods.into_iter();
        while let Some(pod) = waiting.next() {
            if let Err((pod, error)) = self.try_member(worker, &mut cycle, pod).await {
                cycle.undo(&mut self.snapshot);
                let others = format!("failed to schedule other pod from a pod group: {error}");
                let tried = cycle.tried.into_iter().map(|(pod, _)| pod).chain(waiting);
                let mut all: Vec<_> = tried.map(|pod| (pod, others.clone())).collect();
                all.push((pod, error.to_string()));
                return self.group_failed(worker, all, group, &others);
            }
        }
        match cycle.verdict(before, least) {
            Verdict::Bind => self.bind_group(worker, cycle, group),
            Verdict::WaitForVictims => self.make_room(worker, cycle, group),
            Verdict::Unschedulable => self.group_does_not_fit(worker, cycle, group),
        }
    }

    /// Finds a place for one pod, as others of its group have theirs.
    async fn try_member(
        &mut self,
        worker: usize,
        cycle: &mut Cycle,
        mut pod: PodInfo,
    ) -> Result<(), (PodInfo, ExtenderError)> {
        self.spread_by_default(worker, &mut pod);
        let why = match self.workers[worker].evaluator.filter(&pod, &self.snapshot) {
            Filtered::Some(mut candidates) => match self.extended(&pod, &mut candidates).await {
                Ok(why) if candidates.slots.is_empty() => why,
                Ok(_) => {
                    let extra = self.extra_scores(&pod, &candidates.slots).await;
                    let slot = self.workers[worker].evaluator.choose(candidates, &extra);
                    cycle.place(&mut self.snapshot, pod, slot);
                    return Ok(());
                }
                Err(error) => return Err((pod, error)),
            },
            Filtered::Nowhere(why) => why,
            Filtered::Refused(refusal) => {
                let said = (!refusal.silent).then(|| self.refused(worker, &refusal.reason));
                let rejected_by = 1 << refusal.filter;
                cycle.fail(pod, Failed { said, rejected_by, forget_promise: false });
                return Ok(());
            }
            Filtered::NoNodes => {
                let said = Some(message::NO_NODES.to_owned());
                cycle.fail(pod, Failed { said, rejected_by: (1 << EXTENDER) - 1, forget_promise: false });
                return Ok(());
            }
        };
        let judged = self.judge(worker, &pod, why).await;
        match judged.victims.or(judged.leaving) {
            Some(victims) => {
                cycle.make_room(&mut self.snapshot, pod, victims, judged.said, judged.rejected_by);
            }
            None => {
                let forget_promise = judged.nomination == Nomination::Clear;
                let said = Some(judged.said);
                cycle.fail(pod, Failed { said, rejected_by: judged.rejected_by, forget_promise });
            }
        }
        Ok(())
    }

    fn bind_group(&mut self, worker: usize, cycle: Cycle, group: Option<Arc<PodGroup>>) {
        for (pod, fate) in cycle.tried {
            match fate {
                Fate::Placed(assumed) | Fate::AfterVictims { assumed, .. } => {
                    self.dispatch(worker, pod, assumed, None);
                }
                Fate::Failed(failed) => self.member_failed(worker, pod, failed),
            }
        }
        self.note_group(worker, group, ("True", "Scheduled"), String::new());
    }

    fn group_does_not_fit(&mut self, worker: usize, mut cycle: Cycle, group: Option<Arc<PodGroup>>) {
        cycle.undo(&mut self.snapshot);
        for (pod, fate) in cycle.tried {
            match fate {
                // Its own node is not what it waits for.
                Fate::Placed(_) | Fate::AfterVictims { .. } => {
                    let said = Some(format!("{UNSCHEDULABLE}, {WAITING}"));
                    self.member_failed(worker, pod, Failed { said, rejected_by: 0, forget_promise: true });
                }
                Fate::Failed(failed) => self.member_failed(worker, pod, failed),
            }
        }
        self.note_group(worker, group, ("False", "Unschedulable"), UNSCHEDULABLE.to_owned());
    }

    fn member_failed(&mut self, worker: usize, pod: PodInfo, failed: Failed) {
        self.queue.unschedulable(&pod.uid, failed.rejected_by | 1 << GANG);
        if failed.forget_promise {
            self.snapshot.nominate(&pod, None);
        }
        if let Some(said) = failed.said {
            let nomination = if failed.forget_promise { Nomination::Clear } else { Nomination::Keep };
            self.report(worker, pod, "Unschedulable", said, nomination, None);
        }
    }

    /// The attempt failed for a reason that is none of the pods': all are tried again after their back-off.
    fn group_failed(
        &mut self,
        worker: usize,
        pods: Vec<(PodInfo, String)>,
        group: Option<Arc<PodGroup>>,
        error: &str,
    ) {
        for (pod, error) in pods {
            self.queue.failed(&pod.uid);
            self.snapshot.nominate(&pod, None);
            self.report(worker, pod, "SchedulerError", error, Nomination::Clear, None);
        }
        self.note_group(worker, group, ("False", "SchedulerError"), error.to_owned());
    }

    /// Promises every pod its node, and asks all victims to go. The pods are in flight until they were asked.
    fn make_room(&mut self, worker: usize, mut cycle: Cycle, group: Option<Arc<PodGroup>>) {
        cycle.undo(&mut self.snapshot);
        let rejected_by = cycle.rejected_by() | 1 << GANG;
        let (mut told, mut asked) = (Vec::new(), Vec::new());
        let mut outbid = Vec::new();
        for (pod, fate) in cycle.tried {
            let (node, said) = match fate {
                Fate::Failed(failed) => {
                    self.member_failed(worker, pod, failed);
                    continue;
                }
                Fate::Placed(assumed) => (assumed.node, format!("{UNSCHEDULABLE}, {PREEMPTING}")),
                Fate::AfterVictims { assumed, victims, said, .. } => {
                    outbid.extend(self.outbid(&pod, &assumed.node));
                    asked.push((pod.clone(), assumed.node.clone(), victims));
                    (assumed.node, said)
                }
            };
            self.snapshot.nominate(&pod, Some(&node));
            self.queue.asks(&pod.uid, rejected_by);
            self.note(worker, &pod, Ended::Unschedulable);
            told.push((pod, node, said));
        }
        let (reporter, outcomes) = (self.workers[worker].reporter.clone(), self.outcomes.clone());
        let permits = self.permits.clone();
        tokio::spawn(async move {
            let permit = permits.acquire_owned().await.ok();
            for other in &outbid {
                reporter.clear_nomination(&other.pod).await;
            }
            let mut failed = false;
            for (pod, node, victims) in &asked {
                let pods: Vec<Arc<Pod>> = victims.iter().map(|v| v.pod.clone()).collect();
                failed |= !reporter.preempt(&pod.pod, &pods, node).await;
            }
            let gone: Vec<Arc<str>> =
                asked.iter().flat_map(|(_, _, v)| v.iter().map(|v| v.uid.clone())).collect();
            for (pod, node, said) in told {
                reporter.failed(&pod.pod, "Unschedulable", &said, Nomination::Set(&node)).await;
                let victims = gone.clone();
                let _ = outcomes.send(Outcome::Preempted { uid: pod.uid, rejected_by, victims, failed });
            }
            drop(permit);
        });
        self.note_group(worker, group, ("False", "Unschedulable"), format!("{UNSCHEDULABLE}, {PREEMPTING}"));
    }

    /// Says on the group how its attempt ended.
    fn note_group(
        &self,
        worker: usize,
        group: Option<Arc<PodGroup>>,
        (status, reason): (&'static str, &'static str),
        message: String,
    ) {
        let Some(group) = group else { return };
        let (reporter, permits) = (self.workers[worker].reporter.clone(), self.permits.clone());
        tokio::spawn(async move {
            let _permit = permits.acquire_owned().await;
            reporter.note_group(&group, status, reason, &message).await;
        });
    }
}

/// What is wrong where two pods of a group name two schedulers.
fn two_schedulers(pods: &[PodInfo]) -> Option<String> {
    let name = pods.first()?.scheduler_name();
    let other = pods.iter().map(PodInfo::scheduler_name).find(|other| *other != name)?;
    Some(format!(
        "all pods in a single pod group should have the same .spec.schedulerName set, got: {name:?} and {other:?}"
    ))
}
