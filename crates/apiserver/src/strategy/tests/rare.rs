//! Rules that few objects meet.

use serde_json::{Value, json};

use super::{ErrorList, change, deployment, named, now, pod, refused};

pub(super) fn status_change(group: &str, kind: &str, old: &Value, status: Value) -> (Value, String) {
    let strategy = named(group, kind);
    let mut new = old.clone();
    new["status"] = status;
    strategy.prepare_status_update(&now(), &mut new, old);
    let mut errors = ErrorList::default();
    strategy.validate_status_update(&new, old, &mut errors);
    (new, if errors.is_empty() { String::new() } else { errors.aggregate() })
}

#[test]
fn selectors_and_parameters_of_a_device_class_that_stay_are_not_judged_again() {
    let wrong = json!([{"cel": {"expression": "1 +"}}]);
    let config = json!([{"opaque": {"driver": "", "parameters": {}}}]);
    let class =
        json!({"metadata": {"name": "c", "generation": 1}, "spec": {"selectors": wrong, "config": config}});
    assert!(
        refused("resource.k8s.io", "DeviceClass", class.clone()).contains("spec.selectors[0].cel.expression")
    );
    let label = |o: &mut Value| o["metadata"]["labels"] = json!({"a": "b"});
    assert_eq!(change("resource.k8s.io", "DeviceClass", class.clone(), label).1, "");
    let another = |o: &mut Value| {
        o["spec"]["selectors"] = json!([{"cel": {"expression": "1 +"}}, {"cel": {"expression": "true"}}]);
    };
    let (_, errors) = change("resource.k8s.io", "DeviceClass", class, another);
    assert!(
        errors.contains("spec.selectors[0].cel.expression") && !errors.contains("spec.config"),
        "{errors}"
    );
}

#[test]
fn annotations_of_a_node_that_once_were_fields_are_read() {
    const TAINTS: &str = "scheduler.alpha.kubernetes.io/taints";
    const AVOID: &str = "scheduler.alpha.kubernetes.io/preferAvoidPods";
    let node = |key: &str, text: &str| json!({"metadata": {"name": "n", "annotations": {key: text}}});
    for (object, wanted) in [
        (node(TAINTS, "[]"), ""),
        (
            node(TAINTS, r#"[{"key": "a", "effect": "No"}]"#),
            r#"metadata.annotations.scheduler.alpha.kubernetes.io/taints[0].effect: Unsupported value: "No": supported values: "NoSchedule", "PreferNoSchedule", "NoExecute""#,
        ),
        (
            node(TAINTS, "["),
            r#"metadata.annotations: Invalid value: "scheduler.alpha.kubernetes.io/taints": unexpected end of JSON input"#,
        ),
        (
            node(
                AVOID,
                r#"{"preferAvoidPods": [{"podSignature": {}}, {"podSignature": {"podController": {"controller": false}}}]}"#,
            ),
            "[metadata.annotations.scheduler.alpha.kubernetes.io/preferAvoidPods[0].PodSignature: Required value, metadata.annotations.scheduler.alpha.kubernetes.io/preferAvoidPods[1].PodSignature.PodController.Controller: Invalid value: false: must point to a controller]",
        ),
    ] {
        assert_eq!(refused("", "Node", object), wanted);
    }
}

#[test]
fn ranges_of_a_node_are_one_of_each_family_and_stay() {
    let node = |ranges: Value| json!({"metadata": {"name": "n"}, "spec": {"podCIDRs": ranges}});
    assert_eq!(refused("", "Node", node(json!(["10.0.0.0/24", "fd00::/64"]))), "");
    assert_eq!(
        refused("", "Node", node(json!(["10.0.0.0/24", "10.0.0.0/24"]))),
        r#"[spec.podCIDRs: Invalid value: ["10.0.0.0/24","10.0.0.0/24"]: may specify no more than one CIDR for each IP family, spec.podCIDRs[1]: Duplicate value: "10.0.0.0/24"]"#
    );
    let other = |o: &mut Value| o["spec"] = json!({"podCIDRs": ["10.0.1.0/24"]});
    let (_, errors) = change("", "Node", node(json!(["10.0.0.0/24"])), other);
    assert_eq!(
        errors,
        r#"spec.podCIDRs: Forbidden: node updates may not change podCIDR except from "" to valid"#
    );
}

#[test]
fn a_nodes_configuration_is_not_taken_any_more() {
    let node = json!({"metadata": {"name": "n"}, "spec": {}});
    let (new, errors) =
        status_change("", "Node", &node, json!({"config": {"error": "e"}, "phase": "Running"}));
    assert_eq!((&new["status"], errors.as_str()), (&json!({"phase": "Running"}), ""));
}

#[test]
fn probes_name_what_they_lack_and_what_they_may_not_have() {
    let with = |probe: Value| {
        let mut pod = pod();
        pod["spec"]["containers"][0]["readinessProbe"] = probe;
        refused("", "Pod", pod)
    };
    assert_eq!(
        with(json!({"grpc": {}})),
        "spec.containers[0].readinessProbe.grpc.port: Invalid value: 0: must be between 1 and 65535, inclusive"
    );
    assert_eq!(
        with(json!({"exec": {"command": ["a"]}, "terminationGracePeriodSeconds": 0})),
        "[spec.containers[0].readinessProbe.terminationGracePeriodSeconds: Invalid value: 0: must be greater than 0, spec.containers[0].readinessProbe.terminationGracePeriodSeconds: Invalid value: 0: must not be set for readinessProbes]"
    );
}

#[test]
fn a_rolling_update_by_no_number_does_nothing() {
    let mut deployment = deployment();
    deployment["spec"]["strategy"]["rollingUpdate"] = json!({"maxUnavailable": "some", "maxSurge": "0%"});
    let errors = refused("apps", "Deployment", deployment);
    assert!(
        errors.contains(r#"maxUnavailable: Invalid value: "some": may not be 0 when `maxSurge` is 0"#),
        "{errors}"
    );
}

#[test]
fn an_ingress_says_where_to_send() {
    let ingress = |spec: Value| {
        refused("networking.k8s.io", "Ingress", json!({"metadata": {"name": "i"}, "spec": spec}))
    };
    let why = "either `defaultBackend` or `rules` must be specified";
    assert_eq!(ingress(json!({})), format!("spec: Invalid value: null: {why}"));
    assert_eq!(ingress(json!({"rules": []})), format!("spec: Invalid value: []: {why}"));
}

#[test]
fn requests_of_huge_pages_are_compared_before_they_are_counted() {
    let mut pod = pod();
    pod["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "1", "hugepages-2Mi": "4Mi"}, "requests": {"cpu": "1", "hugepages-2Mi": "3Mi", "pods": "500m"}});
    assert_eq!(
        refused("", "Pod", pod),
        r#"[spec.containers[0].resources.requests: Invalid value: "3Mi": must be equal to hugepages-2Mi limit of 4Mi, spec.containers[0].resources.requests[hugepages-2Mi]: Invalid value: "3Mi": 3Mi is not positive integer multiple of hugepages-2Mi, spec.containers[0].resources.requests[pods]: Invalid value: "pods": must be a standard resource for containers, spec.containers[0].resources.requests[pods]: Invalid value: "500m": must be an integer]"#
    );
}

#[test]
fn what_devices_are_said_to_be_is_what_the_container_asked_for() {
    let mut old = pod();
    old["spec"]["containers"][0]["resources"] = json!({"requests": {"a.b/c": 1}, "claims": [{"name": "x"}]});
    let resource = |name: &str, health: &str| json!({"name": name, "resources": [{"resourceID": "1", "health": health}]});
    let status =
        |list: Value| json!({"containerStatuses": [{"name": "c", "allocatedResourcesStatus": list}]});
    let said = |list: Value| status_change("", "Pod", &old, status(list)).1;
    assert_eq!(said(json!([resource("a.b/c", "Healthy"), resource("claim:x", "Unknown")])), "");
    assert_eq!(
        said(json!([resource("d", "Bad")])),
        r#"[status.containerStatuses[0].allocatedResourcesStatus[0].name: Invalid value: "d": must match one of the container's resource requests, status.containerStatuses[0].allocatedResourcesStatus[0].resources[0].health: Unsupported value: "Bad": supported values: "Healthy", "Unhealthy", "Unknown"]"#
    );
    let user = json!({"containerStatuses": [{"name": "c", "user": {"linux": {"uid": -1, "gid": 0}}}]});
    assert_eq!(
        status_change("", "Pod", &old, user).1,
        "status.containerStatuses[0].linux.uid: Invalid value: -1: must be between 0 and 2147483647, inclusive"
    );
}

#[test]
fn a_services_fields_are_what_its_type_allows() {
    let service = |spec: Value| json!({"metadata": {"name": "s"}, "spec": spec});
    assert_eq!(
        refused("", "Service", service(json!({"type": "ExternalName", "externalName": "."}))),
        "spec.externalName: Required value"
    );
    // a load balancer may use any port, the kubelet's too
    assert_eq!(
        refused("", "Service", service(json!({"type": "LoadBalancer", "ports": [{"port": 10250}]}))),
        ""
    );
    let ports = json!({"type": "ClusterIP", "ports": [{"port": 80}]});
    let (_, errors) =
        change("", "Service", service(ports), |o| o["spec"]["loadBalancerClass"] = json!("a.b/c"));
    assert_eq!(errors, "spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'");
}

#[test]
fn a_bound_claim_of_unknown_size_may_ask_for_less() {
    let claim = json!({"metadata": {"name": "c"}, "status": {"phase": "Bound"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}, "volumeName": "v"}});
    let less = |o: &mut Value| o["spec"]["resources"]["requests"]["storage"] = json!("1Gi");
    assert_eq!(change("", "PersistentVolumeClaim", claim.clone(), less).1, "");
    let mut sized = claim;
    sized["status"]["capacity"] = json!({"storage": "1Gi"});
    assert_eq!(
        change("", "PersistentVolumeClaim", sized, less).1,
        "spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"
    );
}

#[test]
fn what_a_check_of_types_found_has_a_place() {
    let policy = json!({"kind": "ValidatingAdmissionPolicy", "metadata": {"name": "p"}, "spec": {}});
    let check = |status: Value| {
        status_change("admissionregistration.k8s.io", "ValidatingAdmissionPolicy", &policy, status).1
    };
    let warnings = |list: Value| json!({"typeChecking": {"expressionWarnings": list}});
    assert_eq!(check(warnings(json!([{"fieldRef": "spec.validations[0].expression", "warning": "w"}]))), "");
    let at = "status.typeChecking.expressionWarnings[0]";
    assert_eq!(
        check(warnings(json!([{"fieldRef": " ", "warning": ""}]))),
        format!("[{at}.warning: Required value, {at}.fieldRef: Required value]")
    );
    assert_eq!(
        check(json!({"conditions": [{"type": "A", "status": "True", "reason": "r", "lastTransitionTime": "t"}, {"type": "A"}]}))
            .split(": ")
            .next(),
        Some("[status.conditions[1].type")
    );
}

#[test]
fn names_that_will_belong_to_files_are_warned_of_once() {
    let warned = |group: &str, kind: &str, name: &str, old: bool| {
        let object = json!({"kind": kind, "metadata": {"name": name}});
        named(group, kind).warnings(&object, old.then_some(&object))
    };
    let group = "admissionregistration.k8s.io";
    for kind in [
        "ValidatingWebhookConfiguration",
        "MutatingWebhookConfiguration",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
        "MutatingAdmissionPolicy",
        "MutatingAdmissionPolicyBinding",
    ] {
        assert_eq!(
            warned(group, kind, "a.static.k8s.io", false),
            [
                r#"metadata.name: names ending with ".static.k8s.io" will be reserved for static manifest-based configurations when the ManifestBasedAdmissionControlConfig feature gate is enabled"#
            ]
        );
        assert!(warned(group, kind, "a.static.k8s.io", true).is_empty());
        assert!(warned(group, kind, "static.k8s.io", false).is_empty());
    }
}

#[test]
fn a_metric_of_a_container_is_one_that_containers_have() {
    let autoscaler = |name: &str| {
        json!({"apiVersion": "autoscaling/v2", "metadata": {"name": "h"}, "spec": {"maxReplicas": 2,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"},
            "metrics": [{"type": "ContainerResource", "containerResource": {"name": name, "container": "c",
                "target": {"type": "Utilization", "averageUtilization": 5}}}]}})
    };
    let check = |name: &str| refused("autoscaling", "HorizontalPodAutoscaler", autoscaler(name));
    assert_eq!((check("cpu"), check("a.io/b")), (String::new(), String::new()));
    let at = "spec.metrics[0].containerResource.name: Invalid value";
    assert_eq!(
        check("foo"),
        format!(
            r#"[{at}: "foo": must be a standard resource type or fully qualified, {at}: "foo": must be a standard resource for containers]"#
        )
    );
}

#[test]
fn a_hand_is_no_larger_than_the_deck_even_where_that_is_none() {
    let level = json!({"metadata": {"name": "l"}, "spec": {"type": "Limited", "limited": {"limitResponse": {
        "type": "Queue", "queuing": {"queues": -1}}}}});
    let at = "spec.limited.limitResponse.queuing";
    assert_eq!(
        refused("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration", level),
        format!(
            "[{at}.queues: Invalid value: -1: must be positive, {at}.handSize: Invalid value: 8: should not be greater than queues (-1)]"
        )
    );
}
