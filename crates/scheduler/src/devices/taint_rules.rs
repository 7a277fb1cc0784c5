//! Taints that rules put on devices, beside those of their drivers.
//! Rule: <https://kubernetes.io/docs/concepts/scheduling-eviction/dynamic-resource-allocation/#device-taints-and-tolerations>
use std::collections::BTreeMap;

use client::Change;
use k8s_openapi::api::resource::v1::{Device, DeviceTaint};
use k8s_openapi::api::resource::v1beta2::{DeviceTaintRule, DeviceTaintSelector};

use super::PoolKey;

/// Rules that select devices, by name.
#[derive(Debug, Default)]
pub(super) struct TaintRules(BTreeMap<String, (DeviceTaintSelector, DeviceTaint)>);

impl TaintRules {
    pub(super) fn apply(&mut self, change: &Change<DeviceTaintRule>) {
        let rule = change.object();
        let name = rule.metadata.name.clone().unwrap_or_default();
        match (&rule.spec.device_selector, change) {
            // Without a selector no device is meant.
            (None, _) | (_, Change::Deleted(_)) => drop(self.0.remove(&name)),
            (Some(selector), _) => {
                let is = rule.spec.taint.clone();
                let taint = DeviceTaint {
                    effect: is.effect,
                    key: is.key,
                    time_added: is.time_added,
                    value: is.value,
                };
                self.0.insert(name, (selector.clone(), taint));
            }
        }
    }

    /// All taints of a device.
    pub(super) fn taints<'a>(
        &'a self,
        pool: &'a PoolKey,
        device: &'a Device,
    ) -> impl Iterator<Item = &'a DeviceTaint> {
        let is = |wanted: &Option<String>, name: &str| wanted.as_ref().is_none_or(|w| w == name);
        let selects = move |s: &DeviceTaintSelector| {
            is(&s.driver, &pool.0) && is(&s.pool, &pool.1) && is(&s.device, &device.name)
        };
        let rules = self.0.values().filter(move |(selector, _)| selects(selector)).map(|(_, taint)| taint);
        device.taints.iter().flatten().chain(rules)
    }
}
