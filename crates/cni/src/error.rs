//! Errors as the protocol carries them.

use serde::{Deserialize, Serialize};

/// What a plugin answers when it fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{msg}{}{details}", if .details.is_empty() { "" } else { ": " })]
pub struct CniError {
    /// One of [`code`], or the plugin's own from 100 on.
    pub code: u32,
    /// What failed.
    pub msg: String,
    /// More of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl CniError {
    /// An error without details.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// An error with the whole chain of causes as its details.
    pub fn caused(code: u32, error: &dyn std::error::Error) -> Self {
        let mut details = String::new();
        let mut cause = error.source();
        while let Some(next) = cause {
            if !details.is_empty() {
                details.push_str(": ");
            }
            details.push_str(&next.to_string());
            cause = next.source();
        }
        Self { code, msg: error.to_string(), details }
    }
}

/// The codes of the specification, section "Error", and those that its library uses beside them.
pub mod code {
    /// The configuration's version is not spoken.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// A field of the configuration has a value that is not supported.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// The container is unknown or gone; the runtime need not clean up.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// An environment variable is missing or wrong.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Reading or writing failed.
    pub const IO_FAILURE: u32 = 5;
    /// What came on standard input is no JSON of the right form.
    pub const DECODING_FAILURE: u32 = 6;
    /// The configuration cannot be used.
    pub const INVALID_CONFIG: u32 = 7;
    /// Passing; the runtime should try again.
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// STATUS: no ADD can succeed.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: no ADD can succeed, and containers may have lost their connection.
    pub const LIMITED_CONNECTIVITY: u32 = 51;
    /// Everything else.
    pub const INTERNAL: u32 = 999;
}
