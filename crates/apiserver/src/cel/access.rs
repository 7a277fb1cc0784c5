//! Expressions of configuration files: what claims of a token make of its holder, and which questions an authorizer is
//! asked.
//!
//! Rule: Kubernetes documentation, "Using Authentication Configuration" (`claims`, `user`) and "Using a configuration
//! file for authorization" (`request`).

use std::sync::LazyLock;

use serde_json::Value as Json;

use super::Program;
use super::ast::ExprKind;
use super::check::Env;
use super::decl::{Decl, ListKind};
use super::eval::Scope;
use super::types::Type;
use super::value::Value;

/// What an expression speaks of: the one variable that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// `claims`: the claims of a token.
    Claims,
    /// `user`: who a token's holder is.
    User,
    /// `request`: the `spec` of a `SubjectAccessReview`.
    Review,
}

impl About {
    fn variable(self) -> &'static str {
        match self {
            About::Claims => "claims",
            About::User => "user",
            About::Review => "request",
        }
    }

    fn decl(self) -> &'static Decl {
        static CLAIMS: LazyLock<Decl> = LazyLock::new(|| Decl::map(Decl::scalar(Type::Dyn)));
        static USER: LazyLock<Decl> = LazyLock::new(user);
        static REVIEW: LazyLock<Decl> = LazyLock::new(review);
        match self {
            About::Claims => &CLAIMS,
            About::User => &USER,
            About::Review => &REVIEW,
        }
    }
}

/// A checked expression.
#[derive(Debug, Clone)]
pub struct Expression {
    about: About,
    source: String,
    program: Program,
}

impl Expression {
    /// Checks a condition.
    ///
    /// # Errors
    ///
    /// What is wrong, as the API says it.
    pub fn condition(about: About, source: &str) -> Result<Self, String> {
        let expression = Self::mapping(about, source)?;
        let ty = expression.program.ty();
        if ty.is_bool() || ty.is_dyn() { Ok(expression) } else { Err("must evaluate to bool".to_owned()) }
    }

    /// Checks an expression whose value is only known when it runs.
    ///
    /// # Errors
    ///
    /// What is wrong, as the API says it.
    pub fn mapping(about: About, source: &str) -> Result<Self, String> {
        let mut env = Env::default();
        env.declare(about.variable(), about.decl().ty());
        let program = Program::compile(&env, source)?;
        Ok(Self { about, source: source.to_owned(), program })
    }

    /// As it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether it reads `variable.member` by name, `has(…)` and `variable["member"]` included.
    pub fn reads(&self, member: &str) -> bool {
        let is_variable =
            |e: &super::ast::Expr| matches!(&e.kind, ExprKind::Ident(n) if **n == *self.about.variable());
        let mut found = false;
        self.program.expr.walk(&mut |e| {
            found |= match &e.kind {
                ExprKind::Select { operand, field, .. } => **field == *member && is_variable(operand),
                ExprKind::Call(call) => match call.args.as_slice() {
                    [of, index] if call.target.is_none() => {
                        let names =
                            matches!(&index.kind, ExprKind::Const(Value::String(s)) if **s == *member);
                        names && is_variable(of)
                    }
                    _ => false,
                },
                _ => false,
            };
        });
        found
    }

    fn run<T>(
        &self,
        input: &Json,
        read: impl FnOnce(Value<'_>) -> Option<T>,
        wanted: &str,
    ) -> Result<T, String> {
        let scope = Scope::new(vec![(self.about.variable(), Value::part(input, Some(self.about.decl())))]);
        let (outcome, _) = scope.eval(&self.program.expr);
        let value =
            outcome.map_err(|e| format!("expression '{}' resulted in error: {e}", self.source.trim()))?;
        let name = value.type_name().to_owned();
        read(value)
            .ok_or_else(|| format!("expression '{}' evaluated to {name}, not {wanted}", self.source.trim()))
    }

    /// What a condition says.
    ///
    /// # Errors
    ///
    /// Why it says nothing.
    pub fn holds(&self, input: &Json) -> Result<bool, String> {
        let read = |value: Value<'_>| match value {
            Value::Bool(b) => Some(b),
            _ => None,
        };
        self.run(input, read, "a bool")
    }

    /// The text an expression makes.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub fn text(&self, input: &Json) -> Result<String, String> {
        let read = |value: Value<'_>| match value {
            Value::String(s) => Some(s.to_string()),
            _ => None,
        };
        self.run(input, read, "a string")
    }

    /// The texts an expression makes: one, a list, or none for null and what is empty.
    ///
    /// # Errors
    ///
    /// Why there are none.
    pub fn texts(&self, input: &Json) -> Result<Vec<String>, String> {
        let read = |value: Value<'_>| match value {
            Value::Null => Some(Vec::new()),
            Value::String(s) if s.is_empty() => Some(Vec::new()),
            Value::String(s) => Some(vec![s.to_string()]),
            Value::List(list) => list
                .iter()
                .map(|item| match item {
                    Value::String(s) => Some(s.to_string()),
                    _ => None,
                })
                .collect::<Option<Vec<_>>>()
                .map(|texts| texts.into_iter().filter(|t| !t.is_empty()).collect()),
            _ => None,
        };
        self.run(input, read, "a string or a list of strings")
    }
}

fn text() -> Decl {
    Decl::scalar(Type::String)
}

fn texts() -> Decl {
    Decl::list(text(), ListKind::Atomic)
}

fn user() -> Decl {
    Decl::object(
        "kubernetes.UserInfo",
        vec![("username", text()), ("uid", text()), ("groups", texts()), ("extra", Decl::map(texts()))],
    )
}

fn review() -> Decl {
    let selector = |name: &str, item: &str| {
        let requirement = vec![("key", text()), ("operator", text()), ("values", texts())];
        let requirements = Decl::list(Decl::object(item, requirement), ListKind::Atomic);
        Decl::object(name, vec![("requirements", requirements)])
    };
    let resource = Decl::object(
        "kubernetes.ResourceAttributes",
        vec![
            ("namespace", text()),
            ("verb", text()),
            ("group", text()),
            ("version", text()),
            ("resource", text()),
            ("subresource", text()),
            ("name", text()),
            (
                "fieldSelector",
                selector("kubernetes.FieldSelectorAttributes", "kubernetes.SelectorRequirement"),
            ),
            (
                "labelSelector",
                selector("kubernetes.LabelSelectorAttributes", "kubernetes.SelectorRequirement"),
            ),
        ],
    );
    let path = Decl::object("kubernetes.NonResourceAttributes", vec![("path", text()), ("verb", text())]);
    Decl::object(
        "kubernetes.SubjectAccessReviewSpec",
        vec![
            ("resourceAttributes", resource),
            ("nonResourceAttributes", path),
            ("user", text()),
            ("groups", texts()),
            ("extra", Decl::map(texts())),
            ("uid", text()),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn claims_become_texts() {
        let claims = json!({"sub": "ann", "roles": "a,b", "team": ["x", "", "y"], "n": 1, "none": null});
        let texts = |source: &str| Expression::mapping(About::Claims, source).unwrap().texts(&claims);
        assert_eq!(texts("claims.roles.split(',')").unwrap(), ["a", "b"]);
        assert_eq!(texts("claims.team").unwrap(), ["x", "y"]);
        assert_eq!(texts("'u:' + claims.sub").unwrap(), ["u:ann"]);
        assert_eq!(texts("claims.none").unwrap(), Vec::<String>::new());
        assert_eq!(texts("claims.?email.orValue('')").unwrap(), Vec::<String>::new());
        assert!(texts("claims.n").unwrap_err().contains("evaluated to int"));
        assert!(texts("claims.nosuch").unwrap_err().contains("no such key: nosuch"));
    }

    #[test]
    fn conditions_are_about_their_variable_only() {
        let wrong = |about, source| Expression::condition(about, source).unwrap_err();
        assert_eq!(wrong(About::User, "user.username"), "must evaluate to bool");
        assert!(wrong(About::User, "claims.x == 1").contains("undeclared reference to 'claims'"));
        assert!(wrong(About::Review, "request.object == 1").contains("undefined field 'object'"));
        let own = Expression::condition(
            About::Review,
            "has(request.resourceAttributes) && request.resourceAttributes.namespace == 'a' && !('m' in request.groups)",
        )
        .unwrap();
        let review =
            json!({"user": "u", "groups": ["x"], "resourceAttributes": {"namespace": "a", "verb": "get"}});
        assert_eq!(own.holds(&review), Ok(true));
        assert_eq!(
            own.holds(&json!({"user": "u", "groups": [], "nonResourceAttributes": {"path": "/x"}})),
            Ok(false)
        );
    }

    #[test]
    fn a_member_is_read_in_any_form() {
        let reads =
            |source: &str| Expression::mapping(About::Claims, source).unwrap().reads("email_verified");
        for source in [
            "claims.email_verified",
            "claims['email_verified'] == true",
            "has(claims.email_verified) && true",
            "claims.?email_verified.orValue(true) == true",
        ] {
            assert!(reads(source), "{source}");
        }
        assert!(!reads("claims.other.email_verified"));
    }
}
