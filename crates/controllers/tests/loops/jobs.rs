//! Jobs: completions, indexes, failures and their policies, suspension, deadlines, and the count of every pod.
use std::sync::Arc;

use client::Patch;
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::{Event, Pod};
use serde_json::{Value, json};

use crate::hollow::Hollow;

/// A job whose pods end only when the test says so.
fn job(name: &str, spec: Value) -> Value {
    let mut job = json!({"metadata": {"name": name}, "spec": {"template": {"metadata": {"labels": {"hold": "1"}},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i:1"}]}}}});
    for (key, value) in spec.as_object().expect("object") {
        job["spec"][key] = value.clone();
    }
    job
}

fn status(job: &Job) -> JobStatus {
    job.status.clone().unwrap_or_default()
}

fn counts(job: &Job) -> (i32, i32, i32) {
    let s = status(job);
    (s.active.unwrap_or(0), s.succeeded.unwrap_or(0), s.failed.unwrap_or(0))
}

/// The reason and message of the True condition of that type.
pub fn condition(job: &Job, kind: &str) -> Option<(String, String)> {
    let list = status(job).conditions.unwrap_or_default();
    let found = list.into_iter().find(|c| c.type_ == kind && c.status == "True")?;
    Some((found.reason.unwrap_or_default(), found.message.unwrap_or_default()))
}

fn is_open(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending");
    phase == "Pending" && pod.metadata.deletion_timestamp.is_none()
}

fn index(pod: &Pod) -> i32 {
    let all = pod.metadata.annotations.as_ref().expect("annotations");
    all["batch.kubernetes.io/job-completion-index"].parse().expect("number")
}

pub async fn open(cluster: &Hollow, n: usize) -> Vec<Arc<Pod>> {
    let what = format!("{n} open pods");
    let pods = cluster.until::<Pod>(&what, |l| l.iter().filter(|p| is_open(p)).count() == n).await;
    let mut pods: Vec<_> = pods.into_iter().filter(|p| is_open(p)).collect();
    pods.sort_by_key(|p| p.metadata.name.clone());
    pods
}

/// The pod's container exits, now by the cluster's clock.
pub async fn exit(cluster: &Hollow, pod: &Pod, code: i32) {
    let phase = if code == 0 { "Succeeded" } else { "Failed" };
    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(cluster.now());
    let status = json!({"status": {"phase": phase, "containerStatuses": [{"name": "c", "image": "", "imageID": "",
        "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": code, "finishedAt": now}}}]}});
    let name = pod.metadata.name.as_deref().expect("name");
    cluster.client.patch_status::<Pod>("d", name, &Patch::Strategic(status)).await.expect("status");
}

async fn job_until(cluster: &Hollow, what: &str, done: impl Fn(&Job) -> bool) -> Arc<Job> {
    cluster
        .until::<Job>(what, |l| l.iter().any(|j| done(j)))
        .await
        .into_iter()
        .find(|j| done(j))
        .expect("job")
}

/// Lets time pass.
async fn later(cluster: &Hollow, name: &str, seconds: i64) {
    cluster.clock.advance(seconds);
    cluster.look::<Job>("d", name).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn completions_are_reached_with_bounded_parallelism_and_every_pod_counts_once() {
    let cluster = Hollow::start().await;
    cluster.create::<Job>("d", job("work", json!({"completions": 5, "parallelism": 2}))).await;
    for done in 0..5 {
        let pods = open(&cluster, 2.min(5 - done)).await;
        exit(&cluster, &pods[0], 0).await;
        let wanted = i32::try_from(done + 1).expect("small");
        job_until(&cluster, "counted", |j| counts(j).1 == wanted).await;
    }
    let done = job_until(&cluster, "complete", |j| condition(j, "Complete").is_some()).await;
    let met = ("CompletionsReached".into(), "Reached expected number of succeeded pods".into());
    assert_eq!(
        (condition(&done, "SuccessCriteriaMet"), condition(&done, "Complete")),
        (Some(met.clone()), Some(met))
    );
    assert_eq!(counts(&done), (0, 5, 0));
    let s = status(&done);
    assert!(s.completion_time.is_some() && s.start_time.is_some());
    assert_eq!((s.ready, s.terminating), (Some(0), Some(0)));
    let left = s.uncounted_terminated_pods.unwrap_or_default();
    assert_eq!((left.succeeded, left.failed), (None, None));
    let pods = cluster.until::<Pod>("no finalizers", |l| {
        l.iter().all(|p| p.metadata.finalizers.as_ref().is_none_or(Vec::is_empty))
    });
    assert_eq!(pods.await.len(), 5);
    cluster
        .until::<Event>("told", |l| {
            let told = |r: &str| l.iter().any(|e| e.reason.as_deref() == Some(r));
            told("SuccessfulCreate") && told("Completed")
        })
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_pods_are_replaced_after_a_growing_pause_until_the_limit() {
    let cluster = Hollow::start().await;
    cluster.create::<Job>("d", job("work", json!({"backoffLimit": 2}))).await;
    for (failures, pause) in [(1, 10), (2, 20)] {
        let pods = open(&cluster, 1).await;
        exit(&cluster, &pods[0], 1).await;
        job_until(&cluster, "counted", |j| counts(j) == (0, 0, failures)).await;
        later(&cluster, "work", pause - 2).await;
        job_until(&cluster, "not yet", |j| counts(j) == (0, 0, failures)).await;
        later(&cluster, "work", 3).await;
    }
    let pods = open(&cluster, 1).await;
    exit(&cluster, &pods[0], 1).await;
    let failed = job_until(&cluster, "failed", |j| condition(j, "Failed").is_some()).await;
    let why = ("BackoffLimitExceeded".into(), "Job has reached the specified backoff limit".into());
    assert_eq!(
        (condition(&failed, "FailureTarget"), condition(&failed, "Failed")),
        (Some(why.clone()), Some(why))
    );
    assert_eq!(counts(&failed), (0, 0, 3));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn indexed_pods_know_their_index_and_the_success_policy_ends_the_job_early() {
    let cluster = Hollow::start().await;
    let spec = json!({"completionMode": "Indexed", "completions": 4, "parallelism": 4,
        "successPolicy": {"rules": [{"succeededIndexes": "1-2", "succeededCount": 2}]}});
    cluster.create::<Job>("d", job("work", spec)).await;
    let pods = open(&cluster, 4).await;
    for pod in &pods {
        let (i, spec) = (index(pod), pod.spec.as_ref().expect("spec"));
        assert_eq!(spec.hostname, Some(format!("work-{i}")));
        assert!(pod.metadata.name.as_ref().is_some_and(|n| n.starts_with(&format!("work-{i}-"))));
        assert_eq!(
            pod.metadata.labels.as_ref().expect("labels")["batch.kubernetes.io/job-completion-index"],
            i.to_string()
        );
        let env = spec.containers[0].env.as_ref().expect("env");
        let field =
            env[0].value_from.as_ref().and_then(|v| v.field_ref.as_ref()).map(|f| f.field_path.as_str());
        assert_eq!(env[0].name, "JOB_COMPLETION_INDEX");
        assert_eq!(field, Some("metadata.labels['batch.kubernetes.io/job-completion-index']"));
    }
    exit(&cluster, &pods[2], 0).await;
    job_until(&cluster, "one done", |j| status(j).completed_indexes.as_deref() == Some("2")).await;
    exit(&cluster, &pods[1], 0).await;
    let done = job_until(&cluster, "complete", |j| condition(j, "Complete").is_some()).await;
    let why = ("SuccessPolicy".to_owned(), "Matched rules at index 0".to_owned());
    assert_eq!(condition(&done, "Complete"), Some(why));
    assert_eq!((counts(&done), status(&done).completed_indexes.as_deref()), ((0, 2, 0), Some("1,2")));
    cluster.until::<Pod>("the others are gone", |l| l.len() == 2).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_index_has_its_own_limit_and_an_index_may_fail_at_once() {
    let cluster = Hollow::start().await;
    let spec = json!({"completionMode": "Indexed", "completions": 3, "parallelism": 3, "backoffLimitPerIndex": 1,
        "maxFailedIndexes": 2, "podFailurePolicy": {"rules": [
            {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [42]}},
            {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [7]}}]}});
    cluster.create::<Job>("d", job("work", spec)).await;
    let pods = open(&cluster, 3).await;
    exit(&cluster, &pods[0], 42).await;
    exit(&cluster, &pods[1], 7).await;
    exit(&cluster, &pods[2], 0).await;
    job_until(&cluster, "index 0 failed", |j| {
        status(j).failed_indexes.as_deref() == Some("0")
            && status(j).completed_indexes.as_deref() == Some("2")
    })
    .await;
    let count = |p: &Pod, key: &str| {
        let all = p.metadata.annotations.as_ref().expect("annotations");
        all.get(&format!("batch.kubernetes.io/job-index-{key}-count")).cloned().unwrap_or_default()
    };
    // The ignored failure is waited for but not counted; the limit allows one that counts.
    for (pause, code, counted) in [(11, 1, "0"), (21, 1, "1")] {
        later(&cluster, "work", pause).await;
        let pods = open(&cluster, 1).await;
        assert_eq!(
            (index(&pods[0]), count(&pods[0], "failure"), count(&pods[0], "ignored-failure")),
            (1, counted.into(), "1".into())
        );
        exit(&cluster, &pods[0], code).await;
        cluster.until::<Pod>("ended", |l| l.iter().all(|p| !is_open(p))).await;
    }
    let failed = job_until(&cluster, "failed", |j| condition(j, "Failed").is_some()).await;
    assert_eq!(condition(&failed, "Failed"), Some(("FailedIndexes".into(), "Job has failed indexes".into())));
    assert_eq!(status(&failed).failed_indexes.as_deref(), Some("0,1"));
    assert_eq!(counts(&failed), (0, 1, 3));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exit_code_may_fail_the_job_and_its_other_pods_count_as_failed() {
    let cluster = Hollow::start().await;
    let spec = json!({"completions": 3, "parallelism": 3, "podFailurePolicy": {"rules": [
        {"action": "FailJob", "onExitCodes": {"containerName": "c", "operator": "In", "values": [42]}}]}});
    cluster.create::<Job>("d", job("work", spec)).await;
    let pods = open(&cluster, 3).await;
    exit(&cluster, &pods[0], 42).await;
    let failed = job_until(&cluster, "failed", |j| condition(j, "Failed").is_some()).await;
    let name = pods[0].metadata.name.as_deref().expect("name");
    let message =
        format!("Container c for pod d/{name} failed with exit code 42 matching FailJob rule at index 0");
    assert_eq!(condition(&failed, "Failed"), Some(("PodFailurePolicy".into(), message)));
    assert_eq!(counts(&failed), (0, 0, 3));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_job_has_no_pods_no_start_and_no_deadline_until_it_is_resumed() {
    let cluster = Hollow::start().await;
    cluster.create::<Job>("d", job("work", json!({"parallelism": 2, "activeDeadlineSeconds": 100}))).await;
    open(&cluster, 2).await;
    cluster.merge::<Job>("d", "work", json!({"spec": {"suspend": true}})).await;
    let suspended =
        job_until(&cluster, "suspended", |j| condition(j, "Suspended").is_some() && counts(j).0 == 0).await;
    assert_eq!(condition(&suspended, "Suspended"), Some(("JobSuspended".into(), "Job suspended".into())));
    cluster.until::<Pod>("no pods", |l| l.is_empty()).await;
    let is_idle = |j: &Job| status(j).terminating == Some(0) && counts(j) == (0, 0, 0);
    let idle = job_until(&cluster, "nobody runs and nobody failed", is_idle).await;
    assert_eq!(status(&idle).start_time, None);
    later(&cluster, "work", 1000).await;
    cluster
        .merge::<Job>(
            "d",
            "work",
            json!({"spec": {"suspend": false, "template": {"spec": {"nodeSelector": {"a": "b"}}}}}),
        )
        .await;
    let pods = open(&cluster, 2).await;
    assert_eq!(
        pods[0].spec.as_ref().and_then(|s| s.node_selector.as_ref()).map(|s| s["a"].as_str()),
        Some("b")
    );
    job_until(&cluster, "resumed", |j| status(j).start_time.is_some() && condition(j, "Suspended").is_none())
        .await;
    later(&cluster, "work", 101).await;
    let failed = job_until(&cluster, "too late", |j| condition(j, "Failed").is_some()).await;
    let why = ("DeadlineExceeded".to_owned(), "Job was active longer than specified deadline".to_owned());
    assert_eq!((condition(&failed, "Failed"), counts(&failed)), (Some(why), (0, 0, 2)));
    cluster.until::<Pod>("no pods", |l| l.is_empty()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_indexed_job_grows_and_shrinks_with_both_numbers() {
    let cluster = Hollow::start().await;
    let spec = json!({"completionMode": "Indexed", "completions": 2, "parallelism": 2});
    cluster.create::<Job>("d", job("work", spec)).await;
    open(&cluster, 2).await;
    cluster.merge::<Job>("d", "work", json!({"spec": {"completions": 4, "parallelism": 4}})).await;
    let pods = open(&cluster, 4).await;
    exit(&cluster, &pods[3], 0).await;
    job_until(&cluster, "last done", |j| status(j).completed_indexes.as_deref() == Some("3")).await;
    cluster.merge::<Job>("d", "work", json!({"spec": {"completions": 2, "parallelism": 2}})).await;
    let pods = open(&cluster, 2).await;
    assert_eq!([index(&pods[0]), index(&pods[1])], [0, 1]);
    job_until(&cluster, "forgotten", |j| status(j).completed_indexes.is_none() && counts(j) == (2, 0, 0))
        .await;
    for pod in &pods {
        exit(&cluster, pod, 0).await;
    }
    let done = job_until(&cluster, "complete", |j| condition(j, "Complete").is_some()).await;
    assert_eq!((counts(&done), status(&done).completed_indexes.as_deref()), ((0, 2, 0), Some("0,1")));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_of_a_deleted_job_lose_the_finalizer_and_jobs_of_other_managers_are_left_alone() {
    let cluster = Hollow::start().await;
    cluster.create::<Job>("d", job("gone", json!({"parallelism": 2, "completions": 2}))).await;
    cluster.create::<Job>("d", job("other", json!({"managedBy": "example.com/other"}))).await;
    open(&cluster, 2).await;
    cluster.delete::<Job>("d", "gone", "Orphan").await;
    cluster.until::<Job>("gone", |l| l.len() == 1).await;
    let free = |p: &Pod| {
        p.metadata.finalizers.as_ref().is_none_or(Vec::is_empty)
            && p.metadata.owner_references.as_ref().is_none_or(Vec::is_empty)
    };
    cluster.until::<Pod>("orphans stay, free", |l| l.len() == 2 && l.iter().all(|p| free(p))).await;
    let other = job_until(&cluster, "other", |_| true).await;
    assert_eq!(other.status.clone().unwrap_or_default(), JobStatus::default());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_replaced_when_it_has_ended_or_when_it_begins_to_as_the_policy_says() {
    let cluster = Hollow::start().await;
    for (name, policy) in [("slow", "Failed"), ("fast", "TerminatingOrFailed")] {
        cluster.create::<Job>("d", job(name, json!({"podReplacementPolicy": policy}))).await;
    }
    let pods = open(&cluster, 2).await;
    for pod in &pods {
        // On a node, and held by somebody else, so that it stays when it is deleted.
        let name = pod.metadata.name.as_deref().expect("name");
        let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": {"kind": "Node", "name": "n1"}});
        cluster
            .client
            .create_subresource::<Pod, _, Value>("d", name, "binding", &binding)
            .await
            .expect("bound");
        let held =
            json!({"metadata": {"finalizers": ["batch.kubernetes.io/job-tracking", "example.com/held"]}});
        cluster.merge::<Pod>("d", name, held).await;
        cluster.delete::<Pod>("d", name, "Background").await;
    }
    let named = |j: &Job, name: &str| j.metadata.name.as_deref() == Some(name);
    job_until(&cluster, "slow waits", |j| {
        named(j, "slow") && counts(j) == (0, 0, 0) && status(j).terminating == Some(1)
    })
    .await;
    job_until(&cluster, "fast counts", |j| named(j, "fast") && counts(j).2 == 1).await;
    later(&cluster, "fast", 60).await;
    job_until(&cluster, "fast has another", |j| named(j, "fast") && counts(j) == (1, 0, 1)).await;
    let slow =
        pods.iter().find(|p| p.metadata.name.as_ref().is_some_and(|n| n.starts_with("slow"))).expect("slow");
    exit(&cluster, slow, 1).await;
    job_until(&cluster, "slow counts", |j| named(j, "slow") && counts(j) == (0, 0, 1)).await;
    later(&cluster, "slow", 60).await;
    job_until(&cluster, "slow has another", |j| named(j, "slow") && counts(j) == (1, 0, 1)).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_finished_job_goes_with_its_pods_when_its_time_is_over() {
    let cluster = Hollow::start().await;
    cluster.create::<Job>("d", job("work", json!({"ttlSecondsAfterFinished": 60}))).await;
    let pods = open(&cluster, 1).await;
    later(&cluster, "work", 100).await;
    exit(&cluster, &pods[0], 0).await;
    job_until(&cluster, "complete", |j| condition(j, "Complete").is_some()).await;
    later(&cluster, "work", 50).await;
    later(&cluster, "work", 15).await;
    cluster.until::<Job>("gone", |l| l.is_empty()).await;
    cluster.until::<Pod>("no pods", |l| l.is_empty()).await;
    cluster.stop().await;
}
