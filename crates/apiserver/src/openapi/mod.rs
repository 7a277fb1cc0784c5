//! OpenAPI documents: `/openapi/v3` (an index and one document per group and version) and `/openapi/v2` (everything).
//!
//! A document is put together when it is first asked for: structure from the schema descriptor, words from the
//! documentation inside `k8s-openapi`, paths from the table of kinds. Only its gzipped bytes are kept. `/openapi/v2` has
//! two forms, JSON and protobuf; the others are JSON.

mod docs;
mod gnostic;
mod paths;
mod schemas;

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::sync::Arc;

use api::kinds::KindTable;
use bytes::Bytes;
use client::Body;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use http::header::{self, HeaderValue};
use http::{HeaderMap, Response};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::aggregation::swagger::Swagger;
use crate::answer;
use crate::negotiate;
use crate::status::{ApiError, ApiResult};

/// Raised with every change of how documents are made: clients keep documents by hash for ever.
const FORMAT: u32 = 1;

/// The two dialects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    /// Swagger 2.0.
    V2,
    /// OpenAPI 3.0.
    V3,
}

impl Dialect {
    fn reference(self, name: &str) -> String {
        match self {
            Dialect::V2 => format!("#/definitions/{name}"),
            Dialect::V3 => format!("#/components/schemas/{name}"),
        }
    }
}

/// The documents made so far, gzipped, by name and hash.
#[derive(Default)]
pub struct OpenApi {
    made: Mutex<HashMap<String, (String, Bytes)>>,
}

impl OpenApi {
    /// Answers `/openapi/v2`, which speaks for `others` too, `/openapi/v3` and `/openapi/v3/...`; `hash` is the query
    /// parameter of that name.
    pub fn answer(
        &self,
        kinds: &KindTable,
        path: &str,
        hash: &str,
        headers: &HeaderMap,
        others: &[Arc<Swagger>],
    ) -> ApiResult<Response<Body>> {
        let name = path.trim_start_matches("/openapi/").trim_end_matches('/');
        if name == "v2" {
            let own = hash_of(kinds, None);
            let tag = match others {
                [] => own,
                others => {
                    let mut hash = Sha256::new();
                    hash.update(own.as_bytes());
                    others.iter().for_each(|other| hash.update(&other.tag));
                    hash.finalize().iter().map(|b| format!("{b:02X}")).collect()
                }
            };
            let make = || {
                let mut whole = document(kinds, Dialect::V2, None, "v2");
                others.iter().for_each(|other| other.join(&mut whole));
                whole
            };
            return match form(headers, &[PROTOBUF, PROTOBUF_ALIAS])? {
                Form::Json => self.document("v2", JSON, &tag, headers, || json_bytes(&make())),
                Form::Protobuf => {
                    let tag = format!("{tag}-PROTOBUF");
                    self.document("v2 protobuf", PROTOBUF, &tag, headers, || Ok(gnostic::document(&make())))
                }
            };
        }
        form(headers, &[])?;
        let Some(rest) = name.strip_prefix("v3") else { return Err(ApiError::no_such_page()) };
        let rest = rest.trim_start_matches('/');
        if rest.is_empty() {
            return Ok(answer::bytes(200, "application/json", index(kinds).to_string()));
        }
        let found = group_versions(kinds).into_iter().find(|gv| page(gv) == rest);
        let Some(gv) = found else {
            let mut response = answer::bytes(404, "text/plain", Bytes::new());
            response.headers_mut().remove(header::CONTENT_TYPE);
            return Ok(response);
        };
        let tag = hash_of(kinds, Some(&gv));
        if !hash.is_empty() && hash != tag {
            let mut response = answer::bytes(301, "application/json", Bytes::new());
            if let Ok(location) = HeaderValue::from_str(&format!("/openapi/v3/{rest}?hash={tag}")) {
                response.headers_mut().insert(header::LOCATION, location);
            }
            return Ok(response);
        }
        let mut response = self.document(rest, JSON, &tag, headers, || {
            json_bytes(&document(kinds, Dialect::V3, Some(&gv), rest))
        })?;
        if !hash.is_empty() {
            let forever = HeaderValue::from_static("public, immutable, max-age=31536000");
            response.headers_mut().insert(header::CACHE_CONTROL, forever);
        }
        Ok(response)
    }

    fn document(
        &self,
        name: &str,
        media: &'static str,
        tag: &str,
        headers: &HeaderMap,
        make: impl FnOnce() -> ApiResult<Vec<u8>>,
    ) -> ApiResult<Response<Body>> {
        let etag = format!("\"{tag}\"");
        let named = headers.get(header::IF_NONE_MATCH).is_some_and(|v| v.as_bytes() == etag.as_bytes());
        let mut response = if named {
            answer::bytes(304, media, Bytes::new())
        } else {
            let zipped = self.zipped(name, tag, make)?;
            let accepts = headers
                .get_all(header::ACCEPT_ENCODING)
                .iter()
                .any(|v| v.to_str().is_ok_and(|v| v.contains("gzip")));
            if accepts {
                let mut response = answer::bytes(200, media, zipped);
                response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                response
            } else {
                let mut plain = Vec::new();
                GzDecoder::new(zipped.as_ref()).read_to_end(&mut plain).map_err(failed)?;
                answer::bytes(200, media, plain)
            }
        };
        if let Ok(etag) = HeaderValue::from_str(&etag) {
            response.headers_mut().insert(header::ETAG, etag);
        }
        response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept-Encoding, Accept"));
        Ok(response)
    }

    fn zipped(&self, name: &str, tag: &str, make: impl FnOnce() -> ApiResult<Vec<u8>>) -> ApiResult<Bytes> {
        // The lock is held while a document is made: one maker at a time bounds the memory.
        let mut made = self.made.lock();
        if let Some((_, bytes)) = made.get(name).filter(|(t, _)| t == tag) {
            return Ok(bytes.clone());
        }
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&make()?).map_err(failed)?;
        encoder.flush().map_err(failed)?;
        let bytes = Bytes::from(encoder.finish().map_err(failed)?);
        made.insert(name.to_owned(), (tag.to_owned(), bytes.clone()));
        Ok(bytes)
    }
}

fn failed(error: impl std::fmt::Display) -> ApiError {
    ApiError::internal(format!("cannot make the OpenAPI document: {error}"))
}

/// How a document is written.
enum Form {
    Json,
    Protobuf,
}

const JSON: &str = "application/json";
/// What an answer in protobuf calls itself, and what clients ask for.
const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
const PROTOBUF_ALIAS: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// The form that the client likes best, where messages go by the names in `protobuf`.
fn form(headers: &HeaderMap, protobuf: &[&str]) -> ApiResult<Form> {
    let accepted = negotiate::media_types(headers);
    if accepted.is_empty() {
        return Ok(Form::Json);
    }
    let form = |media: &String| match media.as_str() {
        "*/*" | "application/*" | JSON => Some(Form::Json),
        media if protobuf.contains(&media) => Some(Form::Protobuf),
        media if media.ends_with("+json") => Some(Form::Json),
        _ => None,
    };
    let offered = || [&[JSON], protobuf].concat();
    accepted.iter().find_map(form).ok_or_else(|| ApiError::not_acceptable(&offered()))
}

fn json_bytes(document: &Value) -> ApiResult<Vec<u8>> {
    serde_json::to_vec(document).map_err(failed)
}

/// A group (empty for core) and version.
type GroupVersion = (String, String);

fn group_versions(kinds: &KindTable) -> Vec<GroupVersion> {
    let groups = kinds.groups().into_iter();
    groups.flat_map(|g| g.versions.into_iter().map(move |v| (g.name.clone(), v))).collect()
}

/// The name of a version's document: `api/v1`, `apis/apps/v1`.
fn page((group, version): &GroupVersion) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// What a document is made of, hashed; `None` for the one of everything.
fn hash_of(kinds: &KindTable, gv: Option<&GroupVersion>) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{FORMAT} {}", env!("CARGO_PKG_VERSION")));
    for kind in kinds.all() {
        if gv.is_none_or(|(group, version)| kind.group == *group && kind.version == *version) {
            hash.update(format!("{kind:?}"));
        }
    }
    let digest = hash.finalize();
    digest.iter().map(|b| format!("{b:02X}")).collect()
}

/// The index of the pages of `/openapi/v3`.
pub fn index(kinds: &KindTable) -> Value {
    let mut pages = Map::new();
    for gv in group_versions(kinds) {
        let page = page(&gv);
        let url = format!("/openapi/v3/{page}?hash={}", hash_of(kinds, Some(&gv)));
        pages.insert(page, json!({"serverRelativeURL": url}));
    }
    json!({"paths": pages})
}

fn document(kinds: &KindTable, dialect: Dialect, gv: Option<&GroupVersion>, _name: &str) -> Value {
    let rows: Vec<_> = kinds
        .all()
        .iter()
        .filter(|k| gv.is_none_or(|(group, version)| k.group == *group && k.version == *version))
        .collect();
    let info = json!({"title": "Kubernetes", "version": "v1.36.0"});
    let paths = paths::paths(&rows, dialect);
    let docs = docs::Docs::of(gv.map(|(group, version)| (group.as_str(), version.as_str())));
    let schemas = schemas::schemas(&rows, dialect, &docs);
    let bearer = json!({
        "description": "Bearer Token authentication",
        "type": "apiKey",
        "name": "authorization",
        "in": "header",
    });
    match dialect {
        Dialect::V3 => json!({
            "openapi": "3.0.0",
            "info": info,
            "paths": paths,
            "components": {"schemas": schemas, "securitySchemes": {"BearerToken": bearer}},
        }),
        Dialect::V2 => json!({
            "swagger": "2.0",
            "info": info,
            "paths": paths,
            "definitions": schemas,
            "securityDefinitions": {"BearerToken": bearer},
            "security": [{"BearerToken": []}],
        }),
    }
}

#[cfg(test)]
mod tests;
