//! The end of a definition: its objects are deleted like by any client, then the finalizer goes, and the definition with
//! it.

use std::sync::Arc;
use std::time::Duration;

use api::custom;
use api::kinds::{self, Kind};
use api::object::Object;
use futures_util::StreamExt as _;

use super::conditions::{self, Condition};
use super::{release, update_status};
use crate::pipeline::ApiServer;
use crate::registry::{DeleteOptions, Target};
use crate::status::{ApiError, ApiResult};

/// What keeps a definition until its objects are gone.
pub const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";
/// Objects that are deleted at the same time.
const PARALLEL: usize = 16;
/// The status says so when objects take longer than this to go.
const SLOW: Duration = Duration::from_secs(60);

/// Cleans up after one definition that is being deleted. Ends when the definition is gone.
pub(super) async fn run(server: Arc<ApiServer>, definition: Arc<Object>) {
    let (name, uid) = (definition.name(), definition.uid());
    if !api::meta::finalizers(definition.value()).any(|f| f == FINALIZER) {
        return;
    }
    let mut wait = Duration::from_millis(100);
    loop {
        match clean_up(&server, &definition).await {
            Ok(()) => return,
            Err(error) if error.is_not_found() => return,
            Err(error) => tracing::warn!(%error, name, uid, "objects of a deleted definition"),
        }
        // the store or a webhook refused: it may not for ever
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(SLOW);
    }
}

async fn clean_up(server: &ApiServer, definition: &Object) -> ApiResult<()> {
    let (name, uid) = (definition.name(), definition.uid());
    terminating(server, name, true, "InstanceDeletionInProgress", "CustomResource deletion is in progress")
        .await?;
    let kind = custom::storage_row(definition.value());
    let overlaps =
        |kind: &Kind| kinds::all().iter().any(|k| k.group == kind.group && k.plural == kind.plural);
    let (reason, message) = match kind {
        Some(kind) if overlaps(&kind) => {
            ("OverlappingBuiltInResource", "instances overlap with built-in resources in storage")
        }
        Some(kind) => {
            if let Err(error) = delete_all(server, &kind).await {
                let message = format!("could not issue all deletes: {error}");
                terminating(server, name, true, "InstanceDeletionFailed", &message).await?;
                return Err(error);
            }
            wait_for_none(server, definition, &kind).await?;
            ("InstanceDeletionCompleted", "removed all instances")
        }
        None => ("NeverEstablished", "resource was never established"),
    };
    terminating(server, name, false, reason, message).await?;
    release(server, name, uid).await
}

async fn terminating(
    server: &ApiServer,
    name: &str,
    status: bool,
    reason: &str,
    message: &str,
) -> ApiResult<()> {
    let condition = Condition { type_: "Terminating", status, reason, message };
    update_status(server, name, |definition, now| conditions::set(definition, &condition, now))
        .await
        .map(drop)
}

async fn delete_all(server: &ApiServer, kind: &Arc<Kind>) -> ApiResult<()> {
    let registry = &server.registry;
    registry.cache().fresh().await?;
    let items = registry.cache().list(kind, &kind.storage_prefix, None).items;
    let options = DeleteOptions::default();
    let failures: Vec<ApiError> = futures_util::stream::iter(items)
        .map(|object| {
            let options = &options;
            async move {
                let namespace = object.namespace().unwrap_or_default();
                let target = Target { kind, namespace, name: object.name(), subresource: "" };
                registry.delete(target, options).await.err().filter(|e| !e.is_not_found())
            }
        })
        .buffer_unordered(PARALLEL)
        .filter_map(async |failure| failure)
        .collect()
        .await;
    failures.into_iter().next().map_or(Ok(()), Err)
}

/// Waits until the last object is gone: finalizers may hold them for a while.
async fn wait_for_none(server: &ApiServer, definition: &Object, kind: &Arc<Kind>) -> ApiResult<()> {
    let cache = server.registry.cache();
    loop {
        let (_, _, mut queue) = cache.watch(kind, None)?;
        cache.fresh().await?;
        if cache.list(kind, &kind.storage_prefix, None).items.is_empty() {
            return Ok(());
        }
        if tokio::time::timeout(SLOW, queue.recv()).await.is_err() {
            let message =
                "could not confirm zero CustomResources remaining: timed out waiting for the condition";
            terminating(server, definition.name(), true, "InstanceDeletionCheck", message).await?;
        }
    }
}
