//! What policies need on a node; objects in, text out.

use std::collections::BTreeMap;

use expect_test::{Expect, expect};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use policy::PodFacts;
use policy::plan::{Cluster, plan};
use serde_json::{Value, json};

fn pod(namespace: &str, name: &str, node: &str, ips: &[&str]) -> Value {
    let ips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}},
        "spec": {"nodeName": node, "containers": [{"name": "main", "ports": [
            {"name": "http", "containerPort": 8080}, {"name": "dns", "containerPort": 5353, "protocol": "UDP"}]}]},
        "status": {"phase": "Running", "podIPs": ips}
    })
}

/// Two pods here (web, db), one elsewhere (far), one in another namespace (mon).
fn pods() -> Vec<Value> {
    vec![
        pod("shop", "web", "n1", &["10.244.0.2", "fd00::2"]),
        pod("shop", "db", "n1", &["10.244.0.3"]),
        pod("shop", "far", "n2", &["10.244.1.4"]),
        pod("mon", "mon", "n2", &["10.244.1.5"]),
    ]
}

fn check_pods(pods: Vec<Value>, specs: &[Value], families: &[bool], expect: Expect) {
    let policies: Vec<NetworkPolicy> = specs
        .iter()
        .enumerate()
        .map(|(index, spec)| {
            let meta = json!({"namespace": "shop", "name": format!("p{index}")});
            serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap()
        })
        .collect();
    let facts: Vec<PodFacts> = pods
        .into_iter()
        .filter_map(|pod| PodFacts::of(&serde_json::from_value::<Pod>(pod).unwrap(), "n1"))
        .collect();
    let label = |name: &str| BTreeMap::from([("team".to_owned(), name.to_owned())]);
    let namespaces = BTreeMap::from([("shop".to_owned(), label("shop")), ("mon".to_owned(), label("ops"))]);
    let plan = plan(&Cluster {
        policies: policies.iter().collect(),
        namespaces: &namespaces,
        pods: facts.iter().collect(),
        families,
    });
    expect.assert_eq(&plan.to_string());
}

fn check(spec: Value, expect: Expect) {
    check_pods(pods(), &[spec], &[false], expect);
}

fn web() -> Value {
    json!({"matchLabels": {"app": "web"}})
}

#[test]
fn an_empty_policy_isolates_every_pod_of_its_namespace_on_this_node() {
    check(
        json!({"podSelector": {}}),
        expect![[r#"
        Ingress of 10.244.0.2: pol-pod-in-3b5835df07b22b29
        Ingress of 10.244.0.3: pol-pod-in-38affe48a71f8b97
        Ingress of fd00::2: pol-pod-in-3b5835df07b22b29
        pol-np-in-a1aad648e2e0b219:
        pol-pod-in-38affe48a71f8b97: pol-np-in-a1aad648e2e0b219; drop # shop/db Ingress denied
        pol-pod-in-3b5835df07b22b29: pol-np-in-a1aad648e2e0b219; drop # shop/web Ingress denied
    "#]],
    );
    check(
        json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
        expect![[r#"
        Ingress of 10.244.0.2: pol-pod-in-3b5835df07b22b29
        Ingress of 10.244.0.3: pol-pod-in-38affe48a71f8b97
        Ingress of fd00::2: pol-pod-in-3b5835df07b22b29
        Egress of 10.244.0.2: pol-pod-out-3b5835df07b22b29
        Egress of 10.244.0.3: pol-pod-out-38affe48a71f8b97
        Egress of fd00::2: pol-pod-out-3b5835df07b22b29
        pol-np-in-a1aad648e2e0b219:
        pol-np-out-a1aad648e2e0b219:
        pol-pod-in-38affe48a71f8b97: pol-np-in-a1aad648e2e0b219; drop # shop/db Ingress denied
        pol-pod-in-3b5835df07b22b29: pol-np-in-a1aad648e2e0b219; drop # shop/web Ingress denied
        pol-pod-out-38affe48a71f8b97: pol-np-out-a1aad648e2e0b219; drop # shop/db Egress denied
        pol-pod-out-3b5835df07b22b29: pol-np-out-a1aad648e2e0b219; drop # shop/web Egress denied
    "#]],
    );
}

#[test]
fn types_follow_the_rules_where_none_are_given() {
    check(
        json!({"podSelector": web(), "egress": [{}]}),
        expect![[r#"
        Ingress of 10.244.0.2: pol-pod-in-3b5835df07b22b29
        Ingress of fd00::2: pol-pod-in-3b5835df07b22b29
        Egress of 10.244.0.2: pol-pod-out-3b5835df07b22b29
        Egress of fd00::2: pol-pod-out-3b5835df07b22b29
        pol-np-in-a1aad648e2e0b219:
        pol-np-out-a1aad648e2e0b219:
          allow # shop/p0 Egress 0
        pol-pod-in-3b5835df07b22b29: pol-np-in-a1aad648e2e0b219; drop # shop/web Ingress denied
        pol-pod-out-3b5835df07b22b29: pol-np-out-a1aad648e2e0b219; drop # shop/web Egress denied
    "#]],
    );
    check(
        json!({"podSelector": web(), "egress": []}),
        expect![[r#"
        Ingress of 10.244.0.2: pol-pod-in-3b5835df07b22b29
        Ingress of fd00::2: pol-pod-in-3b5835df07b22b29
        pol-np-in-a1aad648e2e0b219:
        pol-pod-in-3b5835df07b22b29: pol-np-in-a1aad648e2e0b219; drop # shop/web Ingress denied
    "#]],
    );
    check(
        json!({"podSelector": web(), "egress": [{}], "policyTypes": ["Ingress"]}),
        expect![[r#"
        Ingress of 10.244.0.2: pol-pod-in-3b5835df07b22b29
        Ingress of fd00::2: pol-pod-in-3b5835df07b22b29
        pol-np-in-a1aad648e2e0b219:
        pol-pod-in-3b5835df07b22b29: pol-np-in-a1aad648e2e0b219; drop # shop/web Ingress denied
    "#]],
    );
}

#[test]
fn policies_that_select_no_pod_of_this_node_need_nothing() {
    check(json!({"podSelector": {"matchLabels": {"app": "far"}}, "ingress": [{}]}), expect![""]);
    check(json!({"podSelector": {"matchLabels": {"app": "mon"}}, "ingress": [{}]}), expect![""]);
}

#[test]
fn peers_are_pods_here_pods_of_namespaces_or_both_conditions() {
    let from = json!([{"podSelector": {"matchLabels": {"app": "db"}}}]);
    check(
        json!({"podSelector": web(), "ingress": [{"from": from}]}),
        expect![[r#"
        Ingress of 10.244.0.2: pol-pod-in-3b5835df07b22b29
        Ingress of fd00::2: pol-pod-in-3b5835df07b22b29
        pol-np-in-a1aad648e2e0b219:
          peer @pol-pods4-in-a1aad648e2e0b219-0 allow # shop/p0 Ingress 0
        pol-pod-in-3b5835df07b22b29: pol-np-in-a1aad648e2e0b219; drop # shop/web Ingress denied
        @pol-pods4-in-a1aad648e2e0b219-0 = {10.244.0.3}
    "#]],
    );
    let from = json!([{"namespaceSelector": {"matchLabels": {"team": "ops"}}}]);
    check(
        json!({"podSelector": web(), "ingress": [{"from": from}]}),
        expect![[r#"
        Ingress of 10.244.0.2: pol-pod-in-3b5835df07b22b29
        Ingress of fd00::2: pol-pod-in-3b5835df07b22b29
        pol-np-in-a1aad648e2e0b219:
          peer @pol-pods4-in-a1aad648e2e0b219-0 allow # shop/p0 Ingress 0
        pol-pod-in-3b5835df07b22b29: pol-np-in-a1aad648e2e0b219; drop # shop/web Ingress denied
        @pol-pods4-in-a1aad648e2e0b219-0 = {10.244.1.5}
    "#]],
    );
    let from = json!([{"namespaceSelector": {}, "podSelector": {"matchExpressions": [
        {"key": "app", "operator": "In", "values": ["far", "mon"]}]}}]);
    check(
        json!({"podSelector": web(), "ingress": [{"from": from}]}),
        expect![[r#"
        Ingress of 10.244.0.2: pol-pod-in-3b5835df07b22b29
        Ingress of fd00::2: pol-pod-in-3b5835df07b22b29
        pol-np-in-a1aad648e2e0b219:
          peer @pol-pods4-in-a1aad648e2e0b219-0 allow # shop/p0 Ingress 0
        pol-pod-in-3b5835df07b22b29: pol-np-in-a1aad648e2e0b219; drop # shop/web Ingress denied
        @pol-pods4-in-a1aad648e2e0b219-0 = {10.244.1.4 10.244.1.5}
    "#]],
    );
    // in one rule either may hold
    let from = json!([{"podSelector": {"matchLabels": {"app": "db"}}}, {"namespaceSelector": {"matchLabels": {"team": "ops"}}}]);
    check(
        json!({"podSelector": web(), "ingress": [{"from": from}]}),
        expect![[r#"
        Ingress of 10.244.0.2: pol-pod-in-3b5835df07b22b29
        Ingress of fd00::2: pol-pod-in-3b5835df07b22b29
        pol-np-in-a1aad648e2e0b219:
          peer @pol-pods4-in-a1aad648e2e0b219-0 allow # shop/p0 Ingress 0
        pol-pod-in-3b5835df07b22b29: pol-np-in-a1aad648e2e0b219; drop # shop/web Ingress denied
        @pol-pods4-in-a1aad648e2e0b219-0 = {10.244.0.3 10.244.1.5}
    "#]],
    );
}

#[test]
fn blocks_lose_their_exceptions() {
    let to = json!([{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.96.0.0/16"]}}, {"ipBlock": {"cidr": "fd00::/8"}}]);
    let spec = json!({"podSelector": web(), "policyTypes": ["Egress"], "egress": [{"to": to, "ports": [{"port": 443}]}]});
    check_pods(
        pods(),
        &[spec],
        &[false, true],
        expect![[r#"
        Egress of 10.244.0.2: pol-pod-out-3b5835df07b22b29
        Egress of fd00::2: pol-pod-out-3b5835df07b22b29
        pol-np-out-a1aad648e2e0b219:
          peer @pol-blocks4-123858851a1fc461 tcp 443 allow # shop/p0 Egress 0
          peer @pol-blocks6-d9fd25879c525ebe tcp 443 allow # shop/p0 Egress 0
        pol-pod-out-3b5835df07b22b29: pol-np-out-a1aad648e2e0b219; drop # shop/web Egress denied
        @pol-blocks4-123858851a1fc461 = {10.0.0.0-10.95.255.255 10.97.0.0-10.255.255.255}
        @pol-blocks6-d9fd25879c525ebe = {fd00::-fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff}
    "#]],
    );
}

#[test]
fn ports_are_numbers_ranges_names_or_a_whole_protocol() {
    let ports =
        json!([{"port": 80}, {"port": 8000, "endPort": 8999, "protocol": "UDP"}, {"protocol": "SCTP"}]);
    check(
        json!({"podSelector": web(), "ingress": [{"ports": ports}]}),
        expect![[r#"
        Ingress of 10.244.0.2: pol-pod-in-3b5835df07b22b29
        Ingress of fd00::2: pol-pod-in-3b5835df07b22b29
        pol-np-in-a1aad648e2e0b219:
          tcp 80 allow # shop/p0 Ingress 0
          udp 8000-8999 allow # shop/p0 Ingress 0
          sctp allow # shop/p0 Ingress 0
        pol-pod-in-3b5835df07b22b29: pol-np-in-a1aad648e2e0b219; drop # shop/web Ingress denied
    "#]],
    );
    // a name means the port of the pod it is looked up on: of each selected pod
    check(
        json!({"podSelector": {}, "ingress": [{"ports": [{"port": "http"}], "from": [{"podSelector": {}}]}]}),
        expect![[r#"
            Ingress of 10.244.0.2: pol-pod-in-3b5835df07b22b29
            Ingress of 10.244.0.3: pol-pod-in-38affe48a71f8b97
            Ingress of fd00::2: pol-pod-in-3b5835df07b22b29
            pol-np-in-a1aad648e2e0b219:
              peer @pol-pods4-in-a1aad648e2e0b219-0 to @pol-ports4-in-a1aad648e2e0b219-0-0 allow # shop/p0 Ingress 0
            pol-pod-in-38affe48a71f8b97: pol-np-in-a1aad648e2e0b219; drop # shop/db Ingress denied
            pol-pod-in-3b5835df07b22b29: pol-np-in-a1aad648e2e0b219; drop # shop/web Ingress denied
            @pol-pods4-in-a1aad648e2e0b219-0 = {10.244.0.2 10.244.0.3 10.244.1.4}
            @pol-ports4-in-a1aad648e2e0b219-0-0 = {tcp:10.244.0.2:8080 tcp:10.244.0.3:8080}
        "#]],
    );
    // on the way out it is that of each pod that may be reached
    let rule = json!({"to": [{"namespaceSelector": {"matchLabels": {"team": "ops"}}}], "ports": [{"port": "dns", "protocol": "UDP"}]});
    check(
        json!({"podSelector": web(), "policyTypes": ["Egress"], "egress": [rule]}),
        expect![[r#"
        Egress of 10.244.0.2: pol-pod-out-3b5835df07b22b29
        Egress of fd00::2: pol-pod-out-3b5835df07b22b29
        pol-np-out-a1aad648e2e0b219:
          to @pol-ports4-out-a1aad648e2e0b219-0-0 allow # shop/p0 Egress 0
        pol-pod-out-3b5835df07b22b29: pol-np-out-a1aad648e2e0b219; drop # shop/web Egress denied
        @pol-pods4-out-a1aad648e2e0b219-0 = {10.244.1.5}
        @pol-ports4-out-a1aad648e2e0b219-0-0 = {udp:10.244.1.5:5353}
    "#]],
    );
}

#[test]
fn several_policies_of_a_pod_add_up() {
    let a = json!({"podSelector": web(), "ingress": [{"ports": [{"port": 80}]}]});
    let b = json!({"podSelector": {}, "ingress": [{"ports": [{"port": 81}]}]});
    check_pods(
        pods(),
        &[a, b],
        &[false],
        expect![[r#"
        Ingress of 10.244.0.2: pol-pod-in-3b5835df07b22b29
        Ingress of 10.244.0.3: pol-pod-in-38affe48a71f8b97
        Ingress of fd00::2: pol-pod-in-3b5835df07b22b29
        pol-np-in-a1a77048e2ddcef0:
          tcp 81 allow # shop/p1 Ingress 0
        pol-np-in-a1aad648e2e0b219:
          tcp 80 allow # shop/p0 Ingress 0
        pol-pod-in-38affe48a71f8b97: pol-np-in-a1a77048e2ddcef0; drop # shop/db Ingress denied
        pol-pod-in-3b5835df07b22b29: pol-np-in-a1a77048e2ddcef0, pol-np-in-a1aad648e2e0b219; drop # shop/web Ingress denied
    "#]],
    );
}

#[test]
fn pods_on_the_hosts_network_and_pods_that_ended_do_not_count() {
    let mut pods = pods();
    pods[1]["spec"]["hostNetwork"] = true.into();
    pods[2]["status"]["phase"] = "Succeeded".into();
    let spec = json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]});
    check_pods(
        pods,
        &[spec],
        &[false],
        expect![[r#"
        Ingress of 10.244.0.2: pol-pod-in-3b5835df07b22b29
        Ingress of fd00::2: pol-pod-in-3b5835df07b22b29
        pol-np-in-a1aad648e2e0b219:
          peer @pol-pods4-in-a1aad648e2e0b219-0 allow # shop/p0 Ingress 0
        pol-pod-in-3b5835df07b22b29: pol-np-in-a1aad648e2e0b219; drop # shop/web Ingress denied
        @pol-pods4-in-a1aad648e2e0b219-0 = {10.244.0.2}
    "#]],
    );
}
