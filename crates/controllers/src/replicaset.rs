//! Replica sets: as many pods of one template as asked for, no more and no fewer.
//!
//! Pods get generated names, so a pass never counts before the cache shows every pod that earlier passes made or
//! deleted (`pending`). Creation starts with one pod and doubles while it goes well, so that a namespace that refuses
//! (quota) sees one refused request and not hundreds.
mod plan;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::selector::LabelSelector;
use client::events::{EventType, reference};
use client::{Cache, Change, DeleteOptions, Patch};
use futures_util::future::join_all;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::ownership::{
    Claim, adoption_patch, claim, controller_of, controller_ref, is_controlled_by, labels, name, namespace,
    release_patch, uid,
};
use crate::pending::Pending;
use crate::pods;
use crate::runner::{Context, Failure, ObjectKey, Outcome, Reconcile, Runner, has_cause};

/// At most so many creates or deletes in one pass, as upstream.
const BURST: usize = 500;

struct Controller {
    context: Context,
    sets: Cache<ReplicaSet>,
    pods: Cache<Pod>,
    pending: Pending<ObjectKey>,
}

pub(crate) async fn run(context: Context) {
    let caches = context.reader.caches();
    let (sets, pods) = (caches.of::<ReplicaSet>(), caches.of::<Pod>());
    let controller = Controller {
        context: context.clone(),
        sets: sets.clone(),
        pods: pods.clone(),
        pending: Pending::new(),
    };
    Runner::new(&context, controller)
        .on(&sets, |_, change| [ObjectKey::of(&change.object().metadata)])
        .on(&pods, Controller::sets_of_pod)
        .run(5)
        .await;
}

/// How the pass's writes of pods ended.
struct Managed {
    /// The first error, for the ReplicaFailure condition.
    error: Option<client::Error>,
    /// Whether it was creating (or deleting).
    creating: bool,
}

impl Controller {
    /// The set that controls the pod, or for an orphan all that select it.
    fn sets_of_pod(&self, change: &Change<Pod>) -> Vec<ObjectKey> {
        let mut keys = Vec::new();
        let mut add = |pod: &Pod, orphans: bool| {
            let ns = namespace(&pod.metadata);
            match controller_of(&pod.metadata) {
                Some(owner) if owner.kind == "ReplicaSet" => keys.push(ObjectKey::new(ns, &owner.name)),
                Some(_) => {}
                None if orphans => keys.extend(
                    self.sets
                        .list_ns(ns)
                        .iter()
                        .filter(|s| selector(s).is_ok_and(|sel| sel.matches(labels(&pod.metadata))))
                        .map(|s| ObjectKey::of(&s.metadata)),
                ),
                None => {}
            }
        };
        match change {
            Change::Added(pod) => add(pod, true),
            Change::Deleted(pod) => add(pod, false),
            Change::Modified { old, new } => {
                let owner_changed = controller_of(&old.metadata) != controller_of(&new.metadata);
                if owner_changed {
                    add(old, false);
                }
                add(new, owner_changed || old.metadata.labels != new.metadata.labels);
            }
        }
        keys
    }

    /// The pods of `set`; adopts and releases on the way.
    async fn claim_pods(&self, set: &ReplicaSet, selector: &LabelSelector) -> Result<Vec<Arc<Pod>>, Failure> {
        let (client, ns) = (&self.context.client, namespace(&set.metadata));
        let mut owned = Vec::new();
        let mut verified = false;
        for pod in self.pods.list_ns(ns) {
            let pod_uid = uid(&pod.metadata);
            let decision = claim(&set.metadata, selector, &pod.metadata);
            let patch = match decision {
                Claim::Own => {
                    owned.push(pod);
                    continue;
                }
                Claim::Ignore => continue,
                // A pod that ended needs no controller any more.
                Claim::Adopt if pods::is_terminal(&pod) => continue,
                Claim::Adopt => {
                    if !verified {
                        let live = client.get::<ReplicaSet>(ns, name(&set.metadata)).await?;
                        if uid(&live.metadata) != uid(&set.metadata)
                            || live.metadata.deletion_timestamp.is_some()
                        {
                            return Err(Failure::Invalid("the replica set was deleted meanwhile".into()));
                        }
                        verified = true;
                    }
                    adoption_patch(&controller_ref("apps/v1", "ReplicaSet", &set.metadata), pod_uid)
                }
                Claim::Release => release_patch(uid(&set.metadata), pod_uid),
            };
            match client.patch::<Pod>(ns, name(&pod.metadata), &Patch::Strategic(patch)).await {
                Ok(pod) if decision == Claim::Adopt => owned.push(Arc::new(pod)),
                Ok(_) => {}
                Err(e) if e.is_not_found() || e.is_conflict() || e.is_invalid() => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(owned)
    }

    /// Creates or deletes towards the wanted number.
    async fn manage(&self, key: &ObjectKey, set: &ReplicaSet, active: &[Arc<Pod>]) -> Option<Managed> {
        let wanted = usize::try_from(plan::wanted(set)).unwrap_or(0);
        if active.len() < wanted {
            let error = self.create_pods(key, set, (wanted - active.len()).min(BURST)).await.err();
            return Some(Managed { error, creating: true });
        }
        if active.len() > wanted {
            let excess = (active.len() - wanted).min(BURST);
            let crowd = self.crowd_by_node(set);
            let victims = plan::victims(active, excess, &crowd, self.context.clock.now());
            let error = self.delete_pods(key, set, &victims).await.err();
            return Some(Managed { error, creating: false });
        }
        None
    }

    /// Batches of 1, 2, 4, ... at a time; the first failure ends it.
    async fn create_pods(
        &self,
        key: &ObjectKey,
        set: &ReplicaSet,
        mut left: usize,
    ) -> Result<(), client::Error> {
        let Some(pod) = new_pod(set) else { return Ok(()) };
        let mut batch = 1;
        while left > 0 {
            let size = batch.min(left);
            let results = join_all((0..size).map(|_| self.context.client.create(&key.namespace, &pod))).await;
            let mut first = None;
            for result in results {
                match result {
                    Ok(pod) => {
                        let message = format!("Created pod: {}", name(&pod.metadata));
                        self.pending.created(key, &pod);
                        self.context.recorder.event(
                            &reference(set),
                            EventType::Normal,
                            "SuccessfulCreate",
                            message,
                        );
                    }
                    Err(error) if has_cause(&error, "NamespaceTerminating") => return Ok(()),
                    Err(error) => {
                        let message = format!("Error creating: {error}");
                        self.context.recorder.event(
                            &reference(set),
                            EventType::Warning,
                            "FailedCreate",
                            message,
                        );
                        first.get_or_insert(error);
                    }
                }
            }
            if let Some(error) = first {
                return Err(error);
            }
            left -= size;
            batch *= 2;
        }
        Ok(())
    }

    async fn delete_pods(
        &self,
        key: &ObjectKey,
        set: &ReplicaSet,
        victims: &[Arc<Pod>],
    ) -> Result<(), client::Error> {
        let deletes = victims.iter().map(|pod| async move {
            let options = DeleteOptions { uid: pod.metadata.uid.clone(), ..DeleteOptions::default() };
            (pod, self.context.client.delete::<Pod>(&key.namespace, name(&pod.metadata), &options).await)
        });
        let mut first = None;
        for (pod, result) in join_all(deletes).await {
            match result {
                Ok(()) => {
                    self.pending.deleted(key, &**pod);
                    let message = format!("Deleted pod: {}", name(&pod.metadata));
                    self.context.recorder.event(
                        &reference(set),
                        EventType::Normal,
                        "SuccessfulDelete",
                        message,
                    );
                }
                Err(error) if error.is_not_found() => {}
                Err(error) => {
                    let message = format!("Error deleting: {error}");
                    self.context.recorder.event(&reference(set), EventType::Warning, "FailedDelete", message);
                    first.get_or_insert(error);
                }
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// Active pods per node of all sets of the same owner: where they crowd, pods go first.
    fn crowd_by_node(&self, set: &ReplicaSet) -> HashMap<String, usize> {
        let ns = namespace(&set.metadata);
        let family = controller_of(&set.metadata).map(|o| o.uid.as_str());
        let mut crowd = HashMap::new();
        for pod in self.pods.list_ns(ns).iter().filter(|p| pods::is_active(p)) {
            let Some(owner) = controller_of(&pod.metadata).filter(|o| o.kind == "ReplicaSet") else {
                continue;
            };
            let related = owner.uid == uid(&set.metadata)
                || family.is_some()
                    && self
                        .sets
                        .get(ns, &owner.name)
                        .is_some_and(|s| controller_of(&s.metadata).map(|o| o.uid.as_str()) == family);
            if related {
                *crowd.entry(pods::node_name(pod).to_owned()).or_default() += 1;
            }
        }
        crowd
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
        let behind = self.pending.wait(key, &self.pods, &self.context.client).await?;
        let owned = if set.metadata.deletion_timestamp.is_some() {
            let all = self.pods.list_ns(&key.namespace);
            all.into_iter().filter(|p| is_controlled_by(&p.metadata, uid(&set.metadata))).collect()
        } else {
            self.claim_pods(&set, &selector).await?
        };
        let (active, rest): (Vec<_>, Vec<_>) = owned.into_iter().partition(|p| pods::is_active(p));
        let terminating = rest.iter().filter(|p| pods::is_terminating(p)).count();
        let managed = if behind.is_none() && set.metadata.deletion_timestamp.is_none() {
            self.manage(key, &set, &active).await
        } else {
            None
        };
        let now = self.context.clock.now();
        let failure = managed.as_ref().and_then(|m| {
            let reason = if m.creating { "FailedCreate" } else { "FailedDelete" };
            m.error.as_ref().map(|e| (reason, e.to_string()))
        });
        // While our writes are not shown, the condition of an earlier failure stays as it is.
        let failure = if behind.is_some() { plan::Failed::Unknown } else { plan::Failed::from(failure) };
        let (status, available_in) = plan::status(&set, &active, terminating, failure, now);
        if set.status.as_ref() != Some(&status) {
            let mut next = (*set).clone();
            next.status = Some(status);
            self.context.client.update_status(&key.namespace, &next).await?;
        }
        if let Some(Managed { error: Some(error), .. }) = managed {
            return Err(error.into());
        }
        let wait = [behind, available_in].into_iter().flatten().min();
        Ok(wait.map(|w| w.max(Duration::from_millis(1))).into())
    }
}

fn selector(set: &ReplicaSet) -> Result<LabelSelector, Failure> {
    LabelSelector::from_typed(set.spec.as_ref().map(|s| &s.selector))
        .map_err(|e| Failure::Invalid(e.to_string()))
}

/// A pod from the set's template.
fn new_pod(set: &ReplicaSet) -> Option<Pod> {
    let template = set.spec.as_ref()?.template.as_ref()?;
    let meta = template.metadata.clone().unwrap_or_default();
    Some(Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", name(&set.metadata))),
            namespace: set.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![controller_ref("apps/v1", "ReplicaSet", &set.metadata)]),
            ..Default::default()
        },
        spec: template.spec.clone(),
        status: None,
    })
}
