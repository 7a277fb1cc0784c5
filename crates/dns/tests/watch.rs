//! From objects of the API to answers: `dns::run` with an API server that is a list and a channel.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::object::Object;
use async_trait::async_trait;
use bytes::Bytes;
use client::{Body, Client, Error, ListWatch, Selection, Transport, TransportError, WatchEvent};
use dns::Config;
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use serde_json::{Value, json};
use tokio::net::UdpSocket;
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

/// One service at the beginning; a channel for what follows.
struct Api {
    first: Arc<Object>,
    later: Mutex<Option<mpsc::Receiver<Vec<WatchEvent>>>>,
}

#[async_trait]
impl Transport for Api {
    async fn send(&self, _: http::Request<Bytes>) -> Result<http::Response<Body>, TransportError> {
        Err(TransportError::Closed)
    }

    async fn list_watch(&self, selection: &Selection) -> Option<Result<ListWatch, Error>> {
        if selection.plural == "services" {
            let events = self.later.lock().await.take().expect("services are watched once");
            return Some(Ok(ListWatch { items: vec![self.first.clone()], revision: 1, events }));
        }
        let (sender, events) = mpsc::channel(1);
        // never ends: the watch is open as long as the test runs
        std::mem::forget(sender);
        Some(Ok(ListWatch { items: Vec::new(), revision: 1, events }))
    }
}

fn service(name: &str, ip: &str, revision: u64) -> Arc<Object> {
    let value: Value = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "uid": name, "resourceVersion": revision.to_string()},
        "spec": {"clusterIP": ip, "clusterIPs": [ip]}
    });
    Arc::new(Object::from_json(serde_json::to_vec(&value).unwrap().into(), revision).unwrap())
}

async fn ask(at: SocketAddr, name: &str) -> (ResponseCode, Vec<String>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut question = Message::query();
    question.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    socket.connect(at).await.unwrap();
    socket.send(&question.to_vec().unwrap()).await.unwrap();
    let mut buffer = [0; 512];
    let len = socket.recv(&mut buffer).await.unwrap();
    let answer = Message::from_vec(&buffer[..len]).unwrap();
    (answer.metadata.response_code, answer.answers.iter().map(|r| r.data.to_string()).collect())
}

async fn until(at: SocketAddr, name: &str, addresses: &[&str]) -> Duration {
    let started = Instant::now();
    loop {
        let (_, seen) = ask(at, name).await;
        if seen == addresses {
            return started.elapsed();
        }
        assert!(started.elapsed() < Duration::from_secs(30), "{name} is {seen:?}");
    }
}

#[tokio::test]
async fn names_follow_the_api() {
    // a free port: bound, noted and let go
    let at = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (sender, later) = mpsc::channel(10);
    let api = Api { first: service("web", "10.96.0.1", 1), later: Mutex::new(Some(later)) };
    let stop = CancellationToken::new();
    let config = Config { upstreams: Some(Vec::new()), ..Config::new(vec![at]) };
    let running = tokio::spawn(dns::run(Client::new(Arc::new(api)), config, stop.clone()));
    tokio::task::yield_now().await;
    until(at, "web.default.svc.cluster.local.", &["10.96.0.1"]).await;
    assert_eq!(ask(at, "new.default.svc.cluster.local.").await.0, ResponseCode::NXDomain);

    sender.send(vec![WatchEvent::Applied(service("new", "10.96.0.2", 2))]).await.unwrap();
    let took = until(at, "new.default.svc.cluster.local.", &["10.96.0.2"]).await;
    println!("service made -> name answered: {took:?}");
    sender.send(vec![WatchEvent::Deleted(service("web", "10.96.0.1", 3))]).await.unwrap();
    until(at, "web.default.svc.cluster.local.", &[]).await;
    stop.cancel();
    running.await.unwrap().unwrap();
}
