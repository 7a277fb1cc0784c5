//! Growing claims: a bound claim that asks for more than it has is grown by the driver of its volume, which is told so by an
//! event, and by the claim's annotation where the driver took the place of a plugin: no volume is grown here.
use std::cmp::Ordering;

use api::csi_migration;
use api::quantity::Quantity;
use client::events::{EventType, reference};
use client::{Cache, Change, Patch};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use serde_json::json;

use crate::ownership::annotations;
use crate::runner::{Context, Failure, ObjectKey, Outcome, Reconcile, Runner};

/// On a claim: who is to grow it, where that does not follow from its volume.
const RESIZER: &str = "volume.kubernetes.io/storage-resizer";

struct Controller {
    context: Context,
    claims: Cache<PersistentVolumeClaim>,
    volumes: Cache<PersistentVolume>,
}

pub(crate) async fn run(context: Context) {
    let caches = context.reader.caches();
    let (claims, volumes) = (caches.of::<PersistentVolumeClaim>(), caches.of::<PersistentVolume>());
    let controller =
        Controller { context: context.clone(), claims: claims.clone(), volumes: volumes.clone() };
    Runner::new(&context, controller)
        .needs(&volumes)
        .on(&claims, |_, change| {
            let claim = change.object();
            let grew = match change {
                Change::Added(_) => wants_more(claim),
                Change::Modified { old, .. } => wants_more(claim) && asked(old) != asked(claim),
                Change::Deleted(_) => false,
            };
            grew.then(|| ObjectKey::of(&claim.metadata))
        })
        .run(1)
        .await;
}

fn asked(claim: &PersistentVolumeClaim) -> Option<&Text> {
    claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get("storage")
}

/// Whether a bound claim asks for more than it has.
fn wants_more(claim: &PersistentVolumeClaim) -> bool {
    let Some(status) = claim.status.as_ref().filter(|s| s.phase.as_deref() == Some("Bound")) else {
        return false;
    };
    let amount = |text: Option<&Text>| text.and_then(|t| t.0.parse::<Quantity>().ok());
    let (Some(asked), Some(has)) =
        (amount(asked(claim)), amount(status.capacity.as_ref().and_then(|c| c.get("storage"))))
    else {
        return false;
    };
    asked.cmp(&has) == Ordering::Greater
}

impl Controller {
    /// The driver in the place of the plugin that the claim's volume is of.
    fn migrated_to(&self, claim: &PersistentVolumeClaim) -> Option<String> {
        let volume = self.volumes.get("", claim.spec.as_ref()?.volume_name.as_deref()?)?;
        Some(csi_migration::of_volume(&volume).ok()??.source.driver)
    }
}

impl Reconcile for Controller {
    type Key = ObjectKey;

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, Failure> {
        let Some(claim) = self.claims.get(&key.namespace, &key.name).filter(|c| wants_more(c)) else {
            return Ok(Outcome::Settled);
        };
        let driver = self.migrated_to(&claim);
        let message = match driver.as_deref().and_then(csi_migration::plugin_of) {
            Some(plugin) => {
                format!("CSI migration enabled for {plugin}; waiting for external resizer to expand the pvc")
            }
            None => "waiting for an external controller to expand this PVC".to_owned(),
        };
        let about = reference(&*claim);
        self.context.recorder.event(&about, EventType::Normal, "ExternalExpanding", message);
        if let Some(driver) =
            driver.filter(|driver| annotations(&claim.metadata).get(RESIZER) != Some(driver))
        {
            let patch = Patch::Merge(json!({"metadata": {"annotations": {RESIZER: driver}}}));
            let client = &self.context.client;
            client.patch_status::<PersistentVolumeClaim>(&key.namespace, &key.name, &patch).await?;
        }
        Ok(Outcome::Settled)
    }
}
