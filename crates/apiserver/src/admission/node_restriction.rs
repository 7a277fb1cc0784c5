//! NodeRestriction: a kubelet changes its own Node, the pods bound to it, its Lease and CSINode, and nothing else.
//!
//! Rule: Kubernetes documentation, "Admission Control in Kubernetes", NodeRestriction.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::meta;
use api::node_labels;
use api::object::Object;
use serde_json::{Value, json};

use super::{Operation, Request};
use crate::auth::authorize::{Attributes, Authorizer};
use crate::auth::node::{has_config_map, has_secret, node_of};
use crate::status::{ApiError, ApiResult};
use crate::watch_cache::WatchCache;

/// Pods that stand for static ones carry this annotation.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Leases of nodes are here.
const LEASES: &str = "kube-node-lease";
/// Labels with this prefix are the administrator's.
const RESTRICTED: &str = "node-restriction.kubernetes.io";

/// Refuses what a kubelet must not write.
pub fn check(cache: &WatchCache, request: &Request<'_>, object: &Value) -> ApiResult<()> {
    let Some(node) = node_of(request.user) else { return Ok(()) };
    let check = Check { cache, request, object, node };
    if node.is_empty() {
        return check.refuse(&format!("could not determine node from user {:?}", request.user.name));
    }
    match (request.kind.group.as_str(), request.kind.plural.as_str(), request.subresource) {
        ("", "pods", "") => check.pod(),
        ("", "pods", "status") => check.pod_status(),
        ("", "pods", "eviction") => check.eviction(),
        ("", "pods", other) => check.refuse(&format!(
            "unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"
        )),
        ("", "nodes", _) => check.node(),
        ("", "persistentvolumeclaims", "status") => check.claim_status(),
        ("", "persistentvolumeclaims", _) => check.refuse("may only update PVC status"),
        ("", "serviceaccounts", "token") => check.token(),
        ("coordination.k8s.io", "leases", _) => check.lease(),
        ("storage.k8s.io", "csinodes", _) => {
            check.own_name("can only access CSINode with the same name as the requesting node")
        }
        ("resource.k8s.io", "resourceslices", _) => check.slice(),
        _ => Ok(()),
    }
}

/// Refuses tokens for audiences that neither the pod names nor somebody let the kubelet ask for
/// (`request-serviceaccounts-token-audience`).
pub async fn check_audiences(
    cache: &WatchCache,
    authorizer: &Authorizer,
    request: &Request<'_>,
    object: &Value,
) -> ApiResult<()> {
    let Some(node) = node_of(request.user) else { return Ok(()) };
    let check = Check { cache, request, object, node };
    let name = object["spec"]["boundObjectRef"]["name"].as_str().unwrap_or_default();
    let pod = check.stored("pods", request.namespace, name)?.to_value();
    for asked in object["spec"]["audiences"].as_array().into_iter().flatten() {
        let asked = asked.as_str().unwrap_or_default();
        let question = Attributes {
            verb: "request-serviceaccounts-token-audience",
            resource: asked.to_owned(),
            namespace: request.namespace,
            name: request.name,
            ..Attributes::default()
        };
        if !check.pod_asks(asked, &pod) && !authorizer.admits(request.user, &question).await {
            return check.refuse(&format!("audience {asked:?} not found in pod spec volume"));
        }
    }
    Ok(())
}

struct Check<'a> {
    cache: &'a WatchCache,
    request: &'a Request<'a>,
    object: &'a Value,
    node: &'a str,
}

impl Check<'_> {
    fn refuse(&self, why: &str) -> ApiResult<()> {
        Err(ApiError::forbidden(self.request.kind, self.name(), why))
    }

    /// The name in the URL, or the object's.
    fn name(&self) -> &str {
        match (self.request.name, self.request.old) {
            ("", Some(old)) => meta::name(old),
            ("", None) => meta::name(self.object),
            (name, _) => name,
        }
    }

    fn stored(&self, plural: &str, namespace: &str, name: &str) -> ApiResult<Arc<Object>> {
        let kind = api::kinds::find("", "v1", plural).ok_or_else(ApiError::no_such_resource)?;
        let key = kind.key(namespace, name);
        self.cache.get(kind, &key).ok_or_else(|| self.cache.absent(kind, name, &key))
    }

    fn pod(&self) -> ApiResult<()> {
        let node = self.node;
        match self.request.operation {
            Operation::Create => self.new_pod(),
            Operation::Delete if self.request.old.is_some_and(|p| p["spec"]["nodeName"] != node) => {
                self.refuse(&format!("node {node:?} can only delete pods with spec.nodeName set to itself"))
            }
            Operation::Delete => Ok(()),
            other => self.refuse(&format!(
                "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
                other.name()
            )),
        }
    }

    fn new_pod(&self) -> ApiResult<()> {
        let (pod, node) = (self.object, self.node);
        let spec = &pod["spec"];
        if pod["metadata"]["annotations"][MIRROR].is_null() {
            return self.refuse(&format!(
                "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
            ));
        }
        if spec["nodeName"] != node {
            return self
                .refuse(&format!("node {node:?} can only create pods with spec.nodeName set to itself"));
        }
        self.owner()?;
        let refers =
            |what: &str| self.refuse(&format!("node {node:?} can not create pods that reference {what}"));
        if spec["serviceAccountName"].as_str().is_some_and(|n| !n.is_empty()) {
            return refers("a service account");
        }
        if has_secret(pod, |_| true) {
            return refers("secrets");
        }
        if has_config_map(pod, |_| true) {
            return refers("configmaps");
        }
        for volume in spec["volumes"].as_array().into_iter().flatten() {
            let sources = volume["projected"]["sources"].as_array().into_iter().flatten();
            if sources.map(|s| &s["clusterTrustBundle"]).any(|b| !b.is_null()) {
                return refers("clustertrustbundles");
            }
            if !volume["persistentVolumeClaim"].is_null() {
                return refers("persistentvolumeclaims");
            }
        }
        if spec["resourceClaims"].as_array().is_some_and(|l| !l.is_empty()) {
            return refers("resourceclaims");
        }
        Ok(())
    }

    fn owner(&self) -> ApiResult<()> {
        let node = self.node;
        let owners = self.object["metadata"]["ownerReferences"].as_array();
        let owner = match owners.map(Vec::as_slice) {
            Some([owner]) => owner,
            Some([_, _, ..]) => {
                let what = "can only create pods with a single owner reference set to itself";
                return self.refuse(&format!("node {node:?} {what}"));
            }
            _ => {
                let what = "can only create pods with an owner reference set to itself";
                return self.refuse(&format!("node {node:?} {what}"));
            }
        };
        let refuse = |what: &str| self.refuse(&format!("node {node:?} {what}"));
        if owner["apiVersion"] != "v1" || owner["kind"] != "Node" || owner["name"] != node {
            return refuse("can only create pods with an owner reference set to itself");
        }
        if owner["controller"] != true {
            return refuse("can only create pods with a controller owner reference set to itself");
        }
        if owner["blockOwnerDeletion"] == true {
            return refuse("must not set blockOwnerDeletion on an owner reference");
        }
        let (said, known) = (owner["uid"].as_str().unwrap_or_default(), self.stored("nodes", "", node)?);
        if said != known.uid() {
            return self.refuse(&format!("node {node} UID mismatch: expected {said} got {}", known.uid()));
        }
        Ok(())
    }

    fn pod_status(&self) -> ApiResult<()> {
        let node = self.node;
        let (Operation::Update, Some(old)) = (self.request.operation, self.request.old) else {
            return self.refuse(&format!("unexpected operation {:?}", self.request.operation.name()));
        };
        let refuse = |what: &str| self.refuse(&format!("node {node:?} {what}"));
        if old["spec"]["nodeName"] != node {
            return refuse("can only update pod status for pods with spec.nodeName set to itself");
        }
        if !same(&old["metadata"]["labels"], &self.object["metadata"]["labels"]) {
            return refuse("cannot update labels through pod status");
        }
        let claims = "resourceClaimStatuses";
        if !same(&old["status"][claims], &self.object["status"][claims]) {
            return refuse("cannot update resource claim statues");
        }
        let claim = "extendedResourceClaimStatus";
        if !same(&old["status"][claim], &self.object["status"][claim]) {
            return refuse("cannot update extended resource claim statues");
        }
        Ok(())
    }

    fn eviction(&self) -> ApiResult<()> {
        let pod = self.stored("pods", self.request.namespace, self.name())?;
        if pod.field("spec.nodeName") != Some(self.node) {
            let node = self.node;
            return self.refuse(&format!("node {node} can only evict pods with spec.nodeName set to itself"));
        }
        Ok(())
    }

    fn claim_status(&self) -> ApiResult<()> {
        let node = self.node;
        let (Operation::Update, Some(old)) = (self.request.operation, self.request.old) else {
            return self.refuse(&format!("unexpected operation {:?}", self.request.operation.name()));
        };
        // all but what a kubelet reports about a resize
        let rest = |object: &Value| {
            let mut rest = object.clone();
            for field in ["capacity", "conditions", "allocatedResources", "allocatedResourceStatuses"] {
                if let Some(status) = rest["status"].as_object_mut() {
                    status.remove(field);
                }
            }
            let metadata = meta::metadata_mut(&mut rest);
            metadata.remove("resourceVersion");
            metadata.remove("managedFields");
            rest
        };
        if !same(&rest(old), &rest(self.object)) {
            return self.refuse(&format!(
                "node {node:?} is not allowed to update fields other than status.quantity and status.conditions"
            ));
        }
        Ok(())
    }

    fn node(&self) -> ApiResult<()> {
        let node = self.node;
        if self.name() != node {
            return self.refuse(&format!("node {node:?} is not allowed to modify node {:?}", self.name()));
        }
        let none = json!({});
        match (self.request.operation, self.request.old) {
            (Operation::Create, _) => {
                let forbidden = forbidden_labels(&none, &self.object["metadata"]["labels"]);
                if !forbidden.is_empty() {
                    return self.refuse(&format!(
                        "node {node:?} is not allowed to set the following labels: {forbidden}"
                    ));
                }
                Ok(())
            }
            (Operation::Update, Some(old)) => {
                if !same(&old["spec"]["taints"], &self.object["spec"]["taints"]) {
                    return self.refuse(&format!("node {node:?} is not allowed to modify taints"));
                }
                let (before, after) = (&old["metadata"]["labels"], &self.object["metadata"]["labels"]);
                let forbidden = forbidden_labels(before, after);
                if !forbidden.is_empty() {
                    return self.refuse(&format!("is not allowed to modify labels: {forbidden}"));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn token(&self) -> ApiResult<()> {
        let bound = &self.object["spec"]["boundObjectRef"];
        let text = |key: &str| bound[key].as_str().unwrap_or_default();
        if text("apiVersion") != "v1" || text("kind") != "Pod" || text("name").is_empty() {
            return self.refuse("node requested token not bound to a pod");
        }
        if text("uid").is_empty() {
            return self.refuse("node requested token with a pod binding without a uid");
        }
        let pod = self.stored("pods", self.request.namespace, text("name"))?;
        if pod.uid() != text("uid") {
            return self.refuse(&format!(
                "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
                text("uid")
            ));
        }
        if pod.field("spec.nodeName") != Some(self.node) {
            return self.refuse("node requested token bound to a pod scheduled on a different node");
        }
        Ok(())
    }

    /// Whether the pod's volumes want tokens for the audience.
    fn pod_asks(&self, asked: &str, pod: &Value) -> bool {
        let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
        let is_named = volumes
            .flat_map(|v| v["projected"]["sources"].as_array().into_iter().flatten())
            .filter_map(|s| s["serviceAccountToken"].as_object())
            .map(|t| t.get("audience").and_then(Value::as_str).unwrap_or_default())
            .any(|named| named == asked || named.is_empty() && asked == crate::auth::token::ISSUER);
        is_named || self.driver_asks(asked, pod)
    }

    /// Whether a CSI driver of the pod's volumes wants tokens for the audience.
    fn driver_asks(&self, audience: &str, pod: &Value) -> bool {
        let Some(drivers) = api::kinds::find("storage.k8s.io", "v1", "csidrivers") else { return false };
        let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
        let uses_volumes = volumes.clone().any(|v| {
            !v["persistentVolumeClaim"].is_null() || !v["ephemeral"].is_null() || !v["csi"].is_null()
        });
        uses_volumes
            && self.cache.list(drivers, &drivers.storage_prefix, None).items.iter().any(|driver| {
                let requests = driver.value()["spec"]["tokenRequests"].as_array();
                requests.into_iter().flatten().any(|r| r["audience"] == audience)
            })
    }

    fn lease(&self) -> ApiResult<()> {
        if self.request.namespace != LEASES {
            return self.refuse(&format!("can only access leases in the {LEASES:?} system namespace"));
        }
        self.own_name("can only access node lease with the same name as the requesting node")
    }

    fn own_name(&self, why: &str) -> ApiResult<()> {
        if self.name() == self.node { Ok(()) } else { self.refuse(why) }
    }

    fn slice(&self) -> ApiResult<()> {
        let of = |object: &Value| object["spec"]["nodeName"] == self.node;
        match (self.request.operation, self.request.old) {
            (Operation::Create, _) if !of(self.object) => {
                self.refuse("can only create ResourceSlice with the same NodeName as the requesting node")
            }
            (Operation::Delete, Some(old)) if !of(old) => {
                self.refuse("can only delete ResourceSlice with the same NodeName as the requesting node")
            }
            _ => Ok(()),
        }
    }
}

/// Equal, where absent, null and empty are the same.
fn same(a: &Value, b: &Value) -> bool {
    let is_empty = |v: &Value| match v {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    a == b || is_empty(a) && is_empty(b)
}

/// The changed labels that a kubelet must not touch, sorted.
fn forbidden_labels(before: &Value, after: &Value) -> String {
    let keys = |labels: &Value| -> BTreeSet<String> {
        labels.as_object().into_iter().flatten().map(|(k, _)| k.clone()).collect()
    };
    let changed =
        keys(before).union(&keys(after)).filter(|k| before.get(k) != after.get(k)).cloned().collect();
    let forbidden: Vec<String> = BTreeSet::into_iter(changed)
        .filter(|label| {
            let is_restricted = node_labels::is_below(node_labels::prefix(label), RESTRICTED);
            is_restricted || node_labels::is_of_others(label)
        })
        .collect();
    forbidden.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubelet_sets_its_own_labels_only() {
        let labels = |names: &[&str]| {
            forbidden_labels(&Value::Null, &names.iter().map(|n| ((*n).to_owned(), json!(""))).collect())
        };
        assert_eq!(labels(&["kubernetes.io/os", "x.io/y", "plain", "a.node.kubernetes.io/b"]), "");
        assert_eq!(
            labels(&["node-restriction.kubernetes.io/a", "node-role.kubernetes.io/x", "x.k8s.io/b"]),
            "node-restriction.kubernetes.io/a, node-role.kubernetes.io/x, x.k8s.io/b"
        );
    }
}
