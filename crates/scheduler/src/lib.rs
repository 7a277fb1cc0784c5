//! From a snapshot of the cluster to bindings.
//!
//! One task owns everything: snapshot, queue, evaluations. It takes changes of nodes and pods from the shared caches,
//! tries waiting pods one after the other, and hands bindings and failure reports to a bounded number of short tasks;
//! their outcomes come back to it on a channel. A pod counts on its node from the moment it is chosen (assumed), so the next
//! decision does not wait for the API.
//!
//! Decisions ([`evaluate`]) are pure: the same snapshot, demand and seed give the same node. No plugin does I/O.

pub mod evaluate;
pub mod filter;
pub mod message;
pub mod pod_info;
pub mod queue;
pub mod resources;
pub mod score;
pub mod snapshot;

mod engine;
mod report;

use client::Client;
use tokio_util::sync::CancellationToken;

/// How to schedule.
#[derive(Debug, Clone)]
pub struct Config {
    /// `spec.schedulerName` of the pods that are ours.
    pub scheduler_name: String,
    /// Share of the nodes that is scored, in percent; 0: adaptive.
    pub percentage_of_nodes_to_score: i32,
    /// Bindings and reports under way at a time.
    pub parallelism: usize,
    /// Seed of the choice among equally good nodes; `None`: a random one.
    pub seed: Option<u64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            scheduler_name: "default-scheduler".to_owned(),
            percentage_of_nodes_to_score: 0,
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
}

/// Schedules until `stop`; must be called within a tokio runtime.
pub async fn run(client: Client, config: Config, stop: CancellationToken) -> Result<(), Error> {
    engine::Engine::new(client, config).run(stop).await
}
