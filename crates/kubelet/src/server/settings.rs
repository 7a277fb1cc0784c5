//! What KubeletConfiguration says of the server: read, and refused in the reference's words where that is possible.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rustls::{ProtocolVersion, SupportedCipherSuite, SupportedProtocolVersion};
use serde::{Deserialize, Serialize};

use crate::configuration::KubeletConfiguration;

/// Who may connect.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Authentication {
    /// By certificate.
    pub x509: Certificates,
    /// By token.
    pub webhook: Tokens,
    /// Without either.
    pub anonymous: Anonymous,
}

/// `authentication.x509`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Certificates {
    /// A file of authorities whose certificates are good beside those of the cluster's own; empty for none.
    #[serde(rename = "clientCAFile", skip_serializing_if = "String::is_empty")]
    pub client_ca_file: String,
}

/// `authentication.webhook`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tokens {
    /// Whether the API server is asked whose a token is.
    pub enabled: bool,
    /// So long its answer holds; zero for the default.
    #[serde(rename = "cacheTTL")]
    pub cache_ttl: String,
}

/// `authentication.anonymous`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Anonymous {
    /// Whether requests without certificate and token are those of `system:anonymous`.
    pub enabled: bool,
}

/// Who may ask what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Authorization {
    /// `Webhook`: as the API server says; `AlwaysAllow`: everything.
    pub mode: String,
    /// How it is asked.
    pub webhook: Decisions,
}

/// `authorization.webhook`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Decisions {
    /// So long a yes holds; zero for the default.
    #[serde(rename = "cacheAuthorizedTTL")]
    pub cache_authorized_ttl: String,
    /// So long a no holds; zero for the default.
    #[serde(rename = "cacheUnauthorizedTTL")]
    pub cache_unauthorized_ttl: String,
}

impl Default for Tokens {
    fn default() -> Self {
        Self { enabled: true, cache_ttl: "2m0s".to_owned() }
    }
}

impl Default for Authorization {
    fn default() -> Self {
        Self { mode: "Webhook".to_owned(), webhook: Decisions::default() }
    }
}

impl Default for Decisions {
    fn default() -> Self {
        Self { cache_authorized_ttl: "5m0s".to_owned(), cache_unauthorized_ttl: "30s".to_owned() }
    }
}

/// How long answers about callers hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ages {
    /// Whose a token is.
    pub token: Duration,
    /// That somebody may.
    pub yes: Duration,
    /// That somebody may not.
    pub no: Duration,
}

/// What the server lets in, and what it serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Nobody's requests are those of `system:anonymous`.
    pub anonymous: bool,
    /// Tokens are asked about.
    pub tokens: bool,
    /// Whoever is let in may ask everything.
    pub always_allow: bool,
    /// Commands, logs and pages for people are served.
    pub debugging: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self { anonymous: false, tokens: true, always_allow: false, debugging: true }
    }
}

/// Which TLS the server speaks.
#[derive(Debug, Clone)]
pub struct TlsOptions {
    /// Versions.
    pub versions: Vec<&'static SupportedProtocolVersion>,
    /// Cipher suites of all versions.
    pub suites: Vec<SupportedCipherSuite>,
}

impl Default for TlsOptions {
    fn default() -> Self {
        let suites = rustls::crypto::ring::default_provider().cipher_suites;
        Self { versions: vec![&rustls::version::TLS13, &rustls::version::TLS12], suites }
    }
}

/// Suites that the reference knows and this server never speaks: without forward secrecy, or with CBC, RC4 or 3DES.
const NEVER: [&str; 14] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
];

/// Everything that can be wrong.
pub fn check(settings: &KubeletConfiguration) -> Result<(), String> {
    listen(settings)?;
    tls(settings)?;
    ages(settings)?;
    rules(settings)?;
    duration("streamingConnectionIdleTimeout", &settings.streaming_connection_idle_timeout, Duration::ZERO)?;
    if settings.read_only_port != 0 {
        return Err("readOnlyPort: there is no server without authentication".to_owned());
    }
    if settings.tls_cert_file.is_some() != settings.tls_private_key_file.is_some() {
        return Err("tlsCertFile and tlsPrivateKeyFile must be given together".to_owned());
    }
    for (name, wanted) in [
        ("rotateCertificates", settings.rotate_certificates),
        ("serverTLSBootstrap", settings.server_tls_bootstrap),
    ] {
        if wanted == Some(false) {
            return Err(format!("{name}: certificates come from the cluster, and are always renewed"));
        }
    }
    Ok(())
}

/// Where the server listens.
pub fn listen(settings: &KubeletConfiguration) -> Result<SocketAddr, String> {
    let KubeletConfiguration { address, port, .. } = settings;
    let address = address.parse::<IpAddr>().map_err(|_| {
        format!("invalid configuration: address (--address) {address:?} must be a valid IP address")
    })?;
    match *port {
        0 => Err("invalid configuration: port (--port) 0 must be between 1 and 65535, inclusive".to_owned()),
        port => Ok(SocketAddr::new(address, port)),
    }
}

/// How long answers about callers hold.
pub fn ages(settings: &KubeletConfiguration) -> Result<Ages, String> {
    let (tokens, decisions) = (&settings.authentication.webhook, &settings.authorization.webhook);
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    Ok(Ages {
        token: duration("authentication.webhook.cacheTTL", &tokens.cache_ttl, minutes(2))?,
        yes: duration(
            "authorization.webhook.cacheAuthorizedTTL",
            &decisions.cache_authorized_ttl,
            minutes(5),
        )?,
        no: duration(
            "authorization.webhook.cacheUnauthorizedTTL",
            &decisions.cache_unauthorized_ttl,
            Duration::from_secs(30),
        )?,
    })
}

/// A duration as Go writes it; zero stands for the default.
fn duration(field: &str, text: &str, default: Duration) -> Result<Duration, String> {
    let given = api::duration::length(text).ok_or_else(|| format!("{field}: invalid duration {text:?}"))?;
    Ok(if given.is_zero() { default } else { given })
}

/// What the server lets in, and what it serves.
pub fn rules(settings: &KubeletConfiguration) -> Result<Rules, String> {
    let always_allow = match settings.authorization.mode.as_str() {
        "Webhook" | "" => false,
        "AlwaysAllow" => true,
        other => return Err(format!("unknown authorization mode {other}")),
    };
    let Authentication { webhook, anonymous, .. } = &settings.authentication;
    let debugging = settings.enable_debugging_handlers;
    Ok(Rules { anonymous: anonymous.enabled, tokens: webhook.enabled, always_allow, debugging })
}

/// Which TLS the server speaks.
pub fn tls(settings: &KubeletConfiguration) -> Result<TlsOptions, String> {
    let TlsOptions { mut versions, mut suites } = TlsOptions::default();
    match settings.tls_min_version.as_str() {
        // nothing older is spoken
        "" | "VersionTLS10" | "VersionTLS11" | "VersionTLS12" => {}
        "VersionTLS13" => versions.retain(|known| known.version == ProtocolVersion::TLSv1_3),
        other => return Err(format!("unknown tls version {other:?}")),
    }
    let name = |suite: &SupportedCipherSuite| format!("{:?}", suite.suite()).replace("TLS13_", "TLS_");
    // as the reference called them once
    let wanted = settings.tls_cipher_suites.iter().map(|wanted| match wanted.strip_suffix("_POLY1305") {
        Some(_) => format!("{wanted}_SHA256"),
        None => wanted.clone(),
    });
    let wanted: Vec<String> = wanted.collect();
    let known = |wanted: &str| NEVER.contains(&wanted) || suites.iter().any(|suite| name(suite) == wanted);
    if let Some(unknown) = wanted.iter().find(|wanted| !known(wanted)) {
        return Err(format!("Cipher suite {unknown} not supported or doesn't exist"));
    }
    if !wanted.is_empty() {
        // those of TLS 1.3 are not to be chosen
        suites.retain(|suite| suite.tls13().is_some() || wanted.contains(&name(suite)));
    }
    Ok(TlsOptions { versions, suites })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<KubeletConfiguration, String> {
        let head = format!("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n{text}");
        KubeletConfiguration::parse(head.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_of_kubeadm_says_what_is_so_anyway() {
        let text = "authentication: {anonymous: {enabled: false}, webhook: {cacheTTL: 0s, enabled: true}}\n\
                    authorization: {mode: Webhook, webhook: {cacheAuthorizedTTL: 0s, cacheUnauthorizedTTL: 0s}}\n\
                    rotateCertificates: true\nstreamingConnectionIdleTimeout: 0s\n";
        let read = parse(text).unwrap();
        assert_eq!(rules(&read), Ok(Rules::default()));
        assert_eq!(ages(&read), ages(&parse("").unwrap()));
        assert_eq!(ages(&read).unwrap().token, Duration::from_secs(120));
        assert_eq!(listen(&read), Ok("0.0.0.0:10250".parse().unwrap()));
    }

    #[test]
    fn the_server_is_set_up_as_the_file_says() {
        let read = parse(
            "address: '::1'\nport: 1\nenableDebuggingHandlers: false\n\
             authentication: {anonymous: {enabled: true}, webhook: {enabled: false, cacheTTL: 5s}}\n\
             authorization: {mode: AlwaysAllow}\n",
        )
        .unwrap();
        assert_eq!(listen(&read), Ok("[::1]:1".parse().unwrap()));
        let expected = Rules { anonymous: true, tokens: false, always_allow: true, debugging: false };
        assert_eq!(rules(&read), Ok(expected));
        assert_eq!(ages(&read).unwrap().token, Duration::from_secs(5));
    }

    #[test]
    fn versions_and_suites_of_tls_are_chosen() {
        let chosen = |text: &str| tls(&parse(text).unwrap()).unwrap();
        assert_eq!(chosen("tlsMinVersion: VersionTLS13").versions.len(), 1);
        assert_eq!(chosen("tlsMinVersion: VersionTLS10").versions.len(), 2);
        let suites = |text: &str| {
            let all = chosen(text).suites;
            (all.len(), all.iter().filter(|suite| suite.tls13().is_none()).count())
        };
        let (all, _) = suites("");
        assert_eq!(all, TlsOptions::default().suites.len());
        let text = "tlsCipherSuites: [TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305, TLS_RSA_WITH_AES_256_GCM_SHA384]";
        assert_eq!(suites(text).1, 1);
    }

    #[test]
    fn what_the_server_cannot_do_is_refused() {
        let check = |text: &str, why: &str| {
            let error = parse(text).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        };
        check("port: 70000", "invalid value");
        check("address: here", "must be a valid IP address");
        check("readOnlyPort: 10255", "readOnlyPort");
        check("tlsMinVersion: VersionTLS14", "unknown tls version \"VersionTLS14\"");
        check("tlsCipherSuites: [TLS_NULL]", "Cipher suite TLS_NULL not supported or doesn't exist");
        check("tlsCertFile: /c", "must be given together");
        check("rotateCertificates: false", "always renewed");
        check("authorization: {mode: RBAC}", "unknown authorization mode RBAC");
        check("authentication: {webhook: {cacheTTL: soon}}", "cacheTTL: invalid duration");
        check("authentication: {password: {}}", "unknown field `password`");
    }
}
