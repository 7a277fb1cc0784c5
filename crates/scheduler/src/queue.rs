//! Pods that wait. Active ones are tried by priority and age; those that failed wait for their back-off, and those that
//! no node takes wait for an event that can help them (queueing hints).
use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::filter::GANG;
use crate::hints::Event;
use crate::metrics::{Attempt, Pending};
use crate::pod_info::PodInfo;
use crate::profile::Profile;
use crate::relations::Namespaces;

/// A pod that no event woke for so long is tried again: a hint may be wrong.
const FORGOTTEN: Duration = Duration::from_secs(300);

/// How long a pod waits after failed attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// After the first; each further one doubles it.
    pub initial: Duration,
    /// At most.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { initial: Duration::from_secs(1), max: Duration::from_secs(10) }
    }
}

impl Backoff {
    fn after(self, attempts: u32) -> Duration {
        self.initial.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(self.max)
    }
}

/// Where a pod waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Active,
    /// Until then; whether the wait may be cut short when nothing else is to do.
    Backoff(Instant, bool),
    /// Since then.
    Unschedulable(Instant),
    /// Taken out to be tried or bound.
    InFlight,
    /// Not to be tried before its group is complete.
    Held,
}

struct Waiting {
    pod: PodInfo,
    place: Place,
    /// How often no node took it.
    unschedulable: u32,
    /// How often an attempt failed for another reason, since then.
    errors: u32,
    failed_at: Instant,
    /// Since when it is here, and the attempt at it.
    attempt: Attempt,
    /// Bit set of filters.
    rejected_by: u32,
    /// Something happened that may help it while it was in flight.
    stirred: bool,
    /// Distinguishes entries of the heaps from older ones of the same pod.
    ticket: u64,
}

impl Waiting {
    fn begin(&mut self) {
        self.attempt = Attempt {
            since: self.attempt.since,
            began: Instant::now(),
            number: self.attempt.number.saturating_add(1),
        };
    }
}

/// The number of pods in such a place; `None`: they are not counted.
fn number_in(pending: &mut Pending, place: Place) -> Option<&mut usize> {
    match place {
        Place::Active => Some(&mut pending.active),
        Place::Backoff(..) => Some(&mut pending.backoff),
        Place::Unschedulable(_) => Some(&mut pending.unschedulable),
        Place::Held => Some(&mut pending.gated),
        Place::InFlight => None,
    }
}

/// A pod moved between two places.
fn moved(pending: &mut Pending, from: Place, to: Place) {
    if let Some(number) = number_in(pending, from) {
        *number = number.saturating_sub(1);
    }
    if let Some(number) = number_in(pending, to) {
        *number += 1;
    }
}

/// Order of active pods: priority, then since when they wait (or were tried last), then order of arrival.
#[derive(PartialEq, Eq)]
struct Rank {
    priority: i32,
    since: Reverse<Instant>,
    ticket: Reverse<u64>,
    uid: Arc<str>,
}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> Ordering {
        self.priority
            .cmp(&other.priority)
            .then_with(|| self.since.cmp(&other.since))
            .then_with(|| self.ticket.cmp(&other.ticket))
    }
}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The queue.
#[derive(Default)]
pub struct Queue {
    times: Backoff,
    pods: HashMap<Arc<str>, Waiting>,
    active: BinaryHeap<Rank>,
    /// By time and ticket.
    backoff: BTreeMap<(Instant, u64), Arc<str>>,
    /// By time and ticket.
    unschedulable: BTreeMap<(Instant, u64), Arc<str>>,
    /// In flight, and known to fit nowhere.
    asking: BTreeSet<Arc<str>>,
    pending: Pending,
    ticket: u64,
}

impl Queue {
    /// A queue with these waits.
    pub fn new(times: Backoff) -> Self {
        Self { times, ..Self::default() }
    }

    /// A pod came, or changed in what it asks for: a new one is tried at once, one that waits after its back-off.
    pub fn add(&mut self, pod: PodInfo) {
        let uid = pod.uid.clone();
        match self.pods.get_mut(&uid) {
            Some(waiting) => {
                waiting.pod = pod;
                match waiting.place {
                    Place::Unschedulable(_) => self.wake(&uid),
                    Place::InFlight => waiting.stirred = true,
                    Place::Active | Place::Backoff(..) | Place::Held => {}
                }
            }
            None => {
                let now = Instant::now();
                let waiting = Waiting {
                    pod,
                    place: Place::InFlight,
                    unschedulable: 0,
                    errors: 0,
                    failed_at: now,
                    attempt: Attempt { since: now, began: now, number: 0 },
                    rejected_by: 0,
                    stirred: false,
                    ticket: 0,
                };
                self.pods.insert(uid.clone(), waiting);
                self.put(&uid, Place::Active);
            }
        }
    }

    /// A pod changed in something that does not matter: keeps the newest object.
    pub fn refresh(&mut self, pod: PodInfo) {
        if let Some(waiting) = self.pods.get_mut(&pod.uid) {
            waiting.pod = pod;
        }
    }

    /// What a waiting pod asks for.
    pub fn get(&self, uid: &str) -> Option<&PodInfo> {
        self.pods.get(uid).map(|w| &w.pod)
    }

    /// The attempt at a pod.
    pub(crate) fn attempt(&self, uid: &str) -> Option<Attempt> {
        self.pods.get(uid).map(|w| w.attempt)
    }

    /// How many pods wait, those left out that are being tried or bound.
    pub(crate) fn pending(&self) -> Pending {
        self.pending
    }

    /// A pod is gone or bound.
    pub fn remove(&mut self, uid: &str) {
        if let Some(waiting) = self.pods.remove(uid) {
            self.unlist(waiting.place, waiting.ticket);
            moved(&mut self.pending, waiting.place, Place::InFlight);
            self.asking.remove(uid);
        }
    }

    fn unlist(&mut self, place: Place, ticket: u64) {
        match place {
            Place::Backoff(at, _) => drop(self.backoff.remove(&(at, ticket))),
            Place::Unschedulable(at) => drop(self.unschedulable.remove(&(at, ticket))),
            // The heap's entry is told by its ticket when it comes up.
            Place::Active | Place::InFlight | Place::Held => {}
        }
    }

    fn put(&mut self, uid: &Arc<str>, place: Place) {
        let Some(waiting) = self.pods.get_mut(uid) else { return };
        let (old, old_ticket) = (waiting.place, waiting.ticket);
        if old == Place::Active && place == Place::Active {
            return;
        }
        self.ticket += 1;
        (waiting.place, waiting.ticket, waiting.stirred) = (place, self.ticket, false);
        moved(&mut self.pending, old, place);
        if place == Place::InFlight {
            waiting.begin();
        }
        let (ticket, uid) = (self.ticket, uid.clone());
        match place {
            Place::Active => {
                let (priority, since) = (waiting.pod.priority, Reverse(waiting.failed_at));
                self.active.push(Rank { priority, since, ticket: Reverse(ticket), uid });
            }
            Place::Backoff(at, _) => drop(self.backoff.insert((at, ticket), uid)),
            Place::Unschedulable(at) => drop(self.unschedulable.insert((at, ticket), uid)),
            Place::InFlight | Place::Held => {}
        }
        self.unlist(old, old_ticket);
    }

    /// The next pod to try. With no active pod, one that only waits out its back-off after being unschedulable is taken:
    /// an idle scheduler can as well try.
    pub fn pop(&mut self) -> Option<PodInfo> {
        self.wake_due();
        while let Some(rank) = self.active.pop() {
            let Some(waiting) = self.pods.get_mut(&rank.uid) else { continue };
            if waiting.place == Place::Active && waiting.ticket == rank.ticket.0 {
                (waiting.place, waiting.stirred) = (Place::InFlight, false);
                waiting.begin();
                moved(&mut self.pending, Place::Active, Place::InFlight);
                return Some(waiting.pod.clone());
            }
        }
        let early = self
            .backoff
            .values()
            .find(|uid| self.pods.get(*uid).is_some_and(|w| matches!(w.place, Place::Backoff(_, true))));
        let uid = early?.clone();
        self.put(&uid, Place::InFlight);
        self.get(&uid).cloned()
    }

    /// No node takes the pod, which stays in flight while something is done about it: what helps it meanwhile is noted.
    pub fn asks(&mut self, uid: &Arc<str>, rejected_by: u32) {
        if let Some(waiting) = self.pods.get_mut(uid) {
            waiting.rejected_by = rejected_by;
            self.asking.insert(uid.clone());
        }
    }

    /// No node took the pod; `rejected_by` is a bit set of filters.
    pub fn unschedulable(&mut self, uid: &Arc<str>, rejected_by: u32) {
        let now = Instant::now();
        self.asking.remove(uid);
        if let Some(waiting) = self.pods.get_mut(uid) {
            (waiting.failed_at, waiting.rejected_by) = (now, rejected_by);
            (waiting.unschedulable, waiting.errors) = (waiting.unschedulable.saturating_add(1), 0);
            let stirred = waiting.stirred;
            self.put(uid, Place::Unschedulable(now));
            if stirred {
                self.wake(uid);
            }
        }
    }

    /// The attempt failed for another reason: it is repeated after its back-off.
    pub fn failed(&mut self, uid: &Arc<str>) {
        let now = Instant::now();
        if let Some(waiting) = self.pods.get_mut(uid) {
            waiting.failed_at = now;
            waiting.errors = waiting.errors.saturating_add(1);
            let at = now + self.times.after(waiting.errors);
            self.put(uid, Place::Backoff(at, false));
        }
    }

    /// Something happened: pods it can help are tried again, after their back-off. `profile` tells a pod's profile.
    pub fn notify<'p>(
        &mut self,
        event: &Event<'_>,
        namespaces: &Namespaces,
        profile: impl Fn(&PodInfo) -> Option<&'p Profile>,
    ) {
        if self.unschedulable.is_empty() && self.asking.is_empty() {
            return;
        }
        let mut helped = Vec::new();
        for uid in self.unschedulable.values().chain(&self.asking) {
            let Some(waiting) = self.pods.get_mut(uid) else { continue };
            let Some(profile) = profile(&waiting.pod) else { continue };
            let (helps, more) = event.judge(&waiting.pod, waiting.rejected_by, profile, namespaces);
            if !helps {
                waiting.rejected_by |= more;
            } else if waiting.place == Place::InFlight {
                waiting.stirred = true;
            } else {
                helped.push(uid.clone());
            }
        }
        for uid in helped {
            self.wake(&uid);
        }
    }

    /// The pod is tried again after its back-off, if it waits for an event.
    pub fn wake_one(&mut self, uid: &Arc<str>) {
        if self.pods.get(uid).is_some_and(|w| matches!(w.place, Place::Unschedulable(_))) {
            self.wake(uid);
        }
    }

    /// A pod that waits for an attempt waits for its group instead.
    pub fn hold(&mut self, uid: &Arc<str>) {
        if self.pods.get(uid).is_some_and(|w| matches!(w.place, Place::Active | Place::Backoff(..))) {
            self.put(uid, Place::Held);
        }
    }

    /// A pod that was taken out to be tried has to wait for its group: that was no attempt.
    pub fn came_too_early(&mut self, uid: &Arc<str>) {
        if let Some(waiting) = self.pods.get_mut(uid) {
            waiting.attempt.number = waiting.attempt.number.saturating_sub(1);
        }
        self.put(uid, Place::Held);
    }

    /// The pod's group is complete, or got another pod.
    pub fn release(&mut self, uid: &Arc<str>) {
        match self.pods.get(uid) {
            Some(waiting) if waiting.place == Place::Held => self.put(uid, Place::Active),
            Some(waiting) if waiting.rejected_by & 1 << GANG != 0 => self.wake_one(uid),
            _ => {}
        }
    }

    /// Takes out a certain pod to be tried with others of its group, wherever it waits.
    pub fn take(&mut self, uid: &Arc<str>) -> Option<PodInfo> {
        if matches!(self.pods.get(uid)?.place, Place::InFlight | Place::Held) {
            return None;
        }
        self.put(uid, Place::InFlight);
        self.get(uid).cloned()
    }

    fn wake(&mut self, uid: &Arc<str>) {
        let Some(waiting) = self.pods.get(uid) else { return };
        let at = waiting.failed_at + self.times.after(waiting.unschedulable);
        let place = if at <= Instant::now() { Place::Active } else { Place::Backoff(at, true) };
        self.put(uid, place);
    }

    fn wake_due(&mut self) {
        let now = Instant::now();
        while let Some((&(at, _), uid)) = self.backoff.first_key_value()
            && at <= now
        {
            let uid = uid.clone();
            self.put(&uid, Place::Active);
        }
        while let Some((&(since, _), uid)) = self.unschedulable.first_key_value()
            && since + FORGOTTEN <= now
        {
            let uid = uid.clone();
            self.put(&uid, Place::Active);
        }
    }

    /// When a pod becomes active by time alone.
    pub fn next_due(&self) -> Option<Instant> {
        let backoff = self.backoff.first_key_value().map(|((at, _), _)| *at);
        let forgotten = self.unschedulable.first_key_value().map(|((since, _), _)| *since + FORGOTTEN);
        backoff.into_iter().chain(forgotten).min()
    }

    /// Pods that wait, in flight included.
    pub fn len(&self) -> usize {
        self.pods.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::{self, Rejection};
    use crate::pod_info::Demands;
    use crate::snapshot::Snapshot;
    use serde_json::{Value, json};

    fn pod(demands: &mut Demands, name: &str, priority: i32, created: &str, spec: Value) -> PodInfo {
        let mut value =
            json!({"metadata": {"name": name, "uid": name, "creationTimestamp": created}, "spec": spec});
        value["spec"]["priority"] = json!(priority);
        value["spec"]["containers"] = json!([{"name": "c", "resources": {"requests": {"cpu": "1"}}}]);
        demands.info(&Arc::new(serde_json::from_value(value).expect("pod")))
    }

    fn node(name: &str, labels: Value, cpu: &str) -> Arc<k8s_openapi::api::core::v1::Node> {
        let value = json!({"metadata": {"name": name, "labels": labels}, "status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "110"}}});
        Arc::new(serde_json::from_value(value).expect("node"))
    }

    fn bits(rejection: &Rejection) -> u32 {
        1 << rejection.filter
    }

    #[tokio::test(start_paused = true)]
    async fn priority_then_time_in_the_queue_decides() {
        let mut demands = Demands::default();
        let mut queue = Queue::default();
        let created = "2026-01-01T00:00:00Z";
        for (name, priority) in [("first", 0), ("second", 0), ("important", 9)] {
            queue.add(pod(&mut demands, name, priority, created, json!({})));
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        let next = |queue: &mut Queue| queue.pop().map(|p| p.uid).expect("active");
        assert_eq!([next(&mut queue), next(&mut queue)].map(|p| p.to_string()), ["important", "first"]);
        // What was tried in vain is behind what waits.
        queue.failed(&"first".into());
        tokio::time::advance(Duration::from_millis(1)).await;
        queue.add(pod(&mut demands, "third", 0, created, json!({})));
        tokio::time::advance(Duration::from_secs(2)).await;
        let rest: Vec<_> = std::iter::from_fn(|| queue.pop()).map(|p| p.name().to_owned()).collect();
        assert_eq!(rest, ["second", "first", "third"]);
    }

    #[tokio::test(start_paused = true)]
    async fn only_an_event_that_helps_wakes_a_pod() {
        let mut demands = Demands::default();
        let mut queue = Queue::default();
        let p = pod(&mut demands, "p", 0, "2026-01-01T00:00:00Z", json!({"nodeSelector": {"disk": "ssd"}}));
        let (mut snapshot, profile) = (Snapshot::default(), Profile::default());
        let hdd = snapshot.set_node(&node("a", json!({"disk": "hdd"}), "4"));
        let rejection = filter::check(&p.demand, snapshot.node(hdd), &profile).expect_err("rejected");
        queue.add(p.clone());
        queue.pop().expect("active");
        queue.unschedulable(&p.uid, bits(&rejection));
        let notify = |queue: &mut Queue, event: Event<'_>| {
            queue.notify(&event, &Namespaces::new(), |_| Some(&profile));
        };
        notify(&mut queue, Event::Freed(&p));
        notify(&mut queue, Event::Placed(&p));
        notify(&mut queue, Event::Node(snapshot.node(hdd)));
        assert!(queue.pop().is_none(), "nothing helped");
        let ssd = snapshot.set_node(&node("b", json!({"disk": "ssd"}), "4"));
        notify(&mut queue, Event::Node(snapshot.node(ssd)));
        assert_eq!(
            queue.pop().map(|p| p.uid),
            Some(p.uid),
            "an idle scheduler does not wait out the back-off"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_attempt_waits_longer_each_time() {
        let mut demands = Demands::default();
        let mut queue = Queue::default();
        let p = pod(&mut demands, "p", 0, "2026-01-01T00:00:00Z", json!({}));
        queue.add(p.clone());
        let mut waits = Vec::new();
        for _ in 0..6 {
            queue.pop().expect("due");
            queue.failed(&p.uid);
            assert!(queue.pop().is_none());
            let due = queue.next_due().expect("due");
            waits.push(due.duration_since(Instant::now()).as_secs());
            tokio::time::advance(due.duration_since(Instant::now())).await;
        }
        assert_eq!(waits, [1, 2, 4, 8, 10, 10]);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_of_the_api_and_of_the_cluster_are_counted_apart() {
        let mut demands = Demands::default();
        let mut queue = Queue::default();
        let p = pod(&mut demands, "p", 0, "2026-01-01T00:00:00Z", json!({}));
        queue.add(p.clone());
        let wait = |queue: &Queue| queue.next_due().expect("due").duration_since(Instant::now()).as_secs();
        for _ in 0..3 {
            queue.pop().expect("active");
            queue.unschedulable(&p.uid, 1);
            queue.wake_one(&p.uid);
        }
        assert_eq!(wait(&queue), 4);
        assert_eq!(queue.pending(), Pending { backoff: 1, ..Pending::default() });
        assert_eq!(queue.attempt(&p.uid).map(|a| a.number), Some(3));
        queue.pop().expect("early");
        queue.failed(&p.uid);
        assert_eq!(wait(&queue), 1, "the first error");
        tokio::time::advance(Duration::from_secs(1)).await;
        queue.pop().expect("due");
        queue.unschedulable(&p.uid, 1);
        queue.wake_one(&p.uid);
        assert_eq!(wait(&queue), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_changes_waits_out_its_back_off() {
        let mut demands = Demands::default();
        let mut queue = Queue::default();
        let p = pod(&mut demands, "p", 0, "2026-01-01T00:00:00Z", json!({}));
        queue.add(p.clone());
        queue.pop().expect("active");
        queue.unschedulable(&p.uid, 1);
        queue.add(p.clone());
        assert_eq!(queue.next_due().map(|at| at.duration_since(Instant::now()).as_secs()), Some(1));
        queue.pop().expect("an idle scheduler does not wait");
        // While it is tried it changes once more.
        queue.add(p.clone());
        queue.unschedulable(&p.uid, 1);
        assert_eq!(queue.next_due().map(|at| at.duration_since(Instant::now()).as_secs()), Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn what_helps_a_pod_while_its_victims_are_asked_is_not_lost() {
        let mut demands = Demands::default();
        let mut queue = Queue::default();
        let p = pod(&mut demands, "p", 0, "2026-01-01T00:00:00Z", json!({}));
        let (mut snapshot, profile) = (Snapshot::default(), Profile::default());
        let slot = snapshot.set_node(&node("a", json!({}), "4"));
        queue.add(p.clone());
        queue.pop().expect("active");
        queue.asks(&p.uid, 1 << filter::NODE_RESOURCES_FIT);
        queue.notify(&Event::Node(snapshot.node(slot)), &Namespaces::new(), |_| Some(&profile));
        assert!(queue.pop().is_none(), "in flight");
        queue.unschedulable(&p.uid, 1 << filter::NODE_RESOURCES_FIT);
        assert_eq!(queue.pop().map(|p| p.uid), Some(p.uid));
    }

    #[tokio::test(start_paused = true)]
    async fn a_held_pod_is_tried_at_once_when_its_group_is_complete() {
        let mut demands = Demands::default();
        let mut queue = Queue::default();
        let p = pod(&mut demands, "p", 0, "2026-01-01T00:00:00Z", json!({}));
        let q = pod(&mut demands, "q", 0, "2026-01-02T00:00:00Z", json!({}));
        queue.add(p.clone());
        queue.add(q.clone());
        queue.hold(&p.uid);
        assert_eq!(queue.pop().map(|p| p.uid), Some(q.uid.clone()));
        queue.came_too_early(&q.uid);
        assert!(queue.pop().is_none() && queue.take(&p.uid).is_none() && queue.next_due().is_none());
        queue.release(&p.uid);
        queue.release(&q.uid);
        assert_eq!(queue.pop().map(|p| p.uid), Some(p.uid.clone()));
        assert_eq!(queue.take(&q.uid).map(|p| p.uid), Some(q.uid.clone()), "with the rest of its group");
        queue.unschedulable(&p.uid, 1 << GANG);
        queue.unschedulable(&q.uid, 1);
        queue.release(&p.uid);
        queue.release(&q.uid);
        assert_eq!(queue.pop().map(|p| p.uid), Some(p.uid));
        assert!(queue.pop().is_none(), "a new pod of the group does not help this one");
    }

    #[tokio::test(start_paused = true)]
    async fn a_forgotten_pod_is_tried_again() {
        let mut demands = Demands::default();
        let mut queue = Queue::default();
        let p = pod(&mut demands, "p", 0, "2026-01-01T00:00:00Z", json!({}));
        queue.add(p.clone());
        queue.pop().expect("active");
        queue.unschedulable(&p.uid, 1);
        tokio::time::advance(FORGOTTEN).await;
        assert!(queue.pop().is_some());
        queue.remove(&p.uid);
        assert!(queue.is_empty() && queue.next_due().is_none());
        assert_eq!(queue.pending(), Pending::default());
    }
}
