//! Device taint eviction: pods whose claims hold a device with a NoExecute taint that the claim does not tolerate are deleted, at
//! once or when the toleration ends.
//!
//! Rule: Kubernetes documentation, "Dynamic Resource Allocation" (device taints and tolerations). Taints come from drivers, in their
//! slices, and from DeviceTaintRules where the API has them. The time runs from the taint's `timeAdded`. How a rule is doing is said in
//! its status ([`rules`]).
mod rules;

use std::collections::{BTreeSet, HashMap, HashSet};

use client::events::{EventType, reference};
use client::queue::WorkQueue;
use client::{Cache, Change};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{
    DeviceRequestAllocationResult, DeviceTaint, DeviceToleration, ResourceClaim, ResourceSlice,
};
use k8s_openapi::api::resource::v1beta2::DeviceTaintRule;
use parking_lot::Mutex;

use self::rules::{PERIOD, is_selected, taint_of};
use crate::device_claims::{assigned, claim_names, reserved, wanted};
use crate::ownership::{is_controlled_by, name, namespace, uid};
use crate::pods;
use crate::runner::{Context, Failure, ObjectKey, Outcome, Reconcile, Runner};

const NO_EXECUTE: &str = "NoExecute";

struct Controller {
    context: Context,
    pods: Cache<Pod>,
    claims: Cache<ResourceClaim>,
    slices: Cache<ResourceSlice>,
    /// `None`: the API has none.
    rules: Option<Cache<DeviceTaintRule>>,
    queue: WorkQueue<Key>,
    /// Pods that are waiting for their end, to tell when they are spared.
    waiting: Mutex<HashSet<ObjectKey>>,
    /// How many pods rules made leave, by uid.
    evicted: Mutex<HashMap<String, u64>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Pod(ObjectKey),
    /// The status of a rule.
    Rule(String),
}

/// When a pod has to go, and the rules (by name and uid) that are among the reasons.
struct Eviction {
    at: Timestamp,
    rules: BTreeSet<(String, String)>,
}

pub(crate) async fn run(context: Context, with_rules: bool) {
    let caches = context.reader.caches();
    let (pods, claims, slices) =
        (caches.of::<Pod>(), caches.of::<ResourceClaim>(), caches.of::<ResourceSlice>());
    let (rules, queue) = (with_rules.then(|| caches.of::<DeviceTaintRule>()), WorkQueue::new());
    let controller = Controller {
        context: context.clone(),
        pods: pods.clone(),
        claims: claims.clone(),
        slices: slices.clone(),
        rules: rules.clone(),
        queue: queue.clone(),
        waiting: Mutex::default(),
        evicted: Mutex::default(),
    };
    let mut runner = Runner::with_queue(&context, controller, queue)
        .on(&slices, |c: &Controller, change| {
            let differs = match change {
                Change::Added(slice) | Change::Deleted(slice) => has_taints(slice),
                Change::Modified { old, new } => old.spec != new.spec && (has_taints(old) || has_taints(new)),
            };
            let (driver, pool) = (&change.object().spec.driver, &change.object().spec.pool.name);
            if differs { c.users(|r| r.driver == *driver && r.pool == *pool) } else { Vec::new() }
        })
        .on(&claims, |_, change| {
            // Who has lost a claim is spared, who has got one may have got a tainted device.
            let (before, after) = match change {
                Change::Modified { old, new } if old.status == new.status => return Vec::new(),
                Change::Modified { old, new } => (Some(old), new),
                Change::Added(claim) | Change::Deleted(claim) => (None, claim),
            };
            let ns = namespace(&after.metadata);
            let users = before.into_iter().chain([after]).flat_map(|c| reserved(c));
            let keys: HashSet<_> = users.map(|by| Key::Pod(ObjectKey::new(ns, &by.name))).collect();
            keys.into_iter().collect()
        })
        .on(&pods, |_, change| {
            let pod = match change {
                Change::Added(pod) | Change::Deleted(pod) => pod,
                Change::Modified { old, new } => {
                    if pods::node_name(old) == pods::node_name(new) && claim_names(old) == claim_names(new) {
                        return None;
                    }
                    new
                }
            };
            (!claim_names(pod).is_empty()).then(|| Key::Pod(ObjectKey::of(&pod.metadata)))
        });
    if let Some(rules) = &rules {
        runner = runner.on(rules, |c: &Controller, change| {
            let (before, after) = match change {
                Change::Modified { old, new } if old.spec == new.spec => return Vec::new(),
                Change::Modified { old, new } => (Some(old), new),
                Change::Added(rule) | Change::Deleted(rule) => (None, rule),
            };
            let mut keys =
                c.users(|r| before.is_some_and(|rule| is_selected(rule, r)) || is_selected(after, r));
            match change {
                Change::Deleted(_) => drop(c.evicted.lock().remove(uid(&after.metadata))),
                _ => keys.push(Key::Rule(name(&after.metadata).to_owned())),
            }
            keys
        });
    }
    runner.run(4).await;
}

fn has_taints(slice: &ResourceSlice) -> bool {
    slice.spec.devices.iter().flatten().any(|d| d.taints.iter().flatten().any(|t| t.effect == NO_EXECUTE))
}

fn results(claim: &ResourceClaim) -> impl Iterator<Item = &DeviceRequestAllocationResult> {
    let devices = claim.status.as_ref().and_then(|s| s.allocation.as_ref()?.devices.as_ref());
    devices.into_iter().flat_map(|d| d.results.iter().flatten())
}

/// When a device must be free because of a taint; `None`: never.
fn end(taint: &DeviceTaint, tolerations: &[DeviceToleration], now: Timestamp) -> Option<Timestamp> {
    let since = taint.time_added.as_ref().map_or(now, |t| t.0);
    // Unlike a pod's, a device's toleration has to name the effect.
    let mut matching = tolerations
        .iter()
        .filter(|t| t.effect.as_deref() == Some(NO_EXECUTE) && tolerates(t, taint))
        .peekable();
    if matching.peek().is_none() {
        return Some(since);
    }
    let mut least = i64::MAX;
    for toleration in matching {
        // One that has no end beats those that have.
        least = least.min(toleration.toleration_seconds?.max(0));
    }
    since.checked_add(SignedDuration::from_secs(least)).ok()
}

fn tolerates(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    let key = text(&toleration.key);
    (key.is_empty() || key == taint.key)
        && match toleration.operator.as_deref() {
            Some("Exists") => true,
            None | Some("" | "Equal") => text(&toleration.value) == text(&taint.value),
            _ => false,
        }
}

impl Controller {
    /// The pods whose claims have such devices.
    fn users(&self, has: impl Fn(&DeviceRequestAllocationResult) -> bool) -> Vec<Key> {
        let mut claims = self.claims.list();
        claims.retain(|c| results(c).any(&has));
        let of = |c: &ResourceClaim, by: &str| Key::Pod(ObjectKey::new(namespace(&c.metadata), by));
        claims.iter().flat_map(|c| reserved(c).iter().map(|by| of(c, &by.name))).collect()
    }

    /// The taints of a device that drive its users away, as the newest slices of its pool have them and as rules say, with the
    /// rule. `trial`: in place of all rules.
    fn taints(
        &self,
        result: &DeviceRequestAllocationResult,
        trial: Option<&DeviceTaintRule>,
    ) -> Vec<(DeviceTaint, Option<(String, String)>)> {
        let mut slices = self.slices.list();
        slices.retain(|s| s.spec.driver == result.driver && s.spec.pool.name == result.pool);
        let newest = slices.iter().map(|s| s.spec.pool.generation).max();
        slices.retain(|s| Some(s.spec.pool.generation) == newest);
        let devices = slices.iter().flat_map(|s| s.spec.devices.iter().flatten());
        let own = devices.filter(|d| d.name == result.device).flat_map(|d| d.taints.iter().flatten());
        let own = own.cloned().map(|taint| (taint, None));
        let of_rule = |rule: &DeviceTaintRule| {
            let meta = &rule.metadata;
            is_selected(rule, result)
                .then(|| (taint_of(rule), Some((name(meta).to_owned(), uid(meta).to_owned()))))
        };
        let rules: Vec<_> = match (trial, &self.rules) {
            (Some(rule), _) => of_rule(rule).into_iter().collect(),
            (None, Some(rules)) => rules.list().iter().filter_map(|rule| of_rule(rule)).collect(),
            (None, None) => Vec::new(),
        };
        own.chain(rules).filter(|(taint, _)| taint.effect == NO_EXECUTE).collect()
    }

    /// When the pod has to go; `None`: it may stay. `trial`: a rule in place of all others.
    fn eviction(&self, pod: &Pod, now: Timestamp, trial: Option<&DeviceTaintRule>) -> Option<Eviction> {
        if pods::node_name(pod).is_empty() {
            return None;
        }
        let ns = namespace(&pod.metadata);
        let made_for_it = |claim: &str| wanted(pod).any(|w| assigned(pod, &w.name) == Some(Some(claim)));
        let mut claims: Vec<_> =
            claim_names(pod).into_iter().filter_map(|n| self.claims.get(ns, n)).collect();
        claims.retain(|c| {
            reserved(c).iter().any(|by| by.uid == uid(&pod.metadata))
                && (!made_for_it(name(&c.metadata)) || is_controlled_by(&c.metadata, uid(&pod.metadata)))
        });
        let mut eviction: Option<Eviction> = None;
        for result in claims.iter().flat_map(|c| results(c)) {
            let tolerations = result.tolerations.as_deref().unwrap_or_default();
            for (taint, rule) in self.taints(result, trial) {
                let Some(at) = end(&taint, tolerations, now) else { continue };
                let all = eviction.get_or_insert_with(|| Eviction { at, rules: BTreeSet::new() });
                all.at = all.at.min(at);
                all.rules.extend(rule);
            }
        }
        eviction
    }

    async fn sync_pod(&self, key: &ObjectKey) -> Result<Outcome, Failure> {
        let waited = self.waiting.lock().remove(key);
        let Some(pod) = self.pods.get(&key.namespace, &key.name) else { return Ok(Outcome::Settled) };
        if pods::is_deleting(&pod) {
            return Ok(Outcome::Settled);
        }
        let now = self.context.clock.now();
        let about = reference(&*pod);
        let Some(Eviction { at, rules }) = self.eviction(&pod, now, None) else {
            if waited {
                let reason = "DeviceTaintManagerEviction";
                self.context.recorder.event(&about, EventType::Normal, reason, "Cancelling deletion");
            }
            return Ok(Outcome::Settled);
        };
        // They have a pod to wait for.
        rules.iter().for_each(|(rule, _)| self.queue.add(Key::Rule(rule.clone())));
        if at > now {
            self.waiting.lock().insert(key.clone());
            return Ok(Outcome::After(at.duration_since(now).unsigned_abs()));
        }
        self.context.recorder.event(
            &about,
            EventType::Normal,
            "DeviceTaintManagerEviction",
            "Marking for deletion",
        );
        let why = "Device Taint manager: deleting due to NoExecute taint";
        pods::disrupt(&self.context.client, &pod, "DeletionByDeviceTaintManager", why, now).await?;
        for (rule, uid) in rules {
            *self.evicted.lock().entry(uid).or_default() += 1;
            // The pod counts until the cache knows that it is gone.
            self.queue.add_after(Key::Rule(rule), PERIOD);
        }
        Ok(Outcome::Settled)
    }
}

impl Reconcile for Controller {
    type Key = Key;

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Failure> {
        match key {
            Key::Pod(key) => self.sync_pod(key).await,
            Key::Rule(name) => self.sync_rule(name).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check(tolerations: Value, want: Option<&str>) {
        let taint = json!({"key": "broken", "value": "much", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"});
        let taint: DeviceTaint = serde_json::from_value(taint).unwrap();
        let tolerations: Vec<DeviceToleration> = serde_json::from_value(tolerations).unwrap();
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        assert_eq!(end(&taint, &tolerations, now).map(|t| t.to_string()).as_deref(), want, "{tolerations:?}");
    }

    #[test]
    fn a_devices_taint_is_endured_as_long_as_its_claim_tolerates_it() {
        check(json!([]), Some("2026-01-01T00:00:00Z"));
        check(json!([{"operator": "Exists", "effect": "NoExecute"}]), None);
        check(json!([{"operator": "Exists"}]), Some("2026-01-01T00:00:00Z"));
        check(json!([{"key": "broken", "value": "much", "effect": "NoExecute"}]), None);
        check(
            json!([{"key": "broken", "value": "little", "effect": "NoExecute"}]),
            Some("2026-01-01T00:00:00Z"),
        );
        let bounded = |seconds: i64| json!({"key": "broken", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
        check(json!([bounded(300)]), Some("2026-01-01T00:05:00Z"));
        check(json!([bounded(300), bounded(90)]), Some("2026-01-01T00:01:30Z"));
        check(json!([bounded(-5)]), Some("2026-01-01T00:00:00Z"));
        check(json!([bounded(5), {"operator": "Exists", "effect": "NoExecute"}]), None);
    }
}
