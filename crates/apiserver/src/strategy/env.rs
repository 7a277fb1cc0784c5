//! Environment variables.

use api::field::{Cursor, ErrorList};
use api::names;
use serde_json::json;

use super::pod_validate::Pod;
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
pub(super) fn validate(c: &Cursor<'_>, pod: &Pod<'_>, errors: &mut ErrorList) {
    for variable in c.key("env").items() {
        let name = variable.key("name");
        if name.str().is_empty() {
            errors.required(&name.path, "");
        } else {
            errors.invalid_all(&name.path, name.json(), variable_name(name.str()));
        }
        let source = variable.key("valueFrom");
        if source.exists() {
            value_from(&source, !variable.key("value").str().is_empty(), pod, errors);
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
                    errors.invalid_all(&name.path, name.json(), names::dns1123_subdomain(name.str()));
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

fn value_from(at: &Cursor<'_>, has_value: bool, pod: &Pod<'_>, errors: &mut ErrorList) {
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
            } else if !entry
                .str()
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
            {
                errors.invalid(
                    &entry.path,
                    entry.json(),
                    &names::regex_error(
                        "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
                        "[-._a-zA-Z0-9]+",
                        &["key.name", "KEY_NAME", "key-name"],
                    ),
                );
            }
        }
    }
    let file = at.key("fileKeyRef");
    if file.exists() {
        given += 1;
        file_ref(&file, pod, errors);
    }
    match given {
        0 => errors.invalid(
            &at.path,
            &json!(""),
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        ),
        1 if has_value => errors.invalid(&at.path, &json!(""), "may not be specified when `value` is not empty"),
        1 => {}
        _ => errors.invalid(&at.path, &json!(""), "may not have more than one field specified at a time"),
    }
}

fn file_ref(at: &Cursor<'_>, pod: &Pod<'_>, errors: &mut ErrorList) {
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
        match pod.volumes.iter().find(|(n, _)| *n == volume.str()) {
            None => errors.not_found(&volume.path, volume.json()),
            Some((_, v)) if !super::tree::has(v, "emptyDir") => {
                errors.invalid(&volume.path, volume.json(), "referenced volume must be of type emptyDir");
            }
            Some(_) => {}
        }
    }
    let path = at.key("path");
    if path.str().is_empty() {
        errors.required(&path.path, "");
    } else {
        containers::local_path(&path, errors);
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
    let text = path.str();
    let (base, subscript) = match text.strip_suffix("']").and_then(|t| t.split_once("['")) {
        Some((base, key)) => (base, Some(key)),
        None => (text, None),
    };
    match subscript {
        Some(key) => match base {
            "metadata.annotations" => {
                errors.invalid_all(&path.path, path.json(), names::qualified_name(&key.to_lowercase()))
            }
            "metadata.labels" => errors.invalid_all(&path.path, path.json(), names::qualified_name(key)),
            _ if CONVERTIBLE.contains(&base) || FIELDS.contains(&base) => {
                convert(format!("field label does not support subscript: {text}"), errors);
            }
            _ => convert(format!("field label does not support subscript: {text}"), errors),
        },
        None if !CONVERTIBLE.contains(&text) && !FIELDS.contains(&text) => {
            convert(format!("field label not supported: {text}"), errors);
        }
        None if !supported.contains(&text) => errors.not_supported(&path.path, path.json(), supported),
        None => {}
    }
}

/// As [`field_ref`], for volumes.
pub(super) fn volume_field_ref(at: &Cursor<'_>, errors: &mut ErrorList) {
    field_ref(at, &VOLUME_FIELDS, errors);
}

/// A reference to a resource of a container.
pub(super) fn resource_ref(at: &Cursor<'_>, in_volume: bool, errors: &mut ErrorList) {
    if in_volume && at.key("containerName").str().is_empty() {
        errors.required(&at.key("containerName").path, "");
        return;
    }
    let resource = at.key("resource");
    if resource.str().is_empty() {
        errors.required(&resource.path, "");
        return;
    }
    const SUPPORTED: [&str; 6] = [
        "limits.cpu",
        "limits.ephemeral-storage",
        "limits.memory",
        "requests.cpu",
        "requests.ephemeral-storage",
        "requests.memory",
    ];
    let name = resource.str();
    let huge = name.contains(".hugepages-");
    if !SUPPORTED.contains(&name) && !huge {
        errors.not_supported(&resource.path, resource.json(), &SUPPORTED);
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
