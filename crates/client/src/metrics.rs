//! Metrics of every part, in Prometheus' text form: counting, timing and writing are the library's (docs/decisions/0008-metrics.md), names,
//! labels and words are the reference's.
//!
//! A metric stands in a `static` or in the part that it belongs to, and is made of the library when it is used first. What is only
//! known when somebody asks is added to [`Families`] then.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::proto::{self, LabelPair, MetricFamily, MetricType};
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, TextEncoder};

/// The media type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It is what it is now.
    Gauge,
}

/// Name, meaning and labels.
#[derive(Debug)]
struct Named {
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
}

/// A metric that has a name of its own.
pub trait Metric: Sync {
    /// All of its series; one without labels is there from the start.
    fn family(&self) -> Option<MetricFamily>;
}

/// Something that is counted, by its labels.
#[derive(Debug)]
pub struct Counter {
    named: Named,
    series: OnceLock<Option<IntCounterVec>>,
}

/// One series of a counter.
#[derive(Debug, Clone)]
pub struct Count(Option<prometheus::IntCounter>);

impl Count {
    /// Counts one more.
    pub fn add(&self) {
        self.0.iter().for_each(prometheus::IntCounter::inc);
    }
}

impl Counter {
    /// `labels` are their names.
    pub const fn new(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Self {
        Self { named: Named { name, help, labels }, series: OnceLock::new() }
    }

    /// The series of these values of the labels, in order; it is shown from now on.
    pub fn of(&self, labels: &[&str]) -> Count {
        let Named { name, help, labels: names } = self.named;
        let series =
            self.series.get_or_init(|| usable(name, IntCounterVec::new(Opts::new(name, help), names)));
        Count(series.as_ref().and_then(|series| usable(name, series.get_metric_with_label_values(labels))))
    }

    /// Counts one; `labels` are the values, in order.
    pub fn add(&self, labels: &[&str]) {
        self.of(labels).add();
    }
}

impl Metric for Counter {
    fn family(&self) -> Option<MetricFamily> {
        if self.named.labels.is_empty() {
            self.of(&[]);
        }
        self.series.get()?.as_ref()?.collect().pop()
    }
}

/// How many of something there are now, by their labels.
#[derive(Debug)]
pub struct Gauge {
    named: Named,
    series: OnceLock<Option<IntGaugeVec>>,
}

/// One of those that a gauge counts, until it is dropped.
#[derive(Debug)]
pub struct Held(Option<prometheus::IntGauge>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.iter().for_each(prometheus::IntGauge::dec);
    }
}

impl Gauge {
    /// `labels` are their names.
    pub const fn new(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Self {
        Self { named: Named { name, help, labels }, series: OnceLock::new() }
    }

    fn of(&self, labels: &[&str]) -> Option<prometheus::IntGauge> {
        let Named { name, help, labels: names } = self.named;
        let series = self.series.get_or_init(|| usable(name, IntGaugeVec::new(Opts::new(name, help), names)));
        series.as_ref().and_then(|series| usable(name, series.get_metric_with_label_values(labels)))
    }

    /// One more until what is returned is dropped; `labels` are the values, in order.
    pub fn held(&self, labels: &[&str]) -> Held {
        let gauge = self.of(labels);
        gauge.iter().for_each(prometheus::IntGauge::inc);
        Held(gauge)
    }

    /// One more, for good; for what the reference shows as a gauge and only ever counts up.
    pub fn add(&self, labels: &[&str]) {
        self.of(labels).iter().for_each(prometheus::IntGauge::inc);
    }

    /// So many there are now.
    pub fn set(&self, labels: &[&str], count: usize) {
        self.of(labels).iter().for_each(|gauge| gauge.set(i64::try_from(count).unwrap_or(i64::MAX)));
    }
}

impl Metric for Gauge {
    fn family(&self) -> Option<MetricFamily> {
        self.series.get()?.as_ref()?.collect().pop()
    }
}

/// Something that is measured, by its labels.
#[derive(Debug)]
pub struct Histogram {
    named: Named,
    bounds: &'static [f64],
    series: OnceLock<Option<HistogramVec>>,
}

impl Histogram {
    /// `labels` are their names, `bounds` the upper bounds of the buckets.
    pub const fn new(
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
        bounds: &'static [f64],
    ) -> Self {
        Self { named: Named { name, help, labels }, bounds, series: OnceLock::new() }
    }

    fn of(&self, labels: &[&str]) -> Option<prometheus::Histogram> {
        let Named { name, help, labels: names } = self.named;
        let options = || HistogramOpts::new(name, help).buckets(self.bounds.to_vec());
        let series = self.series.get_or_init(|| usable(name, HistogramVec::new(options(), names)));
        series.as_ref().and_then(|series| usable(name, series.get_metric_with_label_values(labels)))
    }

    /// Adds one; `labels` are the values, in order.
    pub fn observe(&self, labels: &[&str], value: f64) {
        self.of(labels).iter().for_each(|series| series.observe(value));
    }

    /// The same of a time, in seconds.
    pub fn time(&self, labels: &[&str], time: Duration) {
        self.observe(labels, time.as_secs_f64());
    }
}

impl Metric for Histogram {
    fn family(&self) -> Option<MetricFamily> {
        if self.named.labels.is_empty() {
            self.of(&[]);
        }
        self.series.get()?.as_ref()?.collect().pop()
    }
}

/// Values by their size, which get their name and labels only when they are shown.
#[derive(Debug, Clone)]
pub struct Distribution(Option<prometheus::Histogram>);

impl Distribution {
    /// `bounds` are the upper bounds of the buckets.
    pub fn new(bounds: &[f64]) -> Self {
        let options = HistogramOpts::new("distribution", "Values by their size.").buckets(bounds.to_vec());
        Self(usable("distribution", prometheus::Histogram::with_opts(options)))
    }

    /// Adds one.
    pub fn observe(&self, value: f64) {
        self.0.iter().for_each(|values| values.observe(value));
    }

    /// The same of a time, in seconds.
    pub fn time(&self, time: Duration) {
        self.observe(time.as_secs_f64());
    }
}

/// The library refuses names and labels that are none: those stand in our sources.
fn usable<T>(name: &str, made: prometheus::Result<T>) -> Option<T> {
    debug_assert!(made.is_ok(), "{name}");
    if let Err(error) = &made {
        tracing::error!(%error, name, "a metric that cannot be");
    }
    made.ok()
}

/// A text under construction: the series of one metric stand together under its head, metrics by name.
#[derive(Debug, Default)]
pub struct Families(BTreeMap<String, MetricFamily>);

impl Families {
    /// Adds these metrics.
    pub fn collect<'a>(&mut self, metrics: impl IntoIterator<Item = &'a dyn Metric>) {
        let families = metrics.into_iter().filter_map(Metric::family);
        for family in families.filter(|family| !family.get_metric().is_empty()) {
            self.0.insert(family.name().to_owned(), family);
        }
    }

    /// Adds one value; `millis` is when it was measured, since 1970.
    pub fn value(
        &mut self,
        kind: Kind,
        name: &str,
        help: &str,
        labels: &[(&str, &str)],
        value: f64,
        millis: Option<i64>,
    ) {
        let mut metric = proto::Metric::from_label(pairs(labels));
        let of = match kind {
            Kind::Counter => {
                let mut counter = proto::Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
                MetricType::COUNTER
            }
            Kind::Gauge => {
                let mut gauge = proto::Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
                MetricType::GAUGE
            }
        };
        metric.set_timestamp_ms(millis.unwrap_or(0));
        self.add(of, name, help, metric);
    }

    /// Adds values by their size.
    pub fn distribution(&mut self, name: &str, help: &str, labels: &[(&str, &str)], values: &Distribution) {
        let collected = values.0.as_ref().and_then(|values| values.collect().pop());
        if let Some(collected) = collected.as_ref().and_then(|family| family.get_metric().first()) {
            let mut metric = proto::Metric::from_label(pairs(labels));
            metric.set_histogram(collected.get_histogram().clone());
            self.add(MetricType::HISTOGRAM, name, help, metric);
        }
    }

    fn add(&mut self, kind: MetricType, name: &str, help: &str, metric: proto::Metric) {
        let family = self.0.entry(name.to_owned()).or_insert_with(|| {
            let mut family = MetricFamily::default();
            family.set_name(name.to_owned());
            family.set_help(help.to_owned());
            family.set_field_type(kind);
            family
        });
        family.mut_metric().push(metric);
    }

    /// Whether there is a metric of that name.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The text.
    pub fn text(self) -> String {
        let mut text = String::new();
        let families: Vec<MetricFamily> = self.0.into_values().collect();
        if let Err(error) = TextEncoder::new().encode_utf8(&families, &mut text) {
            tracing::error!(%error, "metrics cannot be written");
        }
        text
    }
}

fn pairs(labels: &[(&str, &str)]) -> Vec<LabelPair> {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    labels.iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    static TRIED: Counter = Counter::new("tried_total", "Tries.", &["end"]);
    static ASKED: Counter = Counter::new("asked", "Questions.", &[]);
    static OPEN: Gauge = Gauge::new("open", "Now.", &["of"]);
    static TOOK: Histogram = Histogram::new("took_seconds", "Time.", &["end"], &[1.0, 2.5]);

    #[test]
    fn metrics_are_written_as_prometheus_reads_them() {
        TRIED.add(&["a\"b"]);
        TRIED.of(&["c"]);
        let held = OPEN.held(&["x"]);
        drop(OPEN.held(&["x"]));
        for value in [0.5, 1.0, 2.0, 7.0] {
            TOOK.observe(&["a"], value);
        }
        let mut families = Families::default();
        families.collect([&TRIED as &dyn Metric, &ASKED, &OPEN, &TOOK]);
        families.value(Kind::Gauge, "level", "Level.", &[("of", "y")], 1.5, Some(5000));
        let sizes = Distribution::new(&[10.0]);
        sizes.observe(3.0);
        families.distribution("size", "Size.", &[("of", "z")], &sizes);
        drop(held);
        let expected = "\
# HELP asked Questions.
# TYPE asked counter
asked 0
# HELP level Level.
# TYPE level gauge
level{of=\"y\"} 1.5 5000
# HELP open Now.
# TYPE open gauge
open{of=\"x\"} 1
# HELP size Size.
# TYPE size histogram
size_bucket{of=\"z\",le=\"10\"} 1
size_bucket{of=\"z\",le=\"+Inf\"} 1
size_sum{of=\"z\"} 3
size_count{of=\"z\"} 1
# HELP took_seconds Time.
# TYPE took_seconds histogram
took_seconds_bucket{end=\"a\",le=\"1\"} 2
took_seconds_bucket{end=\"a\",le=\"2.5\"} 3
took_seconds_bucket{end=\"a\",le=\"+Inf\"} 4
took_seconds_sum{end=\"a\"} 10.5
took_seconds_count{end=\"a\"} 4
# HELP tried_total Tries.
# TYPE tried_total counter
tried_total{end=\"a\\\"b\"} 1
tried_total{end=\"c\"} 0
";
        assert_eq!(families.text(), expected);
    }
}
