//! Node lifecycle: a node whose kubelet falls silent becomes Unknown; conditions become taints; pods on a node that
//! is not ready are no longer ready.
//!
//! A kubelet lives as long as its Lease is renewed. Silence is measured by our own clock from the moment we saw the last renewal, so clocks of
//! machines need not agree; after a restart every node has a full grace period. Nothing is polled: each node has one
//! timer that ends with its grace period.
mod plan;

use std::collections::HashMap;
use std::time::Duration;

use client::events::{EventType, reference};
use client::{Cache, Change, Patch};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::Mutex;
use serde_json::json;

use crate::ownership::{name, namespace, uid};
use crate::pods;
use crate::runner::{Context, Failure, Outcome, Reconcile, Runner};

const LEASES: &str = "kube-node-lease";

struct Controller {
    context: Context,
    nodes: Cache<Node>,
    leases: Cache<Lease>,
    pods: Cache<Pod>,
    grace: SignedDuration,
    /// Last heartbeat of each node and when we saw it: a measurement, made anew after a restart.
    seen: Mutex<HashMap<String, Seen>>,
}

struct Seen {
    lease: Option<Timestamp>,
    status: Option<Timestamp>,
    at: Timestamp,
}

pub(crate) async fn run(context: Context, grace: Duration) {
    let caches = context.reader.caches();
    let (nodes, leases, pods) = (caches.of::<Node>(), caches.of::<Lease>(), caches.of::<Pod>());
    let controller = Controller {
        context: context.clone(),
        nodes: nodes.clone(),
        leases: leases.clone(),
        pods: pods.clone(),
        grace: SignedDuration::try_from(grace).unwrap_or(SignedDuration::from_secs(50)),
        seen: Mutex::default(),
    };
    Runner::new(&context, controller)
        .on(&nodes, Controller::nodes_of_node)
        .on(&leases, |c: &Controller, change| {
            let meta = &change.object().metadata;
            if namespace(meta) != LEASES {
                return None;
            }
            // A renewal of a healthy node needs no pass: its timer looks at the newest renewal anyway.
            let node = c.nodes.get("", name(meta))?;
            c.heard(&node);
            (plan::ready(&node) == Some("Unknown")).then(|| name(meta).to_owned())
        })
        .on(&pods, |c: &Controller, change| {
            let (Change::Added(pod) | Change::Modified { new: pod, .. }) = change else { return None };
            let node = c.nodes.get("", pods::node_name(pod))?;
            (pods::is_ready(pod) && plan::ready(&node) != Some("True"))
                .then(|| name(&node.metadata).to_owned())
        })
        .run(4)
        .await;
}

impl Controller {
    /// The changed node; and all nodes when one becomes ready or stops being so, because whether pods are evicted
    /// depends on whether any node is ready.
    fn nodes_of_node(&self, change: &Change<Node>) -> Vec<String> {
        let node = change.object();
        let flipped = match change {
            Change::Modified { old, new } => plan::ready(old) != plan::ready(new),
            Change::Deleted(_) => true,
            Change::Added(_) => false,
        };
        if matches!(change, Change::Deleted(_)) {
            self.seen.lock().remove(name(&node.metadata));
        }
        let mut keys = vec![name(&node.metadata).to_owned()];
        if flipped {
            keys.extend(
                self.nodes
                    .list()
                    .iter()
                    .filter(|n| plan::ready(n) != Some("True"))
                    .map(|n| name(&n.metadata).to_owned()),
            );
        }
        keys
    }

    /// Notes a heartbeat that is new to us; how long ago the last one was.
    fn heard(&self, node: &Node) -> SignedDuration {
        let node_name = name(&node.metadata);
        let lease = self.leases.get(LEASES, node_name);
        let lease = lease.and_then(|l| l.spec.as_ref()?.renew_time.as_ref().map(|t| t.0));
        let status = plan::heartbeat(node);
        let now = self.context.clock.now();
        let mut all = self.seen.lock();
        let seen = all.entry(node_name.to_owned()).or_insert(Seen { lease, status, at: now });
        if lease > seen.lease || status > seen.status {
            *seen = Seen { lease, status, at: now };
        }
        now.duration_since(seen.at)
    }

    /// Takes readiness from the pods of a node that is not ready: services stop sending to them.
    async fn mark_pods(&self, node: &Node) -> Result<(), Failure> {
        let now = self.context.clock.now();
        for pod in self.pods.list() {
            if pods::node_name(&pod) != name(&node.metadata) || !pods::is_ready(&pod) {
                continue;
            }
            let condition = json!({"type": "Ready", "status": "False", "reason": "NodeNotReady",
                "message": "Node is not ready", "lastTransitionTime": api::meta::format_time(now)});
            let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [condition]}});
            let (ns, pod_name) = (namespace(&pod.metadata), name(&pod.metadata));
            match self.context.client.patch_status::<Pod>(ns, pod_name, &Patch::Strategic(patch)).await {
                Ok(_) => {
                    let about = reference(&*pod);
                    self.context.recorder.event(
                        &about,
                        EventType::Warning,
                        "NodeNotReady",
                        "Node is not ready",
                    );
                }
                Err(e) if e.is_not_found() || e.is_conflict() => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn event(&self, node: &Node, reason: &str, message: String) {
        let mut about = reference(node);
        // Events about nodes carry the name as uid, so that they outlive one registration.
        about.uid = Some(uid(&node.metadata).to_owned());
        self.context.recorder.event(&about, EventType::Normal, reason, message);
    }
}

impl Reconcile for Controller {
    type Key = String;

    async fn reconcile(&self, key: &String) -> Result<Outcome, Failure> {
        let client = &self.context.client;
        let Some(node) = self.nodes.get("", key) else { return Ok(Outcome::Settled) };
        if node.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Settled);
        }
        let now = self.context.clock.now();
        let silent = self.heard(&node);
        let mut node = (*node).clone();
        if silent > self.grace
            && let Some(lost) = plan::lost(&node, now)
        {
            let was_ready = plan::ready(&node) == Some("True");
            node = client.update_status("", &lost).await?;
            if was_ready {
                self.event(&node, "NodeNotReady", format!("Node {key} status is now: NodeNotReady"));
            }
        }
        // With no node ready the fault is more likely ours than theirs: nothing is evicted then.
        let any_ready =
            self.nodes.list().iter().any(|n| name(&n.metadata) != key && plan::ready(n) == Some("True"))
                || plan::ready(&node) == Some("True");
        if let Some(taints) = plan::taints(&node, any_ready, now) {
            let mut next = node.clone();
            next.spec.get_or_insert_default().taints = (!taints.is_empty()).then_some(taints);
            client.update("", &next).await?;
        }
        if matches!(plan::ready(&node), Some("False" | "Unknown")) {
            self.mark_pods(&node).await?;
        }
        if silent > self.grace {
            return Ok(Outcome::Settled);
        }
        let left = self.grace - silent + SignedDuration::from_millis(10);
        Ok(Outcome::After(left.unsigned_abs()))
    }
}
