//! Limit ranges and resource quotas.

use api::field::{Cursor, ErrorList};
use api::names;
use api::quantity::Quantity;
use serde_json::{Value, json};

use super::quantities;

const CONTAINER_RESOURCES: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// Whether a resource name is one of the standard ones or fully qualified.
pub(super) fn resource_name(path: &str, name: &str, errors: &mut ErrorList) {
    errors.invalid_all(path, &json!(name), names::qualified_name(name));
    if !name.contains('/') && !is_standard(name) {
        errors.invalid(path, &json!(name), "must be a standard resource type or fully qualified");
    }
}

fn is_standard(name: &str) -> bool {
    CONTAINER_RESOURCES.contains(&name)
        || name.starts_with("hugepages-")
        || name.starts_with("requests.")
        || name.starts_with("limits.")
        || is_quota(name)
        || name == "storage"
}

fn is_quota(name: &str) -> bool {
    matches!(
        name,
        "pods"
            | "services"
            | "replicationcontrollers"
            | "resourcequotas"
            | "secrets"
            | "configmaps"
            | "persistentvolumeclaims"
            | "services.nodeports"
            | "services.loadbalancers"
    ) || CONTAINER_RESOURCES.contains(&name)
        || matches!(
            name,
            "requests.cpu"
                | "requests.memory"
                | "requests.storage"
                | "requests.ephemeral-storage"
                | "limits.cpu"
                | "limits.memory"
                | "limits.ephemeral-storage"
        )
        || name.starts_with("hugepages-")
        || name.starts_with("requests.hugepages-")
}

/// Resources that are counted, not measured.
fn is_counted(name: &str) -> bool {
    matches!(
        name,
        "pods"
            | "services"
            | "replicationcontrollers"
            | "resourcequotas"
            | "secrets"
            | "configmaps"
            | "persistentvolumeclaims"
            | "services.nodeports"
            | "services.loadbalancers"
    )
}

fn quantity<'a>(item: &Cursor<'a>, list: &str, name: &str) -> Option<(Quantity, &'a Value)> {
    let value = item.key(list).key(name);
    Some((quantities::parse(value.json())?, value.value?))
}

pub(super) fn limit_range(o: &Value, errors: &mut ErrorList) {
    let mut seen = std::collections::BTreeSet::new();
    for item in Cursor::root(o).key("spec").key("limits").items() {
        let kind = item.key("type");
        errors.invalid_all(&kind.path, kind.json(), names::qualified_name(kind.str()));
        if !kind.str().contains('/') && !matches!(kind.str(), "Pod" | "Container" | "PersistentVolumeClaim") {
            errors.invalid(&kind.path, kind.json(), "must be a standard limit type or fully qualified");
        }
        if !seen.insert(kind.str()) {
            errors.duplicate(&kind.path, kind.json());
        }
        for list in ["max", "min"] {
            names_of(&item, list, errors);
        }
        if kind.str() == "Pod" {
            for list in ["default", "defaultRequest"] {
                if !item.key(list).is_empty() {
                    errors.forbidden(
                        &format!("{}.{list}", item.path),
                        "may not be specified when `type` is 'Pod'",
                    );
                }
            }
        } else {
            for list in ["default", "defaultRequest"] {
                names_of(&item, list, errors);
            }
        }
        names_of(&item, "maxLimitRequestRatio", errors);
        if kind.str() == "PersistentVolumeClaim"
            && !item.key("max").key("storage").exists()
            && !item.key("min").key("storage").exists()
        {
            errors.required(
                &format!("{}.limits", item.path),
                "either minimum or maximum storage value is required, but neither was provided",
            );
        }
        let lists = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];
        let all: std::collections::BTreeSet<&str> =
            lists.iter().flat_map(|l| item.key(l).entries().map(|(k, _)| k).collect::<Vec<_>>()).collect();
        for name in all {
            order(&item, name, errors);
        }
    }
}

fn names_of(item: &Cursor<'_>, list: &str, errors: &mut ErrorList) {
    for (name, at) in item.key(list).entries() {
        resource_name(&at.path, name, errors);
        let standard =
            CONTAINER_RESOURCES.contains(&name) || name.starts_with("hugepages-") || name.contains('/');
        if item.key("type").str() == "Container" && !standard {
            errors.invalid(&at.path, &json!(name), "must be a standard resource for containers");
        }
    }
}

/// min ≤ default request ≤ default ≤ max.
fn order(item: &Cursor<'_>, name: &str, errors: &mut ErrorList) {
    let get = |list: &str| quantity(item, list, name).map(|(q, _)| q);
    let (max, min, default, request) = (get("max"), get("min"), get("default"), get("defaultRequest"));
    let mut above =
        |list: &str, shown: &Quantity, low: &Quantity, low_words: &str, high: &Quantity, high_words: &str| {
            if low > high {
                errors.invalid(
                    &format!("{}.{list}[{name}]", item.path),
                    &json!(shown.to_string()),
                    &format!("{low_words} {low} is greater than {high_words} {high}"),
                );
            }
        };
    if let (Some(min), Some(max)) = (&min, &max) {
        above("min", min, min, "min value", max, "max value");
    }
    if let (Some(request), Some(min)) = (&request, &min) {
        above("defaultRequest", request, min, "min value", request, "default request value");
    }
    if let (Some(request), Some(max)) = (&request, &max) {
        above("defaultRequest", request, request, "default request value", max, "max value");
    }
    if let (Some(request), Some(default)) = (&request, &default) {
        above("defaultRequest", request, request, "default request value", default, "default limit value");
    }
    if let (Some(default), Some(min)) = (&default, &min) {
        above("default", min, min, "min value", default, "default value");
    }
    if let (Some(default), Some(max)) = (&default, &max) {
        above("default", max, default, "default value", max, "max value");
    }
    if let Some((ratio, value)) = quantity(item, "maxLimitRequestRatio", name)
        && ratio < Quantity::from_millis(1000)
    {
        errors.invalid(
            &format!("{}.maxLimitRequestRatio[{name}]", item.path),
            &quantities::show(value),
            &format!("ratio {ratio} is less than 1"),
        );
    }
}

const SCOPES: [&str; 7] = [
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "CrossNamespacePodAffinity",
    "VolumeAttributesClass",
];

pub(super) fn resource_quota(o: &Value, errors: &mut ErrorList) {
    let spec = Cursor::root(o).key("spec");
    for (name, at) in spec.key("hard").entries() {
        resource_name(&at.path, name, errors);
        if !name.contains('/') && !is_quota(name) {
            errors.invalid(&at.path, &json!(name), "must be a standard resource for quota");
        }
        quantities::non_negative(&at.path, at.json(), errors);
        if is_counted(name) && quantities::parse(at.json()).is_some_and(|q| q.millis() % 1000 != 0) {
            errors.invalid(&at.path, &quantities::show(at.json()), "must be an integer");
        }
    }
    let scopes = spec.key("scopes");
    let given: Vec<&str> = scopes.items().filter_map(|s| s.value.and_then(Value::as_str)).collect();
    for scope in &given {
        if !SCOPES.contains(scope) {
            errors.invalid(&scopes.path, scopes.json(), "unsupported scope");
        }
    }
    for pair in [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]] {
        if pair.iter().all(|s| given.contains(s)) {
            errors.invalid(&scopes.path, scopes.json(), "conflicting scopes");
        }
    }
    let at = spec.key("scopeSelector").key("matchExpressions");
    for expression in at.items() {
        let (scope, operator) = (expression.key("scopeName").str(), expression.key("operator"));
        let path = format!("{}.operator", at.path);
        match operator.str() {
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {
                let exists_only = matches!(
                    scope,
                    "Terminating"
                        | "NotTerminating"
                        | "BestEffort"
                        | "NotBestEffort"
                        | "CrossNamespacePodAffinity"
                );
                if exists_only && operator.str() != "Exists" {
                    errors.invalid(&path, operator.json(), "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity");
                }
                let values = expression.key("values");
                if matches!(operator.str(), "In" | "NotIn") && !exists_only && values.is_empty() {
                    errors.required(
                        &format!("{}.values", at.path),
                        "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
                    );
                }
            }
            _ => errors.invalid(&path, operator.json(), "not a valid selector operator"),
        }
    }
}
