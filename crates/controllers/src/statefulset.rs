//! Stateful sets: pods that keep their name, their place in the order and their storage, made and taken away in that order.
//!
//! Planning is in `plan`; this file looks, writes and records events. Names of pods and claims are functions of the set, so a
//! pass that is repeated makes nothing twice. Templates are kept as ControllerRevisions, for pods below a partition and for rollback.
//! Source: <https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/>.
mod identity;
mod plan;
mod retention;
#[cfg(test)]
mod simulation;

use std::collections::HashSet;
use std::sync::Arc;

use api::selector::LabelSelector;
use client::events::{EventType, reference};
use client::{Cache, Change, DeleteOptions};
use futures_util::future::join_all;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};

use self::identity::{claim_names, is_member, parent_and_ordinal};
use self::plan::{Action, Plan, Revision, Step, View, revision_of};
use crate::claims::claim_all;
use crate::ownership::{controller_of, is_controlled_by, labels, name, namespace, uid};
use crate::pending::Pending;
use crate::revisions::{self, History, Wanted, template_of};
use crate::runner::{Context, Failure, ObjectKey, Outcome, Reconcile, Runner, has_cause};

/// Label of a revision that holds the hash of its content.
const REVISION_LABEL: &str = "controller.kubernetes.io/hash";

/// At most so many writes of a parallel set are under way.
const BURST: usize = 500;

struct Controller {
    context: Context,
    sets: Cache<StatefulSet>,
    pods: Cache<Pod>,
    claims: Cache<PersistentVolumeClaim>,
    revisions: Cache<ControllerRevision>,
    pending: Pending<ObjectKey>,
}

pub(crate) async fn run(context: Context) {
    let caches = context.reader.caches();
    let controller = Controller {
        sets: caches.of(),
        pods: caches.of(),
        claims: caches.of(),
        revisions: caches.of(),
        pending: Pending::new(),
        context: context.clone(),
    };
    let (sets, pods) = (controller.sets.clone(), controller.pods.clone());
    let (claims, revisions) = (controller.claims.clone(), controller.revisions.clone());
    Runner::new(&context, controller)
        .on(&sets, |_, change| [ObjectKey::of(&change.object().metadata)])
        .on(&pods, Controller::sets_of_pod)
        .on(&claims, Controller::sets_of_gone_claim)
        .on(&revisions, Controller::sets_of_revision)
        .run(5)
        .await;
}

impl Controller {
    /// The set that controls the pod, or for an orphan those that select it and whose name it carries.
    fn sets_of_pod(&self, change: &Change<Pod>) -> Vec<ObjectKey> {
        let mut keys = Vec::new();
        let mut add = |pod: &Pod| {
            let ns = namespace(&pod.metadata);
            match controller_of(&pod.metadata) {
                Some(owner) if owner.kind == "StatefulSet" => keys.push(ObjectKey::new(ns, &owner.name)),
                Some(_) => {}
                None => {
                    let Some((parent, _)) = parent_and_ordinal(name(&pod.metadata)) else { return };
                    let set = self.sets.get(ns, parent);
                    let selects =
                        |s: &StatefulSet| selector(s).is_ok_and(|s| s.matches(labels(&pod.metadata)));
                    keys.extend(set.filter(|s| selects(s)).map(|s| ObjectKey::of(&s.metadata)));
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

    /// A pod may wait for the end of the claim that its own will replace.
    fn sets_of_gone_claim(&self, change: &Change<PersistentVolumeClaim>) -> Vec<ObjectKey> {
        let Change::Deleted(claim) = change else { return Vec::new() };
        let claim_name = name(&claim.metadata);
        let Some((_, ordinal)) = parent_and_ordinal(claim_name) else { return Vec::new() };
        let mut sets = self.sets.list_ns(namespace(&claim.metadata));
        sets.retain(|s| claim_names(s, ordinal.into()).iter().any(|n| n == claim_name));
        sets.iter().map(|s| ObjectKey::of(&s.metadata)).collect()
    }

    /// A revision that is taken away, or that lost its owner, is missed by its set.
    fn sets_of_revision(&self, change: &Change<ControllerRevision>) -> Option<ObjectKey> {
        let meta = match change {
            Change::Deleted(revision) => &revision.metadata,
            Change::Modified { old, new } if controller_of(&old.metadata) != controller_of(&new.metadata) => {
                &old.metadata
            }
            _ => return None,
        };
        let owner = controller_of(meta).filter(|o| o.kind == "StatefulSet")?;
        Some(ObjectKey::new(namespace(meta), &owner.name))
    }

    fn plan(&self, set: &StatefulSet, pods: &[Arc<Pod>], history: &History) -> Result<Plan, Failure> {
        let current_name = set.status.as_ref().and_then(|s| s.current_revision.as_deref());
        let known = history.revisions.iter().find(|r| Some(name(&r.metadata)) == current_name);
        let current = known.unwrap_or(&history.update);
        let unreadable = || Failure::Invalid("a revision holds no template".into());
        let current_template = template_of(current).ok_or_else(unreadable)?;
        let template = set.spec.as_ref().map(|s| &s.template).ok_or_else(unreadable)?;
        let ns = namespace(&set.metadata);
        let mut owned_claims = self.claims.list_ns(ns);
        owned_claims.retain(|c| is_controlled_by(&c.metadata, uid(&set.metadata)));
        Ok(plan::plan(&View {
            set,
            pods,
            current: Revision { name: name(&current.metadata), template: &current_template },
            update: Revision { name: name(&history.update.metadata), template },
            collisions: history.collisions,
            claim: &|claim| self.claims.get(ns, claim),
            owned_claims: &owned_claims,
            now: self.context.clock.now(),
        }))
    }

    /// The groups of steps one after the other; within a group batches of 1, 2, 4, ... steps.
    async fn execute(
        &self,
        key: &ObjectKey,
        set: &StatefulSet,
        groups: Vec<Vec<Step>>,
    ) -> Result<(), Failure> {
        for group in groups {
            let mut batch = 1;
            let mut left = group.as_slice();
            while !left.is_empty() {
                let (now, rest) = left.split_at(batch.min(left.len()));
                let results = join_all(now.iter().map(|step| self.take(key, set, step))).await;
                results.into_iter().collect::<Result<(), _>>()?;
                left = rest;
                batch = (batch * 2).min(BURST);
            }
        }
        Ok(())
    }

    async fn take(&self, key: &ObjectKey, set: &StatefulSet, step: &Step) -> Result<(), Failure> {
        let (client, ns) = (&self.context.client, key.namespace.as_str());
        let creates = step.actions.iter().any(|a| matches!(a, Action::CreatePod(_)));
        let verb = if creates { "create" } else { "update" };
        for action in &step.actions {
            match action {
                Action::CreateClaim(claim) => {
                    let result = client.create(ns, &**claim).await;
                    if result.as_ref().is_err_and(client::Error::is_already_exists) {
                        continue;
                    }
                    self.claim_event(set, &step.pod, name(&claim.metadata), result.as_ref().err());
                    if let Err(error) = result {
                        let why = format!("failed to create PVC {}: {error}", name(&claim.metadata));
                        self.pod_event(set, "create", &step.pod, Some(&why));
                        return Err(error.into());
                    }
                }
                Action::UpdateClaim(claim) => {
                    if let Err(error) = client.update(ns, &**claim).await {
                        let claim = name(&claim.metadata);
                        let why =
                            format!("could not update claim {claim} for delete policy ownerRefs: {error}");
                        self.pod_event(set, "update", &step.pod, Some(&why));
                        return Err(error.into());
                    }
                }
                Action::DeleteClaim(claim) => {
                    let options = DeleteOptions {
                        uid: claim.metadata.uid.clone(),
                        resource_version: claim.metadata.resource_version.clone(),
                        ..DeleteOptions::default()
                    };
                    match client.delete::<PersistentVolumeClaim>(ns, name(&claim.metadata), &options).await {
                        Ok(()) => {}
                        Err(error) if error.is_not_found() => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Action::AwaitClaim(claim) => {
                    let why = format!("pvc {claim} is being deleted");
                    self.pod_event(set, verb, &step.pod, Some(&why));
                    return Err(Failure::Invalid(why));
                }
                Action::CreatePod(pod) => match client.create(ns, &**pod).await {
                    Ok(made) => {
                        self.pending.created(key, &made);
                        self.pod_event(set, "create", &step.pod, None);
                    }
                    Err(error) => {
                        // Taken by our own earlier write, or by a pod of somebody else: no news for the user.
                        if !error.is_already_exists() && !has_cause(&error, "NamespaceTerminating") {
                            self.pod_event(set, "create", &step.pod, Some(&error.to_string()));
                        }
                        return Err(error.into());
                    }
                },
                Action::UpdatePod(pod) => {
                    let result = client.update(ns, &**pod).await;
                    // One that somebody else was faster with is made again, which is no news for the user.
                    if !result.as_ref().is_err_and(client::Error::is_conflict) {
                        let why = result.as_ref().err().map(ToString::to_string);
                        self.pod_event(set, "update", &step.pod, why.as_deref());
                    }
                    result?;
                }
                Action::DeletePod(pod) => {
                    let options = DeleteOptions { uid: pod.metadata.uid.clone(), ..DeleteOptions::default() };
                    match client.delete::<Pod>(ns, &step.pod, &options).await {
                        Ok(()) => {
                            self.pending.deleted(key, &**pod);
                            self.pod_event(set, "delete", &step.pod, None);
                        }
                        Err(error) if error.is_not_found() => {}
                        Err(error) => {
                            self.pod_event(set, "delete", &step.pod, Some(&error.to_string()));
                            return Err(error.into());
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn pod_event(&self, set: &StatefulSet, verb: &str, pod: &str, failure: Option<&str>) {
        let subject = format!("{verb} Pod {pod} in StatefulSet {}", name(&set.metadata));
        let (kind, reason, message) = match failure {
            None => (EventType::Normal, "Successful", format!("{subject} successful")),
            Some(why) => (EventType::Warning, "Failed", format!("{subject} failed error: {why}")),
        };
        self.event(set, kind, &format!("{reason}{}", capitalized(verb)), message);
    }

    fn claim_event(&self, set: &StatefulSet, pod: &str, claim: &str, failure: Option<&client::Error>) {
        let set_name = name(&set.metadata);
        match failure {
            None => {
                let message = format!("create Claim {claim} Pod {pod} in StatefulSet {set_name} success");
                self.event(set, EventType::Normal, "SuccessfulCreate", message);
            }
            Some(error) => {
                let message = format!(
                    "create Claim {claim} for Pod {pod} in StatefulSet {set_name} failed error: {error}"
                );
                self.event(set, EventType::Warning, "FailedCreate", message);
            }
        }
    }

    fn event(&self, set: &StatefulSet, kind: EventType, reason: &str, message: String) {
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
        if let Some(wait) = self.pending.wait(key, &self.pods, &self.context.client).await? {
            return Ok(Outcome::After(wait));
        }
        let (client, selector) = (&self.context.client, selector(&set)?);
        let revisions = revisions::claim(&self.context, &self.revisions, &*set, &selector).await?;
        let all = self.pods.list_ns(&key.namespace);
        let matches = |pod: &Pod| selector.matches(labels(&pod.metadata)) && is_member(&set, &pod.metadata);
        let pods = claim_all(client, &*set, all, matches, |_| true).await?;
        let history = match self.settle(&set, revisions).await {
            Ok(Some(history)) => history,
            Ok(None) => return Ok(Outcome::Settled),
            // Nothing may be created in a namespace that ends; its content is on its way out.
            Err(Failure::Api(error)) if has_cause(&error, "NamespaceTerminating") => {
                return Ok(Outcome::Settled);
            }
            Err(failure) => return Err(failure),
        };
        let Plan { groups, status, wait, mut conflicts } = self.plan(&set, &pods, &history)?;
        conflicts.dedup();
        for claim in conflicts {
            let message = format!(
                "PersistentVolumeClaim {claim} has a conflicting OwnerReference that acts as a manging controller, the retention policy is ignored for this claim"
            );
            self.event(&set, EventType::Warning, "ConflictingController", message);
        }
        let done = self.execute(key, &set, groups).await;
        if set.status.as_ref() != Some(&status) {
            let mut next = (*set).clone();
            next.status = Some(status.clone());
            client.update_status(&key.namespace, &next).await?;
        }
        match done {
            Err(Failure::Api(error)) if has_cause(&error, "NamespaceTerminating") => {
                return Ok(Outcome::Settled);
            }
            done => done?,
        }
        if set.metadata.deletion_timestamp.is_none() {
            let mut live: HashSet<&str> = pods.iter().filter_map(|p| revision_of(p)).collect();
            live.extend(status.current_revision.as_deref());
            live.extend(set.status.as_ref().and_then(|s| s.current_revision.as_deref()));
            live.insert(name(&history.update.metadata));
            let limit = set.spec.as_ref().and_then(|s| s.revision_history_limit);
            revisions::truncate(
                &self.context,
                &history.revisions,
                |r| live.contains(name(&r.metadata)),
                limit,
            )
            .await?;
        }
        Ok(wait.into())
    }
}

impl Controller {
    async fn settle(
        &self,
        set: &StatefulSet,
        revisions: Vec<Arc<ControllerRevision>>,
    ) -> Result<Option<History>, Failure> {
        let Some(spec) = set.spec.as_ref() else { return Err(Failure::Invalid("no spec".into())) };
        let collisions = set.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
        if set.metadata.deletion_timestamp.is_some() {
            // Nothing is made for a set that is on its way out: what it owns is being deleted.
            let update = revisions::find(&revisions, &spec.template);
            return Ok(update.map(|update| History { revisions, update, collisions }));
        }
        let wanted = Wanted { template: &spec.template, hash_label: REVISION_LABEL, collisions };
        revisions::settle(&self.context, set, revisions, &wanted).await.map(Some)
    }
}

fn capitalized(verb: &str) -> String {
    let mut letters = verb.chars();
    letters.next().map(|first| first.to_ascii_uppercase().to_string() + letters.as_str()).unwrap_or_default()
}

fn selector(set: &StatefulSet) -> Result<LabelSelector, Failure> {
    LabelSelector::from_typed(set.spec.as_ref().map(|s| &s.selector))
        .map_err(|e| Failure::Invalid(e.to_string()))
}
