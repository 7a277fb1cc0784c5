//! What is kept of Services and EndpointSlices, from objects as the API serves them.

use std::sync::Arc;

use client::Change;
use client::traffic::{AddressType, PortProtocol, ServiceType, ServiceView, SliceView, SlicesByService};
use serde_json::{Value, json};

/// From text, as from the wire, and from a tree: both ways are taken.
fn service(json: Value) -> ServiceView {
    let view: ServiceView = serde_json::from_str(&json.to_string()).unwrap();
    assert_eq!(view, serde_json::from_value(json).unwrap());
    view
}

fn slice(json: Value) -> SliceView {
    let view: SliceView = serde_json::from_str(&json.to_string()).unwrap();
    assert_eq!(view, serde_json::from_value(json).unwrap());
    view
}

#[test]
fn a_service_is_read_with_its_defaults_and_nothing_else_of_it() {
    let plain = service(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "d", "uid": "u", "labels": {"a": "b\n"}, "annotations": null,
            "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {}}}]},
        "spec": {"type": "ClusterIP", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"], "ports": [
            {"name": "http", "port": 80, "targetPort": "http", "nodePort": 30080},
            {"port": 53, "protocol": "UDP"}, {"port": 70000}]},
        "status": {"loadBalancer": {}},
    }));
    assert_eq!(plain.key(), ("d".to_owned(), "web".to_owned()));
    assert_eq!(
        plain.cluster_ips.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.0.0.1", "fd00::1"]
    );
    let ports: Vec<_> = plain.ports.iter().map(|p| (&*p.name, p.protocol, p.number, p.node_port)).collect();
    assert_eq!(ports, [("http", PortProtocol::Tcp, 80, 30080), ("", PortProtocol::Udp, 53, 0)]);
    assert_eq!((plain.service_type, plain.headless, plain.foreign), (ServiceType::ClusterIp, false, false));
    assert_eq!((plain.affinity, plain.more), (None, None));

    let balanced = service(json!({
        "metadata": {"name": "lb", "namespace": "d", "labels": {"service.kubernetes.io/service-proxy-name": "x"},
            "annotations": {"service.beta.kubernetes.io/load-balancer-source-ranges": "10.0.0.0/8, 172.16.0.0/12"}},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.0.0.2", "sessionAffinity": "ClientIP", "externalIPs": ["192.0.2.1", "x"],
            "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local", "healthCheckNodePort": 31000,
            "ipFamilies": ["IPv6", "IPv4"], "loadBalancerSourceRanges": []},
        "status": {"conditions": [{"type": "navarch.dev/LoadBalancerPool", "status": "True"}],
            "loadBalancer": {"ingress": [{"ip": "192.0.2.2"}, {"hostname": "h"}, {"ip": "192.0.2.3", "ipMode": "Proxy"}]}},
    }));
    assert!(balanced.foreign && balanced.internal_local && balanced.external_local);
    assert_eq!(balanced.affinity, Some(10_800));
    let more = balanced.more.unwrap();
    assert_eq!(more.external_ips.len(), 1);
    let ingress: Vec<_> = more.ingress.iter().map(|i| (i.ip.to_string(), i.proxy)).collect();
    assert_eq!(ingress, [("192.0.2.2".to_owned(), false), ("192.0.2.3".to_owned(), true)]);
    assert!(more.from_pool && more.ipv6_first && more.health_check_node_port == 31000);
    assert_eq!(more.source_ranges.join("|"), "10.0.0.0/8| 172.16.0.0/12");

    let headless = service(json!({"metadata": {"name": "h"}, "spec": {"clusterIP": "None"}}));
    assert!(headless.headless && headless.cluster_ips.is_empty());
    let name =
        json!({"metadata": {"name": "e"}, "spec": {"type": "ExternalName", "externalName": "example.com"}});
    assert_eq!(service(name).more.unwrap().external_name.as_deref(), Some("example.com"));
    assert!(serde_json::from_value::<ServiceView>(json!({"spec": {}})).is_err(), "not an object");
}

#[test]
fn an_endpoint_is_read_with_what_its_conditions_mean() {
    let slice = slice(json!({
        "metadata": {"name": "web-1", "namespace": "d", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}, {"name": "any"}],
        "endpoints": [
            {"addresses": ["10.1.0.1"], "nodeName": "n1", "zone": "z", "targetRef": {"kind": "Pod", "name": "p"}},
            {"addresses": ["10.1.0.2", "10.1.0.3"], "nodeName": "n1", "hostname": "db-0",
                "conditions": {"ready": false, "serving": true, "terminating": true},
                "hints": {"forZones": [{"name": "z"}], "forNodes": null}},
            {"addresses": ["10.1.0.4"], "conditions": {"ready": false}},
        ],
    }));
    assert_eq!((slice.service.as_deref(), slice.address_type), (Some("web"), AddressType::Ipv4));
    assert_eq!(
        slice.ports.iter().map(|p| p.number).collect::<Vec<_>>(),
        [8080],
        "a port for all is left out"
    );
    let states: Vec<_> = slice.endpoints.iter().map(|e| (e.ready, e.serving, e.terminating)).collect();
    assert_eq!(states, [(true, true, false), (false, true, true), (false, false, false)]);
    let [first, second, third] = &*slice.endpoints else { panic!("{slice:?}") };
    assert!(first.more.is_none() && third.node.is_none());
    assert!(Arc::ptr_eq(first.node.as_ref().unwrap(), second.node.as_ref().unwrap()), "a name is there once");
    assert_eq!(second.addresses().map(|a| a.to_string()).collect::<Vec<_>>(), ["10.1.0.2", "10.1.0.3"]);
    assert_eq!((second.hostname(), second.for_zones().len(), second.for_nodes().len()), (Some("db-0"), 1, 0));
    // what a node keeps of ten thousand services depends on it
    assert!(size_of_val(first) <= 48, "{}", size_of_val(first));

    let none = json!({"metadata": {"name": "x"}, "addressType": "FQDN", "ports": null, "endpoints": null});
    let none = self::slice(none);
    assert_eq!((none.address_type, none.endpoints.len(), none.service), (AddressType::Other, 0, None));
}

#[test]
fn slices_follow_the_label_that_says_whose_they_are() {
    let of = |name: &str, service: &str| {
        let labels = json!({"kubernetes.io/service-name": service});
        let metadata = json!({"name": name, "namespace": "d", "labels": labels});
        Arc::new(slice(json!({"metadata": metadata, "addressType": "IPv4", "endpoints": []})))
    };
    let key = |name: &str| ("d".to_owned(), name.to_owned());
    let mut slices = SlicesByService::default();
    let touched =
        |change: Vec<(String, String)>| change.into_iter().map(|(_, name)| name).collect::<Vec<_>>();
    let (b, a) = (of("b", "web"), of("a", "web"));
    assert_eq!(touched(slices.change(Change::Added(b.clone())).collect()), ["web"]);
    slices.change(Change::Added(a)).for_each(drop);
    let names = |slices: &SlicesByService, service| {
        slices.of(&key(service)).iter().map(|slice| slice.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(&slices, "web"), ["a", "b"]);
    let moved = Change::Modified { old: b.clone(), new: of("b", "other") };
    assert_eq!(touched(slices.change(moved).collect()), ["web", "other"]);
    assert_eq!(
        (names(&slices, "web"), names(&slices, "other")),
        (vec!["a".to_owned()], vec!["b".to_owned()])
    );
    assert_eq!(touched(slices.change(Change::Deleted(of("b", "other"))).collect()), ["other"]);
    assert!(slices.of(&key("other")).is_empty());
}
