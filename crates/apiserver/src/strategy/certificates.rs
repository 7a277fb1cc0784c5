//! Certificate signing requests and trust bundles.

use std::collections::{BTreeMap, BTreeSet};

use api::field::{Cursor, ErrorList};
use api::{meta, names};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature;
use serde_json::{Value, json};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use super::parts::{Parts, Rules};
use super::tree::{each, put_absent};
use super::{generic, pem};

const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// What a request is decided with; one condition of each at most, and never false.
const DECISIONS: [&str; 3] = ["Approved", "Denied", "Failed"];

pub(super) static SIGNING_REQUEST: Parts = Parts {
    validate: |o, errors| signing_request(o, &Value::Null, errors),
    // Who asks is written down by the server at creation; the request itself never changes.
    update: |_, new, old| generic::copy("spec", new, old),
    rules: Rules::OnCreate,
    validate_status: |new, old, errors| {
        signing_request(new, old, errors);
        decided(new, old, Endpoint::Status, errors);
    },
    validate_narrow: |_, new, old, errors| {
        signing_request(new, old, errors);
        decided(new, old, Endpoint::Approval, errors);
    },
    narrow: &[("approval", &["status", "conditions"])],
    ..Parts::UNCOUNTED
};

/// A request; the certificate is looked at where it is another than that of `old`.
fn signing_request(o: &Value, old: &Value, errors: &mut ErrorList) {
    request_spec(&Cursor::root(o).key("spec"), errors);
    conditions(&Cursor::root(o).key("status").key("conditions"), errors);
    let certificate = &o["status"]["certificate"];
    if let Some(text) = certificate.as_str().filter(|c| !c.is_empty())
        && *certificate != old["status"]["certificate"]
    {
        self::certificate(text, errors);
    }
}

fn request_spec(spec: &Cursor<'_>, errors: &mut ErrorList) {
    let request = spec.key("request");
    if let Some(why) = request_complaint(request.str()) {
        errors.invalid("spec.request", &json!(request.str()), &why);
    }
    let usages = spec.key("usages");
    if usages.is_empty() {
        errors.required("spec.usages", "");
    }
    for usage in usages.items().filter(|u| !USAGES.contains(&u.str())) {
        errors.not_supported(&usage.path, usage.json(), &USAGES);
    }
    let mut seen = BTreeSet::new();
    for usage in usages.items() {
        if !seen.insert(usage.str()) {
            errors.duplicate(&usage.path, usage.json());
        }
    }
    let signer = spec.key("signerName");
    if signer.str() == "kubernetes.io/legacy-unknown" {
        let why = "the legacy signerName is not allowed via this API version";
        errors.invalid(&signer.path, signer.json(), why);
    } else {
        signer_name(&signer, errors);
    }
    let expires = spec.key("expirationSeconds");
    if expires.i64().is_some_and(|s| s < 600) {
        let why = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.invalid(&expires.path, expires.json(), why);
    }
}

/// Why base64 text is no PEM of a request that its own key has signed.
fn request_complaint(text: &str) -> Option<String> {
    let bytes = STANDARD.decode(text).unwrap_or_default();
    let block = pem::blocks(&bytes).into_iter().next();
    let Some(block) = block.filter(|b| b.label == "CERTIFICATE REQUEST") else {
        return Some("PEM block type must be CERTIFICATE REQUEST".to_owned());
    };
    match X509CertificationRequest::from_der(&block.contents) {
        Err(_) => Some("asn1: structure error: malformed certificate request".to_owned()),
        Ok((rest, _)) if !rest.is_empty() => Some("asn1: syntax error: trailing data".to_owned()),
        Ok((_, request)) => signature_complaint(&request).map(str::to_owned),
    }
}

/// Why a request is not signed by the key that it is for. Nothing is said of P-521 and SHA-512 with another curve, which
/// cannot be checked here.
fn signature_complaint(request: &X509CertificationRequest<'_>) -> Option<&'static str> {
    const RSA: &str = "crypto/rsa: verification error";
    const ECDSA: &str = "x509: ECDSA verification failure";
    let key = &request.certification_request_info.subject_pki;
    let curve = key.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok()).map(|oid| oid.to_id_string());
    let (algorithm, why): (&dyn signature::VerificationAlgorithm, _) =
        match (request.signature_algorithm.algorithm.to_id_string().as_str(), curve.as_deref()) {
            ("1.2.840.113549.1.1.5", _) => (&signature::RSA_PKCS1_1024_8192_SHA1_FOR_LEGACY_USE_ONLY, RSA),
            ("1.2.840.113549.1.1.11", _) => (&signature::RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY, RSA),
            ("1.2.840.113549.1.1.12", _) => (&signature::RSA_PKCS1_2048_8192_SHA384, RSA),
            ("1.2.840.113549.1.1.13", _) => (&signature::RSA_PKCS1_1024_8192_SHA512_FOR_LEGACY_USE_ONLY, RSA),
            ("1.2.840.113549.1.1.10", _) => {
                return request.verify_signature().is_err().then_some(RSA);
            }
            ("1.2.840.10045.4.3.2", Some("1.2.840.10045.3.1.7")) => {
                (&signature::ECDSA_P256_SHA256_ASN1, ECDSA)
            }
            ("1.2.840.10045.4.3.3", Some("1.2.840.10045.3.1.7")) => {
                (&signature::ECDSA_P256_SHA384_ASN1, ECDSA)
            }
            ("1.2.840.10045.4.3.2", Some("1.3.132.0.34")) => (&signature::ECDSA_P384_SHA256_ASN1, ECDSA),
            ("1.2.840.10045.4.3.3", Some("1.3.132.0.34")) => (&signature::ECDSA_P384_SHA384_ASN1, ECDSA),
            ("1.2.840.10045.4.3.2" | "1.2.840.10045.4.3.3" | "1.2.840.10045.4.3.4", Some(_)) => return None,
            ("1.3.101.112", _) => (&signature::ED25519, "x509: Ed25519 verification failure"),
            ("1.2.840.113549.1.1.4", _) => {
                return Some("x509: cannot verify signature: insecure algorithm MD5-RSA");
            }
            _ => return Some("x509: cannot verify signature: algorithm unimplemented"),
        };
    let key = signature::UnparsedPublicKey::new(algorithm, &key.subject_public_key.data);
    let signed = key.verify(request.certification_request_info.raw, &request.signature_value.data);
    signed.is_err().then_some(why)
}

/// The name of a signer: `domain/path`.
pub(super) fn signer_name(at: &Cursor<'_>, errors: &mut ErrorList) {
    let name = at.str();
    if name.is_empty() {
        return errors.required(&at.path, "");
    }
    let [domain, path] = name.split('/').collect::<Vec<_>>()[..] else {
        let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        return errors.invalid(&at.path, at.json(), why);
    };
    if domain.len() > 253 {
        errors.too_long(&at.path, 253);
    }
    let labels = |whole: &str, check: fn(&str) -> Vec<String>, errors: &mut ErrorList| {
        for part in whole.split('.') {
            for message in check(part) {
                let why = format!("validating label {}: {message}", api::field::quote(part));
                errors.invalid(&at.path, &json!(whole), &why);
            }
        }
    };
    labels(domain, names::dns1123_label, errors);
    if !domain.contains('.') {
        let why = "should be a domain with at least two segments separated by dots";
        errors.invalid(&at.path, &json!(domain), why);
    }
    labels(path, names::dns1123_subdomain, errors);
    if name.len() > 571 {
        errors.too_long(&at.path, 571);
    }
}

fn conditions(list: &Cursor<'_>, errors: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for condition in list.items() {
        let (kind, status) = (condition.key("type"), condition.key("status"));
        if kind.str().is_empty() {
            errors.required(&kind.path, "");
        }
        let allowed: &[&str] =
            if DECISIONS.contains(&kind.str()) { &["True"] } else { &["False", "True", "Unknown"] };
        if status.str().is_empty() {
            errors.required(&status.path, "");
        } else if !allowed.contains(&status.str()) {
            errors.not_supported(&status.path, status.json(), allowed);
        }
        let opposite = match kind.str() {
            "Approved" => "Denied",
            "Denied" => "Approved",
            _ => "",
        };
        if seen.contains(opposite) {
            let why = "Approved and Denied conditions are mutually exclusive";
            errors.invalid(&list.path, kind.json(), why);
        }
        if !seen.insert(kind.str()) {
            errors.duplicate(&kind.path, kind.json());
        }
    }
}

fn certificate(text: &str, errors: &mut ErrorList) {
    let bytes = STANDARD.decode(text).unwrap_or_default();
    let mut found = false;
    let mut refuse = |why: &str| errors.invalid("status.certificate", &json!("<certificate data>"), why);
    for block in pem::blocks(&bytes) {
        if block.label != "CERTIFICATE" {
            let label = api::field::quote(&block.label);
            return refuse(&format!("only CERTIFICATE PEM blocks are allowed, found {label}"));
        }
        if block.has_headers {
            return refuse("no PEM block headers are permitted");
        }
        if x509_parser::parse_x509_certificate(&block.contents).is_err() {
            return refuse("x509: malformed certificate");
        }
        found = true;
    }
    if !found {
        refuse("must contain at least one CERTIFICATE PEM block");
    }
}

/// Which part of a request's status an endpoint may decide.
#[derive(Clone, Copy, PartialEq)]
enum Endpoint {
    Status,
    Approval,
}

/// Decisions are not taken back; approvals come through their own subresource, the certificate comes once.
fn decided(new: &Value, old: &Value, endpoint: Endpoint, errors: &mut ErrorList) {
    let of = |o: &Value, kind: &str| -> Vec<Value> {
        let list = o["status"]["conditions"].as_array().into_iter().flatten();
        list.filter(|c| c["type"] == kind).cloned().collect()
    };
    let mut refuse = |what: &str, kind: &str| {
        let why = format!("updates may not {what} a condition of type {}", api::field::quote(kind));
        errors.forbidden("status.conditions", &why);
    };
    for kind in DECISIONS {
        if of(new, kind).len() < of(old, kind).len() {
            refuse("remove", kind);
        }
    }
    for kind in ["Approved", "Denied"].into_iter().filter(|_| endpoint != Endpoint::Approval) {
        let (now, before) = (of(new, kind), of(old, kind));
        if now.len() > before.len() {
            refuse("add", kind);
        } else if now.len() == before.len() && now != before {
            refuse("modify", kind);
        }
    }
    let (now, before) = (&new["status"]["certificate"], &old["status"]["certificate"]);
    if now != before && endpoint != Endpoint::Status {
        errors.forbidden("status.certificate", "updates may not set certificate content");
    } else if now != before && before.as_str().is_some_and(|c| !c.is_empty()) {
        errors.forbidden("status.certificate", "updates may not modify existing certificate content");
    }
}

/// Conditions say when they came and changed: `now`, unless they did before.
pub(crate) fn stamp_conditions(new: &mut Value, old: &Value, now: &str) {
    let before = old["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let Some(status) = new.get_mut("status") else { return };
    for condition in each(status, "conditions") {
        put_absent(condition, "lastUpdateTime", now);
        let same =
            before.iter().find(|b| b["type"] == condition["type"] && b["status"] == condition["status"]);
        let since = same.and_then(|b| b["lastTransitionTime"].as_str()).unwrap_or(now).to_owned();
        put_absent(condition, "lastTransitionTime", since);
    }
}

pub(super) static TRUST_BUNDLE: Parts = Parts {
    validate: |o, errors| {
        bundle_name(o, errors);
        trust_bundle(&Cursor::root(o).key("spec").key("trustBundle"), errors);
    },
    validate_change: |new, old, errors| {
        bundle_name(new, errors);
        // what is trusted already is not read again
        if new["spec"]["trustBundle"] != old["spec"]["trustBundle"] {
            trust_bundle(&Cursor::root(new).key("spec").key("trustBundle"), errors);
        }
        generic::immutable("spec.signerName", &new["spec"]["signerName"], &old["spec"]["signerName"], errors);
    },
    rules: Rules::OnCreate,
    unconditional_update: false,
    ..Parts::DATA
};

/// A bundle's name tells its signer.
fn bundle_name(o: &Value, errors: &mut ErrorList) {
    let signer = Cursor::root(o).key("spec").key("signerName");
    let name = meta::name(o);
    if signer.str().is_empty() {
        if name.contains(':') {
            let why = "ClusterTrustBundle without signer name must not have \":\" in its name";
            errors.invalid("metadata.name", &json!(name), why);
        }
        return;
    }
    let prefix = format!("{}:", signer.str().replace('/', ":"));
    if !name.starts_with(&prefix) {
        let signer = signer.str();
        let why = format!("ClusterTrustBundle for signerName {signer} must be named with prefix {prefix}");
        errors.invalid("metadata.name", &json!(name), &why);
    }
    signer_name(&signer, errors);
}

fn trust_bundle(at: &Cursor<'_>, errors: &mut ErrorList) {
    const MAX: usize = 1 << 20;
    if at.str().len() > MAX {
        return errors.too_long(&at.path, MAX);
    }
    let blocks = pem::blocks(at.str().as_bytes());
    let before = errors.len();
    let mut seen: BTreeMap<&[u8], Vec<usize>> = BTreeMap::new();
    for (i, block) in blocks.iter().enumerate() {
        let parsed = x509_parser::parse_x509_certificate(&block.contents);
        let complaint = match &parsed {
            _ if block.label != "CERTIFICATE" => format!("entry {i} has bad block type: {}", block.label),
            _ if block.has_headers => format!("entry {i} has PEM block headers"),
            Err(_) => format!("entry {i} does not parse as X.509"),
            Ok((_, certificate)) if !certificate.is_ca() => {
                format!("entry {i} does not have the CA bit set")
            }
            Ok(_) => {
                seen.entry(&block.contents).or_default().push(i);
                continue;
            }
        };
        errors.invalid(&at.path, &json!("<value omitted>"), &complaint);
    }
    // of a bundle that cannot be read nothing more is said
    if errors.len() > before {
        return;
    }
    if seen.is_empty() {
        errors.invalid(&at.path, &json!("<value omitted>"), "at least one trust anchor must be provided");
    }
    for indices in seen.values().filter(|indices| indices.len() > 1) {
        let list: Vec<String> = indices.iter().map(ToString::to_string).collect();
        let why = format!("duplicate trust anchor (indices [{}])", list.join(" "));
        errors.invalid(&at.path, &json!("<value omitted>"), &why);
    }
}
