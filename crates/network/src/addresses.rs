//! The addresses of the node's links, and word of their changes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use nlink::netlink::{NetworkEvent, RtnetlinkGroup};

use crate::changes::Changes;
use crate::netns::Place;
use crate::network::Error;

/// All addresses of the links in `place`, but for those of loopback and those of one link only (IPv6 link-local).
pub async fn addresses(place: &Place) -> Result<BTreeSet<IpAddr>, Error> {
    let failed = || Error::link("list the addresses of", "links");
    let conn = place.route().map_err(failed())?;
    let found = conn.get_addresses().await.map_err(failed())?;
    let usable = |addr: &IpAddr| match addr {
        IpAddr::V4(addr) => !addr.is_loopback(),
        IpAddr::V6(addr) => !addr.is_loopback() && !addr.is_unicast_link_local(),
    };
    Ok(found.iter().filter_map(|a| a.primary_address().copied()).filter(usable).collect())
}

/// Word of addresses that come and go in `place`, from now on.
pub async fn address_changes(place: &Place) -> Result<Changes, Error> {
    let matters =
        |event: &NetworkEvent| matches!(event, NetworkEvent::NewAddress(_) | NetworkEvent::DelAddress(_));
    Changes::open(place, &[RtnetlinkGroup::Ipv4Addr, RtnetlinkGroup::Ipv6Addr], matters).await
}
