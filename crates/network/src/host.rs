//! The node's own address and MTU.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use crate::netns::Place;

/// The address by which others reach this node: the source that the default route gives, else the first
/// address that is neither loopback nor link-local nor on one of `ours` (our own links), else 127.0.0.1.
pub async fn host_ip(place: &Place, ours: &[&str]) -> IpAddr {
    if let Some(addr) = default_source(place) {
        return addr;
    }
    match first_address(place, ours).await {
        Ok(Some(addr)) => addr,
        Ok(None) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Err(error) => {
            tracing::warn!(%error, "cannot list addresses; the node goes by 127.0.0.1");
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        }
    }
}

/// The IPv6 address by which others reach this node: the source that the default route gives.
pub fn host_ipv6(place: &Place) -> Option<IpAddr> {
    place.run(|| source("::", "2606:4700::1111")).ok().flatten()
}

/// The MTU in bytes of the links that pods' packets leave by: the smallest one of the default route's and of those that have
/// the node's addresses `own`, over which other nodes are reached. 1500 when there is neither.
pub async fn host_mtu(place: &Place, own: &[IpAddr]) -> u32 {
    probe_mtu(place, own).await.ok().flatten().unwrap_or(1500)
}

fn default_source(place: &Place) -> Option<IpAddr> {
    place.run(|| source("0.0.0.0", "1.1.1.1").or_else(|| source("::", "2606:4700::1111"))).ok().flatten()
}

/// Asks the kernel to route to an address that stands for "anywhere". Connecting a datagram socket sends nothing.
fn source(bind: &str, anywhere: &str) -> Option<IpAddr> {
    let socket = UdpSocket::bind((bind, 0)).ok()?;
    socket.connect(SocketAddr::new(anywhere.parse().ok()?, 9)).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback() && !ip.is_unspecified()).then_some(ip)
}

async fn first_address(place: &Place, ours: &[&str]) -> Result<Option<IpAddr>, nlink::Error> {
    let conn = place.route()?;
    let links = conn.get_links().await?;
    let mut addresses = conn.get_addresses().await?;
    addresses.sort_by_key(|a| (a.ifindex(), a.is_ipv6()));
    let usable = addresses.iter().filter_map(|address| {
        let link = links.iter().find(|l| l.ifindex() == address.ifindex())?;
        let addr = *address.primary_address()?;
        let link_local = match addr {
            IpAddr::V4(a) => a.is_link_local(),
            IpAddr::V6(a) => a.is_unicast_link_local(),
        };
        let skip = link.is_loopback() || !link.is_up() || link_local || ours.contains(&link.name_or(""));
        (!skip).then_some(addr)
    });
    Ok(usable.into_iter().next())
}

async fn probe_mtu(place: &Place, own: &[IpAddr]) -> Result<Option<u32>, nlink::Error> {
    let conn = place.route()?;
    let routes = conn.get_routes().await?;
    let default = routes.iter().filter(|r| r.is_default() && r.oif().is_some()).min_by_key(|r| r.priority());
    let addresses = conn.get_addresses().await?;
    let of_own = addresses.iter().filter(|a| a.primary_address().is_some_and(|a| own.contains(a)));
    let leaving: Vec<u32> =
        default.and_then(|r| r.oif()).into_iter().chain(of_own.map(|a| a.ifindex())).collect();
    let links = conn.get_links().await?;
    let used = links.iter().filter(|l| leaving.contains(&l.ifindex()) && !l.is_loopback());
    Ok(used.filter_map(|l| l.mtu()).min())
}
