//! Sockets: questions in, answers out.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};
use parking_lot::RwLock;
use rand::seq::SliceRandom;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Config;
use crate::forward::Forwarder;
use crate::records::{Answer, Data, Index, Kind, TTL};

/// Questions under way to upstream resolvers, and TCP connections.
const MAX_FORWARDED: usize = 1024;
const MAX_CONNECTIONS: usize = 256;
/// A connection that asks nothing for so long is closed (RFC 7766, 6.2.3).
const IDLE: Duration = Duration::from_secs(10);
/// The largest UDP answer: fits every link without fragments (DNS flag day 2020).
const MAX_UDP: u16 = 1232;
const MIN_UDP: u16 = 512;
/// An EDNS record without options.
const EDNS_LEN: u16 = 11;
/// Aliases followed before we give up.
const MAX_ALIASES: usize = 8;

/// A socket could not be bound.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen for DNS on {addr}{}",
    match source.kind() {
        io::ErrorKind::AddrInUse => ": another resolver or another cluster on this machine has the address; stop it (`navarch down --data-dir DIR`), or start with `--disable dns`",
        io::ErrorKind::AddrNotAvailable => ": no link of this machine has the address; the pod network sets it up, unless the agent is disabled",
        io::ErrorKind::PermissionDenied => ": ports below 1024 need root or CAP_NET_BIND_SERVICE",
        _ => "",
    }
)]
pub struct BindError {
    /// Where.
    pub addr: SocketAddr,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Bound sockets and what they answer from.
pub struct Server {
    udp: Vec<Arc<UdpSocket>>,
    tcp: Vec<TcpListener>,
    inner: Arc<Inner>,
}

struct Inner {
    index: Arc<RwLock<Index>>,
    forwarder: Arc<Forwarder>,
    forwarded: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl Server {
    /// Binds all sockets. With port 0, TCP takes the port that UDP was given.
    pub async fn bind(config: &Config) -> Result<Self, BindError> {
        let (mut udp, mut tcp) = (Vec::new(), Vec::new());
        for addr in &config.listen {
            let fail = |source| BindError { addr: *addr, source };
            let socket = UdpSocket::bind(addr).await.map_err(fail)?;
            let bound = socket.local_addr().map_err(fail)?;
            tcp.push(TcpListener::bind(bound).await.map_err(fail)?);
            udp.push(Arc::new(socket));
        }
        let own: Vec<SocketAddr> = udp.iter().filter_map(|s| s.local_addr().ok()).collect();
        let servers = own.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified()).collect();
        let index = Index::new(&config.cluster_domain, servers, config.reverse.clone());
        let forwarder = Arc::new(Forwarder::new(config.upstreams.clone(), &config.resolv_conf, own));
        let inner = Inner {
            index: Arc::new(RwLock::new(index)),
            forwarder,
            forwarded: Arc::new(Semaphore::new(MAX_FORWARDED)),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        };
        Ok(Self { udp, tcp, inner: Arc::new(inner) })
    }

    /// The addresses bound.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.udp.iter().filter_map(|s| s.local_addr().ok()).collect()
    }

    /// The names answered; whoever holds this keeps them up to date.
    pub fn index(&self) -> Arc<RwLock<Index>> {
        self.inner.index.clone()
    }

    /// Who asks upstream resolvers; for a configuration that changes.
    pub fn forwarder(&self) -> Arc<Forwarder> {
        self.inner.forwarder.clone()
    }

    /// Serves until `stop`.
    pub async fn serve(self, stop: CancellationToken) {
        let mut tasks = JoinSet::new();
        for socket in self.udp {
            tasks.spawn(serve_udp(self.inner.clone(), socket));
        }
        for listener in self.tcp {
            tasks.spawn(serve_tcp(self.inner.clone(), listener));
        }
        stop.cancelled().await;
        tasks.shutdown().await;
    }
}

async fn serve_udp(inner: Arc<Inner>, socket: Arc<UdpSocket>) {
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; 65_535];
    loop {
        let (len, peer) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // an ICMP error of an earlier answer; the socket itself stands
                tracing::debug!(%error, "receiving a question");
                continue;
            }
        };
        while tasks.try_join_next().is_some() {}
        match inner.answer(&buffer[..len], false) {
            Step::Done(answer) => send(&socket, &answer, peer).await,
            Step::Ignore => {}
            Step::Forward(job) => {
                // known already: no need to wait for anybody
                if let Some(answer) = inner.known(&job) {
                    send(&socket, &answer, peer).await;
                    continue;
                }
                let Ok(permit) = inner.forwarded.clone().try_acquire_owned() else {
                    send(&socket, &job.failure(), peer).await;
                    continue;
                };
                let (inner, socket) = (inner.clone(), socket.clone());
                tasks.spawn(async move {
                    let answer = inner.forward(job, false).await;
                    send(&socket, &answer, peer).await;
                    drop(permit);
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, answer: &[u8], peer: SocketAddr) {
    if let Err(error) = socket.send_to(answer, peer).await {
        tracing::debug!(%peer, %error, "sending an answer");
    }
}

async fn serve_tcp(inner: Arc<Inner>, listener: TcpListener) {
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        // waiting for a permit leaves further clients in the kernel's bounded queue
        let Ok(permit) = inner.connections.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let inner = inner.clone();
                tasks.spawn(async move {
                    if let Err(error) = serve_connection(&inner, stream).await {
                        tracing::debug!(%error, "DNS connection ended");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a DNS connection");
                // out of descriptors: accepting again at once would spin
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_connection(inner: &Inner, mut stream: TcpStream) -> io::Result<()> {
    let timed = |_| io::Error::from(io::ErrorKind::TimedOut);
    loop {
        let len = match tokio::time::timeout(IDLE, stream.read_u16()).await.map_err(timed)? {
            Ok(len) => len,
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(e) => return Err(e),
        };
        let mut question = vec![0; usize::from(len)];
        tokio::time::timeout(IDLE, stream.read_exact(&mut question)).await.map_err(timed)??;
        let answer = match inner.answer(&question, true) {
            Step::Done(answer) => answer,
            Step::Ignore => return Ok(()),
            Step::Forward(job) => match inner.forwarded.try_acquire() {
                Ok(_permit) => inner.forward(job, true).await,
                Err(_) => job.failure(),
            },
        };
        let len = u16::try_from(answer.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        let framed = [&len.to_be_bytes()[..], &answer].concat();
        tokio::time::timeout(IDLE, stream.write_all(&framed)).await.map_err(timed)??;
    }
}

enum Step {
    Done(Vec<u8>),
    Ignore,
    Forward(Box<Job>),
}

/// A question that upstream resolvers have a part in.
struct Job {
    question: Message,
    raw: Vec<u8>,
    /// The aliases that lead out of the cluster, already found, and the name they end at.
    aliases: Option<(Vec<Record>, Name)>,
    limit: u16,
}

impl Job {
    fn failure(&self) -> Vec<u8> {
        encode(&respond(&self.question, ResponseCode::ServFail), self.limit)
    }
}

impl Inner {
    fn answer(&self, raw: &[u8], tcp: bool) -> Step {
        let question = match Message::from_vec(raw) {
            Ok(message) if message.metadata.message_type == MessageType::Query => message,
            // an answer to an answer could go on for ever
            Ok(_) => return Step::Ignore,
            Err(_) if raw.len() < 12 || raw[2] & 0x80 != 0 => return Step::Ignore,
            Err(_) => {
                let id = u16::from_be_bytes([raw[0], raw[1]]);
                let message = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
                return Step::Done(encode(&message, MIN_UDP));
            }
        };
        let limit = match (&question.edns, tcp) {
            (_, true) => u16::MAX,
            (Some(edns), false) => edns.max_payload().clamp(MIN_UDP, MAX_UDP),
            (None, false) => MIN_UDP,
        };
        let refuse = |code| Step::Done(encode(&respond(&question, code), limit));
        if question.metadata.op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        if question.edns.as_ref().is_some_and(|e| e.version() != 0) {
            return refuse(ResponseCode::BADVERS);
        }
        let [query] = &question.queries[..] else { return refuse(ResponseCode::FormErr) };
        if query.query_class() != DNSClass::IN {
            return refuse(ResponseCode::Refused);
        }
        if matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR) {
            return refuse(ResponseCode::Refused);
        }
        match self.resolve(&question, query) {
            Resolved::Answer(message) => Step::Done(encode(&message, limit)),
            Resolved::Forward(aliases) => {
                Step::Forward(Box::new(Job { raw: raw.to_vec(), aliases, limit, question }))
            }
        }
    }

    /// Answers from the index, following aliases as long as they stay in the cluster.
    fn resolve(&self, question: &Message, query: &Query) -> Resolved {
        let kind = kind(query.query_type());
        let mut owner = query.name().clone();
        let mut aliases: Vec<Record> = Vec::new();
        let index = self.index.read();
        for _ in 0..MAX_ALIASES {
            let answer = match labels(&owner) {
                Some(labels) => index.lookup(&labels, kind),
                None => Answer::Foreign,
            };
            if answer == Answer::Foreign {
                let aliased = (!aliases.is_empty()).then(|| (std::mem::take(&mut aliases), owner));
                return Resolved::Forward(aliased);
            }
            if !index.is_synced() {
                return Resolved::Answer(respond(question, ResponseCode::ServFail));
            }
            let mut message = respond(question, ResponseCode::NoError);
            message.metadata.authoritative = true;
            message.answers = std::mem::take(&mut aliases);
            match answer {
                Answer::Records { answers, additional } => {
                    let alias = match &answers[..] {
                        [Data::Cname(target)] if query.query_type() != RecordType::CNAME => {
                            Name::from_ascii(format!("{target}.")).ok()
                        }
                        _ => None,
                    };
                    let mut records: Vec<Record> =
                        answers.iter().filter_map(|d| record(&index, owner.clone(), d)).collect();
                    if let Some(target) = alias {
                        aliases = std::mem::take(&mut message.answers);
                        aliases.append(&mut records);
                        owner = target;
                        continue;
                    }
                    // most clients take the first
                    records.shuffle(&mut rand::rng());
                    message.answers.append(&mut records);
                    message.additionals = additional
                        .iter()
                        .filter_map(|(name, data)| {
                            record(&index, Name::from_ascii(format!("{name}.")).ok()?, data)
                        })
                        .collect();
                }
                Answer::NoName | Answer::NoData => {
                    if answer == Answer::NoName {
                        message.metadata.response_code = ResponseCode::NXDomain;
                    }
                    let zone = zone(&index, &owner);
                    message.authorities = record(&index, zone, &Data::Soa).into_iter().collect();
                }
                Answer::Foreign => {}
            }
            return Resolved::Answer(message);
        }
        Resolved::Answer(respond(question, ResponseCode::ServFail))
    }

    /// An upstream's answer that is kept, for a question over UDP.
    fn known(&self, job: &Job) -> Option<Vec<u8>> {
        let answer = self.forwarder.known(&job.raw).filter(|_| job.aliases.is_none())?;
        (answer.len() <= usize::from(job.limit)).then_some(answer)
    }

    async fn forward(&self, job: Box<Job>, tcp: bool) -> Vec<u8> {
        let Some((aliases, target)) = &job.aliases else {
            return match self.forwarder.ask(&job.raw, tcp).await {
                // an upstream that does not keep to the size that the client named
                Ok(answer) if !tcp && answer.len() > usize::from(job.limit) => {
                    match Message::from_vec(&answer) {
                        Ok(message) => encode(&message, job.limit),
                        Err(_) => job.failure(),
                    }
                }
                Ok(answer) => answer,
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "forwarding a question");
                    job.failure()
                }
            };
        };
        // resolver libraries do not follow aliases themselves: the answer must hold the whole way
        let mut message = respond(&job.question, ResponseCode::NoError);
        message.answers.extend(aliases.iter().cloned());
        let kind = job.question.queries.first().map_or(RecordType::A, Query::query_type);
        let mut onward = Message::query();
        onward.metadata.recursion_desired = true;
        onward.add_query(Query::query(target.clone(), kind));
        let answer = match onward.to_vec() {
            Ok(raw) => self.forwarder.ask(&raw, tcp).await.ok(),
            Err(_) => None,
        };
        match answer.and_then(|raw| Message::from_vec(&raw).ok()) {
            Some(found) => {
                message.metadata.response_code = found.metadata.response_code;
                message.metadata.truncation = found.metadata.truncation;
                message.answers.extend(found.answers);
                message.authorities = found.authorities;
            }
            None => message.metadata.response_code = ResponseCode::ServFail,
        }
        encode(&message, job.limit)
    }
}

/// The zone of ours that `owner` is in: the cluster's, or one of the two of reverse names.
fn zone(index: &Index, owner: &Name) -> Name {
    let own = format!("{}.", index.zone());
    let zones = ["in-addr.arpa.", "ip6.arpa."].into_iter().chain([own.as_str()]);
    let mut zones = zones.filter_map(|zone| Name::from_ascii(zone).ok());
    zones.find(|zone| zone.zone_of(owner)).unwrap_or_else(Name::root)
}

enum Resolved {
    Answer(Message),
    Forward(Option<(Vec<Record>, Name)>),
}

fn kind(record_type: RecordType) -> Kind {
    match record_type {
        RecordType::A => Kind::A,
        RecordType::AAAA => Kind::Aaaa,
        RecordType::SRV => Kind::Srv,
        RecordType::PTR => Kind::Ptr,
        RecordType::TXT => Kind::Txt,
        RecordType::SOA => Kind::Soa,
        RecordType::NS => Kind::Ns,
        RecordType::ANY => Kind::Any,
        _ => Kind::Other,
    }
}

/// Lower-case labels; `None` when one is not text, which no name of ours is.
fn labels(name: &Name) -> Option<Vec<String>> {
    name.iter().map(|label| Some(std::str::from_utf8(label).ok()?.to_ascii_lowercase())).collect()
}

fn record(index: &Index, owner: Name, data: &Data) -> Option<Record> {
    let name = |text: &str| Name::from_ascii(format!("{text}.")).ok();
    let rdata = match data {
        Data::Address(std::net::IpAddr::V4(a)) => RData::A(A(*a)),
        Data::Address(std::net::IpAddr::V6(a)) => RData::AAAA(AAAA(*a)),
        Data::Srv { weight, port, target } => RData::SRV(SRV::new(0, *weight, *port, name(target)?)),
        Data::Ptr(target) => RData::PTR(PTR(name(target)?)),
        Data::Cname(target) => RData::CNAME(CNAME(name(target)?)),
        Data::Txt(text) => RData::TXT(TXT::new(vec![(*text).to_owned()])),
        Data::Ns(target) => RData::NS(NS(name(target)?)),
        Data::Soa => {
            let zone = index.zone();
            let (server, mail) = (name(&format!("ns.dns.{zone}"))?, name(&format!("hostmaster.{zone}"))?);
            RData::SOA(SOA::new(server, mail, index.serial(), 7200, 1800, 86_400, TTL))
        }
    };
    Some(Record::from_rdata(owner, TTL, rdata))
}

fn respond(question: &Message, code: ResponseCode) -> Message {
    let mut message = Message::response(question.metadata.id, question.metadata.op_code);
    message.metadata.recursion_desired = question.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    message.queries = question.queries.clone();
    if question.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP);
        message.set_edns(edns);
    }
    message
}

/// The message in at most `limit` bytes. Addresses of targets are left out first, which the asker can ask for
/// (RFC 2181, 9); then records, which is marked as truncation. The EDNS record always stays (RFC 6891, 7).
fn encode(message: &Message, limit: u16) -> Vec<u8> {
    let whole = emit(message, u16::MAX);
    if whole.len() <= usize::from(limit) {
        return whole;
    }
    let mut message = message.clone();
    message.additionals.clear();
    let edns = message.edns.take();
    let room = limit.saturating_sub(if edns.is_some() { EDNS_LEN } else { 0 });
    let cut = emit(&message, room);
    // byte 2, bit 1 is the header's TC; bytes 6 and 7 count the answers that fit
    let (true, Some(kept)) = (cut.len() >= 12, cut.get(6..8)) else { return cut };
    if cut[2] & 0x02 != 0 {
        message.metadata.truncation = true;
        message.answers.truncate(usize::from(u16::from_be_bytes([kept[0], kept[1]])));
        message.authorities.clear();
    }
    message.edns = edns;
    emit(&message, limit)
}

fn emit(message: &Message, limit: u16) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(512);
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(limit);
    if let Err(error) = message.emit(&mut encoder) {
        tracing::warn!(%error, "an answer cannot be encoded");
        let failure = Message::error_msg(message.metadata.id, OpCode::Query, ResponseCode::ServFail);
        return failure.to_vec().unwrap_or_default();
    }
    bytes
}
