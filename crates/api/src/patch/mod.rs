//! Patches: JSON patch, JSON merge patch and strategic merge patch, as pure functions on trees.
//!
//! The results are not decoded: whoever applies a patch runs [`decode_value`](crate::codec::decode_value) over the
//! result, which finds unknown fields and wrong types. Server-side apply is in [`crate::apply`].

pub mod json;
pub mod merge;
pub mod strategic;

use std::fmt::Write as _;

use serde_json::Value;

/// Why a patch is refused. The texts are the API's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch is malformed (400).
    #[error("{0}")]
    Malformed(String),
    /// The patch has more operations than allowed, or copies too much (413).
    #[error("{0}")]
    TooLarge(String),
    /// The patch does not fit the object: a missing path, a failed test (422, one text for all).
    #[error("the server rejected our request due to an error in our request")]
    Rejected,
    /// A strategic merge patch misuses a directive or leaves out a merge key. The reference answers 500; it is the client's
    /// fault (422).
    #[error("{0}")]
    Directive(String),
}

/// A tree as error texts show it: `map[a:1 b:[x y]]`.
pub fn display(value: &Value) -> String {
    let mut out = String::new();
    write_value(&mut out, value);
    out
}

fn write_value(out: &mut String, value: &Value) {
    match value {
        Value::Null => out.push_str("<nil>"),
        Value::String(text) => out.push_str(text),
        Value::Array(items) => {
            out.push('[');
            for (n, item) in items.iter().enumerate() {
                if n > 0 {
                    out.push(' ');
                }
                write_value(out, item);
            }
            out.push(']');
        }
        Value::Object(map) => {
            out.push_str("map[");
            for (n, (key, value)) in map.iter().enumerate() {
                if n > 0 {
                    out.push(' ');
                }
                out.push_str(key);
                out.push(':');
                write_value(out, value);
            }
            out.push(']');
        }
        scalar => {
            // Writing to a String cannot fail.
            let _ = write!(out, "{scalar}");
        }
    }
}

/// What error texts call a value's type.
fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn trees_are_shown_as_error_texts_do() {
        let tree = json!({"spec": {"foo": 1, "containers": [{"name": "a", "bar": true}], "n": null}});
        assert_eq!(super::display(&tree), "map[spec:map[containers:[map[bar:true name:a]] foo:1 n:<nil>]]");
    }
}
