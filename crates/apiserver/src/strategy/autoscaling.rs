//! Metrics and behaviour of horizontal pod autoscalers.

use api::field::{Cursor, ErrorList};
use api::names;
use serde_json::{Value, json};

use super::quantities;

const KINDS: [&str; 5] = ["ContainerResource", "External", "Object", "Pods", "Resource"];

/// The sources in the order in which the reference looks at them: type, field.
const SOURCES: [(&str, &str); 5] = [
    ("Object", "object"),
    ("External", "external"),
    ("Pods", "pods"),
    ("Resource", "resource"),
    ("ContainerResource", "containerResource"),
];

/// One metric.
pub(super) fn metric(at: &Cursor<'_>, errors: &mut ErrorList) {
    let kind = at.key("type");
    if kind.str().is_empty() {
        errors.required(&kind.path, "must specify a metric source type");
    }
    if !KINDS.contains(&kind.str()) {
        errors.not_supported(&kind.path, &json!(kind.str()), &KINDS);
    }
    let given: Vec<(&str, &str)> = SOURCES.into_iter().filter(|(_, f)| at.key(f).exists()).collect();
    if let Some((kind, field)) = given.first() {
        source(kind, &at.key(field), errors);
    }
    let Some((_, wanted)) = SOURCES.into_iter().find(|(k, _)| *k == kind.str()) else {
        return errors.not_supported(&kind.path, &json!(kind.str()), &KINDS);
    };
    if !at.key(wanted).exists() {
        errors.required(&at.key(wanted).path, "must populate information for the given metric source");
    }
    if given.len() != 1 {
        for (_, field) in given.iter().filter(|(_, f)| *f != wanted) {
            errors.forbidden(&at.key(field).path, "must populate the given metric source only");
        }
    }
}

fn source(kind: &str, source: &Cursor<'_>, errors: &mut ErrorList) {
    let target = source.key("target");
    match kind {
        "ContainerResource" | "Resource" => {
            if source.key("name").str().is_empty() {
                errors.required(&source.key("name").path, "must specify a resource name");
            }
            if kind == "ContainerResource" && source.key("container").str().is_empty() {
                errors.required(&source.key("container").path, "must specify a container");
            }
            values(&target, errors);
            let (percent, raw) = (target.key("averageUtilization"), target.key("averageValue"));
            if !percent.exists() && !raw.exists() {
                errors.required(&percent.path, "must set either a target raw value or a target utilization");
            }
            if percent.exists() && raw.exists() {
                errors.forbidden(&raw.path, "may not set both a target raw value and a target utilization");
            }
        }
        "Object" => {
            for key in ["kind", "name"] {
                let part = source.key("describedObject").key(key);
                if part.str().is_empty() {
                    errors.required(&part.path, "");
                }
            }
            name(source, errors);
            values(&target, errors);
            either(&target, errors);
        }
        "External" => {
            name(source, errors);
            values(&target, errors);
            either(&target, errors);
            let value = target.key("value");
            if value.exists() && target.key("averageValue").exists() {
                let why = "may not set both a target value for metric and a per-pod target";
                errors.forbidden(&value.path, why);
            }
        }
        _ => {
            name(source, errors);
            values(&target, errors);
            if !target.key("averageValue").exists() {
                let why = "must specify a positive target averageValue";
                errors.required(&target.key("averageValue").path, why);
            }
        }
    }
}

fn name(source: &Cursor<'_>, errors: &mut ErrorList) {
    let name = source.key("metric").key("name");
    if name.str().is_empty() {
        errors.required(&name.path, "must specify a metric name");
    } else {
        errors.invalid_all(&name.path, name.json(), names::path_segment(name.str()));
    }
}

fn either(target: &Cursor<'_>, errors: &mut ErrorList) {
    if !target.key("value").exists() && !target.key("averageValue").exists() {
        errors.required(
            &target.key("averageValue").path,
            "must set either a target value for metric or a per-pod target",
        );
    }
}

fn values(target: &Cursor<'_>, errors: &mut ErrorList) {
    let kind = target.key("type");
    if kind.str().is_empty() {
        errors.required(&kind.path, "must specify a metric target type");
    }
    if !matches!(kind.str(), "Utilization" | "Value" | "AverageValue") {
        errors.invalid(&kind.path, &json!(kind.str()), "must be either Utilization, Value, or AverageValue");
    }
    for key in ["value", "averageValue"] {
        let at = target.key(key);
        if at.value.and_then(quantities::parse).is_some_and(|q| q.signum() <= 0) {
            errors.invalid(&at.path, &quantities::show(at.json()), "must be positive");
        }
    }
    let percent = target.key("averageUtilization");
    if percent.i64().is_some_and(|n| n < 1) {
        errors.invalid(&percent.path, percent.json(), "must be greater than 0");
    }
}

/// How fast to scale.
pub(super) fn behavior(at: &Cursor<'_>, errors: &mut ErrorList) {
    for direction in ["scaleUp", "scaleDown"] {
        let rules = at.key(direction);
        if !rules.exists() {
            continue;
        }
        let window = rules.key("stabilizationWindowSeconds");
        if let Some(seconds) = window.i64() {
            if seconds < 0 {
                errors.invalid(&window.path, window.json(), "must be greater than or equal to 0");
            } else if seconds > 3600 {
                errors.invalid(&window.path, window.json(), "must be less than or equal to 3600");
            }
        }
        let select = rules.key("selectPolicy");
        if select.exists() && !matches!(select.str(), "Max" | "Min" | "Disabled") {
            errors.not_supported(&select.path, select.json(), &["Disabled", "Max", "Min"]);
        }
        if rules.key("tolerance").exists() {
            quantities::non_negative(&rules.key("tolerance").path, rules.key("tolerance").json(), errors);
        }
        if rules.key("policies").value.and_then(Value::as_array).is_some_and(Vec::is_empty) {
            errors.required(&rules.key("policies").path, "must specify at least one Policy");
        }
        for policy in rules.key("policies").items() {
            let kind = policy.key("type");
            if !matches!(kind.str(), "Pods" | "Percent") {
                errors.not_supported(&kind.path, kind.json(), &["Percent", "Pods"]);
            }
            for key in ["value", "periodSeconds"] {
                let number = policy.key(key);
                if number.i64().unwrap_or_default() <= 0 {
                    errors.invalid(
                        &number.path,
                        &json!(number.i64().unwrap_or_default()),
                        "must be greater than zero",
                    );
                }
            }
            let period = policy.key("periodSeconds");
            if period.i64().is_some_and(|s| s > 1800) {
                errors.invalid(&period.path, period.json(), "must be less than or equal to 1800");
            }
        }
    }
}
