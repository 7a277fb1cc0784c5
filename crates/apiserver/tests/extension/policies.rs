//! Validating and mutating admission policies.

use http::Method;
use serde_json::{Value, json};

use crate::cluster::{Cluster, send, send_with};

const CONFIGS: &str = "/api/v1/namespaces/a/configmaps";
const REGISTRATION: &str = "/apis/admissionregistration.k8s.io/v1";

fn config(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

/// A policy of a kind (`Validating`, `Mutating`) for config maps, with more members in its spec.
fn policy(kind: &str, name: &str, more: Value) -> Value {
    let mut spec = json!({"matchConstraints": {"resourceRules": [{"operations": ["CREATE", "UPDATE"],
        "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]}});
    if kind == "Mutating" {
        spec["reinvocationPolicy"] = json!("Never");
    }
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": format!("{kind}AdmissionPolicy"),
        "metadata": {"name": name}, "spec": spec})
}

fn path(kind: &str, what: &str) -> String {
    format!("{REGISTRATION}/{}admissionpolic{what}", kind.to_lowercase())
}

/// Stores a policy, and a binding of the same name.
async fn bind(cluster: &Cluster, kind: &str, name: &str, spec: Value, binding: Value) {
    cluster.make(&path(kind, "ies"), policy(kind, name, spec)).await;
    let mut bound = binding;
    bound["policyName"] = json!(name);
    if kind == "Validating" && bound["validationActions"].is_null() {
        bound["validationActions"] = json!(["Deny"]);
    }
    let object = json!({"apiVersion": "admissionregistration.k8s.io/v1",
        "kind": format!("{kind}AdmissionPolicyBinding"), "metadata": {"name": name}, "spec": bound});
    cluster.make(&path(kind, "ybindings"), object).await;
}

#[tokio::test]
async fn a_policy_denies_with_its_message_and_the_code_of_its_reason() {
    let cluster = Cluster::start().await;
    let validations = json!([
        {"expression": "variables.n < 3", "messageExpression": "'n is ' + string(variables.n)"},
        {"expression": "variables.n != 2", "message": "two", "reason": "Forbidden"},
    ]);
    let variables = json!([{"name": "n", "expression": "int(object.data.n)"}]);
    bind(&cluster, "Validating", "p", json!({"validations": validations, "variables": variables}), json!({}))
        .await;
    let denied = |why: &str| {
        format!(
            "configmaps \"c\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'p' denied request: {why}"
        )
    };
    for (n, code, reason, why) in [
        ("3", 422, "Invalid", "n is 3"),
        ("2", 403, "Forbidden", "two"),
        (
            "x",
            422,
            "Invalid",
            "expression 'variables.n < 3' resulted in error: strconv.ParseInt: parsing \"x\": invalid syntax",
        ),
    ] {
        let (got, refused) = cluster.post(CONFIGS, config("c", json!({"n": n}))).await;
        assert_eq!((got, &refused["reason"]), (code, &json!(reason)), "{refused}");
        assert_eq!(refused["message"], denied(why));
    }
    cluster.make(CONFIGS, config("c", json!({"n": "1"}))).await;
    // a policy that is gone decides nothing any more
    send(&cluster.admin, Method::DELETE, &format!("{}/p", path("Validating", "ies")), Value::Null).await;
    cluster.make(CONFIGS, config("d", json!({"n": "9"}))).await;
}

#[tokio::test]
async fn bindings_choose_parameters_and_what_happens() {
    let cluster = Cluster::start().await;
    cluster
        .make(
            "/api/v1/namespaces",
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "b"}}),
        )
        .await;
    for (name, max) in [("small", "1"), ("large", "5")] {
        let mut parameter = config(name, json!({"max": max}));
        parameter["metadata"]["labels"] = json!({"limit": "yes"});
        cluster.make("/api/v1/namespaces/b/configmaps", parameter).await;
    }
    let spec = json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "matchConditions": [{"name": "not-b", "expression": "namespaceObject.metadata.name != 'b'"}],
        "validations": [{"expression": "object.data.n <= params.data.max",
            "messageExpression": "'more than ' + params.data.max"}]});
    let reference = json!({"selector": {"matchLabels": {"limit": "yes"}}, "namespace": "b",
        "parameterNotFoundAction": "Deny"});
    let binding = json!({"paramRef": reference, "validationActions": ["Warn", "Audit"]});
    bind(&cluster, "Validating", "p", spec, binding).await;
    let (code, headers, _) =
        send_with(&cluster.admin, Method::POST, CONFIGS, &[], config("c", json!({"n": "3"}))).await;
    assert_eq!(code, 201);
    let warning =
        "299 - \"Validation failed for ValidatingAdmissionPolicy 'p' with binding 'p': more than 1\"";
    assert_eq!(headers.get("warning").map(|v| v.to_str().unwrap()), Some(warning));
}

#[tokio::test]
async fn an_update_is_compared_and_the_authorizer_is_asked() {
    let cluster = Cluster::start().await;
    let spec = json!({"validations": [{"expression":
        "oldObject == null || oldObject.data.a == object.data.a \
            || authorizer.group('').resource('nodes').check('delete').allowed()",
        "message": "a is fixed"}]});
    bind(&cluster, "Validating", "p", spec, json!({})).await;
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "w"},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["*"]}]});
    cluster.make("/apis/rbac.authorization.k8s.io/v1/clusterroles", role).await;
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "w"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "w"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "w"}]});
    cluster.make("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding).await;
    cluster.make(CONFIGS, config("c", json!({"a": "1"}))).await;
    let one = format!("{CONFIGS}/c");
    let writer = cluster.user("w", &[]);
    let (code, refused) = send(&writer, Method::PUT, &one, config("c", json!({"a": "2"}))).await;
    assert_eq!(code, 422, "{refused}");
    assert!(refused["message"].as_str().unwrap().ends_with("denied request: a is fixed"));
    let (code, _) = send(&cluster.admin, Method::PUT, &one, config("c", json!({"a": "2"}))).await;
    assert_eq!(code, 200);
}

#[tokio::test]
async fn mutations_merge_patch_and_stay_out_of_managed_fields() {
    let cluster = Cluster::start().await;
    let apply = |expression: &str| json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}});
    let patch = |expression: &str| json!({"patchType": "JSONPatch", "jsonPatch": {"expression": expression}});
    let first = json!({"mutations": [
        apply("Object{metadata: Object.metadata{labels: {'by': 'p1'}}, data: {'n': string(size(object.data))}}"),
        patch("[JSONPatch{op: 'test', path: '/data/x', value: 'other'}, JSONPatch{op: 'remove', path: '/data/x'}]"),
        patch("[JSONPatch{op: 'add', path: '/data/' + jsonpatch.escapeKey('k'), value: object.data.n}]"),
    ], "reinvocationPolicy": "IfNeeded"});
    bind(&cluster, "Mutating", "p1", first, json!({})).await;
    let second = json!({"mutations": [apply("Object{data: {'z': 'z'}}")]});
    bind(&cluster, "Mutating", "p2", second, json!({})).await;
    let made = cluster.make(CONFIGS, config("c", json!({"x": "y"}))).await;
    // p1 ran again after p2: it saw x, k, n and z
    assert_eq!(made["data"], json!({"k": "4", "n": "4", "x": "y", "z": "z"}));
    assert_eq!(made["metadata"]["labels"], json!({"by": "p1"}));
    assert!(!made["metadata"]["managedFields"].to_string().contains("f:z"));
}

#[tokio::test]
async fn a_mutation_that_cannot_be_made_closes_or_opens_as_its_policy_says() {
    let cluster = Cluster::start().await;
    let spec = |failure: &str| {
        json!({"failurePolicy": failure,
            "matchConstraints": {"resourceRules": [{"operations": ["CREATE"], "apiGroups": [""],
                "apiVersions": ["v1"], "resources": ["services"]}]},
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration":
                {"expression": "Object{spec: Object.spec{selector: Object.spec.selector{a: 'b'}}}"}}]})
    };
    bind(&cluster, "Mutating", "p", spec("Fail"), json!({})).await;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"ports": [{"port": 1}]}});
    let (code, refused) = cluster.post("/api/v1/namespaces/a/services", service.clone()).await;
    assert_eq!(code, 403, "{refused}");
    assert_eq!(
        refused["message"],
        "policy 'p' with binding 'p' denied request: error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: .spec.selector"
    );
    let one = format!("{}/p", path("Mutating", "ies"));
    let (_, stored) = cluster.get(&one).await;
    let mut open = policy("Mutating", "p", spec("Ignore"));
    let (code, _) = send(&cluster.admin, Method::PUT, &one, open.clone()).await;
    assert_eq!(code, 422, "a policy is changed from what it is");
    open["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"].clone();
    let (code, _) = send(&cluster.admin, Method::PUT, &one, open).await;
    assert_eq!(code, 200);
    cluster.make("/api/v1/namespaces/a/services", service).await;
}

#[tokio::test]
async fn hostile_expressions_are_refused_or_stopped_and_the_server_stands() {
    let cluster = Cluster::start().await;
    let with =
        |expression: &str| policy("Validating", "h", json!({"validations": [{"expression": expression}]}));
    for expression in ["(".repeat(5000), format!("{}true", "!".repeat(100_000)), "a.".repeat(200_000)] {
        let (code, refused) = cluster.post(&path("Validating", "ies"), with(&expression)).await;
        assert_eq!(code, 422, "{refused}");
    }
    let list = format!("[{}]", vec!["1"; 300].join(","));
    let endless = format!("{list}.all(a, {list}.all(b, {list}.all(c, a + b + c > 0)))");
    bind(&cluster, "Validating", "h", json!({"validations": [{"expression": endless}]}), json!({})).await;
    let (code, refused) = cluster.post(CONFIGS, config("c", json!({}))).await;
    assert_eq!(code, 422);
    let message = refused["message"].as_str().unwrap();
    assert!(message.ends_with("operation cancelled: actual cost limit exceeded"), "{message}");
}

#[tokio::test]
async fn expressions_that_do_not_fit_the_kinds_of_a_policy_are_warned_of_in_its_status() {
    let cluster = Cluster::start().await;
    let validations = json!([{"expression": "object.data.n == 'x' && object.spec == 1"}]);
    cluster
        .make(&path("Validating", "ies"), policy("Validating", "p", json!({"validations": validations})))
        .await;
    let policies = path("Validating", "ies");
    let checked = cluster.until(&policies, "p", |policy| policy["status"]["observedGeneration"] == 1).await;
    let warnings = &checked["status"]["typeChecking"]["expressionWarnings"];
    assert_eq!(warnings[0]["fieldRef"], "spec.validations[0].expression");
    assert_eq!(
        warnings[0]["warning"],
        "/v1, Kind=ConfigMap: ERROR: <input>:1:31: undefined field 'spec'\n | object.data.n == 'x' && object.spec == 1\n | ..............................^\n"
    );
    let better = json!({"spec": {"validations": [{"expression": "object.data.n == 'x'"}]}});
    assert_eq!(send(&cluster.admin, Method::PATCH, &format!("{policies}/p"), better).await.0, 200);
    let checked = cluster.until(&policies, "p", |policy| policy["status"]["observedGeneration"] == 2).await;
    assert_eq!(checked["status"], json!({"observedGeneration": 2, "typeChecking": {}}));
}
