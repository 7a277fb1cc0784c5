//! Devices that are made ready only when a claim has got them, against the real API server.
use super::*;

const CLAIM: &str = "one";

/// Who makes devices ready says how it went.
async fn says(cluster: &Cluster, kind: &str, reason: &str) {
    let condition = json!({"type": kind, "status": "True", "reason": reason, "message": "it says",
        "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let device =
        json!({"driver": "gpu.example.com", "pool": "fabric", "device": "f0", "conditions": [condition]});
    let patch = client::Patch::Merge(json!({"status": {"devices": [device]}}));
    cluster.client.patch_status::<ResourceClaim>("d", CLAIM, &patch).await.expect("status");
}

async fn told(cluster: &Cluster, reason: &str, message: &str) {
    let is = |e: &Event| e.reason.as_deref() == Some(reason) && e.message.as_deref() == Some(message);
    cluster.until::<Event>(message, |l| l.iter().any(|e| is(e))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_waits_for_its_devices_and_gives_back_those_that_fail() {
    let cluster =
        Cluster::start_with(Config { selectors: Some(Arc::new(cel::Cel)), ..Config::default() }).await;
    cluster.node(node("a", "2")).await;
    let device = json!({"name": "f0", "bindsToNode": true, "bindingConditions": ["Attached"], "bindingFailureConditions": ["Broken"]});
    let slice = json!({"metadata": {"name": "fabric"}, "spec": {"driver": "gpu.example.com", "allNodes": true,
        "pool": {"name": "fabric", "generation": 1, "resourceSliceCount": 1}, "devices": [device]}});
    cluster.create::<ResourceSlice>("", slice).await;
    cluster.create::<DeviceClass>("", json!({"metadata": {"name": "gpu"}, "spec": {}})).await;
    let request = json!({"name": "r", "exactly": {"deviceClassName": "gpu"}});
    let claim = json!({"metadata": {"name": CLAIM}, "spec": {"devices": {"requests": [request]}}});
    cluster.create::<ResourceClaim>("d", claim).await;
    let mut value = pod("p", "100m");
    value["spec"]["resourceClaims"] = json!([{"name": "gpu", "resourceClaimName": CLAIM}]);
    cluster.create::<Pod>("d", value).await;

    told(&cluster, "BindingConditionsPending", "waiting for binding conditions for device on node a").await;
    let given = |c: &ResourceClaim| c.status.as_ref().and_then(|s| s.allocation.clone());
    let claims = cluster.until::<ResourceClaim>("given", |l| l.iter().all(|c| given(c).is_some())).await;
    let allocation = given(&claims[0]).expect("given");
    assert!(allocation.allocation_timestamp.is_some());
    let selector = serde_json::to_value(&allocation.node_selector).expect("json");
    assert_eq!(selector["nodeSelectorTerms"][0]["matchFields"][0]["values"], json!(["a"]));
    let waits = |p: &Pod| {
        let nominated = p.status.as_ref().and_then(|s| s.nominated_node_name.as_deref());
        nominated == Some("a") && node_of(p).is_none()
    };
    cluster.until::<Pod>("waits for its node", |l| l.len() == 1 && waits(&l[0])).await;

    says(&cluster, "Broken", "Gone").await;
    let why = "running PreBind plugin \"DynamicResources\": claim one binding failed: reason=Gone, message=\"it says\"";
    told(&cluster, "FailedScheduling", why).await;
    let text = "0/1 nodes are available: 1 resourceclaim not available on the node. deallocation of ResourceClaim completed, \
        preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
    told(&cluster, "FailedScheduling", text).await;
    let anew = |c: &ResourceClaim| {
        given(c).is_some() && c.status.as_ref().is_some_and(|s| s.devices.as_ref().is_none_or(Vec::is_empty))
    };
    cluster.until::<ResourceClaim>("given anew", |l| l.iter().all(|c| anew(c))).await;
    says(&cluster, "Attached", "Done").await;
    let pods = cluster.until::<Pod>("bound", |l| l.len() == 1 && node_of(&l[0]) == Some("a")).await;
    assert_eq!(pods[0].status.as_ref().and_then(|s| s.nominated_node_name.as_deref()), None);
    cluster.stop().await;
}
