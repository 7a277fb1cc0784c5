//! Rules of the groups besides the core: what is refused, in the reference's words and order.

use serde_json::{Value, json};

use super::{change, named, now, refused};

fn with(mut object: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').expect("a path");
    object.pointer_mut(parent).expect("the parent is there")[key] = value;
    object
}

fn job() -> Value {
    json!({"metadata": {"name": "j", "uid": "u", "generation": 1}, "spec": {"template": {"metadata": {}, "spec": {
        "restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}})
}

fn indexed(spec: Value) -> Value {
    let mut job = job();
    job["spec"]["completionMode"] = json!("Indexed");
    job["spec"]["completions"] = json!(5);
    let given = spec.as_object().cloned().unwrap_or_default();
    job["spec"].as_object_mut().expect("a spec").extend(given);
    job
}

#[test]
fn a_job_keeps_within_its_limits() {
    let many = "when completions are above 100000 and used with backoff limit per index";
    for (object, wanted) in [
        (job(), String::new()),
        (with(job(), "/spec/managedBy", json!("acme.io/jobs")), String::new()),
        (
            with(job(), "/spec/managedBy", json!("acme")),
            r#"spec.managedBy: Invalid value: "acme": must be a domain-prefixed path (such as "acme.io/foo")"#.into(),
        ),
        (
            with(job(), "/spec/managedBy", json!(format!("a.io/{}", "b".repeat(60)))),
            "spec.managedBy: Too long: may not be more than 63 bytes".into(),
        ),
        (
            with(job(), "/spec/backoffLimitPerIndex", json!(1)),
            "spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode".into(),
        ),
        (
            indexed(json!({"parallelism": 100_001})),
            "spec.parallelism: Invalid value: 100001: must be less than or equal to 100000 when completion mode is Indexed".into(),
        ),
        (
            indexed(json!({"completions": 100_001, "parallelism": 10_001, "backoffLimitPerIndex": 1, "maxFailedIndexes": 10_002})),
            format!("[spec.parallelism: Invalid value: 10001: must be less than or equal to 10000 {many}, spec.maxFailedIndexes: Invalid value: 10002: must be less than or equal to 10000 {many}]"),
        ),
        (
            with(indexed(json!({})), "/metadata/name", json!("a".repeat(62))),
            format!("metadata.name: Invalid value: \"{0}\": will not able to create pod with invalid DNS label: {0}-4", "a".repeat(62)),
        ),
    ] {
        assert_eq!(refused("batch", "Job", object), wanted);
    }
}

#[test]
fn the_failure_and_success_policies_of_a_job_are_complete() {
    let rule = |rule: Value| with(job(), "/spec/podFailurePolicy", json!({"rules": [rule]}));
    for (object, wanted) in [
        (
            rule(json!({"action": "", "onExitCodes": {"operator": "", "values": [1]}})),
            r#"[spec.podFailurePolicy.rules[0].action: Required value: valid values: ["Count" "FailIndex" "FailJob" "Ignore"], spec.podFailurePolicy.rules[0].onExitCodes.operator: Required value: valid values: ["In" "NotIn"]]"#,
        ),
        (
            rule(json!({"action": "FailIndex", "onPodConditions": [{"type": "Ready"}]})),
            r#"spec.podFailurePolicy.rules[0].action: Invalid value: "FailIndex": requires the backoffLimitPerIndex to be set"#,
        ),
        (
            indexed(json!({"successPolicy": {"rules": [{"succeededCount": -1}]}})),
            "spec.successPolicy.rules[0].succeededCount: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            indexed(json!({"successPolicy": {"rules": [{"succeededCount": 6, "succeededIndexes": "0-1"}]}})),
            "[spec.successPolicy.rules[0].succeededCount: Invalid value: 6: must be less than or equal to 5 (the number of specified completions), spec.successPolicy.rules[0].succeededCount: Invalid value: 6: must be less than or equal to 2 (the number of indexes in the specified succeededIndexes field)]",
        ),
    ] {
        assert_eq!(refused("batch", "Job", object), wanted);
    }
}

/// A job as it is stored: selector and labels are made.
fn stored(mut object: Value) -> Value {
    named("batch", "Job").default(&mut object);
    named("batch", "Job").prepare_create(&now(), &mut object);
    object
}

#[test]
fn an_indexed_job_grows_together_with_its_parallelism() {
    let edit = |completions: i64, parallelism: i64| {
        change("batch", "Job", stored(indexed(json!({}))), move |o| {
            o["spec"]["completions"] = json!(completions);
            o["spec"]["parallelism"] = json!(parallelism);
        })
        .1
    };
    assert_eq!(edit(7, 7), "");
    assert_eq!(
        edit(7, 2),
        "spec.completions: Invalid value: 7: can only be modified in tandem with spec.parallelism"
    );
}

#[test]
fn a_suspended_job_may_be_placed_anew_by_nodes_alone() {
    let edit = |affinity: Value| {
        change("batch", "Job", stored(with(job(), "/spec/suspend", json!(true))), move |o| {
            o["spec"]["template"]["spec"]["affinity"] = affinity.clone();
        })
        .1
    };
    let term = json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]});
    let on_nodes = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}});
    assert_eq!(edit(on_nodes), "");
    let by_pods = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "a", "labelSelector": {"matchLabels": {"a": "b"}}}]}});
    assert!(edit(by_pods).ends_with("field is immutable"));
}

#[test]
fn a_status_of_a_job_is_checked_where_it_changes() {
    let status = |status: Value| with(indexed(json!({"suspend": false})), "/status", status);
    let job = with(job(), "/status", json!({}));
    let check = |new: &Value, old: &Value| {
        let mut errors = api::field::ErrorList::default();
        named("batch", "Job").validate_status_update(new, old, &mut errors);
        if errors.is_empty() { String::new() } else { errors.aggregate() }
    };
    let both = status(json!({"completedIndexes": "0-2", "failedIndexes": "2"}));
    assert!(check(&both, &status(json!({}))).contains("overlap at index: 2"));
    assert_eq!(check(&both, &both), "");
    let met =
        with(job.clone(), "/status/conditions", json!([{"type": "SuccessCriteriaMet", "status": "True"}]));
    assert_eq!(
        check(&job, &met),
        "status.conditions: Invalid value: cannot disable the SuccessCriteriaMet=True condition"
    );
}

fn cron(schedule: &str, zone: Value) -> Value {
    json!({"metadata": {"name": "c", "generation": 1}, "spec": {"schedule": schedule, "timeZone": zone,
        "jobTemplate": {"spec": {"template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}}}})
}

#[test]
fn a_cron_job_keeps_the_time_zone_it_had() {
    const TZ: &str = "TZ=UTC 0 * * * *";
    for (schedule, zone, wanted) in [
        ("0 * * * *", json!("Europe/Berlin"), ""),
        (
            "0 * * * *",
            json!("europe/berlin"),
            r#"spec.timeZone: Invalid value: "europe/berlin": unknown time zone europe/berlin"#,
        ),
        (
            TZ,
            json!(null),
            r#"spec.schedule: Invalid value: "TZ=UTC 0 * * * *": cannot use TZ or CRON_TZ in schedule, use timeZone field instead"#,
        ),
    ] {
        assert_eq!(refused("batch", "CronJob", cron(schedule, zone)), wanted);
    }
    let keeps = |zone: Value| {
        change("batch", "CronJob", cron(TZ, json!(null)), move |o| o["spec"]["timeZone"] = zone.clone()).1
    };
    assert_eq!(keeps(json!(null)), "");
    assert_eq!(
        keeps(json!("UTC")),
        r#"spec.schedule: Invalid value: "TZ=UTC 0 * * * *": cannot use both timeZone field and TZ or CRON_TZ in schedule"#
    );
}

#[test]
fn the_service_of_a_stateful_set_is_a_label_when_it_is_new() {
    let set = |service: &str| {
        json!({"metadata": {"name": "s", "generation": 1}, "spec": {"serviceName": service,
            "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {
                "containers": [{"name": "c", "image": "i"}]}}}})
    };
    assert_eq!(refused("apps", "StatefulSet", set("s")), "");
    assert!(
        refused("apps", "StatefulSet", set("A_b")).starts_with("spec.serviceName: Invalid value: \"A_b\"")
    );
    assert_eq!(change("apps", "StatefulSet", set("A_b"), |o| o["spec"]["replicas"] = json!(2)).1, "");
}

#[test]
fn an_autoscaler_names_its_target_and_policies() {
    let scaler = |more: Value| {
        let mut spec = json!({"maxReplicas": 2, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}});
        let more = more.as_object().cloned().unwrap_or_default();
        spec.as_object_mut().expect("a spec").extend(more);
        json!({"apiVersion": "autoscaling/v2", "metadata": {"name": "h"}, "spec": spec})
    };
    let object = |target: Value| {
        scaler(json!({"metrics": [{"type": "Object", "object": {"metric": {"name": "m"}, "target": target,
            "describedObject": {"apiVersion": "v1", "kind": "Service", "name": "s"}}}]}))
    };
    for (spec, wanted) in [
        (scaler(json!({})), ""),
        (
            scaler(json!({"scaleTargetRef": {"apiVersion": "a/b/c", "kind": "D", "name": "d"}})),
            r#"spec.scaleTargetRef.apiVersion: Invalid value: "a/b/c": unexpected GroupVersion string: a/b/c"#,
        ),
        (
            object(json!({"type": "Value"})),
            "spec.metrics[0].object.target.averageValue: Required value: must set either a target value or averageValue",
        ),
        (
            scaler(json!({"behavior": {"scaleUp": {"stabilizationWindowSeconds": -1, "policies": []}}})),
            "[spec.behavior.scaleUp.stabilizationWindowSeconds: Invalid value: -1: must be greater than or equal to zero, spec.behavior.scaleUp.policies: Required value: must specify at least one Policy]",
        ),
    ] {
        assert_eq!(refused("autoscaling", "HorizontalPodAutoscaler", spec), wanted);
    }
    let old = scaler(json!({"scaleTargetRef": {"apiVersion": "v1", "kind": "D", "name": "d"}}));
    let edit = |o: &mut Value| o["spec"]["maxReplicas"] = json!(3);
    assert_eq!(change("autoscaling", "HorizontalPodAutoscaler", old, edit).1, "");
}

#[test]
fn ranges_of_policies_are_strict_when_they_are_new() {
    let policy = |cidr: &str, except: &[&str]| {
        json!({"metadata": {"name": "n", "generation": 1}, "spec": {"podSelector": {}, "ingress": [
            {"from": [{"ipBlock": {"cidr": cidr, "except": except}}]}]}})
    };
    let at = "spec.ingress[0].from[0].ipBlock";
    for (object, wanted) in [
        (policy("10.0.0.0/8", &["10.1.0.0/16"]), String::new()),
        (
            policy("010.0.0.0/8", &[]),
            format!(
                r#"{at}.cidr: Invalid value: "010.0.0.0/8": must not have leading 0s in IP or prefix length"#
            ),
        ),
        (
            policy("::ffff:10.0.0.0/104", &[]),
            format!(
                r#"{at}.cidr: Invalid value: "::ffff:10.0.0.0/104": must not have an IPv4-mapped IPv6 address"#
            ),
        ),
        (
            policy("x", &["y"]),
            format!(
                r#"{at}.cidr: Invalid value: "x": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"#
            ),
        ),
    ] {
        assert_eq!(refused("networking.k8s.io", "NetworkPolicy", object), wanted);
    }
    let old = policy("010.0.0.0/8", &[]);
    let edit = |o: &mut Value| o["spec"]["ingress"][0]["ports"] = json!([{"port": 80}]);
    assert_eq!(change("networking.k8s.io", "NetworkPolicy", old, edit).1, "");
}

#[test]
fn a_service_range_may_only_gain_one_of_the_other_family() {
    let range = |cidrs: Value| json!({"metadata": {"name": "r"}, "spec": {"cidrs": cidrs}});
    let edit = |cidrs: Value| {
        change("networking.k8s.io", "ServiceCIDR", range(json!(["10.0.0.0/24"])), move |o| {
            o["spec"]["cidrs"] = cidrs.clone();
        })
        .1
    };
    assert_eq!(edit(json!(["10.0.0.0/24", "fd00::/112"])), "");
    assert_eq!(
        edit(json!(["10.1.0.0/24"])),
        r#"spec.cidrs[0]: Invalid value: "10.1.0.0/24": field is immutable"#
    );
    // that it changes is all that is said of it
    assert_eq!(edit(json!(["x"])), r#"spec.cidrs[0]: Invalid value: "x": field is immutable"#);
    assert_eq!(edit(json!([])), "spec.cidrs: Invalid value: []: field is immutable");
    assert_eq!(
        edit(json!(["10.0.0.0/24", "10.1.0.0/24"])),
        r#"spec.cidrs: Invalid value: ["10.0.0.0/24","10.1.0.0/24"]: may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64"#
    );
    assert_eq!(
        refused("networking.k8s.io", "ServiceCIDR", range(json!(["fd00:0::/112"]))),
        r#"spec.cidrs[0]: Invalid value: "fd00:0::/112": must be in canonical form ("fd00::/112")"#
    );
}

#[test]
fn an_ingress_may_name_its_class_twice_if_it_is_the_same() {
    let ingress = |class: &str| {
        json!({"metadata": {"name": "i", "annotations": {"kubernetes.io/ingress.class": "a"}}, "spec": {
            "ingressClassName": class, "rules": [{"http": {"paths": [{"path": "/", "backend": {}}]}}]}})
    };
    let kind = "spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified";
    assert_eq!(refused("networking.k8s.io", "Ingress", ingress("a")), kind);
    assert_eq!(
        refused("networking.k8s.io", "Ingress", ingress("b")),
        format!(
            "[{kind}, annotations.kubernetes.io/ingress.class: Invalid value: \"a\": must match `ingressClassName` when both are specified]"
        )
    );
}

#[test]
fn a_driver_on_a_node_changes_only_what_it_can_take() {
    let node = json!({"metadata": {"name": "n"}, "spec": {"drivers": [{"name": "d", "nodeID": "i", "topologyKeys": null}]}});
    let edit = |key: &'static str, value: Value| {
        change("storage.k8s.io", "CSINode", node.clone(), move |o| {
            o["spec"]["drivers"][0][key] = value.clone()
        })
        .1
    };
    assert_eq!(edit("allocatable", json!({"count": 3})), "");
    assert_eq!(
        edit("nodeID", json!("j")),
        r#"spec.drivers: Invalid value: {"Name":"d","NodeID":"j","TopologyKeys":null,"Allocatable":null}: field is immutable"#
    );
}

#[test]
fn the_hash_of_a_flow_is_long_enough_for_its_hand() {
    let level = |queues: i64, hand: i64| {
        json!({"metadata": {"name": "l"}, "spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Queue",
            "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": 5}}}}})
    };
    let check = |queues, hand| {
        refused("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration", level(queues, hand))
    };
    assert_eq!(check(15, 15), "");
    assert_eq!(
        check(16, 16),
        "spec.limited.limitResponse.queuing.handSize: Invalid value: 16: required entropy bits of deckSize 16 and handSize 16 should not be greater than 60"
    );
}

#[test]
fn a_class_of_system_priority_is_refused_once() {
    let class = json!({"metadata": {"name": "system-mine"}, "value": 1_000_000_001});
    assert_eq!(
        refused("scheduling.k8s.io", "PriorityClass", class),
        "metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. error: system-mine is not a known system priority class"
    );
    let lease = json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "", "leaseTransitions": 1}});
    assert_eq!(refused("coordination.k8s.io", "Lease", lease), "");
}

#[test]
fn what_a_workloads_template_says_is_worth_a_word_whenever_it_changes() {
    let template = json!({"spec": {"nodeSelector": {"beta.kubernetes.io/os": "linux"}, "containers": [{"name": "c", "image": "i"}]}});
    let why =
        "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead";
    for (group, kind, path) in [
        ("apps", "Deployment", "spec.template"),
        ("apps", "ReplicaSet", "spec.template"),
        ("apps", "DaemonSet", "spec.template"),
        ("apps", "StatefulSet", "spec.template"),
        ("batch", "Job", "spec.template"),
        ("batch", "CronJob", "spec.jobTemplate.spec.template"),
    ] {
        let spec = path.rsplit('.').fold(template.clone(), |inner, key| json!({key: inner}));
        let mut new = json!({"metadata": {"name": "w", "generation": 1}});
        new["spec"] = spec["spec"].clone();
        let strategy = named(group, kind);
        strategy.default(&mut new);
        assert_eq!(strategy.warnings(&new, None), [format!("{path}.{why}")], "{kind}");
        let same = new.clone();
        assert_eq!(strategy.warnings(&new, Some(&same)), [""; 0], "{kind}");
        new["metadata"]["generation"] = json!(2);
        assert_eq!(strategy.warnings(&new, Some(&same)), [format!("{path}.{why}")], "{kind}");
    }
}

#[test]
fn who_writes_a_status_may_relabel_most_kinds() {
    let after = |group: &str, kind: &str| {
        let old = json!({"metadata": {"name": "o", "uid": "u", "labels": {"a": "1"}, "annotations": {"a": "1"}}, "spec": {"x": 1}});
        let mut new = json!({"metadata": {"name": "o", "uid": "other", "labels": {"a": "2"}, "annotations": {"a": "2"}}, "spec": {"x": 2}, "status": {}});
        named(group, kind).prepare_status_update(&now(), &mut new, &old);
        assert_eq!(new["spec"], old["spec"], "{kind}");
        let of = |key: &str| new["metadata"][key]["a"].as_str().unwrap_or_default().to_owned();
        (of("labels"), of("annotations"), new["metadata"]["uid"].clone())
    };
    let other = || json!("other");
    for kind in ["Node", "PersistentVolumeClaim", "Service", "Namespace"] {
        assert_eq!(after("", kind), ("2".into(), "2".into(), other()), "{kind}");
    }
    assert_eq!(after("apps", "Deployment"), ("1".into(), "2".into(), other()));
    assert_eq!(after("apiextensions.k8s.io", "CustomResourceDefinition"), ("2".into(), "2".into(), other()));
    for (group, kind) in [("storage.k8s.io", "VolumeAttachment"), ("resource.k8s.io", "ResourceClaim")] {
        assert_eq!(after(group, kind), ("1".into(), "1".into(), other()), "{kind}");
    }
}

#[test]
fn an_event_of_the_newer_group_says_of_a_series_how_often_and_when() {
    let event = |series: Value| {
        json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e", "namespace": "d"},
            "eventTime": "2026-01-01T00:00:00.000000Z", "regarding": {"namespace": "d"}, "reason": "r", "type": "Normal",
            "action": "a", "reportingController": "c.io/c", "reportingInstance": "i", "series": series})
    };
    let time = "2026-01-01T00:00:00.000000Z";
    let two = json!({"count": 2, "lastObservedTime": time});
    assert_eq!(refused("events.k8s.io", "Event", event(two.clone())), "");
    assert_eq!(
        refused("events.k8s.io", "Event", event(json!({"count": 1}))),
        r#"[series.count: Invalid value: "": should be at least 2, series.lastObservedTime: Required value]"#
    );
    let series =
        |to: Value| change("events.k8s.io", "Event", event(two.clone()), move |o| o["series"] = to.clone()).1;
    assert_eq!(series(json!({"count": 3, "lastObservedTime": time})), "");
    assert_eq!(series(json!({"count": 3})), "series.lastObservedTime: Required value");
    let (_, why) = change("events.k8s.io", "Event", event(json!({"count": 1})), |_| ());
    assert_eq!(why, "", "what does not change is not read again");
}

#[test]
fn a_signing_request_is_signed_by_its_own_key() {
    use base64::Engine as _;
    let coded = |text: &[u8]| base64::engine::general_purpose::STANDARD.encode(text);
    let csr = |request: String| json!({"metadata": {"name": "r"}, "spec": {"request": request, "signerName": "a.io/b", "usages": ["client auth"]}});
    let check =
        |request: &[u8]| refused("certificates.k8s.io", "CertificateSigningRequest", csr(coded(request)));
    let wrong =
        |request: &[u8], why: &str| format!("spec.request: Invalid value: \"{}\": {why}", coded(request));
    for (algorithm, why) in [
        (&rcgen::PKCS_ECDSA_P256_SHA256, "x509: ECDSA verification failure"),
        (&rcgen::PKCS_ECDSA_P384_SHA384, "x509: ECDSA verification failure"),
        (&rcgen::PKCS_ED25519, "x509: Ed25519 verification failure"),
    ] {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let request =
            rcgen::CertificateParams::new(["a.example".to_owned()]).unwrap().serialize_request(&key).unwrap();
        let good = request.pem().unwrap();
        assert_eq!(check(good.as_bytes()), "");
        let mut der = request.der().to_vec();
        let at = der.windows(9).position(|w| w == b"a.example").expect("the name");
        der[at] = b'b';
        let forged = format!(
            "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
            coded(&der)
        );
        assert_eq!(check(forged.as_bytes()), wrong(forged.as_bytes(), why));
    }
    assert_eq!(check(b"x"), wrong(b"x", "PEM block type must be CERTIFICATE REQUEST"));
}
