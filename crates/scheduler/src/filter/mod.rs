//! Filters: whether a pod may run on a node. Local ones are pure functions of the pod's demand and one node, so that a
//! verdict holds until the node changes; the others look at the rest of the cluster, by counts that are kept
//! ([`crate::counts`]).
pub mod node_affinity;
pub mod node_declared_features;
pub mod node_name;
pub mod node_ports;
pub mod node_resources_fit;
pub mod node_unschedulable;
pub mod pod_relations;
pub mod taint_toleration;

use std::sync::Arc;

use crate::devices;
use crate::hints::{DeviceEvent, Event, Storage};
use crate::pod_info::{Demand, PodInfo};
use crate::profile::Profile;
use crate::relations::Namespaces;
use crate::snapshot::NodeInfo;

/// Why a node is out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Index into [`FILTERS`].
    pub filter: usize,
    /// In the words users know.
    pub reasons: Vec<Arc<str>>,
    /// Whether removing pods from the node could help.
    pub resolvable: bool,
}

impl Rejection {
    /// One reason.
    pub fn new(filter: usize, reason: &str, resolvable: bool) -> Self {
        Self { filter, reasons: vec![reason.into()], resolvable }
    }
}

/// What a filter says.
pub(crate) enum Verdict {
    Fits,
    /// Reasons, and whether removing pods could help.
    Rejected(Vec<Arc<str>>, bool),
}

impl Verdict {
    fn unresolvable(reason: &str) -> Self {
        Verdict::Rejected(vec![reason.into()], false)
    }
}

type Local = fn(&Demand, &NodeInfo, &Profile) -> Verdict;

/// One filter.
pub struct Filter {
    /// The plugin's name in the scheduler's configuration.
    pub name: &'static str,
    /// Local filters: what it says of a node.
    local: Option<Local>,
    /// Whether what happened could make the filter say yes. A node that came or changed passes the local filters.
    pub(crate) helps: fn(&PodInfo, &Event<'_>, &Namespaces) -> bool,
}

/// Index of NodeAffinity.
pub const NODE_AFFINITY: usize = 3;
/// Index of NodeResourcesFit.
pub const NODE_RESOURCES_FIT: usize = 5;
/// Index of VolumeRestrictions.
pub const VOLUME_RESTRICTIONS: usize = 6;
/// Index of NodeVolumeLimits.
pub const NODE_VOLUME_LIMITS: usize = 7;
/// Index of VolumeBinding.
pub const VOLUME_BINDING: usize = 8;
/// Index of VolumeZone.
pub const VOLUME_ZONE: usize = 9;
/// Index of PodTopologySpread.
pub const POD_TOPOLOGY_SPREAD: usize = 10;
/// Index of InterPodAffinity.
pub const INTER_POD_AFFINITY: usize = 11;
/// Index of DynamicResources.
pub const DYNAMIC_RESOURCES: usize = 12;

/// In place of an index: an extender rejected. What it waits for is not known, so that anything may help.
pub const EXTENDER: usize = 31;
/// In place of an index: the rest of the pod's group is what it waits for.
pub const GANG: usize = 30;

/// A node that passes the local filters is all that can help.
fn node_only(_: &PodInfo, event: &Event<'_>, _: &Namespaces) -> bool {
    matches!(event, Event::Node(_))
}

/// All filters in the order they run; the first that rejects a node names the reason.
pub static FILTERS: [Filter; 14] = [
    Filter {
        name: "NodeUnschedulable",
        local: Some(|d, n, _| node_unschedulable::run(d, n)),
        helps: node_only,
    },
    Filter { name: "NodeName", local: Some(|d, n, _| node_name::run(d, n)), helps: node_only },
    Filter { name: "TaintToleration", local: Some(|d, n, _| taint_toleration::run(d, n)), helps: node_only },
    Filter { name: "NodeAffinity", local: Some(node_affinity::run), helps: node_only },
    Filter {
        name: "NodePorts",
        local: Some(|d, n, _| node_ports::run(d, n)),
        helps: |pod, event, _| match event {
            Event::Node(_) => true,
            Event::Freed(freed) => node_ports::freed_helps(&pod.demand, &freed.demand),
            _ => false,
        },
    },
    Filter {
        name: "NodeResourcesFit",
        local: Some(node_resources_fit::run),
        helps: |pod, event, _| match event {
            Event::Node(_) => true,
            // Whatever it had: there is one pod less on its node.
            Event::Freed(_) => true,
            Event::Devices(DeviceEvent::Class(resources)) => {
                resources.iter().any(|name| pod.demand.requests.scalar(name) > 0)
            }
            _ => false,
        },
    },
    Filter {
        name: "VolumeRestrictions",
        local: None,
        helps: |pod, event, _| match event {
            Event::Freed(other) => {
                !pod.claims.is_empty() || other.spec().is_some_and(|s| s.volumes.is_some())
            }
            Event::Storage(storage) => storage.is_claim_of(pod),
            Event::Node(_) => true,
            _ => false,
        },
    },
    Filter {
        name: "NodeVolumeLimits",
        local: None,
        helps: |pod, event, _| match event {
            Event::Freed(other) => !other.claims.is_empty(),
            Event::Storage(storage) => {
                matches!(storage, Storage::CsiNode | Storage::Attachment) || storage.is_claim_of(pod)
            }
            Event::Node(_) => true,
            _ => false,
        },
    },
    Filter {
        name: "VolumeBinding",
        local: None,
        helps: |pod, event, _| match event {
            Event::Storage(Storage::Claim(key)) => {
                // Another pod's claim may give a volume back only through the volume.
                pod.claims.iter().any(|c| c.key == *key)
            }
            Event::Storage(_) | Event::Node(_) => true,
            _ => false,
        },
    },
    Filter {
        name: "VolumeZone",
        local: None,
        helps: |pod, event, _| match event {
            Event::Storage(storage) => {
                matches!(storage, Storage::Volume | Storage::Class) || storage.is_claim_of(pod)
            }
            Event::Node(_) => true,
            _ => false,
        },
    },
    Filter { name: "PodTopologySpread", local: None, helps: pod_relations::spread_helps },
    Filter { name: "InterPodAffinity", local: None, helps: pod_relations::affinity_helps },
    Filter {
        name: "DynamicResources",
        local: None,
        helps: |pod, event, _| match event {
            Event::Node(_) => devices::wants_any(pod),
            Event::Devices(event) => match event {
                DeviceEvent::Claim { key, freed, made_for } => {
                    *freed || *made_for == &*pod.uid || devices::uses(&pod.pod, key)
                }
                DeviceEvent::Class(_) | DeviceEvent::Slice => true,
            },
            _ => false,
        },
    },
    Filter {
        name: "NodeDeclaredFeatures",
        local: Some(|d, n, _| node_declared_features::run(d, n)),
        helps: node_only,
    },
];

/// Runs the local filters until one rejects.
pub fn check(demand: &Demand, node: &NodeInfo, profile: &Profile) -> Result<(), Rejection> {
    for (filter, plugin) in FILTERS.iter().enumerate() {
        if let Some(run) = plugin.local
            && profile.runs(filter)
            && let Verdict::Rejected(reasons, resolvable) = run(demand, node, profile)
        {
            return Err(Rejection { filter, reasons, resolvable });
        }
    }
    Ok(())
}

/// The filter that keeps the pod off the node even if pods less important than it were not there. While there is one, a change of
/// the node is not worth a try.
pub fn keeps_off(pod: &PodInfo, node: &NodeInfo, profile: &Profile) -> Option<usize> {
    let rejection = check(&pod.demand, node, profile).err()?;
    let preempts = rejection.resolvable
        && profile.preemption.is_some()
        && node.pods().any(|p| p.priority < pod.priority);
    (!preempts).then_some(rejection.filter)
}
