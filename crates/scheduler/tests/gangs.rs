//! Decisions about groups of pods on made-up clusters: by example, and properties over random ones.
use std::cell::RefCell;
use std::sync::Arc;

use rand::rngs::{SmallRng, StdRng};
use rand::{RngExt, SeedableRng};
use scheduler::evaluate::Evaluator;
use scheduler::gang::{self, Cycle, Fate, Verdict};
use scheduler::pod_info::{Demands, PodInfo};
use scheduler::profile::Profile;
use scheduler::snapshot::Snapshot;
use serde_json::json;

fn nodes(count: usize, cpu: &str) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for n in 0..count {
        let name = format!("n{n}");
        let node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}, "spec": {},
            "status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "110"}}});
        snapshot.set_node(&Arc::new(serde_json::from_value(node).expect("node")));
    }
    snapshot
}

fn pod(name: &str, cpu: &str, priority: i32) -> PodInfo {
    let pod = json!({"metadata": {"name": name, "namespace": "d", "uid": name}, "spec": {"priority": priority,
        "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
    DEMANDS.with_borrow_mut(|demands| demands.info(&Arc::new(serde_json::from_value(pod).expect("pod"))))
}

thread_local! {
    /// One for all pods of a test: evaluators know demands by their number.
    static DEMANDS: RefCell<Demands> = RefCell::default();
}

fn evaluator(seed: u64) -> Evaluator {
    Evaluator::new(SmallRng::seed_from_u64(seed), Profile::default())
}

/// Who is where, in order.
fn state(snapshot: &Snapshot) -> String {
    let on = |slot: &usize| {
        let node = snapshot.node(*slot);
        let mut pods: Vec<_> = node.pods().map(|p| p.name().to_owned()).collect();
        pods.sort();
        format!("{}: {} ({}m)", node.name, pods.join(" "), node.requested.milli_cpu)
    };
    let mut lines: Vec<_> = snapshot.order().iter().map(on).collect();
    lines.sort();
    lines.join(", ")
}

fn told(verdict: Verdict, cycle: &Cycle, snapshot: &Snapshot) -> String {
    let fate = |(pod, fate): &(PodInfo, Fate)| match fate {
        Fate::Placed(_) => format!("{} fits", pod.name()),
        Fate::AfterVictims { victims, .. } => {
            let names: Vec<_> = victims.iter().map(PodInfo::name).collect();
            format!("{} after {}", pod.name(), names.join(" "))
        }
        Fate::Failed(_) => format!("{} fits nowhere", pod.name()),
    };
    let fates: Vec<_> = cycle.tried.iter().map(fate).collect();
    format!("{verdict:?}: {} | {}", fates.join(", "), state(snapshot))
}

#[test]
fn groups_by_example() {
    let try_group = |snapshot: &mut Snapshot, pods: Vec<PodInfo>, before: usize, least: usize| {
        let (verdict, cycle) = gang::run(&mut evaluator(1), snapshot, pods, (before, least), &[]);
        told(verdict, &cycle, snapshot)
    };
    let three = |cpu: &str, priority: i32| -> Vec<PodInfo> {
        ["a", "b", "c"].iter().map(|name| pod(name, cpu, priority)).collect()
    };
    let one_node = |others: &[PodInfo]| {
        let mut snapshot = nodes(1, "4");
        others.iter().for_each(|p| snapshot.place(p, "n0"));
        snapshot
    };
    let lines = [
        ("all fit", try_group(&mut one_node(&[]), three("1", 0), 0, 3)),
        ("two of three do not do", try_group(&mut one_node(&[]), three("2", 0), 0, 3)),
        ("two of three do", try_group(&mut one_node(&[]), three("2", 0), 0, 2)),
        ("two run already", try_group(&mut one_node(&[]), three("4", 0), 2, 3)),
        ("no gang", try_group(&mut one_node(&[]), three("3", 0), 0, 0)),
        ("a gang of which none fits", try_group(&mut one_node(&[]), three("5", 0), 3, 3)),
        ("others have to go", try_group(&mut one_node(&[pod("low", "2", -1)]), three("1", 0), 0, 3)),
        ("nobody goes in vain", try_group(&mut one_node(&[pod("low", "2", -1)]), three("2", 0), 0, 3)),
        ("the important first", {
            let pods = vec![pod("x", "3", 1), pod("y", "3", 2)];
            try_group(&mut one_node(&[]), pods, 0, 1)
        }),
    ];
    let lines: Vec<String> = lines.iter().map(|(what, line)| format!("{what}: {line}")).collect();
    expect_test::expect![[r#"
        all fit: Bind: a fits, b fits, c fits | n0: a b c (3000m)
        two of three do not do: Unschedulable: a fits, b fits, c fits nowhere | n0:  (0m)
        two of three do: Bind: a fits, b fits, c fits nowhere | n0: a b (4000m)
        two run already: Bind: a fits, b fits nowhere, c fits nowhere | n0: a (4000m)
        no gang: Bind: a fits, b fits nowhere, c fits nowhere | n0: a (3000m)
        a gang of which none fits: Unschedulable: a fits nowhere, b fits nowhere, c fits nowhere | n0:  (0m)
        others have to go: WaitForVictims: a fits, b fits, c after low | n0: low (2000m)
        nobody goes in vain: Unschedulable: a fits, b after low, c fits nowhere | n0: low (2000m)
        the important first: Bind: y fits, x fits nowhere | n0: y (3000m)"#]]
    .assert_eq(&lines.join("\n"));
}

#[test]
fn random_gangs_run_whole_or_leave_no_trace() {
    for seed in 0..40 {
        let mut random = StdRng::seed_from_u64(seed);
        let (mut snapshot, mut evaluator) = (nodes(random.random_range(1..12), "4"), evaluator(seed));
        let mut running: Vec<Vec<PodInfo>> = Vec::new();
        for step in 0..60 {
            if !running.is_empty() && random.random_bool(0.3) {
                let gone = running.swap_remove(random.random_range(0..running.len()));
                gone.iter().for_each(|p| drop(snapshot.remove(&p.uid)));
                continue;
            }
            let count = random.random_range(1..9);
            let least = random.random_range(1..=count);
            let cpu = format!("{}m", 500 * random.random_range(1..6));
            let priority = random.random_range(0..3);
            let pods: Vec<_> =
                (0..count).map(|n| pod(&format!("{seed}-{step}-{n}"), &cpu, priority)).collect();
            let before = state(&snapshot);
            let (verdict, cycle) = gang::run(&mut evaluator, &mut snapshot, pods, (0, least), &[]);
            let at = format!("seed {seed} step {step}");
            if verdict == Verdict::Bind {
                let placed: Vec<PodInfo> = cycle
                    .tried
                    .iter()
                    .filter(|(_, fate)| matches!(fate, Fate::Placed(_)))
                    .map(|(pod, _)| pod.clone())
                    .collect();
                assert!(placed.len() >= least, "{at}: half a gang");
                assert!(placed.iter().all(|p| snapshot.is_placed(&p.uid)), "{at}");
                running.push(placed);
            } else {
                assert_eq!(state(&snapshot), before, "{at}: {verdict:?} left something behind");
            }
            if verdict == Verdict::WaitForVictims {
                let less = |p: &PodInfo| p.priority < priority;
                let victims = cycle.tried.iter().filter_map(|(_, fate)| match fate {
                    Fate::AfterVictims { victims, .. } => Some(victims),
                    _ => None,
                });
                assert!(victims.flatten().all(less), "{at}: a victim as important as the gang");
            }
            for slot in snapshot.order() {
                let node = snapshot.node(*slot);
                assert!(node.requested.milli_cpu <= node.allocatable.milli_cpu, "{at}: over-committed");
            }
        }
    }
}

/// Two gangs that only fit alone: whatever the order of their pods, one runs whole.
#[test]
fn two_gangs_never_block_each_other() {
    for seed in 0..20 {
        let (mut snapshot, mut evaluator) = (nodes(4, "4"), evaluator(seed));
        let gang =
            |name: &str| -> Vec<PodInfo> { (0..3).map(|n| pod(&format!("{name}{n}"), "3", 0)).collect() };
        let (first, _) = gang::run(&mut evaluator, &mut snapshot, gang("a"), (0, 3), &[]);
        let (second, _) = gang::run(&mut evaluator, &mut snapshot, gang("b"), (0, 3), &[]);
        assert_eq!((first, second), (Verdict::Bind, Verdict::Unschedulable), "seed {seed}");
        for n in 0..3 {
            snapshot.remove(&format!("a{n}"));
        }
        let (again, _) = gang::run(&mut evaluator, &mut snapshot, gang("b"), (0, 3), &[]);
        assert_eq!(again, Verdict::Bind, "seed {seed}");
    }
}
