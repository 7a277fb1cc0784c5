//! `navarch agent`: this machine as a node of a cluster that runs elsewhere.
//!
//! The join token's pin names the cluster's authority, which the server shows in the TLS handshake; from then on only servers
//! of that authority are spoken to. The rest is [`super::node_certificates`].

use std::time::Duration;

use client::queue::Backoff;
use client::tls::ShownError;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::node_certificates::{Credentials, RETRY};
use super::{DRAIN, Ended, node, too_early};
use crate::cluster_network::ClusterNetwork;
use crate::command::{AgentOptions, Part};
use crate::data_dir::DataDir;
use crate::preflight;

/// Runs until SIGTERM or SIGINT.
pub fn main(options: AgentOptions) -> anyhow::Result<()> {
    super::log();
    let parts = [Part::Agent, Part::Proxy, Part::Dns].into();
    preflight::check(&parts)?;
    super::memory::return_freed();
    super::open_files::raise();
    let runtime = super::async_runtime()?;
    let outcome = runtime.block_on(run(options, parts));
    // a blocking call that hangs must not keep the process
    runtime.shutdown_timeout(Duration::from_secs(2));
    outcome
}

/// Tries until the server is there: machines of one cluster start in any order. What the server refuses is final.
async fn reached<T, F: Future<Output = anyhow::Result<T>>>(attempt: impl Fn() -> F) -> anyhow::Result<T> {
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    loop {
        match attempt().await {
            Err(error) if is_passing(&error) => {
                let (error, wait) = (format!("{error:#}"), backoff.next());
                tracing::warn!(error, retry_in_ms = wait.as_millis(), "waiting for the server");
                tokio::time::sleep(wait).await;
            }
            outcome => return outcome,
        }
    }
}

fn is_passing(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<client::Error>().is_some_and(client::Error::is_passing)
            || matches!(cause.downcast_ref(), Some(ShownError::Transport(_)))
    })
}

async fn run(options: AgentOptions, parts: std::collections::BTreeSet<Part>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let data = DataDir::create(&options.data_dir)?;
    let _lock = data.lock()?;
    let name = super::node_name(options.node_name.as_deref())?;
    let given = super::node_ips(&options.node_ip)?;
    let address = match given.first() {
        Some(address) => *address,
        None => network::host_ip(&network::netns::Place::open(None)?, &["navarch0"]).await,
    };
    let stop = CancellationToken::new();
    let mut running: JoinSet<Ended> = JoinSet::new();
    let started = async {
        let credentials = reached(|| Credentials::obtain(&options, &data, &name, address)).await?;
        let client = credentials.client.clone();
        let cluster = reached(|| ClusterNetwork::joined(&client, &data)).await?;
        let addresses = if given.is_empty() { super::default_addresses(&cluster).await? } else { given };
        let access = node::Access {
            ca_pem: credentials.ca_pem,
            serving: credentials.serving,
            client: Box::new(move |_, _| client.clone()),
        };
        let this = node::Identity {
            name: &name,
            addresses,
            registries: &options.private_registry,
            way: options.node_network,
            cni: &options.cni,
            proxy: &options.proxy,
            runtime: &options.runtime,
            kubelet: &options.kubelet,
            pod_cidrs: None,
            cluster,
            settings: node::kubelet_settings(
                options.kubelet_config.as_deref(),
                (&options.runtime, &options.kubelet),
                &data,
            )?,
        };
        let (rotation, ending) = (credentials.rotation, stop.clone());
        running.spawn(async move {
            rotation.run(ending).await;
            ("renewal of certificates", Ok(()))
        });
        node::start(&access, &data, &parts, &this, &mut running, &stop).await?;
        println!("Navarch {} runs the node {name} of {}", env!("CARGO_PKG_VERSION"), options.server);
        anyhow::Ok(())
    };
    let mut outcome = tokio::select! {
        started = started => started.map(|()| false),
        _ = terminate.recv() => Ok(true),
        _ = interrupt.recv() => Ok(true),
    };
    if matches!(outcome, Ok(false)) {
        outcome = tokio::select! {
            ended = running.join_next(), if !running.is_empty() => too_early(ended).map(|()| true),
            _ = terminate.recv() => Ok(true),
            _ = interrupt.recv() => Ok(true),
        };
    }
    tracing::info!("stopping");
    stop.cancel();
    let drained = tokio::time::timeout(DRAIN, async { while running.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::warn!("some parts did not end in time");
    }
    outcome.map(|_| ())
}
