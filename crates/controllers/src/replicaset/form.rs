//! Replication controllers in the form of replica sets: the older kind asks for the same, and is served by the same loop.
use std::sync::Arc;

use client::Kind;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetSpec, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// A kind that keeps a number of pods of one template.
pub(crate) trait Replicated: Kind {
    /// The object as a replica set of the same metadata.
    fn as_set(self: Arc<Self>) -> Arc<ReplicaSet>;

    /// The object with a status in the form of a replica set's; `None` when it has that status already.
    fn with_status(&self, status: ReplicaSetStatus) -> Option<Self>;
}

impl Replicated for ReplicaSet {
    fn as_set(self: Arc<Self>) -> Arc<ReplicaSet> {
        self
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Option<Self> {
        let status = Some(status);
        (self.status != status).then(|| Self { status, ..self.clone() })
    }
}

impl Replicated for ReplicationController {
    fn as_set(self: Arc<Self>) -> Arc<ReplicaSet> {
        let spec = self.spec.as_ref().map(|spec| ReplicaSetSpec {
            replicas: spec.replicas,
            min_ready_seconds: spec.min_ready_seconds,
            selector: LabelSelector { match_labels: spec.selector.clone(), match_expressions: None },
            template: spec.template.clone(),
        });
        let status = self.status.as_ref().map(|s| ReplicaSetStatus {
            replicas: s.replicas,
            fully_labeled_replicas: s.fully_labeled_replicas,
            ready_replicas: s.ready_replicas,
            available_replicas: s.available_replicas,
            terminating_replicas: None,
            observed_generation: s.observed_generation,
            conditions: s.conditions.as_ref().map(|list| {
                let condition = |c: &ReplicationControllerCondition| ReplicaSetCondition {
                    type_: c.type_.clone(),
                    status: c.status.clone(),
                    reason: c.reason.clone(),
                    message: c.message.clone(),
                    last_transition_time: c.last_transition_time.clone(),
                };
                list.iter().map(condition).collect()
            }),
        });
        Arc::new(ReplicaSet { metadata: self.metadata.clone(), spec, status })
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Option<Self> {
        let condition = |c: ReplicaSetCondition| ReplicationControllerCondition {
            type_: c.type_,
            status: c.status,
            reason: c.reason,
            message: c.message,
            last_transition_time: c.last_transition_time,
        };
        let status = Some(ReplicationControllerStatus {
            replicas: status.replicas,
            fully_labeled_replicas: status.fully_labeled_replicas,
            ready_replicas: status.ready_replicas,
            available_replicas: status.available_replicas,
            observed_generation: status.observed_generation,
            conditions: status.conditions.map(|list| list.into_iter().map(condition).collect()),
        });
        (self.status != status).then(|| Self { status, ..self.clone() })
    }
}
