//! What the scheduler writes: bindings, conditions and events.
use std::sync::Arc;

use client::events::{EventType, Recorder, reference};
use client::{Client, Error, Patch};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

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

#[derive(Clone)]
pub(crate) struct Reporter {
    client: Client,
    recorder: Recorder,
}

impl Reporter {
    pub(crate) fn new(client: Client, component: &str) -> Self {
        Self { recorder: Recorder::new(client.clone(), component, ""), client }
    }

    /// Binds `pod` to `node`.
    pub(crate) async fn bind(&self, pod: &Arc<Pod>, node: &str) -> Bound {
        let meta = &pod.metadata;
        let (ns, name) =
            (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
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
        let result: Result<Value, Error> =
            self.client.create_subresource::<Pod, _, _>(ns, name, "binding", &binding).await;
        match result {
            Ok(_) => {
                let message = format!("Successfully assigned {ns}/{name} to {node}");
                self.recorder.event(&reference(&**pod), EventType::Normal, "Scheduled", message);
                Bound::Done
            }
            Err(error) if error.is_not_found() || error.is_conflict() => Bound::Moot,
            Err(error) => {
                tracing::warn!(ns, name, node, error = &error as &dyn std::error::Error, "binding failed");
                let message = format!("binding rejected: {error}");
                self.failed(pod, "SchedulerError", &message).await;
                Bound::Failed
            }
        }
    }

    /// Says on the pod and in an event why it is not scheduled.
    pub(crate) async fn failed(&self, pod: &Arc<Pod>, reason: &str, message: &str) {
        let meta = &pod.metadata;
        let (ns, name) =
            (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
        self.recorder.event(&reference(&**pod), EventType::Warning, "FailedScheduling", message);
        let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
        let old = conditions.and_then(|list| list.iter().find(|c| c.type_ == "PodScheduled"));
        let same = |text: &Option<String>, new: &str| text.as_deref() == Some(new);
        if old.is_some_and(|c| c.status == "False" && same(&c.reason, reason) && same(&c.message, message)) {
            return;
        }
        let since =
            old.filter(|c| c.status == "False").and_then(|c| c.last_transition_time.as_ref()).map(|t| t.0);
        let condition = json!({
            "type": "PodScheduled", "status": "False", "reason": reason, "message": message,
            "lastTransitionTime": api::meta::format_time(since.unwrap_or_else(Timestamp::now)),
            "observedGeneration": meta.generation,
        });
        let patch =
            Patch::Strategic(json!({"metadata": {"uid": meta.uid}, "status": {"conditions": [condition]}}));
        match self.client.patch_status::<Pod>(ns, name, &patch).await {
            Ok(_) => {}
            Err(error) if error.is_not_found() || error.is_conflict() => {}
            Err(error) => {
                tracing::warn!(ns, name, error = &error as &dyn std::error::Error, "condition not written");
            }
        }
    }
}
