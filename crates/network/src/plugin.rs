//! The pod network as a CNI plugin, for container runtimes other than ours. One process per command.
//!
//! Its keys in a network's configuration, beside those of every plugin:
//!
//! | key | meaning |
//! |---|---|
//! | `podCIDRs` | where containers' addresses come from, at most one per family; needed |
//! | `clusterCIDRs`, `serviceCIDRs` | where addresses are not translated on the way to; none |
//! | `bridge` | the bridge; `nvcni0` |
//! | `mtu` | of the containers' links in bytes; that of the default route's link |
//! | `stateDir` | where addresses are written down; `/var/lib/cni/navarch/NAME` |
//! | `dns` | handed on in the result |
//!
//! It takes the capabilities `portMappings` and `bandwidth`. Addresses are managed by itself: `ipam` is refused.

use std::net::IpAddr;
use std::path::PathBuf;

use async_trait::async_trait;
use cni::error::code;
use cni::plugin::{Plugin, Request};
use cni::{CniError, CniResult, Dns};
use serde::Deserialize;
use serde_json::Value;

use crate::bandwidth::Limits;
use crate::cidr::Cidr;
use crate::host_ports::HostPort;
use crate::ipam::IpamError;
use crate::network::{AddRequest, Config, Error, Network};
use crate::protocol::Protocol;

const BRIDGE: &str = "nvcni0";
const STATE: &str = "/var/lib/cni/navarch";

/// The plugin.
#[derive(Debug, Clone, Copy, Default)]
pub struct NetworkPlugin;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Settings {
    #[serde(rename = "podCIDRs", default)]
    pod_cidrs: Vec<Cidr>,
    #[serde(rename = "clusterCIDRs", default)]
    cluster_cidrs: Vec<Cidr>,
    #[serde(rename = "serviceCIDRs", default)]
    service_cidrs: Vec<Cidr>,
    bridge: Option<String>,
    mtu: Option<u32>,
    state_dir: Option<PathBuf>,
    ipam: Option<Value>,
    #[serde(default)]
    dns: Dns,
    #[serde(default)]
    runtime_config: RuntimeConfig,
}

/// What the runtime asks for this container.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RuntimeConfig {
    port_mappings: Vec<PortMapping>,
    bandwidth: Bandwidth,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PortMapping {
    host_port: u16,
    container_port: u16,
    protocol: Option<String>,
    #[serde(rename = "hostIP", default)]
    host_ip: String,
}

/// Bits per second. Bursts are ours to choose.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Bandwidth {
    ingress_rate: u64,
    egress_rate: u64,
}

impl RuntimeConfig {
    fn host_ports(&self) -> Result<Vec<HostPort>, CniError> {
        let invalid = |text: String| CniError::new(code::INVALID_CONFIG, text);
        let ports = self.port_mappings.iter().filter(|port| port.host_port != 0);
        ports
            .map(|port| {
                let name = port.protocol.as_deref().map(str::to_ascii_uppercase);
                let protocol = Protocol::parse(name.as_deref().filter(|name| !name.is_empty()))
                    .ok_or_else(|| invalid(format!("unknown protocol {:?} of a port", port.protocol)))?;
                let host_ip = match port.host_ip.as_str() {
                    "" => None,
                    text => {
                        let parsed = text.parse::<IpAddr>();
                        Some(parsed.map_err(|error| invalid(format!("hostIP {text:?}: {error}")))?)
                    }
                };
                let (host_port, pod_port) = (port.host_port, port.container_port);
                Ok(HostPort { protocol, host_ip, host_port, pod_port })
            })
            .collect()
    }

    fn limits(&self) -> Limits {
        let rate = |rate: u64| (rate != 0).then_some(rate);
        Limits { ingress: rate(self.bandwidth.ingress_rate), egress: rate(self.bandwidth.egress_rate) }
    }
}

fn settings(request: &Request) -> Result<Settings, CniError> {
    let settings: Settings = serde_json::from_value(Value::Object(request.config.clone()))
        .map_err(|error| CniError::new(code::INVALID_CONFIG, error.to_string()))?;
    if settings.ipam.as_ref().is_some_and(|ipam| ipam.as_object().is_none_or(|o| !o.is_empty())) {
        let text = "ipam is not supported: addresses come from podCIDRs";
        return Err(CniError::new(code::UNSUPPORTED_FIELD, text));
    }
    Ok(settings)
}

async fn open(request: &Request, settings: &Settings) -> Result<Network, CniError> {
    let bridge = settings.bridge.clone().unwrap_or_else(|| BRIDGE.to_owned());
    let config = Config {
        table: format!("navarch-{bridge}"),
        bridge,
        pod_cidrs: settings.pod_cidrs.clone(),
        cluster_cidrs: settings.cluster_cidrs.clone(),
        service_cidrs: settings.service_cidrs.clone(),
        extra_addresses: Vec::new(),
        mtu: settings.mtu,
        state_dir: settings.state_dir.clone().unwrap_or_else(|| PathBuf::from(STATE).join(&request.network)),
        netns: None,
    };
    Network::open(config).await.map_err(refused)
}

fn refused(error: Error) -> CniError {
    let code = match &error {
        Error::InvalidAttachment(_) => code::INVALID_ENVIRONMENT,
        Error::InvalidConfig(_) | Error::NotABridge(_) => code::INVALID_CONFIG,
        Error::Netns { .. } => code::UNKNOWN_CONTAINER,
        Error::Ipam(IpamError::Exhausted(_)) => code::TRY_AGAIN_LATER,
        Error::Ipam(IpamError::Io { .. }) => code::IO_FAILURE,
        _ => code::INTERNAL,
    };
    CniError::caused(code, &error)
}

#[async_trait]
impl Plugin for NetworkPlugin {
    async fn add(&self, request: &Request) -> Result<CniResult, CniError> {
        let settings = settings(request)?;
        let (ports, limits) = (settings.runtime_config.host_ports()?, settings.runtime_config.limits());
        let network = open(request, &settings).await?;
        let attachment = &request.attachment;
        let asked = AddRequest {
            attachment: attachment.clone(),
            netns: request.netns.clone().unwrap_or_default(),
            args: request.args.clone(),
        };
        let mut result = network.add(&asked).await.map_err(refused)?;
        let completed = async {
            network.publish(attachment, &ports).await?;
            network.limit(attachment, limits).await
        };
        if let Err(error) = completed.await {
            // the runtime should call DEL, but not all do
            if let Err(cleanup) = network.del(attachment).await {
                tracing::warn!(error = &cleanup as &dyn std::error::Error, "cleanup after a failed ADD");
            }
            return Err(refused(error));
        }
        result.dns = settings.dns;
        Ok(result)
    }

    async fn del(&self, request: &Request) -> Result<(), CniError> {
        open(request, &settings(request)?).await?.del(&request.attachment).await.map_err(refused)
    }

    async fn check(&self, request: &Request) -> Result<(), CniError> {
        let network = open(request, &settings(request)?).await?;
        network.check(&request.attachment).await.map_err(refused)?;
        let ours = network.result(&request.attachment).map_err(refused)?.unwrap_or_default();
        let said = request.prev_result.as_ref().map(CniResult::addresses).unwrap_or_default();
        match ours.addresses().iter().find(|addr| !said.contains(addr)) {
            Some(addr) => Err(CniError::new(code::INTERNAL, format!("address {addr} is not in prevResult"))),
            None => Ok(()),
        }
    }

    async fn gc(&self, request: &Request) -> Result<(), CniError> {
        open(request, &settings(request)?).await?.gc(&request.valid).await.map(|_| ()).map_err(refused)
    }

    async fn status(&self, request: &Request) -> Result<(), CniError> {
        let settings = settings(request)?;
        let ready = match open(request, &settings).await {
            Ok(network) => network.status().await.map_err(refused),
            Err(error) => Err(error),
        };
        // "no ADD can succeed" has a code of its own
        ready.map_err(|error| CniError { code: code::NOT_AVAILABLE, ..error })
    }
}
