//! How long a pod takes to start, for the kubelet's metrics.
//!
//! Rule: SIG Scalability, "Pod startup latency SLI/SLO details": from the pod's creation until all of its containers have
//! started, less the pulls of images and the run of init containers. The kubelet's own report is the end of it here.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::time::Instant;

use crate::metrics;
use crate::static_pods::is_static;

/// Whether a pod with a network of its own started since the process did: the first waits for the network, too.
static FIRST: AtomicBool = AtomicBool::new(true);

/// A pod that had not begun when it was seen first.
#[derive(Debug)]
pub(super) struct Starting {
    seen: Instant,
    runs: bool,
    /// The first pull's begin and the last one's end.
    pulls: Option<(Instant, Instant)>,
}

impl Starting {
    /// Seen first now.
    pub(super) fn new() -> Self {
        Self { seen: Instant::now(), runs: false, pulls: None }
    }

    /// An image was pulled since `begin`.
    pub(super) fn pulled(&mut self, begin: Instant) {
        let first = self.pulls.map_or(begin, |(first, _)| first);
        self.pulls = Some((first, Instant::now()));
    }

    /// What there is to tell of the pod's start, with its new status. Whether that is all.
    pub(super) fn look(&mut self, pod: &Pod, status: &PodStatus, now: Timestamp) -> bool {
        match status.phase.as_deref() {
            Some("Running") => {}
            Some("Succeeded" | "Failed") => return true,
            _ => return false,
        }
        if !std::mem::replace(&mut self.runs, true) {
            metrics::POD_START.time(&[], self.seen.elapsed());
        }
        if !all_started(status) {
            return false;
        }
        let created = pod.metadata.creation_timestamp.as_ref().filter(|_| !is_static(pod));
        if let Some(created) = created {
            let total = length(now.duration_since(created.0));
            let pulls = self.pulls.map_or(Duration::ZERO, |(first, last)| last - first);
            let own = total.saturating_sub(pulls).saturating_sub(in_init_containers(status));
            let on_host = pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
            let first = if !on_host && FIRST.swap(false, Relaxed) { "true" } else { "false" };
            metrics::POD_START_OWN.time(&[first], own);
            metrics::POD_START_TOTAL.time(&[first], total);
        }
        true
    }
}

fn all_started(status: &PodStatus) -> bool {
    let mut containers = status.container_statuses.iter().flatten().peekable();
    containers.peek().is_some()
        && containers.all(|one| one.state.as_ref().is_some_and(|state| state.running.is_some()))
}

/// How long init containers ran that have ended; sidecars have not.
fn in_init_containers(status: &PodStatus) -> Duration {
    let ended = status.init_container_statuses.iter().flatten().filter_map(|one| one.state.as_ref());
    let ran = ended.filter_map(|state| {
        let end = state.terminated.as_ref()?;
        Some(length(end.finished_at.as_ref()?.0.duration_since(end.started_at.as_ref()?.0)))
    });
    ran.sum()
}

/// Clocks may differ: a negative time is none.
fn length(time: SignedDuration) -> Duration {
    Duration::try_from(time).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use client::metrics::{Families, Metric};
    use serde_json::json;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pulls_and_init_containers_are_not_the_nodes_own_time() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"containers": [{"name": "a"}], "hostNetwork": true}
        }))
        .unwrap();
        let status = |phase: &str, state: serde_json::Value| -> PodStatus {
            let ended = json!({"startedAt": "2026-01-01T00:00:10Z", "finishedAt": "2026-01-01T00:00:30Z", "exitCode": 0});
            let container = |name: &str, state: serde_json::Value| json!({"name": name, "state": state, "image": "", "imageID": "", "ready": false, "restartCount": 0});
            serde_json::from_value(json!({"phase": phase,
                "initContainerStatuses": [container("i", json!({"terminated": ended}))],
                "containerStatuses": [container("a", state)]}))
            .unwrap()
        };
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        let mut starting = Starting::new();
        let begin = Instant::now();
        tokio::time::advance(Duration::from_secs(25)).await;
        starting.pulled(begin);
        assert!(!starting.look(&pod, &status("Pending", json!({"waiting": {}})), now));
        assert!(!starting.look(&pod, &status("Running", json!({"waiting": {}})), now));
        assert!(starting.look(&pod, &status("Running", json!({"running": {}})), now));
        let mut families = Families::default();
        families.collect([&metrics::POD_START_OWN as &dyn Metric, &metrics::POD_START_TOTAL]);
        let text = families.text();
        for line in [
            "kubelet_pod_start_sli_duration_seconds_sum{first_with_network=\"false\"} 15\n",
            "kubelet_pod_start_total_duration_seconds_sum{first_with_network=\"false\"} 60\n",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert!(Starting::new().look(&pod, &status("Failed", json!({})), now), "it never ran");
    }
}
