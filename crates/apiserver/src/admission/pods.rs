//! What admission makes of a new pod: its account and token, priority, tolerations, runtime class.

use api::kinds::Kind;
use api::meta;
use serde_json::{Value, json};

use super::as_map;
use crate::status::{ApiError, ApiResult};
use crate::watch_cache::WatchCache;

/// Gives the pod its service account, with pull secrets and token.
pub fn service_account(cache: &WatchCache, kind: &Kind, namespace: &str, pod: &mut Value) -> ApiResult<()> {
    let name = meta::name(pod).to_owned();
    if pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string() {
        let refuse = |why: &str| Err(ApiError::forbidden(kind, &name, why));
        // whoever runs a mirror pod has only the node's identity
        if pod["spec"]["serviceAccountName"].as_str().is_some_and(|n| !n.is_empty()) {
            return refuse("a mirror pod may not reference service accounts");
        }
        let volumes = pod["spec"]["volumes"].as_array();
        let with_token = |v: &Value| {
            let sources = v["projected"]["sources"].as_array();
            sources.is_some_and(|l| l.iter().any(|s| s["serviceAccountToken"].is_object()))
        };
        if volumes.is_some_and(|l| l.iter().any(with_token)) {
            return refuse("a mirror pod may not use ServiceAccountToken volume projections");
        }
        return Ok(());
    }
    let spec = meta::child_mut(as_map(pod), "spec");
    if spec.get("serviceAccountName").and_then(Value::as_str).unwrap_or_default().is_empty() {
        spec.insert("serviceAccountName".to_owned(), json!("default"));
        spec.insert("serviceAccount".to_owned(), json!("default"));
    }
    let account_name = spec["serviceAccountName"].as_str().unwrap_or_default().to_owned();
    let Some(accounts) = api::kinds::find("", "v1", "serviceaccounts") else { return Ok(()) };
    let Some(account) = cache.get(accounts, &accounts.key(namespace, &account_name)) else {
        let why = format!(
            "error looking up service account {namespace}/{account_name}: serviceaccount {account_name:?} not found"
        );
        return Err(ApiError::forbidden(kind, &name, &why));
    };
    let account = account.to_value();
    if account["metadata"]["annotations"]["kubernetes.io/enforce-mountable-secrets"] == "true" {
        only_mountable(kind, &name, spec, &account)?;
    }
    if spec.get("imagePullSecrets").and_then(Value::as_array).is_none_or(Vec::is_empty)
        && let Some(secrets) = account["imagePullSecrets"].as_array().filter(|l| !l.is_empty())
    {
        spec.insert("imagePullSecrets".to_owned(), json!(secrets));
    }
    let automount = spec
        .get("automountServiceAccountToken")
        .and_then(Value::as_bool)
        .or_else(|| account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if automount {
        mount_token(spec);
    }
    Ok(())
}

/// Refuses secrets that the pod's account does not name, where the account demands it.
fn only_mountable(
    kind: &Kind,
    name: &str,
    spec: &serde_json::Map<String, Value>,
    account: &Value,
) -> ApiResult<()> {
    let of = meta::name(account);
    let names = |list: &str, secret: &str| {
        account[list].as_array().is_some_and(|l| l.iter().any(|s| s["name"] == secret))
    };
    let refuse = |what: &str, secret: &str, kind_of: &str| {
        let why = format!(
            "{what}={secret:?} is not allowed because service account {of} does not reference that {kind_of}"
        );
        Err(ApiError::forbidden(kind, name, &why))
    };
    let list = |key: &str| spec.get(key).and_then(Value::as_array).into_iter().flatten();
    for volume in list("volumes") {
        if let Some(secret) = volume["secret"]["secretName"].as_str().filter(|s| !names("secrets", s)) {
            return refuse("volume with secret.secretName", secret, "secret");
        }
    }
    for container in list("initContainers").chain(list("containers")) {
        let owner = container["name"].as_str().unwrap_or_default();
        for env in container["env"].as_array().into_iter().flatten() {
            let reference = &env["valueFrom"]["secretKeyRef"]["name"];
            if let Some(secret) = reference.as_str().filter(|s| !names("secrets", s)) {
                let variable = env["name"].as_str().unwrap_or_default();
                let what = format!("container {owner} with envVar {variable} referencing secret.secretName");
                return refuse(&what, secret, "secret");
            }
        }
        for source in container["envFrom"].as_array().into_iter().flatten() {
            if let Some(secret) = source["secretRef"]["name"].as_str().filter(|s| !names("secrets", s)) {
                let what = format!("container {owner} with envFrom referencing secret.secretName");
                return refuse(&what, secret, "secret");
            }
        }
    }
    for pull in list("imagePullSecrets") {
        if let Some(secret) = pull["name"].as_str().filter(|s| !names("imagePullSecrets", s)) {
            return refuse("imagePullSecret", secret, "imagePullSecret");
        }
    }
    Ok(())
}

/// Refuses a second priority class that is the default.
pub fn sole_default_priority(cache: &WatchCache, kind: &Kind, class: &Value) -> ApiResult<()> {
    if kind.kind != "PriorityClass" || class["globalDefault"] != true {
        return Ok(());
    }
    let others = cache.list(kind, &kind.storage_prefix, None).items;
    match others.iter().find(|c| c.name() != meta::name(class) && c.to_value()["globalDefault"] == true) {
        Some(other) => {
            let name = other.name();
            let why =
                format!("PriorityClass {name} is already marked as default. Only one default can exist");
            Err(ApiError::forbidden(kind, meta::name(class), &why))
        }
        None => Ok(()),
    }
}

/// Resolves the pod's priority class.
pub fn priority(cache: &WatchCache, kind: &Kind, pod: &mut Value) -> ApiResult<()> {
    let name = meta::name(pod).to_owned();
    let class_name = pod["spec"]["priorityClassName"].as_str().unwrap_or_default().to_owned();
    let Some(classes) = api::kinds::find("scheduling.k8s.io", "v1", "priorityclasses") else {
        return Ok(());
    };
    let (value, policy, class) = if class_name.is_empty() {
        let default = cache
            .list(classes, &classes.storage_prefix, None)
            .items
            .into_iter()
            .map(|o| o.to_value())
            .filter(|c| c["globalDefault"] == true)
            .min_by_key(|c| c["value"].as_i64());
        match default {
            Some(c) => {
                (c["value"].as_i64().unwrap_or(0), c["preemptionPolicy"].clone(), meta::name(&c).to_owned())
            }
            None => (0, Value::Null, String::new()),
        }
    } else {
        match cache.get(classes, &classes.key("", &class_name)) {
            Some(c) => {
                let c = c.to_value();
                (c["value"].as_i64().unwrap_or(0), c["preemptionPolicy"].clone(), class_name)
            }
            None if class_name == "system-node-critical" => (2_000_001_000, Value::Null, class_name),
            None if class_name == "system-cluster-critical" => (2_000_000_000, Value::Null, class_name),
            None => {
                let why = format!("no PriorityClass with name {class_name} was found");
                return Err(ApiError::forbidden(kind, &name, &why));
            }
        }
    };
    let spec = meta::child_mut(as_map(pod), "spec");
    if let Some(given) = spec.get("priority").and_then(Value::as_i64)
        && given != value
    {
        let why = format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        );
        return Err(ApiError::forbidden(kind, &name, &why));
    }
    spec.insert("priority".to_owned(), json!(value));
    if !class.is_empty() {
        spec.insert("priorityClassName".to_owned(), json!(class));
    }
    let policy = policy.as_str().unwrap_or("PreemptLowerPriority").to_owned();
    if let Some(given) = spec.get("preemptionPolicy").and_then(Value::as_str)
        && given != policy
    {
        let why = format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
        );
        return Err(ApiError::forbidden(kind, &name, &why));
    }
    spec.insert("preemptionPolicy".to_owned(), json!(policy));
    Ok(())
}

/// Adds what the pod's runtime class asks for: overhead, node selector, tolerations.
pub fn runtime_class(cache: &WatchCache, kind: &Kind, pod: &mut Value) -> ApiResult<()> {
    let name = meta::name(pod).to_owned();
    let reject = |why: &str| Err(ApiError::forbidden(kind, &name, &format!("pod rejected: {why}")));
    let class_name = pod["spec"]["runtimeClassName"].as_str().unwrap_or_default().to_owned();
    let overhead = pod["spec"]["overhead"].clone();
    let has_overhead = overhead.as_object().is_some_and(|o| !o.is_empty());
    const UNDEFINED: &str = "Pod Overhead set without corresponding RuntimeClass defined Overhead";
    if class_name.is_empty() {
        return if has_overhead { reject(UNDEFINED) } else { Ok(()) };
    }
    let Some(classes) = api::kinds::find("node.k8s.io", "v1", "runtimeclasses") else { return Ok(()) };
    let Some(class) = cache.get(classes, &classes.key("", &class_name)) else {
        return reject(&format!("RuntimeClass {class_name:?} not found"));
    };
    let class = class.to_value();
    let fixed = &class["overhead"]["podFixed"];
    match (has_overhead, fixed.is_object()) {
        (true, false) => return reject(UNDEFINED),
        (true, true) if api::resources::amounts(&overhead) != api::resources::amounts(fixed) => {
            return reject("Pod's Overhead doesn't match RuntimeClass's defined Overhead");
        }
        _ => {}
    }
    let spec = meta::child_mut(as_map(pod), "spec");
    if fixed.is_object() {
        spec.insert("overhead".to_owned(), fixed.clone());
    }
    for (key, value) in class["scheduling"]["nodeSelector"].as_object().into_iter().flatten() {
        let selector = meta::child_mut(spec, "nodeSelector");
        match selector.get(key) {
            Some(own) if own != value => {
                let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
                return reject(&format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                    text(value),
                    text(own)
                ));
            }
            _ => selector.insert(key.clone(), value.clone()),
        };
    }
    for toleration in class["scheduling"]["tolerations"].as_array().into_iter().flatten() {
        let list = spec.entry("tolerations").or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut().filter(|l| !l.contains(toleration)) {
            list.push(toleration.clone());
        }
    }
    Ok(())
}

const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Mounts token, authority and namespace into every container that has nothing mounted there.
fn mount_token(spec: &mut serde_json::Map<String, Value>) {
    let mut name = spec
        .get("volumes")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|v| v["name"].as_str())
        .find(|n| n.starts_with("kube-api-access-"))
        .map(str::to_owned);
    let existed = name.is_some();
    let volume = name.get_or_insert_with(|| {
        const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        let tail: String = (0..5).map(|_| ALPHABET[rand::random_range(0..ALPHABET.len())] as char).collect();
        format!("kube-api-access-{tail}")
    });
    let mut used = false;
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(container) = container.as_object_mut() else { continue };
            let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
            let Some(mounts) = mounts.as_array_mut() else { continue };
            if !mounts.iter().any(|m| m["mountPath"] == TOKEN_PATH) {
                mounts.push(json!({"name": volume, "readOnly": true, "mountPath": TOKEN_PATH}));
                used = true;
            }
        }
    }
    if used && !existed {
        let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
        if let Some(volumes) = volumes.as_array_mut() {
            volumes.push(json!({"name": volume, "projected": {"defaultMode": 420, "sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "namespace",
                    "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
            ]}}));
        }
    }
}

/// Five minutes on a node that is not ready or not reachable, unless the pod says otherwise.
pub fn default_tolerations(pod: &mut Value) {
    let spec = meta::child_mut(as_map(pod), "spec");
    let list = spec.entry("tolerations").or_insert_with(|| json!([]));
    if list.is_null() {
        *list = json!([]);
    }
    let Some(list) = list.as_array_mut() else { return };
    for taint in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = list.iter().any(|t| {
            let effect = t["effect"].as_str().unwrap_or_default();
            let key = t["key"].as_str().unwrap_or_default();
            (key == taint || key.is_empty() && t["operator"] == "Exists")
                && (effect.is_empty() || effect == "NoExecute")
        });
        if !tolerated {
            list.push(
                json!({"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_toleration_of_everything_suppresses_the_defaults() {
        let mut pod = json!({"spec": {"tolerations": [{"operator": "Exists"}]}});
        default_tolerations(&mut pod);
        assert_eq!(pod["spec"]["tolerations"].as_array().map(Vec::len), Some(1));
        let mut plain = json!({"spec": {}});
        default_tolerations(&mut plain);
        default_tolerations(&mut plain);
        assert_eq!(plain["spec"]["tolerations"].as_array().map(Vec::len), Some(2));
    }

    #[test]
    fn the_token_is_mounted_once_into_every_container() {
        let mut pod = json!({"spec": {"containers": [{"name": "a"},
            {"name": "b", "volumeMounts": [{"name": "x", "mountPath": TOKEN_PATH}]}]}});
        let spec = pod["spec"].as_object_mut().unwrap();
        mount_token(spec);
        mount_token(spec);
        assert_eq!(pod["spec"]["volumes"].as_array().map(Vec::len), Some(1));
        assert_eq!(pod["spec"]["containers"][0]["volumeMounts"].as_array().map(Vec::len), Some(1));
        assert_eq!(pod["spec"]["containers"][1]["volumeMounts"][0]["name"], "x");
    }
}
