//! What the machine has, and what of it pods may have.
//!
//! Rule: Kubernetes documentation, "Reserve Compute Resources for System Daemons".

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::configuration::KubeletConfiguration;
use crate::eviction::threshold::Signal;
use crate::managers::machine::Machine;
use crate::swap;

/// What the machine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capacity {
    /// Processors.
    pub cpus: u64,
    /// Memory, bytes.
    pub memory: u64,
    /// Space for pods' files, bytes.
    pub storage: u64,
    /// Pods.
    pub pods: u64,
    /// Bytes in huge pages, by resource.
    pub pages: BTreeMap<String, u64>,
    /// Swap, bytes.
    pub swap: u64,
}

impl Capacity {
    /// Reads the machine; `root` lies on the filesystem that pods write to.
    pub fn read(root: &std::path::Path, settings: &KubeletConfiguration, system: &std::path::Path) -> Self {
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let total = total.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        let memory = total.unwrap_or(0) * 1024;
        let storage = rustix::fs::statvfs(root).map_or(0, |s| s.f_blocks.saturating_mul(s.f_frsize));
        let machine = Machine::read(system, memory);
        // what is given by number is counted as the kernel numbers it
        let cpus = match settings.cpu_manager_policy.as_str() {
            "static" => machine.cpus.len() as u64,
            _ => std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
        };
        Self {
            cpus,
            memory,
            storage,
            pods: settings.max_pods,
            pages: machine.pages(),
            swap: swap::total(&meminfo),
        }
    }

    /// What pods may have: CPU in thousandths, memory and storage in bytes, pods. What is reserved and what hard
    /// eviction thresholds keep free is taken off.
    pub fn allocatable(&self, settings: &KubeletConfiguration) -> BTreeMap<String, i64> {
        let whole = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let kept = |signal: Signal, capacity: u64| {
            let all = settings.thresholds().unwrap_or_default();
            let hard = all.iter().find(|threshold| threshold.signal == signal && threshold.grace.is_none());
            whole(hard.map_or(0, |threshold| threshold.value.of(capacity)))
        };
        let less = |capacity: u64, kept: i64| whole(capacity).saturating_sub(kept).max(0);
        let storage = settings.reserved("ephemeral-storage") + kept(Signal::NodeFs, self.storage);
        // memory in huge pages is none for others
        let pages = whole(self.pages.values().sum());
        let memory = settings.reserved("memory") + kept(Signal::Memory, self.memory) + pages;
        let mut amounts: BTreeMap<String, i64> = [
            ("cpu", less(self.cpus * 1000, settings.reserved("cpu"))),
            ("memory", less(self.memory, memory)),
            ("ephemeral-storage", less(self.storage, storage)),
            ("pods", whole(self.pods)),
        ]
        .map(|(name, amount)| (name.to_owned(), amount))
        .into();
        amounts.extend(self.huge().map(|(name, bytes)| (name, whole(bytes))));
        amounts
    }

    /// Huge pages of the sizes that every node names, and of those that this one has.
    fn huge(&self) -> impl Iterator<Item = (String, u64)> {
        let mut all: BTreeMap<String, u64> =
            ["hugepages-1Gi", "hugepages-2Mi"].map(|name| (name.to_owned(), 0)).into();
        all.extend(self.pages.clone());
        all.into_iter()
    }

    fn with_pages(&self, mut amounts: Value) -> Value {
        for (name, bytes) in self.huge() {
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            let amount = api::quantity::Quantity::from_value(bytes, api::quantity::Format::BinarySi);
            amounts[name] = json!(amount.to_string());
        }
        amounts
    }

    pub(super) fn to_value(&self) -> Value {
        self.with_pages(json!({"cpu": self.cpus.to_string(), "memory": format!("{}Ki", self.memory / 1024),
            "ephemeral-storage": format!("{}Ki", self.storage / 1024), "pods": self.pods.to_string()}))
    }

    pub(super) fn allocatable_value(&self, settings: &KubeletConfiguration) -> Value {
        let amounts = self.allocatable(settings);
        let amount = |name: &str| amounts.get(name).copied().unwrap_or(0);
        self.with_pages(json!({"cpu": api::quantity::Quantity::from_millis(amount("cpu")).to_string(),
            "memory": format!("{}Ki", amount("memory") / 1024),
            "ephemeral-storage": amount("ephemeral-storage").to_string(), "pods": amount("pods").to_string()}))
    }
}
