//! Recorded answers of the reference API server, held against this crate's pure functions.
//!
//! The recordings lie beside the repository (`../shared/oracle/cases`); without them there is nothing to check.

use std::path::Path;

use api::{codec, kinds, schema};
use serde_json::Value;

mod recorded {
    use super::*;

    /// Every step of every recorded case, with the case's name.
    pub fn steps() -> Vec<(String, Value)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/oracle/cases");
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
