//! The static check: names are declared, fields exist, functions take what they are given.
//!
//! Rule: cel-go's checker; its words stand in the errors that users read.

use std::sync::Arc;

use super::ast::{Call, Complaint, Expr, ExprKind, Fold};
use super::decl::ObjectDecl;
use super::library;
use super::overloads::{self, Function};
use super::types::{Bindings, Type};
use super::value::{Key, Map, Value};

/// What expressions may name.
#[derive(Debug, Clone, Default)]
pub(super) struct Env {
    /// Variables; a name may have dots.
    pub(super) vars: Vec<(Arc<str>, Type)>,
    /// Whether `Object{}` and `JSONPatch{}` can be made.
    pub(super) mutation: bool,
    /// Whether expressions may name a part: `cel.bind(name, value, expression)`.
    pub(super) bindings: bool,
}

impl Env {
    pub(super) fn declare(&mut self, name: &str, ty: Type) {
        self.vars.push((name.into(), ty));
    }

    fn var(&self, name: &str) -> Option<&Type> {
        self.vars.iter().rev().find(|(n, _)| **n == *name).map(|(_, t)| t)
    }

    fn message(&self, name: &str) -> Option<Arc<ObjectDecl>> {
        if !self.mutation {
            return None;
        }
        super::mutation::message(name)
    }

    /// Checks an expression; it comes back with types, and with names and functions resolved.
    pub(super) fn check(&self, source: &str, mut expr: Expr) -> Result<Expr, Vec<Complaint>> {
        let mut checker = Checker {
            env: self,
            source,
            scopes: Vec::new(),
            bindings: Bindings::default(),
            complaints: Vec::new(),
        };
        checker.check(&mut expr);
        if !checker.complaints.is_empty() {
            return Err(checker.complaints);
        }
        let bindings = std::mem::take(&mut checker.bindings);
        finish(&mut expr, &bindings);
        checker.literals(&expr);
        if checker.complaints.is_empty() { Ok(expr) } else { Err(checker.complaints) }
    }
}

struct Checker<'e> {
    env: &'e Env,
    source: &'e str,
    scopes: Vec<(Arc<str>, Type)>,
    bindings: Bindings,
    complaints: Vec<Complaint>,
}

impl Checker<'_> {
    fn complain(&mut self, at: u32, message: String) -> Type {
        self.complaints.push(Complaint::at(self.source, at, message));
        Type::Error
    }

    fn undeclared(&mut self, at: u32, name: &str) -> Type {
        self.complain(at, format!("undeclared reference to '{name}' (in container '')"))
    }

    fn show(&self, ty: &Type) -> String {
        self.bindings.apply(ty, None).to_string()
    }

    fn check(&mut self, expr: &mut Expr) -> Type {
        let ty = self.node(expr);
        expr.ty = ty.clone();
        ty
    }

    fn node(&mut self, expr: &mut Expr) -> Type {
        let at = expr.at;
        if let Some(name) = qualified(expr)
            && let Some((kind, ty)) = self.resolve(&name)
        {
            expr.kind = kind;
            return ty;
        }
        match &mut expr.kind {
            ExprKind::Const(value) => constant(value),
            ExprKind::Ident(name) => {
                let name = name.clone();
                match self.resolve(&name) {
                    Some((kind, ty)) => {
                        expr.kind = kind;
                        ty
                    }
                    None => self.undeclared(at, &name),
                }
            }
            ExprKind::Select { operand, field, test } => {
                let operand = self.check(operand);
                let field = field.clone();
                let ty = self.field(at, &operand, &field);
                if *test { Type::Bool } else { ty }
            }
            ExprKind::Call(call) => self.call(at, call),
            ExprKind::List(items) => {
                let mut item_type = None;
                for item in items {
                    let mut ty = self.check(&mut item.value);
                    if item.optional {
                        ty = self.unwrap(item.value.at, ty);
                    }
                    item_type = Some(self.join(item.value.at, item_type, ty));
                }
                Type::list(item_type.unwrap_or_else(|| self.bindings.fresh()))
            }
            ExprKind::Map(entries) => {
                let (mut key_type, mut value_type) = (None, None);
                for entry in entries {
                    let key = self.check(&mut entry.key);
                    key_type = Some(self.join(entry.key.at, key_type, key));
                    let mut value = self.check(&mut entry.value);
                    if entry.optional {
                        value = self.unwrap(entry.value.at, value);
                    }
                    value_type = Some(self.join(entry.value.at, value_type, value));
                }
                Type::map(
                    key_type.unwrap_or_else(|| self.bindings.fresh()),
                    value_type.unwrap_or_else(|| self.bindings.fresh()),
                )
            }
            ExprKind::Struct { name, fields } => {
                let Some(decl) = self.env.message(name) else {
                    let name = name.clone();
                    return self.undeclared(at, &name);
                };
                for member in fields {
                    let mut given = self.check(&mut member.value);
                    if member.optional {
                        given = self.unwrap(member.value.at, given);
                    }
                    let wanted = match decl.fields.get(&*member.name) {
                        Some(field) => field.decl.ty(),
                        None if decl.open => Type::Dyn,
                        None => {
                            self.complain(member.at, format!("undefined field '{}'", member.name));
                            continue;
                        }
                    };
                    if !self.bindings.assign(&given, &wanted) {
                        let given = self.show(&given);
                        self.complain(
                            member.at,
                            format!(
                                "expected type of field '{}' is '{wanted}' but provided type is '{given}'",
                                member.name
                            ),
                        );
                    }
                }
                Type::Object(decl)
            }
            ExprKind::Fold(fold) => self.fold(fold),
        }
    }

    /// What a name stands for.
    fn resolve(&self, name: &str) -> Option<(ExprKind, Type)> {
        let ident = |ty: &Type| (ExprKind::Ident(name.into()), ty.clone());
        if let Some((_, ty)) = self.scopes.iter().rev().find(|(n, _)| **n == *name) {
            return Some(ident(ty));
        }
        // a name bound by a macro hides what begins with it
        if let Some((first, _)) = name.split_once('.')
            && self.scopes.iter().any(|(n, _)| **n == *first)
        {
            return None;
        }
        if let Some(ty) = self.env.var(name) {
            return Some(ident(ty));
        }
        let of = match name {
            "int" => Type::Int,
            "uint" => Type::Uint,
            "double" => Type::Double,
            "bool" => Type::Bool,
            "string" => Type::String,
            "bytes" => Type::Bytes,
            "null_type" => Type::Null,
            "list" => Type::list(Type::Dyn),
            "map" => Type::map(Type::Dyn, Type::Dyn),
            "type" => Type::OfTypes(Arc::new(Type::Dyn)),
            "dyn" => Type::Dyn,
            "optional_type" => Type::optional(Type::Dyn),
            "google.protobuf.Timestamp" => Type::Timestamp,
            "google.protobuf.Duration" => Type::Duration,
            other => match library::known_type(other) {
                Some(known) => Type::Opaque(known),
                None => Type::Object(self.env.message(other)?),
            },
        };
        Some((ExprKind::Const(Value::Type(name.into())), Type::OfTypes(Arc::new(of))))
    }

    fn field(&mut self, at: u32, operand: &Type, field: &str) -> Type {
        match self.bindings.apply(operand, None) {
            Type::Map(key, value) if self.bindings.assign(&Type::String, &key) => (*value).clone(),
            Type::Object(decl) => match decl.fields.get(field) {
                Some(field) => field.decl.ty(),
                None if decl.open => Type::Dyn,
                None => self.complain(at, format!("undefined field '{field}'")),
            },
            Type::Optional(of) => match self.field(at, &of, field) {
                Type::Error => Type::Error,
                ty => Type::optional(ty),
            },
            unknown @ Type::Param(_) => {
                self.bindings.assign(&unknown, &Type::Dyn);
                Type::Dyn
            }
            Type::Dyn => Type::Dyn,
            Type::Error => Type::Error,
            _ => {
                let shown = self.show(operand);
                self.complain(at, format!("type '{shown}' does not support field selection"))
            }
        }
    }

    fn unwrap(&mut self, at: u32, ty: Type) -> Type {
        match self.bindings.apply(&ty, None) {
            Type::Optional(of) => (*of).clone(),
            dynamic @ (Type::Dyn | Type::Error) => dynamic,
            _ => {
                let shown = self.show(&ty);
                self.complain(at, format!("expected type 'optional_type(dyn)' but found '{shown}'"))
            }
        }
    }

    /// The type of the items so far, and of one more.
    fn join(&mut self, at: u32, before: Option<Type>, ty: Type) -> Type {
        let Some(before) = before else { return ty };
        if self.bindings.assign(&before, &ty) {
            return if before.is_dyn() || !ty.is_dyn() { before } else { ty };
        }
        let (expected, found) = (self.show(&before), self.show(&ty));
        self.complain(at, format!("expected type '{expected}' but found '{found}'"));
        before
    }

    fn call(&mut self, at: u32, call: &mut Call) -> Type {
        // `sets.contains(a, b)` is no call on a variable `sets`
        if let Some(target) = &call.target
            && let Some(prefix) = target.dotted()
        {
            let full = format!("{prefix}.{}", call.name);
            let first = prefix.split('.').next().unwrap_or_default();
            if overloads::find(&full).is_some() && !self.scopes.iter().any(|(n, _)| **n == *first) {
                call.name = full.into();
                call.target = None;
            }
        }
        let mut given: Vec<Type> = Vec::with_capacity(call.args.len() + 1);
        for arg in call.target.iter_mut().chain(&mut call.args) {
            given.push(self.check(arg));
        }
        if &*call.name == "_?._" {
            call.function = overloads::find(&call.name);
            if let [operand, name] = call.args.as_slice()
                && let ExprKind::Const(Value::String(field)) = &name.kind
            {
                let (operand, field) = (operand.ty.clone(), field.to_string());
                return match self.field(at, &operand, &field) {
                    optional @ Type::Optional(_) => optional,
                    Type::Error => Type::Error,
                    ty => Type::optional(ty),
                };
            }
        }
        let Some(function) = overloads::find(&call.name) else {
            let name = call.name.clone();
            return self.undeclared(at, &name);
        };
        call.function = Some(function);
        self.overload(at, function, call.target.is_some(), &given)
    }

    fn overload(&mut self, at: u32, function: &Function, member: bool, given: &[Type]) -> Type {
        let before = self.bindings.clone();
        let mut chosen: Option<(Bindings, Type)> = None;
        for overload in &function.overloads {
            if overload.member != member || overload.args.len() != given.len() {
                continue;
            }
            let mut trial = before.clone();
            let params: Vec<Type> = (0..overload.params).map(|_| trial.fresh()).collect();
            let instance = |ty: &Type| instantiate(ty, &params);
            if !given.iter().zip(&overload.args).all(|(g, wanted)| trial.assign(g, &instance(wanted))) {
                continue;
            }
            let result = instance(&overload.result);
            chosen = Some(match chosen {
                None => (trial, result),
                Some((first, ty)) => {
                    let same = first.apply(&ty, None).to_string() == trial.apply(&result, None).to_string();
                    (first, if same { ty } else { Type::Dyn })
                }
            });
        }
        match chosen {
            Some((bindings, ty)) => {
                self.bindings = bindings;
                self.bindings.apply(&ty, None)
            }
            None => {
                let shown: Vec<String> = given.iter().map(|t| self.show(t)).collect();
                let shown = match (member, shown.split_first()) {
                    (true, Some((target, args))) => format!("{target}.({})", args.join(", ")),
                    _ => format!("({})", shown.join(", ")),
                };
                self.complain(
                    at,
                    format!("found no matching overload for '{}' applied to '{shown}'", function.name),
                )
            }
        }
    }

    fn fold(&mut self, fold: &mut Fold) -> Type {
        let range = self.check(&mut fold.range);
        let init = self.check(&mut fold.init);
        let range = self.bindings.apply(&range, None);
        let (first, second) = match &range {
            Type::List(item) if fold.var2.is_some() => (Type::Int, (**item).clone()),
            Type::List(item) => ((**item).clone(), Type::Dyn),
            Type::Map(key, value) => ((**key).clone(), (**value).clone()),
            Type::Dyn | Type::Param(_) => (Type::Dyn, Type::Dyn),
            Type::Error => (Type::Error, Type::Error),
            _ => {
                let message = format!(
                    "expression of type '{range}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.complain(fold.range.at, message);
                (Type::Error, Type::Error)
            }
        };
        let depth = self.scopes.len();
        self.scopes.push((fold.accu.clone(), init.clone()));
        self.scopes.push((fold.var.clone(), first));
        if let Some(name) = &fold.var2 {
            self.scopes.push((name.clone(), second));
        }
        let condition = self.check(&mut fold.condition);
        self.expect(fold.condition.at, &condition, &Type::Bool);
        let step = self.check(&mut fold.step);
        self.expect(fold.step.at, &step, &init);
        self.scopes.truncate(depth + 1);
        let result = self.check(&mut fold.result);
        self.scopes.truncate(depth);
        self.bindings.apply(&result, None)
    }

    fn expect(&mut self, at: u32, found: &Type, wanted: &Type) {
        if !self.bindings.assign(found, wanted) {
            let (wanted, found) = (self.show(wanted), self.show(found));
            self.complain(at, format!("expected type '{wanted}' but found '{found}'"));
        }
    }

    /// Literals that a function is sure to refuse are refused now.
    fn literals(&mut self, expr: &Expr) {
        let mut wrong = Vec::new();
        expr.walk(&mut |e| {
            let ExprKind::Call(call) = &e.kind else { return };
            let arg = match (&*call.name, call.target.is_some()) {
                ("duration" | "timestamp", false) => call.args.first(),
                ("matches", true) => call.args.first(),
                ("matches", false) => call.args.get(1),
                _ => None,
            };
            let Some(Expr { at, kind: ExprKind::Const(Value::String(text)), .. }) = arg else { return };
            let fine = match &*call.name {
                "duration" => super::time::parse_duration(text).is_some(),
                "timestamp" => super::time::parse_timestamp(text).is_some(),
                _ => library::regex_compiles(text),
            };
            if !fine {
                wrong.push((*at, format!("invalid {} argument", call.name)));
            }
        });
        for (at, message) in wrong {
            self.complain(at, message);
        }
    }
}

/// `a.b.c`, where the node is a selection of names.
fn qualified(expr: &Expr) -> Option<String> {
    match expr.kind {
        ExprKind::Select { test: false, .. } => expr.dotted(),
        _ => None,
    }
}

fn instantiate(ty: &Type, params: &[Type]) -> Type {
    let go = |t: &Arc<Type>| Arc::new(instantiate(t, params));
    match ty {
        Type::Param(p) => params.get(*p as usize).cloned().unwrap_or(Type::Dyn),
        Type::List(item) => Type::List(go(item)),
        Type::Map(key, value) => Type::Map(go(key), go(value)),
        Type::Optional(of) => Type::Optional(go(of)),
        other => other.clone(),
    }
}

fn constant(value: &Value<'_>) -> Type {
    match value {
        Value::Null => Type::Null,
        Value::Bool(_) => Type::Bool,
        Value::Int(_) => Type::Int,
        Value::Uint(_) => Type::Uint,
        Value::Double(_) => Type::Double,
        Value::String(_) => Type::String,
        Value::Bytes(_) => Type::Bytes,
        _ => Type::Dyn,
    }
}

/// Puts the known types in, and makes constants of literals of constants.
fn finish(expr: &mut Expr, bindings: &Bindings) {
    expr.ty = bindings.apply(&expr.ty, Some(&Type::Dyn));
    match &mut expr.kind {
        ExprKind::Const(_) | ExprKind::Ident(_) => {}
        ExprKind::Select { operand, .. } => finish(operand, bindings),
        ExprKind::Call(call) => {
            call.target.iter_mut().chain(&mut call.args).for_each(|e| finish(e, bindings));
        }
        ExprKind::List(items) => {
            items.iter_mut().for_each(|i| finish(&mut i.value, bindings));
            let values: Option<Vec<Value<'static>>> = items
                .iter()
                .map(|i| match &i.value.kind {
                    ExprKind::Const(value) if !i.optional => Some(value.clone()),
                    _ => None,
                })
                .collect();
            if let Some(values) = values.filter(|v| !v.is_empty()) {
                expr.kind = ExprKind::Const(Value::list(values));
            }
        }
        ExprKind::Map(entries) => {
            for entry in entries.iter_mut() {
                finish(&mut entry.key, bindings);
                finish(&mut entry.value, bindings);
            }
            let count = entries.len();
            let made: Option<std::collections::BTreeMap<Key, Value<'static>>> = entries
                .iter()
                .map(|e| match (&e.key.kind, &e.value.kind) {
                    (ExprKind::Const(key), ExprKind::Const(value)) if !e.optional => {
                        Some((Key::of(key)?, value.clone()))
                    }
                    _ => None,
                })
                .collect();
            // equal keys are found out when the expression runs
            if let Some(made) = made.filter(|m| m.len() == count && count > 0) {
                expr.kind = ExprKind::Const(Value::Map(Map::made(made)));
            }
        }
        ExprKind::Struct { fields, .. } => fields.iter_mut().for_each(|f| finish(&mut f.value, bindings)),
        ExprKind::Fold(fold) => {
            for part in
                [&mut fold.range, &mut fold.init, &mut fold.condition, &mut fold.step, &mut fold.result]
            {
                finish(part, bindings);
            }
        }
    }
}
