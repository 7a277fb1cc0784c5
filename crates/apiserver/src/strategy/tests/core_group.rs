//! Rules of the core group: what is refused, in which words and order; what changes and what stays.

use super::*;

fn with(mut object: Value, more: &Value) -> Value {
    let mut spec = object["spec"].take();
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    object["spec"] = spec;
    object
}

/// What is said of a pod with this in its spec.
fn of_pod(spec: Value) -> String {
    refused("", "Pod", with(pod(), &spec))
}

/// What is said of a pod whose only container has this too.
fn of_container(more: Value) -> String {
    let mut container = json!({"name": "c", "image": "i"});
    container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    of_pod(json!({"containers": [container]}))
}

fn noted(annotations: Value, spec: Value) -> String {
    let mut object = with(pod(), &spec);
    object["metadata"]["annotations"] = annotations;
    refused("", "Pod", object)
}

#[test]
fn annotations_of_pods_are_held_to_what_they_mean() {
    let app_armor = "container.apparmor.security.beta.kubernetes.io/";
    let lines = [
        noted(json!({format!("{app_armor}x"): "runtime/default"}), json!({})),
        noted(json!({format!("{app_armor}c"): "wrong"}), json!({})),
        noted(json!({"seccomp.security.alpha.kubernetes.io/pod": "wrong"}), json!({})),
        noted(json!({"container.seccomp.security.alpha.kubernetes.io/c": "localhost//a"}), json!({})),
        noted(
            json!({"seccomp.security.alpha.kubernetes.io/pod": "unconfined"}),
            json!({"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}),
        ),
        noted(
            json!({format!("{app_armor}c"): "unconfined"}),
            json!({"securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}}),
        ),
        noted(json!({"controller.kubernetes.io/pod-deletion-cost": "-08"}), json!({})),
        noted(json!({"controller.kubernetes.io/pod-deletion-cost": "+8"}), json!({})),
        noted(json!({"scheduler.alpha.kubernetes.io/tolerations": "{}"}), json!({})),
    ];
    expect_test::expect![[r#"
        metadata.annotations[container.apparmor.security.beta.kubernetes.io/x]: Invalid value: "x": container not found
        metadata.annotations[container.apparmor.security.beta.kubernetes.io/c]: Invalid value: "wrong": invalid AppArmor profile name: "wrong"
        metadata.annotations.seccomp.security.alpha.kubernetes.io/pod: Invalid value: "wrong": must be a valid seccomp profile
        metadata.annotations.container.seccomp.security.alpha.kubernetes.io/c: Invalid value: "/a": must be a relative path
        spec.securityContext.seccompProfile.type: Forbidden: seccomp type in annotation and field must match
        spec.containers[0].securityContext.appArmorProfile.type: Forbidden: apparmor type in annotation and field must match

        metadata.annotations[controller.kubernetes.io/pod-deletion-cost]: Invalid value: "+8": must be a 32bit integer
        metadata.annotations: Invalid value: "scheduler.alpha.kubernetes.io/tolerations": json: cannot unmarshal object into Go value of type []v1.Toleration"#]]
    .assert_eq(&lines.join("\n"));
}

#[test]
fn a_pods_spec_is_held_to_the_rules_of_the_whole() {
    let security = |context: Value| json!({"os": {"name": "windows"}, "securityContext": context});
    let lines = [
        of_pod(json!({"hostnameOverride": "h", "hostNetwork": true, "setHostnameAsFQDN": true})),
        of_pod(json!({"runtimeClassName": ""})),
        of_pod(json!({"preemptionPolicy": ""})),
        of_pod(json!({"os": {"name": "plan9"}})),
        of_pod(security(json!({"seLinuxChangePolicy": "Recursive"}))),
        of_pod(json!({"os": {"name": "windows"}, "hostPID": true, "shareProcessNamespace": true,
            "securityContext": {"seLinuxOptions": {}, "fsGroup": 1, "runAsUser": 1}})),
        of_pod(json!({"os": {"name": "windows"}, "hostUsers": false,
            "containers": [{"name": "c", "image": "i", "securityContext": {"privileged": false}}]})),
        of_pod(json!({"os": {"name": "linux"},
            "containers": [{"name": "c", "image": "i", "securityContext": {"windowsOptions": {}}}]})),
        of_pod(
            json!({"hostNetwork": true, "securityContext": {"sysctls": [{"name": "net/core/somaxconn", "value": "1"}]}}),
        ),
        of_pod(json!({"dnsConfig": {"searches": ["_tcp.a_b", "a_"]}})),
        of_pod(json!({"imagePullSecrets": [{}]})),
        of_pod(
            json!({"volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]}),
        ),
        of_pod(json!({"topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "a b", "whenUnsatisfiable": "DoNotSchedule"},
            {"maxSkew": 2, "topologyKey": "a b", "whenUnsatisfiable": "DoNotSchedule", "matchLabelKeys": ["x"]}]})),
        of_pod(json!({"resources": {"limits": {"pods": "1"}}})),
        of_pod(json!({"resources": {"requests": {"cpu": "1"}}, "initContainers": [
            {"name": "i", "image": "i", "resources": {"requests": {"cpu": "2"}}}]})),
        of_pod(json!({"overhead": {"hugepages-2Mi": "2Mi"}})),
    ];
    expect_test::expect![[r#"
        [spec.hostnameOverride: Forbidden: may not be specified when setHostnameAsFQDN is true, spec.hostnameOverride: Forbidden: may not be specified when hostNetwork is true]
        spec.runtimeClassName: Invalid value: "": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
        spec.preemptionPolicy: Required value
        spec.os: Unsupported value: "plan9": supported values: "linux", "windows"
        spec.securityContext.seLinuxChangePolicy: Forbidden: cannot be set for a windows pod
        [spec.securityContext.shareProcessNamespace: Invalid value: true: ShareProcessNamespace and HostPID cannot both be enabled, spec.securityContext.seLinuxOptions: Forbidden: cannot be set for a windows pod, spec.hostPID: Forbidden: cannot be set for a windows pod, spec.securityContext.fsGroup: Forbidden: cannot be set for a windows pod, spec.shareProcessNamespace: Forbidden: cannot be set for a windows pod, spec.securityContext.runAsUser: Forbidden: cannot be set for a windows pod]
        [spec.hostUsers: Forbidden: cannot be set for a windows pod, spec.containers[0].securityContext.privileged: Forbidden: cannot be set for a windows pod]
        spec.containers[0].securityContext.windowsOptions: Forbidden: windows options cannot be set for a linux pod
        spec.securityContext.sysctls[0].name: Invalid value: "net/core/somaxconn": may not be specified when 'hostNetwork' is true
        spec.dnsConfig.searches[1]: Invalid value: "a_": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')

        spec.volumes[0].projected.sources[0].serviceAccountToken: Forbidden: must not be specified when serviceAccountName is not set
        [spec.topologySpreadConstraints[0].{topologyKey, whenUnsatisfiable}: Duplicate value: "{a b, DoNotSchedule}", spec.topologySpreadConstraints[1].matchLabelKeys: Forbidden: must not be specified when labelSelector is not set]
        spec.resources.limits[pods]: Unsupported value: "pods": supported values: "cpu", "hugepages-", "memory"
        spec.resources.requests[cpu]: Invalid value: "1": must be greater than or equal to aggregate container requests of 2
        spec.overhead: Forbidden: HugePages require cpu or memory"#]]
    .assert_eq(&lines.join("\n"));
}

#[test]
fn containers_are_held_to_their_own_rules() {
    let env = |from: Value| of_container(json!({"env": [{"name": "E", "value": "v", "valueFrom": from}]}));
    let field = |path: &str| {
        of_container(json!({"env": [{"name": "E", "valueFrom": {"fieldRef": {"fieldPath": path}}}]}))
    };
    let lines = [
        env(
            json!({"fieldRef": {"fieldPath": "metadata.name"}, "configMapKeyRef": {"name": "c", "key": ".."}}),
        ),
        field("spec.host"),
        field("metadata.labels['a b']"),
        of_container(json!({"envFrom": [{"secretRef": {"name": "a-"}}]})),
        of_container(
            json!({"restartPolicy": "Never", "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In"}}]}),
        ),
        of_container(json!({"securityContext": {"allowPrivilegeEscalation": false, "privileged": true}})),
        of_container(json!({"securityContext": {"procMount": ""}})),
        of_container(json!({"resources": {"requests": {"replicationcontrollers": "1"}}})),
        of_pod(
            json!({"resourceClaims": [{"name": "x", "resourceClaimName": "x"}], "containers": [{"name": "c", "image": "i",
            "resources": {"claims": [{"name": "x", "request": "R"}, {"name": "x"}]}}]}),
        ),
        of_pod(json!({"initContainers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i",
            "ports": [{"containerPort": 1, "hostPort": 1}, {"containerPort": 2, "hostPort": 1}]}]})),
        of_pod(
            json!({"initContainers": [{"name": "a", "image": "i", "restartPolicyRules": [{"action": "X"}]}]}),
        ),
    ];
    expect_test::expect![[r#"
        [spec.containers[0].env[0].valueFrom.configMapKeyRef.key: Invalid value: "..": must not be '..', spec.containers[0].env[0].valueFrom: Invalid value: "": may not be specified when `value` is not empty]

        spec.containers[0].env[0].valueFrom.fieldRef: Invalid value: "a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')


        spec.containers[0].securityContext: Invalid value: {"Capabilities":null,"Privileged":true,"SELinuxOptions":null,"WindowsOptions":null,"RunAsUser":null,"RunAsGroup":null,"RunAsNonRoot":null,"ReadOnlyRootFilesystem":null,"AllowPrivilegeEscalation":false,"ProcMount":null,"SeccompProfile":null,"AppArmorProfile":null}: cannot set `allowPrivilegeEscalation` to false and `privileged` to true
        spec.containers[0].securityContext.procMount: Unsupported value: "": supported values: "Default", "Unmasked"
        spec.containers[0].resources.requests[replicationcontrollers]: Invalid value: "replicationcontrollers": must be a standard resource for containers
        [spec.containers[0].resources.claims[0].request: Invalid value: "R": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?'), spec.containers[0].resources.claims[1]: Duplicate value: "x"]
        spec.initContainers[0].ports[1].hostPort: Duplicate value: "TCP//1"
        spec.initContainers[0].restartPolicy: Required value: must specify restartPolicy when restart rules are used"#]]
    .assert_eq(&lines.join("\n"));
}

#[test]
fn a_key_from_the_pods_labels_may_not_stand_in_the_selector_besides() {
    let mut object = with(
        pod(),
        &json!({"affinity": {"podAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "zone", "matchLabelKeys": ["app"],
            "mismatchLabelKeys": ["app"], "labelSelector": {"matchLabels": {"app": "x"}}}]}}}),
    );
    object["metadata"]["labels"] = json!({"app": "x"});
    let at = "spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0]";
    let twice = format!(r#"{at}[0]: Invalid value: "app": exists in both matchLabelKeys and labelSelector"#);
    let both = format!(
        r#"{at}.matchLabelKeys[0]: Invalid value: "app": exists in both matchLabelKeys and mismatchLabelKeys"#
    );
    assert_eq!(refused("", "Pod", object), format!("[{twice}, {both}]"));
}

fn status_change(old: Value, edit: impl Fn(&mut Value)) -> (Value, String) {
    let strategy = named("", "Pod");
    let mut new = old.clone();
    edit(&mut new);
    strategy.prepare_status_update(&now(), &mut new, &old);
    let mut errors = ErrorList::default();
    strategy.validate_status_update(&new, &old, &mut errors);
    (new, if errors.is_empty() { String::new() } else { errors.aggregate() })
}

#[test]
fn what_ended_runs_again_only_as_its_policies_say() {
    let ended = |policy: Value, rules: Value, code: i64| {
        let mut old = with(pod(), &json!({"restartPolicy": "Never"}));
        for (key, value) in [("restartPolicy", policy), ("restartPolicyRules", rules)] {
            generic::set(&mut old["spec"]["containers"][0], key, Some(value).filter(|v| !v.is_null()));
        }
        old["status"] =
            json!({"containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": code}}}]});
        status_change(old, |p| p["status"]["containerStatuses"][0]["state"] = json!({"running": {}})).1
    };
    let rule = |action: &str| json!([{"action": action, "exitCodes": {"operator": "In", "values": [42]}}]);
    let no = "status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state";
    for (policy, rules, code, said) in [
        (Value::Null, Value::Null, 0, no),
        (json!("OnFailure"), Value::Null, 1, ""),
        (json!("OnFailure"), Value::Null, 0, no),
        (json!("Never"), rule("Restart"), 42, ""),
        (json!("Never"), rule("Restart"), 1, no),
        (json!("Never"), rule("RestartAllContainers"), 1, ""),
    ] {
        assert_eq!(ended(policy.clone(), rules.clone(), code), said, "{policy} {rules} {code}");
    }
}

#[test]
fn a_pods_status_keeps_what_old_clients_leave_out() {
    let mut old = pod();
    old["status"] = json!({"qosClass": "BestEffort", "observedGeneration": 3,
        "conditions": [{"type": "Ready", "status": "False", "observedGeneration": 2}]});
    let (new, errors) = status_change(old.clone(), |p| {
        p["status"] = json!({"conditions": [{"type": "Ready", "status": "True"}]});
    });
    assert_eq!(errors, "");
    assert_eq!(
        new["status"],
        json!({"qosClass": "BestEffort", "observedGeneration": 3,
        "conditions": [{"type": "Ready", "status": "True", "observedGeneration": 2}]})
    );
    let (_, errors) = status_change(old.clone(), |p| p["status"]["qosClass"] = json!("Guaranteed"));
    assert_eq!(errors, r#"status.qosClass: Invalid value: "Guaranteed": field is immutable"#);
    old["spec"]["nodeName"] = json!("n");
    let (_, errors) = status_change(old, |p| p["status"]["nominatedNodeName"] = json!("m"));
    assert_eq!(
        errors,
        "status.nominatedNodeName: Forbidden: may not be set on pods that are already bound to a node"
    );
}

#[test]
fn a_resize_leaves_containers_as_they_are() {
    let strategy = named("", "Pod");
    let resized = |edit: fn(&mut Value)| {
        let mut old = pod();
        old["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "1"}});
        strategy.default(&mut old);
        let mut new = old.clone();
        edit(&mut new);
        strategy.prepare_subresource_update("resize", &mut new, &old);
        let mut errors = ErrorList::default();
        strategy.validate_subresource_update("resize", &new, &old, &mut errors);
        if errors.is_empty() { String::new() } else { errors.aggregate() }
    };
    let lines = [
        resized(|p| p["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!("2")),
        resized(|p| p["spec"]["containers"][0]["name"] = json!("d")),
        resized(|p| {
            p["spec"]["containers"][0]["resizePolicy"] =
                json!([{"resourceName": "cpu", "restartPolicy": "NotRequired"}])
        }),
    ];
    expect_test::expect![[r#"

        spec.containers[0].name: Forbidden: containers may not be renamed or reordered on resize
        spec: Forbidden: only cpu and memory resources are mutable"#]]
    .assert_eq(&lines.join("\n"));
}

#[test]
fn what_fills_a_claim_is_looked_at() {
    let of_claim = |spec: Value| {
        let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}});
        refused("", "PersistentVolumeClaim", with(claim, &spec))
    };
    let source = |kind: &str, name: &str| json!({"kind": kind, "name": name});
    let lines = [
        of_claim(json!({"dataSourceRef": source("VolumeSnapshot", "")})),
        of_claim(
            json!({"dataSource": source("PersistentVolumeClaim", "a"), "dataSourceRef": source("PersistentVolumeClaim", "b")}),
        ),
        of_claim(json!({"dataSource": source("Anything", "a")})),
        of_claim(json!({"volumeAttributesClassName": "A_"})),
    ];
    expect_test::expect![[r#"
        [spec.dataSource.name: Required value, spec.dataSource: Invalid value: "VolumeSnapshot": must be 'PersistentVolumeClaim' when referencing the default apiGroup, spec.dataSourceRef.name: Required value, spec.dataSourceRef: Invalid value: "VolumeSnapshot": must be 'PersistentVolumeClaim' when referencing the default apiGroup]
        spec: Invalid value: {}: must match dataSourceRef

        spec.volumeAttributesClassName: Invalid value: "A_": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"#]]
    .assert_eq(&lines.join("\n"));
}

#[test]
fn other_words_for_one_amount_are_no_change_of_a_claim() {
    let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"], "volumeName": "v",
        "resources": {"requests": {"storage": "1Gi"}}}});
    let (_, errors) = change("", "PersistentVolumeClaim", claim, |c| {
        c["spec"]["resources"]["requests"]["storage"] = json!("1024Mi");
    });
    assert_eq!(errors, "");
}

#[test]
fn labels_of_a_volumes_nodes_may_only_get_their_newer_names() {
    let volume = json!({"metadata": {"name": "v"}, "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
        "hostPath": {"path": "/a"}, "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "beta.kubernetes.io/os", "operator": "In", "values": ["linux"]}]}]}}}});
    let rename = |to: &'static str| {
        change("", "PersistentVolume", volume.clone(), move |v| {
            v["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0]["key"] =
                json!(to);
        })
        .1
    };
    assert_eq!(rename("kubernetes.io/os"), "");
    let refused = rename("other");
    assert!(refused.starts_with(r#"nodeAffinity: Invalid value: {"Required":"#), "{refused}");
    assert!(refused.ends_with("field is immutable, except for updating from beta label to GA"), "{refused}");
}

#[test]
fn a_services_status_says_where_only_for_balancers() {
    let strategy = named("", "Service");
    let said = |kind: &str, ingress: Value| {
        let service = json!({"metadata": {"name": "s"}, "spec": {"type": kind}, "status": {"loadBalancer": {"ingress": [ingress]}}});
        let mut errors = ErrorList::default();
        strategy.validate_status_update(&service, &service, &mut errors);
        if errors.is_empty() { String::new() } else { errors.aggregate() }
    };
    let lines = [
        said("ClusterIP", json!({"ip": "1.2.3.4", "ipMode": "VIP"})),
        said("LoadBalancer", json!({"ip": "x"})),
        said("LoadBalancer", json!({"hostname": "1.2.3.4", "ipMode": "VIP"})),
        said("LoadBalancer", json!({"ip": "1.2.3.4", "ipMode": "X"})),
    ];
    expect_test::expect![[r#"
        status.loadBalancer.ingress: Forbidden: may only be used when `spec.type` is 'LoadBalancer'
        [status.loadBalancer.ingress[0].ip: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff), status.loadBalancer.ingress[0].ipMode: Required value: must be specified when `ip` is set]
        [status.loadBalancer.ingress[0].ipMode: Forbidden: may not be specified when `ip` is not set, status.loadBalancer.ingress[0].hostname: Invalid value: "1.2.3.4": must be a DNS name, not an IP address]
        status.loadBalancer.ingress[0].ipMode: Unsupported value: "X": supported values: "Proxy", "VIP""#]]
    .assert_eq(&lines.join("\n"));
}

#[test]
fn a_namespaces_own_finalizers_are_names() {
    let namespace =
        |finalizers: Value| json!({"metadata": {"name": "n"}, "spec": {"finalizers": finalizers}});
    let said = refused("", "Namespace", namespace(json!(["mine"])));
    assert_eq!(
        said,
        r#"spec.finalizers: Invalid value: "mine": name is neither a standard finalizer name nor is it fully qualified"#
    );
    let mut errors = ErrorList::default();
    let new = namespace(json!(["a.io/b", "mine"]));
    named("", "Namespace").validate_subresource_update("finalize", &new, &new, &mut errors);
    assert_eq!(
        errors.aggregate(),
        r#"spec.finalizers[1]: Invalid value: "mine": name is neither a standard finalizer name nor is it fully qualified"#
    );
}

#[test]
fn endpoints_that_were_stored_under_older_rules_stay() {
    let old = json!({"metadata": {"name": "e"}, "subsets": [{"addresses": [{"ip": "x"}]}]});
    assert_eq!(change("", "Endpoints", old.clone(), |e| e["metadata"]["labels"] = json!({"a": "b"})).1, "");
    let said = change("", "Endpoints", old, |e| e["subsets"][0]["addresses"][0]["ip"] = json!("y")).1;
    assert_eq!(
        said,
        r#"[subsets[0].addresses[0].ip: Invalid value: "y": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff), subsets[0].addresses[0].ip: Invalid value: "y": must be a valid IP address]"#
    );
}

fn warned(kind: &str, object: Value) -> String {
    let strategy = named("", kind);
    let mut object = object;
    strategy.default(&mut object);
    strategy.warnings(&object, None).join("\n")
}

#[test]
fn what_is_accepted_and_yet_worth_a_word() {
    let object = with(
        json!({"metadata": {"name": "a.b", "annotations": {"scheduler.alpha.kubernetes.io/critical-pod": ""}}, "spec": {}}),
        &json!({
        "nodeSelector": {"beta.kubernetes.io/os": "linux"},
        "imagePullSecrets": [{"name": "s"}, {"name": "s"}, {}],
        "volumes": [{"name": "v", "gitRepo": {"repository": "r"}}],
        "containers": [
            {"name": "a", "image": "i", "ports": [{"containerPort": 80}, {"containerPort": 80}],
                "env": [{"name": "E", "value": "x"}, {"name": "E", "value": "$(E)y"}, {"name": "E", "value": "z"}]},
            {"name": "b", "image": "i", "resources": {"limits": {"memory": "100m"}},
                "ports": [{"containerPort": 81, "hostIP": "1.2.3.4"}, {"containerPort": 80, "hostPort": 80}]}],
        "affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "zone"}]}}}),
    );
    expect_test::expect![[r#"
        metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [must not contain dots]
        spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use "kubernetes.io/os" instead
        metadata.annotations[scheduler.alpha.kubernetes.io/critical-pod]: non-functional in v1.16+; use the "priorityClassName" field instead
        spec.volumes[0].gitRepo: deprecated in v1.11, and disabled by default in v1.33+
        spec.imagePullSecrets[1].name: duplicate name "s"
        spec.imagePullSecrets[2].name: invalid empty name ""
        spec.containers[0].env[2]: hides previous definition of "E", which may be dropped when using apply
        spec.containers[1].resources.limits[memory]: fractional byte value "100m" is invalid, must be an integer
        spec.containers[1].resources.requests[memory]: fractional byte value "100m" is invalid, must be an integer
        spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]
        spec.containers[1].ports[0]: hostIP set without hostPort: {Name: HostPort:0 ContainerPort:81 Protocol:TCP HostIP:1.2.3.4}
        spec.containers[1].ports[1]: overlapping port definition with spec.containers[0].ports[0]
        spec.containers[1].ports[1]: overlapping port definition with spec.containers[0].ports[1]
        spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].labelSelector: a null labelSelector results in matching no pod"#]]
    .assert_eq(&warned("Pod", object));
    let service = json!({"metadata": {"name": "s"}, "spec": {"externalName": "a", "externalIPs": ["2001:db8:0::1", "::ffff:1.2.3.4"],
        "loadBalancerSourceRanges": ["10.1.2.3/8"]}});
    expect_test::expect![[r#"
        spec.externalIPs[0]: IPv6 address "2001:db8:0::1" should be in RFC 5952 canonical format ("2001:db8::1")
        spec.externalIPs[1]: non-standard IP address "::ffff:1.2.3.4" will be considered invalid in a future Kubernetes release: use "1.2.3.4"
        spec.externalIPs is deprecated and may no longer be implemented in some clusters
        spec.loadBalancerSourceRanges[0]: CIDR value "10.1.2.3/8" is ambiguous in this context (should be "10.0.0.0/8" or "10.1.2.3/32"?)
        spec.externalName is ignored when spec.type is not "ExternalName""#]]
    .assert_eq(&warned("Service", service));
    let secret = json!({"metadata": {"name": "s"}, "type": "kubernetes.io/tls", "data": {"tls.crt": "", "tls.key": ""}});
    assert_eq!(warned("Secret", secret), "tls: failed to find any PEM data in certificate input");
}
