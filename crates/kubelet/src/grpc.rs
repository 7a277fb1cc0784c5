//! gRPC on unix sockets: what the kubelet calls there (plugins), and what it answers there itself.

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(120);
/// Connections to one socket at a time; more wait.
const CONNECTIONS: usize = 64;

/// The other end of a plugin's socket. Connected when it is first used, and anew after the socket broke.
#[derive(Clone)]
pub struct Plugin(Channel);

impl Plugin {
    /// Behind the socket at `path`.
    pub fn at(path: &Path) -> Result<Self, String> {
        let wrong = |error: tonic::transport::Error| format!("{}: {error}", path.display());
        let endpoint = Endpoint::from_shared(format!("unix://{}", path.display())).map_err(wrong)?;
        Ok(Self(endpoint.connect_lazy()))
    }

    async fn ready(&self) -> Result<tonic::client::Grpc<Channel>, Status> {
        let mut grpc = tonic::client::Grpc::new(self.0.clone());
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(grpc)
    }

    /// One question, one answer.
    pub async fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.call_within(method, request, ANSWER).await
    }

    /// The same, where the answer is to come within `limit`.
    pub async fn call_within<Q, A>(
        &self,
        method: &'static str,
        request: Q,
        limit: Duration,
    ) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let answer = async {
            let mut grpc = self.ready().await?;
            let mut request = Request::new(request);
            request.set_timeout(limit);
            let path = PathAndQuery::from_static(method);
            grpc.unary(request, path, ProstCodec::<Q, A>::default()).await
        };
        let late = |_| Status::deadline_exceeded("context deadline exceeded");
        Ok(tokio::time::timeout(limit, answer).await.map_err(late)??.into_inner())
    }

    /// One question, answers as long as there are any.
    pub async fn stream<Q, A>(&self, method: &'static str, request: Q) -> Result<Streaming<A>, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = self.ready().await?;
        let path = PathAndQuery::from_static(method);
        let answer = grpc.server_streaming(Request::new(request), path, ProstCodec::<Q, A>::default());
        Ok(answer.await?.into_inner())
    }
}

/// A refusal in the words that Events have for it.
pub fn told(status: &Status) -> String {
    format!("rpc error: code = {} desc = {}", name_of(status.code()), status.message())
}

/// A code as the reference's library calls it.
pub fn name_of(code: Code) -> String {
    match code {
        Code::Ok => "OK".to_owned(),
        Code::Cancelled => "Canceled".to_owned(),
        code => format!("{code:?}"),
    }
}

/// A connection to the socket `path` over which nothing is asked: it ends when the other end is gone.
pub(crate) async fn connect(path: &Path) -> io::Result<impl Future<Output = ()> + use<>> {
    let stream = TokioIo::new(UnixStream::connect(path).await?);
    let opened = hyper::client::conn::http2::handshake::<_, _, Body>(TokioExecutor::new(), stream).await;
    let (sender, connection) = opened.map_err(io::Error::other)?;
    Ok(async move {
        // without somebody who could ask it would be closed
        let _sender = sender;
        // however it ended
        let _ = connection.await;
    })
}

/// Answers calls at the socket `path`, which replaces an older one, until `stop`.
pub(crate) async fn serve<F, A>(path: &Path, answer: F, stop: CancellationToken) -> io::Result<()>
where
    F: Fn(http::Request<Incoming>) -> A + Clone + Send + 'static,
    A: Future<Output = http::Response<Body>> + Send + 'static,
{
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    let (tasks, free) = (TaskTracker::new(), Arc::new(Semaphore::new(CONNECTIONS)));
    loop {
        let next = async {
            let permit = free.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = stop.cancelled() => break,
            next = next => next,
        };
        let Ok((stream, _)) = accepted else { continue };
        let (answer, stop) = (answer.clone(), stop.clone());
        let service = hyper::service::service_fn(move |request| {
            let answered = answer(request);
            async move { Ok::<_, Infallible>(answered.await) }
        });
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        tasks.spawn(async move {
            let _permit = permit;
            tokio::select! {
                () = stop.cancelled() => {}
                // a client that went away says nothing that matters
                _ = server.serve_connection(TokioIo::new(stream), service) => {}
            }
        });
    }
    tasks.close();
    tasks.wait().await;
    Ok(())
}

/// Reads the question of a call and answers it.
pub(crate) async fn unary<Q, A, W>(
    request: http::Request<Incoming>,
    answer: impl FnOnce(Q) -> W + Send + 'static,
) -> http::Response<Body>
where
    Q: Message + Default + 'static,
    A: Message + 'static,
    W: Future<Output = Result<A, Status>> + Send + 'static,
{
    let mut answer = Some(answer);
    let service = tower::service_fn(move |request: Request<Q>| {
        let answered = answer.take().map(|answer| answer(request.into_inner()));
        async move {
            match answered {
                Some(answered) => answered.await.map(tonic::Response::new),
                None => Err(Status::internal("one call has one question")),
            }
        }
    });
    tonic::server::Grpc::new(ProstCodec::<A, Q>::default()).unary(service, request).await
}

/// The answer to a call that is not known.
pub(crate) async fn unknown(request: http::Request<Incoming>) -> http::Response<Body> {
    let message = format!("unknown method {}", request.uri().path());
    unary(request, |_: crate::devices::messages::Empty| async {
        Err::<crate::devices::messages::Empty, _>(Status::unimplemented(message))
    })
    .await
}
