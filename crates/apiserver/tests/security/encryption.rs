//! What stands in the store, and what reads make of damage, other keys and rotation.

use std::os::unix::fs::PermissionsExt as _;

use apiserver::Options;
use http::Method;
use serde_json::{Value, json};
use store::{Put, Store as _};

use crate::cluster::{Cluster, send, write};

const SECRETS: &str = "/api/v1/namespaces/a/secrets";
const KEY: &str = "/registry/core/secrets/a/s";

fn secret(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"p": "hunter2-in-the-clear"}})
}

async fn stored(cluster: &Cluster, key: &str) -> Vec<u8> {
    cluster.api.store.get(key, None).await.unwrap().0.unwrap().value.to_vec()
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|w| w == text.as_bytes())
}

/// base64 of `hunter2-in-the-clear`
const DATA: &str = "aHVudGVyMi1pbi10aGUtY2xlYXI=";

#[tokio::test]
async fn a_secret_is_never_stored_in_the_clear() {
    let cluster = Cluster::start().await;
    cluster.make(SECRETS, secret("s")).await;
    assert_eq!(cluster.get(&format!("{SECRETS}/s")).await.1["data"]["p"], DATA);
    let bytes = stored(&cluster, KEY).await;
    assert!(bytes.starts_with(b"k8s:enc:aesgcm:v1:key1:"));
    assert!(!contains(&bytes, DATA));
    let dir = cluster.stop().await;
    for entry in std::fs::read_dir(dir.path().join("store")).unwrap() {
        let file = entry.unwrap().path();
        if file.is_file() {
            assert!(!contains(&std::fs::read(&file).unwrap(), DATA), "{file:?}");
        }
    }
    let mode = std::fs::metadata(dir.path().join("pki/encryption-config.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // the next start reads it
    let cluster = Cluster::in_dir(dir, Options::default()).await.unwrap();
    assert_eq!(cluster.get(&format!("{SECRETS}/s")).await.1["data"]["p"], DATA);
}

#[tokio::test]
async fn damage_is_named_and_concerns_one_object() {
    let cluster = Cluster::start().await;
    cluster.make(SECRETS, secret("s")).await;
    cluster.make(SECRETS, secret("t")).await;
    let mut bytes = stored(&cluster, KEY).await;
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    cluster.api.store.put(Put::set(KEY, bytes)).await.unwrap();
    // a value that was moved from another object
    let moved = stored(&cluster, "/registry/core/secrets/a/t").await;
    cluster.api.store.put(Put::set("/registry/core/secrets/a/u", moved)).await.unwrap();
    for name in ["s", "u"] {
        let (code, status) = cluster.get(&format!("{SECRETS}/{name}")).await;
        assert_eq!(code, 500);
        let message = status["message"].as_str().unwrap();
        assert!(message.contains(&format!("/registry/core/secrets/a/{name}")), "{message}");
        assert!(message.contains("damaged"), "{message}");
    }
    let (code, list) = cluster.get(SECRETS).await;
    assert_eq!((code, list["items"].as_array().unwrap().len()), (200, 1));
    // it can be removed by who says that he means it
    let path = format!("{SECRETS}/s");
    assert_eq!(send(&cluster.admin, Method::DELETE, &path, Value::Null).await.0, 500);
    let meant = format!("{path}?ignoreStoreReadErrorWithClusterBreakingPotential=true");
    assert_eq!(send(&cluster.admin, Method::DELETE, &meant, Value::Null).await.0, 200);
    assert_eq!(cluster.get(&path).await.0, 404);
    cluster.make(SECRETS, secret("s")).await;
}

#[tokio::test]
async fn a_lost_key_is_named() {
    let cluster = Cluster::start().await;
    cluster.make(SECRETS, secret("s")).await;
    let dir = cluster.stop().await;
    std::fs::remove_file(dir.path().join("pki/encryption-config.json")).unwrap();
    let config = write(
        dir.path(),
        "enc.yaml",
        "{kind: EncryptionConfiguration, apiVersion: apiserver.config.k8s.io/v1, resources: [{resources: [secrets], providers: [{identity: {}}]}]}",
    );
    let options = Options { encryption_provider_config: Some(config), ..Options::default() };
    let cluster = Cluster::in_dir(dir, options).await.unwrap();
    let (code, status) = cluster.get(&format!("{SECRETS}/s")).await;
    assert_eq!(code, 500);
    assert!(status["message"].as_str().unwrap().contains("aesgcm:v1:key1"), "{status}");
    assert_eq!(cluster.get("/api/v1/namespaces/a").await.0, 200);
}

#[tokio::test]
async fn a_rotation_leaves_nothing_under_the_old_key() {
    let cluster = Cluster::start().await;
    for name in ["s", "t", "u"] {
        cluster.make(SECRETS, secret(name)).await;
    }
    let (code, report) = cluster.post("/navarch/v1/secrets-encryption/rotate", Value::Null).await;
    assert_eq!((code, &report["rewritten"]), (200, &json!(3)), "{report}");
    assert!(stored(&cluster, KEY).await.starts_with(b"k8s:enc:aesgcm:v1:key2:"));
    let (_, status) = cluster.get("/navarch/v1/secrets-encryption").await;
    assert_eq!(status["values"], json!({"aesgcm:v1:key2": 3}));
    assert_eq!(cluster.get(&format!("{SECRETS}/s")).await.1["data"]["p"], DATA);
    let viewer = cluster.user("v", &[]);
    let path = "/navarch/v1/secrets-encryption/rotate";
    assert_eq!(send(&viewer, Method::POST, path, Value::Null).await.0, 403);
}

#[tokio::test]
async fn a_given_configuration_rules_and_moves_what_is_there() {
    let cluster = Cluster::start().await;
    cluster.make(SECRETS, secret("s")).await;
    let dir = cluster.stop().await;
    let own = std::fs::read_to_string(dir.path().join("pki/encryption-config.json")).unwrap();
    let own: Value = serde_json::from_str(&own).unwrap();
    let old = own["resources"][0]["providers"][0].clone();
    let key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    let of = |name: &str| json!({name: {"keys": [{"name": "mine", "secret": key}]}});
    let config = json!({"kind": "EncryptionConfiguration", "apiVersion": "apiserver.config.k8s.io/v1", "resources": [
        {"resources": ["secrets"], "providers": [of("secretbox"), old]},
        {"resources": ["*.apps"], "providers": [of("aescbc"), {"identity": {}}]},
        {"resources": ["configmaps"], "providers": [{"identity": {}}, of("aesgcm")]}]});
    let file = write(dir.path(), "enc.json", &config.to_string());
    let options = Options { encryption_provider_config: Some(file), ..Options::default() };
    let cluster = Cluster::in_dir(dir, options).await.unwrap();
    assert_eq!(cluster.get(&format!("{SECRETS}/s")).await.1["data"]["p"], DATA);
    assert!(stored(&cluster, KEY).await.starts_with(b"k8s:enc:aesgcm:"));
    let (code, report) = cluster.post("/navarch/v1/secrets-encryption/reencrypt", Value::Null).await;
    assert_eq!((code, &report["rewritten"]), (200, &json!(1)), "{report}");
    assert!(stored(&cluster, KEY).await.starts_with(b"k8s:enc:secretbox:v1:mine:"));
    let spec = json!({"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "template": {
        "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}});
    let deployment =
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec});
    cluster.make("/apis/apps/v1/namespaces/a/deployments", deployment).await;
    let bytes = stored(&cluster, "/registry/apps/deployments/a/d").await;
    assert!(bytes.starts_with(b"k8s:enc:aescbc:v1:mine:"));
    assert_eq!(cluster.get("/apis/apps/v1/namespaces/a/deployments/d").await.0, 200);
    cluster
        .make(
            "/api/v1/namespaces/a/configmaps",
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}),
        )
        .await;
    assert!(stored(&cluster, "/registry/core/configmaps/a/c").await.starts_with(b"{"));
    // the keys are the administrator's
    let (code, status) = cluster.post("/navarch/v1/secrets-encryption/rotate", Value::Null).await;
    assert_eq!(code, 400, "{status}");
}
