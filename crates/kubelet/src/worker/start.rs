//! Makes the pod's sandbox and starts its containers: volumes, image, environment, configuration, start hook.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use client::events::EventType;
use client::traffic::ServiceView;
use cri::v1;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Container as Spec, LifecycleHandler, Pod, Secret};
use k8s_openapi::api::node::v1::RuntimeClass;

use super::image::{Image, Missing, is_image, is_pull, wrong_user};
use super::{REFUSED, RETRY, Step, Worker, hooks};
use crate::cri_config::{self, Prepared};
use crate::devices;
use crate::dns_config;
use crate::env::{self, Sources};
use crate::metrics;
use crate::observed::Run;
use crate::plan::{self, Unhealthy};
use crate::references::{self, Kind};
use crate::static_pods::is_static;
use crate::user_namespaces;
use crate::volumes;
use tokio::time::Instant;

/// The name under which failures to bring volumes up to date are counted; no container can be called so.
const CONTENT: &str = "/content";
/// Why a pod is over for whose volume the node has no room.
const FULL: &str = "VolumeAttachmentLimitExceeded";
/// So long a container that is to start waits for the list of Services.
const SERVICES: Duration = Duration::from_secs(1);
/// Longest start hook.
const START_HOOK: Duration = Duration::from_secs(3600);

/// A container's kind as metrics name it, by its list in the pod.
fn kind_of(list: &str) -> &'static str {
    match list {
        "initContainers" => "init_container",
        "ephemeralContainers" => "ephemeral_container",
        _ => "container",
    }
}

impl Worker {
    pub(super) fn sandbox_config(&self, pod: &Pod, attempt: u32) -> v1::PodSandboxConfig {
        let host = dns_config::of_node(&self.shared.resolv_conf);
        let mut config = cri_config::sandbox(pod, attempt, &self.shared.settings, &host);
        let context = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
        if let Some(options) = context.and_then(|context| context.namespace_options.as_mut()) {
            options.userns_options = self.users(pod);
        }
        config
    }

    /// The users that the pod was given, where it has its own.
    fn users(&self, pod: &Pod) -> Option<v1::UserNamespace> {
        self.shared.users.of(&self.uid).filter(|_| user_namespaces::wanted(pod))
    }

    /// Gives the pod users of its own, if it wants them and its runtime can.
    async fn give_users(&self, pod: &Pod, handler: &str) -> Result<(), String> {
        if !user_namespaces::wanted(pod) {
            return Ok(());
        }
        let status = self.shared.cri.clone().status(v1::StatusRequest::default()).await;
        user_namespaces::check(&status.map_err(|error| error.message().to_owned())?.into_inner(), handler)?;
        self.shared.users.give(&self.uid).map(drop)
    }

    pub(super) async fn make_sandbox(&mut self, pod: &Arc<Pod>, attempt: u32) -> Step {
        if let Err(error) = self.mount(pod).await {
            if let volumes::VolumeError::Full(_) = error {
                return self.reject(pod, FULL, error.to_string());
            }
            self.not_mounted(pod, &error);
            self.failed(plan::SANDBOX);
            return Step::Waits;
        }
        if !self.prepare_claims(pod).await {
            return Step::Waits;
        }
        if attempt > 0 && !self.failures.contains_key(plan::SANDBOX) {
            let text = "Pod sandbox changed, it will be killed and re-created.";
            self.event(pod, None, EventType::Normal, "SandboxChanged", text);
        }
        let host = dns_config::of_node(&self.shared.resolv_conf);
        for omitted in dns_config::of(pod, &self.shared.settings, &host).1 {
            self.event(pod, None, EventType::Warning, "DNSConfigForming", omitted);
        }
        let logs = cri_config::log_dir(&self.shared.settings, pod);
        let made = std::fs::create_dir_all(&logs).map_err(|e| format!("{}: {e}", logs.display()));
        let named = cri_config::kernel_name(pod, &self.shared.settings.cluster_domain);
        let handler = match made.and(named) {
            Ok(_) => self.runtime_handler(pod).await,
            Err(why) => Err(why),
        };
        let handler = match handler {
            Ok(handler) => self.give_users(pod, &handler).await.map(|()| handler),
            Err(why) => Err(why),
        };
        let outcome = match handler {
            Ok(runtime_handler) => {
                let config = Some(self.sandbox_config(pod, attempt));
                let request = v1::RunPodSandboxRequest { config, runtime_handler: runtime_handler.clone() };
                let begin = Instant::now();
                metrics::STARTED_PODS.add(&[]);
                let own_users = user_namespaces::wanted(pod);
                if own_users {
                    metrics::STARTED_USERS.add(&[]);
                }
                let made = self.shared.cri.clone().run_pod_sandbox(request).await;
                metrics::SANDBOX.time(&[&runtime_handler], begin.elapsed());
                made.map_err(|error| {
                    metrics::SANDBOX_ERRORS.add(&[&runtime_handler]);
                    metrics::STARTED_PODS_ERRORS.add(&[]);
                    if own_users {
                        metrics::STARTED_USERS_ERRORS.add(&[]);
                    }
                    error.message().to_owned()
                })
            }
            Err(why) => Err(why),
        };
        match outcome {
            Ok(_) => {
                self.limit_pod(pod);
                self.succeeded(plan::SANDBOX);
                Step::Changed
            }
            Err(why) => {
                let text = format!("Failed to create pod sandbox: {why}");
                self.event(pod, None, EventType::Warning, "FailedCreatePodSandBox", text);
                self.failed(plan::SANDBOX);
                Step::Waits
            }
        }
    }

    /// The pod was let in and cannot be here after all: whoever made it makes another, elsewhere.
    fn reject(&mut self, pod: &Pod, reason: &str, message: String) -> Step {
        metrics::REJECTIONS.add(&[reason]);
        self.event(pod, None, EventType::Warning, reason, message.clone());
        self.killed = Some((reason.to_owned(), format!("{REFUSED}{message}")));
        self.ended = true;
        Step::Changed
    }

    /// What the runtime calls the pod's RuntimeClass; empty for its default.
    async fn runtime_handler(&self, pod: &Pod) -> Result<String, String> {
        let spec = pod.spec.as_ref();
        let name = spec.and_then(|spec| spec.runtime_class_name.as_deref()).filter(|name| !name.is_empty());
        let Some(name) = name else { return Ok(String::new()) };
        let found = self.shared.client.get::<RuntimeClass>("", name).await;
        found.map(|class| class.handler).map_err(|error| error.to_string())
    }

    /// Whether the pod's runtime can make mounts read-only together with what is below them.
    async fn mounts_recursively(&self, pod: &Pod) -> Result<bool, String> {
        let name = self.runtime_handler(pod).await?;
        let status = self.shared.cri.clone().status(v1::StatusRequest::default()).await;
        let handlers = status.map_err(|error| error.message().to_owned())?.into_inner().runtime_handlers;
        let handler = handlers.into_iter().find(|handler| handler.name == name);
        Ok(handler.and_then(|handler| handler.features).is_some_and(|can| can.recursive_read_only_mounts))
    }

    fn refuse(&mut self, pod: &Pod, about: (&Spec, &str), reason: &str, message: String) -> Step {
        let name = about.0.name.clone();
        metrics::STARTED_CONTAINERS_ERRORS.add(&[reason, kind_of(about.1)]);
        // why an image is missing was told where it was found out
        let text = format!("Error: {}", if is_image(reason) { reason } else { &message });
        self.event(pod, Some(about), EventType::Warning, "Failed", text);
        if is_pull(reason) {
            self.pull_failed(&name);
        } else {
            self.failed(&name);
        }
        self.waiting.insert(name, (reason.to_owned(), message));
        self.publish(pod);
        Step::Waits
    }

    /// Starts one run of a container.
    pub(super) async fn start(&mut self, pod: &Arc<Pod>, name: &str, attempt: u32) -> Step {
        let Some((container, list)) = plan::find(pod, name) else { return Step::Waits };
        let Some(sandbox) = self.observed.ready_sandbox().cloned() else { return Step::Waits };
        let about = (&container, list);
        metrics::STARTED_CONTAINERS.add(&[kind_of(list)]);
        let image = match self.image(pod, &container, list).await {
            Ok(image) => image,
            Err(Some((reason, message))) => return self.refuse(pod, about, reason, message),
            Err(None) => return Step::Changed,
        };
        if let Some(why) = wrong_user(pod, &container, &image) {
            return self.refuse(pod, about, "CreateContainerConfigError", why);
        }
        if let Err(error) = self.mount(pod).await {
            self.not_mounted(pod, &error);
            self.failed(name);
            return Step::Waits;
        }
        let images = match self.image_volumes(pod, &container).await {
            Ok(images) => images,
            Err(Some((reason, message))) => return self.refuse(pod, about, reason, message),
            Err(None) => return Step::Changed,
        };
        let prepared = match self.prepare(pod, &container, &sandbox.ips, image, &images).await {
            Ok(prepared) => prepared,
            Err(why) => {
                return self.refuse(pod, about, "CreateContainerConfigError", why);
            }
        };
        let settings = &self.shared.settings;
        let mut config = cri_config::container(pod, &container, attempt, prepared, settings);
        self.target_namespace(pod, name, &mut config);
        let numbers = self.numbers(&container, pod);
        let cpus = numbers.cpuset_cpus.clone();
        if let Some(linux) = &mut config.linux {
            linux.resources = Some(numbers);
        }
        match self.shared.devices.for_start(&self.uid, name).await {
            Ok(given) => devices::apply(&mut config, given),
            Err(why) => {
                return self.refuse(pod, about, "CreateContainerConfigError", why);
            }
        }
        match self.shared.claims.cdi_devices(pod, &container) {
            Ok(names) => devices::name(&mut config, names),
            Err(why) => {
                return self.refuse(pod, about, "CreateContainerConfigError", format!("Error: {why}"));
            }
        }
        if let Some(users) = self.users(pod) {
            user_namespaces::map(&mut config.mounts, &users);
            let context = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
            if let Some(options) = context.and_then(|context| context.namespace_options.as_mut()) {
                options.userns_options = Some(users);
            }
        }
        let log_dir = cri_config::log_dir(settings, pod).join(name);
        if let Err(error) = std::fs::create_dir_all(&log_dir) {
            let message = format!("{}: {error}", log_dir.display());
            return self.refuse(pod, about, "CreateContainerError", message);
        }
        let mut runtime = self.shared.cri.clone();
        if let Err(why) = self.clear(pod, name).await {
            tracing::warn!(container = name, why, "in an unknown state, not stopped");
            self.failed(name);
            return Step::Waits;
        }
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.sandbox_config(pod, sandbox.attempt)),
        };
        let relabels =
            request.config.iter().flat_map(|config| &config.mounts).any(|mount| mount.selinux_relabel);
        let created = Box::pin(runtime.create_container(request));
        // a large volume is labelled for long: what ends the pod ends that, too
        let created = if relabels { self.unless_deleted(created).await } else { Some(created.await) };
        let Some(created) = created else { return Step::Changed };
        let id = match created {
            Ok(answer) => answer.into_inner().container_id,
            Err(error) => {
                let message = error.message().to_owned();
                return self.refuse(pod, about, "CreateContainerError", message);
            }
        };
        self.pinned.insert(id.clone(), cpus);
        self.event(pod, Some(about), EventType::Normal, "Created", "Container created");
        let last = self.observed.newest(name).filter(|c| c.run != Run::Created);
        if let Some(finished) = last.map(|last| last.finished) {
            self.backoffs.count(name, Timestamp::now(), finished);
        }
        let request = v1::StartContainerRequest { container_id: id.clone() };
        let started = runtime.start_container(request).await;
        self.remove_old(name, &log_dir, attempt).await;
        if let Err(error) = started {
            // the runtime keeps the run as ended with 128
            let message = error.message().to_owned();
            self.refuse(pod, about, "RunContainerError", message);
            return Step::Changed;
        }
        self.waiting.remove(name);
        self.succeeded(name);
        self.event(pod, Some(about), EventType::Normal, "Started", "Container started");
        if let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) {
            self.after_start(pod, about, &id, hook).await;
        }
        Step::Changed
    }

    /// An ephemeral container sees the processes of the container it is to look at.
    fn target_namespace(&self, pod: &Pod, name: &str, config: &mut v1::ContainerConfig) {
        let list = pod.spec.iter().flat_map(|s| s.ephemeral_containers.iter().flatten());
        let target = list.filter(|e| e.name == name).find_map(|e| e.target_container_name.as_deref());
        let target = target.and_then(|t| self.observed.newest(t)).map(|c| c.id.clone());
        let context = config.linux.as_mut().and_then(|l| l.security_context.as_mut());
        if let (Some(target), Some(options)) = (target, context.and_then(|c| c.namespace_options.as_mut())) {
            options.pid = v1::NamespaceMode::Target as i32;
            options.target_id = target;
        }
    }

    async fn after_start(&mut self, pod: &Pod, about: (&Spec, &str), id: &str, hook: &LifecycleHandler) {
        let ip = self.pod_ip();
        let whole = super::describe(pod);
        let run = hooks::run(self.shared.cri.clone(), id, (&whole, about.0), &ip, hook, START_HOOK);
        match self.meanwhile(pod, run).await {
            Some(Err(why)) => {
                // why is for those who may read the pod
                let text = "PostStartHook failed";
                self.event(pod, Some(about), EventType::Warning, "FailedPostStartHook", text);
                self.waiting.insert(about.0.name.clone(), ("PostStartHookError".to_owned(), why));
                let unhealthy = Unhealthy { why: "FailedPostStartHook".to_owned(), grace: None };
                self.health.unhealthy.insert(id.to_owned(), unhealthy);
            }
            Some(Ok(Some(text))) => {
                self.event(pod, Some(about), EventType::Warning, hooks::FALLBACK, text);
            }
            Some(Ok(None)) | None => {}
        }
    }

    /// The pod's volumes, made once.
    async fn mount(&mut self, pod: &Arc<Pod>) -> Result<(), volumes::VolumeError> {
        self.watch_references(pod);
        if self.mounted.as_ref().is_some_and(|mounted| mounted.missing.is_empty()) {
            return Ok(());
        }
        let made = self.unless_deleted(self.mount_now(pod)).await;
        let (mounted, failed) = made.ok_or(volumes::VolumeError::Ends)?;
        self.mounted = Some(mounted);
        self.written_from = Some(pod.clone());
        failed.map_or(Ok(()), Err)
    }

    fn not_mounted(&self, pod: &Pod, error: &volumes::VolumeError) {
        if !matches!(error, volumes::VolumeError::Ends) {
            self.event(pod, None, EventType::Warning, "FailedMount", error.to_string());
        }
    }

    /// Ids of the images that the container has as volumes, by volume.
    async fn image_volumes(
        &mut self,
        pod: &Pod,
        container: &Spec,
    ) -> Result<BTreeMap<String, String>, Missing> {
        let mut found = BTreeMap::new();
        let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
        for volume in volumes {
            let used = container.volume_mounts.iter().flatten().any(|mount| mount.name == volume.name);
            let Some(source) = volume.image.as_ref().filter(|_| used) else { continue };
            // pulled by the rules for a container's own
            let wanted = Spec {
                name: volume.name.clone(),
                image: source.reference.clone(),
                image_pull_policy: source.pull_policy.clone(),
                ..Spec::default()
            };
            found.insert(volume.name.clone(), self.image(pod, &wanted, "").await?.id);
        }
        Ok(found)
    }

    /// Watches what the pod refers to; called before it is read, so that no change falls between.
    fn watch_references(&mut self, pod: &Pod) {
        if self.references.is_none() {
            let ns = pod.metadata.namespace.as_deref().unwrap_or_default();
            let watch = |(kind, name): (Kind, String)| {
                let watched = self.shared.references.watch(kind, ns, &name, &self.changed);
                ((kind, name), watched)
            };
            self.references = Some(references::of(pod).into_iter().map(watch).collect());
        }
    }

    async fn mount_now(&self, pod: &Arc<Pod>) -> (volumes::Mounted, Option<volumes::VolumeError>) {
        let (maps, secrets, volumes) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let ips = self.observed.sandboxes.first().map(|s| s.ips.clone()).unwrap_or_default();
        let sources = Sources {
            pod,
            config_maps: &maps,
            secrets: &secrets,
            volumes: &volumes,
            services: &[],
            pod_ips: &ips,
            host_ips: &self.shared.host_ips,
            allocatable: self.shared.allocatable,
        };
        let dir = self.pod_dir();
        let (before, running) = (self.mounted.as_ref(), self.observed.running().next().is_some());
        if before.is_none() && running {
            self.shared.storage.adopt(pod);
        }
        let context = volumes::Context {
            client: &self.shared.client,
            references: &self.shared.references,
            storage: &self.shared.storage,
            pod_dir: &dir,
            sources: &sources,
            before,
            running,
        };
        // what makes a volume takes much of the stack
        Box::pin(volumes::mount(pod, &context)).await
    }

    /// Something the pod refers to changed: its volumes follow, and what failed for want of it is tried again.
    pub(super) fn referenced(&mut self) {
        let held: Vec<String> = self
            .failures
            .keys()
            .filter(|name| !self.pulls.contains_key(*name))
            .filter(|name| self.waiting.get(*name).is_none_or(|(reason, _)| !reason.contains("Image")))
            .cloned()
            .collect();
        for name in held {
            self.backoffs.release(&name);
        }
        self.content_at = None;
    }

    /// Keeps the content of volumes in step: the pod's own labels, tokens near their end, changed ConfigMaps and
    /// Secrets, and all of it for a pod that ran before this kubelet.
    pub(super) async fn follow_content(&mut self, pod: &Arc<Pod>) {
        if pod.metadata.deletion_timestamp.is_some() || self.observed.running().next().is_none() {
            // nobody reads them, and no token may be made for a pod that ends
            self.content_at = None;
            return;
        }
        let now = Timestamp::now();
        let stale = match (&self.mounted, &self.written_from) {
            (Some(mounted), Some(from)) => {
                let labels = from.metadata.labels != pod.metadata.labels
                    || from.metadata.annotations != pod.metadata.annotations;
                let changed = self.references.iter().flatten().any(|(key, watched)| {
                    mounted.seen.get(key).is_some_and(|read| watched.differs(read.as_deref()))
                });
                // one that could not be brought up to date is tried again
                let failed = self.failures.contains_key(CONTENT);
                failed || changed || (labels && mounted.downward) || mounted.renew.is_some_and(|at| at <= now)
            }
            _ => true,
        };
        if !stale || self.content_at.is_some_and(|at| at > Instant::now()) {
            return;
        }
        self.watch_references(pod);
        let (mounted, failed) = self.mount_now(pod).await;
        self.mounted = Some(mounted);
        self.written_from = Some(pod.clone());
        match failed {
            None => {
                self.failures.remove(CONTENT);
                self.content_at = None;
            }
            Some(error) => {
                self.not_mounted(pod, &error);
                let fresh = || client::queue::Backoff::new(RETRY.0, RETRY.1);
                let delay = self.failures.entry(CONTENT.to_owned()).or_insert_with(fresh).next();
                self.content_at = Some(Instant::now() + delay);
            }
        }
    }

    /// When volumes are to be written again although nothing changes.
    pub(super) fn content_timer(&self, pod: &Pod) -> Option<Instant> {
        let read = pod.metadata.deletion_timestamp.is_none() && self.observed.running().next().is_some();
        let renew = self.mounted.as_ref().filter(|_| read).and_then(|m| m.renew);
        self.content_at.or_else(|| renew.map(super::instant))
    }

    /// Environment, mounts and files of a container; the error is its waiting message.
    async fn prepare(
        &self,
        pod: &Arc<Pod>,
        container: &Spec,
        ips: &[String],
        image: Image,
        images: &BTreeMap<String, String>,
    ) -> Result<Prepared, String> {
        let ns = pod.metadata.namespace.as_deref().unwrap_or_default();
        let (mut maps, mut secrets) = (BTreeMap::new(), BTreeMap::new());
        for (kind, name) in references::of_container(container) {
            let found = match kind {
                Kind::ConfigMap => {
                    let found = self.shared.references.get::<ConfigMap>(ns, &name).await;
                    found.map(|map| drop(maps.insert(name, map)))
                }
                Kind::Secret => {
                    let found = self.shared.references.get::<Secret>(ns, &name).await;
                    found.map(|secret| drop(secrets.insert(name, secret)))
                }
            };
            // whether it may be absent is for the variable to say
            if let Err(error) = found
                && !error.is_not_found()
            {
                return Err(error.to_string());
            }
        }
        let services = self.services(pod, ns).await?;
        let none = volumes::Mounted::default();
        let mounted = self.mounted.as_ref().unwrap_or(&none);
        let sources = Sources {
            pod,
            config_maps: &maps,
            secrets: &secrets,
            volumes: &mounted.paths,
            services: &services,
            pod_ips: if ips.is_empty() { &self.shared.host_ips } else { ips },
            host_ips: &self.shared.host_ips,
            allocatable: self.shared.allocatable,
        };
        let env = env::of(container, &sources)?;
        let pins = self.pod_dir().join("volume-subpaths");
        let able = cri_config::wants_recursive(container) && self.mounts_recursively(pod).await?;
        let mut mounts = cri_config::mounts(container, mounted, (images, able), &env, &pins)?;
        let devices = cri_config::devices(container, mounted)?;
        self.own_files(pod, container, ips, &mut mounts).map_err(|e| e.to_string())?;
        Ok(Prepared { env, mounts, devices, image: image.id, user: (image.uid, image.user) })
    }

    /// The Services that a pod of the namespace gets variables of. They must be known: a variable that is missing stays so as
    /// long as the container runs. Pods of files begin without an API.
    async fn services(&self, pod: &Pod, ns: &str) -> Result<Vec<Arc<ServiceView>>, String> {
        let known = &self.shared.services;
        if !is_static(pod) && tokio::time::timeout(SERVICES, known.synced()).await.is_err() {
            return Err("services have not yet been read at least once, cannot construct envvars".to_owned());
        }
        let master = known.get("default", "kubernetes").filter(|_| ns != "default");
        Ok(known.list_ns(ns).into_iter().chain(master).collect())
    }

    /// `/etc/hosts` and the file for last words.
    fn own_files(
        &self,
        pod: &Pod,
        container: &Spec,
        ips: &[String],
        mounts: &mut Vec<v1::Mount>,
    ) -> std::io::Result<()> {
        let dir = self.pod_dir();
        let own = dir.join("containers").join(&container.name);
        std::fs::create_dir_all(&own)?;
        let mut add = |container_path: &str, host: &Path| {
            if !mounts.iter().any(|m| m.container_path == container_path) {
                mounts.push(v1::Mount {
                    container_path: container_path.to_owned(),
                    host_path: host.to_string_lossy().into_owned(),
                    selinux_relabel: crate::selinux::enabled(),
                    ..Default::default()
                });
            }
        };
        let hosts = dir.join("etc-hosts");
        std::fs::write(&hosts, cri_config::hosts_file(pod, ips, &self.shared.settings.cluster_domain))?;
        // whatever the node takes off new files
        std::fs::set_permissions(&hosts, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        add("/etc/hosts", &hosts);
        let path = container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
        if !path.is_empty() {
            let file = own.join(format!("{:08x}", rand::random::<u32>()));
            std::fs::write(&file, "")?;
            std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
            add(path, &file);
        }
        Ok(())
    }
}
