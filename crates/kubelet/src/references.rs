//! The ConfigMaps and Secrets that pods of this node use: each is watched once, by name, as long as a pod uses it.
//!
//! Rejected: watching all Secrets of the cluster. The Node authorizer forbids it, and a node must not know what its
//! pods don't use.

use std::any::Any;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};

use client::{Client, PartialObject, Selection};
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret};
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

/// An object that pods refer to.
pub trait Referenced: client::Kind {
    /// Which of them.
    const WHICH: Kind;
}

impl Referenced for ConfigMap {
    const WHICH: Kind = Kind::ConfigMap;
}

impl Referenced for Secret {
    const WHICH: Kind = Kind::Secret;
}

/// All that the pod's volumes and environments name, and what its images are pulled with.
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
    for secret in spec.image_pull_secrets.iter().flatten() {
        add(Kind::Secret, Some(&secret.name));
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
    /// The object as it was read last.
    last: Mutex<Option<Arc<dyn Any + Send + Sync>>>,
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
            last: Mutex::default(),
            listeners: Mutex::new(vec![Arc::downgrade(listener)]),
        });
        let task = tokio::spawn(follow(self.client.clone(), key.clone(), state.clone())).abort_handle();
        let fresh = Arc::new(Watched { state, task });
        watched.insert(key, Arc::downgrade(&fresh));
        fresh
    }

    /// The object as the API has it. While that does not answer, as it was read last, as long as a pod refers to it: containers
    /// start anew whatever becomes of the servers.
    pub async fn get<K: Referenced>(&self, ns: &str, name: &str) -> Result<K, client::Error> {
        let found = Box::pin(self.client.get::<K>(ns, name)).await;
        let key = (K::WHICH, ns.to_owned(), name.to_owned());
        let Some(watched) = self.watched.lock().get(&key).and_then(Weak::upgrade) else { return found };
        let mut last = watched.state.last.lock();
        match found {
            Ok(object) => {
                *last = Some(Arc::new(object.clone()));
                Ok(object)
            }
            Err(error) if error.is_passing() => {
                let known = last.as_ref().and_then(|last| last.downcast_ref::<K>());
                known.cloned().ok_or(error)
            }
            Err(error) => {
                *last = None;
                Err(error)
            }
        }
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

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use bytes::Bytes;
    use http_body_util::BodyExt as _;
    use serde_json::{Value, json};

    use super::*;

    /// An API that answers questions for one object with what it is told, and nobody else.
    #[derive(Clone, Default)]
    struct Api(Arc<Mutex<Value>>);

    #[async_trait]
    impl client::Transport for Api {
        async fn send(
            &self,
            request: http::Request<Bytes>,
        ) -> Result<http::Response<client::Body>, client::TransportError> {
            if request.uri().path() != "/api/v1/namespaces/d/secrets/s" {
                std::future::pending::<()>().await;
            }
            let answer = self.0.lock().clone();
            let code = answer["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(200);
            let body = http_body_util::Full::new(Bytes::from(answer.to_string()));
            let response = http::Response::builder().status(code);
            Ok(response.body(body.map_err(|never| match never {}).boxed_unsync()).unwrap())
        }
    }

    #[tokio::test]
    async fn what_was_read_stands_in_for_an_api_that_does_not_answer() {
        let api = Api::default();
        let references = References::new(Client::new(Arc::new(api.clone())));
        let secret =
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"k": "MQ=="}});
        let answer = |code: u64, reason: &str| json!({"apiVersion": "v1", "kind": "Status", "code": code, "reason": reason});
        let ask = async |says: &Value| {
            *api.0.lock() = says.clone();
            let found = references.get::<Secret>("d", "s").await;
            found.map(|secret| secret.data.map_or(0, |data| data.len())).map_err(|error| error.is_not_found())
        };
        let (away, gone) = (answer(503, "ServiceUnavailable"), answer(404, "NotFound"));
        assert_eq!(ask(&secret).await, Ok(1));
        assert_eq!(ask(&away).await, Err(false), "no pod refers to it");
        let held = references.watch(Kind::Secret, "d", "s", &Arc::default());
        assert_eq!(ask(&away).await, Err(false), "it was not read since then");
        assert_eq!(ask(&secret).await, Ok(1));
        assert_eq!(ask(&away).await, Ok(1));
        assert_eq!(ask(&gone).await, Err(true));
        assert_eq!(ask(&away).await, Err(false), "it is gone");
        assert_eq!(ask(&secret).await, Ok(1));
        drop(held);
        assert_eq!(ask(&away).await, Err(false), "nobody needs it any more");
    }
}
