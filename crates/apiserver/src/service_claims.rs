//! Who has which service address and node port, decided by the store: safe with any number of servers.
//!
//! Before a Service is stored, what it takes is claimed by creating a key that nobody else can create: an `IPAddress`
//! object for a cluster IP (KEP-1880), a key under `/registry/ranges/servicenodeports/` for a node port. After it is gone its
//! keys go. A server that dies in between leaves a claim too many or too few; [`run`] mends both, as upstream's repair
//! controllers do. The same task keeps this server's pool in step with what other servers write.

use std::sync::Arc;
use std::time::Duration;

use api::field::ErrorList;
use api::kinds::Kind;
use api::meta;
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use store::{Delete, Expect, KeyValue, Put, Revision, Store, StoreError};
use tokio_util::sync::CancellationToken;

use crate::pipeline::ApiServer;
use crate::registry::store_error;
use crate::service_ips::{Claim, Range, ServiceIps, Taken, claims};
use crate::status::{ApiError, ApiResult};
use crate::watch_cache::{WatchCache, encode_stored};

/// Claims of node ports.
const PORTS: &str = "/registry/ranges/servicenodeports/";
/// Upstream's label of addresses that the server manages.
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const MANAGER: &str = "ipallocator.k8s.io";
/// Between two repairs; upstream's.
const REPAIR: Duration = Duration::from_secs(180);
/// A claim so young may belong to a Service that is about to be stored; upstream's.
const GRACE: SignedDuration = SignedDuration::from_secs(60);
/// Keys per page of a walk.
const PAGE: usize = 500;

/// Claims that a write has made, with their revisions.
#[derive(Debug, Default)]
pub struct Made(Vec<(String, Revision)>);

/// What became of a claim.
enum Outcome {
    /// A new key, with its revision.
    Made(Revision),
    /// One that was there for a Service of this name, or was left over.
    TakenOver,
    /// Another has it.
    Refused,
}

/// The store's side of the pool.
#[derive(Clone, Copy)]
pub struct Claims<'a> {
    /// Where claims are.
    pub store: &'a Arc<dyn Store>,
    /// What is known of it.
    pub cache: &'a WatchCache,
}

impl Claims<'_> {
    /// Claims what the write took. Where another server was faster, a number that nobody asked for is replaced in
    /// `service` by another one; one that was asked for is refused.
    pub async fn make(&self, taken: &mut Taken<'_>, kind: &Kind, service: &mut Value) -> ApiResult<Made> {
        let mut made = Made::default();
        let mut next = 0;
        while let Some(claim) = taken.claims().get(next).copied() {
            next += 1;
            match self.make_one(claim, service).await {
                Ok(Outcome::Made(revision)) => made.0.push((key(claim), revision)),
                Ok(Outcome::TakenOver) => {}
                Ok(Outcome::Refused) => {
                    let refusal = match taken.instead_of(claim) {
                        Some(Ok(other)) => {
                            replace(service, claim, other);
                            continue;
                        }
                        Some(Err(_)) | None => refusal(claim, kind, service),
                    };
                    self.undo(made).await;
                    return Err(refusal);
                }
                Err(error) => {
                    self.undo(made).await;
                    return Err(store_error(&error));
                }
            }
        }
        Ok(made)
    }

    /// The write surely did not happen.
    pub async fn undo(&self, made: Made) {
        for (key, revision) in made.0 {
            // What cannot be removed now is removed by the next repair.
            let _ = self.store.delete(Delete::new(key, Expect::Revision(revision))).await;
        }
    }

    /// What `service` had goes.
    pub async fn release(&self, service: &Value, claims: &[Claim]) {
        for claim in claims {
            let Ok((Some(found), _)) = self.store.get(&key(*claim), None).await else { continue };
            if parent(&found) == Some(name_of(service)) && is_managed(&found) {
                let _ =
                    self.store.delete(Delete::new(key(*claim), Expect::Revision(found.mod_revision))).await;
            }
        }
    }

    async fn make_one(&self, claim: Claim, service: &Value) -> Result<Outcome, StoreError> {
        let (key, value) = (key(claim), value(claim, service));
        let mut put = Put::create(key.as_str(), value);
        loop {
            match self.store.put(put.clone()).await {
                Ok(revision) if put.expect == Expect::Absent => return Ok(Outcome::Made(revision)),
                Ok(_) => return Ok(Outcome::TakenOver),
                Err(StoreError::Conflict { current: None }) => put.expect = Expect::Absent,
                Err(StoreError::Conflict { current: Some(found) }) => {
                    // A claim for a Service of this very name: that of a server that died, or one that is about to go.
                    let ours = is_managed(&found) && parent(&found) == Some(name_of(service));
                    if !ours && !self.is_left_over(claim, &found).await {
                        return Ok(Outcome::Refused);
                    }
                    put.expect = Expect::Revision(found.mod_revision);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether no Service has what is claimed, and none is about to.
    async fn is_left_over(&self, claim: Claim, found: &KeyValue) -> bool {
        if !is_managed(found) || is_young(found) || self.cache.fresh().await.is_err() {
            return false;
        }
        let (Some(kind), Some((namespace, name))) = (services(), parent(found)) else { return false };
        let service = self.cache.get(kind, &kind.key(&namespace, &name));
        !service.is_some_and(|service| claims(service.value()).contains(&claim))
    }

    /// Removes claims without a Service, makes those that are missing.
    async fn repair(&self) -> Result<(), StoreError> {
        let Some(kind) = services() else { return Ok(()) };
        let addresses = addresses().map(|kind| kind.storage_prefix.as_str()).unwrap_or_default();
        let mut known = std::collections::HashSet::new();
        for prefix in [addresses, PORTS] {
            let mut after: Option<Arc<str>> = None;
            loop {
                let page = self.store.range(prefix, after.as_deref(), None, PAGE).await?;
                after = page.items.last().map(|kv| kv.key.clone());
                for found in page.items {
                    let Some(claim) = claim_of(&found.key, prefix) else { continue };
                    if self.is_left_over(claim, &found).await {
                        tracing::info!(key = &*found.key, "a claim without its Service is removed");
                        let delete = Delete::new(found.key.clone(), Expect::Revision(found.mod_revision));
                        let _ = self.store.delete(delete).await;
                    } else {
                        known.insert(claim);
                    }
                }
                if !page.more {
                    break;
                }
            }
        }
        for service in self.cache.list(kind, &kind.storage_prefix, None).items {
            for claim in claims(service.value()).into_iter().filter(|claim| !known.contains(claim)) {
                if let Ok(Outcome::Refused) = self.make_one(claim, service.value()).await {
                    tracing::warn!(
                        service = ?name_of(service.value()),
                        number = ?claim,
                        "another Service has the same address or node port"
                    );
                }
            }
        }
        Ok(())
    }
}

/// Keeps the pool in step with the stored Services and mends claims, until `stop`.
pub async fn run(server: Arc<ApiServer>, stop: CancellationToken) {
    let (Some(kind), Some(further)) = (services(), further()) else { return };
    let (pool, cache) = (server.registry.service_ips(), server.registry.cache());
    let claims = Claims { store: server.registry.store(), cache };
    let mut repair = tokio::time::interval(REPAIR);
    repair.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !stop.is_cancelled() {
        let Ok((past, _, mut queue)) = cache.watch(kind, None) else { return };
        let Ok((_, _, mut ranges)) = cache.watch(further, None) else { return };
        pool.extend(ready_ranges(cache, further));
        pool.rebuild(past.iter().filter_map(|change| change.new.as_deref()).map(|service| service.value()));
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                batch = queue.recv() => {
                    // too slow, or the cache was filled anew: begin again
                    let Some(batch) = batch else { break };
                    follow(pool, &batch);
                }
                changed = ranges.recv() => {
                    if changed.is_none() {
                        break;
                    }
                    pool.extend(ready_ranges(cache, further));
                }
                _ = repair.tick() => {
                    if let Err(error) = claims.repair().await {
                        tracing::warn!(error = &error as &dyn std::error::Error, "claims of services are not mended");
                    }
                }
            }
        }
    }
}

fn follow(pool: &ServiceIps, batch: &[crate::watch_cache::Changed]) {
    for change in batch {
        let (old, new) = (change.old.as_deref(), change.new.as_deref());
        pool.follow(old.map(|service| service.value()), new.map(|service| service.value()));
    }
}

/// The ranges of `ServiceCIDR` objects that are ready and stay.
fn ready_ranges(cache: &WatchCache, kind: &Kind) -> Vec<Range> {
    let is_ready = |range: &Value| {
        let mut conditions = range["status"]["conditions"].as_array().into_iter().flatten();
        range["metadata"]["deletionTimestamp"].is_null()
            && conditions.any(|c| c["type"] == "Ready" && c["status"] == "True")
    };
    let found = cache.list(kind, &kind.storage_prefix, None).items;
    let cidrs = |range: Value| -> Vec<Range> {
        let texts = range["spec"]["cidrs"].as_array().into_iter().flatten().filter_map(Value::as_str);
        texts.filter_map(Range::parse).collect()
    };
    found.iter().map(|range| range.to_value()).filter(is_ready).flat_map(cidrs).collect()
}

fn further() -> Option<&'static Arc<Kind>> {
    api::kinds::find("networking.k8s.io", "v1", "servicecidrs")
}

fn services() -> Option<&'static Arc<Kind>> {
    api::kinds::find("", "v1", "services")
}

fn addresses() -> Option<&'static Arc<Kind>> {
    api::kinds::find("networking.k8s.io", "v1", "ipaddresses")
}

fn key(claim: Claim) -> String {
    match claim {
        Claim::Address(ip) => addresses().map(|kind| kind.key("", &ip.to_string())).unwrap_or_default(),
        Claim::Port(port) => format!("{PORTS}{port}"),
    }
}

fn claim_of(key: &str, prefix: &str) -> Option<Claim> {
    let name = key.strip_prefix(prefix)?;
    if prefix == PORTS { name.parse().ok().map(Claim::Port) } else { name.parse().ok().map(Claim::Address) }
}

fn name_of(service: &Value) -> (String, String) {
    (meta::namespace(service).to_owned(), meta::name(service).to_owned())
}

/// The stored form of a claim.
fn value(claim: Claim, service: &Value) -> Bytes {
    let (namespace, name) = name_of(service);
    let created = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let parent = json!({"resource": "services", "namespace": namespace, "name": name});
    let mut object = match claim {
        Claim::Address(ip) => json!({"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
            "metadata": {"name": ip.to_string(), "labels": {
                "ipaddress.kubernetes.io/ip-family": if ip.is_ipv4() { "IPv4" } else { "IPv6" },
                MANAGED_BY: MANAGER}}}),
        Claim::Port(port) => json!({"apiVersion": "v1", "kind": "RangeAllocation",
            "metadata": {"name": port.to_string(), "labels": {MANAGED_BY: MANAGER}}}),
    };
    object["metadata"]["uid"] = json!(uuid::Uuid::new_v4().to_string());
    object["metadata"]["creationTimestamp"] = json!(created);
    object["spec"] = json!({"parentRef": parent});
    encode_stored(&object)
}

fn parsed(found: &KeyValue) -> Value {
    serde_json::from_slice(&found.value).unwrap_or_default()
}

/// Namespace and name of the Service that a claim is for.
fn parent(found: &KeyValue) -> Option<(String, String)> {
    let claim = parsed(found);
    let parent = &claim["spec"]["parentRef"];
    if parent["resource"] != "services" {
        return None;
    }
    let text = |name: &str| parent[name].as_str().map(str::to_owned);
    Some((text("namespace")?, text("name")?))
}

fn is_managed(found: &KeyValue) -> bool {
    parsed(found)["metadata"]["labels"][MANAGED_BY] == MANAGER
}

fn is_young(found: &KeyValue) -> bool {
    let created = parsed(found)["metadata"]["creationTimestamp"].as_str().and_then(|t| t.parse().ok());
    created.is_none_or(|created: Timestamp| Timestamp::now().duration_since(created) < GRACE)
}

/// Puts another number in the place of one that nobody asked for.
fn replace(service: &mut Value, lost: Claim, other: Claim) {
    let spec = &mut service["spec"];
    match (lost, other) {
        (Claim::Address(lost), Claim::Address(other)) => {
            let (lost, other) = (lost.to_string(), json!(other.to_string()));
            if spec["clusterIP"] == lost.as_str() {
                spec["clusterIP"] = other.clone();
            }
            for ip in spec["clusterIPs"].as_array_mut().into_iter().flatten() {
                if *ip == lost.as_str() {
                    *ip = other.clone();
                }
            }
        }
        (Claim::Port(lost), Claim::Port(other)) => {
            if spec["healthCheckNodePort"] == lost {
                spec["healthCheckNodePort"] = json!(other);
            }
            for port in spec["ports"].as_array_mut().into_iter().flatten() {
                if port["nodePort"] == lost {
                    port["nodePort"] = json!(other);
                }
            }
        }
        _ => {}
    }
}

/// The refusal that a server gives when its own pool knows that a number is taken.
fn refusal(claim: Claim, kind: &Kind, service: &Value) -> ApiError {
    let mut errors = ErrorList::default();
    let spec = &service["spec"];
    match claim {
        Claim::Address(ip) => errors.invalid(
            "spec.clusterIPs",
            &spec["clusterIPs"],
            &format!("failed to allocate IP {ip}: provided IP is already allocated"),
        ),
        Claim::Port(port) if spec["healthCheckNodePort"] == port => errors.invalid(
            "spec.healthCheckNodePort",
            &json!(port),
            &format!(
                "failed to allocate requested HealthCheck NodePort {port}: provided port is already allocated"
            ),
        ),
        Claim::Port(port) => {
            let ports = spec["ports"].as_array().into_iter().flatten();
            let index = ports.into_iter().position(|p| p["nodePort"] == port).unwrap_or_default();
            let path = format!("spec.ports[{index}].nodePort");
            errors.invalid(&path, &json!(port), "provided port is already allocated");
        }
    }
    ApiError::invalid(kind, meta::name(service), &errors)
}
