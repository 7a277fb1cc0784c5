//! Hooks that a file in kubeconfig form describes: token reviews and authorization asked of a program outside.
//! `cluster` is the program, `user` is what we show it.
//!
//! Rule: Kubernetes documentation, "Webhook Token Authentication", "Webhook Mode".

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use client::kubeconfig::{self, KubeconfigError};
use client::tls;
use http::{HeaderMap, HeaderValue, header};

use super::resolve::of_url;
use super::{HTTP1, Hook, HookError};

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigHookError {
    /// The file is no kubeconfig, or lacks something.
    #[error(transparent)]
    File(#[from] KubeconfigError),
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

impl Hook {
    /// The program that a kubeconfig file's current context names.
    pub fn from_kubeconfig(path: &Path) -> Result<Self, KubeconfigHookError> {
        let failed = |source| KubeconfigHookError::Hook { path: path.to_owned(), source };
        let config = kubeconfig::read(path)?;
        let roots = match &config.authorities {
            _ if config.insecure => tls::Roots::Anybody,
            Some(pem) => tls::Roots::Pem(pem),
            None => tls::Roots::System,
        };
        let identity = config.identity.as_ref().map(|(certificate, key)| (&certificate[..], &key[..]));
        let tls = tls::config(&roots, identity, HTTP1)
            .map_err(|error| failed(HookError::Config(error.to_string())))?;
        let mut headers = HeaderMap::new();
        let credential = match (&config.token, &config.basic) {
            (Some(token), _) => Some(format!("Bearer {token}")),
            (None, Some((name, password))) => {
                Some(format!("Basic {}", STANDARD.encode(format!("{name}:{password}"))))
            }
            (None, None) => None,
        };
        if let Some(credential) = credential {
            let unfit = "the credential holds characters that a header cannot carry";
            let mut value = HeaderValue::from_str(&credential)
                .map_err(|_| failed(HookError::Config(unfit.to_owned())))?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        let address = of_url(&config.server).map_err(failed)?;
        let name = config.tls_server_name.as_deref();
        Self::new(address, config.server.clone(), headers, tls, name).map_err(failed)
    }
}
