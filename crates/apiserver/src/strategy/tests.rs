//! What the kinds' strategies promise.

use serde_json::json;

use super::*;
use crate::service_ips::{self, ServiceIps};

mod core_group;
mod devices;
mod groups;
mod rare;

fn now() -> Context {
    Context::new("2026-01-01T00:00:00Z".parse().unwrap())
}

fn named(group: &str, kind: &str) -> &'static dyn Strategy {
    of(api::kinds::all().iter().find(|k| k.group == group && k.kind == kind).expect("a built-in kind"))
}

fn refused(group: &str, kind: &str, mut object: Value) -> String {
    let strategy = named(group, kind);
    strategy.default(&mut object);
    strategy.prepare_create(&now(), &mut object);
    let mut errors = ErrorList::default();
    strategy.validate_create(&object, &mut errors);
    if errors.is_empty() { String::new() } else { errors.aggregate() }
}

fn change(group: &str, kind: &str, old: Value, edit: impl Fn(&mut Value)) -> (Value, String) {
    let strategy = named(group, kind);
    let mut old = old;
    strategy.default(&mut old);
    let mut new = old.clone();
    edit(&mut new);
    strategy.default(&mut new);
    strategy.prepare_update(&now(), &mut new, &old);
    let mut errors = ErrorList::default();
    strategy.validate_update(&new, &old, &mut errors);
    (new, if errors.is_empty() { String::new() } else { errors.aggregate() })
}

fn pod() -> Value {
    json!({"metadata": {"name": "p", "generation": 1}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

fn deployment() -> Value {
    json!({"metadata": {"name": "d", "generation": 1}, "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

#[test]
fn no_kind_panics_on_an_object_without_content_and_defaults_settle() {
    for kind in api::kinds::all() {
        let strategy = of(kind);
        for start in [json!({}), json!({"metadata": {}, "spec": {}}), json!({"metadata": {}, "spec": null})] {
            let mut object = start;
            strategy.default(&mut object);
            let once = object.clone();
            strategy.default(&mut object);
            assert_eq!(object, once, "{}", kind.kind);
            strategy.prepare_create(&now(), &mut object);
            let mut errors = ErrorList::default();
            strategy.validate_create(&object, &mut errors);
            let mut new = object.clone();
            strategy.prepare_update(&now(), &mut new, &object);
            strategy.validate_update(&new, &object, &mut errors);
            strategy.prepare_status_update(&now(), &mut new, &object);
            strategy.deletion(&object);
        }
    }
}

#[test]
fn a_plain_pod_and_deployment_are_fine() {
    assert_eq!(refused("", "Pod", pod()), "");
    assert_eq!(refused("apps", "Deployment", deployment()), "");
}

#[test]
fn errors_come_in_the_references_order() {
    let object = json!({"spec": {"containers": [{"name": "", "image": ""}], "restartPolicy": "X"}});
    assert_eq!(
        refused("", "Pod", object),
        r#"[spec.containers[0].name: Required value, spec.containers[0].image: Required value, spec.restartPolicy: Unsupported value: "X": supported values: "Always", "OnFailure", "Never"]"#
    );
}

#[test]
fn a_pods_image_may_change_and_counts_its_command_may_not() {
    let (new, errors) = change("", "Pod", pod(), |p| p["spec"]["containers"][0]["image"] = json!("j"));
    assert_eq!((errors.as_str(), &new["metadata"]["generation"]), ("", &json!(2)));
    let (_, errors) = change("", "Pod", pod(), |p| p["spec"]["containers"][0]["command"] = json!(["x"]));
    assert!(errors.starts_with("spec: Forbidden: pod updates may not change fields other than"), "{errors}");
}

#[test]
fn a_deployments_annotations_count_its_labels_do_not() {
    let annotate = |d: &mut Value| d["metadata"]["annotations"] = json!({"a": "b"});
    assert_eq!(change("apps", "Deployment", deployment(), annotate).0["metadata"]["generation"], 2);
    let label = |d: &mut Value| d["metadata"]["labels"] = json!({"a": "b"});
    assert_eq!(change("apps", "Deployment", deployment(), label).0["metadata"]["generation"], 1);
}

#[test]
fn a_deployments_selector_is_fixed() {
    let (_, errors) = change("apps", "Deployment", deployment(), |d| {
        d["spec"]["selector"]["matchLabels"]["a"] = json!("c");
        d["spec"]["template"]["metadata"]["labels"]["a"] = json!("c");
    });
    assert_eq!(errors, r#"spec.selector: Invalid value: {"matchLabels":{"a":"c"}}: field is immutable"#);
}

#[test]
fn an_unscheduled_pod_goes_at_once_a_running_one_gets_its_time() {
    let strategy = named("", "Pod");
    assert_eq!(strategy.deletion(&pod()), Deletion::Immediate);
    let mut running = pod();
    running["spec"]["nodeName"] = json!("n");
    running["spec"]["terminationGracePeriodSeconds"] = json!(7);
    assert_eq!(strategy.deletion(&running), Deletion::Graceful { default_seconds: 7 });
}

#[test]
fn a_service_gets_address_and_node_port_and_keeps_them() {
    let pool = ServiceIps::new(service_ips::ranges("10.96.0.0/16").unwrap());
    let strategy = named("", "Service");
    let mut service =
        json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
    strategy.default(&mut service);
    strategy.prepare_create(&now(), &mut service);
    let mut errors = ErrorList::default();
    let mut taken = pool.begin();
    strategy.allocate(&mut taken, &mut service, None, &mut errors);
    strategy.validate_create(&service, &mut errors);
    assert_eq!(errors, ErrorList::default());
    taken.keep(&service);
    assert!(service["spec"]["clusterIP"].as_str().unwrap().starts_with("10.96."));
    assert_eq!(service["spec"]["ports"][0]["targetPort"], 80);

    let mut new = service.clone();
    new["spec"]["ports"] = json!([{"port": 81}]);
    new["spec"]["clusterIP"] = json!("");
    new["spec"]["clusterIPs"] = json!([]);
    strategy.default(&mut new);
    strategy.prepare_update(&now(), &mut new, &service);
    assert_eq!(new["spec"]["clusterIP"], service["spec"]["clusterIP"]);
    assert_eq!(new["spec"]["ports"][0]["nodePort"], service["spec"]["ports"][0]["nodePort"]);
}

/// What becomes of a service with this spec on a server with these ranges: policy, families and addresses, or the errors.
fn of_families(
    pool: &ServiceIps,
    spec: serde_json::Value,
    old: Option<&serde_json::Value>,
) -> Result<serde_json::Value, String> {
    let strategy = named("", "Service");
    let mut service =
        json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}], "selector": {"a": "b"}}});
    for (key, value) in spec.as_object().unwrap() {
        service["spec"][key] = value.clone();
    }
    strategy.default(&mut service);
    let mut errors = ErrorList::default();
    let mut taken = pool.begin();
    match old {
        None => strategy.prepare_create(&now(), &mut service),
        Some(old) => strategy.prepare_update(&now(), &mut service, old),
    }
    strategy.allocate(&mut taken, &mut service, old, &mut errors);
    if errors.is_empty() {
        match old {
            None => strategy.validate_create(&service, &mut errors),
            Some(old) => strategy.validate_update(&service, old, &mut errors),
        }
    }
    if errors.is_empty() {
        taken.keep(&service);
        Ok(service)
    } else {
        Err(errors.aggregate())
    }
}

#[test]
fn a_service_has_the_families_it_asks_for_where_the_cluster_has_them() {
    let shown = |ranges: &str, spec: serde_json::Value| {
        let pool = ServiceIps::new(service_ips::ranges(ranges).unwrap());
        match of_families(&pool, spec, None) {
            Ok(service) => {
                let spec = &service["spec"];
                assert_eq!(spec["clusterIP"], spec["clusterIPs"][0]);
                let families = spec["clusterIPs"].as_array().unwrap().iter().map(|ip| {
                    let ip = ip.as_str().unwrap();
                    if ip == "None" {
                        "-"
                    } else if ip.contains(':') {
                        "6"
                    } else {
                        "4"
                    }
                });
                let families: String = families.collect();
                format!("{} {} {families}", spec["ipFamilyPolicy"].as_str().unwrap(), spec["ipFamilies"])
            }
            Err(errors) => errors,
        }
    };
    let (four, dual, six_first) = ("10.96.0.0/16", "10.96.0.0/16,fd00::/112", "fd00::/112,10.96.0.0/16");
    let lines = [
        shown(four, json!({})),
        shown(dual, json!({})),
        shown(six_first, json!({})),
        shown(four, json!({"ipFamilyPolicy": "PreferDualStack"})),
        shown(dual, json!({"ipFamilyPolicy": "PreferDualStack"})),
        shown(dual, json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]})),
        shown(dual, json!({"ipFamilies": ["IPv6"]})),
        shown(dual, json!({"clusterIP": "fd00::9", "clusterIPs": ["fd00::9"]})),
        shown(
            dual,
            json!({"clusterIP": "None", "clusterIPs": ["None"], "ipFamilyPolicy": "RequireDualStack"}),
        ),
        shown(four, json!({"clusterIP": "None", "clusterIPs": ["None"], "selector": null})),
        shown(four, json!({"ipFamilyPolicy": "RequireDualStack"})),
        shown(four, json!({"ipFamilies": ["IPv6"]})),
        shown(four, json!({"clusterIP": "fd00::9", "clusterIPs": ["fd00::9"]})),
        shown(dual, json!({"ipFamilies": ["IPv4", "IPv6"]})),
        shown(dual, json!({"clusterIP": "fd00:1::9", "clusterIPs": ["fd00:1::9"]})),
    ];
    expect_test::expect![[r#"
        SingleStack ["IPv4"] 4
        SingleStack ["IPv4"] 4
        SingleStack ["IPv6"] 6
        PreferDualStack ["IPv4"] 4
        PreferDualStack ["IPv4","IPv6"] 46
        RequireDualStack ["IPv6","IPv4"] 64
        SingleStack ["IPv6"] 6
        SingleStack ["IPv6"] 6
        RequireDualStack ["IPv4","IPv6"] -
        RequireDualStack ["IPv4","IPv6"] -
        spec.ipFamilyPolicy: Invalid value: "RequireDualStack": this cluster is not configured for dual-stack services
        spec.ipFamilies[0]: Invalid value: "IPv6": not configured on this cluster
        spec.clusterIPs[0]: Invalid value: ["fd00::9"]: IPv6 is not configured on this cluster
        spec.ipFamilyPolicy: Invalid value: "SingleStack": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified
        spec.clusterIPs: Invalid value: ["fd00:1::9"]: failed to allocate IP fd00:1::9: the provided network does not match the current range"#]].assert_eq(&lines.join("\n"));
}

#[test]
fn a_second_address_comes_and_goes_with_the_policy() {
    let pool = ServiceIps::new(service_ips::ranges("10.96.0.0/16,fd00::/112").unwrap());
    let single = of_families(&pool, json!({}), None).unwrap();
    let dual = of_families(&pool, json!({"ipFamilyPolicy": "RequireDualStack"}), Some(&single)).unwrap();
    assert_eq!(dual["spec"]["clusterIPs"][0], single["spec"]["clusterIPs"][0]);
    let second = dual["spec"]["clusterIPs"][1].as_str().unwrap().parse().unwrap();
    assert_eq!(pool.begin().address(second), Err(service_ips::Refusal::Allocated));

    let fields = |more: serde_json::Value| {
        let mut spec = dual["spec"].clone();
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        spec
    };
    let first_only = json!([dual["spec"]["clusterIPs"][0]]);
    let refused = of_families(&pool, fields(json!({"clusterIPs": first_only})), Some(&dual)).unwrap_err();
    assert!(refused.contains("must be 'SingleStack' to release the secondary cluster IP"), "{refused}");
    let swapped = json!({"ipFamilies": ["IPv6", "IPv4"], "clusterIPs": [dual["spec"]["clusterIPs"][1], dual["spec"]["clusterIPs"][0]],
        "clusterIP": dual["spec"]["clusterIPs"][1]});
    let refused = of_families(&pool, fields(swapped), Some(&dual)).unwrap_err();
    assert!(refused.contains("may not change once set"), "{refused}");

    let back = of_families(&pool, fields(json!({"ipFamilyPolicy": "SingleStack"})), Some(&dual)).unwrap();
    assert_eq!(back["spec"]["clusterIPs"], single["spec"]["clusterIPs"]);
    assert_eq!(back["spec"]["ipFamilies"], json!(["IPv4"]));
    assert_eq!(pool.begin().address(second), Ok(()));
}

#[test]
fn an_immutable_config_map_stays_as_it_is() {
    let map = json!({"metadata": {"name": "c"}, "immutable": true, "data": {"a": "b"}});
    let (_, errors) = change("", "ConfigMap", map, |m| m["data"]["a"] = json!("c"));
    assert_eq!(errors, "data: Forbidden: field is immutable when `immutable` is set");
}

#[test]
fn a_secrets_plain_texts_become_data() {
    let mut secret = json!({"metadata": {"name": "s"}, "stringData": {"a": "b"}});
    named("", "Secret").default(&mut secret);
    assert_eq!(secret["data"], json!({"a": "Yg=="}));
    assert_eq!((secret.get("stringData"), &secret["type"]), (None, &json!("Opaque")));
}

#[test]
fn finalising_a_namespace_changes_its_finalizers_only() {
    let old = json!({"metadata": {"name": "n"}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
    let mut new =
        json!({"metadata": {"name": "n", "labels": {"x": "y"}}, "spec": {"finalizers": []}, "status": {}});
    named("", "Namespace").prepare_subresource_update("finalize", &mut new, &old);
    assert_eq!(
        new,
        json!({"metadata": {"name": "n"}, "spec": {"finalizers": []}, "status": {"phase": "Active"}})
    );
}
