//! Horizontal pod autoscalers: every 15 seconds the size of a target follows its metrics.
//!
//! A target is anything with a scale subresource, custom resources included. Metrics are asked of the metrics APIs
//! (`metrics`), turned into a size (`calculator`) and that into the next one (`behavior`).
mod behavior;
mod calculator;
mod conditions;
mod metrics;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::selector::LabelSelector;
use client::events::{EventType, reference};
use client::{Cache, Change};
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::autoscaling::v2::{
    CrossVersionObjectReference, HPAScalingRules, HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec,
    HorizontalPodAutoscalerStatus, MetricSpec, MetricStatus, MetricTarget,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use parking_lot::Mutex;

use self::behavior::{History, Range};
use self::calculator::{Goal, Proposal, Samples, Tolerances, millis};
use self::metrics::Metrics;
use crate::ownership::{labels, namespace};
use crate::runner::{Context, Failure, ObjectKey, Outcome, Reconcile, Runner};
use crate::scales::{Scales, Target};
use crate::selector_text::selector_text;

/// How often a target is looked at.
const PERIOD: Duration = Duration::from_secs(15);
/// How far a metric may be from its target without a change.
const TOLERANCE: f64 = 0.1;

const ABLE: &str = "AbleToScale";
const ACTIVE: &str = "ScalingActive";
const LIMITED: &str = "ScalingLimited";

struct Controller {
    context: Context,
    autoscalers: Cache<HorizontalPodAutoscaler>,
    pods: Cache<Pod>,
    scales: Scales,
    histories: Mutex<HashMap<ObjectKey, History>>,
    /// Which pods an autoscaler's target selects, as last seen: no two may share a pod.
    selectors: Mutex<HashMap<ObjectKey, LabelSelector>>,
}

pub(crate) async fn run(context: Context) {
    let caches = context.reader.caches();
    let (autoscalers, pods) = (caches.of::<HorizontalPodAutoscaler>(), caches.of::<Pod>());
    let controller = Controller {
        context: context.clone(),
        autoscalers: autoscalers.clone(),
        pods: pods.clone(),
        scales: Scales::default(),
        histories: Mutex::default(),
        selectors: Mutex::default(),
    };
    Runner::new(&context, controller)
        .on(&autoscalers, |_, change| match change {
            // Our own statuses are no reason to look before the time.
            Change::Modified { old, new } if old.spec == new.spec => None,
            change => Some(ObjectKey::of(&change.object().metadata)),
        })
        .needs(&pods)
        .run(5)
        .await;
}

impl Reconcile for Controller {
    type Key = ObjectKey;

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, Failure> {
        let Some(autoscaler) = self.autoscalers.get(&key.namespace, &key.name) else {
            self.histories.lock().remove(key);
            self.selectors.lock().remove(key);
            return Ok(Outcome::Settled);
        };
        let old = autoscaler.status.clone().unwrap_or_default();
        let mut pass = Pass {
            controller: self,
            key,
            autoscaler: &autoscaler,
            spec: &autoscaler.spec,
            status: old.clone(),
            now: self.context.clock.now(),
        };
        if let Err(why) = pass.advance().await {
            tracing::debug!(controller = self.context.name, ?key, why, "pass failed");
        }
        if pass.status != old {
            let mut next = (*autoscaler).clone();
            next.status = Some(pass.status);
            self.context.client.update_status(&key.namespace, &next).await?;
        }
        // Also after a failure: the next period asks anew, and not sooner.
        Ok(Outcome::After(PERIOD))
    }
}

/// One look at one autoscaler.
struct Pass<'a> {
    controller: &'a Controller,
    key: &'a ObjectKey,
    autoscaler: &'a HorizontalPodAutoscaler,
    spec: &'a HorizontalPodAutoscalerSpec,
    status: HorizontalPodAutoscalerStatus,
    now: Timestamp,
}

/// What all metrics together ask for.
struct Wanted {
    replicas: i32,
    metric: String,
}

/// What one metric asks for.
struct Found {
    proposal: Proposal,
    /// How messages call the metric.
    metric: String,
    status: MetricStatus,
}

/// Why a metric could not be used: the reason of the condition and event, its text, and that of the summary.
struct Unusable {
    reason: &'static str,
    why: String,
    summary: String,
}

impl Pass<'_> {
    fn event(&self, kind: EventType, reason: &str, message: impl Into<String>) {
        self.controller.context.recorder.event(&reference(self.autoscaler), kind, reason, message);
    }

    fn condition(&mut self, kind: &str, status: bool, reason: &str, message: &str) {
        let list = self.status.conditions.get_or_insert_default();
        conditions::set(list, kind, status, reason, message, self.now);
    }

    fn target<'t>(&'t self, of: &'t CrossVersionObjectReference) -> Target<'t> {
        Target {
            api_version: of.api_version.as_deref().unwrap_or("v1"),
            kind: &of.kind,
            namespace: &self.key.namespace,
            name: &of.name,
        }
    }

    fn sizes(&mut self, current: i32, desired: i32, metrics: Vec<MetricStatus>) {
        self.status.current_replicas = Some(current);
        self.status.desired_replicas = desired;
        self.status.current_metrics = (!metrics.is_empty()).then_some(metrics);
    }

    async fn advance(&mut self) -> Result<(), String> {
        let client = &self.controller.context.client;
        let mut scale =
            match self.controller.scales.get(client, self.target(&self.spec.scale_target_ref)).await {
                Ok(scale) => scale,
                Err(error) => {
                    let why = error.to_string();
                    self.event(EventType::Warning, "FailedGetScale", why.as_str());
                    let message =
                        format!("the HPA controller was unable to get the target's current scale: {why}");
                    self.condition(ABLE, false, "FailedGetScale", &message);
                    return Err(why);
                }
            };
        let message = "the HPA controller was able to get the target's current scale";
        self.condition(ABLE, true, "SucceededGetScale", message);
        let current = scale.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0);
        let now = self.now;
        self.controller
            .histories
            .lock()
            .entry(self.key.clone())
            .or_insert_with(|| History::new(current, now));
        let range = Range { current, min: self.spec.min_replicas.unwrap_or(1), max: self.spec.max_replicas };
        let mut metrics = Vec::new();
        let (desired, reason) = if current == 0 && range.min != 0 {
            let message = "scaling is disabled since the replica count of the target is zero";
            self.condition(ACTIVE, false, "ScalingDisabled", message);
            (0, String::new())
        } else if current > range.max {
            (range.max, "Current number of replicas above Spec.MaxReplicas".to_owned())
        } else if current < range.min {
            (range.min, "Current number of replicas below Spec.MinReplicas".to_owned())
        } else {
            match self.by_metrics(&scale, &mut metrics).await {
                Ok(wanted) => self.normalize(range, &wanted),
                Err(why) => {
                    self.sizes(current, self.status.desired_replicas, metrics);
                    self.event(EventType::Warning, "FailedComputeMetricsReplicas", why.as_str());
                    return Err(why);
                }
            }
        };
        if desired == current {
            self.sizes(current, current, metrics);
            return Ok(());
        }
        scale.spec.get_or_insert_default().replicas = Some(desired);
        self.rescale(current, desired, &scale, &reason, metrics).await
    }

    /// The next size and why.
    fn normalize(&mut self, range: Range, wanted: &Wanted) -> (i32, String) {
        let normal = {
            let mut all = self.controller.histories.lock();
            let history = all.entry(self.key.clone()).or_default();
            behavior::normalize(history, self.spec.behavior.as_ref(), range, wanted.replicas, self.now)
        };
        self.condition(ABLE, true, normal.able.0, normal.able.1);
        self.condition(LIMITED, normal.limited, normal.limit.0, normal.limit.1);
        let reason = match wanted.replicas.cmp(&range.current) {
            std::cmp::Ordering::Greater => format!("{} above target", wanted.metric),
            std::cmp::Ordering::Less => "All metrics below target".to_owned(),
            std::cmp::Ordering::Equal => String::new(),
        };
        (normal.size, reason)
    }

    async fn rescale(
        &mut self,
        current: i32,
        desired: i32,
        scale: &Scale,
        reason: &str,
        metrics: Vec<MetricStatus>,
    ) -> Result<(), String> {
        let client = &self.controller.context.client;
        let target = self.target(&self.spec.scale_target_ref);
        if let Err(error) = self.controller.scales.put(client, target, scale).await {
            let why = error.to_string();
            let message = format!("New size: {desired}; reason: {reason}; error: {why}");
            self.event(EventType::Warning, "FailedRescale", message);
            let message = format!("the HPA controller was unable to update the target scale: {why}");
            self.condition(ABLE, false, "FailedUpdateScale", &message);
            self.sizes(current, self.status.desired_replicas, metrics);
            return Err(why);
        }
        let message = format!("the HPA controller was able to update the target scale to {desired}");
        self.condition(ABLE, true, "SucceededRescale", &message);
        let message = format!("New size: {desired}; reason: {reason}");
        self.event(EventType::Normal, "SuccessfulRescale", message);
        if let Some(history) = self.controller.histories.lock().get_mut(self.key) {
            history.scaled(current, desired, self.now);
        }
        self.sizes(current, desired, metrics);
        self.status.last_scale_time = Some(Time(self.now));
        Ok(())
    }

    /// The highest of what the metrics ask for. One that cannot be read forbids to shrink.
    async fn by_metrics(
        &mut self,
        scale: &Scale,
        statuses: &mut Vec<MetricStatus>,
    ) -> Result<Wanted, String> {
        let selector = self.selector(scale)?;
        let mut wanted = Wanted { replicas: 0, metric: String::new() };
        let (mut unusable, mut first) = (0, None);
        let specs = self.spec.metrics.as_deref().unwrap_or_default();
        for spec in specs {
            match self.by_metric(spec, scale, &selector).await {
                Ok(found) => {
                    statuses.push(found.status);
                    if wanted.replicas == 0 || found.proposal.replicas > wanted.replicas {
                        wanted = Wanted { replicas: found.proposal.replicas, metric: found.metric };
                    }
                }
                Err(error) => {
                    self.event(EventType::Warning, error.reason, error.why.as_str());
                    statuses.push(MetricStatus::default());
                    unusable += 1;
                    first.get_or_insert(error);
                }
            }
        }
        let current = scale.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0);
        if let Some(first) = first.filter(|_| unusable >= specs.len() || wanted.replicas < current) {
            let message = format!("the HPA was unable to compute the replica count: {}", first.why);
            self.condition(ACTIVE, false, first.reason, &message);
            return Err(format!(
                "invalid metrics ({unusable} invalid out of {}), first error is: {}",
                specs.len(),
                first.summary
            ));
        }
        let message =
            format!("the HPA was able to successfully calculate a replica count from {}", wanted.metric);
        self.condition(ACTIVE, true, "ValidMetricFound", &message);
        Ok(wanted)
    }

    /// The target's selector: the text for the metrics APIs, and the pods.
    fn selector(&mut self, scale: &Scale) -> Result<Selected, String> {
        let text = scale.status.as_ref().and_then(|s| s.selector.clone()).unwrap_or_default();
        if text.is_empty() {
            let why = "selector is required";
            self.event(EventType::Warning, "SelectorRequired", why);
            self.condition(ACTIVE, false, "InvalidSelector", "the HPA target's scale is missing a selector");
            return Err(why.to_owned());
        }
        let selector = LabelSelector::parse(&text).map_err(|error| {
            let why =
                format!("couldn't convert selector into a corresponding internal selector object: {error}");
            self.event(EventType::Warning, "InvalidSelector", why.as_str());
            self.condition(ACTIVE, false, "InvalidSelector", &why);
            why
        })?;
        let mut pods = self.controller.pods.list_ns(&self.key.namespace);
        pods.retain(|p| selector.matches(labels(&p.metadata)));
        let rivals = {
            let mut all = self.controller.selectors.lock();
            all.insert(self.key.clone(), selector);
            let shares = |k: &ObjectKey, s: &LabelSelector| {
                k.namespace == self.key.namespace && pods.iter().any(|p| s.matches(labels(&p.metadata)))
            };
            let mut rivals: Vec<_> = all
                .iter()
                .filter(|(k, s)| shares(k, s))
                .map(|(k, _)| format!("{}/{}", k.namespace, k.name))
                .collect();
            rivals.sort();
            rivals
        };
        if rivals.len() > 1 {
            let why =
                format!("pods by selector {text} are controlled by multiple HPAs: [{}]", rivals.join(" "));
            self.event(EventType::Warning, "AmbiguousSelector", why.as_str());
            self.condition(ACTIVE, false, "AmbiguousSelector", &why);
            return Err(why);
        }
        Ok(Selected { text, pods })
    }

    fn tolerances(&self) -> Tolerances {
        let behavior = self.spec.behavior.as_ref();
        let of = |rules: Option<&HPAScalingRules>| {
            let own = rules.and_then(|r| r.tolerance.as_ref());
            own.map_or(TOLERANCE, |q| {
                q.0.parse::<api::quantity::Quantity>().map_or(TOLERANCE, |q| q.to_f64())
            })
        };
        Tolerances {
            down: of(behavior.and_then(|b| b.scale_down.as_ref())),
            up: of(behavior.and_then(|b| b.scale_up.as_ref())),
        }
    }

    async fn by_metric(
        &self,
        spec: &MetricSpec,
        scale: &Scale,
        selected: &Selected,
    ) -> Result<Found, Unusable> {
        let current = scale.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0);
        let running = scale.status.as_ref().map_or(0, |s| s.replicas);
        let found = |proposal, metric, shared| Found {
            status: conditions::metric(spec, proposal, shared),
            proposal,
            metric,
        };
        let metrics = Metrics {
            client: &self.controller.context.client,
            namespace: namespace(&self.autoscaler.metadata),
        };
        if let Some(source) = &spec.resource {
            let (resource, target) = (source.name.as_str(), &source.target);
            let usage = self.resource(&metrics, resource, None, target, current, selected).await;
            return usage
                .map(|(p, metric)| found(p, metric, true))
                .map_err(|e| e.named("FailedGetResourceMetric"));
        }
        if let Some(source) = &spec.container_resource {
            let (resource, container) = (source.name.as_str(), Some(source.container.as_str()));
            let usage = self.resource(&metrics, resource, container, &source.target, current, selected).await;
            return usage
                .map(|(p, metric)| found(p, metric, true))
                .map_err(|e| e.named("FailedGetContainerResourceMetric"));
        }
        if let Some(source) = &spec.pods {
            let label = &source.metric.name;
            let samples = metrics.pods(&source.metric, &selected.text).await;
            let samples = samples.map_err(|e| format!("unable to get metric {label}: {e}"));
            let goal = Goal::Average(amount(source.target.average_value.as_ref()));
            let proposal = samples.and_then(|s| self.by_pods(current, selected, s, &goal, false));
            return proposal.map(|p| found(p, format!("pods metric {label}"), true)).map_err(|why| {
                Unusable {
                    reason: "FailedGetPodsMetric",
                    summary: format!("failed to get pods metric value: {why}"),
                    why,
                }
            });
        }
        if let Some(source) = &spec.object {
            let (target, metric) = (&source.target, &source.metric);
            let object = &source.described_object;
            let fail = |why: String| Unusable {
                reason: "FailedGetObjectMetric",
                summary: format!("failed to get object metric value: {why}"),
                why,
            };
            let value = self.object_value(&metrics, source).await.map_err(fail)?;
            if let Some(each) = &target.average_value {
                let proposal = calculator::by_share(running, value, millis(&each.0), self.tolerances());
                let label =
                    format!("external metric {}({})", metric.name, selector_text(metric.selector.as_ref()));
                return Ok(found(proposal, label, true));
            }
            let ready = calculator::ready(&selected.pods);
            let goal = amount(target.value.as_ref());
            let proposal =
                calculator::by_value(current, value, goal, ready, self.tolerances()).map_err(fail)?;
            return Ok(found(proposal, format!("{} metric {}", object.kind, metric.name), false));
        }
        if let Some(source) = &spec.external {
            let (target, metric) = (&source.target, &source.metric);
            let fail = |why: String| Unusable {
                reason: "FailedGetExternalMetric",
                summary: format!("failed to get {} external metric value: {why}", metric.name),
                why,
            };
            let shown = selector_text(metric.selector.as_ref());
            let value = metrics.external(metric).await.map_err(|e| {
                fail(format!(
                    "unable to get external metric {}/{}/{shown}: {e}",
                    self.key.namespace, metric.name
                ))
            })?;
            let label = format!("external metric {}({shown})", metric.name);
            if let Some(each) = &target.average_value {
                let proposal = calculator::by_share(running, value, millis(&each.0), self.tolerances());
                return Ok(found(proposal, label, true));
            }
            let ready = calculator::ready(&selected.pods);
            let goal = amount(target.value.as_ref());
            let proposal =
                calculator::by_value(current, value, goal, ready, self.tolerances()).map_err(fail)?;
            return Ok(found(proposal, label, false));
        }
        let why = format!("unknown metric source type {:?}", spec.type_);
        Err(Unusable { reason: "InvalidMetricSourceType", summary: why.clone(), why })
    }

    fn by_pods(
        &self,
        current: i32,
        selected: &Selected,
        samples: Samples,
        goal: &Goal,
        cpu: bool,
    ) -> Result<Proposal, String> {
        calculator::ready(&selected.pods)?;
        calculator::by_pods(current, &selected.pods, samples, goal, cpu, self.tolerances(), self.now)
    }

    /// A resource of the pods or of one of their containers: the proposal, and how messages call the metric.
    async fn resource(
        &self,
        metrics: &Metrics<'_>,
        resource: &str,
        container: Option<&str>,
        target: &MetricTarget,
        current: i32,
        selected: &Selected,
    ) -> Result<(Proposal, String), Usage> {
        let average = target.average_value.as_ref();
        let what = if average.is_some() { "usage" } else { "utilization" };
        let fail = |why: String| Usage { summary: format!("failed to get {resource} {what}: {why}"), why };
        if average.is_none() && target.average_utilization.is_none() {
            let why = "invalid resource metric source: neither an average utilization target nor an average value (usage) target was set";
            return Err(fail(why.to_owned()));
        }
        let samples = metrics.resource(resource, &selected.text, container).await;
        let samples =
            samples.map_err(|e| fail(format!("unable to get metrics for resource {resource}: {e}")))?;
        let (goal, metric) = match (average, target.average_utilization) {
            (None, Some(percent)) => {
                let requests = calculator::requests(&selected.pods, container, resource).map_err(fail)?;
                let metric = format!("{resource} resource utilization (percentage of request)");
                (Goal::Utilization(percent, requests), metric)
            }
            _ => (Goal::Average(amount(average)), format!("{resource} resource")),
        };
        let cpu = resource == "cpu";
        let proposal = self.by_pods(current, selected, samples, &goal, cpu).map_err(fail)?;
        Ok((proposal, metric))
    }

    async fn object_value(
        &self,
        metrics: &Metrics<'_>,
        source: &k8s_openapi::api::autoscaling::v2::ObjectMetricSource,
    ) -> Result<i64, String> {
        let object = &source.described_object;
        let client = &self.controller.context.client;
        let asked = async {
            let resource = self.controller.scales.resource(client, self.target(object)).await;
            let resource = resource.map_err(|e| e.to_string())?;
            metrics.object(&source.metric, &resource, &object.name).await
        };
        let value: Result<i64, String> = asked.await;
        value.map_err(|e| {
            let (ns, metric) = (&self.key.namespace, &source.metric.name);
            format!("unable to get metric {metric}: {} on {ns} {}/{e}", object.kind, object.name)
        })
    }
}

/// The target's pods, and the selector's text.
struct Selected {
    text: String,
    pods: Vec<Arc<Pod>>,
}

/// Why a resource metric could not be used, before the source names it.
struct Usage {
    why: String,
    summary: String,
}

impl Usage {
    fn named(self, reason: &'static str) -> Unusable {
        Unusable { reason, why: self.why, summary: self.summary }
    }
}

fn amount(quantity: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity>) -> i64 {
    quantity.map_or(0, |q| millis(&q.0))
}
