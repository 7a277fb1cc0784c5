//! The API server as a transport for clients in the same process: the same pipeline, without TCP, TLS and HTTP
//! framing; and watches that hand over the watch cache's own objects.

use std::sync::Arc;

use api::selector::{FieldSelector, LabelSelector};
use async_trait::async_trait;
use bytes::Bytes;
use client::{Body, ListWatch, Selection, Transport, TransportError, WatchEvent};
use http::{Request, Response};
use tokio::sync::mpsc;

use crate::auth::UserInfo;
use crate::auth::authorize::Attributes;
use crate::fields;
use crate::pipeline::ApiServer;
use crate::read::{Selectors, select};
use crate::status::{ApiError, ApiResult};
use crate::watch_cache::Changed;

/// Batches that may wait for one in-process watcher.
const QUEUE: usize = 64;

/// The pipeline, with one caller's identity.
pub struct Local {
    server: Arc<ApiServer>,
    user: UserInfo,
}

impl Local {
    /// Requests of `user`.
    pub fn new(server: Arc<ApiServer>, user: UserInfo) -> Self {
        Self { server, user }
    }

    async fn begin(&self, selection: &Selection) -> ApiResult<ListWatch> {
        for verb in ["list", "watch"] {
            let attributes = Attributes {
                verb,
                group: &selection.group,
                resource: selection.plural.clone(),
                namespace: &selection.namespace,
                ..Attributes::default()
            };
            self.server.authorizer().check(&self.user, &attributes)?;
        }
        let kind = api::kinds::find(&selection.group, &selection.version, &selection.plural)
            .ok_or_else(ApiError::no_such_resource)?;
        let labels = LabelSelector::parse(&selection.label_selector)
            .map_err(|e| ApiError::bad_request(e.to_string()))?;
        let fields = FieldSelector::parse(&selection.field_selector)
            .map_err(|e| ApiError::bad_request(e.to_string()))?;
        fields::check(kind, &fields, &selection.label_selector, &selection.field_selector)?;
        let selectors = Selectors { labels, fields };
        let namespace = (!selection.namespace.is_empty()).then(|| selection.namespace.clone());

        let cache = self.server.registry().cache().clone();
        cache.fresh().await?;
        let (past, revision, queue) = cache.watch(kind, None)?;
        let items = past
            .iter()
            .filter_map(|c| select(&selectors, namespace.as_deref(), c).map(|(_, o)| o.clone()))
            .collect();
        let (sender, events) = mpsc::channel(QUEUE);
        tokio::spawn(forward(queue, sender, selectors, namespace));
        Ok(ListWatch { items, revision, events })
    }
}

/// Turns changes into what the selection sees. Ends when either side does.
async fn forward(
    mut queue: mpsc::Receiver<crate::watch_cache::Batch>,
    sender: mpsc::Sender<Vec<WatchEvent>>,
    selectors: Selectors,
    namespace: Option<String>,
) {
    loop {
        let batch = tokio::select! {
            batch = queue.recv() => batch,
            () = sender.closed() => return,
        };
        let Some(batch) = batch else { return };
        let events: Vec<WatchEvent> =
            batch.iter().filter_map(|change| seen(&selectors, namespace.as_deref(), change)).collect();
        if !events.is_empty() && sender.send(events).await.is_err() {
            return;
        }
    }
}

fn seen(selectors: &Selectors, namespace: Option<&str>, change: &Changed) -> Option<WatchEvent> {
    select(selectors, namespace, change).map(|(what, object)| match what {
        "DELETED" => WatchEvent::Deleted(object.clone()),
        _ => WatchEvent::Applied(object.clone()),
    })
}

#[async_trait]
impl Transport for Local {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, TransportError> {
        Ok(self.server.clone().serve(self.user.clone(), request).await)
    }

    async fn list_watch(&self, selection: &Selection) -> Option<Result<ListWatch, client::Error>> {
        Some(self.begin(selection).await.map_err(|error| {
            let status = serde_json::from_value(error.to_value()).unwrap_or_default();
            client::Error::Api(Box::new(status))
        }))
    }
}
