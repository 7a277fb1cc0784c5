//! Probes of the pod's containers: begun with them, ended with them; what they find.

use std::collections::HashSet;
use std::time::Duration;

use client::events::EventType;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as Spec, ContainerStatus, Pod, Probe};
use tokio_util::sync::CancellationToken;

use super::Worker;
use crate::plan::{self, Unhealthy};
use crate::probes::{self, Found, ProbeEvent};

/// The probes of one container.
#[derive(Default)]
pub(super) struct Probes {
    /// Ends the one of its readiness.
    readiness: CancellationToken,
    /// Ends the others.
    others: CancellationToken,
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.readiness.cancel();
        self.others.cancel();
    }
}

impl Worker {
    /// Starts probing what runs, and forgets what does not.
    pub(super) fn follow_probes(&mut self, pod: &Pod) {
        let observed = self.observed.clone();
        let running: HashSet<&str> = observed.running().map(|c| c.id.as_str()).collect();
        self.prober.retain(|id, _| running.contains(id.as_str()));
        self.stop_hooks.retain(|id, _| running.contains(id.as_str()));
        self.health.unhealthy.retain(|id, _| running.contains(id.as_str()));
        self.ready.retain(|id, _| running.contains(id.as_str()));
        self.health.started.retain(|id, _| running.contains(id.as_str()));
        self.killing.retain(|id, _| running.contains(id.as_str()));
        for container in observed.running() {
            let id = &container.id;
            if self.prober.contains_key(id) || self.killing.contains_key(id) {
                continue;
            }
            let Some((spec, _)) = plan::find(pod, &container.name) else { continue };
            self.prober.insert(id.clone(), Probes::default());
            // a container that ran before this kubelet keeps what was known of it
            let known = reported(pod, &self.shared.runtime_name, id);
            if spec.readiness_probe.is_some() {
                self.ready.insert(id.clone(), known.is_some_and(|c| c.ready));
            }
            if pod.metadata.deletion_timestamp.is_some() {
                self.health.started.insert(id.clone(), known.is_none_or(|c| c.started != Some(false)));
                continue;
            }
            match &spec.startup_probe {
                Some(probe) if known.and_then(|c| c.started) != Some(true) => {
                    self.probe(probes::Kind::Startup, probe, &spec, id);
                }
                _ => {
                    self.health.started.insert(id.clone(), true);
                    self.probe_readiness_and_liveness(&spec, id);
                }
            }
        }
    }

    fn probe_readiness_and_liveness(&self, spec: &Spec, id: &str) {
        if let Some(probe) = &spec.readiness_probe {
            self.probe(probes::Kind::Readiness, probe, spec, id);
        }
        if let Some(probe) = &spec.liveness_probe {
            self.probe(probes::Kind::Liveness, probe, spec, id);
        }
    }

    /// The pod's address, the node's where it has none of its own.
    pub(super) fn pod_ip(&self) -> String {
        let own = self.observed.sandboxes.first().and_then(|s| s.ips.first().cloned());
        own.or_else(|| self.shared.host_ips.first().cloned()).unwrap_or_default()
    }

    fn probe(&self, kind: probes::Kind, probe: &Probe, spec: &Spec, id: &str) {
        let Some(probes) = self.prober.get(id) else { return };
        let stop = if kind == probes::Kind::Readiness { &probes.readiness } else { &probes.others };
        let of = self.pod.borrow().metadata.clone();
        let pod = [of.uid, of.namespace, of.name].map(Option::unwrap_or_default);
        let started = self.observed.running().find(|c| c.id == id).map(|c| c.started);
        let age = started.map(|at| Timestamp::now().duration_since(at));
        let target = probes::Target {
            pod_ip: self.pod_ip(),
            container_id: id.to_owned(),
            container: spec.clone(),
            pod,
            adopted: started.is_some_and(|at| at < self.shared.began),
            age: age.and_then(|age| Duration::try_from(age).ok()).unwrap_or_default(),
        };
        let (runtime, results) = (self.shared.cri.clone(), self.results.0.clone());
        tokio::spawn(probes::worker(kind, probe.clone(), target, runtime, results, stop.child_token()));
    }

    /// A container is being stopped. That of a deleted pod stays as ready as it says: until it ends, clients may have no
    /// other one.
    pub(super) fn end_probes(&mut self, pod: &Pod, id: &str) {
        if pod.metadata.deletion_timestamp.is_some() {
            if let Some(probes) = self.prober.get(id) {
                probes.others.cancel();
            }
        } else {
            self.prober.remove(id);
            self.ready.insert(id.to_owned(), false);
        }
    }

    /// Takes in what a probe found.
    pub(super) fn probed(&mut self, pod: &Pod, result: ProbeEvent) {
        let Some((spec, list)) = plan::find(pod, &result.container) else { return };
        let id = result.container_id;
        // a result that was on its way when the container was stopped
        if !self.prober.contains_key(&id) {
            return;
        }
        let (name, probe) = match result.kind {
            probes::Kind::Liveness => ("Liveness", spec.liveness_probe.as_ref()),
            probes::Kind::Readiness => ("Readiness", spec.readiness_probe.as_ref()),
            probes::Kind::Startup => ("Startup", spec.startup_probe.as_ref()),
        };
        let about = Some((&spec, list));
        match result.found {
            Found::Success => {}
            Found::Warning => {
                let text = format!("{name} probe warning: {}", result.message);
                self.event(pod, about, EventType::Warning, "ProbeWarning", text);
            }
            Found::Failure => {
                let text = format!("{name} probe failed: {}", result.message);
                self.event(pod, about, EventType::Warning, "Unhealthy", text);
            }
            Found::Nothing => {
                let text = format!("{name} probe errored and resulted in unknown state: {}", result.message);
                self.event(pod, about, EventType::Warning, "Unhealthy", text);
                return;
            }
        }
        match (result.kind, result.healthy) {
            (probes::Kind::Readiness, ready) => drop(self.ready.insert(id, ready)),
            (probes::Kind::Startup, true) => {
                let before = self.health.started.insert(id.clone(), true);
                if before != Some(true) {
                    self.probe_readiness_and_liveness(&spec, &id);
                }
            }
            _ if result.dead => {
                let policy = pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always");
                // whatever code it ends with by then
                let again =
                    if plan::restarts_after(policy, &spec, plan::LOST) { ", will be restarted" } else { "" };
                let why = format!("Container {} failed {} probe{again}", spec.name, name.to_lowercase());
                let grace = probe.and_then(|p| p.termination_grace_period_seconds);
                self.health.unhealthy.insert(id, Unhealthy { why, grace });
            }
            _ => {}
        }
    }
}

/// What the API was last told of this very container.
fn reported<'a>(pod: &'a Pod, runtime: &str, id: &str) -> Option<&'a ContainerStatus> {
    let whole = format!("{runtime}://{id}");
    let status = pod.status.as_ref()?;
    let lists = [status.container_statuses.as_ref(), status.init_container_statuses.as_ref()];
    lists.into_iter().flatten().flatten().find(|c| c.container_id.as_deref() == Some(whole.as_str()))
}
