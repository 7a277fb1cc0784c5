//! Devices by ResourceClaims: a vendor's driver beside the kubelet, over its real sockets, and the scheduler between them.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kubelet::csi::messages::{InfoRequest, Nothing, PluginInfo, RegistrationStatus};
use kubelet::dra::messages::*;
use parking_lot::Mutex;
use serde_json::json;
use testkit::{Cluster, eventually};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;

use crate::devices::unary;
use crate::{cluster_with, describe, wait_ready};

/// A driver that describes a claim's device in a file for as long as it is prepared (CDI).
#[derive(Clone)]
struct Driver {
    endpoint: PathBuf,
    described: PathBuf,
    calls: Arc<Mutex<Vec<String>>>,
}

impl Driver {
    /// Listens, then registers, as drivers do; until the tasks end.
    fn start(cluster: &Cluster, described: &Path, tasks: &Runtime) -> Self {
        let root = cluster.data_dir().join("kubelet");
        let own = root.join("plugins/gpu.example.com");
        std::fs::create_dir_all(&own).unwrap();
        let (endpoint, registry) = (own.join("dra.sock"), root.join("plugins_registry/gpu.sock"));
        let driver =
            Self { endpoint: endpoint.clone(), described: described.to_owned(), calls: Arc::default() };
        let _inside = tasks.enter();
        for socket in [endpoint, registry] {
            let (listener, driver) = (UnixListener::bind(socket).unwrap(), driver.clone());
            tasks.spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let driver = driver.clone();
                    let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
                        let driver = driver.clone();
                        async move { Ok::<_, Infallible>(driver.answer(request).await) }
                    });
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
                }
            });
        }
        driver
    }

    async fn answer(self, request: http::Request<Incoming>) -> http::Response<tonic::body::Body> {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        match method.as_str() {
            "GetInfo" => {
                let info = PluginInfo {
                    r#type: "DRAPlugin".to_owned(),
                    name: "gpu.example.com".to_owned(),
                    endpoint: self.endpoint.display().to_string(),
                    supported_versions: vec!["v1.DRAPlugin".to_owned()],
                };
                unary(request, move |_: InfoRequest| info).await
            }
            "NotifyRegistrationStatus" => {
                unary(request, move |status: RegistrationStatus| {
                    self.calls.lock().push(format!("registered: {}", status.plugin_registered));
                    Nothing {}
                })
                .await
            }
            "NodePrepareResources" => {
                unary(request, move |asked: NodePrepareResourcesRequest| {
                    let claims = asked.claims.into_iter().map(|claim| self.prepare(claim)).collect();
                    NodePrepareResourcesResponse { claims }
                })
                .await
            }
            "NodeUnprepareResources" => {
                unary(request, move |asked: NodeUnprepareResourcesRequest| {
                    let gone = |claim: Claim| {
                        let file = self.described.join(format!("{}.json", claim.uid));
                        let error =
                            std::fs::remove_file(file).map_or_else(|e| e.to_string(), |()| String::new());
                        (claim.uid, NodeUnprepareResourceResponse { error })
                    };
                    NodeUnprepareResourcesResponse { claims: asked.claims.into_iter().map(gone).collect() }
                })
                .await
            }
            // how its devices are it does not say
            _ => unary(request, |_: Nothing| Nothing {}).await,
        }
    }

    fn prepare(&self, claim: Claim) -> (String, NodePrepareResourceResponse) {
        self.calls.lock().push(format!("prepare {}", claim.name));
        let edits = json!({"env": [format!("GPU={}", claim.name)],
            "deviceNodes": [{"path": "/dev/gpu", "hostPath": "/dev/zero", "permissions": "r"}]});
        let spec = json!({"cdiVersion": "0.6.0", "kind": "example.com/gpu",
            "devices": [{"name": claim.uid, "containerEdits": edits}]});
        std::fs::write(self.described.join(format!("{}.json", claim.uid)), spec.to_string()).unwrap();
        let device = Device {
            pool_name: "node-1".to_owned(),
            device_name: "gpu".to_owned(),
            cdi_device_ids: vec![format!("example.com/gpu={}", claim.uid)],
            ..Device::default()
        };
        (claim.uid, NodePrepareResourceResponse { devices: vec![device], error: String::new() })
    }
}

const OFFER: &str = "apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {name: gpu}
spec:
  selectors: [{cel: {expression: device.driver == 'gpu.example.com'}}]
  extendedResourceName: example.com/gpu
---
apiVersion: resource.k8s.io/v1
kind: ResourceSlice
metadata: {name: node-1-gpus}
spec:
  driver: gpu.example.com
  nodeName: node-1
  pool: {name: node-1, generation: 1, resourceSliceCount: 1}
  devices: [{name: gpu-0}, {name: gpu-1}]
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata: {name: gpu}
spec: {spec: {devices: {requests: [{name: gpu, exactly: {deviceClassName: gpu}}]}}}
";

fn pod(name: &str, spec: &str, resources: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: gpu}}}}
spec:
  terminationGracePeriodSeconds: 1
{spec}
  containers:
  - name: main
    image: busybox:test
    command: [sleep, '3600']
    resources: {resources}
  - name: other
    image: busybox:test
    command: [sleep, '3600']
---
"
    )
}

#[test]
fn pods_get_the_devices_of_their_claims_from_a_driver() {
    let described = tempfile::tempdir().unwrap();
    let tasks = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut cluster = cluster_with(vec!["--cdi-spec-dir".to_owned(), described.path().display().to_string()]);
    let driver = Driver::start(&cluster, described.path(), &tasks);
    let registered = |times: usize| {
        eventually("the driver is registered", || {
            let calls = driver.calls.lock().clone();
            let count = calls.iter().filter(|call| *call == "registered: true").count();
            if count == times { Ok(()) } else { Err(format!("{calls:?}")) }
        });
    };
    registered(1);
    cluster.apply(OFFER).unwrap();
    let claims = "  resourceClaims: [{name: gpu, resourceClaimTemplateName: gpu}]";
    let named = pod("named", claims, "{claims: [{name: gpu}]}");
    let extended = pod("extended", "", "{limits: {example.com/gpu: 1}}");
    cluster.apply(&format!("{named}{extended}")).unwrap();
    wait_ready(&cluster, "app=gpu", 2);
    for (name, path) in [
        ("named", "/status/resourceClaimStatuses/0/resourceClaimName"),
        ("extended", "/status/extendedResourceClaimStatus/resourceClaimName"),
    ] {
        let claim = cluster.get(&format!("pod {name}")).unwrap().pointer(path).cloned().unwrap_or_default();
        let claim = claim.as_str().expect("a claim");
        let script = "echo $GPU; stat -c '%t:%T' /dev/gpu 2>/dev/null || echo none";
        let seen = |container| {
            cluster.kubectl_args(&["exec", name, "-c", container, "--", "sh", "-c", script]).unwrap()
        };
        assert_eq!(seen("main"), format!("{claim}\n1:5\n"), "{}", describe(&cluster));
        assert_eq!(seen("other"), "\nnone\n");
    }
    assert_eq!(std::fs::read_dir(described.path()).unwrap().count(), 2);

    // a kubelet that begins takes back what drivers offered before, and knows what they have prepared
    cluster.kill_server().unwrap();
    cluster.start_server().unwrap();
    registered(2);
    eventually("the driver's slice is gone until it tells of it again", || {
        let slices = cluster.get("resourceslices").map_err(|error| error.to_string())?["items"].take();
        if slices.as_array().is_some_and(Vec::is_empty) { Ok(()) } else { Err(slices.to_string()) }
    });
    cluster.kubectl("delete pod named extended").unwrap();
    let left = std::fs::read_dir(described.path()).unwrap().count();
    assert_eq!(left, 0, "given back before the pods are gone");
    let calls = driver.calls.lock().clone();
    let prepared = calls.iter().filter(|call| call.starts_with("prepare ")).count();
    assert_eq!(prepared, 2, "{calls:?}");
    eventually("the claims go with their pods", || {
        let claims = cluster.get("resourceclaims").map_err(|error| error.to_string())?["items"].take();
        if claims.as_array().is_some_and(Vec::is_empty) { Ok(()) } else { Err(claims.to_string()) }
    });
}
