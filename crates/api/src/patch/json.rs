//! JSON patch (RFC 6902), with the deviations that clients of the API rely on.
//!
//! `replace` of a missing map key adds it, and what `copy` does not find there is null; a `test` for null holds where a map
//! lacks the key; indexes may count from the end; a missing `value` is null. A path names no whole document, and what stands
//! before its first `/` does not count.
//! Everything that does not fit the object is one error, [`PatchError::Rejected`]. An implementation of our own, because of
//! these deviations and the limits on work.

use serde_json::Value;

use super::{PatchError, json_type};

/// The most operations a patch may have.
pub const MAX_OPERATIONS: usize = 10_000;
/// The most bytes that `copy` operations of one patch may add, so that doubling copies stay harmless.
const MAX_COPIED: usize = 3 << 20;
/// The most bytes that `move` operations of one patch may carry around; bounds the work, far above any real patch.
const MAX_MOVED: usize = 64 << 20;
/// How deep a patch may build: the stack that later walks the result is finite.
const MAX_DEPTH: usize = 256;

/// Applies a JSON patch: all operations or none.
pub fn apply(target: &Value, patch: &Value) -> Result<Value, PatchError> {
    let operations = match patch {
        Value::Array(operations) => operations.as_slice(),
        Value::Null => &[],
        other => return Err(undecodable(json_type(other), "[]handlers.jsonPatchOp")),
    };
    if operations.len() > MAX_OPERATIONS {
        return Err(PatchError::TooLarge(format!(
            "Request entity too large: The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let mut result = target.clone();
    let mut work = Work::default();
    for operation in operations {
        if !operation.is_object() {
            return Err(undecodable(json_type(operation), "handlers.jsonPatchOp"));
        }
        run(&mut result, operation, &mut work)?;
    }
    Ok(result)
}

fn undecodable(found: &str, wanted: &str) -> PatchError {
    PatchError::Malformed(format!(
        "error decoding patch: json: cannot unmarshal {found} into Go value of type {wanted}"
    ))
}

/// What operations have carried so far, in bytes.
#[derive(Default)]
struct Work {
    copied: usize,
    moved: usize,
}

fn too_large(what: &str, limit: usize) -> PatchError {
    PatchError::TooLarge(format!(
        "Request entity too large: the {what} operations of a JSON patch may carry {limit} bytes at most"
    ))
}

fn run(target: &mut Value, operation: &Value, work: &mut Work) -> Result<(), PatchError> {
    let pointer = |key: &str| Pointer::parse(operation[key].as_str().ok_or(PatchError::Rejected)?);
    let path = pointer("path")?;
    let value = || operation.get("value").unwrap_or(&Value::Null);
    match operation["op"].as_str().ok_or(PatchError::Rejected)? {
        "add" => add(target, &path, value().clone()),
        "replace" => replace(target, &path, value().clone()),
        "remove" => remove(target, &path).map(|_| ()),
        "test" if equal(path.get(target)?, value()) => Ok(()),
        "test" => Err(PatchError::Rejected),
        "move" => {
            let from = pointer("from")?;
            if path.is_below(&from) {
                return Err(PatchError::Rejected);
            }
            let moved = remove(target, &from)?;
            work.moved += weight(&moved);
            if work.moved > MAX_MOVED {
                return Err(too_large("move", MAX_MOVED));
            }
            add(target, &path, moved)
        }
        "copy" => {
            let source = pointer("from")?.get(target)?.clone();
            work.copied += weight(&source);
            if work.copied > MAX_COPIED {
                return Err(too_large("copy", MAX_COPIED));
            }
            add(target, &path, source)
        }
        _ => Err(PatchError::Rejected),
    }
}

fn add(target: &mut Value, path: &Pointer<'_>, value: Value) -> Result<(), PatchError> {
    path.check_depth(&value)?;
    let (parent, key) = path.split()?;
    match resolve_mut(target, parent).ok_or(PatchError::Rejected)? {
        Value::Object(map) => {
            map.insert(unescape(key), value);
        }
        Value::Array(items) => {
            let at = if key == "-" { Some(items.len()) } else { index(key, items.len() + 1) };
            items.insert(at.ok_or(PatchError::Rejected)?, value);
        }
        _ => return Err(PatchError::Rejected),
    }
    Ok(())
}

fn replace(target: &mut Value, path: &Pointer<'_>, value: Value) -> Result<(), PatchError> {
    path.check_depth(&value)?;
    let (parent, key) = path.split()?;
    match resolve_mut(target, parent).ok_or(PatchError::Rejected)? {
        Value::Object(map) => {
            map.insert(unescape(key), value);
        }
        Value::Array(items) => {
            let at = index(key, items.len()).ok_or(PatchError::Rejected)?;
            items[at] = value;
        }
        _ => return Err(PatchError::Rejected),
    }
    Ok(())
}

fn remove(target: &mut Value, path: &Pointer<'_>) -> Result<Value, PatchError> {
    let (parent, key) = path.split()?;
    match resolve_mut(target, parent).ok_or(PatchError::Rejected)? {
        Value::Object(map) => map.remove(&unescape(key)).ok_or(PatchError::Rejected),
        Value::Array(items) => {
            let at = index(key, items.len()).ok_or(PatchError::Rejected)?;
            Ok(items.remove(at))
        }
        _ => Err(PatchError::Rejected),
    }
}

/// A JSON pointer (RFC 6901): its segments, still escaped; at least one.
struct Pointer<'a> {
    segments: Vec<&'a str>,
}

impl<'a> Pointer<'a> {
    fn parse(text: &'a str) -> Result<Self, PatchError> {
        let (_, rest) = text.split_once('/').ok_or(PatchError::Rejected)?;
        Ok(Self { segments: rest.split('/').collect() })
    }

    fn split(&self) -> Result<(&[&'a str], &'a str), PatchError> {
        self.segments.split_last().map(|(last, parent)| (parent, *last)).ok_or(PatchError::Rejected)
    }

    fn check_depth(&self, value: &Value) -> Result<(), PatchError> {
        let is_bounded = self.segments.len() + depth(value) <= MAX_DEPTH;
        is_bounded.then_some(()).ok_or(PatchError::Rejected)
    }

    fn is_below(&self, other: &Pointer<'_>) -> bool {
        self.segments.len() > other.segments.len() && self.segments.starts_with(&other.segments)
    }

    /// What stands there; null for a key that a map lacks.
    fn get<'v>(&self, target: &'v Value) -> Result<&'v Value, PatchError> {
        let (parent, key) = self.split()?;
        let parent = resolve(target, parent).ok_or(PatchError::Rejected)?;
        match member(parent, key) {
            Some(found) => Ok(found),
            None if parent.is_object() => Ok(&Value::Null),
            None => Err(PatchError::Rejected),
        }
    }
}

fn member<'v>(value: &'v Value, segment: &str) -> Option<&'v Value> {
    match value {
        Value::Object(map) => map.get(&unescape(segment)),
        Value::Array(items) => items.get(index(segment, items.len())?),
        _ => None,
    }
}

fn resolve<'v>(target: &'v Value, segments: &[&str]) -> Option<&'v Value> {
    segments.iter().try_fold(target, |value, segment| member(value, segment))
}

fn resolve_mut<'v>(target: &'v mut Value, segments: &[&str]) -> Option<&'v mut Value> {
    segments.iter().try_fold(target, |value, segment| match value {
        Value::Object(map) => map.get_mut(&unescape(segment)),
        Value::Array(items) => {
            let at = index(segment, items.len())?;
            items.get_mut(at)
        }
        _ => None,
    })
}

fn unescape(segment: &str) -> String {
    segment.replace("~1", "/").replace("~0", "~")
}

/// An index below `length`; negative ones count from the end.
fn index(text: &str, length: usize) -> Option<usize> {
    let number: i64 = text.parse().ok()?;
    let at = if number < 0 { number + length as i64 } else { number };
    usize::try_from(at).ok().filter(|at| *at < length)
}

/// Equality of JSON: numbers by value.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| equal(a, b)))
        }
        (a, b) => a == b,
    }
}

/// How deep a tree nests.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// About how many bytes a tree prints as.
fn weight(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 2,
        Value::Array(items) => 2 + items.iter().map(|item| weight(item) + 1).sum::<usize>(),
        Value::Object(map) => 2 + map.iter().map(|(key, value)| key.len() + 4 + weight(value)).sum::<usize>(),
        _ => 8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn patched(patch: Value) -> Result<Value, PatchError> {
        apply(&json!({"data": {"a": "1", "b": "2", "x/y": "3"}, "list": [1, 2, 3]}), &patch)
    }

    #[test]
    fn operations_do_what_the_rfc_says() {
        for (patch, pointer, result) in [
            (json!([{"op": "add", "path": "/data/z", "value": "9"}]), "/data/z", json!("9")),
            (json!([{"op": "add", "path": "/list/-", "value": 4}]), "/list", json!([1, 2, 3, 4])),
            (json!([{"op": "add", "path": "/list/0", "value": 0}]), "/list", json!([0, 1, 2, 3])),
            (json!([{"op": "add", "path": "/list/3", "value": 4}]), "/list", json!([1, 2, 3, 4])),
            (json!([{"op": "replace", "path": "/list/1", "value": 9}]), "/list", json!([1, 9, 3])),
            (json!([{"op": "remove", "path": "/list/0"}]), "/list", json!([2, 3])),
            (json!([{"op": "remove", "path": "/list/-1"}]), "/list", json!([1, 2])),
            (json!([{"op": "remove", "path": "/data/x~1y"}]), "/data", json!({"a": "1", "b": "2"})),
            (json!([{"op": "copy", "from": "/data/a", "path": "/data/z"}]), "/data/z", json!("1")),
            (json!([{"op": "move", "from": "/data/a", "path": "/list/0"}]), "/list/0", json!("1")),
            (json!([{"op": "test", "path": "/list/0", "value": 1.0}]), "/list/0", json!(1)),
            (json!([{"op": "add", "path": "/list/-1", "value": 4}]), "/list", json!([1, 2, 3, 4])),
            (json!([{"op": "add", "path": "any/where", "value": 4}]), "/where", json!(4)),
            (json!([{"op": "add", "path": "/data/z"}]), "/data/z", Value::Null),
            (json!([{"op": "copy", "from": "/data/zz", "path": "/data/a"}]), "/data/a", Value::Null),
            (json!([]), "/data/a", json!("1")),
        ] {
            let value = patched(patch.clone()).unwrap();
            assert_eq!(value.pointer(pointer), Some(&result), "{patch}");
        }
    }

    #[test]
    fn replace_of_a_missing_key_adds_it() {
        let value = patched(json!([{"op": "replace", "path": "/data/new", "value": "1"}])).unwrap();
        assert_eq!(value["data"]["new"], "1");
    }

    #[test]
    fn a_test_for_null_holds_where_a_map_lacks_the_key() {
        for (path, holds) in
            [("/nosuch", true), ("/data/nosuch", true), ("/no/such", false), ("/list/9", false)]
        {
            assert_eq!(
                patched(json!([{"op": "test", "path": path, "value": null}])).is_ok(),
                holds,
                "{path}"
            );
        }
    }

    #[test]
    fn what_does_not_fit_is_rejected_with_one_text() {
        for patch in [
            json!([{"op": "remove", "path": "/data/zz"}]),
            json!([{"op": "test", "path": "/data/a", "value": "2"}]),
            json!([{"op": "add", "path": "/no/such", "value": 1}]),
            json!([{"op": "add", "value": "1"}]),
            json!([{"op": "increment", "path": "/data/a", "value": "1"}]),
            json!([{"op": "add", "path": "/list/9", "value": 1}]),
            json!([{"op": "add", "path": "/list/x", "value": 1}]),
            json!([{"op": "add", "path": "data", "value": 1}]),
            json!([{"op": "replace", "path": "", "value": {"k": 1}}]),
            json!([{"op": "copy", "from": "", "path": "/data/a"}]),
            json!([{"op": "copy", "from": "/no/such", "path": "/data/a"}]),
            json!([{"op": "move", "from": "/data/zz", "path": "/data/a"}]),
            json!([{"op": "move", "from": "/data", "path": "/data/a"}]),
            json!([{"path": "/data/a"}]),
        ] {
            assert_eq!(patched(patch.clone()), Err(PatchError::Rejected), "{patch}");
        }
    }

    #[test]
    fn a_patch_is_a_list_of_bounded_length() {
        assert_eq!(
            patched(json!({"op": "add"})).unwrap_err().to_string(),
            "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp"
        );
        let many = Value::Array(vec![json!({"op": "test", "path": "/data/a", "value": "1"}); 10_001]);
        assert_eq!(
            patched(many).unwrap_err().to_string(),
            "Request entity too large: The allowed maximum operations in a JSON patch is 10000, got 10001"
        );
    }

    #[test]
    fn doubling_copies_are_stopped() {
        let patch = Value::Array(vec![json!({"op": "copy", "from": "/list", "path": "/list/-"}); 100]);
        assert!(matches!(patched(patch), Err(PatchError::TooLarge(_))));
    }

    #[test]
    fn a_patch_cannot_build_a_bottomless_tree() {
        let patch = Value::Array(vec![json!({"op": "copy", "from": "/data", "path": "/data/a"}); 1000]);
        assert_eq!(patched(patch), Err(PatchError::Rejected));
    }
}
