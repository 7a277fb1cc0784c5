//! Events of both groups; those of the older group are hardly checked at all.

use api::field::{Cursor, ErrorList};
use serde_json::{Value, json};

use super::tree::text;

/// A new event.
pub(super) fn validate(o: &Value, errors: &mut ErrorList) {
    let root = Cursor::root(o);
    let newer = text(o, "apiVersion") == "events.k8s.io/v1";
    common(&root, newer, errors);
    if !newer {
        return;
    }
    series(&root.key("series"), errors);
    if !root.key("eventTime").exists() {
        errors.required("eventTime", "");
    }
    let kind = root.key("type");
    if !matches!(kind.str(), "Normal" | "Warning") {
        errors.invalid("type", &json!(""), &format!("has invalid value: {}", kind.str()));
    }
    for (field, name) in [
        ("deprecatedFirstTimestamp", "firstTimestamp"),
        ("deprecatedLastTimestamp", "lastTimestamp"),
        ("deprecatedCount", "count"),
        ("deprecatedSource", "source"),
    ] {
        let given = root.key(field).json();
        if !super::tree::is_empty(Some(given)) && *given != 0 {
            errors.invalid(name, &json!(""), "needs to be unset");
        }
    }
}

/// A change of an event: of the newer group's, only its series and what is said about it.
pub(super) fn change(new: &Value, old: &Value, errors: &mut ErrorList) {
    let newer = text(new, "apiVersion") == "events.k8s.io/v1";
    common(&Cursor::root(new), newer, errors);
    if !newer {
        return;
    }
    if new["series"] != old["series"] {
        series(&Cursor::root(new).key("series"), errors);
    }
    for (field, name) in [
        ("regarding", "involvedObject"),
        ("reason", "reason"),
        ("note", "message"),
        ("deprecatedFirstTimestamp", "firstTimestamp"),
        ("deprecatedLastTimestamp", "lastTimestamp"),
        ("deprecatedCount", "count"),
        ("deprecatedSource", "source"),
        ("type", "type"),
        ("eventTime", "eventTime"),
        ("action", "action"),
        ("related", "related"),
        ("reportingController", "reportingController"),
        ("reportingInstance", "reportingInstance"),
    ] {
        super::generic::immutable(name, &new[field], &old[field], errors);
    }
}

/// What happened again, and when it last did.
fn series(at: &Cursor<'_>, errors: &mut ErrorList) {
    if !at.exists() {
        return;
    }
    if at.key("count").i64().unwrap_or(0) < 2 {
        errors.invalid("series.count", &json!(""), "should be at least 2");
    }
    if !at.key("lastObservedTime").exists() {
        errors.required("series.lastObservedTime", "");
    }
}

/// Rules of both groups; an event that names its time says who reports what.
fn common(root: &Cursor<'_>, newer: bool, errors: &mut ErrorList) {
    const DIFFERS: &str = "does not match event.namespace";
    let object = if newer { root.key("regarding") } else { root.key("involvedObject") };
    let (own, theirs) = (root.key("metadata").key("namespace").str(), object.key("namespace").str());
    if !root.key("eventTime").exists() {
        // events about cluster-scoped objects live in the default namespace
        if theirs.is_empty() && !matches!(own, "" | "default") || !theirs.is_empty() && own != theirs {
            errors.invalid("involvedObject.namespace", &json!(theirs), DIFFERS);
        }
        return;
    }
    if theirs.is_empty() && !matches!(own, "default" | "kube-system") {
        errors.invalid("involvedObject.namespace", &json!(theirs), DIFFERS);
    }
    let controller = if newer { root.key("reportingController") } else { root.key("reportingComponent") };
    if controller.str().is_empty() {
        errors.required(controller.path.as_str(), "");
    }
    let messages = api::names::qualified_name(controller.str());
    errors.invalid_all(&controller.path, &json!(controller.str()), messages);
    for (key, limit) in [("reportingInstance", 128), ("action", 128), ("reason", 128)] {
        let at = root.key(key);
        if at.str().is_empty() {
            errors.required(key, "");
        } else if at.str().len() > limit {
            errors.invalid(key, &json!(""), &format!("can have at most {limit} characters"));
        }
    }
    let note = if newer { root.key("note") } else { root.key("message") };
    if note.str().len() > 1024 {
        errors.invalid("message", &json!(""), "can have at most 1024 characters");
    }
}
