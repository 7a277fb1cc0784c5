//! A pod's conditions, by its containers' states.
//!
//! Rule: Kubernetes documentation, "Pod Lifecycle" (pod conditions, readiness gates), "Pod disruption conditions"; KEP-1287, KEP-5532.

use k8s_openapi::api::core::v1::{Container as Spec, ContainerStatus, Pod, PodCondition};

use super::{Facts, whole_second};
use crate::observed::{Observed, Run};
use crate::plan::{anew, begins_anew, is_of, is_sidecar, may_begin_anew};

/// A resize waits for the node, or for the runtime.
pub(crate) const RESIZE_PENDING: &str = "PodResizePending";
pub(crate) const RESIZE_IN_PROGRESS: &str = "PodResizeInProgress";
/// All containers are ended because one of them said so, and begin again after that.
const ALL_RESTARTING: &str = "AllContainersRestarting";
/// The condition that says that the pod is ended for somebody else's sake, and who says so here.
const DISRUPTION: &str = "DisruptionTarget";
const BY_KUBELET: &str = "TerminationByKubelet";

/// A condition without its times: type, whether it holds, reason and message.
type Condition<'a> = (&'a str, bool, Option<&'a str>, Option<String>);

/// Why an earlier kubelet began to evict the pod, where it did.
pub fn eviction_begun(pod: &Pod) -> Option<String> {
    let all = pod.status.as_ref()?.conditions.as_ref()?;
    let found = all.iter().find(|c| c.type_ == DISRUPTION && c.status == "True")?;
    (found.reason.as_deref() == Some(BY_KUBELET)).then(|| found.message.clone().unwrap_or_default())
}

/// The conditions of a pod in that phase. Those of others (the scheduler, operators) stay.
pub(super) fn of(
    pod: &Pod,
    observed: &Observed,
    facts: &Facts<'_>,
    phase: &str,
    (init, main): (&[ContainerStatus], &[ContainerStatus]),
) -> Vec<PodCondition> {
    let host_network = pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
    let connected = observed.ready_sandbox().is_some_and(|s| !s.ips.is_empty() || host_network);
    let ready = containers_ready(pod, phase, init, main);
    let closed = if ready.0 { closed_gates(pod) } else { Vec::new() };
    let mut all: Vec<Condition<'_>> = vec![
        ("PodReadyToStartContainers", connected, None, None),
        initialized(pod, observed, phase, init),
        match closed.is_empty() {
            true => ("Ready", ready.0, ready.1, ready.2.clone()),
            false => ("Ready", false, Some("ReadinessGatesNotReady"), Some(closed.join(", "))),
        },
        ("ContainersReady", ready.0, ready.1, ready.2),
        // whoever bound it: a pod may come with its node, or be the node's own
        ("PodScheduled", true, None, None),
    ];
    if may_begin_anew(pod) {
        all.push(match phase {
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
        all.push((DISRUPTION, true, Some(BY_KUBELET), Some(message.clone())));
    }
    if let Some((reason, message)) = &facts.resize.pending {
        all.push((RESIZE_PENDING, true, Some(reason), Some(message.clone())));
    }
    if let Some(failed) = &facts.resize.progress {
        all.push((RESIZE_IN_PROGRESS, true, failed.as_ref().map(|_| "Error"), failed.clone()));
    }
    merged(pod, facts, all)
}

fn merged(pod: &Pod, facts: &Facts<'_>, ours: Vec<Condition<'_>>) -> Vec<PodCondition> {
    let old = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let told: Vec<&str> = ours.iter().map(|(kind, ..)| *kind).collect();
    let mut all: Vec<PodCondition> = ours
        .into_iter()
        .map(|(kind, value, reason, message)| {
            let status = if value { "True" } else { "False" };
            let known = old.iter().find(|c| c.type_ == kind);
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
    all.extend(old.iter().filter(|c| !told.contains(&c.type_.as_str()) && !over(c)).cloned());
    all
}

fn initialized<'a>(pod: &Pod, observed: &Observed, phase: &str, init: &[ContainerStatus]) -> Condition<'a> {
    // what ran before the pod began anew does not count
    let round = anew(pod, observed);
    let of_now = |name: &str| observed.newest(name).filter(|run| is_of(round, run));
    let began = |spec: &Spec| of_now(&spec.name).is_some_and(|c| matches!(c.run, Run::Running | Run::Exited));
    let done = |s: &ContainerStatus| {
        let done = if is_side(pod, &s.name) { s.started == Some(true) } else { s.ready };
        done && (round.is_none() || of_now(&s.name).is_some())
    };
    let missing: Vec<&str> = init.iter().filter(|s| !done(s)).map(|s| s.name.as_str()).collect();
    match pod.spec.iter().flat_map(|spec| &spec.containers).any(began) || missing.is_empty() {
        true => ("Initialized", true, (phase == "Succeeded").then_some("PodCompleted"), None),
        false => {
            let text = format!("containers with incomplete status: [{}]", missing.join(" "));
            ("Initialized", false, Some("ContainersNotInitialized"), Some(text))
        }
    }
}

/// Whether all containers that stay are ready, and what says so.
fn containers_ready(
    pod: &Pod,
    phase: &str,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> (bool, Option<&'static str>, Option<String>) {
    match phase {
        "Succeeded" => return (false, Some("PodCompleted"), None),
        "Failed" => return (false, Some("PodFailed"), None),
        _ => {}
    }
    let lasting = init.iter().filter(|s| is_side(pod, &s.name)).map(|s| &s.name);
    let own = pod.spec.iter().flat_map(|spec| &spec.containers).map(|spec| &spec.name);
    let is_ready =
        |name: &&String| init.iter().chain(main).any(|status| status.name == **name && status.ready);
    let missing: Vec<&str> = lasting.chain(own).filter(|name| !is_ready(name)).map(String::as_str).collect();
    if missing.is_empty() {
        return (true, None, None);
    }
    let text = format!("containers with unready status: [{}]", missing.join(" "));
    (false, Some("ContainersNotReady"), Some(text))
}

/// What keeps a pod whose containers are ready from being so.
fn closed_gates(pod: &Pod) -> Vec<String> {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let gates = pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
    let closed = gates.filter_map(|gate| {
        let kind = &gate.condition_type;
        match conditions.iter().find(|c| c.type_ == *kind) {
            None => Some(format!("corresponding condition of pod readiness gate {kind:?} does not exist.")),
            Some(c) if c.status != "True" => {
                Some(format!("the status of pod readiness gate {kind:?} is not \"True\", but {}", c.status))
            }
            Some(_) => None,
        }
    });
    closed.collect()
}

fn is_side(pod: &Pod, name: &str) -> bool {
    let init = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    init.into_iter().any(|spec| spec.name == name && is_sidecar(spec))
}
