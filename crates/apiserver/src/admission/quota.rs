//! ResourceQuotas: what a new object uses is compared with, and charged to, every quota of its namespace.
//!
//! Rule: Kubernetes documentation, "Resource Quotas". A quota counts only what its controller has begun to count
//! (`status`). The charge is one compare-and-swap of the quota's status, so two creations never share the last unit.

use std::cmp::Ordering;
use std::sync::Arc;

use api::kinds::Kind;
use api::meta;
use api::quantity::Quantity;
use serde_json::{Value, json};

use super::resources::{self, Amounts, amounts};
use crate::registry::{Registry, Target};
use crate::status::{ApiError, ApiResult};

/// The kind of quotas.
pub fn kind() -> Option<&'static Arc<Kind>> {
    api::kinds::find("", "v1", "resourcequotas")
}

/// What was charged to which quotas for one object.
#[derive(Debug, Default)]
#[must_use]
pub struct Charged {
    namespace: String,
    /// Names of quotas.
    quotas: Vec<String>,
    used: Amounts,
}

impl Charged {
    /// Records a charge.
    pub fn add(&mut self, namespace: &str, quota: &str, used: &Amounts) {
        namespace.clone_into(&mut self.namespace);
        self.used.clone_from(used);
        self.quotas.push(quota.to_owned());
    }

    /// Takes the charges back: the object was not stored.
    pub async fn give_back(self, registry: &Registry) {
        let Some(kind) = kind() else { return };
        for name in &self.quotas {
            let target = Target { kind, namespace: &self.namespace, name, subresource: "status" };
            if let Err(error) = registry.update(target, false, |quota| Ok(less(quota, &self.used))).await
                && !error.is_not_found()
            {
                // the controller counts anew before long
                tracing::warn!(quota = name, %error, "a charge for what was not stored stays for now");
            }
        }
    }
}

/// A quota without a charge; never below zero.
fn less(quota: &Value, used: &Amounts) -> Value {
    let (mut new, before) = (quota.clone(), amounts(&quota["status"]["used"]));
    for (resource, amount) in used {
        if let Some(had) = before.get(resource) {
            let left = had.minus(amount);
            let left = if left.cmp(&Quantity::ZERO) == Ordering::Less { Quantity::ZERO } else { left };
            new["status"]["used"][resource] = json!(left.to_string());
        }
    }
    new
}

/// What a new object of a kind uses, by the names quotas have for it.
pub fn usage(kind: &Kind, object: &Value) -> Amounts {
    let one = Quantity::from_value(1, Quantity::ZERO.format());
    let mut used = Amounts::new();
    used.insert(format!("count/{}", kind.resource()), one);
    if !kind.group.is_empty() {
        return used;
    }
    let spec = &object["spec"];
    match kind.plural.as_str() {
        "pods" => pod_usage(spec, &mut used),
        "services" => service_usage(spec, &mut used),
        "persistentvolumeclaims" => claim_usage(spec, &mut used),
        "replicationcontrollers" | "resourcequotas" | "secrets" | "configmaps" => {}
        _ => return used,
    }
    used.insert(kind.plural.clone(), one);
    used
}

/// Resources that quotas know without a prefix, and under `requests.` and `limits.`.
const NATIVE: &[&str] = &["cpu", "memory", "ephemeral-storage"];

fn pod_usage(spec: &Value, used: &mut Amounts) {
    for (name, amount) in resources::of_pod(spec, "requests") {
        if NATIVE.contains(&name.as_str()) || name.starts_with("hugepages-") {
            used.insert(name.clone(), amount);
        }
        used.insert(format!("requests.{name}"), amount);
    }
    for (name, amount) in resources::of_pod(spec, "limits") {
        if NATIVE.contains(&name.as_str()) {
            used.insert(format!("limits.{name}"), amount);
        }
    }
}

fn service_usage(spec: &Value, used: &mut Amounts) {
    let ports = spec["ports"].as_array().map_or(0, Vec::len) as i64;
    let count = |n: i64| Quantity::from_value(n, Quantity::ZERO.format());
    let with_ports = match spec["type"].as_str() {
        Some("NodePort") => true,
        Some("LoadBalancer") => {
            used.insert("services.loadbalancers".to_owned(), count(1));
            spec["allocateLoadBalancerNodePorts"] != false
        }
        _ => false,
    };
    if with_ports {
        used.insert("services.nodeports".to_owned(), count(ports));
    }
}

fn claim_usage(spec: &Value, used: &mut Amounts) {
    let class = spec["storageClassName"].as_str().unwrap_or_default();
    let of_class = |what: &str| format!("{class}.storageclass.storage.k8s.io/{what}");
    if !class.is_empty() {
        let one = Quantity::from_value(1, Quantity::ZERO.format());
        used.insert(of_class("persistentvolumeclaims"), one);
    }
    if let Some(size) = amounts(&spec["resources"]["requests"]).remove("storage") {
        used.insert("requests.storage".to_owned(), size);
        if !class.is_empty() {
            used.insert(of_class("requests.storage"), size);
        }
    }
}

/// Whether a quota's scopes take in an object; quotas with scopes look at pods only.
fn in_scope(quota: &Value, kind: &Kind, object: &Value) -> bool {
    let scopes = quota["spec"]["scopes"].as_array().into_iter().flatten();
    let mut wanted: Vec<Value> =
        scopes.map(|scope| json!({"scopeName": scope, "operator": "Exists"})).collect();
    wanted
        .extend(quota["spec"]["scopeSelector"]["matchExpressions"].as_array().into_iter().flatten().cloned());
    if wanted.is_empty() {
        return true;
    }
    if !kind.group.is_empty() || kind.plural != "pods" {
        return false;
    }
    let spec = &object["spec"];
    let best_effort = object["status"]["qosClass"] == "BestEffort";
    let terminating = spec["activeDeadlineSeconds"].as_i64().is_some();
    wanted.iter().all(|e| match e["scopeName"].as_str().unwrap_or_default() {
        "BestEffort" => best_effort,
        "NotBestEffort" => !best_effort,
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "PriorityClass" => {
            let class = spec["priorityClassName"].as_str().unwrap_or_default();
            let listed = e["values"].as_array().is_some_and(|l| l.iter().any(|v| v == class));
            match e["operator"].as_str() {
                Some("In") => listed,
                Some("NotIn") => !listed,
                Some("DoesNotExist") => class.is_empty(),
                _ => !class.is_empty(),
            }
        }
        "CrossNamespacePodAffinity" => ["podAffinity", "podAntiAffinity"]
            .iter()
            .any(|kind| spec["affinity"][kind].to_string().contains("\"namespace")),
        _ => false,
    })
}

/// Whether a quota has to be charged for an object that uses `used`.
pub fn concerns(quota: &Value, kind: &Kind, object: &Value, used: &Amounts) -> bool {
    let counted = amounts(&quota["status"]["hard"]);
    in_scope(quota, kind, object) && used.keys().any(|name| counted.contains_key(name))
        || in_scope(quota, kind, object)
            && kind.plural == "pods"
            && !missing(quota, &object["spec"]).is_empty()
}

/// Resources that every container must name because the quota counts them: `limits.cpu for: a,b`.
fn missing(quota: &Value, spec: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for name in amounts(&quota["status"]["hard"]).keys() {
        let (place, resource) = match name.split_once('.') {
            Some((place @ ("requests" | "limits"), resource)) if NATIVE[..2].contains(&resource) => {
                (place, resource)
            }
            None if NATIVE[..2].contains(&name.as_str()) => ("requests", name.as_str()),
            _ => continue,
        };
        if !spec["resources"][place][resource].is_null() {
            continue;
        }
        let mut lacking: Vec<&str> = ["containers", "initContainers"]
            .iter()
            .flat_map(|list| resources::containers(spec, list))
            .filter(|c| c["resources"][place][resource].is_null())
            .filter_map(|c| c["name"].as_str())
            .collect();
        lacking.sort_unstable();
        if !lacking.is_empty() {
            lines.push(format!("{name} for: {}", lacking.join(",")));
        }
    }
    lines
}

/// Charges an object to a quota: the new state of the quota, or why not.
pub fn charge(kind: &Kind, object: &Value, used: &Amounts, quota: &Value) -> ApiResult<Value> {
    let (name, of_quota) = (meta::name(object), meta::name(quota));
    if kind.group.is_empty() && kind.plural == "pods" {
        let missing = missing(quota, &object["spec"]);
        if !missing.is_empty() {
            let why = format!("failed quota: {of_quota}: must specify {}", missing.join("; "));
            return Err(ApiError::forbidden(kind, name, &why));
        }
    }
    let (hard, before) = (amounts(&quota["status"]["hard"]), amounts(&quota["status"]["used"]));
    let counted: Vec<(&String, &Quantity)> = used.iter().filter(|(n, _)| hard.contains_key(*n)).collect();
    let unknown: Vec<&str> =
        counted.iter().filter(|(n, _)| !before.contains_key(*n)).map(|(n, _)| n.as_str()).collect();
    if !unknown.is_empty() {
        let why = format!("status unknown for quota: {of_quota}, resources: {}", unknown.join(","));
        return Err(ApiError::forbidden(kind, name, &why));
    }
    let mut new = quota.clone();
    let (mut requested, mut had, mut limited) = (Vec::new(), Vec::new(), Vec::new());
    for (resource, amount) in counted {
        let after = before[resource].plus(amount);
        if after.cmp(&hard[resource]) == Ordering::Greater {
            requested.push(format!("{resource}={amount}"));
            had.push(format!("{resource}={}", before[resource]));
            limited.push(format!("{resource}={}", hard[resource]));
        }
        new["status"]["used"][resource] = json!(after.to_string());
    }
    if requested.is_empty() {
        return Ok(new);
    }
    let why = format!(
        "exceeded quota: {of_quota}, requested: {}, used: {}, limited: {}",
        requested.join(","),
        had.join(","),
        limited.join(",")
    );
    Err(ApiError::forbidden(kind, name, &why))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn try_charge(hard: Value, used: Value, pod: Value) -> String {
        let kind = api::kinds::find("", "v1", "pods").unwrap();
        let quota = json!({"metadata": {"name": "q"}, "spec": {}, "status": {"hard": hard, "used": used}});
        let asked = usage(kind, &pod);
        match charge(kind, &pod, &asked, &quota) {
            Ok(new) => new["status"]["used"].to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_pod_is_charged_or_refused() {
        let pod = json!({"metadata": {"name": "p"},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1500m"}}}]}});
        let hard = json!({"requests.cpu": "2", "pods": "5"});
        assert_eq!(
            try_charge(hard.clone(), json!({"requests.cpu": "0", "pods": "1"}), pod.clone()),
            r#"{"pods":"2","requests.cpu":"1500m"}"#
        );
        assert_eq!(
            try_charge(hard.clone(), json!({"requests.cpu": "1", "pods": "1"}), pod.clone()),
            "pods \"p\" is forbidden: exceeded quota: q, requested: requests.cpu=1500m, used: requests.cpu=1, limited: requests.cpu=2"
        );
        assert_eq!(
            try_charge(hard, json!({"pods": "1"}), pod.clone()),
            "pods \"p\" is forbidden: status unknown for quota: q, resources: requests.cpu"
        );
        assert_eq!(
            try_charge(json!({"limits.cpu": "2"}), json!({"limits.cpu": "0"}), pod),
            "pods \"p\" is forbidden: failed quota: q: must specify limits.cpu for: c"
        );
    }
}
