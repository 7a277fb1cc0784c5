//! Pod garbage collection: pods of nodes that are gone, and pods that are being deleted but never had a node, have
//! no kubelet that would end them.
use std::time::Duration;

use client::{Cache, Change, DeleteOptions, Patch};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::json;

use crate::ownership::name;
use crate::pods;
use crate::runner::{Context, Failure, ObjectKey, Outcome, Reconcile, Runner};

/// How long a node may be missing before its pods go: a node that is deleted by mistake comes back.
const QUARANTINE: Duration = Duration::from_secs(40);

struct Controller {
    context: Context,
    nodes: Cache<Node>,
    pods: Cache<Pod>,
    /// Since when a node is missing: a measurement, made anew after a restart.
    missing: parking_lot::Mutex<std::collections::HashMap<String, jiff::Timestamp>>,
}

pub(crate) async fn run(context: Context) {
    let caches = context.reader.caches();
    let (nodes, pods) = (caches.of::<Node>(), caches.of::<Pod>());
    let controller = Controller {
        context: context.clone(),
        nodes: nodes.clone(),
        pods: pods.clone(),
        missing: parking_lot::Mutex::default(),
    };
    Runner::new(&context, controller)
        .on(&nodes, |c: &Controller, change| {
            let node = name(&change.object().metadata);
            c.missing.lock().remove(node);
            let Change::Deleted(_) = change else { return Vec::new() };
            let mut pods = c.pods.list();
            pods.retain(|p| pods::node_name(p) == node);
            pods.iter().map(|p| ObjectKey::of(&p.metadata)).collect()
        })
        .on(&pods, |c: &Controller, change| {
            let (Change::Added(pod) | Change::Modified { new: pod, .. }) = change else { return None };
            let node = pods::node_name(pod);
            let lost = if node.is_empty() {
                pod.metadata.deletion_timestamp.is_some()
            } else {
                c.nodes.get("", node).is_none()
            };
            lost.then(|| ObjectKey::of(&pod.metadata))
        })
        .run(2)
        .await;
}

impl Controller {
    /// Removes the pod at once; before that it fails, so that whoever counts pods knows how it ended.
    async fn remove(&self, pod: &Pod, why: Option<&str>) -> Result<Outcome, Failure> {
        let client = &self.context.client;
        let key = ObjectKey::of(&pod.metadata);
        if !pods::is_terminal(pod) {
            let mut status = json!({"phase": "Failed"});
            if let Some(message) = why {
                let now = api::meta::format_time(self.context.clock.now());
                status["conditions"] = json!([{"type": "DisruptionTarget", "status": "True",
                    "reason": "DeletionByPodGC", "message": message, "lastTransitionTime": now}]);
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
}

impl Reconcile for Controller {
    type Key = ObjectKey;

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, Failure> {
        let Some(pod) = self.pods.get(&key.namespace, &key.name) else { return Ok(Outcome::Settled) };
        let node = pods::node_name(&pod);
        if node.is_empty() {
            if pod.metadata.deletion_timestamp.is_none() {
                return Ok(Outcome::Settled);
            }
            return self.remove(&pod, None).await;
        }
        if self.nodes.get("", node).is_some() {
            return Ok(Outcome::Settled);
        }
        let now = self.context.clock.now();
        let since = *self.missing.lock().entry(node.to_owned()).or_insert(now);
        let gone = now.duration_since(since).unsigned_abs();
        if gone < QUARANTINE {
            return Ok(Outcome::After(QUARANTINE - gone));
        }
        match self.context.client.get::<Node>("", node).await {
            Err(e) if e.is_not_found() => self.remove(&pod, Some("PodGC: node no longer exists")).await,
            Err(e) => Err(e.into()),
            Ok(_) => Ok(Outcome::Settled),
        }
    }
}
