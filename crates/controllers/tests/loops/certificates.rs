//! Signing requests: kubelets' own are approved, approved ones are signed or refused for good, old ones go.
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use rcgen::{CertificateParams, DnType, KeyPair};
use serde_json::{Value, json};

use crate::hollow::Hollow;

pub fn request(organization: &str, name: &str) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, organization);
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().expect("key");
    STANDARD.encode(params.serialize_request(&key).expect("request").pem().expect("PEM"))
}

pub fn csr(name: &str, signer: &str, request: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"request": request, "signerName": format!("kubernetes.io/{signer}"),
        "expirationSeconds": 3600, "usages": ["digital signature", "client auth"]}})
}

pub fn has(csr: &CertificateSigningRequest, kind: &str) -> bool {
    let conditions = csr.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == kind)
}

pub fn issued(csr: &CertificateSigningRequest) -> Option<Vec<u8>> {
    Some(csr.status.as_ref()?.certificate.as_ref()?.0.clone())
}

pub async fn approve(cluster: &Hollow, name: &str) {
    let path = format!("/apis/certificates.k8s.io/v1/certificatesigningrequests/{name}/approval");
    let mut csr: Value = cluster.client.call(http::Method::GET, &path, None::<&()>).await.expect("request");
    csr["status"]["conditions"] =
        json!([{"type": "Approved", "status": "True", "reason": "r", "message": ""}]);
    cluster.client.call::<_, Value>(http::Method::PUT, &path, Some(&csr)).await.expect("approved");
}

async fn until(
    cluster: &Hollow,
    what: &str,
    name: &'static str,
    done: impl Fn(&CertificateSigningRequest) -> bool,
) -> CertificateSigningRequest {
    let is = |c: &CertificateSigningRequest| c.metadata.name.as_deref() == Some(name);
    let all = cluster.until::<CertificateSigningRequest>(what, |l| l.iter().any(|c| is(c) && done(c))).await;
    all.iter().find(|c| is(c)).map(|c| (**c).clone()).expect("request")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubelets_get_their_certificates_and_others_when_somebody_approves() {
    let cluster = Hollow::start().await;
    let create = async |value: Value| cluster.create::<CertificateSigningRequest>("", value).await;
    // Whoever asks here may have any.
    create(csr("node", "kube-apiserver-client-kubelet", &request("system:nodes", "system:node:n1"))).await;
    let node = until(&cluster, "signed", "node", |c| has(c, "Approved") && issued(c).is_some()).await;
    let pem = issued(&node).expect("certificate");
    let block = x509_parser::pem::Pem::iter_from_buffer(&pem).flatten().next().expect("PEM");
    let certificate = block.parse_x509().expect("certificate");
    assert_eq!(certificate.subject().to_string(), "CN=system:node:n1, O=system:nodes");
    let left = certificate.validity().not_after.timestamp() - cluster.now().as_second();
    assert!((3500..=3600).contains(&left), "as long as asked: {left}");

    // What is no kubelet's is nobody's to approve but somebody's.
    create(csr("user", "kube-apiserver-client", &request("devs", "jane"))).await;
    let user = until(&cluster, "there", "user", |_| true).await;
    assert!(!has(&user, "Approved"));
    approve(&cluster, "user").await;
    until(&cluster, "signed", "user", |c| issued(c).is_some()).await;

    // A serving certificate needs other usages.
    create(csr("serving", "kubelet-serving", &request("system:nodes", "system:node:n1"))).await;
    approve(&cluster, "serving").await;
    let refused = until(&cluster, "refused", "serving", |c| has(c, "Failed")).await;
    assert_eq!(issued(&refused), None);

    create(csr("forgotten", "kube-apiserver-client", &request("devs", "joe"))).await;
    until(&cluster, "there", "forgotten", |_| true).await;
    cluster.clock.advance(25 * 3600);
    for name in ["node", "user", "serving", "forgotten"] {
        cluster.look::<CertificateSigningRequest>("", name).await;
    }
    cluster.until::<CertificateSigningRequest>("all gone", |l| l.is_empty()).await;
    cluster.stop().await;
}
