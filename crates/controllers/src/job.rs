//! Jobs: pods that run until enough of them succeeded, or too many failed.
//!
//! A pod keeps the finalizer `batch.kubernetes.io/job-tracking` until the status counts it, so that none counts twice or
//! never, wherever a pass is cut off (`accounting`). Like a replica set's, a pass makes and deletes pods only when the cache
//! shows all that earlier passes did (`pending`), and counts only pods whose finalizer it has not yet taken itself.
//!
//! What is kept in memory is either of those, or the back-off, which is read from the pods again after a restart.
mod accounting;
mod backoff;
mod conditions;
mod indexes;
mod plan;
mod policy;
mod template;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use api::selector::LabelSelector;
use client::events::{EventType, reference};
use client::{Cache, Change, DeleteOptions, Patch};
use futures_util::future::join_all;
use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use parking_lot::Mutex;
use serde_json::json;

use self::accounting::nonzero;
use self::backoff::Backoff;
use self::plan::{Ending, NewPod, Pass, Step, is_suspended};
use self::template::{FINALIZER, has_finalizer, new_pod};
use crate::ownership::{
    Claim, adoption_patch, claim, controller_of, controller_ref, labels, name, namespace, release_patch, uid,
};
use crate::pending::Pending;
use crate::pods;
use crate::runner::{Context, Failure, ObjectKey, Outcome, Reconcile, Runner, has_cause};

/// Jobs that name another manager are none of ours.
const MANAGER: &str = "kubernetes.io/job-controller";

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Job(ObjectKey),
    /// A pod with the finalizer that no job counts any more.
    Stray(ObjectKey),
}

struct Controller {
    context: Context,
    jobs: Cache<Job>,
    pods: Cache<Pod>,
    pending: Pending<ObjectKey>,
    /// Pods whose finalizer we took, until the cache shows it.
    released: Mutex<HashMap<ObjectKey, HashSet<String>>>,
    /// The newest revision of each job that we wrote, with the job's uid.
    written: Mutex<HashMap<ObjectKey, (String, u64)>>,
    /// By job, with its uid.
    backoffs: Mutex<HashMap<ObjectKey, (String, Backoff)>>,
}

pub(crate) async fn run(context: Context) {
    let caches = context.reader.caches();
    let (jobs, pods) = (caches.of::<Job>(), caches.of::<Pod>());
    let controller = Controller {
        context: context.clone(),
        jobs: jobs.clone(),
        pods: pods.clone(),
        pending: Pending::new(),
        released: Mutex::default(),
        written: Mutex::default(),
        backoffs: Mutex::default(),
    };
    Runner::new(&context, controller)
        .on(&jobs, Controller::keys_of_job)
        .on(&pods, Controller::keys_of_pod)
        .run(5)
        .await;
}

/// Whether the job has ended for good.
fn is_finished(job: &Job) -> bool {
    conditions::is_true(job, conditions::COMPLETE).or(conditions::is_true(job, conditions::FAILED)).is_some()
}

/// The revision of the state; 0 where it has none that can be compared.
fn revision_of(job: &Job) -> u64 {
    job.metadata.resource_version.as_deref().and_then(|r| r.parse().ok()).unwrap_or(0)
}

fn is_ours(job: &Job) -> bool {
    job.spec.as_ref().and_then(|s| s.managed_by.as_deref()).is_none_or(|m| m == MANAGER)
}

fn is_job(owner: &OwnerReference) -> bool {
    owner.kind == "Job" && owner.api_version == "batch/v1"
}

/// Counts of running pods as the pass changes them.
struct Tally {
    active: i32,
    ready: i32,
    terminating: i32,
}

impl Tally {
    fn deleted(&mut self, pods: &[Arc<Pod>]) {
        let n = plan::size(pods.len());
        self.active -= n;
        self.terminating += n;
        self.ready -= plan::size(pods.iter().filter(|p| pods::is_ready(p)).count());
    }
}

impl Controller {
    fn keys_of_job(&self, change: &Change<Job>) -> Vec<Key> {
        let job = change.object();
        let mut keys = vec![Key::Job(ObjectKey::of(&job.metadata))];
        if matches!(change, Change::Deleted(_)) || is_finished(job) {
            let ours = |p: &Arc<Pod>| {
                has_finalizer(p) && controller_of(&p.metadata).is_some_and(|o| o.uid == uid(&job.metadata))
            };
            let left = self.pods.list_ns(namespace(&job.metadata)).into_iter().filter(ours);
            keys.extend(left.map(|p| Key::Stray(ObjectKey::of(&p.metadata))));
        }
        keys
    }

    fn keys_of_pod(&self, change: &Change<Pod>) -> Vec<Key> {
        let mut keys = Vec::new();
        match change {
            Change::Added(pod) => self.add_keys(pod, true, &mut keys),
            Change::Deleted(pod) => self.add_keys(pod, false, &mut keys),
            Change::Modified { old, new } => {
                let owner_changed = controller_of(&old.metadata) != controller_of(&new.metadata);
                if owner_changed {
                    self.add_keys(old, false, &mut keys);
                }
                let relabeled = old.metadata.labels != new.metadata.labels;
                self.add_keys(new, owner_changed || relabeled, &mut keys);
            }
        }
        keys
    }

    /// The job that controls the pod, or for an orphan all that select it; and the pod itself when no job counts it.
    fn add_keys(&self, pod: &Pod, orphans: bool, keys: &mut Vec<Key>) {
        let ns = namespace(&pod.metadata);
        let counted = match controller_of(&pod.metadata) {
            Some(owner) if is_job(owner) => {
                keys.push(Key::Job(ObjectKey::new(ns, &owner.name)));
                let job = self.jobs.get(ns, &owner.name).filter(|j| uid(&j.metadata) == owner.uid);
                job.is_some_and(|j| !is_finished(&j))
            }
            Some(_) => true,
            None => {
                if orphans {
                    let selects = |j: &Arc<Job>| selector(j).is_ok_and(|s| s.matches(labels(&pod.metadata)));
                    let jobs = self.jobs.list_ns(ns).into_iter().filter(selects);
                    keys.extend(jobs.map(|j| Key::Job(ObjectKey::of(&j.metadata))));
                }
                false
            }
        };
        if !counted && has_finalizer(pod) {
            keys.push(Key::Stray(ObjectKey::of(&pod.metadata)));
        }
    }

    /// Lets a pod go that no job counts any more.
    async fn release_stray(&self, key: &ObjectKey) -> Result<Outcome, Failure> {
        let Some(pod) = self.pods.get(&key.namespace, &key.name).filter(|p| has_finalizer(p)) else {
            return Ok(Outcome::Settled);
        };
        if let Some(owner) = controller_of(&pod.metadata) {
            if !is_job(owner) {
                return Ok(Outcome::Settled);
            }
            // Asked, not read from the cache: the job may be younger than what the cache shows.
            match self.context.client.get::<Job>(&key.namespace, &owner.name).await {
                Ok(job) if uid(&job.metadata) == owner.uid && (!is_ours(&job) || !is_finished(&job)) => {
                    return Ok(Outcome::Settled);
                }
                Ok(_) => {}
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.remove_finalizer(&pod).await?;
        Ok(Outcome::Settled)
    }

    /// Done too when the pod is gone.
    async fn remove_finalizer(&self, pod: &Pod) -> Result<(), client::Error> {
        let patch = json!({"metadata": {"uid": uid(&pod.metadata), "$deleteFromPrimitiveList/finalizers": [FINALIZER]}});
        let (ns, pod_name) = (namespace(&pod.metadata), name(&pod.metadata));
        match self.context.client.patch::<Pod>(ns, pod_name, &Patch::Strategic(patch)).await {
            Ok(_) => Ok(()),
            // A conflict: the name belongs to another pod by now.
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The pods of `job`; adopts and releases on the way. An adopted pod is tracked from then on, a released one no more.
    async fn claim_pods(&self, job: &Job, selector: &LabelSelector) -> Result<Vec<Arc<Pod>>, Failure> {
        let (client, ns) = (&self.context.client, namespace(&job.metadata));
        let mut owned = Vec::new();
        let mut verified = false;
        for pod in self.pods.list_ns(ns) {
            let pod_uid = uid(&pod.metadata);
            let decision = claim(&job.metadata, selector.matches(labels(&pod.metadata)), &pod.metadata);
            let patch = match decision {
                Claim::Own => {
                    owned.push(pod);
                    continue;
                }
                Claim::Ignore => continue,
                Claim::Adopt => {
                    if !verified {
                        let live = client.get::<Job>(ns, name(&job.metadata)).await?;
                        if uid(&live.metadata) != uid(&job.metadata)
                            || live.metadata.deletion_timestamp.is_some()
                        {
                            return Err(Failure::Invalid("the job was deleted meanwhile".into()));
                        }
                        verified = true;
                    }
                    let mut patch =
                        adoption_patch(&controller_ref("batch/v1", "Job", &job.metadata), pod_uid);
                    patch["metadata"]["finalizers"] = json!([FINALIZER]);
                    patch
                }
                Claim::Release => {
                    let mut patch = release_patch(uid(&job.metadata), pod_uid);
                    patch["metadata"]["$deleteFromPrimitiveList/finalizers"] = json!([FINALIZER]);
                    patch
                }
            };
            match client.patch::<Pod>(ns, name(&pod.metadata), &Patch::Strategic(patch)).await {
                Ok(pod) if decision == Claim::Adopt => owned.push(Arc::new(pod)),
                Ok(_) => {}
                Err(e) if e.is_not_found() || e.is_conflict() || e.is_invalid() => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(owned)
    }

    fn event(&self, job: &Job, kind: EventType, reason: &str, message: impl Into<String>) {
        self.context.recorder.event(&reference(job), kind, reason, message);
    }

    /// Batches of 1, 2, 4, ... at a time; the first failure ends it. How many were made, and the error.
    async fn create_pods(&self, key: &ObjectKey, job: &Job, new: &[NewPod]) -> (i32, Option<client::Error>) {
        let (mut made, mut batch, mut left) = (0, 1, new);
        while !left.is_empty() {
            let (now, later) = left.split_at(batch.min(left.len()));
            let creates = now
                .iter()
                .filter_map(|n| new_pod(job, n))
                .map(|pod| async move { self.context.client.create(&key.namespace, &pod).await });
            let mut first = None;
            for result in join_all(creates).await {
                match result {
                    Ok(pod) => {
                        made += 1;
                        self.pending.created(key, &pod);
                        let message = format!("Created pod: {}", name(&pod.metadata));
                        self.event(job, EventType::Normal, "SuccessfulCreate", message);
                    }
                    Err(error) if has_cause(&error, "NamespaceTerminating") => return (made, None),
                    Err(error) => {
                        let message = format!("Error creating: {error}");
                        self.event(job, EventType::Warning, "FailedCreate", message);
                        first.get_or_insert(error);
                    }
                }
            }
            if first.is_some() {
                return (made, first);
            }
            left = later;
            batch *= 2;
        }
        (made, None)
    }

    /// Deletes pods. Where they are not to be counted, they lose their finalizer before. Which ones went, and the first error.
    async fn delete_pods(
        &self,
        key: &ObjectKey,
        job: &Job,
        victims: &[Arc<Pod>],
        counted: bool,
    ) -> (Vec<Arc<Pod>>, Option<client::Error>) {
        let deletes = victims.iter().map(|pod| async move {
            if !counted && has_finalizer(pod) {
                if let Err(error) = self.remove_finalizer(pod).await {
                    return (pod, Err(error));
                }
                self.note_released(key, pod);
            }
            let options = DeleteOptions { uid: pod.metadata.uid.clone(), ..DeleteOptions::default() };
            let name = name(&pod.metadata);
            (pod, self.context.client.delete::<Pod>(&key.namespace, name, &options).await)
        });
        let (mut gone, mut first) = (Vec::new(), None);
        for (pod, result) in join_all(deletes).await {
            match result {
                Ok(()) => {
                    self.pending.deleted(key, &**pod);
                    let message = format!("Deleted pod: {}", name(&pod.metadata));
                    self.event(job, EventType::Normal, "SuccessfulDelete", message);
                    gone.push(pod.clone());
                }
                Err(error) if error.is_not_found() || error.is_conflict() => gone.push(pod.clone()),
                Err(error) => {
                    let message = format!("Error deleting: {error}");
                    self.event(job, EventType::Warning, "FailedDelete", message);
                    first.get_or_insert(error);
                }
            }
        }
        (gone, first)
    }

    fn note_released(&self, key: &ObjectKey, pod: &Pod) {
        let mut all = self.released.lock();
        all.entry(key.clone()).or_default().insert(uid(&pod.metadata).to_owned());
    }

    /// Those of `pods` that still show the finalizer we took.
    fn released(&self, key: &ObjectKey, pods: &[Arc<Pod>]) -> HashSet<String> {
        let mut all = self.released.lock();
        let Some(released) = all.get_mut(key) else { return HashSet::new() };
        let shown: HashSet<&str> =
            pods.iter().filter(|p| has_finalizer(p)).map(|p| uid(&p.metadata)).collect();
        released.retain(|u| shown.contains(u.as_str()));
        let left = released.clone();
        if left.is_empty() {
            all.remove(key);
        }
        left
    }

    /// Whether the cache shows an older state of the job than what we wrote: what it says of pods that ended may be less
    /// than what the pods themselves do not say any more, and they would be made again.
    fn is_behind(&self, key: &ObjectKey, job: &Job) -> bool {
        let written = self.written.lock();
        let known = written.get(key).filter(|(of, _)| of == uid(&job.metadata));
        known.is_some_and(|(_, revision)| revision_of(job) < *revision)
    }

    fn forget(&self, key: &ObjectKey) {
        self.pending.forget(key);
        self.written.lock().remove(key);
        self.released.lock().remove(key);
        self.backoffs.lock().remove(key);
    }

    /// Makes or deletes pods as the plan says; the error, and when to look again.
    async fn manage(
        &self,
        key: &ObjectKey,
        pass: &Pass<'_>,
        tally: &mut Tally,
    ) -> (Option<client::Error>, Option<Duration>) {
        match pass.step() {
            Step::Rest => (None, None),
            Step::Wait(wait) => (None, Some(wait)),
            Step::Delete(victims) => {
                let (gone, error) = self.delete_pods(key, pass.job, &victims, false).await;
                tally.deleted(&gone);
                (error, None)
            }
            Step::Create(new, wait) => {
                let (made, error) = self.create_pods(key, pass.job, &new).await;
                tally.active += made;
                (error, wait)
            }
        }
    }

    /// The Suspended condition, and the start that a suspension takes back.
    fn suspend_or_resume(&self, pass: &Pass<'_>, status: &mut JobStatus) {
        let suspended = is_suspended(pass.spec);
        let (reason, message) =
            if suspended { ("JobSuspended", "Job suspended") } else { ("JobResumed", "Job resumed") };
        let list = status.conditions.get_or_insert_default();
        let changed = conditions::set(list, conditions::SUSPENDED, suspended, reason, message, pass.now);
        if suspended {
            status.start_time = None;
        } else if changed {
            status.start_time = Some(Time(pass.now));
        }
        if changed {
            let reason = if suspended { "Suspended" } else { "Resumed" };
            self.event(pass.job, EventType::Normal, reason, message);
        }
    }

    /// Writes the status if it differs from the one in `job`.
    async fn write(&self, job: &mut Job, status: &JobStatus) -> Result<(), client::Error> {
        if job.status.as_ref() == Some(status) {
            return Ok(());
        }
        job.status = Some(status.clone());
        *job = self.context.client.update_status(namespace(&job.metadata), job).await?;
        let written = (uid(&job.metadata).to_owned(), revision_of(job));
        self.written.lock().insert(ObjectKey::of(&job.metadata), written);
        Ok(())
    }

    /// Writes down what ended, lets those pods go, and adds them up.
    async fn account(
        &self,
        key: &ObjectKey,
        pass: &mut Pass<'_>,
        ending: Option<Ending>,
        mut status: JobStatus,
    ) -> Result<(), Failure> {
        pass.released = self.released(key, &pass.pods);
        let collected = accounting::collect(pass, ending.as_ref(), &mut status);
        if status.conditions.as_ref().is_some_and(Vec::is_empty) {
            status.conditions = None;
        }
        let mut job = pass.job.clone();
        self.write(&mut job, &status).await?;
        self.backoffs.lock().insert(key.clone(), (uid(&job.metadata).to_owned(), pass.backoff));
        let releases = collected.release.iter().map(|pod| async move {
            self.remove_finalizer(pod).await.map(|()| self.note_released(key, pod))
        });
        let failed = join_all(releases).await.into_iter().find_map(Result::err);
        pass.released = self.released(key, &pass.pods);
        accounting::settle(pass, &mut status);
        let ending = ending.filter(|_| failed.is_none() && !collected.more);
        let finished = ending.as_ref().is_some_and(|e| accounting::finish(&mut status, e, pass.now));
        self.write(&mut job, &status).await?;
        if let Some(ending) = ending.filter(|_| finished) {
            self.tell_end(&job, &ending);
        }
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    fn tell_end(&self, job: &Job, ending: &Ending) {
        if !ending.success {
            return self.event(job, EventType::Warning, &ending.reason, ending.message.as_str());
        }
        let succeeded = job.status.as_ref().and_then(|s| s.succeeded).unwrap_or(0);
        if job.spec.as_ref().and_then(|s| s.completions).is_some_and(|c| succeeded > c) {
            let message = "Too many succeeded pods running after completion count reached";
            self.event(job, EventType::Warning, "TooManySucceededPods", message);
        }
        self.event(job, EventType::Normal, "Completed", "Job completed");
    }

    async fn sync(&self, key: &ObjectKey) -> Result<Outcome, Failure> {
        let Some(job) = self.jobs.get(&key.namespace, &key.name) else {
            self.forget(key);
            return Ok(Outcome::Settled);
        };
        let Some(spec) = job.spec.as_ref().filter(|_| is_ours(&job) && !is_finished(&job)) else {
            self.forget(key);
            return Ok(Outcome::Settled);
        };
        if !matches!(spec.completion_mode.as_deref(), None | Some("NonIndexed" | "Indexed")) {
            let message = "Skipped Job sync because completion mode is unknown";
            self.event(&job, EventType::Warning, "UnknownCompletionMode", message);
            return Ok(Outcome::Settled);
        }
        if self.is_behind(key, &job) {
            // The change that shows it brings the job back here.
            return Ok(Outcome::Settled);
        }
        let behind = self.pending.wait(key, &self.pods, &self.context.client).await?;
        let owned = self.claim_pods(&job, &selector(&job)?).await?;
        let released = self.released(key, &owned);
        let job_uid = uid(&job.metadata);
        let before = self.backoffs.lock().get(key).filter(|(of, _)| of == job_uid).map(|(_, b)| *b);
        let now = self.context.clock.now();
        let mut pass = Pass::new(&job, spec, owned, released, before, now);
        self.advance(key, &mut pass, behind).await
    }

    async fn advance(
        &self,
        key: &ObjectKey,
        pass: &mut Pass<'_>,
        behind: Option<Duration>,
    ) -> Result<Outcome, Failure> {
        let mut status = pass.job.status.clone().unwrap_or_default();
        if status.start_time.is_none() && !is_suspended(pass.spec) {
            status.start_time = Some(Time(pass.now));
        }
        let active = plan::size(pass.active.len());
        let mut tally = Tally { active, ready: pass.ready, terminating: pass.terminating };
        let (mut ending, deadline) = pass.ending();
        let (error, wait);
        if ending.is_some() {
            let (gone, failed) = self.delete_pods(key, pass.job, &pass.active, true).await;
            tally.deleted(&gone);
            (error, wait) = (failed, None);
            // A pod that could not be deleted, or that the cache does not show yet, would be forgotten.
            ending = ending.filter(|_| tally.active == 0 && behind.is_none());
        } else {
            let managed = behind.is_none() && pass.job.metadata.deletion_timestamp.is_none();
            (error, wait) = if managed { self.manage(key, pass, &mut tally).await } else { (None, None) };
            if behind.is_none() && pass.is_complete(tally.active) {
                ending = Some(Ending {
                    success: true,
                    reason: "CompletionsReached".into(),
                    message: "Reached expected number of succeeded pods".into(),
                });
            } else if managed {
                self.suspend_or_resume(pass, &mut status);
            }
        }
        if ending.is_some() {
            // What ends has begun, also while it is suspended.
            status.start_time.get_or_insert(Time(pass.now));
        }
        status.active = nonzero(tally.active);
        status.ready = Some(tally.ready);
        status.terminating = Some(tally.terminating);
        self.account(key, pass, ending, status).await?;
        if let Some(error) = error {
            return Err(error.into());
        }
        let wait = [behind, deadline, wait].into_iter().flatten().min();
        Ok(wait.map(|w| w.max(Duration::from_millis(1))).into())
    }
}

impl Reconcile for Controller {
    type Key = Key;

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Failure> {
        match key {
            Key::Job(job) => self.sync(job).await,
            Key::Stray(pod) => self.release_stray(pod).await,
        }
    }
}

fn selector(job: &Job) -> Result<LabelSelector, Failure> {
    LabelSelector::from_typed(job.spec.as_ref().and_then(|s: &JobSpec| s.selector.as_ref()))
        .map_err(|e| Failure::Invalid(e.to_string()))
}
