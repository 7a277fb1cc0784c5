//! A server with an embedded store and options of the test's choice, spoken to over HTTPS.

use std::path::Path;

use apiserver::{Options, StartError};
use bytes::Bytes;
use client::Client;
use http::{HeaderMap, Method, Request};
use serde_json::{Value, json};
use testserver::TestServer;
pub use testserver::connect;

/// The server and its folder; both end with it.
pub struct Cluster {
    pub api: TestServer,
    pub admin: Client,
}

/// Code and body of an answer.
pub type Answer = (u16, Value);

impl Cluster {
    /// With default options.
    pub async fn start() -> Self {
        Self::with(Options::default()).await
    }

    /// With `options`, and the namespace `a`.
    pub async fn with(options: Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::in_dir(dir, options).await.unwrap()
    }

    /// In a folder that may have data.
    pub async fn in_dir(dir: tempfile::TempDir, options: Options) -> Result<Self, StartError> {
        let api = TestServer::in_folder(dir, options).await?;
        let admin = api.user("admin", &["system:masters"]);
        let cluster = Self { api, admin };
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}});
        cluster.post("/api/v1/namespaces", namespace).await;
        Ok(cluster)
    }

    /// Stops; the folder stays.
    pub async fn stop(self) -> tempfile::TempDir {
        drop(self.admin);
        self.api.stop().await
    }

    /// A client with a certificate.
    pub fn user(&self, name: &str, groups: &[&str]) -> Client {
        self.api.user(name, groups)
    }

    /// A client with a bearer token; an empty one is none.
    pub fn bearer(&self, token: &str) -> Client {
        connect(&self.api.server, |endpoint| token.clone_into(&mut endpoint.token))
    }

    pub async fn get(&self, path: &str) -> Answer {
        send(&self.admin, Method::GET, path, Value::Null).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        send(&self.admin, Method::POST, path, body).await
    }

    /// Makes an object that must be accepted.
    pub async fn make(&self, path: &str, body: Value) -> Value {
        let (code, made) = self.post(path, body).await;
        assert_eq!(code, 201, "{made}");
        made
    }
}

/// Writes a file of a test.
pub fn write(dir: &Path, name: &str, text: &str) -> std::path::PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// Sends JSON (merge patches included).
pub async fn send(client: &Client, method: Method, path: &str, body: Value) -> Answer {
    let (code, _, body) = send_with(client, method, path, &[], body).await;
    (code, body)
}

/// Sends JSON with headers; the answer's headers, too.
pub async fn send_with(
    client: &Client,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Value,
) -> (u16, HeaderMap, Value) {
    let bytes = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    let media = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    let mut request = Request::builder().method(method).uri(path);
    if !bytes.is_empty() {
        request = request.header("content-type", media);
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = client.request(request.body(bytes).unwrap()).await.unwrap();
    let (parts, body) = answer.into_parts();
    (parts.status.as_u16(), parts.headers, serde_json::from_slice(&body).unwrap_or_default())
}
