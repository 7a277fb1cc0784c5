//! Bootstrap tokens sign the cluster's kubeconfig while they hold, and go when they have expired.
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde_json::{Value, json};

use crate::hollow::Hollow;

pub fn token(id: &str, expires: Option<String>) -> Value {
    let mut token = json!({"metadata": {"name": format!("bootstrap-token-{id}")}, "type": "bootstrap.kubernetes.io/token",
        "stringData": {"token-id": id, "token-secret": "0123456789abcdef", "usage-bootstrap-signing": "true"}});
    if let Some(at) = expires {
        token["stringData"]["expiration"] = json!(at);
    }
    token
}

/// Waits until these tokens, and no others, have signed.
pub async fn signed_by(cluster: &Hollow, want: &[&str]) {
    let keys = |map: &ConfigMap| -> Vec<String> {
        let data = map.data.clone().unwrap_or_default();
        data.into_keys().filter_map(|k| k.strip_prefix("jws-kubeconfig-").map(str::to_owned)).collect()
    };
    cluster
        .until::<ConfigMap>("signatures", |l| {
            l.iter().any(|m| m.metadata.name.as_deref() == Some("cluster-info") && keys(m) == want)
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_sign_while_they_hold() {
    let cluster = Hollow::start().await;
    signed_by(&cluster, &[]).await;
    let soon = (cluster.now() + SignedDuration::from_secs(600)).to_string();
    cluster.create::<Secret>("kube-system", token("aaaaaa", None)).await;
    cluster.create::<Secret>("kube-system", token("bbbbbb", Some(soon))).await;
    signed_by(&cluster, &["aaaaaa", "bbbbbb"]).await;
    // Somebody's own change is signed too.
    let map = cluster.client.get::<ConfigMap>("kube-public", "cluster-info").await.expect("map");
    let before = map.data.expect("data")["jws-kubeconfig-aaaaaa"].clone();
    cluster.merge::<ConfigMap>("kube-public", "cluster-info", json!({"data": {"kubeconfig": "other"}})).await;
    cluster
        .until::<ConfigMap>("signed anew", |l| {
            l.iter().any(|m| {
                m.data.as_ref().and_then(|d| d.get("jws-kubeconfig-aaaaaa")).is_some_and(|s| *s != before)
            })
        })
        .await;
    // Past its time; a write stands for its timer.
    cluster.clock.advance(3600);
    cluster
        .merge::<Secret>("kube-system", "bootstrap-token-bbbbbb", json!({"metadata": {"labels": {"a": "b"}}}))
        .await;
    cluster
        .until::<Secret>("cleaned", |l| {
            let names: Vec<_> = l.iter().filter_map(|s| s.metadata.name.as_deref()).collect();
            names.contains(&"bootstrap-token-aaaaaa") && !names.contains(&"bootstrap-token-bbbbbb")
        })
        .await;
    signed_by(&cluster, &["aaaaaa"]).await;
    cluster.stop().await;
}
