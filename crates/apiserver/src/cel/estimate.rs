//! What an expression may cost at worst, given the largest sizes its schema allows.
//!
//! Rule: cel-go's cost estimation with Kubernetes' `CostEstimator.EstimateCallCost`. It decides which rules a custom
//! resource definition may hold, so the numbers are API.

use std::sync::Arc;

use super::ast::{Call, Expr, ExprKind, Fold};
use super::cost::{IDENT, LIST, MAP, REGEX, STRUCT, TRAVERSAL};
use super::decl::{Decl, Shape};
use super::types::Type;
use super::value::Value;

/// From, to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    min: u64,
    pub(super) max: u64,
}

const UNKNOWN: Range = Range { min: 0, max: u64::MAX };
const ONE: Range = Range { min: 1, max: 1 };

impl Range {
    const fn exactly(n: u64) -> Self {
        Self { min: n, max: n }
    }

    fn plus(self, other: Range) -> Self {
        Self { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }

    fn times(self, other: Range) -> Self {
        Self { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
    }

    fn scaled(self, factor: f64) -> Self {
        // a float that does not fit becomes the largest number
        let scale = |n: u64| if n == u64::MAX { n } else { (n as f64 * factor).ceil() as u64 };
        Self { min: scale(self.min), max: scale(self.max) }
    }

    fn or(self, other: Range) -> Self {
        Self { min: self.min.min(other.min), max: self.max.max(other.max) }
    }
}

/// What is known of a node.
struct Known<'d> {
    cost: Range,
    size: Option<Range>,
    decl: Option<&'d Decl>,
    /// Whether it has one value, of no size.
    scalar: bool,
}

impl Known<'_> {
    /// The size as Kubernetes' functions see it.
    fn size(&self) -> Range {
        self.size.or_else(|| self.decl.map(|d| Range { min: 0, max: d.max })).unwrap_or(UNKNOWN)
    }

    /// The size as CEL's own operators see it.
    fn size_or_scalar(&self) -> Range {
        match (self.size, self.decl) {
            (Some(size), _) => size,
            (None, Some(decl)) => Range { min: 0, max: decl.max },
            (None, None) if self.scalar => ONE,
            (None, None) => UNKNOWN,
        }
    }
}

/// The cost of an expression over values of a schema.
pub(super) fn estimate(expr: &Expr, vars: &[&str], root: &Decl) -> Range {
    let scope = vars.iter().map(|v| (Arc::from(*v), Some(root))).collect();
    Estimator { scope }.node(expr).cost
}

struct Estimator<'d> {
    /// Names, with the schemas of what they stand for, the innermost last.
    scope: Vec<(Arc<str>, Option<&'d Decl>)>,
}

impl<'d> Estimator<'d> {
    fn node(&mut self, expr: &Expr) -> Known<'d> {
        let scalar = matches!(
            expr.ty,
            Type::Bool | Type::Double | Type::Duration | Type::Int | Type::Timestamp | Type::Uint
        );
        let (cost, size, decl) = match &expr.kind {
            ExprKind::Const(value) => {
                let size = match value {
                    Value::String(_) | Value::Bytes(_) | Value::List(_) | Value::Map(_) => {
                        Some(Range::exactly(value.size()))
                    }
                    _ => Some(ONE),
                };
                // upstream estimates a literal before it folds it
                let cost = match value {
                    Value::List(_) => Range::exactly(LIST),
                    Value::Map(_) => Range::exactly(MAP),
                    _ => Range::exactly(0),
                };
                (cost, size, None)
            }
            ExprKind::Ident(name) => {
                let decl = self.scope.iter().rev().find(|(n, _)| n == name).and_then(|(_, d)| *d);
                (Range::exactly(IDENT), None, decl)
            }
            ExprKind::Select { operand, field, test } => {
                let below = self.node(operand);
                let decl = below.decl.and_then(|d| match &d.shape {
                    Shape::Object(object) => object.fields.get(&**field).map(|f| &f.decl),
                    Shape::Map { value } => Some(&**value),
                    _ => None,
                });
                let selected =
                    !test && matches!(operand.ty, Type::Map(..) | Type::Object(_) | Type::Param(_));
                (below.cost.plus(Range::exactly(if selected { IDENT } else { 0 })), None, decl)
            }
            ExprKind::Call(call) => self.call(call, expr),
            ExprKind::List(items) => {
                let cost =
                    items.iter().fold(Range::exactly(LIST), |sum, i| sum.plus(self.node(&i.value).cost));
                (cost, Some(Range::exactly(items.len() as u64)), None)
            }
            ExprKind::Map(entries) => {
                let cost = entries.iter().fold(Range::exactly(MAP), |sum, e| {
                    sum.plus(self.node(&e.key).cost).plus(self.node(&e.value).cost)
                });
                (cost, Some(Range::exactly(entries.len() as u64)), None)
            }
            ExprKind::Struct { fields, .. } => {
                let cost =
                    fields.iter().fold(Range::exactly(STRUCT), |sum, f| sum.plus(self.node(&f.value).cost));
                (cost, None, None)
            }
            ExprKind::Fold(fold) => self.fold(fold),
        };
        Known { cost, size, decl, scalar }
    }

    fn fold(&mut self, fold: &Fold) -> (Range, Option<Range>, Option<&'d Decl>) {
        let range = self.node(&fold.range);
        let init = self.node(&fold.init).cost;
        let (first, second) = match range.decl.map(|d| &d.shape) {
            Some(Shape::List { item, .. }) if fold.var2.is_some() => (None, Some(&**item)),
            Some(Shape::List { item, .. }) => (Some(&**item), None),
            Some(Shape::Map { value }) => (None, Some(&**value)),
            _ => (None, None),
        };
        let depth = self.scope.len();
        self.scope.push((fold.accu.clone(), None));
        self.scope.push((fold.var.clone(), first));
        if let Some(name) = &fold.var2 {
            self.scope.push((name.clone(), second));
        }
        let each = self.node(&fold.condition).cost.plus(self.node(&fold.step).cost);
        self.scope.truncate(depth + 1);
        let result = self.node(&fold.result).cost;
        self.scope.truncate(depth);
        let count = range.size_or_scalar();
        let cost = range.cost.plus(init).plus(count.times(each)).plus(result);
        (cost, Some(count), None)
    }

    fn call(&mut self, call: &Call, expr: &Expr) -> (Range, Option<Range>, Option<&'d Decl>) {
        let target = call.target.as_ref().map(|t| self.node(t));
        let args: Vec<Known<'d>> = call.args.iter().map(|a| self.node(a)).collect();
        let arg_costs = args.iter().fold(Range::exactly(0), |sum, a| sum.plus(a.cost));
        let before = target.as_ref().map_or(arg_costs, |t| t.cost.plus(arg_costs));
        match (&*call.name, args.as_slice()) {
            ("_&&_" | "_||_", [left, right]) => {
                return (Range { min: left.cost.min, max: left.cost.plus(right.cost).max }, None, None);
            }
            ("_?:_" | "_?_:_", [condition, yes, no]) => {
                let size = yes.size_or_scalar().or(no.size_or_scalar());
                return (condition.cost.plus(yes.cost.or(no.cost)), Some(size), None);
            }
            ("_[_]" | "_[?_]", [of, _]) => {
                let decl = of.decl.and_then(|d| match &d.shape {
                    Shape::List { item, .. } => Some(&**item),
                    Shape::Map { value } => Some(&**value),
                    _ => None,
                });
                return (before.plus(ONE), None, decl);
            }
            _ => {}
        }
        let (cost, size) = of_function(&call.name, target.as_ref(), &args, call, expr);
        (before.plus(cost), size, None)
    }
}

/// The cost of one call without its arguments', and the size of what it gives.
fn of_function(
    name: &str,
    target: Option<&Known<'_>>,
    args: &[Known<'_>],
    call: &Call,
    expr: &Expr,
) -> (Range, Option<Range>) {
    let traversal = |size: Range| size.scaled(TRAVERSAL);
    let arg = |at: usize| args.get(at).map_or(UNKNOWN, Known::size);
    match (name, target) {
        ("check", Some(_)) => (Range::exactly(350_000), None),
        ("isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf", Some(on)) => {
            let item = match call.target.as_ref().map(|t| &t.ty) {
                Some(Type::List(item)) => Some(item.clone()),
                _ => None,
            };
            match item.as_deref() {
                Some(Type::String | Type::Bytes) => {
                    let size = on.decl.and_then(Decl::item).map_or(UNKNOWN, |d| Range { min: 0, max: d.max });
                    (on.size().times(ONE.plus(traversal(size))), None)
                }
                Some(_) => (on.size().times(ONE), None),
                None => (traversal(on.size()), None),
            }
        }
        ("url", None) => (traversal(arg(0)), None),
        ("lowerAscii" | "upperAscii" | "substring" | "trim", Some(on)) => {
            (traversal(on.size()), Some(on.size()))
        }
        ("replace", Some(on)) if args.len() >= 2 => {
            (on.size().scaled(2.0 * TRAVERSAL), Some(replaced(on.size(), arg(0), arg(1))))
        }
        ("split", Some(on)) => {
            (on.size().scaled(2.0 * TRAVERSAL), Some(Range { min: 0, max: on.size().max }))
        }
        ("join", Some(on)) => {
            let list = on.size();
            let item = on.decl.and_then(Decl::item).map_or(UNKNOWN, |d| Range { min: 0, max: d.max });
            let mut size = list.times(item);
            if !args.is_empty() {
                let between = Range { min: list.min.saturating_sub(1), max: list.max.saturating_sub(1) };
                size = size.plus(arg(0).times(between));
            }
            (traversal(size), Some(size))
        }
        ("find" | "findAll", Some(on)) => {
            let cost = traversal(on.size().plus(ONE)).times(arg(0).scaled(REGEX));
            (cost, Some(Range { min: 0, max: on.size().max }))
        }
        ("matches", Some(on)) => (traversal(on.size().plus(ONE)).times(arg(0).scaled(REGEX)), None),
        ("matches", None) => (traversal(arg(0).plus(ONE)).times(arg(1).scaled(REGEX)), None),
        ("contains", Some(on)) => (traversal(on.size()).times(traversal(arg(0))), None),
        ("startsWith" | "endsWith", Some(_)) => (traversal(arg(0)), None),
        ("containsIP" | "containsCIDR", Some(_)) => {
            let bytes = Range { min: 4, max: 16 };
            let mut cost = traversal(bytes.plus(bytes));
            if name == "containsCIDR" {
                cost = cost.plus(traversal(bytes)).plus(ONE);
            }
            if matches!(call.args.first().map(|a| &a.ty), Some(Type::String)) {
                cost = cost.plus(traversal(arg(0)));
            }
            (cost, None)
        }
        ("sets.contains" | "sets.intersects", None) => (arg(0).times(arg(1)).plus(ONE), None),
        ("sets.equivalent", None) => (arg(0).times(arg(1)).times(Range::exactly(2)).plus(ONE), None),
        ("jsonpatch.escapeKey", None) => (arg(0).scaled(2.0 * TRAVERSAL), None),
        ("validate", Some(_)) => (traversal(arg(0)), None),
        ("bytes", None) if !args.is_empty() => {
            let size = arg(0);
            (traversal(size), Some(Range { min: size.min, max: size.max.saturating_mul(4) }))
        }
        ("string", None) if matches!(call.args.first().map(|a| &a.ty), Some(Type::Bytes)) => {
            let size = arg(0);
            (traversal(size), Some(Range { min: size.min / 4, max: size.max }))
        }
        // upstream knows no size for it, although its documentation builds messages so
        ("string", None) if matches!(call.args.first().map(|a| &a.ty), Some(t) if !matches!(t, Type::String | Type::Dyn)) => {
            (ONE, Some(Range { min: 1, max: 64 }))
        }
        ("string", None) => (ONE, args.first().map(Known::size)),
        ("dyn", None) => (ONE, args.first().and_then(|a| a.size)),
        ("@in", None) if matches!(call.args.get(1).map(|a| &a.ty), Some(Type::List(_))) => {
            (args.get(1).map_or(UNKNOWN, Known::size_or_scalar), None)
        }
        ("_+_", None) if args.len() == 2 => {
            let size = args[0].size_or_scalar().plus(args[1].size_or_scalar());
            match expr.ty {
                Type::List(_) => (ONE, Some(size)),
                Type::String | Type::Bytes => (traversal(size), Some(size)),
                _ => (ONE, None),
            }
        }
        ("_==_" | "_!=_" | "_<_" | "_<=_" | "_>_" | "_>=_", None) if args.len() == 2 => {
            let sized =
                name.contains("=_") && name.len() == 4 && !name.starts_with("_<") && !name.starts_with("_>");
            let textual = matches!(call.args[0].ty, Type::String | Type::Bytes);
            if !sized && !textual {
                return (ONE, None);
            }
            let max = args[0].size_or_scalar().max.min(args[1].size_or_scalar().max);
            (traversal(Range { min: u64::from(max > 0), max }), None)
        }
        _ => (ONE, None),
    }
}

/// How long a text gets whose parts are replaced.
fn replaced(all: Range, from: Range, to: Range) -> Range {
    let ceil =
        |a: u64, b: u64| a.checked_div(b).map_or(a, |q| q.saturating_add(u64::from(!a.is_multiple_of(b))));
    let max = if from.min == 0 {
        all.max.saturating_add(1).saturating_mul(to.max).saturating_add(all.max)
    } else if to.max <= from.min {
        all.max
    } else {
        ceil(all.max, from.min).saturating_mul(to.max)
    };
    let min = if from.max == 0 {
        all.min.saturating_add(1).saturating_mul(to.min).saturating_add(all.min)
    } else if from.max <= to.min {
        all.min
    } else {
        ceil(all.min, from.max).saturating_mul(to.min)
    };
    Range { min, max }
}
