//! The crash test of horizontal pod autoscalers.
use std::sync::Arc;

use client::Transport;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use crate::autoscalers::{Metered, autoscaler, deployment, web};
use crate::crash::{Story, at_every_write};
use crate::hollow::Hollow;

/// A deployment that grows by a metric, and then may not be that large.
pub struct Scaling;

async fn replicas(cluster: &Hollow, what: &str, want: i32) {
    let wanted = |d: &Deployment| d.spec.as_ref().and_then(|s| s.replicas);
    let has = |d: &Deployment| d.status.as_ref().and_then(|s| s.ready_replicas);
    cluster
        .until::<Deployment>(what, |l| l.iter().all(|d| wanted(d) == Some(want) && has(d) == Some(want)))
        .await;
}

impl Story for Scaling {
    const WRITERS: &'static [&'static str] = &["horizontal-pod-autoscaler"];

    fn transport(inner: Arc<dyn Transport>) -> Arc<dyn Transport> {
        let metered = Metered::new(inner);
        let queue =
            json!({"items": [{"describedObject": {}, "timestamp": "2026-01-01T00:00:00Z", "value": "40"}]});
        metered.set("/apis/external.metrics.k8s.io/v1beta1/namespaces/d/queue", queue);
        Arc::new(metered)
    }

    async fn create(cluster: &Hollow) {
        cluster.create::<Deployment>("d", deployment("web", 2)).await;
        let queue = json!([{"type": "External", "external": {"metric": {"name": "queue"}, "target": {"type": "AverageValue", "averageValue": "10"}}}]);
        cluster.create::<HorizontalPodAutoscaler>("d", autoscaler("web", web(), queue)).await;
    }

    async fn up(cluster: &Hollow) {
        replicas(cluster, "grown", 4).await;
    }

    async fn change(cluster: &Hollow) {
        cluster.merge::<HorizontalPodAutoscaler>("d", "web", json!({"spec": {"maxReplicas": 3}})).await;
    }

    async fn end(cluster: &Hollow, what: &str) {
        replicas(cluster, what, 3).await;
        cluster.until::<Pod>(what, |l| l.len() == 3).await;
        cluster
            .until::<HorizontalPodAutoscaler>(what, |l| {
                l[0].status.as_ref().is_some_and(|s| s.desired_replicas == 3)
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_write_leaves_the_size_that_the_metric_and_its_bounds_ask_for() {
    at_every_write::<Scaling>(17).await;
}
