//! Mutating policies: one after the other, each on what the one before left. Those that ask for it run a second time where
//! something changed after them.

use std::collections::HashSet;

use api::{apply, codec, patch};
use serde_json::{Value, json};

use super::compile::Mutation;
use super::inputs::{self, Shown};
use super::select::{self, Invocation};
use super::validating::name_of;
use super::{Complaint, Policies, is_exempt};
use crate::admission::chain::{Notes, Reinvocation, Request};
use crate::body;
use crate::cel::admission::{BUDGET, Evaluation};
use crate::cel::match_conditions::Matched;
use crate::convert;
use crate::pipeline::ApiServer;
use crate::status::{ApiError, ApiResult};

/// What the first run of the policies leaves for the second.
#[derive(Debug, Default)]
pub struct Reinvoked {
    /// Policies (with binding and parameter) that ran and want to run again where something changed after them.
    previous: HashSet<String>,
    /// Those of them that something changed after.
    due: HashSet<String>,
    /// What the policies made of the object.
    output: Option<Value>,
}

impl Reinvoked {
    fn require_previous(&mut self) {
        self.due.extend(self.previous.drain());
    }
}

impl Policies {
    /// Lets the mutating policies change or refuse an object, which is null on deletion.
    pub fn mutate(
        &self,
        server: &ApiServer,
        request: &Request<'_>,
        object: &mut Value,
        _notes: &mut Notes,
        again: &mut Reinvocation,
    ) -> ApiResult<()> {
        let cache = server.registry.cache();
        let compiled = self.current(cache);
        if compiled.mutating.is_empty() || is_exempt(request) {
            return Ok(());
        }
        if again.is_second && again.policies.output.as_ref() != Some(object) {
            // somebody changed something after the policies
            again.policies.require_previous();
        }
        let (invocations, mut complaints) =
            select::invocations(cache, &server.kinds.now(), &compiled.mutating, request, object);
        // a complaint of the configuration gives no other reason than that of any refusal
        let mut reason = complaints.is_empty().then_some("Invalid");
        let namespace = match invocations.is_empty() {
            true => None,
            false => Some(inputs::namespace(server, request)?),
        };
        for invocation in &invocations {
            let shown = Shown::new(server, request, &invocation.kind, namespace.clone().unwrap_or_default());
            let before = object.clone();
            let ran = run(invocation, &shown, request, object, again);
            if *object != before {
                again.policies.require_previous();
                again.wanted = true;
            }
            match ran {
                Ok(false) => {}
                Ok(true) if invocation.policy.again => {
                    again.policies.previous.insert(identity(invocation));
                }
                Ok(true) => {}
                Err(_) if !invocation.policy.fails_closed => {}
                Err(message) => complaints.push(Complaint {
                    policy: invocation.policy.name.clone(),
                    binding: Some(invocation.binding.name.clone()),
                    message,
                }),
            }
        }
        again.policies.output = Some(object.clone());
        if complaints.is_empty() {
            return Ok(());
        }
        Err(denial(request, object, &complaints, reason.take()))
    }
}

/// Tells an invocation from all others.
fn identity(invocation: &Invocation<'_>) -> String {
    let metadata = &invocation.params["metadata"];
    let text = |key: &str| metadata[key].as_str().unwrap_or_default();
    format!("{}/{}/{}/{}", invocation.policy.name, invocation.binding.name, text("namespace"), text("name"))
}

/// Runs one policy's mutations; false where its conditions, or the round, say not to.
fn run(
    invocation: &Invocation<'_>,
    shown: &Shown,
    request: &Request<'_>,
    object: &mut Value,
    again: &Reinvocation,
) -> Result<bool, String> {
    let policy = invocation.policy;
    let seen = convert::shown_now(&invocation.kind, request.object_type, object);
    match policy.conditions.matches(&shown.inputs(&seen, &invocation.params)) {
        Matched::Yes => {}
        Matched::No => return Ok(false),
        Matched::Unknown(why) => return Err(why),
    }
    if again.is_second && !again.policies.due.contains(&identity(invocation)) {
        return Ok(false);
    }
    if !object.is_object() {
        return Ok(true);
    }
    // a mutation that fails leaves out itself only; the first failure is told
    let mut failure = None;
    for mutation in &policy.mutations {
        match mutated(invocation, shown, request, object, mutation) {
            Ok(changed) => *object = changed,
            Err(why) => {
                failure.get_or_insert(why);
            }
        }
    }
    failure.map_or(Ok(true), Err)
}

/// The object after one mutation, complete with defaults.
fn mutated(
    invocation: &Invocation<'_>,
    shown: &Shown,
    request: &Request<'_>,
    object: &Value,
    mutation: &Mutation,
) -> Result<Value, String> {
    let current = convert::shown_now(&invocation.kind, request.object_type, object);
    let said = |key: &str| current[key].as_str().unwrap_or_default();
    let shape = match request.object_type {
        Some(_) => {
            codec::shape_of(said("apiVersion"), said("kind")).unwrap_or_else(|| invocation.kind.shape())
        }
        None => invocation.kind.shape(),
    };
    let patched = {
        let inputs = shown.inputs(&current, &invocation.params);
        let mut evaluation = Evaluation::new(&inputs, &invocation.policy.variables, BUDGET);
        match mutation {
            Mutation::Apply(expression) => {
                let mut part = evaluation.object(expression)?;
                for key in ["apiVersion", "kind"] {
                    part[key] = current[key].clone();
                }
                apply::merge_partial(shape, &current, &part)
                    .map_err(|e| format!("error applying patch: {e}"))?
            }
            Mutation::Patch(expression) => {
                let operations = evaluation.patch(expression)?;
                match patched(&current, &operations)? {
                    Some(patched) => patched,
                    None => return Ok(object.clone()),
                }
            }
        }
    };
    let body_shape = match request.object_type {
        Some(_) => shape,
        None => invocation.kind.body_shape(),
    };
    let decoded = codec::decode_value(patched, body_shape).map_err(|e| e.to_string())?;
    let mut patched = match request.object_type {
        Some(_) => decoded.value,
        None => body::conform(&invocation.kind, decoded).value,
    };
    if request.object_type.is_none() {
        crate::strategy::of(&invocation.kind).default(&mut patched);
    }
    Ok(convert::shown_now(request.kind, request.object_type, &patched))
}

/// The object after a JSON patch; none where a `test` in it does not hold, which is no failure.
fn patched(object: &Value, operations: &Value) -> Result<Option<Value>, String> {
    match patch::json::apply(object, operations) {
        Ok(patched) => Ok(Some(patched)),
        Err(patch::PatchError::Rejected) => {
            let mut state = object.clone();
            for operation in operations.as_array().into_iter().flatten() {
                match patch::json::apply(&state, &json!([operation])) {
                    Ok(next) => state = next,
                    Err(_) if operation["op"] == "test" => return Ok(None),
                    Err(_) => {
                        let text = |key: &str| operation[key].as_str().unwrap_or_default();
                        return Err(format!(
                            "JSONPath: {} operation does not apply: doc is missing path: {:?}: missing value",
                            text("op"),
                            text("path")
                        ));
                    }
                }
            }
            Ok(Some(state))
        }
        Err(other) => Err(format!("JSONPath: {other}")),
    }
}

/// 403: `policy 'p' with binding 'b' denied request: WHY`, one cause for each complaint.
fn denial(
    request: &Request<'_>,
    object: &Value,
    complaints: &[Complaint],
    reason: Option<&'static str>,
) -> ApiError {
    let texts: Vec<String> = complaints
        .iter()
        .map(|c| {
            let with = c.binding.as_ref().map(|b| format!(" with binding '{b}'")).unwrap_or_default();
            format!("policy '{}'{with} denied request: {}", c.policy, c.message)
        })
        .collect();
    let causes: Vec<Value> = texts.iter().map(|t| json!({"message": t})).collect();
    ApiError::forbidden(request.kind, name_of(request, object), "")
        .with_message(texts.first().cloned().unwrap_or_default())
        .with_detail("causes", json!(causes))
        .with_reason(reason.unwrap_or("Forbidden"))
}
