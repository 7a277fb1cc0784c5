//! Whom a critical pod takes the place of, where the node has not enough for it: pure.
//!
//! Rule: Kubernetes documentation, "Guaranteed Scheduling For Critical Add-On Pods" and "Pod Priority and Preemption": such a pod
//! does not fail for want of resources; the fewest others go, best-effort pods before burstable and guaranteed ones.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::admission::{Given, held};
use crate::eviction::rank::is_critical;
use crate::resources::qos_class;

/// Reason of the end of a pod that made room.
pub const REASON: &str = "Preempting";
/// Its message.
pub const MESSAGE: &str = "Preempted in order to admit critical pod";

/// A resource that is lacking, and how much of it, in the unit of admission.
pub type Lack = (String, i64);

/// The pods among `others` that end so that `pod` has what it `lacks`; none where that is not enough, or the pod not critical.
pub fn victims(pod: &Pod, others: &[Arc<Pod>], given: &Given, lacks: &[Lack]) -> Option<Vec<Arc<Pod>>> {
    if !is_critical(pod) || lacks.is_empty() {
        return None;
    }
    let class = |name: &str| -> Vec<Candidate<'_>> {
        let yielding = others.iter().filter(|other| yields(pod, other) && qos_class(other) == name);
        yielding.map(|pod| Candidate { pod, holds: held(pod, given) }).collect()
    };
    let (least, middle, most) = (class("BestEffort"), class("Burstable"), class("Guaranteed"));
    // of the better classes only what the lesser ones together do not give
    let after = |gone: &[&[Candidate<'_>]]| left(lacks, &gone.concat());
    let first = choose(most, after(&[&least, &middle]))?;
    let second = choose(middle, after(&[&least, &first]))?;
    let third = choose(least, after(&[&first, &second]))?;
    Some([third, second, first].concat().into_iter().map(|one| one.pod.clone()).collect())
}

/// Whether a pod makes room for a critical one.
fn yields(critical: &Pod, pod: &Pod) -> bool {
    let priority = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.priority);
    let below = priority(critical).zip(priority(pod)).is_some_and(|(ours, theirs)| ours > theirs);
    !is_critical(pod) || below
}

/// A pod that could make room, and what it has.
#[derive(Clone)]
struct Candidate<'a> {
    pod: &'a Arc<Pod>,
    holds: BTreeMap<String, i64>,
}

impl Candidate<'_> {
    /// How much of a resource goes free with it.
    fn frees(&self, name: &str) -> i64 {
        if name == "pods" { 1 } else { self.holds.get(name).copied().unwrap_or(0) }
    }
}

/// What is lacking still when these are gone.
fn left(lacks: &[Lack], gone: &[Candidate<'_>]) -> Vec<Lack> {
    let amount = |name: &str| gone.iter().map(|one| one.frees(name)).fold(0_i64, i64::saturating_add);
    let rest = lacks.iter().map(|(name, lack)| (name.clone(), lack.saturating_sub(amount(name))));
    rest.filter(|(_, lack)| *lack > 0).collect()
}

/// The fewest pods that give what is lacking, each time the one that comes nearest to all of it; among equals the smaller one.
fn choose(mut pods: Vec<Candidate<'_>>, mut lacks: Vec<Lack>) -> Option<Vec<Candidate<'_>>> {
    let mut chosen = Vec::new();
    while !lacks.is_empty() {
        // of each resource the part that would still be lacking, squared: all resources weigh the same
        let distance = |one: &Candidate<'_>| -> f64 {
            let part = |(name, lack): &Lack| {
                let rest = lack.saturating_sub(one.frees(name)).max(0);
                (rest as f64 / *lack as f64).powi(2)
            };
            lacks.iter().map(part).sum()
        };
        let size = |one: &Candidate<'_>| (one.frees("memory"), one.frees("cpu"));
        let best = (0..pods.len()).min_by(|a, b| {
            distance(&pods[*a])
                .total_cmp(&distance(&pods[*b]))
                .then_with(|| size(&pods[*a]).cmp(&size(&pods[*b])))
        })?;
        let one = pods.swap_remove(best);
        lacks = left(&lacks, std::slice::from_ref(&one));
        chosen.push(one);
    }
    Some(chosen)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, priority: i64, resources: Value) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": name},
            "spec": {"priority": priority, "containers": [{"name": "c", "resources": resources}]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn burstable(name: &str, cpu: &str) -> Arc<Pod> {
        pod(name, 0, json!({"requests": {"cpu": cpu}}))
    }

    fn guaranteed(name: &str, cpu: &str) -> Arc<Pod> {
        let amounts = json!({"cpu": cpu, "memory": "1Gi"});
        pod(name, 0, json!({"requests": amounts, "limits": amounts}))
    }

    fn names(others: &[Arc<Pod>], lacks: &[(&str, i64)]) -> Option<String> {
        let critical = pod("critical", 2_000_001_000, json!({}));
        let lacks: Vec<Lack> = lacks.iter().map(|(name, lack)| ((*name).to_owned(), *lack)).collect();
        let found = victims(&critical, others, &Given::new(), &lacks)?;
        Some(found.iter().filter_map(|pod| pod.metadata.name.clone()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn the_fewest_and_least_important_go() {
        let others = [
            pod("idle", 0, json!({})),
            burstable("small", "100m"),
            burstable("middle", "300m"),
            burstable("large", "900m"),
            guaranteed("sure", "900m"),
            pod("system", 2_000_001_000, json!({"requests": {"cpu": "4"}})),
        ];
        for (lacks, expected) in [
            (&[("pods", 1)][..], Some("idle")),
            (&[("pods", 2)], Some("idle small")),
            (&[("cpu", 250)], Some("middle")),
            (&[("cpu", 1000)], Some("large small")),
            (&[("cpu", 1300)], Some("large middle small")),
            (&[("cpu", 1500)], Some("large sure")),
            (&[("memory", 5)], Some("sure")),
            (&[("cpu", 90_000)], None),
        ] {
            assert_eq!(names(&others, lacks).as_deref(), expected, "{lacks:?}");
        }
    }

    #[test]
    fn only_a_critical_pod_takes_the_place_of_others() {
        let lacks = [("pods".to_owned(), 1)];
        let victims = |pod: &Pod, others: &[Arc<Pod>]| victims(pod, others, &Given::new(), &lacks);
        assert_eq!(victims(&burstable("plain", "1"), &[pod("idle", 0, json!({}))]), None);
        let lesser = pod("node", 2_000_000_000, json!({}));
        let node = pod("critical", 2_000_001_000, json!({}));
        assert!(victims(&node, std::slice::from_ref(&lesser)).is_some(), "the one of less importance");
        assert_eq!(victims(&lesser, std::slice::from_ref(&node)), None);
    }
}
