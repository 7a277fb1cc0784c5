//! What the runtime asks of the pod network: the CNI operations, as a trait, so that the runtime knows no
//! network and the network no runtime.

use std::{net::IpAddr, path::PathBuf};

use async_trait::async_trait;

/// The pod network failed; the message says where.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct NetworkError(pub String);

/// A container port that is reachable on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMapping {
    /// `tcp`, `udp` or `sctp`.
    pub protocol: &'static str,
    /// Port in the pod.
    pub container_port: u16,
    /// Port on the node.
    pub host_port: u16,
    /// Address on the node; none: all.
    pub host_ip: Option<IpAddr>,
}

/// A pod sandbox that is connected or disconnected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkPod {
    /// Sandbox id (CNI's container id).
    pub sandbox: String,
    /// Network namespace.
    pub netns: PathBuf,
    /// Pod's namespace.
    pub namespace: String,
    /// Pod's name.
    pub name: String,
    /// Pod's uid.
    pub uid: String,
    /// Pod's annotations (bandwidth limits and the like).
    pub annotations: Vec<(String, String)>,
    /// Ports on the node.
    pub ports: Vec<PortMapping>,
}

/// The result of connecting a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkResult {
    /// The pod's addresses, the primary one first.
    pub ips: Vec<IpAddr>,
}

/// Connects pods. Calls for one sandbox never overlap; every call may be repeated.
#[async_trait]
pub trait PodNetwork: Send + Sync + 'static {
    /// Whether pods can be connected; the error says what is missing. Reported as `NetworkReady`.
    async fn ready(&self) -> Result<(), NetworkError>;
    /// CNI ADD.
    async fn add(&self, pod: &NetworkPod) -> Result<NetworkResult, NetworkError>;
    /// CNI DEL: no error when it is not there, also when the namespace is gone.
    async fn del(&self, pod: &NetworkPod) -> Result<(), NetworkError>;
    /// CNI GC: frees what belongs to none of the sandboxes `valid`.
    async fn gc(&self, valid: &[String]) -> Result<(), NetworkError>;
}

/// No network: pods have a loopback interface only. For tests, and for nodes that only run pods of the node's
/// network.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoNetwork;

#[async_trait]
impl PodNetwork for NoNetwork {
    async fn ready(&self) -> Result<(), NetworkError> {
        Ok(())
    }

    async fn add(&self, _: &NetworkPod) -> Result<NetworkResult, NetworkError> {
        Ok(NetworkResult::default())
    }

    async fn del(&self, _: &NetworkPod) -> Result<(), NetworkError> {
        Ok(())
    }

    async fn gc(&self, _: &[String]) -> Result<(), NetworkError> {
        Ok(())
    }
}
