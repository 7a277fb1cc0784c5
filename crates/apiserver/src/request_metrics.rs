//! Requests as upstream counts and times them, for the dashboards and alerts that every cluster's monitoring has.
//!
//! Rule: Kubernetes documentation, "Kubernetes Metrics Reference": names, labels, words and buckets are those of v1.36. Only
//! resources that are served are told apart: clients could name any. A watch is counted when it begins.

use std::time::{Duration, Instant};

use client::metrics::{Counter, Families, Gauge, Held, Histogram, Kind as MetricKind, Metric};
use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;

use crate::aggregation::Aggregator;
use crate::audit;
use crate::extensions::Kinds;
use crate::request_info::RequestInfo;
use crate::watch_cache::WatchCache;

const COMPONENT: &str = "apiserver";
/// The media types of server-side apply.
const APPLY: [&str; 2] = ["application/apply-patch+yaml", "application/apply-patch+cbor"];
/// Upper bounds of the buckets, in seconds.
const BOUNDS: &[f64] = &[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];

/// The same of what is left of a certificate: half an hour to a year.
const LIFETIMES: &[f64] = &[
    0.0,
    1_800.0,
    3_600.0,
    7_200.0,
    21_600.0,
    43_200.0,
    86_400.0,
    172_800.0,
    345_600.0,
    604_800.0,
    2_592_000.0,
    7_776_000.0,
    15_552_000.0,
    31_104_000.0,
];

/// What became of requests.
#[derive(Debug)]
pub struct RequestMetrics {
    total: Counter,
    durations: Histogram,
    own_durations: Histogram,
    inflight: Gauge,
    certificates: Histogram,
}

impl Default for RequestMetrics {
    fn default() -> Self {
        Self {
            total: Counter::new(
                "apiserver_request_total",
                "[STABLE] Counter of apiserver requests broken out for each verb, dry run value, group, version, resource, \
                 scope, component, and HTTP response code.",
                &[
                    "code",
                    "component",
                    "dry_run",
                    "group",
                    "resource",
                    "scope",
                    "subresource",
                    "verb",
                    "version",
                ],
            ),
            durations: Histogram::new(
                "apiserver_request_duration_seconds",
                "[STABLE] Response latency distribution in seconds for each verb, dry run value, group, version, resource, \
                 subresource, scope and component.",
                &["component", "dry_run", "group", "resource", "scope", "subresource", "verb", "version"],
                BOUNDS,
            ),
            own_durations: Histogram::new(
                "apiserver_request_sli_duration_seconds",
                "[ALPHA] Response latency distribution (not counting webhook duration and priority & fairness queue wait \
                 times) in seconds for each verb, group, version, resource, subresource, scope and component.",
                &["component", "group", "resource", "scope", "subresource", "verb", "version"],
                BOUNDS,
            ),
            inflight: Gauge::new(
                "apiserver_current_inflight_requests",
                "[STABLE] Maximal number of currently used inflight request limit of this apiserver per request kind in \
                 last second.",
                &["request_kind"],
            ),
            certificates: Histogram::new(
                "apiserver_client_certificate_expiration_seconds",
                "[ALPHA] Distribution of the remaining lifetime on the certificate used to authenticate a request.",
                &[],
                LIFETIMES,
            ),
        }
    }
}

/// A request that is worked on.
pub struct Running {
    begin: Instant,
    _inflight: Option<Held>,
    shown: Option<Shown>,
}

/// A request as it is told apart from others.
struct Shown {
    verb: &'static str,
    subresource: String,
    scope: &'static str,
    dry_run: &'static str,
    is_long: bool,
}

impl RequestMetrics {
    /// A request came; `is_long`: its answer takes as long as the client likes.
    pub fn begin(&self, kinds: &Kinds, info: &RequestInfo, headers: &HeaderMap, is_long: bool) -> Running {
        let changes = !matches!(info.verb.as_str(), "get" | "list" | "watch" | "head" | "options");
        let kind = if changes { "mutating" } else { "readOnly" };
        Running {
            begin: Instant::now(),
            _inflight: (!is_long).then(|| self.inflight.held(&[kind])),
            shown: shown(kinds, info, headers, is_long),
        }
    }

    /// A request came with a certificate that is good until then.
    pub fn certificate(&self, ends: Timestamp) {
        self.certificates.observe(&[], ends.duration_since(Timestamp::now()).as_secs_f64());
    }

    /// It was answered. `waited`: of that time it stood in a queue.
    pub fn end(&self, running: &Running, info: &RequestInfo, code: StatusCode, waited: Duration) {
        let Some(Shown { verb, subresource, scope, dry_run, is_long }) = &running.shown else { return };
        let RequestInfo { group, version, resource, .. } = info;
        let took = running.begin.elapsed();
        let labels = [
            code.as_str(),
            COMPONENT,
            *dry_run,
            group.as_str(),
            resource.as_str(),
            *scope,
            subresource.as_str(),
            *verb,
            version.as_str(),
        ];
        self.total.add(&labels);
        if !is_long {
            self.durations.time(&labels[1..], took);
            let own: [&str; 7] = [COMPONENT, group, resource, *scope, subresource, *verb, version];
            self.own_durations.time(&own, took.saturating_sub(waited));
        }
    }

    /// Adds them, and what of stored objects and of other servers there is.
    pub fn collect(
        &self,
        kinds: &Kinds,
        cache: &WatchCache,
        aggregator: &Aggregator,
        families: &mut Families,
    ) {
        let Self { total, durations, own_durations, inflight, certificates } = self;
        families.collect([total as &dyn Metric, durations, own_durations, inflight, certificates]);
        families.collect(audit::METRICS.iter().copied());
        let help = "[STABLE] Number of stored objects at the time of last check split by kind. In case of a fetching error, \
                    the value will be -1.";
        let kinds = kinds.now();
        let stored = kinds.all().iter().filter(|kind| !kind.storage_prefix.is_empty());
        let counts: std::collections::BTreeMap<String, usize> = stored
            .map(|kind| {
                let dot = if kind.group.is_empty() { "" } else { "." };
                (format!("{}{dot}{}", kind.plural, kind.group), cache.count(kind))
            })
            .collect();
        for (resource, count) in &counts {
            let labels = [("resource", resource.as_str())];
            families.value(
                MetricKind::Gauge,
                "apiserver_storage_objects",
                help,
                &labels,
                *count as f64,
                None,
            );
        }
        let help =
            "[ALPHA] Gauge of APIServices which are marked as unavailable broken down by APIService name.";
        for remote in aggregator.remotes(cache).iter() {
            let missing = if remote.is_available { 0.0 } else { 1.0 };
            let labels = [("name", remote.name.as_str())];
            families.value(
                MetricKind::Gauge,
                "aggregator_unavailable_apiservice",
                help,
                &labels,
                missing,
                None,
            );
        }
    }
}

fn shown(kinds: &Kinds, info: &RequestInfo, headers: &HeaderMap, is_long: bool) -> Option<Shown> {
    if !info.is_resource {
        let known = matches!(info.path.as_str(), "/healthz" | "/livez" | "/readyz" | "/version");
        return (known && info.verb == "get").then(|| Shown {
            verb: "GET",
            subresource: info.path.clone(),
            scope: "",
            dry_run: "",
            is_long,
        });
    }
    let kinds = kinds.now();
    let kind = kinds.find(&info.group, &info.version, &info.resource)?;
    // subresources that nobody serves are not told apart either
    let served =
        info.subresource.is_empty() || kind.subresources.iter().any(|own| own.name == info.subresource);
    let connects = matches!(info.subresource.as_str(), "attach" | "exec" | "portforward" | "proxy");
    let media = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let verb = match info.verb.as_str() {
        _ if connects => "CONNECT",
        "get" => "GET",
        "list" => "LIST",
        "watch" => "WATCH",
        "create" => "POST",
        "update" => "PUT",
        "patch" if APPLY.iter().any(|apply| media.starts_with(apply)) => "APPLY",
        "patch" => "PATCH",
        "delete" => "DELETE",
        "deletecollection" => "DELETECOLLECTION",
        _ => return None,
    };
    let scope = match () {
        () if !info.name.is_empty() || info.verb == "create" => "resource",
        () if !info.namespace.is_empty() => "namespace",
        () => "cluster",
    };
    let dry_run = if info.query.get("dryRun") == "All" { "All" } else { "" };
    served.then(|| Shown { verb, subresource: info.subresource.clone(), scope, dry_run, is_long })
}
