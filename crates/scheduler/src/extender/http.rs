//! HTTP/1.1 to one extender: connections are dialled when needed and kept for the next question.
use bytes::Bytes;
use client::tls;
use http::{Request, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::Settings;

/// Largest answer: 5 000 nodes with all they say of themselves.
const ANSWER: usize = 256 << 20;
/// Connections kept open without a question.
const IDLE: usize = 4;

type Sender = SendRequest<Full<Bytes>>;

pub(super) struct Http {
    host: String,
    port: u16,
    /// With the brackets of an IPv6 address, and the port.
    authority: String,
    path: String,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    idle: Mutex<Vec<Sender>>,
}

impl Http {
    pub(super) fn new(settings: &Settings) -> Result<Self, String> {
        let uri: Uri = settings.url_prefix.parse().map_err(|e: http::uri::InvalidUri| e.to_string())?;
        let host = uri.host().ok_or("the URL names no host")?.trim_matches(['[', ']']).to_owned();
        let secure = settings.https || uri.scheme_str() == Some("https");
        let tls = if secure { Some(Self::tls(settings, &host)?) } else { None };
        Ok(Self {
            port: uri.port_u16().unwrap_or(if secure { 443 } else { 80 }),
            authority: uri.authority().map(ToString::to_string).unwrap_or_default(),
            path: uri.path().trim_end_matches('/').to_owned(),
            host,
            tls,
            idle: Mutex::default(),
        })
    }

    fn tls(settings: &Settings, host: &str) -> Result<(TlsConnector, ServerName<'static>), String> {
        let tls = &settings.tls;
        let read = |data: &Option<Vec<u8>>, file: &Option<std::path::PathBuf>| match (data, file) {
            (Some(data), _) => Ok(Some(data.clone())),
            (None, Some(file)) => {
                std::fs::read(file).map(Some).map_err(|error| format!("{}: {error}", file.display()))
            }
            (None, None) => Ok(None),
        };
        let authority = read(&tls.ca_data, &tls.ca_file)?;
        let (cert, key) = (read(&tls.cert_data, &tls.cert_file)?, read(&tls.key_data, &tls.key_file)?);
        let roots = match &authority {
            _ if tls.insecure => tls::Roots::Anybody,
            Some(pem) => tls::Roots::Pem(pem),
            // As the reference does: HTTPS without an authority is encrypted, no more.
            None if settings.https => tls::Roots::Anybody,
            None => tls::Roots::System,
        };
        let identity = cert.as_deref().zip(key.as_deref());
        let config = tls::config(&roots, identity, &["http/1.1"]).map_err(|error| error.to_string())?;
        let name = if tls.server_name.is_empty() { host } else { &tls.server_name };
        let name = ServerName::try_from(name.to_owned()).map_err(|error| error.to_string())?;
        Ok((TlsConnector::from(config), name))
    }

    /// Asks; status and body of the answer.
    pub(super) async fn post(&self, verb: &str, question: &Value) -> Result<(u16, Bytes), String> {
        let body = serde_json::to_vec(question).map_err(|error| error.to_string())?;
        let request = Request::post(format!("{}/{verb}", self.path))
            .header(header::HOST, &self.authority)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| error.to_string())?;
        let mut request = request;
        // What was kept may have been closed by the other side: then nothing of the question was sent.
        while let Some(mut sender) = self.kept() {
            if sender.ready().await.is_err() {
                continue;
            }
            match sender.try_send_request(request).await {
                Ok(answer) => return self.finish(sender, answer).await,
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(failed.into_error().to_string()),
                },
            }
        }
        let mut sender = self.open().await?;
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        self.finish(sender, answer).await
    }

    fn kept(&self) -> Option<Sender> {
        let mut idle = self.idle.lock();
        idle.retain(|sender| !sender.is_closed());
        idle.pop()
    }

    async fn open(&self) -> Result<Sender, String> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await;
        let tcp = tcp.map_err(|error| format!("dial tcp {}:{}: {error}", self.host, self.port))?;
        // Latency of small messages; failing to set it changes nothing else.
        let _ = tcp.set_nodelay(true);
        match &self.tls {
            Some((connector, name)) => {
                let tls = connector.connect(name.clone(), tcp).await.map_err(|e| tls::explain(&e))?;
                handshake(TokioIo::new(tls)).await
            }
            None => handshake(TokioIo::new(tcp)).await,
        }
    }

    async fn finish(
        &self,
        sender: Sender,
        answer: http::Response<hyper::body::Incoming>,
    ) -> Result<(u16, Bytes), String> {
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER).collect().await.map_err(|error| error.to_string())?;
        let mut idle = self.idle.lock();
        if idle.len() < IDLE && !sender.is_closed() {
            idle.push(sender);
        }
        Ok((parts.status.as_u16(), body.to_bytes()))
    }
}

async fn handshake<T>(io: TokioIo<T>) -> Result<Sender, String>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(io).await.map_err(|error| error.to_string())?;
    // Ends when the sender is dropped or the other side closes.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(sender)
}
