//! Passing a request on to a backend (a kubelet, a pod, an endpoint of a service) and its answer back.
//!
//! A backend is dialled for one request; bodies are streamed both ways with what the connections buffer; hop-by-hop
//! headers and credentials are taken off. A connection that changes protocol (WebSocket, SPDY) becomes a plain pipe,
//! of which there are at most [`PIPES`] at a time.
//!
//! Tasks: one per connection to a backend, one per pipe; each ends with its connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client::{Body, relay, tls};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

/// Longest wait for a connection, TLS included.
const DIAL: Duration = Duration::from_secs(10);
/// Upgraded connections at the same time.
const PIPES: usize = 8192;
/// Begins the WebSocket subprotocol in which browsers send a bearer token.
pub const BEARER_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// Headers about one connection only (RFC 9110 §7.6.1, and what came before it).
const HOP_BY_HOP: &[&str] = &[
    "connection",
    "proxy-connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Where a request came from: an extension of requests that came over the network.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// The body of a request that is not collected before it is served: an extension of such requests.
#[derive(Clone)]
pub struct StreamedBody(Arc<Mutex<Option<Incoming>>>);

impl StreamedBody {
    /// A body that one reader may take.
    pub fn new(body: Incoming) -> Self {
        Self(Arc::new(Mutex::new(Some(body))))
    }

    /// The body; `None` once it was taken.
    pub fn take(&self) -> Option<Body> {
        self.0.lock().take().map(|body| body.map_err(Into::into).boxed_unsync())
    }
}

/// Why a backend gave no answer; in the words that clients know from the reference.
#[derive(Debug, thiserror::Error)]
pub enum Unreachable {
    /// No connection.
    #[error("dial tcp {address}: {why}")]
    Dial {
        /// Host and port.
        address: String,
        /// What the system said.
        why: String,
    },
    /// TLS, or no sensible answer.
    #[error("{0}")]
    Exchange(String),
    /// Too many pipes.
    #[error("too many upgraded connections, please try again later")]
    Busy,
}

/// A place to dial.
#[derive(Debug, Clone)]
pub struct Place {
    /// An address or a name.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// What its certificate names, where that is not `host`.
    pub name: Option<String>,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// Dials backends and keeps count of the pipes to them.
#[derive(Clone)]
pub struct Dialer {
    pipes: Arc<Semaphore>,
}

impl Default for Dialer {
    fn default() -> Self {
        Self { pipes: Arc::new(Semaphore::new(PIPES)) }
    }
}

impl Dialer {
    /// Sends `request`, whose URI is a path, to `place` (with `tls` where that is given) and returns the answer
    /// without its hop-by-hop headers. `client_side` is the client's connection where it wants to change protocol;
    /// it is joined with the backend's once that agrees.
    pub async fn exchange(
        self,
        place: Place,
        tls: Option<TlsConnector>,
        request: Request<Body>,
        client_side: Option<OnUpgrade>,
    ) -> Result<Response<Body>, Unreachable> {
        let permit = match client_side {
            Some(_) => Some(self.pipes.try_acquire_owned().map_err(|_| Unreachable::Busy)?),
            None => None,
        };
        let dialled = tokio::time::timeout(DIAL, connect(place.clone(), tls)).await;
        let io = dialled.map_err(|_| dial_failed(&place, "i/o timeout".to_owned()))??;
        let exchange = |e: hyper::Error| Unreachable::Exchange(innermost(&e));
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(io)).await.map_err(exchange)?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(error = &error as &dyn std::error::Error, "connection to a backend ended");
            }
        });
        let mut answer = sender.send_request(request).await.map_err(exchange)?;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS
            && let Some(client_side) = client_side
        {
            let backend_side = hyper::upgrade::on(&mut answer);
            tokio::spawn(async move {
                let _permit = permit;
                if let (Ok(client), Ok(backend)) = tokio::join!(client_side, backend_side) {
                    relay::both_ways(TokioIo::new(client), TokioIo::new(backend)).await;
                }
            });
            return Ok(answer.map(|_| crate::answer::full(Bytes::new())));
        }
        let (mut parts, body) = answer.into_parts();
        remove_hop_by_hop(&mut parts.headers);
        Ok(Response::from_parts(parts, body.map_err(Into::into).boxed_unsync()))
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn connect(place: Place, tls: Option<TlsConnector>) -> Result<Box<dyn Stream>, Unreachable> {
    let tcp = TcpStream::connect((place.host.clone(), place.port))
        .await
        .map_err(|e| dial_failed(&place, go_words(&e)))?;
    // small interactive writes must not wait for each other; failing to say so changes nothing else
    let _ = tcp.set_nodelay(true);
    let Some(tls) = tls else { return Ok(Box::new(tcp)) };
    let name = place.name.unwrap_or(place.host);
    let name = ServerName::try_from(name).map_err(|e| Unreachable::Exchange(e.to_string()))?;
    match tls.connect(name, tcp).await {
        Ok(tls) => Ok(Box::new(tls)),
        Err(error) => Err(Unreachable::Exchange(tls::explain(&error))),
    }
}

fn dial_failed(place: &Place, why: String) -> Unreachable {
    Unreachable::Dial { address: place.to_string(), why }
}

fn go_words(error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        ErrorKind::TimedOut => "connect: connection timed out".to_owned(),
        _ => error.to_string(),
    }
}

/// The cause of causes; a connection that ends before an answer is an `EOF`.
fn innermost(error: &hyper::Error) -> String {
    if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        return "EOF".to_owned();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// A connector that takes any certificate, as the reference does for `https:` pods and services: what they
/// present is signed by nobody the API server knows.
pub fn trusting_connector() -> Result<TlsConnector, tls::TlsError> {
    tls::config(&tls::Roots::Anybody, None, &[]).map(TlsConnector::from)
}

/// Whether a request wants to change the protocol of its connection.
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    connection_tokens(headers).any(|token| token.eq_ignore_ascii_case("upgrade"))
}

fn connection_tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(',').map(str::trim))
}

/// Removes what is about one connection only, and what the `Connection` header says is.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = connection_tokens(headers).filter_map(|token| token.parse().ok()).collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(*name);
    }
}

/// Removes what says who the caller is: backends are not to act in its name.
pub fn remove_credentials(headers: &mut HeaderMap) {
    let secret: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            *name == header::AUTHORIZATION
                || name.as_str().starts_with("impersonate-")
                || name.as_str().starts_with("x-remote-")
        })
        .cloned()
        .collect();
    for name in secret {
        headers.remove(name);
    }
    let protocols: Vec<&str> = subprotocols(headers).collect();
    if protocols.iter().any(|p| p.starts_with(BEARER_PROTOCOL)) {
        let kept: Vec<&str> = protocols.into_iter().filter(|p| !p.starts_with(BEARER_PROTOCOL)).collect();
        let kept = HeaderValue::from_str(&kept.join(", ")).ok().filter(|v| !v.is_empty());
        headers.remove(header::SEC_WEBSOCKET_PROTOCOL);
        if let Some(kept) = kept {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, kept);
        }
    }
}

/// The WebSocket subprotocols a request offers.
pub fn subprotocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(',').map(str::trim))
        .filter(|protocol| !protocol.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (n.parse::<HeaderName>().unwrap(), v.parse().unwrap())).collect()
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        headers.keys().map(HeaderName::as_str).collect()
    }

    #[test]
    fn what_is_about_one_connection_is_not_passed_on() {
        let mut all = headers(&[
            ("connection", "keep-alive, X-Mine"),
            ("keep-alive", "5"),
            ("x-mine", "1"),
            ("te", "trailers"),
            ("accept", "*/*"),
        ]);
        remove_hop_by_hop(&mut all);
        assert_eq!(names(&all), ["accept"]);
    }

    #[test]
    fn credentials_are_not_passed_on() {
        let mut all = headers(&[
            ("authorization", "Bearer x"),
            ("impersonate-user", "u"),
            ("x-remote-group", "g"),
            ("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.eA, v5.channel.k8s.io"),
        ]);
        remove_credentials(&mut all);
        assert_eq!(names(&all), ["sec-websocket-protocol"]);
        assert_eq!(all["sec-websocket-protocol"], "v5.channel.k8s.io");
    }
}
