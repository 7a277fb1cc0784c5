//! Creating and deleting the pods of a workload, many at a time, with the events that tell of it.
use std::sync::Arc;

use client::DeleteOptions;
use client::events::EventType;
use futures_util::future::join_all;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};

use crate::ownership::name;
use crate::pending::Pending;
use crate::runner::{Context, ObjectKey, has_cause};

/// Writes pods for one object.
pub(crate) struct PodControl<'a> {
    pub(crate) context: &'a Context,
    /// Where the writes are noted.
    pub(crate) pending: &'a Pending<ObjectKey>,
    /// The object that the pods are for.
    pub(crate) key: &'a ObjectKey,
    /// The same, for events.
    pub(crate) owner: ObjectReference,
}

impl PodControl<'_> {
    /// Creates pods in batches of 1, 2, 4, ... at a time, so that a namespace that refuses (quota) sees one refused request
    /// and not hundreds; the first failure ends it. A namespace that is ending is no failure.
    pub(crate) async fn create(&self, pods: Vec<&Pod>) -> Result<(), client::Error> {
        let mut batch = 1;
        let mut left = pods.as_slice();
        while !left.is_empty() {
            let (now, rest) = left.split_at(batch.min(left.len()));
            let writes = now.iter().map(|pod| self.context.client.create(&self.key.namespace, *pod));
            let mut first = None;
            for result in join_all(writes).await {
                match result {
                    Ok(pod) => {
                        self.pending.created(self.key, &pod);
                        let message = format!("Created pod: {}", name(&pod.metadata));
                        self.event(EventType::Normal, "SuccessfulCreate", message);
                    }
                    Err(error) if has_cause(&error, "NamespaceTerminating") => return Ok(()),
                    Err(error) => {
                        self.event(EventType::Warning, "FailedCreate", format!("Error creating: {error}"));
                        first.get_or_insert(error);
                    }
                }
            }
            if let Some(error) = first {
                return Err(error);
            }
            left = rest;
            batch *= 2;
        }
        Ok(())
    }

    /// Deletes all of them at once; the first error is returned.
    pub(crate) async fn delete(&self, victims: &[Arc<Pod>]) -> Result<(), client::Error> {
        let deletes = victims.iter().map(|pod| async move {
            let options = DeleteOptions { uid: pod.metadata.uid.clone(), ..DeleteOptions::default() };
            let client = &self.context.client;
            (pod, client.delete::<Pod>(&self.key.namespace, name(&pod.metadata), &options).await)
        });
        let mut first = None;
        for (pod, result) in join_all(deletes).await {
            match result {
                Ok(()) => {
                    self.pending.deleted(self.key, &**pod);
                    let message = format!("Deleted pod: {}", name(&pod.metadata));
                    self.event(EventType::Normal, "SuccessfulDelete", message);
                }
                Err(error) if error.is_not_found() => {}
                Err(error) => {
                    self.event(EventType::Warning, "FailedDelete", format!("Error deleting: {error}"));
                    first.get_or_insert(error);
                }
            }
        }
        first.map_or(Ok(()), Err)
    }

    fn event(&self, kind: EventType, reason: &str, message: String) {
        self.context.recorder.event(&self.owner, kind, reason, message);
    }
}
