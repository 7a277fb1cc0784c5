//! Quantities as they stand in JSON: numbers are allowed where texts are usual.

use api::field::ErrorList;
use api::quantity::Quantity;
use serde_json::Value;

/// The quantity of a JSON value; `None` where it is none.
pub(super) fn parse(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(s) => s.parse().ok(),
        Value::Number(n) => n.to_string().parse().ok(),
        _ => None,
    }
}

/// The canonical text of a quantity, as errors print it.
pub(super) fn show(value: &Value) -> Value {
    match parse(value) {
        Some(q) => Value::String(q.to_string()),
        None => value.clone(),
    }
}

/// The quantity is above zero.
pub(super) fn positive(path: &str, value: &Value, errors: &mut ErrorList) {
    if parse(value).is_some_and(|q| q.signum() <= 0) {
        errors.invalid(path, &show(value), "must be greater than zero");
    }
}

/// The quantity is not below zero.
pub(super) fn non_negative(path: &str, value: &Value, errors: &mut ErrorList) {
    if parse(value).is_some_and(|q| q.signum() < 0) {
        errors.invalid(path, &show(value), "must be greater than or equal to 0");
    }
}
