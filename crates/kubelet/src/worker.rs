//! One task per pod: looks at the pod and at the runtime, plans, reports, acts; then waits for the next thing that
//! happens (the pod changes, a container starts or ends, a probe finds something, a time comes).
//!
//! Inputs: the newest Pod (`watch`), a wake-up from runtime events (`Notify`), probe results (`mpsc`).
//! Outputs: CRI calls, the pod's status, Events, and at last the pod's deletion.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use client::events::EventType;
use client::{DeleteOptions, Patch};
use cri::v1;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Container as Spec, LifecycleHandler, ObjectReference, Pod, PodStatus, Secret};
use serde_json::json;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::cri_config::{self, Prepared};
use crate::env::{self, Sources};
use crate::manager::Shared;
use crate::observed::{self, Container, Observed, Run};
use crate::plan::{self, Action, Backoffs, Health};
use crate::pod_status::{self, Facts, Waiting};
use crate::probes::{self, ProbeEvent};
use crate::volumes;

/// Payload volumes are brought up to date this often.
const REFRESH: Duration = Duration::from_secs(60);
/// A step that failed is tried again after this, doubling.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Probe results that may wait.
const RESULTS: usize = 32;

/// What others may know of a pod's containers: names to ids, for logs and exec.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The last look at the runtime.
    pub observed: Observed,
    /// Why containers wait.
    pub waiting: Waiting,
}

/// The task of one pod.
pub struct Worker {
    shared: Arc<Shared>,
    uid: String,
    pod: watch::Receiver<Arc<Pod>>,
    wake: Arc<Notify>,
    snapshot: watch::Sender<Snapshot>,
    waiting: Waiting,
    health: Health,
    ready: BTreeMap<String, bool>,
    backoffs: Backoffs,
    mounted: Option<volumes::Mounted>,
    refresh_at: tokio::time::Instant,
    retry: client::queue::Backoff,
    retry_at: Option<tokio::time::Instant>,
    killing: HashSet<String>,
    prober: HashMap<String, CancellationToken>,
    results: (mpsc::Sender<ProbeEvent>, mpsc::Receiver<ProbeEvent>),
    reported: Option<PodStatus>,
    killed: Option<(String, String)>,
    ended: bool,
}

impl Worker {
    /// For the pod that `pod` holds.
    pub fn new(
        shared: Arc<Shared>,
        uid: String,
        pod: watch::Receiver<Arc<Pod>>,
        wake: Arc<Notify>,
        snapshot: watch::Sender<Snapshot>,
    ) -> Self {
        Self {
            shared,
            uid,
            pod,
            wake,
            snapshot,
            waiting: Waiting::new(),
            health: Health::default(),
            ready: BTreeMap::new(),
            backoffs: Backoffs::default(),
            mounted: None,
            refresh_at: tokio::time::Instant::now() + REFRESH,
            retry: client::queue::Backoff::new(RETRY.0, RETRY.1),
            retry_at: None,
            killing: HashSet::new(),
            prober: HashMap::new(),
            results: mpsc::channel(RESULTS),
            reported: None,
            killed: None,
            ended: false,
        }
    }

    /// Runs until the pod is gone or `stop`; containers are left as they are on `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let pod = self.pod.borrow_and_update().clone();
            let observed = match observed::observe(&mut self.shared.cri.clone(), &self.uid).await {
                Ok(observed) => observed,
                Err(error) => {
                    tracing::warn!(pod = self.uid, error = error.message(), "the runtime does not answer");
                    self.retry_later();
                    Observed::default()
                }
            };
            if self.retry_at.is_none_or(|at| at <= tokio::time::Instant::now()) {
                self.retry_at = None;
                self.follow_probes(&pod, &observed);
                let now = Timestamp::now();
                let past = matches!(
                    pod.status.as_ref().and_then(|s| s.phase.as_deref()),
                    Some("Succeeded" | "Failed")
                );
                let plan = plan::next(&pod, &observed, &self.health, &self.backoffs, self.ended || past, now);
                if plan::past_deadline(&pod, now) == Some(true) && self.killed.is_none() && !past {
                    self.killed = Some((
                        "DeadlineExceeded".to_owned(),
                        "Pod was active on the node longer than the specified deadline".to_owned(),
                    ));
                    self.ended = true;
                }
                self.note_backoffs(&pod, &observed, &plan);
                self.publish(&pod, &observed).await;
                let mut acted = false;
                for action in plan.actions {
                    if action == Action::Finish {
                        if self.finish(&pod, &observed).await {
                            return;
                        }
                        break;
                    }
                    match self.act(&pod, &observed, &action).await {
                        Ok(done) => acted |= done,
                        Err(()) => {
                            self.retry_later();
                            break;
                        }
                    }
                }
                if acted {
                    self.retry.reset();
                    if stop.is_cancelled() {
                        return;
                    }
                    continue;
                }
                if let Some(at) = plan.wake {
                    let wait = Duration::try_from(at.duration_since(now)).unwrap_or_default();
                    let at = tokio::time::Instant::now() + wait + Duration::from_millis(1);
                    self.retry_at = Some(self.retry_at.map_or(at, |known| known.min(at)));
                }
            } else {
                self.publish(&pod, &observed).await;
            }
            let timer = self.retry_at.unwrap_or(self.refresh_at).min(self.refresh_at);
            tokio::select! {
                () = stop.cancelled() => return,
                changed = self.pod.changed() => if changed.is_err() { return },
                () = self.wake.notified() => {}
                Some(result) = self.results.1.recv() => self.probed(&pod, result),
                () = tokio::time::sleep_until(timer) => {
                    if tokio::time::Instant::now() >= self.refresh_at {
                        self.refresh(&pod, &observed).await;
                    }
                    if self.retry_at.is_some_and(|at| at <= tokio::time::Instant::now()) {
                        self.retry_at = None;
                    }
                }
            }
        }
    }

    fn retry_later(&mut self) {
        self.retry_at = Some(tokio::time::Instant::now() + self.retry.next());
    }

    fn event(&self, pod: &Pod, container: Option<(&Spec, bool)>, kind: EventType, reason: &str, message: impl Into<String>) {
        let mut about: ObjectReference = client::events::reference(pod);
        if let Some((spec, init)) = container {
            let list = if init { "initContainers" } else { "containers" };
            about.field_path = Some(format!("spec.{list}{{{}}}", spec.name));
        }
        self.shared.recorder.event(&about, kind, reason, message);
    }

    /// Containers that could start but for their back-off wait in `CrashLoopBackOff`.
    fn note_backoffs(&mut self, pod: &Pod, observed: &Observed, plan: &plan::Plan) {
        self.waiting.retain(|_, (reason, _)| reason != "CrashLoopBackOff");
        if plan.wake.is_none() || pod.metadata.deletion_timestamp.is_some() {
            return;
        }
        let now = Timestamp::now();
        let specs = pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers));
        for spec in specs {
            let Some(last) = observed.newest(&spec.name).filter(|c| c.run == Run::Exited) else { continue };
            let starting = plan.actions.iter().any(|a| matches!(a, Action::Start { name, .. } if *name == spec.name));
            if !starting && self.backoffs.due(&spec.name, last.finished) > now {
                let delay = self.backoffs.delay(&spec.name);
                let message = format!(
                    "back-off {}s restarting failed container={} pod={}_{}({})",
                    delay.as_secs(),
                    spec.name,
                    pod.metadata.name.as_deref().unwrap_or_default(),
                    pod.metadata.namespace.as_deref().unwrap_or_default(),
                    self.uid
                );
                let fresh = !self.waiting.contains_key(&spec.name);
                self.waiting.insert(spec.name.clone(), ("CrashLoopBackOff".to_owned(), message.clone()));
                if fresh {
                    let text = format!("Back-off restarting failed container {} in pod", spec.name);
                    self.event(pod, Some((spec, false)), EventType::Warning, "BackOff", text);
                }
            }
        }
    }

    /// Reports the pod's status where it changed.
    async fn publish(&mut self, pod: &Pod, observed: &Observed) {
        self.snapshot.send_replace(Snapshot { observed: observed.clone(), waiting: self.waiting.clone() });
        let facts = Facts {
            runtime: &self.shared.runtime_name,
            host_ip: &self.shared.host_ip,
            waiting: &self.waiting,
            ready: &self.ready,
            started: &self.health.started,
            killed: self.killed.as_ref(),
            now: Timestamp::now(),
        };
        let status = pod_status::compute(pod, observed, &facts);
        if self.reported.as_ref() == Some(&status) || pod.status.as_ref() == Some(&status) {
            return;
        }
        let ns = pod.metadata.namespace.as_deref().unwrap_or_default();
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let mut body = json!(status);
        // a strategic patch merges lists by key: what is gone must be said
        for list in ["podIPs", "hostIPs"] {
            if let Some(items) = body.get_mut(list).and_then(|l| l.as_array_mut()) {
                items.push(json!({"$patch": "replace"}));
            }
        }
        let patch = Patch::Strategic(json!({"metadata": {"uid": self.uid}, "status": body}));
        match self.shared.client.patch_status::<Pod>(ns, name, &patch).await {
            Ok(_) => self.reported = Some(status),
            Err(error) if error.is_not_found() || error.is_conflict() => self.reported = Some(status),
            Err(error) => {
                tracing::warn!(pod = name, error = &error as &dyn std::error::Error, "status not reported");
                self.retry_later();
            }
        }
    }

    /// One step. `Ok(true)`: the runtime's state changed; look again at once.
    async fn act(&mut self, pod: &Arc<Pod>, observed: &Observed, action: &Action) -> Result<bool, ()> {
        match action {
            Action::Sandbox(attempt) => self.make_sandbox(pod, *attempt).await.map(|()| true),
            Action::Start { name, attempt } => self.start(pod, observed, name, *attempt).await,
            Action::Kill { id, name, why, grace } => {
                self.kill(pod, id, name, why, *grace);
                Ok(false)
            }
            Action::StopSandbox(id) => {
                let request = v1::StopPodSandboxRequest { pod_sandbox_id: id.clone() };
                match self.shared.cri.clone().stop_pod_sandbox(request).await {
                    Ok(_) => Ok(true),
                    Err(error) => {
                        self.event(pod, None, EventType::Warning, "FailedKillPod", format!("error killing pod: {}", error.message()));
                        Err(())
                    }
                }
            }
            Action::Finish => Ok(false),
        }
    }

    async fn make_sandbox(&mut self, pod: &Arc<Pod>, attempt: u32) -> Result<(), ()> {
        let settings = &self.shared.settings;
        let logs = cri_config::log_dir(settings, pod);
        if let Err(error) = std::fs::create_dir_all(&logs) {
            self.event(pod, None, EventType::Warning, "FailedCreatePodSandBox", format!("{}: {error}", logs.display()));
            return Err(());
        }
        let config = cri_config::sandbox(pod, attempt, settings, &self.shared.host_dns);
        let request = v1::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        match self.shared.cri.clone().run_pod_sandbox(request).await {
            Ok(_) => Ok(()),
            Err(error) => {
                let text = format!("Failed to create pod sandbox: {}", error.message());
                self.event(pod, None, EventType::Warning, "FailedCreatePodSandBox", text);
                Err(())
            }
        }
    }

    async fn start(&mut self, pod: &Arc<Pod>, observed: &Observed, name: &str, attempt: u32) -> Result<bool, ()> {
        let spec = pod.spec.as_ref().ok_or(())?;
        let inits = || spec.init_containers.iter().flatten();
        let init = inits().any(|c| c.name == name);
        let container = inits().chain(&spec.containers).find(|c| c.name == name).ok_or(())?;
        let sandbox = observed.ready_sandbox().ok_or(())?.clone();
        let refuse = |worker: &mut Self, reason: &str, event: &str, message: String| {
            worker.waiting.insert(name.to_owned(), (reason.to_owned(), message.clone()));
            worker.event(pod, Some((container, init)), EventType::Warning, event, message);
            Err(())
        };
        let image = match self.image(pod, container, init).await {
            Ok(image) => image,
            Err((reason, message)) => return refuse(self, reason, "Failed", message),
        };
        let prepared = match self.prepare(pod, container, &sandbox.ips, image).await {
            Ok(prepared) => prepared,
            Err((event, message)) if event == "FailedMount" => {
                self.event(pod, None, EventType::Warning, event, message);
                return Err(());
            }
            Err((_, message)) => {
                return refuse(self, "CreateContainerConfigError", "Failed", message);
            }
        };
        let settings = &self.shared.settings;
        let sandbox_config = cri_config::sandbox(pod, sandbox.attempt, settings, &self.shared.host_dns);
        let config = cri_config::container(pod, container, attempt, prepared, settings);
        let log_dir = cri_config::log_dir(settings, pod).join(name);
        if let Err(error) = std::fs::create_dir_all(&log_dir) {
            return refuse(self, "CreateContainerError", "Failed", format!("Error: {}: {error}", log_dir.display()));
        }
        let mut runtime = self.shared.cri.clone();
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let id = match runtime.create_container(request).await {
            Ok(answer) => answer.into_inner().container_id,
            Err(error) => {
                return refuse(self, "CreateContainerError", "Failed", format!("Error: {}", error.message()));
            }
        };
        self.event(pod, Some((container, init)), EventType::Normal, "Created", format!("Container created: {name}"));
        let ran = observed.newest(name).map(|last| last.finished.duration_since(last.started));
        if let Some(ran) = ran {
            self.backoffs.count(name, Timestamp::now(), ran);
        }
        if let Err(error) = runtime.start_container(v1::StartContainerRequest { container_id: id.clone() }).await {
            let message = format!("Error: {}", error.message());
            self.waiting.insert(name.to_owned(), ("RunContainerError".to_owned(), message.clone()));
            self.event(pod, Some((container, init)), EventType::Warning, "Failed", message);
            // the runtime keeps it as exited with 128; its back-off counts from now
            self.backoffs.count(name, Timestamp::now(), SignedDuration::ZERO);
            return Ok(true);
        }
        self.waiting.remove(name);
        self.event(pod, Some((container, init)), EventType::Normal, "Started", format!("Container started: {name}"));
        self.remove_old(observed, name).await;
        if let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) {
            self.after_start(pod, container, init, &id, &sandbox.ips, hook).await;
        }
        Ok(true)
    }

    /// All but the newest ended run of a container are removed: the last one's logs and exit code stay readable.
    async fn remove_old(&self, observed: &Observed, name: &str) {
        let mut runtime = self.shared.cri.clone();
        for old in observed.runs(name).filter(|c| c.run == Run::Exited).skip(1) {
            let request = v1::RemoveContainerRequest { container_id: old.id.clone() };
            if let Err(error) = runtime.remove_container(request).await {
                tracing::debug!(container = old.id, error = error.message(), "not removed yet");
            }
        }
    }

    async fn after_start(&mut self, pod: &Pod, spec: &Spec, init: bool, id: &str, ips: &[String], hook: &LifecycleHandler) {
        let runtime = self.shared.cri.clone();
        if let Err(why) = run_hook(runtime, id, spec, ips, hook, Duration::from_secs(3600)).await {
            let message = format!("PostStartHook failed: {why}");
            self.event(pod, Some((spec, init)), EventType::Warning, "FailedPostStartHook", message.clone());
            self.health.unhealthy.insert(id.to_owned(), message);
        }
    }

    /// The image's reference at the runtime; pulls it where the policy says so.
    async fn image(&mut self, pod: &Pod, container: &Spec, init: bool) -> Result<String, (&'static str, String)> {
        let name = container.image.clone().unwrap_or_default();
        let latest = !name.contains('@') && name.rsplit('/').next().is_none_or(|n| !n.contains(':') || n.ends_with(":latest"));
        let policy = container.image_pull_policy.as_deref().unwrap_or(if latest { "Always" } else { "IfNotPresent" });
        let image = v1::ImageSpec { image: name.clone(), user_specified_image: name.clone(), ..Default::default() };
        let mut images = self.shared.images.clone();
        let request = v1::ImageStatusRequest { image: Some(image.clone()), verbose: false };
        let present = match images.image_status(request).await {
            Ok(answer) => answer.into_inner().image,
            Err(error) => return Err(("ImageInspectError", format!("Failed to inspect image {name:?}: {}", error.message()))),
        };
        match (policy, present) {
            ("Never", None) => Err((
                "ErrImageNeverPull",
                format!("Container image {name:?} is not present with pull policy of Never"),
            )),
            ("Never" | "IfNotPresent", Some(found)) => {
                let text = format!("Container image {name:?} already present on machine");
                self.event(pod, Some((container, init)), EventType::Normal, "Pulled", text);
                Ok(found.id)
            }
            (_, present) => {
                self.event(pod, Some((container, init)), EventType::Normal, "Pulling", format!("Pulling image {name:?}"));
                let begin = tokio::time::Instant::now();
                match images.pull_image(v1::PullImageRequest { image: Some(image), ..Default::default() }).await {
                    Ok(answer) => {
                        let text = format!("Successfully pulled image {name:?} in {:?}", begin.elapsed());
                        self.event(pod, Some((container, init)), EventType::Normal, "Pulled", text);
                        Ok(answer.into_inner().image_ref)
                    }
                    // an image that was imported by hand needs no registry
                    Err(error) if present.is_some() && error.code() == tonic::Code::Unimplemented => {
                        Ok(present.map(|p| p.id).unwrap_or_default())
                    }
                    Err(error) => {
                        Err(("ErrImagePull", format!("Failed to pull image {name:?}: {}", error.message())))
                    }
                }
            }
        }
    }

    /// Environment, volumes and mounts of a container.
    async fn prepare(
        &mut self,
        pod: &Arc<Pod>,
        container: &Spec,
        ips: &[String],
        image: String,
    ) -> Result<Prepared, (&'static str, String)> {
        let (maps, secrets) = self.references(pod, container).await.map_err(|e| ("Failed", e))?;
        let ns = pod.metadata.namespace.as_deref().unwrap_or_default();
        let services: Vec<_> = self
            .shared
            .services
            .list_ns(ns)
            .into_iter()
            .chain(self.shared.services.get("default", "kubernetes").filter(|_| ns != "default"))
            .map(|s| (*s).clone())
            .collect();
        let sources = Sources {
            pod,
            config_maps: &maps,
            secrets: &secrets,
            services: &services,
            pod_ips: ips,
            host_ip: &self.shared.host_ip,
            allocatable: self.shared.allocatable,
        };
        if self.mounted.is_none() {
            let dir = self.pod_dir();
            let context = volumes::Context { client: &self.shared.client, pod_dir: &dir, sources: &sources };
            let mounted = volumes::mount(pod, &context).await.map_err(|e| ("FailedMount", e.to_string()))?;
            self.refresh_at = next_refresh(&mounted);
            self.mounted = Some(mounted);
        }
        let paths = self.mounted.as_ref().map(|m| m.paths.clone()).unwrap_or_default();
        let env = env::of(container, &sources).map_err(|e| ("Failed", format!("Error: {e}")))?;
        let mut mounts = cri_config::mounts(container, &paths, &env).map_err(|e| ("Failed", format!("Error: {e}")))?;
        if let Some(why) = wrong_user(pod, container) {
            return Err(("Failed", format!("Error: {why}")));
        }
        self.own_files(pod, container, ips, &mut mounts).map_err(|e| ("Failed", format!("Error: {e}")))?;
        Ok(Prepared { env, mounts, image })
    }

    fn pod_dir(&self) -> PathBuf {
        self.shared.root.join("pods").join(&self.uid)
    }

    /// `/etc/hosts` and the file for last words.
    fn own_files(&self, pod: &Pod, container: &Spec, ips: &[String], mounts: &mut Vec<v1::Mount>) -> std::io::Result<()> {
        let dir = self.pod_dir();
        let own = dir.join("containers").join(&container.name);
        std::fs::create_dir_all(&own)?;
        let mut add = |container_path: &str, host: &std::path::Path| {
            if !mounts.iter().any(|m| m.container_path == container_path) {
                mounts.push(v1::Mount {
                    container_path: container_path.to_owned(),
                    host_path: host.to_string_lossy().into_owned(),
                    ..Default::default()
                });
            }
        };
        let on_host = pod.spec.as_ref().and_then(|s| s.host_network) == Some(true);
        if !on_host {
            let hosts = dir.join("etc-hosts");
            std::fs::write(&hosts, cri_config::hosts_file(pod, ips, &self.shared.settings.cluster_domain))?;
            add("/etc/hosts", &hosts);
        }
        let path = container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
        if !path.is_empty() {
            let file = own.join(format!("{:08x}", rand::random::<u32>()));
            std::fs::write(&file, "")?;
            std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
            add(path, &file);
        }
        Ok(())
    }

    /// The ConfigMaps and Secrets that a container's environment names.
    async fn references(
        &self,
        pod: &Pod,
        container: &Spec,
    ) -> Result<(BTreeMap<String, ConfigMap>, BTreeMap<String, Secret>), String> {
        let ns = pod.metadata.namespace.as_deref().unwrap_or_default();
        let (mut map_names, mut secret_names) = (HashSet::new(), HashSet::new());
        for from in container.env_from.iter().flatten() {
            map_names.extend(from.config_map_ref.iter().map(|r| r.name.clone()));
            secret_names.extend(from.secret_ref.iter().map(|r| r.name.clone()));
        }
        for from in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
            map_names.extend(from.config_map_key_ref.iter().map(|r| r.name.clone()));
            secret_names.extend(from.secret_key_ref.iter().map(|r| r.name.clone()));
        }
        let (mut maps, mut secrets) = (BTreeMap::new(), BTreeMap::new());
        for name in map_names {
            match self.shared.client.get::<ConfigMap>(ns, &name).await {
                Ok(map) => drop(maps.insert(name, map)),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        for name in secret_names {
            match self.shared.client.get::<Secret>(ns, &name).await {
                Ok(secret) => drop(secrets.insert(name, secret)),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok((maps, secrets))
    }

    /// Brings payload volumes up to date: changed ConfigMaps and Secrets, fresh tokens.
    async fn refresh(&mut self, pod: &Arc<Pod>, observed: &Observed) {
        self.refresh_at = tokio::time::Instant::now() + REFRESH;
        let wanted = self.mounted.as_ref().is_none_or(|m| m.payloads);
        if !wanted || observed.running().next().is_none() || pod.metadata.deletion_timestamp.is_some() {
            return;
        }
        let ips = observed.sandboxes.first().map(|s| s.ips.clone()).unwrap_or_default();
        let none = (BTreeMap::new(), BTreeMap::new());
        let sources = Sources {
            pod,
            config_maps: &none.0,
            secrets: &none.1,
            services: &[],
            pod_ips: &ips,
            host_ip: &self.shared.host_ip,
            allocatable: self.shared.allocatable,
        };
        let dir = self.pod_dir();
        let context = volumes::Context { client: &self.shared.client, pod_dir: &dir, sources: &sources };
        match volumes::mount(pod, &context).await {
            Ok(mounted) => {
                self.refresh_at = next_refresh(&mounted);
                self.mounted = Some(mounted);
            }
            Err(error) => self.event(pod, None, EventType::Warning, "FailedMount", error.to_string()),
        }
    }

    /// Ends a container in a task of its own, so that a shorter grace period can still reach it.
    fn kill(&mut self, pod: &Arc<Pod>, id: &str, name: &str, why: &str, grace: i64) {
        // the same container with a shorter grace is asked again; the runtime takes the shorter one
        if !self.killing.insert(format!("{id}/{grace}")) {
            return;
        }
        let specs = || pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers));
        let Some(spec) = specs().find(|c| c.name == name).cloned() else { return };
        self.event(pod, Some((&spec, false)), EventType::Normal, "Killing", why);
        if let Some(probes) = self.prober.remove(id) {
            probes.cancel();
        }
        self.ready.insert(id.to_owned(), false);
        let (runtime, wake, id) = (self.shared.cri.clone(), self.wake.clone(), id.to_owned());
        let recorder = self.shared.recorder.clone();
        let about = client::events::reference(&**pod);
        let ips: Vec<String> =
            pod.status.iter().flat_map(|s| s.pod_ips.iter().flatten()).map(|ip| ip.ip.clone()).collect();
        tokio::spawn(async move {
            let begin = tokio::time::Instant::now();
            let mut left = Duration::from_secs(u64::try_from(grace).unwrap_or(0));
            if let Some(hook) = spec.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref()).filter(|_| grace > 0) {
                if let Err(why) = run_hook(runtime.clone(), &id, &spec, &ips, hook, left).await {
                    let text = format!("PreStopHook failed: {why}");
                    recorder.event(&about, EventType::Warning, "FailedPreStopHook", text);
                }
                left = left.saturating_sub(begin.elapsed()).max(Duration::from_secs(2));
            }
            let request = v1::StopContainerRequest {
                container_id: id.clone(),
                timeout: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            };
            if let Err(error) = runtime.clone().stop_container(request).await {
                tracing::warn!(container = id, error = error.message(), "container not stopped");
            }
            wake.notify_one();
        });
    }

    /// The last report, then the object's deletion and the removal of all traces. Whether all is done.
    async fn finish(&mut self, pod: &Pod, observed: &Observed) -> bool {
        let ns = pod.metadata.namespace.as_deref().unwrap_or_default();
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let mut runtime = self.shared.cri.clone();
        for sandbox in &observed.sandboxes {
            let request = v1::RemovePodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
            if let Err(error) = runtime.remove_pod_sandbox(request).await {
                tracing::warn!(pod = name, error = error.message(), "sandbox not removed");
                self.retry_later();
                return false;
            }
        }
        if let Err(error) = volumes::unmount_all(&self.pod_dir()) {
            self.event(pod, None, EventType::Warning, "FailedUnMount", error.to_string());
            self.retry_later();
            return false;
        }
        let _ = std::fs::remove_dir_all(cri_config::log_dir(&self.shared.settings, pod));
        let options = DeleteOptions {
            uid: Some(self.uid.clone()),
            grace_period_seconds: Some(0),
            ..DeleteOptions::default()
        };
        match self.shared.client.delete::<Pod>(ns, name, &options).await {
            Ok(()) => true,
            Err(error) if error.is_not_found() || error.is_conflict() => true,
            Err(error) => {
                tracing::warn!(pod = name, error = &error as &dyn std::error::Error, "pod not deleted");
                self.retry_later();
                false
            }
        }
    }

    /// Starts probing what runs, and forgets what does not.
    fn follow_probes(&mut self, pod: &Pod, observed: &Observed) {
        let running: HashSet<&str> = observed.running().map(|c| c.id.as_str()).collect();
        self.prober.retain(|id, stop| {
            let lives = running.contains(id.as_str());
            if !lives {
                stop.cancel();
            }
            lives
        });
        self.health.unhealthy.retain(|id, _| running.contains(id.as_str()));
        self.ready.retain(|id, _| running.contains(id.as_str()));
        self.health.started.retain(|id, _| running.contains(id.as_str()));
        self.killing.retain(|k| running.contains(k.split('/').next().unwrap_or_default()));
        if pod.metadata.deletion_timestamp.is_some() {
            return;
        }
        let specs: Vec<&Spec> =
            pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers)).collect();
        let ip = observed.sandboxes.first().and_then(|s| s.ips.first().cloned()).unwrap_or_else(|| self.shared.host_ip.clone());
        for container in observed.running() {
            if self.prober.contains_key(&container.id) || self.killing.iter().any(|k| k.starts_with(&container.id)) {
                continue;
            }
            let Some(spec) = specs.iter().find(|c| c.name == container.name) else { continue };
            let stop = CancellationToken::new();
            self.prober.insert(container.id.clone(), stop.clone());
            if spec.startup_probe.is_none() {
                self.health.started.insert(container.id.clone(), true);
                self.probe_readiness_and_liveness(spec, container, &ip, &stop);
            } else if let Some(probe) = &spec.startup_probe {
                self.probe(probes::Kind::Startup, probe, spec, container, &ip, &stop);
            }
        }
    }

    fn probe_readiness_and_liveness(&mut self, spec: &Spec, container: &Container, ip: &str, stop: &CancellationToken) {
        if let Some(probe) = &spec.readiness_probe {
            self.ready.entry(container.id.clone()).or_insert(false);
            self.probe(probes::Kind::Readiness, probe, spec, container, ip, stop);
        }
        if let Some(probe) = &spec.liveness_probe {
            self.probe(probes::Kind::Liveness, probe, spec, container, ip, stop);
        }
    }

    fn probe(
        &self,
        kind: probes::Kind,
        probe: &k8s_openapi::api::core::v1::Probe,
        spec: &Spec,
        container: &Container,
        ip: &str,
        stop: &CancellationToken,
    ) {
        let target = probes::Target {
            pod_ip: ip.to_owned(),
            container_id: container.id.clone(),
            container: spec.clone(),
        };
        tokio::spawn(probes::worker(
            kind,
            probe.clone(),
            target,
            self.shared.cri.clone(),
            self.results.0.clone(),
            stop.child_token(),
        ));
    }

    fn probed(&mut self, pod: &Pod, result: ProbeEvent) {
        let specs = || pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers));
        let Some(spec) = specs().find(|c| c.name == result.container).cloned() else { return };
        let name = match result.kind {
            probes::Kind::Liveness => "Liveness",
            probes::Kind::Readiness => "Readiness",
            probes::Kind::Startup => "Startup",
        };
        if result.failure {
            let text = format!("{name} probe failed: {}", result.message);
            self.event(pod, Some((&spec, false)), EventType::Warning, "Unhealthy", text);
        }
        let id = result.container_id.clone();
        match (result.kind, result.healthy) {
            (probes::Kind::Readiness, ready) => drop(self.ready.insert(id, ready)),
            (probes::Kind::Startup, true) => {
                if self.health.started.insert(id.clone(), true) == Some(true) {
                    return;
                }
                let observed = self.snapshot.borrow().observed.clone();
                let stop = self.prober.get(&id).cloned();
                if let (Some(container), Some(stop)) = (observed.containers.iter().find(|c| c.id == id), stop) {
                    let ip = observed.sandboxes.first().and_then(|s| s.ips.first().cloned()).unwrap_or_else(|| self.shared.host_ip.clone());
                    self.probe_readiness_and_liveness(&spec, container, &ip, &stop);
                }
            }
            (probes::Kind::Liveness | probes::Kind::Startup, false) if result.dead => {
                let verb = name.to_lowercase();
                let text = format!("Container {} failed {verb} probe, will be restarted", spec.name);
                self.health.unhealthy.insert(id, text);
            }
            _ => {}
        }
    }
}

/// When to write payload volumes again: about every minute, earlier where a token must be renewed.
fn next_refresh(mounted: &volumes::Mounted) -> tokio::time::Instant {
    let mut wait = REFRESH.mul_f64(1.0 + rand::random::<f64>() / 2.0);
    if let Some(at) = mounted.renew {
        wait = wait.min(Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default());
    }
    tokio::time::Instant::now() + wait.max(Duration::from_secs(1))
}

/// A container that must not run as root, and would.
fn wrong_user(pod: &Pod, container: &Spec) -> Option<String> {
    let pods = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let own = container.security_context.as_ref();
    let must = own.and_then(|c| c.run_as_non_root).or_else(|| pods.and_then(|c| c.run_as_non_root)) == Some(true);
    let user = own.and_then(|c| c.run_as_user).or_else(|| pods.and_then(|c| c.run_as_user));
    (must && user == Some(0)).then(|| {
        format!("container's runAsUser breaks non-root policy (pod: {:?}, container: {})", pod.metadata.name.as_deref().unwrap_or_default(), container.name)
    })
}

/// Runs a lifecycle hook within its time.
async fn run_hook(
    mut runtime: cri::RuntimeClient,
    id: &str,
    spec: &Spec,
    ips: &[String],
    hook: &LifecycleHandler,
    limit: Duration,
) -> Result<(), String> {
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0)).min(limit)).await;
        return Ok(());
    }
    if let Some(exec) = &hook.exec {
        let request = v1::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: exec.command.clone().unwrap_or_default(),
            timeout: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        };
        let answer = runtime.exec_sync(request).await.map_err(|e| e.message().to_owned())?.into_inner();
        return match answer.exit_code {
            0 => Ok(()),
            code => Err(format!(
                "command '{}' exited with {code}: {}",
                exec.command.clone().unwrap_or_default().join(" "),
                String::from_utf8_lossy(&answer.stderr)
            )),
        };
    }
    if let Some(http) = &hook.http_get {
        let probe = k8s_openapi::api::core::v1::Probe {
            http_get: Some(http.clone()),
            timeout_seconds: Some(i32::try_from(limit.as_secs()).unwrap_or(30)),
            ..Default::default()
        };
        let target = probes::Target {
            pod_ip: ips.first().cloned().unwrap_or_default(),
            container_id: id.to_owned(),
            container: spec.clone(),
        };
        let outcome = probes::run_once(&probe, &target, &mut runtime).await;
        return if outcome.success { Ok(()) } else { Err(outcome.message) };
    }
    Ok(())
}
