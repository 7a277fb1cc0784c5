//! Pod disruption budgets: how many of the pods that a budget covers may be evicted now. The eviction subresource takes
//! from that number and enters the pod into `disruptedPods`, until the deletion shows.
//!
//! Also takes the condition DisruptionTarget back from pods that were to be disrupted and were not.
mod plan;

use std::collections::HashMap;
use std::sync::Arc;

use api::selector::LabelSelector;
use client::events::{EventType, reference};
use client::{Cache, Change, Patch};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::json;

use crate::ownership::{controller_of, labels, name, namespace, uid};
use crate::runner::{Context, Failure, ObjectKey, Outcome, Reconcile, Runner};
use crate::scales::{ScaleError, Scales, Target};
use crate::selector_text::selector_text;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Budget(ObjectKey),
    /// A pod that says it is to be disrupted.
    Pod(ObjectKey),
}

struct Controller {
    context: Context,
    budgets: Cache<PodDisruptionBudget>,
    pods: Cache<Pod>,
    replica_sets: Cache<ReplicaSet>,
    deployments: Cache<Deployment>,
    stateful_sets: Cache<StatefulSet>,
    replication_controllers: Cache<ReplicationController>,
    scales: Scales,
}

pub(crate) async fn run(context: Context) {
    let caches = context.reader.caches();
    let controller = Controller {
        context: context.clone(),
        budgets: caches.of(),
        pods: caches.of(),
        replica_sets: caches.of(),
        deployments: caches.of(),
        stateful_sets: caches.of(),
        replication_controllers: caches.of(),
        scales: Scales::default(),
    };
    let (budgets, pods) = (controller.budgets.clone(), controller.pods.clone());
    let (sets, deployments) = (controller.replica_sets.clone(), controller.deployments.clone());
    let (stateful, controllers) =
        (controller.stateful_sets.clone(), controller.replication_controllers.clone());
    Runner::new(&context, controller)
        .on(&budgets, |_, change| match change {
            Change::Deleted(_) => None,
            change => Some(Key::Budget(ObjectKey::of(&change.object().metadata))),
        })
        .on(&pods, Controller::keys_of_pod)
        .on(&deployments, |c: &Controller, change| match change {
            Change::Modified { old, new } if scale_of(old) != scale_of(new) => c.keys_of_owner(&new.metadata),
            _ => Vec::new(),
        })
        .on(&stateful, |c: &Controller, change| match change {
            Change::Modified { old, new }
                if old.spec.as_ref().and_then(|s| s.replicas)
                    != new.spec.as_ref().and_then(|s| s.replicas) =>
            {
                c.keys_of_owner(&new.metadata)
            }
            _ => Vec::new(),
        })
        .needs(&sets)
        .needs(&controllers)
        .run(3)
        .await;
}

fn scale_of(d: &Deployment) -> i32 {
    d.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

fn selector(budget: &PodDisruptionBudget) -> Result<LabelSelector, Failure> {
    LabelSelector::from_typed(budget.spec.as_ref().and_then(|s| s.selector.as_ref()))
        .map_err(|e| Failure::Invalid(e.to_string()))
}

/// How many pods a pod's owner asks for.
enum Owner {
    /// By the owner's uid.
    Scale(String, i32),
    /// The pod has no controller.
    None,
    /// Nobody can tell.
    Unknown,
}

impl Controller {
    fn keys_of_pod(&self, change: &Change<Pod>) -> Vec<Key> {
        let pod = change.object();
        let ns = namespace(&pod.metadata);
        let covers = |budget: &PodDisruptionBudget| {
            selector(budget).is_ok_and(|s| {
                let before = match change {
                    Change::Modified { old, .. } => s.matches(labels(&old.metadata)),
                    _ => false,
                };
                before || s.matches(labels(&pod.metadata))
            })
        };
        let budgets = self.budgets.list_ns(ns).into_iter().filter(|b| covers(b));
        let mut keys: Vec<_> = budgets.map(|b| Key::Budget(ObjectKey::of(&b.metadata))).collect();
        let now = self.context.clock.now();
        if !matches!(change, Change::Deleted(_)) && plan::until_stale(pod, now).is_some() {
            keys.push(Key::Pod(ObjectKey::of(&pod.metadata)));
        }
        keys
    }

    /// The budgets of the owner's namespace that ask owners for their scale.
    fn keys_of_owner(&self, owner: &ObjectMeta) -> Vec<Key> {
        let mut budgets = self.budgets.list_ns(namespace(owner));
        budgets.retain(|b| plan::asks_owners(b));
        budgets.iter().map(|b| Key::Budget(ObjectKey::of(&b.metadata))).collect()
    }

    async fn owner_scale(&self, pod: &Pod) -> Result<Owner, Failure> {
        let ns = namespace(&pod.metadata);
        let Some(owner) = controller_of(&pod.metadata) else { return Ok(Owner::None) };
        let of = |meta: &ObjectMeta, replicas: Option<i32>| {
            Owner::Scale(uid(meta).to_owned(), replicas.unwrap_or(1))
        };
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let found = match (group, owner.kind.as_str()) {
            ("apps", "ReplicaSet") => {
                let Some(set) =
                    self.replica_sets.get(ns, &owner.name).filter(|s| uid(&s.metadata) == owner.uid)
                else {
                    return Ok(Owner::Unknown);
                };
                return Ok(match controller_of(&set.metadata).filter(|o| o.kind == "Deployment") {
                    Some(above) => match self.deployments.get(ns, &above.name) {
                        Some(d) if uid(&d.metadata) == above.uid => of(&d.metadata, Some(scale_of(&d))),
                        _ => Owner::Unknown,
                    },
                    None => of(&set.metadata, set.spec.as_ref().and_then(|s| s.replicas)),
                });
            }
            ("apps", "StatefulSet") => {
                let set = self.stateful_sets.get(ns, &owner.name);
                set.map(|s| (s.metadata.clone(), s.spec.as_ref().and_then(|s| s.replicas)))
            }
            ("", "ReplicationController") => {
                let controller = self.replication_controllers.get(ns, &owner.name);
                controller.map(|c| (c.metadata.clone(), c.spec.as_ref().and_then(|s| s.replicas)))
            }
            _ => return self.asked_scale(ns, owner).await,
        };
        let found = found.filter(|(meta, _)| uid(meta) == owner.uid);
        Ok(found.map_or(Owner::Unknown, |(meta, replicas)| of(&meta, replicas)))
    }

    /// By the scale subresource.
    async fn asked_scale(&self, ns: &str, owner: &OwnerReference) -> Result<Owner, Failure> {
        let target =
            Target { api_version: &owner.api_version, kind: &owner.kind, namespace: ns, name: &owner.name };
        match self.scales.get(&self.context.client, target).await {
            Ok(scale) if uid(&scale.metadata) == owner.uid => {
                let replicas = scale.spec.and_then(|s| s.replicas).unwrap_or(0);
                Ok(Owner::Scale(owner.uid.clone(), replicas))
            }
            Ok(_) => Ok(Owner::Unknown),
            // Either the object is not there, or its kind has no scale.
            Err(ScaleError::Api(error)) if error.is_not_found() => {
                match self.scales.without_scale(&self.context.client, target).await {
                    Ok(None) => Ok(Owner::Unknown),
                    Ok(Some(resource)) => {
                        let why = format!("{resource} does not implement the scale subresource");
                        Err(Failure::Invalid(why))
                    }
                    Err(error) => Err(error.into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    fn event(&self, budget: &PodDisruptionBudget, kind: EventType, reason: &str, message: String) {
        self.context.recorder.event(&reference(budget), kind, reason, message);
    }

    /// The sum of the scales of the pods' owners.
    async fn sum_of_scales(&self, budget: &PodDisruptionBudget, pods: &[Arc<Pod>]) -> Result<i32, Failure> {
        let (mut scales, mut unmanaged) = (HashMap::new(), false);
        for pod in pods {
            let owner = controller_of(&pod.metadata).map(|o| o.uid.clone());
            if owner.as_ref().is_some_and(|o| scales.contains_key(o)) {
                continue;
            }
            match self.owner_scale(pod).await? {
                Owner::None => unmanaged = true,
                Owner::Scale(top, replicas) => {
                    // Pods of several sets of one deployment share its scale.
                    let known = scales.values().any(|(t, _)| *t == top);
                    scales.insert(owner.unwrap_or_default(), (top, if known { 0 } else { replicas }));
                }
                Owner::Unknown => {
                    let message = format!("found no controllers for pod \"{}\"", name(&pod.metadata));
                    return Err(Failure::Invalid(message));
                }
            }
        }
        if unmanaged {
            let selector = selector_text(budget.spec.as_ref().and_then(|s| s.selector.as_ref()));
            let message = format!(
                "Pods selected by this PodDisruptionBudget (selector: {selector}) were found to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value."
            );
            self.event(budget, EventType::Warning, "UnmanagedPods", message);
        }
        Ok(scales.values().fold(0, |sum: i32, (_, replicas)| sum.saturating_add(*replicas)))
    }

    async fn write(
        &self,
        budget: &PodDisruptionBudget,
        status: PodDisruptionBudgetStatus,
    ) -> Result<(), Failure> {
        if budget.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let mut next = budget.clone();
        next.status = Some(status);
        self.context.client.update_status(namespace(&budget.metadata), &next).await?;
        Ok(())
    }

    async fn sync(&self, key: &ObjectKey) -> Result<Outcome, Failure> {
        let Some(budget) = self.budgets.get(&key.namespace, &key.name) else { return Ok(Outcome::Settled) };
        let now = self.context.clock.now();
        match self.try_sync(&budget).await {
            Ok(outcome) => Ok(outcome),
            // The status changed meanwhile, by an eviction perhaps: nothing to be said about it.
            Err(Failure::Api(error)) if error.is_conflict() || error.is_not_found() => Err(error.into()),
            Err(failure) => {
                self.write(&budget, plan::fail_safe(&budget, &failure.text(), now)).await?;
                Err(failure)
            }
        }
    }

    async fn try_sync(&self, budget: &PodDisruptionBudget) -> Result<Outcome, Failure> {
        let selector = selector(budget).inspect_err(|error| {
            self.event(budget, EventType::Warning, "NoPods", format!("Failed to get pods: {}", error.text()));
        })?;
        let mut pods = self.pods.list_ns(namespace(&budget.metadata));
        pods.retain(|p| selector.matches(labels(&p.metadata)));
        if pods.is_empty() {
            self.event(budget, EventType::Normal, "NoPods", "No matching pods found".to_owned());
        }
        let scale = if plan::asks_owners(budget) {
            self.sum_of_scales(budget, &pods).await.inspect_err(|error| {
                let message = format!("Failed to calculate the number of expected pods: {}", error.text());
                self.event(budget, EventType::Warning, "CalculateExpectedPodCountFailed", message);
            })?
        } else {
            0
        };
        let now = self.context.clock.now();
        let disrupted = plan::disrupted(budget, &pods, now);
        for pod in &disrupted.not_deleted {
            let message = format!(
                "Pod was expected by PDB {}/{} to be deleted but it wasn't",
                namespace(&budget.metadata),
                name(&budget.metadata)
            );
            self.context.recorder.event(&reference(&**pod), EventType::Warning, "NotDeleted", message);
        }
        self.write(budget, plan::status(budget, &pods, scale, &disrupted.pods, now)).await?;
        Ok(disrupted.recheck.into())
    }

    /// Takes the condition back from a pod that was to be disrupted and is not.
    async fn take_back(&self, key: &ObjectKey) -> Result<Outcome, Failure> {
        let Some(pod) = self.pods.get(&key.namespace, &key.name) else { return Ok(Outcome::Settled) };
        let now = self.context.clock.now();
        match plan::until_stale(&pod, now) {
            None => return Ok(Outcome::Settled),
            Some(wait) if !wait.is_zero() => return Ok(Outcome::After(wait)),
            Some(_) => {}
        }
        // What it said before does not hold any more.
        let condition = json!({"type": "DisruptionTarget", "status": "False", "reason": null, "message": null,
            "observedGeneration": pod.metadata.generation, "lastTransitionTime": api::meta::format_time(now)});
        let patch = Patch::Strategic(
            json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [condition]}}),
        );
        match self.context.client.patch_status::<Pod>(&key.namespace, &key.name, &patch).await {
            Ok(_) => Ok(Outcome::Settled),
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(Outcome::Settled),
            Err(error) => Err(error.into()),
        }
    }
}

impl Reconcile for Controller {
    type Key = Key;

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Failure> {
        match key {
            Key::Budget(budget) => self.sync(budget).await,
            Key::Pod(pod) => self.take_back(pod).await,
        }
    }
}
