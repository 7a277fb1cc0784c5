//! Devices by claims: made ready before a pod's sandbox, given back after its last process and before its end is told.

use std::collections::BTreeMap;

use client::events::EventType;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceStatus};
use tokio::time::Instant;

use super::{Worker, instant};
use crate::plan;

/// The name under which failures to give devices back are counted; no container can be called so.
const CLAIMS: &str = "/claims";

impl Worker {
    /// Whether the devices of the pod's claims are ready.
    pub(super) async fn prepare_claims(&mut self, pod: &Pod) -> bool {
        let prepared = self.unless_deleted(self.shared.claims.prepare(pod)).await;
        let Some(Err(why)) = prepared else {
            self.unprepared = false;
            return prepared.is_some();
        };
        let text = format!("Failed to prepare dynamic resources: {why}");
        self.event(pod, None, EventType::Warning, "FailedPrepareDynamicResources", text);
        self.failed(plan::SANDBOX);
        self.unprepared = true;
        false
    }

    /// Gives back the devices of a pod that is to end, once nothing of it runs. When that is tried again, where it failed.
    pub(super) async fn unprepare_claims(&mut self, pod: &Pod, ends: bool) -> Option<Instant> {
        let runs = self.observed.running().next().is_some() || self.observed.ready_sandbox().is_some();
        if !ends || runs || !self.shared.claims.holds(&self.uid) {
            return None;
        }
        if let Some(until) = self.backoffs.held(CLAIMS, Timestamp::now()) {
            return Some(instant(until));
        }
        let done = tokio::select! {
            done = self.shared.claims.unprepare(&self.uid) => done,
            () = self.stop.cancelled() => return None,
        };
        match done {
            Ok(()) => {
                self.succeeded(CLAIMS);
                None
            }
            Err(why) => {
                let text = format!("Failed to unprepare dynamic resources: {why}");
                self.event(pod, None, EventType::Warning, "FailedUnprepareDynamicResources", text);
                Some(Instant::now() + self.failed(CLAIMS))
            }
        }
    }

    /// How the devices are that containers have, by container.
    pub(super) fn devices(&self, pod: &Pod) -> BTreeMap<String, Vec<ResourceStatus>> {
        let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
        let of = |container: &Container| {
            let mut all = self.shared.devices.status(&self.uid, &container.name);
            all.extend(self.shared.claims.status(pod, container));
            (container.name.clone(), all)
        };
        containers.iter().map(of).filter(|(_, all)| !all.is_empty()).collect()
    }

    /// A driver came or went: what failed for want of it is tried again.
    pub(super) fn driver_came(&mut self) {
        self.backoffs.release(CLAIMS);
        if self.unprepared {
            self.backoffs.release(plan::SANDBOX);
        }
    }
}
