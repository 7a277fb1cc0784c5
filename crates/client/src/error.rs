//! What can go wrong between a client and the API server.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;

/// The request did not reach the server, or its answer did not come back.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// No connection.
    #[error("cannot reach the API server at {server}")]
    Connect {
        /// Host and port.
        server: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The connection broke while the request was under way.
    #[error("the connection to the API server broke")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The server in this process is shutting down.
    #[error("the API server is shutting down")]
    Closed,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request did not get through.
    #[error("request failed")]
    Transport(#[from] TransportError),
    /// The server refused, with its `Status`.
    #[error("{}", message(.0))]
    Api(Box<Status>),
    /// The answer is not what the client expected.
    #[error("unexpected answer to {what}")]
    Decode {
        /// The request's method and path.
        what: String,
        /// Where it does not fit.
        #[source]
        source: serde_json::Error,
    },
    /// The request cannot be expressed.
    #[error("invalid request")]
    Request(#[from] http::Error),
}

fn message(status: &Status) -> String {
    status.message.clone().unwrap_or_else(|| format!("status {}", status.code.unwrap_or_default()))
}

impl Error {
    /// The server's `Status`, where it answered.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Error::Api(status) => Some(status),
            _ => None,
        }
    }

    fn has(&self, code: i32, reason: &str) -> bool {
        self.status().is_some_and(|s| match s.reason.as_deref() {
            Some(r) if !r.is_empty() => r == reason,
            _ => s.code == Some(code),
        })
    }

    /// 404: the object does not exist.
    pub fn is_not_found(&self) -> bool {
        self.has(404, "NotFound")
    }

    /// 409 Conflict: the object changed since it was read, or a precondition failed.
    pub fn is_conflict(&self) -> bool {
        self.has(409, "Conflict")
    }

    /// 409 AlreadyExists.
    pub fn is_already_exists(&self) -> bool {
        self.has(409, "AlreadyExists")
    }

    /// 410: the revision asked for is no longer kept.
    pub fn is_gone(&self) -> bool {
        self.has(410, "Expired") || self.has(410, "Gone")
    }

    /// 403.
    pub fn is_forbidden(&self) -> bool {
        self.has(403, "Forbidden")
    }

    /// The server was not reached, or could not answer now: the same request may do later. 429 and 500 to 599 are such answers.
    pub fn is_passing(&self) -> bool {
        match self {
            Error::Transport(_) => true,
            Error::Api(status) => status.code.is_some_and(|code| code == 429 || (500..600).contains(&code)),
            Error::Decode { .. } | Error::Request(_) => false,
        }
    }

    /// 422.
    pub fn is_invalid(&self) -> bool {
        self.has(422, "Invalid")
    }
}
