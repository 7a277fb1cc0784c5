//! A program outside that the server asks over HTTPS.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

use crate::cluster::write;

pub struct Outside {
    pub address: SocketAddr,
    pub ca_pem: String,
}

impl Outside {
    /// Answers every request with what `answer` makes of path and body; null is 404, a number that code.
    pub async fn start(answer: impl Fn(&str, Value) -> Value + Send + Sync + 'static) -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let ca_pem = made.cert.pem();
        let chain = CertificateDer::pem_slice_iter(ca_pem.as_bytes()).flatten().collect();
        let key = PrivateKeyDer::from_pem_slice(made.signing_key.serialize_pem().as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = Arc::new(answer);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, answer) = (acceptor.clone(), answer.clone());
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    let service = service_fn(move |request: Request<Incoming>| {
                        let answer = answer.clone();
                        async move {
                            let (parts, body) = request.into_parts();
                            let body = body.collect().await.unwrap().to_bytes();
                            let body = serde_json::from_slice(&body).unwrap_or_default();
                            let value = answer(parts.uri.path(), body);
                            let code = match &value {
                                Value::Null => 404,
                                code => code.as_u64().map_or(200, |code| code as u16),
                            };
                            let text = Full::new(Bytes::from(value.to_string()));
                            Ok::<_, Infallible>(Response::builder().status(code).body(text).unwrap())
                        }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(tls), service)
                        .await;
                });
            }
        });
        Self { address, ca_pem }
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// A kubeconfig that names this program.
    pub fn kubeconfig(&self, dir: &Path) -> PathBuf {
        write(dir, "outside-ca.pem", &self.ca_pem);
        let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": format!("{}/review", self.url()),
                "certificate-authority": "outside-ca.pem"}}],
            "users": [{"name": "u", "user": {}}]});
        write(dir, "outside.kubeconfig", &config.to_string())
    }
}
