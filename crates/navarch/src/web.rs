//! `navarch web`: a web server of one page. It is what the example deploys, so that the first steps need no
//! image registry.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;

use crate::command::WebOptions;

/// Connections served at the same time.
const CONNECTIONS: usize = 256;
/// A client has this long to send its request's head.
const HEAD: Duration = Duration::from_secs(10);

/// Serves until SIGTERM or SIGINT: as a container's first process it must take them itself.
pub fn main(options: WebOptions) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(options))
}

async fn serve(options: WebOptions) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = TcpListener::bind(options.listen)
        .await
        .with_context(|| format!("cannot listen on {}", options.listen))?;
    println!("listening on {}", listener.local_addr()?);
    let page: Option<Arc<Path>> = options.page.map(Arc::from);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = places.clone().acquire_owned();
        let (place, tcp) = tokio::select! {
            accepted = async { (place.await, listener.accept().await) } => accepted,
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        };
        let Ok((tcp, _)) = tcp else { continue };
        let page = page.clone();
        tokio::spawn(async move {
            let _place = place;
            let service = hyper::service::service_fn(move |request| {
                let answer = answer(&request, page.as_deref());
                async move { Ok::<_, Infallible>(answer) }
            });
            // a broken connection is the client's affair
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .serve_connection(TokioIo::new(tcp), service)
                .await;
        });
    }
}

fn answer(request: &Request<Incoming>, page: Option<&Path>) -> Response<Full<Bytes>> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/healthz") => (StatusCode::OK, "ok\n".to_owned()),
        (&Method::GET | &Method::HEAD, "/") => match render(page) {
            Ok(text) => (StatusCode::OK, text),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        (&Method::GET | &Method::HEAD, _) => (StatusCode::NOT_FOUND, "not found\n".to_owned()),
        _ => (StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(
        hyper::header::CONTENT_TYPE,
        hyper::header::HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

/// The page, then who served it.
fn render(page: Option<&Path>) -> std::io::Result<String> {
    let mut text = match page {
        Some(path) => std::fs::read_to_string(path)?,
        None => "Hello from Navarch.\n".to_owned(),
    };
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    text.push_str(&format!("served by {host}\n"));
    Ok(text)
}
