//! `metadata.managedFields`: who owns which fields, read and written.

use serde_json::{Map, Value};

use super::set::FieldSet;

/// Update managers beyond this many are merged into one, the oldest first.
const MAX_UPDATE_MANAGERS: usize = 10;
/// The name of the manager that the oldest ones are merged into.
const ANCIENT: &str = "ancient-changes";

/// How a manager came to own its fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Server-side apply.
    Apply,
    /// Any other write.
    Update,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        }
    }
}

/// One entry: a manager's fields.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) operation: Operation,
    /// RFC 3339 with whole seconds; texts of this form sort by time. None sorts first.
    pub(super) time: Option<String>,
    pub(super) manager: String,
    pub(super) api_version: String,
    pub(super) subresource: String,
    pub(super) fields: FieldSet,
}

impl Entry {
    /// Whether two entries are the same manager's. Appliers keep their entry across versions.
    pub(super) fn is_same_manager(&self, other: &Entry) -> bool {
        self.operation == other.operation
            && self.manager == other.manager
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    /// How conflicts name the manager.
    pub(super) fn describe(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text += &format!(" with subresource {:?}", self.subresource);
        }
        if self.operation == Operation::Update {
            text += &format!(" using {}", self.api_version);
        }
        text
    }

    fn parse(value: &Value) -> Option<Self> {
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let operation = match value["operation"].as_str()? {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return None,
        };
        if value["fieldsType"].as_str() != Some("FieldsV1") {
            return None;
        }
        let fields = match value.get("fieldsV1") {
            Some(fields) if !fields.is_null() => FieldSet::parse(fields)?,
            _ => FieldSet::default(),
        };
        Some(Self {
            operation,
            time: value["time"].as_str().map(str::to_owned),
            manager: text("manager"),
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            fields,
        })
    }

    fn into_value(self) -> Value {
        let mut map = Map::new();
        let mut put = |key: &str, text: String| {
            if !text.is_empty() {
                map.insert(key.to_owned(), Value::String(text));
            }
        };
        put("manager", self.manager);
        put("operation", self.operation.name().to_owned());
        put("apiVersion", self.api_version);
        put("time", self.time.unwrap_or_default());
        put("fieldsType", "FieldsV1".to_owned());
        put("subresource", self.subresource);
        map.insert("fieldsV1".to_owned(), self.fields.into_value());
        Value::Object(map)
    }
}

/// Reads the entries of an object; none where one is malformed.
pub(super) fn parse(object: &Value) -> Option<Vec<Entry>> {
    match &object["metadata"]["managedFields"] {
        Value::Array(entries) => entries.iter().map(Entry::parse).collect(),
        _ => Some(Vec::new()),
    }
}

/// What is wrong with the entries of an object, in the words clients know; none where they can be read.
pub fn complaint(object: &Value) -> Option<String> {
    let entries = object["metadata"]["managedFields"].as_array()?;
    entries.iter().enumerate().find_map(|(at, entry)| {
        if !matches!(entry["operation"].as_str(), Some("Apply" | "Update")) {
            return Some("operation must be `Apply` or `Update`".to_owned());
        }
        if entry["apiVersion"].as_str().is_none_or(str::is_empty) {
            return Some("apiVersion must not be empty".to_owned());
        }
        match entry["fieldsType"].as_str() {
            Some("FieldsV1") => {}
            None | Some("") => return Some(format!("missing fieldsType in managed fields entry {at}")),
            Some(other) => return Some(format!("invalid fieldsType {other:?} in managed fields entry {at}")),
        }
        Entry::parse(entry).is_none().then(|| "error decoding set: not the fields of FieldsV1".to_owned())
    })
}

/// Whether a client asks for all entries to be forgotten: `[]` or one empty entry.
pub(super) fn is_reset(object: &Value) -> bool {
    match object["metadata"]["managedFields"].as_array().map(Vec::as_slice) {
        Some([]) => true,
        Some([only]) => only.as_object().is_some_and(Map::is_empty),
        _ => false,
    }
}

/// Writes the entries into an object, in their order: by operation, time, manager, version and subresource.
pub(super) fn write(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|entry| !entry.fields.is_empty());
    entries.sort_by(|a, b| {
        (a.operation, &a.time, &a.manager, &a.api_version, &a.subresource).cmp(&(
            b.operation,
            &b.time,
            &b.manager,
            &b.api_version,
            &b.subresource,
        ))
    });
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    if entries.is_empty() {
        metadata.remove("managedFields");
    } else {
        let entries = entries.into_iter().map(Entry::into_value).collect();
        metadata.insert("managedFields".to_owned(), Value::Array(entries));
    }
}

/// Merges the oldest update managers of each version into one until there are few enough.
pub(super) fn cap(entries: &mut Vec<Entry>) {
    let is_update = |entry: &Entry| entry.operation == Operation::Update;
    let mut excess = entries.iter().filter(|e| is_update(e)).count().saturating_sub(MAX_UPDATE_MANAGERS);
    if excess == 0 {
        return;
    }
    let (mut updates, mut kept): (Vec<_>, Vec<_>) = entries.drain(..).partition(is_update);
    updates.sort_by(|a, b| (&a.time, &a.manager, &a.api_version).cmp(&(&b.time, &b.manager, &b.api_version)));
    let mut out: Vec<Entry> = Vec::with_capacity(updates.len());
    for entry in updates {
        // The first of a version stays until a second one comes to merge with.
        let first = out.iter_mut().find(|first| first.api_version == entry.api_version);
        match first {
            Some(first) if excess > 0 => {
                first.manager = ANCIENT.to_owned();
                first.subresource = String::new();
                first.fields = std::mem::take(&mut first.fields).union(&entry.fields);
                first.time = entry.time;
                excess -= 1;
            }
            _ => out.push(entry),
        }
    }
    kept.append(&mut out);
    *entries = kept;
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry(operation: &str, manager: &str, time: &str) -> Value {
        json!({"manager": manager, "operation": operation, "apiVersion": "v1", "time": time, "fieldsType": "FieldsV1",
            "fieldsV1": {"f:data": {format!("f:{manager}"): {}}}})
    }

    fn object(entries: Vec<Value>) -> Value {
        json!({"metadata": {"managedFields": entries}})
    }

    #[test]
    fn entries_are_sorted_and_empty_ones_vanish() {
        let mut value = object(vec![
            entry("Update", "aa", "2024-01-01T00:00:00Z"),
            entry("Apply", "zz", "2024-01-01T00:00:01Z"),
            entry("Apply", "yy", "2024-01-01T00:00:02Z"),
        ]);
        let mut entries = parse(&value).unwrap();
        entries[2].time = None;
        entries.push(Entry { fields: FieldSet::default(), ..entries[0].clone() });
        write(&mut value, entries);
        let managers: Vec<_> =
            value["metadata"]["managedFields"].as_array().unwrap().iter().map(|e| &e["manager"]).collect();
        assert_eq!(managers, ["yy", "zz", "aa"]);
    }

    #[test]
    fn more_than_ten_update_managers_collapse() {
        let entries: Vec<_> = (0..12)
            .map(|n| entry("Update", &format!("m{n:02}"), &format!("2024-01-01T00:00:{n:02}Z")))
            .collect();
        let mut entries = parse(&object(entries)).unwrap();
        cap(&mut entries);
        assert_eq!(entries.len(), 10);
        let ancient = entries.iter().find(|e| e.manager == "ancient-changes").unwrap();
        assert_eq!(ancient.fields.paths(), [".data.m00", ".data.m01", ".data.m02"]);
        assert_eq!(ancient.time.as_deref(), Some("2024-01-01T00:00:02Z"));
    }

    #[test]
    fn malformed_entries_are_refused_and_resets_are_seen() {
        assert!(parse(&object(vec![entry("Nosuch", "m", "")])).is_none());
        assert!(parse(&object(vec![json!({"operation": "Update", "fieldsType": "Other"})])).is_none());
        assert!(is_reset(&object(vec![])) && is_reset(&object(vec![json!({})])));
        assert!(!is_reset(&json!({"metadata": {}})));
    }
}
