//! OpenID Connect: ID tokens of outside issuers, by flags or by an `AuthenticationConfiguration` file.
//!
//! An issuer's keys are fetched when the first token comes and again when a token names a key that is not known, at
//! most every ten seconds.
//!
//! Rule: Kubernetes documentation, "Authenticating", OpenID Connect Tokens and "Using Authentication Configuration";
//! OpenID Connect Discovery 1.0; RFC 7517 to 7519. [`config`] reads files and flags; [`mapping`] makes a user of claims.

mod config;
mod mapping;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use jiff::Timestamp;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use serde_json::Value;

pub use config::{Anonymous, AuthenticationConfiguration, OidcFlags};

use config::JwtAuthenticator;
use mapping::Rules;

use super::UserInfo;
use crate::watch_cache::WatchCache;
use crate::webhook::{Hook, HookError};

/// Longest wait for an issuer.
const FETCH: Duration = Duration::from_secs(10);
/// Keys are fetched again at most this often.
const AGAIN: Duration = Duration::from_secs(10);

/// Why OpenID is not set up, or a token is not accepted. Clients only learn "Unauthorized".
#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The configuration is wrong.
    #[error("{0}")]
    Config(String),
    /// The issuer is not reached.
    #[error("issuer {issuer}")]
    Issuer {
        /// Its URL.
        issuer: String,
        /// Why.
        #[source]
        source: HookError,
    },
    /// The token is refused.
    #[error("{0}")]
    Token(String),
}

fn refused(why: impl Into<String>) -> OidcError {
    OidcError::Token(why.into())
}

/// The keys of an issuer, by id.
#[derive(Default)]
struct KeySet {
    keys: Vec<Value>,
    fetched: Option<Instant>,
}

/// An issuer of tokens.
pub struct Issuer {
    config: JwtAuthenticator,
    rules: Rules,
    discovery: String,
    keys: tokio::sync::Mutex<KeySet>,
}

impl Issuer {
    fn new(config: &JwtAuthenticator) -> Result<Self, OidcError> {
        let discovery = match config.issuer.discovery_url.as_str() {
            "" => format!("{}/.well-known/openid-configuration", config.issuer.url.trim_end_matches('/')),
            url => url.to_owned(),
        };
        let rules = config.rules().map_err(OidcError::Config)?;
        let keys = tokio::sync::Mutex::default();
        let issuer = Self { config: config.clone(), rules, discovery, keys };
        issuer.hook(&issuer.discovery)?;
        Ok(issuer)
    }

    fn hook(&self, url: &str) -> Result<Hook, OidcError> {
        let authority = self.config.issuer.certificate_authority.as_bytes();
        Hook::at_url(url, (!authority.is_empty()).then_some(authority)).map_err(|source| self.failed(source))
    }

    fn failed(&self, source: HookError) -> OidcError {
        OidcError::Issuer { issuer: self.config.issuer.url.clone(), source }
    }

    async fn fetch(&self, cache: &WatchCache, url: &str) -> Result<Value, OidcError> {
        self.hook(url)?.get(cache, FETCH).await.map_err(|source| self.failed(source))
    }

    async fn key(&self, cache: &WatchCache, id: &str, algorithm: &str) -> Result<Value, OidcError> {
        let fits = |key: &&Value| {
            (id.is_empty() || key["kid"] == id)
                && key["alg"].as_str().is_none_or(|a| a == algorithm)
                && key["use"].as_str().is_none_or(|u| u == "sig")
        };
        let mut set = self.keys.lock().await;
        if let Some(key) = set.keys.iter().find(fits) {
            return Ok(key.clone());
        }
        if set.fetched.is_some_and(|at| at.elapsed() < AGAIN) {
            return Err(refused("no key of the issuer has this id"));
        }
        set.fetched = Some(Instant::now());
        let document = self.fetch(cache, &self.discovery).await?;
        if document["issuer"] != self.config.issuer.url.as_str() {
            return Err(refused(format!("the issuer calls itself {}", document["issuer"])));
        }
        let url = document["jwks_uri"].as_str().ok_or_else(|| refused("the issuer names no jwks_uri"))?;
        let keys = self.fetch(cache, url).await?;
        set.keys = keys["keys"].as_array().cloned().unwrap_or_default();
        set.keys.iter().find(fits).cloned().ok_or_else(|| refused("no key of the issuer has this id"))
    }

    /// The user of an ID token; `None` where another has issued it.
    pub async fn user(
        &self,
        cache: &WatchCache,
        token: &str,
        now: Timestamp,
    ) -> Result<Option<UserInfo>, OidcError> {
        let Some((header, claims, text, signature)) = parts(token) else { return Ok(None) };
        if claims["iss"] != self.config.issuer.url.as_str() {
            return Ok(None);
        }
        let algorithm = header["alg"].as_str().unwrap_or_default();
        let allowed = &self.config.algorithms;
        let known = ["RS256", "RS384", "RS512", "ES256", "ES384", "PS256", "PS384", "PS512"];
        let by_flags = allowed.is_empty() || allowed.iter().any(|a| a == algorithm);
        if !known.contains(&algorithm) || !by_flags {
            return Err(refused(format!("signed by {algorithm:?}")));
        }
        let key = self.key(cache, header["kid"].as_str().unwrap_or_default(), algorithm).await?;
        verify(algorithm, &key, text.as_bytes(), &signature)?;
        self.rules.user(&claims, now).map(Some).map_err(OidcError::Token)
    }
}

/// Header, claims, the signed text and the signature of a token.
fn parts(token: &str) -> Option<(Value, Value, &str, Vec<u8>)> {
    let (text, signature) = token.rsplit_once('.')?;
    let (header, claims) = text.split_once('.')?;
    let read = |part: &str| serde_json::from_slice::<Value>(&B64.decode(part).ok()?).ok();
    Some((read(header)?, read(claims)?, text, B64.decode(signature).ok()?))
}

fn verify(algorithm: &str, key: &Value, text: &[u8], signed: &[u8]) -> Result<(), OidcError> {
    let bytes = |field: &str| {
        B64.decode(key[field].as_str().unwrap_or_default()).map_err(|_| refused("the issuer's key is broken"))
    };
    let bad = |_| refused("bad signature");
    let kind = key["kty"].as_str().unwrap_or_default();
    let rsa: &signature::RsaParameters = match algorithm {
        "RS256" => &signature::RSA_PKCS1_2048_8192_SHA256,
        "RS384" => &signature::RSA_PKCS1_2048_8192_SHA384,
        "RS512" => &signature::RSA_PKCS1_2048_8192_SHA512,
        "PS256" => &signature::RSA_PSS_2048_8192_SHA256,
        "PS384" => &signature::RSA_PSS_2048_8192_SHA384,
        "PS512" => &signature::RSA_PSS_2048_8192_SHA512,
        _ => {
            let (curve, length, method): (_, _, &dyn signature::VerificationAlgorithm) = match algorithm {
                "ES256" => ("P-256", 32, &signature::ECDSA_P256_SHA256_FIXED),
                _ => ("P-384", 48, &signature::ECDSA_P384_SHA384_FIXED),
            };
            let (x, y) = (bytes("x")?, bytes("y")?);
            if kind != "EC" || key["crv"] != curve || x.len() != length || y.len() != length {
                return Err(refused("the issuer's key is of another kind"));
            }
            let point = [&[4][..], &x, &y].concat();
            return UnparsedPublicKey::new(method, point).verify(text, signed).map_err(bad);
        }
    };
    if kind != "RSA" {
        return Err(refused("the issuer's key is of another kind"));
    }
    let (n, e) = (bytes("n")?, bytes("e")?);
    RsaPublicKeyComponents { n: n.as_slice(), e: e.as_slice() }.verify(rsa, text, signed).map_err(bad)
}
