//! Field ownership and server-side apply (KEP-555), as pure functions on trees.
//!
//! Every write goes through [`update`] (create, update, patch) or [`apply`] (server-side apply); both leave the owners of
//! fields in `metadata.managedFields`. Trees are in the form that [`crate::codec`] decodes to. An applied tree is as
//! the client sent it, and what [`apply`] gives must be decoded, because applied values win as they are.
//!
//! How fields are told apart comes from the [`Shape`]; without a schema ([`Shape::Any`]) maps are granular and lists are
//! one value.
//!
//! TODO-correctness: an entry of another API version (the autoscaler's v1 and v2) is compared by the paths of the version
//! at hand; fields that moved between versions keep their old owner.

mod last_applied;
mod managed;
mod merge;
mod partial;
mod scale;
mod set;
mod walk;

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::schema::Shape;
use managed::Entry;
use walk::Comparison;

pub use managed::{Operation, complaint};
pub use partial::{PartialError, merge_partial};
pub use scale::scale;
pub use set::FieldSet;

/// The manager that owns what an object had before it was first applied.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// Who writes, and how.
#[derive(Debug, Clone)]
pub struct Writer<'a> {
    /// The field manager's name.
    pub manager: &'a str,
    /// The version the object is written in, for example `apps/v1`.
    pub api_version: &'a str,
    /// The subresource, empty for the object itself.
    pub subresource: &'a str,
    /// When.
    pub now: Timestamp,
    /// Fields that this write cannot change and therefore never owns, see [`reset_fields`].
    pub ignored: &'a FieldSet,
}

/// A field that another manager owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The owner as messages name it: `"m1"`, or `"m1" with subresource "scale" using apps/v1`.
    pub manager: String,
    /// The field, for example `.spec.replicas`.
    pub path: String,
}

impl Conflict {
    /// The cause's message.
    pub fn message(&self) -> String {
        format!("conflict with {}", self.manager)
    }
}

/// Why an apply is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// Other managers own fields with other values (409). Sorted by manager.
    #[error("{}", conflict_message(.0))]
    Conflicts(Vec<Conflict>),
    /// The applied object is of another kind or carries managed fields (400).
    #[error("{0}")]
    BadRequest(String),
    /// The applied object does not fit the schema. The reference answers 500; it is the client's fault.
    #[error("{0}")]
    Typed(String),
}

fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [only] = conflicts {
        return format!("Apply failed with 1 conflict: conflict with {}: {}", only.manager, only.path);
    }
    let mut text = format!("Apply failed with {} conflicts: ", conflicts.len());
    let mut lines = Vec::new();
    let mut last = "";
    for conflict in conflicts {
        if conflict.manager != last {
            lines.push(format!("conflicts with {}:", conflict.manager));
            last = &conflict.manager;
        }
        lines.push(format!("- {}", conflict.path));
    }
    text += &lines.join("\n");
    text
}

/// What a write through a path cannot change: `status` through the object itself, where status is a subresource; spec and
/// labels through `status`.
pub fn reset_fields(has_status: bool, subresource: &str) -> FieldSet {
    match subresource {
        "" if has_status => FieldSet::of_fields(&["status"]),
        "status" => FieldSet::of_fields(&["spec", "metadata.labels"]),
        _ => FieldSet::default(),
    }
}

/// Records who changed what in a create (`old` is none), update or patch. `new` may carry a client's edit of managed fields;
/// it leaves with the entries to store.
pub fn update(shape: Shape<'_>, old: Option<&Value>, new: &mut Value, writer: &Writer<'_>) {
    let is_subresource = !writer.subresource.is_empty();
    if !is_subresource && managed::is_reset(new) {
        managed::write(new, Vec::new());
        return;
    }
    let from_client =
        if is_subresource { None } else { managed::parse(new).filter(|entries| !entries.is_empty()) };
    let mut entries = from_client.or_else(|| old.and_then(managed::parse)).unwrap_or_default();
    if entries.is_empty() && old.is_some() {
        // Nobody tracks this object; only an apply starts to.
        managed::write(new, Vec::new());
        return;
    }
    let empty;
    let old = match old {
        Some(old) => old,
        None => {
            empty = nothing(shape);
            &empty
        }
    };
    let comparison = walk::compare(shape, old, new).excluding(writer.ignored);
    let own = entry_of(writer, Operation::Update);
    take_over(&mut entries, &comparison, None);
    let gained = strip(comparison.added.union(&comparison.modified));
    if !gained.is_empty() {
        match entries.iter_mut().find(|entry| entry.is_same_manager(&own)) {
            Some(known) => {
                known.fields = std::mem::take(&mut known.fields).union(&gained);
                known.time = own.time;
            }
            None => entries.push(Entry { fields: gained, ..own }),
        }
    }
    managed::cap(&mut entries);
    managed::write(new, entries);
}

/// An apply's result.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// The merged object, to be decoded, defaulted and validated. `metadata.managedFields` holds the entries to store.
    pub value: Value,
    /// Whether anything but the managed fields differs from the live object.
    pub is_changed: bool,
}

/// Server-side apply of `applied` to the live object (none: it is created). `kind` is the kind the path stands for.
pub fn apply(
    shape: Shape<'_>,
    kind: &str,
    live: Option<&Value>,
    applied: &Value,
    writer: &Writer<'_>,
    force: bool,
) -> Result<Applied, ApplyError> {
    check_kind(applied, writer.api_version, kind)?;
    if !applied["metadata"]["managedFields"].is_null() {
        return Err(ApplyError::BadRequest("metadata.managedFields must be nil".to_owned()));
    }
    check_types(shape, applied)?;
    let mut entries = live.and_then(managed::parse).unwrap_or_default();
    if let Some(live) = live
        && entries.is_empty()
    {
        let comparison = walk::compare(shape, &nothing(shape), live).excluding(writer.ignored);
        let fields = strip(comparison.added.union(&comparison.modified));
        let own = entry_of(&Writer { manager: BEFORE_FIRST_APPLY, ..writer.clone() }, Operation::Update);
        entries.push(Entry { fields, ..own });
    }
    let mut base = match live {
        Some(live) => live.clone(),
        None => nothing(shape),
    };
    if let Some(metadata) = base.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    let run = |force| apply_once(shape, &base, applied, &entries, writer, force);
    let (mut value, entries) = match run(force) {
        Err(ApplyError::Conflicts(conflicts)) if writer.manager == last_applied::MANAGER => {
            let conflicts = last_applied::not_its_own(shape, &base, conflicts);
            if conflicts.is_empty() { run(true)? } else { return Err(ApplyError::Conflicts(conflicts)) }
        }
        result => result?,
    };
    let is_changed = value != base;
    if writer.manager == last_applied::MANAGER {
        last_applied::keep_current(&mut value, applied);
    }
    managed::write(&mut value, entries);
    Ok(Applied { value, is_changed })
}

fn apply_once(
    shape: Shape<'_>,
    live: &Value,
    applied: &Value,
    entries: &[Entry],
    writer: &Writer<'_>,
    force: bool,
) -> Result<(Value, Vec<Entry>), ApplyError> {
    let mut entries = entries.to_vec();
    let own = entry_of(writer, Operation::Apply);
    let fields = walk::field_set(shape, applied).recursive_difference(writer.ignored);
    let known = entries.iter().position(|entry| entry.is_same_manager(&own));
    let last = known.map(|at| entries.remove(at));
    let merged = merge::merge(shape, live, applied);
    let merged = match &last {
        Some(last) => prune(shape, merged, last, &fields, &entries),
        None => merged,
    };
    let comparison = walk::compare(shape, live, &merged).excluding(writer.ignored);
    let conflicts = take_over(&mut entries, &comparison, Some(force));
    if !conflicts.is_empty() {
        return Err(ApplyError::Conflicts(conflicts));
    }
    let fields = strip(fields);
    let is_changed = *live != merged;
    let time = if is_changed { own.time.clone() } else { last.and_then(|last| last.time) };
    entries.push(Entry { fields, time, ..own });
    Ok((merged, entries))
}

/// Takes what was written from its other owners, or (an apply without force) says who they are.
fn take_over(entries: &mut Vec<Entry>, comparison: &Comparison, apply: Option<bool>) -> Vec<Conflict> {
    if apply == Some(false) {
        let written = comparison.modified.clone().union(&comparison.added);
        let mut conflicts: Vec<Conflict> = entries
            .iter()
            .flat_map(|entry| {
                let manager = entry.describe();
                let paths = entry.fields.intersection(&written).paths();
                paths.into_iter().map(move |path| Conflict { manager: manager.clone(), path })
            })
            .collect();
        if !conflicts.is_empty() {
            conflicts.sort_by(|a, b| a.manager.cmp(&b.manager));
            return conflicts;
        }
    }
    for entry in entries.iter_mut() {
        for written in [&comparison.modified, &comparison.added, &comparison.removed] {
            if !written.is_empty() {
                entry.fields = std::mem::take(&mut entry.fields).difference(written);
            }
        }
    }
    entries.retain(|entry| !entry.fields.is_empty());
    Vec::new()
}

/// Removes what the manager applied last time, does not apply now, and nobody else owns.
fn prune(shape: Shape<'_>, merged: Value, last: &Entry, fields: &FieldSet, others: &[Entry]) -> Value {
    if last.fields.clone().difference(fields).is_empty() {
        return merged;
    }
    let named = |set: &FieldSet| walk::with_named_fields(shape, set);
    let last = named(&last.fields);
    let all = named(&walk::field_set(shape, &merged));
    let owned = others.iter().fold(fields.clone(), |owned, entry| owned.union(&entry.fields));
    let pruned = merge::remove(shape, merged.clone(), &last);
    // What others own, or what is applied now, comes back.
    let kept = named(&walk::field_set(shape, &pruned)).union(&named(&owned));
    let pruned = merge::remove(shape, merged.clone(), &all.clone().difference(&kept));
    // What fell with its container though it was never this manager's comes back too.
    let kept = named(&walk::field_set(shape, &pruned));
    merge::remove(shape, merged, &all.difference(&kept).intersection(&last))
}

fn check_kind(applied: &Value, api_version: &str, kind: &str) -> Result<(), ApplyError> {
    let text = |key: &str| applied[key].as_str().unwrap_or_default();
    if text("apiVersion") == api_version && text("kind") == kind {
        return Ok(());
    }
    Err(ApplyError::BadRequest(format!("invalid object type: {}", group_version_kind(applied))))
}

/// `group/version, Kind=kind`; the slash stays where the group is empty.
fn group_version_kind(object: &Value) -> String {
    let text = |key: &str| object[key].as_str().unwrap_or_default();
    let version = text("apiVersion");
    let slash = if version.contains('/') { "" } else { "/" };
    format!("{slash}{version}, Kind={}", text("kind"))
}

fn check_types(shape: Shape<'_>, applied: &Value) -> Result<(), ApplyError> {
    let errors = walk::validate(shape, applied);
    let text = match errors.as_slice() {
        [] => return Ok(()),
        [only] => only.clone(),
        many => format!("errors:\n  {}", many.join("\n  ")),
    };
    let text_of = |key: &str| applied["metadata"][key].as_str().unwrap_or_default();
    Err(ApplyError::Typed(format!(
        "failed to create typed patch object ({}/{}; {}): {text}",
        text_of("namespace"),
        text_of("name"),
        group_version_kind(applied)
    )))
}

fn entry_of(writer: &Writer<'_>, operation: Operation) -> Entry {
    Entry {
        operation,
        time: Some(crate::meta::format_time(writer.now)),
        manager: writer.manager.to_owned(),
        api_version: writer.api_version.to_owned(),
        subresource: writer.subresource.to_owned(),
        fields: FieldSet::default(),
    }
}

/// What an object is before it is created: its always-present fields.
fn nothing(shape: Shape<'_>) -> Value {
    let empty = Value::Object(Map::new());
    crate::codec::decode_value(empty, shape).map_or(Value::Null, |decoded| decoded.value)
}

/// Takes out the fields that the server owns, whoever writes.
fn strip(fields: FieldSet) -> FieldSet {
    static SERVER_OWNED: std::sync::LazyLock<FieldSet> = std::sync::LazyLock::new(|| {
        FieldSet::of_fields(&[
            "apiVersion",
            "kind",
            "metadata",
            "metadata.name",
            "metadata.namespace",
            "metadata.creationTimestamp",
            "metadata.selfLink",
            "metadata.uid",
            "metadata.generation",
            "metadata.managedFields",
            "metadata.resourceVersion",
        ])
    });
    fields.difference(&SERVER_OWNED)
}

#[cfg(test)]
mod tests;
