//! All pods of the node: a worker per pod, woken by changes of its object and by events of the runtime.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use client::events::{EventType, Recorder};
use client::traffic::ServiceView;
use client::{Cache, Change, Changes, Client};
use cri::v1;
use futures_util::FutureExt as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::{self, NodeView};
use crate::allocations::Allocations;
use crate::credential_providers::Providers;
use crate::cri_config::NodeSettings;
use crate::eviction::{Cause, Eviction, Pressure};
use crate::image_records::ImageRecords;
use crate::metrics;
use crate::pod_cgroup::PodCgroups;
use crate::preemption;
use crate::references::References;
use crate::relist;
use crate::server::Pods as _;
use crate::shutdown;
use crate::static_pods::{is_static, mirrored};
use crate::storage::Storage;
use crate::worker::report::StatusWriter;
use crate::worker::{Snapshot, Worker, resize};

mod answers;
mod orphans;

/// What all workers share.
pub struct Shared {
    /// The API.
    pub client: Client,
    /// The runtime.
    pub cri: cri::RuntimeClient,
    /// Its images.
    pub images: cri::ImageClient,
    /// Events.
    pub recorder: Recorder,
    /// Watches of ConfigMaps and Secrets.
    pub references: References,
    /// Services, for environment variables.
    pub services: Cache<ServiceView>,
    /// What pods' configurations take from the node.
    pub settings: NodeSettings,
    /// The node's resolver configuration.
    pub resolv_conf: PathBuf,
    /// `D/kubelet`.
    pub root: PathBuf,
    /// The node's addresses.
    pub host_ips: Vec<String>,
    /// Who may use which images.
    pub image_records: Arc<ImageRecords>,
    /// Programs that give credentials for them.
    pub credential_providers: Providers,
    /// Images that may be pulled at once.
    pub pulls: tokio::sync::Semaphore,
    /// Longest delay between restarts of a container.
    pub longest_backoff: Duration,
    /// When this kubelet began.
    pub began: jiff::Timestamp,
    /// The runtime's name, as container ids carry it.
    pub runtime_name: String,
    /// CPUs (milli), memory and storage (bytes) that pods may have.
    pub allocatable: [i64; 3],
    /// Limits of pods as a whole.
    pub cgroups: PodCgroups,
    /// Persistent volumes.
    pub storage: Arc<Storage>,
    /// Processors and memory that pods were given.
    pub allocations: Allocations,
    /// Whether the runtime answers.
    pub answering: watch::Sender<bool>,
    /// Whether the node goes down.
    pub goes_down: watch::Sender<bool>,
    /// Devices of plugins.
    pub devices: Arc<crate::devices::Devices>,
    /// Devices by claims.
    pub claims: Arc<crate::dra::ResourceClaims>,
    /// Processors and memory that containers have for themselves.
    pub managers: Arc<crate::managers::Managers>,
    /// A container that could not be told its processors is told again after this.
    pub pin_again: Duration,
    /// So long what was measured of volumes counts; nothing: they are not measured.
    pub measure_again: Option<Duration>,
    /// Pods with users of their own.
    pub users: crate::user_namespaces::UserNamespaces,
}

struct Entry {
    pod: watch::Sender<Arc<Pod>>,
    wake: Arc<Notify>,
    snapshot: watch::Receiver<Snapshot>,
    evict: watch::Sender<Option<Eviction>>,
    status: StatusWriter,
}

/// What the manager follows.
pub struct Sources {
    /// Pods of the API that are bound to this node.
    pub pods: Cache<Pod>,
    /// Pods of files.
    pub static_pods: watch::Receiver<Vec<Arc<Pod>>>,
    /// Static pods that are still here go to this: those of files, and those that end. Nothing until they are known.
    pub present: watch::Sender<Option<Vec<Arc<Pod>>>>,
    /// Cancelled once the node is registered.
    pub registered: CancellationToken,
}

/// What decides whether a pod may run here.
pub struct Entrance {
    /// The node's name.
    pub name: String,
    /// What pods may have, by resource.
    pub allocatable: std::collections::BTreeMap<String, i64>,
    /// What it declares, sorted.
    pub features: Vec<&'static str>,
    /// Sysctls that pods may set besides the safe ones.
    pub sysctls: Vec<String>,
    /// The Node object, for its labels and taints.
    pub node: Cache<Node>,
    /// What is short.
    pub pressure: watch::Receiver<Pressure>,
}

/// The pods of this node.
pub struct Manager {
    shared: Arc<Shared>,
    entrance: Entrance,
    pods: Mutex<HashMap<String, Entry>>,
    /// Whether the API's pods are known: before that nobody can say who is gone.
    complete: AtomicBool,
    /// Pods that make room and whose workers have not begun yet.
    leaving: Mutex<HashMap<String, Eviction>>,
    /// The pods that processors were last shared between.
    shared_between: Mutex<Vec<String>>,
}

/// What workers are started with.
struct Work {
    tasks: TaskTracker,
    /// Of pods that are gone, how their objects were seen last.
    ended: mpsc::Sender<(String, Option<Arc<Pod>>)>,
    stop: CancellationToken,
    /// They are waited for no longer.
    overdue: CancellationToken,
}

fn is_over(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// Whether somebody wants the object to stay although it is deleted.
fn is_held(pod: &Pod) -> bool {
    pod.metadata.finalizers.as_ref().is_some_and(|all| !all.is_empty())
}

fn now() -> Time {
    Time(jiff::Timestamp::now())
}

/// Ended workers that may wait to be taken off the list.
const ENDED: usize = 64;
/// So long pods of files wait for the API when the kubelet starts.
const HEARD: Duration = Duration::from_secs(3);
/// Time that workers have to end what they do when the kubelet stops.
const LAST: Duration = Duration::from_secs(10);
/// Between tries to reach the runtime's event stream.
const RECONNECT: Duration = Duration::from_secs(1);

impl Manager {
    /// No pods yet.
    pub fn new(shared: Arc<Shared>, entrance: Entrance) -> Arc<Self> {
        Arc::new(Self {
            shared,
            entrance,
            pods: Mutex::default(),
            complete: AtomicBool::new(false),
            leaving: Mutex::default(),
            shared_between: Mutex::default(),
        })
    }

    /// Follows the pods bound to this node until `stop`; their containers are left running. A runtime that does not answer keeps
    /// no kubelet from stopping: what was begun there, the next one finds.
    pub async fn run(self: Arc<Self>, sources: Sources, stop: CancellationToken) {
        let overdue = CancellationToken::new();
        let late = async {
            stop.cancelled().await;
            tokio::time::sleep(LAST).await;
        };
        tokio::select! {
            () = self.clone().follow(sources, stop.clone(), overdue.clone()) => {}
            () = late => tracing::warn!("what pods' workers do is not waited for any longer"),
        }
        overdue.cancel();
    }

    async fn follow(
        self: Arc<Self>,
        mut sources: Sources,
        stop: CancellationToken,
        overdue: CancellationToken,
    ) {
        let pods = sources.pods.clone();
        let mut files = sources.static_pods.borrow_and_update().clone();
        let tasks = TaskTracker::new();
        tasks.spawn(overdue.clone().run_until_cancelled_owned(self.clone().follow_runtime(stop.clone())));
        let (ended_sender, mut ended) = mpsc::channel(ENDED);
        let work = Work { tasks, ended: ended_sender, stop, overdue };
        let known = async {
            sources.registered.cancelled().await;
            pods.synced().await;
            self.entrance.node.synced().await;
        };
        let mut known = pin!(known.fuse());
        let mut changes: Option<Changes<Pod>> = None;
        // an API that answers says who was here; without one, pods of files begin
        tokio::select! {
            () = work.stop.cancelled() => return,
            heard = tokio::time::timeout(HEARD, &mut known) => if heard.is_ok() {
                changes = Some(self.begin(&pods, &files, &work.stop).await);
            },
        }
        self.follow_files(&files, &pods, &work, &sources.present).await;
        loop {
            let change = async {
                match &mut changes {
                    Some(changes) => changes.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = work.stop.cancelled() => break,
                () = &mut known => changes = Some(self.begin(&pods, &files, &work.stop).await),
                Some((uid, seen)) = ended.recv() => {
                    let last = self.pods.lock().remove(&uid).map(|entry| entry.pod.borrow().clone());
                    match last {
                        Some(pod) if is_static(&pod) => {
                            self.follow_files(&files, &pods, &work, &sources.present).await;
                        }
                        // its last finalizer went meanwhile: the object is still to be deleted
                        Some(pod) if seen.is_some_and(|seen| is_held(&seen) && !is_held(&pod)) => {
                            self.update(pod, &pods, &work).await;
                        }
                        _ => {}
                    }
                }
                Ok(()) = sources.static_pods.changed() => {
                    files = sources.static_pods.borrow_and_update().clone();
                    self.follow_files(&files, &pods, &work, &sources.present).await;
                }
                change = change => match change {
                    Some(Change::Added(pod) | Change::Modified { new: pod, .. }) if mirrored(&pod).is_some() => {
                        self.image(&pod, true);
                    }
                    Some(Change::Added(pod) | Change::Modified { new: pod, .. }) => {
                        self.update(pod, &pods, &work).await;
                    }
                    Some(Change::Deleted(pod)) if mirrored(&pod).is_some() => self.image(&pod, false),
                    Some(Change::Deleted(pod)) => self.gone(&pod, 0),
                    None => break,
                },
            }
            self.share();
        }
        // nobody takes workers off the list any more: they end without being heard
        drop(ended);
        work.tasks.close();
        work.tasks.wait().await;
    }

    /// The pods that the API has are known: what others left is removed, and these are followed.
    async fn begin(&self, pods: &Cache<Pod>, files: &[Arc<Pod>], stop: &CancellationToken) -> Changes<Pod> {
        self.complete.store(true, Ordering::Relaxed);
        self.clean_orphans(pods, files, stop).await;
        pods.subscribe()
    }

    /// What pods of the class Burstable get of the processors follows who is here.
    fn share(&self) {
        let pods = self.pods();
        let asked: Vec<&Pod> = pods.iter().map(|pod| &**pod).filter(|pod| !is_over(pod)).collect();
        let now: Vec<String> = asked.iter().filter_map(|pod| pod.metadata.uid.clone()).collect();
        let mut known = self.shared_between.lock();
        if *known != now {
            self.shared.cgroups.share(asked.into_iter());
            *known = now;
        }
    }

    /// Static pods follow their files: what is new begins when an older one of its name is gone.
    async fn follow_files(
        self: &Arc<Self>,
        files: &[Arc<Pod>],
        api: &Cache<Pod>,
        work: &Work,
        present: &watch::Sender<Option<Vec<Arc<Pod>>>>,
    ) {
        let key = |pod: &Pod| (pod.metadata.namespace.clone(), pod.metadata.name.clone());
        let here: Vec<Arc<Pod>> = self.pods().into_iter().filter(|pod| is_static(pod)).collect();
        let mut still = Vec::new();
        for pod in &here {
            if !files.iter().any(|file| file.metadata.uid == pod.metadata.uid) {
                if pod.metadata.deletion_timestamp.is_none() {
                    self.gone(pod, crate::plan::grace(pod));
                }
                let mut ending = (**pod).clone();
                ending.metadata.deletion_timestamp.get_or_insert(now());
                still.push(Arc::new(ending));
            }
        }
        for file in files {
            if still.iter().any(|ending| key(ending) == key(file)) {
                continue;
            }
            still.push(file.clone());
            if !here.iter().any(|pod| pod.metadata.uid == file.metadata.uid) {
                self.update(file.clone(), api, work).await;
                let (ns, name) = (file.metadata.namespace.as_deref(), file.metadata.name.as_deref());
                if let Some(image) = api.get(ns.unwrap_or_default(), name.unwrap_or_default()) {
                    self.image(&image, true);
                }
            }
        }
        present.send_if_modified(|known| {
            let changed = known.as_ref() != Some(&still);
            *known = Some(still);
            changed
        });
    }

    /// The image of a static pod in the API came, changed or went: it keeps the pod's status.
    fn image(&self, image: &Pod, there: bool) {
        let pods = self.pods.lock();
        let Some(entry) = mirrored(image).and_then(|uid| pods.get(uid)) else { return };
        entry.status.image_is(image.metadata.uid.as_deref().filter(|_| there));
        if there {
            let mut pod = (**entry.pod.borrow()).clone();
            pod.status = image.status.clone();
            entry.pod.send_replace(Arc::new(pod));
        }
    }

    async fn update(self: &Arc<Self>, pod: Arc<Pod>, api: &Cache<Pod>, work: &Work) {
        let Some(uid) = pod.metadata.uid.clone() else { return };
        if let Some(entry) = self.pods.lock().get(&uid) {
            entry.pod.send_replace(pod);
            return;
        }
        let seen = std::time::Instant::now();
        let leaves = self.leaving.lock().remove(&uid);
        let ends = match leaves {
            Some(eviction) => Some(eviction),
            None => {
                self.admit(&pod, api).await.err().map(|admission::Rejection { reason, message, .. }| {
                    tracing::warn!(pod = pod.metadata.name, reason, message, "a pod is refused");
                    metrics::REJECTIONS.add(&[&reason]);
                    Eviction {
                        reason,
                        message,
                        grace: 0,
                        cause: Cause::Refusal,
                        annotations: BTreeMap::new(),
                    }
                })
            }
        };
        if ends.is_none() && !is_over(&pod) {
            // before anybody else is given the same
            self.shared.allocations.admit(&uid, resize::held(&self.shared.root, &pod));
        }
        metrics::POD_WORKER_START.time(&[], seen.elapsed());
        let containers = pod.spec.as_ref().map_or(0, |spec| spec.containers.len());
        metrics::CONTAINERS_PER_POD.observe(&[], containers as f64);
        let status = StatusWriter::new(self.shared.client.clone(), &pod);
        let (sender, receiver) = watch::channel(pod);
        let (snapshot, seen) = watch::channel(Snapshot::default());
        let (evict, evicted) = watch::channel(ends);
        let wake = Arc::new(Notify::new());
        let worker = Worker::new(
            self.shared.clone(),
            uid.clone(),
            receiver,
            wake.clone(),
            snapshot,
            (status.clone(), evicted),
            work.stop.clone(),
        );
        self.pods.lock().insert(uid.clone(), Entry { pod: sender, wake, snapshot: seen, evict, status });
        let ended = work.ended.clone();
        let work_of_pod = async move {
            let seen = worker.run().await;
            // the manager may have stopped listening: then nobody needs to know
            let _ = ended.send((uid, seen)).await;
        };
        // In a box: by itself it would be kept twice, once as what is handed over and once as what runs, 70 KB a pod.
        work.tasks.spawn(work.overdue.clone().run_until_cancelled_owned(Box::pin(work_of_pod)));
    }

    /// Whether a pod that was not here before may run. Those that began under an earlier kubelet were asked then.
    async fn admit(&self, pod: &Pod, cached: &Cache<Pod>) -> Result<(), admission::Rejection> {
        let begun = |pod: &Pod| pod.status.as_ref().is_some_and(|status| status.start_time.is_some());
        if is_over(pod) || pod.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        if !begun(pod) && *self.shared.goes_down.borrow() {
            return Err(shutdown::refusal());
        }
        let node = self.entrance.node.get("", &self.entrance.name);
        let mut allocatable = self.entrance.allocatable.clone();
        // what others than plugins put into the Node's status; plugins know best what they have
        let told = node.iter().filter_map(|node| node.status.as_ref()?.allocatable.as_ref()).flatten();
        let extended =
            told.filter(|(name, _)| api::quota::is_extended(name) && !self.shared.devices.knows(name));
        allocatable.extend(extended.map(|(name, amount)| (name.clone(), crate::resources::units(&amount.0))));
        let mut view = NodeView {
            name: self.entrance.name.clone(),
            allocatable,
            labels: node.as_ref().map(|node| node.metadata.labels.clone().unwrap_or_default()),
            taints: node.as_ref().and_then(|node| node.spec.as_ref()?.taints.clone()).unwrap_or_default(),
            sysctls: self.entrance.sysctls.clone(),
            pressure: self.entrance.pressure.borrow().clone(),
            given: admission::Given::new(),
            features: self.entrance.features.clone(),
            apparmor: admission::has_apparmor(),
            // what the node will say is not known before its first report
            strict_groups: node
                .as_ref()
                .and_then(|node| node.status.as_ref()?.features.as_ref())
                .is_none_or(|features| features.supplemental_groups_policy == Some(true)),
        };
        // what the API has forgotten still ends here, but its place is given away: the scheduler no longer counts it
        let is_known = |pod: &Pod| {
            let found = cached.get(
                pod.metadata.namespace.as_deref().unwrap_or_default(),
                pod.metadata.name.as_deref().unwrap_or_default(),
            );
            is_static(pod) || found.is_some_and(|found| found.metadata.uid == pod.metadata.uid)
        };
        let mut others: HashMap<Option<String>, Arc<Pod>> = self
            .active()
            .into_iter()
            .filter(|pod| is_known(pod))
            .map(|pod| (pod.metadata.uid.clone(), pod))
            .collect();
        // seen by an earlier kubelet, not yet by this one
        for other in
            cached.list().into_iter().filter(|pod| begun(pod) && !is_over(pod) && mirrored(pod).is_none())
        {
            others.entry(other.metadata.uid.clone()).or_insert(other);
        }
        others.remove(&pod.metadata.uid);
        // who still ends has its devices until then
        let alive = self.active().into_iter().filter_map(|pod| pod.metadata.uid.clone());
        let mut alive: HashSet<String> = alive.chain(others.keys().flatten().cloned()).collect();
        if !self.complete.load(Ordering::Relaxed) {
            alive.extend(self.shared.managers.holders());
            alive.extend(self.shared.devices.holders());
        }
        let given = self.shared.managers.admit((pod, begun(pod)), &alive, &self.shared.devices).await;
        if begun(pod) {
            // it has what it was given then; under another policy now, it gets what there is
            if let Err(admission::Rejection { message, .. }) = given {
                tracing::warn!(
                    pod = pod.metadata.name,
                    message,
                    "a pod that runs goes on without resources of its own"
                );
            }
            return Ok(());
        }
        given?;
        let others: Vec<Arc<Pod>> = others.into_values().collect();
        let held = |pod: &Arc<Pod>| {
            let uid = pod.metadata.uid.clone()?;
            let known = self.shared.allocations.of(&uid);
            Some((uid, known.unwrap_or_else(|| resize::held(&self.shared.root, pod))))
        };
        view.given = others.iter().filter_map(held).collect();
        let Err(refused) = admission::admit(pod, others.iter().map(|pod| &**pod), &view) else {
            return Ok(());
        };
        let Some(victims) = preemption::victims(pod, &others, &view.given, &refused.lacks) else {
            self.shared.managers.release(pod.metadata.uid.as_deref().unwrap_or_default());
            return Err(refused);
        };
        let lacking = refused.lacks.first().map_or("", |(name, _)| name.as_str());
        for victim in victims {
            metrics::PREEMPTIONS.add(&[lacking]);
            self.preempt(&victim);
        }
        Ok(())
    }

    /// Ends a pod in its own time, to the good of a critical one, which does not wait for it.
    fn preempt(&self, victim: &Pod) {
        let Some(uid) = &victim.metadata.uid else { return };
        tracing::warn!(pod = victim.metadata.name, "a pod makes room for a critical one");
        let eviction = Eviction {
            reason: preemption::REASON.to_owned(),
            message: preemption::MESSAGE.to_owned(),
            grace: crate::plan::grace(victim),
            cause: Cause::Disruption,
            annotations: BTreeMap::new(),
        };
        match self.pods.lock().get(uid) {
            Some(entry) => drop(entry.evict.send_replace(Some(eviction))),
            None => drop(self.leaving.lock().insert(uid.clone(), eviction)),
        }
    }

    /// Pods that are not over and that the node has not ended.
    pub fn active(&self) -> Vec<Arc<Pod>> {
        let pods = self.pods.lock();
        let kept = pods.values().filter(|entry| entry.evict.borrow().is_none());
        kept.map(|entry| entry.pod.borrow().clone()).filter(|pod| !is_over(pod)).collect()
    }

    /// Ends a pod for good; waits until its containers and volumes are gone, at most for `limit`. Whether there was one to end.
    pub async fn evict(&self, uid: &str, eviction: Eviction, limit: Duration) -> bool {
        let grace = Duration::from_secs(u64::try_from(eviction.grace).unwrap_or(0));
        let mut snapshot = {
            let pods = self.pods.lock();
            let Some(entry) = pods.get(uid) else { return false };
            if entry.evict.borrow().is_some() || is_over(&entry.pod.borrow()) {
                return false;
            }
            entry.evict.send_replace(Some(eviction));
            entry.snapshot.clone()
        };
        // before that nobody can tell whether it was enough
        let gone = snapshot.wait_for(|seen| seen.released);
        if tokio::time::timeout(limit, gone).await.is_err() {
            tracing::warn!(pod = uid, "an evicted pod's containers and volumes are not gone in time");
            if limit >= grace.saturating_mul(2) {
                self.not_killed(uid);
            }
        }
        true
    }

    /// Tells that containers outlive their pod's grace period.
    fn not_killed(&self, uid: &str) {
        let pods = self.pods.lock();
        let Some(entry) = pods.get(uid).filter(|e| e.snapshot.borrow().observed.running().next().is_some())
        else {
            return;
        };
        let about = client::events::reference(&**entry.pod.borrow());
        let text = "Container runtime did not kill the pod within specified grace period.";
        self.shared.recorder.event(&about, EventType::Warning, "ExceededGracePeriod", text);
    }

    /// Pods that are not over, whoever ends them.
    pub fn unfinished(&self) -> Vec<Arc<Pod>> {
        self.pods().into_iter().filter(|pod| !is_over(pod)).collect()
    }

    /// Ends a pod with the node, and hurries one that the node ends already; waits until its containers are gone, its
    /// volumes given back and its end told.
    pub async fn end(&self, uid: &str, eviction: Eviction) {
        let (mut snapshot, status) = {
            let pods = self.pods.lock();
            let Some(entry) = pods.get(uid) else { return };
            entry.evict.send_modify(|known| match known {
                Some(known) => known.grace = known.grace.min(eviction.grace),
                None => *known = Some(eviction),
            });
            (entry.snapshot.clone(), entry.status.clone())
        };
        let gone = |seen: &Snapshot| seen.released && seen.observed.running().next().is_none();
        // an error is the end of its worker
        if snapshot.wait_for(gone).await.is_ok() {
            status.flush().await;
        }
    }

    /// The object is gone without our doing (a forced deletion): what still runs is ended as if it were deleted.
    fn gone(&self, pod: &Arc<Pod>, grace: i64) {
        let Some(uid) = &pod.metadata.uid else { return };
        if let Some(entry) = self.pods.lock().get(uid) {
            let mut last = (**pod).clone();
            last.metadata.deletion_timestamp.get_or_insert(now());
            last.metadata.deletion_grace_period_seconds = Some(grace);
            entry.pod.send_replace(Arc::new(last));
        }
    }

    /// Wakes the worker of each container event's pod. After the stream broke all look for themselves.
    async fn follow_runtime(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let mut runtime = self.shared.cri.clone();
            let opened = tokio::select! {
                () = stop.cancelled() => return,
                opened = runtime.get_container_events(v1::GetEventsRequest {}) => opened,
            };
            match opened {
                Ok(answer) => {
                    let mut stream = answer.into_inner();
                    self.answers(true, "");
                    self.wake_all();
                    loop {
                        let event = tokio::select! {
                            () = stop.cancelled() => return,
                            event = stream.message() => event,
                        };
                        match event {
                            Ok(Some(event)) => self.wake(&event),
                            Ok(None) => break,
                            Err(error) => {
                                self.unless_answering(&mut runtime, &error).await;
                                break;
                            }
                        }
                    }
                }
                Err(error) if error.code() == tonic::Code::Unimplemented => {
                    self.answers(true, "");
                    let error = relist::follow(&mut runtime, &stop, |uid| self.wake_pod(uid)).await;
                    if let Some(error) = error {
                        self.answers(false, error.message());
                    }
                }
                Err(error) => self.answers(false, error.message()),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RECONNECT) => {}
            }
        }
    }

    /// A stream may end for reasons of its own: the runtime is asked.
    async fn unless_answering(&self, runtime: &mut cri::RuntimeClient, ended: &tonic::Status) {
        if runtime.version(v1::VersionRequest::default()).await.is_err() {
            self.answers(false, ended.message());
        }
    }

    /// Tells who follows it whether the runtime answers, once for each change.
    fn answers(&self, now: bool, why: &str) {
        let changed = self.shared.answering.send_if_modified(|known| std::mem::replace(known, now) != now);
        match (changed, now) {
            (true, true) => {
                tracing::info!("the container runtime answers again");
                self.wake_all();
            }
            (true, false) => tracing::warn!(why, "the container runtime does not answer"),
            (false, _) => {}
        }
    }

    /// The containers that run: their ids and logs.
    pub fn running_logs(&self) -> Vec<(String, PathBuf)> {
        let pods = self.pods.lock();
        let mut found = Vec::new();
        for entry in pods.values() {
            let snapshot = entry.snapshot.borrow();
            let running = snapshot.observed.running().filter(|container| !container.log_path.is_empty());
            found.extend(running.map(|container| (container.id.clone(), container.log_path.clone().into())));
        }
        found
    }

    fn wake_pod(&self, uid: &str) {
        if let Some(entry) = self.pods.lock().get(uid) {
            entry.wake.notify_one();
        }
    }

    fn wake(&self, event: &v1::ContainerEventResponse) {
        let uid = event.pod_sandbox_status.as_ref().and_then(|s| s.metadata.as_ref()).map(|m| m.uid.as_str());
        match uid.and_then(|uid| self.pods.lock().get(uid).map(|e| e.wake.clone())) {
            Some(wake) => wake.notify_one(),
            None if uid.is_none() => self.wake_all(),
            None => {}
        }
    }

    fn wake_all(&self) {
        for entry in self.pods.lock().values() {
            entry.wake.notify_one();
        }
    }
}
