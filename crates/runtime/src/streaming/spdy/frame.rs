//! Frames: what stands on the wire (SPDY/3.1 §2.2).

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::SpdyError;

/// The protocol's version in control frames.
const VERSION: u16 = 3;
/// Longest control frame; the longest have a header block.
const MAX_CONTROL: usize = 32 * 1024;
/// The last of a stream's frames in its direction.
pub(super) const FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;
/// The setting that says how much may be sent on a stream before it is read.
const INITIAL_WINDOW: u32 = 7;

/// What came; data comes as it arrives, not by whole frames.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    SynStream {
        id: u32,
        fin: bool,
        block: Bytes,
    },
    /// A reply or more headers: of no use to a server, but part of the compression.
    Block(Bytes),
    Data {
        id: u32,
        bytes: Bytes,
        fin: bool,
    },
    Reset {
        id: u32,
    },
    /// The initial window, where it says one.
    Settings {
        window: Option<u32>,
    },
    Ping {
        id: u32,
    },
    GoAway,
    WindowUpdate {
        id: u32,
        delta: u32,
    },
    Unknown,
}

/// Takes frames apart.
#[derive(Debug, Default)]
pub(super) struct Parser {
    /// The data frame that is on its way: stream, bytes still to come, whether it is the last.
    data: Option<(u32, usize, bool)>,
}

impl Parser {
    /// The next frame; `None`: more bytes are needed.
    pub(super) fn next(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, SpdyError> {
        if let Some((id, left, fin)) = self.data {
            if input.is_empty() {
                return Ok(None);
            }
            let bytes = input.split_to(left.min(input.len())).freeze();
            let left = left - bytes.len();
            self.data = (left > 0).then_some((id, left, fin));
            return Ok(Some(Frame::Data { id, bytes, fin: fin && left == 0 }));
        }
        let Some(head) = input.first_chunk::<8>() else { return Ok(None) };
        let [a, b, c, d, flags, rest @ ..] = *head;
        let length = rest.iter().fold(0_usize, |all, byte| all << 8 | usize::from(*byte));
        let first = u32::from_be_bytes([a, b, c, d]);
        if first >> 31 == 0 {
            input.advance(8);
            let fin = flags & FIN != 0;
            if length == 0 {
                return Ok(Some(Frame::Data { id: first, bytes: Bytes::new(), fin }));
            }
            self.data = Some((first, length, fin));
            return self.next(input);
        }
        if length > MAX_CONTROL {
            return Err(SpdyError::TooLarge("a control frame"));
        }
        if input.len() < 8 + length {
            return Ok(None);
        }
        input.advance(8);
        let body = input.split_to(length).freeze();
        if (first >> 16) as u16 & 0x7fff != VERSION {
            return Err(SpdyError::Broken("a frame of another version"));
        }
        control(first as u16, flags, body).map(Some)
    }
}

fn control(kind: u16, flags: u8, mut body: Bytes) -> Result<Frame, SpdyError> {
    let number =
        |body: &mut Bytes| body.try_get_u32().map_err(|_| SpdyError::Broken("a control frame ends early"));
    const ID: u32 = 0x7fff_ffff;
    Ok(match kind {
        SYN_STREAM => {
            let id = number(&mut body)? & ID;
            let _associated = number(&mut body)?;
            let _priority_and_slot =
                body.try_get_u16().map_err(|_| SpdyError::Broken("a control frame ends early"))?;
            Frame::SynStream { id, fin: flags & FIN != 0, block: body }
        }
        SYN_REPLY | HEADERS => {
            let _id = number(&mut body)?;
            Frame::Block(body)
        }
        RST_STREAM => Frame::Reset { id: number(&mut body)? & ID },
        SETTINGS => {
            let (count, mut window) = (number(&mut body)?, None);
            for _ in 0..count {
                let (id, value) = (number(&mut body)? & 0x00ff_ffff, number(&mut body)?);
                if id == INITIAL_WINDOW {
                    window = Some(value & ID);
                }
            }
            Frame::Settings { window }
        }
        PING => Frame::Ping { id: number(&mut body)? },
        GOAWAY => Frame::GoAway,
        WINDOW_UPDATE => Frame::WindowUpdate { id: number(&mut body)? & ID, delta: number(&mut body)? & ID },
        // what a later version may add is passed over
        _ => Frame::Unknown,
    })
}

fn put_control(out: &mut BytesMut, kind: u16, flags: u8, parts: &[u32], block: &[u8]) {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    out.put_u8(flags);
    out.put_uint((parts.len() * 4 + block.len()) as u64, 3);
    for part in parts {
        out.put_u32(*part);
    }
    out.put_slice(block);
}

/// Opens a stream: what clients do; here for tests.
#[cfg(test)]
pub(super) fn put_syn_stream(out: &mut BytesMut, id: u32, block: &[u8]) {
    let body = [&[0, 0], block].concat();
    put_control(out, SYN_STREAM, 0, &[id, 0], &body);
}

pub(super) fn put_syn_reply(out: &mut BytesMut, id: u32, block: &[u8]) {
    put_control(out, SYN_REPLY, 0, &[id], block);
}

pub(super) fn put_reset(out: &mut BytesMut, id: u32, status: u32) {
    put_control(out, RST_STREAM, 0, &[id, status], &[]);
}

pub(super) fn put_ping(out: &mut BytesMut, id: u32) {
    put_control(out, PING, 0, &[id], &[]);
}

pub(super) fn put_go_away(out: &mut BytesMut, last: u32) {
    put_control(out, GOAWAY, 0, &[last, 0], &[]);
}

pub(super) fn put_window_update(out: &mut BytesMut, id: u32, delta: u32) {
    put_control(out, WINDOW_UPDATE, 0, &[id, delta], &[]);
}

pub(super) fn put_data(out: &mut BytesMut, id: u32, bytes: &[u8], fin: bool) {
    out.put_u32(id);
    out.put_u8(if fin { FIN } else { 0 });
    out.put_uint(bytes.len() as u64, 3);
    out.put_slice(bytes);
}
