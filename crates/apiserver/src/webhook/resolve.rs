//! Where a service or URL is on the network.
//!
//! A service is asked at one of its ready endpoints, any of them; a service that has no endpoint slices (a
//! load balancer of somebody else's, say) at its cluster IP.

use api::kinds::Kind;
use http::Uri;
use rand::seq::IndexedRandom as _;
use serde_json::Value;
use std::sync::Arc;

use super::HookError;
use crate::watch_cache::WatchCache;

/// What to dial.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A name or address outside of the cluster.
    Host {
        /// Name or IP address.
        host: String,
        /// Port.
        port: u16,
    },
    /// A Service.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The port of the service, not of its endpoints.
        port: u16,
    },
}

/// Why there is nobody to dial.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// No such service.
    #[error("service {0:?} not found")]
    NoService(String),
    /// The service has another port.
    #[error("no service port {port} found for service {service:?}")]
    NoPort {
        /// Its name.
        service: String,
        /// What was asked.
        port: u16,
    },
    /// Nobody is ready.
    #[error("no endpoints available for service {0:?}")]
    NoEndpoints(String),
}

/// The address in a URL.
pub(super) fn of_url(url: &str) -> Result<Address, HookError> {
    let bad = |why: String| HookError::Config(format!("parse {url:?}: {why}"));
    let uri: Uri = url.parse().map_err(|e: http::uri::InvalidUri| bad(e.to_string()))?;
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    if uri.scheme_str() != Some("https") || host.is_empty() {
        return Err(bad("an https:// URL with a host is needed".to_owned()));
    }
    Ok(Address::Host { host, port: uri.port_u16().unwrap_or(443) })
}

fn kind(group: &str, plural: &str) -> Option<&'static Arc<Kind>> {
    api::kinds::find(group, "v1", plural)
}

/// Host and port to dial for an address.
pub fn resolve(cache: &WatchCache, address: &Address) -> Result<(String, u16), ResolveError> {
    let (namespace, name, port) = match address {
        Address::Host { host, port } => return Ok((host.clone(), *port)),
        Address::Service { namespace, name, port } => (namespace, name, *port),
    };
    let missing = || ResolveError::NoService(name.clone());
    let services = kind("", "services").ok_or_else(missing)?;
    let service = cache.get(services, &services.key(namespace, name)).ok_or_else(missing)?;
    let spec = &service.value()["spec"];
    if spec["type"] == "ExternalName" {
        return Ok((spec["externalName"].as_str().unwrap_or_default().to_owned(), port));
    }
    let ports = spec["ports"].as_array().into_iter().flatten();
    let of_service = ports
        .clone()
        .find(|p| p["port"] == port)
        .ok_or_else(|| ResolveError::NoPort { service: name.clone(), port })?;
    let port_name = of_service["name"].as_str().unwrap_or_default();
    let (ready, has_slices) = ready_endpoints(cache, namespace, name, port_name);
    if let Some((address, port)) = ready.choose(&mut rand::rng()) {
        return Ok((address.clone(), *port));
    }
    match spec["clusterIP"].as_str() {
        Some(ip) if !has_slices && !matches!(ip, "" | "None") => Ok((ip.to_owned(), port)),
        _ => Err(ResolveError::NoEndpoints(name.clone())),
    }
}

/// The ready endpoints of a port of a service, and whether there are slices of it at all.
pub fn ready_endpoints(
    cache: &WatchCache,
    namespace: &str,
    service: &str,
    port_name: &str,
) -> (Vec<(String, u16)>, bool) {
    let (mut found, mut has_slices) = (Vec::new(), false);
    let Some(slices) = kind("discovery.k8s.io", "endpointslices") else { return (found, false) };
    let prefix = format!("{}{namespace}/", slices.storage_prefix);
    for slice in cache.list(slices, &prefix, None).items {
        if slice.labels().get("kubernetes.io/service-name").map(String::as_str) != Some(service) {
            continue;
        }
        has_slices = true;
        let value = slice.value();
        let port = value["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|p| p["name"].as_str().unwrap_or_default() == port_name)
            .and_then(|p| p["port"].as_u64().and_then(|p| u16::try_from(p).ok()));
        let Some(port) = port else { continue };
        for endpoint in value["endpoints"].as_array().into_iter().flatten() {
            // not said means ready
            if endpoint["conditions"]["ready"] != Value::Bool(false)
                && let Some(address) = endpoint["addresses"][0].as_str()
            {
                found.push((address.to_owned(), port));
            }
        }
    }
    (found, has_slices)
}
