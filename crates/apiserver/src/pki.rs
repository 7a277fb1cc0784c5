//! The cluster's own certificate authority and what it issues.
//!
//! The authority is made at first start and kept under `DIR/pki`; leaf certificates are short-lived products
//! that every start makes anew, so that nothing expires behind anybody's back.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use sha2::{Digest, Sha256};

/// Why certificates cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be read or written.
    #[error("{path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file holds no usable key or certificate.
    #[error("{path}: not usable; restore it from a backup, or remove DIR/pki to make a new cluster identity")]
    Broken {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// A certificate cannot be made.
    #[error("cannot issue the certificate of {name}")]
    Issue {
        /// For whom.
        name: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
}

/// A certificate with its key, PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate.
    pub cert_pem: String,
    /// Its private key.
    pub key_pem: String,
}

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// The name in the front proxy's certificate.
pub const FRONT_PROXY: &str = "front-proxy-client";
/// Certificates begin in the past, for peers whose clocks are behind.
const SKEW: Duration = Duration::from_secs(3600);

/// The authority.
pub struct Pki {
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
    /// The front proxy's own authority: what it signs says who asks, so nothing else may be signed by it.
    front_proxy: (String, Issuer<'static, KeyPair>),
    service_account_key: Vec<u8>,
}

impl Pki {
    /// Opens the authority in `dir`, or makes it.
    pub fn open(dir: &Path) -> Result<Self, PkiError> {
        let file = |path: &Path, source| PkiError::File { path: path.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(|e| file(dir, e))?;
        let (ca_pem, issuer) = authority(dir, "ca", "navarch-ca")?;
        let front_proxy = authority(dir, "front-proxy-ca", "navarch-front-proxy-ca")?;

        let sa_path = dir.join("sa.key");
        if !sa_path.exists() {
            let key = KeyPair::generate()
                .map_err(|source| PkiError::Issue { name: "service accounts".into(), source })?;
            write_secret(&sa_path, &key.serialize_der()).map_err(|e| file(&sa_path, e))?;
        }
        let service_account_key = std::fs::read(&sa_path).map_err(|e| file(&sa_path, e))?;
        Ok(Self { ca_pem, issuer, front_proxy, service_account_key })
    }

    /// The authority's certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The authority's private key, PEM (PKCS #8): signs what the certificates controllers issue.
    pub fn ca_key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// The certificate of the front proxy's authority, PEM.
    pub fn front_proxy_ca_pem(&self) -> &str {
        &self.front_proxy.0
    }

    /// What the server shows to the servers it passes requests on to.
    pub fn front_proxy_client(&self) -> Result<Identity, PkiError> {
        let usage = ExtendedKeyUsagePurpose::ClientAuth;
        issue(&self.front_proxy.1, FRONT_PROXY, &[], Vec::new(), usage)
    }

    /// SHA-256 over the authority's PEM, hex: names the cluster.
    pub fn fingerprint(&self) -> String {
        Sha256::digest(self.ca_pem.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The private key (PKCS #8, P-256) that signs service-account tokens.
    pub fn service_account_key(&self) -> &[u8] {
        &self.service_account_key
    }

    /// A client certificate: user `name`, in `groups`; valid for a year.
    pub fn client(&self, name: &str, groups: &[&str]) -> Result<Identity, PkiError> {
        issue(&self.issuer, name, groups, Vec::new(), ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// A server certificate for DNS names and addresses; valid for a year.
    pub fn server(
        &self,
        name: &str,
        groups: &[&str],
        dns: &[&str],
        ips: &[IpAddr],
    ) -> Result<Identity, PkiError> {
        let failed = |source| PkiError::Issue { name: name.to_owned(), source };
        let mut names = Vec::new();
        for dns in dns {
            names.push(SanType::DnsName((*dns).try_into().map_err(failed)?));
        }
        names.extend(ips.iter().map(|ip| SanType::IpAddress(*ip)));
        issue(&self.issuer, name, groups, names, ExtendedKeyUsagePurpose::ServerAuth)
    }
}

/// Opens an authority in `dir`, or makes it.
fn authority(
    dir: &Path,
    file_name: &str,
    name: &str,
) -> Result<(String, Issuer<'static, KeyPair>), PkiError> {
    let file = |path: &Path, source| PkiError::File { path: path.to_owned(), source };
    let (cert_path, key_path) = (dir.join(format!("{file_name}.crt")), dir.join(format!("{file_name}.key")));
    if !cert_path.exists() || !key_path.exists() {
        let made = make_ca(name).map_err(|source| PkiError::Issue { name: name.to_owned(), source })?;
        write_secret(&key_path, made.key_pem.as_bytes()).map_err(|e| file(&key_path, e))?;
        std::fs::write(&cert_path, &made.cert_pem).map_err(|e| file(&cert_path, e))?;
    }
    let pem = std::fs::read_to_string(&cert_path).map_err(|e| file(&cert_path, e))?;
    let key_pem = std::fs::read_to_string(&key_path).map_err(|e| file(&key_path, e))?;
    let key =
        KeyPair::from_pem(&key_pem).map_err(|source| PkiError::Broken { path: key_path.clone(), source })?;
    let issuer = Issuer::from_ca_cert_pem(&pem, key)
        .map_err(|source| PkiError::Broken { path: cert_path.clone(), source })?;
    Ok((pem, issuer))
}

fn issue(
    issuer: &Issuer<'_, KeyPair>,
    name: &str,
    groups: &[&str],
    names: Vec<SanType>,
    usage: ExtendedKeyUsagePurpose,
) -> Result<Identity, PkiError> {
    let failed = |source| PkiError::Issue { name: name.to_owned(), source };
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = params(name, groups, YEAR);
    params.subject_alt_names = names;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    let cert = params.signed_by(&key, issuer).map_err(failed)?;
    Ok(Identity { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
}

fn params(name: &str, groups: &[&str], lifetime: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    for group in groups {
        subject.push(DnType::OrganizationName, *group);
    }
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    params.not_before = (SystemTime::now() - SKEW).into();
    params.not_after = (SystemTime::now() + lifetime).into();
    params
}

fn make_ca(prefix: &str) -> Result<Identity, rcgen::Error> {
    let key = KeyPair::generate()?;
    // the random part keeps two clusters' authorities apart in a trust store
    let name = format!("{prefix}-{:08x}", rand::random::<u32>());
    let mut params = params(&name, &[], YEAR * 10);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let cert = params.self_signed(&key)?;
    Ok(Identity { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
}

/// Writes a file that only its owner can read; never half (written aside, then renamed).
pub fn write_secret(path: &Path, content: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let aside = path.with_extension("tmp");
    let mut file =
        std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&aside)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&aside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_open_finds_the_same_authority() {
        let dir = std::env::temp_dir().join(format!("navarch-pki-{}", std::process::id()));
        let first = Pki::open(&dir).map(|p| p.fingerprint());
        let second = Pki::open(&dir).map(|p| p.fingerprint());
        let _ = std::fs::remove_dir_all(&dir);
        assert_eq!(first.unwrap(), second.unwrap());
    }
}
