//! Node IPAM: gives every node its own range of the cluster CIDR for the addresses of its pods, of both families where the
//! cluster has two.
//!
//! The nodes' specs are the only record of what is taken; how many nodes have each range is counted along with their changes, so that a
//! new node costs the same in a large cluster as in a small one. One worker hands ranges out; what it gave and the cache does not show
//! yet counts too, so that no range is given twice.
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use client::events::{EventType, reference};
use client::{Cache, Change, Changes};
use k8s_openapi::api::core::v1::Node;
use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};

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

    /// The numbers of the ranges that `span` overlaps: one where it is a range of ours, several where it was cut otherwise.
    fn overlapped(&self, span: &Span) -> std::ops::Range<usize> {
        let size = 1_u128 << (if self.v6 { 128 } else { 32 } - u32::from(self.mask));
        let whole = Span { v6: self.v6, first: self.first, last: self.span(self.count - 1).last };
        if !span.overlaps(&whole) {
            return 0..0;
        }
        let number = |address: u128| usize::try_from((address - whole.first) / size).unwrap_or(usize::MAX);
        number(span.first.max(whole.first))..number(span.last.min(whole.last)) + 1
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
}

/// Which nodes have which ranges.
struct Taken {
    ranges: Ranges,
    of: HashMap<String, Vec<String>>,
    /// How many nodes have each range, by family and number.
    users: Vec<Vec<u32>>,
}

impl Taken {
    fn new(ranges: Ranges) -> Self {
        let none = |family: &Family| vec![0; usize::try_from(family.count).unwrap_or_default()];
        let users = ranges.0.iter().map(none).collect();
        Self { ranges, of: HashMap::new(), users }
    }

    /// From now on the node has these ranges, and no others.
    fn set(&mut self, node: &str, ranges: Vec<String>) {
        let before = match ranges.is_empty() {
            true => self.of.remove(node),
            false => self.of.insert(node.to_owned(), ranges.clone()),
        };
        for range in &ranges {
            self.count(range, |users| users + 1);
        }
        for range in before.iter().flatten() {
            self.count(range, |users| users - 1);
        }
    }

    fn count(&mut self, range: &str, next: impl Fn(u32) -> u32) {
        let Some((span, _)) = Span::parse(range) else { return };
        for (family, users) in self.ranges.0.iter().zip(&mut self.users) {
            users[family.overlapped(&span)].iter_mut().for_each(|users| *users = next(*users));
        }
    }

    /// The first range of every family that nobody has a part of; `None`: one of them has none left.
    fn free(&self) -> Option<Vec<String>> {
        let families = self.ranges.0.iter().zip(&self.users);
        families
            .map(|(family, users)| {
                let number = users.iter().position(|users| *users == 0)?;
                Some(family.text(family.span(number as u64)))
            })
            .collect()
    }
}

struct Controller {
    context: Context,
    nodes: Cache<Node>,
    taken: Mutex<(Taken, Changes<Node>)>,
}

impl Controller {
    /// What is taken, as far as the cache knows by now.
    fn taken(&self) -> MappedMutexGuard<'_, Taken> {
        let mut both = self.taken.lock();
        let (taken, changes) = &mut *both;
        while let Some(change) = changes.try_next() {
            let node = change.object();
            let known = ranges_of(node);
            // what was given and does not show yet stays given
            if matches!(change, Change::Deleted(_)) {
                taken.set(name(&node.metadata), Vec::new());
            } else if !known.is_empty() {
                taken.set(name(&node.metadata), known);
            }
        }
        MutexGuard::map(both, |both| &mut both.0)
    }
}

pub(crate) async fn run(context: Context, ranges: Ranges) {
    let nodes = context.reader.caches().of::<Node>();
    let taken = Mutex::new((Taken::new(ranges), nodes.subscribe()));
    let controller = Controller { context: context.clone(), nodes: nodes.clone(), taken };
    Runner::new(&context, controller)
        .on(&nodes, |c: &Controller, change| {
            drop(c.taken());
            let node = change.object();
            if matches!(change, Change::Deleted(_)) || range_of(node).is_some() {
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

/// All ranges that a node has.
fn ranges_of(node: &Node) -> Vec<String> {
    let spec = node.spec.iter();
    let mut all: Vec<String> =
        spec.flat_map(|s| s.pod_cidrs.iter().flatten().chain(&s.pod_cidr).cloned()).collect();
    all.sort_unstable();
    all.dedup();
    all
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
        let ranges = {
            let mut taken = self.taken();
            let before = taken.of.get(key).cloned();
            let Some(ranges) = before.or_else(|| taken.free()) else {
                let about = reference(&*node);
                let message = format!("Node {key} status is now: CIDRNotAvailable");
                self.context.recorder.event(&about, EventType::Normal, "CIDRNotAvailable", message);
                // A deleted node brings the key back.
                return Ok(Outcome::Settled);
            };
            taken.set(key, ranges.clone());
            ranges
        };
        // With the revision we read: a range that someone else gave meanwhile is not overwritten.
        let mut next = (*node).clone();
        let spec = next.spec.get_or_insert_default();
        (spec.pod_cidr, spec.pod_cidrs) = (ranges.first().cloned(), Some(ranges));
        match self.context.client.update("", &next).await {
            Ok(_) => Ok(Outcome::Settled),
            Err(error) => {
                let mut taken = self.taken();
                // somebody else may have given it some
                let has = self.nodes.get("", key).map(|node| ranges_of(&node)).unwrap_or_default();
                taken.set(key, has);
                drop(taken);
                Err(error.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which ranges are given when these are taken by others.
    fn given(ranges: &Ranges, by_others: &[&str]) -> Option<Vec<String>> {
        let mut taken = Taken::new(ranges.clone());
        for (number, range) in by_others.iter().enumerate() {
            taken.set(&format!("n{number}"), vec![(*range).to_owned()]);
        }
        taken.free()
    }

    #[test]
    fn ranges_are_given_in_order_and_run_out() {
        let ranges = Ranges::parse("10.244.7.9/22", (24, 64)).expect("ranges");
        let mut taken = Taken::new(ranges.clone());
        taken.set("other", vec!["10.244.5.0/24".into()]);
        let mut found = Vec::new();
        while let Some(range) = taken.free() {
            taken.set(&format!("n{}", found.len()), range.clone());
            found.extend(range);
        }
        assert_eq!(found, ["10.244.4.0/24", "10.244.6.0/24", "10.244.7.0/24"]);
        // Ranges that were cut otherwise before are not given again.
        assert_eq!(given(&ranges, &["10.244.4.0/23", "10.244.6.128/25"]), Some(vec!["10.244.7.0/24".into()]));
    }

    #[test]
    fn a_range_is_free_when_the_last_node_that_has_a_part_of_it_goes() {
        let mut taken = Taken::new(Ranges::parse("10.244.0.0/23", (24, 64)).expect("ranges"));
        taken.set("a", vec!["10.244.0.0/25".into()]);
        taken.set("b", vec!["10.244.0.128/25".into(), "192.0.2.0/24".into(), "nonsense".into()]);
        taken.set("c", vec!["10.244.1.0/24".into()]);
        for (node, free) in [("a", None), ("b", Some("10.244.0.0/24")), ("nobody", Some("10.244.0.0/24"))] {
            taken.set(node, Vec::new());
            assert_eq!(taken.free().map(|ranges| ranges.join(",")).as_deref(), free, "{node}");
        }
        taken.set("c", vec!["10.244.0.0/24".into()]);
        assert_eq!(taken.free(), Some(vec!["10.244.1.0/24".to_owned()]));
    }

    #[test]
    fn a_cluster_of_both_families_gives_a_range_of_each() {
        let both = Ranges::parse("10.244.0.0/16, fd00:10::/56", (24, 64)).expect("ranges");
        let others = ["10.244.0.0/24", "fd00:10::/64", "fd00:10:0:1::/64"];
        assert_eq!(given(&both, &others), Some(vec!["10.244.1.0/24".into(), "fd00:10:0:2::/64".into()]));
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
