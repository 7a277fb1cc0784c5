//! Node IPAM: gives every node its own range of the cluster CIDR for the addresses of its pods, of both families where the
//! cluster has two.
//!
//! The nodes' specs are the only record of what is taken. One worker hands ranges out; what it gave and the cache does not
//! show yet is kept beside, so that no range is given twice.
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use client::events::{EventType, reference};
use client::{Cache, Change};
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;

use crate::ownership::name;
use crate::runner::{Context, Failure, Outcome, Reconcile, Runner};

/// A range of addresses of one family: first and last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    v6: bool,
    first: u128,
    last: u128,
}

impl Span {
    /// From `10.244.0.0/24`.
    fn parse(cidr: &str) -> Option<(Self, u8)> {
        let (address, prefix) = cidr.split_once('/')?;
        let prefix: u8 = prefix.parse().ok()?;
        let (bits, width, v6) = match address.parse::<IpAddr>().ok()? {
            IpAddr::V4(a) => (u128::from(u32::from(a)), 32_u8, false),
            IpAddr::V6(a) => (u128::from(a), 128, true),
        };
        let rest =
            1_u128.checked_shl(u32::from(width.checked_sub(prefix)?)).map_or(u128::MAX, |size| size - 1);
        let first = bits & !rest;
        Some((Self { v6, first, last: first | rest }, prefix))
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.v6 == other.v6 && self.first <= other.last && other.first <= self.last
    }
}

/// The cluster CIDR of one family, cut into equal ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Family {
    first: u128,
    v6: bool,
    mask: u8,
    count: u64,
}

impl Family {
    fn parse(cidr: &str, masks: (u8, u8)) -> Option<Self> {
        let (span, prefix) = Span::parse(cidr)?;
        let (mask, width) = if span.v6 { (masks.1, 128) } else { (masks.0, 32) };
        // Upstream's bound: at most 16 bits of nodes.
        if prefix > mask || mask >= width || mask - prefix > 16 {
            return None;
        }
        Some(Self { first: span.first, v6: span.v6, mask, count: 1 << (mask - prefix) })
    }

    fn span(&self, index: u64) -> Span {
        let size = 1_u128 << (if self.v6 { 128 } else { 32 } - u32::from(self.mask));
        let first = self.first + u128::from(index) * size;
        Span { v6: self.v6, first, last: first + (size - 1) }
    }

    fn text(&self, span: Span) -> String {
        let address = if self.v6 {
            IpAddr::from(Ipv6Addr::from(span.first))
        } else {
            IpAddr::from(Ipv4Addr::from(span.first as u32))
        };
        format!("{address}/{}", self.mask)
    }

    /// The first range that overlaps none of `taken`.
    fn free(&self, taken: &[Span]) -> Option<String> {
        // Most are ranges of ours: these are found by their number. What is cut otherwise covers several.
        let size = 1_u128 << (if self.v6 { 128 } else { 32 } - u32::from(self.mask));
        let mut used = vec![false; usize::try_from(self.count).ok()?];
        let whole = Span { v6: self.v6, first: self.first, last: self.span(self.count - 1).last };
        for span in taken.iter().filter(|s| s.overlaps(&whole)) {
            let from = (span.first.max(whole.first) - whole.first) / size;
            let to = (span.last.min(whole.last) - whole.first) / size;
            (from..=to).filter_map(|i| usize::try_from(i).ok()).for_each(|i| used[i] = true);
        }
        let index = used.iter().position(|used| !used)?;
        Some(self.text(self.span(index as u64)))
    }
}

/// The cluster CIDRs, cut into ranges for nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ranges(Vec<Family>);

impl Ranges {
    /// `cidrs`: one, or one of each family with a comma between them, cut into ranges of the prefix lengths `masks` (IPv4,
    /// IPv6); `None` when that is impossible.
    pub(crate) fn parse(cidrs: &str, masks: (u8, u8)) -> Option<Self> {
        let families: Vec<Family> =
            cidrs.split(',').map(|cidr| Family::parse(cidr.trim(), masks)).collect::<Option<_>>()?;
        match families.as_slice() {
            [_] => Some(Self(families)),
            [a, b] if a.v6 != b.v6 => Some(Self(families)),
            _ => None,
        }
    }

    /// A free range of every family; `None`: one of them has none left.
    fn free(&self, taken: &[Span]) -> Option<Vec<String>> {
        self.0.iter().map(|family| family.free(taken)).collect()
    }
}

struct Controller {
    context: Context,
    nodes: Cache<Node>,
    ranges: Ranges,
    given: Mutex<HashMap<String, Vec<String>>>,
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
        let ranges = match before {
            Some(ranges) => ranges,
            None => {
                let mut taken: Vec<Span> =
                    self.given.lock().values().flatten().filter_map(|r| Some(Span::parse(r)?.0)).collect();
                for node in self.nodes.list() {
                    let spec = node.spec.iter();
                    let known = spec.flat_map(|s| s.pod_cidrs.iter().flatten().chain(&s.pod_cidr));
                    taken.extend(known.filter_map(|r| Some(Span::parse(r)?.0)));
                }
                let Some(ranges) = self.ranges.free(&taken) else {
                    let about = reference(&*node);
                    let message = format!("Node {key} status is now: CIDRNotAvailable");
                    self.context.recorder.event(&about, EventType::Normal, "CIDRNotAvailable", message);
                    // A deleted node brings the key back.
                    return Ok(Outcome::Settled);
                };
                ranges
            }
        };
        self.given.lock().insert(key.clone(), ranges.clone());
        // With the revision we read: a range that someone else gave meanwhile is not overwritten.
        let mut next = (*node).clone();
        let spec = next.spec.get_or_insert_default();
        (spec.pod_cidr, spec.pod_cidrs) = (ranges.first().cloned(), Some(ranges));
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
        let ranges = Ranges::parse("10.244.7.9/22", (24, 64)).expect("ranges");
        let span = |text: &str| Span::parse(text).expect("range").0;
        let mut taken = vec![span("10.244.5.0/24")];
        let mut given = Vec::new();
        while let Some(range) = ranges.free(&taken) {
            taken.push(span(&range[0]));
            given.extend(range);
        }
        assert_eq!(given, ["10.244.4.0/24", "10.244.6.0/24", "10.244.7.0/24"]);
        // Ranges that were cut otherwise before are not given again.
        assert_eq!(
            ranges.free(&[span("10.244.4.0/23"), span("10.244.6.128/25")]),
            Some(vec!["10.244.7.0/24".into()])
        );
    }

    #[test]
    fn a_cluster_of_both_families_gives_a_range_of_each() {
        let both = Ranges::parse("10.244.0.0/16, fd00:10::/56", (24, 64)).expect("ranges");
        let taken: Vec<Span> = ["10.244.0.0/24", "fd00:10::/64", "fd00:10:0:1::/64"]
            .iter()
            .filter_map(|r| Some(Span::parse(r)?.0))
            .collect();
        assert_eq!(both.free(&taken), Some(vec!["10.244.1.0/24".into(), "fd00:10:0:2::/64".into()]));
        for impossible in [
            "10.0.0.0/25",
            "nonsense",
            "",
            "10.0.0.0/16,10.1.0.0/16",
            "fd00::/40",
            "10.0.0.0/16,fd00::/60,fd01::/60",
        ] {
            assert_eq!(Ranges::parse(impossible, (24, 64)), None, "{impossible}");
        }
    }
}
