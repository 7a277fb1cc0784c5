//! Columns of custom resources, from their definitions.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{column, format};
use crate::custom::Definition;

/// The columns as `columnDefinitions`.
pub(super) fn definitions(definition: &Definition) -> Value {
    let mut columns = vec![column::NAME.to_json()];
    columns.extend(definition.own().columns.iter().map(|c| {
        json!({"name": c.name, "type": c.type_, "format": c.format, "description": c.description,
            "priority": c.priority})
    }));
    Value::Array(columns)
}

/// One row's cells.
pub(super) fn cells(definition: &Definition, object: &Value, now: Timestamp) -> Vec<Value> {
    let mut cells = vec![format::name(object)];
    cells.extend(definition.own().columns.iter().map(|c| match crate::custom::at(object, &c.json_path) {
        Some(value) => cell(&c.type_, value, now),
        None => Value::Null,
    }));
    cells
}

/// A value as its column shows it; null where it is of another type.
fn cell(type_: &str, value: &Value, now: Timestamp) -> Value {
    match (type_, value) {
        ("string", Value::String(_) | Value::Null) => value.clone(),
        ("string", other) => json!(other.to_string()),
        ("integer", Value::Number(n)) => n.as_i64().or_else(|| n.as_f64().map(|f| f as i64)).into(),
        ("number", Value::Number(n)) => n.as_f64().into(),
        ("boolean", Value::Bool(_)) => value.clone(),
        ("date", Value::String(text)) => match text.parse::<Timestamp>() {
            Ok(_) => json!(super::duration::since(Some(text), now)),
            Err(_) => json!("<invalid>"),
        },
        _ => Value::Null,
    }
}
