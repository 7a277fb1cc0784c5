//! `navarch agent`: this machine as a node of a cluster that runs elsewhere.
//!
//! The join token's pin names the cluster's authority, which the server shows in the TLS handshake; from then on only servers
//! of that authority are spoken to. The token opens the way to one request for a certificate; with it the node asks for the
//! certificate its kubelet serves with. Both stay in the node's folder, so the token is needed once.
//!
//! Rule: Kubernetes documentation, "TLS bootstrapping".

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use client::https::{Endpoint, Https};
use client::{Client, tls};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::FromDer as _;

use super::{DRAIN, Ended, node, too_early};
use crate::cluster_network::ClusterNetwork;
use crate::command::{AgentOptions, Part};
use crate::data_dir::DataDir;
use crate::join_token::JoinToken;
use crate::preflight;

const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
/// How long a request for a certificate may wait.
const PATIENCE: Duration = Duration::from_secs(120);
/// Certificates that end sooner are asked for anew at the next start.
const RENEW_BEFORE: Duration = Duration::from_secs(60 * 24 * 3600);

/// Runs until SIGTERM or SIGINT.
pub fn main(options: AgentOptions) -> anyhow::Result<()> {
    super::log();
    let parts = [Part::Agent, Part::Proxy, Part::Dns].into();
    preflight::check(&parts)?;
    super::return_memory();
    let runtime = super::async_runtime()?;
    let outcome = runtime.block_on(run(options, parts));
    // a blocking call that hangs must not keep the process
    runtime.shutdown_timeout(Duration::from_secs(2));
    outcome
}

async fn run(options: AgentOptions, parts: std::collections::BTreeSet<Part>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let data = DataDir::create(&options.data_dir)?;
    let _lock = data.lock()?;
    let name = super::node_name(options.node_name.as_deref())?;
    let given = super::node_ips(&options.node_ip)?;
    let address = match given.first() {
        Some(address) => *address,
        None => network::host_ip(&network::netns::Place::open(None)?, &["navarch0"]).await,
    };
    let stop = CancellationToken::new();
    let mut running: JoinSet<Ended> = JoinSet::new();
    let started = async {
        let credentials = Credentials::obtain(&options, &data, &name, address).await?;
        let client = client(&options.server, &credentials.ca_pem, credentials.client.clone(), "")?;
        let cluster = ClusterNetwork::joined(&client, &data).await?;
        let addresses = if given.is_empty() { super::default_addresses(&cluster).await? } else { given };
        let access = node::Access {
            ca_pem: credentials.ca_pem,
            serving: credentials.serving,
            client: Box::new(move |_, _| client.clone()),
        };
        let this = node::Identity {
            name: &name,
            addresses,
            registries: &options.private_registry,
            way: options.node_network,
            cni: &options.cni,
            pod_cidrs: None,
            cluster,
            settings: node::kubelet_settings(options.kubelet_config.as_deref(), &data)?,
        };
        node::start(&access, &data, &parts, &this, &mut running, &stop).await?;
        println!("Navarch {} runs the node {name} of {}", env!("CARGO_PKG_VERSION"), options.server);
        anyhow::Ok(())
    };
    let mut outcome = tokio::select! {
        started = started => started.map(|()| false),
        _ = terminate.recv() => Ok(true),
        _ = interrupt.recv() => Ok(true),
    };
    if matches!(outcome, Ok(false)) {
        outcome = tokio::select! {
            ended = running.join_next(), if !running.is_empty() => too_early(ended).map(|()| true),
            _ = terminate.recv() => Ok(true),
            _ = interrupt.recv() => Ok(true),
        };
    }
    tracing::info!("stopping");
    stop.cancel();
    let drained = tokio::time::timeout(DRAIN, async { while running.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::warn!("some parts did not end in time");
    }
    outcome.map(|_| ())
}

/// Certificate and key, PEM.
type Pair = (String, String);

/// What the node shows, and whom it trusts.
struct Credentials {
    ca_pem: String,
    client: Pair,
    serving: Pair,
}

impl Credentials {
    /// Those in the node's folder; what is missing or about to end is asked for.
    async fn obtain(
        options: &AgentOptions,
        data: &DataDir,
        name: &str,
        address: IpAddr,
    ) -> anyhow::Result<Self> {
        let folder = data.agent();
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let ca_file = folder.join("ca.crt");
        let (kept_client, kept_serving) = (kept(&folder, "client"), kept(&folder, "serving"));
        let token = match (&options.token, &options.token_file) {
            (Some(text), _) => Some(JoinToken::parse(text)?),
            (None, Some(file)) => {
                let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
                Some(JoinToken::parse(&text)?)
            }
            (None, None) => None,
        };
        let ca_pem = match (std::fs::read_to_string(&ca_file), &token) {
            (Ok(pem), _) => pem,
            (Err(_), None) => bail!(
                "this machine has not joined yet: --token is needed; `navarch token` prints it on the server"
            ),
            (Err(_), Some(token)) => {
                let shown = tls::shown_authority(&options.server, |der| token.is_for(der))
                    .await
                    .map_err(|error| anyhow::anyhow!("{error}"))
                    .with_context(|| format!("cannot reach {}", options.server))?;
                let pem = shown.with_context(|| {
                    format!("{} is not the cluster that the token was made for", options.server)
                })?;
                apiserver::pki::write_secret(&ca_file, pem.as_bytes())
                    .with_context(|| ca_file.display().to_string())?;
                pem
            }
        };
        let user = format!("system:node:{name}");
        let client_pair = match kept_client {
            Some(pair) if is_of(&pair.0, &user, RENEW_BEFORE) => pair,
            kept => {
                // one that is about to end opens the way to the next
                let joining = match (kept.filter(|pair| is_of(&pair.0, &user, Duration::ZERO)), &token) {
                    (Some(pair), _) => client(&options.server, &ca_pem, pair, "")?,
                    (None, Some(token)) => {
                        client(&options.server, &ca_pem, Pair::default(), &token.bootstrap())?
                    }
                    (None, None) => {
                        bail!("the node's certificate is missing, another's or has ended: --token is needed")
                    }
                };
                let made = certificate(&joining, &user, CLIENT_SIGNER, Vec::new()).await?;
                keep(&folder, "client", &made)?;
                made
            }
        };
        let serving = match kept_serving {
            Some(pair) if is_of(&pair.0, &user, RENEW_BEFORE) => pair,
            _ => {
                let own = client(&options.server, &ca_pem, client_pair.clone(), "")?;
                let loopback = IpAddr::from([127, 0, 0, 1]);
                let names = vec![
                    SanType::DnsName(name.try_into().context("the node's name is no DNS name")?),
                    SanType::IpAddress(address),
                    SanType::IpAddress(loopback),
                ];
                let made = certificate(&own, &user, SERVING_SIGNER, names).await?;
                keep(&folder, "serving", &made)?;
                made
            }
        };
        Ok(Self { ca_pem, client: client_pair, serving })
    }
}

fn client(server: &str, ca_pem: &str, pair: Pair, token: &str) -> anyhow::Result<Client> {
    let endpoint = Endpoint {
        server: server.to_owned(),
        ca_pem: ca_pem.as_bytes().to_vec(),
        cert_pem: pair.0.into_bytes(),
        key_pem: pair.1.into_bytes(),
        token: token.to_owned(),
        user_agent: concat!("navarch-agent/", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    Ok(Client::new(Arc::new(Https::new(&endpoint).context("the node's certificates cannot be used")?)))
}

/// Has a certificate for a new key signed.
async fn certificate(client: &Client, user: &str, signer: &str, names: Vec<SanType>) -> anyhow::Result<Pair> {
    let role = if signer == SERVING_SIGNER { "server auth" } else { "client auth" };
    let key = KeyPair::generate().context("cannot make a key")?;
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "system:nodes");
    subject.push(DnType::CommonName, user);
    params.distinguished_name = subject;
    params.subject_alt_names = names;
    let request = params.serialize_request(&key).and_then(|r| r.pem()).context("cannot make a request")?;
    let mut object = CertificateSigningRequest {
        spec: CertificateSigningRequestSpec {
            request: ByteString(request.into_bytes()),
            signer_name: signer.to_owned(),
            usages: Some(vec!["digital signature".to_owned(), role.to_owned()]),
            ..Default::default()
        },
        ..Default::default()
    };
    object.metadata.generate_name = Some("csr-".to_owned());
    let made = client.create("", &object).await.context("the request for a certificate was refused")?;
    let name = made.metadata.name.unwrap_or_default();
    tracing::info!(request = name, signer, "waiting for a certificate");
    let signed = tokio::time::timeout(PATIENCE, signed(client, &name)).await;
    let pem = signed.with_context(|| format!("the request {name} was not signed; is it approved?"))??;
    Ok((pem, key.serialize_pem()))
}

/// Waits for the certificate of a request.
async fn signed(client: &Client, name: &str) -> anyhow::Result<String> {
    let requests = client.caches().of_selected::<CertificateSigningRequest>(&format!("metadata.name={name}"));
    requests.synced().await;
    let mut changes = requests.subscribe();
    loop {
        if let Some(status) = requests.get("", name).and_then(|request| request.status.clone()) {
            if let Some(certificate) = status.certificate {
                return String::from_utf8(certificate.0).context("the certificate is no PEM");
            }
            let refused =
                status.conditions.iter().flatten().find(|c| matches!(c.type_.as_str(), "Denied" | "Failed"));
            if let Some(refused) = refused {
                bail!(
                    "the request {name} was refused: {}",
                    refused.message.as_deref().unwrap_or("no reason given")
                );
            }
        }
        if changes.next().await.is_none() {
            bail!("the connection to the server ended");
        }
    }
}

/// Certificate and key stand in one file: neither is ever there without the other.
fn file(folder: &Path, what: &str) -> PathBuf {
    folder.join(format!("{what}.pem"))
}

fn kept(folder: &Path, what: &str) -> Option<Pair> {
    let both = std::fs::read_to_string(file(folder, what)).ok()?;
    Some((both.clone(), both))
}

fn keep(folder: &Path, what: &str, pair: &Pair) -> anyhow::Result<()> {
    let file = file(folder, what);
    let both = format!("{}\n{}", pair.0.trim_end(), pair.1);
    apiserver::pki::write_secret(&file, both.as_bytes()).with_context(|| file.display().to_string())
}

/// Whether a certificate is `user`'s and good for longer than `least`.
fn is_of(pem: &str, user: &str, least: Duration) -> bool {
    let Some(block) = x509_parser::pem::Pem::iter_from_buffer(pem.as_bytes()).flatten().next() else {
        return false;
    };
    let Ok((_, certificate)) = x509_parser::certificate::X509Certificate::from_der(&block.contents) else {
        return false;
    };
    let left = certificate.validity().time_to_expiration().map(|left| left.whole_seconds());
    left.is_some_and(|left| left > least.as_secs() as i64)
        && certificate.subject().iter_common_name().any(|name| name.as_str().is_ok_and(|n| n == user))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A certificate of `user` that ends in so many days, and its key.
    fn pair(user: &str, days: i64) -> Pair {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CommonName, user);
        params.distinguished_name = subject;
        let ends = std::time::SystemTime::now() + Duration::from_secs(400 * 24 * 3600);
        params.not_before = (ends - Duration::from_secs(800 * 24 * 3600)).into();
        let back = Duration::from_secs((400 - days) as u64 * 24 * 3600);
        params.not_after = (ends - back).into();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn a_certificate_is_kept_whole_and_opens_the_way_to_the_next_until_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        keep(folder.path(), "client", &pair("system:node:a", 30)).unwrap();
        let (certificate, key) = kept(folder.path(), "client").unwrap();
        assert!(client("https://192.0.2.1:6443", &certificate, (certificate.clone(), key), "").is_ok());
        let good = |days, user, least| is_of(&pair("system:node:a", days).0, user, least);
        assert!(good(100, "system:node:a", RENEW_BEFORE));
        assert!(!good(30, "system:node:a", RENEW_BEFORE) && good(30, "system:node:a", Duration::ZERO));
        assert!(!good(-1, "system:node:a", Duration::ZERO));
        assert!(!good(100, "system:node:b", Duration::ZERO));
        assert!(kept(folder.path(), "serving").is_none());
    }
}
