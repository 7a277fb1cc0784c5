//! Two servers on one etcd: each reads and watches what the other writes, and they share service addresses.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use client::{Body, Client};
use http::{Method, Request};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

struct One {
    server: Arc<apiserver::Server>,
    store: Arc<store::etcd::Etcd>,
    admin: Client,
}

/// A server on this etcd; servers of one cluster have one authority.
async fn start(etcd: &testkit::etcd::Etcd, pki: &Path, service_cidr: &str) -> One {
    let options = store::etcd::Options { endpoints: etcd.endpoints(), ..Default::default() };
    let store = store::etcd::Etcd::open(options).await.unwrap();
    let server = apiserver::Server::start(apiserver::Config {
        pki_dir: pki.to_owned(),
        listen: "127.0.0.1:0".parse().unwrap(),
        store: store.clone(),
        addresses: Vec::new(),
        service_cidr: service_cidr.to_owned(),
        version: "0.0.0".to_owned(),
        options: Default::default(),
    })
    .await
    .unwrap();
    let admin = server.client("admin", &["system:masters"]);
    One { server, store, admin }
}

impl One {
    async fn send(&self, method: Method, path: &str, body: &Value) -> (u16, Value) {
        let bytes = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        let answer = self.admin.request(request.body(bytes).unwrap()).await.unwrap();
        (answer.status().as_u16(), serde_json::from_slice(answer.body()).unwrap_or_default())
    }

    async fn get(&self, path: &str) -> Value {
        let (code, body) = self.send(Method::GET, path, &Value::Null).await;
        assert_eq!(code, 200, "{path}: {body}");
        body
    }

    async fn watch(&self, path: &str) -> Events {
        let answer = self.admin.send(Request::get(path).body(Bytes::new()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), 200);
        Events { body: answer.into_body(), rest: BytesMut::new() }
    }

    async fn stop(self) {
        self.server.shutdown().await;
        self.store.close().await;
    }
}

struct Events {
    body: Body,
    rest: BytesMut,
}

impl Events {
    async fn next(&mut self) -> Value {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                return serde_json::from_slice(&self.rest.split_to(end + 1)).unwrap();
            }
            let frame = self.body.frame().await.expect("the watch goes on").unwrap();
            self.rest.extend_from_slice(&frame.into_data().unwrap());
        }
    }
}

const CONFIGS: &str = "/api/v1/namespaces/default/configmaps";
const SERVICES: &str = "/api/v1/namespaces/default/services";
const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";

fn config(name: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": value}})
}

fn service(name: &str, spec: Value) -> Value {
    let mut service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"ports": [{"port": 80}]}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        service["spec"][key] = value.clone();
    }
    service
}

fn names(list: &Value) -> BTreeSet<String> {
    let items = list["items"].as_array().into_iter().flatten();
    items.filter_map(|item| item["metadata"]["name"].as_str().map(str::to_owned)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_server_reads_and_watches_what_the_other_writes() {
    let etcd = testkit::etcd::Etcd::start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let one = start(&etcd, &folder.path().join("pki"), "10.96.0.0/16").await;
    let two = start(&etcd, &folder.path().join("pki"), "10.96.0.0/16").await;
    let mut watch = two.watch(&format!("{CONFIGS}?watch=1&labelSelector=!x")).await;
    let mut revisions = Vec::new();
    for number in 0..20 {
        let (writer, reader) = if number % 2 == 0 { (&one, &two) } else { (&two, &one) };
        let name = format!("c{number}");
        let (code, made) = writer.send(Method::POST, CONFIGS, &config(&name, "1")).await;
        assert_eq!(code, 201, "{made}");
        // A read that names no revision sees every write that was answered, whoever answered it.
        let seen = reader.get(&format!("{CONFIGS}/{name}")).await;
        assert_eq!(seen["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
        assert!(names(&reader.get(CONFIGS).await).contains(&name));
        revisions.push(made["metadata"]["resourceVersion"].as_str().unwrap().to_owned());
        let mut stale = made.clone();
        stale["data"]["k"] = json!("2");
        let (code, updated) = reader.send(Method::PUT, &format!("{CONFIGS}/{name}"), &stale).await;
        assert_eq!(code, 200, "{updated}");
        let (code, refused) = writer.send(Method::PUT, &format!("{CONFIGS}/{name}"), &stale).await;
        assert_eq!((code, &refused["reason"]), (409, &json!("Conflict")), "{refused}");
        revisions.push(updated["metadata"]["resourceVersion"].as_str().unwrap().to_owned());
    }
    let mut told = Vec::new();
    while told.len() < revisions.len() {
        let event = watch.next().await;
        let metadata = &event["object"]["metadata"];
        if metadata["name"].as_str().unwrap().starts_with('c') {
            told.push(metadata["resourceVersion"].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(told, revisions);
    // One ends; the other goes on, with its watch.
    one.stop().await;
    assert_eq!(two.send(Method::POST, CONFIGS, &config("after", "1")).await.0, 201);
    assert_eq!(watch.next().await["object"]["metadata"]["name"], "after");
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_address_and_no_node_port_is_given_out_twice() {
    // Fourteen addresses, so that the servers meet.
    const RANGE: &str = "10.96.0.0/28";
    let etcd = testkit::etcd::Etcd::start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let one = start(&etcd, &folder.path().join("pki"), RANGE).await;
    let two = start(&etcd, &folder.path().join("pki"), RANGE).await;
    assert_eq!(names(&two.get(ADDRESSES).await), BTreeSet::from(["10.96.0.1".to_owned()]));
    let create = async |server: &One, name: &str| {
        server.send(Method::POST, SERVICES, &service(name, json!({"type": "NodePort"}))).await
    };
    let mut given = BTreeSet::new();
    let mut ports = BTreeSet::new();
    for round in 0..6 {
        let (a, b) = (format!("a{round}"), format!("b{round}"));
        let (made_a, made_b) = tokio::join!(create(&one, &a), create(&two, &b));
        for (code, made) in [made_a, made_b] {
            assert_eq!(code, 201, "{made}");
            let ip = made["spec"]["clusterIP"].as_str().unwrap().to_owned();
            assert!(given.insert(ip), "given out twice: {made}");
            assert!(ports.insert(made["spec"]["ports"][0]["nodePort"].as_u64().unwrap()));
        }
    }
    let claimed = names(&one.get(ADDRESSES).await);
    assert!(given.is_subset(&claimed), "{claimed:?}");
    let address = one.get(&format!("{ADDRESSES}/{}", given.first().unwrap())).await;
    assert_eq!(address["spec"]["parentRef"]["resource"], "services");
    // What the other server gave out is refused by name...
    let taken = one.get(&format!("{SERVICES}/a0")).await;
    let (ip, port) = (taken["spec"]["clusterIP"].clone(), taken["spec"]["ports"][0]["nodePort"].clone());
    let (code, refused) = two.send(Method::POST, SERVICES, &service("c", json!({"clusterIP": ip}))).await;
    assert_eq!(code, 422, "{refused}");
    assert!(refused["message"].as_str().unwrap().contains("provided IP is already allocated"), "{refused}");
    let wants_port =
        json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}], "clusterIP": "10.96.0.14"});
    let (code, refused) = two.send(Method::POST, SERVICES, &service("c", wants_port.clone())).await;
    if given.contains("10.96.0.14") {
        assert_eq!(code, 422, "{refused}");
    } else {
        assert!(
            refused["message"].as_str().unwrap().contains("provided port is already allocated"),
            "{refused}"
        );
    }
    // ... and free again for it as soon as its Service is gone.
    assert_eq!(one.send(Method::DELETE, &format!("{SERVICES}/a0"), &Value::Null).await.0, 200);
    let both = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}], "clusterIP": ip});
    let claimed = names(&two.get(ADDRESSES).await);
    assert!(!claimed.contains(ip.as_str().unwrap()), "{claimed:?}");
    // The other server hears of the deletion by its watch.
    two.get(&format!("{SERVICES}/b0")).await;
    let made = loop {
        let (code, made) = two.send(Method::POST, SERVICES, &service("d", both.clone())).await;
        if code == 201 {
            break made;
        }
        assert!(made["message"].as_str().unwrap().contains("already allocated"), "{made}");
        tokio::task::yield_now().await;
    };
    assert_eq!(made["spec"]["clusterIP"], ip);
    one.stop().await;
    two.stop().await;
}
