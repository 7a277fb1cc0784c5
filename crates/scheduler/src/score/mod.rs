//! Scores: how good a node is for a pod that may run there. Raw scores are pure functions of demand and node and hold
//! until the node changes; some are then related to the other candidates (`Scale`).
mod balanced_allocation;
mod least_allocated;
mod node_affinity;
mod taint_toleration;

use crate::pod_info::Demand;
use crate::snapshot::NodeInfo;

/// The best a node can score.
pub const MAX: i64 = 100;

/// How raw scores of the candidates become 0 to [`MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scale {
    /// They are already.
    None,
    /// The highest becomes [`MAX`].
    Highest,
    /// The highest becomes 0, and 0 becomes [`MAX`].
    Reversed,
}

/// One score.
pub struct Score {
    /// The plugin's name in the scheduler's configuration.
    pub name: &'static str,
    weight: i64,
    scale: Scale,
    run: fn(&Demand, &NodeInfo) -> i64,
}

/// Number of scores.
pub const COUNT: usize = 4;

/// All scores with the default weights of v1.36.
pub static SCORES: [Score; COUNT] = [
    Score { name: "TaintToleration", weight: 3, scale: Scale::Reversed, run: taint_toleration::run },
    Score { name: "NodeAffinity", weight: 2, scale: Scale::Highest, run: node_affinity::run },
    Score { name: "NodeResourcesFit", weight: 1, scale: Scale::None, run: least_allocated::run },
    Score {
        name: "NodeResourcesBalancedAllocation",
        weight: 1,
        scale: Scale::None,
        run: balanced_allocation::run,
    },
];

/// A node's raw scores.
pub type Raw = [i32; COUNT];

/// Runs every score.
pub fn raw(demand: &Demand, node: &NodeInfo) -> Raw {
    std::array::from_fn(|i| i32::try_from((SCORES[i].run)(demand, node)).unwrap_or(i32::MAX))
}

/// Relates raw scores to the candidates' highest ones and adds them up by weight.
pub fn total(raw: &Raw, highest: &Raw) -> i64 {
    let mut sum = 0;
    for (i, score) in SCORES.iter().enumerate() {
        let (value, top) = (i64::from(raw[i]), i64::from(highest[i]));
        let scaled = match score.scale {
            Scale::None => value,
            Scale::Highest if top == 0 => 0,
            Scale::Highest => MAX * value / top,
            Scale::Reversed if top == 0 => MAX,
            Scale::Reversed => MAX - MAX * value / top,
        };
        sum += score.weight * scaled;
    }
    sum
}

/// What a node would have in use with the pod on it, and what it offers, of CPU and memory.
fn shares(
    demand: &crate::resources::Resources,
    used: &crate::resources::Resources,
    node: &NodeInfo,
) -> [(i64, i64); 2] {
    [
        (used.milli_cpu.saturating_add(demand.milli_cpu), node.allocatable.milli_cpu),
        (used.memory.saturating_add(demand.memory), node.allocatable.memory),
    ]
}
