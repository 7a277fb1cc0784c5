//! The slices a service shall have, made from those it has with as few writes as possible.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::topology;
use crate::ownership::{controller_ref, is_controlled_by, labels, name, uid};
use crate::pods;
use crate::service_pods::{
    HEADLESS, SLICE_MANAGED_BY, SLICE_SERVICE, address, hostname, is_headless, pod_reference, protocol,
    publishes_not_ready, slice_name, target_port,
};

pub(super) const MANAGER: &str = "endpointslice-controller.k8s.io";

/// Endpoints in one slice.
const MAX_ENDPOINTS: usize = 100;

/// Writes that make the slices right.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) create: Vec<EndpointSlice>,
    pub(super) update: Vec<EndpointSlice>,
    pub(super) delete: Vec<Arc<EndpointSlice>>,
    /// Families that asked for hints by capacity, and why they got none.
    pub(super) hinted: Vec<(String, Result<(), String>)>,
}

/// What slices are grouped by: all endpoints of a slice share family and ports.
type Group = (String, Vec<PortKey>);
type PortKey = (String, String, i32, String);

/// Plans the slices of `service`. `zone` names a node's zone, `ratios` each zone's part of all CPUs.
pub(super) fn plan(
    service: &Service,
    pods: &[Arc<Pod>],
    existing: &[Arc<EndpointSlice>],
    zone: impl Fn(&str) -> Option<String>,
    ratios: Option<&BTreeMap<String, f64>>,
) -> Plan {
    let families: Vec<String> = service
        .spec
        .as_ref()
        .and_then(|s| s.ip_families.clone())
        .filter(|f| !f.is_empty())
        .unwrap_or_else(|| vec!["IPv4".to_owned()]);
    let mut wanted: BTreeMap<Group, Vec<Endpoint>> = BTreeMap::new();
    for family in &families {
        for pod in pods.iter().filter(|p| !pods::is_terminal(p)) {
            let Some(ip) = address(pod, family) else { continue };
            let group = (family.clone(), ports(service, pod));
            wanted.entry(group).or_default().push(endpoint(service, pod, ip, &zone));
        }
        // A service without endpoints has one empty slice, so that its readers know that this is so.
        if !wanted.keys().any(|(f, _)| f == family) {
            wanted.insert((family.clone(), Vec::new()), Vec::new());
        }
    }
    let wanted_labels = slice_labels(service);
    let mut plan = Plan::default();
    if topology::is_asked(service) {
        for family in &families {
            let of_family = wanted.iter_mut().filter(|((of, _), _)| of == family);
            let mut endpoints: Vec<&mut Endpoint> = of_family.flat_map(|(_, list)| list).collect();
            if !endpoints.is_empty() {
                plan.hinted.push((family.clone(), topology::assign(&mut endpoints, ratios)));
            }
        }
    }
    let mut by_group: BTreeMap<Group, Vec<&Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in existing.iter().filter(|s| s.metadata.deletion_timestamp.is_none()) {
        by_group.entry(group_of(slice)).or_default().push(slice);
    }
    for (group, endpoints) in wanted {
        let slices = by_group.remove(&group).unwrap_or_default();
        let taken: BTreeSet<&str> = existing.iter().map(|s| name(&s.metadata)).collect();
        fit(service, &group, endpoints, slices, &wanted_labels, &taken, &mut plan);
    }
    plan.delete.extend(by_group.into_values().flatten().cloned());
    reuse(service, &mut plan);
    plan
}

/// What would be deleted takes the place of what would be made: readers see one change. Slices of an earlier service of that
/// name are the garbage collector's.
fn reuse(service: &Service, plan: &mut Plan) {
    for gone in std::mem::take(&mut plan.delete) {
        let is_ours = is_controlled_by(&gone.metadata, uid(&service.metadata));
        let like = |new: &EndpointSlice| is_ours && new.address_type == gone.address_type;
        match plan.create.iter().rposition(like) {
            None => plan.delete.push(gone),
            Some(at) => {
                let new = plan.create.remove(at);
                let metadata = ObjectMeta { labels: new.metadata.labels.clone(), ..gone.metadata.clone() };
                plan.update.push(EndpointSlice { metadata, ..new });
            }
        }
    }
}

/// Distributes one group's endpoints so that few slices are written: those already in a slice stay there, new ones fill slices
/// that are written anyway, then one that has room for all that is left, then new slices.
fn fit(
    service: &Service,
    group: &Group,
    endpoints: Vec<Endpoint>,
    slices: Vec<&Arc<EndpointSlice>>,
    wanted_labels: &BTreeMap<String, String>,
    taken: &BTreeSet<&str>,
    plan: &mut Plan,
) {
    let key = |e: &Endpoint| {
        (e.target_ref.as_ref().and_then(|r| r.uid.clone()).unwrap_or_default(), e.addresses.clone())
    };
    let mut open: HashMap<_, Endpoint> = HashMap::new();
    let mut order = Vec::new();
    for endpoint in endpoints {
        order.push(key(&endpoint));
        open.insert(key(&endpoint), endpoint);
    }
    let mut kept: Vec<(&Arc<EndpointSlice>, Vec<Endpoint>)> = Vec::new();
    for slice in slices {
        let stay = slice
            .endpoints
            .iter()
            .flatten()
            .filter_map(|e| open.remove(&key(e)))
            .take(MAX_ENDPOINTS)
            .collect();
        kept.push((slice, stay));
    }
    let mut rest: Vec<Endpoint> = order.iter().filter_map(|k| open.remove(k)).collect();
    // The fullest first.
    kept.sort_by_key(|(_, list)| std::cmp::Reverse(list.len()));
    for (slice, list) in kept.iter_mut().filter(|(_, list)| !list.is_empty()) {
        let before = slice.endpoints.as_deref().unwrap_or_default();
        if before != list.as_slice() || labels(&slice.metadata) != wanted_labels {
            let room = MAX_ENDPOINTS.saturating_sub(list.len()).min(rest.len());
            list.extend(rest.drain(..room));
        }
    }
    let mut last = rest.split_off(rest.len() - rest.len() % MAX_ENDPOINTS);
    let fits = |list: &Vec<Endpoint>| !list.is_empty() && list.len() + last.len() <= MAX_ENDPOINTS;
    match kept.iter_mut().find(|(_, list)| fits(list)) {
        Some((_, list)) => list.append(&mut last),
        None => rest.append(&mut last),
    }
    for (_, list) in kept.iter_mut().filter(|(_, list)| list.is_empty()) {
        let room = MAX_ENDPOINTS.min(rest.len());
        list.extend(rest.drain(..room));
    }
    let nothing = order.is_empty();
    let mut placeholder = false;
    for (slice, list) in kept {
        if list.is_empty() && (!nothing || placeholder) {
            plan.delete.push(slice.clone());
            continue;
        }
        placeholder = true;
        let list = (!list.is_empty()).then_some(list);
        let same_endpoints =
            slice.endpoints.as_deref().unwrap_or_default() == list.as_deref().unwrap_or_default();
        if !same_endpoints || labels(&slice.metadata) != wanted_labels {
            let mut next = (**slice).clone();
            next.endpoints = list;
            next.metadata.labels = Some(wanted_labels.clone());
            plan.update.push(next);
        }
    }
    let mut number = 0;
    let mut chunks: Vec<Vec<Endpoint>> = rest.chunks(MAX_ENDPOINTS).map(<[_]>::to_vec).collect();
    if nothing && !placeholder {
        chunks.push(Vec::new());
    }
    for chunk in chunks {
        let slice_name = loop {
            let candidate = slice_name(&service.metadata, &format!("{group:?}\n{number}"));
            number += 1;
            if !taken.contains(candidate.as_str()) {
                break candidate;
            }
        };
        plan.create.push(new_slice(service, group, slice_name, chunk, wanted_labels));
    }
}

fn new_slice(
    service: &Service,
    (family, ports): &Group,
    slice_name: String,
    endpoints: Vec<Endpoint>,
    labels: &BTreeMap<String, String>,
) -> EndpointSlice {
    let ports: Vec<EndpointPort> = ports
        .iter()
        .map(|(name, protocol, number, application)| EndpointPort {
            name: Some(name.clone()),
            protocol: Some(protocol.clone()),
            port: Some(*number),
            app_protocol: (!application.is_empty()).then(|| application.clone()),
        })
        .collect();
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(slice_name),
            generate_name: Some(format!("{}-", name(&service.metadata))),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels.clone()),
            owner_references: Some(vec![controller_ref("v1", "Service", &service.metadata)]),
            ..Default::default()
        },
        address_type: family.clone(),
        endpoints: (!endpoints.is_empty()).then_some(endpoints),
        ports: (!ports.is_empty()).then_some(ports),
    }
}

fn group_of(slice: &EndpointSlice) -> Group {
    let mut ports: Vec<PortKey> = slice
        .ports
        .iter()
        .flatten()
        .map(|p| {
            let text = |t: &Option<String>| t.clone().unwrap_or_default();
            (text(&p.name), text(&p.protocol), p.port.unwrap_or(0), text(&p.app_protocol))
        })
        .collect();
    ports.sort();
    (slice.address_type.clone(), ports)
}

fn ports(service: &Service, pod: &Pod) -> Vec<PortKey> {
    let list = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
    let mut ports: Vec<PortKey> = list
        .filter_map(|p| {
            let number = target_port(pod, p)?;
            Some((
                p.name.clone().unwrap_or_default(),
                protocol(p).to_owned(),
                number,
                p.app_protocol.clone().unwrap_or_default(),
            ))
        })
        .collect();
    ports.sort();
    ports
}

/// The service's own labels, and those that say whose slice it is.
fn slice_labels(service: &Service) -> BTreeMap<String, String> {
    let mut result = labels(&service.metadata).clone();
    result.remove(HEADLESS);
    result.insert(SLICE_SERVICE.to_owned(), name(&service.metadata).to_owned());
    result.insert(SLICE_MANAGED_BY.to_owned(), MANAGER.to_owned());
    if is_headless(service) {
        result.insert(HEADLESS.to_owned(), String::new());
    }
    result
}

fn endpoint(service: &Service, pod: &Pod, ip: String, zone: impl Fn(&str) -> Option<String>) -> Endpoint {
    let serving = pods::is_ready(pod);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let node = Some(pods::node_name(pod).to_owned()).filter(|n| !n.is_empty());
    let ready = publishes_not_ready(service) || serving && !terminating;
    let zone = node.as_deref().and_then(zone);
    Endpoint {
        addresses: vec![ip],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname(pod, service),
        hints: if ready { hints(service, zone.as_deref(), node.as_deref()) } else { None },
        zone,
        node_name: node,
        target_ref: Some(pod_reference(pod)),
        ..Default::default()
    }
}

/// From where the service wants an endpoint to be used first, by its `trafficDistribution`.
fn hints(service: &Service, zone: Option<&str>, node: Option<&str>) -> Option<EndpointHints> {
    if topology::is_asked(service) {
        return None;
    }
    let near_nodes = match service.spec.as_ref()?.traffic_distribution.as_deref()? {
        "PreferSameNode" => true,
        "PreferClose" | "PreferSameZone" => false,
        _ => return None,
    };
    let for_zones = zone.map(|name| vec![ForZone { name: name.to_owned() }]);
    let for_nodes = node.filter(|_| near_nodes).map(|name| vec![ForNode { name: name.to_owned() }]);
    (for_zones.is_some() || for_nodes.is_some()).then_some(EndpointHints { for_zones, for_nodes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn service(spec: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "d", "uid": "u", "labels": {"app": "web"}}, "spec": spec}))
            .expect("service")
    }

    fn pod(number: usize, extra: Value) -> Arc<Pod> {
        let mut value = json!({
            "metadata": {"name": format!("p{number}"), "namespace": "d", "uid": format!("uid{number}")},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIP": format!("10.0.{}.{}", number / 250, number % 250),
                       "conditions": [{"type": "Ready", "status": "True"}]},
        });
        for (pointer, v) in extra.as_object().into_iter().flatten() {
            let (parent, key) = pointer.rsplit_once('/').expect("pointer");
            value.pointer_mut(parent).expect("parent")[key] = v.clone();
        }
        Arc::new(serde_json::from_value(value).expect("pod"))
    }

    fn named() -> Service {
        service(json!({"clusterIP": "10.96.0.1", "ipFamilies": ["IPv4"], "selector": {"app": "web"},
                       "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}]}))
    }

    fn apply(existing: &mut Vec<Arc<EndpointSlice>>, plan: Plan) {
        for gone in &plan.delete {
            existing.retain(|s| name(&s.metadata) != name(&gone.metadata));
        }
        for next in plan.update.into_iter().chain(plan.create) {
            existing.retain(|s| name(&s.metadata) != name(&next.metadata));
            existing.push(Arc::new(next));
        }
    }

    #[test]
    fn a_ready_pod_becomes_an_endpoint() {
        let plan = plan(&named(), &[pod(1, json!({}))], &[], |_| Some("z1".into()), None);
        assert_eq!((plan.create.len(), plan.update.len(), plan.delete.len()), (1, 0, 0));
        expect_test::expect![[r#"
            {
              "addressType": "IPv4",
              "apiVersion": "discovery.k8s.io/v1",
              "endpoints": [
                {
                  "addresses": [
                    "10.0.0.1"
                  ],
                  "conditions": {
                    "ready": true,
                    "serving": true,
                    "terminating": false
                  },
                  "nodeName": "n1",
                  "targetRef": {
                    "kind": "Pod",
                    "name": "p1",
                    "namespace": "d",
                    "uid": "uid1"
                  },
                  "zone": "z1"
                }
              ],
              "kind": "EndpointSlice",
              "metadata": {
                "generateName": "web-",
                "labels": {
                  "app": "web",
                  "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                  "kubernetes.io/service-name": "web"
                },
                "name": "web-stable",
                "namespace": "d",
                "ownerReferences": [
                  {
                    "apiVersion": "v1",
                    "blockOwnerDeletion": true,
                    "controller": true,
                    "kind": "Service",
                    "name": "web",
                    "uid": "u"
                  }
                ]
              },
              "ports": [
                {
                  "name": "http",
                  "port": 8080,
                  "protocol": "TCP"
                }
              ]
            }"#]]
        .assert_eq(&{
            let mut value = serde_json::to_value(&plan.create[0]).expect("json");
            assert!(
                value["metadata"]["name"].as_str().is_some_and(|n| n.len() == 9 && n.starts_with("web-"))
            );
            value["metadata"]["name"] = json!("web-stable");
            serde_json::to_string_pretty(&value).expect("text")
        });
    }

    #[test]
    fn conditions_tell_unready_and_terminating_apart() {
        let unready = pod(1, json!({"/status/conditions": []}));
        let going = pod(2, json!({"/metadata/deletionTimestamp": "2026-01-01T00:00:00Z"}));
        let ended = pod(3, json!({"/status/phase": "Succeeded"}));
        let all = [unready, going, ended];
        let conditions = |s: &Service| {
            let plan = plan(s, &all, &[], |_| None, None);
            let endpoints = plan.create[0].endpoints.clone().expect("endpoints");
            endpoints
                .iter()
                .map(|e| {
                    let c = e.conditions.clone().expect("conditions");
                    (c.ready == Some(true), c.serving == Some(true), c.terminating == Some(true))
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(conditions(&named()), [(false, false, false), (false, true, true)]);
        let mut publish = named();
        publish.spec.as_mut().expect("spec").publish_not_ready_addresses = Some(true);
        assert_eq!(conditions(&publish), [(true, false, false), (true, true, true)]);
    }

    #[test]
    fn slices_hold_at_most_a_hundred_and_settle() {
        let pods: Vec<_> = (0..250).map(|n| pod(n, json!({}))).collect();
        let mut slices = Vec::new();
        let first = plan(&named(), &pods, &slices, |_| None, None);
        apply(&mut slices, first);
        let mut sizes: Vec<_> = slices.iter().map(|s| s.endpoints.as_ref().map_or(0, Vec::len)).collect();
        sizes.sort_unstable();
        assert_eq!(sizes, [50, 100, 100]);
        let again = plan(&named(), &pods, &slices, |_| None, None);
        assert_eq!((again.create.len(), again.update.len(), again.delete.len()), (0, 0, 0));
        // One pod goes and one comes: one slice, or two when they lie apart, is written; none is made.
        let mut other = pods[1..].to_vec();
        other.push(pod(900, json!({})));
        let change = plan(&named(), &other, &slices, |_| None, None);
        assert_eq!((change.create.len(), change.delete.len()), (0, 0));
        assert!(change.update.len() <= 2, "{}", change.update.len());
        apply(&mut slices, change);
        let total: usize = slices.iter().map(|s| s.endpoints.as_ref().map_or(0, Vec::len)).sum();
        assert_eq!(total, 250);
    }

    #[test]
    fn without_pods_one_empty_slice_stays() {
        let mut slices = Vec::new();
        let first = plan(&named(), &[], &slices, |_| None, None);
        apply(&mut slices, first);
        assert_eq!(slices.len(), 1);
        assert!(slices[0].endpoints.is_none() && slices[0].ports.is_none());
        let empty = slices[0].metadata.clone();
        let second = plan(&named(), &[pod(1, json!({}))], &slices, |_| None, None);
        // The same slice, with other ports.
        assert_eq!((second.create.len(), second.update.len(), second.delete.len()), (0, 1, 0));
        apply(&mut slices, second);
        assert!(slices[0].ports.is_some());
        assert_eq!((slices.len(), &slices[0].metadata), (1, &empty));
        let mut other = slices.clone();
        Arc::make_mut(&mut other[0]).metadata.owner_references = None;
        let third = plan(&named(), &[], &other, |_| None, None);
        assert_eq!((third.create.len(), third.update.len(), third.delete.len()), (1, 0, 1), "not ours");
    }

    #[test]
    fn what_is_new_goes_into_one_slice_that_has_room_for_all_of_it() {
        let pods = |numbers: &[std::ops::Range<usize>]| -> Vec<_> {
            numbers.iter().cloned().flatten().map(|n| pod(n, json!({}))).collect()
        };
        let mut slices = Vec::new();
        let all = plan(&named(), &pods(&[0..100, 100..250]), &slices, |_| None, None);
        apply(&mut slices, all);
        // Ten leave each of the full ones.
        let mut left = vec![10..100, 110..200, 200..250];
        let fewer = plan(&named(), &pods(&left), &slices, |_| None, None);
        apply(&mut slices, fewer);
        left.push(250..270);
        let some = plan(&named(), &pods(&left), &slices, |_| None, None);
        let sizes: Vec<_> = some.update.iter().map(|s| s.endpoints.as_ref().map_or(0, Vec::len)).collect();
        assert_eq!((sizes, some.create.len()), (vec![70], 0));
        left.pop();
        left.push(250..310);
        let many = plan(&named(), &pods(&left), &slices, |_| None, None);
        assert_eq!((many.update.len(), many.create.len()), (0, 1), "more than any has room for");
    }

    #[test]
    fn hints_follow_the_traffic_distribution() {
        let hints = |distribution: &str, ready: &str| {
            let mut service = named();
            service.spec.as_mut().expect("spec").traffic_distribution = Some(distribution.to_owned());
            let pod = pod(1, json!({"/status/conditions": [{"type": "Ready", "status": ready}]}));
            let plan = plan(&service, &[pod], &[], |_| Some("z1".into()), None);
            let hints = plan.create[0].endpoints.as_ref().expect("endpoints")[0].hints.clone();
            hints.map(|h| serde_json::to_value(h).expect("json"))
        };
        let zone = json!({"forZones": [{"name": "z1"}]});
        assert_eq!(hints("PreferClose", "True"), Some(zone.clone()));
        assert_eq!(hints("PreferSameZone", "True"), Some(zone));
        let node = json!({"forZones": [{"name": "z1"}], "forNodes": [{"name": "n1"}]});
        assert_eq!(hints("PreferSameNode", "True"), Some(node));
        assert_eq!((hints("PreferClose", "False"), hints("other", "True")), (None, None));
    }
}
