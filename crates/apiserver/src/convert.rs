//! Versions of one kind: an object is stored in its kind's storage version and answered in the version that was asked for.
//!
//! Built-in kinds with two shapes are events (`v1`, `events.k8s.io/v1`) and autoscalers (`autoscaling/v1`, `v2`). Owners
//! of fields keep the version they wrote in; see the note in `api::apply` on comparing them.

use std::borrow::Cow;
use std::sync::Arc;

use api::kinds::Kind;
use api::object::Object;
use api::{codec, meta};
use serde_json::{Map, Value, json};

use crate::strategy::internal;

use crate::extensions::versions as custom;
use crate::status::ApiResult;
use crate::watch_cache::{Changed, WatchCache};

/// (field of the core group's event, field of `events.k8s.io`'s).
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

/// What `autoscaling/v1` has no fields for: (annotation, path in `v2`).
const AUTOSCALER_NOTES: &[(&str, &[&str])] = &[
    ("autoscaling.alpha.kubernetes.io/metrics", &["spec", "metrics"]),
    ("autoscaling.alpha.kubernetes.io/behavior", &["spec", "behavior"]),
    ("autoscaling.alpha.kubernetes.io/current-metrics", &["status", "currentMetrics"]),
    ("autoscaling.alpha.kubernetes.io/conditions", &["status", "conditions"]),
];

/// Whether objects of this kind are stored in the version that the kind stands for.
pub fn is_stored_as_is(kind: &Kind) -> bool {
    kind.definition.is_none() && is_storage_version(kind)
}

fn is_storage_version(kind: &Kind) -> bool {
    kind.storage_version.is_empty() || kind.storage_version == kind.api_version()
}

/// An object in the form it is stored in.
pub async fn to_storage<'a>(cache: &WatchCache, kind: &Kind, object: &'a Value) -> ApiResult<Cow<'a, Value>> {
    if is_storage_version(kind) {
        return Ok(Cow::Borrowed(object));
    }
    if let Some(definition) = &kind.definition {
        return custom::to_storage(cache, definition, object.clone()).await.map(Cow::Owned);
    }
    Ok(Cow::Owned(to_version(object.clone(), &kind.storage_version)))
}

/// A stored object in the version of `kind`.
pub async fn from_storage(cache: &WatchCache, kind: &Kind, object: Value) -> ApiResult<Value> {
    if let Some(definition) = &kind.definition {
        let mut objects = [object];
        custom::from_storage(cache, definition, &mut objects).await?;
        let [object] = objects;
        return Ok(object);
    }
    Ok(to_own_version(kind, object))
}

fn to_own_version(kind: &Kind, object: Value) -> Value {
    let version = kind.api_version();
    if object["apiVersion"] == version.as_str() { object } else { to_version(object, &version) }
}

/// An object in the version of `kind`; one of another type than the kind's (`Scale`, `Binding`) stays as it is.
pub async fn shown(
    cache: &WatchCache,
    kind: &Kind,
    object_type: Option<(&str, &str, &str)>,
    object: &Value,
) -> ApiResult<Value> {
    match object_type {
        None if object.is_object() => from_storage(cache, kind, object.clone()).await,
        _ => Ok(object.clone()),
    }
}

/// As [`shown`], without asking anybody outside: a custom resource of another version that only a webhook converts stays as
/// it is.
///
/// TODO-correctness: expressions of policies and match conditions see such an object in the request's version.
pub fn shown_now(kind: &Kind, object_type: Option<(&str, &str, &str)>, object: &Value) -> Value {
    match (object_type, &kind.definition) {
        (None, Some(definition)) if object.is_object() => custom::relabelled(definition, object.clone()),
        (None, None) if object.is_object() => to_own_version(kind, object.clone()),
        _ => object.clone(),
    }
}

/// A cached object in the version of `kind`; shared where it is in that version already.
pub async fn seen(cache: &WatchCache, kind: &Kind, object: &Arc<Object>) -> ApiResult<Arc<Object>> {
    let seen = seen_all(cache, kind, vec![object.clone()]).await?;
    Ok(seen.into_iter().next().unwrap_or_else(|| object.clone()))
}

/// Cached objects in the version of `kind`.
pub async fn seen_all(
    cache: &WatchCache,
    kind: &Kind,
    objects: Vec<Arc<Object>>,
) -> ApiResult<Vec<Arc<Object>>> {
    if let Some(definition) = &kind.definition {
        return custom::seen(cache, definition, objects).await;
    }
    if is_stored_as_is(kind) {
        return Ok(objects);
    }
    Ok(objects.iter().map(|object| in_own_version(kind, object)).collect())
}

/// Changes as watchers of this kind and version see them.
pub async fn seen_changes(cache: &WatchCache, kind: &Kind, changes: Vec<Changed>) -> ApiResult<Vec<Changed>> {
    let objects = changes.iter().flat_map(|c| c.new.iter().chain(&c.old)).cloned().collect();
    let mut seen = seen_all(cache, kind, objects).await?.into_iter();
    let see = |change: Changed| Changed {
        revision: change.revision,
        new: change.new.and_then(|_| seen.next()),
        old: change.old.and_then(|_| seen.next()),
    };
    Ok(changes.into_iter().map(see).collect())
}

fn in_own_version(kind: &Kind, object: &Arc<Object>) -> Arc<Object> {
    if is_stored_as_is(kind) || object.api_version() == kind.api_version() {
        return object.clone();
    }
    let tree = to_own_version(kind, object.to_value());
    match Object::from_json(codec::encode_json(&tree).into(), object.revision()) {
        Ok(converted) => {
            converted.set_fields_of(object);
            Arc::new(converted)
        }
        // a converted object is made of what could be read: this cannot fail
        Err(_) => object.clone(),
    }
}

fn to_version(mut object: Value, version: &str) -> Value {
    match version {
        "v1" => rename(&mut object, EVENT_FIELDS.iter().map(|(core, new)| (*new, *core))),
        "events.k8s.io/v1" => rename(&mut object, EVENT_FIELDS.iter().copied()),
        "autoscaling/v2" => metrics_of_v1(&mut object),
        "autoscaling/v1" => v1_of_metrics(&mut object),
        _ => {}
    }
    object["apiVersion"] = json!(version);
    let (group, short) = version.split_once('/').unwrap_or(("", version));
    let name = object["kind"].as_str().unwrap_or_default();
    let Some(kind) = api::kinds::by_kind(group, short, name) else { return object };
    // the fields that this version always prints
    match codec::decode_value(object.clone(), kind.shape()) {
        Ok(decoded) => decoded.value,
        Err(error) => {
            tracing::error!(%error, version, "an object cannot be shown in this version");
            object
        }
    }
}

fn rename<'a>(object: &mut Value, names: impl Iterator<Item = (&'a str, &'a str)>) {
    let Some(map) = object.as_object_mut() else { return };
    for (from, to) in names {
        if let Some(value) = map.remove(from) {
            map.insert(to.to_owned(), value);
        }
    }
}

fn cpu_utilization(list: &Value, amount: &str) -> Option<i64> {
    let metric =
        list.as_array()?.iter().find(|m| m["type"] == "Resource" && m["resource"]["name"] == "cpu")?;
    metric["resource"][amount]["averageUtilization"].as_i64()
}

/// `v2` to `v1`: the share of CPU has a field, everything else becomes annotations.
fn v1_of_metrics(object: &mut Value) {
    let target = cpu_utilization(&object["spec"]["metrics"], "target");
    let current = cpu_utilization(&object["status"]["currentMetrics"], "current");
    for (note, path) in AUTOSCALER_NOTES {
        let part = object.get_mut(path[0]).and_then(Value::as_object_mut);
        let Some(value) = part.and_then(|p| p.remove(path[1])) else { continue };
        let rest = match value {
            Value::Array(items) if path[1] != "conditions" => {
                let other = |m: &Value| m["type"] != "Resource" || m["resource"]["name"] != "cpu";
                let items: Vec<Value> = items.into_iter().filter(other).collect();
                Value::Array(items)
            }
            other => other,
        };
        let is_empty = rest.is_null() || rest.as_array().is_some_and(Vec::is_empty);
        if !is_empty {
            let annotations = meta::child_mut(meta::metadata_mut(object), "annotations");
            annotations.insert((*note).to_owned(), json!(noted(path[1], &rest)));
        }
    }
    if let Some(target) = target {
        object["spec"]["targetCPUUtilizationPercentage"] = json!(target);
    }
    if let Some(current) = current {
        object["status"]["currentCPUUtilizationPercentage"] = json!(current);
    }
}

/// A part of a `v2` autoscaler as the annotation of a `v1` one says it: behaviour by the names of the internal type,
/// metrics in the flat form of the first versions.
fn noted(part: &str, value: &Value) -> String {
    let flat =
        |list: &Value| json!(list.as_array().into_iter().flatten().map(flat_metric).collect::<Vec<_>>());
    match part {
        "behavior" => internal::show("HorizontalPodAutoscalerBehavior", value),
        "metrics" => internal::show_list("MetricSpecV1", &flat(value)),
        "currentMetrics" => internal::show_list("MetricStatusV1", &flat(value)),
        _ => internal::show_list("HorizontalPodAutoscalerConditionV1", value),
    }
}

/// (kind of source, amount of the target in `v2`, flat field in a spec, flat field in a status).
const FLAT: &[(&str, &str, &str, &str)] = &[
    ("object", "value", "targetValue", "currentValue"),
    ("object", "averageValue", "averageValue", "averageValue"),
    ("pods", "averageValue", "targetAverageValue", "currentAverageValue"),
    ("resource", "averageUtilization", "targetAverageUtilization", "currentAverageUtilization"),
    ("resource", "averageValue", "targetAverageValue", "currentAverageValue"),
    ("containerResource", "averageUtilization", "targetAverageUtilization", "currentAverageUtilization"),
    ("containerResource", "averageValue", "targetAverageValue", "currentAverageValue"),
    ("external", "value", "targetValue", "currentValue"),
    ("external", "averageValue", "targetAverageValue", "currentAverageValue"),
];

fn flat_metric(metric: &Value) -> Value {
    let mut flat = json!({"type": metric["type"]});
    for (kind, source) in metric.as_object().into_iter().flatten().filter(|(_, s)| s.is_object()) {
        let mut part = json!({});
        for (_, amount, in_spec, in_status) in FLAT.iter().filter(|(of, ..)| of == kind) {
            for (place, name) in [("target", in_spec), ("current", in_status)] {
                if let Some(value) = source[place].get(*amount) {
                    part[*name] = value.clone();
                }
            }
        }
        let selector = if kind == "external" { "metricSelector" } else { "selector" };
        for (from, to) in [
            (&source["name"], "name"),
            (&source["container"], "container"),
            (&source["metric"]["name"], "metricName"),
            (&source["metric"]["selector"], selector),
            (&source["describedObject"], "target"),
        ] {
            if !from.is_null() {
                part[to] = from.clone();
            }
        }
        flat[kind] = part;
    }
    flat
}

/// The reverse of [`noted`].
fn from_note(part: &str, value: Value) -> Value {
    match part {
        "behavior" => small_names(value),
        "metrics" | "currentMetrics" => {
            let place = if part == "metrics" { "target" } else { "current" };
            json!(value.as_array().into_iter().flatten().map(|m| deep_metric(m, place)).collect::<Vec<_>>())
        }
        _ => value,
    }
}

fn deep_metric(flat: &Value, place: &str) -> Value {
    let mut metric = json!({"type": flat["type"]});
    for (kind, part) in flat.as_object().into_iter().flatten().filter(|(_, p)| p.is_object()) {
        let mut source = json!({});
        for (_, amount, in_spec, in_status) in FLAT.iter().filter(|(of, ..)| of == kind) {
            let name = if place == "target" { in_spec } else { in_status };
            if let Some(value) = part.get(*name).filter(|v| !v.is_null()) {
                source[place][*amount] = value.clone();
                if place == "target" {
                    let word = match *amount {
                        "averageUtilization" => "Utilization",
                        "averageValue" => "AverageValue",
                        _ => "Value",
                    };
                    source[place]["type"] = json!(word);
                }
            }
        }
        for (from, to) in [("name", "name"), ("container", "container"), ("target", "describedObject")] {
            if let Some(value) = part.get(from) {
                source[to] = value.clone();
            }
        }
        for (from, to) in [("metricName", "name"), ("selector", "selector"), ("metricSelector", "selector")] {
            if let Some(value) = part.get(from) {
                source["metric"][to] = value.clone();
            }
        }
        metric[kind] = source;
    }
    metric
}

/// Members by their JSON names; what is null is left out.
fn small_names(value: Value) -> Value {
    match value {
        Value::Array(list) => Value::Array(list.into_iter().map(small_names).collect()),
        Value::Object(map) => Value::Object(
            map.into_iter()
                .filter(|(_, v)| !v.is_null())
                .map(|(k, v)| (internal::json_name(&k), small_names(v)))
                .collect(),
        ),
        other => other,
    }
}

/// `v1` to `v2`: the reverse.
fn metrics_of_v1(object: &mut Value) {
    let take = |object: &mut Value, part: &str, field: &str| {
        object
            .get_mut(part)
            .and_then(Value::as_object_mut)
            .and_then(|p| p.remove(field))
            .and_then(|v| v.as_i64())
    };
    let target = take(object, "spec", "targetCPUUtilizationPercentage");
    let current = take(object, "status", "currentCPUUtilizationPercentage");
    let cpu = |amount: &str, value: Value| {
        let mut resource = Map::new();
        resource.insert("name".to_owned(), json!("cpu"));
        resource.insert(amount.to_owned(), value);
        json!({"type": "Resource", "resource": resource})
    };
    for (note, path) in AUTOSCALER_NOTES {
        let mut value = Value::Null;
        if let Some(annotations) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut)
            && let Some(Value::String(text)) = annotations.remove(*note)
        {
            // what is no JSON was never written by a conversion
            value = from_note(path[1], serde_json::from_str(&text).unwrap_or_default());
        }
        let own = match (path[1], target, current) {
            ("metrics", Some(t), _) => {
                Some(cpu("target", json!({"type": "Utilization", "averageUtilization": t})))
            }
            ("currentMetrics", _, Some(c)) => Some(cpu("current", json!({"averageUtilization": c}))),
            _ => None,
        };
        if let Some(own) = own {
            match value.as_array_mut() {
                Some(items) => items.push(own),
                None => value = json!([own]),
            }
        }
        if !value.is_null() {
            object[path[0]][path[1]] = value;
        }
    }
    let empty = object.pointer("/metadata/annotations").and_then(Value::as_object).is_some_and(Map::is_empty);
    if empty {
        meta::metadata_mut(object).remove("annotations");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(group: &str, version: &str, plural: &str) -> &'static Kind {
        api::kinds::find(group, version, plural).unwrap()
    }

    #[test]
    fn an_event_of_the_newer_group_is_stored_as_a_core_event() {
        let newer = kind("events.k8s.io", "v1", "events");
        let event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"},
            "regarding": {"name": "p"}, "note": "n", "reportingController": "c"});
        let stored = to_version(event, &newer.storage_version);
        assert_eq!(stored["apiVersion"], "v1");
        assert_eq!((&stored["involvedObject"]["name"], &stored["message"]), (&json!("p"), &json!("n")));
        assert_eq!(stored["reportingComponent"], "c");
        let back = to_own_version(newer, stored);
        assert_eq!((&back["regarding"]["name"], &back["note"]), (&json!("p"), &json!("n")));
        assert!(back.get("message").is_none());
    }

    #[test]
    fn an_older_autoscaler_keeps_everything_on_its_way_there_and_back() {
        let older = kind("autoscaling", "v1", "horizontalpodautoscalers");
        let metrics = json!([
            {"type": "Pods", "pods": {"metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "1"}}},
            {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}]);
        let stored = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "h"}, "spec": {"maxReplicas": 3, "metrics": metrics,
                "scaleTargetRef": {"kind": "Deployment", "name": "d"}}});
        let shown = to_own_version(older, stored.clone());
        assert_eq!(shown["spec"]["targetCPUUtilizationPercentage"], 50);
        assert!(shown["spec"].get("metrics").is_none());
        let back = to_version(shown, &older.storage_version);
        assert_eq!(back["spec"]["metrics"], stored["spec"]["metrics"]);
        assert!(back["metadata"].get("annotations").is_none());
    }
}
