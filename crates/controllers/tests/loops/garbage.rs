//! The garbage collector.
use client::DeleteOptions;
use http::Method;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};

use crate::hollow::Hollow;
use crate::workloads::deployment;

async fn up(cluster: &Hollow) {
    cluster.create::<Deployment>("d", deployment("web", 3)).await;
    let ready = |p: &Pod| p.status.as_ref().is_some_and(|s| s.pod_ip.is_some());
    cluster.until::<Pod>("three pods", |l| l.len() == 3 && l.iter().all(|p| ready(p))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn background_deletion_takes_dependents_of_dependents() {
    let cluster = Hollow::start().await;
    up(&cluster).await;
    cluster.delete::<Deployment>("d", "web", "Background").await;
    cluster.until::<ReplicaSet>("no sets", |l| l.is_empty()).await;
    cluster.until::<Pod>("no pods", |l| l.is_empty()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreground_deletion_ends_with_the_owner() {
    let cluster = Hollow::start().await;
    up(&cluster).await;
    cluster.delete::<Deployment>("d", "web", "Foreground").await;
    cluster.until::<Deployment>("no deployment", |l| l.is_empty()).await;
    // The owner was the last to go.
    let client = &cluster.client;
    assert!(client.list::<Pod>("d", &Default::default()).await.expect("list").is_empty());
    assert!(client.list::<ReplicaSet>("d", &Default::default()).await.expect("list").is_empty());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_in_another_namespace_is_none_and_that_is_told() {
    let cluster = Hollow::start().await;
    cluster.create::<Namespace>("", json!({"metadata": {"name": "e"}})).await;
    let owner = cluster.create::<ConfigMap>("e", json!({"metadata": {"name": "owner"}})).await;
    let uid = owner.metadata.uid.expect("uid");
    let reference = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid});
    cluster
        .create::<ConfigMap>("d", json!({"metadata": {"name": "stray", "ownerReferences": [reference]}}))
        .await;
    let named = |m: &ConfigMap, name: &str| m.metadata.name.as_deref() == Some(name);
    cluster.until::<ConfigMap>("the stray goes", |l| !l.iter().any(|m| named(m, "stray"))).await;
    let message = format!(
        "ownerRef [v1/ConfigMap, namespace: d, name: owner, uid: {uid}] does not exist in namespace \"d\""
    );
    cluster.told("garbage-collector-controller", "OwnerRefInvalidNamespace", &message).await;
    cluster.until::<ConfigMap>("the owner stays", |l| l.iter().any(|m| named(m, "owner"))).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphan_deletion_leaves_the_dependents_without_owner() {
    let cluster = Hollow::start().await;
    up(&cluster).await;
    cluster.delete::<Deployment>("d", "web", "Orphan").await;
    cluster.until::<Deployment>("no deployment", |l| l.is_empty()).await;
    let sets = cluster.until::<ReplicaSet>("the set stays", |l| l.len() == 1).await;
    let live = cluster
        .client
        .get::<ReplicaSet>("d", sets[0].metadata.name.as_deref().expect("name"))
        .await
        .expect("set");
    assert!(live.metadata.owner_references.is_none_or(|l| l.is_empty()));
    cluster.until::<Pod>("pods stay", |l| l.len() == 3).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_whose_owner_never_existed_is_deleted_and_one_with_a_living_owner_is_not() {
    let cluster = Hollow::start().await;
    let owner = cluster.create::<ConfigMap>("d", json!({"metadata": {"name": "owner"}})).await;
    let reference = |uid: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid});
    let uid = owner.metadata.uid.expect("uid");
    cluster.create::<ConfigMap>("d", json!({"metadata": {"name": "kept", "ownerReferences": [reference(&uid), reference("no-such-uid")]}})).await;
    cluster
        .create::<ConfigMap>(
            "d",
            json!({"metadata": {"name": "stray", "ownerReferences": [reference("no-such-uid")]}}),
        )
        .await;
    let named = |m: &ConfigMap, n: &str| m.metadata.name.as_deref() == Some(n);
    cluster.until::<ConfigMap>("stray gone", |l| !l.iter().any(|m| named(m, "stray"))).await;
    cluster
        .until::<ConfigMap>("dangling owner removed", |l| {
            l.iter()
                .any(|m| named(m, "kept") && m.metadata.owner_references.as_ref().map(Vec::len) == Some(1))
        })
        .await;
    cluster.stop().await;
}

/// A custom resource, and a config map that it owns.
pub async fn ship(cluster: &Hollow, name: &str, cargo: &str) {
    let ship = json!({"apiVersion": "example.com/v1", "kind": "Ship", "metadata": {"name": name}});
    let path = "/apis/example.com/v1/namespaces/d/ships";
    let ship: Value = cluster.client.call(Method::POST, path, Some(&ship)).await.expect("ship");
    let owner = json!({"apiVersion": "example.com/v1", "kind": "Ship", "name": name, "uid": ship["metadata"]["uid"], "blockOwnerDeletion": true});
    cluster.create::<ConfigMap>("d", json!({"metadata": {"name": cargo, "ownerReferences": [owner]}})).await;
}

pub async fn sink(cluster: &Hollow, name: &str, policy: &'static str) {
    let path = format!("/apis/example.com/v1/namespaces/d/ships/{name}");
    let options = DeleteOptions { propagation_policy: Some(policy), ..DeleteOptions::default() };
    cluster.client.delete_path(&path, &options).await.expect("delete");
}

/// Waits until only this ship is left.
pub async fn afloat(cluster: &Hollow, name: &str, what: &str) {
    let cache = cluster.client.caches().metadata("example.com", "v1", "ships");
    cache.synced().await;
    let mut changes = cache.subscribe();
    let wait = async {
        loop {
            let all = cache.list();
            if all.len() == 1 && all[0].metadata.name.as_deref() == Some(name) {
                return;
            }
            changes.next().await.expect("cache");
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), wait).await.expect(what);
}

/// How many owners the config map has, if it is there.
pub fn owners(maps: &[std::sync::Arc<ConfigMap>], name: &str) -> Option<usize> {
    let map = maps.iter().find(|m| m.metadata.name.as_deref() == Some(name))?;
    Some(map.metadata.owner_references.as_ref().map_or(0, Vec::len))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn custom_resources_own_like_any_other_and_end_with_their_definition() {
    let cluster = Hollow::start().await;
    cluster.define("ships", "Ship", json!({})).await;
    for (name, cargo) in [("a", "grain"), ("b", "iron"), ("c", "salt"), ("d", "tea")] {
        ship(&cluster, name, cargo).await;
    }
    for (name, policy) in [("a", "Background"), ("b", "Foreground"), ("c", "Orphan")] {
        sink(&cluster, name, policy).await;
    }
    cluster
        .until::<ConfigMap>("as the policies say", |l| {
            ["grain", "iron", "salt", "tea"].map(|n| owners(l, n)) == [None, None, Some(0), Some(1)]
        })
        .await;
    afloat(&cluster, "d", "only the last").await;
    cluster.delete::<CustomResourceDefinition>("", "ships.example.com", "Background").await;
    cluster.until::<CustomResourceDefinition>("no definition", |l| l.is_empty()).await;
    cluster.stop().await;
}
