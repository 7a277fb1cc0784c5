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
const REFERENCE: &str = "#/definitions/";

/// What a server says of one version.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Swagger {
    /// Names this state.
    pub tag: String,
    paths: Map<String, Value>,
    definitions: Map<String, Value>,
}

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
        let mut definitions = Map::new();
        while let Some(name) = wanted.pop_first() {
            if definitions.contains_key(&name) {
                continue;
            }
            let Some(definition) = document["definitions"].get(&name) else { continue };
            references(definition, &mut wanted);
            definitions.insert(name, definition.clone());
        }
        Self { tag, paths, definitions }
    }

    /// Adds this to a document; paths that are there stay.
    pub fn join(&self, document: &mut Value) {
        let mut renamed: BTreeMap<&str, String> = BTreeMap::new();
        let known = document["definitions"].as_object();
        for (name, definition) in &self.definitions {
            let is_free = |name: &str| {
                known.is_none_or(|k| !k.contains_key(name)) && !self.definitions.contains_key(name)
            };
            if known.and_then(|k| k.get(name)).is_some_and(|other| other != definition)
                && let Some(free) = (2..).map(|n| format!("{name}_v{n}")).find(|n| is_free(n))
            {
                renamed.insert(name, free);
            }
        }
        let named = |value: &Value| {
            let mut value = value.clone();
            rename(&mut value, &renamed);
            value
        };
        for key in ["paths", "definitions"] {
            if !document[key].is_object() {
                document[key] = json!({});
            }
        }
        if let Some(definitions) = document["definitions"].as_object_mut() {
            for (name, definition) in &self.definitions {
                let name = renamed.get(name.as_str()).unwrap_or(name);
                definitions.entry(name.clone()).or_insert_with(|| named(definition));
            }
        }
        if let Some(paths) = document["paths"].as_object_mut() {
            for (path, item) in &self.paths {
                paths.entry(path.clone()).or_insert_with(|| named(item));
            }
        }
    }
}

/// The names of definitions that a part refers to.
fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            let name = map.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix(REFERENCE));
            found.extend(name.map(str::to_owned));
            map.values().for_each(|v| references(v, found));
        }
        Value::Array(list) => list.iter().for_each(|v| references(v, found)),
        _ => {}
    }
}

fn rename(value: &mut Value, names: &BTreeMap<&str, String>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(text)) = map.get_mut("$ref")
                && let Some(new) = text.strip_prefix(REFERENCE).and_then(|name| names.get(name))
            {
                *text = format!("{REFERENCE}{new}");
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
