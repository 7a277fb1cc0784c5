//! Why a registry did not give, or take, what was asked for.

use std::io;

/// Why a request to a registry failed. The text names the registry.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegistryError {
    /// The settings file is wrong.
    #[error("registry settings: {0}")]
    Settings(String),
    /// There is no such repository, tag or content.
    #[error("{host}: not found{detail}")]
    NotFound {
        /// The registry.
        host: String,
        /// `: ` and what it said, or nothing.
        detail: String,
    },
    /// It wants (other) credentials.
    #[error("{host}: not authorized: {detail}")]
    Denied {
        /// The registry.
        host: String,
        /// What it said.
        detail: String,
    },
    /// No connection.
    #[error("{host}: cannot connect: {why}")]
    Unreachable {
        /// The registry.
        host: String,
        /// Why.
        why: String,
    },
    /// The connection broke.
    #[error("{host}: {why}")]
    Broken {
        /// The registry.
        host: String,
        /// How.
        why: String,
    },
    /// It sends nothing.
    #[error("{host}: sent nothing for {seconds} s")]
    Stalled {
        /// The registry.
        host: String,
        /// For how long.
        seconds: f32,
    },
    /// It refuses for now, or failed itself.
    #[error("{host}: unexpected status {status}{detail}")]
    Status {
        /// The registry.
        host: String,
        /// HTTP status.
        status: http::StatusCode,
        /// `: ` and what it said, or nothing.
        detail: String,
        /// Seconds it asks to wait.
        retry_after: Option<u64>,
    },
    /// What it sent is not what it should be.
    #[error("{host}: {why}")]
    Invalid {
        /// The registry.
        host: String,
        /// What is wrong.
        why: String,
    },
    /// The node's disk.
    #[error("{1}")]
    Disk(io::ErrorKind, String),
    /// Each of several places failed.
    #[error("{}", joined(.0))]
    Several(Vec<RegistryError>),
}

fn joined(all: &[RegistryError]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl RegistryError {
    pub(super) fn invalid(host: &str, why: impl Into<String>) -> RegistryError {
        RegistryError::Invalid { host: host.to_owned(), why: why.into() }
    }

    pub(super) fn broken(host: &str, why: impl Into<String>) -> RegistryError {
        RegistryError::Broken { host: host.to_owned(), why: why.into() }
    }

    /// What several places said; the last one is the registry itself.
    pub(crate) fn of_all(mut all: Vec<RegistryError>) -> RegistryError {
        match all.len() {
            0 => RegistryError::Settings("there is no place to ask".to_owned()),
            1 => all.remove(0),
            _ => RegistryError::Several(all),
        }
    }

    /// The error that decides what kind of failure it is: the registry's own.
    pub(crate) fn deciding(&self) -> &RegistryError {
        match self {
            RegistryError::Several(all) => all.last().map_or(self, RegistryError::deciding),
            other => other,
        }
    }

    /// Whether the same request may succeed a moment later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            RegistryError::Unreachable { .. }
            | RegistryError::Broken { .. }
            | RegistryError::Stalled { .. } => true,
            RegistryError::Status { status, .. } => {
                status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429)
            }
            _ => false,
        }
    }

    /// Seconds that the registry asks to wait.
    pub(super) fn retry_after(&self) -> Option<u64> {
        match self {
            RegistryError::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl From<io::Error> for RegistryError {
    fn from(error: io::Error) -> RegistryError {
        RegistryError::Disk(error.kind(), error.to_string())
    }
}
