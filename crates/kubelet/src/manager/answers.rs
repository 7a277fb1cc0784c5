//! What the kubelet's server asks of the pods.

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;

use super::Manager;
use crate::logs;
use crate::observed::Run;
use crate::server::{Counts, Pods, RunningContainer};
use crate::worker::Snapshot;

impl Manager {
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
    fn samples(&self) -> Vec<crate::managers::Sample> {
        let mut samples = self.shared.managers.measure();
        samples.extend(self.shared.claims.samples());
        samples
    }

    fn storage(&self, pod: &Pod) -> crate::usage::Storage {
        crate::usage::storage(&self.shared, pod)
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for entry in self.pods.lock().values() {
            let Snapshot { observed, .. } = &*entry.snapshot.borrow();
            if observed.ready_sandbox().is_some() {
                counts.pods += 1;
                counts.ready.extend(entry.pod.borrow().metadata.uid.clone());
            }
            for container in &observed.containers {
                *counts.containers.entry(container.run.name()).or_default() += 1;
            }
        }
        counts
    }

    fn volumes(&self) -> BoxFuture<'_, crate::storage::usage::Measured> {
        Box::pin(async {
            match self.shared.measure_again {
                Some(age) => self.shared.storage.usage(age).await,
                None => Default::default(),
            }
        })
    }

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
        self.find(ns, name, |pod, snapshot| logs::of_run(settings, pod, snapshot, container, previous))
            .unwrap_or_else(|| Err(format!("pod {name:?} not found on this node")))
    }
}
