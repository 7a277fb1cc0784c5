//! The nodes: their objects, their heartbeats, and the work on their pods.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use client::queue::WorkQueue;
use client::{Cache, Change, Client, DeleteOptions, Patch};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::Method;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::addresses::{self, Addresses};
use crate::clock::Clock;
use crate::pods::{self, Place, Step};

const LEASES: &str = "kube-node-lease";
/// Kubelets renew their Lease this often, and it holds four times as long.
const HEARTBEAT: Duration = Duration::from_secs(10);
const LEASE_SECONDS: i32 = 40;
/// The time moves in steps of at most this: far less than a node may be silent.
const STEP: Duration = Duration::from_secs(20);
/// Requests at a time.
const PARALLEL: usize = 64;

/// What nodes there are.
#[derive(Debug, Clone)]
pub struct Config {
    /// Names are this and a number.
    pub prefix: String,
    /// How many.
    pub nodes: usize,
    /// They are spread over so many zones, `zone-0` and so on.
    pub zones: usize,
    /// Capacity of each, as quantities.
    pub cpu: String,
    /// ... its memory.
    pub memory: String,
    /// ... and how many pods it takes.
    pub pods: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            prefix: "hollow-".to_owned(),
            nodes: 10,
            zones: 3,
            cpu: "32".to_owned(),
            memory: "256Gi".to_owned(),
            pods: 110,
        }
    }
}

/// Why there are no nodes.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A node could not be registered or heard.
    #[error("node {name}")]
    Node {
        /// Its name.
        name: String,
        /// What the API said.
        #[source]
        source: client::Error,
    },
}

#[derive(Debug, Clone)]
struct Hollow {
    number: usize,
    silent: bool,
    /// The cache has shown it: from then on it is deleted when the cache does not.
    seen: bool,
}

/// Hollow nodes at work.
pub struct Nodes {
    client: Client,
    clock: Arc<Clock>,
    config: Config,
    known: Mutex<BTreeMap<String, Hollow>>,
    nodes: Cache<Node>,
    leases: Cache<Lease>,
    pods: Cache<Pod>,
    addresses: Addresses,
    /// Namespace and name.
    queue: WorkQueue<(String, String)>,
}

impl Nodes {
    /// Registers the nodes and looks after them until `stop`; must be called within a tokio runtime.
    pub async fn start(
        client: Client,
        config: Config,
        clock: Arc<Clock>,
        stop: CancellationToken,
    ) -> Result<Arc<Self>, Error> {
        let caches = client.caches();
        let (nodes, leases, pods) = (caches.of::<Node>(), caches.of::<Lease>(), caches.of::<Pod>());
        tokio::join!(nodes.synced(), leases.synced(), pods.synced());
        let this = Arc::new(Self {
            client,
            clock,
            config,
            known: Mutex::default(),
            nodes,
            leases,
            pods,
            addresses: Addresses::default(),
            queue: WorkQueue::new(),
        });
        let addresses = this.pods.list();
        let addresses = addresses.iter().filter_map(|p| p.status.as_ref()?.pod_ip.as_deref());
        addresses.for_each(|address| this.addresses.taken(address));
        stream::iter(0..this.config.nodes)
            .map(|number| this.add(number))
            .buffer_unordered(PARALLEL)
            .try_collect::<()>()
            .await?;

        tokio::spawn(Self::beat_until(this.clone(), stop.clone()));
        tokio::spawn(Self::feed(this.clone(), stop));
        for _ in 0..PARALLEL {
            tokio::spawn(Self::work(this.clone()));
        }
        Ok(this)
    }

    /// The names of the nodes of a zone.
    pub fn of_zone(&self, zone: usize) -> Vec<String> {
        let known = self.known.lock();
        let of_zone = known.iter().filter(|(_, node)| node.number % self.config.zones.max(1) == zone);
        of_zone.map(|(name, _)| name.clone()).collect()
    }

    /// The machines of these nodes are lost: no heartbeat, and nothing happens to their pods.
    pub fn silence(&self, names: &[String]) {
        self.set_silent(names, true);
    }

    fn set_silent(&self, names: &[String], silent: bool) {
        let mut known = self.known.lock();
        known.iter_mut().filter(|(name, _)| names.contains(name)).for_each(|(_, node)| node.silent = silent);
    }

    /// They are back.
    pub async fn wake(&self, names: &[String]) -> Result<(), Error> {
        self.set_silent(names, false);
        self.beat().await?;
        for pod in self.pods.list() {
            let node = pod.spec.as_ref().and_then(|s| s.node_name.as_ref());
            if node.is_some_and(|node| names.contains(node)) {
                self.queue.add(key(&pod));
            }
        }
        Ok(())
    }

    /// Moves the time ahead. All nodes but the silent ones are heard throughout.
    pub async fn advance(&self, by: Duration) -> Result<(), Error> {
        let mut left = by;
        while !left.is_zero() {
            let step = left.min(STEP);
            self.clock.shift(step);
            self.beat().await?;
            self.clock.tell();
            left -= step;
        }
        Ok(())
    }

    /// Takes the nodes out of the cluster.
    pub async fn remove(&self) -> Result<(), Error> {
        let names: Vec<String> = self.known.lock().keys().cloned().collect();
        stream::iter(names)
            .map(|name| async move {
                match self.client.delete::<Node>("", &name, &DeleteOptions::default()).await {
                    Err(source) if !source.is_not_found() => Err(Error::Node { name, source }),
                    _ => Ok(()),
                }
            })
            .buffer_unordered(PARALLEL)
            .try_collect::<()>()
            .await
    }

    async fn add(&self, number: usize) -> Result<(), Error> {
        let name = format!("{}{number}", self.config.prefix);
        self.register(&name, number).await.map_err(|source| Error::Node { name: name.clone(), source })?;
        self.known.lock().insert(name, Hollow { number, silent: false, seen: false });
        Ok(())
    }

    async fn register(&self, name: &str, number: usize) -> Result<(), client::Error> {
        let zone = format!("zone-{}", number % self.config.zones.max(1));
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {
                "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
                "topology.kubernetes.io/zone": zone, "simulate.navarch.dev/hollow": "true"}},
            "status": self.status(number)});
        let path = "/api/v1/nodes";
        let uid = match self.client.call::<_, Value>(Method::POST, path, Some(&node)).await {
            Ok(made) => made["metadata"]["uid"].as_str().unwrap_or_default().to_owned(),
            // from an earlier run
            Err(error) if error.is_already_exists() => {
                let status = Patch::Strategic(json!({"status": self.status(number)}));
                let node = self.client.patch_status::<Node>("", name, &status).await?;
                node.metadata.uid.unwrap_or_default()
            }
            Err(error) => return Err(error),
        };
        let owner = json!([{"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}]);
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": name, "ownerReferences": owner},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": MicroTime(self.clock.now())}});
        let path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
        match self.client.call::<_, Value>(Method::POST, path, Some(&lease)).await {
            Err(error) if error.is_already_exists() => self.renew(name).await,
            made => made.map(drop),
        }
    }

    fn status(&self, number: usize) -> Value {
        let room = json!({"cpu": self.config.cpu, "memory": self.config.memory, "pods": self.config.pods.to_string(),
            "ephemeral-storage": "1Ti"});
        let now = api::meta::format_time(self.clock.now());
        let condition = |kind: &str, status: &str, reason: &str, message: &str| {
            json!({"type": kind, "status": status, "reason": reason, "message": message,
                "lastHeartbeatTime": now, "lastTransitionTime": now})
        };
        json!({"capacity": room, "allocatable": room,
            "addresses": [{"type": "InternalIP", "address": addresses::of_node(number).to_string()}],
            "nodeInfo": {"architecture": "amd64", "bootID": "", "containerRuntimeVersion": "hollow://1", "kernelVersion": "",
                "kubeProxyVersion": "", "kubeletVersion": "v1.36.0", "machineID": "", "operatingSystem": "linux",
                "osImage": "none: this node is simulated", "systemUUID": ""},
            "conditions": [
                condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
                condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
                condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
                condition("Ready", "True", "KubeletReady", "kubelet is posting ready status")]})
    }

    async fn renew(&self, name: &str) -> Result<(), client::Error> {
        let spec = json!({"spec": {"renewTime": MicroTime(self.clock.now())}});
        self.client.patch::<Lease>(LEASES, name, &Patch::Merge(spec)).await.map(drop)
    }

    /// A heartbeat of every node that is not silent; those that were given up meanwhile say that they are ready. Returns
    /// when the cache shows all of them.
    async fn beat(&self) -> Result<(), Error> {
        let began = self.clock.now();
        let alive: Vec<(String, usize)> = {
            let known = self.known.lock();
            known.iter().filter(|(_, n)| !n.silent).map(|(name, n)| (name.clone(), n.number)).collect()
        };
        stream::iter(alive.clone())
            .map(|(name, number)| async move {
                let beaten = self.beat_of(&name, number).await;
                beaten.map_err(|source| Error::Node { name, source })
            })
            .buffer_unordered(PARALLEL)
            .try_collect::<()>()
            .await?;
        let mut changes = self.leases.subscribe();
        let is_seen = |name: &str| {
            let renewed = |l: &Lease| l.spec.as_ref()?.renew_time.as_ref().map(|t| t.0);
            // the API keeps microseconds
            let began = began - jiff::SignedDuration::from_micros(1);
            self.leases.get(LEASES, name).and_then(|l| renewed(&l)).is_some_and(|t| t >= began)
        };
        for (name, _) in &alive {
            while !is_seen(name) && self.leases.get(LEASES, name).is_some() {
                if changes.next().await.is_none() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn beat_of(&self, name: &str, number: usize) -> Result<(), client::Error> {
        let Some(node) = self.nodes.get("", name) else {
            // deleted by somebody: a kubelet registers itself once, so that the node stays away
            let mut known = self.known.lock();
            if known.get(name).is_some_and(|node| node.seen) {
                known.remove(name);
            }
            return Ok(());
        };
        if let Some(node) = self.known.lock().get_mut(name) {
            node.seen = true;
        }
        match self.renew(name).await {
            Err(error) if error.is_not_found() => self.register(name, number).await?,
            renewed => renewed?,
        }
        let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        if conditions.iter().any(|c| c.type_ == "Ready" && c.status != "True") {
            let status =
                Patch::Strategic(json!({"status": {"conditions": self.status(number)["conditions"]}}));
            self.client.patch_status::<Node>("", name, &status).await?;
        }
        Ok(())
    }

    async fn beat_until(self: Arc<Self>, stop: CancellationToken) {
        let mut turn = tokio::time::interval(HEARTBEAT);
        turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = turn.tick() => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                beaten = self.beat() => if let Err(error) = beaten {
                    tracing::warn!(error = &error as &dyn std::error::Error, "a hollow node was not heard");
                },
            }
        }
    }

    /// Maps changes of pods, and jumps of the time, to keys.
    async fn feed(self: Arc<Self>, stop: CancellationToken) {
        let (mut changes, mut jumps) = (self.pods.subscribe(), self.clock.jumps());
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                change = changes.next() => match change {
                    Some(Change::Added(pod) | Change::Modified { new: pod, .. }) if self.place_of(&pod).is_some() => {
                        self.queue.add(key(&pod));
                    }
                    Some(_) => {}
                    None => break,
                },
                jumped = jumps.changed() => match jumped {
                    Ok(()) => self.queue.hurry(),
                    Err(_) => break,
                },
            }
        }
        self.queue.shut_down();
    }

    async fn work(self: Arc<Self>) {
        while let Some(key) = self.queue.next().await {
            match self.look(&key).await {
                Ok(wait) => {
                    self.queue.forget(&key);
                    if let Some(wait) = wait {
                        self.queue.add_after(key.clone(), wait);
                    }
                }
                // Another write came first; the change brings the pod back here.
                Err(error) if error.is_conflict() || error.is_not_found() => self.queue.forget(&key),
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        pod = key.1,
                        "a hollow pod is tried again"
                    );
                    self.queue.add_rate_limited(key.clone());
                }
            }
            self.queue.done(&key);
        }
    }

    /// The address of the pod's node, when that is one of ours and heard.
    fn place_of(&self, pod: &Pod) -> Option<String> {
        let known = self.known.lock();
        let node = known.get(pod.spec.as_ref()?.node_name.as_ref()?)?;
        (!node.silent).then(|| addresses::of_node(node.number).to_string())
    }

    async fn look(&self, (ns, name): &(String, String)) -> Result<Option<Duration>, client::Error> {
        let Some(pod) = self.pods.get(ns, name) else { return Ok(None) };
        let Some(host) = self.place_of(&pod) else { return Ok(None) };
        let has_address = pod.status.as_ref().is_some_and(|s| s.pod_ip.is_some());
        let address = if has_address { String::new() } else { self.addresses.next().to_string() };
        let uid = &pod.metadata.uid;
        match pods::plan(&pod, Place { host: &host, pod: &address }, self.clock.now()) {
            Step::Rest => Ok(None),
            Step::Wait(wait) => Ok(Some(wait)),
            Step::Report(status) => {
                let patch = Patch::Strategic(json!({"metadata": {"uid": uid}, "status": status}));
                self.client.patch_status::<Pod>(ns, name, &patch).await.map(|_| None)
            }
            Step::Remove => {
                let options = DeleteOptions {
                    grace_period_seconds: Some(0),
                    uid: uid.clone(),
                    ..DeleteOptions::default()
                };
                self.client.delete::<Pod>(ns, name, &options).await.map(|()| None)
            }
        }
    }

    /// The time by the simulation's clock.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

fn key(pod: &Pod) -> (String, String) {
    (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default())
}
