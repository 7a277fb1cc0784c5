//! The status of a pod, from the pod, what the runtime says, and what probes found: a pure function.
//!
//! Rule: Kubernetes documentation, "Pod Lifecycle" (phases, conditions, container states).

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container as Spec, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, ContainerUser, HostIP, LinuxContainerUser, Pod, PodCondition,
    PodIP, PodStatus, ResourceRequirements, ResourceStatus, VolumeMount, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::observed::{Container, Observed, Run};
use crate::plan::{anew, begins_anew, is_of, is_over, is_sidecar, may_begin_anew, restarts};
use crate::resources::qos_class;
use crate::static_pods::is_static;
use crate::worker::resize::Resize;

/// Why containers wait, by name: reason and message.
pub type Waiting = BTreeMap<String, (String, String)>;

/// What the status is made of, besides the pod and the runtime's view.
pub struct Facts<'a> {
    /// The prefix of container ids: the runtime's name.
    pub runtime: &'a str,
    /// The node's address.
    pub host_ips: &'a [String],
    /// Why containers wait.
    pub waiting: &'a Waiting,
    /// Readiness by runtime id, as probes found it.
    pub ready: &'a BTreeMap<String, bool>,
    /// Startup by runtime id, as probes found it.
    pub started: &'a BTreeMap<String, bool>,
    /// The pod was killed by the node: reason and message.
    pub killed: Option<&'a (String, String)>,
    /// How far a resize is.
    pub resize: &'a Resize,
    /// Drivers have devices ready for the pod: its end is not told before they have them back.
    pub holds: bool,
    /// How the devices are that containers have, by container.
    pub devices: &'a BTreeMap<String, Vec<ResourceStatus>>,
    /// That was for the node's sake, not for the pod's doing.
    pub disrupted: bool,
    /// The pod was not taken: nothing is said of its containers.
    pub refused: bool,
    /// The time.
    pub now: Timestamp,
}

fn terminated(c: &Container, runtime: &str) -> ContainerStateTerminated {
    let reason = match (c.reason.as_str(), c.exit_code) {
        ("", 0) => "Completed",
        ("", _) => "Error",
        (reason, _) => reason,
    };
    let time = |t: Timestamp| (t.as_second() > 0).then(|| whole_second(t));
    ContainerStateTerminated {
        container_id: Some(format!("{runtime}://{}", c.id)),
        exit_code: c.exit_code,
        signal: None,
        reason: Some(reason.to_owned()),
        message: Some(c.message.clone()).filter(|m| !m.is_empty()),
        started_at: time(c.started),
        finished_at: time(c.finished),
    }
}

/// What was told of a container.
fn told<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let lists =
        [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten().find(|status| status.name == name)
}

/// The end of a container that the runtime does not know: nobody can say how it went.
fn unknown(message: &str) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: 137,
            reason: Some("ContainerStatusUnknown".to_owned()),
            message: Some(message.to_owned()),
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    }
}

/// What is said of a container that ran, as was told, and of which the runtime knows nothing.
const LOST: &str =
    "The container could not be located when the pod was deleted.  The container used to be Running";
/// The same of a container that did not begin before its pod was over.
const NEVER: &str = "The container could not be located when the pod was terminated";

/// In a pod that is over every container is: those of which the runtime knows no end have failed. Where it was not yet the
/// main containers' turn, that is said of init containers only, up to the last one that has begun.
fn terminate(init: &mut [ContainerStatus], main: &mut [ContainerStatus]) {
    let state = |s: &ContainerStatus| s.state.clone().unwrap_or_default();
    let began = |s: &ContainerStatus| {
        s.last_state.is_some() || state(s).running.is_some() || state(s).terminated.is_some()
    };
    let last = init.last().map(|s| s.ready || s.started == Some(true));
    let turn = main.iter().any(began) || last.unwrap_or(true);
    let count = if turn { init.len() } else { init.iter().rposition(began).map_or(1, |at| at + 1) };
    let main = if turn { main } else { &mut [] };
    for status in init.iter_mut().take(count).chain(main) {
        if state(status).terminated.is_none() {
            status.state = status.last_state.take().or_else(|| Some(unknown(NEVER)));
        }
    }
}

fn one(spec: &Spec, pod: &Pod, observed: &Observed, facts: &Facts<'_>, init: bool) -> ContainerStatus {
    let mut runs = observed.runs(&spec.name);
    let newest = runs.next();
    let told = told(pod, &spec.name);
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if let Some(told) = told.filter(|_| newest.is_none() && matches!(phase, Some("Succeeded" | "Failed"))) {
        return told.clone();
    }
    let earlier = runs.find(|c| c.run == Run::Exited);
    let id = |c: &Container| format!("{}://{}", facts.runtime, c.id);
    let waiting = facts.waiting.get(&spec.name);
    let mut status = ContainerStatus {
        name: spec.name.clone(),
        image: newest
            .map(|c| c.image.clone())
            .filter(|i| !i.is_empty())
            .unwrap_or_else(|| spec.image.clone().unwrap_or_default()),
        image_id: newest.map(|c| c.image_id.clone()).unwrap_or_default(),
        container_id: newest.map(id),
        restart_count: match newest {
            Some(c) => i32::try_from(c.attempt).unwrap_or(i32::MAX),
            None => told.map_or(0, |told| told.restart_count),
        },
        started: Some(false),
        user: newest.and_then(|c| c.user.clone()).map(|(uid, gid, groups)| ContainerUser {
            linux: Some(LinuxContainerUser {
                uid,
                gid,
                supplemental_groups: Some(groups).filter(|g| !g.is_empty()),
            }),
        }),
        ready: false,
        volume_mounts: newest.map(|c| mounts(spec, c)).filter(|mounts| !mounts.is_empty()),
        resources: has(spec, pod, facts),
        allocated_resources: spec.resources.as_ref().and_then(|resources| resources.requests.clone()),
        ..ContainerStatus::default()
    };
    status.last_state = earlier.map(|c| ContainerState {
        terminated: Some(terminated(c, facts.runtime)),
        ..ContainerState::default()
    });
    if let Some(told) = told.filter(|_| status.last_state.is_none()) {
        let ran = told.state.as_ref().is_some_and(|state| state.running.is_some());
        let last = told.last_state.clone().filter(|last| {
            last.terminated.as_ref().is_some_and(|ended| {
                ended.container_id.is_none() || ended.container_id != status.container_id
            })
        });
        let lost = ran && told.container_id != status.container_id;
        status.last_state = if lost { Some(unknown(LOST)) } else { last };
    }
    let deleted = pod.metadata.deletion_timestamp.is_some();
    let state = match newest {
        Some(c) if c.run == Run::Running => {
            let started = facts.started.get(&c.id).copied().unwrap_or(spec.startup_probe.is_none());
            let plain = init && !is_sidecar(spec);
            status.started = Some(started);
            status.ready = !plain
                && started
                && facts.ready.get(&c.id).copied().unwrap_or(spec.readiness_probe.is_none());
            ContainerState {
                running: Some(ContainerStateRunning { started_at: Some(whole_second(c.started)) }),
                ..ContainerState::default()
            }
        }
        Some(c) if c.run == Run::Exited => match waiting
            .filter(|_| !deleted && comes_back(spec, pod, c, init))
        {
            Some((reason, message)) => {
                status.last_state = Some(ContainerState {
                    terminated: Some(terminated(c, facts.runtime)),
                    ..ContainerState::default()
                });
                wait(reason, message)
            }
            None => {
                status.ready = init && !is_sidecar(spec) && c.exit_code == 0;
                ContainerState { terminated: Some(terminated(c, facts.runtime)), ..ContainerState::default() }
            }
        },
        _ => match waiting {
            Some((reason, message)) => wait(reason, message),
            None => {
                let initializing = !init
                    && pod
                        .spec
                        .as_ref()
                        .is_some_and(|s| s.init_containers.as_ref().is_some_and(|i| !i.is_empty()));
                wait(if initializing || init { "PodInitializing" } else { "ContainerCreating" }, "")
            }
        },
    };
    status.state = Some(state);
    status
}

/// How the container's volumes are mounted.
fn mounts(spec: &Spec, container: &Container) -> Vec<VolumeMountStatus> {
    let one = |mount: &VolumeMount| {
        let read_only = mount.read_only == Some(true);
        let recursive = container.recursive.contains(&mount.mount_path);
        VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: read_only.then_some(true),
            recursive_read_only: read_only.then(|| if recursive { "Enabled" } else { "Disabled" }.to_owned()),
            ..VolumeMountStatus::default()
        }
    };
    spec.volume_mounts.iter().flatten().map(one).collect()
}

/// Whether a container that ended is to run again: only then it waits for something.
fn comes_back(spec: &Spec, pod: &Pod, ended: &Container, init: bool) -> bool {
    let policy = pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always");
    let is_done = init && !is_sidecar(spec) && ended.exit_code == 0;
    !is_done && restarts(policy, spec, ended)
}

/// What the container has: what it was given, or what it had while the runtime is not done.
fn has(spec: &Spec, pod: &Pod, facts: &Facts<'_>) -> Option<ResourceRequirements> {
    let status = pod.status.as_ref().filter(|_| facts.resize.lagging.contains(&spec.name));
    let lists = status.map(|s| [&s.container_statuses, &s.init_container_statuses]).into_iter().flatten();
    let told = lists.flatten().flatten().find(|status| status.name == spec.name);
    told.and_then(|told| told.resources.clone()).or_else(|| spec.resources.clone())
}

fn wait(reason: &str, message: &str) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()).filter(|m| !m.is_empty()),
        }),
        ..ContainerState::default()
    }
}

/// The phase by the containers' states; `over`: none of them will run again, whatever the policy says.
fn phase(pod: &Pod, init: &[ContainerStatus], main: &[ContainerStatus], over: bool) -> &'static str {
    let spec = pod.spec.as_ref();
    let policy = spec.and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always");
    let specs: Vec<&Spec> = spec.iter().flat_map(|s| s.init_containers.iter().flatten()).collect();
    let sidecar = |s: &&ContainerStatus| specs.iter().any(|c| c.name == s.name && is_sidecar(c));
    let state = |s: &ContainerStatus| s.state.clone().unwrap_or_default();
    let code = |s: &ContainerStatus| state(s).terminated.map(|t| t.exit_code);
    let last = |s: &ContainerStatus| s.last_state.as_ref()?.terminated.as_ref().map(|t| t.exit_code);
    let began = |s: &ContainerStatus| {
        s.last_state.is_some() || state(s).running.is_some() || state(s).terminated.is_some()
    };
    let (sidecars, plain): (Vec<&ContainerStatus>, Vec<_>) = init.iter().partition(sidecar);
    let failed = |s: &ContainerStatus| {
        code(s).or_else(|| last(s).filter(|_| state(s).waiting.is_some())).is_some_and(|code| code != 0)
    };
    if policy == "Never" && plain.iter().any(|s| failed(s)) {
        return "Failed";
    }
    let first_wait = |s: &ContainerStatus| state(s).waiting.is_some() && s.last_state.is_none();
    if !main.iter().any(began) || main.iter().any(first_wait) {
        return "Pending";
    }
    let runs = |s: &ContainerStatus| state(s).running.is_some();
    if main.iter().any(runs) || sidecars.into_iter().any(runs) {
        return "Running";
    }
    let succeeded = main.iter().all(|s| code(s) == Some(0));
    match (over, policy) {
        (true, _) => {
            if succeeded {
                "Succeeded"
            } else {
                "Failed"
            }
        }
        (false, "Always") => "Running",
        _ if succeeded => "Succeeded",
        (false, "Never") => "Failed",
        _ => "Running",
    }
}

/// Most bytes of the last words of all containers of a pod together.
const WORDS: usize = 12 * 1024;

/// Shortens last words so that those of all containers fit together.
fn shorten(lists: [&mut Vec<ContainerStatus>; 3]) {
    let most = WORDS / lists.iter().map(|list| list.len()).sum::<usize>().max(1);
    let states = lists.into_iter().flatten().flat_map(|s| [&mut s.state, &mut s.last_state]);
    for words in states.filter_map(|s| s.as_mut()?.terminated.as_mut()?.message.as_mut()) {
        words.truncate(words.floor_char_boundary(most));
    }
}

/// The status to report.
pub fn compute(pod: &Pod, observed: &Observed, facts: &Facts<'_>) -> PodStatus {
    let spec = pod.spec.clone().unwrap_or_default();
    let old = pod.status.clone().unwrap_or_default();
    let mut init: Vec<ContainerStatus> =
        spec.init_containers.iter().flatten().map(|c| one(c, pod, observed, facts, true)).collect();
    let mut main: Vec<ContainerStatus> = spec
        .containers
        .iter()
        .map(|c| ContainerStatus {
            allocated_resources_status: facts.devices.get(&c.name).cloned(),
            ..one(c, pod, observed, facts, false)
        })
        .collect();
    let mut ephemeral: Vec<ContainerStatus> = crate::plan::ephemeral(pod)
        .iter()
        .map(|c| ContainerStatus { ready: false, ..one(c, pod, observed, facts, false) })
        .collect();
    shorten([&mut init, &mut main, &mut ephemeral]);
    // a pod is not over before its last process is gone, nor before drivers have its devices back: others are given them then
    let alive = observed.running().next().is_some() || facts.holds;
    let killed = facts.killed.filter(|_| !alive);
    let deleted = pod.metadata.deletion_timestamp.is_some();
    let ended = deleted && !alive && observed.ready_sandbox().is_none();
    let phase = match (killed, old.phase.as_deref()) {
        (Some(_), _) => "Failed",
        // over is over
        (None, Some(done @ ("Succeeded" | "Failed"))) => done,
        (None, before) => match phase(pod, &init, &main, deleted && !alive) {
            "Succeeded" | "Failed" if alive => {
                if before == Some("Running") {
                    "Running"
                } else {
                    "Pending"
                }
            }
            // a rule of a container may want another run of what has ended
            "Succeeded" | "Failed" if !deleted && !is_over(pod, observed) => "Running",
            // whoever counts a pod's end waits for one of these
            "Pending" | "Running" if ended && !is_static(pod) => "Failed",
            phase => phase,
        },
    };
    let over = matches!(old.phase.as_deref(), Some("Succeeded" | "Failed"));
    let refused = facts.refused || (over && old.container_statuses.as_ref().is_none_or(Vec::is_empty));
    if ended || (killed.is_some() && !refused) {
        terminate(&mut init, &mut main);
    }
    let sidecar = |name: &str| spec.init_containers.iter().flatten().any(|c| c.name == name && is_sidecar(c));
    let unready = |list: &[ContainerStatus]| -> Vec<String> {
        list.iter().filter(|s| !s.ready).map(|s| s.name.clone()).collect()
    };
    let done = matches!(phase, "Succeeded" | "Failed");
    // what ran before the pod began anew does not count
    let round = anew(pod, observed);
    let of_now = |name: &str| observed.newest(name).filter(|run| is_of(round, run));
    let began = |spec: &Spec| of_now(&spec.name).is_some_and(|c| matches!(c.run, Run::Running | Run::Exited));
    let main_began = spec.containers.iter().any(began);
    let uninitialized: Vec<String> = if main_began {
        Vec::new()
    } else {
        init.iter()
            .filter(|s| {
                let done = if sidecar(&s.name) { s.started == Some(true) } else { s.ready };
                !done || of_now(&s.name).is_none()
            })
            .map(|s| s.name.clone())
            .collect()
    };
    let mut not_ready = unready(&main);
    not_ready.extend(init.iter().filter(|s| sidecar(&s.name) && !s.ready).map(|s| s.name.clone()));

    let mut conditions: Vec<(&str, bool, Option<&str>, Option<String>)> = Vec::new();
    conditions.push((
        "PodReadyToStartContainers",
        observed.ready_sandbox().is_some_and(|s| !s.ips.is_empty() || spec.host_network == Some(true)),
        None,
        None,
    ));
    conditions.push(match uninitialized.is_empty() {
        true if phase == "Succeeded" => ("Initialized", true, Some("PodCompleted"), None),
        true => ("Initialized", true, None, None),
        false => (
            "Initialized",
            false,
            Some("ContainersNotInitialized"),
            Some(format!("containers with incomplete status: [{}]", uninitialized.join(" "))),
        ),
    });
    let readiness = match (phase, not_ready.is_empty()) {
        ("Succeeded", _) => (false, Some("PodCompleted"), None),
        ("Failed", _) => (false, Some("PodFailed"), None),
        (_, true) => (true, None, None),
        (_, false) => (
            false,
            Some("ContainersNotReady"),
            Some(format!("containers with unready status: [{}]", not_ready.join(" "))),
        ),
    };
    let closed: Vec<String> = spec
        .readiness_gates
        .iter()
        .flatten()
        .filter_map(|gate| {
            let kind = &gate.condition_type;
            match old.conditions.iter().flatten().find(|c| c.type_ == *kind) {
                None => {
                    Some(format!("corresponding condition of pod readiness gate {kind:?} does not exist."))
                }
                Some(c) if c.status != "True" => Some(format!(
                    "the status of pod readiness gate {kind:?} is not \"True\", but {}",
                    c.status
                )),
                Some(_) => None,
            }
        })
        .collect();
    conditions.push(if readiness.0 && !closed.is_empty() {
        ("Ready", false, Some("ReadinessGatesNotReady"), Some(closed.join(", ")))
    } else {
        ("Ready", readiness.0, readiness.1, readiness.2.clone())
    });
    conditions.push(("ContainersReady", readiness.0, readiness.1, readiness.2));
    if may_begin_anew(pod) {
        conditions.push(match phase {
            "Succeeded" => (ALL_RESTARTING, false, Some("PodCompleted"), None),
            "Failed" => (ALL_RESTARTING, false, Some("PodFailed"), None),
            _ if begins_anew(pod, observed) => {
                let text = "container exited with restart policy rule".to_owned();
                (ALL_RESTARTING, true, Some("RestartAllContainersStarted"), Some(text))
            }
            _ => (ALL_RESTARTING, false, None, None),
        });
    }
    if let Some((_, message)) = facts.killed.filter(|_| facts.disrupted) {
        conditions.push((DISRUPTION, true, Some(BY_KUBELET), Some(message.clone())));
    }
    if let Some((reason, message)) = &facts.resize.pending {
        conditions.push((RESIZE_PENDING, true, Some(reason), Some(message.clone())));
    }
    if let Some(failed) = &facts.resize.progress {
        let reason = failed.as_ref().map(|_| "Error");
        conditions.push((RESIZE_IN_PROGRESS, true, reason, failed.clone()));
    }
    let told: Vec<&str> = conditions.iter().map(|(kind, ..)| *kind).collect();
    let mut merged: Vec<PodCondition> = conditions
        .into_iter()
        .map(|(kind, value, reason, message)| {
            let status = if value { "True" } else { "False" };
            let known = old.conditions.iter().flatten().find(|c| c.type_ == kind);
            let since = known.filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
            PodCondition {
                type_: kind.to_owned(),
                status: status.to_owned(),
                reason: reason.map(str::to_owned),
                message,
                last_transition_time: since.or(Some(whole_second(facts.now))),
                observed_generation: pod.metadata.generation,
                ..PodCondition::default()
            }
        })
        .collect();
    let over = |c: &PodCondition| c.type_ == RESIZE_PENDING || c.type_ == RESIZE_IN_PROGRESS;
    // conditions of others (the scheduler, operators) stay
    merged.extend(
        old.conditions.iter().flatten().filter(|c| !told.contains(&c.type_.as_str()) && !over(c)).cloned(),
    );
    let ips: Vec<String> = if spec.host_network == Some(true) {
        facts.host_ips.to_vec()
    } else {
        observed.sandboxes.first().map(|s| s.ips.clone()).unwrap_or_default()
    };
    let ips =
        if ips.is_empty() { old.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect() } else { ips };
    PodStatus {
        phase: Some(phase.to_owned()),
        conditions: Some(merged),
        reason: killed.map(|k| k.0.clone()).or(old.reason.filter(|_| done)),
        message: killed.map(|k| k.1.clone()).or(old.message.filter(|_| done)),
        host_ip: facts.host_ips.first().cloned(),
        host_ips: Some(facts.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        pod_ip: ips.first().cloned(),
        pod_ips: (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect()),
        start_time: old.start_time.or(Some(whole_second(facts.now))),
        init_container_statuses: (!init.is_empty() && !refused).then_some(init),
        container_statuses: (!refused).then_some(main),
        ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
        allocated_resources: spec.resources.as_ref().and_then(|whole| whole.requests.clone()),
        resources: spec.resources.clone(),
        qos_class: Some(qos_class(pod).to_owned()),
        observed_generation: pod.metadata.generation,
        nominated_node_name: old.nominated_node_name,
        ..PodStatus::default()
    }
}

/// A resize waits for the node, or for the runtime.
pub(crate) const RESIZE_PENDING: &str = "PodResizePending";
pub(crate) const RESIZE_IN_PROGRESS: &str = "PodResizeInProgress";
/// All containers are ended because one of them said so, and begin again after that.
const ALL_RESTARTING: &str = "AllContainersRestarting";
/// The condition that says that the pod is ended for somebody else's sake, and who says so here.
const DISRUPTION: &str = "DisruptionTarget";
const BY_KUBELET: &str = "TerminationByKubelet";

/// Why an earlier kubelet began to evict the pod, where it did.
pub fn eviction_begun(pod: &Pod) -> Option<String> {
    let all = pod.status.as_ref()?.conditions.as_ref()?;
    let found = all.iter().find(|c| c.type_ == DISRUPTION && c.status == "True")?;
    (found.reason.as_deref() == Some(BY_KUBELET)).then(|| found.message.clone().unwrap_or_default())
}

fn whole_second(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn computed(pod: serde_json::Value, killed: bool, refused: bool) -> serde_json::Value {
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let killed = killed.then(|| ("Evicted".to_owned(), "why".to_owned()));
        let none = BTreeMap::new();
        let facts = Facts {
            runtime: "x",
            host_ips: &[],
            waiting: &Waiting::new(),
            ready: &none,
            started: &none,
            killed: killed.as_ref(),
            resize: &Resize::default(),
            disrupted: false,
            refused,
            holds: false,
            devices: &BTreeMap::new(),
            now: Timestamp::UNIX_EPOCH,
        };
        serde_json::to_value(compute(&pod, &Observed::default(), &facts)).unwrap()
    }

    #[test]
    fn every_container_of_a_pod_that_is_over_is_and_what_was_told_stays() {
        let spec = serde_json::json!({"initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{"name": "a"}]});
        let fresh = serde_json::json!({"metadata": {"name": "p"}, "spec": spec});
        let reason = |status: &serde_json::Value, list: &str, at: usize| {
            status[list][at]["state"]["terminated"]["reason"].as_str().unwrap_or("none").to_owned()
        };
        let evicted = computed(fresh.clone(), true, false);
        let found = ["initContainerStatuses", "containerStatuses"].map(|list| reason(&evicted, list, 0));
        assert_eq!(found, ["ContainerStatusUnknown", "none"], "the main containers' turn did not come");
        assert_eq!(reason(&evicted, "initContainerStatuses", 1), "none");
        let refused = computed(fresh.clone(), true, true);
        assert!(refused["containerStatuses"].is_null() && refused["phase"] == "Failed");
        let mut over = fresh.clone();
        let ended = serde_json::json!({"name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 3,
            "state": {"terminated": {"exitCode": 7, "reason": "Error"}}});
        over["status"] = serde_json::json!({"phase": "Failed", "containerStatuses": [ended]});
        let status = computed(over, false, false);
        assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["exitCode"], 7);
        let mut lost = fresh;
        let ran = serde_json::json!({"name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 3,
            "containerID": "x://1", "state": {"running": {}}});
        lost["status"] = serde_json::json!({"phase": "Running", "containerStatuses": [ran]});
        let status = &computed(lost, false, false)["containerStatuses"][0];
        assert_eq!(status["lastState"]["terminated"]["exitCode"], 137);
        assert_eq!(status["restartCount"], 3);
    }

    #[test]
    fn the_last_words_of_all_containers_share_twelve_kibibytes() {
        let ended = |words: String| ContainerStatus {
            state: Some(ContainerState {
                terminated: Some(ContainerStateTerminated { message: Some(words), ..Default::default() }),
                ..ContainerState::default()
            }),
            ..ContainerStatus::default()
        };
        let (mut init, mut main) = (vec![ended("short".to_owned())], Vec::new());
        main.extend([ended("é".repeat(4000)), ended("x".repeat(4096))]);
        shorten([&mut init, &mut main, &mut Vec::new()]);
        let length =
            |s: &ContainerStatus| s.state.clone().unwrap().terminated.unwrap().message.unwrap().len();
        assert_eq!([&init[0], &main[0], &main[1]].map(length), [5, 4096, 4096]);
        main.push(ended("y".repeat(4096)));
        shorten([&mut init, &mut main, &mut Vec::new()]);
        assert_eq!(main.iter().map(length).collect::<Vec<_>>(), [3072, 3072, 3072]);
        main.truncate(1);
        main[0] = ended(format!("x{}", "é".repeat(4000)));
        shorten([&mut Vec::new(), &mut main, &mut vec![ContainerStatus::default(); 2]]);
        assert_eq!(length(&main[0]), 4095, "no character is cut");
    }
}
