//! Keeps one cache equal to the server: list, then watch; resume where the watch ended, list anew where it cannot.

use std::sync::Arc;
use std::time::Duration;

use api::object::{Object, ObjectError};
use bytes::{Buf, Bytes, BytesMut};
use http::Request;
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::task::JoinSet;

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
            None => over_http(&transport, &selection, &inner, &mut backoff).await,
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
    transport: &Arc<dyn Transport>,
    selection: &Selection,
    inner: &Inner<V>,
    backoff: &mut Backoff,
) -> Result<(), Error> {
    let base = query(selection);
    let mut revision = list(transport, &base, inner).await?;
    loop {
        match watch(&**transport, &base, revision, inner).await {
            Ok(last) => {
                backoff.reset();
                revision = last;
            }
            Err(error) if error.is_gone() => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Takes over a full list page by page; its revision. A page is read while the server makes the next one, so that at most two
/// are in memory.
async fn list<V: Cached>(transport: &Arc<dyn Transport>, base: &str, inner: &Inner<V>) -> Result<u64, Error> {
    let mut listing = inner.list();
    // ends what is under way when this ends
    let mut requests = JoinSet::new();
    let ask = |next: &str| fetch(transport.clone(), format!("{base}limit={PAGE}&continue={}", encode(next)));
    requests.spawn(ask(""));
    while let Some(fetched) = requests.join_next().await {
        let (path, body) = fetched.map_err(|e| TransportError::Broken(e.into()))??;
        let decode = |source| Error::Decode { what: format!("GET {path}"), source };
        let page: Page<'_> = serde_json::from_slice(&body).map_err(decode)?;
        let next = &page.metadata.next;
        if !next.is_empty() {
            requests.spawn(ask(next));
        }
        let item_kind = page.kind.strip_suffix("List").unwrap_or(&page.kind);
        for raw in page.items.iter().flatten() {
            listing.put(&Arc::new(item(raw.get(), &page.api_version, item_kind).map_err(decode)?));
        }
        if next.is_empty() {
            listing.complete();
            return Ok(page.metadata.resource_version.parse().unwrap_or(0));
        }
    }
    Err(TransportError::Closed.into())
}

/// The path and the whole answer.
async fn fetch(transport: Arc<dyn Transport>, path: String) -> Result<(String, Bytes), Error> {
    let answer = transport.send(Request::get(&path).body(Bytes::new())?).await?;
    let status = answer.status();
    let body = answer.into_body().collect().await.map_err(TransportError::Broken)?.to_bytes();
    if !status.is_success() {
        return Err(api_error(status, &body));
    }
    Ok((path, body))
}

/// An item of a list as an object: servers may leave `apiVersion` and `kind` out of items.
fn item(raw: &str, api_version: &str, kind: &str) -> Result<Object, serde_json::Error> {
    let object = read(Bytes::copy_from_slice(raw.as_bytes()))?;
    if !object.kind().is_empty() {
        return Ok(object);
    }
    let typed = serde_json::json!({"apiVersion": api_version, "kind": kind}).to_string();
    let (Some(head), Some(rest)) = (typed.strip_suffix('}'), raw.trim_start().strip_prefix('{')) else {
        return Ok(object);
    };
    read(format!("{head},{rest}").into())
}

fn read(json: Bytes) -> Result<Object, serde_json::Error> {
    Object::from_json(json, 0).map_err(|error| match error {
        ObjectError::Syntax(source) | ObjectError::Type { source, .. } => source,
    })
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
            let object = read(Bytes::copy_from_slice(raw.as_bytes())).map_err(decode)?;
            revision = object.revision().max(revision);
            match event.kind.as_str() {
                "DELETED" => inner.event(&WatchEvent::Deleted(Arc::new(object))),
                "BOOKMARK" => inner.event(&WatchEvent::Bookmark(revision)),
                _ => inner.event(&WatchEvent::Applied(Arc::new(object))),
            }
        }
        if !buffer.has_remaining() {
            buffer.clear();
        }
    }
    Ok(revision)
}
