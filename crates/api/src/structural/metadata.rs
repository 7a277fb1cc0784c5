//! The metadata of embedded resources (`x-kubernetes-embedded-resource`): typed as everywhere, and checked.

use serde_json::{Value, json};

use super::Node;
use crate::field::{Cursor, ErrorList};
use crate::{codec, names, schema};

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// Brings the metadata of embedded resources into its typed form; what that has no field for is dropped and named. One that
/// does not fit its type stays for [`check`] to refuse.
pub(super) fn coerce(node: &Node, value: &mut Value, path: &mut String, dropped: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                let length = path.len();
                if length > 0 {
                    path.push('.');
                }
                path.push_str(key);
                if node.embedded && key == "metadata" {
                    typed(value, path, dropped);
                }
                if let Some(member) = node.member(key) {
                    coerce(member, value, path, dropped);
                }
                path.truncate(length);
            }
        }
        Value::Array(items) => {
            let Some(item) = node.items.as_deref() else { return };
            for (n, value) in items.iter_mut().enumerate() {
                let length = path.len();
                path.push_str(&format!("[{n}]"));
                coerce(item, value, path, dropped);
                path.truncate(length);
            }
        }
        _ => {}
    }
}

fn typed(metadata: &mut Value, path: &str, dropped: &mut Vec<String>) {
    let Ok(decoded) = codec::decode_value(metadata.clone(), schema::root(OBJECT_META)) else { return };
    *metadata = decoded.value;
    if let Some(map) = metadata.as_object_mut()
        && map.get("creationTimestamp").is_some_and(Value::is_null)
    {
        map.remove("creationTimestamp");
    }
    for finding in decoded.strict {
        let field = finding.strip_prefix("unknown field \"").and_then(|f| f.strip_suffix('"'));
        dropped.extend(field.map(|field| format!("{path}.{field}")));
    }
}

/// Checks `apiVersion`, `kind` and `metadata` of embedded resources. `path` is empty for the object itself, whose own
/// are checked elsewhere.
pub(super) fn check(node: &Node, value: &Value, path: &str, errors: &mut ErrorList) {
    match value {
        Value::Object(map) => {
            if node.embedded {
                resource(&Cursor::at(value, path), errors);
            }
            for (key, value) in map {
                if let Some(property) = node.properties.get(key) {
                    let separator = if path.is_empty() { "" } else { "." };
                    check(property, value, &format!("{path}{separator}{key}"), errors);
                } else if let Some(schema) = node.additional_schema() {
                    check(schema, value, &format!("{path}[{key}]"), errors);
                }
            }
        }
        Value::Array(items) => {
            let Some(item) = node.items.as_deref() else { return };
            for (n, value) in items.iter().enumerate() {
                check(item, value, &format!("{path}[{n}]"), errors);
            }
        }
        _ => {}
    }
}

pub(super) fn resource(at: &Cursor<'_>, errors: &mut ErrorList) {
    for name in ["apiVersion", "kind"] {
        let field = at.key(name);
        match field.value {
            None => errors.required(&field.path, ""),
            Some(Value::String(text)) if text.is_empty() => errors.required(&field.path, ""),
            Some(Value::String(text)) if name == "kind" => {
                let wrong = names::dns1035_label(&text.to_lowercase());
                if !wrong.is_empty() {
                    let detail =
                        format!("may have mixed case, but should otherwise match: {}", wrong.join(","));
                    errors.invalid(&field.path, field.json(), &detail);
                }
            }
            Some(Value::String(text)) if text.matches('/').count() > 1 => {
                errors.invalid(&field.path, field.json(), &format!("unexpected GroupVersion string: {text}"));
            }
            Some(Value::String(_)) => {}
            Some(other) => errors.invalid(&field.path, other, "must be a string"),
        }
    }
    let metadata = at.key("metadata");
    let Some(value) = metadata.value else { return };
    if let Err(error) = codec::decode_value(value.clone(), schema::root(OBJECT_META)) {
        errors.invalid(&metadata.path, value, &error.to_string());
        return;
    }
    object_meta(&metadata, errors);
}

fn object_meta(metadata: &Cursor<'_>, errors: &mut ErrorList) {
    for name in ["generateName", "name"] {
        let field = metadata.key(name);
        if !field.str().is_empty() {
            errors.invalid_all(&field.path, field.json(), names::path_segment(field.str()));
        }
    }
    let namespace = metadata.key("namespace");
    if !namespace.str().is_empty() {
        errors.invalid_all(&namespace.path, namespace.json(), names::dns1123_label(namespace.str()));
    }
    let labels = metadata.key("labels");
    for (key, value) in labels.entries() {
        errors.invalid_all(&labels.path, &json!(key), names::qualified_name(key));
        errors.invalid_all(&labels.path, value.json(), names::label_value(value.str()));
    }
    let annotations = metadata.key("annotations");
    for (key, _) in annotations.entries() {
        errors.invalid_all(&annotations.path, &json!(key), names::qualified_name(&key.to_ascii_lowercase()));
    }
    for finalizer in metadata.key("finalizers").items() {
        errors.invalid_all(
            &metadata.key("finalizers").path,
            finalizer.json(),
            names::qualified_name(finalizer.str()),
        );
    }
}
