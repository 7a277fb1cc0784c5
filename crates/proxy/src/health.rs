//! What load balancers ask: whether this node is of use for a service, and whether its proxy works at all.
//!
//! A task per listener, one per service with a `healthCheckNodePort` and one for the proxy itself; each serves a bounded
//! number of connections. Answers are those of kube-proxy.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use client::events::{EventType, Recorder};
use client::traffic::ServiceView;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use network::netns::Place;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::plan::{HealthCheck, ServiceKey};

/// A change that waits longer than this makes the proxy unhealthy.
const LATE: Duration = Duration::from_secs(60);
/// Connections of one listener at the same time.
const CONNECTIONS: usize = 32;
/// A client has this long to send its request's head.
const HEAD: Duration = Duration::from_secs(10);
/// How long until an address that is taken is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// The cluster autoscaler's mark on a node that is about to go.
const GOING: &str = "ToBeDeletedByClusterAutoscaler";
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// How the proxy does.
#[derive(Debug)]
pub struct Health(Mutex<State>);

#[derive(Debug)]
struct State {
    updated: Timestamp,
    /// Since when the oldest change waits.
    waiting: Option<Instant>,
    /// Whether the node stays.
    eligible: bool,
}

impl Default for Health {
    fn default() -> Self {
        Self(Mutex::new(State { updated: Timestamp::now(), waiting: None, eligible: true }))
    }
}

impl Health {
    /// Notes that changes wait.
    pub fn queued(&self) {
        self.0.lock().waiting.get_or_insert_with(Instant::now);
    }

    /// Notes that the kernel has all changes.
    pub fn updated(&self) {
        let mut state = self.0.lock();
        (state.updated, state.waiting) = (Timestamp::now(), None);
    }

    /// Notes whether the node stays: one that is being deleted shall get no new connections.
    pub fn node(&self, node: &Node) {
        let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref());
        let going = taints.is_some_and(|t| t.iter().any(|taint| taint.key == GOING));
        self.0.lock().eligible = !going && node.metadata.deletion_timestamp.is_none();
    }

    /// Whether changes reach the kernel in time.
    pub fn is_healthy(&self) -> bool {
        self.0.lock().waiting.is_none_or(|since| since.elapsed() < LATE)
    }

    /// The answer to `/healthz` (with the node's part) or `/livez`.
    fn answer(&self, path: &str) -> Response<Full<Bytes>> {
        let (healthy, now) = (self.is_healthy(), Timestamp::now());
        let State { updated, eligible, .. } = *self.0.lock();
        let (healthy, node) = match path {
            "/healthz" => (healthy && eligible, format!(", \"nodeEligible\": {eligible}")),
            "/livez" => (healthy, String::new()),
            _ => {
                let mut answer = Response::new(Full::new("404 page not found\n".into()));
                *answer.status_mut() = StatusCode::NOT_FOUND;
                return answer;
            }
        };
        // "recent" where all is well, whether there was something to do or not
        let updated = if healthy { now } else { updated };
        let time = |t: Timestamp| t.strftime("%Y-%m-%d %H:%M:%S%.f +0000 UTC").to_string();
        json(
            healthy,
            format!("{{\"lastUpdated\": \"{}\",\"currentTime\": \"{}\"{node}}}", time(updated), time(now)),
        )
    }
}

fn json(healthy: bool, text: String) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(text.into()));
    *answer.status_mut() = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// The answer for a service with so many ready endpoints on this node.
fn service_answer((namespace, name): &ServiceKey, endpoints: usize, healthy: bool) -> Response<Full<Bytes>> {
    // names of namespaces and services need no escapes
    let text = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\t\"localEndpoints\": \
         {endpoints},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
    );
    let mut answer = json(endpoints > 0 && healthy, text);
    answer.headers_mut().insert(WEIGHT, HeaderValue::from(endpoints));
    answer
}

/// Serves `/healthz` and `/livez` of the proxy until `stop`. An address that is taken is tried again: the proxy itself
/// does not depend on it.
pub async fn serve(place: Place, addr: SocketAddr, health: Arc<Health>, stop: CancellationToken) {
    let bound = async {
        let mut told = false;
        loop {
            match listen(&place, &[addr]) {
                Ok(listener) => return listener,
                // said once: another kube-proxy on the machine may have it for good
                Err(error) if !std::mem::replace(&mut told, true) => {
                    tracing::error!(%addr, %error, "cannot serve the proxy's health; trying again");
                }
                Err(_) => {}
            }
            tokio::time::sleep(AGAIN).await;
        }
    };
    let serving = async {
        let listener = bound.await;
        answer_all(listener, move |path| health.answer(path)).await;
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = serving => {}
    }
}

/// The first of `addresses` that can be bound, in `place`.
fn listen(place: &Place, addresses: &[SocketAddr]) -> io::Result<TcpListener> {
    let listener = place.run(|| StdListener::bind(addresses)).map_err(io::Error::other)??;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Answers every request with what `answer` says of its path, until dropped.
async fn answer_all(
    listener: TcpListener,
    answer: impl Fn(&str) -> Response<Full<Bytes>> + Clone + Send + 'static,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((tcp, _)) = listener.accept().await else {
            // out of descriptors: whoever waits in the queue stays there
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let answer = answer.clone();
        tasks.spawn(async move {
            let _place = place;
            let service = hyper::service::service_fn(move |request: hyper::Request<_>| {
                let answer = answer(request.uri().path());
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

/// The health checks of services.
pub struct HealthChecks {
    place: Place,
    node: String,
    health: Arc<Health>,
    recorder: Recorder,
    open: HashMap<ServiceKey, Open>,
}

struct Open {
    port: u16,
    endpoints: Arc<AtomicUsize>,
    /// `None` where the port could not be bound.
    task: Option<JoinHandle<()>>,
}

impl Drop for HealthChecks {
    fn drop(&mut self) {
        self.open.values().filter_map(|open| open.task.as_ref()).for_each(JoinHandle::abort);
    }
}

impl HealthChecks {
    /// None yet.
    pub fn new(place: Place, node: &str, health: Arc<Health>, recorder: Recorder) -> Self {
        Self { place, node: node.to_owned(), health, recorder, open: HashMap::new() }
    }

    /// Opens, closes and changes what `wanted` says of each service, then tries again what could not be opened.
    pub async fn apply(&mut self, wanted: Vec<(ServiceKey, Option<HealthCheck>, Option<Arc<ServiceView>>)>) {
        let mut new = Vec::new();
        for (key, check, service) in wanted {
            let check = match (self.open.get(&key), check) {
                (Some(open), Some(check)) if open.port == check.port && open.task.is_some() => {
                    open.endpoints.store(check.endpoints, Ordering::Relaxed);
                    continue;
                }
                (_, check) => check,
            };
            // a port that one service gave up may be another's by now: all are closed before the first is opened
            if let Some(Open { task: Some(task), .. }) = self.open.remove(&key) {
                task.abort();
                let _ = task.await;
            }
            new.extend(check.map(|check| (key, check, service)));
        }
        for (key, check, service) in new {
            let endpoints = Arc::new(AtomicUsize::new(check.endpoints));
            let task = self.start(&key, check.port, endpoints.clone(), service.as_deref());
            self.open.insert(key, Open { port: check.port, endpoints, task });
        }
        for (key, open) in &mut self.open {
            if open.task.is_none() {
                open.task = start(&self.place, &self.health, key, open.port, open.endpoints.clone()).ok();
            }
        }
    }

    fn start(
        &self,
        key: &ServiceKey,
        port: u16,
        endpoints: Arc<AtomicUsize>,
        service: Option<&ServiceView>,
    ) -> Option<JoinHandle<()>> {
        let started = start(&self.place, &self.health, key, port, endpoints);
        started
            .inspect_err(|error| {
                let (namespace, name) = key;
                let message = format!(
                    "node {} failed to start healthcheck \"{namespace}/{name}\" on port {port}: {error}",
                    self.node
                );
                tracing::error!("{message}");
                if let Some(service) = service {
                    let about = service.reference();
                    self.recorder.event(
                        &about,
                        EventType::Warning,
                        "FailedToStartServiceHealthcheck",
                        message,
                    );
                }
            })
            .ok()
    }
}

fn start(
    place: &Place,
    health: &Arc<Health>,
    key: &ServiceKey,
    port: u16,
    endpoints: Arc<AtomicUsize>,
) -> io::Result<JoinHandle<()>> {
    // the first takes both families, where the host has them
    let any = [(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()];
    let listener = listen(place, &any)?;
    let (key, health) = (key.clone(), health.clone());
    Ok(tokio::spawn(answer_all(listener, move |_: &str| {
        service_answer(&key, endpoints.load(Ordering::Relaxed), health.is_healthy())
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_change_and_a_node_that_goes_are_told_apart() {
        let health = Health::default();
        let code = |path| health.answer(path).status().as_u16();
        assert_eq!((code("/healthz"), code("/livez"), code("/metrics")), (200, 200, 404));
        health.queued();
        assert!(health.is_healthy());
        health.0.lock().waiting = Instant::now().checked_sub(LATE);
        assert_eq!((code("/healthz"), code("/livez")), (503, 503));
        health.updated();
        assert_eq!((code("/healthz"), code("/livez")), (200, 200));
        let mut node = Node::default();
        node.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH));
        health.node(&node);
        assert_eq!((code("/healthz"), code("/livez")), (503, 200));
        node = serde_json::from_value(
            serde_json::json!({"spec": {"taints": [{"key": GOING, "effect": "NoSchedule"}]}}),
        )
        .unwrap();
        health.node(&node);
        assert_eq!((code("/healthz"), code("/livez")), (503, 200));
    }
}
