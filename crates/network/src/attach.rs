//! One attachment: the veth pair between a pod's namespace and the bridge.

use std::net::IpAddr;
use std::path::Path;

use cni::{Attachment, CNI_VERSION, CniResult, Interface, Ip};
use nlink::netlink::link::{BridgePortConfig, LinkCreateExt, VethLink};
use nlink::netlink::{Connection, Route};

use crate::bridge::{hardware_address, set_address, set_route};
use crate::cidr::Cidr;
use crate::ipam::Record;
use crate::netns::Place;
use crate::network::{Config, Error};
use crate::sysctl;

/// Host ends of our pairs begin so; `gc` and `reset` tell by it what is ours.
pub(crate) const LINK_PREFIX: &str = "nv";

/// The host end's name: link names hold 15 bytes, so the attachment is hashed (FNV-1a, stable between releases).
pub(crate) fn host_link(attachment: &Attachment) -> String {
    let text = format!("{}@{}", attachment.container_id, attachment.ifname);
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{LINK_PREFIX}{:012x}", hash & 0xffff_ffff_ffff)
}

/// Makes the pair of `record` and all that belongs to it.
pub(crate) async fn connect(
    host: &Connection<Route>,
    config: &Config,
    bridge: u32,
    mtu: u32,
    record: &Record,
) -> Result<CniResult, Error> {
    let ifname = record.attachment.ifname.as_str();
    let pod = enter(&record.netns)?;
    let inside = pod.route().map_err(Error::netns(&record.netns))?;
    let netns = pod.netns().ok_or_else(|| Error::Gone { what: record.netns.display().to_string() })?;

    if inside.get_link_by_name(ifname).await.map_err(Error::link("look up", ifname))?.is_some() {
        return Err(Error::LinkExists { name: ifname.to_owned(), netns: record.netns.clone() });
    }
    let mac = hardware_address(record.addresses.first().copied());
    let veth = VethLink::new(&record.host_link, ifname).mtu(mtu).peer_address(mac).peer_netns_fd(netns);
    host.add_link(veth.master(bridge).up()).await.map_err(Error::link("create", &record.host_link))?;
    // where bridged frames are translated (br_netfilter), a pod that reaches itself goes back out of its port
    host.set_bridge_port(record.host_link.as_str(), BridgePortConfig::new().hairpin(true))
        .await
        .map_err(Error::link("set hairpin mode of", &record.host_link))?;

    let link = inside
        .get_link_by_name(ifname)
        .await
        .map_err(Error::link("look up", ifname))?
        .ok_or_else(|| Error::Gone { what: ifname.to_owned() })?;
    loopback_up(&inside).await?;
    sysctl::set(&pod, &pod_settings(ifname, &record.addresses))?;
    let index = link.ifindex();
    for addr in &record.addresses {
        let len = if addr.is_ipv6() { 128 } else { 32 };
        set_address(&inside, index, *addr, len).await.map_err(Error::link("address", ifname))?;
    }
    inside.set_link_up_by_index(index).await.map_err(Error::link("bring up", ifname))?;
    for gateway in config.gateways() {
        let (only, all) = gateway_routes(gateway);
        set_route(&inside, index, only, None, None).await.map_err(Error::link("route by", ifname))?;
        set_route(&inside, index, all, Some(gateway), None).await.map_err(Error::link("route by", ifname))?;
    }
    let host_mac = host
        .get_link_by_name(record.host_link.as_str())
        .await
        .map_err(Error::link("look up", &record.host_link))?
        .and_then(|l| l.mac_address());
    Ok(result(config, mtu, record, host_mac.unwrap_or_default(), &mac))
}

/// The two routes of a pod: to the gateway alone, and to everything by way of it.
fn gateway_routes(gateway: IpAddr) -> (Cidr, Cidr) {
    let anywhere: IpAddr = match gateway {
        IpAddr::V4(_) => IpAddr::from([0; 4]),
        IpAddr::V6(_) => IpAddr::from([0; 16]),
    };
    let exact =
        |addr: IpAddr, len| Cidr::new(addr, len).unwrap_or_else(|| unreachable!("length fits the family"));
    (exact(gateway, if gateway.is_ipv6() { 128 } else { 32 }), exact(anywhere, 0))
}

fn pod_settings(ifname: &str, addresses: &[IpAddr]) -> Vec<(String, &'static str)> {
    let mut settings = Vec::new();
    if addresses.iter().any(IpAddr::is_ipv4) {
        // a redirect would teach the pod a way to its neighbour that avoids the node's translation
        settings.push(("net/ipv4/conf/all/accept_redirects".to_owned(), "0"));
        settings.push((format!("net/ipv4/conf/{ifname}/accept_redirects"), "0"));
    }
    if addresses.iter().any(IpAddr::is_ipv6) {
        settings.push((format!("net/ipv6/conf/{ifname}/accept_redirects"), "0"));
        settings.push((format!("net/ipv6/conf/{ifname}/accept_ra"), "0"));
        settings.push((format!("net/ipv6/conf/{ifname}/accept_dad"), "0"));
        // the link's own address follows from its hardware address, by which the bridge knows it
        settings.push((format!("net/ipv6/conf/{ifname}/addr_gen_mode"), "0"));
    }
    settings
}

fn result(config: &Config, mtu: u32, record: &Record, host_mac: String, mac: &[u8; 6]) -> CniResult {
    let sandbox = record.netns.display().to_string();
    let ifname = record.attachment.ifname.clone();
    let mac = mac.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":");
    let ips = record.addresses.iter().zip(config.gateways()).map(|(addr, gateway)| Ip {
        address: format!("{addr}/{}", if addr.is_ipv6() { 128 } else { 32 }),
        gateway: Some(gateway),
        interface: Some(2),
    });
    let routes = config.gateways().map(|gateway| {
        let dst = gateway_routes(gateway).1.to_string();
        cni::Route { dst, gw: Some(gateway), ..Default::default() }
    });
    CniResult {
        cni_version: CNI_VERSION.to_owned(),
        interfaces: vec![
            Interface { name: config.bridge.clone(), mtu: Some(mtu), ..Interface::default() },
            Interface {
                name: record.host_link.clone(),
                mac: host_mac,
                mtu: Some(mtu),
                ..Interface::default()
            },
            Interface { name: ifname, mac, mtu: Some(mtu), sandbox, ..Interface::default() },
        ],
        ips: ips.collect(),
        routes: routes.collect(),
        ..CniResult::default()
    }
}

pub(crate) async fn loopback_up(inside: &Connection<Route>) -> Result<(), Error> {
    inside.set_link_up("lo").await.map_err(Error::link("bring up", "lo"))
}

pub(crate) fn enter(netns: &Path) -> Result<Place, Error> {
    Place::open(Some(netns)).map_err(Error::netns(netns))
}

/// Removes the pair; the pod's end goes with the host's.
pub(crate) async fn disconnect(host: &Connection<Route>, host_link: &str) -> Result<bool, Error> {
    host.del_link_if_exists(host_link).await.map_err(Error::link("delete", host_link))
}

/// Checks that the pair is what ADD made. The text says what is not.
pub(crate) async fn verify(
    host: &Connection<Route>,
    bridge: u32,
    record: &Record,
) -> Result<Result<(), String>, Error> {
    let name = record.host_link.as_str();
    let Some(link) = host.get_link_by_name(name).await.map_err(Error::link("look up", name))? else {
        return Ok(Err(format!("link {name} is missing")));
    };
    if link.master() != Some(bridge) || !link.is_up() {
        return Ok(Err(format!("link {name} is not up or not on the bridge")));
    }
    let pod = match Place::open(Some(&record.netns)) {
        Ok(pod) => pod,
        Err(error) => return Ok(Err(format!("namespace {}: {error}", record.netns.display()))),
    };
    let inside = pod.route().map_err(Error::netns(&record.netns))?;
    let ifname = record.attachment.ifname.as_str();
    let Some(link) = inside.get_link_by_name(ifname).await.map_err(Error::link("look up", ifname))? else {
        return Ok(Err(format!("link {ifname} is missing in {}", record.netns.display())));
    };
    let addresses = inside
        .get_addresses_by_index(link.ifindex())
        .await
        .map_err(Error::link("list the addresses of", ifname))?;
    for addr in &record.addresses {
        if !addresses.iter().any(|a| a.primary_address() == Some(addr)) {
            return Ok(Err(format!("address {addr} is missing on {ifname}")));
        }
    }
    let routes = inside.get_routes().await.map_err(Error::link("list the routes of", ifname))?;
    for addr in &record.addresses {
        let found = routes
            .iter()
            .any(|r| r.is_default() && r.is_ipv6() == addr.is_ipv6() && r.oif() == Some(link.ifindex()));
        if !found {
            return Ok(Err(format!("no default route for {addr} on {ifname}")));
        }
    }
    Ok(Ok(()))
}
