//! Taint eviction: pods that do not tolerate a NoExecute taint of their node are deleted, at once or when their
//! toleration ends.
//!
//! The time runs from the taint's `timeAdded`, which is in the API: a restart neither shortens nor prolongs it.
use std::collections::HashSet;

use client::events::{EventType, reference};
use client::{By, Cache, Change};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use parking_lot::Mutex;

use crate::ownership::name;
use crate::pods;
use crate::runner::{Context, Failure, ObjectKey, Outcome, Reconcile, Runner};
use crate::taints::tolerates;

const NO_EXECUTE: &str = "NoExecute";

struct Controller {
    context: Context,
    nodes: Cache<Node>,
    pods: Cache<Pod>,
    by_node: By<Pod>,
    /// Pods that are waiting for their end, to tell when they are spared.
    waiting: Mutex<HashSet<ObjectKey>>,
}

pub(crate) async fn run(context: Context) {
    let caches = context.reader.caches();
    let (nodes, pods) = (caches.of::<Node>(), caches.of::<Pod>());
    let controller = Controller {
        context: context.clone(),
        nodes: nodes.clone(),
        pods: pods.clone(),
        by_node: pods.by(pods::node_name),
        waiting: Mutex::default(),
    };
    Runner::new(&context, controller)
        .on(&nodes, |c: &Controller, change| {
            let (before, after) = match change {
                Change::Added(node) => (Vec::new(), evicting(node)),
                Change::Modified { old, new } => (evicting(old), evicting(new)),
                Change::Deleted(_) => return Vec::new(),
            };
            if before == after {
                return Vec::new();
            }
            let node = name(&change.object().metadata);
            let pods = c.by_node.list(node);
            pods.iter().map(|p| ObjectKey::of(&p.metadata)).collect()
        })
        .on(&pods, |c: &Controller, change| {
            let pod = match change {
                Change::Added(pod) => pod,
                Change::Modified { old, new }
                    if pods::node_name(old) != pods::node_name(new)
                        || tolerations(old) != tolerations(new) =>
                {
                    new
                }
                _ => return None,
            };
            let node = c.nodes.get("", pods::node_name(pod))?;
            (!evicting(&node).is_empty()).then(|| ObjectKey::of(&pod.metadata))
        })
        .run(4)
        .await;
}

impl Reconcile for Controller {
    type Key = ObjectKey;

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, Failure> {
        let waited = self.waiting.lock().remove(key);
        let Some(pod) = self.pods.get(&key.namespace, &key.name) else { return Ok(Outcome::Settled) };
        if pod.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Settled);
        }
        let Some(node) = self.nodes.get("", pods::node_name(&pod)) else { return Ok(Outcome::Settled) };
        let now = self.context.clock.now();
        let wait = match decide(&evicting(&node), tolerations(&pod), now) {
            Decision::Stay => {
                if waited {
                    let message = format!("Cancelling deletion of Pod {}/{}", key.namespace, key.name);
                    self.context.recorder.event(
                        &reference(&*pod),
                        EventType::Normal,
                        "TaintManagerEviction",
                        message,
                    );
                }
                return Ok(Outcome::Settled);
            }
            Decision::Until(wait) => wait,
        };
        if wait > SignedDuration::ZERO {
            self.waiting.lock().insert(key.clone());
            return Ok(Outcome::After(wait.unsigned_abs()));
        }
        let message = format!("Marking for deletion Pod {}/{}", key.namespace, key.name);
        self.context.recorder.event(&reference(&*pod), EventType::Normal, "TaintManagerEviction", message);
        let why = "Taint manager: deleting due to NoExecute taint";
        pods::disrupt(&self.context.client, &pod, "DeletionByTaintManager", why, now).await?;
        Ok(Outcome::Settled)
    }
}

fn evicting(node: &Node) -> Vec<Taint> {
    let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    taints.filter(|t| t.effect == NO_EXECUTE).cloned().collect()
}

fn tolerations(pod: &Pod) -> &[Toleration] {
    pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default()
}

#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Stay,
    /// Evict when this time has passed.
    Until(SignedDuration),
}

/// The earliest end of any toleration counts; without a toleration for some taint it is now.
fn decide(taints: &[Taint], tolerations: &[Toleration], now: Timestamp) -> Decision {
    let mut earliest: Option<SignedDuration> = None;
    for taint in taints {
        let mut matching = tolerations.iter().filter(|t| tolerates(t, taint)).peekable();
        let wait = if matching.peek().is_none() {
            SignedDuration::ZERO
        } else {
            let Some(seconds) = matching.filter_map(|t| t.toleration_seconds).min() else { continue };
            let since = taint.time_added.as_ref().map_or(now, |t| t.0);
            let wait = SignedDuration::from_secs(seconds.max(0)).saturating_sub(now.duration_since(since));
            wait.max(SignedDuration::ZERO)
        };
        earliest = Some(earliest.map_or(wait, |e| e.min(wait)));
    }
    earliest.map_or(Decision::Stay, Decision::Until)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check(taints: Value, tolerations: Value, want: Decision) {
        let taints: Vec<Taint> = serde_json::from_value(taints).expect("taints");
        let tolerations: Vec<Toleration> = serde_json::from_value(tolerations).expect("tolerations");
        let now = "2026-01-01T00:01:00Z".parse().expect("time");
        assert_eq!(decide(&taints, &tolerations, now), want, "{taints:?} {tolerations:?}");
    }

    #[test]
    fn a_toleration_ends_counted_from_the_taint() {
        let lost = json!([{"key": "lost", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}]);
        check(lost.clone(), json!([]), Decision::Until(SignedDuration::ZERO));
        check(lost.clone(), json!([{"operator": "Exists"}]), Decision::Stay);
        let bounded =
            json!([{"key": "lost", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]);
        check(lost.clone(), bounded, Decision::Until(SignedDuration::from_secs(240)));
        check(lost.clone(), json!([{"key": "lost", "value": "x"}]), Decision::Until(SignedDuration::ZERO));
        check(
            lost,
            json!([{"key": "lost", "operator": "Exists", "tolerationSeconds": -1}]),
            Decision::Until(SignedDuration::ZERO),
        );
        check(json!([]), json!([]), Decision::Stay);
    }
}
