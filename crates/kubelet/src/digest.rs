//! SHA-256 in hexadecimal digits, as names of files and volumes have it.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

/// Of these bytes.
pub fn sha256(bytes: impl AsRef<[u8]>) -> String {
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut text, byte| {
        // writing to a String cannot fail
        let _ = write!(text, "{byte:02x}");
        text
    })
}
