//! TLS towards others: whom we trust, and what we show.

use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::TransportError;
use crate::https::CONNECT;

/// Whom to trust.
#[derive(Debug, Clone, Copy)]
pub enum Roots<'a> {
    /// The authorities in a PEM text.
    Pem(&'a [u8]),
    /// The authorities of this machine.
    System,
    /// Everybody: the connection is encrypted, but to whom is not known.
    Anybody,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No certificate in the bundle can be used.
    #[error("unable to load root certificates: unable to parse bytes as PEM block")]
    Roots,
    /// Our own certificate or key is broken.
    #[error("the client certificate or its key cannot be used")]
    Identity,
    /// TLS itself refuses.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// Why a server showed no authority.
#[derive(Debug, thiserror::Error)]
pub enum ShownError {
    /// The URL is not `https://host[:port]`.
    #[error("{0}: not an https:// URL")]
    Url(String),
    /// TLS cannot be used at all.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// It is not there, does not answer, or speaks no TLS.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

/// A client's TLS. `identity` is our certificate and key, PEM; `protocols` are offered by ALPN, best first, none if empty.
pub fn config(
    roots: &Roots<'_>,
    identity: Option<(&[u8], &[u8])>,
    protocols: &[&str],
) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match roots {
        Roots::Pem(pem) => {
            let mut store = RootCertStore::empty();
            let certificates = CertificateDer::pem_slice_iter(pem).flatten();
            let (added, _) = store.add_parsable_certificates(certificates);
            if added == 0 {
                return Err(TlsError::Roots);
            }
            builder.with_root_certificates(store)
        }
        Roots::System => builder.with_root_certificates(system()),
        Roots::Anybody => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        }
    };
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
            let chain = chain.map_err(|_| TlsError::Identity)?;
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| TlsError::Identity)?;
            builder.with_client_auth_cert(chain, key)?
        }
    };
    config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
    Ok(Arc::new(config))
}

/// The authority that `server` (`https://host:port`) shows, PEM, where `is_known` takes its DER form. Nothing is sent to whoever
/// answers, and what is trusted is the certificate only; that the server has a certificate of it shows the next connection.
///
/// # Errors
/// The server is not reached within ten seconds, or `server` is no such URL.
pub async fn shown_authority(
    server: &str,
    is_known: impl Fn(&[u8]) -> bool,
) -> Result<Option<String>, ShownError> {
    let uri: http::Uri = server.parse().map_err(|_| ShownError::Url(server.to_owned()))?;
    let host = uri.host().ok_or_else(|| ShownError::Url(server.to_owned()))?;
    let host = host.trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(host.clone()).map_err(|_| ShownError::Url(server.to_owned()))?;
    let connector = tokio_rustls::TlsConnector::from(config(&Roots::Anybody, None, &[])?);
    let shake = async {
        let tcp = tokio::net::TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(443))).await?;
        connector.connect(name, tcp).await
    };
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| {
        let server = uri.authority().map_or_else(|| server.to_owned(), ToString::to_string);
        TransportError::Connect { server, source }
    };
    let stream = tokio::time::timeout(CONNECT, shake)
        .await
        .map_err(|_| failed("timed out".into()))?
        .map_err(|error| failed(error.into()))?;
    let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
    Ok(shown.iter().find(|der| is_known(der)).map(|der| pem(der)))
}

fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|l| std::str::from_utf8(l).ok()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// Where systems keep the authorities they trust, best first; `SSL_CERT_FILE` comes before.
const BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

fn system() -> Arc<RootCertStore> {
    static STORE: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let read = || {
        let mut store = RootCertStore::empty();
        let own = std::env::var("SSL_CERT_FILE").ok();
        let files = own.iter().map(String::as_str).chain(BUNDLES.iter().copied());
        if let Some(pem) = files.filter_map(|file| std::fs::read(file).ok()).next() {
            store.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).flatten());
        }
        Arc::new(store)
    };
    STORE.get_or_init(read).clone()
}

/// A failed handshake in the words of the reference's TLS library.
pub fn explain(error: &std::io::Error) -> String {
    use rustls::CertificateError as Bad;
    let of_tls = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    let why = match of_tls {
        Some(rustls::Error::InvalidCertificate(bad)) => match bad {
            Bad::UnknownIssuer | Bad::BadSignature => "certificate signed by unknown authority".to_owned(),
            Bad::Expired | Bad::ExpiredContext { .. } | Bad::NotValidYet | Bad::NotValidYetContext { .. } => {
                "certificate has expired or is not yet valid".to_owned()
            }
            other => other.to_string(),
        },
        Some(other) => return format!("tls: {other}"),
        None => return error.to_string(),
    };
    format!("tls: failed to verify certificate: x509: {why}")
}

/// Takes any certificate whose holder proves to have its key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
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
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
