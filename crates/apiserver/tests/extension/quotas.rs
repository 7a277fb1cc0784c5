//! ResourceQuotas and LimitRanges, from the outside.

use http::Method;
use serde_json::{Value, json};

use crate::cluster::{Cluster, send};

const SERVICES: &str = "/api/v1/namespaces/a/services";
const PODS: &str = "/api/v1/namespaces/a/pods";
const CLAIMS: &str = "/api/v1/namespaces/a/persistentvolumeclaims";

async fn patch(cluster: &Cluster, path: &str, body: Value) -> (u16, Value) {
    send(&cluster.admin, Method::PATCH, path, body).await
}

/// A quota that is counted already: `hard` and `used`.
async fn quota(cluster: &Cluster, name: &str, more: Value, hard: Value, used: Value) {
    let mut spec = more;
    spec["hard"] = hard.clone();
    let object =
        json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name}, "spec": spec});
    cluster.make("/api/v1/namespaces/a/resourcequotas", object).await;
    let status = json!({"status": {"hard": hard, "used": used}});
    let (code, answer) =
        patch(cluster, &format!("/api/v1/namespaces/a/resourcequotas/{name}/status"), status).await;
    assert_eq!(code, 200, "{answer}");
}

async fn used(cluster: &Cluster, name: &str) -> String {
    cluster.get(&format!("/api/v1/namespaces/a/resourcequotas/{name}")).await.1["status"]["used"].to_string()
}

fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

fn pod(name: &str, cpu: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"automountServiceAccountToken": false,
        "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]}})
}

async fn account(cluster: &Cluster) {
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    cluster.post("/api/v1/namespaces/a/serviceaccounts", account).await;
}

fn why(answer: &(u16, Value)) -> String {
    format!("{} {}", answer.0, answer.1["message"].as_str().unwrap_or_default())
}

#[tokio::test]
async fn a_service_that_takes_more_node_ports_is_charged_for_the_difference() {
    let cluster = Cluster::start().await;
    let hard = json!({"services": "5", "services.nodeports": "2", "services.loadbalancers": "1"});
    quota(
        &cluster,
        "q",
        json!({}),
        hard,
        json!({"services": "0", "services.nodeports": "0", "services.loadbalancers": "0"}),
    )
    .await;
    let ports = json!([{"name": "a", "port": 1}, {"name": "b", "port": 2}]);
    cluster.make(SERVICES, service("s", json!({"ports": [ports[0]]}))).await;
    let to_node_port = json!({"spec": {"type": "NodePort", "ports": ports}});
    assert_eq!(patch(&cluster, &format!("{SERVICES}/s"), to_node_port).await.0, 200);
    assert_eq!(
        used(&cluster, "q").await,
        r#"{"services":"1","services.loadbalancers":"0","services.nodeports":"2"}"#
    );
    let denied =
        cluster.post(SERVICES, service("t", json!({"type": "LoadBalancer", "ports": [ports[0]]}))).await;
    assert_eq!(
        why(&denied),
        "403 services \"t\" is forbidden: exceeded quota: q, requested: services.nodeports=1, used: services.nodeports=2, limited: services.nodeports=2"
    );
    // what it gives back is for the quota controller to count
    let back = json!({"spec": {"type": "ClusterIP", "ports": [ports[0]]}});
    assert_eq!(patch(&cluster, &format!("{SERVICES}/s"), back).await.0, 200);
    assert!(used(&cluster, "q").await.contains(r#""services.nodeports":"2""#));
}

#[tokio::test]
async fn objects_of_any_kind_are_counted_by_group() {
    let cluster = Cluster::start().await;
    let name = "count/deployments.apps";
    quota(&cluster, "q", json!({}), json!({name: "1"}), json!({name: "0"})).await;
    let deployment = |name: &str| {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {
            "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
    };
    cluster.make("/apis/apps/v1/namespaces/a/deployments", deployment("d")).await;
    // what is refused by the store gives its charge back
    let twice = cluster.post("/apis/apps/v1/namespaces/a/deployments", deployment("e")).await;
    assert_eq!(
        why(&twice),
        "403 deployments.apps \"e\" is forbidden: exceeded quota: q, requested: count/deployments.apps=1, used: count/deployments.apps=1, limited: count/deployments.apps=1"
    );
}

#[tokio::test]
async fn what_is_not_stored_is_not_charged() {
    let cluster = Cluster::start().await;
    quota(&cluster, "q", json!({}), json!({"services": "5"}), json!({"services": "0"})).await;
    let one = service("s", json!({"ports": [{"port": 1}]}));
    assert_eq!(cluster.post(SERVICES, one.clone()).await.0, 201);
    assert_eq!(cluster.post(SERVICES, one).await.0, 409);
    assert_eq!(used(&cluster, "q").await, r#"{"services":"1"}"#);
}

#[tokio::test]
async fn many_creations_at_once_share_a_quota_without_overdrawing_it() {
    let cluster = Cluster::start().await;
    quota(&cluster, "q", json!({}), json!({"configmaps": "5"}), json!({"configmaps": "0"})).await;
    let one = |i: usize| {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("c{i}")}});
        cluster.post("/api/v1/namespaces/a/configmaps", object)
    };
    let codes = futures_util::future::join_all((0..20).map(one)).await;
    assert_eq!(codes.iter().filter(|(code, _)| *code == 201).count(), 5);
    assert_eq!(used(&cluster, "q").await, r#"{"configmaps":"5"}"#);
}

#[tokio::test]
async fn a_resized_pod_is_charged_and_limited() {
    let cluster = &Cluster::start().await;
    account(cluster).await;
    quota(cluster, "q", json!({}), json!({"requests.cpu": "3"}), json!({"requests.cpu": "0"})).await;
    cluster.make(PODS, pod("p", "1")).await;
    let resize = |cpu: &str| pod("p", cpu);
    let send_resize = |body: Value| async move {
        patch(
            cluster,
            &format!("{PODS}/p/resize"),
            json!({"spec": {"containers": body["spec"]["containers"]}}),
        )
        .await
    };
    assert_eq!(send_resize(resize("2")).await.0, 200);
    assert_eq!(used(cluster, "q").await, r#"{"requests.cpu":"2"}"#);
    assert_eq!(
        why(&send_resize(resize("4")).await),
        "403 pods \"p\" is forbidden: exceeded quota: q, requested: requests.cpu=2, used: requests.cpu=2, limited: requests.cpu=3"
    );
    let range = json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "l"}, "spec": {"limits": [
        {"type": "Container", "min": {"cpu": "500m"}}]}});
    cluster.make("/api/v1/namespaces/a/limitranges", range).await;
    assert_eq!(
        why(&send_resize(resize("100m")).await),
        "403 pods \"p\" is forbidden: minimum cpu usage per Container is 500m, but request is 100m"
    );
}

#[tokio::test]
async fn claims_are_charged_by_class_and_by_volume_attributes() {
    let cluster = Cluster::start().await;
    let gold = "gold.storageclass.storage.k8s.io/requests.storage";
    quota(&cluster, "q", json!({}), json!({gold: "2Gi"}), json!({gold: "0"})).await;
    let fast = json!({"scopeSelector": {"matchExpressions": [
        {"scopeName": "VolumeAttributesClass", "operator": "In", "values": ["fast"]}]}});
    quota(&cluster, "v", fast, json!({"requests.storage": "1Gi"}), json!({"requests.storage": "0"})).await;
    let claim = |name: &str, more: Value| {
        let mut spec =
            json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec})
    };
    cluster.make(CLAIMS, claim("silver", json!({"storageClassName": "silver"}))).await;
    cluster.make(CLAIMS, claim("gold", json!({"storageClassName": "gold"}))).await;
    assert_eq!(used(&cluster, "q").await, format!("{{\"{gold}\":\"2Gi\"}}"));
    let denied = cluster
        .post(CLAIMS, claim("c", json!({"storageClassName": "x", "volumeAttributesClassName": "fast"})))
        .await;
    assert_eq!(
        why(&denied),
        "403 persistentvolumeclaims \"c\" is forbidden: exceeded quota: v, requested: requests.storage=2Gi, used: requests.storage=0, limited: requests.storage=1Gi"
    );
}

#[tokio::test]
async fn a_scope_must_fit_the_resources_of_its_quota() {
    let cluster = Cluster::start().await;
    let post = |spec: Value| {
        let object =
            json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": spec});
        cluster.post("/api/v1/namespaces/a/resourcequotas", object)
    };
    let expressions = json!([{"scopeName": "BestEffort", "operator": "Exists"}]);
    let answers = [
        post(json!({"hard": {"services": "1", "cpu": "1"}, "scopes": ["Terminating"]})).await,
        post(json!({"hard": {"cpu": "1"}, "scopeSelector": {"matchExpressions": expressions}})).await,
        post(json!({"hard": {"requests.foo": "1", "count/a.b": "1.5"}})).await,
    ];
    assert_eq!(
        answers.each_ref().map(why),
        [
            "422 ResourceQuota \"q\" is invalid: spec.scopes: Invalid value: [\"Terminating\"]: unsupported scope applied to resource",
            "422 ResourceQuota \"q\" is invalid: spec.scopeSelector.matchExpressions: Invalid value: {\"MatchExpressions\":[{\"ScopeName\":\"BestEffort\",\"Operator\":\"Exists\",\"Values\":null}]}: unsupported scope applied to resource",
            "422 ResourceQuota \"q\" is invalid: [spec.hard[count/a.b]: Invalid value: \"1500m\": must be an integer, spec.hard[requests.foo]: Invalid value: \"requests.foo\": must be a standard resource type or fully qualified, spec.hard[requests.foo]: Invalid value: \"requests.foo\": must be a standard resource for quota]",
        ]
    );
}
