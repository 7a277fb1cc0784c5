//! Replica sets and replication controllers: as many pods of one template as asked for, no more and no fewer.
//!
//! Pods get generated names, so a pass never counts before the cache shows every pod that earlier passes made or
//! deleted (`pending`). Both kinds have a controller of their own that runs this loop (`form`).
mod form;
mod plan;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::selector::LabelSelector;
use client::events::reference;
use client::{Cache, Change};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub(crate) use self::form::Replicated;
use crate::claims::claim_all;
use crate::ownership::{controller_of, controller_ref, labels, name, namespace, uid};
use crate::pending::Pending;
use crate::pod_control::PodControl;
use crate::pods;
use crate::runner::{Context, Failure, ObjectKey, Outcome, Reconcile, Runner};

/// At most so many creates or deletes in one pass, as upstream.
const BURST: usize = 500;

struct Controller<K> {
    context: Context,
    sets: Cache<K>,
    pods: Cache<Pod>,
    pending: Pending<ObjectKey>,
}

/// Runs the controller of one of the two kinds.
pub(crate) async fn run<K: Replicated>(context: Context) {
    let caches = context.reader.caches();
    let (sets, pods) = (caches.of::<K>(), caches.of::<Pod>());
    let controller = Controller {
        context: context.clone(),
        sets: sets.clone(),
        pods: pods.clone(),
        pending: Pending::new(),
    };
    Runner::new(&context, controller)
        .on(&sets, |_, change| [ObjectKey::of(change.object().metadata())])
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

impl<K: Replicated> Controller<K> {
    /// The set that controls the pod, or for an orphan all that select it.
    fn sets_of_pod(&self, change: &Change<Pod>) -> Vec<ObjectKey> {
        let mut keys = Vec::new();
        let mut add = |pod: &Pod, orphans: bool| {
            let ns = namespace(&pod.metadata);
            match controller_of(&pod.metadata) {
                Some(owner) if owner.kind == K::KIND => keys.push(ObjectKey::new(ns, &owner.name)),
                Some(_) => {}
                None if orphans => keys.extend(
                    self.sets
                        .list_ns(ns)
                        .into_iter()
                        .map(Replicated::as_set)
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

    /// Creates or deletes towards the wanted number.
    async fn manage(
        &self,
        control: &PodControl<'_>,
        set: &ReplicaSet,
        active: &[Arc<Pod>],
    ) -> Option<Managed> {
        let wanted = usize::try_from(plan::wanted(set)).unwrap_or(0);
        if active.len() < wanted {
            let pod = new_pod::<K>(set)?;
            let error = control.create(vec![&pod; (wanted - active.len()).min(BURST)]).await.err();
            return Some(Managed { error, creating: true });
        }
        if active.len() > wanted {
            let excess = (active.len() - wanted).min(BURST);
            let crowd = self.crowd_by_node(set);
            let victims = plan::victims(active, excess, &crowd, self.context.clock.now());
            let error = control.delete(&victims).await.err();
            return Some(Managed { error, creating: false });
        }
        None
    }

    /// Active pods per node of all sets of the same owner: where they crowd, pods go first.
    fn crowd_by_node(&self, set: &ReplicaSet) -> HashMap<String, usize> {
        let ns = namespace(&set.metadata);
        let family = controller_of(&set.metadata).map(|o| o.uid.as_str());
        let mut crowd = HashMap::new();
        for pod in self.pods.list_ns(ns).iter().filter(|p| pods::is_active(p)) {
            let Some(owner) = controller_of(&pod.metadata).filter(|o| o.kind == K::KIND) else {
                continue;
            };
            let related = owner.uid == uid(&set.metadata)
                || family.is_some()
                    && self
                        .sets
                        .get(ns, &owner.name)
                        .is_some_and(|s| controller_of(s.metadata()).map(|o| o.uid.as_str()) == family);
            if related {
                *crowd.entry(pods::node_name(pod).to_owned()).or_default() += 1;
            }
        }
        crowd
    }
}

impl<K: Replicated> Reconcile for Controller<K> {
    type Key = ObjectKey;

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, Failure> {
        let Some(object) = self.sets.get(&key.namespace, &key.name) else {
            self.pending.forget(key);
            return Ok(Outcome::Settled);
        };
        let set = object.clone().as_set();
        let selector = selector(&set)?;
        let behind = self.pending.wait(key, &self.pods, &self.context.client).await?;
        let pods = self.pods.list_ns(&key.namespace);
        let matches = |pod: &Pod| selector.matches(labels(&pod.metadata));
        // A pod that ended needs no controller any more.
        let adopts = |pod: &Pod| !pods::is_terminal(pod);
        let owned = claim_all(&self.context.client, &*object, pods, matches, adopts).await?;
        let (active, rest): (Vec<_>, Vec<_>) = owned.into_iter().partition(|p| pods::is_active(p));
        let terminating = rest.iter().filter(|p| pods::is_terminating(p)).count();
        let managed = if behind.is_none() && set.metadata.deletion_timestamp.is_none() {
            let owner = reference(&*object);
            let control = PodControl { context: &self.context, pending: &self.pending, key, owner };
            self.manage(&control, &set, &active).await
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
        if let Some(next) = object.with_status(status) {
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
fn new_pod<K: Replicated>(set: &ReplicaSet) -> Option<Pod> {
    let template = set.spec.as_ref()?.template.as_ref()?;
    let meta = template.metadata.clone().unwrap_or_default();
    Some(Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", name(&set.metadata))),
            namespace: set.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![controller_ref(K::API_VERSION, K::KIND, &set.metadata)]),
            ..Default::default()
        },
        spec: template.spec.clone(),
        status: None,
    })
}
