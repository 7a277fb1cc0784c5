//! What to do about a daemon set: a pure function from what the caches show to pods to make and to delete.
//!
//! First every node gets or loses its pod; only when nothing is to be done for that, pods of old revisions are replaced within
//! the bounds of the strategy: without a surge old pods are deleted first, with one new pods are made beside them.
//! Source: <https://kubernetes.io/docs/tasks/manage-daemon/update-daemon-set/>.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::Pod;

use super::placement::{Place, node_of};
use crate::int_or_percent::{Round, resolve};
use crate::ownership::{annotations, labels, name};
use crate::pods;
use crate::revisions::REVISION_HASH;

/// The revision number of the template before there were revisions; kept as an annotation and a label of pods.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";
/// The label of pods that holds it.
pub(super) const POD_TEMPLATE_GENERATION: &str = "pod-template-generation";

/// What is looked at.
pub(super) struct View<'a> {
    pub(super) set: &'a DaemonSet,
    /// What each node that exists is for the set, by name.
    pub(super) places: &'a BTreeMap<String, Place>,
    /// The pods that the set controls.
    pub(super) pods: &'a [Arc<Pod>],
    /// The hash of the template's revision.
    pub(super) hash: &'a str,
    pub(super) now: Timestamp,
}

/// The outcome of one pass.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// Nodes to make a pod for.
    pub(super) create: Vec<String>,
    /// Pods to delete.
    pub(super) delete: Vec<Arc<Pod>>,
    /// Pods that ended, with their nodes: to be deleted and told of, failed ones not too often.
    pub(super) ended: Vec<(String, Arc<Pod>)>,
}

/// The pods of one node, the one that counts first: bound before unbound, then old before young.
type ByNode<'a> = BTreeMap<&'a str, Vec<&'a Arc<Pod>>>;

impl<'a> View<'a> {
    fn by_node(&self) -> ByNode<'a> {
        let mut nodes: ByNode<'a> = BTreeMap::new();
        for pod in self.pods {
            // What ended and is being deleted does not hold up its successor.
            if pods::is_deleting(pod) && pods::is_terminal(pod) {
                continue;
            }
            if let Some(node) = node_of(pod) {
                nodes.entry(node).or_default().push(pod);
            }
        }
        let key = |p: &Pod| {
            let created = p.metadata.creation_timestamp.as_ref().map(|t| t.0);
            (pods::node_name(p).is_empty(), created, name(&p.metadata).to_owned())
        };
        nodes.values_mut().for_each(|list| list.sort_by_key(|p| key(p)));
        nodes
    }

    fn place(&self, node: &str) -> Option<Place> {
        self.places.get(node).copied()
    }

    fn desired(&self) -> usize {
        self.places.values().filter(|p| **p == Place::Run).count()
    }

    fn is_available(&self, pod: &Pod) -> bool {
        let min_ready = self.set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
        pods::until_available(pod, min_ready, self.now).is_some_and(|w| w.is_zero())
    }

    fn is_updated(&self, pod: &Pod) -> bool {
        let labels = labels(&pod.metadata);
        let hash = labels.get(REVISION_HASH).is_some_and(|h| !h.is_empty() && h == self.hash);
        let generation = template_generation(self.set);
        hash || generation.is_some() && labels.get(POD_TEMPLATE_GENERATION) == generation.as_ref()
    }

    /// `(surge, unavailable)` in pods.
    fn bounds(&self) -> (usize, usize) {
        let strategy = self.set.spec.as_ref().and_then(|s| s.update_strategy.as_ref());
        let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
        let desired = self.desired();
        let total = i32::try_from(desired).unwrap_or(i32::MAX);
        let number = |value| usize::try_from(resolve(value, total, Round::Up)).unwrap_or(0);
        let surge = number(rolling.and_then(|r| r.max_surge.as_ref()));
        let unavailable = number(rolling.and_then(|r| r.max_unavailable.as_ref()));
        // No step could be made otherwise.
        if desired > 0 && surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
    }
}

/// The annotated generation of the template, if it is a number.
pub(super) fn template_generation(set: &DaemonSet) -> Option<String> {
    let text = annotations(&set.metadata).get(TEMPLATE_GENERATION)?;
    text.parse::<i64>().ok().map(|n| n.to_string())
}

/// Whether the strategy makes pods beside old ones.
fn surges(set: &DaemonSet) -> bool {
    let strategy = set.spec.as_ref().and_then(|s| s.update_strategy.as_ref());
    let surge = strategy.and_then(|s| s.rolling_update.as_ref()).and_then(|r| r.max_surge.as_ref());
    is_rolling(set) && resolve(surge, 1, Round::Up) > 0
}

fn is_rolling(set: &DaemonSet) -> bool {
    let strategy = set.spec.as_ref().and_then(|s| s.update_strategy.as_ref());
    strategy.and_then(|s| s.type_.as_deref()) != Some("OnDelete")
}

/// Plans one pass.
pub(super) fn plan(view: &View<'_>) -> Plan {
    let plan = manage(view);
    if plan != Plan::default() || !is_rolling(view.set) {
        return plan;
    }
    let (surge, unavailable) = view.bounds();
    if surge == 0 { replace(view, unavailable) } else { surge_over(view, surge) }
}

/// Gives every node the pod it shall have, and takes away what it shall not.
fn manage(view: &View<'_>) -> Plan {
    let mut plan = Plan::default();
    let by_node = view.by_node();
    let none = Vec::new();
    for (node, place) in view.places {
        let pods = by_node.get(node.as_str()).unwrap_or(&none);
        match place {
            Place::Run if pods.is_empty() => plan.create.push(node.clone()),
            Place::Leave => {
                plan.delete.extend(pods.iter().filter(|p| !pods::is_deleting(p)).map(|p| (*p).clone()));
            }
            Place::Run | Place::Stay => keep(view, node, *place, pods, &mut plan),
        }
    }
    // Never bound, and their node is gone: nobody else deletes them.
    for (node, pods) in &by_node {
        if view.place(node).is_none() {
            let unbound = pods.iter().filter(|p| pods::node_name(p).is_empty() && !pods::is_deleting(p));
            plan.delete.extend(unbound.map(|p| (*p).clone()));
        }
    }
    plan
}

/// Leaves one pod on the node, or with a surge an old one beside a new one that is not available yet.
fn keep(view: &View<'_>, node: &str, place: Place, pods: &[&Arc<Pod>], plan: &mut Plan) {
    let (ended, running): (Vec<&Arc<Pod>>, Vec<&Arc<Pod>>) =
        pods.iter().filter(|p| !pods::is_deleting(p)).partition(|p| pods::is_terminal(p));
    plan.ended.extend(ended.into_iter().map(|p| (node.to_owned(), p.clone())));
    if !surges(view.set) {
        plan.delete.extend(running.into_iter().skip(1).cloned());
        return;
    }
    if running.is_empty() && place == Place::Run {
        plan.create.push(node.to_owned());
    }
    if running.len() <= 1 {
        return;
    }
    let has_hash = |p: &Pod| labels(&p.metadata).get(REVISION_HASH).map(String::as_str) == Some(view.hash);
    let (new, old): (Vec<&Arc<Pod>>, Vec<&Arc<Pod>>) = running.into_iter().partition(|p| has_hash(p));
    plan.delete.extend(new.iter().skip(1).chain(old.iter().skip(1)).map(|p| (*p).clone()));
    if let (Some(new), Some(old)) = (new.first(), old.first())
        && (!pods::is_ready(old) || view.is_available(new))
    {
        plan.delete.push((*old).clone());
    }
}

/// The newest and the outdated pod of a node; `None` when there are several of one sort, which `manage` prunes.
fn pair<'a>(view: &View<'_>, pods: &[&'a Arc<Pod>]) -> Option<[Option<&'a Arc<Pod>>; 2]> {
    let mut pair = [None, None];
    for pod in pods.iter().filter(|p| !pods::is_deleting(p)) {
        let slot = &mut pair[usize::from(!view.is_updated(pod))];
        if slot.replace(*pod).is_some() {
            return None;
        }
    }
    Some(pair)
}

/// All nodes that have or shall have a pod.
fn nodes_with_pods<'a>(view: &View<'a>) -> ByNode<'a> {
    let mut nodes = view.by_node();
    for (node, place) in view.places {
        if *place == Place::Run {
            nodes.entry(node).or_default();
        }
    }
    nodes
}

/// Without a surge: deletes old pods that are no loss, and others while not too many are missing.
fn replace(view: &View<'_>, max_unavailable: usize) -> Plan {
    let mut plan = Plan::default();
    let mut missing = 0;
    let mut candidates = Vec::new();
    for pods in nodes_with_pods(view).values() {
        match pair(view, pods) {
            None | Some([None, None] | [Some(_), Some(_)]) => missing += 1,
            Some([Some(new), None]) => missing += usize::from(!view.is_available(new)),
            Some([None, Some(old)]) if view.is_available(old) => candidates.push(old.clone()),
            Some([None, Some(old)]) => {
                plan.delete.push(old.clone());
                missing += 1;
            }
        }
    }
    plan.delete.extend(candidates.into_iter().take(max_unavailable.saturating_sub(missing)));
    plan
}

/// With a surge: makes new pods beside old ones, and deletes an old one when its successor is available.
fn surge_over(view: &View<'_>, max_surge: usize) -> Plan {
    let mut plan = Plan::default();
    let (mut surging, mut available) = (0, 0);
    let (mut candidates, mut unwanted) = (Vec::new(), Vec::new());
    for (node, pods) in nodes_with_pods(view) {
        let Some([new, old]) = pair(view, &pods) else {
            surging += 1;
            continue;
        };
        available += usize::from(old.or(new).is_some_and(|p| view.is_available(p)));
        let Some(old) = old else { continue };
        let wanted = view.place(node) == Some(Place::Run);
        match new {
            None if !view.is_available(old) && wanted => plan.create.push(node.to_owned()),
            None if !view.is_available(old) => plan.delete.push(old.clone()),
            None if wanted => candidates.push(node.to_owned()),
            None => unwanted.push(old.clone()),
            Some(new) if view.is_available(new) => plan.delete.push(old.clone()),
            Some(_) => surging += 1,
        }
    }
    // A pod on a node that fell out of the selection serves until those on other nodes do.
    plan.delete.extend(unwanted.into_iter().take(available.saturating_sub(view.desired())));
    plan.create.extend(candidates.into_iter().take(max_surge.saturating_sub(surging)));
    plan
}

/// The status, and the time until the next pod becomes available by age. `observed`: the pass acted on this generation.
pub(super) fn status(
    view: &View<'_>,
    observed: bool,
    collisions: Option<i32>,
) -> (DaemonSetStatus, Option<Duration>) {
    let before = view.set.status.clone().unwrap_or_default();
    let by_node = view.by_node();
    let (mut desired, mut scheduled, mut stray, mut ready, mut updated, mut available) = (0, 0, 0, 0, 0, 0);
    for (node, place) in view.places {
        let first = by_node.get(node.as_str()).and_then(|pods| pods.first());
        if *place != Place::Run {
            stray += i32::from(first.is_some());
            continue;
        }
        desired += 1;
        let Some(pod) = first else { continue };
        scheduled += 1;
        ready += i32::from(pods::is_ready(pod));
        available += i32::from(view.is_available(pod));
        updated += i32::from(view.is_updated(pod));
    }
    let some = |n: i32| (n != 0).then_some(n);
    let status = DaemonSetStatus {
        collision_count: collisions,
        conditions: before.conditions,
        current_number_scheduled: scheduled,
        desired_number_scheduled: desired,
        number_available: some(available),
        number_misscheduled: stray,
        number_ready: ready,
        number_unavailable: some(desired - available),
        observed_generation: if observed { view.set.metadata.generation } else { before.observed_generation },
        updated_number_scheduled: some(updated),
    };
    let min_ready = view.set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
    let waits = view.pods.iter().filter_map(|p| pods::until_available(p, min_ready, view.now));
    (status, waits.filter(|w| !w.is_zero()).min().map(|w| w.unsigned_abs()))
}
