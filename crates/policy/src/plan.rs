//! From policies, pods and namespaces to chains, rules and sets; pure.
//!
//! The meaning is that of <https://kubernetes.io/docs/concepts/services-networking/network-policies/>: a pod that any
//! policy selects for a direction is isolated in it, and what any of these policies allows is allowed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::Hasher;
use std::net::{IpAddr, SocketAddr};

use api::selector::LabelSelector;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use network::Protocol;

use crate::facts::{Labels, PodFacts};
use crate::ranges::ranges;

/// Whose traffic: what comes to a pod, or what it sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

impl Direction {
    fn of_policy(self, policy: &NetworkPolicy) -> bool {
        let Some(spec) = &policy.spec else { return false };
        match (&spec.policy_types, self) {
            (Some(types), _) if !types.is_empty() => types.iter().any(|t| t == self.name()),
            (_, Self::Ingress) => true,
            (_, Self::Egress) => spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
        }
    }

    /// The API's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ingress => "Ingress",
            Self::Egress => "Egress",
        }
    }

    fn short(self) -> &'static str {
        match self {
            Self::Ingress => "in",
            Self::Egress => "out",
        }
    }
}

/// An element of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Member {
    /// An address.
    Addr(IpAddr),
    /// A range of addresses.
    Range(IpAddr, IpAddr),
    /// A port of an address.
    Port(SocketAddr, Protocol),
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(addr) => write!(f, "{addr}"),
            Self::Range(first, last) => write!(f, "{first}-{last}"),
            Self::Port(addr, protocol) => write!(f, "{protocol}:{addr}"),
        }
    }
}

/// What a set holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Addresses.
    Addrs,
    /// Ranges of addresses; such a set never changes, its name says its content.
    Ranges,
    /// Addresses with protocol and port.
    Ports,
}

/// A set of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Members {
    /// IPv6?
    pub v6: bool,
    /// What it holds.
    pub kind: Kind,
    /// The elements.
    pub members: BTreeSet<Member>,
}

/// Which packets of a direction a rule allows. What is `None` is not looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The family, where a set is looked at.
    pub v6: Option<bool>,
    /// The set with the other side's address.
    pub peers: Option<String>,
    /// The set with the destination's address, protocol and port.
    pub named: Option<String>,
    /// Protocol, and first and last destination port.
    pub port: Option<(Protocol, Option<(u16, u16)>)>,
    /// `namespace/policy Ingress 0`: the policy's rule this comes from.
    pub comment: String,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(peers) = &self.peers {
            write!(f, "peer @{peers} ")?;
        }
        if let Some(named) = &self.named {
            write!(f, "to @{named} ")?;
        }
        match &self.port {
            Some((protocol, None)) => write!(f, "{protocol} ")?,
            Some((protocol, Some((first, last)))) if first == last => write!(f, "{protocol} {first} ")?,
            Some((protocol, Some((first, last)))) => write!(f, "{protocol} {first}-{last} ")?,
            None => {}
        }
        write!(f, "allow # {}", self.comment)
    }
}

/// A chain's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chain {
    /// An isolated pod: the policies that select it, in turn; what none allows is dropped.
    Pod {
        /// Chains of the policies.
        policies: Vec<String>,
        /// `namespace/pod Ingress denied`.
        comment: String,
    },
    /// A policy's rules.
    Policy(Direction, Vec<Rule>),
}

/// All that one node enforces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Sets by name.
    pub sets: BTreeMap<String, Members>,
    /// Chains by name.
    pub chains: BTreeMap<String, Chain>,
    /// Addresses of isolated pods and the chain that judges.
    pub isolated: BTreeMap<(Direction, IpAddr), String>,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((direction, addr), chain) in &self.isolated {
            writeln!(f, "{} of {addr}: {chain}", direction.name())?;
        }
        for (name, chain) in &self.chains {
            match chain {
                Chain::Pod { policies, comment } => {
                    writeln!(f, "{name}: {}; drop # {comment}", policies.join(", "))?;
                }
                Chain::Policy(_, rules) => {
                    writeln!(f, "{name}:")?;
                    rules.iter().try_for_each(|rule| writeln!(f, "  {rule}"))?;
                }
            }
        }
        for (name, set) in &self.sets {
            let members: Vec<String> = set.members.iter().map(ToString::to_string).collect();
            writeln!(f, "@{name} = {{{}}}", members.join(" "))?;
        }
        Ok(())
    }
}

/// Everything a plan depends on.
pub struct Cluster<'a> {
    /// The policies.
    pub policies: Vec<&'a NetworkPolicy>,
    /// Labels of the namespaces.
    pub namespaces: &'a BTreeMap<String, Labels>,
    /// The pods of all nodes.
    pub pods: Vec<&'a PodFacts>,
    /// The address families that pods have (IPv6?).
    pub families: &'a [bool],
}

/// A pod's chain for a direction.
pub fn pod_chain(direction: Direction, pod: &PodFacts) -> String {
    format!("pol-pod-{}-{}", direction.short(), hash(&[&pod.namespace, &pod.name]))
}

/// What the local pods of `cluster` need.
pub fn plan(cluster: &Cluster<'_>) -> Plan {
    let mut plan = Plan::default();
    let mut selecting: BTreeMap<(Direction, usize), BTreeSet<String>> = BTreeMap::new();
    for policy in &cluster.policies {
        let Some(spec) = &policy.spec else { continue };
        let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
        let selector = selector(spec.pod_selector.as_ref());
        let local = cluster
            .pods
            .iter()
            .enumerate()
            .filter(|(_, pod)| pod.local && pod.namespace == namespace && selector.matches(&pod.labels));
        let selected: Vec<(usize, &PodFacts)> = local.map(|(index, pod)| (index, *pod)).collect();
        if selected.is_empty() {
            continue;
        }
        for direction in [Direction::Ingress, Direction::Egress] {
            if !direction.of_policy(policy) {
                continue;
            }
            let name = policy.metadata.name.as_deref().unwrap_or_default();
            let chain = format!("pol-np-{}-{}", direction.short(), hash(&[namespace, name]));
            for (index, _) in &selected {
                selecting.entry((direction, *index)).or_default().insert(chain.clone());
            }
            let mut writer = Writer { cluster, plan: &mut plan, policy, direction, rules: Vec::new() };
            writer.policy(&selected.iter().map(|(_, pod)| *pod).collect::<Vec<_>>());
            let rules = writer.rules;
            plan.chains.insert(chain, Chain::Policy(direction, rules));
        }
    }
    for ((direction, index), policies) in selecting {
        let Some(pod) = cluster.pods.get(index) else { continue };
        let chain = pod_chain(direction, pod);
        for addr in &pod.ips {
            plan.isolated.insert((direction, *addr), chain.clone());
        }
        let comment = format!("{}/{} {} denied", pod.namespace, pod.name, direction.name());
        plan.chains.insert(chain, Chain::Pod { policies: policies.into_iter().collect(), comment });
    }
    plan
}

/// Writes the rules of one policy in one direction.
struct Writer<'a, 'b> {
    cluster: &'a Cluster<'a>,
    plan: &'b mut Plan,
    policy: &'a NetworkPolicy,
    direction: Direction,
    rules: Vec<Rule>,
}

/// A rule of either direction.
type PolicyRule<'a> = (&'a [NetworkPolicyPeer], &'a [NetworkPolicyPort]);

impl<'a> Writer<'a, '_> {
    fn policy(&mut self, selected: &[&PodFacts]) {
        let Some(spec) = &self.policy.spec else { return };
        let rules: Vec<PolicyRule<'a>> = match self.direction {
            Direction::Ingress => spec
                .ingress
                .iter()
                .flatten()
                .map(|r| (r.from.as_deref().unwrap_or_default(), r.ports.as_deref().unwrap_or_default()))
                .collect(),
            Direction::Egress => spec
                .egress
                .iter()
                .flatten()
                .map(|r| (r.to.as_deref().unwrap_or_default(), r.ports.as_deref().unwrap_or_default()))
                .collect(),
        };
        for (index, (peers, ports)) in rules.into_iter().enumerate() {
            self.rule(index, peers, ports, selected);
        }
    }

    fn rule(
        &mut self,
        index: usize,
        peers: &'a [NetworkPolicyPeer],
        ports: &'a [NetworkPolicyPort],
        selected: &[&PodFacts],
    ) {
        let pods: Vec<&PodFacts> =
            if peers.is_empty() { self.cluster.pods.clone() } else { self.matched(peers) };
        // one choice of peers per set that has to be looked at
        let mut choices: Vec<(Option<bool>, Option<String>)> = Vec::new();
        if peers.is_empty() {
            choices.push((None, None));
        } else {
            choices.extend(self.peer_sets(index, peers, &pods));
        }
        let comment = format!("{} {} {index}", self.key().join("/"), self.direction.name());
        let rule = |v6, peers, named, port| Rule { v6, peers, named, port, comment: comment.clone() };
        if ports.is_empty() {
            self.rules.extend(choices.into_iter().map(|(v6, peers)| rule(v6, peers, None, None)));
            return;
        }
        for (number, port) in ports.iter().enumerate() {
            let Some(protocol) = Protocol::parse(port.protocol.as_deref()) else { continue };
            let name = match &port.port {
                Some(IntOrString::String(name)) => name,
                Some(IntOrString::Int(first)) => {
                    let Ok(first) = u16::try_from(*first) else { continue };
                    let last = port.end_port.and_then(|end| u16::try_from(end).ok()).unwrap_or(first);
                    let range = Some((protocol, Some((first, last))));
                    self.rules.extend(choices.iter().map(|(v6, p)| rule(*v6, p.clone(), None, range)));
                    continue;
                }
                None => {
                    let any = Some((protocol, None));
                    self.rules.extend(choices.iter().map(|(v6, p)| rule(*v6, p.clone(), None, any)));
                    continue;
                }
            };
            // a name is looked up at the destination: the selected pods, or the pods among the peers
            let holders = if self.direction == Direction::Ingress { selected } else { &pods };
            for v6 in self.cluster.families {
                let set = self.named_set(index, number, *v6, name, protocol, holders);
                match self.direction {
                    Direction::Egress => self.rules.push(rule(Some(*v6), None, Some(set), None)),
                    Direction::Ingress => {
                        let of_family = choices.iter().filter(|(f, _)| f.is_none_or(|f| f == *v6));
                        let rules =
                            of_family.map(|(_, p)| rule(Some(*v6), p.clone(), Some(set.clone()), None));
                        self.rules.extend(rules);
                    }
                }
            }
        }
    }

    /// Namespace and name.
    fn key(&self) -> [&'a str; 2] {
        let meta = &self.policy.metadata;
        [meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default()]
    }

    /// The pods that the selectors of `peers` mean.
    fn matched(&self, peers: &[NetworkPolicyPeer]) -> Vec<&'a PodFacts> {
        let [own, _] = self.key();
        let selectors: Vec<(Option<LabelSelector>, LabelSelector)> = peers
            .iter()
            .filter(|peer| peer.ip_block.is_none())
            .filter(|peer| peer.pod_selector.is_some() || peer.namespace_selector.is_some())
            .map(|peer| {
                let namespaces = peer.namespace_selector.as_ref().map(|s| selector(Some(s)));
                (namespaces, selector(peer.pod_selector.as_ref()))
            })
            .collect();
        let nothing = Labels::new();
        let matches = |pod: &PodFacts| {
            selectors.iter().any(|(namespaces, pods)| {
                let inside = match namespaces {
                    None => pod.namespace == own,
                    Some(selector) => {
                        selector.matches(self.cluster.namespaces.get(&pod.namespace).unwrap_or(&nothing))
                    }
                };
                inside && pods.matches(&pod.labels)
            })
        };
        self.cluster.pods.iter().copied().filter(|pod| matches(pod)).collect()
    }

    /// Writes the sets of a rule's peers: pods, whose set changes with them, and address blocks.
    fn peer_sets(
        &mut self,
        index: usize,
        peers: &[NetworkPolicyPeer],
        pods: &[&PodFacts],
    ) -> Vec<(Option<bool>, Option<String>)> {
        let by_labels = peers.iter().any(|p| p.ip_block.is_none());
        let blocks: Vec<_> = peers.iter().filter_map(|p| p.ip_block.as_ref()).collect();
        let mut choices = Vec::new();
        for v6 in self.cluster.families.iter().copied() {
            if by_labels {
                let ips = pods.iter().flat_map(|p| &p.ips).filter(|ip| ip.is_ipv6() == v6);
                let members = ips.map(|ip| Member::Addr(*ip)).collect();
                let name = self.set_name("pods", &format!("{index}"), v6);
                choices.push((v6, name, Members { v6, kind: Kind::Addrs, members }));
            }
            let ranges = ranges(&blocks, v6);
            if !ranges.is_empty() {
                let members: BTreeSet<_> =
                    ranges.into_iter().map(|(first, last)| Member::Range(first, last)).collect();
                let content: Vec<String> = members.iter().map(ToString::to_string).collect();
                let content = hash(&content.iter().map(String::as_str).collect::<Vec<_>>());
                let name = format!("pol-blocks{}-{content}", family(v6));
                choices.push((v6, name, Members { v6, kind: Kind::Ranges, members }));
            }
        }
        let mut found = Vec::new();
        for (v6, name, set) in choices {
            self.plan.sets.insert(name.clone(), set);
            found.push((Some(v6), Some(name)));
        }
        found
    }

    fn named_set(
        &mut self,
        index: usize,
        number: usize,
        v6: bool,
        name: &str,
        protocol: Protocol,
        holders: &[&PodFacts],
    ) -> String {
        let mut members = BTreeSet::new();
        for pod in holders {
            for (_, _, port) in pod.ports.iter().filter(|(n, p, _)| n == name && *p == protocol) {
                let ips = pod.ips.iter().filter(|ip| ip.is_ipv6() == v6);
                members.extend(ips.map(|ip| Member::Port(SocketAddr::new(*ip, *port), protocol)));
            }
        }
        let set = self.set_name("ports", &format!("{index}-{number}"), v6);
        self.plan.sets.insert(set.clone(), Members { v6, kind: Kind::Ports, members });
        set
    }

    fn set_name(&self, what: &str, tail: &str, v6: bool) -> String {
        format!("pol-{what}{}-{}-{}-{tail}", family(v6), self.direction.short(), hash(&self.key()))
    }
}

fn family(v6: bool) -> u8 {
    if v6 { 6 } else { 4 }
}

/// An absent selector means every pod here. One that is not understood selects nothing.
fn selector(selector: Option<&meta::LabelSelector>) -> LabelSelector {
    let Some(selector) = selector else { return LabelSelector::default() };
    LabelSelector::from_typed(Some(selector)).unwrap_or_else(|_| LabelSelector::nothing())
}

/// Names of chains and sets are bounded, those of objects almost not: FNV-1a, stable between releases.
fn hash(parts: &[&str]) -> String {
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    for part in parts {
        hasher.write(part.as_bytes());
        hasher.write(&[0]);
    }
    format!("{:016x}", hasher.finish())
}

struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
