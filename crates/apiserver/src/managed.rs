//! Who owns which field: the pipeline's side of managed fields and server-side apply.

use api::apply::{self, ApplyError, FieldSet};
use api::kinds::Kind;
use api::schema::Shape;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::status::{ApiError, ApiResult};

/// A write, as managed fields record it.
pub struct Writer<'a> {
    /// The shape of the object.
    pub shape: Shape<'a>,
    /// `apiVersion` of the object.
    pub api_version: String,
    /// The field manager.
    pub manager: &'a str,
    /// Subresource written through; empty for none.
    pub subresource: &'a str,
    /// Whether the kind has a status of its own endpoint.
    pub has_status: bool,
    /// Members of metadata that a write through `status` does not change.
    pub status_keeps: &'static [&'static str],
    /// When.
    pub now: Timestamp,
}

impl Writer<'_> {
    /// Fields that this write cannot change.
    fn ignored(&self) -> FieldSet {
        if self.subresource != "status" {
            return apply::reset_fields(self.has_status, self.subresource);
        }
        let kept: Vec<String> = self.status_keeps.iter().map(|key| format!("metadata.{key}")).collect();
        let fields: Vec<&str> = kept.iter().map(String::as_str).chain(["spec"]).collect();
        FieldSet::of_fields(&fields)
    }

    fn facts<'a>(&'a self, ignored: &'a FieldSet) -> apply::Writer<'a> {
        apply::Writer {
            manager: self.manager,
            api_version: &self.api_version,
            subresource: self.subresource,
            now: self.now,
            ignored,
        }
    }
}

/// Records a write that is no apply.
pub fn update(writer: &Writer<'_>, old: Option<&Value>, new: &mut Value) {
    let ignored = writer.ignored();
    apply::update(writer.shape, old, new, &writer.facts(&ignored));
}

/// Merges an applied configuration into the live object; refuses what others own unless forced.
pub fn apply(
    writer: &Writer<'_>,
    kind: &Kind,
    live: Option<&Value>,
    applied: &Value,
    force: bool,
) -> ApiResult<Value> {
    let ignored = writer.ignored();
    apply::apply(writer.shape, &kind.kind, live, applied, &writer.facts(&ignored), force)
        .map(|merged| merged.value)
        .map_err(refused)
}

/// An apply's refusal as the API answers it: 409 with one cause for each field, else 400.
pub fn refused(error: ApplyError) -> ApiError {
    let text = error.to_string();
    match error {
        ApplyError::Conflicts(list) => {
            let causes = list
                .iter()
                .map(|c| json!({"reason": "FieldManagerConflict", "message": c.message(), "field": c.path}))
                .collect();
            ApiError::apply_conflict(text, causes)
        }
        _ => ApiError::bad_request(text),
    }
}
