//! Services of a node, as maps in one nftables table that are edited element by element, or by the kernel's IPVS.
//!
//! Layout (measured before it was chosen): a packet's destination, protocol and port is
//! looked up in a map of *frontends*, which gives a number that names a *tier*: how many endpoints there are and
//! how they are to be treated. The tier's chain draws an index and looks (frontend, index) up in the map of
//! *endpoints*. A change of one endpoint is therefore a change of one or two elements, whatever the number of
//! services; chains exist per tier, not per service, and are made when the first service needs one.
//!
//! Parts:
//! - [`plan`] pure: a Service and its EndpointSlices to frontends and their targets, and who owns a frontend;
//! - [`diff`] pure: what the kernel holds and what it should hold to element changes;
//! - [`layout`] names, keys, chains and rules;
//! - [`virtuals`] pure: the same for IPVS;
//! - [`health`] small HTTP servers: what load balancers ask before they send packets here;
//! - [`apply`] netlink: reads the table back at start (a restart changes only what differs), commits changes in
//!   one batch, deletes UDP connections and affinities of endpoints that went;
//! - [`ipvs`] the same for IPVS, which then balances in the place of the maps. Everything else stays the table's: which packets
//!   are led to IPVS ([`network::ipvs`]), masquerade, source ranges, refusals, and clients inside the cluster of a frontend whose
//!   policy is `Local` (IPVS knows no sources);
//! - `watch` the only part that knows the API: one task that waits on both caches, takes all changes that
//!   wait, plans the services concerned and applies them together. After an error it reads the table back and
//!   plans everything again, with a growing delay.
//!
//! Rejected: a chain per service (adding one costs milliseconds in a large table: the kernel validates jumps
//! anew), a chain per endpoint (rule growth of iptables), rewriting the table.

pub mod apply;
pub mod diff;
pub mod health;
pub mod ipvs;
pub mod layout;
pub mod plan;
pub mod virtuals;
mod watch;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use network::Cidr;
use network::ipvs::Scheduler;

pub use apply::{ApplyError, Table};
pub use watch::run;

/// How services are served on this node.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node's name, for traffic policies `Local`.
    pub node_name: String,
    /// Name of the nftables table (family inet), shared with `network`.
    pub table: String,
    /// All pods of the cluster; who reaches a cluster IP from elsewhere is masqueraded.
    pub cluster_cidrs: Vec<Cidr>,
    /// The service networks; ports there that no service has are refused.
    pub service_cidrs: Vec<Cidr>,
    /// Service addresses that a process of this node serves itself (cluster DNS); they are left alone.
    pub node_local: BTreeSet<IpAddr>,
    /// The namespace that acts as the node; `None` is the process's own.
    pub netns: Option<PathBuf>,
    /// Where the proxy says how it does; kube-proxy's `--healthz-bind-address`.
    pub healthz: Option<SocketAddr>,
    /// IPVS balances, in this way; `None`: the nftables maps do.
    pub ipvs: Option<Scheduler>,
    /// Where node ports are served; kube-proxy's `--nodeport-addresses`.
    pub node_ports: NodePorts,
}

/// On which addresses of the node its node ports are served. Loopback is never one: the kernel routes no answers for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NodePorts {
    /// On all.
    #[default]
    Everywhere,
    /// On those in these ranges. Of a family without a range: on all, or with `only` on none.
    In {
        /// The ranges.
        ranges: Vec<Cidr>,
        /// No other.
        only: bool,
    },
}

impl NodePorts {
    /// On these addresses and no others.
    pub fn at(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let range = |addr: IpAddr| Cidr::new(addr, if addr.is_ipv6() { 128 } else { 32 });
        Self::In { ranges: addresses.into_iter().filter_map(range).collect(), only: true }
    }

    /// The ranges of a family; `None`: everywhere.
    pub fn ranges(&self, v6: bool) -> Option<Vec<Cidr>> {
        let Self::In { ranges, only } = self else { return None };
        let found: Vec<Cidr> = ranges.iter().copied().filter(|range| range.is_ipv6() == v6).collect();
        let everywhere = found.iter().any(|range| range.prefix_len() == 0) || found.is_empty() && !only;
        (!everywhere).then_some(found)
    }

    /// Whether they are served at an address of the node.
    pub fn are_at(&self, addr: IpAddr) -> bool {
        self.ranges(addr.is_ipv6()).is_none_or(|ranges| ranges.iter().any(|range| range.contains(addr)))
    }
}

/// kube-proxy's port for `/healthz` and `/livez`.
const HEALTHZ_PORT: u16 = 10256;

impl Config {
    /// The settings that fit `network`'s.
    pub fn for_network(node_name: &str, network: &network::Config) -> Self {
        let cidrs: BTreeSet<Cidr> = network.cluster_cidrs.iter().chain(&network.pod_cidrs).copied().collect();
        Self {
            node_name: node_name.to_owned(),
            table: network.table.clone(),
            cluster_cidrs: cidrs.into_iter().collect(),
            service_cidrs: network.service_cidrs.clone(),
            node_local: network.extra_addresses.iter().copied().collect(),
            netns: network.netns.clone(),
            healthz: Some(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), HEALTHZ_PORT)),
            ipvs: None,
            node_ports: NodePorts::default(),
        }
    }
}
