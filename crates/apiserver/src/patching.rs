//! PATCH bodies: JSON patch, merge patch, strategic merge patch; and what an apply's body must say.

use api::codec;
use api::field::ErrorList;
use api::kinds::Kind;
use api::patch::{self, PatchError};
use api::schema::Shape;
use serde_json::{Value, json};

use crate::body::Validation;
use crate::request_info::Query;
use crate::status::{ApiError, ApiResult};

/// The media types of patches, as a 415 lists them.
pub const TAKEN: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Json,
    Merge,
    Strategic,
}

/// A patch of one of the three non-apply forms.
#[derive(Debug)]
pub struct Patch {
    /// The patch document.
    pub value: Value,
    form: Form,
}

impl Patch {
    /// From media type and body; 415 for another type, 400 for a body that is no JSON.
    pub fn parse(media: &str, body: &[u8]) -> ApiResult<Self> {
        let form = match media {
            "application/json-patch+json" => Form::Json,
            "application/merge-patch+json" => Form::Merge,
            "application/strategic-merge-patch+json" => Form::Strategic,
            _ => return Err(ApiError::unsupported_media_type(TAKEN)),
        };
        let value = codec::parse_json(body).map_err(|e| {
            ApiError::bad_request(match form {
                Form::Json => format!("error decoding patch: {e}"),
                _ => e.to_string(),
            })
        })?;
        Ok(Self { value, form })
    }

    /// Applies it to an object of a kind. Strategic merge needs a schema: a kind without one answers 415.
    pub fn apply(&self, kind: &Kind, old: &Value) -> ApiResult<Value> {
        let without_schema = kind.definition.is_some();
        if self.form == Form::Strategic && without_schema {
            let taken: Vec<&str> = TAKEN.iter().copied().filter(|t| !t.contains("strategic")).collect();
            return Err(ApiError::unsupported_media_type(&taken));
        }
        self.apply_to(kind.shape(), old)
    }

    /// Applies it to a tree of a shape.
    pub fn apply_to(&self, shape: Shape<'_>, old: &Value) -> ApiResult<Value> {
        match self.form {
            Form::Json => patch::json::apply(old, &self.value),
            Form::Merge => patch::merge::apply(old, &self.value),
            Form::Strategic => patch::strategic::apply(shape, old, &self.value),
        }
        .map_err(refused)
    }

    /// 422 for a result that is no object of the kind; the text shows the result, or the patch where that is
    /// a strategic one.
    pub fn does_not_fit(&self, result: &Value, why: &str) -> ApiError {
        let mut errors = ErrorList::default();
        let shown = match self.form {
            Form::Strategic => patch::display(&self.value),
            _ => result.to_string(),
        };
        errors.invalid("patch", &json!(shown), why);
        ApiError::invalid_named("", "", "", &errors)
    }
}

fn refused(error: PatchError) -> ApiError {
    match error {
        PatchError::Malformed(why) => ApiError::bad_request(why),
        PatchError::TooLarge(why) => ApiError::too_large(why),
        PatchError::Rejected => ApiError::unprocessable(error.to_string()).with_details(),
        PatchError::Directive(why) => ApiError::unprocessable(why),
    }
}

/// Refuses an apply that does not say who applies.
pub fn require_manager(query: &Query) -> ApiResult<()> {
    if !query.get("fieldManager").is_empty() {
        return Ok(());
    }
    let mut errors = ErrorList::default();
    errors.required("fieldManager", "is required for apply patch");
    Err(ApiError::invalid_named("meta.k8s.io", "PatchOptions", "", &errors))
}

/// Checks that an applied configuration is an object, and what it says twice. Its fields are checked against the
/// schema when it is merged, its name when the result is known: what exists has one.
pub fn check_applied(
    applied: Value,
    duplicates: Vec<String>,
    validation: Validation,
    warnings: &mut Vec<String>,
) -> ApiResult<Value> {
    let applied = if applied.is_null() { json!({}) } else { applied };
    if !applied.is_object() {
        return Err(ApiError::bad_request("error decoding YAML: an object is expected"));
    }
    match validation {
        _ if duplicates.is_empty() => {}
        Validation::Ignore => {}
        Validation::Warn => warnings.extend(duplicates),
        Validation::Strict => {
            return Err(ApiError::bad_request(format!(
                "error strict decoding YAML: {}",
                duplicates.join(", ")
            )));
        }
    }
    Ok(applied)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(media: &str, body: &str) -> u16 {
        let pods = api::kinds::find("", "v1", "pods").unwrap();
        let old = json!({"metadata": {"name": "p"}});
        Patch::parse(media, body.as_bytes())
            .and_then(|p| p.apply(pods, &old))
            .map_or_else(|e| e.code, |_| 200)
    }

    #[test]
    fn the_clients_faults_have_their_codes() {
        assert_eq!(code("application/json", "{}"), 415);
        assert_eq!(code("application/json-patch+json", "[{"), 400);
        assert_eq!(code("application/json-patch+json", r#"[{"op":"remove","path":"/nosuch"}]"#), 422);
        assert_eq!(code("application/merge-patch+json", "null"), 400);
        assert_eq!(code("application/strategic-merge-patch+json", r#"{"$patch":"nosuch"}"#), 422);
        assert_eq!(code("application/merge-patch+json", r#"{"spec":{}}"#), 200);
    }
}
