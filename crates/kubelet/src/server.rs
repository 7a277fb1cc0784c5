//! The kubelet's HTTPS server: logs, exec, attach, port-forward, the node's pods and their use of resources.
//!
//! Who may ask: whom the API server allows it ([`access`]), known by a certificate of the cluster's client authority or
//! by a token; `system:masters` and the API server itself are not asked about.
//!
//! A request's way: [`route`] says who answers a path, [`callers`] whether its caller may ask, and a file for each group of paths
//! answers: [`container_logs`], [`stream`], [`commands`], [`pods`], [`measurements`], [`system_logs`], [`health`].
//!
//! Tasks: one accepts; one per connection; one per log that is read; one per upgraded stream. Each connection, and
//! what became of it after an upgrade, holds one of [`CONNECTIONS`] places. All end with the stop token.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use hyper_util::rt::{TokioIo, TokioTimer};
use k8s_openapi::api::core::v1::Pod;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use access::Access;
use callers::Caller;
use settings::{Rules, TlsOptions};

pub use tls::ServingCertificate;

pub mod access;
mod answers;
mod callers;
mod commands;
mod container_logs;
pub mod health;
mod measurements;
mod metrics;
mod pods;
pub(crate) mod query;
mod route;
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

#[cfg(test)]
mod tests;
