//! Reads and writes of objects of any kind: create, compare-and-swap update, deletion with finalizers and grace.
//!
//! The registry knows strategies and the store, never HTTP. Every write is one store transaction on one key;
//! a write that loses a race is tried again on the newer state unless the client named the revision it means.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::field::ErrorList;
use api::kinds::Kind;
use api::object::Object;
use api::{meta, schema};
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};
use store::{Delete, Durability, Expect, Put, Store, StoreError};

use crate::convert;
use crate::deletion::{self, Plan, finished, plan_deletion};
use crate::object_meta::{keep_system_meta, validate_meta, validate_meta_update};
use crate::options::FeatureGates;
use crate::service_claims::{Claims, Made};
use crate::service_ips::{self, ServiceIps, Taken};
use crate::status::{ApiError, ApiResult};
use crate::strategy::{Context, Strategy};
use crate::watch_cache::{WatchCache, encode_stored, is_stored_alike, with_revision};

/// How long an unconditional write that keeps losing races is tried again: the reference's limit of a write request.
const PATIENCE: Duration = Duration::from_secs(34);
/// How long Events are kept: the reference's default.
const EVENT_TTL: Duration = Duration::from_secs(3600);

/// One object that a request is about.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// Its kind.
    pub kind: &'a Arc<Kind>,
    /// Its namespace; empty for cluster-scoped kinds.
    pub namespace: &'a str,
    /// Its name; may be empty on create.
    pub name: &'a str,
    /// Subresource; empty for the object itself.
    pub subresource: &'a str,
}

impl<'a> Target<'a> {
    fn key(&self) -> String {
        self.kind.key(self.namespace, self.name)
    }

    fn strategy(&self) -> &'a dyn Strategy {
        crate::strategy::of(self.kind)
    }
}

/// What a write left behind.
#[derive(Debug, Clone)]
pub struct Written {
    /// The object's JSON, with its revision.
    pub json: Bytes,
    /// Whether it was created by this write.
    pub created: bool,
}

/// A new state of an object that is complete and valid, with the service addresses reserved for it.
pub struct New<'a> {
    object: Value,
    taken: Taken<'a>,
    warnings: Vec<String>,
}

impl New<'_> {
    /// The object.
    pub fn object(&self) -> &Value {
        &self.object
    }

    /// What is wrong with it but was wrong before: texts for `Warning` headers.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// An object as it is stored and as it is shown, without revision.
struct Forms {
    stored: Bytes,
    shown: Bytes,
}

/// Conditions of a deletion.
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    /// Seconds until the object goes, where the kind is graceful.
    pub grace_period_seconds: Option<i64>,
    /// Only the object with this uid.
    pub uid: Option<String>,
    /// Only this revision.
    pub resource_version: Option<String>,
    /// `Background`, `Foreground`, `Orphan`; or nothing.
    pub propagation_policy: Option<String>,
    /// The older form of `Orphan`.
    pub orphan_dependents: Option<bool>,
    /// Change nothing.
    pub dry_run: bool,
    /// Remove even an object that cannot be read, without its finalizers and preconditions.
    pub ignore_read_error: bool,
}

impl DeleteOptions {
    /// As webhooks and policies see them, without their type.
    pub fn to_value(&self) -> Value {
        let mut value = json!({});
        if let Some(seconds) = self.grace_period_seconds {
            value["gracePeriodSeconds"] = json!(seconds);
        }
        for (key, condition) in [("uid", &self.uid), ("resourceVersion", &self.resource_version)] {
            if let Some(text) = condition {
                value["preconditions"][key] = json!(text);
            }
        }
        if let Some(orphan) = self.orphan_dependents {
            value["orphanDependents"] = json!(orphan);
        }
        if let Some(policy) = &self.propagation_policy {
            value["propagationPolicy"] = json!(policy);
        }
        if self.dry_run {
            value["dryRun"] = json!(["All"]);
        }
        value
    }
}

/// What a deletion did.
#[derive(Debug)]
pub enum Deleted {
    /// The object is gone; this was its last state.
    Gone(Value),
    /// The object is marked and goes later.
    Marked(Value),
}

/// Writes and reads objects.
pub struct Registry {
    store: Arc<dyn Store>,
    cache: Arc<WatchCache>,
    /// Service addresses and node ports.
    services: ServiceIps,
    gates: FeatureGates,
}

impl Registry {
    /// Over one store, the cache that follows it, and the pool that Services take their addresses from.
    pub fn new(
        store: Arc<dyn Store>,
        cache: Arc<WatchCache>,
        services: ServiceIps,
        gates: FeatureGates,
    ) -> Self {
        if let Some(kind) = api::kinds::find("", "v1", "services") {
            for service in cache.list(kind, &kind.storage_prefix, None).items {
                services.restore(service.value());
            }
        }
        Self { store, cache, services, gates }
    }

    /// The pool of service addresses and node ports.
    pub fn service_ips(&self) -> &ServiceIps {
        &self.services
    }

    fn claims(&self) -> Claims<'_> {
        Claims { store: &self.store, cache: &self.cache }
    }

    /// The watch cache.
    pub fn cache(&self) -> &Arc<WatchCache> {
        &self.cache
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The newest state of an object.
    pub async fn get(&self, target: Target<'_>) -> ApiResult<Arc<Object>> {
        self.cache.fresh().await?;
        self.cache
            .get(target.kind, &target.key())
            .ok_or_else(|| self.cache.absent(target.kind, target.name, &target.key()))
    }

    /// Creates an object that is decoded, defaulted and admitted. `dry_run` stores nothing.
    pub async fn create(&self, target: Target<'_>, object: Value, dry_run: bool) -> ApiResult<Written> {
        let new = self.prepare_create(target, object)?;
        self.insert(target, new, dry_run).await
    }

    /// Completes and validates a new object; [`Registry::insert`] stores it.
    pub fn prepare_create(&self, target: Target<'_>, mut object: Value) -> ApiResult<New<'_>> {
        let (kind, strategy) = (target.kind, target.strategy());
        let context = Context { gates: self.gates, ..Context::new(Timestamp::now()) };
        strategy.prepare_create(&context, &mut object);
        fill_status(kind, &mut object);
        let mut errors = ErrorList::default();
        let mut taken = self.services.begin();
        strategy.allocate(&mut taken, &mut object, None, &mut errors);
        if !errors.is_empty() {
            return Err(ApiError::invalid(kind, meta::name(&object), &errors));
        }
        if let Some(rule) = strategy.namespace_rule() {
            rule(&self.namespace_labels(target.namespace), &object, &mut errors);
        }
        validate_meta(kind, &object, &mut errors);
        strategy.validate_create(&object, &mut errors);
        if !errors.is_empty() {
            return Err(ApiError::invalid(kind, meta::name(&object), &errors));
        }
        Ok(New { object, taken, warnings: errors.1 })
    }

    /// The labels of a namespace; null where there are none.
    fn namespace_labels(&self, name: &str) -> Value {
        let namespaces = api::kinds::find("", "v1", "namespaces");
        let namespace = namespaces.and_then(|kind| self.cache.get(kind, &kind.key("", name)));
        namespace.map_or(Value::Null, |namespace| namespace.value()["metadata"]["labels"].clone())
    }

    /// Stores a new object. `dry_run` stores nothing.
    pub async fn insert(&self, target: Target<'_>, new: New<'_>, dry_run: bool) -> ApiResult<Written> {
        let (kind, New { mut object, mut taken, .. }) = (target.kind, new);
        let name = meta::name(&object).to_owned();
        let made =
            if dry_run { Made::default() } else { self.claims().make(&mut taken, kind, &mut object).await? };
        let Forms { stored, shown } = self.forms(kind, &object).await?;
        if dry_run {
            let key = kind.key(target.namespace, &name);
            self.cache.fresh().await?;
            if self.cache.get(kind, &key).is_some() {
                return Err(ApiError::already_exists(kind, &name));
            }
            return Ok(Written { json: shown, created: true });
        }
        let put = self.put(kind, kind.key(target.namespace, &name), stored, Expect::Absent);
        match self.store.put(put).await {
            Ok(revision) => {
                taken.keep(&object);
                Ok(Written { json: with_revision(&shown, revision), created: true })
            }
            Err(StoreError::Conflict { .. }) => {
                self.claims().undo(made).await;
                self.cache.fresh().await?;
                let taker = self.cache.get(kind, &kind.key(target.namespace, &name));
                if taker.is_some_and(|o| meta::is_being_deleted(o.value())) {
                    return Err(ApiError::still_there(kind, &name));
                }
                let error = ApiError::already_exists(kind, &name);
                Err(match object["metadata"]["generateName"].as_str() {
                    Some(prefix) if name.starts_with(prefix) && name.len() == prefix.len() + 5 => {
                        error.with_detail("retryAfterSeconds", json!(1))
                    }
                    _ => error,
                })
            }
            Err(other) => Err(store_error(&other)),
        }
    }

    /// An object as it is stored and as it is shown.
    async fn forms(&self, kind: &Kind, object: &Value) -> ApiResult<Forms> {
        let shown = encode_stored(object);
        Ok(match convert::to_storage(&self.cache, kind, object).await? {
            Cow::Borrowed(_) => Forms { stored: shown.clone(), shown },
            Cow::Owned(converted) => {
                let stored = encode_stored(&converted);
                // what a custom resource loses on its way to the store is not shown
                let shown = match &kind.definition {
                    Some(_) => encode_stored(&convert::from_storage(&self.cache, kind, converted).await?),
                    None => shown,
                };
                Forms { stored, shown }
            }
        })
    }

    fn put(&self, kind: &Kind, key: String, value: Bytes, expect: Expect) -> Put {
        let ttl = (kind.plural == "events").then_some(EVENT_TTL);
        Put { key: key.into(), value, expect, durability: durability(kind), ttl }
    }

    /// Changes an object without asking admission: `change` makes the new state from the newest one and may run
    /// several times. What [`Change::prepare`] refuses is refused here.
    pub async fn update(
        &self,
        target: Target<'_>,
        dry_run: bool,
        mut change: impl FnMut(&Value) -> ApiResult<Value>,
    ) -> ApiResult<Written> {
        let mut attempt = self.begin_update(target, dry_run).await?;
        loop {
            let new = attempt.prepare(change(attempt.old())?)?;
            if let Some(written) = attempt.store(new).await? {
                return Ok(written);
            }
        }
    }

    /// Reads the newest state of an object that is to be changed.
    pub async fn begin_update<'a>(&'a self, target: Target<'a>, dry_run: bool) -> ApiResult<Change<'a>> {
        let current = self.get(target).await?;
        let old = convert::from_storage(&self.cache, target.kind, current.to_value()).await?;
        Ok(Change { registry: self, target, dry_run, until: Instant::now() + PATIENCE, current, old })
    }

    /// Gives back what a removed Service had.
    async fn gone(&self, kind: &Kind, last: &Value, dry_run: bool) {
        if !dry_run && kind.group.is_empty() && kind.plural == "services" {
            self.claims().release(last, &service_ips::claims(last)).await;
            self.services.release(last);
        }
    }

    fn prepare(&self, target: Target<'_>, mut new: Value, old: &Value) -> ApiResult<New<'_>> {
        let (kind, strategy) = (target.kind, target.strategy());
        let context = Context { gates: self.gates, ..Context::new(Timestamp::now()) };
        let mut errors = ErrorList::default();
        let mut taken = self.services.begin();
        keep_system_meta(&mut new, old);
        if target.subresource == "status" {
            strategy.prepare_status_update(&context, &mut new, old);
            validate_meta_update(kind, target.subresource, &new, old, &mut errors);
            strategy.validate_status_update(&new, old, &mut errors);
        } else if !matches!(target.subresource, "" | "scale") {
            strategy.prepare_subresource_update(target.subresource, &mut new, old);
            validate_meta_update(kind, target.subresource, &new, old, &mut errors);
            strategy.validate_subresource_update(target.subresource, &new, old, &mut errors);
        } else {
            strategy.prepare_update(&context, &mut new, old);
            strategy.allocate(&mut taken, &mut new, Some(old), &mut errors);
            if errors.is_empty() {
                validate_meta_update(kind, target.subresource, &new, old, &mut errors);
                strategy.validate_update(&new, old, &mut errors);
            }
        }
        if !errors.is_empty() {
            return Err(ApiError::invalid(kind, target.name, &errors));
        }
        Ok(New { object: new, taken, warnings: errors.1 })
    }

    async fn remove(&self, kind: &Kind, key: &str, revision: u64, dry_run: bool) -> Result<u64, StoreError> {
        if dry_run {
            return Ok(revision);
        }
        let delete =
            Delete { key: key.into(), expect: Expect::Revision(revision), durability: durability(kind) };
        self.store.delete(delete).await.map(|(revision, _)| revision)
    }

    /// Removes an object that is damaged or whose key is lost; `None` where it can be read, or there is none.
    pub async fn remove_unreadable(&self, target: Target<'_>, dry_run: bool) -> ApiResult<Option<Deleted>> {
        match self.get(target).await {
            Ok(_) => return Ok(None),
            Err(error) if error.is_not_found() => return Ok(None),
            Err(_) => {}
        }
        if !dry_run {
            let delete =
                Delete { durability: durability(target.kind), ..Delete::new(target.key(), Expect::Any) };
            match self.store.delete(delete).await {
                Ok(_) | Err(StoreError::Conflict { current: None }) => {}
                Err(other) => return Err(store_error(&other)),
            }
        }
        let (kind, version) = (&target.kind.kind, target.kind.api_version());
        Ok(Some(Deleted::Gone(json!({"kind": kind, "apiVersion": version,
            "metadata": {"name": target.name, "namespace": target.namespace}}))))
    }

    /// Deletes an object without asking admission, or marks it where finalizers or a grace period stand before its
    /// end.
    pub async fn delete(&self, target: Target<'_>, options: &DeleteOptions) -> ApiResult<Deleted> {
        let mut attempt = self.begin_delete(target, options).await?;
        loop {
            match attempt.carry_out(attempt.plan()?).await? {
                Some(done) => return Ok(done),
                None => continue,
            }
        }
    }

    /// Reads the newest state of an object that is to be deleted.
    pub async fn begin_delete<'a>(
        &'a self,
        target: Target<'a>,
        options: &'a DeleteOptions,
    ) -> ApiResult<Removal<'a>> {
        Ok(Removal { change: self.begin_update(target, options.dry_run).await?, options })
    }
}

/// An object between the reading of its newest state and the write that changes it.
///
/// The caller makes a new state from [`Change::old`], has it completed and checked by [`Change::prepare`], and
/// stores it; where another write was faster, [`Change::old`] is the newer state and the caller begins again.
pub struct Change<'a> {
    registry: &'a Registry,
    target: Target<'a>,
    dry_run: bool,
    /// When to stop trying.
    until: Instant,
    current: Arc<Object>,
    old: Value,
}

impl<'a> Change<'a> {
    /// The newest state, in the version of the target's kind.
    pub fn old(&self) -> &Value {
        &self.old
    }

    /// Completes and validates a new state. One that names a `metadata.resourceVersion` is refused unless it names
    /// the newest one.
    pub fn prepare(&self, new: Value) -> ApiResult<New<'a>> {
        let (kind, name) = (self.target.kind, self.target.name);
        let named = new["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        if matches!(named, "" | "0") && !self.target.strategy().allows_unconditional_update() {
            let mut errors = ErrorList::default();
            errors.invalid("metadata.resourceVersion", &json!(0), "must be specified for an update");
            // this one refusal names the resource, not the kind
            return Err(ApiError::invalid_named(&kind.group, &kind.plural, name, &errors));
        }
        if !matches!(named, "" | "0") && named != self.current.revision().to_string() {
            return Err(ApiError::stale(kind, name));
        }
        self.registry.prepare(self.target, new, &self.old)
    }

    /// Stores a new state; `None` where another write was faster. A new state without finalizers of an object that
    /// is being deleted removes it.
    pub async fn store(&mut self, new: New<'a>) -> ApiResult<Option<Written>> {
        let (registry, kind, New { object: mut new, mut taken, .. }) = (self.registry, self.target.kind, new);
        let made = if self.dry_run {
            Made::default()
        } else {
            registry.claims().make(&mut taken, kind, &mut new).await?
        };
        let (key, revision) = (self.target.key(), self.current.revision());
        let Forms { stored, shown } = registry.forms(kind, &new).await?;
        let written = |revision| Some(Written { json: with_revision(&shown, revision), created: false });
        let is_same = match &kind.definition {
            // what is read may be more than what is stored: a write that changes nothing stores that
            Some(_) => with_revision(&stored, revision) == *self.current.json(),
            None => is_stored_alike(&new, &self.old),
        };
        if is_same {
            return Ok(written(revision));
        }
        let outcome = if finished(kind, &new, &self.old) {
            let removed = registry.remove(kind, &key, revision, self.dry_run).await;
            if removed.is_ok() {
                registry.gone(kind, &self.old, self.dry_run).await;
            }
            removed
        } else if self.dry_run {
            Ok(revision)
        } else {
            let put = registry.put(kind, key, stored, Expect::Revision(revision));
            let stored = registry.store.put(put).await;
            match &stored {
                Ok(_) => {
                    registry.claims().release(&new, taken.obsolete()).await;
                    taken.keep(&new);
                }
                Err(StoreError::Conflict { .. }) => registry.claims().undo(made).await,
                Err(_) => {}
            }
            stored
        };
        match outcome {
            Ok(revision) => Ok(written(revision)),
            Err(error) => self.again(&error).await.map(|()| None),
        }
    }

    /// Reads the newer state after a lost race. A client that named a revision is refused when it tries again.
    async fn again(&mut self, error: &StoreError) -> ApiResult<()> {
        if !matches!(error, StoreError::Conflict { .. }) {
            return Err(store_error(error));
        }
        if Instant::now() > self.until {
            return Err(ApiError::stale(self.target.kind, self.target.name));
        }
        self.current = self.registry.get(self.target).await?;
        let (cache, kind) = (&self.registry.cache, self.target.kind);
        self.old = convert::from_storage(cache, kind, self.current.to_value()).await?;
        Ok(())
    }
}

/// An object between the reading of its newest state and its deletion.
pub struct Removal<'a> {
    change: Change<'a>,
    options: &'a DeleteOptions,
}

impl Removal<'_> {
    /// The newest state.
    pub fn old(&self) -> &Value {
        &self.change.old
    }

    /// What the deletion does to the newest state; refuses where that does not meet the request's preconditions.
    pub fn plan(&self) -> ApiResult<Plan> {
        let (target, options) = (self.change.target, self.options);
        deletion::check_preconditions(target, options, &self.change.current)?;
        Ok(plan_deletion(target.strategy(), target.kind, self.old(), options, Timestamp::now()))
    }

    /// Does what was planned; `None` where another write was faster: plan again.
    pub async fn carry_out(&mut self, plan: Plan) -> ApiResult<Option<Deleted>> {
        let Change { registry, target, dry_run, ref current, ref old, .. } = self.change;
        let (kind, key, revision) = (target.kind, target.key(), current.revision());
        let outcome = match plan {
            Plan::Nothing => Ok(Deleted::Marked(old.clone())),
            Plan::Remove(last) => match registry.remove(kind, &key, revision, dry_run).await {
                Ok(revision) => {
                    registry.gone(kind, old, dry_run).await;
                    Ok(Deleted::Gone(revised(last, revision)))
                }
                Err(error) => Err(error),
            },
            Plan::Mark(marked) if dry_run => Ok(Deleted::Marked(marked)),
            Plan::Mark(marked) => {
                let Forms { stored, .. } = registry.forms(kind, &marked).await?;
                let put = registry.put(kind, key, stored, Expect::Revision(revision));
                registry.store.put(put).await.map(|revision| Deleted::Marked(revised(marked, revision)))
            }
        };
        match outcome {
            Ok(done) => Ok(Some(done)),
            Err(error) => self.change.again(&error).await.map(|()| None),
        }
    }
}

/// A status that is printed even when nothing is in it.
fn fill_status(kind: &Kind, object: &mut Value) {
    if object.get("status").is_none()
        && let Some((field, shape)) = schema::get(&kind.type_name).and_then(|ty| ty.field("status"))
        && field.presence == schema::Presence::Always
        && let Ok(empty) = api::codec::decode_value(json!({}), shape)
    {
        object["status"] = empty.value;
    }
}

fn durability(kind: &Kind) -> Durability {
    match kind.durability {
        api::kinds::Durability::Disk => Durability::Disk,
        api::kinds::Durability::Memory => Durability::Memory,
    }
}

fn revised(mut object: Value, revision: u64) -> Value {
    object["metadata"]["resourceVersion"] = json!(revision.to_string());
    object
}

/// A store failure in the API's words.
pub fn store_error(error: &StoreError) -> ApiError {
    match error {
        StoreError::TooLarge { size, limit } => ApiError::too_large(format!(
            "the object of {size} bytes is larger than the store takes ({limit} bytes): split it, or keep the data elsewhere"
        )),
        StoreError::NoSpace { reason } => ApiError::unavailable(format!(
            "no space left in the store: {reason}; delete objects, or raise the quota"
        )),
        StoreError::Compacted { oldest } => ApiError::expired(format!(
            "The resourceVersion for the provided request is too old (oldest: {oldest})."
        )),
        StoreError::Future { current } => ApiError::future_revision(0, *current),
        other => {
            tracing::error!(error = other as &dyn std::error::Error, "store");
            ApiError::internal("the store failed; see the server's log")
        }
    }
}
