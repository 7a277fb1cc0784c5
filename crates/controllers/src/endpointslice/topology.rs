//! Hints by capacity: each zone is to be served by as many of a service's endpoints as its share of the CPUs of all ready
//! nodes asks for. Where that cannot be had without overloading some of them, there are no hints.
//!
//! Rule: <https://kubernetes.io/docs/concepts/services-networking/topology-aware-routing/>. The share is computed anew
//! for all endpoints whenever one of them or a node changes, in the order of the endpoints, so that it depends on nothing else.
use std::collections::BTreeMap;
use std::sync::Arc;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, ForZone};

use crate::ownership::{annotations, labels};

/// An endpoint may have to serve so much more than its share.
const OVERLOAD: f64 = 0.2;

const INSUFFICIENT_NODE_INFO: &str =
    "Insufficient Node information: allocatable CPU or zone not specified on one or more nodes";
const INSUFFICIENT_ENDPOINTS: &str = "Insufficient number of endpoints";
const OVERLOADED: &str =
    "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold";
const NO_ZONE: &str = "Cannot assign hints. One or more endpoints do not have a zone specified";

/// Whether the service asks for such hints.
pub(super) fn is_asked(service: &Service) -> bool {
    let keys = ["service.kubernetes.io/topology-mode", "service.kubernetes.io/topology-aware-hints"];
    let by_capacity =
        |key: &str| annotations(&service.metadata).get(key).is_some_and(|v| v == "Auto" || v == "auto");
    keys.into_iter().any(by_capacity)
}

/// Zone and CPUs of a node that counts.
fn share(node: &Node) -> Option<(Option<&str>, i64)> {
    let roles = ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];
    let ready =
        node.status.as_ref()?.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    if !ready || roles.iter().any(|role| labels(&node.metadata).contains_key(*role)) {
        return None;
    }
    let zone = labels(&node.metadata).get("topology.kubernetes.io/zone").map(String::as_str);
    let cpu = node.status.as_ref()?.allocatable.as_ref().and_then(|a| a.get("cpu"));
    Some((
        zone.filter(|z| !z.is_empty()),
        cpu.and_then(|q| q.0.parse::<Quantity>().ok()).map_or(0, |q| q.millis()),
    ))
}

/// Whether what counts of a node is another now.
pub(super) fn differs(old: &Node, new: &Node) -> bool {
    share(old) != share(new)
}

/// Each zone's part of all CPUs; `None` where it is not known, or there is one zone only.
pub(super) fn ratios(nodes: &[Arc<Node>]) -> Option<BTreeMap<String, f64>> {
    let mut cpus = BTreeMap::<String, i64>::new();
    for (zone, cpu) in nodes.iter().filter_map(|n| share(n)) {
        let zone = zone.filter(|_| cpu > 0)?;
        *cpus.entry(zone.to_owned()).or_default() += cpu;
    }
    let total: i64 = cpus.values().sum();
    (cpus.len() >= 2).then(|| cpus.into_iter().map(|(zone, cpu)| (zone, cpu as f64 / total as f64)).collect())
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|c| c.ready) == Some(true)
}

/// Gives the ready endpoints of one address family their hints; the reason where they get none.
pub(super) fn assign(
    endpoints: &mut [&mut Endpoint],
    ratios: Option<&BTreeMap<String, f64>>,
) -> Result<(), String> {
    endpoints.iter_mut().for_each(|e| e.hints = None);
    let mut ready: Vec<&mut &mut Endpoint> = endpoints.iter_mut().filter(|e| is_ready(e)).collect();
    let wanted = wanted(ratios, ready.len())?;
    let mut has = BTreeMap::<String, usize>::new();
    let mut zones = Vec::with_capacity(ready.len());
    for endpoint in &ready {
        let zone = endpoint.zone.as_deref().filter(|z| !z.is_empty()).ok_or(NO_ZONE)?;
        *has.entry(zone.to_owned()).or_default() += 1;
        zones.push(zone.to_owned());
    }
    let (mut giving, mut receiving) = exchange(&wanted, &has);
    for zone in &mut zones {
        let Some(to_give) = giving.get_mut(zone.as_str()).filter(|n| **n > 0) else { continue };
        let Some((to, room)) = receiving.iter_mut().find(|(_, room)| **room > 0) else { break };
        *to_give -= 1;
        *room -= 1;
        *zone = to.clone();
    }
    for (endpoint, name) in ready.iter_mut().zip(zones) {
        endpoint.hints = Some(EndpointHints { for_zones: Some(vec![ForZone { name }]), for_nodes: None });
    }
    Ok(())
}

/// How many endpoints each zone should have.
fn wanted(ratios: Option<&BTreeMap<String, f64>>, count: usize) -> Result<BTreeMap<String, f64>, String> {
    let ratios = ratios.ok_or(INSUFFICIENT_NODE_INFO)?;
    let told = |why: &str| format!("{why} ({count} endpoints, {} zones)", ratios.len());
    if ratios.len() > count {
        return Err(told(INSUFFICIENT_ENDPOINTS));
    }
    let mut wanted = BTreeMap::new();
    let mut least = 0.0;
    for (zone, ratio) in ratios {
        let desired = ratio * count as f64;
        let minimum = (desired / (1.0 + OVERLOAD)).ceil();
        least += minimum;
        wanted.insert(zone.clone(), desired.max(minimum));
    }
    if least > count as f64 { Err(told(OVERLOADED)) } else { Ok(wanted) }
}

/// How many endpoints zones that have too many give, and how many others receive.
fn exchange(
    wanted: &BTreeMap<String, f64>,
    has: &BTreeMap<String, usize>,
) -> (BTreeMap<String, usize>, BTreeMap<String, usize>) {
    let (mut over, mut under) = (BTreeMap::<String, f64>::new(), BTreeMap::<String, f64>::new());
    for (zone, wanted) in wanted {
        let difference = has.get(zone).copied().unwrap_or(0) as f64 - wanted;
        if difference > 0.0 {
            over.insert(zone.clone(), difference);
        } else if difference < 0.0 {
            under.insert(zone.clone(), -difference);
        }
    }
    let most = |zones: &BTreeMap<String, f64>| {
        zones.iter().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(a.0))).map(|(z, n)| (z.clone(), *n))
    };
    let (mut giving, mut receiving) = (BTreeMap::new(), BTreeMap::new());
    while let (Some((from, gives)), Some((to, takes))) = (most(&over), most(&under)) {
        if gives < 0.5 || takes < 0.5 || gives < 1.0 && takes < 1.0 {
            break;
        }
        *giving.entry(from.clone()).or_default() += 1;
        *receiving.entry(to.clone()).or_default() += 1;
        over.insert(from, gives - 1.0);
        under.insert(to, takes - 1.0);
    }
    (giving, receiving)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn nodes(cpus: &[(&str, &str)]) -> Vec<Arc<Node>> {
        let node = |(zone, cpu): &(&str, &str)| {
            let node = json!({"metadata": {"labels": {"topology.kubernetes.io/zone": zone}}, "status": {
                "allocatable": {"cpu": cpu}, "conditions": [{"type": "Ready", "status": "True"}]}});
            Arc::new(serde_json::from_value(node).unwrap())
        };
        cpus.iter().map(node).collect()
    }

    /// How many endpoints each zone's clients use, when each zone has so many.
    fn hinted(cpus: &[(&str, &str)], endpoints: &[(&str, usize)]) -> Result<String, String> {
        let endpoint = |zone: &str| Endpoint {
            zone: Some(zone.to_owned()),
            ..serde_json::from_value(json!({"addresses": [], "conditions": {"ready": true}})).unwrap()
        };
        let mut all: Vec<Endpoint> =
            endpoints.iter().flat_map(|(zone, count)| std::iter::repeat_n(endpoint(zone), *count)).collect();
        assign(&mut all.iter_mut().collect::<Vec<_>>(), ratios(&nodes(cpus)).as_ref())?;
        let mut counts = BTreeMap::<&str, usize>::new();
        for hint in all.iter().filter_map(|e| e.hints.as_ref()?.for_zones.as_ref()) {
            *counts.entry(hint[0].name.as_str()).or_default() += 1;
        }
        Ok(format!("{counts:?}"))
    }

    #[test]
    fn endpoints_serve_zones_by_their_share_of_cpus() {
        let even = [("a", "4"), ("b", "4"), ("c", "4000m")];
        assert_eq!(hinted(&even, &[("a", 3), ("b", 3), ("c", 3)]), Ok(r#"{"a": 3, "b": 3, "c": 3}"#.into()));
        assert_eq!(hinted(&even, &[("a", 9)]), Ok(r#"{"a": 3, "b": 3, "c": 3}"#.into()));
        let uneven = [("a", "6"), ("b", "2")];
        assert_eq!(hinted(&uneven, &[("a", 4), ("b", 4)]), Ok(r#"{"a": 6, "b": 2}"#.into()));
        // half an endpoint too many is nothing to move
        assert_eq!(
            hinted(&[("a", "1"), ("b", "1")], &[("a", 5), ("b", 4)]),
            Ok(r#"{"a": 5, "b": 4}"#.into())
        );
    }

    #[test]
    fn where_a_zone_would_be_overloaded_there_are_no_hints() {
        let even = [("a", "4"), ("b", "4"), ("c", "4")];
        let few = Err("Insufficient number of endpoints (2 endpoints, 3 zones)".to_owned());
        assert_eq!(hinted(&even, &[("a", 2)]), few);
        let overloaded = format!("{OVERLOADED} (4 endpoints, 3 zones)");
        assert_eq!(hinted(&even, &[("a", 4)]), Err(overloaded));
        assert_eq!(hinted(&[("a", "4")], &[("a", 4)]), Err(INSUFFICIENT_NODE_INFO.to_owned()));
        assert_eq!(hinted(&[("a", "4"), ("b", "0")], &[("a", 4)]), Err(INSUFFICIENT_NODE_INFO.to_owned()));
        assert_eq!(hinted(&even, &[("", 9)]), Err(NO_ZONE.to_owned()));
    }
}
