//! What the kubelet of a hollow node says about a pod, as a pure function. Nothing runs: containers are there at once, are
//! ready, and stay; those of a Job's pod succeed at once. Annotations of the pod say otherwise.
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodStatus};
use serde_json::{Value, json};

/// How long the containers run before they end, as Go writes durations: `90s`. `never` where a Job's pod is to stay.
pub const ENDS_AFTER: &str = "simulate.navarch.dev/ends-after";
/// What containers that end exit with; 0 where it is not said.
pub const EXIT_CODE: &str = "simulate.navarch.dev/exit-code";
/// `"false"`: the containers run and are never ready.
pub const READY: &str = "simulate.navarch.dev/ready";
/// How long containers take until they run and are ready.
pub const STARTS_AFTER: &str = "simulate.navarch.dev/starts-after";
/// `"true"`: the pod does not end when it is deleted.
pub const STUCK: &str = "simulate.navarch.dev/stuck";

/// What is to be done for a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Its status is now this.
    Report(Value),
    /// It is deleted and its containers are gone.
    Remove,
    /// Nothing, until so much later.
    Wait(Duration),
    /// Nothing.
    Rest,
}

/// How long containers wait before a restart: the kubelet's back-off, from 10 s to 5 min.
fn back_off(restarts: i32) -> SignedDuration {
    let doublings = u32::try_from(restarts.saturating_sub(1)).unwrap_or(0).min(5);
    SignedDuration::from_secs((10_i64 << doublings).min(300))
}

fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    Some(pod.metadata.annotations.as_ref()?.get(key)?.as_str())
}

fn duration(text: &str) -> Option<SignedDuration> {
    api::duration::length(text).and_then(|d| SignedDuration::try_from(d).ok())
}

/// How long the pod's containers run; `None`: for ever.
fn lifetime(pod: &Pod) -> Option<SignedDuration> {
    if let Some(text) = annotation(pod, ENDS_AFTER) {
        return duration(text);
    }
    let of_job = |r: &k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference| {
        r.controller == Some(true) && r.kind == "Job"
    };
    let owners = pod.metadata.owner_references.iter().flatten();
    owners.into_iter().any(of_job).then_some(SignedDuration::ZERO)
}

fn containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().map_or(&[], |s| &s.containers)
}

fn statuses(status: &PodStatus) -> &[ContainerStatus] {
    status.container_statuses.as_deref().unwrap_or_default()
}

/// When the containers that run now were started.
fn started(status: &PodStatus) -> Option<Timestamp> {
    let running = |c: &ContainerStatus| c.state.as_ref()?.running.as_ref()?.started_at.as_ref().map(|t| t.0);
    statuses(status).iter().filter_map(running).max()
}

/// When the containers that do not run any more ended.
fn finished(status: &PodStatus) -> Option<Timestamp> {
    let ended =
        |c: &ContainerStatus| c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref().map(|t| t.0);
    statuses(status).iter().filter_map(ended).max()
}

fn restarts(status: &PodStatus) -> i32 {
    statuses(status).iter().map(|c| c.restart_count).max().unwrap_or(0)
}

/// Where a pod is, for its status.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The node's address.
    pub host: &'a str,
    /// The pod's, should it have none yet.
    pub pod: &'a str,
}

/// The next step for a pod that is bound to a node that is alive.
pub fn plan(pod: &Pod, place: Place<'_>, now: Timestamp) -> Step {
    let empty = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&empty);
    let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if pod.metadata.deletion_timestamp.is_some() {
        return if annotation(pod, STUCK) == Some("true") { Step::Rest } else { Step::Remove };
    }
    if over {
        return Step::Rest;
    }
    let code = annotation(pod, EXIT_CODE).and_then(|c| c.parse().ok()).unwrap_or(0);
    if let Some(began) = started(status) {
        let Some(lifetime) = lifetime(pod) else { return refreshed(pod, status) };
        return match (began + lifetime).duration_since(now) {
            left if left > SignedDuration::ZERO => Step::Wait(left.unsigned_abs()),
            _ => Step::Report(ended(pod, status, began, code, now)),
        };
    }
    if let Some(at) = finished(status) {
        // Only what is started again comes here: of others the phase says that they are over.
        let due = at + back_off(restarts(status) + 1);
        return match due.duration_since(now) {
            left if left > SignedDuration::ZERO => Step::Wait(left.unsigned_abs()),
            _ => Step::Report(running(pod, place, now, restarts(status) + 1)),
        };
    }
    let wait = annotation(pod, STARTS_AFTER).and_then(duration).unwrap_or_default();
    let scheduled = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled");
    let scheduled = scheduled.and_then(|c| c.last_transition_time.as_ref()).map_or(now, |t| t.0);
    match (scheduled + wait).duration_since(now) {
        left if !wait.is_zero() && left > SignedDuration::ZERO => Step::Wait(left.unsigned_abs()),
        _ => Step::Report(running(pod, place, now, 0)),
    }
}

/// Whether the pod is ready with these containers: its readiness gates count, too.
fn is_ready(pod: &Pod, containers: bool) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let holds = |kind: &str| conditions.iter().any(|c| c.type_ == kind && c.status == "True");
    let mut gates = pod.spec.iter().flat_map(|s| s.readiness_gates.iter().flatten());
    containers && gates.all(|gate| holds(&gate.condition_type))
}

fn condition(kind: &str, is_so: bool, now: Timestamp, reason: Option<&str>) -> Value {
    json!({"type": kind, "status": if is_so { "True" } else { "False" }, "lastTransitionTime": api::meta::format_time(now),
        "reason": reason})
}

/// A pod that runs: only a readiness gate can change anything.
fn refreshed(pod: &Pod, status: &PodStatus) -> Step {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let of = |kind: &str| conditions.iter().find(|c| c.type_ == kind);
    let containers = of("ContainersReady").is_some_and(|c| c.status == "True");
    let ready = is_ready(pod, containers);
    match of("Ready") {
        Some(now)
            if (now.status == "True") == ready
                || pod.spec.as_ref().is_none_or(|s| s.readiness_gates.is_none()) =>
        {
            Step::Rest
        }
        _ => Step::Report(json!({"conditions": [condition("Ready", ready, Timestamp::now(), None)]})),
    }
}

fn running(pod: &Pod, place: Place<'_>, now: Timestamp, restarts: i32) -> Value {
    let at = api::meta::format_time(now);
    let ready = annotation(pod, READY) != Some("false");
    let container = |c: &Container, state: Value, ready: bool| {
        json!({"name": c.name, "image": c.image.as_deref().unwrap_or_default(),
            "imageID": c.image.as_deref().unwrap_or_default(), "containerID": format!("hollow://{}-{restarts}", c.name),
            "ready": ready, "started": true, "restartCount": restarts, "state": state})
    };
    let up = json!({"running": {"startedAt": at}});
    let done =
        json!({"terminated": {"exitCode": 0, "reason": "Completed", "startedAt": at, "finishedAt": at}});
    let init = pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten()).map(|c| {
        let is_sidecar = c.restart_policy.as_deref() == Some("Always");
        container(c, if is_sidecar { up.clone() } else { done.clone() }, true)
    });
    let of_host = pod.spec.as_ref().and_then(|s| s.host_network) == Some(true);
    let known = pod.status.as_ref().and_then(|s| s.pod_ip.as_deref()).filter(|ip| !ip.is_empty());
    let ip = if of_host { place.host } else { known.unwrap_or(place.pod) };
    let init: Vec<Value> = init.collect();
    let mut status = json!({"phase": "Running", "hostIP": place.host, "hostIPs": [{"ip": place.host}], "podIP": ip,
        "podIPs": [{"ip": ip}], "startTime": at,
        "conditions": [condition("PodReadyToStartContainers", true, now, None), condition("Initialized", true, now, None),
            condition("Ready", is_ready(pod, ready), now, None), condition("ContainersReady", ready, now, None)],
        "containerStatuses": containers(pod).iter().map(|c| container(c, up.clone(), ready)).collect::<Vec<_>>()});
    if !init.is_empty() {
        status["initContainerStatuses"] = json!(init);
    }
    if let Some(start) = pod.status.as_ref().and_then(|s| s.start_time.as_ref()) {
        status["startTime"] = json!(start);
    }
    status
}

fn ended(pod: &Pod, status: &PodStatus, began: Timestamp, code: i32, now: Timestamp) -> Value {
    let policy = pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always");
    let again = policy == "Always" || policy == "OnFailure" && code != 0;
    let reason = if code == 0 { "Completed" } else { "Error" };
    let state = json!({"running": null, "terminated": {"exitCode": code, "reason": reason,
        "startedAt": api::meta::format_time(began), "finishedAt": api::meta::format_time(now)}});
    let containers: Vec<Value> = statuses(status)
        .iter()
        .map(|c| {
            json!({"name": c.name, "image": c.image, "imageID": c.image_id, "containerID": c.container_id, "ready": false,
                "started": false, "restartCount": c.restart_count, "state": state})
        })
        .collect();
    let phase = match (again, code) {
        (true, _) => "Running",
        (false, 0) => "Succeeded",
        (false, _) => "Failed",
    };
    let why = (!again && code == 0).then_some("PodCompleted");
    json!({"phase": phase, "containerStatuses": containers,
        "conditions": [condition("Ready", false, now, why), condition("ContainersReady", false, now, why)]})
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Place<'static> = Place { host: "198.18.0.1", pod: "100.64.0.1" };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn pod(annotations: Value, policy: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "annotations": annotations},
            "spec": {"nodeName": "n", "restartPolicy": policy, "containers": [{"name": "c", "image": "i"}]}}))
        .unwrap()
    }

    /// Carries out what is planned, as the API server would.
    fn reported(pod: &mut Pod, now: Timestamp) -> Value {
        let Step::Report(status) = plan(pod, HOST, now) else { panic!("{:?}", plan(pod, HOST, now)) };
        pod.status = Some(serde_json::from_value(status.clone()).unwrap());
        status
    }

    #[test]
    fn a_pod_runs_and_is_ready_and_stays() {
        let mut pod = pod(json!({}), "Always");
        let status = reported(&mut pod, at(0));
        assert_eq!((&status["phase"], &status["podIP"]), (&json!("Running"), &json!("100.64.0.1")));
        assert_eq!(status["conditions"][2]["status"], "True");
        assert_eq!(plan(&pod, HOST, at(1_000_000)), Step::Rest);
        pod.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(2_000_000)));
        assert_eq!(plan(&pod, HOST, at(2_000_000)), Step::Remove);
    }

    #[test]
    fn a_pod_that_fails_is_started_again_after_a_back_off_as_its_policy_says() {
        let fails = json!({ENDS_AFTER: "5s", EXIT_CODE: "3"});
        let mut once = pod(fails.clone(), "Never");
        reported(&mut once, at(0));
        assert_eq!(plan(&once, HOST, at(2)), Step::Wait(Duration::from_secs(3)));
        let status = reported(&mut once, at(5));
        assert_eq!(status["phase"], "Failed");
        assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["exitCode"], 3);
        assert_eq!(plan(&once, HOST, at(100)), Step::Rest);

        let mut again = pod(fails, "OnFailure");
        reported(&mut again, at(0));
        assert_eq!(reported(&mut again, at(5))["phase"], "Running");
        assert_eq!(plan(&again, HOST, at(6)), Step::Wait(Duration::from_secs(9)));
        assert_eq!(reported(&mut again, at(15))["containerStatuses"][0]["restartCount"], 1);
        reported(&mut again, at(20));
        assert_eq!(plan(&again, HOST, at(20)), Step::Wait(Duration::from_secs(20)));
    }

    #[test]
    fn a_jobs_pod_succeeds_at_once_unless_it_says_otherwise() {
        let owner =
            json!([{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "u", "controller": true}]);
        let mut done = pod(json!({}), "Never");
        done.metadata.owner_references = serde_json::from_value(owner.clone()).unwrap();
        reported(&mut done, at(0));
        assert_eq!(reported(&mut done, at(0))["phase"], "Succeeded");
        let mut stays = pod(json!({ENDS_AFTER: "never"}), "Never");
        stays.metadata.owner_references = serde_json::from_value(owner).unwrap();
        reported(&mut stays, at(0));
        assert_eq!(plan(&stays, HOST, at(99)), Step::Rest);
    }

    #[test]
    fn a_readiness_gate_is_waited_for() {
        let mut pod = pod(json!({}), "Always");
        pod.spec.as_mut().unwrap().readiness_gates =
            serde_json::from_value(json!([{"conditionType": "example.com/gate"}])).unwrap();
        let status = reported(&mut pod, at(0));
        assert_eq!(
            (&status["conditions"][2]["status"], &status["conditions"][3]["status"]),
            (&json!("False"), &json!("True"))
        );
        assert_eq!(plan(&pod, HOST, at(1)), Step::Rest);
        let gate = serde_json::from_value(json!({"type": "example.com/gate", "status": "True"})).unwrap();
        pod.status.as_mut().unwrap().conditions.as_mut().unwrap().push(gate);
        assert!(matches!(plan(&pod, HOST, at(1)), Step::Report(_)));
    }
}
