//! The crash test of nodes that are lost or leave: ranges, taints, eviction, and what is left of their pods.
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use crate::crash::{Story, at_every_write};
use crate::hollow::Hollow;
use crate::nodes::{is, taints};

/// Of three nodes one falls silent and one leaves, another comes.
pub struct Nodes;

/// Longer than any wait.
const YEARS: i64 = 315_360_000;

fn pod(name: &str, node: &str, seconds: i64) -> Value {
    let term = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]});
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i:1"}],
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}},
        "tolerations": [{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
            "tolerationSeconds": seconds}]}})
}

fn range(node: &Node) -> Option<String> {
    node.spec.as_ref()?.pod_cidr.clone()
}

impl Story for Nodes {
    const WRITERS: &'static [&'static str] = &[
        "node-controller",
        "taint-eviction-controller",
        "node-ipam-controller",
        "pod-garbage-collector",
        "ttl-controller",
    ];

    async fn create(cluster: &Hollow) {
        for name in ["n2", "n3"] {
            cluster.add_node(name).await;
        }
        for (name, node, seconds) in
            [("patient", "n1", YEARS), ("nervous", "n1", 0), ("stranded", "n3", YEARS)]
        {
            cluster.create::<Pod>("d", pod(name, node, seconds)).await;
        }
    }

    async fn up(cluster: &Hollow) {
        let runs = |p: &Pod| p.status.as_ref().is_some_and(|s| s.pod_ip.is_some());
        cluster.until::<Pod>("running", |l| l.len() == 3 && l.iter().all(|p| runs(p))).await;
        cluster.until::<Node>("ranges", |l| l.iter().all(|n| range(n).is_some())).await;
    }

    async fn change(cluster: &Hollow) {
        // Their kubelets don't depend on the controllers.
        let runs = |p: &Pod| p.status.as_ref().is_some_and(|s| s.pod_ip.is_some());
        cluster.until::<Pod>("running", |l| l.iter().all(|p| runs(p))).await;
        cluster.delete::<Node>("", "n3", "Background").await;
        cluster.add_node("n4").await;
    }

    async fn end(cluster: &Hollow, what: &str) {
        let kept = |n: &Node| {
            let notes = n.metadata.annotations.as_ref();
            notes.is_some_and(|a| a.get("node.alpha.kubernetes.io/ttl").is_some_and(|t| t == "0"))
        };
        cluster.until::<Node>(what, |l| l.iter().all(|n| kept(n))).await;
        let heard = ["n2", "n4"];
        let time = async || {
            for name in heard {
                cluster.heartbeat(name).await;
            }
            cluster.clock.pass(5);
        };
        let lost = ["node.kubernetes.io/unreachable:NoSchedule", "node.kubernetes.io/unreachable:NoExecute"];
        let nodes = cluster
            .until_in_time::<Node>(
                what,
                |l| {
                    let fine = |n: &Node| {
                        heard.iter().any(|name| is(n, name, "True"))
                            && taints(n).is_empty()
                            && range(n).is_some()
                    };
                    l.len() == 3
                        && l.iter().filter(|n| fine(n)).count() == 2
                        && l.iter().any(|n| is(n, "n1", "Unknown") && taints(n) == lost)
                },
                time,
            )
            .await;
        let mut ranges: Vec<_> = nodes.iter().filter_map(|n| range(n)).collect();
        ranges.sort();
        ranges.dedup();
        assert_eq!(ranges.len(), 3, "{what}");
        let ready = |p: &Pod| {
            let conditions = p.status.iter().flat_map(|s| s.conditions.iter().flatten());
            conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
        };
        cluster
            .until_in_time::<Pod>(
                what,
                |l| l.len() == 1 && l[0].metadata.name.as_deref() == Some("patient") && !ready(&l[0]),
                time,
            )
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_write_leaves_no_lost_node_untainted_and_no_pod_on_it() {
    at_every_write::<Nodes>(7).await;
}
