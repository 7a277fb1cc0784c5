//! The status of a deployment: counters, Available, Progressing with its deadline, ReplicaFailure.
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};

use super::bounds::{desired, max_unavailable};
use super::conditions::{
    self, AVAILABLE, NEW_REPLICA_SET_AVAILABLE, PROGRESS_DEADLINE_EXCEEDED, PROGRESSING, REPLICA_FAILURE,
    REPLICA_SET_UPDATED,
};
use super::plan::{Pass, actual, available, replicas};
use crate::ownership::name;

/// Whether progress is watched at all.
pub(super) fn has_deadline(d: &Deployment) -> bool {
    d.spec.as_ref().and_then(|s| s.progress_deadline_seconds).is_some_and(|s| s != i32::MAX)
}

/// Whether every pod runs the current template and is available, for the current generation.
pub(super) fn is_complete(d: &Deployment, status: Option<&DeploymentStatus>) -> bool {
    let Some(s) = status else { return false };
    let wanted = desired(d);
    s.updated_replicas.unwrap_or(0) == wanted
        && s.replicas.unwrap_or(0) == wanted
        && s.available_replicas.unwrap_or(0) == wanted
        && s.observed_generation.unwrap_or(0) >= d.metadata.generation.unwrap_or(0)
}

/// The new status, and when to look again because the deadline passes.
pub(super) fn compute(pass: &mut Pass<'_>) -> (DeploymentStatus, Option<Duration>) {
    let d = pass.d;
    let mut status = counters(pass);
    availability(pass, &status);
    if pass.rolls {
        if has_deadline(d) {
            progress(pass, &status);
        } else {
            conditions::remove(&mut pass.conditions, PROGRESSING);
        }
        replica_failure(pass);
    }
    // Order is part of the object: keep the old one, so that nothing is written when nothing changed.
    let order = |c: &DeploymentCondition| {
        let old = d.status.as_ref().and_then(|s| s.conditions.as_ref());
        old.and_then(|list| list.iter().position(|o| o.type_ == c.type_)).unwrap_or(usize::MAX)
    };
    pass.conditions.sort_by_key(order);
    status.conditions = (!pass.conditions.is_empty()).then(|| pass.conditions.clone());
    let requeue = deadline(d, &status, pass.now);
    (status, requeue)
}

/// Zero counters are left out, as the API leaves them out.
fn counters(pass: &Pass<'_>) -> DeploymentStatus {
    let d = pass.d;
    let some = |n: i32| (n != 0).then_some(n);
    let of = |f: fn(&ReplicaSet) -> i32| pass.sets.iter().map(f).sum::<i32>();
    let ready = of(|s| s.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0));
    let terminating = of(|s| s.status.as_ref().and_then(|s| s.terminating_replicas).unwrap_or(0));
    // A set that its controller has not seen has no pods yet.
    let known = |s: &ReplicaSet| {
        let status = s.status.as_ref();
        status.is_none_or(|s| s.terminating_replicas.is_some() || s.observed_generation.unwrap_or(0) == 0)
    };
    let known = pass.sets.iter().all(known);
    DeploymentStatus {
        observed_generation: d.metadata.generation,
        replicas: some(of(actual)),
        updated_replicas: some(pass.new.map_or(0, |i| actual(&pass.sets[i]))),
        ready_replicas: some(ready),
        available_replicas: some(of(available)),
        unavailable_replicas: some((of(replicas) - of(available)).max(0)),
        terminating_replicas: known.then_some(terminating),
        collision_count: d.status.as_ref().and_then(|s| s.collision_count),
        conditions: None,
    }
}

fn availability(pass: &mut Pass<'_>, status: &DeploymentStatus) {
    let enough = status.available_replicas.unwrap_or(0) >= desired(pass.d) - max_unavailable(pass.d);
    let (value, reason, message) = if enough {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    let condition = conditions::condition(AVAILABLE, value, reason, message.to_owned(), pass.now);
    conditions::set(&mut pass.conditions, condition);
}

fn progress(pass: &mut Pass<'_>, status: &DeploymentStatus) {
    let current = conditions::find(&pass.conditions, PROGRESSING).cloned();
    let was_complete = current.as_ref().and_then(|c| c.reason.as_deref()) == Some(NEW_REPLICA_SET_AVAILABLE);
    let same = status.replicas.unwrap_or(0) == status.updated_replicas.unwrap_or(0);
    if was_complete && same {
        return;
    }
    let subject = match pass.new {
        Some(i) => format!("ReplicaSet \"{}\"", name(&pass.sets[i].metadata)),
        None => format!("Deployment \"{}\"", name(&pass.d.metadata)),
    };
    let now = pass.now;
    let make = |value: &str, reason: &str, tail: &str| {
        conditions::condition(PROGRESSING, value, reason, format!("{subject} {tail}"), now)
    };
    if is_complete(pass.d, Some(status)) {
        let done = make("True", NEW_REPLICA_SET_AVAILABLE, "has successfully progressed.");
        conditions::set(&mut pass.conditions, done);
    } else if made_progress(pass.d, status) {
        let mut moving = make("True", REPLICA_SET_UPDATED, "is progressing.");
        if let Some(old) = current.filter(|c| c.status == "True") {
            moving.last_transition_time = old.last_transition_time;
        }
        // Replaced even with the same reason: its update time is what the deadline counts from.
        conditions::remove(&mut pass.conditions, PROGRESSING);
        conditions::set(&mut pass.conditions, moving);
    } else if current.as_ref().is_some_and(|c| timed_out(pass.d, c, now)) {
        let late = make("False", PROGRESS_DEADLINE_EXCEEDED, "has timed out progressing.");
        conditions::set(&mut pass.conditions, late);
    }
}

fn made_progress(d: &Deployment, new: &DeploymentStatus) -> bool {
    let empty = DeploymentStatus::default();
    let old = d.status.as_ref().unwrap_or(&empty);
    let n = |v: Option<i32>| v.unwrap_or(0);
    let outdated = |s: &DeploymentStatus| n(s.replicas) - n(s.updated_replicas);
    n(new.updated_replicas) > n(old.updated_replicas)
        || outdated(new) < outdated(old)
        || n(new.ready_replicas) > n(old.ready_replicas)
        || n(new.available_replicas) > n(old.available_replicas)
}

fn timed_out(d: &Deployment, progressing: &DeploymentCondition, now: Timestamp) -> bool {
    match progressing.reason.as_deref() {
        Some(NEW_REPLICA_SET_AVAILABLE) => false,
        Some(PROGRESS_DEADLINE_EXCEEDED) => true,
        _ => left(d, progressing, now).is_some_and(|l| l < SignedDuration::ZERO),
    }
}

/// Time until the deadline; negative after it.
fn left(d: &Deployment, progressing: &DeploymentCondition, now: Timestamp) -> Option<SignedDuration> {
    let seconds = d.spec.as_ref()?.progress_deadline_seconds?;
    let from = progressing.last_update_time.as_ref()?.0;
    Some(SignedDuration::from_secs(i64::from(seconds)) - now.duration_since(from))
}

fn deadline(d: &Deployment, status: &DeploymentStatus, now: Timestamp) -> Option<Duration> {
    let paused = d.spec.as_ref().is_some_and(|s| s.paused == Some(true));
    if !has_deadline(d) || paused || d.metadata.deletion_timestamp.is_some() || is_complete(d, Some(status)) {
        return None;
    }
    let progressing = conditions::find(status.conditions.as_deref().unwrap_or_default(), PROGRESSING)?;
    if matches!(progressing.reason.as_deref(), Some(PROGRESS_DEADLINE_EXCEEDED | NEW_REPLICA_SET_AVAILABLE)) {
        return None;
    }
    let left = left(d, progressing, now)?.max(SignedDuration::ZERO);
    Some(left.unsigned_abs() + Duration::from_secs(1))
}

/// Carries the first failure of the sets upwards, the current set's first.
fn replica_failure(pass: &mut Pass<'_>) {
    let order = pass.new.into_iter().chain(pass.old());
    let failure = order
        .filter_map(|i| pass.sets[i].status.as_ref()?.conditions.as_ref())
        .flat_map(|list| list.iter())
        .find(|c| c.type_ == REPLICA_FAILURE)
        .map(|c| DeploymentCondition {
            type_: REPLICA_FAILURE.to_owned(),
            status: c.status.clone(),
            reason: c.reason.clone(),
            message: c.message.clone(),
            last_transition_time: c.last_transition_time.clone(),
            last_update_time: c.last_transition_time.clone(),
        });
    match failure {
        Some(condition) => conditions::set(&mut pass.conditions, condition),
        None => conditions::remove(&mut pass.conditions, REPLICA_FAILURE),
    }
}
