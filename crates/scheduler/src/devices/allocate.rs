//! Finds devices for claims on one node: a search with steps back over all requests of all claims. Pure.
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::api::resource::v1::{
    AllocationResult, Device, DeviceAllocationConfiguration, DeviceAllocationResult, DeviceConstraint,
    DeviceRequestAllocationResult, ResourceClaim, ResourceSlice,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Amount;

use super::requests::{self, Mode, Want, attribute};
use super::usage::id;
use super::{Devices, PoolKey};
use crate::filter::node_affinity::Selection;
use crate::snapshot::NodeInfo;

/// Devices that one claim gets at most.
const RESULTS: usize = 32;
/// Steps of one search: what is left to try after that is left untried.
const STEPS: usize = 200_000;

/// One claim that is to get devices.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) key: String,
    pub(super) claim: Arc<ResourceClaim>,
    /// By request: the ways to satisfy it.
    pub(super) requests: Vec<Vec<Want>>,
}

/// Alternatives of one request at most.
const ALTERNATIVES: usize = 8;

impl Open {
    /// Whether there is more than one way to satisfy it.
    pub(super) fn has_alternatives(&self) -> bool {
        self.requests.iter().flatten().any(|want| want.name != want.base)
    }

    /// What the chosen alternatives are worth: the first of a request [`ALTERNATIVES`], each later one less.
    pub(super) fn rank(&self, got: &AllocationResult) -> i64 {
        let results = got.devices.iter().flat_map(|d| d.results.iter().flatten());
        let names: Vec<&str> = results.map(|r| r.request.as_str()).collect();
        let worth = |(i, want): (usize, &Want)| {
            let chosen = want.name != want.base && names.contains(&want.name.as_str());
            if chosen { i64::try_from(ALTERNATIVES.saturating_sub(i)).unwrap_or(0) } else { 0 }
        };
        self.requests.iter().flat_map(|r| r.iter().enumerate().map(worth)).sum()
    }

    fn constraints(&self) -> &[DeviceConstraint] {
        self.claim.spec.devices.as_ref().and_then(|d| d.constraints.as_deref()).unwrap_or_default()
    }

    fn name(&self) -> &str {
        self.claim.metadata.name.as_deref().unwrap_or_default()
    }
}

/// What selectors said: by the want and the device (both stay where they are during a decision).
pub(super) type Said = RefCell<HashMap<(*const Want, *const Device), bool>>;

/// A device that the node reaches.
struct Reachable<'a> {
    pool: &'a PoolKey,
    slice: &'a ResourceSlice,
    device: &'a Device,
    id: String,
}

/// A device that was chosen.
struct Pick<'a> {
    claim: usize,
    want: &'a Want,
    device: usize,
    /// Of a shared device.
    consumed: Option<BTreeMap<String, Quantity>>,
}

struct Search<'a> {
    node: &'a str,
    devices: &'a Devices,
    claims: &'a [&'a Open],
    reachable: Vec<Reachable<'a>>,
    doubtful: Doubtful<'a>,
    /// Claim and request, in order.
    order: Vec<(usize, usize)>,
    picks: Vec<Pick<'a>>,
    said: &'a Said,
    steps: usize,
}

/// Devices on `node` for all claims, in their order; `None`: there are not enough of them.
pub(super) fn allocate(
    devices: &Devices,
    node: &NodeInfo,
    claims: &[&Open],
    said: &Said,
) -> Result<Option<Vec<Arc<AllocationResult>>>, String> {
    let (reachable, doubtful) = reach(devices, node);
    let order = claims.iter().enumerate().flat_map(|(c, open)| (0..open.requests.len()).map(move |r| (c, r)));
    let order = order.collect();
    let mut search = Search {
        node: &node.name,
        devices,
        claims,
        reachable,
        doubtful,
        order,
        picks: Vec::new(),
        said,
        steps: 0,
    };
    if !search.request(0)? {
        return Ok(None);
    }
    (0..claims.len()).map(|c| search.result(c).map(Arc::new)).collect::<Result<_, _>>().map(Some)
}

/// How many devices of a class the node reaches, and how many of them are in use; none where a selector does not work.
pub(super) fn totals(devices: &Devices, node: &NodeInfo, class: &str) -> (i64, i64) {
    let Ok(want) = requests::any_of(devices, class) else { return (0, 0) };
    let (mut all, mut used) = (0, 0);
    for reachable in reach(devices, node).0 {
        match want.selects(&reachable.pool.0, reachable.device) {
            Ok(true) => {
                all += 1;
                used += i64::from(devices.usage.of(&reachable.id).is_some());
            }
            Ok(false) => {}
            Err(_) => return (0, 0),
        }
    }
    (all, used)
}

/// Pools of which not all is known, with why.
type Doubtful<'a> = Vec<(&'a PoolKey, &'static str)>;

/// What the node reaches.
fn reach<'a>(devices: &'a Devices, node: &NodeInfo) -> (Vec<Reachable<'a>>, Doubtful<'a>) {
    let mut reachable = Vec::new();
    let mut doubtful = Vec::new();
    let mut pools = devices.pools_for(&node.name);
    // What is ready at once comes before what has to be made ready first.
    pools.sort_by_key(|(_, pool)| pool.binds_later());
    for (key, pool) in pools {
        if pool.incomplete || pool.invalid {
            let why = if pool.incomplete { "is currently being updated" } else { "is currently invalid" };
            doubtful.push((key, why));
            continue;
        }
        for slice in &pool.slices {
            let whole = reaches(
                slice.spec.all_nodes,
                slice.spec.node_name.as_deref(),
                slice.spec.node_selector.as_ref(),
                node,
            );
            let each = slice.spec.per_device_node_selection == Some(true);
            if !whole && !each {
                continue;
            }
            for device in slice.spec.devices.iter().flatten() {
                let own = || {
                    reaches(
                        device.all_nodes,
                        device.node_name.as_deref(),
                        device.node_selector.as_ref(),
                        node,
                    )
                };
                if whole || own() {
                    let id = id(&key.0, &key.1, &device.name);
                    reachable.push(Reachable { pool: key, slice, device, id });
                }
            }
        }
    }
    (reachable, doubtful)
}

fn reaches(all: Option<bool>, name: Option<&str>, selector: Option<&NodeSelector>, node: &NodeInfo) -> bool {
    all == Some(true)
        || name.is_some_and(|n| *n == *node.name)
        || selector.is_some_and(|s| Selection::required(s).allows(node))
}

impl<'a> Search<'a> {
    /// Satisfies the requests from the `at`-th on; what did not work is undone.
    fn request(&mut self, at: usize) -> Result<bool, String> {
        let Some(&(claim, request)) = self.order.get(at) else { return Ok(true) };
        let claims = self.claims;
        for want in &claims[claim].requests[request] {
            let found = match want.mode {
                Mode::Count(count) => self.some(at, claim, want, count, 0)?,
                Mode::All => self.all(at, claim, want)?,
            };
            if found {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// `count` more devices, of those from `from` on, then the other requests.
    fn some(
        &mut self,
        at: usize,
        claim: usize,
        want: &'a Want,
        count: usize,
        from: usize,
    ) -> Result<bool, String> {
        if count == 0 {
            return self.request(at + 1);
        }
        for device in from..self.reachable.len() {
            self.steps += 1;
            if self.steps > STEPS {
                return Err("timed out trying to allocate devices".to_owned());
            }
            if self.selects(want, device)? && self.take(claim, want, device) {
                if self.some(at, claim, want, count - 1, device + 1)? {
                    return Ok(true);
                }
                self.picks.pop();
            }
        }
        Ok(false)
    }

    /// Every device that is selected, then the other requests.
    fn all(&mut self, at: usize, claim: usize, want: &'a Want) -> Result<bool, String> {
        if let Some((pool, why)) = self.doubtful.first() {
            return Err(format!(
                "claim {}, request {}: asks for all devices, but resource pool {}/{} {why}",
                self.claims[claim].name(),
                want.name,
                pool.0,
                pool.1
            ));
        }
        let before = self.picks.len();
        for device in 0..self.reachable.len() {
            if self.selects(want, device)? && !self.take(claim, want, device) {
                self.picks.truncate(before);
                return Ok(false);
            }
        }
        if self.picks.len() > before && self.request(at + 1)? {
            return Ok(true);
        }
        self.picks.truncate(before);
        Ok(false)
    }

    fn selects(&self, want: &'a Want, device: usize) -> Result<bool, String> {
        let reachable = &self.reachable[device];
        let key = (std::ptr::from_ref(want), std::ptr::from_ref(reachable.device));
        if let Some(known) = self.said.borrow().get(&key) {
            return Ok(*known);
        }
        let says = want.selects(&reachable.pool.0, reachable.device)?;
        self.said.borrow_mut().insert(key, says);
        Ok(says)
    }

    /// Picks the device, if it is free and no constraint is against it.
    fn take(&mut self, claim: usize, want: &'a Want, device: usize) -> bool {
        let of_claim = self.picks.iter().filter(|p| p.claim == claim).count();
        let reachable = &self.reachable[device];
        let taints = self.devices.taint_rules.taints(reachable.pool, reachable.device);
        if of_claim >= RESULTS || !want.tolerates(taints) || !self.is_allowed(claim, want, device) {
            return false;
        }
        let shared = reachable.device.allow_multiple_allocations == Some(true);
        let mut consumed = None;
        if !want.admin {
            if shared {
                let Some(amounts) = want.consumes(reachable.device) else { return false };
                if !self.has_room(device, &amounts) {
                    return false;
                }
                consumed = Some(amounts);
            } else if !want.is_enough(reachable.device) || self.is_taken(device) {
                return false;
            }
            // The first who shares a device takes its part of the counters.
            if !self.is_taken(device) && !self.has_counters(device) {
                return false;
            }
        }
        self.picks.push(Pick { claim, want, device, consumed });
        true
    }

    /// Picks that take the device from others.
    fn takers(&self, device: usize) -> impl Iterator<Item = &Pick<'a>> {
        self.picks.iter().filter(move |p| p.device == device && !p.want.admin)
    }

    fn is_taken(&self, device: usize) -> bool {
        self.devices.usage.of(&self.reachable[device].id).is_some() || self.takers(device).next().is_some()
    }

    fn has_room(&self, device: usize, amounts: &BTreeMap<String, Quantity>) -> bool {
        let reachable = &self.reachable[device];
        let used = self.devices.usage.of(&reachable.id);
        amounts.iter().all(|(name, amount)| {
            let whole = reachable
                .device
                .capacity
                .as_ref()
                .and_then(|c| c.get(name)?.value.0.parse::<Quantity>().ok());
            let before = used.and_then(|u| u.consumed.get(name)).copied().unwrap_or(Quantity::ZERO);
            let own = self.takers(device).filter_map(|p| p.consumed.as_ref()?.get(name));
            let sum = own.fold(before.plus(amount), |sum, q| sum.plus(q));
            whole.is_some_and(|whole| sum <= whole)
        })
    }

    /// Whether the pool's counters have what the device takes of them.
    fn has_counters(&self, device: usize) -> bool {
        let reachable = &self.reachable[device];
        let Some(takes) = reachable.device.consumes_counters.as_ref().filter(|c| !c.is_empty()) else {
            return true;
        };
        let Some(pool) = self.devices.pools.get(reachable.pool) else { return false };
        let amount = |q: &Amount| q.0.parse::<Quantity>().unwrap_or(Quantity::ZERO);
        let taken = |set: &str, counter: &str| {
            let others = pool.slices.iter().flat_map(|s| s.spec.devices.iter().flatten()).filter(|d| {
                let id = id(&reachable.pool.0, &reachable.pool.1, &d.name);
                let picked = self.picks.iter().any(|p| !p.want.admin && self.reachable[p.device].id == id);
                picked || self.devices.usage.of(&id).is_some()
            });
            let of = |d: &Device| -> Quantity {
                let sets = d.consumes_counters.iter().flatten().filter(|c| c.counter_set == set);
                let parts = sets.filter_map(|c| c.counters.get(counter)).map(|c| amount(&c.value));
                parts.fold(Quantity::ZERO, |sum, q| sum.plus(&q))
            };
            others.fold(Quantity::ZERO, |sum, d| sum.plus(&of(d)))
        };
        takes.iter().all(|consumption| {
            let mut sets = pool.slices.iter().flat_map(|s| s.spec.shared_counters.iter().flatten());
            let Some(set) = sets.find(|s| s.name == consumption.counter_set) else { return false };
            consumption.counters.iter().all(|(name, counter)| {
                let Some(whole) = set.counters.get(name) else { return false };
                taken(&set.name, name).plus(&amount(&counter.value)) <= amount(&whole.value)
            })
        })
    }

    /// Whether the claim's constraints allow the device beside those that were picked.
    fn is_allowed(&self, claim: usize, want: &Want, device: usize) -> bool {
        let value = |device: usize, name: &str| {
            let reachable = &self.reachable[device];
            attribute(&reachable.pool.0, reachable.device, name)
        };
        self.claims[claim].constraints().iter().filter(|c| want.is_meant(c.requests.as_ref())).all(|c| {
            let others =
                || self.picks.iter().filter(|p| p.claim == claim && p.want.is_meant(c.requests.as_ref()));
            if let Some(name) = &c.match_attribute {
                let Some(own) = value(device, name) else { return false };
                return others().all(|p| value(p.device, name) == Some(own));
            }
            if let Some(name) = &c.distinct_attribute {
                let Some(own) = value(device, name) else { return false };
                return others().all(|p| value(p.device, name) != Some(own));
            }
            // Of a kind that is not known: nobody can say that it is met.
            false
        })
    }

    fn result(&self, claim: usize) -> Result<AllocationResult, String> {
        let open = self.claims[claim];
        let picks: Vec<&Pick<'a>> = self.picks.iter().filter(|p| p.claim == claim).collect();
        fn list<T: Clone>(l: &[T]) -> Option<Vec<T>> {
            if l.is_empty() { None } else { Some(l.to_owned()) }
        }
        let results = picks.iter().map(|p| {
            let reachable = &self.reachable[p.device];
            let shown = |q: &Quantity| Amount(q.to_string());
            let consumed =
                p.consumed.as_ref().map(|c| c.iter().map(|(n, q)| (n.clone(), shown(q))).collect());
            DeviceRequestAllocationResult {
                request: p.want.name.clone(),
                driver: reachable.pool.0.clone(),
                pool: reachable.pool.1.clone(),
                device: reachable.device.name.clone(),
                admin_access: p.want.admin.then_some(true),
                tolerations: list(&p.want.tolerations),
                share_id: p.consumed.is_some().then(share_id),
                consumed_capacity: consumed,
                binding_conditions: reachable.device.binding_conditions.as_deref().and_then(list),
                binding_failure_conditions: reachable
                    .device
                    .binding_failure_conditions
                    .as_deref()
                    .and_then(list),
            }
        });
        let devices = DeviceAllocationResult {
            results: Some(results.collect()).filter(|l: &Vec<_>| !l.is_empty()),
            config: Some(configuration(open, &picks)).filter(|l| !l.is_empty()),
        };
        Ok(AllocationResult {
            devices: Some(devices),
            node_selector: self.selector(&picks)?,
            ..AllocationResult::default()
        })
    }

    /// The nodes that reach all picked devices; `None`: all nodes.
    fn selector(&self, picks: &[&Pick<'a>]) -> Result<Option<NodeSelector>, String> {
        let mut term = NodeSelectorTerm::default();
        // Such a device is brought to the node that it was chosen for.
        if picks.iter().any(|p| self.reachable[p.device].device.binds_to_node == Some(true)) {
            return Ok(Some(only(self.node)));
        }
        for reachable in picks.iter().map(|p| &self.reachable[p.device]) {
            let each = reachable.slice.spec.per_device_node_selection == Some(true);
            let (spec, device) = (&reachable.slice.spec, reachable.device);
            let name = if each { &device.node_name } else { &spec.node_name };
            if let Some(name) = name {
                return Ok(Some(only(name)));
            }
            let selector = if each { &device.node_selector } else { &spec.node_selector };
            match selector.as_ref().map_or(&[][..], |s| &s.node_selector_terms) {
                [] => {}
                [one] => {
                    add(&mut term.match_fields, one.match_fields.as_ref());
                    add(&mut term.match_expressions, one.match_expressions.as_ref());
                }
                more => {
                    return Err(format!("unsupported ResourceSlice.NodeSelector with {} terms", more.len()));
                }
            }
        }
        let some = term.match_fields.is_some() || term.match_expressions.is_some();
        Ok(some.then(|| NodeSelector { node_selector_terms: vec![term] }))
    }
}

/// Selects one node.
fn only(name: &str) -> NodeSelector {
    let own = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![name.to_owned()]),
    };
    let term = NodeSelectorTerm { match_fields: Some(vec![own]), ..NodeSelectorTerm::default() };
    NodeSelector { node_selector_terms: vec![term] }
}

fn add(to: &mut Option<Vec<NodeSelectorRequirement>>, more: Option<&Vec<NodeSelectorRequirement>>) {
    for requirement in more.into_iter().flatten() {
        let list = to.get_or_insert_default();
        if !list.contains(requirement) {
            list.push(requirement.clone());
        }
    }
}

/// Parameters for drivers: of the classes first, then of the claim, which override them.
fn configuration(open: &Open, picks: &[&Pick<'_>]) -> Vec<DeviceAllocationConfiguration> {
    let mut list = Vec::new();
    let mut wants: Vec<&Want> = Vec::new();
    for pick in picks {
        if !wants.iter().any(|w| w.name == pick.want.name) {
            wants.push(pick.want);
        }
    }
    for want in &wants {
        for config in want.class.spec.config.iter().flatten() {
            list.push(DeviceAllocationConfiguration {
                source: "FromClass".to_owned(),
                requests: Some(vec![want.name.clone()]),
                opaque: config.opaque.clone(),
            });
        }
    }
    let own = open.claim.spec.devices.iter().flat_map(|d| d.config.iter().flatten());
    for config in own.filter(|c| wants.iter().any(|w| w.is_meant(c.requests.as_ref()))) {
        list.push(DeviceAllocationConfiguration {
            source: "FromClaim".to_owned(),
            requests: config.requests.clone(),
            opaque: config.opaque.clone(),
        });
    }
    list
}

/// Tells shares of one device apart: a random UUID.
fn share_id() -> String {
    let bits = (rand::random::<u128>() & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
