//! Addresses that nodes answer for, as a neighbour on the same wire sees them. Needs root.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use network::announce::Announcer;
use network::netns::{self, Place};
use network::{Config, Network, reset};
use nlink::netlink::link::{BridgeLink, LinkCreateExt, VethLink};
use nlink::netlink::namespace::Netns;
use nlink::netlink::{Connection, Route};

const PATIENCE: Duration = Duration::from_secs(30);

/// Hosts on one wire, gone with the value.
struct Lab {
    dir: tempfile::TempDir,
    spaces: Vec<PathBuf>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.spaces.iter().for_each(|p| drop(netns::delete(p)));
    }
}

impl Lab {
    async fn new() -> Self {
        let mut lab = Self { dir: tempfile::tempdir().unwrap(), spaces: Vec::new() };
        lab.space("switch");
        lab.conn("switch").add_link(BridgeLink::new("lan").up()).await.unwrap();
        lab
    }

    fn space(&mut self, name: &str) {
        let path = self.dir.path().join(name);
        netns::create(&path).unwrap();
        self.spaces.push(path);
    }

    fn conn(&self, name: &str) -> Connection<Route> {
        Connection::new_in(self.dir.path().join(name)).unwrap()
    }

    async fn host(&mut self, name: &str, number: u8) {
        self.space(name);
        let conn = self.conn("switch");
        let lan = conn.get_link_by_name("lan").await.unwrap().unwrap().ifindex();
        let peer = Netns::from_path(self.dir.path().join(name)).unwrap();
        conn.add_link(VethLink::new(name, "eth0").peer_netns_fd(&peer).master(lan).up()).await.unwrap();
        let inside = self.conn(name);
        let index = inside.get_link_by_name("eth0").await.unwrap().unwrap().ifindex();
        let v4 = nlink::netlink::addr::Ipv4Address::with_index(index, [192, 168, 50, number].into(), 24);
        inside.add_address(v4).await.unwrap();
        let v6: std::net::Ipv6Addr = format!("fd00:50::{number}").parse().unwrap();
        let v6 = nlink::netlink::addr::Ipv6Address::with_index(index, v6, 64).nodad();
        inside.add_address(v6).await.unwrap();
        inside.set_link_up_by_index(index).await.unwrap();
    }

    async fn node(&mut self, name: &str, number: u8) -> (Network, Announcer) {
        self.host(name, number).await;
        let config = Config {
            netns: Some(self.dir.path().join(name)),
            pod_cidrs: vec![
                format!("10.244.{number}.0/24").parse().unwrap(),
                format!("fd00:244:{number}::/64").parse().unwrap(),
            ],
            ..Config::single_node(self.dir.path().join(format!("{name}-state")))
        };
        let network = Network::open(config).await.unwrap();
        let announcer = Announcer::open(network.config()).unwrap();
        (network, announcer)
    }

    async fn mac(&self, host: &str) -> String {
        self.conn(host).get_link_by_name("eth0").await.unwrap().unwrap().mac_address().unwrap()
    }

    /// Where `host` believes an address to be, once it does.
    async fn belief(&self, host: &str, address: IpAddr) -> Option<String> {
        let neighbors = self.conn(host).get_neighbors().await.unwrap();
        let entry = neighbors.iter().find(|n| n.destination() == Some(&address))?;
        entry.mac_address()
    }

    /// Has `host` ask for an address, and waits until it gives up.
    async fn finds_nobody(&self, host: &str, address: IpAddr) {
        let place = Place::open(Some(&self.dir.path().join(host))).unwrap();
        let to = SocketAddr::new(address, 9);
        place.run(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap().unwrap_err();
        assert_eq!(self.belief(host, address).await, None, "{address}");
    }

    /// Has `host` ask for an address, and waits until it believes it to be at `mac`.
    async fn finds(&self, host: &str, address: IpAddr, mac: &str) {
        let place = Place::open(Some(&self.dir.path().join(host))).unwrap();
        let any: IpAddr = if address.is_ipv6() { [0; 16].into() } else { [0; 4].into() };
        let socket = place.run(|| UdpSocket::bind((any, 0)).unwrap()).unwrap();
        let until = Instant::now() + PATIENCE;
        loop {
            let _ = socket.send_to(b"?", SocketAddr::new(address, 9));
            let belief = self.belief(host, address).await;
            if belief.as_deref() == Some(mac) {
                return;
            }
            assert!(Instant::now() < until, "{address}: {belief:?} instead of {mac}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn neighbours_find_an_address_where_it_is_and_where_it_goes() {
    let mut lab = Lab::new().await;
    let (one, here) = lab.node("one", 1).await;
    let (two, there) = lab.node("two", 2).await;
    lab.host("client", 9).await;
    let (one_is, two_is) = (lab.mac("one").await, lab.mac("two").await);
    let v4: IpAddr = "192.168.50.200".parse().unwrap();
    let v6: IpAddr = "fd00:50::200".parse().unwrap();
    let far: IpAddr = "203.0.113.1".parse().unwrap();
    let both = BTreeSet::from([v4, v6]);
    // one on no link's network is left out
    let new = here.set(&BTreeSet::from([v4, v6, far])).await.unwrap();
    assert_eq!(new, [v4, v6]);
    assert_eq!(here.set(&both).await.unwrap(), [] as [IpAddr; 0], "known already");
    for address in [v4, v6] {
        lab.finds("client", address, &one_is).await;
    }
    // the node goes without a word, and another one takes over: neighbours hear of it and ask nobody
    lab.conn("switch").set_link_down("one").await.unwrap();
    there.set(&both).await.unwrap();
    for address in [v4, v6] {
        there.tell(address).await.unwrap();
        let until = Instant::now() + PATIENCE;
        while lab.belief("client", address).await != Some(two_is.clone()) {
            assert!(Instant::now() < until, "{address} is not believed to have moved");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    // a new process knows what the old one announced
    let again = Announcer::open(two.config()).unwrap();
    assert_eq!(again.set(&BTreeSet::from([v4])).await.unwrap(), [] as [IpAddr; 0]);
    lab.conn("client").flush_neighbors("eth0").await.unwrap();
    lab.finds("client", v4, &two_is).await;
    lab.finds_nobody("client", v6).await;
    assert_eq!(reset(two.config()).await.unwrap(), []);
    lab.conn("client").flush_neighbors("eth0").await.unwrap();
    lab.finds_nobody("client", v4).await;
    assert_eq!(reset(one.config()).await.unwrap(), []);
}
