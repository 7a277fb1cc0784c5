//! Whole rollouts of a stateful set against a model of nodes on which pods become ready and go in random order: order and
//! bounds hold at every step, and every rollout ends.
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use super::identity::ordinal;
use super::plan::{Action, Plan, Revision, View, plan, revision_of};
use crate::ownership::name;
use crate::pods;

struct World {
    set: StatefulSet,
    /// Every template the set had, by the name of its revision.
    templates: BTreeMap<String, PodTemplateSpec>,
    pods: BTreeMap<String, Pod>,
    now: Timestamp,
    events: Vec<String>,
    made: usize,
}

impl World {
    fn new(replicas: i32, spec: Value) -> Self {
        let mut set = json!({"metadata": {"name": "web", "namespace": "d", "uid": "s", "generation": 1},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": {},
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}}});
        for (key, value) in spec.as_object().into_iter().flatten() {
            set["spec"][key] = value.clone();
        }
        let mut world = Self {
            set: serde_json::from_value(set).expect("set"),
            templates: BTreeMap::new(),
            pods: BTreeMap::new(),
            now: "2026-01-01T00:00:00Z".parse().expect("time"),
            events: Vec::new(),
            made: 0,
        };
        world.image("1");
        world
    }

    fn image(&mut self, image: &str) {
        let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}});
        let template: PodTemplateSpec = serde_json::from_value(template).expect("template");
        self.templates.insert(format!("web-{image}"), template.clone());
        self.set.spec.as_mut().expect("spec").template = template;
    }

    fn scale(&mut self, replicas: i32) {
        self.set.spec.as_mut().expect("spec").replicas = Some(replicas);
    }

    fn plan(&self) -> Plan {
        let template = &self.set.spec.as_ref().expect("spec").template;
        let update = self.templates.iter().find(|(_, t)| *t == template).expect("revision").0;
        let current = self.set.status.as_ref().and_then(|s| s.current_revision.as_ref()).unwrap_or(update);
        let pods: Vec<Arc<Pod>> = self.pods.values().cloned().map(Arc::new).collect();
        plan(&View {
            set: &self.set,
            pods: &pods,
            current: Revision { name: current, template: &self.templates[current] },
            update: Revision { name: update, template },
            collisions: 0,
            claim: &|_| None,
            owned_claims: &[],
            now: self.now,
        })
    }

    /// One pass of the controller; whether it wrote anything.
    fn pass(&mut self) -> bool {
        let plan = self.plan();
        let mut wrote = self.set.status.as_ref() != Some(&plan.status);
        self.set.status = Some(plan.status);
        for action in plan.groups.into_iter().flatten().flat_map(|s| s.actions) {
            wrote = true;
            match action {
                Action::CreatePod(pod) => {
                    let mut pod = *pod;
                    self.made += 1;
                    pod.metadata.uid = Some(format!("p{}", self.made));
                    pod.status.get_or_insert_default().phase = Some("Pending".to_owned());
                    let revision = revision_of(&pod).expect("revision").to_owned();
                    self.events.push(format!("+{}@{revision}", ordinal(&pod.metadata)));
                    let before = self.pods.insert(name(&pod.metadata).to_owned(), pod);
                    assert!(before.is_none(), "the name was taken");
                }
                Action::DeletePod(pod) => {
                    self.events.push(format!("-{}", ordinal(&pod.metadata)));
                    let pod = self.pods.get_mut(name(&pod.metadata)).expect("pod");
                    pod.metadata.deletion_timestamp = Some(Time(self.now));
                }
                other => panic!("{other:?}"),
            }
        }
        wrote
    }

    /// A node acts on the pod: it goes when it shall, and else becomes ready, unless its image is broken.
    fn act(&mut self, pod: &str) {
        let Some(there) = self.pods.get_mut(pod) else { return };
        if pods::is_deleting(there) {
            self.pods.remove(pod);
            return;
        }
        let broken = revision_of(there) == Some("web-broken");
        let status = there.status.get_or_insert_default();
        status.phase = Some("Running".to_owned());
        if !broken && status.conditions.is_none() {
            let ready = PodCondition {
                type_: "Ready".to_owned(),
                status: "True".to_owned(),
                last_transition_time: Some(Time(self.now)),
                ..PodCondition::default()
            };
            status.conditions = Some(vec![ready]);
        }
    }

    fn settle(&mut self) {
        for _ in 0..500 {
            let wrote = self.pass();
            for pod in self.pods.keys().cloned().collect::<Vec<_>>() {
                self.act(&pod);
            }
            self.now += SignedDuration::from_secs(1);
            if !wrote && !self.pass() {
                return;
            }
        }
        panic!("does not settle: {:?}", self.events);
    }

    fn told(&mut self) -> String {
        std::mem::take(&mut self.events).join(" ")
    }

    fn unavailable(&self) -> usize {
        let wanted = self.set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
        let min_ready = self.set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
        let serves = |p: &&Pod| {
            !pods::is_deleting(p)
                && pods::until_available(p, min_ready, self.now).is_some_and(|w| w.is_zero())
        };
        usize::try_from(wanted).expect("replicas").saturating_sub(self.pods.values().filter(serves).count())
    }
}

#[test]
fn an_ordered_set_goes_up_in_order_and_down_and_over_from_the_end() {
    let mut w = World::new(3, json!({"minReadySeconds": 2}));
    w.settle();
    assert_eq!(w.told(), "+0@web-1 +1@web-1 +2@web-1");
    w.image("2");
    w.settle();
    assert_eq!(w.told(), "-2 +2@web-2 -1 +1@web-2 -0 +0@web-2");
    w.scale(1);
    w.settle();
    assert_eq!(w.told(), "-2 -1");
    let status = w.set.status.clone().expect("status");
    assert_eq!((status.replicas, status.current_replicas, status.updated_replicas), (1, Some(1), Some(1)));
    assert_eq!(status.current_revision.as_deref(), Some("web-2"));
}

#[test]
fn a_parallel_set_scales_at_once_and_still_updates_one_by_one() {
    let mut w = World::new(3, json!({"podManagementPolicy": "Parallel"}));
    w.pass();
    assert_eq!(w.told(), "+0@web-1 +1@web-1 +2@web-1");
    w.settle();
    w.image("2");
    w.settle();
    assert_eq!(w.told(), "-2 +2@web-2 -1 +1@web-2 -0 +0@web-2");
    w.scale(0);
    w.pass();
    assert_eq!(w.told(), "-2 -1 -0");
}

#[test]
fn a_broken_update_of_an_ordered_set_waits_for_a_hand_and_a_parallel_set_mends_itself() {
    for (policy, by_hand) in [("OrderedReady", true), ("Parallel", false)] {
        let mut w = World::new(3, json!({"podManagementPolicy": policy}));
        w.settle();
        w.image("broken");
        w.settle();
        w.told();
        assert_eq!(w.unavailable(), 1, "{policy}");
        w.image("2");
        w.settle();
        if by_hand {
            assert_eq!(w.told(), "", "the rollback is not started while a pod is not ready");
            w.pods.remove("web-2");
            w.settle();
        }
        assert_eq!(w.unavailable(), 0, "{policy} {:?}", w.events);
    }
}

#[test]
fn several_pods_may_be_missing_where_the_set_says_so() {
    let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 1, "maxUnavailable": 2}});
    let mut w = World::new(4, json!({"updateStrategy": rolling}));
    w.settle();
    w.told();
    w.image("2");
    w.pass();
    assert_eq!(w.told(), "-3 -2");
    w.settle();
    assert_eq!(w.told(), "+2@web-2 +3@web-2 -1 +1@web-2");
}

#[test]
fn order_and_bounds_hold_in_random_rollouts() {
    for seed in 0..300 {
        let mut rng = StdRng::seed_from_u64(seed);
        let ordered = seed % 2 == 0;
        let policy = if ordered { "OrderedReady" } else { "Parallel" };
        let mut w = World::new(rng.random_range(1..6), json!({"podManagementPolicy": policy}));
        w.settle();
        for round in 0..4 {
            let steady = rng.random_bool(0.5);
            if steady {
                w.image(&format!("r{round}"));
            } else {
                w.scale(rng.random_range(0..7));
            }
            for _ in 0..rng.random_range(0..40) {
                w.pass();
                assert!(!steady || w.unavailable() <= 1, "seed {seed}: {:?}", w.events);
                let names: Vec<i64> = w.pods.values().map(|p| ordinal(&p.metadata)).collect();
                if ordered && !names.is_empty() {
                    let missing =
                        (0..*names.iter().max().expect("max")).filter(|n| !names.contains(n)).count();
                    assert!(missing <= 1, "seed {seed}: gaps in {names:?}");
                }
                let all: Vec<String> = w.pods.keys().cloned().collect();
                if !all.is_empty() {
                    w.act(&all[rng.random_range(0..all.len())].clone());
                }
                w.now += SignedDuration::from_secs(1);
            }
            w.settle();
            assert_eq!(w.unavailable(), 0, "seed {seed}");
            let wanted = w.set.spec.as_ref().and_then(|s| s.replicas).expect("replicas");
            assert_eq!(i32::try_from(w.pods.len()), Ok(wanted), "seed {seed}");
            let newest = w.set.status.as_ref().and_then(|s| s.update_revision.clone());
            assert!(w.pods.values().all(|p| revision_of(p) == newest.as_deref()), "seed {seed}");
        }
    }
}
