//! What may change on an existing pod: images, deadlines that shrink, tolerations that are added, and gates that go;
//! and what through its subresources.

use std::collections::BTreeSet;

use api::field::{Cursor, ErrorList, quote};
use serde_json::{Value, json};

use super::generic::{copy, set};
use super::internal;
use super::pod_annotations::{self, APP_ARMOR, MIRROR};
use super::tree::{has, is_empty};

const MESSAGE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// A change of a pod through its main resource.
pub(super) fn pod(new: &Value, old: &Value, errors: &mut ErrorList) {
    super::pod_validate::metadata_and_spec(new, errors);
    annotations(new, old, errors);
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
    if !deadline(n, o, errors) {
        return;
    }
    tolerations(n, o, errors);
    gates(n, o, errors);
    let mut frozen = n.clone();
    for list in ["containers", "initContainers"] {
        for (container, before) in
            super::tree::each(&mut frozen, list).zip(o[list].as_array().into_iter().flatten())
        {
            copy("image", container, before);
        }
    }
    for key in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        copy(key, &mut frozen, o);
    }
    if o["terminationGracePeriodSeconds"].as_i64().is_some_and(|s| s < 0)
        && frozen["terminationGracePeriodSeconds"] == 1
    {
        copy("terminationGracePeriodSeconds", &mut frozen, o);
    }
    if !is_empty(o.get("schedulingGates")) {
        while_gated(&mut frozen, o, errors);
    }
    if !same(&frozen, o) {
        let shown = internal::diff("PodSpec", o, &frozen);
        errors.forbidden("spec", &format!("{MESSAGE}\n{shown}"));
    }
}

/// Whether two specs are equal; null, absent and empty are one.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let keys: BTreeSet<&String> = x.keys().chain(y.keys()).collect();
            keys.into_iter().all(|k| same(&a[k.as_str()], &b[k.as_str()]))
        }
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(a, b)| same(a, b)),
        (Value::Null, other) | (other, Value::Null) => {
            other.is_null() || other.as_array().is_some_and(Vec::is_empty)
        }
        _ => a == b,
    }
}

/// A pod that is not scheduled yet may become choosier about its node.
fn while_gated(frozen: &mut Value, o: &Value, errors: &mut ErrorList) {
    let before = o["nodeSelector"].as_object().into_iter().flatten();
    if before.into_iter().any(|(key, value)| frozen["nodeSelector"].get(key) != Some(value)) {
        errors.invalid(
            "spec.nodeSelector",
            &frozen["nodeSelector"],
            "only additions to spec.nodeSelector are allowed (no mutations or deletions)",
        );
    }
    copy("nodeSelector", frozen, o);
    const TERMS: &str =
        "/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let terms = |spec: &Value| spec.pointer(TERMS).and_then(Value::as_array).cloned().unwrap_or_default();
    let at = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    let (now, then) = (terms(frozen), terms(o));
    if !then.is_empty() && now.len() != then.len() {
        let shown = internal::show_list("NodeSelectorTerm", &json!(now));
        let why = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        errors.invalid_shown(at, &shown, why);
    } else {
        for (i, (term, was)) in now.iter().zip(&then).enumerate() {
            if !only_adds(term, was) {
                let shown = internal::show("NodeSelectorTerm", term);
                let why = "only additions are allowed (no mutations or deletions)";
                errors.invalid_shown(&format!("{at}[{i}]"), &shown, why);
            }
        }
    }
    let node = o["affinity"].get("nodeAffinity").cloned();
    match (has(frozen, "affinity"), has(o, "affinity")) {
        (false, true) => set(frozen, "affinity", node.map(|node| json!({"nodeAffinity": node}))),
        (true, false) if ["podAffinity", "podAntiAffinity"].iter().all(|k| !has(&frozen["affinity"], k)) => {
            set(frozen, "affinity", None);
        }
        (true, _) => set(&mut frozen["affinity"], "nodeAffinity", node),
        _ => {}
    }
}

/// Whether a term has all the requirements it had, in their places.
fn only_adds(term: &Value, was: &Value) -> bool {
    let list = |t: &Value, key: &str| t[key].as_array().cloned().unwrap_or_default();
    let had_none = ["matchExpressions", "matchFields"].iter().all(|k| list(was, k).is_empty());
    if had_none {
        return ["matchExpressions", "matchFields"].iter().all(|k| list(term, k).is_empty());
    }
    ["matchExpressions", "matchFields"].iter().all(|k| list(term, k).starts_with(&list(was, k)))
}

/// Annotations that say what a pod is stay as they are.
pub(super) fn annotations(new: &Value, old: &Value, errors: &mut ErrorList) {
    let of = |o: &Value| o["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
    let (now, before) = (of(new), of(old));
    let at = |key: &str| format!("metadata.annotations[{key}]");
    for (key, _) in before.iter().filter(|(k, v)| now.get(*k) != Some(v)) {
        if key.starts_with(APP_ARMOR) {
            errors.forbidden(&at(key), "may not remove or update AppArmor annotations");
        }
        if key == MIRROR {
            errors.forbidden(&at(key), "may not remove or update mirror pod annotation");
        }
    }
    for (key, _) in now.iter().filter(|(k, _)| !before.contains_key(*k)) {
        if key.starts_with(APP_ARMOR) {
            errors.forbidden(&at(key), "may not add AppArmor annotations");
        }
        if key == MIRROR {
            errors.forbidden(&at(key), "may not add mirror pod annotation");
        }
    }
    let root = Cursor::root(new);
    pod_annotations::check(&root.key("metadata").key("annotations"), &root.key("spec"), errors);
}

/// False where nothing more is worth a look.
fn deadline(n: &Value, o: &Value, errors: &mut ErrorList) -> bool {
    let at = "spec.activeDeadlineSeconds";
    match (n["activeDeadlineSeconds"].as_i64(), o["activeDeadlineSeconds"].as_i64()) {
        (Some(new), old) => {
            if !(0..=i64::from(i32::MAX)).contains(&new) {
                errors.invalid(at, &json!(new), "must be between 0 and 2147483647, inclusive");
                return false;
            }
            if old.is_some_and(|old| new > old) {
                errors.invalid(at, &json!(new), "must be less than or equal to previous value");
                return false;
            }
        }
        (None, Some(_)) => {
            errors.invalid(at, &Value::Null, "must not update from a positive integer to nil value");
        }
        (None, None) => {}
    }
    true
}

fn tolerations(n: &Value, o: &Value, errors: &mut ErrorList) {
    let list = |spec: &Value| spec["tolerations"].as_array().cloned().unwrap_or_default();
    let (now, before) = (list(n), list(o));
    let without_time = |t: &Value| {
        let mut t = t.clone();
        set(&mut t, "tolerationSeconds", None);
        t
    };
    if !before.iter().all(|b| now.iter().any(|t| without_time(t) == without_time(b))) {
        let why = "existing toleration can not be modified except its tolerationSeconds";
        return errors.forbidden("spec.tolerations", why);
    }
    for toleration in Cursor::at(n, "spec").key("tolerations").items() {
        super::affinity::toleration(&toleration, errors);
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

fn is_mirror(pod: &Value) -> bool {
    pod["metadata"]["annotations"].get(MIRROR).is_some()
}

/// Ephemeral containers are added, never changed or removed.
pub(super) fn ephemeral(new: &Value, old: &Value, errors: &mut ErrorList) {
    if is_mirror(old) {
        return errors.forbidden("", "static pods do not support ephemeral containers");
    }
    super::pod_validate::metadata_and_spec(new, errors);
    annotations(new, old, errors);
    let list = |o: &Value| o["spec"]["ephemeralContainers"].as_array().cloned().unwrap_or_default();
    let (now, before) = (list(new), list(old));
    for container in &before {
        let name = quote(container["name"].as_str().unwrap_or_default());
        match now.iter().find(|c| c["name"] == container["name"]) {
            None => errors.forbidden(
                "spec.ephemeralContainers",
                &format!("existing ephemeral containers {name} may not be removed\n"),
            ),
            Some(changed) if !same(changed, container) => {
                let shown = internal::diff("EphemeralContainer", container, changed);
                errors.forbidden(
                    "spec.ephemeralContainers",
                    &format!("existing ephemeral containers {name} may not be changed\n{shown}"),
                );
            }
            Some(_) => {}
        }
    }
}

/// A resize changes cpu and memory of what is running, and keeps the quality of service class.
pub(super) fn resize(new: &Value, old: &Value, class: &str, errors: &mut ErrorList) {
    if is_mirror(old) {
        return errors.forbidden("", "static pods cannot be resized");
    }
    if old["spec"]["os"]["name"] == "windows" {
        return errors.forbidden("", "windows pods cannot be resized");
    }
    super::pod_validate::metadata_and_spec(new, errors);
    let before = old["status"]["qosClass"].as_str().unwrap_or(class);
    if before != class {
        errors.invalid("spec", &json!(before), "Pod QOS Class may not change as a result of resizing");
    }
    let running = old["status"]["containerStatuses"].as_array().into_iter().flatten();
    if running.into_iter().find(|s| s["state"]["running"].is_object()).is_some_and(|s| !has(s, "resources")) {
        errors.forbidden("spec", "Pod running on node without support for resize");
    }
    resize_of_pod(&new["spec"], &old["spec"], errors);
    if !same_containers(&new["spec"], &old["spec"], errors) {
        return;
    }
    for list in ["initContainers", "containers"] {
        for (i, (now, was)) in items(&new["spec"], list).zip(items(&old["spec"], list)).enumerate() {
            if list == "containers" || was["restartPolicy"] == "Always" {
                removed(now, was, &format!("spec.{list}[{i}].resources"), "", errors);
            }
        }
    }
    for (list, why) in [
        ("containers", "only cpu and memory resources are mutable"),
        ("initContainers", "only cpu and memory resources for sidecar containers are mutable"),
    ] {
        for (now, was) in items(&new["spec"], list).zip(items(&old["spec"], list)) {
            if list == "initContainers" && was["restartPolicy"] != "Always" {
                if !same(now, was) {
                    errors.forbidden("spec", "resources for non-sidecar init containers are immutable");
                }
            } else if !same(&now["resizePolicy"], &was["resizePolicy"])
                || rest(&now["resources"]) != rest(&was["resources"])
            {
                errors.forbidden("spec", why);
            }
        }
    }
}

fn items<'a>(spec: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    spec[list].as_array().into_iter().flatten()
}

/// Resources of the pod as a whole.
fn resize_of_pod(new: &Value, old: &Value, errors: &mut ErrorList) {
    let is_set = |spec: &Value| ["requests", "limits"].iter().any(|k| !is_empty(spec["resources"].get(*k)));
    if !is_set(new) && !is_set(old) {
        return;
    }
    if has(old, "resources") && !has(new, "resources") {
        return errors.forbidden("spec.resources", "pod-level resources cannot be removed");
    }
    if has(old, "resources") {
        removed(new, old, "spec.resources", "pod-level ", errors);
    }
    if rest(&new["resources"]) != rest(&old["resources"]) {
        errors.forbidden("spec", "only cpu and memory resources are mutable at pod-level");
    }
}

/// Whether the containers are those that were there, in their order.
fn same_containers(new: &Value, old: &Value, errors: &mut ErrorList) -> bool {
    let found = errors.len();
    for list in ["containers", "initContainers"] {
        if items(new, list).count() != items(old, list).count() {
            errors
                .forbidden(&format!("spec.{list}"), &format!("{list} may not be added or removed on resize"));
            continue;
        }
        for (i, (now, was)) in items(new, list).zip(items(old, list)).enumerate() {
            if now["name"] != was["name"] {
                let why = format!("{list} may not be renamed or reordered on resize");
                errors.forbidden(&format!("spec.{list}[{i}].name"), &why);
            }
        }
    }
    errors.len() == found
}

/// What a resize cannot touch: all but cpu and memory.
fn rest(resources: &Value) -> Vec<(String, Value)> {
    let mut rest = vec![("claims".to_owned(), resources["claims"].clone())];
    for place in ["limits", "requests"] {
        for (name, value) in resources[place].as_object().into_iter().flatten() {
            if !matches!(name.as_str(), "cpu" | "memory") {
                rest.push((format!("{place}.{name}"), super::quantities::show(value)));
            }
        }
    }
    rest.sort_by(|(a, _), (b, _)| a.cmp(b));
    rest
}

fn removed(now: &Value, was: &Value, at: &str, whose: &str, errors: &mut ErrorList) {
    for place in ["requests", "limits"] {
        let before = was["resources"][place].as_object().into_iter().flatten();
        if before.into_iter().any(|(name, _)| !has(&now["resources"][place], name)) {
            errors.forbidden(&format!("{at}.{place}"), &format!("{whose}resource {place} cannot be removed"));
        }
    }
}
