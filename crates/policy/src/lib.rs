//! NetworkPolicy on a node, as chains and sets in the one nftables table that `network` and `proxy` use too.
//!
//! Parts:
//! - [`facts`] pure: what counts of a pod;
//! - [`ranges`] pure: address blocks and their exceptions;
//! - [`plan`] pure: policies, pods and namespaces to chains, rules and sets;
//! - [`diff`] pure: from one plan to the next as one batch. A pod that comes or goes elsewhere changes elements only;
//! - [`layout`] names, keys, base chains, the order in which packets are judged;
//! - [`apply`] netlink;
//! - `watch` one task: waits on three caches and on the [`Gate`], takes all that waits, plans and applies.
//!
//! Closed, not open: a new pod's network is handed over only after the policies that select it are in force (the
//! [`Gate`]); the rules stay in the kernel while the process is away; the first plan of a new process replaces them in one
//! batch, and only after the caches are complete.
//!
//! Rejected: judging only a connection's first packet (a policy that forbids it later would not end it), verdicts by
//! packet marks between egress and ingress (other programs use marks), a chain per pair of pods.
//!
//! TODO-scale: a change that matters looks at all pods for the policies that select pods of this node.

pub mod apply;
pub mod diff;
pub mod facts;
pub mod layout;
pub mod plan;
pub mod ranges;
mod watch;

use std::path::PathBuf;

pub use apply::{ApplyError, Table, counters};
pub use facts::PodFacts;
pub use watch::{Arrivals, Gate, NotEnforced, gate, run};

/// How policies are enforced on this node.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node's name: its pods are protected here.
    pub node_name: String,
    /// Name of the nftables table (family inet), shared with `network`.
    pub table: String,
    /// The address families that pods have (IPv6?).
    pub families: Vec<bool>,
    /// What the node itself does in the place of a pod, so that policies can name it: cluster DNS.
    pub node_pods: Vec<PodFacts>,
    /// The namespace that acts as the node; `None` is the process's own.
    pub netns: Option<PathBuf>,
}

impl Config {
    /// The settings that fit `network`'s. Cluster DNS, which the node answers itself at its extra addresses, goes by the
    /// labels that policies know it by.
    pub fn for_network(node_name: &str, network: &network::Config) -> Self {
        let dns = PodFacts {
            namespace: "kube-system".to_owned(),
            name: "kube-dns".to_owned(),
            labels: [("k8s-app".to_owned(), "kube-dns".to_owned())].into(),
            ips: network.extra_addresses.clone(),
            ports: vec![
                ("dns".to_owned(), network::Protocol::Udp, 53),
                ("dns-tcp".to_owned(), network::Protocol::Tcp, 53),
            ],
            local: false,
        };
        Self {
            node_name: node_name.to_owned(),
            table: network.table.clone(),
            families: network.pod_cidrs.iter().map(network::Cidr::is_ipv6).collect(),
            node_pods: vec![dns],
            netns: network.netns.clone(),
        }
    }
}
