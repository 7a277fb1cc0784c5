//! Extended resources that devices stand for: where a node itself offers none of a resource that a pod asks for, devices of the
//! class of that name are given to a claim that is made for the pod before it is bound.
//! Rule: <https://kubernetes.io/docs/concepts/scheduling-eviction/dynamic-resource-allocation/#extended-resource>
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use api::quantity::Quantity;
use api::quota::{IMPLICIT_DEVICES, is_extended};
use k8s_openapi::api::core::v1::{Container, ContainerExtendedResourceRequest, Pod};
use k8s_openapi::api::resource::v1::{
    AllocationResult, DeviceClaim, DeviceClass, DeviceRequest, ExactDeviceRequest, ResourceClaim,
    ResourceClaimSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::allocate::Open;
use super::{Devices, requests};
use crate::pod_info::PodInfo;
use crate::snapshot::NodeInfo;

/// Tells such a claim from others.
const ANNOTATION: &str = "resource.kubernetes.io/extended-resource-claim";
/// In place of the claim's name, as long as it has none.
const UNNAMED: &str = "<extended-resources>";

/// Extended resources that classes stand for, with the class.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ExtendedResources(BTreeMap<String, String>);

impl ExtendedResources {
    /// Of two classes with one name for their devices the younger counts, of those of one age the first by name.
    pub(super) fn of<'a>(classes: impl Iterator<Item = &'a Arc<DeviceClass>>) -> Self {
        let mut all: Vec<_> = classes.collect();
        let age = |class: &DeviceClass| class.metadata.creation_timestamp.as_ref().map(|t| t.0);
        all.sort_by(|a, b| age(a).cmp(&age(b)).then_with(|| b.metadata.name.cmp(&a.metadata.name)));
        let mut names = BTreeMap::new();
        for class in all {
            let name = class.metadata.name.clone().unwrap_or_default();
            if let Some(resource) = &class.spec.extended_resource_name {
                names.insert(resource.clone(), name.clone());
            }
            names.insert(format!("{IMPLICIT_DEVICES}{name}"), name);
        }
        Self(names)
    }

    /// The class whose devices stand for the resource.
    pub fn class_of(&self, resource: &str) -> Option<&str> {
        self.0.get(resource).map(String::as_str)
    }

    /// Resources for which no class, or another one, stood before.
    pub(super) fn since(&self, before: &Self) -> Vec<String> {
        self.0
            .iter()
            .filter(|(name, class)| before.0.get(*name) != Some(class))
            .map(|(n, _)| n.clone())
            .collect()
    }
}

/// The uid of the pod for whose extended resources the claim was made.
pub(crate) fn made_for(claim: &ResourceClaim) -> Option<&str> {
    let annotations = claim.metadata.annotations.as_ref()?;
    if annotations.get(ANNOTATION).map(String::as_str) != Some("true") {
        return None;
    }
    let owners = claim.metadata.owner_references.as_deref().unwrap_or_default();
    owners.iter().find(|o| o.controller == Some(true)).map(|o| o.uid.as_str())
}

/// What a claim that has no name yet is known by: no name of a claim has a slash.
pub(super) fn key_for(namespace: &str, uid: &str) -> String {
    format!("{namespace}/{UNNAMED}/{uid}")
}

/// A claim that is to be made for a pod.
#[derive(Debug, Clone, PartialEq)]
pub struct Made {
    /// What it is known by until it is made.
    pub(super) key: String,
    /// The claim; it has no name yet.
    pub claim: ResourceClaim,
    /// What each container uses of it.
    pub mappings: Vec<ContainerExtendedResourceRequest>,
    /// What it gets.
    pub allocation: Arc<AllocationResult>,
}

/// What a pod asks devices for where its node does not have it.
#[derive(Debug)]
pub(super) struct Extended {
    pod: Arc<Pod>,
    key: String,
    /// Resources for which a class stands, with the class.
    backed: Vec<(Arc<str>, String)>,
    /// Other extended resources.
    others: Vec<Arc<str>>,
    /// A claim that an earlier attempt left behind.
    pub(super) stale: Option<String>,
    /// By what has to come from devices. What selectors say is remembered by where requests are, so that these stay.
    variants: RefCell<BTreeMap<Vec<bool>, Result<Rc<Variant>, String>>>,
}

/// The claim for nodes that lack the same.
#[derive(Debug)]
pub(super) struct Variant {
    pub(super) open: Open,
    mappings: Vec<ContainerExtendedResourceRequest>,
}

impl Variant {
    pub(super) fn made(&self, allocation: Arc<AllocationResult>) -> Made {
        let (key, claim) = (self.open.key.clone(), (*self.open.claim).clone());
        Made { key, claim, mappings: self.mappings.clone(), allocation }
    }
}

impl Extended {
    /// `None`: no class stands for anything that the pod asks for.
    pub(super) fn of(pod: &PodInfo, devices: &Devices) -> Option<Self> {
        let asked = || pod.demand.requests.scalar.iter().filter(|(_, amount)| *amount > 0).map(|(n, _)| n);
        let class = |name: &Arc<str>| devices.extended.class_of(name).map(str::to_owned);
        let backed: Vec<_> = asked().filter_map(|name| Some((name.clone(), class(name)?))).collect();
        if backed.is_empty() {
            return None;
        }
        let is_other = |name: &&Arc<str>| {
            (is_extended(name) || name.starts_with(IMPLICIT_DEVICES)) && class(name).is_none()
        };
        Some(Self {
            pod: pod.pod.clone(),
            key: key_for(pod.namespace(), &pod.uid),
            backed,
            others: asked().filter(is_other).cloned().collect(),
            stale: devices.made.get(&*pod.uid).cloned(),
            variants: RefCell::default(),
        })
    }

    /// What the pod would get from devices on the node; `Ok(None)`: nothing. An error: why the node is out.
    pub(super) fn on(&self, node: &NodeInfo, devices: &Devices) -> Result<Option<Rc<Variant>>, String> {
        if self.stale.is_some() {
            return Err("cannot schedule extended resource claim".to_owned());
        }
        if self.others.iter().any(|name| !node.allocatable.scalar.iter().any(|(n, _)| n == name)) {
            return Err("cannot fit resource".to_owned());
        }
        let lacks: Vec<bool> =
            self.backed.iter().map(|(name, _)| node.allocatable.scalar(name) == 0).collect();
        if !lacks.contains(&true) {
            return Ok(None);
        }
        let mut variants = self.variants.borrow_mut();
        let variant =
            variants.entry(lacks).or_insert_with_key(|lacks| self.variant(lacks, devices).map(Rc::new));
        variant.clone().map(Some)
    }

    fn variant(&self, lacks: &[bool], devices: &Devices) -> Result<Variant, String> {
        let resources: Vec<_> = self
            .backed
            .iter()
            .zip(lacks)
            .filter(|(_, lacks)| **lacks)
            .map(|(backed, _)| backed.clone())
            .collect();
        let (asked, mappings) = requests_of(&self.pod, &resources);
        let wants =
            asked.iter().map(|r| requests::alternatives(devices, UNNAMED, r)).collect::<Result<_, _>>()?;
        let meta = &self.pod.metadata;
        let owner = OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            controller: Some(true),
            ..OwnerReference::default()
        };
        let claim = ResourceClaim {
            metadata: ObjectMeta {
                namespace: meta.namespace.clone(),
                generate_name: Some(format!("{}-extended-resources-", owner.name)),
                annotations: Some([(ANNOTATION.to_owned(), "true".to_owned())].into()),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            },
            spec: ResourceClaimSpec {
                devices: Some(DeviceClaim { requests: Some(asked), ..DeviceClaim::default() }),
            },
            status: None,
        };
        let open = Open { key: self.key.clone(), claim: Arc::new(claim), requests: wants };
        Ok(Variant { open, mappings })
    }
}

/// The claim's requests for the resources, and which of them each container uses. Devices of init containers that end before
/// others begin are theirs afterwards.
fn requests_of(
    pod: &Pod,
    resources: &[(Arc<str>, String)],
) -> (Vec<DeviceRequest>, Vec<ContainerExtendedResourceRequest>) {
    let Some(spec) = &pod.spec else { return (Vec::new(), Vec::new()) };
    let init = spec.init_containers.iter().flatten();
    let is_sidecar = |c: &Container| c.restart_policy.as_deref() == Some("Always");
    let containers: Vec<(&Container, bool)> =
        init.map(|c| (c, is_sidecar(c))).chain(spec.containers.iter().map(|c| (c, true))).collect();
    let (mut requests, mut mappings) = (Vec::new(), Vec::new());
    for (resource, class) in resources {
        let mut lasting: Vec<Option<DeviceRequest>> = vec![None; containers.len()];
        for (i, (container, _)) in containers.iter().enumerate().filter(|(_, (_, lasts))| *lasts) {
            let (request, uses) = request_of(i, container, resource, class, &[]);
            lasting[i] = request;
            mappings.extend(uses);
        }
        // One after the other: the largest request is enough for all of them.
        let (mut largest, mut passing) = (None::<DeviceRequest>, Vec::new());
        let mut own = Vec::new();
        for (i, (container, _)) in containers.iter().enumerate().filter(|(_, (_, lasts))| !*lasts) {
            let (request, uses) = request_of(i, container, resource, class, &lasting[i..]);
            passing.extend(uses);
            if let Some(request) = request {
                own.push(request.name.clone());
                if largest.as_ref().is_none_or(|l| count(l) < count(&request)) {
                    largest = Some(request);
                }
            }
        }
        if let Some(largest) = &largest {
            for mapping in passing.iter_mut().filter(|m| own.contains(&m.request_name)) {
                mapping.request_name.clone_from(&largest.name);
            }
        }
        mappings.extend(passing);
        requests.extend(largest);
        requests.extend(lasting.into_iter().flatten());
    }
    requests.sort_by(|a, b| a.name.cmp(&b.name));
    (requests, mappings)
}

fn count(request: &DeviceRequest) -> i64 {
    request.exactly.as_ref().and_then(|e| e.count).unwrap_or(0)
}

/// What one container (its index counts init containers first) asks for beyond `others`, which it may use before, and what it
/// uses.
fn request_of(
    index: usize,
    container: &Container,
    resource: &str,
    class: &str,
    others: &[Option<DeviceRequest>],
) -> (Option<DeviceRequest>, Vec<ContainerExtendedResourceRequest>) {
    let Some(list) = container.resources.as_ref().and_then(|r| r.requests.as_ref()) else {
        return (None, Vec::new());
    };
    let amount = |text: &str| text.parse::<Quantity>().map_or(0, |q| q.value());
    let wanted = list.get(resource).map_or(0, |q| amount(&q.0));
    if wanted <= 0 {
        return (None, Vec::new());
    }
    let uses = |request: &str| ContainerExtendedResourceRequest {
        container_name: container.name.clone(),
        resource_name: resource.to_owned(),
        request_name: request.to_owned(),
    };
    let (mut has, mut mappings) = (0, Vec::new());
    for other in others.iter().flatten() {
        has += count(other);
        mappings.push(uses(&other.name));
        if has >= wanted {
            return (None, mappings);
        }
    }
    let position = list.keys().position(|name| name == resource).unwrap_or(0);
    let name = format!("container-{index}-request-{position}");
    mappings.push(uses(&name));
    let exactly = ExactDeviceRequest {
        device_class_name: class.to_owned(),
        allocation_mode: Some("ExactCount".to_owned()),
        count: Some(wanted - has),
        ..ExactDeviceRequest::default()
    };
    (Some(DeviceRequest { name, exactly: Some(exactly), ..DeviceRequest::default() }), mappings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use serde_json::{Value, json};

    fn class(name: &str, resource: Option<&str>, created: &str) -> Arc<DeviceClass> {
        let value = json!({"metadata": {"name": name, "creationTimestamp": created}, "spec": {"extendedResourceName": resource}});
        Arc::new(serde_json::from_value(value).expect("class"))
    }

    #[test]
    fn the_youngest_class_of_a_name_stands_for_the_resource() {
        let (old, new) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        let gpu = Some("example.com/gpu");
        let named = |classes: &[Arc<DeviceClass>]| ExtendedResources::of(classes.iter());
        let one =
            named(&[class("b", gpu, new), class("a", gpu, new), class("c", gpu, old), class("d", None, new)]);
        assert_eq!(one.class_of("example.com/gpu"), Some("a"));
        assert_eq!(one.class_of("deviceclass.resource.kubernetes.io/d"), Some("d"));
        assert_eq!(one.class_of("example.com/nic"), None);
        let two = named(&[class("c", gpu, old), class("d", None, new)]);
        assert_eq!(two.since(&one), ["example.com/gpu"]);
    }

    fn check(init: Value, containers: Value, want: Expect) {
        let with = |list: Value| -> Value {
            let one = |(i, c): (usize, &Value)| json!({"name": format!("c{i}"), "resources": {"requests": c["r"]}, "restartPolicy": c["p"]});
            list.as_array().expect("list").iter().enumerate().map(one).collect()
        };
        let mut init = with(init);
        for container in init.as_array_mut().expect("list") {
            container["name"] = json!(container["name"].as_str().expect("name").replace('c', "i"));
        }
        let pod = json!({"metadata": {"name": "p"}, "spec": {"initContainers": init, "containers": with(containers)}});
        let pod: Pod = serde_json::from_value(pod).expect("pod");
        let resources = [("a/gpu".into(), "gpu".to_owned()), ("a/nic".into(), "nic".to_owned())];
        let (requests, mappings) = requests_of(&pod, &resources);
        let mut lines: Vec<String> = requests
            .iter()
            .map(|r| {
                let exactly = r.exactly.as_ref().expect("exactly");
                format!("{}: {} {}", r.name, count(r), exactly.device_class_name)
            })
            .collect();
        lines.extend(
            mappings
                .iter()
                .map(|m| format!("{} {} -> {}", m.container_name, m.resource_name, m.request_name)),
        );
        want.assert_eq(&(lines.join("\n") + "\n"));
    }

    #[test]
    fn every_container_has_requests_of_its_own() {
        check(
            json!([]),
            json!([{"r": {"a/gpu": "2", "cpu": "1", "a/nic": "1"}}, {"r": {"a/gpu": "1"}}, {"r": {"cpu": "1"}}]),
            expect![[r#"
                container-0-request-0: 2 gpu
                container-0-request-1: 1 nic
                container-1-request-0: 1 gpu
                c0 a/gpu -> container-0-request-0
                c1 a/gpu -> container-1-request-0
                c0 a/nic -> container-0-request-1
            "#]],
        );
    }

    #[test]
    fn init_containers_use_what_later_ones_get_and_share_the_rest() {
        check(
            json!([{"r": {"a/gpu": "1"}}, {"r": {"a/gpu": "4"}}, {"r": {"a/gpu": "1"}, "p": "Always"}, {"r": {"a/gpu": "5"}}]),
            json!([{"r": {"a/gpu": "1"}}]),
            expect![[r#"
                container-2-request-0: 1 gpu
                container-3-request-0: 4 gpu
                container-4-request-0: 1 gpu
                i2 a/gpu -> container-2-request-0
                c0 a/gpu -> container-4-request-0
                i0 a/gpu -> container-2-request-0
                i1 a/gpu -> container-2-request-0
                i1 a/gpu -> container-4-request-0
                i1 a/gpu -> container-3-request-0
                i3 a/gpu -> container-4-request-0
                i3 a/gpu -> container-3-request-0
            "#]],
        );
    }
}
