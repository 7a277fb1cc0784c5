//! What flows and levels did. Names, labels and words are upstream's `apiserver_flowcontrol_...`.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use client::metrics::{Distribution, Families, Kind};

use super::Fairness;
use super::config::Flow;
use super::queues::{Refusal, Work};

/// Upper bounds of the buckets of times, in seconds.
const TIMES: [f64; 13] = [0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0];
/// Upper bounds of the buckets of seats.
const SEATS: [f64; 4] = [1.0, 2.0, 4.0, 10.0];

/// What became of one flow's requests.
#[derive(Debug)]
pub struct FlowStats {
    dispatched: AtomicU64,
    refused: [AtomicU64; 4],
    executing: AtomicI64,
    executing_seats: AtomicI64,
    queued: AtomicI64,
    queued_seats: AtomicI64,
    waited: [Distribution; 2],
    ran: Distribution,
    seats: Distribution,
}

impl Default for FlowStats {
    fn default() -> Self {
        Self {
            dispatched: AtomicU64::new(0),
            refused: Default::default(),
            executing: AtomicI64::new(0),
            executing_seats: AtomicI64::new(0),
            queued: AtomicI64::new(0),
            queued_seats: AtomicI64::new(0),
            waited: [Distribution::new(&TIMES), Distribution::new(&TIMES)],
            ran: Distribution::new(&TIMES),
            seats: Distribution::new(&SEATS),
        }
    }
}

const REFUSALS: [Refusal; 4] =
    [Refusal::ConcurrencyLimit, Refusal::QueueFull, Refusal::TimeOut, Refusal::Cancelled];

impl FlowStats {
    pub(super) fn queued(&self, seats: u32) {
        self.queued.fetch_add(1, Ordering::Relaxed);
        self.queued_seats.fetch_add(i64::from(seats), Ordering::Relaxed);
    }

    pub(super) fn left_queue(&self, seats: u32) {
        self.queued.fetch_sub(1, Ordering::Relaxed);
        self.queued_seats.fetch_sub(i64::from(seats), Ordering::Relaxed);
    }

    pub(super) fn waited(&self, executes: bool, time: Duration) {
        self.waited[usize::from(executes)].time(time);
    }

    pub(super) fn begin(&self, work: Work) {
        self.dispatched.fetch_add(1, Ordering::Relaxed);
        self.executing.fetch_add(1, Ordering::Relaxed);
        self.executing_seats.fetch_add(i64::from(work.most_seats()), Ordering::Relaxed);
        self.seats.observe(f64::from(work.most_seats()));
    }

    pub(super) fn end(&self, seats: u32, time: Duration) {
        self.executing.fetch_sub(1, Ordering::Relaxed);
        self.executing_seats.fetch_sub(i64::from(seats), Ordering::Relaxed);
        self.ran.time(time);
    }

    pub(super) fn refused(&self, why: Refusal) {
        let at = REFUSALS.iter().position(|refusal| *refusal == why);
        if let Some(count) = at.and_then(|at| self.refused.get(at)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Requests that ran, and those that were refused for each reason, in the order of the reasons.
    pub fn counts(&self) -> (u64, [u64; 4]) {
        let refused = self.refused.each_ref().map(|count| count.load(Ordering::Relaxed));
        (self.dispatched.load(Ordering::Relaxed), refused)
    }
}

/// Adds every figure.
pub fn collect(fairness: &Fairness, families: &mut Families) {
    let config = fairness.config();
    let mut put = |kind: Kind, name: &str, help: &str, labels: &[(&str, &str)], value: f64| {
        families.value(kind, &format!("apiserver_flowcontrol_{name}"), help, labels, value, None);
    };
    for level in config.levels.values() {
        let labels = [("priority_level", level.name.as_str())];
        let adjusted = level.lines.adjusted();
        let limit = level.lines.read(|queues| queues.limit()).unwrap_or(adjusted.seats.nominal);
        let need = adjusted.need;
        for (name, help, value) in [
            ("nominal_limit_seats", NOMINAL, f64::from(adjusted.seats.nominal)),
            ("lower_limit_seats", LOWER, f64::from(adjusted.seats.least)),
            ("upper_limit_seats", UPPER, f64::from(adjusted.seats.most)),
            ("current_limit_seats", CURRENT, f64::from(limit)),
            ("demand_seats_high_watermark", HIGHEST, need.last.most),
            ("demand_seats_average", AVERAGE, need.last.average),
            ("demand_seats_stdev", DEVIATION, need.last.deviation),
            ("demand_seats_smoothed", SMOOTHED, need.smoothed),
            ("seat_fair_frac", FRACTION, adjusted.fraction),
        ] {
            put(Kind::Gauge, name, help, &labels, value);
        }
    }
    let now = |value: &AtomicI64| value.load(Ordering::Relaxed) as f64;
    for flow in &config.flows {
        let labels = labels_of(flow);
        let stats = &flow.stats;
        let (dispatched, refused) = stats.counts();
        put(Kind::Counter, "dispatched_requests_total", DISPATCHED, &labels, dispatched as f64);
        put(Kind::Gauge, "current_executing_requests", EXECUTING, &labels, now(&stats.executing));
        put(Kind::Gauge, "current_executing_seats", SEATS_TAKEN, &labels, now(&stats.executing_seats));
        put(Kind::Gauge, "current_inqueue_requests", QUEUED, &labels, now(&stats.queued));
        put(Kind::Gauge, "current_inqueue_seats", SEATS_QUEUED, &labels, now(&stats.queued_seats));
        for (why, count) in REFUSALS.iter().zip(refused).filter(|(_, count)| *count > 0) {
            let labels = [labels[0], labels[1], ("reason", why.name())];
            put(Kind::Counter, "rejected_requests_total", REJECTED, &labels, count as f64);
        }
    }
    for flow in &config.flows {
        let [schema, level] = labels_of(flow);
        let stats = &flow.stats;
        let mut put = |name: &str, help: &str, labels: &[(&str, &str)], values: &Distribution| {
            families.distribution(&format!("apiserver_flowcontrol_{name}"), help, labels, values);
        };
        for (executes, waited) in ["false", "true"].into_iter().zip(&stats.waited) {
            let labels = [("execute", executes), schema, level];
            put("request_wait_duration_seconds", WAITED, &labels, waited);
        }
        put("request_execution_duration_seconds", RAN, &[schema, level], &stats.ran);
        put("work_estimated_seats", ESTIMATED, &[schema, level], &stats.seats);
    }
}

fn labels_of(flow: &Flow) -> [(&'static str, &str); 2] {
    [("flow_schema", flow.name.as_str()), ("priority_level", flow.level.name.as_str())]
}

const NOMINAL: &str = "[BETA] Nominal number of execution seats configured for each priority level";
const LOWER: &str =
    "[ALPHA] Configured lower bound on number of execution seats available to each priority level";
const UPPER: &str =
    "[ALPHA] Configured upper bound on number of execution seats available to each priority level";
const CURRENT: &str = "[ALPHA] current derived number of execution seats available to each priority level";
const HIGHEST: &str = "[ALPHA] High watermark, over last adjustment period, of demand_seats";
const AVERAGE: &str = "[ALPHA] Time-weighted average, over last adjustment period, of demand_seats";
const DEVIATION: &str =
    "[ALPHA] Time-weighted standard deviation, over last adjustment period, of demand_seats";
const SMOOTHED: &str = "[ALPHA] Smoothed seat demands";
const FRACTION: &str =
    "[ALPHA] Fair fraction of server's concurrency to allocate to each priority level that can use it";
const DISPATCHED: &str = "[BETA] Number of requests executed by API Priority and Fairness subsystem";
const EXECUTING: &str = "[BETA] Number of requests in initial (for a WATCH) or any (for a non-WATCH) execution stage in the API Priority and Fairness subsystem";
const SEATS_TAKEN: &str = "[BETA] Concurrency (number of seats) occupied by the currently executing (initial stage for a WATCH, any stage otherwise) requests in the API Priority and Fairness subsystem";
const QUEUED: &str =
    "[BETA] Number of requests currently pending in queues of the API Priority and Fairness subsystem";
const SEATS_QUEUED: &str =
    "[ALPHA] Number of seats currently pending in queues of the API Priority and Fairness subsystem";
const REJECTED: &str = "[BETA] Number of requests rejected by API Priority and Fairness subsystem";
const WAITED: &str = "[BETA] Length of time a request spent waiting in its queue";
const RAN: &str = "[ALPHA] Duration of initial stage (for a WATCH) or any (for a non-WATCH) stage of request execution in the API Priority and Fairness subsystem";
const ESTIMATED: &str = "[ALPHA] Number of estimated seats (maximum of initial and final seats) associated with requests in API Priority and Fairness";
