//! What services need, and the element changes that follow; data in, text out.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::Arc;

use client::traffic::{ServiceView, SliceView};
use expect_test::{Expect, expect};
use k8s_openapi::api::core::v1::Service;
use proxy::diff::Programmed;
use proxy::plan::{Dirty, Planner, plan_service};
use serde_json::{Value, json};

fn service(spec: Value) -> Service {
    serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec}))
        .unwrap()
}

fn slice(family: &str, endpoints: Value) -> Arc<SliceView> {
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": family,
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "dns", "port": 5353, "protocol": "UDP"}],
            "endpoints": endpoints,
        }))
        .unwrap(),
    )
}

/// As the proxy reads it.
fn view(service: &Service) -> ServiceView {
    serde_json::from_value(serde_json::to_value(service).unwrap()).unwrap()
}

fn ready(addr: &str, node: &str) -> Value {
    json!({"addresses": [addr], "nodeName": node, "conditions": {"ready": true}})
}

fn draining(addr: &str) -> Value {
    json!({"addresses": [addr], "nodeName": "n1", "conditions": {"ready": false, "serving": true, "terminating": true}})
}

fn http(extra: Value) -> Service {
    let mut spec = json!({
        "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"],
        "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]
    });
    spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    service(spec)
}

fn check(service: &Service, slices: &[Arc<SliceView>], expect: Expect) {
    let plan = plan_service(&view(service), slices, "n1");
    let mut text = String::new();
    for (frontend, target) in &plan.targets {
        write!(text, "{frontend} ->").unwrap();
        target.backends.iter().for_each(|b| write!(text, " {b}").unwrap());
        if target.backends.is_empty() {
            write!(text, " {:?}", target.refusal).unwrap();
        }
        if let Some(inside) = &target.inside {
            text.push_str(", inside ->");
            inside.iter().for_each(|b| write!(text, " {b}").unwrap());
        }
        if target.masquerade {
            text.push_str(", masquerade");
        }
        if let Some(sources) = &target.sources {
            text.push_str(", only from");
            sources.iter().for_each(|s| write!(text, " {s}").unwrap());
        }
        if let Some(seconds) = target.affinity {
            write!(text, ", affinity {seconds} s").unwrap();
        }
        text.push('\n');
    }
    if let Some(health) = plan.health {
        writeln!(text, "{} endpoints here, asked at port {}", health.endpoints, health.port).unwrap();
    }
    if !plan.local.is_empty() {
        writeln!(text, "local {:?}", plan.local).unwrap();
    }
    expect.assert_eq(&text);
}

#[test]
fn ports_are_matched_by_name_and_not_ready_endpoints_left_out() {
    let mut not_ready = ready("10.244.0.4", "n1");
    not_ready["conditions"]["ready"] = false.into();
    let endpoints = json!([ready("10.244.0.2", "n1"), ready("10.244.1.3", "n2"), not_ready]);
    check(
        &http(json!({})),
        &[slice("IPv4", endpoints)],
        expect![[r#"
            tcp 10.96.0.1:80 -> 10.244.0.2:8080 10.244.1.3:8080
            local {10.244.0.2}
        "#]],
    );
}

#[test]
fn each_family_gets_endpoints_of_its_own() {
    let dual = json!({"clusterIPs": ["10.96.0.1", "fd00::1"]});
    let slices = [
        slice("IPv4", json!([ready("10.244.0.2", "n1")])),
        slice("IPv6", json!([ready("fd00:244::2", "n1")])),
    ];
    check(
        &http(dual),
        &slices,
        expect![[r#"
            tcp 10.96.0.1:80 -> 10.244.0.2:8080
            tcp [fd00::1]:80 -> [fd00:244::2]:8080
            local {10.244.0.2, fd00:244::2}
        "#]],
    );
}

#[test]
fn terminating_endpoints_serve_only_when_no_other_does() {
    let with_ready = json!([draining("10.244.0.2"), ready("10.244.0.3", "n1")]);
    check(
        &http(json!({})),
        &[slice("IPv4", with_ready)],
        expect![[r#"
            tcp 10.96.0.1:80 -> 10.244.0.3:8080
            local {10.244.0.3}
        "#]],
    );
    check(
        &http(json!({})),
        &[slice("IPv4", json!([draining("10.244.0.2")]))],
        expect![[r#"
            tcp 10.96.0.1:80 -> 10.244.0.2:8080
            local {10.244.0.2}
        "#]],
    );
}

#[test]
fn local_policies_keep_to_this_node_and_drop_when_only_others_have_endpoints() {
    let extra = json!({
        "type": "NodePort", "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local",
        "ports": [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}]
    });
    check(
        &http(extra.clone()),
        &[slice("IPv4", json!([ready("10.244.0.2", "n1"), ready("10.244.1.3", "n2")]))],
        expect![[r#"
            tcp 0.0.0.0:30080 -> 10.244.0.2:8080, inside -> 10.244.0.2:8080 10.244.1.3:8080
            tcp 10.96.0.1:80 -> 10.244.0.2:8080
            local {10.244.0.2}
        "#]],
    );
    check(
        &http(extra.clone()),
        &[slice("IPv4", json!([ready("10.244.1.3", "n2")]))],
        expect![[r#"
            tcp 0.0.0.0:30080 -> Drop, inside -> 10.244.1.3:8080
            tcp 10.96.0.1:80 -> Drop
        "#]],
    );
    check(
        &http(extra),
        &[],
        expect![[r#"
            tcp 0.0.0.0:30080 -> Reject
            tcp 10.96.0.1:80 -> Reject
        "#]],
    );
}

#[test]
fn external_addresses_hide_the_client_and_source_ranges_close_the_load_balancer() {
    let mut service = http(json!({
        "type": "LoadBalancer", "externalIPs": ["192.0.2.7"], "sessionAffinity": "ClientIP",
        "ports": [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}]
    }));
    service.status = serde_json::from_value(
        json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.9", "ipMode": "VIP"}]}}),
    )
    .unwrap();
    let slices = [slice("IPv4", json!([ready("10.244.1.3", "n2")]))];
    check(
        &service,
        &slices,
        expect![[r#"
            tcp 0.0.0.0:30080 -> 10.244.1.3:8080, masquerade, affinity 10800 s
            tcp 10.96.0.1:80 -> 10.244.1.3:8080, affinity 10800 s
            tcp 192.0.2.7:80 -> 10.244.1.3:8080, masquerade, affinity 10800 s
            tcp 198.51.100.9:80 -> 10.244.1.3:8080, masquerade, affinity 10800 s
        "#]],
    );
    // node ports and external addresses stay open, and so does the address for itself
    let guarded = |service: &Service| {
        let plan = plan_service(&view(service), &slices, "n1");
        let guarded = plan.targets.iter().filter_map(|(f, t)| {
            let sources: Vec<String> = t.sources.as_ref()?.iter().map(ToString::to_string).collect();
            Some(format!("{f} {}", sources.join(" ")))
        });
        guarded.collect::<Vec<_>>()
    };
    let spec = |service: &mut Service, ranges: &[&str]| {
        service.spec.as_mut().unwrap().load_balancer_source_ranges =
            Some(ranges.iter().map(|r| (*r).to_owned()).collect());
    };
    spec(&mut service, &[" 10.0.0.0/8 "]);
    assert_eq!(guarded(&service), ["tcp 198.51.100.9:80 10.0.0.0/8 198.51.100.9/32"]);
    let annotate = |service: &mut Service, text: &str| {
        let name = "service.beta.kubernetes.io/load-balancer-source-ranges";
        service.metadata.annotations = Some([(name.to_owned(), text.to_owned())].into());
    };
    annotate(&mut service, "172.16.0.0/12");
    assert_eq!(
        guarded(&service),
        ["tcp 198.51.100.9:80 10.0.0.0/8 198.51.100.9/32"],
        "the field comes first"
    );
    spec(&mut service, &[]);
    annotate(&mut service, "172.16.0.0/12, 192.168.0.0/16,fd00::/8");
    assert_eq!(guarded(&service), ["tcp 198.51.100.9:80 172.16.0.0/12 192.168.0.0/16 198.51.100.9/32"]);
    annotate(&mut service, "nonsense");
    assert_eq!(guarded(&service), ["tcp 198.51.100.9:80 198.51.100.9/32"], "opens nothing");
    annotate(&mut service, " ");
    assert!(guarded(&service).is_empty());
}

#[test]
fn load_balancers_learn_how_many_ready_endpoints_are_here() {
    let service = |policy: &str| {
        http(json!({
            "type": "LoadBalancer", "externalTrafficPolicy": policy, "healthCheckNodePort": 31000, "ipFamilies": ["IPv4", "IPv6"],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}]
        }))
    };
    let slices = [
        slice("IPv4", json!([ready("10.244.0.2", "n1"), ready("10.244.1.3", "n2"), draining("10.244.0.4")])),
        slice("IPv6", json!([ready("fd00:244::2", "n1")])),
    ];
    let health = |policy| plan_service(&view(&service(policy)), &slices, "n1").health;
    assert_eq!(health("Local"), Some(proxy::plan::HealthCheck { port: 31000, endpoints: 1 }));
    assert_eq!(health("Cluster"), None);
}

#[test]
fn headless_external_name_and_foreign_services_have_no_frontend() {
    let mut foreign = http(json!({}));
    let label = ("service.kubernetes.io/service-proxy-name".to_owned(), "other".to_owned());
    foreign.metadata.labels = Some([label].into());
    for service in [
        http(json!({"clusterIP": "None", "clusterIPs": ["None"]})),
        http(json!({"type": "ExternalName", "externalName": "example.com"})),
        foreign,
    ] {
        check(&service, &[slice("IPv4", json!([ready("10.244.0.2", "n1")]))], expect![[""]]);
    }
}

/// A planner and the table it keeps; prints the changes of each step.
struct World {
    planner: Planner,
    programmed: Programmed,
}

impl World {
    fn new() -> Self {
        Self { planner: Planner::new(BTreeSet::new()), programmed: Programmed::default() }
    }

    fn set(&mut self, name: &str, service: Option<&Service>, endpoints: Value) -> String {
        let slices = [slice("IPv4", endpoints)];
        let plan = service.map(|s| plan_service(&view(s), &slices, "n1"));
        let mut dirty = Dirty::default();
        self.planner.update(&("default".to_owned(), name.to_owned()), plan, &mut dirty);
        self.programmed.update(&self.planner, &dirty).to_string()
    }
}

#[test]
fn endpoints_keep_their_index_so_that_few_elements_change() {
    let mut world = World::new();
    let service = http(json!({}));
    let r = |n: u8| ready(&format!("10.244.1.{n}"), "n2");
    expect![[r#"
        tier 4/3
        + tcp 10.96.0.1:80 = tier 3
        + tcp 10.96.0.1:80 #0 = 10.244.1.1:8080
        + tcp 10.96.0.1:80 #1 = 10.244.1.2:8080
        + tcp 10.96.0.1:80 #2 = 10.244.1.3:8080
    "#]]
    .assert_eq(&world.set("web", Some(&service), json!([r(1), r(2), r(3)])));
    // one replaced by another: one element
    expect![[r#"
        - tcp 10.96.0.1:80 #0 = 10.244.1.1:8080
        + tcp 10.96.0.1:80 #0 = 10.244.1.4:8080
    "#]]
    .assert_eq(&world.set("web", Some(&service), json!([r(2), r(3), r(4)])));
    // the last one fills the gap
    expect![[r#"
        tier 4/2
        - tcp 10.96.0.1:80 = tier 3
        - tcp 10.96.0.1:80 #1 = 10.244.1.2:8080
        - tcp 10.96.0.1:80 #2 = 10.244.1.3:8080
        + tcp 10.96.0.1:80 = tier 2
        + tcp 10.96.0.1:80 #1 = 10.244.1.3:8080
    "#]]
    .assert_eq(&world.set("web", Some(&service), json!([r(3), r(4)])));
    expect![[""]].assert_eq(&world.set("web", Some(&service), json!([r(3), r(4)])));
    expect![[r#"
        - tcp 10.96.0.1:80 = tier 2
        - tcp 10.96.0.1:80 #0 = 10.244.1.4:8080
        - tcp 10.96.0.1:80 #1 = 10.244.1.3:8080
        + tcp 10.96.0.1:80 rejected
    "#]]
    .assert_eq(&world.set("web", Some(&service), json!([])));
    expect![[r#"
        - tcp 10.96.0.1:80 rejected
    "#]]
    .assert_eq(&world.set("web", None, json!([])));
    assert_eq!(world.programmed.services(), 0);
}

#[test]
fn a_contested_address_passes_to_the_next_claimant() {
    let mut world = World::new();
    let claim = http(json!({"clusterIP": "", "clusterIPs": [], "externalIPs": ["192.0.2.7"]}));
    let mut claim = claim;
    claim.spec.as_mut().unwrap().cluster_ips = Some(vec!["10.96.0.2".to_owned()]);
    world.set("b", Some(&claim), json!([ready("10.244.1.2", "n2")]));
    claim.spec.as_mut().unwrap().cluster_ips = Some(vec!["10.96.0.1".to_owned()]);
    expect![[r#"
        - tcp 192.0.2.7:80 #0 = 10.244.1.2:8080
        + tcp 10.96.0.1:80 = tier 1
        + tcp 10.96.0.1:80 #0 = 10.244.1.1:8080
        + tcp 192.0.2.7:80 #0 = 10.244.1.1:8080
    "#]]
    .assert_eq(&world.set("a", Some(&claim), json!([ready("10.244.1.1", "n2")])));
    expect![[r#"
        - tcp 10.96.0.1:80 = tier 1
        - tcp 10.96.0.1:80 #0 = 10.244.1.1:8080
        - tcp 192.0.2.7:80 #0 = 10.244.1.1:8080
        + tcp 192.0.2.7:80 #0 = 10.244.1.2:8080
    "#]]
    .assert_eq(&world.set("a", None, json!([])));
}

#[test]
fn connections_and_affinities_of_endpoints_that_went_are_named() {
    let mut world = World::new();
    let udp = http(json!({
        "sessionAffinity": "ClientIP",
        "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]
    }));
    world.set("web", Some(&udp), json!([ready("10.244.1.1", "n2"), ready("10.244.1.2", "n2")]));
    expect![[r#"
        tier 4/1-aff10800
        - udp 10.96.0.1:53 = tier 2-aff10800
        - udp 10.96.0.1:53 #1 = 10.244.1.2:5353
        + udp 10.96.0.1:53 = tier 1-aff10800
        forget udp 10.96.0.1:53 at 10.244.1.2:5353
        look at connections of udp 10.96.0.1:53
    "#]]
    .assert_eq(&world.set("web", Some(&udp), json!([ready("10.244.1.1", "n2")])));
}

#[test]
fn a_pod_on_this_node_may_reach_itself_until_its_last_service_goes() {
    let mut world = World::new();
    let service = http(json!({}));
    let other = http(json!({"clusterIP": "10.96.0.2", "clusterIPs": ["10.96.0.2"]}));
    assert!(
        world.set("a", Some(&service), json!([ready("10.244.0.2", "n1")])).contains("+ hairpin 10.244.0.2")
    );
    assert!(!world.set("b", Some(&other), json!([ready("10.244.0.2", "n1")])).contains("hairpin"));
    assert!(!world.set("a", None, json!([])).contains("hairpin"));
    assert!(world.set("b", None, json!([])).contains("- hairpin 10.244.0.2"));
}

#[test]
fn hints_keep_traffic_on_the_node_or_in_the_zone_where_everyone_has_them() {
    let hinted = |addr: &str, hints: Value| json!({"addresses": [addr], "conditions": {"ready": true}, "hints": hints});
    let zones = |zone: &str| json!({"forZones": [{"name": zone}]});
    let backends = |endpoints: Value, zone: Option<&str>| {
        let here = proxy::plan::Here { node: "n1", zone };
        let plan = plan_service(&view(&http(json!({}))), &[slice("IPv4", endpoints)], here);
        let targets: Vec<String> =
            plan.targets.values().flat_map(|t| t.backends.iter().map(|b| b.ip().to_string())).collect();
        targets.join(" ")
    };
    let east_west = || json!([hinted("10.244.0.2", zones("east")), hinted("10.244.0.3", zones("west"))]);
    assert_eq!(backends(east_west(), Some("east")), "10.244.0.2");
    assert_eq!(backends(east_west(), Some("north")), "10.244.0.2 10.244.0.3", "no one is meant for us");
    assert_eq!(backends(east_west(), None), "10.244.0.2 10.244.0.3");
    let some = json!([hinted("10.244.0.2", zones("east")), ready("10.244.0.3", "n2")]);
    assert_eq!(backends(some, Some("east")), "10.244.0.2 10.244.0.3", "one has no hint");
    let nodes = json!([
        hinted("10.244.0.2", json!({"forNodes": [{"name": "n1"}], "forZones": [{"name": "west"}]})),
        hinted("10.244.0.3", json!({"forNodes": [{"name": "n2"}], "forZones": [{"name": "east"}]}))
    ]);
    assert_eq!(backends(nodes, Some("east")), "10.244.0.2", "the node comes before the zone");
}

#[test]
fn guards_and_endpoints_for_the_inside_come_and_go_with_their_service() {
    let mut world = World::new();
    let mut service = http(json!({
        "type": "LoadBalancer", "externalTrafficPolicy": "Local", "allocateLoadBalancerNodePorts": false,
        "loadBalancerSourceRanges": ["10.0.0.0/8"],
    }));
    service.status =
        serde_json::from_value(json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.9"}]}})).unwrap();
    let endpoints = || json!([ready("10.244.0.2", "n1"), ready("10.244.1.3", "n2")]);
    expect![[r#"
        tier 4/1
        tier 4/2
        tier 4/2-inside
        guard tcp 198.51.100.9:80: 10.0.0.0/8 198.51.100.9/32
        + tcp 10.96.0.1:80 = tier 2
        + tcp 10.96.0.1:80 #0 = 10.244.0.2:8080
        + tcp 10.96.0.1:80 #1 = 10.244.1.3:8080
        + tcp 198.51.100.9:80 = tier 1
        + tcp 198.51.100.9:80 = tier 2-inside
        + tcp 198.51.100.9:80 #0 = 10.244.0.2:8080
        + tcp 198.51.100.9:80 #4096 = 10.244.0.2:8080
        + tcp 198.51.100.9:80 #4097 = 10.244.1.3:8080
        + hairpin 10.244.0.2
    "#]]
    .assert_eq(&world.set("web", Some(&service), endpoints()));
    expect![[r#"
        guard tcp 198.51.100.9:80: 192.168.0.0/16 198.51.100.9/32
    "#]]
    .assert_eq(&{
        service.spec.as_mut().unwrap().load_balancer_source_ranges = Some(vec!["192.168.0.0/16".to_owned()]);
        world.set("web", Some(&service), endpoints())
    });
    expect![[r#"
        unguard tcp 198.51.100.9:80
        - tcp 198.51.100.9:80 = tier 2-inside
        - tcp 198.51.100.9:80 #4096 = 10.244.0.2:8080
        - tcp 198.51.100.9:80 #4097 = 10.244.1.3:8080
        + tcp 198.51.100.9:80 #1 = 10.244.1.3:8080
    "#]]
    .assert_eq(&{
        service.spec.as_mut().unwrap().load_balancer_source_ranges = None;
        service.spec.as_mut().unwrap().external_traffic_policy = None;
        let text = world.set("web", Some(&service), endpoints());
        text.lines()
            .filter(|l| !l.contains("tier 1") && !l.contains("-masq"))
            .map(|l| format!("{l}\n"))
            .collect::<String>()
    });
}
