//! pods/eviction: a deletion that disruption budgets may refuse.
//!
//! Rule: Kubernetes documentation, "API-initiated Eviction" and "Unhealthy Pod Eviction Policy".

use api::object::Object;
use api::{meta, selector};
use client::Body;
use http::Response;
use serde_json::{Value, json};

use super::{posted, set_condition};
use crate::admission::Notes;
use crate::answer;
use crate::body::{self, WriteOptions};
use crate::pipeline::Call;
use crate::registry::{DeleteOptions, Target};
use crate::status::{ApiError, ApiResult};

/// Deletes a pod unless a disruption budget stands against it.
pub async fn run(call: &Call<'_>, notes: &mut Notes) -> ApiResult<Response<Body>> {
    let mut eviction = body::plain(&call.parts.headers, &call.body)?;
    if meta::name(&eviction) != call.info.name {
        return Err(ApiError::bad_request("name in URL does not match name in Eviction object"));
    }
    let options = &eviction["deleteOptions"];
    let dry_run = call.info.query.all("dryRun").any(|v| v == "All")
        || options["dryRun"].as_array().is_some_and(|l| l.iter().any(|v| v == "All"));
    let of_query = WriteOptions::parse("CreateOptions", &call.info.query, &call.parts.headers)?;
    posted(call, &of_query, ("policy", "v1", "Eviction"), &mut eviction, notes).await?;
    let options = &eviction["deleteOptions"];
    let pod = call.server.registry.get(Target { subresource: "", ..call.target() }).await?;
    if !is_free(&pod.to_value()) {
        let covering = budgets_over(call, &pod);
        if covering.len() > 1 {
            return Err(ApiError::bad_request(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
        if let Some(budget) = covering.first().filter(|b| !lets_unhealthy_go(b, &pod.to_value())) {
            take_disruption(call, meta::name(budget), &pod, dry_run).await?;
        }
    }
    say_why(call, dry_run).await?;
    let delete = DeleteOptions {
        grace_period_seconds: options["gracePeriodSeconds"].as_i64(),
        uid: options["preconditions"]["uid"].as_str().map(str::to_owned),
        resource_version: options["preconditions"]["resourceVersion"].as_str().map(str::to_owned),
        propagation_policy: options["propagationPolicy"].as_str().map(str::to_owned),
        orphan_dependents: None,
        dry_run,
        ignore_read_error: false,
    };
    call.server.registry.delete(Target { subresource: "", ..call.target() }, &delete).await?;
    let done =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(answer::value(201, &call.form()?, &done))
}

/// Pods whose end disturbs nobody: ended, not begun, or going already.
fn is_free(pod: &Value) -> bool {
    meta::is_being_deleted(pod)
        || matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed" | "Pending"))
}

fn budgets_over(call: &Call<'_>, pod: &Object) -> Vec<Value> {
    let Some(budgets) = api::kinds::find("policy", "v1", "poddisruptionbudgets") else { return Vec::new() };
    let prefix = format!("{}{}/", budgets.storage_prefix, call.info.namespace);
    let listed = call.server.registry.cache().list(budgets, &prefix, None).items;
    listed
        .iter()
        .map(|b| b.to_value())
        .filter(|b| {
            selector::LabelSelector::from_value(&b["spec"]["selector"]).is_ok_and(|s| s.matches(pod.labels()))
        })
        .collect()
}

/// A pod that is not ready serves nobody: it may go when the budget says so, or while the others suffice.
fn lets_unhealthy_go(budget: &Value, pod: &Value) -> bool {
    let ready = pod["status"]["conditions"]
        .as_array()
        .is_some_and(|l| l.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"));
    if ready {
        return false;
    }
    let count = |key: &str| budget["status"][key].as_i64().unwrap_or(0);
    match budget["spec"]["unhealthyPodEvictionPolicy"].as_str() {
        Some("AlwaysAllow") => true,
        _ => count("currentHealthy") >= count("desiredHealthy") && count("desiredHealthy") > 0,
    }
}

/// Says in the pod's status who ends it, before it ends.
async fn say_why(call: &Call<'_>, dry_run: bool) -> ApiResult<()> {
    let now = meta::format_time(call.now());
    let target = Target { subresource: "status", ..call.target() };
    call.server
        .registry
        .update(target, dry_run, |old| {
            let mut new = old.clone();
            set_condition(
                &mut new,
                &json!({"type": "DisruptionTarget", "status": "True", "lastProbeTime": null,
                    "lastTransitionTime": now, "reason": "EvictionByEvictionAPI",
                    "message": "Eviction API: evicting"}),
            );
            Ok(new)
        })
        .await
        .map(drop)
}

/// Counts an eviction against a budget.
async fn take_disruption(call: &Call<'_>, budget: &str, pod: &Object, dry_run: bool) -> ApiResult<()> {
    let Some(kind) = api::kinds::find("policy", "v1", "poddisruptionbudgets") else { return Ok(()) };
    let target = Target { kind, namespace: &call.info.namespace, name: budget, subresource: "status" };
    let now = meta::format_time(call.now());
    call.server
        .registry
        .update(target, dry_run, |old| {
            let observed = old["status"]["observedGeneration"].as_i64().unwrap_or(0);
            let allowed = old["status"]["disruptionsAllowed"].as_i64().unwrap_or(0);
            if observed < old["metadata"]["generation"].as_i64().unwrap_or(0) || allowed <= 0 {
                let why = format!(
                    "The disruption budget {budget} needs {} healthy pods and has {} currently",
                    old["status"]["desiredHealthy"].as_i64().unwrap_or(0),
                    old["status"]["currentHealthy"].as_i64().unwrap_or(0)
                );
                return Err(ApiError::too_many_requests(
                    "Cannot evict pod as it would violate the pod's disruption budget.",
                    10,
                )
                .with_detail("causes", json!([{"reason": "DisruptionBudget", "message": why}])));
            }
            let mut new = old.clone();
            new["status"]["disruptionsAllowed"] = json!(allowed - 1);
            new["status"]["disruptedPods"][pod.name()] = json!(now);
            Ok(new)
        })
        .await
        .map(drop)
}
