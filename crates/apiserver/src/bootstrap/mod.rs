//! The objects that every cluster has: system namespaces, the `kubernetes` service and its endpoints, the
//! built-in priority classes, default roles, flow schemas and API services. Made where missing, through the
//! registry, at every start.

mod flow;
mod rbac;
mod services;

pub(crate) use flow::{levels as priority_levels, schemas as flow_schemas};
pub use rbac::node_rules;
pub(crate) use services::AUTOMANAGED;

use std::net::SocketAddr;
use std::sync::Arc;

use api::kinds::Kind;
use api::meta;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::auth::legacy;
use crate::managed::{self, Writer};
use crate::object_meta::begin_meta;
use crate::options::FeatureGates;
use crate::pipeline::ApiServer;
use crate::registry::Target;
use crate::service_ips::{Family, Range};
use crate::status::{ApiError, ApiResult};

/// Writes that run at the same time: the store joins them into few commits.
const PARALLEL: usize = 32;
/// The field manager of what the server itself makes.
pub(crate) const MANAGER: &str = "kube-apiserver";
/// The field manager of priority levels and flow schemas.
const FLOW_MANAGER: &str = "api-priority-and-fairness-config-producer-v1";

/// One object to be there.
struct Wanted {
    kind: &'static Arc<Kind>,
    object: Value,
    manager: &'static str,
}

impl Wanted {
    fn new(plural: &str, object: Value, manager: &'static str) -> ApiResult<Self> {
        let version = object["apiVersion"].as_str().unwrap_or_default();
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let kind = api::kinds::find(group, version, plural).ok_or_else(ApiError::no_such_resource)?;
        Ok(Self { kind, object, manager })
    }
}

fn namespaces() -> impl Iterator<Item = Value> {
    ["default", "kube-system", "kube-public", "kube-node-lease"].into_iter().map(|name| {
        json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
            "spec": {"finalizers": ["kubernetes"]}})
    })
}

fn priority_classes() -> impl Iterator<Item = Value> {
    [
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
    ]
    .into_iter()
    .map(|(name, value, about)| {
        json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "description": about, "preemptionPolicy": "PreemptLowerPriority"})
    })
}

fn wanted(gates: FeatureGates) -> ApiResult<Vec<Wanted>> {
    let now = Timestamp::now();
    let mut list = Vec::new();
    for object in namespaces() {
        list.push(Wanted::new("namespaces", object, MANAGER)?);
    }
    for class in priority_classes() {
        list.push(Wanted::new("priorityclasses", class, MANAGER)?);
    }
    for (plural, object) in rbac::objects(gates) {
        list.push(Wanted::new(plural, object, MANAGER)?);
    }
    for level in flow::levels() {
        list.push(Wanted::new("prioritylevelconfigurations", level, FLOW_MANAGER)?);
    }
    for schema in flow::schemas(now) {
        list.push(Wanted::new("flowschemas", schema, FLOW_MANAGER)?);
    }
    for service in services::objects(gates.kinds(), now) {
        list.push(Wanted::new("apiservices", service, MANAGER)?);
    }
    Ok(list)
}

/// Makes what is missing; brings the endpoints of `kubernetes` up to date.
pub async fn run(server: &Arc<ApiServer>, services: &[Range], address: SocketAddr) -> ApiResult<()> {
    use futures_util::{StreamExt as _, TryStreamExt as _};
    futures_util::stream::iter(wanted(server.gates)?)
        .map(|wanted| async move {
            let (kind, namespace) = (wanted.kind, meta::namespace(&wanted.object).to_owned());
            let key = kind.key(&namespace, meta::name(&wanted.object));
            match server.registry.cache().get(kind, &key) {
                Some(stored) if kind.group == "rbac.authorization.k8s.io" => {
                    restore(server, kind, &namespace, &stored.to_value(), &wanted.object).await
                }
                Some(_) => Ok(()),
                None => make(server, kind, &namespace, wanted.object, wanted.manager).await,
            }
        })
        .buffer_unordered(PARALLEL)
        .try_collect::<()>()
        .await?;
    token_tracking(server).await?;
    let cidrs: Vec<&str> = services.iter().map(Range::text).collect();
    let range = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"}, "spec": {"cidrs": cidrs},
        "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "",
            "lastTransitionTime": meta::format_time(Timestamp::now()),
            "message": "Kubernetes default Service CIDR is ready"}]}});
    ensure(server, "networking.k8s.io", "v1", "servicecidrs", "", range).await?;
    // the cluster may have been given a second family since the last start
    change(server, "networking.k8s.io", "v1", "servicecidrs", "", |range| {
        let spec = &mut range["spec"];
        if cidrs.len() == 2 && spec["cidrs"] == json!(cidrs[..1]) {
            spec["cidrs"] = json!(cidrs);
        }
    })
    .await?;
    if let Some(range) = services.first() {
        let ip = range.first();
        let service = json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "kubernetes", "namespace": "default",
                "labels": {"component": "apiserver", "provider": "kubernetes"}},
            "spec": {"clusterIP": ip, "clusterIPs": [ip], "type": "ClusterIP", "sessionAffinity": "None",
                "ipFamilies": [range.family().name()], "ipFamilyPolicy": "SingleStack",
                "internalTrafficPolicy": "Cluster",
                "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": address.port()}]}});
        ensure(server, "", "v1", "services", "default", service).await?;
        // a server that listens on this machine only cannot be reached through a service
        if !address.ip().is_loopback() {
            endpoints(server, address).await?;
        }
    }
    Ok(())
}

/// Says since when uses of legacy tokens are noted.
async fn token_tracking(server: &Arc<ApiServer>) -> ApiResult<()> {
    let kind = api::kinds::find("", "v1", "configmaps").ok_or_else(ApiError::no_such_resource)?;
    let (namespace, now) = ("kube-system", Timestamp::now());
    match server.registry.cache().get(kind, &kind.key(namespace, legacy::TRACKING)) {
        None => match legacy::tracking(None, now) {
            Some(map) => make(server, kind, namespace, map, MANAGER).await,
            None => Ok(()),
        },
        Some(stored) if legacy::tracking(Some(stored.value()), now).is_none() => Ok(()),
        Some(_) => {
            let target = Target { kind, namespace, name: legacy::TRACKING, subresource: "" };
            let set = |old: &Value| Ok(legacy::tracking(Some(old), now).unwrap_or_else(|| old.clone()));
            server.registry.update(target, false, set).await.map(drop)
        }
    }
}

async fn endpoints(server: &Arc<ApiServer>, address: SocketAddr) -> ApiResult<()> {
    let subsets = json!([{"addresses": [{"ip": address.ip()}],
        "ports": [{"name": "https", "port": address.port(), "protocol": "TCP"}]}]);
    let endpoints = json!({"apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": subsets});
    ensure(server, "", "v1", "endpoints", "default", endpoints).await?;
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "addressType": Family::of(address.ip()).name(),
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "endpoints": [{"addresses": [address.ip()], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": address.port(), "protocol": "TCP"}]});
    let slice_parts = (slice["endpoints"].clone(), slice["ports"].clone());
    ensure(server, "discovery.k8s.io", "v1", "endpointslices", "default", slice).await?;

    // the address may have changed since the last start
    change(server, "", "v1", "endpoints", "default", move |object| object["subsets"] = subsets.clone())
        .await?;
    change(server, "discovery.k8s.io", "v1", "endpointslices", "default", move |object| {
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
    namespace: &str,
    set: impl Fn(&mut Value),
) -> ApiResult<()> {
    let kind = api::kinds::find(group, version, plural).ok_or_else(ApiError::no_such_resource)?;
    let target = Target { kind, namespace, name: "kubernetes", subresource: "" };
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

async fn restore(
    server: &Arc<ApiServer>,
    kind: &'static Arc<Kind>,
    namespace: &str,
    stored: &Value,
    default: &Value,
) -> ApiResult<()> {
    if rbac::completed(stored, default).is_none() {
        return Ok(());
    }
    let target = Target { kind, namespace, name: meta::name(default), subresource: "" };
    let change = |old: &Value| Ok(rbac::completed(old, default).unwrap_or_else(|| old.clone()));
    server.registry.update(target, false, change).await.map(drop)
}

async fn ensure(
    server: &Arc<ApiServer>,
    group: &str,
    version: &str,
    plural: &str,
    namespace: &str,
    object: Value,
) -> ApiResult<()> {
    let kind = api::kinds::find(group, version, plural).ok_or_else(ApiError::no_such_resource)?;
    if server.registry.cache().get(kind, &kind.key(namespace, meta::name(&object))).is_some() {
        return Ok(());
    }
    make(server, kind, namespace, object, MANAGER).await
}

/// Parts of the reference that apply the status of what another part has made.
const STATUS_MANAGERS: &[(&str, &str)] = &[
    ("FlowSchema", "api-priority-and-fairness-config-consumer-v1"),
    ("ServiceCIDR", "kubernetes-service-cidr-controller"),
];

async fn make(
    server: &Arc<ApiServer>,
    kind: &'static Arc<Kind>,
    namespace: &str,
    mut object: Value,
    manager: &str,
) -> ApiResult<()> {
    let now = Timestamp::now();
    // what a client cannot set on creation is a fact here: the server itself says it
    let status = object.get("status").cloned();
    crate::strategy::of(kind).default(&mut object);
    begin_meta(kind, namespace, &mut object, now);
    let writer = Writer {
        shape: kind.shape(),
        api_version: kind.api_version(),
        manager,
        subresource: "",
        has_status: true,
        status_keeps: &[],
        now,
    };
    managed::update(&writer, None, &mut object);
    let name = meta::name(&object).to_owned();
    let target = Target { kind, namespace, name: &name, subresource: "" };
    match server.registry.create(target, object, false).await {
        // another server on the same store was faster
        Err(error) if error.code == 409 => return Ok(()),
        other => other.map(drop)?,
    }
    let Some(status) = status.filter(|s| s.as_object().is_some_and(|m| !m.is_empty())) else { return Ok(()) };
    if STATUS_MANAGERS.iter().any(|(of, _)| *of == kind.kind) {
        return apply_status(server, kind, &name, &status).await;
    }
    let set = |old: &Value| {
        let mut new = old.clone();
        new["status"] = status.clone();
        Ok(new)
    };
    server.registry.update(Target { subresource: "status", ..target }, false, set).await.map(drop)
}

/// Applies the status of an object of cluster scope, as the part of the reference that does so.
pub async fn apply_status(
    server: &Arc<ApiServer>,
    kind: &'static Arc<Kind>,
    name: &str,
    status: &Value,
) -> ApiResult<()> {
    let manager = STATUS_MANAGERS.iter().find(|(of, _)| *of == kind.kind).map_or(MANAGER, |(_, name)| *name);
    let writer = Writer {
        shape: kind.shape(),
        api_version: kind.api_version(),
        manager,
        subresource: "status",
        has_status: true,
        status_keeps: &[],
        now: Timestamp::now(),
    };
    let applied = json!({"apiVersion": kind.api_version(), "kind": kind.kind,
        "metadata": {"name": name}, "status": status});
    let target = Target { kind, namespace: "", name, subresource: "status" };
    let apply = |old: &Value| managed::apply(&writer, kind, Some(old), &applied, true);
    server.registry.update(target, false, apply).await.map(drop)
}

/// Makes a default flow schema or priority level that is missing.
pub async fn make_flow_object(
    server: &Arc<ApiServer>,
    kind: &'static Arc<Kind>,
    object: Value,
) -> ApiResult<()> {
    make(server, kind, "", object, FLOW_MANAGER).await
}

/// Gives a default flow schema or priority level its specification back.
pub async fn reset_spec(
    server: &Arc<ApiServer>,
    kind: &'static Arc<Kind>,
    name: &str,
    spec: &Value,
) -> ApiResult<()> {
    let writer = Writer {
        shape: kind.shape(),
        api_version: kind.api_version(),
        manager: FLOW_MANAGER,
        subresource: "",
        has_status: true,
        status_keeps: &[],
        now: Timestamp::now(),
    };
    let target = Target { kind, namespace: "", name, subresource: "" };
    let set = |old: &Value| {
        let mut new = old.clone();
        new["spec"] = spec.clone();
        new["metadata"]["generation"] = json!(old["metadata"]["generation"].as_i64().unwrap_or(1) + 1);
        managed::update(&writer, Some(old), &mut new);
        Ok(new)
    };
    server.registry.update(target, false, set).await.map(drop)
}

/// Makes the APIService of a version that is served here.
pub async fn make_api_service(
    server: &Arc<ApiServer>,
    name: &str,
    spec: Value,
    automanaged: &str,
) -> ApiResult<()> {
    let service = services::object(name, spec, automanaged, Timestamp::now());
    let wanted = Wanted::new("apiservices", service, MANAGER)?;
    make(server, wanted.kind, "", wanted.object, wanted.manager).await
}
