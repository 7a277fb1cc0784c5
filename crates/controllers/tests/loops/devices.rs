//! Claims for devices are made from templates, given back and deleted when their pod has ended.
use client::Patch;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimTemplate};
use serde_json::json;

use crate::hollow::Hollow;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_gets_a_claim_of_its_own_until_it_ends() {
    let cluster = Hollow::start().await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i:1"}],
        "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "t"}]}});
    cluster.create::<Pod>("d", pod).await;
    // The template comes later.
    let devices =
        json!({"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu.example.com"}}]}});
    let template =
        json!({"metadata": {"name": "t"}, "spec": {"metadata": {"labels": {"a": "b"}}, "spec": devices}});
    cluster.create::<ResourceClaimTemplate>("d", template).await;
    let pods = cluster
        .until::<Pod>("assigned", |l| {
            l.iter().any(|p| p.status.as_ref().is_some_and(|s| s.resource_claim_statuses.is_some()))
        })
        .await;
    let statuses = pods[0].status.clone().and_then(|s| s.resource_claim_statuses).expect("statuses");
    let claims = cluster.until::<ResourceClaim>("one claim", |l| l.len() == 1).await;
    assert_eq!(statuses[0].resource_claim_name, claims[0].metadata.name);
    let name = claims[0].metadata.name.clone().expect("name");
    assert!(name.starts_with("p-gpu-"), "{name}");
    assert_eq!(claims[0].metadata.labels.as_ref().and_then(|l| l.get("a")).map(String::as_str), Some("b"));

    // Once allocated, as by a scheduler, the pod that has a node already is let in.
    let hold = json!({"metadata": {"finalizers": ["resource.kubernetes.io/delete-protection"]}});
    cluster.merge::<ResourceClaim>("d", &name, hold).await;
    let allocated = Patch::Merge(json!({"status": {"allocation": {"devices": {"results": []}}}}));
    cluster.client.patch_status::<ResourceClaim>("d", &name, &allocated).await.expect("allocated");
    cluster
        .until::<ResourceClaim>("reserved", |l| {
            l.iter().any(|c| {
                c.status.as_ref().and_then(|s| s.reserved_for.as_ref()).is_some_and(|r| r.len() == 1)
            })
        })
        .await;
    // Its end frees and deletes the claim, finalizer and all.
    let ended = Patch::Merge(json!({"status": {"phase": "Succeeded"}}));
    cluster.client.patch_status::<Pod>("d", "p", &ended).await.expect("ended");
    cluster.until::<ResourceClaim>("no claims", |l| l.is_empty()).await;
    cluster.stop().await;
}
