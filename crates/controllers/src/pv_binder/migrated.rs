//! Claims and volumes of provisioners that are no more: what of them says to whom they are handed.
//!
//! A claim that is new names the driver's provisioner at once. Those of a cluster that had the plugin keep its name beside the
//! driver's, which the driver's provisioner looks for. Rule: Kubernetes documentation, "Volumes" ("CSI migration").

use std::collections::BTreeMap;

use api::csi_migration;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use super::{PROVISIONED_BY, PROVISIONERS, note};
use crate::ownership::annotations;

/// The driver in the place of the provisioner that the object names.
const MIGRATED_TO: &str = "pv.kubernetes.io/migrated-to";
/// Keeps a volume until the plugin has removed it.
const OF_PLUGIN: &str = "kubernetes.io/pv-controller";

/// Says which driver took the place of an object's provisioner; none did of most.
pub(super) fn tell(notes: &mut Option<BTreeMap<String, String>>, driver: Option<&str>) {
    match driver {
        Some(driver) => note(notes, MIGRATED_TO, driver),
        None => drop(notes.as_mut().and_then(|notes| notes.remove(MIGRATED_TO))),
    }
}

/// A claim that was handed to a provisioner which is no more, as the one in its place knows it; nothing where it is so already.
pub(super) fn claim(claim: &PersistentVolumeClaim) -> Option<PersistentVolumeClaim> {
    let notes = annotations(&claim.metadata);
    let provisioner = PROVISIONERS.iter().rev().find_map(|key| notes.get(*key))?;
    let driver = csi_migration::driver_of(provisioner);
    if notes.get(MIGRATED_TO).map(String::as_str) == driver {
        return None;
    }
    let mut next = claim.clone();
    tell(&mut next.metadata.annotations, driver);
    Some(next)
}

/// The same of a volume that such a provisioner made.
pub(super) fn volume(volume: &PersistentVolume) -> Option<PersistentVolume> {
    let notes = annotations(&volume.metadata);
    let driver = csi_migration::driver_of(notes.get(PROVISIONED_BY)?);
    let finalizers = volume.metadata.finalizers.iter().flatten();
    let is_held = driver.is_some() && finalizers.into_iter().any(|finalizer| finalizer == OF_PLUGIN);
    if !is_held && notes.get(MIGRATED_TO).map(String::as_str) == driver {
        return None;
    }
    let mut next = volume.clone();
    tell(&mut next.metadata.annotations, driver);
    if is_held && let Some(finalizers) = next.metadata.finalizers.as_mut() {
        finalizers.retain(|finalizer| finalizer != OF_PLUGIN);
    }
    Some(next)
}
