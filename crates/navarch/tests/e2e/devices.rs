//! Devices of a plugin: a vendor's program beside the kubelet, over its real sockets.

use std::convert::Infallible;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kubelet::devices::messages::*;
use kubelet::grpc::Plugin;
use parking_lot::Mutex;
use serde_json::{Value, json};
use testkit::{Cluster, eventually};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tonic::Status;
use tonic_prost::ProstCodec;

use crate::{cluster_with, describe, wait_ready};

const RESOURCE: &str = "example.com/dev";

/// What the plugin says in a file of its devices, rather than to the kubelet (CDI).
const DESCRIBED: &str = "cdiVersion: 0.7.0
kind: example.com/dev
containerEdits: {additionalGids: [4242]}
devices:
- name: extra
  containerEdits:
    env: [EXTRA=described]
    deviceNodes: [{path: /dev/extra, hostPath: /dev/zero, permissions: r, fileMode: 292}]
";

/// A plugin that prefers its last device; it wants to know of starts.
struct Vendor {
    tasks: Runtime,
    folder: PathBuf,
    info: PathBuf,
    devices: watch::Sender<Vec<Device>>,
    calls: Arc<Mutex<Vec<String>>>,
    serving: Option<tokio::task::JoinHandle<()>>,
}

fn device(id: &str, health: &str) -> Device {
    let topology = Some(TopologyInfo { nodes: vec![NumaNode { id: 0 }] });
    Device { id: id.to_owned(), health: health.to_owned(), topology }
}

impl Vendor {
    fn new(cluster: &Cluster, info: &Path) -> Vendor {
        let tasks =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let folder = cluster.data_dir().join("kubelet/device-plugins");
        let devices = watch::Sender::new(vec![device("d1", "Healthy"), device("d2", "Healthy")]);
        let vendor =
            Vendor { tasks, folder, info: info.to_owned(), devices, calls: Arc::default(), serving: None };
        vendor.wait_for_the_kubelet();
        vendor
    }

    /// A kubelet that starts removes all sockets beside its own before it makes that one: plugins wait for it.
    fn wait_for_the_kubelet(&self) {
        eventually("the kubelet listens", || UnixStream::connect(self.folder.join("kubelet.sock")));
    }

    fn at(&self) -> Plugin {
        let _inside = self.tasks.enter();
        Plugin::at(&self.folder.join("kubelet.sock")).unwrap()
    }

    /// Listens, then registers, as plugins do.
    fn register(&mut self) {
        self.stop();
        self.wait_for_the_kubelet();
        let socket = self.folder.join("vendor.sock");
        let _ = std::fs::remove_file(&socket);
        let _inside = self.tasks.enter();
        let listener = UnixListener::bind(&socket).unwrap();
        let (devices, calls, info) = (self.devices.clone(), self.calls.clone(), self.info.clone());
        self.serving = Some(self.tasks.spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (devices, calls, info) = (devices.clone(), calls.clone(), info.clone());
                let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
                    let answered = answer(request, devices.subscribe(), calls.clone(), info.clone());
                    async move { Ok::<_, Infallible>(answered.await) }
                });
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                connections.spawn(async move {
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        }));
        self.tell("v1beta1", RESOURCE).unwrap();
    }

    fn tell(&self, version: &str, resource: &str) -> Result<Empty, Status> {
        let request = RegisterRequest {
            version: version.to_owned(),
            endpoint: "vendor.sock".to_owned(),
            resource_name: resource.to_owned(),
            options: None,
        };
        self.tasks.block_on(self.at().call("/v1beta1.Registration/Register", request))
    }

    fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            // its connections end with it
            let _ = self.tasks.block_on(serving);
        }
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock())
    }
}

pub async fn unary<Q, A>(
    request: http::Request<Incoming>,
    answer: impl FnOnce(Q) -> A + Send + 'static,
) -> http::Response<tonic::body::Body>
where
    Q: prost::Message + Default + 'static,
    A: prost::Message + 'static,
{
    let mut answer = Some(answer);
    let service = tower::service_fn(move |request: tonic::Request<Q>| {
        let answered = answer.take().map(|answer| tonic::Response::new(answer(request.into_inner())));
        std::future::ready(answered.ok_or_else(|| Status::internal("twice")))
    });
    tonic::server::Grpc::new(ProstCodec::<A, Q>::default()).unary(service, request).await
}

async fn answer(
    request: http::Request<Incoming>,
    devices: watch::Receiver<Vec<Device>>,
    calls: Arc<Mutex<Vec<String>>>,
    info: PathBuf,
) -> http::Response<tonic::body::Body> {
    let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    let keep = move |what: String| calls.lock().push(what);
    match method.as_str() {
        "GetDevicePluginOptions" => {
            let options =
                DevicePluginOptions { pre_start_required: true, get_preferred_allocation_available: true };
            unary(request, move |_: Empty| options).await
        }
        "ListAndWatch" => {
            let lists = futures_util::stream::unfold((devices, true), |(mut devices, first)| async move {
                if !first {
                    devices.changed().await.ok()?;
                }
                let list = ListAndWatchResponse { devices: devices.borrow_and_update().clone() };
                Some((Ok::<_, Status>(list), (devices, false)))
            });
            let mut lists = Some(lists);
            let service = tower::service_fn(move |_: tonic::Request<Empty>| {
                let lists = lists.take().map(tonic::Response::new);
                std::future::ready(lists.ok_or_else(|| Status::internal("twice")))
            });
            let codec = ProstCodec::<ListAndWatchResponse, Empty>::default();
            tonic::server::Grpc::new(codec).server_streaming(service, request).await
        }
        "GetPreferredAllocation" => {
            unary(request, move |asked: PreferredAllocationRequest| {
                let asked = &asked.container_requests[0];
                keep(format!("prefer {} of {:?}", asked.allocation_size, asked.available_device_ids));
                let last = asked.available_device_ids.iter().rev().take(asked.allocation_size as usize);
                let device_ids = last.cloned().collect();
                let response = ContainerPreferredAllocationResponse { device_ids };
                PreferredAllocationResponse { container_responses: vec![response] }
            })
            .await
        }
        "Allocate" => {
            unary(request, move |asked: AllocateRequest| {
                let ids = asked.container_requests[0].devices_ids.clone();
                keep(format!("allocate {ids:?}"));
                let response = ContainerAllocateResponse {
                    envs: [("DEVICES".to_owned(), ids.join(",")), ("OWN".to_owned(), "no".to_owned())].into(),
                    mounts: vec![Mount {
                        container_path: "/vendor".to_owned(),
                        host_path: info.display().to_string(),
                        read_only: true,
                    }],
                    devices: vec![DeviceSpec {
                        container_path: "/dev/special".to_owned(),
                        host_path: "/dev/full".to_owned(),
                        permissions: "rw".to_owned(),
                    }],
                    cdi_devices: vec![CdiDevice { name: "example.com/dev=extra".to_owned() }],
                    ..Default::default()
                };
                AllocateResponse { container_responses: vec![response] }
            })
            .await
        }
        "PreStartContainer" => {
            unary(request, move |asked: PreStartContainerRequest| {
                keep(format!("start {:?}", asked.devices_ids));
                Empty {}
            })
            .await
        }
        _ => unary(request, |_: Empty| Empty {}).await,
    }
}

fn pod(name: &str, more: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  terminationGracePeriodSeconds: 5
{more}
  initContainers:
  - name: first
    image: busybox:test
    command: [sh, -c, 'echo $DEVICES']
    resources: {{limits: {{example.com/dev: 1}}}}
  containers:
  - name: main
    image: busybox:test
    command: [sh, -c, 'trap \"exit 3\" TERM; while true; do sleep 0.1; done']
    env: [{{name: OWN, value: 'yes'}}]
    resources: {{limits: {{example.com/dev: 1}}}}
---
"
    )
}

/// Waits until the node has `capacity` devices, and gives `allocatable` of them to pods.
#[track_caller]
fn wait_for(cluster: &Cluster, capacity: &str, allocatable: &str) {
    eventually(&format!("the node has {capacity} devices, {allocatable} of them healthy"), || {
        let status = cluster.get("node node-1").map_err(|error| error.to_string())?["status"].take();
        let found = (&status["capacity"][RESOURCE], &status["allocatable"][RESOURCE]);
        if found == (&capacity.into(), &allocatable.into()) { Ok(()) } else { Err(format!("{found:?}")) }
    });
}

fn device_of(cluster: &Cluster, pod: &str) -> String {
    let text = cluster.kubectl_args(&["exec", pod, "-c", "main", "--", "sh", "-c", "echo $DEVICES"]).unwrap();
    text.trim().to_owned()
}

#[test]
fn pods_get_the_devices_of_a_plugin_and_keep_them() {
    let described = tempfile::tempdir().unwrap();
    std::fs::write(described.path().join("vendor.yaml"), DESCRIBED).unwrap();
    let mut cluster = cluster_with(vec!["--cdi-spec-dir".to_owned(), described.path().display().to_string()]);
    let info = tempfile::tempdir().unwrap();
    std::fs::write(info.path().join("library"), "the vendor's\n").unwrap();
    let mut vendor = Vendor::new(&cluster, info.path());
    for (version, resource, why) in [
        (
            "v1alpha",
            RESOURCE,
            "requested API version \"v1alpha\" is not supported by kubelet. Supported version is [\"v1beta1\"]",
        ),
        ("v1beta1", "cpu", "the ResourceName \"cpu\" is invalid"),
    ] {
        assert_eq!(vendor.tell(version, resource).unwrap_err().message(), why);
    }
    vendor.register();
    wait_for(&cluster, "2", "2");

    cluster.apply(&pod("one", "")).unwrap();
    wait_ready(&cluster, "app=one", 1);
    // the plugin was asked which one, and what ends before others begin leaves them its device
    let calls = vendor.calls();
    let expected = [
        "prefer 1 of [\"d1\", \"d2\"]",
        "allocate [\"d2\"]",
        "allocate [\"d2\"]",
        "start [\"d2\"]",
        "start [\"d2\"]",
    ];
    assert_eq!(calls, expected);
    assert_eq!(cluster.kubectl("logs one -c first").unwrap(), "d2\n");
    let script = "echo $DEVICES $OWN; cat /vendor/library; touch /vendor/x 2>/dev/null || echo readonly; \
                  stat -c '%t:%T' /dev/special; echo x 2>/dev/null >/dev/special || echo full";
    let seen = cluster.kubectl_args(&["exec", "one", "-c", "main", "--", "sh", "-c", script]).unwrap();
    assert_eq!(seen, "d2 yes\nthe vendor's\nreadonly\n1:7\nfull\n");

    let script = "echo $EXTRA; stat -c '%t:%T %a' /dev/extra; head -c 3 /dev/extra | wc -c; id -G";
    let seen = cluster.kubectl_args(&["exec", "one", "-c", "main", "--", "sh", "-c", script]).unwrap();
    assert_eq!(seen, "described\n1:5 444\n3\n0 4242\n");

    cluster.apply(&pod("two", "")).unwrap();
    wait_ready(&cluster, "app=two", 1);
    assert_eq!(device_of(&cluster, "two"), "d1");
    // there is no third: the scheduler knows, and whoever goes around it is refused by the kubelet
    cluster.apply(&format!("{}{}", pod("three", ""), pod("forced", "  nodeName: node-1"))).unwrap();
    eventually("a pod waits for a device and another is refused", || {
        let status = |name: &str| -> Result<Value, String> {
            Ok(cluster.get(&format!("pod {name}")).map_err(|error| error.to_string())?["status"].take())
        };
        let (three, forced) = (status("three")?, status("forced")?);
        let told = three["conditions"][0]["message"].as_str().unwrap_or_default();
        let waits = told.contains("Insufficient example.com/dev");
        let why = "Pod was rejected: Allocate failed due to requested number of devices unavailable for example.com/dev. \
                   Requested: 1, Available: 0, which is unexpected";
        let refused = forced["phase"] == "Failed"
            && forced["reason"] == "UnexpectedAdmissionError"
            && forced["message"] == why;
        if waits && refused { Ok(()) } else { Err(format!("{three}\n{forced}\n{}", describe(&cluster))) }
    });
    // monitoring sees who has what
    let resources = {
        let _inside = vendor.tasks.enter();
        Plugin::at(&cluster.data_dir().join("kubelet/pod-resources/kubelet.sock")).unwrap()
    };
    let list = "/v1.PodResourcesLister/List";
    let all: ListPodResourcesResponse = vendor.tasks.block_on(resources.call(list, Empty {})).unwrap();
    let mut found: Vec<(String, String)> = Vec::new();
    for pod in all.pod_resources {
        for devices in pod.containers.into_iter().flat_map(|container| container.devices) {
            assert_eq!(
                (devices.resource_name.as_str(), devices.topology.unwrap().nodes[0].id),
                (RESOURCE, 0)
            );
            found.push((pod.name.clone(), devices.device_ids.join(",")));
        }
    }
    found.sort();
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(found, [pair("one", "d2"), pair("two", "d1")]);
    let get = |name: &str| -> Result<GetPodResourcesResponse, Status> {
        let asked = GetPodResourcesRequest { pod_name: name.to_owned(), pod_namespace: "default".to_owned() };
        vendor.tasks.block_on(resources.call("/v1.PodResourcesLister/Get", asked))
    };
    assert_eq!(get("one").unwrap().pod_resources.unwrap().containers[0].devices[0].device_ids, ["d2"]);
    assert_eq!(get("nobody").unwrap_err().message(), "pod nobody in namespace default not found");
    let method = "/v1.PodResourcesLister/GetAllocatableResources";
    let all: AllocatableResourcesResponse = vendor.tasks.block_on(resources.call(method, Empty {})).unwrap();
    assert_eq!(all.devices.len(), 2);

    // a broken device is nobody's any more, a repaired one is given again
    vendor.devices.send_replace(vec![device("d1", "Unhealthy"), device("d2", "Healthy")]);
    wait_for(&cluster, "2", "1");
    let health = json!([{"name": RESOURCE, "resources": [{"health": "Unhealthy", "resourceID": "d1"}]}]);
    eventually("the pod's status says how its device is", || {
        let pod = cluster.get("pod two").map_err(|error| error.to_string())?;
        let told = &pod["status"]["containerStatuses"][0]["allocatedResourcesStatus"];
        if *told == health { Ok(()) } else { Err(told.to_string()) }
    });
    cluster.kubectl("delete pod two forced").unwrap();
    vendor.devices.send_replace(vec![device("d1", "Healthy"), device("d2", "Healthy")]);
    wait_for(&cluster, "2", "2");
    wait_ready(&cluster, "app=three", 1);
    assert_eq!(device_of(&cluster, "three"), "d1");

    // a restart of the kubelet: nothing is for new pods until the plugin is back, and who has something keeps it
    vendor.calls();
    cluster.kill_server().unwrap();
    cluster.start_server().unwrap();
    wait_for(&cluster, "0", "0");
    vendor.register();
    wait_for(&cluster, "2", "2");
    cluster.kubectl("exec one -c main -- kill 1").unwrap();
    eventually("the container was started again", || {
        let pod = cluster.get("pod one").map_err(|error| error.to_string())?;
        match pod["status"]["containerStatuses"][0]["restartCount"].as_i64() {
            Some(1..) => Ok(()),
            _ => Err(format!("{}{}", pod["status"], describe(&cluster))),
        }
    });
    wait_ready(&cluster, "app=one", 1);
    assert_eq!(device_of(&cluster, "one"), "d2");
    assert_eq!(vendor.calls(), ["start [\"d2\"]"], "nothing was given anew");
    let again = pod("again", "  nodeName: node-1");
    cluster.apply(&again).unwrap();
    eventually("no device is given twice", || {
        let status = cluster.get("pod again").map_err(|error| error.to_string())?["status"].take();
        if status["reason"] == "UnexpectedAdmissionError" { Ok(()) } else { Err(status.to_string()) }
    });
    // a plugin that goes away takes its devices along
    vendor.stop();
    wait_for(&cluster, "2", "0");
    cluster.kubectl("delete pod --all").unwrap();
}
