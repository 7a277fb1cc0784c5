//! The wire form of protobuf: numbered fields of four kinds, without meaning.

use super::super::DecodeError;

/// The content of a field.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
}

impl Wire<'_> {
    /// The number that stands for the kind of content on the wire.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Varint(_) => 0,
            Self::Fixed64(_) => 1,
            Self::Bytes(_) => 2,
            Self::Fixed32(_) => 5,
        }
    }
}

/// Fields of one message, in the order of the bytes. After an error nothing more must be read.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

pub(super) fn malformed(why: impl Into<String>) -> DecodeError {
    DecodeError::Protobuf(why.into())
}

impl<'a> Fields<'a> {
    pub(super) fn of(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next field; groups (which no type has) are skipped.
    pub(super) fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>, DecodeError> {
        let mut open_groups = 0u32;
        while !self.rest.is_empty() {
            let key = self.varint()?;
            let number = u32::try_from(key >> 3).ok().filter(|n| *n > 0 && *n < 1 << 29);
            let number = number.ok_or_else(|| malformed(format!("proto: illegal tag {}", key >> 3)))?;
            let wire = match key & 7 {
                0 => Wire::Varint(self.varint()?),
                1 => Wire::Fixed64(u64::from_le_bytes(self.array()?)),
                2 => Wire::Bytes(self.chunk()?),
                5 => Wire::Fixed32(u32::from_le_bytes(self.array()?)),
                3 => {
                    open_groups += 1;
                    continue;
                }
                4 if open_groups > 0 => {
                    open_groups -= 1;
                    continue;
                }
                4 => return Err(malformed("proto: wiretype end group for non-group")),
                other => return Err(malformed(format!("proto: illegal wireType {other}"))),
            };
            if open_groups == 0 {
                return Ok(Some((number, wire)));
            }
        }
        if open_groups > 0 { Err(cut()) } else { Ok(None) }
    }

    /// The next number of a packed list.
    pub(super) fn packed(&mut self, is_fixed: bool) -> Result<Option<Wire<'a>>, DecodeError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        Ok(Some(match is_fixed {
            true => Wire::Fixed64(u64::from_le_bytes(self.array()?)),
            false => Wire::Varint(self.varint()?),
        }))
    }

    fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for (at, byte) in self.rest.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[at + 1..];
                return Ok(value);
            }
        }
        Err(if self.rest.len() < 10 { cut() } else { malformed("proto: integer overflow") })
    }

    fn chunk(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = usize::try_from(self.varint()?).map_err(|_| cut())?;
        let (chunk, rest) = self.rest.split_at_checked(length).ok_or_else(cut)?;
        self.rest = rest;
        Ok(chunk)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (array, rest) = self.rest.split_first_chunk().ok_or_else(cut)?;
        self.rest = rest;
        Ok(*array)
    }
}

fn cut() -> DecodeError {
    malformed("unexpected EOF")
}

/// Appends a number.
pub(super) fn put_varint(out: &mut Vec<u8>, number: u32, value: u64) {
    put_raw(out, u64::from(number) << 3);
    put_raw(out, value);
}

/// Appends eight bytes.
pub(super) fn put_fixed64(out: &mut Vec<u8>, number: u32, value: u64) {
    put_raw(out, u64::from(number) << 3 | 1);
    out.extend_from_slice(&value.to_le_bytes());
}

/// Appends bytes, text or a message.
pub(super) fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_raw(out, u64::from(number) << 3 | 2);
    put_raw(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_raw(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
