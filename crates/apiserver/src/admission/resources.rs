//! What a pod asks for: the sums that limits and quotas look at.

use std::collections::BTreeMap;

use api::quantity::Quantity;
use serde_json::Value;

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
fn raise(sum: &mut Amounts, other: &Amounts) {
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

/// What a pod needs of `requests` or `limits`: all containers together, or the largest start-up moment. Init
/// containers that go on running (sidecars) count with both.
pub fn of_pod(spec: &Value, what: &str) -> Amounts {
    let mut running = Amounts::new();
    let mut starting = Amounts::new();
    for container in containers(spec, "initContainers") {
        let own = amounts(&container["resources"][what]);
        if container["restartPolicy"] == "Always" {
            add(&mut running, &own);
            raise(&mut starting, &running.clone());
        } else {
            let mut moment = running.clone();
            add(&mut moment, &own);
            raise(&mut starting, &moment);
        }
    }
    for container in containers(spec, "containers") {
        add(&mut running, &amounts(&container["resources"][what]));
    }
    raise(&mut running, &starting);
    // resources of the pod as a whole replace the sums
    for (name, amount) in amounts(&spec["resources"][what]) {
        running.insert(name, amount);
    }
    if what == "requests" || !running.is_empty() {
        let overhead = amounts(&spec["overhead"]);
        let counted: Amounts = overhead
            .into_iter()
            .filter(|(name, _)| what == "requests" || running.contains_key(name))
            .collect();
        add(&mut running, &counted);
    }
    running
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_needs_its_sum_or_its_largest_start() {
        let cpu = |v: &str| json!({"requests": {"cpu": v}});
        let spec = json!({"containers": [{"resources": cpu("1")}, {"resources": cpu("500m")}],
            "initContainers": [{"resources": cpu("300m"), "restartPolicy": "Always"}, {"resources": cpu("2")}]});
        assert_eq!(of_pod(&spec, "requests")["cpu"].to_string(), "2300m");
        let small =
            json!({"containers": [{"resources": cpu("1")}], "initContainers": [{"resources": cpu("100m")}]});
        assert_eq!(of_pod(&small, "requests")["cpu"].to_string(), "1");
    }
}
