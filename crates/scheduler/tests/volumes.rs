//! Volumes by example: which nodes a pod's claims leave, and what is decided about them.
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use scheduler::evaluate::{Evaluator, Placement};
use scheduler::pod_info::{Demands, PodInfo};
use scheduler::profile::Profile;
use scheduler::snapshot::Snapshot;
use scheduler::volumes::needs::Needs;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("object")
}

/// Two nodes in two zones.
struct Cluster {
    snapshot: Snapshot,
    demands: Demands,
}

impl Cluster {
    fn new() -> Self {
        let mut snapshot = Snapshot::default();
        for zone in ["a", "b"] {
            let node = json!({"metadata": {"name": zone, "labels": {"topology.kubernetes.io/zone": zone}},
                "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}}});
            snapshot.set_node(&Arc::new(object::<Node>(node)));
        }
        let mut this = Self { snapshot, demands: Demands::default() };
        for (name, provisioner) in [("late", "csi.example.com"), ("local", "kubernetes.io/no-provisioner")] {
            this.class(name, provisioner, json!({"volumeBindingMode": "WaitForFirstConsumer"}));
        }
        this.class("now", "csi.example.com", json!({"volumeBindingMode": "Immediate"}));
        this
    }

    fn class(&mut self, name: &str, provisioner: &str, extra: Value) {
        let mut value = json!({"metadata": {"name": name}, "provisioner": provisioner});
        value.as_object_mut().expect("map").extend(extra.as_object().expect("map").clone());
        self.snapshot.volumes_mut().classes.set(object(value));
    }

    fn claim(&mut self, name: &str, class: &str, size: &str, extra: Value) {
        let mut value = json!({"metadata": {"name": name, "namespace": "d", "uid": name}, "status": {"phase": "Pending"},
            "spec": {"storageClassName": class, "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}});
        merge(&mut value, extra);
        self.snapshot.volumes_mut().claims.set(object(value));
    }

    fn bound_claim(&mut self, name: &str, volume: &str) {
        let extra = json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}}, "spec": {"volumeName": volume}});
        self.claim(name, "late", "1Gi", extra);
    }

    fn volume(&mut self, name: &str, class: &str, size: &str, zone: &str, extra: Value) {
        let mut value = json!({"metadata": {"name": name}, "status": {"phase": "Available"}, "spec": {
            "storageClassName": class, "accessModes": ["ReadWriteOnce"], "capacity": {"storage": size}}});
        if !zone.is_empty() {
            value["spec"]["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "topology.kubernetes.io/zone", "operator": "In", "values": [zone]}]}]}});
        }
        merge(&mut value, extra);
        self.snapshot.volumes_mut().volumes.set(object(value));
    }

    /// A pod with this volume of its own.
    fn pod_with(&mut self, name: &str, volume: Value) -> PodInfo {
        let mut volume = volume;
        volume["name"] = json!("own");
        let value = json!({"metadata": {"name": name, "namespace": "d", "uid": name},
            "spec": {"containers": [{"name": "c"}], "volumes": [volume]}});
        self.demands.info(&Arc::new(object::<Pod>(value)))
    }

    fn pod(&mut self, name: &str, claims: &[&str]) -> PodInfo {
        let volumes: Vec<_> =
            claims.iter().map(|c| json!({"name": c, "persistentVolumeClaim": {"claimName": c}})).collect();
        let value = json!({"metadata": {"name": name, "namespace": "d", "uid": name},
            "spec": {"containers": [{"name": "c"}], "volumes": volumes}});
        self.demands.info(&Arc::new(object::<Pod>(value)))
    }

    /// What each node says, or what keeps the pod from all; and what is decided where it fits.
    fn asks(&mut self, claims: &[&str]) -> String {
        let pod = self.pod("p", claims);
        let mut evaluator = Evaluator::new(SmallRng::seed_from_u64(1), Profile::default());
        if let Placement::Refused(refusal) = evaluator.place(&pod, &self.snapshot) {
            return refusal.reason;
        }
        let mut lines = Vec::new();
        for &slot in &self.snapshot.order().to_vec() {
            let node = self.snapshot.node(slot);
            let line = match evaluator.fits(&pod, slot, &self.snapshot) {
                Err(rejection) => rejection.reasons.join(", "),
                Ok(()) => {
                    let needs = Needs::of(&pod, self.snapshot.volumes()).expect("needs").expect("some");
                    let decisions = needs.decide(node, self.snapshot.volumes()).expect("decisions");
                    format!("bind {:?} provision {:?}", decisions.bind, decisions.provision)
                }
            };
            lines.push(format!("{}: {line}", node.name));
        }
        lines.join("\n")
    }
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

#[test]
fn claims_that_cannot_be_used_refuse_the_pod() {
    let mut c = Cluster::new();
    c.claim("now", "now", "1Gi", json!({}));
    c.claim("going", "late", "1Gi", json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
    c.claim("lost", "late", "1Gi", json!({"spec": {"volumeName": "v"}, "status": {"phase": "Lost"}}));
    let said = [c.asks(&["none"]), c.asks(&["now"]), c.asks(&["going"]), c.asks(&["lost"])];
    expect_test::expect![[r#"
        persistentvolumeclaim "none" not found
        pod has unbound immediate PersistentVolumeClaims
        persistentvolumeclaim "going" is being deleted
        persistentvolumeclaim "lost" bound to non-existent persistentvolume "v""#]]
    .assert_eq(&said.join("\n"));
}

#[test]
fn all_that_is_in_the_way_of_a_pods_volumes_is_said() {
    let mut c = Cluster::new();
    c.bound_claim("data", "v");
    c.volume("v", "late", "1Gi", "b", json!({}));
    c.claim("scratch", "local", "1Gi", json!({}));
    expect_test::expect![[r#"
        a: node(s) didn't match PersistentVolume's node affinity, node(s) didn't find available persistent volumes to bind
        b: node(s) didn't find available persistent volumes to bind"#]]
    .assert_eq(&c.asks(&["data", "scratch"]));
}

#[test]
fn bound_volumes_say_where_they_can_be_reached() {
    let mut c = Cluster::new();
    c.bound_claim("data", "v");
    assert_eq!(
        c.asks(&["data"]).lines().next(),
        Some("a: node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)")
    );
    c.volume("v", "late", "1Gi", "b", json!({}));
    expect_test::expect![[r#"
        a: node(s) didn't match PersistentVolume's node affinity
        b: bind [] provision []"#]]
    .assert_eq(&c.asks(&["data"]));
    let labels = json!({"metadata": {"labels": {"topology.kubernetes.io/zone": "a__c"}}});
    c.volume("v", "late", "1Gi", "", labels);
    expect_test::expect![[r#"
        a: bind [] provision []
        b: node(s) had no available volume zone"#]]
    .assert_eq(&c.asks(&["data"]));
}

#[test]
fn the_smallest_free_volume_is_taken_and_only_once() {
    let mut c = Cluster::new();
    c.claim("one", "local", "1Gi", json!({}));
    c.claim("two", "local", "2Gi", json!({}));
    c.volume("big", "local", "9Gi", "a", json!({}));
    c.volume("small", "local", "2Gi", "a", json!({}));
    c.volume("other-class", "x", "2Gi", "b", json!({}));
    c.volume("tiny", "local", "1Mi", "b", json!({}));
    expect_test::expect![[r#"
        a: bind [("small", "d/one"), ("big", "d/two")] provision []
        b: node(s) didn't find available persistent volumes to bind"#]]
    .assert_eq(&c.asks(&["two", "one"]));
    let pod = c.pod("p", &["one"]);
    let needs = Needs::of(&pod, c.snapshot.volumes()).expect("needs").expect("some");
    let decisions = needs.decide(c.snapshot.node(0), c.snapshot.volumes()).expect("fits");
    c.snapshot.volumes_mut().promise(&decisions, "a");
    assert_eq!(c.asks(&["two"]).lines().next(), Some(r#"a: bind [("big", "d/two")] provision []"#));
    c.snapshot.volumes_mut().settle(&decisions);
    assert_eq!(c.asks(&["two"]).lines().next(), Some(r#"a: bind [("small", "d/two")] provision []"#));
    let set_aside = json!({"spec": {"claimRef": {"namespace": "d", "name": "two"}}});
    c.volume("kept", "local", "5Gi", "a", set_aside);
    assert_eq!(c.asks(&["two"]).lines().next(), Some(r#"a: bind [("kept", "d/two")] provision []"#));
}

#[test]
fn volumes_are_made_where_class_and_capacity_allow() {
    let mut c = Cluster::new();
    c.claim("new", "late", "5Gi", json!({}));
    assert_eq!(c.asks(&["new"]), "a: bind [] provision [\"d/new\"]\nb: bind [] provision [\"d/new\"]");
    let only_b = json!({"volumeBindingMode": "WaitForFirstConsumer", "allowedTopologies": [
        {"matchLabelExpressions": [{"key": "topology.kubernetes.io/zone", "values": ["b"]}]}]});
    c.class("late", "csi.example.com", only_b);
    assert_eq!(
        c.asks(&["new"]).lines().next(),
        Some("a: node(s) didn't find available persistent volumes to bind")
    );
    c.class("late", "csi.example.com", json!({"volumeBindingMode": "WaitForFirstConsumer"}));
    c.snapshot
        .volumes_mut()
        .drivers
        .set(object(json!({"metadata": {"name": "csi.example.com"}, "spec": {"storageCapacity": true}})));
    let capacity = |zone: &str, size: &str| {
        json!({"metadata": {"name": zone, "namespace": "x"}, "storageClassName": "late", "capacity": size,
        "nodeTopology": {"matchLabels": {"topology.kubernetes.io/zone": zone}}})
    };
    c.snapshot.volumes_mut().capacities.set(object(capacity("a", "4Gi")));
    c.snapshot.volumes_mut().capacities.set(object(capacity("b", "6Gi")));
    expect_test::expect![[r#"
        a: node(s) did not have enough free storage
        b: bind [] provision ["d/new"]"#]]
    .assert_eq(&c.asks(&["new"]));
    c.claim(
        "new",
        "late",
        "1Gi",
        json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": "a"}}}),
    );
    expect_test::expect![[r#"
        a: bind [] provision ["d/new"]
        b: node(s) didn't find available persistent volumes to bind"#]]
    .assert_eq(&c.asks(&["new"]));
}

#[test]
fn a_claim_for_one_pod_is_not_shared() {
    let mut c = Cluster::new();
    c.bound_claim("data", "v");
    c.volume("v", "late", "1Gi", "", json!({}));
    let extra = json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
        "spec": {"volumeName": "v", "accessModes": ["ReadWriteOncePod"]}});
    c.claim("data", "late", "1Gi", extra);
    let first = c.pod("first", &["data"]);
    c.snapshot.place(&first, "a");
    expect_test::expect![[r#"
        a: node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode
        b: node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode"#]]
    .assert_eq(&c.asks(&["data"]));
    c.snapshot.remove("first");
    assert!(c.asks(&["data"]).starts_with("a: bind"));
}

#[test]
fn drivers_limit_the_volumes_of_a_node() {
    let mut c = Cluster::new();
    let csi_node = json!({"metadata": {"name": "a"}, "spec": {"drivers": [{"name": "csi.example.com", "nodeID": "a", "allocatable": {"count": 2}}]}});
    c.snapshot.volumes_mut().csi_nodes.set(object(csi_node));
    for n in 1..=3 {
        c.bound_claim(&format!("c{n}"), &format!("v{n}"));
        c.volume(
            &format!("v{n}"),
            "late",
            "1Gi",
            "",
            json!({"spec": {"csi": {"driver": "csi.example.com", "volumeHandle": format!("h{n}")}}}),
        );
    }
    let other = c.pod("other", &["c1", "c2"]);
    c.snapshot.place(&other, "a");
    assert_eq!(c.asks(&["c3"]), "a: node(s) exceed max volume count\nb: bind [] provision []");
    assert_eq!(
        c.asks(&["c2"]),
        "a: bind [] provision []\nb: bind [] provision []",
        "the same volume counts once"
    );
}

#[test]
fn clouds_volumes_count_for_the_driver_in_their_plugins_place_wherever_they_stand() {
    let mut c = Cluster::new();
    let csi_node = json!({"metadata": {"name": "a"}, "spec": {"drivers": [
        {"name": "disk.csi.azure.com", "nodeID": "a", "allocatable": {"count": 1}}]}});
    c.snapshot.volumes_mut().csi_nodes.set(object(csi_node));
    let disk = |id: &str| json!({"azureDisk": {"diskName": id, "diskURI": format!("/disks/{id}")}});
    let first = c.pod_with("first", disk("one"));
    c.snapshot.place(&first, "a");
    let says = |c: &Cluster, pod: &PodInfo| {
        let mut evaluator = Evaluator::new(SmallRng::seed_from_u64(1), Profile::default());
        let slot = c.snapshot.order()[0];
        match evaluator.fits(pod, slot, &c.snapshot) {
            Err(rejection) => rejection.reasons.join(", "),
            Ok(()) => "fits".to_owned(),
        }
    };
    const FULL: &str = "node(s) exceed max volume count";
    let (same, other) = (c.pod_with("same", disk("one")), c.pod_with("other", disk("two")));
    assert_eq!((says(&c, &same).as_str(), says(&c, &other).as_str()), ("fits", FULL));
    c.bound_claim("bound", "v");
    c.volume("v", "late", "1Gi", "", json!({"spec": disk("two")}));
    c.class("cloud", "kubernetes.io/azure-disk", json!({"volumeBindingMode": "WaitForFirstConsumer"}));
    c.claim("new", "cloud", "1Gi", json!({}));
    for claim in ["bound", "new"] {
        let pod = c.pod("p", &[claim]);
        assert_eq!(says(&c, &pod), FULL, "{claim}");
    }
    c.snapshot.remove("first");
    for claim in ["bound", "new"] {
        let pod = c.pod("p", &[claim]);
        assert_eq!(says(&c, &pod), "fits", "{claim}");
    }
}
