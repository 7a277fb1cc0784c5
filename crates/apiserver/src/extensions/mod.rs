//! CustomResourceDefinitions at work: the table of kinds follows them, and their controllers keep their status.
//!
//! [`Kinds`] holds the table that every request looks into; it is replaced as a whole when a definition changes.
//! One task ([`run`]) follows the definitions in the watch cache: it first replaces the table, so that what is
//! established is served at once, and then brings the status of what changed up to date ([`names`], [`approval`]).
//! A definition that is being deleted gets a task of its own that deletes its objects ([`cleanup`]). Another task
//! ([`services`]) keeps an APIService for every version that definitions serve.
//!
//! All is level-triggered and writes by compare and swap, so several servers on one store do the same work at most
//! twice and never undo each other's.

mod approval;
mod cleanup;
pub(crate) mod conditions;
mod conversion;
mod kinds;
mod names;
pub mod services;
pub mod versions;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::custom;
use api::kinds::{Kind, KindTable};
use api::meta;
use api::object::Object;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use cleanup::FINALIZER;
pub use kinds::{Kinds, Retirement};

use crate::managed::{self, Writer};
use crate::pipeline::ApiServer;
use crate::registry::{Target, Written};
use crate::status::{ApiError, ApiResult};
use crate::watch_cache::{Batch, Changed};

/// Who writes the status of definitions, as managed fields say it.
const MANAGER: &str = "kube-apiserver";

/// The kind of definitions themselves.
fn definitions() -> ApiResult<&'static Arc<Kind>> {
    api::kinds::find("apiextensions.k8s.io", "v1", "customresourcedefinitions")
        .ok_or_else(ApiError::no_such_resource)
}

/// The definitions as they are now, and what follows.
pub struct Feed {
    past: Vec<Changed>,
    queue: mpsc::Receiver<Batch>,
}

/// Serves all definitions that are stored; [`run`] goes on from there.
pub fn load(server: &ApiServer) -> ApiResult<Feed> {
    let (past, _, queue) = server.registry.cache().watch(definitions()?, None)?;
    let definitions: Vec<Arc<Object>> = past.iter().filter_map(|change| change.new.clone()).collect();
    server.kinds.set(&definitions);
    Ok(Feed { past, queue })
}

/// The row that a request is about, as its definition is now: who has seen a definition established finds it served.
pub async fn find(
    server: &ApiServer,
    group: &str,
    version: &str,
    plural: &str,
) -> ApiResult<Option<Arc<Kind>>> {
    let found = server.kinds.now().find(group, version, plural).cloned();
    if group.is_empty() || found.as_ref().is_some_and(|kind| kind.definition.is_none()) {
        return Ok(found);
    }
    if found.is_none() {
        server.registry.cache().fresh().await?;
    }
    if let Some(definition) = current(server, &format!("{plural}.{group}")) {
        server.kinds.refresh(&definition);
    }
    Ok(server.kinds.now().find(group, version, plural).cloned())
}

/// The table with all definitions that reads see.
pub fn all_kinds(server: &ApiServer) -> Arc<KindTable> {
    server.kinds.set(&all(server));
    server.kinds.now()
}

/// Follows the definitions until `stop`.
pub async fn run(server: Arc<ApiServer>, mut feed: Feed, tasks: TaskTracker, stop: CancellationToken) {
    let mut deleted = BTreeMap::new();
    loop {
        let past = std::mem::take(&mut feed.past);
        work(&server, &past, &mut deleted, &tasks, &stop).await;
        loop {
            let batch = tokio::select! {
                batch = feed.queue.recv() => batch,
                () = stop.cancelled() => return,
            };
            // a queue that ends was too slow: begin anew
            let Some(batch) = batch else { break };
            server.kinds.apply(&batch);
            work(&server, &batch, &mut deleted, &tasks, &stop).await;
        }
        match load(&server) {
            Ok(fresh) => feed = fresh,
            Err(error) => {
                tracing::error!(%error, "definitions cannot be followed");
                return;
            }
        }
    }
}

/// Brings up to date what changed, and what waits for names that came free.
async fn work(
    server: &Arc<ApiServer>,
    changes: &[Changed],
    deleted: &mut BTreeMap<String, String>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) {
    let mut todo: BTreeSet<String> = BTreeSet::new();
    for change in changes {
        match (&change.new, &change.old) {
            (Some(new), _) => {
                todo.insert(new.name().to_owned());
            }
            (None, Some(old)) => {
                deleted.remove(old.name());
                todo.extend(others_of_group(server, old));
            }
            (None, None) => {}
        }
    }
    while let Some(name) = todo.pop_first() {
        let Some(object) = current(server, &name) else { continue };
        if meta::is_being_deleted(object.value()) {
            if deleted.insert(name.clone(), object.uid().to_owned()).as_deref() != Some(object.uid()) {
                let cleaning = cleanup::run(server.clone(), object);
                let stop = stop.clone();
                tasks.spawn(async move {
                    tokio::select! {
                        () = cleaning => {}
                        () = stop.cancelled() => {}
                    }
                });
            }
            continue;
        }
        match settle(server, &object).await {
            Ok(true) => todo.extend(others_of_group(server, &object)),
            Ok(false) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => tracing::error!(%error, name, "the status of a definition cannot be written"),
        }
    }
}

fn current(server: &ApiServer, name: &str) -> Option<Arc<Object>> {
    let kind = definitions().ok()?;
    server.registry.cache().get(kind, &kind.key("", name))
}

/// The definitions of a group whose names may be free now.
fn others_of_group(server: &ApiServer, of: &Object) -> Vec<String> {
    let group = of.value()["spec"]["group"].as_str().unwrap_or_default();
    all(server)
        .into_iter()
        .filter(|o| o.name() != of.name() && o.value()["spec"]["group"] == group)
        .filter(|o| !custom::is_true(o.value(), "NamesAccepted"))
        .map(|o| o.name().to_owned())
        .collect()
}

fn all(server: &ApiServer) -> Vec<Arc<Object>> {
    let Ok(kind) = definitions() else { return Vec::new() };
    server.registry.cache().list(kind, &kind.storage_prefix, None).items
}

/// Writes what names and conditions of a definition should be; whether accepted names changed.
async fn settle(server: &ApiServer, object: &Object) -> ApiResult<bool> {
    server.registry.cache().fresh().await?;
    let group = object.value()["spec"]["group"].as_str().unwrap_or_default();
    let used = names::Used::of(all(server).iter().map(|o| o.value()).filter(|d| d["spec"]["group"] == group));
    let mut renamed = false;
    update_status(server, object.name(), |definition, now| {
        let before = definition["status"]["acceptedNames"].clone();
        names::settle(definition, &used, now);
        approval::settle(definition, now);
        renamed = definition["status"]["acceptedNames"] != before;
    })
    .await?;
    Ok(renamed)
}

/// Changes the status of a definition; writes nothing where nothing changes.
async fn update_status(
    server: &ApiServer,
    name: &str,
    mut change: impl FnMut(&mut Value, Timestamp),
) -> ApiResult<Written> {
    let kind = definitions()?;
    let target = Target { kind, namespace: "", name, subresource: "status" };
    let now = Timestamp::now();
    server
        .registry
        .update(target, false, |old| {
            let mut new = old.clone();
            change(&mut new, now);
            if new != *old {
                record(kind, "status", old, &mut new, now);
            }
            Ok(new)
        })
        .await
}

/// Puts a write of the server itself into the managed fields.
fn record(kind: &Kind, subresource: &str, old: &Value, new: &mut Value, now: Timestamp) {
    let writer = Writer {
        shape: kind.shape(),
        api_version: kind.api_version(),
        manager: MANAGER,
        subresource,
        has_status: true,
        status_keeps: &[],
        now,
    };
    managed::update(&writer, Some(old), new);
}

/// Takes away the finalizer of a definition whose objects are gone; the definition goes with it.
async fn release(server: &ApiServer, name: &str, uid: &str) -> ApiResult<()> {
    let kind = definitions()?;
    let target = Target { kind, namespace: "", name, subresource: "" };
    let released = server.registry.update(target, false, |old| {
        if meta::text(old, "uid") != uid {
            return Err(ApiError::not_found(kind, name));
        }
        let mut new = old.clone();
        let left: Vec<Value> =
            meta::finalizers(old).filter(|f| *f != cleanup::FINALIZER).map(|f| json!(f)).collect();
        let metadata = meta::metadata_mut(&mut new);
        if left.is_empty() {
            metadata.remove("finalizers");
        } else {
            metadata.insert("finalizers".to_owned(), json!(left));
        }
        Ok(new)
    });
    released.await.map(drop)
}
