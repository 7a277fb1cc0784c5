//! Rules on numbers that many kinds share.

use api::field::{Cursor, ErrorList};
use serde_json::Value;

const NOT_NEGATIVE: &str = "must be greater than or equal to 0";

/// A given number is not negative.
pub(super) fn non_negative(at: &Cursor<'_>, errors: &mut ErrorList) {
    if at.i64().is_some_and(|n| n < 0) {
        errors.invalid(&at.path, at.json(), NOT_NEGATIVE);
    }
}

/// A given number is positive.
pub(super) fn positive(at: &Cursor<'_>, errors: &mut ErrorList) {
    if at.i64().is_some_and(|n| n <= 0) {
        errors.invalid(&at.path, at.json(), "must be greater than 0");
    }
}

fn percent(value: &Value) -> Option<i64> {
    let digits = value.as_str()?.strip_suffix('%')?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

/// A count, not negative, or a percentage.
pub(super) fn count_or_percent(at: &Cursor<'_>, errors: &mut ErrorList) {
    match at.value {
        Some(value @ Value::String(_)) if percent(value).is_none() => errors.invalid(
            &at.path,
            value,
            &api::names::regex_error(
                "a valid percent string must be a numeric string followed by an ending '%'",
                "[0-9]+%",
                &["1%", "93%"],
            ),
        ),
        Some(Value::Number(_)) => non_negative(at, errors),
        _ => {}
    }
}

/// A percentage is no more than the whole.
pub(super) fn at_most_100_percent(at: &Cursor<'_>, errors: &mut ErrorList) {
    if at.value.and_then(percent).is_some_and(|p| p > 100) {
        errors.invalid(&at.path, at.json(), "must not be greater than 100%");
    }
}

/// Whether a count or percentage is absent or zero.
pub(super) fn is_zero(value: &Value) -> bool {
    match value {
        Value::Number(n) => n.as_i64() == Some(0),
        // a text that is no percentage counts as the number that it is, or as none
        Value::String(text) => percent(value).unwrap_or_else(|| text.parse().unwrap_or_default()) == 0,
        _ => true,
    }
}

/// A port number.
pub(super) fn port(at: &Cursor<'_>, errors: &mut ErrorList) {
    if at.i64().is_some_and(|n| !(1..=65_535).contains(&n)) {
        errors.invalid(&at.path, at.json(), "must be between 1 and 65535, inclusive");
    }
}
