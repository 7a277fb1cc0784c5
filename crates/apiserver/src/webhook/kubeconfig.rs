//! Hooks that a file in kubeconfig form describes: token reviews and authorization asked of a program outside.
//!
//! `cluster` is the program, `user` is what we show it; relative paths are relative to the file.
//!
//! Rule: Kubernetes documentation, "Webhook Token Authentication", "Webhook Mode".

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, header};
use serde::Deserialize;

use super::resolve::of_url;
use super::{Hook, HookError, tls};

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigHookError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is no kubeconfig, or lacks something.
    #[error("{path}: {reason}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// What it describes cannot be used.
    #[error("{path}")]
    Hook {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: HookError,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    current_context: String,
    #[serde(default)]
    contexts: Vec<Named<Context>>,
    #[serde(default)]
    clusters: Vec<Named<Cluster>>,
    #[serde(default)]
    users: Vec<Named<User>>,
}

#[derive(Deserialize)]
struct Named<T> {
    name: String,
    #[serde(alias = "context", alias = "cluster", alias = "user")]
    value: T,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    #[serde(default)]
    user: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
    tls_server_name: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    username: Option<String>,
    password: Option<String>,
}

impl Hook {
    /// The program that a kubeconfig file's current context names.
    pub fn from_kubeconfig(path: &Path) -> Result<Self, KubeconfigHookError> {
        let wrong = |reason: String| KubeconfigHookError::Content { path: path.to_owned(), reason };
        let read = |file: &Path| {
            let file = path.parent().unwrap_or(Path::new("")).join(file);
            std::fs::read(&file).map_err(|source| KubeconfigHookError::Read { path: file, source })
        };
        let either = |data: &Option<String>, file: &Option<PathBuf>| match (data, file) {
            (Some(data), _) => STANDARD.decode(data).map(Some).map_err(|e| wrong(e.to_string())),
            (None, Some(file)) => read(file).map(Some),
            (None, None) => Ok(None),
        };
        let text = std::fs::read(path)
            .map_err(|source| KubeconfigHookError::Read { path: path.to_owned(), source })?;
        let file: File = serde_saphyr::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
        let context = file.contexts.iter().find(|c| c.name == file.current_context);
        let context = &context.ok_or_else(|| wrong("no current context".to_owned()))?.value;
        let cluster = file.clusters.iter().find(|c| c.name == context.cluster);
        let cluster = &cluster.ok_or_else(|| wrong(format!("no cluster {:?}", context.cluster)))?.value;
        let nobody = User::default();
        let user = file.users.iter().find(|u| u.name == context.user).map_or(&nobody, |u| &u.value);

        let authority = either(&cluster.certificate_authority_data, &cluster.certificate_authority)?;
        let roots = match &authority {
            _ if cluster.insecure_skip_tls_verify => tls::Roots::Anybody,
            Some(pem) => tls::Roots::Pem(pem),
            None => tls::Roots::System,
        };
        let certificate = either(&user.client_certificate_data, &user.client_certificate)?;
        let key = either(&user.client_key_data, &user.client_key)?;
        let identity = certificate.as_deref().zip(key.as_deref());
        let tls = tls::config(&roots, identity).map_err(|e| wrong(e.to_string()))?;

        let mut headers = HeaderMap::new();
        let token = match (&user.token, &user.token_file) {
            (Some(token), _) => Some(token.clone()),
            (None, Some(file)) => Some(String::from_utf8_lossy(&read(file)?).trim().to_owned()),
            (None, None) => None,
        };
        let credential = match (token, &user.username) {
            (Some(token), _) => Some(format!("Bearer {token}")),
            (None, Some(name)) => {
                let password = user.password.as_deref().unwrap_or_default();
                Some(format!("Basic {}", STANDARD.encode(format!("{name}:{password}"))))
            }
            (None, None) => None,
        };
        if let Some(credential) = credential {
            let mut value = HeaderValue::from_str(&credential).map_err(|_| {
                wrong("the credential holds characters that a header cannot carry".to_owned())
            })?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        let failed = |source| KubeconfigHookError::Hook { path: path.to_owned(), source };
        let address = of_url(&cluster.server).map_err(failed)?;
        let name = cluster.tls_server_name.as_deref();
        Self::new(address, cluster.server.clone(), headers, tls, name).map_err(failed)
    }
}
