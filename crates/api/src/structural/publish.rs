//! The schema of a custom resource as OpenAPI documents have it.
//!
//! OpenAPI v3 takes it as it is written, with what every object has put in. Swagger 2.0 cannot say all of it: kubectl
//! refuses fields that a document does not name, so where more is allowed than the document could name, it names nothing.

use serde_json::{Map, Value, json};

/// The schemas of what every object has.
#[derive(Debug, Clone)]
pub struct MetaProperties {
    /// `apiVersion`.
    pub api_version: Value,
    /// `kind`.
    pub kind: Value,
    /// `metadata`.
    pub metadata: Value,
}

const CONVENTIONS: &str =
    "https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md";

/// For OpenAPI v3.
pub fn open_api_v3(schema: &Value, meta: &MetaProperties) -> Value {
    let mut made = schema.clone();
    embedded(&mut made, meta, false);
    with_meta(made, meta)
}

/// For Swagger 2.0.
pub fn open_api_v2(schema: &Value, meta: &MetaProperties) -> Value {
    if schema["x-kubernetes-preserve-unknown-fields"] == json!(true) {
        return json!({"type": "object"});
    }
    let mut made = schema.clone();
    simplify(&mut made);
    embedded(&mut made, meta, true);
    with_meta(made, meta)
}

fn with_meta(mut schema: Value, meta: &MetaProperties) -> Value {
    let properties = properties_of(&mut schema);
    properties.insert("apiVersion".to_owned(), meta.api_version.clone());
    properties.insert("kind".to_owned(), meta.kind.clone());
    properties.insert("metadata".to_owned(), meta.metadata.clone());
    schema
}

fn properties_of(schema: &mut Value) -> &mut Map<String, Value> {
    if !schema["properties"].is_object() {
        schema["properties"] = json!({});
    }
    match &mut schema["properties"] {
        Value::Object(map) => map,
        _ => unreachable!("made an object just above"),
    }
}

/// The schemas right below a schema: those of members and items.
fn below(schema: &mut Value) -> impl Iterator<Item = &mut Value> {
    let map = schema.as_object_mut().into_iter().flatten();
    map.flat_map(|(key, value)| -> Vec<&mut Value> {
        match (key.as_str(), value) {
            ("properties", Value::Object(map)) => map.values_mut().collect(),
            ("items" | "additionalProperties", value @ Value::Object(_)) => vec![value],
            _ => Vec::new(),
        }
    })
}

/// Takes out examples, and puts into embedded resources what every object has.
fn embedded(schema: &mut Value, meta: &MetaProperties, is_v2: bool) {
    if let Some(map) = schema.as_object_mut() {
        map.remove("example");
    }
    below(schema).for_each(|schema| embedded(schema, meta, is_v2));
    // kubectl would refuse all else once these are named.
    let names_nothing = is_v2 && schema["x-kubernetes-preserve-unknown-fields"] == json!(true);
    if schema["x-kubernetes-embedded-resource"] != json!(true) || names_nothing {
        return;
    }
    let described = |property: &Value, words: String| {
        let mut property = property.clone();
        property["description"] = json!(words);
        property
    };
    let properties = properties_of(schema);
    for (name, property) in [
        (
            "apiVersion",
            described(
                &meta.api_version,
                format!(
                    "apiVersion defines the versioned schema of this representation of an object. More info: {CONVENTIONS}#resources"
                ),
            ),
        ),
        (
            "kind",
            described(
                &meta.kind,
                format!(
                    "kind is a string value representing the type of this object. In CamelCase. More info: {CONVENTIONS}#types-kinds"
                ),
            ),
        ),
        ("metadata", meta.metadata.clone()),
    ] {
        properties.insert(name.to_owned(), property);
    }
    let mut required = schema["required"].as_array().cloned().unwrap_or_default();
    for name in ["kind", "apiVersion"] {
        if !required.iter().any(|known| known == name) {
            required.push(json!(name));
        }
    }
    schema["required"] = json!(required);
}

/// Takes out what Swagger 2.0 has no words for.
fn simplify(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    for junctor in ["allOf", "oneOf", "anyOf", "not"] {
        map.remove(junctor);
    }
    if map.remove("nullable") == Some(json!(true)) {
        for key in ["type", "items", "properties"] {
            map.remove(key);
        }
    }
    if map.get("x-kubernetes-preserve-unknown-fields") == Some(&json!(true)) {
        map.remove("items");
        map.remove("properties");
    }
    if !map.contains_key("items") && map.get("type") == Some(&json!("array")) {
        map.remove("type");
    }
    let is_nullable = |schema: &Value| schema["nullable"] == json!(true);
    let nullable: Vec<String> = map
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter(|(_, property)| is_nullable(property))
        .map(|(name, _)| name.clone())
        .collect();
    if map.get("additionalProperties").is_some_and(is_nullable) {
        map.remove("required");
    }
    if let Some(required) = map.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|name| !name.as_str().is_some_and(|name| nullable.iter().any(|n| n == name)));
        if required.is_empty() {
            map.remove("required");
        }
    }
    below(schema).for_each(simplify);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta() -> MetaProperties {
        MetaProperties {
            api_version: json!({"type": "string"}),
            kind: json!({"type": "string"}),
            metadata: json!({"$ref": "#/m"}),
        }
    }

    fn schema() -> Value {
        json!({"type": "object", "properties": {"spec": {"type": "object", "required": ["n", "s"], "properties": {
            "n": {"type": "object", "nullable": true, "properties": {"x": {"type": "string"}}},
            "s": {"type": "string", "anyOf": [{"minLength": 1}], "example": "e"},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"x": {"type": "string"}}},
            "l": {"type": "array", "x-kubernetes-preserve-unknown-fields": true, "items": {"type": "string"}},
            "t": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"a": {"type": "string"}}},
        }}}})
    }

    #[test]
    fn v3_has_the_schema_with_what_every_object_has() {
        let made = open_api_v3(&schema(), &meta());
        assert_eq!(made["properties"]["metadata"], json!({"$ref": "#/m"}));
        let spec = &made["properties"]["spec"]["properties"];
        assert_eq!(spec["s"], json!({"type": "string", "anyOf": [{"minLength": 1}]}));
        assert_eq!(spec["n"]["nullable"], json!(true));
        assert_eq!(spec["t"]["required"], json!(["kind", "apiVersion"]));
        assert_eq!(spec["t"]["properties"]["metadata"], json!({"$ref": "#/m"}));
    }

    #[test]
    fn v2_names_nothing_where_more_is_allowed_than_it_could_name() {
        let made = open_api_v2(&schema(), &meta());
        let spec = &made["properties"]["spec"];
        assert_eq!(spec["required"], json!(["s"]));
        let spec = &spec["properties"];
        assert_eq!(spec["n"], json!({}));
        assert_eq!(spec["s"], json!({"type": "string"}));
        assert_eq!(spec["free"], json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}));
        assert_eq!(spec["l"], json!({"x-kubernetes-preserve-unknown-fields": true}));
        let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        assert_eq!(open_api_v2(&open, &meta()), json!({"type": "object"}));
    }
}
