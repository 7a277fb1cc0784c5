//! Pure decisions of the disruption controller: how many pods are healthy and how many may go.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::int_or_percent::{Round, resolve};
use crate::ownership::name;
use crate::pods;

/// An evicted pod that is not being deleted after so long counts as healthy again.
const DELETION_TIMEOUT: SignedDuration = SignedDuration::from_mins(2);
/// A pod that was to be disrupted and is not being deleted after so long is no longer said to be.
const STALE: SignedDuration = SignedDuration::from_mins(2);
const ALLOWED: &str = "DisruptionAllowed";

/// Whether the number of pods comes from their owners' scales.
pub(super) fn asks_owners(budget: &PodDisruptionBudget) -> bool {
    budget.spec.as_ref().is_some_and(|s| {
        s.max_unavailable.is_some() || matches!(s.min_available, Some(IntOrString::String(_)))
    })
}

/// Evictions under way: those that are still believed, those that came to nothing, and when to look again.
pub(super) struct Disrupted {
    pub(super) pods: BTreeMap<String, Time>,
    pub(super) not_deleted: Vec<Arc<Pod>>,
    pub(super) recheck: Option<Duration>,
}

/// What is left of `status.disruptedPods`.
pub(super) fn disrupted(budget: &PodDisruptionBudget, pods: &[Arc<Pod>], now: Timestamp) -> Disrupted {
    let mut result = Disrupted { pods: BTreeMap::new(), not_deleted: Vec::new(), recheck: None };
    let Some(listed) = budget.status.as_ref().and_then(|s| s.disrupted_pods.as_ref()) else { return result };
    for pod in pods.iter().filter(|p| p.metadata.deletion_timestamp.is_none()) {
        let Some(since) = listed.get(name(&pod.metadata)) else { continue };
        let left = DELETION_TIMEOUT - now.duration_since(since.0);
        if left < SignedDuration::ZERO {
            result.not_deleted.push(pod.clone());
            continue;
        }
        let left = left.unsigned_abs() + Duration::from_millis(1);
        result.recheck = Some(result.recheck.map_or(left, |r| r.min(left)));
        result.pods.insert(name(&pod.metadata).to_owned(), since.clone());
    }
    result
}

/// The status; `scale` is the sum of the owners' scales where [`asks_owners`].
pub(super) fn status(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    scale: i32,
    disrupted: &BTreeMap<String, Time>,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    let spec = budget.spec.as_ref();
    let (max, min) =
        (spec.and_then(|s| s.max_unavailable.as_ref()), spec.and_then(|s| s.min_available.as_ref()));
    let expected = if asks_owners(budget) { scale } else { i32::try_from(pods.len()).unwrap_or(i32::MAX) };
    let desired = match max {
        Some(_) => (expected - resolve(max, expected, Round::Up)).max(0),
        None => resolve(min, expected, Round::Up),
    };
    let healthy = pods.iter().filter(|p| {
        p.metadata.deletion_timestamp.is_none()
            && !disrupted.contains_key(name(&p.metadata))
            && pods::is_ready(p)
    });
    let healthy = i32::try_from(healthy.count()).unwrap_or(i32::MAX);
    // A budget that covers no pod yet allows nothing: it may not have seen its first pods.
    let allowed = if expected > 0 { (healthy - desired).max(0) } else { 0 };
    let old = budget.status.clone().unwrap_or_default();
    let generation = budget.metadata.generation;
    let (value, reason) =
        if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let mut conditions = old.conditions.unwrap_or_default();
    set_condition(&mut conditions, value, reason, "", generation, now);
    PodDisruptionBudgetStatus {
        conditions: Some(conditions),
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        expected_pods: Some(expected),
        disruptions_allowed: Some(allowed),
        disrupted_pods: (!disrupted.is_empty()).then(|| disrupted.clone()),
        observed_generation: generation,
    }
}

/// The status when the numbers cannot be found: nothing may go.
pub(super) fn fail_safe(
    budget: &PodDisruptionBudget,
    why: &str,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    let mut status = budget.status.clone().unwrap_or_default();
    status.disruptions_allowed = Some(0);
    let mut conditions = status.conditions.take().unwrap_or_default();
    set_condition(&mut conditions, "False", "SyncFailed", why, status.observed_generation, now);
    for number in [&mut status.current_healthy, &mut status.desired_healthy, &mut status.expected_pods] {
        number.get_or_insert(0);
    }
    status.conditions = Some(conditions);
    status
}

fn set_condition(
    list: &mut Vec<Condition>,
    status: &str,
    reason: &str,
    message: &str,
    generation: Option<i64>,
    now: Timestamp,
) {
    let mut new = Condition {
        type_: ALLOWED.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: generation,
        last_transition_time: Time(now),
    };
    match list.iter_mut().find(|c| c.type_ == ALLOWED) {
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time = old.last_transition_time.clone();
            }
            *old = new;
        }
        None => list.push(new),
    }
}

/// How long the pod may still say that it is to be disrupted; `None`: it does not, or rightly so.
pub(super) fn until_stale(pod: &Pod, now: Timestamp) -> Option<Duration> {
    let condition = pods::condition(pod, "DisruptionTarget").filter(|c| c.status == "True")?;
    // What a kubelet announced may take as long as the pod's grace period.
    let by_kubelet = condition.reason.as_deref() == Some("TerminationByKubelet");
    if by_kubelet || pod.metadata.deletion_timestamp.is_some() || pods::is_terminal(pod) {
        return None;
    }
    let since = condition.last_transition_time.as_ref().map_or(now, |t| t.0);
    Some((STALE - now.duration_since(since)).max(SignedDuration::ZERO).unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn ready(n: usize) -> Vec<Arc<Pod>> {
        let pod = |i| {
            let pod = json!({"metadata": {"name": format!("p{i}")}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
            Arc::new(serde_json::from_value(pod).expect("pod"))
        };
        (0..n).map(pod).collect()
    }

    fn check(spec: Value, pods: usize, scale: i32, want: [i32; 4]) {
        let budget: PodDisruptionBudget =
            serde_json::from_value(json!({"metadata": {"generation": 3}, "spec": spec})).expect("budget");
        let s = status(&budget, &ready(pods), scale, &BTreeMap::new(), Timestamp::UNIX_EPOCH);
        let got = [s.current_healthy, s.desired_healthy, s.expected_pods, s.disruptions_allowed];
        assert_eq!(got, want.map(Some), "{spec}");
        let condition = &s.conditions.expect("conditions")[0];
        assert_eq!(condition.status, if want[3] > 0 { "True" } else { "False" });
        assert_eq!(s.observed_generation, Some(3));
    }

    #[test]
    fn percentages_are_of_the_owners_scale_and_rounded_up() {
        // healthy, desired, expected, allowed
        check(json!({"minAvailable": 2}), 3, 0, [3, 2, 3, 1]);
        check(json!({"minAvailable": "30%"}), 3, 10, [3, 3, 10, 0]);
        check(json!({"minAvailable": "25%"}), 10, 10, [10, 3, 10, 7]);
        check(json!({"maxUnavailable": 1}), 3, 3, [3, 2, 3, 1]);
        check(json!({"maxUnavailable": "34%"}), 3, 3, [3, 1, 3, 2]);
        check(json!({"maxUnavailable": 5}), 3, 3, [3, 0, 3, 3]);
        check(json!({"minAvailable": 0}), 0, 0, [0, 0, 0, 0]);
    }

    #[test]
    fn an_eviction_is_believed_for_two_minutes() {
        let budget: PodDisruptionBudget = serde_json::from_value(json!({"status": {"disruptedPods": {
            "p0": "2026-01-01T00:00:00Z", "p1": "2026-01-01T00:02:00Z", "gone": "2026-01-01T00:02:00Z"}}}))
        .expect("budget");
        let d = disrupted(&budget, &ready(3), "2026-01-01T00:03:00Z".parse().expect("time"));
        assert_eq!(d.pods.keys().collect::<Vec<_>>(), ["p1"]);
        assert_eq!(d.not_deleted.iter().map(|p| name(&p.metadata)).collect::<Vec<_>>(), ["p0"]);
        assert_eq!(d.recheck, Some(Duration::from_millis(60_001)));
    }
}
