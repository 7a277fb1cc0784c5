//! The messages that mutating policies make: `Object{}` (a partial object) and `JSONPatch{}`.
//!
//! Rule: Kubernetes documentation, "Mutating Admission Policy"; the type of a nested literal must spell the path it
//! stands at (`Object{spec: Object.spec{...}}`).

use std::sync::{Arc, LazyLock};

use serde_json::Value as Json;

use super::decl::{Decl, ObjectDecl, Shape};
use super::eval::{Error, Work};
use super::types::Type;
use super::value::Value;

const OBJECT: &str = "Object";
const PATCH: &str = "JSONPatch";

/// The type of a message literal.
pub(super) fn message(name: &str) -> Option<Arc<ObjectDecl>> {
    static JSON_PATCH: LazyLock<Decl> = LazyLock::new(|| {
        let text = || Decl::scalar(Type::String);
        Decl::object(
            PATCH,
            vec![("op", text()), ("path", text()), ("from", text()), ("value", Decl::scalar(Type::Dyn))],
        )
    });
    if name == PATCH {
        return match &JSON_PATCH.shape {
            Shape::Object(decl) => Some(decl.clone()),
            _ => None,
        };
    }
    let below = name.strip_prefix(OBJECT)?;
    (below.is_empty() || below.starts_with('.'))
        .then(|| Arc::new(ObjectDecl { name: name.to_owned(), open: true, ..ObjectDecl::default() }))
}

/// The type that the expression of an apply configuration must have.
pub(super) fn object_type() -> Type {
    message(OBJECT).map_or(Type::Dyn, Type::Object)
}

/// The type that the expression of a JSON patch must have.
pub(super) fn patch_type() -> Type {
    Type::list(message(PATCH).map_or(Type::Dyn, Type::Object))
}

/// The partial object that an expression made, once its types spell their paths.
pub(super) fn object(value: &Value<'_>) -> Result<Json, Error> {
    let mut work = Work::default();
    paths(value, OBJECT, &mut work)?;
    value.to_json(&mut work)
}

fn paths(value: &Value<'_>, path: &str, work: &mut Work) -> Result<(), Error> {
    work.spend(1)?;
    match value {
        Value::Message(message) => {
            if *message.name != *path {
                return Err(Error::new(format!(
                    "unexpected type name \"{}\", expected \"{path}\", which matches field name path from root Object type",
                    message.name
                )));
            }
            for (name, value) in &message.fields {
                let below = format!("{path}.{name}");
                work.deeper(|work| paths(value, &below, work))?;
            }
            Ok(())
        }
        Value::List(list) => {
            for item in list.iter() {
                work.deeper(|work| paths(&item, path, work))?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The operations that an expression made, as RFC 6902 has them.
pub(super) fn patch(value: &Value<'_>) -> Result<Json, Error> {
    let mut work = Work::default();
    let Value::List(list) = value else { return Err(Error::new("JSON patch must be a list")) };
    let mut operations = Vec::with_capacity(list.len());
    for item in list.iter() {
        let Value::Message(message) = item else {
            return Err(Error::new("JSON patch must be a list of JSONPatch"));
        };
        let mut operation = serde_json::Map::new();
        for (name, value) in &message.fields {
            operation.insert(name.to_string(), value.to_json(&mut work)?);
        }
        operations.push(Json::Object(operation));
    }
    Ok(Json::Array(operations))
}
