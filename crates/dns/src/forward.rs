//! Asking upstream resolvers.
//!
//! A question goes on as it came, but for its id: so options and extensions that we do not know survive. Every
//! attempt has a socket of its own, connected to the resolver, hence a random port, and a random id.
//!
//! Who asks what is being asked already waits for that answer. So a question that a misled resolver sends back to us ends
//! with the first one's time, and many who ask the same are one question.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::Name;
use parking_lot::{Mutex, RwLock};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;

use crate::cache::{self, Cache, Key};
use crate::stub_domains::StubDomains;

/// How long one attempt may take. Three fit into the five seconds that resolver libraries wait by default.
const ATTEMPT: Duration = Duration::from_millis(1500);
const ATTEMPTS: usize = 3;
/// The same three resolvers at most that resolver libraries use.
const MAX_UPSTREAMS: usize = 3;
/// `resolv.conf` is looked at no more often than this, as resolver libraries do.
const LOOK: Duration = Duration::from_secs(1);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// None is configured.
    #[error("no upstream resolver is known")]
    NoUpstream,
    /// None answered.
    #[error("no upstream resolver answered; the last was {last}")]
    Unanswered {
        /// Whom we asked last.
        last: SocketAddr,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
    /// Someone asked the same a moment before, and got no answer.
    #[error("the same question was not answered")]
    Shared,
    /// The question cannot be read.
    #[error("malformed question")]
    Malformed,
}

/// Resolvers that answer for one domain.
#[derive(Debug, Default)]
struct Group {
    upstreams: RwLock<Vec<SocketAddr>>,
    /// Index of the one that answered last.
    good: AtomicUsize,
}

/// A file and what it looked like when it was read.
#[derive(Debug)]
struct ResolvConf {
    path: PathBuf,
    seen: Mutex<(Instant, Option<Stamp>)>,
}

/// Device, inode, seconds, nanoseconds, size.
type Stamp = (u64, u64, i64, i64, u64);

impl ResolvConf {
    /// Whether it is another than it was; `true` at the first look.
    fn changed(&self, now: Instant, first: bool) -> bool {
        let mut seen = self.seen.lock();
        if !first && now.saturating_duration_since(seen.0) < LOOK {
            return false;
        }
        let stamp = std::fs::metadata(&self.path).ok();
        let stamp = stamp.map(|m| (m.dev(), m.ino(), m.mtime(), m.mtime_nsec(), m.size()));
        seen.0 = now;
        std::mem::replace(&mut seen.1, stamp) != stamp || first
    }
}

/// An answer under way; `Some(None)`: there is none.
type Awaited = watch::Receiver<Option<Option<Arc<[u8]>>>>;

/// Asks upstream resolvers, beginning with the one that answered last.
#[derive(Debug)]
pub struct Forwarder {
    all: Group,
    /// What everything else is asked of, unless a configuration names others.
    given: Option<Vec<SocketAddr>>,
    resolv_conf: ResolvConf,
    /// The cluster's configuration names upstream resolvers.
    fixed: AtomicBool,
    stubs: RwLock<Vec<(Name, Arc<Group>)>>,
    own: Vec<SocketAddr>,
    cache: Cache,
    pending: Mutex<HashMap<Key, Awaited>>,
}

impl Forwarder {
    /// `upstreams` or, where that is `None`, what `resolv_conf` names. `own` are the addresses we listen on: we
    /// never ask ourselves.
    pub fn new(upstreams: Option<Vec<SocketAddr>>, resolv_conf: &Path, own: Vec<SocketAddr>) -> Self {
        let forwarder = Self {
            all: Group::default(),
            given: upstreams,
            resolv_conf: ResolvConf {
                path: resolv_conf.to_owned(),
                seen: Mutex::new((Instant::now(), None)),
            },
            fixed: AtomicBool::new(false),
            stubs: RwLock::default(),
            own,
            cache: Cache::default(),
            pending: Mutex::default(),
        };
        forwarder.configure(&StubDomains::default());
        forwarder
    }

    /// Takes over another configuration of the cluster.
    pub fn configure(&self, wanted: &StubDomains) {
        let stubs = wanted.domains.iter().map(|(domain, upstreams)| {
            let group = Group { upstreams: RwLock::new(self.usable(upstreams)), ..Group::default() };
            (domain.clone(), Arc::new(group))
        });
        let mut stubs: Vec<_> = stubs.collect();
        // the longest that fits comes first
        stubs.sort_by_key(|(domain, _)| std::cmp::Reverse(domain.num_labels()));
        *self.stubs.write() = stubs;
        self.fixed.store(wanted.upstreams.is_some(), Ordering::Relaxed);
        match wanted.upstreams.as_ref().or(self.given.as_ref()) {
            Some(list) => *self.all.upstreams.write() = self.usable(list),
            None => self.follow(true),
        }
        self.cache.clear();
    }

    /// These of `list` that are not ourselves.
    fn usable(&self, list: &[SocketAddr]) -> Vec<SocketAddr> {
        let mut list = list.to_vec();
        list.retain(|upstream| {
            let ours = self.own.iter().any(|own| {
                own.port() == upstream.port()
                    && (own.ip() == upstream.ip() || own.ip().is_unspecified() && upstream.ip().is_loopback())
            });
            if ours {
                tracing::warn!(%upstream, "left out: this resolver is ourselves");
            }
            !ours
        });
        list.truncate(MAX_UPSTREAMS);
        list
    }

    /// Reads `resolv.conf` if it changed, or for the first time.
    fn follow(&self, first: bool) {
        if !self.resolv_conf.changed(Instant::now(), first) {
            return;
        }
        let path = &self.resolv_conf.path;
        match std::fs::read_to_string(path) {
            Ok(text) => {
                let list = self.usable(&nameservers(&text));
                let before = std::mem::replace(&mut *self.all.upstreams.write(), list.clone());
                if before != list && !first {
                    tracing::info!(upstreams = ?list, "other upstream resolvers");
                    // another network may know other names
                    self.cache.clear();
                }
            }
            // an editor may be at it: the next look tells
            Err(error) => tracing::warn!(path = %path.display(), %error, "no upstream resolvers"),
        }
    }

    /// The resolvers of everything that no stub domain covers.
    pub fn upstreams(&self) -> Vec<SocketAddr> {
        self.all.upstreams.read().clone()
    }

    /// The answer to `question` (a whole message), with the question's id. `tcp`: whether the client waits on TCP,
    /// so that an answer of any size can be given on.
    pub async fn ask(&self, question: &[u8], tcp: bool) -> Result<Vec<u8>, ForwardError> {
        let asked = Message::from_vec(question).map_err(|_| ForwardError::Malformed)?;
        let key = Key::of(question, tcp).ok_or(ForwardError::Malformed)?;
        loop {
            if let Some(answer) = self.cache.get(&key, question, Instant::now()) {
                return Ok(answer);
            }
            let mut awaited = match self.join(&key) {
                Err(leading) => return leading.lead(question, &asked, tcp).await,
                Ok(awaited) => awaited,
            };
            // one who gave up (his connection ended) leaves the question to the next
            if let Ok(answer) = awaited.wait_for(Option::is_some).await {
                let answer = answer.as_ref().and_then(Option::as_deref).ok_or(ForwardError::Shared)?;
                let mut answer = answer.to_vec();
                cache::address(&mut answer, question);
                return Ok(answer);
            }
        }
    }

    /// The answer to a question over UDP, where it is kept.
    pub fn known(&self, question: &[u8]) -> Option<Vec<u8>> {
        self.cache.get(&Key::of(question, false)?, question, Instant::now())
    }

    /// What another waits for, or the duty to ask.
    fn join(&self, key: &Key) -> Result<Awaited, Leading<'_>> {
        let mut pending = self.pending.lock();
        if let Some(awaited) = pending.get(key) {
            return Ok(awaited.clone());
        }
        let (tell, awaited) = watch::channel(None);
        pending.insert(key.clone(), awaited);
        Err(Leading { forwarder: self, key: key.clone(), tell })
    }

    /// The group that answers for `name`.
    fn group(&self, name: &Name) -> Option<Arc<Group>> {
        let stubs = self.stubs.read();
        stubs.iter().find(|(domain, _)| domain.zone_of(name)).map(|(_, group)| group.clone())
    }

    async fn exchange(&self, question: &[u8], asked: &Message, tcp: bool) -> Result<Vec<u8>, ForwardError> {
        let id: [u8; 2] = question.get(..2).and_then(|b| b.try_into().ok()).ok_or(ForwardError::Malformed)?;
        let stub = asked.queries.first().and_then(|query| self.group(query.name()));
        if stub.is_none() && self.resolv_conf_counts() {
            self.follow(false);
        }
        let group = stub.as_deref().unwrap_or(&self.all);
        let upstreams = group.upstreams.read().clone();
        if upstreams.is_empty() {
            return Err(ForwardError::NoUpstream);
        }
        let first = group.good.load(Ordering::Relaxed);
        let (mut failure, mut refusal) = (None, None);
        for attempt in 0..ATTEMPTS {
            if refusal.is_some() && attempt >= upstreams.len() {
                break;
            }
            let index = (first + attempt) % upstreams.len();
            let upstream = upstreams[index];
            let own_id: [u8; 2] = rand::random();
            let mut message = question.to_vec();
            message[..2].copy_from_slice(&own_id);
            let exchange = async {
                if tcp { ask_tcp(upstream, &message).await } else { ask_udp(upstream, &message, asked).await }
            };
            match tokio::time::timeout(ATTEMPT, exchange).await {
                Ok(Ok(mut answer)) if fits(&answer, own_id, asked) => {
                    answer[..2].copy_from_slice(&id);
                    if !is_refusal(&answer) {
                        group.good.store(index, Ordering::Relaxed);
                        return Ok(answer);
                    }
                    // another may do better
                    refusal.get_or_insert(answer);
                }
                Ok(Ok(_)) => failure = Some((upstream, invalid("the answer belongs to another question"))),
                Ok(Err(error)) => failure = Some((upstream, error)),
                Err(_) => failure = Some((upstream, std::io::ErrorKind::TimedOut.into())),
            }
        }
        match (refusal, failure) {
            (Some(answer), _) => Ok(answer),
            (None, Some((last, source))) => Err(ForwardError::Unanswered { last, source }),
            (None, None) => Err(ForwardError::NoUpstream),
        }
    }

    fn resolv_conf_counts(&self) -> bool {
        self.given.is_none() && !self.fixed.load(Ordering::Relaxed)
    }
}

/// Who asks for all that want the same; when dropped, it is the next one's turn.
struct Leading<'a> {
    forwarder: &'a Forwarder,
    key: Key,
    tell: watch::Sender<Option<Option<Arc<[u8]>>>>,
}

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        self.forwarder.pending.lock().remove(&self.key);
    }
}

impl Leading<'_> {
    async fn lead(self, question: &[u8], asked: &Message, tcp: bool) -> Result<Vec<u8>, ForwardError> {
        let result = self.forwarder.exchange(question, asked, tcp).await;
        if let Ok(answer) = &result {
            self.forwarder.cache.put(self.key.clone(), answer, Instant::now());
        }
        // nobody else may wait
        let _ = self.tell.send(Some(result.as_ref().ok().map(|answer| answer.as_slice().into())));
        result
    }
}

/// Whether the resolver says that it cannot answer, not that there is nothing.
fn is_refusal(answer: &[u8]) -> bool {
    let code = answer.get(3).map_or(0, |byte| byte & 0x0f);
    [ResponseCode::ServFail, ResponseCode::NotImp, ResponseCode::Refused].iter().any(|c| c.low() == code)
}

fn invalid(what: &'static str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, what)
}

/// Whether `answer` is one to our question: someone may try to slip us another.
fn fits(answer: &[u8], id: [u8; 2], asked: &Message) -> bool {
    if answer.len() < 12 || answer[..2] != id || answer[2] & 0x80 == 0 {
        return false;
    }
    match Message::from_vec(answer) {
        Ok(message) => message.queries == asked.queries || message.queries.is_empty(),
        // records of types that the codec cannot read; id, port and resolver are right
        Err(_) => true,
    }
}

async fn ask_udp(upstream: SocketAddr, message: &[u8], asked: &Message) -> std::io::Result<Vec<u8>> {
    let any: IpAddr =
        if upstream.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(upstream).await?;
    socket.send(message).await?;
    let mut buffer = vec![0; 65_535];
    loop {
        let len = socket.recv(&mut buffer).await?;
        // a stray or forged datagram must not end the wait for the right one
        if fits(&buffer[..len], [message[0], message[1]], asked) {
            buffer.truncate(len);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(upstream: SocketAddr, message: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    let len = u16::try_from(message.len()).map_err(|_| invalid("question too long"))?;
    stream.write_all(&[&len.to_be_bytes()[..], message].concat()).await?;
    let len = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(len)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// The `nameserver` lines of resolv.conf(5).
fn nameservers(text: &str) -> Vec<SocketAddr> {
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()).flatten()
    });
    // a zone (`fe80::1%eth0`) needs the link's index, which only matters for link-local resolvers
    lines.filter_map(|ip| Some(SocketAddr::new(ip.parse().ok()?, 53))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_as_resolver_libraries_do() {
        let text =
            "# nameserver 9.9.9.9\nsearch x\nnameserver 10.0.0.2\n nameserver\t::1 # local\nnameserver bad\n";
        let found: Vec<String> = nameservers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.2:53", "[::1]:53"]);
    }

    #[test]
    fn we_never_ask_ourselves() {
        let list = ["10.96.0.10:53", "127.0.0.1:53", "10.0.0.2:53"].map(|a| a.parse().unwrap()).to_vec();
        let ask = |own: &str| {
            let own = vec![own.parse().unwrap()];
            Forwarder::new(Some(list.clone()), Path::new("/nonexistent"), own).upstreams()
        };
        assert_eq!(ask("10.96.0.10:53"), list[1..]);
        assert_eq!(ask("0.0.0.0:53"), [list[0], list[2]]);
    }
}
