//! Opening the runtime: what a process before this one left running is taken over, with everything that
//! happened meanwhile; then each shim's word is followed as it comes.

use std::{fs, io, path::Path, process::Child, sync::Arc};

use cri::v1::ContainerEventType;

use crate::{
    error::RuntimeError,
    link::Link,
    protocol::{ExitRecord, Reply, Request},
    record::{self, ContainerPhase, ContainerRecord, ContainerState, SandboxPhase, SandboxRecord},
    sandbox_run,
    state::{Config, Container, Runtime, Sandbox, now},
    streaming::StreamingServer,
};

impl Runtime {
    /// Opens the runtime in `config`'s folders and adopts what runs. Needs root.
    pub async fn open(config: Config) -> Result<Arc<Runtime>, RuntimeError> {
        let streaming = StreamingServer::bind().await.map_err(RuntimeError::io("the streaming server"))?;
        let runtime = Arc::new(Runtime::prepare(config, streaming)?);
        runtime.adopt_all().await?;
        // what an interrupted pull or removal left
        let store = runtime.clone();
        let swept = tokio::task::spawn_blocking(move || store.images.prune(&store.layers_in_use())).await;
        if let Ok(Err(error)) = swept {
            tracing::warn!(%error, "cleaning up the image store");
        }
        runtime.streaming.serve(&runtime);
        let valid: Vec<String> = runtime.sandboxes.read().keys().cloned().collect();
        if let Err(error) = runtime.config.network.gc(&valid).await {
            tracing::warn!(%error, "cleaning up the pod network");
        }
        Ok(runtime)
    }

    async fn adopt_all(self: &Arc<Self>) -> Result<(), RuntimeError> {
        let doing = |what: &str| RuntimeError::io(format!("reading {what}"));
        for dir in folders(&self.config.root.join("containers")).map_err(doing("containers"))? {
            match record::load::<ContainerRecord>(&dir) {
                Ok(record) => {
                    let container = Container::new(record);
                    self.containers.write().insert(container.record.id.clone(), container);
                }
                Err(error) => {
                    tracing::warn!(dir = %dir.display(), %error, "a container's record is damaged; removing it");
                    let _ = tree::remove(&dir);
                }
            }
        }
        for dir in folders(&self.config.root.join("sandboxes")).map_err(doing("sandboxes"))? {
            match sandbox_run::load(&dir) {
                Ok(record) => self.adopt(record).await,
                Err(error) => {
                    tracing::warn!(dir = %dir.display(), %error, "a sandbox's record is damaged; removing it");
                    let _ = tree::remove(&dir);
                }
            }
        }
        // Shims whose record is gone.
        for dir in folders(&self.config.run.join("s")).map_err(doing("shims"))? {
            let known = dir
                .file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|id| self.sandboxes.read().contains_key(id));
            if !known {
                let _ = crate::sandbox_stop::shut_down(&dir).await;
                if let Some(id) = dir.file_name().and_then(|name| name.to_str()) {
                    crate::sandbox_stop::unpin(&self.config.netns(id));
                }
                let _ = tree::remove(&dir);
            }
        }
        let sandboxes: Vec<String> = self.sandboxes.read().keys().cloned().collect();
        let orphans: Vec<Arc<Container>> = self
            .containers
            .read()
            .values()
            .filter(|container| !sandboxes.contains(&container.record.sandbox))
            .cloned()
            .collect();
        for container in orphans {
            self.discard(&container).await?;
        }
        Ok(())
    }

    async fn adopt(self: &Arc<Self>, record: SandboxRecord) {
        let phase = record.phase;
        let id = record.id.clone();
        if let Some(level) = record.selinux.level() {
            self.levels.note(&id, level);
        }
        let sandbox = Sandbox::new(record);
        match phase {
            SandboxPhase::Creating => {
                // Nobody was told about it.
                let pod = sandbox_run::network_pod(&sandbox.record.read());
                if let Some(pod) = pod
                    && let Err(error) = self.config.network.del(&pod).await
                {
                    tracing::warn!(sandbox = id, %error, "disconnecting an unfinished sandbox");
                }
                self.dismantle(&sandbox).await;
                self.forget_sandbox(&sandbox).await;
            }
            SandboxPhase::NotReady => {
                self.sandboxes.write().insert(id.clone(), sandbox);
                self.lose_containers(&id);
            }
            SandboxPhase::Ready => {
                self.sandboxes.write().insert(id, sandbox.clone());
                if let Err(error) = self.follow(&sandbox, None).await {
                    tracing::info!(sandbox = sandbox.id(), %error, "a sandbox did not survive");
                    self.shim_ended(&sandbox);
                }
            }
        }
    }

    /// Subscribes to a shim and follows it in the background; returns when everything it knew was taken in.
    pub(crate) async fn follow(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        child: Option<Child>,
    ) -> Result<(), RuntimeError> {
        let subscribe = async {
            let mut link = Link::connect(&self.config.shim_dir(&sandbox.id())).await?;
            link.send(&Request::Subscribe, &[]).await?;
            loop {
                match link.receive().await? {
                    Some(Reply::Done) => return Ok(link),
                    Some(reply) => self.heard(reply),
                    None => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                }
            }
        };
        let subscribed: io::Result<Link> = subscribe.await;
        let runtime = Arc::downgrade(self);
        let (sandbox, stop) = (sandbox.clone(), self.stop.clone());
        let (link, failed) = match subscribed {
            Ok(link) => (Some(link), None),
            Err(error) => (None, Some(error)),
        };
        tokio::spawn(async move {
            if let Some(mut link) = link {
                loop {
                    let reply = tokio::select! {
                        reply = link.receive() => reply,
                        () = stop.cancelled() => return,
                    };
                    let Some(runtime) = runtime.upgrade() else { return };
                    match reply {
                        Ok(Some(reply)) => runtime.heard(reply),
                        Ok(None) => break runtime.shim_ended(&sandbox),
                        Err(error) => {
                            tracing::warn!(sandbox = sandbox.id(), %error, "a shim's connection broke");
                            break runtime.shim_ended(&sandbox);
                        }
                    }
                }
            }
            // It is our child when this process started it; nobody else would reap it.
            if let Some(mut child) = child {
                let _ = tokio::task::spawn_blocking(move || child.wait()).await;
            }
        });
        failed.map_or(Ok(()), |error| Err(RuntimeError::ShimGone(error)))
    }

    fn heard(&self, reply: Reply) {
        match reply {
            Reply::Running { container, pid, user, at } => {
                let Some(container) = self.containers.read().get(&container).cloned() else { return };
                self.started(&container, pid, user, at);
            }
            Reply::Exited(exit) => {
                let Some(container) = self.containers.read().get(&exit.container).cloned() else { return };
                self.exited(&container, &exit);
            }
            _ => {}
        }
    }

    /// A container's program runs. Told twice, by the shim's answer and by its stream, in any order.
    pub(crate) fn started(&self, container: &Container, pid: i32, user: crate::spec::ResolvedUser, at: i64) {
        let changed = self.change(container, |state| {
            (state.phase == ContainerPhase::Created).then(|| ContainerState {
                phase: ContainerPhase::Running,
                pid,
                user: Some(user),
                started_at: at,
                ..state.clone()
            })
        });
        if changed {
            self.publish(
                &container.record.sandbox,
                &container.record.id,
                ContainerEventType::ContainerStartedEvent,
            );
        }
    }

    fn exited(&self, container: &Container, exit: &ExitRecord) {
        let changed = self
            .change(container, |state| (state.phase != ContainerPhase::Exited).then(|| state.exited(exit)));
        if changed {
            self.publish(
                &container.record.sandbox,
                &container.record.id,
                ContainerEventType::ContainerStoppedEvent,
            );
        }
    }

    /// Without its shim a sandbox is over: containers may still run, but nobody would hear of their end.
    fn shim_ended(&self, sandbox: &Sandbox) {
        let id = sandbox.id();
        let dir = self.config.shim_dir(&id);
        for container in self.containers_of(&id) {
            if let Ok(bytes) = fs::read(dir.join(format!("{}.exit", container.record.id)))
                && let Ok(exit) = serde_json::from_slice::<ExitRecord>(&bytes)
            {
                self.exited(&container, &exit);
            }
        }
        self.lose_containers(&id);
        if sandbox.ready() {
            sandbox.record.write().phase = SandboxPhase::NotReady;
            if let Err(error) = self.save_sandbox(sandbox) {
                tracing::warn!(sandbox = id, %error, "recording a sandbox's end");
            }
            self.publish(&id, &id, ContainerEventType::ContainerStoppedEvent);
        }
    }

    fn lose_containers(&self, sandbox: &str) {
        for container in self.containers_of(sandbox) {
            if container.phase() != ContainerPhase::Running {
                continue;
            }
            if let Err(error) = self.cgroups.kill(&container.record.cgroup) {
                tracing::warn!(container = container.record.id, %error, "killing what lost its shim");
            }
            let message = "the sandbox's shim is gone; how the container ended is not known";
            let changed = self.change(&container, |state| {
                (state.phase == ContainerPhase::Running).then(|| state.lost(message, now()))
            });
            if changed {
                self.publish(sandbox, &container.record.id, ContainerEventType::ContainerStoppedEvent);
            }
        }
    }

    /// Ends this process's part; containers go on. The runtime must not be used afterwards.
    pub fn shutdown(&self) {
        self.stop.cancel();
    }
}

fn folders(dir: &Path) -> io::Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}
