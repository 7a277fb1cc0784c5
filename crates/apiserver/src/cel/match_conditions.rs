//! `matchConditions` of webhooks and policies: whether a request is one they care for.
//!
//! Rule: Kubernetes documentation, "Matching requests: matchConditions".

use std::collections::HashSet;

use api::field::ErrorList;
use api::names;
use serde_json::{Value, json};

use super::admission::{Compiler, Evaluation, Expression, Inputs, Wanted};

/// Conditions of one webhook or policy, at most.
const MAX: usize = 64;
/// What all conditions of one webhook or policy may cost.
const BUDGET: u64 = 2_500_000;

/// Checked conditions.
#[derive(Debug, Default)]
pub struct MatchConditions {
    conditions: Vec<(String, Result<Expression, String>)>,
}

/// What conditions say of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Matched {
    /// All hold.
    Yes,
    /// One does not.
    No,
    /// None says no, but not all could be evaluated: the failure policy decides.
    Unknown(String),
}

impl MatchConditions {
    /// Of a `matchConditions` list; `params`: conditions may read `params`.
    pub fn new(list: &Value, params: bool) -> Self {
        let compiler = Compiler::new(params);
        let conditions = list.as_array().into_iter().flatten().map(|condition| {
            let text = |key: &str| condition[key].as_str().unwrap_or_default();
            let compiled = compiler.compile(text("expression").trim(), Wanted::Bool);
            (text("name").to_owned(), compiled.map_err(|e| format!("compilation error: {e}")))
        });
        Self { conditions: conditions.collect() }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.conditions.is_empty()
    }

    /// What they say of a request.
    pub fn matches(&self, inputs: &Inputs<'_>) -> Matched {
        if self.conditions.is_empty() {
            return Matched::Yes;
        }
        let mut evaluation = Evaluation::new(inputs, &[], BUDGET);
        let mut failures: Vec<String> = Vec::new();
        for (_, condition) in &self.conditions {
            let outcome = match condition {
                Ok(expression) => evaluation.bool(expression),
                Err(why) => Err(why.clone()),
            };
            match outcome {
                Ok(true) => {}
                Ok(false) => return Matched::No,
                Err(why) => failures.push(why),
            }
        }
        match failures.as_slice() {
            [] => Matched::Yes,
            [one] => Matched::Unknown(one.clone()),
            more => Matched::Unknown(format!("[{}]", more.join(", "))),
        }
    }
}

/// Refuses wrong conditions when they are stored.
pub fn validate(list: &Value, path: &str, params: bool, errors: &mut ErrorList) {
    let conditions: &[Value] = list.as_array().map_or(&[], Vec::as_slice);
    if conditions.len() > MAX {
        errors.too_many(path, conditions.len(), MAX);
    }
    let compiler = Compiler::new(params);
    let mut seen = HashSet::new();
    for (at, condition) in conditions.iter().enumerate() {
        let text = |key: &str| condition[key].as_str().unwrap_or_default();
        let (name, expression) = (text("name"), text("expression").trim());
        let field = |key: &str| format!("{path}[{at}].{key}");
        if expression.is_empty() {
            errors.required(&field("expression"), "");
        } else if let Err(why) = compiler.compile(expression, Wanted::Bool) {
            errors.invalid(&field("expression"), &json!(expression), &why);
        }
        if name.is_empty() {
            errors.required(&field("name"), "");
        } else {
            errors.invalid_all(&field("name"), &json!(name), names::qualified_name(name));
            if !seen.insert(name) {
                errors.duplicate(&field("name"), &json!(name));
            }
        }
    }
}
