//! What a column is.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Value, json};

/// A column's OpenAPI type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// Text.
    String,
    /// A whole number.
    Integer,
    /// True or false.
    Boolean,
    /// An RFC 3339 time that the client prints as an age.
    Date,
}

impl Type {
    /// The name in `columnDefinitions`.
    pub fn name(self) -> &'static str {
        match self {
            Type::String => "string",
            Type::Integer => "integer",
            Type::Boolean => "boolean",
            Type::Date => "date",
        }
    }
}

/// What gives the schema of an API type.
pub type Schemas = fn(&mut SchemaGenerator) -> Schema;

/// Where a column's description comes from.
#[derive(Clone, Copy)]
pub enum Doc {
    /// This text.
    Text(&'static str),
    /// The documentation of a field of an API type.
    Field(Schemas, &'static str),
}

/// One column of a table.
#[derive(Clone, Copy)]
pub struct Column {
    /// The heading.
    pub name: &'static str,
    /// The cells' type.
    pub type_: Type,
    /// `name` for the primary identifier, else empty.
    pub format: &'static str,
    /// Where the description comes from.
    pub doc: Doc,
    /// 0 is always shown, 1 only in wide output.
    pub priority: u8,
}

impl Column {
    const fn new(name: &'static str, type_: Type, doc: &'static str) -> Self {
        Self { name, type_, format: "", doc: Doc::Text(doc), priority: 0 }
    }

    pub(super) const fn wide(mut self) -> Self {
        self.priority = 1;
        self
    }

    pub(super) const fn format(mut self, format: &'static str) -> Self {
        self.format = format;
        self
    }

    pub(super) const fn doc(mut self, doc: Doc) -> Self {
        self.doc = doc;
        self
    }

    /// What the column means.
    pub fn description(&self) -> String {
        match self.doc {
            Doc::Text(text) => text.to_owned(),
            Doc::Field(schema, field) => {
                let schema = schema(&mut SchemaGenerator::default());
                let found = schema.as_value().pointer(&format!("/properties/{field}/description"));
                found.and_then(Value::as_str).unwrap_or_default().to_owned()
            }
        }
    }

    /// The entry of `columnDefinitions`.
    pub fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "type": self.type_.name(),
            "format": self.format,
            "description": self.description(),
            "priority": self.priority,
        })
    }
}

/// A column of text that is described as a field of an API type is.
pub(super) const fn string_of(name: &'static str, schema: Schemas, field: &'static str) -> Column {
    Column::new(name, Type::String, "").doc(Doc::Field(schema, field))
}

/// As [`string_of`], for whole numbers.
pub(super) const fn integer_of(name: &'static str, schema: Schemas, field: &'static str) -> Column {
    Column::new(name, Type::Integer, "").doc(Doc::Field(schema, field))
}

/// As [`string_of`], for what is true or false.
pub(super) const fn boolean_of(name: &'static str, schema: Schemas, field: &'static str) -> Column {
    Column::new(name, Type::Boolean, "").doc(Doc::Field(schema, field))
}

pub(super) const fn string(name: &'static str, doc: &'static str) -> Column {
    Column::new(name, Type::String, doc)
}

pub(super) const fn integer(name: &'static str, doc: &'static str) -> Column {
    Column::new(name, Type::Integer, doc)
}

pub(super) const NAME: Column = string_of("Name", ObjectMeta::json_schema, "name").format("name");
pub(super) const AGE: Column = string_of("Age", ObjectMeta::json_schema, "creationTimestamp");
pub(super) const CREATED_AT: Column =
    Column::new("Created At", Type::Date, "").doc(Doc::Field(ObjectMeta::json_schema, "creationTimestamp"));
