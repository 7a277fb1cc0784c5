//! The addresses of the node's links, and word of their changes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use futures_util::StreamExt;
use nlink::netlink::{NetworkEvent, OwnedEventStream, Route, RtnetlinkGroup};

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

/// Tells when addresses may have changed.
pub struct AddressChanges {
    events: OwnedEventStream<Route>,
    place: Place,
}

impl AddressChanges {
    /// Of the links in `place`, from now on.
    pub async fn open(place: &Place) -> Result<Self, Error> {
        Ok(Self { events: listen(place).await?, place: place.clone() })
    }

    /// Returns when an address came or went, or when events were missed.
    pub async fn next(&mut self) -> Result<(), Error> {
        loop {
            match self.events.next().await {
                Some(Ok(NetworkEvent::NewAddress(_) | NetworkEvent::DelAddress(_))) => return Ok(()),
                Some(Ok(_)) => {}
                Some(Err(error)) if error.is_no_buffer_space() => return Ok(()),
                Some(Err(_)) | None => {
                    self.events = listen(&self.place).await?;
                    return Ok(());
                }
            }
        }
    }
}

async fn listen(place: &Place) -> Result<OwnedEventStream<Route>, Error> {
    let failed = || Error::link("listen for changes of the addresses of", "links");
    let conn = place.route().map_err(failed())?;
    conn.subscribe(&[RtnetlinkGroup::Ipv4Addr, RtnetlinkGroup::Ipv6Addr]).map_err(failed())?;
    Ok(conn.into_events().await)
}
