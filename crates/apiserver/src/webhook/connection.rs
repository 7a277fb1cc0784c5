//! HTTP/1.1 over TLS to one program: connections are dialled when needed and kept for the next call.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use client::tls::explain;
use http::Request;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::resolve::{Address, resolve};
use crate::watch_cache::WatchCache;

/// Connections kept open without a call.
const IDLE: usize = 8;
/// ... and for how long: less than the programs' own limits, usually 90 s and more.
const IDLE_TIME: Duration = Duration::from_secs(30);

type Sender = SendRequest<Full<Bytes>>;

/// The connections to one program.
pub(super) struct Connections {
    tls: TlsConnector,
    name: ServerName<'static>,
    idle: Mutex<Vec<(Sender, Instant)>>,
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connections({:?}, {} idle)", self.name, self.idle.lock().len())
    }
}

impl Connections {
    /// To a program whose certificate names `server_name`.
    pub(super) fn new(tls: Arc<rustls::ClientConfig>, server_name: &str) -> Result<Self, String> {
        let name = ServerName::try_from(server_name.to_owned())
            .map_err(|_| format!("{server_name:?} is no name of a server"))?;
        Ok(Self { tls: TlsConnector::from(tls), name, idle: Mutex::default() })
    }

    /// Sends a request; status and body of the answer.
    pub(super) async fn send(
        &self,
        cache: &WatchCache,
        address: &Address,
        request: Request<Bytes>,
        limit: usize,
    ) -> Result<(u16, Bytes), String> {
        let mut request = request.map(Full::new);
        // what was kept may have been closed by the other side: then nothing of the request was sent
        while let Some(mut sender) = self.kept() {
            if sender.ready().await.is_err() {
                continue;
            }
            match sender.try_send_request(request).await {
                Ok(answer) => return self.finish(sender, answer, limit).await,
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(text(&failed.into_error())),
                },
            }
        }
        let mut sender = self.open(cache, address).await?;
        let answer = sender.send_request(request).await.map_err(|e| text(&e))?;
        self.finish(sender, answer, limit).await
    }

    fn kept(&self) -> Option<Sender> {
        let mut idle = self.idle.lock();
        idle.retain(|(sender, since)| !sender.is_closed() && since.elapsed() < IDLE_TIME);
        idle.pop().map(|(sender, _)| sender)
    }

    async fn open(&self, cache: &WatchCache, address: &Address) -> Result<Sender, String> {
        let (host, port) = resolve(cache, address).map_err(|e| e.to_string())?;
        let tls = dial(&self.tls, &self.name, &host, port).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(tls)).await.map_err(|e| text(&e))?;
        // ends when the sender is dropped or the other side closes
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(sender)
    }

    async fn finish(
        &self,
        sender: Sender,
        answer: http::Response<hyper::body::Incoming>,
        limit: usize,
    ) -> Result<(u16, Bytes), String> {
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, limit).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                format!("the answer is larger than {limit} bytes")
            } else {
                error.to_string()
            }
        })?;
        let mut idle = self.idle.lock();
        if idle.len() < IDLE && !sender.is_closed() {
            idle.push((sender, Instant::now()));
        }
        Ok((parts.status.as_u16(), body.to_bytes()))
    }
}

/// Dials a program and speaks TLS with it. Failures are in the words of the reference.
pub async fn dial(
    tls: &TlsConnector,
    name: &ServerName<'static>,
    host: &str,
    port: u16,
) -> Result<TlsStream<TcpStream>, String> {
    let mut failed = format!("dial tcp: lookup {host}: no such host");
    let Ok(addresses) = tokio::net::lookup_host((host, port)).await else { return Err(failed) };
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(tcp) => {
                // latency of small messages; failing to set it changes nothing else
                let _ = tcp.set_nodelay(true);
                return tls.connect(name.clone(), tcp).await.map_err(|e| explain(&e));
            }
            Err(error) => {
                let why = match error.kind() {
                    std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
                    std::io::ErrorKind::TimedOut => "connection timed out".to_owned(),
                    _ => error.to_string(),
                };
                failed = format!("dial tcp {address}: connect: {why}");
            }
        }
    }
    Err(failed)
}

/// An error with its causes, which hyper's own text leaves out.
fn text(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    text
}
