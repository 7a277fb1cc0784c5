//! Access reviews: questions that are answered, not stored.

use api::field::{Cursor, ErrorList};
use api::names;
use serde_json::{Value, json};

use super::internal;

/// What a review asks, and nothing besides.
pub(crate) fn access(plural: &str, namespace: &str, review: &Value, errors: &mut ErrorList) {
    let spec = Cursor::root(review).key("spec");
    let (resource, other) = (spec.key("resourceAttributes"), spec.key("nonResourceAttributes"));
    let shown = internal::show("NonResourceAttributes", other.json());
    if resource.exists() && other.exists() {
        let why = "cannot be specified in combination with resourceAttributes";
        errors.invalid_shown(&other.path, &shown, why);
    }
    if !resource.exists() && !other.exists() {
        let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        errors.invalid_shown(&resource.path, "null", why);
    }
    if plural != "selfsubjectaccessreviews"
        && spec.key("user").str().is_empty()
        && spec.key("groups").is_empty()
    {
        errors.invalid("spec.user", &json!(""), "at least one of user or group must be specified");
    }
    for (key, is_label) in [("fieldSelector", false), ("labelSelector", true)] {
        if resource.key(key).exists() {
            selector(&resource.key(key), is_label, errors);
        }
    }
    let is_local = plural == "localsubjectaccessreviews";
    let meta = review["metadata"].as_object();
    let named = |key: &String, value: &Value| {
        !(key == "managedFields" || is_local && key == "namespace" || value.is_null() || value == "")
    };
    if meta.is_some_and(|m| m.iter().any(|(k, v)| named(k, v))) {
        let why = if is_local { "must be empty except for namespace" } else { "must be empty" };
        errors.invalid_shown("metadata", &internal::show("ObjectMeta", &review["metadata"]), why);
    }
    if is_local {
        let asked = resource.key("namespace");
        if resource.exists() && asked.str() != namespace {
            errors.invalid(&asked.path, &json!(asked.str()), "must match metadata.namespace");
        }
        if other.exists() {
            errors.invalid_shown(&other.path, &shown, "disallowed on this kind of request");
        }
    }
}

/// A selector of either form; operators of later versions are not refused.
fn selector(at: &Cursor<'_>, is_label: bool, errors: &mut ErrorList) {
    let (raw, list) = (at.key("rawSelector"), at.key("requirements"));
    if !raw.str().is_empty() && !list.is_empty() {
        errors.invalid(&raw.path, raw.json(), "may not specified at the same time as requirements");
    }
    if raw.str().is_empty() && list.is_empty() {
        let why = format!("when {} is specified, requirements or rawSelector is required", at.path);
        errors.required(&list.path, &why);
    }
    for requirement in list.items() {
        let (key, operator, values) =
            (requirement.key("key"), requirement.key("operator"), requirement.key("values"));
        if !is_label && key.str().is_empty() {
            errors.required(&key.path, "must be specified");
        }
        match operator.str() {
            "In" | "NotIn" if values.is_empty() => {
                errors.required(&values.path, "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.forbidden(&values.path, why);
            }
            _ => {}
        }
        if is_label {
            errors.invalid_all(&key.path, &json!(key.str()), names::qualified_name(key.str()));
            for value in values.items() {
                errors.invalid_all(&value.path, value.json(), names::label_value(value.str()));
            }
        }
    }
}
