//! Addresses that this node answers for on the links of its neighbours, without having them: ARP and neighbour discovery by
//! proxy entries of the kernel, and one unasked announcement when an address comes here, so that neighbours forget where it was.
//!
//! The kernel answers for an address that it would forward by another link: so each has a route to the bridge, where nothing
//! answers, and what no rule translates on its way ends. Rejected: the addresses on the uplink itself, which would open every
//! port of the node's own programs under them. The routes carry a protocol number of their own; by it a new process, and
//! `reset`, find what was announced.

use std::collections::BTreeSet;
use std::net::IpAddr;

use nlink::netlink::neigh::Neighbor;
use nlink::netlink::route::{Ipv4Route, Ipv6Route};
use nlink::netlink::types::route::RouteProtocol;
use nlink::netlink::{Connection, Route};

use crate::cidr::Cidr;
use crate::gratuitous;
use crate::netns::Place;
use crate::network::{Config, Error};
use crate::sysctl;

/// Marks our routes; of the range that no routing daemon has.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(144);

/// Answers for addresses.
pub struct Announcer {
    conn: Connection<Route>,
    place: Place,
    bridge: String,
}

impl Announcer {
    /// On the node of `config`, whose bridge stands.
    pub fn open(config: &Config) -> Result<Self, Error> {
        let place = Place::open(config.netns.as_deref())
            .map_err(Error::netns(config.netns.as_deref().unwrap_or(std::path::Path::new("(own)"))))?;
        let conn = place.route().map_err(Error::link("open a socket for", &config.bridge))?;
        Ok(Self { conn, place, bridge: config.bridge.clone() })
    }

    /// Answers for these addresses and for no others. Those on none of our links' networks are left out. Returns the ones that
    /// are new here.
    pub async fn set(&self, addresses: &BTreeSet<IpAddr>) -> Result<Vec<IpAddr>, Error> {
        let bridge = self.conn.get_link_by_name(self.bridge.as_str()).await;
        let bridge = bridge.map_err(Error::link("look up", &self.bridge))?;
        let bridge = bridge.ok_or_else(|| Error::Gone { what: self.bridge.clone() })?.ifindex();
        let known = announced(&self.conn).await?;
        for gone in known.difference(addresses) {
            withdraw(&self.conn, *gone).await?;
        }
        let mut new = Vec::new();
        for address in addresses {
            let Some((link, name)) = self.link_of(*address, bridge).await? else {
                tracing::warn!(%address, "no link of this node is in the network of a load balancer's address");
                continue;
            };
            // the kernel waits a random time before it answers for another, so that the other may; there is none
            let (family, answers) = if address.is_ipv6() {
                ("ipv6", (format!("net/ipv6/conf/{name}/proxy_ndp"), "1"))
            } else {
                ("ipv4", ("net/ipv4/ip_forward".to_owned(), "1"))
            };
            sysctl::set(&self.place, &[answers, (format!("net/{family}/neigh/{name}/proxy_delay"), "0")])?;
            let failed = || Error::link("announce an address on", &name);
            let entry = Neighbor::with_index(link, *address).proxy();
            self.conn.replace_neighbor(entry).await.map_err(failed())?;
            if !known.contains(address) {
                route(&self.conn, *address, bridge).await.map_err(failed())?;
                new.push(*address);
            }
        }
        Ok(new)
    }

    /// Tells all neighbours that an address is here.
    pub async fn tell(&self, address: IpAddr) -> Result<(), Error> {
        let bridge = self.conn.get_link_by_name(self.bridge.as_str()).await;
        let bridge = bridge.map_err(Error::link("look up", &self.bridge))?.map_or(0, |l| l.ifindex());
        let Some((link, name)) = self.link_of(address, bridge).await? else { return Ok(()) };
        let found = self.conn.get_link_by_index(link).await.map_err(Error::link("look up", &name))?;
        let mac = found.and_then(|l| hardware_address(&l.mac_address()?));
        let Some(mac) = mac else { return Ok(()) };
        let sent = self.place.run(move || gratuitous::send(link, mac, address));
        let sent = sent.map_err(Error::link("enter the namespace of", &name))?;
        sent.map_err(|source| Error::Announce { link: name, source })
    }

    /// The link on whose network an address is, and its name.
    async fn link_of(&self, address: IpAddr, bridge: u32) -> Result<Option<(u32, String)>, Error> {
        let links = self.conn.get_links().await.map_err(Error::link("list", "links"))?;
        let own = self.conn.get_addresses().await.map_err(Error::link("list the addresses of", "links"))?;
        let near = own.iter().filter(|a| {
            let net = a.primary_address().and_then(|own| Cidr::new(*own, a.prefix_len()));
            a.ifindex() != bridge && net.is_some_and(|net| net.contains(address))
        });
        Ok(near.into_iter().find_map(|a| {
            let link = links.iter().find(|l| l.ifindex() == a.ifindex() && l.is_up() && !l.is_loopback())?;
            Some((link.ifindex(), link.name()?.to_owned()))
        }))
    }
}

fn hardware_address(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect();
    bytes?.try_into().ok()
}

/// What this node answers for.
pub(crate) async fn announced(conn: &Connection<Route>) -> Result<BTreeSet<IpAddr>, Error> {
    let routes = conn.get_routes().await.map_err(Error::link("list the routes of", "links"))?;
    Ok(routes.iter().filter(|r| r.protocol() == PROTOCOL).filter_map(|r| r.destination().copied()).collect())
}

async fn route(conn: &Connection<Route>, address: IpAddr, bridge: u32) -> Result<(), nlink::Error> {
    match address {
        IpAddr::V4(a) => {
            conn.replace_route(Ipv4Route::from_addr(a, 32).dev_index(bridge).protocol(PROTOCOL)).await
        }
        IpAddr::V6(a) => {
            conn.replace_route(Ipv6Route::from_addr(a, 128).dev_index(bridge).protocol(PROTOCOL)).await
        }
    }
}

/// Answers for an address no longer, on whatever link it was.
pub(crate) async fn withdraw(conn: &Connection<Route>, address: IpAddr) -> Result<(), Error> {
    for link in conn.get_links().await.map_err(Error::link("list", "links"))? {
        let entry = Neighbor::with_index(link.ifindex(), address).proxy();
        match conn.del_neighbor(entry).await {
            Err(error) if !error.is_not_found() && !error.is_invalid_argument() => {
                return Err(Error::link("withdraw an address from", link.name_or("?"))(error));
            }
            _ => {}
        }
    }
    let gone = match address {
        IpAddr::V4(a) => conn.del_route_if_exists(Ipv4Route::from_addr(a, 32).protocol(PROTOCOL)).await,
        IpAddr::V6(a) => conn.del_route_if_exists(Ipv6Route::from_addr(a, 128).protocol(PROTOCOL)).await,
    };
    gone.map(|_| ()).map_err(Error::link("remove the route of", "an announced address"))
}
