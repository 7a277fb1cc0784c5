//! The pod network of a node: bridge, addresses, netlink and nftables. Knows nothing of Kubernetes.
//!
//! [`Network`] speaks CNI 1.1 in Rust: `add`, `del`, `check`, `gc`, `status`; [`plugin`] does so as a program. What it makes
//! on the node:
//!
//! - a bridge (`navarch0`) that carries each pod CIDR's first address, the gateway, and any extra addresses
//!   (the cluster DNS address);
//! - per attachment a veth pair. The pod's end has its address with the full prefix length (/32 or /128) and
//!   routes by way of the gateway, so all traffic between pods is routed by the node, where DNAT, its reversal
//!   and policies see it. That makes us independent of `br_netfilter`, which a host may lack or switch off;
//!   where it is on, the frames take the bridge's short cut and hairpin mode on the ports carries a pod that
//!   reaches itself;
//! - a route for the service CIDR over the bridge, without which a node process could not reach a service (the
//!   kernel routes before the output hook translates);
//! - the chain `pod-egress` in the nftables table `navarch`: masquerade for what leaves the cluster;
//! - with [`peers`] a vxlan link or a [`wireguard`] link and routes to the pods of other nodes;
//! - the table of family bridge of the same name: pods send with their own addresses only;
//! - maps for ports of the node that lead to a pod;
//! - with [`ipvs`] a rule that leads packets of services to the kernel's load balancer;
//! - with [`announce`] answers for addresses of load balancers on the links of the node's neighbours;
//! - files below the state directory: one per address taken, one per attachment. They are the truth, and
//!   survive restarts of the process and of the machine.
//!
//! Rejected: per-pod routes without a bridge (no shared gateway address to bind services of the node to), the
//! `nft` and `ip` programs (no external binary on a node).
//!
//! [`nft`] is the only place that knows which nftables library is used; `proxy` goes through it too.

mod addresses;
pub mod announce;
mod antispoof;
mod attach;
mod bandwidth;
mod bridge;
mod changes;
pub mod cidr;
pub mod conntrack;
mod gratuitous;
mod host;
mod host_ports;
mod ipam;
pub mod ipvs;
mod ipvs_wire;
pub mod netns;
mod network;
pub mod nft;
mod nft_wire;
pub mod peers;
pub mod plugin;
mod protocol;
mod reset;
mod sysctl;
mod turns;
pub mod wireguard;

pub use addresses::{address_changes, addresses};
pub use bandwidth::Limits;
pub use changes::Changes;
pub use cidr::Cidr;
pub use cni::{Attachment, CniResult};
pub use host::{host_ip, host_ipv6, host_mtu};
pub use host_ports::HostPort;
pub use network::{AddRequest, Config, Error, Network, loopback_up, open_services};
pub use protocol::Protocol;
pub use reset::{Leftover, reset};
