//! From a snapshot of the cluster to bindings.
//!
//! One task owns everything: snapshot, queue, evaluations. It takes changes of nodes and pods from the shared caches,
//! tries waiting pods one after the other, and hands bindings and failure reports to a bounded number of short tasks;
//! their outcomes come back to it on a channel. A pod counts on its node from the moment it is chosen (assumed), so the next
//! decision does not wait for the API.
//!
//! Pods that name a group are tried together ([`gang`]).
//!
//! Decisions ([`evaluate`], [`preemption`], [`gang::run`]) are pure: the same snapshot, pod and seed give the same node. No plugin does
//! I/O.

pub mod assumed;
pub mod configuration;
pub mod counts;
pub mod devices;
pub mod evaluate;
pub mod extender;
pub mod filter;
pub mod gang;
pub mod hints;
pub mod message;
pub mod metrics;
pub mod pod_info;
pub mod preemption;
pub mod profile;
pub mod queue;
pub mod relations;
pub mod resources;
pub mod score;
pub mod snapshot;
pub mod volumes;

mod changes;
mod engine;
mod report;
mod sources;

use std::sync::Arc;

use client::Client;
use tokio_util::sync::CancellationToken;

/// What is done about groups of pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PodGroups {
    /// Nothing: no gate is open.
    #[default]
    Ignored,
    /// Their pods are tried together (`GenericWorkload`).
    Together,
    /// The same, and gangs have their `minCount` (`GangScheduling`).
    Gangs,
}

/// How to schedule.
#[derive(Debug, Clone)]
pub struct Config {
    /// What is done with whose pods; names differ.
    pub profiles: Vec<profile::Profile>,
    /// How long a pod waits after a failed attempt.
    pub backoff: queue::Backoff,
    /// Programs outside that are asked, in this order.
    pub extenders: Vec<extender::Settings>,
    /// The language of selectors of devices; without one no device is selected.
    pub selectors: Option<Arc<dyn devices::Selectors>>,
    /// What is done about groups of pods.
    pub pod_groups: PodGroups,
    /// Whether the API has rules of device taints (gate `DRADeviceTaintRules`).
    pub device_taint_rules: bool,
    /// What it does is counted here.
    pub metrics: Arc<metrics::Metrics>,
    /// Bindings and reports under way at a time.
    pub parallelism: usize,
    /// Seed of the choice among equally good nodes; `None`: a random one.
    pub seed: Option<u64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            profiles: vec![profile::Profile::default()],
            backoff: queue::Backoff::default(),
            extenders: Vec::new(),
            selectors: None,
            pod_groups: PodGroups::default(),
            device_taint_rules: false,
            metrics: Arc::default(),
            parallelism: 64,
            seed: None,
        }
    }
}

/// Why the scheduler ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A cache's feed ended: the client is shutting down.
    #[error("the watch of {0} ended")]
    WatchEnded(&'static str),
    /// An extender's settings cannot be used.
    #[error(transparent)]
    Extender(#[from] extender::ExtenderError),
}

/// Schedules until `stop`; must be called within a tokio runtime.
pub async fn run(client: Client, config: Config, stop: CancellationToken) -> Result<(), Error> {
    engine::Engine::new(client, config)?.run(stop).await
}
