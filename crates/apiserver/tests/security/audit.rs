//! What the audit log says about requests.

use std::path::Path;
use std::time::{Duration, Instant};

use apiserver::Options;
use apiserver::options::LogOptions;
use http::Method;
use serde_json::{Value, json};

use crate::cluster::{Cluster, send, send_with, write};

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
    let until = Instant::now() + Duration::from_secs(10);
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
