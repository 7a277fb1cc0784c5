//! What policies need to know of pods and namespaces.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use network::Protocol;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// A pod that has, or is about to have, addresses of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFacts {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Its named ports.
    pub ports: Vec<(String, Protocol, u16)>,
    /// Whether this node enforces what its policies say.
    pub local: bool,
}

impl PodFacts {
    /// The facts of `pod` seen from `node`; `None` where policies do not concern it: it uses its host's network, or it has
    /// ended and its addresses may be another's.
    pub fn of(pod: &Pod, node: &str) -> Option<Self> {
        let spec = pod.spec.as_ref()?;
        let status = pod.status.as_ref();
        let phase = status.and_then(|s| s.phase.as_deref());
        if spec.host_network == Some(true) || matches!(phase, Some("Succeeded" | "Failed")) {
            return None;
        }
        let mut ips: Vec<IpAddr> = status
            .and_then(|s| s.pod_ips.as_ref())
            .into_iter()
            .flatten()
            .filter_map(|ip| ip.ip.parse().ok())
            .collect();
        if ips.is_empty() {
            ips.extend(status.and_then(|s| s.pod_ip.as_ref()).and_then(|ip| ip.parse::<IpAddr>().ok()));
        }
        let sidecar =
            |c: &&k8s_openapi::api::core::v1::Container| c.restart_policy.as_deref() == Some("Always");
        let containers = spec.init_containers.iter().flatten().filter(sidecar).chain(&spec.containers);
        let ports = containers.flat_map(|c| c.ports.iter().flatten()).filter_map(|port| {
            let number = u16::try_from(port.container_port).ok()?;
            Some((port.name.clone()?, Protocol::parse(port.protocol.as_deref())?, number))
        });
        Some(Self {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            ports: ports.collect(),
            ips,
            local: spec.node_name.as_deref() == Some(node),
        })
    }
}
