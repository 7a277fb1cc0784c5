//! Pure arithmetic of the autoscaler: how many replicas bring a metric to its target.
//!
//! Pods that do not report count against the change: as fully used when it would shrink, as idle when it would grow. Pods
//! that only just started count as idle when it would grow, and not at all otherwise.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::ownership::name;
use crate::pods;

/// So long after its start a pod's CPU counts only when it was ready for a whole window of the metric.
const CPU_INITIALIZATION: SignedDuration = SignedDuration::from_mins(5);
/// A pod that has not been ready later than so long after its start has never been ready.
const FIRST_READINESS: SignedDuration = SignedDuration::from_secs(30);

/// A pod's value of a metric, in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) value: i64,
    pub(super) at: Timestamp,
    /// The time the value is an average of.
    pub(super) window: SignedDuration,
}

/// Samples by the pods' names.
pub(super) type Samples = BTreeMap<String, Sample>;

/// Ratios this near to one change nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tolerances {
    pub(super) down: f64,
    pub(super) up: f64,
}

impl Tolerances {
    fn allow(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// What a metric is to be brought to.
pub(super) enum Goal {
    /// Percent of what the pods request, in thousandths by their names.
    Utilization(i32, BTreeMap<String, i64>),
    /// The average, in thousandths.
    Average(i64),
}

/// A number of replicas and what it was found from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Proposal {
    pub(super) replicas: i32,
    pub(super) utilization: Option<i32>,
    /// In thousandths.
    pub(super) value: i64,
}

struct Usage {
    ratio: f64,
    utilization: Option<i32>,
    average: i64,
}

impl Goal {
    fn usage(&self, samples: &Samples) -> Result<Usage, String> {
        match self {
            Goal::Average(target) => {
                let total = sum(samples.values().map(|s| s.value));
                let average = total / i64::try_from(samples.len().max(1)).unwrap_or(i64::MAX);
                Ok(Usage { ratio: average as f64 / *target as f64, utilization: None, average })
            }
            Goal::Utilization(target, requests) => {
                let known = samples.iter().filter_map(|(pod, s)| Some((s.value, *requests.get(pod)?)));
                let (used, requested, n) = known.fold((0_i64, 0_i64, 0_i64), |(u, r, n), (used, asked)| {
                    (u.saturating_add(used), r.saturating_add(asked), n + 1)
                });
                if requested == 0 {
                    return Err("no metrics returned matched known pods".to_owned());
                }
                let utilization = i32::try_from(used.saturating_mul(100) / requested).unwrap_or(i32::MAX);
                let ratio = f64::from(utilization) / f64::from(*target);
                Ok(Usage { ratio, utilization: Some(utilization), average: used / n })
            }
        }
    }

    /// What a pod without a sample counts as when the target would shrink.
    fn in_use(&self, pod: &str) -> i64 {
        match self {
            Goal::Average(target) => *target,
            Goal::Utilization(target, requests) => {
                requests.get(pod).copied().unwrap_or(0).saturating_mul(i64::from((*target).max(100))) / 100
            }
        }
    }
}

#[derive(Default)]
struct Groups {
    ready: i32,
    unready: BTreeSet<String>,
    missing: BTreeSet<String>,
    ignored: BTreeSet<String>,
}

fn group(pods: &[Arc<Pod>], samples: &Samples, cpu: bool, now: Timestamp) -> Groups {
    let mut groups = Groups::default();
    for pod in pods {
        let pod_name = name(&pod.metadata);
        let into = if pod.metadata.deletion_timestamp.is_some() || pods::phase(pod) == "Failed" {
            &mut groups.ignored
        } else if pods::phase(pod) == "Pending" {
            &mut groups.unready
        } else {
            match samples.get(pod_name) {
                None => &mut groups.missing,
                Some(sample) if cpu && is_warming_up(pod, sample, now) => &mut groups.unready,
                Some(_) => {
                    groups.ready += 1;
                    continue;
                }
            }
        };
        into.insert(pod_name.to_owned());
    }
    groups
}

/// Whether the CPU it used says nothing about its work yet.
fn is_warming_up(pod: &Pod, sample: &Sample, now: Timestamp) -> bool {
    let start = pod.status.as_ref().and_then(|s| s.start_time.as_ref());
    let (Some(ready), Some(start)) = (pods::condition(pod, "Ready"), start) else { return true };
    let is_unready = ready.status == "False";
    let since = ready.last_transition_time.as_ref().map_or(start.0, |t| t.0);
    if start.0 + CPU_INITIALIZATION > now {
        is_unready || sample.at < since + sample.window
    } else {
        is_unready && start.0 + FIRST_READINESS > since
    }
}

/// The replicas that bring the pods' metric to `goal`.
pub(super) fn by_pods(
    current: i32,
    pods: &[Arc<Pod>],
    mut samples: Samples,
    goal: &Goal,
    cpu: bool,
    tolerances: Tolerances,
    now: Timestamp,
) -> Result<Proposal, String> {
    let groups = group(pods, &samples, cpu, now);
    samples.retain(|pod, _| !groups.ignored.contains(pod) && !groups.unready.contains(pod));
    if samples.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".to_owned());
    }
    let usage = goal.usage(&samples)?;
    let found = |replicas| Proposal { replicas, utilization: usage.utilization, value: usage.average };
    let fill_unready = !groups.unready.is_empty() && usage.ratio > 1.0;
    if !fill_unready && groups.missing.is_empty() {
        let same = tolerances.allow(usage.ratio);
        return Ok(found(if same { current } else { scaled(usage.ratio, groups.ready) }));
    }
    let mut put = |pod: &String, value| {
        samples.insert(pod.clone(), Sample { value, at: now, window: SignedDuration::ZERO });
    };
    for pod in &groups.missing {
        if usage.ratio < 1.0 {
            put(pod, goal.in_use(pod));
        } else if usage.ratio > 1.0 {
            put(pod, 0);
        }
    }
    if fill_unready {
        groups.unready.iter().for_each(|pod| put(pod, 0));
    }
    let ratio = goal.usage(&samples)?.ratio;
    let turned = (usage.ratio < 1.0 && ratio > 1.0) || (usage.ratio > 1.0 && ratio < 1.0);
    if tolerances.allow(ratio) || turned {
        return Ok(found(current));
    }
    let replicas = scaled(ratio, i32::try_from(samples.len()).unwrap_or(i32::MAX));
    let against = (ratio < 1.0 && replicas > current) || (ratio > 1.0 && replicas < current);
    Ok(found(if against { current } else { replicas }))
}

/// The replicas for one value of something else than the pods, which `ready` of them share.
pub(super) fn by_value(
    current: i32,
    value: i64,
    target: i64,
    ready: Result<i32, String>,
    tolerances: Tolerances,
) -> Result<Proposal, String> {
    let ratio = value as f64 / target as f64;
    let replicas = if current == 0 {
        scaled(ratio, 1)
    } else if tolerances.allow(ratio) {
        current
    } else {
        scaled(ratio, ready.map_err(|why| format!("unable to calculate ready pods: {why}"))?)
    };
    Ok(Proposal { replicas, utilization: None, value })
}

/// The replicas of which each has its share of one value.
pub(super) fn by_share(replicas: i32, value: i64, target: i64, tolerances: Tolerances) -> Proposal {
    let ratio = value as f64 / (target as f64 * f64::from(replicas));
    let next = if tolerances.allow(ratio) { replicas } else { (value as f64 / target as f64).ceil() as i32 };
    let share = (value as f64 / f64::from(replicas)).ceil() as i64;
    Proposal { replicas: next, utilization: None, value: share }
}

fn scaled(ratio: f64, pods: i32) -> i32 {
    (ratio * f64::from(pods)).ceil() as i32
}

/// How many of the pods run and are ready.
pub(super) fn ready(pods: &[Arc<Pod>]) -> Result<i32, String> {
    if pods.is_empty() {
        return Err("no pods returned by selector while calculating replica count".to_owned());
    }
    let ready = pods.iter().filter(|p| pods::phase(p) == "Running" && pods::is_ready(p)).count();
    Ok(i32::try_from(ready).unwrap_or(i32::MAX))
}

/// What each pod, or its container of that name, requests of a resource, in thousandths.
pub(super) fn requests(
    pods: &[Arc<Pod>],
    container: Option<&str>,
    resource: &str,
) -> Result<BTreeMap<String, i64>, String> {
    let mut all = BTreeMap::new();
    for pod in pods {
        let Some(spec) = &pod.spec else { continue };
        let pod_name = name(&pod.metadata);
        let of_pod = spec.resources.as_ref().and_then(|r| r.requests.as_ref()?.get(resource));
        if let (Some(request), None) = (of_pod, container) {
            all.insert(pod_name.to_owned(), millis(&request.0));
            continue;
        }
        let sidecars =
            spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
        let mut sum = 0_i64;
        for c in spec.containers.iter().chain(sidecars).filter(|c| container.is_none_or(|n| n == c.name)) {
            let request =
                |c: &Container| Some(millis(&c.resources.as_ref()?.requests.as_ref()?.get(resource)?.0));
            let request = request(c).ok_or_else(|| {
                format!("missing request for {resource} in container {} of Pod {pod_name}", c.name)
            })?;
            sum = sum.saturating_add(request);
        }
        all.insert(pod_name.to_owned(), sum);
    }
    Ok(all)
}

/// The sum of what others measured: too much is as much as can be.
pub(super) fn sum(values: impl Iterator<Item = i64>) -> i64 {
    values.fold(0, i64::saturating_add)
}

/// A quantity in thousandths; malformed text counts as zero.
pub(super) fn millis(text: &str) -> i64 {
    text.parse::<api::quantity::Quantity>().map_or(0, |q| q.millis())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOW: &str = "2026-01-01T01:00:00Z";

    /// Pods in a state of a letter each: ready, warming up, pending, failed; with what they use, or nothing.
    fn check(
        current: i32,
        letters: &str,
        used: &[Option<i64>],
        goal: &dyn Fn(BTreeMap<String, i64>) -> Goal,
        want: i32,
    ) {
        let now: Timestamp = NOW.parse().expect("time");
        let pod = |(i, letter): (usize, char)| {
            let (phase, ready, start) = match letter {
                'r' => ("Running", "True", "2026-01-01T00:00:00Z"),
                'w' => ("Running", "False", "2026-01-01T00:59:00Z"),
                'p' => ("Pending", "False", "2026-01-01T00:59:00Z"),
                _ => ("Failed", "False", "2026-01-01T00:00:00Z"),
            };
            let pod = json!({"metadata": {"name": i.to_string()},
                "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]},
                "status": {"phase": phase, "startTime": start, "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": start}]}});
            Arc::new(serde_json::from_value::<Pod>(pod).expect("pod"))
        };
        let pods: Vec<_> = letters.chars().enumerate().map(pod).collect();
        let sample = |value| Sample { value, at: now, window: SignedDuration::from_secs(30) };
        let samples =
            used.iter().enumerate().filter_map(|(i, v)| Some((i.to_string(), sample((*v)?)))).collect();
        let goal = goal(requests(&pods, None, "cpu").expect("requests"));
        let tolerances = Tolerances { down: 0.1, up: 0.1 };
        let found = by_pods(current, &pods, samples, &goal, true, tolerances, now).expect("metrics");
        assert_eq!(found.replicas, want, "{letters} {used:?}");
    }

    #[test]
    fn replicas_follow_the_ratio_and_pods_that_say_nothing_count_against_the_change() {
        let half = |requests| Goal::Utilization(50, requests);
        check(3, "rrr", &[Some(1000), Some(1000), Some(1000)], &half, 6);
        check(3, "rrr", &[Some(540), Some(540), Some(540)], &half, 3);
        check(4, "rrrr", &[Some(100), Some(100), Some(100), Some(100)], &half, 1);
        // A missing pod counts as idle on the way up, as fully used on the way down.
        check(3, "rrr", &[Some(1000), Some(1000), None], &half, 4);
        check(3, "rrr", &[Some(250), Some(250), None], &half, 3);
        // A pod that warms up is idle on the way up, and not there on the way down; a failed one is never there.
        check(3, "rrw", &[Some(1000), Some(1000), Some(5000)], &half, 4);
        check(3, "rrp", &[Some(100), Some(100), None], &half, 1);
        check(3, "rrf", &[Some(1000), Some(1000), Some(5000)], &half, 4);
        let average = |_| Goal::Average(20_000);
        check(2, "rr", &[Some(40_000), Some(20_000)], &average, 3);
        check(2, "rr", &[Some(40_000), None], &average, 2);
    }

    #[test]
    fn values_are_for_all_or_shared() {
        let tolerances = Tolerances { down: 0.1, up: 0.1 };
        let all =
            |current, value| by_value(current, value, 10_000, Ok(current), tolerances).map(|p| p.replicas);
        assert_eq!(
            [all(3, 20_000), all(3, 10_900), all(0, 25_000), all(4, 5_000)],
            [Ok(6), Ok(3), Ok(3), Ok(2)]
        );
        let shared = by_share(2, 50_000, 10_000, tolerances);
        assert_eq!((shared.replicas, shared.value), (5, 25_000));
        assert_eq!(by_share(5, 52_000, 10_000, tolerances).replicas, 5);
    }
}
