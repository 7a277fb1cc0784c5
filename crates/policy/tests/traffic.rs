//! Real packets under policies: a node and its pods as network namespaces. Needs root.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use network::netns::{self, Place};
use network::{AddRequest, Attachment, Network};
use policy::plan::{Cluster, plan};
use policy::{Config, PodFacts, Table, counters};
use serde_json::{Value, json};

struct World {
    dir: tempfile::TempDir,
    spaces: Vec<PathBuf>,
    network: Network,
    config: Config,
    table: Table,
    pods: Vec<PodFacts>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.spaces.iter().for_each(|p| drop(netns::delete(p)));
    }
}

impl World {
    /// A node with pods `a`, `b` and `c`, each labelled with its name.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let node = dir.path().join("node");
        netns::create(&node).unwrap();
        let config = network::Config {
            netns: Some(node.clone()),
            mtu: Some(1400),
            pod_cidrs: vec!["10.244.0.0/24".parse().unwrap(), "fd00:10:244::/64".parse().unwrap()],
            service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
            ..network::Config::single_node(dir.path().join("state"))
        };
        let network = Network::open(config).await.unwrap();
        let config = Config::for_network("n1", network.config());
        let table = Table::open(config.clone()).unwrap();
        let pods = config.node_pods.clone();
        let mut world = Self { dir, spaces: vec![node], network, config, table, pods };
        for name in ["a", "b", "c"] {
            world.pod(name).await;
        }
        world
    }

    async fn pod(&mut self, name: &str) {
        let path = self.dir.path().join(name);
        netns::create(&path).unwrap();
        self.spaces.push(path.clone());
        let attachment = Attachment { container_id: name.to_owned(), ifname: "eth0".to_owned() };
        let request = AddRequest { attachment, netns: path, args: Vec::new() };
        let ips = self.network.add(&request).await.unwrap().addresses();
        self.pods.push(PodFacts {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
            ips,
            ports: vec![("http".to_owned(), network::Protocol::Tcp, 8080)],
            local: true,
        });
    }

    fn place(&self, name: &str) -> Place {
        Place::open(Some(&self.dir.path().join(name))).unwrap()
    }

    fn ip(&self, name: &str, family: usize) -> IpAddr {
        self.pods.iter().find(|p| p.name == name).unwrap().ips[family]
    }

    async fn policies(&mut self, specs: &[Value]) {
        let policies: Vec<NetworkPolicy> = specs
            .iter()
            .enumerate()
            .map(|(n, spec)| {
                let meta = json!({"namespace": "default", "name": format!("p{n}")});
                serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap()
            })
            .collect();
        let name = |n: &str| BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), n.to_owned())]);
        let namespaces = ["default", "kube-system"].map(|n| (n.to_owned(), name(n))).into_iter().collect();
        let plan = plan(&Cluster {
            policies: policies.iter().collect(),
            namespaces: &namespaces,
            pods: self.pods.iter().collect(),
            families: &self.config.families,
        });
        self.table.apply(plan).await.unwrap();
    }

    /// A TCP server in `place` that echoes.
    fn serve(&self, place: &str, port: u16) {
        let listener = self.place(place).run(|| TcpListener::bind(("::", port)).unwrap()).unwrap();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                std::thread::spawn(move || {
                    let mut buffer = [0; 64];
                    while let Ok(n @ 1..) = stream.read(&mut buffer) {
                        let _ = stream.write_all(&buffer[..n]);
                    }
                });
            }
        });
    }

    fn connect(&self, from: &str, to: SocketAddr) -> Option<TcpStream> {
        self.place(from).run(|| TcpStream::connect_timeout(&to, Duration::from_millis(400))).unwrap().ok()
    }

    /// Whether `from` reaches the port of `to`: in both families, or in neither.
    fn reaches(&self, from: &str, to: &str, port: u16) -> bool {
        let [v4, v6] = [0, 1].map(|family| {
            let ip = match to {
                "node" => self.network.config().gateways().nth(family).unwrap(),
                pod => self.ip(pod, family),
            };
            self.connect(from, (ip, port).into()).is_some()
        });
        assert_eq!(v4, v6, "{from} to {to}: IPv4 {v4}, IPv6 {v6}");
        v4
    }
}

fn app(name: &str) -> Value {
    json!({"matchLabels": {"app": name}})
}

#[tokio::test]
async fn what_no_policy_allows_is_dropped_and_the_rest_passes() {
    for bridged in ["0", "1"] {
        let mut world = World::new().await;
        // the same whether the host hands bridged frames to the firewall or not
        for family in ["iptables", "ip6tables"] {
            let setting = format!("/proc/sys/net/bridge/bridge-nf-call-{family}");
            let _ = world.place("node").run(|| std::fs::write(setting, bridged)).unwrap();
        }
        for (place, port) in [("a", 8080), ("a", 8081), ("b", 8080), ("node", 8080)] {
            world.serve(place, port);
        }
        world.policies(&[]).await;
        assert!(world.reaches("b", "a", 8080));
        // deny all to a
        world.policies(&[json!({"podSelector": app("a")})]).await;
        assert!(!world.reaches("b", "a", 8080));
        assert!(world.reaches("a", "b", 8080), "its own connections and their answers pass");
        assert!(world.reaches("a", "a", 8080), "nothing keeps a pod from itself");
        assert!(world.reaches("node", "a", 8080), "probes come from the node");
        assert!(world.reaches("b", "node", 8080));
        // b may, by number, by range and by name
        for port in [json!({"port": 8080}), json!({"port": 8000, "endPort": 8080}), json!({"port": "http"})] {
            let rule = json!({"from": [{"podSelector": app("b")}], "ports": [port]});
            world.policies(&[json!({"podSelector": app("a"), "ingress": [rule]})]).await;
            assert!(world.reaches("b", "a", 8080), "{port}");
            assert!(!world.reaches("c", "a", 8080), "{port}");
            assert!(!world.reaches("b", "a", 8081), "{port}");
        }
        // allowed to come does not mean allowed to go
        let ingress = json!({"podSelector": app("a"), "ingress": [{}]});
        let egress = json!({"podSelector": app("b"), "policyTypes": ["Egress"]});
        world.policies(&[ingress.clone(), egress]).await;
        assert!(!world.reaches("b", "a", 8080));
        assert!(!world.reaches("b", "node", 8080), "the node is no exception on the way out");
        assert!(world.reaches("c", "a", 8080));
        let to = json!({"podSelector": app("b"), "policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": app("a")}]}]});
        world.policies(&[ingress, to.clone()]).await;
        assert!(world.reaches("b", "a", 8080));
        // and the other way round
        world.policies(&[json!({"podSelector": app("a")}), to]).await;
        assert!(!world.reaches("b", "a", 8080));
        world.policies(&[]).await;
        assert!(world.reaches("b", "a", 8080));
    }
}

#[tokio::test]
async fn blocks_mean_addresses_and_not_their_exceptions() {
    let mut world = World::new().await;
    world.serve("a", 8080);
    let except = json!([format!("{}/32", world.ip("c", 0))]);
    let from = json!([{"ipBlock": {"cidr": "10.244.0.0/16", "except": except}},
        {"ipBlock": {"cidr": format!("{}/128", world.ip("b", 1))}}]);
    world.policies(&[json!({"podSelector": app("a"), "ingress": [{"from": from}]})]).await;
    assert!(world.reaches("b", "a", 8080));
    assert!(!world.reaches("c", "a", 8080));
}

#[tokio::test]
async fn a_policy_that_forbids_a_connection_ends_it_also_when_it_was_open_before() {
    let mut world = World::new().await;
    world.serve("a", 8080);
    world.policies(&[]).await;
    let mut stream = world.connect("b", (world.ip("a", 0), 8080).into()).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut echo = || {
        let mut buffer = [0; 4];
        stream.write_all(b"ping").unwrap();
        stream.read_exact(&mut buffer).is_ok()
    };
    assert!(echo());
    // a policy of which the connection is part changes nothing for it
    let from = json!([{"podSelector": app("b")}]);
    world.policies(&[json!({"podSelector": app("a"), "ingress": [{"from": from}]})]).await;
    assert!(echo());
    world.policies(&[json!({"podSelector": app("a")})]).await;
    assert!(!echo());
}

#[tokio::test]
async fn udp_and_its_answers_follow_policies_and_cluster_dns_goes_by_its_labels() {
    let mut world = World::new().await;
    let serve = |socket: UdpSocket| {
        std::thread::spawn(move || {
            let mut buffer = [0; 16];
            while let Ok((n, peer)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..n], peer);
            }
        })
    };
    let dns: SocketAddr = "10.96.0.10:53".parse().unwrap();
    serve(world.place("node").run(|| UdpSocket::bind(dns).unwrap()).unwrap());
    let other: SocketAddr = (world.ip("b", 0), 53).into();
    serve(world.place("b").run(|| UdpSocket::bind(other).unwrap()).unwrap());
    let answers = |world: &World, to: SocketAddr| {
        let socket = world.place("a").run(|| UdpSocket::bind(("0.0.0.0", 0)).unwrap()).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
        // refused at once, or dropped
        socket.send_to(b"?", to).is_ok() && socket.recv_from(&mut [0; 16]).is_ok()
    };
    world.policies(&[json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})]).await;
    assert!(!answers(&world, dns) && !answers(&world, other));
    let peer = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}});
    let rule = json!({"to": [peer], "ports": [{"port": 53, "protocol": "UDP"}]});
    world
        .policies(&[json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "egress": [rule]})])
        .await;
    assert!(answers(&world, dns) && !answers(&world, other));
    let rule = json!({"ports": [{"port": 53, "protocol": "SCTP"}]});
    world.policies(&[json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [rule]})]).await;
    assert!(!answers(&world, dns), "another protocol's port");
}

#[tokio::test]
async fn rules_stay_in_force_without_us_and_a_restart_opens_nothing() {
    let mut world = World::new().await;
    world.serve("a", 8080);
    let closed = json!({"podSelector": app("a"), "ingress": [{"from": [{"podSelector": app("c")}]}]});
    world.policies(std::slice::from_ref(&closed)).await;
    assert!(!world.reaches("b", "a", 8080));
    // the process went and came
    world.table = Table::open(world.config.clone()).unwrap();
    assert!(!world.reaches("b", "a", 8080) && world.reaches("c", "a", 8080));
    let (to, client) = (SocketAddr::from((world.ip("a", 0), 8080)), world.place("b"));
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let probing = std::thread::spawn(move || {
        client.run(|| {
            let mut open = 0;
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                open += usize::from(TcpStream::connect_timeout(&to, Duration::from_millis(2)).is_ok());
            }
            open
        })
    });
    for _ in 0..20 {
        world.table = Table::open(world.config.clone()).unwrap();
        world.policies(std::slice::from_ref(&closed)).await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(probing.join().unwrap().unwrap(), 0, "connections while policies were replaced");
    assert!(world.reaches("c", "a", 8080));
}

#[tokio::test]
async fn users_can_read_what_rules_let_through_and_what_was_dropped() {
    let mut world = World::new().await;
    world.serve("a", 8080);
    let rule = json!({"from": [{"podSelector": app("b")}]});
    world.policies(&[json!({"podSelector": app("a"), "ingress": [rule]})]).await;
    assert!(world.reaches("b", "a", 8080) && !world.reaches("c", "a", 8080));
    let counted = counters(&world.config).await.unwrap();
    let packets =
        |comment: &str| counted.iter().filter(|c| c.comment == comment).map(|c| c.packets).sum::<u64>();
    assert!(packets("default/p0 Ingress 0") >= 4, "{counted:?}");
    assert!(packets("default/a Ingress denied") >= 2, "{counted:?}");
}
