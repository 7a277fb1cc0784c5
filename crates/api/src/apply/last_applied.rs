//! `kubectl apply --server-side` on objects that were applied from the client before: the annotation
//! `last-applied-configuration` says which fields were kubectl's all along, and is kept current.

use serde_json::Value;

use super::walk::{compare, field_set};
use super::{Conflict, FieldSet};
use crate::schema::Shape;

/// The manager that gets this treatment.
pub(super) const MANAGER: &str = "kubectl";
const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The most bytes all annotations may have; a longer configuration is not kept.
const MAX_BYTES: usize = 256 << 10;

/// The conflicts on fields that the live object does not hold as last applied by kubectl itself.
pub(super) fn not_its_own(shape: Shape<'_>, live: &Value, conflicts: Vec<Conflict>) -> Vec<Conflict> {
    let Some(own) = own_fields(shape, live) else { return conflicts };
    let own = own.paths();
    conflicts.into_iter().filter(|conflict| !own.contains(&conflict.path)).collect()
}

fn own_fields(shape: Shape<'_>, live: &Value) -> Option<FieldSet> {
    let text = live["metadata"]["annotations"][ANNOTATION].as_str()?;
    let last: Value = serde_json::from_str(text).ok()?;
    if last["apiVersion"] != live["apiVersion"] {
        return None;
    }
    let comparison = compare(shape, live, &last);
    Some(field_set(shape, &last).difference(&comparison.added).difference(&comparison.modified))
}

/// Replaces the annotation, where there is one, by what is applied now.
pub(super) fn keep_current(object: &mut Value, applied: &Value) {
    let Some(annotation) = object
        .get_mut("metadata")
        .and_then(|metadata| metadata.get_mut("annotations"))
        .and_then(|annotations| annotations.get_mut(ANNOTATION))
    else {
        return;
    };
    let mut applied = applied.clone();
    if let Some(annotations) =
        applied.get_mut("metadata").and_then(|m| m.get_mut("annotations")).and_then(Value::as_object_mut)
    {
        annotations.remove(ANNOTATION);
    }
    let text = format!("{applied}\n");
    *annotation = Value::String(if text.len() > MAX_BYTES { String::new() } else { text });
}
