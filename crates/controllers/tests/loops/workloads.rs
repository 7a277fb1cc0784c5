//! Deployments, replica sets and replication controllers.
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController, ResourceQuota};
use serde_json::{Value, json};

use crate::hollow::Hollow;

pub fn deployment(name: &str, replicas: i32) -> Value {
    json!({"metadata": {"name": name}, "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}}})
}

pub fn controller(name: &str, replicas: i32) -> Value {
    json!({"metadata": {"name": name}, "spec": {"replicas": replicas, "selector": {"app": name},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}}})
}

pub fn complete(d: &Deployment, replicas: i32) -> bool {
    let status = d.status.as_ref();
    let reason = status
        .and_then(|s| s.conditions.as_ref())
        .and_then(|l| l.iter().find(|c| c.type_ == "Progressing"))
        .and_then(|c| c.reason.clone());
    status.is_some_and(|s| {
        s.observed_generation == d.metadata.generation
            && [s.replicas, s.updated_replicas, s.available_replicas]
                .iter()
                .all(|n| n.unwrap_or(0) == replicas)
    }) && reason.as_deref() == Some("NewReplicaSetAvailable")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_comes_up_rolls_scales_and_rolls_back() {
    let cluster = Hollow::start().await;
    cluster.create::<Deployment>("d", deployment("web", 10)).await;
    cluster.until::<Deployment>("ten replicas", |l| l.iter().any(|d| complete(d, 10))).await;
    for image in ["i:2", "i:1"] {
        let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}});
        cluster.merge::<Deployment>("d", "web", patch).await;
        cluster.until::<Deployment>("rolled", |l| l.iter().any(|d| complete(d, 10))).await;
        let image_of = |p: &Pod| p.spec.as_ref().and_then(|s| s.containers[0].image.clone());
        cluster
            .until::<Pod>("pods of the new image", |l| {
                l.len() == 10 && l.iter().all(|p| image_of(p).as_deref() == Some(image))
            })
            .await;
    }
    let sets = cluster.until::<ReplicaSet>("two sets", |l| l.len() == 2).await;
    let revisions: Vec<_> = sets
        .iter()
        .map(|s| {
            s.metadata.annotations.as_ref().expect("annotations")["deployment.kubernetes.io/revision"].clone()
        })
        .collect();
    assert!(revisions.contains(&"3".into()) && revisions.contains(&"2".into()), "{revisions:?}");
    cluster.merge::<Deployment>("d", "web", json!({"spec": {"replicas": 3}})).await;
    cluster.until::<Pod>("three pods", |l| l.len() == 3).await;
    cluster.until::<Deployment>("three replicas", |l| l.iter().any(|d| complete(d, 3))).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_says_why_its_replica_set_cannot_be_made_and_goes_on_when_it_can() {
    let cluster = Hollow::start().await;
    let none = json!({"metadata": {"name": "none"}, "spec": {"hard": {"count/replicasets.apps": "0"}}});
    cluster.create::<ResourceQuota>("d", none).await;
    let is_counted = |q: &ResourceQuota| q.status.as_ref().is_some_and(|s| s.used.is_some());
    cluster.until::<ResourceQuota>("counted", |l| l.iter().any(|q| is_counted(q))).await;
    cluster.create::<Deployment>("d", deployment("web", 2)).await;
    let progressing = |d: &Deployment| {
        let list = d.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
        list.into_iter().find(|c| c.type_ == "Progressing")
    };
    let refused = |d: &Deployment| {
        progressing(d).is_some_and(|c| {
            c.status == "False"
                && c.reason.as_deref() == Some("ReplicaSetCreateError")
                && c.message.is_some_and(|m| m.contains("exceeded quota: none"))
        })
    };
    let list = cluster.until::<Deployment>("refused", |l| l.iter().any(|d| refused(d))).await;
    let why = progressing(&list[0]).and_then(|c| c.message).expect("message");
    cluster.told("deployment-controller", "ReplicaSetCreateError", &why).await;
    cluster.delete::<ResourceQuota>("d", "none", "Background").await;
    cluster.look::<Deployment>("d", "web").await;
    cluster.until::<Deployment>("complete", |l| l.iter().any(|d| complete(d, 2))).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_pod_is_replaced_and_restarted_controllers_make_no_extra_one() {
    let mut cluster = Hollow::start().await;
    cluster.create::<Deployment>("d", deployment("web", 5)).await;
    for round in 0..3 {
        if round == 1 {
            cluster.stop_controllers().await;
            cluster.start_controllers();
        }
        let pods = cluster.until::<Pod>("five pods", |l| l.len() == 5).await;
        let gone = pods[0].metadata.clone();
        cluster.delete::<Pod>("d", gone.name.as_deref().expect("name"), "Background").await;
        cluster
            .until::<Pod>("replaced", |l| l.len() == 5 && l.iter().all(|p| p.metadata.uid != gone.uid))
            .await;
        cluster.until::<Deployment>("complete", |l| l.iter().any(|d| complete(d, 5))).await;
        // The deployment may still say so of the time before the deletion: the set's own count decides.
        let counted = |set: &ReplicaSet| set.status.as_ref().is_some_and(|s| s.replicas == 5);
        cluster.until::<ReplicaSet>("one set of five", |l| l.len() == 1 && counted(&l[0])).await;
        let pods = cluster.until::<Pod>("pods", |l| !l.is_empty()).await;
        assert_eq!(pods.len(), 5, "never more than asked for");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orphan_that_matches_is_adopted_and_one_that_stops_matching_released() {
    let cluster = Hollow::start().await;
    let orphan = json!({"metadata": {"name": "orphan", "labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}});
    cluster.create::<Pod>("d", orphan).await;
    let set = json!({"metadata": {"name": "set"}, "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}}});
    cluster.create::<ReplicaSet>("d", set).await;
    let owned = |p: &Pod| p.metadata.owner_references.as_ref().is_some_and(|l| !l.is_empty());
    cluster.until::<Pod>("adopted, one made", |l| l.len() == 2 && l.iter().all(|p| owned(p))).await;
    cluster.merge::<Pod>("d", "orphan", json!({"metadata": {"labels": {"app": "other"}}})).await;
    let released = |p: &Pod| p.metadata.name.as_deref() == Some("orphan") && !owned(p);
    cluster.until::<Pod>("released and replaced", |l| l.len() == 3 && l.iter().any(|p| released(p))).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replication_controller_adopts_scales_by_cost_and_counts() {
    let cluster = Hollow::start().await;
    let orphan = json!({"metadata": {"name": "orphan", "labels": {"app": "rc"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}});
    cluster.create::<Pod>("d", orphan).await;
    cluster.create::<ReplicationController>("d", controller("rc", 3)).await;
    let counts = |rc: &ReplicationController| {
        let s = rc.status.clone().unwrap_or_default();
        (s.replicas, s.fully_labeled_replicas, s.ready_replicas, s.available_replicas)
    };
    let all = |n: i32| (n, Some(n), Some(n), Some(n));
    cluster.until::<ReplicationController>("three", |l| l.iter().any(|rc| counts(rc) == all(3))).await;
    let pods = cluster.until::<Pod>("three pods", |l| l.len() == 3).await;
    let owner = |p: &Pod| p.metadata.owner_references.as_ref().and_then(|l| Some(l.first()?.kind.clone()));
    assert!(pods.iter().all(|p| owner(p).as_deref() == Some("ReplicationController")));
    let cheap = pods[0].metadata.name.clone().expect("name");
    let cost = json!({"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-100"}}});
    cluster.merge::<Pod>("d", &cheap, cost).await;
    let costs = |p: &Pod| p.metadata.annotations.as_ref().is_some_and(|a| !a.is_empty());
    cluster.until::<Pod>("the cost is seen", |l| l.iter().any(|p| costs(p))).await;
    cluster.merge::<ReplicationController>("d", "rc", json!({"spec": {"replicas": 2}})).await;
    cluster.until::<Pod>("the cheap one went", |l| l.len() == 2 && !l.iter().any(|p| costs(p))).await;
    cluster.until::<ReplicationController>("two", |l| l.iter().any(|rc| counts(rc) == all(2))).await;
    cluster.stop().await;
}
