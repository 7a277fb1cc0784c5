//! Which records there are; pure. The Kubernetes DNS specification 1.1.0 says which there must be.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use client::traffic::{PortProtocol, PortView, ServiceType, ServiceView, SliceView};

/// Seconds that answers, also negative ones, may be kept.
pub const TTL: u32 = 5;
/// The version of the specification, served as TXT of `dns-version.<domain>`.
const SPEC_VERSION: &str = "1.1.0";

/// Namespace and name of a Service.
pub type ServiceKey = (String, String);

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Service locations.
    Srv,
    /// Names of an address.
    Ptr,
    /// Text.
    Txt,
    /// The zone's head.
    Soa,
    /// The zone's servers.
    Ns,
    /// Addresses of both families.
    Any,
    /// A type that we have no records of.
    Other,
}

impl Kind {
    fn wants(self, addr: IpAddr) -> bool {
        match self {
            Kind::A => addr.is_ipv4(),
            Kind::Aaaa => addr.is_ipv6(),
            Kind::Any => true,
            _ => false,
        }
    }
}

/// One record's data; its owner is the name asked for, or the one beside it in `additional`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    /// A or AAAA.
    Address(IpAddr),
    /// SRV with priority 0; all targets weigh the same.
    Srv {
        /// Share of 100.
        weight: u16,
        /// Port.
        port: u16,
        /// Name.
        target: String,
    },
    /// PTR.
    Ptr(String),
    /// CNAME.
    Cname(String),
    /// TXT.
    Txt(&'static str),
    /// SOA.
    Soa,
    /// NS.
    Ns(String),
}

/// The answer to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// There are records. `additional` are the addresses of SRV targets, with their owner.
    Records {
        /// The records asked for.
        answers: Vec<Data>,
        /// Addresses of targets.
        additional: Vec<(String, Data)>,
    },
    /// The name exists, but has no record of this type.
    NoData,
    /// The name does not exist.
    NoName,
    /// Not our name: ask someone else.
    Foreign,
}

/// An address that a headless service, or a hostname, leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Endpoint {
    label: String,
    addr: IpAddr,
    /// Name and protocol to number.
    ports: Arc<[Port]>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Port {
    name: Box<str>,
    protocol: &'static str,
    number: u16,
}

/// What a service's names lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    target: Target,
    /// Endpoints that have names: all of a headless service, else those with a hostname.
    endpoints: Box<[Endpoint]>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    ClusterIp { ips: Box<[IpAddr]>, ports: Box<[Port]> },
    Headless,
    External(String),
}

/// The entry of a service.
pub fn entry(service: &ServiceView, slices: &[Arc<SliceView>]) -> Option<Entry> {
    if service.service_type == ServiceType::ExternalName {
        let name = service.more.as_ref()?.external_name.as_ref()?.trim_end_matches('.').to_ascii_lowercase();
        return Some(Entry { target: Target::External(name), endpoints: Box::default() });
    }
    let endpoints = slices.iter().flat_map(|slice| endpoints(slice, service.headless)).collect();
    if service.headless {
        return Some(Entry { target: Target::Headless, endpoints });
    }
    if service.cluster_ips.is_empty() {
        return None;
    }
    let (ips, ports) = (service.cluster_ips.clone(), service.ports.iter().map(port).collect());
    Some(Entry { target: Target::ClusterIp { ips, ports }, endpoints })
}

fn port(port: &PortView) -> Port {
    let protocol = match port.protocol {
        PortProtocol::Tcp => "tcp",
        PortProtocol::Udp => "udp",
        PortProtocol::Sctp => "sctp",
    };
    Port { name: port.name.to_ascii_lowercase().into(), protocol, number: port.number }
}

fn endpoints(slice: &SliceView, headless: bool) -> Vec<Endpoint> {
    let mut found = Vec::new();
    let mut ports: Option<Arc<[Port]>> = None;
    // publishNotReadyAddresses needs no care here: the slices then say "ready"
    for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.ready) {
        let hostname = endpoint.hostname();
        if hostname.is_none() && !headless {
            continue;
        }
        let ports = ports.get_or_insert_with(|| slice.ports.iter().map(port).collect());
        for addr in endpoint.addresses() {
            let label = hostname.map_or_else(|| dashed(addr), str::to_ascii_lowercase);
            found.push(Endpoint { label, addr, ports: ports.clone() });
        }
    }
    found
}

/// The label of an address that has no hostname.
fn dashed(addr: IpAddr) -> String {
    addr.to_string().replace(['.', ':'], "-")
}

/// Reads [`dashed`] back; also the names of pods by address.
fn undashed(label: &str) -> Option<IpAddr> {
    let dots: Result<Ipv4Addr, _> = label.replace('-', ".").parse();
    dots.map(IpAddr::V4).ok().or_else(|| label.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::V6))
}

/// All names of the cluster.
#[derive(Debug)]
pub struct Index {
    domain: Vec<String>,
    /// Our own addresses, for the zone's server.
    servers: Vec<IpAddr>,
    reverse: Vec<(IpAddr, u8)>,
    entries: HashMap<String, BTreeMap<String, Entry>>,
    /// In order.
    pointers: HashMap<IpAddr, Vec<String>>,
    /// Namespaces, with services or without.
    namespaces: HashSet<String>,
    serial: u32,
    synced: bool,
}

impl Index {
    /// An empty index for `domain`; `reverse` are networks whose reverse names are ours.
    pub fn new(domain: &str, servers: Vec<IpAddr>, reverse: Vec<(IpAddr, u8)>) -> Self {
        let domain =
            domain.split('.').filter(|l| !l.is_empty()).map(str::to_ascii_lowercase).collect::<Vec<_>>();
        Self {
            domain,
            servers,
            reverse,
            entries: HashMap::new(),
            pointers: HashMap::new(),
            namespaces: HashSet::new(),
            serial: 1,
            synced: false,
        }
    }

    /// The zone's serial number: it grows with every change.
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// Whether the index is complete; before, no name can be said not to exist.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// Notes that the index is complete.
    pub fn set_synced(&mut self) {
        self.synced = true;
    }

    /// The zone's name without a final dot.
    pub fn zone(&self) -> String {
        self.domain.join(".")
    }

    /// Notes that a namespace exists, or no longer does.
    pub fn set_namespace(&mut self, name: &str, exists: bool) {
        if exists {
            self.namespaces.insert(name.to_owned())
        } else {
            self.namespaces.remove(name)
        };
    }

    /// Services may be known before their namespace is.
    fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.contains(name) || self.entries.contains_key(name)
    }

    /// Replaces a service's entry (`None`: it is gone).
    pub fn update(&mut self, key: &ServiceKey, entry: Option<Entry>) {
        let (namespace, name) = key;
        let old = self.entries.get_mut(namespace).and_then(|n| n.remove(name));
        if let Some(old) = &old {
            for (addr, pointer) in self.pointers_of(key, old) {
                if let Some(names) = self.pointers.get_mut(&addr) {
                    names.retain(|name| *name != pointer);
                    if names.is_empty() {
                        self.pointers.remove(&addr);
                    }
                }
            }
        }
        if old != entry {
            self.serial = self.serial.wrapping_add(1);
        }
        match entry {
            Some(entry) => {
                for (addr, pointer) in self.pointers_of(key, &entry) {
                    match self.pointers.entry(addr) {
                        hash_map::Entry::Vacant(none) => drop(none.insert(vec![pointer])),
                        hash_map::Entry::Occupied(mut some) => {
                            if let Err(at) = some.get().binary_search(&pointer) {
                                some.get_mut().insert(at, pointer);
                            }
                        }
                    }
                }
                self.entries.entry(namespace.clone()).or_default().insert(name.clone(), entry);
            }
            None => {
                if self.entries.get(namespace).is_some_and(BTreeMap::is_empty) {
                    self.entries.remove(namespace);
                }
            }
        }
    }

    fn pointers_of(&self, key: &ServiceKey, entry: &Entry) -> Vec<(IpAddr, String)> {
        let service = self.service_name(&key.0, &key.1);
        let named = entry.endpoints.iter().map(|e| (e.addr, format!("{}.{service}", e.label)));
        match &entry.target {
            Target::ClusterIp { ips, .. } => {
                ips.iter().map(|ip| (*ip, service.clone())).chain(named).collect()
            }
            Target::Headless => named.collect(),
            Target::External(_) => Vec::new(),
        }
    }

    fn service_name(&self, namespace: &str, name: &str) -> String {
        format!("{name}.{namespace}.svc.{}", self.zone())
    }

    /// Answers a question. `labels` are the name's, first to last, in lower case.
    pub fn lookup(&self, labels: &[String], kind: Kind) -> Answer {
        if let Some(own) = labels.strip_suffix(&self.domain[..]) {
            return self.lookup_own(own, kind);
        }
        match reverse_address(labels) {
            Some(addr) => self.lookup_pointer(addr, kind),
            None => Answer::Foreign,
        }
    }

    fn lookup_own(&self, own: &[String], kind: Kind) -> Answer {
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        match own[..] {
            [] => match kind {
                Kind::Soa => found(vec![Data::Soa]),
                Kind::Ns => found(vec![Data::Ns(format!("ns.dns.{}", self.zone()))]),
                _ => Answer::NoData,
            },
            ["dns-version"] => match kind {
                Kind::Txt | Kind::Any => found(vec![Data::Txt(SPEC_VERSION)]),
                _ => Answer::NoData,
            },
            ["dns" | "svc" | "pod"] => Answer::NoData,
            ["ns", "dns"] => addresses(self.servers.iter().copied(), kind),
            [namespace, "pod" | "svc"] => {
                if self.has_namespace(namespace) {
                    Answer::NoData
                } else {
                    Answer::NoName
                }
            }
            [label, namespace, "pod"] => match undashed(label) {
                Some(addr) if self.has_namespace(namespace) => addresses([addr].into_iter(), kind),
                _ => Answer::NoName,
            },
            [ref rest @ .., name, namespace, "svc"] => {
                let Some(entry) = self.entries.get(namespace).and_then(|n| n.get(name)) else {
                    return Answer::NoName;
                };
                self.lookup_service(entry, &self.service_name(namespace, name), rest, kind)
            }
            _ => Answer::NoName,
        }
    }

    fn lookup_service(&self, entry: &Entry, service: &str, rest: &[&str], kind: Kind) -> Answer {
        match (&entry.target, rest) {
            (Target::External(name), []) => found(vec![Data::Cname(name.clone())]),
            (Target::External(_), _) => Answer::NoName,
            (Target::ClusterIp { ips, ports }, []) => match kind {
                Kind::Srv => cluster_ip_locations(service, ips, ports.iter()),
                _ => addresses(ips.iter().copied(), kind),
            },
            (Target::Headless, []) => match kind {
                Kind::Srv => headless_locations(service, &entry.endpoints, |_| true),
                _ if entry.endpoints.is_empty() => Answer::NoData,
                _ => addresses(entry.endpoints.iter().map(|e| e.addr), kind),
            },
            (target, [port, protocol]) if port.starts_with('_') && protocol.starts_with('_') => {
                let wanted =
                    |p: &Port| *p.name == port[1..] && *p.protocol == protocol[1..] && !p.name.is_empty();
                let answer = match target {
                    Target::ClusterIp { ips, ports } => {
                        cluster_ip_locations(service, ips, ports.iter().filter(|p| wanted(p)))
                    }
                    _ => headless_locations(service, &entry.endpoints, wanted),
                };
                match answer {
                    // the name exists if the port does, whatever type is asked for
                    Answer::Records { .. } if kind != Kind::Srv && kind != Kind::Any => Answer::NoData,
                    Answer::NoData => Answer::NoName,
                    other => other,
                }
            }
            (_, [protocol @ ("_tcp" | "_udp" | "_sctp")]) => {
                let has = |p: &Port| *p.protocol == protocol[1..] && !p.name.is_empty();
                let exists = match &entry.target {
                    Target::ClusterIp { ports, .. } => ports.iter().any(has),
                    _ => entry.endpoints.iter().any(|e| e.ports.iter().any(has)),
                };
                if exists { Answer::NoData } else { Answer::NoName }
            }
            (_, [label]) => {
                let mut here = entry.endpoints.iter().filter(|e| e.label == **label).peekable();
                if here.peek().is_none() { Answer::NoName } else { addresses(here.map(|e| e.addr), kind) }
            }
            _ => Answer::NoName,
        }
    }

    fn lookup_pointer(&self, addr: IpAddr, kind: Kind) -> Answer {
        match self.pointers.get(&addr) {
            Some(names) if matches!(kind, Kind::Ptr | Kind::Any) => {
                found(names.iter().cloned().map(Data::Ptr).collect())
            }
            Some(_) => Answer::NoData,
            None if self.reverse.iter().any(|net| contains(*net, addr)) => Answer::NoName,
            None => Answer::Foreign,
        }
    }
}

fn found(answers: Vec<Data>) -> Answer {
    Answer::Records { answers, additional: Vec::new() }
}

fn addresses(all: impl Iterator<Item = IpAddr>, kind: Kind) -> Answer {
    let mut answers: Vec<Data> = all.filter(|a| kind.wants(*a)).map(Data::Address).collect();
    // an endpoint may stand in several slices
    answers.sort();
    answers.dedup();
    if answers.is_empty() { Answer::NoData } else { found(answers) }
}

fn weight(count: usize) -> u16 {
    // as upstream: a share of 100, but never 0
    (100 / count.max(1)).max(1) as u16
}

fn cluster_ip_locations<'a>(service: &str, ips: &[IpAddr], ports: impl Iterator<Item = &'a Port>) -> Answer {
    let ports: Vec<&Port> = ports.collect();
    if ports.is_empty() {
        return Answer::NoData;
    }
    let weight = weight(ports.len());
    let location = |p: &&Port| Data::Srv { weight, port: p.number, target: service.to_owned() };
    Answer::Records {
        answers: ports.iter().map(location).collect(),
        additional: ips.iter().map(|ip| (service.to_owned(), Data::Address(*ip))).collect(),
    }
}

fn headless_locations(service: &str, endpoints: &[Endpoint], wanted: impl Fn(&Port) -> bool) -> Answer {
    let (mut answers, mut additional) = (BTreeSet::new(), BTreeSet::new());
    for endpoint in endpoints {
        for port in endpoint.ports.iter().filter(|p| wanted(p)) {
            let target = format!("{}.{service}", endpoint.label);
            additional.insert((target.clone(), Data::Address(endpoint.addr)));
            answers.insert((port.number, target));
        }
    }
    if answers.is_empty() {
        return Answer::NoData;
    }
    let weight = weight(answers.len());
    Answer::Records {
        answers: answers.into_iter().map(|(port, target)| Data::Srv { weight, port, target }).collect(),
        additional: additional.into_iter().collect(),
    }
}

/// The address of a complete reverse name.
fn reverse_address(labels: &[String]) -> Option<IpAddr> {
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    match labels[..] {
        [d, c, b, a, "in-addr", "arpa"] => format!("{a}.{b}.{c}.{d}").parse().ok().map(IpAddr::V4),
        [ref nibbles @ .., "ip6", "arpa"] if nibbles.len() == 32 => {
            let mut bits = 0u128;
            for nibble in nibbles.iter().rev() {
                let digit = (nibble.len() == 1).then(|| u128::from_str_radix(nibble, 16).ok()).flatten()?;
                bits = bits << 4 | digit;
            }
            Some(IpAddr::V6(Ipv6Addr::from_bits(bits)))
        }
        _ => None,
    }
}

fn contains((base, len): (IpAddr, u8), addr: IpAddr) -> bool {
    let shift = |width: u32| width.saturating_sub(u32::from(len));
    match (base, addr) {
        (IpAddr::V4(b), IpAddr::V4(a)) => {
            (b.to_bits() ^ a.to_bits()).checked_shr(shift(32)).unwrap_or(0) == 0
        }
        (IpAddr::V6(b), IpAddr::V6(a)) => {
            (b.to_bits() ^ a.to_bits()).checked_shr(shift(128)).unwrap_or(0) == 0
        }
        _ => false,
    }
}
