//! Who sends a request: the front proxy's word, a client certificate, a bearer token; else nobody.
//!
//! Tokens are asked of every authenticator in turn: the static file, bootstrap tokens, service accounts, OpenID
//! providers, the webhook. The first that knows the token decides; a token that nobody knows is 401.
//!
//! Rule: Kubernetes documentation, "Authenticating", "Authenticating with Bootstrap Tokens".

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, header};
use jiff::Timestamp;
use parking_lot::Mutex;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::oidc::{self, Issuer, OidcError};
use super::{AUTHENTICATED, UserInfo, certificate_user, token};
use crate::options::Options;
use crate::pipeline::ApiServer;
use crate::request_info::decode;
use crate::status::{ApiError, ApiResult};
use crate::subresources;
use crate::webhook::{Hook, KubeconfigHookError};

/// What a bootstrap token's holder is in.
const BOOTSTRAPPERS: &str = "system:bootstrappers";
/// Longest wait for the webhook.
const WEBHOOK: Duration = Duration::from_secs(30);
/// Answers of the webhook kept.
const KEPT: usize = 4096;

/// Why authentication cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A line of the token file is not `token,user,uid[,"groups"]`.
    #[error("{path}, line {line}: {reason}")]
    Tokens {
        /// The file.
        path: PathBuf,
        /// Which line.
        line: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// The webhook's file.
    #[error("token webhook")]
    Webhook(#[from] KubeconfigHookError),
    /// OpenID.
    #[error("OpenID Connect")]
    Oidc(#[from] OidcError),
    /// The front proxy's authority.
    #[error("{path}: no usable certificate authority")]
    FrontProxy {
        /// The file.
        path: PathBuf,
    },
}

/// What a connection's certificate says.
#[derive(Debug, Clone, Default)]
pub struct Presented {
    /// The user of a verified client certificate.
    pub user: Option<UserInfo>,
    /// Whether the front proxy has connected: it says who asks.
    pub is_front_proxy: bool,
    /// When the certificate ends.
    pub ends: Option<Timestamp>,
}

/// The front proxy's certificates and headers.
struct FrontProxy {
    verifier: Arc<dyn ClientCertVerifier>,
    /// Common names; empty for any.
    names: Vec<String>,
    user: Vec<String>,
    uid: Vec<String>,
    group: Vec<String>,
    extra: Vec<String>,
}

/// A token review that is remembered: until when, and whom.
type Remembered = (Instant, Option<(UserInfo, Vec<String>)>);

struct Webhook {
    hook: Hook,
    version: String,
    kept_for: Duration,
    known: Mutex<HashMap<[u8; 32], Remembered>>,
}

/// All authenticators.
pub struct Authentication {
    tokens: HashMap<String, UserInfo>,
    issuers: Vec<Issuer>,
    webhook: Option<Webhook>,
    front_proxy: Option<FrontProxy>,
    anonymous: oidc::Anonymous,
}

impl Authentication {
    /// As `options` say. `front_proxy_ca` is the authority of our own front proxy, where there is one.
    pub fn new(options: &Options, front_proxy_ca: &Path) -> Result<Self, SetupError> {
        let tokens = match &options.token_auth_file {
            Some(path) => static_tokens(path)?,
            None => HashMap::new(),
        };
        let structured = match &options.authentication_config {
            Some(path) => oidc::AuthenticationConfiguration::read(path)?,
            None => oidc::AuthenticationConfiguration::of_flags(&options.oidc)?,
        };
        let webhook = match &options.authentication_token_webhook_config_file {
            Some(path) => Some(Webhook {
                hook: Hook::from_kubeconfig(path)?,
                version: options.authentication_token_webhook_version.clone(),
                kept_for: options.authentication_token_webhook_cache_ttl,
                known: Mutex::default(),
            }),
            None => None,
        };
        let given = options.requestheader.client_ca_file.as_deref();
        let ca = given.or_else(|| front_proxy_ca.exists().then_some(front_proxy_ca));
        let headers = &options.requestheader;
        let or = |list: &Vec<String>, default: &str| match list.is_empty() {
            true => vec![default.to_owned()],
            false => list.iter().map(|h| h.to_ascii_lowercase()).collect(),
        };
        let front_proxy = match ca {
            None => None,
            Some(path) => Some(FrontProxy {
                verifier: front_proxy_verifier(path)?,
                names: headers.allowed_names.clone(),
                user: or(&headers.username_headers, "x-remote-user"),
                uid: or(&headers.uid_headers, "x-remote-uid"),
                group: or(&headers.group_headers, "x-remote-group"),
                extra: or(&headers.extra_headers_prefix, "x-remote-extra-"),
            }),
        };
        Ok(Self {
            tokens,
            issuers: structured.issuers()?,
            webhook,
            front_proxy,
            anonymous: structured.anonymous,
        })
    }

    /// What TLS lets in: certificates of users, and of front proxies.
    pub fn verifier(&self, users: Arc<dyn ClientCertVerifier>) -> Arc<dyn ClientCertVerifier> {
        match &self.front_proxy {
            Some(proxy) => Arc::new(Either { users, proxies: proxy.verifier.clone() }),
            None => users,
        }
    }

    /// What a verified certificate says: a user's, or the front proxy's.
    pub fn presented(&self, chain: &[CertificateDer<'_>], users: &dyn ClientCertVerifier) -> Presented {
        let Some((leaf, rest)) = chain.split_first() else { return Presented::default() };
        let now = UnixTime::now();
        let named = certificate_user(leaf);
        let parsed = x509_parser::parse_x509_certificate(leaf).ok();
        let ends = parsed
            .and_then(|(_, parsed)| Timestamp::from_second(parsed.validity().not_after.timestamp()).ok());
        if self.front_proxy.is_none() {
            return Presented { user: named, is_front_proxy: false, ends };
        }
        let is_front_proxy = self.front_proxy.as_ref().is_some_and(|proxy| {
            let allowed =
                proxy.names.is_empty() || named.as_ref().is_some_and(|u| proxy.names.contains(&u.name));
            allowed && proxy.verifier.verify_client_cert(leaf, rest, now).is_ok()
        });
        let user = named.filter(|_| users.verify_client_cert(leaf, rest, now).is_ok());
        Presented { user, is_front_proxy, ends }
    }

    /// Who sends a request.
    pub async fn request(
        &self,
        server: &ApiServer,
        presented: &Presented,
        headers: &HeaderMap,
    ) -> ApiResult<UserInfo> {
        if let (true, Some(proxy)) = (presented.is_front_proxy, &self.front_proxy)
            && let Some(user) = proxy.user(headers)
        {
            return Ok(user);
        }
        if let Some(user) = &presented.user {
            return Ok(user.clone());
        }
        let own = [token::ISSUER];
        if let Some(token) = super::bearer(headers) {
            return match self.token(server, token, &own).await? {
                Some((user, _)) => Ok(user),
                None => Err(ApiError::unauthorized()),
            };
        }
        if headers.contains_key(header::AUTHORIZATION) {
            return Err(ApiError::unauthorized());
        }
        if let Some(token) = websocket_token(headers) {
            return match self.token(server, &token, &own).await? {
                Some((user, _)) => Ok(user),
                None => Err(ApiError::unauthorized()),
            };
        }
        Ok(UserInfo::anonymous())
    }

    /// Whether a caller without a credential is let in at this path at all.
    pub fn admits_anonymous(&self, path: &str) -> bool {
        self.anonymous.admits(path)
    }

    /// The user of a token for any of `audiences`, and those that it is for; `None` where nobody knows it.
    pub async fn token(
        &self,
        server: &ApiServer,
        token: &str,
        audiences: &[&str],
    ) -> ApiResult<Option<(UserInfo, Vec<String>)>> {
        // tokens that name no audience are for this server
        let is_for_us = audiences.contains(&token::ISSUER);
        let ours = || vec![token::ISSUER.to_owned()];
        if let Some(user) = self.tokens.get(token).filter(|_| is_for_us) {
            return Ok(Some((user.clone(), ours())));
        }
        if is_for_us && let Some(user) = bootstrap_user(server, token).await? {
            return Ok(Some((user, ours())));
        }
        match subresources::token_user(server, token, audiences).await {
            Ok(found) => return Ok(Some(found)),
            Err(error) if error.code == 401 => {}
            Err(error) => return Err(error),
        }
        let cache = server.registry().cache();
        for issuer in self.issuers.iter().filter(|_| is_for_us) {
            match issuer.user(cache, token, Timestamp::now()).await {
                Ok(Some(user)) => return Ok(Some((user, ours()))),
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "OpenID token refused"),
            }
        }
        match &self.webhook {
            Some(webhook) => Ok(webhook.review(server, token, audiences).await),
            None => Ok(None),
        }
    }
}

/// Lets in certificates of two authorities.
#[derive(Debug)]
struct Either {
    users: Arc<dyn ClientCertVerifier>,
    proxies: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for Either {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // an empty list lets clients send what they have
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let of_user = self.users.verify_client_cert(leaf, rest, now);
        of_user.or_else(|error| self.proxies.verify_client_cert(leaf, rest, now).map_err(|_| error))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.users.verify_tls12_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.users.verify_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.users.supported_verify_schemes()
    }
}

impl FrontProxy {
    fn user(&self, headers: &HeaderMap) -> Option<UserInfo> {
        let first = |names: &[String]| {
            let found = names.iter().find_map(|n| headers.get(n.as_str())?.to_str().ok());
            found.map(str::trim).filter(|v| !v.is_empty()).map(str::to_owned)
        };
        let all = |name: &str| -> Vec<String> {
            headers.get_all(name).iter().filter_map(|v| v.to_str().ok().map(str::to_owned)).collect()
        };
        let mut user = UserInfo {
            name: first(&self.user)?,
            uid: first(&self.uid).unwrap_or_default(),
            groups: self.group.iter().flat_map(|name| all(name)).collect(),
            ..UserInfo::default()
        };
        for name in headers.keys() {
            let key = self.extra.iter().find_map(|prefix| name.as_str().strip_prefix(prefix.as_str()));
            if let Some(key) = key {
                user.extra.insert(decode(key), all(name.as_str()));
            }
        }
        if !user.is_in(AUTHENTICATED) && !user.is_in(super::UNAUTHENTICATED) {
            user.groups.push(AUTHENTICATED.to_owned());
        }
        Some(user)
    }
}

/// A bearer token among the protocols of a WebSocket, where browsers can set no header.
fn websocket_token(headers: &HeaderMap) -> Option<String> {
    let protocols = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|v| v.to_str().ok());
    let encoded = protocols
        .flat_map(|list| list.split(','))
        .find_map(|p| p.trim().strip_prefix("base64url.bearer.authorization.k8s.io."))?;
    String::from_utf8(URL_SAFE_NO_PAD.decode(encoded).ok()?).ok()
}

fn front_proxy_verifier(path: &Path) -> Result<Arc<dyn ClientCertVerifier>, SetupError> {
    use rustls_pki_types::pem::PemObject as _;
    let broken = || SetupError::FrontProxy { path: path.to_owned() };
    let pem = std::fs::read(path).map_err(|source| SetupError::Read { path: path.to_owned(), source })?;
    let mut roots = rustls::RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).flatten());
    if added == 0 {
        return Err(broken());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    builder.build().map(|v| v as Arc<dyn ClientCertVerifier>).map_err(|_| broken())
}

/// `token,user,uid,"group1,group2"` lines.
fn static_tokens(path: &Path) -> Result<HashMap<String, UserInfo>, SetupError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| SetupError::Read { path: path.to_owned(), source })?;
    let mut tokens = HashMap::new();
    for (i, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let wrong = |reason| SetupError::Tokens { path: path.to_owned(), line: i + 1, reason };
        let fields = csv(line);
        let [token, name, uid, rest @ ..] = fields.as_slice() else {
            return Err(wrong("token file must have at least 3 columns: token, user name, user uid"));
        };
        if token.is_empty() {
            return Err(wrong("empty token"));
        }
        let groups = rest.first().map(String::as_str).unwrap_or_default();
        let groups: Vec<&str> = groups.split(',').map(str::trim).filter(|g| !g.is_empty()).collect();
        let user = UserInfo { uid: uid.clone(), ..UserInfo::new(name, &groups) };
        tokens.insert(token.clone(), user);
    }
    Ok(tokens)
}

/// The fields of a line; quotes keep commas, two quotes are one.
fn csv(line: &str) -> Vec<String> {
    let (mut fields, mut is_quoted) = (vec![String::new()], false);
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if is_quoted && chars.peek() == Some(&'"') => {
                chars.next();
                if let Some(last) = fields.last_mut() {
                    last.push('"');
                }
            }
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => fields.push(String::new()),
            other => {
                if let Some(last) = fields.last_mut() {
                    last.push(other);
                }
            }
        }
    }
    fields.iter().map(|f| f.trim().to_owned()).collect()
}

/// Id and secret of a bootstrap token, `[a-z0-9]{6}.[a-z0-9]{16}`.
fn bootstrap_parts(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |t: &str| t.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    (id.len() == 6 && secret.len() == 16 && plain(id) && plain(secret)).then_some((id, secret))
}

async fn bootstrap_user(server: &ApiServer, token: &str) -> ApiResult<Option<UserInfo>> {
    let (Some((id, secret)), Some(kind)) = (bootstrap_parts(token), api::kinds::find("", "v1", "secrets"))
    else {
        return Ok(None);
    };
    let cache = server.registry().cache();
    // a token that was deleted a moment ago opens nothing any more
    cache.fresh().await?;
    let name = format!("bootstrap-token-{id}");
    let Some(found) = cache.get(kind, &kind.key("kube-system", &name)) else { return Ok(None) };
    Ok(bootstrap_secret_user(found.value(), id, secret, Timestamp::now()))
}

fn bootstrap_secret_user(object: &Value, id: &str, secret: &str, now: Timestamp) -> Option<UserInfo> {
    use subtle::ConstantTimeEq as _;
    let text = |key: &str| -> String {
        let encoded = object["data"][key].as_str().unwrap_or_default();
        let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap_or_default();
        String::from_utf8(bytes).unwrap_or_default()
    };
    let is_meant = object["type"] == "bootstrap.kubernetes.io/token"
        && object["metadata"]["deletionTimestamp"].is_null()
        && text("token-id") == id
        && bool::from(text("token-secret").as_bytes().ct_eq(secret.as_bytes()))
        && text("usage-bootstrap-authentication") == "true";
    let expiration = text("expiration");
    // a time that is none opens nothing either
    let is_expired = !expiration.is_empty() && expiration.parse::<Timestamp>().map_or(true, |at| at <= now);
    if !is_meant || is_expired {
        return None;
    }
    let extra = text("auth-extra-groups");
    let mut groups = vec![BOOTSTRAPPERS];
    for group in extra.split(',').filter(|g| !g.is_empty()) {
        let rest = group.strip_prefix("system:bootstrappers:")?;
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let body = rest.bytes().all(|b| fits(b) || matches!(b, b':' | b'-'));
        // one wrong group spoils the token: nobody knows what was meant
        if !(body && rest.bytes().last().is_some_and(fits) && rest.len() <= 256) {
            return None;
        }
        groups.push(group);
    }
    Some(UserInfo::new(&format!("system:bootstrap:{id}"), &groups))
}

impl Webhook {
    async fn review(
        &self,
        server: &ApiServer,
        token: &str,
        audiences: &[&str],
    ) -> Option<(UserInfo, Vec<String>)> {
        let mut key = Sha256::new();
        for part in audiences.iter().chain([&token]) {
            key.update(part.as_bytes());
            key.update([0]);
        }
        let key: [u8; 32] = key.finalize().into();
        let now = Instant::now();
        if let Some((until, user)) = self.known.lock().get(&key)
            && *until > now
        {
            return user.clone();
        }
        let review = json!({"apiVersion": format!("authentication.k8s.io/{}", self.version),
            "kind": "TokenReview", "metadata": {"creationTimestamp": null},
            "spec": {"token": token, "audiences": audiences}});
        let answer = match self.hook.call(server.registry().cache(), &review, WEBHOOK).await {
            Ok(answer) => answer,
            Err(error) => {
                // an unreachable program says nothing about the token: ask again next time
                tracing::warn!(%error, "token webhook");
                return None;
            }
        };
        let user = reviewed(&answer["status"], audiences);
        let mut known = self.known.lock();
        if known.len() >= KEPT {
            known.retain(|_, (until, _)| *until > now);
            if known.len() >= KEPT {
                known.clear();
            }
        }
        known.insert(key, (now + self.kept_for, user.clone()));
        user
    }
}

fn reviewed(status: &Value, audiences: &[&str]) -> Option<(UserInfo, Vec<String>)> {
    if status["authenticated"] != true {
        return None;
    }
    let strings = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    // a program that knows nothing of audiences speaks for the server's own
    let of_token = match status["audiences"].as_array() {
        Some(list) if !list.is_empty() => strings(&status["audiences"]),
        _ => vec![token::ISSUER.to_owned()],
    };
    let common: Vec<String> =
        audiences.iter().filter(|a| of_token.iter().any(|t| t == *a)).map(|a| (*a).to_owned()).collect();
    if common.is_empty() && !audiences.is_empty() {
        return None;
    }
    let user = &status["user"];
    let groups = strings(&user["groups"]);
    let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
    let mut found = UserInfo::new(user["username"].as_str().unwrap_or_default(), &groups);
    found.uid = user["uid"].as_str().unwrap_or_default().to_owned();
    for (key, values) in user["extra"].as_object().into_iter().flatten() {
        found.extra.insert(key.to_ascii_lowercase(), strings(values));
    }
    Some((found, common))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_token_file_may_quote() {
        assert_eq!(csv(r#"t,u,1,"a,b""#), ["t", "u", "1", "a,b"]);
        assert_eq!(csv(r#"t, "x ""y""" ,1"#), ["t", r#"x "y""#, "1"]);
    }

    #[test]
    fn a_bootstrap_token_counts_for_its_use_and_time() {
        let encode = |t: &str| base64::engine::general_purpose::STANDARD.encode(t);
        let secret = |more: &[(&str, &str)]| {
            let mut object = json!({"type": "bootstrap.kubernetes.io/token", "metadata": {}, "data": {
                "token-id": encode("abcdef"), "token-secret": encode("0123456789abcdef"),
                "usage-bootstrap-authentication": encode("true")}});
            for (key, value) in more {
                object["data"][*key] = json!(encode(value));
            }
            object
        };
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let user =
            |object: &Value, s: &str| bootstrap_secret_user(object, "abcdef", s, now).map(|u| u.groups);
        let right = "0123456789abcdef";
        assert_eq!(user(&secret(&[]), right).unwrap(), ["system:bootstrappers", "system:authenticated"]);
        assert_eq!(user(&secret(&[]), "0123456789abcdee"), None);
        assert_eq!(user(&secret(&[("expiration", "2025-01-01T00:00:00Z")]), right), None);
        assert_eq!(user(&secret(&[("expiration", "soon")]), right), None);
        assert_eq!(user(&secret(&[("usage-bootstrap-authentication", "false")]), right), None);
        assert_eq!(user(&secret(&[("auth-extra-groups", "system:masters")]), right), None);
        let extra = user(&secret(&[("auth-extra-groups", "system:bootstrappers:a")]), right).unwrap();
        assert!(extra.contains(&"system:bootstrappers:a".to_owned()));
    }
}
