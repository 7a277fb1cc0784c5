//! Claims for devices are made from templates, given back and deleted when their pod has ended.
use client::Patch;
use k8s_openapi::api::core::v1::{Event, Pod};
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimTemplate, ResourceSlice};
use k8s_openapi::api::resource::v1beta2::DeviceTaintRule;
use serde_json::{Value, json};

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

/// A slice with the devices `d0` and `d1`; `taints` are those of the first.
pub fn slice(taints: Value) -> Value {
    json!({"metadata": {"name": "s"}, "spec": {"driver": "gpu.example.com", "nodeName": "n1",
        "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1},
        "devices": [{"name": "d0", "taints": taints}, {"name": "d1"}]}})
}

pub fn broken() -> Value {
    json!([{"key": "example.com/broken", "effect": "NoExecute"}])
}

/// A pod whose claim has a device, as the scheduler would give it.
pub async fn with_device(cluster: &Hollow, name: &str, device: &str, tolerations: Value) {
    let request = json!({"name": "r", "exactly": {"deviceClassName": "gpu.example.com"}});
    let claim = json!({"metadata": {"name": name}, "spec": {"devices": {"requests": [request]}}});
    cluster.create::<ResourceClaim>("d", claim).await;
    let pod = json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i:1"}],
        "resourceClaims": [{"name": "gpu", "resourceClaimName": name}]}});
    cluster.create::<Pod>("d", pod).await;
    let result = json!({"request": "r", "driver": "gpu.example.com", "pool": "p", "device": device, "tolerations": tolerations});
    let allocated = Patch::Merge(json!({"status": {"allocation": {"devices": {"results": [result]}}}}));
    cluster.client.patch_status::<ResourceClaim>("d", name, &allocated).await.expect("allocated");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_leave_devices_whose_taints_they_do_not_tolerate() {
    let cluster = Hollow::start().await;
    cluster.create::<ResourceSlice>("", slice(json!([]))).await;
    let bounded = json!([{"key": "example.com/broken", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 3600}]);
    for (name, device, tolerations) in
        [("leaves", "d0", json!([])), ("other", "d1", json!([])), ("patient", "d0", bounded)]
    {
        with_device(&cluster, name, device, tolerations).await;
    }
    let reserved = |c: &ResourceClaim| c.status.as_ref().is_some_and(|s| s.reserved_for.is_some());
    cluster.until::<ResourceClaim>("reserved", |l| l.len() == 3 && l.iter().all(|c| reserved(c))).await;
    cluster.merge::<ResourceSlice>("", "s", slice(broken())).await;
    let are = |l: &[std::sync::Arc<Pod>], want: &[&str]| {
        let mut names: Vec<_> = l.iter().filter_map(|p| p.metadata.name.as_deref()).collect();
        names.sort_unstable();
        names == want
    };
    cluster.until::<Pod>("one left", |l| are(l, &["other", "patient"])).await;
    let said = async |message: &str, about: &str| {
        let is = |e: &Event| {
            e.reason.as_deref() == Some("DeviceTaintManagerEviction")
                && e.message.as_deref() == Some(message)
                && e.involved_object.name.as_deref() == Some(about)
                && e.source.as_ref().and_then(|s| s.component.as_deref()) == Some("device-taint-eviction")
        };
        cluster.until::<Event>(message, |l| l.iter().any(|e| is(e))).await;
    };
    said("Marking for deletion", "leaves").await;
    // Mended in time, and broken again for good.
    cluster.merge::<ResourceSlice>("", "s", slice(json!([]))).await;
    said("Cancelling deletion", "patient").await;
    cluster.merge::<ResourceSlice>("", "s", slice(broken())).await;
    cluster
        .until_in_time::<Pod>("the other left too", |l| are(l, &["other"]), async || cluster.clock.pass(600))
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_make_pods_leave_devices_and_say_how_many() {
    let feature_gates = "DRADeviceTaintRules=true".parse().expect("gates");
    let options = apiserver::Options { feature_gates, ..Default::default() };
    let cluster = Hollow::start_on_server(options).await;
    cluster.create::<ResourceSlice>("", slice(json!([]))).await;
    for (name, device) in [("leaves", "d0"), ("other", "d1")] {
        with_device(&cluster, name, device, json!([])).await;
    }
    let reserved = |c: &ResourceClaim| c.status.as_ref().is_some_and(|s| s.reserved_for.is_some());
    cluster.until::<ResourceClaim>("reserved", |l| l.len() == 2 && l.iter().all(|c| reserved(c))).await;
    let rule = |effect: &str| {
        json!({"metadata": {"name": "r"}, "spec": {"deviceSelector": {"driver": "gpu.example.com", "device": "d0"},
            "taint": {"key": "example.com/broken", "effect": effect}}})
    };
    cluster.create::<DeviceTaintRule>("", rule("None")).await;
    let says = |l: &[std::sync::Arc<DeviceTaintRule>], reason: &str, message: &str| {
        let conditions = l.iter().filter_map(|r| r.status.as_ref()?.conditions.as_ref()).flatten();
        conditions.into_iter().any(|c| c.reason == reason && c.message.starts_with(message))
    };
    let text =
        "1 published device selected. 1 allocated device selected. 1 pod would be evicted in 1 namespace if";
    cluster.until::<DeviceTaintRule>("what would be", |l| says(l, "NoEffect", text)).await;
    cluster.merge::<DeviceTaintRule>("", "r", rule("NoExecute")).await;
    let left = |l: &[std::sync::Arc<Pod>]| l.len() == 1 && l[0].metadata.name.as_deref() == Some("other");
    cluster.until::<Pod>("one left", left).await;
    let done = |l: &[std::sync::Arc<DeviceTaintRule>]| {
        says(l, "Completed", "1 pod evicted since starting the controller.")
    };
    cluster.until_in_time::<DeviceTaintRule>("what was", done, async || cluster.clock.pass(10)).await;
    cluster.stop().await;
}
