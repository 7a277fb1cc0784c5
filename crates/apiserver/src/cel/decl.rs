//! What a schema says about values, as far as expressions care: types, names of fields, largest sizes.
//!
//! Names of fields that are no CEL identifiers are escaped (`__dash__`, `__dot__`, `__namespace__`): Kubernetes
//! documentation, "Validation rules", "Escaping".

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value as Json;

use super::types::Type;

/// Bytes of the largest request: what a size that nothing limits is taken for.
pub(super) const MAX_REQUEST: u64 = 3 << 20;
/// Length of the longest duration in text.
const MAX_DURATION: u64 = 32;
/// Length of the longest time stamp in text, with quotes.
const MAX_TIMESTAMP: u64 = 37;
/// Length of the longest date in text, with quotes.
const MAX_DATE: u64 = 12;

/// What may stand at a place.
#[derive(Debug, Clone)]
pub(super) struct Decl {
    pub(super) shape: Shape,
    /// Items, entries or characters, at most.
    pub(super) max: u64,
    /// Bytes of the smallest value, as JSON.
    pub(super) min_size: u64,
}

#[derive(Debug, Clone)]
pub(super) enum Shape {
    Scalar(Type),
    List { item: Box<Decl>, kind: ListKind },
    Map { value: Box<Decl> },
    Object(Arc<ObjectDecl>),
}

/// How items of a list are told apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ListKind {
    Atomic,
    Set,
    Map(Vec<String>),
}

/// A message type.
#[derive(Debug, Default)]
pub(super) struct ObjectDecl {
    /// What errors call it.
    pub(super) name: String,
    /// By escaped name.
    pub(super) fields: BTreeMap<String, FieldDecl>,
    /// Whether fields that are not listed may be spoken of; they are of no known type.
    pub(super) open: bool,
}

#[derive(Debug)]
pub(super) struct FieldDecl {
    /// As it stands in JSON.
    pub(super) name: String,
    pub(super) decl: Decl,
}

impl Decl {
    pub(super) fn scalar(ty: Type) -> Self {
        let min_size = match ty {
            Type::String | Type::Bytes => 2,
            Type::Bool => 4,
            _ => 1,
        };
        Self { shape: Shape::Scalar(ty), max: u64::MAX, min_size }
    }

    pub(super) fn of_max(mut self, max: u64) -> Self {
        self.max = max;
        self
    }

    pub(super) fn list(item: Decl, kind: ListKind) -> Self {
        let max = fitting(item.min_size);
        Self { shape: Shape::List { item: Box::new(item), kind }, max, min_size: 2 }
    }

    pub(super) fn map(value: Decl) -> Self {
        let max = fitting(value.min_size.saturating_add(5));
        Self { shape: Shape::Map { value: Box::new(value) }, max, min_size: 2 }
    }

    /// A message of the API itself: expressions name its fields as JSON does, `namespace` included.
    pub(super) fn object(name: &str, fields: Vec<(&str, Decl)>) -> Self {
        let field = |(name, decl): (&str, Decl)| (name.to_owned(), FieldDecl { name: name.to_owned(), decl });
        let fields = fields.into_iter().map(field).collect();
        Self::of_object(ObjectDecl { name: name.to_owned(), fields, open: false })
    }

    pub(super) fn of_object(object: ObjectDecl) -> Self {
        Self { shape: Shape::Object(Arc::new(object)), max: u64::MAX, min_size: 2 }
    }

    /// The static type.
    pub(super) fn ty(&self) -> Type {
        match &self.shape {
            Shape::Scalar(ty) => ty.clone(),
            Shape::List { item, .. } => Type::list(item.ty()),
            Shape::Map { value } => Type::map(Type::String, value.ty()),
            Shape::Object(object) => Type::Object(object.clone()),
        }
    }

    /// What stands below a member of this name, as it is in JSON.
    pub(super) fn member(&self, name: &str) -> Option<&Decl> {
        match &self.shape {
            Shape::Object(object) => object.fields.values().find(|f| f.name == name).map(|f| &f.decl),
            Shape::Map { value } => Some(value),
            _ => None,
        }
    }

    pub(super) fn item(&self) -> Option<&Decl> {
        match &self.shape {
            Shape::List { item, .. } => Some(item),
            _ => None,
        }
    }
}

/// How many things of a size fit a request.
fn fitting(size: u64) -> u64 {
    // a comma between two, brackets around all
    (MAX_REQUEST - 2) / size.saturating_add(1).max(1)
}

/// Which schema a structural one is read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// The whole object of a kind: `apiVersion`, `kind` and `metadata` (its name only) are known.
    Resource,
    /// Anything below.
    Part,
}

/// Reads a structural schema; none where expressions may not see the value at all
/// (`x-kubernetes-preserve-unknown-fields` without a type).
pub(super) fn structural(schema: &Json, level: Level, name: &str) -> Option<Decl> {
    let embedded = schema["x-kubernetes-embedded-resource"] == true;
    let root = level == Level::Resource || embedded;
    if schema["x-kubernetes-int-or-string"] == true {
        return Some(Decl { shape: Shape::Scalar(Type::Dyn), max: MAX_REQUEST - 2, min_size: 1 });
    }
    let number = |key: &str| schema[key].as_u64();
    let decl = match schema["type"].as_str().unwrap_or_default() {
        "array" => {
            let item = structural(&schema["items"], Level::Part, &format!("{name}.@idx"))?;
            let keys = || {
                let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
                keys.filter_map(Json::as_str).map(str::to_owned).collect()
            };
            let kind = match schema["x-kubernetes-list-type"].as_str() {
                Some("set") => ListKind::Set,
                Some("map") => ListKind::Map(keys()),
                _ => ListKind::Atomic,
            };
            let list = Decl::list(item, kind);
            match number("maxItems") {
                Some(max) => list.of_max(max),
                None => list,
            }
        }
        "object" if schema["additionalProperties"].is_object() => {
            let value = structural(&schema["additionalProperties"], Level::Part, &format!("{name}.@elem"))?;
            let map = Decl::map(value);
            match number("maxProperties") {
                Some(max) => map.of_max(max),
                None => map,
            }
        }
        "object" => {
            let mut object = ObjectDecl { name: name.to_owned(), ..ObjectDecl::default() };
            let mut min_size = 2;
            let required: Vec<&str> =
                schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str).collect();
            let metadata = root.then(resource_members);
            let known = metadata.iter().flatten().map(|(k, v)| (k.as_str(), v));
            let properties = schema["properties"].as_object().into_iter().flatten();
            // what the type of a resource says of `metadata` is not for the schema to change
            let properties = properties
                .map(|(k, v)| (k.as_str(), v))
                .filter(|(k, _)| !root || !matches!(*k, "apiVersion" | "kind" | "metadata"));
            for (key, schema) in known.chain(properties) {
                let Some(decl) = structural(schema, Level::Part, &format!("{name}.{key}")) else { continue };
                if required.contains(&key) && schema.get("default").is_none() {
                    // quotes, colon, comma
                    min_size += key.len() as u64 + decl.min_size + 4;
                }
                if let Some(escaped) = escape(key) {
                    object.fields.insert(escaped, FieldDecl { name: key.to_owned(), decl });
                }
            }
            Decl { shape: Shape::Object(Arc::new(object)), max: u64::MAX, min_size }
        }
        "string" => {
            let limit = number("maxLength");
            let text = match schema["format"].as_str() {
                Some("byte") => {
                    let max = limit.unwrap_or(MAX_REQUEST - 2);
                    return Some(Decl { shape: Shape::Scalar(Type::Bytes), max, min_size: 2 });
                }
                Some("duration") => {
                    return Some(Decl {
                        shape: Shape::Scalar(Type::Duration),
                        max: MAX_DURATION,
                        min_size: 2,
                    });
                }
                Some("date") => (Type::Timestamp, MAX_DATE),
                Some("date-time") => (Type::Timestamp, MAX_TIMESTAMP),
                _ => (Type::String, 0),
            };
            if let (Type::Timestamp, max) = text {
                return Some(Decl { shape: Shape::Scalar(Type::Timestamp), max, min_size: 20 });
            }
            let listed = schema["enum"].as_array().into_iter().flatten();
            let longest = listed.filter_map(Json::as_str).map(|s| s.chars().count() as u64).max();
            // a character takes up to four bytes of a request's
            let max = limit.map(|n| n.saturating_mul(4)).or(longest).unwrap_or(MAX_REQUEST - 2);
            Decl::scalar(Type::String).of_max(max)
        }
        "boolean" => Decl::scalar(Type::Bool).of_max(1),
        "number" => Decl::scalar(Type::Double).of_max(1),
        "integer" => Decl::scalar(Type::Int).of_max(1),
        _ => return None,
    };
    Some(decl)
}

/// What expressions may see of any resource, besides its own fields.
fn resource_members() -> Vec<(String, Json)> {
    let text = || serde_json::json!({"type": "string"});
    let metadata = serde_json::json!({
        "type": "object",
        "properties": {"name": {"type": "string"}, "generateName": {"type": "string"}},
    });
    vec![("apiVersion".to_owned(), text()), ("kind".to_owned(), text()), ("metadata".to_owned(), metadata)]
}

/// Words that cannot be a field's name in an expression.
pub(super) const RESERVED: &[&str] = &[
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// The name an expression uses for a field; none where it cannot name it.
pub(super) fn escape(name: &str) -> Option<String> {
    if RESERVED.contains(&name) {
        return Some(format!("__{name}__"));
    }
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        if rest.starts_with("__") {
            out.push_str("__underscores__");
            rest = &rest[2..];
            continue;
        }
        match c {
            '.' => out.push_str("__dot__"),
            '-' => out.push_str("__dash__"),
            '/' => out.push_str("__slash__"),
            c if c.is_ascii_alphanumeric() || c == '_' => out.push(c),
            _ => return None,
        }
        rest = &rest[c.len_utf8()..];
    }
    (!out.is_empty() && !out.starts_with(|c: char| c.is_ascii_digit())).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_as_documented() {
        for (name, escaped) in [
            ("plain", Some("plain")),
            ("namespace", Some("__namespace__")),
            ("x-prop", Some("x__dash__prop")),
            ("redact__d", Some("redact__underscores__d")),
            ("a.b/c", Some("a__dot__b__slash__c")),
            ("int", Some("int")),
            ("$ref", None),
            ("4k", None),
        ] {
            assert_eq!(escape(name).as_deref(), escaped, "{name}");
        }
    }
}
