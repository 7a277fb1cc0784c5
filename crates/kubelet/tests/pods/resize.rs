//! In-place resize.

use cri::v1::LinuxContainerResources;

use super::*;

impl Cluster {
    /// Asks for other resources of the only container.
    async fn resize(&self, resources: Value) {
        let pod: Pod = self.client.get("d", "p").await.expect("the pod");
        let mut pod = serde_json::to_value(&pod).expect("json");
        // whatever its status says by now
        pod["metadata"].as_object_mut().expect("metadata").remove("resourceVersion");
        pod["spec"]["containers"][0]["resources"] = resources;
        let path = "/api/v1/namespaces/d/pods/p/resize";
        self.client.call::<_, Value>(http::Method::PUT, path, Some(&pod)).await.expect("resized");
    }

    fn limits(&self) -> LinuxContainerResources {
        let resources = self.fake.container("web").expect("a container").status.resources;
        resources.and_then(|resources| resources.linux).expect("resources")
    }
}

fn amounts(cpu: &str, memory: &str) -> Value {
    json!({"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": "1", "memory": memory}})
}

fn reason(pod: &Pod, kind: &str) -> Option<String> {
    let list = pod.status.as_ref()?.conditions.as_ref()?;
    list.iter().find(|c| c.type_ == kind).map(|c| c.reason.clone().unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_container_gets_what_the_pod_asks_for_now() {
    let mut cluster = Cluster::start().await;
    let mut container = web();
    container["resources"] = amounts("100m", "64Mi");
    cluster.create::<Pod>("d", pod(json!({"containers": [container]}))).await;
    let p = cluster.until_pod("running", |p| running(p, "web")).await;
    let given = status_of(&p, "web").allocated_resources.expect("allocated");
    assert_eq!(given["memory"].0, "64Mi");
    cluster.resize(amounts("200m", "96Mi")).await;
    let told = |p: &Pod, memory: &str| {
        let status = status_of(p, "web");
        let has = status.resources.and_then(|r| r.limits).and_then(|l| l.get("memory").cloned());
        has.is_some_and(|has| has.0 == memory) && reason(p, "PodResizeInProgress").is_none()
    };
    let p = cluster.until_pod("resized", |p| told(p, "96Mi")).await;
    assert_eq!(status_of(&p, "web").restart_count, 0);
    assert_eq!((cluster.limits().memory_limit_in_bytes, cluster.limits().cpu_shares), (96 << 20, 204));
    let given = "{\"containers\":[{\"name\":\"web\",\"resources\":{\"limits\":{\"cpu\":\"1\",\"memory\":\"96Mi\"},\
                 \"requests\":{\"cpu\":\"200m\",\"memory\":\"96Mi\"}}}],\"generation\":2}";
    cluster.until_event("ResizeStarted", &format!("Pod resize started: {given}")).await;
    cluster.until_event("ResizeCompleted", &format!("Pod resize completed: {given}")).await;
    // more than the node has: it stays as it is, and says so
    cluster
        .resize(
            json!({"requests": {"cpu": "5k", "memory": "96Mi"}, "limits": {"cpu": "6k", "memory": "96Mi"}}),
        )
        .await;
    let infeasible = |p: &Pod| reason(p, "PodResizePending").as_deref() == Some("Infeasible");
    cluster.until_pod("infeasible", infeasible).await;
    cluster.until_event("ResizeInfeasible", "Pod resize Infeasible: {\"containers\":[").await;
    assert_eq!(cluster.limits().cpu_shares, 204);
    // also for a kubelet that did not see the pod begin
    cluster.stop_kubelet().await;
    cluster.start_kubelet().await;
    cluster.until_pod("still infeasible", infeasible).await;
    assert_eq!(cluster.limits().cpu_shares, 204);
    cluster.resize(amounts("300m", "96Mi")).await;
    cluster.until_pod("resized", |p| reason(p, "PodResizePending").is_none() && told(p, "96Mi")).await;
    assert_eq!(cluster.limits().cpu_shares, 307);
    cluster.delete(None).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_size_that_is_not_there_takes_no_room_from_others() {
    let mut cluster = Cluster::start().await;
    let mut container = web();
    container["resources"] = amounts("100m", "64Mi");
    cluster.create::<Pod>("d", pod(json!({"containers": [container]}))).await;
    cluster.until_pod("running", |p| running(p, "web")).await;
    cluster
        .resize(
            json!({"requests": {"cpu": "5k", "memory": "64Mi"}, "limits": {"cpu": "6k", "memory": "64Mi"}}),
        )
        .await;
    let infeasible = |p: &Pod| reason(p, "PodResizePending").as_deref() == Some("Infeasible");
    cluster.until_pod("infeasible", infeasible).await;
    // also for a kubelet that finds it so
    for name in ["now", "later"] {
        let mut other = pod(json!({"containers": [{"name": name, "image": "web:1",
            "resources": {"requests": {"cpu": "10m"}}}]}));
        other["metadata"]["name"] = json!(name);
        cluster.create::<Pod>("d", other).await;
        let settled = |list: &[Arc<Pod>]| {
            let found = list.iter().find(|p| p.metadata.name.as_deref() == Some(name))?;
            (!matches!(phase(found), "" | "Pending")).then(|| found.clone())
        };
        let found = cluster.until::<Pod, _>("settled", settled).await;
        assert_eq!(phase(&found), "Running", "{:?}", found.status);
        cluster.stop_kubelet().await;
        cluster.start_kubelet().await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_runtime_could_not_do_is_tried_again() {
    let cluster = Cluster::start().await;
    let mut container = web();
    container["resources"] = amounts("100m", "64Mi");
    cluster.create::<Pod>("d", pod(json!({"containers": [container]}))).await;
    cluster.until_pod("running", |p| running(p, "web")).await;
    cluster.fake.books.lock().fixed = true;
    cluster.resize(amounts("200m", "64Mi")).await;
    let failed = |p: &Pod| reason(p, "PodResizeInProgress").as_deref() == Some("Error");
    cluster.until_pod("not resized", failed).await;
    cluster.until_event("ResizeError", "device or resource busy").await;
    cluster.fake.books.lock().fixed = false;
    cluster.until_pod("resized", |p| reason(p, "PodResizeInProgress").is_none()).await;
    assert_eq!(cluster.limits().cpu_shares, 204);
    cluster.delete(Some(0)).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_must_restart_for_it_does() {
    let cluster = Cluster::start().await;
    let mut container = web();
    container["resources"] = amounts("100m", "64Mi");
    container["resizePolicy"] = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
    cluster.create::<Pod>("d", pod(json!({"containers": [container]}))).await;
    cluster.until_pod("running", |p| running(p, "web")).await;
    cluster.resize(amounts("100m", "96Mi")).await;
    let p = cluster.until_pod("again", |p| running(p, "web") && status_of(p, "web").restart_count == 1).await;
    assert_eq!(cluster.limits().memory_limit_in_bytes, 96 << 20);
    cluster.until_event("Killing", "Container web resize requires restart").await;
    drop(p);
    cluster.delete(None).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_node_cannot_give_is_refused_in_words() {
    let cluster = Cluster::start().await;
    let mut container = web();
    container["securityContext"] = json!({"appArmorProfile": {"type": "RuntimeDefault"}});
    cluster.create::<Pod>("d", pod(json!({"containers": [container]}))).await;
    if kubelet::admission::has_apparmor() {
        cluster.until_pod("running", |p| running(p, "web")).await;
    } else {
        let p = cluster.until_pod("refused", |p| phase(p) == "Failed").await;
        let status = p.status.clone().unwrap();
        assert_eq!(status.reason.as_deref(), Some("AppArmor"));
        let text = "Pod was rejected: Cannot enforce AppArmor: AppArmor is not enabled on the host";
        assert_eq!(status.message.as_deref(), Some(text));
    }
    cluster.delete(Some(0)).await;
    cluster.until_gone().await;
    cluster.create::<Pod>("d", pod(json!({"hostUsers": false, "containers": [web()]}))).await;
    let why = "can't set `spec.hostUsers: false`, runtime does not support user namespaces";
    cluster.until_event("FailedCreatePodSandBox", why).await;
    cluster.delete(Some(0)).await;
    cluster.until_gone().await;
    let class = json!({"metadata": {"name": "small"}, "handler": "crun"});
    cluster.create::<k8s_openapi::api::node::v1::RuntimeClass>("", class).await;
    let mut container = web();
    container["securityContext"] =
        json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "a/b.json"}});
    cluster.create::<Pod>("d", pod(json!({"runtimeClassName": "small", "containers": [container]}))).await;
    cluster.until_pod("running", |p| running(p, "web")).await;
    let config = cluster.fake.container("web").unwrap().config;
    let profile = config.linux.unwrap().security_context.unwrap().seccomp.unwrap().localhost_ref;
    assert_eq!(std::path::PathBuf::from(profile), cluster.api.folder.path().join("kubelet/seccomp/a/b.json"));
    assert_eq!(cluster.fake.books.lock().handlers, ["crun"]);
    cluster.delete(None).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resources_of_the_pod_as_a_whole_are_resized() {
    let cluster = Cluster::start().await;
    let whole = |cpu: &str| json!({"requests": {"cpu": cpu, "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "64Mi"}});
    cluster.create::<Pod>("d", pod(json!({"resources": whole("100m"), "containers": [web()]}))).await;
    let p = cluster.until_pod("running", |p| running(p, "web")).await;
    let has = |p: &Pod| p.status.as_ref()?.allocated_resources.as_ref()?.get("cpu").map(|cpu| cpu.0.clone());
    assert_eq!(has(&p).as_deref(), Some("100m"));
    let mut wanted = serde_json::to_value(&*p).expect("json");
    wanted["spec"]["resources"] = whole("200m");
    wanted["metadata"].as_object_mut().expect("metadata").remove("resourceVersion");
    let path = "/api/v1/namespaces/d/pods/p/resize";
    cluster.client.call::<_, Value>(http::Method::PUT, path, Some(&wanted)).await.expect("resized");
    let p = cluster.until_pod("resized", |p| has(p).as_deref() == Some("200m")).await;
    let limits = p.status.as_ref().and_then(|status| status.resources.clone()).and_then(|has| has.limits);
    assert_eq!(limits.expect("limits")["memory"].0, "64Mi");
    cluster.until_event("ResizeCompleted", "\"generation\":2").await;
    wanted["spec"]["resources"] =
        json!({"requests": {"cpu": "5k", "memory": "64Mi"}, "limits": {"cpu": "6k", "memory": "64Mi"}});
    cluster.client.call::<_, Value>(http::Method::PUT, path, Some(&wanted)).await.expect("resized");
    let p = cluster.until_pod("infeasible", |p| reason(p, "PodResizePending").is_some()).await;
    assert_eq!(
        (reason(&p, "PodResizePending").as_deref(), has(&p).as_deref()),
        (Some("Infeasible"), Some("200m"))
    );
    cluster.delete(None).await;
    cluster.until_gone().await;
    cluster.stop().await;
}
