//! The objects that every cluster has: system namespaces, the `kubernetes` service and its endpoints, the
//! built-in priority classes. Made where missing, through the registry, at every start.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use api::meta;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::pipeline::ApiServer;
use crate::registry::{Target, begin_meta};
use crate::status::{ApiError, ApiResult};

/// The range of cluster IPs.
#[derive(Debug, Clone, Copy)]
pub struct ServiceRange {
    base: Option<Ipv4Addr>,
}

impl ServiceRange {
    /// From `10.96.0.0/16`; a range that cannot be read has no addresses.
    pub fn parse(cidr: &str) -> Self {
        Self { base: cidr.split('/').next().and_then(|a| a.parse().ok()) }
    }

    /// The first address, the `kubernetes` service's.
    pub fn first(&self) -> Option<IpAddr> {
        self.base.map(|base| IpAddr::V4(Ipv4Addr::from(u32::from(base) + 1)))
    }
}

/// Makes what is missing; brings the endpoints of `kubernetes` up to date.
pub async fn run(server: &Arc<ApiServer>, services: &ServiceRange, address: SocketAddr) -> ApiResult<()> {
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
            "spec": {"finalizers": ["kubernetes"]}});
        ensure(server, "", "v1", "namespaces", "", namespace).await?;
    }
    for (name, value, about) in [
        (
            "system-cluster-critical",
            2_000_000_000_i64,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
        (
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
    ] {
        let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "description": about, "preemptionPolicy": "PreemptLowerPriority"});
        ensure(server, "scheduling.k8s.io", "v1", "priorityclasses", "", class).await?;
    }
    if let Some(ip) = services.first() {
        let service = json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "kubernetes", "namespace": "default",
                "labels": {"component": "apiserver", "provider": "kubernetes"}},
            "spec": {"clusterIP": ip, "clusterIPs": [ip], "type": "ClusterIP", "sessionAffinity": "None",
                "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster",
                "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": address.port()}]}});
        ensure(server, "", "v1", "services", "default", service).await?;
        // a server that listens on this machine only cannot be reached through a service
        if !address.ip().is_loopback() {
            endpoints(server, address).await?;
        }
    }
    Ok(())
}

async fn endpoints(server: &Arc<ApiServer>, address: SocketAddr) -> ApiResult<()> {
    let subsets = json!([{"addresses": [{"ip": address.ip()}],
        "ports": [{"name": "https", "port": address.port(), "protocol": "TCP"}]}]);
    let endpoints = json!({"apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": subsets});
    ensure(server, "", "v1", "endpoints", "default", endpoints).await?;
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "endpoints": [{"addresses": [address.ip()], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": address.port(), "protocol": "TCP"}]});
    let slice_parts = (slice["endpoints"].clone(), slice["ports"].clone());
    ensure(server, "discovery.k8s.io", "v1", "endpointslices", "default", slice).await?;

    // the address may have changed since the last start
    change(server, "", "v1", "endpoints", move |object| object["subsets"] = subsets.clone()).await?;
    change(server, "discovery.k8s.io", "v1", "endpointslices", move |object| {
        object["endpoints"] = slice_parts.0.clone();
        object["ports"] = slice_parts.1.clone();
    })
    .await
}

async fn change(
    server: &Arc<ApiServer>,
    group: &str,
    version: &str,
    plural: &str,
    set: impl Fn(&mut Value),
) -> ApiResult<()> {
    let kind = api::kinds::find(group, version, plural).ok_or_else(ApiError::no_such_resource)?;
    let target = Target { kind, namespace: "default", name: "kubernetes", subresource: "" };
    server
        .registry
        .update(target, false, |old| {
            let mut new = old.clone();
            set(&mut new);
            Ok(new)
        })
        .await
        .map(drop)
}

async fn ensure(
    server: &Arc<ApiServer>,
    group: &str,
    version: &str,
    plural: &str,
    namespace: &str,
    mut object: Value,
) -> ApiResult<()> {
    let kind = api::kinds::find(group, version, plural).ok_or_else(ApiError::no_such_resource)?;
    let name = meta::name(&object).to_owned();
    let key = kind.key(namespace, &name);
    if server.registry.cache().get(kind, &key).is_some() {
        return Ok(());
    }
    crate::strategy::of(group, &kind.kind).default(&mut object);
    begin_meta(kind, namespace, &mut object, Timestamp::now());
    let target = Target { kind, namespace, name: &name, subresource: "" };
    match server.registry.create(target, object, false).await {
        // another server on the same store was faster
        Err(error) if error.code == 409 => Ok(()),
        other => other.map(drop),
    }
}
