//! Node lifecycle, addresses for nodes, eviction and what is left of lost nodes.
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use serde_json::json;

use crate::hollow::Hollow;
use crate::jobs::exit;

pub fn is(node: &Node, name: &str, ready: &str) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    node.metadata.name.as_deref() == Some(name)
        && conditions.is_some_and(|l| l.iter().any(|c| c.type_ == "Ready" && c.status == ready))
}

pub fn taints(node: &Node) -> Vec<String> {
    let list = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    list.map(|t| format!("{}:{}", t.key, t.effect)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_gets_its_own_range() {
    let cluster = Hollow::start().await;
    cluster.add_node("n2").await;
    let nodes = cluster
        .until::<Node>("ranges", |l| {
            l.len() == 2 && l.iter().all(|n| n.spec.as_ref().is_some_and(|s| s.pod_cidr.is_some()))
        })
        .await;
    let mut ranges: Vec<_> = nodes.iter().filter_map(|n| n.spec.as_ref()?.pod_cidr.clone()).collect();
    ranges.sort();
    assert_eq!(ranges, ["10.244.0.0/24", "10.244.1.0/24"]);
    // What kubelets read of Secrets they need not keep in so small a cluster, and who says otherwise is put right.
    let kept = |n: &Node| {
        n.metadata.annotations.as_ref().and_then(|a| a.get("node.alpha.kubernetes.io/ttl").cloned())
    };
    cluster.until::<Node>("not kept", |l| l.iter().all(|n| kept(n).as_deref() == Some("0"))).await;
    cluster
        .merge::<Node>("", "n2", json!({"metadata": {"annotations": {"node.alpha.kubernetes.io/ttl": "7"}}}))
        .await;
    cluster.until::<Node>("put right", |l| l.iter().all(|n| kept(n).as_deref() == Some("0"))).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_node_is_tainted_and_its_pods_are_evicted_until_it_returns() {
    let cluster = Hollow::start().await;
    cluster.add_node("n2").await;
    // Bound to n1, and tolerating its loss for an hour, or not at all.
    let pod = |name: &str, seconds: i64| {
        json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i:1"}], "tolerations": [
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}]}})
    };
    cluster.create::<Pod>("d", pod("patient", 3600)).await;
    cluster.create::<Pod>("d", pod("nervous", 0)).await;
    let running = |p: &Pod| p.status.as_ref().is_some_and(|s| s.pod_ip.is_some());
    cluster.until::<Pod>("running", |l| l.len() == 2 && l.iter().all(|p| running(p))).await;
    // Sixty seconds later n2 has been heard, n1 not. A write to n1 stands for its timer.
    cluster.minute(&["n2"]).await;
    cluster.merge::<Node>("", "n1", json!({"metadata": {"labels": {"look": "1"}}})).await;
    let nodes = cluster
        .until::<Node>("n1 unknown and tainted", |l| {
            l.iter().any(|n| is(n, "n1", "Unknown") && taints(n).len() == 2)
        })
        .await;
    let n1 = nodes.iter().find(|n| is(n, "n1", "Unknown")).expect("n1");
    assert_eq!(
        taints(n1),
        ["node.kubernetes.io/unreachable:NoSchedule", "node.kubernetes.io/unreachable:NoExecute"]
    );
    let ready = |p: &Pod| {
        p.status
            .as_ref()
            .and_then(|s| s.conditions.as_ref())
            .is_some_and(|l| l.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
    };
    cluster
        .until::<Pod>("evicted, and not ready", |l| {
            l.len() == 1 && l[0].metadata.name.as_deref() == Some("patient") && !ready(&l[0])
        })
        .await;
    // The kubelet is back. The other one was heard all the time, however long all this took.
    cluster.heartbeat("n2").await;
    cluster.renew("n1").await;
    let status = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "2099-01-01T00:00:00Z"}]}});
    cluster.client.patch_status::<Node>("", "n1", &client::Patch::Strategic(status)).await.expect("status");
    cluster.until::<Node>("no taints", |l| l.iter().all(|n| taints(n).is_empty())).await;
    for message in [
        "Node n1 event: Registered Node n1 in Controller",
        "Node n1 status is now: NodeNotReady",
        "Node is not ready",
        "Marking for deletion Pod d/nervous",
        "Cancelling deletion of Pod d/patient",
    ] {
        cluster.until::<Event>(message, |l| l.iter().any(|e| e.message.as_deref() == Some(message))).await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_of_a_deleted_node_go_after_quarantine() {
    let cluster = Hollow::start().await;
    cluster
        .create::<Pod>(
            "d",
            json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}),
        )
        .await;
    cluster
        .until::<Pod>("running", |l| l.iter().any(|p| p.status.as_ref().is_some_and(|s| s.pod_ip.is_some())))
        .await;
    cluster.delete::<Node>("", "n1", "Background").await;
    cluster.until::<Node>("node gone", |l| l.is_empty()).await;
    cluster.merge::<Pod>("d", "p", json!({"metadata": {"labels": {"look": "1"}}})).await;
    cluster.clock.advance(60);
    cluster.look::<Pod>("d", "p").await;
    cluster.until::<Pod>("pod gone", |l| l.is_empty()).await;
    cluster.stop().await;
}

/// When the node was given up.
fn given_up(node: &Node) -> Option<Timestamp> {
    let taints = node.spec.as_ref()?.taints.as_ref()?;
    let taint =
        taints.iter().find(|t| t.key == "node.kubernetes.io/unreachable" && t.effect == "NoExecute")?;
    taint.time_added.as_ref().map(|t| t.0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_a_zone_are_given_up_one_after_the_other() {
    let cluster = Hollow::start().await;
    for (zone, name) in [("a", "a1"), ("a", "a2"), ("b", "b1")] {
        cluster.add_node_in(zone, name).await;
    }
    // Their kubelets' names for labels, of today and of old.
    let older = |n: &Node| n.metadata.labels.as_ref().and_then(|l| l.get("beta.kubernetes.io/os").cloned());
    cluster
        .until::<Node>("older labels", |l| {
            l.len() == 4 && l.iter().all(|n| older(n).as_deref() == Some("linux"))
        })
        .await;
    // Time goes by in which n1 alone is heard. The others are lost within few steps of each other, however busy the machine is.
    let step = async || {
        cluster.clock.advance(1);
        cluster.heartbeat("n1").await;
        for name in ["a1", "a2", "b1"] {
            cluster.look::<Node>("", name).await;
        }
    };
    let of = |l: &[Arc<Node>], name| {
        l.iter().find(|n| n.metadata.name.as_deref() == Some(name)).and_then(|n| given_up(n))
    };
    let all = |l: &[Arc<Node>]| ["a1", "a2", "b1"].map(|name| of(l, name));
    let nodes = cluster.until_in_time::<Node>("given up", |l| all(l).iter().all(Option::is_some), step).await;
    let [a1, a2, b1] = all(&nodes).map(|at| at.expect("given up"));
    // Ten seconds lie between their turns; the first write may have met a step's, and be repeated some seconds later.
    assert!(a1.duration_since(a2).abs() > SignedDuration::from_secs(5), "{a1} and {a2}: turns of one zone");
    assert!(b1 < a1.max(a2), "{b1} before {}: another zone does not wait", a1.max(a2));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_of_a_node_out_of_service_end_without_their_kubelet() {
    let cluster = Hollow::start().await;
    let pod = json!({"metadata": {"name": "p", "labels": {"stuck": "1"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}});
    cluster.create::<Pod>("d", pod).await;
    let running = |p: &Pod| p.status.as_ref().is_some_and(|s| s.pod_ip.is_some());
    cluster.until::<Pod>("running", |l| l.iter().any(|p| running(p))).await;
    cluster.delete::<Pod>("d", "p", "Background").await;
    let status = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    cluster.client.patch_status::<Node>("", "n1", &client::Patch::Strategic(status)).await.expect("status");
    let waits = |p: &Pod| p.metadata.deletion_timestamp.is_some();
    cluster.until::<Pod>("waits for its kubelet", |l| l.len() == 1 && waits(&l[0])).await;
    let taint =
        json!({"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"});
    cluster
        .client
        .patch::<Node>("", "n1", &client::Patch::Strategic(json!({"spec": {"taints": [taint]}})))
        .await
        .expect("taint");
    cluster.until::<Pod>("gone", |l| l.is_empty()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_ended_pods_only_so_many_are_kept_and_evicted_ones_go_first() {
    let mut cluster = Hollow::start().await;
    cluster.stop_controllers().await;
    cluster.config.terminated_pod_threshold = 2;
    cluster.start_controllers();
    let mut made = Vec::new();
    for name in ["a", "b", "c", "evicted"] {
        let pod = json!({"metadata": {"name": name, "labels": {"hold": "1"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}});
        made.push(cluster.create::<Pod>("d", pod).await);
    }
    let reason = client::Patch::Strategic(json!({"status": {"reason": "Evicted"}}));
    cluster.client.patch_status::<Pod>("d", "evicted", &reason).await.expect("status");
    for pod in &made {
        exit(&cluster, pod, 1).await;
    }
    let left = cluster.until::<Pod>("two left", |l| l.len() == 2).await;
    let mut names: Vec<_> = left.iter().filter_map(|p| p.metadata.name.as_deref()).collect();
    names.sort_unstable();
    assert_eq!(names, ["b", "c"]);
    cluster.stop().await;
}
