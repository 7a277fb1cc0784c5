//! The HTTPS transport: HTTP/2 over TLS, one connection, made anew after it breaks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;

use crate::metrics::{Counter, Histogram, Metric};
use crate::{Body, Transport, TransportError};

/// Who the server is and who we are.
#[derive(Debug, Clone, Default)]
pub struct Endpoint {
    /// For example `https://127.0.0.1:6443`.
    pub server: String,
    /// The certificate authority of the server, PEM.
    pub ca_pem: Vec<u8>,
    /// Our certificate and key, PEM; empty for none.
    pub cert_pem: Vec<u8>,
    /// See `cert_pem`.
    pub key_pem: Vec<u8>,
    /// A bearer token; empty for none.
    pub token: String,
    /// Sent as `User-Agent`.
    pub user_agent: String,
}

/// Why an endpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The URL is not `https://host[:port]`.
    #[error("{0}: not an https:// URL")]
    Url(String),
    /// A PEM text holds no usable item.
    #[error("{what}: no usable PEM")]
    Pem {
        /// Which one.
        what: &'static str,
        /// Why.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// TLS refuses the certificates.
    #[error("unusable certificates")]
    Tls(#[from] rustls::Error),
    /// The token is no header value.
    #[error("the bearer token holds characters that a header cannot carry")]
    Token,
}

/// Longest wait for a connection.
pub(crate) const CONNECT: Duration = Duration::from_secs(10);
/// HTTP/2 windows; the defaults of 64 KiB stall large lists.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Requests by what became of them.
static REQUESTS: Counter = Counter::new(
    "rest_client_requests_total",
    "[ALPHA] Number of HTTP requests, partitioned by status code, method, and host.",
    &["code", "host", "method"],
);
/// How long their answers took to begin.
static DURATION: Histogram = Histogram::new(
    "rest_client_request_duration_seconds",
    "[ALPHA] Request latency in seconds. Broken down by verb, and host.",
    &["host", "verb"],
    &[0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0],
);
/// What this process asked of servers over the network.
pub static METRICS: &[&dyn Metric] = &[&REQUESTS, &DURATION];

/// HTTP/2 over TLS to one server.
pub struct Https {
    authority: String,
    host: String,
    port: u16,
    tls: TlsConnector,
    bearer: Option<HeaderValue>,
    agent: HeaderValue,
    connection: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

impl Https {
    /// Checks the endpoint; connects at the first request.
    pub fn new(endpoint: &Endpoint) -> Result<Self, EndpointError> {
        let bad = || EndpointError::Url(endpoint.server.clone());
        let uri: Uri = endpoint.server.parse().map_err(|_| bad())?;
        if uri.scheme_str() != Some("https") {
            return Err(bad());
        }
        let authority = uri.authority().ok_or_else(bad)?.to_string();
        let host = uri.host().ok_or_else(bad)?.trim_matches(['[', ']']).to_owned();
        let mut roots = rustls::RootCertStore::empty();
        for cert in CertificateDer::pem_slice_iter(&endpoint.ca_pem) {
            roots
                .add(cert.map_err(|source| EndpointError::Pem { what: "certificate authority", source })?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let mut config = if endpoint.cert_pem.is_empty() {
            builder.with_no_client_auth()
        } else {
            let chain = CertificateDer::pem_slice_iter(&endpoint.cert_pem)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|source| EndpointError::Pem { what: "client certificate", source })?;
            let key = PrivateKeyDer::from_pem_slice(&endpoint.key_pem)
                .map_err(|source| EndpointError::Pem { what: "client key", source })?;
            builder.with_client_auth_cert(chain, key)?
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let bearer = match endpoint.token.as_str() {
            "" => None,
            token => {
                let mut value =
                    HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| EndpointError::Token)?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Self {
            port: uri.port_u16().unwrap_or(443),
            authority,
            host,
            tls: TlsConnector::from(Arc::new(config)),
            bearer,
            agent: HeaderValue::from_str(&endpoint.user_agent)
                .unwrap_or_else(|_| HeaderValue::from_static("navarch")),
            connection: Mutex::new(None),
        })
    }

    async fn connection(&self) -> Result<SendRequest<Full<Bytes>>, TransportError> {
        let mut slot = self.connection.lock().await;
        if let Some(open) = slot.as_ref().filter(|c| !c.is_closed()) {
            return Ok(open.clone());
        }
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| TransportError::Connect {
            server: self.authority.clone(),
            source,
        };
        let sender = tokio::time::timeout(CONNECT, self.connect())
            .await
            .map_err(|_| failed("timed out".into()))?
            .map_err(failed)?;
        *slot = Some(sender.clone());
        Ok(sender)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from(self.host.clone())?;
        let tls = self.tls.connect(name, tcp).await?;
        let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(15))
            .timer(hyper_util::rt::TokioTimer::new())
            .handshake(TokioIo::new(tls))
            .await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "connection to the API server ended"
                );
            }
        });
        Ok(sender)
    }
}

#[async_trait]
impl Transport for Https {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, TransportError> {
        let (mut parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().map_or("/", |p| p.as_str());
        parts.uri = Uri::builder()
            .scheme("https")
            .authority(self.authority.as_str())
            .path_and_query(path)
            .build()
            .map_err(|e| TransportError::Broken(e.into()))?;
        parts.headers.entry(header::USER_AGENT).or_insert(self.agent.clone());
        if let Some(bearer) = &self.bearer {
            parts.headers.insert(header::AUTHORIZATION, bearer.clone());
        }
        let (begin, method) = (Instant::now(), parts.method.clone());
        let answer = async {
            let mut sender = self.connection().await?;
            let request = Request::from_parts(parts, Full::new(body));
            sender.send_request(request).await.map_err(|e| TransportError::Broken(e.into()))
        };
        let answer = answer.await;
        let code = answer.as_ref().map(Response::status);
        let code = code.as_ref().map_or("<error>", StatusCode::as_str);
        REQUESTS.add(&[code, &self.authority, method.as_str()]);
        DURATION.time(&[&self.authority, method.as_str()], begin.elapsed());
        let answer = answer?;
        Ok(answer.map(|body| body.map_err(Into::into).boxed_unsync()))
    }
}
