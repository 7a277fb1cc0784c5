//! NodeDeclaredFeatureValidator: a running pod changes only as far as its node declares that it can.
//!
//! Rule: KEP-5328.

use api::declared_features::{missing, to_change};
use api::meta;
use serde_json::Value;

use super::Request;
use crate::status::{ApiError, ApiResult};
use crate::watch_cache::WatchCache;

/// Whether the pod's node can follow the change.
pub(super) fn check(cache: &WatchCache, request: &Request<'_>, object: &Value) -> ApiResult<()> {
    let (Some(old), Some(node)) = (request.old, object["spec"]["nodeName"].as_str()) else { return Ok(()) };
    let needed = to_change(old, object);
    if node.is_empty() || needed.is_empty() {
        return Ok(());
    }
    let refuse = |why: String| Err(ApiError::forbidden(request.kind, meta::name(object), &why));
    let found = api::kinds::find("", "v1", "nodes").and_then(|kind| cache.get(kind, &kind.key("", node)));
    let Some(found) = found else { return refuse(format!("node {node:?} not found")) };
    let found = found.value();
    let declared = found["status"]["declaredFeatures"].as_array().into_iter().flatten();
    let declared: Vec<&str> = declared.filter_map(Value::as_str).collect();
    match missing(&needed, &declared).as_slice() {
        [] => Ok(()),
        names => refuse(format!(
            "pod update requires features {} which are not available on node {node:?}",
            names.join(", ")
        )),
    }
}
