//! Config maps, secrets, namespaces, service accounts, limit ranges, quotas and events.

use std::collections::BTreeSet;

use api::field::{Cursor, ErrorList};
use serde_json::{Value, json};

use super::generic::immutable;
use super::parts::{Parts, Rules};
use super::tree::{child, each, has, is_empty, make, put, text};

const MAX_DATA: usize = 1024 * 1024;

pub(super) static CONFIG_MAP: Parts = Parts {
    validate: validate_config_map,
    validate_change: |new, old, errors| data_is_fixed(new, old, &["data", "binaryData"], errors),
    ..Parts::DATA
};

pub(super) static SECRET: Parts = Parts {
    default: |o| {
        put(o, "type", "Opaque");
        merge_string_data(o);
    },
    // Write-only: a stored secret never has it.
    create: |_, o| super::generic::set(o, "stringData", None),
    update: |_, new, old| {
        super::generic::set(new, "stringData", None);
        if is_empty(new.get("type")) {
            super::generic::copy("type", new, old);
        }
    },
    validate: validate_secret,
    warn: |new, _| super::warnings::secret(new),
    validate_change: |new, old, errors| {
        immutable("type", &new["type"], &old["type"], errors);
        data_is_fixed(new, old, &["data"], errors);
    },
    ..Parts::DATA
};

/// `stringData` is `data` without the base64, and wins over it.
fn merge_string_data(o: &mut Value) {
    use base64::Engine as _;
    let Some(plain) = o.get("stringData").and_then(Value::as_object).cloned() else { return };
    let Some(data) = make(o, "data") else { return };
    for (key, value) in plain {
        let text = value.as_str().unwrap_or_default();
        data[key] = json!(base64::engine::general_purpose::STANDARD.encode(text));
    }
    super::generic::set(o, "stringData", None);
}

/// A key of a config map or secret.
pub(super) fn config_key(key: &str) -> Vec<String> {
    let mut messages = Vec::new();
    if key.len() > 253 {
        messages.push("must be no more than 253 characters".to_owned());
    }
    if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        messages.push(api::names::regex_error(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    if key == "." || key == ".." {
        messages.push(format!("must not be '{key}'"));
    } else if key.starts_with("..") {
        messages.push("must not start with '..'".to_owned());
    }
    messages
}

fn validate_config_map(o: &Value, errors: &mut ErrorList) {
    let root = Cursor::root(o);
    let mut size = 0;
    let binary = root.key("binaryData");
    for (key, value) in root.key("data").entries() {
        let at = format!("data[{key}]");
        for message in config_key(key) {
            errors.invalid(&at, &json!(key), &message);
        }
        if binary.key(key).exists() {
            errors.invalid(&at, &json!(key), "duplicate of key present in binaryData");
        }
        size += value.str().len();
    }
    for (key, value) in binary.entries() {
        for message in config_key(key) {
            errors.invalid(&format!("binaryData[{key}]"), &json!(key), &message);
        }
        size += decoded_len(value.str());
    }
    if size > MAX_DATA {
        errors.too_long("", MAX_DATA);
    }
}

/// The number of bytes that a base64 text stands for.
pub(super) fn decoded_len(text: &str) -> usize {
    let padding = text.bytes().rev().take_while(|b| *b == b'=').count();
    (text.len() / 4 * 3).saturating_sub(padding)
}

fn validate_secret(o: &Value, errors: &mut ErrorList) {
    let root = Cursor::root(o);
    let data = root.key("data");
    let mut size = 0;
    for (key, value) in data.entries() {
        for message in config_key(key) {
            errors.invalid(&format!("data[{key}]"), &json!(key), &message);
        }
        size += decoded_len(value.str());
    }
    if size > MAX_DATA {
        errors.too_long("data", MAX_DATA);
    }
    let required = |keys: &[&str], errors: &mut ErrorList| {
        for key in keys {
            if !data.key(key).exists() {
                errors.required(&format!("data[{key}]"), "");
            }
        }
    };
    match root.key("type").str() {
        "kubernetes.io/service-account-token" => {
            let name = &o["metadata"]["annotations"]["kubernetes.io/service-account.name"];
            if name.as_str().unwrap_or_default().is_empty() {
                errors.required("metadata.annotations[kubernetes.io/service-account.name]", "");
            }
        }
        "kubernetes.io/dockercfg" => docker_config(&data, ".dockercfg", errors),
        "kubernetes.io/dockerconfigjson" => docker_config(&data, ".dockerconfigjson", errors),
        "kubernetes.io/basic-auth" if !data.key("username").exists() && !data.key("password").exists() => {
            errors.required("data[username]", "");
            errors.required("data[password]", "");
        }
        "kubernetes.io/ssh-auth" if data.key("ssh-privatekey").str().is_empty() => {
            errors.required("data[ssh-privatekey]", "");
        }
        "kubernetes.io/tls" => required(&["tls.crt", "tls.key"], errors),
        _ => {}
    }
}

fn docker_config(data: &Cursor<'_>, key: &str, errors: &mut ErrorList) {
    use base64::Engine as _;
    let at = format!("data[{key}]");
    let value = data.key(key);
    if !value.exists() {
        errors.required(&at, "");
        return;
    }
    let bytes = base64::engine::general_purpose::STANDARD.decode(value.str()).unwrap_or_default();
    let detail = match serde_json::from_slice::<Value>(&bytes) {
        Ok(Value::Object(_) | Value::Null) => return,
        Ok(other) => {
            let found = go_type(&other);
            format!("json: cannot unmarshal {found} into Go value of type map[string]interface {{}}")
        }
        Err(error) => go_json_error(&bytes, &error),
    };
    errors.invalid(&at, &json!("<secret contents redacted>"), &detail);
}

/// What Go's decoder calls the type of a value.
pub(super) fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// What Go's decoder says about the first byte that cannot stand where it does.
pub(super) fn go_json_error(bytes: &[u8], error: &serde_json::Error) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".to_owned();
    }
    // a word that begins as one of JSON's own is read as that word
    for word in ["null", "true", "false"] {
        let Some(begun) = bytes.trim_ascii_start().strip_prefix(&word.as_bytes()[..1]) else { continue };
        let same = begun.iter().zip(&word.as_bytes()[1..]).take_while(|(a, b)| a == b).count();
        if let (Some(found), Some(wanted)) = (begun.get(same), word.as_bytes().get(same + 1)) {
            let (found, wanted) = (char::from(*found), char::from(*wanted));
            return format!("invalid character '{found}' in literal {word} (expecting '{wanted}')");
        }
    }
    let at = error.column().saturating_sub(1);
    let found = bytes.get(at).or(bytes.first()).map_or(' ', |b| char::from(*b));
    format!("invalid character '{found}' looking for beginning of value")
}

/// What `immutable: true` freezes.
fn data_is_fixed(new: &Value, old: &Value, fields: &[&str], errors: &mut ErrorList) {
    if old["immutable"] != json!(true) {
        return;
    }
    if new["immutable"] != json!(true) {
        errors.forbidden("immutable", "field is immutable when `immutable` is set");
    }
    for field in fields {
        if !super::generic::same_map(&new[*field], &old[*field]) {
            errors.forbidden(field, "field is immutable when `immutable` is set");
        }
    }
}

/// The names of a namespace's own finalizers; `indexed`: whether the path says which of them.
fn finalizers(o: &Value, indexed: bool, errors: &mut ErrorList) {
    let list = Cursor::root(o).key("spec").key("finalizers");
    for finalizer in list.items() {
        let at = if indexed { &finalizer.path } else { &list.path };
        let messages = api::names::qualified_name(finalizer.str());
        errors.invalid_all(at, finalizer.json(), messages);
        if crate::object_meta::is_unqualified(finalizer.str()) {
            errors.invalid(at, finalizer.json(), crate::object_meta::UNQUALIFIED);
        }
    }
}

pub(super) static NAMESPACE: Parts = Parts {
    validate: |o, errors| finalizers(o, false, errors),
    rules: Rules::BeforeChange,
    validate_narrow: |_, new, _, errors| finalizers(new, true, errors),
    begin_deletion: |_, o| o["status"]["phase"] = json!("Terminating"),
    validate_status: |new, _, errors| {
        let phase = &new["status"]["phase"];
        let (wanted, when) =
            if api::meta::is_being_deleted(new) { ("Terminating", "not empty") } else { ("Active", "empty") };
        if *phase != wanted {
            let why = format!("may only be '{wanted}' if `deletionTimestamp` is {when}");
            errors.invalid("status.Phase", phase, &why);
        }
    },
    default: |o| {
        if let Some(name) = o["metadata"]["name"].as_str().map(str::to_owned)
            && let Some(labels) = make(o, "metadata").and_then(|m| make(m, "labels"))
        {
            labels["kubernetes.io/metadata.name"] = json!(name);
        }
    },
    create: |_, o| {
        o["status"] = json!({"phase": "Active"});
        let Some(spec) = make(o, "spec") else { return };
        let Some(map) = spec.as_object_mut() else { return };
        let list = map.entry("finalizers").or_insert_with(|| json!([]));
        if !list.is_array() {
            *list = json!([]);
        }
        if let Some(list) = list.as_array_mut()
            && !list.contains(&json!("kubernetes"))
        {
            list.push(json!("kubernetes"));
        }
    },
    update: |_, new, old| super::generic::copy("spec", new, old),
    narrow: &[("finalize", &["spec", "finalizers"])],
    ..Parts::UNCOUNTED
};

pub(super) static SERVICE_ACCOUNT: Parts =
    Parts { create: |_, o| only_secret_names(o), update: |_, new, _| only_secret_names(new), ..Parts::DATA };

/// Of the references to secrets only the names mean something.
fn only_secret_names(account: &mut Value) {
    for secret in each(account, "secrets") {
        *secret = json!({"name": secret["name"]});
    }
}

pub(super) static LIMIT_RANGE: Parts = Parts {
    default: |o| {
        let Some(spec) = child(o, "spec") else { return };
        for item in each(spec, "limits") {
            for list in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
                if let Some(list) = child(item, list) {
                    super::pod_defaults::round_up(list);
                }
            }
            if text(item, "type") != "Container" {
                continue;
            }
            for (to, from) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
                let Some(values) = item.get(from).and_then(Value::as_object).cloned() else { continue };
                if values.is_empty() {
                    continue;
                }
                let Some(target) = make(item, to) else { continue };
                for (name, value) in values {
                    put(target, &name, value);
                }
            }
        }
    },
    validate: super::quota::limit_range,
    create_on_update: true,
    ..Parts::DATA
};

pub(super) static RESOURCE_QUOTA: Parts = Parts {
    default: |o| {
        if let Some(hard) = child(o, "spec").and_then(|s| child(s, "hard")) {
            super::pod_defaults::round_up(hard);
        }
    },
    validate: super::quota::resource_quota,
    rules: Rules::BeforeChange,
    validate_status: super::quota::resource_quota_status,
    validate_change: |new, old, errors| {
        let scopes = |o: &Value| -> BTreeSet<String> {
            let list = o["spec"]["scopes"].as_array().into_iter().flatten();
            list.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        if scopes(new) != scopes(old) {
            let value = if has(&new["spec"], "scopes") { new["spec"]["scopes"].clone() } else { json!([]) };
            errors.invalid("spec.scopes", &value, "field is immutable");
        }
    },
    ..Parts::UNCOUNTED
};

pub(super) static EVENT: Parts = Parts {
    validate: super::events::validate,
    validate_change: super::events::change,
    rules: Rules::OnCreate,
    create_on_update: true,
    ..Parts::DATA
};
