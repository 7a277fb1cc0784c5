//! Requests that a node answers (logs, exec, attach, port-forward): found, dialled with our own certificate, and
//! passed on byte for byte. A connection that changes protocol (WebSocket, SPDY) becomes a plain pipe.

use std::sync::Arc;

use api::field::ErrorList;
use bytes::Bytes;
use client::Body;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use http_body_util::BodyExt;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tokio_rustls::TlsConnector;

use crate::backend::{self, Dialer, Place, Unreachable, is_upgrade};
use crate::pki::{Identity, PkiError};
use crate::registry::{Registry, Target};
use crate::request_info::{Query, RequestInfo};
use crate::status::{ApiError, ApiResult};

/// Most bytes of a node's refusal that are passed on.
const REFUSAL: usize = 16 * 1024;

/// Dials nodes, and what is behind the proxy subresources.
pub struct NodeProxy {
    /// Knows nodes, and is known to them.
    pub tls: TlsConnector,
    /// Knows nobody: for pods and services that speak TLS.
    pub trusting: TlsConnector,
    /// Makes the connections.
    pub dialer: Dialer,
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
        let trusting = backend::trusting_connector().map_err(|_| broken(()))?;
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), trusting, dialer: Dialer::default() })
    }

    /// Answers `pods/log`, `pods/exec`, `pods/attach` and `pods/portforward`.
    pub async fn pod(
        &self,
        registry: &Registry,
        target: Target<'_>,
        info: &RequestInfo,
        request: Request<()>,
    ) -> ApiResult<Response<Body>> {
        if target.subresource == "log" {
            check_log_options(&info.query, target.name)?;
        }
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
        let place = endpoint(registry, node).await?;
        let upgrading = is_upgrade(request.headers());
        let client_side = upgrading.then(|| hyper::upgrade::on(&mut request));
        let mut headers = HeaderMap::new();
        pass_headers(request.headers(), &mut headers, upgrading);
        if let Ok(host) = HeaderValue::from_str(&place.to_string()) {
            headers.insert(header::HOST, host);
        }
        let mut onward = Request::new(crate::answer::full(Bytes::new()));
        *onward.method_mut() = request.method().clone();
        *onward.uri_mut() = path.parse().map_err(|e| ApiError::bad_request(format!("{path}: {e}")))?;
        *onward.headers_mut() = headers;
        let (dialer, tls) = (self.dialer.clone(), self.tls.clone());
        let answer = match dialer.exchange(place.clone(), Some(tls), onward, client_side).await {
            Ok(answer) => answer,
            Err(busy @ Unreachable::Busy) => return Err(ApiError::too_many_requests(busy.to_string(), 1)),
            Err(why) => {
                let why = format!("error dialing backend: node {node:?} at {place}: {why}");
                return Err(ApiError::internal(why));
            }
        };
        if answer.status().is_redirection() {
            // only the node itself is trusted with the caller's streams
            let why = "the backend attempted to redirect this request, which is not permitted";
            return Ok(crate::answer::text(502, why));
        }
        if !answer.status().is_success() && request.method() == Method::GET && !upgrading {
            return Err(refusal(answer).await);
        }
        Ok(answer)
    }
}

/// A node's refusal as a `Status`: its own, where it sent one, else its text.
async fn refusal(answer: Response<Body>) -> ApiError {
    let code = answer.status().as_u16();
    let (mut body, mut text) = (answer.into_body(), Vec::new());
    while let Some(Ok(frame)) = body.frame().await
        && text.len() < REFUSAL
    {
        let data = frame.into_data().unwrap_or_default();
        text.extend_from_slice(&data[..data.len().min(REFUSAL)]);
    }
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    match code {
        400..=499 => ApiError::bad_request(text),
        _ => ApiError::internal(text),
    }
}

/// Passes on what describes the stream; never credentials.
fn pass_headers(from: &HeaderMap, to: &mut HeaderMap, upgrading: bool) {
    for (name, value) in from {
        let text = name.as_str();
        let wanted = text.starts_with("sec-websocket-")
            || text.starts_with("x-stream-protocol")
            || matches!(text, "accept" | "user-agent")
            || upgrading && matches!(text, "connection" | "upgrade");
        if wanted {
            to.append(name.clone(), value.clone());
        }
    }
    backend::remove_credentials(to);
}

/// `PodLogOptions` as far as they can be read; what cannot is for the node to refuse.
fn check_log_options(query: &Query, pod: &str) -> ApiResult<()> {
    let number = |name: &str| query.get(name).parse::<i64>().ok();
    let mut errors = ErrorList::default();
    let both = query.has("sinceSeconds") && query.has("sinceTime");
    for (name, least, detail) in [
        ("tailLines", 0, "must be greater than or equal to 0"),
        ("limitBytes", 1, "must be greater than 0"),
        ("sinceSeconds", 1, "must be greater than 0"),
    ] {
        match number(name) {
            Some(_) if both && name == "sinceSeconds" => {
                errors.forbidden("", "at most one of `sinceTime` or `sinceSeconds` may be specified");
            }
            Some(value) if value < least => errors.invalid(name, &value.into(), detail),
            _ => {}
        }
    }
    let stream = query.get("stream");
    if !matches!(stream, "" | "All" | "Stdout" | "Stderr") {
        errors.not_supported("stream", &stream.into(), &["All", "Stderr", "Stdout"]);
    }
    if !matches!(stream, "" | "All") && query.has("tailLines") {
        errors.forbidden("", "`tailLines` and specific `stream` are mutually exclusive for now");
    }
    if errors.is_empty() { Ok(()) } else { Err(ApiError::invalid_named("", "PodLogOptions", pod, &errors)) }
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

/// Where a node's kubelet listens.
pub async fn endpoint(registry: &Registry, node: &str) -> ApiResult<Place> {
    let Some(kind) = api::kinds::find("", "v1", "nodes") else {
        return Err(ApiError::internal("the table of kinds has no nodes"));
    };
    let target = Target { kind, namespace: "", name: node, subresource: "" };
    let node = registry.get(target).await?.to_value();
    let addresses = node["status"]["addresses"].as_array().cloned().unwrap_or_default();
    let host = ["InternalIP", "ExternalIP", "Hostname"]
        .iter()
        .find_map(|kind| {
            addresses.iter().find(|a| a["type"] == *kind)?["address"].as_str().map(str::to_owned)
        })
        .ok_or_else(|| ApiError::unavailable(format!("node {} has no address yet", target.name)))?;
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().unwrap_or(10250);
    Ok(Place { host, port: u16::try_from(port).unwrap_or(10250), name: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_a_log_that_cannot_be_are_invalid() {
        let check = |query: &str, expected: Option<&str>| {
            let found = check_log_options(&Query::parse(query), "p").err();
            let found = found.map(|error| {
                assert_eq!(error.code, 422, "{query}");
                error.to_string().replace("PodLogOptions \"p\" is invalid: ", "")
            });
            assert_eq!(found.as_deref(), expected, "{query}");
        };
        check("follow=true&tailLines=0&limitBytes=1&sinceSeconds=1&stream=All", None);
        check("tailLines=-1", Some("tailLines: Invalid value: -1: must be greater than or equal to 0"));
        check("limitBytes=0", Some("limitBytes: Invalid value: 0: must be greater than 0"));
        check("sinceSeconds=0", Some("sinceSeconds: Invalid value: 0: must be greater than 0"));
        check(
            "sinceSeconds=5&sinceTime=2026-01-01T00:00:00Z",
            Some("Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified"),
        );
        check(
            "stream=Both",
            Some("stream: Unsupported value: \"Both\": supported values: \"All\", \"Stderr\", \"Stdout\""),
        );
        // what is no number is for the node to refuse
        check("tailLines=many", None);
    }
}
