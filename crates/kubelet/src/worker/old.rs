//! What earlier runs of a container left that is of no use any more.

use std::path::Path;

use cri::v1;
use k8s_openapi::api::core::v1::Pod;

use super::Worker;
use crate::log_rotation;
use crate::observed::Run;
use crate::plan;

/// Logs of so many runs of a container are kept, the running one included.
const LOGS: u32 = 4;

impl Worker {
    /// Makes place for the next run of a container; the error is why there is none.
    pub(super) async fn clear(&self, pod: &Pod, name: &str) -> Result<(), String> {
        let mut runtime = self.shared.cri.clone();
        for run in self.observed.runs(name) {
            let container_id = run.id.clone();
            match run.run {
                // it may run for all the runtime knows, and two of one name must not
                Run::Unknown => {
                    let request = v1::StopContainerRequest { container_id, timeout: plan::grace(pod) };
                    let stopped = runtime.stop_container(request).await;
                    stopped.map_err(|status| status.message().to_owned())?;
                }
                // made by a kubelet that was stopped before it could start it
                Run::Created => {
                    let request = v1::RemoveContainerRequest { container_id };
                    if let Err(error) = runtime.remove_container(request).await {
                        tracing::warn!(container = run.id, error = error.message(), "not removed");
                    }
                }
                Run::Running | Run::Exited => {}
            }
        }
        Ok(())
    }

    /// All but the newest ended run of a container are removed: the last one's exit code stays readable, and the
    /// logs of a few more. So are broken sandboxes that no run is left in.
    pub(super) async fn remove_old(&self, name: &str, log_dir: &Path, attempt: u32) {
        let mut runtime = self.shared.cri.clone();
        for old in self.observed.runs(name).filter(|c| c.run == Run::Exited).skip(1) {
            let request = v1::RemoveContainerRequest { container_id: old.id.clone() };
            if let Err(error) = runtime.remove_container(request).await {
                tracing::debug!(container = old.id, error = error.message(), "not removed yet");
            }
        }
        let empty = |id: &str| !self.observed.containers.iter().any(|container| container.sandbox == id);
        for broken in self.observed.sandboxes.iter().skip(1).filter(|s| !s.ready && empty(&s.id)) {
            let request = v1::RemovePodSandboxRequest { pod_sandbox_id: broken.id.clone() };
            if let Err(error) = runtime.remove_pod_sandbox(request).await {
                tracing::debug!(sandbox = broken.id, error = error.message(), "not removed yet");
            }
        }
        if let Some(old) = attempt.checked_sub(LOGS) {
            log_rotation::remove(&log_dir.join(format!("{old}.log")));
        }
    }
}
