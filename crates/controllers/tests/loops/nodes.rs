//! Node lifecycle, addresses for nodes, eviction and what is left of lost nodes.
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::json;

use crate::hollow::Hollow;

fn is(node: &Node, name: &str, ready: &str) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    node.metadata.name.as_deref() == Some(name)
        && conditions.is_some_and(|l| l.iter().any(|c| c.type_ == "Ready" && c.status == ready))
}

fn taints(node: &Node) -> Vec<String> {
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
    cluster.clock.advance(60);
    cluster.renew("n2").await;
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
    // The kubelet is back.
    cluster.renew("n1").await;
    let status = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "2099-01-01T00:00:00Z"}]}});
    cluster.client.patch_status::<Node>("", "n1", &client::Patch::Strategic(status)).await.expect("status");
    cluster.until::<Node>("no taints", |l| l.iter().all(|n| taints(n).is_empty())).await;
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
    cluster.merge::<Pod>("d", "p", json!({"metadata": {"labels": {"look": "2"}}})).await;
    cluster.until::<Pod>("pod gone", |l| l.is_empty()).await;
    cluster.stop().await;
}
