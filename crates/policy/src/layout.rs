//! The plan in nftables: base chains, and how chains, rules and sets are written.
//!
//! A forwarded packet whose source is an isolated pod is judged by that pod's egress chain, then, like every other, by
//! the ingress chain of its destination. `pol-forward` sees what goes through the node, after translation of the
//! destination and before that of the source; `pol-input` what pods send to the node itself (cluster DNS among it). What
//! the node sends passes neither, so that probes always reach their pods. What IPVS translates comes to the node first and then
//! leaves as if it came from there: `pol-input-led` and `pol-output-led` see it with its new destination.
//!
//! Every packet of a connection's first direction is judged, not only the first: a policy that no longer allows a
//! connection ends it. Answers pass.

use std::net::IpAddr;

use network::ipvs::LED;
use network::nft::{Batch, Chain as WireChain, Element, Expr, Hook, Set, Type};

use crate::plan::{Chain, Direction, Kind, Member, Members, Rule};

/// All our chains and sets begin so.
pub const PREFIX: &str = "pol-";
/// Judges what goes through the node.
pub const FORWARD: &str = "pol-forward";
const INPUT: &str = "pol-input";
const INPUT_LED: &str = "pol-input-led";
const OUTPUT_LED: &str = "pol-output-led";
const JUDGE: &str = "pol-judge";
const INGRESS: &str = "pol-ingress";
/// The chains that are always there.
pub const FIXED: [&str; 6] = [FORWARD, INPUT, INPUT_LED, OUTPUT_LED, JUDGE, INGRESS];
/// The kernel's "filter" priority.
const FILTER: i32 = 0;
/// Behind IPVS, which translates packets of services at 99.
const BEHIND_IPVS: i32 = 101;
/// Ahead of the chain that clears the mark of packets that IPVS sends on.
const AHEAD_OF_CLEARING: i32 = -110;

/// The map from isolated addresses to chains.
pub fn isolated(direction: Direction, v6: bool) -> Set {
    let direction = match direction {
        Direction::Ingress => "to",
        Direction::Egress => "from",
    };
    Set::verdicts(&format!("{PREFIX}isolated-{direction}-{}", if v6 { 6 } else { 4 }), address_type(v6))
}

/// Addresses of isolated pods, twice: nothing keeps a pod from itself.
pub fn itself(v6: bool) -> Set {
    let pair = Type::Concat(vec![address_type(v6), address_type(v6)]);
    Set::new(&format!("{PREFIX}itself-{}", if v6 { 6 } else { 4 }), pair)
}

/// The maps and sets that are always there.
pub fn fixed_sets() -> Vec<Set> {
    let families = [false, true].into_iter();
    families
        .flat_map(|v6| [isolated(Direction::Ingress, v6), isolated(Direction::Egress, v6), itself(v6)])
        .collect()
}

/// Writes the fixed chains with their rules. The sets must be there, or be made in the same batch before.
pub fn base(batch: &mut Batch) {
    for chain in [
        WireChain::regular(INGRESS),
        WireChain::regular(JUDGE),
        WireChain::base(FORWARD, Hook::FilterForward, FILTER),
        WireChain::base(INPUT, Hook::FilterInput, FILTER),
        WireChain::base(INPUT_LED, Hook::FilterInput, BEHIND_IPVS),
        WireChain::base(OUTPUT_LED, Hook::FilterOutput, AHEAD_OF_CLEARING),
    ] {
        let name = chain.name.clone();
        batch.chain(chain);
        batch.flush_chain(&name);
    }
    batch.rule(FORWARD, vec![Expr::Jump(JUDGE.to_owned())]);
    // where it goes is not known yet
    batch.rule(INPUT, vec![Expr::MarkHas(LED), Expr::Accept]);
    batch.rule(INPUT, vec![Expr::Jump(JUDGE.to_owned())]);
    for chain in [INPUT_LED, OUTPUT_LED] {
        batch.rule(chain, vec![Expr::MarkHas(LED), Expr::Jump(JUDGE.to_owned())]);
    }
    batch.rule(JUDGE, vec![Expr::Answer, Expr::Accept]);
    batch.rule(JUDGE, vec![Expr::Related, Expr::Accept]);
    batch.rule(JUDGE, vec![Expr::Family { v6: true }, Expr::NeighborDiscovery, Expr::Accept]);
    for v6 in [false, true] {
        let words = if v6 { 4 } else { 1 };
        batch.rule(
            JUDGE,
            vec![
                Expr::Family { v6 },
                Expr::LoadSource { v6, to: 0 },
                Expr::LoadDestination { v6, to: words },
                Expr::In { set: itself(v6).name, key: 0 },
                Expr::Accept,
            ],
        );
    }
    for v6 in [false, true] {
        let map = isolated(Direction::Egress, v6).name;
        let load = Expr::LoadSource { v6, to: 0 };
        batch.rule(JUDGE, vec![Expr::Family { v6 }, load, Expr::LookupVerdict { map, key: 0 }]);
        let map = isolated(Direction::Ingress, v6).name;
        let load = Expr::LoadDestination { v6, to: 0 };
        batch.rule(INGRESS, vec![Expr::Family { v6 }, load, Expr::LookupVerdict { map, key: 0 }]);
    }
    batch.rule(JUDGE, vec![Expr::Goto(INGRESS.to_owned())]);
    // not to return: the caller may be an egress chain, which would go on to drop
    batch.rule(INGRESS, vec![Expr::Accept]);
}

/// Writes the rules of a chain, which is there and empty.
pub fn chain(batch: &mut Batch, name: &str, chain: &Chain) {
    match chain {
        Chain::Pod { policies, comment } => {
            for policy in policies {
                batch.rule(name, vec![Expr::Jump(policy.clone())]);
            }
            batch.counted_rule(name, comment, vec![Expr::Count, Expr::Drop]);
        }
        Chain::Policy(direction, rules) => {
            for rule in rules {
                batch.counted_rule(name, &rule.comment, lower(*direction, rule));
            }
        }
    }
}

fn lower(direction: Direction, rule: &Rule) -> Vec<Expr> {
    let mut exprs = Vec::new();
    if let Some(v6) = rule.v6 {
        exprs.push(Expr::Family { v6 });
        if let Some(set) = &rule.peers {
            exprs.push(match direction {
                Direction::Ingress => Expr::LoadSource { v6, to: 0 },
                Direction::Egress => Expr::LoadDestination { v6, to: 0 },
            });
            exprs.push(Expr::In { set: set.clone(), key: 0 });
        }
        if let Some(set) = &rule.named {
            let words = if v6 { 4 } else { 1 };
            exprs.extend([
                Expr::LoadDestination { v6, to: 0 },
                Expr::LoadProtocol { to: words },
                Expr::LoadPort { to: words + 1 },
                Expr::In { set: set.clone(), key: 0 },
            ]);
        }
    }
    if let Some((protocol, ports)) = rule.port {
        exprs.push(Expr::Protocol(protocol as u8));
        exprs.extend(ports.map(|(first, last)| Expr::Ports { first, last }));
    }
    exprs.push(Expr::Count);
    // what a pod may send must also be wanted where it goes
    exprs.push(match direction {
        Direction::Ingress => Expr::Accept,
        Direction::Egress => Expr::Goto(INGRESS.to_owned()),
    });
    exprs
}

/// A planned set as nftables knows it.
pub fn set(name: &str, members: &Members) -> Set {
    let address = address_type(members.v6);
    match members.kind {
        Kind::Addrs => Set::new(name, address),
        Kind::Ranges => Set::intervals(name, address),
        Kind::Ports => Set::new(name, Type::Concat(vec![address, Type::Protocol, Type::Port])),
    }
}

/// An element of a planned set.
pub fn member(member: &Member) -> Element {
    match member {
        Member::Addr(addr) => Element::new(octets(*addr)),
        Member::Range(first, last) => Element::range(octets(*first), octets(*last)),
        Member::Port(addr, protocol) => Element::new(Element::concat(&[
            &octets(addr.ip()),
            &[*protocol as u8],
            &addr.port().to_be_bytes(),
        ])),
    }
}

/// The element that leads an isolated address to its chain.
pub fn isolated_element(addr: IpAddr, chain: &str) -> Element {
    Element::goto(octets(addr), chain)
}

/// The element that lets an address reach itself.
pub fn itself_element(addr: IpAddr) -> Element {
    Element::new(Element::concat(&[&octets(addr), &octets(addr)]))
}

fn address_type(v6: bool) -> Type {
    if v6 { Type::Ipv6 } else { Type::Ipv4 }
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}
