//! Pod garbage collection: pods that no kubelet will end, and ended pods of which there are too many.
//!
//! Nobody ends the pods of nodes that are gone or out of service, and pods that are being deleted but never had a node.
use std::collections::HashSet;
use std::time::Duration;

use client::{By, Cache, Change, DeleteOptions, Patch};
use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::Mutex;
use serde_json::json;

use crate::ownership::name;
use crate::pods;
use crate::runner::{Context, Failure, ObjectKey, Outcome, Reconcile, Runner};

/// How long a node may be missing before its pods go: a node that is deleted by mistake comes back.
const QUARANTINE: Duration = Duration::from_secs(40);
/// The taint by which somebody says that a node is shut down and will not come back as it was.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Pod(ObjectKey),
    /// There are more ended pods than may be kept.
    Ended,
}

struct Controller {
    context: Context,
    nodes: Cache<Node>,
    pods: Cache<Pod>,
    by_node: By<Pod>,
    /// How many ended pods are kept.
    threshold: usize,
    /// Those that ended.
    ended: Mutex<HashSet<ObjectKey>>,
    /// Since when a node is missing: a measurement, made anew after a restart.
    missing: Mutex<std::collections::HashMap<String, jiff::Timestamp>>,
}

pub(crate) async fn run(context: Context, threshold: usize) {
    let caches = context.reader.caches();
    let (nodes, pods) = (caches.of::<Node>(), caches.of::<Pod>());
    let controller = Controller {
        context: context.clone(),
        nodes: nodes.clone(),
        pods: pods.clone(),
        by_node: pods.by(pods::node_name),
        threshold,
        ended: Mutex::default(),
        missing: Mutex::default(),
    };
    Runner::new(&context, controller)
        .on(&nodes, |c: &Controller, change| {
            let node = change.object();
            let node_name = name(&node.metadata);
            c.missing.lock().remove(node_name);
            if !matches!(change, Change::Deleted(_)) && !is_out_of_service(node) {
                return Vec::new();
            }
            let pods = c.by_node.list(node_name);
            pods.iter().map(|p| Key::Pod(ObjectKey::of(&p.metadata))).collect()
        })
        .on(&pods, Controller::keys_of_pod)
        .run(2)
        .await;
}

fn is_out_of_service(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
    !ready && node.spec.iter().flat_map(|s| s.taints.iter().flatten()).any(|t| t.key == OUT_OF_SERVICE)
}

impl Controller {
    fn keys_of_pod(&self, change: &Change<Pod>) -> Vec<Key> {
        let pod = change.object();
        let key = ObjectKey::of(&pod.metadata);
        if matches!(change, Change::Deleted(_)) {
            self.ended.lock().remove(&key);
            return Vec::new();
        }
        let mut keys = Vec::new();
        if pods::is_terminal(pod) {
            let mut ended = self.ended.lock();
            if ended.insert(key.clone()) && self.threshold > 0 && ended.len() > self.threshold {
                keys.push(Key::Ended);
            }
        }
        let (node, deleting) = (pods::node_name(pod), pods::is_deleting(pod));
        let lost = match self.nodes.get("", node) {
            _ if node.is_empty() => deleting,
            None => true,
            Some(node) => deleting && is_out_of_service(&node),
        };
        if lost {
            keys.push(Key::Pod(key));
        }
        keys
    }

    /// Removes the pod at once; before that it fails, so that whoever counts pods knows how it ended.
    async fn remove(&self, pod: &Pod, why: Option<&str>) -> Result<Outcome, Failure> {
        let client = &self.context.client;
        let key = ObjectKey::of(&pod.metadata);
        if !pods::is_terminal(pod) {
            let mut status = json!({"phase": "Failed"});
            if let Some(message) = why {
                let now = api::meta::format_time(self.context.clock.now());
                status["conditions"] = json!([{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
                    "message": message, "observedGeneration": pod.metadata.generation, "lastTransitionTime": now}]);
            }
            let patch = Patch::Strategic(json!({"metadata": {"uid": pod.metadata.uid}, "status": status}));
            match client.patch_status::<Pod>(&key.namespace, &key.name, &patch).await {
                Ok(_) => {}
                Err(e) if e.is_not_found() || e.is_conflict() => return Ok(Outcome::Settled),
                Err(e) => return Err(e.into()),
            }
        }
        let options = DeleteOptions {
            uid: pod.metadata.uid.clone(),
            grace_period_seconds: Some(0),
            ..DeleteOptions::default()
        };
        match client.delete::<Pod>(&key.namespace, &key.name, &options).await {
            Ok(()) => Ok(Outcome::Settled),
            Err(e) if e.is_not_found() || e.is_conflict() => Ok(Outcome::Settled),
            Err(e) => Err(e.into()),
        }
    }

    /// Removes what is above the threshold: evicted pods first, then those made earliest.
    async fn trim(&self) -> Result<Outcome, Failure> {
        let mut ended = self.pods.list();
        ended.retain(|p| pods::is_terminal(p));
        let excess = ended.len().saturating_sub(self.threshold);
        let was_evicted = |p: &Pod| p.status.as_ref().and_then(|s| s.reason.as_deref()) == Some("Evicted");
        let made = |p: &Pod| p.metadata.creation_timestamp.as_ref().map(|t| t.0);
        ended.sort_by_cached_key(|p| (!was_evicted(p), made(p), p.metadata.name.clone()));
        for pod in ended.iter().take(excess) {
            self.remove(pod, None).await?;
        }
        Ok(Outcome::Settled)
    }
}

impl Reconcile for Controller {
    type Key = Key;

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Failure> {
        let Key::Pod(key) = key else { return self.trim().await };
        let Some(pod) = self.pods.get(&key.namespace, &key.name) else { return Ok(Outcome::Settled) };
        let node_name = pods::node_name(&pod);
        let deleting = pods::is_deleting(&pod);
        if node_name.is_empty() {
            return if deleting { self.remove(&pod, None).await } else { Ok(Outcome::Settled) };
        }
        if let Some(node) = self.nodes.get("", node_name) {
            let end = deleting && is_out_of_service(&node);
            return if end { self.remove(&pod, None).await } else { Ok(Outcome::Settled) };
        }
        let now = self.context.clock.now();
        let since = *self.missing.lock().entry(node_name.to_owned()).or_insert(now);
        let gone = now.duration_since(since).unsigned_abs();
        if gone < QUARANTINE {
            return Ok(Outcome::After(QUARANTINE - gone));
        }
        match self.context.client.get::<Node>("", node_name).await {
            Err(e) if e.is_not_found() => self.remove(&pod, Some("PodGC: node no longer exists")).await,
            Err(e) => Err(e.into()),
            Ok(_) => Ok(Outcome::Settled),
        }
    }
}
