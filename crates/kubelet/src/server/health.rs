//! The plain `/healthz` beside the server: for whoever watches the kubelet on its own machine.
//!
//! Rule: KubeletConfiguration, `healthzPort` and `healthzBindAddress`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

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
                .serve_connection(TokioIo::new(tcp), hyper::service::service_fn(answer));
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

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let (code, text) = match request.uri().path() {
        "/healthz" | "/healthz/ping" if reads => (StatusCode::OK, "ok"),
        "/healthz" | "/healthz/ping" => (StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n"),
        _ => (StatusCode::NOT_FOUND, "404 page not found\n"),
    };
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = code;
    let kind = http::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}
