//! What is kept back of the node, for whom, and what holds them within that.
//!
//! Rule: Kubernetes documentation, "Reserve Compute Resources".

use std::collections::BTreeMap;

use api::quantity::{Format, Quantity};

use super::{ConfigurationError, KubeletConfiguration, wrong};
use crate::eviction::threshold::Value;

/// A group of the node's own programs that is held within what is kept back for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enforcement {
    /// They are the machine's, not Kubernetes'.
    pub of_system: bool,
    /// Only processors: nobody ends for want of them.
    pub compressible: bool,
    /// The group, as it is written.
    pub group: String,
    /// What is kept back, by resource.
    pub amounts: BTreeMap<String, String>,
}

impl Enforcement {
    /// What happened, as the node's events say it.
    pub fn event(&self, held: &Result<(), String>) -> String {
        let Self { of_system, compressible, group, .. } = self;
        let Err(why) = held else {
            return format!(
                "Updated limits on {} reserved cgroup {group}",
                if *of_system { "system" } else { "kube" }
            );
        };
        let whose = if *of_system { "System" } else { "Kube" };
        let what = if *compressible { " Compressible" } else { "" };
        format!("Failed to enforce {whose} Reserved{what} Cgroup Limits on {group:?}: {why}")
    }
}

impl KubeletConfiguration {
    /// Whether what is kept back, and what holds them, can be.
    pub(super) fn check_allocatable(&self) -> Result<(), ConfigurationError> {
        for (name, text) in self.kube_reserved.iter().chain(&self.system_reserved) {
            if !matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage" | "pid") {
                return Err(wrong(format!(
                    "{name:?} cannot be reserved; cpu, memory, ephemeral-storage and pid can"
                )));
            }
            match text.parse::<Quantity>() {
                Ok(quantity) if quantity.signum() >= 0 => {}
                Ok(_) => return Err(wrong(format!("{name} cannot be a negative amount: {text}"))),
                Err(error) => return Err(wrong(format!("{name} {text:?}: {error}"))),
            }
        }
        const FIELD: &str = "enforceNodeAllocatable (--enforce-node-allocatable)";
        for (at, part) in self.enforce_node_allocatable.iter().enumerate() {
            let (before, strict) = (&self.enforce_node_allocatable[..at], part.strip_suffix("-compressible"));
            if before.contains(part) {
                return Err(wrong(format!(
                    "invalid configuration: duplicated enforcements {part:?} in {FIELD}"
                )));
            }
            if let Some(strict) =
                strict.filter(|strict| self.enforce_node_allocatable.iter().any(|one| one == strict))
            {
                return Err(wrong(format!(
                    "invalid configuration: both {strict:?} and {part:?} cannot be specified together in {FIELD}"
                )));
            }
            let (group, field) = match part.as_str() {
                "pods" => continue,
                "none" if self.enforce_node_allocatable.len() > 1 => {
                    return Err(wrong(format!(
                        "invalid configuration: {FIELD} may not contain additional enforcements when {part:?} is specified"
                    )));
                }
                "none" => continue,
                "system-reserved" | "system-reserved-compressible" => {
                    (&self.system_reserved_cgroup, "systemReservedCgroup (--system-reserved-cgroup)")
                }
                "kube-reserved" | "kube-reserved-compressible" => {
                    (&self.kube_reserved_cgroup, "kubeReservedCgroup (--kube-reserved-cgroup)")
                }
                _ => {
                    return Err(wrong(format!(
                        "invalid configuration: option {part:?} specified for {FIELD}. Valid options are \"pods\", \
                         \"system-reserved\", \"system-reserved-compressible\", \"kube-reserved\", \
                         \"kube-reserved-compressible\", or \"none\""
                    )));
                }
            };
            if group.is_empty() {
                return Err(wrong(format!(
                    "invalid configuration: {field} must be specified when {part:?} contained in {FIELD}"
                )));
            }
        }
        let groups = [&self.system_reserved_cgroup, &self.kube_reserved_cgroup];
        if !self.reserved_system_cpus.is_empty() && groups.into_iter().any(|group| !group.is_empty()) {
            return Err(wrong(
                "invalid configuration: can't use reservedSystemCPUs (--reserved-cpus) with systemReservedCgroup \
                 (--system-reserved-cgroup) or kubeReservedCgroup (--kube-reserved-cgroup)",
            ));
        }
        Ok(())
    }

    /// Whether all pods together are held within what is allocatable.
    pub fn enforces_allocatable(&self) -> bool {
        self.enforce_node_allocatable.iter().any(|part| part == "pods")
    }

    /// Groups that are held within what is kept back for them, in the reference's order.
    pub fn enforcements(&self) -> Vec<Enforcement> {
        let all = [(true, false), (false, false), (true, true), (false, true)];
        let wanted = all.into_iter().filter(|(of_system, compressible)| {
            let whose = if *of_system { "system-reserved" } else { "kube-reserved" };
            let name = format!("{whose}{}", if *compressible { "-compressible" } else { "" });
            self.enforce_node_allocatable.contains(&name)
        });
        let one = |(of_system, compressible)| {
            let (group, amounts) = match of_system {
                true => (&self.system_reserved_cgroup, &self.system_reserved),
                false => (&self.kube_reserved_cgroup, &self.kube_reserved),
            };
            Enforcement { of_system, compressible, group: group.clone(), amounts: amounts.clone() }
        };
        wanted.map(one).collect()
    }

    /// Kept back of a resource (`cpu` in thousandths, the others in units), without eviction thresholds.
    pub fn reserved(&self, resource: &str) -> i64 {
        let read = |list: &BTreeMap<String, String>| {
            let text = list.get(resource).map(String::as_str);
            let read = if resource == "cpu" { crate::resources::milli } else { crate::resources::units };
            text.map_or(0, read)
        };
        read(&self.kube_reserved).saturating_add(read(&self.system_reserved))
    }

    /// All that is kept back of memory and huge pages, eviction threshold included; `capacity` is the node's memory, bytes.
    pub fn kept_back(&self, capacity: u64) -> BTreeMap<String, Quantity> {
        let hard =
            self.eviction_hard.get("memory.available").and_then(|text| match text.parse::<Quantity>() {
                Ok(amount) => Some(amount),
                Err(_) => {
                    let bytes = Value::parse(text)?.of(capacity);
                    Some(Quantity::from_value(i64::try_from(bytes).unwrap_or(i64::MAX), Format::BinarySi))
                }
            });
        let mut found: BTreeMap<String, Quantity> = BTreeMap::new();
        let mut add = |name: &str, amount: Quantity| {
            let sum = found.get(name).map_or(amount, |sum| sum.plus(&amount));
            found.insert(name.to_owned(), sum);
        };
        for list in [&self.kube_reserved, &self.system_reserved] {
            if let Some(amount) = list.get("memory").and_then(|text| text.parse().ok()) {
                add("memory", amount);
            }
        }
        if let Some(amount) = hard {
            add("memory", amount);
        }
        found
    }
}
