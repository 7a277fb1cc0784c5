//! The crash test of jobs, cron jobs and disruption budgets.
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::{Value, json};

use crate::budgets::{budget, shows};
use crate::crash::{Story, at_every_write};
use crate::hollow::Hollow;
use crate::jobs::condition;
use crate::workloads::deployment;

/// A job whose pods end by themselves, one that is deleted, a cron job whose time comes once, and a budget.
pub struct Batch;

fn template(label: &str) -> Value {
    json!({"metadata": {"labels": {label: "1"}}, "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i:1"}]}})
}

fn succeeded(job: &Job, count: i32) -> bool {
    condition(job, "Complete").is_some() && job.status.as_ref().and_then(|s| s.succeeded) == Some(count)
}

impl Story for Batch {
    const WRITERS: &'static [&'static str] =
        &["job-controller", "cronjob-controller", "disruption-controller"];

    async fn create(cluster: &Hollow) {
        let work = json!({"metadata": {"name": "work"}, "spec": {"completions": 4, "parallelism": 2, "template": template("ends")}});
        cluster.create::<Job>("d", work).await;
        cluster
            .create::<Job>("d", json!({"metadata": {"name": "gone"}, "spec": {"template": template("hold")}}))
            .await;
        let yearly = json!({"metadata": {"name": "yearly"}, "spec": {"schedule": "0 0 1 1 *",
            "jobTemplate": {"spec": {"template": template("ends")}}}});
        cluster.create::<CronJob>("d", yearly).await;
        cluster.create::<Deployment>("d", deployment("web", 3)).await;
        cluster.create::<PodDisruptionBudget>("d", budget("web", "web", json!({"minAvailable": 2}))).await;
    }

    async fn up(cluster: &Hollow) {
        cluster.until::<Job>("work done", |l| l.iter().any(|j| succeeded(j, 4))).await;
    }

    async fn change(cluster: &Hollow) {
        cluster.delete::<Job>("d", "gone", "Foreground").await;
        cluster.clock.advance(366 * 86_400);
        cluster.merge::<CronJob>("d", "yearly", json!({"metadata": {"annotations": {"look": "1"}}})).await;
    }

    async fn end(cluster: &Hollow, what: &str) {
        let of = |j: &Job, name: &str| j.metadata.name.as_deref().is_some_and(|n| n.starts_with(name));
        cluster
            .until::<Job>(what, |l| {
                let done = |name: &str, count| l.iter().any(|j| of(j, name) && succeeded(j, count));
                l.len() == 2 && done("work", 4) && done("yearly", 1)
            })
            .await;
        let free = |p: &Pod| p.metadata.finalizers.as_ref().is_none_or(Vec::is_empty);
        let pods = cluster.until::<Pod>(what, |l| l.len() == 8 && l.iter().all(|p| free(p))).await;
        let ended = pods
            .iter()
            .filter(|p| p.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Succeeded")));
        assert_eq!(ended.count(), 5, "{what}");
        cluster
            .until::<CronJob>(what, |l| {
                let status = l[0].status.clone().unwrap_or_default();
                status.active.is_none_or(|a| a.is_empty()) && status.last_schedule_time.is_some()
            })
            .await;
        shows(cluster, "web", [3, 2, 3, 1], "SufficientPods").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_write_counts_every_pod_of_a_job_once() {
    at_every_write::<Batch>(21).await;
}
