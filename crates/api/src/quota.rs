//! What objects use of a ResourceQuota: names, amounts, scopes. Admission charges with it, the quota controller counts
//! with it.
//!
//! Rule: Kubernetes documentation, "Resource Quotas".

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kinds::Kind;
use crate::names;
use crate::quantity::{Format, Quantity};
use crate::resources::{self, Amounts, Side, amounts};

/// Resources that quotas know without a prefix, and under `requests.` and `limits.`.
const COMPUTE: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
/// Resources of claims, alone and behind the name of a storage class.
const CLAIMED: [&str; 2] = ["persistentvolumeclaims", "requests.storage"];
const OF_STORAGE_CLASS: &str = ".storageclass.storage.k8s.io/";
const OF_DEVICE_CLASS: &str = ".deviceclass.resource.k8s.io/devices";
/// Devices of a class that are asked for as an extended resource.
pub const IMPLICIT_DEVICES: &str = "deviceclass.resource.kubernetes.io/";
/// The most devices one claim can be given: what a request for all of them counts as.
const MOST_DEVICES: i64 = 32;

/// Kinds whose objects are not counted: they are not stored, or too many.
fn is_ignored(kind: &Kind) -> bool {
    let is_event = kind.plural == "events" && matches!(kind.group.as_str(), "" | "events.k8s.io");
    !kind.namespaced || !kind.is_stored() || is_event
}

/// Core kinds that count under their own name beside `count/…`.
fn has_short_name(kind: &Kind) -> bool {
    const SHORT: [&str; 7] = [
        "pods",
        "services",
        "persistentvolumeclaims",
        "configmaps",
        "resourcequotas",
        "replicationcontrollers",
        "secrets",
    ];
    kind.group.is_empty() && SHORT.contains(&kind.plural.as_str())
}

fn is_core(kind: &Kind, plural: &str) -> bool {
    kind.group.is_empty() && kind.plural == plural
}

fn is_device_claim(kind: &Kind) -> bool {
    kind.group == "resource.k8s.io" && kind.plural == "resourceclaims"
}

/// Whether a resource belongs to Kubernetes itself.
fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Whether a name is one that devices are asked for by: of a domain of its own.
pub fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && names::qualified_name(&format!("requests.{name}")).is_empty()
}

/// Whether objects of a kind can use a resource of a quota.
pub fn tracks(kind: &Kind, resource: &str) -> bool {
    if is_ignored(kind) {
        return false;
    }
    if resource.strip_prefix("count/").is_some_and(|counted| counted == kind.resource()) {
        return true;
    }
    if has_short_name(kind) && resource == kind.plural {
        return true;
    }
    let extended = || !is_native(resource) && resource.starts_with("requests.");
    let implicit =
        || resource.strip_prefix("requests.").is_some_and(|name| name.starts_with(IMPLICIT_DEVICES));
    if is_core(kind, "pods") {
        let bare =
            resource.strip_prefix("requests.").or(resource.strip_prefix("limits.")).unwrap_or(resource);
        return COMPUTE.contains(&bare)
            || resource.starts_with("hugepages-")
            || resource.starts_with("requests.hugepages-")
            || extended()
            || implicit();
    }
    if is_core(kind, "services") {
        return matches!(resource, "services.nodeports" | "services.loadbalancers");
    }
    if is_core(kind, "persistentvolumeclaims") {
        return CLAIMED.contains(&resource)
            || resource.split_once(OF_STORAGE_CLASS).is_some_and(|(_, what)| CLAIMED.contains(&what));
    }
    is_device_claim(kind) && (resource.ends_with(OF_DEVICE_CLASS) || extended() || implicit())
}

/// Whether a change of an object can change what it uses.
pub fn may_change(kind: &Kind, subresource: &str) -> bool {
    match subresource {
        "" => is_core(kind, "services") || is_core(kind, "persistentvolumeclaims") || is_device_claim(kind),
        "resize" => is_core(kind, "pods"),
        "status" => is_core(kind, "persistentvolumeclaims"),
        _ => false,
    }
}

fn whole(value: i64) -> Quantity {
    Quantity::from_value(value, Format::DecimalSi)
}

/// What an object uses, by the names quotas have for it. `extended` names the extended resource of a device class.
pub fn usage(
    kind: &Kind,
    object: &Value,
    now: Timestamp,
    extended: &dyn Fn(&str) -> Option<String>,
) -> Amounts {
    let mut used = Amounts::new();
    if is_ignored(kind) {
        return used;
    }
    used.insert(format!("count/{}", kind.resource()), whole(1));
    if is_core(kind, "pods") {
        // what has ended uses nothing but its place in the store
        if !has_ended(object, now) {
            pod(object, &mut used);
        }
        return used;
    }
    if has_short_name(kind) {
        used.insert(kind.plural.clone(), whole(1));
    }
    if is_core(kind, "services") {
        service(&object["spec"], &mut used);
    } else if is_core(kind, "persistentvolumeclaims") {
        volume_claim(object, &mut used);
    } else if is_device_claim(kind) {
        device_claim(object, &mut used, extended);
    }
    used
}

/// Whether a pod is through with its work, or was given up by its node.
fn has_ended(pod: &Value, now: Timestamp) -> bool {
    if matches!(pod["status"]["phase"].as_str(), Some("Failed" | "Succeeded")) {
        return true;
    }
    let meta = &pod["metadata"];
    let (Some(deleted), Some(grace)) = (
        meta["deletionTimestamp"].as_str().and_then(|t| t.parse::<Timestamp>().ok()),
        meta["deletionGracePeriodSeconds"].as_i64(),
    ) else {
        return false;
    };
    now.as_second() > deleted.as_second().saturating_add(grace)
}

fn pod(pod: &Value, used: &mut Amounts) {
    used.insert("pods".to_owned(), whole(1));
    for (name, amount) in resources::of_pod(pod, Side::Requests) {
        let huge = name.starts_with("hugepages-");
        if COMPUTE.contains(&name.as_str()) || huge {
            used.insert(format!("requests.{name}"), amount);
            used.insert(name, amount);
        } else if is_extended(&name) || name.starts_with(IMPLICIT_DEVICES) {
            used.insert(format!("requests.{name}"), amount);
        }
    }
    for (name, amount) in resources::of_pod(pod, Side::Limits) {
        if COMPUTE.contains(&name.as_str()) {
            used.insert(format!("limits.{name}"), amount);
        }
    }
}

fn service(spec: &Value, used: &mut Amounts) {
    let ports = spec["ports"].as_array().map_or(&[][..], Vec::as_slice);
    let (mut balancers, mut node_ports) = (0, 0);
    match spec["type"].as_str() {
        Some("NodePort") => node_ports = ports.len(),
        Some("LoadBalancer") => {
            balancers = 1;
            node_ports = match spec["allocateLoadBalancerNodePorts"] == false {
                true => ports.iter().filter(|p| p["nodePort"].as_i64().is_some_and(|n| n != 0)).count(),
                false => ports.len(),
            };
        }
        _ => {}
    }
    used.insert("services.loadbalancers".to_owned(), whole(balancers));
    used.insert("services.nodeports".to_owned(), whole(node_ports as i64));
}

fn volume_claim(claim: &Value, used: &mut Amounts) {
    const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
    let noted = claim["metadata"]["annotations"][OLD_CLASS].as_str();
    let class = noted.or(claim["spec"]["storageClassName"].as_str()).unwrap_or_default();
    let of_class = |what: &str| format!("{class}{OF_STORAGE_CLASS}{what}");
    if !class.is_empty() {
        used.insert(of_class("persistentvolumeclaims"), whole(1));
    }
    let Some(mut size) = amounts(&claim["spec"]["resources"]["requests"]).remove("storage") else { return };
    // a claim that is to shrink again still has what it was given
    if let Some(given) = amounts(&claim["status"]["allocatedResources"]).remove("storage")
        && given > size
    {
        size = given;
    }
    // fractions of a byte are refused in quotas
    let size =
        if size.millis() % 1000 == 0 { size } else { Quantity::from_value(size.value(), size.format()) };
    used.insert("requests.storage".to_owned(), size);
    if !class.is_empty() {
        used.insert(of_class("requests.storage"), size);
    }
}

fn device_claim(claim: &Value, used: &mut Amounts, extended: &dyn Fn(&str) -> Option<String>) {
    const BY_SCHEDULER: &str = "resource.kubernetes.io/extended-resource-claim";
    // what the scheduler makes for a pod's extended resources is charged with the pod
    let with_pod = claim["metadata"]["annotations"][BY_SCHEDULER] == "true"
        && claim["metadata"]["ownerReferences"]
            .as_array()
            .is_some_and(|l| l.iter().any(|o| o["controller"] == true && o["kind"] == "Pod"));
    let charge = |into: &mut Amounts, request: &Value| {
        let class = request["deviceClassName"].as_str().unwrap_or_default();
        let devices = whole(match request["allocationMode"].as_str() {
            Some("ExactCount") => request["count"].as_i64().unwrap_or(1),
            Some("All") => MOST_DEVICES,
            _ => 0,
        });
        let mut own = Amounts::from([(format!("{class}{OF_DEVICE_CLASS}"), devices)]);
        if !with_pod {
            own.insert(format!("requests.{IMPLICIT_DEVICES}{class}"), devices);
            own.extend(extended(class).map(|name| (format!("requests.{name}"), devices)));
        }
        resources::raise(into, &own);
    };
    for request in claim["spec"]["devices"]["requests"].as_array().into_iter().flatten() {
        // of alternatives the worst counts, for each class
        let mut worst = Amounts::new();
        match request["firstAvailable"].as_array() {
            Some(alternatives) if !alternatives.is_empty() => {
                alternatives.iter().for_each(|alternative| charge(&mut worst, alternative));
            }
            _ if request["exactly"].is_object() => charge(&mut worst, &request["exactly"]),
            _ => {}
        }
        resources::add(used, &worst);
    }
}

/// What a quota's scopes and scope selector ask of an object, all as expressions.
pub fn selectors(quota: &Value) -> Vec<Value> {
    let scopes = quota["spec"]["scopes"].as_array().into_iter().flatten();
    let listed = scopes.map(|scope| json!({"scopeName": scope, "operator": "Exists"}));
    let chosen = quota["spec"]["scopeSelector"]["matchExpressions"].as_array().into_iter().flatten();
    listed.chain(chosen.cloned()).collect()
}

/// Whether a quota's scopes take in an object. One with scopes takes in pods and claims only, as each scope allows.
pub fn is_in_scopes(quota: &Value, kind: &Kind, object: &Value) -> bool {
    selectors(quota).iter().all(|expression| {
        if is_core(kind, "pods") {
            is_pod_in(expression, object)
        } else {
            is_core(kind, "persistentvolumeclaims") && is_claim_in(expression, object)
        }
    })
}

/// Whether one of `values` (none: the object has no such thing) is chosen by an expression.
fn is_chosen(expression: &Value, values: &[&str]) -> bool {
    let listed = |value: &str| expression["values"].as_array().is_some_and(|l| l.iter().any(|v| v == value));
    match expression["operator"].as_str() {
        Some("In") => values.iter().any(|v| listed(v)),
        Some("NotIn") => values.is_empty() || values.iter().any(|v| !listed(v)),
        Some("DoesNotExist") => values.is_empty(),
        _ => !values.is_empty(),
    }
}

fn some<'a>(values: &[&'a Value]) -> Vec<&'a str> {
    values.iter().filter_map(|v| v.as_str()).filter(|v| !v.is_empty()).collect()
}

fn is_pod_in(expression: &Value, pod: &Value) -> bool {
    let spec = &pod["spec"];
    let best_effort = pod["status"]["qosClass"] == "BestEffort";
    let terminating = spec["activeDeadlineSeconds"].as_i64().is_some_and(|s| s >= 0);
    match expression["scopeName"].as_str().unwrap_or_default() {
        "BestEffort" => best_effort,
        "NotBestEffort" => !best_effort,
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "PriorityClass" => is_chosen(expression, &some(&[&spec["priorityClassName"]])),
        "CrossNamespacePodAffinity" => looks_into_other_namespaces(&spec["affinity"]),
        _ => false,
    }
}

fn looks_into_other_namespaces(affinity: &Value) -> bool {
    let crosses = |term: &Value| {
        term["namespaces"].as_array().is_some_and(|l| !l.is_empty()) || term["namespaceSelector"].is_object()
    };
    ["podAffinity", "podAntiAffinity"].iter().map(|kind| &affinity[*kind]).any(|kind| {
        let required = kind["requiredDuringSchedulingIgnoredDuringExecution"].as_array();
        let preferred = kind["preferredDuringSchedulingIgnoredDuringExecution"].as_array();
        required.into_iter().flatten().any(crosses)
            || preferred.into_iter().flatten().any(|term| crosses(&term["podAffinityTerm"]))
    })
}

fn is_claim_in(expression: &Value, claim: &Value) -> bool {
    let status = &claim["status"];
    let names = some(&[
        &claim["spec"]["volumeAttributesClassName"],
        &status["currentVolumeAttributesClassName"],
        &status["modifyVolumeStatus"]["targetVolumeAttributesClassName"],
    ]);
    expression["scopeName"] == "VolumeAttributesClass" && is_chosen(expression, &names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;

    fn used(group: &str, plural: &str, object: Value) -> String {
        let kind = kinds::find(group, "v1", plural).unwrap();
        let class = |name: &str| (name == "gpus").then(|| "example.com/gpu".to_owned());
        let used = usage(kind, &object, Timestamp::UNIX_EPOCH, &class);
        assert!(used.keys().all(|name| tracks(kind, name)), "{used:?}");
        used.iter().map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_pod_uses_what_its_containers_ask_for() {
        let spec = json!({"containers": [{"resources": {
            "requests": {"cpu": "1", "example.com/gpu": "2", "hugepages-2Mi": "4Mi"}, "limits": {"memory": "1Gi"}}}]});
        assert_eq!(
            used("", "pods", json!({"spec": spec})),
            "count/pods=1 cpu=1 hugepages-2Mi=4Mi limits.memory=1Gi pods=1 requests.cpu=1 requests.example.com/gpu=2 requests.hugepages-2Mi=4Mi"
        );
        assert_eq!(used("", "pods", json!({"spec": spec, "status": {"phase": "Succeeded"}})), "count/pods=1");
    }

    #[test]
    fn a_load_balancer_uses_node_ports_unless_it_wants_none() {
        let ports = json!([{"port": 1}, {"port": 2, "nodePort": 30001}]);
        let balancer = json!({"spec": {"type": "LoadBalancer", "ports": ports}});
        assert_eq!(
            used("", "services", balancer.clone()),
            "count/services=1 services=1 services.loadbalancers=1 services.nodeports=2"
        );
        let mut own = balancer;
        own["spec"]["allocateLoadBalancerNodePorts"] = json!(false);
        assert!(used("", "services", own).ends_with("services.nodeports=1"));
        assert!(used("", "services", json!({"spec": {"ports": ports}})).ends_with("services.nodeports=0"));
    }

    #[test]
    fn a_claim_uses_storage_of_its_class_in_whole_bytes() {
        let claim =
            json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "1500m"}}}});
        assert_eq!(
            used("", "persistentvolumeclaims", claim),
            "count/persistentvolumeclaims=1 gold.storageclass.storage.k8s.io/persistentvolumeclaims=1 gold.storageclass.storage.k8s.io/requests.storage=2 persistentvolumeclaims=1 requests.storage=2"
        );
    }

    #[test]
    fn of_alternative_devices_the_worst_counts() {
        let claim = json!({"spec": {"devices": {"requests": [
            {"firstAvailable": [{"deviceClassName": "gpus", "allocationMode": "ExactCount", "count": 2},
                {"deviceClassName": "gpus", "allocationMode": "ExactCount", "count": 4}]},
            {"exactly": {"deviceClassName": "gpus", "allocationMode": "All"}}]}}});
        assert_eq!(
            used("resource.k8s.io", "resourceclaims", claim),
            "count/resourceclaims.resource.k8s.io=1 gpus.deviceclass.resource.k8s.io/devices=36 requests.deviceclass.resource.kubernetes.io/gpus=36 requests.example.com/gpu=36"
        );
    }

    #[test]
    fn scopes_choose_pods_and_claims() {
        let pods = kinds::find("", "v1", "pods").unwrap();
        let chosen = |expression: Value, pod: Value| {
            let quota = json!({"spec": {"scopeSelector": {"matchExpressions": [expression]}}});
            is_in_scopes(&quota, pods, &pod)
        };
        let class =
            |operator: &str| json!({"scopeName": "PriorityClass", "operator": operator, "values": ["high"]});
        let (high, none) = (json!({"spec": {"priorityClassName": "high"}}), json!({"spec": {}}));
        assert!(chosen(class("In"), high.clone()) && !chosen(class("In"), none.clone()));
        assert!(chosen(class("NotIn"), none.clone()) && !chosen(class("NotIn"), high.clone()));
        assert!(chosen(class("DoesNotExist"), none.clone()) && chosen(class("Exists"), high));
        let crosses = json!({"scopeName": "CrossNamespacePodAffinity", "operator": "Exists"});
        let term = json!({"podAffinityTerm": {"namespaceSelector": {}, "topologyKey": "a"}});
        let pod = json!({"spec": {"affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [term]}}}});
        assert!(chosen(crosses.clone(), pod) && !chosen(crosses, none));
        let services = kinds::find("", "v1", "services").unwrap();
        assert!(!is_in_scopes(&json!({"spec": {"scopes": ["NotTerminating"]}}), services, &json!({})));
    }
}
