//! What flows and levels did, in Prometheus' text form. Names and labels are upstream's `apiserver_flowcontrol_...`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use super::Fairness;
use super::queues::{Refusal, Work};

/// Upper bounds of the buckets of times, in seconds.
const TIMES: [f64; 13] = [0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0];
/// Upper bounds of the buckets of seats.
const SEATS: [f64; 4] = [1.0, 2.0, 4.0, 10.0];

/// Values, counted by size.
#[derive(Debug, Default)]
struct Histogram<const N: usize> {
    /// Of each bucket alone; what is above all of them is in `more`.
    buckets: Vec<AtomicU64>,
    more: AtomicU64,
    /// In millionths.
    sum: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    fn new() -> Self {
        Self { buckets: (0..N).map(|_| AtomicU64::new(0)).collect(), ..Self::default() }
    }

    fn note(&self, bounds: &[f64; N], value: f64) {
        let at = bounds.iter().position(|bound| value <= *bound);
        at.and_then(|at| self.buckets.get(at)).unwrap_or(&self.more).fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add((value * 1e6) as u64, Ordering::Relaxed);
    }

    fn write(&self, out: &mut String, name: &str, labels: &str, bounds: &[f64; N]) {
        let mut count = 0;
        for (bound, bucket) in bounds.iter().zip(&self.buckets) {
            count += bucket.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}");
        }
        count += self.more.load(Ordering::Relaxed);
        let sum = self.sum.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {count}");
    }
}

/// What became of one flow's requests.
#[derive(Debug)]
pub struct FlowStats {
    dispatched: AtomicU64,
    refused: [AtomicU64; 4],
    executing: AtomicI64,
    executing_seats: AtomicI64,
    queued: AtomicI64,
    queued_seats: AtomicI64,
    waited: [Histogram<13>; 2],
    ran: Histogram<13>,
    seats: Histogram<4>,
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
            waited: [Histogram::new(), Histogram::new()],
            ran: Histogram::new(),
            seats: Histogram::new(),
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
        self.waited[usize::from(executes)].note(&TIMES, time.as_secs_f64());
    }

    pub(super) fn begin(&self, work: Work) {
        self.dispatched.fetch_add(1, Ordering::Relaxed);
        self.executing.fetch_add(1, Ordering::Relaxed);
        self.executing_seats.fetch_add(i64::from(work.most_seats()), Ordering::Relaxed);
        self.seats.note(&SEATS, f64::from(work.most_seats()));
    }

    pub(super) fn end(&self, seats: u32, time: Duration) {
        self.executing.fetch_sub(1, Ordering::Relaxed);
        self.executing_seats.fetch_sub(i64::from(seats), Ordering::Relaxed);
        self.ran.note(&TIMES, time.as_secs_f64());
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

/// Every figure, as text.
pub fn text(fairness: &Fairness) -> String {
    let config = fairness.config();
    let mut families: BTreeMap<&str, (&str, String)> = BTreeMap::new();
    let mut put = |name: &'static str, kind: &'static str, labels: &str, value: f64| {
        let (_, lines) = families.entry(name).or_insert((kind, String::new()));
        let _ = writeln!(lines, "apiserver_flowcontrol_{name}{{{labels}}} {value}");
    };
    for level in config.levels.values() {
        let labels = format!("priority_level={:?}", level.name);
        let adjusted = level.lines.adjusted();
        let limit = level.lines.read(|queues| queues.limit()).unwrap_or(adjusted.seats.nominal);
        let need = adjusted.need;
        for (name, value) in [
            ("nominal_limit_seats", f64::from(adjusted.seats.nominal)),
            ("lower_limit_seats", f64::from(adjusted.seats.least)),
            ("upper_limit_seats", f64::from(adjusted.seats.most)),
            ("current_limit_seats", f64::from(limit)),
            ("demand_seats_high_watermark", need.last.most),
            ("demand_seats_average", need.last.average),
            ("demand_seats_stdev", need.last.deviation),
            ("demand_seats_smoothed", need.smoothed),
            ("seat_fair_frac", adjusted.fraction),
        ] {
            put(name, "gauge", &labels, value);
        }
    }
    let now = |value: &AtomicI64| value.load(Ordering::Relaxed) as f64;
    for flow in &config.flows {
        let labels = format!("priority_level={:?},flow_schema={:?}", flow.level.name, flow.name);
        let stats = &flow.stats;
        let (dispatched, refused) = stats.counts();
        put("dispatched_requests_total", "counter", &labels, dispatched as f64);
        put("current_executing_requests", "gauge", &labels, now(&stats.executing));
        put("current_executing_seats", "gauge", &labels, now(&stats.executing_seats));
        put("current_inqueue_requests", "gauge", &labels, now(&stats.queued));
        put("current_inqueue_seats", "gauge", &labels, now(&stats.queued_seats));
        for (why, count) in REFUSALS.iter().zip(refused).filter(|(_, count)| *count > 0) {
            let labels = format!("{labels},reason={:?}", why.name());
            put("rejected_requests_total", "counter", &labels, count as f64);
        }
    }
    for flow in &config.flows {
        let labels = format!("priority_level={:?},flow_schema={:?}", flow.level.name, flow.name);
        let stats = &flow.stats;
        let mut put = |name: &'static str, write: &dyn Fn(&mut String, &str)| {
            let (_, lines) = families.entry(name).or_insert(("histogram", String::new()));
            write(lines, &format!("apiserver_flowcontrol_{name}"));
        };
        for (executes, waited) in [false, true].into_iter().zip(&stats.waited) {
            let labels = format!("execute=\"{executes}\",{labels}");
            put("request_wait_duration_seconds", &|out, name| waited.write(out, name, &labels, &TIMES));
        }
        put("request_execution_duration_seconds", &|out, name| stats.ran.write(out, name, &labels, &TIMES));
        put("work_estimated_seats", &|out, name| stats.seats.write(out, name, &labels, &SEATS));
    }
    let mut out = String::new();
    for (name, (kind, lines)) in families {
        let _ = write!(out, "# TYPE apiserver_flowcontrol_{name} {kind}\n{lines}");
    }
    out
}
