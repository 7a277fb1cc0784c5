//! StopPodSandbox and RemovePodSandbox; both may be repeated, also after they failed half way.

use std::{fs, io, path::Path, sync::Arc};

use cri::v1::ContainerEventType;
use rustix::mount::{UnmountFlags, unmount};

use crate::{
    error::RuntimeError,
    link,
    protocol::Request,
    record::SandboxPhase,
    sandbox_run::{network_pod, pause_group},
    state::{Runtime, Sandbox},
};

impl Runtime {
    /// Ends everything in the sandbox and gives back its network. An unknown sandbox is no error.
    pub(crate) async fn stop_sandbox(self: &Arc<Self>, id: &str) -> Result<(), RuntimeError> {
        let Ok(sandbox) = self.sandbox(id) else { return Ok(()) };
        sandbox.ending.cancel();
        let _operation = sandbox.operation.lock().await;
        self.stop_locked(&sandbox).await
    }

    async fn stop_locked(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), RuntimeError> {
        let id = sandbox.id();
        for container in self.containers_of(&id) {
            self.stop_container(&container.record.id, 0).await?;
        }
        let was_ready = sandbox.ready();
        let pod = network_pod(&sandbox.record.read());
        if let Some(pod) = pod {
            self.config.network.del(&pod).await?;
        }
        // Before the shim ends, so that its end is not taken for an accident.
        sandbox.record.write().phase = SandboxPhase::NotReady;
        self.dismantle(sandbox).await;
        if was_ready {
            self.save_sandbox(sandbox)?;
            self.publish(&id, &id, ContainerEventType::ContainerStoppedEvent);
        }
        Ok(())
    }

    /// Removes the sandbox and its containers. An unknown sandbox is no error.
    pub(crate) async fn remove_sandbox(self: &Arc<Self>, id: &str) -> Result<(), RuntimeError> {
        let Ok(sandbox) = self.sandbox(id) else { return Ok(()) };
        sandbox.ending.cancel();
        let operation = sandbox.operation.lock().await;
        let id = sandbox.id();
        for container in self.containers_of(&id) {
            self.remove_container(&container.record.id).await?;
        }
        self.stop_locked(&sandbox).await?;
        self.forget_sandbox(&sandbox).await;
        drop(operation);
        self.sandboxes.write().remove(&id);
        self.publish(&id, &id, ContainerEventType::ContainerDeletedEvent);
        Ok(())
    }

    /// Ends the shim and lets go of the namespaces. Does what it can; what is not there is no error.
    pub(crate) async fn dismantle(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        let record = sandbox.record.read().clone();
        let dir = self.config.shim_dir(&record.id);
        if dir.exists()
            && let Err(error) = shut_down(&dir).await
        {
            tracing::debug!(sandbox = record.id, %error, "the shim does not answer any more");
        }
        let runtime = self.clone();
        let work = move || {
            let group = pause_group(&record);
            if let Err(error) = runtime.cgroups.remove(&group) {
                tracing::warn!(group, %error, "removing a control group");
            }
            if let Some(netns) = &record.netns {
                unpin(netns);
            }
            if let Err(error) = tree::remove(&dir) {
                tracing::warn!(dir = %dir.display(), %error, "removing a sandbox's folder");
            }
        };
        let _ = tokio::task::spawn_blocking(work).await;
    }

    /// Removes what is kept after a sandbox was stopped.
    pub(crate) async fn forget_sandbox(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        let record = sandbox.record.read().clone();
        self.levels.free(&record.id);
        let runtime = self.clone();
        let work = move || {
            for group in record.made_groups.iter().rev() {
                runtime.cgroups.remove_if_empty(group);
            }
            let dir = runtime.config.sandbox_dir(&record.id);
            if let Err(error) = tree::remove(&dir) {
                tracing::warn!(dir = %dir.display(), %error, "removing a sandbox's record");
            }
        };
        let _ = tokio::task::spawn_blocking(work).await;
    }
}

/// Tells a shim to kill everything, and waits until it is gone.
pub(crate) async fn shut_down(dir: &Path) -> Result<(), RuntimeError> {
    let mut link = link::Link::connect(dir).await.map_err(RuntimeError::ShimGone)?;
    link.send(&Request::Shutdown, &[]).await.map_err(RuntimeError::ShimGone)?;
    link.answer().await?;
    // It closes when the last child is reaped.
    while let Ok(Some(_)) = link.receive().await {}
    Ok(())
}

/// Unmounts and removes a pinned namespace.
pub(crate) fn unpin(path: &Path) {
    // Repeatedly: a crash may have left it mounted twice.
    while unmount(path, UnmountFlags::DETACH).is_ok() {}
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "removing a network namespace's name");
    }
}
