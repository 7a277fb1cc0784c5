//! The Node object.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_registers_with_what_the_machine_has_and_renews_its_lease() {
    let cluster = Cluster::start().await;
    let ready = |list: &[Arc<Node>]| {
        let node = list.first()?;
        let list = node.status.as_ref()?.conditions.as_ref()?;
        list.iter().find(|c| c.type_ == "Ready" && c.status == "True")?;
        Some(node.clone())
    };
    let node = cluster.until::<Node, _>("ready", ready).await;
    let status = node.status.clone().unwrap();
    let info = status.node_info.unwrap();
    assert_eq!(
        (info.kubelet_version.as_str(), info.container_runtime_version.as_str()),
        ("v1.36.0", "fake://1")
    );
    assert!(!info.kernel_version.is_empty() && !info.boot_id.is_empty());
    for name in ["cpu", "memory", "pods", "ephemeral-storage"] {
        assert!(status.capacity.as_ref().unwrap().contains_key(name), "{name}");
        assert!(status.allocatable.as_ref().unwrap().contains_key(name), "{name}");
    }
    let labels = node.metadata.labels.clone().unwrap();
    assert_eq!(labels.get("kubernetes.io/hostname").map(String::as_str), Some("n1"));
    let held = |list: &[Arc<Lease>]| {
        let lease = list.iter().find(|l| l.metadata.name.as_deref() == Some("n1"))?;
        lease.spec.as_ref()?.lease_duration_seconds
    };
    assert_eq!(cluster.until::<Lease, _>("a lease", held).await, 40);
    cluster.stop().await;
}
