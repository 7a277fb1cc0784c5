//! Follows FlowSchemas and PriorityLevelConfigurations: puts them into force, says in each schema's status whether its
//! level is there, and keeps the default objects.
//!
//! Several servers on one store do the same work; who finds nothing to change writes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::kinds::Kind;
use api::meta;
use api::object::Object;
use jiff::Timestamp;
use k8s_openapi::api::flowcontrol::v1::{FlowSchema, PriorityLevelConfiguration};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::Fairness;
use crate::bootstrap;
use crate::pipeline::ApiServer;
use crate::status::{ApiError, ApiResult};

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
/// Seats move between levels this often.
const ADJUST: Duration = Duration::from_secs(10);
/// After a failure the objects are looked at again.
const AGAIN: Duration = Duration::from_secs(1);
/// What says whether the server keeps a default object's specification.
const AUTO_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";

fn kind(plural: &str) -> ApiResult<&'static Arc<Kind>> {
    api::kinds::find(GROUP, "v1", plural).ok_or_else(ApiError::no_such_resource)
}

/// Both kinds' objects, in the order of their names.
fn objects(server: &ApiServer) -> ApiResult<[Vec<Arc<Object>>; 2]> {
    let of = |plural| {
        let kind = kind(plural)?;
        Ok::<_, ApiError>(server.registry.cache().list(kind, &kind.storage_prefix, None).items)
    };
    Ok([of("prioritylevelconfigurations")?, of("flowschemas")?])
}

/// Puts the objects that are there now into force.
pub fn load(server: &ApiServer) -> ApiResult<()> {
    let [levels, schemas] = objects(server)?;
    server.fairness.set(
        levels.iter().filter_map(|o| o.typed::<PriorityLevelConfiguration>().ok()).collect(),
        schemas.iter().filter_map(|o| o.typed::<FlowSchema>().ok()).collect(),
    );
    Ok(())
}

impl Fairness {
    fn set(&self, levels: Vec<Arc<PriorityLevelConfiguration>>, schemas: Vec<Arc<FlowSchema>>) {
        let config = self.config.load().with(levels, schemas);
        self.config.store(Arc::new(config));
    }
}

/// Follows until `stop`.
pub async fn run(server: Arc<ApiServer>, stop: CancellationToken) {
    loop {
        tokio::select! {
            followed = follow(&server) => if let Err(error) = followed {
                tracing::error!(%error, "flow schemas cannot be followed");
                tokio::time::sleep(AGAIN).await;
            },
            () = stop.cancelled() => return,
        }
    }
}

/// Ends when a queue of events was too slow: the caller begins anew.
async fn follow(server: &Arc<ApiServer>) -> ApiResult<()> {
    let cache = server.registry.cache();
    let (_, _, mut levels) = cache.watch(kind("prioritylevelconfigurations")?, None)?;
    let (_, _, mut schemas) = cache.watch(kind("flowschemas")?, None)?;
    let mut adjust = tokio::time::interval_at(Instant::now() + ADJUST, ADJUST);
    adjust.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut again = false;
    let mut changed = true;
    loop {
        if std::mem::take(&mut changed) {
            load(server)?;
            again = match maintain(server).await {
                Ok(()) => false,
                Err(error) => {
                    tracing::warn!(%error, "flow schemas cannot be kept up");
                    true
                }
            };
        }
        tokio::select! {
            batch = levels.recv() => match batch {
                Some(_) => changed = true,
                None => return Ok(()),
            },
            batch = schemas.recv() => match batch {
                Some(_) => changed = true,
                None => return Ok(()),
            },
            _ = adjust.tick() => server.fairness.adjust(),
            () = tokio::time::sleep(AGAIN), if again => changed = true,
        }
        // what else has come is about the same objects
        while levels.try_recv().is_ok() || schemas.try_recv().is_ok() {}
    }
}

/// Makes and mends the default objects; says in every schema's status whether its level is there.
async fn maintain(server: &Arc<ApiServer>) -> ApiResult<()> {
    let [levels, schemas] = objects(server)?;
    let now = Timestamp::now();
    keep(server, "prioritylevelconfigurations", &levels, bootstrap::priority_levels()).await?;
    keep(server, "flowschemas", &schemas, bootstrap::flow_schemas(now)).await?;
    let [levels, schemas] = objects(server)?;
    for schema in schemas {
        let schema = schema.to_value();
        let level = schema["spec"]["priorityLevelConfiguration"]["name"].as_str().unwrap_or_default();
        let found = levels.iter().any(|l| l.name() == level);
        let wanted = dangling(level, found);
        let is_so = |condition: &Value| {
            wanted.iter().all(|(key, text)| condition[*key].as_str().unwrap_or_default() == text)
        };
        let conditions = schema["status"]["conditions"].as_array();
        let before = conditions.and_then(|list| list.iter().find(|c| c["type"] == "Dangling"));
        if before.is_some_and(is_so) {
            continue;
        }
        let same = before.filter(|c| c["status"] == wanted["status"]);
        let since = same.and_then(|c| c["lastTransitionTime"].as_str()).map(str::to_owned);
        let mut condition = json!(wanted);
        condition["lastTransitionTime"] = json!(since.unwrap_or_else(|| meta::format_time(now)));
        let status = json!({"conditions": [condition]});
        match bootstrap::apply_status(server, kind("flowschemas")?, meta::name(&schema), &status).await {
            Err(error) if error.is_not_found() => {}
            other => other?,
        }
    }
    Ok(())
}

/// The condition that says whether a schema's level is there, without its time.
fn dangling(level: &str, found: bool) -> BTreeMap<&'static str, String> {
    let (status, reason, end) =
        if found { ("False", "Found", "it exists") } else { ("True", "NotFound", "there is no such object") };
    let but = if found { "and" } else { "but" };
    let message = format!(
        "This FlowSchema references the PriorityLevelConfiguration object named {level:?} {but} {end}"
    );
    BTreeMap::from([
        ("type", "Dangling".to_owned()),
        ("status", status.to_owned()),
        ("reason", reason.to_owned()),
        ("message", message),
    ])
}

/// Default objects that are missing are made; those whose specification is the server's get it back.
async fn keep(
    server: &Arc<ApiServer>,
    plural: &str,
    stored: &[Arc<Object>],
    defaults: Vec<Value>,
) -> ApiResult<()> {
    let kind = kind(plural)?;
    for default in &defaults {
        let Some(found) = stored.iter().find(|o| o.name() == meta::name(default)) else {
            bootstrap::make_flow_object(server, kind, default.clone()).await?;
            continue;
        };
        let found = found.to_value();
        let mut wanted = default.clone();
        crate::strategy::of(kind).default(&mut wanted);
        // the exempt level's shares are anybody's
        if meta::name(default) == super::config::EXEMPT && found["spec"]["exempt"].is_object() {
            wanted["spec"]["exempt"] = found["spec"]["exempt"].clone();
        }
        if is_kept(&found) && found["spec"] != wanted["spec"] {
            bootstrap::reset_spec(server, kind, meta::name(default), &wanted["spec"]).await?;
        }
    }
    Ok(())
}

/// Whether an object's specification is the server's: by its annotation, or because nobody has changed it.
fn is_kept(object: &Value) -> bool {
    let name = meta::name(object);
    if name == super::config::EXEMPT || name == super::config::CATCH_ALL {
        return true;
    }
    match object["metadata"]["annotations"][AUTO_UPDATE].as_str() {
        Some("true") => true,
        Some("false") => false,
        _ => object["metadata"]["generation"] == 1,
    }
}
