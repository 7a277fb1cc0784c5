//! The streaming server: exec and attach over an HTTP connection that the kubelet forwards.
//!
//! `Exec` and `Attach` of the CRI return a URL with a random token that is good for one request within a
//! minute; the server listens on the loopback interface only. Today it speaks WebSocket
//! ([`websocket`]); another framing drives the same [`Session`].

mod session;
mod websocket;

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpListener;

use crate::{error::RuntimeError, state::Runtime};
use session::Session;

/// How long a URL is good.
const TOKEN_LIFE: Duration = Duration::from_secs(60);
/// Most URLs that wait to be used.
const MAX_TOKENS: usize = 1000;

/// What a URL stands for.
#[derive(Debug, Clone)]
pub(crate) enum Job {
    Exec { container: String, args: Vec<String>, streams: Streams },
    Attach { container: String, streams: Streams },
}

/// Which streams are wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Streams {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) tty: bool,
}

impl Streams {
    /// Checks what the CRI demands.
    pub(crate) fn check(self) -> Result<Streams, RuntimeError> {
        if self.tty && self.stderr {
            return Err(RuntimeError::Invalid(
                "a terminal has no separate stderr: tty and stderr exclude each other".to_owned(),
            ));
        }
        if !(self.stdin || self.stdout || self.stderr) {
            return Err(RuntimeError::Invalid("one of stdin, stdout or stderr must be asked for".to_owned()));
        }
        Ok(self)
    }
}

/// The server and its open URLs.
pub(crate) struct StreamingServer {
    address: SocketAddr,
    listener: Mutex<Option<TcpListener>>,
    jobs: Mutex<HashMap<String, (Instant, Job)>>,
}

impl StreamingServer {
    /// Takes a port.
    pub(crate) async fn bind() -> io::Result<StreamingServer> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        Ok(StreamingServer {
            address: listener.local_addr()?,
            listener: Mutex::new(Some(listener)),
            jobs: Mutex::default(),
        })
    }

    /// A URL for `job`.
    pub(crate) fn url(&self, job: Job) -> Result<String, RuntimeError> {
        let verb = match &job {
            Job::Exec { .. } => "exec",
            Job::Attach { .. } => "attach",
        };
        let token = crate::state::new_id();
        let mut jobs = self.jobs.lock();
        jobs.retain(|_, (made, _)| made.elapsed() < TOKEN_LIFE);
        if jobs.len() >= MAX_TOKENS {
            return Err(RuntimeError::State("too many streaming requests wait to be used".to_owned()));
        }
        let url = format!("http://{}/{verb}/{token}", self.address);
        jobs.insert(token, (Instant::now(), job));
        Ok(url)
    }

    fn take(&self, path: &str) -> Option<Job> {
        let token = path.rsplit('/').next()?;
        let (made, job) = self.jobs.lock().remove(token)?;
        (made.elapsed() < TOKEN_LIFE).then_some(job)
    }

    /// Serves in the background until the runtime is shut down or dropped.
    pub(crate) fn serve(&self, runtime: &Arc<Runtime>) {
        let Some(listener) = self.listener.lock().take() else { return };
        let (runtime, stop) = (Arc::downgrade(runtime), runtime.stop.clone());
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = stop.cancelled() => return,
                };
                let stream = match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // Out of files, most likely: others must end first.
                        tracing::warn!(%error, "accepting a streaming connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                };
                let Some(runtime) = runtime.upgrade() else { return };
                let _ = stream.set_nodelay(true);
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(move |request| answer(runtime.clone(), request));
                    let connection = hyper::server::conn::http1::Builder::new()
                        .timer(hyper_util::rt::TokioTimer::new())
                        .header_read_timeout(Duration::from_secs(10))
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades();
                    if let Err(error) = connection.await {
                        tracing::debug!(%error, "a streaming connection ended");
                    }
                });
            }
        });
    }
}

async fn answer(
    runtime: Arc<Runtime>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let refuse = |status, message: String| {
        let mut response = Response::new(Full::new(Bytes::from(message)));
        *response.status_mut() = status;
        Ok(response)
    };
    if !websocket::is_upgrade(&request) {
        return refuse(
            StatusCode::BAD_REQUEST,
            "this runtime streams by WebSocket (v5.channel.k8s.io, v4.channel.k8s.io); SPDY is not supported yet".to_owned(),
        );
    }
    let (response, version) = match websocket::accept(&request) {
        Ok(accepted) => accepted,
        Err(message) => return refuse(StatusCode::BAD_REQUEST, message),
    };
    let Some(job) = runtime.streaming.take(request.uri().path()) else {
        return refuse(StatusCode::NOT_FOUND, "this streaming URL is unknown, used or expired".to_owned());
    };
    // Started before the upgrade is answered would hide errors from clients that read the error channel only.
    tokio::spawn(async move {
        let upgraded = match hyper::upgrade::on(request).await {
            Ok(upgraded) => upgraded,
            Err(error) => return tracing::debug!(%error, "a streaming connection was not upgraded"),
        };
        let session = Session::start(&runtime, job).await;
        websocket::run(TokioIo::new(upgraded), version, &runtime, session).await;
    });
    Ok(response)
}
