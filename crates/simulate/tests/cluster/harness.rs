//! A cluster of hollow nodes for one test.
use std::sync::Arc;
use std::time::Duration;

use apiserver::options::FeatureGates;
use client::{Client, Kind, Patch};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, ServiceAccount};
use serde_json::{Value, json};
use simulate::{Clock, Config, Nodes};
use testserver::{TestServer, object};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What a test waits for has to be so by then, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);
/// So far the time moves at once...
const MOVE: Duration = Duration::from_secs(10);
/// ...and so long, in real time, control loops act on it.
const MOMENT: Duration = Duration::from_millis(200);

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

pub struct Cluster {
    pub client: Client,
    pub nodes: Arc<Nodes>,
    stop: CancellationToken,
    parts: JoinSet<()>,
    api: TestServer,
}

impl Cluster {
    /// So many nodes in so many zones, all ready, and the namespace `d`.
    pub async fn start(nodes: usize, zones: usize) -> Self {
        Self::start_with(nodes, zones, FeatureGates::default()).await
    }

    /// The same, with gates open.
    pub async fn start_with(nodes: usize, zones: usize, gates: FeatureGates) -> Self {
        let options = apiserver::Options { feature_gates: gates, ..Default::default() };
        let api = TestServer::start(options).await;
        let client = api.client.clone();
        let (clock, stop) = (Arc::<Clock>::default(), CancellationToken::new());
        let mut parts = JoinSet::new();
        let config = controllers::Config {
            clock: Arc::new(Simulated(clock.clone())),
            pod_groups: gates.generic_workload,
            ..controllers::Config::default()
        };
        let (ours, ending) = (client.clone(), stop.clone());
        parts.spawn(async move { controllers::run(ours, config, ending).await.expect("controllers") });
        let pod_groups =
            if gates.gang_scheduling { scheduler::PodGroups::Gangs } else { scheduler::PodGroups::Ignored };
        let config = scheduler::Config { seed: Some(1), pod_groups, ..scheduler::Config::default() };
        let (ours, ending) = (client.clone(), stop.clone());
        parts.spawn(async move { scheduler::run(ours, config, ending).await.expect("scheduler") });
        let config = Config { nodes, zones, ..Config::default() };
        let hollow = Nodes::start(client.clone(), config, clock, stop.clone()).await.expect("nodes");
        let this = Self { client, nodes: hollow, stop, parts, api };
        this.create::<Namespace>("", json!({"metadata": {"name": "d"}})).await;
        let of_d = |a: &ServiceAccount| a.metadata.namespace.as_deref() == Some("d");
        this.until::<ServiceAccount>("account", |l| l.iter().any(|a| of_d(a))).await;
        let is_free = |n: &Node| n.spec.as_ref().is_none_or(|s| s.taints.as_ref().is_none_or(Vec::is_empty));
        this.until::<Node>("nodes", |l| l.len() == nodes && l.iter().all(|n| is_free(n))).await;
        this
    }

    pub async fn create<K: Kind>(&self, ns: &str, value: Value) -> K {
        self.client.create(ns, &object::<K>(value)).await.expect("create")
    }

    pub async fn merge<K: Kind>(&self, ns: &str, name: &str, patch: Value) {
        self.client.patch::<K>(ns, name, &Patch::Merge(patch)).await.expect("patch");
    }

    pub async fn merge_strategic<K: Kind>(&self, ns: &str, name: &str, patch: Value) {
        self.client.patch::<K>(ns, name, &Patch::Strategic(patch)).await.expect("patch");
    }

    pub fn list<K: Kind>(&self) -> Vec<Arc<K>> {
        self.client.caches().of::<K>().list()
    }

    /// Moves the time ahead, the nodes being heard meanwhile.
    pub async fn advance(&self, by: Duration) {
        self.nodes.advance(by).await.expect("heartbeats");
    }

    /// Silent nodes are heard again.
    pub async fn wake(&self, names: &[String]) {
        self.nodes.wake(names).await.expect("heartbeats");
    }

    /// Waits until what the cache holds of a kind meets `done`, looking after every change.
    pub async fn until<K: Kind>(&self, what: &str, done: impl Fn(&[Arc<K>]) -> bool) -> Vec<Arc<K>> {
        let done = |all: &[Arc<K>]| done(all).then(|| all.to_vec());
        if let Some(all) = testserver::wait(&self.client, PATIENCE, done).await {
            return all;
        }
        let is_stuck = |p: &Pod| {
            let over = p.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Succeeded"));
            p.metadata.deletion_timestamp.is_some() || !over && !is_ready(p)
        };
        let pods = self.list::<Pod>();
        let stuck: Vec<String> =
            pods.iter().filter(|p| is_stuck(p)).take(5).map(|p| format!("{p:?}")).collect();
        let shown = testserver::shown::<K>(&self.client);
        panic!("not so in time: {what}; {} are\n{shown}\nstuck pods:\n{}", K::KIND, stuck.join("\n"));
    }

    /// The same while the time moves on. What acts on the new time is given a moment before it moves again: chains of waits need
    /// one after the other.
    pub async fn until_in_time<K: Kind>(&self, what: &str, done: impl Fn(&[Arc<K>]) -> bool) -> Vec<Arc<K>> {
        let move_on = async {
            loop {
                self.advance(MOVE).await;
                tokio::time::sleep(MOMENT).await;
            }
        };
        tokio::select! {
            all = self.until(what, done) => all,
            () = move_on => unreachable!("the time moves on until the condition holds"),
        }
    }

    pub async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.parts.join_next().await {
            ended.expect("a part");
        }
        self.api.server.shutdown().await;
    }
}

pub fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}
