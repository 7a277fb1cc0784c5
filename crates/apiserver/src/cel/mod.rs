//! CEL: the expressions of custom resource rules, admission policies, match conditions, device selectors and configuration files.
//!
//! Text → tree (`ast`, read by the `cel` crate's parser) → check against declared types (`check`, over the tables of
//! `library`) → run with a cost limit (`eval`). The crate's own interpreter was left out: it has no static types, no cost
//! accounting and no way to stop an expression, all of which the API promises. Nothing here does I/O; an expression cannot
//! panic, run long or out of stack.

pub mod access;
pub mod admission;
mod ast;
mod check;
mod cost;
mod decl;
pub mod devices;
mod estimate;
mod eval;
mod library;
mod macros;
pub mod match_conditions;
mod mutation;
mod overloads;
pub mod rules;
mod time;
mod typed;
mod types;
mod value;

pub use eval::{CALL_LIMIT, Error};
pub use library::authz::{Answers, Question};

use ast::Expr;
use check::Env;
use types::Type;

/// A checked expression.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    expr: Expr,
}

impl Program {
    /// Reads and checks an expression; the error is what clients read.
    fn compile(env: &Env, source: &str) -> Result<Self, String> {
        let failed = |complaints| format!("compilation failed: {}", ast::render(source, complaints));
        let parsed = ast::parse(source, env.bindings).map_err(failed)?;
        let expr = env.check(source, parsed).map_err(failed)?;
        Ok(Self { expr })
    }

    fn ty(&self) -> &Type {
        &self.expr.ty
    }

    /// Whether the expression reads a variable.
    fn reads(&self, name: &str) -> bool {
        let mut found = false;
        self.expr.walk(&mut |e| {
            found |= matches!(&e.kind, ast::ExprKind::Ident(n) if **n == *name);
        });
        found
    }
}

#[cfg(test)]
mod tests;
