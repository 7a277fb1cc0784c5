//! Mutating webhooks: one after the other, each on what the one before left. Those that ask for it run a second time
//! where something changed after them.

use api::{codec, patch};
use serde_json::{Value, json};

use super::compile::Webhook;
use super::matching::Invocation;
use super::review;
use super::validating::{ask, dry_run_unsupported};
use super::{Failure, Webhooks, is_exempt, matching};
use crate::admission::chain::{Notes, Reinvocation, Request};
use crate::body;
use crate::convert;
use crate::pipeline::ApiServer;
use crate::status::{ApiError, ApiResult};

impl Webhooks {
    /// Lets the mutating webhooks change or refuse an object, which is null on deletion.
    pub async fn mutate(
        &self,
        server: &ApiServer,
        request: &Request<'_>,
        object: &mut Value,
        notes: &mut Notes,
        again: &mut Reinvocation,
    ) -> ApiResult<()> {
        let cache = server.registry.cache();
        let (compiled, kinds) = (self.current(cache), server.kinds.now());
        if compiled.mutating.is_empty() || is_exempt(request) {
            return Ok(());
        }
        if again.is_second && again.webhooks.output.as_ref() != Some(object) {
            // the built-in plugins changed something after the webhooks
            again.webhooks.require_previous();
        }
        for (index, webhook) in compiled.mutating.iter().enumerate() {
            let invoked = matching::invocation(cache, &kinds, webhook, request, object)?;
            let Some(invocation) = invoked else { continue };
            if again.is_second && !again.webhooks.due.contains(&webhook.uid) {
                continue;
            }
            let round = format!("round_{}_index_{index}", u8::from(again.is_second));
            let outcome = apply(server, request, webhook, &invocation, object, notes, &round).await;
            let changed = *outcome.as_ref().unwrap_or(&false);
            note_mutation(notes, webhook, &round, changed);
            if changed {
                again.webhooks.require_previous();
                again.wanted = true;
            }
            if webhook.again {
                again.webhooks.previous.insert(webhook.uid.clone());
            }
            match outcome {
                Ok(_) => {}
                Err(Failure::Calling(why)) if !webhook.fails_closed => {
                    tracing::warn!(webhook = webhook.name, why, "a webhook failed; the request goes on");
                    let key = format!("failed-open.mutation.webhook.admission.k8s.io/{round}");
                    notes.annotations.insert(key, webhook.name.clone());
                }
                Err(Failure::Calling(why)) => return Err(ApiError::internal(why)),
                Err(Failure::Refused(error)) => return Err(error),
            }
        }
        again.webhooks.output = Some(object.clone());
        Ok(())
    }
}

fn note_mutation(notes: &mut Notes, webhook: &Webhook, round: &str, changed: bool) {
    let value = json!({"configuration": webhook.configuration, "webhook": webhook.name, "mutated": changed});
    notes.annotations.insert(format!("mutation.webhook.admission.k8s.io/{round}"), value.to_string());
}

/// Asks one webhook and applies its patch; whether the object changed.
async fn apply(
    server: &ApiServer,
    request: &Request<'_>,
    webhook: &Webhook,
    invocation: &Invocation,
    object: &mut Value,
    notes: &mut Notes,
    round: &str,
) -> Result<bool, Failure> {
    if request.is_dry_run() && !webhook.takes_dry_run {
        return Err(Failure::Refused(dry_run_unsupported(&webhook.name)));
    }
    let cache = server.registry.cache();
    let shown = async |value: &Value| {
        convert::shown(cache, &invocation.kind, request.object_type, value).await.map_err(Failure::Refused)
    };
    let current = shown(object).await?;
    let old = shown(request.old.unwrap_or(&Value::Null)).await?;
    let asked = review::ask(webhook, request, &invocation.kind, &current, &old)?;
    let answered = ask(cache, webhook, &asked, true).await?;
    let annotations = answered.annotations.into_iter();
    notes.annotations.extend(annotations.map(|(k, v)| (format!("{}/{k}", webhook.name), v)));
    notes.warnings.extend(answered.warnings);
    if !answered.allowed {
        return Err(Failure::Refused(review::refusal(&webhook.name, &answered.result)));
    }
    if answered.patch.is_empty() {
        return Ok(false);
    }
    let undecodable = |why: &dyn std::fmt::Display| {
        Failure::calling(&webhook.name, format!("received undecodable patch in webhook response: {why}"))
    };
    let operations: Value = serde_json::from_slice(&answered.patch).map_err(|e| undecodable(&e))?;
    match operations.as_array() {
        Some(list) if list.is_empty() => return Ok(false),
        Some(_) => {}
        None => return Err(undecodable(&"a list of operations is expected")),
    }
    let internal = |why: String| Failure::Refused(ApiError::internal(why));
    if !object.is_object() {
        return Err(internal(format!(
            "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
            webhook.name
        )));
    }
    if answered.patch_type != "JSONPatch" {
        let why = format!("unsupported patch type {:?}", answered.patch_type);
        return Err(Failure::calling(&webhook.name, why));
    }
    let patched = patch::json::apply(&current, &operations).map_err(|e| internal(e.to_string()))?;
    let said = |key: &str| patched[key].as_str().unwrap_or_default().to_owned();
    let shape = match request.object_type {
        Some(_) => {
            codec::shape_of(&said("apiVersion"), &said("kind")).unwrap_or(invocation.kind.body_shape())
        }
        None => invocation.kind.body_shape(),
    };
    let decoded = codec::decode_value(patched, shape).map_err(|e| internal(e.to_string()))?;
    let mut patched = match request.object_type {
        Some(_) => decoded.value,
        None => body::conform(&invocation.kind, decoded).value,
    };
    let changed = patched != current;
    let value = json!({"configuration": webhook.configuration, "webhook": webhook.name,
        "patch": operations, "patchType": "JSONPatch"});
    notes.annotations.insert(format!("patch.webhook.admission.k8s.io/{round}"), value.to_string());
    if request.object_type.is_none() && changed {
        crate::strategy::of(&invocation.kind).default(&mut patched);
    }
    *object =
        convert::shown(cache, request.kind, request.object_type, &patched).await.map_err(Failure::Refused)?;
    Ok(changed)
}
