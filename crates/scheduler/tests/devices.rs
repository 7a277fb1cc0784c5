//! Devices for claims: slices, classes and claims in, nodes and devices out.
mod cel;

use std::sync::Arc;

use client::Change;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::resource::v1::{AllocationResult, DeviceClass, ResourceClaim, ResourceSlice};
use k8s_openapi::api::resource::v1beta2::DeviceTaintRule;
use rand::rngs::{SmallRng, StdRng};
use rand::{RngExt, SeedableRng};
use scheduler::assumed::Assumed;
use scheduler::devices::needs::Needs;
use scheduler::evaluate::{Evaluator, Placement};
use scheduler::filter::NODE_RESOURCES_FIT;
use scheduler::hints::{DeviceEvent, Event};
use scheduler::pod_info::{Demands, PodInfo};
use scheduler::profile::{Profile, Strategy};
use scheduler::snapshot::Snapshot;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const DRIVER: &str = "gpu.example.com";

fn object<T: DeserializeOwned>(value: Value) -> Arc<T> {
    Arc::new(serde_json::from_value(value).unwrap_or_else(|error| panic!("{error}")))
}

struct World {
    snapshot: Snapshot,
    demands: Demands,
    evaluator: Evaluator,
    pods: usize,
}

impl World {
    fn new(nodes: &[&str]) -> Self {
        let mut snapshot = Snapshot::default();
        snapshot.devices_mut().speak(Some(Arc::new(cel::Cel)));
        for name in nodes {
            snapshot.set_node(&object::<Node>(json!({
                "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "rack": format!("rack-{name}")}},
                "status": {"allocatable": {"cpu": "8", "memory": "32Gi", "pods": "110"}},
            })));
        }
        let evaluator = Evaluator::new(SmallRng::seed_from_u64(1), Profile::default());
        let mut this = Self { snapshot, demands: Demands::default(), evaluator, pods: 0 };
        this.class(
            "gpu",
            json!({"selectors": [{"cel": {"expression": format!("device.driver == '{DRIVER}'")}}]}),
        );
        this
    }

    fn class(&mut self, name: &str, spec: Value) {
        let class = object::<DeviceClass>(json!({"metadata": {"name": name}, "spec": spec}));
        self.snapshot.class_changed(&Change::Added(class));
    }

    /// A pool of one slice on one node, or where `reach` says.
    fn slice(&mut self, name: &str, reach: Value, devices: Value) {
        let mut spec = json!({"driver": DRIVER, "pool": {"name": name, "generation": 1, "resourceSliceCount": 1}, "devices": devices});
        for (key, value) in reach.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        let slice = object::<ResourceSlice>(json!({"metadata": {"name": name}, "spec": spec}));
        self.snapshot.devices_mut().slice_changed(&Change::Added(slice));
    }

    fn pod(&mut self, claims: &[(&str, Value)]) -> PodInfo {
        for (name, spec) in claims {
            let claim = object::<ResourceClaim>(
                json!({"metadata": {"namespace": "d", "name": name, "uid": name}, "spec": {"devices": spec}}),
            );
            self.snapshot.devices_mut().claim_changed(&Change::Added(claim));
        }
        let entries: Vec<_> =
            claims.iter().map(|(name, _)| json!({"name": name, "resourceClaimName": name})).collect();
        self.pods += 1;
        let name = format!("p{}", self.pods);
        let pod = object::<Pod>(json!({"metadata": {"namespace": "d", "name": name, "uid": name},
            "spec": {"containers": [{"name": "c"}], "resourceClaims": entries}}));
        self.demands.info(&pod)
    }

    /// A pod that asks for resources by name.
    fn asking(&mut self, requests: Value) -> PodInfo {
        self.pods += 1;
        let name = format!("p{}", self.pods);
        let pod = object::<Pod>(json!({"metadata": {"namespace": "d", "name": name, "uid": name},
            "spec": {"containers": [{"name": "c", "resources": {"requests": requests}}]}}));
        self.demands.info(&pod)
    }

    /// Places such a pod: `node: request=device ...`, or why not.
    fn ask(&mut self, requests: Value) -> String {
        let pod = self.asking(requests);
        match self.evaluator.place(&pod, &self.snapshot) {
            Placement::Node(slot) => {
                let node = self.snapshot.node(slot).name.clone();
                let given = Assumed::take(&mut self.snapshot, &pod, slot).given;
                let made = given.made.iter().flat_map(|made| made.allocation.devices.iter());
                let results = made.flat_map(|d| d.results.iter().flatten());
                let each = results.map(|r| format!(" {}={}", r.request, r.device));
                format!("{node}:{}", each.collect::<String>())
            }
            Placement::Nowhere(why) => {
                let mut why: Vec<_> = why.iter().map(|(_, r)| r.reasons.join(", ")).collect();
                why.sort();
                why.join("; ")
            }
            other => format!("{other:?}"),
        }
    }

    /// Places a pod with one claim: node, and what the claim got; or why not.
    fn claim(&mut self, name: &str, spec: Value) -> Result<(String, Arc<AllocationResult>), String> {
        let pod = self.pod(&[(name, spec)]);
        let slot = match self.evaluator.place(&pod, &self.snapshot) {
            Placement::Node(slot) => slot,
            Placement::Refused(refusal) => return Err(refusal.reason),
            Placement::Nowhere(why) => return Err(why[0].1.reasons.join(", ")),
            Placement::NoNodes => return Err("no nodes".to_owned()),
        };
        let needs = Needs::of(&pod, self.snapshot.devices(), Timestamp::MIN).expect("needs").expect("claims");
        let given = needs
            .decide(self.snapshot.node(slot), self.snapshot.devices())
            .map_err(|r| r.reasons.join(", "))?;
        self.snapshot.devices_mut().promise(&given);
        let node = self.snapshot.node(slot).name.to_string();
        self.snapshot.place(&pod, &node);
        let allocation = given.claims[0].1.clone().expect("new");
        Ok((node, allocation))
    }

    /// The same, as one line: `node: request=device ...`.
    fn line(&mut self, name: &str, spec: Value) -> String {
        match self.claim(name, spec) {
            Err(why) => why,
            Ok((node, allocation)) => {
                let results = allocation.devices.as_ref().and_then(|d| d.results.as_ref());
                let each = results.into_iter().flatten().map(|r| format!(" {}={}", r.request, r.device));
                format!("{node}:{}", each.collect::<String>())
            }
        }
    }
}

fn exactly(request: Value) -> Value {
    let mut request = request;
    request["deviceClassName"] = json!("gpu");
    json!({"requests": [{"name": "r", "exactly": request}]})
}

fn gpu(name: &str, model: &str) -> Value {
    json!({"name": name, "attributes": {"model": {"string": model}, "numa": {"int": 0}}, "capacity": {"memory": {"value": "40Gi"}}})
}

fn models(model: &str) -> Value {
    json!([{"cel": {"expression": format!("device.attributes['{DRIVER}'].model == '{model}'")}}])
}

#[test]
fn a_claim_gets_devices_that_its_selectors_select_and_each_only_once() {
    let mut world = World::new(&["a", "b"]);
    world.slice("a", json!({"nodeName": "a"}), json!([gpu("x0", "small"), gpu("x1", "small")]));
    world.slice("b", json!({"nodeName": "b"}), json!([gpu("y0", "big"), gpu("y1", "big")]));
    assert_eq!(world.line("one", exactly(json!({"selectors": models("big")}))), "b: r=y0");
    assert_eq!(world.line("two", exactly(json!({"selectors": models("big")}))), "b: r=y1");
    assert_eq!(
        world.line("three", exactly(json!({"selectors": models("big")}))),
        "cannot allocate all claims"
    );
    assert_eq!(world.line("four", exactly(json!({"count": 2}))), "a: r=x0 r=x1");
    assert_eq!(
        world.line("five", exactly(json!({"adminAccess": true, "selectors": models("big")}))),
        "b: r=y0"
    );
}

#[test]
fn what_a_claim_gets_says_where_it_is_and_how_it_is_set_up() {
    let mut world = World::new(&["a"]);
    let opaque = |text: &str| json!({"opaque": {"driver": DRIVER, "parameters": {"text": text}}});
    world.class("tuned", json!({"config": [opaque("of the class")]}));
    world.slice("a", json!({"nodeName": "a"}), json!([gpu("x0", "small")]));
    let spec = json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "tuned"}}], "config": [opaque("of the claim")]});
    let (_, allocation) = world.claim("one", spec).expect("allocated");
    let expected = json!({
        "devices": {
            "results": [{"request": "r", "driver": DRIVER, "pool": "a", "device": "x0"}],
            "config": [
                {"source": "FromClass", "requests": ["r"], "opaque": {"driver": DRIVER, "parameters": {"text": "of the class"}}},
                {"source": "FromClaim", "opaque": {"driver": DRIVER, "parameters": {"text": "of the claim"}}},
            ],
        },
        "nodeSelector": {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}]},
    });
    assert_eq!(serde_json::to_value(&*allocation).expect("json"), expected);
}

#[test]
fn devices_of_several_nodes_bring_their_selector() {
    let mut world = World::new(&["a", "b"]);
    let rack = json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": "rack", "operator": "In", "values": ["rack-b"]}]}]});
    world.slice("net", json!({"nodeSelector": rack}), json!([gpu("n0", "net")]));
    let (node, allocation) = world.claim("one", exactly(json!({}))).expect("allocated");
    assert_eq!((node.as_str(), serde_json::to_value(&allocation.node_selector).expect("json")), ("b", rack));
    world.slice("all", json!({"allNodes": true}), json!([gpu("n1", "net")]));
    let (_, allocation) = world.claim("two", exactly(json!({}))).expect("allocated");
    assert!(allocation.node_selector.is_none());
    let each = json!([{"name": "z", "nodeName": "a"}]);
    world.slice("each", json!({"perDeviceNodeSelection": true}), each);
    assert_eq!(world.line("three", exactly(json!({}))), "a: r=z");
}

#[test]
fn the_first_alternative_that_works_is_taken() {
    let mut world = World::new(&["a"]);
    world.slice(
        "a",
        json!({"nodeName": "a"}),
        json!([gpu("x0", "small"), gpu("x1", "small"), gpu("x2", "big")]),
    );
    let spec = json!({"requests": [{"name": "r", "firstAvailable": [
        {"name": "big", "deviceClassName": "gpu", "selectors": models("big")},
        {"name": "two", "deviceClassName": "gpu", "selectors": models("small"), "count": 2},
    ]}]});
    assert_eq!(world.line("one", spec.clone()), "a: r/big=x2");
    assert_eq!(world.line("two", spec.clone()), "a: r/two=x0 r/two=x1");
    assert_eq!(world.line("three", spec), "cannot allocate all claims");
}

#[test]
fn constraints_hold_between_devices() {
    let mut world = World::new(&["a"]);
    let numa = |name: &str, numa: i64| json!({"name": name, "attributes": {"numa": {"int": numa}}});
    let devices = json!([numa("x0", 0), numa("x1", 1), numa("x2", 1), numa("x3", 2)]);
    world.slice("a", json!({"nodeName": "a"}), devices);
    let with = |constraint: Value| {
        let mut spec = exactly(json!({"count": 2}));
        spec["constraints"] = json!([constraint]);
        spec
    };
    let name = format!("{DRIVER}/numa");
    assert_eq!(world.line("one", with(json!({"matchAttribute": name}))), "a: r=x1 r=x2");
    assert_eq!(world.line("two", with(json!({"distinctAttribute": name}))), "a: r=x0 r=x3");
    assert_eq!(
        world.line("three", with(json!({"matchAttribute": "other.example.com/x"}))),
        "cannot allocate all claims"
    );
}

#[test]
fn all_devices_means_all_that_match() {
    let mut world = World::new(&["a"]);
    world.slice(
        "a",
        json!({"nodeName": "a"}),
        json!([gpu("x0", "small"), gpu("x1", "big"), gpu("x2", "big")]),
    );
    assert_eq!(
        world.line("one", exactly(json!({"allocationMode": "All", "selectors": models("big")}))),
        "a: r=x1 r=x2"
    );
    assert_eq!(world.line("two", exactly(json!({"allocationMode": "All"}))), "cannot allocate all claims");
    assert_eq!(
        world.line("three", exactly(json!({"allocationMode": "All", "selectors": models("none")}))),
        "cannot allocate all claims"
    );
    world.slice(
        "late",
        json!({"nodeName": "a", "pool": {"name": "late", "generation": 1, "resourceSliceCount": 2}}),
        json!([]),
    );
    assert_eq!(
        world.line("four", exactly(json!({"allocationMode": "All"}))),
        "claim four, request r: asks for all devices, but resource pool gpu.example.com/late is currently being updated"
    );
}

#[test]
fn only_the_newest_generation_of_a_pool_counts() {
    let mut world = World::new(&["a"]);
    let pool = |generation: i64| json!({"nodeName": "a", "pool": {"name": "p", "generation": generation, "resourceSliceCount": 1}});
    world.slice("old", pool(1), json!([gpu("x0", "small")]));
    world.slice("new", pool(2), json!([gpu("x1", "small")]));
    assert_eq!(world.line("one", exactly(json!({}))), "a: r=x1");
    assert_eq!(world.line("two", exactly(json!({}))), "cannot allocate all claims");
}

#[test]
fn rules_taint_the_devices_that_they_select() {
    let mut world = World::new(&["a"]);
    world.slice("a", json!({"nodeName": "a"}), json!([gpu("x0", "small"), gpu("x1", "small")]));
    let rule = |effect: &str, selector: Value| {
        object::<DeviceTaintRule>(json!({"metadata": {"name": "r"},
            "spec": {"deviceSelector": selector, "taint": {"key": "broken", "effect": effect}}}))
    };
    let one = json!({"driver": DRIVER, "pool": "a", "device": "x0"});
    world.snapshot.devices_mut().taint_rule_changed(&Change::Added(rule("NoSchedule", one.clone())));
    assert_eq!(world.line("one", exactly(json!({}))), "a: r=x1");
    assert_eq!(world.line("two", exactly(json!({}))), "cannot allocate all claims");
    let tolerant = json!({"tolerations": [{"key": "broken", "operator": "Exists"}]});
    assert_eq!(world.line("three", exactly(tolerant)), "a: r=x0");
    // Nobody's device, another driver's, and an effect that has none.
    world.slice(
        "b",
        json!({"nodeName": "a"}),
        json!([gpu("y0", "small"), gpu("y1", "small"), gpu("y2", "small")]),
    );
    for (name, rule) in [
        ("four", rule("NoSchedule", Value::Null)),
        ("five", rule("NoExecute", json!({"driver": "other.example.com"}))),
        ("six", rule("None", json!({}))),
    ] {
        world.snapshot.devices_mut().taint_rule_changed(&Change::Added(rule));
        assert!(world.line(name, exactly(json!({}))).starts_with("a: r=y"), "{name}");
    }
    world.slice("c", json!({"nodeName": "a"}), json!([gpu("z0", "small")]));
    let all = rule("NoExecute", json!({}));
    world.snapshot.devices_mut().taint_rule_changed(&Change::Added(all.clone()));
    assert_eq!(world.line("seven", exactly(json!({}))), "cannot allocate all claims");
    world.snapshot.devices_mut().taint_rule_changed(&Change::Deleted(all));
    assert_eq!(world.line("eight", exactly(json!({}))), "a: r=z0");
}

#[test]
fn tainted_devices_are_for_those_who_tolerate_it() {
    let mut world = World::new(&["a"]);
    let mut broken = gpu("x0", "small");
    broken["taints"] = json!([{"key": "example.com/broken", "effect": "NoSchedule"}]);
    world.slice("a", json!({"nodeName": "a"}), json!([broken]));
    assert_eq!(world.line("one", exactly(json!({}))), "cannot allocate all claims");
    let tolerations = json!([{"key": "example.com/broken", "operator": "Exists"}]);
    assert_eq!(world.line("two", exactly(json!({"tolerations": tolerations}))), "a: r=x0");
}

#[test]
fn a_shared_device_is_given_until_its_capacity_is_used() {
    let mut world = World::new(&["a"]);
    let policy = json!({"default": "1Gi", "validRange": {"min": "1Gi", "step": "1Gi", "max": "8Gi"}});
    let shared = json!({"name": "x0", "allowMultipleAllocations": true, "capacity": {"memory": {"value": "10Gi", "requestPolicy": policy}}});
    world.slice("a", json!({"nodeName": "a"}), json!([shared]));
    let memory = |amount: &str| exactly(json!({"capacity": {"requests": {"memory": amount}}}));
    let mut consumed = |name: &str, spec: Value| {
        let (_, allocation) = world.claim(name, spec)?;
        let result =
            allocation.devices.as_ref().and_then(|d| d.results.as_ref()?.first().cloned()).expect("one");
        assert_eq!(result.share_id.map(|id| id.len()), Some(36));
        Ok::<_, String>(result.consumed_capacity.and_then(|c| c.get("memory").map(|q| q.0.clone())))
    };
    assert_eq!(consumed("one", memory("2500Mi")), Ok(Some("3Gi".to_owned())));
    assert_eq!(consumed("two", exactly(json!({}))), Ok(Some("1Gi".to_owned())));
    assert_eq!(
        consumed("three", memory("9Gi")),
        Err("cannot allocate all claims".to_owned()),
        "more than the policy has"
    );
    assert_eq!(
        consumed("four", memory("7Gi")),
        Err("cannot allocate all claims".to_owned()),
        "more than is left"
    );
    assert_eq!(consumed("five", memory("6Gi")), Ok(Some("6Gi".to_owned())));
    assert_eq!(consumed("six", exactly(json!({}))), Err("cannot allocate all claims".to_owned()));
}

#[test]
fn parts_of_a_device_share_its_counters() {
    let mut world = World::new(&["a"]);
    let counters = json!([{"name": "set", "counters": {"memory": {"value": "40Gi"}}}]);
    let part = |name: &str, memory: &str| json!({"name": name, "consumesCounters": [{"counterSet": "set", "counters": {"memory": {"value": memory}}}]});
    let pool = json!({"name": "p", "generation": 1, "resourceSliceCount": 2});
    world.slice("counters", json!({"nodeName": "a", "pool": pool, "sharedCounters": counters}), json!([]));
    let devices = json!([part("whole", "40Gi"), part("half-0", "20Gi"), part("half-1", "20Gi")]);
    world.slice("parts", json!({"nodeName": "a", "pool": pool}), devices);
    assert_eq!(world.line("two", exactly(json!({"count": 2}))), "a: r=half-0 r=half-1");
    assert_eq!(world.line("one", exactly(json!({}))), "cannot allocate all claims");
}

#[test]
fn a_claim_that_cannot_be_understood_says_why() {
    let mut world = World::new(&["a"]);
    world.slice("a", json!({"nodeName": "a"}), json!([gpu("x0", "small")]));
    let spec = json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "none"}}]});
    assert_eq!(world.line("one", spec), "request r: device class none does not exist");
    let wrong = json!([{"cel": {"expression": format!("device.attributes['{DRIVER}'].nothing == 1")}}]);
    assert_eq!(
        world.line("two", exactly(json!({"selectors": wrong}))),
        "claim two, request r: selector #0: runtime error: no such key: nothing"
    );
}

#[test]
fn a_claim_that_has_its_devices_decides_the_node() {
    let mut world = World::new(&["a", "b", "c"]);
    world.slice("b", json!({"nodeName": "b"}), json!([gpu("y0", "big")]));
    assert_eq!(world.line("shared", exactly(json!({}))), "b: r=y0");
    // Another pod with the same claim, which is promised and not written yet.
    let pod = world.pod(&[]);
    let mut object = (*pod.pod).clone();
    object.spec.as_mut().expect("spec").resource_claims =
        serde_json::from_value(json!([{"name": "x", "resourceClaimName": "shared"}])).expect("entries");
    let pod = world.demands.info(&Arc::new(object));
    let Placement::Node(slot) = world.evaluator.place(&pod, &world.snapshot) else { panic!("no node") };
    assert_eq!(&*world.snapshot.node(slot).name, "b");
}

#[test]
fn devices_that_are_made_ready_later_come_last_and_are_bound_to_the_node() {
    let mut world = World::new(&["a"]);
    let fabric = json!({"name": "f0", "bindsToNode": true, "bindingConditions": ["Attached"], "bindingFailureConditions": ["Broken"]});
    world.slice("0-fabric", json!({"allNodes": true}), json!([fabric]));
    world.slice("a", json!({"nodeName": "a"}), json!([gpu("x0", "small")]));
    assert_eq!(world.line("one", exactly(json!({}))), "a: r=x0");
    let (_, allocation) = world.claim("two", exactly(json!({}))).expect("allocated");
    let expected = json!({
        "devices": {"results": [{"request": "r", "driver": DRIVER, "pool": "0-fabric", "device": "f0",
            "bindingConditions": ["Attached"], "bindingFailureConditions": ["Broken"]}]},
        "nodeSelector": {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}]},
    });
    assert_eq!(serde_json::to_value(&*allocation).expect("json"), expected);
}

#[test]
fn a_claim_whose_devices_failed_keeps_its_pods_from_all_nodes() {
    let mut world = World::new(&["a", "b"]);
    let result = json!({"request": "r", "driver": DRIVER, "pool": "p", "device": "x",
        "bindingConditions": ["Attached"], "bindingFailureConditions": ["Broken"]});
    let mut placed = |condition: &str, given: &str| {
        let broken = json!([{"type": condition, "status": "True", "reason": "R", "message": "", "lastTransitionTime": given}]);
        let status = json!({"allocation": {"allocationTimestamp": given, "devices": {"results": [result]}},
            "devices": [{"driver": DRIVER, "pool": "p", "device": "x", "conditions": broken}]});
        let pod = world.pod(&[("c", exactly(json!({})))]);
        let claim =
            json!({"metadata": {"namespace": "d", "name": "c", "uid": "c"}, "spec": {}, "status": status});
        world.snapshot.devices_mut().claim_changed(&Change::Added(object::<ResourceClaim>(claim)));
        match world.evaluator.place(&pod, &world.snapshot) {
            Placement::Node(_) => "placed".to_owned(),
            Placement::Nowhere(why) => why[0].1.reasons.join(", "),
            other => format!("{other:?}"),
        }
    };
    let (early, late) = ("2026-01-01T00:00:00Z", "9000-01-01T00:00:00Z");
    assert_eq!(placed("Attached", early), "placed");
    assert_eq!(placed("Broken", late), "resourceclaim not available on the node");
    assert_eq!(placed("Other", early), "resourceclaim not available on the node", "not ready in time");
    assert_eq!(placed("Other", late), "placed", "there is time yet");
}

#[test]
fn nodes_with_earlier_alternatives_are_better() {
    let mut world = World::new(&["a", "b", "c"]);
    for (node, model) in [("a", "small"), ("b", "big"), ("c", "small")] {
        let devices = json!([gpu(&format!("{node}0"), model), gpu(&format!("{node}1"), model)]);
        world.slice(node, json!({"nodeName": node}), devices);
    }
    let spec = json!({"requests": [{"name": "r", "firstAvailable": [
        {"name": "big", "deviceClassName": "gpu", "selectors": models("big")},
        {"name": "small", "deviceClassName": "gpu", "selectors": models("small")},
    ]}]});
    // Though its second pod finds b fuller than the others.
    assert_eq!(world.line("one", spec.clone()), "b: r/big=b0");
    assert_eq!(world.line("two", spec.clone()), "b: r/big=b1");
    assert!(world.line("three", spec).contains("r/small="));
}

#[test]
fn a_resource_that_no_plugin_offers_is_met_by_devices_of_its_class() {
    let mut world = World::new(&["a", "b"]);
    world.slice("a", json!({"nodeName": "a"}), json!([gpu("x0", "small"), gpu("x1", "small")]));
    let no = "Insufficient example.com/gpu; Insufficient example.com/gpu";
    assert_eq!(world.ask(json!({"example.com/gpu": "1"})), no);
    let selectors = json!([{"cel": {"expression": format!("device.driver == '{DRIVER}'")}}]);
    world.class("named", json!({"extendedResourceName": "example.com/gpu", "selectors": selectors}));
    let one = json!({"example.com/gpu": "1"});
    assert_eq!(world.ask(one.clone()), "a: container-0-request-0=x0");
    let implicit = json!({"cpu": "1", "deviceclass.resource.kubernetes.io/named": "1"});
    assert_eq!(world.ask(implicit), "a: container-0-request-1=x1");
    assert_eq!(world.ask(one.clone()), "cannot allocate all claims; cannot allocate all claims");
    // A node with a device plugin for it counts for itself.
    world.snapshot.set_node(&object::<Node>(json!({"metadata": {"name": "c"},
        "status": {"allocatable": {"cpu": "8", "memory": "32Gi", "pods": "110", "example.com/gpu": "1"}}})));
    assert_eq!(world.ask(one.clone()), "c:");
    let full = "Insufficient example.com/gpu; cannot allocate all claims; cannot allocate all claims";
    assert_eq!(world.ask(one), full);
}

#[test]
fn devices_for_extended_resources_are_taken_until_their_claim_goes() {
    let mut world = World::new(&["a"]);
    world.slice("a", json!({"nodeName": "a"}), json!([gpu("x0", "small")]));
    let name = "deviceclass.resource.kubernetes.io/gpu";
    let pod = world.asking(json!({name: "1"}));
    let given = Assumed::take(&mut world.snapshot, &pod, 0).given;
    let made = given.made.expect("a claim");
    assert_eq!(made.claim.metadata.generate_name.as_deref(), Some("p1-extended-resources-"));
    let mut claim = made.claim.clone();
    claim.metadata.name = Some("p1-extended-resources-x".to_owned());
    let devices = world.snapshot.devices_mut();
    devices.claim_changed(&Change::Added(Arc::new(claim.clone())));
    claim.status.get_or_insert_default().allocation = Some((*made.allocation).clone());
    let claim = Arc::new(claim);
    devices.claim_changed(&Change::Added(claim.clone()));
    assert_eq!(world.ask(json!({name: "1"})), "cannot allocate all claims");
    assert!(world.snapshot.devices_mut().claim_changed(&Change::Deleted(claim)), "devices are given back");
    assert_eq!(world.ask(json!({name: "1"})), "a: container-0-request-0=x0");
}

#[test]
fn a_claim_that_an_earlier_attempt_left_behind_is_in_the_way() {
    let mut world = World::new(&["a"]);
    world.slice("a", json!({"nodeName": "a"}), json!([gpu("x0", "small")]));
    let pod = world.asking(json!({"deviceclass.resource.kubernetes.io/gpu": "1"}));
    let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "p1", "uid": "p1", "controller": true});
    let claim = object::<ResourceClaim>(
        json!({"metadata": {"namespace": "d", "name": "left", "ownerReferences": [owner],
        "annotations": {"resource.kubernetes.io/extended-resource-claim": "true"}}, "spec": {}}),
    );
    world.snapshot.devices_mut().claim_changed(&Change::Added(claim.clone()));
    let needs = Needs::of(&pod, world.snapshot.devices(), Timestamp::MIN).expect("needs").expect("devices");
    assert_eq!(needs.stale_claim(), Some("d/left"));
    let why = needs.decide(world.snapshot.node(0), world.snapshot.devices()).expect_err("rejected");
    assert_eq!(why.reasons, ["cannot schedule extended resource claim".into()]);
    world.snapshot.devices_mut().claim_changed(&Change::Deleted(claim));
    assert!(matches!(world.evaluator.place(&pod, &world.snapshot), Placement::Node(_)));
}

#[test]
fn a_class_wakes_pods_that_ask_for_what_it_stands_for() {
    let mut world = World::new(&["a"]);
    let pod = world.asking(json!({"example.com/gpu": "1"}));
    let wakes = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let event = Event::Devices(DeviceEvent::Class(&names));
        event.helps(&pod, 1 << NODE_RESOURCES_FIT, &Profile::default(), &Default::default())
    };
    let seen = [wakes(&["example.com/gpu"]), wakes(&["example.com/nic"]), wakes(&[])];
    assert_eq!(seen, [true, false, false]);
}

#[test]
fn devices_that_stand_for_a_resource_count_in_scores() {
    let mut world = World::new(&["a", "b"]);
    world.class("named", json!({"extendedResourceName": "example.com/gpu"}));
    for node in ["a", "b"] {
        let devices: Vec<_> = (0..4).map(|d| gpu(&format!("{node}{d}"), "small")).collect();
        world.slice(node, json!({"nodeName": node}), json!(devices));
    }
    let only = |strategy: Strategy| {
        let mut profile = Profile { weights: [0; scheduler::score::COUNT], ..Profile::default() };
        profile.weights[2] = 1;
        profile.fit.strategy = strategy;
        profile.fit.resources = vec![("example.com/gpu".to_owned(), 1)];
        Evaluator::new(SmallRng::seed_from_u64(1), profile)
    };
    let mut nodes = |strategy: Strategy, pods: usize| -> Vec<String> {
        world.evaluator = only(strategy);
        let one = |_| world.ask(json!({"example.com/gpu": "1"})).split(':').next().expect("node").to_owned();
        (0..pods).map(one).collect()
    };
    let spread = nodes(Strategy::Least, 2);
    assert_ne!(spread[0], spread[1]);
    let third = nodes(Strategy::Least, 1);
    assert_eq!(nodes(Strategy::Most, 2), [third[0].clone(), third[0].clone()]);
}

/// Random pools, claims and ends of claims: no device is given twice, no counter and no capacity is used up twice, and a claim
/// that gets nothing could get nothing.
#[test]
fn random_claims_never_get_what_others_have() {
    for seed in 0..30 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut world = World::new(&["a", "b", "c"]);
        let mut sizes = Vec::new();
        for node in ["a", "b", "c"] {
            let number = random.random_range(1..6);
            let devices: Vec<_> =
                (0..number).map(|d| gpu(&format!("{node}{d}"), ["small", "big"][d % 2])).collect();
            world.slice(node, json!({"nodeName": node}), json!(devices));
            sizes.push(number);
        }
        let mut held: Vec<(String, Vec<String>)> = Vec::new();
        for step in 0..60 {
            if random.random_bool(0.3) && !held.is_empty() {
                let (name, _) = held.swap_remove(random.random_range(0..held.len()));
                let claim = object::<ResourceClaim>(
                    json!({"metadata": {"namespace": "d", "name": name}, "spec": {}}),
                );
                world.snapshot.devices_mut().claim_changed(&Change::Deleted(claim));
                continue;
            }
            let (name, count) = (format!("c{step}"), random.random_range(1..4));
            let taken: Vec<String> = held.iter().flat_map(|(_, devices)| devices.clone()).collect();
            match world.claim(&name, exactly(json!({"count": count}))) {
                Ok((node, allocation)) => {
                    let results =
                        allocation.devices.as_ref().and_then(|d| d.results.clone()).expect("results");
                    let devices: Vec<String> = results.into_iter().map(|r| r.device).collect();
                    assert_eq!(devices.len(), count, "seed {seed} step {step}");
                    assert!(
                        devices.iter().all(|d| d.starts_with(&node) && !taken.contains(d)),
                        "seed {seed} step {step}"
                    );
                    held.push((name, devices));
                }
                Err(why) => {
                    assert_eq!(why, "cannot allocate all claims");
                    for (node, size) in ["a", "b", "c"].iter().zip(&sizes) {
                        let used = taken.iter().filter(|d| d.starts_with(node)).count();
                        assert!(size - used < count, "seed {seed} step {step}: {node} had room");
                    }
                }
            }
        }
    }
}
