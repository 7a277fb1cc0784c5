//! What a pod needs next: a pure function of the pod, what the runtime says, and the clock.
//!
//! The worker executes the actions and asks again. Nothing here does I/O or remembers anything.
//!
//! Rule: Kubernetes documentation, "Pod Lifecycle", "Init Containers", "Sidecar Containers".

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container as Spec, Pod};

use crate::observed::{Container, Observed, Run};

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
    },
    /// Stop a sandbox: its network goes, nothing is left running.
    StopSandbox(String),
    /// Everything has ended: tell the API and clean up.
    Finish,
}

/// What probes and hooks found; set by the worker.
#[derive(Debug, Clone, Default)]
pub struct Health {
    /// Containers (by runtime id) that failed their liveness or startup probe, and the probe's words.
    pub unhealthy: BTreeMap<String, String>,
    /// Containers (by runtime id) whose startup probe has succeeded, or that have none.
    pub started: BTreeMap<String, bool>,
}

/// When containers may be started again.
#[derive(Debug, Clone, Default)]
pub struct Backoffs(BTreeMap<String, (SignedDuration, Timestamp)>);

/// First delay between restarts.
const FIRST: SignedDuration = SignedDuration::from_secs(10);
/// Longest delay.
const LONGEST: SignedDuration = SignedDuration::from_secs(300);
/// A container that ran this long begins anew.
const RESET: SignedDuration = SignedDuration::from_secs(600);

impl Backoffs {
    /// When the container that ended at `finished` may start again; in the past: now.
    pub fn due(&self, name: &str, finished: Timestamp) -> Timestamp {
        match self.0.get(name) {
            Some((delay, _)) => finished.saturating_add(*delay).unwrap_or(finished),
            None => finished,
        }
    }

    /// The delay in force.
    pub fn delay(&self, name: &str) -> SignedDuration {
        self.0.get(name).map_or(SignedDuration::ZERO, |(delay, _)| *delay)
    }

    /// Counts a start. The first restart is immediate, the next ones wait 10 s, 20 s, ... 5 min.
    pub fn count(&mut self, name: &str, now: Timestamp, ran: SignedDuration) {
        let next = match self.0.get(name) {
            Some((delay, _)) if ran < RESET => (*delay * 2).min(LONGEST),
            _ => FIRST,
        };
        self.0.insert(name.to_owned(), (next, now));
    }
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

/// Grace of a deleted pod, else of its spec.
pub fn grace(pod: &Pod) -> i64 {
    pod.metadata
        .deletion_grace_period_seconds
        .or_else(|| pod.spec.as_ref()?.termination_grace_period_seconds)
        .unwrap_or(30)
}

/// Whether an init container is a sidecar.
pub fn is_sidecar(container: &Spec) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Whether the pod has run out of its time.
pub fn past_deadline(pod: &Pod, now: Timestamp) -> Option<bool> {
    let limit = pod.spec.as_ref()?.active_deadline_seconds?;
    let start = pod.status.as_ref()?.start_time.as_ref()?.0;
    let end = start.saturating_add(SignedDuration::from_secs(limit)).unwrap_or(now);
    Some(now >= end)
}

/// Whether a container that ended runs again.
fn restarts(policy: &str, container: &Container) -> bool {
    match policy {
        "Never" => false,
        "OnFailure" => container.exit_code != 0 || container.run == Run::Unknown,
        _ => true,
    }
}

/// Whether every main container has ended for good, or an init container has failed for good.
pub fn is_over(pod: &Pod, observed: &Observed) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let policy = spec.restart_policy.as_deref().unwrap_or("Always");
    let ended = |name: &str| {
        observed.newest(name).is_some_and(|c| c.run == Run::Exited && !restarts(policy, c))
    };
    let init_failed = spec.init_containers.iter().flatten().filter(|c| !is_sidecar(c)).any(|c| {
        policy == "Never" && observed.newest(&c.name).is_some_and(|c| c.run == Run::Exited && c.exit_code != 0)
    });
    init_failed || spec.containers.iter().all(|c| ended(&c.name))
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
        end(pod, observed, deleted, &mut plan);
        return plan;
    }
    if let (Some(limit), Some(start)) = (
        spec.active_deadline_seconds,
        pod.status.as_ref().and_then(|s| s.start_time.as_ref()),
    ) && let Ok(at) = start.0.checked_add(SignedDuration::from_secs(limit))
    {
        plan.wake_at(at);
    }
    let Some(sandbox) = observed.ready_sandbox() else {
        // containers of a sandbox that broke cannot be used in the next one
        for container in observed.running() {
            plan.actions.push(kill(container, "Pod sandbox changed, it will be killed and re-created.", grace(pod)));
        }
        if plan.actions.is_empty() {
            plan.actions.push(Action::Sandbox(observed.sandboxes.first().map_or(0, |s| s.attempt + 1)));
        }
        return plan;
    };
    let policy = spec.restart_policy.as_deref().unwrap_or("Always");
    let here = |name: &str| observed.newest(name).filter(|c| c.sandbox == sandbox.id);
    let attempt = |name: &str| observed.newest(name).map_or(0, |c| c.attempt + 1);
    for container in observed.running() {
        if let Some(why) = health.unhealthy.get(&container.id) {
            plan.actions.push(kill(container, why, grace(pod)));
        }
    }
    let start = |plan: &mut Plan, name: &str, last: Option<&Container>| {
        if let Some(last) = last {
            let due = backoffs.due(name, last.finished);
            if due > now {
                plan.wake_at(due);
                return;
            }
        }
        plan.actions.push(Action::Start { name: name.to_owned(), attempt: attempt(name) });
    };
    let main_began = spec.containers.iter().any(|c| here(&c.name).is_some());
    for init in spec.init_containers.iter().flatten() {
        let found = here(&init.name);
        if is_sidecar(init) {
            match found {
                Some(c) if matches!(c.run, Run::Running | Run::Created) => {
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
            Some(c) if matches!(c.run, Run::Running | Run::Created) => return plan,
            last => {
                // an init container is tried again even where the policy is OnFailure
                start(&mut plan, &init.name, last);
                return plan;
            }
        }
    }
    for main in &spec.containers {
        match here(&main.name) {
            Some(c) if matches!(c.run, Run::Running | Run::Created) => {}
            Some(c) if !restarts(policy, c) => {}
            last => start(&mut plan, &main.name, last),
        }
    }
    plan
}

fn kill(container: &Container, why: &str, grace: i64) -> Action {
    Action::Kill { id: container.id.clone(), name: container.name.clone(), why: why.to_owned(), grace }
}

/// Ends a pod: main containers first, sidecars after them, then the sandbox; a deleted pod is then finished.
fn end(pod: &Pod, observed: &Observed, deleted: bool, plan: &mut Plan) {
    let sidecars: Vec<&str> = pod
        .spec
        .iter()
        .flat_map(|s| s.init_containers.iter().flatten())
        .filter(|c| is_sidecar(c))
        .map(|c| c.name.as_str())
        .collect();
    let grace = grace(pod);
    let why = |c: &Container| format!("Stopping container {}", c.name);
    let main: Vec<&Container> =
        observed.running().filter(|c| !sidecars.contains(&c.name.as_str())).collect();
    let side: Vec<&Container> = observed.running().filter(|c| sidecars.contains(&c.name.as_str())).collect();
    let now = if main.is_empty() { side } else { main };
    if !now.is_empty() {
        plan.actions.extend(now.into_iter().map(|c| kill(c, &why(c), grace)));
        return;
    }
    let open: Vec<Action> = observed
        .sandboxes
        .iter()
        .filter(|s| s.ready)
        .map(|s| Action::StopSandbox(s.id.clone()))
        .collect();
    if !open.is_empty() {
        plan.actions = open;
    } else if deleted {
        plan.actions.push(Action::Finish);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::Sandbox;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}))
            .unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn container(name: &str, run: Run, exit_code: i32, attempt: u32) -> Container {
        Container {
            id: format!("{name}{attempt}"),
            name: name.to_owned(),
            sandbox: "s".to_owned(),
            attempt,
            run,
            created: at(100 + i64::from(attempt)),
            started: at(100),
            finished: at(200),
            exit_code,
            reason: String::new(),
            message: String::new(),
            image: String::new(),
            image_id: String::new(),
        }
    }

    fn with(containers: Vec<Container>) -> Observed {
        let sandbox = Sandbox { id: "s".to_owned(), ready: true, attempt: 0, ips: vec![] };
        Observed { sandboxes: vec![sandbox], containers }
    }

    fn steps(pod: &Pod, observed: &Observed, now: i64) -> String {
        let plan = next(pod, observed, &Health::default(), &Backoffs::default(), false, at(now));
        plan.actions
            .iter()
            .map(|a| match a {
                Action::Sandbox(n) => format!("sandbox#{n}"),
                Action::Start { name, attempt } => format!("start {name}#{attempt}"),
                Action::Kill { id, .. } => format!("kill {id}"),
                Action::StopSandbox(id) => format!("stop {id}"),
                Action::Finish => "finish".to_owned(),
            })
            .collect::<Vec<_>>()
            .join(", ")
    }

    #[test]
    fn a_new_pod_gets_a_sandbox_then_init_containers_in_order_then_the_rest() {
        let p = pod(json!({"initContainers": [{"name": "i1"}, {"name": "i2"}], "containers": [{"name": "a"}, {"name": "b"}]}));
        assert_eq!(steps(&p, &Observed::default(), 0), "sandbox#0");
        assert_eq!(steps(&p, &with(vec![]), 0), "start i1#0");
        assert_eq!(steps(&p, &with(vec![container("i1", Run::Running, 0, 0)]), 0), "");
        let one = container("i1", Run::Exited, 0, 0);
        assert_eq!(steps(&p, &with(vec![one.clone()]), 300), "start i2#0");
        let two = container("i2", Run::Exited, 0, 0);
        assert_eq!(steps(&p, &with(vec![one, two]), 300), "start a#0, start b#0");
    }

    #[test]
    fn the_restart_policy_decides_who_runs_again() {
        for (policy, code, expected) in [
            ("Always", 0, "start a#1"),
            ("OnFailure", 1, "start a#1"),
            ("OnFailure", 0, "stop s"),
            ("Never", 1, "stop s"),
        ] {
            let p = pod(json!({"restartPolicy": policy, "containers": [{"name": "a"}]}));
            assert_eq!(steps(&p, &with(vec![container("a", Run::Exited, code, 0)]), 300), expected, "{policy} {code}");
        }
    }

    #[test]
    fn the_second_restart_waits_ten_seconds() {
        let p = pod(json!({"containers": [{"name": "a"}]}));
        let mut backoffs = Backoffs::default();
        backoffs.count("a", at(200), SignedDuration::from_secs(1));
        let observed = with(vec![container("a", Run::Exited, 1, 1)]);
        let plan = next(&p, &observed, &Health::default(), &backoffs, false, at(205));
        assert_eq!(plan, Plan { actions: vec![], wake: Some(at(210)) });
        let plan = next(&p, &observed, &Health::default(), &backoffs, false, at(210));
        assert_eq!(plan.actions.len(), 1);
    }

    #[test]
    fn a_deleted_pod_stops_sidecars_last_and_finishes_when_nothing_is_left() {
        let mut p = pod(json!({"initContainers": [{"name": "side", "restartPolicy": "Always"}], "containers": [{"name": "a"}]}));
        p.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0)));
        let side = container("side", Run::Running, 0, 0);
        let both = with(vec![side.clone(), container("a", Run::Running, 0, 0)]);
        assert_eq!(steps(&p, &both, 0), "kill a0");
        let a_ended = container("a", Run::Exited, 0, 0);
        assert_eq!(steps(&p, &with(vec![side, a_ended.clone()]), 0), "kill side0");
        assert_eq!(steps(&p, &with(vec![a_ended.clone()]), 0), "stop s");
        let mut over = with(vec![a_ended]);
        over.sandboxes[0].ready = false;
        assert_eq!(steps(&p, &over, 0), "finish");
    }

    #[test]
    fn an_unhealthy_container_is_killed() {
        let p = pod(json!({"containers": [{"name": "a"}]}));
        let health = Health { unhealthy: [("a0".to_owned(), "why".to_owned())].into(), ..Health::default() };
        let observed = with(vec![container("a", Run::Running, 0, 0)]);
        let plan = next(&p, &observed, &health, &Backoffs::default(), false, at(0));
        assert!(matches!(&plan.actions[..], [Action::Kill { why, .. }] if why == "why"));
    }

    #[test]
    fn a_lost_sandbox_is_made_again() {
        let p = pod(json!({"containers": [{"name": "a"}]}));
        let mut observed = with(vec![container("a", Run::Running, 0, 0)]);
        observed.sandboxes[0].ready = false;
        assert_eq!(steps(&p, &observed, 0), "kill a0");
        observed.containers[0].run = Run::Exited;
        assert_eq!(steps(&p, &observed, 0), "sandbox#1");
    }

    #[test]
    fn a_pod_past_its_deadline_is_stopped() {
        let mut p = pod(json!({"activeDeadlineSeconds": 10, "containers": [{"name": "a"}]}));
        p.status = serde_json::from_value(json!({"startTime": "1970-01-01T00:01:00Z"})).unwrap();
        let observed = with(vec![container("a", Run::Running, 0, 0)]);
        assert_eq!(steps(&p, &observed, 65), "");
        assert_eq!(steps(&p, &observed, 70), "kill a0");
    }
}
