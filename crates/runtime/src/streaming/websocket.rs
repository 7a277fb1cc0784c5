//! Kubernetes' streaming protocols over WebSocket.
//!
//! Each message starts with a channel. `v4.channel.k8s.io` and `v5.channel.k8s.io` (KEP-4006): a byte; 0 stdin, 1
//! stdout, 2 stderr, 3 error (a `metav1.Status` at the end), 4 terminal size; in v5 a message `[255, channel]`
//! closes a channel. `channel.k8s.io` and no subprotocol: the same with a text as error. The `base64.` variants: text
//! messages of a digit and base64. Port-forwards use the same messages with other channels ([`super::port_forward`]).

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::Full;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use super::remote_command::{Output, Received, Wire, status_json, status_text};
use crate::error::RuntimeError;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;
/// Largest message taken.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// How the end is told and channels are closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    /// `channel.k8s.io`, or none named.
    V1,
    V4,
    V5,
}

/// A subprotocol: its name, version, and whether messages are base64 text.
pub(super) type Protocol = (&'static str, Version, bool);

/// Those of exec and attach, the preferred first.
pub(super) const COMMANDS: &[Protocol] = &[
    ("v5.channel.k8s.io", Version::V5, false),
    ("v4.channel.k8s.io", Version::V4, false),
    ("v4.base64.channel.k8s.io", Version::V4, true),
    ("channel.k8s.io", Version::V1, false),
    ("base64.channel.k8s.io", Version::V1, true),
    ("", Version::V1, false),
];
/// Those of port-forwards.
pub(super) const FORWARDS: &[Protocol] = &[
    (TUNNEL, Version::V4, false),
    ("v4.channel.k8s.io", Version::V4, false),
    ("v4.base64.channel.k8s.io", Version::V4, true),
    ("", Version::V4, false),
];
/// SPDY inside of WebSocket messages.
pub(super) const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

pub(super) fn tokens(headers: &HeaderMap, name: header::HeaderName) -> impl Iterator<Item = &str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

/// The request asks for this protocol.
pub(super) fn is_upgrade<B>(request: &Request<B>, protocol: &str) -> bool {
    let has =
        |name, wanted: &str| tokens(request.headers(), name).any(|token| token.eq_ignore_ascii_case(wanted));
    has(header::UPGRADE, protocol) && has(header::CONNECTION, "upgrade")
}

/// The answer to the upgrade, and the subprotocol; the error is for the client.
pub(super) fn accept<B>(
    request: &Request<B>,
    known: &[Protocol],
) -> Result<(Response<Full<Bytes>>, Protocol), String> {
    let headers = request.headers();
    let key = headers.get(header::SEC_WEBSOCKET_KEY).ok_or("Sec-WebSocket-Key is missing")?;
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err("Sec-WebSocket-Version must be 13".to_owned());
    }
    let mut offered: Vec<&str> = tokens(headers, header::SEC_WEBSOCKET_PROTOCOL).collect();
    if offered.is_empty() {
        offered.push("");
    }
    let protocol = known.iter().find(|(name, ..)| offered.contains(name)).ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|(name, ..)| *name).filter(|name| !name.is_empty()).collect();
        format!("none of the subprotocols {offered:?} is supported: {}", names.join(", "))
    })?;
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let accept = derive_accept_key(key.as_bytes()).parse().map_err(|_| "Sec-WebSocket-Key is bad")?;
    let set = response.headers_mut();
    set.insert(header::UPGRADE, http::HeaderValue::from_static("websocket"));
    set.insert(header::CONNECTION, http::HeaderValue::from_static("Upgrade"));
    set.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if !protocol.0.is_empty() {
        set.insert(header::SEC_WEBSOCKET_PROTOCOL, http::HeaderValue::from_static(protocol.0));
    }
    Ok((response, *protocol))
}

/// An upgraded connection as a WebSocket.
pub(super) async fn socket<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> WebSocketStream<S> {
    let config =
        WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await
}

/// A message on a channel.
pub(super) fn message(channel: u8, content: &[u8], base64: bool) -> Message {
    if base64 {
        return Message::text(format!("{}{}", char::from(b'0' + channel), BASE64_STANDARD.encode(content)));
    }
    let mut bytes = Vec::with_capacity(content.len() + 1);
    bytes.push(channel);
    bytes.extend_from_slice(content);
    Message::Binary(bytes.into())
}

/// Channel and content of a message; `None` for one that has none. Text without base64 is bytes as well.
pub(super) fn content(message: Message, base64: bool) -> Option<(u8, Bytes)> {
    let bytes = match message {
        Message::Binary(bytes) => bytes,
        Message::Text(text) => text.into(),
        _ => return None,
    };
    let (channel, rest) = (*bytes.first()?, bytes.slice(1..));
    if !base64 {
        return Some((channel, rest));
    }
    let rest = BASE64_STANDARD.decode(&rest).ok()?;
    Some((channel.checked_sub(b'0')?, rest.into()))
}

/// The end that clients do not take for a broken connection.
pub(super) fn normal_close() -> CloseFrame {
    CloseFrame { code: CloseCode::Normal, reason: Default::default() }
}

/// Closes and waits a little for the client to do the same: what it still sends would reset the connection, and what
/// it has not read would be lost.
pub(super) async fn close<S: AsyncRead + AsyncWrite + Unpin>(mut socket: WebSocketStream<S>) {
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);
    let ended = async {
        // a client that is gone needs no goodbye
        let _ = socket.close(Some(normal_close())).await;
        while let Some(Ok(_)) = socket.next().await {}
    };
    let _ = tokio::time::timeout(PATIENCE, ended).await;
}

/// A session over WebSocket.
pub(super) struct Channels<S> {
    socket: WebSocketStream<S>,
    version: Version,
    base64: bool,
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Channels<S> {
    pub(super) async fn new(stream: S, (_, version, base64): Protocol) -> Channels<S> {
        Channels { socket: socket(stream).await, version, base64 }
    }

    async fn say(&mut self, channel: u8, bytes: &[u8]) -> bool {
        self.socket.send(message(channel, bytes, self.base64)).await.is_ok()
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Wire for Channels<S> {
    async fn send(&mut self, output: Output, bytes: &[u8]) -> bool {
        let channel = if output == Output::Stdout { STDOUT } else { STDERR };
        self.say(channel, bytes).await
    }

    async fn receive(&mut self) -> Option<Received> {
        loop {
            let message = match self.socket.next().await {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(message)) => message,
            };
            match content(message, self.base64) {
                Some((STDIN, bytes)) => return Some(Received::Input(bytes)),
                Some((RESIZE, bytes)) => {
                    if let Ok(size) = serde_json::from_slice(&bytes) {
                        return Some(Received::Resize(size));
                    }
                }
                Some((CLOSE, bytes)) if self.version == Version::V5 && bytes.first() == Some(&STDIN) => {
                    return Some(Received::EndOfInput);
                }
                _ => {}
            }
        }
    }

    async fn finish(mut self, result: &Result<i32, RuntimeError>) {
        let status = if self.version == Version::V1 { status_text(result) } else { status_json(result) };
        if !status.is_empty() {
            // a client that is gone needs no status
            self.say(ERROR, status.as_bytes()).await;
        }
        close(self.socket).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_offered_protocol_is_chosen() {
        let request = |protocols: &str| {
            Request::builder()
                .header("Upgrade", "websocket")
                .header("Connection", "keep-alive, Upgrade")
                .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
                .header("Sec-WebSocket-Version", "13")
                .header("Sec-WebSocket-Protocol", protocols)
                .body(())
                .unwrap()
        };
        assert!(is_upgrade(&request("x"), "websocket"));
        let chosen = |offered: &str| accept(&request(offered), COMMANDS).map(|(_, protocol)| protocol.0);
        let (response, _) = accept(&request("v4.channel.k8s.io, v5.channel.k8s.io"), COMMANDS).unwrap();
        assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(response.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
        assert_eq!(chosen("base64.channel.k8s.io, v4.channel.k8s.io"), Ok("v4.channel.k8s.io"));
        assert_eq!(chosen(""), Ok(""));
        assert!(chosen("v9.channel.k8s.io").is_err());
        assert_eq!(accept(&request(TUNNEL), FORWARDS).unwrap().1.0, TUNNEL);
    }

    #[test]
    fn messages_may_be_bytes_text_or_base64() {
        assert_eq!(content(message(1, b"\xff", true), true), Some((1, Bytes::from_static(b"\xff"))));
        assert_eq!(content(Message::text("\0ls\n"), false), Some((0, Bytes::from_static(b"ls\n"))));
        assert_eq!(content(message(2, b"x", false), false), Some((2, Bytes::from_static(b"x"))));
        for bad in ["", "0*", "!eA=="] {
            assert_eq!(content(Message::text(bad), true), None, "{bad}");
        }
    }
}
