//! Which node answers for a load balancer's address, and the task that has this node do so.
//!
//! Every node works out the same from the same caches: of the nodes that are ready, and with `externalTrafficPolicy: Local` have
//! an endpoint of the service, the one with the highest hash of its name and the address (rendezvous hashing), so that only the
//! addresses of a node that goes move. Two nodes that disagree for a moment both answer; either leads to the service.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use client::peers::NodeView;
use client::traffic::{ServiceView, SliceView};
use client::{Change, Client};
use network::announce::Announcer;
use tokio_util::sync::CancellationToken;

/// An announcement may get lost: it is made so often, so far apart.
const REPEATS: u32 = 3;
const REPEAT_AFTER: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(5);

/// What is known of the cluster, as far as it concerns addresses of the pool.
#[derive(Default)]
struct Known {
    /// The services that have some, by namespace and name.
    services: BTreeMap<(Box<str>, Box<str>), Arc<ServiceView>>,
    /// The nodes that may answer.
    nodes: BTreeSet<Box<str>>,
}

impl Known {
    /// Takes a change of a service in; whether it matters.
    fn service(&mut self, change: &Change<ServiceView>) -> bool {
        let service = change.object();
        let key = (service.namespace.clone(), service.name.clone());
        if matches!(change, Change::Deleted(_)) || addresses(service).next().is_none() {
            return self.services.remove(&key).is_some();
        }
        self.services.insert(key, service.clone()).as_ref() != Some(service)
    }

    /// Takes a change of a node in; whether it matters.
    fn node(&mut self, change: &Change<NodeView>) -> bool {
        let node = change.object();
        if !matches!(change, Change::Deleted(_)) && node.balances {
            self.nodes.insert(node.name.clone())
        } else {
            self.nodes.remove(&node.name)
        }
    }

    /// Whether a change of a slice matters: it does where only nodes with an endpoint answer.
    fn slice(&self, change: &Change<SliceView>) -> bool {
        let matters = |slice: &SliceView| {
            let service = slice.service.as_deref().map(|name| (slice.namespace.clone(), name.into()));
            service.and_then(|key| self.services.get(&key)).is_some_and(|service| service.external_local)
        };
        match change {
            Change::Added(slice) | Change::Deleted(slice) => matters(slice),
            Change::Modified { old, new } => matters(old) || matters(new),
        }
    }
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

/// What the node called `own` answers for. The slices count only where a service wants nodes with an endpoint.
fn plan(own: &str, known: &Known, slices: impl FnOnce() -> Vec<Arc<SliceView>>) -> BTreeSet<IpAddr> {
    let slices = if known.services.values().any(|s| s.external_local) { slices() } else { Vec::new() };
    let endpoints = nodes_of(&slices);
    let mut mine = BTreeSet::new();
    for ((namespace, name), service) in &known.services {
        let with_endpoint = endpoints.get(&(&**namespace, &**name));
        let has_endpoint = |node: &str| with_endpoint.is_some_and(|nodes| nodes.contains(node));
        for address in addresses(service) {
            let candidates = known.nodes.iter().map(|node| &**node);
            let candidates = candidates.filter(|node| !service.external_local || has_endpoint(node));
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
    let (services, nodes, slices) = (caches.services(), caches.peers(""), caches.endpoint_slices());
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        () = async { services.synced().await; nodes.synced().await; slices.synced().await } => {}
    }
    let (mut of_services, mut of_nodes, mut of_slices) =
        (services.subscribe(), nodes.subscribe(), slices.subscribe());
    let mut known = Known::default();
    // what the kernel was told, and whether that is still right
    let (mut told, mut is_right): (Option<BTreeSet<IpAddr>>, bool) = (None, false);
    // addresses that are to be told again, and how often
    let mut untold: BTreeMap<IpAddr, u32> = BTreeMap::new();
    loop {
        while let Some(change) = of_services.try_next() {
            is_right &= !known.service(&change);
        }
        while let Some(change) = of_nodes.try_next() {
            is_right &= !known.node(&change);
        }
        while let Some(change) = of_slices.try_next() {
            is_right &= !known.slice(&change);
        }
        let mine = if is_right { None } else { Some(plan(own, &known, || slices.list())) };
        if let Some(mine) = mine.filter(|mine| told.as_ref() != Some(mine)) {
            match announcer.set(&mine).await {
                Ok(new) => {
                    for address in &new {
                        tracing::info!(%address, "this node answers for a load balancer's address");
                    }
                    untold.retain(|address, _| mine.contains(address));
                    untold.extend(new.into_iter().map(|address| (address, REPEATS)));
                    tell(&announcer, &mut untold).await;
                    told = Some(mine);
                }
                Err(error) => {
                    told = None;
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "load balancers' addresses are not announced");
                }
            }
        }
        is_right = told.is_some();
        let again = async {
            match (told.is_none(), untold.is_empty()) {
                (true, _) => tokio::time::sleep(RETRY).await,
                (false, false) => tokio::time::sleep(REPEAT_AFTER).await,
                (false, true) => std::future::pending().await,
            }
        };
        let matters = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            change = of_services.next() => change.map(|change| known.service(&change)),
            change = of_nodes.next() => change.map(|change| known.node(&change)),
            change = of_slices.next() => change.map(|change| known.slice(&change)),
            () = again => {
                tell(&announcer, &mut untold).await;
                Some(false)
            }
        };
        let Some(matters) = matters else { return Ok(()) };
        is_right &= !matters;
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

    const FROM_POOL: &str = "navarch.dev/LoadBalancerPool";

    fn service(spec: serde_json::Value, ip: &str) -> Arc<ServiceView> {
        let meta = json!({"namespace": "d", "name": "s"});
        let condition = json!({"type": FROM_POOL, "status": "True", "reason": "x", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let status = json!({"loadBalancer": {"ingress": [{"ip": ip}]}, "conditions": [condition]});
        Arc::new(serde_json::from_value(json!({"metadata": meta, "spec": spec, "status": status})).unwrap())
    }

    fn known(services: &[Arc<ServiceView>], nodes: &[&str]) -> Known {
        let mut known = Known::default();
        services.iter().for_each(|service| assert!(known.service(&Change::Added(service.clone()))));
        nodes.iter().for_each(|node| assert!(known.node(&Change::Added(view(node, true)))));
        known
    }

    fn view(name: &str, balances: bool) -> Arc<NodeView> {
        Arc::new(NodeView { name: name.into(), balances, ..NodeView::default() })
    }

    fn holders(known: &Known, slices: &[Arc<SliceView>]) -> Vec<&'static str> {
        ["a", "b", "c"].into_iter().filter(|name| !plan(name, known, || slices.to_vec()).is_empty()).collect()
    }

    #[test]
    fn one_ready_node_answers_and_another_when_it_goes() {
        let service = service(json!({"type": "LoadBalancer"}), "192.0.2.200");
        let mut known = known(std::slice::from_ref(&service), &["a", "b", "c"]);
        let first = holders(&known, &[]);
        assert_eq!(first.len(), 1);
        let change = |from, to| Change::Modified { old: view(first[0], from), new: view(first[0], to) };
        assert!(known.node(&change(true, false)));
        let second = holders(&known, &[]);
        assert!(second.len() == 1 && second != first, "{second:?}");
        assert!(known.node(&change(false, true)));
        assert_eq!(holders(&known, &[]), first);
        let mut others = ServiceView::clone(&service);
        others.more.as_mut().unwrap().from_pool = false;
        assert!(known.service(&Change::Modified { old: service, new: Arc::new(others) }));
        assert_eq!(holders(&known, &[]), [""; 0]);
    }

    #[test]
    fn heartbeats_services_without_an_address_and_slices_of_others_do_not_matter() {
        let local = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"});
        let slice = |service: &str| -> Arc<SliceView> {
            let labels = json!({"kubernetes.io/service-name": service});
            let meta = json!({"namespace": "d", "name": "x", "labels": labels});
            Arc::new(serde_json::from_value(json!({"metadata": meta, "addressType": "IPv4"})).unwrap())
        };
        let mut known = known(&[service(local, "192.0.2.200")], &["a"]);
        assert!(!known.node(&Change::Modified { old: view("a", true), new: view("a", true) }));
        assert!(!known.node(&Change::Added(view("b", false))));
        let plain = json!({"metadata": {"namespace": "d", "name": "plain"}, "spec": {}});
        assert!(!known.service(&Change::Added(Arc::new(serde_json::from_value(plain).unwrap()))));
        assert!(!known.slice(&Change::Added(slice("plain"))));
        assert!(known.slice(&Change::Modified { old: slice("s"), new: slice("plain") }));
    }

    #[test]
    fn addresses_spread_over_the_nodes() {
        let names = ["node-1", "node-2", "node-3"];
        let service = |n: usize| {
            let mut service =
                ServiceView::clone(&service(json!({"type": "LoadBalancer"}), &format!("192.0.2.{n}")));
            service.name = n.to_string().into();
            Arc::new(service)
        };
        let known = known(&(0..60).map(service).collect::<Vec<_>>(), &names);
        for name in names {
            let share = plan(name, &known, Vec::new).len();
            assert!((10..=30).contains(&share), "{name} answers for {share} of 60");
        }
    }

    #[test]
    fn with_local_traffic_only_a_node_that_has_an_endpoint_answers() {
        let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"});
        let known = known(&[service(spec, "192.0.2.200")], &["a", "b", "c"]);
        assert_eq!(holders(&known, &[]), [""; 0]);
        for on in ["a", "b", "c"] {
            let endpoint = |node: &str, ready: bool| json!({"addresses": ["10.0.0.1"], "nodeName": node, "conditions": {"ready": ready, "serving": ready}});
            let others: Vec<_> =
                ["a", "b", "c"].iter().filter(|n| **n != on).map(|n| endpoint(n, false)).collect();
            let all: Vec<_> = others.into_iter().chain([endpoint(on, true)]).collect();
            let meta =
                json!({"namespace": "d", "name": "s-1", "labels": {"kubernetes.io/service-name": "s"}});
            let slice = json!({"metadata": meta, "addressType": "IPv4", "endpoints": all});
            let slices = [Arc::new(serde_json::from_value(slice).unwrap())];
            assert_eq!(holders(&known, &slices), [on]);
        }
    }
}
