//! What the audit log says about requests.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use apiserver::Options;
use apiserver::options::{AuditMode, LogOptions, WebhookOptions};
use http::Method;
use serde_json::{Value, json};

use crate::cluster::{Cluster, send, send_with, write};
use crate::outside::Outside;

const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, userGroups: ["system:authenticated"], resources: [{group: "", resources: [secrets]}], namespaces: [a]}
- {level: RequestResponse, omitManagedFields: true, resources: [{group: "", resources: [configmaps]}], namespaces: [a]}
- {level: Metadata, verbs: [watch], resources: [{group: "", resources: [pods]}]}
- {level: None}
"#;

/// The events once there are `count` of them.
async fn events(log: &Path, count: usize) -> Vec<Value> {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let events: Vec<Value> = text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
        if events.len() >= count {
            return events;
        }
        assert!(Instant::now() < until, "{} of {count} events: {text}", events.len());
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_policy_says_what_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("logs/audit.log");
    let options = Options {
        audit_policy_file: Some(write(dir.path(), "policy.yaml", POLICY)),
        audit_log: LogOptions { path: log.clone(), ..LogOptions::default() },
        ..Options::default()
    };
    let cluster = Cluster::in_dir(dir, options).await.unwrap();
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"p": "hidden"}});
    cluster.make("/api/v1/namespaces/a/secrets", secret).await;
    let config =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"k": "shown"}});
    let headers =
        [("impersonate-user", "ann"), ("impersonate-group", "system:masters"), ("audit-id", "mine")];
    let path = "/api/v1/namespaces/a/configmaps";
    let (code, answered, _) = send_with(&cluster.admin, Method::POST, path, &headers, config).await;
    assert_eq!((code, answered.get("audit-id").unwrap().to_str().unwrap()), (201, "mine"));
    let viewer = cluster.user("v", &[]);
    assert_eq!(send(&viewer, Method::GET, path, Value::Null).await.0, 403);
    let watch = "/api/v1/pods?watch=1&timeoutSeconds=1";
    assert_eq!(cluster.get(watch).await.0, 200);

    let events = events(&log, 5).await;
    assert!(events.iter().all(|e| e["kind"] == "Event" && e["apiVersion"] == "audit.k8s.io/v1"));
    let [secret, config, refused, started, ended] = &events[..] else { panic!("{events:?}") };
    assert_eq!((&secret["level"], &secret["stage"]), (&json!("Metadata"), &json!("ResponseComplete")));
    assert_eq!(secret["responseStatus"]["code"], 201);
    assert!(!secret.to_string().contains("hidden") && secret.get("requestObject").is_none());
    assert_eq!(secret["annotations"]["authorization.k8s.io/decision"], "allow");

    assert_eq!(
        (&config["user"]["username"], &config["impersonatedUser"]["username"]),
        (&json!("admin"), &json!("ann"))
    );
    assert_eq!(
        config["objectRef"],
        json!({"resource": "configmaps", "namespace": "a", "name": "c", "apiVersion": "v1"})
    );
    assert_eq!(config["requestObject"]["data"]["k"], "shown");
    assert_eq!(config["responseObject"]["data"]["k"], "shown");
    assert!(config["responseObject"]["metadata"].get("managedFields").is_none());
    assert_eq!(config["sourceIPs"], json!(["127.0.0.1"]));

    assert_eq!(refused["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert_eq!(
        (&refused["responseStatus"]["code"], &refused["responseStatus"]["reason"]),
        (&json!(403), &json!("Forbidden"))
    );
    assert_eq!((&started["stage"], &ended["stage"]), (&json!("ResponseStarted"), &json!("ResponseComplete")));
    assert_eq!(started["auditID"], ended["auditID"]);
}

const CONFIGS: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
rules:
- {level: Request, resources: [{group: "", resources: [configmaps]}], namespaces: [a]}
- {level: None}
"#;

fn config(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v".repeat(2000)}})
}

fn to_webhook(dir: &Path, outside: &Outside, options: WebhookOptions) -> Options {
    Options {
        audit_policy_file: Some(write(dir, "policy.yaml", CONFIGS)),
        audit_webhook: WebhookOptions { config_file: Some(outside.kubeconfig(dir)), ..options },
        ..Options::default()
    }
}

#[tokio::test]
async fn events_go_to_the_webhook_in_batches_and_again_where_they_were_not_taken() {
    let taken: Arc<Mutex<Vec<Value>>> = Arc::default();
    let (lists, refused) = (taken.clone(), Mutex::new(false));
    let outside = Outside::start(move |_, list| {
        if !std::mem::replace(&mut *refused.lock().unwrap(), true) {
            return json!(503);
        }
        lists.lock().unwrap().push(list);
        json!({})
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let webhook = WebhookOptions {
        batch_max_size: 4,
        batch_max_wait: Duration::from_millis(200),
        initial_backoff: Duration::from_millis(20),
        truncate: true,
        truncate_max_event_size: 1500,
        ..WebhookOptions::default()
    };
    let options = to_webhook(dir.path(), &outside, webhook);
    let cluster = Cluster::in_dir(dir, options).await.unwrap();
    for name in ["c", "d", "e"] {
        cluster.make("/api/v1/namespaces/a/configmaps", config(name)).await;
    }
    let until = Instant::now() + Duration::from_secs(20);
    let events = loop {
        let lists = taken.lock().unwrap().clone();
        let events: Vec<Value> = lists.iter().flat_map(|l| l["items"].as_array().unwrap().clone()).collect();
        if events.len() >= 6 {
            assert!(lists.iter().all(|l| l["kind"] == "EventList" && l["apiVersion"] == "audit.k8s.io/v1"));
            assert!(lists.iter().all(|l| l["items"].as_array().unwrap().len() <= 4), "{lists:?}");
            break events;
        }
        assert!(Instant::now() < until, "{events:?}");
        tokio::task::yield_now().await;
    };
    assert_eq!(events.len(), 6, "each request twice: when it came and when it was answered");
    let complete = events.iter().filter(|e| e["stage"] == "ResponseComplete");
    for event in complete {
        assert_eq!(event["annotations"]["audit.k8s.io/truncated"], "true");
        assert!(event.get("requestObject").is_none());
    }
}

#[tokio::test]
async fn a_strict_webhook_that_does_not_take_the_first_event_refuses_the_request() {
    let outside = Outside::start(|_, _| json!(403)).await;
    let dir = tempfile::tempdir().unwrap();
    let webhook = WebhookOptions { mode: AuditMode::BlockingStrict, ..WebhookOptions::default() };
    let options = to_webhook(dir.path(), &outside, webhook);
    let cluster = Cluster::in_dir(dir, options).await.unwrap();
    let path = "/api/v1/namespaces/a/configmaps";
    assert_eq!(cluster.post(path, config("c")).await.0, 500);
    let viewed = cluster.get("/api/v1/configmaps").await.1;
    assert!(
        viewed["items"].as_array().unwrap().iter().all(|c| c["metadata"]["name"] != "c"),
        "nothing was done"
    );
}
