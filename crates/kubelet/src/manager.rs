//! All pods of the node: a worker per pod, woken by changes of its object and by events of the runtime.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use client::events::Recorder;
use client::{Cache, Change, Client};
use cri::v1;
use k8s_openapi::api::core::v1::{Pod, Service};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cri_config::{NodeSettings, log_dir};
use crate::observed::{POD_UID, Run};
use crate::references::References;
use crate::server::{Pods, RunningContainer};
use crate::worker::{Snapshot, Worker};

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
    pub services: Cache<Service>,
    /// What pods' configurations take from the node.
    pub settings: NodeSettings,
    /// The node's resolver configuration.
    pub host_dns: v1::DnsConfig,
    /// `D/kubelet`.
    pub root: PathBuf,
    /// The node's address.
    pub host_ip: String,
    /// Images that may be pulled at once.
    pub pulls: tokio::sync::Semaphore,
    /// The runtime's name, as container ids carry it.
    pub runtime_name: String,
    /// CPUs (milli) and memory (bytes) that pods may have.
    pub allocatable: (i64, i64),
}

struct Entry {
    pod: watch::Sender<Arc<Pod>>,
    wake: Arc<Notify>,
    snapshot: watch::Receiver<Snapshot>,
}

/// The pods of this node.
pub struct Manager {
    shared: Arc<Shared>,
    pods: Mutex<HashMap<String, Entry>>,
}

/// Ended workers that may wait to be taken off the list.
const ENDED: usize = 64;
/// Between tries to reach the runtime's event stream.
const RECONNECT: Duration = Duration::from_secs(1);

impl Manager {
    /// No pods yet.
    pub fn new(shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self { shared, pods: Mutex::default() })
    }

    /// Follows the pods bound to this node until `stop`; their containers are left running.
    pub async fn run(self: Arc<Self>, pods: Cache<Pod>, stop: CancellationToken) {
        pods.synced().await;
        self.clean_orphans(&pods).await;
        let tasks = TaskTracker::new();
        tasks.spawn(self.clone().follow_runtime(stop.clone()));
        let (ended_sender, mut ended) = mpsc::channel::<String>(ENDED);
        let mut changes = pods.subscribe();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(uid) = ended.recv() => drop(self.pods.lock().remove(&uid)),
                change = changes.next() => match change {
                    Some(Change::Added(pod) | Change::Modified { new: pod, .. }) => {
                        self.update(pod, &tasks, &ended_sender, &stop);
                    }
                    Some(Change::Deleted(pod)) => self.gone(&pod),
                    None => break,
                },
            }
        }
        tasks.close();
        tasks.wait().await;
    }

    fn update(
        self: &Arc<Self>,
        pod: Arc<Pod>,
        tasks: &TaskTracker,
        ended: &mpsc::Sender<String>,
        stop: &CancellationToken,
    ) {
        let Some(uid) = pod.metadata.uid.clone() else { return };
        let mut pods = self.pods.lock();
        if let Some(entry) = pods.get(&uid) {
            entry.pod.send_replace(pod);
            return;
        }
        let (sender, receiver) = watch::channel(pod);
        let (snapshot, seen) = watch::channel(Snapshot::default());
        let wake = Arc::new(Notify::new());
        let worker =
            Worker::new(self.shared.clone(), uid.clone(), receiver, wake.clone(), snapshot, stop.clone());
        pods.insert(uid.clone(), Entry { pod: sender, wake, snapshot: seen });
        let ended = ended.clone();
        tasks.spawn(async move {
            worker.run().await;
            // the manager may have stopped listening: then nobody needs to know
            let _ = ended.send(uid).await;
        });
    }

    /// The object is gone without our doing (a forced deletion): what still runs is ended as if it were deleted.
    fn gone(&self, pod: &Arc<Pod>) {
        let Some(uid) = &pod.metadata.uid else { return };
        if let Some(entry) = self.pods.lock().get(uid) {
            let mut last = (**pod).clone();
            if last.metadata.deletion_timestamp.is_none() {
                last.metadata.deletion_timestamp =
                    Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::now()));
            }
            last.metadata.deletion_grace_period_seconds = Some(0);
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
                    self.wake_all();
                    loop {
                        let event = tokio::select! {
                            () = stop.cancelled() => return,
                            event = stream.message() => event,
                        };
                        let Ok(Some(event)) = event else { break };
                        self.wake(&event);
                    }
                }
                Err(error) => tracing::warn!(error = error.message(), "no events from the runtime"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RECONNECT) => self.wake_all(),
            }
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

    /// Removes sandboxes, volumes and logs of pods that are no longer bound to this node.
    async fn clean_orphans(&self, pods: &Cache<Pod>) {
        let known: std::collections::HashSet<String> =
            pods.list().iter().filter_map(|p| p.metadata.uid.clone()).collect();
        let mut runtime = self.shared.cri.clone();
        let listed = match runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await {
            Ok(answer) => answer.into_inner().items,
            Err(error) => {
                tracing::warn!(error = error.message(), "sandboxes cannot be listed");
                return;
            }
        };
        for sandbox in listed {
            let Some(uid) = sandbox.labels.get(POD_UID).filter(|u| !known.contains(*u)) else { continue };
            let id = sandbox.id.clone();
            tracing::info!(sandbox = id, pod = uid, "removing what a deleted pod left");
            let stopped =
                runtime.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await;
            let removed =
                runtime.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: id }).await;
            if let Some(error) = stopped.err().or(removed.err()) {
                tracing::warn!(error = error.message(), "sandbox not removed");
            }
        }
        let folders = |path: &std::path::Path| -> Vec<String> {
            let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
            entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
        };
        let root = self.shared.root.join("pods");
        for uid in folders(&root).into_iter().filter(|uid| !known.contains(uid)) {
            if let Err(error) = crate::volumes::unmount_all(&root.join(&uid)) {
                tracing::warn!(%error, pod = uid, "volumes not removed");
            }
        }
        let logs = &self.shared.settings.logs;
        for name in folders(logs) {
            // NAMESPACE_NAME_UID: no part of it has an underscore of its own
            let uid = name.rsplit('_').next().unwrap_or_default();
            if name.split('_').count() == 3
                && !known.contains(uid)
                && let Err(error) = std::fs::remove_dir_all(logs.join(&name))
            {
                tracing::warn!(%error, pod = uid, "logs not removed");
            }
        }
    }

    fn find<T>(&self, ns: &str, name: &str, look: impl FnOnce(&Pod, &Snapshot) -> T) -> Option<T> {
        let pods = self.pods.lock();
        let entry = pods.values().find(|e| {
            let pod = e.pod.borrow();
            pod.metadata.namespace.as_deref() == Some(ns) && pod.metadata.name.as_deref() == Some(name)
        })?;
        let pod = entry.pod.borrow().clone();
        let snapshot = entry.snapshot.borrow();
        Some(look(&pod, &snapshot))
    }
}

impl Pods for Manager {
    fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods.lock().values().map(|e| e.pod.borrow().clone()).collect()
    }

    fn container(&self, ns: &str, pod: &str, container: &str) -> Option<RunningContainer> {
        self.find(ns, pod, |_, snapshot| {
            let found = snapshot.observed.newest(container)?;
            Some(RunningContainer { id: found.id.clone(), running: found.run == Run::Running })
        })?
    }

    fn sandbox(&self, ns: &str, pod: &str) -> Option<String> {
        self.find(ns, pod, |_, snapshot| snapshot.observed.ready_sandbox().map(|s| s.id.clone()))?
    }

    fn log_path(&self, ns: &str, name: &str, container: &str, previous: bool) -> Result<PathBuf, String> {
        let settings = &self.shared.settings;
        self.find(ns, name, |pod, snapshot| {
            let mut runs = snapshot.observed.runs(container).filter(|c| c.run != Run::Created);
            let wanted = if previous { runs.nth(1) } else { runs.next() };
            match wanted {
                Some(run) => Ok(log_dir(settings, pod).join(container).join(format!("{}.log", run.attempt))),
                None if previous => {
                    Err(format!("previous terminated container {container:?} in pod {name:?} not found"))
                }
                None => {
                    let reason =
                        snapshot.waiting.get(container).map_or("ContainerCreating", |(r, _)| r.as_str());
                    Err(format!("container {container:?} in pod {name:?} is waiting to start: {reason}"))
                }
            }
        })
        .unwrap_or_else(|| Err(format!("pod {name:?} not found on this node")))
    }
}
