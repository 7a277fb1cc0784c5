//! Which volume a claim gets on a node, and whether one can be made there.
use std::collections::HashSet;
use std::sync::Arc;

use api::quantity::Quantity;
use api::selector::LabelSelector;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use super::{NO_PROVISIONER, Volumes, class_of};
use crate::filter::node_affinity::Selection;
use crate::snapshot::NodeInfo;

fn bytes(text: Option<&Text>) -> i64 {
    text.and_then(|t| t.0.parse::<Quantity>().ok()).map_or(0, |q| q.value())
}

/// Bytes that the claim asks for.
pub(super) fn requested(claim: &PersistentVolumeClaim) -> i64 {
    let requests = claim.spec.as_ref().and_then(|s| s.resources.as_ref()?.requests.as_ref());
    bytes(requests.and_then(|r| r.get("storage")))
}

/// Whether the volume can be reached from the node.
pub(super) fn reaches(volume: &PersistentVolume, node: &NodeInfo) -> bool {
    let affinity = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref()?.required.as_ref());
    affinity.is_none_or(|selector| Selection::required(selector).allows(node))
}

/// Whether the volume was set aside for the claim.
pub(super) fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(reference) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else { return false };
    reference.name == claim.metadata.name
        && reference.namespace == claim.metadata.namespace
        && (reference.uid.as_deref().unwrap_or_default().is_empty() || reference.uid == claim.metadata.uid)
}

/// The smallest free volume that satisfies the claim on the node, or the one that was set aside for it. `taken` are those
/// that other claims of the pod get.
pub(super) fn find<'a>(
    volumes: &'a Volumes,
    key: &str,
    claim: &PersistentVolumeClaim,
    node: &NodeInfo,
    taken: &HashSet<&str>,
) -> Option<&'a Arc<PersistentVolume>> {
    let spec = claim.spec.as_ref()?;
    let (class, wanted) = (class_of(claim), requested(claim));
    let mode = |mode: &Option<String>| mode.as_deref().unwrap_or("Filesystem").to_owned();
    let selector = spec.selector.as_ref().and_then(|s| LabelSelector::from_typed(Some(s)).ok());
    let (mut best, mut least) = (None, i64::MAX);
    for volume in volumes.volumes.values() {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let Some(offer) = volume.spec.as_ref() else { continue };
        let promised = volumes.promised.get(name);
        let of_others = offer.claim_ref.is_some() && !is_for(volume, claim)
            || promised.is_some_and(|claim| claim != key)
            || taken.contains(name);
        let size = bytes(offer.capacity.as_ref().and_then(|c| c.get("storage")));
        let attributes = |name: &Option<String>| name.clone().unwrap_or_default();
        if of_others
            || size < wanted
            || mode(&offer.volume_mode) != mode(&spec.volume_mode)
            || attributes(&offer.volume_attributes_class_name)
                != attributes(&spec.volume_attributes_class_name)
            || volume.metadata.deletion_timestamp.is_some()
        {
            continue;
        }
        let reachable = reaches(volume, node);
        if is_for(volume, claim) {
            return reachable.then_some(volume);
        }
        let available = volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Available");
        let empty = Default::default();
        let labels = volume.metadata.labels.as_ref().unwrap_or(&empty);
        let offers: HashSet<&String> = offer.access_modes.iter().flatten().collect();
        if reachable
            && available
            && selector.as_ref().is_none_or(|s| s.matches(labels))
            && offer.storage_class_name.as_deref().unwrap_or_default() == class
            && spec.access_modes.iter().flatten().all(|m| offers.contains(m))
            && (size < least
                || size == least
                    && best.is_some_and(|b: &Arc<PersistentVolume>| b.metadata.name > volume.metadata.name))
        {
            (best, least) = (Some(volume), size);
        }
    }
    best
}

/// Whether a volume for the claim can be made for the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Provision {
    Yes,
    No,
    NotEnoughSpace,
}

pub(super) fn provision(volumes: &Volumes, claim: &PersistentVolumeClaim, node: &NodeInfo) -> Provision {
    let Some(class) = volumes.classes.get(class_of(claim)) else { return Provision::No };
    if class.provisioner.is_empty() || class.provisioner == NO_PROVISIONER || !allows(class, node) {
        return Provision::No;
    }
    if has_space(volumes, claim, class, node) { Provision::Yes } else { Provision::NotEnoughSpace }
}

fn allows(class: &StorageClass, node: &NodeInfo) -> bool {
    let Some(terms) = class.allowed_topologies.as_ref().filter(|t| !t.is_empty()) else { return true };
    terms.iter().any(|term| {
        let expressions = term.match_label_expressions.as_deref().unwrap_or_default();
        !expressions.is_empty()
            && expressions.iter().all(|e| node.label(&e.key).is_some_and(|v| e.values.iter().any(|w| w == v)))
    })
}

/// What the driver says it has left for the class where the node is.
fn has_space(
    volumes: &Volumes,
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: &NodeInfo,
) -> bool {
    let tells =
        volumes.drivers.get(&class.provisioner).is_some_and(|d| d.spec.storage_capacity == Some(true));
    let wanted = requested(claim);
    if !tells || wanted == 0 {
        return true;
    }
    let empty = Default::default();
    let labels = node.node.as_ref().and_then(|n| n.metadata.labels.as_ref()).unwrap_or(&empty);
    volumes.capacities.values().any(|c| {
        let limit = c.maximum_volume_size.as_ref().or(c.capacity.as_ref());
        Some(&c.storage_class_name) == class.metadata.name.as_ref()
            && limit.is_some()
            && bytes(limit) >= wanted
            && LabelSelector::from_typed(c.node_topology.as_ref()).is_ok_and(|s| s.matches(labels))
    })
}
