//! Types as OpenAPI schemas, from the descriptor.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::kinds::Kind;
use api::schema::{self, Field, ListKind, Presence, Scalar, Shape, TypeRef};
use api::structural::{MetaProperties, open_api_v2, open_api_v3};
use serde_json::{Map, Value, json};

use super::Dialect;
use super::docs::Docs;

const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
const CONVENTIONS: &str =
    "https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md";

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

/// The type of a kind's objects. That of a custom resource begins with its group turned round: `com.example.v1.Widget`.
pub(super) fn object_type(kind: &Kind) -> String {
    if kind.definition.is_none() {
        return kind.type_name.clone();
    }
    let mut parts: Vec<&str> = kind.group.rsplit('.').collect();
    parts.extend([kind.version.as_str(), kind.kind.as_str()]);
    parts.join(".")
}

/// The type of a kind's lists.
pub(super) fn list_type(kind: &Kind) -> String {
    format!("{}List", object_type(kind))
}

/// Every type that the kinds' requests and answers can hold.
pub(super) fn schemas(kinds: &[&Arc<Kind>], dialect: Dialect, docs: &Docs) -> Value {
    let mut gvks: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let mut name = |ty: &str, group: &str, version: &str, kind: &str| {
        let entry = gvks.entry(ty.to_owned()).or_default();
        let gvk = json!({"group": group, "version": version, "kind": kind});
        if !entry.contains(&gvk) {
            entry.push(gvk);
        }
    };
    let mut custom = Map::new();
    let mut wanted: Vec<String> = vec![DELETE_OPTIONS.to_owned(), STATUS.to_owned()];
    name(STATUS, "", "v1", "Status");
    for kind in kinds {
        name(&object_type(kind), &kind.group, &kind.version, &kind.kind);
        name(&list_type(kind), &kind.group, &kind.version, &kind.list_kind);
        name(DELETE_OPTIONS, &kind.group, &kind.version, "DeleteOptions");
        match &kind.definition {
            Some(definition) => {
                wanted.extend([OBJECT_META.to_owned(), LIST_META.to_owned()]);
                let schema = definition.openapi();
                custom.insert(object_type(kind), object(schema, dialect, docs));
                custom.insert(list_type(kind), list(kind, dialect, docs));
            }
            None => wanted.extend([kind.type_name.clone(), list_type(kind)]),
        }
        for sub in &kind.subresources {
            if let Some(ty) = &sub.type_name {
                name(ty, &sub.kind.group, &sub.kind.version, &sub.kind.kind);
                wanted.push(ty.clone());
            }
        }
    }

    let mut out = Map::new();
    let mut seen = BTreeSet::new();
    while let Some(next) = wanted.pop() {
        if !seen.insert(next.clone()) {
            continue;
        }
        let Some(ty) = schema::get(&next) else { continue };
        let mut made = message(ty, dialect, docs, &mut wanted);
        if let Some(list) = gvks.get(&next) {
            made["x-kubernetes-group-version-kind"] = json!(list);
        }
        out.insert(next, made);
    }
    for (name, mut made) in custom {
        made["x-kubernetes-group-version-kind"] = json!(gvks.get(&name));
        out.insert(name, made);
    }
    Value::Object(out)
}

/// A custom resource.
fn object(schema: &Value, dialect: Dialect, docs: &Docs) -> Value {
    let meta = meta_properties(OBJECT_META, dialect, docs);
    match dialect {
        Dialect::V2 => open_api_v2(schema, &meta),
        Dialect::V3 => open_api_v3(schema, &meta),
    }
}

/// A list of custom resources.
fn list(kind: &Kind, dialect: Dialect, docs: &Docs) -> Value {
    let MetaProperties { api_version, kind: kind_property, metadata } =
        meta_properties(LIST_META, dialect, docs);
    json!({
        "description": format!("{} is a list of {}", kind.list_kind, kind.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": api_version,
            "kind": kind_property,
            "metadata": metadata,
            "items": {
                "description": format!("List of {}. More info: {CONVENTIONS}", kind.plural),
                "type": "array",
                "items": {"$ref": dialect.reference(&object_type(kind))},
            },
        },
    })
}

/// `metadata` is of the type `meta_type`.
fn meta_properties(meta_type: &str, dialect: Dialect, docs: &Docs) -> MetaProperties {
    let text = |field: &str| json!({"type": "string", "description": docs.of_field(DELETE_OPTIONS, field)});
    let reference = json!({"$ref": dialect.reference(meta_type)});
    let anchor = if meta_type == OBJECT_META { "metadata" } else { "types-kinds" };
    let words = match meta_type {
        OBJECT_META => "Standard object's metadata.",
        _ => "Standard list metadata.",
    };
    let mut metadata = match dialect {
        Dialect::V2 => reference,
        // OpenAPI 3.0 ignores what stands beside a reference.
        Dialect::V3 => json!({"allOf": [reference]}),
    };
    metadata["description"] = json!(format!("{words} More info: {CONVENTIONS}#{anchor}"));
    MetaProperties { api_version: text("apiVersion"), kind: text("kind"), metadata }
}

fn message(ty: TypeRef<'_>, dialect: Dialect, docs: &Docs, wanted: &mut Vec<String>) -> Value {
    let name = &ty.get().name;
    let mut made = json!({"type": "object"});
    let words = docs.of_type(name);
    if !words.is_empty() {
        made["description"] = json!(words);
    }
    let mut properties = Map::new();
    let mut required = Vec::new();
    for field in &ty.get().fields {
        let shape = ty.shape_of(field);
        properties.insert(field.name.to_string(), property(name, field, shape, dialect, docs, wanted));
        if field.required {
            required.push(field.name.to_string());
        }
    }
    if !properties.is_empty() {
        made["properties"] = Value::Object(properties);
    }
    if !required.is_empty() {
        made["required"] = json!(required);
    }
    if ty.get().atomic {
        made["x-kubernetes-map-type"] = json!("atomic");
    }
    made
}

fn property(
    owner: &str,
    field: &Field,
    shape: Shape<'_>,
    dialect: Dialect,
    docs: &Docs,
    wanted: &mut Vec<String>,
) -> Value {
    let is_reference = matches!(shape, Shape::Message { .. });
    let mut made = of_shape(shape, dialect, wanted);
    // OpenAPI 3.0 ignores what stands beside a reference.
    if is_reference && dialect == Dialect::V3 {
        made = json!({"allOf": [made]});
    }
    let words = docs.of_field(owner, &field.name);
    if !words.is_empty() {
        made["description"] = json!(words);
    }
    if let Some(default) = &field.default {
        made["default"] = default.clone();
    } else if field.presence == Presence::Always && dialect == Dialect::V3 {
        match shape {
            Shape::Message { .. } => made["default"] = json!({}),
            Shape::Scalar(Scalar::String) => made["default"] = json!(""),
            Shape::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Double) => made["default"] = json!(0),
            Shape::Scalar(Scalar::Bool) => made["default"] = json!(false),
            _ => {}
        }
    }
    match shape {
        Shape::List { kind, .. } => match kind {
            ListKind::Atomic => made["x-kubernetes-list-type"] = json!("atomic"),
            ListKind::Set => made["x-kubernetes-list-type"] = json!("set"),
            ListKind::Map(keys) => {
                made["x-kubernetes-list-type"] = json!("map");
                made["x-kubernetes-list-map-keys"] = json!(keys);
            }
        },
        Shape::Map { atomic: true, .. } | Shape::Message { atomic: true, .. } => {
            made["x-kubernetes-map-type"] = json!("atomic");
        }
        _ => {}
    }
    match (field.patch_merge, field.retain_keys) {
        (true, true) => made["x-kubernetes-patch-strategy"] = json!("merge,retainKeys"),
        (true, false) => made["x-kubernetes-patch-strategy"] = json!("merge"),
        (false, true) => made["x-kubernetes-patch-strategy"] = json!("retainKeys"),
        (false, false) => {}
    }
    if let Some(key) = &field.merge_key {
        made["x-kubernetes-patch-merge-key"] = json!(key);
    }
    made
}

fn of_shape(shape: Shape<'_>, dialect: Dialect, wanted: &mut Vec<String>) -> Value {
    match shape {
        Shape::Scalar(scalar) => of_scalar(scalar, dialect),
        Shape::Message { ty, .. } => {
            let name = ty.get().name.to_string();
            let made = json!({"$ref": dialect.reference(&name)});
            wanted.push(name);
            made
        }
        Shape::List { item, schema, .. } => {
            json!({"type": "array", "items": of_shape(schema.shape(item), dialect, wanted)})
        }
        Shape::Map { value, schema, .. } => {
            json!({"type": "object", "additionalProperties": of_shape(schema.shape(value), dialect, wanted)})
        }
        Shape::Any => json!({"type": "object"}),
    }
}

fn of_scalar(scalar: Scalar, dialect: Dialect) -> Value {
    let three = dialect == Dialect::V3;
    match scalar {
        Scalar::String => json!({"type": "string"}),
        Scalar::Bool => json!({"type": "boolean"}),
        Scalar::Int32 => json!({"type": "integer", "format": "int32"}),
        Scalar::Int64 => json!({"type": "integer", "format": "int64"}),
        Scalar::Double => json!({"type": "number", "format": "double"}),
        Scalar::Bytes => json!({"type": "string", "format": "byte"}),
        Scalar::Quantity if three => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        Scalar::Quantity => json!({"type": "string"}),
        Scalar::IntOrString if three => {
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
        }
        Scalar::IntOrString => json!({"type": "string", "format": "int-or-string"}),
        Scalar::Time | Scalar::MicroTime => json!({"type": "string", "format": "date-time"}),
        Scalar::RawExtension | Scalar::FieldsV1 => json!({"type": "object"}),
    }
}
