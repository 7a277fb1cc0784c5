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

/// When containers may be started again, and steps that failed may be tried again.
#[derive(Debug, Clone)]
pub struct Backoffs {
    /// Longest delay between restarts.
    longest: SignedDuration,
    restarts: BTreeMap<String, (SignedDuration, Timestamp)>,
    holds: BTreeMap<String, Timestamp>,
}

/// The name by which [`Backoffs::hold`] knows the pod's sandbox and volumes; no container can be called so.
pub const SANDBOX: &str = "";

/// First delay between restarts.
const FIRST: SignedDuration = SignedDuration::from_secs(10);
/// Longest delay.
const LONGEST: SignedDuration = SignedDuration::from_secs(300);
/// A container that ran this long begins anew.
const RESET: SignedDuration = SignedDuration::from_secs(600);

impl Default for Backoffs {
    fn default() -> Self {
        Self { longest: LONGEST, restarts: BTreeMap::new(), holds: BTreeMap::new() }
    }
}

impl Backoffs {
    /// With `longest` between restarts.
    pub fn up_to(longest: std::time::Duration) -> Self {
        Self { longest: SignedDuration::try_from(longest).unwrap_or(LONGEST), ..Self::default() }
    }

    /// When the container that ended at `finished` may start again; in the past: now.
    pub fn due(&self, name: &str, finished: Timestamp) -> Timestamp {
        match self.restarts.get(name) {
            Some((delay, _)) => finished.saturating_add(*delay).unwrap_or(finished),
            None => finished,
        }
    }

    /// The delay in force.
    pub fn delay(&self, name: &str) -> SignedDuration {
        self.restarts.get(name).map_or(SignedDuration::ZERO, |(delay, _)| *delay)
    }

    /// The step `name` failed: not before `until` again. Nothing else of the pod waits for it.
    pub fn hold(&mut self, name: &str, until: Timestamp) {
        self.holds.insert(name.to_owned(), until);
    }

    /// The step succeeded, or the reason to wait is gone.
    pub fn release(&mut self, name: &str) {
        self.holds.remove(name);
    }

    /// Until when the step waits, where it still does.
    pub fn held(&self, name: &str, now: Timestamp) -> Option<Timestamp> {
        self.holds.get(name).copied().filter(|until| *until > now)
    }

    /// Counts a start. The first restart is immediate, the next ones wait 10 s, 20 s, ... 5 min.
    pub fn count(&mut self, name: &str, now: Timestamp, ran: SignedDuration) {
        let next = match self.restarts.get(name) {
            Some((delay, _)) if ran < RESET => (*delay * 2).min(self.longest),
            _ => FIRST.min(self.longest),
        };
        self.restarts.insert(name.to_owned(), (next, now));
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

/// Whether a container that ended runs again: by its own rules, its own policy, or the pod's.
pub(crate) fn restarts(policy: &str, spec: &Spec, container: &Container) -> bool {
    if container.run == Run::Unknown {
        return policy != "Never";
    }
    let code = container.exit_code;
    if matches!(rule(spec, code), Some("Restart" | RESTART_ALL)) {
        return true;
    }
    match spec.restart_policy.as_deref().unwrap_or(policy) {
        "Never" => false,
        "OnFailure" => code != 0,
        _ => true,
    }
}

/// The action that ends every container of the pod, and begins the pod anew.
const RESTART_ALL: &str = "RestartAllContainers";

/// What a container's own rules say of an exit code: the first one that speaks of it.
fn rule(spec: &Spec, code: i32) -> Option<&str> {
    let mut rules = spec.restart_policy_rules.iter().flatten();
    let found = rules.find(|rule| {
        let codes = rule.exit_codes.as_ref();
        let listed = codes.and_then(|c| c.values.as_ref()).is_some_and(|v| v.contains(&code));
        match codes.map(|c| c.operator.as_str()) {
            Some("In") => listed,
            Some("NotIn") => !listed,
            _ => false,
        }
    });
    found.map(|rule| rule.action.as_str())
}

/// Whether the end of a container may begin the pod anew.
pub(crate) fn may_begin_anew(pod: &Pod) -> bool {
    let spec = pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers));
    spec.flat_map(|c| c.restart_policy_rules.iter().flatten()).any(|rule| rule.action == RESTART_ALL)
}

/// When the pod began anew last: containers that were made before are of no use any more, whatever became of them.
pub(crate) fn anew(pod: &Pod, observed: &Observed) -> Option<Timestamp> {
    if !may_begin_anew(pod) {
        return None;
    }
    let all = pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers));
    let ends = all.flat_map(|spec| {
        let ended = observed.runs(&spec.name).filter(|c| c.run == Run::Exited);
        ended.filter(|c| rule(spec, c.exit_code) == Some(RESTART_ALL)).map(|c| c.finished)
    });
    ends.max()
}

/// Whether a container is of the pod as it began last.
pub(crate) fn is_of(round: Option<Timestamp>, container: &Container) -> bool {
    round.is_none_or(|since| container.created > since)
}

/// Whether the pod begins anew, and nothing of it has begun yet.
pub(crate) fn begins_anew(pod: &Pod, observed: &Observed) -> bool {
    let round = anew(pod, observed);
    round.is_some() && !observed.containers.iter().any(|container| is_of(round, container))
}

/// Changes when a running container must be made anew: an update may change nothing else of it but its image.
pub fn fingerprint(container: &Spec) -> String {
    // FNV-1a with 32 bits, the size other kubelets keep in this annotation
    let image = container.image.as_deref().unwrap_or_default();
    let hash = container
        .name
        .bytes()
        .chain([0])
        .chain(image.bytes())
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("{hash:x}")
}

/// Ephemeral containers in the shape of the others.
pub fn ephemeral(pod: &Pod) -> Vec<Spec> {
    let list = pod.spec.iter().flat_map(|s| s.ephemeral_containers.iter().flatten());
    list.map(|e| Spec {
        args: e.args.clone(),
        command: e.command.clone(),
        env: e.env.clone(),
        env_from: e.env_from.clone(),
        image: e.image.clone(),
        image_pull_policy: e.image_pull_policy.clone(),
        name: e.name.clone(),
        resources: e.resources.clone(),
        security_context: e.security_context.clone(),
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        termination_message_path: e.termination_message_path.clone(),
        termination_message_policy: e.termination_message_policy.clone(),
        tty: e.tty,
        volume_devices: e.volume_devices.clone(),
        volume_mounts: e.volume_mounts.clone(),
        working_dir: e.working_dir.clone(),
        ..Spec::default()
    })
    .collect()
}

/// A container of the pod by name, and the field it stands in.
pub fn find(pod: &Pod, name: &str) -> Option<(Spec, &'static str)> {
    let spec = pod.spec.as_ref()?;
    if let Some(found) = spec.containers.iter().find(|c| c.name == name) {
        return Some((found.clone(), "containers"));
    }
    if let Some(found) = spec.init_containers.iter().flatten().find(|c| c.name == name) {
        return Some((found.clone(), "initContainers"));
    }
    ephemeral(pod).into_iter().find(|c| c.name == name).map(|found| (found, "ephemeralContainers"))
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

/// Whether every main container has ended for good, or an init container has failed for good.
pub fn is_over(pod: &Pod, observed: &Observed) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let policy = spec.restart_policy.as_deref().unwrap_or("Always");
    let round = anew(pod, observed);
    let newest = |name: &str| observed.newest(name).filter(|c| is_of(round, c));
    let ended =
        |spec: &Spec| newest(&spec.name).is_some_and(|c| c.run == Run::Exited && !restarts(policy, spec, c));
    let init_failed = spec.init_containers.iter().flatten().filter(|c| !is_sidecar(c)).any(|c| {
        newest(&c.name)
            .is_some_and(|run| run.run == Run::Exited && run.exit_code != 0 && !restarts(policy, c, run))
    });
    init_failed || spec.containers.iter().all(ended)
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
    let left = pod.metadata.deletion_timestamp.as_ref().map(|at| at.0.duration_since(now).as_secs());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::Sandbox;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}),
        )
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
            fingerprint: String::new(),
            log_path: String::new(),
            user: None,
            recursive: Vec::new(),
            resources: None,
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
                Action::Prepare { id, .. } => format!("prepare {id}"),
                Action::StopSandbox(id) => format!("stop {id}"),
                Action::Finish => "finish".to_owned(),
            })
            .collect::<Vec<_>>()
            .join(", ")
    }

    #[test]
    fn a_new_pod_gets_a_sandbox_then_init_containers_in_order_then_the_rest() {
        let p = pod(
            json!({"initContainers": [{"name": "i1"}, {"name": "i2"}], "containers": [{"name": "a"}, {"name": "b"}]}),
        );
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
            assert_eq!(
                steps(&p, &with(vec![container("a", Run::Exited, code, 0)]), 300),
                expected,
                "{policy} {code}"
            );
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
    fn no_restart_waits_longer_than_the_node_lets_it() {
        let delays = |longest: u64| {
            let mut backoffs = Backoffs::up_to(std::time::Duration::from_secs(longest));
            let mut next = || {
                backoffs.count("a", at(0), SignedDuration::from_secs(1));
                backoffs.delay("a").as_secs()
            };
            [next(), next(), next(), next()]
        };
        assert_eq!((delays(300), delays(25), delays(3)), ([10, 20, 40, 80], [10, 20, 25, 25], [3; 4]));
    }

    #[test]
    fn a_deleted_pod_stops_sidecars_last_and_finishes_when_nothing_is_left() {
        let mut p = pod(
            json!({"initContainers": [{"name": "one", "restartPolicy": "Always"}, {"name": "two", "restartPolicy": "Always"}],
            "containers": [{"name": "a"}]}),
        );
        p.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0)));
        let (one, two) = (container("one", Run::Running, 0, 0), container("two", Run::Running, 0, 0));
        let all = with(vec![one.clone(), two.clone(), container("a", Run::Running, 0, 0)]);
        assert_eq!(steps(&p, &all, 0), "kill a0, prepare two0, prepare one0");
        let a_ended = container("a", Run::Exited, 0, 0);
        let sidecars = with(vec![one.clone(), two, a_ended.clone()]);
        assert_eq!(steps(&p, &sidecars, 0), "kill two0, prepare one0");
        assert_eq!(steps(&p, &with(vec![one, a_ended.clone()]), 0), "kill one0");
        assert_eq!(steps(&p, &with(vec![a_ended.clone()]), 0), "stop s");
        let mut over = with(vec![a_ended]);
        over.sandboxes[0].ready = false;
        assert_eq!(steps(&p, &over, 0), "finish");
    }

    #[test]
    fn an_unhealthy_container_is_killed() {
        let p = pod(json!({"containers": [{"name": "a"}]}));
        let health = Health {
            unhealthy: [("a0".to_owned(), Unhealthy { why: "why".to_owned(), grace: Some(7) })].into(),
            ..Health::default()
        };
        let observed = with(vec![container("a", Run::Running, 0, 0)]);
        let plan = next(&p, &observed, &health, &Backoffs::default(), false, at(0));
        assert!(matches!(&plan.actions[..], [Action::Kill { why, grace: 7, .. }] if why == "why"));
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

    #[test]
    fn a_step_that_failed_waits_without_holding_up_the_others_or_the_deletion() {
        let mut p = pod(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
        let mut backoffs = Backoffs::default();
        backoffs.hold("a", at(50));
        let plan = next(&p, &with(vec![]), &Health::default(), &backoffs, false, at(10));
        assert!(matches!(&plan.actions[..], [Action::Start { name, .. }] if name == "b"));
        assert_eq!(plan.wake, Some(at(50)));
        backoffs.hold(SANDBOX, at(60));
        let plan = next(&p, &Observed::default(), &Health::default(), &backoffs, false, at(10));
        assert_eq!(plan, Plan { actions: vec![], wake: Some(at(60)) });
        p.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0)));
        let plan = next(&p, &Observed::default(), &Health::default(), &backoffs, false, at(10));
        assert_eq!(plan.actions, [Action::Finish]);
    }

    #[test]
    fn a_container_made_but_never_started_gets_its_run() {
        let p = pod(json!({"containers": [{"name": "a"}]}));
        assert_eq!(steps(&p, &with(vec![container("a", Run::Created, 0, 3)]), 10), "start a#3");
    }

    #[test]
    fn restart_counts_survive_a_runtime_that_forgot() {
        let mut p = pod(json!({"containers": [{"name": "a"}]}));
        p.status = serde_json::from_value(json!({"containerStatuses": [
            {"name": "a", "containerID": "x://1", "restartCount": 4, "ready": true, "image": "", "imageID": ""}]}))
        .unwrap();
        assert_eq!(steps(&p, &with(vec![]), 10), "start a#5");
    }

    #[test]
    fn a_changed_image_ends_the_running_container() {
        let p = pod(json!({"containers": [{"name": "a", "image": "new"}]}));
        let mut old = container("a", Run::Running, 0, 0);
        old.fingerprint =
            fingerprint(&Spec { name: "a".to_owned(), image: Some("old".to_owned()), ..Spec::default() });
        assert_eq!(steps(&p, &with(vec![old.clone()]), 10), "kill a0");
        old.fingerprint = fingerprint(&p.spec.as_ref().unwrap().containers[0]);
        assert_eq!(steps(&p, &with(vec![old]), 10), "");
    }

    #[test]
    fn an_ephemeral_container_runs_once() {
        let p = pod(json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}],
            "ephemeralContainers": [{"name": "debug"}]}));
        let (init, a) = (container("i", Run::Exited, 0, 0), container("a", Run::Running, 0, 0));
        assert_eq!(steps(&p, &with(vec![init.clone(), a.clone()]), 10), "start debug#0");
        let stuck = with(vec![container("i", Run::Running, 0, 0)]);
        assert_eq!(steps(&p, &stuck, 10), "start debug#0", "also beside an init container that does not end");
        assert_eq!(steps(&p, &with(vec![init, a, container("debug", Run::Exited, 1, 0)]), 300), "");
    }

    #[test]
    fn a_containers_own_rules_come_before_the_pods_policy() {
        let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
        let p = pod(json!({"restartPolicy": "Never", "containers": [
            {"name": "a", "restartPolicy": "Never", "restartPolicyRules": rules}]}));
        assert_eq!(steps(&p, &with(vec![container("a", Run::Exited, 42, 0)]), 300), "start a#1");
        assert_eq!(steps(&p, &with(vec![container("a", Run::Exited, 1, 0)]), 300), "stop s");
    }

    #[test]
    fn an_end_may_begin_the_whole_pod_anew() {
        let rules =
            json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]);
        let p = pod(json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [
            {"name": "a", "restartPolicy": "Never", "restartPolicyRules": rules}, {"name": "b"}, {"name": "c"}]}));
        let made = |mut container: Container, second: i64| {
            container.created = at(second);
            container
        };
        let first = [
            container("i", Run::Exited, 0, 0),
            container("a", Run::Exited, 42, 0),
            container("c", Run::Exited, 0, 0),
        ];
        let mut all = first.to_vec();
        all.push(container("b", Run::Running, 0, 0));
        assert!(!is_over(&p, &with(all.clone())) && begins_anew(&p, &with(all.clone())));
        assert_eq!(steps(&p, &with(all), 300), "kill b0");
        // what was killed may match as well: that is the same restart
        let mut all = first.to_vec();
        all.push(container("b", Run::Exited, 143, 0));
        assert_eq!(steps(&p, &with(all.clone()), 300), "start i#1");
        all.insert(0, made(container("i", Run::Exited, 0, 1), 301));
        assert!(!begins_anew(&p, &with(all.clone())));
        assert_eq!(steps(&p, &with(all.clone()), 400), "start a#1, start b#1, start c#1");
        for name in ["a", "b", "c"] {
            all.insert(0, made(container(name, Run::Running, 0, 1), 401));
        }
        assert_eq!(steps(&p, &with(all.clone()), 500), "");
        // any other end is the pod's
        for container in &mut all[..3] {
            container.run = Run::Exited;
        }
        assert!(is_over(&p, &with(all)));
        let plain = with(vec![container("i", Run::Exited, 0, 0), container("a", Run::Exited, 1, 0)]);
        assert_eq!(steps(&p, &plain, 300), "start b#0, start c#0");
    }

    #[test]
    fn a_sidecar_starts_again_while_the_main_container_runs() {
        let p = pod(
            json!({"restartPolicy": "Never", "initContainers": [{"name": "side", "restartPolicy": "Always"}],
            "containers": [{"name": "a"}]}),
        );
        let a = container("a", Run::Running, 0, 0);
        let side = container("side", Run::Exited, 1, 0);
        assert_eq!(steps(&p, &with(vec![a, side]), 300), "start side#1");
    }
}
