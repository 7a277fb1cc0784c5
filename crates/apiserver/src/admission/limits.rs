//! LimitRanges: defaults for containers that ask for nothing, and bounds on containers, pods and claims.
//!
//! Rule: Kubernetes documentation, "Limit Ranges".

use std::cmp::Ordering;

use api::meta;
use api::quantity::Quantity;
use api::resources::{self, Amounts, Side, amounts};
use serde_json::{Map, Value, json};

const NOTE: &str = "kubernetes.io/limit-ranger";

/// Fills in the defaults of `ranges` (LimitRange objects) and notes them in an annotation.
pub fn default(ranges: &[Value], pod: &mut Value) {
    for range in ranges {
        let (mut limits, mut requests) = (Map::new(), Map::new());
        for item in items(range, "Container") {
            merge(&mut limits, &item["default"]);
            merge(&mut requests, &item["defaultRequest"]);
        }
        let mut notes = Vec::new();
        for (list, what) in [("containers", "container"), ("initContainers", "init container")] {
            let there = pod.pointer_mut(&format!("/spec/{list}")).and_then(Value::as_array_mut);
            for container in there.into_iter().flatten() {
                for (place, word, defaults) in
                    [("requests", "request", &requests), ("limits", "limit", &limits)]
                {
                    let set = fill(container, place, defaults);
                    if !set.is_empty() {
                        let name = container["name"].as_str().unwrap_or_default();
                        notes.push(format!("{} {word} for {what} {name}", set.join(", ")));
                    }
                }
            }
        }
        if !notes.is_empty() {
            let text = format!("LimitRanger plugin set: {}", notes.join("; "));
            meta::child_mut(meta::metadata_mut(pod), "annotations").insert(NOTE.to_owned(), json!(text));
        }
    }
}

fn items<'a>(range: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    range["spec"]["limits"].as_array().into_iter().flatten().filter(move |i| i["type"] == kind)
}

fn merge(into: &mut Map<String, Value>, from: &Value) {
    for (name, value) in from.as_object().into_iter().flatten() {
        into.insert(name.clone(), value.clone());
    }
}

/// Sets what a container lacks; the names that were set, sorted.
fn fill(container: &mut Value, place: &str, defaults: &Map<String, Value>) -> Vec<String> {
    let Some(container) = container.as_object_mut().filter(|_| !defaults.is_empty()) else {
        return Vec::new();
    };
    let there = meta::child_mut(meta::child_mut(container, "resources"), place);
    let mut set = Vec::new();
    for (name, value) in defaults {
        if !there.contains_key(name) {
            there.insert(name.clone(), value.clone());
            set.push(name.clone());
        }
    }
    set.sort();
    set
}

/// What a pod does that a LimitRange forbids.
pub fn pod_violations(range: &Value, spec: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for item in range["spec"]["limits"].as_array().into_iter().flatten() {
        match item["type"].as_str() {
            Some("Container") => {
                for list in ["containers", "initContainers"] {
                    for container in resources::containers(spec, list) {
                        let resources = &container["resources"];
                        let asked = amounts(&resources["requests"]);
                        check(item, "Container", &asked, &amounts(&resources["limits"]), &mut found);
                    }
                }
            }
            Some("Pod") => {
                let of = |side| resources::of_spec(spec, side);
                check(item, "Pod", &of(Side::Requests), &of(Side::Limits), &mut found);
            }
            _ => {}
        }
    }
    found
}

fn check(item: &Value, of: &str, requests: &Amounts, limits: &Amounts, found: &mut Vec<String>) {
    for (name, least) in amounts(&item["min"]) {
        let head = format!("minimum {name} usage per {of} is {least}");
        match (requests.get(&name), limits.get(&name)) {
            (None, _) => found.push(format!("{head}.  No request is specified")),
            (Some(r), _) if *r < least => found.push(format!("{head}, but request is {r}")),
            (_, Some(l)) if *l < least => found.push(format!("{head}, but limit is {l}")),
            _ => {}
        }
    }
    for (name, most) in amounts(&item["max"]) {
        let head = format!("maximum {name} usage per {of} is {most}");
        match (requests.get(&name), limits.get(&name)) {
            (_, None) => found.push(format!("{head}.  No limit is specified")),
            (_, Some(l)) if *l > most => found.push(format!("{head}, but limit is {l}")),
            (Some(r), _) if *r > most => found.push(format!("{head}, but request is {r}")),
            _ => {}
        }
    }
    for (name, ratio) in amounts(&item["maxLimitRequestRatio"]) {
        let head = format!("{name} max limit to request ratio per {of} is {ratio}");
        let some = |list: &Amounts| list.get(&name).copied().filter(|q| q.signum() > 0);
        match (some(requests), some(limits)) {
            (None, _) => found.push(format!("{head}, but no request is specified or request is 0")),
            (_, None) => found.push(format!("{head}, but no limit is specified or limit is 0")),
            (Some(r), Some(l)) => {
                let given = l.to_f64() / r.to_f64();
                if given.partial_cmp(&ratio.to_f64()) == Some(Ordering::Greater) {
                    found.push(format!("{head}, but provided ratio is {given:.6}"));
                }
            }
        }
    }
}

/// What a claim asks for that a LimitRange forbids.
pub fn claim_violations(range: &Value, spec: &Value) -> Vec<String> {
    let asked = amounts(&spec["resources"]["requests"]);
    let mut found = Vec::new();
    let beyond = |name: &str, bound: &Quantity, wrong: Ordering, word: &str| {
        let head = format!("{word} {name} usage per PersistentVolumeClaim is {bound}");
        match asked.get(name) {
            None => Some(format!("{head}.  No request is specified")),
            Some(r) if r.cmp(bound) == wrong => Some(format!("{head}, but request is {r}")),
            Some(_) => None,
        }
    };
    for item in items(range, "PersistentVolumeClaim") {
        for (name, least) in amounts(&item["min"]) {
            found.extend(beyond(&name, &least, Ordering::Less, "minimum"));
        }
        for (name, most) in amounts(&item["max"]) {
            found.extend(beyond(&name, &most, Ordering::Greater, "maximum"));
        }
    }
    found
}

/// Several refusals as one text.
pub fn aggregate(mut found: Vec<String>) -> String {
    let mut seen = Vec::new();
    found.retain(|text| {
        !seen.contains(text) && {
            seen.push(text.clone());
            true
        }
    });
    match found.as_slice() {
        [only] => only.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(item: Value) -> Value {
        json!({"spec": {"limits": [item]}})
    }

    #[test]
    fn defaults_fill_what_is_missing_and_are_noted() {
        let ranges =
            range(json!({"type": "Container", "default": {"cpu": "2"}, "defaultRequest": {"cpu": "1"}}));
        let mut pod = json!({"metadata": {}, "spec": {"containers": [
            {"name": "a"}, {"name": "b", "resources": {"limits": {"cpu": "9"}, "requests": {"cpu": "9"}}}]}});
        default(&[ranges], &mut pod);
        assert_eq!(
            pod["metadata"]["annotations"][NOTE],
            "LimitRanger plugin set: cpu request for container a; cpu limit for container a"
        );
        assert_eq!(pod["spec"]["containers"][0]["resources"]["limits"]["cpu"], "2");
        assert_eq!(pod["spec"]["containers"][1]["resources"]["limits"]["cpu"], "9");
    }

    #[test]
    fn bounds_hold_for_containers_and_for_the_pod() {
        let spec = json!({"containers": [{"resources": {"limits": {"cpu": "2"}, "requests": {"cpu": "1"}}}]});
        let check = |item| aggregate(pod_violations(&range(item), &spec));
        assert_eq!(
            check(json!({"type": "Container", "max": {"cpu": "1"}})),
            "maximum cpu usage per Container is 1, but limit is 2"
        );
        assert_eq!(
            check(json!({"type": "Pod", "min": {"memory": "1Gi"}})),
            "minimum memory usage per Pod is 1Gi.  No request is specified"
        );
        assert_eq!(
            check(json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "1500m"}})),
            "cpu max limit to request ratio per Container is 1500m, but provided ratio is 2.000000"
        );
        assert_eq!(check(json!({"type": "Container", "max": {"cpu": "2"}})), "[]");
        // resources of the pod as a whole stand for its containers', and its runtime's overhead is not its own
        let whole = json!({"containers": spec["containers"], "overhead": {"cpu": "1"},
            "resources": {"limits": {"cpu": "4"}, "requests": {"cpu": "4"}}});
        let most = range(json!({"type": "Pod", "max": {"cpu": "3"}}));
        assert_eq!(pod_violations(&most, &whole), ["maximum cpu usage per Pod is 3, but limit is 4"]);
    }
}
