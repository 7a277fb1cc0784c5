//! The server: opens store and authority, makes the objects every cluster has, listens with TLS.
//!
//! Tasks: one accept loop; one task per connection; one follower of the store (in the watch cache). All end with
//! the token given at start; open requests get a moment to finish.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client::metrics::Families;
use client::{Client, Transport};
use http::Request;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use store::Store;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::Admission;
use crate::admission::policies::{self, Policies};
use crate::admission::webhooks::Webhooks;
use crate::aggregation::{self, Aggregator};
use crate::audit::{Audit, AuditError};
use crate::auth::authenticate::{Authentication, Presented};
use crate::auth::authorize::Authorizer;
use crate::auth::token::{TokenError, Tokens};
use crate::auth::{self, UserInfo};
use crate::backend::{Peer, StreamedBody, is_upgrade};
use crate::encryption::Encryption;
use crate::encryption::config::ConfigError;
use crate::extensions::Kinds;
use crate::fairness::Fairness;
use crate::local::Local;
use crate::negotiate::Form;
use crate::node_proxy::NodeProxy;
use crate::openapi::OpenApi;
use crate::options::Options;
use crate::pipeline::ApiServer;
use crate::pki::{Pki, PkiError};
use crate::registry::Registry;
use crate::request_metrics::RequestMetrics;
use crate::service_ips::{self, ServiceIps};
use crate::status::ApiError;
use crate::watch_cache::WatchCache;
use crate::webhook::Hooks;
use crate::{answer, bootstrap, extensions, fairness, service_claims, subresources};

/// Largest request body.
const BODY: usize = 3 * 1024 * 1024;
/// A client has this long to send a body.
const BODY_TIME: Duration = Duration::from_secs(30);
/// ... and this long for TLS and the first headers.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections at the same time.
const CONNECTIONS: usize = 16_384;
/// Open requests get this long when the server stops.
const DRAIN: Duration = Duration::from_secs(5);

/// How to start.
pub struct Config {
    /// Where the authority is kept.
    pub pki_dir: PathBuf,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The data.
    pub store: Arc<dyn Store>,
    /// Addresses by which nodes and clients reach this server, besides loopback and `listen`.
    pub addresses: Vec<IpAddr>,
    /// The range of cluster IPs, for example `10.96.0.0/16`; one of each family, separated by a comma, for dual-stack services.
    pub service_cidr: String,
    /// Our own version, for example `0.1.0`.
    pub version: String,
    /// What else may be chosen.
    pub options: Options,
}

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Certificates.
    #[error("certificates")]
    Pki(#[from] PkiError),
    /// The signing key.
    #[error("service-account tokens")]
    Tokens(#[from] TokenError),
    /// The store.
    #[error("the store")]
    Store(#[from] store::StoreError),
    /// Encryption at rest.
    #[error("encryption at rest")]
    Encryption(#[from] ConfigError),
    /// Who may come.
    #[error("authentication")]
    Authentication(#[from] auth::authenticate::SetupError),
    /// The audit log.
    #[error("auditing")]
    Audit(#[from] AuditError),
    /// Who may do what.
    #[error("authorization")]
    Authorization(#[from] auth::webhook::SetupError),
    /// TLS.
    #[error("TLS")]
    Tls(#[from] rustls::Error),
    /// The client verifier.
    #[error("TLS client verification")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// The range of cluster IPs.
    #[error(
        "{0:?} is no range of cluster IPs: a range such as 10.96.0.0/16 (/8 to /30; with IPv6 /64 to /126) or one of each family"
    )]
    ServiceCidr(String),
    /// The port.
    #[error("cannot listen on {address}: another process may have the port; choose another with --listen")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The first objects.
    #[error("cannot create the objects that every cluster has: {0}")]
    Bootstrap(ApiError),
}

/// A running API server.
pub struct Server {
    api: Arc<ApiServer>,
    pki: Pki,
    address: SocketAddr,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    /// Starts; returns when requests are answered.
    pub async fn start(config: Config) -> Result<Arc<Self>, StartError> {
        let pki = Pki::open(&config.pki_dir)?;
        let listen_failed = |source| StartError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(listen_failed)?;
        let address = listener.local_addr().map_err(listen_failed)?;
        let own_keys = config.pki_dir.join("encryption-config.json");
        let given_keys = config.options.encryption_provider_config.as_deref();
        let encryption = Encryption::start(config.store, &own_keys, given_keys)?;
        let store = encryption.store();
        let cache = {
            let kinds = config.options.feature_gates.kinds().clone();
            WatchCache::start(store.clone(), kinds).await?
        };
        let services = service_ips::ranges(&config.service_cidr)
            .ok_or_else(|| StartError::ServiceCidr(config.service_cidr.clone()))?;
        let registry = Registry::new(
            store,
            cache.clone(),
            ServiceIps::new(services.clone()),
            config.options.feature_gates,
        );

        let mut ips = vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])];
        ips.extend(config.addresses.iter().copied());
        ips.push(address.ip());
        ips.extend(services.iter().map(service_ips::Range::first));
        ips.sort();
        ips.dedup();
        ips.retain(|ip| !ip.is_unspecified());
        let in_cluster = format!("kubernetes.default.svc.{}", config.options.cluster_domain);
        let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", &in_cluster];
        let serving = pki.server("kube-apiserver", &[], &names, &ips)?;
        let node_client = pki.client("kube-apiserver-kubelet-client", &[auth::MASTERS])?;
        let authentication =
            Authentication::new(&config.options, &config.pki_dir.join("front-proxy-ca.crt"))?;
        let users = client_verifier(&pki)?;
        let tls = tls_config(authentication.verifier(users.clone()), &serving, pki.ca_pem())?;
        let acceptor = TlsAcceptor::from(Arc::new(tls));

        let hooks = Arc::<Hooks>::default();
        let options = &config.options;
        let seats = options.max_requests_inflight.saturating_add(options.max_mutating_requests_inflight);
        let advertised = config.addresses.first().copied().unwrap_or(address.ip());
        let api = Arc::new(ApiServer {
            admission: Admission::new(cache.clone()),
            policies: Policies::default(),
            webhooks: Webhooks::new(hooks.clone()),
            hooks,
            audit: Audit::open(&config.options, &cache)?,
            authentication,
            authorizer: Authorizer::with_modes(cache, auth::webhook::modes(&config.options)?),
            aggregator: Aggregator::new(pki.front_proxy_client()?)?,
            tokens: Tokens::new(pki.service_account_key())?,
            token_uses: auth::legacy::Uses::default(),
            nodes: NodeProxy::new(pki.ca_pem(), &node_client)?,
            kinds: Arc::new(Kinds::new(options.feature_gates.kinds())),
            openapi: OpenApi::default(),
            encryption,
            address: SocketAddr::new(advertised, address.port()).to_string(),
            version: version(&config.version),
            started: jiff::Timestamp::now(),
            flags: options.flags.clone(),
            registry,
            gates: options.feature_gates,
            fairness: Fairness::new(seats, options.request_timeout / 4),
            requests: RequestMetrics::default(),
            metrics: parking_lot::Mutex::default(),
        });
        let definitions = extensions::load(&api).map_err(StartError::Bootstrap)?;
        bootstrap::run(&api, &services, SocketAddr::new(advertised, address.port()))
            .await
            .map_err(StartError::Bootstrap)?;
        fairness::follow::load(&api).map_err(StartError::Bootstrap)?;
        aggregation::authentication::publish(&api, &pki).await.map_err(StartError::Bootstrap)?;
        let server =
            Arc::new(Self { api, pki, address, stop: CancellationToken::new(), tasks: TaskTracker::new() });
        let (tasks, stop) = (server.tasks.clone(), server.stop.clone());
        server.tasks.spawn(service_claims::run(server.api.clone(), stop.clone()));
        server.tasks.spawn(extensions::run(server.api.clone(), definitions, tasks, stop));
        server.tasks.spawn(extensions::services::run(server.api.clone(), server.stop.clone()));
        server.tasks.spawn(aggregation::availability::run(server.api.clone(), server.stop.clone()));
        server.tasks.spawn(fairness::follow::run(server.api.clone(), server.stop.clone()));
        server.tasks.spawn(policies::check::run(server.api.clone(), server.stop.clone()));
        server.tasks.spawn(accept(
            server.api.clone(),
            listener,
            acceptor,
            users,
            server.stop.clone(),
            server.tasks.clone(),
        ));
        Ok(server)
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The authority.
    pub fn pki(&self) -> &Pki {
        &self.pki
    }

    /// An in-process client with this identity.
    pub fn client(&self, user: &str, groups: &[&str]) -> Client {
        let transport: Arc<dyn Transport> =
            Arc::new(Local::new(self.api.clone(), UserInfo::new(user, groups)));
        Client::new(transport)
    }

    /// The token that a Secret of type `kubernetes.io/service-account-token` holds, for a namespace, an account, the account's
    /// uid and the Secret; `None` when signing fails.
    pub fn legacy_token(&self, [namespace, account, account_uid, secret]: [&str; 4]) -> Option<String> {
        self.api.tokens.sign_legacy(namespace, account, account_uid, secret).ok()
    }

    /// Adds what another part of the process counts to `/metrics`.
    pub fn add_metrics(&self, collect: impl Fn(&mut Families) + Send + Sync + 'static) {
        self.api.metrics.lock().push(Box::new(collect));
    }

    /// Stops listening; open requests get a moment, watches end.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.api.registry.cache().expect_end();
        self.tasks.close();
        if tokio::time::timeout(DRAIN, self.tasks.wait()).await.is_err() {
            tracing::debug!("some requests did not end in time");
        }
    }
}

fn version(own: &str) -> serde_json::Value {
    json!({"major": "1", "minor": "36", "emulationMajor": "1", "emulationMinor": "36", "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "35", "gitVersion": format!("v1.36.0+navarch.{own}"), "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, match std::env::consts::ARCH {
            "x86_64" => "amd64", "aarch64" => "arm64", other => other })})
}

/// Who may come with a certificate.
fn client_verifier(pki: &Pki) -> Result<Arc<dyn ClientCertVerifier>, StartError> {
    let mut roots = rustls::RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(pki.ca_pem().as_bytes()).flatten() {
        roots.add(cert)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .allow_unauthenticated()
        .build()?;
    Ok(verifier)
}

fn tls_config(
    verifier: Arc<dyn ClientCertVerifier>,
    serving: &crate::pki::Identity,
    ca_pem: &str,
) -> Result<rustls::ServerConfig, StartError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    // with the authority, so that a node that joins can compare it with its token's pin
    let pems = [serving.cert_pem.as_bytes(), ca_pem.as_bytes()];
    let chain = pems.into_iter().flat_map(CertificateDer::pem_slice_iter).flatten().collect();
    let key = PrivateKeyDer::from_pem_slice(serving.key_pem.as_bytes())
        .map_err(|_| rustls::Error::General("the serving key is no PEM".to_owned()))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

async fn accept(
    api: Arc<ApiServer>,
    listener: TcpListener,
    acceptor: TlsAcceptor,
    users: Arc<dyn ClientCertVerifier>,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    let places = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let tcp = match accepted {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                // out of file descriptors, mostly: others must close first
                tracing::warn!(error = &error as &dyn std::error::Error, "accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let (api, acceptor, users, stop) = (api.clone(), acceptor.clone(), users.clone(), stop.clone());
        tasks.spawn(async move {
            let _place = place;
            // latency of small answers; failing to set it changes nothing else
            let _ = tcp.set_nodelay(true);
            let Ok(Ok(tls)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(tcp)).await else { return };
            let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
            let presented = api.authentication.presented(chain, &*users);
            connection(api, tls, presented, stop).await;
        });
    }
}

async fn connection(
    api: Arc<ApiServer>,
    tls: tokio_rustls::server::TlsStream<tokio::net::TcpStream>,
    presented: Presented,
    stop: CancellationToken,
) {
    let presented = Arc::new(presented);
    let peer = tls.get_ref().0.peer_addr().ok().map(Peer);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (api, presented) = (api.clone(), presented.clone());
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        async move { Ok::<_, std::convert::Infallible>(serve(api, &presented, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE).max_buf_size(1 << 20);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .max_concurrent_streams(1000)
        .max_header_list_size(1 << 20)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(15));
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(tls), service);
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            match tokio::time::timeout(DRAIN, serving).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::trace!(error = &*error as &dyn std::error::Error, "connection ended");
    }
}

async fn serve(
    api: Arc<ApiServer>,
    presented: &Presented,
    request: Request<Incoming>,
) -> http::Response<client::Body> {
    let refuse = |error: ApiError| answer::error(&Form::JSON, &error);
    let user = match api.authenticate(presented, request.headers()).await {
        Ok(user) => user,
        Err(error) => return refuse(error),
    };
    if let Some(ends) = presented.ends {
        api.requests.certificate(ends);
    }
    let (mut parts, body) = request.into_parts();
    let upgrade = is_upgrade(&parts.headers);
    let remote = || api.aggregator.of_path(api.registry.cache(), parts.uri.path()).is_some();
    if !upgrade && (subresources::proxy::is_proxied(&parts) || remote()) {
        parts.extensions.insert(StreamedBody::new(body));
        return api.serve(user, Request::from_parts(parts, Bytes::new())).await;
    }
    let too_large = || ApiError::too_large(format!("Request entity too large: limit is {BODY}"));
    let declared =
        parts.headers.get(http::header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|length| length > BODY) {
        return refuse(too_large());
    }
    let bytes = if upgrade {
        Bytes::new()
    } else {
        match tokio::time::timeout(BODY_TIME, Limited::new(body, BODY).collect()).await {
            Ok(Ok(collected)) => collected.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => return refuse(too_large()),
            Ok(Err(_)) => return refuse(ApiError::bad_request("the request body ended early")),
            Err(_) => return refuse(ApiError::bad_request("the request body took too long to arrive")),
        }
    };
    api.serve(user, Request::from_parts(parts, bytes)).await
}
