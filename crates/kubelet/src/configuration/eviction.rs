//! When pods are ended for want of memory, disk or process ids.
//!
//! Rule: Kubernetes documentation, "Node-pressure Eviction".

use std::collections::BTreeMap;
use std::time::Duration;

use super::{ConfigurationError, KubeletConfiguration, duration, wrong};
use crate::eviction::threshold::{LAYERS, Signal, Threshold, Value};

impl KubeletConfiguration {
    pub(super) fn check_evictions(&self) -> Result<(), ConfigurationError> {
        self.thresholds()?;
        self.pressure_transition()?;
        match self.eviction_max_pod_grace_period {
            0.. => Ok(()),
            _ => Err(wrong("evictionMaxPodGracePeriod must not be negative")),
        }
    }

    /// How long a pressure that is gone is still reported.
    pub fn pressure_transition(&self) -> Result<Duration, ConfigurationError> {
        let told = duration("evictionPressureTransitionPeriod", &self.eviction_pressure_transition_period)?;
        // nothing stands for the default
        Ok(if told.is_zero() { Duration::from_secs(300) } else { told })
    }

    /// Whether there are thresholds that count for nothing.
    pub fn limits_layers(&self) -> bool {
        [&self.eviction_hard, &self.eviction_soft]
            .into_iter()
            .flat_map(BTreeMap::keys)
            .any(|name| LAYERS.contains(&name.as_str()))
    }

    /// All thresholds, hard ones first.
    pub fn thresholds(&self) -> Result<Vec<Threshold>, ConfigurationError> {
        let mut found = Vec::new();
        let value = |signal: &str, text: &str| {
            Value::parse(text).ok_or_else(|| {
                wrong(format!(
                    "eviction threshold {signal} must be a positive quantity or a percentage: {text:?}"
                ))
            })
        };
        // none for one that counts for nothing
        let signal = |name: &str| match Signal::parse(name) {
            None if LAYERS.contains(&name) => Ok(None),
            None => Err(wrong(format!("unsupported eviction signal {name}"))),
            known => Ok(known),
        };
        // turned off
        let is_on = |text: &str| !matches!(text, "0%" | "100%");
        for (name, text) in self.eviction_hard.iter().filter(|(_, text)| is_on(text)) {
            let (signal, value) = (signal(name)?, value(name, text)?);
            found.extend(signal.map(|signal| Threshold { signal, value, grace: None, reclaim: None }));
        }
        for (name, text) in self.eviction_soft.iter().filter(|(_, text)| is_on(text)) {
            let grace = self.eviction_soft_grace_period.get(name).ok_or_else(|| {
                wrong(format!("grace period must be specified for the soft eviction threshold {name}"))
            })?;
            let grace = Some(duration(name, grace)?).filter(|grace| !grace.is_zero());
            let (signal, value) = (signal(name)?, value(name, text)?);
            found.extend(signal.map(|signal| Threshold { signal, value, grace, reclaim: None }));
        }
        for (name, text) in &self.eviction_minimum_reclaim {
            let signal = signal(name)?;
            let value = Value::parse_reclaim(text)
                .ok_or_else(|| wrong(format!("eviction minimum reclaim {name} must be positive: {text}")))?;
            for threshold in found.iter_mut().filter(|threshold| Some(threshold.signal) == signal) {
                threshold.reclaim = Some(value);
            }
        }
        // what holds for the node holds for its pods together, where they are held within something
        let of_pods =
            |threshold: &&Threshold| threshold.signal == Signal::Memory && threshold.grace.is_none();
        if let Some(memory) = found.iter().find(of_pods).filter(|_| self.enforces_allocatable()) {
            found.push(Threshold { signal: Signal::AllocatableMemory, ..*memory });
        }
        Ok(found)
    }
}
