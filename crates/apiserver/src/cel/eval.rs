//! Evaluation, with what it costs.
//!
//! The costs are upstream's (`cel-go`'s cost tracker with Kubernetes' function costs), so that an expression that is
//! affordable there is affordable here. Beside them a second count, of the work really done, bounds what upstream's costs
//! leave out (adding lists, comparing deep values): nothing an expression says takes long or runs out of stack.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;

use super::ast::{Call, Expr, ExprKind, Fold};
use super::cost;
use super::library::operators;
use super::macros::MAP_INSERT;
use super::value::{Key, List, Map, Message, Value};

/// What one expression may cost.
pub const CALL_LIMIT: u64 = 1_000_000;
/// What an expression may do that costs nothing.
const WORK_LIMIT: u64 = 20_000_000;
/// Nested nodes, of an expression and of the variables it reads.
const DEPTH_LIMIT: u32 = 600;
/// Bytes of the longest text that an expression makes.
pub(super) const MAX_TEXT: usize = 8 << 20;

/// Why an expression has no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    message: Cow<'static, str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ErrorKind {
    Plain,
    NoOverload,
    TooMuch,
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl Error {
    pub(super) fn new(message: impl Into<Cow<'static, str>>) -> Self {
        Self { kind: ErrorKind::Plain, message: message.into() }
    }

    /// No function takes such arguments.
    pub(super) fn no_overload() -> Self {
        Self { kind: ErrorKind::NoOverload, message: "no such overload".into() }
    }

    fn no_key(key: &Value<'_>) -> Self {
        let key = match key {
            Value::String(s) => s.to_string(),
            other => operators::show(other).unwrap_or_default(),
        };
        Self::new(format!("no such key: {key}"))
    }

    pub(super) fn too_much() -> Self {
        Self { kind: ErrorKind::TooMuch, message: "operation cancelled: actual cost limit exceeded".into() }
    }

    /// Whether the expression was stopped for what it costs.
    pub fn is_too_much(&self) -> bool {
        self.kind == ErrorKind::TooMuch
    }

    pub(super) fn is_no_overload(&self) -> bool {
        self.kind == ErrorKind::NoOverload
    }
}

pub(super) type Outcome<'a> = Result<Value<'a>, Error>;

/// What one evaluation has cost so far, and may cost.
#[derive(Debug)]
pub(super) struct Work {
    cost: u64,
    limit: u64,
    done: u64,
    depth: u32,
}

impl Default for Work {
    fn default() -> Self {
        Self { cost: 0, limit: CALL_LIMIT, done: 0, depth: 0 }
    }
}

impl Work {
    fn charge(&mut self, cost: u64) -> Result<(), Error> {
        self.cost = self.cost.saturating_add(cost);
        if self.cost > self.limit { Err(Error::too_much()) } else { Ok(()) }
    }

    /// Counts work that upstream's costs leave out.
    pub(super) fn spend(&mut self, work: u64) -> Result<(), Error> {
        self.done = self.done.saturating_add(work);
        if self.done > WORK_LIMIT { Err(Error::too_much()) } else { Ok(()) }
    }

    /// Runs `inner` one level deeper.
    pub(super) fn deeper<T>(
        &mut self,
        inner: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.depth += 1;
        if self.depth > DEPTH_LIMIT {
            return Err(Error {
                kind: ErrorKind::TooMuch,
                message: "expression recursion limit exceeded".into(),
            });
        }
        let out = inner(self);
        self.depth -= 1;
        out
    }
}

/// The variables that expressions of one evaluation see.
pub(super) struct Scope<'a> {
    pub(super) vars: Vec<(&'static str, Value<'a>)>,
    /// What `variables.x` stands for, in order: evaluated when first asked for, then kept.
    pub(super) lazy: Vec<Lazy<'a>>,
}

pub(super) struct Lazy<'a> {
    name: Arc<str>,
    expr: &'a Expr,
    value: RefCell<Option<Outcome<'a>>>,
    running: Cell<bool>,
}

impl<'a> Lazy<'a> {
    pub(super) fn new(name: Arc<str>, expr: &'a Expr) -> Self {
        Self { name, expr, value: RefCell::new(None), running: Cell::new(false) }
    }
}

impl<'a> Scope<'a> {
    pub(super) fn new(vars: Vec<(&'static str, Value<'a>)>) -> Self {
        Self { vars, lazy: Vec::new() }
    }

    /// Evaluates an expression; its cost comes back in any case.
    pub(super) fn eval<'s>(&'s self, expr: &'s Expr) -> (Outcome<'a>, u64)
    where
        'a: 's,
    {
        let mut run = Run { scope: self, bound: Vec::new(), work: Work::default() };
        let out = run.eval(expr);
        (out, run.work.cost)
    }
}

/// The name that a policy's variables are read through.
pub(super) const VARIABLES: &str = "variables";

struct Run<'s, 'a> {
    scope: &'s Scope<'a>,
    /// What comprehensions bind, the innermost last; an accumulator may hold an error.
    bound: Vec<(Arc<str>, Outcome<'a>)>,
    work: Work,
}

impl<'s, 'a> Run<'s, 'a> {
    fn eval(&mut self, expr: &Expr) -> Outcome<'a> {
        self.work.depth += 1;
        let out = if self.work.depth > DEPTH_LIMIT {
            Err(Error { kind: ErrorKind::TooMuch, message: "expression recursion limit exceeded".into() })
        } else {
            self.node(expr)
        };
        self.work.depth -= 1;
        out
    }

    fn node(&mut self, expr: &Expr) -> Outcome<'a> {
        match &expr.kind {
            ExprKind::Const(value) => Ok(value.clone()),
            ExprKind::Ident(name) => {
                self.work.charge(cost::IDENT)?;
                self.lookup(name)
            }
            ExprKind::Select { operand, field, test } => self.select(operand, field, *test),
            ExprKind::Call(call) => self.call(call),
            ExprKind::List(items) => {
                let mut out = Vec::with_capacity(items.len());
                for item in items {
                    let value = self.eval(&item.value)?;
                    match value {
                        Value::Optional(of) if item.optional => out.extend(of.map(|v| (*v).clone())),
                        _ if item.optional => return Err(Error::no_overload()),
                        value => out.push(value),
                    }
                }
                self.work.charge(cost::LIST)?;
                Ok(Value::list(out))
            }
            ExprKind::Map(entries) => self.map(entries),
            ExprKind::Struct { name, fields } => self.message(name, fields),
            ExprKind::Fold(fold) => self.fold(fold),
        }
    }

    fn map(&mut self, entries: &[super::ast::Entry]) -> Outcome<'a> {
        let mut out = BTreeMap::new();
        for entry in entries {
            let key = self.eval(&entry.key)?;
            let value = self.eval(&entry.value)?;
            let key = Key::of(&key)
                .ok_or_else(|| Error::new(format!("unsupported key type: {}", key.type_name())))?;
            let value = match value {
                Value::Optional(Some(of)) if entry.optional => (*of).clone(),
                Value::Optional(None) if entry.optional => continue,
                _ if entry.optional => return Err(Error::no_overload()),
                value => value,
            };
            if out.insert(key, value).is_some() {
                return Err(Error::new("duplicate map key"));
            }
        }
        self.work.charge(cost::MAP)?;
        Ok(Value::Map(Map::made(out)))
    }

    fn message(&mut self, name: &Arc<str>, members: &[super::ast::Member]) -> Outcome<'a> {
        let mut fields = BTreeMap::new();
        for member in members {
            let value = match self.eval(&member.value)? {
                Value::Optional(Some(of)) if member.optional => (*of).clone(),
                Value::Optional(None) if member.optional => continue,
                _ if member.optional => return Err(Error::no_overload()),
                value => value,
            };
            fields.insert(member.name.clone(), value);
        }
        self.work.charge(cost::STRUCT)?;
        Ok(Value::Message(Arc::new(Message { name: name.clone(), fields })))
    }

    fn lookup(&mut self, name: &str) -> Outcome<'a> {
        if let Some((_, value)) = self.bound.iter().rev().find(|(n, _)| **n == *name) {
            return value.clone();
        }
        match self.scope.vars.iter().find(|(n, _)| *n == name) {
            Some((_, value)) => Ok(value.clone()),
            None => Err(Error::new(format!("no such attribute(s): {name}"))),
        }
    }

    fn select(&mut self, operand: &Expr, field: &Arc<str>, test: bool) -> Outcome<'a> {
        if let ExprKind::Ident(name) = &operand.kind
            && **name == *VARIABLES
            && let Some(at) = self.scope.lazy.iter().position(|l| l.name == *field)
            && !self.bound.iter().any(|(n, _)| **n == *VARIABLES)
        {
            self.work.charge(cost::IDENT)?;
            if test {
                return Ok(Value::Bool(true));
            }
            self.work.charge(cost::IDENT)?;
            return self.variable(at);
        }
        let value = self.eval(operand)?;
        if test {
            return present(&value, field);
        }
        self.work.charge(cost::IDENT)?;
        // an optional passes a selection on
        match value {
            Value::Optional(None) => Ok(Value::Optional(None)),
            Value::Optional(Some(of)) => {
                Ok(Value::Optional(member(&of, &Value::text(field.clone())).ok().map(Arc::new)))
            }
            value => member(&value, &Value::text(field.clone())),
        }
    }

    fn variable(&mut self, at: usize) -> Outcome<'a> {
        let lazy = &self.scope.lazy[at];
        if let Some(known) = &*lazy.value.borrow() {
            return known.clone();
        }
        if lazy.running.replace(true) {
            return Err(Error::new("a variable reads itself"));
        }
        // a variable sees no names bound where it is read
        let outer = std::mem::take(&mut self.bound);
        let value = self.eval(lazy.expr);
        self.bound = outer;
        lazy.running.set(false);
        if !matches!(&value, Err(e) if e.is_too_much()) {
            *lazy.value.borrow_mut() = Some(value.clone());
        }
        value
    }

    fn call(&mut self, call: &Call) -> Outcome<'a> {
        match (&*call.name, call.args.as_slice()) {
            ("_&&_", [left, right]) => self.shortcut(left, right, false),
            ("_||_", [left, right]) => self.shortcut(left, right, true),
            ("_?_:_", [condition, yes, no]) => match self.eval(condition)? {
                Value::Bool(true) => self.eval(yes),
                Value::Bool(false) => self.eval(no),
                _ => Err(Error::no_overload()),
            },
            ("@not_strictly_false", [value]) => match self.eval(value) {
                Ok(Value::Bool(false)) => Ok(Value::Bool(false)),
                Err(e) if e.is_too_much() => Err(e),
                _ => Ok(Value::Bool(true)),
            },
            ("or" | "orValue", [other]) if call.target.is_some() => self.or_value(call, other),
            _ => self.function(call),
        }
    }

    /// `&&` and `||`: one side that decides outweighs an error of the other.
    fn shortcut(&mut self, left: &Expr, right: &Expr, decides: bool) -> Outcome<'a> {
        let first = self.eval(left);
        match &first {
            Ok(Value::Bool(b)) if *b == decides => return first,
            Err(e) if e.is_too_much() => return first,
            _ => {}
        }
        let second = self.eval(right);
        match (first, second) {
            (_, Ok(Value::Bool(b))) if b == decides => Ok(Value::Bool(decides)),
            (_, Err(e)) if e.is_too_much() => Err(e),
            (Err(e), _) => Err(e),
            (Ok(Value::Bool(_)), other @ (Ok(Value::Bool(_)) | Err(_))) => other,
            _ => Err(Error::no_overload()),
        }
    }

    /// The other value is computed only where it is needed.
    fn or_value(&mut self, call: &Call, other: &Expr) -> Outcome<'a> {
        let Some(target) = &call.target else { return Err(Error::no_overload()) };
        let value = self.eval(target)?;
        self.work.charge(1)?;
        match value {
            Value::Optional(None) => self.eval(other),
            Value::Optional(Some(of)) if &*call.name == "orValue" => Ok((*of).clone()),
            some @ Value::Optional(_) => Ok(some),
            _ => Err(Error::no_overload()),
        }
    }

    fn function(&mut self, call: &Call) -> Outcome<'a> {
        let Some(function) = call.function else {
            return Err(Error::new(format!("unknown function: {}", call.name)));
        };
        let mut args: Vec<Value<'a>> = Vec::with_capacity(call.args.len() + 1);
        for arg in call.target.iter().chain(&call.args) {
            args.push(self.eval(arg)?);
        }
        let mut out = Err(Error::no_overload());
        for body in &function.bodies {
            out = body(&mut self.work, &args);
            if !matches!(&out, Err(e) if e.is_no_overload()) {
                break;
            }
        }
        self.work.charge(cost::call(function.name, &args, out.as_ref().ok()))?;
        out
    }

    fn fold(&mut self, fold: &Fold) -> Outcome<'a> {
        let range = self.eval(&fold.range)?;
        let init = self.eval(&fold.init);
        let depth = self.bound.len();
        let out = self.iterate(fold, &range, init);
        self.bound.truncate(depth);
        out
    }

    fn iterate(&mut self, fold: &Fold, range: &Value<'a>, init: Outcome<'a>) -> Outcome<'a> {
        let keys = match range {
            Value::Map(map) => {
                self.work.spend(map.len() as u64)?;
                Some(map.keys())
            }
            Value::List(_) => None,
            other => {
                return Err(Error::new(format!("got '{}', expected iterable type", other.type_name())));
            }
        };
        let len = match (&keys, range) {
            (Some(keys), _) => keys.len(),
            (None, Value::List(list)) => list.len(),
            _ => 0,
        };
        let accu = self.bound.len();
        self.bound.push((fold.accu.clone(), init));
        let forever = matches!(&fold.condition.kind, ExprKind::Const(Value::Bool(true)));
        for at in 0..len {
            let (first, second) = match (&keys, range) {
                (Some(keys), Value::Map(map)) => {
                    let key = keys[at].clone();
                    let value = fold.var2.as_ref().and_then(|_| map.get(&key));
                    (Some(key), value)
                }
                (_, Value::List(list)) if fold.var2.is_some() => (Some(Value::Int(at as i64)), list.get(at)),
                (_, Value::List(list)) => (list.get(at), None),
                _ => (None, None),
            };
            let Some(first) = first else { break };
            self.bound.push((fold.var.clone(), Ok(first)));
            if let Some(name) = &fold.var2 {
                self.bound.push((name.clone(), second.ok_or_else(Error::no_overload)));
            }
            let going = forever || matches!(self.eval(&fold.condition)?, Value::Bool(true));
            if going {
                let next = self.step(&fold.step, &fold.accu, accu);
                if matches!(&next, Err(e) if e.is_too_much()) {
                    return next;
                }
                self.bound[accu].1 = next;
            }
            self.bound.truncate(accu + 1);
            if !going {
                break;
            }
            if forever && self.bound[accu].1.is_err() {
                break;
            }
        }
        self.eval(&fold.result)
    }

    /// The accumulator's next value. What macros that build lists and maps do would copy the accumulator each time: it
    /// is taken and extended instead.
    fn step(&mut self, step: &Expr, name: &Arc<str>, accu: usize) -> Outcome<'a> {
        let ExprKind::Call(call) = &step.kind else { return self.eval(step) };
        let is_accu = |e: &Expr| matches!(&e.kind, ExprKind::Ident(n) if n == name);
        match (&*call.name, call.args.as_slice()) {
            ("_?_:_", [condition, more, same]) if is_accu(same) => match self.eval(condition)? {
                Value::Bool(true) => self.step(more, name, accu),
                Value::Bool(false) => self.eval(same),
                _ => Err(Error::no_overload()),
            },
            ("_+_", [left, right]) if is_accu(left) && call.target.is_none() => {
                let value = match &right.kind {
                    ExprKind::List(items) => {
                        let [super::ast::Item { value, optional: false }] = items.as_slice() else {
                            return self.eval(step);
                        };
                        let value = self.eval(value)?;
                        self.work.charge(cost::LIST)?;
                        value
                    }
                    // a list of a constant is a constant
                    ExprKind::Const(Value::List(List::Made(items))) if items.len() == 1 => items[0].clone(),
                    _ => return self.eval(step),
                };
                self.work.charge(cost::IDENT + 1)?;
                let taken = std::mem::replace(&mut self.bound[accu].1, Ok(Value::Null));
                match taken? {
                    Value::List(List::Made(mut list)) => {
                        Arc::make_mut(&mut list).push(value);
                        Ok(Value::List(List::Made(list)))
                    }
                    _ => Err(Error::no_overload()),
                }
            }
            (MAP_INSERT, [map, rest @ ..]) if is_accu(map) => {
                let entries = self.entries(rest)?;
                self.work.charge(cost::IDENT + 1)?;
                let taken = std::mem::replace(&mut self.bound[accu].1, Ok(Value::Null));
                let Value::Map(Map::Made(mut made)) = taken? else { return Err(Error::no_overload()) };
                let inner = Arc::make_mut(&mut made);
                for (key, value) in entries {
                    let shown = key.clone();
                    let key = Key::of(&key).ok_or_else(Error::no_overload)?;
                    if inner.insert(key, value).is_some() {
                        let shown = operators::show(&shown).unwrap_or_default();
                        return Err(Error::new(format!("insert failed: key {shown} already exists")));
                    }
                }
                Ok(Value::Map(Map::Made(made)))
            }
            _ => self.eval(step),
        }
    }

    fn entries(&mut self, rest: &[Expr]) -> Result<Vec<(Value<'a>, Value<'a>)>, Error> {
        match rest {
            [key, value] => Ok(vec![(self.eval(key)?, self.eval(value)?)]),
            [one] => match self.eval(one)? {
                Value::Map(map) => {
                    self.work.spend(map.len() as u64)?;
                    Ok(map.keys().into_iter().filter_map(|k| map.get(&k).map(|v| (k, v))).collect())
                }
                _ => Err(Error::no_overload()),
            },
            _ => Err(Error::no_overload()),
        }
    }
}

/// A member of a map, message or list.
pub(super) fn member<'a>(value: &Value<'a>, key: &Value<'_>) -> Outcome<'a> {
    match value {
        Value::Map(map) => map.at(key).ok_or_else(|| Error::no_key(key)),
        Value::Message(message) => match key {
            Value::String(s) => message
                .fields
                .get(&**s)
                .cloned()
                .ok_or_else(|| Error::new(format!("no such field '{}'", &**s))),
            _ => Err(Error::no_overload()),
        },
        Value::List(list) => {
            let at = match key {
                Value::Int(i) => Some(*i),
                Value::Uint(u) => i64::try_from(*u).ok(),
                Value::Double(d) if d.fract() == 0.0 => Some(*d as i64),
                Value::String(_) => return Err(Error::new("unsupported index type 'string' in list")),
                _ => None,
            };
            let at = at
                .ok_or_else(|| Error::new(format!("unsupported index type '{}' in list", key.type_name())))?;
            usize::try_from(at)
                .ok()
                .and_then(|at| list.get(at))
                .ok_or_else(|| Error::new(format!("index out of bounds: {at}")))
        }
        _ => Err(Error::no_key(key)),
    }
}

fn present<'a>(value: &Value<'_>, field: &Arc<str>) -> Outcome<'a> {
    let key = Value::text(field.clone());
    Ok(Value::Bool(match value {
        Value::Map(map) => map.get(&key).is_some(),
        Value::Message(m) => m.fields.contains_key(field),
        Value::Optional(Some(of)) => return present(of, field),
        _ => false,
    }))
}
