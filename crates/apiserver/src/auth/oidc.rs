//! OpenID Connect: ID tokens of outside issuers, by flags or by an `AuthenticationConfiguration` file.
//!
//! An issuer's keys are fetched when the first token comes and again when a token names a key that is not known, at
//! most every ten seconds.
//!
//! Rule: Kubernetes documentation, "Authenticating", OpenID Connect Tokens and "Using Authentication Configuration";
//! OpenID Connect Discovery 1.0; RFC 7517 to 7519. Claims are mapped by name; expressions (CEL) are refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use jiff::Timestamp;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use serde::Deserialize;
use serde_json::Value;

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

/// The flags of one issuer.
#[derive(Debug, Clone, Default)]
pub struct OidcFlags {
    /// `--oidc-issuer-url`.
    pub issuer_url: String,
    /// `--oidc-client-id`.
    pub client_id: String,
    /// `--oidc-ca-file`.
    pub ca_file: Option<PathBuf>,
    /// `--oidc-username-claim`.
    pub username_claim: String,
    /// `--oidc-username-prefix`.
    pub username_prefix: Option<String>,
    /// `--oidc-groups-claim`.
    pub groups_claim: String,
    /// `--oidc-groups-prefix`.
    pub groups_prefix: String,
    /// `--oidc-required-claim`, `key=value`.
    pub required_claims: Vec<String>,
    /// `--oidc-signing-algs`.
    pub signing_algs: Vec<String>,
}

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthenticationConfiguration {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    jwt: Vec<JwtAuthenticator>,
    /// Who may come without a credential.
    #[serde(default)]
    pub anonymous: Anonymous,
}

/// Whether, and where, callers without a credential are let in.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Anonymous {
    enabled: bool,
    #[serde(default)]
    conditions: Vec<Condition>,
}

impl Default for Anonymous {
    fn default() -> Self {
        Self { enabled: true, conditions: Vec::new() }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Condition {
    path: String,
}

impl Anonymous {
    /// Whether a path is open. What may be done there is the authorizers' decision.
    pub fn admits(&self, path: &str) -> bool {
        self.enabled && (self.conditions.is_empty() || self.conditions.iter().any(|c| c.path == path))
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct JwtAuthenticator {
    issuer: IssuerConfig,
    #[serde(default)]
    claim_validation_rules: Vec<ClaimRule>,
    claim_mappings: Mappings,
    #[serde(default)]
    user_validation_rules: Vec<Value>,
    #[serde(skip)]
    algorithms: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct IssuerConfig {
    url: String,
    #[serde(default, rename = "discoveryURL")]
    discovery_url: String,
    #[serde(default)]
    certificate_authority: String,
    #[serde(default)]
    audiences: Vec<String>,
    #[serde(default)]
    audience_match_policy: String,
    #[serde(default)]
    egress_selector_type: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ClaimRule {
    #[serde(default)]
    claim: String,
    #[serde(default)]
    required_value: String,
    #[serde(default)]
    expression: String,
    #[serde(default)]
    #[allow(dead_code, reason = "belongs to expressions")]
    message: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Mappings {
    #[serde(default)]
    username: Mapping,
    #[serde(default)]
    groups: Mapping,
    #[serde(default)]
    uid: Mapping,
    #[serde(default)]
    extra: Vec<Value>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Mapping {
    #[serde(default)]
    claim: String,
    #[serde(default)]
    prefix: Option<String>,
    #[serde(default)]
    expression: String,
}

impl AuthenticationConfiguration {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, OidcError> {
        let text = std::fs::read(path).map_err(|source| OidcError::Read { path: path.to_owned(), source })?;
        let wrong = |why: String| OidcError::Config(format!("{}: {why}", path.display()));
        let (tree, _) = api::codec::parse_yaml(&text).map_err(|e| wrong(e.to_string()))?;
        let config: Self = serde_json::from_value(tree).map_err(|e| wrong(e.to_string()))?;
        if config.kind != "AuthenticationConfiguration"
            || !config.api_version.starts_with("apiserver.config.k8s.io/v1")
        {
            return Err(wrong("not an AuthenticationConfiguration of apiserver.config.k8s.io".to_owned()));
        }
        for (i, jwt) in config.jwt.iter().enumerate() {
            jwt.check().map_err(|why| wrong(format!("jwt[{i}].{why}")))?;
        }
        if !config.anonymous.enabled && !config.anonymous.conditions.is_empty() {
            return Err(wrong("anonymous.conditions: Invalid value: enabled should be set to true when conditions are defined".to_owned()));
        }
        Ok(config)
    }

    /// The issuer that the flags describe, or none.
    pub fn of_flags(flags: &OidcFlags) -> Result<Self, OidcError> {
        if flags.issuer_url.is_empty() {
            return Ok(Self::default());
        }
        if flags.client_id.is_empty() {
            return Err(OidcError::Config(
                "oidc-issuer-url and oidc-client-id must be specified together".to_owned(),
            ));
        }
        let authority = match &flags.ca_file {
            None => String::new(),
            Some(path) => std::fs::read_to_string(path)
                .map_err(|source| OidcError::Read { path: path.clone(), source })?,
        };
        let claim = if flags.username_claim.is_empty() { "sub" } else { &flags.username_claim };
        let prefix = match flags.username_prefix.as_deref() {
            Some("-") => String::new(),
            None | Some("") if claim == "email" => String::new(),
            None | Some("") => format!("{}#", flags.issuer_url),
            Some(prefix) => prefix.to_owned(),
        };
        let mut rules = Vec::new();
        for required in &flags.required_claims {
            let (claim, value) = required.split_once('=').ok_or_else(|| {
                OidcError::Config(format!("--oidc-required-claim {required:?}: not of the form key=value"))
            })?;
            rules.push(ClaimRule {
                claim: claim.to_owned(),
                required_value: value.to_owned(),
                ..ClaimRule::default()
            });
        }
        let jwt = JwtAuthenticator {
            issuer: IssuerConfig {
                url: flags.issuer_url.clone(),
                certificate_authority: authority,
                audiences: vec![flags.client_id.clone()],
                ..IssuerConfig::default()
            },
            claim_validation_rules: rules,
            claim_mappings: Mappings {
                username: Mapping { claim: claim.to_owned(), prefix: Some(prefix), ..Mapping::default() },
                groups: Mapping {
                    claim: flags.groups_claim.clone(),
                    prefix: Some(flags.groups_prefix.clone()),
                    ..Mapping::default()
                },
                ..Mappings::default()
            },
            algorithms: flags.signing_algs.clone(),
            ..JwtAuthenticator::default()
        };
        jwt.check().map_err(OidcError::Config)?;
        Ok(Self { jwt: vec![jwt], ..Self::default() })
    }

    /// The issuers, ready to use.
    pub fn issuers(&self) -> Result<Vec<Issuer>, OidcError> {
        self.jwt.iter().map(Issuer::new).collect()
    }
}

impl JwtAuthenticator {
    /// What is wrong, with its field.
    fn check(&self) -> Result<(), String> {
        if !self.issuer.url.starts_with("https://") {
            return Err(format!(
                "issuer.url: Invalid value: {:?}: URL scheme must be https",
                self.issuer.url
            ));
        }
        if self.issuer.audiences.is_empty() {
            return Err("issuer.audiences: Required value: at least one jwt[0].issuer.audiences is required"
                .to_owned());
        }
        if self.issuer.audiences.len() > 1 && self.issuer.audience_match_policy != "MatchAny" {
            return Err("issuer.audienceMatchPolicy: Invalid value: audienceMatchPolicy must be MatchAny for multiple audiences".to_owned());
        }
        if self.issuer.egress_selector_type.is_some() {
            return Err("issuer.egressSelectorType: Forbidden: no egress selector is configured".to_owned());
        }
        let mappings = &self.claim_mappings;
        if mappings.username.claim.is_empty() && mappings.username.expression.is_empty() {
            return Err("claimMappings.username: Required value: claim or expression is required".to_owned());
        }
        let of_mapping = [&mappings.username, &mappings.groups, &mappings.uid];
        let has_expression = of_mapping.iter().any(|m| !m.expression.is_empty())
            || self.claim_validation_rules.iter().any(|r| !r.expression.is_empty())
            || !self.user_validation_rules.is_empty()
            || !mappings.extra.is_empty();
        if has_expression {
            return Err("expressions are not supported: use claims".to_owned());
        }
        Ok(())
    }
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
    discovery: String,
    keys: tokio::sync::Mutex<KeySet>,
}

impl Issuer {
    fn new(config: &JwtAuthenticator) -> Result<Self, OidcError> {
        let discovery = match config.issuer.discovery_url.as_str() {
            "" => format!("{}/.well-known/openid-configuration", config.issuer.url.trim_end_matches('/')),
            url => url.to_owned(),
        };
        let issuer = Self { config: config.clone(), discovery, keys: tokio::sync::Mutex::default() };
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
        self.claims(&claims, now).map(Some)
    }

    fn claims(&self, claims: &Value, now: Timestamp) -> Result<UserInfo, OidcError> {
        let second = now.as_second() as f64;
        if claims["exp"].as_f64().is_none_or(|exp| second >= exp) {
            return Err(refused("expired"));
        }
        if claims["nbf"].as_f64().is_some_and(|nbf| second + 300.0 < nbf) {
            return Err(refused("not valid yet"));
        }
        let of_token: Vec<&str> = match &claims["aud"] {
            Value::String(one) => vec![one],
            Value::Array(list) => list.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        if !self.config.issuer.audiences.iter().any(|a| of_token.contains(&a.as_str())) {
            return Err(refused(format!("for {of_token:?}")));
        }
        for rule in &self.config.claim_validation_rules {
            match claims.get(&rule.claim) {
                Some(Value::String(value)) if *value == rule.required_value => {}
                None => return Err(refused(format!("required claim {} not present", rule.claim))),
                Some(other) => {
                    return Err(refused(format!(
                        "required claim {} value does not match: {other}",
                        rule.claim
                    )));
                }
            }
        }
        let mappings = &self.config.claim_mappings;
        let prefix = |mapping: &Mapping| mapping.prefix.clone().unwrap_or_default();
        let claim = mappings.username.claim.as_str();
        let name = claims[claim].as_str().filter(|n| !n.is_empty());
        let name = name.ok_or_else(|| refused(format!("no claim {claim:?} that is text")))?;
        if claim == "email" && claims.get("email_verified").is_some_and(|v| *v != true) {
            return Err(refused("email not verified"));
        }
        let groups: Vec<String> = match &claims[mappings.groups.claim.as_str()] {
            Value::String(one) => vec![one.clone()],
            Value::Array(list) => list
                .iter()
                .map(|g| g.as_str().map(str::to_owned).ok_or_else(|| refused("groups are no texts")))
                .collect::<Result<_, _>>()?,
            Value::Null => Vec::new(),
            _ => return Err(refused("groups are no texts")),
        };
        let group_prefix = prefix(&mappings.groups);
        let groups: Vec<String> = groups.iter().map(|g| format!("{group_prefix}{g}")).collect();
        let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
        let uid = match mappings.uid.claim.as_str() {
            "" => String::new(),
            claim => claims[claim].as_str().unwrap_or_default().to_owned(),
        };
        let mut extra = BTreeMap::new();
        if let Some(id) = claims["jti"].as_str() {
            let key = "authentication.kubernetes.io/credential-id".to_owned();
            extra.insert(key, vec![format!("JTI={id}")]);
        }
        Ok(UserInfo {
            uid,
            extra,
            ..UserInfo::new(&format!("{}{name}", prefix(&mappings.username)), &groups)
        })
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
