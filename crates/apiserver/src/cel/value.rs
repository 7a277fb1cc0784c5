//! What expressions compute with. Objects stay the JSON they are: a value borrows a part of it, and the part's schema,
//! if there is one, says how it reads (a text as a time stamp, a list as a set).

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use base64::Engine as _;
use serde_json::Value as Json;

use super::decl::{Decl, ListKind, Shape};
use super::eval::{Error, Work};
use super::library::Opaque;
use super::time;
use super::types::Type;

/// A value; `'a` is the life of the objects it is part of.
#[derive(Debug, Clone)]
pub(super) enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Text<'a>),
    Bytes(Arc<[u8]>),
    /// Nanoseconds.
    Duration(i64),
    Timestamp(jiff::Timestamp),
    List(List<'a>),
    Map(Map<'a>),
    Optional(Option<Arc<Value<'a>>>),
    Type(Arc<str>),
    Opaque(Arc<Opaque>),
    /// A message made by an expression.
    Message(Arc<Message<'a>>),
}

/// A text, of an object or made.
#[derive(Debug, Clone)]
pub(super) enum Text<'a> {
    Part(&'a str),
    Made(Arc<str>),
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Text::Part(s) => s,
            Text::Made(s) => s,
        }
    }
}

#[derive(Debug, Clone)]
pub(super) enum List<'a> {
    Part(&'a [Json], Option<&'a Decl>),
    Made(Arc<Vec<Value<'a>>>),
}

#[derive(Debug, Clone)]
pub(super) enum Map<'a> {
    Part(&'a serde_json::Map<String, Json>, Option<&'a Decl>),
    Made(Arc<BTreeMap<Key, Value<'a>>>),
    /// Maps by name; one that is not there is read as an empty one.
    Domains(Arc<BTreeMap<Key, Value<'a>>>),
}

/// A key of a made map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Bool(bool),
    Int(i64),
    /// Only what no `Int` can be, or was made from an unsigned number: equal numbers are one key.
    Uint(u64),
    String(Arc<str>),
}

/// A message literal.
#[derive(Debug)]
pub(super) struct Message<'a> {
    pub(super) name: Arc<str>,
    pub(super) fields: BTreeMap<Arc<str>, Value<'a>>,
}

impl Key {
    fn value<'a>(&self) -> Value<'a> {
        match self {
            Key::Bool(b) => Value::Bool(*b),
            Key::Int(i) => Value::Int(*i),
            Key::Uint(u) => Value::Uint(*u),
            Key::String(s) => Value::String(Text::Made(s.clone())),
        }
    }

    /// The key that a value is, whatever kind of number it is.
    pub(super) fn of(value: &Value<'_>) -> Option<Key> {
        Some(match value {
            Value::Bool(b) => Key::Bool(*b),
            Value::Int(i) => Key::Int(*i),
            Value::Uint(u) => i64::try_from(*u).map_or(Key::Uint(*u), Key::Int),
            Value::Double(d) if d.fract() == 0.0 && d.abs() < 9.0e18 => Key::Int(*d as i64),
            Value::String(s) => Key::String(Arc::from(&**s)),
            _ => return None,
        })
    }
}

impl<'a> Value<'a> {
    pub(super) fn text(text: impl Into<Arc<str>>) -> Self {
        Value::String(Text::Made(text.into()))
    }

    pub(super) fn list(items: Vec<Value<'a>>) -> Self {
        Value::List(List::Made(Arc::new(items)))
    }

    pub(super) fn some(value: Value<'a>) -> Self {
        Value::Optional(Some(Arc::new(value)))
    }

    /// A part of an object, without a schema.
    pub(super) fn json(json: &'a Json) -> Self {
        Self::part(json, None)
    }

    /// A part of an object, read as its schema says.
    pub(super) fn part(json: &'a Json, decl: Option<&'a Decl>) -> Self {
        let scalar = decl.and_then(|d| match &d.shape {
            Shape::Scalar(ty) => Some(ty),
            _ => None,
        });
        match json {
            Json::Null => Value::Null,
            Json::Bool(b) => Value::Bool(*b),
            Json::Number(n) => match (n.as_i64(), scalar) {
                (Some(i), Some(Type::Double)) => Value::Double(i as f64),
                (Some(i), _) => Value::Int(i),
                (None, Some(Type::Int)) => match n.as_f64() {
                    Some(f) if f.fract() == 0.0 && f.abs() < 9.0e18 => Value::Int(f as i64),
                    other => Value::Double(other.unwrap_or_default()),
                },
                (None, _) => Value::Double(n.as_f64().unwrap_or_default()),
            },
            Json::String(s) => match scalar {
                Some(Type::Timestamp) => {
                    time::parse_timestamp(s).or_else(|| time::parse_date(s)).map(Value::Timestamp)
                }
                Some(Type::Duration) => time::parse_duration(s).map(Value::Duration),
                Some(Type::Bytes) => {
                    let bytes = base64::engine::general_purpose::STANDARD.decode(s).ok();
                    bytes.map(|b| Value::Bytes(b.into()))
                }
                _ => None,
            }
            .unwrap_or(Value::String(Text::Part(s))),
            Json::Array(list) => Value::List(List::Part(list, decl)),
            Json::Object(map) => Value::Map(Map::Part(map, decl)),
        }
    }

    /// What `type(x)` calls it.
    pub(super) fn type_name(&self) -> &str {
        match self {
            Value::Null => "null_type",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Uint(_) => "uint",
            Value::Double(_) => "double",
            Value::String(_) => "string",
            Value::Bytes(_) => "bytes",
            Value::Duration(_) => "google.protobuf.Duration",
            Value::Timestamp(_) => "google.protobuf.Timestamp",
            Value::List(_) => "list",
            Value::Map(Map::Part(_, Some(Decl { shape: Shape::Object(o), .. }))) => &o.name,
            Value::Map(_) => "map",
            Value::Optional(_) => "optional_type",
            Value::Type(_) => "type",
            Value::Opaque(o) => o.type_name(),
            Value::Message(m) => &m.name,
        }
    }

    /// How large the value is for what it costs: items, entries, characters; 1 for anything single.
    pub(super) fn size(&self) -> u64 {
        match self {
            Value::String(s) => s.chars().count() as u64,
            Value::Bytes(b) => b.len() as u64,
            Value::List(l) => l.len() as u64,
            Value::Map(m) => m.len() as u64,
            Value::Opaque(o) => o.size(),
            _ => 1,
        }
    }

    /// Whether it is what its type has when nothing is set.
    pub(super) fn is_zero(&self) -> bool {
        match self {
            Value::Null => true,
            Value::Bool(b) => !b,
            Value::Int(i) => *i == 0,
            Value::Uint(u) => *u == 0,
            Value::Double(d) => *d == 0.0,
            Value::String(s) => s.is_empty(),
            Value::Bytes(b) => b.is_empty(),
            Value::Duration(d) => *d == 0,
            Value::Timestamp(_) => false,
            Value::List(l) => l.len() == 0,
            Value::Map(m) => m.len() == 0,
            Value::Optional(o) => o.is_none(),
            Value::Message(m) => m.fields.is_empty(),
            Value::Type(_) | Value::Opaque(_) => false,
        }
    }

    /// Whether two values are the same: numbers by amount, lists that are sets without order.
    pub(super) fn equals(&self, other: &Value<'_>, work: &mut Work) -> Result<bool, Error> {
        work.spend(1)?;
        Ok(match (self, other) {
            (Value::Null, Value::Null) => true,
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::Int(a), Value::Int(b)) => a == b,
            (Value::Uint(a), Value::Uint(b)) => a == b,
            (Value::Int(i), Value::Uint(u)) | (Value::Uint(u), Value::Int(i)) => {
                u64::try_from(*i).is_ok_and(|i| i == *u)
            }
            (Value::Double(a), Value::Double(b)) => a == b,
            (Value::Double(d), Value::Int(i)) | (Value::Int(i), Value::Double(d)) => *d == *i as f64,
            (Value::Double(d), Value::Uint(u)) | (Value::Uint(u), Value::Double(d)) => *d == *u as f64,
            (Value::String(a), Value::String(b)) => {
                work.spend(a.len().min(b.len()) as u64 / 64)?;
                **a == **b
            }
            (Value::Bytes(a), Value::Bytes(b)) => a == b,
            (Value::Duration(a), Value::Duration(b)) => a == b,
            (Value::Timestamp(a), Value::Timestamp(b)) => a == b,
            (Value::Type(a), Value::Type(b)) => a == b,
            (Value::Optional(None), Value::Optional(None)) => true,
            (Value::Optional(Some(a)), Value::Optional(Some(b))) => work.deeper(|work| a.equals(b, work))?,
            (Value::Opaque(a), Value::Opaque(b)) => a.equals(b),
            (Value::List(a), Value::List(b)) => work.deeper(|work| a.equals(b, work))?,
            (Value::Map(a), Value::Map(b)) => work.deeper(|work| a.equals(b, work))?,
            (Value::Message(a), Value::Message(b)) => {
                if a.name != b.name || a.fields.len() != b.fields.len() {
                    return Ok(false);
                }
                for (name, value) in &a.fields {
                    let Some(other) = b.fields.get(name) else { return Ok(false) };
                    if !work.deeper(|work| value.equals(other, work))? {
                        return Ok(false);
                    }
                }
                true
            }
            _ => false,
        })
    }

    /// The value as JSON, for objects and messages that expressions make.
    pub(super) fn to_json(&self, work: &mut Work) -> Result<Json, Error> {
        work.spend(1)?;
        Ok(match self {
            Value::Null => Json::Null,
            Value::Bool(b) => Json::from(*b),
            Value::Int(i) => Json::from(*i),
            Value::Uint(u) => Json::from(*u),
            Value::Double(d) => Json::from(*d),
            Value::String(s) => {
                work.spend(s.len() as u64 / 64)?;
                Json::from(&**s)
            }
            Value::Bytes(b) => Json::from(base64::engine::general_purpose::STANDARD.encode(b)),
            Value::Duration(d) => Json::from(time::show_duration(*d)),
            Value::Timestamp(t) => Json::from(time::show_timestamp(*t)),
            Value::Optional(None) => Json::Null,
            Value::Optional(Some(v)) => work.deeper(|work| v.to_json(work))?,
            Value::List(list) => work.deeper(|work| {
                (0..list.len())
                    .filter_map(|i| list.get(i))
                    .map(|v| v.to_json(work))
                    .collect::<Result<Vec<_>, _>>()
                    .map(Json::from)
            })?,
            Value::Map(Map::Part(map, _)) => {
                work.spend(map.len() as u64)?;
                Json::Object((*map).clone())
            }
            Value::Map(Map::Made(map) | Map::Domains(map)) => work.deeper(|work| {
                let mut out = serde_json::Map::new();
                for (key, value) in map.iter() {
                    let Key::String(key) = key else {
                        return Err(Error::new("map keys must be strings to be part of an object"));
                    };
                    out.insert(key.to_string(), value.to_json(work)?);
                }
                Ok(Json::Object(out))
            })?,
            Value::Message(message) => work.deeper(|work| {
                let mut out = serde_json::Map::new();
                for (key, value) in &message.fields {
                    out.insert(key.to_string(), value.to_json(work)?);
                }
                Ok(Json::Object(out))
            })?,
            Value::Opaque(o) => Json::from(
                o.show()
                    .ok_or_else(|| Error::new(format!("{} is not part of any object", self.type_name())))?,
            ),
            Value::Type(name) => return Err(Error::new(format!("type {name} is not part of any object"))),
        })
    }
}

impl<'a> List<'a> {
    pub(super) fn len(&self) -> usize {
        match self {
            List::Part(list, _) => list.len(),
            List::Made(list) => list.len(),
        }
    }

    pub(super) fn get(&self, at: usize) -> Option<Value<'a>> {
        match self {
            List::Part(list, decl) => list.get(at).map(|v| Value::part(v, decl.and_then(Decl::item))),
            List::Made(list) => list.get(at).cloned(),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Value<'a>> + '_ {
        (0..self.len()).filter_map(|i| self.get(i))
    }

    /// How items are told apart.
    pub(super) fn kind(&self) -> &ListKind {
        match self {
            List::Part(_, Some(Decl { shape: Shape::List { kind, .. }, .. })) => kind,
            _ => &ListKind::Atomic,
        }
    }

    pub(super) fn contains(&self, value: &Value<'_>, work: &mut Work) -> Result<bool, Error> {
        for item in self.iter() {
            if item.equals(value, work)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn equals(&self, other: &List<'_>, work: &mut Work) -> Result<bool, Error> {
        if self.len() != other.len() {
            return Ok(false);
        }
        let kind = if *self.kind() == ListKind::Atomic { other.kind() } else { self.kind() };
        match kind {
            ListKind::Atomic => {
                for (a, b) in self.iter().zip(other.iter()) {
                    if !a.equals(&b, work)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            ListKind::Set => {
                for item in self.iter() {
                    if !other.contains(&item, work)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            ListKind::Map(keys) => {
                for item in self.iter() {
                    match other.like(&item, keys, work)? {
                        Some(at) if other.get(at).is_some_and(|o| item.equals(&o, work).unwrap_or(false)) => {
                        }
                        _ => return Ok(false),
                    }
                }
                Ok(true)
            }
        }
    }

    /// The place of the item that has the same keys as `item`.
    fn like(&self, item: &Value<'_>, keys: &[String], work: &mut Work) -> Result<Option<usize>, Error> {
        let key = |v: &Value<'_>, key: &str| match v {
            Value::Map(Map::Part(map, _)) => map.get(key).cloned().unwrap_or(Json::Null),
            Value::Map(m) => m
                .get(&Value::text(key))
                .and_then(|v| v.to_json(&mut Work::default()).ok())
                .unwrap_or(Json::Null),
            _ => Json::Null,
        };
        for (at, other) in self.iter().enumerate() {
            work.spend(keys.len() as u64)?;
            if keys.iter().all(|k| key(item, k) == key(&other, k)) {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    /// `self + other`: one after the other; of sets the union, of maps with the entries of `other` for equal keys.
    pub(super) fn plus(&self, other: &List<'a>, work: &mut Work) -> Result<Value<'a>, Error> {
        work.spend((self.len() + other.len()) as u64)?;
        let mut items: Vec<Value<'a>> = self.iter().collect();
        match self.kind() {
            ListKind::Atomic => items.extend(other.iter()),
            ListKind::Set => {
                for item in other.iter() {
                    if !self.contains(&item, work)? {
                        items.push(item);
                    }
                }
            }
            ListKind::Map(keys) => {
                for item in other.iter() {
                    match self.like(&item, keys, work)? {
                        Some(at) => items[at] = item,
                        None => items.push(item),
                    }
                }
            }
        }
        Ok(Value::list(items))
    }
}

impl<'a> Map<'a> {
    pub(super) fn made(entries: BTreeMap<Key, Value<'a>>) -> Self {
        Map::Made(Arc::new(entries))
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Map::Part(map, _) => map.len(),
            Map::Made(map) | Map::Domains(map) => map.len(),
        }
    }

    /// The entry of a key; a field of an object that has a schema is named as expressions name it.
    pub(super) fn get(&self, key: &Value<'_>) -> Option<Value<'a>> {
        match self {
            Map::Part(map, decl) => {
                let Value::String(key) = key else { return None };
                match decl {
                    Some(Decl { shape: Shape::Object(object), .. }) => match object.fields.get(&**key) {
                        Some(field) => map.get(&field.name).map(|v| Value::part(v, Some(&field.decl))),
                        None if object.open => map.get(&**key).map(Value::json),
                        None => None,
                    },
                    _ => map.get(&**key).map(|v| Value::part(v, decl.and_then(|d| d.member(key)))),
                }
            }
            Map::Made(map) | Map::Domains(map) => map.get(&Key::of(key)?).cloned(),
        }
    }

    /// What reading the entry of a key gives.
    pub(super) fn at(&self, key: &Value<'_>) -> Option<Value<'a>> {
        let missing = || matches!(self, Map::Domains(_)).then(|| Value::Map(Map::made(BTreeMap::new())));
        self.get(key).or_else(missing)
    }

    /// The keys, as values.
    pub(super) fn keys(&self) -> Vec<Value<'a>> {
        match self {
            Map::Part(map, Some(Decl { shape: Shape::Object(object), .. })) => object
                .fields
                .iter()
                .filter(|(_, f)| map.contains_key(&f.name))
                .map(|(escaped, _)| Value::text(escaped.as_str()))
                .collect(),
            Map::Part(map, _) => map.keys().map(|k| Value::String(Text::Part(k))).collect(),
            Map::Made(map) | Map::Domains(map) => map.keys().map(Key::value).collect(),
        }
    }

    fn equals(&self, other: &Map<'_>, work: &mut Work) -> Result<bool, Error> {
        if self.len() != other.len() {
            return Ok(false);
        }
        if let (Map::Part(a, _), Map::Part(b, _)) = (self, other)
            && std::ptr::eq(*a, *b)
        {
            return Ok(true);
        }
        for key in self.keys() {
            let (Some(a), Some(b)) = (self.get(&key), other.get(&key)) else { return Ok(false) };
            if !a.equals(&b, work)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
