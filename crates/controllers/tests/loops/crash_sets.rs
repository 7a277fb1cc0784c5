//! The crash test of stateful sets, daemon sets and replication controllers.
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ReplicationController};
use serde_json::json;

use crate::crash::{Story, at_every_write};
use crate::hollow::Hollow;
use crate::workloads::controller;
use crate::{daemons, stateful};

/// Sets that are rolled over, one that is deleted with its claims, and a replication controller that shrinks.
pub struct Sets;

impl Story for Sets {
    const WRITERS: &'static [&'static str] =
        &["statefulset-controller", "daemonset-controller", "replication-controller"];

    async fn create(cluster: &Hollow) {
        let claims = json!({"volumeClaimTemplates": stateful::data_claim(),
            "persistentVolumeClaimRetentionPolicy": {"whenScaled": "Delete", "whenDeleted": "Delete"}});
        cluster.create::<StatefulSet>("d", stateful::stateful("db", 3, claims.clone())).await;
        cluster.create::<StatefulSet>("d", stateful::stateful("gone", 1, claims)).await;
        cluster.create::<DaemonSet>("d", daemons::daemon("agent", json!({}))).await;
        cluster.create::<ReplicationController>("d", controller("rc", 2)).await;
    }

    async fn up(cluster: &Hollow) {
        cluster.until::<Pod>("first pods", |l| l.len() == 7).await;
    }

    async fn change(cluster: &Hollow) {
        let mut smaller = stateful::image("i:2");
        smaller["spec"]["replicas"] = json!(2);
        cluster.merge::<StatefulSet>("d", "db", smaller).await;
        cluster.merge::<DaemonSet>("d", "agent", stateful::image("i:2")).await;
        cluster.merge::<ReplicationController>("d", "rc", json!({"spec": {"replicas": 1}})).await;
        cluster.delete::<StatefulSet>("d", "gone", "Foreground").await;
    }

    async fn end(cluster: &Hollow, what: &str) {
        cluster.until::<StatefulSet>(what, |l| l.len() == 1 && stateful::settled(&l[0], 2)).await;
        cluster.until::<DaemonSet>(what, |l| l.len() == 1 && daemons::settled(&l[0], 1)).await;
        cluster
            .until::<ReplicationController>(what, |l| {
                let counted = |rc: &ReplicationController| {
                    rc.status
                        .as_ref()
                        .is_some_and(|s| s.replicas == 1 && s.observed_generation == rc.metadata.generation)
                };
                l.len() == 1 && counted(&l[0])
            })
            .await;
        let new = |p: &Pod| p.spec.as_ref().and_then(|s| s.containers[0].image.as_deref()) == Some("i:2");
        cluster.until::<Pod>(what, |l| l.len() == 4 && l.iter().filter(|p| new(p)).count() == 3).await;
        cluster.until::<PersistentVolumeClaim>(what, |l| l.len() == 2).await;
        // Of the first template there may be a revision or none, when the process died before it was made.
        let revisions = cluster.until::<ControllerRevision>(what, |l| !l.is_empty()).await;
        for owner in ["db", "agent"] {
            let of_owner = revisions
                .iter()
                .filter(|r| r.metadata.owner_references.iter().flatten().any(|o| o.name == owner));
            let mut numbers: Vec<i64> = of_owner.map(|r| r.revision).collect();
            numbers.sort_unstable();
            assert!(numbers == [1] || numbers == [1, 2], "{what}: {owner} has revisions {numbers:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_write_of_a_set_changes_nothing_in_the_end() {
    at_every_write::<Sets>(21).await;
}
