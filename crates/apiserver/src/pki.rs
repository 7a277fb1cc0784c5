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
    /// More groups than a certificate of ours holds.
    #[error("cannot issue the certificate of {name}: {count} groups are more than {MOST_FURTHER}")]
    Groups {
        /// For whom.
        name: String,
        /// How many.
        count: usize,
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
    if groups.len() > MOST_FURTHER {
        return Err(PkiError::Groups { name: name.to_owned(), count: groups.len() });
    }
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = params(name, groups, YEAR);
    params.subject_alt_names = names;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    let cert = params.signed_by(&key, issuer).map_err(failed)?;
    let cert_pem = match groups {
        [] | [_] => cert.pem(),
        _ => with_organizations(cert.der(), issuer).map_err(failed)?,
    };
    Ok(Identity { cert_pem, key_pem: key.serialize_pem() })
}

/// `id-at` (X.520), with the arc of organizations.
const ORGANIZATION: [u64; 4] = [2, 5, 4, 10];
/// The first of the arcs below `id-at` that stand for further organizations until a certificate is signed: nothing is
/// registered there.
const FURTHER: u64 = 0x60;
/// How many there are; all of them are one byte.
const MOST_FURTHER: usize = 32;

/// The same certificate with all its organizations, signed anew: `rcgen` keeps one value for each type of attribute.
fn with_organizations(cert: &[u8], issuer: &Issuer<'_, KeyPair>) -> Result<String, rcgen::Error> {
    use x509_parser::prelude::FromDer as _;
    let unreadable = |_| rcgen::Error::CouldNotParseCertificate;
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(cert).map_err(unreadable)?;
    let (old, subject) = (parsed.tbs_certificate.as_ref(), parsed.subject().as_raw());
    let at = |part: &[u8]| part.as_ptr() as usize - cert.as_ptr() as usize;
    let mut tbs = old.to_vec();
    let begin = at(subject) - at(old);
    let mut seen = begin;
    for attribute in parsed.subject().iter_attributes() {
        let arcs: Option<Vec<u64>> = attribute.attr_type().iter().map(Iterator::collect);
        let is_further = matches!(arcs.as_deref(), Some([2, 5, 4, last]) if *last >= FURTHER);
        // attributes come in order: the next of these bytes is this one's type
        let id = attribute.attr_type().as_bytes();
        let found = tbs[seen..begin + subject.len()]
            .windows(id.len() + 2)
            .position(|w| w[0] == 6 && usize::from(w[1]) == id.len() && w[2..] == *id);
        let Some(found) = found else { return Err(rcgen::Error::CouldNotParseCertificate) };
        seen += found + 2 + id.len();
        if is_further {
            tbs[seen - 1] = ORGANIZATION[3] as u8;
        }
    }
    let signature = rcgen::SigningKey::sign(issuer.key(), &tbs)?;
    let algorithm_begin = at(old) + old.len();
    let algorithm = element(&cert[algorithm_begin..]).ok_or(rcgen::Error::CouldNotParseCertificate)?;
    let bits = [&[0], signature.as_slice()].concat();
    let body = [tbs.as_slice(), algorithm, &tagged(3, &bits)].concat();
    Ok(pem(&tagged(0x30, &body)))
}

/// The first DER element of some bytes.
fn element(bytes: &[u8]) -> Option<&[u8]> {
    let length = match *bytes.get(1)? {
        short @ 0..0x80 => 2 + usize::from(short),
        long => {
            let count = usize::from(long & 0x7f);
            let length = bytes.get(2..2 + count)?.iter().fold(0_usize, |n, b| n << 8 | usize::from(*b));
            2 + count + length
        }
    };
    bytes.get(..length)
}

/// A DER element of a tag.
fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let significant = &length[length.iter().take_while(|b| **b == 0).count()..];
    let mut out = vec![tag];
    match content.len() {
        short @ 0..0x80 => out.push(short as u8),
        _ => {
            out.push(0x80 | significant.len() as u8);
            out.extend_from_slice(significant);
        }
    }
    out.extend_from_slice(content);
    out
}

fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

fn params(name: &str, groups: &[&str], lifetime: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    for (at, group) in groups.iter().enumerate() {
        let further = || DnType::CustomDnType([&ORGANIZATION[..3], &[FURTHER + at as u64]].concat());
        subject.push(if at == 0 { DnType::OrganizationName } else { further() }, *group);
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
    fn a_certificate_names_all_groups_and_is_signed_by_the_authority() {
        use rustls_pki_types::CertificateDer;
        use rustls_pki_types::pem::PemObject as _;
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path()).unwrap();
        let ca = CertificateDer::from_pem_slice(pki.ca_pem().as_bytes()).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
            .build()
            .unwrap();
        let names: Vec<String> = (0..20).map(|n| format!("group-{n}")).collect();
        for count in [0, 1, 2, 3, 20] {
            let groups: Vec<&str> = names.iter().take(count).map(String::as_str).collect();
            let identity = pki.client("ann", &groups).unwrap();
            let cert = CertificateDer::from_pem_slice(identity.cert_pem.as_bytes()).unwrap();
            let user = crate::auth::certificate_user(&cert).unwrap();
            assert_eq!((user.name.as_str(), &user.groups[..count]), ("ann", &names[..count]));
            verifier.verify_client_cert(&cert, &[], rustls_pki_types::UnixTime::now()).unwrap();
        }
        let many = vec!["g"; 40];
        assert!(matches!(pki.client("ann", &many), Err(PkiError::Groups { count: 40, .. })));
    }

    #[test]
    fn a_second_open_finds_the_same_authority() {
        let dir = std::env::temp_dir().join(format!("navarch-pki-{}", std::process::id()));
        let first = Pki::open(&dir).map(|p| p.fingerprint());
        let second = Pki::open(&dir).map(|p| p.fingerprint());
        let _ = std::fs::remove_dir_all(&dir);
        assert_eq!(first.unwrap(), second.unwrap());
    }
}
