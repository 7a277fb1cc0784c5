//! The scheduler against the real API server.
mod binding;
mod cel;
mod extender;
mod gang;

use std::sync::Arc;
use std::time::Instant;

use client::{Client, DeleteOptions, Kind};
use k8s_openapi::api::core::v1::{
    Event, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ServiceAccount,
};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::api::storage::v1::StorageClass;
use scheduler::Config;
use serde_json::{Value, json};
use testserver::{TestServer, object};
use tokio_util::sync::CancellationToken;

struct Cluster {
    client: Client,
    stop: CancellationToken,
    run: tokio::task::JoinHandle<Result<(), scheduler::Error>>,
    api: TestServer,
}

fn node(name: &str, cpu: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}, "status": {"allocatable": {"cpu": cpu, "memory": "32Gi", "pods": "1000"}}})
}

fn pod(name: &str, cpu: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i:1", "resources": {"requests": {"cpu": cpu, "memory": "500Mi"}}}],
        // No node lifecycle runs here that would take the taint of a new node away.
        "tolerations": [{"operator": "Exists", "key": "node.kubernetes.io/not-ready"}]}})
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

impl Cluster {
    async fn start() -> Self {
        Self::start_with(Config { seed: Some(1), ..Config::default() }).await
    }

    async fn start_with(config: Config) -> Self {
        Self::start_on(apiserver::Options::default(), config).await
    }

    async fn start_on(options: apiserver::Options, config: Config) -> Self {
        let api = TestServer::start(options).await;
        let client = api.client.clone();
        let stop = CancellationToken::new();
        let run = tokio::spawn(scheduler::run(client.clone(), config, stop.clone()));
        let this = Self { client, stop, run, api };
        this.create::<Namespace>("", json!({"metadata": {"name": "d"}})).await;
        this.create::<ServiceAccount>("d", json!({"metadata": {"name": "default"}})).await;
        this
    }

    async fn create<K: Kind>(&self, ns: &str, value: Value) -> K {
        self.client.create(ns, &object::<K>(value)).await.expect("create")
    }

    async fn node(&self, value: Value) {
        self.create::<Node>("", value.clone()).await;
        let name = value["metadata"]["name"].as_str().expect("name");
        let status = client::Patch::Merge(json!({"status": value["status"]}));
        self.client.patch_status::<Node>("", name, &status).await.expect("status");
    }

    async fn until<K: Kind>(&self, what: &str, done: impl Fn(&[Arc<K>]) -> bool) -> Vec<Arc<K>> {
        testserver::until(&self.client, what, |all: &[Arc<K>]| done(all).then(|| all.to_vec())).await
    }

    async fn stop(self) {
        self.stop.cancel();
        self.run.await.expect("no panic").expect("no error");
        self.api.server.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_fits_nowhere_says_why_and_is_woken_by_what_helps() {
    let cluster = Cluster::start().await;
    cluster.node(node("small", "2")).await;
    cluster.create::<Pod>("d", pod("first", "1500m")).await;
    cluster.until::<Pod>("first is bound", |l| l.iter().any(|p| node_of(p) == Some("small"))).await;
    cluster.create::<Pod>("d", pod("second", "1")).await;
    let reason = |p: &Pod| {
        let list = p.status.as_ref()?.conditions.as_ref()?;
        let c = list.iter().find(|c| c.type_ == "PodScheduled" && c.status == "False")?;
        Some((c.reason.clone()?, c.message.clone()?))
    };
    let pods =
        cluster.until::<Pod>("second is unschedulable", |l| l.iter().any(|p| reason(p).is_some())).await;
    let said = pods.iter().find_map(|p| reason(p)).expect("reason");
    let message = "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: 0/1 nodes are \
        available: 1 No preemption victims found for incoming pod.";
    assert_eq!(said, ("Unschedulable".to_owned(), message.to_owned()));
    let options = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
    cluster.client.delete::<Pod>("d", "first", &options).await.expect("delete");
    cluster.until::<Pod>("second is bound", |l| l.len() == 1 && node_of(&l[0]) == Some("small")).await;
    let has = |l: &[Arc<Event>], reason: &str, message: &str| {
        l.iter().any(|e| e.reason.as_deref() == Some(reason) && e.message.as_deref() == Some(message))
    };
    cluster
        .until::<Event>("events", |l| {
            has(l, "FailedScheduling", message)
                && has(l, "Scheduled", "Successfully assigned d/second to small")
        })
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_without_nodes_wait_for_one() {
    let cluster = Cluster::start().await;
    cluster.create::<Pod>("d", pod("p", "1")).await;
    let said = |p: &Pod| {
        serde_json::to_string(&p.status).is_ok_and(|t| t.contains("no nodes available to schedule pods"))
    };
    cluster.until::<Pod>("said so", |l| l.iter().any(|p| said(p))).await;
    cluster.node(node("late", "2")).await;
    cluster.until::<Pod>("bound", |l| l.iter().all(|p| node_of(p) == Some("late"))).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_more_important_pod_takes_the_place_of_a_less_important_one() {
    let cluster = Cluster::start().await;
    cluster.node(node("n", "2")).await;
    for (name, value) in [("low", 1), ("high", 1000)] {
        cluster.create::<PriorityClass>("", json!({"metadata": {"name": name}, "value": value})).await;
    }
    let with = |name: &str, class: &str| {
        let mut value = pod(name, "1500m");
        value["spec"]["priorityClassName"] = json!(class);
        value["spec"]["terminationGracePeriodSeconds"] = json!(30);
        value
    };
    cluster.create::<Pod>("d", with("victim", "low")).await;
    cluster.until::<Pod>("victim is bound", |l| l.iter().any(|p| node_of(p) == Some("n"))).await;
    cluster.create::<Pod>("d", with("vip", "high")).await;
    let status = |p: &Pod| serde_json::to_value(&p.status).expect("json");
    let named =
        |l: &[Arc<Pod>], name: &str| l.iter().find(|p| p.metadata.name.as_deref() == Some(name)).cloned();
    let pods = cluster
        .until::<Pod>("the victim is asked to go and the node promised", |l| {
            named(l, "victim").is_some_and(|p| p.metadata.deletion_timestamp.is_some())
                && named(l, "vip").is_some_and(|p| status(&p)["nominatedNodeName"] == "n")
        })
        .await;
    let victim = named(&pods, "victim").expect("victim");
    assert_eq!(victim.metadata.deletion_grace_period_seconds, Some(30), "gracefully");
    let conditions = status(&victim)["conditions"].as_array().cloned().unwrap_or_default();
    let target = conditions.iter().find(|c| c["type"] == "DisruptionTarget").expect("condition");
    assert_eq!(
        (&target["reason"], &target["message"]),
        (
            &json!("PreemptionByScheduler"),
            &json!("default-scheduler: preempting to accommodate a higher priority pod")
        )
    );
    // No kubelet runs here that would end it.
    let now = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
    cluster.client.delete::<Pod>("d", "victim", &now).await.expect("delete");
    let pods = cluster
        .until::<Pod>("vip is bound", |l| named(l, "vip").is_some_and(|p| node_of(&p) == Some("n")))
        .await;
    let uid = named(&pods, "vip").and_then(|p| p.metadata.uid.clone()).expect("uid");
    let message = format!("Preempted by pod {uid} on node n");
    cluster
        .until::<Event>("events", |l| {
            let said = |reason: &str, text: &str| {
                l.iter().any(|e| e.reason.as_deref() == Some(reason) && e.message.as_deref() == Some(text))
            };
            said("Preempted", &message)
                && said("FailedScheduling", "0/1 nodes are available: 1 Insufficient cpu.")
        })
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_needs_another_is_woken_by_it() {
    let cluster = Cluster::start().await;
    cluster.node(node("n", "2")).await;
    let mut follower = pod("follower", "100m");
    follower["spec"]["affinity"] = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "leader"}}}]}});
    cluster.create::<Pod>("d", follower).await;
    let text = "0/1 nodes are available: 1 node(s) didn't match pod affinity rules. no new claims to deallocate, \
        preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
    cluster.until::<Event>("it says why", |l| l.iter().any(|e| e.message.as_deref() == Some(text))).await;
    let mut leader = pod("leader", "100m");
    leader["metadata"]["labels"] = json!({"app": "leader"});
    cluster.create::<Pod>("d", leader).await;
    cluster
        .until::<Pod>("both are bound", |l| l.len() == 2 && l.iter().all(|p| node_of(p) == Some("n")))
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gated_pod_waits_until_its_gates_are_gone() {
    let cluster = Cluster::start().await;
    cluster.node(node("n", "2")).await;
    let mut gated = pod("gated", "100m");
    gated["spec"]["schedulingGates"] = json!([{"name": "example.com/wait"}]);
    cluster.create::<Pod>("d", gated).await;
    cluster.create::<Pod>("d", pod("free", "100m")).await;
    cluster.until::<Pod>("free is bound", |l| l.iter().any(|p| node_of(p) == Some("n"))).await;
    let gone = client::Patch::Merge(json!({"spec": {"schedulingGates": null}}));
    let waiting: Pod = cluster.client.get("d", "gated").await.expect("get");
    assert_eq!(node_of(&waiting), None);
    cluster.client.patch::<Pod>("d", "gated", &gone).await.expect("patch");
    cluster.until::<Pod>("gated is bound", |l| l.iter().all(|p| node_of(p) == Some("n"))).await;
    cluster.stop().await;
}

/// The test stands for the driver's provisioner.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_bound_when_the_volume_for_its_node_is_there() {
    let cluster = Cluster::start().await;
    cluster.node(node("n", "2")).await;
    let class = json!({"metadata": {"name": "late"}, "provisioner": "csi.example.com", "volumeBindingMode": "WaitForFirstConsumer"});
    cluster.create::<StorageClass>("", class).await;
    let mut with = pod("p", "100m");
    with["spec"]["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]);
    cluster.create::<Pod>("d", with).await;
    let text = "0/1 nodes are available: persistentvolumeclaim \"data\" not found. no new claims to deallocate, preemption: \
        0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
    cluster.until::<Event>("it says why", |l| l.iter().any(|e| e.message.as_deref() == Some(text))).await;
    let claim = json!({"metadata": {"name": "data"}, "spec": {"storageClassName": "late", "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}});
    let claim = cluster.create::<PersistentVolumeClaim>("d", claim).await;
    let chosen = |c: &PersistentVolumeClaim| {
        c.metadata
            .annotations
            .as_ref()
            .is_some_and(|a| a.get("volume.kubernetes.io/selected-node").is_some_and(|n| n == "n"))
    };
    cluster.until::<PersistentVolumeClaim>("the node is named", |l| l.iter().any(|c| chosen(c))).await;
    let volume = json!({"metadata": {"name": "v"}, "spec": {"storageClassName": "late", "accessModes": ["ReadWriteOnce"],
        "capacity": {"storage": "1Gi"}, "csi": {"driver": "csi.example.com", "volumeHandle": "h"},
        "claimRef": {"namespace": "d", "name": "data", "uid": claim.metadata.uid}}});
    cluster.create::<PersistentVolume>("", volume).await;
    let waiting: Pod = cluster.client.get("d", "p").await.expect("get");
    assert_eq!(node_of(&waiting), None, "the claim is not bound yet");
    let bound = json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}}, "spec": {"volumeName": "v"}});
    cluster
        .client
        .patch::<PersistentVolumeClaim>("d", "data", &client::Patch::Merge(bound))
        .await
        .expect("patch");
    cluster.until::<Pod>("bound", |l| l.iter().all(|p| node_of(p) == Some("n"))).await;
    cluster.stop().await;
}

fn with_extender(url: &str, rest: &str) -> Config {
    let text = format!(
        "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\nextenders:\n- urlPrefix: {url}\n  \
         {rest}\n"
    );
    scheduler::configuration::read(text.as_bytes()).expect("configuration")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_extender_filters_scores_and_binds() {
    let program = extender::Program::start(|verb, question| match verb {
        // Everything but `a` is fine, and `b` is the best.
        "filter" => json!({"NodeNames": question["NodeNames"].as_array().into_iter().flatten().filter(|n| *n != "a").collect::<Vec<_>>(),
            "FailedNodes": {"a": "a is not to my taste"}}),
        "prioritize" => json!([{"Host": "b", "Score": 10}, {"Host": "c", "Score": 1}]),
        _ => json!({"Error": "who would have thought"}),
    })
    .await;
    let rest = "filterVerb: filter\n  prioritizeVerb: prioritize\n  weight: 100\n  nodeCacheCapable: true";
    let cluster = Cluster::start_with(with_extender(&program.url, rest)).await;
    for name in ["a", "b", "c"] {
        cluster.node(node(name, "2")).await;
    }
    cluster.create::<Pod>("d", pod("p", "1")).await;
    cluster.until::<Pod>("on the best node", |l| l.iter().all(|p| node_of(p) == Some("b"))).await;
    cluster.create::<Pod>("d", pod("q", "1500m")).await;
    cluster.until::<Pod>("on the next one", |l| l.iter().any(|p| node_of(p) == Some("c"))).await;
    cluster.create::<Pod>("d", pod("r", "1500m")).await;
    let text = "0/3 nodes are available: 1 a is not to my taste, 2 Insufficient cpu. no new claims to deallocate, \
        preemption: 0/3 nodes are available: 3 No preemption victims found for incoming pod.";
    cluster.until::<Event>("it says why", |l| l.iter().any(|e| e.message.as_deref() == Some(text))).await;
    cluster.stop().await;
    assert!(program.asked().iter().all(|(verb, _)| verb != "bind"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_extender_binds_the_pods_that_are_its_business() {
    let program = extender::Program::start(|_, _| json!({"Error": ""})).await;
    let rest = "bindVerb: bind\n  managedResources: [{name: example.com/foo, ignoredByScheduler: true}]";
    let cluster = Cluster::start_with(with_extender(&program.url, rest)).await;
    cluster.node(node("n", "2")).await;
    let mut theirs = pod("theirs", "100m");
    theirs["spec"]["containers"][0]["resources"] =
        json!({"requests": {"example.com/foo": "1"}, "limits": {"example.com/foo": "1"}});
    cluster.create::<Pod>("d", theirs).await;
    cluster.create::<Pod>("d", pod("ours", "100m")).await;
    cluster
        .until::<Event>("bound by the extender", |l| {
            l.iter().any(|e| e.message.as_deref() == Some("Successfully assigned d/theirs to n"))
        })
        .await;
    cluster.until::<Pod>("bound by us", |l| l.iter().filter(|p| node_of(p) == Some("n")).count() == 1).await;
    let asked = program.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(
        (&*asked[0].0, &asked[0].1["PodName"], &asked[0].1["Node"]),
        ("bind", &json!("theirs"), &json!("n"))
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_extender_that_fails_holds_pods_back_unless_it_is_ignorable() {
    let nobody = "http://127.0.0.1:1/x";
    for (ignorable, bound) in [(true, true), (false, false)] {
        let rest = format!("filterVerb: filter\n  ignorable: {ignorable}");
        let cluster = Cluster::start_with(with_extender(nobody, &rest)).await;
        cluster.node(node("n", "2")).await;
        cluster.create::<Pod>("d", pod("p", "1")).await;
        if bound {
            cluster.until::<Pod>("bound", |l| l.iter().all(|p| node_of(p) == Some("n"))).await;
        } else {
            let said = |e: &Event| {
                e.message
                    .as_deref()
                    .is_some_and(|m| m.starts_with("Post \"http://127.0.0.1:1/x/filter\": dial tcp"))
            };
            cluster.until::<Event>("it says why", |l| l.iter().any(|e| said(e))).await;
        }
        cluster.stop().await;
    }
}

/// Many pods on many nodes: every one bound, no node over-committed. Prints the rate, API and store included.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_is_bound_without_over_commitment() {
    const PODS: usize = 500;
    let cluster = Cluster::start().await;
    for n in 0..50 {
        cluster.node(node(&format!("n{n}"), "1")).await;
    }
    let start = Instant::now();
    let creates = (0..PODS).map(|n| {
        let client = cluster.client.clone();
        tokio::spawn(async move {
            client.create::<Pod>("d", &object(pod(&format!("p{n}"), "100m"))).await.map(drop)
        })
    });
    for create in creates.collect::<Vec<_>>() {
        create.await.expect("task").expect("create");
    }
    let pods = cluster
        .until::<Pod>("all bound", |l| l.len() == PODS && l.iter().all(|p| node_of(p).is_some()))
        .await;
    println!("{:.0} pods/s, created and bound", PODS as f64 / start.elapsed().as_secs_f64());
    let mut per_node = std::collections::HashMap::new();
    for pod in &pods {
        *per_node.entry(node_of(pod).expect("bound").to_owned()).or_insert(0) += 1;
    }
    assert!(per_node.len() == 50 && per_node.values().all(|n| *n == 10), "{per_node:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_gets_its_devices_before_the_pod_is_bound() {
    let config = Config { selectors: Some(Arc::new(cel::Cel)), ..Config::default() };
    let cluster = Cluster::start_with(config).await;
    for name in ["a", "b"] {
        cluster.node(node(name, "2")).await;
    }
    let class = json!({"metadata": {"name": "gpu"}, "spec": {"selectors": [{"cel": {"expression": "device.driver == 'gpu.example.com'"}}]}});
    cluster.create::<DeviceClass>("", class).await;
    let claim = |name: &str| json!({"metadata": {"name": name}, "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu"}}]}}});
    let with = |name: &str, claim: &str| {
        let mut value = pod(name, "100m");
        value["spec"]["resourceClaims"] = json!([{"name": "gpu", "resourceClaimName": claim}]);
        value["spec"]["containers"][0]["resources"]["claims"] = json!([{"name": "gpu"}]);
        value
    };
    cluster.create::<Pod>("d", with("first", "one")).await;
    cluster.create::<ResourceClaim>("d", claim("one")).await;
    let text = "0/2 nodes are available: 2 cannot allocate all claims. still not schedulable, preemption: 0/2 nodes are \
        available: 2 Preemption is not helpful for scheduling.";
    cluster.until::<Event>("it says why", |l| l.iter().any(|e| e.message.as_deref() == Some(text))).await;
    let slice = json!({"metadata": {"name": "b-gpus"}, "spec": {"driver": "gpu.example.com", "nodeName": "b",
        "pool": {"name": "b", "generation": 1, "resourceSliceCount": 1}, "devices": [{"name": "gpu-0"}]}});
    cluster.create::<ResourceSlice>("", slice).await;
    let pods = cluster
        .until::<Pod>("bound where the device is", |l| l.iter().all(|p| node_of(p) == Some("b")))
        .await;
    let got: ResourceClaim = cluster.client.get("d", "one").await.expect("get");
    let status = serde_json::to_value(&got.status).expect("json");
    assert_eq!(status["allocation"]["devices"]["results"][0]["device"], "gpu-0");
    assert_eq!(status["reservedFor"][0]["uid"], json!(pods[0].metadata.uid));
    assert_eq!(
        got.metadata.finalizers.as_deref(),
        Some(&["resource.kubernetes.io/delete-protection".to_owned()][..])
    );
    // The device is taken until the first claim gives it back.
    cluster.create::<ResourceClaim>("d", claim("two")).await;
    cluster.create::<Pod>("d", with("second", "two")).await;
    cluster
        .until::<Event>("the second waits", |l| {
            l.iter().any(|e| {
                e.involved_object.name.as_deref() == Some("second") && e.message.as_deref() == Some(text)
            })
        })
        .await;
    let mut free = got;
    free.status = None;
    cluster.client.update_status("d", &free).await.expect("update");
    cluster
        .until::<Pod>("both are bound", |l| l.len() == 2 && l.iter().all(|p| node_of(p) == Some("b")))
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resource_that_no_plugin_offers_gets_devices_by_a_claim_that_is_made_for_the_pod() {
    let config = Config { selectors: Some(Arc::new(cel::Cel)), ..Config::default() };
    let cluster = Cluster::start_with(config).await;
    for name in ["a", "b"] {
        cluster.node(node(name, "2")).await;
    }
    let slice = json!({"metadata": {"name": "b-gpus"}, "spec": {"driver": "gpu.example.com", "nodeName": "b",
        "pool": {"name": "b", "generation": 1, "resourceSliceCount": 1}, "devices": [{"name": "gpu-0"}]}});
    cluster.create::<ResourceSlice>("", slice).await;
    let with = |name: &str| {
        let mut value = pod(name, "100m");
        value["spec"]["containers"][0]["resources"]["limits"] = json!({"example.com/gpu": "1"});
        value
    };
    cluster.create::<Pod>("d", with("first")).await;
    let says = |why: &str, claims: &str| {
        format!(
            "0/2 nodes are available: 2 {why}. {claims}, preemption: 0/2 nodes are available: 2 Preemption is not helpful for \
             scheduling."
        )
    };
    let text = says("Insufficient example.com/gpu", "no new claims to deallocate");
    cluster.until::<Event>("it says why", |l| l.iter().any(|e| e.message.as_deref() == Some(&text))).await;
    let class = json!({"metadata": {"name": "gpu"}, "spec": {"extendedResourceName": "example.com/gpu",
        "selectors": [{"cel": {"expression": "device.driver == 'gpu.example.com'"}}]}});
    cluster.create::<DeviceClass>("", class).await;
    let pods = cluster
        .until::<Pod>("bound where the device is", |l| l.iter().all(|p| node_of(p) == Some("b")))
        .await;
    let status = serde_json::to_value(&pods[0].status).expect("json");
    let status = &status["extendedResourceClaimStatus"];
    let mapping = json!([{"containerName": "c", "resourceName": "example.com/gpu", "requestName": "container-0-request-1"}]);
    assert_eq!(status["requestMappings"], mapping);
    let name = status["resourceClaimName"].as_str().expect("name");
    assert!(name.starts_with("first-extended-resources-"), "{name}");
    let claim: ResourceClaim = cluster.client.get("d", name).await.expect("get");
    let got = serde_json::to_value(&claim).expect("json");
    assert_eq!(got["status"]["allocation"]["devices"]["results"][0]["device"], "gpu-0");
    assert_eq!(got["status"]["reservedFor"][0]["uid"], json!(pods[0].metadata.uid));
    assert_eq!(got["metadata"]["annotations"]["resource.kubernetes.io/extended-resource-claim"], "true");
    let owner = &got["metadata"]["ownerReferences"][0];
    assert_eq!((&owner["uid"], &owner["controller"]), (&json!(pods[0].metadata.uid), &json!(true)));
    assert_eq!(got["spec"]["devices"]["requests"][0]["exactly"]["deviceClassName"], "gpu");
    // The device is taken until that claim gives it back.
    cluster.create::<Pod>("d", with("second")).await;
    let text = says("cannot allocate all claims", "still not schedulable");
    cluster
        .until::<Event>("the second waits", |l| l.iter().any(|e| e.message.as_deref() == Some(&text)))
        .await;
    let mut free = claim;
    free.status = None;
    cluster.client.update_status("d", &free).await.expect("update");
    cluster
        .until::<Pod>("both are bound", |l| l.len() == 2 && l.iter().all(|p| node_of(p) == Some("b")))
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_for_extended_resources_that_an_earlier_scheduler_left_is_made_anew() {
    let config = Config { selectors: Some(Arc::new(cel::Cel)), ..Config::default() };
    let cluster = Cluster::start_with(config).await;
    let slice = json!({"metadata": {"name": "b-gpus"}, "spec": {"driver": "gpu.example.com", "nodeName": "b",
        "pool": {"name": "b", "generation": 1, "resourceSliceCount": 1}, "devices": [{"name": "gpu-0"}]}});
    cluster.create::<ResourceSlice>("", slice).await;
    cluster.create::<DeviceClass>("", json!({"metadata": {"name": "gpu"}, "spec": {}})).await;
    let mut first = pod("first", "100m");
    first["spec"]["containers"][0]["resources"]["limits"] =
        json!({"deviceclass.resource.kubernetes.io/gpu": "1"});
    let first = cluster.create::<Pod>("d", first).await;
    let left = json!({"metadata": {"name": "left", "finalizers": ["resource.kubernetes.io/delete-protection"],
        "annotations": {"resource.kubernetes.io/extended-resource-claim": "true"},
        "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "first", "uid": first.metadata.uid, "controller": true}]},
        "spec": {"devices": {"requests": [{"name": "container-0-request-0", "exactly": {"deviceClassName": "gpu"}}]}}});
    cluster.create::<ResourceClaim>("d", left).await;
    cluster.node(node("b", "2")).await;
    cluster.until::<Pod>("bound", |l| l.iter().all(|p| node_of(p) == Some("b"))).await;
    let claims = cluster.until::<ResourceClaim>("one claim", |l| l.len() == 1).await;
    let name = claims[0].metadata.name.as_deref().expect("name");
    assert!(name.starts_with("first-extended-resources-"), "{name}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_spread_learns_of_a_domain_that_is_no_more() {
    let cluster = Cluster::start().await;
    let in_zone = |name: &str, zone: &str| {
        let mut value = node(name, "2");
        value["metadata"]["labels"]["zone"] = json!(zone);
        value
    };
    let mut closed = in_zone("c", "c");
    closed["spec"] = json!({"unschedulable": true});
    for node in [closed, in_zone("a", "a"), in_zone("b", "b")] {
        cluster.node(node).await;
    }
    let spread = |name: &str| {
        let mut value = pod(name, "100m");
        value["metadata"]["labels"] = json!({"app": "web"});
        value["spec"]["topologySpreadConstraints"] = json!([{"maxSkew": 1, "topologyKey": "zone",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]);
        value
    };
    let bound = |l: &[Arc<Pod>]| l.iter().filter(|p| node_of(p).is_some()).count();
    for (number, name) in [(1, "one"), (2, "two")] {
        cluster.create::<Pod>("d", spread(name)).await;
        cluster.until::<Pod>("bound", |l| bound(l) == number).await;
    }
    cluster.create::<Pod>("d", spread("three")).await;
    let says = |e: &Event| {
        e.message.as_deref().is_some_and(|m| m.contains("didn't match pod topology spread constraints"))
    };
    cluster.until::<Event>("the empty zone is in the way", |l| l.iter().any(|e| says(e))).await;
    let patch = client::Patch::Merge(json!({"metadata": {"labels": {"zone": "a"}}}));
    cluster.client.patch::<Node>("", "c", &patch).await.expect("patch");
    cluster.until::<Pod>("there is no such zone", |l| bound(l) == 3).await;
    cluster.stop().await;
}
