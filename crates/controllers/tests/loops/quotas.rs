//! Resource quotas are counted anew when something sets room free, or when they change themselves.
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, ResourceQuota, Service};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};

use crate::hollow::Hollow;

async fn quota(cluster: &Hollow, name: &str, spec: Value) {
    cluster.create::<ResourceQuota>("d", json!({"metadata": {"name": name}, "spec": spec})).await;
}

/// Waits until the quota's status says this; a resource without amount is one that nobody counts.
async fn says(cluster: &Hollow, name: &str, used: Value) {
    let says = |q: &ResourceQuota| {
        let hard = q.spec.as_ref().and_then(|s| s.hard.clone());
        let status = q.status.clone().unwrap_or_default();
        status.hard == hard && json!(status.used.unwrap_or_default()) == used
    };
    let what = format!("{name} says {used}");
    cluster
        .until::<ResourceQuota>(&what, |l| {
            l.iter().any(|q| q.metadata.name.as_deref() == Some(name) && says(q))
        })
        .await;
}

fn pod(name: &str, cpu: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i:1",
        "resources": {"requests": {"cpu": cpu}, "limits": {"cpu": cpu}}}]}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_there_is_counted_and_what_goes_is_given_back() {
    let cluster = Hollow::start().await;
    cluster.create::<Pod>("d", pod("before", "500m")).await;
    let hard = json!({"pods": "2", "requests.cpu": "2", "count/configmaps": "10", "services.nodeports": "1", "unknown.example.com/thing": "1"});
    let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "gold",
        "resources": {"requests": {"storage": "1Gi"}}}});
    cluster.create::<PersistentVolumeClaim>("d", claim).await;
    quota(&cluster, "q", json!({"hard": hard})).await;
    says(
        &cluster,
        "q",
        json!({"pods": "1", "requests.cpu": "500m", "count/configmaps": "1", "services.nodeports": "0"}),
    )
    .await;
    quota(&cluster, "storage", json!({"hard": {"gold.storageclass.storage.k8s.io/requests.storage": "2Gi", "persistentvolumeclaims": "5"}})).await;
    says(
        &cluster,
        "storage",
        json!({"gold.storageclass.storage.k8s.io/requests.storage": "1Gi", "persistentvolumeclaims": "1"}),
    )
    .await;
    cluster.create::<Pod>("d", pod("after", "1")).await;
    let refused = cluster.client.create::<Pod>("d", &crate::hollow::object(pod("third", "1"))).await;
    assert!(refused.is_err_and(|e| e.is_forbidden()), "the quota is full");
    cluster.create::<ConfigMap>("d", json!({"metadata": {"name": "m"}})).await;
    says(
        &cluster,
        "q",
        json!({"pods": "2", "requests.cpu": "1500m", "count/configmaps": "2", "services.nodeports": "0"}),
    )
    .await;
    cluster.delete::<Pod>("d", "before", "Background").await;
    cluster.delete::<ConfigMap>("d", "m", "Background").await;
    says(
        &cluster,
        "q",
        json!({"pods": "1", "requests.cpu": "1", "count/configmaps": "1", "services.nodeports": "0"}),
    )
    .await;
    // A pod that ended uses nothing.
    let ended = client::Patch::Merge(json!({"status": {"phase": "Succeeded"}}));
    cluster.client.patch_status::<Pod>("d", "after", &ended).await.expect("status");
    says(
        &cluster,
        "q",
        json!({"pods": "0", "requests.cpu": "0", "count/configmaps": "1", "services.nodeports": "0"}),
    )
    .await;
    // What is limited changes: so does what is said.
    let service = json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
    cluster.create::<Service>("d", service).await;
    let only = json!({"spec": {"hard": {"pods": null, "requests.cpu": null, "count/configmaps": null, "unknown.example.com/thing": null}}});
    cluster.merge::<ResourceQuota>("d", "q", only).await;
    says(&cluster, "q", json!({"services.nodeports": "1"})).await;
    let inside = json!({"spec": {"type": "ClusterIP", "ports": [{"port": 80, "nodePort": null}]}});
    cluster.merge::<Service>("d", "s", inside).await;
    says(&cluster, "q", json!({"services.nodeports": "0"})).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scopes_choose_what_is_counted_and_custom_resources_count_from_their_definition_on() {
    let cluster = Hollow::start().await;
    cluster.create::<Pod>("d", pod("sized", "1")).await;
    let best = json!({"metadata": {"name": "best"}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}});
    cluster.create::<Pod>("d", best).await;
    quota(&cluster, "best", json!({"hard": {"pods": "5"}, "scopes": ["BestEffort"]})).await;
    quota(&cluster, "rest", json!({"hard": {"pods": "5", "cpu": "5"}, "scopes": ["NotBestEffort"]})).await;
    quota(&cluster, "custom", json!({"hard": {"count/things.example.com": "2"}})).await;
    says(&cluster, "best", json!({"pods": "1"})).await;
    says(&cluster, "rest", json!({"pods": "1", "cpu": "1"})).await;
    says(&cluster, "custom", json!({})).await;
    let definition = json!({"metadata": {"name": "things.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "things", "kind": "Thing"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]}});
    cluster.create::<CustomResourceDefinition>("", definition).await;
    says(&cluster, "custom", json!({"count/things.example.com": "0"})).await;
    let thing = json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "t"}});
    let path = "/apis/example.com/v1/namespaces/d/things";
    cluster.client.call::<_, Value>(http::Method::POST, path, Some(&thing)).await.expect("thing");
    says(&cluster, "custom", json!({"count/things.example.com": "1"})).await;
    cluster.client.delete_path(&format!("{path}/t"), &Default::default()).await.expect("delete");
    says(&cluster, "custom", json!({"count/things.example.com": "0"})).await;
    cluster.stop().await;
}
