//! `navarch simulate`: a control plane with hollow nodes. API server, controllers and scheduler are the real ones; the
//! nodes say of their pods that they run. With `--kubeconfig` the nodes join a cluster that is there already.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::simulate::{Clock, Nodes};
use anyhow::Context;
use apiserver::Server;
use clap::Args;
use client::Client;
use client::https::Https;
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cluster_network::{ClusterNetwork, ClusterNetworkOptions};
use crate::command::Part;
use crate::data_dir::DataDir;
use crate::datastore::{Datastore, DatastoreOptions};
use crate::server;

/// How often a time that runs faster is moved.
const TURN: Duration = Duration::from_millis(250);
/// A time that ran faster would move, in one turn, further than a node may be silent.
const FASTEST: u32 = 80;

/// What is simulated.
#[derive(Args, Clone)]
pub struct SimulateOptions {
    /// How many nodes.
    #[arg(long, default_value_t = 10)]
    pub nodes: usize,
    /// How many zones they are spread over.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub zones: u32,
    /// CPUs of each node.
    #[arg(long, default_value = "32")]
    pub cpu: String,
    /// Memory of each node.
    #[arg(long, default_value = "256Gi")]
    pub memory: String,
    /// Pods that each node takes.
    #[arg(long, default_value_t = 110)]
    pub pods: u32,
    /// Names of the nodes begin with this.
    #[arg(long, default_value = "hollow-")]
    pub prefix: String,
    /// How much faster than the machine's the time of controllers and nodes runs.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(FASTEST)), conflicts_with = "kubeconfig")]
    pub speed: u32,
    /// Adds the nodes to this cluster instead of starting one; they go when the simulation ends.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["data_dir", "listen"])]
    pub kubeconfig: Option<PathBuf>,
    /// The cluster's folder; a temporary one where it is not given.
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Where the API listens; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: std::net::SocketAddr,
    /// How pods are scheduled: a `KubeSchedulerConfiguration`.
    #[arg(long, value_name = "FILE", conflicts_with = "kubeconfig")]
    pub scheduler_config: Option<PathBuf>,
    /// The cluster's networks.
    #[command(flatten)]
    pub cluster_network: ClusterNetworkOptions,
    /// The data.
    #[command(flatten)]
    pub datastore: DatastoreOptions,
}

impl SimulateOptions {
    fn nodes(&self) -> ::simulate::Config {
        ::simulate::Config {
            prefix: self.prefix.clone(),
            nodes: self.nodes,
            zones: self.zones as usize,
            cpu: self.cpu.clone(),
            memory: self.memory.clone(),
            pods: self.pods,
        }
    }
}

/// The simulation's time, as the controllers take it.
struct Simulated(Arc<Clock>);

impl controllers::Clock for Simulated {
    fn now(&self) -> Timestamp {
        self.0.now()
    }

    fn jumps(&self) -> Option<watch::Receiver<u64>> {
        Some(self.0.jumps())
    }
}

/// Runs until SIGTERM or SIGINT.
pub fn main(options: SimulateOptions) -> anyhow::Result<()> {
    server::log();
    server::async_runtime()?.block_on(async {
        match &options.kubeconfig {
            Some(file) => join(&options, file).await,
            None => alone(&options).await,
        }
    })
}

/// Waits for the signal that ends the simulation; meanwhile the time runs.
async fn run(nodes: &Nodes, speed: u32) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let time = async {
        if speed <= 1 {
            return std::future::pending::<Result<(), ::simulate::Error>>().await;
        }
        let mut turn = tokio::time::interval(TURN);
        turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut last = Instant::now();
        loop {
            turn.tick().await;
            let passed = last.elapsed();
            last += passed;
            nodes.advance(passed * (speed - 1)).await?;
        }
    };
    tokio::select! {
        ended = time => Ok(ended?),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

async fn join(options: &SimulateOptions, kubeconfig: &Path) -> anyhow::Result<()> {
    let endpoint = client::kubeconfig::load(kubeconfig, "navarch-simulate")?;
    let client = Client::new(Arc::new(Https::new(&endpoint)?));
    let stop = CancellationToken::new();
    let nodes = Nodes::start(client, options.nodes(), Arc::default(), stop.clone()).await?;
    say(&format!(
        "{} hollow nodes have joined {}; they go with this process",
        options.nodes, endpoint.server
    ));
    let outcome = run(&nodes, 1).await;
    stop.cancel();
    nodes.remove().await.context("the hollow nodes could not be removed")?;
    outcome
}

async fn alone(options: &SimulateOptions) -> anyhow::Result<()> {
    let temporary = match &options.data_dir {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix("navarch-simulate-").tempdir()?),
    };
    let folder = options.data_dir.as_deref().or(temporary.as_ref().map(tempfile::TempDir::path));
    let data = DataDir::create(folder.context("no folder")?)?;
    let _lock = data.lock()?;
    let network = ClusterNetwork::chosen(&options.cluster_network)?;
    let scheduling = server::scheduling(options.scheduler_config.as_deref())?;
    let datastore = Datastore::open(&options.datastore, &data).await?;
    let server = Server::start(apiserver::Config {
        pki_dir: data.pki(),
        listen: options.listen,
        store: datastore.store(),
        addresses: Vec::new(),
        service_cidr: network.service_ranges(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        options: apiserver::options::Options {
            cluster_domain: network.cluster_domain.clone(),
            ..Default::default()
        },
    })
    .await
    .context("cannot start the API server")?;
    server::write_admin(&data, &server)?;

    let (stop, clock) = (CancellationToken::new(), Arc::<Clock>::default());
    let mut running = JoinSet::new();
    let parts = [Part::Controllers, Part::Scheduler].into();
    let how = server::ControlPlane {
        gates: Default::default(),
        cluster_ranges: network.cluster_ranges(),
        load_balancer_pool: None,
        scheduling,
        clock: Arc::new(Simulated(clock.clone())),
    };
    server::control_plane(&server, &parts, None, how, &mut running, &stop);
    let client = server.client("system:navarch:simulate", &[server::MASTERS]);
    let nodes = Nodes::start(client, options.nodes(), clock, stop.clone()).await?;
    say(&format!(
        "Navarch {} simulates {} nodes at https://{}\nexport KUBECONFIG={}",
        env!("CARGO_PKG_VERSION"),
        options.nodes,
        server.address(),
        data.admin_kubeconfig().display()
    ));
    let outcome = tokio::select! {
        outcome = run(&nodes, options.speed) => outcome,
        ended = running.join_next() => server::too_early(ended),
    };
    stop.cancel();
    let drained =
        tokio::time::timeout(server::DRAIN, async { while running.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::warn!("some parts did not end in time");
    }
    server.shutdown().await;
    datastore.close().await?;
    outcome
}

/// Whoever started us may have gone: that is no reason to end.
fn say(text: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}
