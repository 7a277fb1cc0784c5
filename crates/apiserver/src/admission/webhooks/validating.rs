//! Validating webhooks: all that a request concerns are asked at the same time; the first refusal in their order is the
//! answer.

use std::sync::Arc;

use futures_util::future::join_all;
use serde_json::Value;

use super::compile::Webhook;
use super::review::{self, Answered, Asked};
use super::{Failure, Webhooks, is_exempt, matching};
use crate::admission::chain::{Notes, Request};
use crate::convert;
use crate::pipeline::ApiServer;
use crate::status::{ApiError, ApiResult};
use crate::watch_cache::WatchCache;

impl Webhooks {
    /// Refuses what a validating webhook refuses. `object` is null on deletion.
    pub async fn validate(
        &self,
        server: &ApiServer,
        request: &Request<'_>,
        object: &Value,
        notes: &mut Notes,
    ) -> ApiResult<()> {
        let cache = server.registry.cache();
        let (compiled, kinds) = (self.current(cache), server.kinds.now());
        if compiled.validating.is_empty() || is_exempt(request) {
            return Ok(());
        }
        let mut calls = Vec::new();
        for (index, webhook) in compiled.validating.iter().enumerate() {
            let invoked = matching::invocation(cache, &kinds, webhook, request, object)?;
            let Some(invocation) = invoked else { continue };
            if request.is_dry_run() && !webhook.takes_dry_run {
                return Err(dry_run_unsupported(&webhook.name));
            }
            let shown = async |value: &Value| {
                convert::shown(cache, &invocation.kind, request.object_type, value).await
            };
            let old = shown(request.old.unwrap_or(&Value::Null)).await?;
            let asked = review::ask(webhook, request, &invocation.kind, &shown(object).await?, &old);
            calls.push(call(cache.clone(), webhook.clone(), index, asked));
        }
        let mut refused = None;
        for (index, webhook, outcome) in join_all(calls).await {
            let why = match outcome {
                Ok(answered) => {
                    let annotations = answered.annotations.into_iter();
                    notes.annotations.extend(annotations.map(|(k, v)| (format!("{}/{k}", webhook.name), v)));
                    notes.warnings.extend(answered.warnings);
                    continue;
                }
                Err(Failure::Calling(why)) if !webhook.fails_closed => {
                    tracing::warn!(webhook = webhook.name, why, "a webhook failed; the request goes on");
                    let key =
                        format!("failed-open.validating.webhook.admission.k8s.io/round_0_index_{index}");
                    notes.annotations.insert(key, webhook.name.clone());
                    continue;
                }
                Err(Failure::Calling(why)) => ApiError::internal(why),
                Err(Failure::Refused(error)) => error,
            };
            refused.get_or_insert(why);
        }
        refused.map_or(Ok(()), Err)
    }
}

/// A dry run that a webhook with side effects would have to see.
pub(super) fn dry_run_unsupported(webhook: &str) -> ApiError {
    ApiError::bad_request(format!("admission webhook {webhook:?} does not support dry run"))
}

async fn call(
    cache: Arc<WatchCache>,
    webhook: Arc<Webhook>,
    index: usize,
    asked: Result<Asked, Failure>,
) -> (usize, Arc<Webhook>, Result<Answered, Failure>) {
    let outcome = match asked {
        Ok(asked) => ask(&cache, &webhook, &asked, false).await,
        Err(failure) => Err(failure),
    };
    let outcome = match outcome {
        Ok(answered) if !answered.allowed => {
            Err(Failure::Refused(review::refusal(&webhook.name, &answered.result)))
        }
        other => other,
    };
    (index, webhook, outcome)
}

/// Asks one webhook.
pub(super) async fn ask(
    cache: &WatchCache,
    webhook: &Webhook,
    asked: &Asked,
    mutating: bool,
) -> Result<Answered, Failure> {
    let name = &webhook.name;
    let hook = webhook.hook.as_ref();
    let hook = hook.map_err(|why| Failure::calling(name, format!("could not get REST client: {why}")))?;
    let answer =
        hook.call(cache, &asked.body, webhook.timeout).await.map_err(|e| Failure::of_call(name, &e))?;
    review::check(asked, &answer, mutating)
        .map_err(|why| Failure::calling(name, format!("received invalid webhook response: {why}")))
}
