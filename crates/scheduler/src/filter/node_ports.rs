//! NodePorts: two pods cannot have the same port of a node.
use super::Verdict;
use crate::pod_info::{Demand, HostPort};
use crate::snapshot::NodeInfo;

/// The wildcard address meets every other.
fn meet(a: &HostPort, b: &HostPort) -> bool {
    a.port == b.port
        && a.protocol == b.protocol
        && (a.ip == b.ip || &*a.ip == "0.0.0.0" || &*b.ip == "0.0.0.0")
}

pub(super) fn run(demand: &Demand, node: &NodeInfo) -> Verdict {
    if demand.host_ports.iter().any(|port| node.ports.keys().any(|used| meet(port, used))) {
        let reason = "node(s) didn't have free ports for the requested pod ports";
        return Verdict::Rejected(vec![reason.into()], true);
    }
    Verdict::Fits
}

pub(super) fn freed_helps(demand: &Demand, freed: &Demand) -> bool {
    demand.host_ports.iter().any(|port| freed.host_ports.iter().any(|used| meet(port, used)))
}
