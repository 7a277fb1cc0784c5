//! FailedScheduling in the words of Kubernetes v1.36.
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::filter::Rejection;

/// What is said when there is no node at all.
pub const NO_NODES: &str = "no nodes available to schedule pods";

/// What DynamicResources says after filtering about a pod without claims.
pub const NO_CLAIMS: &str = "no new claims to deallocate";
/// About a pod whose claims did not become free.
pub const STILL: &str = "still not schedulable";
/// About a pod of which a claim was taken off the wrong node.
pub const DEALLOCATED: &str = "deallocation of ResourceClaim completed";
/// About a pod of which a claim was deleted that an earlier attempt had made.
pub const DELETED: &str = "deletion of ResourceClaim completed";

/// What preemption had to say.
pub enum Outlook<'a> {
    /// It found room: nothing is said.
    Nominated,
    /// The plugin does not run.
    Disabled,
    /// It may not try.
    NotEligible(&'a str),
    /// What the nodes said that were tried.
    NotHelpful(&'a [Arc<Rejection>]),
}

/// `0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient cpu. no new claims to deallocate, preemption:
/// ...`: reasons with their numbers of nodes, sorted as text, then what the steps after filtering had to say.
/// `deallocation`: what DynamicResources has to say after filtering, where it runs.
pub fn unschedulable(
    nodes: usize,
    why: &[Arc<Rejection>],
    deallocation: Option<&str>,
    outlook: &Outlook<'_>,
) -> String {
    after(sentence(nodes, count(why)), nodes, deallocation, outlook)
}

/// The same where a step before filtering refused the pod on all nodes at once.
pub fn refused(nodes: usize, reason: &str, deallocation: Option<&str>, outlook: &Outlook<'_>) -> String {
    after(format!("0/{nodes} nodes are available: {reason}."), nodes, deallocation, outlook)
}

fn after(said: String, nodes: usize, deallocation: Option<&str>, outlook: &Outlook<'_>) -> String {
    let preemption = match outlook {
        Outlook::Nominated => return said,
        Outlook::Disabled => None,
        Outlook::NotEligible(text) => Some((*text).to_owned()),
        Outlook::NotHelpful(tried) => {
            let mut reasons = count(tried);
            let rest = nodes.saturating_sub(tried.len());
            if rest > 0 {
                *reasons.entry("Preemption is not helpful for scheduling").or_default() += rest;
            }
            Some(sentence(nodes, reasons))
        }
    };
    let preemption = preemption.map(|text| format!("preemption: {text}"));
    let steps: Vec<String> = deallocation.map(str::to_owned).into_iter().chain(preemption).collect();
    if steps.is_empty() { said } else { format!("{said} {}", steps.join(", ")) }
}

fn count(why: &[Arc<Rejection>]) -> BTreeMap<&str, usize> {
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in why.iter().flat_map(|r| &r.reasons) {
        *reasons.entry(reason).or_default() += 1;
    }
    reasons
}

fn sentence(nodes: usize, reasons: BTreeMap<&str, usize>) -> String {
    let mut parts: Vec<String> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    parts.sort();
    match &parts[..] {
        [] => format!("0/{nodes} nodes are available:"),
        _ => format!("0/{nodes} nodes are available: {}.", parts.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejection(reasons: &[&str]) -> Arc<Rejection> {
        let reasons = reasons.iter().map(|r| (*r).into()).collect();
        Arc::new(Rejection { filter: 0, reasons, resolvable: false })
    }

    #[test]
    fn reasons_are_counted_and_sorted() {
        let list = [
            rejection(&["Insufficient cpu", "Insufficient memory"]),
            rejection(&["node(s) had untolerated taint(s)"]),
            rejection(&["Insufficient cpu"]),
        ];
        let tried = ["No preemption victims found for incoming pod"; 2].map(|text| rejection(&[text]));
        let said = "0/3 nodes are available: 1 Insufficient memory, 1 node(s) had untolerated taint(s), 2 Insufficient cpu.";
        assert_eq!(
            unschedulable(3, &list, Some(NO_CLAIMS), &Outlook::NotHelpful(&tried)),
            format!(
                "{said} no new claims to deallocate, preemption: 0/3 nodes are available: 1 Preemption is not helpful \
                 for scheduling, 2 No preemption victims found for incoming pod."
            )
        );
        let never = Outlook::NotEligible("not eligible due to preemptionPolicy=Never.");
        assert_eq!(
            unschedulable(3, &list, None, &never),
            format!("{said} preemption: not eligible due to preemptionPolicy=Never.")
        );
        assert_eq!(unschedulable(3, &list, Some(NO_CLAIMS), &Outlook::Nominated), said);
        assert_eq!(
            refused(
                3,
                "pod has unbound immediate PersistentVolumeClaims",
                Some(NO_CLAIMS),
                &Outlook::Disabled
            ),
            "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims. no new claims to deallocate"
        );
    }
}
