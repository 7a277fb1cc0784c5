//! Whole clusters in one process: real API server, real controllers, real scheduler, hollow nodes, and a time that is moved.
mod harness;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::scheduling::v1alpha2::{PodGroup, Workload};
use serde_json::{Value, json};

use crate::harness::{Cluster, is_ready, node_of};

/// A deployment whose pods ask for so much CPU.
fn deployment(name: &str, replicas: usize, cpu: &str) -> Value {
    let labels = json!({"app": name});
    let spread = json!([{"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": labels}, "nodeTaintsPolicy": "Honor"}]);
    json!({"metadata": {"name": name}, "spec": {"replicas": replicas, "selector": {"matchLabels": labels},
        "strategy": {"rollingUpdate": {"maxSurge": "10%", "maxUnavailable": 0}},
        "template": {"metadata": {"labels": labels}, "spec": {"topologySpreadConstraints": spread, "containers": [
            {"name": "c", "image": "i:1", "resources": {"requests": {"cpu": cpu, "memory": "100Mi"}}}]}}}})
}

fn zones_of(nodes: &[Arc<Node>]) -> BTreeMap<String, String> {
    let zone = |n: &Node| n.metadata.labels.as_ref()?.get("topology.kubernetes.io/zone").cloned();
    nodes.iter().filter_map(|n| Some((n.metadata.name.clone()?, zone(n)?))).collect()
}

/// How many of these pods are in each zone, and on each node.
fn spread(pods: &[Arc<Pod>], zones: &BTreeMap<String, String>) -> (BTreeMap<String, usize>, usize) {
    let (mut by_zone, mut by_node) = (BTreeMap::new(), BTreeMap::<&str, usize>::new());
    for node in pods.iter().filter_map(|p| node_of(p)) {
        *by_zone.entry(zones[node].clone()).or_default() += 1;
        *by_node.entry(node).or_default() += 1;
    }
    (by_zone, by_node.into_values().max().unwrap_or(0))
}

fn image(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.containers[0].image.as_deref()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_pods_are_made_spread_and_ready() {
    let cluster = Cluster::start(60, 3).await;
    cluster.create::<Deployment>("d", deployment("web", 2000, "500m")).await;
    let pods = cluster.until::<Pod>("all ready", |l| l.iter().filter(|p| is_ready(p)).count() == 2000).await;
    assert_eq!(pods.len(), 2000, "no extra pod");
    let (by_zone, fullest) = spread(&pods, &zones_of(&cluster.list::<Node>()));
    assert_eq!(by_zone.values().map(|n| n / 666).collect::<Vec<_>>(), [1, 1, 1], "{by_zone:?}");
    assert!(fullest <= 64, "a node of 32 CPUs has {fullest} pods of half a CPU");
    let addresses: HashSet<_> = pods.iter().filter_map(|p| p.status.as_ref()?.pod_ip.clone()).collect();
    assert_eq!(addresses.len(), 2000);
    // And they go.
    cluster.merge::<Deployment>("d", "web", json!({"spec": {"replicas": 0}})).await;
    cluster.until::<Pod>("none left", |l| l.is_empty()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_update_of_hundreds_never_has_too_few() {
    const REPLICAS: usize = 300;
    let cluster = Cluster::start(20, 3).await;
    cluster.create::<Deployment>("d", deployment("web", REPLICAS, "100m")).await;
    cluster.until::<Pod>("all ready", |l| l.iter().filter(|p| is_ready(p)).count() == REPLICAS).await;
    let next = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "i:2"}]}}}});
    cluster.merge_strategic::<Deployment>("d", "web", next).await;
    cluster
        .until::<Pod>("all new", |l| {
            let staying = |p: &&Arc<Pod>| p.metadata.deletion_timestamp.is_none();
            let available = l.iter().filter(staying).filter(|p| is_ready(p)).count();
            assert!(available >= REPLICAS, "{available} are available, and none may be missing");
            l.len() == REPLICAS && l.iter().all(|p| image(p) == Some("i:2"))
        })
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_of_a_lost_zone_are_made_anew_elsewhere_and_none_twice() {
    const REPLICAS: usize = 90;
    let cluster = Cluster::start(12, 3).await;
    cluster.create::<Deployment>("d", deployment("web", REPLICAS, "100m")).await;
    cluster.until::<Pod>("all ready", |l| l.iter().filter(|p| is_ready(p)).count() == REPLICAS).await;
    let lost = cluster.nodes.of_zone(0);
    assert_eq!(lost.len(), 4);
    cluster.nodes.silence(&lost);
    let is_lost = |p: &Pod| node_of(p).is_some_and(|n| lost.iter().any(|l| l == n));
    // Fifty seconds of silence, ten for each of the zone's nodes, and the five minutes that pods tolerate: one after the other.
    cluster
        .until_in_time::<Pod>("made anew", |l| {
            l.iter().filter(|p| is_ready(p) && !is_lost(p)).count() == REPLICAS
        })
        .await;
    // What was deleted waits for its kubelet; nobody else may say that it ended.
    let pods = cluster.list::<Pod>();
    assert!(pods.iter().filter(|p| is_lost(p)).all(|p| p.metadata.deletion_timestamp.is_some()));
    let nodes = cluster.list::<Node>();
    let tainted = nodes.iter().filter(|n| {
        let mut taints = n.spec.iter().flat_map(|s| s.taints.iter().flatten());
        taints.any(|t| t.key == "node.kubernetes.io/unreachable" && t.effect == "NoExecute")
    });
    assert_eq!(tainted.count(), lost.len(), "the nodes that are heard keep their pods");
    // The zone comes back: its pods end, its taints go, nothing is made twice.
    cluster.wake(&lost).await;
    cluster
        .until::<Pod>("the old ones are gone", |l| l.len() == REPLICAS && l.iter().all(|p| is_ready(p)))
        .await;
    cluster
        .until::<Node>("no taints", |l| {
            l.iter().all(|n| n.spec.iter().flat_map(|s| s.taints.iter().flatten()).count() == 0)
        })
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_job_counts_every_completion_once_also_when_pods_fail() {
    let cluster = Cluster::start(10, 1).await;
    let job = json!({"metadata": {"name": "work"}, "spec": {"completions": 500, "parallelism": 100, "backoffLimit": 1000,
        "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i:1"}]}}}});
    cluster.create::<Job>("d", job).await;
    let jobs = cluster
        .until::<Job>("done", |l| {
            let conditions =
                l.iter().flat_map(|j| j.status.iter().flat_map(|s| s.conditions.iter().flatten()));
            conditions.into_iter().any(|c| c.type_ == "Complete" && c.status == "True")
        })
        .await;
    assert_eq!(jobs[0].status.as_ref().and_then(|s| s.succeeded), Some(500));
    let pods = cluster.list::<Pod>();
    let done = |p: &&Arc<Pod>| p.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Succeeded"));
    assert_eq!((pods.len(), pods.iter().filter(done).count()), (500, 500), "no extra pod");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hours_of_a_cron_job_pass_in_seconds() {
    let cluster = Cluster::start(2, 1).await;
    let template = json!({"spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i:1"}]}}}});
    let hourly = json!({"metadata": {"name": "hourly"}, "spec": {"schedule": "30 * * * *", "jobTemplate": template,
        "successfulJobsHistoryLimit": 100}});
    cluster.create::<CronJob>("d", hourly).await;
    cluster.until::<CronJob>("seen", |l| l.len() == 1).await;
    for hours in 1..=4 {
        cluster.advance(Duration::from_secs(3600)).await;
        let jobs = cluster
            .until::<Job>("one for each hour", |l| {
                let done = l.iter().filter(|j| j.status.as_ref().is_some_and(|s| s.succeeded == Some(1)));
                done.count() >= hours
            })
            .await;
        assert_eq!(jobs.len(), hours, "one job for each hour that passed");
    }
    cluster.stop().await;
}

/// A job of so many pods at a time, all of one gang.
fn gang_job(name: &str, pods: usize) -> Value {
    json!({"metadata": {"name": name}, "spec": {"parallelism": pods, "completions": pods, "template": {
        "metadata": {"labels": {"gang": name}, "annotations": {"simulate.navarch.dev/ends-after": "100h"}},
        "spec": {"restartPolicy": "Never", "schedulingGroup": {"podGroupName": name}, "containers": [
            {"name": "c", "image": "i:1", "resources": {"requests": {"cpu": "8"}}}]}}}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gangs_that_do_not_fit_together_run_one_after_the_other() {
    let gates = "GenericWorkload=true,GangScheduling=true".parse().expect("gates");
    // Room for 40 pods of 8 CPUs: one gang of 24, never two.
    let cluster = Cluster::start_with(10, 2, gates).await;
    let policy = json!({"gang": {"minCount": 24}});
    let templates = json!([{"name": "workers", "schedulingPolicy": policy}]);
    cluster
        .create::<Workload>("d", json!({"metadata": {"name": "w"}, "spec": {"podGroupTemplates": templates}}))
        .await;
    let names = ["a", "b"];
    for name in names {
        cluster.create::<Job>("d", gang_job(name, 24)).await;
    }
    cluster.until::<Pod>("all made", |l| l.len() == 48).await;
    assert!(cluster.list::<Pod>().iter().all(|p| node_of(p).is_none()), "no group is there yet");
    for name in names {
        let from = json!({"workload": {"workloadName": "w", "podGroupTemplateName": "workers"}});
        let spec = json!({"podGroupTemplateRef": from, "schedulingPolicy": policy});
        cluster.create::<PodGroup>("d", json!({"metadata": {"name": name}, "spec": spec})).await;
    }
    let bound = |l: &[Arc<Pod>], name: &str| {
        let of = |p: &&Arc<Pod>| p.metadata.labels.as_ref().is_some_and(|l| l["gang"] == name);
        l.iter().filter(of).filter(|p| node_of(p).is_some()).count()
    };
    let is_scheduled = |g: &PodGroup| -> Option<bool> {
        let list = g.status.as_ref()?.conditions.as_ref()?;
        list.iter().find(|c| c.type_ == "PodGroupScheduled").map(|c| c.status == "True")
    };
    cluster
        .until::<PodGroup>("one can run, the other waits", |l| {
            l.iter().filter(|g| is_scheduled(g) == Some(true)).count() == 1
                && l.iter().filter(|g| is_scheduled(g) == Some(false)).count() == 1
        })
        .await;
    let pods = cluster.until::<Pod>("a whole gang", |l| l.iter().filter(|p| is_ready(p)).count() == 24).await;
    let (first, second) = if bound(&pods, "a") == 24 { ("a", "b") } else { ("b", "a") };
    assert_eq!(bound(&pods, second), 0, "not a part of the other");
    let waits = |p: &Pod| {
        let said = serde_json::to_string(&p.status).unwrap_or_default();
        said.contains("waiting for minCount pods from a gang to be scheduled")
    };
    cluster.until::<Pod>("it says why", |l| l.iter().any(|p| waits(p))).await;
    let options =
        client::DeleteOptions { propagation_policy: Some("Background"), ..client::DeleteOptions::default() };
    cluster.client.delete::<Job>("d", first, &options).await.expect("delete");
    // The group stays while its pods do.
    cluster.client.delete::<PodGroup>("d", first, &client::DeleteOptions::default()).await.expect("delete");
    cluster.until_in_time::<Pod>("the other gang has its turn", |l| bound(l, second) == 24).await;
    cluster.until::<PodGroup>("the first group is gone", |l| l.len() == 1).await;
    cluster.stop().await;
}
