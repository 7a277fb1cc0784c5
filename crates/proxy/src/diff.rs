//! From what the kernel holds to what it should hold, as element changes; pure.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use network::Cidr;

use crate::plan::{Dirty, Frontend, MAX_BACKENDS, Planner, Protocol, Refusal, Target};

/// The first index of endpoints for clients inside the cluster; below are those for everyone.
pub const INSIDE: u32 = MAX_BACKENDS as u32 + 1;

/// How a frontend's packets are treated; the number that the frontend map holds.
///
/// Bits: 0-11 number of endpoints, 12 masquerade, 13 node port, 14-30 affinity timeout in seconds (0: none), 31 for
/// clients inside the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tier(pub u32);

impl Tier {
    /// The tier of a target that has endpoints.
    pub fn of(frontend: &Frontend, target: &Target) -> Self {
        let mut bits = (target.backends.len() as u32) & 0xfff;
        bits |= u32::from(target.masquerade) << 12;
        bits |= u32::from(frontend.is_node_port()) << 13;
        Self(bits | (target.affinity.unwrap_or(0) & 0x1_ffff) << 14)
    }

    /// The tier for clients inside the cluster, of a target that leads them to other endpoints.
    fn inside(frontend: &Frontend, target: &Target) -> Option<Self> {
        let count = target.inside.as_ref()?.len() as u32;
        let bits = Self::of(frontend, target).0 & !0x1fff;
        Some(Self(bits | count & 0xfff | 1 << 31))
    }

    /// Number of endpoints.
    pub fn backends(self) -> u32 {
        self.0 & 0xfff
    }

    /// Whether clients are hidden behind the node.
    pub fn masquerade(self) -> bool {
        self.0 & 1 << 12 != 0
    }

    /// Whether the key has the unspecified address in place of the packet's destination.
    pub fn node_port(self) -> bool {
        self.0 & 1 << 13 != 0
    }

    /// Affinity timeout in seconds, 0 for none.
    pub fn affinity(self) -> u32 {
        self.0 >> 14 & 0x1_ffff
    }

    /// The index of its first endpoint.
    pub fn first(self) -> u32 {
        if self.is_inside() { INSIDE } else { 0 }
    }

    /// Whether it is for clients inside the cluster.
    pub fn is_inside(self) -> bool {
        self.0 >> 31 != 0
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.backends())?;
        if self.masquerade() {
            f.write_str("-masq")?;
        }
        if self.node_port() {
            f.write_str("-node")?;
        }
        if self.affinity() > 0 {
            write!(f, "-aff{}", self.affinity())?;
        }
        if self.is_inside() {
            f.write_str("-inside")?;
        }
        Ok(())
    }
}

/// An element of one of our maps and sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Entry {
    /// A frontend and its tier.
    Service(Frontend, Tier),
    /// A frontend and its tier for clients inside the cluster.
    Inside(Frontend, Tier),
    /// The endpoint of a frontend at an index.
    Endpoint(Frontend, u32, SocketAddr),
    /// A frontend without endpoints.
    Refused(Frontend, Refusal),
    /// An address that may reach itself.
    Hairpin(IpAddr),
    /// A frontend that IPVS serves.
    Led(Frontend),
    /// A frontend that IPVS serves, whose clients are hidden behind the node.
    Masked(Frontend),
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(frontend, tier) | Self::Inside(frontend, tier) => {
                write!(f, "{frontend} = tier {tier}")
            }
            Self::Endpoint(frontend, index, addr) => write!(f, "{frontend} #{index} = {addr}"),
            Self::Refused(frontend, Refusal::Reject) => write!(f, "{frontend} rejected"),
            Self::Refused(frontend, Refusal::Drop) => write!(f, "{frontend} dropped"),
            Self::Hairpin(addr) => write!(f, "hairpin {addr}"),
            Self::Led(frontend) => write!(f, "{frontend} led to IPVS"),
            Self::Masked(frontend) => write!(f, "{frontend} masked"),
        }
    }
}

/// Changes that belong together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Tiers that need a chain (IPv6 or not, tier).
    pub tiers: BTreeSet<(bool, Tier)>,
    /// Frontends that only these clients may reach; whether the guard is new.
    pub guard: Vec<(Frontend, BTreeSet<Cidr>, bool)>,
    /// Frontends that everyone may reach again.
    pub unguard: Vec<Frontend>,
    /// Elements to delete.
    pub delete: Vec<Entry>,
    /// Elements to add, after the deletions.
    pub add: Vec<Entry>,
    /// Endpoints that went from a frontend with affinity.
    pub forget: Vec<(Frontend, SocketAddr)>,
    /// UDP frontends whose old connections may lead astray.
    pub udp: BTreeSet<Frontend>,
}

impl Changes {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        let quiet = self.guard.is_empty() && self.unguard.is_empty();
        quiet && self.delete.is_empty() && self.add.is_empty() && self.tiers.is_empty()
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (v6, tier) in &self.tiers {
            writeln!(f, "tier {}{tier}", if *v6 { "6/" } else { "4/" })?;
        }
        for (frontend, sources, _) in &self.guard {
            let sources: Vec<String> = sources.iter().map(ToString::to_string).collect();
            writeln!(f, "guard {frontend}: {}", sources.join(" "))?;
        }
        for frontend in &self.unguard {
            writeln!(f, "unguard {frontend}")?;
        }
        for entry in &self.delete {
            writeln!(f, "- {entry}")?;
        }
        for entry in &self.add {
            writeln!(f, "+ {entry}")?;
        }
        for (frontend, addr) in &self.forget {
            writeln!(f, "forget {frontend} at {addr}")?;
        }
        for frontend in &self.udp {
            writeln!(f, "look at connections of {frontend}")?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Slots {
    tier: Option<Tier>,
    inside: Option<Tier>,
    refusal: BTreeSet<Refusal>,
    /// Endpoints by index; an index may be missing only in a table that someone else changed.
    backends: Vec<Option<SocketAddr>>,
    /// The same from index [`INSIDE`] on.
    insiders: Vec<Option<SocketAddr>>,
    guard: Option<Guard>,
    /// IPVS serves it, with these endpoints.
    led: bool,
    masked: bool,
    servers: BTreeSet<SocketAddr>,
}

/// Who may reach a frontend.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Guard {
    /// Read back: there is one, of what an earlier process knew.
    Unknown,
    Sources(BTreeSet<Cidr>),
}

/// What the kernel holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Programmed {
    frontends: HashMap<Frontend, Slots>,
    hairpin: BTreeSet<IpAddr>,
    tiers: BTreeSet<(bool, Tier)>,
    /// IPVS is to serve frontends, and the maps only clients inside the cluster that are led elsewhere.
    by_ipvs: bool,
}

impl Programmed {
    /// Nothing, where IPVS is to serve frontends.
    pub fn by_ipvs() -> Self {
        Self { by_ipvs: true, ..Self::default() }
    }

    /// Notes an element that was read back or added.
    pub fn insert(&mut self, entry: Entry) {
        match entry {
            Entry::Service(frontend, tier) => self.frontends.entry(frontend).or_default().tier = Some(tier),
            Entry::Inside(frontend, tier) => self.frontends.entry(frontend).or_default().inside = Some(tier),
            Entry::Endpoint(frontend, index, addr) => {
                let slots = self.frontends.entry(frontend).or_default();
                let (backends, index) = match index.checked_sub(INSIDE) {
                    Some(index) => (&mut slots.insiders, index as usize),
                    None => (&mut slots.backends, index as usize),
                };
                // beyond the tier's bits nothing of ours can be; an alien index must not cost memory
                if index <= MAX_BACKENDS {
                    if backends.len() <= index {
                        backends.resize(index + 1, None);
                    }
                    backends[index] = Some(addr);
                }
            }
            Entry::Refused(frontend, refusal) => {
                self.frontends.entry(frontend).or_default().refusal.insert(refusal);
            }
            Entry::Hairpin(addr) => {
                self.hairpin.insert(addr);
            }
            Entry::Led(frontend) => self.frontends.entry(frontend).or_default().led = true,
            Entry::Masked(frontend) => self.frontends.entry(frontend).or_default().masked = true,
        }
    }

    /// Notes an endpoint that IPVS was seen to send packets to.
    pub fn insert_server(&mut self, frontend: Frontend, addr: SocketAddr) {
        self.frontends.entry(frontend).or_default().servers.insert(addr);
    }

    /// Whether packets for a frontend are led to IPVS.
    pub fn is_led(&self, frontend: &Frontend) -> bool {
        self.frontends.get(frontend).is_some_and(|slots| slots.led)
    }

    /// Notes a guard that was read back.
    pub fn insert_guard(&mut self, frontend: Frontend) {
        self.frontends.entry(frontend).or_default().guard = Some(Guard::Unknown);
    }

    /// Notes a tier whose chain exists.
    pub fn insert_tier(&mut self, v6: bool, tier: Tier) {
        self.tiers.insert((v6, tier));
    }

    /// Number of frontends with endpoints.
    pub fn services(&self) -> usize {
        self.frontends.values().filter(|s| s.tier.is_some() || !s.servers.is_empty()).count()
    }

    /// Everything, for a comparison with the whole plan.
    pub fn all(&self) -> Dirty {
        let frontends = self.frontends.keys().copied().collect();
        Dirty { frontends, local: self.hairpin.clone(), health: BTreeSet::new() }
    }

    /// The changes that bring the `dirty` part to what `planner` wants. `self` is then as if they were applied.
    pub fn update(&mut self, planner: &Planner, dirty: &Dirty) -> Changes {
        let mut changes = Changes::default();
        for frontend in &dirty.frontends {
            self.update_frontend(frontend, planner.target(frontend), &mut changes);
        }
        for addr in &dirty.local {
            if planner.is_local(addr) {
                if self.hairpin.insert(*addr) {
                    changes.add.push(Entry::Hairpin(*addr));
                }
            } else if self.hairpin.remove(addr) {
                changes.delete.push(Entry::Hairpin(*addr));
            }
        }
        changes
    }

    fn update_frontend(&mut self, frontend: &Frontend, target: Option<&Target>, changes: &mut Changes) {
        let old = self.frontends.remove(frontend).unwrap_or_default();
        let mut new = Slots::default();
        if let Some(target) = target {
            if target.backends.is_empty() {
                new.refusal.insert(target.refusal);
            } else if !self.by_ipvs {
                new.tier = Some(Tier::of(frontend, target));
                new.backends = assign(&old.backends, &target.backends);
            }
            if let Some(inside) = &target.inside {
                new.inside = Tier::inside(frontend, target);
                new.insiders = assign(&old.insiders, inside);
            }
            new.guard = target.sources.clone().map(Guard::Sources);
            if self.by_ipvs {
                // without endpoints too: connections of those that go are led there still
                (new.led, new.masked) = (true, target.masquerade);
                new.servers = target.backends.iter().copied().collect();
            }
        }
        for tier in [new.tier, new.inside].into_iter().flatten() {
            if self.tiers.insert((frontend.addr.is_ipv6(), tier)) {
                changes.tiers.insert((frontend.addr.is_ipv6(), tier));
            }
        }
        if old.tier != new.tier {
            changes.delete.extend(old.tier.map(|t| Entry::Service(*frontend, t)));
            changes.add.extend(new.tier.map(|t| Entry::Service(*frontend, t)));
        }
        if old.inside != new.inside {
            changes.delete.extend(old.inside.map(|t| Entry::Inside(*frontend, t)));
            changes.add.extend(new.inside.map(|t| Entry::Inside(*frontend, t)));
        }
        for (was, is, entry) in
            [(old.led, new.led, Entry::Led(*frontend)), (old.masked, new.masked, Entry::Masked(*frontend))]
        {
            match (was, is) {
                (true, false) => changes.delete.push(entry),
                (false, true) => changes.add.push(entry),
                _ => {}
            }
        }
        for (first, was, is) in [(0, &old.backends, &new.backends), (INSIDE, &old.insiders, &new.insiders)] {
            for index in 0..was.len().max(is.len()) {
                let at = |slots: &Vec<Option<SocketAddr>>| slots.get(index).copied().flatten();
                let (was, is) = (at(was), at(is));
                if was != is {
                    let index = first + index as u32;
                    changes.delete.extend(was.map(|a| Entry::Endpoint(*frontend, index, a)));
                    changes.add.extend(is.map(|a| Entry::Endpoint(*frontend, index, a)));
                }
            }
        }
        match (&old.guard, &new.guard) {
            (Some(_), None) => changes.unguard.push(*frontend),
            (was, Some(Guard::Sources(sources))) if *was != new.guard => {
                changes.guard.push((*frontend, sources.clone(), was.is_none()));
            }
            _ => {}
        }
        let refused = |r: &Refusal| Entry::Refused(*frontend, *r);
        changes.delete.extend(old.refusal.difference(&new.refusal).map(refused));
        changes.add.extend(new.refusal.difference(&old.refusal).map(refused));

        let stays: BTreeSet<SocketAddr> = new.all().collect();
        let gone: Vec<SocketAddr> = old.all().filter(|a| !stays.contains(a)).collect();
        if frontend.protocol == Protocol::Udp
            && (!gone.is_empty()
                || old.tier.is_none() != new.tier.is_none()
                || old.servers.is_empty() != new.servers.is_empty()
                || old.inside.is_none() != new.inside.is_none())
        {
            changes.udp.insert(*frontend);
        }
        if old.tier.or(old.inside).is_some_and(|t| t.affinity() > 0) {
            changes.forget.extend(gone.into_iter().map(|a| (*frontend, a)));
        }
        if new != Slots::default() {
            self.frontends.insert(*frontend, new);
        }
    }

    /// The endpoints of a frontend that packets can be sent to.
    pub fn backends(&self, frontend: &Frontend) -> impl Iterator<Item = SocketAddr> + '_ {
        self.frontends.get(frontend).into_iter().flat_map(Slots::all)
    }
}

impl Slots {
    /// All endpoints, for whomever.
    fn all(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.backends.iter().chain(&self.insiders).flatten().chain(&self.servers).copied()
    }
}

/// Gives every endpoint an index from 0 up without gaps; those that have a usable one keep it, so that as few
/// elements as possible change.
fn assign(old: &[Option<SocketAddr>], wanted: &[SocketAddr]) -> Vec<Option<SocketAddr>> {
    if old.is_empty() {
        return wanted.iter().copied().map(Some).collect();
    }
    let mut slots = vec![None; wanted.len()];
    let mut rest: BTreeSet<SocketAddr> = wanted.iter().copied().collect();
    for (slot, addr) in slots.iter_mut().zip(old) {
        if let Some(addr) = addr
            && rest.remove(addr)
        {
            *slot = Some(*addr);
        }
    }
    let mut rest = rest.into_iter();
    for slot in slots.iter_mut().filter(|s| s.is_none()) {
        *slot = rest.next();
    }
    slots
}
