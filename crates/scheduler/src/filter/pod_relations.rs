//! PodTopologySpread and InterPodAffinity: what their objections are called, and what can lift them.
use super::{INTER_POD_AFFINITY, POD_TOPOLOGY_SPREAD, Rejection};
use crate::counts::Objection;
use crate::hints::Event;
use crate::pod_info::PodInfo;
use crate::relations::{Namespaces, Relations};

/// The words for an objection.
pub(crate) fn rejection(objection: Objection) -> Rejection {
    let (filter, reason, resolvable) = match objection {
        Objection::SpreadLabel => (
            POD_TOPOLOGY_SPREAD,
            "node(s) didn't match pod topology spread constraints (missing required label)",
            false,
        ),
        Objection::Spread => {
            (POD_TOPOLOGY_SPREAD, "node(s) didn't match pod topology spread constraints", true)
        }
        Objection::Affinity => (INTER_POD_AFFINITY, "node(s) didn't match pod affinity rules", false),
        Objection::AntiAffinity => (INTER_POD_AFFINITY, "node(s) didn't match pod anti-affinity rules", true),
        Objection::ExistingAntiAffinity => {
            (INTER_POD_AFFINITY, "node(s) didn't satisfy existing pods anti-affinity rules", true)
        }
    };
    Rejection::new(filter, reason, resolvable)
}

/// Pods that count came or went, or a domain did.
pub(super) fn spread_helps(pod: &PodInfo, event: &Event<'_>, _: &Namespaces) -> bool {
    let counted =
        |other: &Relations| pod.spread.hard.iter().any(|c| c.counts(&pod.relations.namespace, other));
    match event {
        Event::Freed(other) | Event::Placed(other) => counted(&other.relations),
        Event::Node(node) | Event::NodeGone(node) => {
            pod.spread.hard.iter().all(|c| node.label(&c.topology_key).is_some())
        }
        Event::Storage(_) | Event::Devices(_) => false,
    }
}

/// A pod that is wanted came, one that is in the way went, or a node did.
pub(super) fn affinity_helps(pod: &PodInfo, event: &Event<'_>, namespaces: &Namespaces) -> bool {
    let own = &pod.relations;
    match event {
        Event::Node(_) => true,
        Event::Storage(_) | Event::Devices(_) => false,
        Event::Placed(other) => !own.affinity.is_empty() && own.wants(&other.relations, namespaces),
        Event::Freed(other) => end_helps(own, &other.relations, namespaces),
        Event::NodeGone(node) => node.pods().any(|other| end_helps(own, &other.relations, namespaces)),
    }
}

/// Whether the pod could run where it could not when `other` is no longer there.
fn end_helps(own: &Relations, other: &Relations, namespaces: &Namespaces) -> bool {
    own.anti_affinity.iter().any(|t| t.matches(other, namespaces))
        || other.anti_affinity.iter().any(|t| t.matches(own, namespaces))
        // With the last of its kind gone, the pod may be the first of a new series.
        || (!own.affinity.is_empty() && own.wants(own, namespaces) && own.wants(other, namespaces))
}
