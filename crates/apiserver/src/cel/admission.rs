//! What expressions of admission see: `object`, `oldObject`, `request`, `params`, `namespaceObject`, `authorizer`, and a
//! policy's own `variables`.
//!
//! Rule: Kubernetes documentation, "Validating Admission Policy", "Validation expression".

use std::sync::{Arc, LazyLock};

use api::kinds::Kind;
use serde_json::Value as Json;

use super::check::Env;
use super::decl::{Decl, FieldDecl, ObjectDecl};
use super::eval::{Error, Lazy, Scope, VARIABLES};
use super::library::authz::Authorizer;
use super::library::{authz, opaque_name};
use super::types::Type;
use super::value::Value;
use super::{Answers, Program, Question, mutation, typed};

/// What one request may cost a policy and one binding of it.
pub const BUDGET: u64 = 10_000_000;

/// What an expression must give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// A truth value.
    Bool,
    /// A text.
    String,
    /// A text or null.
    StringOrNull,
    /// Whatever it is.
    Any,
    /// A partial object (`Object{}`).
    Object,
    /// A list of `JSONPatch{}`.
    Patch,
}

impl Wanted {
    fn fits(self, ty: &Type) -> bool {
        let same = |wanted: &Type| ty.to_string() == wanted.to_string();
        match self {
            Wanted::Any => true,
            _ if ty.is_dyn() => true,
            Wanted::Bool => same(&Type::Bool),
            Wanted::String => same(&Type::String),
            Wanted::StringOrNull => same(&Type::String) || same(&Type::Null),
            Wanted::Object => same(&mutation::object_type()),
            // an empty list is one of anything
            Wanted::Patch => same(&mutation::patch_type()) || same(&Type::list(Type::Dyn)),
        }
    }

    fn words(self) -> &'static str {
        match self {
            Wanted::Bool => "must evaluate to bool",
            Wanted::String => "must evaluate to string",
            Wanted::StringOrNull => "must evaluate to one of [string null_type]",
            Wanted::Any => "must evaluate to any",
            Wanted::Object => "must evaluate to Object",
            Wanted::Patch => "must evaluate to list(JSONPatch)",
        }
    }
}

/// A checked expression of admission.
#[derive(Debug, Clone)]
pub struct Expression {
    source: String,
    program: Program,
}

/// Checks expressions of one policy, or of no policy.
#[derive(Debug, Clone)]
pub struct Compiler {
    env: Env,
    with_authorizer: bool,
    /// Whether there is `variables`, even before the first of them.
    composes: bool,
    variables: Vec<(Arc<str>, Decl)>,
}

impl Compiler {
    /// Expressions may read `params` where `params` is set.
    pub fn new(params: bool) -> Self {
        Self::of_object(params, Type::Dyn, Type::Dyn)
    }

    fn of_object(params: bool, object: Type, param: Type) -> Self {
        let mut env = Env::default();
        env.declare("object", object.clone());
        env.declare("oldObject", object);
        env.declare("request", request_decl().ty());
        env.declare("namespaceObject", namespace_decl().ty());
        if params {
            env.declare("params", param);
        }
        Self { env, with_authorizer: true, composes: false, variables: Vec::new() }
    }

    /// Expressions about objects of `kind`, with parameters of the other kind: only for warnings, since what they run on
    /// has no fixed type.
    pub fn typed(kind: &Kind, params: Option<&Kind>) -> Self {
        Self::of_object(params.is_some(), typed::of_kind(kind), params.map_or(Type::Dyn, typed::of_kind))
    }

    /// The same, where expressions may make `Object{}` and `JSONPatch{}`.
    pub fn mutating(mut self) -> Self {
        self.env.mutation = true;
        self
    }

    /// The same, where `variables` is known if `composes`.
    pub fn composing(self, composes: bool) -> Self {
        Self { composes, ..self }
    }

    /// The same, where expressions may not ask the authorizer.
    pub fn without_authorizer(&self) -> Self {
        Self { with_authorizer: false, ..self.clone() }
    }

    /// Checks an expression.
    ///
    /// # Errors
    ///
    /// What is wrong, as the API says it.
    pub fn compile(&self, source: &str, wanted: Wanted) -> Result<Expression, String> {
        let mut env = self.env.clone();
        if self.with_authorizer {
            env.declare("authorizer", Type::Opaque(opaque_name("Authorizer")));
            env.declare("authorizer.requestResource", Type::Opaque(opaque_name("ResourceCheck")));
        }
        if self.composes {
            env.declare(VARIABLES, variables_type(&self.variables));
        }
        let program = Program::compile(&env, source)?;
        if !wanted.fits(program.ty()) {
            return Err(format!("{} but got {}", wanted.words(), program.ty()));
        }
        Ok(Expression { source: source.to_owned(), program })
    }

    /// Checks a variable; expressions after it may read it as `variables.name`, even where it is wrong.
    ///
    /// # Errors
    ///
    /// What is wrong, as the API says it.
    pub fn variable(&mut self, name: &str, source: &str) -> Result<Expression, String> {
        let compiled = self.compile(source, Wanted::Any);
        let ty = compiled.as_ref().map_or(Type::Dyn, |e| e.program.ty().clone());
        self.variables.push((name.into(), Decl::scalar(ty)));
        compiled
    }
}

fn variables_type(variables: &[(Arc<str>, Decl)]) -> Type {
    let fields = variables
        .iter()
        .map(|(name, decl)| (name.to_string(), FieldDecl { name: name.to_string(), decl: decl.clone() }))
        .collect();
    Type::Object(Arc::new(ObjectDecl { name: "kubernetes.variables".to_owned(), fields, open: false }))
}

/// What a request brings to expressions.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// The `AdmissionRequest` without its objects.
    pub request: &'a Json,
    /// Null on deletion.
    pub object: &'a Json,
    /// Null on creation.
    pub old_object: &'a Json,
    /// Null where there are none.
    pub params: &'a Json,
    /// Null for cluster-scoped objects.
    pub namespace: &'a Json,
    /// Who answers questions, and what `authorizer.requestResource` asks.
    pub authorizer: Option<(&'a Arc<dyn Answers>, &'a Question)>,
}

/// One evaluation: expressions over the same inputs share variables and a budget.
pub struct Evaluation<'a> {
    scope: Scope<'a>,
    budget: u64,
}

impl<'a> Evaluation<'a> {
    /// Over `inputs`, with variables that are computed when first read.
    pub fn new(inputs: &Inputs<'a>, variables: &'a [(Arc<str>, Expression)], budget: u64) -> Self {
        let mut vars = vec![
            ("object", Value::json(inputs.object)),
            ("oldObject", Value::json(inputs.old_object)),
            ("request", Value::part(inputs.request, Some(request_decl()))),
            ("namespaceObject", Value::part(inputs.namespace, Some(namespace_decl()))),
            ("params", Value::json(inputs.params)),
        ];
        if let Some((answers, question)) = inputs.authorizer {
            vars.push(("authorizer", Authorizer::value(answers.clone())));
            let asked = authz::Authorizer::request_resource(answers.clone(), question.clone());
            vars.push(("authorizer.requestResource", asked));
        }
        let mut scope = Scope::new(vars);
        scope.lazy = variables.iter().map(|(name, e)| Lazy::new(name.clone(), &e.program.expr)).collect();
        Self { scope, budget }
    }

    fn value(&mut self, expression: &Expression) -> Result<Value<'a>, String> {
        let exhausted =
            "validation failed due to running out of cost budget, no further validation rules will be run";
        if self.budget == 0 {
            return Err(exhausted.to_owned());
        }
        let (outcome, cost) = self.scope.eval(&expression.program.expr);
        self.budget = self.budget.saturating_sub(cost);
        let failed = |e: Error| format!("expression '{}' resulted in error: {e}", expression.source.trim());
        outcome.map_err(failed)
    }

    /// What a condition says.
    ///
    /// # Errors
    ///
    /// Why it says nothing.
    pub fn bool(&mut self, expression: &Expression) -> Result<bool, String> {
        Ok(matches!(self.value(expression)?, Value::Bool(true)))
    }

    /// The text an expression makes; none for anything else.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub fn text(&mut self, expression: &Expression) -> Result<Option<String>, String> {
        Ok(match self.value(expression)? {
            Value::String(s) => Some(s.to_string()),
            _ => None,
        })
    }

    /// The partial object an expression makes.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub fn object(&mut self, expression: &Expression) -> Result<Json, String> {
        let value = self.value(expression)?;
        mutation::object(&value).map_err(|e| e.to_string())
    }

    /// The JSON patch an expression makes.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub fn patch(&mut self, expression: &Expression) -> Result<Json, String> {
        let value = self.value(expression)?;
        mutation::patch(&value).map_err(|e| e.to_string())
    }

    /// Whether nothing more can be evaluated.
    pub fn is_exhausted(&self) -> bool {
        self.budget == 0
    }
}

impl Expression {
    /// As it was written.
    pub fn source(&self) -> &str {
        &self.source
    }
}

fn text() -> Decl {
    Decl::scalar(Type::String)
}

fn texts() -> Decl {
    Decl::list(text(), super::decl::ListKind::Atomic)
}

/// `request`: an `AdmissionRequest` of `admission.k8s.io/v1` without the objects.
fn request_decl() -> &'static Decl {
    static DECL: LazyLock<Decl> = LazyLock::new(|| {
        let kind = || {
            Decl::object(
                "kubernetes.GroupVersionKind",
                vec![("group", text()), ("version", text()), ("kind", text())],
            )
        };
        let resource = || {
            Decl::object(
                "kubernetes.GroupVersionResource",
                vec![("group", text()), ("version", text()), ("resource", text())],
            )
        };
        let user = Decl::object(
            "kubernetes.UserInfo",
            vec![("username", text()), ("uid", text()), ("groups", texts()), ("extra", Decl::map(texts()))],
        );
        Decl::object(
            "kubernetes.AdmissionRequest",
            vec![
                ("kind", kind()),
                ("resource", resource()),
                ("subResource", text()),
                ("requestKind", kind()),
                ("requestResource", resource()),
                ("requestSubResource", text()),
                ("name", text()),
                ("namespace", text()),
                ("operation", text()),
                ("userInfo", user),
                ("dryRun", Decl::scalar(Type::Bool)),
                ("options", Decl::scalar(Type::Dyn)),
            ],
        )
    });
    &DECL
}

/// `namespaceObject`: what expressions may see of a namespace.
fn namespace_decl() -> &'static Decl {
    static DECL: LazyLock<Decl> = LazyLock::new(|| {
        let metadata = Decl::object(
            "kubernetes.NamespaceMetadata",
            vec![
                ("name", text()),
                ("generateName", text()),
                ("namespace", text()),
                ("labels", Decl::map(text())),
                ("annotations", Decl::map(text())),
                ("UID", text()),
                ("creationTimestamp", Decl::scalar(Type::Timestamp)),
                ("deletionGracePeriodSeconds", Decl::scalar(Type::Int)),
                ("deletionTimestamp", Decl::scalar(Type::Timestamp)),
                ("generation", Decl::scalar(Type::Int)),
                ("resourceVersion", text()),
                ("finalizers", texts()),
            ],
        );
        let spec = Decl::object("kubernetes.NamespaceSpec", vec![("finalizers", texts())]);
        let status = Decl::object("kubernetes.NamespaceStatus", vec![("phase", text())]);
        Decl::object("kubernetes.Namespace", vec![("metadata", metadata), ("spec", spec), ("status", status)])
    });
    &DECL
}

/// Whether a text can name a variable.
pub fn is_identifier(name: &str) -> bool {
    let first = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    first
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !super::decl::RESERVED.contains(&name)
}
