//! Pod disruption budgets, over real evictions.
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::{Value, json};

use crate::hollow::Hollow;
use crate::workloads::deployment;

pub fn budget(name: &str, app: &str, spec: Value) -> Value {
    let mut budget = json!({"metadata": {"name": name}, "spec": {"selector": {"matchLabels": {"app": app}}}});
    for (key, value) in spec.as_object().expect("object") {
        budget["spec"][key] = value.clone();
    }
    budget
}

/// Healthy, desired, expected, allowed; and the reason of the condition.
fn numbers(budget: &PodDisruptionBudget) -> ([i32; 4], String) {
    let s = budget.status.clone().unwrap_or_default();
    let all = [s.current_healthy, s.desired_healthy, s.expected_pods, s.disruptions_allowed];
    let reason = s.conditions.and_then(|c| c.first().map(|c| c.reason.clone()));
    (all.map(|n| n.unwrap_or(-1)), reason.unwrap_or_default())
}

pub async fn shows(cluster: &Hollow, name: &str, want: [i32; 4], reason: &str) {
    let what = format!("{name}: {want:?} {reason}");
    let fits = |b: &PodDisruptionBudget| {
        b.metadata.name.as_deref() == Some(name) && numbers(b) == (want, reason.to_owned())
    };
    cluster.until::<PodDisruptionBudget>(&what, |l| l.iter().any(|b| fits(b))).await;
}

async fn evict(cluster: &Hollow, pod: &str) -> Result<Value, client::Error> {
    let eviction =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": "d"}});
    cluster.client.create_subresource::<Pod, _, Value>("d", pod, "eviction", &eviction).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_allowance_follows_pods_scale_and_evictions() {
    let cluster = Hollow::start().await;
    cluster.create::<PodDisruptionBudget>("d", budget("share", "web", json!({"minAvailable": "50%"}))).await;
    shows(&cluster, "share", [0, 0, 0, 0], "InsufficientPods").await;
    cluster.create::<Deployment>("d", deployment("web", 4)).await;
    shows(&cluster, "share", [4, 2, 4, 2], "SufficientPods").await;
    // Half of seven are four, and the new pods count when they are ready.
    cluster.merge::<Deployment>("d", "web", json!({"spec": {"replicas": 7}})).await;
    shows(&cluster, "share", [7, 4, 7, 3], "SufficientPods").await;
    let pods = cluster.until::<Pod>("pods", |l| l.len() == 7).await;
    let name = pods[0].metadata.name.as_deref().expect("name");
    evict(&cluster, name).await.expect("evicted");
    cluster
        .until::<Pod>("replaced", |l| {
            l.len() == 7 && !l.iter().any(|p| p.metadata.name.as_deref() == Some(name))
        })
        .await;
    shows(&cluster, "share", [7, 4, 7, 3], "SufficientPods").await;
    let empty = |b: &PodDisruptionBudget| b.status.as_ref().is_some_and(|s| s.disrupted_pods.is_none());
    cluster.until::<PodDisruptionBudget>("nobody under way", |l| empty(&l[0])).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exhausted_budget_refuses_and_pods_of_nobody_count_only_as_a_number() {
    let cluster = Hollow::start().await;
    for name in ["a", "b"] {
        let pod = json!({"metadata": {"name": name, "labels": {"app": "solo"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}});
        cluster.create::<Pod>("d", pod).await;
    }
    cluster.create::<PodDisruptionBudget>("d", budget("number", "solo", json!({"minAvailable": 2}))).await;
    shows(&cluster, "number", [2, 2, 2, 0], "InsufficientPods").await;
    let refused = evict(&cluster, "a").await.expect_err("refused");
    assert_eq!(refused.status().and_then(|s| s.code), Some(429), "{refused}");
    cluster.delete::<PodDisruptionBudget>("d", "number", "Background").await;
    cluster.create::<PodDisruptionBudget>("d", budget("share", "solo", json!({"maxUnavailable": 1}))).await;
    shows(&cluster, "share", [2, 0, 0, 0], "InsufficientPods").await;
    let message = "Pods selected by this PodDisruptionBudget (selector: &LabelSelector{MatchLabels:map[string]string{app: solo,},MatchExpressions:[]LabelSelectorRequirement{},}) were found to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value.";
    cluster.told("controllermanager", "UnmanagedPods", message).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_over_pods_whose_owner_has_no_scale_says_so() {
    let cluster = Hollow::start().await;
    let template = json!({"metadata": {"labels": {"app": "batch"}},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i:1"}]}});
    cluster.create::<Job>("d", json!({"metadata": {"name": "j"}, "spec": {"template": template}})).await;
    cluster.until::<Pod>("a pod", |l| l.len() == 1).await;
    cluster.create::<PodDisruptionBudget>("d", budget("jobs", "batch", json!({"maxUnavailable": 1}))).await;
    shows(&cluster, "jobs", [0, 0, 0, 0], "SyncFailed").await;
    let why = "jobs.batch does not implement the scale subresource";
    let says = |b: &PodDisruptionBudget| {
        let conditions = b.status.as_ref().and_then(|s| s.conditions.as_ref());
        conditions.is_some_and(|l| l.iter().any(|c| c.message == why))
    };
    cluster.until::<PodDisruptionBudget>("why", |l| l.iter().all(|b| says(b))).await;
    let message = format!("Failed to calculate the number of expected pods: {why}");
    cluster.told("controllermanager", "CalculateExpectedPodCountFailed", &message).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disruption_that_did_not_come_is_taken_back() {
    let cluster = Hollow::start().await;
    cluster.create::<Deployment>("d", deployment("web", 1)).await;
    let ip = |p: &Pod| p.status.as_ref().is_some_and(|s| s.pod_ip.is_some());
    let pods = cluster.until::<Pod>("a pod", |l| l.iter().any(|p| ip(p))).await;
    let name = pods[0].metadata.name.as_deref().expect("name");
    let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "lastTransitionTime": cluster.now().to_string()});
    let patch = client::Patch::Strategic(json!({"status": {"conditions": [condition]}}));
    cluster.client.patch_status::<Pod>("d", name, &patch).await.expect("status");
    cluster.clock.advance(121);
    cluster.merge::<Pod>("d", name, json!({"metadata": {"labels": {"look": "1"}}})).await;
    let back = |p: &Pod| {
        let conditions = p.status.as_ref().and_then(|s| s.conditions.as_ref());
        conditions.is_some_and(|l| {
            let is = |c: &PodCondition| c.type_ == "DisruptionTarget" && c.status == "False";
            l.iter().any(|c| is(c) && c.reason.is_none() && c.observed_generation == p.metadata.generation)
        })
    };
    cluster.until::<Pod>("taken back", |l| l.iter().any(|p| back(p))).await;
    cluster.stop().await;
}
