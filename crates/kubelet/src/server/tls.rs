//! The server's end of TLS: its certificate, which may be renewed, and whose clients' certificates are good.

use std::sync::Arc;

use parking_lot::RwLock;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::ServerConfig;

/// The certificate that the server shows; it may be renewed while connections are open.
#[derive(Debug)]
pub struct ServingCertificate(RwLock<Arc<CertifiedKey>>);

impl ServingCertificate {
    /// The first one, chain and key in PEM. Fails where they cannot be used, or not with each other.
    pub fn new(cert_pem: &str, key_pem: &str) -> std::io::Result<Self> {
        Ok(Self(RwLock::new(Arc::new(certified(cert_pem, key_pem)?))))
    }

    /// Seconds until it ends.
    pub(super) fn seconds_left(&self) -> Option<f64> {
        let key = self.0.read().clone();
        let (_, parsed) = x509_parser::parse_x509_certificate(key.cert.first()?).ok()?;
        let left = parsed.validity().not_after.timestamp() - jiff::Timestamp::now().as_second();
        i32::try_from(left).ok().map(f64::from)
    }

    /// The one that new connections see from now on.
    pub fn renew(&self, cert_pem: &str, key_pem: &str) -> std::io::Result<()> {
        let next = Arc::new(certified(cert_pem, key_pem)?);
        *self.0.write() = next;
        Ok(())
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().clone())
    }
}

fn invalid(error: impl std::fmt::Display) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidInput, error.to_string())
}

fn certified(cert_pem: &str, key_pem: &str) -> std::io::Result<CertifiedKey> {
    let chain = CertificateDer::pem_slice_iter(cert_pem.as_bytes());
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(invalid)?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(invalid)?;
    CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider()).map_err(invalid)
}

/// How connections are accepted: with the certificate of the moment, from clients with a good one or with none.
pub(super) fn accepting(config: &ServerConfig) -> std::io::Result<rustls::ServerConfig> {
    let mut roots = rustls::RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(config.client_ca_pem.as_bytes()) {
        roots.add(cert.map_err(invalid)?).map_err(invalid)?;
    }
    let provider = rustls::crypto::ring::default_provider();
    let provider = Arc::new(CryptoProvider { cipher_suites: config.tls.suites.clone(), ..provider });
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(invalid)?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&config.tls.versions)
        .map_err(invalid)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(config.certificate.clone());
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(tls)
}
