//! Objects that a change or an apply makes: of which kinds, and who may.

use bytes::Bytes;
use client::Client;
use http::{Method, Request};
use serde_json::{Value, json};

use crate::cluster::{Answer, Cluster, send};

async fn apply(client: &Client, path: &str, body: &Value) -> Answer {
    let request = Request::patch(path).header("content-type", "application/apply-patch+yaml");
    let answer = client.request(request.body(Bytes::from(body.to_string())).unwrap()).await.unwrap();
    (answer.status().as_u16(), serde_json::from_slice(answer.body()).unwrap_or_default())
}

#[tokio::test]
async fn a_put_makes_objects_of_the_older_kinds_only() {
    let cluster = Cluster::start().await;
    let port = json!([{"port": 80}]);
    for (path, body, code) in [
        ("/api/v1/namespaces/a/services/s", json!({"metadata": {"name": "s"}, "spec": {"ports": port}}), 201),
        ("/api/v1/namespaces/a/endpoints/s", json!({"metadata": {"name": "s"}}), 201),
        (
            "/api/v1/namespaces/a/limitranges/l",
            json!({"metadata": {"name": "l"}, "spec": {"limits": []}}),
            201,
        ),
        ("/apis/node.k8s.io/v1/runtimeclasses/r", json!({"metadata": {"name": "r"}, "handler": "h"}), 201),
        ("/apis/coordination.k8s.io/v1/namespaces/a/leases/l", json!({"metadata": {"name": "l"}}), 201),
        ("/api/v1/namespaces/a/configmaps/c", json!({"metadata": {"name": "c"}}), 404),
        (
            "/apis/discovery.k8s.io/v1/namespaces/a/endpointslices/s",
            json!({"metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": []}),
            404,
        ),
    ] {
        let (found, answer) = send(&cluster.admin, Method::PUT, path, body).await;
        assert_eq!(found, code, "{path}: {answer}");
    }
}

#[tokio::test]
async fn a_put_that_names_a_uid_makes_no_other_object_in_its_place() {
    let cluster = Cluster::start().await;
    let path = "/api/v1/namespaces/a/endpoints/s";
    let object = json!({"metadata": {"name": "s"}});
    let (_, first) = send(&cluster.admin, Method::PUT, path, object.clone()).await;
    assert_eq!(send(&cluster.admin, Method::DELETE, path, Value::Null).await.0, 200);
    let uid = first["metadata"]["uid"].as_str().unwrap();
    let (code, status) = send(&cluster.admin, Method::PUT, path, first.clone()).await;
    let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: ");
    assert_eq!((code, status["message"].as_str().unwrap().ends_with(&why)), (409, true), "{status}");
    assert_eq!(send(&cluster.admin, Method::PUT, path, object).await.0, 201);
}

#[tokio::test]
async fn who_makes_an_object_by_a_change_must_be_allowed_to_create() {
    let cluster = Cluster::start().await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/a";
    let role = |verbs: Value| {
        json!({"metadata": {"name": "r"}, "rules": [{"apiGroups": ["", "coordination.k8s.io"], "verbs": verbs,
            "resources": ["configmaps", "leases"]}]})
    };
    cluster.make(&format!("{rbac}/roles"), role(json!(["get", "update", "patch"]))).await;
    let binding = json!({"metadata": {"name": "b"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "ann"}]});
    cluster.make(&format!("{rbac}/rolebindings"), binding).await;
    let ann = cluster.user("ann", &[]);
    let lease = "/apis/coordination.k8s.io/v1/namespaces/a/leases/l";
    let object = json!({"metadata": {"name": "l"}});
    let (code, status) = send(&ann, Method::PUT, lease, object.clone()).await;
    assert_eq!((code, &status["message"]), (403, &json!("leases.coordination.k8s.io \"l\" is forbidden: ")));
    let config = "/api/v1/namespaces/a/configmaps/c?fieldManager=m";
    let applied = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}});
    let (code, status) = apply(&ann, config, &applied).await;
    assert_eq!((code, &status["message"]), (403, &json!("configmaps \"c\" is forbidden: ")));
    let all = role(json!(["get", "update", "patch", "create"]));
    assert_eq!(send(&cluster.admin, Method::PUT, &format!("{rbac}/roles/r"), all).await.0, 200);
    assert_eq!(send(&ann, Method::PUT, lease, object).await.0, 201);
    assert_eq!(apply(&ann, config, &applied).await.0, 201);
}
