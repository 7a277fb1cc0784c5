//! Filters: whether a pod may run on a node. Each is a pure function of the pod's demand and one node, so a verdict
//! holds until the node changes.
pub mod node_affinity;
pub mod node_name;
pub mod node_ports;
pub mod node_resources_fit;
pub mod node_unschedulable;
pub mod taint_toleration;

use std::sync::Arc;

use crate::pod_info::Demand;
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

/// One filter.
pub struct Filter {
    /// The plugin's name in the scheduler's configuration.
    pub name: &'static str,
    pub(crate) run: fn(&Demand, &NodeInfo) -> Verdict,
    /// Whether a change of this node could make the filter say yes, all its pods left out.
    pub(crate) node_helps: fn(&Demand, &NodeInfo) -> bool,
    /// Whether the end of a pod with the second demand could make the filter say yes for the first.
    pub(crate) freed_helps: fn(&Demand, &Demand) -> bool,
}

/// All filters in the order they run; the first that rejects a node names the reason.
pub static FILTERS: [Filter; 6] = [
    Filter {
        name: "NodeUnschedulable",
        run: node_unschedulable::run,
        node_helps: |d, n| fits(node_unschedulable::run(d, n)),
        freed_helps: |_, _| false,
    },
    Filter {
        name: "NodeName",
        run: node_name::run,
        node_helps: |d, n| fits(node_name::run(d, n)),
        freed_helps: |_, _| false,
    },
    Filter {
        name: "TaintToleration",
        run: taint_toleration::run,
        node_helps: |d, n| fits(taint_toleration::run(d, n)),
        freed_helps: |_, _| false,
    },
    Filter {
        name: "NodeAffinity",
        run: node_affinity::run,
        node_helps: |d, n| fits(node_affinity::run(d, n)),
        freed_helps: |_, _| false,
    },
    Filter {
        name: "NodePorts",
        run: node_ports::run,
        node_helps: |d, n| fits(node_ports::run(d, n)),
        freed_helps: node_ports::freed_helps,
    },
    Filter {
        name: "NodeResourcesFit",
        run: node_resources_fit::run,
        node_helps: node_resources_fit::could_fit,
        freed_helps: node_resources_fit::freed_helps,
    },
];

fn fits(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Fits)
}

/// Runs the filters until one rejects.
pub fn check(demand: &Demand, node: &NodeInfo) -> Result<(), Rejection> {
    for (filter, plugin) in FILTERS.iter().enumerate() {
        if let Verdict::Rejected(reasons, resolvable) = (plugin.run)(demand, node) {
            return Err(Rejection { filter, reasons, resolvable });
        }
    }
    Ok(())
}
