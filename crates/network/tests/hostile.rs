//! Pods that pretend to be others, and pods that would take the whole wire. Needs root.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use network::netns::{self, Place};
use network::{AddRequest, Attachment, Config, HostPort, Limits, Network, Protocol, nft, reset};
use nlink::netlink::{Connection, Route};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_millis(400);
/// So often what is to arrive is sent.
const TRIES: usize = 50;

/// A node with pods, gone with the value.
struct Node {
    dir: tempfile::TempDir,
    spaces: Vec<PathBuf>,
    network: Arc<Network>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.spaces.iter().for_each(|p| drop(netns::delete(p)));
    }
}

impl Node {
    async fn new(pod_cidrs: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node");
        netns::create(&path).unwrap();
        let config = Config {
            netns: Some(path.clone()),
            mtu: Some(1400),
            pod_cidrs: pod_cidrs.iter().map(|c| c.parse().unwrap()).collect(),
            ..Config::single_node(dir.path().join("state"))
        };
        let network = Arc::new(Network::open(config).await.unwrap());
        Self { dir, spaces: vec![path], network }
    }

    async fn dual() -> Self {
        Self::new(&["10.244.0.0/24", "fd00:10:244::/64"]).await
    }

    async fn pod(&mut self, name: &str) -> Vec<IpAddr> {
        let netns = self.dir.path().join(name);
        netns::create(&netns).unwrap();
        self.spaces.push(netns.clone());
        let request = AddRequest { attachment: attachment(name), netns, args: Vec::new() };
        self.network.add(&request).await.unwrap().addresses()
    }

    fn place(&self, name: &str) -> Place {
        Place::open(Some(&self.dir.path().join(name))).unwrap()
    }

    fn conn(&self, name: &str) -> Connection<Route> {
        Connection::new_in(self.dir.path().join(name)).unwrap()
    }

    /// The pod takes an address that it was not given.
    async fn claim(&self, pod: &str, address: &str) {
        let address: IpAddr = address.parse().unwrap();
        let conn = self.conn(pod);
        let index = conn.get_link_by_name("eth0").await.unwrap().unwrap().ifindex();
        match address {
            IpAddr::V4(a) => {
                let wanted = nlink::netlink::addr::Ipv4Address::with_index(index, a, 32);
                conn.add_address(wanted).await.unwrap();
            }
            IpAddr::V6(a) => {
                let wanted = nlink::netlink::addr::Ipv6Address::with_index(index, a, 128).nodad();
                conn.add_address(wanted).await.unwrap();
            }
        }
    }

    /// Whether a datagram that `from` sends with the address `source` reaches a socket in `to`. The first ones of a pair may be
    /// lost while neighbours are looked for.
    fn arrives(&self, from: &str, source: IpAddr, to: &str, at: IpAddr) -> bool {
        let arrives = self.sends(from, source, to, at);
        (0..TRIES).any(|_| arrives())
    }

    /// Whether no such datagram does.
    fn is_kept(&self, from: &str, source: IpAddr, to: &str, at: IpAddr) -> bool {
        !self.sends(from, source, to, at)()
    }

    fn sends(&self, from: &str, source: IpAddr, to: &str, at: IpAddr) -> impl Fn() -> bool {
        let receiver = self.place(to).run(|| UdpSocket::bind((at, 0)).unwrap()).unwrap();
        receiver.set_read_timeout(Some(PATIENCE)).unwrap();
        let target = receiver.local_addr().unwrap();
        let sender = self.place(from).run(|| UdpSocket::bind((source, 0)).unwrap()).unwrap();
        move || {
            sender.send_to(b"x", target).unwrap();
            receiver.recv_from(&mut [0; 4]).is_ok()
        }
    }

    fn connects(&self, from: &str, to: SocketAddr) -> bool {
        (0..TRIES).any(|_| !self.is_refused(from, to))
    }

    fn is_refused(&self, from: &str, to: SocketAddr) -> bool {
        self.place(from).run(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap().is_err()
    }

    fn nft(&self) -> Box<dyn nft::Nft> {
        nft::open(&self.place("node")).unwrap()
    }
}

fn attachment(id: &str) -> Attachment {
    Attachment { container_id: id.to_owned(), ifname: "eth0".to_owned() }
}

#[tokio::test]
async fn what_a_pod_sends_with_an_address_that_is_not_its_own_is_dropped() {
    let mut node = Node::dual().await;
    let (a, b) = (node.pod("a").await, node.pod("b").await);
    let stolen = ["10.244.0.200", "fd00:10:244::200"];
    for address in stolen {
        node.claim("a", address).await;
    }
    for family in 0..2 {
        let stolen: IpAddr = stolen[family].parse().unwrap();
        assert!(node.arrives("a", a[family], "b", b[family]), "its own");
        assert!(node.is_kept("a", stolen, "b", b[family]), "{stolen}");
        // nor does it answer for the address when neighbours ask
        let _listening = node.place("a").run(|| TcpListener::bind((stolen, 80)).unwrap()).unwrap();
        assert!(node.is_refused("node", (stolen, 80).into()), "{stolen}");
    }
    // after a restart as before it
    let again = Network::open(node.network.config().clone()).await.unwrap();
    assert!(node.arrives("a", a[0], "b", b[0]) && node.arrives("a", a[1], "b", b[1]));
    assert!(node.is_kept("a", stolen[0].parse().unwrap(), "b", b[0]));
    // it is these rules that keep it
    node.nft().delete_table("navarch").await.unwrap();
    for family in 0..2 {
        assert!(node.arrives("a", stolen[family].parse().unwrap(), "b", b[family]));
    }
    drop(again);
    assert_eq!(reset(node.network.config()).await.unwrap(), []);
    assert_eq!(node.nft().tables().await.unwrap(), [""; 0]);
}

#[tokio::test]
async fn a_pod_with_another_hardware_address_is_cut_off() {
    let mut node = Node::dual().await;
    let (a, b) = (node.pod("a").await, node.pod("b").await);
    let conn = node.conn("a");
    conn.set_link_address("eth0", [0x0a, 0x58, 1, 2, 3, 4]).await.unwrap();
    assert!(node.is_kept("a", a[0], "b", b[0]) && node.is_kept("a", a[1], "b", b[1]));
}

#[tokio::test]
async fn rules_that_someone_removes_come_back() {
    let mut node = Node::dual().await;
    node.pod("a").await;
    node.claim("a", "10.244.0.200").await;
    let b = node.pod("b").await;
    let stop = CancellationToken::new();
    let guarding = tokio::spawn({
        let (network, stop) = (node.network.clone(), stop.clone());
        async move { network.guard(stop).await }
    });
    let until = Instant::now() + Duration::from_secs(30);
    node.nft().delete_table("navarch").await.unwrap();
    while !node.nft().has_bridge_table("navarch").await.unwrap() {
        assert!(Instant::now() < until, "the table did not come back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(node.is_kept("a", "10.244.0.200".parse().unwrap(), "b", b[0]));
    stop.cancel();
    guarding.await.unwrap().unwrap();
}

/// How long `from` takes to send a megabyte to `to`.
fn megabyte(node: &Node, from: &str, to: &str, at: IpAddr) -> Duration {
    const SIZE: usize = 1_000_000;
    let listener = node.place(to).run(|| TcpListener::bind((at, 0)).unwrap()).unwrap();
    let target = listener.local_addr().unwrap();
    let mut sender = node.place(from).run(|| TcpStream::connect(target).unwrap()).unwrap();
    let started = Instant::now();
    let sending = std::thread::spawn(move || sender.write_all(&vec![1; SIZE]).unwrap());
    let mut got = Vec::new();
    listener.accept().unwrap().0.read_to_end(&mut got).unwrap();
    sending.join().unwrap();
    assert_eq!(got.len(), SIZE);
    started.elapsed()
}

#[tokio::test]
async fn limits_hold_in_each_direction_and_go_when_they_are_lifted() {
    let mut node = Node::dual().await;
    let (a, b) = (node.pod("a").await, node.pod("b").await);
    // a megabyte in a second
    let slow = Some(8_000_000);
    let is_slow = |took: Duration| (600..10_000).contains(&took.as_millis());
    for (limits, from_a, from_b) in [
        (Limits { ingress: slow, egress: None }, false, true),
        (Limits { ingress: None, egress: slow }, true, false),
        (Limits::default(), false, false),
    ] {
        node.network.limit(&attachment("a"), limits).await.unwrap();
        let (sent, received) = (megabyte(&node, "a", "b", b[0]), megabyte(&node, "b", "a", a[0]));
        assert_eq!(is_slow(sent), from_a, "{limits:?}: sent in {sent:?}");
        assert_eq!(is_slow(received), from_b, "{limits:?}: received in {received:?}");
    }
}

#[tokio::test]
async fn a_node_of_ipv6_only_carries_pods_and_ports() {
    let mut node = Node::new(&["fd00:10:244::/64"]).await;
    let (a, b) = (node.pod("a").await, node.pod("b").await);
    assert_eq!((a.len(), b.len()), (1, 1));
    assert!(node.arrives("a", a[0], "b", b[0]));
    let port = HostPort { protocol: Protocol::Tcp, host_ip: None, host_port: 90, pod_port: 8080 };
    node.network.publish(&attachment("b"), &[port]).await.unwrap();
    let _listening = node.place("b").run(|| TcpListener::bind("[::]:8080").unwrap()).unwrap();
    assert!(node.connects("a", "[fd00:10:244::1]:90".parse().unwrap()));
    node.network.del(&attachment("b")).await.unwrap();
    assert!(node.is_refused("a", "[fd00:10:244::1]:90".parse().unwrap()));
    assert_eq!(reset(node.network.config()).await.unwrap(), []);
}
