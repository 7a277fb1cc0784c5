//! Claims: whether one may grow (`PersistentVolumeClaimResize`).

use api::kinds::Kind;
use api::meta;
use api::resources::amounts;
use serde_json::Value;

use crate::status::{ApiError, ApiResult};
use crate::watch_cache::WatchCache;

const CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// Refuses more space for a claim that is not bound, or whose class cannot give it.
pub fn grow(cache: &WatchCache, kind: &Kind, old: &Value, new: &Value) -> ApiResult<()> {
    let size = |o: &Value| amounts(&o["spec"]["resources"]["requests"]).remove("storage");
    if size(new) <= size(old) {
        return Ok(());
    }
    let refuse = |why: &str| Err(ApiError::forbidden(kind, meta::name(new), why));
    if old["status"]["phase"] != "Bound" {
        return refuse("Only bound persistent volume claims can be expanded");
    }
    let class_of = |o: &Value| {
        let noted = o["metadata"]["annotations"][CLASS].as_str();
        noted.or(o["spec"]["storageClassName"].as_str()).unwrap_or_default().to_owned()
    };
    let name = class_of(new);
    let class = api::kinds::find("storage.k8s.io", "v1", "storageclasses")
        .filter(|_| !name.is_empty() && name == class_of(old))
        .and_then(|classes| cache.get(classes, &classes.key("", &name)));
    if class.is_some_and(|c| c.value()["allowVolumeExpansion"] == true) {
        return Ok(());
    }
    refuse(
        "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
    )
}
