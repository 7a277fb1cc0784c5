//! Port-forwards: connections into a pod's network namespace, each with a stream for its bytes and one for its error.
//!
//! Over SPDY (plain, or inside of WebSocket messages) the client opens a pair of streams per connection, told apart by
//! `streamtype`, `port` and `requestid`. Over WebSocket channels the URL names the ports; port number n has the
//! channels 2n (bytes) and 2n+1 (error), and each begins with the port, two bytes, little endian.
//!
//! Tasks: one that owns the client's connection; one per connection into the pod. A connection into the pod holds at
//! most one read each way; a client is not read while one of its streams cannot take more.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::{mpsc, oneshot},
    task::{AbortHandle, JoinSet},
};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

use super::spdy::{Connection, Event, SpdyError};
use super::websocket::{self, Protocol};
use crate::{record::SandboxRecord, sys};

/// Bytes read at a time.
const CHUNK: usize = 32 * 1024;
/// Longest wait for a port of the pod.
const DIAL: Duration = Duration::from_secs(10);
/// How long one stream of a pair may be without the other.
const PAIRING: Duration = Duration::from_secs(30);
/// A client that forwards nothing for so long is closed.
const IDLE: Duration = Duration::from_secs(4 * 3600);
/// Pieces that may wait for a connection into the pod.
const QUEUE: usize = 2;

/// The pod whose ports are forwarded.
#[derive(Debug, Clone)]
pub(super) struct Pod {
    /// Namespace and name, for messages.
    pub(super) name: String,
    /// Its network namespace; none: the node's.
    pub(super) netns: Option<PathBuf>,
}

impl Pod {
    pub(super) fn of(sandbox: &SandboxRecord) -> Pod {
        let name = sandbox.config.metadata.as_ref().map(|m| format!("{}/{}", m.namespace, m.name));
        Pod { name: name.unwrap_or_default(), netns: sandbox.netns.clone() }
    }

    fn failed(&self, port: u16, why: &io::Error) -> String {
        format!(
            "error forwarding port {port} to pod {}: failed to connect to localhost:{port} inside the pod: {why}",
            self.name
        )
    }

    /// Connects to a port on the pod's loopback interface: IPv4, else IPv6.
    async fn dial(&self, port: u16) -> io::Result<TcpStream> {
        let connect = async |ip: IpAddr| {
            let (netns, (made, socket)) = (self.netns.clone(), oneshot::channel());
            // a thread of its own: it ends in another namespace than it began
            std::thread::Builder::new().name("pod-socket".to_owned()).spawn(move || {
                // nobody may wait any more
                let _ = made.send(socket_in(netns.as_deref(), ip));
            })?;
            let socket = socket.await.map_err(io::Error::other)??;
            socket.connect(SocketAddr::new(ip, port)).await
        };
        let both = async {
            match connect(Ipv4Addr::LOCALHOST.into()).await {
                Ok(stream) => Ok(stream),
                // the first error is the telling one: most pods have no IPv6
                Err(error) => connect(Ipv6Addr::LOCALHOST.into()).await.map_err(|_| error),
            }
        };
        let stream = tokio::time::timeout(DIAL, both).await.map_err(|_| io::ErrorKind::TimedOut)??;
        // small interactive writes must not wait for each other; failing to say so changes nothing else
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }
}

fn socket_in(netns: Option<&Path>, ip: IpAddr) -> io::Result<TcpSocket> {
    if let Some(path) = netns {
        sys::setns(std::fs::File::open(path)?.as_fd(), libc::CLONE_NEWNET)?;
    }
    let family = if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket: OwnedFd = socket_with(family, SocketType::STREAM, flags, None)?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}

/// What a connection into the pod sends to the client.
struct Outgoing {
    stream: u32,
    bytes: Bytes,
    fin: bool,
    /// Told when it is on its way.
    sent: Option<oneshot::Sender<()>>,
}

/// Gives bytes to the owner of the client's connection; false when it is gone.
async fn give(out: &mpsc::Sender<Outgoing>, stream: u32, bytes: Bytes, fin: bool) -> bool {
    let (sent, done) = oneshot::channel();
    out.send(Outgoing { stream, bytes, fin, sent: Some(sent) }).await.is_ok() && done.await.is_ok()
}

/// One connection into the pod, from dialling to its end; the number of its data stream.
async fn forward(
    pod: Pod,
    port: u16,
    (data, error): (u32, u32),
    mut input: mpsc::Receiver<Bytes>,
    out: mpsc::Sender<Outgoing>,
) -> u32 {
    let connected = match pod.dial(port).await {
        Ok(stream) => stream,
        Err(why) => {
            let why = pod.failed(port, &why);
            tracing::debug!(why, "port-forward");
            give(&out, error, why.into(), true).await;
            give(&out, data, Bytes::new(), true).await;
            return data;
        }
    };
    let (mut reader, mut writer) = connected.into_split();
    let upward = async {
        let mut buffer = BytesMut::with_capacity(CHUNK);
        loop {
            buffer.reserve(CHUNK);
            match reader.read_buf(&mut buffer).await {
                Ok(1..) if give(&out, data, buffer.split().freeze(), false).await => {}
                Ok(1..) => return false,
                // a reset by the pod's program ends the connection like its end does
                Ok(0) | Err(_) => return give(&out, data, Bytes::new(), true).await,
            }
        }
    };
    let downward = async {
        while let Some(bytes) = input.recv().await {
            if writer.write_all(&bytes).await.is_err() {
                // what the program still says is read
                break;
            }
        }
        // it may have closed first
        let _ = writer.shutdown().await;
    };
    tokio::join!(upward, downward);
    give(&out, error, Bytes::new(), true).await;
    data
}

/// Half a pair, or a whole one.
struct Pair {
    data: Option<u32>,
    error: Option<u32>,
    port: u16,
    since: Instant,
}

/// A connection into the pod, as the owner of the client's connection knows it.
struct Forward {
    /// Where the client's bytes go; none after their end.
    input: Option<mpsc::Sender<Bytes>>,
    error: u32,
    task: AbortHandle,
}

/// A client's connection and what it forwards.
struct Forwards<S> {
    connection: Connection<S>,
    pod: Pod,
    /// By request id, until both streams are there.
    pairs: HashMap<String, Pair>,
    /// By data stream.
    forwards: HashMap<u32, Forward>,
    out: mpsc::Sender<Outgoing>,
    tasks: JoinSet<u32>,
    /// Bytes that wait for the client's windows.
    waiting: Vec<Outgoing>,
    /// Bytes that wait for a connection into the pod; nothing is read meanwhile.
    held: Option<(mpsc::Sender<Bytes>, Bytes)>,
}

/// Forwards ports over SPDY until the client goes.
pub(super) async fn spdy<S: AsyncRead + AsyncWrite + Send>(stream: S, pod: Pod) {
    let (out, mut outgoing) = mpsc::channel(16);
    let mut all = Forwards {
        connection: Connection::new(stream),
        pod,
        pairs: HashMap::new(),
        forwards: HashMap::new(),
        out,
        tasks: JoinSet::new(),
        waiting: Vec::new(),
        held: None,
    };
    if let Err(error) = all.run(&mut outgoing).await {
        tracing::debug!(error = &error as &dyn std::error::Error, "port-forward");
    }
    // the connections into the pod end with the set
    drop(all.tasks);
    all.connection.close().await;
}

impl<S: AsyncRead + AsyncWrite + Send> Forwards<S> {
    async fn run(&mut self, outgoing: &mut mpsc::Receiver<Outgoing>) -> Result<(), SpdyError> {
        let mut unpaired = tokio::time::interval(PAIRING);
        unpaired.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let idle = self.tasks.is_empty();
            tokio::select! {
                event = self.connection.next(self.held.is_none()) => match event? {
                    Some(event) => self.take(event),
                    None => return Ok(()),
                },
                Some(one) = outgoing.recv() => self.waiting.push(one),
                () = deliver(&mut self.held), if self.held.is_some() => {}
                Some(ended) = self.tasks.join_next(), if !idle => {
                    if let Ok(data) = ended {
                        self.forwards.remove(&data);
                    }
                }
                _ = unpaired.tick(), if !self.pairs.is_empty() => self.drop_unpaired(),
                () = tokio::time::sleep(IDLE), if idle => return Ok(()),
            }
            self.send_waiting();
        }
    }

    /// Sends what there is room for.
    fn send_waiting(&mut self) {
        let connection = &mut self.connection;
        self.waiting.retain_mut(|one| {
            if !connection.takes(one.stream) {
                return false;
            }
            let count = connection.room(one.stream).min(one.bytes.len());
            let whole = count == one.bytes.len();
            if count > 0 || whole {
                connection.send(one.stream, &one.bytes.split_to(count), one.fin && whole);
            }
            if let Some(sent) = one.sent.take_if(|_| whole) {
                // it may have been cut off
                let _ = sent.send(());
            }
            !whole
        });
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Opened { id, headers } => self.open(id, &headers),
            Event::Data { id, bytes, fin } => {
                let Some(forward) = self.forwards.get_mut(&id) else { return };
                if let (Some(input), false) = (&forward.input, bytes.is_empty()) {
                    match input.try_send(bytes) {
                        Err(mpsc::error::TrySendError::Full(bytes)) => {
                            self.held = Some((input.clone(), bytes));
                        }
                        // a connection that has ended takes no more
                        Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
                    }
                }
                if fin {
                    forward.input = None;
                }
            }
            Event::Reset { id } => {
                self.pairs.retain(|_, pair| pair.data != Some(id) && pair.error != Some(id));
                if let Some(forward) = self.forwards.remove(&id) {
                    // clients wait for the error's end
                    forward.task.abort();
                    self.connection.send(forward.error, &[], true);
                }
            }
            Event::Room => {}
        }
    }

    fn open(&mut self, id: u32, headers: &[(String, String)]) {
        let header = |name: &str| headers.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v.as_str());
        let port = header("port").parse::<u16>().unwrap_or(0);
        let kind = header("streamtype");
        if port == 0 || !matches!(kind, "data" | "error") {
            return self.connection.reset(id);
        }
        let request = match header("requestid") {
            // old clients send none; they open the error's stream right before the data's
            "" if kind == "data" => id.saturating_sub(2).to_string(),
            "" => id.to_string(),
            given => given.to_owned(),
        };
        let new = Pair { data: None, error: None, port, since: Instant::now() };
        let pair = self.pairs.entry(request.clone()).or_insert(new);
        let slot = if kind == "data" { &mut pair.data } else { &mut pair.error };
        if slot.is_some() {
            return self.connection.reset(id);
        }
        *slot = Some(id);
        self.connection.reply(id);
        if let Pair { data: Some(data), error: Some(error), port, .. } = *pair {
            self.pairs.remove(&request);
            let (input, queue) = mpsc::channel(QUEUE);
            let forward = forward(self.pod.clone(), port, (data, error), queue, self.out.clone());
            let task = self.tasks.spawn(forward);
            self.forwards.insert(data, Forward { input: Some(input), error, task });
        }
    }

    /// Gives up on streams whose other half did not come.
    fn drop_unpaired(&mut self) {
        let connection = &mut self.connection;
        self.pairs.retain(|_, pair| {
            let waits = pair.since.elapsed() < PAIRING;
            if !waits {
                [pair.data, pair.error].into_iter().flatten().for_each(|id| connection.reset(id));
            }
            waits
        });
    }
}

/// Hands over what is held. May be dropped at any point and called again.
async fn deliver(held: &mut Option<(mpsc::Sender<Bytes>, Bytes)>) {
    if let Some((input, bytes)) = held
        && let Ok(place) = input.reserve().await
    {
        place.send(std::mem::take(bytes));
    }
    *held = None;
}

/// Forwards over SPDY whose bytes come in WebSocket messages (KEP-4006).
pub(super) async fn tunnel<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(stream: S, pod: Pod) {
    let (mut sink, mut messages) = websocket::socket(stream).await.split();
    let (ours, theirs) = tokio::io::duplex(CHUNK * 2);
    let (mut reader, mut writer) = tokio::io::split(theirs);
    let inward = async {
        while let Some(Ok(message)) = messages.next().await {
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Close(_) | Message::Text(_) => break,
                _ => continue,
            };
            if writer.write_all(&bytes).await.is_err() {
                break;
            }
        }
        let _ = writer.shutdown().await;
    };
    let outward = async {
        let mut buffer = BytesMut::with_capacity(CHUNK);
        loop {
            buffer.reserve(CHUNK);
            match reader.read_buf(&mut buffer).await {
                Ok(1..) if sink.send(Message::Binary(buffer.split().freeze())).await.is_ok() => {}
                _ => break,
            }
        }
        let _ = sink.send(Message::Close(Some(websocket::normal_close()))).await;
    };
    tokio::select! {
        _ = async { tokio::join!(spdy(ours, pod), outward) } => {}
        // the client's end ends the rest; a client that does not answer our end is left
        () = async { inward.await; std::future::pending().await } => {}
    }
}

/// Forwards the ports named in the URL over WebSocket channels.
pub(super) async fn channels<S: AsyncRead + AsyncWrite + Send + Unpin>(
    stream: S,
    (.., base64): Protocol,
    pod: Pod,
    ports: &[u16],
) {
    let mut socket: WebSocketStream<S> = websocket::socket(stream).await;
    let (out, mut outgoing) = mpsc::channel(16);
    let (mut inputs, mut tasks) = (Vec::new(), JoinSet::new());
    for (n, port) in ports.iter().enumerate() {
        // the number of ports is limited where they are taken
        let (data, error) = (n as u8 * 2, n as u8 * 2 + 1);
        for channel in [data, error] {
            if socket.send(websocket::message(channel, &port.to_le_bytes(), base64)).await.is_err() {
                return;
            }
        }
        let (input, queue) = mpsc::channel(QUEUE);
        inputs.push(input);
        let streams = (u32::from(data), u32::from(error));
        tasks.spawn(forward(pod.clone(), *port, streams, queue, out.clone()));
    }
    drop(out);
    let mut held = None;
    loop {
        tokio::select! {
            // closed once every connection has ended
            one = outgoing.recv() => match one {
                Some(Outgoing { stream, bytes, sent, .. }) => {
                    let message = websocket::message(stream as u8, &bytes, base64);
                    if !bytes.is_empty() && socket.send(message).await.is_err() {
                        return;
                    }
                    // it may have been cut off
                    let _ = sent.map(|sent| sent.send(()));
                }
                None => break,
            },
            received = socket.next(), if held.is_none() => match received {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(message)) => {
                    let content = websocket::content(message, base64);
                    let content = content.filter(|(channel, bytes)| channel % 2 == 0 && !bytes.is_empty());
                    if let Some((channel, bytes)) = content
                        && let Some(input) = inputs.get(usize::from(channel / 2))
                    {
                        held = Some((input.clone(), bytes));
                    }
                }
            },
            () = deliver(&mut held), if held.is_some() => {}
        }
    }
    websocket::close(socket).await;
}
