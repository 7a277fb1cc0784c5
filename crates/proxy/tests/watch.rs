//! From objects of the API to packets: `proxy::run` with an API server that is a list and a channel. Needs root.

use std::collections::HashMap;
use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::object::Object;
use async_trait::async_trait;
use bytes::Bytes;
use client::{Body, Client, Error, ListWatch, Selection, Transport, TransportError, WatchEvent};
use network::netns::{self, Place};
use network::{AddRequest, Attachment, Network, nft};
use parking_lot::Mutex;
use proxy::Config;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Serves lists and watches of what it is told.
#[derive(Default)]
struct Api {
    items: Mutex<HashMap<String, Vec<Arc<Object>>>>,
    watchers: Mutex<HashMap<String, Vec<mpsc::Sender<Vec<WatchEvent>>>>>,
    revision: std::sync::atomic::AtomicU64,
}

#[async_trait]
impl Transport for Api {
    async fn send(&self, _: http::Request<Bytes>) -> Result<http::Response<Body>, TransportError> {
        Err(TransportError::Closed)
    }

    async fn list_watch(&self, selection: &Selection) -> Option<Result<ListWatch, Error>> {
        let (tx, events) = mpsc::channel(100);
        self.watchers.lock().entry(selection.plural.clone()).or_default().push(tx);
        let items = self.items.lock().get(&selection.plural).cloned().unwrap_or_default();
        Some(Ok(ListWatch { items, revision: 1, events }))
    }
}

impl Api {
    fn object(&self, mut value: Value) -> Arc<Object> {
        let revision = 1 + self.revision.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        value["metadata"]["namespace"] = "default".into();
        value["metadata"]["uid"] = value["metadata"]["name"].clone();
        value["metadata"]["resourceVersion"] = revision.to_string().into();
        Arc::new(Object::from_json(serde_json::to_vec(&value).unwrap().into(), revision).unwrap())
    }

    async fn put(&self, plural: &str, value: Value) {
        let object = self.object(value);
        let watchers = self.watchers.lock().get(plural).cloned().unwrap_or_default();
        if watchers.is_empty() {
            self.items.lock().entry(plural.to_owned()).or_default().push(object.clone());
        }
        for watcher in watchers {
            watcher.send(vec![WatchEvent::Applied(object.clone())]).await.unwrap();
        }
    }
}

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [{"port": 80, "protocol": "TCP"}]}
    })
}

fn slice(pod: &IpAddr) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [pod.to_string()], "nodeName": "n1", "conditions": {"ready": true}}]
    })
}

struct Node {
    dir: tempfile::TempDir,
    spaces: Vec<PathBuf>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.spaces.iter().for_each(|p| drop(netns::delete(p)));
    }
}

impl Node {
    fn space(&mut self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        netns::create(&path).unwrap();
        self.spaces.push(path.clone());
        path
    }

    async fn pod(&mut self, network: &Network, name: &str) -> IpAddr {
        let attachment = Attachment { container_id: name.to_owned(), ifname: "eth0".to_owned() };
        let request = AddRequest { attachment, netns: self.space(name), args: Vec::new() };
        let addr = network.add(&request).await.unwrap().addresses()[0];
        let place = Place::open(Some(&request.netns)).unwrap();
        let listener = place.run(|| TcpListener::bind("0.0.0.0:8080").unwrap()).unwrap();
        let name = name.to_owned();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let _ = std::io::Write::write_all(&mut stream, name.as_bytes());
            }
        });
        addr
    }
}

/// Who answers at the service, asked from a pod.
fn answerer(place: &Place) -> Option<String> {
    let to: SocketAddr = "10.96.0.1:80".parse().unwrap();
    let stream = place.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(300))).unwrap();
    let mut text = String::new();
    stream.ok()?.read_to_string(&mut text).ok()?;
    Some(text)
}

/// Waits until `name` answers and returns how long that took.
async fn until(place: &Place, name: &str) -> Duration {
    let started = Instant::now();
    loop {
        let seen = answerer(place);
        if seen.as_deref() == Some(name) {
            return started.elapsed();
        }
        assert!(started.elapsed() < Duration::from_secs(30), "{name} never answered; last: {seen:?}");
        tokio::task::yield_now().await;
    }
}

/// Status line and body of an answer, and the weight it names.
fn get(place: &Place, port: u16, path: &str) -> Option<(u16, String, Option<String>)> {
    let stream = place
        .run(|| TcpStream::connect_timeout(&([127, 0, 0, 1], port).into(), Duration::from_secs(2)))
        .unwrap();
    let mut stream = stream.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    std::io::Write::write_all(&mut stream, request.as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let weight = head.lines().find_map(|l| l.strip_prefix("x-load-balancing-endpoint-weight: "));
    let code = head.split_whitespace().nth(1)?.parse().ok()?;
    Some((code, body.to_owned(), weight.map(str::to_owned)))
}

fn balanced(port: u16) -> Value {
    let mut service = service();
    let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": port});
    service["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    service
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_balancers_learn_whether_the_node_is_of_use() {
    let mut node = Node { dir: tempfile::tempdir().unwrap(), spaces: Vec::new() };
    let netns = node.space("node");
    let config = network::Config {
        netns: Some(netns.clone()),
        mtu: Some(1400),
        ..network::Config::single_node(node.dir.path().join("state"))
    };
    let network = Network::open(config).await.unwrap();
    let pod = node.pod(&network, "a").await;
    let place = Place::open(Some(&netns)).unwrap();
    let api = Arc::new(Api::default());
    api.put("services", balanced(31000)).await;
    api.put("endpointslices", slice(&pod)).await;
    let stop = CancellationToken::new();
    let config = Config::for_network("n1", network.config());
    let running = tokio::spawn(proxy::run(Client::new(api.clone()), config, stop.clone()));
    let until = async |port: u16, code: Option<u16>| {
        let started = Instant::now();
        loop {
            let seen = get(&place, port, "/");
            if seen.as_ref().map(|s| s.0) == code {
                return seen;
            }
            assert!(started.elapsed() < Duration::from_secs(30), "port {port}: {seen:?}");
            tokio::task::yield_now().await;
        }
    };
    let (_, body, weight) = until(31000, Some(200)).await.unwrap();
    assert_eq!(
        body,
        "{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 1,\n\t\"serviceProxyHealthy\": true\n}"
    );
    assert_eq!(weight.as_deref(), Some("1"));
    for (path, code) in [("/healthz", 200), ("/livez", 200), ("/other", 404)] {
        assert_eq!(get(&place, 10256, path).unwrap().0, code, "{path}");
    }
    assert!(get(&place, 10256, "/healthz").unwrap().1.ends_with(", \"nodeEligible\": true}"));

    let mut elsewhere = slice(&pod);
    elsewhere["endpoints"][0]["nodeName"] = "n2".into();
    api.put("endpointslices", elsewhere).await;
    let (_, body, weight) = until(31000, Some(503)).await.unwrap();
    assert!(body.contains("\"localEndpoints\": 0"), "{body}");
    assert_eq!(weight.as_deref(), Some("0"));
    api.put("endpointslices", slice(&pod)).await;
    api.put("services", balanced(31001)).await;
    until(31001, Some(200)).await;
    until(31000, None).await;
    api.put("services", service()).await;
    until(31001, None).await;
    stop.cancel();
    running.await.unwrap().unwrap();
    assert_eq!(get(&place, 10256, "/livez"), None, "the proxy is gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_follow_the_api_and_a_flushed_ruleset_comes_back() {
    let mut node = Node { dir: tempfile::tempdir().unwrap(), spaces: Vec::new() };
    let netns = node.space("node");
    let config = network::Config {
        netns: Some(netns.clone()),
        mtu: Some(1400),
        ..network::Config::single_node(node.dir.path().join("state"))
    };
    let network = Arc::new(Network::open(config).await.unwrap());
    let (a, b) = (node.pod(&network, "a").await, node.pod(&network, "b").await);
    node.pod(&network, "c").await;
    let client_pod = Place::open(Some(&node.dir.path().join("c"))).unwrap();

    let api = Arc::new(Api::default());
    api.put("services", service()).await;
    api.put("endpointslices", slice(&a)).await;
    let stop = CancellationToken::new();
    let config = Config::for_network("n1", network.config());
    let running = tokio::spawn(proxy::run(Client::new(api.clone()), config.clone(), stop.clone()));
    let guard = tokio::spawn({
        let (network, stop) = (network.clone(), stop.clone());
        async move { network.guard(stop).await }
    });
    until(&client_pod, "a").await;
    api.put("endpointslices", slice(&b)).await;
    println!("endpoint changed in the API -> packets follow: {:?}", until(&client_pod, "b").await);

    // a firewall service reloads
    let table = nft::open(&Place::open(Some(&netns)).unwrap()).unwrap();
    table.delete_table(&config.table).await.unwrap();
    println!("ruleset flushed -> service answers again: {:?}", until(&client_pod, "b").await);
    let started = Instant::now();
    while !table.chains(&config.table).await.unwrap().iter().any(|c| c == "pod-egress") {
        assert!(started.elapsed() < Duration::from_secs(30), "pod egress did not come back");
        tokio::task::yield_now().await;
    }

    stop.cancel();
    running.await.unwrap().unwrap();
    guard.await.unwrap().unwrap();
    // services outlive the process
    assert_eq!(answerer(&client_pod).as_deref(), Some("b"));
}
