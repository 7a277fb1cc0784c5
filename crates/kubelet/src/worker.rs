//! One task per pod: looks at the pod and at the runtime, plans, reports, acts; then waits for the next thing that
//! happens (the pod changes, a container starts or ends, a probe finds something, a ConfigMap changes, a time comes).
//!
//! Inputs: the newest Pod (`watch`), a wake-up from runtime events (`Notify`), probe results and ended kills (`mpsc`),
//! changes of what the pod refers to (`Notify`).
//! Outputs: CRI calls, the pod's status ([`report`]), Events, and at last the pod's deletion.
//!
//! A step that fails is held back for a while (`Backoffs::hold`); nothing else of the pod waits for it. Steps that
//! can take long (an image pull, a start hook) end early when the pod is deleted.

mod claims;
mod health;
mod hooks;
mod image;
mod old;
mod pinning;
pub(crate) mod report;
pub(crate) mod resize;
mod start;
mod starting;
mod stop;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use client::events::EventType;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container as Spec, ObjectReference, Pod};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::allocations;
use crate::dra;
use crate::eviction::{Cause, EVICTED, Eviction};
use crate::manager::Shared;
use crate::metrics;
use crate::observed::{self, Observed, Run};
use crate::plan::{self, Action, Backoffs, Health};
use crate::pod_status::{self, Facts, Waiting};
use crate::preemption;
use crate::probes::ProbeEvent;
use crate::references::{self, Watched};
use crate::shutdown;
use crate::volumes;
use report::StatusWriter;
use starting::Starting;

/// A step that failed is tried again after this, doubling.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// The same for an image that could not be pulled.
const PULL_RETRY: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));
/// So long a failed pull shows its cause before it shows that it waits.
const PULL_CAUSE: SignedDuration = SignedDuration::from_secs(2);
/// Probe results, and ended kills, that may wait.
const RESULTS: usize = 32;
/// What the message of a pod begins with that was not let in.
const REFUSED: &str = "Pod was rejected: ";
/// Reasons of the end of pods for the sake of the node or of other pods.
const FOR_OTHERS: [&str; 3] = [EVICTED, preemption::REASON, shutdown::REASON];

/// What others may know of a pod's containers: names to ids, for logs and exec.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The last look at the runtime.
    pub observed: Observed,
    /// Why containers wait.
    pub waiting: Waiting,
    /// The pod is over, and so are its volumes.
    pub released: bool,
}

/// How a step went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The runtime's state changed: look again at once.
    Changed,
    /// Under way, or to be tried again later; other steps go on.
    Waits,
}

/// The task of one pod.
pub struct Worker {
    shared: Arc<Shared>,
    uid: String,
    pod: watch::Receiver<Arc<Pod>>,
    wake: Arc<Notify>,
    stop: CancellationToken,
    snapshot: watch::Sender<Snapshot>,
    status: StatusWriter,
    observed: Observed,
    waiting: Waiting,
    health: Health,
    ready: BTreeMap<String, bool>,
    backoffs: Backoffs,
    /// How long each step that failed waits the next time; by container name, [`plan::SANDBOX`] for the pod's own.
    failures: HashMap<String, client::queue::Backoff>,
    /// Pulls that failed: their cause is shown until then.
    pulls: HashMap<String, Timestamp>,
    mounted: Option<volumes::Mounted>,
    /// The pod as the volumes were last written from.
    written_from: Option<Arc<Pod>>,
    /// When volumes that could not be brought up to date are tried again.
    content_at: Option<Instant>,
    /// What the pod refers to, watched; and the wake-up.
    references: Option<Vec<((references::Kind, String), Arc<Watched>)>>,
    changed: Arc<Notify>,
    /// Containers being stopped, by id: when they are killed at the latest.
    killing: HashMap<String, Instant>,
    kills: (mpsc::Sender<(String, Instant)>, mpsc::Receiver<(String, Instant)>),
    prober: HashMap<String, health::Probes>,
    /// Stop hooks that have begun, by container; a channel closes when its hook is over.
    stop_hooks: HashMap<String, watch::Receiver<()>>,
    results: (mpsc::Sender<ProbeEvent>, mpsc::Receiver<ProbeEvent>),
    killed: Option<(String, String)>,
    /// The node wants the pod's end.
    evicted: watch::Receiver<Option<Eviction>>,
    ended: bool,
    /// Volumes of claims are given back.
    released: bool,
    resize: resize::Resize,
    /// What kept the runtime from it, told once.
    resize_failed: Option<String>,
    allocations: watch::Receiver<allocations::Books>,
    /// The processors that containers were told, by id.
    pinned: HashMap<String, String>,
    /// A pod that had not begun yet, until it has started.
    starting: Option<Starting>,
    /// Somebody's processors changed.
    processors: watch::Receiver<u64>,
    /// The devices of the pod's claims could not be made ready.
    unprepared: bool,
    /// Drivers of claims come and go, and their devices get better or worse.
    drivers: (watch::Receiver<u64>, watch::Receiver<u64>),
    /// So do those of device plugins.
    plugins: watch::Receiver<u64>,
}

impl Worker {
    /// For the pod that `pod` holds.
    pub fn new(
        shared: Arc<Shared>,
        uid: String,
        pod: watch::Receiver<Arc<Pod>>,
        wake: Arc<Notify>,
        snapshot: watch::Sender<Snapshot>,
        (status, evicted): (StatusWriter, watch::Receiver<Option<Eviction>>),
        stop: CancellationToken,
    ) -> Self {
        let allocations = shared.allocations.changed();
        let fresh = pod.borrow().status.as_ref().is_none_or(|status| status.start_time.is_none());
        let processors = shared.managers.changed();
        let drivers = (shared.claims.drivers.present(), shared.claims.drivers.reported());
        let plugins = shared.devices.changed();
        let backoffs = Backoffs::up_to(shared.longest_backoff);
        Self {
            shared,
            uid,
            pod,
            wake,
            stop,
            snapshot,
            status,
            observed: Observed::default(),
            waiting: Waiting::new(),
            health: Health::default(),
            ready: BTreeMap::new(),
            backoffs,
            failures: HashMap::new(),
            pulls: HashMap::new(),
            mounted: None,
            written_from: None,
            content_at: None,
            references: None,
            changed: Arc::default(),
            killing: HashMap::new(),
            kills: mpsc::channel(RESULTS),
            prober: HashMap::new(),
            stop_hooks: HashMap::new(),
            results: mpsc::channel(RESULTS),
            killed: None,
            evicted,
            ended: false,
            released: false,
            resize: resize::Resize::default(),
            resize_failed: None,
            allocations,
            pinned: HashMap::new(),
            starting: fresh.then(Starting::new),
            processors,
            unprepared: false,
            drivers,
            plugins,
        }
    }

    /// Runs until the pod is gone or the kubelet stops; then containers are left as they are. Of a pod that is gone: the object as
    /// it was seen last.
    pub async fn run(mut self) -> Option<Arc<Pod>> {
        let mut retry = client::queue::Backoff::new(RETRY.0, RETRY.1);
        let mut kind = "create";
        loop {
            let begin = Instant::now();
            let pod = self.pod.borrow_and_update().clone();
            if pod.metadata.deletion_timestamp.is_some() {
                kind = "kill";
            }
            self.allocations.mark_unchanged();
            self.processors.mark_unchanged();
            self.drivers.0.mark_unchanged();
            self.drivers.1.mark_unchanged();
            self.plugins.mark_unchanged();
            let seen = pod.clone();
            let pod = self.allocate(&pod);
            let timer;
            match observed::observe(&self.shared.cri, &self.uid, &self.observed).await {
                Ok(observed) => {
                    retry.reset();
                    self.observed = observed;
                    let next = self.step(&pod).await;
                    metrics::POD_WORKER.time(&[std::mem::replace(&mut kind, "sync")], begin.elapsed());
                    match next {
                        Next::Done => return Some(seen),
                        Next::Again if self.stop.is_cancelled() => return None,
                        Next::Again => continue,
                        Next::Wait(at) => {
                            timer = [at, self.pin().await].into_iter().flatten().min();
                            self.follow_content(&pod).await;
                            self.release_when_over(&pod).await;
                        }
                    }
                }
                // what was known stays reported: a runtime that does not answer says nothing about its containers
                Err(error) => {
                    tracing::warn!(pod = self.uid, error = error.message(), "the runtime does not answer");
                    timer = Some(Instant::now() + retry.next());
                }
            }
            let timer = [timer, self.content_timer(&pod)].into_iter().flatten().min();
            let claims = dra::claim::has_any(&pod);
            let devices = self.shared.devices.has_any(&self.uid);
            tokio::select! {
                () = self.stop.cancelled() => return None,
                changed = self.pod.changed() => {
                    if changed.is_err() {
                        return None;
                    }
                    kind = "update";
                }
                () = self.wake.notified() => {}
                () = self.changed.notified() => self.referenced(),
                Some(result) = self.results.1.recv() => self.probed(&pod, result),
                Some((id, deadline)) = self.kills.1.recv() => {
                    if self.killing.get(&id) == Some(&deadline) {
                        self.killing.remove(&id);
                    }
                }
                Ok(()) = self.evicted.changed() => {}
                Ok(()) = self.processors.changed() => {}
                Ok(()) = self.drivers.0.changed(), if claims => self.driver_came(),
                Ok(()) = self.drivers.1.changed(), if claims => {}
                Ok(()) = self.plugins.changed(), if devices => {}
                // others take less now
                Ok(()) = self.allocations.changed(), if self.resize.pending.is_some() => {}
                () = until(timer) => {}
            }
        }
    }

    /// Plans and acts once.
    async fn step(&mut self, pod: &Arc<Pod>) -> Next {
        self.follow_probes(pod);
        let now = Timestamp::now();
        let past =
            matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"));
        let late = plan::past_deadline(pod, now) == Some(true);
        if late && self.killed.is_none() && !past && !plan::is_over(pod, &self.observed) {
            let text = "Pod was active on the node longer than the specified deadline";
            self.killed = Some(("DeadlineExceeded".to_owned(), text.to_owned()));
            self.ended = true;
            self.event(pod, None, EventType::Normal, "DeadlineExceeded", text);
        }
        if !past {
            self.follow_eviction(pod);
        }
        let hurried = self.hurried(pod);
        let pod = hurried.as_ref().unwrap_or(pod);
        let plan = plan::next(pod, &self.observed, &self.health, &self.backoffs, self.ended || past, now);
        let cause = self.note_waits(pod, &plan, now);
        if self.apply_resize(pod).await == Step::Changed {
            return Next::Again;
        }
        let ends = self.ended || past || late || pod.metadata.deletion_timestamp.is_some();
        let again = self.unprepare_claims(pod, ends || plan::is_over(pod, &self.observed)).await;
        let again = [again, self.resize.again].into_iter().flatten().min();
        self.publish(pod);
        let wake = [plan.wake, cause].into_iter().flatten().min().map(instant);
        let mut next = Next::Wait([wake, again].into_iter().flatten().min());
        for action in plan.actions {
            if action == Action::Finish {
                if self.shared.claims.holds(&self.uid) {
                    continue;
                }
                return match self.finish(pod).await {
                    true => Next::Done,
                    false => Next::Wait(Some(Instant::now() + self.failed(plan::SANDBOX))),
                };
            }
            if self.act(pod, &action).await == Step::Changed {
                next = Next::Again;
            } else if let Next::Wait(at) = next {
                let held = self.held(&action, now).map(instant);
                next = Next::Wait([at, held].into_iter().flatten().min());
            }
        }
        next
    }

    /// Takes in that the node ends the pod, now or before this kubelet began.
    fn follow_eviction(&mut self, pod: &Pod) {
        if self.killed.is_some() {
            return;
        }
        let eviction = self.evicted.borrow_and_update().clone();
        if let Some(eviction) = eviction {
            let Eviction { reason, mut message, cause, annotations, .. } = eviction;
            // the node's own event tells of all that end with it
            if reason != shutdown::REASON {
                let (about, recorder) = (client::events::reference(pod), &self.shared.recorder);
                recorder.annotated(&about, EventType::Warning, &reason, message.clone(), annotations);
            }
            if cause == Cause::Refusal {
                message.insert_str(0, REFUSED);
            }
            self.killed = Some((reason, message));
        } else if let Some(message) = pod_status::eviction_begun(pod) {
            let reason = match message.as_str() {
                preemption::MESSAGE => preemption::REASON,
                shutdown::MESSAGE => shutdown::REASON,
                _ => EVICTED,
            };
            self.killed = Some((reason.to_owned(), message));
        }
        self.ended |= self.killed.is_some();
    }

    /// Why the node ends the pod, where it does.
    fn cause(&self) -> Option<Cause> {
        self.evicted.borrow().as_ref().map(|eviction| eviction.cause)
    }

    /// The pod with the grace period that an eviction leaves it.
    fn hurried(&self, pod: &Pod) -> Option<Arc<Pod>> {
        let grace = self.evicted.borrow().as_ref()?.grace.min(plan::grace(pod));
        let mut pod = pod.clone();
        pod.metadata.deletion_grace_period_seconds = Some(grace);
        Some(Arc::new(pod))
    }

    /// When the step that `action` stands for may be tried again.
    fn held(&self, action: &Action, now: Timestamp) -> Option<Timestamp> {
        match action {
            Action::Sandbox(_) | Action::StopSandbox(_) => self.backoffs.held(plan::SANDBOX, now),
            Action::Start { name, .. } => {
                let cause = self.pulls.get(name).copied().filter(|at| *at > now);
                [cause, self.backoffs.held(name, now)].into_iter().flatten().min()
            }
            Action::Kill { .. } | Action::Prepare { .. } | Action::Finish => None,
        }
    }

    /// One step.
    async fn act(&mut self, pod: &Arc<Pod>, action: &Action) -> Step {
        match action {
            Action::Sandbox(attempt) => self.make_sandbox(pod, *attempt).await,
            Action::Start { name, attempt } => self.start(pod, name, *attempt).await,
            Action::Kill { id, name, why, grace, hook } => {
                self.kill(pod, (id, name), why, *grace, *hook);
                Step::Waits
            }
            Action::Prepare { id, name, grace } => {
                self.begin_stop(pod, (id, name), *grace);
                Step::Waits
            }
            Action::StopSandbox(id) => self.stop_sandbox(pod, id).await,
            Action::Finish => Step::Waits,
        }
    }

    /// Counts a failure of the step `name`, and says how long it waits.
    fn failed(&mut self, name: &str) -> Duration {
        let fresh = || client::queue::Backoff::new(RETRY.0, RETRY.1);
        let delay = self.failures.entry(name.to_owned()).or_insert_with(fresh).next();
        self.hold(name, delay);
        delay
    }

    fn hold(&mut self, name: &str, delay: Duration) {
        let delay = SignedDuration::try_from(delay).unwrap_or(SignedDuration::MAX);
        let until = Timestamp::now().saturating_add(delay).unwrap_or(Timestamp::MAX);
        self.backoffs.hold(name, until);
    }

    fn succeeded(&mut self, name: &str) {
        self.failures.remove(name);
        self.pulls.remove(name);
        self.backoffs.release(name);
    }

    /// Ends early when the pod is deleted, the node ends it or the kubelet stops.
    async fn unless_deleted<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            () = self.is_to_end() => None,
        }
    }

    /// The same of what may take minutes: what probes of other containers find meanwhile is told.
    async fn meanwhile<T>(&mut self, pod: &Pod, work: impl Future<Output = T>) -> Option<T> {
        let (mut work, mut end) = (pin!(work), pin!(self.is_to_end()));
        loop {
            tokio::select! {
                done = &mut work => return Some(done),
                () = &mut end => return None,
                Some(result) = self.results.1.recv() => {
                    self.probed(pod, result);
                    self.publish(pod);
                }
            }
        }
    }

    /// Waits until the pod is to end, or the kubelet.
    fn is_to_end(&self) -> impl Future<Output = ()> + use<> {
        let (mut pod, mut evicted, stop) = (self.pod.clone(), self.evicted.clone(), self.stop.clone());
        async move {
            tokio::select! {
                _ = pod.wait_for(|p| p.metadata.deletion_timestamp.is_some()) => {}
                _ = evicted.wait_for(Option::is_some) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    fn event(
        &self,
        pod: &Pod,
        container: Option<(&Spec, &str)>,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let mut about: ObjectReference = client::events::reference(pod);
        if let Some((spec, list)) = container {
            about.field_path = Some(format!("spec.{list}{{{}}}", spec.name));
        }
        self.shared.recorder.event(&about, kind, reason, message);
    }

    /// Containers that could start but for a back-off say so. Returns when that changes by itself.
    fn note_waits(&mut self, pod: &Pod, plan: &plan::Plan, now: Timestamp) -> Option<Timestamp> {
        let mut crashing = Vec::new();
        let deleted = pod.metadata.deletion_timestamp.is_some();
        let specs = pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers));
        for spec in specs.filter(|_| plan.wake.is_some() && !deleted) {
            let last = self.observed.newest(&spec.name).filter(|c| c.run == Run::Exited);
            let starts = |a: &Action| matches!(a, Action::Start { name, .. } if *name == spec.name);
            if let Some(last) = last
                && self.backoffs.due(&spec.name, last.finished) > now
                && !plan.actions.iter().any(starts)
            {
                crashing.push(spec.name.clone());
            }
        }
        self.waiting.retain(|name, (reason, _)| reason != "CrashLoopBackOff" || crashing.contains(name));
        for name in crashing {
            if self.waiting.get(&name).is_some_and(|(reason, _)| reason == "CrashLoopBackOff") {
                continue;
            }
            let whole = describe(pod);
            let delay = words(self.backoffs.delay(&name));
            let message = format!("back-off {delay} restarting failed container={name} pod={whole}");
            self.waiting.insert(name.clone(), ("CrashLoopBackOff".to_owned(), message));
            if let Some((spec, list)) = plan::find(pod, &name) {
                let text = format!("Back-off restarting failed container {name} in pod {whole}");
                self.event(pod, Some((&spec, list)), EventType::Warning, "BackOff", text);
            }
        }
        let over: Vec<String> =
            self.pulls.iter().filter(|(_, at)| **at <= now).map(|(name, _)| name.clone()).collect();
        for name in over {
            self.pulls.remove(&name);
            let Some((spec, list)) = plan::find(pod, &name) else { continue };
            let text = format!("Back-off pulling image {:?}", spec.image.as_deref().unwrap_or_default());
            let about = Some((&spec, list));
            self.event(pod, about, EventType::Normal, "BackOff", text.clone());
            self.event(pod, about, EventType::Warning, "Failed", "Error: ImagePullBackOff");
            let cause =
                self.waiting.get(&name).map(|(reason, m)| format!("{reason}: {m}")).unwrap_or_default();
            self.waiting.insert(name, ("ImagePullBackOff".to_owned(), format!("{text}: {cause}")));
        }
        self.pulls.values().copied().min()
    }

    /// Reports the pod's status where it changed.
    fn publish(&mut self, pod: &Pod) {
        let seen = Snapshot {
            observed: self.observed.clone(),
            waiting: self.waiting.clone(),
            released: self.released,
        };
        self.snapshot.send_replace(seen);
        let facts = Facts {
            runtime: &self.shared.runtime_name,
            host_ips: &self.shared.host_ips,
            waiting: &self.waiting,
            ready: &self.ready,
            started: &self.health.started,
            killed: self.killed.as_ref(),
            resize: &self.resize,
            holds: self.shared.claims.holds(&self.uid),
            devices: &self.devices(pod),
            disrupted: self.killed.as_ref().is_some_and(|(reason, _)| FOR_OTHERS.contains(&reason.as_str()))
                && self.cause().is_none_or(|cause| cause == Cause::Disruption),
            refused: self.cause() == Some(Cause::Refusal),
            now: Timestamp::now(),
        };
        let status = pod_status::compute(pod, &self.observed, &facts);
        let now = Timestamp::now();
        if self.starting.as_mut().is_some_and(|starting| starting.look(pod, &status, now)) {
            self.starting = None;
        }
        self.status.set(status, pod);
    }

    fn pod_dir(&self) -> PathBuf {
        self.shared.root.join("pods").join(&self.uid)
    }
}

/// What a step leads to.
enum Next {
    /// The pod is gone.
    Done,
    /// Something changed.
    Again,
    /// Nothing to do until something happens, or until then.
    Wait(Option<Instant>),
}

/// The moment on the timer's clock.
fn instant(at: Timestamp) -> Instant {
    let wait = Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default();
    // one more, since the two clocks differ in the last digits
    Instant::now() + wait.min(Duration::from_secs(86_400)) + Duration::from_millis(1)
}

async fn until(timer: Option<Instant>) {
    match timer {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// `NAME_NAMESPACE(UID)`, as Events name a pod.
pub(crate) fn describe(pod: &Pod) -> String {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let meta = &pod.metadata;
    format!("{}_{}({})", text(&meta.name), text(&meta.namespace), text(&meta.uid))
}

/// `10s`, `2m40s`, `5m0s`.
pub(crate) fn words(delay: SignedDuration) -> String {
    match delay.as_secs() {
        seconds @ ..60 => format!("{seconds}s"),
        seconds => format!("{}m{}s", seconds / 60, seconds % 60),
    }
}
