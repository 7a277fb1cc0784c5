//! Runs the rules on an object.

use api::field::{ErrorList, FieldError, Reason};
use serde_json::Value as Json;

use super::super::eval::Scope;
use super::super::value::Value;
use super::{Node, Rule, Rules};

/// What all rules together may cost for one object.
const BUDGET: u64 = 10_000_000;
/// Bytes of the longest message that an expression makes.
const MAX_MESSAGE: usize = 5 * 1024;

impl Rules {
    /// Runs the rules on a new object, or on a change of one. What is refused goes to `errors`; of values that were
    /// there before and did not change, the refusals come back as texts for `Warning` headers.
    pub fn validate(&self, new: &Json, old: Option<&Json>, errors: &mut ErrorList) -> Vec<String> {
        let mut run = Run { errors, warnings: Vec::new(), budget: BUDGET };
        if let Some(root) = &self.root {
            // running out of budget ends the validation; it said so
            let _ = run.node(root, "", new, old, Ratchet { old, parent: None });
        }
        run.warnings
    }
}

/// No rule is run any more.
struct Exhausted;

/// Whether a value is unchanged, and so an error about it is not the writer's.
#[derive(Clone, Copy)]
struct Ratchet<'a> {
    /// The value's own state before, if it can be told.
    old: Option<&'a Json>,
    /// Otherwise the nearest surrounding value that has one: now, before.
    parent: Option<(&'a Json, &'a Json)>,
}

impl<'a> Ratchet<'a> {
    fn unchanged(self, new: &Json) -> bool {
        match self.old {
            Some(old) => old == new,
            None => self.parent.is_some_and(|(new, old)| new == old),
        }
    }

    /// Of a part of `new`, whose state before is `old`.
    fn below(self, new: &'a Json, old: Option<&'a Json>) -> Self {
        Self { old, parent: self.old.map(|before| (new, before)).or(self.parent) }
    }
}

struct Run<'e> {
    errors: &'e mut ErrorList,
    warnings: Vec<String>,
    budget: u64,
}

impl Run<'_> {
    fn node(
        &mut self,
        node: &Node,
        path: &str,
        new: &Json,
        old: Option<&Json>,
        ratchet: Ratchet<'_>,
    ) -> Result<(), Exhausted> {
        if new.is_null() {
            return Ok(());
        }
        let old = old.filter(|o| !o.is_null());
        self.rules(node, path, new, old, ratchet)?;
        for branch in &node.all_of {
            self.node(branch, path, new, old, Ratchet { old: None, parent: ratchet.parent })?;
        }
        match new {
            Json::Array(list) => {
                let Some(items) = &node.items else { return Ok(()) };
                let before: &[Json] = old.and_then(Json::as_array).map_or(&[], Vec::as_slice);
                for (at, item) in list.iter().enumerate() {
                    let old = node.keys.as_ref().and_then(|keys| like(before, item, keys));
                    self.node(items, &format!("{path}[{at}]"), item, old, ratchet.below(new, old))?;
                }
            }
            Json::Object(map) => {
                for (key, value) in map {
                    let old = old.filter(|_| node.correlatable).and_then(|o| o.get(key));
                    let ratchet = ratchet.below(new, old);
                    if let Some(below) = &node.additional
                        && !node.properties.contains_key(key)
                    {
                        self.node(below, &format!("{path}[{key}]"), value, old, ratchet)?;
                    }
                    if let Some(below) = node.properties.get(key) {
                        self.node(below, &child(path, key), value, old, ratchet)?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn rules(
        &mut self,
        node: &Node,
        path: &str,
        new: &Json,
        old: Option<&Json>,
        ratchet: Ratchet<'_>,
    ) -> Result<(), Exhausted> {
        for rule in &node.rules {
            if rule.uses_old && old.is_none() && !rule.optional_old {
                continue;
            }
            if self.budget == 0 {
                return self.exhausted(node, path, new);
            }
            let before = old.map(|o| Value::part(o, Some(&node.decl)));
            let before = match (rule.optional_old, before) {
                (true, Some(value)) => Value::some(value),
                (true, None) => Value::Optional(None),
                (false, value) => value.unwrap_or(Value::Null),
            };
            let scope = Scope::new(vec![("self", Value::part(new, Some(&node.decl))), ("oldSelf", before)]);
            let (outcome, cost) = scope.eval(&rule.program.expr);
            let Some(left) = self.budget.checked_sub(cost) else { return self.exhausted(node, path, new) };
            self.budget = left;
            match outcome {
                Ok(Value::Bool(true)) => {}
                Ok(_) => {
                    let detail = self.message(rule, &scope, node, path, new)?;
                    let at = match rule.field_path.as_str() {
                        "" => path.to_owned(),
                        below if below.starts_with('[') => format!("{path}{below}"),
                        below => child(path, below),
                    };
                    let error = refusal(node, &at, new, rule.reason, &detail);
                    if !rule.uses_old && ratchet.unchanged(new) {
                        self.warnings.push(error.to_string());
                    } else {
                        self.errors.0.push(error);
                    }
                }
                Err(error) if error.is_too_much() => {
                    let why = format!(
                        "'{error}': no further validation rules will be run due to call cost exceeds limit for rule: {}",
                        rule.spoken()
                    );
                    self.refuse(node, path, new, &why);
                    return Err(Exhausted);
                }
                Err(error) if error.is_no_overload() => {
                    let why = format!(
                        "'{error}': call arguments did not match a supported operator, function or macro signature for rule: {}",
                        rule.spoken()
                    );
                    self.refuse(node, path, new, &why);
                }
                Err(error) => {
                    self.refuse(node, path, new, &format!("{error} evaluating rule: {}", rule.spoken()))
                }
            }
        }
        Ok(())
    }

    fn exhausted(&mut self, node: &Node, path: &str, new: &Json) -> Result<(), Exhausted> {
        let why =
            "validation failed due to running out of cost budget, no further validation rules will be run";
        self.refuse(node, path, new, why);
        Err(Exhausted)
    }

    fn refuse(&mut self, node: &Node, path: &str, new: &Json, why: &str) {
        self.errors.0.push(refusal(node, path, new, Reason::Invalid, why));
    }

    /// The text of a broken rule: what its expression makes, or its message, or the rule itself.
    fn message(
        &mut self,
        rule: &Rule,
        scope: &Scope<'_>,
        node: &Node,
        path: &str,
        new: &Json,
    ) -> Result<String, Exhausted> {
        if let Some((source, program)) = &rule.message_expression {
            let (outcome, cost) = scope.eval(&program.expr);
            let stopped = match (&outcome, self.budget.checked_sub(cost)) {
                (_, None) => Some(
                    "messageExpression evaluation failed due to running out of cost budget, no further validation rules will be run"
                        .to_owned(),
                ),
                (Err(e), _) if e.is_too_much() => Some(format!(
                    "no further validation rules will be run due to call cost exceeds limit for messageExpression: {source:?}"
                )),
                (_, Some(left)) => {
                    self.budget = left;
                    None
                }
            };
            if let Some(why) = stopped {
                self.refuse(node, path, new, &why);
                return Err(Exhausted);
            }
            if let Ok(Value::String(text)) = outcome {
                let text = text.trim();
                if !text.is_empty() && text.len() <= MAX_MESSAGE && !text.contains('\n') {
                    return Ok(text.to_owned());
                }
            }
        }
        Ok(if rule.message.is_empty() {
            format!("failed rule: {}", rule.spoken())
        } else {
            rule.message.clone()
        })
    }
}

impl Rule {
    /// What errors call it.
    fn spoken(&self) -> &str {
        if self.message.is_empty() { self.source.trim() } else { &self.message }
    }
}

fn child(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// The item of `list` with the same keys as `item`.
fn like<'a>(list: &'a [Json], item: &Json, keys: &[String]) -> Option<&'a Json> {
    list.iter().find(|old| keys.iter().all(|key| old.get(key) == item.get(key)))
}

/// One error; of objects and lists it leaves out the value, and the root is the reference's `<nil>`.
fn refusal(node: &Node, path: &str, value: &Json, reason: Reason, detail: &str) -> FieldError {
    let mut list = ErrorList::default();
    match reason {
        Reason::Forbidden => list.forbidden(path, detail),
        Reason::Required => list.required(path, detail),
        Reason::Duplicate if node.shows_value => list.duplicate(path, value),
        Reason::Duplicate => list.push(reason, path, "Duplicate value".to_owned()),
        _ if node.shows_value => list.invalid(path, value, detail),
        _ => list.push(Reason::Invalid, path, format!("Invalid value: {detail}")),
    }
    let mut error = list.0.remove(0);
    if error.field.is_empty() {
        error.field = "<nil>".to_owned();
    }
    error
}
