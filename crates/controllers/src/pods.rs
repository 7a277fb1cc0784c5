//! What a pod's status says: ready, available, active, terminating; and how a pod is made to leave.
use client::{Client, DeleteOptions, Error, Patch};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodCondition};
use serde_json::json;

use crate::ownership::{name, namespace};

/// The phase, empty when the kubelet has not reported yet.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// The condition of type `kind`.
pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

/// Whether the Ready condition is True.
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// When the pod became ready, if it is.
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    condition(pod, "Ready").filter(|c| c.status == "True")?.last_transition_time.as_ref().map(|t| t.0)
}

/// How long until a ready pod counts as available; zero when it does already, `None` when it is not ready.
pub fn until_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Option<SignedDuration> {
    if !is_ready(pod) {
        return None;
    }
    if min_ready_seconds <= 0 {
        return Some(SignedDuration::ZERO);
    }
    let since = ready_since(pod)?;
    let left = SignedDuration::from_secs(i64::from(min_ready_seconds)) - now.duration_since(since);
    Some(left.max(SignedDuration::ZERO))
}

/// Whether the pod ended: Succeeded or Failed.
pub fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether the pod counts towards replicas: not ended and not being deleted.
pub fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// Whether the pod's deletion was asked for.
pub fn is_deleting(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Whether the pod is on its way out but has not ended yet.
pub fn is_terminating(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_some()
}

/// How often the container that was restarted most was, and of the sidecars the one that was: of two pods the one with more
/// is the smaller loss.
pub fn restarts(pod: &Pod) -> (i32, i32) {
    let (spec, status) = (pod.spec.as_ref(), pod.status.as_ref());
    let is_sidecar = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
    let sidecars: Vec<&str> = spec
        .iter()
        .flat_map(|s| s.init_containers.iter().flatten())
        .filter(is_sidecar)
        .map(|c| c.name.as_str())
        .collect();
    let count = |c: &ContainerStatus| c.restart_count;
    let regular = status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    let init = status.iter().flat_map(|s| s.init_container_statuses.iter().flatten());
    let init = init.filter(|c| sidecars.contains(&c.name.as_str()));
    (regular.map(count).max().unwrap_or(0), init.map(count).max().unwrap_or(0))
}

/// The node the pod is bound to, empty when none.
pub fn node_name(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

/// Says on the pod that it is disrupted (`DisruptionTarget`), so that whoever counts its end knows why, and deletes it.
/// One that is gone already is as good.
pub async fn disrupt(
    client: &Client,
    pod: &Pod,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Result<(), Error> {
    let (ns, name) = (namespace(&pod.metadata), name(&pod.metadata));
    let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message,
        "observedGeneration": pod.metadata.generation, "lastTransitionTime": api::meta::format_time(now)});
    let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [condition]}});
    let options = DeleteOptions { uid: pod.metadata.uid.clone(), ..DeleteOptions::default() };
    let result = match client.patch_status::<Pod>(ns, name, &Patch::Strategic(patch)).await {
        Ok(_) => client.delete::<Pod>(ns, name, &options).await,
        Err(error) => Err(error),
    };
    match result {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}
