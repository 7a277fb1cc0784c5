//! Node IPAM: gives every node its own range of the cluster CIDR for the addresses of its pods.
//!
//! The nodes' specs are the only record of what is taken. One worker hands ranges out; what it gave and the cache does not
//! show yet is kept beside, so that no range is given twice.
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use client::events::{EventType, reference};
use client::{Cache, Change};
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;

use crate::ownership::name;
use crate::runner::{Context, Failure, Outcome, Reconcile, Runner};

/// The cluster CIDR, cut into equal ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ranges {
    first: u128,
    v6: bool,
    mask: u8,
    count: u64,
}

impl Ranges {
    /// `cidr` cut into ranges of prefix length `mask`; `None` when that is impossible.
    pub(crate) fn parse(cidr: &str, mask: u8) -> Option<Self> {
        let (address, prefix) = cidr.split_once('/')?;
        let prefix: u8 = prefix.parse().ok()?;
        let (bits, width, v6) = match address.parse::<IpAddr>().ok()? {
            IpAddr::V4(a) => (u128::from(u32::from(a)), 32, false),
            IpAddr::V6(a) => (u128::from(a), 128, true),
        };
        if prefix > mask || mask >= width || mask - prefix > 32 {
            return None;
        }
        let host_bits = u32::from(width - prefix);
        let first = bits.checked_shr(host_bits).unwrap_or(0).checked_shl(host_bits).unwrap_or(0);
        Some(Self { first, v6, mask, count: 1 << (mask - prefix) })
    }

    fn range(&self, index: u64) -> String {
        let width = if self.v6 { 128 } else { 32 };
        let address = self.first + (u128::from(index) << (width - u32::from(self.mask)));
        let address = if self.v6 {
            IpAddr::from(Ipv6Addr::from(address))
        } else {
            IpAddr::from(Ipv4Addr::from(address as u32))
        };
        format!("{address}/{}", self.mask)
    }

    /// The first range not in `taken`.
    fn free(&self, taken: &BTreeSet<String>) -> Option<String> {
        (0..self.count).map(|i| self.range(i)).find(|r| !taken.contains(r))
    }
}

struct Controller {
    context: Context,
    nodes: Cache<Node>,
    ranges: Ranges,
    given: Mutex<HashMap<String, String>>,
}

pub(crate) async fn run(context: Context, ranges: Ranges) {
    let nodes = context.reader.caches().of::<Node>();
    let controller =
        Controller { context: context.clone(), nodes: nodes.clone(), ranges, given: Mutex::default() };
    Runner::new(&context, controller)
        .on(&nodes, |c: &Controller, change| {
            let node = change.object();
            if matches!(change, Change::Deleted(_)) || range_of(node).is_some() {
                c.given.lock().remove(name(&node.metadata));
                // A range came free: nodes that found none may try again.
                let waiting =
                    matches!(change, Change::Deleted(_)).then(|| c.nodes.list()).unwrap_or_default();
                return waiting
                    .iter()
                    .filter(|n| range_of(n).is_none())
                    .map(|n| name(&n.metadata).to_owned())
                    .collect();
            }
            vec![name(&node.metadata).to_owned()]
        })
        .run(1)
        .await;
}

fn range_of(node: &Node) -> Option<&str> {
    node.spec.as_ref()?.pod_cidr.as_deref().filter(|c| !c.is_empty())
}

impl Reconcile for Controller {
    type Key = String;

    async fn reconcile(&self, key: &String) -> Result<Outcome, Failure> {
        let Some(node) = self.nodes.get("", key) else { return Ok(Outcome::Settled) };
        if range_of(&node).is_some() || node.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Settled);
        }
        let before = self.given.lock().get(key).cloned();
        let range = match before {
            Some(range) => range,
            None => {
                let mut taken: BTreeSet<String> = self.given.lock().values().cloned().collect();
                taken.extend(self.nodes.list().iter().flat_map(|n| {
                    n.spec
                        .iter()
                        .flat_map(|s| s.pod_cidrs.iter().flatten().chain(&s.pod_cidr))
                        .cloned()
                        .collect::<Vec<_>>()
                }));
                let Some(range) = self.ranges.free(&taken) else {
                    let about = reference(&*node);
                    let message = format!("Node {key} status is now: CIDRNotAvailable");
                    self.context.recorder.event(&about, EventType::Normal, "CIDRNotAvailable", message);
                    // A deleted node brings the key back.
                    return Ok(Outcome::Settled);
                };
                range
            }
        };
        self.given.lock().insert(key.clone(), range.clone());
        // With the revision we read: a range that someone else gave meanwhile is not overwritten.
        let mut next = (*node).clone();
        let spec = next.spec.get_or_insert_default();
        (spec.pod_cidr, spec.pod_cidrs) = (Some(range.clone()), Some(vec![range]));
        match self.context.client.update("", &next).await {
            Ok(_) => Ok(Outcome::Settled),
            Err(error) => {
                self.given.lock().remove(key);
                Err(error.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_given_in_order_and_run_out() {
        let ranges = Ranges::parse("10.244.7.9/22", 24).expect("ranges");
        let mut taken = BTreeSet::from(["10.244.5.0/24".to_owned()]);
        let mut given = Vec::new();
        while let Some(range) = ranges.free(&taken) {
            taken.insert(range.clone());
            given.push(range);
        }
        assert_eq!(given, ["10.244.4.0/24", "10.244.6.0/24", "10.244.7.0/24"]);
        assert_eq!(Ranges::parse("fd00:10::/48", 64).expect("v6").range(3), "fd00:10:0:3::/64");
        assert_eq!(Ranges::parse("10.0.0.0/25", 24), None);
        assert_eq!(Ranges::parse("nonsense", 24), None);
    }
}
