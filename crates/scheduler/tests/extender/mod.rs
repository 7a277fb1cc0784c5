//! A scheduler extender of the tests: answers as it is told, and remembers what it was asked.
use std::sync::Arc;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::net::TcpListener;

type Answer = Arc<dyn Fn(&str, &Value) -> Value + Send + Sync>;

/// Ends when it is dropped.
pub struct Program {
    pub url: String,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Program {
    pub async fn start(answer: impl Fn(&str, &Value) -> Value + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let url = format!("http://{}/scheduler", listener.local_addr().expect("address"));
        let asked: Arc<Mutex<Vec<_>>> = Arc::default();
        let (answer, log): (Answer, _) = (Arc::new(answer), asked.clone());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, log) = (answer.clone(), log.clone());
                let serve = service_fn(move |request: Request<Incoming>| {
                    let (answer, log) = (answer.clone(), log.clone());
                    async move {
                        let verb = request.uri().path().trim_start_matches("/scheduler/").to_owned();
                        let body = request.into_body().collect().await?.to_bytes();
                        let question: Value = serde_json::from_slice(&body).unwrap_or_default();
                        let body = answer(&verb, &question).to_string();
                        log.lock().push((verb, question));
                        Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from(body))))
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), serve),
                );
            }
        });
        Self { url, asked, task }
    }

    /// Verbs and questions so far.
    pub fn asked(&self) -> Vec<(String, Value)> {
        self.asked.lock().clone()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.task.abort();
    }
}
