//! Whom a TLS connection to a registry trusts: the system's authorities, a registry's own beside them.
//!
//! The system's are read from where distributions keep them, like `SSL_CERT_FILE` and `SSL_CERT_DIR` where those
//! are set. Rejected: the crate `rustls-native-certs`, which on Linux reads the same files.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};

use super::settings::Tls;

/// Bundles of the system's authorities, best first.
const BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// TLS as `tls` says; the error is for people.
pub(super) fn config(tls: &Tls) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = if tls.insecure_skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
    } else {
        let mut roots = system();
        if !tls.ca_file.is_empty() {
            let pem = read(&tls.ca_file)?;
            let (added, _) = roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).flatten());
            if added == 0 {
                return Err(format!("{}: no certificate in it", tls.ca_file));
            }
        }
        builder.with_root_certificates(roots)
    };
    let mut config = if tls.cert_file.is_empty() {
        builder.with_no_client_auth()
    } else {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(&tls.cert_file)?).collect();
        let chain = chain.map_err(|error| format!("{}: {error}", tls.cert_file))?;
        let key = PrivateKeyDer::from_pem_slice(&read(&tls.key_file)?)
            .map_err(|error| format!("{}: {error}", tls.key_file))?;
        builder.with_client_auth_cert(chain, key).map_err(|error| format!("{}: {error}", tls.cert_file))?
    };
    // one connection per layer: one that stalls holds nothing else up
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn read(path: &str) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{path}: {error}"))
}

fn system() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let mut add = |path: &Path| {
        let Ok(pem) = fs::read(path) else { return false };
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).flatten());
        true
    };
    let (file, dir) = (std::env::var_os("SSL_CERT_FILE"), std::env::var_os("SSL_CERT_DIR"));
    if let Some(dir) = &dir {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        for entry in entries {
            add(&entry.path());
        }
    }
    if let Some(file) = &file {
        add(&PathBuf::from(file));
    }
    if file.is_none() && dir.is_none() {
        let _ = BUNDLES.iter().any(|bundle| add(Path::new(bundle)));
    }
    roots
}

/// Takes any certificate whose holder proves to have its key.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
