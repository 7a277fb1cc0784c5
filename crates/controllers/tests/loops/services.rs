//! Endpoints and what every namespace is given.
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use crate::hollow::Hollow;
use crate::workloads::deployment;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_finds_its_pods_and_loses_them() {
    let cluster = Hollow::start().await;
    let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}});
    cluster.create::<Service>("d", service).await;
    cluster.create::<Deployment>("d", deployment("web", 120)).await;
    let of_web = |s: &EndpointSlice| {
        s.metadata.labels.as_ref().and_then(|l| l.get("kubernetes.io/service-name").cloned()).as_deref()
            == Some("web")
    };
    let ready = |l: &[std::sync::Arc<EndpointSlice>]| {
        let endpoints = l.iter().filter(|s| of_web(s)).flat_map(|s| s.endpoints.iter().flatten());
        endpoints.filter(|e| e.conditions.as_ref().is_some_and(|c| c.ready == Some(true))).count()
    };
    let slices = cluster.until::<EndpointSlice>("120 ready endpoints", |l| ready(l) == 120).await;
    let slices: Vec<_> = slices.into_iter().filter(|s| of_web(s)).collect();
    assert_eq!(slices.len(), 2);
    let first = &slices[0].endpoints.as_ref().expect("endpoints")[0];
    assert_eq!((first.node_name.as_deref(), first.zone.as_deref()), (Some("n1"), Some("z1")));
    let addresses = |l: &[std::sync::Arc<Endpoints>]| {
        let web = l.iter().find(|e| e.metadata.name.as_deref() == Some("web"));
        web.and_then(|e| e.subsets.as_ref())
            .map_or(0, |s| s.iter().map(|s| s.addresses.as_ref().map_or(0, Vec::len)).sum())
    };
    cluster.until::<Endpoints>("120 addresses", |l| addresses(l) == 120).await;
    cluster.merge::<Deployment>("d", "web", json!({"spec": {"replicas": 0}})).await;
    cluster.until::<Pod>("no pods", |l| l.is_empty()).await;
    cluster
        .until::<EndpointSlice>("one empty slice", |l| {
            let web: Vec<_> = l.iter().filter(|s| of_web(s)).collect();
            web.len() == 1 && web[0].endpoints.as_ref().is_none_or(Vec::is_empty)
        })
        .await;
    cluster.delete::<Service>("d", "web", "Background").await;
    cluster.until::<EndpointSlice>("no slices", |l| !l.iter().any(|s| of_web(s))).await;
    cluster
        .until::<Endpoints>("no endpoints", |l| !l.iter().any(|e| e.metadata.name.as_deref() == Some("web")))
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_say_since_when_they_were_to_change() {
    const SINCE: &str = "endpoints.kubernetes.io/last-change-trigger-time";
    let cluster = Hollow::start().await;
    let service =
        json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    let service = cluster.create::<Service>("d", service).await;
    let made = service.metadata.creation_timestamp.expect("time").0.to_string();
    let since = |meta: &ObjectMeta| {
        let notes = meta.annotations.as_ref();
        (meta.namespace.as_deref() == Some("d")).then(|| notes.and_then(|n| n.get(SINCE).cloned())).flatten()
    };
    let is_made = |meta: &ObjectMeta| since(meta).as_ref() == Some(&made);
    cluster.until::<EndpointSlice>("since it was made", |l| l.iter().any(|s| is_made(&s.metadata))).await;
    cluster.until::<Endpoints>("since it was made", |l| l.iter().any(|e| is_made(&e.metadata))).await;
    cluster.create::<Deployment>("d", deployment("web", 1)).await;
    let ready = |p: &Pod| {
        let conditions = p.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let ready = conditions.into_iter().find(|c| c.type_ == "Ready" && c.status == "True");
        ready.and_then(|c| c.last_transition_time.as_ref()).map(|t| t.0.to_string())
    };
    let pods = cluster.until::<Pod>("ready", |l| l.iter().any(|p| ready(p).is_some())).await;
    let then = pods.iter().find_map(|p| ready(p));
    let is_then = |meta: &ObjectMeta| since(meta) == then;
    cluster.until::<EndpointSlice>("since it is ready", |l| l.iter().any(|s| is_then(&s.metadata))).await;
    cluster.until::<Endpoints>("since it is ready", |l| l.iter().any(|e| is_then(&e.metadata))).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_is_furnished_and_ends_with_everything_in_it() {
    let cluster = Hollow::start().await;
    cluster.create::<Namespace>("", json!({"metadata": {"name": "short"}})).await;
    let in_short = |ns: &Option<String>| ns.as_deref() == Some("short");
    cluster
        .until::<ServiceAccount>("default account", |l| l.iter().any(|a| in_short(&a.metadata.namespace)))
        .await;
    let maps =
        cluster.until::<ConfigMap>("root CA", |l| l.iter().any(|m| in_short(&m.metadata.namespace))).await;
    let map = maps.iter().find(|m| in_short(&m.metadata.namespace)).expect("map");
    assert_eq!(map.data.as_ref().expect("data")["ca.crt"], "the CA");
    cluster.merge::<ConfigMap>("short", "kube-root-ca.crt", json!({"data": {"ca.crt": "forged"}})).await;
    cluster
        .until::<ConfigMap>("put right", |l| {
            l.iter().any(|m| {
                in_short(&m.metadata.namespace) && m.data.as_ref().is_some_and(|d| d["ca.crt"] == "the CA")
            })
        })
        .await;
    cluster.create::<Deployment>("short", deployment("web", 3)).await;
    cluster.until::<Pod>("pods", |l| l.iter().filter(|p| in_short(&p.metadata.namespace)).count() == 3).await;
    cluster.delete::<Namespace>("", "short", "Background").await;
    cluster
        .until::<Namespace>("gone", |l| !l.iter().any(|n| n.metadata.name.as_deref() == Some("short")))
        .await;
    cluster.until::<Pod>("empty", |l| !l.iter().any(|p| in_short(&p.metadata.namespace))).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_made_by_hand_are_mirrored_while_their_service_has_no_selector() {
    let cluster = Hollow::start().await;
    let ports = json!([{"port": 80}]);
    cluster.create::<Service>("d", json!({"metadata": {"name": "db"}, "spec": {"ports": ports}})).await;
    let endpoints = json!({"metadata": {"name": "db", "labels": {"tier": "data"}}, "subsets": [{"addresses": [{"ip": "192.0.2.1"}], "ports": ports}]});
    cluster.create::<Endpoints>("d", endpoints).await;
    let mirrored = |l: &[std::sync::Arc<EndpointSlice>]| -> Vec<String> {
        let manager = |s: &EndpointSlice| {
            s.metadata.labels.as_ref().and_then(|l| l.get("endpointslice.kubernetes.io/managed-by").cloned())
        };
        let ours =
            l.iter().filter(|s| manager(s).as_deref() == Some("endpointslicemirroring-controller.k8s.io"));
        let mut all: Vec<_> =
            ours.flat_map(|s| s.endpoints.iter().flatten().map(|e| e.addresses[0].clone())).collect();
        all.sort();
        all
    };
    let slices = cluster.until::<EndpointSlice>("mirrored", |l| mirrored(l) == ["192.0.2.1"]).await;
    let slice = slices.iter().find(|s| s.metadata.namespace.as_deref() == Some("d")).expect("slice");
    let labels = slice.metadata.labels.clone().expect("labels");
    assert_eq!((labels["tier"].as_str(), labels["kubernetes.io/service-name"].as_str()), ("data", "db"));
    let more =
        json!({"subsets": [{"addresses": [{"ip": "192.0.2.1"}, {"ip": "192.0.2.2"}], "ports": ports}]});
    cluster.merge::<Endpoints>("d", "db", more).await;
    cluster.until::<EndpointSlice>("both", |l| mirrored(l) == ["192.0.2.1", "192.0.2.2"]).await;
    let name = slice.metadata.name.as_deref().expect("name");
    cluster.delete::<EndpointSlice>("d", name, "Background").await;
    cluster
        .until::<EndpointSlice>("made anew", |l| {
            mirrored(l).len() == 2 && !l.iter().any(|s| s.metadata.uid == slice.metadata.uid)
        })
        .await;
    cluster.merge::<Service>("d", "db", json!({"spec": {"selector": {"app": "db"}}})).await;
    cluster.until::<EndpointSlice>("no longer", |l| mirrored(l).is_empty()).await;
    cluster.merge::<Service>("d", "db", json!({"spec": {"selector": null}})).await;
    cluster.delete::<Service>("d", "db", "Background").await;
    cluster.until::<EndpointSlice>("gone", |l| mirrored(l).is_empty()).await;
    cluster.stop().await;
}
