//! Legacy tokens of service accounts: Secrets are given them, the API server knows them, and what is unused for too long goes.
use std::collections::BTreeMap;

use http::Method;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use serde_json::{Value, json};

use crate::hollow::Hollow;

const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";

pub fn secret(name: &str, account: &str) -> Value {
    json!({"metadata": {"name": name, "annotations": {"kubernetes.io/service-account.name": account}},
        "type": "kubernetes.io/service-account-token"})
}

pub fn text(secret: &Secret, key: &str) -> String {
    let value = secret.data.as_ref().and_then(|d| d.get(key)).map(|v| v.0.clone()).unwrap_or_default();
    String::from_utf8(value).expect("text")
}

fn label(secret: &Secret, key: &str) -> String {
    secret.metadata.labels.clone().unwrap_or_default().remove(key).unwrap_or_default()
}

/// Waits until the Secret is so.
pub async fn until(
    cluster: &Hollow,
    what: &str,
    name: &str,
    done: impl Fn(&Secret) -> bool,
) -> std::sync::Arc<Secret> {
    let of_name = |s: &Secret| s.metadata.name.as_deref() == Some(name);
    let all = cluster.until::<Secret>(what, |l| l.iter().any(|s| of_name(s) && done(s))).await;
    all.into_iter().find(|s| of_name(s)).expect("secret")
}

/// Whom the API server takes the bearer of a token for; empty: nobody.
pub async fn bearer(cluster: &Hollow, token: &str) -> String {
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": {"token": token}});
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    let answer: Value = cluster.client.call(Method::POST, path, Some(&review)).await.expect("review");
    answer["status"]["user"]["username"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_is_given_a_token_of_its_account_and_ends_with_it() {
    let cluster = Hollow::start().await;
    let account = cluster.create::<ServiceAccount>("d", json!({"metadata": {"name": "robot"}})).await;
    cluster.create::<Secret>("d", secret("key", "robot")).await;
    let key = until(&cluster, "a token", "key", |s| !text(s, "token").is_empty()).await;
    assert_eq!((text(&key, "ca.crt").as_str(), text(&key, "namespace").as_str()), ("the CA", "d"));
    let notes: BTreeMap<_, _> = key.metadata.annotations.clone().expect("annotations");
    assert_eq!(notes.get("kubernetes.io/service-account.uid"), account.metadata.uid.as_ref());

    let token = text(&key, "token");
    assert_eq!(bearer(&cluster, &token).await, "system:serviceaccount:d:robot");
    until(&cluster, "its use is noted", "key", |s| label(s, LAST_USED).len() == 10).await;
    // What is taken out comes back; a token that the Secret does not hold any more holds nowhere.
    cluster.merge::<Secret>("d", "key", json!({"data": {"ca.crt": null, "token": null}})).await;
    let again = until(&cluster, "filled again", "key", |s| {
        text(s, "ca.crt") == "the CA" && !text(s, "token").is_empty()
    })
    .await;
    assert_eq!(bearer(&cluster, &text(&again, "token")).await, "system:serviceaccount:d:robot");
    assert_ne!(token, text(&again, "token"));
    assert_eq!(bearer(&cluster, &token).await, "");

    cluster.create::<Secret>("d", secret("nobodys", "nobody")).await;
    cluster
        .until::<Secret>("nobody's is gone", |l| {
            l.iter().all(|s| s.metadata.name.as_deref() != Some("nobodys"))
        })
        .await;
    cluster.delete::<ServiceAccount>("d", "robot", "Background").await;
    cluster
        .until::<Secret>("gone with its account", |l| {
            l.iter().all(|s| s.metadata.name.as_deref() != Some("key"))
        })
        .await;
    assert_eq!(bearer(&cluster, &text(&again, "token")).await, "");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_forgets_a_secret_that_is_gone() {
    let cluster = Hollow::start().await;
    let named = json!({"metadata": {"name": "robot"}, "secrets": [{"name": "key"}, {"name": "other"}]});
    cluster.create::<ServiceAccount>("d", named).await;
    cluster.create::<Secret>("d", secret("key", "robot")).await;
    until(&cluster, "a token", "key", |s| !text(s, "token").is_empty()).await;
    cluster.delete::<Secret>("d", "key", "Background").await;
    cluster
        .until::<ServiceAccount>("forgotten", |l| {
            let robot = l.iter().find(|a| a.metadata.name.as_deref() == Some("robot")).expect("account");
            let names = robot.secrets.iter().flatten().filter_map(|r| r.name.as_deref());
            names.eq(["other"])
        })
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_an_old_cluster_made_is_refused_after_a_year_without_use_and_then_goes() {
    const YEAR: i64 = 367 * 24 * 3600;
    let cluster = Hollow::start().await;
    let named = json!({"metadata": {"name": "robot"}, "secrets": [{"name": "old"}]});
    cluster.create::<ServiceAccount>("d", named).await;
    for name in ["old", "manual"] {
        cluster.create::<Secret>("d", secret(name, "robot")).await;
    }
    let old = until(&cluster, "a token", "old", |s| !text(s, "token").is_empty()).await;
    let manual = until(&cluster, "a token", "manual", |s| !text(s, "token").is_empty()).await;
    let volume = json!({"name": "v", "secret": {"secretName": "old"}});
    let user = json!({"metadata": {"name": "user", "labels": {"hold": ""}},
        "spec": {"containers": [{"name": "c", "image": "i"}], "volumes": [volume]}});
    cluster.create::<Pod>("d", user).await;
    cluster.until::<Pod>("seen", |l| l.len() == 1).await;

    // A write stands for the timer. A pod mounts the Secret: it stays as it is, and is looked at when the pod is gone.
    cluster.clock.advance(YEAR);
    for name in ["old", "manual"] {
        cluster.look::<Secret>("d", name).await;
    }
    cluster.delete::<Pod>("d", "user", "Background").await;
    until(&cluster, "marked", "old", |s| !label(s, INVALID_SINCE).is_empty()).await;
    assert_eq!(bearer(&cluster, &text(&old, "token")).await, "");
    until(&cluster, "the try is noted", "old", |s| !label(s, LAST_USED).is_empty()).await;
    cluster.clock.advance(YEAR);
    cluster.look::<Secret>("d", "old").await;
    let left = cluster
        .until::<Secret>("gone", |l| l.iter().all(|s| s.metadata.name.as_deref() != Some("old")))
        .await;
    let same = left.iter().find(|s| s.metadata.uid == manual.metadata.uid).expect("manual");
    assert_eq!(label(same, INVALID_SINCE), "");
    assert_eq!(bearer(&cluster, &text(&manual, "token")).await, "system:serviceaccount:d:robot");
    let since = cluster
        .client
        .get::<ConfigMap>("kube-system", "kube-apiserver-legacy-service-account-token-tracking")
        .await
        .expect("tracking");
    assert_eq!(since.data.expect("data")["since"].len(), 10);
    cluster.stop().await;
}
