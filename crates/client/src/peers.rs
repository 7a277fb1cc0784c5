//! What nodes know of each other: the view of the routes to their pods, and of who answers for load balancers' addresses.
//!
//! Every node keeps one of every other. A whole Node is kilobytes, most of them the images that it has, and is written again with
//! every heartbeat; what is here stays the same then.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use api::object::{Object, ObjectError};
use k8s_openapi::api::core::v1::Node;
use serde::{Deserialize, Deserializer};

use crate::{Cache, Cached, Caches};

/// The annotation of a Node with its public key of WireGuard, in base64; only the node itself may write it.
pub const KEY_ANNOTATION: &str = "navarch.dev/wireguard-public-key";

/// Nodes with this label answer for nothing.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// A Node, as others see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeView {
    /// Its name.
    pub name: Box<str>,
    /// Its first internal address.
    pub address: Option<IpAddr>,
    /// The ranges that its pods have their addresses of.
    pub pod_cidrs: Box<[Box<str>]>,
    /// The text of [`KEY_ANNOTATION`].
    pub key: Option<Box<str>>,
    /// Whether it may answer for load balancers' addresses: it is ready, stays, and is not excluded by its label.
    pub balances: bool,
}

impl Caches {
    /// The cache of the Nodes that a field selector selects, as others see them.
    pub fn peers(&self, field_selector: &str) -> Cache<NodeView> {
        self.of_view::<Node, _>(field_selector)
    }
}

impl Cached for NodeView {
    fn view(object: &Arc<Object>) -> Result<Arc<Self>, ObjectError> {
        object.memo(|json| serde_json::from_slice(json).map_err(ObjectError::Syntax))
    }
}

#[derive(Deserialize)]
struct Raw {
    metadata: Metadata,
    #[serde(default)]
    spec: Option<Spec>,
    #[serde(default)]
    status: Option<Status>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: Box<str>,
    deletion_timestamp: Option<Box<str>>,
    labels: Option<BTreeMap<Box<str>, Box<str>>>,
    annotations: Option<BTreeMap<Box<str>, Box<str>>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Spec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Box<str>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Box<[Box<str>]>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    addresses: Option<Vec<Address>>,
    conditions: Option<Vec<Condition>>,
}

#[derive(Deserialize)]
struct Address {
    #[serde(rename = "type")]
    kind: Box<str>,
    address: Box<str>,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: Box<str>,
    status: Box<str>,
}

impl<'de> Deserialize<'de> for NodeView {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Raw { metadata, spec, status } = Raw::deserialize(deserializer)?;
        let (spec, status) = (spec.unwrap_or_default(), status.unwrap_or_default());
        let addresses = status.addresses.unwrap_or_default();
        let internal = addresses.iter().find(|address| &*address.kind == "InternalIP");
        let conditions = status.conditions.unwrap_or_default();
        let is_ready = conditions.iter().any(|c| &*c.kind == "Ready" && &*c.status == "True");
        let is_excluded = metadata.labels.is_some_and(|labels| labels.contains_key(EXCLUDED));
        let one = || (!spec.pod_cidr.is_empty()).then_some(spec.pod_cidr).into_iter().collect();
        Ok(Self {
            name: metadata.name,
            address: internal.and_then(|internal| internal.address.parse().ok()),
            pod_cidrs: spec.pod_cidrs.filter(|several| !several.is_empty()).unwrap_or_else(one),
            key: metadata.annotations.and_then(|mut all| all.remove(KEY_ANNOTATION)),
            balances: is_ready && !is_excluded && metadata.deletion_timestamp.is_none(),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn view(node: serde_json::Value) -> NodeView {
        serde_json::from_value(node).unwrap()
    }

    #[test]
    fn a_node_is_seen_with_its_first_internal_address_and_all_its_ranges() {
        let addresses = json!([{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "192.0.2.7"},
            {"type": "InternalIP", "address": "fd00::7"}]);
        let seen = view(json!({"metadata": {"name": "n", "annotations": {KEY_ANNOTATION: "text", "a": "b"}},
            "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]},
            "status": {"addresses": addresses, "images": [{"names": ["i"]}]}}));
        let both = ["10.244.1.0/24".into(), "fd00:1::/64".into()];
        let expected = NodeView {
            name: "n".into(),
            address: "192.0.2.7".parse().ok(),
            pod_cidrs: both.into(),
            key: Some("text".into()),
            balances: false,
        };
        assert_eq!(seen, expected);
        let one =
            view(json!({"metadata": {"name": "n"}, "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": null}}));
        assert_eq!(one.pod_cidrs, ["10.244.1.0/24".into()].into());
        assert_eq!(
            view(json!({"metadata": {"name": "n"}})),
            NodeView { name: "n".into(), ..NodeView::default() }
        );
    }

    #[test]
    fn a_node_balances_while_it_is_ready_stays_and_is_not_excluded() {
        let node = |ready: &str, labels: serde_json::Value, deleted: serde_json::Value| {
            let metadata = json!({"name": "n", "labels": labels, "deletionTimestamp": deleted});
            let status = json!({"conditions": [{"type": "Ready", "status": ready}]});
            view(json!({"metadata": metadata, "status": status})).balances
        };
        assert!(node("True", json!({}), json!(null)));
        assert!(!node("Unknown", json!({}), json!(null)));
        assert!(!node("True", json!({EXCLUDED: ""}), json!(null)));
        assert!(!node("True", json!({}), json!("2026-01-01T00:00:00Z")));
    }
}
