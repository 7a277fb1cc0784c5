//! Static types, and what can stand in for what.
//!
//! Rule: the CEL language definition, "Gradual Type Checking"; names and assignability as cel-go has them, since they
//! stand in the errors that users read.

use std::fmt;
use std::sync::Arc;

use super::decl::ObjectDecl;

/// A type.
#[derive(Debug, Clone)]
pub(super) enum Type {
    /// Anything; checked when the expression runs.
    Dyn,
    /// Of an expression that is wrong already: no second complaint about it.
    Error,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Timestamp,
    Duration,
    List(Arc<Type>),
    Map(Arc<Type>, Arc<Type>),
    Optional(Arc<Type>),
    /// The type of types.
    OfTypes(Arc<Type>),
    /// A message with known fields.
    Object(Arc<ObjectDecl>),
    /// A library's own.
    Opaque(&'static str),
    /// Not known yet.
    Param(u32),
}

impl Type {
    pub(super) fn list(item: Type) -> Self {
        Type::List(Arc::new(item))
    }

    pub(super) fn map(key: Type, value: Type) -> Self {
        Type::Map(Arc::new(key), Arc::new(value))
    }

    pub(super) fn optional(of: Type) -> Self {
        Type::Optional(Arc::new(of))
    }

    pub(super) fn is_dyn(&self) -> bool {
        matches!(self, Type::Dyn | Type::Error)
    }

    pub(super) fn is_bool(&self) -> bool {
        matches!(self, Type::Bool)
    }

    /// Whether null may stand for it.
    fn takes_null(&self) -> bool {
        matches!(
            self,
            Type::Null
                | Type::Timestamp
                | Type::Duration
                | Type::Object(_)
                | Type::Opaque(_)
                | Type::Optional(_)
        )
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Dyn => f.write_str("dyn"),
            Type::Error => f.write_str("!error!"),
            Type::Null => f.write_str("null"),
            Type::Bool => f.write_str("bool"),
            Type::Int => f.write_str("int"),
            Type::Uint => f.write_str("uint"),
            Type::Double => f.write_str("double"),
            Type::String => f.write_str("string"),
            Type::Bytes => f.write_str("bytes"),
            Type::Timestamp => f.write_str("timestamp"),
            Type::Duration => f.write_str("duration"),
            Type::List(item) => write!(f, "list({item})"),
            Type::Map(key, value) => write!(f, "map({key}, {value})"),
            Type::Optional(of) => write!(f, "optional_type({of})"),
            Type::OfTypes(of) => write!(f, "type({of})"),
            Type::Object(decl) => f.write_str(&decl.name),
            Type::Opaque(name) => f.write_str(name),
            Type::Param(_) => f.write_str("dyn"),
        }
    }
}

/// What the type parameters of one check stand for.
#[derive(Debug, Clone, Default)]
pub(super) struct Bindings(Vec<Option<Type>>);

impl Bindings {
    /// A parameter that stands for nothing yet.
    pub(super) fn fresh(&mut self) -> Type {
        self.0.push(None);
        Type::Param(self.0.len() as u32 - 1)
    }

    fn get(&self, param: u32) -> Option<&Type> {
        self.0.get(param as usize)?.as_ref()
    }

    fn set(&mut self, param: u32, to: Type) {
        if let Some(place) = self.0.get_mut(param as usize) {
            *place = Some(to);
        }
    }

    /// The type with what is known of its parameters; those that stand for nothing become `unknown`.
    pub(super) fn apply(&self, ty: &Type, unknown: Option<&Type>) -> Type {
        let go = |t: &Arc<Type>| Arc::new(self.apply(t, unknown));
        match ty {
            Type::Param(p) => match self.get(*p) {
                Some(found) => self.apply(found, unknown),
                None => unknown.cloned().unwrap_or_else(|| ty.clone()),
            },
            Type::List(item) => Type::List(go(item)),
            Type::Map(key, value) => Type::Map(go(key), go(value)),
            Type::Optional(of) => Type::Optional(go(of)),
            Type::OfTypes(of) => Type::OfTypes(go(of)),
            other => other.clone(),
        }
    }

    /// Whether a value of type `from` can stand where `to` is asked; learns what parameters stand for. Nothing is
    /// learnt where the answer is no.
    pub(super) fn assign(&mut self, from: &Type, to: &Type) -> bool {
        let before = self.clone();
        let fits = self.fits(from, to);
        if !fits {
            *self = before;
        }
        fits
    }

    fn fits(&mut self, from: &Type, to: &Type) -> bool {
        if let Type::Param(p) = to {
            let (valid, known) = self.stands_for(from, *p);
            if valid || known {
                return valid;
            }
        }
        if let Type::Param(p) = from {
            return self.stands_for(to, *p).0;
        }
        if from.is_dyn() || to.is_dyn() {
            return true;
        }
        match (from, to) {
            (Type::Null, other) | (other, Type::Null) => other.takes_null(),
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => self.fits(a, b),
            (Type::Map(ak, av), Type::Map(bk, bv)) => self.fits(ak, bk) && self.fits(av, bv),
            (Type::OfTypes(_), Type::OfTypes(_)) => true,
            (Type::Object(a), Type::Object(b)) => a.name == b.name,
            (Type::Opaque(a), Type::Opaque(b)) => a == b,
            (a, b) => std::mem::discriminant(a) == std::mem::discriminant(b),
        }
    }

    /// Whether `ty` can be what `param` stands for, and whether `param` stood for something before.
    fn stands_for(&mut self, ty: &Type, param: u32) -> (bool, bool) {
        if matches!(ty, Type::Param(p) if *p == param) {
            return (true, true);
        }
        if let Some(known) = self.get(param).cloned() {
            if !self.fits(ty, &known) {
                return (false, true);
            }
            let general = self.more_general(ty, &known);
            if !self.mentions(&general, param) {
                self.set(param, general);
            }
            return (true, true);
        }
        if self.mentions(ty, param) {
            return (false, false);
        }
        self.set(param, ty.clone());
        (true, false)
    }

    fn more_general(&self, a: &Type, b: &Type) -> Type {
        if self.is_more_general(a, b) { a.clone() } else { b.clone() }
    }

    fn is_more_general(&self, a: &Type, b: &Type) -> bool {
        match (a, b) {
            (Type::Dyn | Type::Error | Type::Param(_), _) => true,
            (_, Type::Dyn | Type::Error) => false,
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => {
                self.is_more_general(a, b)
            }
            (Type::Map(ak, av), Type::Map(bk, bv)) => {
                self.is_more_general(ak, bk) && self.is_more_general(av, bv)
            }
            (Type::Null, _) => false,
            _ => true,
        }
    }

    fn mentions(&self, ty: &Type, param: u32) -> bool {
        match ty {
            Type::Param(p) if *p == param => true,
            Type::Param(p) => self.get(*p).is_some_and(|t| self.mentions(t, param)),
            Type::List(t) | Type::Optional(t) | Type::OfTypes(t) => self.mentions(t, param),
            Type::Map(k, v) => self.mentions(k, param) || self.mentions(v, param),
            _ => false,
        }
    }
}

/// Reads a type of the tables of functions: `int`, `list(A)`, `map(string,dyn)`, `optional(A)`, `type`; single capital
/// letters are parameters, in the order of `params`.
pub(super) fn read(text: &str, params: &mut dyn FnMut(char) -> Type) -> Type {
    let text = text.trim();
    let inner = |name: &str| text.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')');
    if let Some(item) = inner("list") {
        return Type::list(read(item, params));
    }
    if let Some(of) = inner("optional") {
        return Type::optional(read(of, params));
    }
    if let Some(both) = inner("map") {
        let (key, value) = both.split_once(',').unwrap_or((both, "dyn"));
        return Type::map(read(key, params), read(value, params));
    }
    match text {
        "dyn" => Type::Dyn,
        "null" => Type::Null,
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "timestamp" => Type::Timestamp,
        "duration" => Type::Duration,
        "type" => Type::OfTypes(Arc::new(Type::Dyn)),
        one if one.len() == 1 => params(one.chars().next().unwrap_or('A')),
        name => Type::Opaque(super::library::opaque_name(name)),
    }
}
