//! A pod as the scheduler sees it. Pods that ask for the same share one [`Demand`], those that relate to others alike
//! one [`Relations`], so that what was found out for one holds for the next.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Weak};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{NodeAffinity, Pod, PodSpec, Toleration, TopologySpreadConstraint};
use serde::Serialize;

use crate::filter::node_affinity::Selection;
use crate::relations::{Relations, Spread};
use crate::resources::{Resources, pod_requests};
use crate::volumes::{UsedClaim, claims_of};

/// A port on the node: address, protocol, number.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// `0.0.0.0` for all.
    pub ip: Arc<str>,
    /// For example `TCP`.
    pub protocol: Arc<str>,
    /// The number.
    pub port: i32,
}

/// Everything of a pod that decides where it may run, other pods left out.
#[derive(Debug, Default)]
pub struct Demand {
    /// Distinguishes demands within this process.
    pub id: u64,
    /// What it takes on a node.
    pub requests: Resources,
    /// What scores count, with defaults for containers that ask for nothing.
    pub scored: Resources,
    /// The only node in question. A pod that names its node is bound by that already and never gets here; this serves
    /// questions such as "would it fit there".
    pub node_name: Option<String>,
    /// `nodeSelector`.
    pub node_selector: BTreeMap<String, String>,
    /// Required and preferred node affinity, compiled.
    pub affinity: Selection,
    /// Taints it tolerates.
    pub tolerations: Vec<Toleration>,
    /// Ports of the node it needs.
    pub host_ports: Vec<HostPort>,
    /// Images it runs, by their full names.
    pub images: Vec<Arc<str>>,
    /// What its node must declare.
    pub features: Vec<&'static str>,
}

/// One pod.
#[derive(Debug, Clone)]
pub struct PodInfo {
    /// The object.
    pub pod: Arc<Pod>,
    /// Its uid.
    pub uid: Arc<str>,
    /// Its priority.
    pub priority: i32,
    /// When it was created.
    pub created: Timestamp,
    /// Whether it is on its way out.
    pub terminating: bool,
    /// What it asks for.
    pub demand: Arc<Demand>,
    /// How it relates to other pods.
    pub relations: Arc<Relations>,
    /// How it wants to be spread.
    pub spread: Arc<Spread>,
    /// Claims it uses.
    pub claims: Arc<[UsedClaim]>,
}

impl PodInfo {
    /// The pod's namespace.
    pub fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// The pod's name.
    pub fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }

    /// The pod's spec; every stored pod has one.
    pub fn spec(&self) -> Option<&PodSpec> {
        self.pod.spec.as_ref()
    }

    /// When it began to run, or now: a pod that does not run yet is the youngest.
    pub fn started(&self) -> Timestamp {
        let start = self.pod.status.as_ref().and_then(|s| s.start_time.as_ref());
        start.map_or(Timestamp::MAX, |t| t.0)
    }

    /// `status.nominatedNodeName`.
    pub fn nominated_node(&self) -> Option<&str> {
        self.pod.status.as_ref()?.nominated_node_name.as_deref().filter(|n| !n.is_empty())
    }

    /// What it runs by; pods of others never get here.
    pub fn scheduler_name(&self) -> &str {
        self.spec().and_then(|s| s.scheduler_name.as_deref()).unwrap_or("default-scheduler")
    }
}

/// Values that are told apart by what they were made of.
#[derive(Debug)]
struct Interned<T> {
    known: HashMap<Vec<u8>, Weak<T>>,
    next: u64,
}

impl<T> Default for Interned<T> {
    fn default() -> Self {
        Self { known: HashMap::new(), next: 0 }
    }
}

impl<T> Interned<T> {
    fn get(&mut self, key: &impl Serialize, make: impl FnOnce(u64) -> T) -> Arc<T> {
        let key = serde_json::to_vec(key).unwrap_or_default();
        if let Some(known) = self.known.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        // Amortised: the table is swept when it has doubled since the last time.
        if self.known.len() >= 1024 && self.known.len() == self.known.capacity() {
            self.known.retain(|_, value| value.strong_count() > 0);
        }
        self.next += 1;
        let value = Arc::new(make(self.next));
        self.known.insert(key, Arc::downgrade(&value));
        value
    }
}

/// Finds equal demands and relations, so that equal pods share one.
#[derive(Debug, Default)]
pub struct Demands {
    demands: Interned<Demand>,
    relations: Interned<Relations>,
    spreads: Interned<Spread>,
    none: Arc<Spread>,
}

impl Demands {
    /// The scheduler's view of `pod`.
    pub fn info(&mut self, pod: &Arc<Pod>) -> PodInfo {
        PodInfo {
            uid: pod.metadata.uid.as_deref().unwrap_or_default().into(),
            priority: pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0),
            created: pod.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            demand: self.demand(pod),
            relations: self.relations(pod),
            spread: self.spread(pod, own_constraints(pod), false),
            claims: claims_of(pod).into(),
            pod: pod.clone(),
        }
    }

    fn relations(&mut self, pod: &Pod) -> Arc<Relations> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref());
        let (to, from) = (
            affinity.and_then(|a| a.pod_affinity.as_ref()),
            affinity.and_then(|a| a.pod_anti_affinity.as_ref()),
        );
        let labels = &pod.metadata.labels;
        self.relations.get(&(namespace, labels, to, from), |id| {
            Relations::compile(id, namespace, labels.clone().unwrap_or_default(), affinity)
        })
    }

    /// How a pod is to be spread by `constraints`; `is_default`: by those of the system, not of a user.
    pub fn spread(
        &mut self,
        pod: &Pod,
        constraints: &[TopologySpreadConstraint],
        is_default: bool,
    ) -> Arc<Spread> {
        if constraints.is_empty() {
            return self.none.clone();
        }
        let empty = BTreeMap::new();
        let labels = pod.metadata.labels.as_ref().unwrap_or(&empty);
        let keys = constraints.iter().flat_map(|c| c.match_label_keys.iter().flatten());
        let values: Vec<_> = keys.map(|k| labels.get(k)).collect();
        self.spreads.get(&(constraints, values, is_default), |id| {
            Spread::compile(id, constraints, labels, is_default)
        })
    }

    fn demand(&mut self, pod: &Pod) -> Arc<Demand> {
        let Some(spec) = pod.spec.as_ref() else { return Arc::default() };
        let containers: Vec<_> = spec.containers.iter().map(|c| (&c.resources, &c.ports, &c.image)).collect();
        let init: Vec<_> = spec
            .init_containers
            .iter()
            .flatten()
            .map(|c| (&c.resources, &c.ports, &c.image, &c.restart_policy))
            .collect();
        let (images, features) = (images(spec), api::declared_features::to_run(spec));
        let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
        // A bound pod's node is where it is, not what it asks for.
        let key = (
            containers,
            init,
            affinity,
            &spec.resources,
            &spec.overhead,
            &spec.node_selector,
            &spec.tolerations,
            (&images, &features),
        );
        self.demands.get(&key, |id| {
            let (requests, scored) = pod_requests(spec);
            Demand {
                id,
                requests,
                scored,
                node_name: None,
                node_selector: spec.node_selector.clone().unwrap_or_default(),
                affinity: Selection::compile(affinity.unwrap_or(&NodeAffinity::default())),
                tolerations: spec.tolerations.clone().unwrap_or_default(),
                host_ports: host_ports(spec),
                images: images.clone(),
                features: features.clone(),
            }
        })
    }
}

/// The constraints that the pod itself brings.
pub fn own_constraints(pod: &Pod) -> &[TopologySpreadConstraint] {
    pod.spec.as_ref().and_then(|s| s.topology_spread_constraints.as_deref()).unwrap_or_default()
}

/// An image's name as nodes report it: with a tag.
fn full_name(image: &str) -> Arc<str> {
    let tagged = match (image.rfind(':'), image.rfind('/')) {
        (Some(colon), slash) => slash.is_none_or(|slash| colon > slash),
        (None, _) => false,
    };
    if tagged { image.into() } else { format!("{image}:latest").into() }
}

fn images(spec: &PodSpec) -> Vec<Arc<str>> {
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let volumes = spec.volumes.iter().flatten().filter_map(|v| v.image.as_ref()?.reference.as_deref());
    containers.map(|c| c.image.as_deref().unwrap_or_default()).chain(volumes).map(full_name).collect()
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars =
        spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    let ports: BTreeSet<HostPort> = ports
        .filter_map(|p| {
            let port = p.host_port.filter(|p| *p > 0)?;
            let text = |t: &Option<String>, default: &str| {
                t.as_deref().filter(|t| !t.is_empty()).unwrap_or(default).into()
            };
            Some(HostPort { ip: text(&p.host_ip, "0.0.0.0"), protocol: text(&p.protocol, "TCP"), port })
        })
        .collect();
    ports.into_iter().collect()
}
