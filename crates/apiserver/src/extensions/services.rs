//! APIService objects of the groups and versions that definitions serve: one each, kept as long as a definition serves the
//! version, made again where somebody deletes it. Who takes the label away keeps the object.
//!
//! Rule: Kubernetes' autoregistration (`kube-aggregator.kubernetes.io/automanaged`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::object::Object;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{all, definitions, record};
use crate::bootstrap;
use crate::pipeline::ApiServer;
use crate::registry::{DeleteOptions, Target};
use crate::status::{ApiError, ApiResult};
use crate::watch_cache::{Batch, Changed};

/// Custom resources come after what is built in.
const GROUP_PRIORITY: i32 = 1000;
/// All versions of a group are ordered by their names.
const VERSION_PRIORITY: i32 = 100;
/// What cannot be written is tried again after this time.
const AGAIN: Duration = Duration::from_secs(1);

/// Keeps the objects until `stop`.
pub async fn run(server: Arc<ApiServer>, stop: CancellationToken) {
    loop {
        tokio::select! {
            followed = follow(&server) => if let Err(error) = followed {
                tracing::error!(%error, "definitions and APIServices cannot be followed");
                return;
            },
            () = stop.cancelled() => return,
        }
    }
}

/// Ends where a queue was too slow: to begin anew.
async fn follow(server: &Arc<ApiServer>) -> ApiResult<()> {
    let cache = server.registry.cache();
    let (defined, _, mut definitions) = cache.watch(definitions()?, None)?;
    let kind = crate::aggregation::kind()?;
    let (kept, _, mut services) = cache.watch(kind, None)?;
    let mut todo = BTreeSet::new();
    note_definitions(&defined, &mut todo);
    todo.extend(
        kept.iter().filter_map(|c| c.new.as_ref()).filter(|o| is_managed(o)).map(|o| o.name().to_owned()),
    );
    loop {
        let mut failed = BTreeSet::new();
        while let Some(name) = todo.pop_first() {
            if let Err(error) = settle(server, &name).await {
                tracing::warn!(%error, name, "an APIService of definitions cannot be written");
                failed.insert(name);
            }
        }
        let wait = if failed.is_empty() { Duration::MAX } else { AGAIN };
        let more = tokio::select! {
            batch = definitions.recv() => batch.map(|batch: Batch| note_definitions(&batch, &mut todo)),
            batch = services.recv() => batch.map(|batch: Batch| {
                todo.extend(batch.iter().filter_map(|c| c.new.as_ref().or(c.old.as_ref())).map(|o| o.name().to_owned()));
            }),
            () = tokio::time::sleep(wait) => Some(()),
        };
        if more.is_none() {
            return Ok(());
        }
        todo.append(&mut failed);
    }
}

fn is_managed(service: &Object) -> bool {
    service.labels().get(bootstrap::AUTOMANAGED).is_some_and(|how| how == "true")
}

/// The names of all versions that changed definitions have or had.
fn note_definitions(changes: &[Changed], todo: &mut BTreeSet<String>) {
    for object in changes.iter().flat_map(|c| c.new.iter().chain(&c.old)) {
        let spec = &object.value()["spec"];
        let group = spec["group"].as_str().unwrap_or_default();
        let versions = spec["versions"].as_array().into_iter().flatten().filter_map(|v| v["name"].as_str());
        todo.extend(versions.map(|version| format!("{version}.{group}")));
    }
}

/// Whether a definition serves a version of a group.
fn is_served(server: &ApiServer, group: &str, version: &str) -> bool {
    all(server).iter().map(|o| &o.value()["spec"]).filter(|spec| spec["group"] == group).any(|spec| {
        let mut versions = spec["versions"].as_array().into_iter().flatten();
        versions.any(|v| v["name"] == version && v["served"] == true)
    })
}

/// Brings one APIService to what definitions say now.
async fn settle(server: &Arc<ApiServer>, name: &str) -> ApiResult<()> {
    let Some((version, group)) = name.split_once('.') else { return Ok(()) };
    let kind = crate::aggregation::kind()?;
    let target = Target { kind, namespace: "", name, subresource: "" };
    let stored = server.registry.cache().get(kind, &kind.key("", name));
    let is_wanted = is_served(server, group, version);
    let spec = json!({"group": group, "version": version, "groupPriorityMinimum": GROUP_PRIORITY,
        "versionPriority": VERSION_PRIORITY});
    match stored {
        None if is_wanted => bootstrap::make_api_service(server, name, spec, "true").await,
        Some(service) if is_managed(&service) && !is_wanted => {
            let options = DeleteOptions { uid: Some(service.uid().to_owned()), ..DeleteOptions::default() };
            ignore_lost_race(server.registry.delete(target, &options).await.map(drop))
        }
        Some(service) if is_managed(&service) && service.value()["spec"] != spec => {
            let now = Timestamp::now();
            let change = |old: &Value| {
                let mut new = old.clone();
                if old["metadata"]["labels"][bootstrap::AUTOMANAGED] == "true" {
                    new["spec"] = spec.clone();
                    record(kind, "", old, &mut new, now);
                }
                Ok(new)
            };
            ignore_lost_race(server.registry.update(target, false, change).await.map(drop))
        }
        _ => Ok(()),
    }
}

/// Somebody else was faster: his change comes as an event.
fn ignore_lost_race(result: ApiResult<()>) -> ApiResult<()> {
    result.or_else(|error: ApiError| if matches!(error.code, 404 | 409) { Ok(()) } else { Err(error) })
}
