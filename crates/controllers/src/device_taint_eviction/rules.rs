//! What the status of a DeviceTaintRule says: how many pods it makes leave, or would.
use std::collections::BTreeSet;
use std::time::Duration;

use client::Patch;
use jiff::Timestamp;
use k8s_openapi::api::resource::v1::{DeviceRequestAllocationResult, DeviceTaint};
use k8s_openapi::api::resource::v1beta2::DeviceTaintRule;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde_json::json;

use super::{Controller, NO_EXECUTE, results};
use crate::ownership::{namespace, uid};
use crate::pods;
use crate::runner::{Failure, Outcome};

/// The condition's type.
const IN_PROGRESS: &str = "EvictionInProgress";
/// A condition is written anew at most this often, as long as the rule stays as it is.
pub(super) const PERIOD: Duration = Duration::from_secs(10);

/// Whether the rule is about the device. Without a selector it is about none.
pub(super) fn is_selected(rule: &DeviceTaintRule, device: &DeviceRequestAllocationResult) -> bool {
    selects(rule, &device.driver, &device.pool, &device.device)
}

fn selects(rule: &DeviceTaintRule, driver: &str, pool: &str, device: &str) -> bool {
    let is = |wanted: &Option<String>, name: &str| wanted.as_ref().is_none_or(|w| w == name);
    let selector = rule.spec.device_selector.as_ref();
    selector.is_some_and(|s| is(&s.driver, driver) && is(&s.pool, pool) && is(&s.device, device))
}

/// The rule's taint, as drivers write theirs.
pub(super) fn taint_of(rule: &DeviceTaintRule) -> DeviceTaint {
    let taint = rule.spec.taint.clone();
    DeviceTaint { effect: taint.effect, key: taint.key, time_added: taint.time_added, value: taint.value }
}

/// What a rule is about.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    /// Devices that drivers have.
    published: usize,
    /// Devices that claims have.
    allocated: usize,
    /// Pods that have to go.
    pods: usize,
    /// Their namespaces.
    namespaces: usize,
    /// Pods that went.
    evicted: u64,
}

fn number(count: impl Into<u64>, one: &str, more: &str) -> String {
    match count.into() {
        1 => format!("1 {one}"),
        n => format!("{n} {more}"),
    }
}

/// Status, reason and message of the condition.
fn say(effect: &str, counts: Counts) -> (&'static str, &'static str, String) {
    let of = |count: usize, one: &str, more: &str| number(count as u64, one, more);
    let (status, reason, mut message) = match effect {
        NO_EXECUTE if counts.pods > 0 => {
            let pods = of(counts.pods, "pod needs to be evicted", "pods need to be evicted");
            let namespaces = of(counts.namespaces, "namespace", "different namespaces");
            ("True", "PodsPendingEviction", format!("{pods} in {namespaces}."))
        }
        NO_EXECUTE if counts.evicted > 0 => ("False", "Completed", String::new()),
        NO_EXECUTE => ("False", "NotStarted", String::new()),
        "None" => {
            let published = of(counts.published, "published device selected", "published devices selected");
            let allocated = of(counts.allocated, "allocated device selected", "allocated devices selected");
            let pods = of(counts.pods, "pod would be evicted", "pods would be evicted");
            let namespaces = of(counts.namespaces, "namespace", "different namespaces");
            let message = format!(
                "{published}. {allocated}. {pods} in {namespaces} if the effect was NoExecute. This information will not be updated \
                 again. Recreate the DeviceTaintRule to trigger an update."
            );
            ("False", "NoEffect", message)
        }
        _ => ("False", "OtherEffect", "Eviction only happens for the NoExecute effect.".to_owned()),
    };
    if counts.evicted > 0 {
        let gone = number(counts.evicted, "pod", "pods");
        let space = if message.is_empty() { "" } else { " " };
        message = format!("{message}{space}{gone} evicted since starting the controller.");
    }
    (status, reason, message)
}

impl Controller {
    /// Says in a rule's status how it is doing.
    pub(super) async fn sync_rule(&self, of: &str) -> Result<Outcome, Failure> {
        let Some(rule) = self.rules.as_ref().and_then(|rules| rules.get("", of)) else {
            return Ok(Outcome::Settled);
        };
        let now = self.context.clock.now();
        let conditions = rule.status.as_ref().and_then(|s| s.conditions.as_ref());
        let old = conditions.and_then(|list| list.iter().find(|c| c.type_ == IN_PROGRESS));
        let current = old.filter(|c| c.observed_generation == rule.metadata.generation);
        if let Some(condition) = current {
            let age = now.duration_since(condition.last_transition_time.0).unsigned_abs();
            if age < PERIOD {
                return Ok(Outcome::After(PERIOD - age));
            }
        }
        let (status, reason, message) = say(&rule.spec.taint.effect, self.counts(&rule, now));
        let same = |c: &Condition| c.status == status && c.reason == reason && c.message == message;
        if current.is_some_and(same) {
            return Ok(Outcome::Settled);
        }
        let condition = Condition {
            last_transition_time: Time(now),
            message,
            observed_generation: rule.metadata.generation,
            reason: reason.to_owned(),
            status: status.to_owned(),
            type_: IN_PROGRESS.to_owned(),
        };
        let patch = json!({"metadata": {"uid": rule.metadata.uid}, "status": {"conditions": [condition]}});
        let client = &self.context.client;
        client.patch_status::<DeviceTaintRule>("", of, &Patch::Strategic(patch)).await?;
        Ok(Outcome::Settled)
    }

    fn counts(&self, rule: &DeviceTaintRule, now: Timestamp) -> Counts {
        let effect = rule.spec.taint.effect.as_str();
        let evicted = self.evicted.lock().get(uid(&rule.metadata)).copied().unwrap_or(0);
        let mut counts = Counts { evicted, ..Counts::default() };
        // A rule without effect is tried out as if it had one.
        let mut trial = None;
        if effect == "None" {
            let mut other = rule.clone();
            NO_EXECUTE.clone_into(&mut other.spec.taint.effect);
            (counts.published, counts.allocated) = self.devices_of(rule);
            trial = Some(other);
        } else if effect != NO_EXECUTE {
            return counts;
        }
        let mut namespaces = BTreeSet::new();
        for pod in self.pods.list().iter().filter(|p| !pods::is_deleting(p)) {
            let eviction = self.eviction(pod, now, trial.as_ref());
            if eviction.is_some_and(|e| e.rules.iter().any(|(_, id)| id == uid(&rule.metadata))) {
                counts.pods += 1;
                namespaces.insert(namespace(&pod.metadata).to_owned());
            }
        }
        counts.namespaces = namespaces.len();
        counts
    }

    /// How many devices of drivers and of claims the rule is about.
    fn devices_of(&self, rule: &DeviceTaintRule) -> (usize, usize) {
        let slices = self.slices.list();
        let newest = |driver: &str, pool: &str| {
            let of = slices.iter().filter(|s| s.spec.driver == driver && s.spec.pool.name == pool);
            of.map(|s| s.spec.pool.generation).max()
        };
        let current = slices
            .iter()
            .filter(|s| newest(&s.spec.driver, &s.spec.pool.name) == Some(s.spec.pool.generation));
        let published = current.flat_map(|s| s.spec.devices.iter().flatten().map(move |d| (s, d)));
        let published =
            published.filter(|(s, d)| selects(rule, &s.spec.driver, &s.spec.pool.name, &d.name)).count();
        let claims = self.claims.list();
        let allocated = claims.iter().flat_map(|c| results(c)).filter(|r| is_selected(rule, r)).count();
        (published, allocated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn the_condition_counts_devices_and_pods() {
        let counts = |published, allocated, pods, namespaces, evicted| Counts {
            published,
            allocated,
            pods,
            namespaces,
            evicted,
        };
        let lines: Vec<String> = [
            say("NoExecute", counts(0, 0, 1, 1, 0)),
            say("NoExecute", counts(0, 0, 5, 2, 1)),
            say("NoExecute", counts(0, 0, 0, 0, 2)),
            say("NoExecute", counts(0, 0, 0, 0, 0)),
            say("NoSchedule", counts(0, 0, 0, 0, 0)),
            say("None", counts(1, 1, 1, 1, 0)),
            say("None", counts(4, 2, 0, 0, 0)),
        ]
        .iter()
        .map(|(status, reason, message)| format!("{status} {reason}: {message}\n"))
        .collect();
        expect![[r#"
            True PodsPendingEviction: 1 pod needs to be evicted in 1 namespace.
            True PodsPendingEviction: 5 pods need to be evicted in 2 different namespaces. 1 pod evicted since starting the controller.
            False Completed: 2 pods evicted since starting the controller.
            False NotStarted: 
            False OtherEffect: Eviction only happens for the NoExecute effect.
            False NoEffect: 1 published device selected. 1 allocated device selected. 1 pod would be evicted in 1 namespace if the effect was NoExecute. This information will not be updated again. Recreate the DeviceTaintRule to trigger an update.
            False NoEffect: 4 published devices selected. 2 allocated devices selected. 0 pods would be evicted in 0 different namespaces if the effect was NoExecute. This information will not be updated again. Recreate the DeviceTaintRule to trigger an update.
        "#]]
        .assert_eq(&lines.concat());
    }
}
