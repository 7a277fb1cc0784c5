//! The parts that make this machine a node: pod network, runtime, kubelet, Services, DNS.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::Context;
use apiserver::Server;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{CLUSTER_CIDR, CLUSTER_DNS, CLUSTER_DOMAIN, Ended, SERVICE_CIDR};
use crate::command::Part;
use crate::data_dir::DataDir;

/// The port of every DNS server.
const DNS_PORT: u16 = 53;

/// Starts the parts of this node, each in its own task.
pub async fn start(
    server: &Arc<Server>,
    data: &DataDir,
    parts: &BTreeSet<Part>,
    node_name: &str,
    address: IpAddr,
    running: &mut JoinSet<Ended>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let config = super::network_config(data);
    let network = network::Network::open(config.clone()).await.context("cannot set up the pod network")?;
    let network = Arc::new(network);
    let _ = (address, &network);
    if parts.contains(&Part::Proxy) {
        let client = server.client("system:kube-proxy", &["system:masters"]);
        let proxy = proxy::Config::for_network(node_name, &config);
        let stop = stop.clone();
        running.spawn(async move { ("proxy", proxy::run(client, proxy, stop).await.map_err(Into::into)) });
    }
    if parts.contains(&Part::Dns) {
        let client = server.client("system:dns", &["system:masters"]);
        let mut dns = dns::Config::new(vec![SocketAddr::new(CLUSTER_DNS, DNS_PORT)]);
        dns.cluster_domain = CLUSTER_DOMAIN.to_owned();
        dns.reverse = [CLUSTER_CIDR, SERVICE_CIDR].into_iter().filter_map(split).collect();
        let stop = stop.clone();
        running.spawn(async move { ("dns", dns::run(client, dns, stop).await.map_err(Into::into)) });
    }
    Ok(())
}

/// `10.0.0.0/8` as address and prefix length.
fn split(cidr: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = cidr.split_once('/')?;
    Some((address.parse().ok()?, length.parse().ok()?))
}
