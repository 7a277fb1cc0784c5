//! Limit ranges and resource quotas.

use api::field::{Cursor, ErrorList};
use api::names;
use api::quantity::Quantity;
use serde_json::{Value, json};

use super::quantities;

const CONTAINER_RESOURCES: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// Whether a resource name is one of the standard ones or fully qualified.
pub(super) fn resource_name(path: &str, name: &str, errors: &mut ErrorList) {
    let messages = names::qualified_name(name);
    let is_qualified = messages.is_empty();
    errors.invalid_all(path, &json!(name), messages);
    if is_qualified && !name.contains('/') && !is_quota(name) && name != "storage" {
        errors.invalid(path, &json!(name), "must be a standard resource type or fully qualified");
    }
}

/// Whether a quota can limit a resource of Kubernetes' own.
fn is_quota(name: &str) -> bool {
    let compute = name.strip_prefix("requests.").or(name.strip_prefix("limits.")).unwrap_or(name);
    is_counted(name)
        || CONTAINER_RESOURCES.contains(&compute)
        || name == "requests.storage"
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

/// Whether there are no parts of a resource.
pub(super) fn is_whole(name: &str) -> bool {
    is_counted(name) || api::quota::is_extended(name)
}

fn quantity<'a>(item: &Cursor<'a>, list: &str, name: &str) -> Option<(Quantity, &'a Value)> {
    let value = item.key(list).key(name);
    Some((quantities::parse(value.json())?, value.value?))
}

pub(super) fn limit_range(o: &Value, errors: &mut ErrorList) {
    let mut seen = std::collections::BTreeSet::new();
    for item in Cursor::root(o).key("spec").key("limits").items() {
        let kind = item.key("type");
        let messages = names::qualified_name(kind.str());
        let is_qualified = messages.is_empty();
        errors.invalid_all(&kind.path, &json!(kind.str()), messages);
        if is_qualified
            && !kind.str().contains('/')
            && !matches!(kind.str(), "Pod" | "Container" | "PersistentVolumeClaim")
        {
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
        if kind.str() == "PersistentVolumeClaim"
            && !item.key("max").key("storage").exists()
            && !item.key("min").key("storage").exists()
        {
            errors.required(
                &format!("{}.limits", item.path),
                "either minimum or maximum storage value is required, but neither was provided",
            );
        }
        names_of(&item, "maxLimitRequestRatio", errors);
        // of a pod's defaults nothing more is said
        let lists: &[&str] = if kind.str() == "Pod" {
            &["max", "min", "maxLimitRequestRatio"]
        } else {
            &["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"]
        };
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
        if !matches!(item.key("type").str(), "Container" | "Pod") {
            continue;
        }
        let is_standard = CONTAINER_RESOURCES.contains(&name) || name.starts_with("hugepages-");
        let is_native = name.contains("kubernetes.io/");
        if !name.contains('/') && !is_standard {
            errors.invalid(&at.path, &json!(name), "must be a standard resource for containers");
        } else if name.contains('/') && !is_native && !api::quota::is_extended(name) {
            errors.invalid(&at.path, &json!(name), "doesn't follow extended resource name standard");
        }
    }
}

/// min ≤ default request ≤ default ≤ max.
fn order(item: &Cursor<'_>, name: &str, errors: &mut ErrorList) {
    let get = |list: &str| quantity(item, list, name).map(|(q, _)| q);
    let of_defaults = |list: &str| get(list).filter(|_| item.key("type").str() != "Pod");
    let (max, min, default, request) =
        (get("max"), get("min"), of_defaults("default"), of_defaults("defaultRequest"));
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
    if let (Some((ratio, value)), Some(min), Some(max)) =
        (quantity(item, "maxLimitRequestRatio", name), &min, &max)
    {
        let limit = max.millis() as f64 / min.millis() as f64;
        if ratio.millis() as f64 / 1000.0 > limit {
            errors.invalid(
                &format!("{}.maxLimitRequestRatio[{name}]", item.path),
                &quantities::show(value),
                &format!("ratio {ratio} is greater than max/min = {limit:.6}"),
            );
        }
    }
    // what cannot be overcommitted is asked for as it is limited
    if (name.starts_with("hugepages-") || api::quota::is_extended(name))
        && let (Some(default), Some(request)) = (&default, &request)
        && default != request
    {
        errors.invalid(
            &format!("{}.defaultRequest[{name}]", item.path),
            &json!(request.to_string()),
            &format!("default value {default} must equal to defaultRequest value {request} in {name}"),
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

/// Amounts by the names of quotas' resources.
fn amounts_of_quota(list: &Cursor<'_>, errors: &mut ErrorList) {
    for (name, at) in list.entries() {
        resource_name(&at.path, name, errors);
        if !name.contains('/') && !is_quota(name) {
            errors.invalid(&at.path, &json!(name), "must be a standard resource for quota");
        }
        quantities::non_negative(&at.path, at.json(), errors);
        if is_whole(name) && quantities::parse(at.json()).is_some_and(|q| q.millis() % 1000 != 0) {
            errors.invalid(&at.path, &quantities::show(at.json()), "must be an integer");
        }
    }
}

/// Whether a scope can say something of the objects that use a resource.
fn is_scope_of(scope: &str, resource: &str) -> bool {
    let compute =
        || CONTAINER_RESOURCES[..2].contains(&resource.rsplit_once('.').map_or(resource, |(_, name)| name));
    match scope {
        "Terminating"
        | "NotTerminating"
        | "NotBestEffort"
        | "PriorityClass"
        | "CrossNamespacePodAffinity" => resource == "pods" || compute(),
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => matches!(resource, "persistentvolumeclaims" | "requests.storage"),
        _ => true,
    }
}

fn conflicts(given: &[&str]) -> usize {
    let pairs = [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]];
    pairs.iter().filter(|pair| pair.iter().all(|s| given.contains(s))).count()
}

/// Rules of a quota's status (new, old).
pub(super) fn resource_quota_status(new: &Value, _old: &Value, errors: &mut ErrorList) {
    let status = Cursor::root(new).key("status");
    amounts_of_quota(&status.key("hard"), errors);
    amounts_of_quota(&status.key("used"), errors);
}

pub(super) fn resource_quota(o: &Value, errors: &mut ErrorList) {
    let spec = Cursor::root(o).key("spec");
    amounts_of_quota(&spec.key("hard"), errors);
    let mut limited: Vec<&str> = spec.key("hard").entries().map(|(name, _)| name).collect();
    limited.retain(|name| is_quota(name));
    limited.sort_unstable();
    let foreign = |scope: &str| limited.iter().filter(|name| !is_scope_of(scope, name)).count();

    let scopes = spec.key("scopes");
    let given: Vec<&str> = scopes.items().filter_map(|s| s.value.and_then(Value::as_str)).collect();
    for scope in &given {
        if !SCOPES.contains(scope) {
            errors.invalid(&scopes.path, scopes.json(), "unsupported scope");
        }
        for _ in 0..foreign(scope) {
            errors.invalid(&scopes.path, scopes.json(), "unsupported scope applied to resource");
        }
    }
    for _ in 0..conflicts(&given) {
        errors.invalid(&scopes.path, scopes.json(), "conflicting scopes");
    }

    let selector = spec.key("scopeSelector");
    let at = selector.key("matchExpressions");
    for expression in at.items() {
        let (scope, operator) = (expression.key("scopeName"), expression.key("operator"));
        if !SCOPES.contains(&scope.str()) {
            errors.invalid(&format!("{}.scopeName", at.path), scope.json(), "unsupported scope");
        }
        for _ in 0..foreign(scope.str()) {
            let shown = super::internal::show("ScopeSelector", selector.json());
            errors.invalid_shown(&at.path, &shown, "unsupported scope applied to resource");
        }
        let path = format!("{}.operator", at.path);
        let exists_only = !matches!(scope.str(), "PriorityClass" | "VolumeAttributesClass")
            && SCOPES.contains(&scope.str());
        if exists_only && operator.str() != "Exists" {
            errors.invalid(&path, operator.json(), "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity");
        }
        let values = expression.key("values");
        let at_values = format!("{}.values", at.path);
        match operator.str() {
            "In" | "NotIn" if values.is_empty() => errors.required(
                &at_values,
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            ),
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.invalid(
                &at_values,
                values.json(),
                "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => errors.invalid(&path, operator.json(), "not a valid selector operator"),
        }
    }
    let chosen: Vec<&str> = at.items().map(|e| e.key("scopeName").str()).collect();
    for _ in 0..conflicts(&chosen) {
        let shown = if scopes.value.is_some() { scopes.json().clone() } else { Value::Null };
        errors.invalid(&at.path, &shown, "conflicting scopes");
    }
}
