//! The three types of a custom resource definition's schema that are one of two things in JSON and a message of two
//! fields in protobuf: a schema or a list of schemas, a schema or a bool, a schema or names.
//!
//! The schema descriptor keeps them as any JSON, because that is what their fields hold; their tags are here.

use serde_json::{Value, json};

use super::super::DecodeError;
use super::read;
use super::wire::{Fields, Wire, put_bytes, put_varint};
use super::write;
use crate::schema::{Schema, Shape, Ty, TypeRef};

/// Where the types live.
pub(super) const PACKAGE: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.";

/// What may stand instead of a schema.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Other {
    Schemas,
    Bool,
    Names,
}

/// One of the three types.
#[derive(Clone, Copy)]
pub(super) struct Union<'a> {
    other: Other,
    schema: TypeRef<'a>,
}

impl<'a> Union<'a> {
    /// The union that a reference leads to.
    pub(super) fn of(schema: &'a Schema, ty: &Ty) -> Option<Self> {
        let Ty::Message { id, .. } = ty else { return None };
        let other = match schema.type_ref(*id).get().name.strip_prefix(PACKAGE)? {
            "JSONSchemaPropsOrArray" => Other::Schemas,
            "JSONSchemaPropsOrBool" => Other::Bool,
            "JSONSchemaPropsOrStringArray" => Other::Names,
            _ => return None,
        };
        Some(Self { other, schema: schema.get(&format!("{PACKAGE}JSONSchemaProps"))? })
    }

    /// The tags of the schema and of the other.
    fn tags(self) -> (u32, u32) {
        if self.other == Other::Bool { (2, 1) } else { (1, 2) }
    }

    /// Reads the message; null where it holds neither.
    pub(super) fn read(self, wire: Wire<'_>, name: &str, depth: usize) -> Result<Value, DecodeError> {
        let shape = Shape::Message { ty: self.schema, atomic: false };
        let (schema_tag, other_tag) = self.tags();
        let (mut schema, mut list, mut allows) = (Value::Null, Vec::new(), false);
        let mut fields = Fields::of(read::chunk(wire, name)?);
        while let Some((number, wire)) = fields.next()? {
            if number == schema_tag {
                read::add(&mut schema, shape, wire, name, depth)?;
            } else if number == other_tag {
                match self.other {
                    Other::Schemas => {
                        let mut one = Value::Null;
                        read::add(&mut one, shape, wire, name, read::deeper(depth)?)?;
                        list.push(one);
                    }
                    Other::Bool => allows = read::varint(wire, name)? != 0,
                    Other::Names => list.push(json!(read::text(wire, name)?)),
                }
            }
        }
        Ok(match self.other {
            Other::Bool if schema.is_null() => json!(allows),
            Other::Schemas | Other::Names if !list.is_empty() => list.into(),
            _ => schema,
        })
    }

    /// Writes the message.
    pub(super) fn write(self, out: &mut Vec<u8>, number: u32, value: &Value) {
        let (schema_tag, other_tag) = self.tags();
        let mut inner = Vec::new();
        match value {
            Value::Object(map) => {
                if self.other == Other::Bool {
                    put_varint(&mut inner, other_tag, 1);
                }
                let mut schema = Vec::new();
                write::message(&mut schema, map, self.schema);
                put_bytes(&mut inner, schema_tag, &schema);
            }
            Value::Array(items) => {
                for item in items {
                    match item {
                        Value::Object(map) => {
                            let mut schema = Vec::new();
                            write::message(&mut schema, map, self.schema);
                            put_bytes(&mut inner, other_tag, &schema);
                        }
                        other => {
                            put_bytes(&mut inner, other_tag, other.as_str().unwrap_or_default().as_bytes())
                        }
                    }
                }
            }
            Value::Bool(allows) => put_varint(&mut inner, other_tag, u64::from(*allows)),
            _ => return,
        }
        put_bytes(out, number, &inner);
    }
}
