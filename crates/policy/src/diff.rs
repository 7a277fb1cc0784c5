//! From the plan in force to the next one, as one batch; pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use network::nft::{Batch, Chain as WireChain, Element, Set};

use crate::layout;
use crate::plan::{Direction, Plan};

/// Writes to `batch` what leads from `old` to `new`. The order is the kernel's: a chain is there before rules and maps
/// name it, and nothing names it any more when it goes.
pub fn changes(batch: &mut Batch, old: &Plan, new: &Plan) {
    // a name says what kind of set it is, so one that is there is the right one
    for (name, members) in new.sets.iter().filter(|(name, _)| !old.sets.contains_key(*name)) {
        let set = layout::set(name, members);
        batch.set(&set);
        batch.add(&set, members.members.iter().map(layout::member).collect());
    }
    for name in new.chains.keys().filter(|name| !old.chains.contains_key(*name)) {
        batch.chain(WireChain::regular(name));
    }
    for (name, chain) in new.chains.iter().filter(|(name, chain)| old.chains.get(*name) != Some(chain)) {
        if old.chains.contains_key(name) {
            batch.flush_chain(name);
        }
        layout::chain(batch, name, chain);
    }
    for direction in [Direction::Ingress, Direction::Egress] {
        for v6 in [false, true] {
            let set = layout::isolated(direction, v6);
            let (before, after) = (isolated(old, direction, v6), isolated(new, direction, v6));
            replace(batch, &set, &before, &after);
        }
    }
    for v6 in [false, true] {
        replace(batch, &layout::itself(v6), &itself(old, v6), &itself(new, v6));
    }
    for (name, members) in &new.sets {
        if let Some(before) = old.sets.get(name) {
            let set = layout::set(name, members);
            let gone = before.members.difference(&members.members).map(layout::member).collect();
            let come = members.members.difference(&before.members).map(layout::member).collect();
            batch.delete(&set, gone);
            batch.add(&set, come);
        }
    }
    for name in old.chains.keys().filter(|name| !new.chains.contains_key(*name)) {
        batch.flush_chain(name);
    }
    for name in old.chains.keys().filter(|name| !new.chains.contains_key(*name)) {
        batch.delete_chain(name);
    }
    for name in old.sets.keys().filter(|name| !new.sets.contains_key(*name)) {
        batch.delete_set(name);
    }
}

fn isolated(plan: &Plan, direction: Direction, v6: bool) -> BTreeMap<IpAddr, Element> {
    let ours = plan.isolated.iter().filter(|((d, addr), _)| *d == direction && addr.is_ipv6() == v6);
    ours.map(|((_, addr), chain)| (*addr, layout::isolated_element(*addr, chain))).collect()
}

fn itself(plan: &Plan, v6: bool) -> BTreeMap<IpAddr, Element> {
    let addresses: BTreeSet<IpAddr> = plan.isolated.keys().map(|(_, addr)| *addr).collect();
    let ours = addresses.into_iter().filter(|addr| addr.is_ipv6() == v6);
    ours.map(|addr| (addr, layout::itself_element(addr))).collect()
}

fn replace(batch: &mut Batch, set: &Set, old: &BTreeMap<IpAddr, Element>, new: &BTreeMap<IpAddr, Element>) {
    let differ = |a: &BTreeMap<IpAddr, Element>, b: &BTreeMap<IpAddr, Element>| -> Vec<Element> {
        a.iter().filter(|(addr, element)| b.get(addr) != Some(element)).map(|(_, e)| e.clone()).collect()
    };
    batch.delete(set, differ(old, new));
    batch.add(set, differ(new, old));
}
