//! What a pod asks for: the sums that limits and quotas look at.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::quantity::Quantity;

/// Amounts by resource name.
pub type Amounts = BTreeMap<String, Quantity>;

/// The amounts in an object of quantities; what cannot be read was refused when it was decoded.
pub fn amounts(list: &Value) -> Amounts {
    let read = |v: &Value| match v {
        Value::String(text) => text.parse().ok(),
        other => other.to_string().parse().ok(),
    };
    list.as_object().into_iter().flatten().filter_map(|(k, v)| Some((k.clone(), read(v)?))).collect()
}

/// Adds `more` to `sum`.
pub fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let total = sum.get(name).map_or(*amount, |have| have.plus(amount));
        sum.insert(name.clone(), total);
    }
}

/// Raises each amount of `sum` to at least that of `other`.
pub fn raise(sum: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        if sum.get(name).is_none_or(|have| have < amount) {
            sum.insert(name.clone(), *amount);
        }
    }
}

/// The containers of `list` in a pod's spec.
pub fn containers<'a>(spec: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    spec[list].as_array().into_iter().flatten()
}

/// One of the two amounts that a container names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// What it asks for.
    Requests,
    /// What it gets at most.
    Limits,
}

impl Side {
    /// The member of `resources`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Limits => "limits",
        }
    }
}

/// Whether a resource can be asked for by the pod as a whole.
pub fn is_pod_level(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

/// Whether a pod's spec names resources of the pod as a whole.
pub fn has_pod_level(spec: &Value) -> bool {
    [Side::Requests, Side::Limits]
        .iter()
        .any(|side| amounts(&spec["resources"][side.name()]).keys().any(|name| is_pod_level(name)))
}

/// What the spec of a pod needs, without the overhead of its runtime: all containers together, or the largest start-up
/// moment. Init containers that go on running (sidecars) count with both; resources of the pod as a whole replace the
/// sums.
/// Rule: <https://kubernetes.io/docs/concepts/workloads/pods/init-containers/#resource-sharing-within-containers>
pub fn of_spec(spec: &Value, side: Side) -> Amounts {
    total(spec, side, &|container| amounts(&container["resources"][side.name()]))
}

fn total(spec: &Value, side: Side, of: &dyn Fn(&Value) -> Amounts) -> Amounts {
    let (mut running, mut starting, mut sidecars) = (Amounts::new(), Amounts::new(), Amounts::new());
    for container in containers(spec, "containers") {
        add(&mut running, &of(container));
    }
    for container in containers(spec, "initContainers") {
        let own = of(container);
        if container["restartPolicy"] == "Always" {
            add(&mut running, &own);
            add(&mut sidecars, &own);
            raise(&mut starting, &sidecars);
        } else {
            let mut moment = own;
            add(&mut moment, &sidecars);
            raise(&mut starting, &moment);
        }
    }
    raise(&mut running, &starting);
    let whole = amounts(&spec["resources"][side.name()]);
    running.extend(whole.into_iter().filter(|(name, _)| is_pod_level(name)));
    running
}

/// What a pod is charged for: [`of_spec`], where a container that is being resized counts with the most of what it
/// wants, was allotted and has; and the overhead of its runtime, which counts for limits only where there are some.
pub fn of_pod(pod: &Value, side: Side) -> Amounts {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let is_infeasible = status["conditions"]
        .as_array()
        .is_some_and(|l| l.iter().any(|c| c["type"] == "PodResizePending" && c["reason"] == "Infeasible"));
    let state = |name: &Value| {
        let lists = [&status["containerStatuses"], &status["initContainerStatuses"]];
        lists.into_iter().filter_map(Value::as_array).flatten().find(|s| s["name"] == *name)
    };
    let mut sum = total(spec, side, &|container| {
        let wanted = amounts(&container["resources"][side.name()]);
        let Some(state) = state(&container["name"]).filter(|s| s["resources"].is_object()) else {
            return wanted;
        };
        let mut most = if is_infeasible { Amounts::new() } else { wanted };
        raise(&mut most, &amounts(&state["resources"][side.name()]));
        if side == Side::Requests {
            raise(&mut most, &amounts(&state["allocatedResources"]));
        }
        most
    });
    let overhead = amounts(&spec["overhead"]);
    let counted = overhead.into_iter().filter(|(name, _)| {
        side == Side::Requests || sum.get(name).is_some_and(|amount| amount.signum() != 0)
    });
    let counted: Amounts = counted.collect();
    add(&mut sum, &counted);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cpu(v: &str) -> Value {
        json!({"requests": {"cpu": v}})
    }

    fn asks(spec: Value) -> String {
        of_pod(&json!({"spec": spec}), Side::Requests)["cpu"].to_string()
    }

    #[test]
    fn a_pod_needs_its_sum_or_its_largest_start() {
        let spec = json!({"containers": [{"resources": cpu("1")}, {"resources": cpu("500m")}],
            "initContainers": [{"resources": cpu("300m"), "restartPolicy": "Always"}, {"resources": cpu("2")}]});
        assert_eq!(asks(spec), "2300m");
        let small =
            json!({"containers": [{"resources": cpu("1")}], "initContainers": [{"resources": cpu("100m")}]});
        assert_eq!(asks(small), "1");
    }

    #[test]
    fn resources_of_the_pod_replace_the_sum_and_overhead_is_added() {
        let spec =
            json!({"containers": [{"resources": cpu("1")}], "resources": cpu("3"), "overhead": {"cpu": "1"}});
        assert_eq!(asks(spec.clone()), "4");
        assert_eq!(of_spec(&spec, Side::Requests)["cpu"].to_string(), "3");
        assert!(!of_pod(&json!({"spec": spec}), Side::Limits).contains_key("cpu"));
    }

    #[test]
    fn a_container_that_shrinks_counts_until_it_has_shrunk() {
        let pod = json!({"spec": {"containers": [{"name": "c", "resources": cpu("1")}]}, "status": {"containerStatuses": [
            {"name": "c", "resources": cpu("3"), "allocatedResources": {"cpu": "2"}}]}});
        assert_eq!(of_pod(&pod, Side::Requests)["cpu"].to_string(), "3");
    }
}
