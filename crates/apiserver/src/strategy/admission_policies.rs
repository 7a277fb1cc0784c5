//! Admission policies and their bindings: defaults and validation, expressions included.
//!
//! Rule: `pkg/apis/admissionregistration/validation` of the reference; bad expressions are refused when they are stored.

use std::collections::HashSet;

use api::field::{Cursor, ErrorList};
use api::jsonpath::JsonPath;
use api::names;
use serde_json::{Value, json};

use super::parts::Parts;
use super::tree::{child, each, make, put_absent};
use super::webhooks::{one_of, rule_with_operations};
use super::{label_selector, texts};
use crate::cel::admission::{Compiler, Wanted, is_identifier};
use crate::cel::match_conditions;

/// Audit annotations of one policy.
const MAX_ANNOTATIONS: usize = 20;
/// Bytes of the expression of an audit annotation.
const MAX_ANNOTATION: usize = 5 * 1024;
const FAILURE_POLICIES: &[&str] = &["Fail", "Ignore"];

pub(super) static POLICY: Parts = Parts {
    status_keeps: super::generic::OWN_META,
    default: |o| {
        let Some(spec) = make(o, "spec") else { return };
        put_absent(spec, "failurePolicy", "Fail");
        if let Some(constraints) = child(spec, "matchConstraints") {
            default_resources(constraints);
        }
    },
    validate: |o, errors| {
        if o["kind"] == "MutatingAdmissionPolicy" {
            mutating(o, errors);
        } else {
            validating(o, errors);
        }
    },
    validate_status: |new, _, errors| {
        let status = Cursor::root(new).key("status");
        for warning in status.key("typeChecking").key("expressionWarnings").items() {
            expression_warning(&warning, errors);
        }
        texts::conditions(&status.key("conditions"), errors);
    },
    warn: reserved_name,
    unconditional_update: false,
    ..Parts::PLAIN
};

/// A warning about a new object whose name will belong to those that come from files.
pub(super) fn reserved_name(new: &Value, old: Option<&Value>) -> Vec<String> {
    const SUFFIX: &str = ".static.k8s.io";
    if old.is_some() || !api::meta::name(new).ends_with(SUFFIX) {
        return Vec::new();
    }
    vec![format!(
        "metadata.name: names ending with {SUFFIX:?} will be reserved for static manifest-based configurations when the ManifestBasedAdmissionControlConfig feature gate is enabled"
    )]
}

/// What the check of types found, and where.
fn expression_warning(at: &Cursor<'_>, errors: &mut ErrorList) {
    let (warning, field) = (at.key("warning"), at.key("fieldRef"));
    if warning.str().is_empty() {
        errors.required(&warning.path, "");
    }
    let path = field.str().trim();
    if path.is_empty() {
        errors.required(&field.path, "");
    } else if let Err(why) = JsonPath::parse(&format!("{{{path}}}")) {
        errors.invalid(&field.path, &json!(path), &format!("invalid JSONPath: {why}"));
    }
}

pub(super) static BINDING: Parts = Parts {
    default: |o| {
        if let Some(resources) = make(o, "spec").and_then(|s| child(s, "matchResources")) {
            default_resources(resources);
        }
    },
    validate: binding,
    warn: reserved_name,
    status: false,
    unconditional_update: false,
    ..Parts::PLAIN
};

fn default_resources(constraints: &mut Value) {
    put_absent(constraints, "matchPolicy", "Equivalent");
    make(constraints, "namespaceSelector");
    make(constraints, "objectSelector");
    for list in ["resourceRules", "excludeResourceRules"] {
        for rule in each(constraints, list) {
            put_absent(rule, "scope", "*");
        }
    }
}

/// What both kinds of policy have; the compiler knows the variables afterwards.
fn common(o: &Value, compiler: &mut Compiler, errors: &mut ErrorList) {
    let spec = Cursor::root(o).key("spec");
    let policy = spec.key("failurePolicy");
    if policy.exists() {
        one_of(&policy, FAILURE_POLICIES, errors);
    } else {
        errors.required(&policy.path, "");
    }
    let kind = spec.key("paramKind");
    if kind.exists() {
        param_kind(&kind, errors);
    }
    let constraints = spec.key("matchConstraints");
    if constraints.exists() {
        match_resources(&constraints, errors);
        let rules = constraints.key("resourceRules");
        if rules.is_empty() {
            errors.required(&rules.path, "");
        }
    } else {
        errors.required(&constraints.path, "");
    }
    let conditions = spec.key("matchConditions");
    match_conditions::validate(conditions.json(), &conditions.path, kind.exists(), errors);
    for variable in spec.key("variables").items() {
        let (name, expression) = (variable.key("name"), variable.key("expression"));
        if name.str().trim().is_empty() {
            errors.required(&name.path, "name is not specified");
        } else if !is_identifier(name.str()) {
            errors.invalid(&name.path, name.json(), "must be a valid CEL identifier");
        }
        if expression.str().trim().is_empty() {
            errors.required(&expression.path, "expression is not specified");
        } else if let Err(why) = compiler.variable(name.str(), expression.str()) {
            errors.invalid(&expression.path, expression.json(), &why);
        }
    }
}

fn compiler(spec: &Cursor<'_>) -> Compiler {
    Compiler::new(spec.key("paramKind").exists()).composing(!spec.key("variables").is_empty())
}

fn validating(o: &Value, errors: &mut ErrorList) {
    let spec = Cursor::root(o).key("spec");
    let mut compiler = compiler(&spec);
    common(o, &mut compiler, errors);
    let (validations, annotations) = (spec.key("validations"), spec.key("auditAnnotations"));
    if validations.is_empty() && annotations.is_empty() {
        for list in [&validations, &annotations] {
            errors.required(&list.path, "validations or auditAnnotations must contain at least one item");
        }
        return;
    }
    for one in validations.items() {
        validation(&one, &compiler, errors);
    }
    if annotations.len() > MAX_ANNOTATIONS {
        let why = format!("must not have more than {MAX_ANNOTATIONS} auditAnnotations");
        errors.invalid(&annotations.path, annotations.json(), &why);
    }
    let mut seen = HashSet::new();
    for annotation in annotations.items() {
        audit_annotation(&annotation, api::meta::name(o), &compiler, errors);
        let key = annotation.key("key");
        if !seen.insert(key.str()) {
            errors.duplicate(&key.path, &json!(key.str()));
        }
    }
}

fn validation(at: &Cursor<'_>, compiler: &Compiler, errors: &mut ErrorList) {
    let (expression, message, made) = (at.key("expression"), at.key("message"), at.key("messageExpression"));
    if expression.str().trim().is_empty() {
        errors.required(&expression.path, "expression is not specified");
    } else {
        compiles(&expression, compiler, Wanted::Bool, errors);
    }
    if made.exists() && !made.str().is_empty() {
        if made.str().trim().is_empty() {
            errors.invalid(&made.path, made.json(), "must be non-empty if specified");
        } else {
            compiles(&made, &compiler.without_authorizer(), Wanted::String, errors);
        }
    }
    if !message.str().is_empty() && message.str().trim().is_empty() {
        errors.invalid(&message.path, message.json(), "message must be non-empty if specified");
    } else if message.str().trim().contains(['\n', '\r']) {
        errors.invalid(&message.path, message.json(), "message must not contain line breaks");
    }
    one_of(&at.key("reason"), &["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"], errors);
}

fn compiles(at: &Cursor<'_>, compiler: &Compiler, wanted: Wanted, errors: &mut ErrorList) {
    if let Err(why) = compiler.compile(at.str(), wanted) {
        errors.invalid(&at.path, at.json(), &why);
    }
}

fn audit_annotation(at: &Cursor<'_>, policy: &str, compiler: &Compiler, errors: &mut ErrorList) {
    let (key, value) = (at.key("key"), at.key("valueExpression"));
    if policy.is_empty() {
        errors.invalid(&key.path, &json!(key.str()), "requires metadata.name be non-empty");
    } else {
        let full = format!("{policy}/{}", key.str());
        errors.invalid_all(&key.path, &json!(full), names::qualified_name(&full));
    }
    let trimmed = value.str().trim();
    if trimmed.is_empty() {
        errors.required(&value.path, "valueExpression is not specified");
    } else if trimmed.len() > MAX_ANNOTATION {
        errors.required(&value.path, &format!("must not exceed {MAX_ANNOTATION} bytes in length"));
    } else if let Err(why) = compiler.compile(trimmed, Wanted::StringOrNull) {
        errors.invalid(&value.path, value.json(), &why);
    }
}

fn mutating(o: &Value, errors: &mut ErrorList) {
    let spec = Cursor::root(o).key("spec");
    let mut compiler = compiler(&spec).mutating();
    common(o, &mut compiler, errors);
    let mutations = spec.key("mutations");
    if mutations.is_empty() {
        errors.required(&mutations.path, "mutations must contain at least one item");
    }
    for one in mutations.items() {
        mutation(&one, &compiler, errors);
    }
    let again = spec.key("reinvocationPolicy");
    if again.str().is_empty() {
        errors.required(&again.path, "");
    } else {
        one_of(&again, &["IfNeeded", "Never"], errors);
    }
}

fn mutation(at: &Cursor<'_>, compiler: &Compiler, errors: &mut ErrorList) {
    let kind = at.key("patchType");
    let (own, other, wanted) = match kind.str() {
        "" => {
            errors.required(&kind.path, "");
            return;
        }
        "JSONPatch" => ("jsonPatch", "applyConfiguration", Wanted::Patch),
        "ApplyConfiguration" => ("applyConfiguration", "jsonPatch", Wanted::Object),
        _ => {
            errors.not_supported(&kind.path, kind.json(), &["ApplyConfiguration", "JSONPatch"]);
            return;
        }
    };
    let (own, unwanted) = (at.key(own), at.key(other));
    if own.exists() {
        let expression = own.key("expression");
        let trimmed = expression.str().trim();
        if trimmed.is_empty() {
            errors.required(&expression.path, "");
        } else if let Err(why) = compiler.compile(trimmed, wanted) {
            errors.invalid(&expression.path, &json!(trimmed), &why);
        }
    } else {
        errors.required(&own.path, &format!("must be specified when patchType is {}", kind.str()));
    }
    if unwanted.exists() {
        let why = format!("must not be specified when patchType is {}", kind.str());
        errors.invalid(&unwanted.path, &json!(format!("{{{other}}}")), &why);
    }
}

fn param_kind(at: &Cursor<'_>, errors: &mut ErrorList) {
    let (version, kind) = (at.key("apiVersion"), at.key("kind"));
    let text = version.str();
    match text.split('/').collect::<Vec<_>>().as_slice() {
        [""] => errors.required(&version.path, ""),
        [_, _, _, ..] => {
            let why = format!("unexpected GroupVersion string: {text}");
            errors.invalid(&version.path, version.json(), &why);
        }
        parts => {
            let (group, number) = match parts {
                [group, number] => (*group, *number),
                _ => ("", text),
            };
            let wrong = names::dns1123_subdomain(group);
            if !group.is_empty() && !wrong.is_empty() {
                errors.invalid(&version.path, &json!(group), &wrong.join(","));
            }
            let wrong = names::dns1035_label(number);
            if number.is_empty() {
                errors.invalid(&version.path, version.json(), "version must be specified");
            } else if !wrong.is_empty() {
                errors.invalid(&version.path, &json!(number), &wrong.join(","));
            }
        }
    }
    let wrong = names::dns1035_label(&kind.str().to_lowercase());
    if kind.str().is_empty() {
        errors.required(&kind.path, "");
    } else if !wrong.is_empty() {
        let why = format!("may have mixed case, but should otherwise match: {}", wrong.join(","));
        errors.invalid(&kind.path, kind.json(), &why);
    }
}

fn match_resources(at: &Cursor<'_>, errors: &mut ErrorList) {
    let policy = at.key("matchPolicy");
    if policy.exists() {
        one_of(&policy, &["Equivalent", "Exact"], errors);
    } else {
        errors.required(&policy.path, "");
    }
    for key in ["namespaceSelector", "objectSelector"] {
        label_selector::validate(&at.key(key), errors);
    }
    for list in ["resourceRules", "excludeResourceRules"] {
        for rule in at.key(list).items() {
            let mut seen = HashSet::new();
            for name in rule.key("resourceNames").items() {
                errors.invalid_all(&name.path, name.json(), names::path_segment(name.str()));
                if !seen.insert(name.str()) {
                    errors.duplicate(&name.path, name.json());
                }
            }
            rule_with_operations(&rule, errors);
        }
    }
}

fn binding(o: &Value, errors: &mut ErrorList) {
    let spec = Cursor::root(o).key("spec");
    let policy = spec.key("policyName");
    if policy.str().is_empty() {
        errors.required(&policy.path, "");
    } else {
        errors.invalid_all(&policy.path, policy.json(), names::dns1123_subdomain(policy.str()));
    }
    let reference = spec.key("paramRef");
    if reference.exists() {
        param_ref(&reference, errors);
    }
    let resources = spec.key("matchResources");
    if let Some(value) = resources.value {
        // the path is misspelt in the reference, and clients see it so
        match_resources(&Cursor::at(value, "spec.matchResouces"), errors);
    }
    if o["kind"] == "ValidatingAdmissionPolicyBinding" {
        validation_actions(&spec.key("validationActions"), errors);
    }
}

fn param_ref(at: &Cursor<'_>, errors: &mut ErrorList) {
    let (name, selector) = (at.key("name"), at.key("selector"));
    let exclusive = "name and selector are mutually exclusive";
    if !name.str().is_empty() {
        errors.invalid_all(&name.path, name.json(), names::path_segment(name.str()));
        if selector.exists() {
            errors.forbidden(&name.path, exclusive);
        }
    }
    if selector.exists() {
        label_selector::validate(&selector, errors);
        if !name.str().is_empty() {
            errors.forbidden(&selector.path, exclusive);
        }
    } else if name.str().is_empty() {
        errors.required(&at.path, "one of name or selector must be specified");
    }
    let action = at.key("parameterNotFoundAction");
    if action.str().is_empty() {
        errors.required(&action.path, "");
    } else {
        one_of(&action, &["Deny", "Allow"], errors);
    }
}

fn validation_actions(at: &Cursor<'_>, errors: &mut ErrorList) {
    let mut seen = HashSet::new();
    for action in at.items() {
        one_of(&action, &["Audit", "Deny", "Warn"], errors);
        if !seen.insert(action.str()) {
            errors.duplicate(&action.path, action.json());
        }
    }
    if seen.contains("Deny") && seen.contains("Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        errors.invalid(&at.path, at.json(), why);
    }
    if seen.is_empty() {
        errors.required(&at.path, "at least one validation action is required");
    }
}
