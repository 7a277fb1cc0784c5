//! Whole rollouts against a model of the replica set controller and of pods that become ready in random order: bounds
//! hold at every step, and every rollout ends.
use std::collections::HashSet;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use super::bounds::{desired, max_surge, max_unavailable};
use super::plan::{Action, Plan, actual, available, plan, replicas};
use super::revisions::revision;
use super::rollback::Rollback;
use super::status::is_complete;
use crate::ownership::{annotations, name, uid};

/// A deployment, its sets, and a clock that moves a second per step.
struct World {
    d: Deployment,
    sets: Vec<ReplicaSet>,
    now: Timestamp,
    events: Vec<String>,
    made: usize,
}

fn deployment(spec: Value) -> Deployment {
    let mut d = json!({
        "metadata": {"name": "web", "namespace": "d", "uid": "d1", "generation": 1},
        "spec": {"replicas": 10, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}},
    });
    for (key, value) in spec.as_object().into_iter().flatten() {
        d["spec"][key] = value.clone();
    }
    serde_json::from_value(d).expect("deployment")
}

impl World {
    fn new(spec: Value) -> Self {
        Self {
            d: deployment(spec),
            sets: Vec::new(),
            now: "2026-01-01T00:00:00Z".parse().expect("time"),
            events: Vec::new(),
            made: 0,
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut Deployment)) {
        change(&mut self.d);
        *self.d.metadata.generation.get_or_insert(0) += 1;
    }

    fn image(&mut self, image: &str) {
        let image = image.to_owned();
        self.change(|d| {
            let template = &mut d.spec.as_mut().expect("spec").template;
            template.spec.as_mut().expect("pod").containers[0].image = Some(image);
        });
    }

    fn plan(&self) -> Plan {
        let sets: Vec<_> = self.sets.iter().cloned().map(Arc::new).collect();
        let live: HashSet<String> =
            self.sets.iter().filter(|s| actual(s) > 0).map(|s| uid(&s.metadata).to_owned()).collect();
        plan(&self.d, &sets, &live, self.now)
    }

    /// One pass of the deployment controller; whether it wrote anything.
    fn pass(&mut self) -> bool {
        let plan = self.plan();
        let wrote = !plan.actions.is_empty() || plan.status.is_some() || plan.rollback.is_some();
        for action in plan.actions {
            match action {
                Action::Create(set) => {
                    let mut set = *set;
                    self.made += 1;
                    set.metadata.uid = Some(format!("rs{}", self.made));
                    set.metadata.creation_timestamp = Some(Time(self.now));
                    set.metadata.generation = Some(1);
                    self.events.push(format!("create {} at {}", self.made, replicas(&set)));
                    self.sets.push(set);
                }
                Action::Update { replica_set, scaled } => {
                    let there =
                        self.sets.iter_mut().find(|s| name(&s.metadata) == name(&replica_set.metadata));
                    let there = there.expect("set");
                    *there = *replica_set;
                    if let Some((from, to)) = scaled {
                        *there.metadata.generation.get_or_insert(0) += 1;
                        self.events.push(format!("{} {from}->{to}", uid(&there.metadata)));
                    }
                }
                Action::Delete { name: gone, .. } => {
                    self.events.push(format!("delete {gone}"));
                    self.sets.retain(|s| name(&s.metadata) != gone);
                }
            }
        }
        if let Some(Rollback { deployment, said }) = plan.rollback {
            self.change(|d| *d = *deployment);
            self.events.push(format!("{said:?}"));
        }
        if let Some(next) = plan.status {
            self.d = *next;
        }
        wrote
    }

    /// The replica set controller and the nodes: sets reach their size, and up to `ready` pods become available.
    fn nodes(&mut self, ready: i32) {
        self.nodes_except(ready, |_| false);
    }

    /// The same, but the status of some sets stays as it was: their controller was not there yet.
    fn nodes_except(&mut self, mut ready: i32, mut is_late: impl FnMut(&ReplicaSet) -> bool) {
        for set in &mut self.sets {
            if is_late(set) {
                continue;
            }
            let size = replicas(set);
            let mut ok = available(set).min(size);
            let more = ready.min(size - ok);
            ok += more;
            ready -= more;
            set.status = Some(ReplicaSetStatus {
                replicas: size,
                ready_replicas: Some(ok),
                available_replicas: Some(ok),
                terminating_replicas: Some(0),
                observed_generation: set.metadata.generation,
                ..Default::default()
            });
        }
        self.now += SignedDuration::from_secs(1);
    }

    fn settle(&mut self) {
        for _ in 0..500 {
            let wrote = self.pass();
            self.nodes(i32::MAX);
            if !wrote && !self.pass() {
                return;
            }
        }
        panic!("does not settle: {:?}", self.events);
    }

    fn progressing(&self) -> (String, String, String) {
        let list = self.d.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
        let c = list.into_iter().find(|c| c.type_ == "Progressing").expect("Progressing");
        (c.status, c.reason.unwrap_or_default(), c.message.unwrap_or_default())
    }
}

#[test]
fn a_rolling_update_takes_these_steps() {
    let mut w = World::new(
        json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}}),
    );
    w.settle();
    w.image("i:2");
    w.settle();
    expect_test::expect![[r#"
        create 1 at 10
        create 2 at 3
        rs1 10->8
        rs2 3->5
        rs1 8->3
        rs2 5->10
        rs1 3->0"#]]
    .assert_eq(&w.events.join("\n"));
    let message = format!("ReplicaSet \"{}\" has successfully progressed.", name(&w.sets[1].metadata));
    assert_eq!(w.progressing(), ("True".into(), "NewReplicaSetAvailable".into(), message));
    assert_eq!(annotations(&w.d.metadata)["deployment.kubernetes.io/revision"], "2");
}

#[test]
fn recreate_ends_all_old_pods_before_it_starts_new_ones() {
    let mut w = World::new(json!({"replicas": 4, "strategy": {"type": "Recreate"}}));
    w.settle();
    w.image("i:2");
    w.pass();
    assert_eq!(w.sets.iter().map(replicas).collect::<Vec<_>>(), [0]);
    w.pass();
    assert_eq!(w.sets.len(), 1, "waits while pods of the old set are there");
    w.settle();
    assert_eq!(w.events, ["create 1 at 4", "rs1 4->0", "create 2 at 4"]);
}

#[test]
fn a_rollback_reuses_the_old_set_and_raises_its_revision() {
    let mut w = World::new(json!({"replicas": 2}));
    w.settle();
    w.image("i:2");
    w.settle();
    w.image("i:1");
    w.settle();
    assert_eq!(w.sets.len(), 2);
    assert_eq!((revision(&w.sets[0].metadata), revision(&w.sets[1].metadata)), (3, 2));
    assert_eq!(annotations(&w.sets[0].metadata)["deployment.kubernetes.io/revision-history"], "1");
    assert_eq!(w.sets.iter().map(replicas).collect::<Vec<_>>(), [2, 0]);
}

#[test]
fn history_beyond_the_limit_is_deleted() {
    let mut w = World::new(json!({"replicas": 1, "revisionHistoryLimit": 2}));
    for image in ["i:1", "i:2", "i:3", "i:4", "i:5"] {
        w.image(image);
        w.settle();
    }
    let mut revisions: Vec<_> = w.sets.iter().map(|s| revision(&s.metadata)).collect();
    revisions.sort_unstable();
    assert_eq!(revisions, [3, 4, 5]);
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut w = World::new(json!({"replicas": 3}));
    w.settle();
    w.change(|d| d.spec.as_mut().expect("spec").paused = Some(true));
    w.image("i:2");
    w.change(|d| d.spec.as_mut().expect("spec").replicas = Some(5));
    w.settle();
    assert_eq!(w.events, ["create 1 at 3", "rs1 3->5"]);
    assert_eq!(w.progressing().1, "DeploymentPaused");
    w.change(|d| d.spec.as_mut().expect("spec").paused = None);
    w.settle();
    assert_eq!(w.sets.iter().map(replicas).collect::<Vec<_>>(), [0, 5]);
}

#[test]
fn while_a_deployment_is_paused_nothing_counts_as_progress() {
    let mut w = World::new(json!({"replicas": 3}));
    w.settle();
    w.change(|d| {
        let spec = d.spec.as_mut().expect("spec");
        (spec.paused, spec.replicas) = (Some(true), Some(6));
    });
    for _ in 0..5 {
        w.pass();
        w.nodes(1);
        assert_eq!(w.progressing().1, "DeploymentPaused");
    }
    assert_eq!(w.d.status.as_ref().and_then(|s| s.available_replicas), Some(6));
}

#[test]
fn a_set_that_was_not_looked_at_yet_has_no_terminating_pods() {
    let mut w = World::new(json!({"replicas": 1}));
    w.pass();
    w.pass();
    let terminating = |w: &World| w.d.status.as_ref().and_then(|s| s.terminating_replicas);
    assert_eq!(terminating(&w), Some(0));
    w.nodes(1);
    w.sets[0].status.as_mut().expect("status").terminating_replicas = None;
    w.pass();
    assert_eq!(terminating(&w), None, "whose controller does not count them");
}

#[test]
fn an_annotation_rolls_back_to_the_revision_it_names() {
    let mut w = World::new(json!({"replicas": 1}));
    let cause = |w: &mut World, cause: &str| {
        let cause = cause.to_owned();
        w.change(|d| {
            d.metadata.annotations.get_or_insert_default().insert("kubernetes.io/change-cause".into(), cause);
        });
    };
    for (image, why) in [("i:1", "first"), ("i:2", "second"), ("i:3", "third")] {
        cause(&mut w, why);
        w.image(image);
        w.settle();
    }
    let back = |w: &mut World, to: &str| {
        let to = to.to_owned();
        w.change(|d| {
            d.metadata
                .annotations
                .get_or_insert_default()
                .insert("deprecated.deployment.rollback.to".into(), to);
        });
        w.events.clear();
        w.settle();
        assert_eq!(annotations(&w.d.metadata).get("deprecated.deployment.rollback.to"), None);
        let pod = w.d.spec.as_ref().and_then(|s| s.template.spec.as_ref()).expect("pod");
        let cause = annotations(&w.d.metadata)["kubernetes.io/change-cause"].clone();
        (w.events[0].clone(), pod.containers[0].image.clone().unwrap_or_default(), cause)
    };
    let done = |to: i64| format!(r#"Done("Rolled back deployment \"web\" to revision {to}")"#);
    assert_eq!(back(&mut w, "1"), (done(1), "i:1".into(), "first".into()));
    // The one before the current, which is the fourth by now.
    assert_eq!(back(&mut w, "0"), (done(3), "i:3".into(), "third".into()));
    let kept = |said: &str| (said.to_owned(), "i:3".to_owned(), "third".to_owned());
    let same = r#"Refused("DeploymentRollbackTemplateUnchanged", "The rollback revision contains the same template as current deployment \"web\"")"#;
    assert_eq!(back(&mut w, "5"), kept(same));
    let none =
        r#"Refused("DeploymentRollbackRevisionNotFound", "Unable to find the revision to rollback to.")"#;
    assert_eq!(back(&mut w, "77"), kept(none));
}

#[test]
fn scaling_in_the_middle_of_a_rollout_keeps_proportions() {
    let mut w = World::new(
        json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}}}),
    );
    w.settle();
    w.image("i:2");
    for _ in 0..4 {
        w.pass();
        w.nodes(0);
    }
    assert_eq!(w.sets.iter().map(replicas).collect::<Vec<_>>(), [8, 5]);
    w.change(|d| d.spec.as_mut().expect("spec").replicas = Some(15));
    w.pass();
    // The documentation's example: 5 more replicas (15 + 3 surge - 13) are split 3 to 2.
    assert_eq!(w.sets.iter().map(replicas).collect::<Vec<_>>(), [11, 7]);
}

#[test]
fn a_rollout_that_stands_still_times_out_and_recovers() {
    let mut w = World::new(json!({"replicas": 2, "progressDeadlineSeconds": 60}));
    w.pass();
    w.nodes(0);
    w.pass();
    assert!(w.plan().requeue.is_some_and(|r| r.as_secs() <= 61));
    w.now += SignedDuration::from_secs(120);
    w.pass();
    assert_eq!((w.progressing().0, w.progressing().1), ("False".into(), "ProgressDeadlineExceeded".into()));
    assert_eq!(w.plan().requeue, None);
    w.settle();
    assert_eq!(w.progressing().1, "NewReplicaSetAvailable");
}

#[test]
fn a_settled_deployment_writes_nothing() {
    let mut w = World::new(json!({"replicas": 3}));
    w.settle();
    w.now += SignedDuration::from_secs(100_000);
    assert!(!w.pass());
}

/// 300 random rollouts with random bounds, sizes, changes and readiness.
#[test]
fn bounds_hold_at_every_step_of_random_rollouts() {
    for seed in 0..300 {
        let mut random = StdRng::seed_from_u64(seed);
        let value = |random: &mut StdRng| -> Value {
            if random.random_bool(0.5) {
                json!(random.random_range(0..6))
            } else {
                json!(format!("{}%", random.random_range(0..101)))
            }
        };
        let (surge, unavailable) = (value(&mut random), value(&mut random));
        let size = random.random_range(0..25);
        let mut w = World::new(json!({"replicas": size, "revisionHistoryLimit": 3,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}));
        w.settle();
        for round in 0..3 {
            w.image(&format!("i:{}", random.random_range(0..4)));
            let was_available: i32 = w.sets.iter().map(available).sum();
            for _ in 0..random.random_range(1..40) {
                w.pass();
                let total: i32 = w.sets.iter().map(replicas).sum();
                let up: i32 = w.sets.iter().map(|s| available(s).min(replicas(s))).sum();
                let (most, least) = (desired(&w.d) + max_surge(&w.d), desired(&w.d) - max_unavailable(&w.d));
                assert!(
                    total <= most,
                    "seed {seed} round {round}: {total} pods, at most {most}: {:?}",
                    w.events
                );
                assert!(
                    up >= least.min(was_available),
                    "seed {seed} round {round}: {up} available, at least {least}: {:?}",
                    w.events
                );
                let ready = random.random_range(0..4);
                w.nodes_except(ready, |_| random.random_bool(0.3));
            }
        }
        w.settle();
        assert!(is_complete(&w.d, w.d.status.as_ref()), "seed {seed}: {:?}", w.d.status);
        assert!(w.sets.len() <= 4, "seed {seed}: {} sets", w.sets.len());
    }
}
