//! `CredentialProviderConfig` (kubelet.config.k8s.io/v1): which programs there are, and for which images.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::names;
use serde::Deserialize;

use super::program;
use crate::digest::sha256;

/// Why credential providers cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// A file or folder cannot be read.
    #[error("credential provider configuration {path}")]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error("credential provider configuration {path}: {why}")]
    Wrong {
        /// Which one.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A program is not there.
    #[error("plugin binary executable {0} did not exist")]
    Program(PathBuf),
}

/// Versions of the configuration.
const VERSIONS: [&str; 3] =
    ["kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v1beta1", "kubelet.config.k8s.io/v1alpha1"];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    providers: Vec<Read>,
}

/// A provider as it is written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Read {
    name: String,
    #[serde(default)]
    match_images: Vec<String>,
    #[serde(default)]
    default_cache_duration: Option<String>,
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<Variable>,
    #[serde(default)]
    token_attributes: Option<TokenAttributes>,
}

/// A variable of a program's environment.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its value.
    #[serde(default)]
    pub value: String,
}

impl fmt::Debug for Variable {
    /// The name alone: values are where programs have their secrets from.
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("Variable").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What a program is told of a pod's service account.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenAttributes {
    /// Whom its token is for.
    #[serde(default)]
    pub service_account_token_audience: String,
    /// For whom answers count.
    #[serde(default)]
    pub cache_type: CacheType,
    /// Pods without an account are not asked about.
    pub require_service_account: Option<bool>,
    /// Annotations without which the program is not asked.
    #[serde(default)]
    pub required_service_account_annotation_keys: Vec<String>,
    /// Annotations that the program is told where they are.
    #[serde(default)]
    pub optional_service_account_annotation_keys: Vec<String>,
}

/// For whom a program's answers count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum CacheType {
    /// Nothing was said, which is an error.
    #[default]
    #[serde(rename = "")]
    Unset,
    /// For the token.
    Token,
    /// For all pods of the account.
    ServiceAccount,
}

/// A provider, checked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The name of its program.
    pub name: String,
    /// Images that it is asked about.
    pub match_images: Vec<String>,
    /// How long answers hold that don't say so themselves.
    pub default_cache_duration: Duration,
    /// The version it speaks.
    pub api_version: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// What its environment has beside the kubelet's own.
    pub env: Vec<Variable>,
    /// What it is told of service accounts; nothing: it is told of none.
    pub token_attributes: Option<TokenAttributes>,
}

/// Reads a file, or all files of a folder that end in `.json`, `.yaml` or `.yml`, in the order of their names. Beside what
/// they say, their digest: that of the length (eight bytes, the greatest first) and the content of each.
pub fn read(path: &Path) -> Result<(Vec<Settings>, String), ProviderError> {
    let failed = |source| ProviderError::Read { path: path.to_owned(), source };
    let wrong = |why: &str| ProviderError::Wrong { path: path.to_owned(), why: why.to_owned() };
    let mut files = vec![path.to_owned()];
    if std::fs::metadata(path).map_err(failed)?.is_dir() {
        files.clear();
        for entry in std::fs::read_dir(path).map_err(failed)? {
            let file = entry.map_err(failed)?.path();
            let end = file.extension().and_then(|end| end.to_str());
            if matches!(end, Some("json" | "yaml" | "yml")) && !file.is_dir() {
                files.push(file);
            }
        }
        files.sort();
        if files.is_empty() {
            return Err(wrong("no configuration files found in the directory"));
        }
    }
    let (mut found, mut names, mut whole) = (Vec::new(), BTreeSet::new(), Vec::new());
    for file in files {
        let text =
            std::fs::read(&file).map_err(|source| ProviderError::Read { path: file.clone(), source })?;
        whole.extend((text.len() as u64).to_be_bytes());
        whole.extend(&text);
        for provider in parse(&text).map_err(|why| ProviderError::Wrong { path: file.clone(), why })? {
            if !names.insert(provider.name.clone()) {
                let name = &provider.name;
                return Err(wrong(&format!(
                    "duplicate provider name {name:?} found in configuration file(s)"
                )));
            }
            found.push(provider);
        }
    }
    if found.is_empty() {
        return Err(wrong("providers: Required value: at least 1 item in plugins is required"));
    }
    Ok((found, format!("sha256:{}", sha256(whole))))
}

/// Reads the text of a file.
pub(super) fn parse(text: &[u8]) -> Result<Vec<Settings>, String> {
    let (value, warnings) = api::codec::parse_yaml(text).map_err(|error| error.to_string())?;
    if let Some(duplicate) = warnings.into_iter().next() {
        return Err(duplicate);
    }
    let file: File = serde_json::from_value(value).map_err(|error| error.to_string())?;
    if !VERSIONS.contains(&file.api_version.as_str()) || file.kind != "CredentialProviderConfig" {
        let (version, kind) = (file.api_version, file.kind);
        return Err(format!("{version} {kind} is not a {} CredentialProviderConfig", VERSIONS[0]));
    }
    file.providers.into_iter().map(check).collect()
}

fn check(read: Read) -> Result<Settings, String> {
    let name = &read.name;
    let bad = |why: &str| Err(format!("providers.name: Invalid value: {name:?}: provider name cannot {why}"));
    match name.as_str() {
        name if name.contains('/') => return bad("contain '/'"),
        name if name.contains(' ') => return bad("contain spaces"),
        "." => return bad("be '.'"),
        ".." => return bad("be '..'"),
        "" => return bad("be empty"),
        _ => {}
    }
    if !program::VERSIONS.contains(&read.api_version.as_str()) {
        return Err(format!(
            "providers.apiVersion: Unsupported value: {:?}: supported values: {}",
            read.api_version,
            program::VERSIONS.map(|version| format!("{version:?}")).join(", ")
        ));
    }
    if read.match_images.is_empty() {
        return Err(
            "providers.matchImages: Required value: at least 1 item in matchImages is required".to_owned()
        );
    }
    if let Some(place) = read.match_images.iter().find(|place| !is_place(place)) {
        return Err(format!("providers.matchImages: Invalid value: {place:?}: match image is invalid"));
    }
    const DURATION: &str = "providers.defaultCacheDuration";
    let Some(text) = &read.default_cache_duration else {
        return Err(format!("{DURATION}: Required value"));
    };
    let default_cache_duration = api::duration::length(text)
        .ok_or_else(|| format!("{DURATION}: Invalid value: {text:?}: must be a duration of at least 0"))?;
    if let Some(attributes) = &read.token_attributes {
        check_attributes(attributes, &read.api_version)
            .map_err(|(field, why)| format!("providers.tokenAttributes{field}: {why}"))?;
    }
    Ok(Settings {
        default_cache_duration,
        name: read.name,
        match_images: read.match_images,
        api_version: read.api_version,
        args: read.args,
        env: read.env,
        token_attributes: read.token_attributes,
    })
}

/// A host with a port and a path, which may both be absent.
fn is_place(text: &str) -> bool {
    let host = text.split('/').next().unwrap_or_default();
    let port = host.rsplit_once(':').map_or("", |(_, port)| port);
    !text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '%')
        && port.bytes().all(|byte| byte.is_ascii_digit())
}

/// What is wrong, and below which field.
fn check_attributes(attributes: &TokenAttributes, version: &str) -> Result<(), (&'static str, String)> {
    const REQUIRED: &str = ".requiredServiceAccountAnnotationKeys";
    const OPTIONAL: &str = ".optionalServiceAccountAnnotationKeys";
    if attributes.service_account_token_audience.is_empty() {
        return Err((".serviceAccountTokenAudience", "Required value".to_owned()));
    }
    let Some(required) = attributes.require_service_account else {
        return Err((".requireServiceAccount", "Required value".to_owned()));
    };
    if version != program::V1 {
        let why = format!("Forbidden: tokenAttributes is only supported for {} API version", program::V1);
        return Err(("", why));
    }
    if attributes.cache_type == CacheType::Unset {
        let why = "Required value: supported values are: ServiceAccount, Token";
        return Err((".cacheType", why.to_owned()));
    }
    let lists = [
        (REQUIRED, &attributes.required_service_account_annotation_keys),
        (OPTIONAL, &attributes.optional_service_account_annotation_keys),
    ];
    if !required && !lists[0].1.is_empty() {
        let why = "Forbidden: requireServiceAccount cannot be false when requiredServiceAccountAnnotationKeys is set";
        return Err((REQUIRED, why.to_owned()));
    }
    for (field, keys) in lists {
        let mut seen = BTreeSet::new();
        for key in keys {
            if let Some(why) = names::qualified_name(&key.to_ascii_lowercase()).into_iter().next() {
                return Err((field, format!("Invalid value: {key:?}: {why}")));
            }
            if !seen.insert(key) {
                return Err((field, format!("Duplicate value: {key:?}")));
            }
        }
    }
    match lists[0].1.iter().find(|key| lists[1].1.contains(key)) {
        Some(key) => {
            Err(("", format!("Invalid value: {key:?}: annotation keys cannot be both required and optional")))
        }
        None => Ok(()),
    }
}
