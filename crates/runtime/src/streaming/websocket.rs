//! Kubernetes' remote command protocol over WebSocket: `v4.channel.k8s.io` and `v5.channel.k8s.io` (KEP-4006).
//!
//! Each binary message starts with a channel: 0 stdin, 1 stdout, 2 stderr, 3 error (a `metav1.Status` at the
//! end), 4 terminal size. In v5 a message `[255, channel]` closes a channel.

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::Full;
use serde::Deserialize;
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::unix::pipe,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use super::session::{End, Session};
use crate::{error::RuntimeError, state::Runtime};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;
/// Bytes of output per message.
const CHUNK: usize = 32 * 1024;
/// Largest message taken.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// Subprotocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V4,
    V5,
}

impl Version {
    const fn name(self) -> &'static str {
        match self {
            Version::V4 => "v4.channel.k8s.io",
            Version::V5 => "v5.channel.k8s.io",
        }
    }
}

fn tokens(headers: &HeaderMap, name: header::HeaderName) -> impl Iterator<Item = &str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

/// The request asks for WebSocket.
pub(super) fn is_upgrade<B>(request: &Request<B>) -> bool {
    let has =
        |name, wanted: &str| tokens(request.headers(), name).any(|token| token.eq_ignore_ascii_case(wanted));
    has(header::UPGRADE, "websocket") && has(header::CONNECTION, "upgrade")
}

/// The answer to the upgrade, and the subprotocol; the error is for the client.
pub(super) fn accept<B>(request: &Request<B>) -> Result<(Response<Full<Bytes>>, Version), String> {
    let headers = request.headers();
    let key = headers.get(header::SEC_WEBSOCKET_KEY).ok_or("Sec-WebSocket-Key is missing")?;
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err("Sec-WebSocket-Version must be 13".to_owned());
    }
    let offered: Vec<&str> = tokens(headers, header::SEC_WEBSOCKET_PROTOCOL).collect();
    let version = [Version::V5, Version::V4]
        .into_iter()
        .find(|version| offered.contains(&version.name()))
        .ok_or_else(|| {
            format!("none of the subprotocols {offered:?} is supported: v5.channel.k8s.io, v4.channel.k8s.io")
        })?;
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let accept = derive_accept_key(key.as_bytes()).parse().map_err(|_| "Sec-WebSocket-Key is bad")?;
    let set = response.headers_mut();
    set.insert(header::UPGRADE, http::HeaderValue::from_static("websocket"));
    set.insert(header::CONNECTION, http::HeaderValue::from_static("Upgrade"));
    set.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    set.insert(header::SEC_WEBSOCKET_PROTOCOL, http::HeaderValue::from_static(version.name()));
    Ok((response, version))
}

#[derive(Deserialize)]
struct Size {
    #[serde(rename = "Width")]
    width: u16,
    #[serde(rename = "Height")]
    height: u16,
}

/// Pumps until the session is over, then tells how it ended and closes.
pub(super) async fn run<S>(
    stream: S,
    version: Version,
    runtime: &Runtime,
    session: Result<Session, RuntimeError>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let config =
        WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
    let status = match session {
        Ok(session) => match pump(&mut socket, version, runtime, session).await {
            Some(result) => result,
            None => return,
        },
        Err(error) => Err(error),
    };
    let _ = socket.send(message(ERROR, status_json(&status).as_bytes())).await;
    // Clients take a close without a code for a broken connection.
    let normal = CloseFrame { code: CloseCode::Normal, reason: Default::default() };
    let _ = socket.close(Some(normal)).await;
}

fn message(channel: u8, content: &[u8]) -> Message {
    let mut bytes = Vec::with_capacity(content.len() + 1);
    bytes.push(channel);
    bytes.extend_from_slice(content);
    Message::Binary(bytes.into())
}

/// How it ended, as the protocol's version 4 says it.
fn status_json(status: &Result<i32, RuntimeError>) -> String {
    match status {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(error) => json!({
            "metadata": {},
            "status": "Failure",
            "message": error.to_string(),
            "reason": "InternalError",
            "details": {"causes": [{"message": error.to_string()}]},
            "code": 500,
        }),
    }
    .to_string()
}

/// `None`: the client went away.
async fn pump<S>(
    socket: &mut WebSocketStream<S>,
    version: Version,
    runtime: &Runtime,
    session: Session,
) -> Option<Result<i32, RuntimeError>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Session { mut stdin, mut stdout, mut stderr, mut end } = session;
    let (mut out, mut err) = (vec![0; CHUNK], vec![0; CHUNK]);
    // Input the program has not taken yet; nothing more is read from the client meanwhile.
    let mut waiting = Bytes::new();
    let result = loop {
        if !end.is_exec() && stdout.is_none() && stderr.is_none() && stdin.is_none() {
            break Ok(0);
        }
        tokio::select! {
            biased;
            count = read(&mut stdout, &mut out), if stdout.is_some() => {
                if !forward(socket, STDOUT, &out, count, &mut stdout).await {
                    break gone(&mut end).await?;
                }
                if stdout.is_none() && !end.is_exec() {
                    // The container ended; its input with it.
                    stdin = None;
                }
            }
            count = read(&mut stderr, &mut err), if stderr.is_some() => {
                if !forward(socket, STDERR, &err, count, &mut stderr).await {
                    break gone(&mut end).await?;
                }
            }
            result = end.wait() => {
                // What it has left behind may keep the pipes open; only what is there now still counts.
                let ok = rest(socket, STDOUT, &mut stdout).await && rest(socket, STDERR, &mut stderr).await;
                if !ok {
                    return None;
                }
                break result;
            }
            written = write(&mut stdin, &waiting), if !waiting.is_empty() => {
                match written {
                    Some(count) => drop(waiting.split_to(count)),
                    None => {
                        waiting.clear();
                        stdin = None;
                    }
                }
            }
            received = socket.next(), if waiting.is_empty() => {
                match received {
                    Some(Ok(Message::Binary(bytes))) => match bytes.first() {
                        Some(&STDIN) if stdin.is_some() => waiting = bytes.slice(1..),
                        Some(&RESIZE) => {
                            if let Ok(size) = serde_json::from_slice::<Size>(&bytes[1..]) {
                                end.resize(runtime, size.width, size.height).await;
                            }
                        }
                        Some(&CLOSE) if version == Version::V5 && bytes.get(1) == Some(&STDIN) => stdin = None,
                        _ => {}
                    },
                    Some(Ok(Message::Close(_)) | Err(_)) | None => break gone(&mut end).await?,
                    Some(Ok(_)) => {}
                }
            }
        }
    };
    Some(result)
}

/// Always `None`, after what has to be done when the client went away.
async fn gone(end: &mut End) -> Option<Result<i32, RuntimeError>> {
    end.abandon().await;
    None
}

async fn read(pipe: &mut Option<pipe::Receiver>, buffer: &mut [u8]) -> usize {
    match pipe {
        // A terminal whose other side is closed says EIO.
        Some(pipe) => pipe.read(buffer).await.unwrap_or(0),
        None => std::future::pending().await,
    }
}

async fn write(pipe: &mut Option<pipe::Sender>, bytes: &[u8]) -> Option<usize> {
    match pipe {
        Some(pipe) => pipe.write(bytes).await.ok().filter(|count| *count > 0),
        None => None,
    }
}

/// Sends what was read; false when the client is gone. Nothing read means the end of the pipe.
async fn forward<S>(
    socket: &mut WebSocketStream<S>,
    channel: u8,
    buffer: &[u8],
    count: usize,
    pipe: &mut Option<pipe::Receiver>,
) -> bool
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if count == 0 {
        *pipe = None;
        return true;
    }
    socket.send(message(channel, &buffer[..count])).await.is_ok()
}

async fn rest<S>(socket: &mut WebSocketStream<S>, channel: u8, pipe: &mut Option<pipe::Receiver>) -> bool
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Some(pipe) = pipe else { return true };
    let mut buffer = vec![0; CHUNK];
    while let Ok(count @ 1..) = rustix::io::read(&*pipe, &mut buffer) {
        if socket.send(message(channel, &buffer[..count])).await.is_err() {
            return false;
        }
    }
    true
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
        assert!(is_upgrade(&request("x")));
        let (response, version) = accept(&request("v4.channel.k8s.io, v5.channel.k8s.io")).unwrap();
        assert_eq!(version, Version::V5);
        assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(accept(&request("v4.channel.k8s.io")).unwrap().1, Version::V4);
        assert!(accept(&request("channel.k8s.io")).is_err());
    }

    #[test]
    fn exit_codes_are_told_as_causes() {
        let status: serde_json::Value = serde_json::from_str(&status_json(&Ok(42))).unwrap();
        assert_eq!(status["details"]["causes"][0], json!({"reason": "ExitCode", "message": "42"}));
        assert_eq!(status["reason"], "NonZeroExitCode");
    }
}
