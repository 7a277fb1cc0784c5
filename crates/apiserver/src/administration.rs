//! Paths of our own, for commands of the administrator: `/navarch/v1/...`. Only rules for these paths, or
//! `system:masters`, open them.

use client::Body;
use http::{Method, Response};
use serde_json::json;

use crate::answer;
use crate::encryption::EncryptionError;
use crate::negotiate::Form;
use crate::pipeline::ApiServer;
use crate::status::{ApiError, ApiResult};

/// Answers a path that is ours; none where it is another's.
pub async fn run(server: &ApiServer, method: &Method, path: &str) -> Option<ApiResult<Response<Body>>> {
    let rest = path.strip_prefix("/navarch/v1/")?;
    let encryption = &server.encryption;
    let report = match (method, rest) {
        (&Method::GET, "secrets-encryption") => encryption.status().await,
        (&Method::POST, "secrets-encryption/rotate") => encryption.rotate().await,
        (&Method::POST, "secrets-encryption/reencrypt") => encryption.reencrypt().await,
        (_, "secrets-encryption" | "secrets-encryption/rotate" | "secrets-encryption/reencrypt") => {
            return Some(Err(ApiError::method_not_allowed()));
        }
        _ => return None,
    };
    Some(match report {
        Ok(report) => Ok(answer::value(200, &Form::JSON, &json!(report))),
        Err(error) => Err(refusal(&error)),
    })
}

fn refusal(error: &EncryptionError) -> ApiError {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    match error {
        EncryptionError::Config(_) | EncryptionError::NotOurs(_) => ApiError::bad_request(text),
        _ => ApiError::unavailable(text),
    }
}
