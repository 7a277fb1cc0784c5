//! The node authorizer: a kubelet reads what the pods bound to its node refer to, and nothing else of that kind.
//!
//! Rule: Kubernetes documentation, "Using Node Authorization", with the selector rules of KEP-4601: a node lists pods
//! by `spec.nodeName` and reads its own Node only. What is not subdivided follows the rules of the role `system:node`.
//!
//! Rejected: a graph that is kept up to date beside the watch cache. It would be a second truth that lags behind the
//! first; the cache's own objects say the same: a read of a Secret looks at the pods of the node in its namespace.

use std::sync::{Arc, LazyLock};

use api::kinds::Kind;
use api::object::Object;
use k8s_openapi::api::rbac::v1::PolicyRule;
use memchr::memmem;
use serde_json::Value;

use super::UserInfo;
use super::authorize::{Attributes, Decision, rule_allows};
use crate::watch_cache::WatchCache;

/// Every kubelet is in this group.
const NODES: &str = "system:nodes";
/// What a kubelet's user name begins with.
const PREFIX: &str = "system:node:";
/// Leases of nodes are here.
const LEASES: &str = "kube-node-lease";

/// The node that a user is; empty where it is one without a name.
pub fn node_of(user: &UserInfo) -> Option<&str> {
    user.name.strip_prefix(PREFIX).filter(|_| user.is_in(NODES))
}

/// Decides what kubelets ask.
pub struct NodeAuthorizer {
    cache: Arc<WatchCache>,
}

/// What all kubelets may do.
static RULES: LazyLock<Vec<PolicyRule>> = LazyLock::new(crate::bootstrap::node_rules);

/// What a pod may refer to by name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Referred {
    Secret,
    ConfigMap,
    Claim,
    ServiceAccount,
    ResourceClaim,
}

impl Referred {
    /// Whether a pod that refers to such an object holds its name as it is; claims of ephemeral volumes are named after the
    /// pod and its volume.
    fn is_named(self) -> bool {
        self != Referred::Claim
    }
}

impl NodeAuthorizer {
    /// Reads the cluster's state from `cache`.
    pub fn new(cache: Arc<WatchCache>) -> Self {
        Self { cache }
    }

    /// Decides; about others than kubelets it has no opinion.
    pub fn decide(&self, user: &UserInfo, what: &Attributes<'_>) -> Decision {
        let Some(node) = node_of(user) else { return Decision::NoOpinion(String::new()) };
        if node.is_empty() {
            return Decision::NoOpinion(format!("unknown node for user {:?}", user.name));
        }
        let (plural, subresource) = what.resource.split_once('/').unwrap_or((&what.resource, ""));
        if what.path.is_none() {
            match (what.group, plural) {
                ("", "secrets") => return self.read(node, Referred::Secret, subresource, what),
                ("", "configmaps") => return self.read(node, Referred::ConfigMap, subresource, what),
                ("", "persistentvolumeclaims") if subresource == "status" => {
                    return match what.verb {
                        "update" | "patch" | "get" => self.related(node, Referred::Claim, what),
                        _ => none("can only get/update/patch this type"),
                    };
                }
                ("", "persistentvolumeclaims" | "persistentvolumes")
                | ("resource.k8s.io", "resourceclaims")
                | ("storage.k8s.io", "volumeattachments") => {
                    return self.get(node, plural, subresource, what);
                }
                ("", "serviceaccounts") => return self.service_account(node, subresource, what),
                ("coordination.k8s.io", "leases") => return lease(node, what),
                ("storage.k8s.io", "csinodes") => return csi_node(node, subresource, what),
                ("resource.k8s.io", "resourceslices") => return self.slice(node, subresource, what),
                ("", "nodes") => return own_node(node, subresource, what),
                ("", "pods") => return self.pod(node, subresource, what),
                _ => {}
            }
        }
        if RULES.iter().any(|rule| rule_allows(rule, what)) { allowed() } else { none("") }
    }

    fn read(&self, node: &str, what_kind: Referred, subresource: &str, what: &Attributes<'_>) -> Decision {
        match what.verb {
            "get" | "list" | "watch" => {}
            _ => return none("can only read resources of this type"),
        }
        if !subresource.is_empty() {
            return none("cannot read subresource");
        }
        if what.namespace.is_empty() {
            return none("can only read namespaced object of this type");
        }
        self.related(node, what_kind, what)
    }

    fn get(&self, node: &str, plural: &str, subresource: &str, what: &Attributes<'_>) -> Decision {
        if what.verb != "get" {
            return none("can only get individual resources of this type");
        }
        if !subresource.is_empty() {
            return none("cannot get subresource");
        }
        match plural {
            "persistentvolumeclaims" => self.related(node, Referred::Claim, what),
            "resourceclaims" => self.related(node, Referred::ResourceClaim, what),
            "persistentvolumes" => {
                let volume = self.object("", "persistentvolumes", "", what.name);
                relation(node, volume.is_some_and(|v| self.volume_is_used(node, &v)))
            }
            _ => {
                let attachment = self.object("storage.k8s.io", "volumeattachments", "", what.name);
                relation(node, attachment.is_some_and(|a| a.value()["spec"]["nodeName"] == node))
            }
        }
    }

    fn service_account(&self, node: &str, subresource: &str, what: &Attributes<'_>) -> Decision {
        match (what.verb, subresource) {
            ("get", "") => self.related(node, Referred::ServiceAccount, what),
            ("create", "token") if !what.name.is_empty() => {
                self.related(node, Referred::ServiceAccount, what)
            }
            ("create", "token") => none("can only create tokens for individual service accounts"),
            _ => none("can only create token subresource of serviceaccount"),
        }
    }

    fn slice(&self, node: &str, subresource: &str, what: &Attributes<'_>) -> Decision {
        if !subresource.is_empty() {
            return none("cannot authorize ResourceSlice subresources");
        }
        match what.verb {
            "create" => allowed(),
            "get" | "update" | "patch" | "delete" => {
                let slice = self.object("resource.k8s.io", "resourceslices", "", what.name);
                relation(node, slice.is_some_and(|s| s.value()["spec"]["nodeName"] == node))
            }
            "watch" | "list" | "deletecollection" if what.required_field("spec.nodeName") == Some(node) => {
                allowed()
            }
            "watch" | "list" | "deletecollection" => {
                none("can only list/watch/deletecollection resourceslices with nodeName field selector")
            }
            _ => none(
                "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection",
            ),
        }
    }

    fn pod(&self, node: &str, subresource: &str, what: &Attributes<'_>) -> Decision {
        match (subresource, what.verb) {
            ("", "get") => self.own_pod(node, what),
            ("", "list" | "watch") if what.required_field("spec.nodeName") == Some(node) => allowed(),
            ("", "list" | "watch") if !what.name.is_empty() => self.own_pod(node, what),
            ("", "list" | "watch") => none("can only list/watch pods with spec.nodeName field selector"),
            // whose they are, NodeRestriction sees to
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => allowed(),
            _ => none(""),
        }
    }

    fn own_pod(&self, node: &str, what: &Attributes<'_>) -> Decision {
        let pod = self.object("", "pods", what.namespace, what.name);
        relation(node, pod.is_some_and(|p| runs_on(&p, node)))
    }

    fn related(&self, node: &str, kind: Referred, what: &Attributes<'_>) -> Decision {
        if what.name.is_empty() {
            return none("No Object name found");
        }
        let found = self.pod_refers(node, kind, what.namespace, what.name)
            || kind == Referred::Secret && self.volume_refers(node, what.namespace, what.name);
        relation(node, found)
    }

    /// Whether a pod of the node refers to the object.
    fn pod_refers(&self, node: &str, kind: Referred, namespace: &str, name: &str) -> bool {
        let Some(pods) = api::kinds::find("", "v1", "pods") else { return false };
        let prefix = format!("{}{namespace}/", pods.storage_prefix);
        let listed =
            self.cache.list_by(pods, &prefix, "spec.nodeName", node).map(|l| l.items).unwrap_or_default();
        listed.iter().any(|pod| {
            if kind.is_named() && memmem::find(pod.json(), name.as_bytes()).is_none() {
                return false;
            }
            // not kept: the trees of all pods would be the most of the server's memory
            let pod = pod.to_value();
            // what a node says about its static pods must not give it rights
            let is_mirror = pod["metadata"]["annotations"].get("kubernetes.io/config.mirror").is_some();
            !is_mirror && refers(&pod, kind, name)
        })
    }

    /// Whether a volume that a pod of the node uses needs the Secret.
    fn volume_refers(&self, node: &str, namespace: &str, name: &str) -> bool {
        let Some(volumes) = api::kinds::find("", "v1", "persistentvolumes") else { return false };
        let listed = self.cache.list(volumes, &volumes.storage_prefix, None).items;
        listed.iter().any(|v| volume_secret(v.value(), namespace, name) && self.volume_is_used(node, v))
    }

    fn volume_is_used(&self, node: &str, volume: &Object) -> bool {
        let claim = &volume.value()["spec"]["claimRef"];
        match (claim["namespace"].as_str(), claim["name"].as_str()) {
            (Some(namespace), Some(name)) => self.pod_refers(node, Referred::Claim, namespace, name),
            _ => false,
        }
    }

    fn object(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Arc<Object>> {
        let kind: &Arc<Kind> = api::kinds::find(group, "v1", plural)?;
        self.cache.get(kind, &kind.key(namespace, name))
    }
}

fn allowed() -> Decision {
    Decision::Allowed(String::new())
}

fn none(why: &str) -> Decision {
    Decision::NoOpinion(why.to_owned())
}

fn relation(node: &str, found: bool) -> Decision {
    match found {
        true => allowed(),
        false => Decision::NoOpinion(format!("no relationship found between node '{node}' and this object")),
    }
}

fn lease(node: &str, what: &Attributes<'_>) -> Decision {
    if !matches!(what.verb, "get" | "create" | "update" | "patch" | "delete") {
        return none("can only get, create, update, patch, or delete a node lease");
    }
    if what.namespace != LEASES {
        return Decision::NoOpinion(format!("can only access leases in the {LEASES:?} system namespace"));
    }
    // on create the name is in the body: NodeRestriction's
    if what.verb != "create" && what.name != node {
        return none("can only access node lease with the same name as the requesting node");
    }
    allowed()
}

fn csi_node(node: &str, subresource: &str, what: &Attributes<'_>) -> Decision {
    if !matches!(what.verb, "get" | "create" | "update" | "patch" | "delete") {
        return none("can only get, create, update, patch, or delete a CSINode");
    }
    if !subresource.is_empty() {
        return none("cannot authorize CSINode subresources");
    }
    if what.verb != "create" && what.name != node {
        return none("can only access CSINode with the same name as the requesting node");
    }
    allowed()
}

fn own_node(node: &str, subresource: &str, what: &Attributes<'_>) -> Decision {
    match (subresource, what.verb) {
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => allowed(),
        ("", "get" | "list" | "watch") => match what.name {
            name if name == node => allowed(),
            "" => {
                Decision::NoOpinion(format!("node '{node}' cannot read all nodes, only its own Node object"))
            }
            other => {
                Decision::NoOpinion(format!("node '{node}' cannot read '{other}', only its own Node object"))
            }
        },
        _ => none(""),
    }
}

fn runs_on(pod: &Object, node: &str) -> bool {
    pod.field("spec.nodeName") == Some(node)
}

fn items<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    value[field].as_array().into_iter().flatten()
}

/// Every container of a pod.
fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|l| items(&pod["spec"], l))
}

fn refers(pod: &Value, kind: Referred, name: &str) -> bool {
    let spec = &pod["spec"];
    match kind {
        Referred::Secret => has_secret(pod, |secret| secret == name),
        Referred::ConfigMap => has_config_map(pod, |map| map == name),
        Referred::ServiceAccount => spec["serviceAccountName"] == name,
        Referred::Claim => items(spec, "volumes").any(|volume| {
            volume["persistentVolumeClaim"]["claimName"] == name
                || volume.get("ephemeral").is_some_and(|e| !e.is_null())
                    && ephemeral_claim(pod, volume).is_some_and(|claim| claim == name)
        }),
        Referred::ResourceClaim => {
            let status = &pod["status"];
            items(spec, "resourceClaims").any(|c| c["resourceClaimName"] == name)
                || items(status, "resourceClaimStatuses").any(|c| c["resourceClaimName"] == name)
                || status["extendedResourceClaimStatus"]["resourceClaimName"] == name
        }
    }
}

fn ephemeral_claim(pod: &Value, volume: &Value) -> Option<String> {
    Some(format!("{}-{}", pod["metadata"]["name"].as_str()?, volume["name"].as_str()?))
}

/// Whether a pod refers to a Secret whose name `fits`.
pub fn has_secret(pod: &Value, fits: impl Fn(&str) -> bool) -> bool {
    let fits = |value: &Value| value.as_str().is_some_and(&fits);
    let spec = &pod["spec"];
    items(spec, "imagePullSecrets").any(|s| fits(&s["name"]))
        || containers(pod).any(|c| {
            items(c, "env").any(|e| fits(&e["valueFrom"]["secretKeyRef"]["name"]))
                || items(c, "envFrom").any(|e| fits(&e["secretRef"]["name"]))
        })
        || items(spec, "volumes").any(|volume| {
            let sources = volume.as_object().into_iter().flatten();
            fits(&volume["secret"]["secretName"])
                || fits(&volume["azureFile"]["secretName"])
                || items(&volume["projected"], "sources").any(|s| fits(&s["secret"]["name"]))
                || sources
                    .map(|(_, source)| source)
                    .any(|s| fits(&s["secretRef"]["name"]) || fits(&s["nodePublishSecretRef"]["name"]))
        })
}

/// Whether a pod refers to a ConfigMap whose name `fits`.
pub fn has_config_map(pod: &Value, fits: impl Fn(&str) -> bool) -> bool {
    let fits = |value: &Value| value.as_str().is_some_and(&fits);
    containers(pod).any(|c| {
        items(c, "env").any(|e| fits(&e["valueFrom"]["configMapKeyRef"]["name"]))
            || items(c, "envFrom").any(|e| fits(&e["configMapRef"]["name"]))
    }) || items(&pod["spec"], "volumes").any(|volume| {
        fits(&volume["configMap"]["name"])
            || items(&volume["projected"], "sources").any(|s| fits(&s["configMap"]["name"]))
    })
}

/// Whether a kubelet needs the Secret for a persistent volume.
fn volume_secret(volume: &Value, namespace: &str, name: &str) -> bool {
    let spec = &volume["spec"];
    let claim = &spec["claimRef"]["namespace"];
    let fits = |reference: &Value| {
        let of = reference["namespace"].as_str().or(claim.as_str());
        reference["name"] == name && of == Some(namespace)
    };
    let azure = &spec["azureFile"];
    let is_azure = azure["secretName"] == name
        && azure["secretNamespace"].as_str().or(claim.as_str()) == Some(namespace);
    is_azure
        || spec.as_object().into_iter().flatten().any(|(_, source)| {
            ["secretRef", "nodePublishSecretRef", "nodeStageSecretRef", "nodeExpandSecretRef"]
                .iter()
                .any(|field| fits(&source[*field]))
        })
}
