//! Real packets through services: a node and its pods as network namespaces. Needs root. Where the kernel has IPVS (the guest
//! of `vm::`), it balances.

mod ipvs;
mod vm;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::traffic::{ServiceView, SliceView};
use network::ipvs::Scheduler;
use network::netns::{self, Place};
use network::{AddRequest, Attachment, Network};
use proxy::plan::{Dirty, Planner, ServiceKey, plan_service};
use proxy::{Config, NodePorts, Table};
use serde_json::{Value, json};

const NODE: &str = "n1";
const BALANCER: &str = "198.51.100.9";

struct World {
    dir: tempfile::TempDir,
    spaces: Vec<PathBuf>,
    network: Network,
    config: Config,
    table: Table,
    planner: Planner,
    pods: BTreeMap<String, Vec<IpAddr>>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.spaces.iter().for_each(|p| drop(netns::delete(p)));
    }
}

impl World {
    async fn new(pods: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let node = dir.path().join("node");
        netns::create(&node).unwrap();
        let config = network::Config {
            netns: Some(node.clone()),
            mtu: Some(1400),
            pod_cidrs: vec!["10.244.0.0/24".parse().unwrap(), "fd00:10:244::/64".parse().unwrap()],
            service_cidrs: vec!["10.96.0.0/16".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()],
            ..network::Config::single_node(dir.path().join("state"))
        };
        let network = Network::open(config).await.unwrap();
        let mut config = Config::for_network(NODE, network.config());
        config.ipvs = ipvs::here().then(Scheduler::default);
        let table = Table::open(config.clone()).await.unwrap();
        let planner = Planner::new(config.node_local.clone());
        let mut world =
            Self { dir, spaces: vec![node], network, config, table, planner, pods: BTreeMap::new() };
        for name in pods {
            world.pod(name).await;
        }
        world.apply_all().await;
        world
    }

    /// Compares the whole table with the whole plan; what changed.
    async fn apply_all(&mut self) -> String {
        let mut text = String::new();
        self.table.apply_all(&self.planner, |changes| text.push_str(&changes.to_string())).await.unwrap();
        text
    }

    async fn pod(&mut self, name: &str) -> Vec<IpAddr> {
        let path = self.dir.path().join(name);
        netns::create(&path).unwrap();
        self.spaces.push(path.clone());
        let attachment = Attachment { container_id: name.to_owned(), ifname: "eth0".to_owned() };
        let request = AddRequest { attachment, netns: path, args: Vec::new() };
        let addresses = self.network.add(&request).await.unwrap().addresses();
        self.pods.insert(name.to_owned(), addresses.clone());
        addresses
    }

    fn place(&self, name: &str) -> Place {
        Place::open(Some(&self.dir.path().join(name))).unwrap()
    }

    /// Sets the service `name`; `endpoints` are pods on this node, with `!` before their name on another.
    async fn service(&mut self, name: &str, spec: Value, endpoints: &[&str]) -> Duration {
        // where there is a load balancer, it has this address
        let status = json!({"loadBalancer": {"ingress": [{"ip": BALANCER}]}});
        let metadata = json!({"name": name, "namespace": "default"});
        let service: ServiceView =
            serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status})).unwrap();
        let slices = ["IPv4", "IPv6"].iter().enumerate().map(|(family, kind)| {
            let endpoints: Vec<Value> = endpoints
                .iter()
                .map(|pod| {
                    let node = if pod.starts_with('!') { "elsewhere" } else { NODE };
                    let pod = pod.trim_start_matches('!');
                    json!({"addresses": [self.pods[pod][family].to_string()], "nodeName": node})
                })
                .collect();
            let slice: SliceView = serde_json::from_value(json!({
                "metadata": {"name": format!("{name}-{family}"), "namespace": "default"}, "addressType": kind,
                "ports": [{"name": "t", "port": 8080, "protocol": "TCP"}, {"name": "u", "port": 5353, "protocol": "UDP"}],
                "endpoints": endpoints,
            }))
            .unwrap();
            Arc::new(slice)
        });
        let slices: Vec<_> = slices.collect();
        let mut dirty = Dirty::default();
        let plan = plan_service(&service, &slices, NODE);
        self.planner.update(&("default".to_owned(), name.to_owned()), Some(plan), &mut dirty);
        let started = Instant::now();
        self.table.apply(&self.planner, &dirty).await.unwrap();
        started.elapsed()
    }

    /// A TCP server in `place` that tells its name and what client address it sees.
    fn serve(&self, place: &str, port: u16) {
        // both families: addresses of IPv4 clients appear mapped
        let listener = self.place(place).run(|| TcpListener::bind(("::", port)).unwrap()).unwrap();
        let name = place.to_owned();
        std::thread::spawn(move || {
            while let Ok((mut stream, peer)) = listener.accept() {
                let _ = write!(stream, "{name} {}", peer.ip().to_canonical());
            }
        });
    }

    fn serve_udp(&self, place: &str, port: u16) {
        let socket = self.place(place).run(|| UdpSocket::bind(("0.0.0.0", port)).unwrap()).unwrap();
        let name = place.to_owned();
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(name.as_bytes(), peer);
            }
        });
    }

    /// Connects from `place` and returns (server's name, client address it saw).
    fn call(&self, place: &str, to: &str) -> Result<(String, String), ErrorKind> {
        let to: SocketAddr = to.parse().unwrap();
        let connected =
            self.place(place).run(|| TcpStream::connect_timeout(&to, Duration::from_secs(2))).unwrap();
        let mut text = String::new();
        connected.map_err(|e| e.kind())?.read_to_string(&mut text).map_err(|e| e.kind())?;
        let (name, peer) = text.split_once(' ').unwrap();
        Ok((name.to_owned(), peer.to_owned()))
    }

    fn names(&self, place: &str, to: &str, times: usize) -> BTreeSet<String> {
        (0..times)
            .map(|n| match self.call(place, to) {
                Ok((name, _)) => name,
                Err(error) => panic!("call {n} from {place} to {to}: {error:?}"),
            })
            .collect()
    }
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

fn tcp(ip: &str) -> Value {
    json!({"clusterIPs": [ip], "ports": [{"name": "t", "port": 80, "protocol": "TCP"}]})
}

#[tokio::test]
async fn cluster_ip_spreads_over_endpoints_and_keeps_the_clients_address() {
    for bridged in ["0", "1"] {
        let mut world = World::new(&["a", "b", "c"]).await;
        // the same whether the host hands bridged frames to the firewall or not
        for family in ["iptables", "ip6tables"] {
            let setting = format!("/proc/sys/net/bridge/bridge-nf-call-{family}");
            let _ = world.place("node").run(|| std::fs::write(setting, bridged)).unwrap();
        }
        for pod in ["a", "b"] {
            world.serve(pod, 8080);
        }
        world.service("v4", tcp("10.96.0.1"), &["a", "b"]).await;
        world.service("v6", tcp("fd00:10:96::1"), &["a", "b"]).await;
        for (family, to) in ["10.96.0.1:80", "[fd00:10:96::1]:80"].iter().enumerate() {
            assert_eq!(world.names("c", to, 24), set(&["a", "b"]), "{to}");
            assert_eq!(world.call("c", to).unwrap().1, world.pods["c"][family].to_string());
            // the node itself
            assert_eq!(world.names("node", to, 24), set(&["a", "b"]), "{to}");
            // an endpoint that draws itself sees the node
            let seen: BTreeSet<_> =
                (0..32).map(|_| world.call("a", to).unwrap()).filter(|c| c.0 == "a").collect();
            let gateway = world.network.config().gateways().nth(family).unwrap().to_string();
            assert_eq!(seen, BTreeSet::from([("a".to_owned(), gateway)]), "{to}, bridge-nf {bridged}");
        }
    }
}

#[tokio::test]
async fn changes_of_endpoints_are_followed_and_none_is_answered_with_refusal() {
    let mut world = World::new(&["a", "b", "c"]).await;
    for pod in ["a", "b"] {
        world.serve(pod, 8080);
    }
    world.service("web", tcp("10.96.0.1"), &["a"]).await;
    assert_eq!(world.names("c", "10.96.0.1:80", 8), set(&["a"]));
    world.service("web", tcp("10.96.0.1"), &["b"]).await;
    assert_eq!(world.names("c", "10.96.0.1:80", 8), set(&["b"]));
    world.service("web", tcp("10.96.0.1"), &[]).await;
    for from in ["c", "node"] {
        // the second and the third: a port and an address that no service has
        for to in ["10.96.0.1:80", "10.96.0.1:81", "10.96.7.7:80"] {
            // at once: a first packet that gets no answer is sent again after a second
            let at_once = (0..3).any(|_| {
                let started = Instant::now();
                assert_eq!(world.call(from, to), Err(ErrorKind::ConnectionRefused), "{from} {to}");
                started.elapsed() < Duration::from_secs(1)
            });
            assert!(at_once, "{from} had to wait for {to}");
        }
    }
    world.service("web", tcp("10.96.0.1"), &["a", "b"]).await;
    assert_eq!(world.names("c", "10.96.0.1:80", 24), set(&["a", "b"]));
}

#[tokio::test]
async fn node_ports_are_served_on_the_nodes_addresses() {
    let mut world = World::new(&["a", "b"]).await;
    world.serve("a", 8080);
    let mut spec = tcp("10.96.0.1");
    spec["type"] = "NodePort".into();
    spec["ports"][0]["nodePort"] = 30080.into();
    world.service("web", spec.clone(), &["a"]).await;
    for from in ["b", "node"] {
        assert_eq!(
            world.call(from, "10.244.0.1:30080"),
            Ok(("a".to_owned(), "10.244.0.1".to_owned())),
            "{from}"
        );
    }
    spec["externalTrafficPolicy"] = "Local".into();
    world.service("web", spec.clone(), &["a"]).await;
    let client = world.pods["b"][0].to_string();
    assert_eq!(world.call("b", "10.244.0.1:30080"), Ok(("a".to_owned(), client)));
    world.service("web", spec, &[]).await;
    assert_eq!(world.call("b", "10.244.0.1:30080"), Err(ErrorKind::ConnectionRefused));
}

#[tokio::test]
async fn node_ports_are_served_on_chosen_addresses_only() {
    let mut world = World::new(&["a"]).await;
    world.serve("a", 8080);
    outside(&mut world);
    let mut spec = tcp("10.96.0.1");
    spec["type"] = "NodePort".into();
    spec["ports"][0]["nodePort"] = 30080.into();
    let range = |range: &str| NodePorts::In { ranges: vec![range.parse().unwrap()], only: false };
    let choices = [
        (NodePorts::at(["192.0.2.1".parse().unwrap()]), true, false),
        (range("10.244.0.0/16"), false, true),
        (range("0.0.0.0/0"), true, true),
        (NodePorts::at([]), false, false),
    ];
    for (chosen, primary, gateway) in choices {
        world.config.node_ports = chosen;
        world.table = Table::open(world.config.clone()).await.unwrap();
        world.apply_all().await;
        world.service("web", spec.clone(), &["a"]).await;
        for (to, open) in [("192.0.2.1:30080", primary), ("10.244.0.1:30080", gateway)] {
            let got = world.call("outside", to).map(|(name, _)| name);
            let want = if open { Ok("a".to_owned()) } else { Err(ErrorKind::ConnectionRefused) };
            assert_eq!(got, want, "{to} with {:?}", world.config.node_ports);
        }
    }
}

/// A link between the node and a network namespace that is none of its pods: `192.0.2.1` and `192.0.2.2`.
fn outside(world: &mut World) -> PathBuf {
    let path = world.dir.path().join("outside");
    netns::create(&path).unwrap();
    world.spaces.push(path.clone());
    let run = |place: &Place, line: &str| {
        let line = line.to_owned();
        place
            .run(move || {
                let mut words = line.split_whitespace();
                let done = std::process::Command::new(words.next().unwrap()).args(words).output().unwrap();
                assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
            })
            .unwrap();
    };
    let (node, out) = (world.place("node"), world.place("outside"));
    // named namespaces of `ip` are elsewhere: the peer is moved by the process id of a thread in there
    let (tell, told) = std::sync::mpsc::channel();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let holder = std::thread::spawn({
        let out = out.clone();
        move || {
            out.run(move || {
                let thread = std::fs::read_link("/proc/thread-self").unwrap();
                tell.send(thread.file_name().unwrap().to_string_lossy().into_owned()).unwrap();
                let _ = ended.recv();
            })
            .unwrap();
        }
    });
    let thread = told.recv().unwrap();
    run(&node, &format!("ip link add out0 type veth peer name out1 netns {thread}"));
    end.send(()).unwrap();
    holder.join().unwrap();
    for (place, link, address) in [(&node, "out0", "192.0.2.1/24"), (&out, "out1", "192.0.2.2/24")] {
        run(place, &format!("ip address add {address} dev {link}"));
        run(place, &format!("ip link set {link} up"));
    }
    run(&out, "ip route add default via 192.0.2.1");
    run(&node, "ip route add default via 192.0.2.2");
    path
}

fn balanced(extra: Value) -> Value {
    let mut spec = tcp("10.96.0.1");
    spec["type"] = "LoadBalancer".into();
    spec["ports"][0]["nodePort"] = 30080.into();
    spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    spec
}

#[tokio::test]
async fn source_ranges_guard_the_load_balancers_address_and_nothing_else() {
    let mut world = World::new(&["a"]).await;
    world.serve("a", 8080);
    outside(&mut world);
    world.table.follow_addresses(&world.planner).await.unwrap();
    let to = format!("{BALANCER}:80");
    world.service("web", balanced(json!({})), &["a"]).await;
    assert_eq!(world.call("outside", &to).unwrap().0, "a");
    let elsewhere = || balanced(json!({"loadBalancerSourceRanges": ["203.0.113.0/24"]}));
    world.service("web", elsewhere(), &["a"]).await;
    for from in ["outside", "a", "node"] {
        assert_eq!(world.call(from, &to), Err(ErrorKind::TimedOut), "{from}");
    }
    assert_eq!(world.call("outside", "192.0.2.1:30080").unwrap().0, "a");
    assert_eq!(world.call("outside", "10.96.0.1:80").unwrap().0, "a");
    // a restart knows that there is a guard, not of what: it writes it anew
    world.table = Table::open(world.config.clone()).await.unwrap();
    let again = world.apply_all().await;
    assert_eq!(again, "guard tcp 198.51.100.9:80: 198.51.100.9/32 203.0.113.0/24\n");
    assert_eq!(world.call("outside", &to), Err(ErrorKind::TimedOut));

    world.service("web", balanced(json!({"loadBalancerSourceRanges": ["192.0.2.2/32"]})), &["a"]).await;
    assert_eq!(world.call("outside", &to).unwrap().0, "a");
    assert_eq!(world.call("node", &to), Err(ErrorKind::TimedOut));
    world.service("web", balanced(json!({})), &["a"]).await;
    assert_eq!(world.call("node", &to).unwrap().0, "a");
    world.service("web", elsewhere(), &["a"]).await;
    let mut dirty = Dirty::default();
    world.planner.update(&("default".to_owned(), "web".to_owned()), None, &mut dirty);
    world.table.apply(&world.planner, &dirty).await.unwrap();
    world.table = Table::open(world.config.clone()).await.unwrap();
    assert!(world.apply_all().await.is_empty(), "nothing is left of it");
}

#[tokio::test]
async fn with_the_policy_local_outsiders_stay_here_and_insiders_reach_all() {
    let mut world = World::new(&["a", "b", "c"]).await;
    for pod in ["a", "b"] {
        world.serve(pod, 8080);
    }
    outside(&mut world);
    world.table.follow_addresses(&world.planner).await.unwrap();
    let spec = || balanced(json!({"externalTrafficPolicy": "Local"}));
    let all = [format!("{BALANCER}:80"), "192.0.2.1:30080".to_owned()];
    world.service("web", spec(), &["a", "!b"]).await;
    for to in &all {
        assert_eq!(world.names("outside", to, 16), set(&["a"]), "{to}");
        assert_eq!(world.call("outside", to).unwrap().1, "192.0.2.2", "{to}");
        for from in ["c", "node"] {
            assert_eq!(world.names(from, to, 24), set(&["a", "b"]), "{to} from {from}");
        }
    }
    world.service("web", spec(), &["!b"]).await;
    for to in &all {
        assert_eq!(world.call("outside", to), Err(ErrorKind::TimedOut), "{to}");
        assert_eq!(world.names("c", to, 4), set(&["b"]), "{to}");
    }
    world.service("web", spec(), &[]).await;
    for from in ["outside", "c", "node"] {
        assert_eq!(world.call(from, &all[0]), Err(ErrorKind::ConnectionRefused), "{from}");
    }
}

#[tokio::test]
async fn clients_with_affinity_stay_until_their_endpoint_goes() {
    let mut world = World::new(&["a", "b", "c", "d"]).await;
    for pod in ["a", "b"] {
        world.serve(pod, 8080);
    }
    for (family, ip) in ["10.96.0.1", "fd00:10:96::1"].into_iter().enumerate() {
        let mut spec = tcp(ip);
        spec["sessionAffinity"] = "ClientIP".into();
        let to = if family == 0 { format!("{ip}:80") } else { format!("[{ip}]:80") };
        world.service(ip, spec.clone(), &["a", "b"]).await;
        let first = world.names("c", &to, 16);
        assert_eq!(first.len(), 1, "{first:?}");
        let other = if first.contains("a") { "b" } else { "a" };
        world.service(ip, spec, &[other]).await;
        assert_eq!(world.names("c", &to, 8), set(&[other]));
    }
}

#[tokio::test]
async fn a_udp_client_that_keeps_its_socket_reaches_the_new_endpoint() {
    let mut world = World::new(&["a", "b", "c"]).await;
    for pod in ["a", "b"] {
        world.serve_udp(pod, 5353);
    }
    let spec = json!({"clusterIPs": ["10.96.0.53"], "ports": [{"name": "u", "port": 53, "protocol": "UDP"}]});
    world.service("dns", spec.clone(), &["a"]).await;
    let socket = world.place("c").run(|| UdpSocket::bind(("0.0.0.0", 0)).unwrap()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let ask = || {
        let mut buffer = [0; 64];
        socket.send_to(b"?", "10.96.0.53:53").unwrap();
        let (n, _) = socket.recv_from(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..n]).into_owned()
    };
    assert_eq!(ask(), "a");
    world.service("dns", spec, &["b"]).await;
    assert_eq!(ask(), "b");
}

#[tokio::test]
async fn a_restart_adopts_the_table_and_changes_only_what_differs() {
    let mut world = World::new(&["a", "b", "c"]).await;
    for pod in ["a", "b"] {
        world.serve(pod, 8080);
    }
    world.service("web", tcp("10.96.0.1"), &["a"]).await;
    world.service("v6", tcp("fd00:10:96::1"), &["a"]).await;
    world.service("empty", tcp("10.96.0.2"), &[]).await;

    world.table = Table::open(world.config.clone()).await.unwrap();
    // nothing applied yet: traffic flows on the old rules
    assert_eq!(world.names("c", "10.96.0.1:80", 4), set(&["a"]));
    let changes = world.apply_all().await;
    assert!(changes.is_empty(), "{changes}");
    assert_eq!(world.names("c", "10.96.0.1:80", 4), set(&["a"]));
    assert_eq!(world.call("c", "10.96.0.2:80"), Err(ErrorKind::ConnectionRefused));

    // a service went and an endpoint changed while nobody watched
    let mut dirty = Dirty::default();
    world.planner.update(&("default".to_owned(), "v6".to_owned()), None, &mut dirty);
    world.table = Table::open(world.config.clone()).await.unwrap();
    let changes = world.apply_all().await;
    assert!(changes.contains("- tcp [fd00:10:96::1]:80"), "{changes}");
    assert!(!changes.contains("10.96.0.1"), "{changes}");
}

#[tokio::test]
async fn no_connection_fails_while_endpoints_change_and_the_process_restarts() {
    let mut world = World::new(&["a", "b", "c"]).await;
    for pod in ["a", "b"] {
        world.serve(pod, 8080);
    }
    world.service("web", tcp("10.96.0.1"), &["a"]).await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (client, stopped) = (world.place("c"), stop.clone());
    let to: SocketAddr = "10.96.0.1:80".parse().unwrap();
    let load = std::thread::spawn(move || {
        client.run(|| {
            let (mut calls, mut failures) = (0, Vec::new());
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                let mut text = String::new();
                let called = TcpStream::connect_timeout(&to, Duration::from_millis(500))
                    .and_then(|mut stream| stream.read_to_string(&mut text));
                calls += 1;
                failures.extend(called.err());
            }
            (calls, failures)
        })
    });
    for _ in 0..40 {
        for endpoints in [&["a", "b"][..], &["b"], &["a"]] {
            world.service("web", tcp("10.96.0.1"), endpoints).await;
        }
        world.table = Table::open(world.config.clone()).await.unwrap();
        world.apply_all().await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let (calls, failures) = load.join().unwrap().unwrap();
    println!("{calls} connections during 120 changes and 40 restarts");
    assert!(failures.is_empty() && calls > 40, "{} of {calls}: {failures:?}", failures.len());
}

#[tokio::test]
async fn what_the_node_serves_itself_is_left_alone() {
    let mut world = World::new(&["a", "b"]).await;
    world.serve("node", 53);
    let spec = json!({"clusterIPs": ["10.96.0.10"], "ports": [{"name": "t", "port": 53, "protocol": "TCP"}]});
    world.service("kube-dns", spec, &[]).await;
    let client = world.pods["b"][0].to_string();
    assert_eq!(world.call("b", "10.96.0.10:53"), Ok(("node".to_owned(), client)));
}

/// The API server's own service: its endpoint is the node, and at first there is no pod.
#[tokio::test]
async fn an_endpoint_may_be_the_node_itself() {
    let mut world = World::new(&[]).await;
    world.serve("node", 8080);
    let gateways = world.network.config().gateways().collect();
    world.pods.insert("node".to_owned(), gateways);
    world.service("kubernetes", tcp("10.96.0.1"), &["node"]).await;
    assert_eq!(world.call("node", "10.96.0.1:80").unwrap().0, "node");
    let pod = world.pod("a").await;
    assert_eq!(world.call("a", "10.96.0.1:80"), Ok(("node".to_owned(), pod[0].to_string())));
}

#[tokio::test]
async fn ten_thousand_services_then_one_endpoint() {
    let mut world = World::new(&["a", "b", "c"]).await;
    for pod in ["a", "b"] {
        world.serve(pod, 8080);
    }
    let slices: Vec<Arc<SliceView>> = vec![Arc::new(
        serde_json::from_value(json!({
            "metadata": {"name": "s", "namespace": "default"}, "addressType": "IPv4",
            "ports": [{"name": "t", "port": 8080, "protocol": "TCP"}],
            "endpoints": (0..10).map(|n| json!({"addresses": [format!("10.244.1.{}", n + 2)], "nodeName": "n2"}))
                .collect::<Vec<_>>(),
        }))
        .unwrap(),
    )];
    let mut dirty = Dirty::default();
    let started = Instant::now();
    for n in 0..10000 {
        let service: ServiceView = serde_json::from_value(json!({
            "metadata": {"name": format!("s{n}"), "namespace": "default"},
            "spec": tcp(&format!("10.96.{}.{}", 1 + n / 200, 1 + n % 200)),
        }))
        .unwrap();
        let plan = plan_service(&service, &slices, NODE);
        world.planner.update(&key(n), Some(plan), &mut dirty);
    }
    let planned = started.elapsed();
    let started = Instant::now();
    assert!(world.apply_all().await.contains("+ tcp 10.96.50.200:80 #9 = 10.244.1.11:8080\n"));
    let applied = started.elapsed();
    let started = Instant::now();
    world.table.resync().await.unwrap();
    let read = started.elapsed();
    assert!(world.apply_all().await.is_empty());
    world.service("web", tcp("10.96.0.1"), &["a", "b"]).await;
    let one = world.service("web", tcp("10.96.0.1"), &["a", "c"]).await;
    println!(
        "10000 services x 10 endpoints: plan {planned:?}, first sync {applied:?}, read back {read:?}; then one endpoint changed: {one:?}"
    );
    world.service("web", tcp("10.96.0.1"), &["b"]).await;
    assert_eq!(world.names("c", "10.96.0.1:80", 4), set(&["b"]));
}

fn key(n: usize) -> ServiceKey {
    ("default".to_owned(), format!("s{n}"))
}
