//! What a work queue did, in the measures of the reference's `workqueue_…` metrics.
use std::fmt::Write as _;
use std::time::Duration;

/// Upper bounds of the buckets, in seconds: ten nanoseconds, then ten times as much each.
const BOUNDS: [f64; 12] = [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0];

/// Times, counted by their size.
#[derive(Debug, Clone, Copy, Default)]
pub struct Times {
    /// Of each bucket alone; the last is what is above all bounds.
    buckets: [u64; 13],
    sum: Duration,
}

impl Times {
    pub(crate) fn note(&mut self, time: Duration) {
        let at = BOUNDS.iter().position(|bound| time.as_secs_f64() <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[at] += 1;
        self.sum += time;
    }

    fn write(&self, out: &mut String, metric: &str, labels: &str) {
        let mut count = 0;
        for (bound, in_bucket) in BOUNDS.iter().zip(self.buckets) {
            count += in_bucket;
            let _ = writeln!(out, "{metric}_bucket{{{labels},le=\"{bound}\"}} {count}");
        }
        count += self.buckets[BOUNDS.len()];
        let _ = writeln!(out, "{metric}_bucket{{{labels},le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{metric}_sum{{{labels}}} {}", self.sum.as_secs_f64());
        let _ = writeln!(out, "{metric}_count{{{labels}}} {count}");
    }
}

/// A queue at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct QueueStats {
    /// Keys that wait to be worked on now.
    pub depth: usize,
    /// Keys added since the start; adding a key that waits already does not count.
    pub adds: u64,
    /// Keys added again with a back-off.
    pub retries: u64,
    /// How long keys waited.
    pub waited: Times,
    /// How long the work on a key took.
    pub worked: Times,
    /// How long the keys that are worked on now have been, together.
    pub unfinished: Duration,
    /// ... and the one that has been longest.
    pub longest: Duration,
}

/// Prometheus' text form of queues by their names.
pub fn text(queues: &[(&str, QueueStats)]) -> String {
    type Gauge = fn(&QueueStats) -> f64;
    let gauges: [(&str, &str, &str, Gauge); 5] = [
        ("workqueue_adds_total", "counter", "Total number of adds handled by workqueue", |q| q.adds as f64),
        ("workqueue_depth", "gauge", "Current depth of workqueue", |q| q.depth as f64),
        (
            "workqueue_longest_running_processor_seconds",
            "gauge",
            "How many seconds has the longest running processor for workqueue been running.",
            |q| q.longest.as_secs_f64(),
        ),
        ("workqueue_retries_total", "counter", "Total number of retries handled by workqueue", |q| {
            q.retries as f64
        }),
        (
            "workqueue_unfinished_work_seconds",
            "gauge",
            "How many seconds of work has done that is in progress and hasn't been observed by work_duration.",
            |q| q.unfinished.as_secs_f64(),
        ),
    ];
    let mut out = String::new();
    for (metric, kind, help, value) in gauges {
        let _ = writeln!(out, "# HELP {metric} {help}\n# TYPE {metric} {kind}");
        for (name, queue) in queues {
            let _ = writeln!(out, "{metric}{{name=\"{name}\"}} {}", value(queue));
        }
    }
    type Histogram = fn(&QueueStats) -> &Times;
    let histograms: [(&str, &str, Histogram); 2] = [
        (
            "workqueue_queue_duration_seconds",
            "How long in seconds an item stays in workqueue before being requested.",
            |q| &q.waited,
        ),
        (
            "workqueue_work_duration_seconds",
            "How long in seconds processing an item from workqueue takes.",
            |q| &q.worked,
        ),
    ];
    for (metric, help, times) in histograms {
        let _ = writeln!(out, "# HELP {metric} {help}\n# TYPE {metric} histogram");
        for (name, queue) in queues {
            times(queue).write(&mut out, metric, &format!("name=\"{name}\""));
        }
    }
    out
}
