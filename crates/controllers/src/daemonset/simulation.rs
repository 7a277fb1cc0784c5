//! Whole rollouts of a daemon set against a model of nodes on which pods become ready and go in random order: the bounds hold
//! at every step, and every rollout ends.
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use super::new_pod;
use super::placement::{Place, node_of};
use super::plan::{Plan, View, plan, status};
use crate::ownership::{labels, name};
use crate::pods;
use crate::revisions::REVISION_HASH;

struct World {
    set: DaemonSet,
    hash: String,
    places: BTreeMap<String, Place>,
    pods: Vec<Pod>,
    now: Timestamp,
    made: usize,
}

impl World {
    fn new(nodes: usize, rolling: Value) -> Self {
        let set = json!({"metadata": {"name": "agent", "namespace": "d", "uid": "s"},
            "spec": {"selector": {}, "template": {"spec": {"containers": [{"name": "c", "image": "i"}]}},
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": rolling}}});
        Self {
            set: serde_json::from_value(set).expect("set"),
            hash: "h1".to_owned(),
            places: (0..nodes).map(|n| (format!("n{n}"), Place::Run)).collect(),
            pods: Vec::new(),
            now: "2026-01-01T00:00:00Z".parse().expect("time"),
            made: 0,
        }
    }

    fn with_view<R>(&self, look: impl FnOnce(&View<'_>) -> R) -> R {
        let pods: Vec<Arc<Pod>> = self.pods.iter().cloned().map(Arc::new).collect();
        look(&View { set: &self.set, places: &self.places, pods: &pods, hash: &self.hash, now: self.now })
    }

    /// One pass of the controller; whether it wrote anything.
    fn pass(&mut self) -> bool {
        let Plan { create, delete, ended } = self.with_view(plan);
        let gone: Vec<_> = delete.iter().chain(ended.iter().map(|(_, p)| p)).collect();
        let wrote = !create.is_empty() || !gone.is_empty();
        for pod in gone {
            let pod = self.pods.iter_mut().find(|p| name(&p.metadata) == name(&pod.metadata)).expect("pod");
            pod.metadata.deletion_timestamp = Some(Time(self.now));
        }
        for node in create {
            let mut pod = new_pod(&self.set, &node, &self.hash).expect("pod");
            self.made += 1;
            pod.metadata.name = Some(format!("agent-{}", self.made));
            pod.metadata.creation_timestamp = Some(Time(self.now));
            pod.status.get_or_insert_default().phase = Some("Pending".to_owned());
            self.pods.push(pod);
        }
        wrote
    }

    /// A node acts on one pod: it goes when it shall, and else is bound and becomes ready, unless its revision is broken.
    fn act(&mut self, at: usize) {
        if pods::is_deleting(&self.pods[at]) {
            self.pods.remove(at);
            return;
        }
        let pod = &mut self.pods[at];
        let node = node_of(pod).map(str::to_owned);
        pod.spec.get_or_insert_default().node_name = node;
        let broken = labels(&pod.metadata)[REVISION_HASH] == "broken";
        let status = pod.status.get_or_insert_default();
        status.phase = Some("Running".to_owned());
        let ready = PodCondition {
            type_: "Ready".to_owned(),
            status: if broken { "False" } else { "True" }.to_owned(),
            last_transition_time: Some(Time(self.now)),
            ..PodCondition::default()
        };
        status.conditions.get_or_insert(vec![ready]);
    }

    fn settle(&mut self) {
        for _ in 0..500 {
            let wrote = self.pass();
            (0..self.pods.len()).rev().for_each(|at| self.act(at));
            self.now += SignedDuration::from_secs(1);
            if !wrote && !self.pass() {
                return;
            }
        }
        panic!("does not settle: {:?}", self.pods);
    }

    /// Nodes that shall have an available pod and have none.
    fn unavailable(&self) -> usize {
        let serves = |node: &str| {
            self.pods.iter().any(|p| !pods::is_deleting(p) && pods::is_ready(p) && node_of(p) == Some(node))
        };
        self.places.iter().filter(|(node, place)| **place == Place::Run && !serves(node)).count()
    }

    fn updated(&self) -> usize {
        self.pods.iter().filter(|p| labels(&p.metadata)[REVISION_HASH] == self.hash).count()
    }
}

#[test]
fn a_broken_revision_takes_no_more_nodes_than_may_be_unavailable() {
    let mut w = World::new(8, json!({"maxUnavailable": "25%", "maxSurge": 0}));
    w.settle();
    w.hash = "broken".to_owned();
    w.settle();
    assert_eq!((w.unavailable(), w.updated(), w.pods.len()), (2, 2, 8));
    w.hash = "h2".to_owned();
    w.settle();
    assert_eq!((w.unavailable(), w.updated(), w.pods.len()), (0, 8, 8));
}

#[test]
fn with_a_surge_nothing_is_lost_to_a_broken_revision() {
    let mut w = World::new(8, json!({"maxUnavailable": 0, "maxSurge": "25%"}));
    w.settle();
    w.hash = "broken".to_owned();
    w.settle();
    assert_eq!((w.unavailable(), w.updated(), w.pods.len()), (0, 2, 10));
    w.hash = "h2".to_owned();
    w.settle();
    assert_eq!((w.unavailable(), w.updated(), w.pods.len()), (0, 8, 8));
}

#[test]
fn a_pod_of_a_node_that_is_gone_and_was_never_bound_is_deleted() {
    let mut w = World::new(2, json!({"maxUnavailable": 1, "maxSurge": 0}));
    w.pass();
    w.places.remove("n1");
    w.settle();
    assert_eq!(w.pods.iter().filter_map(node_of).collect::<Vec<_>>(), ["n0"]);
    let (status, _) = w.with_view(|v| status(v, true, None));
    assert_eq!(
        (status.desired_number_scheduled, status.number_ready, status.number_available),
        (1, 1, Some(1))
    );
}

#[test]
fn bounds_hold_in_random_rollouts() {
    for seed in 0..300 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (surge, missing) =
            if seed % 2 == 0 { (rng.random_range(1..4), 0) } else { (0, rng.random_range(1..4)) };
        let nodes = rng.random_range(1..9);
        let mut w = World::new(nodes, json!({"maxUnavailable": missing, "maxSurge": surge}));
        w.settle();
        for round in 0..4 {
            w.hash = format!("r{round}");
            for _ in 0..rng.random_range(0..40) {
                w.pass();
                let missing = usize::try_from(missing).expect("number");
                assert!(w.unavailable() <= missing, "seed {seed}: {} are missing", w.unavailable());
                let staying = w.pods.iter().filter(|p| !pods::is_deleting(p)).count();
                assert!(staying <= nodes + usize::try_from(surge).expect("number"), "seed {seed}");
                if !w.pods.is_empty() {
                    w.act(rng.random_range(0..w.pods.len()));
                }
                w.now += SignedDuration::from_secs(1);
            }
            w.settle();
            assert_eq!((w.unavailable(), w.updated(), w.pods.len()), (0, nodes, nodes), "seed {seed}");
        }
    }
}
