//! Lists that are sets or maps hold every item once.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::Node;
use crate::field::ErrorList;

/// Checks all lists of a value. `path` is empty for the object itself.
pub(super) fn check(node: &Node, value: &Value, path: &str, errors: &mut ErrorList) {
    match value {
        Value::Object(map) => {
            if let Some(schema) = node.additional_schema() {
                for (key, value) in map {
                    check(schema, value, &format!("{path}[{key}]"), errors);
                }
            }
            for (key, value) in map {
                if let Some(property) = node.properties.get(key) {
                    check(property, value, &child(path, key), errors);
                }
            }
        }
        Value::Array(items) => {
            match node.list_type.as_deref() {
                Some("set") => {
                    for n in repeated(items.iter()) {
                        errors.duplicate(&format!("{path}[{n}]"), &items[n]);
                    }
                }
                Some("map") => map_items(node, items, path, errors),
                _ => {}
            }
            if let Some(item) = &node.items {
                for (n, value) in items.iter().enumerate() {
                    check(item, value, &format!("{path}[{n}]"), errors);
                }
            }
        }
        _ => {}
    }
}

fn map_items(node: &Node, items: &[Value], path: &str, errors: &mut ErrorList) {
    if let Some(n) = items.iter().position(|item| !item.is_null() && !item.is_object()) {
        errors.invalid(&format!("{path}[{n}]"), &items[n], "must be an object for an array of list-type map");
        return;
    }
    let keys: Vec<Value> = items
        .iter()
        .map(|item| {
            let key = node.list_map_keys.iter().filter_map(|k| Some((k.clone(), item.get(k)?.clone())));
            Value::Object(key.collect::<Map<_, _>>())
        })
        .collect();
    for n in repeated(keys.iter()) {
        errors.duplicate(&format!("{path}[{n}]"), &keys[n]);
    }
}

/// Where a value stands for the second time; further times are passed over.
fn repeated<'a>(values: impl Iterator<Item = &'a Value>) -> Vec<usize> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut found = Vec::new();
    for (n, value) in values.enumerate() {
        let times = seen.entry(value.to_string()).or_default();
        *times += 1;
        if *times == 2 {
            found.push(n);
        }
    }
    found
}

fn child(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
