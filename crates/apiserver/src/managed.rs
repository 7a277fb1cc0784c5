//! Who owns which field: the pipeline's side of managed fields and server-side apply.

use jiff::Timestamp;
use serde_json::Value;

/// A write, as managed fields record it.
pub struct Writer<'a> {
    /// The schema type of the object.
    pub type_name: &'a str,
    /// `apiVersion` of the object.
    pub api_version: String,
    /// The field manager.
    pub manager: &'a str,
    /// Subresource written through; empty for none.
    pub subresource: &'a str,
    /// When.
    pub now: Timestamp,
}

/// Records a write that is no apply.
pub fn update(_writer: &Writer<'_>, _old: Option<&Value>, _new: &mut Value) {}

/// apply
pub fn apply(
    _writer: &Writer<'_>,
    _kind: &api::kinds::Kind,
    _live: Option<&Value>,
    applied: &Value,
    _force: bool,
) -> crate::status::ApiResult<Value> {
    Ok(applied.clone())
}
