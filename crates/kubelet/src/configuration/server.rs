//! Where the kubelet's servers are reached, by whom, and what they serve.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use super::{ConfigurationError, KubeletConfiguration, wrong};
use crate::server::settings;

impl KubeletConfiguration {
    /// Where the plain `/healthz` is served.
    pub fn healthz_address(&self) -> Result<Option<SocketAddr>, ConfigurationError> {
        let text = &self.healthz_bind_address;
        let address = text.parse::<IpAddr>().map_err(|_| {
            wrong(format!("healthzBindAddress (--healthz-bind-address) {text:?} must be a valid IP address"))
        })?;
        Ok((self.healthz_port > 0).then(|| SocketAddr::new(address, self.healthz_port)))
    }

    /// The server's own certificate and key, PEM; nothing where they come from the cluster.
    pub fn serving_files(&self) -> Result<Option<(String, String)>, ConfigurationError> {
        let read = |path: &PathBuf| {
            let failed = |source| ConfigurationError::Read { path: path.clone(), source };
            std::fs::read_to_string(path).map_err(failed)
        };
        match (&self.tls_cert_file, &self.tls_private_key_file) {
            (Some(certificate), Some(key)) => Ok(Some((read(certificate)?, read(key)?))),
            _ => Ok(None),
        }
    }

    /// Those whose clients' certificates are good, PEM: the cluster's own, and of the file.
    pub fn client_authorities(&self, cluster: &str) -> Result<String, ConfigurationError> {
        let file = self.authentication.x509.client_ca_file.as_str();
        if file.is_empty() {
            return Ok(cluster.to_owned());
        }
        let failed = |source| ConfigurationError::Read { path: file.into(), source };
        Ok(format!("{cluster}\n{}", std::fs::read_to_string(file).map_err(failed)?))
    }

    /// Which TLS the server speaks.
    pub fn tls_options(&self) -> Result<settings::TlsOptions, ConfigurationError> {
        settings::tls(self).map_err(wrong)
    }

    /// What the server lets in, and what it serves.
    pub fn server_rules(&self) -> Result<settings::Rules, ConfigurationError> {
        settings::rules(self).map_err(wrong)
    }

    /// How long answers about its callers hold.
    pub fn review_ages(&self) -> Result<settings::Ages, ConfigurationError> {
        settings::ages(self).map_err(wrong)
    }

    /// Where the server listens.
    pub fn server_address(&self) -> Result<SocketAddr, ConfigurationError> {
        settings::listen(self).map_err(wrong)
    }
}
