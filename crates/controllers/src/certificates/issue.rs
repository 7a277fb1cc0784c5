//! Making the certificate: X.509 v3 (RFC 5280) written as DER. Subject, key and names are the request's own bytes, which
//! no library between could lose: subjects may name several organizations.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use rcgen::{KeyPair, SigningKey as _};
use x509_parser::extensions::ParsedExtension;

use super::request::Request;
use crate::SigningKey;

/// The longest, and where nothing is asked for, the usual time.
const YEAR: SignedDuration = SignedDuration::from_hours(365 * 24);
/// The shortest.
const SHORTEST: SignedDuration = SignedDuration::from_mins(10);
/// Certificates begin in the past, for peers whose clocks are behind.
const BACKDATE: SignedDuration = SignedDuration::from_mins(5);
/// The end of one that is shorter is not put back with its beginning.
const SHORT: SignedDuration = SignedDuration::from_hours(8);

/// What signs.
pub(super) struct Authority {
    key: KeyPair,
    /// The subject, DER.
    issuer: Vec<u8>,
    /// The subject key identifier.
    key_id: Option<Vec<u8>>,
    not_after: Timestamp,
    /// The algorithm of signatures (AlgorithmIdentifier), DER.
    algorithm: Vec<u8>,
}

/// A DER value: tag, length, content.
pub(super) fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let length = content.len();
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let bytes: Vec<u8> = length.to_be_bytes().into_iter().skip_while(|b| *b == 0).collect();
        out.push(0x80 | bytes.len() as u8);
        out.extend(bytes);
    }
    out.extend_from_slice(content);
    out
}

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tagged(0x30, &parts.concat())
}

fn integer(bytes: &[u8]) -> Vec<u8> {
    let mut content: Vec<u8> = bytes.iter().copied().skip_while(|b| *b == 0).collect();
    if content.first().is_none_or(|b| b & 0x80 != 0) {
        content.insert(0, 0);
    }
    tagged(0x02, &content)
}

/// An object identifier from its dotted numbers.
fn oid(numbers: &[u32]) -> Vec<u8> {
    let mut content = Vec::new();
    let first = numbers.first().unwrap_or(&0) * 40 + numbers.get(1).unwrap_or(&0);
    for number in std::iter::once(first).chain(numbers.iter().skip(2).copied()) {
        let mut groups = vec![(number & 0x7f) as u8];
        let mut rest = number >> 7;
        while rest > 0 {
            groups.push((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        content.extend(groups.into_iter().rev());
    }
    tagged(0x06, &content)
}

/// UTCTime until 2049, GeneralizedTime from then on (RFC 5280 section 4.1.2.5).
fn time(at: Timestamp) -> Vec<u8> {
    let at = at.to_zoned(TimeZone::UTC);
    if at.year() < 2050 {
        tagged(0x17, at.strftime("%y%m%d%H%M%SZ").to_string().as_bytes())
    } else {
        tagged(0x18, at.strftime("%Y%m%d%H%M%SZ").to_string().as_bytes())
    }
}

fn extension(numbers: &[u32], is_critical: bool, content: &[u8]) -> Vec<u8> {
    let critical: &[u8] = if is_critical { &[0x01, 0x01, 0xff] } else { &[] };
    sequence(&[&oid(numbers), critical, &tagged(0x04, content)])
}

/// Bits of KeyUsage by the usages' names.
const KEY_USAGES: [(&str, u8); 10] = [
    ("signing", 0),
    ("digital signature", 0),
    ("content commitment", 1),
    ("key encipherment", 2),
    ("data encipherment", 3),
    ("key agreement", 4),
    ("cert sign", 5),
    ("crl sign", 6),
    ("encipher only", 7),
    ("decipher only", 8),
];

/// Purposes of ExtendedKeyUsage by the usages' names, in the order they are written.
const PURPOSES: [(&str, &[u32]); 13] = [
    ("any", &[2, 5, 29, 37, 0]),
    ("server auth", &[1, 3, 6, 1, 5, 5, 7, 3, 1]),
    ("client auth", &[1, 3, 6, 1, 5, 5, 7, 3, 2]),
    ("code signing", &[1, 3, 6, 1, 5, 5, 7, 3, 3]),
    ("email protection", &[1, 3, 6, 1, 5, 5, 7, 3, 4]),
    ("s/mime", &[1, 3, 6, 1, 5, 5, 7, 3, 4]),
    ("ipsec end system", &[1, 3, 6, 1, 5, 5, 7, 3, 5]),
    ("ipsec tunnel", &[1, 3, 6, 1, 5, 5, 7, 3, 6]),
    ("ipsec user", &[1, 3, 6, 1, 5, 5, 7, 3, 7]),
    ("timestamping", &[1, 3, 6, 1, 5, 5, 7, 3, 8]),
    ("ocsp signing", &[1, 3, 6, 1, 5, 5, 7, 3, 9]),
    ("microsoft sgc", &[1, 3, 6, 1, 4, 1, 311, 10, 3, 3]),
    ("netscape sgc", &[2, 16, 840, 1, 113730, 4, 1]),
];

/// KeyUsage as a bit string without trailing zeros.
fn key_usage(usages: &[String]) -> Option<Vec<u8>> {
    let mut bits = [0_u8; 2];
    for (_, bit) in KEY_USAGES.iter().filter(|(name, _)| usages.iter().any(|u| u == name)) {
        bits[usize::from(bit / 8)] |= 0x80 >> (bit % 8);
    }
    let used: &[u8] = if bits[1] != 0 { &bits } else { &bits[..1] };
    let last = used.last().filter(|b| **b != 0)?;
    let mut content = vec![last.trailing_zeros() as u8];
    content.extend_from_slice(used);
    Some(tagged(0x03, &content))
}

fn purposes(usages: &[String]) -> Option<Vec<u8>> {
    let mut list: Vec<Vec<u8>> = Vec::new();
    for (_, numbers) in PURPOSES.iter().filter(|(name, _)| usages.iter().any(|u| u == name)) {
        let purpose = oid(numbers);
        if !list.contains(&purpose) {
            list.push(purpose);
        }
    }
    (!list.is_empty()).then(|| tagged(0x30, &list.concat()))
}

/// The AlgorithmIdentifier of a key's signatures.
fn algorithm(key: &KeyPair) -> Option<Vec<u8>> {
    let used = key.algorithm();
    let ecdsa = |last: u32| Some(sequence(&[&oid(&[1, 2, 840, 10045, 4, 3, last])]));
    if used == &rcgen::PKCS_ECDSA_P256_SHA256 {
        ecdsa(2)
    } else if used == &rcgen::PKCS_ECDSA_P384_SHA384 {
        ecdsa(3)
    } else if used == &rcgen::PKCS_ED25519 {
        Some(sequence(&[&oid(&[1, 3, 101, 112])]))
    } else if used == &rcgen::PKCS_RSA_SHA256 {
        Some(sequence(&[&oid(&[1, 2, 840, 113549, 1, 1, 11]), &[0x05, 0x00]]))
    } else {
        None
    }
}

fn block(pem: &[u8]) -> Option<x509_parser::pem::Pem> {
    x509_parser::pem::Pem::iter_from_buffer(pem).flatten().next()
}

fn end(certificate: &x509_parser::certificate::X509Certificate<'_>) -> Option<Timestamp> {
    Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()
}

/// When the first certificate of a PEM ends.
pub(super) fn not_after(pem: &[u8]) -> Option<Timestamp> {
    end(&block(pem)?.parse_x509().ok()?)
}

impl Authority {
    pub(super) fn open(from: &SigningKey) -> Result<Self, String> {
        let key = KeyPair::from_pem(&from.key_pem).map_err(|e| e.to_string())?;
        let block = block(from.cert_pem.as_bytes()).ok_or("no certificate")?;
        let certificate = block.parse_x509().map_err(|e| e.to_string())?;
        let key_id = certificate.extensions().iter().find_map(|e| match e.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
        Ok(Self {
            issuer: certificate.subject().as_raw().to_vec(),
            key_id,
            not_after: end(&certificate).ok_or("no end")?,
            algorithm: algorithm(&key).ok_or("unknown algorithm")?,
            key,
        })
    }

    /// From when to when: as asked, at least ten minutes and at most a year, never longer than the authority itself.
    fn validity(&self, seconds: Option<i64>, now: Timestamp) -> Result<(Timestamp, Timestamp), String> {
        let asked = seconds.map_or(YEAR, SignedDuration::from_secs);
        let lasts = asked.clamp(SHORTEST, YEAR);
        let from = now - BACKDATE;
        let until = if lasts < SHORT { now + lasts } else { from + lasts };
        let until = until.min(self.not_after);
        if until <= from {
            return Err(format!("the signer has expired: NotAfter={until}"));
        }
        if until <= now {
            return Err(format!("refusing to sign a certificate that expired in the past: NotAfter={until}"));
        }
        Ok((from, until))
    }

    /// The certificate, PEM.
    pub(super) fn issue(
        &self,
        request: &Request,
        usages: &[String],
        seconds: Option<i64>,
        now: Timestamp,
    ) -> Result<String, String> {
        let (from, until) = self.validity(seconds, now)?;
        let mut extensions: Vec<Vec<u8>> = Vec::new();
        extensions.extend(key_usage(usages).map(|bits| extension(&[2, 5, 29, 15], true, &bits)));
        extensions.extend(purposes(usages).map(|list| extension(&[2, 5, 29, 37], false, &list)));
        // Nothing that is signed here signs others.
        extensions.push(extension(&[2, 5, 29, 19], true, &sequence(&[])));
        if let Some(id) = &self.key_id {
            extensions.push(extension(&[2, 5, 29, 35], false, &sequence(&[&tagged(0x80, id)])));
        }
        if !request.names.is_empty() {
            let only_name = request.subject == sequence(&[]);
            extensions.push(extension(&[2, 5, 29, 17], only_name, &sequence(&[&request.names])));
        }
        // A positive number of 127 random bits.
        let serial: u128 = rand::random::<u128>() >> 1;
        let body = sequence(&[
            &tagged(0xa0, &integer(&[2])),
            &integer(&serial.to_be_bytes()),
            &self.algorithm,
            &self.issuer,
            &sequence(&[&time(from), &time(until)]),
            &request.subject,
            &request.public_key,
            &tagged(0xa3, &tagged(0x30, &extensions.concat())),
        ]);
        let signature = self.key.sign(&body).map_err(|e| e.to_string())?;
        let bits = tagged(0x03, &[&[0], signature.as_slice()].concat());
        let der = sequence(&[&body, &self.algorithm, &bits]);
        let text = STANDARD.encode(der);
        let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
        for line in text.as_bytes().chunks(64) {
            pem.push_str(&String::from_utf8_lossy(line));
            pem.push('\n');
        }
        pem.push_str("-----END CERTIFICATE-----\n");
        Ok(pem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use rcgen::{CertificateParams, DnType};

    fn authority(lasts: Duration) -> (Authority, String) {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "the CA");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.not_after = (std::time::SystemTime::now() + lasts).into();
        let cert_pem = params.self_signed(&key).expect("certificate").pem();
        let from = SigningKey { cert_pem: cert_pem.clone(), key_pem: key.serialize_pem() };
        (Authority::open(&from).expect("authority"), cert_pem)
    }

    fn request() -> Request {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(vec!["n1".to_owned(), "10.0.0.1".to_owned()]).expect("names");
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, "system:node:n1");
        let pem = params.serialize_request(&key).expect("request").pem().expect("PEM");
        Request::parse(pem.as_bytes()).expect("request")
    }

    #[test]
    fn a_certificate_says_what_was_asked_for_and_verifies() {
        let (authority, ca) = authority(Duration::from_secs(10 * 365 * 24 * 3600));
        let usages = ["digital signature", "key encipherment", "server auth"].map(str::to_owned);
        let now = Timestamp::now();
        let pem = authority.issue(&request(), &usages, None, now).expect("certificate");
        let block = block(pem.as_bytes()).expect("PEM");
        let certificate = block.parse_x509().expect("certificate");
        let ca = super::block(ca.as_bytes()).expect("PEM");
        let ca = ca.parse_x509().expect("authority");
        certificate.verify_signature(Some(ca.public_key())).expect("signed by the authority");
        assert_eq!(certificate.subject().to_string(), "CN=system:node:n1, O=system:nodes");
        let usage = certificate.key_usage().expect("once").expect("there").value;
        assert!(usage.digital_signature() && usage.key_encipherment() && !usage.key_cert_sign());
        let purposes = certificate.extended_key_usage().expect("once").expect("there").value;
        assert!(purposes.server_auth && !purposes.client_auth);
        assert!(!certificate.is_ca());
        let names = certificate.subject_alternative_name().expect("once").expect("there").value;
        assert_eq!(names.general_names.len(), 2);
        let lasts = certificate.validity().not_after.timestamp() - now.as_second();
        assert_eq!(lasts, (YEAR - BACKDATE).as_secs());
    }

    #[test]
    fn a_certificate_lasts_as_asked_within_bounds() {
        let (authority, _) = authority(Duration::from_secs(30 * 24 * 3600));
        let now = Timestamp::now();
        let lasts = |seconds: Option<i64>| {
            let (_, until) = authority.validity(seconds, now).expect("validity");
            until.duration_since(now).as_secs()
        };
        assert_eq!(lasts(Some(3600)), 3600);
        assert_eq!(lasts(Some(1)), 600);
        assert_eq!(lasts(Some(86400)), 86400 - 300);
        // The authority ends first.
        assert!((30 * 86400 - lasts(None)).abs() < 60);
        let late = now + SignedDuration::from_hours(31 * 24);
        assert!(authority.validity(None, late).is_err_and(|e| e.starts_with("the signer has expired")));
    }

    #[test]
    fn der_is_written_as_the_standard_says() {
        assert_eq!(oid(&[1, 3, 6, 1, 4, 1, 311]), [6, 7, 0x2b, 6, 1, 4, 1, 0x82, 0x37]);
        assert_eq!(integer(&[0, 0x80]), [2, 2, 0, 0x80]);
        assert_eq!(tagged(4, &[0; 200])[..3], [4, 0x81, 200]);
        assert_eq!(key_usage(&["decipher only".to_owned()]), Some(vec![3, 3, 7, 0, 0x80]));
        assert_eq!(key_usage(&["client auth".to_owned()]), None);
    }
}
