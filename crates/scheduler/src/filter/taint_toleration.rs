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

pub(super) fn run(demand: &Demand, node: &NodeInfo) -> Verdict {
    let hard = |t: &&Taint| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute");
    let open = |t: &Taint| !demand.tolerations.iter().any(|toleration| tolerates(toleration, t));
    if node.taints.iter().filter(hard).any(open) {
        return Verdict::unresolvable("node(s) had untolerated taint(s)");
    }
    Verdict::Fits
}
