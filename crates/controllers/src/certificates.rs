//! Certificate signing requests: kubelets' own are approved, approved ones for the built-in signers are signed, and what is
//! through or was never decided goes after a while.
//!
//! Rule: Kubernetes documentation, "Certificates and Certificate Signing Requests" (Kubernetes signers). A request names
//! what was decided in its conditions, so that a pass cut off anywhere goes on where it stands.
mod issue;
mod request;

use client::{Cache, Change, DeleteOptions, path_of};
use http::Method;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use self::issue::Authority;
use self::request::{Request, Signer};
use crate::SigningKey;
use crate::ownership::name;
use crate::runner::{Context, Failure, Outcome, Reconcile, Runner};

/// How long what was decided, and issued where it was approved, stays.
const DECIDED: SignedDuration = SignedDuration::from_hours(1);
/// How long a request waits for a decision.
const PENDING: SignedDuration = SignedDuration::from_hours(24);

struct Controller {
    context: Context,
    requests: Cache<CertificateSigningRequest>,
    /// `None`: others sign.
    authority: Option<Authority>,
}

pub(crate) async fn run(context: Context, key: Option<SigningKey>) {
    let authority = match key.map(|key| Authority::open(&key)).transpose() {
        Ok(authority) => authority,
        Err(why) => {
            tracing::error!(
                why,
                "certificates are not signed: the authority's key or certificate is not usable"
            );
            None
        }
    };
    let requests = context.reader.caches().of::<CertificateSigningRequest>();
    let controller = Controller { context: context.clone(), requests: requests.clone(), authority };
    Runner::new(&context, controller)
        .on(&requests, |_, change| match change {
            Change::Deleted(_) => None,
            change => Some(name(&change.object().metadata).to_owned()),
        })
        .run(4)
        .await;
}

fn conditions(csr: &CertificateSigningRequest) -> &[CertificateSigningRequestCondition] {
    csr.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default()
}

fn is(csr: &CertificateSigningRequest, kind: &str) -> bool {
    conditions(csr).iter().any(|c| c.type_ == kind && c.status == "True")
}

fn certificate(csr: &CertificateSigningRequest) -> Option<&[u8]> {
    csr.status.as_ref()?.certificate.as_ref().map(|c| c.0.as_slice()).filter(|c| !c.is_empty())
}

/// When the request may go: the earliest of the ends that apply to it.
fn expires(csr: &CertificateSigningRequest) -> Option<Timestamp> {
    let issued = certificate(csr);
    let mut ends: Vec<Timestamp> = conditions(csr)
        .iter()
        .filter(|c| match c.type_.as_str() {
            "Approved" => issued.is_some(),
            "Denied" | "Failed" => true,
            _ => false,
        })
        .filter_map(|c| Some(c.last_update_time.as_ref()?.0 + DECIDED))
        .collect();
    if conditions(csr).is_empty() {
        ends.extend(csr.metadata.creation_timestamp.as_ref().map(|t| t.0 + PENDING));
    }
    ends.extend(issued.and_then(issue::not_after));
    ends.into_iter().min()
}

impl Controller {
    /// Whether a request was approved just now: one of a kubelet, by someone who may have it without being asked.
    async fn approve(&self, csr: &CertificateSigningRequest, request: &Request) -> Result<bool, Failure> {
        let usages = csr.spec.usages.as_deref().unwrap_or_default();
        if csr.spec.signer_name != Signer::KubeletClient.name() || request.is_kubelet_client(usages).is_err()
        {
            return Ok(false);
        }
        let own = csr.spec.username.as_deref() == request.common_name.as_deref();
        let ways = [
            (
                own,
                "selfnodeclient",
                "Auto approving self kubelet client certificate after SubjectAccessReview.",
            ),
            (true, "nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview."),
        ];
        for (_, subresource, message) in ways.into_iter().filter(|(applies, ..)| *applies) {
            if !self.may(csr, subresource).await? {
                continue;
            }
            let condition =
                json!({"type": "Approved", "status": "True", "reason": "AutoApproved", "message": message});
            let mut next = serde_json::to_value(csr).map_err(|e| Failure::Invalid(e.to_string()))?;
            let mut list = next["status"]["conditions"].as_array().cloned().unwrap_or_default();
            list.push(condition);
            next["status"]["conditions"] = json!(list);
            let path = path_of(
                "certificates.k8s.io",
                "v1",
                "certificatesigningrequests",
                "",
                name(&csr.metadata),
                "approval",
            );
            self.context.client.call::<_, Value>(Method::PUT, &path, Some(&next)).await?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Whether whoever asks may create this subresource of requests.
    async fn may(&self, csr: &CertificateSigningRequest, subresource: &str) -> Result<bool, Failure> {
        let spec = &csr.spec;
        let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {
            "user": spec.username, "uid": spec.uid, "groups": spec.groups, "extra": spec.extra,
            "resourceAttributes": {"group": "certificates.k8s.io", "resource": "certificatesigningrequests",
                "verb": "create", "subresource": subresource, "version": "*"}}});
        let path = path_of("authorization.k8s.io", "v1", "subjectaccessreviews", "", "", "");
        let answer: Value = self.context.client.call(Method::POST, &path, Some(&review)).await?;
        Ok(answer["status"]["allowed"] == true)
    }

    /// Signs an approved request, or says for good why it cannot be signed.
    async fn sign(
        &self,
        csr: &CertificateSigningRequest,
        request: &Request,
        authority: &Authority,
    ) -> Result<(), Failure> {
        let Some(signer) = Signer::of(&csr.spec.signer_name) else { return Ok(()) };
        let usages = csr.spec.usages.as_deref().unwrap_or_default();
        let mut next = csr.clone();
        let now = self.context.clock.now();
        let status = next.status.get_or_insert_default();
        match signer.accepts(request, usages) {
            Err(message) => {
                status.conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
                    type_: "Failed".to_owned(),
                    status: "True".to_owned(),
                    reason: Some("SignerValidationFailure".to_owned()),
                    message: Some(message),
                    last_update_time: Some(Time(now)),
                    last_transition_time: None,
                });
            }
            Ok(()) => {
                let seconds = csr.spec.expiration_seconds.map(i64::from);
                let pem = authority.issue(request, usages, seconds, now).map_err(Failure::Invalid)?;
                status.certificate = Some(ByteString(pem.into_bytes()));
            }
        }
        self.context.client.update_status("", &next).await?;
        Ok(())
    }
}

impl Reconcile for Controller {
    type Key = String;

    async fn reconcile(&self, key: &String) -> Result<Outcome, Failure> {
        let Some(csr) = self.requests.get("", key) else { return Ok(Outcome::Settled) };
        if csr.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Settled);
        }
        let left = expires(&csr).map(|at| at.duration_since(self.context.clock.now()));
        if left.is_some_and(|left| left <= SignedDuration::ZERO) {
            let options = DeleteOptions { uid: csr.metadata.uid.clone(), ..DeleteOptions::default() };
            return match self.context.client.delete::<CertificateSigningRequest>("", key, &options).await {
                Ok(()) => Ok(Outcome::Settled),
                Err(e) if e.is_not_found() => Ok(Outcome::Settled),
                Err(e) => Err(e.into()),
            };
        }
        let wait = Outcome::from(left.map(SignedDuration::unsigned_abs));
        if certificate(&csr).is_some() || is(&csr, "Denied") || is(&csr, "Failed") {
            return Ok(wait);
        }
        // What is no request was refused at its creation.
        let Some(request) = Request::parse(&csr.spec.request.0) else { return Ok(wait) };
        if !is(&csr, "Approved") {
            // The change brings an approved one back here.
            self.approve(&csr, &request).await?;
        } else if let Some(authority) = &self.authority {
            self.sign(&csr, &request, authority).await?;
        }
        Ok(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_goes_an_hour_after_its_decision_or_a_day_after_it_was_made() {
        let at = |hours: i64| json!((Timestamp::UNIX_EPOCH + SignedDuration::from_hours(hours)).to_string());
        let check = |status: Value, want: Option<i64>| {
            let csr = json!({"metadata": {"name": "r", "creationTimestamp": at(0)},
                "spec": {"request": "", "signerName": "a.b/c", "usages": []}, "status": status});
            let csr: CertificateSigningRequest = serde_json::from_value(csr).expect("request");
            let want = want.map(|h| Timestamp::UNIX_EPOCH + SignedDuration::from_hours(h));
            assert_eq!(expires(&csr), want, "{csr:?}");
        };
        let condition = |kind: &str| json!([{"type": kind, "status": "True", "lastUpdateTime": at(5)}]);
        check(json!({}), Some(24));
        check(json!({"conditions": condition("Denied")}), Some(6));
        check(json!({"conditions": condition("Failed")}), Some(6));
        // Approved but not signed: its signer may come yet.
        check(json!({"conditions": condition("Approved")}), None);
        check(json!({"conditions": condition("Approved"), "certificate": "Y2VydA=="}), Some(6));
    }
}
