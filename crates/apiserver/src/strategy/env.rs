//! Environment variables.

use api::field::{Cursor, ErrorList};
use api::names;
use serde_json::json;

use super::{containers, quantities};

const FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const VOLUME_FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
/// Fields that have a meaning somewhere; others are unknown labels.
const CONVERTIBLE: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "spec.restartPolicy", "spec.schedulerName", "status.phase"];

fn variable_name(name: &str) -> Vec<String> {
    let printable = name.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=');
    if name.is_empty() || !printable {
        return vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".to_owned()];
    }
    Vec::new()
}

/// `env` and `envFrom` of a container.
pub(super) fn validate(c: &Cursor<'_>, errors: &mut ErrorList) {
    for variable in c.key("env").items() {
        let name = variable.key("name");
        if name.str().is_empty() {
            errors.required(&name.path, "");
        } else {
            errors.invalid_all(&name.path, name.json(), variable_name(name.str()));
        }
        let source = variable.key("valueFrom");
        if source.exists() {
            value_from(&source, !variable.key("value").str().is_empty(), errors);
        }
    }
    let list = c.key("envFrom");
    for from in list.items() {
        let prefix = from.key("prefix");
        if !prefix.str().is_empty() {
            errors.invalid_all(&prefix.path, prefix.json(), variable_name(prefix.str()));
        }
        let mut given = 0;
        for key in ["configMapRef", "secretRef"] {
            let at = from.key(key);
            if at.exists() {
                given += 1;
                let name = at.key("name");
                if name.str().is_empty() {
                    errors.required(&name.path, "");
                } else {
                    let messages = names::dns1123_subdomain(&without_trailing_dash(name.str()));
                    errors.invalid_all(&name.path, name.json(), messages);
                }
            }
        }
        match given {
            0 => errors.invalid(&list.path, &json!(""), "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => {
                errors.invalid(&list.path, &json!(""), "may not have more than one field specified at a time")
            }
        }
    }
}

/// A name as it would be if something followed it, as of a prefix of names.
fn without_trailing_dash(name: &str) -> String {
    match name.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => {
            format!("{}a", &rest[..rest.len() - rest.chars().last().map_or(0, char::len_utf8)])
        }
        _ => name.to_owned(),
    }
}

fn value_from(at: &Cursor<'_>, has_value: bool, errors: &mut ErrorList) {
    let mut given = 0;
    if at.key("fieldRef").exists() {
        given += 1;
        field_ref(&at.key("fieldRef"), &FIELDS, errors);
    }
    if at.key("resourceFieldRef").exists() {
        given += 1;
        resource_ref(&at.key("resourceFieldRef"), false, errors);
    }
    for key in ["configMapKeyRef", "secretKeyRef"] {
        let reference = at.key(key);
        if reference.exists() {
            given += 1;
            let name = reference.key("name");
            errors.invalid_all(&name.path, &json!(name.str()), names::dns1123_subdomain(name.str()));
            let entry = reference.key("key");
            if entry.str().is_empty() {
                errors.required(&entry.path, "");
            } else {
                errors.invalid_all(&entry.path, entry.json(), super::core_config::config_key(entry.str()));
            }
        }
    }
    let file = at.key("fileKeyRef");
    if file.exists() {
        given += 1;
        file_ref(&file, errors);
    }
    match given {
        0 => errors.invalid(
            &at.path,
            &json!(""),
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        ),
        1.. if has_value => errors.invalid(&at.path, &json!(""), "may not be specified when `value` is not empty"),
        1 => {}
        _ => errors.invalid(&at.path, &json!(""), "may not have more than one field specified at a time"),
    }
}

/// A key of a file; whether its volume is there is looked at with the pod as a whole.
fn file_ref(at: &Cursor<'_>, errors: &mut ErrorList) {
    let key = at.key("key");
    if key.str().is_empty() {
        errors.required(&key.path, "");
    } else {
        errors.invalid_all(&key.path, key.json(), variable_name(key.str()));
    }
    let volume = at.key("volumeName");
    if volume.str().is_empty() {
        errors.required(&volume.path, "");
    } else {
        errors.invalid_all(&volume.path, volume.json(), names::dns1123_label(volume.str()));
    }
    let path = at.key("path");
    if path.str().is_empty() {
        errors.required(&path.path, "");
    } else {
        containers::no_back_steps(&path.path, path.str(), errors);
    }
}

/// A reference to a field of the pod, in an environment variable or a downward API volume.
pub(super) fn field_ref(at: &Cursor<'_>, supported: &[&str], errors: &mut ErrorList) {
    let path = at.key("fieldPath");
    if at.key("apiVersion").str().is_empty() {
        errors.required(&at.key("apiVersion").path, "");
        return;
    }
    if path.str().is_empty() {
        errors.required(&path.path, "");
        return;
    }
    let convert = |detail: String, errors: &mut ErrorList| {
        errors.invalid(&path.path, path.json(), &format!("error converting fieldPath: {detail}"));
    };
    if at.key("apiVersion").str() != "v1" {
        return convert(format!("unsupported pod version: {}", at.key("apiVersion").str()), errors);
    }
    // the name of an old version
    let text = if path.str() == "spec.host" { "spec.nodeName" } else { path.str() };
    let subscripted =
        text.strip_suffix("']").and_then(|t| t.split_once("['")).filter(|(base, _)| !base.is_empty());
    match subscripted {
        Some((base @ ("metadata.annotations" | "metadata.labels"), key)) => {
            let key = if base == "metadata.labels" { key.to_owned() } else { key.to_lowercase() };
            errors.invalid_all(&at.path, &json!(key), names::qualified_name(&key));
        }
        Some(_) => convert(format!("field label does not support subscript: {text}"), errors),
        None if !CONVERTIBLE.contains(&text) && !FIELDS.contains(&text) => {
            convert(format!("field label not supported: {text}"), errors);
        }
        None if !supported.contains(&text) => errors.not_supported(&path.path, &json!(text), supported),
        None => {}
    }
}

/// As [`field_ref`], for volumes.
pub(super) fn volume_field_ref(at: &Cursor<'_>, errors: &mut ErrorList) {
    field_ref(at, &VOLUME_FIELDS, errors);
}

/// A reference to a resource of a container.
pub(super) fn resource_ref(at: &Cursor<'_>, in_volume: bool, errors: &mut ErrorList) {
    let resource = at.key("resource");
    const SUPPORTED: [&str; 6] = [
        "limits.cpu",
        "limits.ephemeral-storage",
        "limits.memory",
        "requests.cpu",
        "requests.ephemeral-storage",
        "requests.memory",
    ];
    let name = resource.str();
    let huge = name.starts_with("limits.hugepages-") || name.starts_with("requests.hugepages-");
    if in_volume && at.key("containerName").str().is_empty() {
        errors.required(&at.key("containerName").path, "");
    } else if name.is_empty() {
        errors.required(&resource.path, "");
    } else if !SUPPORTED.contains(&name) && !huge {
        errors.not_supported(&resource.path, resource.json(), &SUPPORTED);
    }
    if !SUPPORTED.contains(&name) && !huge {
        return;
    }
    let divisor = at.key("divisor");
    let Some(value) = quantities::parse(divisor.json()) else { return };
    if value.signum() == 0 {
        return;
    }
    let text = value.to_string();
    let (word, allowed): (&str, &[&str]) = if name.ends_with(".cpu") {
        ("cpu", &["1m", "1"])
    } else if name.ends_with(".memory") {
        ("memory", &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"])
    } else if name.ends_with(".ephemeral-storage") {
        (
            "local ephemeral storage",
            &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"],
        )
    } else {
        ("hugepages", &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"])
    };
    if !allowed.contains(&text.as_str()) {
        errors.invalid(
            &divisor.path,
            resource.json(),
            &format!("only divisor's values {} are supported with the {word} resource", allowed.join(", ")),
        );
    }
}
