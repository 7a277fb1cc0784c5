//! Counters in Prometheus' text form, by the names of the reference's `scheduler_…` metrics.
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How an attempt at a pod ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ended {
    Error,
    Scheduled,
    Unschedulable,
}

impl Ended {
    fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Scheduled => "scheduled",
            Self::Unschedulable => "unschedulable",
        }
    }
}

/// An attempt at a pod.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attempt {
    /// When the pod was to be scheduled first.
    pub(crate) since: Instant,
    /// When the attempt began.
    pub(crate) began: Instant,
    /// Which of the pod's it is; the first is 1.
    pub(crate) number: u32,
}

/// How many pods wait, by why they do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Pending {
    pub(crate) active: usize,
    pub(crate) backoff: usize,
    pub(crate) unschedulable: usize,
    pub(crate) gated: usize,
}

/// Values counted by their size: each bound is twice the one before.
#[derive(Debug)]
struct Histogram {
    first: f64,
    /// Of each bucket alone; the last is what is above all bounds.
    buckets: Vec<u64>,
    sum: f64,
}

impl Histogram {
    fn new(first: f64, bounds: usize) -> Self {
        Self { first, buckets: vec![0; bounds + 1], sum: 0.0 }
    }

    fn bounds(&self) -> impl Iterator<Item = f64> {
        let first = self.first;
        (0..self.buckets.len() - 1).map(move |i| first * (1_u64 << i) as f64)
    }

    fn note(&mut self, value: f64) {
        let at = self.bounds().position(|bound| value <= bound).unwrap_or(self.buckets.len() - 1);
        self.buckets[at] += 1;
        self.sum += value;
    }

    fn write(&self, out: &mut String, metric: &str, labels: &str) {
        let (comma, braces) = match labels {
            "" => ("", String::new()),
            labels => (",", format!("{{{labels}}}")),
        };
        let mut count = 0;
        for (bound, in_bucket) in self.bounds().zip(&self.buckets) {
            count += in_bucket;
            let _ = writeln!(out, "{metric}_bucket{{{labels}{comma}le=\"{bound}\"}} {count}");
        }
        count += self.buckets.last().copied().unwrap_or(0);
        let _ = writeln!(out, "{metric}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{metric}_sum{braces} {}", self.sum);
        let _ = writeln!(out, "{metric}_count{braces} {count}");
    }
}

#[derive(Debug)]
struct Counts {
    /// By profile and end.
    attempts: BTreeMap<(String, Ended), Histogram>,
    algorithm: Histogram,
    tries: Histogram,
    /// By number of attempts.
    whole: BTreeMap<u32, Histogram>,
    preemptions: u64,
    victims: Histogram,
    pending: Pending,
}

/// What the scheduler of a process did.
#[derive(Debug)]
pub struct Metrics(Mutex<Counts>);

impl Default for Metrics {
    fn default() -> Self {
        Self(Mutex::new(Counts {
            attempts: BTreeMap::new(),
            algorithm: Histogram::new(0.001, 15),
            tries: Histogram::new(1.0, 5),
            whole: BTreeMap::new(),
            preemptions: 0,
            victims: Histogram::new(1.0, 7),
            pending: Pending::default(),
        }))
    }
}

/// Attempts are told apart up to this number; the last stands for more as well.
const MOST_ATTEMPTS: u32 = 15;

impl Metrics {
    /// An attempt ended.
    pub(crate) fn attempt(&self, profile: &str, ended: Ended, attempt: Attempt) {
        let mut counts = self.0.lock();
        let key = (profile.to_owned(), ended);
        let took = attempt.began.elapsed().as_secs_f64();
        counts.attempts.entry(key).or_insert_with(|| Histogram::new(0.001, 15)).note(took);
        if ended == Ended::Scheduled {
            counts.tries.note(f64::from(attempt.number));
            let number = attempt.number.min(MOST_ATTEMPTS);
            let whole = counts.whole.entry(number).or_insert_with(|| Histogram::new(0.01, 20));
            whole.note(attempt.since.elapsed().as_secs_f64());
        }
    }

    /// A node was found for a pod.
    pub(crate) fn found(&self, took: Duration) {
        self.0.lock().algorithm.note(took.as_secs_f64());
    }

    /// It was looked for pods that have to go.
    pub(crate) fn preemption(&self, victims: Option<usize>) {
        let mut counts = self.0.lock();
        counts.preemptions += 1;
        if let Some(victims) = victims {
            counts.victims.note(victims as f64);
        }
    }

    /// So many pods wait now.
    pub(crate) fn pending(&self, pending: Pending) {
        self.0.lock().pending = pending;
    }

    /// All counters now, in Prometheus' text form.
    pub fn text(&self) -> String {
        let (mut out, counts) = (String::new(), self.0.lock());
        let head = |out: &mut String, metric: &str, kind: &str, help: &str| {
            let _ = writeln!(out, "# HELP {metric} {help}\n# TYPE {metric} {kind}");
        };
        let metric = "scheduler_pending_pods";
        head(&mut out, metric, "gauge", PENDING);
        let Pending { active, backoff, unschedulable, gated } = counts.pending;
        for (queue, number) in
            [("active", active), ("backoff", backoff), ("gated", gated), ("unschedulable", unschedulable)]
        {
            let _ = writeln!(out, "{metric}{{queue=\"{queue}\"}} {number}");
        }
        let metric = "scheduler_pod_scheduling_attempts";
        head(&mut out, metric, "histogram", "Number of attempts to successfully schedule a pod.");
        counts.tries.write(&mut out, metric, "");
        let metric = "scheduler_pod_scheduling_sli_duration_seconds";
        head(&mut out, metric, "histogram", WHOLE);
        for (attempts, histogram) in &counts.whole {
            let more = if *attempts == MOST_ATTEMPTS { "+" } else { "" };
            histogram.write(&mut out, metric, &format!("attempts=\"{attempts}{more}\""));
        }
        let metric = "scheduler_preemption_attempts_total";
        head(&mut out, metric, "counter", "Total preemption attempts in the cluster till now");
        let _ = writeln!(out, "{metric} {}", counts.preemptions);
        let metric = "scheduler_preemption_victims";
        head(&mut out, metric, "histogram", "Number of selected preemption victims");
        counts.victims.write(&mut out, metric, "");
        let metric = "scheduler_schedule_attempts_total";
        head(&mut out, metric, "counter", ATTEMPTS);
        let labels =
            |profile: &str, ended: Ended| format!("profile=\"{profile}\",result=\"{}\"", ended.name());
        for ((profile, ended), histogram) in &counts.attempts {
            let number: u64 = histogram.buckets.iter().sum();
            let _ = writeln!(out, "{metric}{{{}}} {number}", labels(profile, *ended));
        }
        let metric = "scheduler_scheduling_algorithm_duration_seconds";
        head(&mut out, metric, "histogram", "Scheduling algorithm latency in seconds");
        counts.algorithm.write(&mut out, metric, "");
        let metric = "scheduler_scheduling_attempt_duration_seconds";
        let help = "Scheduling attempt latency in seconds (scheduling algorithm + binding)";
        head(&mut out, metric, "histogram", help);
        for ((profile, ended), histogram) in &counts.attempts {
            histogram.write(&mut out, metric, &labels(profile, *ended));
        }
        out
    }
}

const PENDING: &str = "Number of pending pods, by the queue type. 'active' means number of pods in activeQ; 'backoff' means number of \
    pods in backoffQ; 'unschedulable' means number of pods in unschedulablePods that the scheduler attempted to schedule and failed; \
    'gated' is the number of unschedulable pods that the scheduler never attempted to schedule because they are gated.";
const WHOLE: &str = "E2e latency for a pod being scheduled, from the time the pod enters the scheduling queue and might involve multiple \
    scheduling attempts.";
const ATTEMPTS: &str = "Number of attempts to schedule pods, by the result. 'unschedulable' means a pod could not be scheduled, while \
    'error' means an internal scheduler problem.";

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn attempts_are_told_by_the_references_names() {
        let metrics = Metrics::default();
        let since = Instant::now();
        tokio::time::advance(Duration::from_secs(3)).await;
        let attempt = Attempt { since, began: Instant::now(), number: 2 };
        tokio::time::advance(Duration::from_millis(3)).await;
        metrics.attempt("default-scheduler", Ended::Scheduled, attempt);
        metrics.attempt("default-scheduler", Ended::Unschedulable, Attempt { number: 1, ..attempt });
        metrics.found(Duration::from_millis(1));
        metrics.preemption(Some(3));
        metrics.preemption(None);
        metrics.pending(Pending { active: 1, backoff: 2, unschedulable: 3, gated: 4 });
        let text = metrics.text();
        for line in [
            "scheduler_pending_pods{queue=\"gated\"} 4",
            "scheduler_pod_scheduling_attempts_bucket{le=\"1\"} 0",
            "scheduler_pod_scheduling_attempts_bucket{le=\"2\"} 1",
            "scheduler_pod_scheduling_attempts_sum 2",
            "scheduler_pod_scheduling_sli_duration_seconds_bucket{attempts=\"2\",le=\"2.56\"} 0",
            "scheduler_pod_scheduling_sli_duration_seconds_bucket{attempts=\"2\",le=\"5.12\"} 1",
            "scheduler_preemption_attempts_total 2",
            "scheduler_preemption_victims_bucket{le=\"4\"} 1",
            "scheduler_preemption_victims_count 1",
            "scheduler_schedule_attempts_total{profile=\"default-scheduler\",result=\"scheduled\"} 1",
            "scheduler_schedule_attempts_total{profile=\"default-scheduler\",result=\"unschedulable\"} 1",
            "scheduler_scheduling_algorithm_duration_seconds_bucket{le=\"0.001\"} 1",
            "scheduler_scheduling_attempt_duration_seconds_bucket{profile=\"default-scheduler\",result=\"scheduled\",le=\"0.004\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
    }
}
