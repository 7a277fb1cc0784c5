//! The pool of service addresses and node ports: who has which, made from the stored Services and following them.
//!
//! A write takes what it needs as a [`Taken`]; dropped without [`Taken::keep`] everything goes back, so that a write
//! that fails later (validation, a conflict) leaves nothing behind. The pool is this server's view; between several
//! servers the store decides, see [`crate::service_claims`].

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;

/// Node ports are given out from here...
const FIRST_PORT: u16 = 30_000;
/// ...to here.
const LAST_PORT: u16 = 32_767;
/// Node ports that are only given to who asks for them by name, while others are left; upstream's.
const RESERVED_PORTS: u128 = 86;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// As Services name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }

    /// That of an address.
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// A range of service addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    text: String,
    family: Family,
    /// The first address that a Service may have, as a number.
    first: u128,
    /// How many it may have.
    size: u128,
    /// How many of the first ones are only given to who asks for them by name, while others are left.
    reserved: u128,
}

impl Range {
    /// From `10.96.0.0/16` or `fd00:10:96::/112`; `None` where that is no range, or has no room for two Services.
    pub fn parse(text: &str) -> Option<Self> {
        let (ip, bits) = text.split_once('/')?;
        let (ip, bits): (IpAddr, u32) = (ip.parse().ok()?, bits.parse().ok()?);
        let family = Family::of(ip);
        let (width, number) = match ip {
            IpAddr::V4(v4) => (32, u128::from(u32::from(v4))),
            IpAddr::V6(v6) => (128, u128::from(v6)),
        };
        // IPv6 ranges of upstream's allocator are /64 at most
        if bits + 2 > width || (family == Family::V6 && bits < 64) || (family == Family::V4 && bits < 8) {
            return None;
        }
        let all = 1_u128 << (width - bits);
        let base = number & !(all - 1);
        // neither the network's own address nor, with IPv4, the broadcast address
        let size = if family == Family::V4 { all - 2 } else { all - 1 };
        // KEP-3070
        let reserved = if all <= 16 { 0 } else { (all / 16).clamp(16, 256).min(size / 2) };
        let text = match family {
            Family::V4 => format!("{}/{bits}", Ipv4Addr::from(base as u32)),
            Family::V6 => format!("{}/{bits}", Ipv6Addr::from(base)),
        };
        Some(Self { text, family, first: base + 1, size, reserved })
    }

    /// `10.96.0.0/16`, with host bits cleared.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The family of its addresses.
    pub fn family(&self) -> Family {
        self.family
    }

    /// The `n`-th address that a Service may have.
    fn nth(&self, n: u128) -> IpAddr {
        match self.family {
            Family::V4 => IpAddr::V4(Ipv4Addr::from((self.first + n) as u32)),
            Family::V6 => IpAddr::V6(Ipv6Addr::from(self.first + n)),
        }
    }

    /// The first address that a Service may have.
    pub fn first(&self) -> IpAddr {
        self.nth(0)
    }

    fn contains(&self, ip: IpAddr) -> bool {
        let number = match ip {
            IpAddr::V4(v4) => u128::from(u32::from(v4)),
            IpAddr::V6(v6) => u128::from(v6),
        };
        Family::of(ip) == self.family && number.checked_sub(self.first).is_some_and(|n| n < self.size)
    }
}

/// Reads ranges, separated by commas: one, or one of each family, the default one first.
pub fn ranges(text: &str) -> Option<Vec<Range>> {
    let ranges: Vec<Range> = text.split(',').map(|part| Range::parse(part.trim())).collect::<Option<_>>()?;
    match ranges.as_slice() {
        [_] => Some(ranges),
        [one, two] if one.family != two.family => Some(ranges),
        _ => None,
    }
}

/// Why an address or port cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is outside of the range.
    #[error("out of range")]
    OutOfRange,
    /// Another service has it.
    #[error("provided IP is already allocated")]
    Allocated,
    /// Nothing is left.
    #[error("range is full")]
    Full,
}

/// A number below `size` that nobody has, at a random place: neighbours in time get no neighbours in number, and what was
/// given back is not given out again at once. Numbers below `reserved` come last. At most `held` numbers are taken.
fn free(size: u128, reserved: u128, held: usize, is_taken: impl Fn(u128) -> bool) -> Option<u128> {
    let open = size - reserved.min(size);
    // among one more than are taken, one is free
    let tries = open.min(held as u128 + 1);
    let start = if open > 0 { rand::random_range(0..open) } else { 0 };
    let later = (0..tries).map(|i| reserved + (start + i) % open);
    later.chain(0..reserved.min(size)).find(|n| !is_taken(*n))
}

/// Who has a number.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Owner {
    /// A write that is under way.
    Write(u64),
    /// The Service with this uid.
    Service(Arc<str>),
}

struct State {
    /// Where addresses are given from: those of the server first.
    ranges: Vec<Range>,
    owners: HashMap<Claim, Owner>,
    writes: u64,
}

/// Service addresses and node ports.
pub struct ServiceIps {
    /// The server's own ranges: one, or one of each family. The first one's family is the default.
    own: Vec<Range>,
    state: Mutex<State>,
}

impl ServiceIps {
    /// A pool over the server's own ranges, see [`ranges`].
    pub fn new(own: Vec<Range>) -> Self {
        let state = State { ranges: own.clone(), owners: HashMap::new(), writes: 0 };
        Self { own, state: Mutex::new(state) }
    }

    /// The families that Services can have; the default one first.
    pub fn families(&self) -> impl Iterator<Item = Family> + '_ {
        self.own.iter().map(|range| range.family)
    }

    /// From now on addresses come from these ranges, too (`ServiceCIDR` objects, KEP-1880).
    pub fn extend(&self, further: impl IntoIterator<Item = Range>) {
        let mut ranges = self.own.clone();
        for range in further {
            if !ranges.contains(&range) {
                ranges.push(range);
            }
        }
        self.state.lock().ranges = ranges;
    }

    /// Marks what an existing Service has.
    pub fn restore(&self, service: &Value) {
        let mut state = self.state.lock();
        let owner = Owner::Service(uid(service));
        // of two services with one address (a store edited by hand) the last has it
        state.owners.extend(claims(service).into_iter().map(|claim| (claim, owner.clone())));
    }

    /// Gives back what a deleted Service had, as long as it still has it.
    pub fn release(&self, service: &Value) {
        self.release_all(claims(service), &Owner::Service(uid(service)));
    }

    /// Gives back what `old` had and `new` has no more, and marks what `new` has.
    pub fn follow(&self, old: Option<&Value>, new: Option<&Value>) {
        if let Some(old) = old {
            let kept = new.map(claims).unwrap_or_default();
            let gone = claims(old).into_iter().filter(|claim| !kept.contains(claim));
            self.release_all(gone, &Owner::Service(uid(old)));
        }
        if let Some(new) = new {
            self.restore(new);
        }
    }

    /// Makes the pool anew from all Services; what writes have taken stays taken.
    pub fn rebuild<'a>(&self, services: impl Iterator<Item = &'a Value>) {
        self.state.lock().owners.retain(|_, owner| matches!(owner, Owner::Write(_)));
        services.for_each(|service| self.restore(service));
    }

    /// A transaction that takes from this pool.
    pub fn begin(&self) -> Taken<'_> {
        let mut state = self.state.lock();
        state.writes += 1;
        let owner = Owner::Write(state.writes);
        Taken { pool: self, owner, taken: Vec::new(), chosen: Vec::new(), obsolete: Vec::new() }
    }

    fn release_all(&self, claims: impl IntoIterator<Item = Claim>, owner: &Owner) {
        let mut state = self.state.lock();
        for claim in claims {
            if state.owners.get(&claim) == Some(owner) {
                state.owners.remove(&claim);
            }
        }
    }
}

fn uid(service: &Value) -> Arc<str> {
    service["metadata"]["uid"].as_str().unwrap_or_default().into()
}

/// One address or port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Claim {
    /// A cluster IP.
    Address(IpAddr),
    /// A node port, that of health checks included.
    Port(u16),
}

/// What a Service has, each once.
pub fn claims(service: &Value) -> Vec<Claim> {
    let spec = &service["spec"];
    let ips = spec["clusterIPs"].as_array().into_iter().flatten();
    let mut all: Vec<Claim> = ips.filter_map(|ip| ip.as_str()?.parse().ok()).map(Claim::Address).collect();
    let ports = spec["ports"].as_array().into_iter().flatten().map(|p| &p["nodePort"]);
    for port in ports.chain([&spec["healthCheckNodePort"]]) {
        if let Some(port) = port.as_u64().and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0)
            && !all.contains(&Claim::Port(port))
        {
            all.push(Claim::Port(port));
        }
    }
    all
}

/// What one write took from the pool.
#[must_use = "dropped, it gives everything back"]
pub struct Taken<'a> {
    pool: &'a ServiceIps,
    owner: Owner,
    taken: Vec<Claim>,
    /// Those of `taken` that nobody asked for by name.
    chosen: Vec<Claim>,
    obsolete: Vec<Claim>,
}

impl Taken<'_> {
    /// The families that Services can have; the default one first.
    pub fn families(&self) -> Vec<Family> {
        self.pool.families().collect()
    }

    /// What was taken.
    pub fn claims(&self) -> &[Claim] {
        &self.taken
    }

    /// What goes back when the write is kept.
    pub fn obsolete(&self) -> &[Claim] {
        &self.obsolete
    }

    /// This address.
    pub fn address(&mut self, ip: IpAddr) -> Result<(), Refusal> {
        let mut state = self.pool.state.lock();
        if !state.ranges.iter().any(|range| range.contains(ip)) {
            return Err(Refusal::OutOfRange);
        }
        take(&mut state, &self.owner, &mut self.taken, Claim::Address(ip))
    }

    /// Any address of this family.
    pub fn any_address(&mut self, family: Family) -> Result<IpAddr, Refusal> {
        let mut state = self.pool.state.lock();
        let (owners, held) = (&state.owners, state.owners.len());
        let found = state.ranges.iter().filter(|range| range.family == family).find_map(|range| {
            let is_taken = |n| owners.contains_key(&Claim::Address(range.nth(n)));
            free(range.size, range.reserved, held, is_taken).map(|n| range.nth(n))
        });
        let ip = found.ok_or(Refusal::Full)?;
        self.chosen.push(Claim::Address(ip));
        take(&mut state, &self.owner, &mut self.taken, Claim::Address(ip)).map(|()| ip)
    }

    /// This node port.
    pub fn port(&mut self, port: u16) -> Result<(), Refusal> {
        if !(FIRST_PORT..=LAST_PORT).contains(&port) {
            return Err(Refusal::OutOfRange);
        }
        take(&mut self.pool.state.lock(), &self.owner, &mut self.taken, Claim::Port(port))
    }

    /// Any node port.
    pub fn any_port(&mut self) -> Result<u16, Refusal> {
        let mut state = self.pool.state.lock();
        let size = u128::from(LAST_PORT - FIRST_PORT) + 1;
        let is_taken = |n| state.owners.contains_key(&Claim::Port(FIRST_PORT + n as u16));
        let n = free(size, RESERVED_PORTS, state.owners.len(), is_taken).ok_or(Refusal::Full)?;
        let port = FIRST_PORT + n as u16;
        self.chosen.push(Claim::Port(port));
        take(&mut state, &self.owner, &mut self.taken, Claim::Port(port)).map(|()| port)
    }

    /// Another one in place of `lost`, which turned out to be another server's; `None` where it was asked for by name.
    /// `lost` is not chosen again by this write.
    pub fn instead_of(&mut self, lost: Claim) -> Option<Result<Claim, Refusal>> {
        self.chosen.contains(&lost).then(|| match lost {
            Claim::Address(ip) => self.any_address(Family::of(ip)).map(Claim::Address),
            Claim::Port(_) => self.any_port().map(Claim::Port),
        })
    }

    /// What `old` had and `new` has no more goes back when the write is kept.
    pub fn replaces(&mut self, old: &Value, new: &Value) {
        let kept = claims(new);
        self.obsolete.extend(claims(old).into_iter().filter(|c| !kept.contains(c)));
    }

    /// The write is stored as `service`: what it took and has is the service's.
    pub fn keep(mut self, service: &Value) {
        let owner = Owner::Service(uid(service));
        let has = claims(service);
        {
            let mut state = self.pool.state.lock();
            for claim in self.taken.extract_if(.., |claim| has.contains(claim)) {
                state.owners.insert(claim, owner.clone());
            }
        }
        self.pool.release_all(std::mem::take(&mut self.obsolete), &owner);
    }
}

fn take(state: &mut State, owner: &Owner, taken: &mut Vec<Claim>, claim: Claim) -> Result<(), Refusal> {
    if state.owners.contains_key(&claim) {
        return Err(Refusal::Allocated);
    }
    state.owners.insert(claim, owner.clone());
    taken.push(claim);
    Ok(())
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.pool.release_all(std::mem::take(&mut self.taken), &self.owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pool() -> ServiceIps {
        ServiceIps::new(ranges("10.96.0.0/16").unwrap())
    }

    #[test]
    fn a_dropped_write_gives_everything_back() {
        let pool = pool();
        let ip: IpAddr = "10.96.0.10".parse().unwrap();
        {
            let mut taken = pool.begin();
            taken.address(ip).unwrap();
            assert_eq!(pool.begin().address(ip), Err(Refusal::Allocated));
        }
        let mut taken = pool.begin();
        taken.address(ip).unwrap();
        taken.keep(&json!({"metadata": {"uid": "u"}, "spec": {"clusterIPs": ["10.96.0.10"]}}));
        assert_eq!(pool.begin().address(ip), Err(Refusal::Allocated));
    }

    #[test]
    fn a_late_deletion_does_not_take_from_the_next_owner() {
        let pool = pool();
        let service = |uid: &str| json!({"metadata": {"uid": uid}, "spec": {"clusterIPs": ["10.96.0.10"]}});
        pool.restore(&service("old"));
        pool.release(&service("old"));
        let mut taken = pool.begin();
        taken.address("10.96.0.10".parse().unwrap()).unwrap();
        taken.keep(&service("new"));
        pool.follow(Some(&service("old")), None);
        assert_eq!(pool.begin().address("10.96.0.10".parse().unwrap()), Err(Refusal::Allocated));
        pool.rebuild(std::iter::empty());
        assert_eq!(pool.begin().address("10.96.0.10".parse().unwrap()), Ok(()));
    }

    #[test]
    fn stored_services_keep_their_numbers_after_a_restart() {
        let pool = pool();
        let service = json!({"spec": {"clusterIPs": ["10.96.0.1"], "ports": [{"nodePort": 30_005}]}});
        pool.restore(&service);
        assert_eq!(pool.begin().address("10.96.0.1".parse().unwrap()), Err(Refusal::Allocated));
        assert_eq!(pool.begin().port(30_005), Err(Refusal::Allocated));
        pool.release(&service);
        assert_eq!(pool.begin().port(30_005), Ok(()));
    }

    #[test]
    fn foreign_numbers_are_out_of_range() {
        let pool = pool();
        assert_eq!(pool.begin().address("1.2.3.4".parse().unwrap()), Err(Refusal::OutOfRange));
        assert_eq!(pool.begin().port(80), Err(Refusal::OutOfRange));
    }

    #[test]
    fn a_full_range_says_so() {
        let pool = ServiceIps::new(ranges("10.0.0.0/30").unwrap());
        let mut taken = pool.begin();
        assert!(taken.any_address(Family::V4).is_ok() && taken.any_address(Family::V4).is_ok());
        assert_eq!(taken.any_address(Family::V4), Err(Refusal::Full));
    }

    #[test]
    fn each_family_has_its_range_and_further_ranges_come_when_one_is_full() {
        let pool = ServiceIps::new(ranges("10.0.0.0/30, fd00::/126").unwrap());
        assert!(pool.families().eq([Family::V4, Family::V6]));
        let mut taken = pool.begin();
        for _ in 0..3 {
            let ip = taken.any_address(Family::V6).unwrap();
            assert!(Range::parse("fd00::/126").unwrap().contains(ip), "{ip}");
        }
        assert_eq!(taken.any_address(Family::V6), Err(Refusal::Full));
        let further = Range::parse("fd01::/64").unwrap();
        pool.extend([further.clone()]);
        assert!(further.contains(taken.any_address(Family::V6).unwrap()));
        assert_eq!(taken.address("fd01::ffff:1".parse().unwrap()), Ok(()));
        pool.extend([]);
        assert_eq!(taken.any_address(Family::V6), Err(Refusal::Full));
    }

    #[test]
    fn ranges_are_one_or_one_of_each_family() {
        for text in [
            "",
            "10.0.0.0",
            "10.0.0.0/31",
            "10.0.0.0/7",
            "fd00::/63",
            "fd00::/127",
            "10.0.0.0/8,10.1.0.0/16",
            "x/8",
        ] {
            assert_eq!(ranges(text), None, "{text}");
        }
        assert_eq!(ranges("fd00::/112,10.0.0.0/8").unwrap()[0].first().to_string(), "fd00::1");
    }
}
