//! Queueing hints: what happened in the cluster, and whether it can help a pod that waits.
use crate::filter::{FILTERS, could_run};
use crate::pod_info::PodInfo;
use crate::profile::Profile;
use crate::relations::Namespaces;
use crate::snapshot::NodeInfo;

/// What happened.
pub enum Event<'a> {
    /// A node came, or changed in something a filter looks at.
    Node(&'a NodeInfo),
    /// A node went.
    NodeGone(&'a NodeInfo),
    /// A pod left its node, holds less there now, or relates to others in another way.
    Freed(&'a PodInfo),
    /// A pod took its place on a node.
    Placed(&'a PodInfo),
}

impl Event<'_> {
    /// Whether any filter that rejected the pod (a bit set) could now say yes.
    pub fn helps(&self, pod: &PodInfo, rejected_by: u32, profile: &Profile, namespaces: &Namespaces) -> bool {
        if let Event::Node(node) = self
            && !could_run(pod, node, profile)
        {
            return false;
        }
        let rejected = FILTERS.iter().enumerate().filter(|(i, _)| rejected_by & (1 << i) != 0);
        rejected.into_iter().any(|(_, filter)| (filter.helps)(pod, self, namespaces))
    }
}
