//! Resource slices: what a driver says it has (dynamic resource allocation).

use api::field::{Cursor, ErrorList};
use api::{meta, names};
use serde_json::{Value, json};

use super::device_policy::request_policy;
use super::devices::{
    at_most, binding_conditions, driver_name, label, pool_name, qualified_name, taint, unique,
};
use super::parts::Parts;
use super::tree::{each, has, put_absent};
use super::{affinity, generic, internal};

const MAX_DEVICES: usize = 128;
/// Where devices have taints, counters or lists among their attributes.
const MAX_RICH_DEVICES: usize = 64;
const MAX_ATTRIBUTES: usize = 32;
/// Members of lists counted one by one.
const MAX_ATTRIBUTE_VALUES: usize = 48;
const MAX_TAINTS: usize = 16;
const MAX_COUNTER_SETS: usize = 8;
const MAX_COUNTERS: usize = 32;
const MAX_CONSUMED_SETS: usize = 2;
const MAX_VALUE: usize = 64;

pub(super) static RESOURCE_SLICE: Parts = Parts {
    create: |context, o| {
        for device in o.get_mut("spec").into_iter().flat_map(|s| each(s, "devices")) {
            stamp_taints(device, &meta::format_time(context.now));
        }
    },
    update: |context, new, old| {
        let before = old["spec"]["devices"].as_array().cloned().unwrap_or_default();
        for device in new.get_mut("spec").into_iter().flat_map(|s| each(s, "devices")) {
            if !before.iter().any(|b| b["name"] == device["name"] && b["taints"] == device["taints"]) {
                stamp_taints(device, &meta::format_time(context.now));
            }
        }
    },
    validate: |o, errors| slice(&Cursor::root(o).key("spec"), errors),
    validate_change: |new, old, errors| {
        let (n, o) = (&new["spec"], &old["spec"]);
        generic::immutable("spec.pool.name", &n["pool"]["name"], &o["pool"]["name"], errors);
        generic::immutable("spec.driver", &n["driver"], &o["driver"], errors);
        generic::immutable("spec.nodeName", &n["nodeName"], &o["nodeName"], errors);
    },
    status: false,
    ..Parts::PLAIN
};

/// A taint without a time begins now.
fn stamp_taints(device: &mut Value, now: &str) {
    for taint in each(device, "taints") {
        put_absent(taint, "timeAdded", now);
    }
}

const ONE_OF: &str =
    "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
const ONE_OF_DEVICE: &str = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec";

fn slice(spec: &Cursor<'_>, errors: &mut ErrorList) {
    driver_name(&spec.key("driver"), errors);
    let pool = spec.key("pool");
    pool_name(&pool.key("name"), errors);
    let number = |key: &str| pool.key(key).i64().unwrap_or_default();
    if number("resourceSliceCount") <= 0 {
        let count = json!(number("resourceSliceCount"));
        errors.invalid(&pool.key("resourceSliceCount").path, &count, "must be greater than zero");
    }
    if number("generation") < 0 {
        let generation = json!(number("generation"));
        errors.invalid(&pool.key("generation").path, &generation, "must be greater than or equal to zero");
    }
    let mut given = where_it_is(spec, "must be either unset or set to a non-empty string", errors);
    let selector = spec.key("nodeSelector").key("nodeSelectorTerms");
    if spec.key("nodeSelector").exists() && selector.len() != 1 {
        let shown = internal::show_list("NodeSelectorTerm", selector.json());
        errors.invalid_shown(&selector.path, &shown, "must have exactly one node selector term");
    }
    true_or_unset(&spec.key("allNodes"), "`allNodes`", &mut given, errors);
    true_or_unset(&spec.key("perDeviceNodeSelection"), "`perDeviceNodeSelection`", &mut given, errors);
    match given.len() {
        0 => errors.required(&spec.path, ONE_OF),
        1 => {}
        _ => errors.invalid(
            &spec.path,
            &json!(format!("{{{}}}", given.join(", "))),
            &format!("{ONE_OF}, but multiple fields are set"),
        ),
    }
    let devices = spec.key("devices");
    if spec.key("sharedCounters").exists() && devices.exists() {
        errors.invalid(&spec.path, &json!(""), "only one of `sharedCounters` or `devices` is allowed");
    }
    let most = if devices.items().any(|d| is_rich(&d)) { MAX_RICH_DEVICES } else { MAX_DEVICES };
    if at_most(&devices, most, errors) {
        let per_device = spec.key("perDeviceNodeSelection").bool() == Some(true);
        devices.items().for_each(|d| device(&d, per_device, errors));
        unique(&devices, |d| d.key("name").str(), errors);
    }
    let sets = spec.key("sharedCounters");
    if at_most(&sets, MAX_COUNTER_SETS, errors) {
        sets.items().for_each(|s| counters(&s, "name", errors));
        unique(&sets, |s| s.key("name").str(), errors);
    }
}

/// Reports a bad node name or selector; returns which of them are given.
fn where_it_is(at: &Cursor<'_>, empty: &str, errors: &mut ErrorList) -> Vec<&'static str> {
    let mut given = Vec::new();
    let (node, selector) = (at.key("nodeName"), at.key("nodeSelector"));
    if node.exists() && node.str().is_empty() {
        errors.invalid(&node.path, &json!(""), empty);
    } else if node.exists() {
        given.push("`nodeName`");
        errors.invalid_all(&node.path, node.json(), names::dns1123_subdomain(node.str()));
    }
    if selector.exists() {
        given.push("`nodeSelector`");
        affinity::node_selector(&selector, errors);
    }
    given
}

fn true_or_unset(at: &Cursor<'_>, name: &'static str, given: &mut Vec<&'static str>, errors: &mut ErrorList) {
    match at.bool() {
        Some(true) => given.push(name),
        Some(false) => errors.invalid(&at.path, at.json(), "must be either unset or set to true"),
        None => {}
    }
}

const LISTS: [&str; 4] = ["bools", "ints", "strings", "versions"];

fn is_rich(device: &Cursor<'_>) -> bool {
    !device.key("taints").is_empty()
        || !device.key("consumesCounters").is_empty()
        || device.key("attributes").entries().any(|(_, a)| LISTS.iter().any(|l| a.key(l).exists()))
}

fn device(at: &Cursor<'_>, per_device: bool, errors: &mut ErrorList) {
    label(&at.key("name"), errors);
    let (attributes, capacity) = (at.key("attributes"), at.key("capacity"));
    let total = attributes.len() + capacity.len();
    if total > MAX_ATTRIBUTES {
        let why = format!("the total number of attributes and capacities must not exceed {MAX_ATTRIBUTES}");
        errors.invalid(&at.path, &json!(total), &why);
    }
    let members = |a: Cursor<'_>| LISTS.iter().map(|l| a.key(l).len()).sum::<usize>().max(1);
    let values: usize = attributes.entries().map(|(_, a)| members(a)).sum();
    if values > MAX_ATTRIBUTE_VALUES {
        let why = format!("the total number of attribute values must not exceed {MAX_ATTRIBUTE_VALUES}");
        errors.invalid(&at.path, &json!(values), &why);
    }
    for (name, value) in attributes.entries() {
        qualified_name(&value.path, name, errors);
        attribute(&value, errors);
    }
    let shared = at.key("allowMultipleAllocations").bool() == Some(true);
    for (name, value) in capacity.entries() {
        qualified_name(&value.path, name, errors);
        match (value.key("requestPolicy").exists(), shared) {
            (true, true) => request_policy(&value, errors),
            (true, false) => {
                errors.forbidden(&value.key("requestPolicy").path, "allowMultipleAllocations must be true")
            }
            _ => {}
        }
    }
    let taints = at.key("taints");
    if at_most(&taints, MAX_TAINTS, errors) {
        taints.items().for_each(|t| taint(&t, errors));
    }
    let consumed = at.key("consumesCounters");
    if at_most(&consumed, MAX_CONSUMED_SETS, errors) {
        consumed.items().for_each(|c| counters(&c, "counterSet", errors));
        unique(&consumed, |c| c.key("counterSet").str(), errors);
    }
    device_node(at, per_device, errors);
    binding_conditions(at, errors);
}

fn device_node(at: &Cursor<'_>, per_device: bool, errors: &mut ErrorList) {
    if !per_device {
        if ["nodeName", "nodeSelector", "allNodes"].iter().any(|k| has(at.json(), k)) {
            errors.invalid(
                &at.path,
                &Value::Null,
                "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec",
            );
        }
        return;
    }
    let mut given = where_it_is(at, "must not be empty", errors);
    true_or_unset(&at.key("allNodes"), "`allNodes`", &mut given, errors);
    match given.len() {
        0 => errors.required(&at.path, ONE_OF_DEVICE),
        1 => {}
        _ => errors.invalid(&at.path, &json!(format!("{{{}}}", given.join(", "))), ONE_OF_DEVICE),
    }
}

fn counters(at: &Cursor<'_>, name: &str, errors: &mut ErrorList) {
    let (name, list) = (at.key(name), at.key("counters"));
    if name.str().is_empty() {
        errors.required(&name.path, "");
    } else {
        label(&name, errors);
    }
    if list.is_empty() {
        errors.required(&list.path, "");
    } else if at_most(&list, MAX_COUNTERS, errors) {
        for (key, counter) in list.entries() {
            errors.invalid_all(&counter.path, &json!(key), names::dns1123_label(key));
        }
    }
}

fn attribute(at: &Cursor<'_>, errors: &mut ErrorList) {
    const ONE: &str = "exactly one value must be specified";
    let text = |value: &Cursor<'_>, is_version: bool, errors: &mut ErrorList| {
        if is_version && !is_semantic_version(value.str()) {
            let why = "must be a string compatible with semver.org spec 2.0.0";
            errors.invalid(&value.path, value.json(), why);
        }
        if value.str().len() > MAX_VALUE {
            errors.too_long(&value.path, MAX_VALUE);
        }
    };
    let mut given = ["bool", "int"].iter().filter(|k| at.key(k).exists()).count();
    for (key, is_version) in [("string", false), ("version", true)] {
        if at.key(key).exists() {
            given += 1;
            text(&at.key(key), is_version, errors);
        }
    }
    for key in LISTS {
        let list = at.key(key);
        if !list.exists() {
            continue;
        }
        given += 1;
        if list.is_empty() {
            errors.invalid(&list.path, list.json(), "must not be empty if specified");
        }
        if matches!(key, "strings" | "versions") {
            list.items().for_each(|item| text(&item, key == "versions", errors));
        }
    }
    match given {
        0 => errors.invalid(&at.path, &json!(""), ONE),
        1 => {}
        _ => errors.invalid_shown(&at.path, &internal::show("DeviceAttribute", at.json()), ONE),
    }
}

/// `MAJOR.MINOR.PATCH[-PRERELEASE][+BUILD]` (semver.org 2.0.0).
fn is_semantic_version(text: &str) -> bool {
    let word = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let number =
        |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit()) && (s == "0" || !s.starts_with('0'));
    let (rest, build) = text.split_once('+').map_or((text, None), |(a, b)| (a, Some(b)));
    let (core, pre) = rest.split_once('-').map_or((rest, None), |(a, b)| (a, Some(b)));
    let identifier = |s: &str| word(s) && (number(s) || s.bytes().any(|b| !b.is_ascii_digit()));
    core.split('.').count() == 3
        && core.split('.').all(number)
        && pre.is_none_or(|p| p.split('.').all(identifier))
        && build.is_none_or(|b| b.split('.').all(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_semantic() {
        for good in ["1.2.3", "0.0.0", "1.0.0-alpha.1+build-5", "1.0.0-0a"] {
            assert!(is_semantic_version(good), "{good}");
        }
        for bad in ["1.2", "01.2.3", "1.2.3-", "1.2.3-01", "v1.2.3", ""] {
            assert!(!is_semantic_version(bad), "{bad}");
        }
    }
}
