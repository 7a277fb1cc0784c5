//! The schema descriptor: every API type's fields, as data.
//!
//! `descriptor.txt` is made by `cargo xtask schema` from the published OpenAPI document and `.proto` files and holds facts
//! only. Codecs, patches, server-side apply, field validation and OpenAPI read it through [`Shape`], so a type whose
//! schema comes at run time (a custom resource) is another [`Schema`] of the same form, and an object without a
//! schema is [`Shape::Any`].
//!
//! The file's lines: `P package`, `T Name [atomic] [=letter]` (a type; `=letter`: no plain message), and below a type its
//! fields, sorted by name: ` name tags type [attribute…]`. `tags` is the path of protobuf tags (`2/5`: embedded in the
//! message of tag 2; `0`: not in the message). Types: `s` string, `b` bool, `i` int32, `l` int64, `d` double, `y` bytes,
//! `q` Quantity, `o` IntOrString, `t` Time, `u` MicroTime, `x` RawExtension, `f` FieldsV1, `@name` message, `[]T`, `{}T` (keys are
//! strings). Attributes: `r` required, `L=keys` list is a map by these keys, `set` list is a set, `atomic`, `granular`, `p=patch strategies`,
//! `k=merge key`, `e=types` of the embedded messages on the way, `d=default of a list key`, `!` always printed, `null` as null when not set, `z` zero is the same as not set.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::Value;

/// Names of the built-in types borrow from the descriptor; those made at run time own theirs.
pub type Str = Cow<'static, str>;

/// A set of types that refer to each other.
#[derive(Debug, Default)]
pub struct Schema {
    types: Vec<Type>,
    by_name: HashMap<Str, TypeId>,
}

/// A type within its [`Schema`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TypeId(u32);

/// A message type.
#[derive(Debug)]
pub struct Type {
    /// The full name, for example `io.k8s.api.core.v1.Pod`.
    pub name: Str,
    /// Sorted by name.
    pub fields: Vec<Field>,
    /// Whether server-side apply owns it as one value.
    pub atomic: bool,
    /// Whether fields that are not listed are kept (`x-kubernetes-preserve-unknown-fields`).
    pub open: bool,
    special: Option<Scalar>,
}

impl Type {
    /// A message type with these fields; they are sorted here.
    pub fn message(name: impl Into<Str>, mut fields: Vec<Field>) -> Self {
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        Self { name: name.into(), fields, atomic: false, open: false, special: None }
    }

    /// The type's short name, for example `Pod`.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }
}

/// When a field is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// When it is set; a set zero differs from not set.
    Optional,
    /// When it is not zero (empty text, 0, false, an empty list or map).
    Plain,
    /// Always: not set is printed as the zero value (`""`, 0, false, `{}`; null for lists, maps and times).
    Always,
}

/// A field of a message.
#[derive(Debug)]
pub struct Field {
    /// The JSON name.
    pub name: Str,
    /// The path of protobuf tags; more than one where JSON inlines an embedded message; empty where the message lacks it.
    pub tags: Vec<u32>,
    /// The types of the embedded messages that `tags` goes through; error texts name them.
    pub embedded: Vec<Str>,
    /// What it holds.
    pub ty: Ty,
    /// Whether the API demands it.
    pub required: bool,
    /// When it is printed.
    pub presence: Presence,
    /// Whether a strategic merge patch merges the list (or replaces it).
    pub patch_merge: bool,
    /// Whether a strategic merge patch may carry `$retainKeys` for it.
    pub retain_keys: bool,
    /// What a strategic merge patch tells items of the list apart by.
    pub merge_key: Option<Str>,
    /// What stands for this key of a list item where the item leaves it out.
    pub default: Option<Value>,
    /// Whether "not set" is printed as null although the type has a zero value.
    pub reference: bool,
}

impl Field {
    /// An optional field.
    pub fn new(name: impl Into<Str>, ty: Ty) -> Self {
        Self {
            name: name.into(),
            tags: Vec::new(),
            embedded: Vec::new(),
            ty,
            required: false,
            presence: Presence::Optional,
            patch_merge: false,
            retain_keys: false,
            merge_key: None,
            default: None,
            reference: false,
        }
    }
}

/// Values that are one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scalar {
    /// Text.
    String,
    /// True or false.
    Bool,
    /// 32-bit integer.
    Int32,
    /// 64-bit integer.
    Int64,
    /// Floating point.
    Double,
    /// Bytes, base64 in JSON.
    Bytes,
    /// A quantity with a suffix; JSON accepts a number too.
    Quantity,
    /// An integer or text.
    IntOrString,
    /// RFC 3339 with whole seconds.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    /// Any JSON, kept as it is; one value for server-side apply; carried as raw JSON in protobuf.
    RawExtension,
    /// A set of field paths, kept as it is; carried as raw JSON in protobuf.
    FieldsV1,
}

/// How items of a list are told apart in server-side apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListKind {
    /// Not at all: the list is one value.
    Atomic,
    /// By value.
    Set,
    /// By these fields.
    Map(Vec<Str>),
}

/// A list type.
#[derive(Debug)]
pub struct List {
    /// What its items are.
    pub item: Ty,
    /// How items are told apart.
    pub kind: ListKind,
}

/// A map type; keys are strings.
#[derive(Debug)]
pub struct MapTy {
    /// What its values are.
    pub value: Ty,
    /// Whether server-side apply owns it as one value.
    pub atomic: bool,
}

/// A reference to a type.
#[derive(Debug)]
pub enum Ty {
    /// One value.
    Scalar(Scalar),
    /// A message.
    Message {
        /// Which.
        id: TypeId,
        /// Whether server-side apply owns it as one value here; `None`: as the type says.
        atomic: Option<bool>,
    },
    /// A message of the built-in schema; for schemas made at run time.
    BuiltIn(TypeId),
    /// A list.
    List(Box<List>),
    /// A map.
    Map(Box<MapTy>),
    /// Anything.
    Any,
}

/// A message type together with the schema it lives in.
#[derive(Debug, Clone, Copy)]
pub struct TypeRef<'a> {
    schema: &'a Schema,
    ty: &'a Type,
}

impl<'a> TypeRef<'a> {
    /// The type itself.
    pub fn get(self) -> &'a Type {
        self.ty
    }

    /// The schema it lives in.
    pub fn schema(self) -> &'a Schema {
        self.schema
    }

    /// A field and what it holds.
    pub fn field(self, name: &str) -> Option<(&'a Field, Shape<'a>)> {
        let at = self.ty.fields.binary_search_by(|f| f.name.as_ref().cmp(name)).ok()?;
        let field = &self.ty.fields[at];
        Some((field, self.schema.shape(&field.ty)))
    }

    /// What a field of this type holds; for fields gotten by walking [`Type::fields`].
    pub fn shape_of(self, field: &'a Field) -> Shape<'a> {
        self.schema.shape(&field.ty)
    }
}

/// What stands at some place of an object: what every walker over objects asks for.
#[derive(Debug, Clone, Copy)]
pub enum Shape<'a> {
    /// One value.
    Scalar(Scalar),
    /// A message; `atomic`: server-side apply owns it as one value here.
    Message {
        /// Its type.
        ty: TypeRef<'a>,
        /// One value for server-side apply.
        atomic: bool,
    },
    /// A list.
    List {
        /// What its items are.
        item: &'a Ty,
        /// How items are told apart.
        kind: &'a ListKind,
        /// The schema that `item` belongs to.
        schema: &'a Schema,
    },
    /// A map with string keys.
    Map {
        /// What its values are.
        value: &'a Ty,
        /// One value for server-side apply.
        atomic: bool,
        /// The schema that `value` belongs to.
        schema: &'a Schema,
    },
    /// No schema: maps are granular, lists are one value.
    Any,
}

impl<'a> Shape<'a> {
    /// The shape of a member of this shape: a message's field, a map's value, anything below [`Shape::Any`].
    pub fn member(self, name: &str) -> Option<Shape<'a>> {
        match self {
            Shape::Message { ty, .. } => match ty.field(name) {
                Some((_, shape)) => Some(shape),
                None => ty.get().open.then_some(Shape::Any),
            },
            Shape::Map { value, schema, .. } => Some(schema.shape(value)),
            Shape::Any | Shape::Scalar(Scalar::RawExtension | Scalar::FieldsV1) => Some(Shape::Any),
            Shape::Scalar(_) | Shape::List { .. } => None,
        }
    }

    /// The shape of items of this shape.
    pub fn item(self) -> Option<Shape<'a>> {
        match self {
            Shape::List { item, schema, .. } => Some(schema.shape(item)),
            Shape::Any => Some(Shape::Any),
            _ => None,
        }
    }
}

impl Schema {
    /// An empty schema, to be filled with [`Schema::declare`] and [`Schema::define`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a place for a type, so that others can refer to it before it is defined.
    pub fn declare(&mut self, name: impl Into<Str>) -> TypeId {
        let name = name.into();
        if let Some(id) = self.by_name.get(&name) {
            return *id;
        }
        let id = TypeId(self.types.len() as u32);
        self.types.push(Type::message(name.clone(), Vec::new()));
        self.by_name.insert(name, id);
        id
    }

    /// Fills a declared place.
    pub fn define(&mut self, id: TypeId, ty: Type) {
        self.types[id.0 as usize] = ty;
    }

    /// A type by its full name.
    pub fn get(&self, name: &str) -> Option<TypeRef<'_>> {
        Some(self.type_ref(*self.by_name.get(name)?))
    }

    /// The place of a type.
    pub fn id(&self, name: &str) -> Option<TypeId> {
        self.by_name.get(name).copied()
    }

    /// A type by its place.
    pub fn type_ref(&self, id: TypeId) -> TypeRef<'_> {
        TypeRef { schema: self, ty: &self.types[id.0 as usize] }
    }

    /// The shape of objects of a type; [`Shape::Any`] where the schema does not have it.
    pub fn root(&self, name: &str) -> Shape<'_> {
        match self.by_name.get(name) {
            Some(id) => self.message(*id, None),
            None => Shape::Any,
        }
    }

    /// Resolves a reference.
    pub fn shape<'a>(&'a self, ty: &'a Ty) -> Shape<'a> {
        match ty {
            Ty::Scalar(scalar) => Shape::Scalar(*scalar),
            Ty::Message { id, atomic } => self.message(*id, *atomic),
            Ty::BuiltIn(id) => builtin().message(*id, None),
            Ty::List(list) => Shape::List { item: &list.item, kind: &list.kind, schema: self },
            Ty::Map(map) => Shape::Map { value: &map.value, atomic: map.atomic, schema: self },
            Ty::Any => Shape::Any,
        }
    }

    fn message(&self, id: TypeId, atomic: Option<bool>) -> Shape<'_> {
        let ty = self.type_ref(id);
        match ty.ty.special {
            Some(scalar) => Shape::Scalar(scalar),
            None => Shape::Message { ty, atomic: atomic.unwrap_or(ty.ty.atomic) },
        }
    }

    /// All types.
    pub fn types(&self) -> &[Type] {
        &self.types
    }
}

/// The built-in types, read at first use.
pub fn builtin() -> &'static Schema {
    static SCHEMA: LazyLock<Schema> = LazyLock::new(|| parse(include_str!("descriptor.txt")));
    &SCHEMA
}

/// A built-in type by its full name, for example `io.k8s.api.core.v1.Pod`.
pub fn get(name: &str) -> Option<TypeRef<'static>> {
    builtin().get(name)
}

/// The shape of objects of a built-in type; [`Shape::Any`] for unknown names.
pub fn root(name: &str) -> Shape<'static> {
    builtin().root(name)
}

/// Reads the descriptor. Lines that do not parse are left out; the tests of this module see to it that there are none.
fn parse(text: &'static str) -> Schema {
    let mut schema = Schema::new();
    let mut package = "";
    let mut current: Option<(TypeId, Type)> = None;
    for line in text.lines() {
        if let Some(field) = line.strip_prefix(' ') {
            if let Some((_, ty)) = &mut current
                && let Some(field) = parse_field(field, &mut schema)
            {
                ty.fields.push(field);
            }
        } else if let Some(rest) = line.strip_prefix("T ") {
            if let Some((id, ty)) = current.take() {
                schema.define(id, ty);
            }
            let mut words = rest.split(' ');
            let name: Str = Cow::Owned(format!("{package}.{}", words.next().unwrap_or_default()));
            let mut ty = Type::message(name.clone(), Vec::new());
            for word in words {
                match word {
                    "atomic" => ty.atomic = true,
                    "=j" => ty.special = Some(Scalar::RawExtension),
                    _ => ty.special = word.strip_prefix('=').and_then(scalar),
                }
            }
            current = Some((schema.declare(name), ty));
        } else if let Some(name) = line.strip_prefix("P ") {
            package = name;
        }
    }
    if let Some((id, ty)) = current {
        schema.define(id, ty);
    }
    schema
}

fn parse_field(line: &'static str, schema: &mut Schema) -> Option<Field> {
    let mut words = line.split(' ');
    let name = words.next()?;
    let tags = words.next()?;
    let mut ty = parse_ty(words.next()?, schema)?;
    let mut field = Field::new(name, Ty::Any);
    field.tags = tags.split('/').filter_map(|t| t.parse().ok()).filter(|t| *t != 0).collect();
    for word in words {
        match word {
            "r" => field.required = true,
            "!" => field.presence = Presence::Always,
            "z" => field.presence = Presence::Plain,
            "null" => field.reference = true,
            "atomic" | "granular" => match &mut ty {
                Ty::Message { atomic, .. } => *atomic = Some(word == "atomic"),
                Ty::Map(map) => map.atomic = word == "atomic",
                _ => {}
            },
            "set" => set_list_kind(&mut ty, ListKind::Set),
            _ => match word.split_once('=')? {
                ("L", keys) => {
                    set_list_kind(&mut ty, ListKind::Map(keys.split(',').map(Cow::Borrowed).collect()));
                }
                ("p", strategies) => {
                    for strategy in strategies.split(',') {
                        field.patch_merge |= strategy == "merge";
                        field.retain_keys |= strategy == "retainKeys";
                    }
                }
                ("e", types) => field.embedded = types.split('/').map(Cow::Borrowed).collect(),
                ("k", key) => field.merge_key = Some(Cow::Borrowed(key)),
                ("d", default) => field.default = serde_json::from_str(default).ok(),
                _ => return None,
            },
        }
    }
    field.ty = ty;
    Some(field)
}

fn set_list_kind(ty: &mut Ty, kind: ListKind) {
    if let Ty::List(list) = ty {
        list.kind = kind;
    }
}

fn parse_ty(text: &'static str, schema: &mut Schema) -> Option<Ty> {
    if let Some(item) = text.strip_prefix("[]") {
        return Some(Ty::List(Box::new(List { item: parse_ty(item, schema)?, kind: ListKind::Atomic })));
    }
    if let Some(value) = text.strip_prefix("{}") {
        return Some(Ty::Map(Box::new(MapTy { value: parse_ty(value, schema)?, atomic: false })));
    }
    if let Some(name) = text.strip_prefix('@') {
        return Some(Ty::Message { id: schema.declare(name), atomic: None });
    }
    scalar(text).map(Ty::Scalar)
}

fn scalar(letter: &str) -> Option<Scalar> {
    Some(match letter {
        "s" => Scalar::String,
        "b" => Scalar::Bool,
        "i" => Scalar::Int32,
        "l" => Scalar::Int64,
        "d" => Scalar::Double,
        "y" => Scalar::Bytes,
        "q" => Scalar::Quantity,
        "o" => Scalar::IntOrString,
        "t" => Scalar::Time,
        "u" => Scalar::MicroTime,
        "x" => Scalar::RawExtension,
        "f" => Scalar::FieldsV1,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(ty: &str, name: &str) -> &'static Field {
        get(ty).unwrap().field(name).unwrap().0
    }

    #[test]
    fn every_line_of_the_descriptor_is_read() {
        let text = include_str!("descriptor.txt");
        let count = |prefix: &str| text.lines().filter(|l| l.starts_with(prefix)).count();
        assert_eq!(builtin().types().len(), count("T "));
        assert_eq!(builtin().types().iter().map(|t| t.fields.len()).sum::<usize>(), count(" "));
        let sorted = |t: &Type| t.fields.windows(2).all(|w| w[0].name < w[1].name);
        assert!(builtin().types().iter().all(sorted));
    }

    #[test]
    fn every_kind_of_the_table_has_its_type() {
        for kind in crate::kinds::all() {
            assert!(get(&kind.type_name).is_some(), "{}", kind.type_name);
            for ty in kind.subresources.iter().filter_map(|s| s.type_name.as_ref()) {
                assert!(get(ty).is_some(), "{ty}");
            }
        }
    }

    #[test]
    fn facts_of_well_known_fields_hold() {
        let containers = field("io.k8s.api.core.v1.PodSpec", "containers");
        assert_eq!(containers.merge_key.as_deref(), Some("name"));
        assert!(containers.patch_merge && containers.required && containers.tags == [2]);
        let Ty::List(ports) = &field("io.k8s.api.core.v1.Container", "ports").ty else { panic!("no list") };
        assert_eq!(ports.kind, ListKind::Map(vec!["containerPort".into(), "protocol".into()]));
        assert_eq!(field("io.k8s.api.core.v1.ContainerPort", "protocol").default, Some("TCP".into()));
        assert_eq!(field("io.k8s.api.core.v1.Volume", "emptyDir").tags, [2, 2]);
        assert!(field("io.k8s.api.apps.v1.DeploymentSpec", "strategy").retain_keys);
        assert!(get("io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector").unwrap().get().atomic);
    }

    #[test]
    fn quantities_are_scalars_and_raw_json_is_anything() {
        let requests = field("io.k8s.api.core.v1.ResourceRequirements", "requests");
        let Shape::Map { value, schema, .. } = builtin().shape(&requests.ty) else { panic!("no map") };
        assert!(matches!(schema.shape(value), Shape::Scalar(Scalar::Quantity)));
        assert!(matches!(
            root("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON"),
            Shape::Scalar(Scalar::RawExtension)
        ));
    }
}
