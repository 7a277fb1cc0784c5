//! Cluster DNS of a node: authoritative for the cluster's domain from the shared caches, forwarding the rest.
//!
//! Follows the Kubernetes DNS specification 1.1.0. Each node answers itself; there is no copy of names to go stale and
//! nothing to poll: the index of names is kept by changes of Services and EndpointSlices.
//!
//! Parts and tasks:
//! - [`records`] pure: a Service and its slices to an entry, an index of entries, a question to an answer;
//! - `watch` one task: waits on the caches and updates the index;
//! - [`server`] one task per UDP socket, which answers cluster names itself without a pause, and one per TCP
//!   listener and connection; questions that must be forwarded get a task each, as many as a semaphore admits;
//! - [`forward`] asks upstream resolvers, with an id and a port of our own for every question; [`cache`] keeps their answers;
//! - [`stub_domains`] which resolvers the cluster wants for which domains.
//!
//! Until the caches are full, cluster names are answered with SERVFAIL: "no such name" would be believed.

pub mod cache;
pub mod forward;
pub mod records;
pub mod server;
pub mod stub_domains;
mod watch;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

pub use server::{BindError, Server};
pub use watch::run;

/// How names are served.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen, UDP and TCP; the addresses must exist. Port 0 takes any.
    pub listen: Vec<SocketAddr>,
    /// The cluster's domain, for example `cluster.local`.
    pub cluster_domain: String,
    /// Networks (address and prefix length) whose reverse names we alone know: pods and services.
    pub reverse: Vec<(IpAddr, u8)>,
    /// Where everything else is asked; `None` reads `resolv_conf`.
    pub upstreams: Option<Vec<SocketAddr>>,
    /// The node's resolver configuration; its changes are followed.
    pub resolv_conf: PathBuf,
}

impl Config {
    /// The defaults with the listeners given.
    pub fn new(listen: Vec<SocketAddr>) -> Self {
        Self {
            listen,
            cluster_domain: "cluster.local".to_owned(),
            reverse: Vec::new(),
            upstreams: None,
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
        }
    }
}
