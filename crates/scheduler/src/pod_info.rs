//! A pod as the scheduler sees it. Pods that ask for the same share one [`Demand`], so that what was found out for one
//! holds for the next.
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{NodeAffinity, Pod, Toleration};
use serde_json::json;

use crate::filter::node_affinity::Selection;
use crate::resources::{Resources, pod_requests};

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

/// Everything of a pod that decides where it may run.
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
    /// What it asks for.
    pub demand: Arc<Demand>,
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
}

/// Finds equal demands, so that equal pods share one.
#[derive(Debug, Default)]
pub struct Demands {
    known: HashMap<Vec<u8>, Weak<Demand>>,
    next: u64,
}

impl Demands {
    /// The scheduler's view of `pod`.
    pub fn info(&mut self, pod: &Arc<Pod>) -> PodInfo {
        PodInfo {
            uid: pod.metadata.uid.as_deref().unwrap_or_default().into(),
            priority: pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0),
            created: pod.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0),
            demand: self.demand(pod),
            pod: pod.clone(),
        }
    }

    fn demand(&mut self, pod: &Pod) -> Arc<Demand> {
        let Some(spec) = pod.spec.as_ref() else { return Arc::default() };
        let containers: Vec<_> = spec.containers.iter().map(|c| (&c.resources, &c.ports)).collect();
        let init: Vec<_> = spec
            .init_containers
            .iter()
            .flatten()
            .map(|c| (&c.resources, &c.ports, &c.restart_policy))
            .collect();
        let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
        // A bound pod's node is where it is, not what it asks for.
        let key = serde_json::to_vec(&json!([
            containers,
            init,
            affinity,
            spec.resources,
            spec.overhead,
            spec.node_selector,
            spec.tolerations,
            spec.host_network,
        ]))
        .unwrap_or_default();
        if let Some(known) = self.known.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        if self.known.len() > 1024 {
            self.known.retain(|_, demand| demand.strong_count() > 0);
        }
        self.next += 1;
        let (requests, scored) = pod_requests(spec);
        let demand = Arc::new(Demand {
            id: self.next,
            requests,
            scored,
            node_name: None,
            node_selector: spec.node_selector.clone().unwrap_or_default(),
            affinity: Selection::compile(affinity.unwrap_or(&NodeAffinity::default())),
            tolerations: spec.tolerations.clone().unwrap_or_default(),
            host_ports: host_ports(pod),
        });
        self.known.insert(key, Arc::downgrade(&demand));
        demand
    }
}

fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = pod.spec.as_ref() else { return Vec::new() };
    let sidecars =
        spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|p| {
            let port = p.host_port.filter(|p| *p > 0)?;
            let text = |t: &Option<String>, default: &str| {
                t.as_deref().filter(|t| !t.is_empty()).unwrap_or(default).into()
            };
            Some(HostPort { ip: text(&p.host_ip, "0.0.0.0"), protocol: text(&p.protocol, "TCP"), port })
        })
        .collect()
}
