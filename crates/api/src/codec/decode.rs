//! The schema-driven decoder: one pass, no copies of what is known.
//!
//! Paths are not tracked on the way down. What is found (an unknown field, a wrong type) starts with its own name, and
//! every level prefixes its own segment on the way up, so objects without findings pay nothing.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::{DecodeError, Decoded, explain_syntax, scalar};
use crate::quantity::Quantity;
use crate::schema::{Field, Presence, Scalar, Shape, TypeRef};

/// How many findings of strict decoding are kept.
const MAX_FINDINGS: usize = 100;

pub(super) fn from_slice(bytes: &[u8], shape: Shape<'_>) -> Result<Decoded, DecodeError> {
    let mut context = Context::default();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let result = Seed { shape, context: &mut context }
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value));
    match result {
        Ok(value) => Ok(context.finish(value, shape)),
        Err(error) => Err(match context.failure {
            Some(failure) => DecodeError::Mismatch(failure.message()),
            None => DecodeError::Syntax(explain_syntax(bytes, &error)),
        }),
    }
}

pub(super) fn from_value(value: Value, shape: Shape<'_>) -> Result<Decoded, DecodeError> {
    let mut context = Context::default();
    match (Seed { shape, context: &mut context }).deserialize(value) {
        Ok(value) => Ok(context.finish(value, shape)),
        Err(error) => Err(DecodeError::Mismatch(match context.failure {
            Some(failure) => failure.message(),
            None => error.to_string(),
        })),
    }
}

#[derive(Default)]
struct Context {
    findings: Vec<Finding>,
    failure: Option<Failure>,
}

struct Finding {
    is_duplicate: bool,
    path: String,
}

impl Context {
    fn finish(self, value: Value, shape: Shape<'_>) -> Decoded {
        let strict = self
            .findings
            .into_iter()
            .map(|f| format!("{} field \"{}\"", if f.is_duplicate { "duplicate" } else { "unknown" }, f.path))
            .collect();
        let value = if value.is_null() { zero(shape) } else { value };
        Decoded { value, strict }
    }

    fn find(&mut self, is_duplicate: bool, name: &str) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(Finding { is_duplicate, path: name.to_owned() });
        }
    }

    /// Puts the name of a member before what was found below it.
    fn prefix_member(&mut self, since: usize, name: &str) {
        for finding in &mut self.findings[since..] {
            let dot = if finding.path.starts_with('[') { "" } else { "." };
            finding.path = format!("{name}{dot}{}", finding.path);
        }
    }

    fn prefix_item(&mut self, since: usize, index: usize) {
        self.prefix_member(since, &format!("[{index}]"));
    }

    fn mismatch<E: serde::de::Error>(&mut self, found: impl Into<Cow<'static, str>>, wanted: Shape<'_>) -> E {
        self.failure = Some(Failure {
            what: What::Type { found: found.into(), wanted: go_type(wanted) },
            path: String::new(),
            within: None,
        });
        E::custom("mismatch")
    }

    fn refuse<E: serde::de::Error>(&mut self, message: String) -> E {
        self.failure = Some(Failure { what: What::Text(message), path: String::new(), within: None });
        E::custom("mismatch")
    }

    /// Adds a field to the path of a failure below it.
    fn enter_failure(&mut self, ty: TypeRef<'_>, field: &Field) {
        let Some(failure) = &mut self.failure else { return };
        if failure.within.is_none() {
            failure.within = Some(ty.get().short_name().to_owned());
        }
        let mut path = String::new();
        for segment in field.embedded.iter().chain([&field.name]) {
            path.push_str(segment);
            path.push('.');
        }
        path.push_str(&failure.path);
        failure.path = path;
    }
}

enum What {
    Type { found: Cow<'static, str>, wanted: String },
    Text(String),
}

struct Failure {
    what: What,
    path: String,
    within: Option<String>,
}

impl Failure {
    fn message(self) -> String {
        match (self.what, self.within) {
            (What::Text(text), _) => text,
            (What::Type { found, wanted }, Some(within)) => format!(
                "json: cannot unmarshal {found} into Go struct field {within}.{} of type {wanted}",
                self.path.trim_end_matches('.')
            ),
            (What::Type { found, wanted }, None) => {
                format!("json: cannot unmarshal {found} into Go value of type {wanted}")
            }
        }
    }
}

/// What the error texts call a type.
fn go_type(shape: Shape<'_>) -> String {
    match shape {
        Shape::Scalar(scalar) => match scalar {
            Scalar::Bool => "bool",
            Scalar::Int32 | Scalar::IntOrString => "int32",
            Scalar::Int64 => "int64",
            Scalar::Double => "float64",
            Scalar::Bytes => "[]uint8",
            Scalar::Quantity => "resource.Quantity",
            _ => "string",
        }
        .to_owned(),
        Shape::Message { ty, .. } => {
            let mut parts = ty.get().name.rsplit('.');
            let (name, version) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            format!("{version}.{name}")
        }
        Shape::List { .. } => format!("[]{}", shape.item().map(go_type).unwrap_or_default()),
        Shape::Map { value, schema, .. } => match schema.shape(value) {
            Shape::Scalar(Scalar::Quantity) => "v1.ResourceList".to_owned(),
            value => format!("map[string]{}", go_type(value)),
        },
        Shape::Any => "interface {}".to_owned(),
    }
}

/// The value that stands for "not set" where something must stand.
fn zero(shape: Shape<'_>) -> Value {
    match shape {
        Shape::Scalar(scalar) => match scalar {
            Scalar::String => Value::String(String::new()),
            Scalar::Bool => Value::Bool(false),
            Scalar::Int32 | Scalar::Int64 | Scalar::Double | Scalar::IntOrString => 0.into(),
            Scalar::Quantity => "0".into(),
            _ => Value::Null,
        },
        Shape::Message { ty, .. } => {
            let mut map = Map::new();
            complete(&mut map, ty);
            Value::Object(map)
        }
        Shape::List { .. } | Shape::Map { .. } | Shape::Any => Value::Null,
    }
}

/// Puts in the fields that are always there.
fn complete(map: &mut Map<String, Value>, ty: TypeRef<'_>) {
    for field in ty.get().fields.iter().filter(|f| f.presence == Presence::Always) {
        if !map.contains_key(field.name.as_ref()) {
            let value = if field.reference { Value::Null } else { zero(ty.shape_of(field)) };
            map.insert(field.name.to_string(), value);
        }
    }
}

pub(super) fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(value) => value.as_i64() == Some(0) || value.as_f64() == Some(0.0),
        Value::String(value) => value.is_empty(),
        Value::Array(value) => value.is_empty(),
        Value::Object(value) => value.is_empty(),
    }
}

/// Decodes one value of a shape. Null comes back as null: what it means is up to the container.
struct Seed<'a, 'c> {
    shape: Shape<'a>,
    context: &'c mut Context,
}

impl<'de> DeserializeSeed<'de> for Seed<'_, '_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(mut self, deserializer: D) -> Result<Value, D::Error> {
        if matches!(self.shape, Shape::Scalar(Scalar::RawExtension | Scalar::FieldsV1)) {
            self.shape = Shape::Any;
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_, '_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Value, E> {
        match self.shape {
            Shape::Any | Shape::Scalar(Scalar::Bool) => Ok(Value::Bool(value)),
            Shape::Scalar(Scalar::Quantity) => self.quantity(&value.to_string()),
            shape => Err(self.context.mismatch("bool", shape)),
        }
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        match self.shape {
            Shape::Any | Shape::Scalar(Scalar::Int64 | Scalar::Double) => Ok(value.into()),
            Shape::Scalar(Scalar::Int32 | Scalar::IntOrString) if i32::try_from(value).is_ok() => {
                Ok(value.into())
            }
            Shape::Scalar(Scalar::Int32 | Scalar::IntOrString) => {
                Err(self.context.mismatch(format!("number {value}"), self.shape))
            }
            Shape::Scalar(Scalar::Quantity) => self.quantity(&value.to_string()),
            shape => Err(self.context.mismatch("number", shape)),
        }
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        match i64::try_from(value) {
            Ok(value) => self.visit_i64(value),
            Err(_) => match self.shape {
                Shape::Any | Shape::Scalar(Scalar::Double) => Ok(value.into()),
                Shape::Scalar(Scalar::Quantity) => self.quantity(&value.to_string()),
                shape => Err(self.context.mismatch(format!("number {value}"), shape)),
            },
        }
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        match self.shape {
            // Whole numbers print without a fraction.
            Shape::Any | Shape::Scalar(Scalar::Double) => {
                let is_whole = value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0;
                Ok(if is_whole { (value as i64).into() } else { value.into() })
            }
            Shape::Scalar(Scalar::Quantity) => self.quantity(&value.to_string()),
            Shape::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::IntOrString) => {
                Err(self.context.mismatch(format!("number {value}"), self.shape))
            }
            shape => Err(self.context.mismatch("number", shape)),
        }
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        match self.shape {
            Shape::Scalar(Scalar::Quantity) => self.quantity(value),
            _ => self.visit_string(value.to_owned()),
        }
    }

    fn visit_string<E: serde::de::Error>(self, value: String) -> Result<Value, E> {
        let scalar = match self.shape {
            Shape::Any => return Ok(Value::String(value)),
            Shape::Scalar(scalar) => scalar,
            shape => return Err(self.context.mismatch("string", shape)),
        };
        let parsed = match scalar {
            Scalar::String | Scalar::IntOrString => return Ok(Value::String(value)),
            Scalar::Quantity => return self.quantity(&value),
            Scalar::Bytes => scalar::bytes(value),
            Scalar::Time => scalar::time(&value),
            Scalar::MicroTime => scalar::micro_time(&value),
            _ => return Err(self.context.mismatch("string", self.shape)),
        };
        parsed.map(Value::String).map_err(|message| self.context.refuse(message))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let Some(item) = self.shape.item() else { return Err(self.context.mismatch("array", self.shape)) };
        let keep_null = matches!(item, Shape::Any);
        let mut list = Vec::new();
        loop {
            let since = self.context.findings.len();
            match items.next_element_seed(Seed { shape: item, context: self.context })? {
                Some(Value::Null) if !keep_null => list.push(zero(item)),
                Some(value) => list.push(value),
                None => return Ok(Value::Array(list)),
            }
            if self.context.findings.len() > since {
                self.context.prefix_item(since, list.len() - 1);
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<Value, A::Error> {
        match self.shape {
            Shape::Message { ty, .. } => self.message(ty, entries),
            Shape::Map { value, schema, .. } => self.map(schema.shape(value), entries),
            Shape::Any => self.map(Shape::Any, entries),
            shape => Err(self.context.mismatch("object", shape)),
        }
    }
}

impl Seed<'_, '_> {
    fn quantity<E: serde::de::Error>(self, text: &str) -> Result<Value, E> {
        Quantity::canonicalize(text.trim())
            .map(Value::String)
            .map_err(|error| self.context.refuse(error.to_string()))
    }

    fn map<'de, A: MapAccess<'de>>(self, shape: Shape<'_>, mut entries: A) -> Result<Value, A::Error> {
        let keep_null = matches!(shape, Shape::Any);
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                self.context.find(true, &key);
            }
            let since = self.context.findings.len();
            let value = entries.next_value_seed(Seed { shape, context: self.context })?;
            if self.context.findings.len() > since {
                self.context.prefix_member(since, &key);
            }
            map.insert(key, if value.is_null() && !keep_null { zero(shape) } else { value });
        }
        Ok(Value::Object(map))
    }

    fn message<'de, A: MapAccess<'de>>(self, ty: TypeRef<'_>, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        // Types with more fields than bits merely miss duplicates among the fields beyond.
        let mut seen = 0u128;
        while let Some(key) = entries.next_key_seed(KeySeed { ty })? {
            let (index, field) = match key {
                Key::Known(index) => (index, &ty.get().fields[index]),
                Key::Unknown(name) if ty.get().open => {
                    let value = entries.next_value_seed(Seed { shape: Shape::Any, context: self.context })?;
                    map.insert(name, value);
                    continue;
                }
                Key::Unknown(name) => {
                    self.context.find(false, &name);
                    entries.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            let bit = 1u128.checked_shl(index as u32).unwrap_or(0);
            if seen & bit != 0 {
                self.context.find(true, &field.name);
            }
            seen |= bit;
            let since = self.context.findings.len();
            let shape = ty.shape_of(field);
            let value = match entries.next_value_seed(Seed { shape, context: self.context }) {
                Ok(value) => value,
                Err(error) => {
                    self.context.enter_failure(ty, field);
                    return Err(error);
                }
            };
            if self.context.findings.len() > since {
                self.context.prefix_member(since, &field.name);
            }
            // what is stored and read again has no empty lists: a member that is always there is null
            let is_dropped = value.is_null()
                || field.presence == Presence::Always && value.as_array().is_some_and(Vec::is_empty)
                || field.presence == Presence::Plain && is_zero(&value);
            if is_dropped {
                map.remove(field.name.as_ref());
            } else {
                map.insert(field.name.to_string(), value);
            }
        }
        complete(&mut map, ty);
        Ok(Value::Object(map))
    }
}

enum Key {
    Known(usize),
    Unknown(String),
}

/// Reads a field's name without keeping it.
struct KeySeed<'a> {
    ty: TypeRef<'a>,
}

impl<'de> DeserializeSeed<'de> for KeySeed<'_> {
    type Value = Key;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Key, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed<'_> {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Key, E> {
        Ok(match self.ty.get().fields.binary_search_by(|f| f.name.as_ref().cmp(name)) {
            Ok(index) => Key::Known(index),
            Err(_) => Key::Unknown(name.to_owned()),
        })
    }
}
