//! Ports of the node that lead to a pod (`hostPort`).
//!
//! Per family F (4, 6) a map `hostport-F` from address (unspecified: every address of the node), protocol and port to the
//! pod's address and port, and a set `hostport-hairpin-F` of pods that may reach themselves that way. The records of the
//! attachments are the truth; a new process writes both anew in one batch.
//!
//! The node's own processes reach them at 127.0.0.1 as well. For that the bridge routes such addresses (`route_localnet`), which alone would
//! open whatever listens there to the pods (CVE-2020-8558): what comes in by the bridge and names one is dropped before it is translated.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::cidr::Cidr;
use crate::ipam::Record;
use crate::netns::Place;
use crate::network::Error;
use crate::nft::{Batch, Chain, Element, Expr, Hook, Nft, Reg, Set, Type};
use crate::{Protocol, conntrack, sysctl};

const PREROUTING: &str = "hostport-prerouting";
const OUTPUT: &str = "hostport-output";
const POSTROUTING: &str = "hostport-postrouting";
const MAIN: &str = "hostport";
const GUARD: &str = "hostport-guard";
/// Before connections are looked up, and so before answers get 127.0.0.1 back.
const RAW: i32 = -300;
/// Behind Services, whose node ports come first.
const DSTNAT: i32 = -99;
const SRCNAT: i32 = 99;
/// First word of the pod's end in the registers, behind the widest key.
const POD: Reg = 10;

/// A port of the node that leads to a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostPort {
    /// Its protocol.
    pub protocol: Protocol,
    /// The node's address; `None`: every one.
    pub host_ip: Option<IpAddr>,
    /// The port on the node.
    pub host_port: u16,
    /// The port in the pod.
    pub pod_port: u16,
}

fn map(v6: bool) -> Set {
    let address = || if v6 { Type::Ipv6 } else { Type::Ipv4 };
    let key = Type::Concat(vec![address(), Type::Protocol, Type::Port]);
    Set::map(&format!("hostport-{}", family(v6)), key, Type::Concat(vec![address(), Type::Port]))
}

fn hairpin(v6: bool) -> Set {
    let address = || if v6 { Type::Ipv6 } else { Type::Ipv4 };
    Set::new(&format!("hostport-hairpin-{}", family(v6)), Type::Concat(vec![address(), address()]))
}

fn family(v6: bool) -> u8 {
    if v6 { 6 } else { 4 }
}

/// Writes chains, maps and the ports of `records`. Pods are on the bridge of that name and index.
pub(crate) async fn ensure(
    nft: &dyn Nft,
    place: &Place,
    table: &str,
    (bridge, index): (&str, u32),
    records: &[Record],
) -> Result<(), Error> {
    let sets = nft.sets(table).await?;
    let mut batch = Batch::new(table);
    batch.table();
    for chain in [
        Chain::regular(MAIN),
        Chain::base(PREROUTING, Hook::NatPrerouting, DSTNAT),
        Chain::base(OUTPUT, Hook::NatOutput, DSTNAT),
        Chain::base(POSTROUTING, Hook::NatPostrouting, SRCNAT),
        Chain::base(GUARD, Hook::FilterPrerouting, RAW),
    ] {
        let name = chain.name.clone();
        batch.chain(chain);
        batch.flush_chain(&name);
    }
    for v6 in [false, true] {
        for set in [map(v6), hairpin(v6)] {
            if sets.contains(&set.name) {
                batch.delete_set(&set.name);
            }
            batch.set(&set);
        }
    }
    batch.rule(PREROUTING, vec![Expr::DestinationIsLocal, Expr::Jump(MAIN.to_owned())]);
    batch.rule(OUTPUT, vec![Expr::DestinationIsLocal, Expr::Jump(MAIN.to_owned())]);
    for v6 in [false, true] {
        rules(&mut batch, v6);
    }
    if let Some(net) = Cidr::new(Ipv4Addr::LOCALHOST.into(), 8) {
        for named in [Expr::Source { net, inside: true }, Expr::Destination { net, inside: true }] {
            let came =
                [Expr::LoadInputLink { to: 0 }, Expr::Equals { at: 0, bytes: index.to_ne_bytes().into() }];
            let rule = came.into_iter().chain([Expr::Family { v6: false }, named, Expr::Drop]).collect();
            batch.rule(GUARD, rule);
        }
        // a pod could not answer
        let leaves = vec![
            Expr::WasTranslated,
            Expr::Family { v6: false },
            Expr::Source { net, inside: true },
            Expr::OutputLink { name: bridge.to_owned(), is: true },
            Expr::Masquerade,
        ];
        batch.rule(POSTROUTING, leaves);
    }
    for record in records {
        add(&mut batch, record);
    }
    nft.commit(batch).await?;
    // behind the guard
    sysctl::set(place, &[(format!("net/ipv4/conf/{bridge}/route_localnet"), "1")])?;
    Ok(())
}

fn rules(batch: &mut Batch, v6: bool) {
    let words: Reg = if v6 { 4 } else { 1 };
    // the kernel does not route answers for it; of IPv4's it does where it is told to
    let loopback = if v6 { Cidr::new(Ipv6Addr::LOCALHOST.into(), 128) } else { None };
    let one = vec![Expr::LoadDestination { v6, to: 0 }];
    let every = vec![Expr::Load { to: 0, bytes: vec![0; 4 * usize::from(words)] }];
    for address in [one, every] {
        let mut rule = vec![Expr::Family { v6 }];
        rule.extend(loopback.map(|net| Expr::Destination { net, inside: false }));
        rule.extend(address);
        rule.extend([
            Expr::LoadProtocol { to: words },
            Expr::LoadPort { to: words + 1 },
            Expr::Lookup { map: map(v6).name, key: 0, to: POD },
            Expr::Dnat { v6, addr: POD, port: POD + words },
        ]);
        batch.rule(MAIN, rule);
    }
    let itself = vec![
        Expr::WasTranslated,
        Expr::Family { v6 },
        Expr::LoadSource { v6, to: 0 },
        Expr::LoadDestination { v6, to: words },
        Expr::In { set: hairpin(v6).name, key: 0 },
        Expr::Masquerade,
    ];
    batch.rule(POSTROUTING, itself);
}

/// The elements of a record's ports in its pod's families.
fn elements(record: &Record) -> Vec<(bool, Element)> {
    let mut found = Vec::new();
    for port in &record.ports {
        for pod in &record.addresses {
            let v6 = pod.is_ipv6();
            let unspecified: IpAddr =
                if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
            // "0.0.0.0" is what manifests say for "every", of either family
            let host = port.host_ip.filter(|ip| !ip.is_unspecified()).unwrap_or(unspecified);
            if host.is_ipv6() != v6 {
                continue;
            }
            let key = [&octets(host)[..], &[port.protocol as u8], &port.host_port.to_be_bytes()];
            let value = Element::concat(&[&octets(*pod), &port.pod_port.to_be_bytes()]);
            found.push((v6, Element::value(Element::concat(&key), value)));
        }
    }
    found
}

fn add(batch: &mut Batch, record: &Record) {
    if record.ports.is_empty() {
        return;
    }
    for (v6, element) in elements(record) {
        batch.add(&map(v6), vec![element]);
    }
    for pod in &record.addresses {
        batch.add(&hairpin(pod.is_ipv6()), vec![itself(*pod)]);
    }
}

fn itself(pod: IpAddr) -> Element {
    Element::new(Element::concat(&[&octets(pod), &octets(pod)]))
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// Opens the ports of a record. Fails where another pod has one of them.
pub(crate) async fn publish(nft: &dyn Nft, table: &str, place: &Place, record: &Record) -> Result<(), Error> {
    let mut batch = Batch::new(table);
    add(&mut batch, record);
    nft.commit(batch).await?;
    forget_flows(place, record).await;
    Ok(())
}

/// Closes the ports of a record.
pub(crate) async fn withdraw(
    nft: &dyn Nft,
    table: &str,
    place: &Place,
    record: &Record,
) -> Result<(), Error> {
    if record.ports.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::new(table);
    for (v6, element) in elements(record) {
        batch.destroy(&map(v6), vec![element]);
    }
    for pod in &record.addresses {
        batch.destroy(&hairpin(pod.is_ipv6()), vec![itself(*pod)]);
    }
    nft.commit(batch).await?;
    forget_flows(place, record).await;
    Ok(())
}

/// UDP flows that were led elsewhere, or to the pod that goes, are looked at anew.
async fn forget_flows(place: &Place, record: &Record) {
    let ports: Vec<u16> =
        record.ports.iter().filter(|p| p.protocol == Protocol::Udp).map(|p| p.host_port).collect();
    if ports.is_empty() {
        return;
    }
    let ours = |flow: &conntrack::Flow| {
        let to: SocketAddr = flow.destination;
        ports.contains(&to.port()) && !record.addresses.contains(&to.ip())
    };
    if let Err(error) = conntrack::delete_udp(place, ours).await {
        // old flows end by their timeout
        tracing::warn!(%error, "cannot delete UDP connections of host ports");
    }
}
