//! The expression tree that is checked and evaluated, and how it is read from text.
//!
//! The text is read by the `cel` crate's ANTLR parser, whose complaints are those of upstream's; it recurses deeply, so
//! it runs on a thread of its own with a large stack, behind limits on the text. What it returns is turned into a tree of
//! our own: the crate's interpreter knows neither static types nor cost limits.

use std::sync::{Arc, LazyLock};

use cel::common::ast::{ComprehensionExpr, EntryExpr, Expr as Parsed, IdedExpr, LiteralValue, SourceInfo};

use super::macros;
use super::overloads::Function;
use super::types::Type;
use super::value::Value;

/// Longest expression, in characters.
const MAX_LENGTH: usize = 100_000;
/// Deepest nesting of an expression.
pub(super) const MAX_DEPTH: usize = 250;
/// Operators, selections and brackets in one expression; beyond it the parser's stack would not do.
const MAX_OPERATORS: usize = 10_000;
const PARSER_STACK: usize = 256 << 20;

/// A node: where it stands in the text, what it is.
#[derive(Debug, Clone)]
pub(super) struct Expr {
    /// Characters before it.
    pub(super) at: u32,
    pub(super) kind: ExprKind,
    /// Known after the check.
    pub(super) ty: Type,
}

#[derive(Debug, Clone)]
pub(super) enum ExprKind {
    Const(Value<'static>),
    Ident(Arc<str>),
    Select { operand: Box<Expr>, field: Arc<str>, test: bool },
    Call(Box<Call>),
    List(Vec<Item>),
    Map(Vec<Entry>),
    Struct { name: Arc<str>, fields: Vec<Member> },
    Fold(Box<Fold>),
}

/// A function's or operator's call.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) name: Arc<str>,
    pub(super) target: Option<Expr>,
    pub(super) args: Vec<Expr>,
    /// Known after the check; none for what the evaluator does itself (`&&`, `||`, `?:`).
    pub(super) function: Option<&'static Function>,
}

#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) value: Expr,
    pub(super) optional: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: Expr,
    pub(super) value: Expr,
    pub(super) optional: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) at: u32,
    pub(super) name: Arc<str>,
    pub(super) value: Expr,
    pub(super) optional: bool,
}

/// A comprehension, as macros make it.
#[derive(Debug, Clone)]
pub(super) struct Fold {
    pub(super) range: Expr,
    pub(super) var: Arc<str>,
    pub(super) var2: Option<Arc<str>>,
    pub(super) accu: Arc<str>,
    pub(super) init: Expr,
    pub(super) condition: Expr,
    pub(super) step: Expr,
    pub(super) result: Expr,
}

impl Expr {
    pub(super) fn new(at: u32, kind: ExprKind) -> Self {
        Self { at, kind, ty: Type::Dyn }
    }

    /// `a.b.c` where the node is nothing but names.
    pub(super) fn dotted(&self) -> Option<String> {
        match &self.kind {
            ExprKind::Ident(name) => Some(name.to_string()),
            ExprKind::Select { operand, field, test: false } => {
                Some(format!("{}.{field}", operand.dotted()?))
            }
            _ => None,
        }
    }

    /// Calls `visit` with this node and every one below it.
    pub(super) fn walk<'e>(&'e self, visit: &mut impl FnMut(&'e Expr)) {
        visit(self);
        match &self.kind {
            ExprKind::Const(_) | ExprKind::Ident(_) => {}
            ExprKind::Select { operand, .. } => operand.walk(visit),
            ExprKind::Call(call) => call.target.iter().chain(&call.args).for_each(|e| e.walk(visit)),
            ExprKind::List(items) => items.iter().for_each(|i| i.value.walk(visit)),
            ExprKind::Map(entries) => entries.iter().for_each(|e| {
                e.key.walk(visit);
                e.value.walk(visit);
            }),
            ExprKind::Struct { fields, .. } => fields.iter().for_each(|f| f.value.walk(visit)),
            ExprKind::Fold(fold) => {
                for part in [&fold.range, &fold.init, &fold.condition, &fold.step, &fold.result] {
                    part.walk(visit);
                }
            }
        }
    }
}

/// One complaint about an expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Complaint {
    /// Line, from 1.
    pub(super) line: usize,
    /// Column in characters, from 1; 0: the complaint is about no place.
    pub(super) column: usize,
    pub(super) message: String,
}

impl Complaint {
    /// A complaint about the character after `at` others.
    pub(super) fn at(source: &str, at: u32, message: String) -> Self {
        let (mut line, mut column) = (1, 1);
        for c in source.chars().take(at as usize) {
            if c == '\n' {
                (line, column) = (line + 1, 1);
            } else {
                column += 1;
            }
        }
        Self { line, column, message }
    }

    /// The complaint with the line it is about and a mark below the place.
    pub(super) fn render(&self, source: &str) -> String {
        if self.column == 0 {
            return format!("ERROR: <input>:-1:0: {}", self.message);
        }
        let mut out = format!("ERROR: <input>:{}:{}: {}", self.line, self.column, self.message);
        let Some(text) = source.split('\n').nth(self.line - 1) else { return out };
        // the place past a final line break has no line to show
        if text.is_empty() && self.line > 1 && source.ends_with('\n') {
            return out;
        }
        out.push_str("\n | ");
        out.push_str(&text.replace('\t', " "));
        out.push_str("\n | ");
        let mut chars = text.chars();
        for c in chars.by_ref().take(self.column - 1) {
            out.push(if c.len_utf8() > 1 { '．' } else { '.' });
        }
        out.push(if chars.next().is_some_and(|c| c.len_utf8() > 1) { '＾' } else { '^' });
        out
    }
}

/// All complaints as one text, in the order of their places.
pub(super) fn render(source: &str, mut complaints: Vec<Complaint>) -> String {
    complaints.sort_by_key(|c| (c.line, c.column));
    complaints.dedup();
    complaints.iter().map(|c| c.render(source)).collect::<Vec<_>>().join("\n")
}

/// Reads an expression; `bindings`: it may use `cel.bind`.
pub(super) fn parse(source: &str, bindings: bool) -> Result<Expr, Vec<Complaint>> {
    let nowhere = |message: String| vec![Complaint { line: 0, column: 0, message }];
    let length = source.chars().count();
    if length > MAX_LENGTH {
        return Err(nowhere(format!(
            "expression code point size exceeds limit: size: {length}, limit {MAX_LENGTH}"
        )));
    }
    let operators = source.bytes().filter(|b| b".[(+-*/%!?&|<>={:".contains(b)).count();
    if operators > MAX_OPERATORS {
        return Err(nowhere(too_deep()));
    }
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("cel-parser".to_owned())
            .stack_size(PARSER_STACK)
            .spawn_scoped(scope, || read(source, bindings))
            .map_err(|e| nowhere(format!("the parser cannot be started: {e}")))?
            .join()
            .unwrap_or_else(|_| Err(nowhere("Syntax error: the expression cannot be read".to_owned())))
    })
}

fn too_deep() -> String {
    format!("expression recursion limit exceeded: {MAX_DEPTH}")
}

fn read(source: &str, bindings: bool) -> Result<Expr, Vec<Complaint>> {
    static ENV: LazyLock<cel::Env> = LazyLock::new(macros::environment);
    static BINDING: LazyLock<cel::Env> = LazyLock::new(macros::with_bindings);
    let env = if bindings { &BINDING } else { &ENV };
    let parser = env.parser().max_recursion_depth(MAX_DEPTH as u16);
    match parser.parse_with_source_info(source) {
        Ok((parsed, places)) => Lower { places: &places, source }.expr(parsed, 0),
        Err(errors) => {
            let mut complaints: Vec<Complaint> = Vec::new();
            // what the parser says of its own broken trees comes after the complaint that broke them
            let own = |m: &str| m.starts_with("Incomplete `") || m.starts_with("No `");
            for error in errors.errors.iter().filter(|e| !own(&e.msg)) {
                if error.msg.contains("Recursion limit of") {
                    return Err(vec![Complaint { line: 0, column: 0, message: too_deep() }]);
                }
                complaints.push(Complaint {
                    line: usize::try_from(error.pos.0).unwrap_or(1).max(1),
                    column: usize::try_from(error.pos.1).unwrap_or(1).max(1),
                    message: error.msg.clone(),
                });
            }
            if complaints.is_empty() {
                complaints.push(Complaint { line: 1, column: 1, message: "Syntax error".to_owned() });
            }
            Err(complaints)
        }
    }
}

struct Lower<'s> {
    places: &'s SourceInfo,
    source: &'s str,
}

impl Lower<'_> {
    fn expr(&self, node: IdedExpr, depth: usize) -> Result<Expr, Vec<Complaint>> {
        let at = self.place(node.id);
        // a macro's expansion is deeper than its text
        if depth > 4 * MAX_DEPTH {
            return Err(vec![Complaint { line: 0, column: 0, message: too_deep() }]);
        }
        let below = |e: IdedExpr| self.expr(e, depth + 1);
        let kind = match node.expr {
            Parsed::Unspecified => {
                return Err(vec![Complaint::at(self.source, at, "Syntax error".to_owned())]);
            }
            Parsed::Literal(literal) => ExprKind::Const(match literal {
                LiteralValue::Boolean(b) => Value::Bool(*b.inner()),
                LiteralValue::Int(i) => Value::Int(*i.inner()),
                LiteralValue::UInt(u) => Value::Uint(*u.inner()),
                LiteralValue::Double(d) => Value::Double(*d.inner()),
                LiteralValue::String(s) => Value::text(s.inner().to_owned()),
                LiteralValue::Bytes(b) => Value::Bytes(b.inner().into()),
                LiteralValue::Null => Value::Null,
            }),
            Parsed::Ident(name) => ExprKind::Ident(name.trim_start_matches('.').into()),
            Parsed::Select(select) => ExprKind::Select {
                operand: Box::new(below(*select.operand)?),
                field: select.field.into(),
                test: select.test,
            },
            Parsed::Call(call) => ExprKind::Call(Box::new(Call {
                name: call.func_name.into(),
                target: call.target.map(|t| below(*t)).transpose()?,
                args: call.args.into_iter().map(below).collect::<Result<_, _>>()?,
                function: None,
            })),
            Parsed::List(list) => {
                let optional = list.optional_indices;
                let items = list
                    .elements
                    .into_iter()
                    .enumerate()
                    .map(|(i, e)| Ok(Item { value: below(e)?, optional: optional.contains(&i) }));
                ExprKind::List(items.collect::<Result<_, Vec<Complaint>>>()?)
            }
            Parsed::Map(map) => {
                let mut entries = Vec::with_capacity(map.entries.len());
                for entry in map.entries {
                    if let EntryExpr::MapEntry(e) = entry.expr {
                        entries.push(Entry {
                            key: below(e.key)?,
                            value: below(e.value)?,
                            optional: e.optional,
                        });
                    }
                }
                ExprKind::Map(entries)
            }
            Parsed::Struct(message) => {
                let mut fields = Vec::with_capacity(message.entries.len());
                for entry in message.entries {
                    let at = self.place(entry.id);
                    if let EntryExpr::StructField(f) = entry.expr {
                        fields.push(Member {
                            at,
                            name: f.field.into(),
                            value: below(f.value)?,
                            optional: f.optional,
                        });
                    }
                }
                ExprKind::Struct { name: message.type_name.trim_start_matches('.').into(), fields }
            }
            Parsed::Comprehension(fold) => {
                let ComprehensionExpr {
                    iter_range,
                    iter_var,
                    iter_var2,
                    accu_var,
                    accu_init,
                    loop_cond,
                    loop_step,
                    result,
                } = *fold;
                ExprKind::Fold(Box::new(Fold {
                    range: below(iter_range)?,
                    var: iter_var.into(),
                    var2: iter_var2.map(Into::into),
                    accu: accu_var.into(),
                    init: below(accu_init)?,
                    condition: below(loop_cond)?,
                    step: below(loop_step)?,
                    result: below(result)?,
                }))
            }
        };
        Ok(Expr::new(at, kind))
    }

    fn place(&self, id: u64) -> u32 {
        self.places.offset_for(id).map_or(0, |(start, _)| start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(source: &str) -> String {
        render(source, parse(source, false).expect_err(source))
    }

    #[test]
    fn complaints_are_upstreams() {
        assert_eq!(
            complaint("1 +"),
            "ERROR: <input>:1:4: Syntax error: mismatched input '<EOF>' expecting {'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}\n | 1 +\n | ...^"
        );
        assert_eq!(
            complaint("has(a)"),
            "ERROR: <input>:1:5: invalid argument to has() macro\n | has(a)\n | ....^"
        );
        assert_eq!(
            complaint("a.all(1, true)"),
            "ERROR: <input>:1:7: argument must be a simple name\n | a.all(1, true)\n | ......^"
        );
    }

    #[test]
    fn hostile_texts_are_refused_and_harm_nothing() {
        for text in [
            "(".repeat(2000),
            format!("{}1{}", "(".repeat(2000), ")".repeat(2000)),
            format!("{}true{}", "a.all(x, ".repeat(400), ")".repeat(400)),
            format!("a{}", ".b".repeat(9000)),
            format!("a{}", "+a".repeat(9000)),
            "a.b".repeat(50_000),
            "x".repeat(200_000),
        ] {
            assert!(parse(&text, false).is_err(), "{}", &text[..40]);
        }
    }
}
