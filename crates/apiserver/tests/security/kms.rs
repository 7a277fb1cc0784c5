//! A key management service on a unix socket: what it seals is opened by it alone.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use apiserver::Options;
use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use serde_json::{Value, json};
use store::Store as _;

use crate::cluster::{Cluster, write};

/// Every message of the protocol has at most four fields; the numbers decide.
#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(string, tag = "2")]
    healthz: String,
    #[prost(string, tag = "3")]
    key_id: String,
}

#[derive(Clone, PartialEq, Message)]
struct Input {
    #[prost(bytes = "vec", tag = "1")]
    data: Vec<u8>,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    key_id: String,
    #[prost(map = "string, bytes", tag = "4")]
    annotations: HashMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Encrypted {
    #[prost(bytes = "vec", tag = "1")]
    data: Vec<u8>,
    #[prost(string, tag = "2")]
    key_id: String,
    #[prost(map = "string, bytes", tag = "3")]
    annotations: HashMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Decrypted {
    #[prost(bytes = "vec", tag = "1")]
    data: Vec<u8>,
}

#[derive(Default)]
struct Plugin {
    key: AtomicU64,
    encrypted: AtomicU64,
    decrypted: AtomicU64,
}

impl Plugin {
    /// No cipher, but nobody else turns bytes around.
    fn answer(&self, path: &str, body: &[u8]) -> Vec<u8> {
        let key_id = format!("k{}", self.key.load(Ordering::SeqCst));
        let input = Input::decode(body).unwrap();
        let mut data = input.data;
        data.reverse();
        match path {
            "/v2.KeyManagementService/Status" => {
                Status { version: "v2".to_owned(), healthz: "ok".to_owned(), key_id }.encode_to_vec()
            }
            "/v2.KeyManagementService/Encrypt" => {
                self.encrypted.fetch_add(1, Ordering::SeqCst);
                let annotations = HashMap::from([("a.example.com".to_owned(), b"note".to_vec())]);
                Encrypted { data, key_id, annotations }.encode_to_vec()
            }
            "/v2.KeyManagementService/Decrypt" => {
                assert_eq!(input.annotations["a.example.com"], b"note");
                self.decrypted.fetch_add(1, Ordering::SeqCst);
                Decrypted { data }.encode_to_vec()
            }
            other => panic!("{other}"),
        }
    }

    async fn call(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<http_body_util::combinators::BoxBody<Bytes, Infallible>>, Infallible> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        // a gRPC message: one byte of flags, four of length
        let message = self.answer(parts.uri.path(), &body[5..]);
        let mut out = BytesMut::new();
        out.put_u8(0);
        out.put_u32(message.len() as u32);
        out.put_slice(&message);
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let body = Full::new(out.freeze()).with_trailers(async move { Some(Ok(trailers)) });
        Ok(Response::builder().header("content-type", "application/grpc").body(body.boxed()).unwrap())
    }

    fn serve(self: &Arc<Self>, socket: &std::path::Path) {
        let (plugin, listener) = (self.clone(), tokio::net::UnixListener::bind(socket).unwrap());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let plugin = plugin.clone();
                let service = service_fn(move |request| plugin.clone().call(request));
                tokio::spawn(
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
    }
}

const SECRETS: &str = "/api/v1/namespaces/a/secrets";
const KEY: &str = "/registry/core/secrets/a/s";

fn secret(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"p": "v"}})
}

#[tokio::test]
async fn keys_held_elsewhere_open_what_they_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let (plugin, socket) = (Arc::new(Plugin::default()), dir.path().join("kms.sock"));
    plugin.serve(&socket);
    let config = json!({"kind": "EncryptionConfiguration", "apiVersion": "apiserver.config.k8s.io/v1", "resources": [
        {"resources": ["secrets"], "providers": [{"kms": {"apiVersion": "v2", "name": "vault",
            "endpoint": format!("unix://{}", socket.display()), "timeout": "3s"}}]}]});
    let options = Options {
        encryption_provider_config: Some(write(dir.path(), "enc.json", &config.to_string())),
        ..Options::default()
    };
    let cluster = Cluster::in_dir(dir, options.clone()).await.unwrap();
    for name in ["s", "t", "u"] {
        cluster.make(SECRETS, secret(name)).await;
    }
    let value = cluster.api.store.get(KEY, None).await.unwrap().0.unwrap().value;
    assert!(value.starts_with(b"k8s:enc:kms:v2:vault:"));
    assert_eq!(plugin.encrypted.load(Ordering::SeqCst), 1, "one seed for all values");

    // a new process knows nothing but the plugin; the plugin's key has changed meanwhile
    plugin.key.store(1, Ordering::SeqCst);
    let cluster = Cluster::in_dir(cluster.stop().await, options).await.unwrap();
    assert_eq!(cluster.get(&format!("{SECRETS}/s")).await.1["data"]["p"], "dg==");
    assert_eq!(plugin.decrypted.load(Ordering::SeqCst), 1);
    let (_, report) = cluster.post("/navarch/v1/secrets-encryption/reencrypt", Value::Null).await;
    assert_eq!(report["rewritten"], 3, "{report}");
    let moved = cluster.api.store.get(KEY, None).await.unwrap().0.unwrap().value;
    assert!(moved.windows(2).any(|w| w == b"k1"), "sealed under the new key");
}
