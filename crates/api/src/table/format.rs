//! Small texts that many cells share.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::duration::since;

pub(super) const NONE: &str = "<none>";
pub(super) const UNSET: &str = "<unset>";

/// The text at a JSON pointer, empty where there is none.
pub(super) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// As [`text`], with a word for nothing.
pub(super) fn text_or<'a>(object: &'a Value, pointer: &str, empty: &'a str) -> &'a str {
    Some(text(object, pointer)).filter(|t| !t.is_empty()).unwrap_or(empty)
}

/// The text at a JSON pointer, with a word for a field that is not set; what is set to nothing stays empty.
pub(super) fn set_or<'a>(object: &'a Value, pointer: &str, unset: &'a str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or(unset)
}

/// The number at a JSON pointer, 0 where there is none.
pub(super) fn int(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or_default()
}

/// The truth value at a JSON pointer.
pub(super) fn flag(object: &Value, pointer: &str) -> bool {
    object.pointer(pointer).and_then(Value::as_bool).unwrap_or_default()
}

/// The list at a JSON pointer.
pub(super) fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The texts of a list.
pub(super) fn texts<'a>(object: &'a Value, pointer: &str) -> Vec<&'a str> {
    list(object, pointer).iter().filter_map(Value::as_str).collect()
}

/// `metadata.name`.
pub(super) fn name(object: &Value) -> Value {
    json!(text(object, "/metadata/name"))
}

/// Time since the creation.
pub(super) fn age(object: &Value, now: Timestamp) -> Value {
    json!(since(object.pointer("/metadata/creationTimestamp").and_then(Value::as_str), now))
}

/// An integer or text as a text (`IntOrString`), or the word for nothing.
pub(super) fn int_or_text(value: Option<&Value>, empty: &str) -> String {
    match value {
        Some(Value::String(s)) => s.clone(),
        Some(Value::Number(n)) => n.to_string(),
        _ => empty.to_owned(),
    }
}

/// A map as `a=1,b=2`, `<none>` where empty.
pub(super) fn labels(map: Option<&Value>) -> String {
    let pairs: Vec<String> = map
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
        .collect();
    if pairs.is_empty() { NONE.to_owned() } else { pairs.join(",") }
}

/// A label selector as its text form, sorted by key; `<none>` where it selects by nothing.
pub(super) fn selector(selector: Option<&Value>) -> String {
    let Some(selector) = selector else { return NONE.to_owned() };
    let mut parts: Vec<(String, String)> = Vec::new();
    for (k, v) in selector["matchLabels"].as_object().into_iter().flatten() {
        parts.push((k.clone(), format!("{k}={}", v.as_str().unwrap_or_default())));
    }
    for e in list(selector, "/matchExpressions") {
        let key = text(e, "/key");
        let mut values = texts(e, "/values");
        values.sort_unstable();
        let values = values.join(",");
        let part = match text(e, "/operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            _ => return "<error>".to_owned(),
        };
        parts.push((key.to_owned(), part));
    }
    if parts.is_empty() {
        return NONE.to_owned();
    }
    parts.sort_by(|a, b| a.0.cmp(&b.0));
    parts.into_iter().map(|p| p.1).collect::<Vec<_>>().join(",")
}

/// Names and images of the containers in the list at `pointer`.
pub(super) fn containers(object: &Value, pointer: &str) -> (Value, Value) {
    let all = list(object, pointer);
    let join = |key: &str| json!(all.iter().map(|c| text(c, key)).collect::<Vec<_>>().join(","));
    (join("/name"), join("/image"))
}

/// The first three texts, and how many there are beyond.
pub(super) fn first_three(all: &[String], empty: &str) -> String {
    match all.len() {
        0 => empty.to_owned(),
        1..=3 => all.join(","),
        n => format!("{} + {} more...", all[..3].join(","), n - 3),
    }
}

/// Addresses or host names of a load balancer's status, sorted.
pub(super) fn load_balancer(object: &Value) -> Vec<&str> {
    let entries = list(object, "/status/loadBalancer/ingress").iter();
    let addresses = entries.map(|entry| text_or(entry, "/ip", text(entry, "/hostname")));
    let all: BTreeSet<&str> = addresses.filter(|address| !address.is_empty()).collect();
    all.into_iter().collect()
}

/// A selector as Go's `String` of its type prints it.
pub(super) fn selector_of_go(selector: &Value) -> String {
    let labels = selector.pointer("/matchLabels").and_then(Value::as_object).into_iter().flatten();
    let labels: BTreeMap<&str, &str> =
        labels.map(|(k, v)| (k.as_str(), v.as_str().unwrap_or_default())).collect();
    let labels: String = labels.iter().map(|(k, v)| format!("{k}: {v},")).collect();
    let requirement = |r: &Value| {
        let values: Vec<&str> = list(r, "/values").iter().filter_map(Value::as_str).collect();
        format!(
            "LabelSelectorRequirement{{Key:{},Operator:{},Values:[{}],}},",
            text(r, "/key"),
            text(r, "/operator"),
            values.join(" ")
        )
    };
    let requirements: String = list(selector, "/matchExpressions").iter().map(requirement).collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{{requirements}}},}}"
    )
}
