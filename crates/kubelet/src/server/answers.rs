//! Answers in the forms that the server gives, and refusals.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};

pub(super) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A refusal in plain text.
pub(super) type Refusal = (StatusCode, String);

pub(super) fn no_such_page() -> Refusal {
    (StatusCode::NOT_FOUND, "404 page not found".to_owned())
}

/// What the runtime's refusal is to our client.
pub(super) fn refused(status: tonic::Status) -> Refusal {
    let code = match status.code() {
        tonic::Code::NotFound => StatusCode::NOT_FOUND,
        tonic::Code::InvalidArgument => StatusCode::BAD_REQUEST,
        tonic::Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        tonic::Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (code, status.message().to_owned())
}

pub(super) fn answer(code: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut answer = Response::new(body);
    *answer.status_mut() = code;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub(super) fn text(code: StatusCode, text: impl Into<String>) -> Response<Body> {
    answer(code, "text/plain; charset=utf-8", full(text.into()))
}

/// A text for Prometheus.
pub(super) fn exposition(text: String) -> Response<Body> {
    answer(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", full(text))
}

pub(super) fn json(value: &impl serde::Serialize) -> Result<Response<Body>, Refusal> {
    let bytes = serde_json::to_vec(value).map_err(|e| (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    Ok(answer(StatusCode::OK, "application/json", full(bytes)))
}
