//! One try of each sort of probe. Messages are worded as upstream's, whose readers search for them.

use std::fmt::Write;
use std::io::ErrorKind;
use std::time::Duration;

use bytes::Bytes;
use client::tls;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, HTTPHeader};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::{Outcome, Target};
use crate::worker::words;

/// Most bytes of an answer that are kept.
pub(super) const BODY: usize = 10 * 1024;
/// Most redirects followed.
const REDIRECTS: usize = 10;
pub(super) const USER_AGENT: &str = "kube-probe/1.36";
/// The same for lifecycle hooks.
const HOOK_AGENT: &str = "kube-lifecycle/1.36";
/// What is said of an answer that is no TLS.
const NO_TLS: &str = "InvalidContentType";
const LATE: &str = "(Client.Timeout exceeded while awaiting headers)";

/// The number of a port that may be named.
pub(super) fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            match ports.find(|p| p.name.as_deref() == Some(name)) {
                Some(port) => port.container_port,
                None => {
                    name.parse().map_err(|_| format!("strconv.Atoi: parsing {name:?}: invalid syntax"))?
                }
            }
        }
    };
    u16::try_from(number).ok().filter(|p| *p > 0).ok_or_else(|| format!("invalid port number: {number}"))
}

/// Runs a command in the container.
pub(super) async fn exec(
    cmd: Vec<String>,
    container_id: &str,
    timeout: Duration,
    runtime: &mut cri::RuntimeClient,
) -> Outcome {
    let limit = words(SignedDuration::try_from(timeout).unwrap_or(SignedDuration::MAX));
    let late = format!("command timed out: {:?} timed out after {limit}", cmd.join(" "));
    let request = cri::v1::ExecSyncRequest {
        container_id: container_id.to_owned(),
        cmd,
        timeout: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
    };
    // the runtime keeps the time; ours is for a runtime that does not answer
    match tokio::time::timeout(timeout + Duration::from_secs(10), runtime.exec_sync(request)).await {
        Ok(Ok(answer)) => {
            let mut answer = answer.into_inner();
            answer.stdout.append(&mut answer.stderr);
            answer.stdout.truncate(BODY);
            let text = String::from_utf8_lossy(&answer.stdout).into_owned();
            if answer.exit_code == 0 { Outcome::success(text) } else { Outcome::failure(text) }
        }
        Ok(Err(status)) if status.code() == tonic::Code::DeadlineExceeded => Outcome::failure(late),
        Ok(Err(status)) => Outcome::error(status.message()),
        Err(_) => Outcome::error("the container runtime does not answer"),
    }
}

/// Opens a connection and closes it.
pub(super) async fn tcp(host: &str, port: u16, timeout: Duration) -> Outcome {
    let address = address(host, port);
    match tokio::time::timeout(timeout, TcpStream::connect((bare(host), port))).await {
        Ok(Ok(_)) => Outcome::success(""),
        Ok(Err(error)) => Outcome::failure(dial_error(&address, &error)),
        Err(_) => Outcome::failure(format!("dial tcp {address}: i/o timeout")),
    }
}

/// Asks for a path and takes any answer from 200 to 399 for success.
pub(super) async fn http(action: &HTTPGetAction, target: &Target, timeout: Duration) -> Outcome {
    let mut stage = match Stage::of(action, target, USER_AGENT) {
        Ok(stage) => stage,
        Err(why) => return Outcome::error(why),
    };
    let headers = action.http_headers.as_deref().unwrap_or_default();
    match tokio::time::timeout(timeout, follow(&mut stage, headers)).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(why)) => Outcome::failure(format!("Get {:?}: {why}", stage.url)),
        Err(_) if stage.connected => {
            Outcome::failure(format!("Get {:?}: context deadline exceeded {LATE}", stage.url))
        }
        Err(_) => {
            let place = stage.url.parse::<Uri>().ok().and_then(|u| u.authority().map(ToString::to_string));
            let place = place.unwrap_or_default();
            Outcome::failure(format!("Get {:?}: dial tcp {place}: i/o timeout {LATE}", stage.url))
        }
    }
}

/// Asks for a path; any answer will do. A server without TLS is asked once more without: the place of that server.
pub(super) async fn call(
    action: &HTTPGetAction,
    target: &Target,
    limit: Duration,
) -> Result<Option<String>, String> {
    let mut stage = Stage::of(action, target, HOOK_AGENT)?;
    let headers = action.http_headers.as_deref().unwrap_or_default();
    let answer = tokio::time::timeout(limit, follow(&mut stage, headers)).await;
    let why = match answer {
        Ok(Ok(_)) => return Ok(None),
        Ok(Err(why)) => why,
        Err(_) => "context deadline exceeded".to_owned(),
    };
    let failed = format!("Get {:?}: {why}", stage.url);
    let Some(rest) = stage.url.strip_prefix("https://").filter(|_| why.contains(NO_TLS)) else {
        return Err(failed);
    };
    let place = rest.split('/').next().unwrap_or_default().to_owned();
    stage.url = format!("http://{rest}");
    // nothing secret goes over an open line
    let open: Vec<HTTPHeader> =
        headers.iter().filter(|h| !h.name.eq_ignore_ascii_case("authorization")).cloned().collect();
    match tokio::time::timeout(limit, follow(&mut stage, &open)).await {
        Ok(Ok(_)) => Ok(Some(place)),
        _ => Err(failed),
    }
}

/// What is under way when the time ends.
struct Stage {
    url: String,
    /// The connection stands.
    connected: bool,
    /// Who asks.
    agent: &'static str,
}

impl Stage {
    fn of(action: &HTTPGetAction, target: &Target, agent: &'static str) -> Result<Self, String> {
        let port = port(&action.port, &target.container)?;
        let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(&target.pod_ip);
        let path = action.path.as_deref().unwrap_or("/");
        let slash = if path.starts_with('/') { "" } else { "/" };
        let scheme = action.scheme.as_deref().unwrap_or("HTTP").to_ascii_lowercase();
        let url = format!("{scheme}://{}{slash}{path}", address(host, port));
        Ok(Self { url, connected: false, agent })
    }
}

async fn follow(stage: &mut Stage, headers: &[HTTPHeader]) -> Result<Outcome, String> {
    let mut uri: Uri = stage.url.parse().map_err(|e| format!("{e}"))?;
    for _ in 0..=REDIRECTS {
        stage.url = uri.to_string();
        stage.connected = false;
        let answer = get(&uri, headers, stage).await?;
        let code = answer.status();
        if is_redirect(code)
            && let Some(location) = answer.headers().get(header::LOCATION).and_then(|l| l.to_str().ok())
            && !location.is_empty()
        {
            let next = resolve(&uri, location)?;
            // another host is not ours to ask; that this one answers is enough
            if next.host() == uri.host() {
                uri = next;
                continue;
            }
        }
        let text = body(answer.into_body()).await?;
        return Ok(match code.as_u16() {
            200..300 => Outcome::success(text),
            300..400 => Outcome::warning(format!("Probe terminated redirects, Response body: {text}")),
            code => Outcome::failure(format!("HTTP probe failed with statuscode: {code}")),
        });
    }
    Err(format!("stopped after {REDIRECTS} redirects"))
}

fn is_redirect(code: StatusCode) -> bool {
    matches!(code.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Where a `Location` leads (RFC 3986, section 5.2, without dot segments).
fn resolve(base: &Uri, location: &str) -> Result<Uri, String> {
    let invalid = |e: http::uri::InvalidUri| format!("failed to parse Location header {location:?}: {e}");
    let location = location.split('#').next().unwrap_or_default();
    if location.starts_with("http://") || location.starts_with("https://") {
        return location.parse().map_err(invalid);
    }
    let scheme = base.scheme_str().unwrap_or("http");
    let place = base.authority().map_or("", |a| a.as_str());
    let text = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{place}{location}")
    } else if location.starts_with('?') {
        format!("{scheme}://{place}{}{location}", base.path())
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{place}{folder}/{location}")
    };
    text.parse().map_err(invalid)
}

async fn get(uri: &Uri, headers: &[HTTPHeader], stage: &mut Stage) -> Result<Response<Incoming>, String> {
    let https = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        other => return Err(format!("unsupported protocol scheme {:?}", other.unwrap_or_default())),
    };
    let host = bare(uri.host().unwrap_or_default());
    let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
    let tcp = TcpStream::connect((host, port)).await.map_err(|e| dial_error(&address(host, port), &e))?;
    stage.connected = true;
    if !https {
        return ask(tcp, uri, headers, stage.agent).await;
    }
    let name = ServerName::try_from(host.to_owned()).map_err(|e| e.to_string())?;
    // a probe asks whether something answers, not who (rule: API reference, `HTTPGetAction`)
    let config = tls::config(&tls::Roots::Anybody, None, &[]).map_err(|e| e.to_string())?;
    let tls = tokio_rustls::TlsConnector::from(config);
    let tls = tls.connect(name, tcp).await.map_err(|e| format!("tls: {e}"))?;
    ask(tls, uri, headers, stage.agent).await
}

async fn ask(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    uri: &Uri,
    headers: &[HTTPHeader],
    agent: &'static str,
) -> Result<Response<Incoming>, String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(|e| exchange_error(&e))?;
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let request = request(uri, path, headers, agent)?;
    // ends by itself when the answer is read or dropped
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::trace!(error = &error as &dyn std::error::Error, "a probe's connection ended");
        }
    });
    sender.send_request(request).await.map_err(|e| exchange_error(&e))
}

fn request(
    uri: &Uri,
    path: &str,
    headers: &[HTTPHeader],
    agent: &'static str,
) -> Result<Request<Empty<Bytes>>, String> {
    let mut request = Request::get(path).body(Empty::new()).map_err(|e| e.to_string())?;
    let place = uri.authority().map_or("", |a| a.as_str());
    let map = request.headers_mut();
    for HTTPHeader { name, value } in headers {
        let name: HeaderName =
            name.parse().map_err(|_| format!("net/http: invalid header field name {name:?}"))?;
        let value: HeaderValue = value
            .parse()
            .map_err(|_| format!("net/http: invalid header field value for {:?}", name.as_str()))?;
        map.append(name, value);
    }
    for (name, value) in [(header::USER_AGENT, agent), (header::ACCEPT, "*/*"), (header::HOST, place)] {
        let value = HeaderValue::from_str(value).map_err(|e| e.to_string())?;
        match map.get(&name) {
            // an empty one takes the header away
            Some(own) if own.is_empty() && name != header::HOST => drop(map.remove(&name)),
            Some(_) => {}
            None => drop(map.insert(name, value)),
        }
    }
    map.insert(header::CONNECTION, HeaderValue::from_static("close"));
    Ok(request)
}

/// The beginning of an answer's body.
async fn body(mut body: Incoming) -> Result<String, String> {
    let mut kept = Vec::new();
    while kept.len() < BODY
        && let Some(frame) = body.frame().await
    {
        if let Ok(data) = frame.map_err(|e| exchange_error(&e))?.into_data() {
            kept.extend_from_slice(&data);
        }
    }
    kept.truncate(BODY);
    Ok(String::from_utf8_lossy(&kept).into_owned())
}

/// Host and port as a URL writes them.
pub(super) fn address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{}]:{port}", bare(host)) } else { format!("{host}:{port}") }
}

pub(super) fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

pub(super) fn dial_error(address: &str, error: &std::io::Error) -> String {
    let why = match error.kind() {
        ErrorKind::ConnectionRefused => "connect: connection refused",
        ErrorKind::HostUnreachable => "connect: no route to host",
        ErrorKind::NetworkUnreachable => "connect: network is unreachable",
        ErrorKind::ConnectionReset => "connect: connection reset by peer",
        ErrorKind::TimedOut => "connect: connection timed out",
        _ => return format!("dial tcp {address}: {error}"),
    };
    format!("dial tcp {address}: {why}")
}

fn exchange_error(error: &hyper::Error) -> String {
    use std::error::Error;
    let io = error.source().and_then(|s| s.downcast_ref::<std::io::Error>());
    match io.map(std::io::Error::kind) {
        Some(ErrorKind::ConnectionReset) => "read: connection reset by peer".to_owned(),
        Some(ErrorKind::UnexpectedEof) => "EOF".to_owned(),
        _ if error.is_incomplete_message() => "EOF".to_owned(),
        _ => {
            let mut text = error.to_string();
            if let Some(source) = error.source() {
                // writing to a String cannot fail
                let _ = write!(text, ": {source}");
            }
            text
        }
    }
}
