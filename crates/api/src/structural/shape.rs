//! The shapes of custom resources: what the codec decodes them by, and what server-side apply owns their fields by.
//!
//! The codec types only what every object has ([`envelope`]): the rest is pruned by the schema. Server-side apply has the
//! types that the published schema gives: an object with properties is a struct, one without is a map of anything, and
//! what `x-kubernetes-preserve-unknown-fields` admits is deduced from the values.

use std::sync::LazyLock;

use super::{Additional, META_FIELDS, Node, Structural};
use crate::schema::{Field, List, ListKind, MapTy, Scalar, Schema, Shape, Ty, Type, TypeId, builtin};

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const ROOT: &str = "root";

/// The types of a schema.
#[derive(Debug)]
pub(super) struct Typed {
    schema: Schema,
    root: TypeId,
}

impl Structural {
    /// What server-side apply and managed fields go by. Made when first asked for.
    pub fn shape(&self) -> Shape<'_> {
        let typed = self.shape.get_or_init(|| {
            let mut schema = Schema::new();
            let root = schema.declare(ROOT);
            let ty = message(&mut schema, &self.root, ROOT.to_owned(), self.root.preserve_unknown, true);
            schema.define(root, ty);
            Typed { schema, root }
        });
        Shape::Message {
            ty: typed.schema.type_ref(typed.root),
            atomic: self.root.map_type.as_deref() == Some("atomic"),
        }
    }
}

/// The shape that the codec decodes custom resources by: typed metadata, and anything besides.
pub fn envelope() -> Shape<'static> {
    static ENVELOPE: LazyLock<Schema> = LazyLock::new(|| {
        let mut schema = Schema::new();
        let id = schema.declare(ROOT);
        let fields = META_FIELDS.iter().map(|name| meta_field(name)).collect();
        let mut ty = Type::message(ROOT, fields);
        ty.open = true;
        schema.define(id, ty);
        schema
    });
    ENVELOPE.root(ROOT)
}

fn meta_field(name: &'static str) -> Field {
    let ty = match name {
        "metadata" => builtin().id(OBJECT_META).map_or(Ty::Any, Ty::BuiltIn),
        _ => Ty::Scalar(Scalar::String),
    };
    Field::new(name, ty)
}

/// `is_open`: whether unknown fields are kept here, or anywhere above.
fn message(schema: &mut Schema, node: &Node, name: String, is_open: bool, is_resource: bool) -> Type {
    let mut fields = Vec::with_capacity(node.properties.len() + META_FIELDS.len());
    if is_resource {
        fields.extend(META_FIELDS.iter().map(|name| meta_field(name)));
    }
    for (key, property) in &node.properties {
        if is_resource && META_FIELDS.contains(&key.as_str()) {
            continue;
        }
        let ty = ty(schema, property, format!("{name}.{key}"), is_open);
        let mut field = Field::new(key.clone(), ty);
        field.required = node.rules().required.contains(key);
        field.default.clone_from(&property.default);
        fields.push(field);
    }
    let mut ty = Type::message(name, fields);
    ty.open = is_open;
    ty
}

fn ty(schema: &mut Schema, node: &Node, name: String, is_open: bool) -> Ty {
    let is_open = is_open || node.preserve_unknown;
    let atomic = node.map_type.as_deref() == Some("atomic");
    match node.ty.as_str() {
        _ if node.int_or_string => Ty::Scalar(Scalar::IntOrString),
        "object" if !node.properties.is_empty() || node.embedded => {
            let id = schema.declare(name.clone());
            let ty = message(schema, node, name, is_open, node.embedded);
            schema.define(id, ty);
            Ty::Message { id, atomic: Some(atomic) }
        }
        "object" => {
            let value = match &node.additional {
                Some(Additional::Schema(value)) => ty(schema, value, format!("{name}[]"), is_open),
                _ => Ty::Any,
            };
            Ty::Map(Box::new(MapTy { value, atomic }))
        }
        "array" => {
            let item = match &node.items {
                Some(item) => ty(schema, item, format!("{name}[]"), is_open),
                None => Ty::Any,
            };
            let kind = match node.list_type.as_deref() {
                Some("set") => ListKind::Set,
                Some("map") => {
                    ListKind::Map(node.list_map_keys.iter().map(|key| key.clone().into()).collect())
                }
                _ => ListKind::Atomic,
            };
            Ty::List(Box::new(List { item, kind }))
        }
        "string" => Ty::Scalar(Scalar::String),
        "boolean" => Ty::Scalar(Scalar::Bool),
        "integer" => Ty::Scalar(Scalar::Int64),
        "number" => Ty::Scalar(Scalar::Double),
        _ => Ty::Any,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::{self, FieldSet, Writer};
    use serde_json::{Value, json};

    fn apply(shape: Shape<'_>, live: Option<&Value>, manager: &str, spec: Value) -> Value {
        let ignored = FieldSet::default();
        let writer = Writer {
            manager,
            api_version: "example.com/v1",
            subresource: "",
            now: jiff::Timestamp::UNIX_EPOCH,
            ignored: &ignored,
        };
        let applied =
            json!({"apiVersion": "example.com/v1", "kind": "W", "metadata": {"name": "w"}, "spec": spec});
        apply::apply(shape, "W", live, &applied, &writer, false).unwrap().value
    }

    fn owned(value: &Value) -> Vec<String> {
        let entries = value["metadata"]["managedFields"].as_array().unwrap();
        entries.iter().map(|e| format!("{}: {}", e["manager"].as_str().unwrap(), e["fieldsV1"])).collect()
    }

    #[test]
    fn lists_and_maps_are_owned_as_their_schema_says() {
        let item = json!({"type": "object", "required": ["k"], "properties": {
            "k": {"type": "string"}, "p": {"type": "string", "default": "TCP"}, "v": {"type": "integer"}}});
        let schema = Structural::parse(&json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "l": {"type": "array", "items": item, "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["k", "p"]},
            "s": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "m": {"type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": {"type": "string"}},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        }}}}))
        .unwrap();
        let first = apply(
            schema.shape(),
            None,
            "a",
            json!({"l": [{"k": "x"}], "s": ["1"], "m": {"a": "b"}, "free": {"deep": {"n": [1]}}}),
        );
        let second = apply(
            schema.shape(),
            Some(&first),
            "b",
            json!({"l": [{"k": "y", "v": 1}], "s": ["2"], "free": {"deep": {"o": 1}}}),
        );
        assert_eq!(
            second["spec"],
            json!({"l": [{"k": "x"}, {"k": "y", "v": 1}], "s": ["1", "2"], "m": {"a": "b"}, "free": {"deep": {"n": [1], "o": 1}}})
        );
        expect_test::expect![[r#"
            a: {"f:spec":{"f:free":{"f:deep":{".":{},"f:n":{}}},"f:l":{"k:{\"k\":\"x\",\"p\":\"TCP\"}":{".":{},"f:k":{}}},"f:m":{},"f:s":{"v:\"1\"":{}}}}
            b: {"f:spec":{"f:free":{"f:deep":{".":{},"f:o":{}}},"f:l":{"k:{\"k\":\"y\",\"p\":\"TCP\"}":{".":{},"f:k":{},"f:v":{}}},"f:s":{"v:\"2\"":{}}}}"#]]
        .assert_eq(&owned(&second).join("\n"));
    }

    #[test]
    fn the_envelope_types_metadata_only() {
        let object =
            json!({"kind": "W", "metadata": {"name": "w", "zz": 1}, "spec": {"x": null}, "any": [1]});
        let decoded = crate::codec::decode_value(object, envelope()).unwrap();
        assert_eq!(decoded.strict, ["unknown field \"metadata.zz\""]);
        assert_eq!((&decoded.value["spec"], &decoded.value["any"]), (&json!({"x": null}), &json!([1])));
    }
}
