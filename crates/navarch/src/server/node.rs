//! The parts that make this machine a node: pod network, runtime, kubelet, Services, DNS.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use apiserver::Server;
use runtime::Runtime;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::pod_network::Adapter;
use super::{CLUSTER_CIDR, CLUSTER_DNS, CLUSTER_DOMAIN, Ended, SERVICE_CIDR, images};
use crate::command::Part;
use crate::data_dir::DataDir;

/// The port of every DNS server.
const DNS_PORT: u16 = 53;
/// The kubelet's own, known to the API server by the Node.
const KUBELET_PORT: u16 = 10250;

/// What this node is called and where it is.
pub struct Identity<'a> {
    /// The node's name.
    pub name: &'a str,
    /// Its address.
    pub address: IpAddr,
    /// `registries.yaml`.
    pub registries: &'a Path,
}

/// Starts the parts of this node, each in its own task.
pub async fn start(
    server: &Arc<Server>,
    data: &DataDir,
    parts: &BTreeSet<Part>,
    node: &Identity<'_>,
    running: &mut JoinSet<Ended>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let config = network_config(data);
    let network = network::Network::open(config.clone()).await.context("cannot set up the pod network")?;
    if parts.contains(&Part::Agent) {
        runtime::registry::settings::Settings::load(node.registries)?;
        let (gate, arrivals) = policy::gate();
        let client = server.client("system:kube-network-policies", &[]);
        let policies = policy::Config::for_network(node.name, &config);
        let ending = stop.clone();
        running.spawn(async move {
            let ended = policy::run(client, policies, arrivals, ending).await;
            ("network policies", ended.map_err(Into::into))
        });
        let mut runtime = runtime_config(data, Arc::new(Adapter { network: Arc::new(network), gate }));
        runtime.registries.settings = node.registries.to_owned();
        let runtime = Runtime::open(runtime).await.context("cannot start the container runtime")?;
        serve_runtime(&runtime, data, running, stop);
        let client = server.client(&format!("system:node:{}", node.name), &["system:nodes"]);
        let kubelet = kubelet_config(server, data, node, &config, runtime)?;
        let stop = stop.clone();
        running
            .spawn(async move { ("kubelet", kubelet::run(client, kubelet, stop).await.map_err(Into::into)) });
    }
    if parts.contains(&Part::Proxy) {
        let client = server.client("system:kube-proxy", &[]);
        let proxy = proxy::Config::for_network(node.name, &config);
        let stop = stop.clone();
        running.spawn(async move { ("proxy", proxy::run(client, proxy, stop).await.map_err(Into::into)) });
    }
    if parts.contains(&Part::Dns) {
        let client = server.client("system:kube-dns", &[]);
        let mut dns = dns::Config::new(vec![SocketAddr::new(CLUSTER_DNS, DNS_PORT)]);
        dns.cluster_domain = CLUSTER_DOMAIN.to_owned();
        dns.reverse = [CLUSTER_CIDR, SERVICE_CIDR].into_iter().filter_map(split).collect();
        let stop = stop.clone();
        running.spawn(async move { ("dns", dns::run(client, dns, stop).await.map_err(Into::into)) });
    }
    Ok(())
}

/// The pod network of this machine.
pub fn network_config(data: &DataDir) -> network::Config {
    network::Config::single_node(data.network())
}

/// The runtime's folders.
pub fn runtime_config(data: &DataDir, network: Arc<dyn runtime::PodNetwork>) -> runtime::Config {
    runtime::Config {
        root: data.runtime(),
        run: data.run(),
        cgroup_parent: data.cgroup(),
        exe: "/proc/self/exe".into(),
        network,
        instance: data.instance().to_owned(),
        registries: Default::default(),
    }
}

/// The runtime's sockets: CRI for its tools, and our own for image archives.
fn serve_runtime(
    runtime: &Arc<Runtime>,
    data: &DataDir,
    running: &mut JoinSet<Ended>,
    stop: &CancellationToken,
) {
    let (service, socket, ended) = (runtime.service(), data.cri_socket(), stop.clone());
    running.spawn(async move {
        let served = cri::serve_unix(service, &socket, ended.cancelled_owned()).await;
        ("container runtime's socket", served.map_err(Into::into))
    });
    let (runtime, socket, stop) = (runtime.clone(), data.image_socket(), stop.clone());
    running.spawn(async move { ("image socket", images::serve(&socket, runtime, stop).await) });
}

fn kubelet_config(
    server: &Server,
    data: &DataDir,
    node: &Identity<'_>,
    network: &network::Config,
    runtime: Arc<Runtime>,
) -> anyhow::Result<kubelet::Config> {
    let user = format!("system:node:{}", node.name);
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let serving = server.pki().server(&user, &["system:nodes"], &[node.name], &[node.address, loopback])?;
    Ok(kubelet::Config {
        node_name: node.name.to_owned(),
        cri: cri::in_process(runtime.service()),
        root: data.kubelet(),
        logs: data.pod_logs(),
        node_ip: node.address,
        listen: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), KUBELET_PORT),
        cert_pem: serving.cert_pem,
        key_pem: serving.key_pem,
        client_ca_pem: server.pki().ca_pem().to_owned(),
        cluster_dns: vec![CLUSTER_DNS.to_string()],
        cluster_domain: CLUSTER_DOMAIN.to_owned(),
        pod_cidr: network.pod_cidrs.first().map(ToString::to_string),
        cgroup_parent: data.cgroup(),
        labels: Default::default(),
        version: format!("v1.36.0+navarch.{}", env!("CARGO_PKG_VERSION")),
    })
}

/// `10.0.0.0/8` as address and prefix length.
fn split(cidr: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = cidr.split_once('/')?;
    Some((address.parse().ok()?, length.parse().ok()?))
}
