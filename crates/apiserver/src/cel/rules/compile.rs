//! Reads and checks the rules of a schema.

use std::collections::BTreeMap;

use api::field::{ErrorList, Reason};
use serde_json::{Value, json};

use super::super::Program;
use super::super::check::Env;
use super::super::decl::{self, Decl, Level, MAX_REQUEST};
use super::super::estimate::estimate;
use super::super::types::Type;
use super::{Node, Rule, Rules, field_path};

/// What one rule may cost at worst.
const RULE_LIMIT: u64 = 10_000_000;
/// What all rules of a definition may cost at worst.
const TOTAL_LIMIT: u64 = 100_000_000;
const REASONS: &[(&str, Reason)] = &[
    ("FieldValueDuplicate", Reason::Duplicate),
    ("FieldValueForbidden", Reason::Forbidden),
    ("FieldValueInvalid", Reason::Invalid),
    ("FieldValueRequired", Reason::Required),
];

/// Compiles the rules of one version's `openAPIV3Schema`, which stands at `path` of its definition
/// (`spec.validation.openAPIV3Schema`). The schema is structural.
///
/// # Errors
///
/// All rules that do not check or may cost too much, as the definition's refusal lists them.
pub fn compile(schema: &Value, path: &str) -> Result<Rules, ErrorList> {
    let (root, errors) = compiled(schema, path, &ErrorList::default());
    if errors.is_empty() { Ok(Rules { root }) } else { Err(errors) }
}

/// What is wrong with the rules of a schema; of a level nothing is said where something else is `wrong` in it or below.
pub fn check(schema: &Value, path: &str, wrong: &ErrorList) -> ErrorList {
    compiled(schema, path, wrong).1
}

fn compiled(schema: &Value, path: &str, wrong: &ErrorList) -> (Option<Node>, ErrorList) {
    let mut compiler = Compiler { wrong, errors: ErrorList::default(), total: 0, expensive: Vec::new() };
    let place = Place { cardinality: Some(1), forbids_old: None, root: true };
    let root = compiler.node(schema, schema, path, &place);
    if compiler.total > TOTAL_LIMIT {
        compiler.expensive.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
        for (path, _) in compiler.expensive.iter().take(4) {
            compiler.errors.forbidden(
                path,
                "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema",
            );
        }
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        compiler.errors.forbidden(path, &too_expensive(what, compiler.total, TOTAL_LIMIT));
    }
    (root, compiler.errors)
}

struct Compiler<'a> {
    /// What is wrong with the schema besides its rules.
    wrong: &'a ErrorList,
    errors: ErrorList,
    total: u64,
    /// Rules that make up one hundredth of the limit or more.
    expensive: Vec<(String, u64)>,
}

/// What surrounds a level of the schema.
#[derive(Clone)]
struct Place {
    /// How often the level can occur in one object; none: as often as fits a request.
    cardinality: Option<u64>,
    /// The list or map whose items cannot be told from those before.
    forbids_old: Option<String>,
    /// Whether the level is a whole object.
    root: bool,
}

fn too_expensive(what: &str, cost: u64, limit: u64) -> String {
    let times = cost as f64 / limit as f64;
    let factor = if times > 100.0 {
        "more than 100x".to_owned()
    } else if times < 1.5 {
        format!("{times:.6}x")
    } else {
        format!("{times:.1}x")
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}

impl Compiler<'_> {
    /// The rules of `schema` and below. `spine` is the structural schema of the same level: `schema` itself, or what a
    /// branch of `allOf` adds rules to.
    fn node(&mut self, schema: &Value, spine: &Value, path: &str, place: &Place) -> Option<Node> {
        if !has_rules(schema) {
            return None;
        }
        let level = if place.root { Level::Resource } else { Level::Part };
        // what has no type cannot be spoken of, nor can anything below it
        let decl = decl::structural(spine, level, "selfType")?;
        let keys = || {
            let keys = spine["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
            keys.filter_map(Value::as_str).map(str::to_owned).collect::<Vec<String>>()
        };
        let keys = (spine["x-kubernetes-list-type"] == "map").then(keys);
        let correlatable = spine["x-kubernetes-map-type"] != "atomic";
        let below = |limit: &str, root: bool| Place {
            cardinality: match spine[limit].as_u64() {
                _ if limit.is_empty() => place.cardinality,
                max => place.cardinality.zip(max).map(|(a, b)| a.saturating_mul(b)),
            },
            forbids_old: place.forbids_old.clone(),
            root,
        };
        let embedded = |schema: &Value| schema["x-kubernetes-embedded-resource"] == true;
        let mut properties = BTreeMap::new();
        for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
            let Some(spine) = spine["properties"].get(name) else { continue };
            let mut place = below("", embedded(spine));
            if !correlatable {
                place.forbids_old.get_or_insert_with(|| path.to_owned());
            }
            if let Some(node) = self.node(schema, spine, &format!("{path}.properties[{name}]"), &place) {
                properties.insert(name.clone(), node);
            }
        }
        let additional = match (&schema["additionalProperties"], &spine["additionalProperties"]) {
            (schema @ Value::Object(_), spine @ Value::Object(_)) => {
                let place = below("maxProperties", embedded(spine));
                self.node(schema, spine, &format!("{path}.additionalProperties"), &place).map(Box::new)
            }
            _ => None,
        };
        let items = match (&schema["items"], &spine["items"]) {
            (schema @ Value::Object(_), spine @ Value::Object(_)) => {
                let mut place = below("maxItems", embedded(spine));
                if keys.is_none() {
                    place.forbids_old.get_or_insert_with(|| path.to_owned());
                }
                self.node(schema, spine, &format!("{path}.items"), &place).map(Box::new)
            }
            _ => None,
        };
        let mut all_of = Vec::new();
        for (at, branch) in schema["allOf"].as_array().into_iter().flatten().enumerate() {
            all_of.extend(self.node(branch, spine, &format!("{path}.allOf[{at}]"), place));
        }
        let mut rules = Vec::new();
        let list = schema["x-kubernetes-validations"].as_array().filter(|_| self.is_sound(path));
        for (at, rule) in list.into_iter().flatten().enumerate() {
            let path = format!("{path}.x-kubernetes-validations[{at}]");
            rules.extend(self.rule(rule, spine, &decl, &path, place));
        }
        let shows_value = !matches!(spine["type"].as_str(), Some("object" | "array"));
        Some(Node { rules, decl, shows_value, properties, additional, items, all_of, keys, correlatable })
    }

    fn rule(&mut self, rule: &Value, schema: &Value, decl: &Decl, path: &str, place: &Place) -> Option<Rule> {
        let text = |key: &str| rule[key].as_str().unwrap_or_default();
        let (source, message, expression) = (text("rule"), text("message"), text("messageExpression"));
        if source.trim().is_empty() {
            return None;
        }
        let reason = REASONS.iter().find(|(name, _)| *name == text("reason"));
        let reason = reason.map_or(Reason::Invalid, |(_, known)| *known);
        let optional_old = rule["optionalOldSelf"] == true;
        let mut env = Env::default();
        env.declare("self", decl.ty());
        env.declare("oldSelf", if optional_old { Type::optional(decl.ty()) } else { decl.ty() });
        let shown = shown(rule);
        let at = |key: &str| format!("{path}.{key}");
        let refuse = |errors: &mut ErrorList, key: &str, why: &str| {
            errors.push(Reason::Invalid, &at(key), format!("Invalid value: {shown}: {why}"));
        };
        let unused_old = |errors: &mut ErrorList| {
            if let Some(optional) = rule.get("optionalOldSelf").filter(|o| !o.is_null()) {
                let why = "may not be set if oldSelf is not used in rule";
                errors.invalid(&at("optionalOldSelf"), optional, why);
            }
        };
        let program = match Program::compile(&env, source) {
            Ok(program) if program.ty().is_bool() => program,
            other => {
                let why = other.err().unwrap_or_else(|| "cel expression must evaluate to a bool".to_owned());
                refuse(&mut self.errors, "rule", &why);
                unused_old(&mut self.errors);
                return None;
            }
        };
        let times = place.cardinality.unwrap_or_else(|| MAX_REQUEST / (decl.min_size + 1));
        self.afford(&program, decl, times, &at("rule"), "estimated rule cost");
        let mut message_expression = None;
        if !expression.trim().is_empty() {
            match Program::compile(&env, expression) {
                Ok(program) if matches!(program.ty(), Type::String) => {
                    let what = "estimated messageExpression cost";
                    // a message is made once, where the first of its rules fails
                    self.afford(&program, decl, 1, &at("messageExpression"), what);
                    message_expression = Some((expression.to_owned(), program));
                }
                Ok(_) => {
                    let why = "messageExpression must evaluate to a string";
                    refuse(&mut self.errors, "messageExpression", why);
                }
                Err(why) => {
                    refuse(&mut self.errors, "messageExpression", &format!("messageExpression {why}"));
                }
            }
        }
        let uses_old = program.reads("oldSelf");
        if uses_old {
            if let Some(list) = &place.forbids_old {
                let why = format!(
                    "oldSelf cannot be used on the uncorrelatable portion of the schema within {list}"
                );
                self.errors.invalid(&at("rule"), &json!(source), &why);
            }
        } else {
            unused_old(&mut self.errors);
        }
        let field_path = match text("fieldPath") {
            "" => String::new(),
            given => field_path::normalize(given.trim(), schema).unwrap_or_default(),
        };
        Some(Rule {
            source: source.to_owned(),
            program,
            uses_old,
            optional_old,
            message: message.trim().to_owned(),
            message_expression,
            reason,
            field_path,
        })
    }

    /// Whether nothing is wrong with the schema at `path` and below.
    fn is_sound(&self, path: &str) -> bool {
        let is_here = |field: &str| {
            field.strip_prefix(path).is_some_and(|rest| !rest.starts_with(char::is_alphanumeric))
        };
        !self.wrong.0.iter().any(|error| is_here(&error.field))
    }

    /// Refuses what may cost too much, and adds it up.
    fn afford(&mut self, program: &Program, decl: &Decl, times: u64, path: &str, what: &str) {
        let once = estimate(&program.expr, &["self", "oldSelf"], decl).max;
        let cost = once.saturating_mul(times);
        if cost > RULE_LIMIT {
            self.errors.forbidden(path, &too_expensive(what, cost, RULE_LIMIT));
        }
        self.total = self.total.saturating_add(cost);
        if cost >= TOTAL_LIMIT / 100 {
            self.expensive.push((path.to_owned(), cost));
        }
    }
}

/// Whether a schema has rules here or below.
fn has_rules(schema: &Value) -> bool {
    let some = |v: &Value| v.as_array().is_some_and(|l| !l.is_empty());
    some(&schema["x-kubernetes-validations"])
        || schema["properties"].as_object().is_some_and(|p| p.values().any(has_rules))
        || has_rules_below(&schema["additionalProperties"])
        || has_rules_below(&schema["items"])
        || schema["allOf"].as_array().is_some_and(|l| l.iter().any(has_rules))
}

fn has_rules_below(schema: &Value) -> bool {
    schema.is_object() && has_rules(schema)
}

/// A rule as errors print it: the members of the internal type, in their order.
fn shown(rule: &Value) -> String {
    let text = |key: &str| rule[key].as_str().unwrap_or_default();
    let or_null = |key: &str| rule.get(key).cloned().unwrap_or(Value::Null).to_string();
    let quoted = |key: &str| {
        let plain = json!(text(key)).to_string();
        plain.replace('&', "\\u0026").replace('<', "\\u003c").replace('>', "\\u003e")
    };
    format!(
        "{{\"Rule\":{},\"Message\":{},\"MessageExpression\":{},\"Reason\":{},\"FieldPath\":{},\"OptionalOldSelf\":{}}}",
        quoted("rule"),
        quoted("message"),
        quoted("messageExpression"),
        or_null("reason"),
        quoted("fieldPath"),
        or_null("optionalOldSelf"),
    )
}
