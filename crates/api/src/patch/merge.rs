//! JSON merge patch (RFC 7386).

use serde_json::{Map, Value};

use super::{PatchError, json_type};

/// Applies a merge patch. Unlike the RFC's, the API's patch must be an object.
pub fn apply(target: &Value, patch: &Value) -> Result<Value, PatchError> {
    match patch {
        Value::Object(_) => {
            let mut result = target.clone();
            merge(&mut result, patch);
            Ok(result)
        }
        Value::Null => Err(PatchError::Malformed("Invalid JSON Patch".to_owned())),
        other => Err(PatchError::Malformed(format!(
            "error decoding patch: json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
            json_type(other)
        ))),
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else if let Some(known) = target.get_mut(key) {
            merge(known, value);
        } else {
            let mut fresh = Value::Null;
            merge(&mut fresh, value);
            target.insert(key.clone(), fresh);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn examples_of_the_rfc() {
        for (target, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            assert_eq!(apply(&target, &patch).unwrap(), result);
        }
    }

    #[test]
    fn a_patch_must_be_an_object() {
        let text = |patch| apply(&json!({}), &patch).unwrap_err().to_string();
        assert_eq!(text(Value::Null), "Invalid JSON Patch");
        assert_eq!(
            text(json!("x")),
            "error decoding patch: json: cannot unmarshal string into Go value of type map[string]interface {}"
        );
    }
}
