//! Scores: how good a node is for a pod that may run there. Most raw scores are pure functions of demand and node and
//! hold until the node changes; those on other pods, on images and on devices are taken when the candidates are known. Some are then
//! related to the other candidates (`Scale`).
mod balanced_allocation;
mod image_locality;
mod node_affinity;
mod resources_fit;
mod taint_toleration;

pub(crate) use image_locality::run as image_locality;

use crate::devices::Devices;
use crate::pod_info::Demand;
use crate::profile::Profile;
use crate::resources::Resources;
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
    /// The lowest becomes 0, the highest [`MAX`].
    Range,
    /// Fewer is better, in relation to the highest; [`WORST`] is 0.
    Spread,
}

/// A raw score that is out of the running.
pub const WORST: i64 = i64::MIN;

/// One score.
pub struct Score {
    /// The plugin's name in the scheduler's configuration.
    pub name: &'static str,
    /// The weight in the default profile.
    pub weight: i64,
    scale: Scale,
    /// Of one node; the others are filled in later.
    local: Option<fn(&Demand, &NodeInfo, &Profile) -> i64>,
}

/// Number of scores.
pub const COUNT: usize = 8;
/// Index of NodeResourcesFit.
const NODE_RESOURCES_FIT: usize = 2;
/// Index of NodeResourcesBalancedAllocation.
const BALANCED_ALLOCATION: usize = 3;
/// Index of PodTopologySpread.
pub const POD_TOPOLOGY_SPREAD: usize = 4;
/// Index of InterPodAffinity.
pub const INTER_POD_AFFINITY: usize = 5;
/// Index of ImageLocality.
pub const IMAGE_LOCALITY: usize = 6;
/// Index of DynamicResources.
pub const DYNAMIC_RESOURCES: usize = 7;

/// All scores with the default weights of v1.36.
pub static SCORES: [Score; COUNT] = [
    Score {
        name: "TaintToleration",
        weight: 3,
        scale: Scale::Reversed,
        local: Some(|d, n, _| taint_toleration::run(d, n)),
    },
    Score { name: "NodeAffinity", weight: 2, scale: Scale::Highest, local: Some(node_affinity::run) },
    Score {
        name: "NodeResourcesFit",
        weight: 1,
        scale: Scale::None,
        local: Some(|d, n, p| resources_fit::run(d, n, p, &|_| None)),
    },
    Score {
        name: "NodeResourcesBalancedAllocation",
        weight: 1,
        scale: Scale::None,
        local: Some(|d, n, p| balanced_allocation::run(d, n, p, &|_| None)),
    },
    Score { name: "PodTopologySpread", weight: 2, scale: Scale::Spread, local: None },
    Score { name: "InterPodAffinity", weight: 2, scale: Scale::Range, local: None },
    Score { name: "ImageLocality", weight: 1, scale: Scale::None, local: None },
    Score { name: "DynamicResources", weight: 1, scale: Scale::Highest, local: None },
];

/// A node's raw scores.
pub type Raw = [i64; COUNT];

/// Runs the scores of one node; the others are 0.
pub fn raw(demand: &Demand, node: &NodeInfo, profile: &Profile) -> Raw {
    std::array::from_fn(|i| match SCORES[i].local {
        Some(run) if profile.weights[i] != 0 => run(demand, node, profile),
        _ => 0,
    })
}

/// The candidates' lowest and highest raw scores.
pub type Bounds = [(i64, i64); COUNT];

/// The bounds of a set of raw scores.
pub fn bounds<'a>(all: impl Iterator<Item = &'a Raw>) -> Bounds {
    let mut bounds = [(i64::MAX, i64::MIN); COUNT];
    for raw in all {
        for ((low, high), value) in bounds.iter_mut().zip(raw) {
            if *value != WORST {
                *low = (*low).min(*value);
                *high = (*high).max(*value);
            }
        }
    }
    bounds
}

/// Relates raw scores to the candidates' bounds and adds them up by weight.
pub fn total(raw: &Raw, bounds: &Bounds, weights: &[i64; COUNT]) -> i64 {
    let mut sum = 0;
    for (i, score) in SCORES.iter().enumerate() {
        if weights[i] == 0 {
            continue;
        }
        let (value, (low, high)) = (raw[i], bounds[i]);
        let scaled = match score.scale {
            Scale::None => value,
            Scale::Highest if high == 0 => 0,
            Scale::Highest => MAX * value / high,
            Scale::Reversed if high == 0 => MAX,
            Scale::Reversed => MAX - MAX * value / high,
            Scale::Range if high <= low => 0,
            Scale::Range => (MAX as f64 * ((value - low) as f64 / (high - low) as f64)) as i64,
            Scale::Spread if value == WORST => 0,
            Scale::Spread if high == 0 => MAX,
            Scale::Spread => MAX * (high + low - value) / high,
        };
        sum += weights[i] * scaled;
    }
    sum
}

/// What stands for a resource beside what the node itself offers: how much there is, and how much of it is in use.
type Beside<'a> = &'a dyn Fn(&str) -> Option<(i64, i64)>;

/// What a node has in use without the pod and with it, and what it offers. Extended resources that the pod does not ask for are
/// left out (0).
fn share(
    name: &str,
    demand: &Resources,
    used: &Resources,
    node: &NodeInfo,
    beside: Beside<'_>,
) -> (i64, i64, i64) {
    let asked = demand.get(name);
    if asked == 0 && !matches!(name, "cpu" | "memory" | "ephemeral-storage") {
        return (0, 0, 0);
    }
    let (offered, used) = match (node.allocatable.get(name), used.get(name)) {
        (0, used) => beside(name).unwrap_or((0, used)),
        own => own,
    };
    (used, used.saturating_add(asked), offered)
}

/// Whether scores look at what devices stand for on nodes that offer none of it.
pub fn counts_devices(demand: &Demand, devices: &Devices, profile: &Profile) -> bool {
    let resources = profile.fit.resources.iter().map(|(name, _)| name).chain(&profile.balanced);
    let mut backed = resources.filter(|name| devices.extended().class_of(name).is_some());
    backed.any(|name| demand.requests.get(name) > 0)
}

/// Takes the scores of resources anew, with devices that stand for some.
pub fn with_devices(raw: &mut Raw, demand: &Demand, node: &NodeInfo, devices: &Devices, profile: &Profile) {
    let beside = |name: &str| devices.totals(node, name);
    if profile.weights[NODE_RESOURCES_FIT] != 0 {
        raw[NODE_RESOURCES_FIT] = resources_fit::run(demand, node, profile, &beside);
    }
    if profile.weights[BALANCED_ALLOCATION] != 0 {
        raw[BALANCED_ALLOCATION] = balanced_allocation::run(demand, node, profile, &beside);
    }
}
