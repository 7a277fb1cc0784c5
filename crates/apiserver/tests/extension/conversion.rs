//! Custom resources in several versions, with and without a conversion webhook.

use http::Method;
use serde_json::{Value, json};

use crate::cluster::{Cluster, send};
use crate::program::{Answer, Program};
use crate::widgets::{DEFINITIONS, WIDGETS, definition, schema, widget};

const NEWER: &str = "/apis/example.com/v2/namespaces/a/widgets";

/// `v1` has `spec.host` and `spec.port`, `v2` has `spec.address`.
fn converted(mut object: Value, to: &str) -> Value {
    let spec = object["spec"].clone();
    object["spec"] = match to {
        "example.com/v2" => {
            json!({"address": format!("{}:{}", spec["host"].as_str().unwrap(), spec["port"])})
        }
        _ => {
            let (host, port) = spec["address"].as_str().unwrap().split_once(':').unwrap();
            json!({"host": host, "port": port.parse::<u16>().unwrap()})
        }
    };
    object["apiVersion"] = json!(to);
    object
}

fn answer(review: &Value) -> Answer {
    let request = &review["request"];
    let to = request["desiredAPIVersion"].as_str().unwrap();
    let objects: Vec<Value> =
        request["objects"].as_array().unwrap().iter().map(|o| converted(o.clone(), to)).collect();
    (
        200,
        json!({"kind": "ConversionReview", "apiVersion": review["apiVersion"], "response":
        {"uid": request["uid"], "result": {"status": "Success"}, "convertedObjects": objects}}),
    )
}

async fn with_webhook(program: &Program) -> Cluster {
    let cluster = Cluster::start().await;
    let one = schema(json!({"host": {"type": "string"}, "port": {"type": "integer", "default": 80}}));
    let two = schema(json!({"address": {"type": "string"}}));
    let mut wanted = definition(&[("v1", json!({"schema": one})), ("v2", json!({"schema": two}))]);
    wanted["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v2", "v1"],
        "clientConfig": {"url": program.url("/convert"), "caBundle": program.bundle}}});
    cluster.define(wanted).await;
    cluster
}

fn newer(name: &str, address: &str) -> Value {
    json!({"apiVersion": "example.com/v2", "kind": "Widget", "metadata": {"name": name}, "spec": {"address": address}})
}

#[tokio::test]
async fn a_webhook_converts_what_is_written_read_listed_and_watched() {
    let program = Program::start(&[], |_, review| answer(review)).await;
    let cluster = with_webhook(&program).await;
    cluster.make(WIDGETS, widget("old", json!({"host": "h"}))).await;
    assert_eq!(program.calls().len(), 0, "the stored version needs no webhook");

    let made = cluster.make(NEWER, newer("new", "k:1")).await;
    assert_eq!((&made["apiVersion"], &made["spec"]), (&json!("example.com/v2"), &json!({"address": "k:1"})));
    let (_, stored) = cluster.get(&format!("{WIDGETS}/new")).await;
    assert_eq!(stored["spec"], json!({"host": "k", "port": 1}));
    let (_, shown) = cluster.get(&format!("{NEWER}/old")).await;
    assert_eq!(shown["spec"], json!({"address": "h:80"}));
    let change = json!({"spec": {"address": "k:2"}});
    assert_eq!(send(&cluster.admin, Method::PATCH, &format!("{NEWER}/new"), change).await.0, 200);
    assert_eq!(cluster.get(&format!("{WIDGETS}/new")).await.1["spec"]["port"], 2);

    for n in 0..5 {
        cluster.make(WIDGETS, widget(&format!("w{n}"), json!({"host": "h"}))).await;
    }
    program.calls();
    let (_, list) = cluster.get(NEWER).await;
    let items = list["items"].as_array().unwrap();
    assert!(items.iter().all(|o| o["apiVersion"] == "example.com/v2" && o["spec"]["address"].is_string()));
    let calls = program.calls();
    assert_eq!(calls.len(), 1, "a list is one review");
    let (path, review) = &calls[0];
    assert_eq!(
        (path.as_str(), &review["apiVersion"]),
        ("/convert?timeout=30s", &json!("apiextensions.k8s.io/v1"))
    );
    cluster.get(NEWER).await;
    assert_eq!(program.calls().len(), 0, "what did not change is not asked for again");

    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    let mut events = cluster.watch(&format!("{NEWER}?resourceVersion={version}")).await;
    cluster.make(WIDGETS, widget("x", json!({"host": "x"}))).await;
    let (what, object) = events.next().await.unwrap();
    assert_eq!((what.as_str(), &object["spec"]["address"]), ("ADDED", &json!("x:80")));
}

#[tokio::test]
async fn a_webhook_that_fails_or_cheats_is_told_of() {
    let program = Program::start(&[], |_, review| {
        let (code, mut answer) = answer(review);
        let object = &review["request"]["objects"][0]["metadata"]["name"];
        match object.as_str().unwrap() {
            "down" => return (500, json!("boom")),
            "refused" => answer["response"]["result"] = json!({"status": "Failed", "message": "no way"}),
            "renamed" => answer["response"]["convertedObjects"][0]["metadata"]["name"] = json!("other"),
            "lost" => answer["response"]["convertedObjects"] = json!([]),
            _ => {}
        }
        (code, answer)
    })
    .await;
    let cluster = with_webhook(&program).await;
    for (name, why) in [
        (
            "down",
            "failed: an error on the server (\"\\\"boom\\\"\") has prevented the request from succeeding",
        ),
        ("refused", "failed: no way"),
        (
            "renamed",
            "returned invalid converted object at index 0: must have the same name: renamed != other",
        ),
        ("lost", "returned 0 objects, expected 1"),
    ] {
        cluster.make(WIDGETS, widget(name, json!({"host": "h"}))).await;
        let (code, refused) = cluster.get(&format!("{NEWER}/{name}")).await;
        let message = refused["message"].as_str().unwrap();
        assert_eq!(
            (code, message),
            (500, format!("conversion webhook for example.com/v1, Kind=Widget {why}").as_str())
        );
    }
    let (code, refused) = cluster.get(NEWER).await;
    assert_eq!(code, 500, "{refused}");
}

#[tokio::test]
async fn a_write_that_changes_nothing_stores_the_object_in_the_new_storage_version() {
    let cluster = Cluster::start().await;
    let two =
        |first: &'static str, second: &'static str| definition(&[(first, json!({})), (second, json!({}))]);
    cluster.define(two("v1", "v2")).await;
    let made = cluster.make(WIDGETS, widget("w", json!({"a": 1}))).await;
    let path = format!("{DEFINITIONS}/widgets.example.com");
    let mut changed = two("v2", "v1")["spec"].clone();
    changed["versions"].as_array_mut().unwrap().reverse();
    let (code, told) = send(&cluster.admin, Method::PATCH, &path, json!({"spec": changed})).await;
    assert_eq!((code, &told["status"]["storedVersions"]), (200, &json!(["v1", "v2"])));
    let (code, same) = send(&cluster.admin, Method::PUT, &format!("{WIDGETS}/w"), made.clone()).await;
    assert_eq!(code, 200);
    assert_ne!(same["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    let (_, again) = send(&cluster.admin, Method::PUT, &format!("{WIDGETS}/w"), same.clone()).await;
    assert_eq!(again["metadata"]["resourceVersion"], same["metadata"]["resourceVersion"]);
}
