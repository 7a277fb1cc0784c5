//! What the scheduler writes: bindings, conditions, nominations, events, and the end of victims.
use std::sync::Arc;

use client::events::{EventType, Recorder, reference};
use client::{Client, DeleteOptions, Error, Patch};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod};
use k8s_openapi::api::scheduling::v1alpha2::PodGroup;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use serde_json::{Value, json};

use crate::extender::Extender;
use crate::preemption::REASON;

/// The condition of a group.
const SCHEDULED: &str = "PodGroupScheduled";

/// How a binding ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bound {
    /// The API took it.
    Done,
    /// The pod is gone, or someone else bound it: the watch tells more.
    Moot,
    /// Try again later.
    Failed,
}

/// What becomes of `status.nominatedNodeName`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nomination<'a> {
    /// It stays as it is.
    Keep,
    /// The pod waits for no node.
    Clear,
    /// The pod waits for room on this node.
    Set(&'a str),
}

#[derive(Clone)]
pub(crate) struct Reporter {
    client: Client,
    recorder: Recorder,
}

impl Reporter {
    pub(crate) fn new(client: Client, component: &str) -> Self {
        Self { recorder: Recorder::new(client.clone(), component, ""), client }
    }

    /// Binds `pod` to `node`, by the extender that does so if there is one.
    pub(crate) async fn bind(&self, pod: &Arc<Pod>, node: &str, binder: Option<&Extender>) -> Bound {
        let meta = &pod.metadata;
        let (ns, name) =
            (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
        let failed = match binder {
            Some(extender) => extender.bind(pod, node).await.err().map(|error| error.to_string()),
            None => match self.create_binding(pod, ns, name, node).await {
                Ok(()) => None,
                Err(error) if error.is_not_found() || error.is_conflict() => return Bound::Moot,
                Err(error) => Some(error.to_string()),
            },
        };
        let Some(error) = failed else {
            let message = format!("Successfully assigned {ns}/{name} to {node}");
            self.recorder.event(&reference(&**pod), EventType::Normal, "Scheduled", message);
            return Bound::Done;
        };
        tracing::warn!(ns, name, node, error, "binding failed");
        let message = format!("binding rejected: {error}");
        self.failed(pod, "SchedulerError", &message, Nomination::Keep).await;
        Bound::Failed
    }

    async fn create_binding(&self, pod: &Pod, ns: &str, name: &str, node: &str) -> Result<(), Error> {
        let meta = &pod.metadata;
        let binding = Binding {
            metadata: ObjectMeta {
                namespace: meta.namespace.clone(),
                name: meta.name.clone(),
                uid: meta.uid.clone(),
                ..Default::default()
            },
            target: ObjectReference {
                kind: Some("Node".to_owned()),
                name: Some(node.to_owned()),
                ..Default::default()
            },
        };
        let answer: Result<Value, Error> =
            self.client.create_subresource::<Pod, _, _>(ns, name, "binding", &binding).await;
        answer.map(drop)
    }

    /// Says on the pod and in an event why it is not scheduled.
    pub(crate) async fn failed(
        &self,
        pod: &Arc<Pod>,
        reason: &str,
        message: &str,
        nomination: Nomination<'_>,
    ) {
        let meta = &pod.metadata;
        self.recorder.event(&reference(&**pod), EventType::Warning, "FailedScheduling", message);
        let status = pod.status.as_ref();
        let conditions = status.and_then(|s| s.conditions.as_ref());
        let old = conditions.and_then(|list| list.iter().find(|c| c.type_ == "PodScheduled"));
        let same = |text: &Option<String>, new: &str| text.as_deref() == Some(new);
        let told =
            old.is_some_and(|c| c.status == "False" && same(&c.reason, reason) && same(&c.message, message));
        let nominated = status.and_then(|s| s.nominated_node_name.as_deref()).filter(|n| !n.is_empty());
        let node = match nomination {
            Nomination::Keep => nominated,
            Nomination::Clear => None,
            Nomination::Set(node) => Some(node),
        };
        if told && node == nominated {
            return;
        }
        let since =
            old.filter(|c| c.status == "False").and_then(|c| c.last_transition_time.as_ref()).map(|t| t.0);
        let condition = json!({
            "type": "PodScheduled", "status": "False", "reason": reason, "message": message,
            "lastTransitionTime": api::meta::format_time(since.unwrap_or_else(Timestamp::now)),
            "observedGeneration": meta.generation,
        });
        let mut status = json!({"conditions": [condition]});
        if node != nominated {
            status["nominatedNodeName"] = json!(node);
        }
        self.patch_status(pod, status, "condition not written").await;
    }

    /// Says on a group how an attempt at it ended. One that could be scheduled once stays so.
    pub(crate) async fn note_group(&self, group: &PodGroup, status: &str, reason: &str, message: &str) {
        let meta = &group.metadata;
        let conditions = group.status.as_ref().and_then(|s| s.conditions.as_ref());
        let old = conditions.and_then(|list| list.iter().find(|c| c.type_ == SCHEDULED));
        let same = |c: &Condition| {
            c.reason == reason && c.message == message && c.observed_generation == meta.generation
        };
        if old.is_some_and(|c| c.status == "True" && status != "True" || c.status == status && same(c)) {
            return;
        }
        let since = old.filter(|c| c.status == status).map(|c| c.last_transition_time.0);
        let condition = json!({
            "type": SCHEDULED, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": api::meta::format_time(since.unwrap_or_else(Timestamp::now)),
            "observedGeneration": meta.generation,
        });
        let (ns, name) =
            (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
        let patch = json!({"metadata": {"uid": meta.uid}, "status": {"conditions": [condition]}});
        match self.client.patch_status::<PodGroup>(ns, name, &Patch::Strategic(patch)).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => {
                tracing::warn!(ns, name, error = &error as &dyn std::error::Error, "condition not written");
            }
            _ => {}
        }
    }

    /// Tells that the pod is about to be bound to the node.
    pub(crate) async fn nominate(&self, pod: &Arc<Pod>, node: &str) {
        let known = pod.status.as_ref().and_then(|s| s.nominated_node_name.as_deref());
        if known != Some(node) {
            self.patch_status(pod, json!({"nominatedNodeName": node}), "nomination not written").await;
        }
    }

    /// Tells what the pod waits for.
    pub(crate) fn waits_for_devices(&self, pod: &Arc<Pod>, node: &str) {
        let message = format!("waiting for binding conditions for device on node {node}");
        self.recorder.event(&reference(&**pod), EventType::Normal, "BindingConditionsPending", message);
    }

    /// Takes back the promise of a node.
    pub(crate) async fn clear_nomination(&self, pod: &Arc<Pod>) {
        self.patch_status(pod, json!({"nominatedNodeName": null}), "nomination not cleared").await;
    }

    /// Asks the victims to leave `node` for `pod`, the last one when all others are asked; whether all were.
    pub(crate) async fn preempt(&self, pod: &Arc<Pod>, victims: &[Arc<Pod>], node: &str) -> bool {
        let scheduler = pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref()).unwrap_or_default();
        for victim in victims.iter().filter(|v| v.metadata.deletion_timestamp.is_none()) {
            let condition = json!({
                "type": "DisruptionTarget", "status": "True", "reason": REASON,
                "message": format!("{scheduler}: preempting to accommodate a higher priority pod"),
                "lastTransitionTime": api::meta::format_time(Timestamp::now()),
                "observedGeneration": victim.metadata.generation,
            });
            let status = json!({"conditions": [condition]});
            if !self.patch_status(victim, status, "victim not marked").await {
                return false;
            }
            let (ns, name) = (
                victim.metadata.namespace.as_deref().unwrap_or_default(),
                victim.metadata.name.as_deref().unwrap_or_default(),
            );
            let options = DeleteOptions { uid: victim.metadata.uid.clone(), ..DeleteOptions::default() };
            match self.client.delete::<Pod>(ns, name, &options).await {
                Ok(()) => {}
                Err(error) if error.is_not_found() || error.is_conflict() => continue,
                Err(error) => {
                    tracing::warn!(ns, name, error = &error as &dyn std::error::Error, "victim not deleted");
                    return false;
                }
            }
            let by = pod.metadata.uid.as_deref().unwrap_or_default();
            let message = format!("Preempted by pod {by} on node {node}");
            self.recorder.event(&reference(&**victim), EventType::Normal, "Preempted", message);
        }
        true
    }

    /// Whether the pod has the status now, or is gone.
    async fn patch_status(&self, pod: &Pod, status: Value, failure: &'static str) -> bool {
        let (ns, name) = (
            pod.metadata.namespace.as_deref().unwrap_or_default(),
            pod.metadata.name.as_deref().unwrap_or_default(),
        );
        let patch = Patch::Strategic(json!({"metadata": {"uid": pod.metadata.uid}, "status": status}));
        match self.client.patch_status::<Pod>(ns, name, &patch).await {
            Ok(_) => true,
            Err(error) if error.is_not_found() || error.is_conflict() => true,
            Err(error) => {
                tracing::warn!(ns, name, error = &error as &dyn std::error::Error, "{failure}");
                false
            }
        }
    }
}
