//! Preferred node affinity: the sum of the weights of the terms that match.
use crate::pod_info::Demand;
use crate::profile::Profile;
use crate::snapshot::NodeInfo;

pub(super) fn run(demand: &Demand, node: &NodeInfo, profile: &Profile) -> i64 {
    demand.affinity.preference(node) + profile.added_affinity.preference(node)
}
