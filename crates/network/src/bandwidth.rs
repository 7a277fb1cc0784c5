//! Limits of a pod's bandwidth: a token bucket (tbf) at each end of its veth pair.
//!
//! What the pod sends waits at its own end, in its namespace, where waiting slows the senders down instead of losing packets. A
//! pod with `NET_ADMIN` could take that away; it may do as much to any other setting of its links. Rejected: an ifb link per
//! pod, as the reference plugin `bandwidth` has it, which outlives its pod after a crash and drops where ours waits.

use nlink::netlink::tc::TbfConfig;
use nlink::netlink::{Connection, Route};
use nlink::{Bytes, Rate, TcHandle};
use serde::{Deserialize, Serialize};

use crate::attach;
use crate::ipam::Record;
use crate::netns::Place;
use crate::network::Error;

/// What a pod may receive and send, in bits per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// What it receives; `None`: as much as comes.
    pub ingress: Option<u64>,
    /// What it sends.
    pub egress: Option<u64>,
}

/// A packet as it passes through a veth pair may have this many bytes.
const LARGEST: u64 = 65_536;
/// Packets wait at most this long, in milliseconds.
const LATENCY: u64 = 25;

/// Brings both ends of a pair to the limits of its record.
pub(crate) async fn apply(host: &Connection<Route>, record: &Record) -> Result<(), Error> {
    set(host, &record.host_link, record.limits.ingress).await?;
    let pod: Place = attach::enter(&record.netns)?;
    let inside = pod.route().map_err(Error::netns(&record.netns))?;
    set(&inside, &record.attachment.ifname, record.limits.egress).await
}

async fn set(conn: &Connection<Route>, link: &str, bits: Option<u64>) -> Result<(), Error> {
    let done = match bits {
        Some(bits) => conn.replace_qdisc(link, bucket(bits)).await,
        None => conn.del_qdisc_if_exists(link, TcHandle::ROOT).await.map(|_| ()),
    };
    done.map_err(Error::link("limit the bandwidth of", link))
}

fn bucket(bits: u64) -> TbfConfig {
    let rate = (bits / 8).max(1);
    // a timer's tick must not run it dry, and the largest packet must fit
    let burst = (rate / 100).max(LARGEST);
    let limit = burst + (rate * LATENCY / 1000).max(LARGEST);
    TbfConfig::new()
        .rate(Rate::bytes_per_sec(rate))
        .burst(Bytes::new(burst.min(u32::MAX.into())))
        .limit(Bytes::new(limit.min(u32::MAX.into())))
}
