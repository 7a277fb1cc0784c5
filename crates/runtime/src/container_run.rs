//! CreateContainer to RemoveContainer.

use std::{
    collections::BTreeSet,
    fs, io,
    iter::repeat,
    os::unix::fs::{MetadataExt, chown},
    path::{Component, Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use cri::v1::{self, ContainerEventType};
use tokio_util::sync::CancellationToken;

use crate::{
    cdi,
    container_spec::{devices, limits, security_context},
    error::RuntimeError,
    image::config::ImageConfig,
    link,
    protocol::{FailureKind, Reply, Request},
    record::{self, ContainerPhase, ContainerRecord, ContainerState, SandboxRecord},
    sandbox_run,
    selinux::{self, Labels, relabel},
    signal,
    spec::UserNamespace,
    state::{Container, Runtime, Sandbox, new_id, now},
    user_namespace,
};

/// Most volumes that an image may ask for.
const MAX_VOLUMES: usize = 127;
/// Longest wait for a killed container's end.
const KILL_TIMEOUT: Duration = Duration::from_secs(30);

impl Runtime {
    /// Prepares a container and returns its id.
    pub(crate) async fn create_container(
        self: &Arc<Self>,
        sandbox: &str,
        mut config: v1::ContainerConfig,
    ) -> Result<String, RuntimeError> {
        let sandbox = self.sandbox(sandbox)?;
        self.label_volumes(&sandbox, &config).await?;
        // Its removal must not overlook this container.
        let _operation = sandbox.operation.lock().await;
        let sandbox_record = sandbox.record.read().clone();
        if !sandbox.ready() {
            return Err(RuntimeError::State(format!("sandbox {} is not ready", sandbox_record.id)));
        }
        let metadata = config
            .metadata
            .as_ref()
            .ok_or_else(|| RuntimeError::Invalid("container config has no metadata".to_owned()))?;
        let exists = self
            .containers_of(&sandbox_record.id)
            .iter()
            .any(|known| known.record.config.metadata.as_ref() == Some(metadata));
        if exists {
            return Err(RuntimeError::Exists(format!(
                "container {} attempt {} is there already",
                metadata.name, metadata.attempt
            )));
        }
        let injected = cdi::inject(&self.config.cdi_folders, &mut config)?;
        let wanted = config.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
        let image = self
            .images
            .find(wanted)
            .ok_or_else(|| RuntimeError::NotFound(format!("image {wanted:?} not found")))?;
        let volume_layers = self.find_image_volumes(&mut config)?;
        let selinux = self.labels_of_container(&sandbox_record, &config)?;
        let id = new_id();
        let record = ContainerRecord {
            cgroup: format!("{}/{id}", sandbox_record.cgroup_parent),
            id: id.clone(),
            sandbox: sandbox_record.id.clone(),
            image: image.id.clone(),
            image_ref: image.digests.first().unwrap_or(&image.id).clone(),
            layers: self.images.layer_dirs(&image).map_err(RuntimeError::io("the image's layers"))?,
            volume_layers,
            volumes: own_volumes(&image.config, &config)?,
            image_config: image.config.clone(),
            created_at: now(),
            config,
            cdi: injected,
            selinux,
            state: ContainerState::default(),
        };
        let container = Container::new(record);
        // Whatever is wrong with the configuration is said now. What it mounts is looked at: that may be a dead server's.
        let (pod, checked) = (sandbox_record.clone(), container.clone());
        self.blocking("checking the container", move |runtime| {
            runtime.container_spec(&pod, &checked.record).map(drop)
        })
        .await?;
        let (users, prepared) = (user_namespace::of(&sandbox_record.config)?, container.clone());
        let prepare =
            move |runtime: Arc<Runtime>| runtime.prepare_container(&prepared.record, users.as_ref());
        if let Err(error) = self.blocking("preparing the container", prepare).await {
            self.discard(&container).await?;
            return Err(error);
        }
        self.containers.write().insert(id.clone(), container);
        self.publish(&sandbox_record.id, &id, ContainerEventType::ContainerCreatedEvent);
        Ok(id)
    }

    /// Those of its sandbox unless it asks for something; what it does not ask for is then the policy's, its level the sandbox's.
    fn labels_of_container(
        &self,
        sandbox: &SandboxRecord,
        config: &v1::ContainerConfig,
    ) -> Result<Labels, RuntimeError> {
        let context = security_context(config);
        let asked = context.selinux_options.filter(|asked| *asked != Default::default());
        let Some(asked) = asked else { return Ok(sandbox.selinux.clone()) };
        let level = || sandbox.selinux.level().unwrap_or_else(|| self.levels.of(&sandbox.id));
        match selinux::labels(Some(&asked), level) {
            // it would not have one anyway
            Err(RuntimeError::Unsupported(_)) if context.privileged => Ok(sandbox.selinux.clone()),
            labels => labels,
        }
    }

    /// Says of each image that is a volume which one it is, as that may change later; the folders of their layers.
    fn find_image_volumes(&self, config: &mut v1::ContainerConfig) -> Result<Vec<PathBuf>, RuntimeError> {
        let mut layers = Vec::new();
        for mount in &mut config.mounts {
            let Some(spec) = mount.image.as_mut().filter(|image| !image.image.is_empty()) else { continue };
            if !mount.host_path.is_empty() {
                let why = format!("mount {:?} is to show a path and an image", mount.container_path);
                return Err(RuntimeError::Invalid(why));
            }
            let image = self.images.find(&spec.image).ok_or_else(|| {
                RuntimeError::NotFound(format!("image {:?} of a volume is not there", spec.image))
            })?;
            spec.image_ref = image.id.clone();
            layers.extend(self.images.layer_dirs(&image).map_err(RuntimeError::io("image volume"))?);
        }
        Ok(layers)
    }

    fn prepare_container(
        &self,
        record: &ContainerRecord,
        users: Option<&UserNamespace>,
    ) -> Result<(), RuntimeError> {
        let dir = self.config.container_dir(&record.id);
        let doing = |what: &'static str| RuntimeError::io(what);
        for part in [PathBuf::new(), "upper".into(), "work".into(), "root".into()] {
            fs::create_dir(dir.join(part)).map_err(doing("making the container's folder"))?;
        }
        for index in 0..record.volumes.len() {
            let folder = self.config.volumes_dir(&record.id).join(index.to_string());
            fs::create_dir_all(folder).map_err(doing("making the container's volumes"))?;
        }
        // The root folder's own mode is the upper layer's; keep the image's.
        if let Some(top) = record.layers.first() {
            let metadata = fs::metadata(top).map_err(doing("the image's layers"))?;
            fs::set_permissions(dir.join("upper"), metadata.permissions())
                .map_err(doing("the writable layer"))?;
            if let Some(users) = users {
                // What is written lies there with its owners on the node.
                let (uid, gid) = (users.uid(metadata.uid()), users.gid(metadata.gid()));
                chown(dir.join("upper"), uid, gid).map_err(doing("the writable layer"))?;
            }
        }
        self.label_files(record)?;
        self.cgroups.create(&record.cgroup).map_err(doing("making the container's control group"))?;
        if let Some(resources) = record.config.linux.as_ref().and_then(|linux| linux.resources.as_ref()) {
            self.cgroups
                .apply(&record.cgroup, &limits(resources))
                .map_err(doing("limiting the container"))?;
        }
        let (_, rules) = devices(record, security_context(&record.config).privileged)?;
        self.cgroups.allow_devices(&record.cgroup, rules.as_deref()).map_err(doing("limiting devices"))?;
        record::save(&dir, record).map_err(doing("recording the container"))
    }

    /// Gives the volumes that the caller names the container's label. A large one takes long: nothing is locked meanwhile, so
    /// that the pod can be stopped, which ends this too.
    async fn label_volumes(
        &self,
        sandbox: &Sandbox,
        config: &v1::ContainerConfig,
    ) -> Result<(), RuntimeError> {
        let asked = config.mounts.iter().filter(|mount| mount.selinux_relabel && !mount.host_path.is_empty());
        let paths: Vec<PathBuf> = asked.map(|mount| mount.host_path.clone().into()).collect();
        if paths.is_empty() {
            return Ok(());
        }
        let record = sandbox.record.read().clone();
        let Some(label) = self.labels_of_container(&record, config)?.file else { return Ok(()) };
        let stop = sandbox.ending.child_token();
        // one that asks again, as it waited long enough, does not walk beside the first
        let _one = sandbox.labelling.lock().await;
        let walk = move || paths.iter().try_for_each(|path| relabel(path, &label, &stop));
        tokio::task::spawn_blocking(walk)
            .await
            .map_err(|error| RuntimeError::io("labelling the volumes")(io::Error::other(error)))?
            .map_err(|why| match sandbox.ending.is_cancelled() {
                true => RuntimeError::State(format!("sandbox {} is being stopped", record.id)),
                false => RuntimeError::Invalid(why),
            })
    }

    /// Gives what the runtime itself has of a container's mounts its label: files of its sandbox, images.
    fn label_files(&self, record: &ContainerRecord) -> Result<(), RuntimeError> {
        let (Some(own), Some(shared)) = (&record.selinux.file, record.selinux.shared()) else {
            return Ok(());
        };
        let sandbox = self.config.sandbox_dir(&record.sandbox);
        let files = sandbox_run::FILES.map(|(name, _)| sandbox.join(name)).into_iter();
        let files = files.filter(|path| path.exists()).zip(repeat(own));
        let images = record.volume_layers.iter().cloned().zip(repeat(&shared));
        let stop = CancellationToken::new();
        let mut all = files.chain(images);
        all.try_for_each(|(path, label)| relabel(&path, label, &stop).map_err(RuntimeError::Invalid))
    }

    /// Runs a created container's program.
    pub(crate) async fn start_container(self: &Arc<Self>, id: &str) -> Result<(), RuntimeError> {
        let container = self.container(id)?;
        let _operation = container.operation.lock().await;
        match container.phase() {
            ContainerPhase::Created => {}
            ContainerPhase::Running => return Ok(()),
            ContainerPhase::Exited => {
                return Err(RuntimeError::State(format!(
                    "container {} has ended; it cannot start again",
                    container.record.id
                )));
            }
        }
        let sandbox = self.sandbox(&container.record.sandbox)?;
        let (pod, starting) = (sandbox.record.read().clone(), container.clone());
        let look = move |runtime: Arc<Runtime>| runtime.container_spec(&pod, &starting.record);
        let spec = self.blocking("looking at the container's mounts", look).await?;
        let dir = self.config.shim_dir(&container.record.sandbox);
        match link::ask(&dir, &Request::Start(Box::new(spec))).await {
            Ok(Reply::Started { pid, user, at }) => {
                self.started(&container, pid, user, at);
                Ok(())
            }
            Ok(_) => Err(RuntimeError::ShimGone(io::ErrorKind::InvalidData.into())),
            Err(error) => {
                // As other runtimes: it counts as ended, so that it is not tried again.
                self.change(&container, |state| {
                    (state.phase == ContainerPhase::Created).then(|| ContainerState {
                        phase: ContainerPhase::Exited,
                        started_at: 0,
                        finished_at: now(),
                        exit_code: 128,
                        reason: "StartError".to_owned(),
                        message: error.to_string(),
                        ..state.clone()
                    })
                });
                Err(error)
            }
        }
    }

    /// Asks a container to end, and kills it after `timeout` seconds. One that does not run, or that is not known,
    /// is no error. It is asked once, however many callers wait: a second signal means "at once" to many programs.
    pub(crate) async fn stop_container(&self, id: &str, timeout: i64) -> Result<(), RuntimeError> {
        let Ok(container) = self.container(id) else { return Ok(()) };
        if container.phase() != ContainerPhase::Running {
            return Ok(());
        }
        let dir = self.config.shim_dir(&container.record.sandbox);
        if let Ok(seconds @ 1..) = u64::try_from(timeout) {
            if !container.asked_to_end.swap(true, Ordering::Relaxed) {
                let signal = stop_signal(&container.record);
                let request = Request::Kill { container: container.record.id.clone(), signal };
                match link::ask(&dir, &request).await {
                    Ok(_) => {}
                    // Ended just now, or the shim is gone; the wait below sees the former.
                    Err(RuntimeError::Shim(failure)) if failure.kind == FailureKind::NotFound => {}
                    Err(error) => {
                        container.asked_to_end.store(false, Ordering::Relaxed);
                        tracing::warn!(container = container.record.id, %error, "asking a container to end")
                    }
                }
            }
            if tokio::time::timeout(Duration::from_secs(seconds), container.ended()).await.is_ok() {
                return Ok(());
            }
        }
        self.kill_container(&container).await
    }

    async fn kill_container(&self, container: &Container) -> Result<(), RuntimeError> {
        let dir = self.config.shim_dir(&container.record.sandbox);
        let request = Request::Kill { container: container.record.id.clone(), signal: libc::SIGKILL };
        if let Err(error) = link::ask(&dir, &request).await {
            tracing::debug!(container = container.record.id, %error, "killing a container");
        }
        tokio::time::timeout(KILL_TIMEOUT, container.ended()).await.map_err(|_| {
            RuntimeError::Timeout(format!("container {} does not end after SIGKILL", container.record.id))
        })
    }

    /// Removes a container, killing it first if it runs. An unknown one is no error.
    pub(crate) async fn remove_container(self: &Arc<Self>, id: &str) -> Result<(), RuntimeError> {
        let Ok(container) = self.container(id) else { return Ok(()) };
        // A start that is under way ends first; what it started is killed then.
        let _operation = container.operation.lock().await;
        self.stop_container(&container.record.id, 0).await?;
        let dir = self.config.shim_dir(&container.record.sandbox);
        let request = Request::Forget { container: container.record.id.clone() };
        if let Err(error) = link::ask(&dir, &request).await {
            tracing::debug!(container = container.record.id, %error, "forgetting a container");
        }
        self.discard(&container).await?;
        let known = self.containers.write().remove(&container.record.id).is_some();
        if known && container.record.images().any(|image| self.images.find(image).is_none()) {
            // An image of it was removed while it ran; it was the layers' last user perhaps.
            let runtime = self.clone();
            let pruned =
                tokio::task::spawn_blocking(move || runtime.images.prune(&runtime.layers_in_use())).await;
            if let Ok(Err(error)) = pruned {
                tracing::warn!(%error, "removing unused layers");
            }
        }
        if known {
            self.publish(
                &container.record.sandbox,
                &container.record.id,
                ContainerEventType::ContainerDeletedEvent,
            );
        }
        Ok(())
    }

    /// Removes a container's files and control group.
    pub(crate) async fn discard(self: &Arc<Self>, container: &Arc<Container>) -> Result<(), RuntimeError> {
        let (runtime, container) = (self.clone(), container.clone());
        let work = move || {
            let record = &container.record;
            runtime
                .cgroups
                .remove(&record.cgroup)
                .map_err(RuntimeError::io("removing the container's control group"))?;
            tree::remove(&runtime.config.container_dir(&record.id))
                .map_err(RuntimeError::io("removing the container's files"))
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| RuntimeError::io("removing the container")(io::Error::other(error)))?
    }

    /// Changes a container's limits. The kernel may take long, as it looks for memory to take back.
    pub(crate) async fn update_resources(
        self: &Arc<Self>,
        id: &str,
        update: v1::LinuxContainerResources,
    ) -> Result<(), RuntimeError> {
        let container = self.container(id)?;
        let _operation = container.operation.lock().await;
        if container.phase() == ContainerPhase::Exited {
            return Err(RuntimeError::State(format!("container {} has ended", container.record.id)));
        }
        let (group, wanted) = (container.record.cgroup.clone(), limits(&update));
        self.blocking("limiting the container", move |runtime| {
            runtime.cgroups.apply(&group, &wanted).map_err(RuntimeError::io("limiting the container"))
        })
        .await?;
        container.note_resources(update);
        self.change(&container, |state| Some(state.clone()));
        Ok(())
    }

    /// Opens a container's log anew, after it was renamed.
    pub(crate) async fn reopen_log(&self, id: &str) -> Result<(), RuntimeError> {
        let container = self.container(id)?;
        if container.phase() != ContainerPhase::Running {
            return Err(RuntimeError::State(format!("container {} does not run", container.record.id)));
        }
        let dir = self.config.shim_dir(&container.record.sandbox);
        link::ask(&dir, &Request::ReopenLog { container: container.record.id.clone() }).await.map(drop)
    }
}

/// Where a container has volumes of its own: at the paths that its image names and the caller mounts nothing at.
fn own_volumes(image: &ImageConfig, config: &v1::ContainerConfig) -> Result<Vec<String>, RuntimeError> {
    let given: BTreeSet<PathBuf> = config.mounts.iter().map(|mount| plain(&mount.container_path)).collect();
    let own: BTreeSet<PathBuf> = image.volumes.keys().map(|path| plain(path)).collect();
    if own.len() > MAX_VOLUMES || own.contains(Path::new("/")) {
        let why = format!("its image asks for more than {MAX_VOLUMES} volumes, or for one at /");
        return Err(RuntimeError::Invalid(why));
    }
    Ok(own.difference(&given).map(|path| path.display().to_string()).collect())
}

/// A path of a container as it is without `.`, `..` and what is said twice.
fn plain(path: &str) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => drop(plain.pop()),
            _ => {}
        }
    }
    plain
}

/// The signal a container is asked to end with: what its configuration says, else its image, else SIGTERM.
pub(crate) fn stop_signal(record: &ContainerRecord) -> i32 {
    let asked = signal::asked(record.config.stop_signal());
    asked.or_else(|| signal::by_name(&record.image_config.stop_signal)).unwrap_or(libc::SIGTERM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_images_volumes_are_those_that_nothing_is_mounted_at() {
        let check = |asked: serde_json::Value, given: &[&str], expected: Option<&[&str]>| {
            let image: ImageConfig = serde_json::from_value(serde_json::json!({"Volumes": asked})).unwrap();
            let mount = |path: &&str| v1::Mount { container_path: (*path).to_owned(), ..Default::default() };
            let config =
                v1::ContainerConfig { mounts: given.iter().map(mount).collect(), ..Default::default() };
            let own = own_volumes(&image, &config).ok();
            assert_eq!(own, expected.map(|paths| paths.iter().map(|path| (*path).to_owned()).collect()));
        };
        let asked =
            serde_json::json!({"/data/": {}, "relative": null, "/a/../given": {}, "/data/deep": {"x": 1}});
        check(asked, &["/given/"], Some(&["/data", "/data/deep", "/relative"]));
        check(serde_json::Value::Null, &[], Some(&[]));
        check(serde_json::json!({"..": {}}), &[], None);
        let many: serde_json::Map<_, _> =
            (0..=MAX_VOLUMES).map(|index| (index.to_string(), serde_json::json!({}))).collect();
        check(many.into(), &[], None);
    }
}
