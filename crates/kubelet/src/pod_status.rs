//! The status of a pod, from the pod, what the runtime says, and what probes found: a pure function.
//!
//! Rule: Kubernetes documentation, "Pod Lifecycle" (phases, conditions, container states).

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container as Spec, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, ContainerUser, HostIP, LinuxContainerUser, Pod, PodIP, PodStatus,
    ResourceRequirements, ResourceStatus, VolumeMount, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::observed::{Container, Observed, Run};
use crate::plan::{LOST, is_over, is_sidecar, restarts};
use crate::resources::{all_requests, qos_class};
use crate::static_pods::is_static;
use crate::worker::resize::Resize;
pub use conditions::eviction_begun;
pub(crate) use conditions::{RESIZE_IN_PROGRESS, RESIZE_PENDING};

mod conditions;
mod phase;

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
            exit_code: LOST,
            reason: Some("ContainerStatusUnknown".to_owned()),
            message: Some(message.to_owned()),
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    }
}

/// What is said of a container that ran, as was told, and of which the runtime knows nothing.
const GONE: &str =
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
    let plain_init = init && !is_sidecar(spec);
    if newest.is_none() && plain_init && initialized(pod, observed) {
        return told.filter(|told| is_terminated(told)).cloned().unwrap_or_else(|| succeeded(spec, told));
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
        resources: newest.and_then(|_| has(spec, pod, facts)),
        allocated_resources: newest.and_then(|_| spec.resources.as_ref()?.requests.clone()),
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
        status.last_state = if lost { Some(unknown(GONE)) } else { last };
    }
    let deleted = pod.metadata.deletion_timestamp.is_some();
    let state = match newest {
        Some(c) if c.run == Run::Running => {
            let started = facts.started.get(&c.id).copied().unwrap_or(spec.startup_probe.is_none());
            status.started = Some(started);
            status.ready = !plain_init
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
                status.ready = plain_init && c.exit_code == 0;
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

/// Whether a main container was made: init containers have succeeded before.
fn initialized(pod: &Pod, observed: &Observed) -> bool {
    let mut main = pod.spec.iter().flat_map(|spec| &spec.containers);
    main.any(|spec| observed.newest(&spec.name).is_some())
}

fn is_terminated(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|state| state.terminated.is_some())
}

/// An init container that the runtime has forgotten, of a pod whose main containers had their turn.
fn succeeded(spec: &Spec, told: Option<&ContainerStatus>) -> ContainerStatus {
    let message = "Unable to get init container status from container runtime and pod has been initialized, treat it as \
                   exited normally";
    ContainerStatus {
        name: spec.name.clone(),
        image: spec.image.clone().unwrap_or_default(),
        restart_count: told.map_or(0, |told| told.restart_count),
        ready: true,
        started: Some(false),
        state: Some(ContainerState {
            terminated: Some(ContainerStateTerminated {
                reason: Some("Completed".to_owned()),
                message: Some(message.to_owned()),
                ..ContainerStateTerminated::default()
            }),
            ..ContainerState::default()
        }),
        ..ContainerStatus::default()
    }
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

/// The status of a pod that was not let in: why, and nothing of how it is.
fn of_refused(pod: &Pod, old: PodStatus, why: Option<&(String, String)>, now: Timestamp) -> PodStatus {
    PodStatus {
        phase: Some("Failed".to_owned()),
        reason: why.map(|why| why.0.clone()).or(old.reason),
        message: why.map(|why| why.1.clone()).or(old.message),
        qos_class: Some(qos_class(pod).to_owned()),
        observed_generation: pod.metadata.generation,
        start_time: old.start_time.or(Some(whole_second(now))),
        conditions: old.conditions,
        ..PodStatus::default()
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
        (None, before) => match phase::of(pod, &init, &main, deleted && !alive) {
            "Succeeded" | "Failed" if alive => {
                if before == Some("Running") {
                    "Running"
                } else {
                    "Pending"
                }
            }
            // the pod begins anew: what ended before does not count
            "Succeeded" | "Failed" if !deleted && !is_over(pod, observed) => "Running",
            // whoever counts a pod's end waits for one of these
            "Pending" | "Running" if ended && !is_static(pod) => "Failed",
            phase => phase,
        },
    };
    let over = matches!(old.phase.as_deref(), Some("Succeeded" | "Failed"));
    let refused = facts.refused || (over && old.container_statuses.as_ref().is_none_or(Vec::is_empty));
    if refused && phase == "Failed" {
        return of_refused(pod, old, killed, facts.now);
    }
    let lost = phase == "Failed" && observed.containers.is_empty();
    if ended || killed.is_some() || lost {
        terminate(&mut init, &mut main);
    }
    let done = matches!(phase, "Succeeded" | "Failed");
    let conditions = conditions::of(pod, observed, facts, phase, (&init, &main));
    // clients find them in this order
    main.sort_by(|one, other| one.name.cmp(&other.name));
    ephemeral.sort_by(|one, other| one.name.cmp(&other.name));
    let ips: Vec<String> = if spec.host_network == Some(true) {
        facts.host_ips.to_vec()
    } else {
        observed.sandboxes.first().map(|s| s.ips.clone()).unwrap_or_default()
    };
    let ips =
        if ips.is_empty() { old.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect() } else { ips };
    PodStatus {
        phase: Some(phase.to_owned()),
        conditions: Some(conditions),
        reason: killed.map(|k| k.0.clone()).or(old.reason.filter(|_| done)),
        message: killed.map(|k| k.1.clone()).or(old.message.filter(|_| done)),
        host_ip: facts.host_ips.first().cloned(),
        host_ips: Some(facts.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        pod_ip: ips.first().cloned(),
        pod_ips: (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect()),
        start_time: old.start_time.or(Some(whole_second(facts.now))),
        init_container_statuses: (!init.is_empty()).then_some(init),
        container_statuses: Some(main),
        ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
        allocated_resources: Some(all_requests(pod)).filter(|amounts| !amounts.is_empty()),
        resources: spec.resources.clone(),
        qos_class: Some(qos_class(pod).to_owned()),
        observed_generation: pod.metadata.generation,
        nominated_node_name: old.nominated_node_name,
        ..PodStatus::default()
    }
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
        assert!(
            refused["conditions"].is_null() && refused["hostIP"].is_null(),
            "nothing of it was looked at"
        );
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
    fn a_pod_that_came_with_its_node_counts_as_scheduled_and_containers_stand_by_name() {
        let pod = serde_json::json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "b"}, {"name": "a"}]}});
        let status = computed(pod, false, false);
        let found = status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "PodScheduled");
        assert_eq!(found.unwrap()["status"], "True");
        let ready = status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "ContainersReady");
        assert_eq!(ready.unwrap()["message"], "containers with unready status: [b a]");
        let names = [0, 1].map(|at| status["containerStatuses"][at]["name"].as_str().unwrap_or_default());
        assert_eq!(names, ["a", "b"]);
        assert!(status["containerStatuses"][0]["resources"].is_null(), "there is no container that has any");
    }

    #[test]
    fn a_container_that_runs_once_has_failed_when_the_runtime_forgot_it() {
        let lost = |policy: &str| {
            let ran = serde_json::json!({"name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "containerID": "x://1", "state": {"running": {}}});
            let pod = serde_json::json!({"metadata": {"name": "p"}, "spec": {"restartPolicy": policy,
                "containers": [{"name": "a"}]}, "status": {"phase": "Running", "containerStatuses": [ran]}});
            computed(pod, false, false)
        };
        let never = lost("Never");
        assert_eq!(never["phase"], "Failed");
        assert_eq!(never["containerStatuses"][0]["state"]["terminated"]["exitCode"], 137);
        assert_eq!(lost("OnFailure")["phase"], "Running", "it runs again");
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
