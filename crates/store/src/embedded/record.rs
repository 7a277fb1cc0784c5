//! One change as bytes on the disk: a checksum, a fixed head, the key, the value.
//!
//! Layout (little endian): CRC-32 of all that follows; version and kind, one byte each; key length (u16);
//! create revision, previous revision, expiry in milliseconds (u64 each); key; value. The revision is the
//! record's key in the table and goes into the checksum, so that a record found under a wrong revision is detected too.
//! redb has checksums per page, but reads past its cache don't verify them; this one is checked at every read.

use std::sync::Arc;

use bytes::Bytes;

use super::state::Change;
use crate::{EventKind, Revision};

const HEAD: usize = 4 + 1 + 1 + 2 + 3 * 8;
const VERSION: u8 = 1;

/// Bytes of a record besides its key and value (table key included).
pub(super) const OVERHEAD: usize = HEAD + 8;

/// Encodes into `out`, which is cleared first.
pub(super) fn encode(change: &Change, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&[0; 4]);
    out.push(VERSION);
    out.push(match change.kind {
        EventKind::Put => 1,
        EventKind::Delete => 2,
    });
    // Keys are limited to MAX_KEY_BYTES when they come in, well below u16.
    out.extend_from_slice(&(change.key.len() as u16).to_le_bytes());
    for number in [change.create_revision, change.previous, change.expires_at] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(change.key.as_bytes());
    if let Some(value) = &change.value {
        out.extend_from_slice(value);
    }
    let sum = checksum(change.revision, &out[4..]);
    out[..4].copy_from_slice(&sum.to_le_bytes());
}

/// Decodes the record found under `revision`; the error says what is wrong with it.
pub(super) fn decode(revision: Revision, bytes: &[u8]) -> Result<Change, String> {
    let damaged = |what: &str| format!("the record of revision {revision} {what}");
    let (Some(head), Some(sum)) = (bytes.get(..HEAD), bytes.first_chunk::<4>()) else {
        return Err(damaged("is cut short"));
    };
    if u32::from_le_bytes(*sum) != checksum(revision, &bytes[4..]) {
        return Err(damaged("does not match its checksum"));
    }
    if head[4] != VERSION {
        return Err(damaged(&format!("has the unknown format {}", head[4])));
    }
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&head[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    let key_end = HEAD + usize::from(u16::from_le_bytes([head[6], head[7]]));
    let Some(key) = bytes.get(HEAD..key_end).and_then(|key| std::str::from_utf8(key).ok()) else {
        return Err(damaged("has no readable key"));
    };
    let (kind, value) = match head[5] {
        1 => (EventKind::Put, Some(Bytes::copy_from_slice(&bytes[key_end..]))),
        2 => (EventKind::Delete, None),
        other => return Err(damaged(&format!("has the unknown kind {other}"))),
    };
    Ok(Change {
        revision,
        key: Arc::from(key),
        kind,
        create_revision: number(8),
        previous: number(16),
        expires_at: number(24),
        value,
    })
}

fn checksum(revision: Revision, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&revision.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Change, Vec<u8>) {
        let change = Change {
            revision: 7,
            key: "/registry/core/pods/default/a".into(),
            kind: EventKind::Put,
            create_revision: 3,
            previous: 5,
            expires_at: 9,
            value: Some(Bytes::from_static(b"{}")),
        };
        let mut bytes = Vec::new();
        encode(&change, &mut bytes);
        (change, bytes)
    }

    #[test]
    fn decoded_record_is_what_was_encoded() {
        let (change, bytes) = sample();
        assert_eq!(format!("{change:?}"), format!("{:?}", decode(7, &bytes).unwrap()));
    }

    #[test]
    fn every_flipped_bit_is_detected() {
        let (_, bytes) = sample();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(7, &damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn every_truncation_and_a_wrong_revision_are_detected() {
        let (_, bytes) = sample();
        for length in 0..bytes.len() {
            assert!(decode(7, &bytes[..length]).is_err(), "length {length}");
        }
        assert!(decode(8, &bytes).is_err());
    }
}
