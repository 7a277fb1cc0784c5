//! One try of a gRPC probe: the standard health service, `grpc.health.v1.Health/Check`, over HTTP/2 without TLS.
//!
//! Rule: Kubernetes documentation, "Define a gRPC liveness probe"; the gRPC project's "Health Checking Protocol".
//! The two messages have one field each, so that they are written and read here.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tonic::Code;

use super::Outcome;
use super::check::{BODY, USER_AGENT, address, bare, dial_error};

const CHECK: &str = "/grpc.health.v1.Health/Check";
/// The answer's status, by number.
const STATUS: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];

/// Asks how `service` is; an empty name asks for the whole server.
pub(super) async fn check(host: &str, port: u16, service: &str, timeout: Duration) -> Outcome {
    let place = address(host, port);
    let mut connected = false;
    let work = async {
        let tcp = TcpStream::connect((bare(host), port)).await;
        let tcp = tcp.map_err(|error| unreachable_at(&place, &dial_error(&place, &error)))?;
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp)).await;
        let (mut sender, connection) =
            handshake.map_err(|error| unreachable_at(&place, &error.to_string()))?;
        connected = true;
        let asked = ask(&mut sender, &place, service);
        tokio::select! {
            answer = asked => answer,
            // it ends with an answer that was on its way, or with none
            _ = connection => Err(failed(Code::Unavailable, "the connection was closed")),
        }
    };
    match tokio::time::timeout(timeout, work).await {
        Ok(Ok(1)) => Outcome::success("service healthy"),
        Ok(Ok(status)) => {
            let name = usize::try_from(status).ok().and_then(|at| STATUS.get(at).copied());
            let name = name.map_or_else(|| status.to_string(), str::to_owned);
            Outcome::failure(format!("service unhealthy (responded with {name:?})"))
        }
        Ok(Err(why)) => Outcome::failure(why),
        Err(_) if connected => {
            Outcome::failure(format!("timeout: health rpc did not complete within {}s", timeout.as_secs()))
        }
        Err(_) => Outcome::failure(format!(
            "timeout: failed to connect service {place:?} within {}s: context deadline exceeded",
            timeout.as_secs()
        )),
    }
}

fn unreachable_at(place: &str, why: &str) -> String {
    format!("error: failed to connect service at {place:?}: {why}")
}

fn failed(code: Code, message: &str) -> String {
    match code {
        Code::Unimplemented => format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {message}"
        ),
        code => {
            // the one name that Go spells otherwise
            let name = if code == Code::Cancelled { "Canceled".to_owned() } else { format!("{code:?}") };
            format!("error: health rpc probe failed: rpc error: code = {name} desc = {message}")
        }
    }
}

type Sender = hyper::client::conn::http2::SendRequest<Full<Bytes>>;

/// Sends the question; the status by number.
async fn ask(sender: &mut Sender, place: &str, service: &str) -> Result<u64, String> {
    let broken = |error: &dyn std::fmt::Display| failed(Code::Unavailable, &error.to_string());
    let request = Request::post(format!("http://{place}{CHECK}"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, USER_AGENT)
        .body(Full::new(question(service)))
        .map_err(|error| broken(&error))?;
    let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
    let (head, body) = answer.into_parts();
    if head.status != http::StatusCode::OK {
        let text = format!("unexpected HTTP status code received from server: {}", head.status);
        return Err(failed(Code::Unknown, &text));
    }
    let body = Limited::new(body, BODY).collect().await.map_err(|error| broken(&error))?;
    // an answer without a message has its status in the head
    let trailers = body.trailers().filter(|t| t.contains_key("grpc-status")).unwrap_or(&head.headers);
    let text = |name: &str| trailers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match text("grpc-status") {
        "0" => {}
        code => {
            let message = crate::server::query::decode(&text("grpc-message").replace('+', "%2B"));
            return Err(failed(Code::from_bytes(code.as_bytes()), &message));
        }
    }
    status(&body.to_bytes()).ok_or_else(|| failed(Code::Internal, "the answer is not a HealthCheckResponse"))
}

/// A frame with a `HealthCheckRequest`: the name is its field 1.
fn question(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push(u8::try_from(length & 0x7f).unwrap_or_default() | 0x80);
            length >>= 7;
        }
        message.push(u8::try_from(length).unwrap_or_default());
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.extend_from_slice(&[0]);
    frame.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend_from_slice(&message);
    frame.freeze()
}

/// Field 1 of the `HealthCheckResponse` in a frame; an absent one is 0.
fn status(frame: &[u8]) -> Option<u64> {
    let (head, rest) = frame.split_at_checked(5)?;
    let length = u32::from_be_bytes(head[1..].try_into().ok()?);
    let mut message = rest.get(..usize::try_from(length).ok()?).filter(|_| head[0] == 0)?;
    let mut found = 0;
    while !message.is_empty() {
        let key = varint(&mut message)?;
        match key & 7 {
            0 => {
                let value = varint(&mut message)?;
                if key >> 3 == 1 {
                    found = value;
                }
            }
            // fields of later versions
            1 => message = message.get(8..)?,
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            5 => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(found)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{HeaderMap, HeaderValue, Response};
    use http_body::Frame;
    use http_body_util::StreamBody;
    use hyper::body::Incoming;
    use tokio::net::TcpListener;

    use super::*;
    use crate::probes::Found;

    /// What a health server answers to the name it is asked for: a status, or a gRPC error.
    async fn server(answer: fn(&str) -> Result<u8, (&'static str, &'static str)>) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let service = hyper::service::service_fn(move |request: Request<Incoming>| async move {
            assert_eq!(request.uri().path(), CHECK);
            assert_eq!(request.headers()[header::USER_AGENT], USER_AGENT);
            let body = request.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(u32::from_be_bytes(body[1..5].try_into().unwrap()) as usize, body.len() - 5);
            let name = body.get(7..).map(|name| String::from_utf8_lossy(name).into_owned());
            let (data, code, message) = match answer(&name.unwrap_or_default()) {
                Ok(status) => (vec![0, 0, 0, 0, 2, 0x08, status], "0", ""),
                Err((code, message)) => (Vec::new(), code, message),
            };
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static(code));
            trailers.insert("grpc-message", HeaderValue::from_static(message));
            let frames = [Frame::data(Bytes::from(data)), Frame::trailers(trailers)];
            let body = StreamBody::new(tokio_stream::iter(frames.map(Ok::<_, Infallible>)));
            Ok::<_, Infallible>(Response::new(body))
        });
        tokio::spawn(async move {
            let (tcp, _) = listener.accept().await.unwrap();
            let io = TokioIo::new(tcp);
            // the client closes it
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(io, service)
                .await;
        });
        port
    }

    async fn found(
        answer: fn(&str) -> Result<u8, (&'static str, &'static str)>,
        service: &str,
    ) -> (bool, String) {
        let outcome = check("127.0.0.1", server(answer).await, service, Duration::from_secs(5)).await;
        assert_ne!(outcome.found, Found::Nothing);
        (outcome.found == Found::Success, outcome.message)
    }

    #[tokio::test]
    async fn only_a_service_that_serves_is_healthy() {
        let by_name = |name: &str| match name {
            "" => Ok(1),
            "down" => Ok(2),
            _ => Err(("5", "unknown%20service")),
        };
        assert_eq!(found(by_name, "").await, (true, "service healthy".to_owned()));
        let down = "service unhealthy (responded with \"NOT_SERVING\")";
        assert_eq!(found(by_name, "down").await, (false, down.to_owned()));
        let unknown = "error: health rpc probe failed: rpc error: code = NotFound desc = unknown service";
        assert_eq!(found(by_name, "x").await, (false, unknown.to_owned()));
        let old =
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): no";
        assert_eq!(found(|_| Err(("12", "no")), "").await, (false, old.to_owned()));
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_or_never_answers_is_not_healthy() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let place = listener.local_addr().unwrap();
        let outcome = check("127.0.0.1", place.port(), "", Duration::from_secs(1)).await;
        assert_eq!(
            (outcome.found, outcome.message.as_str()),
            (Found::Failure, "timeout: health rpc did not complete within 1s")
        );
        drop(listener);
        let outcome = check("127.0.0.1", place.port(), "", Duration::from_secs(1)).await;
        let text = format!(
            "error: failed to connect service at \"{place}\": dial tcp {place}: connect: connection refused"
        );
        assert_eq!((outcome.found, outcome.message), (Found::Failure, text));
    }

    #[test]
    fn messages_are_read_and_written_as_protobuf() {
        assert_eq!(question("").as_ref(), [0, 0, 0, 0, 0]);
        assert_eq!(question("ab").as_ref(), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(question(&"x".repeat(300))[5..8], [0x0a, 0xac, 0x02]);
        assert_eq!(status(&[0, 0, 0, 0, 0]), Some(0));
        assert_eq!(status(&[0, 0, 0, 0, 5, 0x12, 1, 9, 0x08, 1]), Some(1));
        for broken in [&[][..], &[0, 0, 0, 0, 9, 0x08], &[1, 0, 0, 0, 2, 0x08, 1], &[0, 0, 0, 0, 1, 0x08]] {
            assert_eq!(status(broken), None, "{broken:?}");
        }
    }
}
