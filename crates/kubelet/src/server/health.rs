//! `/healthz`, of the server and, without TLS, beside it: for whoever watches the kubelet on its own machine.
//!
//! Rule: KubeletConfiguration, `healthzPort` and `healthzBindAddress`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answers::{Body, text};
use super::query;

/// Longest time for a request's head.
const HEADERS: Duration = Duration::from_secs(15);

/// Answers at `address` until `stop`. Another kubelet of the machine may answer there already: that is told, and no error.
pub async fn serve(address: Option<SocketAddr>, stop: CancellationToken) {
    let Some(address) = address else { return };
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%error, %address, "/healthz is not served (healthzPort)");
            return;
        }
    };
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((tcp, _)) = accepted else {
            // out of files, most likely: others must end first
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let stop = stop.clone();
        tasks.spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADERS)
                .keep_alive(false)
                .serve_connection(TokioIo::new(tcp), hyper::service::service_fn(plain));
            tokio::select! {
                () = stop.cancelled() => {}
                // a client that went away says nothing that matters
                _ = connection => {}
            }
        });
    }
    tasks.close();
    tasks.wait().await;
}

async fn plain(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let check = match request.uri().path() {
        "/healthz" => None,
        "/healthz/ping" => Some("ping"),
        _ => return Ok(text(StatusCode::NOT_FOUND, "404 page not found\n")),
    };
    if !reads {
        return Ok(text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n"));
    }
    Ok(answer(check, request.uri().query().unwrap_or_default()))
}

/// How often health was asked for.
static CHECKED: AtomicU64 = AtomicU64::new(0);

/// How often health was asked for since the process started.
pub(super) fn checked() -> u64 {
    CHECKED.load(Relaxed)
}

/// `/healthz`, or one `check` of it: whoever answers is well. The parameter `verbose` names the checks, `exclude` leaves
/// one out.
pub(super) fn answer(check: Option<&str>, query: &str) -> Response<Body> {
    if !matches!(check, None | Some("ping")) {
        return text(StatusCode::NOT_FOUND, "404 page not found\n");
    }
    CHECKED.fetch_add(1, Relaxed);
    let pairs = query::pairs(query);
    let verbose = pairs.iter().any(|(name, _)| name == "verbose");
    let excluded = pairs.iter().any(|(name, value)| name == "exclude" && value == "ping");
    match (check, verbose) {
        (None, true) => {
            let ping = if excluded { "[+]ping excluded: ok" } else { "[+]ping ok" };
            text(StatusCode::OK, format!("{ping}\nhealthz check passed\n"))
        }
        _ => text(StatusCode::OK, "ok"),
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn health_names_its_checks_to_those_who_ask() {
        let check = async |check: Option<&str>, query: &str, expected: &str| {
            let response = answer(check, query);
            let code = response.status().as_u16();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(format!("{code} {}", String::from_utf8_lossy(&body)), expected);
        };
        check(None, "", "200 ok").await;
        check(Some("ping"), "", "200 ok").await;
        check(None, "verbose", "200 [+]ping ok\nhealthz check passed\n").await;
        check(None, "verbose&exclude=ping", "200 [+]ping excluded: ok\nhealthz check passed\n").await;
        check(Some("none"), "", "404 404 page not found\n").await;
    }
}
