//! The OpenAPI v2 documents of other servers, joined with our own into one.
//!
//! Each server's document is fetched when its availability is checked, at most once for each of its states (`ETag`), and
//! kept as far as it is about the version that the server answers for. A definition that stands for something else under a
//! name that is taken gets another name, as in Kubernetes' aggregator: `NAME_v2`, `NAME_v3`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Request, header};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tokio_rustls::TlsConnector;

use super::{Aggregator, Remote};
use crate::answer;
use crate::backend::Place;
use crate::watch_cache::WatchCache;

/// Largest document.
const DOCUMENT: usize = 16 << 20;
/// Parts of a document that others refer to by name (`#/definitions/NAME`).
const SHARED: [&str; 3] = ["definitions", "parameters", "responses"];

/// What a server says of one version.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Swagger {
    /// Names this state.
    pub tag: String,
    paths: Map<String, Value>,
    /// By part of the document and name.
    shared: BTreeMap<Name, Value>,
}

/// Which of [`SHARED`], and its name there.
type Name = (&'static str, String);

impl Aggregator {
    /// The documents of all servers, in the order of discovery.
    pub fn swaggers(&self, cache: &WatchCache) -> Vec<Arc<Swagger>> {
        let known = self.swaggers.lock();
        self.remotes(cache).iter().filter_map(|remote| known.get(&remote.name).cloned()).collect()
    }

    /// Fetches a server's document, where it is not the one that is known. A server without one has none.
    pub(super) async fn fetch_swagger(
        &self,
        remote: &Remote,
        place: Place,
        tls: TlsConnector,
        mut headers: HeaderMap,
    ) {
        let known = self.swaggers.lock().get(&remote.name).map(|s| s.tag.clone());
        if let Some(tag) = known.and_then(|tag| HeaderValue::from_str(&tag).ok()) {
            headers.insert(header::IF_NONE_MATCH, tag);
        }
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let mut request = Request::get("/openapi/v2").header(header::HOST, place.to_string());
        if let Some(map) = request.headers_mut() {
            map.extend(headers);
        }
        let Ok(request) = request.body(answer::full(bytes::Bytes::new())) else { return };
        let answered = match self.dialer.clone().exchange(place, Some(tls), request, None).await {
            Ok(answered) if answered.status() == http::StatusCode::NOT_MODIFIED => return,
            Ok(answered) if answered.status().is_success() => answered,
            _ => return,
        };
        let (parts, body) = answered.into_parts();
        let Ok(bytes) = super::availability::read(body, DOCUMENT).await else { return };
        let Ok(document) = serde_json::from_slice::<Value>(&bytes) else { return };
        let tag = match parts.headers.get(header::ETAG).and_then(|tag| tag.to_str().ok()) {
            Some(tag) => tag.to_owned(),
            None => format!("\"{}\"", hex(&Sha256::digest(&bytes[..]))),
        };
        let swagger = Swagger::of(&document, &format!("/apis/{}/{}", remote.group, remote.version), tag);
        self.swaggers.lock().insert(remote.name.clone(), Arc::new(swagger));
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02X}")).collect()
}

impl Swagger {
    /// What a document says of the paths below `root`, with the definitions that they need.
    fn of(document: &Value, root: &str, tag: String) -> Self {
        let is_below =
            |path: &str| path.strip_prefix(root).is_some_and(|r| r.is_empty() || r.starts_with('/'));
        let members = |key: &str| document[key].as_object().into_iter().flatten();
        let paths: Map<String, Value> = members("paths")
            .filter(|(path, _)| is_below(path))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        let mut wanted = BTreeSet::new();
        paths.values().for_each(|v| references(v, &mut wanted));
        let mut shared = BTreeMap::new();
        while let Some(name) = wanted.pop_first() {
            if shared.contains_key(&name) {
                continue;
            }
            let Some(found) = document[name.0].get(&name.1) else { continue };
            references(found, &mut wanted);
            shared.insert(name, found.clone());
        }
        Self { tag, paths, shared }
    }

    /// Adds this to a document; paths that are there stay.
    pub fn join(&self, document: &mut Value) {
        let mut renamed: BTreeMap<Name, String> = BTreeMap::new();
        for ((part, name), value) in &self.shared {
            let known = document[*part].as_object();
            let is_free = |name: &str| {
                known.is_none_or(|k| !k.contains_key(name))
                    && !self.shared.contains_key(&(*part, name.to_owned()))
            };
            if known.and_then(|k| k.get(name)).is_some_and(|other| other != value)
                && let Some(free) = (2..).map(|n| format!("{name}_v{n}")).find(|n| is_free(n))
            {
                renamed.insert((part, name.clone()), free);
            }
        }
        let named = |value: &Value| {
            let mut value = value.clone();
            rename(&mut value, &renamed);
            value
        };
        let used: BTreeSet<&str> = self.shared.keys().map(|(part, _)| *part).collect();
        for key in used.into_iter().chain(["paths"]) {
            if !document[key].is_object() {
                document[key] = json!({});
            }
        }
        for (key, value) in &self.shared {
            if let Some(part) = document[key.0].as_object_mut() {
                let name = renamed.get(key).unwrap_or(&key.1);
                part.entry(name.clone()).or_insert_with(|| named(value));
            }
        }
        if let Some(paths) = document["paths"].as_object_mut() {
            for (path, item) in &self.paths {
                paths.entry(path.clone()).or_insert_with(|| named(item));
            }
        }
    }
}

/// What a reference names, where it is to a part that is shared.
fn named_by(reference: &str) -> Option<Name> {
    let (part, name) = reference.strip_prefix("#/")?.split_once('/')?;
    let part = SHARED.into_iter().find(|shared| *shared == part)?;
    Some((part, name.to_owned()))
}

/// What a value refers to.
fn references(value: &Value, found: &mut BTreeSet<Name>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get("$ref").and_then(Value::as_str).and_then(named_by));
            map.values().for_each(|v| references(v, found));
        }
        Value::Array(list) => list.iter().for_each(|v| references(v, found)),
        _ => {}
    }
}

fn rename(value: &mut Value, names: &BTreeMap<Name, String>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(text)) = map.get_mut("$ref")
                && let Some(name) = named_by(text)
                && let Some(new) = names.get(&name)
            {
                *text = format!("#/{}/{new}", name.0);
            }
            map.values_mut().for_each(|v| rename(v, names));
        }
        Value::Array(list) => list.iter_mut().for_each(|v| rename(v, names)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_and_responses_that_operations_share_come_along() {
        let body = |r: &str| json!({"parameters": [{"$ref": format!("#/parameters/{r}")}], "get": {"responses": {"401": {"$ref": "#/responses/denied"}}}});
        let mut own = json!({"paths": {}, "definitions": {}, "parameters": {"limit-1": {"name": "limit", "in": "query"}}});
        let other = json!({"paths": {"/apis/m/v1/x": body("limit-1"), "/apis/m/v1/y": body("body-2")},
            "parameters": {"limit-1": {"name": "limit", "in": "header"}, "unused": {},
                "body-2": {"name": "body", "in": "body", "schema": {"$ref": "#/definitions/a.X"}}},
            "definitions": {"a.X": {}, "a.Y": {}}, "responses": {"denied": {"schema": {"$ref": "#/definitions/a.Y"}}}});
        Swagger::of(&other, "/apis/m/v1", String::new()).join(&mut own);
        assert_eq!(
            own,
            json!({"paths": {"/apis/m/v1/x": body("limit-1_v2"), "/apis/m/v1/y": body("body-2")},
                "parameters": {"limit-1": {"name": "limit", "in": "query"}, "limit-1_v2": {"name": "limit", "in": "header"},
                    "body-2": {"name": "body", "in": "body", "schema": {"$ref": "#/definitions/a.X"}}},
                "definitions": {"a.X": {}, "a.Y": {}}, "responses": {"denied": {"schema": {"$ref": "#/definitions/a.Y"}}}})
        );
    }

    #[test]
    fn documents_are_joined_and_other_definitions_of_a_name_get_another() {
        let mut own = json!({"paths": {"/api": 1}, "definitions": {"a.Meta": {"type": "object"}, "a.Same": {"type": "string"}}});
        let other = json!({"paths": {"/apis/m/v1/x": {"get": {"schema": {"$ref": "#/definitions/a.X"}}}, "/apis/m/v1beta1/x": {}, "/api": 2},
            "definitions": {"a.X": {"properties": {"m": {"$ref": "#/definitions/a.Meta"}, "s": {"$ref": "#/definitions/a.Same"}}},
                "a.Meta": {"type": "object", "description": "other"}, "a.Same": {"type": "string"}, "a.Unused": {}}});
        Swagger::of(&other, "/apis/m/v1", String::new()).join(&mut own);
        assert_eq!(
            own,
            json!({"paths": {"/api": 1, "/apis/m/v1/x": {"get": {"schema": {"$ref": "#/definitions/a.X"}}}},
                "definitions": {"a.Meta": {"type": "object"}, "a.Same": {"type": "string"},
                    "a.X": {"properties": {"m": {"$ref": "#/definitions/a.Meta_v2"}, "s": {"$ref": "#/definitions/a.Same"}}},
                    "a.Meta_v2": {"type": "object", "description": "other"}}})
        );
    }
}
