//! Walks over trees along their schema: which fields a tree has, what differs between two, what is wrong in one.

use serde_json::{Map, Value};

use super::set::{FieldSet, attach, is_member, member, push_element};
use crate::schema::{ListKind, Scalar, Shape};

/// What differs between two trees.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    pub(super) added: FieldSet,
    pub(super) modified: FieldSet,
    pub(super) removed: FieldSet,
}

impl Comparison {
    /// Without what lies in or below `ignored`.
    pub(super) fn excluding(self, ignored: &FieldSet) -> Self {
        if ignored.is_empty() {
            return self;
        }
        Self {
            added: self.added.recursive_difference(ignored),
            modified: self.modified.recursive_difference(ignored),
            removed: self.removed.recursive_difference(ignored),
        }
    }
}

type Node = Map<String, Value>;

#[derive(Default)]
struct Diff {
    added: Node,
    modified: Node,
    removed: Node,
}

impl Diff {
    /// A leaf, or a container as a whole.
    fn leaf(&mut self, old: Option<&Value>, new: Option<&Value>) {
        match (old, new) {
            (None, Some(_)) => self.added = member(),
            (Some(_), None) => self.removed = member(),
            (Some(old), Some(new)) if old != new => self.modified = member(),
            _ => {}
        }
    }

    /// A container whose members have been compared: it came or went as well.
    fn container(&mut self, old: Option<&Value>, new: Option<&Value>) {
        let node = match (old, new) {
            (None, Some(_)) => &mut self.added,
            (Some(_), None) => &mut self.removed,
            _ => return,
        };
        node.append(&mut member());
    }

    fn attach(&mut self, element: impl Fn() -> String, child: Diff) {
        for (parent, node) in [
            (&mut self.added, child.added),
            (&mut self.modified, child.modified),
            (&mut self.removed, child.removed),
        ] {
            if !node.is_empty() {
                attach(parent, element(), node);
            }
        }
    }
}

/// Compares two objects. `metadata.managedFields` is passed over.
pub(super) fn compare(shape: Shape<'_>, old: &Value, new: &Value) -> Comparison {
    let diff = diff(shape, Some(old), Some(new), "", 0);
    Comparison {
        added: FieldSet::from_node(diff.added),
        modified: FieldSet::from_node(diff.modified),
        removed: FieldSet::from_node(diff.removed),
    }
}

/// How a value is treated, given its shape.
enum Form<'a> {
    Leaf,
    Map(Shape<'a>),
    List(Shape<'a>, &'a ListKind),
}

fn form<'a>(shape: Shape<'a>, value: Option<&Value>) -> Form<'a> {
    match shape {
        Shape::Scalar(_) => Form::Leaf,
        Shape::Message { atomic: true, .. } | Shape::Map { atomic: true, .. } => Form::Leaf,
        Shape::Message { .. } | Shape::Map { .. } => Form::Map(shape),
        Shape::List { kind: ListKind::Atomic, .. } => Form::Leaf,
        Shape::List { kind, .. } => Form::List(shape, kind),
        Shape::Any if value.is_some_and(Value::is_object) => Form::Map(shape),
        Shape::Any => Form::Leaf,
    }
}

fn diff(shape: Shape<'_>, old: Option<&Value>, new: Option<&Value>, name: &str, depth: usize) -> Diff {
    let mut out = Diff::default();
    if old == new {
        return out;
    }
    let present = |value: &Option<&Value>| value.is_some_and(|v| !v.is_null());
    let shaper = if present(&new) { new } else { old };
    match form(shape, shaper) {
        Form::Leaf => {
            // Without a schema a map may have become something else: its members went.
            if let (Shape::Any, Some(Value::Object(_))) = (shape, old) {
                out = diff_maps(shape, old, None, name, depth);
            }
            let mut whole = Diff::default();
            whole.leaf(old, new);
            out.added.append(&mut whole.added);
            out.modified.append(&mut whole.modified);
            out.removed.append(&mut whole.removed);
            out
        }
        Form::Map(shape) => {
            let is_empty = |value: Option<&Value>| value.and_then(Value::as_object).is_none_or(Map::is_empty);
            if is_empty(old) && is_empty(new) {
                out.leaf(old, new);
                return out;
            }
            let mut out = diff_maps(shape, old, new, name, depth);
            out.container(old, new);
            if old.is_some_and(|v| !v.is_object() && !v.is_null()) && new.is_some() {
                out.modified.append(&mut member());
            }
            out
        }
        Form::List(shape, kind) => {
            if items(old).is_empty() && items(new).is_empty() {
                out.leaf(old, new);
                return out;
            }
            let mut out = diff_lists(shape, kind, old, new, depth);
            out.container(old, new);
            out
        }
    }
}

fn diff_maps(shape: Shape<'_>, old: Option<&Value>, new: Option<&Value>, name: &str, depth: usize) -> Diff {
    let mut out = Diff::default();
    let (old, new) = (old.and_then(Value::as_object), new.and_then(Value::as_object));
    let is_metadata = depth == 1 && name == "metadata";
    let mut visit = |key: &str, old: Option<&Value>, new: Option<&Value>| {
        if old == new || is_metadata && key == "managedFields" {
            return;
        }
        let Some(shape) = shape.member(key) else { return };
        let child = diff(shape, old, new, key, depth + 1);
        out.attach(|| format!("f:{key}"), child);
    };
    for (key, value) in old.into_iter().flatten() {
        visit(key, Some(value), new.and_then(|new| new.get(key)));
    }
    for (key, value) in new.into_iter().flatten() {
        if old.is_none_or(|old| !old.contains_key(key)) {
            visit(key, None, Some(value));
        }
    }
    out
}

fn diff_lists(
    shape: Shape<'_>,
    kind: &ListKind,
    old: Option<&Value>,
    new: Option<&Value>,
    depth: usize,
) -> Diff {
    let mut out = Diff::default();
    let item_shape = shape.item().unwrap_or(Shape::Any);
    let index = |list: &[Value]| -> Vec<(String, usize)> {
        let mut elements: Vec<_> = list
            .iter()
            .enumerate()
            .filter_map(|(n, item)| Some((item_element(shape, kind, item).ok()?, n)))
            .collect();
        elements.sort();
        elements
    };
    let (old, new) = (items(old), items(new));
    let (mut ours, mut theirs) = (index(old).into_iter().peekable(), index(new).into_iter().peekable());
    // Both are sorted by element: take the next element of either, and all items of that element.
    loop {
        let element = match (ours.peek(), theirs.peek()) {
            (Some((a, _)), Some((b, _))) => a.min(b).clone(),
            (Some((a, _)), None) => a.clone(),
            (None, Some((b, _))) => b.clone(),
            (None, None) => return out,
        };
        let mut olds = Vec::new();
        while let Some((_, n)) = ours.next_if(|(e, _)| *e == element) {
            olds.push(&old[n]);
        }
        let mut news = Vec::new();
        while let Some((_, n)) = theirs.next_if(|(e, _)| *e == element) {
            news.push(&new[n]);
        }
        let child = if olds.len() <= 1 && news.len() <= 1 {
            diff(item_shape, olds.first().copied(), news.first().copied(), "", depth + 1)
        } else {
            // Duplicates cannot be told apart: they changed as a whole or not at all.
            let mut child = Diff::default();
            if olds != news {
                child.leaf(olds.first().copied(), news.first().copied());
                if !olds.is_empty() && !news.is_empty() {
                    child.modified = member();
                }
            }
            child
        };
        out.attach(|| element.clone(), child);
    }
}

fn items(list: Option<&Value>) -> &[Value] {
    list.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The path element of a list's item, or why it has none.
pub(super) fn item_element(shape: Shape<'_>, kind: &ListKind, item: &Value) -> Result<String, String> {
    match kind {
        ListKind::Atomic => Err("an atomic list has no path elements".to_owned()),
        ListKind::Set => match item {
            Value::Null => {
                Err("associative list without keys has an element that's an explicit null".to_owned())
            }
            Value::Object(_) => {
                Err("associative list without keys has an element that's a map type".to_owned())
            }
            Value::Array(_) => Err("not supported: associative list with lists as elements".to_owned()),
            scalar => Ok(format!("v:{scalar}")),
        },
        ListKind::Map(keys) => {
            let fields = match item {
                Value::Object(fields) => fields,
                Value::Null => {
                    return Err("associative list with keys may not have a null element".to_owned());
                }
                _ => return Err("associative list with keys may not have non-map elements".to_owned()),
            };
            let mut key = Map::new();
            for name in keys {
                let default = || match shape.item() {
                    Some(Shape::Message { ty, .. }) => ty.field(name).map(|(field, _)| field),
                    _ => None,
                };
                match fields.get(name.as_ref()) {
                    Some(value) => {
                        key.insert(name.to_string(), value.clone());
                    }
                    None => match default() {
                        Some(field) if field.default.is_some() => {
                            key.insert(name.to_string(), field.default.clone().unwrap_or_default());
                        }
                        Some(field) if !field.required && keys.len() > 1 => {}
                        // An optional name that is the only key counts as empty.
                        Some(field) if !field.required => {
                            key.insert(name.to_string(), Value::String(String::new()));
                        }
                        _ => {
                            return Err(format!(
                                "associative list with keys has an element that omits key field {name:?} (and doesn't have default value)"
                            ));
                        }
                    },
                }
            }
            Ok(format!("k:{}", Value::Object(key)))
        }
    }
}

/// The fields that a tree sets, as an applier owns them.
pub(super) fn field_set(shape: Shape<'_>, value: &Value) -> FieldSet {
    FieldSet::from_node(fields(shape, value))
}

fn fields(shape: Shape<'_>, value: &Value) -> Node {
    match form(shape, Some(value)) {
        Form::Leaf => member(),
        Form::Map(shape) => {
            let mut node = Node::new();
            for (key, value) in value.as_object().into_iter().flatten() {
                let Some(member_shape) = shape.member(key) else { continue };
                let mut child = fields(member_shape, value);
                let is_bare = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                if is_bare || !is_named(shape, key) {
                    child.append(&mut member());
                }
                attach(&mut node, format!("f:{key}"), child);
            }
            node
        }
        Form::List(shape, kind) => {
            let mut node = Node::new();
            let item_shape = shape.item().unwrap_or(Shape::Any);
            for item in value.as_array().into_iter().flatten() {
                let Ok(element) = item_element(shape, kind, item) else { continue };
                let mut child = fields(item_shape, item);
                child.append(&mut member());
                attach(&mut node, element, child);
            }
            node
        }
    }
}

/// Whether a member of this shape is a field that the schema names (not a key of a map).
fn is_named(shape: Shape<'_>, key: &str) -> bool {
    matches!(shape, Shape::Message { ty, .. } if ty.field(key).is_some())
}

/// The set with named fields that have members below them made members themselves: so that removing a set also removes
/// containers that it empties.
pub(super) fn with_named_fields(shape: Shape<'_>, set: &FieldSet) -> FieldSet {
    FieldSet::from_node(name_fields(shape, set.node()))
}

fn name_fields(shape: Shape<'_>, node: &Node) -> Node {
    let mut out = Node::new();
    for (element, child) in node {
        if element == super::set::SELF {
            out.append(&mut member());
            continue;
        }
        let child = super::set::as_node(child);
        let name = element.strip_prefix("f:");
        let child_shape = match name {
            Some(name) => shape.member(name),
            None => shape.item(),
        };
        let mut named = name_fields(child_shape.unwrap_or(Shape::Any), child);
        if is_member(child) || name.is_some_and(|name| is_named(shape, name)) {
            named.append(&mut member());
        }
        attach(&mut out, element.clone(), named);
    }
    out
}

/// What is wrong in an applied tree: undeclared fields, wrong types, duplicates in keyed lists.
pub(super) fn validate(shape: Shape<'_>, value: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    check(shape, value, &mut String::new(), &mut errors);
    errors
}

fn check(shape: Shape<'_>, value: &Value, path: &mut String, errors: &mut Vec<String>) {
    let mut wrong = |wanted: &str| errors.push(format!("{path}: expected {wanted}, got {value}"));
    match (shape, value) {
        (_, Value::Null) | (Shape::Any | Shape::Scalar(Scalar::RawExtension | Scalar::FieldsV1), _) => {}
        (Shape::Scalar(scalar), value) => {
            let fits = match scalar {
                Scalar::Bool => value.is_boolean(),
                Scalar::Int32 | Scalar::Int64 | Scalar::Double => value.is_number(),
                Scalar::IntOrString | Scalar::Quantity => value.is_number() || value.is_string(),
                _ => value.is_string(),
            };
            if !fits {
                wrong(match scalar {
                    Scalar::Bool => "boolean",
                    Scalar::Int32 | Scalar::Int64 | Scalar::Double => "numeric (int or float)",
                    Scalar::IntOrString | Scalar::Quantity => "scalar",
                    _ => "string",
                });
            }
        }
        (Shape::Message { .. } | Shape::Map { .. }, Value::Object(entries)) => {
            for (key, value) in entries {
                let length = path.len();
                push_element(path, &format!("f:{key}"));
                match shape.member(key) {
                    Some(shape) => check(shape, value, path, errors),
                    None => errors.push(format!("{path}: field not declared in schema")),
                }
                path.truncate(length);
            }
        }
        (Shape::Message { .. } | Shape::Map { .. }, _) => wrong("map"),
        (Shape::List { kind, .. }, Value::Array(items)) => {
            let mut seen = std::collections::HashSet::new();
            for (n, item) in items.iter().enumerate() {
                let length = path.len();
                let element = match kind {
                    ListKind::Atomic => format!("i:{n}"),
                    kind => match item_element(shape, kind, item) {
                        Ok(element) => {
                            if !seen.insert(element.clone()) {
                                let mut key = String::new();
                                push_element(&mut key, &element);
                                errors.push(format!("{path}: duplicate entries for key {key}"));
                            }
                            element
                        }
                        Err(error) => {
                            errors.push(format!("{path}: element {n}: {error}"));
                            continue;
                        }
                    },
                };
                push_element(path, &element);
                check(shape.item().unwrap_or(Shape::Any), item, path, errors);
                path.truncate(length);
            }
        }
        (Shape::List { .. }, _) => wrong("list"),
    }
}
