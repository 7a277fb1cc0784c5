//! NodeDeclaredFeatures: a node runs a pod only if it declares what the pod cannot do without.
use api::declared_features::missing;

use super::Verdict;
use crate::pod_info::Demand;
use crate::snapshot::NodeInfo;

pub(super) fn run(demand: &Demand, node: &NodeInfo) -> Verdict {
    let declared = node.node.as_ref().and_then(|node| node.status.as_ref()?.declared_features.as_deref());
    match missing(&demand.features, declared.unwrap_or_default()).as_slice() {
        [] => Verdict::Fits,
        _ => Verdict::unresolvable("node(s) didn't match Pod's required features"),
    }
}
