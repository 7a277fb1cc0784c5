//! The kubelet's HTTPS server: logs, exec, attach, port-forward, the node's pods and their use of resources.
//!
//! Who may ask: whom the API server allows it ([`access`]), known by a certificate of the cluster's client authority or
//! by a token; `system:masters` and the API server itself are not asked about.
//!
//! Tasks: one accepts; one per connection; one per log that is read; one per upgraded stream. Each connection, and
//! what became of it after an upgrade, holds one of [`CONNECTIONS`] places. All end with the stop token.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use k8s_openapi::List;
use k8s_openapi::api::core::v1::Pod;
use rustls_pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use access::{Access, User};
use api::zpages::Page;
use settings::{Rules, TlsOptions};

use crate::logs;
pub use tls::ServingCertificate;

pub mod access;
mod commands;
pub mod health;
mod metrics;
pub(crate) mod query;
pub mod settings;
mod stats;
mod stream;
mod system_logs;
mod tls;

/// Most connections at once, streams included.
const CONNECTIONS: usize = 1024;
/// Longest time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Longest time for a request's head.
const HEADERS: Duration = Duration::from_secs(15);
/// How long connections have to end after the stop.
const GRACE: Duration = Duration::from_secs(5);
/// Blocks of a log that wait for a slow reader.
const LOG_QUEUE: usize = 4;
/// Seconds after which a stream that there was no room for may be asked for again.
const RETRY_AFTER: &str = "60";
/// What `/statusz` names.
const PAGES: &[&str] = &["/configz", "/flagz", "/healthz", "/metrics"];
/// Whose members may ask everything.
const MASTERS: &str = "system:masters";
/// The API server's name to nodes.
const API_SERVER: &str = "kube-apiserver-kubelet-client";

/// How the server is set up.
#[derive(Clone)]
pub struct ServerConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// What it shows.
    pub certificate: Arc<ServingCertificate>,
    /// Who signs clients' certificates, PEM.
    pub client_ca_pem: String,
    /// Which TLS it speaks.
    pub tls: TlsOptions,
    /// What it lets in, and what it serves.
    pub rules: Rules,
}

/// What the server tells of the kubelet.
#[derive(Debug, Clone, Default)]
pub struct About {
    /// The node's name.
    pub node: String,
    /// The kubelet's version.
    pub version: String,
    /// Where it keeps its pods' volumes.
    pub root: PathBuf,
    /// Its configuration.
    pub settings: serde_json::Value,
    /// The node's own log files, where they may be read.
    pub system_logs: Option<PathBuf>,
    /// When the kubelet started.
    pub started: jiff::Timestamp,
    /// Options of the command line, secrets aside.
    pub flags: BTreeMap<String, String>,
}

/// A container that a request names.
#[derive(Debug, Clone, Copy)]
struct Target<'a> {
    ns: &'a str,
    pod: &'a str,
    /// The pod's uid; empty for any.
    uid: &'a str,
    container: &'a str,
}

impl<'a> Target<'a> {
    /// From the path behind the name of what is done: the pod's uid may stand before the container.
    fn of(path: &[&'a str]) -> Result<Self, Refusal> {
        match *path {
            [ns, pod, container] => Ok(Self { ns, pod, uid: "", container }),
            [ns, pod, uid, container] => Ok(Self { ns, pod, uid, container }),
            _ => Err(no_such_page()),
        }
    }
}

/// A container as the runtime knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningContainer {
    /// The runtime's id.
    pub id: String,
    /// Whether it runs now.
    pub running: bool,
}

/// What of the pods the runtime has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pods whose sandbox is ready.
    pub pods: u64,
    /// Containers by state.
    pub containers: BTreeMap<&'static str, u64>,
    /// Uids of those pods.
    pub ready: BTreeSet<String>,
}

/// What the server asks the kubelet.
pub trait Pods: Send + Sync {
    /// The node's pods.
    fn pods(&self) -> Vec<Arc<Pod>>;
    /// What the pod keeps on the disk. Blocks.
    fn storage(&self, pod: &Pod) -> crate::usage::Storage;
    /// The newest run of a container.
    fn container(&self, ns: &str, pod: &str, container: &str) -> Option<RunningContainer>;
    /// The id of a pod's ready sandbox.
    fn sandbox(&self, ns: &str, pod: &str) -> Option<String>;
    /// The log of a container's newest run, or of the one before. The error is a message for the client.
    fn log_path(&self, ns: &str, pod: &str, container: &str, previous: bool) -> Result<PathBuf, String>;
    /// How many sandboxes and containers there are, and in which state.
    fn counts(&self) -> Counts;
    /// How full the volumes of claims and of drivers are.
    fn volumes(&self) -> BoxFuture<'_, crate::storage::usage::Measured> {
        Box::pin(std::future::ready(Default::default()))
    }
    /// Numbers of the node's own for `/metrics`.
    fn samples(&self) -> Vec<crate::managers::Sample> {
        Vec::new()
    }
}

pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A refusal in plain text.
pub(crate) type Refusal = (StatusCode, String);

/// Serves until `stop`. Fails when the address cannot be bound or the certificates cannot be used.
pub async fn serve(
    config: ServerConfig,
    handler: Arc<dyn Pods>,
    (runtime, images): (cri::RuntimeClient, cri::ImageClient),
    (access, about): (Arc<dyn Access>, About),
    stop: CancellationToken,
) -> std::io::Result<()> {
    let acceptor = TlsAcceptor::from(Arc::new(tls::accepting(&config)?));
    let listener = TcpListener::bind(config.listen).await?;
    let (certificate, rules, tasks) = (config.certificate, config.rules, TaskTracker::new());
    serve_on(
        listener,
        acceptor,
        Server { certificate, rules, pods: handler, runtime, images, access, about, stop, tasks },
    )
    .await;
    Ok(())
}

async fn serve_on(listener: TcpListener, acceptor: TlsAcceptor, server: Server) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let server = Arc::new(server);
    loop {
        let next = async {
            // waiting clients stay in the kernel's queue
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            next = next => next,
            () = server.stop.cancelled() => break,
        };
        match (place, accepted) {
            (Ok(place), Ok((tcp, _))) => {
                server.tasks.spawn(connection(server.clone(), acceptor.clone(), tcp, Arc::new(place)));
            }
            (_, Err(error)) => {
                // out of files, most likely: others must end first
                tracing::warn!(error = &error as &dyn std::error::Error, "accepting a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            (Err(_), _) => break,
        }
    }
    server.tasks.close();
    if tokio::time::timeout(GRACE, server.tasks.wait()).await.is_err() {
        tracing::debug!("connections to the kubelet outlive its server");
    }
}

async fn connection(
    server: Arc<Server>,
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    place: Arc<OwnedSemaphorePermit>,
) {
    // interactive streams must not wait for full packets; failing to say so changes nothing else
    let _ = tcp.set_nodelay(true);
    let tls = tokio::select! {
        tls = tokio::time::timeout(HANDSHAKE, acceptor.accept(tcp)) => tls,
        () = server.stop.cancelled() => return,
    };
    let Ok(Ok(tls)) = tls else { return };
    let certificate = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let caller = certificate.map_or(Caller::Anonymous, Caller::of);
    let stop = server.stop.clone();
    let service = hyper::service::service_fn(move |request| {
        let (server, caller, place) = (server.clone(), caller.clone(), place.clone());
        async move { Ok::<_, std::convert::Infallible>(server.answer(&caller, request, place).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(tls), service)
        .with_upgrades();
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = &error as &dyn std::error::Error, "connection to the kubelet ended");
    }
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Caller {
    Anonymous,
    /// Has a good certificate or token: the API server is asked about him.
    Known(User),
    Allowed,
}

impl Caller {
    fn of(certificate: &CertificateDer<'_>) -> Self {
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else {
            return Self::Anonymous;
        };
        let subject = parsed.subject();
        let name = subject.iter_common_name().find_map(|a| a.as_str().ok()).unwrap_or_default();
        let master = subject.iter_organization().any(|a| a.as_str() == Ok(MASTERS));
        if master || name == API_SERVER {
            return Self::Allowed;
        }
        let groups = subject.iter_organization().filter_map(|a| a.as_str().ok().map(str::to_owned));
        let groups = groups.chain(["system:authenticated".to_owned()]).collect();
        Self::Known(User { name: name.to_owned(), groups, ..User::default() })
    }
}

struct Server {
    certificate: Arc<ServingCertificate>,
    rules: Rules,
    pods: Arc<dyn Pods>,
    runtime: cri::RuntimeClient,
    images: cri::ImageClient,
    access: Arc<dyn Access>,
    about: About,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    /// Whether the caller may ask this.
    async fn authorize(
        &self,
        caller: &Caller,
        request: &Request<Incoming>,
        first: &str,
    ) -> Result<(), Refusal> {
        let broken = |why: String| {
            tracing::warn!(why, "a caller of the kubelet could not be checked");
            (StatusCode::INTERNAL_SERVER_ERROR, "Authorization error".to_owned())
        };
        let by_token;
        let user = match caller {
            Caller::Allowed => return Ok(()),
            Caller::Known(user) => user,
            Caller::Anonymous => {
                let unknown = || (StatusCode::UNAUTHORIZED, "Unauthorized".to_owned());
                let named = match token_of(request).filter(|_| self.rules.tokens) {
                    Some(token) => self.access.authenticate(token).await.map_err(|why| {
                        tracing::warn!(why, "a token's owner is not known");
                        unknown()
                    })?,
                    None => self.rules.anonymous.then(User::anonymous),
                };
                by_token = named.ok_or_else(unknown)?;
                &by_token
            }
        };
        if self.rules.always_allow {
            return Ok(());
        }
        let (verb, subresources) = access::needed(request.method(), first);
        for subresource in &subresources {
            if self.access.allows(user, verb, subresource).await.map_err(broken)? {
                return Ok(());
            }
        }
        let why = format!(
            "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{}])\n",
            user.name,
            subresources.join(" ")
        );
        Err((StatusCode::FORBIDDEN, why))
    }

    async fn answer(
        &self,
        caller: &Caller,
        request: Request<Incoming>,
        place: Arc<OwnedSemaphorePermit>,
    ) -> Response<Body> {
        let begin = std::time::Instant::now();
        let (path, long) = shown_path(request.uri().path());
        let labels = [if long { "true" } else { "false" }, shown_method(request.method()), path, "readwrite"];
        crate::metrics::REQUESTS.add(&labels);
        let _inflight = crate::metrics::INFLIGHT.held(&labels);
        let answer = self.routed(caller, request, place).await;
        crate::metrics::REQUEST_DURATION.time(&labels, begin.elapsed());
        answer
    }

    async fn routed(
        &self,
        caller: &Caller,
        request: Request<Incoming>,
        place: Arc<OwnedSemaphorePermit>,
    ) -> Response<Body> {
        let parts: Vec<String> =
            request.uri().path().trim_start_matches('/').split('/').map(decode_segment).collect();
        let mut parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let first = parts.first().copied().unwrap_or_default();
        if let Err((code, why)) = self.authorize(caller, &request, first).await {
            return text(code, why);
        }
        if !self.rules.debugging {
            match first {
                "run" | "exec" | "attach" | "portForward" | "containerLogs" | "runningpods" | "logs"
                | "debug" => {
                    return text(StatusCode::METHOD_NOT_ALLOWED, "Debug endpoints are disabled.\n");
                }
                "checkpoint" | "configz" | "flagz" | "statusz" => {
                    let (code, why) = no_such_page();
                    return text(code, why);
                }
                _ => {}
            }
        }
        let allowed = methods(first);
        if !allowed.split(", ").any(|method| method == request.method().as_str()) {
            let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed");
            refusal.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
            return refusal;
        }
        // a folder of logs ends in a slash, for others it means nothing
        if first != "logs" && parts.len() > 1 && parts.last() == Some(&"") {
            parts.pop();
        }
        let query = request.uri().query().unwrap_or_default().to_owned();
        let answer = match parts[..] {
            ["exec", ref path @ ..] => self.exec(request, place, Target::of(path)).await,
            ["attach", ref path @ ..] => self.attach(request, place, Target::of(path)).await,
            ["portForward", ns, pod] => self.port_forward(request, place, [ns, pod, ""]).await,
            ["portForward", ns, pod, uid] => self.port_forward(request, place, [ns, pod, uid]).await,
            ["run", ref path @ ..] => match Target::of(path) {
                Ok(target) => self.run(target, &query).await,
                Err(refusal) => Err(refusal),
            },
            ["checkpoint", ns, pod, container] => {
                self.checkpoint(Target { ns, pod, uid: "", container }, &query).await
            }
            ["containerLogs", ns, pod, container] => self.logs(ns, pod, container, &query).await,
            ["healthz", ref checks @ ..] if checks.len() < 2 => {
                Ok(health::answer(checks.first().copied(), &query))
            }
            ["statusz"] => Ok(self.page(
                request.headers(),
                Page::Status { started: self.about.started, version: &self.about.version, paths: PAGES },
            )),
            ["flagz"] => Ok(self.page(request.headers(), Page::Flags(&self.about.flags))),
            ["pods"] => self.list_pods(),
            ["runningpods"] => self.running_pods().await,
            ["logs", ref path @ ..] if self.about.system_logs.is_some() => self.system_logs(path).await,
            ["logs", ..] => Err((StatusCode::METHOD_NOT_ALLOWED, "logs endpoint is disabled.\n".to_owned())),
            ["configz"] => json(&serde_json::json!({"kubeletconfig": self.about.settings})),
            ["stats", "summary"] => self.stats(stats::Extent::of(&query)).await,
            ["metrics"] => self.own_metrics().await,
            ["metrics", "resource"] => {
                self.measure().await.map(|m| exposition(metrics::resource(&self.pods.pods(), &m)))
            }
            ["metrics", "cadvisor"] => self.cadvisor().await,
            ["metrics", "probes"] => Ok(exposition(metrics::probes())),
            ["metrics", "slis"] => Ok(exposition(metrics::slis())),
            _ => Err(no_such_page()),
        };
        answer.unwrap_or_else(|(code, why)| {
            let mut refusal = text(code, why);
            if code == StatusCode::TOO_MANY_REQUESTS {
                refusal.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
            }
            refusal
        })
    }

    /// `/statusz` or `/flagz`.
    fn page(&self, headers: &http::HeaderMap, page: Page<'_>) -> Response<Body> {
        let accept = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let page = page.answer("kubelet", accept, jiff::Timestamp::now());
        let code = StatusCode::from_u16(page.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = answer(code, page.content_type, full(page.body));
        let warning = page.warning.and_then(|text| HeaderValue::from_str(&text).ok());
        response.headers_mut().extend(warning.map(|text| (header::WARNING, text)));
        response
    }

    async fn logs(
        &self,
        ns: &str,
        pod: &str,
        container: &str,
        query: &str,
    ) -> Result<Response<Body>, Refusal> {
        let options = logs::parse(query).map_err(|refused| match refused {
            logs::Refused::Unreadable(why) => (StatusCode::BAD_REQUEST, why),
            logs::Refused::Invalid(why) => (StatusCode::UNPROCESSABLE_ENTITY, why),
        })?;
        let found = self.known(ns, pod, "", &format!("pod {pod:?} does not exist"))?;
        if !has_container(&found, container) {
            let why = format!("container {container:?} not found in pod {pod:?}");
            return Err((StatusCode::NOT_FOUND, why));
        }
        let path = self
            .pods
            .log_path(ns, pod, container, options.previous)
            .map_err(|why| (StatusCode::BAD_REQUEST, why))?;
        if let Err(error) = tokio::fs::metadata(&path).await {
            return Err((StatusCode::BAD_REQUEST, format!("failed to open log file {path:?}: {error}")));
        }
        let (out, blocks) = tokio::sync::mpsc::channel(LOG_QUEUE);
        let running = {
            // the run whose log this is: a later one writes to another file
            let id = self.pods.container(ns, pod, container).map(|c| c.id);
            let (pods, previous) = (self.pods.clone(), options.previous);
            let name = [ns, pod, container].map(str::to_owned);
            move || {
                let now = pods.container(&name[0], &name[1], &name[2]);
                !previous && now.is_some_and(|c| c.running && Some(c.id) == id)
            }
        };
        let stop = self.stop.clone();
        let (failed, failure) = tokio::sync::oneshot::channel();
        self.tasks.spawn(async move {
            let ended = tokio::select! {
                ended = logs::read(path, options, running, out) => ended,
                () = stop.cancelled() => Ok(()),
            };
            if let Err(error) = ended {
                tracing::warn!(error = &error as &dyn std::error::Error, "reading a container's log");
                // nobody may be left to hear it
                let _ = failed.send(error);
            }
        });
        let blocks = tokio_stream::wrappers::ReceiverStream::new(blocks).map(Ok);
        // an error after the head cuts the answer off, so that it is not taken for the whole log
        let end = futures_util::stream::once(failure).filter_map(|e| async move { e.ok().map(Err) });
        let body = StreamBody::new(blocks.chain(end).map(|block| block.map(Frame::data)));
        Ok(answer(StatusCode::OK, "text/plain", BodyExt::boxed_unsync(body)))
    }

    async fn system_logs(&self, path: &[&str]) -> Result<Response<Body>, Refusal> {
        if path.is_empty() {
            return Ok(system_logs::moved("logs"));
        }
        let (root, path) = (self.about.system_logs.clone().unwrap_or_default(), path.join("/"));
        let read = tokio::task::spawn_blocking(move || system_logs::read(&root, &path)).await;
        read.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?
    }

    fn list_pods(&self) -> Result<Response<Body>, Refusal> {
        let items = self.pods.pods().iter().map(|pod| (**pod).clone()).collect();
        json(&List::<Pod> { items, ..Default::default() })
    }

    /// What the runtime measures now.
    async fn measure(&self) -> Result<metrics::Measured, Refusal> {
        let (mut one, mut two) = (self.runtime.clone(), self.runtime.clone());
        let (containers, sandboxes) = tokio::join!(
            one.list_container_stats(cri::v1::ListContainerStatsRequest::default()),
            two.list_pod_sandbox_stats(cri::v1::ListPodSandboxStatsRequest::default()),
        );
        let containers = containers.map_err(refused)?.into_inner().stats;
        let sandboxes = sandboxes.map_err(refused)?.into_inner().stats;
        Ok(metrics::Measured { containers, sandboxes })
    }

    async fn cadvisor(&self) -> Result<Response<Body>, Refusal> {
        let (mut one, mut two) = (self.runtime.clone(), self.runtime.clone());
        let (measured, descriptors, pods) = tokio::join!(
            self.measure(),
            one.list_metric_descriptors(cri::v1::ListMetricDescriptorsRequest {}),
            two.list_pod_sandbox_metrics(cri::v1::ListPodSandboxMetricsRequest {}),
        );
        // a runtime without metrics of its own leaves those out
        let described = match (descriptors, pods) {
            (Ok(descriptors), Ok(pods)) => metrics::Described {
                descriptors: descriptors.into_inner().descriptors,
                pods: pods.into_inner().pod_metrics,
            },
            _ => metrics::Described::default(),
        };
        let disk = stats::file_system(&self.about);
        Ok(exposition(metrics::cadvisor(&self.pods.pods(), &measured?, &described, Some(&disk))))
    }

    async fn own_metrics(&self) -> Result<Response<Body>, Refusal> {
        let volumes = self.pods.volumes().await;
        let About { node, version, .. } = &self.about;
        Ok(exposition(metrics::own(metrics::Own {
            node,
            version,
            pods: &self.pods.pods(),
            counts: self.pods.counts(),
            samples: self.pods.samples(),
            volumes: &volumes,
            certificate: self.certificate.seconds_left(),
        })))
    }

    async fn stats(&self, extent: stats::Extent) -> Result<Response<Body>, Refusal> {
        let mut images = self.images.clone();
        let (measured, volumes, images) = tokio::join!(
            self.measure(),
            self.pods.volumes(),
            images.image_fs_info(cri::v1::ImageFsInfoRequest::default()),
        );
        let measured = measured?;
        // a runtime that cannot say leaves that part out
        let images = images.map(tonic::Response::into_inner).unwrap_or_default();
        let (handler, node) = (self.pods.clone(), self.about.clone());
        let summary = tokio::task::spawn_blocking(move || {
            let pods = handler.pods();
            let storage = |pod: &Pod| handler.storage(pod);
            stats::summary(&node, &pods, &measured, (&images, &volumes), &storage, extent)
        });
        let failed = |_| (StatusCode::INTERNAL_SERVER_ERROR, "measuring was cut short".to_owned());
        json(&summary.await.map_err(failed)?)
    }

    /// Pods as the runtime knows them: those with a running container.
    async fn running_pods(&self) -> Result<Response<Body>, Refusal> {
        let filter = cri::v1::ContainerFilter {
            state: Some(cri::v1::ContainerStateValue {
                state: cri::v1::ContainerState::ContainerRunning as i32,
            }),
            ..Default::default()
        };
        let request = cri::v1::ListContainersRequest { filter: Some(filter) };
        let found = self.runtime.clone().list_containers(request).await.map_err(refused)?.into_inner();
        json(&List::<Pod> { items: stats::running(&found.containers), ..Default::default() })
    }

    /// The pod of that name and, unless it is empty, uid; `missing` is what its absence is called.
    fn known(&self, ns: &str, name: &str, uid: &str, missing: &str) -> Result<Arc<Pod>, Refusal> {
        let found = self.pods.pods().into_iter().find(|pod| {
            let metadata = &pod.metadata;
            metadata.name.as_deref() == Some(name) && metadata.namespace.as_deref() == Some(ns)
        });
        let Some(pod) = found else { return Err((StatusCode::NOT_FOUND, missing.to_owned())) };
        if !uid.is_empty() && pod.metadata.uid.as_deref() != Some(uid) {
            return Err((StatusCode::NOT_FOUND, "pod not found".to_owned()));
        }
        Ok(pod)
    }

    /// The id of a container that runs.
    fn running(&self, Target { ns, pod, uid, container }: Target<'_>) -> Result<String, Refusal> {
        let found = self.known(ns, pod, uid, "pod does not exist")?;
        if !has_container(&found, container) {
            return Err((StatusCode::NOT_FOUND, format!("container {container} does not exist")));
        }
        let found = self.pods.container(ns, pod, container).filter(|c| c.running);
        found
            .map(|c| c.id)
            .ok_or_else(|| (StatusCode::NOT_FOUND, format!("container not found ({container:?})")))
    }
}

fn has_container(pod: &Pod, name: &str) -> bool {
    pod.spec.as_ref().is_some_and(|spec| {
        spec.init_containers.iter().flatten().chain(&spec.containers).any(|c| c.name == name)
            || spec.ephemeral_containers.iter().flatten().any(|c| c.name == name)
    })
}

/// The bearer token that a request shows.
fn token_of(request: &Request<Incoming>) -> Option<&str> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    Some(token.trim()).filter(|token| scheme.eq_ignore_ascii_case("bearer") && !token.is_empty())
}

fn no_such_page() -> Refusal {
    (StatusCode::NOT_FOUND, "404 page not found".to_owned())
}

/// Which methods the first part of a path has.
fn methods(first: &str) -> &'static str {
    match first {
        "exec" | "attach" | "portForward" => "GET, POST",
        "run" | "checkpoint" => "POST",
        _ => "GET",
    }
}

/// A method as metrics show it: clients may name any.
fn shown_method(method: &Method) -> &'static str {
    const KNOWN: [&str; 8] = ["OPTIONS", "GET", "HEAD", "POST", "PUT", "DELETE", "TRACE", "CONNECT"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("other")
}

/// A path as metrics show it, and whether it counts as one that may take as long as the client likes. To the reference
/// port-forward and logs do not.
fn shown_path(path: &str) -> (&'static str, bool) {
    const KNOWN: [&str; 15] = [
        "attach",
        "checkpoint",
        "configz",
        "containerLogs",
        "exec",
        "flagz",
        "healthz",
        "logs",
        "metrics",
        "pods",
        "portForward",
        "run",
        "runningpods",
        "stats",
        "statusz",
    ];
    const METRICS: [&str; 3] = ["metrics/cadvisor", "metrics/probes", "metrics/resource"];
    let path = path.trim_matches('/');
    let first = path.split('/').next().unwrap_or_default();
    let shown = METRICS.into_iter().find(|known| *known == path);
    let shown = shown.or_else(|| KNOWN.into_iter().find(|known| *known == first)).unwrap_or("other");
    (shown, matches!(shown, "exec" | "attach"))
}

/// A path's part, decoded; `+` is itself there.
fn decode_segment(text: &str) -> String {
    query::decode(&text.replace('+', "%2B"))
}

/// What the runtime's refusal is to our client.
pub(crate) fn refused(status: tonic::Status) -> Refusal {
    let code = match status.code() {
        tonic::Code::NotFound => StatusCode::NOT_FOUND,
        tonic::Code::InvalidArgument => StatusCode::BAD_REQUEST,
        tonic::Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        tonic::Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (code, status.message().to_owned())
}

pub(crate) fn answer(code: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut answer = Response::new(body);
    *answer.status_mut() = code;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

fn text(code: StatusCode, text: impl Into<String>) -> Response<Body> {
    answer(code, "text/plain; charset=utf-8", full(text.into()))
}

/// A text for Prometheus.
fn exposition(text: String) -> Response<Body> {
    answer(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", full(text))
}

fn json(value: &impl serde::Serialize) -> Result<Response<Body>, Refusal> {
    let bytes = serde_json::to_vec(value).map_err(|e| (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    Ok(answer(StatusCode::OK, "application/json", full(bytes)))
}

#[cfg(test)]
mod tests;
