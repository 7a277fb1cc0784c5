//! Devices by ResourceClaims: what a driver is asked for, when, and what containers get.

use std::path::PathBuf;

use client::Patch;
use k8s_openapi::api::resource::v1::ResourceClaim;
use kubelet::devices::messages::{GetPodResourcesRequest, GetPodResourcesResponse};
use kubelet::dra::messages::{DeviceHealth, DeviceIdentifier, HealthStatus};
use kubelet::grpc::Plugin;

use super::dra_driver::{Driver, NAME, device};
use super::*;

const V1: &[&str] = &["v1beta1.DRAPlugin", "v1.DRAPlugin"];

/// A request for one device.
fn request(name: &str) -> Value {
    json!({"name": name, "exactly": {"deviceClassName": "dev"}})
}

/// A container that uses claims.
fn with(name: &str, claims: Value) -> Value {
    json!({"name": name, "image": "web:1", "resources": {"claims": claims}})
}

impl Cluster {
    fn folder(&self) -> PathBuf {
        self.api.folder.path().join("kubelet")
    }

    fn driver(&self, socket: &str, services: &[&str]) -> Driver {
        Driver::start(&self.folder(), socket, services)
    }

    /// A pod that is not bound yet.
    async fn waiting_pod(&self, name: &str, spec: Value) -> Pod {
        let mut spec = spec;
        spec["automountServiceAccountToken"] = json!(false);
        self.create("d", json!({"metadata": {"name": name}, "spec": spec})).await
    }

    /// A claim of these requests that was given a device of the driver for each.
    async fn allocated(&self, name: &str, requests: Value, more: Value) {
        let mut metadata = json!({"name": name});
        metadata.as_object_mut().expect("object").extend(more.as_object().cloned().unwrap_or_default());
        let claim = json!({"metadata": metadata, "spec": {"devices": {"requests": requests}}});
        self.create::<ResourceClaim>("d", claim).await;
        let result = |request: &Value| {
            let (mut of, admin) =
                (request["name"].as_str().expect("name").to_owned(), &request["exactly"]["adminAccess"]);
            if let Some(first) = request["firstAvailable"][0]["name"].as_str() {
                of = format!("{of}/{first}");
            }
            json!({"request": of, "driver": NAME, "pool": "n1", "device": request["name"], "adminAccess": admin})
        };
        let results: Vec<Value> = requests.as_array().expect("list").iter().map(result).collect();
        let patch = Patch::Merge(json!({"status": {"allocation": {"devices": {"results": results}}}}));
        self.client.patch_status::<ResourceClaim>("d", name, &patch).await.expect("allocated");
    }

    /// Reserves claims for pods.
    async fn reserve(&self, claim: &str, pods: &[&Pod]) {
        let consumer =
            |pod: &&Pod| json!({"resource": "pods", "name": pod.metadata.name, "uid": pod.metadata.uid});
        let all: Vec<Value> = pods.iter().map(consumer).collect();
        let patch = Patch::Merge(json!({"status": {"reservedFor": all}}));
        self.client.patch_status::<ResourceClaim>("d", claim, &patch).await.expect("reserved");
    }

    async fn bind(&self, pod: &str) {
        let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod}, "target": {"kind": "Node", "name": "n1"}});
        self.client.create_subresource::<Pod, _, Value>("d", pod, "binding", &binding).await.expect("bound");
    }

    /// A pod `name` on the node whose container `web` has the claim `claim`, which is reserved for it.
    async fn run_with(&self, name: &str, claim: &str) {
        let claims = json!([{"name": "c", "resourceClaimName": claim}]);
        let spec = json!({"containers": [with("web", json!([{"name": "c"}]))], "resourceClaims": claims});
        let pod = self.waiting_pod(name, spec).await;
        self.reserve(claim, &[&pod]).await;
        self.bind(name).await;
    }

    async fn until_running(&self, name: &str) {
        let is = |p: &Arc<Pod>| p.metadata.name.as_deref() == Some(name) && phase(p) == "Running";
        self.until::<Pod, _>(&format!("{name} runs"), |list| list.iter().any(is).then_some(())).await;
    }

    fn cdi(&self, container: &str) -> Vec<String> {
        let config = self.fake.container(container).expect("a container").config;
        config.cdi_devices.into_iter().map(|device| device.name).collect()
    }

    async fn delete_named(&self, name: &str, grace: Option<i64>) {
        let options = DeleteOptions { grace_period_seconds: grace, ..DeleteOptions::default() };
        self.client.delete::<Pod>("d", name, &options).await.expect("delete");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_of_a_claim_are_ready_before_a_pod_begins_and_given_back_before_its_end_is_told() {
    let cluster = Cluster::start().await;
    let driver = cluster.driver("one", V1);
    driver.books.lock().refuses = Some("no power".to_owned());
    let claims = json!([{"name": "c", "resourceClaimTemplateName": "t"}]);
    let containers =
        [with("web", json!([{"name": "c", "request": "r"}])), json!({"name": "other", "image": "web:1"})];
    let spec = json!({"restartPolicy": "Never", "resourceClaims": claims, "containers": containers});
    let pod = cluster.waiting_pod("p", spec).await;
    let owner = json!({"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": pod.metadata.uid, "controller": true}]});
    cluster.allocated("p-c", json!([request("r"), request("s")]), owner).await;
    cluster.bind("p").await;
    let failed = async |why: &str| {
        let text = format!("Failed to prepare dynamic resources: prepare dynamic resources: {why}");
        cluster.until_event("FailedPrepareDynamicResources", &text).await;
    };
    failed("pod claim c: ResourceClaim not created yet").await;
    let made = json!({"status": {"resourceClaimStatuses": [{"name": "c", "resourceClaimName": "p-c"}]}});
    cluster.client.patch_status::<Pod>("d", "p", &Patch::Merge(made)).await.unwrap();
    failed("pod p (").await;
    assert!(driver.calls.borrow().is_empty());
    cluster.reserve("p-c", &[&pod]).await;
    failed("NodePrepareResources failed for ResourceClaim p-c: no power").await;
    assert!(cluster.fake.books.lock().sandboxes.is_empty());
    {
        let mut books = driver.books.lock();
        books.refuses = None;
        books
            .devices
            .insert("p-c".to_owned(), vec![device("a", &["r"]), device("b", &["s"]), device("all", &[])]);
        books.keeps = Some("still in use".to_owned());
    }
    cluster.until_pod("runs", |p| phase(p) == "Running").await;
    assert_eq!(cluster.cdi("web"), ["example.com/dev=a", "example.com/dev=all"]);
    assert!(cluster.cdi("other").is_empty());
    assert!(driver.calls.borrow().iter().all(|call| call == "v1 prepare p-c"));

    let resources = Plugin::at(&cluster.folder().join("pod-resources/kubelet.sock")).unwrap();
    let asked = GetPodResourcesRequest { pod_name: "p".to_owned(), pod_namespace: "d".to_owned() };
    let got: GetPodResourcesResponse = resources.call("/v1.PodResourcesLister/Get", asked).await.unwrap();
    let containers = got.pod_resources.unwrap().containers;
    let shown = &containers[0].dynamic_resources[0];
    assert_eq!((shown.claim_name.as_str(), shown.claim_namespace.as_str()), ("p-c", "d"));
    let devices: Vec<&str> = shown.claim_resources.iter().map(|one| one.device_name.as_str()).collect();
    assert_eq!(devices, ["a", "b", "all"]);
    assert_eq!(shown.claim_resources[0].cdi_devices[0].name, "example.com/dev=a");
    assert!(containers[1].dynamic_resources.is_empty());
    let metrics = cluster.ask("/metrics").await;
    for line in [
        "dra_resource_claims_in_use{driver_name=\"<any>\"} 1\n",
        "dra_resource_claims_in_use{driver_name=\"dra.example.com\"} 1\n",
        "dra_operations_duration_seconds_count{is_error=\"true\",operation_name=\"PrepareResources\"}",
        "dra_operations_duration_seconds_count{is_error=\"false\",operation_name=\"PrepareResources\"}",
        "dra_grpc_operations_duration_seconds_count{driver_name=\"dra.example.com\",grpc_status_code=\"OK\",method_name=\"/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/NodePrepareResources\"}",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }

    // it is over, but nobody hears of it while the driver does not let go
    cluster.fake.exit("web", 0);
    cluster.fake.exit("other", 0);
    let text = "Failed to unprepare dynamic resources: unprepare dynamic resources: NodeUnprepareResources failed for ResourceClaim p-c: still in use";
    cluster.until_event("FailedUnprepareDynamicResources", text).await;
    assert_eq!(phase(&cluster.client.get::<Pod>("d", "p").await.unwrap()), "Running");
    driver.books.lock().keeps = None;
    cluster.until_pod("is over", |p| phase(p) == "Succeeded").await;
    assert_eq!(driver.calls.borrow().last().unwrap(), "v1 unprepare p-c");
    assert!(cluster.ask("/metrics").await.contains("dra_resource_claims_in_use{driver_name=\"<any>\"} 0\n"));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_claim_is_prepared_once_and_given_back_after_the_last_pod() {
    let cluster = Cluster::start().await;
    let driver = cluster.driver("one", V1);
    cluster.allocated("shared", json!([request("r")]), json!({})).await;
    cluster.allocated("own", json!([request("r")]), json!({})).await;
    let claims =
        json!([{"name": "c", "resourceClaimName": "shared"}, {"name": "o", "resourceClaimName": "own"}]);
    let of = |container: &str| json!({"containers": [with(container, json!([{"name": "c"}]))], "resourceClaims": claims});
    let first = cluster.waiting_pod("p", of("web")).await;
    let mut spec = of("other");
    spec["resourceClaims"].as_array_mut().unwrap().pop();
    let second = cluster.waiting_pod("q", spec).await;
    cluster.reserve("shared", &[&first, &second]).await;
    cluster.reserve("own", &[&first]).await;
    cluster.bind("p").await;
    cluster.until_running("p").await;
    // one call for all claims of a driver
    driver.until(&["v1 prepare own,shared"]).await;
    cluster.bind("q").await;
    cluster.until_running("q").await;
    assert_eq!(cluster.cdi("other"), ["example.com/dev=shared"]);
    cluster.delete_named("p", None).await;
    driver.until(&["v1 prepare own,shared", "v1 unprepare own"]).await;
    let alone = |list: &[Arc<Pod>]| (list.len() == 1).then_some(());
    cluster.until::<Pod, _>("p is gone", alone).await;
    cluster.delete_named("q", None).await;
    cluster.until_gone().await;
    driver.until(&["v1 prepare own,shared", "v1 unprepare own", "v1 unprepare shared"]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_prepared_is_given_back_after_a_restart_by_a_driver_that_comes_late() {
    let mut cluster = Cluster::start().await;
    let driver = cluster.driver("one", V1);
    for name in ["kept", "left"] {
        cluster.allocated(name, json!([request("r")]), json!({})).await;
        cluster.run_with(&format!("p-{name}"), name).await;
        cluster.until_running(&format!("p-{name}")).await;
    }
    cluster.stop_kubelet().await;
    drop(driver);
    cluster.delete_named("p-left", Some(0)).await;
    cluster.start_kubelet().await;
    cluster.delete_named("p-kept", None).await;
    let text = "DRA driver dra.example.com is not registered";
    cluster.until_event("FailedUnprepareDynamicResources", text).await;
    let left = cluster.client.list::<Pod>("d", &Default::default()).await.unwrap();
    assert_eq!(left.len(), 1, "it waits for the driver");
    let driver = cluster.driver("one", V1);
    cluster.until_gone().await;
    let mut calls = driver.calls.subscribe();
    let both = tokio::time::timeout(PATIENCE, calls.wait_for(|calls| calls.len() == 2)).await;
    let mut calls = both.expect("in time").expect("it lives").clone();
    calls.sort();
    assert_eq!(calls, ["v1 unprepare kept", "v1 unprepare left"]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_runs_again_after_a_restart_has_its_devices_without_a_call() {
    let mut cluster = Cluster::start().await;
    let driver = cluster.driver("one", V1);
    cluster.allocated("c", json!([request("r")]), json!({})).await;
    cluster.run_with("p", "c").await;
    cluster.until_running("p").await;
    cluster.stop_kubelet().await;
    drop(driver);
    cluster.start_kubelet().await;
    cluster.fake.exit("web", 1);
    cluster.until_pod("restarted", |p| status_of(p, "web").restart_count == 1 && running(p, "web")).await;
    assert_eq!(cluster.cdi("web"), ["example.com/dev=c"]);
    let driver = cluster.driver("one", V1);
    cluster.delete(None).await;
    cluster.until_gone().await;
    driver.until(&["v1 unprepare c"]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_socket_of_a_driver_is_called_and_an_older_one_when_it_goes() {
    let cluster = Cluster::start().await;
    for name in ["a", "b", "c"] {
        cluster.allocated(name, json!([request("r")]), json!({})).await;
    }
    let stranger = cluster.driver("stranger", &["v1alpha4.Node"]);
    let status = stranger.status().await;
    assert!(!status.plugin_registered);
    let text = "none of services supported by the plugin ([\"v1alpha4.Node\"]) are supported by the kubelet";
    assert!(status.error.contains(text), "{}", status.error);
    cluster.run_with("a", "a").await;
    let text = "prepare dynamic resources: DRA driver dra.example.com is not registered";
    cluster.until_event("FailedPrepareDynamicResources", text).await;
    // a pod that waits is tried again as soon as its driver is there
    let old = cluster.driver("old", &["v1beta1.DRAPlugin"]);
    cluster.until_running("a").await;
    assert_eq!(*old.calls.borrow(), ["v1beta1 prepare a"]);
    let new = cluster.driver("new", V1);
    assert!(new.status().await.plugin_registered);
    cluster.run_with("b", "b").await;
    cluster.until_running("b").await;
    assert_eq!(*new.calls.borrow(), ["v1 prepare b"]);
    drop(new);
    cluster.run_with("c", "c").await;
    cluster.until_running("c").await;
    assert_eq!(*old.calls.borrow(), ["v1beta1 prepare a", "v1beta1 prepare c"]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alternatives_admin_access_and_extended_resources_come_to_the_containers_that_ask_for_them() {
    let cluster = Cluster::start().await;
    let driver = cluster.driver("one", V1);
    let label = json!({"metadata": {"labels": {"resource.kubernetes.io/admin-access": "true"}}});
    cluster.client.patch::<Namespace>("", "d", &Patch::Merge(label)).await.unwrap();
    let first = json!({"name": "r", "firstAvailable": [{"name": "small", "deviceClassName": "dev"}, {"name": "large", "deviceClassName": "dev"}]});
    let admin = json!({"name": "watch", "exactly": {"deviceClassName": "dev", "adminAccess": true}});
    cluster.allocated("c", json!([first, admin]), json!({})).await;
    cluster
        .allocated(
            "ext",
            json!([request("container-0-request-0"), request("container-1-request-0")]),
            json!({}),
        )
        .await;
    {
        let mut books = driver.books.lock();
        books
            .devices
            .insert("c".to_owned(), vec![device("small", &["r/small"]), device("watched", &["watch"])]);
        let own = |at: &str| device(&format!("ext-{at}"), &[&format!("container-{at}-request-0")]);
        books.devices.insert("ext".to_owned(), vec![own("0"), own("1")]);
    }
    let mut containers = [
        with("web", json!([{"name": "c", "request": "r"}])),
        with("admin", json!([{"name": "c", "request": "watch"}])),
        json!({"name": "none", "image": "web:1"}),
    ];
    for container in &mut containers[..2] {
        container["resources"]["limits"] = json!({"example.com/dev": "1"});
    }
    let claims = json!([{"name": "c", "resourceClaimName": "c"}]);
    let pod = cluster.waiting_pod("p", json!({"containers": containers, "resourceClaims": claims})).await;
    let mapping = |container: &str, at: u32| json!({"containerName": container, "resourceName": "example.com/dev", "requestName": format!("container-{at}-request-0")});
    let extended =
        json!({"resourceClaimName": "ext", "requestMappings": [mapping("web", 0), mapping("admin", 1)]});
    let patch = Patch::Merge(json!({"status": {"extendedResourceClaimStatus": extended}}));
    cluster.client.patch_status::<Pod>("d", "p", &patch).await.unwrap();
    for claim in ["c", "ext"] {
        cluster.reserve(claim, &[&pod]).await;
    }
    cluster.bind("p").await;
    cluster.until_running("p").await;
    assert_eq!(cluster.cdi("web"), ["example.com/dev=small", "example.com/dev=ext-0"]);
    assert_eq!(cluster.cdi("admin"), ["example.com/dev=watched", "example.com/dev=ext-1"]);
    assert!(cluster.cdi("none").is_empty());
    driver.until(&["v1 prepare c,ext"]).await;
    cluster.delete(None).await;
    cluster.until_gone().await;
    driver.until(&["v1 prepare c,ext", "v1 unprepare c,ext"]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pods_status_says_how_its_devices_are() {
    let cluster = Cluster::start().await;
    let driver = cluster.driver("one", V1);
    cluster.allocated("c", json!([request("r")]), json!({})).await;
    cluster.run_with("p", "c").await;
    let shows = |health: &'static str, message: Option<&'static str>| {
        move |p: &Pod| {
            let all = status_of(p, "web").allocated_resources_status.unwrap_or_default();
            let Some(one) = all.first().filter(|one| one.name == "claim:c") else { return false };
            let resources = one.resources.clone().unwrap_or_default();
            let found =
                resources.first().map(|r| (r.resource_id.clone(), r.health.clone(), r.message.clone()));
            let expected =
                ("example.com/dev=c".to_owned(), Some(health.to_owned()), message.map(str::to_owned));
            found == Some(expected)
        }
    };
    let report = |health: HealthStatus, message: &str| {
        let device = DeviceIdentifier { pool_name: "n1".to_owned(), device_name: "c".to_owned() };
        let health = DeviceHealth {
            device: Some(device),
            health: health.into(),
            last_updated_time: 0,
            health_check_timeout_seconds: 3600,
            message: message.to_owned(),
        };
        driver.health.send_replace(vec![health]);
    };
    cluster.until_pod("nothing is known", shows("Unknown", None)).await;
    report(HealthStatus::Healthy, "");
    cluster.until_pod("healthy", shows("Healthy", None)).await;
    report(HealthStatus::Unhealthy, "too hot");
    cluster.until_pod("unhealthy", shows("Unhealthy", Some("too hot"))).await;
    drop(driver);
    cluster.until_pod("nothing is known any more", shows("Unknown", None)).await;
    cluster.stop().await;
}
