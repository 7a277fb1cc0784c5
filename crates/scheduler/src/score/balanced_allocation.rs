//! NodeResourcesBalancedAllocation: the node whose resources are used in like proportion is better.
use super::{MAX, share};
use crate::pod_info::Demand;
use crate::profile::Profile;
use crate::snapshot::NodeInfo;

pub(super) fn run(demand: &Demand, node: &NodeInfo, profile: &Profile) -> i64 {
    // A pod that asks for nothing balances nothing.
    if profile.balanced.iter().all(|name| demand.requests.get(name) == 0) {
        return 0;
    }
    let mut fractions = Vec::with_capacity(profile.balanced.len());
    for name in &profile.balanced {
        let (used, offered) = share(name, &demand.requests, &node.requested, node);
        if offered > 0 {
            fractions.push((used as f64 / offered as f64).min(1.0));
        }
    }
    let deviation = match fractions[..] {
        [] | [_] => 0.0,
        [a, b] => (a - b).abs() / 2.0,
        _ => {
            let number = fractions.len() as f64;
            let mean = fractions.iter().sum::<f64>() / number;
            (fractions.iter().map(|f| (f - mean) * (f - mean)).sum::<f64>() / number).sqrt()
        }
    };
    ((1.0 - deviation) * MAX as f64) as i64
}
