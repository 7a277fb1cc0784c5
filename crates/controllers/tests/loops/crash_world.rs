//! The crash test of namespaces that end and of garbage collection, custom resources included.
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use serde_json::json;

use crate::crash::{Story, at_every_write};
use crate::garbage::{afloat, owners, ship, sink};
use crate::hollow::Hollow;
use crate::workloads::deployment;

/// A namespace with a deployment is deleted, and owners of all kinds of deletion.
pub struct World;

impl Story for World {
    const WRITERS: &'static [&'static str] = &["namespace-controller", "generic-garbage-collector"];

    async fn create(cluster: &Hollow) {
        cluster.create::<Namespace>("", json!({"metadata": {"name": "x"}})).await;
        cluster.create::<Deployment>("x", deployment("web", 2)).await;
        let held = json!({"metadata": {"name": "held", "finalizers": ["example.com/hold"]}});
        cluster.create::<ConfigMap>("x", held).await;
        cluster.define("ships", "Ship", json!({})).await;
        for (name, cargo) in [("a", "grain"), ("b", "iron"), ("c", "salt"), ("d", "tea")] {
            ship(cluster, name, cargo).await;
        }
    }

    async fn up(cluster: &Hollow) {
        cluster.until::<Pod>("first pods", |l| l.len() == 2).await;
    }

    async fn change(cluster: &Hollow) {
        cluster.delete::<Namespace>("", "x", "Background").await;
        for (name, policy) in [("a", "Background"), ("b", "Foreground"), ("c", "Orphan")] {
            sink(cluster, name, policy).await;
        }
        cluster.merge::<ConfigMap>("x", "held", json!({"metadata": {"finalizers": null}})).await;
    }

    async fn end(cluster: &Hollow, what: &str) {
        let is_x = |n: &Namespace| n.metadata.name.as_deref() == Some("x");
        cluster.until::<Namespace>(what, |l| !l.iter().any(|n| is_x(n))).await;
        cluster.until::<Pod>(what, |l| l.is_empty()).await;
        cluster.until::<Deployment>(what, |l| l.is_empty()).await;
        cluster
            .until::<ConfigMap>(what, |l| {
                let in_x = l.iter().any(|m| m.metadata.namespace.as_deref() == Some("x"));
                !in_x
                    && ["grain", "iron", "salt", "tea"].map(|n| owners(l, n))
                        == [None, None, Some(0), Some(1)]
            })
            .await;
        afloat(cluster, "d", what).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_write_leaves_nothing_of_what_was_deleted() {
    at_every_write::<World>(17).await;
}
