//! A cluster in one process: API server on a store in a temporary folder, all controllers, and a hollow node that binds
//! pods, reports them ready and lets them end.
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use client::{Change, Client, DeleteOptions, Kind, Patch};
use controllers::{Clock, Config, SigningKey};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Namespace, Node, Pod, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};
use testserver::TestServer;
pub use testserver::object;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How often time passes for those who wait in it.
const BEAT: Duration = Duration::from_millis(100);

/// The client that a controller, by name, writes with.
pub type Writers = Arc<dyn Fn(&str) -> Client + Send + Sync>;

/// The machine's clock, moved by tests.
#[derive(Default)]
pub struct Shifted {
    seconds: AtomicI64,
    jumps: watch::Sender<u64>,
}

impl Clock for Shifted {
    fn now(&self) -> Timestamp {
        Timestamp::now() + SignedDuration::from_secs(self.seconds.load(Ordering::SeqCst))
    }

    fn jumps(&self) -> Option<watch::Receiver<u64>> {
        Some(self.jumps.subscribe())
    }
}

impl Shifted {
    /// Timers are not told: what waits for a time is looked at when something else changes.
    pub fn advance(&self, seconds: i64) {
        self.seconds.fetch_add(seconds, Ordering::SeqCst);
    }

    /// Timers are told.
    pub fn pass(&self, seconds: i64) {
        self.advance(seconds);
        self.jumps.send_modify(|n| *n += 1);
    }
}

pub struct Hollow {
    pub client: Client,
    pub clock: Arc<Shifted>,
    pub config: Config,
    controllers: Option<(CancellationToken, tokio::task::JoinHandle<Result<(), controllers::Error>>)>,
    tasks: JoinSet<()>,
    api: TestServer,
}

impl Hollow {
    /// Starts everything, with the namespace `d` and one node, `n1`.
    pub async fn start() -> Self {
        Self::start_on_server(apiserver::Options::default()).await
    }

    /// As `start`, with an API server of these options.
    pub async fn start_on_server(options: apiserver::Options) -> Self {
        let gates = options.feature_gates;
        let api = TestServer::start(options).await;
        let (server, client) = (api.server.clone(), api.client.clone());
        let clock = Arc::new(Shifted::default());
        let signer = server.clone();
        let config = Config {
            root_ca: "the CA".into(),
            signing_key: Some(SigningKey {
                cert_pem: server.pki().ca_pem().to_owned(),
                key_pem: server.pki().ca_key_pem(),
            }),
            cluster_info: Some("apiVersion: v1".into()),
            cluster_cidr: Some("10.244.0.0/16".into()),
            device_taint_rules: gates.device_taint_rules,
            clock: clock.clone(),
            legacy_tokens: Some(Arc::new(move |token| signer.legacy_token(token))),
            ..Config::default()
        };
        let mut this = Self { client, clock, config, controllers: None, tasks: JoinSet::new(), api };
        this.start_controllers();
        this.create::<Namespace>("", json!({"metadata": {"name": "d"}})).await;
        this.until::<ServiceAccount>("default account", |l| {
            l.iter().any(|a| a.metadata.namespace.as_deref() == Some("d"))
        })
        .await;
        this.add_node("n1").await;
        this.tasks.spawn(kubelet(this.client.clone()));
        this
    }

    /// The time by the controllers' clock.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub fn start_controllers(&mut self) {
        self.start_controllers_as(None);
    }

    /// Starts them with clients of their own for writes.
    pub fn start_controllers_as(&mut self, writers: Option<Writers>) {
        self.start_on(self.client.clone(), writers);
    }

    /// Starts them as a new process does, which knows nothing but what it reads now.
    pub fn restart_controllers_as(&mut self, writers: Writers) {
        self.start_on(self.api.server.client("admin", &["system:masters"]), Some(writers));
    }

    fn start_on(&mut self, reader: Client, writers: Option<Writers>) {
        let mut config = self.config.clone();
        config.client_for = writers;
        let stop = CancellationToken::new();
        let run = tokio::spawn(controllers::run(reader, config, stop.clone()));
        self.controllers = Some((stop, run));
    }

    pub async fn stop_controllers(&mut self) {
        if let Some((stop, run)) = self.controllers.take() {
            stop.cancel();
            run.await.expect("no panic").expect("no error");
        }
    }

    /// They end where they stand, as in a crash.
    pub async fn kill_controllers(&mut self) {
        if let Some((_, run)) = self.controllers.take() {
            run.abort();
            let _ = run.await;
        }
    }

    pub async fn add_node(&self, name: &str) {
        self.add_node_in("z1", name).await;
    }

    pub async fn add_node_in(&self, zone: &str, name: &str) {
        let labels = json!({"topology.kubernetes.io/zone": zone, "kubernetes.io/os": "linux"});
        self.create::<Node>("", json!({"metadata": {"name": name, "labels": labels}})).await;
        self.heartbeat(name).await;
    }

    /// The node says that it is ready, and is heard.
    pub async fn heartbeat(&self, name: &str) {
        let status = json!({"status": {"allocatable": {"cpu": "4", "pods": "500"}, "conditions": [
            {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        self.client.patch_status::<Node>("", name, &Patch::Strategic(status)).await.expect("node status");
        self.renew(name).await;
    }

    /// The node is heard.
    pub async fn renew(&self, name: &str) {
        let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(self.clock.now());
        let lease = json!({"metadata": {"name": name}, "spec": {"holderIdentity": name, "renewTime": now}});
        if self.client.get::<Namespace>("", "kube-node-lease").await.is_err() {
            self.create::<Namespace>("", json!({"metadata": {"name": "kube-node-lease"}})).await;
        }
        match self.client.create::<Lease>("kube-node-lease", &object(lease.clone())).await {
            Ok(_) => {}
            Err(e) if e.is_already_exists() => {
                self.client
                    .patch::<Lease>("kube-node-lease", name, &Patch::Merge(lease))
                    .await
                    .expect("lease");
            }
            Err(e) => panic!("lease: {e}"),
        }
    }

    /// A minute and more passes in which only these nodes are heard: the others are lost, even where what they said before it
    /// began is heard only when it has begun.
    pub async fn minute(&self, heard: &[&str]) {
        for _ in 0..2 {
            self.clock.advance(40);
            let since = self.clock.now();
            for name in heard {
                self.renew(name).await;
            }
            let renewed = |l: &Lease| l.spec.as_ref()?.renew_time.as_ref().map(|t| t.0);
            // The API keeps microseconds.
            let since = since - SignedDuration::from_micros(1);
            self.until::<Lease>("heard", |l| {
                l.iter().filter(|l| renewed(l).is_some_and(|t| t >= since)).count() == heard.len()
            })
            .await;
        }
        self.clock.advance(20);
    }

    /// Defines a namespaced kind of the group `example.com` that takes anything, and waits until it is served.
    pub async fn define(&self, plural: &str, kind: &str, subresources: Value) {
        let free = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        let name = format!("{plural}.example.com");
        let definition = json!({"metadata": {"name": name}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": plural, "kind": kind}, "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": free, "status": free}}},
                "subresources": subresources}]}});
        self.create::<CustomResourceDefinition>("", definition).await;
        let established = |c: &CustomResourceDefinition| {
            let conditions = c.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
            c.metadata.name.as_deref() == Some(&name)
                && conditions.iter().any(|c| c.type_ == "Established" && c.status == "True")
        };
        self.until::<CustomResourceDefinition>("established", |l| l.iter().any(|c| established(c))).await;
    }

    pub async fn create<K: Kind>(&self, ns: &str, value: Value) -> K {
        self.client.create(ns, &object::<K>(value)).await.expect("create")
    }

    pub async fn delete<K: Kind>(&self, ns: &str, name: &str, policy: &'static str) {
        let options = DeleteOptions { propagation_policy: Some(policy), ..DeleteOptions::default() };
        self.client.delete::<K>(ns, name, &options).await.expect("delete");
    }

    pub async fn merge<K: Kind>(&self, ns: &str, name: &str, patch: Value) {
        self.client.patch::<K>(ns, name, &Patch::Merge(patch)).await.expect("patch");
    }

    /// A write that changes nothing stands for the timer of what waits for a time. A pass that was under way may have seen the
    /// new time and have taken the object away before.
    pub async fn look<K: Kind>(&self, ns: &str, name: &str) {
        let look = json!({"metadata": {"annotations": {"look": self.now().as_nanosecond().to_string()}}});
        match self.client.patch::<K>(ns, name, &Patch::Merge(look)).await {
            Ok(_) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => panic!("look: {error}"),
        }
    }

    /// Waits until what the cache holds of a kind meets `done`, looking after every change.
    pub async fn until<K: Kind>(&self, what: &str, done: impl Fn(&[Arc<K>]) -> bool) -> Vec<Arc<K>> {
        testserver::until(&self.client, what, |all: &[Arc<K>]| done(all).then(|| all.to_vec())).await
    }

    /// Waits until an event of that source, reason and message is there.
    pub async fn told(&self, source: &str, reason: &str, message: &str) {
        let is = |e: &Event| {
            e.source.as_ref().and_then(|s| s.component.as_deref()) == Some(source)
                && (e.reason.as_deref(), e.message.as_deref()) == (Some(reason), Some(message))
        };
        self.until::<Event>(&format!("{source}: {reason}: {message}"), |l| l.iter().any(|e| is(e))).await;
    }

    /// Waits like `until`, while time passes: again and again `tick` lets some of it go by.
    pub async fn until_in_time<K: Kind>(
        &self,
        what: &str,
        done: impl Fn(&[Arc<K>]) -> bool,
        tick: impl AsyncFn(),
    ) -> Vec<Arc<K>> {
        let time = async {
            let mut beat = tokio::time::interval(BEAT);
            loop {
                beat.tick().await;
                tick().await;
            }
        };
        tokio::select! {
            all = self.until(what, done) => all,
            () = time => unreachable!("time has no end"),
        }
    }

    /// Something else that lives in the cluster until it ends.
    pub fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Ends everything that holds the store.
    pub async fn stop(mut self) {
        self.stop_controllers().await;
        self.tasks.shutdown().await;
        self.api.server.shutdown().await;
    }
}

/// The node that a pod's affinity names, as daemon pods' do; `n1` for others.
fn target(pod: &Pod) -> &str {
    let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref()).and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let mut fields = required
        .into_iter()
        .flat_map(|r| &r.node_selector_terms)
        .flat_map(|t| t.match_fields.iter().flatten());
    fields.find_map(|f| f.values.as_ref()?.first()).map_or("n1", String::as_str)
}

/// Binds pods unless they say `hold`, reports them ready unless they say `broken` or done when they say `ends`, and lets
/// deleted ones go unless they say `stuck`.
async fn kubelet(client: Client) {
    let cache = client.caches().of::<Pod>();
    let mut changes = cache.subscribe();
    let mut number = 0_u32;
    while let Some(change) = changes.next().await {
        let (Change::Added(pod) | Change::Modified { new: pod, .. }) = change else { continue };
        let (ns, name) = (
            pod.metadata.namespace.clone().unwrap_or_default(),
            pod.metadata.name.clone().unwrap_or_default(),
        );
        let has = |label: &str| pod.metadata.labels.as_ref().is_some_and(|l| l.contains_key(label));
        let bound = pod.spec.as_ref().is_some_and(|s| s.node_name.is_some());
        // Errors mean that the pod changed or went meanwhile; the change brings it back here.
        if pod.metadata.deletion_timestamp.is_some() && has("stuck") {
        } else if pod.metadata.deletion_timestamp.is_some() {
            let now = DeleteOptions {
                grace_period_seconds: Some(0),
                uid: pod.metadata.uid.clone(),
                ..DeleteOptions::default()
            };
            let _ = client.delete::<Pod>(&ns, &name, &now).await;
        } else if has("hold") {
        } else if !bound {
            let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": {"kind": "Node", "name": target(&pod)}});
            let _ = client.create_subresource::<Pod, _, Value>(&ns, &name, "binding", &binding).await;
        } else if pod.status.as_ref().is_none_or(|s| s.pod_ip.is_none()) {
            number += 1;
            let ip = format!("10.244.{}.{}", number / 250, number % 250 + 1);
            let ready = if has("broken") || has("ends") { "False" } else { "True" };
            let phase = if has("ends") { "Succeeded" } else { "Running" };
            let status = json!({"status": {"phase": phase, "podIP": ip, "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": Timestamp::now().to_string()}]}});
            let _ = client.patch_status::<Pod>(&ns, &name, &Patch::Strategic(status)).await;
        }
    }
}
