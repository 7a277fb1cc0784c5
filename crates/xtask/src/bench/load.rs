//! Requests in bulk: several connections, a bounded number of requests at a time, latencies kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use client::https::{Endpoint, Https};
use client::{Body, Transport};
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::task::JoinSet;

use super::percentile;

/// The connections, used in turn.
pub struct Load {
    transports: Vec<Https>,
    next: AtomicUsize,
}

/// What a phase of like requests gave.
pub struct Phase {
    /// Requests a second.
    pub rate: f64,
    /// The slower half begins here.
    pub p50: Duration,
    /// The slowest hundredth begins here.
    pub p99: Duration,
}

impl Load {
    pub fn new(endpoint: &Endpoint, connections: usize) -> anyhow::Result<Arc<Self>> {
        let transports = (0..connections).map(|_| Https::new(endpoint)).collect::<Result<_, _>>()?;
        Ok(Arc::new(Self { transports, next: AtomicUsize::new(0) }))
    }

    /// An answer with its body still to come.
    pub async fn open(
        &self,
        method: Method,
        path: &str,
        media: &str,
        body: String,
    ) -> anyhow::Result<Response<Body>> {
        let at = self.next.fetch_add(1, Ordering::Relaxed) % self.transports.len();
        let mut request = Request::builder().method(method.clone()).uri(path);
        if !media.is_empty() {
            request = request.header(http::header::CONTENT_TYPE, media);
        }
        let transport = self.transports.get(at).context("no connection")?;
        let answer = transport.send(request.body(Bytes::from(body))?).await?;
        if !answer.status().is_success() {
            let status = answer.status();
            let text = answer.into_body().collect().await.map_err(anyhow::Error::from_boxed)?.to_bytes();
            bail!("{method} {path}: {status} {}", String::from_utf8_lossy(&text));
        }
        Ok(answer)
    }

    /// Sends, and reads the answer to its end without keeping it; its size in bytes.
    pub async fn call(&self, method: Method, path: &str, media: &str, body: String) -> anyhow::Result<usize> {
        let mut answer = self.open(method, path, media, body).await?.into_body();
        let mut size = 0;
        while let Some(frame) = answer.frame().await {
            size += frame.map_err(anyhow::Error::from_boxed)?.data_ref().map_or(0, Bytes::len);
        }
        Ok(size)
    }

    /// `count` requests, `parallel` at a time.
    pub async fn phase<F, W>(
        self: &Arc<Self>,
        count: usize,
        parallel: usize,
        request: F,
    ) -> anyhow::Result<Phase>
    where
        F: Fn(Arc<Self>, usize) -> W + Send + Sync + 'static,
        W: Future<Output = anyhow::Result<usize>> + Send,
    {
        let began = Instant::now();
        let (next, request) = (Arc::new(AtomicUsize::new(0)), Arc::new(request));
        let mut workers = JoinSet::new();
        for _ in 0..parallel {
            let (load, next, request) = (self.clone(), next.clone(), request.clone());
            workers.spawn(async move {
                let mut times = Vec::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return Ok::<_, anyhow::Error>(times);
                    }
                    let sent = Instant::now();
                    request(load.clone(), number).await?;
                    times.push(sent.elapsed());
                }
            });
        }
        let mut times = Vec::with_capacity(count);
        while let Some(worker) = workers.join_next().await {
            times.extend(worker??);
        }
        let rate = count as f64 / began.elapsed().as_secs_f64();
        let p50 = percentile(&mut times, 50).unwrap_or_default();
        Ok(Phase { rate, p50, p99: percentile(&mut times, 99).unwrap_or_default() })
    }
}

/// The lines of a watch, parsed as a client would.
pub struct Watch {
    body: Body,
    rest: Vec<u8>,
}

impl Watch {
    /// Of what is at a path, from a revision on.
    pub async fn open(load: &Load, path: &str, from: &str) -> anyhow::Result<Self> {
        let path = format!("{path}?watch=1&resourceVersion={from}");
        let answer = load.open(Method::GET, &path, "", String::new()).await?;
        Ok(Self { body: answer.into_body(), rest: Vec::new() })
    }

    /// The next event.
    pub async fn next(&mut self) -> anyhow::Result<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Ok(serde_json::from_slice(&line)?);
            }
            let frame =
                self.body.frame().await.context("the watch ended")?.map_err(anyhow::Error::from_boxed)?;
            self.rest.extend_from_slice(frame.data_ref().map_or(&[][..], Bytes::as_ref));
        }
    }
}

/// The revision to watch from.
pub async fn revision(load: &Load, path: &str) -> anyhow::Result<String> {
    let answer = load.open(Method::GET, &format!("{path}?limit=1"), "", String::new()).await?;
    let text = answer.into_body().collect().await.map_err(anyhow::Error::from_boxed)?.to_bytes();
    let list: Value = serde_json::from_slice(&text)?;
    Ok(list["metadata"]["resourceVersion"].as_str().context("no resourceVersion")?.to_owned())
}
