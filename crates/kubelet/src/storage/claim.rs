//! From a pod's volume to the PersistentVolume behind its claim.

use client::Client;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};

/// A claim and what it is bound to.
#[derive(Debug, Clone)]
pub struct Bound {
    /// The claim.
    pub claim: PersistentVolumeClaim,
    /// Its volume.
    pub volume: PersistentVolume,
    /// The pod only reads.
    pub read_only: bool,
}

impl Bound {
    /// The volume's name.
    pub fn name(&self) -> &str {
        self.volume.metadata.name.as_deref().unwrap_or_default()
    }

    /// Whether the volume is a device, not a file system.
    pub fn is_block(&self) -> bool {
        self.volume.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref()) == Some("Block")
    }

    /// How it may be used.
    pub fn access_modes(&self) -> &[String] {
        self.volume.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default()
    }
}

/// The claim that a volume names: one of the namespace, or the pod's own.
pub fn name_of(pod: &Pod, volume: &Volume) -> Option<String> {
    if let Some(source) = &volume.persistent_volume_claim {
        return Some(source.claim_name.clone());
    }
    volume.ephemeral.as_ref()?;
    Some(format!("{}-{}", pod.metadata.name.as_deref().unwrap_or_default(), volume.name))
}

/// Looks them up. Both must be there, belong together, and be used as what they are.
pub async fn bound(client: &Client, pod: &Pod, volume: &Volume) -> Result<Option<Bound>, String> {
    let Some(name) = name_of(pod, volume) else { return Ok(None) };
    let ns = pod.metadata.namespace.as_deref().unwrap_or_default();
    let about = |why: String| format!("error processing PVC {ns}/{name}: {why}");
    let claim = client
        .get::<PersistentVolumeClaim>(ns, &name)
        .await
        .map_err(|error| about(format!("failed to fetch PVC from API server: {error}")))?;
    if volume.ephemeral.is_some() && !is_of(&claim, pod) {
        let owner = pod.metadata.name.as_deref().unwrap_or_default();
        return Err(about(format!(
            "PVC {ns}/{name} was not created for pod {ns}/{owner} (pod is not owner)"
        )));
    }
    if claim.metadata.deletion_timestamp.is_some() {
        return Err(about("PVC is being deleted".to_owned()));
    }
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
    let volume_name = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).unwrap_or_default();
    if phase != Some("Bound") || volume_name.is_empty() {
        return Err(about("PVC is not bound".to_owned()));
    }
    let found = client
        .get::<PersistentVolume>("", &volume_name)
        .await
        .map_err(|error| about(format!("failed to fetch PV {volume_name} from API server: {error}")))?;
    let owner = found.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    match owner {
        None => {
            let why = "with nil pvc.Spec.ClaimRef indicating it is not yet bound to the claim";
            return Err(about(format!("found PV object {volume_name} {why}")));
        }
        Some(owner) if owner.uid != claim.metadata.uid => {
            let (owner, uid) = (owner.uid.as_deref().unwrap_or_default(), claim.metadata.uid.as_deref());
            return Err(about(format!(
                "found PV object {volume_name} with a pvc.Spec.ClaimRef.UID {owner} that does not point to the claim UID {}",
                uid.unwrap_or_default()
            )));
        }
        Some(_) => {}
    }
    let read_only =
        volume.persistent_volume_claim.as_ref().is_some_and(|source| source.read_only == Some(true));
    let bound = Bound { claim, volume: found, read_only };
    let (mounts, devices) = uses(pod, &volume.name);
    if bound.is_block() && mounts {
        return Err(format!("volume {} has volumeMode Block, but is specified in volumeMounts", volume.name));
    }
    if !bound.is_block() && devices {
        return Err(format!(
            "volume {} has volumeMode Filesystem, but is specified in volumeDevices",
            volume.name
        ));
    }
    Ok(Some(bound))
}

/// Whether containers use the volume as a folder, and as a device.
fn uses(pod: &Pod, volume: &str) -> (bool, bool) {
    let Some(spec) = &pod.spec else { return (false, false) };
    let all = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    (
        all().any(|c| c.volume_mounts.iter().flatten().any(|mount| mount.name == volume)),
        all().any(|c| c.volume_devices.iter().flatten().any(|device| device.name == volume)),
    )
}

fn is_of(claim: &PersistentVolumeClaim, pod: &Pod) -> bool {
    let owners = claim.metadata.owner_references.iter().flatten();
    owners.into_iter().any(|owner| {
        owner.controller == Some(true) && owner.kind == "Pod" && Some(&owner.uid) == pod.metadata.uid.as_ref()
    })
}
