//! Claims: the class of one that names none (`DefaultStorageClass`), and whether one may grow (`PersistentVolumeClaimResize`).

use api::kinds::Kind;
use api::meta;
use api::resources::amounts;
use serde_json::Value;

use crate::status::{ApiError, ApiResult};
use crate::watch_cache::WatchCache;

const CLASS: &str = "volume.beta.kubernetes.io/storage-class";

const IS_DEFAULT: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

/// Gives a claim that says nothing of a class the default class, of several the youngest.
pub fn default_class(cache: &WatchCache, claim: &mut Value) {
    let is_open =
        claim["metadata"]["annotations"][CLASS].is_null() && claim["spec"]["storageClassName"].is_null();
    let Some(kind) = api::kinds::find("storage.k8s.io", "v1", "storageclasses").filter(|_| is_open) else {
        return;
    };
    let classes = cache.list(kind, &kind.storage_prefix, None).items;
    let is_default = |class: &Value| {
        let notes = &class["metadata"]["annotations"];
        IS_DEFAULT.iter().any(|key| notes[*key] == "true")
    };
    let age = |class: &Value| meta::text(class, "creationTimestamp").to_owned();
    let found = classes
        .iter()
        .map(|c| c.value())
        .filter(|c| is_default(c))
        .min_by(|a, b| age(b).cmp(&age(a)).then_with(|| meta::name(a).cmp(meta::name(b))));
    if let Some(class) = found
        && let Some(spec) = claim["spec"].as_object_mut()
    {
        spec.insert("storageClassName".to_owned(), meta::name(class).into());
    }
}

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
