//! Columns of custom resources, from their definitions.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{column, format};
use crate::custom::Definition;
use crate::field::{escape_html, go_float};

/// The columns as `columnDefinitions`.
pub(super) fn definitions(definition: &Definition) -> Value {
    let mut columns = vec![column::NAME.to_json()];
    columns.extend(definition.own().columns.iter().map(|c| {
        json!({"name": c.name, "type": c.type_, "format": c.format, "description": c.description,
            "priority": c.priority})
    }));
    Value::Array(columns)
}

/// One row's cells. A column whose path is none stays empty.
pub(super) fn cells(definition: &Definition, object: &Value, now: Timestamp) -> Vec<Value> {
    let mut cells = vec![format::name(object)];
    cells.extend(definition.own().columns.iter().map(|column| {
        let found = column.path.as_ref().and_then(|path| path.find(object).into_iter().next());
        found.map_or(Value::Null, |value| cell(&column.type_, value, now))
    }));
    cells
}

/// A value as its column shows it; null where it is of another type.
fn cell(type_: &str, value: &Value, now: Timestamp) -> Value {
    match (type_, value) {
        ("string", Value::String(_)) => value.clone(),
        ("string", Value::Null) => json!("<no value>"),
        ("string", Value::Number(n)) if n.is_f64() => json!(go_float(n.as_f64().unwrap_or_default())),
        ("string", other) => json!(escape_html(&other.to_string())),
        ("integer", Value::Number(n)) => n.as_i64().or_else(|| n.as_f64().map(|f| f as i64)).into(),
        ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => value.clone(),
        ("date", Value::String(text)) => match text.parse::<Timestamp>() {
            Ok(_) => json!(super::duration::since(Some(text), now)),
            Err(_) => json!("<invalid>"),
        },
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::custom;

    #[test]
    fn columns_show_what_their_paths_lead_to() {
        let column = |ty: &str, path: &str| json!({"name": path, "type": ty, "jsonPath": path});
        let definition = json!({"metadata": {"name": "ws.example.com"},
            "spec": {"group": "example.com", "scope": "Namespaced", "versions": [{
                "name": "v1", "served": true, "storage": true, "additionalPrinterColumns": [
                    column("string", ".status.conditions[?(@.type==\"Ready\")].status"),
                    column("string", ".spec"), column("string", ".spec.f"), column("string", ".spec.none"),
                    column("integer", ".spec.f"), column("number", ".spec.n"), column("boolean", ".spec.n"),
                    column("date", ".metadata.creationTimestamp"), column("string", ".spec["),
                    column("string", ".metadata.labels.a\\.b"),
                ]}]},
            "status": {"acceptedNames": {"plural": "ws", "kind": "W"},
                "conditions": [{"type": "Established", "status": "True"}]}});
        let rows = custom::rows(&definition);
        let object = json!({
            "metadata": {"name": "w", "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"a.b": "c"}},
            "spec": {"f": 1.5, "n": 3, "none": null},
            "status": {"conditions": [{"type": "Old", "status": "x"}, {"type": "Ready", "status": "True"}]},
        });
        let now = "2026-01-01T00:05:00Z".parse().unwrap();
        let definition = rows[0].definition.as_ref().unwrap();
        assert_eq!(
            Value::Array(cells(definition, &object, now)),
            json!([
                "w",
                "True",
                r#"{"f":1.5,"n":3,"none":null}"#,
                "1.5",
                "<no value>",
                1,
                3,
                null,
                "5m",
                null,
                "c"
            ])
        );
    }
}
