//! Signing requests: who may approve and sign for which signer, and which subjects nobody gets.
//!
//! Rule: Kubernetes documentation, "Certificate Signing Requests" (authorization, `CertificateApproval`,
//! `CertificateSigning`, `CertificateSubjectRestriction`).

use api::meta;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;
use x509_parser::prelude::FromDer as _;

use super::Request;
use crate::auth::MASTERS;
use crate::auth::authorize::{Attributes, Authorizer};
use crate::status::{ApiError, ApiResult};

const GROUP: &str = "certificates.k8s.io";
/// The signer of client certificates for this server.
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

/// Refuses a request for a certificate of the all-powerful group.
pub fn restrict_subject(request: &Request<'_>, object: &Value) -> ApiResult<()> {
    if object["spec"]["signerName"] != CLIENT_SIGNER || !asks_for_masters(&object["spec"]["request"]) {
        return Ok(());
    }
    let why = format!("use of {CLIENT_SIGNER} signer with {MASTERS} group is not allowed");
    Err(ApiError::forbidden(request.kind, meta::name(object), &why))
}

fn asks_for_masters(request: &Value) -> bool {
    let Ok(pem) = STANDARD.decode(request.as_str().unwrap_or_default()) else { return false };
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(&pem) else { return false };
    let Ok((_, csr)) = x509_parser::certification_request::X509CertificationRequest::from_der(&pem.contents)
    else {
        return false;
    };
    let subject = &csr.certification_request_info.subject;
    subject.iter_organization().any(|o| o.as_str().is_ok_and(|o| o == MASTERS))
}

/// Checks and completes an update through `approval` or `status`.
pub async fn decide(
    authorizer: &Authorizer,
    request: &Request<'_>,
    subresource: &str,
    object: &mut Value,
) -> ApiResult<()> {
    let Some(old) = request.old else { return Ok(()) };
    let name = meta::name(old).to_owned();
    let signer = old["spec"]["signerName"].as_str().unwrap_or_default();
    let signs = subresource == "status"
        && (old["status"]["certificate"] != object["status"]["certificate"]
            || has(old, "Failed") != has(object, "Failed"));
    let verb = if subresource == "approval" { "approve" } else { "sign" };
    if (subresource == "approval" || signs) && !may(authorizer, request, verb, signer).await {
        let why = format!("user not permitted to {verb} requests with signerName {signer:?}");
        return Err(ApiError::forbidden(request.kind, &name, &why));
    }
    let now = meta::format_time(Timestamp::now());
    crate::strategy::certificates::stamp_conditions(object, old, &now);
    Ok(())
}

fn has(object: &Value, decision: &str) -> bool {
    object["status"]["conditions"].as_array().is_some_and(|l| l.iter().any(|c| c["type"] == decision))
}

/// Whether the user has `verb` for the signer itself or for all signers of its domain.
async fn may(authorizer: &Authorizer, request: &Request<'_>, verb: &str, signer: &str) -> bool {
    let domain = format!("{}/*", signer.split('/').next().unwrap_or_default());
    for name in [signer, domain.as_str()] {
        let resource = "signers".to_owned();
        let attributes = Attributes { verb, group: GROUP, resource, name, ..Attributes::default() };
        if authorizer.admits(request.user, &attributes).await {
            return true;
        }
    }
    false
}
