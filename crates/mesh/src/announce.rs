//! Which node answers for a load balancer's address, and the task that has this node do so.
//!
//! Every node works out the same from the same caches: of the nodes that are ready, and with `externalTrafficPolicy: Local` have
//! an endpoint of the service, the one with the highest hash of its name and the address (rendezvous hashing), so that only the
//! addresses of a node that goes move. Two nodes that disagree for a moment both answer; either leads to the service.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use client::Client;
use client::traffic::{ServiceView, SliceView};
use k8s_openapi::api::core::v1::Node;
use network::announce::Announcer;
use tokio_util::sync::CancellationToken;

/// Nodes with this label answer for nothing.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// An announcement may get lost: it is made so often, so far apart.
const REPEATS: u32 = 3;
const REPEAT_AFTER: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(5);

/// Whether a node may answer for addresses.
fn is_eligible(node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref()).into_iter().flatten();
    let ready = conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True");
    ready
        && node.metadata.deletion_timestamp.is_none()
        && !labels.is_some_and(|labels| labels.contains_key(EXCLUDED))
}

/// The addresses of a service that the nodes are to answer for; those that are not of the cluster's own pool have announcers
/// of their own.
fn addresses(service: &ServiceView) -> impl Iterator<Item = IpAddr> + '_ {
    let more = service.more.iter().filter(|more| more.from_pool);
    more.flat_map(|more| more.ingress.iter().map(|ingress| ingress.ip))
}

/// Nodes with an endpoint of each service that answers, or drains.
fn nodes_of(slices: &[Arc<SliceView>]) -> BTreeMap<(&str, &str), BTreeSet<&str>> {
    let mut found: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
    for slice in slices {
        let Some(service) = slice.service.as_deref() else { continue };
        let serving = slice.endpoints.iter().filter(|endpoint| endpoint.serving);
        let nodes = serving.filter_map(|endpoint| endpoint.node.as_deref());
        found.entry((&slice.namespace, service)).or_default().extend(nodes);
    }
    found
}

/// The node that answers for an address.
fn holder<'a>(address: IpAddr, nodes: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    nodes.max_by_key(|node| (weight(address, node), *node))
}

/// The same on every node and in every release: FNV-1a, mixed so that names that differ little weigh differently (splitmix64).
fn weight(address: IpAddr, node: &str) -> u64 {
    let text = format!("{address} {node}");
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mixed = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// What the node called `own` answers for.
fn plan(
    own: &str,
    services: &[Arc<ServiceView>],
    nodes: &[Arc<Node>],
    slices: &[Arc<SliceView>],
) -> BTreeSet<IpAddr> {
    let eligible: Vec<&str> =
        nodes.iter().filter(|n| is_eligible(n)).filter_map(|n| n.metadata.name.as_deref()).collect();
    let endpoints = nodes_of(slices);
    let mut mine = BTreeSet::new();
    for service in services {
        let key = (&*service.namespace, &*service.name);
        let has_endpoint = |node: &&str| endpoints.get(&key).is_some_and(|nodes| nodes.contains(node));
        for address in addresses(service) {
            let candidates =
                eligible.iter().copied().filter(|node| !service.external_local || has_endpoint(node));
            if holder(address, candidates) == Some(own) {
                mine.insert(address);
            }
        }
    }
    mine
}

/// Answers for load balancers' addresses that are `own`'s to answer for, until `stop`; those stay announced when this ends, as
/// the rules that serve them do.
pub async fn run(
    client: Client,
    own: &str,
    announcer: Announcer,
    stop: CancellationToken,
) -> Result<(), network::Error> {
    let caches = client.caches();
    let (services, nodes, slices) = (caches.services(), caches.of::<Node>(), caches.endpoint_slices());
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        () = async { services.synced().await; nodes.synced().await; slices.synced().await } => {}
    }
    let (mut of_services, mut of_nodes, mut of_slices) =
        (services.subscribe(), nodes.subscribe(), slices.subscribe());
    let mut known: Option<BTreeSet<IpAddr>> = None;
    // addresses that are to be told again, and how often
    let mut untold: BTreeMap<IpAddr, u32> = BTreeMap::new();
    loop {
        while of_services.try_next().is_some() {}
        while of_nodes.try_next().is_some() {}
        while of_slices.try_next().is_some() {}
        let mine = plan(own, &services.list(), &nodes.list(), &slices.list());
        if known.as_ref() != Some(&mine) {
            match announcer.set(&mine).await {
                Ok(new) => {
                    for address in &new {
                        tracing::info!(%address, "this node answers for a load balancer's address");
                    }
                    untold.retain(|address, _| mine.contains(address));
                    untold.extend(new.into_iter().map(|address| (address, REPEATS)));
                    tell(&announcer, &mut untold).await;
                    known = Some(mine);
                }
                Err(error) => {
                    known = None;
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "load balancers' addresses are not announced");
                }
            }
        }
        let again = async {
            match (known.is_none(), untold.is_empty()) {
                (true, _) => tokio::time::sleep(RETRY).await,
                (false, false) => tokio::time::sleep(REPEAT_AFTER).await,
                (false, true) => std::future::pending().await,
            }
        };
        let alive = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            change = of_services.next() => change.is_some(),
            change = of_nodes.next() => change.is_some(),
            change = of_slices.next() => change.is_some(),
            () = again => {
                tell(&announcer, &mut untold).await;
                true
            }
        };
        if !alive {
            return Ok(());
        }
    }
}

async fn tell(announcer: &Announcer, untold: &mut BTreeMap<IpAddr, u32>) {
    for (address, left) in untold.iter_mut() {
        if let Err(error) = announcer.tell(*address).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, %address, "neighbours are not told of a load balancer's address");
        }
        *left -= 1;
    }
    untold.retain(|_, left| *left > 0);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, ready: &str, labels: serde_json::Value) -> Arc<Node> {
        let status = json!({"conditions": [{"type": "Ready", "status": ready}]});
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}, "status": status}))
                .unwrap(),
        )
    }

    const FROM_POOL: &str = "navarch.dev/LoadBalancerPool";

    fn service(spec: serde_json::Value, ip: &str) -> Arc<ServiceView> {
        let meta = json!({"namespace": "d", "name": "s"});
        let condition = json!({"type": FROM_POOL, "status": "True", "reason": "x", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let status = json!({"loadBalancer": {"ingress": [{"ip": ip}]}, "conditions": [condition]});
        Arc::new(serde_json::from_value(json!({"metadata": meta, "spec": spec, "status": status})).unwrap())
    }

    fn holders(services: &[Arc<ServiceView>], nodes: &[Arc<Node>], slices: &[Arc<SliceView>]) -> Vec<String> {
        let names = nodes.iter().filter_map(|n| n.metadata.name.clone());
        names.filter(|name| !plan(name, services, nodes, slices).is_empty()).collect()
    }

    #[test]
    fn one_ready_node_answers_and_another_when_it_goes() {
        let services = [service(json!({"type": "LoadBalancer"}), "192.0.2.200")];
        let mut nodes: Vec<_> = ["a", "b", "c"].map(|n| node(n, "True", json!({}))).to_vec();
        let first = holders(&services, &nodes, &[]);
        assert_eq!(first.len(), 1);
        let at = nodes.iter().position(|n| n.metadata.name.as_deref() == Some(&first[0])).unwrap();
        nodes[at] = node(&first[0], "Unknown", json!({}));
        let second = holders(&services, &nodes, &[]);
        assert!(second.len() == 1 && second != first, "{second:?}");
        nodes[at] = node(&first[0], "True", json!({EXCLUDED: ""}));
        assert_eq!(holders(&services, &nodes, &[]), second);
        nodes[at] = node(&first[0], "True", json!({}));
        assert_eq!(holders(&services, &nodes, &[]), first);
        let mut others = ServiceView::clone(&services[0]);
        others.more.as_mut().unwrap().from_pool = false;
        assert_eq!(holders(&[Arc::new(others)], &nodes, &[]), [""; 0]);
    }

    #[test]
    fn addresses_spread_over_the_nodes() {
        let nodes: Vec<_> = ["node-1", "node-2", "node-3"].map(|n| node(n, "True", json!({}))).to_vec();
        let services: Vec<_> =
            (0..60).map(|n| service(json!({"type": "LoadBalancer"}), &format!("192.0.2.{n}"))).collect();
        for name in ["node-1", "node-2", "node-3"] {
            let share = plan(name, &services, &nodes, &[]).len();
            assert!((10..=30).contains(&share), "{name} answers for {share} of 60");
        }
    }

    #[test]
    fn with_local_traffic_only_a_node_that_has_an_endpoint_answers() {
        let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"});
        let services = [service(spec, "192.0.2.200")];
        let nodes: Vec<_> = ["a", "b", "c"].map(|n| node(n, "True", json!({}))).to_vec();
        assert_eq!(holders(&services, &nodes, &[]), [""; 0]);
        for on in ["a", "b", "c"] {
            let endpoint = |node: &str, ready: bool| json!({"addresses": ["10.0.0.1"], "nodeName": node, "conditions": {"ready": ready, "serving": ready}});
            let others: Vec<_> =
                ["a", "b", "c"].iter().filter(|n| **n != on).map(|n| endpoint(n, false)).collect();
            let all: Vec<_> = others.into_iter().chain([endpoint(on, true)]).collect();
            let meta =
                json!({"namespace": "d", "name": "s-1", "labels": {"kubernetes.io/service-name": "s"}});
            let slice = json!({"metadata": meta, "addressType": "IPv4", "endpoints": all});
            let slices = [Arc::new(serde_json::from_value(slice).unwrap())];
            assert_eq!(holders(&services, &nodes, &slices), [on]);
        }
    }
}
