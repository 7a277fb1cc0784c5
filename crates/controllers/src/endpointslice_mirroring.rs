//! Endpoint slice mirroring: Endpoints that somebody makes by hand for a service without selector, as slices, which is what
//! proxies read. One slice to a set of ports and an address family, of at most 1000 addresses.
//!
//! Rules: <https://kubernetes.io/docs/concepts/services-networking/service/#endpointslice-mirroring>.
use std::collections::BTreeMap;
use std::net::IpAddr;

use client::events::{EventType, reference};
use client::{Cache, Change, DeleteOptions};
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::ownership::{annotations, controller_ref, labels, name, namespace};
use crate::runner::{Context, Failure, ObjectKey, Outcome, Reconcile, Runner, has_cause};
use crate::service_pods::{SLICE_MANAGED_BY, SLICE_SERVICE, slice_name};
use crate::trigger_times::TRIGGER_TIME;

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Endpoints that are the lock of an election are none of a service.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations that say something about the Endpoints object itself.
const OWN: [&str; 2] = [TRIGGER_TIME, "kubectl.kubernetes.io/last-applied-configuration"];
/// Addresses of one subset that are mirrored.
const CAPACITY: usize = 1000;

struct Controller {
    context: Context,
    services: Cache<Service>,
    endpoints: Cache<Endpoints>,
    slices: Cache<EndpointSlice>,
}

pub(crate) async fn run(context: Context) {
    let caches = context.reader.caches();
    let (services, endpoints) = (caches.of::<Service>(), caches.of::<Endpoints>());
    let slices = caches.of::<EndpointSlice>();
    let controller = Controller {
        context: context.clone(),
        services: services.clone(),
        endpoints: endpoints.clone(),
        slices: slices.clone(),
    };
    Runner::new(&context, controller)
        .on(&endpoints, |c: &Controller, change| {
            let meta = &change.object().metadata;
            let key = ObjectKey::of(meta);
            // Those of services with a selector are none of ours, and change often.
            let others = c.services.get(&key.namespace, &key.name).is_some_and(|s| has_selector(&s));
            (!others).then_some(key)
        })
        .on(&services, |_, change| match change {
            Change::Modified { old, new } if has_selector(old) == has_selector(new) => None,
            change => Some(ObjectKey::of(&change.object().metadata)),
        })
        .on(&slices, |_, change| {
            let meta = &change.object().metadata;
            // What we wrote ourselves comes back as Added or Modified; at the start those whose Endpoints are gone count.
            is_ours(meta)
                .then(|| ObjectKey::new(namespace(meta), labels(meta).get(SLICE_SERVICE).map_or("", |s| s)))
        })
        .run(5)
        .await;
}

fn has_selector(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|s| s.selector.is_some())
}

fn is_ours(slice: &ObjectMeta) -> bool {
    labels(slice).get(SLICE_MANAGED_BY).is_some_and(|v| v == MANAGER)
}

fn is_mirrored(endpoints: &Endpoints, service: Option<&Service>) -> bool {
    labels(&endpoints.metadata).get(SKIP).is_none_or(|v| v != "true")
        && !annotations(&endpoints.metadata).contains_key(LEADER)
        && service.is_some_and(|s| !has_selector(s))
}

impl Reconcile for Controller {
    type Key = ObjectKey;

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, Failure> {
        let client = &self.context.client;
        let mut existing = self.slices.list_ns(&key.namespace);
        existing.retain(|s| {
            is_ours(&s.metadata)
                && labels(&s.metadata).get(SLICE_SERVICE) == Some(&key.name)
                && s.metadata.deletion_timestamp.is_none()
        });
        let service = self.services.get(&key.namespace, &key.name);
        let endpoints = self.endpoints.get(&key.namespace, &key.name);
        let endpoints = endpoints.filter(|e| is_mirrored(e, service.as_deref()));
        let mut wanted = Vec::new();
        if let Some(endpoints) = endpoints.filter(|e| e.metadata.deletion_timestamp.is_none()) {
            let mirror = mirror(&endpoints);
            self.tell(&endpoints, &mirror);
            wanted = mirror.slices;
        }
        for mut slice in wanted {
            let same = |s: &EndpointSlice| group_of(s) == group_of(&slice);
            let result = match existing.iter().position(|s| same(s)) {
                None => client.create(&key.namespace, &slice).await,
                Some(at) => {
                    let old = existing.swap_remove(at);
                    let metadata = ObjectMeta {
                        labels: slice.metadata.labels.take(),
                        annotations: slice.metadata.annotations.take(),
                        ..old.metadata.clone()
                    };
                    slice.metadata = metadata;
                    if *old == slice {
                        continue;
                    }
                    client.update(&key.namespace, &slice).await
                }
            };
            match result {
                Ok(_) => {}
                Err(e) if has_cause(&e, "NamespaceTerminating") => return Ok(Outcome::Settled),
                Err(e) => return Err(e.into()),
            }
        }
        for slice in existing {
            let options = DeleteOptions { uid: slice.metadata.uid.clone(), ..DeleteOptions::default() };
            match client.delete::<EndpointSlice>(&key.namespace, name(&slice.metadata), &options).await {
                Ok(()) => {}
                Err(e) if e.is_not_found() => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(Outcome::Settled)
    }
}

impl Controller {
    fn tell(&self, endpoints: &Endpoints, mirror: &Mirror) {
        let warn = |reason, message| {
            self.context.recorder.event(&reference(endpoints), EventType::Warning, reason, message);
        };
        if mirror.invalid > 0 {
            let text =
                format!("Skipped {} invalid IP addresses when mirroring to EndpointSlices", mirror.invalid);
            warn("InvalidIPAddress", text);
        }
        if mirror.skipped > mirror.invalid {
            let text = format!(
                "A max of {CAPACITY} addresses can be mirrored to EndpointSlices per Endpoints subset. {} addresses were skipped",
                mirror.skipped
            );
            warn("TooManyAddressesToMirror", text);
        }
    }
}

/// The slices that Endpoints stand for, and how many addresses are left out.
#[derive(Debug, Default)]
struct Mirror {
    slices: Vec<EndpointSlice>,
    invalid: usize,
    /// With those that are invalid.
    skipped: usize,
}

/// Address family and ports: what a slice's endpoints share.
type Group = (String, Vec<(String, String, Option<i32>, Option<String>)>);

fn group_of(slice: &EndpointSlice) -> Group {
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    let ports = slice.ports.iter().flatten();
    let mut ports: Vec<_> =
        ports.map(|p| (text(&p.name), text(&p.protocol), p.port, p.app_protocol.clone())).collect();
    ports.sort();
    (slice.address_type.clone(), ports)
}

fn mirror(endpoints: &Endpoints) -> Mirror {
    let mut result = Mirror::default();
    let mut groups: BTreeMap<Group, EndpointSlice> = BTreeMap::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ready = subset.addresses.iter().flatten().map(|a| (a, true));
        let all: Vec<_> =
            ready.chain(subset.not_ready_addresses.iter().flatten().map(|a| (a, false))).collect();
        let mut added = 0;
        for (address, ready) in &all {
            if added >= CAPACITY {
                break;
            }
            let Ok(ip) = address.ip.parse::<IpAddr>() else {
                result.invalid += 1;
                continue;
            };
            added += 1;
            let slice = empty(endpoints, subset, if ip.is_ipv4() { "IPv4" } else { "IPv6" });
            let slice = groups.entry(group_of(&slice)).or_insert(slice);
            slice.endpoints.get_or_insert_default().push(endpoint(address, ip, *ready));
        }
        result.skipped += all.len() - added;
    }
    for (group, mut slice) in groups {
        // The order says nothing: the same addresses must be the same slice.
        slice.endpoints.iter_mut().for_each(|l| l.sort_by(|a, b| a.addresses.cmp(&b.addresses)));
        slice.metadata.name = Some(slice_name(&endpoints.metadata, &format!("{group:?}")));
        result.slices.push(slice);
    }
    result
}

fn empty(endpoints: &Endpoints, subset: &EndpointSubset, family: &str) -> EndpointSlice {
    let meta = &endpoints.metadata;
    let mut all_labels = labels(meta).clone();
    all_labels.insert(SLICE_SERVICE.to_owned(), name(meta).to_owned());
    all_labels.insert(SLICE_MANAGED_BY.to_owned(), MANAGER.to_owned());
    let mut notes = annotations(meta).clone();
    notes.retain(|key, _| !OWN.contains(&key.as_str()));
    let ports = subset.ports.iter().flatten().map(|p| EndpointPort {
        name: Some(p.name.clone().unwrap_or_default()),
        port: Some(p.port),
        protocol: Some(p.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
        app_protocol: p.app_protocol.clone(),
    });
    let ports: Vec<_> = ports.collect();
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", name(meta))),
            namespace: meta.namespace.clone(),
            labels: Some(all_labels),
            annotations: (!notes.is_empty()).then_some(notes),
            owner_references: Some(vec![controller_ref("v1", "Endpoints", meta)]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        endpoints: None,
        ports: (!ports.is_empty()).then_some(ports),
    }
}

fn endpoint(address: &EndpointAddress, ip: IpAddr, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone().filter(|h| !h.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check(subsets: Value) -> Mirror {
        let endpoints = json!({"metadata": {"name": "db", "namespace": "d", "uid": "u", "labels": {"a": "b"},
            "annotations": {"note": "x", OWN[0]: "t", OWN[1]: "{}"}}, "subsets": subsets});
        mirror(&serde_json::from_value(endpoints).expect("endpoints"))
    }

    #[test]
    fn ports_and_families_have_slices_of_their_own() {
        let made = check(json!([
            {"addresses": [{"ip": "10.0.0.2", "hostname": "two"}, {"ip": "fd00::1"}, {"ip": "10.0.0.999"}],
             "notReadyAddresses": [{"ip": "10.0.0.1", "nodeName": "n"}], "ports": [{"port": 80, "protocol": "TCP"}]},
            {"addresses": [{"ip": "10.0.0.3"}], "ports": [{"port": 80, "protocol": "TCP"}]},
            {"addresses": [{"ip": "10.0.0.2"}], "ports": [{"name": "db", "port": 81}]}]));
        let show = |s: &EndpointSlice| {
            let ports: Vec<_> = s.ports.iter().flatten().filter_map(|p| p.port).collect();
            let endpoints = s.endpoints.iter().flatten();
            let ready = |e: &Endpoint| e.conditions.as_ref().and_then(|c| c.ready) == Some(true);
            let endpoints: Vec<_> = endpoints.map(|e| format!("{} {}", e.addresses[0], ready(e))).collect();
            format!("{} {ports:?} {endpoints:?}", s.address_type)
        };
        let mut shown: Vec<_> = made.slices.iter().map(show).collect();
        shown.sort();
        expect_test::expect![[r#"
            IPv4 [80] ["10.0.0.1 false", "10.0.0.2 true", "10.0.0.3 true"]
            IPv4 [81] ["10.0.0.2 true"]
            IPv6 [80] ["fd00::1 true"]"#]]
        .assert_eq(&shown.join("\n"));
        assert_eq!((made.invalid, made.skipped), (1, 1));
        let meta = &made.slices[0].metadata;
        assert_eq!(annotations(meta).keys().collect::<Vec<_>>(), ["note"]);
        assert_eq!(labels(meta).get("a").map(String::as_str), Some("b"));
    }

    #[test]
    fn a_subset_is_cut_at_a_thousand_addresses() {
        let all: Vec<_> = (0..1005).map(|n| json!({"ip": format!("10.0.{}.{}", n / 250, n % 250)})).collect();
        let made = check(json!([{"addresses": all, "ports": [{"port": 80}]}]));
        assert_eq!(made.slices[0].endpoints.as_ref().map(Vec::len), Some(1000));
        assert_eq!((made.slices.len(), made.invalid, made.skipped), (1, 0, 5));
    }
}
