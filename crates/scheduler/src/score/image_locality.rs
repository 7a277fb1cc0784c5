//! ImageLocality: the node that has the pod's images is better, the larger they are. What many nodes have counts more, so
//! that a single node with an image does not draw every pod.
use super::MAX;
use crate::pod_info::Demand;
use crate::snapshot::{NodeInfo, Snapshot};

const MEGABYTE: i64 = 1024 * 1024;
/// Less than this is as good as nothing.
const LEAST: i64 = 23 * MEGABYTE;
/// More than this per container counts no further.
const MOST: i64 = 1000 * MEGABYTE;

pub(crate) fn run(demand: &Demand, node: &NodeInfo, snapshot: &Snapshot) -> i64 {
    let nodes = snapshot.order().len() as f64;
    let size = |image: &std::sync::Arc<str>| {
        let spread = snapshot.nodes_with(image) as f64 / nodes;
        node.images.get(image).map_or(0, |size| (*size as f64 * spread) as i64)
    };
    let sum: i64 = demand.images.iter().map(size).sum();
    let most = MOST * i64::try_from(demand.images.len()).unwrap_or(i64::MAX / MOST).max(1);
    MAX * (sum.clamp(LEAST, most) - LEAST) / (most - LEAST)
}
