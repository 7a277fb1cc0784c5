//! How long decisions take, API and store left out: `cargo run --release -p scheduler --example decide [SHAPE]`, the
//! shapes of `cargo xtask bench schedule` (`plain`, `antiaffinity`, `spread`; all without an argument).
use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::core::v1::{Node, Pod};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use scheduler::evaluate::{Evaluator, Placement};
use scheduler::pod_info::Demands;
use scheduler::profile::Profile;
use scheduler::snapshot::Snapshot;
use serde_json::{Value, json};

fn object<T: serde::de::DeserializeOwned>(value: Value) -> Arc<T> {
    Arc::new(serde_json::from_value(value).unwrap_or_else(|error| panic!("{error}")))
}

fn run(shape: &str, nodes: usize, pods: usize) {
    let mut snapshot = Snapshot::default();
    for n in 0..nodes {
        let name = format!("n{n}");
        let zone = format!("z{}", n % 3);
        snapshot.set_node(&object::<Node>(json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone}},
            "status": {"allocatable": {"cpu": "32", "memory": "256Gi", "pods": "110"}},
        })));
    }
    let mut spec = match shape {
        "antiaffinity" => {
            json!({"affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 1, "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "bench"}}}}]}}})
        }
        "spread" => {
            json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "bench"}}}]})
        }
        _ => json!({}),
    };
    spec["containers"] = json!([{"name": "c", "image": "pause", "resources": {"requests": {"cpu": "100m", "memory": "500Mi"}}}]);
    let pods: Vec<Arc<Pod>> = (0..pods)
        .map(|n| {
            let name = format!("p{n}");
            object(json!({"metadata": {"name": name, "namespace": "d", "uid": name, "labels": {"app": "bench"}}, "spec": spec}))
        })
        .collect();
    let mut evaluator = Evaluator::new(SmallRng::seed_from_u64(1), Profile::default());
    let mut demands = Demands::default();
    let began = Instant::now();
    for pod in &pods {
        let pod = demands.info(pod);
        let Placement::Node(slot) = evaluator.place(&pod, &snapshot) else { panic!("no node") };
        let name = snapshot.node(slot).name.clone();
        snapshot.place(&pod, &name);
    }
    let each = began.elapsed().as_secs_f64() / pods.len() as f64;
    println!(
        "{shape:>12}: {nodes} nodes, {} pods: {:.1} µs each, {:.0}/s",
        pods.len(),
        each * 1e6,
        1.0 / each
    );
}

fn main() {
    let only = std::env::args().nth(1);
    for (shape, nodes, pods) in
        [("plain", 1000, 5000), ("plain", 5000, 5000), ("antiaffinity", 1000, 2000), ("spread", 1000, 2000)]
    {
        if only.as_deref().is_none_or(|s| s == shape) {
            run(shape, nodes, pods);
        }
    }
}
