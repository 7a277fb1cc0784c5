//! The runtime's view of the pod network, and the network's view of a sandbox.

use std::sync::{Arc, OnceLock};

use super::bandwidth;
use async_trait::async_trait;
use network::{AddRequest, Attachment, HostPort, Network};
use runtime::{NetworkError, NetworkPod, NetworkResult, PodNetwork};

/// The interface of a pod.
pub const INTERFACE: &str = "eth0";

/// Joins `network` to `runtime`. A pod is connected when its policies are in force.
pub struct Adapter {
    /// The pod network; a new node has none before the cluster gave it addresses for its pods.
    pub network: Arc<OnceLock<Network>>,
    /// Where new pods wait for their policies.
    pub gate: policy::Gate,
}

impl Adapter {
    fn network(&self) -> Result<&Network, NetworkError> {
        self.network.get().ok_or_else(|| NetworkError("the node has no pod CIDR yet".to_owned()))
    }
}

/// An error with its causes, as the runtime shows it.
pub fn failed(error: impl std::error::Error) -> NetworkError {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    NetworkError(text)
}

fn attachment(sandbox: &str) -> Attachment {
    Attachment { container_id: sandbox.to_owned(), ifname: INTERFACE.to_owned() }
}

fn host_port(port: &runtime::PortMapping) -> Option<HostPort> {
    let protocol = network::Protocol::parse(Some(&port.protocol.to_ascii_uppercase()))?;
    Some(HostPort {
        protocol,
        host_ip: port.host_ip,
        host_port: port.host_port,
        pod_port: port.container_port,
    })
}

#[async_trait]
impl PodNetwork for Adapter {
    async fn ready(&self) -> Result<(), NetworkError> {
        self.network()?.status().await.map_err(failed)
    }

    async fn add(&self, pod: &NetworkPod) -> Result<NetworkResult, NetworkError> {
        let args =
            [("K8S_POD_NAMESPACE", &pod.namespace), ("K8S_POD_NAME", &pod.name), ("K8S_POD_UID", &pod.uid)];
        let request = AddRequest {
            attachment: attachment(&pod.sandbox),
            netns: pod.netns.clone(),
            args: args.map(|(key, value)| (key.to_owned(), value.clone())).to_vec(),
        };
        let limits = bandwidth::of_annotations(&pod.annotations).map_err(NetworkError)?;
        let ips = self.network()?.add(&request).await.map_err(failed)?.addresses();
        let ports: Vec<HostPort> = pod.ports.iter().filter_map(host_port).collect();
        self.network()?.publish(&request.attachment, &ports).await.map_err(failed)?;
        self.network()?.limit(&request.attachment, limits).await.map_err(failed)?;
        // nothing of the pod runs yet; it does not until this returns
        self.gate.enforced(&pod.namespace, &pod.name, &pod.uid, ips.clone()).await.map_err(failed)?;
        Ok(NetworkResult { ips })
    }

    async fn del(&self, pod: &NetworkPod) -> Result<(), NetworkError> {
        // without a network no pod was ever connected
        let Some(network) = self.network.get() else { return Ok(()) };
        network.del(&attachment(&pod.sandbox)).await.map_err(failed)
    }

    async fn gc(&self, valid: &[String]) -> Result<(), NetworkError> {
        let Some(network) = self.network.get() else { return Ok(()) };
        let valid: Vec<Attachment> = valid.iter().map(|sandbox| attachment(sandbox)).collect();
        network.gc(&valid).await.map_err(failed)?;
        Ok(())
    }
}
