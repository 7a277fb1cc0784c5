//! Small moves on JSON trees that defaulting is made of.

use serde_json::{Map, Value};

/// Whether Go would see a zero value: absent, null or an empty text.
pub(super) fn is_unset(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::String(s)) => s.is_empty(),
        _ => false,
    }
}

/// Sets `key` where it is absent, null or an empty text. Nothing happens to what is no object.
pub(super) fn put(object: &mut Value, key: &str, value: impl Into<Value>) {
    if let Value::Object(map) = object
        && is_unset(map.get(key))
    {
        map.insert(key.to_owned(), value.into());
    }
}

/// As [`put`] for optional values: an empty text counts as given.
pub(super) fn put_absent(object: &mut Value, key: &str, value: impl Into<Value>) {
    if let Value::Object(map) = object
        && map.get(key).is_none_or(Value::is_null)
    {
        map.insert(key.to_owned(), value.into());
    }
}

/// As [`put`] for numbers whose zero means "not given".
pub(super) fn put_nonzero(object: &mut Value, key: &str, value: i64) {
    if let Value::Object(map) = object
        && map.get(key).and_then(Value::as_i64).unwrap_or_default() == 0
    {
        map.insert(key.to_owned(), value.into());
    }
}

/// The object under `key`, if there is one.
pub(super) fn child<'a>(object: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    object.get_mut(key).filter(|v| v.is_object())
}

/// The object under `key`, made where there is none; `None` only where `object` is no object or the member is of
/// another type.
pub(super) fn make<'a>(object: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    let map = object.as_object_mut()?;
    let value = map.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    Some(value).filter(|v| v.is_object())
}

/// The items of the list under `key`.
pub(super) fn each<'a>(object: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten()
}

/// The text under `key`, empty where there is none.
pub(super) fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Whether something other than null stands under `key`.
pub(super) fn has(object: &Value, key: &str) -> bool {
    object.get(key).is_some_and(|v| !v.is_null())
}

/// Whether a list or map has no entry or is not there.
pub(super) fn is_empty(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Array(list)) => list.is_empty(),
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::String(s)) => s.is_empty(),
        Some(Value::Null) | None => true,
        _ => false,
    }
}
