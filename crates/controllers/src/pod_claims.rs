//! Which claims for volumes a pod uses.
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};

use crate::ownership::{is_controlled_by, name, uid};

/// The pod's volumes.
pub(crate) fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|s| s.volumes.iter().flatten())
}

/// The name of the claim behind a volume: one that is named, or the one that is made for this pod.
pub(crate) fn claim_name(pod: &Pod, volume: &Volume) -> Option<String> {
    match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (None, Some(_)) => Some(ephemeral_claim(pod, volume)),
        (None, None) => None,
    }
}

/// The names of all claims the pod uses.
pub(crate) fn claim_names(pod: &Pod) -> Vec<String> {
    volumes(pod).filter_map(|v| claim_name(pod, v)).collect()
}

/// The name of the claim that is made for an ephemeral volume.
pub(crate) fn ephemeral_claim(pod: &Pod, volume: &Volume) -> String {
    format!("{}-{}", name(&pod.metadata), volume.name)
}

/// Whether the claim was made for this pod.
pub(crate) fn is_for(claim: &PersistentVolumeClaim, pod: &Pod) -> bool {
    is_controlled_by(&claim.metadata, uid(&pod.metadata))
}
