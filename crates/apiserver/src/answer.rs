//! Building HTTP answers: objects, lists, tables and refusals in the form that was chosen.

use api::kinds::Kind;
use api::object::Object;
use api::table::Printer;
use bytes::Bytes;
use client::Body;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::list_body::ListBody;
use crate::negotiate::{Form, Format, View};
use crate::status::ApiError;

/// Lists up to this length are made as a whole.
const WHOLE: usize = 128 * 1024;

/// A body that is there as a whole.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// An answer with a body that is there as a whole.
pub fn bytes(code: u16, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    with_body(code, content_type, full(body))
}

fn with_body(code: u16, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Plain text.
pub fn text(code: u16, body: impl Into<Bytes>) -> Response<Body> {
    bytes(code, "text/plain; charset=utf-8", body)
}

/// A JSON tree in the chosen form; in JSON what has no message.
pub fn value(code: u16, form: &Form, body: &Value) -> Response<Body> {
    match form.format {
        Format::Json => {
            let mut text = body.to_string();
            text.push('\n');
            bytes(code, form.content_type(), text)
        }
        Format::Yaml => bytes(code, form.content_type(), to_yaml(body)),
        Format::Protobuf => match to_protobuf(body) {
            Some(message) => bytes(code, form.content_type(), message),
            None => value(code, &Form { format: Format::Json, ..form.clone() }, body),
        },
    }
}

/// A tree that names its type, as its message; none where that type has none.
pub fn to_protobuf(body: &Value) -> Option<Vec<u8>> {
    let text = |key: &str| body[key].as_str().unwrap_or_default();
    api::codec::encode_protobuf(body, api::codec::shape_of(text("apiVersion"), text("kind"))?)
}

fn to_yaml(body: &Value) -> String {
    String::from_utf8_lossy(&api::codec::encode_yaml(body)).into_owned()
}

/// A refusal.
pub fn error(form: &Form, error: &ApiError) -> Response<Body> {
    let mut response = match error.plain_text() {
        Some(plain) => text(error.code, plain.to_owned()),
        None => value(error.code, form, &error.to_value()),
    };
    if let Some(seconds) = error.retry_after() {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if error.code == 401 {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// One object, given as its JSON.
pub fn object(code: u16, form: &Form, kind: &Kind, json: &Bytes, include: Include) -> Response<Body> {
    match (&form.view, form.format) {
        (View::Object, Format::Json) => bytes(code, form.content_type(), json.clone()),
        _ => {
            let tree: Value = serde_json::from_slice(json).unwrap_or_default();
            value(code, form, &view(form, kind, &tree, include, true))
        }
    }
}

/// What a table's rows carry besides the cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Include {
    /// Nothing.
    None,
    /// `PartialObjectMetadata`.
    Metadata,
    /// The object.
    Object,
}

/// An object in the chosen view. `columns`: whether a table says its columns (a watch says them once).
pub fn view(form: &Form, kind: &Kind, object: &Value, include: Include, columns: bool) -> Value {
    view_of(Printer::of(kind), form, object, include, columns)
}

/// [`view`] of an object that is printed in this way.
pub fn view_of(printer: Printer<'_>, form: &Form, object: &Value, include: Include, columns: bool) -> Value {
    match &form.view {
        View::Object => object.clone(),
        View::Metadata { version, .. } => partial(object, version),
        View::Table(version) => {
            let mut table = table(printer, version, std::iter::once(object), include);
            table["metadata"]["resourceVersion"] = object["metadata"]["resourceVersion"].clone();
            if !columns {
                table["columnDefinitions"] = Value::Null;
            }
            table
        }
    }
}

fn partial(object: &Value, version: &str) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": object["metadata"]})
}

fn table<'a>(
    printer: Printer<'_>,
    version: &str,
    objects: impl Iterator<Item = &'a Value>,
    include: Include,
) -> Value {
    let now = Timestamp::now();
    let rows: Vec<Value> = objects
        .map(|object| {
            let mut row = json!({"cells": printer.cells(object, now)});
            if let Some(conditions) = printer.row_conditions(object) {
                row["conditions"] = conditions;
            }
            row["object"] = match include {
                Include::None => Value::Null,
                Include::Metadata => partial(object, version),
                Include::Object => object.clone(),
            };
            row
        })
        .collect();
    json!({"kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": {},
        "columnDefinitions": printer.definitions(),
        "rows": if rows.is_empty() && printer.prints_no_rows_as_null() { Value::Null } else { rows.into() }})
}

/// The metadata of a list.
#[derive(Debug, Clone, Default)]
pub struct ListMeta {
    /// The revision the list stands for.
    pub revision: u64,
    /// Where the next page begins; empty at the end.
    pub next: String,
    /// How many follow, where that is known.
    pub remaining: Option<u64>,
}

impl ListMeta {
    /// As it stands in a list.
    pub fn to_value(&self) -> Value {
        let mut meta = json!({"resourceVersion": self.revision.to_string()});
        if !self.next.is_empty() {
            meta["continue"] = json!(self.next);
        }
        if let Some(remaining) = self.remaining {
            meta["remainingItemCount"] = json!(remaining);
        }
        meta
    }
}

/// A list. In JSON the items' bytes are copied, never parsed; a long one is made while it is sent.
pub fn list<O>(form: &Form, kind: &Kind, items: Vec<O>, meta: &ListMeta, include: Include) -> Response<Body>
where
    O: AsRef<Object> + Send + Unpin + 'static,
{
    if form.view == View::Object && form.format == Format::Json {
        let list = ListBody::new(kind, items, meta);
        if list.len() <= WHOLE {
            return bytes(200, form.content_type(), list.whole());
        }
        return with_body(200, form.content_type(), list.map_err(|never| match never {}).boxed_unsync());
    }
    if form.view == View::Object {
        let whole = ListBody::new(kind, items, meta).whole();
        return value(200, form, &serde_json::from_slice(&whole).unwrap_or_default());
    }
    let trees: Vec<Value> = items.iter().map(|o| o.as_ref().to_value()).collect();
    value(200, form, &list_view(form, kind, &trees, meta.to_value(), include))
}

/// A list in the chosen view.
pub fn list_view(form: &Form, kind: &Kind, items: &[Value], meta: Value, include: Include) -> Value {
    match &form.view {
        View::Object => {
            json!({"kind": kind.list_kind, "apiVersion": kind.api_version(), "metadata": meta, "items": items})
        }
        View::Metadata { version, .. } => {
            let parts = items.iter().map(|o| partial(o, version));
            let items: Value = if items.is_empty() { Value::Null } else { parts.collect() };
            json!({"kind": "PartialObjectMetadataList", "apiVersion": format!("meta.k8s.io/{version}"),
                "metadata": meta, "items": items})
        }
        View::Table(version) => {
            let printer = Printer::of(kind);
            let mut table = table(printer, version, printer.sorted(items).into_iter(), include);
            table["metadata"] = meta;
            table
        }
    }
}
