//! Exec and attach, whatever they are framed in: bytes are pumped between a [`Session`] and a [`Wire`] until the
//! program, the container's output or the client ends; then the result is told.

use std::collections::VecDeque;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;

use super::session::{End, Session};
use crate::{error::RuntimeError, exec::capacity};

/// Bytes of output per message.
const CHUNK: usize = 32 * 1024;
/// Input that may wait for the program; then nothing more is taken from the client.
const WAITING: usize = 256 * 1024;

/// What goes to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    Stdout,
    Stderr,
}

/// What the client does.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    Input(Bytes),
    EndOfInput,
    Resize(Size),
}

/// A terminal's size, as clients send it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) struct Size {
    #[serde(rename = "Width")]
    pub(super) width: u16,
    #[serde(rename = "Height")]
    pub(super) height: u16,
}

/// How a session is framed.
pub(super) trait Wire: Send {
    /// Sends output; false when the client is gone.
    fn send(&mut self, output: Output, bytes: &[u8]) -> impl Future<Output = bool> + Send;
    /// What comes next; `None` when the client is gone. May be dropped at any point and called again.
    fn receive(&mut self) -> impl Future<Output = Option<Received>> + Send;
    /// Tells how it ended, and closes.
    fn finish(self, result: &Result<i32, RuntimeError>) -> impl Future<Output = ()> + Send;
}

/// Pumps until the session is over, then tells how it ended and closes.
pub(super) async fn run<W: Wire>(mut wire: W, session: Result<Session, RuntimeError>) {
    let result = match session {
        Ok(session) => match pump(&mut wire, session).await {
            Some(result) => result,
            None => return,
        },
        Err(error) => Err(error),
    };
    wire.finish(&result).await;
}

/// How it ended, as the protocols' version 4 says it.
pub(super) fn status_json(status: &Result<i32, RuntimeError>) -> String {
    match status {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {},
            "status": "Failure",
            "message": exit_text(*code),
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

/// How it ended, as the versions before 4 say it: nothing, or a text.
pub(super) fn status_text(status: &Result<i32, RuntimeError>) -> String {
    match status {
        Ok(0) => String::new(),
        Ok(code) => exit_text(*code),
        Err(error) => error.to_string(),
    }
}

fn exit_text(code: i32) -> String {
    format!("command terminated with non-zero exit code: exit status {code}")
}

/// Input on its way to the program.
#[derive(Default)]
struct Waiting {
    pieces: VecDeque<Bytes>,
    length: usize,
    /// Nothing follows.
    ended: bool,
}

impl Waiting {
    fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.length += piece.len();
            self.pieces.push_back(piece);
        }
    }

    fn taken(&mut self, count: usize) {
        self.length -= count;
        if let Some(first) = self.pieces.front_mut() {
            drop(first.split_to(count));
            if first.is_empty() {
                self.pieces.pop_front();
            }
        }
    }
}

/// `None`: the client went away.
async fn pump<W: Wire>(wire: &mut W, session: Session) -> Option<Result<i32, RuntimeError>> {
    let Session { mut stdin, mut stdout, mut stderr, mut end } = session;
    let (mut out, mut err) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut waiting = Waiting::default();
    let result = loop {
        if waiting.ended && waiting.pieces.is_empty() {
            stdin = None;
        }
        if !end.is_exec() && stdout.is_none() && stderr.is_none() && stdin.is_none() {
            break Ok(0);
        }
        // In no order: output without end must not keep Ctrl-C from being heard.
        tokio::select! {
            count = read(&mut stdout, &mut out), if stdout.is_some() => {
                if !forward(wire, Output::Stdout, &out, count, &mut stdout).await {
                    return gone(&mut end).await;
                }
                if stdout.is_none() && !end.is_exec() {
                    // The container ended; its input with it.
                    stdin = None;
                }
            }
            count = read(&mut stderr, &mut err), if stderr.is_some() => {
                if !forward(wire, Output::Stderr, &err, count, &mut stderr).await {
                    return gone(&mut end).await;
                }
            }
            result = end.wait() => {
                // What it has left behind may keep the pipes open; only what is there now still counts.
                let ok = rest(wire, Output::Stdout, &mut stdout).await
                    && rest(wire, Output::Stderr, &mut stderr).await;
                if !ok {
                    return None;
                }
                break result;
            }
            written = write(&mut stdin, waiting.pieces.front()), if stdin.is_some() && waiting.length > 0 => {
                match written {
                    Some(count) => waiting.taken(count),
                    // the program has closed its input
                    None => stdin = None,
                }
            }
            received = wire.receive(), if waiting.length < WAITING || stdin.is_none() => {
                match received {
                    Some(Received::Input(bytes)) if stdin.is_some() && !waiting.ended => waiting.push(bytes),
                    Some(Received::Input(_)) => {}
                    Some(Received::EndOfInput) => waiting.ended = true,
                    Some(Received::Resize(size)) => end.resize(size.width, size.height).await,
                    None => return gone(&mut end).await,
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

async fn write(pipe: &mut Option<pipe::Sender>, bytes: Option<&Bytes>) -> Option<usize> {
    match (pipe, bytes) {
        (Some(pipe), Some(bytes)) => pipe.write(bytes).await.ok().filter(|count| *count > 0),
        _ => None,
    }
}

/// Sends what was read; false when the client is gone. Nothing read means the end of the pipe.
async fn forward<W: Wire>(
    wire: &mut W,
    output: Output,
    buffer: &[u8],
    count: usize,
    pipe: &mut Option<pipe::Receiver>,
) -> bool {
    if count == 0 {
        *pipe = None;
        return true;
    }
    wire.send(output, &buffer[..count]).await
}

async fn rest<W: Wire>(wire: &mut W, output: Output, pipe: &mut Option<pipe::Receiver>) -> bool {
    let Some(pipe) = pipe else { return true };
    let (mut buffer, mut left) = (vec![0; CHUNK], capacity(&*pipe));
    while left > 0
        && let Ok(count @ 1..) = rustix::io::read(&*pipe, &mut buffer)
    {
        if !wire.send(output, &buffer[..count]).await {
            return false;
        }
        left = left.saturating_sub(count);
    }
    true
}

#[cfg(test)]
mod tests {
    use std::{os::fd::OwnedFd, time::Duration};

    use super::*;
    use crate::exec::{reading_pipe, writing_pipe};

    /// A client that takes output only when there is more of it, and whose input comes from a pipe.
    struct Slow {
        output: OwnedFd,
        input: pipe::Receiver,
    }

    impl Wire for Slow {
        async fn send(&mut self, _: Output, _: &[u8]) -> bool {
            // writes until the pipe is full: there always is something to read
            while rustix::io::write(&self.output, &[b'y'; 4096]).is_ok() {}
            true
        }

        async fn receive(&mut self) -> Option<Received> {
            let mut bytes = [0; 16];
            let count = self.input.read(&mut bytes).await.ok()?;
            Some(Received::Input(Bytes::copy_from_slice(&bytes[..count])))
        }

        async fn finish(self, _: &Result<i32, RuntimeError>) {}
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn input_is_heard_while_there_is_output_without_end() {
        let (stdout, output) = reading_pipe().unwrap();
        let flags = rustix::fs::fcntl_getfl(&output).unwrap();
        rustix::fs::fcntl_setfl(&output, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
        let (input, typed) = reading_pipe().unwrap();
        let (heard, stdin) = writing_pipe().unwrap();
        rustix::io::write(&output, b"y").unwrap();
        rustix::io::write(&typed, b"\x03").unwrap();
        let mut wire = Slow { output, input };
        let end = End::Attach { container: String::new(), shim: Default::default() };
        let session = Session { stdin: Some(stdin), stdout: Some(stdout), stderr: None, end };
        let mut heard = pipe::Receiver::from_owned_fd(heard).unwrap();
        let mut byte = [0; 1];
        let both = async {
            tokio::select! {
                _ = pump(&mut wire, session) => panic!("nothing has ended"),
                read = heard.read_exact(&mut byte) => read.map(drop).unwrap(),
            }
        };
        tokio::time::timeout(Duration::from_secs(20) * testkit::slowness(), both).await.unwrap();
        assert_eq!(byte, [3]);
    }

    #[tokio::test]
    async fn what_a_command_left_behind_is_not_forwarded_to_its_end() {
        let (stdout, output) = reading_pipe().unwrap();
        let flags = rustix::fs::fcntl_getfl(&output).unwrap();
        rustix::fs::fcntl_setfl(&output, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
        rustix::io::write(&output, b"y").unwrap();
        let (input, _typed) = reading_pipe().unwrap();
        let mut wire = Slow { output, input };
        assert!(rest(&mut wire, Output::Stdout, &mut Some(stdout)).await);
    }

    #[test]
    fn exit_codes_are_told_as_causes() {
        let status: serde_json::Value = serde_json::from_str(&status_json(&Ok(42))).unwrap();
        assert_eq!(status["details"]["causes"][0], json!({"reason": "ExitCode", "message": "42"}));
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status_text(&Ok(42)), "command terminated with non-zero exit code: exit status 42");
        assert_eq!(status_text(&Ok(0)), "");
    }
}
