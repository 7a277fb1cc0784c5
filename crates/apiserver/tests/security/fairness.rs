//! What flow schemas and priority levels do to requests.

use std::time::{Duration, Instant};

use client::Client;
use http::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::cluster::{Cluster, send, send_with};

const LEVELS: &str = "/apis/flowcontrol.apiserver.k8s.io/v1/prioritylevelconfigurations";
const SCHEMAS: &str = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas";
const CONFIGS: &str = "/api/v1/namespaces/a/configmaps";

fn level(name: &str, limited: Value) -> Value {
    json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "PriorityLevelConfiguration",
        "metadata": {"name": name}, "spec": {"type": "Limited", "limited": limited}})
}

/// A schema of all that `user` does.
fn schema(name: &str, level: &str, user: &str) -> Value {
    json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": {"name": name},
        "spec": {"matchingPrecedence": 10, "priorityLevelConfiguration": {"name": level},
            "rules": [{"subjects": [{"kind": "User", "user": {"name": user}}],
                "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true,
                    "namespaces": ["*"]}]}]}})
}

/// The uids of flow schema and priority level that an answer names.
async fn marks(client: &Client, path: &str) -> (u16, [String; 2]) {
    let (code, headers, _) = send_with(client, Method::GET, path, &[], Value::Null).await;
    let names = ["x-kubernetes-pf-flowschema-uid", "x-kubernetes-pf-prioritylevel-uid"];
    (code, names.map(|name| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned()))
}

/// Asks until an answer is as it should be.
async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(Instant::now() < end, "{what}");
        tokio::task::yield_now().await;
    }
}

async fn uid(cluster: &Cluster, path: &str) -> String {
    cluster.get(path).await.1["metadata"]["uid"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn an_answer_names_its_flow_and_level_by_uid() {
    let cluster = Cluster::start().await;
    let viewer = cluster.user("v", &[]);
    let of = async |flow: &str, level: &str| {
        [uid(&cluster, &format!("{SCHEMAS}/{flow}")).await, uid(&cluster, &format!("{LEVELS}/{level}")).await]
    };
    let exempt = of("exempt", "exempt").await;
    assert_eq!(marks(&cluster.admin, CONFIGS).await, (200, exempt));
    // before anybody asks whether it may
    let default = of("global-default", "global-default").await;
    assert_eq!(marks(&viewer, CONFIGS).await, (403, default));
    let probes = of("probes", "exempt").await;
    assert_eq!(marks(&viewer, "/healthz").await, (200, probes));

    // a new schema counts at once, and no more once it is gone
    cluster.make(LEVELS, level("few", json!({"limitResponse": {"type": "Reject"}}))).await;
    cluster.make(SCHEMAS, schema("of-v", "few", "v")).await;
    let few = of("of-v", "few").await;
    until("the new schema counts", async || (marks(&viewer, CONFIGS).await.1 == few).then_some(())).await;
    send(&cluster.admin, Method::DELETE, &format!("{SCHEMAS}/of-v"), Value::Null).await;
    until("it no longer counts", async || (marks(&viewer, CONFIGS).await.1 != few).then_some(())).await;
}

/// Waits for a revision that does not come, and so keeps its seat for three seconds.
const SLOW: &str = "/api/v1/namespaces/a/configmaps?resourceVersion=999999999";

/// Asks for what keeps a seat, again and again until dropped: one that came beside another request of its level
/// was refused, and each ends after its three seconds, however slow this machine is.
fn keeps_a_seat(client: &Client) -> JoinSet<()> {
    let client = client.clone();
    let mut set = JoinSet::new();
    set.spawn(async move {
        loop {
            let code = send(&client, Method::GET, SLOW, Value::Null).await.0;
            assert!(matches!(code, 429 | 504), "{code}");
        }
    });
    set
}

#[tokio::test]
async fn a_level_without_seats_refuses_or_queues_and_others_do_not_notice() {
    let cluster = Cluster::start().await;
    let user = |name| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name});
    let subjects = ["v", "w"].map(user);
    let bind = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "b"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
            "name": "cluster-admin"},
        "subjects": subjects});
    cluster.make("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", bind).await;
    // a level without shares runs one request at a time
    let none = |response: Value| json!({"nominalConcurrencyShares": 0, "borrowingLimitPercent": 0, "limitResponse": response});
    cluster.make(LEVELS, level("none", none(json!({"type": "Reject"})))).await;
    let queue = json!({"queues": 1, "handSize": 1, "queueLengthLimit": 1});
    cluster.make(LEVELS, level("line", none(json!({"type": "Queue", "queuing": queue})))).await;
    let (v, w) = (cluster.user("v", &[]), cluster.user("w", &[]));
    for (user, level) in [(&v, "none"), (&w, "line")] {
        let name = if level == "none" { "v" } else { "w" };
        cluster.make(SCHEMAS, schema(level, level, name)).await;
        let uid = uid(&cluster, &format!("{SCHEMAS}/{level}")).await;
        until("the schema counts", async || (marks(user, CONFIGS).await.1[0] == uid).then_some(())).await;
    }

    let _first = keeps_a_seat(&v);
    let refused = until("the second is refused", async || {
        let answer = send_with(&v, Method::GET, CONFIGS, &[], Value::Null).await;
        (answer.0 == 429).then_some(answer)
    })
    .await;
    assert_eq!(refused.1["retry-after"], "1");
    assert_eq!(refused.1["content-type"], "text/plain; charset=utf-8");
    assert!(refused.1.contains_key("x-kubernetes-pf-prioritylevel-uid"));
    assert_eq!(cluster.get(CONFIGS).await.0, 200, "the exempt");

    let dump = "/debug/api_priority_and_fairness/dump_priority_levels";
    let runs_and_waits = async || {
        let (_, page) = text(&cluster.admin, dump).await;
        let line = page.lines().find(|line| line.starts_with("line,")).unwrap().to_owned();
        let cells: Vec<&str> = line.split(',').map(str::trim).collect();
        (cells[5].to_owned(), cells[4].to_owned())
    };
    let _runs = keeps_a_seat(&w);
    until("it runs", async || (runs_and_waits().await == ("1".into(), "0".into())).then_some(())).await;
    let _waits = keeps_a_seat(&w);
    until("it waits", async || (runs_and_waits().await == ("1".into(), "1".into())).then_some(())).await;
    until("the queue is full", async || {
        (send(&w, Method::GET, CONFIGS, Value::Null).await.0 == 429).then_some(())
    })
    .await;

    let (_, page) = text(&cluster.admin, "/metrics").await;
    for (level, reason) in [("none", "concurrency-limit"), ("line", "queue-full")] {
        let labels = format!("flow_schema={level:?},priority_level={level:?},reason={reason:?}");
        let line = format!("apiserver_flowcontrol_rejected_requests_total{{{labels}}}");
        assert!(page.contains(&line), "{line} in {page}");
    }
    assert_eq!(text(&cluster.user("nobody", &[]), "/metrics").await.0, 403);
}

async fn text(client: &Client, path: &str) -> (u16, String) {
    let request = http::Request::get(path).body(bytes::Bytes::new()).unwrap();
    let answer = client.request(request).await.unwrap();
    (answer.status().as_u16(), String::from_utf8_lossy(answer.body()).into_owned())
}

#[tokio::test]
async fn a_schema_says_whether_its_level_is_there() {
    let cluster = Cluster::start().await;
    cluster.make(SCHEMAS, schema("s", "missing", "v")).await;
    let path = format!("{SCHEMAS}/s");
    let condition = async |status: &str| {
        until(status, async || {
            let found = cluster.get(&path).await.1["status"]["conditions"][0].clone();
            (found["status"] == status).then_some(found)
        })
        .await
    };
    let dangling = condition("True").await;
    assert_eq!((&dangling["type"], &dangling["reason"]), (&json!("Dangling"), &json!("NotFound")));
    assert_eq!(
        dangling["message"],
        "This FlowSchema references the PriorityLevelConfiguration object named \"missing\" but there is no such object"
    );
    cluster.make(LEVELS, level("missing", json!({"limitResponse": {"type": "Reject"}}))).await;
    assert_eq!(condition("False").await["reason"], "Found");
}

#[tokio::test]
async fn default_objects_come_back_and_keep_their_specification_unless_told_otherwise() {
    let cluster = Cluster::start().await;
    cluster.make(LEVELS, level("own", json!({"limitResponse": {"type": "Reject"}}))).await;
    cluster.make(SCHEMAS, schema("own", "own", "v")).await;
    until("a condition", async || {
        cluster.get(&format!("{SCHEMAS}/own")).await.1["status"]["conditions"].is_array().then_some(())
    })
    .await;
    for kind in [LEVELS, SCHEMAS] {
        for object in cluster.get(kind).await.1["items"].as_array().unwrap() {
            assert_eq!(object["metadata"]["generation"], 1, "nothing was to be done to {object}");
        }
    }
    let path = format!("{SCHEMAS}/global-default");
    let before = cluster.get(&path).await.1;
    assert_eq!(send(&cluster.admin, Method::DELETE, &path, Value::Null).await.0, 200);
    until("it is made anew", async || {
        let (code, made) = cluster.get(&path).await;
        (code == 200
            && made["metadata"]["uid"] != before["metadata"]["uid"]
            && made["spec"] == before["spec"])
            .then_some(())
    })
    .await;
    let change = json!({"spec": {"matchingPrecedence": 9000}});
    assert_eq!(send(&cluster.admin, Method::PATCH, &path, change).await.0, 200);
    until("the server's is put back", async || {
        (cluster.get(&path).await.1["spec"] == before["spec"]).then_some(())
    })
    .await;
    let own = json!({"metadata": {"annotations": {"apf.kubernetes.io/autoupdate-spec": "false"}},
        "spec": {"matchingPrecedence": 9000}});
    assert_eq!(send(&cluster.admin, Method::PATCH, &path, own).await.0, 200);
    // a later change is seen to be acted on, this one was before it
    cluster.make(SCHEMAS, schema("s", "missing", "v")).await;
    until("the later one is acted on", async || {
        cluster.get(&format!("{SCHEMAS}/s")).await.1["status"]["conditions"].is_array().then_some(())
    })
    .await;
    assert_eq!(cluster.get(&path).await.1["spec"]["matchingPrecedence"], 9000);
}
