//! Ownership of a replica count that is written through the `scale` subresource: the entries are kept in the scaled object.

use serde_json::Value;

use super::managed::{self, Entry};
use super::{ApplyError, Conflict, FieldSet, Operation};

/// Records a write of the replica count through `scale` in the scaled object, whose count has just been set. `is_changed`:
/// the count differs from before; an apply that changes it conflicts with other owners unless forced. Entries of such
/// writes carry the subresource and no time.
///
/// `path` is where the object has its count, for example `spec.replicas`; `api_version` is the object's.
pub fn scale(
    object: &mut Value,
    path: &str,
    api_version: &str,
    manager: &str,
    operation: Operation,
    force: bool,
    is_changed: bool,
) -> Result<(), ApplyError> {
    let fields = FieldSet::of_fields(&[path]);
    let mut entries = managed::parse(object).unwrap_or_default();
    if entries.is_empty() && operation == Operation::Update {
        return Ok(());
    }
    let own = Entry {
        operation,
        time: None,
        manager: manager.to_owned(),
        api_version: api_version.to_owned(),
        subresource: "scale".to_owned(),
        fields: fields.clone(),
    };
    if is_changed {
        if operation == Operation::Apply && !force {
            let conflicts: Vec<Conflict> = entries
                .iter()
                .filter(|entry| {
                    !entry.is_same_manager(&own) && !entry.fields.intersection(&fields).is_empty()
                })
                .map(|entry| Conflict { manager: entry.describe(), path: format!(".{path}") })
                .collect();
            if !conflicts.is_empty() {
                return Err(ApplyError::Conflicts(conflicts));
            }
        }
        for entry in &mut entries {
            entry.fields = std::mem::take(&mut entry.fields).difference(&fields);
        }
    }
    let is_owner = entries.iter().any(|entry| entry.is_same_manager(&own) && !entry.fields.is_empty());
    if !is_owner && (is_changed || operation == Operation::Apply) {
        entries.push(own);
    }
    managed::write(object, entries);
    Ok(())
}
