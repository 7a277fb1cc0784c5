//! Preferred node affinity: the sum of the weights of the terms that match.
use crate::pod_info::Demand;
use crate::snapshot::NodeInfo;

pub(super) fn run(demand: &Demand, node: &NodeInfo) -> i64 {
    demand.affinity.preference(node)
}
