//! The way to other nodes' pods, kept as the Node objects say; and in [`announce`] which node answers for the address of a load
//! balancer.
//!
//! One task waits on the cache of nodes and on the kernel (links that come back have lost their routes), and hands the whole
//! list to [`network::peers::Peers`], which changes what differs. A node counts with its first internal address and its pod
//! CIDRs; whether it is ready does not matter: its pods may well answer. Where packets are encrypted, nodes learn each other's
//! keys from annotations ([`key`]).

pub mod announce;
pub mod key;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use client::Client;
use k8s_openapi::api::core::v1::Node;
use network::Cidr;
use network::peers::{Peer, Peers};
use tokio_util::sync::CancellationToken;

const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// What `node` is to others; `None` while its address or pod CIDRs are not known.
pub fn peer(node: &Node) -> Option<Peer> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let address: IpAddr = addresses.iter().find(|a| a.type_ == "InternalIP")?.address.parse().ok()?;
    let pod_cidrs = pod_cidrs(node);
    (!pod_cidrs.is_empty()).then_some(Peer { address, pod_cidrs, key: key::of(node) })
}

/// The ranges that a node's pods have their addresses of.
pub fn pod_cidrs(node: &Node) -> Vec<Cidr> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let several = spec.pod_cidrs.iter().flatten();
    let one = spec.pod_cidr.iter().filter(|_| spec.pod_cidrs.as_ref().is_none_or(Vec::is_empty));
    several.chain(one).filter_map(|cidr| cidr.parse().ok()).collect()
}

/// Keeps the routes of the node called `own` until `stop`; they stay when this ends.
pub async fn run(
    client: Client,
    own: &str,
    mut peers: Peers,
    stop: CancellationToken,
) -> Result<(), network::Error> {
    let nodes = client.caches().of::<Node>();
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        () = nodes.synced() => {}
    }
    let mut changes = nodes.subscribe();
    let mut disturbances = peers.disturbances().await?;
    let mut retry = FIRST_RETRY;
    let mut known: Option<BTreeSet<Peer>> = None;
    loop {
        while changes.try_next().is_some() {}
        let others = nodes.list().into_iter().filter(|n| n.metadata.name.as_deref() != Some(own));
        let wanted: BTreeSet<Peer> = others.filter_map(|node| peer(&node)).collect();
        if known.as_ref() != Some(&wanted) {
            match peers.set(&wanted.iter().cloned().collect::<Vec<_>>()).await {
                Ok(()) => {
                    tracing::debug!(nodes = wanted.len(), "routes to other nodes' pods are set");
                    (known, retry) = (Some(wanted), FIRST_RETRY);
                }
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        ?retry,
                        "routes to other nodes' pods are not set"
                    );
                    let wait = retry;
                    retry = (retry * 2).min(LAST_RETRY);
                    tokio::select! {
                        () = stop.cancelled() => return Ok(()),
                        () = tokio::time::sleep(wait) => continue,
                    }
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            change = changes.next() => if change.is_none() {
                return Ok(());
            },
            disturbed = disturbances.next() => {
                disturbed?;
                // compare with what the kernel has, whatever we remember
                known = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(node: serde_json::Value) -> String {
        let peer = peer(&serde_json::from_value(node).unwrap());
        peer.map_or("none".to_owned(), |p| {
            let cidrs: Vec<String> = p.pod_cidrs.iter().map(ToString::to_string).collect();
            format!("{} has {}", p.address, cidrs.join(" "))
        })
    }

    #[test]
    fn a_node_counts_when_its_address_and_ranges_are_known() {
        let status = json!({"addresses": [{"type": "Hostname", "address": "n2"}, {"type": "InternalIP", "address": "192.0.2.7"}]});
        let both = json!({"spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]}, "status": status});
        assert_eq!(text(both), "192.0.2.7 has 10.244.1.0/24 fd00:1::/64");
        assert_eq!(
            text(json!({"spec": {"podCIDR": "10.244.1.0/24"}, "status": status})),
            "192.0.2.7 has 10.244.1.0/24"
        );
        assert_eq!(text(json!({"spec": {}, "status": status})), "none");
        assert_eq!(text(json!({"spec": {"podCIDR": "10.244.1.0/24"}})), "none");
    }
}
