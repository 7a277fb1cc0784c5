//! Nodes as network namespaces on one switch, or on two with a router between; pods of different nodes talk. Needs root.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use network::netns::{self, Place};
use network::peers::{Peer, Peers, Way, overhead};
use network::wireguard::WIREGUARD_LINK;
use network::{AddRequest, Attachment, Config, Network, reset};
use nlink::netlink::link::{BridgeLink, LinkCreateExt, VethLink};
use nlink::netlink::namespace::Netns;
use nlink::netlink::route::Ipv4Route;
use nlink::netlink::{Connection, Route};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with};

/// Hosts and the wires between them, gone with the value.
struct Lab {
    dir: tempfile::TempDir,
    spaces: Vec<PathBuf>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.spaces.iter().for_each(|p| drop(netns::delete(p)));
    }
}

struct Node {
    name: String,
    address: IpAddr,
    network: Network,
    peers: Peers,
}

impl Lab {
    /// A namespace `switch` with a bridge per network.
    async fn new(switches: &[&str]) -> Self {
        let mut lab = Self { dir: tempfile::tempdir().unwrap(), spaces: Vec::new() };
        lab.space("switch");
        let conn = lab.conn("switch");
        for name in switches {
            conn.add_link(BridgeLink::new(*name).up()).await.unwrap();
        }
        lab
    }

    fn space(&mut self, name: &str) -> PathBuf {
        let path = self.path(name);
        netns::create(&path).unwrap();
        self.spaces.push(path.clone());
        path
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn conn(&self, name: &str) -> Connection<Route> {
        Connection::new_in(self.path(name)).unwrap()
    }

    /// Plugs a host into a switch.
    async fn plug(&self, host: &str, link: &str, switch: &str, address: &str) {
        let conn = self.conn("switch");
        let bridge = conn.get_link_by_name(switch).await.unwrap().unwrap().ifindex();
        let peer = Netns::from_path(self.path(host)).unwrap();
        let port = format!("{host}-{link}");
        conn.add_link(VethLink::new(&port, link).peer_netns_fd(&peer).master(bridge).up()).await.unwrap();
        let inside = self.conn(host);
        let index = inside.get_link_by_name(link).await.unwrap().unwrap().ifindex();
        inside.add_address_by_index(index, address.parse().unwrap(), 24).await.unwrap();
        inside.set_link_up_by_index(index).await.unwrap();
    }

    async fn node(&mut self, number: u8, switch: &str, address: &str, way: Way) -> Node {
        self.try_node(number, switch, address, way).await.unwrap()
    }

    async fn try_node(
        &mut self,
        number: u8,
        switch: &str,
        address: &str,
        way: Way,
    ) -> Result<Node, network::Error> {
        let name = format!("n{number}");
        let netns = self.space(&name);
        self.plug(&name, "eth0", switch, address).await;
        let address: IpAddr = address.parse().unwrap();
        let config = Config {
            netns: Some(netns),
            mtu: Some(1500 - overhead(way, address)),
            pod_cidrs: vec![
                format!("10.244.{number}.0/24").parse().unwrap(),
                format!("fd00:10:244:{number}::/64").parse().unwrap(),
            ],
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()],
            ..Config::single_node(self.path(&format!("{name}-state")))
        };
        let network = Network::open(config).await.unwrap();
        let peers = Peers::open(network.config(), address, network.mtu(), way).await?;
        Ok(Node { name, address, network, peers })
    }

    async fn pod(&mut self, node: &Node, name: &str) -> Vec<IpAddr> {
        let attachment = Attachment { container_id: name.to_owned(), ifname: "eth0".to_owned() };
        let request = AddRequest { attachment, netns: self.space(name), args: Vec::new() };
        node.network.add(&request).await.unwrap().addresses()
    }
}

async fn acquaint(nodes: &mut [&mut Node]) {
    let all: Vec<Peer> = nodes
        .iter()
        .map(|n| Peer {
            address: n.address,
            pod_cidrs: n.network.config().pod_cidrs.clone(),
            key: n.peers.key(),
        })
        .collect();
    for node in nodes {
        let others: Vec<Peer> = all.iter().filter(|p| p.address != node.address).cloned().collect();
        node.peers.set(&others).await.unwrap();
    }
}

/// Connects, and returns who the server saw; what it sends is larger than any packet.
fn talk(server: &Path, client: &Path, to: IpAddr) -> Result<IpAddr, String> {
    const LARGE: usize = 200_000;
    let any: IpAddr = if to.is_ipv6() { [0; 16].into() } else { [0; 4].into() };
    // a free port: programs that other tests start hold a listener of ours for as long as they are not yet another program
    let listener = Place::open(Some(server)).unwrap().run(|| TcpListener::bind((any, 0)).unwrap()).unwrap();
    let to = SocketAddr::new(to, listener.local_addr().unwrap().port());
    let place = Place::open(Some(client)).unwrap();
    let connected =
        place.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(2) * testkit::slowness())).unwrap();
    let mut stream = connected.map_err(|e| format!("{to}: {e}"))?;
    // a connection waits in the backlog: nobody is left to wait for one that never came
    let serving = std::thread::spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        std::io::Write::write_all(&mut stream, &vec![7; LARGE]).unwrap();
        peer.ip()
    });
    stream.set_read_timeout(Some(Duration::from_secs(5) * testkit::slowness())).unwrap();
    let mut got = Vec::new();
    stream.read_to_end(&mut got).map_err(|e| format!("{to}: {e}"))?;
    assert_eq!(got.len(), LARGE);
    Ok(serving.join().unwrap())
}

#[tokio::test]
async fn pods_of_different_nodes_see_each_other_untranslated_whatever_the_way() {
    for way in [Way::Vxlan, Way::Auto, Way::HostGw] {
        let mut lab = Lab::new(&["lan"]).await;
        let mut one = lab.node(1, "lan", "192.168.50.1", way).await;
        let mut two = lab.node(2, "lan", "192.168.50.2", way).await;
        let a = lab.pod(&one, "a").await;
        let b = lab.pod(&two, "b").await;
        acquaint(&mut [&mut one, &mut two]).await;
        // direct routes need a next hop of the same family
        let families = if way == Way::HostGw { 1 } else { 2 };
        for family in 0..families {
            let to = b[family];
            assert_eq!(talk(&lab.path("b"), &lab.path("a"), to), Ok(a[family]), "{way:?}");
            // the node itself reaches pods elsewhere, as probes and proxies do
            talk(&lab.path("b"), &lab.path("n1"), b[family]).unwrap();
        }
        // a node that left is forgotten
        one.peers.set(&[]).await.unwrap();
        let routes = lab.conn("n1").get_routes().await.unwrap();
        let left = routes.iter().find(|r| r.destination() == Some(&"10.244.2.0".parse().unwrap()));
        assert!(left.is_none(), "{way:?}: {left:?}");
        assert_eq!(reset(one.network.config()).await.unwrap(), []);
        let links = lab.conn("n1").get_links().await.unwrap();
        assert!(links.iter().all(|l| !l.name_or("").starts_with("navarch")));
    }
}

#[tokio::test]
async fn nodes_behind_a_router_are_reached_by_vxlan() {
    let mut lab = Lab::new(&["east", "west"]).await;
    let mut one = lab.node(1, "east", "192.168.50.1", Way::Auto).await;
    let mut two = lab.node(2, "west", "192.168.60.2", Way::Auto).await;
    let router = lab.space("router");
    lab.plug("router", "e", "east", "192.168.50.254").await;
    lab.plug("router", "w", "west", "192.168.60.254").await;
    Place::open(Some(&router))
        .unwrap()
        .run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1"))
        .unwrap()
        .unwrap();
    for (node, gateway) in [("n1", "192.168.50.254"), ("n2", "192.168.60.254")] {
        let route = Ipv4Route::from_addr([0, 0, 0, 0].into(), 0).gateway(gateway.parse().unwrap());
        lab.conn(node).add_route(route).await.unwrap();
    }
    let a = lab.pod(&one, "a").await;
    let b = lab.pod(&two, "b").await;
    acquaint(&mut [&mut one, &mut two]).await;
    for family in 0..2 {
        let to = b[family];
        assert_eq!(talk(&lab.path("b"), &lab.path("a"), to), Ok(a[family]));
    }
}

#[tokio::test]
async fn a_cut_wire_that_comes_back_carries_pods_again() {
    for way in [Way::Vxlan, Way::HostGw] {
        let mut lab = Lab::new(&["lan"]).await;
        let mut one = lab.node(1, "lan", "192.168.50.1", way).await;
        let mut two = lab.node(2, "lan", "192.168.50.2", way).await;
        lab.pod(&one, "a").await;
        let b = lab.pod(&two, "b").await;
        acquaint(&mut [&mut one, &mut two]).await;
        let two_is =
            Peer { address: two.address, pod_cidrs: two.network.config().pod_cidrs.clone(), key: None };
        let mut disturbed = one.peers.disturbances().await.unwrap();
        let to = b[0];
        talk(&lab.path("b"), &lab.path("a"), to).unwrap();

        let host = lab.conn(&one.name);
        host.set_link_down("eth0").await.unwrap();
        disturbed.next().await.unwrap();
        host.set_link_up("eth0").await.unwrap();
        let until = Instant::now() + Duration::from_secs(30);
        while let Err(error) = talk(&lab.path("b"), &lab.path("a"), b[0]) {
            assert!(Instant::now() < until, "{way:?}: {error}");
            let _ = tokio::time::timeout(Duration::from_millis(200), disturbed.next()).await;
            one.peers.set(std::slice::from_ref(&two_is)).await.unwrap();
        }
    }
}

/// Everything that crosses the wires of a namespace from now on.
fn listen(space: &Path) -> OwnedFd {
    const ALL: u32 = 3;
    let all = Protocol::from_raw(std::num::NonZeroU32::new((ALL << 8) & 0xff00).unwrap());
    let open = || socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::NONBLOCK, Some(all));
    Place::open(Some(space)).unwrap().run(open).unwrap().unwrap()
}

/// What the frames are: `arp`, `igmp`, `udp PORT`, or the number of another protocol.
fn kinds(heard: &OwnedFd) -> BTreeSet<String> {
    let mut kinds = BTreeSet::new();
    let mut frame = vec![0; 65536];
    while let Ok((length, _)) = recv(heard, &mut frame[..], RecvFlags::empty()) {
        let frame = &frame[..length];
        assert!(!frame.windows(64).any(|part| part == [7; 64]), "what pods send is readable");
        kinds.insert(match (frame[12], frame[13]) {
            // bridges join the group of those who look into multicast
            (8, 0) if frame[23] == 2 => "igmp".to_owned(),
            (8, 0) if frame[23] == 17 => format!("udp {}", u16::from_be_bytes([frame[36], frame[37]])),
            (8, 0) => format!("ip {}", frame[23]),
            (8, 6) => "arp".to_owned(),
            // 58: neighbour discovery, behind the header for multicast listeners (0)
            (0x86, 0xdd) => format!("ipv6 {}", frame[20]),
            (high, low) => format!("{high:02x}{low:02x}"),
        });
    }
    kinds
}

#[tokio::test]
async fn packets_between_nodes_are_encrypted_by_wireguard_or_refused() {
    let way = Way::Wireguard;
    let mut lab = Lab::new(&["lan"]).await;
    let mut one = match lab.try_node(1, "lan", "192.168.50.1", way).await {
        Ok(node) => node,
        // the guest of the test below has it
        Err(error) => {
            assert_eq!(error.to_string(), "this node's kernel has no WireGuard (module wireguard)");
            return;
        }
    };
    let mut two = lab.node(2, "lan", "192.168.50.2", way).await;
    let a = lab.pod(&one, "a").await;
    let b = lab.pod(&two, "b").await;
    let (mine, theirs) = (lab.path("a"), lab.path("b"));
    // even with a way in the clear, packets for a node without a key stay here
    let clear = Ipv4Route::from_addr([0, 0, 0, 0].into(), 0).gateway("192.168.50.2".parse().unwrap());
    lab.conn("n1").add_route(clear).await.unwrap();
    let keyless = Peer { address: two.address, pod_cidrs: two.network.config().pod_cidrs.clone(), key: None };
    let heard = listen(&lab.path("switch"));
    one.peers.set(&[keyless]).await.unwrap();
    assert!(talk(&theirs, &mine, b[0]).is_err());
    let leaked = kinds(&heard);
    assert!(!leaked.iter().any(|kind| kind.starts_with("ip ") || kind.starts_with("udp")), "{leaked:?}");

    acquaint(&mut [&mut one, &mut two]).await;
    for family in 0..2 {
        let to = b[family];
        assert_eq!(talk(&theirs, &mine, to), Ok(a[family]));
        // the node itself, as probes and proxies do
        talk(&theirs, &lab.path("n1"), b[family]).unwrap();
    }
    let kinds = kinds(&heard);
    assert!(kinds.contains("udp 51820"), "{kinds:?}");
    let harmless = ["udp 51820", "arp", "igmp", "ipv6 0", "ipv6 58"];
    assert!(kinds.iter().all(|kind| harmless.contains(&kind.as_str())), "{kinds:?}");

    // a new process finds the key, and sessions go on
    let key = one.peers.key();
    let config = one.network.config().clone();
    one.peers = Peers::open(&config, one.address, one.network.mtu(), way).await.unwrap();
    assert_eq!(one.peers.key(), key);
    talk(&theirs, &mine, b[0]).unwrap();
    // a node that left is refused in both directions
    two.peers.set(&[]).await.unwrap();
    assert!(talk(&theirs, &mine, b[0]).is_err());
    assert_eq!(reset(&config).await.unwrap(), []);
    let links = lab.conn("n1").get_links().await.unwrap();
    assert!(links.iter().all(|link| link.name_or("") != WIREGUARD_LINK));
}

/// On another kernel.
mod vm {
    use testkit::vm::Vm;

    #[test]
    fn wireguard_carries_pods_between_nodes() {
        Vm::default().test(&["packets_between_nodes_are_encrypted"], &[]);
    }

    /// All of them; `make test-vm` runs it.
    #[test]
    #[ignore = "takes minutes under emulation"]
    fn nodes_reach_each_other_on_debians_kernel() {
        let limit = std::time::Duration::from_secs(900);
        Vm { limit, show: true, ..Vm::default() }.test(&[], &[]);
    }
}
