//! The runtime's errors and what they are called on the CRI.

use std::io;

use tonic::{Code, Status};

use crate::{
    image::ImageError,
    network::NetworkError,
    protocol::{Failure, FailureKind},
    registry::RegistryError,
};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// What is asked for contradicts itself or is not possible.
    #[error("{0}")]
    Invalid(String),
    /// No such sandbox, container or image.
    #[error("{0}")]
    NotFound(String),
    /// There is one already.
    #[error("{0}")]
    Exists(String),
    /// It is not in the state the call needs.
    #[error("{0}")]
    State(String),
    /// It took longer than the caller allowed.
    #[error("{0}")]
    Timeout(String),
    /// Not possible with this runtime or on this node.
    #[error("{0}")]
    Unsupported(String),
    /// A shim said so.
    #[error(transparent)]
    Shim(#[from] Failure),
    /// The shim does not answer.
    #[error("the sandbox's shim does not answer")]
    ShimGone(#[source] io::Error),
    /// The pod network.
    #[error("pod network: {0}")]
    Network(#[from] NetworkError),
    /// The image store.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The node's files.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
}

impl RuntimeError {
    /// Wraps an input/output error with what was being done.
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> RuntimeError {
        let doing = doing.into();
        move |source| RuntimeError::Io { doing, source }
    }

    fn code(&self) -> Code {
        match self {
            RuntimeError::Invalid(_) | RuntimeError::Image(ImageError::Name(_)) => Code::InvalidArgument,
            RuntimeError::Image(ImageError::Invalid(_)) => Code::InvalidArgument,
            RuntimeError::Image(ImageError::Registry { source, .. }) => registry_code(source),
            RuntimeError::NotFound(_) | RuntimeError::Image(ImageError::NotFound(_)) => Code::NotFound,
            RuntimeError::Exists(_) => Code::AlreadyExists,
            RuntimeError::State(_) => Code::FailedPrecondition,
            RuntimeError::Timeout(_) => Code::DeadlineExceeded,
            RuntimeError::Unsupported(_) => Code::Unimplemented,
            RuntimeError::Shim(failure) => match failure.kind {
                FailureKind::NotFound => Code::NotFound,
                FailureKind::Config => Code::InvalidArgument,
                FailureKind::Internal => Code::Internal,
            },
            RuntimeError::ShimGone(_) => Code::Unavailable,
            RuntimeError::Network(_) | RuntimeError::Image(ImageError::Io(_)) | RuntimeError::Io { .. } => {
                Code::Internal
            }
        }
    }
}

fn registry_code(error: &RegistryError) -> Code {
    match error.deciding() {
        RegistryError::NotFound { .. } => Code::NotFound,
        RegistryError::Denied { .. } => Code::Unauthenticated,
        RegistryError::Stalled { .. } => Code::DeadlineExceeded,
        RegistryError::Unreachable { .. } | RegistryError::Broken { .. } | RegistryError::Status { .. } => {
            Code::Unavailable
        }
        RegistryError::Invalid { .. } => Code::InvalidArgument,
        RegistryError::Settings(_) | RegistryError::Several(_) => Code::FailedPrecondition,
        RegistryError::Disk(..) => Code::Internal,
    }
}

impl From<RuntimeError> for Status {
    fn from(error: RuntimeError) -> Status {
        let mut message = error.to_string();
        if let RuntimeError::ShimGone(source) = &error {
            message = format!("{message}: {source}");
        }
        Status::new(error.code(), message)
    }
}
