//! Daemon sets: one pod on every node that the template selects.
//!
//! Planning is in `plan`, the choice of nodes in `placement`; this file looks, writes and records events. Pods have generated
//! names, so a pass never plans before the cache shows what earlier passes wrote (`pending`). A pod that fails again and again
//! on a node is deleted with growing pauses: the kubelet may refuse it for a reason that lasts.
//! Source: <https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/>.
mod placement;
mod plan;
#[cfg(test)]
mod simulation;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use api::selector::LabelSelector;
use client::events::{EventType, reference};
use client::{Cache, Change, Patch};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;
use serde_json::json;

use self::placement::{Place, place, tie, tolerate};
use self::plan::{POD_TEMPLATE_GENERATION, Plan, View, template_generation};
use crate::claims::claim_all;
use crate::ownership::{controller_of, controller_ref, labels, name, namespace, uid};
use crate::pending::Pending;
use crate::pod_control::PodControl;
use crate::pods;
use crate::revisions::{self, History, REVISION_HASH, Wanted};
use crate::runner::{Context, Failure, ObjectKey, Outcome, Reconcile, Runner, has_cause};

/// At most so many creates, and so many deletes, in one pass, as upstream.
const BURST: usize = 250;

/// The pause after the first failed pod on a node; it doubles.
const FIRST_PAUSE: SignedDuration = SignedDuration::from_secs(1);
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_mins(15);

struct Controller {
    context: Context,
    sets: Cache<DaemonSet>,
    nodes: Cache<Node>,
    pods: Cache<Pod>,
    revisions: Cache<ControllerRevision>,
    pending: Pending<ObjectKey>,
    pauses: Mutex<HashMap<FailureKey, Pause>>,
}

/// Pods of one generation of a set on one node.
type FailureKey = (String, i64, String);

/// A pod that failed was deleted at `since`; the next one that fails waits for `length`.
#[derive(Debug, Clone, Copy)]
struct Pause {
    since: Timestamp,
    length: SignedDuration,
}

pub(crate) async fn run(context: Context) {
    let caches = context.reader.caches();
    let controller = Controller {
        sets: caches.of(),
        nodes: caches.of(),
        pods: caches.of(),
        revisions: caches.of(),
        pending: Pending::new(),
        pauses: Mutex::default(),
        context: context.clone(),
    };
    let (sets, nodes) = (controller.sets.clone(), controller.nodes.clone());
    let (pods, revisions) = (controller.pods.clone(), controller.revisions.clone());
    Runner::new(&context, controller)
        .on(&sets, |_, change| [ObjectKey::of(&change.object().metadata)])
        .on(&nodes, Controller::sets_of_node)
        .on(&pods, Controller::sets_of_pod)
        .on(&revisions, Controller::set_of_revision)
        .run(2)
        .await;
}

impl Controller {
    /// Sets for which the node is not what it was. Heartbeats change nothing for any.
    fn sets_of_node(&self, change: &Change<Node>) -> Vec<ObjectKey> {
        if let Change::Modified { old, new } = change {
            let taints = |n: &Node| n.spec.as_ref().and_then(|s| s.taints.clone());
            if old.metadata.labels == new.metadata.labels && taints(old) == taints(new) {
                return Vec::new();
            }
        }
        let concerns = |set: &DaemonSet| {
            let Some(pod) = template_pod(set) else { return false };
            match change {
                Change::Added(node) => place(&pod, node) != Place::Leave,
                Change::Modified { old, new } => place(&pod, old) != place(&pod, new),
                Change::Deleted(_) => true,
            }
        };
        let sets = self.sets.list();
        sets.iter().filter(|s| concerns(s)).map(|s| ObjectKey::of(&s.metadata)).collect()
    }

    /// The set that controls the pod, or for an orphan all that select it.
    fn sets_of_pod(&self, change: &Change<Pod>) -> Vec<ObjectKey> {
        let mut keys = Vec::new();
        let mut add = |pod: &Pod| {
            let ns = namespace(&pod.metadata);
            match controller_of(&pod.metadata) {
                Some(owner) if owner.kind == "DaemonSet" => keys.push(ObjectKey::new(ns, &owner.name)),
                Some(_) => {}
                None => {
                    let mut sets = self.sets.list_ns(ns);
                    sets.retain(|s| selector(s).is_ok_and(|s| s.matches(labels(&pod.metadata))));
                    keys.extend(sets.iter().map(|s| ObjectKey::of(&s.metadata)));
                }
            }
        };
        if let Change::Modified { old, new } = change
            && controller_of(&old.metadata) != controller_of(&new.metadata)
        {
            add(old);
        }
        add(change.object());
        keys
    }

    /// A revision that is taken away, or that lost its owner, is missed by its set.
    fn set_of_revision(&self, change: &Change<ControllerRevision>) -> Option<ObjectKey> {
        let meta = match change {
            Change::Deleted(revision) => &revision.metadata,
            Change::Modified { old, new } if controller_of(&old.metadata) != controller_of(&new.metadata) => {
                &old.metadata
            }
            _ => return None,
        };
        let owner = controller_of(meta).filter(|o| o.kind == "DaemonSet")?;
        Some(ObjectKey::new(namespace(meta), &owner.name))
    }

    async fn settle(
        &self,
        set: &DaemonSet,
        selector: &LabelSelector,
        pods: &[Arc<Pod>],
    ) -> Result<History, Failure> {
        let Some(spec) = set.spec.as_ref() else { return Err(Failure::Invalid("no spec".into())) };
        let revisions = revisions::claim(&self.context, &self.revisions, set, selector).await?;
        let collisions = set.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
        let wanted = Wanted { template: &spec.template, hash_label: REVISION_HASH, collisions };
        let mut history = revisions::settle(&self.context, set, revisions, &wanted).await?;
        for twin in revisions::take_twins(&mut history, &spec.template) {
            self.merge_twin(pods, &history.update, &twin).await?;
        }
        Ok(history)
    }

    /// Two revisions of one template: pods of the earlier are of the later too, and the earlier goes.
    async fn merge_twin(
        &self,
        pods: &[Arc<Pod>],
        kept: &ControllerRevision,
        twin: &Arc<ControllerRevision>,
    ) -> Result<(), Failure> {
        let of_twin = |p: &&Arc<Pod>| labels(&p.metadata).get(REVISION_HASH) == Some(&hash_of(twin));
        for pod in pods.iter().filter(of_twin) {
            let patch =
                json!({"metadata": {"uid": uid(&pod.metadata), "labels": {REVISION_HASH: hash_of(kept)}}});
            let (ns, pod) = (namespace(&pod.metadata), name(&pod.metadata));
            self.context.client.patch::<Pod>(ns, pod, &Patch::Merge(patch)).await?;
        }
        revisions::truncate(&self.context, std::slice::from_ref(twin), |_| false, Some(0)).await
    }

    /// Deletes pods that ended; the pause until the next failed one may go.
    fn ended(&self, set: &DaemonSet, plan: &mut Plan) -> Option<Duration> {
        let now = self.context.clock.now();
        let generation = set.status.as_ref().and_then(|s| s.observed_generation).unwrap_or(0);
        let mut wait = None;
        for (node, pod) in std::mem::take(&mut plan.ended) {
            let what =
                format!("daemon pod {}/{} on node {node}", namespace(&pod.metadata), name(&pod.metadata));
            if pods::phase(&pod) == "Failed" {
                if let Some(left) = self.pause((uid(&set.metadata).to_owned(), generation, node), now) {
                    wait = Some(wait.map_or(left, |w: Duration| w.min(left)));
                    continue;
                }
                let message = format!("Found failed {what}, will try to kill it");
                self.event(set, EventType::Warning, "FailedDaemonPod", message);
            } else {
                let message = format!("Found succeeded {what}, will try to delete it");
                self.event(set, EventType::Normal, "SucceededDaemonPod", message);
            }
            plan.delete.push(pod);
        }
        wait
    }

    /// How long a failed pod has to wait for its deletion; `None`: not at all, and the next pause is longer.
    fn pause(&self, key: FailureKey, now: Timestamp) -> Option<Duration> {
        let mut pauses = self.pauses.lock();
        pauses.retain(|_, p| now.duration_since(p.since) < LONGEST_PAUSE * 2);
        let pause = pauses.get(&key).copied();
        let left = pause.map_or(SignedDuration::ZERO, |p| p.length - now.duration_since(p.since));
        if left > SignedDuration::ZERO {
            return Some(left.unsigned_abs());
        }
        let length = pause.map_or(FIRST_PAUSE, |p| (p.length * 2).min(LONGEST_PAUSE));
        pauses.insert(key, Pause { since: now, length });
        None
    }

    async fn execute(
        &self,
        key: &ObjectKey,
        set: &DaemonSet,
        plan: &Plan,
        hash: &str,
    ) -> Result<(), client::Error> {
        let control =
            PodControl { context: &self.context, pending: &self.pending, key, owner: reference(set) };
        let nodes = plan.create.iter().take(BURST);
        let pods: Vec<Pod> = nodes.filter_map(|node| new_pod(set, node, hash)).collect();
        let created = control.create(pods.iter().collect()).await;
        let deleted = control.delete(&plan.delete[..plan.delete.len().min(BURST)]).await;
        created.and(deleted)
    }

    fn event(&self, set: &DaemonSet, kind: EventType, reason: &str, message: String) {
        self.context.recorder.event(&reference(set), kind, reason, message);
    }
}

impl Reconcile for Controller {
    type Key = ObjectKey;

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, Failure> {
        let Some(set) = self.sets.get(&key.namespace, &key.name) else {
            self.pending.forget(key);
            return Ok(Outcome::Settled);
        };
        let selector = selector(&set)?;
        if selector.is_everything() {
            let message = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.event(&set, EventType::Warning, "SelectingAll", message.to_owned());
            return Ok(Outcome::Settled);
        }
        // Its revisions may be gone before its pods: nothing true could be said any more.
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Settled);
        }
        let client = &self.context.client;
        let behind = self.pending.wait(key, &self.pods, client).await?;
        let all = self.pods.list_ns(&key.namespace);
        let matches = |pod: &Pod| selector.matches(labels(&pod.metadata));
        let pods = claim_all(client, &*set, all, matches, |_| true).await?;
        let history = match self.settle(&set, &selector, &pods).await {
            Ok(history) => history,
            // Nothing may be created in a namespace that ends; its content is on its way out.
            Err(Failure::Api(error)) if has_cause(&error, "NamespaceTerminating") => {
                return Ok(Outcome::Settled);
            }
            Err(failure) => return Err(failure),
        };
        let hash = hash_of(&history.update);
        let template = template_pod(&set).unwrap_or_default();
        let nodes = self.nodes.list();
        let places = nodes.iter().map(|n| (name(&n.metadata).to_owned(), place(&template, n))).collect();
        let now = self.context.clock.now();
        let view = View { set: &set, places: &places, pods: &pods, hash: &hash, now };
        let mut paused = None;
        let mut done = Ok(());
        if behind.is_none() {
            let mut plan = plan::plan(&view);
            paused = self.ended(&set, &mut plan);
            done = self.execute(key, &set, &plan, &hash).await;
        }
        let counted = set.status.as_ref().and_then(|s| s.collision_count);
        let collisions = if history.collisions > 0 { Some(history.collisions) } else { counted };
        let (status, available_in) = plan::status(&view, behind.is_none(), collisions);
        if set.status.as_ref() != Some(&status) {
            let mut next = (*set).clone();
            next.status = Some(status);
            client.update_status(&key.namespace, &next).await?;
        }
        done?;
        if behind.is_none() {
            let update = name(&history.update.metadata);
            let old: Vec<_> =
                history.revisions.iter().filter(|r| name(&r.metadata) != update).cloned().collect();
            let in_use = |r: &ControllerRevision| {
                let hash = hash_of(r);
                pods.iter().any(|p| labels(&p.metadata).get(REVISION_HASH) == Some(&hash))
            };
            let used = i32::try_from(old.iter().filter(|r| in_use(r)).count()).unwrap_or(i32::MAX);
            let limit = set.spec.as_ref().and_then(|s| s.revision_history_limit);
            // Revisions that pods run count towards the limit, though they are never deleted.
            let limit = limit.map(|l| l.saturating_sub(used).max(0));
            revisions::truncate(&self.context, &old, in_use, limit).await?;
        }
        let wait = [behind, paused, available_in].into_iter().flatten().min();
        Ok(wait.map(|w| w.max(Duration::from_millis(1))).into())
    }
}

/// The hash that pods of the revision are labelled with.
fn hash_of(revision: &ControllerRevision) -> String {
    labels(&revision.metadata).get(REVISION_HASH).cloned().unwrap_or_default()
}

/// What the set's pods are like, for the choice of nodes.
fn template_pod(set: &DaemonSet) -> Option<PodSpec> {
    let mut pod = set.spec.as_ref()?.template.spec.clone()?;
    tolerate(&mut pod);
    Some(pod)
}

/// A pod from the set's template, for one node.
fn new_pod(set: &DaemonSet, node: &str, hash: &str) -> Option<Pod> {
    let meta = set.spec.as_ref()?.template.metadata.clone().unwrap_or_default();
    let mut spec = template_pod(set)?;
    tie(&mut spec, node);
    let mut labels: BTreeMap<String, String> = meta.labels.unwrap_or_default();
    labels.insert(REVISION_HASH.to_owned(), hash.to_owned());
    if let Some(generation) = template_generation(set) {
        labels.insert(POD_TEMPLATE_GENERATION.to_owned(), generation);
    }
    Some(Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", name(&set.metadata))),
            namespace: set.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![controller_ref("apps/v1", "DaemonSet", &set.metadata)]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    })
}

fn selector(set: &DaemonSet) -> Result<LabelSelector, Failure> {
    LabelSelector::from_typed(set.spec.as_ref().map(|s| &s.selector))
        .map_err(|e| Failure::Invalid(e.to_string()))
}
