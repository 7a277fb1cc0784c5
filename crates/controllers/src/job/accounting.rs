//! How ended pods get into a job's counters, each exactly once: first their uids are written to the status
//! (`uncountedTerminatedPods`; of an indexed job the index says it), then the pods lose their finalizer, then the uids become
//! numbers. Whoever dies between two of these steps leaves enough behind to go on.
//!
//! Source: KEP-2307, "Job tracking without lingering Pods".
use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::JobStatus;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::conditions::{self, COMPLETE, FAILED, FAILURE_TARGET, SUCCESS_CRITERIA_MET};
use super::indexes::Indexes;
use super::plan::{Ending, Pass, has_failed, is_indexed};
use super::policy::Verdict;
use crate::ownership::uid;
use crate::pods;

/// At most so many uids stand in the status, which bounds its size.
const MOST_UNCOUNTED: usize = 500;

/// Pods that lose their finalizer once the status is written.
pub(super) struct Collected {
    pub(super) release: Vec<Arc<Pod>>,
    /// There are more than one pass takes.
    pub(super) more: bool,
}

/// Enters ended pods, and the interim condition of `ending`, into `status`.
pub(super) fn collect(pass: &Pass<'_>, ending: Option<&Ending>, status: &mut JobStatus) -> Collected {
    settle(pass, status);
    let mut lists = status.uncounted_terminated_pods.take().unwrap_or_default();
    let (mut succeeded, mut failed) =
        (lists.succeeded.take().unwrap_or_default(), lists.failed.take().unwrap_or_default());
    let mut new_indexes = Vec::new();
    let mut collected = Collected { release: Vec::new(), more: false };
    let mut order: Vec<_> = pass.pods.iter().filter(|p| pass.is_tracked(p)).collect();
    order.sort_by_key(|p| pass.valid_index(p));
    for pod in order {
        if !may_go(pass, ending, pod) {
            continue;
        }
        collected.release.push(pod.clone());
        let pod_uid = uid(&pod.metadata);
        let index = pass.valid_index(pod);
        if pods::phase(pod) == "Succeeded" && !pass.uncounted_failed.contains(pod_uid) {
            if is_indexed(pass.spec) {
                new_indexes.extend(index.filter(|i| !pass.old_indexes.contains(*i)));
            } else if !pass.uncounted_succeeded.contains(pod_uid) {
                succeeded.push(pod_uid.to_owned());
            }
        } else if (has_failed(pass.spec, pod) || ending.is_some_and(|e| !e.success))
            && !pass.uncounted_failed.contains(pod_uid)
            && (!is_indexed(pass.spec) || index.is_some())
            && pass.verdict(pod) != Verdict::Ignore
        {
            failed.push(pod_uid.to_owned());
        }
        if new_indexes.len() + succeeded.len() + failed.len() >= MOST_UNCOUNTED {
            collected.more = true;
            break;
        }
    }
    if is_indexed(pass.spec) {
        // Only what is collected: an index must not count before its pod may go.
        let all = pass.old_indexes.union(&new_indexes.into_iter().collect());
        status.succeeded = nonzero(all.len());
        status.completed_indexes = (!all.is_empty()).then(|| all.to_string());
        status.failed_indexes = pass.failed_indexes.as_ref().map(Indexes::to_string);
    }
    let list = |l: Vec<String>| (!l.is_empty()).then_some(l);
    lists.succeeded = list(succeeded);
    lists.failed = list(failed);
    status.uncounted_terminated_pods = Some(lists);
    if let Some(ending) = ending {
        let kind = if ending.success { SUCCESS_CRITERIA_MET } else { FAILURE_TARGET };
        let list = status.conditions.get_or_insert_default();
        if !list.iter().any(|c| c.type_ == kind && c.status == "True") {
            conditions::set(list, kind, true, &ending.reason, &ending.message, pass.now);
        }
    }
    collected
}

/// Whether the pod may lose its finalizer: it ended and its index does not wait for a new pod, or the whole job ends.
fn may_go(pass: &Pass<'_>, ending: Option<&Ending>, pod: &Pod) -> bool {
    if pass.job.metadata.deletion_timestamp.is_some() || ending.is_some() || pods::phase(pod) == "Succeeded" {
        return true;
    }
    let delayed = |i: i32| pass.delayed.get(&i).is_some_and(|d| d.metadata.uid == pod.metadata.uid);
    has_failed(pass.spec, pod) && !pass.valid_index(pod).is_some_and(delayed)
}

/// Turns the uids of pods that have lost their finalizer into numbers.
pub(super) fn settle(pass: &Pass<'_>, status: &mut JobStatus) {
    let Some(lists) = &mut status.uncounted_terminated_pods else { return };
    let tracked: HashSet<&str> =
        pass.pods.iter().filter(|p| pass.is_tracked(p)).map(|p| uid(&p.metadata)).collect();
    let fold = |list: &mut Option<Vec<String>>, counter: &mut Option<i32>| {
        let Some(uids) = list else { return };
        let before = uids.len();
        uids.retain(|u| tracked.contains(u.as_str()));
        let gone = super::plan::size(before - uids.len());
        *counter = nonzero(counter.unwrap_or(0) + gone);
        if uids.is_empty() {
            *list = None;
        }
    };
    fold(&mut lists.succeeded, &mut status.succeeded);
    fold(&mut lists.failed, &mut status.failed);
}

/// Adds the terminal condition once every pod is counted and gone; whether the job is finished.
pub(super) fn finish(status: &mut JobStatus, ending: &Ending, now: Timestamp) -> bool {
    let lists = status.uncounted_terminated_pods.as_ref();
    let waiting = lists.is_some_and(|l| l.succeeded.is_some() || l.failed.is_some());
    if waiting || status.terminating.unwrap_or(0) > 0 {
        return false;
    }
    let kind = if ending.success { COMPLETE } else { FAILED };
    let list = status.conditions.get_or_insert_default();
    conditions::set(list, kind, true, &ending.reason, &ending.message, now);
    if ending.success {
        status.completion_time = Some(Time(now));
    }
    true
}

/// Zero counters are left out, as the API leaves them out.
pub(super) fn nonzero(n: i32) -> Option<i32> {
    (n != 0).then_some(n)
}
