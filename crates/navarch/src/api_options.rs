//! The flags of the API server; names and meaning as kube-apiserver's.

use std::path::PathBuf;

use clap::Args;

/// How the API server is run. Files are named by their paths and are read at start.
#[derive(Args, Clone, Default)]
#[command(next_help_heading = "API server")]
pub struct ApiOptions {
    /// An `EncryptionConfiguration`: what is encrypted at rest, and with which keys. Without it, Secrets are, with a key that
    /// is made at first start and kept in the cluster's folder.
    #[arg(long, value_name = "FILE")]
    pub encryption_provider_config: Option<PathBuf>,
}

impl ApiOptions {
    /// As the API server takes them.
    pub fn to_options(&self) -> apiserver::Options {
        apiserver::Options { encryption_provider_config: self.encryption_provider_config.clone() }
    }

    /// As they stand on a command line, with absolute paths: a server in the background works in another folder.
    pub fn arguments(&self) -> anyhow::Result<Vec<std::ffi::OsString>> {
        let mut arguments = Vec::new();
        let files = [("--encryption-provider-config", &self.encryption_provider_config)];
        for (flag, path) in files {
            if let Some(path) = path {
                arguments.push(flag.into());
                arguments.push(std::path::absolute(path)?.into());
            }
        }
        Ok(arguments)
    }
}
