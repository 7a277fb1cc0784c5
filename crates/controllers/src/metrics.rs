//! Counters per controller: its queue by the reference's `workqueue_…` metrics, and how its passes
//! ended by those of controller-runtime.
use std::collections::BTreeMap;

use client::metrics::{Count, Counter, Families, Metric};
use client::queue_stats::QueueStats;
use parking_lot::Mutex;

/// The reference's names of queues, where they are not the controller's own.
const QUEUES: [(&str, &str); 20] = [
    ("clusterrole-aggregation-controller", "ClusterRoleAggregator"),
    ("cronjob-controller", "cronjob"),
    ("daemonset-controller", "daemonset"),
    ("deployment-controller", "deployment"),
    ("disruption-controller", "disruption"),
    ("endpoint-controller", "endpoint"),
    ("endpointslice-controller", "endpoint_slice"),
    ("endpointslicemirroring-controller", "endpoint_slice_mirroring"),
    ("generic-garbage-collector", "garbage_collector_attempt_to_delete"),
    ("horizontal-pod-autoscaler", "horizontalpodautoscaler"),
    ("job-controller", "job"),
    ("namespace-controller", "namespace"),
    ("node-controller", "node_lifecycle_controller"),
    ("replicaset-controller", "replicaset"),
    ("replication-controller", "replicationmanager"),
    ("root-ca-cert-publisher", "root_ca_cert_publisher"),
    ("service-account-controller", "serviceaccount"),
    ("statefulset-controller", "statefulset"),
    ("tokens-controller", "serviceaccount_tokens_secret"),
    ("ttl-after-finished-controller", "ttl_jobs_to_delete"),
];

/// How a pass ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Success,
    /// To be repeated at a time.
    RequeueAfter,
    /// To be repeated after the key's back-off.
    Requeue,
    Error,
}

const ENDS: [(Ended, &str); 4] = [
    (Ended::Error, "error"),
    (Ended::Requeue, "requeue"),
    (Ended::RequeueAfter, "requeue_after"),
    (Ended::Success, "success"),
];

/// How the passes of one controller ended.
#[derive(Debug, Clone)]
pub(crate) struct Counters {
    ends: [Count; 4],
    errors: Count,
}

impl Counters {
    pub(crate) fn note(&self, ended: Ended) {
        for (count, _) in self.ends.iter().zip(ENDS).filter(|(_, (end, _))| *end == ended) {
            count.add();
        }
        if ended == Ended::Error {
            self.errors.add();
        }
    }
}

type Stats = Box<dyn Fn() -> QueueStats + Send + Sync>;

/// The counters of all controllers of a process.
pub struct Metrics {
    passes: Counter,
    errors: Counter,
    queues: Mutex<BTreeMap<&'static str, Stats>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            passes: Counter::new(
                "controller_runtime_reconcile_total",
                "Total number of reconciliations per controller",
                &["controller", "result"],
            ),
            errors: Counter::new(
                "controller_runtime_reconcile_errors_total",
                "Total number of reconciliation errors per controller",
                &["controller"],
            ),
            queues: Mutex::default(),
        }
    }
}

impl Metrics {
    pub(crate) fn of(&self, controller: &'static str) -> Counters {
        let ends = ENDS.map(|(_, end)| self.passes.of(&[controller, end]));
        Counters { ends, errors: self.errors.of(&[controller]) }
    }

    /// The controller's queue is this one from now on.
    pub(crate) fn watch(
        &self,
        controller: &'static str,
        stats: impl Fn() -> QueueStats + Send + Sync + 'static,
    ) {
        let queue =
            QUEUES.iter().find(|(name, _)| *name == controller).map_or(controller, |(_, queue)| queue);
        self.queues.lock().insert(queue, Box::new(stats));
    }

    /// Adds all counters as they are now.
    pub fn collect(&self, families: &mut Families) {
        for (name, stats) in self.queues.lock().iter() {
            stats().collect(name, families);
        }
        families.collect([&self.passes as &dyn Metric, &self.errors]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn queues_and_passes_are_told_by_the_references_names() {
        let metrics = Metrics::default();
        let queue = client::queue::WorkQueue::<&str>::new();
        let shown = queue.clone();
        metrics.watch("job-controller", move || shown.stats());
        metrics.of("job-controller").note(Ended::Error);
        for key in ["a", "b", "a", "c"] {
            queue.add(key);
        }
        queue.next().await;
        tokio::time::advance(std::time::Duration::from_secs(2)).await;
        queue.next().await;
        queue.done(&"b");
        queue.add_rate_limited("b");
        let mut families = Families::default();
        metrics.collect(&mut families);
        let text = families.text();
        for line in [
            "workqueue_adds_total{name=\"job\"} 3",
            "workqueue_depth{name=\"job\"} 1",
            "workqueue_retries_total{name=\"job\"} 1",
            "workqueue_longest_running_processor_seconds{name=\"job\"} 2",
            "workqueue_queue_duration_seconds_bucket{name=\"job\",le=\"1\"} 1",
            "workqueue_queue_duration_seconds_bucket{name=\"job\",le=\"10\"} 2",
            "workqueue_work_duration_seconds_count{name=\"job\"} 1",
            "controller_runtime_reconcile_total{controller=\"job-controller\",result=\"error\"} 1",
            "controller_runtime_reconcile_total{controller=\"job-controller\",result=\"success\"} 0",
            "controller_runtime_reconcile_errors_total{controller=\"job-controller\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
    }
}
