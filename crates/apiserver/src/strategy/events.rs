//! Events of both groups; those of the older group are hardly checked at all.

use api::field::{Cursor, ErrorList};
use serde_json::{Value, json};

use super::tree::text;

pub(super) fn validate(o: &Value, errors: &mut ErrorList) {
    let root = Cursor::root(o);
    let newer = text(o, "apiVersion") == "events.k8s.io/v1";
    let object = if newer { root.key("regarding") } else { root.key("involvedObject") };
    let (own, theirs) = (api::meta::namespace(o), object.key("namespace").str());
    if theirs.is_empty() {
        // Events about cluster-scoped objects live in the default namespace.
        if own != "default" && !matches!(object.key("kind").str(), "Pod" | "Service" | "Deployment") && newer
        {
            errors.invalid("involvedObject.namespace", &json!(theirs), "does not match event.namespace");
        }
    } else if own != theirs {
        errors.invalid("involvedObject.namespace", &json!(theirs), "does not match event.namespace");
    }
    if newer && !root.key("eventTime").exists() {
        errors.required("eventTime", "");
    }
    let strict = newer || root.key("eventTime").exists();
    if !strict {
        return;
    }
    let controller = if newer { root.key("reportingController") } else { root.key("reportingComponent") };
    if controller.str().is_empty() {
        errors.required(controller.path.as_str(), "");
        errors.invalid_all(&controller.path, &json!(""), api::names::qualified_name(""));
    } else {
        errors.invalid_all(&controller.path, controller.json(), api::names::qualified_name(controller.str()));
    }
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
    let kind = root.key("type");
    if !matches!(kind.str(), "Normal" | "Warning") {
        errors.invalid("type", &json!(""), &format!("has invalid value: {}", kind.str()));
    }
}
