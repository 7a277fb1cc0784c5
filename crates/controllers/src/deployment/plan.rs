//! What to do about a deployment: a pure function from what the caches show to writes of replica sets and a status.
//!
//! One pass makes one careful move (scale up, or scale down, or clean up) and the next pass sees its effect: bounds
//! are kept by looking at what exists, never by remembering what was asked for.
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::bounds::{desired, is_rolling, max_surge, max_unavailable};
use super::conditions::{
    self, DEPLOYMENT_PAUSED, DEPLOYMENT_RESUMED, FOUND_NEW_REPLICA_SET, NEW_REPLICA_SET_CREATED,
    PROGRESS_DEADLINE_EXCEEDED, PROGRESSING,
};
use super::revisions::{
    DESIRED_REPLICAS, MAX_REPLICAS, REVISION, copied_annotations, revision, set_replica_annotations,
    set_revision,
};
use super::rollback::{self, Rollback};
use super::{scale, status};
use crate::ownership::{annotations, controller_ref, name, uid};
use crate::template::{POD_TEMPLATE_HASH, pod_template_hash, same_template};

/// One write of a replica set.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Create the replica set of the current template; its name is a function of the template.
    Create(Box<ReplicaSet>),
    /// Replace a replica set; `scaled` is `(from, to)` when its size changes.
    Update {
        /// The object to PUT, carrying the resourceVersion it was computed from.
        replica_set: Box<ReplicaSet>,
        /// `(from, to)` when its size changes.
        scaled: Option<(i32, i32)>,
    },
    /// Delete an old, empty replica set beyond the history limit.
    Delete {
        /// Its name.
        name: String,
        /// Its uid, the delete's precondition.
        uid: String,
    },
}

/// The outcome of one pass.
#[derive(Debug, Default)]
pub struct Plan {
    /// Writes in order; the first failure ends the pass.
    pub actions: Vec<Action>,
    /// The deployment to PUT to `/status` (status and revision annotation), when something changed.
    pub status: Option<Box<Deployment>>,
    /// The deployment goes back to an earlier revision; its status is for the pass after that.
    pub(super) rollback: Option<Rollback>,
    /// Look again after this long: the progress deadline.
    pub requeue: Option<Duration>,
}

/// The pass in progress: copies of the replica sets as they shall be.
pub(super) struct Pass<'a> {
    pub(super) d: &'a Deployment,
    pub(super) now: Timestamp,
    /// Oldest first.
    pub(super) sets: Vec<ReplicaSet>,
    /// Index of the set with the current template.
    pub(super) new: Option<usize>,
    pub(super) conditions: Vec<DeploymentCondition>,
    /// Whether the pass is part of a rollout, whose progress is watched: not one that scales, nor while paused.
    pub(super) rolls: bool,
    created: Option<usize>,
    deleted: Vec<usize>,
    revision: Option<String>,
}

/// Plans one pass for `d`, which controls `owned`. `with_live_pods` holds the uids of those sets that still have
/// pods which have not ended (Recreate waits for them).
pub fn plan(
    d: &Deployment,
    owned: &[Arc<ReplicaSet>],
    with_live_pods: &HashSet<String>,
    now: Timestamp,
) -> Plan {
    let mut before: Vec<&Arc<ReplicaSet>> = owned.iter().collect();
    before.sort_by(|a, b| {
        let key = |r: &ReplicaSet| {
            (r.metadata.creation_timestamp.clone().map(|t| t.0), name(&r.metadata).to_owned())
        };
        key(a).cmp(&key(b))
    });
    let sets: Vec<ReplicaSet> = before.iter().map(|r| (***r).clone()).collect();
    let template = d.spec.as_ref().map(|s| &s.template);
    let new = sets
        .iter()
        .position(|r| matches!((template, template_of(r)), (Some(a), Some(b)) if same_template(a, b)));
    let conditions = d.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let (created, deleted, revision) = (None, Vec::new(), None);
    let mut pass = Pass { d, now, sets, new, conditions, rolls: false, created, deleted, revision };
    let mut back = None;

    if d.metadata.deletion_timestamp.is_none() {
        pass.note_pause();
        let paused = d.spec.as_ref().is_some_and(|s| s.paused == Some(true));
        let asked = rollback::asked(d).filter(|_| !paused);
        if let Some(to) = asked {
            pass.sync_revision(true);
            back = Some(rollback::rollback(d, &pass.sets, to));
        } else if paused || pass.was_resized() {
            pass.sync_revision(false);
            scale::scale(&mut pass);
            if paused {
                pass.clean_up();
            }
        } else {
            pass.rolls = true;
            if is_rolling(d) { pass.roll() } else { pass.recreate(with_live_pods) }
        }
    }
    let mut plan = pass.finish(&before);
    if back.is_some() {
        (plan.status, plan.rollback) = (None, back);
    }
    plan
}

/// The number of pods a set shall have.
pub(super) fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

/// The number of its pods that are available.
pub(super) fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

/// The number of pods it has.
pub(super) fn actual(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |s| s.replicas)
}

fn template_of(set: &ReplicaSet) -> Option<&PodTemplateSpec> {
    set.spec.as_ref().and_then(|s| s.template.as_ref())
}

impl Pass<'_> {
    /// Indexes of all sets but the current one, oldest first.
    pub(super) fn old(&self) -> Vec<usize> {
        (0..self.sets.len()).filter(|i| Some(*i) != self.new).collect()
    }

    /// Sets the size of one set, and the sizes that later passes compare with.
    pub(super) fn resize(&mut self, index: usize, to: i32) {
        let (desired, max) = (desired(self.d), desired(self.d).saturating_add(max_surge(self.d)));
        let set = &mut self.sets[index];
        if let Some(spec) = set.spec.as_mut() {
            spec.replicas = Some(to);
        }
        set_replica_annotations(&mut set.metadata, desired, max);
    }

    /// Whether an active set still carries another desired size: the deployment was scaled since.
    fn was_resized(&self) -> bool {
        let desired = desired(self.d).to_string();
        self.sets.iter().filter(|s| replicas(s) > 0).any(|s| {
            annotations(&s.metadata)
                .get(DESIRED_REPLICAS)
                .is_some_and(|v| v.parse::<i32>().is_ok() && *v != desired)
        })
    }

    /// Shows in the Progressing condition that the rollout was paused or resumed: time does not run while paused.
    fn note_pause(&mut self) {
        if !status::has_deadline(self.d) {
            return;
        }
        let reason = conditions::find(&self.conditions, PROGRESSING).and_then(|c| c.reason.as_deref());
        if reason == Some(PROGRESS_DEADLINE_EXCEEDED) {
            return;
        }
        let was = reason == Some(DEPLOYMENT_PAUSED);
        let is = self.d.spec.as_ref().is_some_and(|s| s.paused == Some(true));
        let (reason, message) = match (was, is) {
            (false, true) => (DEPLOYMENT_PAUSED, "Deployment is paused"),
            (true, false) => (DEPLOYMENT_RESUMED, "Deployment is resumed"),
            _ => return,
        };
        let condition = conditions::condition(PROGRESSING, "Unknown", reason, message.to_owned(), self.now);
        conditions::set(&mut self.conditions, condition);
    }

    /// Gives the current set the highest revision and the deployment's annotations; creates it when asked to.
    fn sync_revision(&mut self, create: bool) {
        let d = self.d;
        let highest = self.old().into_iter().map(|i| revision(&self.sets[i].metadata)).max().unwrap_or(0);
        let next = highest + 1;
        if let Some(index) = self.new {
            let set = &mut self.sets[index];
            copied_annotations(&d.metadata, &mut set.metadata);
            set_revision(&mut set.metadata, next);
            if let Some(spec) = set.spec.as_mut() {
                let wanted = d.spec.as_ref().and_then(|s| s.min_ready_seconds);
                if spec.min_ready_seconds.unwrap_or(0) != wanted.unwrap_or(0) {
                    spec.min_ready_seconds = wanted;
                }
            }
            self.revision = annotations(&set.metadata).get(REVISION).cloned();
            if conditions::find(&self.conditions, PROGRESSING).is_none() && status::has_deadline(d) {
                let message = format!("Found new replica set \"{}\"", name(&set.metadata));
                let found =
                    conditions::condition(PROGRESSING, "True", FOUND_NEW_REPLICA_SET, message, self.now);
                conditions::set(&mut self.conditions, found);
            }
            return;
        }
        if !create {
            return;
        }
        let Some(mut set) = new_replica_set(d) else { return };
        copied_annotations(&d.metadata, &mut set.metadata);
        set_revision(&mut set.metadata, next);
        if status::has_deadline(d) {
            let message = format!("Created new replica set \"{}\"", name(&set.metadata));
            let created =
                conditions::condition(PROGRESSING, "True", NEW_REPLICA_SET_CREATED, message, self.now);
            conditions::set(&mut self.conditions, created);
        }
        self.revision = Some(next.to_string());
        self.sets.push(set);
        let index = self.sets.len() - 1;
        (self.new, self.created) = (Some(index), Some(index));
        let size = self.size_of_new();
        self.resize(index, size);
    }

    /// How large the current set may be now without exceeding the surge.
    fn size_of_new(&self) -> i32 {
        let Some(new) = self.new else { return 0 };
        let (desired, current) = (desired(self.d), replicas(&self.sets[new]));
        if !is_rolling(self.d) {
            return desired;
        }
        let current = if self.created == Some(new) { 0 } else { current };
        let others: i32 = self.old().into_iter().map(|i| replicas(&self.sets[i])).sum();
        let room = desired.saturating_add(max_surge(self.d)) - others - current;
        if room <= 0 { current } else { current + room.min(desired - current) }
    }

    fn roll(&mut self) {
        self.sync_revision(true);
        let Some(new) = self.new else { return };
        let (size, wanted) = (replicas(&self.sets[new]), desired(self.d));
        let target = if size > wanted { wanted } else { self.size_of_new() };
        if target != size {
            self.resize(new, target);
            return;
        }
        if self.scale_down_old(new) {
            return;
        }
        if status::is_complete(self.d, self.d.status.as_ref()) {
            self.clean_up();
        }
    }

    /// Scales old sets down as far as availability allows: first pods that are not available, then healthy ones.
    fn scale_down_old(&mut self, new: usize) -> bool {
        let old = self.old();
        if old.iter().all(|i| replicas(&self.sets[*i]) == 0) {
            return false;
        }
        let min_available = desired(self.d) - max_unavailable(self.d);
        let all: i32 = self.sets.iter().map(replicas).sum();
        let new_unavailable = replicas(&self.sets[new]) - available(&self.sets[new]);
        let budget = all - min_available - new_unavailable;
        if budget <= 0 {
            return false;
        }
        let mut changed = false;
        let mut cleaned = 0;
        for &i in &old {
            let (size, ready) = (replicas(&self.sets[i]), available(&self.sets[i]));
            let down = (budget - cleaned).min(size - ready);
            if size > 0 && down > 0 {
                self.resize(i, size - down);
                cleaned += down;
                changed = true;
            }
        }
        // A set's status may be older than its size: of pods that are about to go none counts.
        let ready: i32 = self.sets.iter().map(|s| available(s).min(replicas(s))).sum();
        let mut budget = ready - min_available;
        for &i in &old {
            let size = replicas(&self.sets[i]);
            let down = budget.min(size);
            if size > 0 && down > 0 {
                self.resize(i, size - down);
                budget -= down;
                changed = true;
            }
        }
        changed
    }

    fn recreate(&mut self, with_live_pods: &HashSet<String>) {
        self.sync_revision(false);
        let old = self.old();
        let mut scaled = false;
        for &i in &old {
            if replicas(&self.sets[i]) > 0 {
                self.resize(i, 0);
                scaled = true;
            }
        }
        let busy =
            |i: &usize| actual(&self.sets[*i]) > 0 || with_live_pods.contains(uid(&self.sets[*i].metadata));
        if scaled || old.iter().any(busy) {
            return;
        }
        if self.new.is_none() {
            self.sync_revision(true);
        }
        let Some(new) = self.new else { return };
        if replicas(&self.sets[new]) != desired(self.d) {
            self.resize(new, desired(self.d));
        } else if status::is_complete(self.d, self.d.status.as_ref()) {
            self.clean_up();
        }
    }

    /// Deletes the oldest revisions beyond the history limit, only those that are empty and settled.
    fn clean_up(&mut self) {
        let Some(limit) = self.d.spec.as_ref().and_then(|s| s.revision_history_limit) else { return };
        if limit == i32::MAX {
            return;
        }
        let mut old: Vec<usize> =
            self.old().into_iter().filter(|i| self.sets[*i].metadata.deletion_timestamp.is_none()).collect();
        let excess = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        old.sort_by_key(|i| revision(&self.sets[*i].metadata));
        self.deleted = old
            .into_iter()
            .take(excess)
            .filter(|i| {
                let set = &self.sets[*i];
                let observed = set.status.as_ref().and_then(|s| s.observed_generation).unwrap_or(0);
                actual(set) == 0 && replicas(set) == 0 && set.metadata.generation.unwrap_or(0) <= observed
            })
            .collect();
    }

    /// Compares what shall be with what is.
    fn finish(mut self, before: &[&Arc<ReplicaSet>]) -> Plan {
        let (new_status, requeue) = status::compute(&mut self);
        let mut result = Plan { requeue, ..Plan::default() };
        let mut wanted = self.d.clone();
        wanted.status = Some(new_status);
        if let Some(revision) = &self.revision {
            wanted
                .metadata
                .annotations
                .get_or_insert_with(BTreeMap::new)
                .insert(REVISION.to_owned(), revision.clone());
        }
        if wanted.status != self.d.status || wanted.metadata.annotations != self.d.metadata.annotations {
            result.status = Some(Box::new(wanted));
        }
        for (i, set) in self.sets.into_iter().enumerate() {
            if self.deleted.contains(&i) {
                let (name, uid) = (name(&set.metadata).to_owned(), uid(&set.metadata).to_owned());
                result.actions.push(Action::Delete { name, uid });
            } else if self.created == Some(i) {
                result.actions.insert(0, Action::Create(Box::new(set)));
            } else if set != **before[i] {
                let (from, to) = (replicas(before[i]), replicas(&set));
                let scaled = (from != to).then_some((from, to));
                result.actions.push(Action::Update { replica_set: Box::new(set), scaled });
            }
        }
        result
    }
}

/// The replica set for the deployment's current template, without annotations and size.
fn new_replica_set(d: &Deployment) -> Option<ReplicaSet> {
    let spec = d.spec.as_ref()?;
    let collisions = d.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
    let hash = pod_template_hash(&spec.template, collisions);
    let mut template = spec.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(POD_TEMPLATE_HASH.to_owned(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(POD_TEMPLATE_HASH.to_owned(), hash.clone());
    Some(ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", name(&d.metadata))),
            namespace: d.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![controller_ref("apps/v1", "Deployment", &d.metadata)]),
            ..Default::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    })
}

/// The size a set had room for when it was last scaled.
pub(super) fn annotated_max(set: &ReplicaSet) -> Option<i32> {
    annotations(&set.metadata).get(MAX_REPLICAS)?.parse().ok()
}

/// The desired size of the deployment when the set was last scaled.
pub(super) fn annotated_desired(set: &ReplicaSet) -> Option<i32> {
    annotations(&set.metadata).get(DESIRED_REPLICAS)?.parse().ok()
}
