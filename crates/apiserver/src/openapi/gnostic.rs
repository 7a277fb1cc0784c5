//! The protobuf form of an OpenAPI v2 document, which Go clients ask for: the messages of gnostic's `OpenAPIv2.proto`.
//!
//! kubectl reads it where OpenAPI v3 does not tell it enough, as for a file that is a `List`. Field numbers are those of the
//! published `.proto`. What no document of a Kubernetes API server holds (headers, XML, forms, OAuth) is left out.

use prost::encoding::{bool, bytes, double, int64, string};
use serde_json::{Map, Value};

type Object = Map<String, Value>;

/// The message of an object, and the fields of the messages around it, the outermost first: a `oneof` is a message of its own.
type Shape = fn(&Object) -> (&'static [u32], &'static Message);

/// How a member of an object is written.
enum Form {
    Text,
    Flag,
    Number,
    Integer,
    /// A list of strings.
    Texts,
    /// A value of any kind: YAML, which JSON is, in a message of its own.
    Any,
    /// A list of them.
    Anys,
    One(Shape),
    /// A list of objects.
    Many(Shape),
    /// An object whose members' names are free, as pairs of a name and a value in this field.
    Pairs(u32, Shape),
    /// A list of lists of texts by name.
    Requirements,
    /// One type or a list of them.
    Types,
    /// One schema or a list of them.
    Items,
    /// A schema, or whether anything is allowed.
    SchemaOrFlag,
}

/// An object whose members are known, but for extensions (`x-...`).
struct Message {
    fields: &'static [(&'static str, u32, Form)],
    /// The field of the extensions; 0 where there are none.
    extensions: u32,
    /// Where members go that are neither: the field, and what they are.
    others: Option<(u32, Shape)>,
}

const fn message(fields: &'static [(&'static str, u32, Form)], extensions: u32) -> Message {
    Message { fields, extensions, others: None }
}

static DOCUMENT: Message = message(
    &[
        ("swagger", 1, Form::Text),
        ("info", 2, Form::One(|_| (&[], &INFO))),
        ("paths", 8, Form::One(|_| (&[], &PATHS))),
        ("definitions", 9, Form::Pairs(1, schema)),
        ("parameters", 10, Form::Pairs(1, parameter)),
        ("responses", 11, Form::Pairs(1, |_| (&[], &RESPONSE))),
        ("security", 12, Form::Requirements),
        ("securityDefinitions", 13, Form::Pairs(1, security)),
    ],
    16,
);
static INFO: Message =
    message(&[("title", 1, Form::Text), ("version", 2, Form::Text), ("description", 3, Form::Text)], 7);
static EXTERNAL_DOCS: Message = message(&[("description", 1, Form::Text), ("url", 2, Form::Text)], 3);
static PATHS: Message = Message { fields: &[], extensions: 1, others: Some((2, |_| (&[], &PATH_ITEM))) };
static PATH_ITEM: Message = message(
    &[
        ("$ref", 1, Form::Text),
        ("get", 2, Form::One(operation)),
        ("put", 3, Form::One(operation)),
        ("post", 4, Form::One(operation)),
        ("delete", 5, Form::One(operation)),
        ("options", 6, Form::One(operation)),
        ("head", 7, Form::One(operation)),
        ("patch", 8, Form::One(operation)),
        ("parameters", 9, Form::Many(parameters_item)),
    ],
    10,
);
static OPERATION: Message = message(
    &[
        ("tags", 1, Form::Texts),
        ("summary", 2, Form::Text),
        ("description", 3, Form::Text),
        ("externalDocs", 4, Form::One(external_docs)),
        ("operationId", 5, Form::Text),
        ("produces", 6, Form::Texts),
        ("consumes", 7, Form::Texts),
        ("parameters", 8, Form::Many(parameters_item)),
        ("responses", 9, Form::One(|_| (&[], &RESPONSES))),
        ("schemes", 10, Form::Texts),
        ("deprecated", 11, Form::Flag),
        ("security", 12, Form::Requirements),
    ],
    13,
);
static RESPONSES: Message = Message { fields: &[], extensions: 2, others: Some((1, response_value)) };
static RESPONSE: Message =
    message(&[("description", 1, Form::Text), ("schema", 2, Form::One(|_| (&[1], &SCHEMA)))], 5);
static REFERENCE: Message = message(&[("$ref", 1, Form::Text), ("description", 2, Form::Text)], 0);
static BODY: Message = message(
    &[
        ("description", 1, Form::Text),
        ("name", 2, Form::Text),
        ("in", 3, Form::Text),
        ("required", 4, Form::Flag),
        ("schema", 5, Form::One(schema)),
    ],
    6,
);
/// Parameters of a path and of a header have the same fields.
static PLAIN_PARAMETER: Message = message(
    &[
        ("required", 1, Form::Flag),
        ("in", 2, Form::Text),
        ("description", 3, Form::Text),
        ("name", 4, Form::Text),
        ("type", 5, Form::Text),
        ("format", 6, Form::Text),
        ("items", 7, Form::One(primitive)),
        ("collectionFormat", 8, Form::Text),
        ("default", 9, Form::Any),
        ("maximum", 10, Form::Number),
        ("exclusiveMaximum", 11, Form::Flag),
        ("minimum", 12, Form::Number),
        ("exclusiveMinimum", 13, Form::Flag),
        ("maxLength", 14, Form::Integer),
        ("minLength", 15, Form::Integer),
        ("pattern", 16, Form::Text),
        ("maxItems", 17, Form::Integer),
        ("minItems", 18, Form::Integer),
        ("uniqueItems", 19, Form::Flag),
        ("enum", 20, Form::Anys),
        ("multipleOf", 21, Form::Number),
    ],
    22,
);
/// Parameters of a query and of a form have the same fields.
static QUERY_PARAMETER: Message = message(
    &[
        ("required", 1, Form::Flag),
        ("in", 2, Form::Text),
        ("description", 3, Form::Text),
        ("name", 4, Form::Text),
        ("allowEmptyValue", 5, Form::Flag),
        ("type", 6, Form::Text),
        ("format", 7, Form::Text),
        ("items", 8, Form::One(primitive)),
        ("collectionFormat", 9, Form::Text),
        ("default", 10, Form::Any),
        ("maximum", 11, Form::Number),
        ("exclusiveMaximum", 12, Form::Flag),
        ("minimum", 13, Form::Number),
        ("exclusiveMinimum", 14, Form::Flag),
        ("maxLength", 15, Form::Integer),
        ("minLength", 16, Form::Integer),
        ("pattern", 17, Form::Text),
        ("maxItems", 18, Form::Integer),
        ("minItems", 19, Form::Integer),
        ("uniqueItems", 20, Form::Flag),
        ("enum", 21, Form::Anys),
        ("multipleOf", 22, Form::Number),
    ],
    23,
);
/// What items of lists of simple values may say.
static PRIMITIVE: Message = message(
    &[
        ("type", 1, Form::Text),
        ("format", 2, Form::Text),
        ("items", 3, Form::One(primitive)),
        ("collectionFormat", 4, Form::Text),
        ("default", 5, Form::Any),
        ("maximum", 6, Form::Number),
        ("exclusiveMaximum", 7, Form::Flag),
        ("minimum", 8, Form::Number),
        ("exclusiveMinimum", 9, Form::Flag),
        ("maxLength", 10, Form::Integer),
        ("minLength", 11, Form::Integer),
        ("pattern", 12, Form::Text),
        ("maxItems", 13, Form::Integer),
        ("minItems", 14, Form::Integer),
        ("uniqueItems", 15, Form::Flag),
        ("enum", 16, Form::Anys),
        ("multipleOf", 17, Form::Number),
    ],
    18,
);
static SCHEMA: Message = message(
    &[
        ("$ref", 1, Form::Text),
        ("format", 2, Form::Text),
        ("title", 3, Form::Text),
        ("description", 4, Form::Text),
        ("default", 5, Form::Any),
        ("multipleOf", 6, Form::Number),
        ("maximum", 7, Form::Number),
        ("exclusiveMaximum", 8, Form::Flag),
        ("minimum", 9, Form::Number),
        ("exclusiveMinimum", 10, Form::Flag),
        ("maxLength", 11, Form::Integer),
        ("minLength", 12, Form::Integer),
        ("pattern", 13, Form::Text),
        ("maxItems", 14, Form::Integer),
        ("minItems", 15, Form::Integer),
        ("uniqueItems", 16, Form::Flag),
        ("maxProperties", 17, Form::Integer),
        ("minProperties", 18, Form::Integer),
        ("required", 19, Form::Texts),
        ("enum", 20, Form::Anys),
        ("additionalProperties", 21, Form::SchemaOrFlag),
        ("type", 22, Form::Types),
        ("items", 23, Form::Items),
        ("allOf", 24, Form::Many(schema)),
        ("properties", 25, Form::Pairs(1, schema)),
        ("discriminator", 26, Form::Text),
        ("readOnly", 27, Form::Flag),
        ("externalDocs", 29, Form::One(external_docs)),
        ("example", 30, Form::Any),
    ],
    31,
);
static BASIC_SECURITY: Message = message(&[("type", 1, Form::Text), ("description", 2, Form::Text)], 3);
static KEY_SECURITY: Message = message(
    &[
        ("type", 1, Form::Text),
        ("name", 2, Form::Text),
        ("in", 3, Form::Text),
        ("description", 4, Form::Text),
    ],
    5,
);

fn schema(_: &Object) -> (&'static [u32], &'static Message) {
    (&[], &SCHEMA)
}

fn operation(_: &Object) -> (&'static [u32], &'static Message) {
    (&[], &OPERATION)
}

fn external_docs(_: &Object) -> (&'static [u32], &'static Message) {
    (&[], &EXTERNAL_DOCS)
}

fn primitive(_: &Object) -> (&'static [u32], &'static Message) {
    (&[], &PRIMITIVE)
}

fn parameters_item(of: &Object) -> (&'static [u32], &'static Message) {
    match of.get("in").and_then(Value::as_str) {
        Some("body") => (&[1, 1], &BODY),
        Some("header") => (&[1, 2, 1], &PLAIN_PARAMETER),
        Some("formData") => (&[1, 2, 2], &QUERY_PARAMETER),
        Some("query") => (&[1, 2, 3], &QUERY_PARAMETER),
        Some(_) => (&[1, 2, 4], &PLAIN_PARAMETER),
        None => (&[2], &REFERENCE),
    }
}

/// A parameter that has a name in the document: never a reference.
fn parameter(of: &Object) -> (&'static [u32], &'static Message) {
    let (path, message) = parameters_item(of);
    (&path[1..], message)
}

fn response_value(of: &Object) -> (&'static [u32], &'static Message) {
    if of.contains_key("$ref") { (&[2], &REFERENCE) } else { (&[1], &RESPONSE) }
}

fn security(of: &Object) -> (&'static [u32], &'static Message) {
    match of.get("type").and_then(Value::as_str) {
        Some("basic") => (&[1], &BASIC_SECURITY),
        _ => (&[2], &KEY_SECURITY),
    }
}

/// The message `Document` of a whole document.
pub(super) fn document(of: &Value) -> Vec<u8> {
    of.as_object().map(|of| encode(of, &DOCUMENT)).unwrap_or_default()
}

fn encode(of: &Object, message: &Message) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in of {
        if let Some((_, field, form)) = message.fields.iter().find(|(known, ..)| known == name) {
            put(&mut out, *field, form, value);
        } else if name.starts_with("x-") && message.extensions > 0 {
            bytes::encode(message.extensions, &pair(name, &any(value)), &mut out);
        } else if let Some((field, shape)) = message.others {
            put_pair(&mut out, field, shape, name, value);
        }
    }
    out
}

fn put(out: &mut Vec<u8>, field: u32, form: &Form, value: &Value) {
    let list = || value.as_array().into_iter().flatten();
    match form {
        // what is empty, false or 0 is as good as absent
        Form::Text => match value.as_str() {
            Some(text) if !text.is_empty() => string::encode(field, &text.to_owned(), out),
            _ => {}
        },
        Form::Flag => {
            if value.as_bool() == Some(true) {
                bool::encode(field, &true, out);
            }
        }
        Form::Number => match value.as_f64() {
            Some(number) if number != 0.0 => double::encode(field, &number, out),
            _ => {}
        },
        Form::Integer => match value.as_i64() {
            Some(number) if number != 0 => int64::encode(field, &number, out),
            _ => {}
        },
        Form::Texts => texts(out, field, value),
        Form::Any => bytes::encode(field, &any(value), out),
        Form::Anys => list().for_each(|item| bytes::encode(field, &any(item), out)),
        Form::One(shape) => put_shape(out, field, *shape, value),
        Form::Many(shape) => list().for_each(|item| put_shape(out, field, *shape, item)),
        Form::Pairs(inner, shape) => {
            let mut pairs = Vec::new();
            for (name, value) in value.as_object().into_iter().flatten() {
                put_pair(&mut pairs, *inner, *shape, name, value);
            }
            bytes::encode(field, &pairs, out);
        }
        Form::Requirements => {
            for requirement in list() {
                let mut pairs = Vec::new();
                for (name, scopes) in requirement.as_object().into_iter().flatten() {
                    let mut array = Vec::new();
                    texts(&mut array, 1, scopes);
                    bytes::encode(1, &pair(name, &array), &mut pairs);
                }
                bytes::encode(field, &pairs, out);
            }
        }
        Form::Types => {
            let mut types = Vec::new();
            match value {
                Value::String(one) => string::encode(1, one, &mut types),
                many => texts(&mut types, 1, many),
            }
            bytes::encode(field, &types, out);
        }
        Form::Items => {
            let mut items = Vec::new();
            match value {
                Value::Array(many) => many.iter().for_each(|one| put_shape(&mut items, 1, schema, one)),
                one => put_shape(&mut items, 1, schema, one),
            }
            bytes::encode(field, &items, out);
        }
        Form::SchemaOrFlag => {
            let mut item = Vec::new();
            match value {
                // a choice that was made is told, whatever it is
                Value::Bool(flag) => bool::encode(2, flag, &mut item),
                one => put_shape(&mut item, 1, schema, one),
            }
            bytes::encode(field, &item, out);
        }
    }
}

fn texts(out: &mut Vec<u8>, field: u32, list: &Value) {
    for text in list.as_array().into_iter().flatten().filter_map(Value::as_str) {
        string::encode(field, &text.to_owned(), out);
    }
}

fn put_shape(out: &mut Vec<u8>, field: u32, shape: Shape, value: &Value) {
    if let Some(of) = value.as_object() {
        bytes::encode(field, &shaped(shape, of), out);
    }
}

fn put_pair(out: &mut Vec<u8>, field: u32, shape: Shape, name: &str, value: &Value) {
    if let Some(of) = value.as_object() {
        bytes::encode(field, &pair(name, &shaped(shape, of)), out);
    }
}

fn shaped(shape: Shape, of: &Object) -> Vec<u8> {
    let (around, message) = shape(of);
    around.iter().rev().fold(encode(of, message), |inner, field| {
        let mut outer = Vec::with_capacity(inner.len() + 4);
        bytes::encode(*field, &inner, &mut outer);
        outer
    })
}

/// A message of a name and a value.
fn pair(name: &str, value: &Vec<u8>) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len() + value.len() + 8);
    string::encode(1, &name.to_owned(), &mut out);
    bytes::encode(2, value, &mut out);
    out
}

/// A message `Any`.
fn any(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    string::encode(2, &value.to_string(), &mut out);
    out
}
