//! Laying a partial object over a whole one, without ownership: what mutating admission policies apply.
//!
//! Rule: Kubernetes documentation, "Mutating Admission Policy": lists merge by their keys, atomic lists, maps and structs may
//! not be touched.

use serde_json::Value;

use super::merge::merge;
use crate::schema::{ListKind, Shape};

/// Why a partial object cannot be laid over another; the words are the API's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PartialError {
    /// It has fields that the type does not have.
    #[error("failed to convert patch object to typed object: {0}")]
    Unknown(String),
    /// It touches what can only be replaced as a whole.
    #[error("invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {0}")]
    Atomic(String),
}

/// `whole` with the values of `part` laid over it; to be decoded, because the values win as they are.
///
/// # Errors
///
/// All fields that are not known, or all atomic values.
pub fn merge_partial(shape: Shape<'_>, whole: &Value, part: &Value) -> Result<Value, PartialError> {
    let (mut unknown, mut atomic) = (Vec::new(), Vec::new());
    walk(shape, part, "", &mut unknown, &mut atomic);
    if !unknown.is_empty() {
        let texts: Vec<String> =
            unknown.iter().map(|path| format!("{path}: field not declared in schema")).collect();
        return Err(PartialError::Unknown(texts.join("\n")));
    }
    if !atomic.is_empty() {
        return Err(PartialError::Atomic(atomic.join(", ")));
    }
    Ok(merge(shape, whole, part))
}

fn walk(shape: Shape<'_>, part: &Value, path: &str, unknown: &mut Vec<String>, atomics: &mut Vec<String>) {
    match (shape, part) {
        (Shape::Message { atomic, .. } | Shape::Map { atomic, .. }, Value::Object(map)) => {
            if atomic {
                atomics.push(path.to_owned());
            }
            for (name, value) in map {
                let path = format!("{path}.{name}");
                match shape.member(name) {
                    Some(below) => walk(below, value, &path, unknown, atomics),
                    None => unknown.push(path),
                }
            }
        }
        (Shape::List { kind, .. }, Value::Array(items)) => {
            if *kind == ListKind::Atomic {
                atomics.push(path.to_owned());
            }
            for (at, item) in items.iter().enumerate() {
                if let Some(below) = shape.item() {
                    walk(below, item, &format!("{path}[{at}]"), unknown, atomics);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn parts_merge_by_key_and_leave_atomic_values_alone() {
        let shape = crate::schema::root("io.k8s.api.apps.v1.Deployment");
        let whole = json!({"spec": {"replicas": 1, "template": {"spec": {"containers": [{"name": "a", "image": "x"}]}}}});
        let merged = |part: Value| merge_partial(shape, &whole, &part);
        assert_eq!(
            merged(json!({"spec": {"template": {"spec": {"containers": [{"name": "b"}]}}}})).unwrap()["spec"]
                ["template"]["spec"]["containers"],
            json!([{"name": "a", "image": "x"}, {"name": "b"}])
        );
        assert_eq!(
            merged(json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}})).unwrap_err().to_string(),
            "invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: .spec.selector"
        );
        assert_eq!(
            merged(json!({"spec": {"replicasx": 1}})).unwrap_err().to_string(),
            "failed to convert patch object to typed object: .spec.replicasx: field not declared in schema"
        );
    }
}
