//! Migrations to a new storage version.
use client::Patch;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::storagemigration::v1beta1::StorageVersionMigration as Migration;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition as Definition;
use serde_json::{Value, json};

use crate::hollow::Hollow;

pub fn options() -> apiserver::Options {
    let gates = "StorageVersionMigrator=true".parse().expect("gate");
    apiserver::Options { feature_gates: gates, ..Default::default() }
}

pub fn migration(name: &str, group: &str, resource: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"resource": {"group": group, "resource": resource}}})
}

/// The status and reason of a migration's condition.
pub fn condition(migration: &Migration, kind: &str) -> Option<(String, String)> {
    let conditions = migration.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().find(|c| c.type_ == kind).map(|c| (c.status.clone(), c.reason.clone()))
}

/// Whether the migration is through, and nothing says that it runs.
pub fn is_through(migration: &Migration) -> bool {
    let is = |kind, status: &str, reason: &str| {
        condition(migration, kind) == Some((status.to_owned(), reason.to_owned()))
    };
    is("Succeeded", "True", "StorageVersionMigrationSucceeded")
        && is("Running", "False", "MigrationCompleted")
}

/// Widgets, of which `count` are stored in v1.
pub async fn widgets(cluster: &Hollow, count: usize) {
    cluster.define("widgets", "Widget", json!({})).await;
    for n in 0..count {
        let widget = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": format!("w{n}")}, "spec": {"n": n}});
        let path = "/apis/example.com/v1/namespaces/d/widgets";
        let _: Value = cluster.client.call(http::Method::POST, path, Some(&widget)).await.expect("widget");
    }
}

/// From now on widgets are stored in v2.
pub async fn store_v2(cluster: &Hollow) {
    let add = json!([
        {"op": "copy", "from": "/spec/versions/0", "path": "/spec/versions/-"},
        {"op": "replace", "path": "/spec/versions/1/name", "value": "v2"},
        {"op": "replace", "path": "/spec/versions/0/storage", "value": false}]);
    let name = "widgets.example.com";
    cluster.client.patch::<Definition>("", name, &Patch::Json(add)).await.expect("definition");
}

/// The versions that widgets may be stored in, and what the definition says of the migration.
pub fn stored(definition: &Definition) -> (Vec<String>, Option<String>) {
    let status = definition.status.clone().unwrap_or_default();
    let says = status.conditions.into_iter().flatten().find(|c| c.type_ == "StorageMigrating");
    (status.stored_versions.unwrap_or_default(), says.and_then(|c| c.message))
}

/// The revisions of the widgets.
pub async fn revisions(cluster: &Hollow) -> Vec<u64> {
    let path = "/apis/example.com/v2/namespaces/d/widgets";
    let list: Value = cluster.client.call(http::Method::GET, path, None::<&()>).await.expect("widgets");
    let revision = |w: &Value| w["metadata"]["resourceVersion"].as_str().and_then(|r| r.parse().ok());
    list["items"].as_array().into_iter().flatten().filter_map(revision).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_written_anew_and_their_definition_forgets_the_old_version() {
    let mut cluster = Hollow::start_on_server(options()).await;
    cluster.stop_controllers().await;
    cluster.config.storage_migrations = true;
    cluster.start_controllers();
    widgets(&cluster, 3).await;
    store_v2(&cluster).await;
    cluster.until::<Definition>("both", |l| l.iter().any(|d| stored(d).0 == ["v1", "v2"])).await;
    cluster.create::<Migration>("", migration("m", "example.com", "widgets")).await;
    let through = cluster.until::<Migration>("through", |l| l.iter().any(|m| is_through(m))).await;
    let since = through[0].status.as_ref().and_then(|s| s.resource_version.clone()).expect("revision");
    let since: u64 = since.parse().expect("number");
    let now = revisions(&cluster).await;
    assert!(now.len() == 3 && now.iter().all(|r| *r > since), "{now:?} after {since}");
    let done = "The migration has succeeded and the stored versions have been updated";
    cluster
        .until::<Definition>("v2 alone", |l| {
            l.iter().any(|d| stored(d) == (vec!["v2".to_owned()], Some(done.to_owned())))
        })
        .await;
    // What is stored as it would be written is not written.
    cluster.create::<Migration>("", migration("again", "example.com", "widgets")).await;
    cluster.until::<Migration>("both through", |l| l.len() == 2 && l.iter().all(|m| is_through(m))).await;
    assert_eq!(revisions(&cluster).await, now);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_of_what_is_not_there_fails_and_one_of_a_built_in_kind_does_not() {
    let mut cluster = Hollow::start_on_server(options()).await;
    cluster.stop_controllers().await;
    cluster.config.storage_migrations = true;
    cluster.start_controllers();
    cluster.create::<Secret>("d", json!({"metadata": {"name": "s"}})).await;
    cluster.create::<Migration>("", migration("secrets", "", "secrets")).await;
    cluster.create::<Migration>("", migration("nothing", "example.com", "nothings")).await;
    let named = |m: &Migration, name: &str| m.metadata.name.as_deref() == Some(name);
    cluster
        .until::<Migration>("secrets are through", |l| l.iter().any(|m| named(m, "secrets") && is_through(m)))
        .await;
    // It is waited for a minute: it may be defined just now.
    cluster.clock.pass(61);
    let failed = |m: &Migration| {
        let says = condition(m, "Failed").map(|(status, _)| status);
        named(m, "nothing") && says.as_deref() == Some("True")
    };
    let list = cluster.until::<Migration>("failed", |l| l.iter().any(|m| failed(m))).await;
    let nothing = list.iter().find(|m| failed(m)).expect("migration");
    let conditions = nothing.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let message = conditions.into_iter().find(|c| c.type_ == "Failed").map(|c| c.message.clone());
    let why = "migration encountered unhandled error: unable to obtain GVR from discovery";
    assert_eq!(message.as_deref(), Some(why));
    cluster.stop().await;
}
