//! Requests of one pull or push: credentials and tokens, redirects, deadlines, and patience with what is broken
//! for a moment.

use std::{collections::HashMap, io, path::PathBuf, sync::Arc, time::Duration};

use base64::Engine;
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header, uri};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::Notify;
use tokio_util::io::ReaderStream;

use super::{
    Access, Credentials, RegistryError,
    challenge::{Challenge, challenges},
    connect::{self, Body, ConnectError, Http},
    proxy::{self, Proxies},
    settings::Settings,
};
use crate::image::progress::Part;

/// Most redirects that one request follows.
const REDIRECTS: usize = 10;
/// Largest answer of a token service, in bytes.
const TOKEN: usize = 1 << 20;
/// So much of an error's body is read.
const ERROR_BODY: usize = 16 * 1024;
/// Most tries of a request that fails for the moment.
const TRIES: u32 = 5;

/// A place where an image's content may be.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    pub(super) scheme: uri::Scheme,
    pub(super) authority: uri::Authority,
    /// Path before the repository, `/v2` for most.
    pub(super) base: String,
    pub(super) repository: String,
    pub(super) credentials: Option<Credentials>,
    /// The registry that a mirror stands for.
    pub(super) namespace: Option<String>,
}

impl Endpoint {
    /// Host, with its port where it is not the usual one.
    pub(crate) fn host(&self) -> &str {
        self.authority.as_str()
    }

    /// The address of `rest` (`manifests/1`) below the repository.
    pub(super) fn uri(&self, rest: &str) -> Result<Uri, RegistryError> {
        let ns = self.namespace.as_ref().map(|ns| format!("?ns={}", escape(ns))).unwrap_or_default();
        format!("{}://{}{}/{}/{rest}{ns}", self.scheme, self.authority, self.base, self.repository)
            .parse()
            .map_err(|_| RegistryError::invalid(self.host(), "its address cannot be written as a URL"))
    }
}

/// What a request carries; can be made again for another try.
#[derive(Clone)]
pub(super) enum Payload {
    /// Nothing.
    None,
    /// A document.
    Bytes(Bytes),
    /// A file of so many bytes; its way is told.
    File(PathBuf, u64, Part),
}

/// A request.
pub(super) struct Call {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub payload: Payload,
}

impl Call {
    pub(super) fn new(method: Method, uri: Uri) -> Call {
        Call { method, uri, headers: HeaderMap::new(), payload: Payload::None }
    }
}

/// Connections and tokens of one pull or push.
pub(crate) struct Session {
    http: Http,
    proxies: Proxies,
    idle: Duration,
    retry: Duration,
    /// What to send as `Authorization`, by origin and scope.
    tokens: Mutex<HashMap<(String, String), HeaderValue>>,
}

impl Session {
    /// Nothing is connected yet.
    pub(crate) fn new(access: &Access, settings: Settings) -> Session {
        let proxies = Proxies::from_env();
        let http = connect::client(Arc::new(settings), proxies.clone(), access.idle);
        Session { http, proxies, idle: access.idle, retry: access.retry, tokens: Mutex::default() }
    }

    /// For a request that may be made several times.
    pub(super) fn patience(&self) -> Patience {
        Patience { tries: TRIES, delay: self.retry, longest: self.retry * 100, elsewhere: false }
    }

    /// Sends `call` to `endpoint`; `actions` is `pull` or `pull,push`. Any answer but a wish for credentials that
    /// could be met is given back.
    pub(super) async fn send(
        &self,
        endpoint: &Endpoint,
        actions: &str,
        call: &Call,
    ) -> Result<Response<Incoming>, RegistryError> {
        let scope = format!("repository:{}:{actions}", endpoint.repository);
        let key = (format!("{}://{}", endpoint.scheme, endpoint.authority), scope.clone());
        let mut answered = false;
        loop {
            let known = match &endpoint.credentials {
                Some(Credentials::Bearer(token)) => {
                    Some(secret(&format!("Bearer {token}"), endpoint.host())?)
                }
                _ => self.tokens.lock().get(&key).cloned(),
            };
            let (response, home) = self.follow(endpoint.host(), call, known.as_ref()).await?;
            // a host that the registry only pointed to gets no credentials, whatever it asks
            if response.status() != StatusCode::UNAUTHORIZED || !home {
                return Ok(response);
            }
            let fixed = matches!(endpoint.credentials, Some(Credentials::Bearer(_)));
            if answered || fixed {
                return Err(self.failure(endpoint.host(), response).await);
            }
            answered = true;
            let offered = challenges(response.headers());
            let value = self.authorize(endpoint, &scope, &offered, response).await?;
            self.tokens.lock().insert(key.clone(), value);
        }
    }

    /// Like [`Session::send`], but what is no success is an error.
    pub(super) async fn get(
        &self,
        endpoint: &Endpoint,
        actions: &str,
        call: &Call,
    ) -> Result<Response<Incoming>, RegistryError> {
        let response = self.send(endpoint, actions, call).await?;
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(self.failure(endpoint.host(), response).await)
        }
    }

    async fn authorize(
        &self,
        endpoint: &Endpoint,
        scope: &str,
        offered: &[Challenge],
        response: Response<Incoming>,
    ) -> Result<HeaderValue, RegistryError> {
        let host = endpoint.host();
        if let Some(bearer) = offered.iter().find(|challenge| challenge.scheme == "bearer") {
            return self.token(endpoint, scope, bearer).await;
        }
        let basic = offered.iter().any(|challenge| challenge.scheme == "basic");
        match &endpoint.credentials {
            Some(Credentials::Basic { username, password }) if basic => {
                secret(&basic_of(username, password), host)
            }
            None => {
                let detail = match self.failure(host, response).await {
                    RegistryError::Denied { detail, .. } => detail,
                    other => return Err(other),
                };
                let detail = format!("{detail} (no credentials were given for it)");
                Err(RegistryError::Denied { host: host.to_owned(), detail })
            }
            Some(_) => Err(RegistryError::Denied {
                host: host.to_owned(),
                detail: "it offers no way to use the credentials".to_owned(),
            }),
        }
    }

    /// Fetches a token, as the distribution project's "Token Authentication Specification" says.
    async fn token(
        &self,
        endpoint: &Endpoint,
        scope: &str,
        challenge: &Challenge,
    ) -> Result<HeaderValue, RegistryError> {
        #[derive(Deserialize)]
        struct Token {
            #[serde(default)]
            token: Option<String>,
            #[serde(default)]
            access_token: Option<String>,
        }
        let host = endpoint.host();
        let realm = challenge.parameters.get("realm").map(String::as_str).unwrap_or_default();
        let realm: Uri = realm
            .parse()
            .ok()
            .filter(|uri: &Uri| uri.host().is_some() && matches!(uri.scheme_str(), Some("https" | "http")))
            .ok_or_else(|| RegistryError::invalid(host, format!("{realm:?} is no token service")))?;
        if endpoint.scheme == uri::Scheme::HTTPS && realm.scheme_str() == Some("http") {
            return Err(RegistryError::invalid(host, format!("its token service {realm} is without TLS")));
        }
        let mut fields = Vec::new();
        if let Some(service) = challenge.parameters.get("service") {
            fields.push(("service", service.as_str()));
        }
        fields.push(("scope", challenge.parameters.get("scope").map_or(scope, String::as_str)));
        let (mut call, authorization) = match &endpoint.credentials {
            Some(Credentials::Identity(token)) => {
                fields.extend([
                    ("grant_type", "refresh_token"),
                    ("client_id", "navarch"),
                    ("refresh_token", token.as_str()),
                ]);
                let mut call = Call::new(Method::POST, realm.clone());
                let form = HeaderValue::from_static("application/x-www-form-urlencoded");
                call.headers.insert(header::CONTENT_TYPE, form);
                call.payload = Payload::Bytes(Bytes::from(form_of(&fields)));
                (call, None)
            }
            credentials => {
                let joint = if realm.query().is_some() { '&' } else { '?' };
                let uri = format!("{realm}{joint}{}", form_of(&fields))
                    .parse()
                    .map_err(|_| RegistryError::invalid(host, "its token service has no valid address"))?;
                let authorization = match credentials {
                    Some(Credentials::Basic { username, password }) => {
                        Some(secret(&basic_of(username, password), host)?)
                    }
                    _ => None,
                };
                (Call::new(Method::GET, uri), authorization)
            }
        };
        call.headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let service = realm.authority().map_or(host, uri::Authority::as_str).to_owned();
        let mut patience = self.patience();
        let bytes = loop {
            let asked = async {
                let (response, _) = self.follow(&service, &call, authorization.as_ref()).await?;
                if !response.status().is_success() {
                    return Err(self.failure(&service, response).await);
                }
                self.read(&service, response, TOKEN, "its answer with the token").await
            };
            match asked.await {
                Ok(bytes) => break bytes,
                Err(error) => patience.bear(error).await?,
            }
        };
        let token: Token = serde_json::from_slice(&bytes)
            .map_err(|_| RegistryError::invalid(&service, "the token service answered no JSON"))?;
        let token = token.token.or(token.access_token).filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| RegistryError::invalid(&service, "no token in its answer"))?;
        secret(&format!("Bearer {token}"), &service)
    }

    /// Sends `call` and follows where it is pointed to. Whether the answer is of the host first asked.
    async fn follow(
        &self,
        host: &str,
        call: &Call,
        authorization: Option<&HeaderValue>,
    ) -> Result<(Response<Incoming>, bool), RegistryError> {
        let mut uri = call.uri.clone();
        for _ in 0..=REDIRECTS {
            let home = origin(&uri) == origin(&call.uri);
            let response = self.once(host, &uri, call, authorization.filter(|_| home)).await?;
            let reads = matches!(call.method, Method::GET | Method::HEAD);
            match response.status().as_u16() {
                301..=303 if reads => {}
                307 | 308 => {}
                _ => return Ok((response, home)),
            }
            let to = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let next = to.and_then(|to| resolve(&uri, to));
            let next = next.ok_or_else(|| RegistryError::invalid(host, "it redirects to no address"))?;
            if uri.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(RegistryError::invalid(host, format!("it redirects to {next}, without TLS")));
            }
            uri = next;
        }
        Err(RegistryError::invalid(host, format!("it redirects more than {REDIRECTS} times")))
    }

    async fn once(
        &self,
        host: &str,
        uri: &Uri,
        call: &Call,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response<Incoming>, RegistryError> {
        let moved = Arc::new(Notify::new());
        let (body, length) = match &call.payload {
            Payload::None => (Empty::new().map_err(|never| match never {}).boxed_unsync(), None),
            Payload::Bytes(bytes) => (
                Full::new(bytes.clone()).map_err(|never| match never {}).boxed_unsync(),
                Some(bytes.len() as u64),
            ),
            Payload::File(path, size, part) => (file_body(path, part, &moved).await?, Some(*size)),
        };
        let mut request = Request::new(body);
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = uri.clone();
        let headers = request.headers_mut();
        headers.clone_from(&call.headers);
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(concat!("navarch/", env!("CARGO_PKG_VERSION"))),
        );
        // digests and sizes are those of what is stored
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(length) = length.or((call.method == Method::POST).then_some(0)) {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        if let Some(authorization) = authorization {
            headers.insert(header::AUTHORIZATION, authorization.clone());
        }
        // over HTTPS the proxy is told when it is asked for the tunnel
        if uri.scheme_str() == Some("http")
            && let Some(credentials) = self.proxies.of(uri).and_then(proxy::credentials)
        {
            headers.insert(header::PROXY_AUTHORIZATION, credentials);
        }
        let mut answer = std::pin::pin!(self.http.request(request));
        let at = uri.authority().map_or(host, uri::Authority::as_str);
        loop {
            tokio::select! {
                answer = &mut answer => return answer.map_err(|error| classify(at, &error)),
                () = moved.notified() => {}
                () = tokio::time::sleep(self.idle) => return Err(self.stalled(at)),
            }
        }
    }

    pub(super) fn stalled(&self, host: &str) -> RegistryError {
        RegistryError::Stalled { host: host.to_owned(), seconds: self.idle.as_secs_f32() }
    }

    /// The next part of a body.
    pub(super) async fn frame(
        &self,
        host: &str,
        body: &mut Incoming,
    ) -> Result<Option<Frame<Bytes>>, RegistryError> {
        match tokio::time::timeout(self.idle, body.frame()).await {
            Ok(Some(Ok(frame))) => Ok(Some(frame)),
            Ok(Some(Err(error))) => {
                Err(RegistryError::broken(host, format!("the connection broke: {}", chain(&error))))
            }
            Ok(None) => Ok(None),
            Err(_) => Err(self.stalled(host)),
        }
    }

    /// A whole body of at most `limit` bytes.
    pub(super) async fn read(
        &self,
        host: &str,
        response: Response<Incoming>,
        limit: usize,
        what: &str,
    ) -> Result<Bytes, RegistryError> {
        let mut body = response.into_body();
        let mut bytes = Vec::new();
        while let Some(frame) = self.frame(host, &mut body).await? {
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > limit {
                return Err(RegistryError::invalid(host, format!("{what} is larger than {limit} bytes")));
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes.into())
    }

    /// The error that an answer stands for, with what it says.
    pub(super) async fn failure(&self, host: &str, response: Response<Incoming>) -> RegistryError {
        let status = response.status();
        let retry_after = response.headers().get(header::RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
        let body = self.read(host, response, ERROR_BODY, "the error").await.unwrap_or_default();
        let said = said(&body);
        let host = host.to_owned();
        let detail = if said.is_empty() { String::new() } else { format!(": {said}") };
        match status.as_u16() {
            404 => RegistryError::NotFound { host, detail },
            401 | 403 => {
                let detail = if said.is_empty() { "authentication required".to_owned() } else { said };
                RegistryError::Denied { host, detail }
            }
            _ => RegistryError::Status { host, status, detail, retry_after },
        }
    }
}

/// Waits between tries, longer each time.
pub(super) struct Patience {
    tries: u32,
    delay: Duration,
    longest: Duration,
    /// There is another place to ask: only a transfer that broke is taken up again here.
    elsewhere: bool,
}

impl Patience {
    /// Whether there is another place to ask, which is sooner asked than this one awaited.
    pub(super) fn or_elsewhere(self, elsewhere: bool) -> Patience {
        Patience { elsewhere, ..self }
    }

    /// Waits, if `error` may pass and not too much was tried.
    ///
    /// # Errors
    /// `error`, otherwise.
    pub(super) async fn bear(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        self.tries = self.tries.saturating_sub(1);
        let left = self.elsewhere && !matches!(error, RegistryError::Broken { .. });
        if self.tries == 0 || left || !error.is_transient() {
            return Err(error);
        }
        tracing::debug!(%error, "trying again");
        let asked = error.retry_after().map_or(Duration::ZERO, Duration::from_secs);
        tokio::time::sleep(self.delay.max(asked).min(self.longest)).await;
        self.delay = (self.delay * 2).min(self.longest);
        Ok(())
    }

    /// Something was got: what comes next is a first failure again.
    pub(super) fn renew(&mut self, session: &Session) {
        *self = session.patience().or_elsewhere(self.elsewhere);
    }
}

async fn file_body(path: &PathBuf, part: &Part, moved: &Arc<Notify>) -> Result<Body, RegistryError> {
    let file = tokio::fs::File::open(path).await?;
    let (part, moved) = (part.clone(), moved.clone());
    part.restart();
    let stream = ReaderStream::with_capacity(file, 128 * 1024).map(move |chunk: io::Result<Bytes>| {
        let chunk = chunk?;
        part.add(chunk.len() as u64);
        moved.notify_one();
        Ok(Frame::data(chunk))
    });
    Ok(StreamBody::new(stream).boxed_unsync())
}

fn classify(host: &str, error: &hyper_util::client::legacy::Error) -> RegistryError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(inner) = source {
        match inner.downcast_ref::<ConnectError>() {
            Some(ConnectError::Unreachable(why)) => {
                return RegistryError::Unreachable { host: host.to_owned(), why: why.clone() };
            }
            Some(ConnectError::Untrusted(why)) => return RegistryError::invalid(host, why.clone()),
            None => source = inner.source(),
        }
    }
    RegistryError::broken(host, format!("the connection broke: {}", chain(error)))
}

/// The innermost cause, which alone says something.
fn chain(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

fn origin(uri: &Uri) -> (Option<&str>, Option<String>) {
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
    (uri.scheme_str(), uri.host().map(|host| format!("{}:{port}", host.to_ascii_lowercase())))
}

/// A `Location`, which may be relative.
pub(super) fn resolve(from: &Uri, to: &str) -> Option<Uri> {
    let to = to.split('#').next().unwrap_or_default();
    if let Some(rest) = to.strip_prefix("//") {
        return format!("{}://{rest}", from.scheme_str()?).parse().ok();
    }
    if to.split(['/', '?']).next().is_some_and(|first| first.contains(':')) {
        let uri: Uri = to.parse().ok()?;
        return (matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()).then_some(uri);
    }
    let path = if to.starts_with('/') {
        to.to_owned()
    } else {
        let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{folder}/{to}")
    };
    format!("{}://{}{path}", from.scheme_str()?, from.authority()?).parse().ok()
}

fn basic_of(username: &str, password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}")))
}

fn secret(value: &str, host: &str) -> Result<HeaderValue, RegistryError> {
    let mut value = HeaderValue::from_str(value)
        .map_err(|_| RegistryError::invalid(host, "the credentials cannot be sent in a header"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Fields as in a query or a form.
fn form_of(fields: &[(&str, &str)]) -> String {
    let pairs: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect();
    pairs.join("&")
}

/// Percent-encodes all but what never needs it.
pub(super) fn escape(text: &str) -> String {
    use std::fmt::Write;
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte.into());
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

/// What a registry says in an error, in one short line.
fn said(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Said {
        #[serde(default)]
        errors: Vec<One>,
        #[serde(default)]
        details: Option<String>,
    }
    #[derive(Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let text = match serde_json::from_slice::<Said>(body) {
        Ok(said) if !said.errors.is_empty() => {
            let one = |e: &One| if e.message.is_empty() { e.code.to_lowercase() } else { e.message.clone() };
            said.errors.iter().map(one).collect::<Vec<_>>().join("; ")
        }
        Ok(Said { details: Some(details), .. }) => details,
        Ok(_) => String::new(),
        // a page for browsers says nothing here
        Err(_) if body.trim_ascii_start().starts_with(b"<") => String::new(),
        Err(_) => String::from_utf8_lossy(body).lines().next().unwrap_or_default().to_owned(),
    };
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_resolved_and_other_schemes_refused() {
        let check = |to: &str, expected: Option<&str>| {
            let from: Uri = "https://r.io/v2/x/blobs/uploads/".parse().unwrap();
            assert_eq!(resolve(&from, to).map(|uri| uri.to_string()).as_deref(), expected, "{to}");
        };
        check("/a?b=c#d", Some("https://r.io/a?b=c"));
        check("part", Some("https://r.io/v2/x/blobs/uploads/part"));
        check("//cdn.io/x", Some("https://cdn.io/x"));
        check("http://cdn.io/x", Some("http://cdn.io/x"));
        check("file:///etc/passwd", None);
        check("http:///x", None);
    }

    #[test]
    fn errors_are_told_in_the_registrys_words() {
        assert_eq!(
            said(
                br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"},{"code":"DENIED"}]}"#
            ),
            "manifest unknown; denied"
        );
        assert_eq!(
            said(br#"{"details":"incorrect username or password"}"#),
            "incorrect username or password"
        );
        assert_eq!(said(b"<html>no</html>"), "");
        assert_eq!(said(b"line\nanother"), "line");
        assert_eq!(said(&[b'x'; 5000]).len(), 300);
    }
}
