//! Conditions of a deployment and the rules by which they replace each other.
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DeploymentCondition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

pub(super) const AVAILABLE: &str = "Available";
pub(super) const PROGRESSING: &str = "Progressing";
pub(super) const REPLICA_FAILURE: &str = "ReplicaFailure";

/// Reasons of the Progressing condition, as the API documents them.
pub(super) const NEW_REPLICA_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
pub(super) const NEW_REPLICA_SET_CREATED: &str = "NewReplicaSetCreated";
pub(super) const FOUND_NEW_REPLICA_SET: &str = "FoundNewReplicaSet";
pub(super) const REPLICA_SET_UPDATED: &str = "ReplicaSetUpdated";
pub(super) const PROGRESS_DEADLINE_EXCEEDED: &str = "ProgressDeadlineExceeded";
pub(super) const FAILED_CREATE: &str = "ReplicaSetCreateError";
pub(super) const DEPLOYMENT_PAUSED: &str = "DeploymentPaused";
pub(super) const DEPLOYMENT_RESUMED: &str = "DeploymentResumed";

/// A new condition whose times are `now`.
pub(super) fn condition(
    kind: &str,
    status: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) -> DeploymentCondition {
    DeploymentCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_transition_time: Some(Time(now)),
        last_update_time: Some(Time(now)),
    }
}

/// The condition of that type.
pub(super) fn find<'a>(list: &'a [DeploymentCondition], kind: &str) -> Option<&'a DeploymentCondition> {
    list.iter().find(|c| c.type_ == kind)
}

/// Puts `new` in place of its type. Same status and reason: nothing changes. Same status: the transition time stays.
pub(super) fn set(list: &mut Vec<DeploymentCondition>, mut new: DeploymentCondition) {
    if let Some(old) = find(list, &new.type_) {
        if old.status == new.status && old.reason == new.reason {
            return;
        }
        if old.status == new.status {
            new.last_transition_time = old.last_transition_time.clone();
        }
    }
    remove(list, &new.type_.clone());
    list.push(new);
}

/// Takes the condition of that type away.
pub(super) fn remove(list: &mut Vec<DeploymentCondition>, kind: &str) {
    list.retain(|c| c.type_ != kind);
}
