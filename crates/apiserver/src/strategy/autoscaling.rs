//! Metrics and behaviour of horizontal pod autoscalers.

use api::field::{Cursor, ErrorList};
use api::names;
use serde_json::{Value, json};

use super::{quantities, resources, texts};

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
fn metric(at: &Cursor<'_>, errors: &mut ErrorList) {
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
            let resource = source.key("name");
            if resource.str().is_empty() {
                errors.required(&resource.path, "must specify a resource name");
            } else if kind == "ContainerResource" {
                resources::of_container(&resource.path, resource.str(), errors);
            }
            let container = source.key("container");
            if kind == "ContainerResource" && container.str().is_empty() {
                errors.required(&container.path, "must specify a container");
            } else if kind == "ContainerResource" {
                errors.invalid_all(&container.path, container.json(), names::dns1123_label(container.str()));
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
            let object = source.key("describedObject");
            texts::kind_and_name(&object, errors);
            if let Some(complaint) = version_complaint(object.key("apiVersion").str(), true) {
                let version = object.key("apiVersion");
                errors.invalid(&version.path, &json!(version.str()), &complaint);
            }
            name(source, errors);
            values(&target, errors);
            either(&target, "must set either a target value or averageValue", errors);
        }
        "External" => {
            name(source, errors);
            values(&target, errors);
            let why = "must set either a target value for metric or a per-pod target";
            either(&target, why, errors);
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

fn either(target: &Cursor<'_>, why: &str, errors: &mut ErrorList) {
    if !target.key("value").exists() && !target.key("averageValue").exists() {
        errors.required(&target.key("averageValue").path, why);
    }
}

/// What is wrong with the version of an object; only some kinds may be of no group.
fn version_complaint(version: &str, may_lack_group: bool) -> Option<String> {
    match version.split('/').collect::<Vec<_>>()[..] {
        [_, _, _, ..] => Some(format!("unexpected GroupVersion string: {version}")),
        [group, _] if !group.is_empty() => None,
        _ if may_lack_group => None,
        _ => Some("apiVersion must specify API group".to_owned()),
    }
}

fn target_complaint(spec: &Value) -> Option<String> {
    let target = &spec["scaleTargetRef"];
    // the one kind of the core group that can be scaled
    let may_lack_group = target["kind"] == "ReplicationController";
    version_complaint(target["apiVersion"].as_str().unwrap_or_default(), may_lack_group)
}

/// An autoscaler; the version of its target is not looked at where `old`, what it was, had a bad one already.
pub(super) fn validate(o: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let spec = Cursor::root(o).key("spec");
    let (min, max) = (spec.key("minReplicas"), spec.key("maxReplicas"));
    let least = i64::from(old.is_none_or(|old| old["spec"]["minReplicas"] != json!(0)));
    if min.i64().is_some_and(|n| n < least) {
        errors.invalid(&min.path, min.json(), &format!("must be greater than or equal to {least}"));
    }
    let most = max.i64().unwrap_or_default();
    if most < 1 {
        errors.invalid(&max.path, &json!(most), "must be greater than 0");
    }
    if min.i64().is_some_and(|n| most < n) {
        errors.invalid(&max.path, &json!(most), "must be greater than or equal to `minReplicas`");
    }
    let target = spec.key("scaleTargetRef");
    texts::kind_and_name(&target, errors);
    let was_bad = old.is_some_and(|old| target_complaint(&old["spec"]).is_some());
    if let Some(complaint) = target_complaint(spec.json()).filter(|_| !was_bad) {
        let version = target.key("apiVersion");
        errors.invalid(&version.path, &json!(version.str()), &complaint);
    }
    let metrics = spec.key("metrics");
    metrics.items().for_each(|m| metric(&m, errors));
    let is_global = |m: &Cursor<'_>| matches!(m.key("type").str(), "Object" | "External");
    if min.i64() == Some(0) && !metrics.items().any(|m| is_global(&m)) {
        let why = "must specify at least one Object or External metric to support scaling to zero replicas";
        errors.forbidden(&metrics.path, why);
    }
    behavior(&spec.key("behavior"), errors);
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
fn behavior(at: &Cursor<'_>, errors: &mut ErrorList) {
    for direction in ["scaleUp", "scaleDown"] {
        let rules = at.key(direction);
        if !rules.exists() {
            continue;
        }
        let window = rules.key("stabilizationWindowSeconds");
        if let Some(seconds) = window.i64() {
            if seconds < 0 {
                errors.invalid(&window.path, window.json(), "must be greater than or equal to zero");
            } else if seconds > 3600 {
                errors.invalid(&window.path, window.json(), "must be less than or equal to 3600");
            }
        }
        let select = rules.key("selectPolicy");
        if select.exists() && !matches!(select.str(), "Max" | "Min" | "Disabled") {
            errors.not_supported(&select.path, select.json(), &["Disabled", "Max", "Min"]);
        }
        if rules.key("policies").is_empty() {
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
        if rules.key("tolerance").exists() {
            quantities::non_negative(&rules.key("tolerance").path, rules.key("tolerance").json(), errors);
        }
    }
}
