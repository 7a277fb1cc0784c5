//! Setting the conditions of definitions.

use api::meta;
use jiff::Timestamp;
use serde_json::{Value, json};

/// What a condition says.
pub(crate) struct Condition<'a> {
    pub(crate) type_: &'a str,
    pub(crate) status: bool,
    pub(crate) reason: &'a str,
    pub(crate) message: &'a str,
}

/// Puts a condition in the place of the one of its type. The time of transition changes with the status only.
pub(crate) fn set(definition: &mut Value, condition: &Condition<'_>, now: Timestamp) {
    let Some(object) = definition.as_object_mut() else { return };
    let list = meta::child_mut(object, "status").entry("conditions").or_insert(Value::Null);
    if !list.is_array() {
        *list = json!([]);
    }
    let Some(list) = list.as_array_mut() else { return };
    let status = if condition.status { "True" } else { "False" };
    let mut fresh = json!({"type": condition.type_, "status": status, "reason": condition.reason,
        "message": condition.message, "lastTransitionTime": meta::format_time(now)});
    match list.iter_mut().find(|c| c["type"] == condition.type_) {
        Some(known) => {
            if known["status"] == status {
                fresh["lastTransitionTime"] = known["lastTransitionTime"].clone();
            }
            *known = fresh;
        }
        None => list.push(fresh),
    }
}

/// Takes a condition away.
pub(crate) fn remove(definition: &mut Value, type_: &str) {
    if let Some(list) = definition.pointer_mut("/status/conditions").and_then(Value::as_array_mut) {
        list.retain(|c| c["type"] != type_);
    }
}
