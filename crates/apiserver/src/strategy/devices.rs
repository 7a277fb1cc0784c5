//! Claims of devices, their templates, and device classes (dynamic resource allocation).

use std::collections::{BTreeMap, BTreeSet};

use api::field::{Cursor, ErrorList};
use api::names;
use serde_json::{Value, json};

use super::generic::set;
use super::parts::{Parts, Rules};
use super::tree::{each, put};
use super::{addresses, affinity, internal, label_selector, texts};
use crate::cel::{self, devices::Refusal};

const MAX_REQUESTS: usize = 32;
const MAX_ALTERNATIVES: usize = 8;
const MAX_CONFIGS: usize = 32;
const MAX_SELECTORS: usize = 32;
const MAX_RESULTS: usize = 32;
const MAX_CONSUMERS: usize = 256;
pub(super) const MAX_CONDITIONS: usize = 8;
const MAX_BINDING_CONDITIONS: usize = 4;
const MAX_ADDRESSES: usize = 16;
const MAX_ID: usize = 32;
/// Of opaque parameters and of a device's data, in bytes.
const MAX_DATA: usize = 10 * 1024;
const MAX_EXPRESSION: usize = 10 * 1024;
const EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "None"];

pub(super) static CLAIM: Parts = Parts {
    status_keeps: super::generic::OWN_META,
    default: |o| {
        if let Some(spec) = o.get_mut("spec") {
            default_claim(spec);
        }
    },
    create: |_, o| set(o, "status", None),
    in_namespace: Some(|labels, o, errors| admin_access(labels, &o["spec"], errors)),
    validate: |o, errors| claim_spec(&Cursor::root(o).key("spec"), errors),
    validate_change: |new, old, errors| {
        if new["spec"] != old["spec"] {
            let shown = internal::show("ResourceClaimSpec", &new["spec"]);
            errors.invalid_shown("spec", &shown, "field is immutable");
        }
    },
    validate_status: claim_status,
    rules: Rules::OnCreate,
    ..Parts::UNCOUNTED
};

pub(super) static CLAIM_TEMPLATE: Parts = Parts {
    default: |o| {
        if let Some(spec) = o.get_mut("spec").and_then(|s| s.get_mut("spec")) {
            default_claim(spec);
        }
    },
    in_namespace: Some(|labels, o, errors| admin_access(labels, &o["spec"]["spec"], errors)),
    validate: |o, errors| {
        let spec = Cursor::root(o).key("spec");
        template_meta(&spec.key("metadata"), errors);
        claim_spec(&spec.key("spec"), errors);
    },
    validate_change: |new, old, errors| {
        if new["spec"] != old["spec"] {
            let shown = internal::show("ResourceClaimTemplateSpec", &new["spec"]);
            errors.invalid_shown("spec", &shown, "field is immutable");
        }
    },
    rules: Rules::OnCreate,
    ..Parts::DATA
};

pub(super) static DEVICE_CLASS: Parts = Parts {
    validate: |o, errors| class_spec(o, &Value::Null, errors),
    validate_change: |new, old, errors| class_spec(new, &old["spec"], errors),
    rules: Rules::OnCreate,
    status: false,
    ..Parts::PLAIN
};

/// What a class asks of devices; what stands in `old` as it does now was good when it was stored.
fn class_spec(o: &Value, old: &Value, errors: &mut ErrorList) {
    let spec = Cursor::root(o).key("spec");
    let is_stored = |list: &Cursor<'_>, key: &str| !list.is_empty() && old.get(key) == Some(list.json());
    let list = spec.key("selectors");
    if !is_stored(&list, "selectors") {
        selectors(&list, errors);
    }
    let config = spec.key("config");
    if !is_stored(&config, "config") && at_most(&config, MAX_CONFIGS, errors) {
        config.items().for_each(|c| opaque(&c.key("opaque"), errors));
    }
    let name = spec.key("extendedResourceName");
    if name.exists() && !super::resources::is_extended(name.str()) {
        errors.invalid(&name.path, name.json(), "must be a valid extended resource name");
    }
}

/// Who may look at devices that others use is a matter of the namespace.
fn admin_access(labels: &Value, spec: &Value, errors: &mut ErrorList) {
    const LABEL: &str = "resource.kubernetes.io/admin-access";
    let mut requests = spec["devices"]["requests"].as_array().into_iter().flatten();
    if requests.any(|r| r["exactly"]["adminAccess"] == json!(true)) && labels[LABEL] != "true" {
        let why =
            format!("admin access to devices requires the `{LABEL}: true` label on the containing namespace");
        // the reference's path is empty, which it prints so
        errors.forbidden("[]", &why);
    }
}

fn default_claim(spec: &mut Value) {
    let Some(devices) = spec.get_mut("devices") else { return };
    let mode = |request: &mut Value| {
        put(request, "allocationMode", "ExactCount");
        if request["allocationMode"] == "ExactCount" {
            super::tree::put_nonzero(request, "count", 1);
        }
        for toleration in each(request, "tolerations") {
            put(toleration, "operator", "Equal");
        }
    };
    for request in each(devices, "requests") {
        if let Some(exactly) = super::tree::child(request, "exactly") {
            mode(exactly);
        }
        each(request, "firstAvailable").for_each(mode);
    }
}

/// What an object made of a template may bring along: labels, annotations, owners, nothing else.
pub(super) fn template_meta(at: &Cursor<'_>, errors: &mut ErrorList) {
    for key in [
        "name",
        "generateName",
        "namespace",
        "selfLink",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "ownerReferences",
        "finalizers",
        "managedFields",
    ] {
        let given = at.json().get(key);
        if !super::tree::is_empty(given) || given.is_some_and(|v| v.as_i64().is_some_and(|n| n != 0)) {
            errors.forbidden(&at.key(key).path, "cannot be set");
        }
    }
    crate::object_meta::annotations(&at.key("annotations"), errors);
    label_selector::labels(&at.key("labels"), errors);
}

/// Whether a list is no longer than `most`; a longer one is not looked into.
pub(super) fn at_most(list: &Cursor<'_>, most: usize, errors: &mut ErrorList) -> bool {
    if list.len() > most {
        errors.too_many(&list.path, list.len(), most);
    }
    list.len() <= most
}

/// Reports what stands twice in a list.
pub(super) fn unique<'a>(list: &Cursor<'a>, key: impl Fn(&Cursor<'a>) -> &'a str, errors: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for item in list.items() {
        let key = key(&item);
        if !seen.insert(key) {
            errors.duplicate(&item.path, &json!(key));
        }
    }
}

/// Names of the requests of a claim, each with the names of its alternatives.
type RequestNames<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

fn request_names<'a>(devices: &Cursor<'a>) -> RequestNames<'a> {
    let alternatives =
        |r: &Cursor<'a>| r.key("firstAvailable").items().map(|s| s.key("name").str()).collect();
    devices.key("requests").items().map(|r| (r.key("name").str(), alternatives(&r))).collect()
}

fn claim_spec(spec: &Cursor<'_>, errors: &mut ErrorList) {
    let devices = spec.key("devices");
    let known = request_names(&devices);
    let requests = devices.key("requests");
    if at_most(&requests, MAX_REQUESTS, errors) {
        requests.items().for_each(|r| request(&r, errors));
        unique(&requests, |r| r.key("name").str(), errors);
    }
    let constraints = devices.key("constraints");
    if at_most(&constraints, MAX_REQUESTS, errors) {
        constraints.items().for_each(|c| constraint(&c, &known, errors));
    }
    let config = devices.key("config");
    if at_most(&config, MAX_CONFIGS, errors) {
        for item in config.items() {
            request_refs(&item.key("requests"), &known, errors);
            opaque(&item.key("opaque"), errors);
        }
    }
}

fn request(at: &Cursor<'_>, errors: &mut ErrorList) {
    label(&at.key("name"), errors);
    let (exactly, first) = (at.key("exactly"), at.key("firstAvailable"));
    match (exactly.exists(), !first.is_empty()) {
        (false, false) => {
            errors.required(&at.path, "exactly one of `exactly` or `firstAvailable` is required");
        }
        (true, true) => errors.invalid(
            &at.path,
            &Value::Null,
            "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set",
        ),
        (true, false) => device_request(&exactly, errors),
        (false, true) => {
            if at_most(&first, MAX_ALTERNATIVES, errors) {
                for alternative in first.items() {
                    label(&alternative.key("name"), errors);
                    device_request(&alternative, errors);
                }
                unique(&first, |r| r.key("name").str(), errors);
            }
        }
    }
}

fn device_request(at: &Cursor<'_>, errors: &mut ErrorList) {
    let class = at.key("deviceClassName");
    if class.str().is_empty() {
        errors.required(&class.path, "");
    } else {
        errors.invalid_all(&class.path, class.json(), names::dns1123_subdomain(class.str()));
    }
    selectors(&at.key("selectors"), errors);
    let (mode, count) = (at.key("allocationMode"), at.key("count"));
    let n = count.i64().unwrap_or_default();
    match mode.str() {
        "All" if n != 0 => {
            errors.invalid(&count.path, &json!(n), "must not be specified when allocationMode is 'All'");
        }
        "ExactCount" if n <= 0 => errors.invalid(&count.path, &json!(n), "must be greater than zero"),
        "All" | "ExactCount" => {}
        other => errors.not_supported(&mode.path, &json!(other), &["All", "ExactCount"]),
    }
    tolerations(&at.key("tolerations"), errors);
}

fn selectors(list: &Cursor<'_>, errors: &mut ErrorList) {
    if !at_most(list, MAX_SELECTORS, errors) {
        return;
    }
    for selector in list.items() {
        let cel = selector.key("cel");
        let expression = cel.key("expression");
        if !cel.exists() {
            errors.required(&cel.path, "");
            continue;
        }
        if expression.str().len() > MAX_EXPRESSION {
            errors.too_long(&expression.path, MAX_EXPRESSION);
            continue;
        }
        match cel::devices::check(expression.str()) {
            Ok(()) => {}
            Err(Refusal::Wrong(why)) => errors.invalid(&expression.path, &json!(expression.str()), &why),
            Err(Refusal::TooComplex) => {
                errors.forbidden(&expression.path, "too complex, exceeds cost limit");
            }
        }
    }
}

fn tolerations(list: &Cursor<'_>, errors: &mut ErrorList) {
    for at in list.items() {
        let (key, operator, value, effect) =
            (at.key("key"), at.key("operator"), at.key("value"), at.key("effect"));
        if !key.str().is_empty() {
            errors.invalid_all(&key.path, key.json(), names::qualified_name(key.str()));
        }
        match operator.str() {
            "Exists" if !value.str().is_empty() => {
                errors.invalid(&value.path, value.json(), "must be empty for operator `Exists`");
            }
            "Exists" => {}
            "Equal" => errors.invalid_all(&value.path, value.json(), names::label_value(value.str())),
            "" => errors.required(&operator.path, ""),
            _ => errors.not_supported(&operator.path, operator.json(), &["Equal", "Exists"]),
        }
        if !effect.str().is_empty() && !EFFECTS.contains(&effect.str()) {
            errors.not_supported(&effect.path, effect.json(), &EFFECTS);
        }
    }
}

/// One taint of a device.
pub(super) fn taint(at: &Cursor<'_>, errors: &mut ErrorList) {
    let (key, value, effect) = (at.key("key"), at.key("value"), at.key("effect"));
    errors.invalid_all(&key.path, &json!(key.str()), names::qualified_name(key.str()));
    errors.invalid_all(&value.path, value.json(), names::label_value(value.str()));
    match effect.str() {
        "" => errors.required(&effect.path, ""),
        text if EFFECTS.contains(&text) => {}
        _ => errors.not_supported(&effect.path, effect.json(), &EFFECTS),
    }
}

fn constraint(at: &Cursor<'_>, known: &RequestNames<'_>, errors: &mut ErrorList) {
    request_refs(&at.key("requests"), known, errors);
    let (same, distinct) = (at.key("matchAttribute"), at.key("distinctAttribute"));
    let attribute = if same.exists() { same } else { distinct };
    if !attribute.exists() {
        errors.required(
            &at.path,
            "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set",
        );
        return;
    }
    qualified_name(&attribute.path, attribute.str(), errors);
    if !attribute.str().contains('/') {
        errors.invalid(
            &attribute.path,
            attribute.json(),
            "a fully qualified name must be a domain and a name separated by a slash",
        );
    }
}

fn request_refs(list: &Cursor<'_>, known: &RequestNames<'_>, errors: &mut ErrorList) {
    if at_most(list, MAX_REQUESTS, errors) {
        list.items().for_each(|name| request_ref(&name, known, errors));
        unique(list, |name| name.str(), errors);
    }
}

fn request_ref(at: &Cursor<'_>, known: &RequestNames<'_>, errors: &mut ErrorList) {
    const UNKNOWN: &str = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
    let parts: Vec<&str> = at.str().split('/').collect();
    if parts.len() <= 2 {
        for part in &parts {
            errors.invalid_all(&at.path, &json!(part), names::dns1123_label(part));
        }
    }
    let is_known = match parts.as_slice() {
        [request] => known.contains_key(request),
        [request, alternative] => known.get(request).is_some_and(|a| a.contains(alternative)),
        _ => false,
    };
    if !is_known {
        errors.invalid(&at.path, &json!(at.str()), UNKNOWN);
    }
}

fn opaque(at: &Cursor<'_>, errors: &mut ErrorList) {
    if !at.exists() {
        errors.required(&at.path, "");
        return;
    }
    driver_name(&at.key("driver"), errors);
    raw(&at.key("parameters"), errors);
}

/// JSON that only a driver understands.
fn raw(at: &Cursor<'_>, errors: &mut ErrorList) {
    match at.value {
        None => errors.required(&at.path, ""),
        Some(value) if value.to_string().len() > MAX_DATA => errors.too_long(&at.path, MAX_DATA),
        Some(Value::Object(_)) => {}
        Some(_) => errors.invalid(&at.path, &json!("<value omitted>"), "must be a valid JSON object"),
    }
}

pub(super) fn label(at: &Cursor<'_>, errors: &mut ErrorList) {
    errors.invalid_all(&at.path, &json!(at.str()), names::dns1123_label(at.str()));
}

/// The name of a driver: a domain of at most 63 characters.
pub(super) fn driver_name(at: &Cursor<'_>, errors: &mut ErrorList) {
    let name = at.str();
    if name.is_empty() {
        errors.required(&at.path, "");
    }
    if name.len() > 63 {
        errors.too_long(&at.path, 63);
    }
    if !name.is_empty() {
        errors.invalid_all(&at.path, at.json(), names::dns1123_subdomain(&name.to_lowercase()));
    }
}

/// The name of a pool: domains joined by slashes.
pub(super) fn pool_name(at: &Cursor<'_>, errors: &mut ErrorList) {
    if at.str().is_empty() {
        errors.required(&at.path, "");
        return;
    }
    if at.str().len() > 253 {
        errors.too_long(&at.path, 253);
    }
    for part in at.str().split('/') {
        errors.invalid_all(&at.path, &json!(part), names::dns1123_subdomain(part));
    }
}

/// `[domain/]identifier`, as attributes and capacities are named.
pub(super) fn qualified_name(path: &str, name: &str, errors: &mut ErrorList) {
    let identifier = |id: &str, errors: &mut ErrorList| {
        if id.len() > MAX_ID {
            errors.too_long(path, MAX_ID);
        }
        errors.invalid_all(path, &json!(id), names::c_identifier(id));
    };
    match name.split('/').collect::<Vec<_>>().as_slice() {
        [id] => identifier(id, errors),
        [domain, id] => {
            if domain.is_empty() {
                errors.invalid(path, &json!(""), "the domain must not be empty");
            } else {
                let domain = json!(domain);
                driver_name(&Cursor::at(&domain, path), errors);
            }
            if id.is_empty() {
                errors.invalid(path, &json!(""), "the name must not be empty");
            } else {
                identifier(id, errors);
            }
        }
        _ => {}
    }
}

/// Conditions that a node waits for, and those that say it waits in vain.
pub(super) fn binding_conditions(at: &Cursor<'_>, errors: &mut ErrorList) {
    let (wanted, failed) = (at.key("bindingConditions"), at.key("bindingFailureConditions"));
    for list in [&wanted, &failed] {
        if at_most(list, MAX_BINDING_CONDITIONS, errors) {
            for name in list.items() {
                errors.invalid_all(&name.path, name.json(), names::qualified_name(name.str()));
            }
        }
    }
    unique(&wanted, |c| c.str(), errors);
    let mut seen = BTreeSet::new();
    for name in failed.items() {
        if !seen.insert(name.str()) {
            errors.duplicate(&name.path, name.json());
        }
        if wanted.items().any(|w| w.str() == name.str()) {
            errors.invalid(
                &name.path,
                name.json(),
                "bindingFailureConditions must not overlap with bindingConditions",
            );
        }
    }
    for (lacking, other, why) in [
        (&wanted, &failed, "bindingConditions are required to use bindingFailureConditions"),
        (&failed, &wanted, "bindingFailureConditions are required to use bindingConditions"),
    ] {
        if lacking.is_empty() && !other.is_empty() {
            errors.invalid(&lacking.path, lacking.json(), why);
        }
    }
}

fn claim_status(new: &Value, old: &Value, errors: &mut ErrorList) {
    let status = Cursor::root(new).key("status");
    let known = Cursor::root(new).key("spec").key("devices");
    let known = request_names(&known);
    let reserved = status.key("reservedFor");
    if at_most(&reserved, MAX_CONSUMERS, errors) {
        for consumer in reserved.items() {
            for key in ["resource", "name", "uid"] {
                if consumer.key(key).str().is_empty() {
                    errors.required(&consumer.key(key).path, "");
                }
            }
        }
        unique(&reserved, |c| c.key("uid").str(), errors);
    }
    let allocation = status.key("allocation");
    let devices = status.key("devices");
    devices.items().for_each(|d| device_status(&d, &allocation, errors));
    let mut seen = Vec::new();
    for device in devices.items() {
        let id = device_id(&device);
        if seen.contains(&id) {
            errors.duplicate(&device.path, &shown_id(&id));
        } else {
            seen.push(id);
        }
    }
    if !reserved.is_empty() && !allocation.exists() {
        errors.forbidden(&reserved.path, "may not be specified when `allocated` is not set");
    } else if api::meta::is_being_deleted(new)
        && reserved
            .items()
            .any(|r| !old["status"]["reservedFor"].as_array().is_some_and(|l| l.contains(r.json())))
    {
        errors.forbidden(
            &reserved.path,
            "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set",
        );
    }
    let before = &old["status"]["allocation"];
    if before.is_object() && allocation.exists() {
        if before != allocation.json() {
            let shown = internal::show("AllocationResult", allocation.json());
            errors.invalid_shown(&allocation.path, &shown, "field is immutable");
        }
    } else if allocation.exists() {
        self::allocation(&allocation, &known, errors);
    }
}

fn device_status(at: &Cursor<'_>, allocation: &Cursor<'_>, errors: &mut ErrorList) {
    driver_name(&at.key("driver"), errors);
    pool_name(&at.key("pool"), errors);
    label(&at.key("device"), errors);
    let own = device_id(at);
    if !allocation.key("devices").key("results").items().any(|r| device_id(&r) == own) {
        errors.invalid(&at.path, &shown_id(&own), "must be an allocated device in the claim");
    }
    at_most(&at.key("conditions"), MAX_CONDITIONS, errors);
    texts::conditions(&at.key("conditions"), errors);
    if at.key("data").exists() {
        raw(&at.key("data"), errors);
    }
    network_data(&at.key("networkData"), errors);
}

/// Driver, pool, name and share: what tells a device from all others.
fn device_id(at: &Cursor<'_>) -> [String; 4] {
    ["driver", "pool", "device", "shareID"].map(|key| at.key(key).str().to_owned())
}

fn shown_id([driver, pool, device, share]: &[String; 4]) -> Value {
    json!({"Driver": driver, "Pool": pool, "Device": device, "ShareID": share})
}

/// What a network device is known by.
fn network_data(at: &Cursor<'_>, errors: &mut ErrorList) {
    for (key, most) in [("interfaceName", 256), ("hardwareAddress", 128)] {
        if at.key(key).str().len() > most {
            errors.too_long(&at.key(key).path, most);
        }
    }
    let addresses = at.key("ips");
    if at_most(&addresses, MAX_ADDRESSES, errors) {
        addresses.items().for_each(|a| addresses::interface(&a.path, a.str(), errors));
        unique(&addresses, |a| a.str(), errors);
    }
}

fn allocation(at: &Cursor<'_>, known: &RequestNames<'_>, errors: &mut ErrorList) {
    let results = at.key("devices").key("results");
    if at_most(&results, MAX_RESULTS, errors) {
        for result in results.items() {
            request_ref(&result.key("request"), known, errors);
            driver_name(&result.key("driver"), errors);
            pool_name(&result.key("pool"), errors);
            label(&result.key("device"), errors);
            binding_conditions(&result, errors);
            tolerations(&result.key("tolerations"), errors);
        }
    }
    let config = at.key("devices").key("config");
    if at_most(&config, 2 * MAX_CONFIGS, errors) {
        for item in config.items() {
            let source = item.key("source");
            match source.str() {
                "FromClaim" | "FromClass" => {}
                "" => errors.required(&source.path, ""),
                _ => errors.not_supported(&source.path, source.json(), &["FromClaim", "FromClass"]),
            }
            request_refs(&item.key("requests"), known, errors);
            opaque(&item.key("opaque"), errors);
        }
    }
    if at.key("nodeSelector").exists() {
        affinity::node_selector(&at.key("nodeSelector"), errors);
    }
}
