//! Built-in admission: what the server adds to, or refuses of, a write because of the cluster's state.
//!
//! What changes objects runs after decoding and defaulting, before the strategy's preparation and validation; what
//! only refuses, and the charge to quotas, runs after them. Plugins run in the reference's order. The whole chain,
//! with policies and webhooks, is in [`chain`].

mod certificates;
pub mod chain;
mod declared_features;
mod escalation;
mod limits;
mod node_restriction;
mod pod_security;
mod pods;
pub mod policies;
mod quota;
mod scheduling;
mod storage;
pub mod webhooks;

use std::sync::Arc;

use api::kinds::Kind;
use api::meta;
use pod_security::Policy;
use serde_json::{Value, json};

pub use chain::{Notes, Operation, Options, Request};
pub use quota::Charged;

use crate::auth::UserInfo;
use crate::auth::authorize::Authorizer;
use crate::registry::Registry;
use crate::status::{ApiError, ApiResult};
use crate::watch_cache::WatchCache;

/// Namespaces that cannot be deleted.
const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

/// The state that admission reads.
pub struct Admission {
    cache: Arc<WatchCache>,
}

impl Admission {
    /// Reads the cluster's state from `cache`.
    pub fn new(cache: Arc<WatchCache>) -> Self {
        Self { cache }
    }

    /// The built-in plugins that change an object, or refuse it before it is complete.
    pub fn mutate(&self, request: &Request<'_>, object: &mut Value) -> ApiResult<()> {
        node_restriction::check(&self.cache, request, object)?;
        match (request.operation, request.subresource) {
            // a review says nothing about its namespace
            (Operation::Create, "") if request.kind.is_stored() => self.create(request, object),
            // what a pod runs can change through this subresource too
            (Operation::Update, "" | "ephemeralcontainers") if is_pod(request.kind) => {
                pods::default_tolerations(object);
                Ok(())
            }
            (Operation::Update, "resize") if is_pod(request.kind) => {
                limits::default(&self.of_namespace("limitranges", request.namespace), object);
                Ok(())
            }
            (Operation::Delete, _) => delete(request.kind, request.old.map_or(request.name, meta::name)),
            _ => Ok(()),
        }
    }

    fn create(&self, request: &Request<'_>, object: &mut Value) -> ApiResult<()> {
        let (kind, namespace) = (request.kind, request.namespace);
        if kind.kind == "CertificateSigningRequest" {
            certificates::restrict_subject(request, object)?;
            name_requestor(request.user, object);
        }
        self.namespace_lifecycle(kind, namespace, object)?;
        if kind.group.is_empty() && kind.kind == "Node" {
            taint_new_node(object);
        }
        if kind.group.is_empty() && kind.kind == "PersistentVolumeClaim" {
            storage::default_class(&self.cache, object);
        }
        if is_pod_group(kind) {
            crate::strategy::generic::add_finalizer(object, scheduling::PROTECTION);
        }
        if is_pod(kind) {
            limits::default(&self.of_namespace("limitranges", namespace), object);
            pods::service_account(&self.cache, kind, namespace, object)?;
            pods::default_tolerations(object);
            pods::priority(&self.cache, kind, object)?;
            pods::runtime_class(&self.cache, kind, object)?;
        }
        Ok(())
    }

    /// What runs after all that changes an object, and before its validation: rules of single kinds' storage.
    pub async fn complete(
        &self,
        authorizer: &Authorizer,
        request: &Request<'_>,
        object: &mut Value,
    ) -> ApiResult<()> {
        match (request.operation, request.kind.kind.as_str(), request.subresource) {
            (Operation::Create | Operation::Update, _, "") => {
                escalation::check(authorizer, request, object).await
            }
            (Operation::Update, "CertificateSigningRequest", sub @ ("approval" | "status")) => {
                certificates::decide(authorizer, request, sub, object).await
            }
            (Operation::Create, "ServiceAccount", "token") => {
                node_restriction::check_audiences(&self.cache, authorizer, request, object).await
            }
            _ => Ok(()),
        }
    }

    /// The built-in plugins that refuse an object that is complete and valid. Texts for `Warning` headers go to
    /// `warnings`.
    pub fn validate(
        &self,
        request: &Request<'_>,
        object: &Value,
        warnings: &mut Vec<String>,
    ) -> ApiResult<()> {
        if matches!(request.operation, Operation::Create | Operation::Update)
            && request.subresource.is_empty()
        {
            pods::sole_default_priority(&self.cache, request.kind, object)?;
        }
        match (request.operation, request.subresource) {
            (Operation::Create, "") => {
                namespace_labels(request, object)?;
                if is_pod_group(request.kind) {
                    scheduling::workload_exists(&self.cache, request, object)?;
                }
                self.limits(request, object)?;
                self.pod_security(request, object, warnings)
            }
            (Operation::Update, "" | "ephemeralcontainers") => {
                if request.old.is_some_and(|old| is_other_program(old, object)) {
                    self.pod_security(request, object, warnings)?;
                }
                namespace_labels(request, object)?;
                self.namespace_pods(request, object, warnings);
                match (request.kind.kind.as_str(), request.old) {
                    ("PersistentVolumeClaim", Some(old)) => {
                        storage::grow(&self.cache, request.kind, old, object)?;
                        self.limits(request, object)
                    }
                    _ => Ok(()),
                }
            }
            (Operation::Update, "resize") if is_pod(request.kind) => {
                declared_features::check(&self.cache, request, object)?;
                self.limits(request, object)
            }
            _ => Ok(()),
        }
    }

    /// Charges a write to the quotas of its namespace: all, or the first that refuses says why.
    pub async fn charge(
        &self,
        registry: &Registry,
        request: &Request<'_>,
        object: &Value,
    ) -> ApiResult<Charged> {
        quota::charge(&self.cache, registry, request, object).await
    }

    /// The objects of a core kind in a namespace.
    fn of_namespace(&self, plural: &str, namespace: &str) -> Vec<Value> {
        let Some(kind) = api::kinds::find("", "v1", plural) else { return Vec::new() };
        let prefix = format!("{}{namespace}/", kind.storage_prefix);
        self.cache.list(kind, &prefix, None).items.iter().map(|o| o.to_value()).collect()
    }

    /// Holds pods and claims to the limit ranges of their namespace; the first that is violated answers.
    fn limits(&self, request: &Request<'_>, object: &Value) -> ApiResult<()> {
        let kind = request.kind;
        let is_going = request.old.is_some_and(meta::is_being_deleted);
        if is_going
            || !kind.group.is_empty()
            || !matches!(kind.kind.as_str(), "Pod" | "PersistentVolumeClaim")
        {
            return Ok(());
        }
        for range in self.of_namespace("limitranges", request.namespace) {
            let found = match kind.kind.as_str() {
                "Pod" => limits::pod_violations(&range, &object["spec"]),
                _ => limits::claim_violations(&range, &object["spec"]),
            };
            if !found.is_empty() {
                return Err(ApiError::forbidden(kind, meta::name(object), &limits::aggregate(found)));
            }
        }
        Ok(())
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
        let namespace = namespace.value();
        let violations = |mode: &str| {
            let policy = Policy::of(namespace, mode);
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

    /// Warns of pods that a namespace no longer would let in.
    fn namespace_pods(&self, request: &Request<'_>, object: &Value, warnings: &mut Vec<String>) {
        let (Some(old), Some(pods)) = (request.old, api::kinds::find("", "v1", "pods")) else { return };
        let kind = request.kind;
        if !kind.group.is_empty() || kind.kind != "Namespace" || !request.subresource.is_empty() {
            return;
        }
        let labels = |o: &Value| o["metadata"]["labels"].clone();
        if labels(old) == labels(object) {
            return;
        }
        let prefix = format!("{}{}/", pods.storage_prefix, meta::name(object));
        let found = self.cache.list(pods, &prefix, None).items;
        warnings.extend(pod_security::namespace_warnings(old, object, &found));
    }

    fn namespace_lifecycle(&self, kind: &Kind, namespace: &str, object: &Value) -> ApiResult<()> {
        let (true, Some(namespaces)) = (kind.namespaced, api::kinds::find("", "v1", "namespaces")) else {
            return Ok(());
        };
        let Some(found) = self.cache.get(namespaces, &namespaces.key("", namespace)) else {
            return Err(ApiError::not_found(namespaces, namespace));
        };
        // namespaces are few and asked for by every write: their trees are kept
        let found = found.value();
        if meta::is_being_deleted(found) || found["status"]["phase"] == "Terminating" {
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
}

/// A node takes no pods before something has seen that it is ready.
fn taint_new_node(node: &mut Value) {
    const KEY: &str = "node.kubernetes.io/not-ready";
    let spec = meta::child_mut(as_map(node), "spec");
    let taints = spec.entry("taints").or_insert_with(|| json!([]));
    if taints.is_null() {
        *taints = json!([]);
    }
    if let Some(list) = taints.as_array_mut()
        && !list.iter().any(|t| t["key"] == KEY && t["effect"] == "NoSchedule")
    {
        list.push(json!({"key": KEY, "effect": "NoSchedule"}));
    }
}

/// Refuses labels of a namespace that should say how safe its pods are and do not, unless they said so before.
fn namespace_labels(request: &Request<'_>, object: &Value) -> ApiResult<()> {
    let kind = request.kind;
    if !kind.group.is_empty() || kind.kind != "Namespace" {
        return Ok(());
    }
    let found = pod_security::label_errors(object);
    if found.is_empty() || request.old.is_some_and(|old| pod_security::label_errors(old) == found) {
        return Ok(());
    }
    Err(ApiError::invalid(kind, meta::name(object), &found))
}

/// Refuses the deletion of what every cluster has.
fn delete(kind: &Kind, name: &str) -> ApiResult<()> {
    if kind.kind == "Namespace" && kind.group.is_empty() && IMMORTAL.contains(&name) {
        return Err(ApiError::forbidden(kind, name, "this namespace may not be deleted"));
    }
    Ok(())
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

fn is_pod_group(kind: &Kind) -> bool {
    kind.group == "scheduling.k8s.io" && kind.kind == "PodGroup"
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
