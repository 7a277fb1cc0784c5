//! Which devices are in use, kept claim by claim.
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use api::quantity::Quantity;
use k8s_openapi::api::resource::v1::{AllocationResult, DeviceRequestAllocationResult};

/// How a device is used.
#[derive(Debug, Clone, Default)]
pub(super) struct Use {
    /// Results that have it.
    pub(super) holders: usize,
    /// What they consume of its capacity, where it is shared.
    pub(super) consumed: BTreeMap<String, Quantity>,
}

/// Names a device: neither drivers nor devices have a slash in their names.
pub(super) fn id(driver: &str, pool: &str, device: &str) -> String {
    format!("{driver}/{pool}/{device}")
}

#[derive(Debug, Default)]
pub(super) struct Usage {
    by_claim: HashMap<String, Arc<AllocationResult>>,
    devices: HashMap<String, Use>,
}

fn results(of: &AllocationResult) -> impl Iterator<Item = &DeviceRequestAllocationResult> {
    let all = of.devices.iter().flat_map(|d| d.results.iter().flatten());
    // Administrators look at devices, they do not take them.
    all.filter(|r| r.admin_access != Some(true))
}

/// What a result consumes of its device.
fn consumption(result: &DeviceRequestAllocationResult) -> impl Iterator<Item = (&String, Quantity)> {
    let all = result.consumed_capacity.iter().flatten();
    all.filter_map(|(name, amount)| Some((name, amount.0.parse::<Quantity>().ok()?)))
}

impl Usage {
    /// A claim has these devices now; whether it had some before that it has no longer.
    pub(super) fn set(&mut self, claim: &str, holds: Option<Arc<AllocationResult>>) -> bool {
        if self.by_claim.get(claim).map(Arc::as_ref) == holds.as_deref() {
            return false;
        }
        let before = self.by_claim.remove(claim);
        for result in before.iter().flat_map(|a| results(a)) {
            let id = id(&result.driver, &result.pool, &result.device);
            let Some(used) = self.devices.get_mut(&id) else { continue };
            used.holders = used.holders.saturating_sub(1);
            for (name, amount) in consumption(result) {
                if let Some(sum) = used.consumed.get_mut(name) {
                    *sum = sum.minus(&amount);
                }
            }
            if used.holders == 0 {
                self.devices.remove(&id);
            }
        }
        if let Some(now) = holds {
            for result in results(&now) {
                let used = self.devices.entry(id(&result.driver, &result.pool, &result.device)).or_default();
                used.holders += 1;
                for (name, amount) in consumption(result) {
                    let sum = used.consumed.entry(name.clone()).or_insert(Quantity::ZERO);
                    *sum = sum.plus(&amount);
                }
            }
            self.by_claim.insert(claim.to_owned(), now);
        }
        before.is_some()
    }

    /// How a device is used; `None`: not at all.
    pub(super) fn of(&self, id: &str) -> Option<&Use> {
        self.devices.get(id)
    }
}
