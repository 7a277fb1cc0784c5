//! DynamicResources: devices as the scheduler sees them — claims, classes and what drivers publish in slices — which of
//! them are in use, and which are promised to claims of pods whose binding is under way.
//! Rule: <https://kubernetes.io/docs/concepts/scheduling-eviction/dynamic-resource-allocation/>
mod allocate;
pub(crate) mod bind;
pub mod extended;
pub(crate) mod feeds;
pub mod needs;
mod readiness;
mod requests;
mod taint_rules;
mod usage;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::Arc;

use client::Change;
use k8s_openapi::api::core::v1::{Pod, PodResourceClaim};
use k8s_openapi::api::resource::v1::{AllocationResult, Device, DeviceClass, ResourceClaim, ResourceSlice};
use k8s_openapi::api::resource::v1beta2::DeviceTaintRule;
use parking_lot::Mutex;

use crate::pod_info::PodInfo;
use crate::snapshot::NodeInfo;
use crate::volumes::Table;
use extended::{ExtendedResources, Made};
use taint_rules::TaintRules;
use usage::Usage;

/// Keeps an allocated claim until it is deallocated.
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// Compiled selectors that are kept.
const COMPILED: usize = 1024;

/// A selector of devices that was compiled.
pub trait Selector: Debug + Send + Sync {
    /// Whether it selects the driver's device; an error: it says nothing of it, and why.
    fn matches(&self, driver: &str, device: &Device) -> Result<bool, String>;
}

/// The language of selectors (CEL), which is not the scheduler's business.
pub trait Selectors: Debug + Send + Sync {
    /// Compiles a selector; an error: why it cannot be used.
    fn compile(&self, expression: &str) -> Result<Arc<dyn Selector>, String>;
}

/// Driver and name of a pool.
type PoolKey = (String, String);

/// All slices of a pool's newest generation.
#[derive(Debug, Default)]
struct Pool {
    slices: Vec<Arc<ResourceSlice>>,
    /// Some of its slices are not here yet.
    incomplete: bool,
    /// Two of its devices have one name.
    invalid: bool,
}

impl Pool {
    /// Whether a pod that has one of its devices may have to wait until that is ready.
    fn binds_later(&self) -> bool {
        let mut devices = self.slices.iter().flat_map(|s| s.spec.devices.iter().flatten());
        devices.any(|d| d.binding_conditions.as_ref().is_some_and(|c| !c.is_empty()))
    }
}

/// Everything about devices that decisions look at.
#[derive(Debug, Default)]
pub struct Devices {
    claims: Table<ResourceClaim>,
    classes: Table<DeviceClass>,
    extended: Arc<ExtendedResources>,
    /// Claims that were made for extended resources, by the pod's uid.
    made: HashMap<String, String>,
    slices: Table<ResourceSlice>,
    /// Slices by pool.
    members: HashMap<PoolKey, BTreeSet<String>>,
    pools: BTreeMap<PoolKey, Pool>,
    /// Pools with devices of a single node.
    local: HashMap<String, BTreeSet<PoolKey>>,
    /// Pools with devices that several nodes may reach.
    shared: BTreeSet<PoolKey>,
    /// By claim: what it is about to get.
    promised: HashMap<String, Arc<AllocationResult>>,
    usage: Usage,
    taint_rules: TaintRules,
    language: Option<Arc<dyn Selectors>>,
    compiled: Mutex<HashMap<String, Result<Arc<dyn Selector>, String>>>,
}

fn key_of(claim: &ResourceClaim) -> String {
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    format!("{}/{}", part(&claim.metadata.namespace), part(&claim.metadata.name))
}

fn allocation(claim: &ResourceClaim) -> Option<&AllocationResult> {
    claim.status.as_ref()?.allocation.as_ref()
}

fn pool_of(slice: &ResourceSlice) -> PoolKey {
    (slice.spec.driver.clone(), slice.spec.pool.name.clone())
}

impl Devices {
    /// Selectors are in this language from now on.
    pub fn speak(&mut self, language: Option<Arc<dyn Selectors>>) {
        self.language = language;
    }

    /// A claim came, changed or went; whether it gave devices back.
    pub fn claim_changed(&mut self, change: &Change<ResourceClaim>) -> bool {
        let key = key_of(change.object());
        self.claims.apply(change);
        let ends = matches!(change, Change::Deleted(_)) || allocation(change.object()).is_some();
        if ends {
            self.promised.remove(&key);
        }
        let freed = self.recount(&key);
        if let Some(uid) = extended::made_for(change.object()) {
            if ends {
                // It was promised what it has now when it had no name.
                let unnamed =
                    extended::key_for(change.object().metadata.namespace.as_deref().unwrap_or_default(), uid);
                self.promised.remove(&unnamed);
                self.recount(&unnamed);
            }
            match change {
                Change::Deleted(_) => self.made.retain(|of, made| of != uid || *made != key),
                _ => drop(self.made.insert(uid.to_owned(), key)),
            }
        }
        freed
    }

    /// A class came, changed or went; extended resources for which it, or another class in its place, stands from now on.
    /// `None`: the classes stand for what they did.
    pub(crate) fn class_changed(&mut self, change: &Change<DeviceClass>) -> Option<Vec<String>> {
        self.classes.apply(change);
        let now = ExtendedResources::of(self.classes.values());
        if now == *self.extended {
            return None;
        }
        let names = now.since(&self.extended);
        self.extended = Arc::new(now);
        Some(names)
    }

    /// Which extended resources classes stand for.
    pub(crate) fn extended(&self) -> &Arc<ExtendedResources> {
        &self.extended
    }

    /// Counts anew what a claim holds; whether it held more before.
    fn recount(&mut self, key: &str) -> bool {
        let written = self.claims.get(key).and_then(|c| allocation(c)).map(|a| Arc::new(a.clone()));
        let holds = written.or_else(|| self.promised.get(key).cloned());
        self.usage.set(key, holds)
    }

    /// A slice came, changed or went.
    pub fn slice_changed(&mut self, change: &Change<ResourceSlice>) {
        let name = change.object().metadata.name.clone().unwrap_or_default();
        let before = self.slices.get(&name).cloned();
        self.slices.apply(change);
        let after = self.slices.get(&name).cloned();
        let mut pools = BTreeSet::new();
        for (slice, is) in [(before, false), (after, true)] {
            let Some(slice) = slice else { continue };
            let pool = pool_of(&slice);
            let members = self.members.entry(pool.clone()).or_default();
            let _ = if is { members.insert(name.clone()) } else { members.remove(&name) };
            pools.insert(pool);
        }
        for pool in pools {
            self.rebuild(&pool);
        }
    }

    /// A rule of taints came, changed or went.
    pub fn taint_rule_changed(&mut self, change: &Change<DeviceTaintRule>) {
        self.taint_rules.apply(change);
    }

    fn rebuild(&mut self, key: &PoolKey) {
        if let Some(old) = self.pools.remove(key) {
            self.shared.remove(key);
            for node in old.slices.iter().filter_map(|s| s.spec.node_name.as_ref()) {
                if let Some(list) = self.local.get_mut(node) {
                    list.remove(key);
                    if list.is_empty() {
                        self.local.remove(node);
                    }
                }
            }
        }
        let names = self.members.get(key).into_iter().flatten();
        let mut slices: Vec<_> = names.filter_map(|name| self.slices.get(name).cloned()).collect();
        let Some(newest) = slices.iter().map(|s| s.spec.pool.generation).max() else {
            self.members.remove(key);
            return;
        };
        slices.retain(|s| s.spec.pool.generation == newest);
        for slice in &slices {
            match &slice.spec.node_name {
                Some(node) => drop(self.local.entry(node.clone()).or_default().insert(key.clone())),
                None => drop(self.shared.insert(key.clone())),
            }
        }
        let expected = slices.first().map_or(0, |s| s.spec.pool.resource_slice_count);
        let mut seen = BTreeSet::new();
        let twice =
            slices.iter().flat_map(|s| s.spec.devices.iter().flatten()).any(|d| !seen.insert(&d.name));
        let incomplete = i64::try_from(slices.len()).unwrap_or(i64::MAX) != expected;
        self.pools.insert(key.clone(), Pool { incomplete, invalid: twice, slices });
    }

    /// Pools that may have devices for a node, in order.
    fn pools_for(&self, node: &str) -> Vec<(&PoolKey, &Pool)> {
        let local = self.local.get(node);
        let keys: BTreeSet<&PoolKey> = self.shared.iter().chain(local.into_iter().flatten()).collect();
        keys.into_iter().filter_map(|key| self.pools.get_key_value(key)).collect()
    }

    /// What a claim has got, or is about to.
    fn allocation_of<'a>(&'a self, key: &str, claim: &'a ResourceClaim) -> Option<&'a AllocationResult> {
        allocation(claim).or_else(|| self.promised.get(key).map(Arc::as_ref))
    }

    /// From now on the devices count as taken.
    pub fn promise(&mut self, given: &Given) {
        for (key, allocation) in given.allocated() {
            self.promised.insert(key.to_owned(), allocation.clone());
            self.recount(key);
        }
    }

    /// The pod was not bound: what its claims did not get by now is free again. After success it is the claim's change that
    /// ends the promise, so that no device is free for a moment.
    pub fn take_back(&mut self, given: &Given) {
        for (key, _) in given.allocated() {
            self.promised.remove(key);
            self.recount(key);
        }
    }

    /// How many devices stand for an extended resource on a node that has none of it itself, and how many of them are in use.
    pub(crate) fn totals(&self, node: &NodeInfo, resource: &str) -> Option<(i64, i64)> {
        let class = self.extended.class_of(resource).filter(|_| node.allocatable.scalar(resource) == 0)?;
        Some(allocate::totals(self, node, class)).filter(|(all, _)| *all > 0)
    }

    fn selector(&self, expression: &str) -> Result<Arc<dyn Selector>, String> {
        let mut compiled = self.compiled.lock();
        if let Some(known) = compiled.get(expression) {
            return known.clone();
        }
        let language = self.language.as_ref().ok_or("no language for selectors of devices")?;
        let made = language.compile(expression);
        if compiled.len() >= COMPILED {
            compiled.clear();
        }
        compiled.insert(expression.to_owned(), made.clone());
        made
    }
}

/// What a pod's claims get before it is bound: all of them, with an allocation where it is new.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Given {
    /// By `namespace/name`.
    pub claims: Vec<(String, Option<Arc<AllocationResult>>)>,
    /// A claim that is made for what the pod asks for as extended resources.
    pub made: Option<Arc<Made>>,
}

impl Given {
    /// Whether nothing is to be written.
    pub fn is_empty(&self) -> bool {
        self.claims.is_empty() && self.made.is_none()
    }

    /// What claims get that they did not have.
    fn allocated(&self) -> impl Iterator<Item = (&str, &Arc<AllocationResult>)> {
        let claims = self.claims.iter().filter_map(|(key, new)| Some((key.as_str(), new.as_ref()?)));
        claims.chain(self.made.iter().map(|made| (made.key.as_str(), &made.allocation)))
    }
}

/// The name of the claim behind one of a pod's entries: `Err` while it is not made, `Ok(None)` where none is needed. The flag:
/// it was made for the pod.
fn claim_name<'a>(pod: &'a Pod, entry: &'a PodResourceClaim) -> Result<Option<(&'a str, bool)>, String> {
    if let Some(name) = &entry.resource_claim_name {
        return Ok(Some((name, false)));
    }
    let statuses = pod.status.as_ref().and_then(|s| s.resource_claim_statuses.as_deref()).unwrap_or_default();
    match statuses.iter().find(|s| s.name == entry.name) {
        Some(status) => Ok(status.resource_claim_name.as_deref().map(|name| (name, true))),
        None => Err(format!("pod claim {}: ResourceClaim not created yet", entry.name)),
    }
}

/// The entries of a pod's spec.
fn entries(pod: &Pod) -> &[PodResourceClaim] {
    pod.spec.as_ref().and_then(|s| s.resource_claims.as_deref()).unwrap_or_default()
}

/// Whether the pod uses the claim, by `namespace/name`.
pub(crate) fn uses(pod: &Pod, key: &str) -> bool {
    let Some((namespace, name)) = key.split_once('/') else { return false };
    pod.metadata.namespace.as_deref() == Some(namespace)
        && entries(pod).iter().any(|e| matches!(claim_name(pod, e), Ok(Some((n, _))) if n == name))
}

/// Whether the pod has claims, or may get one for its extended resources.
pub(crate) fn wants_any(pod: &PodInfo) -> bool {
    !entries(&pod.pod).is_empty() || pod.demand.requests.scalar.iter().any(|(_, amount)| *amount > 0)
}
