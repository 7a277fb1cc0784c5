//! How the reference prints parts of a definition in errors: as its internal types, all fields in their order, with the
//! names that Go gives them.

use api::field::escape_html;
use serde_json::Value;

#[derive(Clone, Copy)]
enum Form {
    /// Empty where absent.
    Text,
    /// False where absent.
    Flag,
    /// Null where absent.
    Any,
    Schema,
    Schemas,
    SchemaMap,
    SchemaOrBool,
    SchemaOrList,
    Rules,
}

use Form::{Any, Flag, Rules, Schema, SchemaMap, SchemaOrBool, SchemaOrList, Schemas, Text};

const SCHEMA: [(&str, &str, Form); 44] = [
    ("ID", "id", Text),
    ("Schema", "$schema", Text),
    ("Ref", "$ref", Any),
    ("Description", "description", Text),
    ("Type", "type", Text),
    ("Nullable", "nullable", Flag),
    ("Format", "format", Text),
    ("Title", "title", Text),
    ("Maximum", "maximum", Any),
    ("ExclusiveMaximum", "exclusiveMaximum", Flag),
    ("Minimum", "minimum", Any),
    ("ExclusiveMinimum", "exclusiveMinimum", Flag),
    ("MaxLength", "maxLength", Any),
    ("MinLength", "minLength", Any),
    ("Pattern", "pattern", Text),
    ("MaxItems", "maxItems", Any),
    ("MinItems", "minItems", Any),
    ("UniqueItems", "uniqueItems", Flag),
    ("MultipleOf", "multipleOf", Any),
    ("Enum", "enum", Any),
    ("MaxProperties", "maxProperties", Any),
    ("MinProperties", "minProperties", Any),
    ("Required", "required", Any),
    ("Items", "items", SchemaOrList),
    ("AllOf", "allOf", Schemas),
    ("OneOf", "oneOf", Schemas),
    ("AnyOf", "anyOf", Schemas),
    ("Not", "not", Schema),
    ("Properties", "properties", SchemaMap),
    ("AdditionalProperties", "additionalProperties", SchemaOrBool),
    ("PatternProperties", "patternProperties", SchemaMap),
    ("Dependencies", "dependencies", Any),
    ("AdditionalItems", "additionalItems", SchemaOrBool),
    ("Definitions", "definitions", SchemaMap),
    ("ExternalDocs", "externalDocs", Any),
    ("Example", "example", Any),
    ("Default", "default", Any),
    ("XPreserveUnknownFields", "x-kubernetes-preserve-unknown-fields", Any),
    ("XEmbeddedResource", "x-kubernetes-embedded-resource", Flag),
    ("XIntOrString", "x-kubernetes-int-or-string", Flag),
    ("XListMapKeys", "x-kubernetes-list-map-keys", Any),
    ("XListType", "x-kubernetes-list-type", Any),
    ("XMapType", "x-kubernetes-map-type", Any),
    ("XValidations", "x-kubernetes-validations", Rules),
];

const RULE: [(&str, &str, Form); 6] = [
    ("Rule", "rule", Text),
    ("Message", "message", Text),
    ("MessageExpression", "messageExpression", Text),
    ("Reason", "reason", Any),
    ("FieldPath", "fieldPath", Text),
    ("OptionalOldSelf", "optionalOldSelf", Any),
];

const COLUMN: [(&str, &str, Form); 6] = [
    ("Name", "name", Text),
    ("Type", "type", Text),
    ("Format", "format", Text),
    ("Description", "description", Text),
    ("Priority", "priority", Any),
    ("JSONPath", "jsonPath", Text),
];

/// The names of the fields of a schema that are set, in their order.
pub(super) fn set_fields(schema: &Value) -> impl Iterator<Item = &'static str> {
    SCHEMA
        .iter()
        .filter(|(_, key, _)| match &schema[*key] {
            Value::Null | Value::Bool(false) if *key != "x-kubernetes-preserve-unknown-fields" => false,
            Value::Null => false,
            Value::String(text) => !text.is_empty(),
            _ => true,
        })
        .map(|(name, _, _)| *name)
}

/// A schema.
pub(super) fn schema(value: &Value) -> String {
    escape_html(&fields(&SCHEMA, value))
}

/// What stands under `items`.
pub(super) fn items(value: &Value) -> String {
    escape_html(&print(SchemaOrList, value))
}

/// The versions of a definition. `own` says whether the versions differ in a field; where they do not, it counts as the
/// definition's, not the versions'.
pub(super) fn versions(list: &[Value], own: impl Fn(&str) -> bool) -> String {
    let objects: Vec<String> = list
        .iter()
        .map(|version| {
            let part = |key: &str, print: &dyn Fn(&Value) -> String| match &version[key] {
                value if !value.is_null() && own(key) => print(value),
                _ => "null".to_owned(),
            };
            let list = |form: &'static [(&str, &str, Form)], value: &Value| {
                let items: Vec<String> = elements(value).iter().map(|v| fields(form, v)).collect();
                format!("[{}]", items.join(","))
            };
            format!(
                r#"{{"Name":{},"Served":{},"Storage":{},"Deprecated":{},"DeprecationWarning":{},"Schema":{},"Subresources":{},"AdditionalPrinterColumns":{},"SelectableFields":{}}}"#,
                print(Text, &version["name"]),
                print(Flag, &version["served"]),
                print(Flag, &version["storage"]),
                print(Flag, &version["deprecated"]),
                version["deprecationWarning"],
                part("schema", &|v| {
                    format!(r#"{{"OpenAPIV3Schema":{}}}"#, print(Schema, &v["openAPIV3Schema"]))
                }),
                part("subresources", &subresources),
                part("additionalPrinterColumns", &|v| list(&COLUMN, v)),
                part("selectableFields", &|v| list(&[("JSONPath", "jsonPath", Text)], v)),
            )
        })
        .collect();
    escape_html(&format!("[{}]", objects.join(",")))
}

fn subresources(value: &Value) -> String {
    const SCALE: [(&str, &str, Form); 3] = [
        ("SpecReplicasPath", "specReplicasPath", Text),
        ("StatusReplicasPath", "statusReplicasPath", Text),
        ("LabelSelectorPath", "labelSelectorPath", Any),
    ];
    let scale = match &value["scale"] {
        Value::Null => "null".to_owned(),
        scale => fields(&SCALE, scale),
    };
    let status = if value["status"].is_null() { "null" } else { "{}" };
    format!(r#"{{"Status":{status},"Scale":{scale}}}"#)
}

fn fields(forms: &[(&str, &str, Form)], value: &Value) -> String {
    let parts: Vec<String> =
        forms.iter().map(|(name, key, form)| format!("\"{name}\":{}", print(*form, &value[*key]))).collect();
    format!("{{{}}}", parts.join(","))
}

fn print(form: Form, value: &Value) -> String {
    match (form, value) {
        (Text, Value::Null) => "\"\"".to_owned(),
        (Flag, Value::Null) => "false".to_owned(),
        (_, Value::Null) => "null".to_owned(),
        (Text | Flag | Any, value) => value.to_string(),
        (Schema, value) => fields(&SCHEMA, value),
        (Schemas, value) => list(&SCHEMA, value),
        (Rules, value) => list(&RULE, value),
        (SchemaMap, Value::Object(map)) => {
            let parts: Vec<String> = map
                .iter()
                .map(|(key, v)| format!("{}:{}", Value::from(key.as_str()), fields(&SCHEMA, v)))
                .collect();
            format!("{{{}}}", parts.join(","))
        }
        (SchemaOrBool, Value::Bool(allows)) => format!(r#"{{"Allows":{allows},"Schema":null}}"#),
        (SchemaOrBool, value) => format!(r#"{{"Allows":true,"Schema":{}}}"#, fields(&SCHEMA, value)),
        (SchemaOrList, value @ Value::Array(_)) => {
            format!(r#"{{"Schema":null,"JSONSchemas":{}}}"#, list(&SCHEMA, value))
        }
        (SchemaOrList, value) => format!(r#"{{"Schema":{},"JSONSchemas":null}}"#, fields(&SCHEMA, value)),
        (SchemaMap, _) => "null".to_owned(),
    }
}

fn list(form: &[(&str, &str, Form)], value: &Value) -> String {
    let items: Vec<String> = elements(value).iter().map(|v| fields(form, v)).collect();
    format!("[{}]", items.join(","))
}

fn elements(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
