//! The parts that make this machine a node: pod network, runtime, kubelet, Services, DNS.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use anyhow::Context;
use cni::chain::Runner;
use k8s_openapi::api::core::v1::Pod;
use kubelet::configuration::KubeletConfiguration;
use kubelet::server::ServingCertificate;
use network::announce::Announcer;
use network::peers::{self, Peers, Way};
use network::{Cidr, Network};
use runtime::Runtime;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::external_network::External;
use super::pod_network::Adapter;
use super::{Ended, images};
use crate::cluster_network::ClusterNetwork;
use crate::command::{CniOptions, KubeletOptions, NodeNetwork, Part, RuntimeOptions};
use crate::data_dir::DataDir;
use crate::service_proxy::ServiceProxyOptions;

/// The port of every DNS server.
const DNS_PORT: u16 = 53;

/// What this node is called and where it is.
pub struct Identity<'a> {
    /// The node's name.
    pub name: &'a str,
    /// Its addresses, at least one; the first is the node's own.
    pub addresses: Vec<IpAddr>,
    /// `registries.yaml`.
    pub registries: &'a Path,
    /// How packets reach the pods of other nodes.
    pub way: NodeNetwork,
    /// Whose plugins connect its pods.
    pub cni: &'a CniOptions,
    /// How its Services are served.
    pub proxy: &'a ServiceProxyOptions,
    /// What runs its containers.
    pub runtime: &'a RuntimeOptions,
    /// The kubelet.
    pub kubelet: &'a KubeletOptions,
    /// Where its pods' addresses come from; `None`: as the cluster says.
    pub pod_cidrs: Option<Vec<Cidr>>,
    /// The cluster's ranges and names.
    pub cluster: ClusterNetwork,
    /// How its kubelet is set up.
    pub settings: KubeletConfiguration,
}

impl Identity<'_> {
    /// The node's own address.
    fn address(&self) -> IpAddr {
        self.addresses.first().copied().unwrap_or(IpAddr::from([127, 0, 0, 1]))
    }
}

/// How the node's parts reach the API, and what the node shows.
pub struct Access {
    /// The cluster's authority, PEM.
    pub ca_pem: String,
    /// The kubelet's certificate as a server.
    pub serving: Arc<ServingCertificate>,
    /// A client for one of our parts, by user and groups.
    pub client: Box<dyn Fn(&str, &[&str]) -> client::Client>,
}

/// The parts that look after pods' traffic ask as this user.
const NETWORK_USER: &str = "system:kube-network";

/// Starts the parts of this node, each in its own task.
///
/// A new node has no network until the cluster gave it a pod CIDR, and the cluster gives one to nodes that are
/// registered: so the kubelet starts first, saying that its network is not ready, and the rest follows.
pub async fn start(
    access: &Access,
    data: &DataDir,
    parts: &BTreeSet<Part>,
    node: &Identity<'_>,
    running: &mut JoinSet<Ended>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    if parts.contains(&Part::Proxy) {
        node.proxy.check().await?;
    }
    let mut config = network_config(data);
    config.cluster_cidrs = node.cluster.cluster_cidrs.clone();
    config.service_cidrs = node.cluster.service_cidrs.clone();
    config.extra_addresses = node.cluster.cluster_dns.clone();
    let place = network::netns::Place::open(None)?;
    config.mtu = Some(network::host_mtu(&place, &node.addresses).await.saturating_sub(overhead(node)));
    let network = Arc::new(OnceLock::new());
    let remembered = node.pod_cidrs.clone().or_else(|| pod_cidrs_of(data));
    let external = external(node.cni, data);
    let other_runtime = node.settings.runtime_socket()?;
    // whose runtime it is, connects the pods
    let ours = external.is_none() && other_runtime.is_none();
    if !ours {
        network::open_services(&config, &node.addresses)
            .await
            .context("cannot set up the service network")?;
    } else if let Some(cidrs) = &remembered {
        config.pod_cidrs = cidrs.clone();
        open(&network, &config).await?;
    }
    let (gate, arrivals) = policy::gate();
    if parts.contains(&Part::Agent) {
        runtime::registry::settings::Settings::load(node.registries)?;
        let pods: Arc<dyn runtime::PodNetwork> = match external {
            Some(external) => Arc::new(external),
            None => Arc::new(Adapter { network: network.clone(), gate }),
        };
        let mut runtime = runtime_config(data, pods);
        runtime.registries.settings = node.registries.to_owned();
        runtime.handlers = node.runtime.runtime_handler.iter().cloned().collect();
        if !node.runtime.cdi_spec_dir.is_empty() {
            runtime.cdi_folders = node.runtime.cdi_spec_dir.clone();
        }
        let transport = match other_runtime {
            Some(socket) => {
                leave_to_another(runtime).await?;
                cri::to_unix(&socket)
            }
            None => {
                let runtime = Runtime::open(runtime).await.context("cannot start the container runtime")?;
                serve_runtime(&runtime, data, running, stop);
                cri::to_process(runtime.service())
            }
        };
        let cri = cri::clients(cri::observed(transport, kubelet::metrics::called));
        let client = (access.client)(&format!("system:node:{}", node.name), &["system:nodes"]);
        let pods = client.caches().of_selected::<Pod>(&format!("spec.nodeName={}", node.name));
        tokio::spawn(super::memory::return_between(pods.subscribe()));
        let kubelet = kubelet_config(access, data, node, remembered.as_deref(), cri)?;
        let stop = stop.clone();
        running
            .spawn(async move { ("kubelet", kubelet::run(client, kubelet, stop).await.map_err(Into::into)) });
    }
    if ours && remembered.is_none() {
        let client = (access.client)(NETWORK_USER, &[]);
        config.pod_cidrs = given_pod_cidrs(&client, node.name).await?;
        remember_pod_cidrs(data, &config.pod_cidrs)?;
        open(&network, &config).await?;
    }
    if ours {
        let (guarded, ending) = (network, stop.clone());
        running.spawn(async move {
            let ended = match guarded.get() {
                Some(network) => network.guard(ending).await.map_err(Into::into),
                None => Ok(()),
            };
            ("pod network", ended)
        });
    }
    if ours && parts.contains(&Part::Agent) {
        let client = (access.client)(NETWORK_USER, &[]);
        let (policies, ending) = (policy::Config::for_network(node.name, &config), stop.clone());
        running.spawn(async move {
            let ended = policy::run(client, policies, arrivals, ending).await;
            ("network policies", ended.map_err(Into::into))
        });
        routes(access, node, &config, running, stop).await?;
    }
    if parts.contains(&Part::Proxy) {
        let client = (access.client)("system:kube-proxy", &[]);
        announce(client.clone(), node.name, &config, running, stop)?;
        let mut proxy = proxy::Config::for_network(node.name, &config);
        node.proxy.apply(&mut proxy, &node.addresses)?;
        let stop = stop.clone();
        running.spawn(async move { ("proxy", proxy::run(client, proxy, stop).await.map_err(Into::into)) });
    }
    if parts.contains(&Part::Dns) {
        let client = (access.client)("system:kube-dns", &[]);
        let cluster = &node.cluster;
        let listen = cluster.cluster_dns.iter().map(|ip| SocketAddr::new(*ip, DNS_PORT)).collect();
        let mut dns = dns::Config::new(listen);
        dns.cluster_domain = cluster.cluster_domain.clone();
        let ranges = cluster.cluster_cidrs.iter().chain(&cluster.service_cidrs);
        dns.reverse = ranges.map(|range| (range.base(), range.prefix_len())).collect();
        let stop = stop.clone();
        running.spawn(async move { ("dns", dns::run(client, dns, stop).await.map_err(Into::into)) });
    }
    Ok(())
}

/// The plugins that are to connect pods; none: our network does.
fn external(options: &CniOptions, data: &DataDir) -> Option<External> {
    let folder = options.cni_conf_dir.clone()?;
    let runner = Runner { bin_dirs: options.cni_bin_dir.clone(), notes: data.cni() };
    Some(External { folder, runner, logged: Default::default() })
}

/// Has external plugins take back what they made for pods, as long as the node's folder knows of it.
pub async fn take_back_external(data: &DataDir) -> anyhow::Result<()> {
    // where the plugins are was written down with what they made
    let runner = Runner { bin_dirs: Vec::new(), notes: data.cni() };
    Ok(runner.gc(None, &[]).await?)
}

async fn open(network: &OnceLock<Network>, config: &network::Config) -> anyhow::Result<()> {
    let opened = Network::open(config.clone()).await.context("cannot set up the pod network")?;
    // nobody else sets it
    let _ = network.set(opened);
    Ok(())
}

/// The routes to other nodes' pods. A node that has no other to talk to works without, but where packets are to be encrypted
/// none goes otherwise.
async fn routes(
    access: &Access,
    node: &Identity<'_>,
    config: &network::Config,
    running: &mut JoinSet<Ended>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    if node.address().is_loopback() {
        tracing::warn!("the node has no address that others reach: pods of other nodes are not reached");
        return Ok(());
    }
    let peers = match Peers::open(config, node.address(), config.mtu.unwrap_or(1500), way(node.way)).await {
        Ok(peers) => peers,
        Err(error) if node.way == NodeNetwork::Wireguard => {
            return Err(error).context("--node-network wireguard");
        }
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "pods of other nodes are not reached");
            return Ok(());
        }
    };
    if let Some(key) = peers.key() {
        let client = (access.client)(&format!("system:node:{}", node.name), &["system:nodes"]);
        let (name, stop) = (node.name.to_owned(), stop.clone());
        running.spawn(async move {
            let ended = mesh::key::publish(client, &name, key, stop).await;
            ("the node's key", ended.map_err(Into::into))
        });
    }
    let (client, name, stop) = ((access.client)(NETWORK_USER, &[]), node.name.to_owned(), stop.clone());
    running.spawn(async move {
        ("routes to other nodes", mesh::run(client, &name, peers, stop).await.map_err(Into::into))
    });
    Ok(())
}

/// Answers for load balancers' addresses of the cluster's pool.
fn announce(
    client: client::Client,
    name: &str,
    config: &network::Config,
    running: &mut JoinSet<Ended>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let announcer = Announcer::open(config).context("cannot announce load balancers' addresses")?;
    let (name, stop) = (name.to_owned(), stop.clone());
    running.spawn(async move {
        let ended = mesh::announce::run(client, &name, announcer, stop).await;
        ("addresses of load balancers", ended.map_err(Into::into))
    });
    Ok(())
}

fn way(network: NodeNetwork) -> Way {
    match network {
        NodeNetwork::Vxlan => Way::Vxlan,
        NodeNetwork::Auto => Way::Auto,
        NodeNetwork::HostGw => Way::HostGw,
        NodeNetwork::Wireguard => Way::Wireguard,
    }
}

/// Bytes that a pod's packet must leave free.
fn overhead(node: &Identity<'_>) -> u32 {
    peers::overhead(way(node.way), node.address())
}

/// Waits until the cluster gave the node its pod CIDRs.
async fn given_pod_cidrs(client: &client::Client, name: &str) -> anyhow::Result<Vec<Cidr>> {
    let nodes = client.caches().peers(&format!("metadata.name={name}"));
    nodes.synced().await;
    let mut changes = nodes.subscribe();
    loop {
        let cidrs = nodes.get("", name).map(|node| mesh::pod_cidrs(&node)).unwrap_or_default();
        if !cidrs.is_empty() {
            return Ok(cidrs);
        }
        changes.next().await.context("the connection to the server ended")?;
    }
}

/// What the node was given when it joined: pods that run keep their addresses, whether the API answers or not.
fn pod_cidrs_of(data: &DataDir) -> Option<Vec<Cidr>> {
    let text = std::fs::read_to_string(data.pod_cidrs()).ok()?;
    let cidrs: Vec<Cidr> = text.lines().filter_map(|line| line.parse().ok()).collect();
    (!cidrs.is_empty()).then_some(cidrs)
}

fn remember_pod_cidrs(data: &DataDir, cidrs: &[Cidr]) -> anyhow::Result<()> {
    let file = data.pod_cidrs();
    let text: String = cidrs.iter().map(|cidr| format!("{cidr}\n")).collect();
    apiserver::pki::write_secret(&file, text.as_bytes()).with_context(|| file.display().to_string())
}

/// The pod network of this machine.
pub fn network_config(data: &DataDir) -> network::Config {
    network::Config::single_node(data.network())
}

/// The program of pods' parents; where a build has none embedded, it is this one.
#[cfg(embedded_shim)]
const SHIM: Option<&[u8]> = Some(include_bytes!(env!("NAVARCH_SHIM")));
#[cfg(not(embedded_shim))]
const SHIM: Option<&[u8]> = None;

/// The runtime's folders.
pub fn runtime_config(data: &DataDir, network: Arc<dyn runtime::PodNetwork>) -> runtime::Config {
    runtime::Config {
        root: data.runtime(),
        run: data.run(),
        cgroup_parent: data.cgroup(),
        exe: "/proc/self/exe".into(),
        shim: SHIM,
        network,
        instance: data.instance().to_owned(),
        registries: Default::default(),
        handlers: Default::default(),
        cdi_folders: runtime::cdi::FOLDERS.map(Into::into).into(),
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

/// Ends the pods that this machine ran by our own runtime: another one is to run them from now on. Images stay.
async fn leave_to_another(config: runtime::Config) -> anyhow::Result<()> {
    let left = std::fs::read_dir(config.root.join("sandboxes")).into_iter().flatten().next();
    if left.is_none() {
        return Ok(());
    }
    let runtime = Runtime::open(runtime::Config { network: Arc::new(runtime::NoNetwork), ..config }).await?;
    let (mut cri, _) = cri::in_process(runtime.service());
    let sandboxes = cri.list_pod_sandbox(cri::v1::ListPodSandboxRequest::default()).await?.into_inner().items;
    for sandbox in sandboxes {
        tracing::info!(sandbox = sandbox.id, "another container runtime takes over");
        let request = cri::v1::RemovePodSandboxRequest { pod_sandbox_id: sandbox.id };
        cri.remove_pod_sandbox(request).await.context("a pod of the runtime before is still there")?;
    }
    runtime.shutdown();
    Ok(())
}

/// The kubelet's settings: of its files, else those of a machine without any; what the command line says wins.
pub fn kubelet_settings(
    path: Option<&Path>,
    (options, kubelet): (&RuntimeOptions, &KubeletOptions),
    data: &DataDir,
) -> anyhow::Result<KubeletConfiguration> {
    let mut settings = KubeletConfiguration::load(path, kubelet.kubelet_config_dir.as_deref())?;
    if let Some(endpoint) = &options.container_runtime_endpoint {
        settings.container_runtime_endpoint.clone_from(endpoint);
    }
    settings.register_node = kubelet.register_node.unwrap_or(settings.register_node);
    settings.runtime_socket()?;
    settings.static_pod_path.get_or_insert_with(|| data.static_pods());
    Ok(settings)
}

fn kubelet_config(
    access: &Access,
    data: &DataDir,
    node: &Identity<'_>,
    pod_cidrs: Option<&[Cidr]>,
    cri: (cri::RuntimeClient, cri::ImageClient),
) -> anyhow::Result<kubelet::Config> {
    let certificate = match node.settings.serving_files()? {
        Some((certificate, key)) => {
            let own = ServingCertificate::new(&certificate, &key);
            Arc::new(own.context("tlsCertFile and tlsPrivateKeyFile cannot be used")?)
        }
        None => access.serving.clone(),
    };
    Ok(kubelet::Config {
        node_name: node.name.to_owned(),
        cri,
        root: data.kubelet(),
        logs: data.pod_logs(),
        node_ips: node.addresses.clone(),
        listen: node.settings.server_address()?,
        certificate,
        client_ca_pem: access.ca_pem.clone(),
        cluster_dns: node.cluster.cluster_dns.iter().map(IpAddr::to_string).collect(),
        cluster_domain: node.cluster.cluster_domain.clone(),
        pod_cidr: pod_cidrs.and_then(<[Cidr]>::first).map(ToString::to_string),
        cgroup_parent: data.cgroup(),
        labels: node.kubelet.node_labels.iter().cloned().collect(),
        version: format!("v1.36.0+navarch.{}", env!("CARGO_PKG_VERSION")),
        settings: node.settings.clone(),
        flags: crate::command::flags(),
        system: kubelet::managers::machine::SYSTEM.into(),
        host: Default::default(),
        logind: Default::default(),
        credential_providers: node.kubelet.credential_providers(),
    })
}
