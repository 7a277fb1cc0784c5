//! Groups that other servers answer for.

use std::time::Duration;

use http::{Method, Request};
use serde_json::{Value, json};

use crate::cluster::{Cluster, send, send_with};
use crate::program::{Answer, Program};

const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const GROUP: &str = "/apis/m.example.com";

/// An aggregated server: lists its resources, and tells who it thinks asks for anything else.
fn serve(request: &Request<bytes::Bytes>, body: &Value) -> Answer {
    let header = |name: &str| -> Vec<String> {
        request.headers().get_all(name).iter().map(|v| v.to_str().unwrap().to_owned()).collect()
    };
    if request.uri().path() == "/apis/m.example.com/v1" {
        let metrics = json!({"name": "metrics", "singularName": "metric", "namespaced": true, "kind": "Metric",
            "verbs": ["get", "list"]});
        return (
            200,
            json!({"kind": "APIResourceList", "groupVersion": "m.example.com/v1", "resources": [metrics]}),
        );
    }
    if request.uri().path() == "/openapi/v2" {
        let meta = json!({"description": "not the one that is known", "type": "object"});
        let name = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
        let item =
            json!({"get": {"responses": {"200": {"schema": {"$ref": format!("#/definitions/{name}")}}}}});
        return (
            200,
            json!({"swagger": "2.0", "paths": {"/apis/m.example.com/v1/metrics": item, "/api/": {}}, "definitions": {name: meta}}),
        );
    }
    let seen = json!({"path": request.uri().to_string(), "method": request.method().as_str(), "body": body,
        "user": header("x-remote-user"), "groups": header("x-remote-group"),
        "authorization": header("authorization")});
    (200, seen)
}

async fn register(cluster: &Cluster, program: &Program, name: &str) {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"type": "ExternalName", "externalName": "localhost"}});
    cluster.make("/api/v1/namespaces/a/services", service).await;
    let reference = json!({"namespace": "a", "name": name, "port": program.address.port()});
    let object = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": "v1.m.example.com"},
        "spec": {"group": "m.example.com", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 10,
            "caBundle": program.bundle, "service": reference}});
    cluster.make(SERVICES, object).await;
}

/// Waits until the condition has this reason; its message.
async fn reason(cluster: &Cluster, wanted: &str) -> String {
    let path = format!("{SERVICES}/v1.m.example.com");
    let condition = async {
        loop {
            let (_, service) = cluster.get(&path).await;
            let condition = &service["status"]["conditions"][0];
            if condition["reason"] == wanted {
                return condition["message"].as_str().unwrap().to_owned();
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), condition).await.expect("the condition comes")
}

#[tokio::test]
async fn requests_reach_the_server_that_answers_for_a_group_in_the_callers_name() {
    let cluster = Cluster::start().await;
    let program = Program::start(&["s.a.svc"], serve).await;
    register(&cluster, &program, "s").await;
    assert_eq!(reason(&cluster, "Passed").await, "all checks passed");

    let path = format!("{GROUP}/v1/namespaces/a/metrics?limit=5");
    let headers = [("x-remote-user", "mallory"), ("x-remote-group", "system:masters")];
    let body = json!({"a": "b"});
    let alice = cluster.user("alice", &["system:masters"]);
    let (code, _, seen) = send_with(&alice, Method::POST, &path, &headers, body.clone()).await;
    assert_eq!(code, 200);
    let groups = json!(["system:masters", "system:authenticated"]);
    assert_eq!(
        seen,
        json!({"path": path, "method": "POST", "body": body, "user": ["alice"], "groups": groups,
            "authorization": []})
    );
    // its OpenAPI v2 document is joined with ours
    let (_, document) = cluster.get("/openapi/v2").await;
    let schema = &document["paths"]["/apis/m.example.com/v1/metrics"]["get"]["responses"]["200"]["schema"];
    assert_eq!(schema["$ref"], "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta_v2");
    assert!(document["paths"]["/api/v1/pods"].is_object() && document["paths"].get("/api/").is_none());
    // the others are its own
    let (_, index) = cluster.get("/openapi/v3").await;
    let page = index["paths"]["apis/m.example.com/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    let (_, seen) = cluster.get(&page).await;
    assert_eq!(seen["path"], "/openapi/v3/apis/m.example.com/v1");
    // who may not, is refused before
    let bob = cluster.user("bob", &[]);
    assert_eq!(send(&bob, Method::GET, &path, Value::Null).await.0, 403);
}

#[tokio::test]
async fn discovery_shows_what_other_servers_answer_for() {
    let cluster = Cluster::start().await;
    let program = Program::start(&["s.a.svc"], serve).await;
    register(&cluster, &program, "s").await;
    reason(&cluster, "Passed").await;
    let (_, groups) = cluster.get("/apis").await;
    let ours = groups["groups"].as_array().unwrap().last().unwrap().clone();
    let version = json!({"groupVersion": "m.example.com/v1", "version": "v1"});
    assert_eq!(ours, json!({"name": "m.example.com", "versions": [version], "preferredVersion": version}));
    let (code, group) = cluster.get(GROUP).await;
    assert_eq!((code, &group["kind"]), (200, &json!("APIGroup")));
    let (_, resources) = cluster.get(&format!("{GROUP}/v1")).await;
    assert_eq!(resources["resources"][0]["kind"], "Metric");
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let aggregated = async || {
        let (_, _, list) =
            send_with(&cluster.admin, Method::GET, "/apis", &[("accept", accept)], Value::Null).await;
        let items = list["items"].as_array().unwrap();
        items.iter().find(|g| g["metadata"]["name"] == "m.example.com").unwrap()["versions"][0].clone()
    };
    let current = aggregated().await;
    assert_eq!(current["freshness"], "Current");
    assert_eq!(current["resources"][0]["responseKind"]["kind"], "Metric");
    // a service that goes takes the server with it; what it served is remembered
    let path = "/api/v1/namespaces/a/services/s";
    assert_eq!(send(&cluster.admin, Method::DELETE, path, Value::Null).await.0, 200);
    assert_eq!(reason(&cluster, "ServiceNotFound").await, "service/s in \"a\" is not present");
    let stale = aggregated().await;
    assert_eq!((&stale["freshness"], &stale["resources"]), (&json!("Stale"), &current["resources"]));
    let request = Request::get(format!("{GROUP}/v1/metrics")).body(bytes::Bytes::new()).unwrap();
    let answer = cluster.admin.request(request).await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.body().as_ref()), (503, &b"service unavailable\n"[..]));
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_not_available() {
    let cluster = Cluster::start().await;
    let program = Program::start(&["s.a.svc"], |_, _| (503, json!("later"))).await;
    register(&cluster, &program, "s").await;
    let message = reason(&cluster, "FailedDiscoveryCheck").await;
    let url = format!("https://localhost:{}/apis/m.example.com/v1", program.address.port());
    assert_eq!(message, format!("failing or missing response from {url}: bad status from {url}: 503"));
}

#[tokio::test]
async fn other_servers_can_read_whom_to_believe() {
    let cluster = Cluster::start().await;
    let path = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
    let (code, map) = cluster.get(path).await;
    assert_eq!(code, 200);
    let data = &map["data"];
    assert_eq!(data["client-ca-file"], cluster.api.server.pki().ca_pem());
    assert_eq!(data["requestheader-client-ca-file"], cluster.api.server.pki().front_proxy_ca_pem());
    assert_ne!(data["requestheader-client-ca-file"], data["client-ca-file"]);
    assert_eq!(data["requestheader-allowed-names"], r#"["front-proxy-client"]"#);
}
