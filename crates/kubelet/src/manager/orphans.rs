//! What pods left that went while no kubelet looked: sandboxes, devices, volumes, logs.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use client::Cache;
use client::queue::Backoff;
use cri::v1;
use k8s_openapi::api::core::v1::Pod;
use tokio_util::sync::CancellationToken;

use super::{Manager, RECONNECT, Shared};
use crate::observed::POD_UID;
use crate::server::Pods as _;

/// Longest pause between two tries to remove what is left.
const SELDOM: Duration = Duration::from_secs(60);

impl Manager {
    /// Removes sandboxes, volumes and logs of pods that are no longer bound to this node. What takes long, or has to be tried
    /// again, holds up nobody.
    pub(super) async fn clean_orphans(
        &self,
        pods: &Cache<Pod>,
        files: &[Arc<Pod>],
        stop: &CancellationToken,
    ) {
        let here = self.pods();
        let known: HashSet<String> =
            pods.list().iter().chain(files).chain(&here).filter_map(|p| p.metadata.uid.clone()).collect();
        self.shared.managers.keep(|uid| known.contains(uid));
        let listed = self.shared.cri.clone().list_pod_sandbox(v1::ListPodSandboxRequest::default()).await;
        let listed = match listed {
            Ok(answer) => answer.into_inner().items,
            Err(error) => {
                tracing::warn!(error = error.message(), "sandboxes cannot be listed");
                return;
            }
        };
        let mut left: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for sandbox in listed {
            if let Some(uid) = sandbox.labels.get(POD_UID) {
                left.entry(uid.clone()).or_default().push(sandbox.id);
            }
        }
        for uid in folders(&self.shared.root.join("pods")) {
            left.entry(uid).or_default();
        }
        for (uid, sandboxes) in left.into_iter().filter(|(uid, _)| !known.contains(uid)) {
            tracing::info!(pod = uid, "removing what a deleted pod left");
            if !sandboxes.is_empty() {
                crate::metrics::ORPHANS.add(&[]);
            }
            tokio::spawn(remove(self.shared.clone(), uid, sandboxes, stop.clone()));
        }
        for uid in self.shared.claims.pods().into_iter().filter(|uid| !known.contains(uid)) {
            tokio::spawn(give_back(self.shared.clone(), uid, stop.clone()));
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
}

fn folders(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

/// Removes the sandboxes and the folder of a pod that is gone. Its volumes may have to wait for their drivers.
async fn remove(shared: Arc<Shared>, uid: String, sandboxes: Vec<String>, stop: CancellationToken) {
    let mut backoff = Backoff::new(RECONNECT, SELDOM);
    let dir = shared.root.join("pods").join(&uid);
    loop {
        let removed = async {
            // before that its containers use the volumes
            remove_sandboxes(&shared, &sandboxes).await?;
            shared.storage.release(&dir).await?;
            crate::volumes::remove(dir.clone()).await.map_err(|error| error.to_string())
        };
        let Err(why) = removed.await else { break };
        tracing::warn!(why, pod = uid, "what a deleted pod left is not removed");
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(backoff.next()) => {}
        }
    }
    shared.users.release(&uid);
    shared.devices.release(&uid);
}

async fn remove_sandboxes(shared: &Shared, ids: &[String]) -> Result<(), String> {
    let mut runtime = shared.cri.clone();
    let said = |status: tonic::Status| status.message().to_owned();
    for id in ids.iter().cloned() {
        let stop = v1::StopPodSandboxRequest { pod_sandbox_id: id.clone() };
        runtime.stop_pod_sandbox(stop).await.map_err(said)?;
        let remove = v1::RemovePodSandboxRequest { pod_sandbox_id: id };
        runtime.remove_pod_sandbox(remove).await.map_err(said)?;
    }
    Ok(())
}

/// Gives back the devices of a pod that is gone. Their drivers may have to come first.
async fn give_back(shared: Arc<Shared>, uid: String, stop: CancellationToken) {
    let mut backoff = Backoff::new(RECONNECT, SELDOM);
    let mut drivers = shared.claims.drivers.present();
    loop {
        drivers.mark_unchanged();
        let done = tokio::select! {
            () = stop.cancelled() => return,
            done = shared.claims.unprepare(&uid) => done,
        };
        let Err(why) = done else { return };
        tracing::warn!(why, pod = uid, "devices of a deleted pod are not given back");
        tokio::select! {
            () = stop.cancelled() => return,
            Ok(()) = drivers.changed() => {}
            () = tokio::time::sleep(backoff.next()) => {}
        }
    }
}
