//! Lists that come in pages over HTTP, and what a cache makes of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use client::{Body, Cache, Change, Client, Transport, TransportError};
use http_body_util::{BodyExt, Full};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};
use tokio::sync::Notify;

/// Two lists in pages of one item; the watch after the first list says that its revision is gone, the next stays open.
#[derive(Default)]
struct Pages {
    lists: AtomicUsize,
    /// What the first list brought was told.
    told: Notify,
}

fn map(name: &str, revision: u32) -> Value {
    // items of lists have no kind
    json!({"metadata": {"name": name, "namespace": "d", "uid": name, "resourceVersion": revision.to_string(),
        "managedFields": [{"manager": "m", "fieldsV1": {"f:data": {}}}]}, "data": {"k": "v"}})
}

#[async_trait]
impl Transport for Pages {
    async fn send(&self, request: http::Request<Bytes>) -> Result<http::Response<Body>, TransportError> {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let list = self.lists.load(Ordering::SeqCst);
        let (status, body) = if query.contains("watch=true") {
            if list > 1 {
                tokio::time::sleep(Duration::from_secs(3600)).await;
            }
            self.told.notified().await;
            (410, json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}))
        } else {
            let next = query.rsplit_once("continue=").map_or("", |(_, next)| next);
            if next.is_empty() {
                self.lists.fetch_add(1, Ordering::SeqCst);
            }
            let (item, next) = match (list, next) {
                (0, "") => (map("a", 1), "first"),
                (_, "first") => (map("b", 2), ""),
                (_, "") => (map("b", 2), "second"),
                (_, _) => (map("c", 5), ""),
            };
            let metadata = json!({"resourceVersion": "9", "continue": next});
            (200, json!({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": metadata, "items": [item]}))
        };
        let body = Full::new(Bytes::from(body.to_string())).map_err(|never| match never {}).boxed_unsync();
        Ok(http::Response::builder().status(status).body(body).unwrap())
    }
}

#[tokio::test]
async fn a_list_is_taken_over_page_by_page_and_what_a_later_one_does_not_name_is_gone() {
    let pages = Arc::new(Pages::default());
    let client = Client::new(pages.clone());
    let cache: Cache<ConfigMap> = client.caches().of();
    let mut changes = cache.subscribe();
    cache.synced().await;
    let mut told = Vec::new();
    while told.len() < 4 {
        let change = tokio::time::timeout(Duration::from_secs(30), changes.next()).await.unwrap().unwrap();
        let name = change.object().metadata.name.clone().unwrap();
        assert!(change.object().data.is_some() && change.object().metadata.managed_fields.is_none());
        told.push(match change {
            Change::Added(_) => format!("+{name}"),
            Change::Modified { .. } => format!("~{name}"),
            Change::Deleted(_) => format!("-{name}"),
        });
        if told.len() == 2 {
            pages.told.notify_one();
        }
    }
    assert_eq!(told, ["+a", "+b", "+c", "-a"]);
    let names: Vec<_> = cache.list().iter().filter_map(|map| map.metadata.name.clone()).collect();
    assert_eq!(names, ["b", "c"]);
}
