//! The streaming server: exec, attach and port-forwards over an HTTP connection that the kubelet passes on.
//!
//! `Exec`, `Attach` and `PortForward` of the CRI return a URL with a random token that is good for one request within
//! a minute; the server listens on the loopback interface only. It speaks WebSocket ([`websocket`]) and SPDY/3.1
//! ([`spdy`]); both drive the same [`remote_command`] and [`port_forward`].

mod port_forward;
mod remote_command;
mod session;
mod spdy;
mod spdy_command;
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
use hyper::{body::Incoming, upgrade::Upgraded};
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
    Command { command: Command, streams: Streams },
    PortForward { sandbox: String, ports: Vec<u16> },
}

/// What streams are connected with.
#[derive(Debug, Clone)]
pub(crate) enum Command {
    Exec { container: String, args: Vec<String> },
    Attach { container: String },
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
            Job::Command { command: Command::Exec { .. }, .. } => "exec",
            Job::Command { command: Command::Attach { .. }, .. } => "attach",
            Job::PortForward { .. } => "portforward",
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
    // the kind of job is in the path, so that a refused protocol does not use the URL up: clients try another
    let forwards = request.uri().path().starts_with("/portforward/");
    let framing = if websocket::is_upgrade(&request, "websocket") {
        let known = if forwards { websocket::FORWARDS } else { websocket::COMMANDS };
        match websocket::accept(&request, known) {
            Ok((response, protocol)) => (response, Framing::WebSocket(protocol)),
            Err(message) => return refuse(StatusCode::BAD_REQUEST, message),
        }
    } else if websocket::is_upgrade(&request, "SPDY/3.1") {
        let known = if forwards { spdy_command::FORWARDS } else { spdy_command::COMMANDS };
        match spdy_command::accept(request.headers(), known) {
            Ok((response, version)) => (response, Framing::Spdy(version)),
            Err(response) => return Ok(*response),
        }
    } else {
        let message = "unable to upgrade: streams need an upgrade to WebSocket or SPDY/3.1".to_owned();
        return refuse(StatusCode::BAD_REQUEST, message);
    };
    let (response, framing) = framing;
    let Some(job) = runtime.streaming.take(request.uri().path()) else {
        return refuse(StatusCode::NOT_FOUND, "this streaming URL is unknown, used or expired".to_owned());
    };
    // Started before the upgrade is answered would hide errors from clients that read the error channel only.
    tokio::spawn(async move {
        match hyper::upgrade::on(request).await {
            Ok(upgraded) => run(runtime, TokioIo::new(upgraded), framing, job).await,
            Err(error) => tracing::debug!(%error, "a streaming connection was not upgraded"),
        }
    });
    Ok(response)
}

/// What is spoken on an upgraded connection.
enum Framing {
    WebSocket(websocket::Protocol),
    Spdy(&'static str),
}

async fn run(runtime: Arc<Runtime>, stream: TokioIo<Upgraded>, framing: Framing, job: Job) {
    match (job, framing) {
        (Job::Command { command, streams }, Framing::WebSocket(protocol)) => {
            let session = Session::start(&runtime, command, streams).await;
            let wire = websocket::Channels::new(stream, protocol).await;
            remote_command::run(wire, session).await;
        }
        (Job::Command { command, streams }, Framing::Spdy(version)) => {
            if let Some(wire) = spdy_command::SpdyStreams::open(stream, version, streams).await {
                let session = Session::start(&runtime, command, streams).await;
                remote_command::run(wire, session).await;
            }
        }
        (Job::PortForward { sandbox, ports }, framing) => {
            let Ok(found) = runtime.sandbox(&sandbox) else { return };
            let pod = port_forward::Pod::of(&found.record.read());
            match framing {
                Framing::Spdy(_) => port_forward::spdy(stream, pod).await,
                Framing::WebSocket((websocket::TUNNEL, ..)) => port_forward::tunnel(stream, pod).await,
                Framing::WebSocket(protocol) => {
                    port_forward::channels(stream, protocol, pod, &ports).await;
                }
            }
        }
    }
}
