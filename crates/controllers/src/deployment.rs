//! Deployments: moves pods from one template to the next by scaling one replica set up and the others down, within
//! the bounds of the strategy; keeps revisions for rollback and says in conditions how far it is.
//!
//! Rules: <https://kubernetes.io/docs/concepts/workloads/controllers/deployment/>. Planning is in `plan`; this file
//! looks, writes and records events.
mod bounds;
mod conditions;
mod plan;
mod revisions;
mod rollback;
mod scale;
#[cfg(test)]
mod simulation;
mod status;

use std::collections::HashSet;

use api::selector::LabelSelector;
use client::events::{EventType, reference};
use client::{Cache, Change, DeleteOptions};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;

use self::conditions::{FAILED_CREATE, PROGRESSING};
use self::plan::{Action, replicas};
use self::rollback::{Rollback, Said};
use crate::claims::claim_all;
use crate::ownership::{controller_of, labels, name, namespace, uid};
use crate::pods;
use crate::runner::{Context, Failure, ObjectKey, Outcome, Reconcile, Runner};
use crate::template::same_template;

struct Controller {
    context: Context,
    deployments: Cache<Deployment>,
    sets: Cache<ReplicaSet>,
    pods: Cache<Pod>,
}

pub(crate) async fn run(context: Context) {
    let caches = context.reader.caches();
    let (deployments, sets, pods) =
        (caches.of::<Deployment>(), caches.of::<ReplicaSet>(), caches.of::<Pod>());
    let controller = Controller {
        deployments: deployments.clone(),
        sets: sets.clone(),
        pods: pods.clone(),
        context: context.clone(),
    };
    Runner::new(&context, controller)
        .on(&deployments, |_, change| [ObjectKey::of(&change.object().metadata)])
        .on(&sets, Controller::deployments_of_set)
        .on(&pods, Controller::deployment_of_gone_pod)
        .run(5)
        .await;
}

impl Controller {
    /// The deployment that controls the set, or for an orphan all that select it.
    fn deployments_of_set(&self, change: &Change<ReplicaSet>) -> Vec<ObjectKey> {
        let mut keys = Vec::new();
        let mut add = |set: &ReplicaSet| match controller_of(&set.metadata) {
            Some(owner) if owner.kind == "Deployment" => {
                keys.push(ObjectKey::new(namespace(&set.metadata), &owner.name));
            }
            Some(_) => {}
            None => keys.extend(
                self.deployments
                    .list_ns(namespace(&set.metadata))
                    .iter()
                    .filter(|d| selector(d).is_ok_and(|s| s.matches(labels(&set.metadata))))
                    .map(|d| ObjectKey::of(&d.metadata)),
            ),
        };
        if let Change::Modified { old, new } = change
            && controller_of(&old.metadata) != controller_of(&new.metadata)
        {
            add(old);
        }
        add(change.object());
        keys
    }

    /// Recreate waits for the last pod to go; only that strategy needs pods' ends.
    fn deployment_of_gone_pod(&self, change: &Change<Pod>) -> Option<ObjectKey> {
        let pod = match change {
            Change::Deleted(pod) => pod,
            Change::Modified { new, .. } if pods::is_terminal(new) => new,
            _ => return None,
        };
        let ns = namespace(&pod.metadata);
        let set =
            self.sets.get(ns, &controller_of(&pod.metadata).filter(|o| o.kind == "ReplicaSet")?.name)?;
        let owner = controller_of(&set.metadata).filter(|o| o.kind == "Deployment")?;
        let deployment = self.deployments.get(ns, &owner.name)?;
        (!bounds::is_rolling(&deployment)).then(|| ObjectKey::of(&deployment.metadata))
    }

    async fn execute(&self, d: &Deployment, action: Action) -> Result<(), Failure> {
        let (client, ns) = (&self.context.client, namespace(&d.metadata));
        match action {
            Action::Create(set) => match client.create(ns, &*set).await {
                Ok(set) => {
                    let size = replicas(&set);
                    if size > 0 {
                        self.scaled(d, &set, 0, size);
                    }
                }
                Err(error) if error.is_already_exists() => return self.resolve_collision(d, &set).await,
                // Nothing may be created in a namespace that ends; its content is on its way out.
                Err(error) if is_terminating_namespace(&error) => {}
                Err(error) => {
                    let message =
                        format!("Failed to create new replica set \"{}\": {error}", name(&set.metadata));
                    self.cannot_create(d, &message).await;
                    self.event(d, EventType::Warning, FAILED_CREATE, message);
                    return Err(error.into());
                }
            },
            Action::Update { replica_set, scaled } => {
                client.update(ns, &*replica_set).await?;
                if let Some((from, to)) = scaled {
                    self.scaled(d, &replica_set, from, to);
                }
            }
            Action::Delete { name, uid } => {
                let options = DeleteOptions { uid: Some(uid), ..DeleteOptions::default() };
                match client.delete::<ReplicaSet>(ns, &name, &options).await {
                    Ok(()) => {}
                    Err(error) if error.is_not_found() => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Says in the Progressing condition why there is no new replica set; what went wrong before weighs more than a failure here.
    async fn cannot_create(&self, d: &Deployment, why: &str) {
        if !status::has_deadline(d) {
            return;
        }
        let mut next = d.clone();
        let list = next.status.get_or_insert_default().conditions.get_or_insert_default();
        let now = self.context.clock.now();
        conditions::set(
            list,
            conditions::condition(PROGRESSING, "False", FAILED_CREATE, why.to_owned(), now),
        );
        if next.status != d.status {
            let _ = self.context.client.update_status(namespace(&d.metadata), &next).await;
        }
    }

    async fn roll_back(&self, d: &Deployment, rollback: Rollback) -> Result<(), Failure> {
        let Rollback { deployment, said } = rollback;
        if let Said::Refused(reason, message) = &said {
            self.event(d, EventType::Warning, reason, message.as_str());
        }
        self.context.client.update(namespace(&d.metadata), &*deployment).await?;
        if let Said::Done(message) = said {
            self.event(d, EventType::Normal, "DeploymentRollback", message);
        }
        Ok(())
    }

    /// The name is taken: by our own earlier create (the cache is behind), or by another template with the same hash.
    async fn resolve_collision(&self, d: &Deployment, wanted: &ReplicaSet) -> Result<(), Failure> {
        let (client, ns) = (&self.context.client, namespace(&d.metadata));
        let there = client.get::<ReplicaSet>(ns, name(&wanted.metadata)).await?;
        let ours = controller_of(&there.metadata).is_some_and(|o| o.uid == uid(&d.metadata));
        let templates = (
            there.spec.as_ref().and_then(|s| s.template.as_ref()),
            wanted.spec.as_ref().and_then(|s| s.template.as_ref()),
        );
        if ours && matches!(templates, (Some(a), Some(b)) if same_template(a, b)) {
            return Err(Failure::Invalid("the cache does not show the new replica set yet".into()));
        }
        let mut next = d.clone();
        let status = next.status.get_or_insert_default();
        status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        client.update_status(ns, &next).await?;
        Err(Failure::Invalid("hash collision; trying the next name".into()))
    }

    fn scaled(&self, d: &Deployment, set: &ReplicaSet, from: i32, to: i32) {
        let direction = if to > from { "up" } else { "down" };
        let message = format!("Scaled {direction} replica set {} from {from} to {to}", name(&set.metadata));
        self.event(d, EventType::Normal, "ScalingReplicaSet", message);
    }

    fn event(&self, d: &Deployment, kind: EventType, reason: &str, message: impl Into<String>) {
        self.context.recorder.event(&reference(d), kind, reason, message);
    }
}

impl Reconcile for Controller {
    type Key = ObjectKey;

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, Failure> {
        let Some(d) = self.deployments.get(&key.namespace, &key.name) else { return Ok(Outcome::Settled) };
        let matching = selector(&d)?;
        if matching.is_everything() {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            self.event(&d, EventType::Warning, "SelectingAll", message);
            return Ok(Outcome::Settled);
        }
        let sets = self.sets.list_ns(&key.namespace);
        let matches = |set: &ReplicaSet| matching.matches(labels(&set.metadata));
        let owned = claim_all(&self.context.client, &*d, sets, matches, |_| true).await?;
        let mut with_live_pods = HashSet::new();
        if !bounds::is_rolling(&d) {
            let live = self.pods.list_ns(&key.namespace);
            let owners =
                live.iter().filter(|p| !pods::is_terminal(p)).filter_map(|p| controller_of(&p.metadata));
            with_live_pods.extend(owners.map(|o| o.uid.clone()));
        }
        let plan = plan::plan(&d, &owned, &with_live_pods, self.context.clock.now());
        for action in plan.actions {
            self.execute(&d, action).await?;
        }
        if let Some(rollback) = plan.rollback {
            self.roll_back(&d, rollback).await?;
        }
        if let Some(wanted) = plan.status {
            self.context.client.update_status(&key.namespace, &*wanted).await?;
        }
        Ok(plan.requeue.into())
    }
}

fn selector(d: &Deployment) -> Result<LabelSelector, Failure> {
    LabelSelector::from_typed(d.spec.as_ref().map(|s| &s.selector))
        .map_err(|e| Failure::Invalid(e.to_string()))
}

/// Whether a create was refused because the namespace is ending.
fn is_terminating_namespace(error: &client::Error) -> bool {
    crate::runner::has_cause(error, "NamespaceTerminating")
}
