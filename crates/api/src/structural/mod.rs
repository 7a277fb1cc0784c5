//! Structural schemas of custom resources, as pure functions (KEP "Pruning for Custom Resources", "Defaulting and
//! Pruning", "CRD Validation Ratcheting"; Kubernetes documentation, "Extend the API with CustomResourceDefinitions").
//!
//! A [`Structural`] is the compiled `openAPIV3Schema` of one version of a definition. A request goes through
//! [`Structural::prune`], [`Structural::default`] and [`Structural::validate`]; server-side apply asks for
//! [`Structural::shape`], OpenAPI documents have [`open_api_v3`] and [`open_api_v2`].
//! Whether a schema is structural at all says [`Structural::check`], which the validation of definitions calls.
//!
//! One [`Node`] type stands for the schema of a value and for the value rules below `allOf`, `anyOf`, `oneOf` and `not`:
//! what upstream forbids in the latter is found by [`Structural::check`], not by the type.

mod check;
mod defaults;
pub mod field_path;
mod format;
mod lists;
mod metadata;
mod pattern;
mod prune;
mod publish;
mod shape;
#[cfg(test)]
mod tests;
mod validate;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use serde_json::Value;

pub use format::is_known as is_known_format;
pub use pattern::Pattern;
pub use publish::{MetaProperties, open_api_v2, open_api_v3};
pub use shape::envelope;

/// The compiled schema of one version of a definition.
#[derive(Debug)]
pub struct Structural {
    root: Node,
    shape: OnceLock<shape::Typed>,
}

/// Why a schema cannot be compiled. Definitions that passed validation never give one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// A keyword of JSON Schema that custom resources may not use.
    #[error("OpenAPIV3Schema '{0}' is not supported")]
    Unsupported(&'static str),
    /// `items` is a list of schemas.
    #[error("OpenAPIV3Schema 'items' must be a schema, but is an array")]
    ItemsArray,
    /// `x-kubernetes-preserve-unknown-fields: false`.
    #[error("internal error: 'x-kubernetes-preserve-unknown-fields' must be true or undefined")]
    PreserveFalse,
}

/// The schema of one value, or the value rules in a branch of a junctor.
#[derive(Debug, Default)]
pub struct Node {
    /// `type`; empty where none is given.
    pub ty: String,
    /// `title`.
    pub title: String,
    /// `description`.
    pub description: String,
    /// Whether null is a value.
    pub nullable: bool,
    /// `default`; never null.
    pub default: Option<Value>,
    /// `properties`.
    pub properties: BTreeMap<String, Node>,
    /// `additionalProperties`.
    pub additional: Option<Additional>,
    /// `items`.
    pub items: Option<Box<Node>>,
    /// `x-kubernetes-preserve-unknown-fields`.
    pub preserve_unknown: bool,
    /// `x-kubernetes-embedded-resource`.
    pub embedded: bool,
    /// `x-kubernetes-int-or-string`.
    pub int_or_string: bool,
    /// `x-kubernetes-list-type`; none counts as `atomic`.
    pub list_type: Option<String>,
    /// `x-kubernetes-list-map-keys`.
    pub list_map_keys: Vec<String>,
    /// `x-kubernetes-map-type`; none counts as `granular`.
    pub map_type: Option<String>,
    /// `x-kubernetes-validations`, as they stand in the definition.
    pub validations: Vec<Value>,
    /// The rules on the value itself; none where the schema has no such keyword.
    pub rules: Option<Box<Rules>>,
}

/// `additionalProperties`.
#[derive(Debug)]
pub enum Additional {
    /// True or false.
    Any(bool),
    /// A schema of all members that are no properties.
    Schema(Box<Node>),
}

/// The keywords that restrict a value.
#[derive(Debug, Default)]
pub struct Rules {
    /// `format`.
    pub format: String,
    /// `maximum`.
    pub maximum: Option<f64>,
    /// `exclusiveMaximum`.
    pub exclusive_maximum: bool,
    /// `minimum`.
    pub minimum: Option<f64>,
    /// `exclusiveMinimum`.
    pub exclusive_minimum: bool,
    /// `multipleOf`.
    pub multiple_of: Option<f64>,
    /// `maxLength`, in characters.
    pub max_length: Option<i64>,
    /// `minLength`, in characters.
    pub min_length: Option<i64>,
    /// `pattern`.
    pub pattern: Option<Pattern>,
    /// `maxItems`.
    pub max_items: Option<i64>,
    /// `minItems`.
    pub min_items: Option<i64>,
    /// `maxProperties`.
    pub max_properties: Option<i64>,
    /// `minProperties`.
    pub min_properties: Option<i64>,
    /// `required`.
    pub required: Vec<String>,
    /// `enum`.
    pub values: Vec<Value>,
    /// `allOf`.
    pub all_of: Vec<Node>,
    /// `anyOf`.
    pub any_of: Vec<Node>,
    /// `oneOf`.
    pub one_of: Vec<Node>,
    /// `not`.
    pub not: Option<Box<Node>>,
}

impl Structural {
    /// Compiles the `openAPIV3Schema` of a definition.
    pub fn parse(open_api_v3_schema: &Value) -> Result<Arc<Self>, ParseError> {
        Ok(Arc::new(Self { root: Node::parse(open_api_v3_schema)?, shape: OnceLock::new() }))
    }

    /// The schema of the whole object.
    pub fn root(&self) -> &Node {
        &self.root
    }
}

impl Node {
    /// Compiles a schema that stands anywhere in a definition.
    pub fn parse(schema: &Value) -> Result<Self, ParseError> {
        for (keyword, name) in [("id", "id"), ("$schema", "schema"), ("$ref", "$ref")] {
            if !text(schema, keyword).is_empty() {
                return Err(ParseError::Unsupported(name));
            }
        }
        for keyword in ["patternProperties", "dependencies", "definitions"] {
            if schema[keyword].as_object().is_some_and(|map| !map.is_empty()) {
                return Err(ParseError::Unsupported(keyword));
            }
        }
        if !schema["additionalItems"].is_null() {
            return Err(ParseError::Unsupported("additionalItems"));
        }
        if schema["x-kubernetes-preserve-unknown-fields"] == Value::Bool(false) {
            return Err(ParseError::PreserveFalse);
        }
        let flag = |keyword: &str| schema[keyword] == Value::Bool(true);
        let mut properties = BTreeMap::new();
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            properties.insert(name.clone(), Self::parse(property)?);
        }
        let items = match &schema["items"] {
            Value::Array(_) => return Err(ParseError::ItemsArray),
            items @ Value::Object(_) => Some(Box::new(Self::parse(items)?)),
            _ => None,
        };
        let additional = match &schema["additionalProperties"] {
            Value::Bool(allowed) => Some(Additional::Any(*allowed)),
            additional @ Value::Object(_) => Some(Additional::Schema(Box::new(Self::parse(additional)?))),
            _ => None,
        };
        Ok(Self {
            ty: text(schema, "type").to_owned(),
            title: text(schema, "title").to_owned(),
            description: text(schema, "description").to_owned(),
            nullable: flag("nullable"),
            default: Some(&schema["default"]).filter(|v| !v.is_null()).cloned(),
            properties,
            additional,
            items,
            preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            embedded: flag("x-kubernetes-embedded-resource"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            list_type: schema["x-kubernetes-list-type"].as_str().map(str::to_owned),
            list_map_keys: strings(&schema["x-kubernetes-list-map-keys"]),
            map_type: schema["x-kubernetes-map-type"].as_str().map(str::to_owned),
            validations: list(&schema["x-kubernetes-validations"]).to_vec(),
            rules: Rules::parse(schema)?.map(Box::new),
        })
    }

    /// The schema of a member: its property's, or that of all other members.
    pub fn member(&self, name: &str) -> Option<&Node> {
        self.properties.get(name).or_else(|| self.additional_schema())
    }

    /// The schema of members that are no properties.
    pub fn additional_schema(&self) -> Option<&Node> {
        match &self.additional {
            Some(Additional::Schema(node)) => Some(node),
            _ => None,
        }
    }

    /// The keywords that restrict the value; empty ones where there are none.
    pub fn rules(&self) -> &Rules {
        static NONE: Rules = Rules::NONE;
        self.rules.as_deref().unwrap_or(&NONE)
    }

    /// Whether list items are told apart by their keys.
    pub fn is_list_map(&self) -> bool {
        self.list_type.as_deref() == Some("map")
    }

    /// What tells an item of this list from others, where it is a list by keys: how updates know which old item a new one
    /// was.
    pub fn key_of(&self, item: &Value) -> Option<String> {
        if !self.is_list_map() {
            return None;
        }
        let map = item.as_object()?;
        let parts = self.list_map_keys.iter().map(|key| map.get(key).unwrap_or(&Value::Null));
        Some(parts.fold(String::new(), |text, part| format!("{text}{part}\n")))
    }
}

impl Rules {
    const NONE: Self = Self {
        format: String::new(),
        maximum: None,
        exclusive_maximum: false,
        minimum: None,
        exclusive_minimum: false,
        multiple_of: None,
        max_length: None,
        min_length: None,
        pattern: None,
        max_items: None,
        min_items: None,
        max_properties: None,
        min_properties: None,
        required: Vec::new(),
        values: Vec::new(),
        all_of: Vec::new(),
        any_of: Vec::new(),
        one_of: Vec::new(),
        not: None,
    };

    const KEYWORDS: [&'static str; 19] = [
        "format",
        "maximum",
        "exclusiveMaximum",
        "minimum",
        "exclusiveMinimum",
        "multipleOf",
        "maxLength",
        "minLength",
        "pattern",
        "maxItems",
        "minItems",
        "maxProperties",
        "minProperties",
        "required",
        "enum",
        "allOf",
        "anyOf",
        "oneOf",
        "not",
    ];

    fn parse(schema: &Value) -> Result<Option<Self>, ParseError> {
        if !Self::KEYWORDS.iter().any(|keyword| !schema[*keyword].is_null()) {
            return Ok(None);
        }
        let number = |keyword: &str| schema[keyword].as_f64();
        let count = |keyword: &str| schema[keyword].as_i64();
        let flag = |keyword: &str| schema[keyword] == Value::Bool(true);
        let branches =
            |keyword: &str| list(&schema[keyword]).iter().map(Node::parse).collect::<Result<_, _>>();
        Ok(Some(Self {
            format: text(schema, "format").to_owned(),
            maximum: number("maximum"),
            exclusive_maximum: flag("exclusiveMaximum"),
            minimum: number("minimum"),
            exclusive_minimum: flag("exclusiveMinimum"),
            multiple_of: number("multipleOf"),
            max_length: count("maxLength"),
            min_length: count("minLength"),
            pattern: Some(text(schema, "pattern")).filter(|p| !p.is_empty()).map(Pattern::new),
            max_items: count("maxItems"),
            min_items: count("minItems"),
            max_properties: count("maxProperties"),
            min_properties: count("minProperties"),
            required: strings(&schema["required"]),
            values: list(&schema["enum"]).to_vec(),
            all_of: branches("allOf")?,
            any_of: branches("anyOf")?,
            one_of: branches("oneOf")?,
            not: match &schema["not"] {
                not @ Value::Object(_) => Some(Box::new(Node::parse(not)?)),
                _ => None,
            },
        }))
    }
}

/// The members that every object has besides its schema.
const META_FIELDS: [&str; 3] = ["apiVersion", "kind", "metadata"];

fn text<'a>(schema: &'a Value, keyword: &str) -> &'a str {
    schema[keyword].as_str().unwrap_or_default()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn strings(value: &Value) -> Vec<String> {
    list(value).iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}
