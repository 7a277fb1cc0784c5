//! Queueing hints: what happened in the cluster, and whether it can help a pod that waits.
use crate::filter::{EXTENDER, FILTERS, INTER_POD_AFFINITY, POD_TOPOLOGY_SPREAD, keeps_off};
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
    /// Something about volumes changed.
    Storage(Storage<'a>),
    /// Something about devices changed.
    Devices(DeviceEvent<'a>),
}

/// What about devices changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceEvent<'a> {
    /// A claim.
    Claim {
        /// `namespace/name`.
        key: &'a str,
        /// It gave devices back.
        freed: bool,
        /// The uid of the pod for whose extended resources it was made; empty: it was not.
        made_for: &'a str,
    },
    /// A class; the extended resources for which it, or another in its place, stands from now on.
    Class(&'a [String]),
    /// What a driver offers, or which of it is tainted.
    Slice,
}

/// What about volumes changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage<'a> {
    /// A claim, by `namespace/name`.
    Claim(&'a str),
    /// A volume.
    Volume,
    /// A class.
    Class,
    /// A driver, or what it can do.
    Driver,
    /// What a driver can do on a node.
    CsiNode,
    /// The space that a driver has.
    Capacity,
    /// An attachment ended.
    Attachment,
}

impl Storage<'_> {
    /// Whether it is a claim that the pod uses.
    pub(crate) fn is_claim_of(self, pod: &PodInfo) -> bool {
        matches!(self, Storage::Claim(key) if pod.claims.iter().any(|c| c.key == key))
    }
}

impl Event<'_> {
    /// Whether any filter that rejected the pod (a bit set) could now say yes.
    pub fn helps(&self, pod: &PodInfo, rejected_by: u32, profile: &Profile, namespaces: &Namespaces) -> bool {
        self.judge(pod, rejected_by, profile, namespaces).0
    }

    /// The same; and the filters that reject the pod because of what happened, which it waits for from now on as well.
    pub fn judge(
        &self,
        pod: &PodInfo,
        rejected_by: u32,
        profile: &Profile,
        namespaces: &Namespaces,
    ) -> (bool, u32) {
        let off = match self {
            Event::Node(node) => keeps_off(pod, node, profile),
            _ => None,
        };
        if rejected_by & (1 << EXTENDER) != 0 && off.is_none() {
            return (true, 0);
        }
        let rejected = FILTERS.iter().enumerate().filter(|(i, _)| rejected_by & (1 << i) != 0);
        // A node that does not take the pod may yet let others take it, by what it has in common with them.
        let mut able =
            rejected.filter(|(i, _)| off.is_none() || matches!(*i, POD_TOPOLOGY_SPREAD | INTER_POD_AFFINITY));
        let helps = able.any(|(_, filter)| (filter.helps)(pod, self, namespaces));
        (helps, off.map_or(0, |filter| 1 << filter))
    }
}
