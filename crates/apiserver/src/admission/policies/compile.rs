//! Policies and bindings as data that can be matched against requests at once.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use api::kinds::Kind;
use api::selector::LabelSelector;
use serde_json::Value;

use crate::admission::webhooks::Rule;
use crate::cel::admission::{Compiler, Expression, Wanted};
use crate::cel::match_conditions::MatchConditions;
use crate::watch_cache::WatchCache;

/// Policies and bindings: validating, mutating.
pub(super) fn policy_kinds() -> [&'static Arc<Kind>; 4] {
    static KINDS: LazyLock<[Option<&'static Arc<Kind>>; 4]> = LazyLock::new(|| {
        [
            "validatingadmissionpolicies",
            "validatingadmissionpolicybindings",
            "mutatingadmissionpolicies",
            "mutatingadmissionpolicybindings",
        ]
        .map(|plural| api::kinds::find("admissionregistration.k8s.io", "v1", plural))
    });
    KINDS.map(|kind| kind.expect("the table of kinds has the admission policies"))
}

/// All policies of one state, with their bindings.
#[derive(Debug, Default)]
pub(super) struct Compiled {
    /// Revisions of the last changes, in the order of [`policy_kinds`].
    pub(super) state: [u64; 4],
    pub(super) validating: Vec<Bound>,
    pub(super) mutating: Vec<Bound>,
}

/// A policy that has bindings: without one, it decides nothing.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) policy: Arc<Policy>,
    pub(super) bindings: Vec<Binding>,
}

impl Compiled {
    /// Reads the cache; expressions of policies that did not change are taken from `known`.
    pub(super) fn new(state: [u64; 4], cache: &WatchCache, known: &Compiled) -> Self {
        let [validating, validating_bindings, mutating, mutating_bindings] = policy_kinds();
        let bound = |policies: &Arc<Kind>, bindings: &Arc<Kind>, known: &[Bound], is_mutating: bool| {
            let mut by_policy: BTreeMap<String, Vec<Binding>> = BTreeMap::new();
            for binding in cache.list(bindings, &bindings.storage_prefix, None).items {
                let made = Binding::new(binding.name(), &binding.value()["spec"]);
                by_policy.entry(made.policy.clone()).or_default().push(made);
            }
            let mut out = Vec::new();
            for object in cache.list(policies, &policies.storage_prefix, None).items {
                let Some(bindings) = by_policy.remove(object.name()) else { continue };
                let value = object.value();
                let identity =
                    (object.uid().to_owned(), value["metadata"]["generation"].as_i64().unwrap_or_default());
                let same = known.iter().find(|b| b.policy.identity == identity);
                let policy = same.map_or_else(
                    || Arc::new(Policy::new(object.name(), identity, &value["spec"], is_mutating)),
                    |b| b.policy.clone(),
                );
                out.push(Bound { policy, bindings });
            }
            out
        };
        Self {
            state,
            validating: bound(validating, validating_bindings, &known.validating, false),
            mutating: bound(mutating, mutating_bindings, &known.mutating, true),
        }
    }
}

/// What a policy or binding matches.
#[derive(Debug)]
pub(super) struct Matcher {
    pub(super) rules: Vec<NamedRule>,
    pub(super) excluded: Vec<NamedRule>,
    /// Whether requests for the same objects in other versions count.
    pub(super) equivalent: bool,
    pub(super) namespaces: LabelSelector,
    pub(super) objects: LabelSelector,
}

/// A rule, and the names of objects it is for; none: all.
#[derive(Debug)]
pub(super) struct NamedRule {
    pub(super) rule: Rule,
    pub(super) names: Vec<String>,
}

impl Matcher {
    fn new(resources: &Value) -> Self {
        // a selector that cannot be read was refused when it was written; it selects nothing
        let selector = |key: &str| {
            LabelSelector::from_value(&resources[key]).unwrap_or_else(|_| LabelSelector::nothing())
        };
        let rules = |key: &str| {
            let rule = |rule: &Value| NamedRule {
                rule: Rule::new(rule),
                names: list(rule, "resourceNames").filter_map(|n| n.as_str().map(str::to_owned)).collect(),
            };
            list(resources, key).map(rule).collect()
        };
        Self {
            rules: rules("resourceRules"),
            excluded: rules("excludeResourceRules"),
            equivalent: resources["matchPolicy"] != "Exact",
            namespaces: selector("namespaceSelector"),
            objects: selector("objectSelector"),
        }
    }
}

/// A policy.
#[derive(Debug)]
pub(super) struct Policy {
    pub(super) name: String,
    /// UID and generation.
    identity: (String, i64),
    pub(super) matcher: Matcher,
    pub(super) conditions: MatchConditions,
    /// API version and kind of parameters.
    pub(super) params: Option<(String, String)>,
    pub(super) variables: Vec<(Arc<str>, Expression)>,
    /// Whether a request is refused where the policy cannot be asked.
    pub(super) fails_closed: bool,
    /// Why the expressions cannot be run; that they can was checked when they were written.
    pub(super) broken: Option<String>,
    pub(super) validations: Vec<Validation>,
    pub(super) annotations: Vec<Annotation>,
    pub(super) mutations: Vec<Mutation>,
    /// Whether it runs again where something changed after it.
    pub(super) again: bool,
}

/// One expression that must hold.
#[derive(Debug)]
pub(super) struct Validation {
    pub(super) expression: Expression,
    pub(super) message: String,
    pub(super) message_expression: Option<Expression>,
    pub(super) reason: &'static str,
}

/// One annotation of the audit event.
#[derive(Debug)]
pub(super) struct Annotation {
    pub(super) key: String,
    pub(super) value: Expression,
}

/// One change.
#[derive(Debug)]
pub(super) enum Mutation {
    Apply(Expression),
    Patch(Expression),
}

/// The reasons that a policy may give.
const REASONS: &[&str] = &["Unauthorized", "Forbidden", "Invalid", "RequestEntityTooLarge"];

impl Policy {
    fn new(name: &str, identity: (String, i64), spec: &Value, is_mutating: bool) -> Self {
        let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let kind = &spec["paramKind"];
        let params = kind.is_object().then(|| (text(kind, "apiVersion"), text(kind, "kind")));
        let mut policy = Self {
            name: name.to_owned(),
            identity,
            matcher: Matcher::new(&spec["matchConstraints"]),
            conditions: MatchConditions::new(&spec["matchConditions"], params.is_some()),
            fails_closed: spec["failurePolicy"] != "Ignore",
            again: spec["reinvocationPolicy"] == "IfNeeded",
            variables: Vec::new(),
            broken: None,
            validations: Vec::new(),
            annotations: Vec::new(),
            mutations: Vec::new(),
            params,
        };
        if let Err(why) = policy.expressions(spec, is_mutating) {
            policy.broken = Some(why);
        }
        policy
    }

    fn expressions(&mut self, spec: &Value, is_mutating: bool) -> Result<(), String> {
        let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let composes = list(spec, "variables").next().is_some();
        let mut compiler = Compiler::new(self.params.is_some()).composing(composes);
        if is_mutating {
            compiler = compiler.mutating();
        }
        for variable in list(spec, "variables") {
            let name = text(variable, "name");
            let compiled = compiler.variable(&name, &text(variable, "expression"))?;
            self.variables.push((name.into(), compiled));
        }
        for validation in list(spec, "validations") {
            let message = text(validation, "messageExpression");
            let message_expression = (!message.trim().is_empty())
                .then(|| compiler.without_authorizer().compile(&message, Wanted::String))
                .transpose()?;
            let reason = validation["reason"].as_str().unwrap_or("Invalid");
            self.validations.push(Validation {
                expression: compiler.compile(&text(validation, "expression"), Wanted::Bool)?,
                message: text(validation, "message").trim().to_owned(),
                message_expression,
                reason: REASONS.iter().find(|r| **r == reason).copied().unwrap_or("Invalid"),
            });
        }
        for annotation in list(spec, "auditAnnotations") {
            let value = compiler.compile(text(annotation, "valueExpression").trim(), Wanted::StringOrNull)?;
            self.annotations.push(Annotation { key: text(annotation, "key"), value });
        }
        for mutation in list(spec, "mutations") {
            let expression = |key: &str| text(&mutation[key], "expression").trim().to_owned();
            self.mutations.push(if mutation["patchType"] == "JSONPatch" {
                Mutation::Patch(compiler.compile(&expression("jsonPatch"), Wanted::Patch)?)
            } else {
                Mutation::Apply(compiler.compile(&expression("applyConfiguration"), Wanted::Object)?)
            });
        }
        Ok(())
    }
}

/// A binding of a policy.
#[derive(Debug)]
pub(super) struct Binding {
    pub(super) name: String,
    policy: String,
    /// None: everything that the policy matches.
    pub(super) matcher: Option<Matcher>,
    pub(super) params: Option<ParamRef>,
    pub(super) denies: bool,
    pub(super) warns: bool,
    pub(super) audits: bool,
    /// As the binding lists them.
    pub(super) actions: Value,
}

/// Which parameters a binding uses.
#[derive(Debug)]
pub(super) struct ParamRef {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) selector: Option<LabelSelector>,
    /// Whether a request is refused where there are none.
    pub(super) required: bool,
}

impl Binding {
    fn new(name: &str, spec: &Value) -> Self {
        let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let action = |name: &str| list(spec, "validationActions").any(|a| a == name);
        let reference = &spec["paramRef"];
        let params = reference.is_object().then(|| ParamRef {
            name: text(reference, "name"),
            namespace: text(reference, "namespace"),
            selector: reference["selector"].is_object().then(|| {
                LabelSelector::from_value(&reference["selector"]).unwrap_or_else(|_| LabelSelector::nothing())
            }),
            required: reference["parameterNotFoundAction"] != "Allow",
        });
        Self {
            name: name.to_owned(),
            policy: text(spec, "policyName"),
            matcher: spec["matchResources"].is_object().then(|| Matcher::new(&spec["matchResources"])),
            params,
            denies: action("Deny"),
            warns: action("Warn"),
            audits: action("Audit"),
            actions: spec["validationActions"].clone(),
        }
    }
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}
