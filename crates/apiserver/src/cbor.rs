//! CBOR at the edge: bodies are turned into JSON before the pipeline sees them, and answers into CBOR after it, where the
//! gate `CBORServingAndStorage` is open. Inside, and at rest, there is JSON only.
//!
//! Rule: KEP-4222. The gate is alpha in v1.36 and closed unless `--feature-gates` opens it: then `application/cbor` is a
//! media type like any unknown one (406, 415).

use api::codec;
use bytes::{Buf as _, Bytes, BytesMut};
use client::Body;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body_util::BodyExt as _;
use hyper::body::Frame;
use serde_json::Value;

use crate::negotiate;
use crate::status::{ApiError, ApiResult};
use crate::{answer, body};

/// Objects.
const MEDIA: &str = "application/cbor";
/// A sequence of objects (RFC 8742): watches.
const SEQUENCE: &str = "application/cbor-seq";
/// Configurations that are applied.
const APPLY: &str = "application/apply-patch+cbor";

/// What is done to a request's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked(bool);

/// Turns a request in CBOR into one in JSON.
pub fn request(parts: &mut Parts, body: Bytes) -> ApiResult<(Asked, Bytes)> {
    let asked = Asked(accept(&mut parts.headers));
    let media = match body::media_type(&parts.headers).as_str() {
        MEDIA => "application/json",
        APPLY => "application/apply-patch+yaml",
        _ => return Ok((asked, body)),
    };
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    if body.is_empty() {
        return Ok((asked, body));
    }
    let value = codec::parse_cbor(&body).map_err(|e| ApiError::bad_request(e.to_string()))?;
    Ok((asked, codec::encode_json(&value).into()))
}

/// Whether the client likes CBOR best. Then the rest of the server is told that it likes JSON best.
fn accept(headers: &mut HeaderMap) -> bool {
    let clauses: Vec<String> = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|clause| clause.trim().to_owned())
        .collect();
    let is_cbor = |clause: &str| {
        let media = clause.split(';').next().unwrap_or_default().trim();
        media.eq_ignore_ascii_case(MEDIA) || media.eq_ignore_ascii_case(SEQUENCE)
    };
    let known = |clause: &str| {
        let media = clause.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        media == "*/*" || is_cbor(clause) || negotiate::OFFERED.contains(&media.as_str())
    };
    // the sort is stable: among equals, the client's order counts
    let mut ranked: Vec<&String> = clauses.iter().filter(|clause| known(clause)).collect();
    ranked.sort_by(|a, b| quality(b).total_cmp(&quality(a)));
    if !ranked.first().is_some_and(|best| is_cbor(best)) {
        return false;
    }
    let as_json = |clause: &String| match clause.split_once(';') {
        _ if !is_cbor(clause) => clause.clone(),
        Some((_, parameters)) => format!("application/json;{parameters}"),
        None => "application/json".to_owned(),
    };
    let rewritten: Vec<String> = clauses.iter().map(as_json).collect();
    let Ok(value) = HeaderValue::from_str(&rewritten.join(",")) else { return false };
    headers.insert(header::ACCEPT, value);
    true
}

fn quality(clause: &str) -> f64 {
    let parameters = clause.split(';').skip(1).filter_map(|p| p.trim().split_once('='));
    parameters.into_iter().find(|(name, _)| *name == "q").and_then(|(_, q)| q.parse().ok()).unwrap_or(1.0)
}

/// Turns an answer in JSON into one in CBOR, where that was asked for.
pub async fn answer(asked: Asked, is_watch: bool, response: Response<Body>) -> Response<Body> {
    let is_json = response.headers().get(header::CONTENT_TYPE).is_some_and(|t| t == "application/json");
    if !asked.0 || !is_json {
        return response;
    }
    let (mut parts, sent) = response.into_parts();
    let streams = is_watch && parts.status.is_success();
    let media = if streams { SEQUENCE } else { MEDIA };
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    if streams {
        let mut rest = BytesMut::new();
        let body = sent.map_frame(move |frame| match frame.into_data() {
            Ok(lines) => Frame::data(events(&mut rest, &lines)),
            Err(frame) => frame,
        });
        return Response::from_parts(parts, body.boxed_unsync());
    }
    match sent.collect().await {
        Ok(collected) => {
            let value = serde_json::from_slice(&collected.to_bytes()).unwrap_or_default();
            Response::from_parts(parts, answer::full(encode(&value)))
        }
        Err(_) => Response::from_parts(parts, answer::full(Bytes::new())),
    }
}

/// An object, its bytes as bytes where its type is known.
fn encode(value: &Value) -> Vec<u8> {
    let text = |key: &str| value[key].as_str().unwrap_or_default();
    codec::encode_cbor(value, codec::shape_of(text("apiVersion"), text("kind")))
}

/// The events of a watch that are complete, each as an item of a sequence.
fn events(rest: &mut BytesMut, lines: &[u8]) -> Bytes {
    rest.extend_from_slice(lines);
    let mut out = Vec::new();
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let line = rest.split_to(end);
        rest.advance(1);
        let Ok(event) = serde_json::from_slice::<Value>(&line) else { continue };
        out.extend(codec::encode_cbor_event(
            event["type"].as_str().unwrap_or_default(),
            &encode(&event["object"]),
        ));
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(given: &str, asked: bool, rewritten: &str) {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, given.parse().unwrap());
        assert_eq!((accept(&mut headers), headers[header::ACCEPT].to_str().unwrap()), (asked, rewritten));
    }

    #[test]
    fn cbor_is_given_to_who_likes_it_best() {
        check("application/cbor", true, "application/json");
        check("application/cbor, application/json", true, "application/json,application/json");
        check("application/json, application/cbor", false, "application/json, application/cbor");
        check(
            "text/plain, application/cbor;q=0.5, */*;q=0.1",
            true,
            "text/plain,application/json;q=0.5,*/*;q=0.1",
        );
        check(
            "application/cbor;as=Table;v=v1;g=meta.k8s.io,application/json",
            true,
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
        );
    }
}
