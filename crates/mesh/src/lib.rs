//! The way to other nodes' pods, kept as the Node objects say; and in [`announce`] which node answers for the address of a load
//! balancer.
//!
//! One task waits on the cache of nodes and on the kernel (links that come back have lost their routes), and hands the whole
//! list to [`network::peers::Peers`], which changes what differs. A node counts with its first internal address and its pod
//! CIDRs; whether it is ready does not matter: its pods may well answer. Where packets are encrypted, nodes learn each other's
//! keys from annotations ([`key`]).

pub mod announce;
pub mod key;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use client::peers::NodeView;
use client::{Change, Client};
use network::Cidr;
use network::peers::{Peer, Peers};
use tokio_util::sync::CancellationToken;

const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// What `node` is to others; `None` while its address or pod CIDRs are not known.
pub fn peer(node: &NodeView) -> Option<Peer> {
    let pod_cidrs = pod_cidrs(node);
    (!pod_cidrs.is_empty()).then_some(Peer { address: node.address?, pod_cidrs, key: key::of(node) })
}

/// The ranges that a node's pods have their addresses of.
pub fn pod_cidrs(node: &NodeView) -> Vec<Cidr> {
    node.pod_cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect()
}

/// Takes a change of a node into `wanted`, the peers of the node called `own` by name; whether they are others now.
fn follow(wanted: &mut BTreeMap<Box<str>, Peer>, own: &str, change: &Change<NodeView>) -> bool {
    let node = change.object();
    let now = match change {
        Change::Added(_) | Change::Modified { .. } if &*node.name != own => peer(node),
        _ => None,
    };
    let before = match now.clone() {
        Some(peer) => wanted.insert(node.name.clone(), peer),
        None => wanted.remove(&node.name),
    };
    before != now
}

/// Keeps the routes of the node called `own` until `stop`; they stay when this ends.
pub async fn run(
    client: Client,
    own: &str,
    mut peers: Peers,
    stop: CancellationToken,
) -> Result<(), network::Error> {
    let nodes = client.caches().peers("");
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        () = nodes.synced() => {}
    }
    let mut changes = nodes.subscribe();
    let mut disturbances = peers.disturbances().await?;
    let mut retry = FIRST_RETRY;
    let mut wanted = BTreeMap::new();
    let mut is_set = false;
    loop {
        while let Some(change) = changes.try_next() {
            is_set &= !follow(&mut wanted, own, &change);
        }
        if !is_set {
            let set: BTreeSet<&Peer> = wanted.values().collect();
            match peers.set(&set.into_iter().cloned().collect::<Vec<_>>()).await {
                Ok(()) => {
                    tracing::debug!(nodes = wanted.len(), "routes to other nodes' pods are set");
                    (is_set, retry) = (true, FIRST_RETRY);
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
            change = changes.next() => {
                let Some(change) = change else { return Ok(()) };
                is_set &= !follow(&mut wanted, own, &change);
            }
            disturbed = disturbances.next() => {
                disturbed?;
                // compare with what the kernel has, whatever we remember
                is_set = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    fn node(status: &str) -> Arc<NodeView> {
        let spec = json!({"podCIDRs": ["10.244.1.0/24", "fd00:1::/64", "nonsense"]});
        let addresses = json!([{"type": "InternalIP", "address": "192.0.2.7"}]);
        let status = json!({"addresses": addresses, "conditions": [{"type": "Ready", "status": status}]});
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": "n2"}, "spec": spec, "status": status}))
                .unwrap(),
        )
    }

    #[test]
    fn a_node_counts_when_its_address_and_ranges_are_known() {
        let shown = |peer: Peer| {
            let cidrs: Vec<String> = peer.pod_cidrs.iter().map(ToString::to_string).collect();
            format!("{} has {}", peer.address, cidrs.join(" "))
        };
        let known = NodeView::clone(&node("True"));
        assert_eq!(peer(&known).map(shown).as_deref(), Some("192.0.2.7 has 10.244.1.0/24 fd00:1::/64"));
        assert_eq!(peer(&NodeView { address: None, ..known.clone() }), None);
        assert_eq!(peer(&NodeView { pod_cidrs: Box::default(), ..known }), None);
    }

    #[test]
    fn a_heartbeat_and_our_own_node_change_no_route() {
        let mut wanted = BTreeMap::new();
        assert!(!follow(&mut wanted, "n2", &Change::Added(node("True"))));
        assert!(follow(&mut wanted, "n1", &Change::Added(node("True"))));
        let heartbeat = Change::Modified { old: node("True"), new: node("False") };
        assert!(!follow(&mut wanted, "n1", &heartbeat));
        assert_eq!(wanted.len(), 1);
        assert!(follow(&mut wanted, "n1", &Change::Deleted(node("False"))));
        assert!(wanted.is_empty());
    }
}
