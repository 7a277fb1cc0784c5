//! Exec and attach over SPDY: a stream each for the error, the standard streams and the terminal's size, told apart by
//! their header `streamtype`. Versions of `X-Stream-Protocol-Version`: 1 and 2 tell the end as text and know no
//! size, 3 knows the size, 4 tells the end as a `metav1.Status`.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use tokio::io::{AsyncRead, AsyncWrite};

use super::remote_command::{Output, Received, Size, Wire, status_json, status_text};
use super::spdy::{Connection, Event};
use super::{Streams, websocket::tokens};
use crate::error::RuntimeError;

/// How long a client has to open its streams.
const OPENING: Duration = Duration::from_secs(30);
/// Received pieces that may wait while output waits for the client; a client that sends more is cut off.
const MAX_PENDING: usize = 64;
/// Longest text of a size that is not complete.
const MAX_SIZE: usize = 1024;
/// What clients say they speak, and what we choose.
const PROTOCOLS: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// What a refused client may choose from.
const ACCEPTED: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// The versions of exec and attach, the newest first.
pub(super) const COMMANDS: &[&str] =
    &["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
/// Those of port-forwards.
pub(super) const FORWARDS: &[&str] = &["portforward.k8s.io"];

/// The answer to an upgrade, and the version: the first that the client names and we know. The error is the refusal.
pub(super) fn accept(
    headers: &HeaderMap,
    known: &[&'static str],
) -> Result<(Response<Full<Bytes>>, &'static str), Box<Response<Full<Bytes>>>> {
    let offered: Vec<&str> = tokens(headers, PROTOCOLS).collect();
    let refuse = |status, why: String| {
        let mut response = Response::new(Full::from(why));
        *response.status_mut() = status;
        Box::new(response)
    };
    if offered.is_empty() {
        let why = "unable to upgrade: X-Stream-Protocol-Version is required".to_owned();
        return Err(refuse(StatusCode::BAD_REQUEST, why));
    }
    let chosen = offered.iter().find_map(|name| known.iter().find(|known| *known == name));
    let Some(chosen) = chosen else {
        let why = format!(
            "unable to upgrade: unable to negotiate protocol: client supports [{}], server accepts [{}]",
            offered.join(" "),
            known.join(" ")
        );
        let mut response = refuse(StatusCode::FORBIDDEN, why);
        for name in known {
            response.headers_mut().append(ACCEPTED, HeaderValue::from_static(name));
        }
        return Err(response);
    };
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let set = response.headers_mut();
    set.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    set.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    set.insert(PROTOCOLS, HeaderValue::from_static(chosen));
    Ok((response, chosen))
}

/// A session over SPDY.
pub(super) struct SpdyStreams<S> {
    connection: Connection<S>,
    version: &'static str,
    error: u32,
    stdin: Option<u32>,
    stdout: Option<u32>,
    stderr: Option<u32>,
    resize: Option<u32>,
    /// A size that is not complete.
    size: Vec<u8>,
    /// What was received and not asked for yet.
    pending: VecDeque<Received>,
}

impl<S: AsyncRead + AsyncWrite + Send> SpdyStreams<S> {
    /// Waits for the streams that the client must open; `None` when it does not.
    pub(super) async fn open(stream: S, version: &'static str, wanted: Streams) -> Option<SpdyStreams<S>> {
        let mut streams = SpdyStreams {
            connection: Connection::new(stream),
            version,
            error: 0,
            stdin: None,
            stdout: None,
            stderr: None,
            resize: None,
            size: Vec::new(),
            pending: VecDeque::new(),
        };
        let sizes = wanted.tty && matches!(version, "v4.channel.k8s.io" | "v3.channel.k8s.io");
        let all = |s: &SpdyStreams<S>| {
            s.error != 0
                && s.stdin.is_some() == wanted.stdin
                && s.stdout.is_some() == wanted.stdout
                && s.stderr.is_some() == wanted.stderr
                && s.resize.is_some() == sizes
        };
        let opening = async {
            while !all(&streams) {
                match streams.connection.next(true).await {
                    Ok(Some(Event::Opened { id, headers })) => {
                        let kind = headers.iter().find(|(name, _)| name == "streamtype");
                        let slot = match kind.map_or("", |(_, kind)| kind.as_str()) {
                            "error" if streams.error == 0 => {
                                streams.error = id;
                                streams.connection.reply(id);
                                continue;
                            }
                            "stdin" if wanted.stdin => &mut streams.stdin,
                            "stdout" if wanted.stdout => &mut streams.stdout,
                            "stderr" if wanted.stderr => &mut streams.stderr,
                            "resize" if sizes => &mut streams.resize,
                            _ => {
                                streams.connection.reset(id);
                                continue;
                            }
                        };
                        if slot.replace(id).is_some() {
                            return false;
                        }
                        streams.connection.reply(id);
                    }
                    Ok(Some(event)) => streams.keep(event),
                    Ok(None) | Err(_) => return false,
                }
            }
            true
        };
        match tokio::time::timeout(OPENING, opening).await {
            Ok(true) => Some(streams),
            _ => {
                tracing::debug!("a client did not open the streams it asked for");
                None
            }
        }
    }

    /// Keeps what an event is for the session.
    fn keep(&mut self, event: Event) {
        match event {
            Event::Data { id, bytes, fin } if Some(id) == self.stdin => {
                if !bytes.is_empty() {
                    self.pending.push_back(Received::Input(bytes));
                }
                if fin {
                    self.pending.push_back(Received::EndOfInput);
                }
            }
            Event::Data { id, bytes, .. } if Some(id) == self.resize => {
                self.size.extend_from_slice(&bytes);
                // the newest complete size counts
                let mut sizes = serde_json::Deserializer::from_slice(&self.size).into_iter::<Size>();
                let newest = sizes.by_ref().map_while(Result::ok).last();
                let read = sizes.byte_offset();
                self.size.drain(..read.min(self.size.len()));
                if self.size.len() > MAX_SIZE {
                    self.size.clear();
                }
                self.pending.extend(newest.map(Received::Resize));
            }
            Event::Reset { id } if Some(id) == self.stdin => self.pending.push_back(Received::EndOfInput),
            // all streams are there already
            Event::Opened { id, .. } => self.connection.reset(id),
            Event::Data { .. } | Event::Reset { .. } | Event::Room => {}
        }
    }

    /// Sends all of it, as the client makes room; false when it is gone.
    async fn say(&mut self, id: u32, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() && self.connection.takes(id) {
            let count = self.connection.room(id).min(bytes.len());
            if count > 0 {
                self.connection.send(id, &bytes[..count], false);
                bytes = &bytes[count..];
                continue;
            }
            // only a client that keeps windows has to be heard to be written to
            let reading = self.connection.windowed();
            if reading && self.pending.len() >= MAX_PENDING {
                return false;
            }
            match self.connection.next(reading).await {
                Ok(Some(event)) => self.keep(event),
                Ok(None) | Err(_) => return false,
            }
        }
        true
    }
}

impl<S: AsyncRead + AsyncWrite + Send> Wire for SpdyStreams<S> {
    async fn send(&mut self, output: Output, bytes: &[u8]) -> bool {
        let id = if output == Output::Stdout { self.stdout } else { self.stderr };
        let Some(id) = id else { return true };
        self.say(id, bytes).await && self.connection.flush().await.is_ok()
    }

    async fn receive(&mut self) -> Option<Received> {
        loop {
            if let Some(received) = self.pending.pop_front() {
                return Some(received);
            }
            let event = self.connection.next(true).await.ok()??;
            self.keep(event);
        }
    }

    async fn finish(mut self, result: &Result<i32, RuntimeError>) {
        for id in [self.stdout, self.stderr].into_iter().flatten() {
            self.connection.send(id, &[], true);
        }
        let is_v4 = self.version == "v4.channel.k8s.io";
        let status = if is_v4 { status_json(result) } else { status_text(result) };
        if self.say(self.error, status.as_bytes()).await {
            self.connection.send(self.error, &[], true);
            self.connection.close().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(offered: &[&str]) -> Result<&'static str, (u16, usize)> {
        let headers = offered.iter().map(|v| (PROTOCOLS, v.parse().unwrap())).collect();
        accept(&headers, COMMANDS)
            .map(|(_, version)| version)
            .map_err(|r| (r.status().as_u16(), r.headers().get_all(ACCEPTED).iter().count()))
    }

    #[test]
    fn the_clients_first_known_version_is_chosen() {
        assert_eq!(chosen(&["v5.channel.k8s.io", "v4.channel.k8s.io"]), Ok("v4.channel.k8s.io"));
        assert_eq!(chosen(&["v2.channel.k8s.io, v4.channel.k8s.io"]), Ok("v2.channel.k8s.io"));
        assert_eq!(chosen(&["v9"]), Err((403, 4)));
        assert_eq!(chosen(&[]), Err((400, 0)));
    }
}
