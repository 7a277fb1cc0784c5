//! CustomResourceDefinitions and the resources they define.

use apiserver::Options;
use http::Method;
use serde_json::{Value, json};

use crate::cluster::{Cluster, send, send_with};
use crate::widgets::{DEFINITIONS, WIDGETS, definition, named, schema, widget};

const AS_TABLE: &[(&str, &str)] = &[("accept", "application/json;as=Table;g=meta.k8s.io;v=v1")];

async fn patch(cluster: &Cluster, path: &str, body: Value) -> (u16, Value) {
    send(&cluster.admin, Method::PATCH, path, body).await
}

#[tokio::test]
async fn a_custom_resource_is_listed_in_discovery_with_all_its_names() {
    let cluster = Cluster::start().await;
    let mut wanted = definition(&[("v1", json!({"subresources": {"status": {}}})), ("v1beta1", json!({}))]);
    wanted["spec"]["names"]["shortNames"] = json!(["wd"]);
    wanted["spec"]["names"]["categories"] = json!(["all"]);
    cluster.define(wanted).await;

    let (_, list) = cluster.get("/apis/example.com/v1").await;
    expect_test::expect![[r#"{"categories":["all"],"kind":"Widget","name":"widgets","namespaced":true,"shortNames":["wd"],"singularName":"widget","storageVersionHash":"gIwvi5rymmg=","verbs":["delete","deletecollection","get","list","patch","create","update","watch"]}"#]]
        .assert_eq(&list["resources"][0].to_string());
    expect_test::expect![[r#"{"kind":"Widget","name":"widgets/status","namespaced":true,"singularName":"","verbs":["get","patch","update"]}"#]]
        .assert_eq(&list["resources"][1].to_string());
    let (_, group) = cluster.get("/apis/example.com").await;
    assert_eq!(group["preferredVersion"]["version"], "v1");
    assert_eq!(group["versions"].as_array().unwrap().len(), 2);
    assert_eq!(cluster.get("/apis/example.com/v1/nosuch").await, (404, Value::Null));
    // without a namespace only lists and watches are known
    assert_eq!(cluster.get("/apis/example.com/v1/widgets").await.0, 200);
    assert_eq!(cluster.get("/apis/example.com/v1/widgets/w").await.0, 404);
}

#[tokio::test]
async fn custom_resources_are_served_from_the_first_request_after_a_restart() {
    let cluster = Cluster::start().await;
    cluster.define(definition(&[("v1", json!({}))])).await;
    let made = cluster.make(WIDGETS, widget("w", json!({"a": 1}))).await;
    let dir = cluster.stop().await;
    let again = Cluster::in_dir(dir, Options::default()).await.unwrap();
    assert_eq!(again.get(&format!("{WIDGETS}/w")).await, (200, made));
}

#[tokio::test]
async fn a_deleted_definition_takes_its_objects_along_once_their_finalizers_are_gone() {
    let cluster = Cluster::start().await;
    cluster.define(definition(&[("v1", json!({}))])).await;
    let mut held = widget("held", json!({}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    cluster.make(WIDGETS, held).await;
    cluster.make(WIDGETS, widget("free", json!({}))).await;
    let mut events = cluster.watch(&format!("{WIDGETS}?allowWatchBookmarks=false")).await;
    assert_eq!(events.told().await, "ADDED free");
    assert_eq!(events.told().await, "ADDED held");

    let path = format!("{DEFINITIONS}/widgets.example.com");
    let (code, deleted) = send(&cluster.admin, Method::DELETE, &path, Value::Null).await;
    assert_eq!(code, 200);
    assert_eq!(deleted["metadata"]["finalizers"], json!(["customresourcecleanup.apiextensions.k8s.io"]));
    let mut gone = vec![events.told().await, events.told().await];
    gone.sort();
    assert_eq!(gone, ["DELETED free", "MODIFIED held"]);
    let (code, refused) = cluster.post(WIDGETS, widget("late", json!({}))).await;
    assert_eq!(
        (code, refused["message"].as_str().unwrap()),
        (405, "create not allowed while custom resource definition is terminating")
    );
    let mut definitions = cluster.watch(&format!("{DEFINITIONS}?resourceVersion=0")).await;
    let (_, waiting) = definitions.next().await.unwrap();
    assert_eq!(waiting["metadata"]["name"], "widgets.example.com");

    let release = json!({"metadata": {"finalizers": null}});
    assert_eq!(patch(&cluster, &format!("{WIDGETS}/held"), release).await.0, 200);
    assert_eq!(events.told().await, "DELETED held");
    assert_eq!(events.told().await, "end");
    while definitions.told().await != "DELETED widgets.example.com" {}
    assert_eq!(cluster.get(WIDGETS).await, (404, Value::Null));
    assert_eq!(cluster.get("/apis/example.com").await.0, 404);
}

#[tokio::test]
async fn a_name_that_comes_free_goes_to_the_definition_that_waits_for_it() {
    let cluster = Cluster::start().await;
    cluster.define(definition(&[("v1", json!({}))])).await;
    let version = json!({"name": "v1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": {"type": "object"}}});
    cluster.make(DEFINITIONS, named("gadgets", "Widget", vec![version])).await;
    cluster.settled("gadgets.example.com", "NamesAccepted", "False").await;
    assert_eq!(cluster.get("/apis/example.com/v1/gadgets").await.0, 404);
    let path = format!("{DEFINITIONS}/widgets.example.com");
    assert_eq!(send(&cluster.admin, Method::DELETE, &path, Value::Null).await.0, 200);
    cluster.settled("gadgets.example.com", "Established", "True").await;
    assert_eq!(cluster.get("/apis/example.com/v1/gadgets").await.0, 200);
}

#[tokio::test]
async fn a_change_of_the_schema_ends_the_watches_and_shows_on_older_objects() {
    let cluster = Cluster::start().await;
    let properties = json!({"a": {"type": "integer"}});
    cluster.define(definition(&[("v1", json!({"schema": schema(properties)}))])).await;
    cluster.make(WIDGETS, widget("w", json!({"a": 1}))).await;
    let mut events = cluster.watch(&format!("{WIDGETS}?resourceVersion=0")).await;
    assert_eq!(events.told().await, "ADDED w");

    let properties = json!({"a": {"type": "integer"}, "late": {"type": "string", "default": "x"}});
    let changed = definition(&[("v1", json!({"schema": schema(properties)}))]);
    let path = format!("{DEFINITIONS}/widgets.example.com");
    assert_eq!(patch(&cluster, &path, json!({"spec": changed["spec"]})).await.0, 200);
    assert_eq!(events.told().await, "end");
    let (_, shown) = cluster.get(&format!("{WIDGETS}/w")).await;
    assert_eq!(shown["spec"], json!({"a": 1, "late": "x"}));
    let mut again = cluster.watch(&format!("{WIDGETS}?resourceVersion=0")).await;
    assert_eq!(again.next().await.unwrap().1["spec"]["late"], "x");
}

#[tokio::test]
async fn status_and_scale_are_views_of_a_custom_resource() {
    let cluster = Cluster::start().await;
    let properties = json!({"size": {"type": "integer"}, "other": {"type": "string"}});
    let subresources = json!({"status": {}, "scale": {"specReplicasPath": ".spec.size",
        "statusReplicasPath": ".status.size", "labelSelectorPath": ".status.selector"}});
    let version = json!({"schema": schema(properties), "subresources": subresources});
    cluster.define(definition(&[("v1", version)])).await;
    let mut first = widget("w", json!({"size": 2}));
    first["status"] = json!({"size": 9});
    let made = cluster.make(WIDGETS, first).await;
    assert_eq!(made.get("status"), None, "status is written through its own endpoint");

    let status = json!({"spec": {"size": 7}, "status": {"size": 1, "selector": "a=b"}});
    let (code, changed) = patch(&cluster, &format!("{WIDGETS}/w/status"), status).await;
    assert_eq!((code, &changed["spec"]["size"], &changed["status"]["size"]), (200, &json!(2), &json!(1)));
    assert_eq!(changed["metadata"]["generation"], 1);

    let scale = format!("{WIDGETS}/w/scale");
    let (_, shown) = cluster.get(&scale).await;
    assert_eq!(
        (&shown["spec"], &shown["status"]),
        (&json!({"replicas": 2}), &json!({"replicas": 1, "selector": "a=b"}))
    );
    let (code, scaled) = patch(&cluster, &scale, json!({"spec": {"replicas": 5}})).await;
    assert_eq!((code, &scaled["spec"]["replicas"]), (200, &json!(5)));
    let (_, object) = cluster.get(&format!("{WIDGETS}/w")).await;
    assert_eq!((&object["spec"]["size"], &object["metadata"]["generation"]), (&json!(5), &json!(2)));
    cluster.make(WIDGETS, widget("none", json!({}))).await;
    assert_eq!(cluster.get(&format!("{WIDGETS}/none/scale")).await.0, 422);
}

#[tokio::test]
async fn kinds_of_old_say_what_takes_their_place() {
    let cluster = Cluster::start().await;
    for (path, wanted) in [
        ("/api/v1/endpoints", "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
        ("/api/v1/componentstatuses", "v1 ComponentStatus is deprecated in v1.19+"),
    ] {
        let (_, headers, table) = send_with(&cluster.admin, Method::GET, path, AS_TABLE, Value::Null).await;
        assert_eq!(headers["warning"], format!("299 - \"{wanted}\""));
        assert_eq!(table["kind"], "Table");
    }
}

#[tokio::test]
async fn columns_selectable_fields_and_deprecation_come_from_the_version() {
    let cluster = Cluster::start().await;
    let properties = json!({"color": {"type": "string"}, "n": {"type": "integer"}});
    let columns = json!([{"name": "Color", "type": "string", "jsonPath": ".spec.color", "description": "its paint"},
        {"name": "N", "type": "integer", "jsonPath": ".spec.n", "priority": 1}]);
    let version = json!({"schema": schema(properties), "additionalPrinterColumns": columns, "deprecated": true,
        "selectableFields": [{"jsonPath": ".spec.color"}]});
    cluster.define(definition(&[("v1", version)])).await;
    for (name, color) in [("a", "red"), ("b", "blue")] {
        cluster.make(WIDGETS, widget(name, json!({"color": color, "n": 1}))).await;
    }
    let (_, headers, table) = send_with(&cluster.admin, Method::GET, WIDGETS, AS_TABLE, Value::Null).await;
    assert_eq!(headers["warning"], r#"299 - "example.com/v1 Widget is deprecated""#);
    let cells: Vec<&Value> = table["rows"].as_array().unwrap().iter().map(|r| &r["cells"]).collect();
    assert_eq!(cells, [&json!(["a", "red", 1]), &json!(["b", "blue", 1])]);
    assert_eq!(table["columnDefinitions"][1]["description"], "its paint");
    assert_eq!(table["columnDefinitions"][2]["priority"], 1);

    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap();
        items.iter().map(|o| o["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    let (_, red) = cluster.get(&format!("{WIDGETS}?fieldSelector=spec.color=red")).await;
    assert_eq!(names(&red), ["a"]);
    let (code, refused) = cluster.get(&format!("{WIDGETS}?fieldSelector=spec.n=1")).await;
    assert_eq!((code, refused["message"].as_str().unwrap()), (400, "field label not supported: spec.n"));

    let mut events = cluster.watch(&format!("{WIDGETS}?fieldSelector=spec.color=red")).await;
    assert_eq!(events.told().await, "ADDED a");
    patch(&cluster, &format!("{WIDGETS}/b"), json!({"spec": {"color": "red"}})).await;
    assert_eq!(events.told().await, "ADDED b");
    patch(&cluster, &format!("{WIDGETS}/a"), json!({"spec": {"color": "blue"}})).await;
    assert_eq!(events.told().await, "DELETED a");
    let path = format!("{WIDGETS}?fieldSelector=spec.color=red");
    assert_eq!(send(&cluster.admin, Method::DELETE, &path, Value::Null).await.0, 200);
    assert_eq!(names(&cluster.get(WIDGETS).await.1), ["a"]);
}

#[tokio::test]
async fn finalizers_without_a_domain_are_taken_with_a_warning() {
    let cluster = Cluster::start().await;
    cluster.define(definition(&[("v1", json!({}))])).await;
    let mut object = widget("w", json!({}));
    object["metadata"]["finalizers"] = json!(["b.example.com", "orphan", "a.example.com/a"]);
    let (code, headers, _) = send_with(&cluster.admin, Method::POST, WIDGETS, &[], object).await;
    let warning = |name: &str, path: &str| {
        format!(
            "299 - \"metadata.finalizers: \\\"{name}\\\": prefer a domain-qualified finalizer name{path} to avoid accidental conflicts with other finalizer writers\""
        )
    };
    let said = |headers: &http::HeaderMap| headers["warning"].to_str().unwrap().to_owned();
    assert_eq!((code, said(&headers)), (201, warning("b.example.com", " including a path (/)")));
    let path = format!("{WIDGETS}/w");
    let change = json!({"metadata": {"finalizers": ["b.example.com", "plain"]}});
    let (code, headers, _) = send_with(&cluster.admin, Method::PATCH, &path, &[], change).await;
    assert_eq!((code, said(&headers)), (200, warning("plain", "")));
}

#[tokio::test]
async fn unknown_fields_are_dropped_warned_of_or_refused_as_asked() {
    let cluster = Cluster::start().await;
    cluster.define(definition(&[("v1", json!({"schema": schema(json!({"a": {"type": "integer"}}))}))])).await;
    let odd = |name: &str| widget(name, json!({"a": 1, "b": 2}));
    let (_, headers, made) = send_with(&cluster.admin, Method::POST, WIDGETS, &[], odd("w")).await;
    assert_eq!(headers["warning"], r#"299 - "unknown field \"spec.b\"""#);
    assert_eq!(made["spec"], json!({"a": 1}));
    let (_, headers, _) =
        send_with(&cluster.admin, Method::POST, &format!("{WIDGETS}?fieldValidation=Ignore"), &[], odd("x"))
            .await;
    assert_eq!(headers.get("warning"), None);
    let (code, refused) = cluster.post(&format!("{WIDGETS}?fieldValidation=Strict"), odd("y")).await;
    assert_eq!(
        (code, refused["message"].as_str().unwrap()),
        (
            400,
            "Widget in version \"v1\" cannot be handled as a Widget: strict decoding error: unknown field \"spec.b\""
        )
    );
    let (code, refused) =
        patch(&cluster, &format!("{WIDGETS}/w?fieldValidation=Strict"), json!({"spec": {"c": 3}})).await;
    assert_eq!(code, 422, "{refused}");
    let nameless = json!({"metadata": {"name": "z"}});
    let (code, refused) = cluster.post(WIDGETS, nameless).await;
    assert_eq!(code, 400);
    assert!(refused["message"].as_str().unwrap().contains("Object 'Kind' is missing in"), "{refused}");
}

#[tokio::test]
async fn quotas_count_custom_resources() {
    let cluster = Cluster::start().await;
    cluster.define(definition(&[("v1", json!({}))])).await;
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"},
        "spec": {"hard": {"count/widgets.example.com": "1"}}});
    cluster.make("/api/v1/namespaces/a/resourcequotas", quota).await;
    let status = json!({"status": {"hard": {"count/widgets.example.com": "1"},
        "used": {"count/widgets.example.com": "0"}}});
    let path = "/api/v1/namespaces/a/resourcequotas/q/status";
    assert_eq!(patch(&cluster, path, status).await.0, 200);
    cluster.make(WIDGETS, widget("one", json!({}))).await;
    let (code, refused) = cluster.post(WIDGETS, widget("two", json!({}))).await;
    assert_eq!(
        (code, refused["message"].as_str().unwrap()),
        (
            403,
            "widgets.example.com \"two\" is forbidden: exceeded quota: q, requested: count/widgets.example.com=1, used: count/widgets.example.com=1, limited: count/widgets.example.com=1"
        )
    );
}

#[tokio::test]
async fn an_unchanged_value_that_breaks_a_new_rule_is_warned_of_only() {
    let cluster = Cluster::start().await;
    let with_rules = |rules: Value| {
        let n = json!({"type": "integer", "x-kubernetes-validations": rules});
        definition(&[("v1", json!({"schema": schema(json!({"n": n, "m": {"type": "integer"}}))}))])
    };
    cluster.define(with_rules(json!([]))).await;
    cluster.make(WIDGETS, widget("w", json!({"n": 9}))).await;
    let rules = json!([{"rule": "self < 5", "message": "too large"}]);
    let stricter = json!({"spec": {"versions": with_rules(rules)["spec"]["versions"]}});
    assert_eq!(patch(&cluster, &format!("{DEFINITIONS}/widgets.example.com"), stricter).await.0, 200);
    let path = format!("{WIDGETS}/w");
    let change = |spec: Value| send_with(&cluster.admin, Method::PATCH, &path, &[], json!({"spec": spec}));
    // the rule counts from some moment on
    for n in 10..1000 {
        if change(json!({"n": n})).await.0 == 422 {
            break;
        }
    }
    let (code, headers, made) = change(json!({"m": 1})).await;
    assert_eq!(code, 200);
    let n = &made["spec"]["n"];
    assert_eq!(headers["warning"], format!("299 - \"spec.n: Invalid value: {n}: too large\""));
    let (code, headers, _) = change(json!({"n": 1})).await;
    assert!(code == 200 && !headers.contains_key("warning"));
}

#[tokio::test]
async fn every_version_that_definitions_serve_has_an_api_service() {
    let cluster = Cluster::start().await;
    let services = "/apis/apiregistration.k8s.io/v1/apiservices";
    cluster.define(definition(&[("v1", json!({})), ("v1beta1", json!({}))])).await;
    let service = cluster.until(services, "v1.example.com", |_| true).await;
    assert_eq!(
        service["spec"],
        json!({"group": "example.com", "version": "v1", "groupPriorityMinimum": 1000, "versionPriority": 100})
    );
    assert_eq!(service["metadata"]["labels"], json!({"kube-aggregator.kubernetes.io/automanaged": "true"}));
    assert_eq!(service["status"]["conditions"][0]["reason"], "Local");

    // it comes back where somebody deletes it, and as it was where somebody changes it
    let one = format!("{services}/v1.example.com");
    let uid = service["metadata"]["uid"].clone();
    assert_eq!(send(&cluster.admin, Method::DELETE, &one, Value::Null).await.0, 200);
    cluster.until(services, "v1.example.com", |o| o["metadata"]["uid"] != uid).await;
    assert_eq!(patch(&cluster, &one, json!({"spec": {"versionPriority": 7}})).await.0, 200);
    cluster.until(services, "v1.example.com", |o| o["spec"]["versionPriority"] == 100).await;

    // a version that is no longer served goes, one that somebody has taken over stays
    let other = format!("{services}/v1beta1.example.com");
    cluster.until(services, "v1beta1.example.com", |_| true).await;
    let label = json!({"metadata": {"labels": {"kube-aggregator.kubernetes.io/automanaged": null}}});
    assert_eq!(patch(&cluster, &one, label).await.0, 200);
    let mut events =
        cluster.watch(&format!("{services}?fieldSelector=metadata.name=v1beta1.example.com")).await;
    assert_eq!(events.told().await, "ADDED v1beta1.example.com");
    let path = format!("{DEFINITIONS}/widgets.example.com");
    assert_eq!(send(&cluster.admin, Method::DELETE, &path, Value::Null).await.0, 200);
    loop {
        match events.told().await {
            told if told == "DELETED v1beta1.example.com" => break,
            told => assert_eq!(told, "MODIFIED v1beta1.example.com"),
        }
    }
    assert_eq!(cluster.get(&other).await.0, 404);
    assert_eq!(cluster.get(&one).await.0, 200);
}
