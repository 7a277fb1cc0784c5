//! The macros that the `cel` crate's parser lacks: comprehensions over two variables (upstream's `TwoVarComprehensions`).

use cel::common::ast::{CallExpr, ComprehensionExpr, Expr, IdedExpr, ListExpr, LiteralValue, MapExpr};
use cel::parser::{Macro, MacroExprHelper, ParseError};

/// The accumulator's name, which no expression can spell.
pub(super) const RESULT: &str = "@result";
/// Puts one entry, or the entries of a map, into a map.
pub(super) const MAP_INSERT: &str = "cel.@mapInsert";

type Helper<'a, 'b> = &'a mut MacroExprHelper<'b>;
type Expanded = Result<Option<IdedExpr>, ParseError>;

/// The parser's environment: the standard macros, those of optional values, and ours.
pub(super) fn environment() -> cel::Env {
    let mut env = cel::Env::stdlib().with_optional_support(true);
    let macros = [
        Macro::receiver("all", 3, |h, t, a| quantifier(h, t, a, true)),
        Macro::receiver("exists", 3, |h, t, a| quantifier(h, t, a, false)),
        Macro::receiver("exists_one", 3, exists_one),
        Macro::receiver("existsOne", 3, exists_one),
        Macro::receiver("transformList", 3, transform_list),
        Macro::receiver("transformList", 4, transform_list),
        Macro::receiver("transformMap", 3, |h, t, a| transform_map(h, t, a, false)),
        Macro::receiver("transformMap", 4, |h, t, a| transform_map(h, t, a, false)),
        Macro::receiver("transformMapEntry", 3, |h, t, a| transform_map(h, t, a, true)),
        Macro::receiver("transformMapEntry", 4, |h, t, a| transform_map(h, t, a, true)),
    ];
    for one in macros {
        // a macro that is there already is the crate's own of the same meaning
        let _ = env.add_macro(one);
    }
    // `optMap` and `optFlatMap` come with the crate's optional library
    env
}

/// The same with `cel.bind(name, value, expression)`.
pub(super) fn with_bindings() -> cel::Env {
    let mut env = environment();
    // the name is new: it cannot be there already
    let _ = env.add_macro(Macro::receiver("bind", 3, bind));
    env
}

/// A fold over nothing, whose accumulator is the name.
fn bind(h: Helper<'_, '_>, target: &mut Option<IdedExpr>, args: &mut Vec<IdedExpr>) -> Expanded {
    if !target.as_ref().is_some_and(|t| matches!(&t.expr, Expr::Ident(name) if name == "cel")) {
        return Ok(None);
    }
    let (Some(body), Some(value), Some(name)) = (args.pop(), args.pop(), args.pop()) else { return Ok(None) };
    let Expr::Ident(name) = name.expr else {
        return Err(h.new_error(name.id, "cel.bind() variable names must be simple identifiers"));
    };
    let nothing = h.next_expr(Expr::List(ListExpr::new(Vec::new())));
    let (condition, step) = (truth(h, false), h.next_expr(Expr::Ident(name.clone())));
    Ok(Some(h.next_expr(Expr::Comprehension(Box::new(ComprehensionExpr {
        iter_range: nothing,
        iter_var: "#unused".to_owned(),
        iter_var2: None,
        accu_var: name,
        accu_init: value,
        loop_cond: condition,
        loop_step: step,
        result: body,
    })))))
}

fn call(h: Helper<'_, '_>, name: &str, args: Vec<IdedExpr>) -> IdedExpr {
    h.next_expr(Expr::Call(CallExpr { func_name: name.to_owned(), target: None, args }))
}

fn result(h: Helper<'_, '_>) -> IdedExpr {
    h.next_expr(Expr::Ident(RESULT.to_owned()))
}

fn truth(h: Helper<'_, '_>, value: bool) -> IdedExpr {
    h.next_expr(Expr::Literal(LiteralValue::Boolean(value.into())))
}

fn number(h: Helper<'_, '_>, value: i64) -> IdedExpr {
    h.next_expr(Expr::Literal(LiteralValue::Int(value.into())))
}

/// The two names that a macro binds.
fn names(h: Helper<'_, '_>, args: &[IdedExpr]) -> Result<(String, String), ParseError> {
    let name = |e: &IdedExpr| match &e.expr {
        Expr::Ident(name) if name != RESULT => Ok(name.clone()),
        Expr::Ident(_) => Err(h.new_error(e.id, "iteration variable overwrites accumulator variable")),
        _ => Err(h.new_error(e.id, "argument must be a simple name")),
    };
    match args {
        [first, second, ..] => {
            let pair = (name(first)?, name(second)?);
            if pair.0 == pair.1 {
                return Err(h.new_error(second.id, format!("duplicate variable name: {}", pair.1)));
            }
            Ok(pair)
        }
        _ => Err(h.new_error(0, "two variable names are needed")),
    }
}

struct Parts {
    init: IdedExpr,
    condition: IdedExpr,
    step: IdedExpr,
    result: IdedExpr,
}

fn fold(h: Helper<'_, '_>, target: &mut Option<IdedExpr>, vars: (String, String), parts: Parts) -> Expanded {
    let Some(range) = target.take() else { return Ok(None) };
    Ok(Some(h.next_expr(Expr::Comprehension(Box::new(ComprehensionExpr {
        iter_range: range,
        iter_var: vars.0,
        iter_var2: Some(vars.1),
        accu_var: RESULT.to_owned(),
        accu_init: parts.init,
        loop_cond: parts.condition,
        loop_step: parts.step,
        result: parts.result,
    })))))
}

fn quantifier(
    h: Helper<'_, '_>,
    target: &mut Option<IdedExpr>,
    args: &mut Vec<IdedExpr>,
    all: bool,
) -> Expanded {
    let vars = names(h, args)?;
    let Some(predicate) = args.pop() else { return Ok(None) };
    let init = truth(h, all);
    let accu = result(h);
    let going = if all { accu } else { call(h, "!_", vec![accu]) };
    let condition = call(h, "@not_strictly_false", vec![going]);
    let accu = result(h);
    let step = call(h, if all { "_&&_" } else { "_||_" }, vec![accu, predicate]);
    let result = result(h);
    fold(h, target, vars, Parts { init, condition, step, result })
}

fn exists_one(h: Helper<'_, '_>, target: &mut Option<IdedExpr>, args: &mut Vec<IdedExpr>) -> Expanded {
    let vars = names(h, args)?;
    let Some(predicate) = args.pop() else { return Ok(None) };
    let (init, condition) = (number(h, 0), truth(h, true));
    let one = vec![result(h), number(h, 1)];
    let more = call(h, "_+_", one);
    let same = result(h);
    let step = call(h, "_?_:_", vec![predicate, more, same]);
    let compared = vec![result(h), number(h, 1)];
    let result = call(h, "_==_", compared);
    fold(h, target, vars, Parts { init, condition, step, result })
}

/// `step`, for items that pass the filter between the names and the last argument, if there is one.
fn filtered(h: Helper<'_, '_>, args: &mut Vec<IdedExpr>, step: IdedExpr) -> IdedExpr {
    match args.len() {
        3 => {
            let Some(filter) = args.pop() else { return step };
            let same = result(h);
            call(h, "_?_:_", vec![filter, step, same])
        }
        _ => step,
    }
}

fn transform_list(h: Helper<'_, '_>, target: &mut Option<IdedExpr>, args: &mut Vec<IdedExpr>) -> Expanded {
    let vars = names(h, args)?;
    let Some(item) = args.pop() else { return Ok(None) };
    let init = h.next_expr(Expr::List(ListExpr::new(Vec::new())));
    let condition = truth(h, true);
    let added = vec![result(h), h.next_expr(Expr::List(ListExpr::new(vec![item])))];
    let step = call(h, "_+_", added);
    let step = filtered(h, args, step);
    let result = result(h);
    fold(h, target, vars, Parts { init, condition, step, result })
}

fn transform_map(
    h: Helper<'_, '_>,
    target: &mut Option<IdedExpr>,
    args: &mut Vec<IdedExpr>,
    entries: bool,
) -> Expanded {
    let vars = names(h, args)?;
    let Some(value) = args.pop() else { return Ok(None) };
    let init = h.next_expr(Expr::Map(MapExpr { entries: Vec::new() }));
    let condition = truth(h, true);
    let accu = result(h);
    let inserted = if entries {
        vec![accu, value]
    } else {
        let key = h.next_expr(Expr::Ident(vars.0.clone()));
        vec![accu, key, value]
    };
    let step = call(h, MAP_INSERT, inserted);
    let step = filtered(h, args, step);
    let result = result(h);
    fold(h, target, vars, Parts { init, condition, step, result })
}
