//! Queueing hints over random clusters: a pod that waits is woken by every event that lets it run, and not by what cannot.
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use rand::rngs::{SmallRng, StdRng};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use scheduler::evaluate::{Evaluator, Filtered};
use scheduler::filter::FILTERS;
use scheduler::hints::Event;
use scheduler::pod_info::{Demands, PodInfo};
use scheduler::profile::Profile;
use scheduler::snapshot::Snapshot;
use serde_json::{Value, json};

fn profile() -> Profile {
    // All nodes are looked at: the decision does not depend on where the search begins.
    Profile { percentage_of_nodes_to_score: 100, ..Profile::default() }
}

fn evaluator() -> Evaluator {
    Evaluator::new(SmallRng::seed_from_u64(1), profile())
}

fn node(random: &mut StdRng, name: &str) -> Arc<Node> {
    let taints =
        if random.random_bool(0.3) { json!([{"key": "t", "effect": "NoSchedule"}]) } else { json!([]) };
    let zone = random.random_range(0..3).to_string();
    let value = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "zone": zone}},
        "spec": {"taints": taints, "unschedulable": random.random_bool(0.1)},
        "status": {"allocatable": {"cpu": random.random_range(1..4).to_string(), "memory": "8Gi", "pods": "3"}},
    });
    Arc::new(serde_json::from_value(value).expect("node"))
}

fn pod(random: &mut StdRng, name: &str) -> Arc<Pod> {
    let app = ["web", "db"][random.random_range(0..2)];
    let term = json!([{"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "web"}}}]);
    let mut spec = match random.random_range(0..7) {
        0 => json!({"nodeSelector": {"zone": "1"}}),
        1 => json!({"tolerations": [{"key": "t", "operator": "Exists"}]}),
        2 => json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}}),
        3 => {
            json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}})
        }
        4 => {
            json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": app}}}]})
        }
        _ => json!({}),
    };
    let ports: Value =
        if random.random_bool(0.3) { json!([{"containerPort": 80, "hostPort": 80}]) } else { json!([]) };
    let cpu = format!("{}m", 250 * random.random_range(1..8));
    spec["containers"] =
        json!([{"name": "c", "ports": ports, "resources": {"requests": {"cpu": cpu, "memory": "100Mi"}}}]);
    let value = json!({"metadata": {"name": name, "namespace": "d", "uid": name, "labels": {"app": app}}, "spec": spec});
    Arc::new(serde_json::from_value(value).expect("pod"))
}

/// The filters that reject the pod, as a bit set; `None`: some node takes it.
fn rejected_by(pod: &PodInfo, snapshot: &Snapshot) -> Option<u32> {
    match evaluator().filter(pod, snapshot) {
        Filtered::Some(_) => None,
        Filtered::Nowhere(why) => Some(why.iter().fold(0, |bits, (_, r)| bits | 1 << r.filter)),
        Filtered::NoNodes => Some((1 << FILTERS.len()) - 1),
        Filtered::Refused(refusal) => Some(1 << refusal.filter),
    }
}

struct Waiting {
    pod: PodInfo,
    rejected_by: u32,
}

/// Pods that wait learn of the events; those that it lets run must have been meant by it.
fn after(
    events: &[Event<'_>],
    waiting: &mut Vec<Waiting>,
    snapshot: &Snapshot,
    tally: &mut (usize, usize),
    at: &str,
) {
    let profile = profile();
    waiting.retain_mut(|w| {
        let mut woken = false;
        for event in events {
            let (helps, more) = event.judge(&w.pod, w.rejected_by, &profile, snapshot.namespaces());
            woken |= helps;
            w.rejected_by |= more;
        }
        match rejected_by(&w.pod, snapshot) {
            None => {
                assert!(woken, "{at}: {} could run now and was not told", w.pod.name());
                false
            }
            Some(bits) => {
                *(if woken { &mut tally.1 } else { &mut tally.0 }) += 1;
                if woken {
                    // It was tried again: what it waits for now is what this attempt found.
                    w.rejected_by = bits;
                }
                true
            }
        }
    });
}

#[test]
fn no_event_that_helps_is_missed() {
    let mut tally = (0, 0);
    for seed in 0..60 {
        let mut random = StdRng::seed_from_u64(seed);
        let (mut snapshot, mut demands) = (Snapshot::default(), Demands::default());
        let (mut placed, mut waiting): (Vec<PodInfo>, Vec<Waiting>) = (Vec::new(), Vec::new());
        for step in 0..120 {
            let at = format!("seed {seed} step {step}");
            match random.random_range(0..8) {
                0 => {
                    let name = format!("n{}", random.random_range(0..6));
                    let before = snapshot.find(&name).map(|slot| snapshot.node(slot).clone());
                    let slot = snapshot.set_node(&node(&mut random, &name));
                    let mut events = vec![Event::Node(snapshot.node(slot))];
                    events.extend(before.iter().map(Event::NodeGone));
                    after(&events, &mut waiting, &snapshot, &mut tally, &at);
                }
                1 if random.random_bool(0.3) => {
                    let name = format!("n{}", random.random_range(0..6));
                    if let Some(slot) = snapshot.find(&name) {
                        let gone = snapshot.node(slot).clone();
                        snapshot.remove_node(&name);
                        after(&[Event::NodeGone(&gone)], &mut waiting, &snapshot, &mut tally, &at);
                    }
                }
                2 | 3 if !placed.is_empty() => {
                    let gone = placed.swap_remove(random.random_range(0..placed.len()));
                    snapshot.remove(&gone.uid);
                    after(&[Event::Freed(&gone)], &mut waiting, &snapshot, &mut tally, &at);
                }
                _ => {
                    let pod = demands.info(&pod(&mut random, &format!("p{seed}-{step}")));
                    match evaluator().filter(&pod, &snapshot) {
                        Filtered::Some(found) => {
                            let slot = found.slots[random.random_range(0..found.slots.len())];
                            let name = snapshot.node(slot).name.clone();
                            snapshot.place(&pod, &name);
                            after(&[Event::Placed(&pod)], &mut waiting, &snapshot, &mut tally, &at);
                            placed.push(pod);
                        }
                        _ => {
                            let rejected_by = rejected_by(&pod, &snapshot).expect("rejected");
                            waiting.push(Waiting { pod, rejected_by });
                        }
                    }
                }
            }
        }
    }
    let (asleep, in_vain) = tally;
    println!("{asleep} times left asleep, {in_vain} times woken in vain");
    assert!(asleep > 2 * in_vain, "hints that wake always are none: {asleep} asleep, {in_vain} in vain");
}

#[test]
fn the_end_of_a_pod_that_asked_for_nothing_frees_its_place() {
    let mut demands = Demands::default();
    let mut info = |name: &str, requests: Value| {
        let value = json!({"metadata": {"name": name, "namespace": "d", "uid": name},
            "spec": {"containers": [{"name": "c", "resources": {"requests": requests}}]}});
        demands.info(&Arc::new(serde_json::from_value::<Pod>(value).expect("pod")))
    };
    let (gone, waits) = (info("gone", json!({})), info("waits", json!({"cpu": "1"})));
    let mut snapshot = Snapshot::default();
    let node = json!({"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "1"}}});
    snapshot.set_node(&Arc::new(serde_json::from_value(node).expect("node")));
    snapshot.place(&gone, "n");
    let bits = rejected_by(&waits, &snapshot).expect("too many pods");
    snapshot.remove(&gone.uid);
    assert!(Event::Freed(&gone).helps(&waits, bits, &profile(), snapshot.namespaces()));
    assert_eq!(rejected_by(&waits, &snapshot), None);
}

#[test]
fn which_nodes_take_a_pod_does_not_depend_on_the_order_of_arrival() {
    for seed in 0..30 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut nodes: Vec<_> = (0..12).map(|n| node(&mut random, &format!("n{n}"))).collect();
        let mut demands = Demands::default();
        let pods: Vec<_> = (0..40).map(|n| demands.info(&pod(&mut random, &format!("p{n}")))).collect();
        // Any placement will do: it is the same in both worlds.
        let mut placed: Vec<(PodInfo, String)> =
            pods[..25].iter().map(|p| (p.clone(), format!("n{}", random.random_range(0..12)))).collect();
        let mut says = Vec::new();
        for _ in 0..2 {
            let mut snapshot = Snapshot::default();
            for node in &nodes {
                snapshot.set_node(node);
            }
            placed.iter().for_each(|(p, n)| snapshot.place(p, n));
            let mut evaluator = evaluator();
            let mut all = Vec::new();
            for pod in &pods[25..] {
                let mut verdicts: Vec<(String, String)> = snapshot
                    .order()
                    .iter()
                    .map(|slot| {
                        let said = match evaluator.fits(pod, *slot, &snapshot) {
                            Ok(()) => "fits".to_owned(),
                            Err(r) => r.reasons.join(", "),
                        };
                        (snapshot.node(*slot).name.to_string(), said)
                    })
                    .collect();
                verdicts.sort();
                all.push(verdicts);
            }
            says.push(all);
            nodes.shuffle(&mut random);
            placed.shuffle(&mut random);
        }
        assert_eq!(says[0], says[1], "seed {seed}");
    }
}
