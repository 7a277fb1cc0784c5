//! The ConfigMaps and Secrets that pods of this node use: each is watched once, by name, as long as a pod uses it.
//!
//! Rejected: watching all Secrets of the cluster. The Node authorizer forbids it, and a node must not know what its
//! pods don't use.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};

use client::{Client, PartialObject, Selection};
use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// What a pod refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A ConfigMap.
    ConfigMap,
    /// A Secret.
    Secret,
}

impl Kind {
    fn plural(self) -> &'static str {
        match self {
            Kind::ConfigMap => "configmaps",
            Kind::Secret => "secrets",
        }
    }
}

/// All that the pod's volumes and environments name.
pub fn of(pod: &Pod) -> BTreeSet<(Kind, String)> {
    let mut found = BTreeSet::new();
    let Some(spec) = &pod.spec else { return found };
    let mut add = |kind: Kind, name: Option<&str>| {
        if let Some(name) = name.filter(|n| !n.is_empty()) {
            found.insert((kind, name.to_owned()));
        }
    };
    for volume in spec.volumes.iter().flatten() {
        add(Kind::ConfigMap, volume.config_map.as_ref().map(|s| s.name.as_str()));
        add(Kind::Secret, volume.secret.as_ref().and_then(|s| s.secret_name.as_deref()));
        for part in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            add(Kind::ConfigMap, part.config_map.as_ref().map(|s| s.name.as_str()));
            add(Kind::Secret, part.secret.as_ref().map(|s| s.name.as_str()));
        }
    }
    let ephemeral = crate::plan::ephemeral(pod);
    let all = spec.init_containers.iter().flatten().chain(&spec.containers).chain(&ephemeral);
    for (kind, name) in all.flat_map(of_container) {
        add(kind, Some(&name));
    }
    found
}

/// All that a container's environment names.
pub fn of_container(container: &Container) -> BTreeSet<(Kind, String)> {
    let mut found = BTreeSet::new();
    for from in container.env_from.iter().flatten() {
        found.extend(from.config_map_ref.iter().map(|r| (Kind::ConfigMap, r.name.clone())));
        found.extend(from.secret_ref.iter().map(|r| (Kind::Secret, r.name.clone())));
    }
    for from in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
        found.extend(from.config_map_key_ref.iter().map(|r| (Kind::ConfigMap, r.name.clone())));
        found.extend(from.secret_key_ref.iter().map(|r| (Kind::Secret, r.name.clone())));
    }
    found
}

struct State {
    /// `None`: not known yet. `Some(None)`: the object does not exist.
    version: Mutex<Option<Option<String>>>,
    listeners: Mutex<Vec<Weak<Notify>>>,
}

/// An object that is being watched; the watch ends with the last handle.
pub struct Watched {
    state: Arc<State>,
    task: AbortHandle,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watched {
    /// Whether the object is known to be other than the version that was `read` (`None`: there was none).
    pub fn differs(&self, read: Option<&str>) -> bool {
        self.state.version.lock().as_ref().is_some_and(|now| now.as_deref() != read)
    }
}

/// Namespace and name of an object of a kind.
type Key = (Kind, String, String);

/// The watches of this node.
pub struct References {
    client: Client,
    watched: Mutex<HashMap<Key, Weak<Watched>>>,
}

impl References {
    /// Watches nothing yet.
    pub fn new(client: Client) -> Self {
        Self { client, watched: Mutex::default() }
    }

    /// Wakes `listener` whenever the object changes, comes or goes, as long as the handle lives.
    pub fn watch(&self, kind: Kind, ns: &str, name: &str, listener: &Arc<Notify>) -> Arc<Watched> {
        let key = (kind, ns.to_owned(), name.to_owned());
        let mut watched = self.watched.lock();
        if let Some(known) = watched.get(&key).and_then(Weak::upgrade) {
            known.state.listeners.lock().push(Arc::downgrade(listener));
            return known;
        }
        watched.retain(|_, w| w.strong_count() > 0);
        let state = Arc::new(State {
            version: Mutex::default(),
            listeners: Mutex::new(vec![Arc::downgrade(listener)]),
        });
        let task = tokio::spawn(follow(self.client.clone(), key.clone(), state.clone())).abort_handle();
        let fresh = Arc::new(Watched { state, task });
        watched.insert(key, Arc::downgrade(&fresh));
        fresh
    }
}

async fn follow(client: Client, (kind, namespace, name): Key, state: Arc<State>) {
    let selection = Selection {
        group: String::new(),
        version: "v1".to_owned(),
        plural: kind.plural().to_owned(),
        namespace: namespace.clone(),
        field_selector: format!("metadata.name={name}"),
        label_selector: String::new(),
    };
    let cache = client.caches().select::<PartialObject>(selection);
    cache.synced().await;
    let mut changes = cache.subscribe();
    loop {
        while changes.try_next().is_some() {}
        let version = cache.get(&namespace, &name).and_then(|o| o.metadata.resource_version.clone());
        *state.version.lock() = Some(version);
        state.listeners.lock().retain(|listener| match listener.upgrade() {
            Some(listener) => {
                listener.notify_one();
                true
            }
            None => false,
        });
        if changes.next().await.is_none() {
            return;
        }
    }
}
