//! What a work queue did, in the measures of the reference's `workqueue_…` metrics.

use std::time::Duration;

use crate::metrics::{Distribution, Families, Kind};

/// Upper bounds of the buckets of times, in seconds: ten nanoseconds, then ten times as much each.
pub(crate) const TIMES: [f64; 12] =
    [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0];

/// A queue at one moment.
#[derive(Debug, Clone)]
pub struct QueueStats {
    /// Keys that wait to be worked on now.
    pub depth: usize,
    /// Keys added since the start; adding a key that waits already does not count.
    pub adds: u64,
    /// Keys added again with a back-off.
    pub retries: u64,
    /// How long keys waited.
    pub waited: Distribution,
    /// How long the work on a key took.
    pub worked: Distribution,
    /// How long the keys that are worked on now have been, together.
    pub unfinished: Duration,
    /// ... and the one that has been longest.
    pub longest: Duration,
}

impl QueueStats {
    /// Adds the metrics of the queue of that name.
    pub fn collect(&self, name: &str, families: &mut Families) {
        let labels = [("name", name)];
        let mut add = |kind: Kind, metric: &str, help: &str, value: f64| {
            families.value(kind, metric, help, &labels, value, None);
        };
        let help = "Total number of adds handled by workqueue";
        add(Kind::Counter, "workqueue_adds_total", help, self.adds as f64);
        add(Kind::Gauge, "workqueue_depth", "Current depth of workqueue", self.depth as f64);
        let help = "How many seconds has the longest running processor for workqueue been running.";
        let longest = self.longest.as_secs_f64();
        add(Kind::Gauge, "workqueue_longest_running_processor_seconds", help, longest);
        let help = "Total number of retries handled by workqueue";
        add(Kind::Counter, "workqueue_retries_total", help, self.retries as f64);
        let help = "How many seconds of work has done that is in progress and hasn't been observed by work_duration.";
        add(Kind::Gauge, "workqueue_unfinished_work_seconds", help, self.unfinished.as_secs_f64());
        let help = "How long in seconds an item stays in workqueue before being requested.";
        families.distribution("workqueue_queue_duration_seconds", help, &labels, &self.waited);
        let help = "How long in seconds processing an item from workqueue takes.";
        families.distribution("workqueue_work_duration_seconds", help, &labels, &self.worked);
    }
}
