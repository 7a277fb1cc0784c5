//! Reads the current context of a kubeconfig file: as it stands ([`read`]), or as an [`Endpoint`] ([`load`]).
//!
//! Relative paths are relative to the file.
//!
//! Rule: Kubernetes documentation, "Organizing Cluster Access Using kubeconfig Files".

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
    #[serde(default)]
    password: String,
}

/// What the current context says, its files read.
pub struct Kubeconfig {
    /// The server's URL.
    pub server: String,
    /// The name the server's certificate must carry, where it is not the URL's host.
    pub tls_server_name: Option<String>,
    /// The authorities of the server's certificate, PEM.
    pub authorities: Option<Vec<u8>>,
    /// Take any certificate.
    pub insecure: bool,
    /// Our certificate and key, PEM.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// A bearer token.
    pub token: Option<String>,
    /// A name and password, for programs that still take them.
    pub basic: Option<(String, String)>,
}

/// Reads the file's current context, and the files it names.
pub fn read(path: &Path) -> Result<Kubeconfig, KubeconfigError> {
    let base = path.parent().unwrap_or(Path::new(""));
    let content =
        |path: PathBuf| std::fs::read(&path).map_err(|source| KubeconfigError::Read { path, source });
    let file: File = serde_saphyr::from_slice(&content(path.to_owned())?)
        .map_err(|e| KubeconfigError::Syntax { path: path.to_owned(), reason: e.to_string() })?;
    let context = find(path, "context", &file.contexts, &file.current_context)?;
    let cluster = find(path, "cluster", &file.clusters, &context.cluster)?;
    let nobody = User::default();
    let user = match context.user.as_str() {
        "" => &nobody,
        name => find(path, "user", &file.users, name)?,
    };
    let material = |field, data: &Option<String>, file: &Option<PathBuf>| match (data, file) {
        (Some(data), _) => STANDARD.decode(data.trim()).map(Some).map_err(|source| KubeconfigError::Base64 {
            path: path.to_owned(),
            field,
            source,
        }),
        (None, Some(file)) => content(base.join(file)).map(Some),
        (None, None) => Ok(None),
    };
    let certificate =
        material("client-certificate-data", &user.client_certificate_data, &user.client_certificate)?;
    let key = material("client-key-data", &user.client_key_data, &user.client_key)?;
    let token = match (&user.token, &user.token_file) {
        (Some(token), _) => Some(token.clone()),
        (None, Some(file)) => Some(String::from_utf8_lossy(&content(base.join(file))?).trim().to_owned()),
        (None, None) => None,
    };
    Ok(Kubeconfig {
        server: cluster.server.clone(),
        tls_server_name: cluster.tls_server_name.clone(),
        authorities: material(
            "certificate-authority-data",
            &cluster.certificate_authority_data,
            &cluster.certificate_authority,
        )?,
        insecure: cluster.insecure_skip_tls_verify,
        identity: certificate.zip(key),
        token,
        basic: user.username.clone().map(|name| (name, user.password.clone())),
    })
}

fn find<'a, T>(
    path: &Path,
    what: &'static str,
    among: &'a [Named<T>],
    name: &str,
) -> Result<&'a T, KubeconfigError> {
    let missing = || KubeconfigError::Missing { path: path.to_owned(), what, name: name.to_owned() };
    among.iter().find(|entry| entry.name == name).map(|entry| &entry.value).ok_or_else(missing)
}

/// The endpoint of the file's current context.
pub fn load(path: &Path, user_agent: &str) -> Result<Endpoint, KubeconfigError> {
    let config = read(path)?;
    let (cert_pem, key_pem) = config.identity.unwrap_or_default();
    Ok(Endpoint {
        server: config.server,
        ca_pem: config.authorities.unwrap_or_default(),
        cert_pem,
        key_pem,
        token: config.token.unwrap_or_default(),
        user_agent: user_agent.to_owned(),
    })
}
