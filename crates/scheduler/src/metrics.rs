//! Counters by the names of the reference's `scheduler_…` metrics.
use std::time::Duration;

use client::metrics::{Counter, Families, Gauge, Histogram, Metric};
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

/// Attempts are told apart up to this number; the last stands for more as well.
const MOST_ATTEMPTS: u32 = 15;
/// Upper bounds of buckets, each twice the one before: of an attempt and a search, in seconds; of a pod as a whole, in seconds;
/// of attempts; of victims.
const ATTEMPT: &[f64] = &doubled::<15>(0.001);
const WHOLE: &[f64] = &doubled::<20>(0.01);
const TRIES: &[f64] = &doubled::<5>(1.0);
const VICTIMS: &[f64] = &doubled::<7>(1.0);

const fn doubled<const N: usize>(first: f64) -> [f64; N] {
    let mut bounds = [first; N];
    let mut at = 1;
    while at < N {
        bounds[at] = bounds[at - 1] * 2.0;
        at += 1;
    }
    bounds
}

/// What the scheduler of a process did.
#[derive(Debug)]
pub struct Metrics {
    pending: Gauge,
    tries: Histogram,
    whole: Histogram,
    preemptions: Counter,
    victims: Histogram,
    attempts: Counter,
    algorithm: Histogram,
    durations: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            pending: Gauge::new(
                "scheduler_pending_pods",
                "Number of pending pods, by the queue type. 'active' means number of pods in activeQ; 'backoff' means number \
                 of pods in backoffQ; 'unschedulable' means number of pods in unschedulablePods that the scheduler attempted to schedule \
                 and failed; 'gated' is the number of unschedulable pods that the scheduler never attempted to schedule because they are \
                 gated.",
                &["queue"],
            ),
            tries: Histogram::new(
                "scheduler_pod_scheduling_attempts",
                "Number of attempts to successfully schedule a pod.",
                &[],
                TRIES,
            ),
            whole: Histogram::new(
                "scheduler_pod_scheduling_sli_duration_seconds",
                "E2e latency for a pod being scheduled, from the time the pod enters the scheduling queue and might involve \
                 multiple scheduling attempts.",
                &["attempts"],
                WHOLE,
            ),
            preemptions: Counter::new(
                "scheduler_preemption_attempts_total",
                "Total preemption attempts in the cluster till now",
                &[],
            ),
            victims: Histogram::new(
                "scheduler_preemption_victims",
                "Number of selected preemption victims",
                &[],
                VICTIMS,
            ),
            attempts: Counter::new(
                "scheduler_schedule_attempts_total",
                "Number of attempts to schedule pods, by the result. 'unschedulable' means a pod could not be scheduled, \
                 while 'error' means an internal scheduler problem.",
                &["profile", "result"],
            ),
            algorithm: Histogram::new(
                "scheduler_scheduling_algorithm_duration_seconds",
                "Scheduling algorithm latency in seconds",
                &[],
                ATTEMPT,
            ),
            durations: Histogram::new(
                "scheduler_scheduling_attempt_duration_seconds",
                "Scheduling attempt latency in seconds (scheduling algorithm + binding)",
                &["profile", "result"],
                ATTEMPT,
            ),
        }
    }
}

impl Metrics {
    /// An attempt ended.
    pub(crate) fn attempt(&self, profile: &str, ended: Ended, attempt: Attempt) {
        let labels = [profile, ended.name()];
        self.attempts.add(&labels);
        self.durations.time(&labels, attempt.began.elapsed());
        if ended == Ended::Scheduled {
            self.tries.observe(&[], f64::from(attempt.number));
            let more = if attempt.number >= MOST_ATTEMPTS { "+" } else { "" };
            let number = format!("{}{more}", attempt.number.min(MOST_ATTEMPTS));
            self.whole.time(&[&number], attempt.since.elapsed());
        }
    }

    /// A node was found for a pod.
    pub(crate) fn found(&self, took: Duration) {
        self.algorithm.time(&[], took);
    }

    /// It was looked for pods that have to go.
    pub(crate) fn preemption(&self, victims: Option<usize>) {
        self.preemptions.add(&[]);
        if let Some(victims) = victims {
            self.victims.observe(&[], victims as f64);
        }
    }

    /// So many pods wait now.
    pub(crate) fn pending(&self, pending: Pending) {
        let Pending { active, backoff, unschedulable, gated } = pending;
        for (queue, number) in
            [("active", active), ("backoff", backoff), ("gated", gated), ("unschedulable", unschedulable)]
        {
            self.pending.set(&[queue], number);
        }
    }

    /// Adds all counters as they are now.
    pub fn collect(&self, families: &mut Families) {
        families.collect([
            &self.pending as &dyn Metric,
            &self.tries,
            &self.whole,
            &self.preemptions,
            &self.victims,
            &self.attempts,
            &self.algorithm,
            &self.durations,
        ]);
    }
}

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
        let mut families = Families::default();
        metrics.collect(&mut families);
        let text = families.text();
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
