//! Names, keys, chains and rules of the table.
//!
//! Per family F (4, 6): `svc-frontends-F` (address . protocol . port → tier), `svc-endpoints-F` (address . protocol
//! . port . index → address . port), `svc-tiers-F` (tier → chain), `svc-rejected-F`, `svc-dropped-F` (address .
//! protocol . port), `svc-hairpin-F` (address . address), `svc-affinity-F` (client . address . protocol . port →
//! address . port, filled by the rules themselves, elements expire), `svc-inside-F` (as `svc-frontends-F`, for clients
//! inside the cluster where they are led elsewhere), `svc-guards-F` (address . protocol . port → chain with the sources). Where
//! IPVS balances, `svc-led-F` and `svc-masked-F` (address . protocol . port) have the frontends that it serves, and those of them
//! whose clients are hidden.
//!
//! Base chains: `svc-guard-in` and `svc-guard-out` (before destination translation: who may come), `svc-prerouting` and
//! `svc-output` (destination translation), `svc-refuse-in` and `svc-refuse-out`
//! (after it: what still goes to a service address has no endpoint), `svc-postrouting` (masquerade); with IPVS `svc-led-in`
//! (marks packets for it, behind destination translation), `svc-led-out` (takes the mark off what it sends on, before anything
//! routes that again) and `svc-led-back` (routes anew what comes back to the node). The name of
//! the main chain carries the layout's version; a table of another version is replaced in one batch.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use network::Cidr;
use network::ipvs::LED;
use network::nft::{Batch, Chain, Element, Expr, Hook, Reg, Set, Type};

use crate::Config;
use crate::diff::{Entry, Tier};
use crate::plan::{Frontend, Protocol, Refusal};

/// All our chains and sets begin so; others in the table belong to `network`.
pub const PREFIX: &str = "svc-";
/// The chain that looks frontends up; its name is the layout's version.
pub const MAIN: &str = "svc-main-3";
/// The same for clients inside the cluster.
const MAIN_INSIDE: &str = "svc-main-inside";
const REFUSE: &str = "svc-refuse";
const DSTNAT: i32 = -100;
const SRCNAT: i32 = 100;
/// IPVS translates what the node sends at -98.
const BEHIND_IPVS: i32 = DSTNAT + 5;
/// Packets with this bit in their mark are masqueraded. Kubernetes' conventional bit.
const MASQUERADE_BIT: u32 = 0x4000;
/// How many client affinities a node remembers per family.
const MAX_AFFINITIES: u32 = 1 << 20;
/// First word of an endpoint in the registers, behind the widest key.
const ENDPOINT: Reg = 10;

/// The sets and maps of one family.
#[derive(Debug, Clone)]
pub struct Sets {
    /// Frontends to tiers.
    pub frontends: Set,
    /// Frontends and indices to endpoints.
    pub endpoints: Set,
    /// Tiers to chains.
    pub tiers: Set,
    /// Answered with "port unreachable".
    pub rejected: Set,
    /// Dropped.
    pub dropped: Set,
    /// Endpoints on this node.
    pub hairpin: Set,
    /// Clients that stay with their endpoint.
    pub affinity: Set,
    /// Frontends to tiers, for clients inside the cluster.
    pub inside: Set,
    /// Frontends to the chains that say who may come.
    pub guards: Set,
    /// Frontends that IPVS serves.
    pub led: Set,
    /// Those of them whose clients are hidden.
    pub masked: Set,
}

impl Sets {
    /// The sets of a family.
    pub fn new(v6: bool) -> Self {
        let addr = || if v6 { Type::Ipv6 } else { Type::Ipv4 };
        let name = |what: &str| format!("{PREFIX}{what}-{}", if v6 { 6 } else { 4 });
        let frontend = || vec![addr(), Type::Protocol, Type::Port];
        let indexed = Type::Concat([frontend(), vec![Type::Mark]].concat());
        let client = Type::Concat([vec![addr()], frontend()].concat());
        let endpoint = Type::Concat(vec![addr(), Type::Port]);
        let mut affinity = Set::map(&name("affinity"), client, endpoint.clone());
        affinity.dynamic = Some(MAX_AFFINITIES);
        Self {
            frontends: Set::map(&name("frontends"), Type::Concat(frontend()), Type::Mark),
            endpoints: Set::map(&name("endpoints"), indexed, endpoint),
            tiers: Set::verdicts(&name("tiers"), Type::Mark),
            rejected: Set::new(&name("rejected"), Type::Concat(frontend())),
            dropped: Set::new(&name("dropped"), Type::Concat(frontend())),
            hairpin: Set::new(&name("hairpin"), Type::Concat(vec![addr(), addr()])),
            affinity,
            inside: Set::map(&name("inside"), Type::Concat(frontend()), Type::Mark),
            guards: Set::verdicts(&name("guards"), Type::Concat(frontend())),
            led: Set::new(&name("led"), Type::Concat(frontend())),
            masked: Set::new(&name("masked"), Type::Concat(frontend())),
        }
    }

    /// All of them.
    pub fn all(&self) -> [&Set; 11] {
        [
            &self.frontends,
            &self.endpoints,
            &self.tiers,
            &self.rejected,
            &self.dropped,
            &self.hairpin,
            &self.affinity,
            &self.inside,
            &self.guards,
            &self.led,
            &self.masked,
        ]
    }

    /// The set an entry belongs to.
    pub fn of(&self, entry: &Entry) -> &Set {
        match entry {
            Entry::Service(..) => &self.frontends,
            Entry::Inside(..) => &self.inside,
            Entry::Endpoint(..) => &self.endpoints,
            Entry::Refused(_, Refusal::Reject) => &self.rejected,
            Entry::Refused(_, Refusal::Drop) => &self.dropped,
            Entry::Hairpin(_) => &self.hairpin,
            Entry::Led(_) => &self.led,
            Entry::Masked(_) => &self.masked,
        }
    }
}

/// Whether an entry is of the IPv6 sets.
pub fn is_ipv6(entry: &Entry) -> bool {
    match entry {
        Entry::Service(f, _) | Entry::Inside(f, _) | Entry::Endpoint(f, _, _) | Entry::Refused(f, _) => {
            f.addr.is_ipv6()
        }
        Entry::Led(f) | Entry::Masked(f) => f.addr.is_ipv6(),
        Entry::Hairpin(addr) => addr.is_ipv6(),
    }
}

/// An entry as an element.
pub fn encode(entry: &Entry) -> Element {
    match entry {
        Entry::Service(frontend, tier) | Entry::Inside(frontend, tier) => {
            Element::value(frontend_key(frontend), tier.0.to_ne_bytes().to_vec())
        }
        Entry::Endpoint(frontend, index, addr) => {
            let mut key = frontend_key(frontend);
            key.extend_from_slice(&index.to_ne_bytes());
            Element::value(key, Element::concat(&[&octets(addr.ip()), &addr.port().to_be_bytes()]))
        }
        Entry::Refused(frontend, _) | Entry::Led(frontend) | Entry::Masked(frontend) => {
            Element::new(frontend_key(frontend))
        }
        Entry::Hairpin(addr) => Element::new(Element::concat(&[&octets(*addr), &octets(*addr)])),
    }
}

fn frontend_key(frontend: &Frontend) -> Vec<u8> {
    Element::concat(&[&octets(frontend.addr), &[frontend.protocol as u8], &frontend.port.to_be_bytes()])
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// Reads fields off an element's bytes, as [`Element::concat`] lays them out.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take(&mut self, len: usize) -> Option<&[u8]> {
        let (field, rest) = self.0.split_at_checked(len.next_multiple_of(4))?;
        self.0 = rest;
        Some(&field[..len])
    }

    fn addr(&mut self, v6: bool) -> Option<IpAddr> {
        if v6 {
            Some(IpAddr::from(<[u8; 16]>::try_from(self.take(16)?).ok()?))
        } else {
            Some(IpAddr::from(<[u8; 4]>::try_from(self.take(4)?).ok()?))
        }
    }

    fn port(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn number(&mut self) -> Option<u32> {
        Some(u32::from_ne_bytes(self.take(4)?.try_into().ok()?))
    }

    fn frontend(&mut self, v6: bool) -> Option<Frontend> {
        let addr = self.addr(v6)?;
        let protocol = match self.take(1)?[0] {
            6 => Protocol::Tcp,
            17 => Protocol::Udp,
            132 => Protocol::Sctp,
            _ => return None,
        };
        Some(Frontend { addr, protocol, port: self.port()? })
    }
}

/// Reads an element of `frontends` or `inside`.
pub fn decode_tier_of(v6: bool, element: &Element) -> Option<(Frontend, Tier)> {
    let tier = Tier(Fields(element.value.as_deref()?).number()?);
    Some((Fields(&element.key).frontend(v6)?, tier))
}

/// Reads an element of `guards`.
pub fn decode_guard(v6: bool, element: &Element) -> Option<Frontend> {
    Fields(&element.key).frontend(v6)
}

/// Reads an element of `endpoints`.
pub fn decode_endpoint(v6: bool, element: &Element) -> Option<Entry> {
    let mut key = Fields(&element.key);
    let (frontend, index) = (key.frontend(v6)?, key.number()?);
    Some(Entry::Endpoint(frontend, index, decode_addr(v6, element.value.as_deref()?)?))
}

/// Reads an element of `rejected` or `dropped`.
pub fn decode_refused(v6: bool, element: &Element, refusal: Refusal) -> Option<Entry> {
    Some(Entry::Refused(Fields(&element.key).frontend(v6)?, refusal))
}

/// Reads an element of `led`.
pub fn decode_led(v6: bool, element: &Element) -> Option<Entry> {
    Some(Entry::Led(Fields(&element.key).frontend(v6)?))
}

/// Reads an element of `masked`.
pub fn decode_masked(v6: bool, element: &Element) -> Option<Entry> {
    Some(Entry::Masked(Fields(&element.key).frontend(v6)?))
}

/// Reads an element of `hairpin`.
pub fn decode_hairpin(v6: bool, element: &Element) -> Option<Entry> {
    Some(Entry::Hairpin(Fields(&element.key).addr(v6)?))
}

/// Reads an element of `tiers`.
pub fn decode_tier(element: &Element) -> Option<Tier> {
    Some(Tier(Fields(&element.key).number()?))
}

/// Reads an element of `affinity`: the frontend (or a node's address and node port) and the endpoint.
pub fn decode_affinity(v6: bool, element: &Element) -> Option<(Frontend, SocketAddr)> {
    let mut key = Fields(&element.key);
    key.addr(v6)?;
    Some((key.frontend(v6)?, decode_addr(v6, element.value.as_deref()?)?))
}

fn decode_addr(v6: bool, value: &[u8]) -> Option<SocketAddr> {
    let mut value = Fields(value);
    Some(SocketAddr::new(value.addr(v6)?, value.port()?))
}

/// The name of a tier's chain.
pub fn tier_chain(v6: bool, tier: Tier) -> String {
    format!("{PREFIX}tier{}-{tier}", if v6 { 6 } else { 4 })
}

/// Writes the sets (only where the table has none) and the fixed chains with their rules, but for [`refuse_unknown`].
pub fn base(batch: &mut Batch, config: &Config, with_sets: bool) {
    batch.table();
    if with_sets {
        for v6 in [false, true] {
            for set in Sets::new(v6).all() {
                batch.set(set);
            }
        }
    }
    let chains = [
        Chain::regular(MAIN),
        Chain::regular(MAIN_INSIDE),
        Chain::regular(REFUSE),
        Chain::base("svc-guard-in", Hook::FilterPrerouting, DSTNAT - 10),
        Chain::base("svc-guard-out", Hook::FilterOutput, DSTNAT - 10),
        Chain::base("svc-prerouting", Hook::NatPrerouting, DSTNAT),
        Chain::base("svc-output", Hook::NatOutput, DSTNAT),
        Chain::base("svc-refuse-in", Hook::FilterPrerouting, DSTNAT + 10),
        Chain::base("svc-refuse-out", Hook::FilterOutput, 0),
        // ahead of the node's egress chain, which may masquerade too
        Chain::base("svc-postrouting", Hook::NatPostrouting, SRCNAT - 1),
    ];
    for chain in chains {
        let name = chain.name.clone();
        batch.chain(chain);
        batch.flush_chain(&name);
    }

    for net in &config.service_cidrs {
        let mut from_elsewhere: Vec<Expr> = config
            .cluster_cidrs
            .iter()
            .filter(|c| c.is_ipv6() == net.is_ipv6())
            .map(|c| Expr::Source { net: *c, inside: false })
            .collect();
        from_elsewhere.push(Expr::Destination { net: *net, inside: true });
        from_elsewhere.push(Expr::MarkSet(MASQUERADE_BIT));
        batch.rule("svc-prerouting", from_elsewhere);
    }
    for net in &config.cluster_cidrs {
        let pod = Expr::Source { net: *net, inside: true };
        batch.rule("svc-prerouting", vec![pod, Expr::Jump(MAIN_INSIDE.to_owned())]);
    }
    batch.rule("svc-prerouting", vec![Expr::Jump(MAIN.to_owned())]);
    for v6 in [false, true] {
        for key in keys(v6, config) {
            let (inside, to) = (Sets::new(v6).inside.name, words(v6) + 2);
            // answers to the node must find back to it, from whatever node
            let own = [Expr::Lookup { map: inside, key: 0, to }, Expr::MarkSet(MASQUERADE_BIT)];
            batch.rule("svc-output", [key, own.to_vec()].concat());
        }
    }
    batch.rule("svc-output", vec![Expr::Jump(MAIN_INSIDE.to_owned())]);
    batch.rule("svc-output", vec![Expr::Jump(MAIN.to_owned())]);
    for v6 in [false, true] {
        let sets = Sets::new(v6);
        for (chain, map) in [(MAIN, &sets.frontends), (MAIN_INSIDE, &sets.inside)] {
            for key in keys(v6, config) {
                let to = words(v6) + 2;
                let find = [
                    Expr::Lookup { map: map.name.clone(), key: 0, to },
                    Expr::LookupVerdict { map: sets.tiers.name.clone(), key: to },
                ];
                batch.rule(chain, [key, find.to_vec()].concat());
            }
        }
        let guard = Expr::LookupVerdict { map: sets.guards.name.clone(), key: 0 };
        for base in ["svc-guard-in", "svc-guard-out"] {
            batch.rule(base, [vec![Expr::New], service_key(v6), vec![guard.clone()]].concat());
        }
    }

    for base in ["svc-refuse-in", "svc-refuse-out"] {
        batch.rule(base, vec![Expr::New, Expr::Jump(REFUSE.to_owned())]);
    }
    for v6 in [false, true] {
        let sets = Sets::new(v6);
        for (set, verdict) in [(&sets.rejected, Expr::Reject), (&sets.dropped, Expr::Drop)] {
            for key in keys(v6, config) {
                let refused = [Expr::In { set: set.name.clone(), key: 0 }, verdict.clone()];
                batch.rule(REFUSE, [key, refused.to_vec()].concat());
            }
        }
    }
    batch.rule(
        "svc-postrouting",
        vec![Expr::MarkHas(MASQUERADE_BIT), Expr::MarkClear(MASQUERADE_BIT), Expr::Masquerade],
    );
    for v6 in [false, true] {
        batch.rule("svc-postrouting", [vec![Expr::WasTranslated], hairpin(v6)].concat());
    }
    if config.ipvs.is_some() {
        lead(batch, config);
    }
}

/// What is particular to [`base`] where IPVS balances.
fn lead(batch: &mut Batch, config: &Config) {
    for chain in LEADING {
        batch.chain(chain());
        batch.flush_chain(&chain().name);
    }
    for v6 in [false, true] {
        let sets = Sets::new(v6);
        for key in keys(v6, config) {
            let led = [Expr::In { set: sets.led.name.clone(), key: 0 }, Expr::MarkSet(LED)];
            batch.rule("svc-led-in", [key.clone(), led.to_vec()].concat());
            let masked = [Expr::In { set: sets.masked.name.clone(), key: 0 }, Expr::MarkSet(MASQUERADE_BIT)];
            for chain in ["svc-prerouting", "svc-output"] {
                batch.rule(chain, [key.clone(), masked.to_vec()].concat());
            }
        }
        // IPVS does not say that it translated
        batch.rule("svc-postrouting", hairpin(v6));
    }
    batch.rule("svc-led-out", vec![Expr::MarkHas(LED), Expr::MarkClear(LED)]);
    // from the node to itself: IPVS leaves it on the way to the service's address
    let astray = Expr::OutputLink { name: "lo".to_owned(), is: false };
    batch.rule("svc-led-back", vec![astray, Expr::DestinationIsLocal, Expr::MarkSet(LED)]);
}

/// The chains that exist only where IPVS balances.
const LEADING: [fn() -> Chain; 3] = [
    || Chain::base("svc-led-in", Hook::FilterPrerouting, DSTNAT + 5),
    || Chain::base("svc-led-out", Hook::FilterOutput, DSTNAT - 5),
    || Chain::base("svc-led-back", Hook::RouteOutput, BEHIND_IPVS),
];

/// Removes those of `chains` that the configuration has no use for.
pub fn tidy(batch: &mut Batch, config: &Config, chains: &[String]) {
    for chain in LEADING.map(|chain| chain().name) {
        if config.ipvs.is_none() && chains.contains(&chain) {
            batch.flush_chain(&chain);
            batch.delete_chain(&chain);
        }
    }
}

/// A pod that reaches itself by a service must see the node as its client.
fn hairpin(v6: bool) -> Vec<Expr> {
    vec![
        Expr::Family { v6 },
        Expr::LoadSource { v6, to: 0 },
        Expr::LoadDestination { v6, to: words(v6) },
        Expr::In { set: Sets::new(v6).hairpin.name, key: 0 },
        Expr::Masquerade,
    ]
}

/// Writes the rules that refuse what no service has, of the service networks. Not before the services are there: a packet
/// without an answer is sent again, a refusal is believed.
pub fn refuse_unknown(batch: &mut Batch, config: &Config) {
    if config.ipvs.is_some() {
        batch.rule(REFUSE, vec![Expr::MarkHas(LED), Expr::Return]);
    }
    for net in &config.service_cidrs {
        let unknown = Expr::Destination { net: *net, inside: true };
        // what the node serves itself (cluster DNS) is none of our business
        batch.rule(REFUSE, vec![unknown.clone(), Expr::DestinationIsLocal, Expr::Return]);
        batch.rule(REFUSE, vec![unknown, Expr::Reject]);
    }
}

/// Words an address takes.
fn words(v6: bool) -> Reg {
    if v6 { 4 } else { 1 }
}

/// Loads the packet's destination, protocol and port from word 0 on.
fn service_key(v6: bool) -> Vec<Expr> {
    let words = words(v6);
    vec![
        Expr::Family { v6 },
        Expr::LoadDestination { v6, to: 0 },
        Expr::LoadProtocol { to: words },
        Expr::LoadPort { to: words + 1 },
    ]
}

/// All ways to load a frontend's key: of a service's address, and of node ports.
fn keys(v6: bool, config: &Config) -> Vec<Vec<Expr>> {
    let of_node = match config.node_ports.ranges(v6) {
        None => vec![node_port_key(v6, None)],
        Some(ranges) => ranges.into_iter().map(|range| node_port_key(v6, Some(range))).collect(),
    };
    [vec![service_key(v6)], of_node].concat()
}

/// The same as [`service_key`] for node ports that are served in `range`; their key has the unspecified address. Loopback is
/// left out: the kernel does not route answers for it.
fn node_port_key(v6: bool, range: Option<Cidr>) -> Vec<Expr> {
    let words = words(v6);
    let loopback = if v6 {
        network::Cidr::new(Ipv6Addr::LOCALHOST.into(), 128)
    } else {
        network::Cidr::new(Ipv4Addr::LOCALHOST.into(), 8)
    };
    let mut exprs = vec![Expr::Family { v6 }];
    exprs.extend(range.map(|net| Expr::Destination { net, inside: true }));
    exprs.extend(loopback.map(|net| Expr::Destination { net, inside: false }));
    exprs.extend([
        Expr::DestinationIsLocal,
        Expr::Load { to: 0, bytes: vec![0; 4 * usize::from(words)] },
        Expr::LoadProtocol { to: words },
        Expr::LoadPort { to: words + 1 },
    ]);
    exprs
}

/// Writes a tier's chain and its entry in the verdict map.
pub fn tier(batch: &mut Batch, v6: bool, tier: Tier) {
    let (sets, chain) = (Sets::new(v6), tier_chain(v6, tier));
    let words = words(v6);
    batch.chain(Chain::regular(&chain));
    batch.flush_chain(&chain);
    if tier.masquerade() {
        batch.rule(&chain, vec![Expr::MarkSet(MASQUERADE_BIT)]);
    }
    let client_key = || {
        vec![
            Expr::LoadSource { v6, to: 0 },
            Expr::LoadDestination { v6, to: words },
            Expr::LoadProtocol { to: 2 * words },
            Expr::LoadPort { to: 2 * words + 1 },
        ]
    };
    let affinity = sets.affinity.name.clone();
    let remember = Expr::Remember {
        map: affinity.clone(),
        key: 0,
        value: ENDPOINT,
        timeout: Duration::from_secs(u64::from(tier.affinity())),
    };
    let translate = Expr::Dnat { v6, addr: ENDPOINT, port: ENDPOINT + words };
    if tier.affinity() > 0 {
        let known = Expr::Lookup { map: affinity, key: 0, to: ENDPOINT };
        batch.rule(&chain, [client_key(), vec![known, remember.clone(), translate.clone()]].concat());
    }
    let mut draw = vec![if tier.node_port() {
        Expr::Load { to: 0, bytes: vec![0; 4 * usize::from(words)] }
    } else {
        Expr::LoadDestination { v6, to: 0 }
    }];
    draw.extend([
        Expr::LoadProtocol { to: words },
        Expr::LoadPort { to: words + 1 },
        Expr::LoadRandom { to: words + 2, modulus: tier.backends().max(1), offset: tier.first() },
        Expr::Lookup { map: sets.endpoints.name.clone(), key: 0, to: ENDPOINT },
    ]);
    if tier.affinity() > 0 {
        draw.extend(client_key());
        draw.push(remember);
    }
    draw.push(translate);
    batch.rule(&chain, draw);
    batch.add(&sets.tiers, vec![Element::goto(tier.0.to_ne_bytes().to_vec(), &chain)]);
}

fn guard_chain(frontend: &Frontend) -> String {
    let address: String = octets(frontend.addr).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{PREFIX}guard-{address}-{}-{}", frontend.protocol as u8, frontend.port)
}

/// Writes the chain that lets only `sources` reach `frontend`, and with `new` its entry in the verdict map.
pub fn guard(batch: &mut Batch, frontend: &Frontend, sources: &BTreeSet<Cidr>, new: bool) {
    let chain = guard_chain(frontend);
    batch.chain(Chain::regular(&chain));
    batch.flush_chain(&chain);
    for net in sources {
        batch.rule(&chain, vec![Expr::Source { net: *net, inside: true }, Expr::Return]);
    }
    batch.rule(&chain, vec![Expr::Drop]);
    if new {
        let guards = Sets::new(frontend.addr.is_ipv6()).guards;
        batch.add(&guards, vec![Element::goto(frontend_key(frontend), &chain)]);
    }
}

/// Removes what [`guard`] wrote.
pub fn unguard(batch: &mut Batch, frontend: &Frontend) {
    let chain = guard_chain(frontend);
    let guards = Sets::new(frontend.addr.is_ipv6()).guards;
    batch.delete(&guards, vec![Element::goto(frontend_key(frontend), &chain)]);
    batch.flush_chain(&chain);
    batch.delete_chain(&chain);
}
