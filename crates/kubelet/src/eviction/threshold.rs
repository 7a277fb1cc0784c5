//! Signals, thresholds, and which of them are passed: pure.
//!
//! Rule: Kubernetes documentation, "Node-pressure Eviction".

use std::time::Duration;

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Signal {
    /// `memory.available`: memory of the node that is not in use, caches that can be dropped included.
    Memory,
    /// `allocatableMemory.available`: what all pods together have left of what is kept for them.
    AllocatableMemory,
    /// `nodefs.available`: bytes free where volumes and logs lie.
    NodeFs,
    /// `nodefs.inodesFree`.
    NodeFsInodes,
    /// `imagefs.available`: bytes free where images and writable layers lie.
    ImageFs,
    /// `imagefs.inodesFree`.
    ImageFsInodes,
    /// `pid.available`: process ids that are free.
    Pid,
}

/// Signals of the writable layers' file system, which is the images' or the pods': its thresholds are theirs, as the
/// reference has it, and such of their own count for nothing.
pub const LAYERS: [&str; 2] = ["containerfs.available", "containerfs.inodesFree"];

impl Signal {
    /// All of them, in the order in which they are acted on: memory first, process ids last.
    pub const ALL: [Self; 7] = [
        Self::Memory,
        Self::AllocatableMemory,
        Self::NodeFs,
        Self::NodeFsInodes,
        Self::ImageFs,
        Self::ImageFsInodes,
        Self::Pid,
    ];

    /// By the name that configurations use.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|signal| signal.name() == name)
    }

    /// As configurations write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory.available",
            Self::AllocatableMemory => "allocatableMemory.available",
            Self::NodeFs => "nodefs.available",
            Self::NodeFsInodes => "nodefs.inodesFree",
            Self::ImageFs => "imagefs.available",
            Self::ImageFsInodes => "imagefs.inodesFree",
            Self::Pid => "pid.available",
        }
    }

    /// What is to be had back, as events name it.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Memory | Self::AllocatableMemory => "memory",
            Self::NodeFs | Self::ImageFs => "ephemeral-storage",
            Self::NodeFsInodes | Self::ImageFsInodes => "inodes",
            Self::Pid => "pids",
        }
    }

    /// The node's condition while the threshold is passed.
    pub fn condition(self) -> &'static str {
        match self {
            Self::Memory | Self::AllocatableMemory => "MemoryPressure",
            Self::Pid => "PIDPressure",
            _ => "DiskPressure",
        }
    }

    /// Whether it counts bytes.
    pub fn is_bytes(self) -> bool {
        matches!(self, Self::Memory | Self::AllocatableMemory | Self::NodeFs | Self::ImageFs)
    }

    /// Whether it is about a disk.
    pub fn is_disk(self) -> bool {
        self.condition() == "DiskPressure"
    }
}

/// An amount, or a part of the capacity.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value {
    /// In the signal's unit.
    Amount(u64),
    /// Of the capacity.
    Percent(f64),
}

impl Value {
    /// A threshold: `100Mi` or `10%`; neither nothing nor less.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(number) = text.strip_suffix('%') {
            let percent: f64 = number.parse().ok()?;
            return (percent > 0.0 && percent <= 100.0).then_some(Self::Percent(percent));
        }
        let quantity: api::quantity::Quantity = text.parse().ok()?;
        let amount = u64::try_from(quantity.value()).ok().filter(|amount| *amount > 0)?;
        Some(Self::Amount(amount))
    }

    /// What is to be freed beyond a threshold: nothing as well, and more than all.
    pub fn parse_reclaim(text: &str) -> Option<Self> {
        if let Some(number) = text.strip_suffix('%') {
            return number.parse().ok().filter(|percent| *percent > 0.0).map(Self::Percent);
        }
        let quantity: api::quantity::Quantity = text.parse().ok()?;
        u64::try_from(quantity.value()).ok().map(Self::Amount)
    }

    /// Of this capacity.
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Amount(amount) => amount,
            // a part is a short float in the reference, which events show
            Self::Percent(percent) => (capacity as f64 * f64::from(percent as f32 / 100.0)) as u64,
        }
    }
}

/// When it is too little.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold {
    /// Of what.
    pub signal: Signal,
    /// Less than this.
    pub value: Value,
    /// A soft threshold: passed for so long.
    pub grace: Option<Duration>,
    /// What must be free beyond the threshold before it counts as kept again.
    pub reclaim: Option<Value>,
}

/// A measured signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    /// Free.
    pub available: u64,
    /// At all.
    pub capacity: u64,
}

impl Threshold {
    /// Whether it is passed; `held`: it was passed before, and what is to be freed beyond it counts too.
    pub fn is_met(&self, observation: Observation, held: bool) -> bool {
        let more = self.reclaim.filter(|_| held).map_or(0, |value| value.of(observation.capacity));
        observation.available < self.value.of(observation.capacity).saturating_add(more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_once_passed_is_kept_again_only_beyond_the_minimum_reclaim() {
        let threshold = Threshold {
            signal: Signal::NodeFs,
            value: Value::Percent(10.0),
            grace: None,
            reclaim: Some(Value::Amount(50)),
        };
        let met =
            |available: u64, held: bool| threshold.is_met(Observation { available, capacity: 1000 }, held);
        assert_eq!(
            [met(99, false), met(100, false), met(149, true), met(150, true)],
            [true, false, true, false]
        );
    }

    #[test]
    fn quantities_and_percentages_are_read() {
        assert_eq!(Value::parse("100Mi"), Some(Value::Amount(100 << 20)));
        assert_eq!(Value::parse("7.5%"), Some(Value::Percent(7.5)));
        for bad in ["", "0", "-1Gi", "0%", "101%", "x", "%"] {
            assert_eq!(Value::parse(bad), None, "{bad}");
        }
        assert_eq!(Value::parse_reclaim("0Mi"), Some(Value::Amount(0)));
        assert_eq!(Value::parse_reclaim("150%"), Some(Value::Percent(150.0)));
        assert_eq!(["0%", "-1Mi", "x"].map(Value::parse_reclaim), [None; 3]);
        assert_eq!(Value::Percent(10.0).of(100 << 30), 10_737_418_400, "as short floats have it");
    }
}
