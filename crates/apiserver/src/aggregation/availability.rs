//! Whether the servers behind APIServices can be asked: their `Available` conditions.
//!
//! One task ([`run`]) follows APIServices, Services and endpoint slices, and checks an APIService when something it
//! depends on has changed, and every now and then, since what is between us and a server cannot be watched. A check that
//! fails is repeated sooner. Several servers on one store do the same work; who finds nothing changed writes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::meta;
use bytes::BytesMut;
use client::Body;
use http::{HeaderMap, Request};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::{Remote, kind, proxy};
use crate::answer;
use crate::auth::{MASTERS, UserInfo};
use crate::backend::{Dialer, Place};
use crate::pipeline::ApiServer;
use crate::registry::Target;
use crate::status::{ApiError, ApiResult};
use crate::watch_cache::{Batch, Changed};
use crate::webhook::{Address, resolve};

/// Time between checks of what passed the last one.
const AGAIN: Duration = Duration::from_secs(30);
/// Time after the first check that failed; it doubles up to [`AGAIN`].
const SOON: Duration = Duration::from_secs(1);
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Largest list of resources.
const LIST: usize = 4 * 1024 * 1024;

/// When a check is due, and how long it waits after a failure.
struct Due {
    at: Instant,
    backoff: Duration,
}

/// Checks APIServices until `stop`.
pub async fn run(server: Arc<ApiServer>, stop: CancellationToken) {
    loop {
        tokio::select! {
            followed = follow(&server) => match followed {
                // a queue that ended was too slow: begin anew
                Ok(()) => {}
                Err(error) => {
                    tracing::error!(%error, "APIServices cannot be followed");
                    return;
                }
            },
            () = stop.cancelled() => return,
        }
    }
}

async fn follow(server: &Arc<ApiServer>) -> ApiResult<()> {
    let cache = server.registry.cache();
    let of = |group: &str, plural: &str| {
        api::kinds::find(group, "v1", plural).ok_or_else(ApiError::no_such_resource)
    };
    let (past, _, mut api_services) = cache.watch(kind()?, None)?;
    let (_, _, mut services) = cache.watch(of("", "services")?, None)?;
    let (_, _, mut slices) = cache.watch(of("discovery.k8s.io", "endpointslices")?, None)?;
    let mut due: BTreeMap<String, Due> = BTreeMap::new();
    let mut running: BTreeSet<String> = BTreeSet::new();
    let mut checks: JoinSet<Checked> = JoinSet::new();
    note(&past, &mut due);
    loop {
        let now = Instant::now();
        let ready: Vec<String> = due
            .iter()
            .filter(|(name, due)| due.at <= now && !running.contains(*name))
            .map(|(name, _)| name.clone())
            .collect();
        for name in ready {
            let remote = server.aggregator.remotes(cache).iter().find(|r| r.name == name).cloned();
            let Some(remote) = remote else {
                due.remove(&name);
                server.aggregator.served.lock().remove(&name);
                server.aggregator.swaggers.lock().remove(&name);
                continue;
            };
            if let Some(due) = due.get_mut(&name) {
                due.at = now + AGAIN;
            }
            running.insert(name);
            checks.spawn(check(server.clone(), remote));
        }
        let idle = due.iter().filter(|(name, _)| !running.contains(*name));
        let next = idle.map(|(_, due)| due.at).min().unwrap_or(now + AGAIN);
        tokio::select! {
            batch = api_services.recv() => match batch {
                Some(batch) => note(&batch, &mut due),
                None => return Ok(()),
            },
            batch = services.recv() => match batch {
                Some(batch) => note_service(server, &batch, &mut due, |o| o.name().to_owned()),
                None => return Ok(()),
            },
            batch = slices.recv() => match batch {
                Some(batch) => note_service(server, &batch, &mut due, |o| {
                    o.labels().get("kubernetes.io/service-name").cloned().unwrap_or_default()
                }),
                None => return Ok(()),
            },
            Some(Ok(checked)) = checks.join_next() => {
                running.remove(&checked.name);
                if let Some(due) = due.get_mut(&checked.name) {
                    due.backoff = if checked.passed { SOON } else { (due.backoff * 2).min(AGAIN) };
                    let wait = if checked.passed { AGAIN } else { due.backoff };
                    // a change that came during the check asks for another one at once
                    due.at = due.at.min(Instant::now() + wait);
                }
                let name = checked.name.clone();
                match write(server, checked).await {
                    Err(error) if !error.is_not_found() => {
                        tracing::warn!(name, %error, "the availability of an APIService cannot be written");
                    }
                    _ => {}
                }
            }
            () = tokio::time::sleep_until(next) => {}
        }
    }
}

fn now_due(due: &mut BTreeMap<String, Due>, name: &str) {
    let at = Instant::now();
    due.entry(name.to_owned()).and_modify(|d| d.at = at).or_insert(Due { at, backoff: SOON });
}

/// APIServices whose specification is new.
fn note(changes: &[Changed], due: &mut BTreeMap<String, Due>) {
    for change in changes {
        let spec = |o: &Option<Arc<api::object::Object>>| o.as_ref().map(|o| o.value()["spec"].clone());
        if let Some(object) = change.new.as_ref().or(change.old.as_ref())
            && (change.old.is_none() || spec(&change.new) != spec(&change.old))
        {
            now_due(due, object.name());
        }
    }
}

/// APIServices behind a service that changed.
fn note_service(
    server: &ApiServer,
    batch: &Batch,
    due: &mut BTreeMap<String, Due>,
    name_of: impl Fn(&api::object::Object) -> String,
) {
    let remotes = server.aggregator.remotes(server.registry.cache());
    if remotes.is_empty() {
        return;
    }
    for object in batch.iter().filter_map(|c| c.new.as_ref().or(c.old.as_ref())) {
        let changed = (object.namespace().unwrap_or_default(), name_of(object));
        for remote in remotes.iter() {
            if let Address::Service { namespace, name, .. } = &remote.service
                && (namespace.as_str(), name) == (changed.0, &changed.1)
            {
                now_due(due, &remote.name);
            }
        }
    }
}

/// Reason and message of a condition.
struct Outcome {
    reason: &'static str,
    message: String,
}

impl Outcome {
    fn new(reason: &'static str, message: String) -> Self {
        Self { reason, message }
    }
}

/// What a check found.
struct Checked {
    name: String,
    passed: bool,
    outcome: Outcome,
}

/// Checks one APIService.
async fn check(server: Arc<ApiServer>, remote: Arc<Remote>) -> Checked {
    let found = match preconditions(&server, &remote) {
        Ok(()) => ask(server.clone(), remote.clone()).await,
        Err(refused) => Err(refused),
    };
    let passed = found.is_ok();
    let outcome = match found {
        Ok(list) => {
            server.aggregator.served.lock().insert(remote.name.clone(), Arc::new(list));
            Outcome::new("Passed", "all checks passed".to_owned())
        }
        Err(refused) => refused,
    };
    Checked { name: remote.name.clone(), passed, outcome }
}

/// What must be there before anybody can be asked; reason and message where it is not.
fn preconditions(server: &ApiServer, remote: &Remote) -> Result<(), Outcome> {
    let Address::Service { namespace, name, port } = &remote.service else { return Ok(()) };
    let cache = server.registry.cache();
    let absent =
        || Outcome::new("ServiceNotFound", format!("service/{name} in {namespace:?} is not present"));
    let services = api::kinds::find("", "v1", "services").ok_or_else(absent)?;
    let service = cache.get(services, &services.key(namespace, name)).ok_or_else(absent)?;
    let spec = &service.value()["spec"];
    if spec["type"] != "ClusterIP" {
        return Ok(());
    }
    let own = spec["ports"].as_array().into_iter().flatten().find(|p| p["port"] == *port);
    let Some(own) = own else {
        let why = format!("service/{name} in {namespace:?} is not listening on port {port}");
        return Err(Outcome::new("ServicePortError", why));
    };
    let port_name = own["name"].as_str().unwrap_or_default();
    let (ready, has_slices) = resolve::ready_endpoints(cache, namespace, name, port_name);
    if !has_slices {
        let why = format!("cannot find endpointslices for service/{name} in {namespace:?}");
        return Err(Outcome::new("EndpointsNotFound", why));
    }
    if ready.is_empty() {
        let why = format!(
            "endpointslices for service/{name} in {namespace:?} have no addresses with port name {port_name:?}"
        );
        return Err(Outcome::new("MissingEndpoints", why));
    }
    Ok(())
}

/// Asks a server what it serves.
async fn ask(server: Arc<ApiServer>, remote: Arc<Remote>) -> Result<Value, Outcome> {
    let aggregator = &server.aggregator;
    let (host, port) =
        resolve::resolve(server.registry.cache(), &remote.service).map_err(|e| failed(e.to_string()))?;
    let place = Place { host, port, name: Some(remote.host.clone()) };
    let path = format!("/apis/{}/{}", remote.group, remote.version);
    let url = format!("https://{place}{path}");
    let mut headers = HeaderMap::new();
    let user = UserInfo { name: "system:kube-aggregator".to_owned(), ..UserInfo::default() };
    let user = UserInfo { groups: vec![MASTERS.to_owned()], ..user };
    proxy::add_user(&mut headers, &user).map_err(|e| failed(e.to_string()))?;
    let mut request = Request::get(&path).header(http::header::HOST, place.to_string());
    if let Some(map) = request.headers_mut() {
        map.extend(headers.clone());
    }
    let request = request.body(answer::full(bytes::Bytes::new())).map_err(|e| failed(e.to_string()))?;
    let tls = aggregator.trusting.clone();
    let listed = list(aggregator.dialer.clone(), place.clone(), tls.clone(), request, url.clone());
    let timed = tokio::time::timeout(PATIENCE, listed).await;
    let listed = timed.unwrap_or_else(|_| Err(format!("Get {url:?}: context deadline exceeded")));
    let list = listed.map_err(|why| failed(format!("failing or missing response from {url}: {why}")))?;
    // what it serves does not hang on its documents
    let tls = remote.tls.clone().unwrap_or(tls);
    let fetched = aggregator.fetch_swagger(&remote, place, tls, headers);
    if tokio::time::timeout(PATIENCE, fetched).await.is_err() {
        tracing::debug!(name = remote.name, "the OpenAPI document does not come");
    }
    Ok(list)
}

fn failed(why: String) -> Outcome {
    Outcome::new("FailedDiscoveryCheck", why)
}

async fn list(
    dialer: Dialer,
    place: Place,
    tls: TlsConnector,
    request: Request<Body>,
    url: String,
) -> Result<Value, String> {
    let sent = dialer.exchange(place, Some(tls), request, None).await;
    let (parts, body) = sent.map_err(|e| format!("Get {url:?}: {e}"))?.into_parts();
    if !parts.status.is_success() {
        return Err(format!("bad status from {url}: {}", parts.status.as_u16()));
    }
    // a server that answers, whatever it says, can be asked
    Ok(serde_json::from_slice(&read(body, LIST).await?).unwrap_or_default())
}

/// A body of at most `limit` bytes.
pub(super) async fn read(mut body: Body, limit: usize) -> Result<BytesMut, String> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|e| e.to_string())?.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(format!("the answer is larger than {limit} bytes"));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

/// Puts the condition into the APIService's status where it says something else.
async fn write(server: &ApiServer, checked: Checked) -> ApiResult<()> {
    let Checked { name, passed, outcome } = checked;
    let target = Target { kind: kind()?, namespace: "", name: &name, subresource: "status" };
    let condition = json!({"type": "Available", "status": if passed { "True" } else { "False" },
        "lastTransitionTime": meta::format_time(jiff::Timestamp::now()), "reason": outcome.reason,
        "message": outcome.message});
    let mut attempt = server.registry.begin_update(target, false).await?;
    loop {
        let new = attempt.prepare(with_condition(attempt.old(), condition.clone()))?;
        if attempt.store(new).await?.is_some() {
            return Ok(());
        }
    }
}

/// An APIService with another `Available` condition; its time stays where the status does.
fn with_condition(old: &Value, mut condition: Value) -> Value {
    let mut new = old.clone();
    let known = old["status"]["conditions"].as_array().into_iter().flatten();
    let before = known.clone().find(|c| c["type"] == "Available");
    if let Some(before) = before.filter(|c| c["status"] == condition["status"]) {
        condition["lastTransitionTime"] = before["lastTransitionTime"].clone();
    }
    let mut conditions: Vec<Value> = known.filter(|c| c["type"] != "Available").cloned().collect();
    conditions.push(condition);
    new["status"]["conditions"] = json!(conditions);
    new
}
