//! Field selectors: which fields of which kind can be selected, and their values.
//!
//! Rule: Kubernetes documentation, "Field Selectors", and the reference's answers. The values are read once,
//! when an object enters the watch cache, so that a list by field never parses objects.

use api::custom::Definition;
use api::kinds::Kind;
use api::object::Object;
use api::selector::FieldSelector;
use serde_json::Value;

use crate::status::{ApiError, ApiResult};

/// (selector label, JSON pointer) of a kind, besides `metadata.name` and `metadata.namespace`.
fn table(group: &str, kind: &str) -> &'static [(&'static str, &'static str)] {
    match (group, kind) {
        ("", "Pod") => &[
            ("spec.nodeName", "/spec/nodeName"),
            ("spec.restartPolicy", "/spec/restartPolicy"),
            ("spec.schedulerName", "/spec/schedulerName"),
            ("spec.serviceAccountName", "/spec/serviceAccountName"),
            ("spec.hostNetwork", "/spec/hostNetwork"),
            ("status.phase", "/status/phase"),
            ("status.podIP", "/status/podIP"),
            ("status.podIPs", "/status/podIPs"),
            ("status.nominatedNodeName", "/status/nominatedNodeName"),
        ],
        ("", "Event") | ("events.k8s.io", "Event") => &[
            ("involvedObject.kind", "/involvedObject/kind"),
            ("involvedObject.namespace", "/involvedObject/namespace"),
            ("involvedObject.name", "/involvedObject/name"),
            ("involvedObject.uid", "/involvedObject/uid"),
            ("involvedObject.apiVersion", "/involvedObject/apiVersion"),
            ("involvedObject.resourceVersion", "/involvedObject/resourceVersion"),
            ("involvedObject.fieldPath", "/involvedObject/fieldPath"),
            ("regarding.kind", "/involvedObject/kind"),
            ("regarding.namespace", "/involvedObject/namespace"),
            ("regarding.name", "/involvedObject/name"),
            ("regarding.uid", "/involvedObject/uid"),
            ("regarding.apiVersion", "/involvedObject/apiVersion"),
            ("regarding.resourceVersion", "/involvedObject/resourceVersion"),
            ("regarding.fieldPath", "/involvedObject/fieldPath"),
            ("reason", "/reason"),
            ("reportingComponent", "/reportingComponent"),
            ("reportingController", "/reportingComponent"),
            ("source", "/source/component"),
            ("type", "/type"),
        ],
        ("", "Secret") => &[("type", "/type")],
        ("", "Namespace") => &[("status.phase", "/status/phase")],
        ("", "Node") => &[("spec.unschedulable", "/spec/unschedulable")],
        ("", "Service") => &[("spec.clusterIP", "/spec/clusterIP"), ("spec.type", "/spec/type")],
        ("", "ReplicationController") | ("apps", "ReplicaSet") => &[("status.replicas", "/status/replicas")],
        ("batch", "Job") => &[("status.successful", "/status/succeeded")],
        ("certificates.k8s.io", "CertificateSigningRequest") => &[("spec.signerName", "/spec/signerName")],
        ("resource.k8s.io", "ResourceSlice") => {
            &[("spec.nodeName", "/spec/nodeName"), ("spec.driver", "/spec/driver")]
        }
        _ => &[],
    }
}

fn group_of(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

fn text(value: Option<&Value>, label: &str) -> String {
    match value {
        Some(Value::String(s)) => s.clone(),
        Some(Value::Bool(b)) => b.to_string(),
        Some(Value::Number(n)) => n.to_string(),
        Some(Value::Array(list)) => {
            list.iter().filter_map(|ip| ip["ip"].as_str()).collect::<Vec<_>>().join(",")
        }
        _ => match label {
            "spec.unschedulable" | "spec.hostNetwork" => "false".to_owned(),
            "status.replicas" | "status.successful" => "0".to_owned(),
            _ => String::new(),
        },
    }
}

/// Reads the selectable fields of an object that enters the cache.
pub fn index(object: &Object) {
    let table = table(group_of(object.api_version()), object.kind());
    if table.is_empty() {
        return;
    }
    let value = object.to_value();
    let mut fields: Vec<(&'static str, Box<str>)> = table
        .iter()
        .map(|(label, pointer)| (*label, text(value.pointer(pointer), label).into_boxed_str()))
        .collect();
    // an event may name its source by either generation of the field
    if let Some(at) = fields.iter().position(|(l, v)| *l == "source" && v.is_empty()) {
        fields[at].1 = text(value.pointer("/reportingComponent"), "source").into();
    }
    object.set_fields(fields.into());
}

/// The value of a selectable field.
pub fn value(object: &Object, definition: Option<&Definition>, label: &str) -> String {
    match label {
        "metadata.name" => object.name().to_owned(),
        "metadata.namespace" => object.namespace().unwrap_or_default().to_owned(),
        label if definition.is_some() => text(api::custom::at(object.value(), label), label),
        label => object.field(label).unwrap_or_default().to_owned(),
    }
}

/// Events have other field names in either group; the objects are the same.
fn is_of_version(kind: &Kind, label: &str) -> bool {
    const CORE_ONLY: &[&str] = &["reportingComponent", "source"];
    if kind.kind != "Event" {
        return true;
    }
    match kind.group.as_str() {
        "" => !label.starts_with("regarding.") && label != "reportingController",
        _ => !label.starts_with("involvedObject.") && !CORE_ONLY.contains(&label),
    }
}

/// Refuses a selector over a field that cannot be selected.
pub fn check(kind: &Kind, selector: &FieldSelector, label_text: &str, field_text: &str) -> ApiResult<()> {
    let selectable = kind.definition.as_ref().map_or(&[][..], |d| &d.own().selectable);
    let known = table(&kind.group, &kind.kind);
    for (label, _, _) in &selector.terms {
        // of kinds with fields of their own, only those of a namespace are found by it
        let common = match label.as_str() {
            "metadata.name" => true,
            "metadata.namespace" => kind.namespaced || known.is_empty() && kind.definition.is_none(),
            _ => false,
        };
        if common
            || selectable.contains(label)
            || known.iter().any(|(l, _)| l == label) && is_of_version(kind, label)
        {
            continue;
        }
        if !known.is_empty() || kind.definition.is_some() {
            return Err(ApiError::bad_request(format!("field label not supported: {label}")));
        }
        return Err(ApiError::bad_request(format!(
            "Unable to find \"{}/{}, Resource={}\" that match label selector \"{label_text}\", field selector \"{field_text}\": {label:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
            kind.group, kind.version, kind.plural
        )));
    }
    Ok(())
}
