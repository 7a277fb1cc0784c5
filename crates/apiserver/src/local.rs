//! The API server as a transport for clients in the same process: the same pipeline, without TCP, TLS and HTTP
//! framing; and watches that hand over the watch cache's own objects.

use std::sync::Arc;

use api::kinds::Kind;
use async_trait::async_trait;
use bytes::Bytes;
use client::{Body, ListWatch, Selection, Transport, TransportError, WatchEvent};
use http::{Request, Response};
use tokio::sync::mpsc;

use crate::auth::UserInfo;
use crate::auth::authorize::Attributes;
use crate::convert;
use crate::extensions::{self, Retirement};
use crate::pipeline::ApiServer;
use crate::read::{Selectors, end_of, select};
use crate::status::{ApiError, ApiResult};
use crate::watch_cache::{Batch, Changed, WatchCache};

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
            let mut attributes = Attributes {
                verb,
                group: &selection.group,
                resource: selection.plural.clone(),
                version: &selection.version,
                namespace: &selection.namespace,
                field_selector: &selection.field_selector,
                label_selector: &selection.label_selector,
                ..Attributes::default()
            };
            attributes.name = attributes.required_field("metadata.name").unwrap_or_default();
            self.server.authorizer().authorize(&self.user, &attributes).await?;
        }
        let Selection { group, version, plural, .. } = selection;
        let kind = &extensions::find(&self.server, group, version, plural)
            .await?
            .ok_or_else(ApiError::no_such_resource)?;
        let selectors = Selectors::of(kind, &selection.label_selector, &selection.field_selector)?;
        let namespace = (!selection.namespace.is_empty()).then(|| selection.namespace.clone());

        let cache = self.server.registry().cache().clone();
        cache.fresh().await?;
        let (past, revision, queue) = cache.watch(kind, None)?;
        let past = convert::seen_changes(&cache, kind, past).await?;
        let items = past
            .iter()
            .filter_map(|c| select(&selectors, namespace.as_deref(), c).map(|(_, o)| o.clone()))
            .collect();
        let (sender, events) = mpsc::channel(QUEUE);
        let retired = self.server.kinds.retirement(kind);
        let watch = Watch { cache, kind: kind.clone(), selectors, namespace, retired };
        tokio::spawn(watch.forward(queue, sender));
        Ok(ListWatch { items, revision, events })
    }
}

/// What an in-process watcher sees.
struct Watch {
    cache: Arc<WatchCache>,
    kind: Arc<Kind>,
    selectors: Selectors,
    namespace: Option<String>,
    retired: Option<Retirement>,
}

impl Watch {
    /// Turns changes into what the selection sees. Ends when either side does, or the kind is no longer what it was.
    async fn forward(mut self, mut queue: mpsc::Receiver<Batch>, sender: mpsc::Sender<Vec<WatchEvent>>) {
        let mut retired = self.retired.take();
        loop {
            let batch = tokio::select! {
                biased;
                batch = queue.recv() => batch,
                () = sender.closed() => return,
                () = end_of(&mut retired) => return,
            };
            let Some(batch) = batch else { return };
            let seen;
            let changes = match convert::is_stored_as_is(&self.kind) {
                true => &batch[..],
                false => match convert::seen_changes(&self.cache, &self.kind, batch.to_vec()).await {
                    Ok(changes) => {
                        seen = changes;
                        &seen[..]
                    }
                    // a webhook that cannot convert: the watcher begins anew
                    Err(error) => return tracing::warn!(%error, "a watch in this process ends"),
                },
            };
            let events: Vec<WatchEvent> = changes.iter().filter_map(|change| self.event(change)).collect();
            if !events.is_empty() && sender.send(events).await.is_err() {
                return;
            }
        }
    }

    fn event(&self, change: &Changed) -> Option<WatchEvent> {
        let selected = select(&self.selectors, self.namespace.as_deref(), change);
        selected.map(|(what, object)| match what {
            "DELETED" => WatchEvent::Deleted(object.clone()),
            _ => WatchEvent::Applied(object.clone()),
        })
    }
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
