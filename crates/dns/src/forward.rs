//! Asking upstream resolvers.
//!
//! A question goes on as it came, but for its id: so options and extensions that we do not know survive. Every
//! attempt has a socket of its own, connected to the resolver, hence a random port, and a random id.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::Message;
use parking_lot::RwLock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// How long one attempt may take. Three fit into the five seconds that resolver libraries wait by default.
const ATTEMPT: Duration = Duration::from_millis(1500);
const ATTEMPTS: usize = 3;
/// The same three resolvers at most that resolver libraries use.
const MAX_UPSTREAMS: usize = 3;

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
    /// The question cannot be read.
    #[error("malformed question")]
    Malformed,
}

/// Asks upstream resolvers, beginning with the one that answered last.
#[derive(Debug)]
pub struct Forwarder {
    upstreams: RwLock<Vec<SocketAddr>>,
    resolv_conf: Option<PathBuf>,
    own: Vec<SocketAddr>,
    good: AtomicUsize,
}

impl Forwarder {
    /// `upstreams` or, where that is `None`, what `resolv_conf` names. `own` are the addresses we listen on: we
    /// never ask ourselves.
    pub fn new(upstreams: Option<Vec<SocketAddr>>, resolv_conf: &Path, own: Vec<SocketAddr>) -> Self {
        let forwarder = Self {
            upstreams: RwLock::default(),
            resolv_conf: upstreams.is_none().then(|| resolv_conf.to_owned()),
            own,
            good: AtomicUsize::new(0),
        };
        match upstreams {
            Some(list) => forwarder.set(list),
            None => forwarder.reload(),
        }
        forwarder
    }

    fn set(&self, mut list: Vec<SocketAddr>) {
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
        *self.upstreams.write() = list;
    }

    fn reload(&self) {
        let Some(path) = &self.resolv_conf else { return };
        match std::fs::read_to_string(path) {
            Ok(text) => self.set(nameservers(&text)),
            Err(error) => tracing::warn!(path = %path.display(), %error, "no upstream resolvers"),
        }
    }

    /// The resolvers in use.
    pub fn upstreams(&self) -> Vec<SocketAddr> {
        self.upstreams.read().clone()
    }

    /// The answer to `question` (a whole message), with the question's id. `tcp`: whether the client waits on TCP,
    /// so that an answer of any size can be given on.
    pub async fn ask(&self, question: &[u8], tcp: bool) -> Result<Vec<u8>, ForwardError> {
        let id: [u8; 2] = question.get(..2).and_then(|b| b.try_into().ok()).ok_or(ForwardError::Malformed)?;
        let asked = Message::from_vec(question).map_err(|_| ForwardError::Malformed)?;
        let upstreams = self.upstreams();
        if upstreams.is_empty() {
            self.reload();
            return Err(ForwardError::NoUpstream);
        }
        let first = self.good.load(Ordering::Relaxed);
        let mut failure = None;
        for attempt in 0..ATTEMPTS {
            let index = (first + attempt) % upstreams.len();
            let upstream = upstreams[index];
            let own_id: [u8; 2] = rand::random();
            let mut message = question.to_vec();
            message[..2].copy_from_slice(&own_id);
            let exchange = async {
                if tcp {
                    ask_tcp(upstream, &message).await
                } else {
                    ask_udp(upstream, &message, &asked).await
                }
            };
            match tokio::time::timeout(ATTEMPT, exchange).await {
                Ok(Ok(mut answer)) if fits(&answer, own_id, &asked) => {
                    self.good.store(index, Ordering::Relaxed);
                    answer[..2].copy_from_slice(&id);
                    return Ok(answer);
                }
                Ok(Ok(_)) => failure = Some((upstream, invalid("the answer belongs to another question"))),
                Ok(Err(error)) => failure = Some((upstream, error)),
                Err(_) => failure = Some((upstream, std::io::ErrorKind::TimedOut.into())),
            }
        }
        // the node may have moved to another network
        self.reload();
        match failure {
            Some((last, source)) => Err(ForwardError::Unanswered { last, source }),
            None => Err(ForwardError::NoUpstream),
        }
    }
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
