//! What lets nodes join: the token, the rights of those who hold it and of nodes, and approval of the certificates they serve with.
//!
//! Who holds the token may have a node's client certificate, and a node its own anew: the rights say so, and the certificate
//! controllers act on them. What a node serves with is approved here, for its name and for addresses that no other node has
//! (elsewhere an administrator approves these: only who runs the cluster knows which names a node may have).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context;
use apiserver::Server;
use client::{Client, Error, path_of};
use http::Method;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use k8s_openapi::api::core::v1::{Node, Secret};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer as _, X509CertificationRequest};

use crate::cluster_network::CONFIG_MAP;
use crate::data_dir::DataDir;
use crate::join_token::JoinToken;

const SERVING: &str = "kubernetes.io/kubelet-serving";
const NODE: &str = "system:node:";
/// What the token's holders are in, besides `system:bootstrappers`.
const JOINING: &str = "system:bootstrappers:navarch:joining-nodes";

/// The token in the cluster's folder, made where it is missing, and what it needs in the API.
pub async fn prepare(server: &Server, client: &Client, data: &DataDir) -> anyhow::Result<()> {
    let authority = authority_der(server.pki().ca_pem()).context("the cluster's authority is no PEM")?;
    let file = data.join_token();
    let token = match std::fs::read_to_string(&file) {
        Ok(text) => JoinToken::parse(&text).with_context(|| file.display().to_string())?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let token = JoinToken::new(&authority);
            apiserver::pki::write_secret(&file, format!("{}\n", token.text()).as_bytes())
                .with_context(|| file.display().to_string())?;
            token
        }
        Err(error) => return Err(error).with_context(|| file.display().to_string()),
    };
    let secret: Secret = serde_json::from_value(json!({
        "metadata": {"name": format!("bootstrap-token-{}", token.id()), "namespace": "kube-system"},
        "type": "bootstrap.kubernetes.io/token",
        "stringData": {"token-id": token.id(), "token-secret": token.secret(), "usage-bootstrap-authentication": "true",
            "auth-extra-groups": JOINING, "description": "joins nodes; `navarch token` prints it"},
    }))?;
    exists(client.create("kube-system", &secret).await)?;
    let role: ClusterRole = serde_json::from_value(json!({
        "metadata": {"name": "system:navarch:node-network"},
        "rules": [
            {"apiGroups": [""], "resources": ["nodes", "pods", "namespaces", "services"], "verbs": ["get", "list", "watch"]},
            {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [CONFIG_MAP], "verbs": ["get"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]},
            {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": ["get", "list", "watch"]},
        ],
    }))?;
    let made = match client.create("", &role).await {
        // an earlier version may have given it other rights
        Err(error) if error.is_already_exists() => client.update("", &role).await,
        made => made,
    };
    made.context("cannot prepare the joining of nodes")?;
    const CSR: &str = "system:certificates.k8s.io:certificatesigningrequests";
    for (name, role, group) in [
        ("system:navarch:node-bootstrapper", "system:node-bootstrapper".to_owned(), JOINING),
        ("system:navarch:node-certificates", format!("{CSR}:nodeclient"), JOINING),
        ("system:navarch:node-renewals", format!("{CSR}:selfnodeclient"), "system:nodes"),
        ("system:navarch:node-network", "system:navarch:node-network".to_owned(), "system:nodes"),
    ] {
        let binding: ClusterRoleBinding = serde_json::from_value(json!({
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group}],
        }))?;
        exists(client.create("", &binding).await)?;
    }
    Ok(())
}

/// What is there already was made by an earlier start, and may have been changed since.
fn exists<T>(made: Result<T, Error>) -> anyhow::Result<()> {
    match made {
        Err(error) if !error.is_already_exists() => Err(error).context("cannot prepare the joining of nodes"),
        _ => Ok(()),
    }
}

fn authority_der(pem: &str) -> Option<Vec<u8>> {
    x509_parser::pem::Pem::iter_from_buffer(pem.as_bytes()).flatten().next().map(|block| block.contents)
}

/// Approves what nodes ask to serve with where it is their own, until `stop`.
pub async fn approve(client: Client, stop: CancellationToken) -> anyhow::Result<()> {
    let (requests, nodes) = (client.caches().of::<CertificateSigningRequest>(), client.caches().of::<Node>());
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        () = async { tokio::join!(requests.synced(), nodes.synced()); } => {}
    }
    let mut changes = requests.subscribe();
    loop {
        let change = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            change = changes.next() => change,
        };
        let Some(change) = change else { return Ok(()) };
        let request = change.object();
        let gone = matches!(change, client::Change::Deleted(_));
        if gone || request.spec.signer_name != SERVING || is_decided(request) {
            continue;
        }
        if let Err(why) = may_serve(request, &nodes.list()) {
            let name = request.metadata.name.as_deref();
            tracing::warn!(name, why, "what a node serves with needs an administrator's approval");
            continue;
        }
        match approve_one(&client, request).await {
            // the request waits for an administrator; the node asks anew
            Err(error) if !error.is_conflict() && !error.is_not_found() => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "what a node serves with was not approved");
            }
            _ => {}
        }
    }
}

fn is_decided(request: &CertificateSigningRequest) -> bool {
    let conditions = request.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| matches!(c.type_.as_str(), "Approved" | "Denied" | "Failed"))
}

async fn approve_one(client: &Client, request: &CertificateSigningRequest) -> Result<(), Error> {
    let mut next = request.clone();
    next.status.get_or_insert_default().conditions.get_or_insert_default().push(
        CertificateSigningRequestCondition {
            type_: "Approved".to_owned(),
            status: "True".to_owned(),
            reason: Some("AutoApproved".to_owned()),
            message: Some("A node asks for its own name and addresses.".to_owned()),
            ..Default::default()
        },
    );
    let name = request.metadata.name.as_deref().unwrap_or_default();
    let path = path_of("certificates.k8s.io", "v1", "certificatesigningrequests", "", name, "approval");
    client.call::<_, Value>(Method::PUT, &path, Some(&next)).await.map(|_| ())
}

/// The `system:node:` user that a request is for, where its subject is a node's.
fn node_named(csr: &X509CertificationRequest<'_>) -> Option<String> {
    let subject = &csr.certification_request_info.subject;
    let names: Vec<&str> = subject.iter_common_name().filter_map(|n| n.as_str().ok()).collect();
    let groups: Vec<&str> = subject.iter_organization().filter_map(|n| n.as_str().ok()).collect();
    match (names.as_slice(), groups.as_slice()) {
        ([name], ["system:nodes"]) if name.starts_with(NODE) => Some((*name).to_owned()),
        _ => None,
    }
}

fn with_csr<T>(
    request: &CertificateSigningRequest,
    judge: impl FnOnce(&X509CertificationRequest<'_>) -> Result<T, &'static str>,
) -> Result<T, &'static str> {
    let block = x509_parser::pem::Pem::iter_from_buffer(&request.spec.request.0).flatten().next();
    let block = block.ok_or("it is no PEM")?;
    let (_, csr) = X509CertificationRequest::from_der(&block.contents).map_err(|_| "it is no request")?;
    judge(&csr)
}

/// Whether a node asks for names that are its own; if not, why.
fn may_serve(request: &CertificateSigningRequest, nodes: &[Arc<Node>]) -> Result<(), &'static str> {
    let user = request.spec.username.as_deref().unwrap_or_default();
    let node = user.strip_prefix(NODE).ok_or("it was not made by a node")?;
    let taken: BTreeSet<&str> = nodes
        .iter()
        .filter(|other| other.metadata.name.as_deref() != Some(node))
        .flat_map(|other| other.status.iter().flat_map(|s| s.addresses.iter().flatten()))
        .map(|address| address.address.as_str())
        .collect();
    let free = |ip: IpAddr| !taken.contains(ip.to_string().as_str());
    with_csr(request, |csr| {
        if node_named(csr).as_deref() != Some(user) {
            return Err("it is for another node");
        }
        for extension in csr.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(list) = extension else { continue };
            let own = |name: &GeneralName<'_>| match name {
                GeneralName::DNSName(dns) => *dns == node,
                GeneralName::IPAddress(bytes) => {
                    let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                    let v6 = <[u8; 16]>::try_from(*bytes).map(IpAddr::from);
                    v4.or(v6).is_ok_and(free)
                }
                _ => false,
            };
            if !list.general_names.iter().all(own) {
                return Err("it names what is not the node's own");
            }
        }
        Ok(())
    })
}
