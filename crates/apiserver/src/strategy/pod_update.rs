//! What may change on an existing pod: images, deadlines that shrink, tolerations that are added, and gates that go.

use api::field::ErrorList;
use serde_json::{Value, json};

use super::generic::{copy, set};
use super::tree::{has, is_empty};

const MESSAGE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// A change of a pod through its main resource.
pub(super) fn pod(new: &Value, old: &Value, errors: &mut ErrorList) {
    let (n, o) = (&new["spec"], &old["spec"]);
    for list in ["containers", "initContainers"] {
        let count = |spec: &Value| spec[list].as_array().map_or(0, Vec::len);
        if count(n) != count(o) {
            errors.forbidden(&format!("spec.{list}"), "pod updates may not add or remove containers");
            return;
        }
        for (i, container) in n[list].as_array().into_iter().flatten().enumerate() {
            let image = container["image"].as_str().unwrap_or_default();
            let at = format!("spec.{list}[{i}].image");
            if image.is_empty() {
                errors.required(&at, "");
            } else if image.trim() != image {
                errors.invalid(&at, &json!(image), "must not have leading or trailing whitespace");
            }
        }
    }
    deadline(n, o, errors);
    tolerations(n, o, errors);
    gates(n, o, errors);
    if !errors.is_empty() {
        return;
    }
    let mut frozen = n.clone();
    for list in ["containers", "initContainers"] {
        for (container, before) in
            super::tree::each(&mut frozen, list).zip(o[list].as_array().into_iter().flatten())
        {
            copy("image", container, before);
        }
    }
    copy("activeDeadlineSeconds", &mut frozen, o);
    copy("tolerations", &mut frozen, o);
    let gated = !is_empty(o.get("schedulingGates"));
    copy("schedulingGates", &mut frozen, o);
    if gated {
        // A pod that is not scheduled yet may become choosier about its node.
        copy("nodeSelector", &mut frozen, o);
        if let (Some(affinity), Some(before)) = (frozen.get_mut("affinity"), o.get("affinity")) {
            copy("nodeAffinity", affinity, before);
        } else if !has(o, "affinity") {
            set(&mut frozen, "affinity", None);
        }
    }
    if o["terminationGracePeriodSeconds"].as_i64().is_some_and(|s| s < 0) {
        copy("terminationGracePeriodSeconds", &mut frozen, o);
    }
    if frozen != *o {
        errors.forbidden("spec", MESSAGE);
    }
}

fn deadline(n: &Value, o: &Value, errors: &mut ErrorList) {
    let at = "spec.activeDeadlineSeconds";
    match (n["activeDeadlineSeconds"].as_i64(), o["activeDeadlineSeconds"].as_i64()) {
        (Some(new), old) => {
            if !(1..=i64::from(i32::MAX)).contains(&new) {
                errors.invalid(at, &json!(new), "must be between 1 and 2147483647, inclusive");
            } else if old.is_some_and(|old| new > old) {
                errors.invalid(at, &json!(new), "must be less than or equal to previous value");
            }
        }
        (None, Some(_)) => {
            errors.invalid(at, &Value::Null, "must not update from a positive integer to nil value");
        }
        (None, None) => {}
    }
}

fn tolerations(n: &Value, o: &Value, errors: &mut ErrorList) {
    let list = |spec: &Value| spec["tolerations"].as_array().cloned().unwrap_or_default();
    let (now, before) = (list(n), list(o));
    let without_time = |t: &Value| {
        let mut t = t.clone();
        set(&mut t, "tolerationSeconds", None);
        t
    };
    let kept = before.iter().all(|b| now.iter().any(|t| without_time(t) == without_time(b)));
    if !kept {
        errors.forbidden(
            "spec.tolerations",
            "existing toleration can not be modified except its tolerationSeconds",
        );
    }
    for (i, t) in now.iter().enumerate() {
        if !before.contains(t) {
            super::affinity::toleration(
                &api::field::Cursor::at(t, &format!("spec.tolerations[{i}]")),
                errors,
            );
        }
    }
}

fn gates(n: &Value, o: &Value, errors: &mut ErrorList) {
    let names = |spec: &Value| -> Vec<String> {
        let list = spec["schedulingGates"].as_array().into_iter().flatten();
        list.filter_map(|g| g["name"].as_str()).map(str::to_owned).collect()
    };
    let before = names(o);
    for (i, gate) in names(n).iter().enumerate() {
        if !before.contains(gate) {
            errors.forbidden(
                &format!("spec.schedulingGates[{i}].name"),
                &format!("only deletion is allowed, but found new scheduling gate '{gate}'"),
            );
        }
    }
}

/// Ephemeral containers are added, never changed or removed.
pub(super) fn ephemeral(new: &Value, old: &Value, errors: &mut ErrorList) {
    let list = |o: &Value| o["spec"]["ephemeralContainers"].as_array().cloned().unwrap_or_default();
    let (now, before) = (list(new), list(old));
    super::pod_validate::pod_spec(new, errors);
    for container in &before {
        match now.iter().find(|c| c["name"] == container["name"]) {
            None => errors.forbidden(
                "spec.ephemeralContainers",
                &format!(
                    "existing ephemeral containers {} may not be removed\n",
                    api::field::show(&container["name"])
                ),
            ),
            Some(same) if same != container => errors.forbidden(
                "spec.ephemeralContainers",
                &format!(
                    "existing ephemeral containers {} may not be changed\n",
                    api::field::show(&container["name"])
                ),
            ),
            Some(_) => {}
        }
    }
}

/// A resize keeps the quality of service class.
pub(super) fn resize(new: &Value, old: &Value, class: &str, errors: &mut ErrorList) {
    super::pod_validate::pod_spec(new, errors);
    let before = old["status"]["qosClass"].as_str().unwrap_or(class);
    if before != class {
        errors.invalid("spec", &json!(before), "Pod QOS Class may not change as a result of resizing");
    }
}
