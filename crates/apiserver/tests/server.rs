//! A server with an embedded store, spoken to over HTTPS: what every client may rely on.

use bytes::{Bytes, BytesMut};
use client::{Body, Client};
use http::{Method, Request};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use testserver::{TestServer, connect};

struct Cluster {
    api: TestServer,
    admin: Client,
}

async fn start() -> Cluster {
    start_with(apiserver::Options::default()).await
}

async fn start_with(options: apiserver::Options) -> Cluster {
    let api = TestServer::start(options).await;
    let admin = api.user("admin", &["system:masters"]);
    let cluster = Cluster { api, admin };
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}});
    assert_eq!(cluster.send(Method::POST, "/api/v1/namespaces", namespace).await.0, 201);
    cluster
}

async fn send(client: &Client, method: Method, path: &str, media: &str, body: Value) -> (u16, Value) {
    let bytes = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    let mut request = Request::builder().method(method).uri(path);
    if !bytes.is_empty() {
        request = request.header("content-type", media);
    }
    let answer = client.request(request.body(bytes).unwrap()).await.unwrap();
    (answer.status().as_u16(), serde_json::from_slice(answer.body()).unwrap_or_default())
}

impl Cluster {
    async fn send(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        send(&self.admin, method, path, "application/json", body).await
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.send(Method::GET, path, Value::Null).await
    }

    async fn config(&self, name: &str, more: Value) -> Value {
        let mut object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
        for (key, value) in more["metadata"].as_object().into_iter().flatten() {
            object["metadata"][key] = value.clone();
        }
        if more["data"].is_object() {
            object["data"] = more["data"].clone();
        }
        let (code, made) = self.send(Method::POST, CONFIGS, object).await;
        assert_eq!(code, 201, "{made}");
        made
    }

    async fn watch(&self, path: &str) -> Events {
        let answer = self.admin.send(Request::get(path).body(Bytes::new()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), 200);
        Events { body: answer.into_body(), rest: BytesMut::new() }
    }
}

const CONFIGS: &str = "/api/v1/namespaces/a/configmaps";

struct Events {
    body: Body,
    rest: BytesMut,
}

impl Events {
    /// The next event as `TYPE name`.
    async fn next(&mut self) -> String {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let event: Value = serde_json::from_slice(&self.rest.split_to(end + 1)).unwrap();
                let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                return format!("{} {name}", event["type"].as_str().unwrap());
            }
            let frame = self.body.frame().await.expect("the watch goes on").unwrap();
            self.rest.extend_from_slice(&frame.into_data().unwrap());
        }
    }
}

#[tokio::test]
async fn a_stored_object_is_read_as_it_was_written() {
    let cluster = start().await;
    let made = cluster.config("c", json!({"data": {"k": "v"}})).await;
    let (code, read) = cluster.get(&format!("{CONFIGS}/c")).await;
    assert_eq!((code, &read), (200, &made));
    let (code, refused) = cluster.send(Method::POST, CONFIGS, made).await;
    assert_eq!((code, refused["reason"].as_str()), (400, Some("BadRequest")), "a revision on create");
}

#[tokio::test]
async fn a_stale_update_is_refused_and_changes_nothing() {
    let cluster = start().await;
    let mut first = cluster.config("c", json!({"data": {"k": "1"}})).await;
    let path = format!("{CONFIGS}/c");
    first["data"]["k"] = json!("2");
    assert_eq!(cluster.send(Method::PUT, &path, first.clone()).await.0, 200);
    first["data"]["k"] = json!("3");
    let (code, status) = cluster.send(Method::PUT, &path, first).await;
    assert_eq!((code, status["reason"].as_str()), (409, Some("Conflict")));
    assert_eq!(cluster.get(&path).await.1["data"]["k"], "2");
}

#[tokio::test]
async fn pages_of_one_list_show_one_moment() {
    let cluster = start().await;
    for name in ["a", "b", "c", "d"] {
        cluster.config(name, json!({})).await;
    }
    let (_, first) = cluster.get(&format!("{CONFIGS}?limit=2")).await;
    // what happens between pages is not seen
    cluster.config("bb", json!({})).await;
    assert_eq!(cluster.send(Method::DELETE, &format!("{CONFIGS}/d"), Value::Null).await.0, 200);
    let next = first["metadata"]["continue"].as_str().unwrap();
    let (_, second) = cluster.get(&format!("{CONFIGS}?limit=2&continue={next}")).await;
    let names: Vec<&str> = [&first, &second]
        .iter()
        .flat_map(|page| page["items"].as_array().unwrap())
        .map(|item| item["metadata"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["a", "b", "c", "d"]);
    assert_eq!(first["metadata"]["resourceVersion"], second["metadata"]["resourceVersion"]);
    assert!(second["metadata"].get("continue").is_none());
}

#[tokio::test]
async fn a_watch_resumes_where_a_list_ended() {
    let cluster = start().await;
    cluster.config("before", json!({})).await;
    let (_, list) = cluster.get(CONFIGS).await;
    let revision = list["metadata"]["resourceVersion"].as_str().unwrap();
    cluster.config("between", json!({})).await;
    let mut events = cluster.watch(&format!("{CONFIGS}?watch=1&resourceVersion={revision}")).await;
    assert_eq!(events.next().await, "ADDED between");
    let patch = json!({"data": {"k": "v"}});
    let path = format!("{CONFIGS}/between");
    let (code, changed) =
        send(&cluster.admin, Method::PATCH, &path, "application/merge-patch+json", patch).await;
    assert_eq!(code, 200);
    assert_eq!(events.next().await, "MODIFIED between");
    cluster.send(Method::DELETE, &path, Value::Null).await;
    assert_eq!(events.next().await, "DELETED between");
    drop(events);
    // a client that lost its connection goes on from the last revision it saw
    let revision = changed["metadata"]["resourceVersion"].as_str().unwrap();
    let mut again = cluster.watch(&format!("{CONFIGS}?watch=1&resourceVersion={revision}")).await;
    assert_eq!(again.next().await, "DELETED between");
}

#[tokio::test]
async fn an_apply_over_anothers_field_conflicts_until_forced() {
    let cluster = start().await;
    let apply = |manager: &str, force: bool, value: &str| {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"},
            "data": {"k": value}});
        let path = format!("{CONFIGS}/c?fieldManager={manager}&force={force}");
        let admin = cluster.admin.clone();
        async move { send(&admin, Method::PATCH, &path, "application/apply-patch+yaml", object).await }
    };
    assert_eq!(apply("one", false, "1").await.0, 201);
    let (code, status) = apply("two", false, "2").await;
    assert_eq!(code, 409);
    assert_eq!(status["details"]["causes"][0]["field"], ".data.k");
    let (code, object) = apply("two", true, "2").await;
    assert_eq!((code, object["data"]["k"].as_str()), (200, Some("2")));
}

#[tokio::test]
async fn an_apply_needs_no_name_where_the_object_has_one_but_may_not_move_it() {
    let cluster = start().await;
    let apply = |name: &str, metadata: Value| {
        let object =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"k": "1"}});
        let path = format!("{CONFIGS}/{name}?fieldManager=one");
        let admin = cluster.admin.clone();
        async move {
            let (code, answer) =
                send(&admin, Method::PATCH, &path, "application/apply-patch+yaml", object).await;
            (code, answer["message"].as_str().unwrap_or_default().to_owned())
        }
    };
    cluster.config("c", json!({})).await;
    assert_eq!(apply("c", json!({})).await.0, 200);
    let missing = "the name of the object (new based on URL) was undeterminable: name must be provided";
    assert_eq!(apply("new", json!({})).await, (400, missing.to_owned()));
    let other = "the name of the object (d) does not match the name on the URL (c)";
    assert_eq!(apply("c", json!({"name": "d"})).await, (400, other.to_owned()));
    let moved = "the namespace of the object (d) does not match the namespace on the URL (a)";
    assert_eq!(apply("c", json!({"name": "c", "namespace": "d"})).await, (400, moved.to_owned()));
}

#[tokio::test]
async fn a_deleted_object_with_a_finalizer_stays_until_it_is_released() {
    let cluster = start().await;
    cluster.config("c", json!({"metadata": {"finalizers": ["x.io/hold"]}})).await;
    let path = format!("{CONFIGS}/c");
    assert_eq!(cluster.send(Method::DELETE, &path, Value::Null).await.0, 200);
    let (code, held) = cluster.get(&path).await;
    assert_eq!(code, 200);
    assert!(held["metadata"]["deletionTimestamp"].is_string());
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}});
    let (code, status) = cluster.send(Method::POST, CONFIGS, object).await;
    assert_eq!((code, status["reason"].as_str()), (409, Some("AlreadyExists")));
    let release = json!({"metadata": {"finalizers": null}});
    let media = "application/merge-patch+json";
    assert_eq!(send(&cluster.admin, Method::PATCH, &path, media, release).await.0, 200);
    assert_eq!(cluster.get(&path).await.0, 404);
}

#[tokio::test]
async fn a_caller_without_credentials_reaches_health_only() {
    let cluster = start().await;
    let nobody = connect(&cluster.api.server, |_| {});
    let code = |path: &'static str| {
        let nobody = nobody.clone();
        async move { send(&nobody, Method::GET, path, "", Value::Null).await.0 }
    };
    assert_eq!(code("/readyz").await, 200);
    assert_eq!(code("/version").await, 200);
    assert_eq!(code("/api").await, 403);
    assert_eq!(code("/openapi/v2").await, 403);
    assert_eq!(code(CONFIGS).await, 403);
    assert_eq!(code("/api/v1/namespaces/a/configmaps?watch=1").await, 403);
}

#[tokio::test]
async fn forged_tokens_and_headers_give_no_identity() {
    let cluster = start().await;
    // {"alg":"none"} and a claim of system:masters, unsigned
    let none = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJzeXN0ZW06bWFzdGVycyJ9.";
    for token in [none, "garbage", "a.b.c"] {
        let forger = connect(&cluster.api.server, |endpoint| token.clone_into(&mut endpoint.token));
        assert_eq!(send(&forger, Method::GET, CONFIGS, "", Value::Null).await.0, 401, "{token}");
    }
    let nobody = connect(&cluster.api.server, |_| {});
    let request = Request::get(CONFIGS)
        .header("x-remote-user", "admin")
        .header("x-remote-group", "system:masters")
        .body(Bytes::new())
        .unwrap();
    assert_eq!(nobody.request(request).await.unwrap().status(), 403);
}

#[tokio::test]
async fn a_service_accounts_token_ends_with_the_account() {
    let cluster = start().await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "s"}});
    let accounts = "/api/v1/namespaces/a/serviceaccounts";
    assert_eq!(cluster.send(Method::POST, accounts, account).await.0, 201);
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let (code, made) = cluster.send(Method::POST, &format!("{accounts}/s/token"), request).await;
    assert_eq!(code, 201);
    let token = made["status"]["token"].as_str().unwrap().to_owned();
    let holder = connect(&cluster.api.server, |endpoint| endpoint.token = token);
    // known, but without a role
    assert_eq!(send(&holder, Method::GET, CONFIGS, "", Value::Null).await.0, 403);
    assert_eq!(send(&holder, Method::GET, "/api", "", Value::Null).await.0, 200);
    cluster.send(Method::DELETE, &format!("{accounts}/s"), Value::Null).await;
    assert_eq!(send(&holder, Method::GET, "/api", "", Value::Null).await.0, 401);
}

#[tokio::test]
async fn an_aggregated_role_holds_at_once() {
    let cluster = start().await;
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "viewers"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "v"}]});
    let path = "/apis/rbac.authorization.k8s.io/v1/namespaces/a/rolebindings";
    assert_eq!(cluster.send(Method::POST, path, binding).await.0, 201);
    let viewer = cluster.api.user("v", &[]);
    assert_eq!(send(&viewer, Method::GET, CONFIGS, "", Value::Null).await.0, 200);
    assert_eq!(send(&viewer, Method::GET, "/api/v1/namespaces/a/secrets", "", Value::Null).await.0, 403);
    assert_eq!(
        send(&viewer, Method::GET, "/api/v1/namespaces/default/configmaps", "", Value::Null).await.0,
        403
    );
}

/// Status, headers and raw body of a GET with these headers.
async fn fetch(client: &Client, path: &str, headers: &[(&str, &str)]) -> (u16, http::HeaderMap, Bytes) {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = client.request(request.body(Bytes::new()).unwrap()).await.unwrap();
    let (parts, body) = answer.into_parts();
    (parts.status.as_u16(), parts.headers, body)
}

fn unzip(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(bytes), &mut plain).unwrap();
    plain
}

#[tokio::test]
async fn long_answers_come_in_gzip_to_who_asks_and_hold_the_same_bytes() {
    let cluster = start().await;
    for name in ["a", "b", "c", "d", "e"] {
        cluster.config(name, json!({"data": {"k": name.repeat(100_000)}})).await;
    }
    let gzip = [("accept-encoding", "gzip")];
    for path in
        [CONFIGS.to_owned(), format!("{CONFIGS}?limit=3"), format!("{CONFIGS}?fieldSelector=metadata.name=a")]
    {
        let (code, headers, plain) = fetch(&cluster.admin, &path, &[]).await;
        assert_eq!((code, headers.get("content-encoding")), (200, None), "{path}");
        let list: Value = serde_json::from_slice(&plain).unwrap();
        assert!(!list["items"].as_array().unwrap().is_empty());
        let (code, headers, zipped) = fetch(&cluster.admin, &path, &gzip).await;
        if plain.len() <= 128 * 1024 {
            assert_eq!((code, headers.get("content-encoding"), zipped), (200, None, plain), "{path}");
            continue;
        }
        assert_eq!((code, headers["content-encoding"].to_str().unwrap()), (200, "gzip"), "{path}");
        assert_eq!(headers["vary"], "Accept-Encoding");
        assert_eq!(headers["content-type"], "application/json");
        assert!(zipped.len() < plain.len() / 10);
        assert_eq!(unzip(&zipped), plain, "{path}");
    }
    // every form of the answer, but no watch
    for media in ["application/yaml", "application/vnd.kubernetes.protobuf"] {
        let (_, headers, zipped) =
            fetch(&cluster.admin, CONFIGS, &[("accept-encoding", "gzip"), ("accept", media)]).await;
        assert_eq!(headers["content-encoding"], "gzip", "{media}");
        assert_eq!(headers["content-type"], media);
        assert!(unzip(&zipped).len() > 500_000);
    }
    let watch = format!("{CONFIGS}?watch=1&timeoutSeconds=1");
    assert!(fetch(&cluster.admin, &watch, &gzip).await.1.get("content-encoding").is_none());
}

/// Sends an object in CBOR and takes one back: code, type of the answer, answer.
async fn cbor(
    client: &Client,
    method: Method,
    path: &str,
    media: &str,
    body: &Value,
) -> (u16, String, Bytes) {
    let bytes = if body.is_null() { Vec::new() } else { api::codec::encode_cbor(body, None) };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", media)
        .header("accept", "application/cbor, application/json;q=0.5")
        .body(bytes.into())
        .unwrap();
    let answer = client.request(request).await.unwrap();
    let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
    (answer.status().as_u16(), kind, answer.into_body())
}

#[tokio::test]
async fn cbor_is_no_media_type_until_its_gate_is_opened() {
    let cluster = start().await;
    let accept = [("accept", "application/cbor")];
    assert_eq!(fetch(&cluster.admin, CONFIGS, &accept).await.0, 406);
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}});
    assert_eq!(cbor(&cluster.admin, Method::POST, CONFIGS, "application/cbor", &object).await.0, 415);
}

#[tokio::test]
async fn objects_lists_patches_and_watches_go_in_cbor() {
    let gates = "CBORServingAndStorage=true".parse().unwrap();
    let cluster = start_with(apiserver::Options { feature_gates: gates, ..Default::default() }).await;
    const SECRETS: &str = "/api/v1/namespaces/a/secrets";
    let secret =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"k": "AAH/"}});
    let (code, media, made) = cbor(&cluster.admin, Method::POST, SECRETS, "application/cbor", &secret).await;
    assert_eq!((code, media.as_str()), (201, "application/cbor"));
    assert!(made.starts_with(&[0xd9, 0xd9, 0xf7]));
    assert!(made.windows(5).any(|w| w == [0xd6, 0x43, 0, 1, 0xff]), "bytes are bytes");
    let path = format!("{SECRETS}/s");
    assert_eq!(api::codec::parse_cbor(&made).unwrap(), cluster.get(&path).await.1);

    let applied =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "labels": {"a": "b"}}});
    let apply = format!("{path}?fieldManager=test");
    let (code, _, applied) =
        cbor(&cluster.admin, Method::PATCH, &apply, "application/apply-patch+cbor", &applied).await;
    assert_eq!(code, 200);
    assert_eq!(api::codec::parse_cbor(&applied).unwrap()["metadata"]["labels"]["a"], "b");

    let (code, media, list) = cbor(&cluster.admin, Method::GET, SECRETS, "", &Value::Null).await;
    assert_eq!((code, media.as_str()), (200, "application/cbor"));
    assert_eq!(api::codec::parse_cbor(&list).unwrap(), cluster.get(SECRETS).await.1);

    let watch = format!("{SECRETS}?watch=1&timeoutSeconds=1");
    let (code, media, events) = cbor(&cluster.admin, Method::GET, &watch, "", &Value::Null).await;
    assert_eq!((code, media.as_str()), (200, "application/cbor-seq"));
    let event = api::codec::parse_cbor(&events).unwrap();
    assert_eq!((&event["type"], &event["object"]), (&json!("ADDED"), &cluster.get(&path).await.1));

    // what is refused, is refused in CBOR
    let (code, media, status) =
        cbor(&cluster.admin, Method::POST, SECRETS, "application/cbor", &secret).await;
    assert_eq!((code, media.as_str()), (409, "application/cbor"));
    assert_eq!(api::codec::parse_cbor(&status).unwrap()["reason"], "AlreadyExists");
    let twice = [0xa2, 0x41, b'a', 1, 0x41, b'a', 2];
    let request = Request::post(SECRETS)
        .header("content-type", "application/cbor")
        .body(Bytes::copy_from_slice(&twice));
    let refused = cluster.admin.request(request.unwrap()).await.unwrap();
    assert_eq!(refused.status(), 400);
    assert!(String::from_utf8_lossy(refused.body()).contains("duplicate map key"));
}

#[tokio::test]
async fn migrations_are_there_when_their_gate_is_opened() {
    const GROUP: &str = "/apis/storagemigration.k8s.io/v1beta1";
    let closed = start().await;
    assert_eq!(closed.get(GROUP).await.0, 404);
    let gates = "StorageVersionMigrator=true".parse().unwrap();
    let cluster = start_with(apiserver::Options { feature_gates: gates, ..Default::default() }).await;
    let (_, list) = cluster.get(GROUP).await;
    let names: Vec<_> = list["resources"].as_array().unwrap().iter().map(|r| r["name"].clone()).collect();
    assert_eq!(names, ["storageversionmigrations", "storageversionmigrations/status"]);
    assert_eq!(cluster.get("/apis/scheduling.k8s.io/v1alpha2").await.0, 404);
    let path = format!("{GROUP}/storageversionmigrations");
    let migration = json!({"apiVersion": "storagemigration.k8s.io/v1beta1", "kind": "StorageVersionMigration",
        "metadata": {"name": "m"}, "spec": {"resource": {"group": "", "resource": "secrets"}},
        "status": {"resourceVersion": "7"}});
    let (code, made) = cluster.send(Method::POST, &path, migration).await;
    assert_eq!((code, &made["status"], made["metadata"].get("generation")), (201, &json!({}), None));
    let mut noted = made.clone();
    noted["status"] = json!({"resourceVersion": "7"});
    noted["spec"]["resource"]["resource"] = json!("pods");
    let (code, noted) = cluster.send(Method::PUT, &format!("{path}/m/status"), noted).await;
    let both = (&noted["status"]["resourceVersion"], &noted["spec"]["resource"]["resource"]);
    assert_eq!((code, both), (200, (&json!("7"), &json!("secrets"))));
    let spec = cluster.get("/openapi/v3/apis/storagemigration.k8s.io/v1beta1").await;
    let schemas = &spec.1["components"]["schemas"];
    assert!(schemas["io.k8s.api.storagemigration.v1beta1.StorageVersionMigration"].is_object());
}

#[tokio::test]
async fn groups_of_pods_are_there_when_their_gate_is_opened() {
    const GROUP: &str = "/apis/scheduling.k8s.io/v1alpha2";
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {
        "automountServiceAccountToken": false, "containers": [{"name": "c", "image": "i"}],
        "schedulingGroup": {"podGroupName": "g"}}});
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    let closed = start().await;
    assert_eq!(closed.get(GROUP).await.0, 404);
    closed.send(Method::POST, "/api/v1/namespaces/a/serviceaccounts", account.clone()).await;
    let (code, stored) = closed.send(Method::POST, "/api/v1/namespaces/a/pods", pod.clone()).await;
    assert_eq!((code, stored["spec"].get("schedulingGroup")), (201, None));

    let gates = "GenericWorkload=true".parse().unwrap();
    let cluster = start_with(apiserver::Options { feature_gates: gates, ..Default::default() }).await;
    let (_, list) = cluster.get(GROUP).await;
    let names: Vec<_> = list["resources"].as_array().unwrap().iter().map(|r| r["name"].clone()).collect();
    assert_eq!(names, ["podgroups", "podgroups/status", "workloads"]);
    cluster.send(Method::POST, "/api/v1/namespaces/a/serviceaccounts", account).await;
    let (code, stored) = cluster.send(Method::POST, "/api/v1/namespaces/a/pods", pod).await;
    assert_eq!((code, &stored["spec"]["schedulingGroup"]["podGroupName"]), (201, &json!("g")));
    let spec = cluster.get("/openapi/v3/apis/scheduling.k8s.io/v1alpha2").await;
    assert!(spec.1["components"]["schemas"]["io.k8s.api.scheduling.v1alpha2.PodGroup"].is_object());

    let groups = format!("{GROUP}/namespaces/a/podgroups");
    let group = |workload: &str, template: &str| {
        let from = json!({"workload": {"workloadName": workload, "podGroupTemplateName": template}});
        json!({"apiVersion": "scheduling.k8s.io/v1alpha2", "kind": "PodGroup", "metadata": {"name": "g"},
            "spec": {"podGroupTemplateRef": from, "schedulingPolicy": {"gang": {"minCount": 2}}}})
    };
    let (code, said) = cluster.send(Method::POST, &groups, group("w", "t")).await;
    let why = "podgroups.scheduling.k8s.io \"g\" is forbidden: PodGroup rejected: Workload \"w\" not found";
    assert_eq!((code, said["message"].as_str()), (403, Some(why)));
    let workload = json!({"apiVersion": "scheduling.k8s.io/v1alpha2", "kind": "Workload", "metadata": {"name": "w"},
        "spec": {"podGroupTemplates": [{"name": "t", "schedulingPolicy": {"gang": {"minCount": 2}}}]}});
    let workloads = format!("{GROUP}/namespaces/a/workloads");
    assert_eq!(cluster.send(Method::POST, &workloads, workload).await.0, 201);
    assert_eq!(cluster.send(Method::POST, &groups, group("w", "other")).await.0, 403);
    let (code, made) = cluster.send(Method::POST, &groups, group("w", "t")).await;
    let finalizers = &made["metadata"]["finalizers"];
    assert_eq!((code, finalizers), (201, &json!(["scheduling.k8s.io/podgroup-protection"])));
    let mut changed = made.clone();
    changed["spec"]["schedulingPolicy"]["gang"]["minCount"] = json!(3);
    let (code, said) = cluster.send(Method::PUT, &format!("{groups}/g"), changed).await;
    assert_eq!((code, &said["details"]["causes"][0]["field"]), (422, &json!("spec.schedulingPolicy")));
    let mut noted = made;
    noted["status"] = json!({"conditions": [{"type": "PodGroupScheduled", "status": "True", "reason": "Scheduled",
        "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
    let (code, noted) = cluster.send(Method::PUT, &format!("{groups}/g/status"), noted).await;
    assert_eq!((code, &noted["status"]["conditions"][0]["reason"]), (200, &json!("Scheduled")));
}

#[tokio::test]
async fn rules_of_device_taints_are_there_when_their_gate_is_opened() {
    const GROUP: &str = "/apis/resource.k8s.io/v1beta2";
    let closed = start().await;
    assert_eq!(closed.get(GROUP).await.0, 404);

    let gates = "DRADeviceTaintRules=true".parse().unwrap();
    let cluster = start_with(apiserver::Options { feature_gates: gates, ..Default::default() }).await;
    let (_, list) = cluster.get(GROUP).await;
    let names: Vec<_> = list["resources"].as_array().unwrap().iter().map(|r| r["name"].clone()).collect();
    assert_eq!(names, ["devicetaintrules", "devicetaintrules/status"]);
    assert_eq!(cluster.get("/apis/scheduling.k8s.io/v1alpha2").await.0, 404);
    let spec = cluster.get("/openapi/v3/apis/resource.k8s.io/v1beta2").await;
    assert!(spec.1["components"]["schemas"]["io.k8s.api.resource.v1beta2.DeviceTaintRule"].is_object());

    let rules = format!("{GROUP}/devicetaintrules");
    let rule = |effect: &str| {
        json!({"apiVersion": "resource.k8s.io/v1beta2", "kind": "DeviceTaintRule", "metadata": {"name": "r"},
            "spec": {"deviceSelector": {"driver": "gpu.example.com"}, "taint": {"key": "broken", "effect": effect}}})
    };
    let (code, said) = cluster.send(Method::POST, &rules, rule("Never")).await;
    assert_eq!((code, &said["details"]["causes"][0]["field"]), (422, &json!("spec.taint.effect")));
    let (code, made) = cluster.send(Method::POST, &rules, rule("None")).await;
    assert_eq!((code, &made["metadata"]["generation"]), (201, &json!(1)));
    assert!(made["spec"]["taint"]["timeAdded"].is_string());
    let mut noted = made;
    noted["status"] = json!({"conditions": [{"type": "EvictionInProgress", "status": "False", "reason": "NoEffect",
        "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
    let (code, noted) = cluster.send(Method::PUT, &format!("{rules}/r/status"), noted).await;
    assert_eq!((code, &noted["status"]["conditions"][0]["reason"]), (200, &json!("NoEffect")));
    let (code, gone) = cluster.send(Method::DELETE, &format!("{rules}/r"), json!({})).await;
    assert_eq!((code, &gone["kind"]), (200, &json!("DeviceTaintRule")));
}

#[tokio::test]
async fn requests_are_counted_by_what_is_served_and_pages_say_what_serves_them() {
    let cluster = start().await;
    cluster.config("c", json!({})).await;
    assert_eq!(cluster.get(CONFIGS).await.0, 200);
    assert_eq!(cluster.get(&format!("{CONFIGS}/none")).await.0, 404);
    assert_eq!(cluster.get("/api/v1/namespaces/a/anything").await.0, 404);
    assert_eq!(cluster.get(&format!("{CONFIGS}/c/anything")).await.0, 404);
    let answer = cluster.admin.request(Request::get("/metrics").body(Bytes::new()).unwrap()).await.unwrap();
    let page = String::from_utf8_lossy(answer.body()).into_owned();
    let line = |name: &str, code: &str, scope: &str, verb: &str| {
        let code = if code.is_empty() { String::new() } else { format!("code=\"{code}\",") };
        format!(
            "apiserver_request_{name}{{{code}component=\"apiserver\",dry_run=\"\",group=\"\",resource=\"configmaps\",\
             scope=\"{scope}\",subresource=\"\",verb=\"{verb}\",version=\"v1\"}} 1\n"
        )
    };
    for line in [
        line("total", "201", "resource", "POST"),
        line("total", "200", "namespace", "LIST"),
        line("total", "404", "resource", "GET"),
        line("duration_seconds_count", "", "namespace", "LIST"),
        "apiserver_storage_objects{resource=\"configmaps\"} ".to_owned(),
        "apiserver_current_inflight_requests{request_kind=\"mutating\"} 0\n".to_owned(),
        "apiserver_request_sli_duration_seconds_bucket{component=\"apiserver\",group=\"\",resource=\"configmaps\",".to_owned(),
        "serviceaccount_valid_tokens_total 0\n".to_owned(),
        "process_cpu_seconds_total ".to_owned(),
        "apiserver_audit_requests_rejected_total 0\n".to_owned(),
        "apiserver_client_certificate_expiration_seconds_bucket{le=\"3600\"} 0\n".to_owned(),
    ] {
        assert!(page.contains(&line), "{line} in\n{page}");
    }
    assert!(!page.contains("anything"), "clients could name any resource");
    let structured = "application/json;v=v1beta1;g=config.k8s.io;as=Statusz";
    let request = Request::get("/statusz").header("accept", structured).body(Bytes::new()).unwrap();
    let status: Value = serde_json::from_slice(cluster.admin.request(request).await.unwrap().body()).unwrap();
    assert_eq!(
        (&status["metadata"]["name"], &status["emulationVersion"]),
        (&json!("kube-apiserver"), &json!("1.36"))
    );
    assert_eq!(cluster.get("/flagz").await.0, 200);
}
