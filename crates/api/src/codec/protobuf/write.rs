//! From JSON trees in the printed form to messages.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::MAGIC;
use super::union::Union;
use super::wire::{put_bytes, put_fixed64, put_varint};
use crate::schema::{Field, Scalar, Schema, Shape, TypeRef};

/// Writes an object with its envelope.
pub(super) fn envelope(value: &Value, ty: TypeRef<'_>) -> Vec<u8> {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
    let mut meta = Vec::new();
    put_bytes(&mut meta, 1, text("apiVersion").as_bytes());
    put_bytes(&mut meta, 2, text("kind").as_bytes());
    let mut raw = Vec::new();
    if let Value::Object(map) = value {
        message(&mut raw, map, ty);
    }
    let mut out = Vec::with_capacity(raw.len() + meta.len() + 32);
    out.extend_from_slice(MAGIC);
    put_bytes(&mut out, 1, &meta);
    put_bytes(&mut out, 2, &raw);
    // neither an encoding nor a media type of its own
    put_bytes(&mut out, 3, b"");
    put_bytes(&mut out, 4, b"");
    out
}

/// Writes a framed event of a watch.
pub(super) fn watch_event(what: &str, object: &[u8]) -> Vec<u8> {
    let (mut raw, mut event) = (Vec::with_capacity(object.len() + 8), Vec::with_capacity(object.len() + 32));
    put_bytes(&mut raw, 1, object);
    put_bytes(&mut event, 1, what.as_bytes());
    put_bytes(&mut event, 2, &raw);
    let mut out = Vec::with_capacity(event.len() + 4);
    // an event is an object of at most a few MiB
    out.extend_from_slice(&u32::try_from(event.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.append(&mut event);
    out
}

pub(super) fn message(out: &mut Vec<u8>, map: &Map<String, Value>, ty: TypeRef<'_>) {
    let known = map.iter().filter_map(|(name, value)| {
        let (field, shape) = ty.field(name)?;
        (!field.tags.is_empty() && !value.is_null()).then_some((field, shape, value))
    });
    let mut set: Vec<Set<'_>> = known.collect();
    set.sort_by(|a, b| a.0.tags.cmp(&b.0.tags));
    fields(out, ty.schema(), &set, 0);
}

/// A field that is set: what it is, what it holds, its value.
type Set<'a> = (&'a Field, Shape<'a>, &'a Value);

/// Writes fields in the order of their tags, those of an embedded message together. `level`: how many tags of their
/// paths are done.
fn fields(out: &mut Vec<u8>, schema: &Schema, set: &[Set<'_>], level: usize) {
    for run in set.chunk_by(|a, b| a.0.tags.get(level) == b.0.tags.get(level)) {
        let Some((field, shape, value)) = run.first() else { continue };
        let Some(number) = field.tags.get(level) else { continue };
        if field.tags.len() > level + 1 {
            let mut embedded = Vec::new();
            fields(&mut embedded, schema, run, level + 1);
            put_bytes(out, *number, &embedded);
        } else if let Some(union) = Union::of(schema, &field.ty) {
            union.write(out, *number, value);
        } else {
            put(out, *number, *shape, value);
        }
    }
}

fn put(out: &mut Vec<u8>, number: u32, shape: Shape<'_>, value: &Value) {
    match (shape, value) {
        (Shape::Message { ty, .. }, Value::Object(map)) => {
            let mut inner = Vec::new();
            message(&mut inner, map, ty);
            put_bytes(out, number, &inner);
        }
        (Shape::List { item, schema, .. }, Value::Array(items)) => {
            let item = schema.shape(item);
            for value in items {
                match (item, value) {
                    // elsewhere null is "not set"; here it is an item
                    (Shape::Scalar(Scalar::RawExtension), Value::Null) => raw_json(out, number, value),
                    _ => put(out, number, item, value),
                }
            }
        }
        (Shape::Map { value: ty, schema, .. }, Value::Object(map)) => {
            let shape = schema.shape(ty);
            for (key, value) in map {
                let mut entry = Vec::new();
                put_bytes(&mut entry, 1, key.as_bytes());
                if matches!(shape, Shape::List { .. }) {
                    // a list as a map's value is wrapped in a message of its own
                    let mut items = Vec::new();
                    put(&mut items, 1, shape, value);
                    put_bytes(&mut entry, 2, &items);
                } else if let Some(union) = Union::of(schema, ty) {
                    union.write(&mut entry, 2, value);
                } else {
                    put(&mut entry, 2, shape, value);
                }
                put_bytes(out, number, &entry);
            }
        }
        (Shape::Scalar(kind), value) => scalar(out, number, kind, value),
        // null, or a tree that does not fit its schema
        _ => {}
    }
}

fn scalar(out: &mut Vec<u8>, number: u32, kind: Scalar, value: &Value) {
    let text = value.as_str();
    match (kind, value) {
        (_, Value::Null) => {}
        (Scalar::RawExtension | Scalar::FieldsV1, value) => raw_json(out, number, value),
        (Scalar::String, Value::String(text)) => put_bytes(out, number, text.as_bytes()),
        (Scalar::Bool, Value::Bool(value)) => put_varint(out, number, u64::from(*value)),
        (Scalar::Int32 | Scalar::Int64, value) => {
            put_varint(out, number, value.as_i64().unwrap_or_default() as u64);
        }
        (Scalar::Double, value) => {
            put_fixed64(out, number, value.as_f64().unwrap_or_default().to_bits());
        }
        (Scalar::Bytes, _) => {
            put_bytes(out, number, &STANDARD.decode(text.unwrap_or_default()).unwrap_or_default());
        }
        (Scalar::Quantity, value) => {
            let mut inner = Vec::new();
            let plain = value.to_string();
            put_bytes(&mut inner, 1, text.unwrap_or(&plain).as_bytes());
            put_bytes(out, number, &inner);
        }
        (Scalar::IntOrString, value) => {
            let mut inner = Vec::new();
            put_varint(&mut inner, 1, u64::from(text.is_some()));
            put_varint(&mut inner, 2, value.as_i64().unwrap_or_default() as u64);
            put_bytes(&mut inner, 3, text.unwrap_or_default().as_bytes());
            put_bytes(out, number, &inner);
        }
        (Scalar::Time | Scalar::MicroTime, _) => {
            let Some(instant) = text.and_then(|t| t.parse::<Timestamp>().ok()) else { return };
            // before 1970 the nanoseconds still count forward
            let second = instant.as_nanosecond().div_euclid(1_000_000_000) as i64;
            let nanos = instant.as_nanosecond().rem_euclid(1_000_000_000) as u64;
            let mut inner = Vec::new();
            put_varint(&mut inner, 1, second as u64);
            put_varint(&mut inner, 2, if kind == Scalar::MicroTime { nanos } else { 0 });
            put_bytes(out, number, &inner);
        }
        // a tree that does not fit its schema
        _ => {}
    }
}

/// Writes any JSON as a message that carries it as text.
fn raw_json(out: &mut Vec<u8>, number: u32, value: &Value) {
    let mut raw = Vec::new();
    put_bytes(&mut raw, 1, &super::super::encode_json(value));
    put_bytes(out, number, &raw);
}
