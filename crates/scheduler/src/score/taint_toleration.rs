//! Soft taints (PreferNoSchedule): the fewer the pod does not tolerate, the better.
use crate::filter::taint_toleration::tolerates;
use crate::pod_info::Demand;
use crate::snapshot::NodeInfo;

const SOFT: &str = "PreferNoSchedule";

pub(super) fn run(demand: &Demand, node: &NodeInfo) -> i64 {
    let open = |t: &&k8s_openapi::api::core::v1::Taint| {
        t.effect == SOFT && !demand.tolerations.iter().any(|toleration| tolerates(toleration, t))
    };
    i64::try_from(node.taints.iter().filter(open).count()).unwrap_or(i64::MAX)
}
