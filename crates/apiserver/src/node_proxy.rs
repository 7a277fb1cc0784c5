//! Requests that a node answers (logs, exec, attach, port-forward): found, dialled with our own certificate, and
//! passed on byte for byte. A connection that changes protocol (WebSocket, SPDY) becomes a plain pipe.

use std::sync::Arc;

use bytes::Bytes;
use client::Body;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::pki::{Identity, PkiError};
use crate::registry::{Registry, Target};
use crate::request_info::RequestInfo;
use crate::status::{ApiError, ApiResult};

/// Longest wait for a node's answer to the dial.
const DIAL: std::time::Duration = std::time::Duration::from_secs(10);
/// Most bytes of a node's refusal that are passed on.
const REFUSAL: usize = 16 * 1024;

/// Dials nodes.
pub struct NodeProxy {
    tls: TlsConnector,
}

impl NodeProxy {
    /// With the certificate that nodes know the API server by.
    pub fn new(ca_pem: &str, identity: &Identity) -> Result<Self, PkiError> {
        let mut roots = rustls::RootCertStore::empty();
        for cert in CertificateDer::pem_slice_iter(ca_pem.as_bytes()).flatten() {
            // our own authority, made by us
            let _ = roots.add(cert);
        }
        let chain = CertificateDer::pem_slice_iter(identity.cert_pem.as_bytes()).flatten().collect();
        let broken = |_| PkiError::Issue {
            name: "the API server's node client".to_owned(),
            source: rcgen::Error::CouldNotParseCertificate,
        };
        let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).map_err(|_| broken(()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|_| broken(()))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|_| broken(()))?;
        Ok(Self { tls: TlsConnector::from(Arc::new(config)) })
    }

    /// Answers `pods/log`, `pods/exec`, `pods/attach` and `pods/portforward`.
    pub async fn pod(
        &self,
        registry: &Registry,
        target: Target<'_>,
        info: &RequestInfo,
        request: Request<()>,
    ) -> ApiResult<Response<Body>> {
        let pod = registry.get(Target { subresource: "", ..target }).await?.to_value();
        let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        if node.is_empty() {
            return match target.subresource {
                // a pod that is not scheduled has logged nothing yet
                "log" => Ok(crate::answer::text(204, Bytes::new())),
                _ => Err(ApiError::bad_request(format!("pod {} does not have a host assigned", target.name))),
            };
        }
        let mut path = match target.subresource {
            "log" => "/containerLogs",
            "exec" => "/exec",
            "attach" => "/attach",
            _ => "/portForward",
        }
        .to_owned();
        path.push_str(&format!("/{}/{}", target.namespace, target.name));
        if target.subresource != "portforward" {
            path.push('/');
            path.push_str(&container(&pod, info, target)?);
        }
        let query = request.uri().query().map(|q| format!("?{q}")).unwrap_or_default();
        self.send(registry, node, &format!("{path}{query}"), request).await
    }

    async fn send(
        &self,
        registry: &Registry,
        node: &str,
        path: &str,
        mut request: Request<()>,
    ) -> ApiResult<Response<Body>> {
        let (address, port) = endpoint(registry, node).await?;
        let failed = |why: String| {
            ApiError::internal(format!("error dialing backend: node {node:?} at {address}:{port}: {why}"))
        };
        let tcp = tokio::time::timeout(DIAL, TcpStream::connect((address.as_str(), port)))
            .await
            .map_err(|_| failed("timed out".to_owned()))?
            .map_err(|e| failed(e.to_string()))?;
        // small interactive writes must not wait for each other; failing to say so changes nothing else
        let _ = tcp.set_nodelay(true);
        let name = ServerName::try_from(address.clone()).map_err(|e| failed(e.to_string()))?;
        let tls = self.tls.connect(name, tcp).await.map_err(|e| failed(e.to_string()))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(tls))
                .await
                .map_err(|e| failed(e.to_string()))?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(error = &error as &dyn std::error::Error, "connection to a node ended");
            }
        });
        let upgrading = is_upgrade(request.headers());
        let client_side = upgrading.then(|| hyper::upgrade::on(&mut request));
        let mut onward = Request::builder().method(request.method().clone()).uri(path);
        if let Some(headers) = onward.headers_mut() {
            pass_headers(request.headers(), headers, upgrading);
            headers.insert(
                header::HOST,
                HeaderValue::from_str(&format!("{address}:{port}")).map_err(|e| failed(e.to_string()))?,
            );
        }
        let onward = onward.body(Full::new(Bytes::new())).map_err(|e| failed(e.to_string()))?;
        let mut answer = sender.send_request(onward).await.map_err(|e| failed(e.to_string()))?;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS
            && let Some(client_side) = client_side
        {
            let node_side = hyper::upgrade::on(&mut answer);
            tokio::spawn(async move {
                if let (Ok(client), Ok(node)) = tokio::join!(client_side, node_side) {
                    // either end may close at any time; what was sent before is delivered
                    let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(node))
                        .await;
                }
            });
            return Ok(answer.map(|_| crate::answer::full(Bytes::new())));
        }
        if !answer.status().is_success() && request.method() == Method::GET && !upgrading {
            return Err(refusal(answer).await);
        }
        let (mut parts, body) = answer.into_parts();
        for name in [header::CONNECTION, header::TRANSFER_ENCODING] {
            parts.headers.remove(name);
        }
        Ok(Response::from_parts(parts, body.map_err(Into::into).boxed_unsync()))
    }
}

/// A node's refusal as a `Status`: its own, where it sent one, else its text.
async fn refusal(answer: Response<hyper::body::Incoming>) -> ApiError {
    let code = answer.status().as_u16();
    let body = http_body_util::Limited::new(answer.into_body(), REFUSAL).collect().await;
    let text = body.map(|b| String::from_utf8_lossy(&b.to_bytes()).trim().to_owned()).unwrap_or_default();
    match code {
        400..=499 => ApiError::bad_request(text),
        _ => ApiError::internal(text),
    }
}

/// Whether a request wants to change the protocol of its connection.
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .any(|v| v.split(',').any(|t| t.trim().eq_ignore_ascii_case("upgrade")))
}

/// Passes on what describes the stream; never credentials.
fn pass_headers(from: &HeaderMap, to: &mut HeaderMap, upgrading: bool) {
    for (name, value) in from {
        let text = name.as_str();
        let wanted = text.starts_with("sec-websocket-")
            || text.starts_with("x-stream-protocol")
            || matches!(text, "accept" | "user-agent")
            || upgrading && matches!(text, "connection" | "upgrade");
        // a token may travel as a WebSocket subprotocol
        let secret = value.to_str().is_ok_and(|v| v.contains("base64url.bearer.authorization"));
        if wanted && !secret {
            to.append(name.clone(), value.clone());
        }
    }
}

fn container(pod: &Value, info: &RequestInfo, target: Target<'_>) -> ApiResult<String> {
    let names: Vec<&str> = ["initContainers", "containers", "ephemeralContainers"]
        .iter()
        .flat_map(|list| pod["spec"][list].as_array().into_iter().flatten())
        .filter_map(|c| c["name"].as_str())
        .collect();
    let asked = info.query.get("container");
    if !asked.is_empty() {
        return if names.contains(&asked) {
            Ok(asked.to_owned())
        } else {
            Err(ApiError::bad_request(format!("container {asked} is not valid for pod {}", target.name)))
        };
    }
    let main: Vec<&str> = pod["spec"]["containers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|c| c["name"].as_str())
        .collect();
    match main[..] {
        [only] => Ok(only.to_owned()),
        _ => Err(ApiError::bad_request(format!(
            "a container name must be specified for pod {}, choose one of: [{}]",
            target.name,
            main.join(" ")
        ))),
    }
}

async fn endpoint(registry: &Registry, node: &str) -> ApiResult<(String, u16)> {
    let Some(kind) = api::kinds::find("", "v1", "nodes") else {
        return Err(ApiError::internal("the table of kinds has no nodes"));
    };
    let target = Target { kind, namespace: "", name: node, subresource: "" };
    let node = registry.get(target).await?.to_value();
    let addresses = node["status"]["addresses"].as_array().cloned().unwrap_or_default();
    let address = ["InternalIP", "ExternalIP", "Hostname"]
        .iter()
        .find_map(|kind| {
            addresses.iter().find(|a| a["type"] == *kind)?["address"].as_str().map(str::to_owned)
        })
        .ok_or_else(|| ApiError::unavailable(format!("node {} has no address yet", target.name)))?;
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().unwrap_or(10250);
    Ok((address, u16::try_from(port).unwrap_or(10250)))
}
