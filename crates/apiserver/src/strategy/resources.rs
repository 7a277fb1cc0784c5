//! Requests and limits of containers.

use api::field::{Cursor, ErrorList};
use api::names;
use api::quantity::Quantity;
use serde_json::json;

use super::pod_validate::Pod;
use super::quantities;

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

pub(super) use api::quota::is_extended;

fn check_name(path: &str, name: &str, errors: &mut ErrorList) {
    let messages = names::qualified_name(name);
    let qualified = messages.is_empty();
    errors.invalid_all(path, &json!(name), messages);
    if !name.contains('/') {
        let standard =
            matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
        if !standard {
            if qualified && !matches!(name, "pods" | "services" | "secrets" | "configmaps" | "storage") {
                errors.invalid(path, &json!(name), "must be a standard resource type or fully qualified");
            }
            errors.invalid(path, &json!(name), "must be a standard resource for containers");
        }
    } else if !is_native(name) && (name.starts_with("requests.") || name.contains(' ')) {
        errors.invalid(path, &json!(name), "doesn't follow extended resource name standard");
    }
}

/// The page size of a huge page resource, in bytes.
fn page_size(name: &str) -> Option<i64> {
    name.strip_prefix("hugepages-")?.parse::<Quantity>().ok().map(|q| q.value()).filter(|v| *v > 0)
}

fn check_value(path: &str, name: &str, value: &serde_json::Value, errors: &mut ErrorList) {
    let Some(amount) = quantities::parse(value) else { return };
    let shown = quantities::show(value);
    if amount.signum() < 0 {
        errors.invalid(path, &shown, "must be greater than or equal to 0");
    }
    let counted = name.starts_with("hugepages-") || !is_native(name);
    if counted && amount.millis() % 1000 != 0 {
        errors.invalid(path, &shown, "must be an integer");
    }
    if name.starts_with("hugepages-") {
        let good = page_size(name).is_some_and(|size| amount.value() % size == 0);
        if !good {
            errors.invalid(path, &shown, &format!("{amount} is not positive integer multiple of {name}"));
        }
    }
}

/// `resources` of a container.
pub(super) fn validate(at: &Cursor<'_>, pod: &Pod<'_>, errors: &mut ErrorList) {
    let (limits, requests) = (at.key("limits"), at.key("requests"));
    let mut huge = false;
    let mut compute = false;
    for (name, value) in limits.entries() {
        check_name(&value.path, name, errors);
        check_value(&value.path, name, value.json(), errors);
        huge |= name.starts_with("hugepages-");
        compute |= matches!(name, "cpu" | "memory");
    }
    for (name, value) in requests.entries() {
        check_name(&value.path, name, errors);
        check_value(&value.path, name, value.json(), errors);
        huge |= name.starts_with("hugepages-");
        compute |= matches!(name, "cpu" | "memory");
        let firm = name.starts_with("hugepages-") || !is_native(name);
        let Some(request) = quantities::parse(value.json()) else { continue };
        match limits.key(name).value.and_then(quantities::parse) {
            Some(limit) if firm && request != limit => errors.invalid(
                &requests.path,
                &quantities::show(value.json()),
                &format!("must be equal to {name} limit of {limit}"),
            ),
            Some(limit) if !firm && request > limit => errors.invalid(
                &requests.path,
                &quantities::show(value.json()),
                &format!("must be less than or equal to {name} limit of {limit}"),
            ),
            None if firm => {
                errors.required(&limits.path, "Limit must be set for non overcommitable resources");
            }
            _ => {}
        }
    }
    if huge && !compute {
        errors.forbidden(&at.path, "HugePages require cpu or memory");
    }
    claims(&at.key("claims"), pod, errors);
}

/// What a runtime needs on top of a pod's containers: checked as limits are.
pub(super) fn overhead(at: &Cursor<'_>, errors: &mut ErrorList) {
    for (name, value) in at.entries() {
        let path = format!("{}.limits[{name}]", at.path);
        check_name(&path, name, errors);
        check_value(&path, name, value.json(), errors);
    }
}

/// `resources` of a pod as a whole, and how those of its containers fit in.
pub(super) fn of_pod(spec: &Cursor<'_>, pod: &Pod<'_>, errors: &mut ErrorList) {
    let at = spec.key("resources");
    let (limits, requests, claims) = (at.key("limits"), at.key("requests"), at.key("claims"));
    if !claims.is_empty() {
        errors.forbidden(&claims.path, "claims cannot be set for Resources at pod-level");
    }
    for (name, value) in limits.entries().chain(requests.entries()) {
        if !matches!(name, "cpu" | "memory") && !name.starts_with("hugepages-") {
            errors.not_supported(&value.path, &json!(name), &["cpu", "hugepages-", "memory"]);
        }
    }
    let rest = json!({"limits": limits.json(), "requests": requests.json()});
    validate(&Cursor::at(&rest, &at.path), pod, errors);
    let mut total = std::collections::BTreeMap::<&str, Quantity>::new();
    for container in spec.key("containers").items() {
        for (name, value) in container.key("resources").key("requests").entries() {
            if let Some(amount) = quantities::parse(value.json()) {
                total.entry(name).and_modify(|sum| *sum = sum.plus(&amount)).or_insert(amount);
            }
        }
    }
    for (name, sum) in total {
        let own = requests.key(name);
        if quantities::parse(own.json()).is_some_and(|own| sum > own) {
            let why = format!("must be greater than or equal to aggregate container requests of {sum}");
            errors.invalid(&format!("{}[{name}]", requests.path), &quantities::show(own.json()), &why);
        }
    }
    for (i, container) in spec.key("containers").items().enumerate() {
        for (name, limit) in container.key("resources").key("limits").entries() {
            let most = limits.key(name);
            if let (Some(own), Some(most)) = (quantities::parse(limit.json()), quantities::parse(most.json()))
                && own > most
            {
                let why = format!("must be less than or equal to pod limits of {most}");
                let path = format!("{}.containers[{i}][{name}].limits", at.path);
                errors.invalid(&path, &quantities::show(limit.json()), &why);
            }
        }
    }
}

fn claims(list: &Cursor<'_>, pod: &Pod<'_>, errors: &mut ErrorList) {
    let mut seen = std::collections::BTreeSet::new();
    for claim in list.items() {
        let name = claim.key("name").str();
        let key = (name, claim.key("request").str());
        if name.is_empty() {
            errors.required(&claim.path, "");
            continue;
        }
        if !seen.insert(key) {
            let shown = if key.1.is_empty() { name.to_owned() } else { format!("{}/{}", key.0, key.1) };
            errors.duplicate(&claim.path, &json!(shown));
        } else if !pod.claims.contains(&name) {
            let detail = if pod.claims.is_empty() {
                "must be one of the names in pod.spec.resourceClaims which is empty".to_owned()
            } else {
                format!("must be one of the names in pod.spec.resourceClaims: {}", pod.claims.join(", "))
            };
            errors.push(
                api::field::Reason::NotFound,
                &claim.path,
                format!("Not found: {}: {detail}", api::field::quote(name)),
            );
        }
    }
}
