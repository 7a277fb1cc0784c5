//! The path that a rule's error points to: `.spec.items['a.b']`.

use api::structural::Node;
use api::structural::field_path::{Step, resolve};
use serde_json::Value;

/// The path in the form of errors, if it leads somewhere in the schema.
pub(super) fn normalize(path: &str, schema: &Value) -> Result<String, String> {
    let node = Node::parse(schema).map_err(|e| e.to_string())?;
    let (steps, _) = resolve(&node, path, true)?;
    let mut out = String::new();
    for step in steps {
        match step {
            Step::Field(name) if out.is_empty() => out.push_str(&name),
            Step::Field(name) => {
                out.push('.');
                out.push_str(&name);
            }
            Step::Key(key) => {
                out.push('[');
                out.push_str(&key);
                out.push(']');
            }
        }
    }
    Ok(out)
}
