//! Requests and limits of containers.

use std::collections::BTreeSet;

use api::field::{Cursor, ErrorList};
use api::names;
use api::quantity::Quantity;
use api::resources::{Side, of_spec};
use serde_json::json;

use super::pod_validate::Pod;
use super::quantities;

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

pub(super) use api::quota::is_extended;

/// The name of a resource that a container can ask for.
pub(super) fn of_container(path: &str, name: &str, errors: &mut ErrorList) {
    super::quota::resource_name(path, name, errors);
    if !name.contains('/') {
        let standard =
            matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
        if !standard {
            errors.invalid(path, &json!(name), "must be a standard resource for containers");
        }
    } else if !is_native(name) && !is_extended(name) {
        errors.invalid(path, &json!(name), "doesn't follow extended resource name standard");
    }
}

/// The name of a resource that a pod as a whole can ask for.
fn of_whole_pod(path: &str, name: &str, errors: &mut ErrorList) {
    let found = errors.len();
    super::quota::resource_name(path, name, errors);
    if errors.len() == found && !api::resources::is_pod_level(name) {
        errors.not_supported(path, &json!(name), &["cpu", "hugepages-", "memory"]);
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
    if super::quota::is_whole(name) && amount.millis() % 1000 != 0 {
        errors.invalid(path, &shown, "must be an integer");
    }
}

/// Huge pages come whole.
fn check_pages(path: &str, name: &str, value: &serde_json::Value, errors: &mut ErrorList) {
    let Some(amount) = quantities::parse(value).filter(|_| name.starts_with("hugepages-")) else { return };
    if page_size(name).is_none_or(|size| amount.value() % size != 0) {
        let why = format!("{amount} is not positive integer multiple of {name}");
        errors.invalid(path, &quantities::show(value), &why);
    }
}

/// `resources` of a container.
pub(super) fn validate(at: &Cursor<'_>, pod: &Pod<'_>, errors: &mut ErrorList) {
    amounts(at, of_container, errors);
    claims(&at.key("claims"), &pod.claims, errors);
}

/// Limits and requests, their names by `check_name`.
fn amounts(at: &Cursor<'_>, check_name: fn(&str, &str, &mut ErrorList), errors: &mut ErrorList) {
    let (limits, requests) = (at.key("limits"), at.key("requests"));
    let mut huge = false;
    let mut compute = false;
    for (name, value) in limits.entries() {
        check_name(&value.path, name, errors);
        check_value(&value.path, name, value.json(), errors);
        check_pages(&value.path, name, value.json(), errors);
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
        check_pages(&value.path, name, value.json(), errors);
    }
    if huge && !compute {
        errors.forbidden(&at.path, "HugePages require cpu or memory");
    }
}

/// What a runtime needs on top of a pod's containers: checked as limits are.
pub(super) fn overhead(at: &Cursor<'_>, errors: &mut ErrorList) {
    let limits = json!({"limits": at.json()});
    amounts(&Cursor::at(&limits, &at.path), of_container, errors);
}

/// `resources` of a pod as a whole, and how those of its containers fit in.
pub(super) fn of_pod(spec: &Cursor<'_>, pod: &Pod<'_>, errors: &mut ErrorList) {
    let at = spec.key("resources");
    if spec.key("os").key("name").str() == "windows" {
        return errors.forbidden(&at.path, "may not be set for a windows pod");
    }
    let (limits, requests) = (at.key("limits"), at.key("requests"));
    if at.key("claims").exists() {
        errors.forbidden(&at.key("claims").path, "claims cannot be set for Resources at pod-level");
    }
    amounts(&at, of_whole_pod, errors);
    claims(&at.key("claims"), &pod.claims, errors);
    let mut containers = spec.json().clone();
    super::generic::set(&mut containers, "resources", None);
    for (name, sum) in of_spec(&containers, Side::Requests) {
        let own = requests.key(&name);
        if quantities::parse(own.json()).is_some_and(|own| sum > own) {
            let why = format!("must be greater than or equal to aggregate container requests of {sum}");
            errors.invalid(&format!("{}[{name}]", requests.path), &quantities::show(own.json()), &why);
        }
    }
    for (name, sum) in of_spec(&containers, Side::Limits) {
        let own = limits.key(&name);
        let is_above = quantities::parse(own.json()).is_some_and(|own| sum > own);
        if name.starts_with("hugepages-") && is_above {
            let why = format!("must be greater than or equal to aggregate container limits of {sum}");
            errors.invalid(&format!("{}[{name}]", limits.path), &quantities::show(own.json()), &why);
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

/// The pod's resource claims that a container uses: each once, as a whole or by requests.
fn claims(list: &Cursor<'_>, known: &[&str], errors: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for claim in list.items() {
        let (name, request) = (claim.key("name").str(), claim.key("request"));
        if name.is_empty() {
            errors.required(&claim.path, "");
            continue;
        }
        if seen.contains(&(name, "")) {
            // the claim as a whole is there: with all that could be asked of it
            errors.duplicate(&claim.path, &json!(name));
        } else {
            if !request.str().is_empty() {
                errors.invalid_all(&request.path, request.json(), names::dns1123_label(request.str()));
            }
            if seen.contains(&(name, request.str())) {
                errors.duplicate(&claim.path, &json!(format!("{name}/{}", request.str())));
            } else if request.str().is_empty() {
                for _ in seen.iter().filter(|(other, _)| *other == name) {
                    errors.duplicate(&claim.path, &json!(name));
                }
            }
            seen.insert((name, request.str()));
        }
        if !known.contains(&name) {
            let known: BTreeSet<&str> = known.iter().copied().filter(|n| !n.is_empty()).collect();
            let detail = if known.is_empty() {
                "must be one of the names in pod.spec.resourceClaims which is empty".to_owned()
            } else {
                let names: Vec<&str> = known.into_iter().collect();
                format!("must be one of the names in pod.spec.resourceClaims: {}", names.join(", "))
            };
            errors.with_shown(api::field::Reason::NotFound, &claim.path, &api::field::quote(name), &detail);
        }
    }
}
