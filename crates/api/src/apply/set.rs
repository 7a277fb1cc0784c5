//! Sets of field paths, in the form `managedFields` prints (`FieldsV1`).
//!
//! The JSON tree *is* the set: keys are path elements (`f:name`, `k:{"name":"a"}`, `v:"x"`, `i:0`), an element is a member when
//! its value is empty or has the key `.`. Working on that form saves parsing and printing every manager's fields on
//! every write. Invariant: no element is empty without being a member.

use std::fmt::Write as _;
use std::sync::LazyLock;

use serde_json::{Map, Value};

/// The key that makes an element with children a member.
pub(super) const SELF: &str = ".";

/// A set of field paths.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FieldSet(Map<String, Value>);

impl FieldSet {
    /// The set of these paths of named fields, for example `["status", "metadata.labels"]`.
    pub fn of_fields(paths: &[&str]) -> Self {
        let mut set = FieldSet::default();
        for path in paths {
            let mut node = member();
            for name in path.rsplit('.') {
                let mut parent = Map::new();
                attach(&mut parent, format!("f:{name}"), node);
                node = parent;
            }
            set = set.union(&FieldSet(node));
        }
        set
    }

    /// Reads `fieldsV1`; none where it is malformed.
    pub fn parse(fields: &Value) -> Option<Self> {
        parse_node(fields).map(FieldSet)
    }

    /// As `fieldsV1` prints it.
    pub fn to_value(&self) -> Value {
        Value::Object(self.0.clone())
    }

    /// As `fieldsV1` prints it.
    pub fn into_value(self) -> Value {
        Value::Object(self.0)
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The members of either.
    pub fn union(mut self, other: &FieldSet) -> FieldSet {
        union(&mut self.0, &other.0);
        self
    }

    /// The members that `other` lacks. Members below one of `other` stay.
    pub fn difference(mut self, other: &FieldSet) -> FieldSet {
        difference(&mut self.0, &other.0, false);
        self
    }

    /// The members that neither are in `other` nor lie below one of its members.
    pub fn recursive_difference(mut self, other: &FieldSet) -> FieldSet {
        difference(&mut self.0, &other.0, true);
        self
    }

    /// The members of both.
    pub fn intersection(&self, other: &FieldSet) -> FieldSet {
        FieldSet(intersection(&self.0, &other.0))
    }

    /// Every member as a path for people: `.spec.containers[name="a"].image`.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        collect(&self.0, &mut String::new(), &mut paths);
        paths
    }

    pub(super) fn from_node(mut node: Map<String, Value>) -> Self {
        node.remove(SELF);
        Self(node)
    }

    pub(super) fn node(&self) -> &Map<String, Value> {
        &self.0
    }
}

/// A node under construction that is a member; [`attach`] brings it into its final form.
pub(super) fn member() -> Map<String, Value> {
    let mut node = Map::new();
    node.insert(SELF.to_owned(), Value::Object(Map::new()));
    node
}

/// Puts a node, whose membership is marked by [`SELF`], below a parent. Empty nodes vanish.
pub(super) fn attach(parent: &mut Map<String, Value>, element: String, mut node: Map<String, Value>) {
    if node.is_empty() {
        return;
    }
    if node.len() == 1 {
        node.remove(SELF);
    }
    parent.insert(element, Value::Object(node));
}

/// Whether an element with this node is a member.
pub(super) fn is_member(node: &Map<String, Value>) -> bool {
    node.is_empty() || node.contains_key(SELF)
}

pub(super) fn as_node(value: &Value) -> &Map<String, Value> {
    static EMPTY: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);
    value.as_object().unwrap_or(&EMPTY)
}

fn parse_node(value: &Value) -> Option<Map<String, Value>> {
    let mut node = Map::new();
    for (element, child) in value.as_object()? {
        if element == SELF {
            node.insert(element.clone(), Value::Object(Map::new()));
            continue;
        }
        let element = match element.split_once(':')? {
            ("f", _) => element.clone(),
            // Printed anew, so that equal keys are equal texts.
            (kind @ ("k" | "v"), text) => {
                let parsed: Value = serde_json::from_str(text).ok()?;
                if kind == "k" && !parsed.is_object() {
                    return None;
                }
                format!("{kind}:{parsed}")
            }
            ("i", index) => format!("i:{}", index.parse::<i64>().ok()?),
            _ => return None,
        };
        node.insert(element, Value::Object(parse_node(child)?));
    }
    Some(node)
}

fn union(into: &mut Map<String, Value>, other: &Map<String, Value>) {
    for (element, theirs) in other {
        match into.get_mut(element) {
            None => {
                into.insert(element.clone(), theirs.clone());
            }
            Some(Value::Object(ours)) if element != SELF => {
                let theirs = as_node(theirs);
                let is_in = is_member(ours) || is_member(theirs);
                union(ours, theirs);
                ours.remove(SELF);
                if is_in && !ours.is_empty() {
                    ours.insert(SELF.to_owned(), Value::Object(Map::new()));
                }
            }
            Some(_) => {}
        }
    }
}

fn difference(from: &mut Map<String, Value>, other: &Map<String, Value>, is_recursive: bool) {
    from.retain(|element, ours| {
        let (Some(theirs), Value::Object(ours)) = (other.get(element), ours) else { return true };
        if element == SELF {
            return true;
        }
        let theirs = as_node(theirs);
        let is_hit = is_member(theirs);
        if is_hit && is_recursive {
            return false;
        }
        let stays = is_member(ours) && !is_hit;
        ours.remove(SELF);
        difference(ours, theirs, is_recursive);
        if stays && !ours.is_empty() {
            ours.insert(SELF.to_owned(), Value::Object(Map::new()));
        }
        stays || !ours.is_empty()
    });
}

fn intersection(a: &Map<String, Value>, b: &Map<String, Value>) -> Map<String, Value> {
    let mut both = Map::new();
    for (element, ours) in a {
        if element == SELF {
            continue;
        }
        let Some(theirs) = b.get(element) else { continue };
        let (ours, theirs) = (as_node(ours), as_node(theirs));
        let mut node = intersection(ours, theirs);
        if is_member(ours) && is_member(theirs) {
            node.insert(SELF.to_owned(), Value::Object(Map::new()));
        }
        attach(&mut both, element.clone(), node);
    }
    both
}

fn collect(node: &Map<String, Value>, path: &mut String, out: &mut Vec<String>) {
    for (element, child) in node {
        if element == SELF {
            continue;
        }
        let length = path.len();
        push_element(path, element);
        let child = as_node(child);
        if is_member(child) {
            out.push(path.clone());
        }
        collect(child, path, out);
        path.truncate(length);
    }
}

/// Appends a path element as people read it.
pub(super) fn push_element(path: &mut String, element: &str) {
    // Writing to a String cannot fail.
    let _ = match element.split_once(':') {
        Some(("f", name)) => write!(path, ".{name}"),
        Some(("k", key)) => {
            let fields = serde_json::from_str::<Map<String, Value>>(key).unwrap_or_default();
            let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
            write!(path, "[{}]", fields.join(","))
        }
        Some(("v", value)) => write!(path, "[={value}]"),
        Some((_, index)) => write!(path, "[{index}]"),
        None => Ok(()),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set(value: Value) -> FieldSet {
        FieldSet::parse(&value).unwrap()
    }

    #[test]
    fn set_operations() {
        let a = || set(json!({"f:data": {".": {}, "f:a": {}, "f:b": {}}}));
        let b = || set(json!({"f:data": {"f:b": {}, "f:c": {}}}));
        assert_eq!(a().union(&b()), set(json!({"f:data": {".": {}, "f:a": {}, "f:b": {}, "f:c": {}}})));
        assert_eq!(a().difference(&b()), set(json!({"f:data": {".": {}, "f:a": {}}})));
        assert_eq!(b().difference(&a()), set(json!({"f:data": {"f:c": {}}})));
        assert_eq!(a().intersection(&b()), set(json!({"f:data": {"f:b": {}}})));
        assert!(a().difference(&a()).is_empty());
        let whole = set(json!({"f:data": {}}));
        assert_eq!(a().difference(&whole), set(json!({"f:data": {"f:a": {}, "f:b": {}}})));
        assert!(a().recursive_difference(&whole).is_empty());
        assert_eq!(whole.union(&b()), set(json!({"f:data": {".": {}, "f:b": {}, "f:c": {}}})));
        assert_eq!(
            FieldSet::of_fields(&["spec", "metadata.labels"]).to_value(),
            json!({"f:spec": {}, "f:metadata": {"f:labels": {}}})
        );
    }

    #[test]
    fn paths_are_written_for_people() {
        let paths = set(
            json!({"f:spec": {"f:ports": {"k:{\"protocol\":\"TCP\",\"port\":80}": {".": {}, "f:name": {}}},
            "f:x": {"v:\"a\"": {}, "i:0": {}}}}),
        )
        .paths();
        assert_eq!(
            paths,
            [
                ".spec.ports[port=80,protocol=\"TCP\"]",
                ".spec.ports[port=80,protocol=\"TCP\"].name",
                ".spec.x[0]",
                ".spec.x[=\"a\"]"
            ]
        );
    }

    #[test]
    fn malformed_sets_are_refused() {
        for value in [json!([]), json!({"x": {}}), json!({"k:1": {}}), json!({"f:a": 1}), json!({"i:x": {}})]
        {
            assert!(FieldSet::parse(&value).is_none(), "{value}");
        }
    }
}
