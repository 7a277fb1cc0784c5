//! Node lifecycle: a node whose kubelet falls silent becomes Unknown; conditions become taints; pods on a node that
//! is not ready are no longer ready.
//!
//! A kubelet lives as long as its Lease is renewed. Silence is measured by our own clock from the moment we saw the last renewal, so clocks of
//! machines need not agree; after a restart every node has a full grace period. Nothing is polled: each node has one
//! timer that ends with its grace period, or with its turn to be given up (`zones`).
mod plan;
mod zones;

use std::collections::HashMap;
use std::time::Duration;

use client::events::{EventType, reference};
use client::{By, Cache, Change, Patch};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::Mutex;
use serde_json::json;

use self::zones::{Lines, Turn};
use crate::ownership::{name, namespace};
use crate::pods;
use crate::runner::{Context, Failure, Outcome, Reconcile, Runner};

const LEASES: &str = "kube-node-lease";
/// A node that never reported may take so long to do so.
const STARTUP_GRACE: SignedDuration = SignedDuration::from_secs(60);

struct Controller {
    context: Context,
    nodes: Cache<Node>,
    leases: Cache<Lease>,
    by_node: By<Pod>,
    grace: SignedDuration,
    /// Last heartbeat of each node and when we saw it: a measurement, made anew after a restart.
    seen: Mutex<HashMap<String, Seen>>,
    lines: Mutex<Lines>,
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
        by_node: pods.by(pods::node_name),
        grace: SignedDuration::try_from(grace).unwrap_or(SignedDuration::from_secs(50)),
        seen: Mutex::default(),
        lines: Mutex::default(),
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
    /// The changed node; and all that are not ready when one becomes ready or stops being so, because whether and how fast
    /// nodes are given up depends on how many are.
    fn nodes_of_node(&self, change: &Change<Node>) -> Vec<String> {
        let node = change.object();
        let node_name = name(&node.metadata);
        let is_ready = |n: &Node| plan::ready(n) == Some("True");
        let flipped = match change {
            Change::Added(_) => {
                self.event(
                    node,
                    "RegisteredNode",
                    format!("Node {node_name} event: Registered Node {node_name} in Controller"),
                );
                false
            }
            Change::Modified { old, new } => plan::ready(old) != plan::ready(new),
            Change::Deleted(_) => {
                self.event(
                    node,
                    "RemovingNode",
                    format!("Node {node_name} event: Removing Node {node_name} from Controller"),
                );
                self.seen.lock().remove(node_name);
                self.lines.lock().leave(node_name);
                true
            }
        };
        let mut keys = vec![node_name.to_owned()];
        if flipped {
            let others = self.nodes.list();
            let mut others: Vec<_> = others.iter().filter(|n| name(&n.metadata) != node_name).collect();
            if is_ready(node) && !others.iter().any(|n| is_ready(n)) {
                // Nobody was heard and now somebody is: it was us, so that all others get their time anew.
                let now = self.context.clock.now();
                self.seen.lock().values_mut().for_each(|seen| seen.at = now);
            }
            others.retain(|n| !is_ready(n));
            keys.extend(others.into_iter().map(|n| name(&n.metadata).to_owned()));
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
        // Of one that never reported, its making was the last sign.
        let first = match plan::ready(node) {
            None if lease.is_none() => node.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0),
            _ => now,
        };
        let seen = all.entry(node_name.to_owned()).or_insert(Seen { lease, status, at: first });
        if lease > seen.lease || status > seen.status {
            *seen = Seen { lease, status, at: now };
        }
        now.duration_since(seen.at)
    }

    /// Takes readiness from the pods of a node that is not ready: services stop sending to them.
    async fn mark_pods(&self, node: &Node) -> Result<(), Failure> {
        let now = self.context.clock.now();
        for pod in self.by_node.list(name(&node.metadata)).iter().filter(|p| pods::is_ready(p)) {
            let condition = json!({"type": "Ready", "status": "False", "observedGeneration": pod.metadata.generation,
                "lastTransitionTime": api::meta::format_time(now)});
            let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [condition]}});
            let (ns, pod_name) = (namespace(&pod.metadata), name(&pod.metadata));
            match self.context.client.patch_status::<Pod>(ns, pod_name, &Patch::Strategic(patch)).await {
                Ok(_) => {
                    let about = reference(&**pod);
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
        self.context.recorder.event(&reference(node), EventType::Normal, reason, message);
    }

    /// Whether the node is to have the taint that drives its pods away.
    fn eviction(&self, node: &Node, now: Timestamp) -> Turn {
        let node_name = name(&node.metadata);
        let lost = matches!(plan::ready(node), Some("False" | "Unknown"));
        let all = self.nodes.list();
        let others = all.iter().map(|n| &**n).filter(|n| name(&n.metadata) != node_name);
        // Ourselves as just written, which the cache may not show yet.
        let zones = zones::survey(others.chain([node]));
        if !lost || zones::all_lost(&zones) {
            self.lines.lock().leave(node_name);
            return Turn::Never;
        }
        if plan::is_given_up(node) {
            return Turn::Now;
        }
        let zone = zones::zone_of(node);
        // A node that does not count is alone in its zone, or in one that says nothing about it.
        let of = zones.get(&zone).copied().unwrap_or((zones::State::Normal, 1));
        self.lines.lock().turn(&zone, node_name, of, now)
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
        let grace = if plan::ready(&node).is_some() { self.grace } else { STARTUP_GRACE };
        if silent > grace
            && let Some(lost) = plan::lost(&node, now)
        {
            let was_ready = plan::ready(&node) == Some("True");
            node = client.update_status("", &lost).await?;
            if was_ready {
                self.event(&node, "NodeNotReady", format!("Node {key} status is now: NodeNotReady"));
            }
        }
        let turn = match plan::ready(&node) {
            Some("False" | "Unknown") => self.eviction(&node, now),
            _ => {
                self.lines.lock().leave(key);
                Turn::Never
            }
        };
        let (taints, labels) = (plan::taints(&node, turn == Turn::Now, now), plan::older_labels(&node));
        if taints.is_some() || labels.is_some() {
            let mut next = node.clone();
            if let Some(taints) = taints {
                next.spec.get_or_insert_default().taints = (!taints.is_empty()).then_some(taints);
            }
            if let Some(labels) = labels {
                next.metadata.labels = Some(labels);
            }
            client.update("", &next).await?;
        }
        if turn == Turn::Now {
            self.lines.lock().leave(key);
        }
        if matches!(plan::ready(&node), Some("False" | "Unknown")) {
            self.mark_pods(&node).await?;
        }
        let left = (silent <= grace).then(|| grace - silent + SignedDuration::from_millis(10));
        let wait = match turn {
            Turn::After(wait) => Some(left.map_or(wait, |left| left.min(wait))),
            _ => left,
        };
        Ok(wait.map(|wait| wait.unsigned_abs()).into())
    }
}
