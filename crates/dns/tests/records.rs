//! The records of the Kubernetes DNS specification 1.1.0; objects in, answers out.

use std::sync::Arc;

use dns::records::{Answer, Data, Index, Kind, entry};
use expect_test::{Expect, expect};
use serde_json::{Value, json};

fn index() -> Index {
    let reverse = vec![("10.96.0.0".parse().unwrap(), 16), ("10.244.0.0".parse().unwrap(), 16)];
    let mut index = Index::new("cluster.local.", vec!["10.96.0.10".parse().unwrap()], reverse);
    let ready = |addr: &str| json!({"addresses": [addr], "conditions": {"ready": true}});
    put(
        &mut index,
        "web",
        json!({
            "clusterIPs": ["10.96.0.1", "fd00:96::1"],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}]
        }),
        json!([ready("10.244.0.2")]),
    );
    let mut named = ready("10.244.0.3");
    named["hostname"] = "db-0".into();
    let mut not_ready = ready("10.244.0.9");
    not_ready["conditions"]["ready"] = false.into();
    put(
        &mut index,
        "db",
        json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"name": "sql", "port": 5432}]}),
        json!([named, ready("10.244.0.4"), not_ready]),
    );
    put(&mut index, "idle", json!({"clusterIP": "None"}), json!([]));
    put(&mut index, "away", json!({"type": "ExternalName", "externalName": "Example.COM."}), json!([]));
    index
}

fn put(index: &mut Index, name: &str, spec: Value, endpoints: Value) {
    let service = serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap();
    let slice = serde_json::from_value(json!({
        "metadata": {"name": name}, "addressType": "IPv4",
        "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}],
        "endpoints": endpoints,
    }))
    .unwrap();
    index.update(&key(name), entry(&service, &[Arc::new(slice)]));
}

fn key(name: &str) -> (String, String) {
    ("default".to_owned(), name.to_owned())
}

fn ask(index: &Index, name: &str, kind: Kind) -> String {
    let labels: Vec<String> = name.split('.').map(str::to_owned).collect();
    let text = |data: &Data| match data {
        Data::Address(addr) => format!("{addr}"),
        Data::Srv { weight, port, target } => format!("srv {weight} {port} {target}"),
        Data::Ptr(target) => format!("ptr {target}"),
        Data::Cname(target) => format!("cname {target}"),
        Data::Txt(text) => format!("txt {text}"),
        Data::Soa => "soa".to_owned(),
        Data::Ns(target) => format!("ns {target}"),
    };
    match index.lookup(&labels, kind) {
        Answer::Records { answers, additional } => {
            let mut lines: Vec<String> = answers.iter().map(text).collect();
            lines.extend(additional.iter().map(|(owner, data)| format!("  {owner} {}", text(data))));
            lines.join("\n") + "\n"
        }
        other => format!("{other:?}\n"),
    }
}

fn check(name: &str, kind: Kind, expect: Expect) {
    expect.assert_eq(&ask(&index(), name, kind));
}

#[test]
fn a_service_has_its_cluster_addresses() {
    check("web.default.svc.cluster.local", Kind::A, expect![["10.96.0.1\n"]]);
    check("web.default.svc.cluster.local", Kind::Aaaa, expect![["fd00:96::1\n"]]);
}

#[test]
fn named_ports_have_locations() {
    check(
        "_http._tcp.web.default.svc.cluster.local",
        Kind::Srv,
        expect![[r#"
            srv 100 80 web.default.svc.cluster.local
              web.default.svc.cluster.local 10.96.0.1
              web.default.svc.cluster.local fd00:96::1
        "#]],
    );
    check("_http._udp.web.default.svc.cluster.local", Kind::Srv, expect![["NoName\n"]]);
    check("_http._tcp.web.default.svc.cluster.local", Kind::A, expect![["NoData\n"]]);
    check("_tcp.web.default.svc.cluster.local", Kind::A, expect![["NoData\n"]]);
    check("_sctp.web.default.svc.cluster.local", Kind::A, expect![["NoName\n"]]);
}

#[test]
fn a_headless_service_has_the_addresses_of_its_ready_endpoints() {
    check("db.default.svc.cluster.local", Kind::A, expect![["10.244.0.3\n10.244.0.4\n"]]);
    check("db.default.svc.cluster.local", Kind::Aaaa, expect![["NoData\n"]]);
    check("db-0.db.default.svc.cluster.local", Kind::A, expect![["10.244.0.3\n"]]);
    check("10-244-0-4.db.default.svc.cluster.local", Kind::A, expect![["10.244.0.4\n"]]);
    check("db-1.db.default.svc.cluster.local", Kind::A, expect![["NoName\n"]]);
    check("idle.default.svc.cluster.local", Kind::A, expect![["NoData\n"]]);
    check(
        "_sql._tcp.db.default.svc.cluster.local",
        Kind::Srv,
        expect![[r#"
            srv 50 5432 10-244-0-4.db.default.svc.cluster.local
            srv 50 5432 db-0.db.default.svc.cluster.local
              10-244-0-4.db.default.svc.cluster.local 10.244.0.4
              db-0.db.default.svc.cluster.local 10.244.0.3
        "#]],
    );
}

#[test]
fn an_external_name_is_an_alias_whatever_is_asked() {
    check("away.default.svc.cluster.local", Kind::A, expect![["cname example.com\n"]]);
    check("away.default.svc.cluster.local", Kind::Srv, expect![["cname example.com\n"]]);
    check("x.away.default.svc.cluster.local", Kind::A, expect![["NoName\n"]]);
}

#[test]
fn addresses_have_names() {
    check("1.0.96.10.in-addr.arpa", Kind::Ptr, expect![["ptr web.default.svc.cluster.local\n"]]);
    check("3.0.244.10.in-addr.arpa", Kind::Ptr, expect![["ptr db-0.db.default.svc.cluster.local\n"]]);
    check("1.0.96.10.in-addr.arpa", Kind::A, expect![["NoData\n"]]);
    // ours, but unused; and not ours
    check("77.0.96.10.in-addr.arpa", Kind::Ptr, expect![["NoName\n"]]);
    check("1.1.1.1.in-addr.arpa", Kind::Ptr, expect![["Foreign\n"]]);
    let nibbles = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa";
    check(nibbles, Kind::Ptr, expect![["ptr web.default.svc.cluster.local\n"]]);
}

#[test]
fn search_paths_end_in_no_name_and_empty_branches_exist() {
    check("example.com.default.svc.cluster.local", Kind::A, expect![["NoName\n"]]);
    check("example.com.svc.cluster.local", Kind::A, expect![["NoName\n"]]);
    check("example.com.cluster.local", Kind::A, expect![["NoName\n"]]);
    check("example.com", Kind::A, expect![["Foreign\n"]]);
    check("svc.cluster.local", Kind::A, expect![["NoData\n"]]);
    check("default.svc.cluster.local", Kind::A, expect![["NoData\n"]]);
    check("nowhere.svc.cluster.local", Kind::A, expect![["NoName\n"]]);
    check("web.nowhere.svc.cluster.local", Kind::A, expect![["NoName\n"]]);
}

#[test]
fn the_zone_describes_itself() {
    check("dns-version.cluster.local", Kind::Txt, expect![["txt 1.1.0\n"]]);
    check("cluster.local", Kind::Soa, expect![["soa\n"]]);
    check("cluster.local", Kind::Ns, expect![["ns ns.dns.cluster.local\n"]]);
    check("ns.dns.cluster.local", Kind::A, expect![["10.96.0.10\n"]]);
    check("10-244-0-7.default.pod.cluster.local", Kind::A, expect![["10.244.0.7\n"]]);
}

#[test]
fn pods_have_names_wherever_their_namespace_is() {
    let mut index = index();
    let (name, six) = ("10-244-0-7.quiet.pod.cluster.local", "fd00-244--7.quiet.pod.cluster.local");
    assert_eq!(ask(&index, name, Kind::A), "NoName\n");
    index.set_namespace("quiet", true);
    assert_eq!(ask(&index, name, Kind::A), "10.244.0.7\n");
    assert_eq!(ask(&index, name, Kind::Aaaa), "NoData\n");
    assert_eq!(ask(&index, six, Kind::Aaaa), "fd00:244::7\n");
    assert_eq!(ask(&index, "quiet.svc.cluster.local", Kind::A), "NoData\n");
    assert_eq!(ask(&index, "x.quiet.pod.cluster.local", Kind::A), "NoName\n");
    index.set_namespace("quiet", false);
    assert_eq!(ask(&index, name, Kind::A), "NoName\n");
}

#[test]
fn unnamed_ports_have_no_name_of_their_own() {
    let mut index = index();
    put(
        &mut index,
        "plain",
        json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80, "protocol": "TCP"}]}),
        json!([]),
    );
    for name in ["_._tcp.plain.default.svc.cluster.local", "_80._tcp.plain.default.svc.cluster.local"] {
        assert_eq!(ask(&index, name, Kind::Srv), "NoName\n", "{name}");
    }
    assert_eq!(ask(&index, "plain.default.svc.cluster.local", Kind::A), "10.96.0.9\n");
}

#[test]
fn a_service_that_went_leaves_no_name() {
    let mut index = index();
    let serial = index.serial();
    for name in ["web", "db", "idle", "away"] {
        index.update(&key(name), None);
    }
    assert!(index.serial() > serial);
    for name in ["web.default.svc.cluster.local", "default.svc.cluster.local", "3.0.244.10.in-addr.arpa"] {
        assert_eq!(ask(&index, name, Kind::Any), "NoName\n", "{name}");
    }
}
