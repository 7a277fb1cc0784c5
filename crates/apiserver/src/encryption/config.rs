//! `EncryptionConfiguration` (`apiserver.config.k8s.io/v1`): which resources are sealed, and with what.
//!
//! Rule: Kubernetes documentation, "Encrypting Confidential Data at Rest" and the reference of
//! `apiserver-encryption.v1`; texts of refusals as upstream's validation has them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::field::ErrorList;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::ciphers::CipherError;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read or written.
    #[error("cannot read or write {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is no `EncryptionConfiguration`.
    #[error("{path}: not an EncryptionConfiguration of apiserver.config.k8s.io/v1: {reason}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The configuration contradicts its rules.
    #[error("{path}: {reason}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// All that is wrong, by field.
        reason: String,
    },
    /// A key does not fit its cipher.
    #[error("key {name:?}")]
    Key {
        /// The key's name.
        name: String,
        /// Why.
        #[source]
        source: CipherError,
    },
    /// A key management service cannot be used.
    #[error("key management service {name:?} at {endpoint}: {reason}")]
    Kms {
        /// Its name.
        name: String,
        /// Where it listens.
        endpoint: String,
        /// What is wrong.
        reason: String,
    },
}

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EncryptionConfiguration {
    /// `EncryptionConfiguration`.
    pub kind: String,
    /// `apiserver.config.k8s.io/v1`.
    pub api_version: String,
    /// The first entry that names a resource counts for it.
    #[serde(default)]
    pub resources: Vec<ResourceConfiguration>,
}

/// Resources and the providers they share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResourceConfiguration {
    /// `secrets`, `deployments.apps`, `*.apps`, `*.` (the core group), `*.*`.
    #[serde(default)]
    pub resources: Vec<String>,
    /// The first writes, all read.
    #[serde(default)]
    pub providers: Vec<ProviderConfiguration>,
}

/// One provider: exactly one member is set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProviderConfiguration {
    /// AES-GCM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aesgcm: Option<Keys>,
    /// AES-CBC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aescbc: Option<Keys>,
    /// XSalsa20 and Poly1305.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secretbox: Option<Keys>,
    /// As it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// Keys held elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kms: Option<KmsConfiguration>,
}

/// The provider that leaves values as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {}

/// The keys of a local provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// The first writes, all read.
    #[serde(default)]
    pub keys: Vec<Key>,
}

/// A named key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// Stands in front of every value that this key seals.
    #[serde(default)]
    pub name: String,
    /// Base64.
    #[serde(default)]
    pub secret: String,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A key management service on a unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KmsConfiguration {
    /// `v2`; `v1` is where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    /// Stands in front of every value.
    #[serde(default)]
    pub name: String,
    /// `unix:///path`.
    #[serde(default)]
    pub endpoint: String,
    /// Longest wait for an answer, for example `3s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Of v1 only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cachesize: Option<i64>,
}

/// Longest wait for a key management service unless the file says otherwise: upstream's default.
const KMS_TIMEOUT: Duration = Duration::from_secs(3);

impl KmsConfiguration {
    /// The socket's path.
    pub fn socket(&self) -> Option<PathBuf> {
        let path = self.endpoint.strip_prefix("unix://")?;
        // `unix:///@name` is a socket without a file
        (!path.is_empty()).then(|| PathBuf::from(path))
    }

    /// Longest wait for an answer.
    pub fn timeout(&self) -> Option<Duration> {
        match &self.timeout {
            None => Some(KMS_TIMEOUT),
            Some(text) => api::duration::length(text).filter(|d| !d.is_zero()),
        }
    }
}

impl EncryptionConfiguration {
    /// An empty one.
    pub fn new(resources: Vec<ResourceConfiguration>) -> Self {
        Self {
            kind: "EncryptionConfiguration".to_owned(),
            api_version: "apiserver.config.k8s.io/v1".to_owned(),
            resources,
        }
    }

    /// Reads and checks a file, YAML or JSON.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read(path).map_err(|source| ConfigError::File { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// Reads and checks a text; `path` names it in errors.
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self, ConfigError> {
        let syntax = |reason: String| ConfigError::Syntax { path: path.to_owned(), reason };
        let (tree, duplicates) = api::codec::parse_yaml(text).map_err(|e| syntax(e.to_string()))?;
        if let Some(duplicate) = duplicates.first() {
            return Err(syntax(duplicate.clone()));
        }
        let config: Self = serde_json::from_value(tree).map_err(|e| syntax(e.to_string()))?;
        if config.kind != "EncryptionConfiguration" || config.api_version != "apiserver.config.k8s.io/v1" {
            return Err(syntax(format!("it says {} of {}", config.kind, config.api_version)));
        }
        let errors = config.validate();
        if !errors.is_empty() {
            return Err(ConfigError::Invalid { path: path.to_owned(), reason: errors.aggregate() });
        }
        Ok(config)
    }

    fn validate(&self) -> ErrorList {
        let mut errors = ErrorList::default();
        if self.resources.is_empty() {
            errors.required("resources", "at least one resources is required");
        }
        let mut services = BTreeSet::new();
        for (i, entry) in self.resources.iter().enumerate() {
            let at = format!("resources[{i}]");
            if entry.resources.is_empty() {
                errors.required(
                    &format!("{at}.resources"),
                    &format!("at least one {at}.resources is required"),
                );
            }
            if entry.providers.is_empty() {
                errors.required(
                    &format!("{at}.providers"),
                    &format!("at least one {at}.providers is required"),
                );
            }
            resources(&entry.resources, &at, &mut errors);
            for (j, provider) in entry.providers.iter().enumerate() {
                provider.validate(&format!("{at}.providers[{j}]"), &mut services, &mut errors);
            }
        }
        errors
    }
}

fn resources(list: &[String], at: &str, errors: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (j, resource) in list.iter().enumerate() {
        let at = format!("{at}.resources[{j}]");
        let mut refuse = |detail: &str| errors.invalid(&at, &json!(resource), detail);
        if resource == "*" {
            refuse(
                "use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources",
            );
        } else if resource.chars().any(|c| c.is_ascii_uppercase()) {
            refuse("resource name should not contain capital letters");
        } else if resource.starts_with("*.") && resource.ends_with(".extensions")
            || resource == "*.extensions"
        {
            refuse("'extensions' group has been removed and cannot be used for encryption");
        } else if resource.ends_with(".events.k8s.io") {
            refuse(
                "'*.events.k8s.io' objects are stored using the 'events' API group in etcd. Use 'events' instead in the config file",
            );
        } else if !seen.insert(resource.as_str()) {
            refuse("the same resource cannot be specified multiple times");
        } else if list.iter().any(|other| other != resource && covers(other, resource)) {
            refuse(
                "using overlapping resources such as 'secrets' and '*.' in the same resource list is not allowed as they will be masked",
            );
        }
    }
}

/// Whether the pattern `wide` names `resource` (itself perhaps a pattern) too.
fn covers(wide: &str, resource: &str) -> bool {
    let (plural, group) = split(resource);
    plural != "*" && matches(wide, plural, group) || wide == "*.*" && plural == "*"
}

/// `deployments.apps` as plural and group; of the core group the group is empty.
fn split(resource: &str) -> (&str, &str) {
    resource.split_once('.').unwrap_or((resource, ""))
}

/// Whether a pattern of the configuration names a resource.
pub fn matches(pattern: &str, plural: &str, group: &str) -> bool {
    match split(pattern) {
        ("*", "*") => true,
        ("*", of) => of == group,
        (name, of) => name == plural && of == group,
    }
}

impl ProviderConfiguration {
    fn validate(&self, at: &str, services: &mut BTreeSet<String>, errors: &mut ErrorList) {
        let local = [("aesgcm", &self.aesgcm), ("aescbc", &self.aescbc), ("secretbox", &self.secretbox)];
        let set = local.iter().filter(|(_, keys)| keys.is_some()).count()
            + usize::from(self.identity.is_some())
            + usize::from(self.kms.is_some());
        match set {
            1 => {}
            0 => errors.required(
                at,
                "provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity",
            ),
            _ => errors.invalid(
                at,
                &json!({}),
                "more than one provider specified in a single element, should split into different list elements",
            ),
        }
        for (name, keys) in local {
            let Some(keys) = keys else { continue };
            let lengths: &[usize] = if name == "aesgcm" { &[16, 32] } else { &[32] };
            keys.validate(&format!("{at}.{name}.keys"), lengths, errors);
        }
        if let Some(kms) = &self.kms {
            kms.validate(&format!("{at}.kms"), services, errors);
        }
    }
}

impl Keys {
    fn validate(&self, at: &str, lengths: &[usize], errors: &mut ErrorList) {
        if self.keys.is_empty() {
            errors.required(at, &format!("at least one {at} is required"));
        }
        for (i, key) in self.keys.iter().enumerate() {
            let at = format!("{at}[{i}]");
            if key.name.is_empty() {
                errors.required(&format!("{at}.name"), "name is a mandatory field for a key");
            }
            if key.secret.is_empty() {
                errors.required(&format!("{at}.secret"), "secret is a mandatory field for a key");
                continue;
            }
            // the value itself is never repeated
            match STANDARD.decode(&key.secret) {
                Err(_) => {
                    errors.invalid(
                        &format!("{at}.secret"),
                        &json!("REDACTED"),
                        "secrets must be base64 encoded",
                    );
                }
                Ok(bytes) if !lengths.contains(&bytes.len()) => {
                    let expected: Vec<String> = lengths.iter().map(ToString::to_string).collect();
                    let detail = format!(
                        "secret is not of the expected length, got {}, expected one of [{}]",
                        bytes.len(),
                        expected.join(" ")
                    );
                    errors.invalid(&format!("{at}.secret"), &json!("REDACTED"), &detail);
                }
                Ok(_) => {}
            }
        }
    }
}

impl KmsConfiguration {
    fn validate(&self, at: &str, services: &mut BTreeSet<String>, errors: &mut ErrorList) {
        if self.name.is_empty() {
            errors.required(&format!("{at}.name"), "name is a mandatory field for a KMS provider");
        } else if self.name.contains(':') {
            let detail = format!("invalid KMS provider name {}, must not contain ':'", self.name);
            errors.invalid(&format!("{at}.name"), &json!(self.name), &detail);
        }
        match self.api_version.as_deref() {
            Some("v2") => {
                if !services.insert(self.name.clone()) {
                    let detail = format!("duplicate KMS provider name {}, names must be unique", self.name);
                    errors.invalid(&format!("{at}.name"), &json!(self.name), &detail);
                }
            }
            None | Some("v1") => errors.invalid(
                &format!("{at}.apiVersion"),
                &json!("v1"),
                "KMSv1 is deprecated and will only receive security updates going forward. Use KMSv2 instead",
            ),
            Some(other) => {
                let detail =
                    format!("unsupported apiVersion {other} for KMS provider, only v1 and v2 are supported");
                errors.invalid(&format!("{at}.apiVersion"), &json!(other), &detail);
            }
        }
        if self.timeout().is_none() {
            errors.invalid(
                &format!("{at}.timeout"),
                &json!(self.timeout),
                "timeout should be a positive value",
            );
        }
        if self.endpoint.is_empty() {
            errors.required(&format!("{at}.endpoint"), "endpoint is a mandatory field for a KMS provider");
        } else if self.socket().is_none() {
            let scheme = self.endpoint.split_once(':').map_or("", |(scheme, _)| scheme);
            let detail = format!("unsupported scheme {scheme:?} for KMS provider, only unix is supported");
            errors.invalid(&format!("{at}.endpoint"), &json!(self.endpoint), &detail);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(resources: &str) -> String {
        let text = format!(
            "{{kind: EncryptionConfiguration, apiVersion: apiserver.config.k8s.io/v1, resources: {resources}}}"
        );
        match EncryptionConfiguration::parse(Path::new("f"), text.as_bytes()) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_resource_is_named_by_itself_its_group_or_all() {
        assert!(matches("secrets", "secrets", ""));
        assert!(!matches("secrets", "secrets", "x.io"));
        assert!(matches("*.", "configmaps", ""));
        assert!(!matches("*.", "deployments", "apps"));
        assert!(matches("*.apps", "deployments", "apps"));
        assert!(matches("*.*", "deployments", "apps"));
        assert!(matches("widgets.a.io", "widgets", "a.io"));
    }

    #[test]
    fn contradictions_are_named_with_their_field() {
        assert_eq!(refusal("[{resources: [secrets], providers: [{identity: {}}]}]"), "");
        let key = |secret: &str| {
            refusal(&format!(
                "[{{resources: [secrets], providers: [{{aesgcm: {{keys: [{{name: k, secret: {secret}}}]}}}}]}}]"
            ))
        };
        assert_eq!(
            key("c2hvcnQ="),
            "f: resources[0].providers[0].aesgcm.keys[0].secret: Invalid value: \"REDACTED\": secret is not of the expected length, got 5, expected one of [16 32]"
        );
        assert!(key("'%'").ends_with("secrets must be base64 encoded"), "{}", key("'%'"));
        assert!(
            refusal("[{resources: [secrets, '*.'], providers: [{identity: {}}]}]").contains("overlapping")
        );
        assert!(
            refusal("[{resources: [secrets], providers: [{}]}]").contains("any of the expected providers")
        );
        let kms = refusal(
            "[{resources: [secrets], providers: [{kms: {apiVersion: v2, name: a, endpoint: 'tcp://x'}}]}]",
        );
        assert!(kms.contains("unsupported scheme \"tcp\""), "{kms}");
        assert!(refusal("[{resource: [secrets]}]").contains("unknown field `resource`"));
    }
}
