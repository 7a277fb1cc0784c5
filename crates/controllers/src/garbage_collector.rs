//! Garbage collector: deletes objects whose owners are gone, and carries out foreground and orphan deletion, for every
//! kind the server serves, custom resources included.
//!
//! The graph is a view of the caches; nothing is deleted on its word alone: an owner that it does not know is asked for
//! in the API, and every write carries the uid and the revision it was decided for.
//!
//! Tasks: one per watched kind, feeding graph and queue; they end with their kind or with the controller.
mod graph;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use client::events::EventType;
use client::queue::{Backoff, WorkQueue};
use client::{Cache, Change, DeleteOptions, PartialObject};
use http::Method;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use self::graph::{Decision, FOREGROUND, Graph, Item, ORPHAN, Owner, Uid};
use crate::discovery::{self, Served};
use crate::runner::{Context, Failure, Outcome, Reconcile, Runner};

/// Kinds that own nothing and end by themselves.
const IGNORED: [&str; 2] = ["events", "events.events.k8s.io"];

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    /// The kinds that are served may have changed.
    Kinds,
    Object(Uid),
}

struct Controller {
    context: Context,
    queue: WorkQueue<Key>,
    graph: Arc<Mutex<Graph>>,
    kinds: Mutex<HashMap<Arc<Served>, Feed>>,
    /// Names of what should be served soon.
    definitions: Cache<PartialObject>,
    /// Every served kind, also those that are not watched, to find owners by kind.
    served: Mutex<Vec<Arc<Served>>>,
}

/// The task that feeds one kind's changes; it ends when this is dropped.
struct Feed(JoinHandle<()>);

impl Drop for Feed {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(crate) async fn run(context: Context) {
    let definitions = context.reader.caches().metadata(
        <CustomResourceDefinition as k8s_openapi::Resource>::GROUP,
        <CustomResourceDefinition as k8s_openapi::Resource>::VERSION,
        "customresourcedefinitions",
    );
    let controller = Controller {
        context: context.clone(),
        definitions: definitions.clone(),
        queue: WorkQueue::new(),
        graph: Arc::default(),
        kinds: Mutex::default(),
        served: Mutex::default(),
    };
    // A graph that lacks kinds would release owners too early: nothing is done before all are there.
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(10));
    while let Err(failure) = tokio::select! {
        () = context.stop.cancelled() => return,
        result = controller.refresh_kinds() => result,
    } {
        tracing::warn!(error = &failure as &dyn std::error::Error, "discovery failed");
        tokio::select! {
            () = context.stop.cancelled() => return,
            () = tokio::time::sleep(backoff.next()) => {}
        }
    }
    let queue = controller.queue.clone();
    Runner::with_queue(&context, controller, queue)
        .on(&definitions, |c: &Controller, change| {
            // A definition serves its kind a moment after it is stored, so that every change of its status counts.
            let known = matches!(change, Change::Added(_)) && !c.served.lock().is_empty();
            (!known || c.lacks(change.object())).then_some(Key::Kinds)
        })
        .run(8)
        .await;
}

impl Controller {
    /// Whether the kind a definition defines (its name is `plural.group`) is not known yet.
    fn lacks(&self, definition: &PartialObject) -> bool {
        let name = definition.metadata.name.as_deref().unwrap_or_default();
        !self.served.lock().iter().any(|s| s.qualified() == name)
    }

    /// Starts to watch kinds that are new, ends those that are gone, and takes over what is there.
    async fn refresh_kinds(&self) -> Result<(), Failure> {
        let (served, failed) = discovery::kinds(&self.context.client).await?;
        if let Some((group_version, error)) = failed.into_iter().next() {
            tracing::warn!(
                group_version,
                error = &error as &dyn std::error::Error,
                "group left out of the graph"
            );
        }
        let served: Vec<Arc<Served>> = served.into_iter().map(Arc::new).collect();
        *self.served.lock() = served.clone();
        let watched: Vec<Arc<Served>> = served
            .into_iter()
            .filter(|s| ["delete", "list", "watch"].iter().all(|v| s.can(v)))
            .filter(|s| !IGNORED.contains(&s.qualified().as_str()))
            .collect();
        let gone: Vec<_> = self.kinds.lock().extract_if(|kind, _| !watched.contains(kind)).collect();
        for (kind, feed) in gone {
            drop(feed);
            let look = self.graph.lock().forget_kind(&kind);
            look.into_iter().for_each(|uid| self.queue.add(Key::Object(uid)));
        }
        let fresh: Vec<_> = watched.into_iter().filter(|k| !self.kinds.lock().contains_key(k)).collect();
        let caches: Vec<(Arc<Served>, Cache<PartialObject>)> = fresh
            .into_iter()
            .map(|k| (k.clone(), self.context.reader.caches().metadata(&k.group, &k.version, &k.plural)))
            .collect();
        let mut feeds = Vec::with_capacity(caches.len());
        let mut look = Vec::new();
        for (kind, cache) in caches {
            // A kind that cannot be listed must not stop the others for ever.
            if tokio::time::timeout(Duration::from_secs(30), cache.synced()).await.is_err() {
                tracing::warn!(kind = kind.qualified(), "not listed in time; watched all the same");
            }
            // One subscription for what is there and what comes: between two, a deletion would be missed.
            let mut changes = cache.subscribe();
            while let Some(change) = changes.try_next() {
                look.extend(take_over(&self.graph, &kind, &change));
            }
            feeds.push((kind, changes));
        }
        // Only now: what a kind says about its owners means nothing before the owners' kind is there.
        look.into_iter().for_each(|uid| self.queue.add(Key::Object(uid)));
        for (kind, mut changes) in feeds {
            let (graph, queue, of) = (self.graph.clone(), self.queue.clone(), kind.clone());
            let task = tokio::spawn(async move {
                while let Some(change) = changes.next().await {
                    let look = take_over(&graph, &of, &change);
                    look.into_iter().for_each(|uid| queue.add(Key::Object(uid)));
                }
            });
            self.kinds.lock().insert(kind, Feed(task));
        }
        tracing::debug!(objects = self.graph.lock().len(), "graph ready");
        Ok(())
    }

    /// Asks the API whether the owner that `item` names exists.
    async fn verify(&self, item: &Item, owner: &OwnerReference) -> Result<Owner, Failure> {
        let (group, _) = owner.api_version.split_once('/').unwrap_or(("", ""));
        let kind = self.served.lock().iter().find(|s| s.kind == owner.kind && s.group == group).cloned();
        let Some(kind) = kind else {
            let text =
                format!("owner of {} is of unknown kind {}/{}", item.path(), owner.api_version, owner.kind);
            return Err(Failure::Invalid(text));
        };
        if kind.namespaced && item.namespace.is_empty() {
            // A cluster-scoped object cannot have an owner in a namespace. Nothing can be said, so nothing is deleted.
            return Ok(Owner::Solid);
        }
        let path = kind.path(&item.namespace, &owner.name);
        match self.context.client.call::<(), PartialObject>(Method::GET, &path, None).await {
            Ok(live) if live.metadata.uid.as_deref() != Some(owner.uid.as_str()) => Ok(Owner::Absent),
            Ok(live) => {
                let waits = live.metadata.deletion_timestamp.is_some()
                    && live.metadata.finalizers.iter().flatten().any(|f| f == FOREGROUND);
                Ok(if waits { Owner::Waiting } else { Owner::Solid })
            }
            Err(error) if error.is_not_found() => Ok(Owner::Absent),
            Err(error) => Err(error.into()),
        }
    }

    /// Says that the owner that `item` names is none of its namespace.
    fn tell_elsewhere(&self, item: &Item, owner: &OwnerReference) {
        let about = ObjectReference {
            api_version: Some(item.kind.api_version()),
            kind: Some(item.kind.kind.clone()),
            namespace: (!item.namespace.is_empty()).then(|| item.namespace.clone()),
            name: Some(item.name.clone()),
            uid: Some(item.uid.to_string()),
            ..ObjectReference::default()
        };
        let OwnerReference { api_version, kind, name, uid, .. } = owner;
        let ns = &item.namespace;
        let message = format!(
            "ownerRef [{api_version}/{kind}, namespace: {ns}, name: {name}, uid: {uid}] does not exist in namespace {ns:?}"
        );
        self.context.recorder.event(&about, EventType::Warning, "OwnerRefInvalidNamespace", message);
    }

    /// Merge patch of metadata, valid only for the revision decided on. An object that is gone is fine.
    async fn patch(&self, item: &Item, mut metadata: Value) -> Result<(), Failure> {
        metadata["uid"] = json!(&*item.uid);
        metadata["resourceVersion"] = json!(item.resource_version);
        let patch = serde_json::to_vec(&json!({"metadata": metadata}))
            .map_err(|e| Failure::Invalid(e.to_string()))?;
        let request = http::Request::patch(item.path())
            .header(http::header::CONTENT_TYPE, "application/merge-patch+json")
            .body(patch.into())
            .map_err(client::Error::from)?;
        let answer = self.context.client.request(request).await?;
        match answer.status() {
            s if s.is_success() || s == http::StatusCode::NOT_FOUND => Ok(()),
            _ => Err(Failure::Invalid(format!(
                "PATCH {}: {}",
                item.path(),
                String::from_utf8_lossy(&answer.body()[..answer.body().len().min(512)])
            ))),
        }
    }

    async fn remove_owners(&self, item: &Item, uids: &[String]) -> Result<(), Failure> {
        let left: Vec<_> = item.owners.iter().filter(|o| !uids.contains(&o.uid)).collect();
        self.patch(item, json!({"ownerReferences": left})).await
    }

    async fn remove_finalizer(&self, item: &Item, finalizer: &str) -> Result<(), Failure> {
        let left: Vec<_> = item.finalizers.iter().filter(|f| *f != finalizer).collect();
        self.patch(item, json!({"finalizers": left})).await
    }

    async fn delete(&self, item: &Item, policy: &'static str) -> Result<(), Failure> {
        let options = DeleteOptions {
            uid: Some(item.uid.to_string()),
            resource_version: item.resource_version.clone(),
            propagation_policy: Some(policy),
            ..DeleteOptions::default()
        };
        match self.context.client.delete_path(&item.path(), &options).await {
            Ok(()) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn look_at(&self, uid: &Uid) -> Result<Outcome, Failure> {
        let mut verified = HashMap::new();
        loop {
            let (item, decision) = {
                let graph = self.graph.lock();
                let Some(item) = graph.item(uid) else { return Ok(Outcome::Settled) };
                (item.clone(), graph.decide(uid, &verified))
            };
            match decision {
                Decision::Nothing => {}
                Decision::Verify(owners) => {
                    for owner in owners {
                        if self.graph.lock().is_elsewhere(&item, &owner) {
                            self.tell_elsewhere(&item, &owner);
                        }
                        let state = self.verify(&item, &owner).await?;
                        verified.insert(owner.uid, state);
                    }
                    continue;
                }
                Decision::RemoveOwners(uids) => self.remove_owners(&item, &uids).await?,
                Decision::Delete(policy) => self.delete(&item, policy).await?,
                Decision::UnblockAndDelete => {
                    let owners: Vec<_> = item
                        .owners
                        .iter()
                        .map(|o| OwnerReference { block_owner_deletion: Some(false), ..o.clone() })
                        .collect();
                    if item.owners.iter().any(|o| o.block_owner_deletion == Some(true)) {
                        // The patch moves the revision; the next pass sees it and deletes.
                        self.patch(&item, json!({"ownerReferences": owners})).await?;
                        return Ok(Outcome::Retry);
                    }
                    self.delete(&item, "Foreground").await?;
                }
                Decision::Orphan(dependents) => {
                    for dependent in dependents {
                        let dependent = self.graph.lock().item(&dependent).cloned();
                        if let Some(dependent) = dependent {
                            self.remove_owners(&dependent, &[uid.to_string()]).await?;
                        }
                    }
                    self.remove_finalizer(&item, ORPHAN).await?;
                }
                Decision::Descend(dependents) => {
                    dependents.into_iter().for_each(|d| self.queue.add(Key::Object(d)));
                }
                Decision::Release => self.remove_finalizer(&item, FOREGROUND).await?,
            }
            return Ok(Outcome::Settled);
        }
    }
}

/// Brings a change into the graph; the objects that have to be looked at now.
fn take_over(graph: &Mutex<Graph>, kind: &Arc<Served>, change: &Change<PartialObject>) -> Vec<Uid> {
    match change {
        Change::Deleted(object) => graph.lock().forget(object.metadata.uid.as_deref().unwrap_or_default()),
        Change::Added(object) | Change::Modified { new: object, .. } => {
            graph.lock().observe(Item::new(kind, &object.metadata))
        }
    }
}

impl Reconcile for Controller {
    type Key = Key;

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Failure> {
        match key {
            Key::Kinds => {
                self.refresh_kinds().await?;
                // A new definition is served a moment after it is stored, and nothing tells when.
                let open = self.definitions.list().iter().any(|d| self.lacks(d));
                Ok(if open { Outcome::Retry } else { Outcome::Settled })
            }
            Key::Object(uid) => self.look_at(uid).await,
        }
    }
}
