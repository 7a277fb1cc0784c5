//! What people see: status words, ages and cells.

use expect_test::expect;

use super::*;

fn now() -> Timestamp {
    "2026-01-01T00:10:00Z".parse().unwrap()
}

fn pod(status: Value, spec: Value) -> Vec<Value> {
    let object = json!({"metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:04:57Z"}, "spec": spec, "status": status});
    cells("", "Pod", &object, now())
}

#[test]
fn running_pod_shows_restarts_with_the_last_ones_age() {
    let row = pod(
        json!({"phase": "Running", "podIPs": [{"ip": "10.0.0.2"}], "containerStatuses": [
            {"name": "a", "ready": true, "restartCount": 2, "state": {"running": {}},
             "lastState": {"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T00:09:00Z"}}}]}),
        json!({"nodeName": "n", "containers": [{"name": "a"}]}),
    );
    assert_eq!(
        json!(row),
        json!(["p", "1/1", "Running", "2 (60s ago)", "5m3s", "10.0.0.2", "n", "<none>", "<none>"])
    );
}

#[test]
fn waiting_reason_beats_the_phase() {
    let row = pod(
        json!({"phase": "Running", "containerStatuses": [
            {"name": "a", "ready": false, "restartCount": 4, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
        json!({"containers": [{"name": "a"}]}),
    );
    assert_eq!((row[1].as_str(), row[2].as_str()), (Some("0/1"), Some("CrashLoopBackOff")));
}

#[test]
fn init_progress_counts_finished_init_containers() {
    let spec = json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}, {"name": "j"}]});
    let status = |second: Value| {
        json!({"phase": "Pending", "initContainerStatuses": [
            {"name": "i", "state": {"terminated": {"exitCode": 0}}}, {"name": "j", "state": second}]})
    };
    assert_eq!(pod(status(json!({"running": {}})), spec.clone())[2], json!("Init:1/2"));
    assert_eq!(
        pod(status(json!({"waiting": {"reason": "ErrImagePull"}})), spec.clone())[2],
        json!("Init:ErrImagePull")
    );
    assert_eq!(pod(status(json!({"terminated": {"exitCode": 3}})), spec)[2], json!("Init:ExitCode:3"));
}

#[test]
fn deleted_pod_is_terminating_until_it_has_ended() {
    let object = |phase: &str| json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": phase}});
    assert_eq!(pod_status(&object("Running")), "Terminating");
    assert_eq!(pod_status(&object("Succeeded")), "Succeeded");
}

#[test]
fn durations_keep_the_units_that_matter() {
    let shown: Vec<String> =
        [0, 119, 303, 600, 12_000, 90_000, 200_000, 40_000_000, 80_000_000].map(human_duration).to_vec();
    assert_eq!(shown, ["0s", "119s", "5m3s", "10m", "3h20m", "25h", "2d7h", "462d", "2y195d"]);
    assert_eq!(human_duration(-5), "<invalid>");
}

#[test]
fn unknown_kinds_get_name_and_creation_time() {
    let object = json!({"metadata": {"name": "x", "creationTimestamp": "2026-01-01T00:00:00Z"}});
    assert_eq!(json!(cells("", "LimitRange", &object, now())), json!(["x", "2026-01-01T00:00:00Z"]));
}

#[test]
fn every_layout_describes_its_columns_and_fills_them() {
    for layout in layouts().into_iter().flatten() {
        let bare: Vec<&str> =
            layout.columns.iter().filter(|c| c.description().is_empty()).map(|c| c.name).collect();
        let expected: &[&str] = if layout.kind == "RuntimeClass" { &["Handler"] } else { &[] };
        assert_eq!(bare, expected, "{}", layout.kind);
        let more = usize::from(layout.kind == "IPAddress");
        assert_eq!((layout.cells)(&json!({}), now()).len(), layout.columns.len() + more, "{}", layout.kind);
    }
}

#[test]
fn field_descriptions_come_from_the_api_types() {
    let ip = columns("", "v1", "Pod").iter().find(|c| c.name == "IP").map(Column::description);
    assert_eq!(
        ip.as_deref(),
        Some(
            "podIP address allocated to the pod. Routable at least within the cluster. Empty if not yet allocated."
        )
    );
}

#[test]
fn addresses_are_shown_as_upstreams_printers_do() {
    let cell = |group: &str, kind: &str, object: Value, at: usize| {
        cells(group, kind, &object, now())[at].as_str().unwrap_or_default().to_owned()
    };
    let hosts = |rules: Value| cell("networking.k8s.io", "Ingress", json!({"spec": {"rules": rules}}), 2);
    let rule = |host: &str| json!({"host": host});
    assert_eq!(hosts(json!([{}])), "*");
    assert_eq!(hosts(json!([{}, rule("a"), {}])), "a");
    assert_eq!(hosts(json!([rule("a"), rule("b"), rule("c"), {}, rule("d")])), "a,b,c + 2 more...");
    let status = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}, {"hostname": "a.example"}, {"ip": "192.0.2.1"}]}});
    let balancer = json!({"spec": {"type": "LoadBalancer", "externalIPs": ["192.0.2.5"]}, "status": status});
    assert_eq!(cell("", "Service", balancer, 3), "192.0.2.1,192.0.2.9,a.example,192.0.2.5");
    assert_eq!(cell("", "Endpoints", json!({}), 1), "<none>");
    assert_eq!(
        cell("", "Endpoints", json!({"subsets": [{"notReadyAddresses": [{"ip": "10.0.0.1"}]}]}), 1),
        ""
    );
    let slice = json!({"ports": [{"name": "web"}, {"port": 80}, {}], "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.1"]}]});
    let shown = [2, 3].map(|at| cell("discovery.k8s.io", "EndpointSlice", slice.clone(), at));
    assert_eq!(shown, ["web,80,*", "10.0.0.1,10.0.0.1"]);
}

#[test]
fn a_selector_of_parameters_is_shown_as_go_prints_it() {
    let selector = json!({"matchLabels": {"b": "2", "a": "1"}, "matchExpressions": [{"key": "k", "operator": "In", "values": ["x", "y"]}]});
    let object = json!({"spec": {"policyName": "p", "paramRef": {"selector": selector}}});
    let row = cells("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding", &object, now());
    assert_eq!(
        row[2],
        "&LabelSelector{MatchLabels:map[string]string{a: 1,b: 2,},MatchExpressions:[]LabelSelectorRequirement{LabelSelectorRequirement{Key:k,Operator:In,Values:[x y],},},}"
    );
}

#[test]
fn columns_are_those_of_the_reference() {
    let shown = |group: &str, kind: &str| {
        let first =
            |text: String| text.split_inclusive(['.', '\n']).next().unwrap_or_default().trim().to_owned();
        let line = |c: &Column| {
            let wide = if c.priority == 1 { " (wide)" } else { "" };
            format!("{}{wide} {}: {}", c.name, c.type_.name(), first(c.description()))
        };
        columns(group, "v1", kind).iter().skip(1).map(line).collect::<Vec<_>>().join("\n")
    };
    expect![[r#"
        Schedule string: The schedule in Cron format, see https://en.
        Timezone string: The time zone name for the given schedule, see https://en.
        Suspend boolean: This flag tells the controller to suspend subsequent executions, it does not apply to already started executions.
        Active integer: A list of pointers to currently running jobs.
        Last Schedule string: Information when was the last time the job was successfully scheduled.
        Age string: CreationTimestamp is a timestamp representing the server time when this object was created.
        Containers (wide) string: Names of each container in the template.
        Images (wide) string: Images referenced by each container in the template.
        Selector (wide) string: A label query over pods that should match the pod count."#]].assert_eq(&shown("batch", "CronJob"));
    expect![[r#"
        Capacity string: capacity is the description of the persistent volume's resources and capacity.
        Access Modes string: accessModes contains all ways the volume can be mounted.
        Reclaim Policy string: persistentVolumeReclaimPolicy defines what happens to a persistent volume when released from its claim.
        Status string: phase indicates if a volume is available, bound to a claim, or released by a claim.
        Claim string: claimRef is part of a bi-directional binding between PersistentVolume and PersistentVolumeClaim.
        StorageClass string: StorageClass of the pv
        VolumeAttributesClass string: VolumeAttributesClass of the pv
        Reason string: reason is a brief CamelCase string that describes any failure and is meant for machine parsing and tidy display in the CLI.
        Age string: CreationTimestamp is a timestamp representing the server time when this object was created.
        VolumeMode (wide) string: volumeMode defines if a volume is intended to be used with a formatted filesystem or to remain in raw block state."#]].assert_eq(&shown("", "PersistentVolume"));
    expect![[r#"
        Age string: CreationTimestamp is a timestamp representing the server time when this object was created.
        SignerName string: signerName indicates the requested signer, and is a qualified name.
        Requestor string: request contains an x509 certificate signing request encoded in a "CERTIFICATE REQUEST" PEM block.
        RequestedDuration string: expirationSeconds is the requested duration of validity of the issued certificate.
        Condition string: conditions applied to the request."#]].assert_eq(&shown("certificates.k8s.io", "CertificateSigningRequest"));
    expect![[r#"
        Type string: `type` indicates whether this priority level is subject to limitation on request execution.
        NominalConcurrencyShares string: `nominalConcurrencyShares` (NCS) contributes to the computation of the NominalConcurrencyLimit (NominalCL) of this level.
        Queues string: `queues` is the number of queues for this priority level.
        HandSize string: `handSize` is a small positive number that configures the shuffle sharding of requests into queues.
        QueueLengthLimit string: `queueLengthLimit` is the maximum number of requests allowed to be waiting in a given queue of this priority level at a time; excess requests are rejected.
        Age string: CreationTimestamp is a timestamp representing the server time when this object was created."#]].assert_eq(&shown("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration"));
}

#[test]
fn rows_that_lack_a_field_say_so_as_the_reference_does() {
    let row = |group: &str, kind: &str, object: Value| json!(cells(group, kind, &object, now())).to_string();
    let meta = json!({"name": "x", "annotations": {
        "volumeattributesclass.alpha.kubernetes.io/is-default-class": "true"}});
    let flow = "flowcontrol.apiserver.k8s.io";
    let parent = json!({"group": "Apps", "resource": "Things", "name": "n"});
    let rows = [
        row("", "ComponentStatus", json!({"metadata": meta})),
        row("storage.k8s.io", "StorageClass", json!({"metadata": meta, "provisioner": "p"})),
        row("storage.k8s.io", "VolumeAttributesClass", json!({"metadata": meta, "driverName": "d"})),
        row("storage.k8s.io", "CSIDriver", json!({"metadata": meta, "spec": {"tokenRequests": []}})),
        row("networking.k8s.io", "IPAddress", json!({"metadata": meta, "spec": {"parentRef": parent}})),
        row(
            flow,
            "PriorityLevelConfiguration",
            json!({"metadata": meta, "spec": {"type": "Exempt",
            "exempt": {"nominalConcurrencyShares": 0}}}),
        ),
        row(flow, "FlowSchema", json!({"metadata": meta})),
        row(
            "",
            "PersistentVolumeClaim",
            json!({"metadata": meta, "spec": {"volumeAttributesClassName": ""}}),
        ),
    ];
    expect![[r#"
        ["x","Unknown","",""]
        ["x","p","Delete","Immediate",false,"<unknown>"]
        ["x (default)","d","<unknown>"]
        ["x",true,false,false,"",false,"<none>","<unknown>"]
        ["x","things.apps/n","<unknown>"]
        ["x","Exempt","<none>","<none>","<none>","<none>","<unknown>"]
        ["x","",0,"<none>","<unknown>","?"]
        ["x","","","","","","","<unknown>","<unset>"]"#]]
    .assert_eq(&rows.join("\n"));
}

#[test]
fn flow_schemas_are_shown_in_the_order_they_are_asked() {
    let schema = |name: &str, precedence: i64| json!({"metadata": {"name": name}, "spec": {"matchingPrecedence": precedence}});
    let all = [schema("a", 900), schema("c", 10), schema("b", 10)];
    let sorted = Printer::Named("flowcontrol.apiserver.k8s.io", "v1", "FlowSchema").sorted(&all);
    let names: Vec<&str> = sorted.into_iter().map(|o| format::text(o, "/metadata/name")).collect();
    assert_eq!(names, ["b", "c", "a"]);
}
