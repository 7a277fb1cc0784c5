//! Requests that are not as they should be: queries, media types, bodies and paths, and what each is answered.

use bytes::Bytes;
use client::Client;
use http::{Method, Request};
use serde_json::{Value, json};
use testserver::TestServer;

const CONFIGS: &str = "/api/v1/namespaces/a/configmaps";
const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

struct Cluster {
    admin: Client,
    _api: TestServer,
}

impl Cluster {
    async fn start() -> Self {
        let api = TestServer::start(apiserver::Options::default()).await;
        let cluster = Self { admin: api.user("admin", &["system:masters"]), _api: api };
        for (path, body) in [
            ("/api/v1/namespaces", json!({"metadata": {"name": "a"}})),
            (CONFIGS, json!({"metadata": {"name": "c"}})),
        ] {
            assert_eq!(cluster.send("POST", path, JSON, &body.to_string()).await.0, 201);
        }
        cluster
    }

    /// Code and message of the answer.
    async fn send(&self, method: &str, path: &str, media: &str, body: &str) -> (u16, String) {
        let mut request = Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap()).uri(path);
        if !media.is_empty() {
            request = request.header("content-type", media);
        }
        let request = request.body(Bytes::from(body.to_owned())).unwrap();
        let (parts, body) = self.admin.request(request).await.unwrap().into_parts();
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        (parts.status.as_u16(), answer["message"].as_str().unwrap_or_default().to_owned())
    }

    /// Every row is answered as it says, and the object `c` is there in the end as it was.
    async fn check(&self, rows: &[(&str, &str, &str, &str, u16, &str)]) {
        let mut wrong = Vec::new();
        for (method, path, media, body, code, message) in rows {
            let path = path.replace('~', CONFIGS);
            let found = self.send(method, &path, media, body).await;
            if found != (*code, (*message).to_owned()) {
                wrong.push(format!("{method} {path} {body}\n  {found:?}\n  {:?}", (code, message)));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        assert_eq!(self.send("GET", &format!("{CONFIGS}/c"), "", "").await.0, 200);
    }
}

const NO_METHOD: &str = "the server does not allow this method on the requested resource";

#[tokio::test]
async fn queries_of_lists_and_watches_are_read_in_full() {
    let cluster = Cluster::start().await;
    let many = "strconv.ParseInt: parsing \"99999999999999999999\": value out of range";
    let list = "ListOptions.meta.k8s.io \"\" is invalid: ";
    let no_match = "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden";
    let both = format!(
        "{list}[{no_match} for watch unless sendInitialEvents is provided, resourceVersionMatch: Unsupported value: \"Foo\": supported values: \"NotOlderThan\"]"
    );
    let initial = format!(
        "{list}[{no_match} unless resourceVersion is provided, sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list]"
    );
    let continued = format!(
        "{list}[{no_match} for watch unless sendInitialEvents is provided, {no_match} when continue is provided]"
    );
    let token = "invalid continue token: continue key is not valid: ";
    let of = |value: &str| {
        use base64::Engine as _;
        format!("~?continue={}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value))
    };
    let (zero, empty, up, other) = (
        of(r#"{"v":"meta.k8s.io/v1","rv":0,"start":"x"}"#),
        of(r#"{"v":"meta.k8s.io/v1","rv":5,"start":""}"#),
        of(r#"{"v":"meta.k8s.io/v1","rv":5,"start":"../x"}"#),
        of(r#"{"v":"v9","rv":5,"start":"x"}"#),
    );
    let invalid = |why: &str| format!("{token}{why}");
    let (no_data, no_revision, no_start, leads_up, unknown) = (
        invalid("illegal base64 data at input byte 0"),
        invalid("incorrect encoded start resourceVersion (version meta.k8s.io/v1): meta.k8s.io/v1"),
        invalid("encoded start key empty (version meta.k8s.io/v1): meta.k8s.io/v1"),
        invalid("../x"),
        invalid("server does not recognize this encoded version v9"),
    );
    cluster
        .check(&[
            ("GET", "~?limit=", "", "", 400, "strconv.ParseInt: parsing \"\": invalid syntax"),
            ("GET", "~?limit=99999999999999999999", "", "", 400, many),
            ("GET", "~?limit=-1", "", "", 200, ""),
            ("GET", "~?timeoutSeconds=x", "", "", 400, "strconv.ParseInt: parsing \"x\": invalid syntax"),
            ("GET", "~?watch=1&limit=x", "", "", 400, "strconv.ParseInt: parsing \"x\": invalid syntax"),
            ("GET", "~?watch=FALSE", "", "", 200, ""),
            ("GET", "~?watch=1&resourceVersionMatch=Foo", "", "", 422, &both),
            ("GET", "~?watch=1&resourceVersionMatch=NotOlderThan&continue=x", "", "", 422, &continued),
            ("GET", "~?sendInitialEvents=1&resourceVersionMatch=Exact", "", "", 422, &initial),
            // what cannot be read comes before what does not fit together
            (
                "GET",
                "~?fieldSelector=a&resourceVersionMatch=Foo",
                "",
                "",
                400,
                "invalid selector: 'a'; can't understand 'a'",
            ),
            ("GET", "~?continue=!!", "", "", 400, &no_data),
            ("GET", &zero, "", "", 400, &no_revision),
            ("GET", &empty, "", "", 400, &no_start),
            ("GET", &up, "", "", 400, &leads_up),
            ("GET", &other, "", "", 400, &unknown),
        ])
        .await;
}

#[tokio::test]
async fn options_of_writes_are_refused_in_their_order() {
    let cluster = Cluster::start().await;
    let long = format!("~?fieldManager={}&dryRun=x&fieldValidation=Foo", "x".repeat(129));
    let policies = "supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\"";
    let unknown = |value: &str| {
        format!(
            "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: \"{value}\": {policies}"
        )
    };
    let (empty, foo) = (unknown(""), unknown("Foo"));
    let dry = "dryRun: Unsupported value: [\"x\"]: supported values: \"All\"";
    let of_body = format!("DeleteOptions.meta.k8s.io \"\" is invalid: {dry}");
    let both = format!(
        "DeleteOptions.meta.k8s.io \"\" is invalid: [propagationPolicy: Invalid value: \"Orphan\": orphanDependents and deletionPropagation cannot be both set, {dry}]"
    );
    let all = format!(
        "CreateOptions.meta.k8s.io \"\" is invalid: [fieldManager: Too long: may not be more than 128 bytes, {dry}, fieldValidation: Unsupported value: \"Foo\": supported values: \"\", \"Ignore\", \"Strict\", \"Warn\"]"
    );
    cluster
        .check(&[
            ("POST", &long, JSON, "{}", 422, &all),
            ("POST", "~?dryRun=", JSON, "{}", 422, "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: [\"\"]: supported values: \"All\""),
            ("POST", "~?dryRun=All&dryRun=All", JSON, r#"{"metadata":{"name":"n"}}"#, 201, ""),
            ("POST", "~?fieldManager=a%E2%80%8Bb", JSON, "{}", 422, "CreateOptions.meta.k8s.io \"\" is invalid: fieldManager: Invalid value: \"a\\u200bb\": invalid character U+200B (at position 1)"),
            ("PATCH", "~/c?force=1", MERGE, "{}", 422, "PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch"),
            ("PATCH", "~/c", APPLY, "{}", 422, "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch"),
            ("DELETE", "~/c?propagationPolicy=", "", "", 422, &empty),
            ("DELETE", "~/c?propagationPolicy=Foo", "", "", 422, &foo),
            ("DELETE", "~/c", JSON, r#"{"dryRun":["x"]}"#, 422, &of_body),
            ("DELETE", "~/c", JSON, r#"{"propagationPolicy":"Orphan","orphanDependents":true,"dryRun":["x"]}"#, 422, &both),
            ("DELETE", "~/c?gracePeriodSeconds=", "", "", 400, "strconv.ParseInt: parsing \"\": invalid syntax"),
            ("DELETE", "~/c?gracePeriodSeconds=-5&dryRun=All", "", "", 200, ""),
            ("DELETE", "~?resourceVersionMatch=Exact", "", "", 422, "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"),
        ])
        .await;
}

#[tokio::test]
async fn bodies_say_what_they_are_or_are_refused() {
    let cluster = Cluster::start().await;
    let no_kind = |kind: &str, version: &str| {
        format!(
            "{kind} in version \"v1\" cannot be handled as a ConfigMap: no kind \"{kind}\" is registered for version \"{version}\" in scheme \"pkg/api/legacyscheme/scheme.go:30\""
        )
    };
    let (elsewhere, nowhere) = (no_kind("ConfigMap", "apps/v1"), no_kind("Foo", "foo/v1"));
    let unread = |kind: &str, why: &str| {
        format!(
            "the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; json parse error: {why}"
        )
    };
    let end = "unexpected end of JSON input";
    let (empty, rest, cut) = (
        unread("ConfigMap", &format!("{end} (<empty>)")),
        unread("ConfigMap", "invalid character 'x' after top-level value ({} x)"),
        unread("ConfigMap", &format!("{end} ({{)")),
    );
    let (no_binding, no_token) =
        (unread("Binding", &format!("{end} (<empty>)")), unread("TokenRequest", &format!("{end} (<empty>)")));
    let types = "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf";
    let account = r#"{"metadata":{"name":"s"}}"#;
    cluster
        .check(&[
            ("POST", "~", JSON, "", 400, &empty),
            ("POST", "~", JSON, "{} x", 400, &rest),
            ("POST", "~", JSON, "{", 400, &cut),
            ("POST", "~", "text/plain", "{}", 415, types),
            ("POST", "~", JSON, r#"{"kind":"ConfigMap","apiVersion":"apps/v1"}"#, 400, &elsewhere),
            ("POST", "~", JSON, r#"{"kind":"Foo","apiVersion":"foo/v1"}"#, 400, &nowhere),
            ("POST", "~", JSON, r#"{"kind":"Pod"}"#, 400, "Pod in version \"v1\" cannot be handled as a ConfigMap: converting (v1.Pod) to (core.ConfigMap): unknown conversion"),
            ("POST", "~", JSON, r#"{"kind":"Pod","apiVersion":"v1"}"#, 400, "Pod in version \"v1\" cannot be handled as a ConfigMap: converting (v1.Pod) to (core.ConfigMap): unknown conversion"),
            ("PATCH", "~/c", MERGE, "{} x", 400, "invalid character 'x' after top-level value"),
            ("PATCH", "~/c", MERGE, "", 400, end),
            ("PUT", "~/c", JSON, "", 400, &empty),
            ("POST", "/api/v1/namespaces/a/bindings", JSON, "", 400, &no_binding),
            ("POST", "/api/v1/namespaces/a/pods/p/binding", JSON, r#"{"metadata":{"name":"q"},"target":{"name":"n"}}"#, 400, "name in URL does not match name in Binding object"),
            ("POST", "/api/v1/namespaces/a/pods/p/binding", JSON, r#"{"target":{"name":"n"}}"#, 400, "name in URL does not match name in Binding object"),
            ("POST", "/api/v1/namespaces/a/pods/p/eviction", JSON, r#"{}"#, 400, "name in URL does not match name in Eviction object"),
            ("POST", "/api/v1/namespaces/a/serviceaccounts", JSON, account, 201, ""),
            ("POST", "/api/v1/namespaces/a/serviceaccounts/s/token", JSON, "", 400, &no_token),
            ("POST", "/api/v1/namespaces/a/serviceaccounts/s/token", JSON, r#"{"kind":"Pod","apiVersion":"v1"}"#, 400, "Pod in version \"v1\" cannot be handled as a TokenRequest: converting (v1.Pod) to (authentication.TokenRequest): unknown conversion"),
        ])
        .await;
}

#[tokio::test]
async fn what_is_worth_a_warning_is_told_with_a_refusal_too() {
    let cluster = Cluster::start().await;
    let account = r#"{"metadata":{"name":"default"}}"#;
    assert_eq!(cluster.send("POST", "/api/v1/namespaces/a/serviceaccounts", JSON, account).await.0, 201);
    let warned = async |method: &str, path: &str, body: &Value| {
        let request = Request::builder().method(method).uri(path).header("content-type", JSON);
        let request = request.body(Bytes::from(body.to_string())).unwrap();
        let (parts, _) = cluster.admin.request(request).await.unwrap().into_parts();
        let texts = parts.headers.get_all("warning").iter();
        let texts: Vec<String> =
            texts.map(|w| w.to_str().unwrap().trim_start_matches("299 - ").replace('\\', "")).collect();
        (parts.status.as_u16(), texts)
    };
    // an unknown field is told although the object is refused; what a strategy warns of is not said of an invalid one
    let pods = "/api/v1/namespaces/a/pods";
    let pod = |image: &str| {
        json!({"metadata": {"name": "p"}, "spec": {"foo": 1, "automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": image, "resources": {"limits": {"memory": "100m"}}}]}})
    };
    let unknown = r#""unknown field "spec.foo"""#.to_owned();
    let fraction = r#""spec.containers[0].resources.limits[memory]: fractional byte value "100m" is invalid, must be an integer""#.to_owned();
    assert_eq!(warned("POST", pods, &pod("")).await, (422, vec![unknown.clone()]));
    for code in [201, 409] {
        let (found, texts) = warned("POST", pods, &pod("i")).await;
        assert_eq!((found, &texts[..2]), (code, &[unknown.clone(), fraction.clone()][..]));
    }
    // what is deprecated as a whole is told first, and of what is not there too
    let deprecated =
        r#""v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice""#.to_owned();
    let endpoints = "/api/v1/namespaces/a/endpoints";
    assert_eq!(warned("GET", &format!("{endpoints}/e"), &json!({})).await, (404, vec![deprecated.clone()]));
    assert_eq!(
        warned("POST", endpoints, &json!({"metadata": {"name": "e"}, "foo": 1})).await,
        (201, vec![deprecated, r#""unknown field "foo"""#.to_owned()])
    );
}

#[tokio::test]
async fn a_page_is_full_before_it_is_known_whether_more_is_selected() {
    let cluster = Cluster::start().await;
    for (name, label) in [("x", "1"), ("y", "2"), ("z", "2")] {
        let body = json!({"metadata": {"name": name, "labels": {"l": label}}});
        assert_eq!(cluster.send("POST", CONFIGS, JSON, &body.to_string()).await.0, 201);
    }
    let page = async |query: &str| {
        let request = Request::get(format!("{CONFIGS}?{query}")).body(Bytes::new()).unwrap();
        let list: Value =
            serde_json::from_slice(cluster.admin.request(request).await.unwrap().body()).unwrap();
        let names: Vec<String> = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|i| i["metadata"]["name"].as_str().unwrap().to_owned())
            .collect();
        (
            names,
            list["metadata"]["continue"].as_str().unwrap_or_default().to_owned(),
            list["metadata"]["remainingItemCount"].clone(),
        )
    };
    let (names, next, left) = page("limit=1&labelSelector=l%3D1").await;
    assert_eq!((names, left), (vec!["x".to_owned()], Value::Null));
    let (names, end, _) = page(&format!("limit=1&labelSelector=l%3D1&continue={next}")).await;
    assert_eq!((names, end.as_str()), (vec![], ""));
    // the last of all is no page before another
    let (names, end, _) = page("limit=2&labelSelector=l%3D2").await;
    assert_eq!((names.len(), end.as_str()), (2, ""));
    assert_eq!(page("limit=3").await.2, json!(1));
}

#[tokio::test]
async fn labels_that_come_with_a_status_are_owned_where_they_are_taken() {
    let cluster = Cluster::start().await;
    let sets = "/apis/apps/v1/namespaces/a";
    let template =
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let spec = json!({"selector": {"matchLabels": {"a": "b"}}, "template": template});
    for (plural, owns_label) in [("replicasets", true), ("deployments", false)] {
        let body = json!({"metadata": {"name": "s"}, "spec": spec});
        assert_eq!(cluster.send("POST", &format!("{sets}/{plural}"), JSON, &body.to_string()).await.0, 201);
        let patch = json!({"metadata": {"labels": {"x": "y"}}, "status": {"observedGeneration": 1}});
        let request =
            Request::patch(format!("{sets}/{plural}/s/status?fieldManager=m")).header("content-type", MERGE);
        let request = request.body(Bytes::from(patch.to_string())).unwrap();
        let object: Value =
            serde_json::from_slice(cluster.admin.request(request).await.unwrap().body()).unwrap();
        let entries = object["metadata"]["managedFields"].as_array().unwrap();
        let own = entries.iter().find(|e| e["manager"] == "m" && e["subresource"] == "status").unwrap();
        assert_eq!(own["fieldsV1"].pointer("/f:metadata/f:labels").is_some(), owns_label, "{plural}: {own}");
        assert_eq!(object["metadata"]["labels"]["x"] == "y", owns_label, "{plural}");
    }
}

#[tokio::test]
async fn objects_are_made_in_their_collection_and_written_under_their_name() {
    let cluster = Cluster::start().await;
    let named = r#"{"metadata":{"name":"n"}}"#;
    cluster
        .check(&[
            ("POST", "~/c", JSON, named, 405, NO_METHOD),
            ("POST", "/api/v1/namespaces/a", JSON, named, 405, NO_METHOD),
            ("PUT", "~", JSON, named, 405, NO_METHOD),
            ("PATCH", "~", MERGE, "{}", 405, NO_METHOD),
            ("POST", "/api/v1/configmaps", JSON, named, 405, NO_METHOD),
            ("DELETE", "/api/v1/configmaps", JSON, "", 405, NO_METHOD),
            ("GET", "~/n", "", "", 404, "configmaps \"n\" not found"),
        ])
        .await;
}
