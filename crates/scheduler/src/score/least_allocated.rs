//! LeastAllocated, the default strategy of NodeResourcesFit: the emptier node is better, CPU and memory counting alike.
use super::{MAX, shares};
use crate::pod_info::Demand;
use crate::snapshot::NodeInfo;

pub(super) fn run(demand: &Demand, node: &NodeInfo) -> i64 {
    let (mut sum, mut weights) = (0, 0);
    for (used, offered) in shares(&demand.scored, &node.scored, node) {
        if offered > 0 {
            sum += if used > offered {
                0
            } else {
                (i128::from(offered - used) * i128::from(MAX) / i128::from(offered)) as i64
            };
            weights += 1;
        }
    }
    if weights == 0 { 0 } else { sum / weights }
}
