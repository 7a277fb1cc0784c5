//! Cron jobs: times, names, concurrency, history.
use std::sync::Arc;

use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{Event, Pod};
use serde_json::{Value, json};

use crate::hollow::Hollow;
use crate::jobs::{condition, exit, open};

/// Every hour; its pods end only when the test says so.
fn hourly(name: &str, spec: Value) -> Value {
    let mut cron = json!({"metadata": {"name": name}, "spec": {"schedule": "0 * * * *", "timeZone": "Asia/Kolkata",
        "jobTemplate": {"metadata": {"labels": {"of": name}}, "spec": {"template": {"metadata": {"labels": {"hold": "1"}},
            "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i:1"}]}}}}}});
    for (key, value) in spec.as_object().expect("object") {
        cron["spec"][key] = value.clone();
    }
    cron
}

fn active(cron: &CronJob) -> Vec<String> {
    let list = cron.status.as_ref().and_then(|s| s.active.clone()).unwrap_or_default();
    list.into_iter().filter_map(|r| r.name).collect()
}

fn names(jobs: &[Arc<Job>]) -> Vec<String> {
    let mut names: Vec<_> = jobs.iter().filter_map(|j| j.metadata.name.clone()).collect();
    names.sort();
    names
}

/// Lets hours pass; a write stands for the timer.
async fn hours(cluster: &Hollow, name: &str, hours: i64) {
    cluster.clock.advance(hours * 3600);
    let look = cluster.now().to_string();
    cluster.merge::<CronJob>("d", name, json!({"metadata": {"annotations": {"look": look}}})).await;
}

async fn told(cluster: &Hollow, reason: &str) {
    cluster.until::<Event>(reason, |l| l.iter().any(|e| e.reason.as_deref() == Some(reason))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_made_at_its_time_and_its_success_is_noted() {
    let cluster = Hollow::start().await;
    cluster.create::<CronJob>("d", hourly("tick", json!({}))).await;
    hours(&cluster, "tick", 1).await;
    let jobs = cluster.until::<Job>("one job", |l| l.len() == 1).await;
    let meta = &jobs[0].metadata;
    let annotations = meta.annotations.as_ref().expect("annotations");
    let at = &annotations["batch.kubernetes.io/cronjob-scheduled-timestamp"];
    assert!(at.ends_with(":00:00+05:30"), "{at}");
    let at: jiff::Timestamp = at.parse().expect("time");
    assert_eq!(meta.name.as_deref(), Some(format!("tick-{}", at.as_second() / 60).as_str()));
    assert_eq!(meta.labels.as_ref().expect("labels")["of"], "tick");
    let crons = cluster.until::<CronJob>("active", |l| active(&l[0]).len() == 1).await;
    assert_eq!(active(&crons[0]), names(&jobs));
    assert_eq!(crons[0].status.as_ref().and_then(|s| s.last_schedule_time.as_ref()).map(|t| t.0), Some(at));
    let pods = open(&cluster, 1).await;
    exit(&cluster, &pods[0], 0).await;
    cluster
        .until::<CronJob>("done", |l| {
            active(&l[0]).is_empty() && l[0].status.as_ref().is_some_and(|s| s.last_successful_time.is_some())
        })
        .await;
    told(&cluster, "SawCompletedJob").await;
    // The same hour makes no second job, several missed hours make one.
    hours(&cluster, "tick", 0).await;
    hours(&cluster, "tick", 5).await;
    cluster.until::<Job>("another", |l| l.len() == 2).await;
    cluster.delete::<CronJob>("d", "tick", "Foreground").await;
    cluster.until::<CronJob>("gone", |l| l.is_empty()).await;
    cluster.until::<Job>("no jobs", |l| l.is_empty()).await;
    cluster.until::<Pod>("no pods", |l| l.is_empty()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_job_forbids_is_replaced_or_does_not_matter() {
    let cluster = Hollow::start().await;
    for policy in ["Allow", "Forbid", "Replace"] {
        let name = policy.to_lowercase();
        cluster.create::<CronJob>("d", hourly(&name, json!({"concurrencyPolicy": policy}))).await;
    }
    let mine = |l: &[Arc<Job>], of: &str| -> Vec<String> {
        names(l).into_iter().filter(|n| n.starts_with(of)).collect()
    };
    for name in ["allow", "forbid", "replace"] {
        hours(&cluster, name, if name == "allow" { 1 } else { 0 }).await;
    }
    let first = cluster.until::<Job>("three", |l| l.len() == 3).await;
    cluster.until::<CronJob>("entered", |l| l.iter().all(|c| active(c).len() == 1)).await;
    for name in ["allow", "forbid", "replace"] {
        hours(&cluster, name, if name == "allow" { 1 } else { 0 }).await;
    }
    let replaced = mine(&first, "replace");
    cluster
        .until::<Job>("as the policies say", |l| {
            let now = mine(l, "replace");
            mine(l, "allow").len() == 2 && mine(l, "forbid").len() == 1 && now.len() == 1 && now != replaced
        })
        .await;
    told(&cluster, "JobAlreadyActive").await;
    cluster
        .until::<CronJob>("lists", |l| {
            let count =
                |n: &str| l.iter().find(|c| c.metadata.name.as_deref() == Some(n)).map(|c| active(c).len());
            [count("allow"), count("forbid"), count("replace")] == [Some(2), Some(1), Some(1)]
        })
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_jobs_go_late_times_are_missed_and_a_lost_job_leaves_the_list() {
    let cluster = Hollow::start().await;
    let spec = json!({"successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 0, "startingDeadlineSeconds": 7200});
    cluster.create::<CronJob>("d", hourly("tick", spec)).await;
    let mut latest = Vec::new();
    for _ in 0..3 {
        hours(&cluster, "tick", 1).await;
        let pods = open(&cluster, 1).await;
        exit(&cluster, &pods[0], 0).await;
        let done = |j: &Arc<Job>| condition(j, "Complete").is_some();
        let jobs =
            cluster.until::<Job>("one is kept", |l| l.len() == 1 && names(l) != latest && done(&l[0])).await;
        latest = names(&jobs);
    }
    // Suspended, it misses its times.
    cluster.merge::<CronJob>("d", "tick", json!({"spec": {"suspend": true}})).await;
    hours(&cluster, "tick", 200).await;
    cluster.merge::<CronJob>("d", "tick", json!({"spec": {"suspend": false}})).await;
    let jobs = cluster.until::<Job>("one more", |l| l.len() == 2).await;
    let lost = names(&jobs).pop().expect("job");
    cluster.until::<CronJob>("active", |l| active(&l[0]) == [lost.clone()]).await;
    cluster.delete::<Job>("d", &lost, "Background").await;
    cluster.until::<CronJob>("not listed", |l| active(&l[0]).is_empty()).await;
    told(&cluster, "MissingJob").await;
    cluster.stop().await;
}
