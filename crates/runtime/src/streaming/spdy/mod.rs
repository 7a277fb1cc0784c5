//! SPDY/3.1, the server's side: what clients before kubectl 1.31, and tunnels of newer ones, stream over.
//!
//! A [`Connection`] takes frames apart and puts them together; whoever drives it calls [`Connection::next`] and so
//! decides how much is read. In memory are at most one read of [`READ`] bytes, one control frame, and [`MAX_OUT`]
//! bytes that the client has not taken.
//!
//! Flow control: most clients of Kubernetes (Go's spdystream) neither keep nor give windows, so a window counts only
//! for a client that has spoken of one (SETTINGS or WINDOW_UPDATE). The others are held back by TCP alone.

mod frame;
mod headers;

use std::collections::HashMap;
use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

use frame::{Frame, Parser};

/// Bytes read at a time.
const READ: usize = 32 * 1024;
/// Bytes that may wait for the client before nothing more is read from it.
const MAX_OUT: usize = 128 * 1024;
/// Streams open at the same time.
const MAX_STREAMS: usize = 512;
/// The window of a client that says none.
const WINDOW: i64 = 64 * 1024;

/// Reasons of a reset.
const PROTOCOL_ERROR: u32 = 1;
const REFUSED_STREAM: u32 = 3;
const CANCEL: u32 = 5;

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub(super) enum SpdyError {
    #[error("SPDY: {0}")]
    Broken(&'static str),
    #[error("SPDY: {0} is too large")]
    TooLarge(&'static str),
    #[error("SPDY: {0}")]
    Io(#[from] io::Error),
}

/// What the client did.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Opened a stream; it waits for [`Connection::reply`].
    Opened { id: u32, headers: Vec<(String, String)> },
    /// Sent on a stream; `fin`: it will not send more.
    Data { id: u32, bytes: Bytes, fin: bool },
    /// Gave a stream up.
    Reset { id: u32 },
    /// Took what waited, or made room for more to be sent.
    Room,
}

#[derive(Debug)]
struct Open {
    /// What may still be sent.
    window: i64,
    /// The client may still send.
    receiving: bool,
    /// We may still send.
    sending: bool,
}

/// A client's connection.
pub(super) struct Connection<S> {
    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
    input: BytesMut,
    output: BytesMut,
    parser: Parser,
    blocks: headers::Reader,
    answers: headers::Writer,
    streams: HashMap<u32, Open>,
    last: u32,
    /// The client speaks of windows.
    windowed: bool,
    initial: i64,
    /// What may still be sent on all streams together.
    window: i64,
    gone: bool,
}

impl<S: AsyncRead + AsyncWrite> Connection<S> {
    pub(super) fn new(io: S) -> Connection<S> {
        let (reader, writer) = tokio::io::split(io);
        Connection {
            reader,
            writer,
            input: BytesMut::with_capacity(READ),
            output: BytesMut::new(),
            parser: Parser::default(),
            blocks: headers::Reader::new(),
            answers: headers::Writer::new(),
            streams: HashMap::new(),
            last: 0,
            windowed: false,
            initial: WINDOW,
            window: WINDOW,
            gone: false,
        }
    }

    /// What the client does next; `None` when it is gone. Sends what waits meanwhile. May be dropped at any point
    /// and called again. With `reading` false nothing is read: the client is held back.
    pub(super) async fn next(&mut self, reading: bool) -> Result<Option<Event>, SpdyError> {
        loop {
            if reading {
                while let Some(frame) = self.parser.next(&mut self.input)? {
                    if let Some(event) = self.take(frame)? {
                        return Ok(Some(event));
                    }
                }
                if self.gone {
                    return Ok(None);
                }
            }
            // a client that does not take its answers is not read either
            let reading = reading && self.output.len() < MAX_OUT;
            self.input.reserve(if reading { READ } else { 0 });
            tokio::select! {
                count = self.reader.read_buf(&mut self.input), if reading => {
                    if count? == 0 {
                        return Ok(None);
                    }
                }
                count = self.writer.write_buf(&mut self.output), if !self.output.is_empty() => {
                    count?;
                    if self.output.is_empty() {
                        self.writer.flush().await?;
                        return Ok(Some(Event::Room));
                    }
                }
                () = std::future::pending() => {}
            }
        }
    }

    fn take(&mut self, frame: Frame) -> Result<Option<Event>, SpdyError> {
        match frame {
            Frame::SynStream { id, fin, block } => {
                let headers = self.blocks.read(&block)?;
                if id % 2 == 0 || id <= self.last {
                    return Err(SpdyError::Broken("a stream's number is even or not above the last"));
                }
                self.last = id;
                if self.streams.len() >= MAX_STREAMS {
                    frame::put_reset(&mut self.output, id, REFUSED_STREAM);
                    return Ok(None);
                }
                self.streams.insert(id, Open { window: self.initial, receiving: !fin, sending: true });
                return Ok(Some(Event::Opened { id, headers }));
            }
            Frame::Block(block) => drop(self.blocks.read(&block)?),
            Frame::Data { id, bytes, fin } => {
                if self.windowed && !bytes.is_empty() {
                    // a read is far below what a window can be
                    let delta = bytes.len() as u32;
                    frame::put_window_update(&mut self.output, 0, delta);
                    if !fin {
                        frame::put_window_update(&mut self.output, id, delta);
                    }
                }
                match self.streams.get_mut(&id) {
                    Some(open) if open.receiving => {
                        open.receiving = !fin;
                        self.forget(id);
                        return Ok(Some(Event::Data { id, bytes, fin }));
                    }
                    // what was on its way when the stream was closed
                    _ if id <= self.last => {}
                    _ => frame::put_reset(&mut self.output, id, PROTOCOL_ERROR),
                }
            }
            Frame::Reset { id } => {
                if self.streams.remove(&id).is_some() {
                    return Ok(Some(Event::Reset { id }));
                }
            }
            Frame::Settings { window } => {
                self.windowed = true;
                if let Some(window) = window {
                    let change = i64::from(window) - self.initial;
                    self.initial = i64::from(window);
                    self.streams.values_mut().for_each(|open| open.window += change);
                    return Ok(Some(Event::Room));
                }
            }
            Frame::Ping { id } if id % 2 == 1 => frame::put_ping(&mut self.output, id),
            Frame::WindowUpdate { id, delta } => {
                self.windowed = true;
                let window = match id {
                    0 => Some(&mut self.window),
                    id => self.streams.get_mut(&id).map(|open| &mut open.window),
                };
                if let Some(window) = window {
                    *window += i64::from(delta);
                    if *window > i64::from(i32::MAX) {
                        return Err(SpdyError::TooLarge("a window"));
                    }
                    return Ok(Some(Event::Room));
                }
            }
            Frame::GoAway => self.gone = true,
            Frame::Ping { .. } | Frame::Unknown => {}
        }
        Ok(None)
    }

    /// Accepts a stream.
    pub(super) fn reply(&mut self, id: u32) {
        let block = self.answers.write(&[]);
        frame::put_syn_reply(&mut self.output, id, &block);
    }

    /// Whether the client keeps windows: then it has to be read for more to be sent.
    pub(super) fn windowed(&self) -> bool {
        self.windowed
    }

    /// How many bytes may be sent on a stream now: what client and memory allow.
    pub(super) fn room(&self, id: u32) -> usize {
        let own = MAX_OUT.saturating_sub(self.output.len());
        match self.streams.get(&id) {
            Some(open) if self.windowed => {
                own.min(usize::try_from(open.window.min(self.window)).unwrap_or(0))
            }
            _ => own,
        }
    }

    /// Sends on a stream, no more than its [`Self::room`]; `fin` ends it. What goes to a closed stream is dropped.
    pub(super) fn send(&mut self, id: u32, bytes: &[u8], fin: bool) {
        let Some(open) = self.streams.get_mut(&id).filter(|open| open.sending) else { return };
        // a read is far below what a window can be
        let count = bytes.len() as i64;
        open.window -= count;
        self.window -= count;
        open.sending = !fin;
        frame::put_data(&mut self.output, id, bytes, fin);
        self.forget(id);
    }

    /// Whether the client still takes what is sent on a stream.
    pub(super) fn takes(&self, id: u32) -> bool {
        self.streams.get(&id).is_some_and(|open| open.sending)
    }

    /// Ends a stream at once, both ways.
    pub(super) fn reset(&mut self, id: u32) {
        if self.streams.remove(&id).is_some() {
            frame::put_reset(&mut self.output, id, CANCEL);
        }
    }

    fn forget(&mut self, id: u32) {
        if self.streams.get(&id).is_some_and(|open| !open.receiving && !open.sending) {
            self.streams.remove(&id);
        }
    }

    /// Waits until everything was written.
    pub(super) async fn flush(&mut self) -> Result<(), SpdyError> {
        while !self.output.is_empty() {
            self.writer.write_buf(&mut self.output).await?;
        }
        Ok(self.writer.flush().await?)
    }

    /// Says goodbye, writes what waits and waits a little for the client to close, so that nothing is lost.
    pub(super) async fn close(mut self) {
        const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);
        frame::put_go_away(&mut self.output, self.last);
        let ended = async {
            self.flush().await?;
            self.writer.shutdown().await?;
            loop {
                self.input.clear();
                self.input.reserve(READ);
                if self.reader.read_buf(&mut self.input).await? == 0 {
                    return Ok::<(), SpdyError>(());
                }
            }
        };
        // the client may have closed first
        let _ = tokio::time::timeout(PATIENCE, ended).await;
    }
}

#[cfg(test)]
mod tests;
