//! Definitions of custom resources for tests, and watches over HTTPS.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use client::Body;
use http::Request;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use crate::cluster::Cluster;

pub const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
pub const WIDGETS: &str = "/apis/example.com/v1/namespaces/a/widgets";

/// `widgets.example.com` with these versions; the first is stored.
pub fn definition(versions: &[(&str, Value)]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .enumerate()
        .map(|(at, (name, more))| {
            let mut version = json!({"name": name, "served": true, "storage": at == 0,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}});
            for (key, value) in more.as_object().unwrap() {
                version[key] = value.clone();
            }
            version
        })
        .collect();
    named("widgets", "Widget", versions)
}

/// A definition of other names in the same group.
pub fn named(plural: &str, kind: &str, versions: Vec<Value>) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.example.com")},
        "spec": {"group": "example.com", "scope": "Namespaced", "versions": versions,
            "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List")}}})
}

/// The schema of a version: the properties of `spec` and `status`.
pub fn schema(spec: Value) -> Value {
    json!({"openAPIV3Schema": {"type": "object", "properties": {
        "spec": {"type": "object", "properties": spec},
        "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}})
}

pub fn widget(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec})
}

impl Cluster {
    /// Makes a definition and waits until it is established.
    pub async fn define(&self, definition: Value) {
        let name = definition["metadata"]["name"].as_str().unwrap().to_owned();
        self.make(DEFINITIONS, definition).await;
        self.settled(&name, "Established", "True").await;
    }

    /// Waits until a condition of a definition has a status.
    pub async fn settled(&self, name: &str, condition: &str, status: &str) -> Value {
        let meets = |object: &Value| {
            let list = object["status"]["conditions"].as_array();
            list.is_some_and(|l| l.iter().any(|c| c["type"] == condition && c["status"] == status))
        };
        self.until(DEFINITIONS, name, meets).await
    }

    /// Waits until an object of a collection meets a condition.
    pub async fn until(&self, collection: &str, name: &str, meets: impl Fn(&Value) -> bool) -> Value {
        let mut events = self.watch(&format!("{collection}?fieldSelector=metadata.name={name}")).await;
        let wait = async {
            loop {
                let (_, object) = events.next().await.expect("the watch goes on");
                if meets(&object) {
                    return object;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("the condition is met")
    }

    /// Watches a collection; `path` has a query.
    pub async fn watch(&self, path: &str) -> Events {
        let request = Request::get(format!("{path}&watch=1")).body(Bytes::new()).unwrap();
        let answer = self.admin.send(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        Events { body: answer.into_body(), rest: BytesMut::new() }
    }
}

/// The events of a watch.
pub struct Events {
    body: Body,
    rest: BytesMut,
}

impl Events {
    /// Type and object of the next event; none at the end of the watch.
    pub async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let event: Value = serde_json::from_slice(&self.rest.split_to(end + 1)).unwrap();
                return Some((event["type"].as_str()?.to_owned(), event["object"].clone()));
            }
            let frame = self.body.frame().await?.ok()?;
            self.rest.extend_from_slice(&frame.into_data().ok()?);
        }
    }

    /// The next event as `TYPE name`, or `end`.
    pub async fn told(&mut self) -> String {
        match self.next().await {
            Some((what, object)) => format!("{what} {}", object["metadata"]["name"].as_str().unwrap_or("-")),
            None => "end".to_owned(),
        }
    }
}
