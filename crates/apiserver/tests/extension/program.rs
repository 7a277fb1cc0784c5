//! A program outside: an HTTPS server on a free port, with a certificate of its own authority.

use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// What a program answers: status, body.
pub type Answer = (u16, Value);
type Handler = dyn Fn(&Request<Bytes>, &Value) -> Answer + Send + Sync;

/// A running program; ends with the test.
pub struct Program {
    pub address: SocketAddr,
    /// Its authority's certificate, PEM in base64, as a `caBundle`.
    pub bundle: String,
    /// Requests so far: path with query, body.
    calls: Arc<Mutex<Vec<(String, Value)>>>,
    connections: Arc<Mutex<usize>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Program {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Program {
    /// Starts; its certificate names `localhost`, 127.0.0.1 and `names`.
    pub async fn start(
        names: &[&str],
        handler: impl Fn(&Request<Bytes>, &Value) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).unwrap();
        let issuer = rcgen::Issuer::from_ca_cert_pem(&authority.pem(), key).unwrap();
        let own_key = rcgen::KeyPair::generate().unwrap();
        let all: Vec<String> =
            ["localhost", "127.0.0.1"].iter().chain(names).map(|n| (*n).to_owned()).collect();
        let own = rcgen::CertificateParams::new(all).unwrap().signed_by(&own_key, &issuer).unwrap();

        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(own.pem().as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(own_key.serialize_pem().as_bytes()).unwrap(),
            )
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (calls, connections) = (Arc::new(Mutex::default()), Arc::new(Mutex::new(0)));
        let handler: Arc<Handler> = Arc::new(handler);
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let task = tokio::spawn(accept(listener, acceptor, handler, calls.clone(), connections.clone()));
        Self { address, bundle: STANDARD.encode(authority.pem()), calls, connections, task }
    }

    /// `https://127.0.0.1:port/path`.
    pub fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }

    /// Requests since the last look.
    pub fn calls(&self) -> Vec<(String, Value)> {
        std::mem::take(&mut self.calls.lock())
    }

    /// Connections that were made.
    pub fn connections(&self) -> usize {
        *self.connections.lock()
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    handler: Arc<Handler>,
    calls: Arc<Mutex<Vec<(String, Value)>>>,
    connections: Arc<Mutex<usize>>,
) {
    let mut tasks = tokio::task::JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        *connections.lock() += 1;
        let (acceptor, handler, calls) = (acceptor.clone(), handler.clone(), calls.clone());
        tasks.spawn(async move {
            let Ok(tls) = acceptor.accept(tcp).await else { return };
            let service = service_fn(move |request: Request<Incoming>| {
                let (handler, calls) = (handler.clone(), calls.clone());
                async move {
                    let (parts, body) = request.into_parts();
                    let bytes = body.collect().await.unwrap().to_bytes();
                    let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
                    let path = parts.uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
                    calls.lock().push((path, value.clone()));
                    let (code, answer) = handler(&Request::from_parts(parts, bytes), &value);
                    let mut response = Response::builder().status(code);
                    if (300..400).contains(&code) {
                        response = response.header("location", answer.as_str().unwrap());
                    }
                    let body = Full::new(Bytes::from(answer.to_string()));
                    Ok::<_, std::convert::Infallible>(
                        response.header("content-type", "application/json").body(body).unwrap(),
                    )
                }
            });
            let _ = auto::Builder::new(TokioExecutor::new())
                .serve_connection_with_upgrades(TokioIo::new(tls), service)
                .await;
        });
    }
}
