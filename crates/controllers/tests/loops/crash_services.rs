//! The crash test of services: their endpoints in both forms, mirrored ones, addresses of the pool, and ranges.
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use serde_json::{Value, json};

use crate::crash::{Story, at_every_write};
use crate::hollow::Hollow;
use crate::workloads::deployment;

/// Services that change, go, and hand an address on; a range that gives way to a wider one.
pub struct Services;

fn service(name: &str, spec: Value) -> Value {
    let mut service = json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        service["spec"][key] = value.clone();
    }
    service
}

fn endpoints(addresses: &[&str]) -> Value {
    let addresses: Vec<_> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    json!({"metadata": {"name": "db"}, "subsets": [{"addresses": addresses, "ports": [{"port": 80}]}]})
}

fn cidr(name: &str, cidr: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"cidrs": [cidr]}})
}

/// The slices of a service in the namespace: of each its port and its addresses.
fn slices(l: &[std::sync::Arc<EndpointSlice>], of: &str) -> Vec<(Option<i32>, Vec<String>)> {
    let ours = l.iter().filter(|s| {
        let labels = s.metadata.labels.as_ref();
        s.metadata.namespace.as_deref() == Some("d")
            && labels.and_then(|l| l.get("kubernetes.io/service-name")).is_some_and(|n| n == of)
    });
    ours.map(|s| {
        let port = s.ports.iter().flatten().next().and_then(|p| p.port);
        let mut addresses: Vec<_> = s.endpoints.iter().flatten().flat_map(|e| e.addresses.clone()).collect();
        addresses.sort();
        (port, addresses)
    })
    .collect()
}

/// The address that a service has of the pool, and whether it is marked so.
fn from_pool(l: &[std::sync::Arc<Service>], name: &str) -> (Option<String>, bool) {
    let service = l.iter().find(|s| s.metadata.name.as_deref() == Some(name));
    let status = service.and_then(|s| s.status.as_ref());
    let ingress = status.and_then(|s| s.load_balancer.as_ref()?.ingress.as_ref()?.first()?.ip.clone());
    let mut conditions = status.and_then(|s| s.conditions.as_ref()).into_iter().flatten();
    (ingress, conditions.any(|c| c.type_ == "navarch.dev/LoadBalancerPool"))
}

impl Story for Services {
    const WRITERS: &'static [&'static str] = &[
        "endpointslice-controller",
        "endpointslicemirroring-controller",
        "endpoint-controller",
        "service-controller",
        "service-cidrs-controller",
    ];

    fn prepare(cluster: &mut Hollow) {
        cluster.config.load_balancer_pool = Some("192.0.2.0/31".into());
    }

    async fn create(cluster: &Hollow) {
        cluster.create::<ServiceCIDR>("", cidr("more", "10.97.0.0/24")).await;
        let address = json!({"metadata": {"name": "10.97.0.5"},
            "spec": {"parentRef": {"resource": "services", "namespace": "d", "name": "s"}}});
        cluster.create::<IPAddress>("", address).await;
        cluster.create::<Deployment>("d", deployment("web", 2)).await;
        for name in ["web", "gone"] {
            cluster.create::<Service>("d", service(name, json!({"selector": {"app": "web"}}))).await;
        }
        cluster.create::<Service>("d", service("db", json!({}))).await;
        cluster.create::<Endpoints>("d", endpoints(&["198.51.100.1"])).await;
        for name in ["lb-0", "lb-1"] {
            cluster.create::<Service>("d", service(name, json!({"type": "LoadBalancer"}))).await;
        }
    }

    async fn up(cluster: &Hollow) {
        cluster
            .until::<EndpointSlice>("slices", |l| {
                let full = |name: &str, n| {
                    slices(l, name).first().is_some_and(|(_, addresses)| addresses.len() == n)
                };
                full("web", 2) && full("gone", 2) && full("db", 1)
            })
            .await;
        cluster
            .until::<Service>("addresses", |l| ["lb-0", "lb-1"].iter().all(|name| from_pool(l, name).1))
            .await;
    }

    async fn change(cluster: &Hollow) {
        let port = json!({"spec": {"ports": [{"port": 80, "targetPort": 8080}]}});
        cluster.merge::<Service>("d", "web", port).await;
        cluster.delete::<Service>("d", "gone", "Background").await;
        cluster.merge::<Endpoints>("d", "db", endpoints(&["198.51.100.1", "198.51.100.2"])).await;
        cluster.merge::<Service>("d", "lb-0", json!({"spec": {"type": "ClusterIP"}})).await;
        cluster.create::<Service>("d", service("lb-2", json!({"type": "LoadBalancer"}))).await;
        cluster.delete::<ServiceCIDR>("", "more", "Background").await;
        cluster.create::<ServiceCIDR>("", cidr("wide", "10.97.0.0/16")).await;
        // Past the time in which addresses of the range might still be given.
        cluster.clock.pass(20);
    }

    async fn end(cluster: &Hollow, what: &str) {
        cluster
            .until::<EndpointSlice>(what, |l| {
                let (web, db) = (slices(l, "web"), slices(l, "db"));
                let both = ["198.51.100.1".to_owned(), "198.51.100.2".to_owned()];
                slices(l, "gone").is_empty()
                    && web.len() == 1
                    && web[0].0 == Some(8080)
                    && web[0].1.len() == 2
                    && db == [(Some(80), both.to_vec())]
            })
            .await;
        cluster
            .until::<Endpoints>(what, |l| {
                let of = |name: &str| l.iter().find(|e| e.metadata.name.as_deref() == Some(name));
                let subsets = of("web").and_then(|e| e.subsets.clone()).unwrap_or_default();
                let ports = subsets.iter().flat_map(|s| s.ports.iter().flatten());
                let addresses = subsets.iter().flat_map(|s| s.addresses.iter().flatten());
                of("gone").is_none() && ports.map(|p| p.port).eq([8080]) && addresses.count() == 2
            })
            .await;
        cluster
            .until::<Service>(what, |l| {
                let [none, one, two] = ["lb-0", "lb-1", "lb-2"].map(|name| from_pool(l, name));
                let mut given = [one.0, two.0];
                given.sort();
                none == (None, false)
                    && (one.1, two.1) == (true, true)
                    && given == [Some("192.0.2.0".to_owned()), Some("192.0.2.1".to_owned())]
            })
            .await;
        cluster
            .until::<ServiceCIDR>(what, |l| {
                let ready = |c: &ServiceCIDR| {
                    let conditions = c.status.iter().flat_map(|s| s.conditions.iter().flatten());
                    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
                };
                l.iter().all(|c| c.metadata.name.as_deref() != Some("more") && ready(c))
                    && l.iter().any(|c| c.metadata.name.as_deref() == Some("wide"))
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_write_leaves_every_service_its_endpoints_and_its_address() {
    at_every_write::<Services>(17).await;
}
