//! Pure decisions of the job controller: how a job stands, whether it ends, and which pods to make or delete.
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::Pod;

use super::backoff::{self, Backoff};
use super::conditions::{self, FAILURE_TARGET, SUCCESS_CRITERIA_MET};
use super::indexes::Indexes;
use super::policy::{self, Verdict};
use super::template::{all_failures, counted_failures, has_finalizer, index_of};
use crate::ownership::uid;
use crate::pods;

/// At most so many creates or deletes in one pass, as upstream.
const BURST: usize = 500;

/// How a job ends: for good or not, and the reason and message of its conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ending {
    pub(super) success: bool,
    pub(super) reason: String,
    pub(super) message: String,
}

impl Ending {
    fn new(success: bool, reason: &str, message: &str) -> Self {
        Self { success, reason: reason.to_owned(), message: message.to_owned() }
    }
}

/// A pod to be made.
#[derive(Debug, Clone, Default)]
pub(super) struct NewPod {
    /// Of an indexed job.
    pub(super) index: Option<i32>,
    /// The failed pod of the same index whose count of failures it carries on.
    pub(super) replaces: Option<Arc<Pod>>,
}

/// What a pass does about pods.
#[derive(Debug)]
pub(super) enum Step {
    Rest,
    Delete(Vec<Arc<Pod>>),
    /// And look again after the time, where some have to wait.
    Create(Vec<NewPod>, Option<Duration>),
    /// Failed pods are not replaced yet.
    Wait(Duration),
}

/// A job and its pods at one moment.
pub(super) struct Pass<'a> {
    pub(super) job: &'a Job,
    pub(super) spec: &'a JobSpec,
    pub(super) now: Timestamp,
    pub(super) pods: Vec<Arc<Pod>>,
    pub(super) active: Vec<Arc<Pod>>,
    /// Pods whose finalizer is gone although the cache may still show it.
    pub(super) released: HashSet<String>,
    pub(super) uncounted_succeeded: HashSet<String>,
    pub(super) uncounted_failed: HashSet<String>,
    pub(super) terminating: i32,
    pub(super) ready: i32,
    pub(super) succeeded: i32,
    pub(super) failed: i32,
    /// Of the status as it is.
    pub(super) old_indexes: Indexes,
    pub(super) succeeded_indexes: Indexes,
    /// Where indexes have limits of their own.
    pub(super) failed_indexes: Option<Indexes>,
    /// Failed pods that stay until their index has a new pod, which carries on their count.
    pub(super) delayed: HashMap<i32, Arc<Pod>>,
    pub(super) backoff: Backoff,
}

pub(super) fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

/// Whether every index has a limit of its own.
pub(super) fn per_index(job: &Job) -> bool {
    job.spec.as_ref().is_some_and(|s| s.backoff_limit_per_index.is_some())
}

pub(super) fn is_suspended(spec: &JobSpec) -> bool {
    spec.suspend == Some(true)
}

/// Whether a pod is replaced only when it has ended, and not when its deletion begins.
pub(super) fn waits_for_end(spec: &JobSpec) -> bool {
    spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some()
}

/// Whether the pod counts as failed: one that is being deleted does, unless the job waits for its end.
pub(super) fn has_failed(spec: &JobSpec, pod: &Pod) -> bool {
    match pods::phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        _ => !waits_for_end(spec) && pod.metadata.deletion_timestamp.is_some(),
    }
}

impl<'a> Pass<'a> {
    /// `before`: the back-off as the last pass left it, `None` when there was none in this process.
    pub(super) fn new(
        job: &'a Job,
        spec: &'a JobSpec,
        pods: Vec<Arc<Pod>>,
        released: HashSet<String>,
        before: Option<Backoff>,
        now: Timestamp,
    ) -> Self {
        let status = job.status.as_ref();
        let lists = status.and_then(|s| s.uncounted_terminated_pods.as_ref());
        let set = |list: Option<&Vec<String>>| list.into_iter().flatten().cloned().collect::<HashSet<_>>();
        let count = |n: Option<i32>| n.unwrap_or(0);
        let active: Vec<_> = pods.iter().filter(|p| pods::is_active(p)).cloned().collect();
        let mut pass = Self {
            job,
            spec,
            now,
            ready: size(active.iter().filter(|p| pods::is_ready(p)).count()),
            terminating: size(pods.iter().filter(|p| pods::is_terminating(p)).count()),
            active,
            pods,
            released,
            uncounted_succeeded: set(lists.and_then(|l| l.succeeded.as_ref())),
            uncounted_failed: set(lists.and_then(|l| l.failed.as_ref())),
            succeeded: 0,
            failed: 0,
            old_indexes: Indexes::default(),
            succeeded_indexes: Indexes::default(),
            failed_indexes: None,
            delayed: HashMap::new(),
            backoff: Backoff::default(),
        };
        let new_succeeded = pass.uncounted(&pass.uncounted_succeeded, |p| pods::phase(p) == "Succeeded");
        let new_failed = pass.uncounted(&pass.uncounted_failed, |p| has_failed(spec, p));
        let ignored = new_failed.iter().filter(|p| pass.verdict(p) == Verdict::Ignore).count();
        pass.failed = count(status.and_then(|s| s.failed))
            + size(new_failed.len() - ignored)
            + size(pass.uncounted_failed.len());
        pass.succeeded = count(status.and_then(|s| s.succeeded))
            + size(new_succeeded.len())
            + size(pass.uncounted_succeeded.len());
        let times = |list: &[Arc<Pod>]| list.iter().map(|p| backoff::finished_at(p)).collect::<Vec<_>>();
        let before = before.unwrap_or_else(|| pass.counted_before(&new_succeeded, &new_failed));
        pass.backoff = before.after(&times(&new_succeeded), &times(&new_failed));
        if is_indexed(spec) {
            pass.read_indexes();
        }
        pass
    }

    fn completions(&self) -> i32 {
        self.spec.completions.unwrap_or(0)
    }

    /// The index of a pod that the job has a use for.
    pub(super) fn valid_index(&self, pod: &Pod) -> Option<i32> {
        index_of(pod).filter(|i| *i < self.completions())
    }

    /// Whether the pod waits to be counted.
    pub(super) fn is_tracked(&self, pod: &Pod) -> bool {
        has_finalizer(pod) && !self.released.contains(uid(&pod.metadata))
    }

    pub(super) fn verdict(&self, pod: &Pod) -> Verdict {
        policy::of_failed(self.spec.pod_failure_policy.as_ref(), pod)
    }

    /// Tracked pods that no status names yet, and that are `wanted`.
    fn uncounted(&self, known: &HashSet<String>, wanted: impl Fn(&Pod) -> bool) -> Vec<Arc<Pod>> {
        let valid = |p: &Pod| !is_indexed(self.spec) || self.valid_index(p).is_some();
        let new = |p: &Pod| self.is_tracked(p) && !known.contains(uid(&p.metadata));
        self.pods.iter().filter(|p| new(p) && valid(p) && wanted(p)).cloned().collect()
    }

    /// The back-off after a restart: what the pods still tell of those that were counted earlier.
    fn counted_before(&self, new_succeeded: &[Arc<Pod>], new_failed: &[Arc<Pod>]) -> Backoff {
        let new: HashSet<&str> = new_succeeded.iter().chain(new_failed).map(|p| uid(&p.metadata)).collect();
        let old = || self.pods.iter().filter(|p| !new.contains(uid(&p.metadata)));
        let end = |p: &Arc<Pod>| backoff::finished_at(p);
        let succeeded: Vec<_> = old().filter(|p| pods::phase(p) == "Succeeded").map(end).collect();
        let failed: Vec<_> = old().filter(|p| has_failed(self.spec, p)).map(end).collect();
        Backoff::default().after(&succeeded, &failed)
    }

    fn read_indexes(&mut self) {
        let (status, completions) = (self.job.status.as_ref(), self.completions());
        let read = |text: Option<&String>| Indexes::parse(text.map_or("", String::as_str), completions);
        self.old_indexes = read(status.and_then(|s| s.completed_indexes.as_ref()));
        let indexes = |wanted: &dyn Fn(&Pod) -> bool| -> Indexes {
            let pods = self.pods.iter().filter(|p| self.is_tracked(p) && wanted(p));
            pods.filter_map(|p| self.valid_index(p)).collect()
        };
        let succeeded = self.old_indexes.union(&indexes(&|p| pods::phase(p) == "Succeeded"));
        let failed = self.spec.backoff_limit_per_index.map(|limit| {
            let old = read(status.and_then(|s| s.failed_indexes.as_ref()));
            old.union(&indexes(&|p| self.index_failed(p, limit)))
        });
        self.succeeded = succeeded.len();
        if let Some(failed) = &failed {
            self.delayed = self.delayed_pods(&succeeded, failed);
        }
        self.succeeded_indexes = succeeded;
        self.failed_indexes = failed;
    }

    fn index_failed(&self, pod: &Pod, limit: i32) -> bool {
        has_failed(self.spec, pod)
            && match self.verdict(pod) {
                Verdict::FailIndex => true,
                Verdict::Ignore => false,
                _ => i64::from(counted_failures(pod)) >= i64::from(limit),
            }
    }

    /// Per index without a running pod, and neither succeeded nor failed: its latest failed pod.
    fn delayed_pods(&self, succeeded: &Indexes, failed: &Indexes) -> HashMap<i32, Arc<Pod>> {
        let active: HashSet<i32> = self.active.iter().filter_map(|p| index_of(p)).collect();
        let rank = |p: &Pod| (all_failures(p), backoff::finished_at(p));
        let mut latest: HashMap<i32, Arc<Pod>> = HashMap::new();
        for pod in self.pods.iter().filter(|p| self.is_tracked(p) && has_failed(self.spec, p)) {
            let Some(index) = self.valid_index(pod) else { continue };
            if succeeded.contains(index) || failed.contains(index) || active.contains(&index) {
                continue;
            }
            let newer = latest.get(&index).is_none_or(|other| rank(other) <= rank(pod));
            if newer {
                latest.insert(index, pod.clone());
            }
        }
        latest
    }

    /// Whether the job ends before its work is done, or by its success policy; and how long until its deadline.
    pub(super) fn ending(&self) -> (Option<Ending>, Option<Duration>) {
        let met = |kind| conditions::is_true(self.job, kind);
        let again = |success, condition: &k8s_openapi::api::batch::v1::JobCondition| {
            let text = |t: &Option<String>| t.clone().unwrap_or_default();
            Ending { success, reason: text(&condition.reason), message: text(&condition.message) }
        };
        if let Some(condition) = met(SUCCESS_CRITERIA_MET) {
            return (Some(again(true, condition)), None);
        }
        if let Some(condition) = met(FAILURE_TARGET) {
            return (Some(again(false, condition)), None);
        }
        if let Some(message) = self.failed_by_policy() {
            return (Some(Ending::new(false, "PodFailurePolicy", &message)), None);
        }
        let limit = self.spec.backoff_limit.unwrap_or(6);
        if self.failed > limit || self.restarted_too_often(limit) {
            let why = "Job has reached the specified backoff limit";
            return (Some(Ending::new(false, "BackoffLimitExceeded", why)), None);
        }
        let left = self.until_deadline();
        if left.is_some_and(|l| l <= SignedDuration::ZERO) {
            let why = "Job was active longer than specified deadline";
            return (Some(Ending::new(false, "DeadlineExceeded", why)), None);
        }
        (self.ending_by_indexes(), left.map(|l| l.unsigned_abs()))
    }

    fn ending_by_indexes(&self) -> Option<Ending> {
        if !is_indexed(self.spec) {
            return None;
        }
        if let Some(failed) = &self.failed_indexes {
            if self.spec.max_failed_indexes.is_some_and(|most| failed.len() > most) {
                let why = "Job has exceeded the specified maximal number of failed indexes";
                return Some(Ending::new(false, "MaxFailedIndexesExceeded", why));
            }
            if !failed.is_empty() && failed.len() + self.succeeded_indexes.len() >= self.completions() {
                return Some(Ending::new(false, "FailedIndexes", "Job has failed indexes"));
            }
        }
        let policy = self.spec.success_policy.as_ref();
        policy::is_met(policy, self.completions(), &self.succeeded_indexes)
            .map(|message| Ending::new(true, "SuccessPolicy", &message))
    }

    fn failed_by_policy(&self) -> Option<String> {
        self.pods.iter().filter(|p| has_failed(self.spec, p)).find_map(|p| match self.verdict(p) {
            Verdict::FailJob(message) => Some(message),
            _ => None,
        })
    }

    /// With `restartPolicy: OnFailure` the containers' restarts count instead of failed pods.
    fn restarted_too_often(&self, limit: i32) -> bool {
        let on_failure = self.spec.template.spec.as_ref().and_then(|s| s.restart_policy.as_deref());
        if on_failure != Some("OnFailure") {
            return false;
        }
        let running = self.pods.iter().filter(|p| matches!(pods::phase(p), "Running" | "Pending"));
        let statuses = running.filter_map(|p| p.status.as_ref()).flat_map(|s| {
            s.init_container_statuses.iter().flatten().chain(s.container_statuses.iter().flatten())
        });
        let restarts: i64 = statuses.map(|c| i64::from(c.restart_count)).sum();
        restarts >= i64::from(limit.max(1))
    }

    /// `None`: no deadline runs.
    fn until_deadline(&self) -> Option<SignedDuration> {
        let seconds = self.spec.active_deadline_seconds.filter(|_| !is_suspended(self.spec))?;
        let start = self.job.status.as_ref().and_then(|s| s.start_time.as_ref()).map_or(self.now, |t| t.0);
        Some(SignedDuration::from_secs(seconds).saturating_sub(self.now.duration_since(start)))
    }

    /// Whether the work is done while `active` pods run.
    pub(super) fn is_complete(&self, active: i32) -> bool {
        active == 0
            && match self.spec.completions {
                None => self.succeeded > 0,
                Some(completions) => self.succeeded >= completions,
            }
    }

    /// What the job asks for now.
    pub(super) fn step(&self) -> Step {
        if is_suspended(self.spec) {
            return match self.victims(self.active.len()) {
                none if none.is_empty() => Step::Rest,
                victims => Step::Delete(victims),
            };
        }
        let active = size(self.active.len());
        let parallelism = self.spec.parallelism.unwrap_or(1);
        let wanted = match self.spec.completions {
            // Once a pod succeeded no further ones are started; those that run may end.
            None if self.succeeded > 0 => active,
            None => parallelism,
            Some(completions) => (completions - self.succeeded).min(parallelism).max(0),
        };
        let mut victims = self.victims(usize::try_from(active - wanted).unwrap_or(0));
        victims.truncate(BURST);
        if !victims.is_empty() {
            return Step::Delete(victims);
        }
        let leaving = if waits_for_end(self.spec) { self.terminating } else { 0 };
        match usize::try_from(wanted - leaving - active) {
            Ok(missing) if missing > 0 => self.create(missing.min(BURST)),
            _ => Step::Rest,
        }
    }

    fn create(&self, missing: usize) -> Step {
        if !per_index(self.job) {
            let wait = self.backoff.remaining(self.now);
            if wait > SignedDuration::ZERO {
                return Step::Wait(wait.unsigned_abs());
            }
        }
        if !is_indexed(self.spec) {
            return Step::Create(vec![NewPod::default(); missing], None);
        }
        let mut taken: Vec<i32> = self.active.iter().filter_map(|p| index_of(p)).collect();
        if waits_for_end(self.spec) {
            let leaving = self.pods.iter().filter(|p| pods::is_terminating(p));
            taken.extend(leaving.filter_map(|p| index_of(p)));
        }
        let none = Indexes::default();
        let taken = taken.into_iter().collect::<Indexes>().union(&self.succeeded_indexes);
        let taken = taken.union(self.failed_indexes.as_ref().unwrap_or(&none));
        let (mut now, mut next) = (Vec::new(), None::<SignedDuration>);
        for index in taken.missing(missing, self.completions()) {
            let replaces = self.delayed.get(&index).cloned();
            let wait = replaces.as_ref().map_or(SignedDuration::ZERO, |p| {
                backoff::remaining(all_failures(p).saturating_add(1), backoff::finished_at(p), self.now)
            });
            if wait > SignedDuration::ZERO {
                next = Some(next.map_or(wait, |n| n.min(wait)));
            } else {
                now.push(NewPod { index: Some(index), replaces });
            }
        }
        let next = next.map(|n| n.unsigned_abs());
        match next {
            Some(wait) if now.is_empty() => Step::Wait(wait),
            _ if now.is_empty() => Step::Rest,
            next => Step::Create(now, next),
        }
    }

    /// At least `count` active pods whose loss hurts least; of an indexed job all without a valid index of their own.
    fn victims(&self, count: usize) -> Vec<Arc<Pod>> {
        let mut order = self.active.clone();
        order.sort_by_key(|p| worth(p));
        if !is_indexed(self.spec) {
            order.truncate(count);
            return order;
        }
        // The most worthy pod of every index comes last and stays.
        let keepers: BTreeMap<i32, &str> =
            order.iter().filter_map(|p| Some((self.valid_index(p)?, uid(&p.metadata)))).collect();
        let stays = |p: &Arc<Pod>| {
            self.valid_index(p).is_some_and(|i| keepers.get(&i).copied() == Some(uid(&p.metadata)))
        };
        let (left, mut gone): (Vec<_>, Vec<_>) = order.iter().cloned().partition(stays);
        let more = count.saturating_sub(gone.len());
        gone.extend(left.into_iter().take(more));
        gone
    }
}

/// Less: goes first. Not bound before bound, pending before running, not ready before ready, what was ready for a shorter
/// time, what restarted more often, the younger first.
fn worth(pod: &Pod) -> impl Ord + use<> {
    let phase = match pods::phase(pod) {
        "Pending" | "" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
    (
        !pods::node_name(pod).is_empty(),
        phase,
        pods::is_ready(pod),
        Reverse(pods::ready_since(pod)),
        Reverse(pods::restarts(pod)),
        Reverse(created),
        uid(&pod.metadata).to_owned(),
    )
}

/// A count as the API writes it.
pub(super) fn size(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}
