//! A CSI driver over real sockets whose volumes are folders: it registers with the kubelet and keeps its calls.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kubelet::csi::messages::*;
use parking_lot::Mutex;
use tokio::net::UnixListener;
use tonic::{Code, Status};

/// What the driver was asked, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    Stage(NodeStageVolumeRequest),
    Publish(NodePublishVolumeRequest),
    Unpublish(NodeUnpublishVolumeRequest),
    Unstage(NodeUnstageVolumeRequest),
    Expand(NodeExpandVolumeRequest),
    Stats(NodeGetVolumeStatsRequest),
    Notified(RegistrationStatus),
}

pub struct Books {
    pub calls: Vec<Call>,
    /// What it is called.
    name: &'static str,
    /// How many of its volumes the node can have.
    pub most: i64,
    /// Gives no answer to who asks for its node.
    pub silent: bool,
}

/// The driver; it ends with this.
pub struct Driver {
    pub books: Arc<Mutex<Books>>,
    socket: PathBuf,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

pub const NAME: &str = "fake.csi.example";

impl Driver {
    /// Registers with the kubelet whose folder this is.
    pub fn start(root: &Path) -> Self {
        Self::start_as(root, NAME)
    }

    /// The same by another name.
    pub fn start_as(root: &Path, name: &'static str) -> Self {
        let books = Arc::new(Mutex::new(Books { calls: Vec::new(), name, most: 7, silent: false }));
        let (own, registry) = (root.join("plugins").join(name), root.join("plugins_registry"));
        for folder in [&own, &registry] {
            std::fs::create_dir_all(folder).expect("folder");
        }
        let endpoint = own.join("csi.sock");
        // listens before it registers
        let driver = listen(&endpoint, books.clone(), endpoint.clone());
        let socket = registry.join(format!("{name}-reg.sock"));
        let registrar = listen(&socket, books.clone(), endpoint);
        Self { books, socket, tasks: vec![driver, registrar] }
    }

    pub fn calls(&self) -> Vec<Call> {
        self.books.lock().calls.clone()
    }

    /// The socket goes, as when the driver's pod is deleted.
    pub fn leave(&self) {
        std::fs::remove_file(&self.socket).expect("the socket");
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

fn listen(path: &Path, books: Arc<Mutex<Books>>, endpoint: PathBuf) -> tokio::task::JoinHandle<()> {
    let listener = UnixListener::bind(path).expect("socket");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (books, endpoint) = (books.clone(), endpoint.clone());
            let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
                let (books, endpoint) = (books.clone(), endpoint.clone());
                async move { Ok::<_, Infallible>(answer(request, books, endpoint).await) }
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    })
}

pub async fn unary<Q, A>(
    request: http::Request<Incoming>,
    answer: impl FnOnce(Q) -> Result<A, Status> + Send + 'static,
) -> http::Response<tonic::body::Body>
where
    Q: prost::Message + Default + 'static,
    A: prost::Message + 'static,
{
    let mut answer = Some(answer);
    let service = tower::service_fn(move |request: tonic::Request<Q>| {
        let answered =
            answer.take().map_or_else(|| Err(Status::internal("twice")), |a| a(request.into_inner()));
        std::future::ready(answered.map(tonic::Response::new))
    });
    tonic::server::Grpc::new(tonic_prost::ProstCodec::<A, Q>::default()).unary(service, request).await
}

async fn answer(
    request: http::Request<Incoming>,
    books: Arc<Mutex<Books>>,
    endpoint: PathBuf,
) -> http::Response<tonic::body::Body> {
    let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    let (name, most, silent) = {
        let books = books.lock();
        (books.name, books.most, books.silent)
    };
    let keep = move |call: Call| books.lock().calls.push(call);
    match method.as_str() {
        "GetInfo" => {
            let info = PluginInfo {
                r#type: "CSIPlugin".to_owned(),
                name: name.to_owned(),
                endpoint: endpoint.display().to_string(),
                supported_versions: vec!["1.0.0".to_owned()],
            };
            unary(request, move |_: InfoRequest| Ok(info)).await
        }
        "NotifyRegistrationStatus" => {
            unary(request, move |status: RegistrationStatus| {
                keep(Call::Notified(status));
                Ok(Nothing {})
            })
            .await
        }
        "NodeGetInfo" if silent => std::future::pending().await,
        "NodeGetInfo" => {
            let segments = [("topology.fake.example/zone".to_owned(), "z1".to_owned())].into();
            let info = NodeGetInfoResponse {
                node_id: "id-of-n1".to_owned(),
                max_volumes_per_node: most,
                accessible_topology: Some(Topology { segments }),
            };
            unary(request, move |_: Nothing| Ok(info)).await
        }
        "NodeGetCapabilities" => {
            // stages, measures, grows
            let capability = |r#type| NodeServiceCapability { rpc: Some(Rpc { r#type }) };
            let all = NodeGetCapabilitiesResponse { capabilities: [1, 2, 3].map(capability).into() };
            unary(request, move |_: Nothing| Ok(all)).await
        }
        "NodeStageVolume" => {
            unary(request, move |staged: NodeStageVolumeRequest| {
                keep(Call::Stage(staged));
                Ok(Nothing {})
            })
            .await
        }
        "NodePublishVolume" => {
            unary(request, move |shown: NodePublishVolumeRequest| {
                let target = PathBuf::from(&shown.target_path);
                let block = matches!(
                    shown.volume_capability.as_ref().and_then(|c| c.access_type.as_ref()),
                    Some(AccessType::Block(_))
                );
                keep(Call::Publish(shown));
                let made = match block {
                    true => std::fs::write(&target, "a device"),
                    false => std::fs::create_dir_all(&target)
                        .and_then(|()| std::fs::write(target.join("file"), "content")),
                };
                made.map_err(|error| Status::new(Code::Internal, error.to_string()))?;
                Ok(Nothing {})
            })
            .await
        }
        "NodeUnpublishVolume" => {
            unary(request, move |gone: NodeUnpublishVolumeRequest| {
                let target = PathBuf::from(&gone.target_path);
                keep(Call::Unpublish(gone));
                let removed = if target.is_dir() {
                    std::fs::remove_dir_all(target)
                } else {
                    std::fs::remove_file(target)
                };
                // idempotent, as the specification wants it
                let _ = removed;
                Ok(Nothing {})
            })
            .await
        }
        "NodeUnstageVolume" => {
            unary(request, move |gone: NodeUnstageVolumeRequest| {
                keep(Call::Unstage(gone));
                Ok(Nothing {})
            })
            .await
        }
        "NodeExpandVolume" => {
            unary(request, move |grown: NodeExpandVolumeRequest| {
                let capacity_bytes = grown.capacity_range.as_ref().map_or(0, |range| range.required_bytes);
                keep(Call::Expand(grown));
                Ok(NodeExpandVolumeResponse { capacity_bytes })
            })
            .await
        }
        "NodeGetVolumeStats" => {
            unary(request, move |asked: NodeGetVolumeStatsRequest| {
                keep(Call::Stats(asked));
                let part = |unit, total, used| VolumeUsage { available: total - used, total, used, unit };
                Ok(NodeGetVolumeStatsResponse { usage: vec![part(1, 3000, 1000), part(2, 30, 10)] })
            })
            .await
        }
        _ => unary(request, |_: Nothing| Err::<Nothing, _>(Status::unimplemented("not known"))).await,
    }
}
