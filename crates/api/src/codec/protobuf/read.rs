//! From messages to JSON trees.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::super::DecodeError;
use super::super::decode::is_zero;
use super::Envelope;
use super::union::Union;
use super::wire::{Fields, Wire, malformed};
use crate::schema::{Presence, Scalar, Schema, Shape, Ty, TypeRef};

/// How deep the tree may nest: less than JSON may, so that what is stored can be read again.
const MAX_DEPTH: usize = 100;

/// Reads `runtime.Unknown`.
pub(super) fn envelope(bytes: &[u8]) -> Result<Envelope<'_>, DecodeError> {
    let mut envelope = Envelope::default();
    let mut fields = Fields::of(bytes);
    while let Some((number, wire)) = fields.next()? {
        match number {
            1 => {
                let mut meta = Fields::of(chunk(wire, "TypeMeta")?);
                while let Some((number, wire)) = meta.next()? {
                    match number {
                        1 => envelope.api_version = String::from_utf8_lossy(chunk(wire, "APIVersion")?),
                        2 => envelope.kind = String::from_utf8_lossy(chunk(wire, "Kind")?),
                        _ => {}
                    }
                }
            }
            2 => envelope.raw = chunk(wire, "Raw")?,
            _ => {}
        }
    }
    Ok(envelope)
}

/// Reads the message of an envelope. What the type keeps outside of it, the envelope says.
pub(super) fn object(envelope: &Envelope<'_>, shape: Shape<'_>) -> Result<Value, DecodeError> {
    let Shape::Message { ty, .. } = shape else {
        return Err(malformed("the type has no protobuf form"));
    };
    let mut map = Map::new();
    for (name, text) in [("apiVersion", &envelope.api_version), ("kind", &envelope.kind)] {
        if ty.field(name).is_some_and(|(field, _)| field.tags.is_empty()) && !text.is_empty() {
            map.insert(name.to_owned(), json!(text));
        }
    }
    message(envelope.raw, ty, &[], &mut map, MAX_DEPTH)?;
    Ok(Value::Object(map))
}

/// Reads a message into a tree that may hold parts of it already. `path`: the tags of the embedded messages on the way
/// from the type to these bytes.
fn message(
    bytes: &[u8],
    ty: TypeRef<'_>,
    path: &[u32],
    into: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), DecodeError> {
    let depth = deeper(depth)?;
    let level = path.len();
    let mut fields = Fields::of(bytes);
    while let Some((number, wire)) = fields.next()? {
        let is_it = |tags: &[u32]| tags.get(level) == Some(&number) && tags.starts_with(path);
        let Some(field) = ty.get().fields.iter().find(|f| is_it(&f.tags)) else { continue };
        if field.tags.len() > level + 1 {
            let name = field.embedded.get(level).unwrap_or(&field.name);
            message(chunk(wire, name)?, ty, &field.tags[..=level], into, depth)?;
            continue;
        }
        let slot = into.entry(field.name.as_ref()).or_insert(Value::Null);
        match Union::of(ty.schema(), &field.ty) {
            Some(union) => *slot = union.read(wire, &field.name, depth)?,
            None => add(slot, ty.shape_of(field), wire, &field.name, depth)?,
        }
    }
    // many writers send what is not set as zero; below a union nobody else drops it
    into.retain(|name, value| {
        let is_plain = || ty.field(name).is_some_and(|(f, _)| f.presence == Presence::Plain);
        !is_zero(value) || !value.is_null() && !is_plain()
    });
    Ok(())
}

/// Adds what a field holds to what was there: lists and maps grow, messages merge, the last scalar counts.
pub(super) fn add(
    slot: &mut Value,
    shape: Shape<'_>,
    wire: Wire<'_>,
    name: &str,
    depth: usize,
) -> Result<(), DecodeError> {
    match shape {
        Shape::Message { ty, .. } => {
            let mut map = take_object(slot);
            message(chunk(wire, name)?, ty, &[], &mut map, depth)?;
            *slot = Value::Object(map);
            Ok(())
        }
        Shape::List { item, schema, .. } => {
            let depth = deeper(depth)?;
            let item = schema.shape(item);
            if !slot.is_array() {
                *slot = Value::Array(Vec::new());
            }
            let Some(list) = slot.as_array_mut() else { return Ok(()) };
            let is_number =
                matches!(item, Shape::Scalar(Scalar::Bool | Scalar::Int32 | Scalar::Int64 | Scalar::Double));
            if let Wire::Bytes(packed) = wire
                && is_number
            {
                let mut packed = Fields::of(packed);
                while let Some(wire) = packed.packed(matches!(item, Shape::Scalar(Scalar::Double)))? {
                    let mut value = Value::Null;
                    add(&mut value, item, wire, name, depth)?;
                    list.push(value);
                }
                return Ok(());
            }
            let mut value = Value::Null;
            add(&mut value, item, wire, name, depth)?;
            list.push(value);
            Ok(())
        }
        Shape::Map { value, schema, .. } => {
            let (key, value) = entry(chunk(wire, name)?, schema, value, name, deeper(depth)?)?;
            let mut map = take_object(slot);
            map.insert(key, value);
            *slot = Value::Object(map);
            Ok(())
        }
        Shape::Scalar(kind) => {
            *slot = scalar(kind, wire, name, depth)?;
            Ok(())
        }
        Shape::Any => Err(malformed("the type has no protobuf form")),
    }
}

/// Reads an entry of a map; a value that is not there is the zero value.
fn entry(
    bytes: &[u8],
    schema: &Schema,
    ty: &Ty,
    name: &str,
    depth: usize,
) -> Result<(String, Value), DecodeError> {
    let shape = schema.shape(ty);
    let mut key = String::new();
    let mut value = match shape {
        Shape::Scalar(Scalar::Bytes) => json!(""),
        _ => Value::Null,
    };
    let mut fields = Fields::of(bytes);
    while let Some((number, wire)) = fields.next()? {
        match (number, shape) {
            (1, _) => key = text(wire, name)?,
            // a list as a map's value is wrapped in a message of its own
            (2, Shape::List { .. }) => {
                value = json!([]);
                let mut items = Fields::of(chunk(wire, name)?);
                while let Some((number, wire)) = items.next()? {
                    if number == 1 {
                        add(&mut value, shape, wire, name, depth)?;
                    }
                }
            }
            (2, _) => match Union::of(schema, ty) {
                Some(union) => value = union.read(wire, name, depth)?,
                None => add(&mut value, shape, wire, name, depth)?,
            },
            _ => {}
        }
    }
    Ok((key, value))
}

fn scalar(kind: Scalar, wire: Wire<'_>, name: &str, depth: usize) -> Result<Value, DecodeError> {
    Ok(match kind {
        Scalar::String => json!(text(wire, name)?),
        Scalar::Bool => json!(varint(wire, name)? != 0),
        // negative numbers of 32 bits have ten bytes; the upper ones repeat the sign
        Scalar::Int32 => json!(varint(wire, name)? as i32),
        Scalar::Int64 => json!(varint(wire, name)? as i64),
        Scalar::Double => match wire {
            Wire::Fixed64(bits) => json!(f64::from_bits(bits)),
            _ => return Err(wrong_wire(wire, name)),
        },
        Scalar::Bytes => json!(STANDARD.encode(chunk(wire, name)?)),
        Scalar::Quantity => match inner_text(chunk(wire, name)?, 1, name)? {
            text if text.is_empty() => json!("0"),
            text => json!(text),
        },
        Scalar::IntOrString => int_or_string(chunk(wire, name)?, name)?,
        Scalar::Time => time(chunk(wire, name)?, name, false)?,
        Scalar::MicroTime => time(chunk(wire, name)?, name, true)?,
        Scalar::RawExtension | Scalar::FieldsV1 => raw_json(chunk(wire, name)?, name, depth)?,
    })
}

fn int_or_string(bytes: &[u8], name: &str) -> Result<Value, DecodeError> {
    let (mut is_text, mut number, mut string) = (false, 0, String::new());
    let mut fields = Fields::of(bytes);
    while let Some((tag, wire)) = fields.next()? {
        match tag {
            1 => is_text = varint(wire, name)? == 1,
            2 => number = varint(wire, name)? as i32,
            3 => string = text(wire, name)?,
            _ => {}
        }
    }
    Ok(if is_text { json!(string) } else { json!(number) })
}

/// Seconds and nanoseconds as text; an empty message is no time.
fn time(bytes: &[u8], name: &str, micro: bool) -> Result<Value, DecodeError> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0, 0);
    let mut fields = Fields::of(bytes);
    while let Some((tag, wire)) = fields.next()? {
        match tag {
            1 => seconds = varint(wire, name)? as i64,
            2 => nanos = varint(wire, name)? as i32,
            _ => {}
        }
    }
    let instant = Timestamp::new(seconds, nanos)
        .map_err(|_| DecodeError::Mismatch(format!("parsing time of {name}: year out of range")))?;
    let whole = crate::meta::format_time(instant);
    Ok(match micro {
        false => json!(whole),
        true => {
            let micros = instant.as_microsecond().rem_euclid(1_000_000);
            json!(format!("{}.{micros:06}Z", whole.trim_end_matches('Z')))
        }
    })
}

/// The JSON that a message carries as text; nothing is null.
fn raw_json(bytes: &[u8], name: &str, depth: usize) -> Result<Value, DecodeError> {
    let mut raw: &[u8] = &[];
    let mut fields = Fields::of(bytes);
    while let Some((tag, wire)) = fields.next()? {
        if tag == 1 {
            raw = chunk(wire, name)?;
        }
    }
    if raw.is_empty() {
        return Ok(Value::Null);
    }
    let value = super::super::parse_json(raw)?;
    if nests_within(&value, depth) { Ok(value) } else { Err(too_deep()) }
}

fn nests_within(value: &Value, depth: usize) -> bool {
    let Some(below) = depth.checked_sub(1) else { return false };
    match value {
        Value::Array(items) => items.iter().all(|v| nests_within(v, below)),
        Value::Object(map) => map.values().all(|v| nests_within(v, below)),
        _ => true,
    }
}

fn inner_text(bytes: &[u8], number: u32, name: &str) -> Result<String, DecodeError> {
    let mut found = String::new();
    let mut fields = Fields::of(bytes);
    while let Some((tag, wire)) = fields.next()? {
        if tag == number {
            found = text(wire, name)?;
        }
    }
    Ok(found)
}

/// Takes the object that is there so far, or an empty one.
fn take_object(slot: &mut Value) -> Map<String, Value> {
    match slot.take() {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

pub(super) fn text(wire: Wire<'_>, name: &str) -> Result<String, DecodeError> {
    // as in JSON, what is no UTF-8 becomes U+FFFD
    Ok(String::from_utf8_lossy(chunk(wire, name)?).into_owned())
}

pub(super) fn chunk<'a>(wire: Wire<'a>, name: &str) -> Result<&'a [u8], DecodeError> {
    match wire {
        Wire::Bytes(bytes) => Ok(bytes),
        _ => Err(wrong_wire(wire, name)),
    }
}

pub(super) fn varint(wire: Wire<'_>, name: &str) -> Result<u64, DecodeError> {
    match wire {
        Wire::Varint(value) => Ok(value),
        _ => Err(wrong_wire(wire, name)),
    }
}

fn wrong_wire(wire: Wire<'_>, name: &str) -> DecodeError {
    let mut letters = name.chars();
    let head: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
    malformed(format!("proto: wrong wireType = {} for field {head}{}", wire.number(), letters.as_str()))
}

pub(super) fn deeper(depth: usize) -> Result<usize, DecodeError> {
    depth.checked_sub(1).ok_or_else(too_deep)
}

fn too_deep() -> DecodeError {
    malformed("exceeded max depth")
}
