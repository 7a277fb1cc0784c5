//! FailedScheduling in the words of Kubernetes v1.36.
use std::collections::BTreeMap;

use crate::filter::Rejection;

/// What is said when there is no node at all.
pub const NO_NODES: &str = "no nodes available to schedule pods";

/// `0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient cpu. no new claims to deallocate, preemption:
/// ...`: reasons with their numbers of nodes, sorted as text, then what the steps after filtering had to say.
pub fn unschedulable(rejections: &[Rejection], never_preempts: bool) -> String {
    let nodes = rejections.len();
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for rejection in rejections {
        for reason in &rejection.reasons {
            *reasons.entry(reason).or_default() += 1;
        }
    }
    let preemption = if never_preempts {
        "not eligible due to preemptionPolicy=Never.".to_owned()
    } else {
        let mut why: BTreeMap<&str, usize> = BTreeMap::new();
        for rejection in rejections {
            let text = if rejection.resolvable {
                "No preemption victims found for incoming pod"
            } else {
                "Preemption is not helpful for scheduling"
            };
            *why.entry(text).or_default() += 1;
        }
        sentence(nodes, &why)
    };
    format!("{} no new claims to deallocate, preemption: {preemption}", sentence(nodes, &reasons))
}

fn sentence(nodes: usize, reasons: &BTreeMap<&str, usize>) -> String {
    let mut parts: Vec<String> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    parts.sort();
    format!("0/{nodes} nodes are available: {}.", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejection(reasons: &[&str], resolvable: bool) -> Rejection {
        Rejection { filter: 0, reasons: reasons.iter().map(|r| (*r).into()).collect(), resolvable }
    }

    #[test]
    fn reasons_are_counted_and_sorted() {
        let list = [
            rejection(&["Insufficient cpu", "Insufficient memory"], true),
            rejection(&["node(s) had untolerated taint(s)"], false),
            rejection(&["Insufficient cpu"], true),
        ];
        assert_eq!(
            unschedulable(&list, false),
            "0/3 nodes are available: 1 Insufficient memory, 1 node(s) had untolerated taint(s), 2 Insufficient cpu. \
             no new claims to deallocate, preemption: 0/3 nodes are available: 1 Preemption is not helpful for \
             scheduling, 2 No preemption victims found for incoming pod."
        );
        assert!(
            unschedulable(&list, true).ends_with("preemption: not eligible due to preemptionPolicy=Never.")
        );
    }
}
