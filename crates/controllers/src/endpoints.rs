//! Endpoints: the older form of endpoint slices, one object per service, cut at 1000 addresses.
use std::collections::BTreeMap;

use client::events::{EventType, reference};
use client::{Cache, Change, DeleteOptions};
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::ownership::{annotations, labels, name};
use crate::pods;
use crate::runner::{Context, Failure, ObjectKey, Outcome, Reconcile, Runner, has_cause};
use crate::service_pods::{
    self, HEADLESS, address, hostname, is_headless, pod_reference, protocol, publishes_not_ready, target_port,
};
use crate::trigger_times::{self, TriggerTimes};

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Addresses in one Endpoints object.
const CAPACITY: usize = 1000;

struct Controller {
    context: Context,
    services: Cache<Service>,
    pods: Cache<Pod>,
    endpoints: Cache<Endpoints>,
    times: TriggerTimes,
}

pub(crate) async fn run(context: Context) {
    let caches = context.reader.caches();
    let (services, pods, endpoints) = (caches.of::<Service>(), caches.of::<Pod>(), caches.of::<Endpoints>());
    let controller = Controller {
        context: context.clone(),
        services: services.clone(),
        pods: pods.clone(),
        endpoints: endpoints.clone(),
        times: TriggerTimes::default(),
    };
    Runner::new(&context, controller)
        .on(&services, |_, change| [ObjectKey::of(&change.object().metadata)])
        .on(&pods, |c: &Controller, change| service_pods::services_of(&c.services, change))
        .on(&endpoints, |c: &Controller, change| {
            let meta = &change.object().metadata;
            // At the start: those whose service is gone. Later: those that someone deleted or changed.
            let left_over = c.services.get(crate::ownership::namespace(meta), name(meta)).is_none();
            (left_over || !matches!(change, Change::Added(_))).then(|| ObjectKey::of(meta))
        })
        .run(5)
        .await;
}

impl Reconcile for Controller {
    type Key = ObjectKey;

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, Failure> {
        let client = &self.context.client;
        let current = self.endpoints.get(&key.namespace, &key.name);
        let Some(service) = self.services.get(&key.namespace, &key.name) else {
            self.times.forget(key);
            // Endpoints carry no owner reference; ours end with their service.
            let Some(current) = current else { return Ok(Outcome::Settled) };
            if labels(&current.metadata).get(MANAGED_BY).is_none_or(|v| v != MANAGER) {
                return Ok(Outcome::Settled);
            }
            let options = DeleteOptions { uid: current.metadata.uid.clone(), ..DeleteOptions::default() };
            return match client.delete::<Endpoints>(&key.namespace, &key.name, &options).await {
                Ok(()) => Ok(Outcome::Settled),
                Err(e) if e.is_not_found() || e.is_conflict() => Ok(Outcome::Settled),
                Err(e) => Err(e.into()),
            };
        };
        if !service_pods::selects(&service) || service.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Settled);
        }
        let pods = service_pods::of_service(&service, &self.pods);
        let since = self.times.look(key, &service, &pods);
        let mut wanted = desired(&service, pods.iter().map(|p| &**p), current.as_deref());
        if current.as_ref().is_some_and(|current| **current == wanted) {
            return Ok(Outcome::Settled);
        }
        trigger_times::note(&mut wanted.metadata, since);
        let (result, reason, what) = match current {
            Some(_) => {
                let result = client.update(&key.namespace, &wanted).await;
                (result, "FailedToUpdateEndpoint", "Failed to update endpoint")
            }
            None => {
                let result = client.create(&key.namespace, &wanted).await;
                (result, "FailedToCreateEndpoint", "Failed to create endpoint for service")
            }
        };
        match result {
            Ok(_) => Ok(Outcome::Settled),
            Err(e) if has_cause(&e, "NamespaceTerminating") => Ok(Outcome::Settled),
            Err(e) => {
                // A race is no news for the user.
                if !e.is_conflict() && !e.is_already_exists() {
                    let message = format!("{what} {}/{}: {e}", key.namespace, key.name);
                    self.context.recorder.event(&reference(&wanted), EventType::Warning, reason, message);
                }
                Err(e.into())
            }
        }
    }
}

/// The object as it shall be; what others wrote into its metadata stays.
fn desired<'a>(
    service: &Service,
    pods: impl Iterator<Item = &'a Pod>,
    current: Option<&Endpoints>,
) -> Endpoints {
    let family = service
        .spec
        .as_ref()
        .and_then(|s| s.ip_families.as_ref()?.first().cloned())
        .unwrap_or_else(|| "IPv4".to_owned());
    type Ports = Vec<(Option<String>, i32, String, Option<String>)>;
    let mut groups: BTreeMap<Ports, (Vec<EndpointAddress>, Vec<EndpointAddress>)> = BTreeMap::new();
    for pod in pods.filter(|p| !pods::is_terminal(p)) {
        let publish = publishes_not_ready(service);
        if pod.metadata.deletion_timestamp.is_some() && !publish {
            continue;
        }
        let Some(ip) = address(pod, &family) else { continue };
        let mut ports: Ports = Vec::new();
        for port in service.spec.iter().flat_map(|s| s.ports.iter().flatten()) {
            if let Some(number) = target_port(pod, port) {
                ports.push((port.name.clone(), number, protocol(port).to_owned(), port.app_protocol.clone()));
            }
        }
        if ports.is_empty() && !is_headless(service) {
            continue;
        }
        ports.sort();
        let address = EndpointAddress {
            ip,
            hostname: hostname(pod, service),
            node_name: Some(pods::node_name(pod).to_owned()).filter(|n| !n.is_empty()),
            target_ref: Some(pod_reference(pod)),
        };
        let (ready, not_ready) = groups.entry(ports).or_default();
        if publish || pods::is_ready(pod) { ready.push(address) } else { not_ready.push(address) }
    }
    let truncated = truncate(groups.values_mut());
    let list = |mut l: Vec<EndpointAddress>| {
        l.sort_by(|a, b| a.ip.cmp(&b.ip));
        (!l.is_empty()).then_some(l)
    };
    let subsets: Vec<EndpointSubset> = groups
        .into_iter()
        .filter(|(_, (ready, not_ready))| !ready.is_empty() || !not_ready.is_empty())
        .map(|(ports, (ready, not_ready))| EndpointSubset {
            addresses: list(ready),
            not_ready_addresses: list(not_ready),
            ports: (!ports.is_empty()).then(|| {
                let port = |(name, port, protocol, app_protocol)| EndpointPort {
                    name,
                    port,
                    protocol: Some(protocol),
                    app_protocol,
                };
                ports.into_iter().map(port).collect()
            }),
        })
        .collect();
    let mut labels = labels(&service.metadata).clone();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let mut metadata = current.map_or_else(
        || ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            ..Default::default()
        },
        |c| c.metadata.clone(),
    );
    let mut notes = annotations(&metadata).clone();
    notes.remove(OVER_CAPACITY);
    if truncated {
        notes.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    }
    metadata.annotations = (!notes.is_empty()).then_some(notes);
    metadata.labels = Some(labels);
    Endpoints { metadata, subsets: (!subsets.is_empty()).then_some(subsets) }
}

/// Cuts to the capacity: addresses that are not ready first, and each group in proportion to what it has.
fn truncate<'a>(groups: impl Iterator<Item = &'a mut (Vec<EndpointAddress>, Vec<EndpointAddress>)>) -> bool {
    let mut groups: Vec<_> = groups.collect();
    let ready: usize = groups.iter().map(|g| g.0.len()).sum();
    let not_ready: usize = groups.iter().map(|g| g.1.len()).sum();
    if ready + not_ready <= CAPACITY {
        return false;
    }
    let (total, room) = if ready > CAPACITY { (ready, CAPACITY) } else { (not_ready, CAPACITY - ready) };
    let mut left = room;
    for group in &mut groups {
        let list = if ready > CAPACITY {
            group.1.clear();
            &mut group.0
        } else {
            &mut group.1
        };
        // Rounded up, so that the last group gets what is left.
        let share = (list.len() * room).div_ceil(total).min(left);
        list.truncate(share);
        left -= share;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service() -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "d"}, "spec": {
            "clusterIP": "10.96.0.1", "ipFamilies": ["IPv4"], "selector": {"a": "b"},
            "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP"}]}}))
        .expect("service")
    }

    fn pod(number: usize, ready: bool) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": format!("p{number}"), "uid": format!("u{number}")},
            "spec": {"nodeName": "n", "containers": []},
            "status": {"phase": "Running", "podIP": format!("10.1.{}.{}", number / 250, number % 250),
                       "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}}))
        .expect("pod")
    }

    #[test]
    fn ready_and_unready_addresses_are_apart() {
        let pods = [pod(1, true), pod(2, false)];
        let made = desired(&service(), pods.iter(), None);
        let subset = &made.subsets.as_ref().expect("subsets")[0];
        assert_eq!(subset.addresses.as_ref().map(Vec::len), Some(1));
        assert_eq!(subset.not_ready_addresses.as_ref().map(Vec::len), Some(1));
        assert_eq!(desired(&service(), pods.iter(), Some(&made)), made);
    }

    #[test]
    fn over_capacity_drops_the_unready_first_and_says_so() {
        let pods: Vec<_> = (0..1100).map(|n| pod(n, n % 11 != 0)).collect();
        let made = desired(&service(), pods.iter(), None);
        let subset = &made.subsets.as_ref().expect("subsets")[0];
        assert_eq!(subset.addresses.as_ref().map(Vec::len), Some(1000));
        assert_eq!(subset.not_ready_addresses, None);
        assert_eq!(annotations(&made.metadata)[OVER_CAPACITY], "truncated");
    }

    #[test]
    fn what_is_over_capacity_is_cut_in_proportion() {
        let check = |groups: [(usize, usize); 2], want: [(usize, usize); 2]| {
            let list = |n: usize| vec![EndpointAddress::default(); n];
            let mut groups = groups.map(|(ready, not_ready)| (list(ready), list(not_ready)));
            let cut = truncate(groups.iter_mut());
            assert_eq!(groups.map(|(ready, not_ready)| (ready.len(), not_ready.len())), want);
            cut
        };
        assert!(!check([(500, 300), (100, 100)], [(500, 300), (100, 100)]));
        assert!(check([(1500, 10), (500, 10)], [(750, 0), (250, 0)]));
        assert!(check([(900, 150), (0, 50)], [(900, 75), (0, 25)]));
        assert!(check([(1, 0), (2000, 0)], [(1, 0), (999, 0)]));
    }
}
