//! The Container Runtime Interface v1 as Rust: the messages and gRPC service traits of the published
//! `api.proto`, and the three ways to reach them.
//!
//! The kubelet holds a [`RuntimeClient`] and an [`ImageClient`] and cannot tell whether the other side is
//! our runtime in the same process ([`in_process`]) or any CRI runtime behind a unix socket
//! ([`to_unix`]). The runtime implements [`RuntimeService`] and [`ImageService`] and is also served
//! on a unix socket ([`serve_unix`]).
//!
//! Invariant: this crate holds no behaviour. What a call means stands in the CRI specification.
//!
//! Rejected: an own trait beside the generated one. It would be a second list of 34 calls to keep in
//! step; a call that goes through the codec in memory costs microseconds and exercises the wire format.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tonic::body::Body;
use tower::{BoxError, ServiceExt, util::BoxCloneSyncService};

/// Messages and service traits, derived from the published `api.proto`.
#[allow(missing_docs, clippy::all)]
#[rustfmt::skip]
pub mod v1;

pub use v1::{
    image_service_client::ImageServiceClient, image_service_server::ImageService,
    image_service_server::ImageServiceServer, runtime_service_client::RuntimeServiceClient,
    runtime_service_server::RuntimeService, runtime_service_server::RuntimeServiceServer,
};

impl std::fmt::Debug for v1::AuthConfig {
    /// Who, and where: logs must not hold passwords and tokens.
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { username, server_address, .. } = self;
        let mut shown = to.debug_struct("AuthConfig");
        shown.field("username", username).field("server_address", server_address).finish_non_exhaustive()
    }
}

/// A way to send a gRPC request: in memory or over a socket.
pub type Transport = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, TransportError>;

/// A request did not get through. A type of its own: futures over a bare boxed error cannot be proven `Send`.
#[derive(Debug, thiserror::Error)]
#[error("the container runtime cannot be reached")]
pub struct TransportError(#[source] BoxError);

/// Client of `runtime.v1.RuntimeService`; clone it freely.
pub type RuntimeClient = RuntimeServiceClient<Transport>;
/// Client of `runtime.v1.ImageService`; clone it freely.
pub type ImageClient = ImageServiceClient<Transport>;

/// Largest message taken or sent, in bytes: containerd's default, which kubelets expect.
pub const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// Why a runtime could not be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket could not be bound.
    #[error("cannot listen on unix://{path}")]
    Bind {
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Serving ended with an error.
    #[error("serving the CRI failed")]
    Serve(#[source] tonic::transport::Error),
}

/// Told of each call: its method (`RunPodSandbox`), the time until it was answered, and whether that was no refusal.
pub type Observer = fn(&str, Duration, bool);

/// A transport whose calls are told of.
pub fn observed(transport: Transport, observer: Observer) -> Transport {
    let call = move |request: http::Request<Body>| {
        let transport = transport.clone();
        async move {
            let begin = Instant::now();
            let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            let answer = transport.oneshot(request).await;
            // a refusal is all that comes: its status stands in the head
            let refused = |answer: &http::Response<Body>| {
                answer.headers().get("grpc-status").is_some_and(|status| status != "0")
            };
            observer(&method, begin.elapsed(), answer.as_ref().is_ok_and(|answer| !refused(answer)));
            answer
        }
    };
    BoxCloneSyncService::new(tower::service_fn(call))
}

/// Clients over a transport.
pub fn clients(transport: Transport) -> (RuntimeClient, ImageClient) {
    (
        RuntimeServiceClient::new(transport.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE),
        ImageServiceClient::new(transport)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE),
    )
}

/// Clients of a runtime that lives in this process; no socket is involved.
pub fn in_process<S>(service: S) -> (RuntimeClient, ImageClient)
where
    S: RuntimeService + ImageService + Clone,
{
    clients(to_process(service))
}

/// The way to a runtime that lives in this process.
pub fn to_process<S>(service: S) -> Transport
where
    S: RuntimeService + ImageService + Clone,
{
    let routes = tonic::service::Routes::new(RuntimeServiceServer::new(service.clone()))
        .add_service(ImageServiceServer::new(service))
        .prepare();
    let transport = ServiceExt::<http::Request<Body>>::map_err(routes, |e| TransportError(e.into()));
    BoxCloneSyncService::new(transport)
}

/// The way to the runtime that listens on the unix socket `path`, for example
/// `/run/containerd/containerd.sock`. The connection is made when it is needed, and anew after it breaks: calls fail
/// as long as nobody listens there.
pub fn to_unix(path: &Path) -> Transport {
    let socket = path.to_owned();
    let channel = tonic::transport::Endpoint::from_static("http://localhost").connect_with_connector_lazy(
        tower::service_fn(move |_| {
            let socket = socket.clone();
            async move {
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(
                    tokio::net::UnixStream::connect(socket).await?,
                ))
            }
        }),
    );
    BoxCloneSyncService::new(channel.map_err(|e| TransportError(e.into())))
}

/// Serves `service` on the unix socket `path` (mode 0600 by the caller's umask; an old socket file is
/// replaced) until `stop` resolves.
pub async fn serve_unix<S>(service: S, path: &Path, stop: impl Future<Output = ()>) -> Result<(), Error>
where
    S: RuntimeService + ImageService + Clone,
{
    let _ = std::fs::remove_file(path);
    let listener = tokio::net::UnixListener::bind(path)
        .map_err(|source| Error::Bind { path: path.to_owned(), source })?;
    tonic::transport::Server::builder()
        .add_service(RuntimeServiceServer::new(service.clone()).max_decoding_message_size(MAX_MESSAGE))
        .add_service(ImageServiceServer::new(service).max_decoding_message_size(MAX_MESSAGE))
        .serve_with_incoming_shutdown(tokio_stream::wrappers::UnixListenerStream::new(listener), stop)
        .await
        .map_err(Error::Serve)
}

#[cfg(test)]
mod tests {
    use super::v1::{AuthConfig, PullImageRequest};

    #[test]
    fn a_request_shows_no_password_or_token() {
        let [username, server_address] = ["me", "q.io"].map(str::to_owned);
        let [password, auth, identity_token, registry_token] =
            ["hidden-1", "hidden-2", "hidden-3", "hidden-4"].map(str::to_owned);
        let auth = AuthConfig { username, password, auth, server_address, identity_token, registry_token };
        let shown = format!("{:?}", PullImageRequest { auth: Some(auth), ..Default::default() });
        assert!(!shown.contains("hidden"), "{shown}");
        assert!(shown.contains(r#"AuthConfig { username: "me", server_address: "q.io", .. }"#), "{shown}");
    }
}
