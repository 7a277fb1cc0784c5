//! NodeUnschedulable: a cordoned node takes only pods that tolerate its taint.
use k8s_openapi::api::core::v1::Taint;

use super::Verdict;
use super::taint_toleration::tolerates;
use crate::pod_info::Demand;
use crate::snapshot::NodeInfo;

pub(super) fn run(demand: &Demand, node: &NodeInfo) -> Verdict {
    if !node.unschedulable {
        return Verdict::Fits;
    }
    let taint = Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Default::default()
    };
    if demand.tolerations.iter().any(|t| tolerates(t, &taint)) {
        return Verdict::Fits;
    }
    Verdict::unresolvable("node(s) were unschedulable")
}
