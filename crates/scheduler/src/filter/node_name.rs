//! NodeName: a pod that names its node runs nowhere else.
use super::Verdict;
use crate::pod_info::Demand;
use crate::snapshot::NodeInfo;

pub(super) fn run(demand: &Demand, node: &NodeInfo) -> Verdict {
    match &demand.node_name {
        Some(name) if **name != *node.name => {
            Verdict::unresolvable("node(s) didn't match the requested node name")
        }
        _ => Verdict::Fits,
    }
}
