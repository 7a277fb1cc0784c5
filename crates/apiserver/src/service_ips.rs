//! The pool of service addresses and node ports: who has which is kept in two bitmaps, made from the stored Services and
//! following them.
//!
//! A write takes what it needs as a [`Taken`]; dropped without [`Taken::keep`] everything goes back, so that a write
//! that fails later (validation, a conflict) leaves nothing behind. The pool is this server's view; between several
//! servers the store decides, see [`crate::service_claims`].

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;

/// Node ports are given out from here...
const FIRST_PORT: u16 = 30_000;
/// ...to here.
const LAST_PORT: u16 = 32_767;

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

/// A set of numbers below a bound, with a random place to start looking: neighbours in time get no neighbours in
/// number, and what was given back is not given out again at once.
struct Bitmap {
    words: Vec<u64>,
    size: u32,
    /// Numbers below are only given to who asks for them by name, while others are left.
    reserved: u32,
}

impl Bitmap {
    fn new(size: u32, reserved: u32) -> Self {
        Self { words: vec![0; size.div_ceil(64) as usize], size, reserved }
    }

    fn has(&self, n: u32) -> bool {
        self.words[(n / 64) as usize] & (1 << (n % 64)) != 0
    }

    fn set(&mut self, n: u32, on: bool) {
        let bit = 1 << (n % 64);
        let word = &mut self.words[(n / 64) as usize];
        *word = if on { *word | bit } else { *word & !bit };
    }

    fn take(&mut self, n: u32) -> Result<(), Refusal> {
        if n >= self.size {
            return Err(Refusal::OutOfRange);
        }
        if self.has(n) {
            return Err(Refusal::Allocated);
        }
        self.set(n, true);
        Ok(())
    }

    fn take_any(&mut self) -> Result<u32, Refusal> {
        let upper = self.size.saturating_sub(self.reserved);
        if upper > 0 {
            let start = rand::random_range(0..upper);
            for i in 0..upper {
                let n = self.reserved + (start + i) % upper;
                if !self.has(n) {
                    self.set(n, true);
                    return Ok(n);
                }
            }
        }
        for n in 0..self.reserved.min(self.size) {
            if !self.has(n) {
                self.set(n, true);
                return Ok(n);
            }
        }
        Err(Refusal::Full)
    }
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
    addresses: Bitmap,
    ports: Bitmap,
    owners: HashMap<Claim, Owner>,
    writes: u64,
}

/// Service addresses (one IPv4 range) and node ports.
pub struct ServiceIps {
    /// The range's first usable address and its text form.
    base: u32,
    range: String,
    state: Mutex<State>,
}

impl ServiceIps {
    /// A pool over an IPv4 range, for example `10.96.0.0/16`; `None` where that is no such range or too small.
    pub fn new(range: &str) -> Option<Self> {
        let (ip, bits) = range.split_once('/')?;
        let (ip, bits): (Ipv4Addr, u32) = (ip.parse().ok()?, bits.parse().ok()?);
        if !(8..=30).contains(&bits) {
            return None;
        }
        // Neither the network's own address nor the broadcast address.
        let size = (1u32 << (32 - bits)) - 2;
        let base = (u32::from(ip) & (u32::MAX << (32 - bits))) + 1;
        let reserved = (size / 16).clamp(16, 256).min(size / 2);
        let ports = u32::from(LAST_PORT - FIRST_PORT) + 1;
        let state = State {
            addresses: Bitmap::new(size, reserved),
            ports: Bitmap::new(ports, 86),
            owners: HashMap::new(),
            writes: 0,
        };
        Some(Self { base, range: range.to_owned(), state: Mutex::new(state) })
    }

    /// The range's text.
    pub fn range(&self) -> &str {
        &self.range
    }

    /// The first address: the API server's own service.
    pub fn first(&self) -> IpAddr {
        IpAddr::V4(self.base.into())
    }

    /// Marks what an existing Service has.
    pub fn restore(&self, service: &Value) {
        let mut state = self.state.lock();
        for claim in claims(service) {
            // Two services with one address (a store edited by hand) share the mark.
            self.mark(&mut state, claim, true);
            state.owners.insert(claim, Owner::Service(uid(service)));
        }
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
        let mut state = self.state.lock();
        let held: Vec<Claim> = state.owners.keys().copied().collect();
        for claim in held {
            if matches!(state.owners.get(&claim), Some(Owner::Service(_))) {
                state.owners.remove(&claim);
                self.mark(&mut state, claim, false);
            }
        }
        drop(state);
        services.for_each(|service| self.restore(service));
    }

    /// A transaction that takes from this pool.
    pub fn begin(&self) -> Taken<'_> {
        let mut state = self.state.lock();
        state.writes += 1;
        let owner = Owner::Write(state.writes);
        Taken { pool: self, owner, taken: Vec::new(), chosen: Vec::new(), obsolete: Vec::new() }
    }

    fn index(&self, ip: IpAddr) -> Result<u32, Refusal> {
        match ip {
            IpAddr::V4(v4) => u32::from(v4).checked_sub(self.base).ok_or(Refusal::OutOfRange),
            IpAddr::V6(_) => Err(Refusal::OutOfRange),
        }
    }

    fn mark(&self, state: &mut State, claim: Claim, on: bool) {
        let (bitmap, index) = match claim {
            Claim::Address(ip) => (&mut state.addresses, self.index(ip)),
            Claim::Port(port) => (&mut state.ports, port_index(port)),
        };
        if let Ok(n) = index
            && n < bitmap.size
        {
            bitmap.set(n, on);
        }
    }

    fn release_all(&self, claims: impl IntoIterator<Item = Claim>, owner: &Owner) {
        let mut state = self.state.lock();
        for claim in claims {
            if state.owners.get(&claim) == Some(owner) {
                state.owners.remove(&claim);
                self.mark(&mut state, claim, false);
            }
        }
    }
}

fn port_index(port: u16) -> Result<u32, Refusal> {
    if port > LAST_PORT {
        return Err(Refusal::OutOfRange);
    }
    port.checked_sub(FIRST_PORT).map(u32::from).ok_or(Refusal::OutOfRange)
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
    /// The pool's range.
    pub fn range(&self) -> &str {
        self.pool.range()
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
        let n = self.pool.index(ip)?;
        self.take(Claim::Address(ip), |state| state.addresses.take(n))
    }

    /// Any address.
    pub fn any_address(&mut self) -> Result<IpAddr, Refusal> {
        let n = self.pool.state.lock().addresses.take_any()?;
        let ip = IpAddr::V4((self.pool.base + n).into());
        self.chosen.push(Claim::Address(ip));
        self.take(Claim::Address(ip), |_| Ok(())).map(|()| ip)
    }

    /// This node port.
    pub fn port(&mut self, port: u16) -> Result<(), Refusal> {
        let n = port_index(port)?;
        self.take(Claim::Port(port), |state| state.ports.take(n))
    }

    /// Any node port.
    pub fn any_port(&mut self) -> Result<u16, Refusal> {
        let n = self.pool.state.lock().ports.take_any()?;
        let port = FIRST_PORT + n as u16;
        self.chosen.push(Claim::Port(port));
        self.take(Claim::Port(port), |_| Ok(())).map(|()| port)
    }

    /// Another one in place of `lost`, which turned out to be another server's; `None` where it was asked for by name.
    /// `lost` is not chosen again by this write.
    pub fn instead_of(&mut self, lost: Claim) -> Option<Result<Claim, Refusal>> {
        self.chosen.contains(&lost).then(|| match lost {
            Claim::Address(_) => self.any_address().map(Claim::Address),
            Claim::Port(_) => self.any_port().map(Claim::Port),
        })
    }

    fn take(
        &mut self,
        claim: Claim,
        mark: impl FnOnce(&mut State) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let mut state = self.pool.state.lock();
        mark(&mut state)?;
        state.owners.insert(claim, self.owner.clone());
        self.taken.push(claim);
        Ok(())
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
        ServiceIps::new("10.96.0.0/16").unwrap()
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
        assert_eq!(pool.begin().address(pool.first()), Err(Refusal::Allocated));
        assert_eq!(pool.begin().port(30_005), Err(Refusal::Allocated));
        pool.release(&service);
        assert_eq!(pool.begin().port(30_005), Ok(()));
    }

    #[test]
    fn foreign_numbers_are_out_of_range() {
        let pool = pool();
        assert_eq!(pool.begin().address("1.2.3.4".parse().unwrap()), Err(Refusal::OutOfRange));
        assert_eq!(pool.begin().port(80), Err(Refusal::OutOfRange));
        assert!(ServiceIps::new("fd00::/112").is_none());
    }

    #[test]
    fn a_full_range_says_so() {
        let pool = ServiceIps::new("10.0.0.0/30").unwrap();
        let mut taken = pool.begin();
        assert!(taken.any_address().is_ok() && taken.any_address().is_ok());
        assert_eq!(taken.any_address(), Err(Refusal::Full));
    }
}
