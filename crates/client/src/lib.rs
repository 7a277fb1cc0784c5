//! How every part of Navarch talks to the API: a typed client, shared caches, work queues, an event recorder
//! and leader election.
//!
//! A [`Client`] carries an identity and a [`Transport`]: in process (the API server's own pipeline is the
//! transport, so authorization and admission apply, only TCP, TLS and HTTP framing are gone) or HTTPS.
//! [`Caches`] holds one watch-fed cache per kind. In process it is fed with the watch cache's own
//! `Arc<Object>`, so an object is decoded at most once in the process, whoever reads it. What every node keeps of the whole
//! cluster's Services, EndpointSlices and Nodes is a compact view of them ([`traffic`], [`peers`]).
//!
//! Tasks: one reflector per cache (lists, then watches, resumes or re-lists); one event-recorder task per
//! recorder. Both end when the last handle is dropped.

mod cache;
mod error;
pub mod events;
pub mod https;
mod index;
pub mod kubeconfig;
pub mod leader;
pub mod metrics;
pub mod peers;
pub mod process;
pub mod queue;
pub mod queue_stats;
mod reflector;
pub mod relay;
mod request;
pub mod tls;
pub mod traffic;

use std::sync::Arc;

use api::object::Object;
use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use cache::{By, Cache, Cached, Caches, Change, Changes, PartialObject};
pub use error::{Error, TransportError};
pub use index::Property;
pub use request::{DeleteOptions, ListOptions, Patch, encode, path_of};

/// A body that is read as it comes.
pub type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// A typed API object: any top-level `k8s_openapi` type.
pub trait Kind:
    k8s_openapi::Resource
    + k8s_openapi::Metadata<Ty = ObjectMeta>
    + Serialize
    + DeserializeOwned
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<K> Kind for K where
    K: k8s_openapi::Resource
        + k8s_openapi::Metadata<Ty = ObjectMeta>
        + Serialize
        + DeserializeOwned
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// Which objects a cache holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Selection {
    /// API group; empty for the core group.
    pub group: String,
    /// Version, for example `v1`.
    pub version: String,
    /// Plural resource name, for example `pods`.
    pub plural: String,
    /// Namespace; empty for all.
    pub namespace: String,
    /// Field selector; empty for none.
    pub field_selector: String,
    /// Label selector; empty for none.
    pub label_selector: String,
}

/// One change seen by a watch.
#[derive(Debug, Clone)]
pub enum WatchEvent {
    /// The object exists with this state (new, or changed).
    Applied(Arc<Object>),
    /// The object is gone; this was its last state.
    Deleted(Arc<Object>),
    /// Nothing changed up to this revision.
    Bookmark(u64),
}

/// What a watch begins with: the state at one revision, then every change after it, in order.
pub struct ListWatch {
    /// All selected objects at `revision`.
    pub items: Vec<Arc<Object>>,
    /// The revision of the list.
    pub revision: u64,
    /// Changes after `revision`. Ends when the source ends or the watcher lagged; then list again.
    pub events: tokio::sync::mpsc::Receiver<Vec<WatchEvent>>,
}

/// A way to the API server.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Sends one request; the answer's body streams.
    async fn send(&self, request: http::Request<Bytes>) -> Result<http::Response<Body>, TransportError>;

    /// Lists and watches without serialising, where the server is in this process. `None`: not in process,
    /// use the HTTP watch.
    async fn list_watch(&self, _selection: &Selection) -> Option<Result<ListWatch, Error>> {
        None
    }
}

/// A client of one API server with one identity; cheap to clone.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
    caches: Arc<Caches>,
}

impl Client {
    /// A client over `transport`, with caches of its own.
    pub fn new(transport: Arc<dyn Transport>) -> Self {
        let caches = Arc::new(Caches::new(transport.clone()));
        Self { transport, caches }
    }

    /// The caches shared by all clones of this client.
    pub fn caches(&self) -> &Caches {
        &self.caches
    }

    /// The transport below, for streams and raw requests.
    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.transport
    }
}
