//! What is special about each kind: defaults, preparation, validation, deletion. The pipeline calls these at
//! fixed points and knows no kind itself.
//!
//! A strategy is a pure function over JSON trees; what it needs from outside comes in the [`Context`].
//! Order on create: default → (managed fields) → admission → `prepare_create` → `validate_create`.
//! Order on update: default → (managed fields) → admission → `prepare_update` → `validate_update`.

mod addresses;
mod admission_policies;
mod affinity;
mod aggregation;
mod apps;
mod autoscaling;
mod batch;
pub(crate) mod certificates;
mod closed;
mod containers;
mod core_config;
mod core_node;
mod core_pod;
mod core_service;
mod core_storage;
mod custom;
mod definitions;
mod device_policy;
mod device_slices;
mod device_taint_rules;
mod devices;
mod endpoints;
mod env;
mod events;
mod flow_control;
pub(crate) mod internal;
mod job_policy;
mod job_status;
mod label_selector;
mod migrations;
mod networking;
mod numbers;
mod parts;
mod pem;
mod pod_annotations;
mod pod_defaults;
mod pod_status;
mod pod_update;
mod pod_validate;
mod policy;
mod probe;
mod quantities;
mod quota;
mod rbac;
mod resources;
pub(crate) mod reviews;
mod scheduling;
mod security;
mod service_families;
mod storage;
mod texts;
mod tree;
mod volumes;
mod warnings;
mod webhooks;

use api::field::ErrorList;
use api::kinds::Kind;
use jiff::Timestamp;
use serde_json::Value;

use crate::options::FeatureGates;
use crate::service_ips::Taken;

/// What a strategy may know besides the objects.
#[non_exhaustive]
pub struct Context {
    /// Now.
    pub now: Timestamp,
    /// Which parts that are not ready are open.
    pub gates: FeatureGates,
}

impl Context {
    /// At `now`, with no gate open.
    pub fn new(now: Timestamp) -> Self {
        Self { now, gates: FeatureGates::default() }
    }
}

/// How an object of a kind goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// At once (finalizers permitting).
    Immediate,
    /// Whoever runs it gets this many seconds, unless the request says otherwise, and then removes it.
    Graceful {
        /// Seconds where the request names none.
        default_seconds: i64,
    },
}

/// A rule of new objects in a namespace with these labels: labels, object.
pub type NamespaceRule = fn(&Value, &Value, &mut ErrorList);

/// The behaviour of one kind. Every method has the generic behaviour as its default.
pub trait Strategy: Sync {
    /// Fills in defaults. Idempotent; runs on every decoded object.
    fn default(&self, _object: &mut Value) {}

    /// Before an object is created: drops what a client may not set (`status`).
    fn prepare_create(&self, _context: &Context, object: &mut Value) {
        generic::prepare_create(self.has_status(), object);
    }

    /// Takes what an object needs from the pool of service addresses and node ports, and writes it into `new`.
    /// Runs between `prepare_*` and `validate_*`; the caller keeps `taken` once the write is stored.
    fn allocate(
        &self,
        _taken: &mut Taken<'_>,
        _new: &mut Value,
        _old: Option<&Value>,
        _errors: &mut ErrorList,
    ) {
    }

    /// What a new object may be is also a matter of its namespace: the rule, if there is one. It is asked before all others.
    fn namespace_rule(&self) -> Option<NamespaceRule> {
        None
    }

    /// Refuses a bad new object.
    fn validate_create(&self, _object: &Value, _errors: &mut ErrorList) {}

    /// Before an update: keeps what this endpoint may not change (`status`), raises `metadata.generation`
    /// where the desired state changed.
    fn prepare_update(&self, _context: &Context, new: &mut Value, old: &Value) {
        generic::prepare_update(self.has_status(), self.has_generation(), new, old);
    }

    /// Refuses a bad change.
    fn validate_update(&self, _new: &Value, _old: &Value, _errors: &mut ErrorList) {}

    /// Before an update of the `status` subresource: keeps everything but status.
    fn prepare_status_update(&self, _context: &Context, new: &mut Value, old: &Value) {
        generic::take_only(&["status"], new, old);
    }

    /// Members of metadata that an update of the status leaves as they are: nobody owns them by such a write.
    fn status_keeps(&self) -> &'static [&'static str] {
        generic::OWN_META
    }

    /// Refuses a bad change of status.
    fn validate_status_update(&self, _new: &Value, _old: &Value, _errors: &mut ErrorList) {}

    /// Before an update through another subresource (`binding`, `finalize`, `approval`, ...): keeps what that
    /// one may not change.
    fn prepare_subresource_update(&self, _subresource: &str, _new: &mut Value, _old: &Value) {}

    /// Refuses a bad change through another subresource.
    fn validate_subresource_update(
        &self,
        _subresource: &str,
        _new: &Value,
        _old: &Value,
        _errors: &mut ErrorList,
    ) {
    }

    /// Texts for `Warning` headers.
    fn warnings(&self, _new: &Value, _old: Option<&Value>) -> Vec<String> {
        Vec::new()
    }

    /// When deletion begins: what keeps the object, and what its status says of it.
    fn begin_deletion(&self, _context: &Context, _object: &mut Value) {}

    /// How the object goes away.
    fn deletion(&self, _object: &Value) -> Deletion {
        Deletion::Immediate
    }

    /// What a deletion without a propagation policy does with dependents: true leaves them (`orphan`).
    fn orphans_by_default(&self) -> bool {
        false
    }

    /// Whether the kind has a `status` subresource.
    fn has_status(&self) -> bool {
        true
    }

    /// Whether the server counts changes of the desired state in `metadata.generation`.
    fn has_generation(&self) -> bool {
        true
    }

    /// Whether PUT and PATCH need no `metadata.resourceVersion`.
    fn allows_unconditional_update(&self) -> bool {
        true
    }

    /// Whether PUT makes an object that is not there.
    fn allows_create_on_update(&self) -> bool {
        false
    }
}

/// The behaviour that most kinds share.
pub mod generic {
    use api::field::ErrorList;
    use serde_json::{Value, json};

    /// Removes `status` and starts `generation` at 1.
    pub fn prepare_create(has_status: bool, object: &mut Value) {
        if has_status && let Some(map) = object.as_object_mut() {
            map.remove("status");
        }
    }

    /// Keeps the stored `status`; counts a change of anything but metadata and status.
    pub fn prepare_update(has_status: bool, has_generation: bool, new: &mut Value, old: &Value) {
        if has_status {
            copy("status", new, old);
        }
        if has_generation && desired_changed(new, old) {
            count(new, old);
        }
    }

    /// Adds a finalizer where it is missing.
    pub fn add_finalizer(object: &mut Value, name: &str) {
        let metadata = api::meta::metadata_mut(object);
        let list = metadata.entry("finalizers").or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut()
            && !list.contains(&json!(name))
        {
            list.push(json!(name));
        }
    }

    /// Raises `metadata.generation`.
    pub fn count(new: &mut Value, old: &Value) {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        new["metadata"]["generation"] = json!(generation);
    }

    /// Whether two maps are equal; null, absent and empty are one.
    pub fn same_map(a: &Value, b: &Value) -> bool {
        let empty = |v: &Value| v.is_null() || v.as_object().is_some_and(serde_json::Map::is_empty);
        a == b || (empty(a) && empty(b))
    }

    /// Refuses a change of the value at `path`.
    pub fn immutable(path: &str, new: &Value, old: &Value, errors: &mut ErrorList) {
        if new != old {
            errors.invalid(path, new, "field is immutable");
        }
    }

    /// What a write of the status of most newer kinds leaves as it is.
    pub const OWN_META: &[&str] = &["labels", "annotations", "finalizers", "ownerReferences"];

    /// Keeps all but `status` and metadata, and these `members` of metadata: most kinds let who writes their status relabel them.
    pub fn prepare_status_update(members: &[&str], new: &mut Value, old: &Value) {
        let mut kept = old.clone();
        set(&mut kept, "status", new.get("status").cloned());
        kept["metadata"] = new["metadata"].take();
        for key in members {
            set(&mut kept["metadata"], key, old["metadata"].get(key).cloned());
        }
        *new = kept;
    }

    /// Whether anything but metadata and status differs.
    pub fn desired_changed(new: &Value, old: &Value) -> bool {
        let others = |v: &Value| -> Vec<(String, Value)> {
            v.as_object()
                .into_iter()
                .flatten()
                .filter(|(k, v)| {
                    !matches!(k.as_str(), "metadata" | "status" | "apiVersion" | "kind") && !v.is_null()
                })
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect()
        };
        others(new) != others(old)
    }

    /// Takes from `new` only the member at `path` (and managed fields); all else stays as it was.
    pub fn take_only(path: &[&str], new: &mut Value, old: &Value) {
        let mut kept = old.clone();
        let mut value = Some(&*new);
        for key in path {
            value = value.and_then(|v| v.get(key));
        }
        let value = value.cloned();
        if let Some((last, parents)) = path.split_last() {
            let mut at = &mut kept;
            for key in parents {
                at = &mut at[*key];
            }
            set(at, last, value);
        }
        for key in ["managedFields", "resourceVersion"] {
            let value = new["metadata"].get(key).cloned();
            set(&mut kept["metadata"], key, value);
        }
        *new = kept;
    }

    /// Makes the member `key` of `new` what it is in `old`.
    pub fn copy(key: &str, new: &mut Value, old: &Value) {
        set(new, key, old.get(key).cloned());
    }

    /// Sets or removes a member.
    pub fn set(object: &mut Value, key: &str, value: Option<Value>) {
        if let Some(map) = object.as_object_mut() {
            match value {
                Some(value) => map.insert(key.to_owned(), value),
                None => map.remove(key),
            };
        }
    }
}

/// The strategy of a kind.
pub fn of(kind: &Kind) -> &dyn Strategy {
    if let Some(definition) = &kind.definition {
        return &**definition;
    }
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => &core_pod::Pod,
        ("", "Service") => &core_service::Service,
        ("apiextensions.k8s.io", "CustomResourceDefinition") => &definitions::Definition,
        (
            "admissionregistration.k8s.io",
            "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration",
        ) => &webhooks::Configuration,
        (group, name) => parts_of(group, name),
    }
}

fn parts_of(group: &str, kind: &str) -> &'static parts::Parts {
    match (group, kind) {
        ("", "PodTemplate") => &core_pod::POD_TEMPLATE,
        ("", "ReplicationController") => &core_pod::REPLICATION_CONTROLLER,
        ("", "ConfigMap") => &core_config::CONFIG_MAP,
        ("", "Secret") => &core_config::SECRET,
        ("", "Namespace") => &core_config::NAMESPACE,
        ("", "ServiceAccount") => &core_config::SERVICE_ACCOUNT,
        ("", "LimitRange") => &core_config::LIMIT_RANGE,
        ("", "ResourceQuota") => &core_config::RESOURCE_QUOTA,
        ("" | "events.k8s.io", "Event") => &core_config::EVENT,
        ("", "Endpoints") => &endpoints::ENDPOINTS,
        ("", "Node") => &core_node::NODE,
        ("", "PersistentVolume") => &core_storage::VOLUME,
        ("", "PersistentVolumeClaim") => &core_storage::CLAIM,
        ("apps", "Deployment") => &apps::DEPLOYMENT,
        ("apps", "ReplicaSet") => &apps::REPLICA_SET,
        ("apps", "DaemonSet") => &apps::DAEMON_SET,
        ("apps", "StatefulSet") => &apps::STATEFUL_SET,
        ("apps", "ControllerRevision") => &apps::CONTROLLER_REVISION,
        ("batch", "Job") => &batch::JOB,
        ("batch", "CronJob") => &batch::CRON_JOB,
        ("autoscaling", "HorizontalPodAutoscaler") => &policy::AUTOSCALER,
        ("policy", "PodDisruptionBudget") => &policy::DISRUPTION_BUDGET,
        ("scheduling.k8s.io", "PriorityClass") => &policy::PRIORITY_CLASS,
        ("scheduling.k8s.io", "PodGroup") => &scheduling::POD_GROUP,
        ("scheduling.k8s.io", "Workload") => &scheduling::WORKLOAD,
        ("storagemigration.k8s.io", "StorageVersionMigration") => &migrations::STORAGE_VERSION_MIGRATION,
        ("coordination.k8s.io", "Lease") => &policy::LEASE,
        ("node.k8s.io", "RuntimeClass") => &policy::RUNTIME_CLASS,
        ("certificates.k8s.io", "CertificateSigningRequest") => &certificates::SIGNING_REQUEST,
        ("discovery.k8s.io", "EndpointSlice") => &endpoints::ENDPOINT_SLICE,
        ("networking.k8s.io", "Ingress") => &networking::INGRESS,
        ("networking.k8s.io", "IngressClass") => &networking::INGRESS_CLASS,
        ("networking.k8s.io", "NetworkPolicy") => &networking::NETWORK_POLICY,
        ("networking.k8s.io", "IPAddress") => &networking::IP_ADDRESS,
        ("networking.k8s.io", "ServiceCIDR") => &networking::SERVICE_CIDR,
        ("rbac.authorization.k8s.io", "Role") => &rbac::ROLE,
        ("rbac.authorization.k8s.io", "ClusterRole") => &rbac::CLUSTER_ROLE,
        ("rbac.authorization.k8s.io", "RoleBinding") => &rbac::ROLE_BINDING,
        ("rbac.authorization.k8s.io", "ClusterRoleBinding") => &rbac::CLUSTER_ROLE_BINDING,
        ("storage.k8s.io", "StorageClass") => &storage::STORAGE_CLASS,
        ("storage.k8s.io", "CSIDriver") => &storage::CSI_DRIVER,
        ("storage.k8s.io", "CSIStorageCapacity") => &storage::CAPACITY,
        ("storage.k8s.io", "CSINode") => &storage::CSI_NODE,
        ("storage.k8s.io", "VolumeAttachment") => &storage::VOLUME_ATTACHMENT,
        ("storage.k8s.io", "VolumeAttributesClass") => &storage::ATTRIBUTES_CLASS,
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => &flow_control::FLOW_SCHEMA,
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => &flow_control::PRIORITY_LEVEL,
        ("apiregistration.k8s.io", "APIService") => &aggregation::API_SERVICE,
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy" | "MutatingAdmissionPolicy") => {
            &admission_policies::POLICY
        }
        (
            "admissionregistration.k8s.io",
            "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding",
        ) => &admission_policies::BINDING,
        ("certificates.k8s.io", "ClusterTrustBundle") => &certificates::TRUST_BUNDLE,
        ("resource.k8s.io", "ResourceClaim") => &devices::CLAIM,
        ("resource.k8s.io", "ResourceClaimTemplate") => &devices::CLAIM_TEMPLATE,
        ("resource.k8s.io", "DeviceClass") => &devices::DEVICE_CLASS,
        ("resource.k8s.io", "ResourceSlice") => &device_slices::RESOURCE_SLICE,
        ("resource.k8s.io", "DeviceTaintRule") => &device_taint_rules::DEVICE_TAINT_RULE,
        // Answers that are never stored.
        ("authentication.k8s.io" | "authorization.k8s.io", _) | ("", "Binding" | "ComponentStatus") => {
            &parts::UNCOUNTED
        }
        _ => &parts::PLAIN,
    }
}

#[cfg(test)]
mod tests;
