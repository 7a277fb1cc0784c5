//! Image registries over HTTPS: what the OCI distribution specification and Docker's registry API v2 say, with
//! mirrors, credentials and authorities from a file in the form of k3s's `registries.yaml` ([`settings`]).
//!
//! A [`Session`] lives as long as one pull or push: connections, tokens and credentials are never shared between
//! two callers. What a registry says is hostile input: sizes, digests, redirects, endless and stalling bodies are
//! bounded here ([`download`], [`session`]), documents in [`manifest`].
//!
//! Rejected: a client crate. Those at hand hold whole layers in memory or bring a second HTTP and TLS stack.

mod challenge;
mod connect;
mod download;
mod error;
mod manifest;
mod proxy;
mod session;
pub mod settings;
mod trust;
mod upload;

pub(crate) use download::{Intake, fetch};
pub use error::RegistryError;
pub(crate) use manifest::{Resolved, head, resolve};
pub(crate) use session::{Endpoint, Session};
pub(crate) use settings::is_meant;
pub(crate) use upload::push_blob;
pub(crate) use upload::push_manifest;

use std::{fmt, path::PathBuf, time::Duration};

/// How registries are reached.
#[derive(Debug, Clone)]
pub struct Access {
    /// The settings file; it need not exist. Read again by every pull and push.
    pub settings: PathBuf,
    /// A registry that sends nothing for so long has broken off.
    pub idle: Duration,
    /// First wait before a broken transfer goes on; doubles up to a hundred times of it.
    pub retry: Duration,
}

impl Default for Access {
    fn default() -> Self {
        Access {
            settings: PathBuf::from("/etc/navarch/registries.yaml"),
            idle: Duration::from_secs(60),
            retry: Duration::from_millis(200),
        }
    }
}

/// Who asks. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// User name and password.
    Basic {
        /// User name.
        username: String,
        /// Password.
        password: String,
    },
    /// A refresh token, exchanged at the registry's token service.
    Identity(String),
    /// A bearer token, sent as it is.
    Bearer(String),
}

impl Credentials {
    /// From the parts that the CRI, docker's configuration and `registries.yaml` know; `auth` is
    /// base64 of `user:password`. `None` when there is nothing in them.
    ///
    /// # Errors
    /// What is wrong with `auth`, without its content.
    pub fn from_parts(
        username: &str,
        password: &str,
        auth: &str,
        identity_token: &str,
        registry_token: &str,
    ) -> Result<Option<Credentials>, &'static str> {
        use base64::Engine;
        if !username.is_empty() {
            let (username, password) = (username.to_owned(), password.to_owned());
            return Ok(Some(Credentials::Basic { username, password }));
        }
        if !identity_token.is_empty() {
            return Ok(Some(Credentials::Identity(identity_token.to_owned())));
        }
        if !auth.is_empty() {
            let bytes =
                base64::engine::general_purpose::STANDARD.decode(auth.trim()).map_err(|_| "not base64")?;
            let text = String::from_utf8(bytes).map_err(|_| "not UTF-8")?;
            let (username, password) = text.split_once(':').ok_or("without a colon")?;
            // Docker pads passwords with zero bytes
            let (username, password) = (username.to_owned(), password.trim_matches('\0').to_owned());
            return Ok(Some(Credentials::Basic { username, password }));
        }
        if !registry_token.is_empty() {
            return Ok(Some(Credentials::Bearer(registry_token.to_owned())));
        }
        Ok(None)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Credentials(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_come_in_several_forms_and_are_never_shown() {
        let basic = |u: &str, p: &str| Credentials::Basic { username: u.into(), password: p.into() };
        assert_eq!(Credentials::from_parts("", "", "", "", ""), Ok(None));
        assert_eq!(Credentials::from_parts("u", "p", "", "", ""), Ok(Some(basic("u", "p"))));
        // base64 of `me:a:b` and two zero bytes
        assert_eq!(Credentials::from_parts("", "", "bWU6YTpiAAA=", "", ""), Ok(Some(basic("me", "a:b"))));
        assert_eq!(Credentials::from_parts("", "", "bWU=", "", ""), Err("without a colon"));
        assert!(!format!("{:?}", basic("user", "hidden")).contains("hidden"));
    }
}
