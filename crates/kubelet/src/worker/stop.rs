//! Ends containers, sandboxes and the pod itself.

use std::sync::Arc;
use std::time::Duration;

use client::DeleteOptions;
use client::events::EventType;
use cri::v1;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{RETRY, Step, Worker, hooks};
use crate::{cri_config, plan, volumes};

/// A container has this long to end, whatever its stop hook and others before it left of the grace period, and where the pod
/// was deleted by force (Kubernetes documentation, "Pod Lifecycle", "Forced Pod termination").
const LEAST: Duration = Duration::from_secs(2);
/// A pod may ask for more seconds than a clock can hold.
const LONGEST_GRACE: Duration = Duration::from_secs(366 * 24 * 3600);
/// A container that could not be stopped is tried again after this.
const AGAIN: Duration = Duration::from_secs(1);
/// The name under which failures to release volumes are counted; no container can be called so.
const RELEASE: &str = "/release";

/// A grace period.
fn seconds(grace: i64) -> Duration {
    Duration::from_secs(u64::try_from(grace).unwrap_or(0)).min(LONGEST_GRACE)
}

impl Worker {
    /// Begins a container's stop hook ahead of its end.
    pub(super) fn begin_stop(&mut self, pod: &Arc<Pod>, (id, name): (&str, &str), grace: i64) {
        if grace > 0 {
            // who ends it waits for the hook
            let _begun = self.stop_hook(pod, (id, name), seconds(grace));
        }
    }

    /// Begins a container's stop hook, where it has one, once. The channel closes when the hook is over.
    fn stop_hook(
        &mut self,
        pod: &Arc<Pod>,
        (id, name): (&str, &str),
        limit: Duration,
    ) -> Option<watch::Receiver<()>> {
        if let Some(begun) = self.stop_hooks.get(id) {
            return Some(begun.clone());
        }
        let (spec, list) = plan::find(pod, name)?;
        let hook = spec.lifecycle.as_ref()?.pre_stop.clone()?;
        let (over, begun) = watch::channel(());
        self.stop_hooks.insert(id.to_owned(), begun.clone());
        let (runtime, recorder) = (self.shared.cri.clone(), self.shared.recorder.clone());
        let mut about = client::events::reference(&**pod);
        about.field_path = Some(format!("spec.{list}{{{name}}}"));
        let (id, ip, whole) = (id.to_owned(), self.pod_ip(), super::describe(pod));
        tokio::spawn(async move {
            let run = hooks::run(runtime, &id, (&whole, &spec), &ip, &hook, limit);
            let outcome = tokio::time::timeout(limit, run).await;
            match outcome {
                Ok(Err(why)) => {
                    tracing::warn!(why, "a stop hook failed");
                    // why is not for everybody to read
                    recorder.event(&about, EventType::Warning, "FailedPreStopHook", "PreStopHook failed");
                }
                Ok(Ok(Some(text))) => recorder.event(&about, EventType::Warning, hooks::FALLBACK, text),
                Ok(Ok(None)) | Err(_) => {}
            }
            drop(over);
        });
        Some(begun)
    }

    /// Ends a container in a task of its own, so that a shorter grace period can still reach it.
    /// Its stop hook runs before where `hooked`.
    pub(super) fn kill(
        &mut self,
        pod: &Arc<Pod>,
        (id, name): (&str, &str),
        why: &str,
        grace: i64,
        hooked: bool,
    ) {
        let limit = seconds(grace);
        let deadline = Instant::now() + limit;
        if self.killing.get(id).is_some_and(|known| deadline + Duration::from_secs(1) >= *known) {
            return;
        }
        // asked again only for a shorter time
        let first = self.killing.insert(id.to_owned(), deadline).is_none();
        if let Some((spec, list)) = plan::find(pod, name).filter(|_| first) {
            self.event(pod, Some((&spec, list)), EventType::Normal, "Killing", why);
        }
        self.end_probes(pod, id);
        let hook = if hooked && grace > 0 { self.stop_hook(pod, (id, name), limit) } else { None };
        let (mut runtime, id) = (self.shared.cri.clone(), id.to_owned());
        let ended = self.kills.0.clone();
        tokio::spawn(async move {
            let begin = Instant::now();
            if let Some(mut hook) = hook {
                // closed when it is over, and nothing is ever sent
                let _ = tokio::time::timeout(limit, hook.changed()).await;
            }
            // only whole seconds count
            let waited = Duration::from_secs(begin.elapsed().as_secs());
            let left = limit.saturating_sub(waited).max(LEAST);
            let timeout = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
            let request = v1::StopContainerRequest { container_id: id.clone(), timeout };
            if let Err(error) = runtime.stop_container(request).await {
                tracing::warn!(container = id, error = error.message(), "container not stopped");
                tokio::time::sleep(AGAIN).await;
            }
            // the worker may be gone with the kubelet
            let _ = ended.send((id, deadline)).await;
        });
    }

    pub(super) async fn stop_sandbox(&mut self, pod: &Pod, id: &str) -> Step {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        match self.shared.cri.clone().stop_pod_sandbox(request).await {
            Ok(_) => {
                self.succeeded(plan::SANDBOX);
                Step::Changed
            }
            Err(error) => {
                let text = format!("error killing pod: {}", error.message());
                self.event(pod, None, EventType::Warning, "FailedKillPod", text);
                self.failed(plan::SANDBOX);
                Step::Waits
            }
        }
    }

    /// Volumes of claims are free for others once the pod is over, whether it is deleted or not; the pod's own are empty.
    ///
    /// Rule: Kubernetes documentation, "Volumes" (`emptyDir`: as long as the pod runs), "Node-pressure Eviction".
    pub(super) async fn release_when_over(&mut self, pod: &Pod) {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let ends = self.killed.is_some() || matches!(phase, Some("Succeeded" | "Failed"));
        let over = ends && self.observed.running().next().is_none();
        if over && self.observed.ready_sandbox().is_none() {
            self.shared.users.release(&self.uid);
            self.shared.devices.release(&self.uid);
            self.shared.managers.release(&self.uid);
        }
        if !over || self.released {
            return;
        }
        match self.release_volumes().await {
            Ok(()) => {
                self.released = true;
                self.snapshot.send_modify(|seen| seen.released = true);
            }
            Err(why) => {
                tracing::warn!(pod = self.uid, why, "volumes of a pod that is over are not released");
                let fresh = || client::queue::Backoff::new(RETRY.0, RETRY.1);
                let delay = self.failures.entry(RELEASE.to_owned()).or_insert_with(fresh).next();
                self.content_at = Some(Instant::now() + delay);
            }
        }
    }

    async fn release_volumes(&self) -> Result<(), String> {
        let dir = self.pod_dir();
        self.shared.storage.release(&dir).await?;
        // what drivers showed is gone: the rest is the pod's own
        let removed = tokio::task::spawn_blocking(move || {
            ["volume-subpaths", "volumes"].iter().try_for_each(|part| volumes::unmount_all(&dir.join(part)))
        });
        removed.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }

    /// The removal of all traces, then of the object. Whether all is done.
    pub(super) async fn finish(&mut self, pod: &Pod) -> bool {
        let ns = pod.metadata.namespace.as_deref().unwrap_or_default();
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let mut runtime = self.shared.cri.clone();
        for sandbox in &self.observed.sandboxes {
            let request = v1::RemovePodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
            if let Err(error) = runtime.remove_pod_sandbox(request).await {
                tracing::warn!(pod = name, error = error.message(), "sandbox not removed");
                return false;
            }
        }
        if let Err(why) = self.shared.storage.release(&self.pod_dir()).await {
            self.event(pod, None, EventType::Warning, "FailedUnMount", why);
            return false;
        }
        if let Err(error) = volumes::remove(self.pod_dir()).await {
            self.event(pod, None, EventType::Warning, "FailedUnMount", error.to_string());
            return false;
        }
        let logs = cri_config::log_dir(&self.shared.settings, pod);
        if let Err(error) = std::fs::remove_dir_all(&logs)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %logs.display(), "logs not removed");
        }
        self.shared.users.release(&self.uid);
        self.shared.devices.release(&self.uid);
        self.shared.managers.release(&self.uid);
        self.shared.cgroups.remove_pod(pod);
        crate::probes::counts::forget(&self.uid);
        self.shared.allocations.remove(&self.uid);
        // how the containers ended is told before the object goes
        if !self.status.flushed(&self.stop).await {
            return false;
        }
        if crate::static_pods::is_static(pod) {
            // its image in the API goes by itself
            return true;
        }
        let options = DeleteOptions {
            uid: Some(self.uid.clone()),
            grace_period_seconds: Some(0),
            ..DeleteOptions::default()
        };
        match self.shared.client.delete::<Pod>(ns, name, &options).await {
            Ok(()) => true,
            Err(error) if error.is_not_found() => true,
            // another has its name by now, or it changed at this moment
            Err(error) if error.is_conflict() => match self.shared.client.get::<Pod>(ns, name).await {
                Ok(found) => found.metadata.uid.as_deref() != Some(self.uid.as_str()),
                Err(error) => error.is_not_found(),
            },
            Err(error) => {
                tracing::warn!(pod = name, error = &error as &dyn std::error::Error, "pod not deleted");
                false
            }
        }
    }
}
