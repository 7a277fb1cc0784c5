//! Binding conditions: devices that are made ready only when a claim has got them, by a controller outside that says in the
//! claim's status how far it is.
//! Rule: <https://kubernetes.io/docs/concepts/scheduling-eviction/dynamic-resource-allocation/#device-binding-conditions>
use jiff::Timestamp;
use k8s_openapi::api::resource::v1::{AllocatedDeviceStatus, DeviceRequestAllocationResult, ResourceClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::allocation;

/// How far the devices of a claim are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// Pods may use them.
    Ready,
    /// Some condition is not met yet.
    Waiting,
    /// They will not be ready; in words.
    Failed(String),
}

fn results(claim: &ResourceClaim) -> impl Iterator<Item = &DeviceRequestAllocationResult> {
    let devices = allocation(claim).and_then(|a| a.devices.as_ref());
    devices.into_iter().flat_map(|d| d.results.iter().flatten())
}

fn conditions_of<'a>(
    claim: &'a ResourceClaim,
    result: &DeviceRequestAllocationResult,
) -> Option<&'a [Condition]> {
    let is = |s: &&AllocatedDeviceStatus| {
        s.driver == result.driver && s.pool == result.pool && s.device == result.device
    };
    let status = claim.status.as_ref()?.devices.iter().flatten().find(is)?;
    Some(status.conditions.as_deref().unwrap_or_default())
}

/// Whether the claim has devices that have conditions.
pub(crate) fn has_conditions(claim: &ResourceClaim) -> bool {
    results(claim).any(|r| r.binding_conditions.as_ref().is_some_and(|c| !c.is_empty()))
}

/// How far the devices of a claim are.
pub(crate) fn readiness(claim: &ResourceClaim) -> Readiness {
    if allocation(claim).is_none() {
        return Readiness::Waiting;
    }
    for result in results(claim) {
        let Some(wanted) = result.binding_conditions.as_ref().filter(|c| !c.is_empty()) else { continue };
        let Some(are) = conditions_of(claim, result) else { return Readiness::Waiting };
        let is_true = |kind: &String| are.iter().find(|c| c.type_ == *kind && c.status == "True");
        if let Some(failed) = result.binding_failure_conditions.iter().flatten().find_map(is_true) {
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            return Readiness::Failed(format!(
                "claim {name} binding failed: reason={}, message={:?}",
                failed.reason, failed.message
            ));
        }
        if !wanted.iter().all(|kind| is_true(kind).is_some()) {
            return Readiness::Waiting;
        }
    }
    Readiness::Ready
}

/// Whether the claim's devices are to be given back: they failed, or were given before `since` and are not ready yet.
pub(crate) fn is_lost(claim: &ResourceClaim, since: Timestamp) -> bool {
    match readiness(claim) {
        _ if !has_conditions(claim) => false,
        Readiness::Ready => false,
        Readiness::Failed(_) => true,
        Readiness::Waiting => {
            let given = allocation(claim).and_then(|a| a.allocation_timestamp.as_ref());
            given.is_some_and(|given| given.0 < since)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check(conditions: Value, want: Readiness, lost: [bool; 2]) {
        let result = json!({"request": "r", "driver": "d", "pool": "p", "device": "x",
            "bindingConditions": ["Attached", "Trained"], "bindingFailureConditions": ["Broken"]});
        let status = json!({"devices": [{"driver": "d", "pool": "p", "device": "x", "conditions": conditions}],
            "allocation": {"allocationTimestamp": "2026-01-01T00:00:00Z", "devices": {"results": [result]}}});
        let claim = json!({"metadata": {"name": "c"}, "spec": {}, "status": status});
        let claim: ResourceClaim = serde_json::from_value(claim).unwrap();
        let at = ["2025-12-31T23:59:00Z", "2026-01-01T00:10:00Z"];
        assert_eq!((readiness(&claim), at.map(|t| is_lost(&claim, t.parse().unwrap()))), (want, lost));
    }

    #[test]
    fn devices_are_ready_when_all_conditions_are_true_and_none_of_failure_is() {
        let now = "2026-01-01T00:00:00Z";
        let is = |kind: &str, status: &str| json!({"type": kind, "status": status, "reason": "R", "message": "m", "lastTransitionTime": now});
        check(json!([]), Readiness::Waiting, [false, true]);
        check(json!([is("Attached", "True")]), Readiness::Waiting, [false, true]);
        check(json!([is("Attached", "True"), is("Trained", "Unknown")]), Readiness::Waiting, [false, true]);
        let both = [is("Attached", "True"), is("Trained", "True")];
        check(json!(both), Readiness::Ready, [false, false]);
        check(json!([both[0], both[1], is("Broken", "False")]), Readiness::Ready, [false, false]);
        let failed = Readiness::Failed("claim c binding failed: reason=R, message=\"m\"".to_owned());
        check(json!([both[0], both[1], is("Broken", "True")]), failed, [true, true]);
    }

    #[test]
    fn a_claim_without_conditions_is_ready() {
        let results = json!([{"request": "r", "driver": "d", "pool": "p", "device": "x"}]);
        let claim = json!({"metadata": {"name": "c"}, "spec": {}, "status": {"allocation": {"devices": {"results": results}}}});
        let claim: ResourceClaim = serde_json::from_value(claim).unwrap();
        assert_eq!((readiness(&claim), has_conditions(&claim)), (Readiness::Ready, false));
        assert!(!is_lost(&claim, Timestamp::MAX));
    }
}
