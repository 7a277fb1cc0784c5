//! Defaulting, with the rules on null: where null is no value, a default takes its place, or the field goes.

use serde_json::Value;

use super::{Node, Structural};

impl Structural {
    /// Fills in defaults. A null where the schema takes none is replaced by the default, or taken out where there is none;
    /// a null where it does (`nullable`) stays, whatever the default.
    pub fn default(&self, object: &mut Value) {
        drop_nulls(Some(&self.root), object);
        fill(&self.root, object);
    }
}

fn drop_nulls(node: Option<&Node>, value: &mut Value) {
    match value {
        Value::Object(map) => map.retain(|key, value| {
            let member = node.and_then(|node| node.member(key));
            if value.is_null() && member.is_some_and(|m| !m.nullable && m.default.is_none()) {
                return false;
            }
            drop_nulls(member, value);
            true
        }),
        Value::Array(items) => {
            let item = node.and_then(|node| node.items.as_deref());
            items.iter_mut().for_each(|value| drop_nulls(item, value));
        }
        _ => {}
    }
}

fn fill(node: &Node, value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (name, property) in &node.properties {
                if let Some(default) = &property.default
                    && map.get(name).is_none_or(|value| value.is_null() && !property.nullable)
                {
                    map.insert(name.clone(), default.clone());
                }
            }
            for (key, value) in map.iter_mut() {
                let Some(member) = node.member(key) else { continue };
                replace_null(member, value);
                fill(member, value);
            }
        }
        Value::Array(items) => {
            let Some(item) = node.items.as_deref() else { return };
            for value in items {
                replace_null(item, value);
                fill(item, value);
            }
        }
        _ => {}
    }
}

fn replace_null(node: &Node, value: &mut Value) {
    if value.is_null()
        && !node.nullable
        && let Some(default) = &node.default
    {
        *value = default.clone();
    }
}
