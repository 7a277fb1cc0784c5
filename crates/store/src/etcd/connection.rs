//! The way to the cluster: one HTTP/2 connection to one of its members, another member when that one fails.
//!
//! What may be sent twice is tried on the next member until its deadline is over; what may not
//! (see [`Repeat`]) is tried again only where it surely was not carried out.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Response, Status};

use super::Options;
use super::pb::etcdserverpb::kv_client::KvClient;
use super::pb::etcdserverpb::lease_client::LeaseClient;
use super::pb::etcdserverpb::watch_client::WatchClient;
use crate::StoreError;

/// One try to connect takes no longer.
const CONNECT: Duration = Duration::from_secs(2);
/// An idle connection is asked for a sign of life so often...
const KEEPALIVE: Duration = Duration::from_secs(10);
/// ... and given up when none comes within this time.
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(5);
/// Bytes in flight per stream and per connection: one page of a list fits.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// The pause after all members were tried, growing up to the second value.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The system's certificate authorities, where the usual distributions keep them.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// May a request be sent again when it is not known whether it was carried out?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Reads, and writes whose condition can hold only once.
    Yes,
    /// Everything else.
    No,
}

/// An answer, and whether an earlier try of the same request may have been carried out.
pub(super) struct Answer<T> {
    pub value: T,
    pub repeated: bool,
}

/// A connection to one member; the number tells it from later ones.
#[derive(Clone)]
pub(super) struct Member {
    channel: Channel,
    number: usize,
}

impl Member {
    pub(super) fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(i32::MAX as usize)
    }

    pub(super) fn watch(&self) -> WatchClient<Channel> {
        WatchClient::new(self.channel.clone()).max_decoding_message_size(i32::MAX as usize)
    }

    pub(super) fn lease(&self) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel.clone())
    }
}

#[derive(Default)]
struct Current {
    member: Option<Member>,
    /// The endpoint to try next.
    next: usize,
    connections: usize,
}

/// The members of the cluster.
pub(super) struct Connection {
    endpoints: Vec<Endpoint>,
    /// Where certificates and key are; they are read anew for every connection, so that renewed ones count.
    files: TlsFiles,
    current: Mutex<Current>,
    /// The number of the newest connection that failed.
    failed: AtomicUsize,
    timeout: Duration,
}

impl Connection {
    pub(super) fn new(options: &Options) -> Result<Connection, StoreError> {
        if options.endpoints.is_empty() {
            return Err(StoreError::Unavailable("no etcd endpoint is given".to_owned()));
        }
        let files = TlsFiles::of(options);
        let mut endpoints = Vec::new();
        for address in &options.endpoints {
            let invalid = |error: &dyn std::fmt::Display| {
                StoreError::Unavailable(format!("the etcd endpoint {address:?} is not usable: {error}"))
            };
            let endpoint = Endpoint::from_shared(address.clone()).map_err(|error| invalid(&error))?;
            match endpoint.uri().scheme_str() {
                Some("http") => {}
                Some("https") => drop(files.secure(&endpoint).map_err(|error| invalid(&error))?),
                _ => return Err(invalid(&"it has to begin with https:// or http://")),
            }
            endpoints.push(
                endpoint
                    .connect_timeout(CONNECT)
                    .tcp_nodelay(true)
                    .http2_keep_alive_interval(KEEPALIVE)
                    .keep_alive_timeout(KEEPALIVE_ANSWER)
                    .keep_alive_while_idle(true)
                    .initial_stream_window_size(STREAM_WINDOW)
                    .initial_connection_window_size(CONNECTION_WINDOW),
            );
        }
        Ok(Connection {
            endpoints,
            files,
            current: Mutex::default(),
            failed: AtomicUsize::new(0),
            timeout: options.timeout,
        })
    }

    /// The addresses of the members.
    pub(super) fn addresses(&self) -> String {
        let addresses: Vec<String> =
            self.endpoints.iter().map(|endpoint| endpoint.uri().to_string()).collect();
        addresses.join(", ")
    }

    /// The connection in use, or a new one to the first member that answers.
    pub(super) async fn connect(&self) -> Result<Member, Status> {
        let mut current = self.current.lock().await;
        if let Some(member) = &current.member
            && member.number > self.failed.load(Ordering::Acquire)
        {
            return Ok(member.clone());
        }
        let mut last = None;
        for _ in 0..self.endpoints.len() {
            let endpoint = &self.endpoints[current.next % self.endpoints.len()];
            match self.channel(endpoint).await {
                Ok(channel) => {
                    current.connections += 1;
                    tracing::debug!(endpoint = %endpoint.uri(), "connected to etcd");
                    let member = Member { channel, number: current.connections };
                    current.member = Some(member.clone());
                    return Ok(member);
                }
                Err(error) => {
                    tracing::debug!(endpoint = %endpoint.uri(), error, "no connection to etcd");
                    last = Some(format!("{}: {error}", endpoint.uri()));
                    current.next += 1;
                }
            }
        }
        Err(Status::unavailable(last.unwrap_or_default()))
    }

    async fn channel(&self, endpoint: &Endpoint) -> Result<Channel, String> {
        let secured = match endpoint.uri().scheme_str() {
            Some("https") => &self.files.secure(endpoint)?,
            _ => endpoint,
        };
        secured.connect().await.map_err(|error| chain(&error))
    }

    /// This connection is of no more use: the next caller gets one to another member.
    pub(super) async fn give_up(&self, member: &Member) {
        if self.failed.fetch_max(member.number, Ordering::AcqRel) < member.number {
            self.current.lock().await.next += 1;
        }
    }

    /// Sends one request within the deadline.
    pub(super) async fn call<T, F, Answering>(&self, repeat: Repeat, mut send: F) -> Result<Answer<T>, Status>
    where
        F: FnMut(Member) -> Answering,
        Answering: Future<Output = Result<Response<T>, Status>>,
    {
        let deadline = Instant::now() + self.timeout;
        // Half of the time for the first member: a second one has a chance.
        let per_try = if self.endpoints.len() > 1 { self.timeout / 2 } else { self.timeout };
        let mut repeated = false;
        let mut pause = PAUSE;
        let mut tries = 0;
        loop {
            let member = match tokio::time::timeout_at(deadline, self.connect()).await {
                Ok(Ok(member)) => Ok(member),
                Ok(Err(status)) => Err(status),
                Err(_) => return Err(Status::deadline_exceeded("no etcd member could be reached in time")),
            };
            let status = match member {
                Err(status) => status,
                Ok(member) => {
                    let until = deadline.min(Instant::now() + per_try);
                    let answer = tokio::time::timeout_at(until, send(member.clone())).await;
                    let status = match answer {
                        Ok(Ok(response)) => return Ok(Answer { value: response.into_inner(), repeated }),
                        Ok(Err(status)) => status,
                        Err(_) => Status::deadline_exceeded("etcd did not answer in time"),
                    };
                    let refused = surely_not_done(&status);
                    // An error with a source is the connection's, whatever its code.
                    let lost = std::error::Error::source(&status).is_some();
                    let elsewhere = matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded);
                    if !refused && !lost && !elsewhere {
                        return Err(status);
                    }
                    self.give_up(&member).await;
                    if !refused && repeat == Repeat::No {
                        return Err(status);
                    }
                    repeated |= !refused;
                    status
                }
            };
            tries += 1;
            if tries >= self.endpoints.len() {
                if Instant::now() + pause >= deadline {
                    return Err(status);
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                tries = 0;
            }
        }
    }
}

/// A request that a member refuses when it has lost its leader: what it can't carry out for certain is then
/// tried elsewhere.
pub(super) fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("hasleader", tonic::metadata::MetadataValue::from_static("true"));
    request
}

/// Errors that come before the request reaches the raft log.
fn surely_not_done(status: &Status) -> bool {
    let message = status.message();
    message.contains("etcdserver: no leader")
        || message.contains("etcdserver: server stopped")
        || message.contains("etcdserver: not capable")
        || message.contains("etcdserver: too many requests")
        || chain(status).contains("tcp connect error")
}

/// An error with all its causes in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// The files of [`Options`] that TLS needs.
struct TlsFiles {
    authority: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl TlsFiles {
    fn of(options: &Options) -> TlsFiles {
        TlsFiles {
            authority: options.ca_file.clone(),
            certificate: options.cert_file.clone(),
            key: options.key_file.clone(),
        }
    }

    /// The endpoint with TLS as the files say now. Errors: a file that cannot be read or used, by its name.
    fn secure(&self, endpoint: &Endpoint) -> Result<Endpoint, String> {
        let read = |path: &Path| std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
        let roots = match &self.authority {
            Some(path) => read(path)?,
            None => SYSTEM_ROOTS.iter().find_map(|path| std::fs::read(path).ok()).ok_or_else(|| {
                "no certificate authorities for etcd: this system has none, give a file".to_owned()
            })?,
        };
        let config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(roots));
        let config = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => {
                config.identity(Identity::from_pem(read(certificate)?, read(key)?))
            }
            (None, None) => config,
            _ => return Err("etcd's client certificate and its key have to be given together".to_owned()),
        };
        endpoint.clone().tls_config(config).map_err(|error| chain(&error))
    }
}
