//! What to do about a stateful set: a pure function from what the caches show to writes in order.
//!
//! Ordered sets make one move at a time and only while all before it is available; parallel sets scale at once. Updates go
//! from the highest ordinal down in both. Like the reference, an ordered set whose new pods never become available waits for
//! them even when the template is put right: the pod has to be deleted by hand.
//! Source: <https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/#forced-rollback>.
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::identity::{
    claim_names, claims, has_identity, has_storage, new_pod, ordinal, ordinals, parent_and_ordinal,
    set_identity, set_storage,
};
use super::retention::{deletes_when_scaled, is_stale, owners};
use crate::int_or_percent::{Round, resolve};
use crate::ownership::{labels, name};
use crate::pods;
use crate::revisions::REVISION_HASH;

/// One write for a pod.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    /// Create a claim that is missing.
    CreateClaim(Box<PersistentVolumeClaim>),
    /// Replace a claim whose owners do not follow the retention policy.
    UpdateClaim(Box<PersistentVolumeClaim>),
    /// Delete a claim that was made for a pod that never came to be.
    DeleteClaim(Arc<PersistentVolumeClaim>),
    /// Nothing can be done: the claim of that name is being deleted.
    AwaitClaim(String),
    /// Create the pod.
    CreatePod(Box<Pod>),
    /// Replace the pod: its identity or storage is not as it shall be.
    UpdatePod(Box<Pod>),
    /// Delete the pod.
    DeletePod(Arc<Pod>),
}

/// The writes for one pod, in order.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Step {
    /// The pod's name.
    pub(super) pod: String,
    /// What to write.
    pub(super) actions: Vec<Action>,
}

/// A revision of the set.
#[derive(Clone, Copy)]
pub(super) struct Revision<'a> {
    pub(super) name: &'a str,
    pub(super) template: &'a PodTemplateSpec,
}

/// What is looked at.
pub(super) struct View<'a> {
    pub(super) set: &'a StatefulSet,
    /// The pods that the set controls.
    pub(super) pods: &'a [Arc<Pod>],
    /// The revision that the pods below the partition stay at.
    pub(super) current: Revision<'a>,
    /// The revision of the template now.
    pub(super) update: Revision<'a>,
    pub(super) collisions: i32,
    /// A claim by name.
    pub(super) claim: &'a dyn Fn(&str) -> Option<Arc<PersistentVolumeClaim>>,
    /// All claims that the set owns.
    pub(super) owned_claims: &'a [Arc<PersistentVolumeClaim>],
    pub(super) now: Timestamp,
}

/// The outcome of one pass.
#[derive(Debug)]
pub(super) struct Plan {
    /// Groups of steps in order. Within a group steps may be taken together; a failure ends the pass after its group.
    pub(super) groups: Vec<Vec<Step>>,
    /// The status once the pass is through.
    pub(super) status: StatefulSetStatus,
    /// Look again after this long: a pod becomes available by age.
    pub(super) wait: Option<Duration>,
    /// Claims that another controller manages.
    pub(super) conflicts: Vec<String>,
}

struct Pass<'a> {
    view: &'a View<'a>,
    /// One move at a time.
    ordered: bool,
    min_ready: i32,
    group: Vec<Step>,
    conflicts: Vec<String>,
}

/// Whether an ordered set stops here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Next,
    Stop,
}

/// Plans one pass.
pub(super) fn plan(view: &View<'_>) -> Plan {
    let set = view.set;
    let spec = set.spec.as_ref();
    let min_ready = spec.and_then(|s| s.min_ready_seconds).unwrap_or(0);
    let ordered = spec.and_then(|s| s.pod_management_policy.as_deref()) != Some("Parallel");
    let mut status = count(view, min_ready);
    let waits = view.pods.iter().filter_map(|p| pods::until_available(p, min_ready, view.now));
    let wait = waits.filter(|w| !w.is_zero()).min().map(|w| w.unsigned_abs());
    let mut pass = Pass { view, ordered, min_ready, group: Vec::new(), conflicts: Vec::new() };
    let mut groups = Vec::new();
    if set.metadata.deletion_timestamp.is_none() {
        groups = pass.run(&mut status);
    }
    complete(set, &mut status);
    Plan { groups, status, wait, conflicts: pass.conflicts }
}

impl Pass<'_> {
    fn run(&mut self, status: &mut StatefulSetStatus) -> Vec<Vec<Step>> {
        let range = ordinals(self.view.set);
        let mut replicas: Vec<Option<&Arc<Pod>>> = range.clone().map(|_| None).collect();
        let mut condemned = Vec::new();
        for pod in self.view.pods {
            let at = ordinal(&pod.metadata);
            match usize::try_from(at - range.start).ok().and_then(|i| replicas.get_mut(i)) {
                Some(slot) => *slot = Some(pod),
                None if at >= 0 => condemned.push(pod),
                None => {}
            }
        }
        condemned.sort_by_key(|p| std::cmp::Reverse(ordinal(&p.metadata)));
        let absent = |slot: &Option<&Arc<Pod>>| slot.is_none_or(|p| self.is_unavailable(p));
        let first_unavailable = match replicas.iter().any(absent) {
            true => None,
            false => condemned.iter().rev().find(|p| self.is_unavailable(p)).map(|p| name(&p.metadata)),
        };

        self.drop_leftovers();
        for (at, slot) in range.zip(&replicas) {
            let turn = match slot {
                Some(pod) => self.keep(pod),
                None => self.create(at),
            };
            if self.ordered && turn == Turn::Stop {
                return vec![std::mem::take(&mut self.group)];
            }
        }
        let mut groups = vec![std::mem::take(&mut self.group)];
        for pod in &condemned {
            let actions = self.owners_of_claims(&pod.metadata);
            self.step(&pod.metadata, actions);
        }
        groups.push(std::mem::take(&mut self.group));
        for pod in &condemned {
            let blocks = Some(name(&pod.metadata)) != first_unavailable && !self.is_available(pod);
            if pods::is_deleting(pod) || self.ordered && blocks {
                if self.ordered {
                    groups.push(std::mem::take(&mut self.group));
                    return groups;
                }
                continue;
            }
            self.delete(pod);
            if self.ordered {
                groups.push(std::mem::take(&mut self.group));
                return groups;
            }
        }
        groups.push(std::mem::take(&mut self.group));
        let outdated = self.roll(&replicas);
        for pod in outdated {
            self.delete(pod);
            status.current_replicas = status.current_replicas.map(|n| n - 1).filter(|n| *n > 0);
        }
        groups.push(std::mem::take(&mut self.group));
        groups
    }

    /// A pass that was cut off between a claim and its pod, and a set that shrank since: no pod takes the claim along. Only
    /// what is not bound, and so holds no data, is deleted.
    fn drop_leftovers(&mut self) {
        let set = self.view.set;
        if !deletes_when_scaled(set) {
            return;
        }
        for claim in self.view.owned_claims {
            let Some((_, at)) = parent_and_ordinal(name(&claim.metadata)) else { continue };
            let at = i64::from(at);
            let unbound = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Pending");
            let named = claim_names(set, at).iter().any(|n| n == name(&claim.metadata));
            let used =
                ordinals(set).contains(&at) || self.view.pods.iter().any(|p| ordinal(&p.metadata) == at);
            if unbound && named && !used && claim.metadata.deletion_timestamp.is_none() {
                self.step(&claim.metadata, vec![Action::DeleteClaim(claim.clone())]);
            }
        }
    }

    fn step(&mut self, pod: &ObjectMeta, actions: Vec<Action>) {
        if !actions.is_empty() {
            self.group.push(Step { pod: name(pod).to_owned(), actions });
        }
    }

    fn delete(&mut self, pod: &Arc<Pod>) {
        self.step(&pod.metadata, vec![Action::DeletePod(pod.clone())]);
    }

    fn is_available(&self, pod: &Pod) -> bool {
        is_running_and_ready(pod)
            && pods::until_available(pod, self.min_ready, self.view.now).is_some_and(|w| w.is_zero())
    }

    fn is_unavailable(&self, pod: &Pod) -> bool {
        pods::is_deleting(pod) || !self.is_available(pod)
    }

    /// A pod that is missing.
    fn create(&mut self, at: i64) -> Turn {
        let set = self.view.set;
        let revision = if self.stays(at) { self.view.current } else { self.view.update };
        let pod = new_pod(set, revision.template, revision.name, at);
        let refs = |c: &Arc<PersistentVolumeClaim>| c.metadata.owner_references.clone().unwrap_or_default();
        let claims = claim_names(set, at).into_iter().filter_map(|n| (self.view.claim)(&n));
        if claims.map(|c| refs(&c)).any(|refs| is_stale(&refs, set, &pod.metadata)) {
            return Turn::Stop;
        }
        let mut actions = self.claims_of(&pod.metadata);
        if !actions.iter().any(|a| matches!(a, Action::AwaitClaim(_))) {
            actions.push(Action::CreatePod(Box::new(pod.clone())));
        }
        self.step(&pod.metadata, actions);
        Turn::Stop
    }

    /// Whether a new pod of that ordinal is made from the current revision: it is below the partition.
    fn stays(&self, at: i64) -> bool {
        let set = self.view.set;
        let start = ordinals(set).start;
        match partition(set) {
            Some(partition) => at < start + i64::from(partition),
            None => {
                let current = set.status.as_ref().and_then(|s| s.current_replicas).unwrap_or(0);
                !is_on_delete(set) && at < start + i64::from(current)
            }
        }
    }

    /// A pod that is there.
    fn keep(&mut self, pod: &Arc<Pod>) -> Turn {
        if pods::is_terminal(pod) {
            if !pods::is_deleting(pod) {
                self.delete(pod);
            }
            return Turn::Stop;
        }
        let pending = pods::phase(pod) == "Pending";
        let mut actions = if pending { self.claims_of(&pod.metadata) } else { Vec::new() };
        if self.ordered && self.is_unavailable(pod) {
            self.step(&pod.metadata, actions);
            return Turn::Stop;
        }
        let set = self.view.set;
        if !has_identity(pod) || !has_storage(set, pod) {
            let mut next = (**pod).clone();
            set_identity(&mut next);
            if !has_storage(set, pod) {
                set_storage(set, &mut next);
                if !pending {
                    actions.extend(self.claims_of(&pod.metadata));
                }
            }
            actions.push(Action::UpdatePod(Box::new(next)));
        } else if !pending {
            let owners = self.owners_of_claims(&pod.metadata);
            if !owners.is_empty() {
                actions.extend(owners);
                // Changes nothing, but tells of the change as a pod's update.
                actions.push(Action::UpdatePod(Box::new((**pod).clone())));
            }
        }
        self.step(&pod.metadata, actions);
        Turn::Next
    }

    /// Makes missing claims, and gives all of them the owners of the retention policy.
    fn claims_of(&mut self, pod: &ObjectMeta) -> Vec<Action> {
        let set = self.view.set;
        let mut actions = Vec::new();
        for mut claim in claims(set, ordinal(pod)) {
            let claim_name = name(&claim.metadata).to_owned();
            match (self.view.claim)(&claim_name) {
                Some(there) if there.metadata.deletion_timestamp.is_some() => {
                    return vec![Action::AwaitClaim(claim_name)];
                }
                Some(there) => actions.extend(self.owners_of_claim(&there, pod)),
                None => {
                    claim.metadata.owner_references = owners(&[], set, pod).write;
                    actions.push(Action::CreateClaim(Box::new(claim)));
                }
            }
        }
        actions
    }

    fn owners_of_claims(&mut self, pod: &ObjectMeta) -> Vec<Action> {
        let names = claim_names(self.view.set, ordinal(pod));
        let there: Vec<_> = names.iter().filter_map(|n| (self.view.claim)(n)).collect();
        there.iter().filter_map(|claim| self.owners_of_claim(claim, pod)).collect()
    }

    fn owners_of_claim(&mut self, claim: &PersistentVolumeClaim, pod: &ObjectMeta) -> Option<Action> {
        let refs = claim.metadata.owner_references.as_deref().unwrap_or_default();
        let result = owners(refs, self.view.set, pod);
        if result.conflict {
            self.conflicts.push(name(&claim.metadata).to_owned());
        }
        let mut next = claim.clone();
        next.metadata.owner_references = Some(result.write?);
        Some(Action::UpdateClaim(Box::new(next)))
    }

    /// The pods to delete so that they come back from the new template.
    fn roll<'p>(&self, replicas: &[Option<&'p Arc<Pod>>]) -> Vec<&'p Arc<Pod>> {
        let set = self.view.set;
        if is_on_delete(set) {
            return Vec::new();
        }
        let from = usize::try_from(partition(set).unwrap_or(0)).unwrap_or(0);
        let candidates = replicas.iter().enumerate().skip(from).rev();
        let outdated = |p: &Pod| revision_of(p) != Some(self.view.update.name) && !pods::is_deleting(p);
        let Some(max) = max_unavailable(set, replicas.len()) else {
            // One pod after the other, from the last.
            for (_, slot) in candidates {
                match slot {
                    Some(pod) if outdated(pod) => return vec![*pod],
                    Some(pod) if !self.is_unavailable(pod) => {}
                    _ => return Vec::new(),
                }
            }
            return Vec::new();
        };
        // Old pods that do not work are no loss: a parallel set replaces them whatever the budget.
        let lost = |slot: &&Option<&Arc<Pod>>| slot.is_none_or(|p| self.is_unavailable(p));
        let mut budget = max.saturating_sub(replicas.iter().filter(lost).count());
        let mut chosen = Vec::new();
        for pod in candidates.filter_map(|(_, slot)| *slot).filter(|p| outdated(p)) {
            if !self.ordered && self.is_unavailable(pod) {
                chosen.push(pod);
            } else if budget > 0 {
                budget -= 1;
                chosen.push(pod);
            }
        }
        chosen
    }
}

fn is_running_and_ready(pod: &Pod) -> bool {
    pods::phase(pod) == "Running" && pods::is_ready(pod)
}

fn is_on_delete(set: &StatefulSet) -> bool {
    let strategy = set.spec.as_ref().and_then(|s| s.update_strategy.as_ref());
    strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete")
}

/// The number of pods that an update leaves alone; `None` without `rollingUpdate`.
fn partition(set: &StatefulSet) -> Option<i32> {
    let strategy = set.spec.as_ref()?.update_strategy.as_ref()?;
    Some(strategy.rolling_update.as_ref()?.partition.unwrap_or(0))
}

/// How many pods an update may take away. The field stands behind a feature that is off by default in v1.36.
fn max_unavailable(set: &StatefulSet, replicas: usize) -> Option<usize> {
    let rolling = set.spec.as_ref()?.update_strategy.as_ref()?.rolling_update.as_ref()?;
    let total = i32::try_from(replicas).unwrap_or(i32::MAX);
    let max = resolve(Some(rolling.max_unavailable.as_ref()?), total, Round::Down);
    Some(usize::try_from(max).unwrap_or(0).max(1))
}

/// The revision that the pod was made from.
pub(super) fn revision_of(pod: &Pod) -> Option<&str> {
    labels(&pod.metadata).get(REVISION_HASH).map(String::as_str)
}

/// Zero counters are left out where the API leaves them out.
fn count(view: &View<'_>, min_ready: i32) -> StatefulSetStatus {
    let members: Vec<_> = view.pods.iter().filter(|p| ordinal(&p.metadata) >= 0).collect();
    let number = |test: &dyn Fn(&Pod) -> bool| {
        i32::try_from(members.iter().filter(|p| test(p)).count()).unwrap_or(i32::MAX)
    };
    let some = |n: i32| (n > 0).then_some(n);
    let created = |p: &Pod| !pods::phase(p).is_empty();
    let of =
        |revision: &str| number(&|p| created(p) && !pods::is_deleting(p) && revision_of(p) == Some(revision));
    let available = |p: &Pod| {
        is_running_and_ready(p) && pods::until_available(p, min_ready, view.now).is_some_and(|w| w.is_zero())
    };
    StatefulSetStatus {
        observed_generation: view.set.metadata.generation,
        replicas: number(&created),
        ready_replicas: some(number(&is_running_and_ready)),
        available_replicas: Some(number(&available)),
        current_replicas: some(of(view.current.name)),
        updated_replicas: some(of(view.update.name)),
        current_revision: Some(view.current.name.to_owned()),
        update_revision: Some(view.update.name.to_owned()),
        collision_count: Some(view.collisions),
        conditions: view.set.status.as_ref().and_then(|s| s.conditions.clone()),
    }
}

/// When every pod runs the new revision, it becomes the current one.
fn complete(set: &StatefulSet, status: &mut StatefulSetStatus) {
    let wanted = set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    let all = |n: Option<i32>| n.unwrap_or(0) == wanted;
    if !is_on_delete(set)
        && all(status.updated_replicas)
        && all(status.ready_replicas)
        && status.replicas == wanted
    {
        status.current_replicas = status.updated_replicas;
        status.current_revision = status.update_revision.clone();
    }
}
