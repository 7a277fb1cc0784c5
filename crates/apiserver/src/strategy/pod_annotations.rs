//! Annotations of pods that mean something to the server, and the fields that took their place.

use api::field::{Cursor, ErrorList, quote};
use serde_json::{Value, json};

use super::pod_validate::all_containers;
use super::{affinity, containers};

/// Marks the server's copy of a pod that a node runs on its own.
pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";
/// Before the name of a container: its AppArmor profile.
pub(super) const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
/// The pod's seccomp profile.
pub(super) const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
/// Before the name of a container: its seccomp profile.
pub(super) const SECCOMP: &str = "container.seccomp.security.alpha.kubernetes.io/";
const COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const TOLERATIONS: &str = "scheduler.alpha.kubernetes.io/tolerations";

/// The annotations at `at` of a pod (or template) with this spec.
pub(super) fn check(at: &Cursor<'_>, spec: &Cursor<'_>, errors: &mut ErrorList) {
    let key = |key: &str| format!("{}[{key}]", at.path);
    if let Some(mirror) = at.json().get(MIRROR)
        && spec.key("nodeName").str().is_empty()
    {
        let why = "must set spec.nodeName if mirror pod annotation is set";
        errors.invalid(&key(MIRROR), mirror, why);
    }
    tolerations(at, errors);
    if let Some(cost) = at.json().get(COST).and_then(Value::as_str)
        && !is_cost(cost)
    {
        errors.invalid(&key(COST), &json!(cost), "must be a 32bit integer");
    }
    for (name, profile) in at.entries().filter(|(name, _)| *name == SECCOMP_POD) {
        seccomp_name(&format!("{}.{name}", at.path), profile.str(), errors);
    }
    for (name, profile) in at.entries().filter(|(name, _)| name.starts_with(SECCOMP)) {
        seccomp_name(&format!("{}.{name}", at.path), profile.str(), errors);
    }
    for (name, profile) in at.entries() {
        let Some(container) = name.strip_prefix(APP_ARMOR) else { continue };
        if !all_containers(spec).any(|(_, c)| c.key("name").str() == container) {
            errors.invalid(&key(name), &json!(container), "container not found");
        }
        let text = profile.str();
        if !matches!(text, "" | "runtime/default" | "unconfined") && !text.starts_with("localhost/") {
            let why = format!("invalid AppArmor profile name: {}", quote(text));
            errors.invalid(&key(name), &json!(text), &why);
        }
    }
}

/// A number of 32 bits without a plus sign or zeros before it; those after a minus sign never mattered.
fn is_cost(text: &str) -> bool {
    let begins_well = text == "0" || text.starts_with(|c: char| c == '-' || ('1'..='9').contains(&c));
    begins_well && text.parse::<i32>().is_ok()
}

/// Tolerations as they were written before they had a field.
fn tolerations(at: &Cursor<'_>, errors: &mut ErrorList) {
    let Some(text) = at.json().get(TOLERATIONS).and_then(Value::as_str).filter(|t| !t.is_empty()) else {
        return;
    };
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Null) => {}
        Ok(list @ Value::Array(_)) => {
            let list = Cursor { value: Some(&list), path: format!("{}.{TOLERATIONS}", at.path) };
            list.items().for_each(|toleration| affinity::toleration(&toleration, errors));
        }
        Ok(other) => {
            let found = super::core_config::go_type(&other);
            let why = format!("json: cannot unmarshal {found} into Go value of type []v1.Toleration");
            errors.invalid(&at.path, &json!(TOLERATIONS), &why);
        }
        Err(error) => {
            let why = super::core_config::go_json_error(text.as_bytes(), &error);
            errors.invalid(&at.path, &json!(TOLERATIONS), &why);
        }
    }
}

fn seccomp_name(path: &str, profile: &str, errors: &mut ErrorList) {
    if matches!(profile, "runtime/default" | "docker/default" | "unconfined") {
        return;
    }
    match profile.strip_prefix("localhost/") {
        Some(file) => {
            let file = json!(file);
            containers::local_path(&Cursor { value: Some(&file), path: path.to_owned() }, errors);
        }
        None => errors.invalid(path, &json!(profile), "must be a valid seccomp profile"),
    }
}

/// Where a new object has both an annotation and the field that took its place, they say the same.
pub(super) fn match_fields(annotations: &Value, spec: &Cursor<'_>, errors: &mut ErrorList) {
    let given = |key: &str| annotations.get(key).and_then(Value::as_str);
    let of_pod = profile(spec, "seccompProfile");
    if let Some(annotation) = given(SECCOMP_POD).filter(|_| of_pod.exists()) {
        same("seccomp", annotation, &of_pod, errors);
    }
    for (_, c) in all_containers(spec) {
        let own = profile(&c, "seccompProfile");
        let key = format!("{SECCOMP}{}", c.key("name").str());
        if let Some(annotation) = given(&key).filter(|_| own.exists()) {
            same("seccomp", annotation, &own, errors);
        }
    }
    if spec.key("os").key("name").str() == "windows" {
        return;
    }
    let of_pod = profile(spec, "appArmorProfile");
    for (_, c) in all_containers(spec) {
        let own = profile(&c, "appArmorProfile");
        let key = format!("{APP_ARMOR}{}", c.key("name").str());
        let value = own.value.or(of_pod.value);
        if let Some(annotation) = given(&key).filter(|_| value.is_some()) {
            same("apparmor", annotation, &Cursor { value, ..own }, errors);
        }
    }
}

fn profile<'a>(of: &Cursor<'a>, field: &str) -> Cursor<'a> {
    of.key("securityContext").key(field)
}

fn same(what: &str, annotation: &str, profile: &Cursor<'_>, errors: &mut ErrorList) {
    let (kind, local) = (profile.key("type"), profile.key("localhostProfile"));
    let is_same = match kind.str() {
        "Unconfined" => annotation == "unconfined",
        "RuntimeDefault" => {
            annotation == "runtime/default" || what == "seccomp" && annotation == "docker/default"
        }
        "Localhost" => annotation.starts_with("localhost/"),
        _ => true,
    };
    if !is_same {
        errors.forbidden(&kind.path, &format!("{what} type in annotation and field must match"));
    } else if kind.str() == "Localhost"
        && (!local.exists() || annotation.strip_prefix("localhost/") != Some(local.str()))
    {
        errors.forbidden(&local.path, &format!("{what} profile in annotation and field must match"));
    }
}
