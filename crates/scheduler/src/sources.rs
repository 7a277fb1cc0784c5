//! What the scheduler reads beside nodes and pods, from the shared caches: workloads and services, by which pods are
//! spread that bring no constraints of their own, and disruption budgets.
use std::collections::BTreeMap;
use std::sync::Arc;

use client::{Cache, Client};
use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController, Service, TopologySpreadConstraint};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

pub(crate) struct Sources {
    services: Cache<Service>,
    controllers: Cache<ReplicationController>,
    replica_sets: Cache<ReplicaSet>,
    stateful_sets: Cache<StatefulSet>,
    budgets: Cache<PodDisruptionBudget>,
}

impl Sources {
    pub(crate) fn new(client: &Client) -> Self {
        let caches = client.caches();
        Self {
            services: caches.of(),
            controllers: caches.of(),
            replica_sets: caches.of(),
            stateful_sets: caches.of(),
            budgets: caches.of(),
        }
    }

    pub(crate) async fn synced(&self) {
        self.services.synced().await;
        self.controllers.synced().await;
        self.replica_sets.synced().await;
        self.stateful_sets.synced().await;
        self.budgets.synced().await;
    }

    pub(crate) fn budgets(&self) -> Vec<Arc<PodDisruptionBudget>> {
        self.budgets.list()
    }

    /// `constraints` with the selector of the pod's services and owner; none where nothing selects the pod.
    pub(crate) fn default_spread(
        &self,
        pod: &Pod,
        constraints: &[TopologySpreadConstraint],
    ) -> Vec<TopologySpreadConstraint> {
        if constraints.is_empty() {
            return Vec::new();
        }
        let Some(selector) = self.selector_of(pod) else { return Vec::new() };
        let with = |c: &TopologySpreadConstraint| TopologySpreadConstraint {
            label_selector: Some(selector.clone()),
            ..c.clone()
        };
        constraints.iter().map(with).collect()
    }

    fn selector_of(&self, pod: &Pod) -> Option<LabelSelector> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let mut equal: BTreeMap<String, String> = BTreeMap::new();
        if let Some(labels) = &pod.metadata.labels {
            for service in self.services.list_ns(namespace) {
                let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
                if let Some(selector) = selector.filter(|s| s.iter().all(|(k, v)| labels.get(k) == Some(v))) {
                    equal.extend(selector.clone());
                }
            }
        }
        let mut expressions = Vec::new();
        let owners = pod.metadata.owner_references.iter().flatten();
        if let Some(owner) = owners.into_iter().find(|o| o.controller == Some(true)) {
            let of_owner = match (owner.api_version.as_str(), owner.kind.as_str()) {
                ("v1", "ReplicationController") => {
                    let controller = self.controllers.get(namespace, &owner.name);
                    equal.extend(
                        controller.and_then(|c| c.spec.as_ref()?.selector.clone()).unwrap_or_default(),
                    );
                    None
                }
                ("apps/v1", "ReplicaSet") => self
                    .replica_sets
                    .get(namespace, &owner.name)
                    .and_then(|r| Some(r.spec.as_ref()?.selector.clone())),
                ("apps/v1", "StatefulSet") => self
                    .stateful_sets
                    .get(namespace, &owner.name)
                    .and_then(|s| Some(s.spec.as_ref()?.selector.clone())),
                _ => None,
            };
            if let Some(selector) = of_owner {
                let labels = selector.match_labels.unwrap_or_default().into_iter();
                expressions.extend(labels.map(|(key, value)| LabelSelectorRequirement {
                    key,
                    operator: "In".to_owned(),
                    values: Some(vec![value]),
                }));
                expressions.extend(selector.match_expressions.unwrap_or_default());
            }
        }
        if equal.is_empty() && expressions.is_empty() {
            return None;
        }
        Some(LabelSelector { match_labels: Some(equal), match_expressions: Some(expressions) })
    }
}
