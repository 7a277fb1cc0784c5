//! The certificates of a node that joined: asked for with the join token, renewed while the agent runs.
//!
//! The token opens the way to one request for a client certificate; with it the node asks for the certificate its kubelet serves
//! with. Both stay in the node's folder, so the token is needed once. When 70 to 90 percent of a certificate's time have
//! passed, at random so that nodes that joined together do not come back together, the node asks for the next one, for a new
//! key: connections that begin from then on use it, those that are open go on as they are.
//!
//! Rule: Kubernetes documentation, "TLS bootstrapping", "Certificate Rotation".

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use async_trait::async_trait;
use bytes::Bytes;
use client::https::{Endpoint, Https};
use client::queue::Backoff;
use client::{Client, Transport, TransportError, tls};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use kubelet::server::ServingCertificate;
use parking_lot::RwLock;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::FromDer as _;

use crate::command::AgentOptions;
use crate::data_dir::DataDir;
use crate::join_token::JoinToken;

const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
/// How long a request for a certificate may wait.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between attempts: the first wait, and the longest.
pub const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(32));
/// The time of day may be set, and a machine may sleep: how far ahead a timer counts.
const LOOK: Duration = Duration::from_secs(3600);

/// Certificate and key, PEM.
type Pair = (String, String);

/// What the node shows, and whom it trusts.
pub struct Credentials {
    /// The cluster's authority, PEM.
    pub ca_pem: String,
    /// Speaks to the server as the node, with the certificate of the time.
    pub client: Client,
    /// What the kubelet serves with.
    pub serving: Arc<ServingCertificate>,
    /// Keeps both good.
    pub rotation: Rotation,
}

/// Renews the node's certificates.
pub struct Rotation {
    folder: PathBuf,
    joining: Joining,
    node: Arc<Connection>,
    client: Client,
    serving: Arc<ServingCertificate>,
    lives: [Life; 2],
}

/// How the server is reached before there is a certificate.
struct Joining {
    server: String,
    ca_pem: String,
    user: String,
    token: Option<JoinToken>,
    /// What the kubelet is called, and where it is.
    names: Vec<SanType>,
}

/// The two certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Client,
    Serving,
}

impl Role {
    /// The file's name without its ending.
    fn file(self) -> &'static str {
        match self {
            Role::Client => "client",
            Role::Serving => "serving",
        }
    }
}

/// From when to when a certificate is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Life {
    from: SystemTime,
    until: SystemTime,
}

impl Life {
    /// When the next certificate is asked for; `draw` is from 0 to 1.
    fn renewal(self, draw: f64) -> SystemTime {
        let whole = self.until.duration_since(self.from).unwrap_or_default();
        self.from + Duration::from_secs((whole.as_secs_f64() * (0.7 + 0.2 * draw)).round() as u64)
    }

    /// Of a certificate that was made at `now`: certificates begin before they are made, for peers whose clocks are behind.
    fn made(self, now: SystemTime) -> Self {
        Self { from: self.from.max(now), ..self }
    }
}

/// A way to the server whose certificate can change: requests take the newest, what is under way ends on the one it began on.
struct Connection(RwLock<Arc<Https>>);

#[async_trait]
impl Transport for Connection {
    async fn send(
        &self,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<client::Body>, TransportError> {
        let newest = self.0.read().clone();
        newest.send(request).await
    }
}

impl Credentials {
    /// Those in the node's folder; what is missing or has ended is asked for.
    pub async fn obtain(
        options: &AgentOptions,
        data: &DataDir,
        name: &str,
        address: IpAddr,
    ) -> anyhow::Result<Self> {
        let folder = data.agent();
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let token = match (&options.token, &options.token_file) {
            (Some(text), _) => Some(JoinToken::parse(text)?),
            (None, Some(file)) => {
                let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
                Some(JoinToken::parse(&text)?)
            }
            (None, None) => None,
        };
        let ca_pem = authority(&options.server, &folder.join("ca.crt"), token.as_ref()).await?;
        let loopback = IpAddr::from([127, 0, 0, 1]);
        let joining = Joining {
            server: options.server.clone(),
            ca_pem: ca_pem.clone(),
            user: format!("system:node:{name}"),
            token,
            names: vec![
                SanType::DnsName(name.try_into().context("the node's name is no DNS name")?),
                SanType::IpAddress(address),
                SanType::IpAddress(loopback),
            ],
        };
        let now = SystemTime::now();
        let (client_pair, client_life) = match kept(&folder, Role::Client, &joining.user, now) {
            Some(kept) => kept,
            None => joining.fetch(&folder, Role::Client, None).await?,
        };
        let node = Arc::new(Connection(RwLock::new(Arc::new(joining.https(&client_pair, "")?))));
        let client = Client::new(node.clone());
        let ((certificate, key), serving_life) = match kept(&folder, Role::Serving, &joining.user, now) {
            Some(kept) => kept,
            None => joining.fetch(&folder, Role::Serving, Some(&client)).await?,
        };
        let serving = ServingCertificate::new(&certificate, &key).context("the kubelet's certificate")?;
        let serving = Arc::new(serving);
        let lives = [client_life, serving_life];
        let rotation =
            Rotation { folder, joining, node, client: client.clone(), serving: serving.clone(), lives };
        Ok(Self { ca_pem, client, serving, rotation })
    }
}

impl Rotation {
    /// Renews both until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let [client, serving] = self.lives;
        let both = async {
            tokio::join!(self.keep_good(Role::Client, client), self.keep_good(Role::Serving, serving))
        };
        tokio::select! {
            () = stop.cancelled() => {}
            _ = both => {}
        }
    }

    async fn keep_good(&self, role: Role, mut life: Life) {
        loop {
            until(life.renewal(rand::random())).await;
            let mut backoff = Backoff::new(RETRY.0, RETRY.1);
            life = loop {
                match self.renew(role, life).await {
                    Ok(next) => break next,
                    Err(error) => {
                        let (error, certificate) = (format!("{error:#}"), role.file());
                        tracing::error!(error, certificate, "the node's certificate is not renewed");
                        tokio::time::sleep(backoff.next()).await;
                    }
                }
            };
            tracing::info!(certificate = role.file(), "the node's certificate is renewed");
        }
    }

    async fn renew(&self, role: Role, life: Life) -> anyhow::Result<Life> {
        // one that has ended opens no way; then the token may
        let usable = role == Role::Serving || SystemTime::now() < life.until;
        let ((certificate, key), life) =
            self.joining.fetch(&self.folder, role, usable.then_some(&self.client)).await?;
        match role {
            Role::Client => *self.node.0.write() = Arc::new(self.joining.https(&(certificate, key), "")?),
            Role::Serving => self.serving.renew(&certificate, &key)?,
        }
        Ok(life)
    }
}

impl Joining {
    /// Has a certificate made and keeps it; without a client that of the token asks.
    async fn fetch(
        &self,
        folder: &Path,
        role: Role,
        client: Option<&Client>,
    ) -> anyhow::Result<(Pair, Life)> {
        let by_token = match (client, &self.token) {
            (Some(_), _) => None,
            (None, Some(token)) => {
                Some(Client::new(Arc::new(self.https(&Pair::default(), &token.bootstrap())?)))
            }
            (None, None) => {
                bail!("the node's certificate is missing, another's or has ended: --token is needed")
            }
        };
        let Some(client) = client.or(by_token.as_ref()) else { bail!("no way to the server") };
        let (signer, names) = match role {
            Role::Client => (CLIENT_SIGNER, Vec::new()),
            Role::Serving => (SERVING_SIGNER, self.names.clone()),
        };
        let pair = certificate(client, &self.user, signer, names).await?;
        let life = life_of(&pair.0, &self.user).context("the certificate is not what was asked for")?;
        keep(folder, role, &pair)?;
        Ok((pair, life.made(SystemTime::now())))
    }

    fn https(&self, pair: &Pair, token: &str) -> anyhow::Result<Https> {
        let endpoint = Endpoint {
            server: self.server.clone(),
            ca_pem: self.ca_pem.as_bytes().to_vec(),
            cert_pem: pair.0.as_bytes().to_vec(),
            key_pem: pair.1.as_bytes().to_vec(),
            token: token.to_owned(),
            user_agent: concat!("navarch-agent/", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        Https::new(&endpoint).context("the node's certificates cannot be used")
    }
}

/// The cluster's authority: as it was when the node joined, else the one that the token names.
async fn authority(server: &str, file: &Path, token: Option<&JoinToken>) -> anyhow::Result<String> {
    match (std::fs::read_to_string(file), token) {
        (Ok(pem), _) => Ok(pem),
        (Err(_), None) => {
            bail!(
                "this machine has not joined yet: --token is needed; `navarch token` prints it on the server"
            )
        }
        (Err(_), Some(token)) => {
            let shown = tls::shown_authority(server, |der| token.is_for(der)).await?;
            let pem =
                shown.with_context(|| format!("{server} is not the cluster that the token was made for"))?;
            apiserver::pki::write_secret(file, pem.as_bytes()).with_context(|| file.display().to_string())?;
            Ok(pem)
        }
    }
}

/// Waits until the time of day is `at`.
async fn until(at: SystemTime) {
    while let Ok(left) = at.duration_since(SystemTime::now())
        && !left.is_zero()
    {
        tokio::time::sleep(left.min(LOOK)).await;
    }
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
fn file(folder: &Path, role: Role) -> PathBuf {
    folder.join(format!("{}.pem", role.file()))
}

/// What is in the folder, where it is `user`'s and good at `now`.
fn kept(folder: &Path, role: Role, user: &str, now: SystemTime) -> Option<(Pair, Life)> {
    let both = std::fs::read_to_string(file(folder, role)).ok()?;
    let life = life_of(&both, user).filter(|life| now < life.until)?;
    Some(((both.clone(), both), life))
}

fn keep(folder: &Path, role: Role, pair: &Pair) -> anyhow::Result<()> {
    let file = file(folder, role);
    let both = format!("{}\n{}", pair.0.trim_end(), pair.1);
    apiserver::pki::write_secret(&file, both.as_bytes()).with_context(|| file.display().to_string())
}

/// From when to when a certificate of `user` is good; none where it is another's.
fn life_of(pem: &str, user: &str) -> Option<Life> {
    let block = x509_parser::pem::Pem::iter_from_buffer(pem.as_bytes()).flatten().next()?;
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(&block.contents).ok()?;
    let own = certificate.subject().iter_common_name().any(|name| name.as_str().is_ok_and(|n| n == user));
    let at = |seconds: i64| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).ok()?));
    let validity = certificate.validity();
    let life =
        Life { from: at(validity.not_before.timestamp())?, until: at(validity.not_after.timestamp())? };
    own.then_some(life)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    /// A certificate of `user` that is good for so many days from `from` on, and its key.
    fn pair(user: &str, from: SystemTime, days: u32) -> Pair {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CommonName, user);
        params.distinguished_name = subject;
        params.not_before = from.into();
        params.not_after = (from + DAY * days).into();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn a_certificate_is_kept_whole_and_used_until_it_ends_by_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let made = SystemTime::UNIX_EPOCH + DAY * 20_000;
        let user = "system:node:a";
        keep(folder.path(), Role::Client, &pair(user, made, 100)).unwrap();
        let of = |user, now| kept(folder.path(), Role::Client, user, now);
        let ((certificate, key), life) = of(user, made + DAY * 99).unwrap();
        assert_eq!(life, Life { from: made, until: made + DAY * 100 });
        assert!(ServingCertificate::new(&certificate, &key).is_ok());
        assert!(of(user, made + DAY * 100).is_none(), "it has ended");
        assert!(of("system:node:b", made).is_none(), "another's");
        assert!(kept(folder.path(), Role::Serving, user, made).is_none());
    }

    #[test]
    fn renewal_falls_between_70_and_90_percent_of_the_time_since_it_was_made() {
        let made = SystemTime::UNIX_EPOCH + DAY * 20_000;
        let life = Life { from: made, until: made + DAY * 100 };
        assert_eq!(life.renewal(0.0), made + DAY * 70);
        assert_eq!(life.renewal(1.0), made + DAY * 90);
        // it begins five minutes before it is made; a short one must not be due at once
        let short = Life { from: made, until: made + Duration::from_secs(330) };
        let now = made + Duration::from_secs(300);
        assert_eq!(short.made(now).renewal(0.5), now + Duration::from_secs(24));
    }
}
