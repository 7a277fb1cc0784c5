//! The scheduler's loop: one task that owns snapshot and queue.
mod binding;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use client::{Change, Changes, Client};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::scheduling::v1alpha2::PodGroup;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::assumed::Assumed;
use crate::devices::{self, Given};
use crate::evaluate::{Candidates, Evaluator, Filtered};
use crate::extender::{Extender, ExtenderError};
use crate::filter::{EXTENDER, Rejection};
use crate::gang::Groups;
use crate::hints::Event;
use crate::message::{self, Outlook};
use crate::metrics::{Ended, Metrics};
use crate::pod_info::{Demands, PodInfo, own_constraints};
use crate::preemption::{self, Preemption, Victims};
use crate::profile::Profile;
use crate::queue::Queue;
use crate::report::{Bound, Nomination, Reporter};
use crate::snapshot::Snapshot;
use crate::sources::Sources;
use crate::volumes::Decisions;
use crate::volumes::feeds::Feeds;
use crate::{Config, Error, PodGroups};

/// Changes taken, and pods tried, before others get their turn on the thread.
const TURN: usize = 64;

/// One profile at work.
pub(crate) struct Worker {
    pub(crate) evaluator: Evaluator,
    pub(crate) reporter: Reporter,
}

/// How a task ended that was started for a pod.
pub(crate) enum Outcome {
    Bound(Arc<str>, Bound),
    /// The victims were asked to go; filters that rejected the pod.
    Preempted {
        uid: Arc<str>,
        rejected_by: u32,
        victims: Vec<Arc<str>>,
        failed: bool,
    },
}

/// What was found out about a pod that no node takes.
pub(crate) struct Judged {
    /// By which filters.
    pub(crate) rejected_by: u32,
    /// In words.
    pub(crate) said: String,
    /// With them gone it fits.
    pub(crate) victims: Option<Victims>,
    /// They were asked to go for it already.
    pub(crate) leaving: Option<Victims>,
    pub(crate) nomination: Nomination<'static>,
}

pub(crate) struct Engine {
    client: Client,
    pub(crate) workers: Vec<Worker>,
    extenders: Vec<Arc<Extender>>,
    pub(crate) sources: Sources,
    pub(crate) demands: Demands,
    pub(crate) snapshot: Snapshot,
    pub(crate) queue: Queue,
    /// `None`: groups are ignored.
    pub(crate) groups: Option<Groups>,
    /// Whether the API has rules of device taints.
    device_taint_rules: bool,
    metrics: Arc<Metrics>,
    /// Pods that their gates hold back, by uid.
    pub(crate) gated: HashSet<String>,
    /// What is being done about the volumes of pods, by uid.
    decisions: HashMap<Arc<str>, Decisions>,
    /// The same about their devices.
    given: HashMap<Arc<str>, Given>,
    random: SmallRng,
    pub(crate) permits: Arc<Semaphore>,
    pub(crate) outcomes: mpsc::UnboundedSender<Outcome>,
    /// Never holds more than `parallelism` entries: each has a permit.
    inbox: mpsc::UnboundedReceiver<Outcome>,
}

impl Engine {
    pub(crate) fn new(client: Client, config: Config) -> Result<Self, Error> {
        let (outcomes, inbox) = mpsc::unbounded_channel();
        let mut random = SmallRng::seed_from_u64(config.seed.unwrap_or_else(rand::random));
        let resources = config.extenders.iter().flat_map(|e| &e.managed).filter(|(_, ignored)| *ignored);
        let ignored: Vec<String> = resources.map(|(name, _)| name.clone()).collect();
        let extenders = config.extenders.into_iter().map(|settings| Extender::new(settings).map(Arc::new));
        let extenders = extenders.collect::<Result<Vec<_>, _>>()?;
        let with_ignored = |mut profile: Profile| {
            profile.fit.ignored.extend(ignored.iter().cloned());
            profile
        };
        let mut snapshot = Snapshot::default();
        snapshot.devices_mut().speak(config.selectors);
        let worker = |profile: Profile| Worker {
            reporter: Reporter::new(client.clone(), &profile.scheduler_name),
            evaluator: Evaluator::new(SmallRng::seed_from_u64(random.random()), profile),
        };
        Ok(Self {
            workers: config.profiles.into_iter().map(with_ignored).map(worker).collect(),
            extenders,
            sources: Sources::new(&client),
            permits: Arc::new(Semaphore::new(config.parallelism.max(1))),
            demands: Demands::default(),
            snapshot,
            queue: Queue::new(config.backoff),
            groups: match config.pod_groups {
                PodGroups::Ignored => None,
                PodGroups::Together => Some(Groups::new(false)),
                PodGroups::Gangs => Some(Groups::new(true)),
            },
            device_taint_rules: config.device_taint_rules,
            metrics: config.metrics,
            gated: HashSet::new(),
            decisions: HashMap::new(),
            given: HashMap::new(),
            random,
            client,
            outcomes,
            inbox,
        })
    }

    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<(), Error> {
        let caches = self.client.caches();
        let (nodes, pods) = (caches.of::<Node>(), caches.of::<Pod>());
        let namespaces = caches.of::<Namespace>();
        let with_rules = self.device_taint_rules;
        // The API has no groups while their gate is closed.
        let groups = self.groups.is_some().then(|| caches.of::<PodGroup>());
        let synced = async {
            if let Some(groups) = &groups {
                groups.synced().await;
            }
            tokio::join!(nodes.synced(), pods.synced(), namespaces.synced(), self.sources.synced());
            tokio::join!(Feeds::synced(&self.client), devices::feeds::Feeds::synced(&self.client, with_rules))
        };
        let (mut storage, mut devices) = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            feeds = synced => feeds,
        };
        let (mut nodes, mut pods) = (nodes.subscribe(), pods.subscribe());
        let mut namespaces = namespaces.subscribe();
        let mut groups = groups.map(|groups| groups.subscribe());
        while !stop.is_cancelled() {
            // Everything known first: a decision on an old view is a wasted one.
            let mut busy = false;
            for _ in 0..TURN {
                let mut any = false;
                if let Some(change) = namespaces.try_next() {
                    self.namespace_changed(&change);
                    any = true;
                }
                if let Some(change) = groups.as_mut().and_then(Changes::try_next) {
                    self.group_changed(&change);
                    any = true;
                }
                if let Some(change) = nodes.try_next() {
                    self.node_changed(&change);
                    any = true;
                }
                if let Some(change) = pods.try_next() {
                    self.pod_changed(&change);
                    any = true;
                }
                // A promise ends with its outcome; what it led to has to be known by then.
                while let Some(change) = storage.try_next() {
                    self.storage_changed(&change);
                    any = true;
                }
                while let Some(change) = devices.try_next() {
                    self.device_changed(&change);
                    any = true;
                }
                if let Ok(outcome) = self.inbox.try_recv() {
                    self.ended(outcome);
                    any = true;
                }
                if !any {
                    break;
                }
                busy = true;
            }
            if busy {
                tokio::task::yield_now().await;
                // A steady stream of changes must not starve the waiting pods, so that one turn of them follows.
            }
            let tried = self.schedule().await;
            let mut pending = self.queue.pending();
            pending.gated += self.gated.len();
            self.metrics.pending(pending);
            if busy || tried {
                tokio::task::yield_now().await;
                continue;
            }
            let due = self.queue.next_due();
            tokio::select! {
                () = stop.cancelled() => {}
                change = namespaces.next() => {
                    self.namespace_changed(&change.ok_or(Error::WatchEnded("namespaces"))?);
                }
                change = next_of(&mut groups) => {
                    self.group_changed(&change.ok_or(Error::WatchEnded("podgroups"))?);
                }
                change = storage.next() => {
                    self.storage_changed(&change.ok_or(Error::WatchEnded("volumes"))?);
                }
                change = devices.next() => {
                    self.device_changed(&change.ok_or(Error::WatchEnded("devices"))?);
                }
                change = nodes.next() => self.node_changed(&change.ok_or(Error::WatchEnded("nodes"))?),
                change = pods.next() => self.pod_changed(&change.ok_or(Error::WatchEnded("pods"))?),
                Some(outcome) = self.inbox.recv() => self.ended(outcome),
                () = until(due), if self.permits.available_permits() > 0 => {}
            }
        }
        Ok(())
    }

    /// The index of the pod's profile; `None`: the pod is another scheduler's.
    pub(crate) fn profile_of(&self, name: &str) -> Option<usize> {
        self.workers.iter().position(|w| w.evaluator.profile().scheduler_name == name)
    }

    pub(crate) fn notify(&mut self, event: &Event<'_>) {
        notify(&mut self.queue, &self.workers, &self.snapshot, event);
    }

    /// Tries up to a turn of pods, as long as there are permits to report the outcome; whether any was tried.
    async fn schedule(&mut self) -> bool {
        let mut tried = false;
        for _ in 0..TURN {
            let Ok(permit) = self.permits.clone().try_acquire_owned() else { return tried };
            let Some(pod) = self.queue.pop() else { return tried };
            tried = true;
            if let Some(worker) = self.profile_of(pod.scheduler_name()) {
                match self.group_of(&pod) {
                    Some(group) => self.try_group(worker, &group, pod, permit).await,
                    None => self.try_pod(worker, pod, permit).await,
                }
            }
        }
        tried
    }

    async fn try_pod(&mut self, worker: usize, mut pod: PodInfo, permit: OwnedSemaphorePermit) {
        let began = Instant::now();
        self.spread_by_default(worker, &mut pod);
        match self.workers[worker].evaluator.filter(&pod, &self.snapshot) {
            Filtered::Some(mut candidates) => match self.extended(&pod, &mut candidates).await {
                Ok(why) if candidates.slots.is_empty() => self.nowhere(worker, pod, why, permit).await,
                Ok(_) => {
                    let extra = self.extra_scores(&pod, &candidates.slots).await;
                    let slot = self.workers[worker].evaluator.choose(candidates, &extra);
                    self.metrics.found(began.elapsed());
                    let assumed = Assumed::take(&mut self.snapshot, &pod, slot);
                    self.dispatch(worker, pod, assumed, Some(permit));
                }
                Err(error) => {
                    self.queue.failed(&pod.uid);
                    let text = error.to_string();
                    self.report(worker, pod, "SchedulerError", text, Nomination::Keep, Some(permit));
                }
            },
            Filtered::Nowhere(why) => self.nowhere(worker, pod, why, permit).await,
            Filtered::Refused(refusal) if refusal.silent => {
                self.queue.unschedulable(&pod.uid, 1 << refusal.filter);
            }
            Filtered::Refused(refusal) => {
                let text = self.refused(worker, &refusal.reason);
                self.queue.unschedulable(&pod.uid, 1 << refusal.filter);
                self.report(worker, pod, "Unschedulable", text, Nomination::Keep, Some(permit));
            }
            Filtered::NoNodes => {
                // Any filter may be the one that the first node passes.
                self.queue.unschedulable(&pod.uid, (1 << EXTENDER) - 1);
                let text = message::NO_NODES.to_owned();
                self.report(worker, pod, "Unschedulable", text, Nomination::Keep, Some(permit));
            }
        }
    }

    /// A pod that brings no constraints is spread by those of the profile.
    pub(crate) fn spread_by_default(&mut self, worker: usize, pod: &mut PodInfo) {
        let profile = self.workers[worker].evaluator.profile();
        if own_constraints(&pod.pod).is_empty() {
            let constraints = self.sources.default_spread(&pod.pod, &profile.default_spread);
            pod.spread = self.demands.spread(&pod.pod, &constraints, profile.system_spread);
        }
    }

    /// What is said about a pod that no node was asked about.
    pub(crate) fn refused(&self, worker: usize, reason: &str) -> String {
        let profile = self.workers[worker].evaluator.profile();
        let outlook = match profile.preemption {
            Some(_) => Outlook::NotHelpful(&[]),
            None => Outlook::Disabled,
        };
        let deallocation = profile.deallocates.then_some(message::NO_CLAIMS);
        message::refused(self.snapshot.order().len(), reason, deallocation, &outlook)
    }

    /// Leaves the candidates that the extenders take, too. When none is left: why, of all nodes that were candidates.
    pub(crate) async fn extended(
        &self,
        pod: &PodInfo,
        candidates: &mut Candidates,
    ) -> Result<Vec<(usize, Arc<Rejection>)>, ExtenderError> {
        let mut why = Vec::new();
        for extender in self.extenders.iter().filter(|e| e.is_interested(&pod.pod)) {
            if candidates.slots.is_empty() {
                break;
            }
            match extender.filter(pod, candidates, &self.snapshot).await {
                Ok(rejected) => why.extend(rejected),
                Err(error) if extender.is_ignorable() => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "extender skipped");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(why)
    }

    /// What extenders add to the candidates' scores; one that fails adds nothing.
    pub(crate) async fn extra_scores(&self, pod: &PodInfo, slots: &[usize]) -> Vec<i64> {
        let mut sum = vec![0_i64; if self.extenders.is_empty() { 0 } else { slots.len() }];
        for extender in self.extenders.iter().filter(|e| slots.len() > 1 && e.is_interested(&pod.pod)) {
            match extender.prioritize(pod, slots, &self.snapshot).await {
                Ok(scores) => {
                    sum.iter_mut().zip(scores).for_each(|(sum, score)| *sum = sum.saturating_add(score))
                }
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "extender's scores left out");
                }
            }
        }
        sum
    }

    /// The candidates for preemption that the extenders agree to.
    async fn agreed(&self, pod: &PodInfo, mut found: Vec<Victims>) -> Result<Vec<Victims>, ExtenderError> {
        for extender in self.extenders.iter().filter(|e| e.preempts() && e.is_interested(&pod.pod)) {
            if found.is_empty() {
                break;
            }
            match extender.preempt(pod, &found, &self.snapshot).await {
                Ok(kept) => found = kept,
                Err(error) if extender.is_ignorable() => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "extender skipped");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// No node takes the pod: others may have to make room.
    async fn nowhere(
        &mut self,
        worker: usize,
        pod: PodInfo,
        why: Vec<(usize, Arc<Rejection>)>,
        permit: OwnedSemaphorePermit,
    ) {
        let Judged { rejected_by, said, victims, nomination, .. } = self.judge(worker, &pod, why).await;
        if let Some(victims) = victims {
            return self.preempt(worker, pod, victims, rejected_by, said, permit);
        }
        self.queue.unschedulable(&pod.uid, rejected_by);
        if nomination == Nomination::Clear {
            self.snapshot.nominate(&pod, None);
        }
        self.report(worker, pod, "Unschedulable", said, nomination, Some(permit));
    }

    /// What can be done about a pod that no node takes, and what is said.
    pub(crate) async fn judge(
        &mut self,
        worker: usize,
        pod: &PodInfo,
        mut why: Vec<(usize, Arc<Rejection>)>,
    ) -> Judged {
        if why.iter().any(|(_, r)| r.filter == EXTENDER) {
            // Filters had their say about the rest before the candidates were enough.
            let rest = self.workers[worker].evaluator.rejections(pod, &self.snapshot);
            let known: HashSet<usize> = why.iter().map(|(slot, _)| *slot).collect();
            why.extend(rest.into_iter().filter(|(slot, _)| !known.contains(slot)));
        }
        let rejected_by = why.iter().fold(0, |bits, (_, r)| bits | 1 << r.filter);
        let evaluator = &mut self.workers[worker].evaluator;
        let (deallocates, preempts) =
            (evaluator.profile().deallocates, evaluator.profile().preemption.is_some());
        let mut preemption = None;
        if preempts {
            let offset = self.random.random_range(0..why.len().max(1));
            let budgets = self.sources.budgets();
            let found = preemption::candidates(evaluator, pod, &self.snapshot, &why, &budgets, offset);
            let found = match found {
                Err(text) => Preemption::NotEligible(text),
                Ok((found, tried)) => match self.agreed(pod, found).await {
                    Ok(agreed) => {
                        preemption::best(agreed).map_or(Preemption::NotHelpful(tried), Preemption::Found)
                    }
                    Err(error) => {
                        tracing::warn!(error = &error as &dyn std::error::Error, "extender failed");
                        Preemption::NotHelpful(tried)
                    }
                },
            };
            let victims = match &found {
                Preemption::Found(victims) => Some(victims.pods.len()),
                _ => None,
            };
            self.metrics.preemption(victims);
            preemption = Some(found);
        }
        let deallocation = deallocates.then(|| self.deallocate(worker, pod));
        let reasons: Vec<Arc<Rejection>> = why.into_iter().map(|(_, r)| r).collect();
        let say = |outlook| message::unschedulable(reasons.len(), &reasons, deallocation, &outlook);
        let mut judged = Judged {
            rejected_by,
            said: String::new(),
            victims: None,
            leaving: None,
            nomination: Nomination::Keep,
        };
        judged.said = match preemption {
            Some(Preemption::Found(victims)) => {
                judged.victims = Some(victims);
                say(Outlook::Nominated)
            }
            Some(Preemption::NotHelpful(tried)) => {
                judged.nomination = Nomination::Clear;
                say(Outlook::NotHelpful(&tried))
            }
            Some(Preemption::NotEligible(text)) => {
                judged.leaving = (text == preemption::TERMINATING)
                    .then(|| preemption::leaving(pod, &self.snapshot))
                    .flatten();
                say(Outlook::NotEligible(text))
            }
            None => say(Outlook::Disabled),
        };
        judged
    }

    /// Promises the node to the pod and asks the victims to go. The pod is in flight until they were asked: it must not
    /// choose more of them meanwhile.
    fn preempt(
        &mut self,
        worker: usize,
        pod: PodInfo,
        victims: Victims,
        rejected_by: u32,
        text: String,
        permit: OwnedSemaphorePermit,
    ) {
        let node = self.snapshot.node(victims.slot).name.clone();
        let outbid = self.outbid(&pod, &node);
        self.snapshot.nominate(&pod, Some(&node));
        self.queue.asks(&pod.uid, rejected_by);
        self.note(worker, &pod, Ended::Unschedulable);
        let (reporter, outcomes) = (self.workers[worker].reporter.clone(), self.outcomes.clone());
        tokio::spawn(async move {
            for other in &outbid {
                reporter.clear_nomination(&other.pod).await;
            }
            let pods: Vec<Arc<Pod>> = victims.pods.iter().map(|p| p.pod.clone()).collect();
            let failed = !reporter.preempt(&pod.pod, &pods, &node).await;
            reporter.failed(&pod.pod, "Unschedulable", &text, Nomination::Set(&node)).await;
            let victims = victims.pods.into_iter().map(|p| p.uid).collect();
            let _ = outcomes.send(Outcome::Preempted { uid: pod.uid, rejected_by, victims, failed });
            drop(permit);
        });
    }

    /// Takes back what was promised on the node to pods that are less important; to which.
    pub(crate) fn outbid(&mut self, pod: &PodInfo, node: &str) -> Vec<PodInfo> {
        let less = |p: &&PodInfo| p.priority < pod.priority;
        let outbid: Vec<PodInfo> = self.snapshot.nominated(node).iter().filter(less).cloned().collect();
        for other in &outbid {
            self.snapshot.nominate(other, None);
            self.queue.wake_one(&other.uid);
        }
        outbid
    }

    /// Counts how the attempt at the pod ended.
    pub(crate) fn note(&self, worker: usize, pod: &PodInfo, ended: Ended) {
        if let Some(attempt) = self.queue.attempt(&pod.uid) {
            let profile = &self.workers[worker].evaluator.profile().scheduler_name;
            self.metrics.attempt(profile, ended, attempt);
        }
    }

    pub(crate) fn report(
        &self,
        worker: usize,
        pod: PodInfo,
        reason: &'static str,
        text: String,
        nomination: Nomination<'static>,
        permit: Option<OwnedSemaphorePermit>,
    ) {
        let ended = if reason == "Unschedulable" { Ended::Unschedulable } else { Ended::Error };
        self.note(worker, &pod, ended);
        let (reporter, permits) = (self.workers[worker].reporter.clone(), self.permits.clone());
        tokio::spawn(async move {
            let permit = match permit {
                Some(permit) => Some(permit),
                None => permits.acquire_owned().await.ok(),
            };
            reporter.failed(&pod.pod, reason, &text, nomination).await;
            drop(permit);
        });
    }
}

pub(crate) fn notify(queue: &mut Queue, workers: &[Worker], snapshot: &Snapshot, event: &Event<'_>) {
    queue.notify(event, snapshot.namespaces(), |pod| {
        let mut profiles = workers.iter().map(|w| w.evaluator.profile());
        profiles.find(|p| p.scheduler_name == pod.scheduler_name())
    });
}

/// The next change, where there are any.
pub(crate) async fn next_of<V>(changes: &mut Option<Changes<V>>) -> Option<Change<V>> {
    match changes {
        Some(changes) => changes.next().await,
        None => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
