//! Validating policies: all that a request concerns are asked; the first refusal is the answer.

use api::meta;
use serde_json::{Value, json};

use super::compile::{Policy, Validation};
use super::inputs::{self, Shown};
use super::select::{self, Invocation};
use super::{Complaint, Policies, is_exempt};
use crate::admission::chain::{Notes, Request};
use crate::cel::admission::{BUDGET, Evaluation};
use crate::cel::match_conditions::Matched;
use crate::convert;
use crate::pipeline::ApiServer;
use crate::status::{ApiError, ApiResult};

/// Bytes of the longest message that an expression makes.
const MAX_MESSAGE: usize = 5 * 1024;
/// Bytes of the longest audit annotation.
const MAX_ANNOTATION: usize = 10 * 1024;
const FAILURES: &str = "validation.policy.admission.k8s.io/validation_failure";

/// What one expression decides.
struct Decision {
    /// The place of the validation in its policy.
    index: usize,
    message: String,
    reason: &'static str,
}

/// What a policy leaves.
#[derive(Default)]
struct Outcome {
    refused: Vec<Decision>,
    annotations: Vec<(String, String)>,
}

impl Policies {
    /// Refuses what a validating policy refuses. `object` is null on deletion.
    pub fn validate(
        &self,
        server: &ApiServer,
        request: &Request<'_>,
        object: &Value,
        notes: &mut Notes,
    ) -> ApiResult<()> {
        let cache = server.registry.cache();
        let compiled = self.current(cache);
        if compiled.validating.is_empty() || is_exempt(request) {
            return Ok(());
        }
        let (invocations, complaints) =
            select::invocations(cache, &server.kinds.now(), &compiled.validating, request, object);
        let mut denied: Vec<(Complaint, &'static str)> =
            complaints.into_iter().map(|c| (c, "Invalid")).collect();
        let mut failures: Vec<Value> = Vec::new();
        if !invocations.is_empty() {
            let namespace = inputs::namespace(server, request)?;
            for invocation in &invocations {
                let shown = Shown::new(server, request, &invocation.kind, namespace.clone());
                let seen = convert::shown_now(&invocation.kind, request.object_type, object);
                let outcome = ask(invocation, &shown, &seen);
                for (key, value) in outcome.annotations {
                    annotate(notes, format!("{}/{key}", invocation.policy.name), value);
                }
                for decision in outcome.refused {
                    act(invocation, &decision, &mut denied, &mut failures, notes);
                }
            }
        }
        if !failures.is_empty() {
            notes.annotations.insert(FAILURES.to_owned(), Value::from(failures).to_string());
        }
        match denied.into_iter().next() {
            None => Ok(()),
            Some((complaint, reason)) => Err(denial(request, object, &complaint, reason)),
        }
    }
}

fn act(
    invocation: &Invocation<'_>,
    decision: &Decision,
    denied: &mut Vec<(Complaint, &'static str)>,
    failures: &mut Vec<Value>,
    notes: &mut Notes,
) {
    let (policy, binding) = (invocation.policy, invocation.binding);
    if binding.denies {
        let complaint = Complaint {
            policy: policy.name.clone(),
            binding: Some(binding.name.clone()),
            message: decision.message.clone(),
        };
        denied.push((complaint, decision.reason));
    }
    if binding.audits {
        failures.push(json!({"message": decision.message, "policy": policy.name, "binding": binding.name,
            "expressionIndex": decision.index, "validationActions": binding.actions}));
    }
    if binding.warns {
        notes.warnings.push(format!(
            "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
            policy.name, binding.name, decision.message
        ));
    }
}

/// Adds to an annotation what it does not say yet.
fn annotate(notes: &mut Notes, key: String, value: String) {
    let known = notes.annotations.entry(key).or_default();
    if known.is_empty() {
        *known = value;
    } else if !known.split(", ").any(|part| part == value) {
        known.push_str(", ");
        known.push_str(&value);
    }
}

/// `pods "x" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: WHY`, with the code of the reason.
fn denial(request: &Request<'_>, object: &Value, complaint: &Complaint, reason: &'static str) -> ApiError {
    let with = complaint.binding.as_ref().map(|b| format!(" with binding '{b}'")).unwrap_or_default();
    let message = format!(
        "ValidatingAdmissionPolicy '{}'{with} denied request: {}",
        complaint.policy, complaint.message
    );
    let code = match reason {
        "Unauthorized" => 401,
        "Forbidden" => 403,
        "RequestEntityTooLarge" => 413,
        _ => 422,
    };
    ApiError::forbidden(request.kind, name_of(request, object), &message)
        .with_detail("causes", json!([{"message": message}]))
        .with_reason(reason)
        .with_code(code)
}

/// What errors call the object.
pub(super) fn name_of<'a>(request: &Request<'a>, object: &'a Value) -> &'a str {
    [request.name, meta::name(object), meta::text(object, "generateName")]
        .into_iter()
        .find(|n| !n.is_empty())
        .unwrap_or("Unknown")
}

/// Asks one policy, with one binding and one parameter.
fn ask(invocation: &Invocation<'_>, shown: &Shown, object: &Value) -> Outcome {
    let policy = invocation.policy;
    let inputs = shown.inputs(object, &invocation.params);
    let mut outcome = Outcome::default();
    match policy.conditions.matches(&inputs) {
        Matched::Yes => {}
        Matched::No => return outcome,
        Matched::Unknown(why) => {
            if policy.fails_closed {
                outcome.refused.push(Decision { index: 0, message: why, reason: "Invalid" });
            }
            return outcome;
        }
    }
    let mut evaluation = Evaluation::new(&inputs, &policy.variables, BUDGET);
    for (index, validation) in policy.validations.iter().enumerate() {
        match evaluation.bool(&validation.expression) {
            Ok(true) => {}
            Ok(false) => outcome.refused.push(Decision {
                index,
                message: message(validation, &mut evaluation),
                reason: validation.reason,
            }),
            Err(why) => failed(policy, index, why, &mut outcome),
        }
    }
    for (index, annotation) in policy.annotations.iter().enumerate() {
        match evaluation.text(&annotation.value) {
            Ok(Some(mut value)) if !value.trim().is_empty() => {
                let end = (0..=MAX_ANNOTATION.min(value.len())).rev().find(|at| value.is_char_boundary(*at));
                value.truncate(end.unwrap_or_default());
                outcome.annotations.push((annotation.key.clone(), value));
            }
            Ok(_) => {}
            Err(why) => failed(policy, index, why, &mut outcome),
        }
    }
    outcome
}

fn failed(policy: &Policy, index: usize, why: String, outcome: &mut Outcome) {
    if policy.fails_closed {
        outcome.refused.push(Decision { index, message: why, reason: "Invalid" });
    }
}

/// The text of a validation that does not hold: what its expression makes, or its message, or the expression itself.
fn message(validation: &Validation, evaluation: &mut Evaluation<'_>) -> String {
    if let Some(expression) = &validation.message_expression {
        match evaluation.text(expression) {
            Ok(Some(text)) => {
                let text = text.trim();
                if !text.is_empty() && text.len() <= MAX_MESSAGE && !text.contains('\n') {
                    return text.to_owned();
                }
            }
            Ok(None) => {}
            Err(why) => tracing::debug!(why, "a messageExpression failed"),
        }
    }
    if validation.message.is_empty() {
        format!("failed expression: {}", validation.expression.source().trim())
    } else {
        validation.message.clone()
    }
}
