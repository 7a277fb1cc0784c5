//! Amounts of resources as integers: CPU in thousandths of a core, everything else in its own unit (bytes, pieces).
use std::collections::BTreeMap;
use std::sync::Arc;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

/// Amounts asked for, in use, or on offer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a core.
    pub milli_cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes of local ephemeral storage.
    pub ephemeral_storage: i64,
    /// Extended resources and huge pages, by name, sorted.
    pub scalar: Vec<(Arc<str>, i64)>,
}

/// What a container without a CPU request counts as in scores: a tenth of a core.
const DEFAULT_MILLI_CPU: i64 = 100;
/// What a container without a memory request counts as in scores: 200 MiB.
const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// An amount; malformed text counts as zero (validation refuses it earlier).
fn amount(text: &Text, milli: bool) -> i64 {
    let Ok(quantity) = text.0.parse::<Quantity>() else { return 0 };
    if milli { quantity.millis() } else { quantity.value() }
}

impl Resources {
    /// Reads a resource list; `pods` is not part of it.
    pub fn from_list(list: Option<&BTreeMap<String, Text>>) -> Self {
        let mut result = Self::default();
        for (name, text) in list.into_iter().flatten() {
            match name.as_str() {
                "cpu" => result.milli_cpu = amount(text, true),
                "memory" => result.memory = amount(text, false),
                "ephemeral-storage" => result.ephemeral_storage = amount(text, false),
                "pods" => {}
                _ => result.scalar.push((name.as_str().into(), amount(text, false))),
            }
        }
        // a `BTreeMap` is sorted already
        result
    }

    /// The amount of an extended resource.
    pub fn scalar(&self, name: &str) -> i64 {
        self.scalar.iter().find(|(n, _)| **n == *name).map_or(0, |(_, v)| *v)
    }

    /// The amount of any resource but `pods`, by name.
    pub fn get(&self, name: &str) -> i64 {
        match name {
            "cpu" => self.milli_cpu,
            "memory" => self.memory,
            "ephemeral-storage" => self.ephemeral_storage,
            _ => self.scalar(name),
        }
    }

    fn each(&mut self, other: &Self, f: fn(i64, i64) -> i64) {
        self.milli_cpu = f(self.milli_cpu, other.milli_cpu);
        self.memory = f(self.memory, other.memory);
        self.ephemeral_storage = f(self.ephemeral_storage, other.ephemeral_storage);
        for (name, value) in &other.scalar {
            match self.scalar.binary_search_by(|(n, _)| n.cmp(name)) {
                Ok(i) => self.scalar[i].1 = f(self.scalar[i].1, *value),
                Err(i) => self.scalar.insert(i, (name.clone(), f(0, *value))),
            }
        }
    }

    /// Adds `other`.
    pub fn add(&mut self, other: &Self) {
        self.each(other, i64::saturating_add);
    }

    /// Takes `other` away.
    pub fn sub(&mut self, other: &Self) {
        self.each(other, i64::saturating_sub);
    }

    fn raise(&mut self, other: &Self) {
        self.each(other, i64::max);
    }

    /// Whether nothing is asked for.
    pub fn is_zero(&self) -> bool {
        self.milli_cpu == 0
            && self.memory == 0
            && self.ephemeral_storage == 0
            && self.scalar.iter().all(|s| s.1 == 0)
    }
}

/// Where a request is missing, scores count a default.
fn with_defaults(mut r: Resources, list: Option<&ResourceRequirements>) -> Resources {
    let asks = |name: &str| list.and_then(|l| l.requests.as_ref()).is_some_and(|r| r.contains_key(name));
    if !asks("cpu") {
        r.milli_cpu = DEFAULT_MILLI_CPU;
    }
    if !asks("memory") {
        r.memory = DEFAULT_MEMORY;
    }
    r
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// What the pod asks of a node, and the same with defaults for scores. Init containers run one after the other beside
/// the sidecars started before them; requests at pod level stand for those of the containers.
/// Rule: <https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/#resource-sharing-within-containers>
pub fn pod_requests(spec: &PodSpec) -> (Resources, Resources) {
    let total = |defaults: bool| {
        let of = |c: &Container| {
            let r = Resources::from_list(c.resources.as_ref().and_then(|r| r.requests.as_ref()));
            if defaults { with_defaults(r, c.resources.as_ref()) } else { r }
        };
        let mut sum = Resources::default();
        for container in &spec.containers {
            sum.add(&of(container));
        }
        let (mut sidecars, mut peak) = (Resources::default(), Resources::default());
        for container in spec.init_containers.iter().flatten() {
            let mut now = of(container);
            if is_sidecar(container) {
                sidecars.add(&now);
                now = sidecars.clone();
            } else {
                now.add(&sidecars);
            }
            peak.raise(&now);
        }
        sum.add(&sidecars);
        sum.raise(&peak);
        if let Some(list) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
            let pod = Resources::from_list(Some(list));
            if list.contains_key("cpu") {
                sum.milli_cpu = pod.milli_cpu;
            }
            if list.contains_key("memory") {
                sum.memory = pod.memory;
            }
            for (name, value) in &pod.scalar {
                match sum.scalar.binary_search_by(|(n, _)| n.cmp(name)) {
                    Ok(i) => sum.scalar[i].1 = *value,
                    Err(i) => sum.scalar.insert(i, (name.clone(), *value)),
                }
            }
        }
        sum.add(&Resources::from_list(spec.overhead.as_ref()));
        sum
    };
    (total(false), total(true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn requests_follow_init_containers_sidecars_and_overhead() {
        let request = |cpu: &str| json!({"requests": {"cpu": cpu, "memory": "100Mi"}});
        let spec: PodSpec = serde_json::from_value(json!({
            "containers": [{"name": "a", "resources": request("200m")}, {"name": "b", "resources": {"requests": {"example.com/gpu": "2"}}}],
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "resources": request("50m")},
                {"name": "i", "resources": request("1")},
            ],
            "overhead": {"cpu": "10m"},
        }))
        .expect("spec");
        let (exact, scored) = pod_requests(&spec);
        assert_eq!(exact.milli_cpu, 1050 + 10);
        assert_eq!(exact.memory, 200 << 20);
        assert_eq!(exact.scalar("example.com/gpu"), 2);
        assert_eq!(scored.memory, (100 + 200 + 100) << 20);
    }

    #[test]
    fn requests_of_the_pod_stand_for_those_of_its_containers() {
        let spec: PodSpec = serde_json::from_value(json!({
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "200m", "memory": "1Gi"}}}],
            "resources": {"requests": {"cpu": "2"}},
        }))
        .expect("spec");
        let (exact, _) = pod_requests(&spec);
        assert_eq!((exact.milli_cpu, exact.memory), (2000, 1 << 30));
    }
}
