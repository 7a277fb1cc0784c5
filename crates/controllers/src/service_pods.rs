//! What the endpoint controllers share: which services a pod's change touches, and a service's ports on a pod.
use client::{Cache, Change};
use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sha2::{Digest, Sha256};

use crate::ownership::{labels, name, namespace, uid};
use crate::pods;
use crate::runner::ObjectKey;

/// Label of a headless service's endpoint objects.
pub(crate) const HEADLESS: &str = "service.kubernetes.io/headless";

/// Label of a slice: the service it is of.
pub(crate) const SLICE_SERVICE: &str = "kubernetes.io/service-name";
/// Label of a slice: the controller that keeps it.
pub(crate) const SLICE_MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";

/// `<owner>-<five letters>`, the same for the same `seed`; the prefix is cut where the name would get too long.
pub(crate) fn slice_name(owner: &ObjectMeta, seed: &str) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let digest = Sha256::digest(format!("{}\n{seed}", uid(owner)).as_bytes());
    let suffix: String =
        digest.iter().take(5).map(|b| ALPHABET[usize::from(*b) % ALPHABET.len()] as char).collect();
    let prefix: String = name(owner).chars().take(57).collect();
    format!("{prefix}-{suffix}")
}

/// Whether the service selects pods; others have endpoints made by hand.
pub(crate) fn selects(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.is_some_and(|s| s.selector.is_some() && s.type_.as_deref() != Some("ExternalName"))
}

/// Whether the service has no address of its own.
pub(crate) fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

/// Whether the service publishes pods before they are ready.
pub(crate) fn publishes_not_ready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses) == Some(true)
}

fn matches(service: &Service, pod: &Pod) -> bool {
    let Some(selector) = service.spec.as_ref().and_then(|s| s.selector.as_ref()) else { return false };
    selector.iter().all(|(k, v)| labels(&pod.metadata).get(k) == Some(v))
}

/// The pods a service selects.
pub(crate) fn of_service(service: &Service, pods: &Cache<Pod>) -> Vec<std::sync::Arc<Pod>> {
    let mut list = pods.list_ns(namespace(&service.metadata));
    list.retain(|p| matches(service, p));
    list
}

/// The services whose endpoints the change of a pod may alter; none when nothing changed that endpoints show.
pub(crate) fn services_of(services: &Cache<Service>, change: &Change<Pod>) -> Vec<ObjectKey> {
    let (old, new) = match change {
        Change::Added(pod) | Change::Deleted(pod) => (None, pod),
        Change::Modified { old, new } => {
            if shown(old) == shown(new) {
                return Vec::new();
            }
            (Some(old), new)
        }
    };
    services
        .list_ns(namespace(&new.metadata))
        .iter()
        .filter(|s| selects(s) && (matches(s, new) || old.is_some_and(|old| matches(s, old))))
        .map(|s| ObjectKey::of(&s.metadata))
        .collect()
}

/// Everything of a pod that endpoints depend on.
fn shown(pod: &Pod) -> impl PartialEq + '_ {
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    (
        (uid(&pod.metadata), pod.metadata.labels.as_ref(), pod.metadata.deletion_timestamp.is_some()),
        (pods::is_terminal(pod), pods::is_ready(pod)),
        (status.and_then(|s| s.pod_ip.as_deref()), status.and_then(|s| s.pod_ips.as_ref())),
        (
            pods::node_name(pod),
            spec.and_then(|s| s.hostname.as_deref()),
            spec.and_then(|s| s.subdomain.as_deref()),
        ),
    )
}

/// The port of `pod` that a service port stands for; `None` when the pod has no port of that name.
pub(crate) fn target_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    let wanted = match &port.target_port {
        None | Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) => name,
    };
    let protocol = protocol(port);
    let spec = pod.spec.as_ref()?;
    let sidecars =
        spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = |c: &Container| {
        let mut list = c.ports.iter().flatten();
        list.find(|p| {
            p.name.as_deref() == Some(wanted.as_str()) && p.protocol.as_deref().unwrap_or("TCP") == protocol
        })
        .map(|p| p.container_port)
    };
    spec.containers.iter().chain(sidecars).find_map(ports)
}

/// TCP where the service does not say.
pub(crate) fn protocol(port: &ServicePort) -> &str {
    port.protocol.as_deref().filter(|p| !p.is_empty()).unwrap_or("TCP")
}

/// The hostname the pod has below the service's name.
pub(crate) fn hostname(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec.hostname.clone().filter(|h| !h.is_empty())?;
    (spec.subdomain.as_deref() == Some(name(&service.metadata))).then_some(hostname)
}

/// A reference to the pod behind an endpoint.
pub(crate) fn pod_reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..Default::default()
    }
}

/// The pod's addresses of one family (`IPv4` or `IPv6`).
pub(crate) fn address(pod: &Pod, family: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut all = listed.chain(status.pod_ip.as_deref());
    all.find(|ip| !ip.is_empty() && ip.contains(':') == (family == "IPv6")).map(str::to_owned)
}
