//! What expressions may say of objects of a kind: its schema as a type, `metadata` included.

use std::collections::HashMap;
use std::sync::Arc;

use api::kinds::Kind;
use api::schema::{Scalar, Shape, TypeRef};

use super::decl::{Decl, FieldDecl, ListKind, ObjectDecl, escape};
use super::types::Type;

/// The type of a kind's objects.
pub(super) fn of_kind(kind: &Kind) -> Type {
    Reader::default().shape(kind.shape()).ty()
}

/// Types that were read already; none while one is being read.
#[derive(Default)]
struct Reader {
    known: HashMap<String, Option<Arc<ObjectDecl>>>,
}

impl Reader {
    fn shape(&mut self, shape: Shape<'_>) -> Decl {
        match shape {
            Shape::Scalar(scalar) => Decl::scalar(of_scalar(scalar)),
            Shape::List { item, schema, .. } => Decl::list(self.shape(schema.shape(item)), ListKind::Atomic),
            Shape::Map { value, schema, .. } => Decl::map(self.shape(schema.shape(value))),
            Shape::Message { ty, .. } => self.message(ty),
            Shape::Any => Decl::scalar(Type::Dyn),
        }
    }

    fn message(&mut self, ty: TypeRef<'_>) -> Decl {
        let name = ty.get().name.to_string();
        match self.known.get(&name) {
            Some(Some(known)) => {
                return Decl { shape: super::decl::Shape::Object(known.clone()), max: u64::MAX, min_size: 2 };
            }
            // a type within itself
            Some(None) => return Decl::scalar(Type::Dyn),
            None => {}
        }
        self.known.insert(name.clone(), None);
        let mut object = ObjectDecl { name: name.clone(), open: ty.get().open, ..ObjectDecl::default() };
        for field in &ty.get().fields {
            let decl = self.shape(ty.shape_of(field));
            if let Some(escaped) = escape(&field.name) {
                object.fields.insert(escaped, FieldDecl { name: field.name.to_string(), decl });
            }
        }
        let object = Arc::new(object);
        self.known.insert(name, Some(object.clone()));
        Decl { shape: super::decl::Shape::Object(object), max: u64::MAX, min_size: 2 }
    }
}

fn of_scalar(scalar: Scalar) -> Type {
    match scalar {
        Scalar::String => Type::String,
        Scalar::Bool => Type::Bool,
        Scalar::Int32 | Scalar::Int64 => Type::Int,
        Scalar::Double => Type::Double,
        Scalar::Bytes => Type::Bytes,
        Scalar::Time | Scalar::MicroTime => Type::Timestamp,
        // texts or numbers, or anything
        Scalar::Quantity | Scalar::IntOrString | Scalar::RawExtension | Scalar::FieldsV1 => Type::Dyn,
    }
}
