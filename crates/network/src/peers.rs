//! The way to the pods of other nodes: direct routes where the other node is on one of our links, vxlan elsewhere; or
//! [WireGuard](crate::wireguard) to all.
//!
//! Every node has a vxlan link (VNI 1, UDP port 8472) whose address is the first of its pod CIDR and whose hardware
//! address follows from the node's address, so that nothing has to be learned or exchanged: from a node's address and pod
//! CIDR follow the route to its pods, the neighbour entry of its vxlan address and the forwarding entry of its hardware
//! address. Our routes carry a protocol number of their own; by it a new process finds those that no node needs any more.
//! A forwarding entry says "this hardware address is at that node" and stays true, so left ones do no harm.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use nlink::netlink::fdb::FdbEntryBuilder;
use nlink::netlink::link::VxlanLink;
use nlink::netlink::neigh::Neighbor;
use nlink::netlink::route::{Ipv4Route, Ipv6Route};
use nlink::netlink::types::route::RouteProtocol;
use nlink::netlink::{Connection, NetworkEvent, Route, RtnetlinkGroup};

use crate::bridge::{hardware_address, set_address};
use crate::changes::Changes;
use crate::cidr::Cidr;
use crate::netns::Place;
use crate::network::{Config, Error};
use crate::sysctl;
use crate::wireguard::{Key, Tunnel, WIREGUARD_LINK, WIREGUARD_OVERHEAD};

/// The vxlan link.
pub const VXLAN_LINK: &str = "navarch-vx";
/// Bytes that vxlan adds to a packet between nodes with IPv4 addresses: Ethernet, IP, UDP and its own header.
pub const VXLAN_OVERHEAD: u32 = 50;
const VNI: u32 = 1;
const PORT: u16 = 8472;
/// Marks our routes; of the range that no routing daemon has.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(143);

/// Bytes that are added to a packet on this way between nodes with addresses of this family.
pub fn overhead(way: Way, node: IpAddr) -> u32 {
    // the header of IPv6 is longer
    let longer = if node.is_ipv6() { 20 } else { 0 };
    match way {
        Way::Vxlan | Way::Auto => VXLAN_OVERHEAD + longer,
        Way::HostGw => 0,
        Way::Wireguard => WIREGUARD_OVERHEAD + longer,
    }
}

/// How packets reach other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Always by vxlan: asks nothing of what lies between.
    Vxlan,
    /// Direct routes to nodes on one of our links, vxlan to others.
    Auto,
    /// Direct routes only; nodes elsewhere are not reached by us.
    HostGw,
    /// Always encrypted, by WireGuard; nodes without a key are not reached.
    Wireguard,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// Where it is.
    pub address: IpAddr,
    /// Its pods.
    pub pod_cidrs: Vec<Cidr>,
    /// Its key, where it goes by WireGuard.
    pub key: Option<Key>,
}

/// A route to a pod CIDR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hop {
    /// `None`: the link itself knows where to.
    gateway: Option<IpAddr>,
    link: u32,
}

/// The routes to other nodes' pods.
pub struct Peers {
    conn: Connection<Route>,
    place: Place,
    vxlan: Option<u32>,
    wireguard: Option<Tunnel>,
    /// All pods of the cluster.
    cluster_cidrs: Vec<Cidr>,
    way: Way,
    /// What was set for whom; forwarding and neighbour entries go with their node.
    known: BTreeSet<Peer>,
}

impl Peers {
    /// Makes the link that the way needs, unless it stands, and removes that of another way. `own` is this node's address; `config` and `mtu` are those of its pods.
    pub async fn open(config: &Config, own: IpAddr, mtu: u32, way: Way) -> Result<Self, Error> {
        let place = Place::open(config.netns.as_deref())
            .map_err(Error::netns(config.netns.as_deref().unwrap_or(std::path::Path::new("(own)"))))?;
        let conn = place.route().map_err(Error::link("open a socket for", VXLAN_LINK))?;
        let (mut vxlan, mut wireguard) = (None, None);
        match way {
            Way::HostGw => {}
            Way::Vxlan | Way::Auto => vxlan = Some(ensure_vxlan(&conn, &place, config, own, mtu).await?),
            Way::Wireguard => wireguard = Some(Tunnel::open(&conn, &place, config, mtu).await?),
        }
        for (link, used) in [(VXLAN_LINK, vxlan.is_some()), (WIREGUARD_LINK, wireguard.is_some())] {
            if !used {
                conn.del_link_if_exists(link).await.map_err(Error::link("delete", link))?;
            }
        }
        // one that is a pod network of ours has its route already
        let others = config.cluster_cidrs.iter().filter(|cidr| !config.pod_cidrs.contains(cidr));
        let cluster_cidrs = others.copied().collect();
        Ok(Self { conn, place, vxlan, wireguard, cluster_cidrs, way, known: BTreeSet::new() })
    }

    /// This node's key for others, where it goes by WireGuard.
    pub fn key(&self) -> Option<Key> {
        self.wireguard.as_ref().map(|tunnel| tunnel.key)
    }

    /// Brings routes and entries to what `peers` need.
    pub async fn set(&mut self, peers: &[Peer]) -> Result<(), Error> {
        let mut wanted: BTreeMap<Cidr, Hop> = BTreeMap::new();
        if let Some(tunnel) = &self.wireguard {
            tunnel.set(peers).await?;
            let hop = Hop { gateway: None, link: tunnel.link };
            let known = peers.iter().filter(|peer| peer.key.is_some()).flat_map(|peer| &peer.pod_cidrs);
            wanted.extend(self.cluster_cidrs.iter().chain(known).map(|cidr| (*cidr, hop)));
            for peer in peers.iter().filter(|peer| peer.key.is_none()) {
                tracing::warn!(node = %peer.address, "this node has no key of WireGuard yet: its pods are not reached");
            }
        }
        for peer in peers.iter().filter(|_| self.wireguard.is_none()) {
            let direct = match self.way {
                Way::Vxlan | Way::Wireguard => None,
                Way::Auto | Way::HostGw => self.shared_link(peer.address).await?,
            };
            for cidr in &peer.pod_cidrs {
                let same_family = cidr.is_ipv6() == peer.address.is_ipv6();
                let hop = match (direct.filter(|_| same_family), self.vxlan) {
                    (Some(link), _) => Hop { gateway: Some(peer.address), link },
                    (None, Some(link)) => {
                        self.tunnel(link, peer.address, cidr).await?;
                        Hop { gateway: Some(cidr.base()), link }
                    }
                    (None, None) => {
                        tracing::warn!(node = %peer.address, pods = %cidr, "no link is shared with this node: its pods are not reached");
                        continue;
                    }
                };
                wanted.insert(*cidr, hop);
            }
        }
        for (cidr, hop) in routes(&self.conn).await? {
            if wanted.get(&cidr) != Some(&hop) {
                remove(&self.conn, cidr, hop).await?;
            } else {
                wanted.remove(&cidr);
            }
        }
        for (cidr, hop) in wanted {
            self.route(cidr, hop).await?;
        }
        let next: BTreeSet<Peer> = peers.iter().cloned().collect();
        if let Some(link) = self.vxlan {
            for gone in self.known.difference(&next) {
                self.forget(link, gone, &next).await?;
            }
        }
        self.known = next;
        Ok(())
    }

    /// Listens for changes of links and routes, which may have taken ours away.
    pub async fn disturbances(&self) -> Result<Changes, Error> {
        let matters = |event: &NetworkEvent| match event {
            NetworkEvent::NewLink(_) | NetworkEvent::DelLink(_) => true,
            NetworkEvent::DelRoute(route) => route.protocol() == PROTOCOL,
            _ => false,
        };
        let groups = &[RtnetlinkGroup::Link, RtnetlinkGroup::Ipv4Route, RtnetlinkGroup::Ipv6Route];
        Changes::open(&self.place, groups, matters).await
    }

    /// The link on which `address` is a neighbour.
    async fn shared_link(&self, address: IpAddr) -> Result<Option<u32>, Error> {
        let links = self.conn.get_links().await.map_err(Error::link("list", "links"))?;
        let addresses =
            self.conn.get_addresses().await.map_err(Error::link("list the addresses of", "links"))?;
        let near = addresses.iter().find(|own| {
            let up = links.iter().any(|l| l.ifindex() == own.ifindex() && l.is_up() && !l.is_loopback());
            let net = own.primary_address().and_then(|a| Cidr::new(*a, own.prefix_len()));
            up && Some(own.ifindex()) != self.vxlan && net.is_some_and(|n| n.contains(address))
        });
        Ok(near.map(|own| own.ifindex()))
    }

    async fn route(&self, cidr: Cidr, hop: Hop) -> Result<(), Error> {
        let done = match (cidr.base(), hop.gateway) {
            (IpAddr::V4(base), Some(IpAddr::V4(gateway))) => {
                let route = Ipv4Route::from_addr(base, cidr.prefix_len()).dev_index(hop.link);
                self.conn.replace_route(route.gateway(gateway).onlink().protocol(PROTOCOL)).await
            }
            (IpAddr::V6(base), Some(IpAddr::V6(gateway))) => {
                let route = Ipv6Route::from_addr(base, cidr.prefix_len()).dev_index(hop.link);
                self.conn.replace_route(route.gateway(gateway).onlink().protocol(PROTOCOL)).await
            }
            (IpAddr::V4(base), None) => {
                let route = Ipv4Route::from_addr(base, cidr.prefix_len()).dev_index(hop.link);
                self.conn.replace_route(route.protocol(PROTOCOL)).await
            }
            (IpAddr::V6(base), None) => {
                let route = Ipv6Route::from_addr(base, cidr.prefix_len()).dev_index(hop.link);
                self.conn.replace_route(route.protocol(PROTOCOL)).await
            }
            _ => return Ok(()),
        };
        match done {
            // the link went down meanwhile; when it comes up we are called again
            Err(error) if error.errno() == Some(libc::ENETDOWN) => Ok(()),
            done => done.map_err(Error::link("route by", &hop.link.to_string())),
        }
    }

    /// How the vxlan link reaches a node.
    async fn tunnel(&self, link: u32, node: IpAddr, cidr: &Cidr) -> Result<(), Error> {
        let mac = hardware_address(Some(node));
        let entry = FdbEntryBuilder::new(mac).ifindex(link).dst(node).self_().permanent();
        self.conn.replace_fdb(entry).await.map_err(Error::link("add a forwarding entry to", VXLAN_LINK))?;
        let neighbour = Neighbor::with_index(link, cidr.base()).lladdr(mac).permanent();
        self.conn.replace_neighbor(neighbour).await.map_err(Error::link("add a neighbour to", VXLAN_LINK))
    }

    async fn forget(&self, link: u32, gone: &Peer, left: &BTreeSet<Peer>) -> Result<(), Error> {
        let used = |cidr: &Cidr| left.iter().any(|p| p.pod_cidrs.contains(cidr));
        for cidr in gone.pod_cidrs.iter().filter(|c| !used(c)) {
            let neighbour = Neighbor::with_index(link, cidr.base());
            self.conn
                .del_neighbor_if_exists(neighbour)
                .await
                .map_err(Error::link("remove a neighbour of", VXLAN_LINK))?;
        }
        if !left.iter().any(|p| p.address == gone.address) {
            let mac = hardware_address(Some(gone.address));
            let entry = FdbEntryBuilder::new(mac).ifindex(link).dst(gone.address).self_();
            match self.conn.del_fdb_entry(entry).await {
                Err(error) if !error.is_not_found() => {
                    return Err(Error::link("remove a forwarding entry of", VXLAN_LINK)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Our routes.
async fn routes(conn: &Connection<Route>) -> Result<Vec<(Cidr, Hop)>, Error> {
    let routes = conn.get_routes().await.map_err(Error::link("list the routes of", VXLAN_LINK))?;
    let ours = routes.iter().filter(|r| r.protocol() == PROTOCOL);
    Ok(ours
        .filter_map(|r| {
            let cidr = Cidr::new(*r.destination()?, r.dst_len())?;
            Some((cidr, Hop { gateway: r.gateway().copied(), link: r.oif()? }))
        })
        .collect())
}

/// The kernel finds a route by its scope too, which follows from the gateway: without one it would find none.
async fn remove(conn: &Connection<Route>, cidr: Cidr, hop: Hop) -> Result<(), Error> {
    let gone = match (cidr.base(), hop.gateway) {
        (IpAddr::V4(base), Some(IpAddr::V4(gateway))) => {
            let route = Ipv4Route::from_addr(base, cidr.prefix_len()).dev_index(hop.link);
            conn.del_route_if_exists(route.gateway(gateway).protocol(PROTOCOL)).await
        }
        (IpAddr::V6(base), Some(IpAddr::V6(gateway))) => {
            let route = Ipv6Route::from_addr(base, cidr.prefix_len()).dev_index(hop.link);
            conn.del_route_if_exists(route.gateway(gateway).protocol(PROTOCOL)).await
        }
        (IpAddr::V4(base), None) => {
            let route = Ipv4Route::from_addr(base, cidr.prefix_len()).dev_index(hop.link);
            conn.del_route_if_exists(route.protocol(PROTOCOL)).await
        }
        (IpAddr::V6(base), None) => {
            let route = Ipv6Route::from_addr(base, cidr.prefix_len()).dev_index(hop.link);
            conn.del_route_if_exists(route.protocol(PROTOCOL)).await
        }
        _ => return Ok(()),
    };
    gone.map(|_| ()).map_err(Error::link("remove a route by", VXLAN_LINK))
}

/// Removes all our routes to other nodes.
pub(crate) async fn remove_routes(conn: &Connection<Route>) -> Result<(), Error> {
    for (cidr, hop) in routes(conn).await? {
        remove(conn, cidr, hop).await?;
    }
    Ok(())
}

async fn ensure_vxlan(
    conn: &Connection<Route>,
    place: &Place,
    config: &Config,
    own: IpAddr,
    mtu: u32,
) -> Result<u32, Error> {
    let find =
        || async { conn.get_link_by_name(VXLAN_LINK).await.map_err(Error::link("look up", VXLAN_LINK)) };
    let mac = hardware_address(Some(own));
    let text = mac.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":");
    let mut found = find().await?;
    // the node got another address: the link's own ends must follow
    if found.as_ref().is_some_and(|l| l.mac_address().as_deref() != Some(text.as_str())) {
        conn.del_link_if_exists(VXLAN_LINK).await.map_err(Error::link("delete", VXLAN_LINK))?;
        found = None;
    }
    let link = match found {
        Some(link) => link,
        None => {
            let vxlan = VxlanLink::new(VXLAN_LINK, VNI).port(PORT).learning(false).address(mac).mtu(mtu);
            let vxlan = match own {
                IpAddr::V4(own) => vxlan.local(own),
                IpAddr::V6(own) => vxlan.local6(own),
            };
            conn.add_link(vxlan).await.map_err(Error::link("create", VXLAN_LINK))?;
            find().await?.ok_or_else(|| Error::Gone { what: VXLAN_LINK.to_owned() })?
        }
    };
    let index = link.ifindex();
    if link.mtu() != Some(mtu) {
        conn.set_link_mtu_by_index(index, mtu).await.map_err(Error::link("set the MTU of", VXLAN_LINK))?;
    }
    let mut settings = Vec::new();
    if config.pod_cidrs.iter().any(Cidr::is_ipv6) {
        settings.push((format!("net/ipv6/conf/{VXLAN_LINK}/accept_dad"), "0"));
    }
    sysctl::set(place, &settings)?;
    conn.set_link_up_by_index(index).await.map_err(Error::link("bring up", VXLAN_LINK))?;
    for cidr in &config.pod_cidrs {
        let len = if cidr.is_ipv6() { 128 } else { 32 };
        set_address(conn, index, cidr.base(), len).await.map_err(Error::link("address", VXLAN_LINK))?;
    }
    Ok(index)
}
