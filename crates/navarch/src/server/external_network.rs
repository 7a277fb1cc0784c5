//! Pod networks of others: the CNI plugins that an administrator configured, in the place of our network.
//!
//! The folder is read at every use, so a changed configuration counts for the next pod, and the node is not ready until there
//! is one. What plugins do not do stays ours: Services, and cluster DNS at its address. Network policies are the plugins'.

use std::path::PathBuf;

use async_trait::async_trait;
use cni::chain::{Container, Runner};
use cni::configuration::List;
use cni::{Attachment, folder};
use parking_lot::Mutex;
use runtime::{NetworkError, NetworkPod, NetworkResult, PodNetwork};
use serde_json::{Map, Value, json};

use super::bandwidth;
use super::pod_network::{INTERFACE, failed};

/// Joins the plugins that a folder's configuration names to `runtime`.
pub struct External {
    /// `/etc/cni/net.d`, or another.
    pub folder: PathBuf,
    /// Executes them.
    pub runner: Runner,
    /// What is wrong with files that are left out, as it was logged last: the node's health is looked at all the time.
    pub logged: Mutex<String>,
}

/// Bursts, in bits, are not limited by the API: as large as plugins take them.
const BURST: u64 = i32::MAX as u64;

impl External {
    fn list(&self) -> Result<List, NetworkError> {
        let (list, wrong) = folder::load(&self.folder).map_err(failed)?;
        let texts: Vec<String> = wrong.into_iter().map(|error| failed(error).0).collect();
        let text = texts.join("; ");
        let mut logged = self.logged.lock();
        if *logged != text {
            if !text.is_empty() {
                tracing::warn!(why = text, "network configurations are left out");
            }
            *logged = text;
        }
        Ok(list)
    }
}

/// A pod in CNI's words: the arguments and capabilities that Kubernetes' runtimes hand to plugins.
fn container(pod: &NetworkPod) -> Result<Container, String> {
    let args = [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", &pod.namespace),
        ("K8S_POD_NAME", &pod.name),
        ("K8S_POD_INFRA_CONTAINER_ID", &pod.sandbox),
        ("K8S_POD_UID", &pod.uid),
    ];
    let ports: Vec<Value> = pod
        .ports
        .iter()
        .filter(|port| port.host_port != 0)
        .map(|port| {
            json!({
                "hostPort": port.host_port,
                "containerPort": port.container_port,
                "protocol": port.protocol,
                "hostIP": port.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
            })
        })
        .collect();
    let annotations: Map<String, Value> =
        pod.annotations.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect();
    let limits = bandwidth::of_annotations(&pod.annotations)?;
    let mut capabilities = Map::new();
    if !ports.is_empty() {
        capabilities.insert("portMappings".to_owned(), ports.into());
    }
    let mut rates = Map::new();
    for (direction, rate) in [("ingress", limits.ingress), ("egress", limits.egress)] {
        if let Some(rate) = rate {
            rates.insert(format!("{direction}Rate"), rate.into());
            rates.insert(format!("{direction}Burst"), BURST.into());
        }
    }
    if !rates.is_empty() {
        capabilities.insert("bandwidth".to_owned(), rates.into());
    }
    capabilities.insert("io.kubernetes.cri.pod-annotations".to_owned(), annotations.into());
    Ok(Container {
        attachment: attachment(&pod.sandbox),
        netns: pod.netns.exists().then(|| pod.netns.clone()),
        args: args.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec(),
        capabilities,
    })
}

fn attachment(sandbox: &str) -> Attachment {
    Attachment { container_id: sandbox.to_owned(), ifname: INTERFACE.to_owned() }
}

#[async_trait]
impl PodNetwork for External {
    async fn ready(&self) -> Result<(), NetworkError> {
        self.runner.status(&self.list()?).await.map_err(failed)
    }

    async fn add(&self, pod: &NetworkPod) -> Result<NetworkResult, NetworkError> {
        let list = self.list()?;
        let container = container(pod).map_err(NetworkError)?;
        network::loopback_up(&pod.netns).await.map_err(failed)?;
        // of an earlier try
        if let Some(result) = self.runner.result(&container.attachment).map_err(failed)? {
            if self.runner.check(&container).await.is_ok() {
                return Ok(NetworkResult { ips: result.addresses() });
            }
            self.runner.del(Some(&list), &container).await.map_err(failed)?;
        }
        let added = match self.runner.add(&list, &container).await {
            Ok(result) if result.ips.is_empty() => {
                Err(NetworkError(format!("network {:?} gave the pod no address", list.name)))
            }
            Ok(result) => return Ok(NetworkResult { ips: result.addresses() }),
            Err(error) => Err(failed(error)),
        };
        if let Err(cleanup) = self.runner.del(Some(&list), &container).await {
            tracing::warn!(error = &cleanup as &dyn std::error::Error, "cleanup after a failed ADD");
        }
        added
    }

    async fn del(&self, pod: &NetworkPod) -> Result<(), NetworkError> {
        // what was made is known; without a note nothing was
        let container =
            container(pod).or_else(|_| container(&NetworkPod { annotations: Vec::new(), ..pod.clone() }));
        self.runner.del(None, &container.map_err(NetworkError)?).await.map_err(failed)
    }

    async fn gc(&self, valid: &[String]) -> Result<(), NetworkError> {
        let valid: Vec<Attachment> = valid.iter().map(|sandbox| attachment(sandbox)).collect();
        // without a configuration there may still be notes
        let list = self.list().ok();
        self.runner.gc(list.as_ref(), &valid).await.map_err(failed)
    }
}
