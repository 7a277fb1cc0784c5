//! Reads the current context of a kubeconfig file as an [`Endpoint`](crate::https::Endpoint).

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::https::Endpoint;

/// Why a kubeconfig cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is no kubeconfig.
    #[error("{path}: not a kubeconfig: {reason}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        reason: String,
    },
    /// An entry that the current context names is missing.
    #[error("{path}: no {what} named {name:?}")]
    Missing {
        /// The file.
        path: PathBuf,
        /// `context`, `cluster` or `user`.
        what: &'static str,
        /// The name looked for.
        name: String,
    },
    /// Base64 data is broken.
    #[error("{path}: {field} is no base64")]
    Base64 {
        /// The file.
        path: PathBuf,
        /// Which field.
        field: &'static str,
        /// Why.
        #[source]
        source: base64::DecodeError,
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
    user: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
}

/// The endpoint of the file's current context.
pub fn load(path: &Path, user_agent: &str) -> Result<Endpoint, KubeconfigError> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|source| KubeconfigError::Read { path: path.to_owned(), source })
    };
    let text = read(path)?;
    let file: File = serde_saphyr::from_slice(&text)
        .map_err(|e| KubeconfigError::Syntax { path: path.to_owned(), reason: e.to_string() })?;
    let missing =
        |what, name: &str| KubeconfigError::Missing { path: path.to_owned(), what, name: name.to_owned() };
    let find_context = file.contexts.iter().find(|c| c.name == file.current_context);
    let context = &find_context.ok_or_else(|| missing("context", &file.current_context))?.value;
    let find_cluster = file.clusters.iter().find(|c| c.name == context.cluster);
    let cluster = &find_cluster.ok_or_else(|| missing("cluster", &context.cluster))?.value;
    let find_user = file.users.iter().find(|u| u.name == context.user);
    let user = &find_user.ok_or_else(|| missing("user", &context.user))?.value;

    let base = path.parent().unwrap_or(Path::new("."));
    let material = |field, data: &Option<String>, file: &Option<PathBuf>| match (data, file) {
        (Some(data), _) => STANDARD.decode(data.trim()).map_err(|source| KubeconfigError::Base64 {
            path: path.to_owned(),
            field,
            source,
        }),
        (None, Some(file)) => read(&base.join(file)),
        (None, None) => Ok(Vec::new()),
    };
    Ok(Endpoint {
        server: cluster.server.clone(),
        ca_pem: material(
            "certificate-authority-data",
            &cluster.certificate_authority_data,
            &cluster.certificate_authority,
        )?,
        cert_pem: material(
            "client-certificate-data",
            &user.client_certificate_data,
            &user.client_certificate,
        )?,
        key_pem: material("client-key-data", &user.client_key_data, &user.client_key)?,
        token: user.token.clone().unwrap_or_default(),
        user_agent: user_agent.to_owned(),
    })
}
