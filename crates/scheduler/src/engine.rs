//! The scheduler's loop: one task that owns snapshot and queue.
use std::sync::Arc;

use client::{Change, Client};
use k8s_openapi::api::core::v1::{Node, Pod};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::evaluate::{Evaluator, Placement};
use crate::message;
use crate::pod_info::{Demands, PodInfo};
use crate::queue::{Event, Queue};
use crate::report::{Bound, Reporter};
use crate::snapshot::Snapshot;
use crate::{Config, Error};

/// Changes taken, and pods tried, before others get their turn on the thread.
const TURN: usize = 64;

pub(crate) struct Engine {
    client: Client,
    config: Config,
    reporter: Reporter,
    demands: Demands,
    snapshot: Snapshot,
    queue: Queue,
    evaluator: Evaluator,
    permits: Arc<Semaphore>,
    outcomes: mpsc::UnboundedSender<(Arc<str>, Bound)>,
    /// Never holds more than `parallelism` entries: each has a permit.
    inbox: mpsc::UnboundedReceiver<(Arc<str>, Bound)>,
}

fn is_terminal(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

fn is_gated(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|s| s.scheduling_gates.as_ref()).is_some_and(|g| !g.is_empty())
}

impl Engine {
    pub(crate) fn new(client: Client, config: Config) -> Self {
        let (outcomes, inbox) = mpsc::unbounded_channel();
        let random = SmallRng::seed_from_u64(config.seed.unwrap_or_else(rand::random));
        Self {
            reporter: Reporter::new(client.clone(), &config.scheduler_name),
            evaluator: Evaluator::new(random, config.percentage_of_nodes_to_score),
            permits: Arc::new(Semaphore::new(config.parallelism.max(1))),
            demands: Demands::default(),
            snapshot: Snapshot::default(),
            queue: Queue::default(),
            client,
            config,
            outcomes,
            inbox,
        }
    }

    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<(), Error> {
        let (nodes, pods) = (self.client.caches().of::<Node>(), self.client.caches().of::<Pod>());
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = async { nodes.synced().await; pods.synced().await } => {}
        }
        let (mut nodes, mut pods) = (nodes.subscribe(), pods.subscribe());
        while !stop.is_cancelled() {
            // Everything known first: a decision on an old view is a wasted one.
            let mut busy = false;
            for _ in 0..TURN {
                let mut any = false;
                if let Some(change) = nodes.try_next() {
                    self.node_changed(&change);
                    any = true;
                }
                if let Some(change) = pods.try_next() {
                    self.pod_changed(&change);
                    any = true;
                }
                if let Ok((uid, bound)) = self.inbox.try_recv() {
                    self.bound(&uid, bound);
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
                change = nodes.next() => self.node_changed(&change.ok_or(Error::WatchEnded("nodes"))?),
                change = pods.next() => self.pod_changed(&change.ok_or(Error::WatchEnded("pods"))?),
                Some((uid, bound)) = self.inbox.recv() => self.bound(&uid, bound),
                () = until(due), if self.permits.available_permits() > 0 => {}
            }
        }
        Ok(())
    }

    /// Tries up to a turn of pods, as long as there are permits to report the outcome; whether any was tried.
    fn schedule(&mut self) -> bool {
        let mut tried = false;
        for _ in 0..TURN {
            let Ok(permit) = self.permits.clone().try_acquire_owned() else { return tried };
            let Some(pod) = self.queue.pop() else { return tried };
            tried = true;
            let (reporter, outcomes) = (self.reporter.clone(), self.outcomes.clone());
            match self.evaluator.place(&pod.demand, &self.snapshot) {
                Placement::Node(slot) => {
                    let node = self.snapshot.node(slot).name.clone();
                    self.snapshot.place(&pod, &node);
                    tokio::spawn(async move {
                        let bound = reporter.bind(&pod.pod, &node).await;
                        // The engine may be gone by now, at shutdown.
                        let _ = outcomes.send((pod.uid, bound));
                        drop(permit);
                    });
                }
                Placement::Nowhere(rejections) => {
                    let filters = rejections.iter().fold(0, |bits, r| bits | 1 << r.filter);
                    self.queue.unschedulable(&pod.uid, filters);
                    let never =
                        pod.pod.spec.as_ref().and_then(|s| s.preemption_policy.as_deref()) == Some("Never");
                    let text = message::unschedulable(&rejections, never);
                    tokio::spawn(async move {
                        reporter.failed(&pod.pod, "Unschedulable", &text).await;
                        drop(permit);
                    });
                }
                Placement::NoNodes => {
                    // Any filter may be the one that the first node passes.
                    self.queue.unschedulable(&pod.uid, u32::MAX);
                    tokio::spawn(async move {
                        reporter.failed(&pod.pod, "Unschedulable", message::NO_NODES).await;
                        drop(permit);
                    });
                }
            }
        }
        tried
    }

    fn bound(&mut self, uid: &Arc<str>, bound: Bound) {
        match bound {
            // The watch may tell of the bound pod before or after this; either removes it from the queue.
            Bound::Done => self.queue.remove(uid),
            Bound::Moot | Bound::Failed => {
                // Already told by the watch where it really is (or that it is gone): nothing to undo.
                if self.queue.get(uid).is_none() {
                    return;
                }
                if let Some((_, freed)) = self.snapshot.remove(uid) {
                    self.queue.notify(&Event::Freed(&freed));
                }
                self.queue.failed(uid);
            }
        }
    }

    fn node_changed(&mut self, change: &Change<Node>) {
        match change {
            Change::Added(node) => {
                let slot = self.snapshot.set_node(node);
                self.queue.notify(&Event::Node(self.snapshot.node(slot)));
            }
            Change::Modified { old, new } => {
                let seen = |n: &Node| {
                    let (spec, status) = (n.spec.as_ref(), n.status.as_ref());
                    (
                        n.metadata.labels.clone(),
                        spec.map(|s| (s.taints.clone(), s.unschedulable)),
                        status.and_then(|s| s.allocatable.clone()),
                    )
                };
                // Heartbeats and the like change nothing that a filter or score looks at.
                if seen(old) != seen(new) {
                    let slot = self.snapshot.set_node(new);
                    self.queue.notify(&Event::Node(self.snapshot.node(slot)));
                }
            }
            Change::Deleted(node) => {
                self.snapshot.remove_node(node.metadata.name.as_deref().unwrap_or_default())
            }
        }
    }

    fn pod_changed(&mut self, change: &Change<Pod>) {
        match change {
            Change::Added(pod) => self.pod_is(pod, None),
            Change::Modified { old, new } => self.pod_is(new, Some(old)),
            Change::Deleted(pod) => self.pod_gone(pod),
        }
    }

    fn pod_gone(&mut self, pod: &Pod) {
        self.queue.remove(uid(pod));
        if let Some((_, freed)) = self.snapshot.remove(uid(pod)) {
            self.queue.notify(&Event::Freed(&freed));
        }
    }

    fn pod_is(&mut self, pod: &Arc<Pod>, old: Option<&Arc<Pod>>) {
        if is_terminal(pod) {
            return self.pod_gone(pod);
        }
        let node = node_of(pod);
        if !node.is_empty() {
            self.queue.remove(uid(pod));
            let unchanged = old.is_some_and(|o| node_of(o) == node && same_demand(o, pod));
            if unchanged && self.snapshot.is_placed(uid(pod)) {
                return;
            }
            let info = self.demands.info(pod);
            let before = self.snapshot.remove_if_different(&info, node);
            self.snapshot.place(&info, node);
            if let Some(before) = before {
                self.queue.notify(&Event::Freed(&before));
            }
            return;
        }
        let ours = pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref()).unwrap_or("default-scheduler")
            == self.config.scheduler_name;
        if !ours || is_gated(pod) || pod.metadata.deletion_timestamp.is_some() {
            return self.queue.remove(uid(pod));
        }
        let info: PodInfo = self.demands.info(pod);
        let known = self.queue.get(uid(pod)).map(|p| (p.demand.id, p.priority));
        if known == Some((info.demand.id, info.priority)) {
            // Our own condition, most of the time.
            self.queue.refresh(info);
        } else if !self.snapshot.is_placed(uid(pod)) || known.is_some() {
            self.queue.add(info);
        }
    }
}

fn same_demand(a: &Pod, b: &Pod) -> bool {
    let of = |p: &Pod| p.spec.as_ref().map(|s| (s.containers.len(), s.resources.clone()));
    let resources = |p: &Pod| {
        p.spec.iter().flat_map(|s| s.containers.iter().map(|c| c.resources.clone())).collect::<Vec<_>>()
    };
    a.metadata.generation == b.metadata.generation || (of(a) == of(b) && resources(a) == resources(b))
}

async fn until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
