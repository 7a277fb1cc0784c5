//! Merging an applied tree into the live one, and removing what is no longer applied.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::set::{FieldSet, as_node, is_member};
use super::walk::item_element;
use crate::schema::{ListKind, Shape};

/// The live tree with the applied one laid over it: the applied values win, keyed lists merge by key.
pub(super) fn merge(shape: Shape<'_>, live: &Value, applied: &Value) -> Value {
    let is_leaf = match shape {
        Shape::Scalar(_) => true,
        Shape::Message { atomic, .. } | Shape::Map { atomic, .. } => atomic,
        Shape::List { kind, .. } => *kind == ListKind::Atomic,
        Shape::Any => !(live.is_object() && applied.is_object()),
    };
    if is_leaf {
        return applied.clone();
    }
    match (live, applied) {
        (Value::Object(live), Value::Object(applied)) => {
            let mut merged = live.clone();
            for (key, value) in applied {
                match (live.get(key), shape.member(key)) {
                    (Some(known), Some(shape)) => merged.insert(key.clone(), merge(shape, known, value)),
                    _ => merged.insert(key.clone(), value.clone()),
                };
            }
            Value::Object(merged)
        }
        (Value::Array(live), Value::Array(applied)) => match shape {
            Shape::List { kind, .. } => Value::Array(merge_lists(shape, kind, live, applied)),
            _ => Value::Array(applied.clone()),
        },
        // Null over a container with members is no wish to clear it.
        (live @ (Value::Object(_) | Value::Array(_)), Value::Null) if !is_bare(live) => live.clone(),
        (_, applied) => applied.clone(),
    }
}

fn is_bare(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        value => value.is_null(),
    }
}

/// Merges keyed lists. The applied items keep the applied order; items that only the live list has stay before the next
/// shared item, and before new items that stand there.
fn merge_lists(shape: Shape<'_>, kind: &ListKind, live: &[Value], applied: &[Value]) -> Vec<Value> {
    let item_shape = shape.item().unwrap_or(Shape::Any);
    let elements = |list: &[Value]| -> Vec<Option<String>> {
        list.iter().map(|item| item_element(shape, kind, item).ok()).collect()
    };
    let (ours, theirs) = (elements(live), elements(applied));
    let (ours_at, theirs_at) = (first_places(&ours), first_places(&theirs));
    let find = |places: &HashMap<&str, usize>, element: &Option<String>| {
        element.as_ref().and_then(|e| places.get(e.as_str()).copied())
    };
    let known: Vec<Option<usize>> = theirs.iter().map(|element| find(&ours_at, element)).collect();
    // For each applied item: where the first shared one, from it on, stands in the live list.
    let mut next_shared = known.clone();
    for n in (1..next_shared.len()).rev() {
        next_shared[n - 1] = next_shared[n - 1].or(next_shared[n]);
    }
    let mut out = Vec::with_capacity(live.len().max(applied.len()));
    let mut at = 0;
    for (n, item) in applied.iter().enumerate() {
        while at < live.len() && Some(at) != next_shared[n] {
            if find(&theirs_at, &ours[at]).is_none() {
                out.push(live[at].clone());
            }
            // Shared items that are not the next one come, or came, at their own turn.
            at += 1;
        }
        if known[n].is_some() && known[n] == Some(at) {
            at += 1;
        }
        out.push(match known[n] {
            Some(known) => merge(item_shape, &live[known], item),
            None => item.clone(),
        });
    }
    for (n, item) in live.iter().enumerate().skip(at) {
        if find(&theirs_at, &ours[n]).is_none() {
            out.push(item.clone());
        }
    }
    out
}

/// Where each element stands first.
fn first_places(elements: &[Option<String>]) -> HashMap<&str, usize> {
    let named = elements.iter().enumerate().rev();
    named.filter_map(|(n, element)| Some((element.as_deref()?, n))).collect()
}

/// The tree without the members of a set. A container that loses everything becomes null.
pub(super) fn remove(shape: Shape<'_>, value: Value, gone: &FieldSet) -> Value {
    remove_node(shape, value, gone.node())
}

fn remove_node(shape: Shape<'_>, value: Value, gone: &Map<String, Value>) -> Value {
    match (shape, value) {
        (Shape::Message { atomic: true, .. } | Shape::Map { atomic: true, .. }, value) => value,
        (Shape::Message { .. } | Shape::Map { .. } | Shape::Any, Value::Object(entries)) => {
            let kept = entries
                .into_iter()
                .filter_map(|(key, value)| {
                    let Some(node) = gone.get(&format!("f:{key}")).map(as_node) else {
                        return Some((key, value));
                    };
                    if is_member(node) {
                        return None;
                    }
                    let value = match shape.member(&key) {
                        Some(shape) => remove_node(shape, value, node),
                        None => value,
                    };
                    Some((key, value))
                })
                .collect::<Map<_, _>>();
            if kept.is_empty() { Value::Null } else { Value::Object(kept) }
        }
        (Shape::List { kind, .. }, Value::Array(items)) if *kind != ListKind::Atomic => {
            let item_shape = shape.item().unwrap_or(Shape::Any);
            let kept = items
                .into_iter()
                .filter_map(|item| {
                    let element = item_element(shape, kind, &item).ok();
                    let Some(node) = element.and_then(|e| gone.get(&e)).map(as_node) else {
                        return Some(item);
                    };
                    (!is_member(node)).then(|| remove_node(item_shape, item, node))
                })
                .collect::<Vec<_>>();
            if kept.is_empty() { Value::Null } else { Value::Array(kept) }
        }
        (_, value) => value,
    }
}
