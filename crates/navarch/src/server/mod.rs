//! `navarch server`: joins the parts in one process.
//!
//! Order of starting: store, API server, then everything that speaks to it. Every part gets an in-process
//! client with an identity of its own and ends with one token; the API server ends last, so that the parts can
//! say goodbye. Containers are not the server's children: they outlive it.

pub mod agent;
mod bandwidth;
mod datastore_socket;
mod device_selectors;
mod external_network;
pub mod images;
mod join;
mod memory;
mod node;
mod node_certificates;
mod open_files;
mod pod_network;

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use apiserver::Server;
use apiserver::options::FeatureGates;
use client::leader::{Election, run_as_leader};
use kubelet::server::ServingCertificate;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

pub use node::{network_config, runtime_config, take_back_external};

use crate::cluster_network::ClusterNetwork;
use crate::command::{Part, ServerOptions};
use crate::data_dir::DataDir;
use crate::datastore::Datastore;
use crate::{kubeconfig, preflight};

/// The group that may do everything.
pub const MASTERS: &str = "system:masters";
/// Parts have this long to end.
pub const DRAIN: Duration = Duration::from_secs(10);

/// A part's end: its name and why.
pub type Ended = (&'static str, anyhow::Result<()>);

/// Runs until SIGTERM or SIGINT.
pub fn main(options: ServerOptions) -> anyhow::Result<()> {
    log();
    preflight::check(&options.parts())?;
    memory::return_freed();
    open_files::raise();
    let runtime = async_runtime()?;
    let outcome = runtime.block_on(run(options));
    // a blocking call that hangs must not keep the process
    runtime.shutdown_timeout(Duration::from_secs(2));
    outcome
}

/// Logs to stderr.
pub fn log() {
    let filter =
        EnvFilter::try_from_env("NAVARCH_LOG").unwrap_or_else(|_| EnvFilter::new("info,nlink=error"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

/// Of a thread, bytes. A pod's worker asks the API server of its own process within its own call: a build without optimization needs
/// more than 1.3 MiB for that, others less than 0.2. Large ones are not for all: kernels before 6.7 may give them huge pages.
const STACK: usize = if cfg!(debug_assertions) { 8 << 20 } else { 2 << 20 };

/// The runtime of everything that serves.
pub fn async_runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8))
        .max_blocking_threads(64)
        .thread_stack_size(STACK)
        .thread_keep_alive(Duration::from_secs(2))
        .enable_all()
        .build()
        .context("cannot start the async runtime")
}

async fn run(options: ServerOptions) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let data = DataDir::create(&options.data_dir)?;
    let _lock = data.lock()?;
    let parts = options.parts();
    let network = ClusterNetwork::chosen(&options.cluster_network)?;
    let scheduling = scheduling(options.scheduler_config.as_deref())?;
    let node_name = node_name(options.node_name.as_deref())?;

    let datastore = Datastore::open(&options.datastore, &data).await?;
    datastore.announce(&format!("{node_name} ({})", options.listen)).await?;
    let addresses = node_addresses(&options, &network).await?;
    let server = Server::start(apiserver::Config {
        pki_dir: data.pki(),
        listen: options.listen,
        store: datastore.store(),
        addresses: addresses.clone(),
        service_cidr: network.service_ranges(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        options: apiserver::options::Options {
            cluster_domain: network.cluster_domain.clone(),
            flags: crate::command::flags(),
            ..options.api.to_options()
        },
    })
    .await
    .context("cannot start the API server")?;
    write_admin(&data, &server)?;
    announce(server.address());

    let stop = CancellationToken::new();
    let mut running: JoinSet<Ended> = JoinSet::new();
    let (socket, pki, ending) = (data.datastore_socket(), data.pki(), stop.clone());
    let served = datastore.clone();
    running
        .spawn(async move { ("backup socket", datastore_socket::serve(&socket, served, pki, ending).await) });
    let clock = Arc::new(controllers::SystemClock);
    let identity = datastore.is_shared().then(|| election_identity(&node_name));
    let gates = options.api.to_options().feature_gates;
    let how = ControlPlane {
        gates,
        cluster_ranges: network.cluster_ranges(),
        load_balancer_pool: options.load_balancer_pool.clone(),
        scheduling,
        clock,
    };
    control_plane(&server, &parts, identity.as_deref(), how, &mut running, &stop);
    if parts.contains(&Part::Controllers) {
        let client = server.client("system:navarch:join", &[MASTERS]);
        network.show(&client).await?;
        join::prepare(&server, &client, &data).await?;
        let ending = stop.clone();
        running.spawn(async move { ("certificates of nodes", join::approve(client, ending).await) });
    }
    let node = async {
        if parts.iter().any(|p| matches!(p, Part::Agent | Part::Proxy | Part::Dns)) {
            let node = node::Identity {
                name: &node_name,
                addresses: if addresses.is_empty() { vec![[127, 0, 0, 1].into()] } else { addresses },
                registries: &options.private_registry,
                way: options.node_network,
                cni: &options.cni,
                proxy: &options.proxy,
                runtime: &options.runtime,
                kubelet: &options.kubelet,
                // where servers share the data, each one's node gets its own part of the ranges
                pod_cidrs: identity.is_none().then(|| network.first_node()),
                cluster: network.clone(),
                settings: node::kubelet_settings(
                    options.kubelet_config.as_deref(),
                    (&options.runtime, &options.kubelet),
                    &data,
                )?,
            };
            node::start(&access(&server, &node)?, &data, &parts, &node, &mut running, &stop).await?;
        }
        anyhow::Ok(())
    };
    let mut outcome = tokio::select! {
        started = node => started,
        _ = terminate.recv() => Err(Interrupted.into()),
        _ = interrupt.recv() => Err(Interrupted.into()),
    };
    if outcome.is_ok() {
        tokio::spawn(memory::return_start());
        outcome = tokio::select! {
            ended = running.join_next(), if !running.is_empty() => too_early(ended),
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        };
    }
    tracing::info!("stopping");
    stop.cancel();
    let drained = tokio::time::timeout(DRAIN, async { while running.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::warn!("some parts did not end in time");
    }
    server.shutdown().await;
    datastore.close().await?;
    match outcome {
        Err(error) if error.is::<Interrupted>() => Ok(()),
        outcome => outcome,
    }
}

/// The server's own node: its parts speak to the API in this process.
fn access(server: &Arc<Server>, node: &node::Identity<'_>) -> anyhow::Result<node::Access> {
    let user = format!("system:node:{}", node.name);
    let loopback = IpAddr::from([127, 0, 0, 1]);
    let ips: Vec<IpAddr> = node.addresses.iter().copied().chain([loopback]).collect();
    let serving = server.pki().server(&user, &["system:nodes"], &[node.name], &ips)?;
    let of_part = server.clone();
    Ok(node::Access {
        ca_pem: server.pki().ca_pem().to_owned(),
        serving: Arc::new(ServingCertificate::new(&serving.cert_pem, &serving.key_pem)?),
        client: Box::new(move |user, groups| of_part.client(user, groups)),
    })
}

/// A signal came before everything was started.
#[derive(Debug)]
struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Parts run until they are told to stop: an earlier end is a failure of the whole.
pub fn too_early(ended: Option<Result<Ended, tokio::task::JoinError>>) -> anyhow::Result<()> {
    match ended {
        Some(Ok((part, Ok(())))) => bail!("{part} ended by itself"),
        Some(Ok((part, Err(error)))) => Err(error.context(format!("{part} failed"))),
        Some(Err(error)) => Err(error).context("a part panicked"),
        None => Ok(()),
    }
}

/// How the parts that act for the whole cluster do so.
pub struct ControlPlane {
    /// Which parts that are not ready are open.
    pub gates: FeatureGates,
    /// Where pods' addresses come from.
    pub cluster_ranges: String,
    /// Where load balancers' addresses come from.
    pub load_balancer_pool: Option<String>,
    /// How pods are scheduled.
    pub scheduling: scheduler::Config,
    /// The controllers' time.
    pub clock: Arc<dyn controllers::Clock>,
}

/// The parts that act for the whole cluster. Where other servers may stand on the same data (`identity`), the one that holds
/// the part's Lease acts; upstream's names.
pub fn control_plane(
    server: &Arc<Server>,
    parts: &BTreeSet<Part>,
    identity: Option<&str>,
    how: ControlPlane,
    running: &mut JoinSet<Ended>,
    stop: &CancellationToken,
) {
    if parts.contains(&Part::Controllers) {
        let client = server.client("system:kube-controller-manager", &[]);
        let root_ca = server.pki().ca_pem().to_owned();
        let signing_key =
            controllers::SigningKey { cert_pem: root_ca.clone(), key_pem: server.pki().ca_key_pem() };
        let signer = server.clone();
        let config = controllers::Config {
            root_ca,
            legacy_tokens: Some(Arc::new(move |token| signer.legacy_token(token))),
            signing_key: Some(signing_key),
            cluster_cidr: Some(how.cluster_ranges),
            load_balancer_pool: how.load_balancer_pool,
            pod_groups: how.gates.generic_workload,
            storage_migrations: how.gates.storage_version_migrator,
            device_taint_rules: how.gates.device_taint_rules,
            clock: how.clock,
            ..controllers::Config::default()
        };
        let metrics = config.metrics.clone();
        server.add_metrics(move |families| metrics.collect(families));
        let part = {
            let client = client.clone();
            move |stop| {
                let (client, config) = (client.clone(), config.clone());
                async move { controllers::run(client, config, stop).await.map_err(Into::into) }
            }
        };
        let election = identity.map(|identity| Election::new("kube-controller-manager", identity));
        running.spawn(elected("controllers", client, election, stop.clone(), part));
    }
    if parts.contains(&Part::Scheduler) {
        let client = server.client("system:kube-scheduler", &[]);
        let pod_groups = match (how.gates.generic_workload, how.gates.gang_scheduling) {
            (false, _) => scheduler::PodGroups::Ignored,
            (true, false) => scheduler::PodGroups::Together,
            (true, true) => scheduler::PodGroups::Gangs,
        };
        let device_taint_rules = how.gates.device_taint_rules;
        let metrics = how.scheduling.metrics.clone();
        server.add_metrics(move |families| metrics.collect(families));
        let scheduling = scheduler::Config { pod_groups, device_taint_rules, ..how.scheduling };
        let part = {
            let client = client.clone();
            move |stop| {
                let (client, config) = (client.clone(), scheduling.clone());
                async move { scheduler::run(client, config, stop).await.map_err(Into::into) }
            }
        };
        let election = identity.map(|identity| Election::new("kube-scheduler", identity));
        running.spawn(elected("scheduler", client, election, stop.clone(), part));
    }
}

/// How to schedule: as the file says, or as upstream does without one.
pub fn scheduling(file: Option<&Path>) -> anyhow::Result<scheduler::Config> {
    let config = match file {
        None => scheduler::Config::default(),
        Some(file) => {
            let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            scheduler::configuration::read(&text)
                .with_context(|| format!("{} cannot be used", file.display()))?
        }
    };
    Ok(scheduler::Config { selectors: Some(Arc::new(device_selectors::Cel)), ..config })
}

/// Runs a part until `stop`: always, or whenever it is elected.
async fn elected<F>(
    name: &'static str,
    client: client::Client,
    election: Option<Election>,
    stop: CancellationToken,
    part: impl Fn(CancellationToken) -> F,
) -> Ended
where
    F: Future<Output = anyhow::Result<()>>,
{
    let Some(election) = election else { return (name, part(stop).await) };
    let failed = CancellationToken::new();
    let failure = parking_lot::Mutex::new(None);
    let work = |leading: CancellationToken| {
        tracing::info!(part = name, "elected");
        let (running, failed, failure) = (part(leading.clone()), &failed, &failure);
        async move {
            let outcome = running.await;
            // an end that nobody asked for is a failure of the whole, as without an election
            if !leading.is_cancelled() {
                *failure.lock() = Some(outcome);
                failed.cancel();
            }
        }
    };
    tokio::select! {
        () = run_as_leader(&client, &election, stop.clone(), work) => (name, Ok(())),
        () = failed.cancelled() => (name, failure.lock().take().unwrap_or(Ok(()))),
    }
}

/// Who we are in elections: no two processes are called the same.
fn election_identity(node_name: &str) -> String {
    format!("{node_name}_{:016x}", rand::random::<u64>())
}

/// The administrator's credential, made anew at every start.
pub fn write_admin(data: &DataDir, server: &Server) -> anyhow::Result<()> {
    let identity = server.pki().client("kubernetes-admin", &[MASTERS])?;
    let mut address = server.address();
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            [127, 0, 0, 1].into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    let config = kubeconfig::new(
        &format!("https://{address}"),
        server.pki().ca_pem(),
        &identity.cert_pem,
        &identity.key_pem,
    );
    kubeconfig::write(&data.admin_kubeconfig(), &config)
}

/// The one line on stdout. Whoever started us may have gone: that is no reason to end.
fn announce(address: SocketAddr) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "Navarch {} is ready at https://{address}", env!("CARGO_PKG_VERSION"))
        .and_then(|()| out.flush());
}

/// The node's name: as given, or the host's in lower case (RFC 1123).
fn node_name(given: Option<&str>) -> anyhow::Result<String> {
    let name = match given {
        Some(name) => name.to_owned(),
        None => rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase(),
    };
    let valid = !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|label| {
            let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
            label.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
                && ends(label.chars().next())
                && ends(label.chars().last())
        });
    if !valid {
        bail!("{name:?} cannot be a node's name (letters, digits, '-' and '.'); give one with --node-name");
    }
    Ok(name)
}

/// The addresses by which others reach this node: those given, else where the API listens, else those of the default routes,
/// one for each family that pods have. At most one per family; none where this machine has no other than loopback's.
async fn node_addresses(options: &ServerOptions, network: &ClusterNetwork) -> anyhow::Result<Vec<IpAddr>> {
    if !options.node_ip.is_empty() {
        return node_ips(&options.node_ip);
    }
    let listen = options.listen.ip();
    if !listen.is_unspecified() && !listen.is_loopback() {
        return Ok(vec![listen]);
    }
    default_addresses(network).await
}

/// The addresses of the default routes: the first one's family is that by which the kernel goes first.
async fn default_addresses(cluster: &ClusterNetwork) -> anyhow::Result<Vec<IpAddr>> {
    let place = network::netns::Place::open(None)?;
    let mut addresses = vec![network::host_ip(&place, &["navarch0"]).await];
    if cluster.cluster_cidrs.len() == 2 && addresses[0].is_ipv4() {
        addresses.extend(network::host_ipv6(&place));
    }
    Ok(addresses)
}

/// `--node-ip`, checked.
fn node_ips(given: &[IpAddr]) -> anyhow::Result<Vec<IpAddr>> {
    let of = |six: bool| given.iter().filter(|ip| ip.is_ipv6() == six).count();
    if of(true) > 1 || of(false) > 1 {
        anyhow::bail!("--node-ip takes one address, or one of each family");
    }
    if let Some(ip) = given.iter().find(|ip| ip.is_loopback() || ip.is_unspecified() || ip.is_multicast()) {
        anyhow::bail!("--node-ip {ip}: other nodes cannot reach it");
    }
    Ok(given.to_vec())
}
