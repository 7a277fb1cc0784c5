//! What a pod needs next: a pure function of the pod, what the runtime says, and the clock.
//!
//! The worker executes the actions and asks again. Nothing here does I/O or remembers anything. [`restarts`] says what that has ended
//! runs again, [`backoffs`] from when on, [`containers`] which containers a pod has.
//!
//! Rule: Kubernetes documentation, "Pod Lifecycle", "Init Containers", "Sidecar Containers".

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

use crate::observed::{Container, Observed, Run};
pub use backoffs::{Backoffs, SANDBOX};
pub use containers::{ephemeral, find, fingerprint, is_sidecar};
pub use restarts::is_over;
pub(crate) use restarts::{LOST, anew, begins_anew, is_of, may_begin_anew, restarts, restarts_after};

mod backoffs;
mod containers;
mod restarts;
#[cfg(test)]
mod tests;

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make a sandbox, the how-manieth.
    Sandbox(u32),
    /// Start a container, the how-manieth run of it.
    Start {
        /// Its name.
        name: String,
        /// The run.
        attempt: u32,
    },
    /// Kill a container.
    Kill {
        /// The runtime's id.
        id: String,
        /// Its name.
        name: String,
        /// For the event.
        why: String,
        /// Seconds to end by itself.
        grace: i64,
        /// Its stop hook runs before.
        hook: bool,
    },
    /// Run the stop hook of a container that ends later than others of its pod.
    Prepare {
        /// The runtime's id.
        id: String,
        /// Its name.
        name: String,
        /// Seconds that the hook has at most.
        grace: i64,
    },
    /// Stop a sandbox: its network goes, nothing is left running.
    StopSandbox(String),
    /// Everything has ended: tell the API and clean up.
    Finish,
}

/// What probes and hooks found; set by the worker.
#[derive(Debug, Clone, Default)]
pub struct Health {
    /// Containers (by runtime id) that failed their liveness or startup probe or their start hook, and must end.
    pub unhealthy: BTreeMap<String, Unhealthy>,
    /// Containers (by runtime id) whose startup probe has succeeded, or that have none.
    pub started: BTreeMap<String, bool>,
}

/// Why a container must end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unhealthy {
    /// For the event.
    pub why: String,
    /// The probe's own grace period, in seconds.
    pub grace: Option<i64>,
}

/// The steps, and when to look again although nothing happens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In order.
    pub actions: Vec<Action>,
    /// A back-off or deadline ends then.
    pub wake: Option<Timestamp>,
}

impl Plan {
    fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |known| known.min(at)));
    }
}

/// How often the container was started before, also where the runtime no longer knows of it (a reboot).
fn reported_runs(pod: &Pod, name: &str) -> u32 {
    let status = pod.status.as_ref();
    let lists = status.map(|s| [s.init_container_statuses.as_ref(), s.container_statuses.as_ref()]);
    let known = lists.into_iter().flatten().flatten().flatten().find(|c| c.name == name);
    let began = |c: &&k8s_openapi::api::core::v1::ContainerStatus| {
        c.container_id.is_some() || c.last_state.as_ref().is_some_and(|last| last.terminated.is_some())
    };
    known.filter(began).map_or(0, |c| u32::try_from(c.restart_count).unwrap_or(0) + 1)
}

/// Grace of a deleted pod, else of its spec.
pub fn grace(pod: &Pod) -> i64 {
    pod.metadata
        .deletion_grace_period_seconds
        .or_else(|| pod.spec.as_ref()?.termination_grace_period_seconds)
        .unwrap_or(30)
}

/// Whether the pod has run out of its time.
pub fn past_deadline(pod: &Pod, now: Timestamp) -> Option<bool> {
    let limit = pod.spec.as_ref()?.active_deadline_seconds?;
    let start = pod.status.as_ref()?.start_time.as_ref()?.0;
    let end = start.saturating_add(SignedDuration::from_secs(limit)).unwrap_or(now);
    Some(now >= end)
}

/// The next steps of a pod. `ended`: it was over or killed before, and must not start anything again.
pub fn next(
    pod: &Pod,
    observed: &Observed,
    health: &Health,
    backoffs: &Backoffs,
    ended: bool,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = &pod.spec else { return plan };
    let deleted = pod.metadata.deletion_timestamp.is_some();
    let late = past_deadline(pod, now) == Some(true);
    if deleted || ended || late || is_over(pod, observed) {
        end(pod, observed, deleted, now, &mut plan);
        return plan;
    }
    if let (Some(limit), Some(start)) =
        (spec.active_deadline_seconds, pod.status.as_ref().and_then(|s| s.start_time.as_ref()))
        && let Ok(at) = start.0.checked_add(SignedDuration::from_secs(limit))
    {
        plan.wake_at(at);
    }
    let Some(sandbox) = observed.ready_sandbox() else {
        // containers of a sandbox that broke cannot be used in the next one
        for container in observed.running() {
            let why = format!("Stopping container {}", container.name);
            plan.actions.push(kill(container, &why, grace(pod)));
        }
        if !plan.actions.is_empty() {
            return plan;
        }
        if let Some(until) = backoffs.held(SANDBOX, now) {
            plan.wake_at(until);
        } else {
            plan.actions.push(Action::Sandbox(observed.sandboxes.first().map_or(0, |s| s.attempt + 1)));
        }
        return plan;
    };
    let policy = spec.restart_policy.as_deref().unwrap_or("Always");
    let round = anew(pod, observed);
    let left: Vec<&Container> = observed.running().filter(|c| !is_of(round, c)).collect();
    if !left.is_empty() {
        // none of them is asked to prepare: the pod as a whole starts over
        plan.actions = left
            .into_iter()
            .map(|c| Action::Kill {
                id: c.id.clone(),
                name: c.name.clone(),
                why: format!("Container {} is restarted with all others of its pod", c.name),
                grace: grace(pod),
                hook: false,
            })
            .collect();
        return plan;
    }
    let here = |name: &str| observed.newest(name).filter(|c| c.sandbox == sandbox.id && is_of(round, c));
    let attempt = |name: &str| match observed.newest(name) {
        // made but never started, by a kubelet that was stopped in between: that run is still to come
        Some(c) if c.run == Run::Created => c.attempt,
        Some(c) => c.attempt + 1,
        None => reported_runs(pod, name),
    };
    for container in observed.running() {
        if let Some(found) = health.unhealthy.get(&container.id) {
            plan.actions.push(kill(container, &found.why, found.grace.unwrap_or_else(|| grace(pod))));
            continue;
        }
        let spec = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let mut changed = spec.filter(|c| c.name == container.name && !container.fingerprint.is_empty());
        if changed.any(|c| fingerprint(c) != container.fingerprint) {
            let why = format!("Container {} definition changed, will be restarted", container.name);
            plan.actions.push(kill(container, &why, grace(pod)));
        }
    }
    let start = |plan: &mut Plan, name: &str, last: Option<&Container>| {
        // a pod that begins anew again and again waits as its containers would
        let last = last.or_else(|| round.and_then(|_| observed.newest(name)));
        if let Some(last) = last.filter(|c| c.run != Run::Created) {
            let due = backoffs.due(name, last.finished);
            if due > now {
                plan.wake_at(due);
                return;
            }
        }
        if let Some(until) = backoffs.held(name, now) {
            plan.wake_at(until);
            return;
        }
        plan.actions.push(Action::Start { name: name.to_owned(), attempt: attempt(name) });
    };
    for extra in ephemeral(pod) {
        // one run each, as soon as the pod has a sandbox: they may be there to see why an init container does not end
        if observed.newest(&extra.name).is_none_or(|c| c.run == Run::Created) {
            start(&mut plan, &extra.name, None);
        }
    }
    let main_began = spec.containers.iter().any(|c| here(&c.name).is_some());
    for init in spec.init_containers.iter().flatten() {
        let found = here(&init.name);
        if is_sidecar(init) {
            match found {
                Some(c) if c.run == Run::Running => {
                    if !main_began && !health.started.get(&c.id).copied().unwrap_or(false) {
                        return plan;
                    }
                }
                last => {
                    start(&mut plan, &init.name, last);
                    if !main_began {
                        return plan;
                    }
                }
            }
            continue;
        }
        if main_began {
            continue;
        }
        match found {
            Some(c) if c.run == Run::Exited && c.exit_code == 0 => {}
            Some(c) if c.run == Run::Running => return plan,
            last => {
                // an init container is tried again even where the policy is OnFailure
                start(&mut plan, &init.name, last);
                return plan;
            }
        }
    }
    for main in &spec.containers {
        match here(&main.name) {
            Some(c) if c.run == Run::Running => {}
            Some(c) if c.run != Run::Created && !restarts(policy, main, c) => {}
            last => start(&mut plan, &main.name, last),
        }
    }
    plan
}

fn kill(container: &Container, why: &str, grace: i64) -> Action {
    let (id, name) = (container.id.clone(), container.name.clone());
    Action::Kill { id, name, why: why.to_owned(), grace, hook: true }
}

/// Ends a pod: main containers first, sidecars after them, then the sandbox; a deleted pod is then finished.
fn end(pod: &Pod, observed: &Observed, deleted: bool, now: Timestamp, plan: &mut Plan) {
    let sidecars: Vec<&str> = pod
        .spec
        .iter()
        .flat_map(|s| s.init_containers.iter().flatten())
        .filter(|c| is_sidecar(c))
        .map(|c| c.name.as_str())
        .collect();
    let grace = grace(pod);
    let why = |c: &Container| format!("Stopping container {}", c.name);
    let main: Vec<&Container> = observed.running().filter(|c| !sidecars.contains(&c.name.as_str())).collect();
    // sidecars end in the reverse of their order, and share what the others left of the time
    let mut last = sidecars.iter().rev().filter_map(|name| observed.running().find(|c| c.name == *name));
    // that of a pod that is over by itself begins with the last main container's end
    let over = || {
        let ends = pod.spec.iter().flat_map(|s| &s.containers).filter_map(|c| observed.newest(&c.name));
        let end = ends.filter(|c| c.run == Run::Exited).map(|c| c.finished).max()?;
        end.checked_add(SignedDuration::from_secs(grace)).ok()
    };
    let deadline = pod.metadata.deletion_timestamp.as_ref().map(|at| at.0).or_else(over);
    let left = deadline.map(|at| at.duration_since(now).as_secs());
    let left = left.map_or(grace, |left| left.clamp(grace.min(2), grace));
    if !main.is_empty() {
        plan.actions.extend(main.into_iter().map(|c| kill(c, &why(c), grace)));
    } else if let Some(container) = last.next() {
        plan.actions.push(kill(container, &why(container), left));
    }
    // their hooks run from the beginning
    plan.actions.extend(last.map(|c| Action::Prepare {
        id: c.id.clone(),
        name: c.name.clone(),
        grace: left,
    }));
    if !plan.actions.is_empty() {
        return;
    }
    let open: Vec<Action> =
        observed.sandboxes.iter().filter(|s| s.ready).map(|s| Action::StopSandbox(s.id.clone())).collect();
    if !open.is_empty() {
        plan.actions = open;
    } else if deleted {
        plan.actions.push(Action::Finish);
    }
}
