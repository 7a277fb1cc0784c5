//! Connection tracking entries: reading and deleting them.

use std::net::{IpAddr, SocketAddr};

use nlink::netlink::netfilter::{ConntrackEntry, IpProtocol};

use crate::netns::Place;

/// A UDP flow as the kernel tracks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Where the first packet came from.
    pub source: SocketAddr,
    /// Where the first packet was sent.
    pub destination: SocketAddr,
    /// Where answers come from: the destination after translation.
    pub answers_from: SocketAddr,
}

/// Deletes the UDP entries of both families that `stale` picks, and returns how many there were. Later packets
/// of such a flow are looked at anew, so a client that never closes its socket reaches a live endpoint.
pub async fn delete_udp(place: &Place, stale: impl Fn(&Flow) -> bool) -> Result<usize, nlink::Error> {
    let conn = place.netfilter()?;
    let mut entries = conn.get_conntrack().await?;
    entries.extend(conn.get_conntrack_v6().await?);
    let mut deleted = 0;
    for entry in &entries {
        if entry.proto == IpProtocol::Udp && flow(entry).is_some_and(|f| stale(&f)) {
            match conn.del_conntrack_entry(entry).await {
                Ok(()) => deleted += 1,
                Err(e) if e.is_not_found() => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(deleted)
}

fn flow(entry: &ConntrackEntry) -> Option<Flow> {
    let at = |ip: Option<IpAddr>, port: Option<u16>| Some(SocketAddr::new(ip?, port?));
    Some(Flow {
        source: at(entry.orig.src_ip, entry.orig.src_port)?,
        destination: at(entry.orig.dst_ip, entry.orig.dst_port)?,
        answers_from: at(entry.reply.src_ip, entry.reply.src_port)?,
    })
}
