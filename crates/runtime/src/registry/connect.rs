//! Connections to registries: TCP, through a proxy where the environment says so, TLS as the settings say.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use http::Uri;
use http_body_util::combinators::UnsyncBoxBody;
use hyper_util::{
    client::legacy::{
        Client,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tower::util::BoxCloneSyncService;

use super::{
    proxy::{self, Proxies},
    settings::{Settings, Tls},
    trust,
};

/// Longest wait for a connection, TLS included.
const CONNECT: Duration = Duration::from_secs(30);
/// So long an address is awaited before the next one of its host is tried beside it (RFC 8305, 8).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);
/// Longest answer of a proxy to CONNECT, in bytes.
const PROXY_ANSWER: usize = 16 * 1024;

/// What requests carry.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;
type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Connector = BoxCloneSyncService<Uri, TokioIo<Wire>, BoxError>;
/// The HTTP client: a pool of connections.
pub(super) type Http = Client<Connector, Body>;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    /// Nobody answers, or not in time.
    #[error("{0}")]
    Unreachable(String),
    /// It is not who it should be; trying again is of no use.
    #[error("{0}")]
    Untrusted(String),
}

/// A pool of connections made as `settings` say.
pub(super) fn client(settings: Arc<Settings>, proxies: Proxies, idle: Duration) -> Http {
    let dialer = Arc::new(Dialer { settings, proxies, timeout: CONNECT.min(idle), tls: Mutex::default() });
    let connector = BoxCloneSyncService::new(tower::service_fn(move |uri: Uri| {
        let dialer = dialer.clone();
        async move {
            let dialed = tokio::time::timeout(dialer.timeout, dialer.dial(&uri)).await;
            let wire = dialed.unwrap_or_else(|_| {
                Err(ConnectError::Unreachable(format!("no answer in {} s", dialer.timeout.as_secs_f32())))
            })?;
            Ok::<_, BoxError>(TokioIo::new(wire))
        }
    }));
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(20))
        .pool_max_idle_per_host(8)
        .build(connector)
}

struct Dialer {
    settings: Arc<Settings>,
    proxies: Proxies,
    timeout: Duration,
    /// Made once per kind of TLS: reading the system's authorities takes milliseconds.
    tls: Mutex<HashMap<Tls, Arc<ClientConfig>>>,
}

impl Dialer {
    async fn dial(&self, uri: &Uri) -> Result<Wire, ConnectError> {
        let unreachable = |why: String| ConnectError::Unreachable(why);
        let secure = uri.scheme_str() == Some("https");
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let proxy = self.proxies.of(uri);
        let (to, at) = match proxy {
            Some(proxy) => {
                let host = proxy.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
                (host, proxy.port_u16().unwrap_or(80))
            }
            None => (host.clone(), port),
        };
        let addresses = tokio::net::lookup_host((to.as_str(), at)).await;
        let tcp = match addresses {
            Ok(addresses) => reach(addresses.collect()).await,
            Err(error) => Err(error),
        };
        let tcp = tcp.map_err(|error| match proxy {
            Some(_) => unreachable(format!("proxy {to}:{at}: {error}")),
            None => unreachable(error.to_string()),
        })?;
        let _ = tcp.set_nodelay(true);
        if !secure {
            return Ok(Wire { stream: Box::new(tcp), proxied: proxy.is_some() });
        }
        let tcp = match proxy {
            Some(proxy) => tunnel(tcp, proxy, &host, port)
                .await
                .map_err(|error| unreachable(format!("proxy {to}:{at}: {error}")))?,
            None => tcp,
        };
        let authority = uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
        let config = self.config(&self.settings.tls(authority)).map_err(ConnectError::Untrusted)?;
        let name = ServerName::try_from(host)
            .map_err(|_| ConnectError::Untrusted("not a host name for TLS".to_owned()))?;
        let tls = TlsConnector::from(config).connect(name, tcp).await.map_err(|error| explain(&error))?;
        Ok(Wire { stream: Box::new(tls), proxied: false })
    }

    fn config(&self, tls: &Tls) -> Result<Arc<ClientConfig>, String> {
        if let Some(known) = self.tls.lock().get(tls) {
            return Ok(known.clone());
        }
        let config = trust::config(tls)?;
        self.tls.lock().insert(tls.clone(), config.clone());
        Ok(config)
    }
}

/// A connection to one of a host's addresses: each in turn, of both families alternately, beside those that have not
/// answered yet (RFC 8305). A family that leads nowhere from here thus keeps nobody from the other.
async fn reach(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut seen = [0, 0];
    let mut ordered: Vec<(usize, SocketAddr)> = Vec::with_capacity(addresses.len());
    for address in addresses {
        let [v4, v6] = &mut seen;
        let place = if address.is_ipv6() { v6 } else { v4 };
        *place += 1;
        ordered.push((*place, address));
    }
    ordered.sort_by_key(|(place, _)| *place);
    let mut waiting = ordered.into_iter();
    let mut trying = FuturesUnordered::new();
    let mut failed = None;
    loop {
        match waiting.next() {
            Some((_, address)) => trying.push(TcpStream::connect(address)),
            None if trying.is_empty() => {
                return Err(failed.unwrap_or_else(|| io::Error::other("it has no address")));
            }
            None => {}
        }
        tokio::select! {
            Some(tried) = trying.next() => match tried {
                Ok(stream) => return Ok(stream),
                Err(error) => drop(failed.get_or_insert(error)),
            },
            () = tokio::time::sleep(NEXT_ADDRESS), if waiting.len() > 0 => {}
        }
    }
}

/// A failed handshake in words that say what to do.
fn explain(error: &io::Error) -> ConnectError {
    use rustls::{CertificateError as Bad, Error as TlsError, InvalidMessage};
    let why = match error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) {
        Some(TlsError::InvalidCertificate(bad)) => {
            let why = match bad {
                Bad::UnknownIssuer | Bad::BadSignature => {
                    "certificate signed by unknown authority (its authority can be set in registries.yaml)"
                        .to_owned()
                }
                Bad::Expired
                | Bad::ExpiredContext { .. }
                | Bad::NotValidYet
                | Bad::NotValidYetContext { .. } => "certificate has expired or is not yet valid".to_owned(),
                other => other.to_string(),
            };
            format!("tls: failed to verify certificate: x509: {why}")
        }
        Some(TlsError::InvalidMessage(InvalidMessage::InvalidContentType)) => {
            "it does not speak TLS; plain HTTP needs an http:// endpoint in registries.yaml".to_owned()
        }
        Some(TlsError::AlertReceived(alert)) => format!("tls: it refuses the handshake: {alert:?}"),
        Some(other) => format!("tls: {other}"),
        None => return ConnectError::Unreachable(format!("TLS handshake: {error}")),
    };
    ConnectError::Untrusted(why)
}

/// Asks an HTTP proxy for a connection to `host:port`.
async fn tunnel(mut tcp: TcpStream, proxy: &Uri, host: &str, port: u16) -> io::Result<TcpStream> {
    let target = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
    let mut head = head.into_bytes();
    if let Some(credentials) = proxy::credentials(proxy) {
        head.extend_from_slice(b"Proxy-Authorization: ");
        head.extend_from_slice(credentials.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    tcp.write_all(&head).await?;
    let mut answer = Vec::new();
    // byte by byte: what follows the answer belongs to TLS
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() > PROXY_ANSWER {
            return Err(io::Error::other("its answer is too long"));
        }
        answer.push(tcp.read_u8().await?);
    }
    let line =
        String::from_utf8_lossy(answer.split(|byte| *byte == b'\r').next().unwrap_or_default()).into_owned();
    match line.split_whitespace().nth(1) {
        Some("200") => Ok(tcp),
        _ => Err(io::Error::other(format!("it refuses: {line}"))),
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// One connection.
pub(super) struct Wire {
    stream: Box<dyn Stream>,
    proxied: bool,
}

impl Connection for Wire {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.proxied)
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[tokio::test]
    async fn an_address_that_does_not_answer_keeps_nobody_from_the_next() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let to = silent.local_addr().unwrap();
        // with one connection that nobody accepts it is full: the kernel answers no more
        rustix::net::listen(silent.as_fd(), 0).unwrap();
        let _held = TcpStream::connect(to).await.unwrap();
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let open = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let open_at = open.local_addr().unwrap();
        let stream = reach(vec![to, closed, open_at]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), open_at);
        assert_eq!(reach(vec![closed]).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert!(reach(Vec::new()).await.is_err());
    }
}
