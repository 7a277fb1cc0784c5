//! Stateful sets.
use std::sync::Arc;

use client::Patch;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use crate::hollow::Hollow;

/// A set of `replicas` pods; `more` goes over its spec.
pub fn stateful(name: &str, replicas: i32, more: Value) -> Value {
    let mut set = json!({"metadata": {"name": name}, "spec": {"replicas": replicas, "serviceName": name,
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}}});
    for (key, value) in more.as_object().into_iter().flatten() {
        set["spec"][key] = value.clone();
    }
    set
}

/// One claim template, `data`.
pub fn data_claim() -> Value {
    json!([{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}])
}

pub fn image(image: &str) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}})
}

fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().expect("name")
}

fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
    pods.iter().map(|p| name(&p.metadata)).collect()
}

/// Whether the rollout is through: all pods of one revision, ready and counted.
pub fn settled(set: &StatefulSet, replicas: i32) -> bool {
    set.status.as_ref().is_some_and(|s| {
        s.observed_generation == set.metadata.generation
            && s.replicas == replicas
            && [s.ready_replicas, s.available_replicas, s.updated_replicas, s.current_replicas]
                .iter()
                .all(|n| n.unwrap_or(0) == replicas)
            && s.current_revision == s.update_revision
    })
}

async fn until_settled(cluster: &Hollow, replicas: i32) -> Arc<StatefulSet> {
    let sets = cluster.until::<StatefulSet>("settled", |l| l.iter().any(|s| settled(s, replicas))).await;
    sets[0].clone()
}

fn of_image(pod: &Pod, image: &str) -> bool {
    pod.spec.as_ref().and_then(|s| s.containers[0].image.as_deref()) == Some(image)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_have_a_name_a_place_and_claims_of_their_own() {
    let cluster = Hollow::start().await;
    let more = json!({"volumeClaimTemplates": data_claim(), "ordinals": {"start": 5}});
    cluster.create::<StatefulSet>("d", stateful("web", 2, more)).await;
    let set = until_settled(&cluster, 2).await;
    let pods = cluster.until::<Pod>("two pods", |l| l.len() == 2).await;
    assert_eq!(names(&pods), ["web-5", "web-6"]);
    let pod = pods[1].clone();
    let (labels, spec) = (pod.metadata.labels.clone().expect("labels"), pod.spec.clone().expect("spec"));
    assert_eq!(labels["statefulset.kubernetes.io/pod-name"], "web-6");
    assert_eq!(labels["apps.kubernetes.io/pod-index"], "6");
    let revision = set.status.as_ref().and_then(|s| s.update_revision.clone()).expect("revision");
    assert_eq!(labels["controller-revision-hash"], revision);
    assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("web-6"), Some("web")));
    let volume = &spec.volumes.as_ref().expect("volumes")[0];
    assert_eq!(volume.name, "data");
    assert_eq!(volume.persistent_volume_claim.as_ref().expect("claim").claim_name, "data-web-6");
    let claims = cluster.until::<PersistentVolumeClaim>("two claims", |l| l.len() == 2).await;
    assert!(claims.iter().all(|c| c.metadata.labels.as_ref().is_some_and(|l| l["app"] == "web")));
    assert!(claims.iter().all(|c| c.metadata.owner_references.is_none()));
    // The claims stay when the set shrinks and goes.
    cluster.merge::<StatefulSet>("d", "web", json!({"spec": {"replicas": 1}})).await;
    cluster.until::<Pod>("one pod", |l| names(l) == ["web-5"]).await;
    cluster.delete::<StatefulSet>("d", "web", "Foreground").await;
    cluster.until::<StatefulSet>("no set", |l| l.is_empty()).await;
    cluster.until::<ControllerRevision>("no revisions", |l| l.is_empty()).await;
    assert_eq!(cluster.until::<PersistentVolumeClaim>("claims", |l| !l.is_empty()).await.len(), 2);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordered_set_waits_for_each_pod_and_a_parallel_one_for_none() {
    let cluster = Hollow::start().await;
    let held = |policy: &str| {
        json!({"podManagementPolicy": policy, "template": {"metadata": {"labels": {"app": policy.to_lowercase(), "hold": ""}},
            "spec": {"containers": [{"name": "c", "image": "i:1"}]}}})
    };
    cluster.create::<StatefulSet>("d", stateful("orderedready", 3, held("OrderedReady"))).await;
    cluster.create::<StatefulSet>("d", stateful("parallel", 3, held("Parallel"))).await;
    let one = |l: &[Arc<StatefulSet>], set: &str, n: i32| {
        l.iter().any(|s| name(&s.metadata) == set && s.status.as_ref().is_some_and(|s| s.replicas == n))
    };
    let pods = cluster
        .until::<Pod>("three parallel pods, one ordered", |l| {
            names(l) == ["orderedready-0", "parallel-0", "parallel-1", "parallel-2"]
        })
        .await;
    cluster.until::<StatefulSet>("counted", |l| one(l, "orderedready", 1) && one(l, "parallel", 3)).await;
    assert_eq!(pods.len(), 4);
    // One after the other is let go.
    for n in 0..3 {
        let ready = json!({"metadata": {"labels": {"hold": null}}});
        cluster.until::<Pod>("next pod", |l| names(l).contains(&format!("orderedready-{n}").as_str())).await;
        cluster.merge::<Pod>("d", &format!("orderedready-{n}"), ready).await;
    }
    cluster
        .until::<StatefulSet>("ordered is up", |l| {
            l.iter().any(|s| name(&s.metadata) == "orderedready" && settled(s, 3))
        })
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_stops_at_the_partition_and_a_rollback_takes_up_the_old_revision() {
    let cluster = Hollow::start().await;
    cluster.create::<StatefulSet>("d", stateful("web", 4, json!({}))).await;
    let first = until_settled(&cluster, 4).await;
    let mut patch = image("i:2");
    patch["spec"]["updateStrategy"] = json!({"rollingUpdate": {"partition": 2}});
    cluster.merge::<StatefulSet>("d", "web", patch).await;
    cluster
        .until::<StatefulSet>("two updated", |l| {
            l[0].status.as_ref().is_some_and(|s| {
                s.observed_generation == l[0].metadata.generation
                    && (s.updated_replicas, s.current_replicas, s.ready_replicas)
                        == (Some(2), Some(2), Some(4))
            })
        })
        .await;
    let pods = cluster.until::<Pod>("four", |l| l.len() == 4).await;
    let updated: Vec<bool> = pods.iter().map(|p| of_image(p, "i:2")).collect();
    assert_eq!(updated, [false, false, true, true]);
    // A pod below the partition comes back as it was.
    let gone = pods[0].metadata.uid.clone();
    cluster.delete::<Pod>("d", "web-0", "Background").await;
    cluster
        .until::<Pod>("web-0 is back, of the old revision", |l| {
            l.len() == 4 && l[0].metadata.uid != gone && of_image(&l[0], "i:1")
        })
        .await;
    cluster
        .merge::<StatefulSet>(
            "d",
            "web",
            json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": 0}}}}),
        )
        .await;
    until_settled(&cluster, 4).await;
    let revisions = cluster.until::<ControllerRevision>("two revisions", |l| l.len() == 2).await;
    let mut numbers: Vec<i64> = revisions.iter().map(|r| r.revision).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2]);
    // As `kubectl rollout undo` does: the patch that the revision holds.
    let old = revisions.iter().find(|r| r.revision == 1).expect("first revision");
    let undo = Patch::Strategic(old.data.as_ref().expect("data").0.clone());
    cluster.client.patch::<StatefulSet>("d", "web", &undo).await.expect("undo");
    let revision = |s: &StatefulSet| s.status.as_ref().and_then(|s| s.current_revision.clone());
    cluster
        .until::<StatefulSet>("back at the first revision", |l| {
            settled(&l[0], 4) && revision(&l[0]) == revision(&first)
        })
        .await;
    cluster
        .until::<ControllerRevision>("the first revision is the third", |l| {
            let is_first = |r: &ControllerRevision| revision(&first).as_deref() == Some(name(&r.metadata));
            l.len() == 2 && l.iter().any(|r| r.revision == 3 && is_first(r))
        })
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_delete_leaves_the_replacing_to_the_user_and_history_is_bounded() {
    let cluster = Hollow::start().await;
    let more = json!({"updateStrategy": {"type": "OnDelete"}, "revisionHistoryLimit": 1});
    cluster.create::<StatefulSet>("d", stateful("web", 2, more)).await;
    cluster.until::<StatefulSet>("up", |l| l.iter().any(|s| settled(s, 2))).await;
    for n in 2..=4 {
        cluster.merge::<StatefulSet>("d", "web", image(&format!("i:{n}"))).await;
        cluster.until::<ControllerRevision>("its revision", |l| l.iter().any(|r| r.revision == n)).await;
    }
    // The first is in use, the fourth is the newest, of the others one may stay.
    let numbers = |l: &[Arc<ControllerRevision>]| {
        let mut numbers: Vec<i64> = l.iter().map(|r| r.revision).collect();
        numbers.sort_unstable();
        numbers
    };
    cluster.until::<ControllerRevision>("history is cut", |l| numbers(l) == [1, 3, 4]).await;
    let pods = cluster.until::<Pod>("pods", |l| l.len() == 2).await;
    assert!(pods.iter().all(|p| of_image(p, "i:1")));
    cluster.delete::<Pod>("d", "web-1", "Background").await;
    cluster
        .until::<Pod>("replaced", |l| l.len() == 2 && of_image(&l[1], "i:4") && of_image(&l[0], "i:1"))
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_go_with_the_pod_or_the_set_where_the_policy_says_so() {
    let cluster = Hollow::start().await;
    let more = json!({"volumeClaimTemplates": data_claim(),
        "persistentVolumeClaimRetentionPolicy": {"whenScaled": "Delete", "whenDeleted": "Delete"}});
    cluster.create::<StatefulSet>("d", stateful("web", 3, more)).await;
    until_settled(&cluster, 3).await;
    let kinds = |c: &PersistentVolumeClaim| -> Vec<String> {
        c.metadata.owner_references.iter().flatten().map(|r| r.kind.clone()).collect()
    };
    cluster
        .until::<PersistentVolumeClaim>("owned by the set", |l| {
            l.len() == 3 && l.iter().all(|c| kinds(c) == ["StatefulSet"])
        })
        .await;
    cluster
        .told("statefulset-controller", "SuccessfulCreate", "create Pod web-2 in StatefulSet web successful")
        .await;
    cluster.merge::<StatefulSet>("d", "web", json!({"spec": {"replicas": 1}})).await;
    cluster.until::<Pod>("one pod", |l| names(l) == ["web-0"]).await;
    cluster.until::<PersistentVolumeClaim>("one claim", |l| l.len() == 1).await;
    cluster.merge::<StatefulSet>("d", "web", json!({"spec": {"replicas": 2}})).await;
    until_settled(&cluster, 2).await;
    cluster.until::<PersistentVolumeClaim>("two claims", |l| l.len() == 2).await;
    cluster.delete::<StatefulSet>("d", "web", "Background").await;
    cluster.until::<PersistentVolumeClaim>("no claims", |l| l.is_empty()).await;
    cluster.until::<Pod>("no pods", |l| l.is_empty()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_retention_policy_is_told_as_an_update_of_the_pods() {
    let cluster = Hollow::start().await;
    cluster
        .create::<StatefulSet>("d", stateful("web", 1, json!({"volumeClaimTemplates": data_claim()})))
        .await;
    until_settled(&cluster, 1).await;
    let policy = json!({"spec": {"persistentVolumeClaimRetentionPolicy": {"whenScaled": "Retain", "whenDeleted": "Delete"}}});
    cluster.merge::<StatefulSet>("d", "web", policy).await;
    let owned = |c: &PersistentVolumeClaim| c.metadata.owner_references.is_some();
    cluster.until::<PersistentVolumeClaim>("owned", |l| l.iter().all(|c| owned(c))).await;
    cluster
        .told("statefulset-controller", "SuccessfulUpdate", "update Pod web-0 in StatefulSet web successful")
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_ended_comes_back_and_a_stranger_of_its_name_is_waited_for() {
    let cluster = Hollow::start().await;
    let stranger = json!({"metadata": {"name": "web-1", "labels": {"app": "other"}}, "spec": {"containers": [{"name": "c", "image": "i:9"}]}});
    cluster.create::<Pod>("d", stranger).await;
    cluster.create::<StatefulSet>("d", stateful("web", 2, json!({}))).await;
    cluster
        .until::<StatefulSet>("one of two", |l| {
            l.first()
                .and_then(|s| s.status.as_ref())
                .is_some_and(|s| (s.replicas, s.ready_replicas) == (1, Some(1)))
        })
        .await;
    cluster.delete::<Pod>("d", "web-1", "Background").await;
    until_settled(&cluster, 2).await;
    let pods = cluster.until::<Pod>("two", |l| l.len() == 2).await;
    let failed = Patch::Strategic(json!({"status": {"phase": "Failed"}}));
    cluster.client.patch_status::<Pod>("d", "web-0", &failed).await.expect("status");
    cluster
        .until::<Pod>("replaced", |l| {
            l.len() == 2
                && l[0].metadata.uid != pods[0].metadata.uid
                && l[1].metadata.uid == pods[1].metadata.uid
        })
        .await;
    until_settled(&cluster, 2).await;
    cluster.stop().await;
}
