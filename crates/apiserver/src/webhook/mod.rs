//! Programs outside that the server asks over HTTPS: admission, conversion, token and authorization webhooks.
//!
//! A [`Hook`] is one such program: where it is, whom its certificate must name, what we show it. It keeps its
//! connections for the next call; bodies, waiting time and calls at the same time are bounded; no proxy is used and no
//! redirect followed. [`Hooks`] makes hooks of the `clientConfig` of API objects, equal ones once.
//!
//! Rule: Kubernetes documentation, "Dynamic Admission Control" (contacting the webhook), "Webhook Mode".

mod connection;
mod kubeconfig;
pub mod resolve;

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use client::tls;
use http::{HeaderMap, HeaderValue, Request, Uri, header};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Semaphore;

use self::connection::Connections;
pub use self::kubeconfig::KubeconfigHookError;
pub use self::resolve::{Address, ResolveError, resolve};
use crate::watch_cache::WatchCache;

/// Calls of other servers speak HTTP/1.1, so that those at the same time spread over a service's endpoints.
pub const HTTP1: &[&str] = &["http/1.1"];

/// Largest answer.
const ANSWER: usize = 8 * 1024 * 1024;
/// Calls of one hook at the same time; more wait, as part of their time.
const PARALLEL: usize = 64;
/// How webhooks see us.
const AGENT: HeaderValue = HeaderValue::from_static("kube-apiserver-admission");

/// Why a hook gives no usable answer. The texts are those that clients of the reference know.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// The configuration cannot be used.
    #[error("{0}")]
    Config(String),
    /// The program is not reached, or does not answer in time.
    #[error("Post {url:?}: {reason}")]
    Call {
        /// What was called.
        url: String,
        /// Why it failed.
        reason: String,
    },
    /// It answered with a failure.
    #[error("{0}")]
    Status(String),
    /// It answered with a failure, to somebody who looks at the code.
    #[error("{text}")]
    Refused {
        /// The code.
        status: u16,
        /// What it said.
        text: String,
    },
    /// The answer is no JSON.
    #[error("{0}")]
    Body(String),
}

/// One program outside.
#[derive(Debug)]
pub struct Hook {
    address: Address,
    /// `https://host:port/path`, without a query.
    url: String,
    headers: HeaderMap,
    connections: Connections,
    places: Semaphore,
}

impl Hook {
    fn new(
        address: Address,
        url: String,
        headers: HeaderMap,
        tls: Arc<rustls::ClientConfig>,
        server_name: Option<&str>,
    ) -> Result<Self, HookError> {
        let uri: Uri = url.parse().map_err(|e| HookError::Config(format!("parse {url:?}: {e}")))?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let connections = Connections::new(tls, server_name.unwrap_or(host)).map_err(HookError::Config)?;
        Ok(Self { address, url, headers, connections, places: Semaphore::new(PARALLEL) })
    }

    /// The program at a URL, known by the authorities in a PEM text, or by this machine's.
    pub fn at_url(url: &str, authorities: Option<&[u8]>) -> Result<Self, HookError> {
        let roots = authorities.map_or(tls::Roots::System, tls::Roots::Pem);
        let tls = tls::config(&roots, None, HTTP1).map_err(|e| HookError::Config(e.to_string()))?;
        Self::new(resolve::of_url(url)?, url.to_owned(), HeaderMap::new(), tls, None)
    }

    /// Reads the JSON document that the URL names, within `timeout`.
    pub async fn get(&self, cache: &WatchCache, timeout: Duration) -> Result<Value, HookError> {
        let failed = |reason: String| HookError::Call { url: self.url.clone(), reason };
        let uri: Uri = self.url.parse().map_err(|e: http::uri::InvalidUri| failed(e.to_string()))?;
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        let mut request = Request::get(path).body(Bytes::new()).map_err(|e| failed(e.to_string()))?;
        let authority = uri.authority().map_or("", |a| a.as_str());
        let host = HeaderValue::from_str(authority).map_err(|e| failed(e.to_string()))?;
        request.headers_mut().insert(header::HOST, host);
        let exchange = self.connections.send(cache, &self.address, request, ANSWER);
        let (status, answer) = tokio::time::timeout(timeout, exchange)
            .await
            .map_err(|_| failed("context deadline exceeded".to_owned()))?
            .map_err(failed)?;
        if status != 200 {
            return Err(HookError::Status(refusal(status, &answer)));
        }
        serde_json::from_slice(&answer).map_err(|e| HookError::Body(e.to_string()))
    }

    /// Sends JSON and takes JSON back, within `timeout`. The time is told to the program in the query, as whole
    /// seconds.
    pub async fn call(
        &self,
        cache: &WatchCache,
        body: &Value,
        timeout: Duration,
    ) -> Result<Value, HookError> {
        let join = if self.url.contains('?') { '&' } else { '?' };
        let url = format!("{}{join}timeout={}s", self.url, timeout.as_secs().max(1));
        let failed = |reason: String| HookError::Call { url: url.clone(), reason };
        let exchange = self.exchange(cache, &url, body.to_string().into());
        let (status, answer) = tokio::time::timeout(timeout, exchange)
            .await
            .map_err(|_| failed("context deadline exceeded".to_owned()))?
            .map_err(failed)?;
        if !(200..=206).contains(&status) {
            return Err(HookError::Status(refusal(status, &answer)));
        }
        serde_json::from_slice(&answer).map_err(|error| {
            let shown = String::from_utf8_lossy(&answer[..answer.len().min(200)]).into_owned();
            HookError::Body(format!(
                "couldn't get version/kind; json parse error: {error} (answer: {shown:?})"
            ))
        })
    }

    /// Sends JSON, within `timeout`; what comes back with a success does not matter.
    pub async fn post(&self, cache: &WatchCache, body: Bytes, timeout: Duration) -> Result<(), HookError> {
        let failed = |reason: String| HookError::Call { url: self.url.clone(), reason };
        let (status, answer) = tokio::time::timeout(timeout, self.exchange(cache, &self.url, body))
            .await
            .map_err(|_| failed("context deadline exceeded".to_owned()))?
            .map_err(failed)?;
        match status {
            200..=299 => Ok(()),
            _ => Err(HookError::Refused { status, text: refusal(status, &answer) }),
        }
    }

    async fn exchange(&self, cache: &WatchCache, url: &str, body: Bytes) -> Result<(u16, Bytes), String> {
        let _place = self.places.acquire().await.map_err(|e| e.to_string())?;
        let uri: Uri = url.parse().map_err(|e: http::uri::InvalidUri| e.to_string())?;
        let authority = uri.authority().map_or("", |a| a.as_str());
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        let mut request = Request::post(path).body(body).map_err(|e| e.to_string())?;
        let headers = request.headers_mut();
        headers.clone_from(&self.headers);
        headers.insert(header::HOST, HeaderValue::from_str(authority).map_err(|e| e.to_string())?);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json, */*"));
        headers.entry(header::USER_AGENT).or_insert(AGENT);
        self.connections.send(cache, &self.address, request, ANSWER).await
    }
}

/// The text for an answer that is no success, as the reference's client words it.
fn refusal(status: u16, body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(2048)]).trim().to_owned();
    // a Status says itself what is wrong
    if let Ok(answer) = serde_json::from_slice::<Value>(body)
        && answer["kind"] == "Status"
        && let Some(message) = answer["message"].as_str().filter(|m| !m.is_empty())
    {
        return message.to_owned();
    }
    match status {
        400 => "the server rejected our request for an unknown reason".to_owned(),
        401 => "the server has asked for the client to provide credentials".to_owned(),
        403 if !text.is_empty() => text,
        403 => "the server does not allow access to the requested resource".to_owned(),
        404 => "the server could not find the requested resource".to_owned(),
        405 => "the server does not allow this method on the requested resource".to_owned(),
        409 => "the server reported a conflict".to_owned(),
        422 => "the server rejected our request due to an error in our request".to_owned(),
        429 => "the server has received too many requests and has asked us to try again later".to_owned(),
        503 => "the server is currently unable to handle the request".to_owned(),
        504 => {
            "the server was unable to return a response in the time allotted, but may still be processing the request"
                .to_owned()
        }
        500.. => format!("an error on the server ({text:?}) has prevented the request from succeeding"),
        _ => format!("the server responded with the status code {status} but did not return more information"),
    }
}

/// Makes hooks, equal configurations once, so that their connections are kept.
#[derive(Debug, Default)]
pub struct Hooks {
    known: Mutex<HashMap<String, Weak<Hook>>>,
}

impl Hooks {
    /// The hook of a `clientConfig` (`url` or `service`, `caBundle`), as webhook configurations and conversions of
    /// custom resources have it.
    pub fn of(&self, config: &Value) -> Result<Arc<Hook>, HookError> {
        let key = config.to_string();
        let mut known = self.known.lock();
        if let Some(hook) = known.get(&key).and_then(Weak::upgrade) {
            return Ok(hook);
        }
        known.retain(|_, hook| hook.strong_count() > 0);
        let hook = Arc::new(of_config(config)?);
        known.insert(key, Arc::downgrade(&hook));
        Ok(hook)
    }
}

fn of_config(config: &Value) -> Result<Hook, HookError> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let bundle = STANDARD
        .decode(text(&config["caBundle"]))
        .map_err(|e| HookError::Config(format!("unable to load root certificates: {e}")))?;
    let roots = if bundle.is_empty() { tls::Roots::System } else { tls::Roots::Pem(&bundle) };
    let tls = tls::config(&roots, None, HTTP1).map_err(|e| HookError::Config(e.to_string()))?;
    let service = &config["service"];
    if service.is_object() {
        let (namespace, name) = (text(&service["namespace"]), text(&service["name"]));
        let port = service["port"].as_u64().and_then(|p| u16::try_from(p).ok()).unwrap_or(443);
        let path = text(&service["path"]);
        let slash = if path.starts_with('/') { "" } else { "/" };
        let host = format!("{name}.{namespace}.svc");
        let url = format!("https://{host}:{port}{slash}{path}");
        return Hook::new(
            Address::Service { namespace, name, port },
            url,
            HeaderMap::new(),
            tls,
            Some(&host),
        );
    }
    let url = text(&config["url"]);
    if url.is_empty() {
        return Err(HookError::Config("webhook configuration must have either service or URL".to_owned()));
    }
    Hook::new(resolve::of_url(&url)?, url, HeaderMap::new(), tls, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_failure_is_told_in_the_reference_s_words() {
        assert_eq!(
            refusal(500, b"boom\n"),
            r#"an error on the server ("boom") has prevented the request from succeeding"#
        );
        assert_eq!(
            refusal(302, b""),
            "the server responded with the status code 302 but did not return more information"
        );
        assert_eq!(refusal(404, b"no"), "the server could not find the requested resource");
    }

    #[test]
    fn equal_configurations_share_a_hook() {
        let hooks = Hooks::default();
        let config = json!({"service": {"namespace": "a", "name": "b", "path": "x"}});
        let (one, two) = (hooks.of(&config).unwrap(), hooks.of(&config).unwrap());
        assert!(Arc::ptr_eq(&one, &two));
        assert_eq!(one.url, "https://b.a.svc:443/x");
        assert!(!Arc::ptr_eq(&one, &hooks.of(&json!({"url": "https://b.a.svc:443/x"})).unwrap()));
    }
}
