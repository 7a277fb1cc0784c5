//! Growing the file system of a volume that was grown: what the cluster asks for in the claim's status is done by the
//! driver and told there.

use std::cmp::Ordering;
use std::path::Path;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use serde_json::json;

use super::Storage;
use super::claim::Bound;
use super::driver_volume::Csi;
use crate::csi::Driver;
use crate::csi::driver::{is_final, told};
use crate::csi::messages::{CapacityRange, NodeExpandVolumeRequest};

const PENDING: &str = "FileSystemResizePending";

impl Storage {
    /// Grows what is to be grown.
    pub(super) async fn grow(
        &self,
        csi: &Csi,
        driver: &Driver,
        bound: &Bound,
        path: &Path,
        staging: Option<&Path>,
    ) -> Result<(), String> {
        let Some((text, bytes)) = wanted(bound).filter(|_| driver.can.expand && !csi.read_only) else {
            return Ok(());
        };
        let request = NodeExpandVolumeRequest {
            volume_id: csi.handle.clone(),
            volume_path: path.display().to_string(),
            capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            staging_target_path: staging.map(|path| path.display().to_string()).unwrap_or_default(),
            volume_capability: Some(csi.capability(driver, None)),
            secrets: self.secret(csi.expand_secret.as_ref()).await?,
        };
        let grown = driver.plugin.expand(request).await;
        let status = bound.claim.status.clone().unwrap_or_default();
        let patch = match &grown {
            Ok(_) => {
                let conditions: Vec<_> = status
                    .conditions
                    .into_iter()
                    .flatten()
                    .filter(|c| c.type_ != PENDING && c.type_ != "Resizing")
                    .collect();
                json!({"status": {"capacity": {"storage": text}, "conditions": conditions,
                    "allocatedResourceStatuses": {"storage": null}}})
            }
            // the cluster must ask for less
            Err(why) if is_final(why) => {
                json!({"status": {"allocatedResourceStatuses": {"storage": "NodeResizeInfeasible"}}})
            }
            Err(why) => return Err(told(why)),
        };
        let meta = &bound.claim.metadata;
        let (ns, name) =
            (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
        let patch = client::Patch::Merge(patch);
        let written = self.client.patch_status::<PersistentVolumeClaim>(ns, name, &patch).await;
        written.map_err(|error| format!("the claim's new size is not told: {error}"))?;
        // a volume that did not grow still is one
        if let Err(why) = grown {
            tracing::warn!(volume = csi.name, why = told(&why), "the file system is not grown");
        }
        Ok(())
    }
}

/// The size that the claim's file system is to get, as written and in bytes.
fn wanted(bound: &Bound) -> Option<(String, i64)> {
    let status = bound.claim.status.as_ref()?;
    let steps = status.allocated_resource_statuses.as_ref();
    let asked = match steps.and_then(|steps| steps.get("storage")).map(String::as_str) {
        Some("NodeResizePending" | "NodeResizeInProgress") => true,
        Some(_) => false,
        None => status.conditions.iter().flatten().any(|c| c.type_ == PENDING && c.status == "True"),
    };
    let size = bound.volume.spec.as_ref()?.capacity.as_ref()?.get("storage")?.0.clone();
    let has = status.capacity.as_ref()?.get("storage")?.0.clone();
    let (new, old) = (size.parse::<Quantity>().ok()?, has.parse::<Quantity>().ok()?);
    let bytes = crate::resources::units(&size);
    (asked && new.cmp(&old) == Ordering::Greater).then_some((size, bytes))
}
