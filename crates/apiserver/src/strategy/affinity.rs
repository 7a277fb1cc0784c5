//! Affinities, spread constraints, tolerations.

use std::collections::BTreeSet;

use api::field::{Cursor, ErrorList};
use api::names;
use serde_json::json;

use super::label_selector;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// `spec.affinity`.
pub(super) fn validate(at: &Cursor<'_>, errors: &mut ErrorList) {
    let node = at.key("nodeAffinity");
    if node.key(REQUIRED).exists() {
        node_selector(&node.key(REQUIRED), errors);
    }
    for term in node.key(PREFERRED).items() {
        weight(&term, errors);
        node_term(&term.key("preference"), false, errors);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let pods = at.key(kind);
        for term in pods.key(REQUIRED).items() {
            pod_term(&term, errors);
        }
        for term in pods.key(PREFERRED).items() {
            weight(&term, errors);
            pod_term(&term.key("podAffinityTerm"), errors);
        }
    }
}

fn weight(term: &Cursor<'_>, errors: &mut ErrorList) {
    let weight = term.key("weight").i64().unwrap_or_default();
    if !(1..=100).contains(&weight) {
        errors.invalid(&term.key("weight").path, &json!(weight), "must be in the range 1-100");
    }
}

/// A node selector; volumes have them too.
pub(super) fn node_selector(at: &Cursor<'_>, errors: &mut ErrorList) {
    let terms = at.key("nodeSelectorTerms");
    if terms.is_empty() {
        errors.required(&terms.path, "must have at least one node selector term");
    }
    for term in terms.items() {
        node_term(&term, true, errors);
    }
}

/// `values`: whether the values have to be label values.
fn node_term(term: &Cursor<'_>, values: bool, errors: &mut ErrorList) {
    for requirement in term.key("matchExpressions").items() {
        node_requirement(&requirement, values, errors);
    }
    for requirement in term.key("matchFields").items() {
        let (key, operator, values) =
            (requirement.key("key"), requirement.key("operator"), requirement.key("values"));
        match operator.str() {
            "In" | "NotIn" => {
                if values.len() != 1 {
                    errors.required(
                        &values.path,
                        "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
                    );
                }
            }
            _ => errors.invalid(&operator.path, &json!(operator.str()), "not a valid selector operator"),
        }
        if key.str() == "metadata.name" {
            for value in values.items() {
                errors.invalid_all(&value.path, value.json(), names::dns1123_subdomain(value.str()));
            }
        } else {
            errors.invalid(&key.path, &json!(key.str()), "not a valid field selector key");
        }
    }
}

fn node_requirement(at: &Cursor<'_>, check_values: bool, errors: &mut ErrorList) {
    let (key, operator, values) = (at.key("key"), at.key("operator"), at.key("values"));
    match operator.str() {
        "In" | "NotIn" => {
            if values.is_empty() {
                errors.required(&values.path, "must be specified when `operator` is 'In' or 'NotIn'");
            }
        }
        "Exists" | "DoesNotExist" => {
            if !values.is_empty() {
                errors.forbidden(
                    &values.path,
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                );
            }
        }
        "Gt" | "Lt" => {
            if values.len() != 1 {
                errors
                    .required(&values.path, "must be specified single value when `operator` is 'Lt' or 'Gt'");
            }
        }
        _ => errors.invalid(&operator.path, &json!(operator.str()), "not a valid selector operator"),
    }
    errors.invalid_all(&key.path, &json!(key.str()), names::qualified_name(key.str()));
    for value in values.items().filter(|_| check_values) {
        errors.invalid_all(&value.path, value.json(), names::label_value(value.str()));
    }
}

fn pod_term(term: &Cursor<'_>, errors: &mut ErrorList) {
    label_selector::validate(&term.key("labelSelector"), errors);
    label_selector::validate(&term.key("namespaceSelector"), errors);
    for namespace in term.key("namespaces").items() {
        // The path names the list's single member in the reference.
        errors.invalid_all(
            &term.key("namespace").path,
            namespace.json(),
            names::dns1123_label(namespace.str()),
        );
    }
    match_label_keys(term, errors);
    let key = term.key("topologyKey");
    if key.str().is_empty() {
        errors.required(&key.path, "can not be empty");
    }
    errors.invalid_all(&key.path, &json!(key.str()), names::qualified_name(key.str()));
}

/// Keys whose values come from the pod's own labels. They have joined the selector by now: one that the selector names
/// besides stands there twice.
fn match_label_keys(term: &Cursor<'_>, errors: &mut ErrorList) {
    let selector = term.key("labelSelector");
    let (same, others) = (term.key("matchLabelKeys"), term.key("mismatchLabelKeys"));
    for keys in [&same, &others].into_iter().filter(|keys| !keys.is_empty()) {
        if !selector.exists() {
            errors.forbidden(&keys.path, "must not be specified when labelSelector is not set");
            continue;
        }
        for key in keys.items() {
            errors.invalid_all(&key.path, key.json(), names::qualified_name(key.str()));
        }
    }
    let mut named: BTreeSet<&str> = selector.key("matchLabels").entries().map(|(key, _)| key).collect();
    for expression in selector.key("matchExpressions").items() {
        let key = expression.key("key").str();
        let asked = same.items().enumerate().filter(|(_, k)| k.str() == key).last();
        if let Some((i, _)) = asked.filter(|_| named.contains(key)) {
            // the index without its list
            let path = format!("{}[{i}]", term.path);
            errors.invalid(&path, &json!(key), "exists in both matchLabelKeys and labelSelector");
        }
        named.insert(key);
    }
    for key in same.items() {
        if others.items().any(|other| other.str() == key.str()) {
            errors.invalid(&key.path, key.json(), "exists in both matchLabelKeys and mismatchLabelKeys");
        }
    }
}

/// `spec.topologySpreadConstraints`.
pub(super) fn spread(list: &Cursor<'_>, errors: &mut ErrorList) {
    for (i, c) in list.items().enumerate() {
        let skew = c.key("maxSkew").i64().unwrap_or_default();
        if skew <= 0 {
            errors.invalid(&c.key("maxSkew").path, &json!(skew), "must be greater than zero");
        }
        let key = c.key("topologyKey");
        if key.str().is_empty() {
            errors.required(&key.path, "can not be empty");
        }
        let when = c.key("whenUnsatisfiable");
        if !matches!(when.str(), "DoNotSchedule" | "ScheduleAnyway") {
            errors.not_supported(&when.path, &json!(when.str()), &["DoNotSchedule", "ScheduleAnyway"]);
        }
        // told of the first of them
        let same = |other: &Cursor<'_>| {
            other.key("topologyKey").str() == key.str() && other.key("whenUnsatisfiable").str() == when.str()
        };
        if list.items().skip(i + 1).any(|other| same(&other)) {
            let pair = format!("{{{}, {}}}", key.str(), when.str());
            errors.duplicate(&c.key("{topologyKey, whenUnsatisfiable}").path, &json!(pair));
        }
        let domains = c.key("minDomains");
        if let Some(n) = domains.i64() {
            if n <= 0 {
                errors.invalid(&domains.path, domains.json(), "must be greater than zero");
            }
            if when.str() != "DoNotSchedule" {
                errors.invalid(
                    &domains.path,
                    domains.json(),
                    &format!(
                        "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {}",
                        when.str()
                    ),
                );
            }
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            let at = c.key(policy);
            if at.exists() && !matches!(at.str(), "Honor" | "Ignore") {
                errors.not_supported(&at.path, at.json(), &["Honor", "Ignore"]);
            }
        }
        match_label_keys(&c, errors);
        label_selector::validate(&c.key("labelSelector"), errors);
    }
}

/// One toleration.
pub(super) fn toleration(t: &Cursor<'_>, errors: &mut ErrorList) {
    let (key, operator, value, effect) = (t.key("key"), t.key("operator"), t.key("value"), t.key("effect"));
    if !key.str().is_empty() {
        errors.invalid_all(&key.path, key.json(), names::qualified_name(key.str()));
    }
    if key.str().is_empty() && operator.str() != "Exists" {
        errors.invalid(
            &operator.path,
            &json!(operator.str()),
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
        );
    }
    if t.key("tolerationSeconds").exists() && effect.str() != "NoExecute" {
        errors.invalid(
            &effect.path,
            &json!(effect.str()),
            "effect must be 'NoExecute' when `tolerationSeconds` is set",
        );
    }
    match operator.str() {
        "Equal" | "" => {
            let messages = names::label_value(value.str());
            if !messages.is_empty() {
                errors.invalid(&operator.path, value.json(), &messages.join(";"));
            }
        }
        "Exists" => {
            if !value.str().is_empty() {
                let why = "value must be empty when `operator` is 'Exists'";
                errors.invalid(&operator.path, value.json(), why);
            }
        }
        // the feature TaintTolerationComparisonOperators is off
        _ => errors.not_supported(&operator.path, operator.json(), &["Equal", "Exists"]),
    }
    if !effect.str().is_empty() && !matches!(effect.str(), "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
        errors.not_supported(&effect.path, effect.json(), &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
    }
}
