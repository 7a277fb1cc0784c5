//! Pods send with their own addresses only: what claims another one is dropped where it enters the bridge.
//!
//! Policies and the node's own trust go by source addresses, and a pod may have `NET_RAW`. In the table of family bridge, called
//! as the one of family inet, the set `ports` has the host's ends of our pairs, and per family `sources-4` and `sources-6` which
//! hardware and IP address may come in by which. ARP and neighbour advertisements must speak for the sender itself; router
//! advertisements, redirects and every other protocol are not for pods to send. The records of the attachments are the truth;
//! a new process replaces the whole table in one batch.

use std::net::{IpAddr, Ipv6Addr};

use nlink::netlink::{Connection, Route};

use crate::bridge::hardware_address;
use crate::ipam::Record;
use crate::network::Error;
use crate::nft::{Batch, Chain, Element, Expr, Header, Hook, Nft, Set, Type};

const ENTRY: &str = "pods";
const FRAMES: &str = "pod-frames";
/// Before frames are bridged; earlier than anyone's filter.
const PRIORITY: i32 = -300;

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
/// ICMPv6 types (RFC 4861, 2710, 3810).
const LISTENER_REPORT: u8 = 131;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const LISTENER_REPORT_2: u8 = 143;

fn ports() -> Set {
    Set::new("ports", Type::Link)
}

fn sources(v6: bool) -> Set {
    let (name, address) = if v6 { ("sources-6", Type::Ipv6) } else { ("sources-4", Type::Ipv4) };
    Set::new(name, Type::Concat(vec![Type::Link, Type::Ether, address]))
}

/// Writes table, sets and rules for the pairs of `records`.
pub(crate) async fn ensure(
    nft: &dyn Nft,
    conn: &Connection<Route>,
    table: &str,
    records: &[Record],
) -> Result<(), Error> {
    let links = conn.get_links().await.map_err(Error::link("list", "links"))?;
    let mut batch = Batch::of_bridge(table);
    // made first, so that there is one to remove
    batch.table().delete_table().table();
    for set in [ports(), sources(false), sources(true)] {
        batch.set(&set);
    }
    batch.chain(Chain::regular(FRAMES)).chain(Chain::base(ENTRY, Hook::FilterPrerouting, PRIORITY));
    rules(&mut batch);
    for record in records {
        let link = links.iter().find(|l| l.name() == Some(record.host_link.as_str()));
        if let Some(link) = link {
            add(&mut batch, link.ifindex(), record);
        }
    }
    Ok(nft.commit(batch).await?)
}

fn rules(batch: &mut Batch) {
    let ours = vec![Expr::LoadInputLink { to: 0 }, Expr::In { set: ports().name, key: 0 }];
    batch.rule(ENTRY, [ours, vec![Expr::Goto(FRAMES.to_owned())]].concat());

    let load = |header, offset, len, to| Expr::LoadHeader { header, offset, len, to };
    // link and hardware address; the IP address follows in word 3
    let sender = || vec![Expr::LoadInputLink { to: 0 }, load(Header::Link, 6, 6, 1)];
    let known = |v6: bool| Expr::In { set: sources(v6).name, key: 0 };
    let mut rule = |ether_type: u16, parts: Vec<Vec<Expr>>| {
        batch.rule(FRAMES, [vec![Expr::EtherType(ether_type)], parts.concat()].concat());
    };
    let icmp = |kind: u8| vec![Expr::Icmpv6(kind)];

    rule(IPV4, vec![sender(), vec![load(Header::Network, 12, 4, 3), known(false), Expr::Accept]]);
    // sender's protocol address, then its hardware address
    let claims =
        vec![load(Header::Network, 14, 4, 3), known(false), load(Header::Network, 8, 6, 1), known(false)];
    rule(ARP, vec![sender(), claims, vec![Expr::Accept]]);

    rule(IPV6, vec![icmp(ROUTER_ADVERTISEMENT), vec![Expr::Drop]]);
    rule(IPV6, vec![icmp(REDIRECT), vec![Expr::Drop]]);
    let source = || vec![load(Header::Network, 8, 16, 3), known(true)];
    // whose address is told, and who tells it
    let target = vec![load(Header::Transport, 8, 16, 3), known(true)];
    rule(IPV6, vec![icmp(NEIGHBOR_ADVERTISEMENT), sender(), target, source(), vec![Expr::Accept]]);
    rule(IPV6, vec![icmp(NEIGHBOR_ADVERTISEMENT), vec![Expr::Drop]]);
    rule(IPV6, vec![sender(), source(), vec![Expr::Accept]]);
    // before it has an address, a link asks whether it is free and says which groups it is in
    for kind in [NEIGHBOR_SOLICITATION, LISTENER_REPORT, LISTENER_REPORT_2] {
        let unspecified = Expr::Equals { at: 3, bytes: Ipv6Addr::UNSPECIFIED.octets().to_vec() };
        let from_nowhere = vec![load(Header::Network, 8, 16, 3), unspecified, Expr::Accept];
        rule(IPV6, vec![icmp(kind), from_nowhere]);
    }
    batch.counted_rule(FRAMES, "spoofed", vec![Expr::Count, Expr::Drop]);
}

/// Lets a pod in by its pair, with its own addresses only.
pub(crate) async fn admit(
    nft: &dyn Nft,
    conn: &Connection<Route>,
    table: &str,
    record: &Record,
) -> Result<(), Error> {
    let Some(link) = index(conn, record).await? else {
        return Err(Error::Gone { what: record.host_link.clone() });
    };
    let mut batch = Batch::of_bridge(table);
    add(&mut batch, link, record);
    Ok(nft.commit(batch).await?)
}

/// Forgets a pair that still stands; call it before the pair is removed.
pub(crate) async fn forget(
    nft: &dyn Nft,
    conn: &Connection<Route>,
    table: &str,
    record: &Record,
) -> Result<(), Error> {
    let Some(link) = index(conn, record).await? else { return Ok(()) };
    let mut batch = Batch::of_bridge(table);
    batch.destroy(&ports(), vec![port(link)]);
    for (v6, element) in elements(link, record) {
        batch.destroy(&sources(v6), vec![element]);
    }
    Ok(nft.commit(batch).await?)
}

async fn index(conn: &Connection<Route>, record: &Record) -> Result<Option<u32>, Error> {
    let name = record.host_link.as_str();
    let link = conn.get_link_by_name(name).await.map_err(Error::link("look up", name))?;
    Ok(link.map(|l| l.ifindex()))
}

fn add(batch: &mut Batch, link: u32, record: &Record) {
    for (v6, element) in elements(link, record) {
        batch.add(&sources(v6), vec![element]);
    }
    batch.add(&ports(), vec![port(link)]);
}

fn port(link: u32) -> Element {
    Element::new(link.to_ne_bytes().to_vec())
}

/// What a pod may send with: its addresses, and in IPv6 the one that its kernel makes for the link.
fn elements(link: u32, record: &Record) -> Vec<(bool, Element)> {
    let mac = hardware_address(record.addresses.first().copied());
    let own_link = record.addresses.iter().any(IpAddr::is_ipv6).then(|| IpAddr::V6(link_local(mac)));
    let addresses = record.addresses.iter().copied().chain(own_link);
    addresses
        .map(|address| {
            let octets = match address {
                IpAddr::V4(a) => a.octets().to_vec(),
                IpAddr::V6(a) => a.octets().to_vec(),
            };
            (address.is_ipv6(), Element::new(Element::concat(&[&link.to_ne_bytes(), &mac, &octets])))
        })
        .collect()
}

/// The link-local address of a hardware address (RFC 4291, appendix A).
fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let mut octets = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, 0, 0, 0];
    octets[13..].copy_from_slice(&mac[3..]);
    octets.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_address_of_a_link_is_known() {
        let made = link_local([0x0a, 0x58, 0x0a, 0xf4, 0x00, 0x02]);
        assert_eq!(made.to_string(), "fe80::858:aff:fef4:2");
    }
}
