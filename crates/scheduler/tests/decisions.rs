//! Decisions on made-up clusters: filters and scores by example, and properties over random ones.
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use rand::rngs::{SmallRng, StdRng};
use rand::{RngExt, SeedableRng};
use scheduler::evaluate::{Evaluator, Placement};
use scheduler::filter;
use scheduler::message::{self, Outlook};
use scheduler::pod_info::{Demands, PodInfo};
use scheduler::preemption::{self, Preemption};
use scheduler::profile::Profile;
use scheduler::score;
use scheduler::snapshot::Snapshot;
use serde_json::{Value, json};

fn node(name: &str, extra: Value) -> Arc<Node> {
    let mut value = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}, "spec": {},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}}});
    merge(&mut value, extra);
    Arc::new(serde_json::from_value(value).expect("node"))
}

fn pod_object(name: &str, cpu: &str, memory: &str, spec: Value) -> Arc<Pod> {
    let mut value = json!({"metadata": {"name": name, "namespace": "d", "uid": name},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]}});
    merge(&mut value["spec"], spec);
    Arc::new(serde_json::from_value(value).expect("pod"))
}

fn pod(name: &str, cpu: &str, memory: &str, spec: Value) -> PodInfo {
    Demands::default().info(&pod_object(name, cpu, memory, spec))
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

/// What a node with `node_extra` and `others` on it says to a pod.
fn check(node_extra: Value, others: &[PodInfo], pod: &PodInfo) -> String {
    let mut snapshot = Snapshot::default();
    let slot = snapshot.set_node(&node("n", node_extra));
    for other in others {
        snapshot.place(other, "n");
    }
    match filter::check(&pod.demand, snapshot.node(slot), &Profile::default()) {
        Ok(()) => "fits".to_owned(),
        Err(r) => {
            format!(
                "{}: {} ({})",
                filter::FILTERS[r.filter].name,
                r.reasons.join(", "),
                if r.resolvable { "resolvable" } else { "not resolvable" }
            )
        }
    }
}

#[test]
fn filters_by_example() {
    let plain = || pod("p", "1", "1Gi", json!({}));
    let other = |cpu: &str| pod("other", cpu, "1Gi", json!({}));
    let tainted = json!({"spec": {"taints": [{"key": "gpu", "value": "a", "effect": "NoSchedule"}, {"key": "soft", "effect": "PreferNoSchedule"}]}});
    let port = |ip: &str, name: &str| {
        pod(
            name,
            "0",
            "0",
            json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80, "hostIP": ip}]}]}),
        )
    };
    let lines = [
        check(json!({}), &[], &plain()),
        check(json!({}), &[other("3")], &plain()),
        check(json!({}), &[other("3500m")], &plain()),
        check(json!({}), &[], &pod("p", "5", "9Gi", json!({}))),
        check(json!({"status": {"allocatable": {"pods": "1"}}}), &[other("0")], &plain()),
        check(
            json!({}),
            &[],
            &pod(
                "p",
                "0",
                "0",
                json!({"containers": [{"name": "c", "resources": {"requests": {"example.com/gpu": "1"}}}]}),
            ),
        ),
        check(json!({"spec": {"unschedulable": true}}), &[], &plain()),
        check(
            json!({"spec": {"unschedulable": true}}),
            &[],
            &pod("p", "1", "1Gi", json!({"tolerations": [{"operator": "Exists"}]})),
        ),
        check(tainted.clone(), &[], &plain()),
        check(
            tainted.clone(),
            &[],
            &pod("p", "1", "1Gi", json!({"tolerations": [{"key": "gpu", "value": "b"}]})),
        ),
        check(
            tainted,
            &[],
            &pod(
                "p",
                "1",
                "1Gi",
                json!({"tolerations": [{"key": "gpu", "value": "a", "effect": "NoSchedule"}]}),
            ),
        ),
        check(json!({}), &[], &pod("p", "1", "1Gi", json!({"nodeSelector": {"disk": "ssd"}}))),
        check(
            json!({"metadata": {"labels": {"disk": "ssd"}}}),
            &[],
            &pod("p", "1", "1Gi", json!({"nodeSelector": {"disk": "ssd"}})),
        ),
        check(json!({}), &[port("0.0.0.0", "q")], &port("10.0.0.1", "p")),
        check(json!({}), &[port("10.0.0.2", "q")], &port("10.0.0.1", "p")),
    ];
    expect_test::expect![[r#"
        fits
        fits
        NodeResourcesFit: Insufficient cpu (resolvable)
        NodeResourcesFit: Insufficient cpu, Insufficient memory (not resolvable)
        NodeResourcesFit: Too many pods (resolvable)
        NodeResourcesFit: Insufficient example.com/gpu (not resolvable)
        NodeUnschedulable: node(s) were unschedulable (not resolvable)
        fits
        TaintToleration: node(s) had untolerated taint(s) (not resolvable)
        TaintToleration: node(s) had untolerated taint(s) (not resolvable)
        fits
        NodeAffinity: node(s) didn't match Pod's node affinity/selector (not resolvable)
        fits
        NodePorts: node(s) didn't have free ports for the requested pod ports (resolvable)
        fits"#]]
    .assert_eq(&lines.join("\n"));
}

#[test]
fn required_affinity_knows_all_operators() {
    let case = |operator: &str, values: Value| {
        let requirement = json!({"key": "size", "operator": operator, "values": values});
        let affinity = json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchExpressions": [requirement]}]}}}});
        let pod = pod("p", "1", "1Gi", affinity);
        ["5", "x", ""].map(|size| {
            let labels =
                if size.is_empty() { json!({}) } else { json!({"metadata": {"labels": {"size": size}}}) };
            check(labels, &[], &pod) == "fits"
        })
    };
    assert_eq!(case("In", json!(["5", "6"])), [true, false, false]);
    assert_eq!(case("NotIn", json!(["5"])), [false, true, true]);
    assert_eq!(case("Exists", json!(null)), [true, true, false]);
    assert_eq!(case("DoesNotExist", json!(null)), [false, false, true]);
    assert_eq!(case("Gt", json!(["4"])), [true, false, false]);
    assert_eq!(case("Lt", json!(["4"])), [false, false, false]);
    assert_eq!(case("Nonsense", json!(["5"])), [false, false, false]);
}

#[test]
fn terms_are_alternatives_and_an_empty_term_matches_nothing() {
    let with = |terms: Value| {
        let spec = json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}});
        check(json!({}), &[], &pod("p", "1", "1Gi", spec)) == "fits"
    };
    let name = |n: &str| json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [n]}]});
    assert!(with(json!([name("other"), name("n")])));
    assert!(!with(json!([name("other")])));
    assert!(!with(json!([{}])));
}

#[test]
fn scores_by_example() {
    let mut snapshot = Snapshot::default();
    let soft = json!({"spec": {"taints": [{"key": "a", "effect": "PreferNoSchedule"}, {"key": "b", "effect": "PreferNoSchedule"}]},
                      "metadata": {"labels": {"zone": "z1"}}});
    let slots = [snapshot.set_node(&node("empty", json!({}))), snapshot.set_node(&node("used", soft))];
    snapshot.place(&pod("other", "2", "1Gi", json!({})), "used");
    let preferred = json!({"tolerations": [{"key": "a", "operator": "Exists"}], "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 7, "preference": {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["z1"]}]}},
        {"weight": 5, "preference": {"matchExpressions": [{"key": "zone", "operator": "Exists"}]}}]}}});
    let p = pod("p", "1", "2Gi", preferred);
    let profile = Profile::default();
    let raw = slots.map(|s| score::raw(&p.demand, snapshot.node(s), &profile));
    // soft taints, preference, least allocated ((75+75)/2; (25+62)/2), balance (0/0 to 0.25/0.25; 0.5/0.125 to 0.75/0.375: as before)
    assert_eq!(raw, [[0, 0, 75, 75, 0, 0, 0, 0], [1, 12, 43, 75, 0, 0, 0, 0]]);
    let bounds = score::bounds(raw.iter());
    let weights = [3, 2, 1, 1, 0, 0, 0, 0];
    assert_eq!(raw.map(|r| score::total(&r, &bounds, &weights)), [3 * 100 + 75 + 75, 2 * 100 + 43 + 75]);
}

fn evaluator(seed: u64) -> Evaluator {
    Evaluator::new(SmallRng::seed_from_u64(seed), Profile::default())
}

#[test]
fn the_message_counts_reasons() {
    let mut snapshot = Snapshot::default();
    snapshot.set_node(&node("a", json!({"spec": {"unschedulable": true}})));
    snapshot.set_node(&node("b", json!({})));
    snapshot.place(&pod("other", "4", "1Gi", json!({})), "b");
    let p = pod("p", "1", "1Gi", json!({}));
    let Placement::Nowhere(why) = evaluator(1).place(&p, &snapshot) else { panic!("placed") };
    let Preemption::NotHelpful(tried) = preemption::run(&mut evaluator(1), &p, &snapshot, &why, &[], 0)
    else {
        panic!("preempts")
    };
    let why: Vec<_> = why.into_iter().map(|(_, r)| r).collect();
    assert_eq!(
        message::unschedulable(2, &why, Some(message::NO_CLAIMS), &Outlook::NotHelpful(&tried)),
        "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) were unschedulable. no new claims to deallocate, \
         preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, 1 Preemption is not \
         helpful for scheduling."
    );
    assert!(matches!(evaluator(1).place(&p, &Snapshot::default()), Placement::NoNodes));
}

#[test]
fn a_pod_that_names_its_nodes_is_not_offered_others() {
    let mut snapshot = Snapshot::default();
    snapshot.set_node(&node("a", json!({"spec": {"unschedulable": true}})));
    snapshot.set_node(&node("b", json!({})));
    snapshot.set_node(&node("c", json!({})));
    let named = |cpu: &str, terms: Value| {
        pod(
            "p",
            cpu,
            "1Gi",
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}}),
        )
    };
    let name = |n: &str| json!({"key": "metadata.name", "operator": "In", "values": [n]});
    let says = |pod: &PodInfo| match evaluator(1).place(pod, &snapshot) {
        Placement::Node(slot) => snapshot.node(slot).name.to_string(),
        Placement::Nowhere(why) => {
            let why: Vec<_> = why.into_iter().map(|(_, r)| r).collect();
            message::unschedulable(3, &why, None, &Outlook::Nominated)
        }
        Placement::Refused(refusal) => refusal.reason,
        Placement::NoNodes => "no nodes".to_owned(),
    };
    let others = |n: usize| format!("{n} node(s) didn't satisfy plugin(s) [NodeAffinity].");
    assert_eq!(says(&named("1", json!([{"matchFields": [name("b")]}]))), "b");
    assert_eq!(
        says(&named("9", json!([{"matchFields": [name("b")]}]))),
        format!("0/3 nodes are available: 1 Insufficient cpu, {}", others(2))
    );
    assert_eq!(
        says(&named("1", json!([{"matchFields": [name("x")]}]))),
        format!("0/3 nodes are available: {}", others(3))
    );
    let both =
        json!([{"matchFields": [name("b")]}, {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}]);
    assert_eq!(
        says(&named("9", both)),
        "0/3 nodes are available: 1 Insufficient cpu, 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) were unschedulable."
    );
    assert_eq!(
        says(&named("1", json!([{"matchFields": [name("b"), name("c")]}]))),
        "pod affinity terms conflict"
    );
}

#[test]
fn equal_nodes_share_the_pods() {
    let mut snapshot = Snapshot::default();
    for n in 0..10 {
        snapshot.set_node(&node(&format!("n{n}"), json!({})));
    }
    let (mut evaluator, mut demands) = (evaluator(7), Demands::default());
    for n in 0..100 {
        let p = demands.info(&pod_object(&format!("p{n}"), "100m", "100Mi", json!({})));
        let Placement::Node(slot) = evaluator.place(&p, &snapshot) else { panic!("no node") };
        let name = snapshot.node(slot).name.clone();
        snapshot.place(&p, &name);
    }
    let counts: Vec<_> = snapshot.order().iter().map(|s| snapshot.node(*s).pod_count()).collect();
    assert_eq!(counts, [10; 10]);
}

/// Random clusters, pods, departures and node changes: nothing is over-committed, no rejected node is chosen, and what
/// is remembered never differs from what a fresh look says.
#[test]
fn random_clusters_are_never_over_committed_and_memory_never_lies() {
    let profile = Profile::default();
    for seed in 0..40 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut demands = Demands::default();
        let mut snapshot = Snapshot::default();
        let mut evaluator = evaluator(seed);
        let mut placed: Vec<PodInfo> = Vec::new();
        for step in 0..400 {
            match random.random_range(0..10) {
                0 => {
                    let name = format!("n{}", random.random_range(0..150));
                    let taint = if random.random_bool(0.2) {
                        json!([{"key": "t", "effect": "NoSchedule"}])
                    } else {
                        json!(null)
                    };
                    let cpu = random.random_range(1..9).to_string();
                    let zone = random.random_range(0..3).to_string();
                    let extra = json!({"metadata": {"labels": {"zone": zone}}, "spec": {"taints": taint}, "status": {"allocatable": {"cpu": cpu, "pods": "6"}}});
                    // A node that shrinks below what it holds is not the scheduler's doing.
                    if snapshot.find(&name).is_none_or(|s| snapshot.node(s).pod_count() == 0) {
                        snapshot.set_node(&node(&name, extra));
                    }
                }
                1 => {
                    let name = format!("n{}", random.random_range(0..150));
                    if snapshot.find(&name).is_some_and(|s| snapshot.node(s).pod_count() == 0) {
                        snapshot.remove_node(&name);
                    }
                }
                2 if !placed.is_empty() => {
                    let gone = placed.swap_remove(random.random_range(0..placed.len()));
                    assert!(snapshot.remove(&gone.uid).is_some());
                }
                _ => {
                    let spec = match random.random_range(0..3) {
                        0 => json!({"nodeSelector": {"zone": "1"}}),
                        1 => json!({"tolerations": [{"key": "t", "operator": "Exists"}]}),
                        _ => json!({}),
                    };
                    let cpu = format!("{}m", 250 * random.random_range(1..8));
                    let p = demands.info(&pod_object(&format!("p{seed}-{step}"), &cpu, "100Mi", spec));
                    match evaluator.place(&p, &snapshot) {
                        Placement::Node(slot) => {
                            assert!(
                                filter::check(&p.demand, snapshot.node(slot), &profile).is_ok(),
                                "seed {seed} step {step}"
                            );
                            let name = snapshot.node(slot).name.clone();
                            snapshot.place(&p, &name);
                            placed.push(p);
                        }
                        Placement::Nowhere(why) => {
                            assert_eq!(why.len(), snapshot.order().len());
                            let fits =
                                |s: &&usize| filter::check(&p.demand, snapshot.node(**s), &profile).is_ok();
                            assert_eq!(snapshot.order().iter().find(fits), None, "seed {seed} step {step}");
                        }
                        Placement::NoNodes => assert!(snapshot.order().is_empty()),
                        Placement::Refused(refusal) => panic!("{refusal:?}"),
                    }
                }
            }
            for slot in snapshot.order() {
                let n = snapshot.node(*slot);
                assert!(
                    n.requested.milli_cpu <= n.allocatable.milli_cpu && n.pod_count() <= n.allowed_pods,
                    "seed {seed} step {step}"
                );
            }
        }
        for gone in placed.drain(..) {
            snapshot.remove(&gone.uid);
        }
        for slot in snapshot.order() {
            assert!(snapshot.node(*slot).requested.is_zero(), "what pods held is free when they are gone");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_decisions() {
    let run = || {
        let mut snapshot = Snapshot::default();
        for n in 0..300 {
            snapshot.set_node(&node(&format!("n{n}"), json!({})));
        }
        let (mut evaluator, mut demands) = (evaluator(3), Demands::default());
        let place = |n: usize| {
            let p = demands.info(&pod_object(&format!("p{n}"), "100m", "100Mi", json!({})));
            let Placement::Node(slot) = evaluator.place(&p, &snapshot) else { panic!("no node") };
            let name = snapshot.node(slot).name.clone();
            snapshot.place(&p, &name);
            name
        };
        (0..200).map(place).collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}

/// Not a benchmark, a guard: equal pods on 5 000 nodes must not cost a full evaluation each. Prints the rate.
#[test]
fn equal_pods_on_many_nodes_are_cheap() {
    let mut snapshot = Snapshot::default();
    for n in 0..5000 {
        snapshot.set_node(&node(&format!("n{n}"), json!({})));
    }
    let (mut evaluator, mut demands) = (evaluator(3), Demands::default());
    let pods: Vec<_> = (0..5000).map(|n| pod_object(&format!("p{n}"), "100m", "500Mi", json!({}))).collect();
    let start = std::time::Instant::now();
    for p in &pods {
        let p = demands.info(p);
        let Placement::Node(slot) = evaluator.place(&p, &snapshot) else { panic!("no node") };
        let name = snapshot.node(slot).name.clone();
        snapshot.place(&p, &name);
    }
    println!("{:.0} decisions/s", pods.len() as f64 / start.elapsed().as_secs_f64());
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}
