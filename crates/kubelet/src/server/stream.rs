//! Exec, attach and port-forward: the runtime is asked for a URL, which is dialled, and the connection is passed on
//! byte for byte. What is spoken on it (WebSocket, SPDY) is between the client and the runtime.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client::relay;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

use super::answers::{Body, Refusal, full, refused};
use super::pods::Target;
use super::{Server, query};

/// Longest wait for the runtime's streaming server: to connect, and to answer.
const DIAL: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(30);

/// What a client wants to be connected with.
#[derive(Debug, PartialEq, Eq)]
struct Streams {
    command: Vec<String>,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Streams {
    /// From the names of `PodExecOptions` or those the reference API server sends to kubelets.
    fn parse(text: &str) -> Result<Self, Refusal> {
        let mut streams =
            Self { command: Vec::new(), stdin: false, stdout: false, stderr: false, tty: false };
        for (name, value) in query::pairs(text) {
            match name.as_str() {
                "command" => streams.command.push(value),
                "stdin" | "input" => streams.stdin = query::boolean(&value),
                "stdout" | "output" => streams.stdout = query::boolean(&value),
                "stderr" | "error" => streams.stderr = query::boolean(&value),
                "tty" => streams.tty = query::boolean(&value),
                _ => {}
            }
        }
        // a terminal has one output
        streams.stderr &= !streams.tty;
        if !(streams.stdin || streams.stdout || streams.stderr) {
            let why = "you must specify at least 1 of stdin, stdout, stderr";
            return Err((StatusCode::BAD_REQUEST, why.to_owned()));
        }
        Ok(streams)
    }
}

/// The ports in the query: `ports` or `port`, repeated or separated by commas. SPDY clients name them in the stream.
fn ports(text: &str) -> Result<Vec<i32>, Refusal> {
    let mut ports = Vec::new();
    for (_, value) in query::pairs(text).into_iter().filter(|(name, _)| name == "ports" || name == "port") {
        for part in value.split(',') {
            let port = part.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(|| {
                (StatusCode::BAD_REQUEST, format!("unable to parse {part:?} as a port: must be 1 to 65535"))
            })?;
            ports.push(i32::from(port));
        }
    }
    Ok(ports)
}

impl Server {
    pub(super) async fn exec(
        &self,
        request: Request<Incoming>,
        place: Arc<OwnedSemaphorePermit>,
        target: Result<Target<'_>, Refusal>,
    ) -> Result<Response<Body>, Refusal> {
        let target = target?;
        let Streams { command: cmd, stdin, stdout, stderr, tty } =
            Streams::parse(request.uri().query().unwrap_or_default())?;
        let container_id = self.running(target)?;
        if cmd.is_empty() {
            return Err((StatusCode::BAD_REQUEST, "command: Required value".to_owned()));
        }
        let ask = cri::v1::ExecRequest { container_id, cmd, tty, stdin, stdout, stderr };
        let url = self.runtime.clone().exec(ask).await.map_err(refused)?.into_inner().url;
        self.pass_on(request, place, &url).await
    }

    pub(super) async fn attach(
        &self,
        request: Request<Incoming>,
        place: Arc<OwnedSemaphorePermit>,
        target: Result<Target<'_>, Refusal>,
    ) -> Result<Response<Body>, Refusal> {
        let target = target?;
        let Streams { stdin, stdout, stderr, tty, .. } =
            Streams::parse(request.uri().query().unwrap_or_default())?;
        let container_id = self.running(target)?;
        let ask = cri::v1::AttachRequest { container_id, stdin, tty, stdout, stderr };
        let url = self.runtime.clone().attach(ask).await.map_err(refused)?.into_inner().url;
        self.pass_on(request, place, &url).await
    }

    pub(super) async fn port_forward(
        &self,
        request: Request<Incoming>,
        place: Arc<OwnedSemaphorePermit>,
        [ns, pod, uid]: [&str; 3],
    ) -> Result<Response<Body>, Refusal> {
        let port = ports(request.uri().query().unwrap_or_default())?;
        self.known(ns, pod, uid, "pod does not exist")?;
        let Some(pod_sandbox_id) = self.pods.sandbox(ns, pod) else {
            return Err((StatusCode::NOT_FOUND, format!("pod not found ({pod:?})")));
        };
        let ask = cri::v1::PortForwardRequest { pod_sandbox_id, port };
        let url = self.runtime.clone().port_forward(ask).await.map_err(refused)?.into_inner().url;
        self.pass_on(request, place, &url).await
    }

    /// Repeats the request to the runtime's streaming server and joins both connections after an upgrade.
    async fn pass_on(
        &self,
        mut request: Request<Incoming>,
        place: Arc<OwnedSemaphorePermit>,
        url: &str,
    ) -> Result<Response<Body>, Refusal> {
        let failed = |why: &dyn std::fmt::Display| {
            (
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("error dialing the runtime's streaming server: {why}"),
            )
        };
        let url: Uri = url.parse().map_err(|e| failed(&e))?;
        let authority = match (url.scheme_str(), url.authority()) {
            (Some("http"), Some(authority)) => authority.clone(),
            _ => return Err(failed(&format!("{url} is no http URL"))),
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let dial = TcpStream::connect((host, authority.port_u16().unwrap_or(80)));
        let tcp = tokio::time::timeout(DIAL, dial)
            .await
            .map_err(|_| failed(&"timed out"))?
            .map_err(|e| failed(&e))?;
        // small interactive writes must not wait for each other; failing to say so changes nothing else
        let _ = tcp.set_nodelay(true);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(tcp))
                .await
                .map_err(|e| failed(&e))?;
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                ended = connection.with_upgrades() => {
                    if let Err(error) = ended {
                        tracing::debug!(error = &error as &dyn std::error::Error, "streaming connection ended");
                    }
                }
                () = stop.cancelled() => {}
            }
        });
        let client_side = hyper::upgrade::on(&mut request);
        let path = url.path_and_query().map_or("/", |p| p.as_str());
        let mut onward = Request::builder().method(request.method().clone()).uri(path);
        if let Some(headers) = onward.headers_mut() {
            pass_headers(request.headers(), headers);
            headers.insert(header::HOST, HeaderValue::from_str(authority.as_str()).map_err(|e| failed(&e))?);
        }
        let onward = onward.body(Full::new(Bytes::new())).map_err(|e| failed(&e))?;
        let mut answer = tokio::time::timeout(ANSWER, sender.send_request(onward))
            .await
            .map_err(|_| failed(&"timed out"))?
            .map_err(|e| failed(&e))?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            let (mut parts, body) = answer.into_parts();
            for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE] {
                parts.headers.remove(name);
            }
            return Ok(Response::from_parts(parts, body.map_err(std::io::Error::other).boxed_unsync()));
        }
        let runtime_side = hyper::upgrade::on(&mut answer);
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let _place = place;
            let joined = async {
                if let (Ok(client), Ok(runtime)) = tokio::join!(client_side, runtime_side) {
                    relay::both_ways(TokioIo::new(client), TokioIo::new(runtime)).await;
                }
            };
            tokio::select! {
                () = joined => {}
                () = stop.cancelled() => {}
            }
        });
        Ok(answer.map(|_| full(Bytes::new())))
    }
}

/// Passes on what describes the stream; never credentials.
fn pass_headers(from: &HeaderMap, to: &mut HeaderMap) {
    for (name, value) in from {
        let text = name.as_str();
        let wanted = text.starts_with("sec-websocket-")
            || text.starts_with("x-stream-protocol")
            || matches!(text, "connection" | "upgrade" | "accept" | "user-agent" | "origin");
        if wanted {
            to.append(name.clone(), value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_streams_are_understood() {
        let want = Streams {
            command: vec!["sh".into(), "-c".into()],
            stdin: true,
            stdout: true,
            stderr: false,
            tty: true,
        };
        let first = "command=sh&command=-c&stdin=true&stdout=true&stderr=true&tty=true&container=c";
        assert_eq!(Streams::parse(first), Ok(want));
        let second = Streams::parse("command=sh&input=1&output=1&error=1&tty=0").unwrap();
        assert!(second.stdin && second.stdout && second.stderr && !second.tty);
        assert_eq!(Streams::parse("command=sh&stdin=false").unwrap_err().0, StatusCode::BAD_REQUEST);
    }

    #[test]
    fn ports_come_repeated_or_in_one() {
        assert_eq!(ports("ports=80,81&port=82"), Ok(vec![80, 81, 82]));
        assert_eq!(ports(""), Ok(vec![]));
        assert_eq!(ports("ports=0").unwrap_err().0, StatusCode::BAD_REQUEST);
        assert_eq!(ports("port=70000").unwrap_err().0, StatusCode::BAD_REQUEST);
    }
}
