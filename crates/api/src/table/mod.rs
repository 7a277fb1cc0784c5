//! Table columns: what `kubectl get` shows, as data per kind plus one function that fills a row.
//!
//! A kind without a row of its own gets `Name` and `Created At`. Cells read the JSON tree, so an object of any
//! served version can be printed. Source: Kubernetes documentation, "Receiving resources as Tables"; the columns
//! are those of v1.36.

mod column;
mod custom;
mod duration;
mod events;
mod format;
mod networking;
mod nodes;
mod pods;
mod policies;
mod storage;
mod workloads;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::custom::Definition;
use crate::kinds::Kind;

pub use column::{Column, Doc, Type};
pub use duration::human_duration;
pub use pods::status_reason as pod_status;

/// How one kind is printed.
pub struct Layout {
    /// API group, empty for the core group.
    pub group: &'static str,
    /// Kind.
    pub kind: &'static str,
    /// The columns, in order.
    pub columns: &'static [Column],
    cells: fn(&Value, Timestamp) -> Vec<Value>,
}

static GENERIC: [Column; 2] = [column::NAME, column::CREATED_AT];

fn layouts() -> [&'static [Layout]; 7] {
    [
        pods::LAYOUTS,
        nodes::LAYOUTS,
        workloads::LAYOUTS,
        networking::LAYOUTS,
        events::LAYOUTS,
        storage::LAYOUTS,
        policies::LAYOUTS,
    ]
}

/// The layout of a kind, or `None` where the generic one applies. All versions of a kind share one.
pub fn layout(group: &str, kind: &str) -> Option<&'static Layout> {
    layouts().into_iter().flatten().find(|l| l.group == group && l.kind == kind)
}

/// The columns of a kind.
pub fn columns(group: &str, _version: &str, kind: &str) -> &'static [Column] {
    layout(group, kind).map_or(&GENERIC, |l| l.columns)
}

/// The columns as `columnDefinitions` of a `meta.k8s.io/v1` Table.
pub fn definitions(group: &str, version: &str, kind: &str) -> Value {
    // The descriptions are read out of whole schemas, so they are found once.
    static MADE: Mutex<BTreeMap<(String, String), Value>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    let columns = || columns(group, version, kind).iter().map(Column::to_json).collect();
    made.entry((group.to_owned(), kind.to_owned())).or_insert_with(|| Value::Array(columns())).clone()
}

/// One row's cells, in the order of [`columns`]. Ages count up to `now`.
pub fn cells(group: &str, kind: &str, object: &Value, now: Timestamp) -> Vec<Value> {
    match layout(group, kind) {
        Some(layout) => (layout.cells)(object, now),
        None => vec![
            json!(format::text(object, "/metadata/name")),
            object.pointer("/metadata/creationTimestamp").cloned().unwrap_or(Value::Null),
        ],
    }
}

/// What prints objects: the layout of a built-in kind, or a custom resource's definition.
#[derive(Clone, Copy)]
pub enum Printer<'a> {
    /// The layout of this group, version and kind.
    Named(&'a str, &'a str, &'a str),
    /// The columns of a definition.
    Custom(&'a Definition),
}

impl<'a> Printer<'a> {
    /// What prints objects of a kind.
    pub fn of(kind: &'a Kind) -> Self {
        match &kind.definition {
            Some(definition) => Self::Custom(definition),
            None => Self::Named(&kind.group, &kind.version, &kind.kind),
        }
    }

    /// The columns as `columnDefinitions`.
    pub fn definitions(self) -> Value {
        match self {
            Self::Named(group, version, kind) => definitions(group, version, kind),
            Self::Custom(definition) => custom::definitions(definition),
        }
    }

    /// One row's cells.
    pub fn cells(self, object: &Value, now: Timestamp) -> Vec<Value> {
        match self {
            Self::Named(group, _, kind) => cells(group, kind, object, now),
            Self::Custom(definition) => custom::cells(definition, object, now),
        }
    }

    /// The objects of a list in the order in which a table shows them. Only flow schemas have one of their own:
    /// that in which the server asks them.
    pub fn sorted(self, objects: &[Value]) -> Vec<&Value> {
        let mut objects: Vec<&Value> = objects.iter().collect();
        if let Self::Named("flowcontrol.apiserver.k8s.io", _, "FlowSchema") = self {
            let key = |o: &&Value| {
                (format::int(o, "/spec/matchingPrecedence"), format::text(o, "/metadata/name").to_owned())
            };
            objects.sort_by_cached_key(key);
        }
        objects
    }

    /// The `conditions` of a row.
    pub fn row_conditions(self, object: &Value) -> Option<Value> {
        match self {
            Self::Named(group, _, kind) => row_conditions(group, kind, object),
            Self::Custom(_) => None,
        }
    }

    /// Whether the rows of an empty table are null instead of an empty list: only those of the generic layout.
    pub fn prints_no_rows_as_null(self) -> bool {
        match self {
            Self::Named(group, _, kind) => layout(group, kind).is_none(),
            Self::Custom(_) => false,
        }
    }
}

/// What the column says that shows when an object was made.
pub(crate) fn created_at() -> String {
    column::CREATED_AT.description()
}

/// The `conditions` of a row: set for pods that have ended (clients may hide them), else `None`.
pub fn row_conditions(group: &str, kind: &str, object: &Value) -> Option<Value> {
    if !group.is_empty() || kind != "Pod" {
        return None;
    }
    let (reason, message) = match format::text(object, "/status/phase") {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return None,
    };
    Some(json!([{"type": "Completed", "status": "True", "reason": reason, "message": message}]))
}

#[cfg(test)]
mod tests;
