//! The scheduler's loop: one task that owns snapshot and queue.
use std::collections::HashMap;
use std::sync::Arc;

use client::Client;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::evaluate::{Evaluator, Filtered};
use crate::filter::Rejection;
use crate::hints::Event;
use crate::message::{self, Outlook};
use crate::pod_info::{Demands, PodInfo, own_constraints};
use crate::preemption::{self, Preemption, Victims};
use crate::profile::Profile;
use crate::queue::Queue;
use crate::report::{Bound, Nomination, Reporter};
use crate::snapshot::Snapshot;
use crate::sources::Sources;
use crate::volumes::feeds::Feeds;
use crate::volumes::needs::Needs;
use crate::volumes::{self, Decisions};
use crate::{Config, Error};

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

pub(crate) struct Engine {
    client: Client,
    pub(crate) workers: Vec<Worker>,
    pub(crate) sources: Sources,
    pub(crate) demands: Demands,
    pub(crate) snapshot: Snapshot,
    pub(crate) queue: Queue,
    /// What is being done about the volumes of pods, by uid.
    decisions: HashMap<Arc<str>, Decisions>,
    random: SmallRng,
    permits: Arc<Semaphore>,
    outcomes: mpsc::UnboundedSender<Outcome>,
    /// Never holds more than `parallelism` entries: each has a permit.
    inbox: mpsc::UnboundedReceiver<Outcome>,
}

impl Engine {
    pub(crate) fn new(client: Client, config: Config) -> Self {
        let (outcomes, inbox) = mpsc::unbounded_channel();
        let mut random = SmallRng::seed_from_u64(config.seed.unwrap_or_else(rand::random));
        let worker = |profile: Profile| Worker {
            reporter: Reporter::new(client.clone(), &profile.scheduler_name),
            evaluator: Evaluator::new(SmallRng::seed_from_u64(random.random()), profile),
        };
        Self {
            workers: config.profiles.into_iter().map(worker).collect(),
            sources: Sources::new(&client),
            permits: Arc::new(Semaphore::new(config.parallelism.max(1))),
            demands: Demands::default(),
            snapshot: Snapshot::default(),
            queue: Queue::new(config.backoff),
            decisions: HashMap::new(),
            random,
            client,
            outcomes,
            inbox,
        }
    }

    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<(), Error> {
        let caches = self.client.caches();
        let (nodes, pods) = (caches.of::<Node>(), caches.of::<Pod>());
        let namespaces = caches.of::<Namespace>();
        let synced = async {
            tokio::join!(nodes.synced(), pods.synced(), namespaces.synced(), self.sources.synced());
            Feeds::synced(&self.client).await
        };
        let mut storage = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            feeds = synced => feeds,
        };
        let (mut nodes, mut pods) = (nodes.subscribe(), pods.subscribe());
        let mut namespaces = namespaces.subscribe();
        while !stop.is_cancelled() {
            // Everything known first: a decision on an old view is a wasted one.
            let mut busy = false;
            for _ in 0..TURN {
                let mut any = false;
                if let Some(change) = namespaces.try_next() {
                    self.namespace_changed(&change);
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
            let tried = self.schedule();
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
                change = storage.next() => {
                    self.storage_changed(&change.ok_or(Error::WatchEnded("volumes"))?);
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
    fn schedule(&mut self) -> bool {
        let mut tried = false;
        for _ in 0..TURN {
            let Ok(permit) = self.permits.clone().try_acquire_owned() else { return tried };
            let Some(pod) = self.queue.pop() else { return tried };
            tried = true;
            if let Some(worker) = self.profile_of(pod.scheduler_name()) {
                self.try_pod(worker, pod, permit);
            }
        }
        tried
    }

    fn try_pod(&mut self, worker: usize, mut pod: PodInfo, permit: OwnedSemaphorePermit) {
        let profile = self.workers[worker].evaluator.profile();
        if own_constraints(&pod.pod).is_empty() {
            let constraints = self.sources.default_spread(&pod.pod, &profile.default_spread);
            pod.spread = self.demands.spread(&pod.pod, &constraints, profile.system_spread);
        }
        match self.workers[worker].evaluator.filter(&pod, &self.snapshot) {
            Filtered::Some(candidates) => {
                let slot = self.workers[worker].evaluator.choose(candidates, &[]);
                self.bind(worker, pod, slot, permit);
            }
            Filtered::Nowhere(why) => self.nowhere(worker, pod, why, permit),
            Filtered::Refused(refusal) => {
                let (nodes, profile) =
                    (self.snapshot.order().len(), self.workers[worker].evaluator.profile());
                let outlook = match profile.preemption {
                    Some(_) => Outlook::NotHelpful(&[]),
                    None => Outlook::Disabled,
                };
                let text = message::refused(nodes, &refusal.reason, profile.deallocates, &outlook);
                self.queue.unschedulable(&pod.uid, 1 << refusal.filter);
                self.report(worker, pod, text, Nomination::Keep, permit);
            }
            Filtered::NoNodes => {
                // Any filter may be the one that the first node passes.
                self.queue.unschedulable(&pod.uid, u32::MAX);
                self.report(worker, pod, message::NO_NODES.to_owned(), Nomination::Keep, permit);
            }
        }
    }

    fn bind(&mut self, worker: usize, pod: PodInfo, slot: usize, permit: OwnedSemaphorePermit) {
        let node = self.snapshot.node(slot).name.clone();
        let decisions = match Needs::of(&pod, self.snapshot.volumes()) {
            Ok(Some(needs)) => {
                needs.decide(self.snapshot.node(slot), self.snapshot.volumes()).unwrap_or_default()
            }
            _ => Decisions::default(),
        };
        if !decisions.is_empty() {
            self.snapshot.volumes_mut().promise(&decisions, &node);
            self.decisions.insert(pod.uid.clone(), decisions.clone());
        }
        self.snapshot.nominate(&pod, None);
        self.snapshot.place(&pod, &node);
        self.notify(&Event::Placed(&pod));
        let (reporter, outcomes) = (self.workers[worker].reporter.clone(), self.outcomes.clone());
        let (client, permits) = (self.client.clone(), self.permits.clone());
        let patience = self.workers[worker].evaluator.profile().bind_timeout;
        tokio::spawn(async move {
            let mut permit = Some(permit);
            if !decisions.is_empty() {
                // Volumes may take minutes: others are not to wait for them.
                drop(permit.take());
                let bound = volumes::bind::bind(&client, &decisions, &node, patience).await;
                permit = permits.acquire_owned().await.ok();
                if let Err(error) = bound {
                    let text = format!("running PreBind plugin \"VolumeBinding\": {error}");
                    reporter.failed(&pod.pod, "SchedulerError", &text, Nomination::Keep).await;
                    let _ = outcomes.send(Outcome::Bound(pod.uid, Bound::Failed));
                    return;
                }
            }
            let bound = reporter.bind(&pod.pod, &node).await;
            // The engine may be gone by now, at shutdown.
            let _ = outcomes.send(Outcome::Bound(pod.uid, bound));
            drop(permit);
        });
    }

    /// No node takes the pod: others may have to make room.
    fn nowhere(
        &mut self,
        worker: usize,
        pod: PodInfo,
        why: Vec<(usize, Arc<Rejection>)>,
        permit: OwnedSemaphorePermit,
    ) {
        let rejected_by = why.iter().fold(0, |bits, (_, r)| bits | 1 << r.filter);
        let evaluator = &mut self.workers[worker].evaluator;
        let (deallocates, preempts) =
            (evaluator.profile().deallocates, evaluator.profile().preemption.is_some());
        let preemption = preempts.then(|| {
            let offset = self.random.random_range(0..why.len().max(1));
            preemption::run(evaluator, &pod, &self.snapshot, &why, &self.sources.budgets(), offset)
        });
        let reasons: Vec<Arc<Rejection>> = why.into_iter().map(|(_, r)| r).collect();
        let said = |outlook| message::unschedulable(reasons.len(), &reasons, deallocates, &outlook);
        match preemption {
            Some(Preemption::Found(victims)) => {
                let text = said(Outlook::Nominated);
                self.preempt(worker, pod, victims, rejected_by, text, permit);
            }
            Some(Preemption::NotHelpful(tried)) => {
                self.queue.unschedulable(&pod.uid, rejected_by);
                self.snapshot.nominate(&pod, None);
                self.report(worker, pod, said(Outlook::NotHelpful(&tried)), Nomination::Clear, permit);
            }
            Some(Preemption::NotEligible(text)) => {
                self.queue.unschedulable(&pod.uid, rejected_by);
                self.report(worker, pod, said(Outlook::NotEligible(text)), Nomination::Keep, permit);
            }
            None => {
                self.queue.unschedulable(&pod.uid, rejected_by);
                self.report(worker, pod, said(Outlook::Disabled), Nomination::Keep, permit);
            }
        }
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
        let less = |p: &&PodInfo| p.priority < pod.priority;
        let outbid: Vec<PodInfo> = self.snapshot.nominated(&node).iter().filter(less).cloned().collect();
        for other in &outbid {
            self.snapshot.nominate(other, None);
            self.queue.wake_one(&other.uid);
        }
        self.snapshot.nominate(&pod, Some(&node));
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

    fn report(
        &self,
        worker: usize,
        pod: PodInfo,
        text: String,
        nomination: Nomination<'static>,
        permit: OwnedSemaphorePermit,
    ) {
        let reporter = self.workers[worker].reporter.clone();
        tokio::spawn(async move {
            reporter.failed(&pod.pod, "Unschedulable", &text, nomination).await;
            drop(permit);
        });
    }

    fn ended(&mut self, outcome: Outcome) {
        if let Outcome::Bound(uid, _) = &outcome
            && let Some(decisions) = self.decisions.remove(uid)
        {
            self.snapshot.volumes_mut().settle(&decisions);
        }
        match outcome {
            // The watch may tell of the bound pod before or after this; either removes it from the queue.
            Outcome::Bound(uid, Bound::Done) => self.queue.remove(&uid),
            Outcome::Bound(uid, Bound::Moot | Bound::Failed) => {
                // Already told by the watch where it really is (or that it is gone): nothing to undo.
                if self.queue.get(&uid).is_none() {
                    return;
                }
                if let Some((_, freed)) = self.snapshot.remove(&uid) {
                    self.notify(&Event::Freed(&freed));
                }
                self.queue.failed(&uid);
            }
            Outcome::Preempted { uid, rejected_by, victims, failed } => {
                self.queue.unschedulable(&uid, rejected_by);
                // What happened while it was in flight woke nobody.
                if failed || victims.iter().any(|v| !self.snapshot.is_placed(v)) {
                    self.queue.wake_one(&uid);
                }
            }
        }
    }
}

pub(crate) fn notify(queue: &mut Queue, workers: &[Worker], snapshot: &Snapshot, event: &Event<'_>) {
    queue.notify(event, snapshot.namespaces(), |pod| {
        let mut profiles = workers.iter().map(|w| w.evaluator.profile());
        profiles.find(|p| p.scheduler_name == pod.scheduler_name())
    });
}

async fn until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
