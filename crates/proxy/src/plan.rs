//! From Services and EndpointSlices to frontends and targets; pure.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use client::traffic::{
    AddressType, EndpointView, PortProtocol, PortView, ServiceType, ServiceView, SliceView,
};

use network::Cidr;
pub use network::Protocol;

/// What clients connect to. A node port has the unspecified address of its family: it is served on all addresses
/// of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frontend {
    /// Service address, or unspecified for a node port.
    pub addr: IpAddr,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its port.
    pub port: u16,
}

impl Frontend {
    /// Whether this is a node port.
    pub fn is_node_port(&self) -> bool {
        self.addr.is_unspecified()
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.protocol, SocketAddr::new(self.addr, self.port))
    }
}

/// What happens to packets for a frontend without a usable endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    /// Answered: nobody has an endpoint.
    Reject,
    /// In silence: only other nodes have endpoints and the policy is `Local`; the sender shall try elsewhere.
    Drop,
}

/// Where a frontend leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The endpoints in order, at most [`MAX_BACKENDS`].
    pub backends: Box<[SocketAddr]>,
    /// Where pods and the node itself are led, if elsewhere: `externalTrafficPolicy: Local` is for those outside.
    pub inside: Option<Box<[SocketAddr]>>,
    /// Who may connect; `None` is everyone (`loadBalancerSourceRanges`).
    pub sources: Option<BTreeSet<Cidr>>,
    /// Whether endpoints see the node as the client. Needed where answers might else take another way.
    pub masquerade: bool,
    /// `sessionAffinity: ClientIP` with its timeout in seconds.
    pub affinity: Option<u32>,
    /// What to do without endpoints.
    pub refusal: Refusal,
}

/// More endpoints than that of one service port are not used (the tier's number has 12 bits for it).
pub const MAX_BACKENDS: usize = 4095;
/// Longest affinity timeout that the API admits, in seconds.
const MAX_AFFINITY: i32 = 86_400;

/// Namespace and name of a Service.
pub type ServiceKey = (String, String);

/// What one service needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServicePlan {
    /// Its frontends.
    pub targets: BTreeMap<Frontend, Box<Target>>,
    /// Endpoint addresses on this node: a pod that reaches itself by the service must be masqueraded.
    pub local: BTreeSet<IpAddr>,
    /// What load balancers ask whether this node is of use.
    pub health: Option<HealthCheck>,
}

impl ServicePlan {
    fn is_empty(&self) -> bool {
        self.targets.is_empty() && self.health.is_none()
    }
}

/// `healthCheckNodePort` of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port, on all addresses of the node.
    pub port: u16,
    /// How many ready endpoints are on this node.
    pub endpoints: usize,
}

/// The node that plans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Here<'a> {
    /// Its name.
    pub node: &'a str,
    /// Its zone (`topology.kubernetes.io/zone`), where it is in one.
    pub zone: Option<&'a str>,
}

impl<'a> From<&'a str> for Here<'a> {
    fn from(node: &'a str) -> Self {
        Self { node, zone: None }
    }
}

/// What `service` with its `slices` needs here.
pub fn plan_service<'a>(
    service: &ServiceView,
    slices: &[Arc<SliceView>],
    here: impl Into<Here<'a>>,
) -> ServicePlan {
    let here = here.into();
    let node = here.node;
    let mut plan = ServicePlan::default();
    if service.service_type == ServiceType::ExternalName || service.foreign {
        return plan;
    }
    let affinity = service.affinity.map(|seconds| seconds.clamp(1, MAX_AFFINITY) as u32);
    let (internal_local, external_local) = (service.internal_local, service.external_local);
    let external = external_addresses(service);
    let sources = source_ranges(service, &external);
    plan.health = health_check(service, slices, node);

    for port in &service.ports {
        let protocol = match port.protocol {
            PortProtocol::Tcp => Protocol::Tcp,
            PortProtocol::Udp => Protocol::Udp,
            PortProtocol::Sctp => Protocol::Sctp,
        };
        for cluster_ip in &service.cluster_ips {
            let v6 = cluster_ip.is_ipv6();
            let endpoints = endpoints_of(slices, port, v6);
            let mut add = |addr: IpAddr, port: u16, local_only: bool, masquerade: bool| {
                let chosen = if local_only { choose(&endpoints, Some(node)) } else { near(&endpoints, here) };
                let elsewhere = local_only && chosen.is_empty() && !choose(&endpoints, None).is_empty();
                let inside = (local_only && addr != *cluster_ip).then(|| near(&endpoints, here));
                plan.local.extend(
                    chosen
                        .iter()
                        .chain(inside.iter().flatten())
                        .filter(|e| e.endpoint.node.as_deref().is_none_or(|n| n == node))
                        .map(|e| e.addr.ip()),
                );
                let backends = addresses(&chosen);
                let target = Target {
                    inside: inside.map(|i| addresses(&i)).filter(|i| !i.is_empty() && *i != backends),
                    sources: sources.as_ref().filter(|s| s.vips.contains(&addr)).map(|s| s.of(v6)),
                    backends,
                    masquerade,
                    affinity,
                    refusal: if elsewhere { Refusal::Drop } else { Refusal::Reject },
                };
                plan.targets.insert(Frontend { addr, protocol, port }, Box::new(target));
            };
            add(*cluster_ip, port.number, internal_local, false);
            for addr in external.all().filter(|a| a.is_ipv6() == v6) {
                add(addr, port.number, external_local, !external_local);
            }
            if port.node_port != 0 {
                let any = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
                add(any, port.node_port, external_local, !external_local);
            }
        }
    }
    plan
}

/// Addresses of a service outside the service networks.
#[derive(Default)]
struct External {
    /// `externalIPs`.
    own: BTreeSet<IpAddr>,
    /// The load balancer's, whose packets arrive as they were sent to it.
    vips: BTreeSet<IpAddr>,
}

impl External {
    fn all(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.own.union(&self.vips).copied()
    }
}

fn external_addresses(service: &ServiceView) -> External {
    let mut found = External::default();
    let Some(more) = &service.more else { return found };
    found.own.extend(&more.external_ips);
    // one that is a proxy sends from its own address to node ports: the address itself must stay reachable
    found.vips.extend(more.ingress.iter().filter(|i| !i.proxy).map(|i| i.ip));
    for addresses in [&mut found.own, &mut found.vips] {
        addresses.retain(|a| !a.is_unspecified() && !a.is_loopback());
    }
    found
}

/// Who may reach the load balancer's addresses.
struct Sources {
    ranges: BTreeSet<Cidr>,
    vips: BTreeSet<IpAddr>,
}

impl Sources {
    /// Of one family. A node that asks a load balancer's address which it has itself asks from that address.
    fn of(&self, v6: bool) -> BTreeSet<Cidr> {
        let itself = self.vips.iter().filter_map(|ip| Cidr::new(*ip, if v6 { 128 } else { 32 }));
        self.ranges.iter().copied().chain(itself).filter(|c| c.is_ipv6() == v6).collect()
    }
}

/// `None` where everyone may. What cannot be read opens nothing.
fn source_ranges(service: &ServiceView, external: &External) -> Option<Sources> {
    let ranges = service.more.as_ref().map(|more| &more.source_ranges).filter(|ranges| !ranges.is_empty())?;
    let ranges = ranges.iter().filter_map(|range| range.trim().parse().ok()).collect();
    Some(Sources { ranges, vips: external.vips.clone() })
}

/// What load balancers ask: only services whose external packets stay on the node they reach have it.
fn health_check(service: &ServiceView, slices: &[Arc<SliceView>], node: &str) -> Option<HealthCheck> {
    if service.service_type != ServiceType::LoadBalancer || !service.external_local {
        return None;
    }
    let more = service.more.as_ref().filter(|more| more.health_check_node_port != 0)?;
    // a pod of two families is one endpoint
    let family = AddressType::of(more.ipv6_first);
    let all = slices.iter().filter(|s| s.address_type == family).flat_map(|s| &s.endpoints);
    let here = all.filter(|e| e.node.as_deref() == Some(node) && e.ready);
    let addresses: BTreeSet<IpAddr> = here.filter_map(|e| e.address).collect();
    Some(HealthCheck { port: more.health_check_node_port, endpoints: addresses.len() })
}

#[derive(Clone, Copy)]
struct Candidate<'a> {
    addr: SocketAddr,
    endpoint: &'a EndpointView,
}

impl Candidate<'_> {
    /// Still answers, though it is going away.
    fn is_draining(&self) -> bool {
        self.endpoint.serving && self.endpoint.terminating
    }
}

fn endpoints_of<'a>(slices: &'a [Arc<SliceView>], port: &PortView, v6: bool) -> Vec<Candidate<'a>> {
    let mut found = Vec::new();
    for slice in slices.iter().filter(|s| s.address_type == AddressType::of(v6)) {
        for of_slice in slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol) {
            found.extend(slice.endpoints.iter().filter_map(|endpoint| {
                let addr = endpoint.address.filter(|addr| addr.is_ipv6() == v6)?;
                Some(Candidate { addr: SocketAddr::new(addr, of_slice.number), endpoint })
            }));
        }
    }
    found
}

fn addresses(endpoints: &[Candidate<'_>]) -> Box<[SocketAddr]> {
    let mut found: Vec<SocketAddr> = endpoints.iter().map(|e| e.addr).collect();
    found.sort_unstable();
    found.dedup();
    found.truncate(MAX_BACKENDS);
    found.into()
}

/// The ready endpoints; when there are none, those that still serve while they terminate (KEP-1669).
fn choose<'a>(candidates: &[Candidate<'a>], only_on: Option<&str>) -> Vec<Candidate<'a>> {
    let here =
        || candidates.iter().filter(|c| only_on.is_none_or(|node| c.endpoint.node.as_deref() == Some(node)));
    let ready: Vec<_> = here().filter(|c| c.endpoint.ready).copied().collect();
    if !ready.is_empty() { ready } else { here().filter(|c| c.is_draining()).copied().collect() }
}

/// What [`choose`] chooses of all endpoints, and of these the ones that are meant for this node, else for its zone. Hints
/// count only where every ready endpoint has some and one of them means us: half of them would starve the other half
/// (`trafficDistribution`, topology-aware routing).
fn near<'a>(candidates: &[Candidate<'a>], here: Here<'_>) -> Vec<Candidate<'a>> {
    let all = choose(candidates, None);
    let of_node = |c: &Candidate<'_>| {
        let hints = Some(c.endpoint.for_nodes()).filter(|hints| !hints.is_empty())?;
        Some(hints.iter().any(|node| **node == *here.node))
    };
    let of_zone = |c: &Candidate<'_>| {
        let hints = Some(c.endpoint.for_zones()).filter(|hints| !hints.is_empty())?;
        Some(hints.iter().any(|zone| Some(&**zone) == here.zone))
    };
    let meant = |judge: &dyn Fn(&Candidate<'_>) -> Option<bool>| {
        let judged: Option<Vec<bool>> = all.iter().map(judge).collect();
        let mut found = judged?.into_iter().zip(&all).filter(|(ours, _)| *ours).map(|(_, c)| *c).peekable();
        found.peek()?;
        Some(found.collect::<Vec<_>>())
    };
    if !all.iter().all(|c| c.endpoint.ready) {
        return all;
    }
    meant(&of_node).or_else(|| meant(&of_zone)).unwrap_or(all)
}

/// All services of the cluster, and who owns which frontend.
#[derive(Debug, Default)]
pub struct Planner {
    services: HashMap<ServiceKey, ServicePlan>,
    /// Where several services claim a frontend (external addresses, node ports by mistake), the first by name
    /// has it; the next one gets it when that one goes.
    claims: HashMap<Frontend, Claim>,
    local: HashMap<IpAddr, usize>,
    node_local: BTreeSet<IpAddr>,
}

/// Who claims a frontend.
#[derive(Debug)]
struct Claim {
    owner: ServiceKey,
    /// Those after it; hardly ever any.
    others: BTreeSet<ServiceKey>,
}

impl Claim {
    fn add(&mut self, key: &ServiceKey) {
        match key.cmp(&self.owner) {
            Ordering::Less => {
                self.others.insert(std::mem::replace(&mut self.owner, key.clone()));
            }
            Ordering::Equal => {}
            Ordering::Greater => {
                self.others.insert(key.clone());
            }
        }
    }

    /// `false` when nobody is left.
    fn remove(&mut self, key: &ServiceKey) -> bool {
        if self.owner != *key {
            self.others.remove(key);
            return true;
        }
        match self.others.pop_first() {
            Some(next) => {
                self.owner = next;
                true
            }
            None => false,
        }
    }
}

/// What has to be looked at again.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Frontends whose target may have changed.
    pub frontends: BTreeSet<Frontend>,
    /// Addresses that became, or ceased to be, endpoints on this node.
    pub local: BTreeSet<IpAddr>,
    /// Services whose health check changed.
    pub health: BTreeSet<ServiceKey>,
}

impl Planner {
    /// A planner that leaves `node_local` addresses alone.
    pub fn new(node_local: BTreeSet<IpAddr>) -> Self {
        Self { node_local, ..Self::default() }
    }

    /// Takes over a service's new plan (`None`: it is gone) and adds what that touches to `dirty`.
    pub fn update(&mut self, key: &ServiceKey, plan: Option<ServicePlan>, dirty: &mut Dirty) {
        let mut plan = plan.unwrap_or_default();
        plan.targets.retain(|frontend, _| !self.node_local.contains(&frontend.addr));
        let old = self.services.remove(key).unwrap_or_default();
        if old == plan {
            if !plan.is_empty() {
                self.services.insert(key.clone(), plan);
            }
            return;
        }
        if old.health != plan.health {
            dirty.health.insert(key.clone());
        }
        for frontend in old.targets.keys().filter(|f| !plan.targets.contains_key(f)) {
            dirty.frontends.insert(*frontend);
            if self.claims.get_mut(frontend).is_some_and(|claim| !claim.remove(key)) {
                self.claims.remove(frontend);
            }
        }
        for (frontend, target) in &plan.targets {
            if old.targets.get(frontend) != Some(target) {
                dirty.frontends.insert(*frontend);
                self.claims
                    .entry(*frontend)
                    .and_modify(|claim| claim.add(key))
                    .or_insert_with(|| Claim { owner: key.clone(), others: BTreeSet::new() });
            }
        }
        for addr in plan.local.difference(&old.local) {
            let count = self.local.entry(*addr).or_insert(0);
            *count += 1;
            if *count == 1 {
                dirty.local.insert(*addr);
            }
        }
        for addr in old.local.difference(&plan.local) {
            if let Some(count) = self.local.get_mut(addr) {
                *count -= 1;
                if *count == 0 {
                    self.local.remove(addr);
                    dirty.local.insert(*addr);
                }
            }
        }
        if !plan.is_empty() {
            self.services.insert(key.clone(), plan);
        }
    }

    /// What load balancers are told of a service.
    pub fn health(&self, key: &ServiceKey) -> Option<HealthCheck> {
        self.services.get(key)?.health
    }

    /// Where a frontend leads now.
    pub fn target(&self, frontend: &Frontend) -> Option<&Target> {
        let owner = &self.claims.get(frontend)?.owner;
        self.services.get(owner)?.targets.get(frontend).map(|target| &**target)
    }

    /// Whether an address is an endpoint on this node.
    pub fn is_local(&self, addr: &IpAddr) -> bool {
        self.local.contains_key(addr)
    }

    /// Everything, for a comparison with the whole table.
    pub fn all(&self) -> Dirty {
        Dirty {
            frontends: self.claims.keys().copied().collect(),
            local: self.local.keys().copied().collect(),
            health: BTreeSet::new(),
        }
    }
}
