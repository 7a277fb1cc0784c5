//! What leading traffic takes to know of Services and EndpointSlices: the view of the proxy, of cluster DNS, of the announcer of
//! load balancers' addresses and of a container's environment.
//!
//! A node knows all services of the cluster. As full objects an endpoint takes some 450 bytes and who owns the fields of
//! an object more than all the rest; here an endpoint takes 48. Addresses are parsed once, names of nodes and zones stand
//! in memory once, what only few services have stands aside. What does not parse is left out, as all readers did.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use api::object::{Object, ObjectError};
use k8s_openapi::api::core::v1::{ObjectReference, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::Mutex;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::{Cache, Cached, Caches, Change};

/// Another proxy's service.
const FOREIGN: &str = "service.kubernetes.io/service-proxy-name";
/// The service a slice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The annotation that came before `loadBalancerSourceRanges` and counts where that is empty.
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
/// Services with this condition have their address from the cluster's own pool.
const FROM_POOL: &str = "navarch.dev/LoadBalancerPool";
/// Seconds that a client stays with its endpoint, where the service does not say.
const DEFAULT_AFFINITY: i32 = 10_800;

impl Caches {
    /// The cache of all Services, as far as traffic goes.
    pub fn services(&self) -> Cache<ServiceView> {
        self.of_view::<Service, _>("")
    }

    /// The cache of all EndpointSlices, as far as traffic goes.
    pub fn endpoint_slices(&self) -> Cache<SliceView> {
        self.of_view::<EndpointSlice, _>("")
    }
}

impl Cached for ServiceView {
    fn view(object: &Arc<Object>) -> Result<Arc<Self>, ObjectError> {
        object.memo(|json| serde_json::from_slice(json).map_err(ObjectError::Syntax))
    }
}

impl Cached for SliceView {
    fn view(object: &Arc<Object>) -> Result<Arc<Self>, ObjectError> {
        object.memo(|json| serde_json::from_slice(json).map_err(ObjectError::Syntax))
    }
}

/// `spec.type` of a Service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ServiceType {
    /// Has an address in the cluster, or none.
    #[default]
    ClusterIp,
    /// Has a port on every node besides.
    NodePort,
    /// Has an address from outside besides.
    LoadBalancer,
    /// Is another name.
    ExternalName,
}

/// The protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortProtocol {
    /// TCP, also where nothing is said.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl PortProtocol {
    /// As the API writes it.
    pub fn name(self) -> &'static str {
        match self {
            PortProtocol::Tcp => "TCP",
            PortProtocol::Udp => "UDP",
            PortProtocol::Sctp => "SCTP",
        }
    }

    fn parse(text: Option<&str>) -> Option<Self> {
        match text.unwrap_or("TCP") {
            "TCP" => Some(PortProtocol::Tcp),
            "UDP" => Some(PortProtocol::Udp),
            "SCTP" => Some(PortProtocol::Sctp),
            _ => None,
        }
    }
}

/// A port of a Service or of an EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortView {
    /// Its name; empty where it has none.
    pub name: Box<str>,
    /// Its protocol.
    pub protocol: PortProtocol,
    /// Its number.
    pub number: u16,
    /// The port on every node; 0 where there is none.
    pub node_port: u16,
}

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceView {
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
    /// Its uid.
    pub uid: Box<str>,
    /// Its type.
    pub service_type: ServiceType,
    /// Whether it has no address on purpose.
    pub headless: bool,
    /// Whether another proxy serves it (`service.kubernetes.io/service-proxy-name`).
    pub foreign: bool,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `sessionAffinity: ClientIP`, with its timeout in seconds.
    pub affinity: Option<i32>,
    /// Its addresses in the cluster, at most one of each family.
    pub cluster_ips: Box<[IpAddr]>,
    /// Its ports.
    pub ports: Box<[PortView]>,
    /// What only few services have.
    pub more: Option<Box<MoreOfService>>,
}

/// What only few services have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MoreOfService {
    /// `externalName`.
    pub external_name: Option<Box<str>>,
    /// `externalIPs`.
    pub external_ips: Box<[IpAddr]>,
    /// The load balancer's addresses.
    pub ingress: Box<[IngressView]>,
    /// Whether the load balancer's addresses are from the cluster's own pool.
    pub from_pool: bool,
    /// `loadBalancerSourceRanges`, or the annotation that came before it; as they were written, empty where everyone may come.
    pub source_ranges: Box<[Box<str>]>,
    /// `healthCheckNodePort`; 0 where there is none.
    pub health_check_node_port: u16,
    /// Whether its first family is IPv6.
    pub ipv6_first: bool,
}

/// An address of a load balancer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IngressView {
    /// The address.
    pub ip: IpAddr,
    /// `ipMode: Proxy`: the load balancer sends to node ports from its own address.
    pub proxy: bool,
}

impl ServiceView {
    /// Namespace and name.
    pub fn key(&self) -> (String, String) {
        (self.namespace.to_string(), self.name.to_string())
    }

    /// As Events refer to it.
    pub fn reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Service".to_owned()),
            namespace: Some(self.namespace.to_string()),
            name: Some(self.name.to_string()),
            uid: Some(self.uid.to_string()),
            ..ObjectReference::default()
        }
    }
}

/// `addressType` of an EndpointSlice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum AddressType {
    /// IPv4 addresses.
    #[serde(rename = "IPv4")]
    Ipv4,
    /// IPv6 addresses.
    #[serde(rename = "IPv6")]
    Ipv6,
    /// Names, which nobody leads to.
    #[serde(other)]
    Other,
}

impl AddressType {
    /// The type of a family's addresses.
    pub fn of(ipv6: bool) -> Self {
        if ipv6 { Self::Ipv6 } else { Self::Ipv4 }
    }
}

/// An EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceView {
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
    /// The Service it belongs to.
    pub service: Option<Box<str>>,
    /// What its addresses are.
    pub address_type: AddressType,
    /// Its ports, without those that stand for all.
    pub ports: Box<[PortView]>,
    /// Its endpoints.
    pub endpoints: Box<[EndpointView]>,
}

/// An endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointView {
    /// Its first address, which is the one that is used; none for a name.
    pub address: Option<IpAddr>,
    /// Takes new connections.
    pub ready: bool,
    /// Answers.
    pub serving: bool,
    /// Goes away.
    pub terminating: bool,
    /// Its node.
    pub node: Option<Arc<str>>,
    /// What only few endpoints have.
    pub more: Option<Box<MoreOfEndpoint>>,
}

impl EndpointView {
    /// All addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.address.into_iter().chain(self.more.iter().flat_map(|more| more.addresses.iter().copied()))
    }

    /// Its own name.
    pub fn hostname(&self) -> Option<&str> {
        self.more.as_ref()?.hostname.as_deref()
    }

    /// The nodes it is meant for; empty where nothing is said.
    pub fn for_nodes(&self) -> &[Arc<str>] {
        self.more.as_ref().map_or(&[], |more| &more.for_nodes)
    }

    /// The zones it is meant for; empty where nothing is said.
    pub fn for_zones(&self) -> &[Arc<str>] {
        self.more.as_ref().map_or(&[], |more| &more.for_zones)
    }
}

/// What only few endpoints have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MoreOfEndpoint {
    hostname: Option<Box<str>>,
    /// All but the first.
    addresses: Box<[IpAddr]>,
    for_nodes: Box<[Arc<str>]>,
    for_zones: Box<[Arc<str>]>,
}

/// Names that very many endpoints share, each in memory once.
static NAMES: LazyLock<Mutex<Names>> = LazyLock::new(Mutex::default);

#[derive(Default)]
struct Names {
    known: HashSet<Arc<str>>,
    /// How many there may be until those that nobody uses are looked for.
    limit: usize,
}

impl Names {
    fn shared(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.known.get(name) {
            return known.clone();
        }
        if self.known.len() >= self.limit {
            self.known.retain(|name| Arc::strong_count(name) > 1);
            self.limit = (2 * self.known.len()).max(1024);
        }
        let name: Arc<str> = name.into();
        self.known.insert(name.clone());
        name
    }
}

fn shared(name: &str) -> Arc<str> {
    NAMES.lock().shared(name)
}

/// Text as it stands in the JSON; owned only where that has escapes.
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// An address; what is none reads as nothing.
struct Address(Option<IpAddr>);

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(Text::deserialize(deserializer)?.0.parse().ok()))
    }
}

/// A list of which `null` is none.
fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::<Vec<T>>::deserialize(deserializer)?.unwrap_or_default())
}

/// The values of the labels or annotations that somebody reads.
#[derive(Default)]
struct Pairs<'a>(Vec<(&'static str, Cow<'a, str>)>);

impl<'de: 'a, 'a> Deserialize<'de> for Pairs<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Pairs<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map of texts")
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Pairs::default())
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut found = Pairs::default();
                while let Some(key) = map.next_key::<Text<'de>>()? {
                    match [FOREIGN, SERVICE_NAME, SOURCE_RANGES].into_iter().find(|name| *name == key.0) {
                        Some(name) => found.0.push((name, map.next_value::<Text<'de>>()?.0)),
                        None => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(found)
            }
        }
        deserializer.deserialize_any(Read)
    }
}

impl Pairs<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_ref())
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Meta<'a> {
    name: Box<str>,
    namespace: Box<str>,
    uid: Box<str>,
    #[serde(borrow)]
    labels: Pairs<'a>,
    #[serde(borrow)]
    annotations: Pairs<'a>,
}

#[derive(Deserialize)]
struct RawPort<'a> {
    #[serde(borrow, default)]
    name: Option<Text<'a>>,
    #[serde(borrow, default)]
    protocol: Option<Text<'a>>,
    #[serde(default)]
    port: Option<i64>,
    #[serde(rename = "nodePort", default)]
    node_port: Option<i64>,
}

fn ports(raw: Vec<RawPort<'_>>) -> Box<[PortView]> {
    let port = |raw: RawPort<'_>| {
        Some(PortView {
            name: raw.name.map_or_else(Box::default, |name| name.0.as_ref().into()),
            protocol: PortProtocol::parse(raw.protocol.as_ref().map(|p| p.0.as_ref()))?,
            number: u16::try_from(raw.port?).ok()?,
            node_port: raw.node_port.and_then(|p| u16::try_from(p).ok()).unwrap_or(0),
        })
    };
    raw.into_iter().filter_map(port).collect()
}

#[derive(Deserialize)]
struct RawService<'a> {
    #[serde(borrow)]
    metadata: Meta<'a>,
    #[serde(borrow, default)]
    spec: Option<RawServiceSpec<'a>>,
    #[serde(borrow, default)]
    status: Option<RawServiceStatus<'a>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawServiceSpec<'a> {
    #[serde(rename = "type", borrow)]
    service_type: Option<Text<'a>>,
    external_name: Option<Box<str>>,
    #[serde(rename = "clusterIP", borrow)]
    cluster_ip: Option<Text<'a>>,
    #[serde(rename = "clusterIPs", borrow, deserialize_with = "list")]
    cluster_ips: Vec<Text<'a>>,
    #[serde(borrow, deserialize_with = "list")]
    ip_families: Vec<Text<'a>>,
    #[serde(borrow, deserialize_with = "list")]
    ports: Vec<RawPort<'a>>,
    #[serde(borrow)]
    session_affinity: Option<Text<'a>>,
    session_affinity_config: Option<RawAffinity>,
    #[serde(borrow)]
    internal_traffic_policy: Option<Text<'a>>,
    #[serde(borrow)]
    external_traffic_policy: Option<Text<'a>>,
    #[serde(rename = "externalIPs", deserialize_with = "list")]
    external_ips: Vec<Address>,
    #[serde(deserialize_with = "list")]
    load_balancer_source_ranges: Vec<Box<str>>,
    health_check_node_port: Option<i64>,
}

#[derive(Deserialize)]
struct RawAffinity {
    #[serde(rename = "clientIP", default)]
    client_ip: Option<RawTimeout>,
}

#[derive(Deserialize)]
struct RawTimeout {
    #[serde(rename = "timeoutSeconds", default)]
    seconds: Option<i32>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawServiceStatus<'a> {
    #[serde(borrow)]
    load_balancer: Option<RawLoadBalancer<'a>>,
    #[serde(borrow, deserialize_with = "list")]
    conditions: Vec<RawCondition<'a>>,
}

#[derive(Deserialize)]
struct RawLoadBalancer<'a> {
    #[serde(borrow, default, deserialize_with = "list")]
    ingress: Vec<RawIngress<'a>>,
}

#[derive(Deserialize)]
struct RawIngress<'a> {
    #[serde(default)]
    ip: Option<Address>,
    #[serde(rename = "ipMode", borrow, default)]
    mode: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct RawCondition<'a> {
    #[serde(rename = "type", borrow)]
    condition: Text<'a>,
    #[serde(borrow)]
    status: Text<'a>,
}

fn is(text: &Option<Text<'_>>, wanted: &str) -> bool {
    text.as_ref().is_some_and(|text| text.0 == wanted)
}

impl<'de> Deserialize<'de> for ServiceView {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let RawService { metadata, spec, status } = RawService::deserialize(deserializer)?;
        let (spec, status) = (spec.unwrap_or_default(), status.unwrap_or_default());
        let service_type = match spec.service_type.as_ref().map(|t| t.0.as_ref()) {
            Some("NodePort") => ServiceType::NodePort,
            Some("LoadBalancer") => ServiceType::LoadBalancer,
            Some("ExternalName") => ServiceType::ExternalName,
            _ => ServiceType::ClusterIp,
        };
        let cluster_ips =
            if spec.cluster_ips.is_empty() { Vec::from_iter(spec.cluster_ip) } else { spec.cluster_ips };
        let balanced = service_type == ServiceType::LoadBalancer;
        let ranges = match metadata.annotations.get(SOURCE_RANGES).filter(|text| !text.trim().is_empty()) {
            _ if !spec.load_balancer_source_ranges.is_empty() => spec.load_balancer_source_ranges,
            Some(text) => text.split(',').map(Into::into).collect(),
            None => Vec::new(),
        };
        let ingress = status.load_balancer.map(|lb| lb.ingress).unwrap_or_default().into_iter();
        let more = MoreOfService {
            external_name: spec.external_name.filter(|_| service_type == ServiceType::ExternalName),
            external_ips: spec.external_ips.into_iter().filter_map(|ip| ip.0).collect(),
            ingress: ingress
                .filter_map(|i| Some(IngressView { ip: i.ip?.0?, proxy: is(&i.mode, "Proxy") }))
                .filter(|_| balanced)
                .collect(),
            from_pool: status.conditions.iter().any(|c| c.condition.0 == FROM_POOL && c.status.0 == "True"),
            source_ranges: if balanced { ranges.into() } else { Box::default() },
            health_check_node_port: spec
                .health_check_node_port
                .and_then(|p| u16::try_from(p).ok())
                .unwrap_or(0),
            ipv6_first: spec.ip_families.first().is_some_and(|family| family.0 == "IPv6"),
        };
        let affinity = is(&spec.session_affinity, "ClientIP").then(|| {
            let timeout = spec.session_affinity_config.and_then(|config| config.client_ip?.seconds);
            timeout.unwrap_or(DEFAULT_AFFINITY)
        });
        Ok(Self {
            namespace: metadata.namespace,
            name: metadata.name,
            uid: metadata.uid,
            service_type,
            headless: cluster_ips.first().is_some_and(|ip| ip.0 == "None"),
            foreign: metadata.labels.get(FOREIGN).is_some(),
            internal_local: is(&spec.internal_traffic_policy, "Local"),
            external_local: is(&spec.external_traffic_policy, "Local"),
            affinity,
            cluster_ips: cluster_ips.iter().filter_map(|ip| ip.0.parse().ok()).collect(),
            ports: ports(spec.ports),
            more: (more != MoreOfService::default()).then(|| Box::new(more)),
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawSlice<'a> {
    #[serde(borrow)]
    metadata: Meta<'a>,
    address_type: AddressType,
    #[serde(borrow, default, deserialize_with = "list")]
    ports: Vec<RawPort<'a>>,
    #[serde(default)]
    endpoints: Endpoints,
}

/// Read one by one, so that an endpoint is never there in another form.
#[derive(Default)]
struct Endpoints(Vec<EndpointView>);

impl<'de> Deserialize<'de> for Endpoints {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Endpoints;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list of endpoints")
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Endpoints::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut found = Vec::new();
                while let Some(raw) = seq.next_element::<RawEndpoint<'de>>()? {
                    found.push(raw.into());
                }
                Ok(Endpoints(found))
            }
        }
        deserializer.deserialize_any(Read)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawEndpoint<'a> {
    #[serde(deserialize_with = "list", default)]
    addresses: Vec<Address>,
    #[serde(default)]
    conditions: Option<RawConditions>,
    #[serde(borrow, default)]
    node_name: Option<Text<'a>>,
    #[serde(default)]
    hostname: Option<Box<str>>,
    #[serde(borrow, default)]
    hints: Option<RawHints<'a>>,
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(default)]
struct RawConditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawHints<'a> {
    #[serde(borrow, deserialize_with = "list")]
    for_zones: Vec<RawName<'a>>,
    #[serde(borrow, deserialize_with = "list")]
    for_nodes: Vec<RawName<'a>>,
}

#[derive(Deserialize)]
struct RawName<'a> {
    #[serde(borrow)]
    name: Text<'a>,
}

impl From<RawEndpoint<'_>> for EndpointView {
    fn from(raw: RawEndpoint<'_>) -> Self {
        let conditions = raw.conditions.unwrap_or_default();
        let ready = conditions.ready.unwrap_or(true);
        let mut addresses = raw.addresses.into_iter().map(|address| address.0);
        let address = addresses.next().flatten();
        let hints = raw.hints.unwrap_or_default();
        let names = |names: Vec<RawName<'_>>| names.iter().map(|hint| shared(&hint.name.0)).collect();
        let more = MoreOfEndpoint {
            hostname: raw.hostname.filter(|name| !name.is_empty()),
            addresses: addresses.flatten().collect(),
            for_nodes: names(hints.for_nodes),
            for_zones: names(hints.for_zones),
        };
        Self {
            address,
            ready,
            serving: conditions.serving.unwrap_or(ready),
            terminating: conditions.terminating.unwrap_or(false),
            node: raw.node_name.map(|name| shared(&name.0)),
            more: (more != MoreOfEndpoint::default()).then(|| Box::new(more)),
        }
    }
}

impl<'de> Deserialize<'de> for SliceView {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = RawSlice::deserialize(deserializer)?;
        Ok(Self {
            service: raw.metadata.labels.get(SERVICE_NAME).map(Into::into),
            namespace: raw.metadata.namespace,
            name: raw.metadata.name,
            address_type: raw.address_type,
            ports: ports(raw.ports),
            endpoints: raw.endpoints.0.into(),
        })
    }
}

/// The slices of each service; the service a slice belongs to is a label, which may change.
#[derive(Debug, Default)]
pub struct SlicesByService(HashMap<(String, String), Vec<Arc<SliceView>>>);

impl SlicesByService {
    /// Takes over a change; the services (namespace and name) that it concerns.
    pub fn change(&mut self, change: Change<SliceView>) -> impl Iterator<Item = (String, String)> + use<> {
        let (old, new) = match change {
            Change::Added(new) => (None, Some(new)),
            Change::Modified { old, new } => (Some(old), Some(new)),
            Change::Deleted(old) => (Some(old), None),
        };
        let owner =
            |slice: &SliceView| Some((slice.namespace.to_string(), slice.service.as_ref()?.to_string()));
        let was = old.and_then(|old| {
            let key = owner(&old)?;
            if let Some(slices) = self.0.get_mut(&key) {
                slices.retain(|slice| slice.name != old.name);
                if slices.is_empty() {
                    self.0.remove(&key);
                }
            }
            Some(key)
        });
        let is = new.and_then(|new| {
            let key = owner(&new)?;
            match self.0.get_mut(&key) {
                Some(slices) => {
                    let at = slices.binary_search_by(|slice| slice.name.cmp(&new.name));
                    match at {
                        Ok(at) => slices[at] = new,
                        Err(at) => slices.insert(at, new),
                    }
                }
                None => drop(self.0.insert(key.clone(), vec![new])),
            }
            Some(key)
        });
        was.into_iter().chain(is)
    }

    /// The slices of a service, by name.
    pub fn of(&self, key: &(String, String)) -> &[Arc<SliceView>] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }
}
