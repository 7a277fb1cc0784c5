//! Conditions of a job and the rules by which they replace each other.
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

pub(super) const COMPLETE: &str = "Complete";
pub(super) const FAILED: &str = "Failed";
pub(super) const FAILURE_TARGET: &str = "FailureTarget";
pub(super) const SUCCESS_CRITERIA_MET: &str = "SuccessCriteriaMet";
pub(super) const SUSPENDED: &str = "Suspended";

/// The job's condition of that type, if it is True.
pub(super) fn is_true<'a>(job: &'a Job, kind: &str) -> Option<&'a JobCondition> {
    let list = job.status.as_ref()?.conditions.as_ref()?;
    list.iter().find(|c| c.type_ == kind && c.status == "True")
}

/// Puts the condition in place of its type; whether that changed something. One that never was is not made False.
pub(super) fn set(
    list: &mut Vec<JobCondition>,
    kind: &str,
    status: bool,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> bool {
    let new = JobCondition {
        type_: kind.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    };
    match list.iter_mut().find(|c| c.type_ == kind) {
        Some(old) if old.status == new.status && old.reason == new.reason && old.message == new.message => {
            false
        }
        Some(old) => {
            *old = new;
            true
        }
        None if status => {
            list.push(new);
            true
        }
        None => false,
    }
}
