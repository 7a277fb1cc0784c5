//! Built-in admission: what the server adds to, or refuses of, a write because of the cluster's state.
//!
//! What changes objects runs after decoding and defaulting, before the strategy's preparation and validation; what
//! only refuses, and the charge to quotas, runs after them. Plugins run in the reference's order.

mod escalation;
mod limits;
mod pod_security;
mod quota;
mod resources;

use std::sync::Arc;

use api::kinds::Kind;
use api::meta;
use pod_security::Policy;
use serde_json::{Value, json};

use crate::auth::UserInfo;
use crate::auth::authorize::Authorizer;
use crate::registry::{Registry, Target};
use crate::status::{ApiError, ApiResult};
use crate::watch_cache::WatchCache;

/// Namespaces that cannot be deleted.
const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

/// A write that admission looks at.
pub struct Request<'a> {
    /// Who writes.
    pub user: &'a UserInfo,
    /// What kind of object.
    pub kind: &'a Kind,
    /// Where; empty for cluster-scoped kinds.
    pub namespace: &'a str,
    /// The state before; none for a new object.
    pub old: Option<&'a Value>,
}

/// The state that admission reads.
pub struct Admission {
    cache: Arc<WatchCache>,
}

impl Admission {
    /// Reads the cluster's state from `cache`.
    pub fn new(cache: Arc<WatchCache>) -> Self {
        Self { cache }
    }

    /// Changes or refuses a new object.
    pub fn create(&self, request: &Request<'_>, object: &mut Value) -> ApiResult<()> {
        let (kind, namespace) = (request.kind, request.namespace);
        if kind.kind == "CertificateSigningRequest" {
            name_requestor(request.user, object);
        }
        self.namespace_lifecycle(kind, namespace, object)?;
        if is_pod(kind) {
            limits::default(&self.of_namespace("limitranges", namespace), object);
            self.service_account(kind, namespace, object)?;
            default_tolerations(object);
            self.priority(kind, object)?;
        }
        Ok(())
    }

    /// Changes or refuses a change.
    pub fn update(
        &self,
        authorizer: &Authorizer,
        request: &Request<'_>,
        object: &mut Value,
        warnings: &mut Vec<String>,
    ) -> ApiResult<()> {
        if is_pod(request.kind) {
            default_tolerations(object);
        }
        escalation::check(authorizer, request, object)?;
        if request.old.is_some_and(|old| is_other_program(old, object)) {
            self.pod_security(request, object, warnings)?;
        }
        if request.kind.kind == "PersistentVolumeClaim" {
            self.limits(request, object)?;
        }
        Ok(())
    }

    /// Refuses a new object that is complete and valid. Texts for `Warning` headers go to `warnings`.
    pub fn validate(
        &self,
        authorizer: &Authorizer,
        request: &Request<'_>,
        object: &Value,
        warnings: &mut Vec<String>,
    ) -> ApiResult<()> {
        escalation::check(authorizer, request, object)?;
        self.limits(request, object)?;
        self.pod_security(request, object, warnings)
    }

    /// Charges a new object to the quotas of its namespace: all, or the first that refuses says why.
    pub async fn charge(
        &self,
        registry: &Registry,
        request: &Request<'_>,
        object: &Value,
        dry_run: bool,
    ) -> ApiResult<()> {
        let kind = request.kind;
        let (true, Some(quotas)) = (kind.namespaced, api::kinds::find("", "v1", "resourcequotas")) else {
            return Ok(());
        };
        let used = quota::usage(kind, object);
        let mut charged = self.of_namespace("resourcequotas", request.namespace);
        charged.retain(|q| quota::concerns(q, kind, object, &used));
        // a refusal by one must not leave a charge at another
        for one in &charged {
            quota::charge(kind, object, &used, one)?;
        }
        for one in charged.iter().filter(|_| !dry_run) {
            let target = Target {
                kind: quotas,
                namespace: request.namespace,
                name: meta::name(one),
                subresource: "status",
            };
            let change = |current: &Value| quota::charge(kind, object, &used, current);
            match registry.update(target, false, change).await {
                // a quota that is gone limits nothing
                Err(error) if error.is_not_found() => {}
                other => other.map(drop)?,
            }
        }
        Ok(())
    }

    /// The objects of a core kind in a namespace.
    fn of_namespace(&self, plural: &str, namespace: &str) -> Vec<Value> {
        let Some(kind) = api::kinds::find("", "v1", plural) else { return Vec::new() };
        let prefix = format!("{}{namespace}/", kind.storage_prefix);
        self.cache.list(kind, &prefix, None).items.iter().map(|o| o.to_value()).collect()
    }

    fn limits(&self, request: &Request<'_>, object: &Value) -> ApiResult<()> {
        let kind = request.kind;
        if !kind.group.is_empty() || !matches!(kind.kind.as_str(), "Pod" | "PersistentVolumeClaim") {
            return Ok(());
        }
        let ranges = self.of_namespace("limitranges", request.namespace);
        let found = match kind.kind.as_str() {
            "Pod" => limits::pod_violations(&ranges, &object["spec"]),
            _ => limits::claim_violations(&ranges, &object["spec"]),
        };
        if found.is_empty() {
            return Ok(());
        }
        Err(ApiError::forbidden(kind, meta::name(object), &limits::aggregate(found)))
    }

    /// Holds a pod to its namespace's level; of what makes pods, only warns.
    fn pod_security(
        &self,
        request: &Request<'_>,
        object: &Value,
        warnings: &mut Vec<String>,
    ) -> ApiResult<()> {
        let kind = request.kind;
        let Some(template) = pod_template(kind, object) else { return Ok(()) };
        let Some(namespaces) = api::kinds::find("", "v1", "namespaces") else { return Ok(()) };
        let Some(namespace) = self.cache.get(namespaces, &namespaces.key("", request.namespace)) else {
            return Ok(());
        };
        let namespace = namespace.to_value();
        let violations = |mode: &str| {
            let policy = Policy::of(&namespace, mode);
            let found = policy.violations(&template["metadata"], &template["spec"]);
            (!found.is_empty()).then(|| format!("violate PodSecurity {:?}: {found}", policy.name()))
        };
        if is_pod(kind)
            && let Some(found) = violations("enforce")
        {
            let why = found.replacen("violate ", "violates ", 1);
            return Err(ApiError::forbidden(kind, meta::name(object), &why));
        }
        warnings.extend(violations("warn").map(|found| format!("would {found}")));
        Ok(())
    }

    /// Refuses a deletion.
    pub fn delete(&self, kind: &Kind, name: &str) -> ApiResult<()> {
        if kind.kind == "Namespace" && kind.group.is_empty() && IMMORTAL.contains(&name) {
            return Err(ApiError::forbidden(kind, name, "this namespace may not be deleted"));
        }
        Ok(())
    }

    fn namespace_lifecycle(&self, kind: &Kind, namespace: &str, object: &Value) -> ApiResult<()> {
        let (true, Some(namespaces)) = (kind.namespaced, api::kinds::find("", "v1", "namespaces")) else {
            return Ok(());
        };
        let Some(found) = self.cache.get(namespaces, &namespaces.key("", namespace)) else {
            return Err(ApiError::not_found(namespaces, namespace));
        };
        let found = found.to_value();
        if meta::is_being_deleted(&found) || found["status"]["phase"] == "Terminating" {
            let why = format!(
                "unable to create new content in namespace {namespace} because it is being terminated"
            );
            return Err(ApiError::forbidden(kind, meta::name(object), &why).with_detail(
                "causes",
                json!([{"reason": "NamespaceTerminating",
                    "message": format!("namespace {namespace} is being terminated"), "field": "metadata.namespace"}]),
            ));
        }
        Ok(())
    }

    fn service_account(&self, kind: &Kind, namespace: &str, pod: &mut Value) -> ApiResult<()> {
        let name = meta::name(pod).to_owned();
        if pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string() {
            return Ok(());
        }
        let spec = meta::child_mut(as_map(pod), "spec");
        if spec.get("serviceAccountName").and_then(Value::as_str).unwrap_or_default().is_empty() {
            spec.insert("serviceAccountName".to_owned(), json!("default"));
            spec.insert("serviceAccount".to_owned(), json!("default"));
        }
        let account_name = spec["serviceAccountName"].as_str().unwrap_or_default().to_owned();
        let Some(accounts) = api::kinds::find("", "v1", "serviceaccounts") else { return Ok(()) };
        let Some(account) = self.cache.get(accounts, &accounts.key(namespace, &account_name)) else {
            let why = format!(
                "error looking up service account {namespace}/{account_name}: serviceaccount {account_name:?} not found"
            );
            return Err(ApiError::forbidden(kind, &name, &why));
        };
        let account = account.to_value();
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

    fn priority(&self, kind: &Kind, pod: &mut Value) -> ApiResult<()> {
        let name = meta::name(pod).to_owned();
        let class_name = pod["spec"]["priorityClassName"].as_str().unwrap_or_default().to_owned();
        let Some(classes) = api::kinds::find("scheduling.k8s.io", "v1", "priorityclasses") else {
            return Ok(());
        };
        let (value, policy, class) = if class_name.is_empty() {
            let default = self
                .cache
                .list(classes, &classes.storage_prefix, None)
                .items
                .into_iter()
                .map(|o| o.to_value())
                .filter(|c| c["globalDefault"] == true)
                .min_by_key(|c| c["value"].as_i64());
            match default {
                Some(c) => (
                    c["value"].as_i64().unwrap_or(0),
                    c["preemptionPolicy"].clone(),
                    meta::name(&c).to_owned(),
                ),
                None => (0, Value::Null, String::new()),
            }
        } else {
            match self.cache.get(classes, &classes.key("", &class_name)) {
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
        spec.entry("preemptionPolicy").or_insert(json!(policy));
        Ok(())
    }
}

/// The pod, or the template of pods, that an object holds.
fn pod_template<'a>(kind: &Kind, object: &'a Value) -> Option<&'a Value> {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => Some(object),
        ("", "PodTemplate") => Some(&object["template"]),
        ("", "ReplicationController")
        | ("apps", "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet")
        | ("batch", "Job") => Some(&object["spec"]["template"]),
        ("batch", "CronJob") => Some(&object["spec"]["jobTemplate"]["spec"]["template"]),
        _ => None,
    }
}

/// Whether an update changes what runs: containers come or go, or have another image. Of a template, whether it
/// changes at all.
fn is_other_program(old: &Value, new: &Value) -> bool {
    let images = |object: &Value| -> Vec<Value> {
        ["initContainers", "containers", "ephemeralContainers"]
            .iter()
            .flat_map(|list| object["spec"][*list].as_array().into_iter().flatten())
            .map(|c| json!([c["name"], c["image"]]))
            .collect()
    };
    images(old) != images(new)
        || old["spec"]["template"] != new["spec"]["template"]
        || old["spec"]["jobTemplate"] != new["spec"]["jobTemplate"]
        || old["template"] != new["template"]
}

/// A signing request says who asks; nobody asks in another's name.
fn name_requestor(user: &UserInfo, object: &mut Value) {
    let spec = meta::child_mut(as_map(object), "spec");
    for key in ["uid", "extra"] {
        spec.remove(key);
    }
    spec.insert("username".to_owned(), json!(user.name));
    spec.insert("groups".to_owned(), json!(user.groups));
    if !user.uid.is_empty() {
        spec.insert("uid".to_owned(), json!(user.uid));
    }
    if !user.extra.is_empty() {
        spec.insert("extra".to_owned(), json!(user.extra));
    }
}

fn is_pod(kind: &Kind) -> bool {
    kind.group.is_empty() && kind.kind == "Pod"
}

fn as_map(object: &mut Value) -> &mut serde_json::Map<String, Value> {
    if !object.is_object() {
        *object = json!({});
    }
    match object {
        Value::Object(map) => map,
        _ => unreachable!("made an object just above"),
    }
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
fn default_tolerations(pod: &mut Value) {
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
