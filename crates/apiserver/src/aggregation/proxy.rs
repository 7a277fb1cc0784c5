//! Passing requests on to the server that answers for a version, in the caller's name.
//!
//! Bodies are streamed both ways; connections that change protocol become pipes. Who asks is said in headers, which
//! count because of the certificate that we show; whatever the client itself sent in them is dropped.

use bytes::Bytes;
use client::Body;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};

use super::{Aggregator, Remote};
use crate::answer;
use crate::auth::UserInfo;
use crate::backend::{self, Peer, Place, StreamedBody, Unreachable};
use crate::status::{ApiError, ApiResult};
use crate::watch_cache::WatchCache;
use crate::webhook::resolve;

impl Aggregator {
    /// Passes a request on.
    pub async fn pass(
        &self,
        cache: &WatchCache,
        remote: &Remote,
        user: &UserInfo,
        parts: &http::request::Parts,
        body: Bytes,
    ) -> ApiResult<Response<Body>> {
        if !remote.is_available {
            return Ok(text(503, "service unavailable"));
        }
        let tls = match &remote.tls {
            Ok(tls) => tls.clone(),
            Err(why) => return Ok(text(500, why)),
        };
        let Ok((host, port)) = resolve(cache, &remote.service) else {
            return Ok(text(503, "service unavailable"));
        };
        let place = Place { host, port, name: Some(remote.host.clone()) };
        let upgrading = backend::is_upgrade(&parts.headers);
        let path = parts.uri.path_and_query().map_or("/", |p| p.as_str());
        let mut onward = Request::builder().method(parts.method.clone()).uri(path);
        if let Some(headers) = onward.headers_mut() {
            *headers = onward_headers(parts, user, &place.to_string(), upgrading)?;
        }
        let streamed = parts.extensions.get::<StreamedBody>().and_then(StreamedBody::take);
        let onward = onward
            .body(streamed.unwrap_or_else(|| answer::full(body)))
            .map_err(|e| ApiError::bad_request(e.to_string()))?;
        let client_side = upgrading.then(|| {
            let mut request = Request::new(());
            *request.extensions_mut() = parts.extensions.clone();
            hyper::upgrade::on(request)
        });
        match self.dialer.clone().exchange(place, Some(tls), onward, client_side).await {
            // a redirect would lead the client past us
            Ok(answer) if answer.status().is_redirection() && answer.status() != StatusCode::NOT_MODIFIED => {
                Ok(text(502, "the backend attempted to redirect this request, which is not permitted"))
            }
            Ok(answer) => Ok(answer),
            Err(error @ Unreachable::Busy) => Err(ApiError::too_many_requests(error.to_string(), 1)),
            Err(error) => Ok(text(503, &format!("error trying to reach service: {error}"))),
        }
    }
}

/// A refusal as plain text, as the reference's proxy has it.
fn text(code: u16, why: &str) -> Response<Body> {
    let mut response = answer::text(code, format!("{why}\n"));
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

fn onward_headers(
    parts: &http::request::Parts,
    user: &UserInfo,
    host: &str,
    upgrading: bool,
) -> ApiResult<HeaderMap> {
    let mut headers = parts.headers.clone();
    let upgrade = headers.get(header::UPGRADE).cloned();
    backend::remove_hop_by_hop(&mut headers);
    backend::remove_credentials(&mut headers);
    // answered by our own server when the body is read
    headers.remove(header::EXPECT);
    if let (true, Some(upgrade)) = (upgrading, upgrade) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, upgrade);
    }
    let value = |text: &str| HeaderValue::from_str(text).map_err(|e| ApiError::bad_request(e.to_string()));
    headers.insert(header::HOST, value(host)?);
    if let Some(Peer(peer)) = parts.extensions.get::<Peer>() {
        headers.append("x-forwarded-for", value(&peer.ip().to_string())?);
    }
    add_user(&mut headers, user)?;
    Ok(headers)
}

/// Says who asks.
pub(super) fn add_user(headers: &mut HeaderMap, user: &UserInfo) -> ApiResult<()> {
    let bad =
        |why: &dyn std::fmt::Display| ApiError::bad_request(format!("the user cannot be passed on: {why}"));
    let mut add = |name: &str, text: &str| -> ApiResult<()> {
        let name = HeaderName::try_from(name).map_err(|e| bad(&e))?;
        headers.append(name, HeaderValue::from_str(text).map_err(|e| bad(&e))?);
        Ok(())
    };
    add("x-remote-user", &user.name)?;
    if !user.uid.is_empty() {
        add("x-remote-uid", &user.uid)?;
    }
    for group in &user.groups {
        add("x-remote-group", group)?;
    }
    for (key, values) in &user.extra {
        let name = format!("x-remote-extra-{}", escaped(key));
        for value in values {
            add(&name, value)?;
        }
    }
    Ok(())
}

/// A key of extra information as part of a header's name: what cannot stand there is percent-encoded.
fn escaped(key: &str) -> String {
    let mut out = String::with_capacity(key.len());
    for byte in key.bytes() {
        if byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte) {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_is_said_in_headers() {
        let mut user = UserInfo::new("alice", &["dev"]);
        user.uid = "7".to_owned();
        user.extra.insert("example.com/team".to_owned(), vec!["a".to_owned(), "b".to_owned()]);
        let mut headers = HeaderMap::new();
        add_user(&mut headers, &user).unwrap();
        let all: Vec<String> = headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        assert_eq!(
            all,
            [
                "x-remote-user: alice",
                "x-remote-uid: 7",
                "x-remote-group: dev",
                "x-remote-group: system:authenticated",
                "x-remote-extra-example.com%2fteam: a",
                "x-remote-extra-example.com%2fteam: b",
            ]
        );
    }
}
