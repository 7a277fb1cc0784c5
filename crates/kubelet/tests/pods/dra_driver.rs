//! A DRA driver over real sockets: it registers with the kubelet, keeps its calls, and answers as the test says.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kubelet::csi::messages::{InfoRequest, Nothing, PluginInfo, RegistrationStatus};
use kubelet::dra::messages::*;
use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tonic::Status;
use tonic_prost::ProstCodec;

use super::csi_driver::unary;

pub const NAME: &str = "dra.example.com";

/// How a driver answers.
#[derive(Default)]
pub struct Books {
    /// Why it prepares nothing.
    pub refuses: Option<String>,
    /// Why it takes nothing back.
    pub keeps: Option<String>,
    /// Its devices by the claims' names; a claim that is not here gets one device for all of its requests.
    pub devices: HashMap<String, Vec<Device>>,
}

/// What the sockets of a driver share.
#[derive(Clone)]
struct State {
    books: Arc<Mutex<Books>>,
    calls: watch::Sender<Vec<String>>,
    told: watch::Sender<Option<RegistrationStatus>>,
    health: watch::Sender<Vec<DeviceHealth>>,
    info: PluginInfo,
}

/// The driver; it ends with this.
pub struct Driver {
    pub books: Arc<Mutex<Books>>,
    /// What it was asked, in order: the version, the call, the claims.
    pub calls: watch::Sender<Vec<String>>,
    /// Whether it is registered.
    pub told: watch::Sender<Option<RegistrationStatus>>,
    /// How its devices are.
    pub health: watch::Sender<Vec<DeviceHealth>>,
    sockets: [PathBuf; 2],
    tasks: Vec<JoinHandle<()>>,
}

/// A device `name` for these requests, called the same in CDI.
pub fn device(name: &str, requests: &[&str]) -> Device {
    Device {
        request_names: requests.iter().map(|&request| request.to_owned()).collect(),
        pool_name: "n1".to_owned(),
        device_name: name.to_owned(),
        cdi_device_ids: vec![format!("example.com/dev={name}")],
        share_id: None,
    }
}

impl Driver {
    /// Registers with the kubelet whose folder this is, by sockets of this name.
    pub fn start(root: &Path, socket: &str, services: &[&str]) -> Self {
        let (own, registry) = (root.join("plugins/dra"), root.join("plugins_registry"));
        for folder in [&own, &registry] {
            std::fs::create_dir_all(folder).expect("folder");
        }
        let endpoint = own.join(format!("{socket}.sock"));
        let info = PluginInfo {
            r#type: "DRAPlugin".to_owned(),
            name: NAME.to_owned(),
            endpoint: endpoint.display().to_string(),
            supported_versions: services.iter().map(|&service| service.to_owned()).collect(),
        };
        let state = State {
            books: Arc::default(),
            calls: watch::Sender::new(Vec::new()),
            told: watch::Sender::new(None),
            health: watch::Sender::new(Vec::new()),
            info,
        };
        let sockets = [endpoint, registry.join(format!("{socket}-reg.sock"))];
        // listens before it registers
        let tasks = sockets.iter().map(|path| listen(path, state.clone())).collect();
        let State { books, calls, told, health, .. } = state;
        Self { books, calls, told, health, sockets, tasks }
    }

    /// Waits for its calls to be these.
    pub async fn until(&self, expected: &[&str]) {
        let mut seen = self.calls.subscribe();
        let done = tokio::time::timeout(crate::PATIENCE, seen.wait_for(|calls| calls == expected));
        if done.await.is_err() {
            panic!("{:?} instead of {expected:?}", self.calls.borrow());
        }
    }

    /// Whether it was taken in, and why not.
    pub async fn status(&self) -> RegistrationStatus {
        let mut told = self.told.subscribe();
        let told = tokio::time::timeout(crate::PATIENCE, told.wait_for(Option::is_some)).await;
        told.expect("in time").expect("it lives").clone().expect("a status")
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        for socket in &self.sockets {
            let _ = std::fs::remove_file(socket);
        }
    }
}

fn listen(path: &Path, state: State) -> JoinHandle<()> {
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).expect("socket");
    tokio::spawn(async move {
        // they end with the driver
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let state = state.clone();
            let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
                let state = state.clone();
                async move { Ok::<_, Infallible>(answer(request, state).await) }
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            connections.spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    })
}

async fn answer(request: http::Request<Incoming>, state: State) -> http::Response<tonic::body::Body> {
    let path = request.uri().path().to_owned();
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
    let version = service.trim_start_matches("k8s.io.kubelet.pkg.apis.dra.").trim_end_matches(".DRAPlugin");
    let noted = version.to_owned();
    let calls = state.calls.clone();
    let note = move |what: &str, claims: &[Claim]| {
        let names: Vec<&str> = claims.iter().map(|claim| claim.name.as_str()).collect();
        calls.send_modify(|calls| calls.push(format!("{noted} {what} {}", names.join(","))));
    };
    match method {
        "GetInfo" => unary(request, move |_: InfoRequest| Ok(state.info.clone())).await,
        "NotifyRegistrationStatus" => {
            unary(request, move |status: RegistrationStatus| {
                state.told.send_replace(Some(status));
                Ok(Nothing {})
            })
            .await
        }
        "NodePrepareResources" => {
            unary(request, move |asked: NodePrepareResourcesRequest| {
                note("prepare", &asked.claims);
                let books = state.books.lock();
                let one = |claim: Claim| {
                    let devices = books.devices.get(&claim.name).cloned();
                    let answer = match &books.refuses {
                        Some(why) => NodePrepareResourceResponse { devices: Vec::new(), error: why.clone() },
                        None => NodePrepareResourceResponse {
                            devices: devices.unwrap_or_else(|| vec![device(&claim.name, &[])]),
                            error: String::new(),
                        },
                    };
                    (claim.uid, answer)
                };
                Ok(NodePrepareResourcesResponse { claims: asked.claims.into_iter().map(one).collect() })
            })
            .await
        }
        "NodeUnprepareResources" => {
            unary(request, move |asked: NodeUnprepareResourcesRequest| {
                note("unprepare", &asked.claims);
                let error = state.books.lock().keeps.clone().unwrap_or_default();
                let one = |claim: Claim| (claim.uid, NodeUnprepareResourceResponse { error: error.clone() });
                Ok(NodeUnprepareResourcesResponse { claims: asked.claims.into_iter().map(one).collect() })
            })
            .await
        }
        "NodeWatchResources" => {
            let health = state.health.subscribe();
            let reports = futures_util::stream::unfold((health, true), |(mut health, first)| async move {
                if !first {
                    health.changed().await.ok()?;
                }
                let report = NodeWatchResourcesResponse { devices: health.borrow_and_update().clone() };
                Some((Ok::<_, Status>(report), (health, false)))
            });
            let mut reports = Some(reports);
            let service = tower::service_fn(move |_: tonic::Request<NodeWatchResourcesRequest>| {
                let reports = reports.take().map(tonic::Response::new);
                std::future::ready(reports.ok_or_else(|| Status::internal("twice")))
            });
            let codec = ProstCodec::<NodeWatchResourcesResponse, NodeWatchResourcesRequest>::default();
            tonic::server::Grpc::new(codec).server_streaming(service, request).await
        }
        _ => unary(request, |_: Nothing| Err::<Nothing, _>(Status::unimplemented("not known"))).await,
    }
}
