//! DynamicResources: devices as the scheduler sees them — claims, classes and what drivers publish in slices — which of
//! them are in use, and which are promised to claims of pods whose binding is under way.
//! Rule: <https://kubernetes.io/docs/concepts/scheduling-eviction/dynamic-resource-allocation/>
mod allocate;
pub(crate) mod bind;
pub(crate) mod feeds;
pub mod needs;
mod readiness;
mod requests;
mod usage;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::Arc;

use client::Change;
use k8s_openapi::api::core::v1::{Pod, PodResourceClaim};
use k8s_openapi::api::resource::v1::{AllocationResult, Device, DeviceClass, ResourceClaim, ResourceSlice};
use parking_lot::Mutex;

use crate::volumes::Table;
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
    /// Classes.
    pub classes: Table<DeviceClass>,
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
        if matches!(change, Change::Deleted(_)) || allocation(change.object()).is_some() {
            self.promised.remove(&key);
        }
        self.recount(&key)
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
        for (key, allocation) in given.claims.iter().filter_map(|(key, a)| Some((key, a.as_ref()?))) {
            self.promised.insert(key.clone(), allocation.clone());
            self.recount(key);
        }
    }

    /// The pod was not bound: what its claims did not get by now is free again. After success it is the claim's change that
    /// ends the promise, so that no device is free for a moment.
    pub fn take_back(&mut self, given: &Given) {
        for (key, _) in given.claims.iter().filter(|(_, a)| a.is_some()) {
            self.promised.remove(key);
            self.recount(key);
        }
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
}

impl Given {
    /// Whether the pod has no claims.
    pub fn is_empty(&self) -> bool {
        self.claims.is_empty()
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

/// Whether the pod has claims.
pub(crate) fn wants_any(pod: &Pod) -> bool {
    !entries(pod).is_empty()
}
