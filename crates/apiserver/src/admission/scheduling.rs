//! Groups of pods: they are protected while pods use them (`PodGroupProtection`), and the workload that they say they were
//! made of has to be there (`PodGroupWorkloadExists`).

use api::meta;
use serde_json::Value;

use super::Request;
use crate::status::{ApiError, ApiResult};
use crate::watch_cache::WatchCache;

/// Keeps a group until no pod that runs refers to it; the controller takes it off.
pub const PROTECTION: &str = "scheduling.k8s.io/podgroup-protection";

/// Refuses a group of a workload, or of a template of it, that is not there.
pub fn workload_exists(cache: &WatchCache, request: &Request<'_>, group: &Value) -> ApiResult<()> {
    let reference = &group["spec"]["podGroupTemplateRef"]["workload"];
    let text = |key: &str| reference[key].as_str().unwrap_or_default();
    let (workload, template) = (text("workloadName"), text("podGroupTemplateName"));
    if reference.is_null() {
        return Ok(());
    }
    let refuse = |why: &str| Err(ApiError::forbidden(request.kind, meta::name(group), why));
    let kind = api::kinds::known().find("scheduling.k8s.io", "v1alpha2", "workloads");
    let Some(found) = kind.and_then(|k| cache.get(k, &k.key(request.namespace, workload))) else {
        return refuse(&format!("PodGroup rejected: Workload {workload:?} not found"));
    };
    let templates = found.value()["spec"]["podGroupTemplates"].as_array();
    if templates.is_none_or(|list| list.iter().all(|t| t["name"] != template)) {
        let what = format!("PodGroupTemplate {template:?} not found in Workload {workload:?}");
        return refuse(&format!("PodGroup rejected: {what}"));
    }
    Ok(())
}
