//! A cluster of hollow nodes for one test.
use std::sync::Arc;
use std::time::Duration;

use apiserver::Server;
use apiserver::options::FeatureGates;
use client::{Client, Kind, Patch};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, ServiceAccount};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use simulate::{Clock, Config, Nodes};
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
    server: Arc<Server>,
    _folder: tempfile::TempDir,
}

fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("object")
}

impl Cluster {
    /// So many nodes in so many zones, all ready, and the namespace `d`.
    pub async fn start(nodes: usize, zones: usize) -> Self {
        Self::start_with(nodes, zones, FeatureGates::default()).await
    }

    /// The same, with gates open.
    pub async fn start_with(nodes: usize, zones: usize, gates: FeatureGates) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let store =
            store::embedded::Embedded::open(&folder.path().join("store"), Default::default()).expect("store");
        let server = Server::start(apiserver::Config {
            pki_dir: folder.path().join("pki"),
            listen: "127.0.0.1:0".parse().expect("address"),
            store,
            addresses: Vec::new(),
            service_cidr: "10.96.0.0/16".into(),
            version: "0.0.0".into(),
            options: apiserver::Options { feature_gates: gates, ..Default::default() },
        })
        .await
        .expect("API server");
        let client = server.client("admin", &["system:masters"]);
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
        let this = Self { client, nodes: hollow, stop, parts, server, _folder: folder };
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
        let cache = self.client.caches().of::<K>();
        cache.synced().await;
        let mut changes = cache.subscribe();
        let wait = async {
            loop {
                let all = cache.list();
                if done(&all) {
                    return all;
                }
                changes.next().await.expect("cache");
                // what came at once is looked at once
                while changes.try_next().is_some() {}
            }
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(all) => all,
            Err(_) => {
                let show = |o: &Value| {
                    let mut o = o.clone();
                    o["metadata"]["managedFields"] = Value::Null;
                    o.to_string()
                };
                let all = cache.list();
                let values = all.iter().take(5).map(|o| serde_json::to_value(&**o).expect("json"));
                let mut lines: Vec<String> = values.map(|v| show(&v)).collect();
                let is_stuck = |p: &Pod| {
                    let over = p.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Succeeded"));
                    p.metadata.deletion_timestamp.is_some() || !over && !is_ready(p)
                };
                let pods = self.list::<Pod>();
                let stuck = pods.iter().filter(|p| is_stuck(p)).take(5);
                lines.extend(stuck.map(|p| show(&serde_json::to_value(&**p).expect("json"))));
                let lines = lines.join("\n");
                panic!("not so in time: {what}; {} {} are there, among them\n{lines}", all.len(), K::KIND);
            }
        }
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
        self.server.shutdown().await;
    }
}

pub fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}
