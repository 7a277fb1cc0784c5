//! What calls cost when they run.
//!
//! Rule: cel-go's cost tracker and Kubernetes' `CostEstimator.CallCost`. The numbers are API: an expression that passes
//! there must pass here.

use super::value::Value;

/// A name or a selection.
pub(super) const IDENT: u64 = 1;
/// Making a list.
pub(super) const LIST: u64 = 10;
/// Making a map.
pub(super) const MAP: u64 = 30;
/// Making a message.
pub(super) const STRUCT: u64 = 40;
/// Per character that is gone over.
pub(super) const TRAVERSAL: f64 = 0.1;
/// Per character of a regular expression.
pub(super) const REGEX: f64 = 0.25;

fn scaled(size: u64, factor: f64) -> u64 {
    (size as f64 * factor).ceil() as u64
}

/// The cost of one call.
pub(super) fn call(name: &str, args: &[Value<'_>], result: Option<&Value<'_>>) -> u64 {
    let size = |at: usize| args.get(at).map_or(0, Value::size);
    let text = |at: usize| matches!(args.get(at), Some(Value::String(_) | Value::Bytes(_)));
    match name {
        "check" => 350_000,
        "isSorted" | "sum" | "max" | "min" => args.first().map_or(0, traversal),
        "indexOf" | "lastIndexOf" => args.first().map_or(0, traversal),
        "url" | "isURL" | "lowerAscii" | "upperAscii" | "substring" | "trim" | "startsWith" | "endsWith"
        | "cidr" | "isIP" | "isCIDR" | "quantity" | "isQuantity" | "validate" | "isSemver" | "semver" => {
            scaled(size(0), TRAVERSAL)
        }
        "ip" if text(0) => scaled(size(0), TRAVERSAL),
        "ip.isCanonical" => scaled(size(0), 2.0 * TRAVERSAL),
        "jsonpatch.escapeKey" => scaled(size(0), 2.0 * TRAVERSAL),
        "replace" | "split" => scaled(size(0), 2.0 * TRAVERSAL),
        "join" => scaled(result.map_or(0, Value::size), 2.0 * TRAVERSAL),
        "find" | "findAll" | "matches" => {
            scaled(size(0).saturating_add(1), TRAVERSAL).saturating_mul(scaled(size(1), REGEX))
        }
        "contains" => scaled(size(0), TRAVERSAL).saturating_mul(scaled(size(1), TRAVERSAL)),
        "containsIP" => {
            let parsed = if text(1) { scaled(size(1), TRAVERSAL) } else { 0 };
            scaled(size(0).saturating_mul(2), TRAVERSAL) + parsed
        }
        "containsCIDR" => {
            let parsed = if text(1) { scaled(size(1), TRAVERSAL) } else { 0 };
            scaled(size(0).saturating_mul(2), TRAVERSAL) + scaled(size(0), TRAVERSAL) + 1 + parsed
        }
        "sets.contains" | "sets.intersects" => size(0).saturating_mul(size(1)).saturating_add(1),
        "sets.equivalent" => size(0).saturating_mul(size(1)).saturating_mul(2).saturating_add(1),
        "@in" if matches!(args.get(1), Some(Value::List(_))) => size(1),
        "_==_" | "_!=_" => scaled(size(0).min(size(1)), TRAVERSAL),
        "_<_" | "_<=_" | "_>_" | "_>=_" if text(0) => scaled(size(0).min(size(1)), TRAVERSAL),
        "_+_" if text(0) => scaled(size(0).saturating_add(size(1)), TRAVERSAL),
        "bytes" | "string" if text(0) => scaled(size(0), TRAVERSAL),
        "quote" | "format" => scaled(size(0), TRAVERSAL),
        _ => 1,
    }
}

/// What going over a whole value costs.
fn traversal(value: &Value<'_>) -> u64 {
    match value {
        Value::String(s) => (s.len() as f64 * TRAVERSAL) as u64,
        Value::Bytes(b) => (b.len() as f64 * TRAVERSAL) as u64,
        // deeper lists are no arguments of the functions that cost this
        Value::List(list) => list
            .iter()
            .map(|v| match v {
                Value::String(s) => (s.len() as f64 * TRAVERSAL) as u64,
                other => other.size(),
            })
            .sum(),
        Value::Map(map) => map.len() as u64,
        _ => 1,
    }
}
