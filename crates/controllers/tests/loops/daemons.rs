//! Daemon sets.
use std::sync::Arc;

use client::Patch;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use serde_json::{Value, json};

use crate::hollow::Hollow;
use crate::stateful::image;

/// `more` goes over its spec.
pub fn daemon(name: &str, more: Value) -> Value {
    let mut set = json!({"metadata": {"name": name}, "spec": {"selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}}});
    for (key, value) in more.as_object().into_iter().flatten() {
        set["spec"][key] = value.clone();
    }
    set
}

/// Whether all `nodes` have an available pod of the newest template.
pub fn settled(set: &DaemonSet, nodes: i32) -> bool {
    set.status.as_ref().is_some_and(|s| {
        s.observed_generation == set.metadata.generation
            && (s.desired_number_scheduled, s.current_number_scheduled, s.number_ready)
                == (nodes, nodes, nodes)
            && (s.updated_number_scheduled.unwrap_or(0), s.number_available.unwrap_or(0)) == (nodes, nodes)
            && s.number_misscheduled == 0
    })
}

/// The nodes of the pods that are not on their way out, in order.
fn nodes_of(pods: &[Arc<Pod>]) -> Vec<&str> {
    let staying = pods.iter().filter(|p| p.metadata.deletion_timestamp.is_none());
    let mut nodes: Vec<_> = staying.filter_map(|p| p.spec.as_ref()?.node_name.as_deref()).collect();
    nodes.sort_unstable();
    nodes
}

async fn three_nodes() -> Hollow {
    let cluster = Hollow::start().await;
    cluster.add_node("n2").await;
    cluster.add_node("n3").await;
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_selected_node_has_one_pod() {
    let cluster = three_nodes().await;
    cluster.create::<DaemonSet>("d", daemon("agent", json!({}))).await;
    cluster.until::<DaemonSet>("three", |l| l.iter().any(|s| settled(s, 3))).await;
    let pods = cluster.until::<Pod>("three pods", |l| nodes_of(l) == ["n1", "n2", "n3"]).await;
    let spec = pods[0].spec.as_ref().expect("spec");
    let tolerated: Vec<_> = spec.tolerations.iter().flatten().filter_map(|t| t.key.as_deref()).collect();
    for key in
        ["not-ready", "unreachable", "disk-pressure", "memory-pressure", "pid-pressure", "unschedulable"]
    {
        assert!(tolerated.contains(&format!("node.kubernetes.io/{key}").as_str()), "{key} {tolerated:?}");
    }
    let labels = pods[0].metadata.labels.as_ref().expect("labels");
    assert_eq!(labels["pod-template-generation"], "1");
    let revision = cluster.until::<ControllerRevision>("a revision", |l| l.len() == 1).await;
    assert_eq!(
        revision[0].metadata.name.as_deref(),
        Some(format!("agent-{}", labels["controller-revision-hash"]).as_str())
    );
    // A new node gets one, a node that is tainted keeps or loses its own by the effect, a node that goes takes it along.
    cluster.add_node("n4").await;
    cluster.until::<Pod>("four pods", |l| nodes_of(l) == ["n1", "n2", "n3", "n4"]).await;
    let taint = |effect: &str| json!({"spec": {"taints": [{"key": "mine", "effect": effect}]}});
    cluster.merge::<Node>("", "n2", taint("NoSchedule")).await;
    cluster
        .until::<DaemonSet>("misscheduled, not deleted", |l| {
            l[0].status
                .as_ref()
                .is_some_and(|s| (s.desired_number_scheduled, s.number_misscheduled) == (3, 1))
        })
        .await;
    cluster.until::<Pod>("it stays", |l| nodes_of(l) == ["n1", "n2", "n3", "n4"]).await;
    cluster.merge::<Node>("", "n3", taint("NoExecute")).await;
    cluster.until::<Pod>("driven out", |l| nodes_of(l) == ["n1", "n2", "n4"]).await;
    cluster
        .merge::<DaemonSet>(
            "d",
            "agent",
            json!({"spec": {"template": {"spec": {"nodeSelector": {"disk": "ssd"}}}}}),
        )
        .await;
    cluster.until::<Pod>("none is selected", |l| l.is_empty()).await;
    cluster.merge::<Node>("", "n4", json!({"metadata": {"labels": {"disk": "ssd"}}})).await;
    cluster.until::<DaemonSet>("one", |l| settled(&l[0], 1)).await;
    cluster.until::<Pod>("one", |l| nodes_of(l) == ["n4"]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_takes_one_node_at_a_time_and_stops_at_a_broken_pod() {
    let cluster = three_nodes().await;
    cluster.create::<DaemonSet>("d", daemon("agent", json!({"revisionHistoryLimit": 1}))).await;
    cluster.until::<DaemonSet>("three", |l| l.iter().any(|s| settled(s, 3))).await;
    for n in 2..=4 {
        cluster.merge::<DaemonSet>("d", "agent", image(&format!("i:{n}"))).await;
        cluster.until::<ControllerRevision>("its revision", |l| l.iter().any(|r| r.revision == n)).await;
        cluster.until::<DaemonSet>("rolled", |l| settled(&l[0], 3)).await;
    }
    cluster
        .until::<ControllerRevision>("newest and one before", |l| {
            let mut numbers: Vec<_> = l.iter().map(|r| r.revision).collect();
            numbers.sort_unstable();
            numbers == [3, 4]
        })
        .await;
    let broken = json!({"spec": {"template": {"metadata": {"labels": {"broken": ""}}}}});
    cluster.merge::<DaemonSet>("d", "agent", broken).await;
    cluster
        .until::<DaemonSet>("one is broken", |l| {
            l[0].status.as_ref().is_some_and(|s| {
                (s.number_available, s.number_unavailable, s.updated_number_scheduled)
                    == (Some(2), Some(1), Some(1))
                    && s.observed_generation == l[0].metadata.generation
            })
        })
        .await;
    // Undone: the broken pod is no loss, and the third revision's successor takes its number up.
    let mended = json!({"spec": {"template": {"metadata": {"labels": {"broken": null}}}}});
    cluster.merge::<DaemonSet>("d", "agent", mended).await;
    cluster.until::<DaemonSet>("mended", |l| settled(&l[0], 3)).await;
    cluster.until::<ControllerRevision>("revision 6", |l| l.iter().any(|r| r.revision == 6)).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_surge_makes_the_new_pod_first() {
    let cluster = three_nodes().await;
    let more = json!({"updateStrategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}});
    cluster.create::<DaemonSet>("d", daemon("agent", more)).await;
    cluster.until::<DaemonSet>("three", |l| l.iter().any(|s| settled(s, 3))).await;
    let broken = json!({"spec": {"template": {"metadata": {"labels": {"broken": ""}}}}});
    cluster.merge::<DaemonSet>("d", "agent", broken).await;
    // The new pod does not become available: the old ones all stay.
    cluster.until::<Pod>("one more", |l| nodes_of(l).len() == 4).await;
    cluster
        .until::<DaemonSet>("all still available", |l| {
            l[0].status.as_ref().is_some_and(|s| {
                s.number_available == Some(3) && s.observed_generation == l[0].metadata.generation
            })
        })
        .await;
    let mended = json!({"spec": {"template": {"metadata": {"labels": {"broken": null}}, "spec": {"containers": [{"name": "c", "image": "i:2"}]}}}});
    cluster.merge::<DaemonSet>("d", "agent", mended).await;
    cluster.until::<DaemonSet>("rolled", |l| settled(&l[0], 3)).await;
    cluster.until::<Pod>("three", |l| nodes_of(l) == ["n1", "n2", "n3"] && l.len() == 3).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_pods_are_replaced_with_growing_pauses() {
    let cluster = Hollow::start().await;
    cluster.create::<DaemonSet>("d", daemon("agent", json!({"updateStrategy": {"type": "OnDelete"}}))).await;
    let failed = || Patch::Strategic(json!({"status": {"phase": "Failed"}}));
    let mut last = None;
    for round in 0..2 {
        let pods = cluster
            .until::<Pod>("a pod that runs", |l| {
                l.len() == 1
                    && l[0].metadata.uid != last
                    && l[0].status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Running"))
            })
            .await;
        last = pods[0].metadata.uid.clone();
        let pod = pods[0].metadata.name.clone().expect("name");
        cluster.client.patch_status::<Pod>("d", &pod, &failed()).await.expect("status");
        if round == 1 {
            // The second failure within a second waits for the pause to end.
            cluster.clock.advance(2);
            cluster.merge::<DaemonSet>("d", "agent", json!({"metadata": {"labels": {"look": "1"}}})).await;
        }
    }
    cluster.until::<Pod>("replaced again", |l| l.len() == 1 && l[0].metadata.uid != last).await;
    cluster
        .until::<Event>("told of", |l| l.iter().any(|e| e.reason.as_deref() == Some("FailedDaemonPod")))
        .await;
    cluster.stop().await;
}
