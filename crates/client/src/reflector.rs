//! Keeps one cache equal to the server: list, then watch; resume where the watch ended, list anew where it cannot.

use std::sync::Arc;
use std::time::Duration;

use api::object::Object;
use bytes::{Buf, Bytes, BytesMut};
use http::Request;
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::cache::{Cached, Inner};
use crate::queue::Backoff;
use crate::request::{api_error, encode};
use crate::{Error, Selection, Transport, TransportError, WatchEvent, path_of};

/// Pages of the first list: bounds what one answer holds in memory.
const PAGE: usize = 1000;

/// Feeds `inner` until the task is aborted (the last handle of the cache is gone).
pub(crate) async fn run<V: Cached>(
    transport: Arc<dyn Transport>,
    selection: Selection,
    inner: Arc<Inner<V>>,
) {
    // The feed must not keep the cache alive by itself; `Feed` aborts this task with the last handle.
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(30));
    loop {
        let outcome = match transport.list_watch(&selection).await {
            Some(Ok(mut source)) => {
                backoff.reset();
                inner.replace(source.items);
                while let Some(batch) = source.events.recv().await {
                    batch.iter().for_each(|event| inner.event(event));
                }
                // ended or lagged: list again at once
                Ok(())
            }
            Some(Err(error)) => Err(error),
            None => over_http(&*transport, &selection, &inner, &mut backoff).await,
        };
        if let Err(error) = outcome {
            let wait = backoff.next();
            tracing::warn!(
                resource = selection.plural,
                error = &error as &dyn std::error::Error,
                retry_ms = wait.as_millis() as u64,
                "list or watch failed"
            );
            tokio::time::sleep(wait).await;
        }
    }
}

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(rename = "apiVersion", default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    metadata: PageMeta,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMeta {
    #[serde(default)]
    resource_version: String,
    #[serde(rename = "continue", default)]
    next: String,
}

fn query(selection: &Selection) -> String {
    let path = path_of(&selection.group, &selection.version, &selection.plural, &selection.namespace, "", "");
    let mut text = format!("{path}?");
    for (name, value) in
        [("labelSelector", &selection.label_selector), ("fieldSelector", &selection.field_selector)]
    {
        if !value.is_empty() {
            text.push_str(&format!("{name}={}&", encode(value)));
        }
    }
    text
}

async fn over_http<V: Cached>(
    transport: &dyn Transport,
    selection: &Selection,
    inner: &Inner<V>,
    backoff: &mut Backoff,
) -> Result<(), Error> {
    let base = query(selection);
    let (items, mut revision) = list(transport, &base).await?;
    inner.replace(items);
    loop {
        match watch(transport, &base, revision, inner).await {
            Ok(last) => {
                backoff.reset();
                revision = last;
            }
            Err(error) if error.is_gone() => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

async fn list(transport: &dyn Transport, base: &str) -> Result<(Vec<Arc<Object>>, u64), Error> {
    let (mut items, mut next) = (Vec::new(), String::new());
    loop {
        let path = format!("{base}limit={PAGE}&continue={}", encode(&next));
        let answer = transport.send(Request::get(&path).body(Bytes::new())?).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await.map_err(TransportError::Broken)?.to_bytes();
        if !status.is_success() {
            return Err(api_error(status, &body));
        }
        let decode = |source| Error::Decode { what: format!("GET {path}"), source };
        let page: Page<'_> = serde_json::from_slice(&body).map_err(decode)?;
        let item_kind = page.kind.strip_suffix("List").unwrap_or(&page.kind);
        for raw in page.items.iter().flatten() {
            items.push(Arc::new(item(raw.get(), &page.api_version, item_kind).map_err(decode)?));
        }
        if page.metadata.next.is_empty() {
            return Ok((items, page.metadata.resource_version.parse().unwrap_or(0)));
        }
        next = page.metadata.next;
    }
}

/// An item of a list as an object: servers may leave `apiVersion` and `kind` out of items.
fn item(raw: &str, api_version: &str, kind: &str) -> Result<Object, serde_json::Error> {
    let mut value: serde_json::Value = serde_json::from_str(raw)?;
    let bytes = if value.get("kind").is_some() {
        Bytes::copy_from_slice(raw.as_bytes())
    } else {
        value["apiVersion"] = api_version.into();
        value["kind"] = kind.into();
        Bytes::from(serde_json::to_vec(&value)?)
    };
    let revision = value["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok()).unwrap_or(0);
    Ok(Object::from_value(value, bytes, revision))
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// Watches until the server ends the stream; the revision up to which everything was seen.
async fn watch<V: Cached>(
    transport: &dyn Transport,
    base: &str,
    mut revision: u64,
    inner: &Inner<V>,
) -> Result<u64, Error> {
    let path = format!("{base}watch=true&allowWatchBookmarks=true&resourceVersion={revision}");
    let answer = transport.send(Request::get(&path).body(Bytes::new())?).await?;
    let status = answer.status();
    let mut body = answer.into_body();
    if !status.is_success() {
        let bytes = body.collect().await.map_err(TransportError::Broken)?.to_bytes();
        return Err(api_error(status, &bytes));
    }
    let mut buffer = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(TransportError::Broken)?;
        let Ok(data) = frame.into_data() else { continue };
        buffer.extend_from_slice(&data);
        while let Some(end) = buffer.iter().position(|b| *b == b'\n') {
            let line = buffer.split_to(end + 1);
            if line.trim_ascii().is_empty() {
                continue;
            }
            let decode = |source| Error::Decode { what: format!("GET {path}"), source };
            let event: Line<'_> = serde_json::from_slice(&line).map_err(decode)?;
            let raw = event.object.get();
            if event.kind == "ERROR" {
                return Err(api_error(http::StatusCode::INTERNAL_SERVER_ERROR, raw.as_bytes()));
            }
            let object =
                Object::from_json(Bytes::copy_from_slice(raw.as_bytes()), 0).map_err(|e| match e {
                    api::object::ObjectError::Syntax(source)
                    | api::object::ObjectError::Type { source, .. } => decode(source),
                })?;
            revision = object.revision().max(revision);
            inner.event(&match event.kind.as_str() {
                "DELETED" => WatchEvent::Deleted(Arc::new(object)),
                "BOOKMARK" => WatchEvent::Bookmark(revision),
                _ => WatchEvent::Applied(Arc::new(object)),
            });
        }
        if !buffer.has_remaining() {
            buffer.clear();
        }
    }
    Ok(revision)
}
