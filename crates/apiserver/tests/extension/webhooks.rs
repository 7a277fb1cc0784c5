//! Mutating and validating admission webhooks.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use serde_json::{Value, json};

use crate::cluster::{Cluster, send, send_with};
use crate::program::{Answer, Program};

const CONFIGS: &str = "/api/v1/namespaces/a/configmaps";
const REGISTRATION: &str = "/apis/admissionregistration.k8s.io/v1";

fn config(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}})
}

/// The review's answer, with more members in its response.
fn answer(review: &Value, more: Value) -> Answer {
    let mut response = json!({"uid": review["request"]["uid"], "allowed": true});
    for (key, value) in more.as_object().unwrap() {
        response[key] = value.clone();
    }
    (200, json!({"kind": "AdmissionReview", "apiVersion": review["apiVersion"], "response": response}))
}

fn patch(operations: Value) -> Value {
    json!({"patchType": "JSONPatch", "patch": STANDARD.encode(operations.to_string())})
}

/// A webhook of the program for config maps, with more members.
fn webhook(program: &Program, name: &str, more: Value) -> Value {
    let mut webhook = json!({"name": name, "admissionReviewVersions": ["v1"], "sideEffects": "None",
        "clientConfig": {"url": program.url(&format!("/{name}")), "caBundle": program.bundle},
        "rules": [{"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]});
    for (key, value) in more.as_object().unwrap() {
        webhook[key] = value.clone();
    }
    webhook
}

async fn register(cluster: &Cluster, kind: &str, name: &str, webhooks: Vec<Value>) {
    let object = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
        "metadata": {"name": name}, "webhooks": webhooks});
    cluster.make(&format!("{REGISTRATION}/{}s", kind.to_lowercase()), object).await;
}

const VALIDATING: &str = "ValidatingWebhookConfiguration";
const MUTATING: &str = "MutatingWebhookConfiguration";

/// The names of the webhooks that were called, in order.
fn called(program: &Program) -> Vec<String> {
    let calls = program.calls();
    calls.iter().map(|(path, _)| path[1..].split('?').next().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_validating_webhook_sees_the_whole_request_and_refuses_in_its_own_words() {
    let cluster = Cluster::start().await;
    let program = Program::start(&[], |_, review| {
        if review["request"]["object"]["metadata"]["name"] == "bad" {
            let status = json!({"code": 418, "reason": "Teapot", "message": "no coffee"});
            return answer(review, json!({"allowed": false, "status": status}));
        }
        answer(review, json!({"warnings": ["look out"], "auditAnnotations": {"k": "v"}}))
    })
    .await;
    register(&cluster, VALIDATING, "v", vec![webhook(&program, "one.example.com", json!({}))]).await;

    let path = format!("{CONFIGS}?fieldManager=m");
    let (code, headers, made) = send_with(&cluster.admin, Method::POST, &path, &[], config("c")).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(headers["warning"], r#"299 - "look out""#);
    let (url, review) = program.calls().remove(0);
    assert_eq!(url, "/one.example.com?timeout=10s");
    let mut request = review["request"].clone();
    assert_eq!(request["object"]["metadata"]["uid"], made["metadata"]["uid"]);
    for key in ["uid", "object"] {
        request.as_object_mut().unwrap().remove(key);
    }
    let kind = json!({"group": "", "version": "v1", "kind": "ConfigMap"});
    let resource = json!({"group": "", "version": "v1", "resource": "configmaps"});
    let expected = json!({"kind": kind, "resource": resource, "requestKind": kind, "requestResource": resource,
        "name": "c", "namespace": "a", "operation": "CREATE", "oldObject": null, "dryRun": false,
        "userInfo": {"username": "admin", "groups": ["system:masters", "system:authenticated"]},
        "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1", "fieldManager": "m"}});
    assert_eq!(request, expected);

    let (code, refused) = cluster.post(CONFIGS, config("bad")).await;
    assert_eq!(code, 418);
    assert_eq!(
        refused,
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 418,
            "reason": "Teapot",
            "message": "admission webhook \"one.example.com\" denied the request: no coffee"})
    );
    assert_eq!(cluster.get(&format!("{CONFIGS}/bad")).await.0, 404);
}

#[tokio::test]
async fn every_operation_is_admitted_as_what_it_is() {
    let cluster = Cluster::start().await;
    let program = Program::start(&[], |_, review| answer(review, json!({}))).await;
    let all = json!({"rules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"],
        "resources": ["configmaps", "deployments/*", "namespaces", "pods/*"], "scope": "*"}]});
    register(&cluster, VALIDATING, "v", vec![webhook(&program, "one.example.com", all)]).await;
    let summary = || {
        let calls = program.calls();
        let line = |(_, review): &(String, Value)| {
            let r = &review["request"];
            let text = |v: &Value| v.as_str().unwrap_or("-").to_owned();
            format!(
                "{} {}/{} {} {} {} {} {}",
                text(&r["operation"]),
                text(&r["kind"]["kind"]),
                text(&r["subResource"]),
                text(&r["namespace"]),
                text(&r["name"]),
                text(&r["object"]["kind"]),
                text(&r["oldObject"]["kind"]),
                text(&r["options"]["kind"]),
            )
        };
        calls.iter().map(line).collect::<Vec<_>>()
    };
    let one = format!("{CONFIGS}/c");
    cluster.make(CONFIGS, config("c")).await;
    assert_eq!(summary(), ["CREATE ConfigMap/- a c ConfigMap - CreateOptions"]);
    let put =
        send(&cluster.admin, Method::PUT, &one, json!({"metadata": {"name": "c"}, "data": {"k": "v"}})).await;
    assert_eq!(put.0, 200);
    let patched = send(&cluster.admin, Method::PATCH, &one, json!({"data": {"k": "w"}})).await;
    assert_eq!(patched.0, 200);
    let update = "UPDATE ConfigMap/- a c ConfigMap ConfigMap UpdateOptions";
    assert_eq!(summary(), [update, update]);
    assert_eq!(send(&cluster.admin, Method::DELETE, &one, Value::Null).await.0, 200);
    assert_eq!(summary(), ["DELETE ConfigMap/- a c - ConfigMap DeleteOptions"]);
    cluster.make(CONFIGS, config("d")).await;
    assert_eq!(send(&cluster.admin, Method::DELETE, CONFIGS, Value::Null).await.0, 200);
    assert_eq!(
        summary(),
        [
            "CREATE ConfigMap/- a d ConfigMap - CreateOptions",
            "DELETE ConfigMap/- a - - ConfigMap DeleteOptions",
        ]
    );
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "b"}});
    cluster.make("/api/v1/namespaces", namespace).await;
    assert_eq!(summary(), ["CREATE Namespace/- b b Namespace - CreateOptions"]);
    let pod = json!({"spec": {"containers": [{"name": "c", "image": "i"}]},
        "metadata": {"labels": {"a": "b"}}});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": pod}});
    let deployments = "/apis/apps/v1/namespaces/a/deployments";
    cluster.make(deployments, deployment).await;
    let scale = json!({"spec": {"replicas": 2}});
    let scaled = send(&cluster.admin, Method::PATCH, &format!("{deployments}/d/scale"), scale).await;
    assert_eq!(scaled.0, 200, "{}", scaled.1);
    assert_eq!(
        summary(),
        [
            "CREATE Deployment/- a d Deployment - CreateOptions",
            "UPDATE Scale/scale a d Scale Scale UpdateOptions",
        ]
    );
    let mut pod = pod;
    pod["metadata"]["name"] = json!("p");
    cluster.post("/api/v1/namespaces/a/pods", pod).await;
    cluster.get("/api/v1/namespaces/a/pods/p/exec?command=ls&stdout=1").await;
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    cluster.post("/api/v1/namespaces/a/pods/p/binding", binding).await;
    let mut seen = summary();
    seen.retain(|line| !line.contains(" Pod/"));
    assert_eq!(
        seen,
        [
            "CONNECT PodExecOptions/exec a p PodExecOptions - -",
            "CREATE Binding/binding a p Binding - CreateOptions",
        ]
    );
}

#[tokio::test]
async fn mutating_webhooks_run_in_the_order_of_names_and_again_where_something_changed_after_them() {
    let cluster = Cluster::start().await;
    let program = Program::start(&[], |request, review| {
        let name = &request.uri().path()[1..2];
        let data = &review["request"]["object"]["data"];
        let seen = data.as_object().map_or(0, serde_json::Map::len);
        // b counts what it sees; a and c each add their letter once
        let operations = match name {
            "b" => {
                json!([{"op": "add", "path": "/metadata/annotations", "value": {"seen": seen.to_string()}}])
            }
            _ if data[name].is_string() => json!([]),
            _ => json!([{"op": "add", "path": format!("/data/{name}"), "value": name}]),
        };
        answer(review, patch(operations))
    })
    .await;
    let again = json!({"reinvocationPolicy": "IfNeeded"});
    register(&cluster, MUTATING, "m2", vec![webhook(&program, "c.example.com", json!({}))]).await;
    let first =
        vec![webhook(&program, "a.example.com", json!({})), webhook(&program, "b.example.com", again)];
    register(&cluster, MUTATING, "m1", first).await;
    let mut object = config("c");
    object["data"] = json!({"x": "y"});
    let made = cluster.make(CONFIGS, object).await;
    assert_eq!(called(&program), ["a", "b", "c", "b"].map(|l| format!("{l}.example.com")));
    assert_eq!(made["data"], json!({"a": "a", "c": "c", "x": "y"}));
    assert_eq!(made["metadata"]["annotations"]["seen"], "3");
    // what admission adds belongs to nobody
    assert!(!made["metadata"]["managedFields"].to_string().contains("f:a\""));
}

#[tokio::test]
async fn what_a_webhook_makes_of_an_object_is_defaulted_and_validated() {
    let cluster = Cluster::start().await;
    let program = Program::start(&[], |_, review| {
        let operations = match review["request"]["object"]["metadata"]["name"].as_str().unwrap() {
            "ports" => json!([{"op": "add", "path": "/spec/ports", "value": [{"port": 80, "nonsense": 1}]}]),
            "bad" => json!([{"op": "add", "path": "/spec/ports", "value": [{"port": 0}]}]),
            "unfit" => json!([{"op": "remove", "path": "/spec/nosuch"}]),
            _ => json!([{"op": "replace", "path": "/spec/ports", "value": "x"}]),
        };
        answer(review, patch(operations))
    })
    .await;
    let services = json!({"rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["*"],
        "resources": ["services"]}]});
    register(&cluster, MUTATING, "m", vec![webhook(&program, "one.example.com", services)]).await;
    let make = async |name: &str| {
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"ports": [{"port": 1}]}});
        cluster.post("/api/v1/namespaces/a/services", service).await
    };
    let (code, made) = make("ports").await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["spec"]["ports"], json!([{"port": 80, "protocol": "TCP", "targetPort": 80}]));
    let (code, refused) = make("bad").await;
    assert_eq!((code, &refused["reason"]), (422, &json!("Invalid")));
    for name in ["unfit", "type"] {
        let (code, refused) = make(name).await;
        assert_eq!((code, &refused["reason"]), (500, &json!("InternalError")), "{refused}");
    }
}

#[tokio::test]
async fn a_webhook_that_fails_closes_or_opens_as_its_policy_says() {
    let cluster = Cluster::start().await;
    let program = Program::start(&[], |request, review| match request.uri().path() {
        "/broken.example.com" => (500, json!("boom")),
        "/moved.example.com" => (302, json!("/ok.example.com")),
        _ => answer(review, json!({"uid": "another"})),
    })
    .await;
    let post = async |name: &str| cluster.post(&format!("{CONFIGS}?dryRun=All"), config(name)).await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = nobody.local_addr().unwrap();
    drop(nobody);
    let stranger = Program::start(&[], |_, review| answer(review, json!({}))).await;
    let cases = [
        (
            "broken.example.com",
            json!({}),
            r#"an error on the server ("\"boom\"") has prevented the request from succeeding"#.to_owned(),
        ),
        (
            "moved.example.com",
            json!({}),
            "the server responded with the status code 302 but did not return more information".to_owned(),
        ),
        (
            "closed.example.com",
            json!({"clientConfig": {"url": format!("https://{closed}/x")}}),
            format!(
                r#"Post "https://{closed}/x?timeout=10s": dial tcp {closed}: connect: connection refused"#
            ),
        ),
        (
            "stranger.example.com",
            json!({"clientConfig": {"url": stranger.url("/x"), "caBundle": program.bundle}}),
            format!(
                r#"Post "{}?timeout=10s": tls: failed to verify certificate: x509: certificate signed by unknown authority"#,
                stranger.url("/x")
            ),
        ),
        (
            "nosuch.example.com",
            json!({"clientConfig": {"service": {"namespace": "a", "name": "s", "path": "/x"}}}),
            r#"Post "https://s.a.svc:443/x?timeout=10s": service "s" not found"#.to_owned(),
        ),
    ];
    for (name, more, why) in cases {
        register(&cluster, VALIDATING, "v", vec![webhook(&program, name, more.clone())]).await;
        let (code, refused) = post("c").await;
        assert_eq!((code, &refused["reason"]), (500, &json!("InternalError")));
        let expected = format!(
            "Internal error occurred: failed calling webhook {name:?}: failed to call webhook: {why}"
        );
        assert_eq!(refused["message"], expected);
        let path = format!("{REGISTRATION}/validatingwebhookconfigurations/v");
        let mut ignoring = webhook(&program, name, more);
        ignoring["failurePolicy"] = json!("Ignore");
        let changed = send(&cluster.admin, Method::PATCH, &path, json!({"webhooks": [ignoring]})).await;
        assert_eq!(changed.0, 200, "{}", changed.1);
        assert_eq!(post("c").await.0, 201);
        assert_eq!(send(&cluster.admin, Method::DELETE, &path, Value::Null).await.0, 200);
    }
    register(&cluster, VALIDATING, "v", vec![webhook(&program, "liar.example.com", json!({}))]).await;
    let (code, refused) = post("c").await;
    assert_eq!(code, 500);
    let message = refused["message"].as_str().unwrap();
    assert!(message.contains("received invalid webhook response: expected response.uid="), "{message}");
}

#[tokio::test]
async fn a_dry_run_is_not_shown_to_a_webhook_with_side_effects_of_older_days() {
    let cluster = Cluster::start().await;
    let program = Program::start(&[], |_, review| answer(review, json!({}))).await;
    register(&cluster, VALIDATING, "v", vec![webhook(&program, "one.example.com", json!({}))]).await;
    let (code, _) = cluster.post(&format!("{CONFIGS}?dryRun=All"), config("c")).await;
    assert_eq!(code, 201);
    let (_, review) = program.calls().remove(0);
    assert_eq!(review["request"]["dryRun"], true);
    assert_eq!(review["request"]["options"]["dryRun"], json!(["All"]));
}

#[tokio::test]
async fn selectors_and_exempt_kinds_keep_webhooks_out() {
    let cluster = Cluster::start().await;
    let program = Program::start(&[], |_, review| answer(review, json!({"allowed": false}))).await;
    let everything = |more: Value| {
        let mut webhook = webhook(&program, "one.example.com", more);
        webhook["rules"] =
            json!([{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"]}]);
        webhook
    };
    let not_a = json!({"matchExpressions": [
        {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["a"]}]});
    let only_red = json!({"matchLabels": {"color": "red"}});
    let webhook = everything(json!({"namespaceSelector": not_a, "objectSelector": only_red}));
    register(&cluster, VALIDATING, "v", vec![webhook]).await;
    // in the namespace that is left out; without the label; a webhook configuration
    let mut red = config("c");
    red["metadata"]["labels"] = json!({"color": "red"});
    assert_eq!(cluster.post(CONFIGS, red.clone()).await.0, 201);
    assert_eq!(cluster.post("/api/v1/namespaces/default/configmaps", config("d")).await.0, 201);
    let path = format!("{REGISTRATION}/validatingwebhookconfigurations/v");
    let (code, _) =
        send(&cluster.admin, Method::PATCH, &path, json!({"metadata": {"labels": {"color": "red"}}})).await;
    assert_eq!(code, 200);
    assert_eq!(program.calls(), []);
    let (code, refused) = cluster.post("/api/v1/namespaces/default/configmaps", red).await;
    assert_eq!(code, 400);
    assert_eq!(
        refused["message"],
        "admission webhook \"one.example.com\" denied the request without explanation"
    );
}

#[tokio::test]
async fn a_webhook_sees_the_version_that_its_rule_names() {
    let cluster = Cluster::start().await;
    let program = Program::start(&[], |_, review| {
        let metrics = review["request"]["object"]["spec"]["metrics"].is_array();
        let operations =
            json!([{"op": "replace", "path": "/spec/maxReplicas", "value": if metrics { 7 } else { 1 }}]);
        answer(review, patch(operations))
    })
    .await;
    let rules = json!({"rules": [{"operations": ["CREATE"], "apiGroups": ["autoscaling"], "apiVersions": ["v2"],
        "resources": ["horizontalpodautoscalers"]}]});
    register(&cluster, MUTATING, "m", vec![webhook(&program, "one.example.com", rules)]).await;
    let autoscaler = json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "h"}, "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50,
            "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"}}});
    let path = "/apis/autoscaling/v1/namespaces/a/horizontalpodautoscalers";
    let made = cluster.make(path, autoscaler).await;
    assert_eq!(made["spec"]["maxReplicas"], 7);
    assert_eq!(made["apiVersion"], "autoscaling/v1");
    let (_, review) = program.calls().remove(0);
    assert_eq!(review["request"]["kind"]["version"], "v2");
    assert_eq!(review["request"]["requestKind"]["version"], "v1");
    assert_eq!(review["request"]["object"]["apiVersion"], "autoscaling/v2");
}

#[tokio::test]
async fn connections_are_kept_and_a_service_is_found_behind_its_name() {
    let cluster = Cluster::start().await;
    let program = Program::start(&["s.a.svc"], |_, review| answer(review, json!({}))).await;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"type": "ExternalName", "externalName": "localhost"}});
    cluster.make("/api/v1/namespaces/a/services", service).await;
    let port = program.address.port();
    let to_service = json!({"clientConfig": {"caBundle": program.bundle,
        "service": {"namespace": "a", "name": "s", "port": port}}});
    register(&cluster, VALIDATING, "v", vec![webhook(&program, "one.example.com", to_service)]).await;
    for n in 0..5 {
        let (code, made) = cluster.post(CONFIGS, config(&format!("c{n}"))).await;
        assert_eq!(code, 201, "{made}");
    }
    assert_eq!(program.calls().len(), 5);
    assert_eq!(program.connections(), 1);
}

#[tokio::test]
async fn owners_of_fields_that_a_webhook_has_broken_are_as_before() {
    let cluster = Cluster::start().await;
    let program = Program::start(&[], |_, review| {
        let broken =
            json!([{"manager": "w", "operation": "Guess", "apiVersion": "v1", "fieldsType": "FieldsV1"}]);
        let operations = json!([{"op": "add", "path": "/metadata/managedFields", "value": broken},
            {"op": "add", "path": "/data", "value": {"k": "v"}}]);
        answer(review, patch(operations))
    })
    .await;
    register(&cluster, MUTATING, "m", vec![webhook(&program, "one.example.com", json!({}))]).await;
    let path = format!("{CONFIGS}?fieldManager=m");
    let (code, headers, made) = send_with(&cluster.admin, Method::POST, &path, &[], config("c")).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["data"], json!({"k": "v"}));
    assert_eq!(
        made["metadata"]["managedFields"],
        Value::Null,
        "the client had set nothing that has an owner"
    );
    assert_eq!(
        headers["warning"],
        "299 - \".metadata.managedFields was in an invalid state after admission; this could be caused by an outdated mutating admission controller; please fix your requests: operation must be `Apply` or `Update`\""
    );
}

#[tokio::test]
async fn a_webhook_that_is_too_slow_is_not_waited_for() {
    let cluster = Cluster::start().await;
    // accepts connections, never answers
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let program = Program::start(&[], |_, review| answer(review, json!({}))).await;
    let slow = json!({"clientConfig": {"url": format!("https://{address}/x")}, "timeoutSeconds": 1});
    register(&cluster, VALIDATING, "v", vec![webhook(&program, "slow.example.com", slow)]).await;
    let (code, refused) = cluster.post(CONFIGS, config("c")).await;
    assert_eq!(code, 500);
    assert_eq!(
        refused["message"],
        format!(
            "Internal error occurred: failed calling webhook \"slow.example.com\": failed to call webhook: Post \
             \"https://{address}/x?timeout=1s\": context deadline exceeded"
        )
    );
}

#[tokio::test]
async fn match_conditions_choose_requests_and_may_ask_the_authorizer() {
    let cluster = Cluster::start().await;
    let program = Program::start(&[], |_, review| answer(review, json!({"allowed": false}))).await;
    let condition = |expression: &str| json!({"matchConditions": [{"name": "c", "expression": expression}]});
    let register_with = async |name: &str, more: Value| {
        register(&cluster, VALIDATING, name, vec![webhook(&program, "one.example.com", more)]).await;
    };
    let mine = "object.metadata.name == 'mine' && authorizer.requestResource.check('delete').allowed()";
    register_with("v", condition(mine)).await;
    assert_eq!(cluster.post(CONFIGS, config("yours")).await.0, 201);
    assert_eq!(cluster.post(CONFIGS, config("mine")).await.0, 400);
    let path = format!("{REGISTRATION}/validatingwebhookconfigurations");
    assert_eq!(send(&cluster.admin, Method::DELETE, &path, Value::Null).await.0, 200);
    // what cannot be evaluated closes, or opens without a call
    program.calls();
    register_with("v", condition("object.data.nosuch == 'x'")).await;
    let (code, refused) = cluster.post(CONFIGS, config("c")).await;
    assert_eq!((code, &refused["reason"]), (403, &json!("Forbidden")), "{refused}");
    assert_eq!(send(&cluster.admin, Method::DELETE, &path, Value::Null).await.0, 200);
    let mut open = condition("object.data.nosuch == 'x'");
    open["failurePolicy"] = json!("Ignore");
    register_with("v", open).await;
    assert_eq!(cluster.post(CONFIGS, config("c")).await.0, 201);
    assert_eq!(program.calls(), []);
}
