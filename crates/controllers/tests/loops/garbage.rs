//! The garbage collector.
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use serde_json::json;

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
