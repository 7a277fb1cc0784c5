//! A device plugin that registers in `plugins_registry`, over one real socket.

use std::convert::Infallible;
use std::path::Path;

use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::Node;
use kubelet::csi::messages::{InfoRequest, Nothing, PluginInfo, RegistrationStatus};
use kubelet::devices::messages::*;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::StreamExt as _;
use tonic::Status;
use tonic_prost::ProstCodec;

use super::csi_driver::unary;
use super::*;

const RESOURCE: &str = "example.com/dev";

async fn answer(
    request: http::Request<Incoming>,
    versions: Vec<String>,
    told: watch::Sender<Option<RegistrationStatus>>,
) -> http::Response<tonic::body::Body> {
    let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    match method.as_str() {
        "GetInfo" => {
            // no endpoint: this one
            let info = PluginInfo {
                r#type: "DevicePlugin".to_owned(),
                name: RESOURCE.to_owned(),
                endpoint: String::new(),
                supported_versions: versions,
            };
            unary(request, move |_: InfoRequest| Ok(info)).await
        }
        "NotifyRegistrationStatus" => {
            unary(request, move |status: RegistrationStatus| {
                told.send_replace(Some(status));
                Ok(Nothing {})
            })
            .await
        }
        "GetDevicePluginOptions" => unary(request, move |_: Empty| Ok(DevicePluginOptions::default())).await,
        "ListAndWatch" => {
            let device =
                |id: &str| Device { id: id.to_owned(), health: "Healthy".to_owned(), topology: None };
            let list = ListAndWatchResponse { devices: vec![device("a"), device("b")] };
            let lists = futures_util::stream::once(std::future::ready(Ok::<_, Status>(list)));
            let mut lists = Some(lists.chain(futures_util::stream::pending()));
            let service = tower::service_fn(move |_: tonic::Request<Empty>| {
                let lists = lists.take().map(tonic::Response::new);
                std::future::ready(lists.ok_or_else(|| Status::internal("twice")))
            });
            let codec = ProstCodec::<ListAndWatchResponse, Empty>::default();
            tonic::server::Grpc::new(codec).server_streaming(service, request).await
        }
        _ => unary(request, |_: Empty| Err::<Empty, _>(Status::unimplemented("not known"))).await,
    }
}

/// Listens at `socket`; what the kubelet says of the registration.
fn listen(socket: &Path, versions: &[&str]) -> watch::Receiver<Option<RegistrationStatus>> {
    let listener = UnixListener::bind(socket).expect("socket");
    let versions: Vec<String> = versions.iter().map(|&version| version.to_owned()).collect();
    let (told, seen) = watch::channel(None);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (versions, told) = (versions.clone(), told.clone());
            let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
                let (versions, told) = (versions.clone(), told.clone());
                async move { Ok::<_, Infallible>(answer(request, versions, told).await) }
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    seen
}

impl Cluster {
    async fn until_devices(&self, capacity: &str, allocatable: &str) {
        let is = |list: &[Arc<Node>]| {
            let status = list.first()?.status.clone()?;
            let of =
                |map: Option<BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>| {
                    map.unwrap_or_default().get(RESOURCE).map(|quantity| quantity.0.clone())
                };
            let (has, gives) = (of(status.capacity)?, of(status.allocatable)?);
            (has == capacity && gives == allocatable).then_some(())
        };
        self.until::<Node, _>(&format!("{allocatable} of {capacity} devices"), is).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_plugin_may_register_as_drivers_do() {
    let cluster = Cluster::start().await;
    let registry = cluster.api.folder.path().join("kubelet/plugins_registry");
    std::fs::create_dir_all(&registry).unwrap();
    let status = async |mut seen: watch::Receiver<Option<RegistrationStatus>>| {
        let told = tokio::time::timeout(PATIENCE, seen.wait_for(Option::is_some)).await;
        told.expect("in time").expect("the plugin lives").clone().expect("a status")
    };
    let old = status(listen(&registry.join("old.sock"), &["v1alpha1"])).await;
    assert!(!old.plugin_registered);
    assert_eq!(old.error, "manager version, v1beta1, is not among plugin supported versions [v1alpha1]");
    let socket = registry.join("dev.sock");
    let new = status(listen(&socket, &["v1alpha1", "v1beta1"])).await;
    assert!(new.plugin_registered, "{new:?}");
    cluster.until_devices("2", "2").await;
    let metrics = cluster.ask("/metrics").await;
    assert!(
        metrics.contains("kubelet_device_plugin_registration_total{resource_name=\"example.com/dev\"} 1\n")
    );
    std::fs::remove_file(&socket).unwrap();
    cluster.until_devices("2", "0").await;
    cluster.stop().await;
}
