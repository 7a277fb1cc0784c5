//! API services: groups that other servers answer for.

use api::field::{Cursor, ErrorList};
use api::{meta, names};
use serde_json::{Value, json};

use super::parts::Parts;
use super::tree::{child, has, make, put_absent};

pub(super) static API_SERVICE: Parts = Parts {
    status_keeps: super::generic::OWN_META,
    unconditional_update: false,
    default: |o| {
        if let Some(service) = make(o, "spec").and_then(|s| child(s, "service")) {
            put_absent(service, "port", 443);
        }
    },
    create: |context, o| {
        if !has(&o["spec"], "service") {
            o["status"] = json!({"conditions": [{
                "type": "Available",
                "status": "True",
                "reason": "Local",
                "message": "Local APIServices are always available",
                "lastTransitionTime": meta::format_time(context.now),
            }]});
        }
    },
    validate: api_service,
    validate_status: |new, _, errors| {
        for condition in Cursor::root(new).key("status").key("conditions").items() {
            let status = condition.key("status");
            if !matches!(status.str(), "True" | "False" | "Unknown") {
                errors.not_supported(&status.path, &json!(status.str()), &["True", "False", "Unknown"]);
            }
        }
    },
    ..Parts::UNCOUNTED
};

fn api_service(o: &Value, errors: &mut ErrorList) {
    let spec = Cursor::root(o).key("spec");
    let (group, version) = (spec.key("group"), spec.key("version"));
    let name = meta::name(o);
    let wanted = format!("{}.{}", version.str(), group.str());
    if name != wanted && names::path_segment(name).is_empty() {
        let why = format!("must be `spec.version+\".\"+spec.group`: {}", api::field::quote(&wanted));
        errors.invalid("metadata.name", &json!(name), &why);
    }
    if !group.str().is_empty() {
        errors.invalid_all(&group.path, group.json(), names::dns1123_subdomain(group.str()));
    } else if version.str() != "v1" {
        errors.required("spec.group", "only v1 may have an empty group and it better be legacy kube");
    }
    errors.invalid_all("spec.version", &json!(version.str()), names::dns1035_label(version.str()));
    for (key, most) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1000)] {
        let n = spec.key(key).i64().unwrap_or_default();
        if !(1..=most).contains(&n) {
            let why = format!("must be positive and less than {most}");
            errors.invalid(&format!("spec.{key}"), &json!(n), &why);
        }
    }
    let (insecure, bundle) = (spec.key("insecureSkipTLSVerify"), spec.key("caBundle"));
    let service = spec.key("service");
    if !service.exists() {
        if !bundle.str().is_empty() {
            let bytes = super::core_config::decoded_len(bundle.str());
            let shown = json!(format!("{bytes} bytes"));
            errors.invalid(&bundle.path, &shown, "local APIServices may not have a caBundle");
        }
        if insecure.bool() == Some(true) {
            let why = "local APIServices may not have insecureSkipTLSVerify";
            errors.invalid(&insecure.path, insecure.json(), why);
        }
        return;
    }
    for key in ["namespace", "name"] {
        if service.key(key).str().is_empty() {
            errors.required(&service.key(key).path, "");
        }
    }
    let port = service.key("port");
    if port.i64().is_some_and(|n| !(1..=65_535).contains(&n)) {
        let why = "port is not valid: must be between 1 and 65535, inclusive";
        errors.invalid(&port.path, port.json(), why);
    }
    if insecure.bool() == Some(true) && !bundle.str().is_empty() {
        errors.invalid(&insecure.path, insecure.json(), "may not be true if caBundle is present");
    }
}
