//! NodeResourcesBalancedAllocation: the node whose resources are used in more like proportion with the pod than without it is
//! better.
use super::{Beside, MAX, share};
use crate::pod_info::Demand;
use crate::profile::Profile;
use crate::snapshot::NodeInfo;

pub(super) fn run(demand: &Demand, node: &NodeInfo, profile: &Profile, beside: Beside<'_>) -> i64 {
    // A pod that asks for nothing balances nothing.
    if profile.balanced.iter().all(|name| demand.requests.get(name) == 0) {
        return 0;
    }
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for name in &profile.balanced {
        let (before, used, offered) = share(name, &demand.requests, &node.requested, node, beside);
        if offered > 0 {
            let fraction = |used: i64| (used as f64 / offered as f64).min(1.0);
            with.push(fraction(used));
            without.push(fraction(before));
        }
    }
    // 75 where nothing changes, 100 where the pod makes up for all that was out of proportion.
    MAX / 2 + (MAX / 2 + balance(&with) - balance(&without)) / 2
}

/// [`MAX`] where all fractions are alike.
fn balance(fractions: &[f64]) -> i64 {
    let deviation = match *fractions {
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

#[cfg(test)]
mod tests {
    use super::balance;

    #[test]
    fn fractions_are_balanced_when_they_are_alike() {
        assert_eq!((balance(&[]), balance(&[0.3]), balance(&[0.5, 0.5])), (100, 100, 100));
        assert_eq!((balance(&[0.0, 1.0]), balance(&[0.75, 0.375])), (50, 81));
        assert_eq!(balance(&[0.0, 0.5, 1.0]), 59);
    }
}
