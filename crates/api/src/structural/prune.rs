//! Pruning: what the schema does not name goes away.

use serde_json::Value;

use super::{Additional, META_FIELDS, Node, Structural, metadata};

impl Structural {
    /// Takes out what the schema does not name, and brings the metadata of embedded resources into its typed form.
    /// Returns the dropped fields as warnings name them (`spec.list[0].x`), sorted. `apiVersion`, `kind` and `metadata` of the
    /// object itself are left alone.
    pub fn prune(&self, object: &mut Value) -> Vec<String> {
        let mut dropped = Vec::new();
        metadata::coerce(&self.root, object, &mut String::new(), &mut dropped);
        walk(Some(&self.root), object, true, false, &mut Path { text: String::new(), dropped: &mut dropped });
        dropped.sort();
        dropped
    }
}

impl Node {
    /// As [`Structural::prune`] for a value anywhere in an object. Whether it is an object with metadata of its own says
    /// `is_resource`.
    pub(super) fn prune_value(&self, value: &mut Value, is_resource: bool) {
        walk(
            Some(self),
            value,
            is_resource,
            false,
            &mut Path { text: String::new(), dropped: &mut Vec::new() },
        );
    }
}

struct Path<'a> {
    text: String,
    dropped: &'a mut Vec<String>,
}

impl Path<'_> {
    fn key(&mut self, key: &str) -> usize {
        let length = self.text.len();
        if length > 0 {
            self.text.push('.');
        }
        self.text.push_str(key);
        length
    }

    fn index(&mut self, index: usize) -> usize {
        let length = self.text.len();
        self.text.push_str(&format!("[{index}]"));
        length
    }

    fn drop(&mut self, key: &str) {
        let length = self.key(key);
        self.dropped.push(self.text.clone());
        self.text.truncate(length);
    }
}

/// Without a schema (below `additionalProperties: true`) objects lose all their members. `is_kept`: a list that keeps
/// what is unknown hands that on to its items.
fn walk(node: Option<&Node>, value: &mut Value, is_resource: bool, is_kept: bool, path: &mut Path<'_>) {
    let is_kept = is_kept || node.is_some_and(|node| node.preserve_unknown);
    match value {
        Value::Object(map) => map.retain(|key, value| {
            let Some(node) = node else {
                path.drop(key);
                return false;
            };
            if is_resource && META_FIELDS.contains(&key.as_str()) {
                return true;
            }
            let member = match (node.properties.get(key), &node.additional) {
                (Some(property), _) => Some(property),
                (None, Some(Additional::Schema(schema))) => Some(&**schema),
                (None, Some(Additional::Any(_))) => None,
                (None, None) => {
                    if !is_kept {
                        path.drop(key);
                    }
                    return is_kept;
                }
            };
            let length = path.key(key);
            walk(member, value, member.is_some_and(|m| m.embedded), false, path);
            path.text.truncate(length);
            true
        }),
        Value::Array(items) => {
            let item = node.and_then(|node| node.items.as_deref());
            if is_kept && item.is_none() {
                return;
            }
            for (n, value) in items.iter_mut().enumerate() {
                let length = path.index(n);
                walk(item, value, item.is_some_and(|item| item.embedded), is_kept, path);
                path.text.truncate(length);
            }
        }
        _ => {}
    }
}
