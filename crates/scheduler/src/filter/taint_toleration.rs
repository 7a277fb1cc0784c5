//! TaintToleration: a node's taints keep away pods that do not tolerate them.
//! Rule: <https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/>
use k8s_openapi::api::core::v1::{Taint, Toleration};

use super::Verdict;
use crate::pod_info::Demand;
use crate::snapshot::NodeInfo;

/// Whether the toleration covers the taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |t: &Option<String>| t.as_deref().unwrap_or_default().to_owned();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    (effect.is_empty() || effect == taint.effect)
        && (key.is_empty() || key == taint.key)
        && match toleration.operator.as_deref() {
            Some("Exists") => true,
            None | Some("" | "Equal") => text(&toleration.value) == text(&taint.value),
            _ => false,
        }
}

/// Whether the pod tolerates every taint that keeps pods away.
pub fn tolerates_hard(demand: &Demand, node: &NodeInfo) -> bool {
    first_open(demand, node).is_none()
}

fn first_open<'a>(demand: &Demand, node: &'a NodeInfo) -> Option<&'a Taint> {
    let hard = |t: &&Taint| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute");
    let open = |t: &&Taint| !demand.tolerations.iter().any(|toleration| tolerates(toleration, t));
    node.taints.iter().filter(hard).find(open)
}

pub(super) fn run(demand: &Demand, node: &NodeInfo) -> Verdict {
    if tolerates_hard(demand, node) {
        return Verdict::Fits;
    }
    Verdict::unresolvable("node(s) had untolerated taint(s)")
}
