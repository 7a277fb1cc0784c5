//! From what the kernel holds to what it should hold, as element changes; pure.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::plan::{Dirty, Frontend, Planner, Protocol, Refusal, Target};

/// How a frontend's packets are treated; the number that the frontend map holds.
///
/// Bits: 0-11 number of endpoints, 12 masquerade, 13 node port, 14-31 affinity timeout in seconds (0: none).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tier(pub u32);

impl Tier {
    /// The tier of a target that has endpoints.
    pub fn of(frontend: &Frontend, target: &Target) -> Self {
        let mut bits = (target.backends.len() as u32) & 0xfff;
        bits |= u32::from(target.masquerade) << 12;
        bits |= u32::from(frontend.is_node_port()) << 13;
        Self(bits | target.affinity.unwrap_or(0) << 14)
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
        self.0 >> 14
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
        Ok(())
    }
}

/// An element of one of our maps and sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Entry {
    /// A frontend and its tier.
    Service(Frontend, Tier),
    /// The endpoint of a frontend at an index.
    Endpoint(Frontend, u32, SocketAddr),
    /// A frontend without endpoints.
    Refused(Frontend, Refusal),
    /// An address that may reach itself.
    Hairpin(IpAddr),
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(frontend, tier) => write!(f, "{frontend} = tier {tier}"),
            Self::Endpoint(frontend, index, addr) => write!(f, "{frontend} #{index} = {addr}"),
            Self::Refused(frontend, Refusal::Reject) => write!(f, "{frontend} rejected"),
            Self::Refused(frontend, Refusal::Drop) => write!(f, "{frontend} dropped"),
            Self::Hairpin(addr) => write!(f, "hairpin {addr}"),
        }
    }
}

/// Changes that belong together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Tiers that need a chain (IPv6 or not, tier).
    pub tiers: BTreeSet<(bool, Tier)>,
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
        self.delete.is_empty() && self.add.is_empty() && self.tiers.is_empty()
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (v6, tier) in &self.tiers {
            writeln!(f, "tier {}{tier}", if *v6 { "6/" } else { "4/" })?;
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
    refusal: BTreeSet<Refusal>,
    /// Endpoints by index; an index may be missing only in a table that someone else changed.
    backends: Vec<Option<SocketAddr>>,
}

/// What the kernel holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Programmed {
    frontends: HashMap<Frontend, Slots>,
    hairpin: BTreeSet<IpAddr>,
    tiers: BTreeSet<(bool, Tier)>,
}

impl Programmed {
    /// Notes an element that was read back or added.
    pub fn insert(&mut self, entry: Entry) {
        match entry {
            Entry::Service(frontend, tier) => self.frontends.entry(frontend).or_default().tier = Some(tier),
            Entry::Endpoint(frontend, index, addr) => {
                let backends = &mut self.frontends.entry(frontend).or_default().backends;
                let index = index as usize;
                // beyond the tier's bits nothing of ours can be; an alien index must not cost memory
                if index <= crate::plan::MAX_BACKENDS {
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
        }
    }

    /// Notes a tier whose chain exists.
    pub fn insert_tier(&mut self, v6: bool, tier: Tier) {
        self.tiers.insert((v6, tier));
    }

    /// Number of frontends with endpoints.
    pub fn services(&self) -> usize {
        self.frontends.values().filter(|s| s.tier.is_some()).count()
    }

    /// Everything, for a comparison with the whole plan.
    pub fn all(&self) -> Dirty {
        Dirty { frontends: self.frontends.keys().copied().collect(), local: self.hairpin.clone() }
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
            } else {
                new.tier = Some(Tier::of(frontend, target));
                new.backends = assign(&old.backends, &target.backends);
            }
        }
        if let Some(tier) = new.tier
            && self.tiers.insert((frontend.addr.is_ipv6(), tier))
        {
            changes.tiers.insert((frontend.addr.is_ipv6(), tier));
        }
        if old.tier != new.tier {
            changes.delete.extend(old.tier.map(|t| Entry::Service(*frontend, t)));
            changes.add.extend(new.tier.map(|t| Entry::Service(*frontend, t)));
        }
        for index in 0..old.backends.len().max(new.backends.len()) {
            let at = |slots: &Slots| slots.backends.get(index).copied().flatten();
            let (was, is) = (at(&old), at(&new));
            if was != is {
                changes.delete.extend(was.map(|a| Entry::Endpoint(*frontend, index as u32, a)));
                changes.add.extend(is.map(|a| Entry::Endpoint(*frontend, index as u32, a)));
            }
        }
        let refused = |r: &Refusal| Entry::Refused(*frontend, *r);
        changes.delete.extend(old.refusal.difference(&new.refusal).map(refused));
        changes.add.extend(new.refusal.difference(&old.refusal).map(refused));

        let gone: Vec<SocketAddr> =
            old.backends.iter().flatten().filter(|a| !new.backends.contains(&Some(**a))).copied().collect();
        if frontend.protocol == Protocol::Udp
            && (!gone.is_empty() || old.tier.is_none() != new.tier.is_none())
        {
            changes.udp.insert(*frontend);
        }
        if old.tier.is_some_and(|t| t.affinity() > 0) {
            changes.forget.extend(gone.into_iter().map(|a| (*frontend, a)));
        }
        if new != Slots::default() {
            self.frontends.insert(*frontend, new);
        }
    }

    /// The endpoints of a frontend that packets can be sent to.
    pub fn backends(&self, frontend: &Frontend) -> impl Iterator<Item = SocketAddr> + '_ {
        self.frontends.get(frontend).into_iter().flat_map(|s| s.backends.iter().flatten().copied())
    }
}

/// Gives every endpoint an index from 0 up without gaps; those that have a usable one keep it, so that as few
/// elements as possible change.
fn assign(old: &[Option<SocketAddr>], wanted: &BTreeSet<SocketAddr>) -> Vec<Option<SocketAddr>> {
    let mut slots = vec![None; wanted.len()];
    let mut rest = wanted.clone();
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
