//! NodeResourcesBalancedAllocation: the node whose CPU and memory are used in like proportion is better.
use super::{MAX, shares};
use crate::pod_info::Demand;
use crate::snapshot::NodeInfo;

pub(super) fn run(demand: &Demand, node: &NodeInfo) -> i64 {
    // A pod that asks for nothing balances nothing.
    if demand.requests.is_zero() {
        return 0;
    }
    let mut fractions = [0.0; 2];
    let mut count = 0;
    for (used, offered) in shares(&demand.requests, &node.requested, node) {
        if offered > 0 {
            fractions[count] = (used as f64 / offered as f64).min(1.0);
            count += 1;
        }
    }
    // The standard deviation of two values is half their distance.
    let deviation = if count == 2 { (fractions[0] - fractions[1]).abs() / 2.0 } else { 0.0 };
    ((1.0 - deviation) * MAX as f64) as i64
}
