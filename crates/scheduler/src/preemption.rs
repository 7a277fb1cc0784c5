//! DefaultPreemption: which pods have to go so that a more important one can run. Pure: the same snapshot, pod, budgets
//! and seed give the same victims.
//! Rule: <https://kubernetes.io/docs/concepts/scheduling-eviction/pod-priority-preemption/>
use std::cmp::Reverse;
use std::sync::Arc;

use api::selector::LabelSelector;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use crate::evaluate::{Evaluator, Trial};
use crate::filter::Rejection;
use crate::pod_info::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

/// The reason on `DisruptionTarget` of a victim.
pub const REASON: &str = "PreemptionByScheduler";

/// Of a pod whose victims were asked to go and are not gone yet.
pub const TERMINATING: &str = "not eligible due to a terminating pod on the nominated node.";

/// What preemption can do for a pod.
#[derive(Debug)]
pub enum Preemption {
    /// It may not try; why.
    NotEligible(&'static str),
    /// No node would take the pod; why, of the nodes that were tried.
    NotHelpful(Vec<Arc<Rejection>>),
    /// With the victims gone, the node takes the pod.
    Found(Victims),
}

/// Pods of one node that have to go, the most important first.
#[derive(Debug, Clone)]
pub struct Victims {
    /// The node.
    pub slot: usize,
    /// The pods.
    pub pods: Vec<PodInfo>,
    /// How many of them a disruption budget protects.
    pub violations: usize,
}

/// Whether the pod is being removed for a more important one.
pub fn is_victim(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    pod.metadata.deletion_timestamp.is_some()
        && conditions.into_iter().flatten().any(|c| {
            c.type_ == "DisruptionTarget" && c.status == "True" && c.reason.as_deref() == Some(REASON)
        })
}

/// Why the pod may not preempt, if so.
fn not_eligible(pod: &PodInfo, snapshot: &Snapshot, why: &[(usize, Arc<Rejection>)]) -> Option<&'static str> {
    if pod.spec().and_then(|s| s.preemption_policy.as_deref()) == Some("Never") {
        return Some("not eligible due to preemptionPolicy=Never.");
    }
    let slot = snapshot.nomination(&pod.uid).and_then(|node| snapshot.find(node))?;
    // The node that was promised will never do: look for another.
    if why.iter().any(|(s, rejection)| *s == slot && !rejection.resolvable) {
        return None;
    }
    snapshot.node(slot).pods().any(|p| is_going(p, pod)).then_some(TERMINATING)
}

fn is_going(victim: &PodInfo, pod: &PodInfo) -> bool {
    victim.priority < pod.priority && is_victim(&victim.pod)
}

/// Who is leaving the node that was promised to the pod.
pub(crate) fn leaving(pod: &PodInfo, snapshot: &Snapshot) -> Option<Victims> {
    let slot = snapshot.nomination(&pod.uid).and_then(|node| snapshot.find(node))?;
    let pods = snapshot.node(slot).pods().filter(|p| is_going(p, pod)).cloned().collect();
    Some(Victims { slot, pods, violations: 0 })
}

/// Candidates for `pod`, which no node takes for the reasons in `why`: the nodes that were looked at, in the order of the
/// search, and what the others said. `offset` says where the search begins.
pub fn candidates(
    evaluator: &mut Evaluator,
    pod: &PodInfo,
    snapshot: &Snapshot,
    why: &[(usize, Arc<Rejection>)],
    budgets: &[Arc<PodDisruptionBudget>],
    offset: usize,
) -> Result<(Vec<Victims>, Vec<Arc<Rejection>>), &'static str> {
    if let Some(text) = not_eligible(pod, snapshot, why) {
        return Err(text);
    }
    let Some(args) = evaluator.profile().preemption else { return Ok((Vec::new(), Vec::new())) };
    let nodes: Vec<usize> = why.iter().filter(|(_, r)| r.resolvable).map(|(slot, _)| *slot).collect();
    let wanted =
        (nodes.len() * args.min_candidate_percentage / 100).max(args.min_candidate_absolute).min(nodes.len());
    let budgets: Vec<Budget<'_>> = budgets.iter().map(|b| Budget::of(b)).collect();
    let Ok(mut trial) = evaluator.trial(pod, snapshot) else { return Ok((Vec::new(), Vec::new())) };
    let (mut found, mut said, mut harmless) = (Vec::new(), Vec::new(), false);
    let (before, after) = nodes.split_at(if nodes.is_empty() { 0 } else { offset % nodes.len() });
    for &slot in after.iter().chain(before) {
        match victims_on(&mut trial, slot, &budgets) {
            Ok(victims) => {
                harmless |= victims.violations == 0;
                found.push(victims);
            }
            Err(rejection) => said.push(rejection),
        }
        if harmless && found.len() >= wanted {
            break;
        }
    }
    Ok((found, said))
}

/// The whole decision.
pub fn run(
    evaluator: &mut Evaluator,
    pod: &PodInfo,
    snapshot: &Snapshot,
    why: &[(usize, Arc<Rejection>)],
    budgets: &[Arc<PodDisruptionBudget>],
    offset: usize,
) -> Preemption {
    match candidates(evaluator, pod, snapshot, why, budgets, offset) {
        Err(text) => Preemption::NotEligible(text),
        Ok((found, said)) => best(found).map_or(Preemption::NotHelpful(said), Preemption::Found),
    }
}

/// The candidate that hurts least: fewest budgets broken, then the least important victim at the top, the least
/// importance in all, the fewest victims, and among the most important victims the ones that ran the shortest.
pub fn best(candidates: Vec<Victims>) -> Option<Victims> {
    let cost = |v: &Victims| {
        let top = v.pods.first().map_or(i32::MIN, |p| p.priority);
        let sum: i64 = v.pods.iter().map(|p| i64::from(p.priority) + i64::from(i32::MAX) + 1).sum();
        let oldest = v.pods.iter().filter(|p| p.priority == top).map(PodInfo::started).min();
        (v.violations, top, sum, v.pods.len(), Reverse(oldest.unwrap_or(Timestamp::MAX)))
    };
    candidates.into_iter().min_by_key(cost)
}

struct Budget<'a> {
    budget: &'a PodDisruptionBudget,
    selector: LabelSelector,
    allowed: i32,
}

impl<'a> Budget<'a> {
    fn of(budget: &'a PodDisruptionBudget) -> Self {
        let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
        Self {
            selector: LabelSelector::from_typed(selector).unwrap_or_else(|_| LabelSelector::nothing()),
            allowed: budget.status.as_ref().and_then(|s| s.disruptions_allowed).unwrap_or(0),
            budget,
        }
    }

    fn protects(&self, pod: &PodInfo) -> bool {
        let processed = self.budget.status.as_ref().and_then(|s| s.disrupted_pods.as_ref());
        self.budget.metadata.namespace == pod.pod.metadata.namespace
            && !pod.relations.labels.is_empty()
            && !self.selector.is_everything()
            && self.selector.matches(&pod.relations.labels)
            && !processed.is_some_and(|p| p.contains_key(pod.name()))
    }
}

/// Whether a budget is broken by each pod's end, the pods going in this order.
fn violations(pods: &[PodInfo], budgets: &[Budget<'_>]) -> Vec<bool> {
    let mut left: Vec<i32> = budgets.iter().map(|b| b.allowed).collect();
    let mut broken = |pod: &PodInfo| {
        let mut broken = false;
        for (_, left) in budgets.iter().zip(&mut left).filter(|(b, _)| b.protects(pod)) {
            *left -= 1;
            broken |= *left < 0;
        }
        broken
    };
    pods.iter().map(&mut broken).collect()
}

/// The fewest pods that have to leave the node: all less important ones are taken off it, then put back one by one, the
/// protected and the important first, as long as the pod still fits.
fn victims_on(trial: &mut Trial<'_>, slot: usize, budgets: &[Budget<'_>]) -> Result<Victims, Arc<Rejection>> {
    let real = trial.snapshot.node(slot);
    let mut less: Vec<PodInfo> = real.pods().filter(|p| p.priority < trial.pod.priority).cloned().collect();
    if less.is_empty() {
        let text = "No preemption victims found for incoming pod";
        return Err(Arc::new(Rejection::new(0, text, false)));
    }
    less.sort_by(|a, b| {
        (Reverse(a.priority), a.started(), &a.uid).cmp(&(Reverse(b.priority), b.started(), &b.uid))
    });
    let mut node = real.clone();
    for pod in &less {
        node.remove(&pod.uid);
    }
    trial.set(slot, &node);
    let outcome = trial.check_with_nominated(slot, &node).map_err(Arc::new).map(|()| {
        let broken = violations(&less, budgets);
        let (mut pods, mut violated) = (Vec::new(), 0);
        for protected in [true, false] {
            for (pod, _) in less.iter().zip(&broken).filter(|(_, b)| **b == protected) {
                if !reprieve(trial, slot, &mut node, pod) {
                    violated += usize::from(protected);
                    pods.push(pod.clone());
                }
            }
        }
        pods.sort_by_key(|p| (Reverse(p.priority), p.started()));
        Victims { slot, pods, violations: violated }
    });
    trial.set(slot, real);
    outcome
}

/// Puts a pod back, if the node still takes the other one then.
fn reprieve(trial: &mut Trial<'_>, slot: usize, node: &mut NodeInfo, pod: &PodInfo) -> bool {
    node.add(pod);
    trial.set(slot, node);
    let fits = trial.check_with_nominated(slot, node).is_ok();
    if !fits {
        node.remove(&pod.uid);
        trial.set(slot, node);
    }
    fits
}
