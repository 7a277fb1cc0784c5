//! What the node has once: the bridge with its addresses, kernel settings, the service route, pod egress.

use std::net::IpAddr;

use nlink::netlink::addr::{Ipv4Address, Ipv6Address};
use nlink::netlink::link::BridgeLink;
use nlink::netlink::route::{Ipv4Route, Ipv6Route};
use nlink::netlink::{Connection, Route};

use crate::cidr::Cidr;
use crate::network::{Config, Error};
use crate::nft::{Batch, Chain, Expr, Hook, Nft};

/// The chain that masquerades what pods send out of the cluster.
pub(crate) const EGRESS_CHAIN: &str = "pod-egress";
/// The kernel's "srcnat" priority.
const SRCNAT: i32 = 100;

/// Brings the bridge to the state of `config` and returns its index.
/// Services are called from the gateway, where there is none from one of `sources`.
pub(crate) async fn ensure(
    conn: &Connection<Route>,
    config: &Config,
    mtu: u32,
    sources: &[IpAddr],
) -> Result<u32, Error> {
    let name = config.bridge.as_str();
    // refusals to the node's own processes and calls to its own addresses take the loopback link
    conn.set_link_up("lo").await.map_err(Error::link("bring up", "lo"))?;
    let link = match conn.get_link_by_name(name).await.map_err(Error::link("look up", name))? {
        Some(link) => link,
        None => {
            // a fixed hardware address: the kernel would otherwise take over the lowest of the ports, and
            // pods' neighbour entries for the gateway would go stale with every pod
            let bridge = BridgeLink::new(name).mtu(mtu).address(hardware_address(config.gateways().next()));
            conn.add_link(bridge).await.map_err(Error::link("create", name))?;
            conn.get_link_by_name(name)
                .await
                .map_err(Error::link("look up", name))?
                .ok_or_else(|| Error::Gone { what: name.to_owned() })?
        }
    };
    if link.kind() != Some("bridge") {
        return Err(Error::NotABridge(name.to_owned()));
    }
    let index = link.ifindex();
    if link.mtu() != Some(mtu) {
        conn.set_link_mtu_by_index(index, mtu).await.map_err(Error::link("set the MTU of", name))?;
    }
    conn.set_link_up_by_index(index).await.map_err(Error::link("bring up", name))?;
    for (cidr, gateway) in config.pod_cidrs.iter().zip(config.gateways()) {
        set_address(conn, index, gateway, cidr.prefix_len()).await.map_err(Error::link("address", name))?;
    }
    for extra in &config.extra_addresses {
        set_address(conn, index, *extra, if extra.is_ipv6() { 128 } else { 32 })
            .await
            .map_err(Error::link("address", name))?;
    }
    for cidr in &config.service_cidrs {
        let source = config.gateways().chain(sources.iter().copied()).find(|g| g.is_ipv6() == cidr.is_ipv6());
        if let Some(source) = source {
            set_route(conn, index, *cidr, None, Some(source)).await.map_err(Error::link("route by", name))?;
        }
    }
    Ok(index)
}

/// Adds an address unless it is there. IPv6 skips duplicate address detection: no one else is on these links.
pub(crate) async fn set_address(
    conn: &Connection<Route>,
    index: u32,
    addr: IpAddr,
    len: u8,
) -> Result<(), nlink::Error> {
    match addr {
        IpAddr::V4(a) => conn.replace_address(Ipv4Address::with_index(index, a, len)).await,
        IpAddr::V6(a) => conn.replace_address(Ipv6Address::with_index(index, a, len).nodad()).await,
    }
}

/// Sets a route over the link `index`.
pub(crate) async fn set_route(
    conn: &Connection<Route>,
    index: u32,
    to: Cidr,
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
) -> Result<(), nlink::Error> {
    match to.base() {
        IpAddr::V4(base) => {
            let mut route = Ipv4Route::from_addr(base, to.prefix_len()).dev_index(index);
            if let Some(IpAddr::V4(gateway)) = gateway {
                route = route.gateway(gateway).onlink();
            }
            if let Some(IpAddr::V4(source)) = source {
                route = route.prefsrc(source);
            }
            conn.replace_route(route).await
        }
        IpAddr::V6(base) => {
            let mut route = Ipv6Route::from_addr(base, to.prefix_len()).dev_index(index);
            if let Some(IpAddr::V6(gateway)) = gateway {
                route = route.gateway(gateway).onlink();
            }
            if let Some(IpAddr::V6(source)) = source {
                route = route.prefsrc(source);
            }
            conn.replace_route(route).await
        }
    }
}

/// A locally administered hardware address made from an IP address: whoever gets the address anew has the same
/// one, so no neighbour entry is ever wrong.
pub(crate) fn hardware_address(addr: Option<IpAddr>) -> [u8; 6] {
    let tail = match addr {
        Some(IpAddr::V4(a)) => a.octets(),
        Some(IpAddr::V6(a)) => {
            let o = a.octets();
            [o[12], o[13], o[14], o[15]]
        }
        None => [0; 4],
    };
    [0x0a, 0x58, tail[0], tail[1], tail[2], tail[3]]
}

/// The kernel settings the node needs.
pub(crate) fn settings(config: &Config) -> Vec<(String, &'static str)> {
    let mut settings = Vec::new();
    let cidrs = || config.pod_cidrs.iter().chain(&config.service_cidrs);
    if cidrs().any(|c| !c.is_ipv6()) {
        settings.push(("net/ipv4/ip_forward".to_owned(), "1"));
        // pods are told nothing of a shorter way: it would lead around the translation
        settings.push((format!("net/ipv4/conf/{}/send_redirects", config.bridge), "0"));
    }
    if cidrs().any(Cidr::is_ipv6) {
        settings.push(("net/ipv6/conf/all/forwarding".to_owned(), "1"));
        // no one else is on the bridge, and until its link-local address had passed duplicate detection (more
        // than a second after the first pod) the node would look for no neighbour on behalf of others
        settings.push((format!("net/ipv6/conf/{}/accept_dad", config.bridge), "0"));
    }
    settings
}

/// Writes the egress chain: what a pod sends beyond pods and services leaves with the node's address.
pub(crate) async fn ensure_egress(nft: &dyn Nft, config: &Config) -> Result<(), Error> {
    let mut batch = Batch::new(&config.table);
    batch.table();
    batch.chain(Chain::base(EGRESS_CHAIN, Hook::NatPostrouting, SRCNAT));
    batch.flush_chain(EGRESS_CHAIN);
    for pods in &config.pod_cidrs {
        let from_pods = Expr::Source { net: *pods, inside: true };
        let inside = config.pod_cidrs.iter().chain(&config.cluster_cidrs).chain(&config.service_cidrs);
        for net in inside.filter(|net| net.is_ipv6() == pods.is_ipv6()) {
            let to = Expr::Destination { net: *net, inside: true };
            batch.rule(EGRESS_CHAIN, vec![from_pods.clone(), to, Expr::Return]);
        }
        let leaves = Expr::OutputLink { name: config.bridge.clone(), is: false };
        batch.rule(EGRESS_CHAIN, vec![from_pods, leaves, Expr::Masquerade]);
    }
    Ok(nft.commit(batch).await?)
}
