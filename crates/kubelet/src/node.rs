//! The Node object: registration, status, heartbeat.
//!
//! Rule: Kubernetes documentation, "Nodes" (self-registration, heartbeats: without other settings a Lease every 10 s, the
//! status when it changes and every five minutes).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::declared_features::{GUARANTEED_CPU, POD_LEVEL, RESTART_ALL, WEB_SOCKETS};
use api::node_labels::KUBELET_LABELS;
use client::events::{EventType, Recorder};
use client::queue::Backoff;
use client::{Cache, Client, Error, Patch};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, ObjectReference};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::Config;
use crate::configuration::KubeletConfiguration;
use crate::devices::Devices;
use crate::eviction::Pressure;
use crate::shutdown;
use crate::storage::Storage;
pub use capacity::Capacity;
use lease::NodeLease;

mod capacity;
mod lease;

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn os_image() -> String {
    let text = read("/etc/os-release");
    text.lines()
        .find_map(|l| l.strip_prefix("PRETTY_NAME="))
        .map_or_else(|| "Linux".to_owned(), |v| v.trim_matches('"').to_owned())
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Labels that every node has.
fn labels(config: &Config) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<String, String> = [
        ("kubernetes.io/hostname", config.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture()),
    ]
    .into_iter()
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .collect();
    labels.extend(config.labels.clone());
    labels
}

/// The parts of the status that do not come from the API: conditions without their times.
fn status(config: &Config, capacity: &Capacity, runtime: &str, images: &Value) -> Value {
    let own = config.node_ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip.to_string()}));
    let addresses: Vec<Value> =
        own.chain([json!({"type": "Hostname", "address": config.node_name})]).collect();
    let mut status = json!({
        "capacity": capacity.to_value(),
        "allocatable": capacity.allocatable_value(&config.settings),
        "addresses": addresses,
        "daemonEndpoints": {"kubeletEndpoint": {"Port": config.listen.port()}},
        "nodeInfo": {
            "machineID": read("/etc/machine-id"),
            "systemUUID": read("/sys/class/dmi/id/product_uuid"),
            "bootID": read("/proc/sys/kernel/random/boot_id"),
            "kernelVersion": read("/proc/sys/kernel/osrelease"),
            "osImage": os_image(), "containerRuntimeVersion": runtime, "kubeletVersion": config.version,
            "kubeProxyVersion": "", "operatingSystem": "linux", "architecture": architecture()},
        "images": images,
        "declaredFeatures": features(&config.settings),
    });
    if capacity.swap > 0 {
        status["nodeInfo"]["swap"] = json!({"capacity": capacity.swap});
    }
    status
}

fn conditions(old: &Value, ready: Result<(), String>, pressure: &Pressure, now: Timestamp) -> Value {
    let short = |kind: &'static str, bad: [&'static str; 2], good: [&'static str; 2]| {
        let (status, [reason, message]) =
            if pressure.contains(kind) { ("True", bad) } else { ("False", good) };
        (kind, status, reason, message.to_owned())
    };
    let wanted = [
        short(
            "MemoryPressure",
            ["KubeletHasInsufficientMemory", "kubelet has insufficient memory available"],
            ["KubeletHasSufficientMemory", "kubelet has sufficient memory available"],
        ),
        short(
            "DiskPressure",
            ["KubeletHasDiskPressure", "kubelet has disk pressure"],
            ["KubeletHasNoDiskPressure", "kubelet has no disk pressure"],
        ),
        short(
            "PIDPressure",
            ["KubeletHasInsufficientPID", "kubelet has insufficient PID available"],
            ["KubeletHasSufficientPID", "kubelet has sufficient PID available"],
        ),
        match ready {
            Ok(()) => ("Ready", "True", "KubeletReady", "kubelet is posting ready status".to_owned()),
            Err(why) => ("Ready", "False", "KubeletNotReady", why),
        },
    ];
    let at = api::meta::format_time(now);
    let list: Vec<Value> = wanted
        .into_iter()
        .map(|(kind, status, reason, message)| {
            let known =
                old.as_array().into_iter().flatten().find(|c| c["type"] == kind && c["status"] == status);
            let since = known.map_or_else(|| json!(at), |c| c["lastTransitionTime"].clone());
            json!({"type": kind, "status": status, "reason": reason, "message": message,
                "lastHeartbeatTime": at, "lastTransitionTime": since})
        })
        .collect();
    json!(list)
}

/// The Node of this machine.
pub struct NodeAgent {
    client: Client,
    config: Config,
    capacity: Capacity,
    runtime: String,
    images: cri::ImageClient,
    cri: cri::RuntimeClient,
    watched: Watched,
    recorder: Recorder,
    storage: Arc<Storage>,
    devices: Arc<Devices>,
    in_use: watch::Receiver<BTreeSet<String>>,
    /// What was reported last; nothing where that failed.
    reported: Option<Reported>,
    /// When the last report began.
    begun: Option<tokio::time::Instant>,
    /// No pods are to be scheduled on it, as was told last.
    cordoned: bool,
}

/// What a report said, without its times.
struct Reported {
    images: Value,
    health: Health,
    /// Of which Node.
    uid: Option<String>,
    conditions: Value,
}

/// How often the node gives signs of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signs {
    /// Between two looks at how it is.
    pub update: Duration,
    /// Between two reports where nothing changed.
    pub report: Duration,
    /// Between two renewals of its Lease.
    pub lease: Duration,
}

/// What is reported as soon as it changes.
pub struct Watched {
    /// What is short.
    pub pressure: watch::Receiver<Pressure>,
    /// Whether the runtime answers.
    pub answering: watch::Receiver<bool>,
    /// Whether the node goes down.
    pub goes_down: watch::Receiver<bool>,
    /// Devices came or went.
    pub devices: watch::Receiver<u64>,
    /// The Node, as the API has it.
    pub node: Cache<Node>,
}

/// What the runtime says of itself.
#[derive(Clone, PartialEq)]
struct Health {
    ready: Result<(), String>,
    /// Its handlers, and what it can do, as the Node's status names them.
    handlers: Value,
    features: Value,
}

/// What this kubelet has of what nodes declare, sorted.
pub fn features(settings: &KubeletConfiguration) -> Vec<&'static str> {
    let mut found = vec![WEB_SOCKETS];
    // processors that a container has for itself are not changed while it runs
    if settings.cpu_manager_policy == "none" {
        found.push(GUARANTEED_CPU);
    }
    found.extend([POD_LEVEL, RESTART_ALL]);
    found
}

/// What the runtime says it lacks, in the words of the Node's condition.
fn missing(condition: cri::v1::RuntimeCondition) -> Option<String> {
    let cri::v1::RuntimeCondition { r#type: kind, status, reason, message } = condition;
    let what = match kind.as_str() {
        _ if status => return None,
        "RuntimeReady" => "container runtime not ready",
        "NetworkReady" => "container runtime network not ready",
        // for others to act on
        _ => return None,
    };
    Some(format!("{what}: {kind}=false reason:{reason} message:{message}"))
}

/// Whether nothing is missing; several reasons are listed as the reference does.
fn ready(missing: Vec<String>) -> Result<(), String> {
    match missing.as_slice() {
        [] => Ok(()),
        [why] => Err(why.clone()),
        all => Err(format!("[{}]", all.join(", "))),
    }
}

/// What is to be reported.
enum Due {
    /// All, where something changed.
    Changes,
    /// All.
    All,
}

/// Most images that a node reports.
const IMAGES: usize = 50;
/// A report that failed is made again after this, and later ever more seldom.
const AGAIN: Duration = Duration::from_secs(1);

impl NodeAgent {
    /// For the machine; with what it has comes the runtime's name and version, for example `navarch://0.1.0`.
    pub fn new(
        client: Client,
        config: Config,
        (capacity, runtime): (Capacity, String),
        watched: Watched,
        (storage, devices): (Arc<Storage>, Arc<Devices>),
        recorder: Recorder,
    ) -> Self {
        let (cri, images) = config.cri.clone();
        let in_use = storage.in_use();
        let (reported, begun) = (None, None);
        Self {
            client,
            config,
            capacity,
            runtime,
            images,
            cri,
            watched,
            recorder,
            storage,
            devices,
            in_use,
            reported,
            begun,
            cordoned: false,
        }
    }

    /// Creates the Node, or takes over the one that is there, and reports it ready. Where somebody else creates it, only the last,
    /// as soon as it is there.
    pub async fn register(&mut self) -> Result<(), Error> {
        let name = self.config.node_name.clone();
        if !self.config.settings.register_node {
            return match self.report().await {
                Err(error) if error.is_not_found() => Ok(()),
                done => done,
            };
        }
        let mut spec = json!({});
        if let Some(cidr) = &self.config.pod_cidr {
            spec = json!({"podCIDR": cidr, "podCIDRs": [cidr]});
        }
        let taints = &self.config.settings.register_with_taints;
        if !taints.is_empty() {
            spec["taints"] = json!(taints);
        }
        let node: Value = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels(&self.config),
            "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}},
            "spec": spec});
        let created = self.client.call::<_, Node>(http::Method::POST, "/api/v1/nodes", Some(&node)).await;
        match created {
            Ok(_) => {}
            Err(error) if error.is_already_exists() => {
                // others may have been changed since, by who looks after nodes
                let mut labels = labels(&self.config);
                labels.retain(|name, _| KUBELET_LABELS.contains(&name.as_str()));
                let patch = json!({"metadata": {"labels": labels}});
                self.client.patch::<Node>("", &name, &Patch::Merge(patch)).await?;
            }
            Err(error) => return Err(error),
        }
        self.report().await
    }

    /// Brings the Node's status up to date.
    pub async fn report(&mut self) -> Result<(), Error> {
        self.reported = None;
        self.begun = Some(tokio::time::Instant::now());
        let name = self.config.node_name.clone();
        let node: Node = self.client.get("", &name).await?;
        let old = serde_json::to_value(&node).unwrap_or_default();
        let images = self.images().await;
        let health = self.health().await;
        let mut wanted = status(&self.config, &self.capacity, &self.runtime, &images);
        let pressure = self.watched.pressure.borrow_and_update().clone();
        let in_use = self.in_use.borrow_and_update().clone();
        wanted["volumesInUse"] = json!(in_use);
        self.watched.devices.mark_unchanged();
        for (name, (all, healthy)) in self.devices.counts() {
            wanted["capacity"][&name] = json!(all.to_string());
            wanted["allocatable"][&name] = json!(healthy.to_string());
        }
        if health.ready.is_ok() {
            wanted["runtimeHandlers"] = health.handlers.clone();
            wanted["features"] = health.features.clone();
        }
        let now = Timestamp::now();
        let ready = health.ready.clone();
        wanted["conditions"] = conditions(&old["status"]["conditions"], ready, &pressure, now);
        self.tell_changes(&old["status"], &wanted);
        let conditions = wanted["conditions"].clone();
        self.client.patch_status::<Node>("", &name, &Patch::Strategic(json!({"status": wanted}))).await?;
        self.storage.reported.send_replace(in_use);
        self.reported = Some(Reported { images, health, uid: node.metadata.uid, conditions });
        Ok(())
    }

    /// Reports where the runtime's health or the images changed, or the Node no longer says what was reported.
    async fn report_changes(&mut self) -> Result<(), Error> {
        let (images, health) = (self.images().await, self.health().await);
        let same = |last: &Reported| last.images == images && last.health == health;
        if self.stands() && self.reported.as_ref().is_some_and(same) { Ok(()) } else { self.report().await }
    }

    /// Whether the API has the Node that was reported of, with the conditions that were reported: others delete it, and say
    /// `Unknown` of a node that they did not hear of.
    fn stands(&self) -> bool {
        let (Some(reported), node) = (&self.reported, &self.watched.node) else { return false };
        if !node.is_synced() {
            return true;
        }
        let Some(node) = node.get("", &self.config.node_name) else { return false };
        let found = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let found: BTreeSet<_> = found.map(|found| (found.type_.as_str(), found.status.as_str())).collect();
        let said = reported.conditions.as_array().into_iter().flatten();
        let mut said = said.map(|said| (said["type"].as_str(), said["status"].as_str()));
        node.metadata.uid == reported.uid
            && said.all(|said| matches!(said, (Some(kind), Some(status)) if found.contains(&(kind, status))))
    }

    /// Events where conditions changed, and where the machine was started anew.
    fn tell_changes(&self, old: &Value, wanted: &Value) {
        let name = &self.config.node_name;
        for condition in wanted["conditions"].as_array().into_iter().flatten() {
            let known = old["conditions"].as_array().into_iter().flatten();
            let mut known = known.filter(|known| known["type"] == condition["type"]);
            let status = &condition["status"];
            // a node that is not ready yet was never ready
            let before = known
                .next()
                .map_or(json!(if condition["type"] == "Ready" { "False" } else { "" }), |known| {
                    known["status"].clone()
                });
            let Some(reason) = condition["reason"].as_str().and_then(|reason| reason.strip_prefix("Kubelet"))
            else {
                continue;
            };
            if before != *status {
                let reason = format!("Node{reason}");
                let text = format!("Node {name} status is now: {reason}");
                self.recorder.event(&self.about(), EventType::Normal, &reason, text);
            }
        }
        let (was, is) = (&old["nodeInfo"]["bootID"], &wanted["nodeInfo"]["bootID"]);
        if was.as_str().is_some_and(|was| !was.is_empty()) && was != is {
            let text = format!("Node {name} has been rebooted, boot id: {}", is.as_str().unwrap_or_default());
            self.recorder.event(&self.about(), EventType::Warning, "Rebooted", text);
        }
    }

    /// An event where somebody closed the node to new pods, or opened it.
    fn tell_cordon(&mut self) {
        let name = &self.config.node_name;
        let Some(node) = self.watched.node.get("", name) else { return };
        let now = node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true);
        if std::mem::replace(&mut self.cordoned, now) != now {
            let reason = if now { "NodeNotSchedulable" } else { "NodeSchedulable" };
            let text = format!("Node {name} status is now: {reason}");
            self.recorder.event(&self.about(), EventType::Normal, reason, text);
        }
    }

    /// The node as its events name it.
    fn about(&self) -> ObjectReference {
        let name = Some(self.config.node_name.clone());
        ObjectReference { kind: Some("Node".to_owned()), uid: name.clone(), name, ..Default::default() }
    }

    /// What the runtime says of itself; a node that goes down is not ready.
    async fn health(&mut self) -> Health {
        let going = self.watched.goes_down.borrow_and_update().then(|| shutdown::NOT_READY.to_owned());
        let status = match self.cri.status(cri::v1::StatusRequest::default()).await {
            Ok(answer) => answer.into_inner(),
            Err(error) => {
                let why = format!("container runtime is down: {}", error.message());
                let ready = ready([why].into_iter().chain(going).collect());
                return Health { ready, handlers: Value::Null, features: Value::Null };
            }
        };
        let broken = status.status.unwrap_or_default().conditions.into_iter().filter_map(missing);
        let ready = ready(broken.chain(going).collect());
        let handlers = status.runtime_handlers.iter().map(|handler| {
            let features = handler.features.unwrap_or_default();
            json!({"name": handler.name, "features": {
                "recursiveReadOnlyMounts": features.recursive_read_only_mounts,
                "userNamespaces": features.user_namespaces}})
        });
        let groups = status.features.unwrap_or_default().supplemental_groups_policy;
        Health { ready, handlers: handlers.collect(), features: json!({"supplementalGroupsPolicy": groups}) }
    }

    async fn images(&mut self) -> Value {
        let Ok(answer) = self.images.list_images(cri::v1::ListImagesRequest::default()).await else {
            return json!([]);
        };
        let mut images = answer.into_inner().images;
        images.sort_by_key(|i| std::cmp::Reverse(i.size));
        images
            .into_iter()
            .take(IMAGES)
            .map(|i| {
                let names: Vec<String> = i.repo_digests.into_iter().chain(i.repo_tags).take(5).collect();
                json!({"names": names, "sizeBytes": i.size})
            })
            .collect()
    }

    /// Keeps Lease and status alive until `stop`.
    pub async fn run(self, signs: Signs, stop: CancellationToken) {
        let lease = NodeLease {
            client: self.client.clone(),
            name: self.config.node_name.clone(),
            seconds: self.config.settings.node_lease_duration_seconds,
        };
        // a runtime that does not answer holds up the status, not the Lease
        tokio::join!(lease.run(signs.lease, stop.clone()), self.follow(signs, stop));
    }

    /// Keeps the status in step until `stop`.
    async fn follow(mut self, signs: Signs, stop: CancellationToken) {
        let every = |period: Duration| {
            let mut interval = tokio::time::interval(period);
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            interval
        };
        let mut beat = every(signs.update);
        let mut report = tokio::time::interval_at(tokio::time::Instant::now() + signs.report, signs.report);
        let mut again = Backoff::new(AGAIN.min(signs.update), signs.update);
        let mut node = self.watched.node.subscribe();
        loop {
            let due = tokio::select! {
                () = stop.cancelled() => return,
                _ = beat.tick() => Due::Changes,
                Ok(()) = self.watched.answering.changed() => Due::Changes,
                Some(_) = node.next() => {
                    self.tell_cordon();
                    if !self.stands() {
                        // another that writes the same, and does not agree, is not answered as fast as it writes
                        let since = self.begun.map_or(AGAIN, |begun| begun.elapsed());
                        beat.reset_after(AGAIN.saturating_sub(since));
                    }
                    continue;
                }
                Ok(()) = self.in_use.changed() => Due::All,
                Ok(()) = self.watched.goes_down.changed() => Due::All,
                Ok(()) = self.watched.devices.changed() => Due::All,
                Ok(()) = self.watched.pressure.changed() => Due::All,
                _ = report.tick() => Due::All,
            };
            let work = async {
                let done = match due {
                    Due::Changes => self.report_changes().await,
                    Due::All => self.report().await,
                };
                match done {
                    // someone deleted the Node: a kubelet that runs has one
                    Err(error) if error.is_not_found() => self.register().await,
                    done => done,
                }
            };
            let done = tokio::select! {
                () = stop.cancelled() => return,
                done = work => done,
            };
            match done {
                Ok(()) => again.reset(),
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "node status not reported");
                    beat.reset_after(again.next());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_runtime_lacks_is_told_in_the_references_words() {
        let condition = |kind: &str, status, reason: &str, message: &str| cri::v1::RuntimeCondition {
            r#type: kind.to_owned(),
            status,
            reason: reason.to_owned(),
            message: message.to_owned(),
        };
        let said = |all: Vec<cri::v1::RuntimeCondition>| ready(all.into_iter().filter_map(missing).collect());
        let network = condition("NetworkReady", false, "NetworkPluginNotReady", "cni plugin not initialized");
        let text = "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady \
                    message:cni plugin not initialized";
        let well = condition("RuntimeReady", true, "", "");
        assert_eq!(said(vec![well.clone(), condition("Else", false, "", "")]), Ok(()));
        assert_eq!(said(vec![well, network.clone()]), Err(text.to_owned()));
        let both = format!("[container runtime not ready: RuntimeReady=false reason:r message:m, {text}]");
        assert_eq!(said(vec![condition("RuntimeReady", false, "r", "m"), network]), Err(both));
    }
}
