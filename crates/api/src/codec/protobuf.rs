//! Protobuf in and out, driven by the tags of the schema's fields: one reader and one writer for all types.
//!
//! An object travels in an envelope: the bytes `k8s\0` and a `runtime.Unknown` that names the type and holds the message.
//! Reading builds the JSON tree that the message stands for and brings it into the printed form with
//! [`decode_value`], so an object is the same whichever way it came. Rule: Kubernetes API Concepts, "Kubernetes
//! Protobuf encoding"; what the messages hold: the published `.proto` files.
//!
//! Protobuf cannot tell an empty list or map from none; a reader gets what is printed for none.

use std::borrow::Cow;

use serde_json::Value;

use super::{DecodeError, Decoded, decode_value};
use crate::kinds;
use crate::schema::{self, Shape};

mod read;
mod union;
mod wire;
mod write;

/// What every object in protobuf begins with.
const MAGIC: &[u8] = b"k8s\0";
/// The folder of the types that every group shares.
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// The outside of an object: which type it is of, and its message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Envelope<'a> {
    /// The object's `apiVersion`; may be empty.
    pub api_version: Cow<'a, str>,
    /// The object's `kind`; may be empty.
    pub kind: Cow<'a, str>,
    raw: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// Opens an envelope; the message inside is not read.
    pub fn open(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let refuse = |why: &str| Err(DecodeError::Protobuf(why.to_owned()));
        match bytes.strip_prefix(MAGIC) {
            None if bytes.is_empty() => refuse("empty data"),
            None => refuse(&format!(
                "provided data does not appear to be a protobuf message, expected prefix {}",
                format!("{MAGIC:?}").replace(',', "")
            )),
            Some([]) => refuse("empty body"),
            Some(unknown) => read::envelope(unknown),
        }
    }

    /// Reads the message as one of a shape.
    pub fn decode(&self, shape: Shape<'_>) -> Result<Decoded, DecodeError> {
        decode_value(read::object(self, shape)?, shape)
    }
}

/// Decodes an object of a shape from its envelope. Fields that the schema lacks are dropped silently: they have no names.
pub fn decode_protobuf(bytes: &[u8], shape: Shape<'_>) -> Result<Decoded, DecodeError> {
    Envelope::open(bytes)?.decode(shape)
}

/// Prints a tree of a shape in its envelope; none where the shape is no message (an object without a schema).
pub fn encode_protobuf(value: &Value, shape: Shape<'_>) -> Option<Vec<u8>> {
    let Shape::Message { ty, .. } = shape else { return None };
    Some(write::envelope(value, ty))
}

/// Whether objects of a shape can be told in protobuf: not those without a schema.
pub fn has_messages(shape: Shape<'_>) -> bool {
    matches!(shape, Shape::Message { .. })
}

/// One event of a watch: the length (four bytes, big end first) and the message `WatchEvent`, around an object in its
/// envelope.
pub fn encode_watch_event(what: &str, object: &[u8]) -> Vec<u8> {
    write::watch_event(what, object)
}

/// The shape of what calls itself by this version and kind: objects, what subresources take, lists, and the types that
/// every group shares. None for what has no message.
pub fn shape_of(api_version: &str, kind: &str) -> Option<Shape<'static>> {
    let table = kinds::known();
    let root = |name: &str| Some(schema::root(name)).filter(|s| has_messages(*s));
    if let Some(row) = table.of_object(api_version, kind) {
        return root(&row.type_name);
    }
    if let Some(row) = kind.strip_suffix("List").and_then(|item| table.of_object(api_version, item)) {
        return root(&format!("{}List", row.type_name));
    }
    // these two are an object, or a list of objects, of which only the metadata is there
    match kind {
        "PartialObjectMetadata" => return root("io.k8s.api.core.v1.ConfigMap"),
        "PartialObjectMetadataList" => return root("io.k8s.api.core.v1.ConfigMapList"),
        "Status" | "DeleteOptions" => return root(&format!("{META}.{kind}")),
        _ => {}
    }
    let subresources = table.all().iter().flat_map(|row| &row.subresources);
    subresources
        .filter(|s| s.kind.kind == kind && s.kind.api_version() == api_version)
        .find_map(|s| root(s.type_name.as_deref()?))
}

#[cfg(test)]
mod tests;
