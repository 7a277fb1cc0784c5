//! Pods on a node that is a network namespace of its own; traffic between them is real. Needs root.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use network::netns::{self, Place};
use network::{AddRequest, Attachment, CniResult, Config, HostPort, Network, reset};

/// A node and its pods, gone with the value whatever happens.
struct Node {
    dir: tempfile::TempDir,
    spaces: Vec<PathBuf>,
}

impl Node {
    fn new() -> Self {
        let mut node = Self { dir: tempfile::tempdir().unwrap(), spaces: Vec::new() };
        node.space("node");
        node
    }

    fn space(&mut self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        netns::create(&path).unwrap();
        self.spaces.push(path.clone());
        path
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn config(&self) -> Config {
        Config {
            netns: Some(self.path("node")),
            mtu: Some(1400),
            pod_cidrs: vec!["10.244.0.0/24".parse().unwrap(), "fd00:10:244::/64".parse().unwrap()],
            ..Config::single_node(self.path("state"))
        }
    }

    async fn pod(&mut self, network: &Network, name: &str) -> (AddRequest, CniResult) {
        let request = AddRequest { attachment: attachment(name), netns: self.space(name), args: Vec::new() };
        let result = network.add(&request).await.unwrap();
        (request, result)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for path in &self.spaces {
            let _ = netns::delete(path);
        }
    }
}

fn attachment(id: &str) -> Attachment {
    Attachment { container_id: id.to_owned(), ifname: "eth0".to_owned() }
}

/// Serves one connection in `server`, connects to `to` from `client`, and returns the peer address the server saw.
fn talk(server: &Path, client: &Path, to: IpAddr) -> Result<IpAddr, String> {
    let place = Place::open(Some(server)).unwrap();
    let any: IpAddr = if to.is_ipv6() { [0; 16].into() } else { [0; 4].into() };
    // a free port: programs that other tests start hold a listener of ours for as long as they are not yet another program
    let listener = place.run(|| TcpListener::bind((any, 0)).unwrap()).unwrap();
    let to = SocketAddr::new(to, listener.local_addr().unwrap().port());
    let serving = std::thread::spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        stream.write_all(b"hello").unwrap();
        peer.ip()
    });
    let connected = Place::open(Some(client))
        .unwrap()
        .run(|| TcpStream::connect_timeout(&to, Duration::from_secs(3)))
        .unwrap()
        .map_err(|e| format!("{to}: {e}"));
    let mut stream = connected?;
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    Ok(serving.join().unwrap())
}

#[tokio::test]
async fn pods_and_node_reach_each_other_without_translation_in_both_families() {
    let mut node = Node::new();
    let network = Network::open(node.config()).await.unwrap();
    let started = Instant::now();
    let (_, a) = node.pod(&network, "a").await;
    println!("ADD took {:?} (namespace included)", started.elapsed());
    let (_, b) = node.pod(&network, "b").await;
    network.status().await.unwrap();
    for family in 0..2 {
        let (a_ip, b_ip) = (a.addresses()[family], b.addresses()[family]);
        assert_eq!(talk(&node.path("b"), &node.path("a"), b_ip), Ok(a_ip));
        let gateway = network.config().gateways().nth(family).unwrap();
        assert_eq!(talk(&node.path("b"), &node.path("node"), b_ip), Ok(gateway));
        assert_eq!(talk(&node.path("node"), &node.path("a"), gateway), Ok(a_ip));
    }
    assert_eq!(reset(network.config()).await.unwrap(), []);
}

#[tokio::test]
async fn what_leaves_the_cluster_carries_the_nodes_address() {
    let mut node = Node::new();
    let outside = node.space("outside");
    let network = Network::open(node.config()).await.unwrap();
    let (_, a) = node.pod(&network, "a").await;
    link(&node.path("node"), &outside, "192.168.77.1", "192.168.77.2").await;
    let seen = talk(&outside, &node.path("a"), "192.168.77.2".parse().unwrap()).unwrap();
    assert_eq!(seen.to_string(), "192.168.77.1");
    // a peer that counts as part of the cluster sees the pod itself
    let config = Config { cluster_cidrs: vec!["192.168.77.0/24".parse().unwrap()], ..node.config() };
    let network = Network::open(config).await.unwrap();
    route(&outside, "10.244.0.0/24", "192.168.77.1").await;
    let seen = talk(&outside, &node.path("a"), "192.168.77.2".parse().unwrap()).unwrap();
    assert_eq!(seen, a.addresses()[0]);
    assert_eq!(reset(network.config()).await.unwrap(), []);
}

#[tokio::test]
async fn pods_have_the_mtu_of_the_narrowest_way_out() {
    use nlink::netlink::link::{BridgeLink, LinkCreateExt};
    let mut node = Node::new();
    let place = Place::open(Some(&node.path("node"))).unwrap();
    assert_eq!(network::host_mtu(&place, &[]).await, 1500, "of a node without links");
    let outside = node.space("outside");
    link(&node.path("node"), &outside, "192.168.77.1", "192.168.77.2").await;
    route(&node.path("node"), "0.0.0.0/0", "192.168.77.2").await;
    let conn: nlink::Connection<nlink::Route> = nlink::Connection::new_in(node.path("node")).unwrap();
    conn.set_link_mtu("up0", 9000).await.unwrap();
    assert_eq!(network::host_mtu(&place, &[]).await, 9000);
    // the other nodes are elsewhere
    conn.add_link(BridgeLink::new("lan0").mtu(1400).up()).await.unwrap();
    let lan = conn.get_link_by_name("lan0").await.unwrap().unwrap().ifindex();
    conn.add_address_by_index(lan, "192.168.78.1".parse().unwrap(), 24).await.unwrap();
    assert_eq!(network::host_mtu(&place, &["192.168.78.1".parse().unwrap()]).await, 1400);

    let network = Network::open(Config { mtu: None, ..node.config() }).await.unwrap();
    let (_, a) = node.pod(&network, "a").await;
    assert_eq!(a.interfaces[2].mtu, Some(9000));
}

async fn link(node: &Path, outside: &Path, node_ip: &str, outside_ip: &str) {
    use nlink::netlink::link::VethLink;
    use nlink::netlink::namespace::Netns;
    use nlink::netlink::{Connection, Route};
    let conn: Connection<Route> = Connection::new_in(node).unwrap();
    let peer = Netns::from_path(outside).unwrap();
    conn.add_link(VethLink::new("up0", "eth0").peer_netns_fd(&peer)).await.unwrap();
    let other: Connection<Route> = Connection::new_in(outside).unwrap();
    for (conn, name, ip) in [(&conn, "up0", node_ip), (&other, "eth0", outside_ip)] {
        let index = conn.get_link_by_name(name).await.unwrap().unwrap().ifindex();
        conn.add_address_by_index(index, ip.parse().unwrap(), 24).await.unwrap();
        conn.set_link_up_by_index(index).await.unwrap();
    }
}

async fn route(place: &Path, to: &str, via: &str) {
    use nlink::netlink::route::Ipv4Route;
    use nlink::netlink::{Connection, Route};
    let conn: Connection<Route> = Connection::new_in(place).unwrap();
    let (base, len) = to.split_once('/').unwrap();
    let route =
        Ipv4Route::from_addr(base.parse().unwrap(), len.parse().unwrap()).gateway(via.parse().unwrap());
    conn.add_route(route).await.unwrap();
}

#[tokio::test]
async fn add_is_idempotent_and_del_frees_everything() {
    let mut node = Node::new();
    let network = Network::open(node.config()).await.unwrap();
    let (request, first) = node.pod(&network, "a").await;
    assert_eq!(network.add(&request).await.unwrap(), first);
    network.check(&request.attachment).await.unwrap();

    // the pod lost its interface: the same address comes back
    let conn: nlink::Connection<nlink::Route> = nlink::Connection::new_in(node.path("a")).unwrap();
    conn.del_link("eth0").await.unwrap();
    network.check(&request.attachment).await.unwrap_err();
    assert_eq!(network.add(&request).await.unwrap().addresses(), first.addresses());
    network.check(&request.attachment).await.unwrap();

    let started = Instant::now();
    network.del(&request.attachment).await.unwrap();
    println!("DEL took {:?}", started.elapsed());
    network.del(&request.attachment).await.unwrap();
    assert!(network.check(&request.attachment).await.is_err());
    assert_eq!(std::fs::read_dir(node.path("state").join("addresses")).unwrap().count(), 0);
    assert_eq!(conn.get_links().await.unwrap().iter().filter(|l| !l.is_loopback()).count(), 0);
    assert_eq!(reset(network.config()).await.unwrap(), []);
}

#[tokio::test]
async fn a_failed_add_leaves_no_address_behind() {
    let node = Node::new();
    let network = Network::open(node.config()).await.unwrap();
    let request = AddRequest { attachment: attachment("a"), netns: node.path("missing"), args: Vec::new() };
    network.add(&request).await.unwrap_err();
    for sub in ["addresses", "attachments"] {
        assert_eq!(std::fs::read_dir(node.path("state").join(sub)).unwrap().count(), 0, "{sub}");
    }
}

#[tokio::test]
async fn a_restart_adopts_what_stands_and_gc_removes_what_nobody_claims() {
    let mut node = Node::new();
    let network = Network::open(node.config()).await.unwrap();
    let (a, a_result) = node.pod(&network, "a").await;
    let (b, _) = node.pod(&network, "b").await;
    drop(network);

    let network = Network::open(node.config()).await.unwrap();
    assert_eq!(network.result(&a.attachment).unwrap(), Some(a_result.clone()));
    let (_, c) = node.pod(&network, "c").await;
    assert_ne!(c.addresses(), a_result.addresses());
    // an address that a crash between the two writes left behind
    std::fs::write(node.path("state").join("addresses/10.244.0.77"), "x eth0").unwrap();
    let removed = network.gc(&[a.attachment.clone(), attachment("c")]).await.unwrap();
    assert_eq!(removed, [b.attachment]);
    network.check(&a.attachment).await.unwrap();
    assert_eq!(std::fs::read_dir(node.path("state").join("addresses")).unwrap().count(), 4);
    let to = a_result.addresses()[0];
    assert_eq!(talk(&node.path("a"), &node.path("c"), to), Ok(c.addresses()[0]));
    assert_eq!(reset(network.config()).await.unwrap(), []);
}

#[tokio::test]
async fn reset_leaves_the_hosts_own_rules_and_links_alone() {
    let mut node = Node::new();
    let outside = node.space("outside");
    link(&node.path("node"), &outside, "192.168.77.1", "192.168.77.2").await;
    let place = Place::open(Some(&node.path("node"))).unwrap();
    let nft = network::nft::open(&place).unwrap();
    let mut batch = network::nft::Batch::new("firewall");
    batch.table().chain(network::nft::Chain::regular("own"));
    nft.commit(batch).await.unwrap();
    let network = Network::open(node.config()).await.unwrap();
    node.pod(&network, "a").await;
    assert_eq!(reset(network.config()).await.unwrap(), []);
    assert_eq!(nft.tables().await.unwrap(), ["firewall"]);
    assert_eq!(nft.chains("firewall").await.unwrap(), ["own"]);
    assert_eq!(network::host_ip(&place, &["navarch0"]).await.to_string(), "192.168.77.1");
}

#[tokio::test]
async fn host_ports_lead_to_their_pod_until_it_goes() {
    let mut node = Node::new();
    let outside = node.space("outside");
    let network = Network::open(node.config()).await.unwrap();
    let (a, result) = node.pod(&network, "a").await;
    node.pod(&network, "b").await;
    link(&node.path("node"), &outside, "192.168.77.1", "192.168.77.2").await;
    let port = |host_ip: Option<&str>, host_port| HostPort {
        protocol: network::Protocol::Tcp,
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        host_port,
        pod_port: 8080,
    };
    network.publish(&a.attachment, &[port(None, 90), port(Some("192.168.77.1"), 91)]).await.unwrap();
    let listener =
        Place::open(Some(&node.path("a"))).unwrap().run(|| TcpListener::bind("[::]:8080").unwrap()).unwrap();
    let reach = |from: &str, to: &str| {
        let to: SocketAddr = to.parse().unwrap();
        let connected = Place::open(Some(&node.path(from)))
            .unwrap()
            .run(|| TcpStream::connect_timeout(&to, Duration::from_secs(1)))
            .unwrap();
        connected.ok().map(|_stream| listener.accept().unwrap().1.ip().to_canonical().to_string())
    };
    let client = Some("192.168.77.2".to_owned());
    for network in [&network, &Network::open(node.config()).await.unwrap()] {
        assert_eq!(reach("outside", "192.168.77.1:90"), client);
        assert_eq!(reach("outside", "192.168.77.1:91"), client);
        assert!(reach("b", "10.244.0.1:90").is_some() && reach("b", "[fd00:10:244::1]:90").is_some());
        assert_eq!(reach("b", "10.244.0.1:91"), None, "another address of the node");
        assert!(reach("node", "192.168.77.1:90").is_some());
        // to itself by way of the node, which it takes for its client
        assert!(reach("a", "192.168.77.1:90").is_some_and(|seen| seen != result.addresses()[0].to_string()));
        network.check(&a.attachment).await.unwrap();
    }
    let b = attachment("b");
    network.publish(&b, &[port(None, 90)]).await.unwrap_err();
    network.del(&a.attachment).await.unwrap();
    assert_eq!(reach("outside", "192.168.77.1:90"), None);
    network.publish(&b, &[port(None, 90)]).await.unwrap();
    assert_eq!(reset(network.config()).await.unwrap(), []);
}

fn ip(place: &Place, line: &'static str) {
    let run = move || std::process::Command::new("ip").args(line.split(' ')).status();
    assert!(place.run(run).unwrap().unwrap().success(), "ip {line}");
}

#[tokio::test]
async fn the_node_reaches_host_ports_at_127_0_0_1_and_pods_reach_nothing_there() {
    let mut node = Node::new();
    let outside = node.space("outside");
    let network = Network::open(node.config()).await.unwrap();
    let (a, _) = node.pod(&network, "a").await;
    node.pod(&network, "b").await;
    link(&node.path("node"), &outside, "192.168.77.1", "192.168.77.2").await;
    let port = |host_ip: Option<&str>, host_port| HostPort {
        protocol: network::Protocol::Tcp,
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        host_port,
        pod_port: 8080,
    };
    network.publish(&a.attachment, &[port(None, 90), port(Some("127.0.0.1"), 91)]).await.unwrap();
    let place = |name: &str| Place::open(Some(&node.path(name))).unwrap();
    let listen =
        |name: &str, at: &'static str| place(name).run(move || TcpListener::bind(at).unwrap()).unwrap();
    let _pod = listen("a", "[::]:8080");
    let _own = listen("node", "127.0.0.1:7777");
    let reaches = |from: &str, to: &'static str| {
        let connect =
            move || TcpStream::connect_timeout(&to.parse().unwrap(), Duration::from_secs(1)).is_ok();
        place(from).run(connect).unwrap()
    };
    for network in [&network, &Network::open(node.config()).await.unwrap()] {
        assert!(reaches("node", "127.0.0.1:90") && reaches("node", "127.0.0.1:91"));
        assert!(reaches("outside", "192.168.77.1:90") && !reaches("outside", "192.168.77.1:91"));
        network.check(&a.attachment).await.unwrap();
    }
    // a pod that sends its calls of 127.0.0.1 to the node
    let b = place("b");
    let localnet = || {
        for link in ["all", "eth0"] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{link}/route_localnet"), "1").unwrap();
        }
    };
    b.run(localnet).unwrap();
    ip(&b, "address del 127.0.0.1/8 dev lo");
    ip(&b, "route add 127.0.0.0/8 via 10.244.0.1");
    assert!(!reaches("b", "127.0.0.1:7777") && !reaches("b", "127.0.0.1:90"));
    // but for the guard it would be heard
    let nft = network::nft::open(&place("node")).unwrap();
    let mut batch = network::nft::Batch::new(&network.config().table);
    batch.flush_chain("hostport-guard");
    nft.commit(batch).await.unwrap();
    assert!(reaches("b", "127.0.0.1:7777"));
    assert_eq!(reset(network.config()).await.unwrap(), []);
}

/// On another kernel.
mod vm {
    use testkit::vm::Vm;

    #[test]
    fn what_a_pod_had_goes_with_it_on_debians_kernel() {
        Vm::default().test(&["host_ports", "add_is_idempotent"], &[]);
    }
}
