//! What an administrator may choose for the API server beyond the cluster's own ways. All of it has a default.

use std::path::PathBuf;

/// The choices; names as kube-apiserver's flags.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `--encryption-provider-config`: an `EncryptionConfiguration`. Without it, Secrets are sealed with a key of our own.
    pub encryption_provider_config: Option<PathBuf>,
}
