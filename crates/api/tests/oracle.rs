//! Recorded answers of the reference API server, held against this crate's pure functions.
//!
//! The recordings lie beside the repository (`../shared/oracle/cases`); without them there is nothing to check.

use std::path::PathBuf;

use api::{codec, kinds, schema};
use serde_json::Value;

mod recorded {
    use super::*;

    /// Every step of every recorded case, with the case's name.
    pub fn steps() -> Vec<(String, Value)> {
        let folder = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from)
            .join("../../../shared/oracle/cases");
        let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
        let mut steps = Vec::new();
        for entry in entries.flatten() {
            let text = std::fs::read_to_string(entry.path()).unwrap();
            for line in text.lines() {
                let case: Value = serde_json::from_str(line).unwrap();
                let id = case["id"].as_str().unwrap();
                for (n, step) in case["steps"].as_array().unwrap().iter().enumerate() {
                    steps.push((format!("{id}#{n}"), step.clone()));
                }
            }
        }
        steps
    }

    /// Normalised placeholders become values that parse.
    pub fn concrete(value: &mut Value) {
        match value {
            Value::String(text) if text == "<time>" => *text = "2024-01-01T00:00:00Z".into(),
            Value::Array(items) => items.iter_mut().for_each(concrete),
            Value::Object(map) => {
                for (key, value) in map.iter_mut() {
                    if key.ends_with("odePort") && value.is_string() {
                        *value = 30000.into();
                    }
                    concrete(value);
                }
            }
            _ => {}
        }
    }
}

fn differences(path: &str, a: &Value, b: &Value, out: &mut Vec<String>) {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, value) in a {
                match b.get(key) {
                    Some(other) => differences(&format!("{path}.{key}"), value, other, out),
                    None => out.push(format!("{path}.{key}: {value} was dropped")),
                }
            }
            for (key, value) in b.iter().filter(|(key, _)| !a.contains_key(*key)) {
                out.push(format!("{path}.{key}: {value} was added"));
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (n, (a, b)) in a.iter().zip(b).enumerate() {
                differences(&format!("{path}[{n}]"), a, b, out);
            }
        }
        (a, b) if a != b => out.push(format!("{path}: {a} became {b}")),
        _ => {}
    }
}

/// What the reference prints is in the printed form: decoding it changes nothing.
#[test]
fn answers_of_the_reference_decode_to_themselves() {
    let mut failures = Vec::new();
    let mut checked = 0;
    for (id, step) in recorded::steps() {
        let answer = &step["expect"]["body"];
        let mut body = answer.clone();
        let (Some(version), Some(kind)) = (answer["apiVersion"].as_str(), answer["kind"].as_str()) else {
            continue;
        };
        let Some(row) = kinds::builtin().of_object(version, kind) else { continue };
        recorded::concrete(&mut body);
        if let Some(spec) = body.get_mut("spec").filter(|_| kind == "Lease") {
            for key in ["acquireTime", "renewTime"] {
                if let Some(time) = spec.get_mut(key) {
                    *time = "2024-01-01T00:00:00.000000Z".into();
                }
            }
        }
        checked += 1;
        match codec::decode_value(body.clone(), schema::root(&row.type_name)) {
            Ok(decoded) => {
                let mut found = decoded.strict;
                differences("", &body, &decoded.value, &mut found);
                failures.extend(found.into_iter().map(|f| format!("{id} {kind}: {f}")));
            }
            Err(error) => failures.push(format!("{id} {kind}: {error}")),
        }
    }
    eprintln!("{checked} answers checked");
    assert!(failures.is_empty(), "{} differences:\n{}", failures.len(), failures.join("\n"));
}

/// Objects pass through protobuf unharmed.
#[test]
fn answers_of_the_reference_survive_protobuf() {
    let (mut failures, mut checked) = (Vec::new(), std::collections::BTreeSet::new());
    for (id, step) in recorded::steps() {
        let mut body = step["expect"]["body"].clone();
        recorded::concrete(&mut body);
        let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
        let (version, kind) = (text("apiVersion"), text("kind"));
        let Some(shape) = codec::shape_of(&version, &kind) else { continue };
        if let Some(spec) = body.get_mut("spec").filter(|_| kind == "Lease") {
            for key in ["acquireTime", "renewTime"] {
                if let Some(time) = spec.get_mut(key) {
                    *time = "2024-01-01T00:00:00.000000Z".into();
                }
            }
        }
        let Ok(decoded) = codec::decode_value(body, shape) else { continue };
        let before = decoded.value;
        let Some(bytes) = codec::encode_protobuf(&before, shape) else {
            failures.push(format!("{id} {kind}: not encoded"));
            continue;
        };
        match codec::decode_protobuf(&bytes, shape) {
            Ok(decoded) => {
                let mut found = Vec::new();
                differences("", &before, &decoded.value, &mut found);
                // no message tells an empty list from none, or carries the type of an object within another
                found.retain(|f| {
                    let is_type = f.contains("].apiVersion: ") || f.contains("].kind: ");
                    !(f.ends_with(": [] became null") || is_type && f.ends_with("was dropped"))
                });
                failures.extend(found.into_iter().map(|f| format!("{id} {kind}: {f}")));
            }
            Err(error) => failures.push(format!("{id} {kind}: {error}")),
        }
        checked.insert(kind);
    }
    eprintln!("{} kinds checked: {checked:?}", checked.len());
    assert!(failures.is_empty(), "{} differences:\n{}", failures.len(), failures.join("\n"));
}

/// A server without defaults, validation and admission: just codecs, patches and ownership.
mod miniature {
    use super::*;
    use api::apply::{self, Writer};
    use api::patch::{json, merge, strategic};
    use std::collections::BTreeMap;

    #[derive(Default)]
    pub struct Server {
        objects: BTreeMap<String, Value>,
        clock: i64,
    }

    pub enum Answer {
        Object(Value),
        Error(String),
        /// Beyond what this miniature does.
        Unknown,
    }

    impl Server {
        pub fn request(&mut self, step: &Value) -> Answer {
            self.clock += 1;
            let path = step["path"].as_str().unwrap();
            let (path, query) = path.split_once('?').unwrap_or((path, ""));
            let manager = query
                .split('&')
                .find_map(|p| p.strip_prefix("fieldManager="))
                .unwrap_or("oracle-kit")
                .to_owned();
            let force = query.contains("force=true");
            let mut parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
            let (group, version) = if parts[0] == "api" {
                (String::new(), parts.drain(..2).nth(1).unwrap())
            } else {
                let gv: Vec<&str> = parts.drain(..3).collect();
                (gv[1].to_owned(), gv[2])
            };
            if parts.first() == Some(&"namespaces") && parts.len() > 2 {
                parts.drain(..2);
            }
            let Some(kind) = kinds::find(&group, version, parts[0]) else { return Answer::Unknown };
            let name = parts.get(1).copied().unwrap_or_default().to_owned();
            let subresource = parts.get(2).copied().unwrap_or_default().to_owned();
            if subresource == "scale" && step["method"] == "PATCH" {
                return self.scale(
                    &format!("{group}/{}/{name}", kind.plural),
                    &kind.api_version(),
                    &manager,
                    force,
                    step,
                );
            }
            if !["", "status"].contains(&subresource.as_str()) {
                return Answer::Unknown;
            }
            let body = &step["body"];
            let shape = schema::root(&kind.type_name);
            let has_status = kind.subresource("status").is_some();
            let ignored = apply::reset_fields(has_status, &subresource);
            let api_version = kind.api_version();
            let writer = Writer {
                manager: &manager,
                api_version: &api_version,
                subresource: &subresource,
                now: jiff::Timestamp::from_second(1_700_000_000 + self.clock).unwrap(),
                ignored: &ignored,
            };
            let key = |name: &str| format!("{group}/{}/{name}", kind.plural);
            let old = self.objects.get(&key(&name)).cloned();
            let content = step["headers"]["Content-Type"].as_str().unwrap_or_default();
            let raw = body.get("raw").and_then(Value::as_str);
            let parsed = match raw {
                _ if body.get("fill").is_some() => return Answer::Unknown,
                Some(raw) => match codec::parse_json(raw.as_bytes()) {
                    Ok(value) => value,
                    Err(error) if content.contains("json-patch") => {
                        return Answer::Error(format!("error decoding patch: {error}"));
                    }
                    Err(_) => Value::Null,
                },
                None => body.clone(),
            };
            let changed = match (step["method"].as_str().unwrap(), content) {
                ("GET", _) => return old.map_or(Answer::Unknown, Answer::Object),
                ("POST", "") => {
                    let mut new = match codec::decode_value(parsed, shape) {
                        Ok(decoded) => decoded.value,
                        Err(error) => return Answer::Error(error.to_string()),
                    };
                    apply::update(shape, None, &mut new, &writer);
                    let name = api::meta::name(&new).to_owned();
                    self.objects.insert(key(&name), new.clone());
                    return Answer::Object(new);
                }
                ("PATCH", "application/apply-patch+yaml") => {
                    match apply::apply(shape, &kind.kind, old.as_ref(), &parsed, &writer, force) {
                        Ok(applied) => applied.value,
                        Err(error) => return Answer::Error(error.to_string()),
                    }
                }
                ("PATCH", content) => {
                    let Some(old) = &old else { return Answer::Unknown };
                    let result = match content {
                        "application/json-patch+json" => json::apply(old, &parsed),
                        "application/merge-patch+json" => merge::apply(old, &parsed),
                        "application/strategic-merge-patch+json" => strategic::apply(shape, old, &parsed),
                        _ => return Answer::Unknown,
                    };
                    let patched = match result {
                        Ok(patched) => patched,
                        Err(error) => return Answer::Error(error.to_string()),
                    };
                    let mut new = match codec::decode_value(patched, shape) {
                        Ok(decoded) => decoded.value,
                        Err(error) => return Answer::Error(error.to_string()),
                    };
                    apply::update(shape, Some(old), &mut new, &writer);
                    new
                }
                _ => return Answer::Unknown,
            };
            let mut new = codec::decode_value(changed, shape).unwrap().value;
            // What a path cannot change stays as it was.
            let kept = if subresource == "status" { "spec" } else { "status" };
            if has_status && let Some(map) = new.as_object_mut() {
                match old.as_ref().and_then(|old| old.get(kept)) {
                    Some(value) => map.insert(kept.to_owned(), value.clone()),
                    None => map.remove(kept),
                };
            }
            self.objects.insert(key(&name), new.clone());
            Answer::Object(new)
        }

        fn scale(
            &mut self,
            key: &str,
            api_version: &str,
            manager: &str,
            force: bool,
            step: &Value,
        ) -> Answer {
            let Some(object) = self.objects.get_mut(key) else { return Answer::Unknown };
            let is_apply = step["headers"]["Content-Type"] == "application/apply-patch+yaml";
            let operation = if is_apply { apply::Operation::Apply } else { apply::Operation::Update };
            let replicas = step["body"]["spec"]["replicas"].clone();
            let mut scaled = object.clone();
            let is_changed = scaled["spec"]["replicas"] != replicas;
            scaled["spec"]["replicas"] = replicas;
            let result = apply::scale(
                &mut scaled,
                "spec.replicas",
                api_version,
                manager,
                operation,
                force,
                is_changed,
            );
            match result {
                Ok(()) => *object = scaled,
                Err(error) => return Answer::Error(error.to_string()),
            }
            Answer::Unknown
        }
    }
}

/// `managedFields` of an answer, with placeholders for times.
fn owners(object: &Value) -> Option<Value> {
    let mut owners = object.get("metadata")?.get("managedFields")?.clone();
    for entry in owners.as_array_mut()? {
        if let Some(time) = entry.get_mut("time") {
            *time = "<time>".into();
        }
    }
    Some(owners)
}

/// Whether an answer has what is expected: keys not named are ignored, lists need the same length.
fn has(actual: &Value, expected: &Value) -> bool {
    match expected {
        Value::Object(map) if map.contains_key("$absent") => false,
        Value::Object(map) => map.iter().all(|(key, value)| match actual.get(key) {
            Some(actual) => has(actual, value),
            None => value.get("$absent").is_some(),
        }),
        Value::Array(items) => {
            let actual = actual.as_array().map_or(&[][..], Vec::as_slice);
            actual.len() == items.len() && actual.iter().zip(items).all(|(a, e)| has(a, e))
        }
        expected => actual == expected || expected == "<time>" && actual.is_string(),
    }
}

/// Patches and applies leave the owners, values and errors that the reference left.
#[test]
fn patches_and_applies_end_as_on_the_reference() {
    // What the miniature lacks: defaults, validation, object names, conversion between versions, resets of fields.
    let beyond = [
        "apply-v1-v2",
        "apply-immutable",
        "apply-invalid",
        "apply-uid-exists",
        "apply-secret-stringdata",
        "apply-no-name",
        "apply-rv-create",
        "apply-status-create",
        "patch-merge-uid-change",
        "patch-merge-deletion",
        "patch-json-name-change",
        "patch-json-kind-change",
        "patch-json-bad-type",
        "patch-sm-top-replace",
        "patch-patch-force",
        "patch-merge-generation",
        "patch-sm-strategy-noretain",
        "patch-sm-volumes-noretain",
        "apply-empty-body",
        "patch-merge-status-ignored",
        "apply-status-apply-spec",
        "patch-json-array-ops",
        "patch-sm-env-valuefrom",
        "patch-sm-ports",
        "patch-sm-service-ports",
    ];
    let mut server = miniature::Server::default();
    let mut last_case = String::new();
    let (mut failures, mut checked) = (Vec::new(), 0);
    for (id, step) in recorded::steps() {
        let case = id.split('#').next().unwrap().to_owned();
        if !(case.starts_with("apply-") || case.starts_with("patch-")) || beyond.contains(&case.as_str()) {
            continue;
        }
        if case != last_case {
            server = miniature::Server::default();
            last_case = case;
        }
        let expect = &step["expect"];
        let expected = expect.get("body").or_else(|| expect.get("subset"));
        match server.request(&step) {
            miniature::Answer::Unknown => {}
            miniature::Answer::Error(error) => {
                let message = expected.and_then(|e| e["message"].as_str());
                checked += 1;
                if expect["code"].as_u64().unwrap() < 400 {
                    failures.push(format!("{id}: refused: {error}"));
                } else if message.is_some_and(|message| message != error) {
                    failures.push(format!("{id}: {error}\n  expected: {}", message.unwrap()));
                }
            }
            miniature::Answer::Object(object) => {
                checked += 1;
                if expect["code"].as_u64().unwrap() >= 400 {
                    failures.push(format!("{id}: accepted, expected {}", expect["code"]));
                    continue;
                }
                let Some(expected) = expected else { continue };
                let (ours, theirs) = (owners(&object), owners(expected));
                if let Some(theirs) = theirs
                    && !ours.as_ref().is_some_and(|ours| has(ours, &theirs))
                    && theirs.get("$absent").is_none()
                {
                    failures.push(format!("{id}:\n  {}\n  expected: {theirs}", ours.unwrap_or_default()));
                }
                let mut expected = expected.clone();
                for part in ["metadata", "status"] {
                    expected.as_object_mut().unwrap().remove(part);
                }
                if !has(&object, &expected) {
                    failures.push(format!("{id}:\n  {object}\n  expected: {expected}"));
                }
            }
        }
    }
    eprintln!("{checked} steps checked");
    assert!(failures.is_empty(), "{} differences:\n{}", failures.len(), failures.join("\n"));
}

/// The reference's creates are owned as ours are: the answer, taken as the object just before it is stored, gets the
/// same `managedFields`.
#[test]
fn creates_are_owned_as_on_the_reference() {
    let (mut failures, mut checked) = (Vec::new(), 0);
    for (id, step) in recorded::steps() {
        let answer = &step["expect"]["body"];
        if step["method"] != "POST" || step["expect"]["code"] != 201 {
            continue;
        }
        let (Some(version), Some(kind)) = (answer["apiVersion"].as_str(), answer["kind"].as_str()) else {
            continue;
        };
        let Some(row) = kinds::builtin().of_object(version, kind) else { continue };
        let Some([theirs]) = answer["metadata"]["managedFields"].as_array().map(Vec::as_slice) else {
            continue;
        };
        let mut new = answer.clone();
        recorded::concrete(&mut new);
        new["metadata"].as_object_mut().unwrap().remove("managedFields");
        let shape = schema::root(&row.type_name);
        let Ok(decoded) = codec::decode_value(new, shape) else { continue };
        let mut new = decoded.value;
        let ignored = api::apply::reset_fields(row.subresource("status").is_some(), "");
        let writer = api::apply::Writer {
            manager: "m",
            api_version: version,
            subresource: "",
            now: jiff::Timestamp::UNIX_EPOCH,
            ignored: &ignored,
        };
        api::apply::update(shape, None, &mut new, &writer);
        checked += 1;
        let mut found = Vec::new();
        differences("", &theirs["fieldsV1"], &new["metadata"]["managedFields"][0]["fieldsV1"], &mut found);
        // The answer has more than was there when ownership was recorded: what the strategy, admission and allocators add ...
        let grows = [
            "Pod",
            "Service",
            "Job",
            "PersistentVolumeClaim",
            "Node",
            "Namespace",
            "ConfigMap",
            "SubjectAccessReview",
        ];
        found
            .retain(|f| !(f.ends_with("was added") && (grows.contains(&kind) || f.contains("f:finalizers"))));
        // ... and less, where they drop a field.
        let dropped = [
            "f:maxUnavailable",
            "f:schedulingGroup",
            "f:dataSource",
            "f:claimRef",
            "f:strategy",
            "f:preferredHolder",
        ];
        found.retain(|f| !dropped.iter().any(|field| f.contains(field)));
        found.retain(|f| !(kind == "ConfigMap" && f.ends_with("became null")));
        failures.extend(found.into_iter().map(|f| format!("{id} {kind}: {f}")));
    }
    eprintln!("{checked} creates checked");
    assert!(failures.is_empty(), "{} differences:\n{}", failures.len(), failures.join("\n"));
}
