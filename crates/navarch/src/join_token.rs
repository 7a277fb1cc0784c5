//! The token by which a node joins: `K10<pin>::<id>.<secret>`.
//!
//! The pin is the SHA-256 of the cluster's authority (DER), so that the secret is told to nobody else; the rest is a bootstrap
//! token, known to the API by a Secret of `kube-system`. The form is that of k3s.

use std::path::Path;

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};

use crate::data_dir::DataDir;

const PREFIX: &str = "K10";

/// A join token. No `Debug`: it is a secret.
#[derive(Clone)]
pub struct JoinToken {
    pin: String,
    id: String,
    secret: String,
}

impl JoinToken {
    /// A new one for the authority with this DER form.
    pub fn new(authority: &[u8]) -> Self {
        let random = |len: usize| -> String {
            const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
            (0..len).map(|_| char::from(LETTERS[rand::random_range(0..LETTERS.len())])).collect()
        };
        Self { pin: pin(authority), id: random(6), secret: random(16) }
    }

    /// Reads the text form.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let parsed = || {
            let (pin, rest) = text.trim().strip_prefix(PREFIX)?.split_once("::")?;
            let (id, secret) = rest.split_once('.')?;
            let hex = pin.len() == 64 && pin.bytes().all(|b| b.is_ascii_hexdigit());
            let plain = |t: &str| t.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
            let fits = hex && id.len() == 6 && secret.len() == 16 && plain(id) && plain(secret);
            fits.then(|| Self { pin: pin.to_lowercase(), id: id.to_owned(), secret: secret.to_owned() })
        };
        parsed().context("this is no join token; `navarch token` prints it on the server")
    }

    /// The text form.
    pub fn text(&self) -> String {
        format!("{PREFIX}{}::{}", self.pin, self.bootstrap())
    }

    /// The bootstrap token in it, which the API takes as a bearer token.
    pub fn bootstrap(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }

    /// The bootstrap token's public half.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The bootstrap token's secret half.
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// Whether this is the authority that the token was made for.
    pub fn is_for(&self, authority: &[u8]) -> bool {
        pin(authority) == self.pin
    }
}

fn pin(authority: &[u8]) -> String {
    Sha256::digest(authority).iter().map(|b| format!("{b:02x}")).collect()
}

/// `navarch token`.
pub fn main(path: &Path) -> anyhow::Result<()> {
    let file = DataDir::at(path)?.map(|data| data.join_token()).filter(|file| file.exists());
    let Some(file) = file else {
        bail!(
            "there is no token in {}; a server that runs control loops makes it when it starts",
            path.display()
        );
    };
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    println!("{}", JoinToken::parse(&text)?.text());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_tells_its_cluster_from_others_and_survives_being_written() {
        let token = JoinToken::new(b"authority");
        let again = JoinToken::parse(&format!("{}\n", token.text())).unwrap();
        assert_eq!(again.bootstrap(), token.bootstrap());
        assert!(again.is_for(b"authority") && !again.is_for(b"another"));
        for text in ["", "K10", "abcdef.0123456789abcdef", "K10aa::abcdef.0123456789abcdef"] {
            assert!(JoinToken::parse(text).is_err(), "{text}");
        }
    }
}
